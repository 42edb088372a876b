from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from icis_deploy.descriptors import files as descriptor_files
from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.descriptors.files import load_descriptors, read_mat, save_descriptors
from icis_deploy.descriptors.mat_limits import CHUNK_BYTES
from icis_deploy.errors import DescriptorError, LoadError, MissingDependencyError, UsageError

NAMES = ("ant", "honey bee", "Bärin")
VALUES = np.array([[1.0, 0.5], [-2.0, 0.25], [3.0, 1e-3]], dtype=np.float32)
EXPECTED = Descriptors(values=VALUES, class_names=NAMES)


def cell_array(names):
    """A MATLAB cell array of strings, (n, 1), as xlsa17 stores `allclasses_names`."""
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    return cells


def write_npz(path, *, compress=False, **arrays):
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return path


def write(path, data):
    path.write_bytes(data)
    return path


def test_an_npz_archive_is_read(tmp_path):
    assert load_descriptors(write_npz(tmp_path / "d.npz", names=np.array(NAMES), values=VALUES)) == EXPECTED


def test_what_is_saved_is_read_again_and_has_the_same_bytes_every_time(tmp_path):
    for name in ("first.npz", "second.npz"):
        save_descriptors(EXPECTED, tmp_path / name)

    assert load_descriptors(tmp_path / "first.npz") == EXPECTED
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


BLOCKS = (DescriptorBlock("tags", 1), DescriptorBlock("vectors", 1))


@pytest.mark.parametrize("blocks", [BLOCKS, (DescriptorBlock("tags", 2),)])
def test_blocks_are_saved_and_read_again_beside_the_flat_matrix(tmp_path, blocks):
    divided = Descriptors(values=VALUES, class_names=NAMES, blocks=blocks)
    for name in ("a.npz", "b.npz"):
        save_descriptors(divided, tmp_path / name)

    assert load_descriptors(tmp_path / "a.npz") == divided
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["values"].tolist() == VALUES.tolist()
        assert archive["widths"].dtype == np.int64


def test_descriptors_that_nobody_divided_are_saved_without_blocks(tmp_path):
    save_descriptors(EXPECTED, tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as archive:
        assert archive.files == ["names", "values"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"blocks": ["tags"]}, "the archive holds 'blocks' alone; expected 'blocks' and 'widths', or neither"),
        ({"widths": [2]}, "the archive holds 'widths' alone; expected 'blocks' and 'widths', or neither"),
        ({"blocks": ["a", "b"], "widths": [2]}, "expected a list of strings and as many whole numbers"),
        ({"blocks": ["tags"], "widths": [2.0]}, "expected a list of strings and as many whole numbers"),
        ({"blocks": [7], "widths": [2]}, "expected a list of strings and as many whole numbers"),
        ({"blocks": ["tags"], "widths": [3]}, "have 3 columns together; the values have 2"),
        ({"blocks": ["a", "a"], "widths": [1, 1]}, "Two blocks of the descriptors are called 'a'"),
        ({"blocks": ["a", "b"], "widths": [3, -1]}, "Block 'b' of the descriptors has width -1"),
    ],
)
def test_blocks_in_an_archive_that_do_not_fit_are_refused(tmp_path, arrays, message):
    path = write_npz(tmp_path / "d.npz", names=np.array(NAMES), values=VALUES, **arrays)
    with pytest.raises(DescriptorError, match=message) as caught:
        load_descriptors(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_descriptors_are_saved_under_a_name_that_can_be_read_again(tmp_path):
    with pytest.raises(UsageError, match=r"written as \.npz; .*d\.csv ends in '\.csv'"):
        save_descriptors(EXPECTED, tmp_path / "d.csv")
    assert not list(tmp_path.iterdir())


def test_names_in_an_npz_archive_may_be_bytes(tmp_path):
    path = write_npz(tmp_path / "d.npz", names=np.array([name.encode() for name in NAMES]), values=VALUES)

    assert load_descriptors(path) == EXPECTED


def test_the_ending_may_be_in_capitals(tmp_path):
    path = write_npz(tmp_path / "d.npz", names=np.array(NAMES), values=VALUES)

    assert load_descriptors(path.rename(tmp_path / "D.NPZ")) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "name,a,b\nant,1,0.5\nhoney bee,-2,0.25\nBärin,3,1e-3\n",
        "\ufeffname,a,b\r\nant,1,0.5\r\nhoney bee,-2,0.25\r\nBärin,3,1e-3",
        'name,a,b\n\n"ant",1,0.5\n honey bee , -2 ,0.25\n\nBärin,3,0.001\n\n',
    ],
    ids=["unix", "windows with BOM", "quotes, spaces, empty lines"],
)
def test_a_csv_file_is_read(tmp_path, text):
    assert load_descriptors(write(tmp_path / "d.csv", text.encode())) == EXPECTED


