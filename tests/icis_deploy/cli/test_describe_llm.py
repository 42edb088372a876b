import json
import re

import pytest

import icis_deploy
from icis_deploy.cli.main import run
from testing.chat_server import running_chat_server

WORDS = {"zebra": "mammal, striped, black", "okapi": "mammal, striped, brown", "tiger": "mammal, orange, black"}
KEY = "sk-topsecret-1234567890"


def answer(question):
    names = re.search(r"classes:\n(.*)", question, re.DOTALL)[1].split()
    return "\n".join(f"- **{name}**: {WORDS[name]}" for name in names)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running_chat_server(answer) as running:
        yield running


@pytest.fixture
def arguments(tmp_path, server):
    (tmp_path / "classes.txt").write_text("zebra\ntiger\n")
    (tmp_path / "unseen.txt").write_text("okapi\n")
    lists = [str(tmp_path / "classes.txt"), str(tmp_path / "unseen.txt")]
    return ["describe", *lists, "--llm", server.url, "--llm-model", "small", "--out", str(tmp_path / "d.npz")]


def test_a_language_model_writes_the_words_of_the_descriptors(arguments, server, tmp_path, capsys):
    assert run(arguments) == 0

    made = icis_deploy.load_descriptors(tmp_path / "d.npz")
    assert made.class_names == ("zebra", "tiger", "okapi")
    assert [(block.name, block.width) for block in made.blocks] == [("tags", 3)]
    assert "3 words are shared by classes; 2 of one class are dropped" in capsys.readouterr().out
    [kept] = (tmp_path / "d.answers").iterdir()
    assert kept.read_text() == answer("classes:\nzebra tiger okapi")
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_command_and_python_give_the_same(arguments, server, tmp_path):
    run(arguments)

    model = icis_deploy.LanguageModel(base_url=server.url, name="small")
    names = ["zebra", "tiger", "okapi"]
    tags = icis_deploy.ask_tags(names, model, folder=tmp_path / "d.answers")

    assert icis_deploy.describe(names, tags=tags) == icis_deploy.load_descriptors(tmp_path / "d.npz")
    assert len(server.requests) == 1


def test_a_class_that_the_model_leaves_out_is_named(arguments, server, tmp_path, capsys):
    server.behaviours = ["zebra: mammal, striped\nokapi: mammal, striped", "I do not know that one."]
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("zebra 0 1\nokapi 1 1\ntiger 1 0\n")

    assert run([*arguments, "--vectors", str(vectors), "--format", "json"]) == 0

    result = json.loads(capsys.readouterr().out)
    assert {block["name"]: block["missing"] for block in result["blocks"]} == {"tags": ["tiger"], "vectors": []}
    assert len(server.requests) == 2


def test_a_server_that_fails_ends_the_command_with_4_and_says_how_to_go_on(arguments, server, tmp_path, capsys):
    server.behaviours = [(401, json.dumps({"error": {"message": f"bad key {KEY}"}}), {})]

    assert run(arguments) == 4

    error = capsys.readouterr().err
    assert "refused the key (status 401)" in error
    assert "the environment variable OPENAI_API_KEY" in error
    assert "d.answers" in error
    assert KEY not in error
    assert not (tmp_path / "d.npz").exists()


def test_hints_name_the_options(arguments, server, capsys):
    server.behaviours = [(404, "{}", {})]

    assert run(arguments) == 4

    assert "Check the model's name and --llm, which mostly ends in /v1." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--ask"], "--ask takes --tags and --texts, and no other source"),
        (["--tags", "classes.txt"], "--tags and --llm both give words"),
        (["--llm", "localhost"], "begins with http:// or https://"),
        (["--llm-key", "NO_SUCH_VARIABLE"], "The environment variable NO_SUCH_VARIABLE is not set"),
    ],
)
def test_options_that_contradict_each_other_are_refused_and_nothing_is_sent(
    arguments, server, tmp_path, capsys, change, message
):
    change = [str(tmp_path / each) if each.endswith(".txt") else each for each in change]

    assert run([*arguments, *change]) == 2

    assert message in capsys.readouterr().err
    assert server.requests == []


def test_a_server_without_a_model_is_refused(arguments, server, capsys):
    index = arguments.index("--llm-model")

    assert run(arguments[:index] + arguments[index + 2 :]) == 2

    assert "--llm URL and --llm-model NAME go together" in capsys.readouterr().err
    assert server.requests == []
