import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.descriptors.tag_answers import load_tag_answers, read_tag_answers
from icis_deploy.descriptors.tag_words import vocabulary_of
from icis_deploy.errors import DescriptorError

CLASSES = ("okapi", "polar+bear", "n0144", "Black_footed_Albatross", "001.Black_and_white_Warbler", "Black")
TEXTS = {"n0144": ("tench",)}
SPOKEN = {
    "n0144": "n0144 (tench)",
    "polar+bear": "Polar Bear",
    "001.Black_and_white_Warbler": "Black-and-white Warbler",
}
WORDS = ("striped", "four-legs", "white-belly", "x-ray", "black", "long-hooked-bill", "brown", "sea", "mane", "fin")

Table = dict[str, list[str]]


def entries(table: Table, form: str) -> str:
    return "\n".join(
        form.format(number=number, name=name, words=", ".join(words), spaced=" ".join(words))
        for number, (name, words) in enumerate(table.items(), 1)
    )


def spoken(table: Table) -> Table:
    return {
        SPOKEN.get(name, name): [word.replace("-", " ").capitalize() for word in words] for name, words in table.items()
    }


def sections(table: Table, heading: str, item: str) -> str:
    return "\n\n".join("\n".join([heading.format(name), *map(item.format, words)]) for name, words in table.items())


