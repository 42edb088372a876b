import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.errors import DescriptorError, UsageError

VALUES = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(0.5, 100, width=32))


@pytest.fixture
def descriptors():
    return Descriptors(values=[[1, 0], [0, 1], [1, 1]], class_names=["ant", "bee", "cat"])


def test_descriptors_state_their_sizes(descriptors):
    assert (descriptors.num_classes, descriptors.descriptor_dim) == (3, 2)
    assert descriptors.class_names == ("ant", "bee", "cat")


def test_values_are_a_copy_and_cannot_be_written_to():
    source = np.ones((1, 2), dtype=np.float32)
    descriptors = Descriptors(values=source, class_names=["ant"])
    source[:] = 7

    assert descriptors.values.tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        descriptors.values[0] = 0


@given(VALUES, st.data())
def test_selecting_gives_each_name_its_own_descriptor_in_the_order_asked_for(values, data):
    names = [f"class {index}" for index in range(len(values))]
    descriptors = Descriptors(values=values, class_names=names)
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    selected = descriptors.select(chosen)

    assert selected.class_names == tuple(chosen)
    assert selected.values.tolist() == [values[names.index(name)].tolist() for name in chosen]


def test_descriptors_are_equal_if_names_and_values_are(descriptors):
    assert descriptors == descriptors.select(["ant", "bee", "cat"])
    assert descriptors != descriptors.select(["bee", "ant", "cat"])
    assert descriptors != Descriptors(values=[[1, 0], [0, 1], [1, 2]], class_names=["ant", "bee", "cat"])


def test_selecting_classes_without_a_descriptor_names_them(descriptors):
    message = (
        r"^No descriptor for 'dog', 'elk'; there are descriptors of 3 classes, such as 'ant', 'bee', 'cat'\. "
        r"Descriptors are matched to classes by name"
    )
    with pytest.raises(DescriptorError, match=message):
        descriptors.select(["bee", "dog", "elk"])


def test_selecting_a_class_twice_is_refused(descriptors):
    with pytest.raises(DescriptorError, match=r"^Descriptors: Class 'ant' is named twice"):
        descriptors.select(["ant", "ant"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1, np.nan], [1, 1]], r"'ant' has a NaN or infinite value in its descriptor\. Correct or drop it\."),
        ([[1, 1], [np.inf, 1]], r"'bee' has a NaN or infinite value"),
        ([[1, 1], [1e39, 1]], r"'bee' has a NaN or infinite value"),
        ([[0, 0], [1, 1]], r"'ant' has an all-zero descriptor, which describes nothing\. Correct or drop it\."),
        ([[1e-60, -1e-60], [1, 1]], r"'ant' has an all-zero descriptor"),
        ([[0, 0], [0, 0]], r"'ant', 'bee' has an all-zero descriptor"),
        ([[1, 1e30], [1, 1]], r"'ant' has a value beyond 1e\+16, of which .* Multiply all descriptors by one number"),
        ([[1e-30, 0], [1e-20, 1e-20]], r"'ant', 'bee' has no value above 1e-16, of which .* Multiply all"),
        ([1, 2], r"The descriptors have shape \(2,\); expected \(num_classes, descriptor_dim\)"),
        (np.zeros((2, 0)), r"The descriptors have shape \(2, 0\)"),
        ([[1, 2], [3]], r"The descriptors are no matrix: .* Expected one vector of the same width for every class\."),
        ([["a", "b"], ["c", "d"]], r"The descriptors have type <U1; expected real numbers\."),
        ([[1j, 1], [1, 1]], r"The descriptors have type complex128; expected real numbers\."),
        ([[1, 2]], r"There are 1 descriptors but 2 class names\."),
    ],
)
def test_what_describes_nothing_is_refused_by_class_name(values, message):
    with pytest.raises(DescriptorError, match=f"^{message}"):
        Descriptors(values=values, class_names=["ant", "bee"])


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(DescriptorError, match=r"^Descriptors: Class 'ant' is named twice \(again at index 1\)"):
        Descriptors(values=[[1], [2]], class_names=["ant", "ant"])


TAGGED = Descriptors(values=[[1, 0], [0, 1]], class_names=["ant", "bee"], blocks=[DescriptorBlock("tags", 2)])
VECTORS = Descriptors(values=[[3], [4]], class_names=["cat", "bee"], blocks=[DescriptorBlock("vectors", 1)])