@pytest.mark.parametrize("compress", [False, True])
def test_an_xlsa17_mat_file_is_read(tmp_path, compress):
    path = tmp_path / "att_splits.mat"
    savemat(
        path,
        {
            "att": VALUES.T.astype(np.float64),
            "allclasses_names": cell_array(NAMES),
            "original_att": VALUES.T,
            "trainval_loc": np.arange(9)[:, None],
        },
        do_compression=compress,
    )

    assert load_descriptors(path) == EXPECTED


def test_names_in_a_mat_file_may_be_a_padded_character_matrix(tmp_path):
    path = tmp_path / "d.mat"
    savemat(path, {"att": VALUES.T, "allclasses_names": np.array(NAMES)})

    assert load_descriptors(path) == EXPECTED


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the pickle was run')",))

    path = write_npz(tmp_path / "d.npz", names=np.array([Trap()], dtype=object), values=VALUES[:1])

    with pytest.raises(
        DescriptorError,
        match=r"^\S+d\.npz: not a readable \.npz archive without pickled objects: the array .names\.npy. holds",
    ):
        load_descriptors(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"values": VALUES}, r"the archive holds \['values'\]; expected the arrays 'names' and 'values'\."),
        ({"names": np.array(NAMES)}, r"the archive holds \['names'\]; expected the arrays"),
        (
            {"names": np.array([NAMES]), "values": VALUES},
            r"the names have shape \(1, 3\) and type <U9; expected a list of strings, one per class\.",
        ),
        ({"names": np.arange(3), "values": VALUES}, r"the names have shape \(3,\) and type int64"),
        ({"names": np.array([b"\xff", b"a", b"b"]), "values": VALUES}, r"a name is not text in UTF-8: "),
        ({"names": np.array(NAMES), "values": VALUES.astype(str)}, r"the values have type <U32; expected real"),
        ({"names": np.array(NAMES), "values": VALUES * 1j}, r"the values have type complex64; expected real numbers\."),
        ({"names": np.array(NAMES), "values": VALUES[0]}, r"The descriptors have shape \(2,\)"),
        ({"names": np.array(NAMES[:2]), "values": VALUES}, r"There are 3 descriptors but 2 class names\."),
        ({"names": np.array(["ant", "bee", "ant"]), "values": VALUES}, r"Descriptors: Class 'ant' is named twice"),
        ({"names": np.array(NAMES), "values": VALUES * [[1], [0], [1]]}, r"'honey bee' has an all-zero descriptor"),
        ({"names": np.array(NAMES), "values": VALUES * [[1], [1], [np.nan]]}, r"'Bärin' has a NaN or infinite value"),
    ],
)
def test_an_npz_archive_that_holds_something_else_is_refused(tmp_path, arrays, message):
    with pytest.raises(DescriptorError, match=rf"^\S+d\.npz: {message}"):
        load_descriptors(write_npz(tmp_path / "d.npz", **arrays))


