import re
from pathlib import Path

import pytest

from icis_deploy.descriptors.asked_tags import ask_for_tags
from icis_deploy.descriptors.language_model import LanguageModel
from icis_deploy.descriptors.tag_answers import load_tag_answers
from icis_deploy.errors import LanguageModelError
from testing.chat_server import running_chat_server

BIRDS = Path(__file__).parents[2] / "data" / "bird_tags" / "answers.txt"
LINES = {line.partition(":")[0]: line for line in BIRDS.read_text().splitlines()}
SPECIES = tuple(LINES)


def asked_in(question):
    return re.search(r"classes:\n(.*)", question, re.DOTALL)[1].split()


def as_lines(question):
    return "\n".join(LINES[name] for name in asked_in(question))


def as_a_table(question):
    rows = [f"| **{name.replace('_', ' ')}** | {LINES[name].partition(': ')[2]} |" for name in asked_in(question)]
    return "\n".join(["Here they are!", "", "| Class | Words |", "|---|---|", *rows, "", "Shall I go on?"])


@pytest.fixture(params=[as_lines, as_a_table])
def server(request, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running_chat_server(request.param) as running:
        yield running


def test_a_server_gives_what_the_same_answers_in_a_file_give(server, tmp_path):
    model = LanguageModel(base_url=server.url, name="small")

    asked = ask_for_tags(SPECIES, model, folder=tmp_path)

    assert asked.tags == load_tag_answers(BIRDS, SPECIES).tags
    assert asked.missing == ()
    assert [len(asked_in(question)) for question in server.questions] == [50, 50, 50, 31]


def test_each_question_shows_the_words_in_use_so_far(server, tmp_path):
    ask_for_tags(SPECIES, LanguageModel(base_url=server.url, name="small"), folder=tmp_path)

    first, second, *_ = server.questions
    assert "blackbird" not in first
    assert {"songbird", "blackbird", "dark-bill"} <= set(re.split(r"[\s,]+", second))


def test_what_was_answered_before_a_failure_is_not_asked_again(server, tmp_path):
    model = LanguageModel(base_url=server.url, name="small")
    server.behaviours = [server.default, server.default, (400, "{}", {})]
    with pytest.raises(LanguageModelError):
        ask_for_tags(SPECIES, model, folder=tmp_path)
    del server.requests[:]

    asked = ask_for_tags(SPECIES, model, folder=tmp_path)

    assert asked.tags == load_tag_answers(BIRDS, SPECIES).tags
    assert [len(asked_in(question)) for question in server.questions] == [50, 31]


def test_prose_about_the_classes_is_no_answer(server, tmp_path):
    prose = "The Laysan Albatross is a large seabird with a white head. It can be seen over the Pacific."
    server.behaviours = [prose, prose]

    with pytest.raises(LanguageModelError, match="2 times without a word about"):
        ask_for_tags(SPECIES[:2], LanguageModel(base_url=server.url, name="small"), folder=tmp_path)


def test_classes_with_ids_are_asked_for_by_what_they_are_called(server, tmp_path):
    server.behaviours = ["zebra: striped, hoofed, black\nokapi: striped, hoofed, brown"]
    texts = {"n1": ["zebra"], "n2": ["okapi"]}

    asked = ask_for_tags(("n1", "n2"), LanguageModel(base_url=server.url, name="small"), texts=texts, folder=tmp_path)

    assert "n1 (zebra)\nn2 (okapi)" in server.questions[0]
    assert asked.tags == {"n1": ("striped", "hoofed", "black"), "n2": ("striped", "hoofed", "brown")}