def test_descriptors_that_nobody_divided_are_one_block(descriptors):
    assert descriptors.blocks == (DescriptorBlock("descriptors", 2),)
    assert descriptors.block("descriptors").tolist() == descriptors.values.tolist()
    assert descriptors.missing_in("descriptors") == ()


def test_merging_puts_blocks_side_by_side_and_leaves_zeros_where_a_class_is_missing():
    merged = Descriptors.merged([TAGGED, VECTORS])

    assert merged.class_names == ("ant", "bee", "cat")
    assert merged.values.tolist() == [[1, 0, 0], [0, 1, 4], [0, 0, 3]]
    assert merged.blocks == (DescriptorBlock("tags", 2), DescriptorBlock("vectors", 1))
    assert merged.block("tags").tolist() == [[1, 0], [0, 1], [0, 0]]
    assert merged.block("vectors").tolist() == [[0], [4], [3]]
    assert (merged.missing_in("tags"), merged.missing_in("vectors")) == (("cat",), ("ant",))


def test_merging_one_part_gives_that_part():
    assert Descriptors.merged([TAGGED]) == TAGGED


def test_selecting_keeps_the_blocks():
    selected = Descriptors.merged([TAGGED, VECTORS]).select(["cat", "ant"])

    assert selected.block("vectors").tolist() == [[3], [0]]
    assert selected.missing_in("tags") == ("cat",)


def test_the_columns_of_a_block_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        TAGGED.block("tags")[0] = 7


def test_descriptors_divided_otherwise_are_not_equal(descriptors):
    halves = [DescriptorBlock("a", 1), DescriptorBlock("b", 1)]
    assert descriptors != Descriptors(values=descriptors.values, class_names=descriptors.class_names, blocks=halves)


def test_a_class_that_is_zero_in_all_blocks_is_refused():
    blocks = [DescriptorBlock("tags", 1), DescriptorBlock("vectors", 1)]
    with pytest.raises(DescriptorError, match=r"^'bee' has an all-zero descriptor"):
        Descriptors(values=[[1, 0], [0, 0]], class_names=["ant", "bee"], blocks=blocks)


def test_names_in_no_order_and_masked_values_are_refused():
    with pytest.raises(UsageError, match=r"^`class_names` is a set, which has no order\. Give `class_names` as a list"):
        Descriptors(values=np.eye(2), class_names={"ant", "bee"})
    assert Descriptors(values=np.eye(2), class_names={"bee": 1, "ant": 2}.keys()).class_names == ("bee", "ant")
    masked = np.ma.array(np.eye(2) + 1, mask=np.eye(2, dtype=bool))
    with pytest.raises(DescriptorError, match=r"^The descriptors mask 2 of their 4 values, which are missing\."):
        Descriptors(values=masked, class_names=["ant", "bee"])
    unmasked = Descriptors(values=np.ma.array(np.eye(2)), class_names=["ant", "bee"])
    assert unmasked == Descriptors(values=np.eye(2), class_names=["ant", "bee"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Descriptors.merged([TAGGED, TAGGED]), r"^Two blocks of the descriptors are called 'tags'\. Give one"),
        (lambda: Descriptors.merged([]), r"^There are no descriptors to merge\."),
        (
            lambda: Descriptors(values=[[1, 2]], class_names=["ant"], blocks=[DescriptorBlock("tags", 3)]),
            r"^The blocks of the descriptors \('tags'\) have 3 columns together; the values have 2\.",
        ),
        (lambda: TAGGED.block("tag"), r"^The descriptors have no block 'tag'; they have 'tags'\."),
        (lambda: TAGGED.missing_in("tag"), r"^The descriptors have no block 'tag'; they have 'tags'\."),
        (lambda: DescriptorBlock("", 1), r"^A block of descriptors is called ''; expected printable text"),
        (lambda: DescriptorBlock(" tags", 1), r"^A block of descriptors is called ' tags'; expected"),
        (lambda: DescriptorBlock("a\nb", 1), r"^A block of descriptors is called 'a\\nb'; expected"),
        (lambda: DescriptorBlock("tags", 0), r"^Block 'tags' of the descriptors has width 0; expected"),
        (lambda: DescriptorBlock("tags", 1.5), r"^Block 'tags' of the descriptors has width 1\.5; expected"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(make, message):
    with pytest.raises(DescriptorError, match=message):
        make()