def test_an_npy_file_called_npz_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", VALUES)

    with pytest.raises(DescriptorError, match=r"^\S+d\.npz: not an \.npz archive\."):
        load_descriptors((tmp_path / "d.npy").rename(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"0 lines; expected a header and a line per class\."),
        ("name,a,b\n", r"1 lines; expected a header and a line per class\."),
        ("name,a,b\nant,1,2\n\nbee,1\n", r"line 4 \('bee'\) has 1 numbers; the header names 2\."),
        ("name,a,b\nant,1,2,3\n", r"line 2 \('ant'\) has 3 numbers; the header names 2\."),
        ("name,a,b\nant,1,red\n", r"line 2 \('ant'\) has a cell that is not a number: 'red'\. Expected"),
        ("name,a,b\nant,1,\n", r"line 2 \('ant'\) has a cell that is not a number: ''\. Expected"),
        (
            "sep=,\nname,a,b\nant,1,2\n",
            r"the first line, 'sep=', says to Excel what stands between the cells; expected",
        ),
        ("sep=;\nname;a;b\nant;1;2\n", r"the first line, 'sep=;', says to Excel what stands between the cells"),
        ("name,a,b\nant,1,1_5\n", r"line 2 \('ant'\) has a cell that is not a number: '1_5'\. Expected"),
        ("name,a\nant,nan\n", r"'ant' has a NaN or infinite value"),
        ("name,a\nant,1e400\n", r"'ant' has a NaN or infinite value"),
        ("name;a\nant;1\n", r"the header is one cell, 'name;a'; expected .* Put commas between the cells"),
        ("name,a\n,1\n", r"Descriptors: Class 0 has an empty name"),
        ("name,a\nant,1\nant,2\n", r"Descriptors: Class 'ant' is named twice"),
        ('name,a\n"ant,1\n', r"not a CSV file in UTF-8: unexpected end of data\."),
    ],
)
def test_a_csv_file_that_is_ragged_or_not_numeric_is_refused(tmp_path, text, message):
    with pytest.raises(DescriptorError, match=rf"^\S+d\.csv: {message}"):
        load_descriptors(write(tmp_path / "d.csv", text.encode()))


def test_a_csv_file_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(DescriptorError, match=r"d\.csv: not a CSV file in UTF-8: 'utf-8' codec can't decode"):
        load_descriptors(write(tmp_path / "d.csv", "name,a\nBärin,1\n".encode("utf-16")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"att": VALUES.T}, r"the file holds \['att'\]; expected 'att' and 'allclasses_names'\."),
        ({"other": VALUES}, r"the file holds \[\]; expected 'att' and 'allclasses_names'\."),
        ({"att": VALUES, "allclasses_names": cell_array(NAMES)}, r"There are 2 descriptors but 3 class names\."),
        (
            {"att": VALUES.T, "allclasses_names": cell_array(["ant", "", "cat"])},
            r"Descriptors: Class 1 has an empty name",
        ),
        ({"att": {"a": 1.0}, "allclasses_names": cell_array(NAMES)}, r".*'att' holds neither real numbers nor"),
    ],
)
def test_a_mat_file_that_holds_something_else_is_refused(tmp_path, content, message):
    savemat(tmp_path / "d.mat", content)

    with pytest.raises(DescriptorError, match=rf"^\S+d\.mat: {message}"):
        load_descriptors(tmp_path / "d.mat")


def test_a_mat_file_without_scipy_says_what_to_install(tmp_path, monkeypatch):
    savemat(tmp_path / "d.mat", {"att": VALUES.T, "allclasses_names": cell_array(NAMES)})
    monkeypatch.setitem(sys.modules, "scipy.io", None)

    with pytest.raises(MissingDependencyError, match=r"needs scipy\. Install it: pip install 'icis-deploy\[train\]'"):
        load_descriptors(tmp_path / "d.mat")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("d.txt", r"The descriptor file \S+d\.txt ends in '\.txt'; expected one of \.npz, \.csv, \.mat\."),
        ("d", r"The descriptor file \S+d ends in 'nothing'; expected one of"),
        ("missing.npz", r"Cannot read the descriptor file \S+missing\.npz: No such file or directory\."),
        ("x" * 300 + ".npz", r"Cannot read the descriptor file \S+: File name too long\."),
    ],
)
def test_a_file_that_is_not_there_or_of_another_kind_is_named(tmp_path, name, message):
    with pytest.raises(DescriptorError, match=f"^{message}"):
        load_descriptors(tmp_path / name)