WRAPPINGS = {
    "lines": lambda t: entries(t, "{name}: {words}"),
    "lines in other spellings": lambda t: entries(spoken(t), "{name}: {words}."),
    "tabs": lambda t: entries(t, "{name}\t{words}"),
    "tabs and spaces": lambda t: entries(t, "{name}\t{spaced}"),
    "comma-separated values": lambda t: "class,words\n" + entries(t, "{name},{words}"),
    "numbers": lambda t: entries(t, "{number}. {name}: {words}"),
    "numbers and emphasis": lambda t: entries(spoken(t), "{number}) **{name}**: {words}"),
    "emphasis around the colon": lambda t: entries(t, "* **{name}:** {words}"),
    "dashes": lambda t: entries(spoken(t), "- {name} \u2013 {words}"),
    "a fence and prose around": lambda t: (
        f"Sure! Here are the words:\n\n```text\n{entries(t, '{name}: {words}')}\n```\n\nTell me if you need more!"
    ),
    "labels": lambda t: entries(t, "Class: {name}\nWords: {words}\n"),
    "headings and bullets": lambda t: sections(t, "### {}", "- {}"),
    "headings with numbers": lambda t: sections(spoken(t), "## 7. {}", "* {}"),
    "bold headings": lambda t: sections(t, "**{}**\n", "- {}"),
    "nested bullets": lambda t: sections(t, "- {}", "    - {}"),
    "words by group": lambda t: sections(t, "**{}**\n", "- Group: {}"),
    "names over words": lambda t: entries(t, "{name}\n{words}\n"),
    "long lines broken": lambda t: entries(t, "{name}: {words}").replace(", ", ",\n    "),
    "a table": lambda t: "| Class | Words |\n|---|:---|\n" + entries(t, "| {name} | {words} |"),
    "a table with numbers": lambda t: (
        "| # | Class | Words |\n|--|--|--|\n" + entries(spoken(t), "| {number} | **{name}** | {words} |")
    ),
    "a word in each cell": lambda t: (
        "| Class | 1 | 2 |\n|---|---|---|\n"
        + "\n".join(f"| {name} | {' | '.join(words)} |" for name, words in t.items())
    ),
    "objects of JSON": json.dumps,
    "indented JSON in a fence": lambda t: f"Here it is:\n```json\n{json.dumps(spoken(t), indent=2)}\n```\nDone.",
    "JSON with a comma too many": lambda t: json.dumps(t, indent=1).replace('"\n ]', '",\n ]'),
    "JSON without its end": lambda t: json.dumps(t, indent=2)[:-2],
    "a list of objects": lambda t: json.dumps([{"class": name, "words": words} for name, words in t.items()]),
    "an object in an object": lambda t: json.dumps(
        {"classes": [{"name": name, "tags": ", ".join(words)} for name, words in t.items()]}
    ),
    "lines of JSON": lambda t: "\n".join(json.dumps({"id": name, "words": words}) for name, words in t.items()),
    "a list of pairs": lambda t: json.dumps([[name, words] for name, words in t.items()], indent=1),
    "words that are true or false": lambda t: json.dumps({n: {w: w in words for w in WORDS} for n, words in t.items()}),
    "words by group in JSON": lambda t: json.dumps({n: {"group": w[:1], "own": w[1:]} for n, w in t.items()}),
    "several batches": lambda t: "\n\n".join(
        [
            entries({n: w for n, w in t.items() if n < "a"}, "{name}: {words}"),
            json.dumps({n: w for n, w in t.items() if n >= "a"}),
        ]
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@settings(max_examples=25, deadline=None)
@given(
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    table=st.dictionaries(
        st.sampled_from(CLASSES), st.lists(st.sampled_from(WORDS), min_size=3, max_size=6, unique=True), min_size=1
    ),
)
def test_an_answer_says_the_same_however_it_is_wrapped(wrapping: str, ends: str, table: Table):
    # A class's own name is no word of it.
    table = {name: [word for word in words if word != name.lower()] for name, words in table.items()}
    text = "\ufeff" + WRAPPINGS[wrapping](table).replace("\n", ends)

    answers = read_tag_answers(text, CLASSES, texts=TEXTS)

    assert {name: set(words) for name, words in answers.tags.items()} == {n: set(w) for n, w in table.items()}
    assert answers.missing == tuple(name for name in CLASSES if name not in table)
    assert (answers.doubled, answers.invented) == ((), ())


@given(st.text())
def test_any_text_is_read_and_every_class_has_words_or_is_missing(text: str):
    answers = read_tag_answers(text, CLASSES, texts=TEXTS)

    assert {*answers.tags, *answers.missing} == set(CLASSES)
    assert not set(answers.tags) & set(answers.missing)
    assert all(words and all(words) for words in answers.tags.values())


def test_brackets_without_an_end_do_not_hide_what_follows():
    answers = read_tag_answers("[\n" * 20_000 + "okapi: striped, brown", ["okapi"])

    assert answers.tags == {"okapi": ("striped", "brown")}


def test_an_answer_that_broke_off_gives_what_is_there():
    text = '{"okapi": ["striped", "brown"],\n "zebra": ["striped", "ma'

    assert read_tag_answers(text, ["okapi", "zebra", "horse"]).tags["okapi"] == ("striped", "brown")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "form",
    [
        lambda table: table,
        lambda table: {"classes": table},
        lambda table: [{"class": name, "tags": words} for name, words in table.items()],
        lambda table: [[name, *words] for name, words in table.items()],
        lambda table: {name: ", ".join(words) for name, words in table.items()},
    ],
)
def test_json_that_broke_off_anywhere_gives_no_class_the_words_of_another(form, indent):
    table = {name: [f"{word}-{index}" for word in WORDS[:2]] for index, name in enumerate(CLASSES)}
    whole = json.dumps(form(table), indent=indent)
    for stop in range(1, len(whole)):
        for rest in ("", "\n```\n"):
            found = read_tag_answers(f"```json\n{whole[:stop]}{rest}", CLASSES).tags
            for name, words in found.items():
                assert all(any(word.startswith(each) for word in table[name]) for each in words), whole[:stop]
            complete = [name for name in CLASSES if whole.find(table[name][-1]) + len(table[name][-1]) < stop]
            assert set(complete) <= set(found)


def test_spellings_of_one_word_are_one_word_in_the_most_common_spelling():
    text = "a: Grey, long necks, stripes\nb: gray, Long-Neck, stripe\nc: gray, long_neck, stripes"

    tags = read_tag_answers(text, ["a", "b", "c"]).tags

    assert tags == {
        "a": ("gray", "long-neck", "stripes"),
        "b": ("gray", "long-neck", "stripes"),
        "c": ("gray", "long-neck", "stripes"),
    }
    assert vocabulary_of(tags)["gray"] == 3


def test_a_class_that_is_answered_twice_has_all_of_its_words():
    answers = read_tag_answers("okapi: striped, brown\nzebra: striped, white\nOkapi: brown, hoofed", ["okapi", "zebra"])

    assert answers.tags["okapi"] == ("striped", "brown", "hoofed")
    assert answers.doubled == ("okapi",)


@pytest.mark.parametrize(
    "text",
    [
        "okapi: striped, brown\nunicorn: horned, white",
        "- **okapi**: striped, brown\n- **unicorn**: horned, white",
        "### okapi\n- striped\n- brown\n\n### unicorn\n- horned\n- white",
        "okapi:\nstriped, brown\n\nunicorn:\nhorned, white",
        "| okapi | striped, brown |\n| unicorn | horned, white |",
        '{"okapi": ["striped", "brown"], "unicorn": ["horned", "white"]}',
        '[{"class": "okapi", "words": ["striped", "brown"]}, {"class": "unicorn", "words": ["horned", "white"]}]',
    ],
)
def test_a_class_that_nobody_asked_for_is_named_and_gives_no_words(text: str):
    answers = read_tag_answers(text, ["okapi"])

    assert answers.tags == {"okapi": ("striped", "brown")}
    assert answers.invented == ("unicorn",)


def test_two_classes_with_one_spelling_are_told_apart_by_their_names_alone():
    answers = read_tag_answers("Crane: bird, long-legs\ncrane: machine, yellow\nCRANE: tall, grey", ["crane", "Crane"])

    assert answers.tags == {"crane": ("machine", "yellow"), "Crane": ("bird", "long-legs")}


PROSE = """The okapi is a large animal with striped legs, a brown body, and a long tongue. It lives in forests.
Okapi is related to the giraffe. Okapi, zebra and horse look alike in some ways, as many have said.
Zebra: it is black and white, and it has stripes that are different on each animal."""


def test_prose_is_refused_with_what_is_expected(tmp_path: Path):
    path = tmp_path / "answers.txt"
    path.write_text(PROSE)

    with pytest.raises(
        DescriptorError, match=r"gives words to none of the 2 classes.*'okapi'.*expected a line for each"
    ) as raised:
        load_tag_answers(path, ["okapi", "zebra"])

    assert "Sentences are not read" in str(raised.value)
    assert raised.value.where == path


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b"\xef\xbb\xbf \r\n", "is empty"), (b"PK\x03\x04\xff\xfe", "is not text in UTF-8")],
)
def test_files_that_are_no_answers_are_refused(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "answers.txt"
    path.write_bytes(data)

    with pytest.raises(DescriptorError, match=message):
        load_tag_answers(path, ["okapi"])


def test_an_answer_about_other_classes_names_them(tmp_path: Path):
    path = tmp_path / "answers.txt"
    path.write_text("unicorn: horned, white\n")

    with pytest.raises(DescriptorError, match=r"speaks of 'unicorn' instead"):
        load_tag_answers(path, ["okapi"])
