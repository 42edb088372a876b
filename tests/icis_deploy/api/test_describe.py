import json

import numpy as np
import pytest
from scipy.io import savemat

import icis_deploy
from icis_deploy.api.describe import describe, indistinguishable_classes
from icis_deploy.cli.main import run
from icis_deploy.descriptors import mat_limits
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import ClassConflictError, DescriptorError, UsageError


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("polar 3 0\nbear 0 4\ncrane 1 0\nzebra 0 1\nokapi 1 1\n")
    return path


def test_names_of_data_sets_are_read_as_words(vectors):
    made = describe(["polar+bear", "002.Zebra"], vectors=vectors)

    assert made.class_names == ("polar+bear", "002.Zebra")
    np.testing.assert_allclose(made.values, [[0.6, 0.8], [0, 1]], rtol=1e-6)


def test_the_facade_describes_and_saves_what_inject_reads(tmp_path, vectors):
    (tmp_path / "classes.txt").write_text("n1\nn2\n")
    (tmp_path / "texts.tsv").write_text("n1\tzebra\nn2\tokapi\n")

    made = icis_deploy.describe(tmp_path / "classes.txt", texts=tmp_path / "texts.tsv", vectors=str(vectors))
    icis_deploy.save_descriptors(made, tmp_path / "d.npz")

    assert icis_deploy.load_descriptors(tmp_path / "d.npz") == made


def test_templates_are_refused_where_they_mean_nothing(vectors):
    with pytest.raises(UsageError, match="Templates are for a text model"):
        describe(["zebra"], vectors=vectors, options=icis_deploy.DescribeOptions(templates=["a {}"]))


def test_a_class_named_twice_is_refused(vectors):
    with pytest.raises(ClassConflictError, match="'zebra' is named twice"):
        describe(["zebra", "zebra"], vectors=vectors)


def test_classes_with_the_same_descriptor_are_found():
    values = np.array([[1, 0], [0, 1], [1, 0], [2, 0]], dtype=np.float32)

    assert indistinguishable_classes(Descriptors(values=values, class_names=("a", "b", "c", "d"))) == [("a", "c")]


def test_the_command_joins_class_lists_and_warns_of_equal_descriptors(tmp_path, vectors, capsys):
    (tmp_path / "seen.txt").write_text("n1\nn2\n")
    (tmp_path / "unseen.txt").write_text("n3\nn2\n")
    (tmp_path / "texts.tsv").write_text("n1\tcrane\nn2\tzebra\nn3\tCrane\n")
    lists = [str(tmp_path / "seen.txt"), str(tmp_path / "unseen.txt")]
    arguments = ["describe", *lists, "--texts", str(tmp_path / "texts.tsv"), "--vectors", str(vectors)]
    out = tmp_path / "descriptors.npz"

    assert run([*arguments, "--out", str(out), "--format", "json"]) == 0

    result = json.loads(capsys.readouterr().out)
    assert (result["num_classes"], result["descriptor_dim"]) == (3, 2)
    assert result["same_descriptor"] == [["n1", "n3"]]
    assert icis_deploy.load_descriptors(out).class_names == ("n1", "n2", "n3")
    before = out.read_bytes()
    assert run([*arguments, "--out", str(out)]) == 2
    assert out.read_bytes() == before
    assert run([*arguments, "--out", str(out), "--overwrite"]) == 0
    assert "Warning: the same descriptor for n1, n3; give them different texts." in capsys.readouterr().out
    assert out.read_bytes() == before


def test_a_name_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "seen.txt").write_text("zebra\n")
    (tmp_path / "vectors.txt").write_text("no vectors at all")
    arguments = ["describe", str(tmp_path / "seen.txt"), "--vectors", str(tmp_path / "vectors.txt")]

    assert run([*arguments, "--out", str(tmp_path / "d.csv")]) == 2

    assert "Descriptors are written as .npz" in capsys.readouterr().err


