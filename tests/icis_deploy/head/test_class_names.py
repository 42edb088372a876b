from pathlib import Path

import pytest

from icis_deploy.errors import ClassConflictError, LoadError, UsageError
from icis_deploy.head.class_names import check_unique, load_class_list, names_in_order, quoted


def class_list(tmp_path, data):
    path = tmp_path / "classes.txt"
    path.write_bytes(data)
    return path


def test_unique_names_pass():
    check_unique(["ant", "bee", "Ant", "ant "])
    check_unique(["é" * 512])
    check_unique([])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["ant", "bee", "ant"],
            r"Class 'ant' is named twice \(again at index 2\); names must be unique\. Rename one of them\.",
        ),
        (["ant", ""], r"Class 1 has an empty name; every class needs one\."),
        ([1], r"Class 0 is named 1; a name is a text that UTF-8 can hold\."),
        ([None], r"Class 0 is named None; a name is a text"),
        (["é" * 513], r"Class 0, 'é{20}'…, has a name of 1026 bytes in UTF-8; at most 1024 are taken\."),
        (["\ud800"], r"Class 0 is named '\\ud800'; a name is a text that UTF-8 can hold\."),
    ],
)
def test_names_that_are_no_names_are_refused(names, message):
    with pytest.raises(ClassConflictError, match=f"^{message}"):
        check_unique(names)


def test_a_message_quotes_the_first_names_and_counts_the_others():
    assert quoted(["a"]) == "'a'"
    assert quoted(list("abcde")) == "'a', 'b', 'c', 'd', 'e'"
    assert quoted(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"


@pytest.mark.parametrize(
    "data",
    [
        b"ant\nhoney bee\n",
        b"ant\r\nhoney bee",
        b"\xef\xbb\xbfant\n  honey bee \n\n\n",
    ],
    ids=["unix", "windows", "BOM, spaces, empty lines at the end"],
)
def test_a_class_list_is_read_in_order(tmp_path, data):
    assert load_class_list(class_list(tmp_path, data)) == ("ant", "honey bee")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\x1d", "\x1e"])
def test_only_a_line_end_ends_a_name(tmp_path, mark):
    names = load_class_list(class_list(tmp_path, f"ant\nhoney{mark}bee\r\nwasp\rhornet\n".encode()))

    assert names == ("ant", f"honey{mark}bee", "wasp", "hornet")


def test_names_keep_their_own_letters(tmp_path):
    assert load_class_list(class_list(tmp_path, "Frischlingsbärchen\n鹿\n".encode())) == ("Frischlingsbärchen", "鹿")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"The class list \S+ is empty\. Expected one class name a line\."),
        (b" \n\n", r"The class list \S+ is empty\."),
        (b"ant\n\nbee\n", r"The class list \S+: Class 1 has an empty name"),
        (b"\nant\n", r"The class list \S+: Class 0 has an empty name"),
        (b"ant\nbee\nant\n", r"The class list \S+: Class 'ant' is named twice"),
        (b"ant\n\xff\xfe\n", r"The class list \S+ is not text in UTF-8: .*Expected one class name a line\."),
    ],
)
def test_a_class_list_that_would_shift_or_lose_classes_is_refused(tmp_path, data, message):
    with pytest.raises(LoadError, match=f"^{message}"):
        load_class_list(class_list(tmp_path, data))


def test_a_missing_class_list_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"^Cannot read the class list \S+missing\.txt: No such file or directory\."):
        load_class_list(tmp_path / "missing.txt")


def test_a_folder_is_no_class_list(tmp_path):
    with pytest.raises(LoadError, match=r"^Cannot read the class list \S+: Is a directory\."):
        load_class_list(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '["wolf", "[maned] wolf"]',
        '{"1": "[maned] wolf", "0": "wolf"}',
        '\ufeff{\n  "id2label": {"0": "wolf", "1": "[maned] wolf"},\n  "label2id": {"wolf": 0}\n}\n',
        "wolf\n[maned] wolf",
    ],
)
def test_a_list_of_classes_may_be_json_as_configurations_have_it(tmp_path: Path, text: str):
    for name in ("classes.json", "classes.txt") if text[0] != "w" else ("classes.txt",):
        (tmp_path / name).write_text(text, encoding="utf-8")

        assert load_class_list(tmp_path / name) == ("wolf", "[maned] wolf")


def test_a_list_that_only_begins_like_json_is_text(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("[unknown]\n{0}\n")

    assert load_class_list(tmp_path / "classes.txt") == ("[unknown]", "{0}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["wolf",', "holds no names as JSON"),
        ("[]", "holds no names as JSON"),
        ('{"wolf": 0, "dog": 1}', "The names by number have none for 0"),
        ('{"0": ["n02", "wolf"]}', "expected text"),
        ('["wolf", "wolf"]', "named twice"),
    ],
)
def test_json_without_a_name_for_each_output_is_no_list(tmp_path: Path, text: str, message: str):
    (tmp_path / "classes.json").write_text(text)

    with pytest.raises(LoadError, match=message):
        load_class_list(tmp_path / "classes.json")


def test_names_by_what_is_no_number_are_refused():
    with pytest.raises(UsageError, match="have none for 0"):
        names_in_order({"wolf": 0, "dog": 1})


@pytest.mark.parametrize("name", ["[unused]", "{okapi}", "[1] okapi"])
def test_a_name_in_brackets_is_a_name(tmp_path, name):
    path = tmp_path / "classes.txt"
    path.write_text(f"{name}\nzebra\n")
    assert load_class_list(path) == (name, "zebra")