@pytest.mark.parametrize("ending", ["npz", "csv", "mat"])
def test_a_file_over_the_cap_is_not_read(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(descriptor_files, "MAX_FILE_BYTES", 100)

    with pytest.raises(DescriptorError, match=r"is larger than 100 bytes, which no descriptor file is\. Not read"):
        load_descriptors(write(tmp_path / f"d.{ending}", b"x" * 101))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_npz(folder / "plain.npz", names=np.array(NAMES), values=VALUES)
    write_npz(folder / "packed.npz", compress=True, names=np.array(NAMES), values=VALUES)
    # Packed, as MATLAB writes them: what scipy makes of damage in an unpacked file is beyond any Python code's reach.
    savemat(folder / "packed.mat", {"att": VALUES.T, "allclasses_names": cell_array(NAMES)}, do_compression=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal_or_none(path):
    try:
        load_descriptors(path)
    except DescriptorError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["plain.npz", "packed.npz", "packed.mat"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_crashes(originals, tmp_path_factory, name, data):
    damaged = bytearray(originals[name])
    # Before byte 136 a .mat file says what follows, and that it is packed: with that bit flipped, scipy would read
    # packed bytes as unpacked ones, and that has ended the process.
    first = 136 if name.endswith(".mat") else 0
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(first, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(damaged)

    assert refusal_or_none(path) is None or refusal_or_none(path).startswith(f"{path}: ")


def test_a_packed_file_with_another_checksum_is_refused_before_scipy_reads_it(originals, tmp_path):
    damaged = bytearray(originals["packed.mat"])
    size = int.from_bytes(damaged[132:136], "little")
    damaged[136 + size - 1] ^= 1  # the last byte of the first element's Adler-32

    with pytest.raises(DescriptorError, match=r"not a readable MATLAB file: .*incorrect data check"):
        load_descriptors(write(tmp_path / "packed.mat", bytes(damaged)))


@pytest.mark.parametrize("name", ["plain.npz", "packed.npz", "packed.mat"])
def test_a_truncated_file_is_refused(originals, tmp_path, name):
    for length in range(0, len(originals[name]) - 1, 17):
        with pytest.raises(DescriptorError):
            load_descriptors(write(tmp_path / name, originals[name][:length]))


MAT_VALUES = np.random.default_rng(0).normal(size=(4, CHUNK_BYTES // 8))
"""Packed, it is longer than several chunks."""


def mat_bytes(*, is_packed: bool) -> bytearray:
    buffer = io.BytesIO()
    savemat(buffer, {"first": np.ones((2, 3)), "values": MAT_VALUES}, do_compression=is_packed)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_arrays_asked_for_are_read(is_packed):
    content = read_mat(io.BytesIO(mat_bytes(is_packed=is_packed)), ["values"])

    np.testing.assert_array_equal(content["values"], MAT_VALUES)
    assert "first" not in content


def test_a_packed_array_with_another_checksum_is_refused_though_nobody_asked_for_it():
    data = mat_bytes(is_packed=True)
    data[136 + int.from_bytes(data[132:136], "little") - 1] ^= 1  # the last byte of the first array's Adler-32

    with pytest.raises(LoadError, match="incorrect data check"):
        read_mat(io.BytesIO(data), ["values"])


def test_a_packed_array_that_ends_too_early_is_refused():
    with pytest.raises(LoadError, match=r"^it ends too early$"):
        read_mat(io.BytesIO(mat_bytes(is_packed=True)[:-CHUNK_BYTES]), ["values"])


@pytest.mark.parametrize(
    ("text", "is_headed"),
    [
        ("cat,0.5,1\ndog,1,0\n", False),
        ("cat,0,1,0\ndog,1,0,0\n", False),  # columns that have one name
        (",0,1\ncat,0.5,1\n", True),  # as pandas writes it
        ("species,0,1\ncat,0.5,1\n", True),
        ("name,0.1,0.5\ncat,0.5,1\n", True),
        ("cat,x1,x2\ndog,0.5,1\n", True),
    ],
    ids=["fractions", "zeros and ones", "pandas", "numbered", "thresholds", "named"],
)
def test_a_table_without_a_header_does_not_lose_its_first_class(text, is_headed, tmp_path):
    path = tmp_path / "attributes.csv"
    path.write_text(text)
    if is_headed:
        assert load_descriptors(path).num_classes == 1
        return
    with pytest.raises(
        DescriptorError, match=r"the first line, 'cat' and \d numbers, is of a class; expected a header"
    ):
        load_descriptors(path)