def test_a_missing_word_ends_the_command_with_3_and_writes_nothing(tmp_path, vectors, capsys):
    (tmp_path / "seen.txt").write_text("zebre\n")
    arguments = ["describe", str(tmp_path / "seen.txt"), "--vectors", str(vectors), "--out", str(tmp_path / "d.npz")]

    assert run(arguments) == 3

    assert "'zebre' (of 'zebre'; closest: 'zebra')" in capsys.readouterr().err
    assert not (tmp_path / "d.npz").exists()


ANSWERS = """Here are the words:

- **okapi**: striped, hoofed, brown, only-okapi
- **Zebra**: Striped, hoofed, white, mane
- **unicorn**: horned, white
- zebra: white

| 001.Black_crane | white, long-legs |
| polar+bear | white, brown |
"""


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_bytes(ANSWERS.replace("\n", "\r\n").encode())
    return path


def test_several_sources_become_blocks_that_name_what_is_missing(tmp_path, vectors, answers):
    (tmp_path / "attributes.csv").write_text("class,size,weight\nokapi,2,300\nzebra,1,400\nhorse,1,1\n")
    names = ["okapi", "zebra", "polar+bear", "001.Black_crane"]

    with pytest.warns(icis_deploy.ICISDeployWarning) as told:
        made = describe(names, tags=answers, attributes=tmp_path / "attributes.csv", vectors=vectors)

    assert [(block.name, block.width) for block in made.blocks] == [("tags", 4), ("attributes", 2), ("vectors", 2)]
    assert made.class_names == tuple(names)
    np.testing.assert_array_equal(made.block("attributes")[:2], [[2, 300], [1, 400]])  # in its own units
    assert made.missing_in("attributes") == ("polar+bear", "001.Black_crane")
    assert made.missing_in("vectors") == ("001.Black_crane",)
    text = "\n".join(str(each.message) for each in told)
    assert "4 words are shared by classes; 3 of one class are dropped" in text
    assert "'zebra' more than once" in text
    assert "'unicorn', which no list of classes has" in text
    assert "Block 'attributes' says nothing of 2 classes: 'polar+bear', '001.Black_crane'." in text


def test_a_block_is_added_to_descriptors_and_replaced_only_if_said(vectors, answers):
    with pytest.warns(icis_deploy.ICISDeployWarning):
        tagged = describe(["okapi", "zebra"], tags=answers)
    both = describe(["zebra", "okapi"], vectors=vectors, blocks=tagged)

    assert [block.name for block in both.blocks] == ["tags", "vectors"]
    np.testing.assert_array_equal(both.block("tags"), tagged.select(["zebra", "okapi"]).values)
    with pytest.raises(UsageError, match=r"a block 'vectors' already. Give `replace=True`"):
        describe(["okapi", "zebra"], vectors=vectors, blocks=both)
    again = describe(["okapi"], vectors=vectors, blocks=both, options=icis_deploy.DescribeOptions(replace=True))
    assert [block.name for block in again.blocks] == ["tags", "vectors"]


def test_a_class_that_no_source_describes_is_refused(answers):
    with pytest.raises(DescriptorError, match="No source describes 'horse'"):
        describe(["okapi", "zebra", "horse"], tags=answers)


def test_a_class_that_a_source_calls_otherwise_is_refused_with_that_name(tmp_path):
    tags = {"okapi": ["striped"], "horse": ["striped"], "Zebras": ["striped"]}
    answers = tmp_path / "answers.txt"
    answers.write_text("okapi: striped, hoofed\nhorse: hoofed, striped\nzebras: striped, hoofed\n")
    attributes = icis_deploy.Descriptors(values=[[1, 0], [0, 1], [1, 1]], class_names=tuple(tags))
    for source in ({"tags": tags}, {"tags": answers}, {"attributes": attributes}):
        with pytest.raises(DescriptorError, match=r"^No source describes 'zebra'\. Did you mean '[Zz]ebras'\? D"):
            describe(["okapi", "horse", "zebra"], **source)


