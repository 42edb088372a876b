import pytest

from icis_deploy.descriptors.class_texts import load_class_texts, text_from_name, texts_of
from icis_deploy.errors import DescriptorError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("okapi", "okapi"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("polar+bear", "polar bear"),
        ("jack-o'-lantern", "jack-o'-lantern"),
        ("7.62", "7.62"),
        ("__great__white_shark_", "great white shark"),
    ],
)
def test_a_class_name_becomes_what_a_person_would_write(name, text):
    assert text_from_name(name) == text


def test_a_class_with_several_lines_has_several_texts(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_bytes("\ufeffwnid\tname\r\nn01\tokapi\r\n\r\nn02 \t great white shark\nn01\tOkapia johnstoni".encode())

    texts = load_class_texts(path)

    assert texts_of(["n02", "n01"], texts) == {"n02": ("great white shark",), "n01": ("okapi", "Okapia johnstoni")}


@pytest.mark.parametrize("line", ["n01 okapi", "n01\t", "\tokapi", "n01\tokapi\textra"])
def test_a_line_that_is_not_name_tab_text_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "names.tsv"
    path.write_text(f"n00\tzebra\n{line}\n")

    with pytest.raises(DescriptorError, match=r"names\.tsv, line 2: .*expected a class name, a tab, and a text"):
        load_class_texts(path)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_bytes("n01\tBär".encode("latin-1"))

    with pytest.raises(DescriptorError, match="not text in UTF-8"):
        load_class_texts(path)


def test_classes_without_a_text_are_named():
    with pytest.raises(DescriptorError, match=r"No text for 'n02'; there are texts of 1 classes, such as 'n01'"):
        texts_of(["n01", "n02"], {"n01": ("okapi",)})


def test_a_text_without_a_word_is_refused():
    with pytest.raises(DescriptorError, match=r"The text of '___' has no word in it"):
        texts_of(["okapi", "___"], None)
