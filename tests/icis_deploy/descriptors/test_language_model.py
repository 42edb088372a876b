import json
import logging
import socket
import traceback

import pytest

from icis_deploy.descriptors import language_model
from icis_deploy.descriptors.language_model import LanguageModel, ask_about_classes
from icis_deploy.errors import LanguageModelError, UsageError
from testing.chat_server import DRIPPING, SILENT, running_chat_server

CLASSES = tuple(f"class {index}" for index in range(7))
KEY = "sk-topsecret-1234567890"


def tagged(*names):
    return "\n".join(f"{name}: red, striped" for name in names)


def question_of(class_names, so_far):
    return f"Describe: {', '.join(class_names)}\nSo far: {len(so_far.split())} words"


def described_in(answer):
    return [line.partition(":")[0] for line in answer.splitlines() if ": " in line]


def all_asked(question):
    """The answer of a model that does as it is told."""
    return tagged(*question.splitlines()[0].removeprefix("Describe: ").split(", "))


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    with running_chat_server(all_asked) as running:
        yield running


def ask(server, folder, class_names=CLASSES, batch_size=3, **options):
    is_waited_for = any(behaviour in (SILENT, DRIPPING) for behaviour in server.behaviours)
    timeout_s = 0.3 if is_waited_for else 30.0  # a busy machine answers late
    model = LanguageModel(base_url=server.url, name="small", timeout_s=timeout_s, **options)
    return ask_about_classes(
        class_names, model, question_of=question_of, described_in=described_in, folder=folder, batch_size=batch_size
    )


def busy(status, headers=None, message="busy"):
    return (status, json.dumps({"error": {"message": message}}), {"retry-after-ms": "1", **(headers or {})})


def test_classes_are_asked_for_in_batches_and_every_answer_is_kept(server, tmp_path):
    found = ask(server, tmp_path / "answers")

    assert described_in(found.text) == list(CLASSES)
    assert found.unanswered == ()
    assert [question.count("class ") for question in server.questions] == [3, 3, 1]
    kept = [path.read_text() for path in (tmp_path / "answers").iterdir()]
    assert sorted(kept) == sorted([tagged(*CLASSES[:3]), tagged(*CLASSES[3:6]), tagged(*CLASSES[6:])])


def test_each_question_is_made_from_all_answers_so_far(server, tmp_path):
    ask(server, tmp_path)

    assert [question.splitlines()[1] for question in server.questions] == [
        "So far: 0 words", "So far: 12 words", "So far: 24 words"
    ]  # fmt: skip


def test_asking_again_reads_the_files_and_not_the_server(server, tmp_path):
    first = ask(server, tmp_path)
    num_requests = len(server.requests)

    assert ask(server, tmp_path) == first
    assert len(server.requests) == num_requests


def test_another_model_is_asked_anew(server, tmp_path):
    ask(server, tmp_path)

    model = LanguageModel(base_url=server.url, name="large")
    ask_about_classes(CLASSES, model, question_of=question_of, described_in=described_in, folder=tmp_path, batch_size=7)

    assert json.loads(server.requests[-1][2])["model"] == "large"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers_is_not_noticed(server, tmp_path, status):
    server.behaviours = [busy(status), busy(status)]

    assert ask(server, tmp_path).unanswered == ()
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("behaviour", "message", "num_requests"),
    [
        (busy(429), r"refused 3 times to take more questions \(status 429\)\. It says: .*busy", 3),
        (busy(500), r"failed \(status 500\)", 3),
        (busy(401), r"refused the key \(status 401\)", 1),
        (busy(404), r"knows no model 'small'", 1),
        (busy(400), r"failed \(status 400\)", 1),
        (SILENT, r"was silent for 0\.3 s, 3 times", 3),
        ((200, "<html>welcome</html>", {"Content-Type": "text/html"}), r"no answer of an OpenAI-compatible server", 1),
        ((200, "{}", {}), r"no answer of an OpenAI-compatible server", 1),
        ((200, '{"choices": []}', {}), r"no answer of an OpenAI-compatible server", 1),
        ((200, "[" * 100_000, {}), r"no answer of an OpenAI-compatible server", 1),
        ((200, '{"choices": [{"message": null}]}', {}), r"no answer of an OpenAI-compatible server", 1),
        ((200, '{"choices": [{"message": {"content": 5}}]}', {}), r"no answer of an OpenAI-compatible server", 1),
        ((200, "{", {}), r"no answer of an OpenAI-compatible server|something else than an answer", 1),
    ],
)  # fmt: skip
def test_a_server_that_fails_is_named_and_the_next_run_goes_on(server, tmp_path, behaviour, message, num_requests):
    server.behaviours = [all_asked, *[behaviour] * num_requests]

    with pytest.raises(LanguageModelError, match=message) as caught:
        ask(server, tmp_path)

    assert caught.value.where == server.url
    assert caught.value.exit_code == 4
    assert len(server.requests) == 1 + num_requests
    assert [path.read_text() for path in tmp_path.iterdir()] == [tagged(*CLASSES[:3])]
    del server.requests[:]
    assert ask(server, tmp_path).unanswered == ()
    assert [question.count("class ") for question in server.questions] == [3, 1]