def test_words_of_one_class_alone_are_refused():
    with pytest.raises(DescriptorError, match="Each of the 2 words of the tags is used by one class alone"):
        describe(["okapi", "zebra"], tags={"okapi": ("brown",), "zebra": ("white",)})


def test_a_text_of_words_is_read_as_words_and_not_as_letters():
    as_text = describe(["okapi", "zebra"], tags={"okapi": "striped, four legs", "zebra": "four-legs; black, striped"})
    as_words = describe(
        ["okapi", "zebra"], tags={"okapi": ["striped", "four legs"], "zebra": ["four-legs", "black", "striped"]}
    )
    assert as_text.values.tolist() == as_words.values.tolist() == [[1, 1], [1, 1]]


def test_words_without_classes_are_refused():
    with pytest.raises(UsageError, match="Tags cannot be 'list'"):
        describe(["okapi", "zebra"], tags=["striped", "black"])


def test_a_class_whose_words_are_all_dropped_is_named(vectors):
    tags = {"okapi": ("brown", "hoofed"), "zebra": ("hoofed",), "crane": ("long-legs",)}

    with pytest.warns(icis_deploy.ICISDeployWarning, match="No word of 'crane' is used by another class"):
        made = describe(list(tags), tags=tags, vectors=vectors)

    assert made.missing_in("tags") == ("crane",)


