import gzip
import tracemalloc

import numpy as np
import pytest

from icis_deploy.descriptors import word_vectors
from icis_deploy.descriptors.word_vectors import closest_words, describe_with_vectors, read_vectors, term_of
from icis_deploy.errors import DescriptorError

VECTORS = {
    "the": [0.1, 0.1, 0.1],
    "great": [2.0, 0.0, 0.0],
    "white": [0.0, 4.0, 0.0],
    "shark": [0.0, 0.0, 6.0],
    "okapi": [-3.0, 0.0, 4.0],
    "zebra": [1.0, 1.0, 0.0],
}


def unit(*values):
    return np.array(values) / np.linalg.norm(values)


def write_vectors(path, vectors=VECTORS, *, header=False, prefix="", compress=False):
    lines = [f"{len(vectors)} 3"] if header else []
    lines += [f"{prefix}{word} {' '.join(map(str, values))}" for word, values in vectors.items()]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"header": True},
        {"header": True, "prefix": "/c/en/"},
        {"compress": True},
    ],
    ids=["GloVe", "word2vec", "Numberbatch", "gzipped"],
)
def test_every_text_format_gives_the_same_descriptors(tmp_path, form):
    path = write_vectors(tmp_path / "vectors", **form)

    made = describe_with_vectors({"n1": ["great white shark"], "n2": ["Okapi"]}, path)

    assert made.class_names == ("n1", "n2")
    np.testing.assert_allclose(made.values, [unit(2, 4, 6), [-0.6, 0, 0.8]], rtol=1e-6)


def test_a_name_that_the_file_has_as_one_term_is_not_averaged(tmp_path):
    path = write_vectors(tmp_path / "v.txt", VECTORS | {"great_white_shark": [0.0, 1.0, 1.0]})

    made = describe_with_vectors({"n1": ["Great-White Shark"], "n2": ["white shark"]}, path)

    np.testing.assert_allclose(made.values, [unit(0, 1, 1), unit(0, 4, 6)], rtol=1e-6)


def test_several_texts_of_a_class_count_equally_whatever_their_length(tmp_path):
    made = describe_with_vectors({"n1": ["great", "shark"]}, write_vectors(tmp_path / "v.txt"))

    np.testing.assert_allclose(made.values, [unit(1, 0, 1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "term"),
    [
        ("Yellow lady's slipper", "yellow_ladys_slipper"),
        ("jack-o\u2019-lantern", "jack_o_lantern"),
        ("St. Bernard", "st_bernard"),
        ("Bärin", "bärin"),
    ],
)
def test_spelling_makes_no_difference(words, term):
    assert term_of(words) == term


def test_of_several_spellings_the_lower_case_one_is_taken_else_the_first(tmp_path):
    vectors = {"Turkey": [1, 0, 0], "turkey": [0, 1, 0], "TURKEY": [0, 0, 1], "Husky": [1, 2, 0], "HUSKY": [3, 0, 0]}

    found = read_vectors(write_vectors(tmp_path / "v.txt", vectors), {"turkey", "husky"})

    assert {word: vector.tolist() for word, vector in found.items()} == {"turkey": [0, 1, 0], "husky": [1, 2, 0]}


def test_words_of_other_languages_are_not_taken_for_english_ones(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("3 2\n/c/de/gift 1 1\n/c/en/gift 1 2\n/c/fr/gift 1 3\n")

    assert read_vectors(path, {"gift"})["gift"].tolist() == [1, 2]


def test_words_with_spaces_in_them_are_passed_over(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("the 1 1\nat name@domain.com 5 5\nat 1 2\n")

    assert read_vectors(path, {"at"})["at"].tolist() == [1, 2]


def test_missing_words_are_named_with_their_class_and_the_closest_words(tmp_path):
    path = write_vectors(tmp_path / "v.txt", VECTORS | {"komodo": [1, 1, 1], "sharks": [1, 2, 3]})

    with pytest.raises(DescriptorError) as caught:
        describe_with_vectors({"n1": ["sharkk"], "n2": ["great komondor"], "n3": ["xylophone"]}, path)

    message = str(caught.value)
    assert f"{path} has no vector for 3 of the words" in message
    assert "'sharkk' (of 'n1'; closest: 'shark', 'sharks')" in message
    assert "'komondor' (of 'n2'; closest: 'komodo')" in message
    assert "'xylophone' (of 'n3'; closest: none)" in message


def test_a_message_looks_for_the_closest_of_a_few_words_only(tmp_path):
    texts = {f"n{index}": [f"unknown{chr(97 + index)}"] for index in range(14)}

    with pytest.raises(DescriptorError, match=r"no vector for 14 of the words: .* and 4 more\. Give"):
        describe_with_vectors(texts, write_vectors(tmp_path / "v.txt"))


def test_the_closest_words_come_best_first_and_are_few(tmp_path):
    words = ["shark", "sharks", "sharky", "sharp", "shark_tank", "stork", "mark"]
    path = write_vectors(tmp_path / "v.txt", {word: [1, 2, 3] for word in words})

    assert closest_words(path, ["shark", "zebra"]) == {"shark": ["shark", "sharky", "sharks"], "zebra": []}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"the cat sat on the mat\n", "line 1: .*expected a word and"),
        (b"the 1 2 3\nokapi 1 2\n", "line 2: .* has 2 fields after the word; expected a word and 3 numbers"),
        (b"the 1 2 3\nokapi 1 x 2\n", "line 2: .*expected a word and 3 numbers"),
        (b"the 1 2 3\nokapi 1 nan 2\n", "line 2: .*expected a word and 3 numbers"),
        (b"3000000 300\nin \x00\x12\xff\x80\n\x01", "line 2: .*word2vec's binary form has to be converted"),
        (b"x" * 3000, "line 1: longer than 1000 bytes"),
        (gzip.compress(b"the 1 2 3\n" * 500)[:-20], "Cannot read the vector file .*: Compressed file ended"),
        (b"\x1f\x8bnot gzip at all", "Cannot read the vector file"),
    ],
    ids=["empty", "prose", "short", "no number", "NaN", "binary", "no lines", "truncated gzip", "false gzip"],
)
def test_a_file_of_something_else_is_refused_by_line(tmp_path, data, message, monkeypatch):
    monkeypatch.setattr(word_vectors, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "v"
    path.write_bytes(data)

    with pytest.raises(DescriptorError, match=message):
        read_vectors(path, {"okapi"})


def test_a_missing_file_is_an_error_of_ours(tmp_path):
    with pytest.raises(DescriptorError, match=r"Cannot read the vector file .*No such file"):
        read_vectors(tmp_path / "none.txt", {"okapi"})


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "v.txt"
    numbers = " ".join(["0.125"] * 50)
    path.write_text("".join(f"word{index} {numbers}\n" for index in range(20_000)))  # 6 MB

    tracemalloc.start()
    found = read_vectors(path, {"word19999"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert list(found) == ["word19999"]
    assert peak < 1 << 20