def test_a_server_that_is_never_silent_and_never_done_is_given_up_and_the_next_run_goes_on(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(language_model, "MAX_WAIT_S", 0.05)
    server.behaviours = [all_asked, DRIPPING]

    with pytest.raises(LanguageModelError, match=r"had not answered after 1 s\. Give it more time") as caught:
        ask(server, tmp_path)

    assert caught.value.exit_code == 4
    assert f"kept in {tmp_path}" in caught.value.hint
    assert [path.read_text() for path in tmp_path.iterdir()] == [tagged(*CLASSES[:3])]
    assert ask(server, tmp_path).unanswered == ()


def test_an_answer_without_end_is_refused_before_it_fills_memory(server, tmp_path, monkeypatch):
    monkeypatch.setattr(language_model, "MAX_BODY_BYTES", 1000)
    server.behaviours = [tagged(*[f"class {index}" for index in range(100)])]

    with pytest.raises(LanguageModelError, match="no answer of an OpenAI-compatible server"):
        ask(server, tmp_path)


def test_a_server_that_is_down_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    model = LanguageModel(base_url=url, name="small")

    with pytest.raises(LanguageModelError, match="cannot be reached") as caught:
        ask_about_classes(
            CLASSES, model, question_of=question_of, described_in=described_in, folder=tmp_path, batch_size=7
        )

    assert "Start it, or correct `base_url`." in caught.value.hint


def test_half_an_answer_is_asked_for_the_rest_once(server, tmp_path):
    server.behaviours = [tagged("class 0"), tagged("class 1"), all_asked]

    found = ask(server, tmp_path, CLASSES[:6])

    assert found.unanswered == ("class 2",)
    assert [line.splitlines()[0] for line in server.questions] == [
        "Describe: class 0, class 1, class 2",
        "Describe: class 1, class 2",
        "Describe: class 3, class 4, class 5",
    ]


def test_what_stayed_unanswered_is_asked_by_the_next_run(server, tmp_path):
    server.behaviours = [tagged("class 0"), tagged("class 1")]
    ask(server, tmp_path, CLASSES[:3])

    assert ask(server, tmp_path, CLASSES[:3]).unanswered == ()
    assert server.questions[-1].startswith("Describe: class 2\n")


def test_an_answer_that_was_cut_off_loses_its_last_line(server, tmp_path):
    server.finish_reason = "length"
    server.behaviours = [tagged("class 0", "class 1", "class 2"), "class 2: red\nclass"]

    found = ask(server, tmp_path, CLASSES[:3])

    assert found.text == "class 0: red, striped\nclass 1: red, striped\nclass 2: red"


def test_nonsense_is_asked_again_once_and_then_named_without_being_kept(server, tmp_path):
    server.behaviours = [all_asked, "I cannot help with that.", "I cannot help with that."]

    with pytest.raises(LanguageModelError, match=r"2 times without a word about 'class 3', .*'I cannot help") as caught:
        ask(server, tmp_path)

    assert caught.value.expected == CLASSES[3:6]
    assert len(server.requests) == 3
    assert len(list(tmp_path.iterdir())) == 1
    assert ask(server, tmp_path).unanswered == ()


def test_a_kept_answer_that_was_damaged_is_asked_for_again(server, tmp_path):
    ask(server, tmp_path, CLASSES[:3])
    [path] = tmp_path.iterdir()
    path.write_bytes(b"\xff\x00")

    assert ask(server, tmp_path, CLASSES[:3]).unanswered == ()
    assert path.read_text() == tagged(*CLASSES[:3])


def test_thoughts_of_a_reasoning_model_are_not_part_of_its_answer(server, tmp_path):
    server.behaviours = [f"<think>class 9: what\nis it?</think>\n{tagged(*CLASSES[:3])}"]

    assert ask(server, tmp_path, CLASSES[:3]).text == tagged(*CLASSES[:3])


def test_nothing_but_question_model_and_key_leaves_the_machine(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-somebody")

    ask(server, tmp_path, CLASSES[:3])

    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert json.loads(body) == {
        "model": "small",
        "messages": [{"role": "user", "content": question_of(CLASSES[:3], "")}],
    }
    assert headers.pop("authorization") == f"Bearer {KEY}"
    assert headers.pop("user-agent") == "icis-deploy"
    assert set(headers) <= {
        "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "x-stainless-retry-count",
        "x-stainless-read-timeout", "x-stainless-raw-response", "idempotency-key",
    }  # fmt: skip


def test_the_key_of_a_named_variable_is_sent(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)

    ask(server, tmp_path, CLASSES[:3], key_variable="MY_KEY")

    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "behaviour",
    [
        busy(401, message=f"Incorrect API key provided: {KEY}"),
        busy(429, message=f"quota of {KEY}"),
        busy(500, message=KEY),
        (200, KEY, {"Content-Type": "text/plain"}),
        SILENT,
        DRIPPING,
    ],
)
def test_the_key_is_in_no_file_log_error_or_traceback(server, tmp_path, monkeypatch, caplog, behaviour):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.behaviours = [all_asked, *[behaviour] * 3]
    monkeypatch.setattr(language_model, "MAX_WAIT_S", 0.05)

    with pytest.raises(LanguageModelError) as caught:
        ask(server, tmp_path)

    error = caught.value
    assert KEY in server.requests[-1][1]["authorization"]
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(vars(error)) + caplog.text
    assert KEY not in shown
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": "localhost:11434"}, "begins with http:// or https://"),
        ({"base_url": "ftp://host/v1"}, "begins with http:// or https://"),
        ({"base_url": "http://host:99999/v1"}, "begins with http:// or https://"),
        ({"base_url": "http:///v1"}, "begins with http:// or https://"),
        ({"base_url": None}, "begins with http:// or https://"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "at host holds a user name or a password"),
        ({"name": " "}, "`name` is ' '; expected text"),
        ({"key_variable": ""}, "`key_variable` is ''; expected text"),
        ({"timeout_s": 0}, "`timeout_s` is 0; expected seconds"),
        ({"timeout_s": float("nan")}, "`timeout_s` is nan; expected seconds"),
        ({"timeout_s": "5"}, "`timeout_s` is '5'; expected seconds"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused(given, message):
    with pytest.raises(UsageError, match=message) as caught:
        LanguageModel(**{"base_url": "http://host/v1", "name": "small", **given})

    assert KEY not in str(caught.value) + repr(vars(caught.value))


def test_a_named_variable_that_is_not_set_is_refused_before_anything_is_sent(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)

    with pytest.raises(UsageError, match="The environment variable MY_KEY is not set"):
        ask(server, tmp_path, key_variable="MY_KEY")

    assert server.requests == []


@pytest.mark.parametrize("key", [f"{KEY}\u00e9", f"{KEY}\nX-Evil: 1"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)

    with pytest.raises(UsageError, match="cannot be a key") as caught:
        ask(server, tmp_path)

    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert server.requests == []