def test_questions_in_turn_ask_about_all_classes_with_the_words_so_far(tmp_path, capsys):
    names = [f"bird {index}" for index in range(70)]
    (tmp_path / "seen.txt").write_text("\n".join(names[:60]))
    (tmp_path / "unseen.txt").write_text("\n".join(names[60:]))
    arguments = ["describe", str(tmp_path / "seen.txt"), str(tmp_path / "unseen.txt"), "--ask", "--format", "json"]

    assert run([*arguments, "--out", str(tmp_path / "1.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["num_left"] == 20
    first = (tmp_path / "1.txt").read_text()
    assert first.splitlines()[-50:] == names[:50]
    assert "Words in use" not in first

    answers = tmp_path / "answers.txt"
    answers.write_text("\n".join(f"{name}: red-bill, wings" for name in names[:50]))
    assert run([*arguments, "--tags", str(answers), "--out", str(tmp_path / "2.txt")]) == 0
    second = (tmp_path / "2.txt").read_text()
    assert second.splitlines()[-20:] == names[50:]
    assert "red-bill, wings" in second

    answers.write_text("\n".join(f"{name}: red-bill, wings" for name in names))
    capsys.readouterr()
    assert run([*arguments, "--tags", str(answers), "--out", str(tmp_path / "3.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["question"] is None
    assert not (tmp_path / "3.txt").exists()


def test_the_command_says_blocks_and_prose_ends_it_with_3(tmp_path, vectors, answers, capsys):
    (tmp_path / "classes.txt").write_text("okapi\nzebra\n")
    arguments = ["describe", str(tmp_path / "classes.txt"), "--vectors", str(vectors), "--out", str(tmp_path / "d.npz")]

    assert run([*arguments, "--tags", str(answers), "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [block["name"] for block in result["blocks"]] == ["tags", "vectors"]
    assert len(icis_deploy.load_descriptors(tmp_path / "d.npz").blocks) == 2

    answers.write_text("The okapi is a forest animal, and the zebra is not.")
    assert run([*arguments, "--tags", str(answers), "--overwrite"]) == 3
    assert "gives words to none of the 2 classes" in capsys.readouterr().err


def att_splits(path, names, values, *, compress=True):
    """Write a file as xlsa17's `att_splits.mat` is: one column of `att` for each class, names in a cell array."""
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = [np.array([name]) for name in names]
    savemat(
        path,
        {"att": np.asarray(values).T, "allclasses_names": cells, "test_unseen_loc": [[1]]},
        do_compression=compress,
    )
    return path


def test_attributes_come_from_att_splits_mat_and_missing_classes_are_named(tmp_path, answers, capsys):
    mat = att_splits(tmp_path / "att_splits.mat", ["okapi", "zebra", "horse"], [[2, 0.5, 0], [0, 0.25, 1], [9, 9, 9]])
    (tmp_path / "classes.txt").write_text("zebra\npolar+bear\n")
    (tmp_path / "unseen.txt").write_text("okapi\n")
    lists = [str(tmp_path / "classes.txt"), str(tmp_path / "unseen.txt")]
    out = tmp_path / "d.npz"

    code = run(
        ["describe", *lists, "--attributes", str(mat), "--tags", str(answers), "--out", str(out), "--format", "json"]
    )

    assert code == 0
    blocks = {block["name"]: block for block in json.loads(capsys.readouterr().out)["blocks"]}
    assert (blocks["attributes"]["width"], blocks["attributes"]["missing"]) == (3, ["polar+bear"])
    made = icis_deploy.load_descriptors(out)
    np.testing.assert_array_equal(made.block("attributes"), [[0, 0.25, 1], [0, 0, 0], [2, 0.5, 0]])


def test_attributes_alone_need_all_classes(tmp_path):
    mat = att_splits(tmp_path / "att_splits.mat", ["okapi", "zebra"], [[2, 1], [0, 1]])

    with pytest.raises(DescriptorError, match="No source describes 'horse'"):
        describe(["okapi", "zebra", "horse"], attributes=mat)


@pytest.mark.parametrize("ending", ["csv", "mat"])
def test_a_class_with_two_rows_of_attributes_is_named_with_the_file(tmp_path, ending):
    path = tmp_path / f"attributes.{ending}"
    if ending == "csv":
        path.write_text("class,size,weight\nokapi,2,300\nzebra,1,400\nokapi,1,1\n")
    else:
        att_splits(path, ["okapi", "zebra", "okapi"], [[2, 300], [1, 400], [1, 1]])

    with pytest.raises(DescriptorError, match=rf"attributes\.{ending}: .*'okapi'.* twice"):
        describe(["okapi", "zebra"], attributes=path)


def test_attributes_of_other_classes_are_refused(tmp_path):
    mat = att_splits(tmp_path / "att_splits.mat", ["Okapi", "Zebra"], [[2, 1], [0, 1]])

    with pytest.raises(
        DescriptorError, match="The attributes describe none of the 2 classes, such as 'okapi', 'zebra'"
    ):
        describe(["okapi", "zebra"], attributes=mat)


def test_attributes_that_unpack_to_more_than_a_file_may_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mat_limits, "MAX_MAT_BYTES", 1 << 16)
    mat = att_splits(tmp_path / "att_splits.mat", ["okapi", "zebra"], np.ones((2, 10_000)))
    (tmp_path / "classes.txt").write_text("okapi\nzebra\n")
    out = tmp_path / "d.npz"
    assert mat.stat().st_size < 1 << 12

    assert run(["describe", str(tmp_path / "classes.txt"), "--attributes", str(mat), "--out", str(out)]) == 3

    assert "its arrays unpack to more than 65536 bytes" in capsys.readouterr().err
    assert not out.exists()


def test_a_class_that_tags_name_in_the_plural_is_told_with_the_one_that_has_none(tmp_path):
    answers = tmp_path / "answers.txt"
    answers.write_text("Zebras: striped, hoofed\nokapi: striped, hoofed\nhorse: hoofed, brown\n")

    with pytest.warns(icis_deploy.ICISDeployWarning, match=r"not used\. Did you mean 'zebra'\?$"):
        describe(["zebra", "okapi", "horse"], tags=answers, attributes={"zebra": [1], "okapi": [2], "horse": [3]})
    with pytest.raises(DescriptorError, match=r"words to none .* Did you mean 'zebra'\?"):
        describe(["zebra"], tags={"Zebras": ["striped"]})
