"""A language model behind an OpenAI-compatible server, which is asked for the tags of classes.

Rules:

1. What is sent is the question, the name of the model, and the key if there is one: nothing else of this machine. The
   official client's own headers about system and versions are left out.
2. The key comes from an environment variable, and never gets into a file, a log or an error: what a server says is
   quoted without it, and no error of ours carries the client's error along.
3. Every answer that describes a class is a file of its own before the next question is asked, named by the SHA-256 of
   model and question. Asking again reads these files first, so that an interruption loses nothing.
4. Retries are bounded: the client's for a server that is silent or busy, one more question for an answer that left
   classes out. Answers out of the files do not count, so that each new run goes on where the last one ended.
5. Time and size are bounded: the client's timeout is for each silence, so a server that sends a byte now and then would
   hold it for ever; a question with all its tries has a time of its own, and an answer a greatest size.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from icis_deploy.common.files import read_capped, write_failure, write_file
from icis_deploy.common.json_fields import load_strict
from icis_deploy.common.terminal_text import MAX_REASON, printable, shown
from icis_deploy.errors import LanguageModelError, MissingDependencyError, UsageError
from icis_deploy.head.class_names import quoted

if TYPE_CHECKING:
    from openai import OpenAI, OpenAIError

INSTALL = "pip install 'icis-deploy[llm]'"
MAX_RETRIES = 2
"""How often the client asks a silent or busy server again, after half a second and more, or what the server says."""

MAX_QUESTIONS = 2
"""Live questions about the same classes in one run: the first, and one for what its answer left out."""

MAX_WAIT_S = 120.0
"""How long the client waits between two tries at most, where a busy server asks for it."""

MAX_ANSWER_BYTES = 1 << 22
MAX_BODY_BYTES = 1 << 24
"""Of an answer as it is sent, with what the model thought."""

KEY_VARIABLE = "OPENAI_API_KEY"
MORE_TIME = "Give it more time with `timeout_s`, or choose a faster model."
NO_KEY = "none"
"""What is sent where no key is set: the client insists on one, Ollama and vLLM ignore it."""

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_STATED_BY_THE_CLIENT = (
    "X-Stainless-Arch",
    "X-Stainless-Async",
    "X-Stainless-Lang",
    "X-Stainless-OS",
    "X-Stainless-Package-Version",
    "X-Stainless-Runtime",
    "X-Stainless-Runtime-Version",
    "OpenAI-Organization",
    "OpenAI-Project",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A language model behind an OpenAI-compatible server: Ollama, vLLM, or a hosted one.

    Example:
        model = icis_deploy.LanguageModel(base_url="http://localhost:11434/v1", name="qwen3:8b")

    Raises:
        UsageError: On construction, if the address is not http(s), holds a name or password, or the rest is no text
            or no positive number of seconds.
    """

    base_url: str
    """Address of the server's API, which mostly ends in `/v1`."""

    name: str
    """What the server calls the model."""

    key_variable: str = KEY_VARIABLE
    """The environment variable that holds the key, where the server wants one."""

    timeout_s: float = 300.0
    """How long the server may be silent before it is asked again, in seconds; a slow machine writes for minutes. A
    question may take three times as long in all, and the waits that a busy server asks for."""

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.base_url)
            is_address = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
        except (ValueError, AttributeError, TypeError):
            is_address = False
        if not is_address:
            raise UsageError(
                f"The address of the language model's server is {shown(self.base_url)}; expected one that begins with "
                f"http:// or https://, such as http://localhost:11434/v1.",
                found=self.base_url,
                expected="an http(s) address",
            )
        if address.username is not None or address.password is not None:
            raise UsageError(
                f"The address of the language model's server at {address.hostname} holds a user name or a password; "
                f"expected an address alone.",
                expected="an address without user name and password",
                hint="Put the key into the environment variable that `key_variable` names.",
            )
        for field in ("name", "key_variable"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f"`{field}` is {shown(value)}; expected text.", found=value, expected="text")
        if not isinstance(self.timeout_s, int | float) or not 0 < self.timeout_s <= 86_400:
            raise UsageError(
                f"`timeout_s` is {shown(self.timeout_s)}; expected seconds, more than 0 and at most a day.",
                found=self.timeout_s,
                expected="0 to 86400",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a language model answered about classes."""

    text: str
    """All answers one after the other, as they came."""

    unanswered: tuple[str, ...]
    """Classes that no answer describes."""


# Why files and not one journal: docs/decisions/0074.
def ask_about_classes(
    class_names: Sequence[str],
    model: LanguageModel,
    *,
    question_of: Callable[[Sequence[str], str], str],
    described_in: Callable[[str], Collection[str]],
    folder: Path,
    batch_size: int,
) -> Answers:
    """Ask a language model about classes, some at a time, and keep every answer.

    Args:
        class_names: In the order in which they are asked for.
        model: Whom to ask.
        question_of: Makes the question about some classes, given all answers so far.
        described_in: Returns the classes that an answer describes.
        folder: Where answers are kept, and read before the server is asked.
        batch_size: How many classes one question is about.

    Raises:
        LanguageModelError: If the server fails, or twice in a row answers nothing about a batch; what was answered
            before is kept.
        UsageError: If the key's variable is named and not set, or its content cannot be a key.
        StorageError: If an answer cannot be written.
        MissingDependencyError: If the client is not installed.
    """
    texts: list[str] = []
    unanswered: list[str] = []
    for start in range(0, len(class_names), batch_size):
        batch = class_names[start : start + batch_size]
        asked = list(batch)
        num_questions = 0
        while asked and num_questions < MAX_QUESTIONS:
            question = question_of(asked, "\n".join(texts))
            path = folder / f"{_digest(question, model)}.txt"
            if os.path.exists(path):  # noqa: PTH110 - a name that is too long is none
                answer = _kept_answer(path)
            else:
                num_questions += 1
                answer = _asked(question, model, folder=folder)
            described = set(described_in(answer)).intersection(asked)
            if not described:
                if os.path.exists(path):  # noqa: PTH110  # somebody else's file, or one that was damaged
                    path.unlink()
                elif num_questions == MAX_QUESTIONS and len(asked) == len(batch):
                    raise _nonsense(answer, asked, model, folder)
                continue
            if not os.path.exists(path):  # noqa: PTH110
                _keep(path, answer)
            texts.append(answer)
            asked = [name for name in asked if name not in described]
        unanswered += asked
    return Answers(text="\n".join(texts), unanswered=tuple(unanswered))


def _digest(question: str, model: LanguageModel) -> str:
    return hashlib.sha256(json.dumps([model.name, question]).encode()).hexdigest()


def _kept_answer(path: Path) -> str:
    data = read_capped(path, max_bytes=MAX_ANSWER_BYTES, what="kept answer", error_type=LanguageModelError)
    return data.decode("utf-8", "replace")


def _keep(path: Path, answer: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(path, error, after="The answer is lost.") from error
    write_file(path, answer.encode("utf-8", "replace"))


def _asked(question: str, model: LanguageModel, *, folder: Path) -> str:
    """Return the answer of the server to one question."""
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError(
            "Asking a language model needs the client `openai`.", hint=f"Install it: {INSTALL}."
        ) from error
    key = _key(model)
    failure: LanguageModelError | None = None
    answer = ""
    try:
        answer = _within(question_time(model), partial(_answer, question, model, key))
    except _OutOfTimeError:
        failure = _out_of_time(model, folder)
    except openai.OpenAIError as error:
        failure = _failure(error, model, key, folder)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        failure = LanguageModelError(
            f"What {model.base_url} sends is no answer of an OpenAI-compatible server.",
            expected="a chat completion",
            where=model.base_url,
            hint=f"Check `base_url`: it mostly ends in /v1. {_kept_in(folder)}",
        )
    # Raised here and not where it was caught: the client's errors hold the request, and with it the key.
    if failure is not None:
        raise failure
    return answer[:MAX_ANSWER_BYTES]


def question_time(model: LanguageModel) -> float:
    """Return how long a question may take with all its tries, in seconds."""
    return (MAX_RETRIES + 1) * model.timeout_s + MAX_RETRIES * MAX_WAIT_S


def _answer(question: str, model: LanguageModel, key: str) -> str:
    """Return what the server answers, without what the model thought.

    Raises:
        OpenAIError: If the server fails.
        ValueError: If it sends something else than a completion, or too much; or another error of a wrong structure.
    """
    with (
        _client(model, key) as client,
        client.chat.completions.with_streaming_response.create(
            model=model.name, messages=[{"role": "user", "content": question}]
        ) as response,
    ):
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise ValueError(f"the answer is longer than {MAX_BODY_BYTES} bytes")
    choice = load_strict(bytes(body))["choices"][0]
    answer = _THOUGHTS.sub("", choice["message"]["content"] or "").strip()
    if choice.get("finish_reason") == "length":  # the last line is half of one
        answer = answer.rpartition("\n")[0]
    return answer


class _OutOfTimeError(Exception):
    """What was to be done was not done in time."""


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Return what `work` returns, or raise what it raises, unless that takes longer.

    What is not done in time is left to a thread that does not keep the process alive: a connection that is being read
    cannot be closed from outside.

    Raises:
        _OutOfTimeError: If it takes longer.
    """
    done: list[str] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # raised again below, where somebody waits for it
            failed.append(error)

    thread = threading.Thread(target=run, name="icis-deploy question", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise _OutOfTimeError
    return done[0]


def _client(model: LanguageModel, key: str) -> OpenAI:
    import openai

    silenced = dict.fromkeys(_STATED_BY_THE_CLIENT, openai.Omit())
    silenced["User-Agent"] = "icis-deploy"  # type: ignore[assignment]
    return openai.OpenAI(
        base_url=model.base_url,
        api_key=key,
        timeout=model.timeout_s,
        max_retries=MAX_RETRIES,
        default_headers=silenced,  # type: ignore[arg-type]  # the client leaves an `Omit` out, as its own code does
    )


def _key(model: LanguageModel) -> str:
    key = os.environ.get(model.key_variable, "").strip()
    if not key and model.key_variable != KEY_VARIABLE:
        raise UsageError(
            f"The environment variable {model.key_variable} is not set; expected the key of {model.base_url}.",
            expected="a key",
            where=model.key_variable,
            hint="Set it, or leave `key_variable` out where the server wants no key.",
        )
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"The environment variable {model.key_variable} holds something that cannot be a key; expected printable "
            f"ASCII on one line.",
            expected="printable ASCII on one line",
            where=model.key_variable,
            hint="Set the variable to the key alone, without line ends.",
        )
    return key or NO_KEY


def _failure(error: OpenAIError, model: LanguageModel, key: str, folder: Path) -> LanguageModelError:
    """Return what a failure of the client means here, without anything of the request."""
    import openai

    what, found, hint = _explained(error, model)
    reason = ""
    if isinstance(error, openai.APIStatusError):
        reason = printable(error.message.replace(key, "***"), max_length=MAX_REASON)
    said = f" It says: {reason.rstrip('.')}." if reason else ""
    return LanguageModelError(
        f"The server of the language model at {model.base_url} {what}.{said}",
        found=found,
        expected="an answer",
        where=model.base_url,
        hint=f"{hint} {_kept_in(folder)}",
    )


def _out_of_time(model: LanguageModel, folder: Path) -> LanguageModelError:
    return LanguageModelError(
        f"The server of the language model at {model.base_url} was never silent for long and had not answered after "
        f"{question_time(model):g} s.",
        found="no whole answer",
        expected=f"an answer within {question_time(model):g} s",
        where=model.base_url,
        hint=f"{MORE_TIME} {_kept_in(folder)}",
    )


def _kept_in(folder: Path) -> str:
    return f"What was answered before is kept in {folder}; ask again to go on."


def _explained(error: OpenAIError, model: LanguageModel) -> tuple[str, str | int, str]:
    """Return what the server did, in words and as a value, and what helps."""
    import openai as client

    if isinstance(error, client.APIStatusError):
        what, hint = _status_explained(error.status_code, model)
        return f"{what} (status {error.status_code})", error.status_code, hint
    tries = f"{MAX_RETRIES + 1} times"
    if isinstance(error, client.APITimeoutError):
        return f"was silent for {model.timeout_s:g} s, {tries}", "timeout", MORE_TIME
    if isinstance(error, client.APIConnectionError):
        return f"cannot be reached, tried {tries}", "no connection", "Start it, or correct `base_url`."
    return "sent something else than an answer", type(error).__name__, "Check `base_url`, which mostly ends in /v1."


def _status_explained(status: int, model: LanguageModel) -> tuple[str, str]:
    """Return what the server did, in words, and what helps."""
    if status == 429:
        return f"refused {MAX_RETRIES + 1} times to take more questions", "Wait, or see what its owner allows."
    if status in (401, 403):
        return "refused the key", f"Put a key of this server into the environment variable {model.key_variable}."
    if status == 404:
        what = f"knows no model {model.name!r}, or has no chat at this address"
        return what, "Check the model's name and `base_url`, which mostly ends in /v1."
    return "failed", "See the server's log."


def _nonsense(answer: str, asked: Sequence[str], model: LanguageModel, folder: Path) -> LanguageModelError:
    said = shown(answer) if answer else "nothing"
    return LanguageModelError(
        f"{model.name} answered {MAX_QUESTIONS} times without a word about {quoted(asked)}; the last time it said "
        f"{said}.",
        found=answer[:MAX_REASON],
        expected=tuple(asked),
        where=model.base_url,
        hint=f"Take a larger model, or write these tags by hand. What was answered before is kept in {folder}.",
    )
