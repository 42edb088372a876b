import json

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.describe import describe, indistinguishable_classes
from icis_deploy.cli.main import run
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import ClassConflictError, UsageError


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


@pytest.mark.parametrize("sources", [{}, {"vectors": "a", "model": "b"}])
def test_exactly_one_source_is_needed(sources):
    with pytest.raises(
        UsageError,
        match=r"either a file of word vectors or a text model, and .* given. Give either `vectors` or `model`",
    ):
        describe(["zebra"], **sources)


def test_templates_are_refused_where_they_mean_nothing(vectors):
    with pytest.raises(UsageError, match="Templates are for a text model"):
        describe(["zebra"], vectors=vectors, templates=["a {}"])


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
