"""Options that have a language model write the words of classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from icis_deploy.cli.parameter_types import Number

Command = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMChoice:
    """Which language model is asked, as the options say it."""

    base_url: str
    name: str
    key_variable: str
    timeout_s: float


def llm_options(function: Command) -> Command:
    """Add the options that say which language model is asked; the command gets them as one `llm`, `None` without."""

    @functools.wraps(function)
    def command(*, llm: str | None, llm_model: str | None, llm_key: str, llm_timeout: float, **others: object) -> None:
        if (llm is None) != (llm_model is None):
            raise click.UsageError("--llm URL and --llm-model NAME go together: the server, and its model.")
        choice = None
        if llm is not None and llm_model is not None:
            choice = LLMChoice(base_url=llm, name=llm_model, key_variable=llm_key, timeout_s=llm_timeout)
        function(llm=choice, **others)

    for option in (
        click.option(
            "--llm-timeout",
            type=Number(min=0, min_open=True, max=86_400),
            default=300.0,
            show_default=True,
            metavar="SECONDS",
            help="How long the server may be silent before it is asked again.",
        ),
        click.option(
            "--llm-key",
            metavar="VARIABLE",
            default="OPENAI_API_KEY",
            show_default=True,
            help="The environment variable with the server's key, if it wants one.",
        ),
        click.option("--llm-model", metavar="NAME", help="What the server of --llm calls the language model."),
        click.option(
            "--llm",
            metavar="URL",
            help="Have a language model write the words: an OpenAI-compatible server, as http://localhost:11434/v1. "
            "Names and texts of classes are sent there.",
        ),
    ):
        command = option(command)
    return command


def answers_folder(out: Path) -> Path:
    """Return where the answers for a file of descriptors are kept: beside it, `new.answers` for `new.npz`."""
    return out.with_suffix(".answers")


def tags_from_llm(
    choice: LLMChoice, class_names: Sequence[str], *, texts: Path | None, out: Path
) -> dict[str, tuple[str, ...]]:
    """Return the words that a language model gives to classes; its answers are kept beside `out`.

    Raises:
        ICISDeployError: As `ask_tags`.
    """
    from icis_deploy.api.ask_tags import ask_tags
    from icis_deploy.descriptors.language_model import LanguageModel

    model = LanguageModel(
        base_url=choice.base_url, name=choice.name, key_variable=choice.key_variable, timeout_s=choice.timeout_s
    )
    return ask_tags(class_names, model, folder=answers_folder(out), texts=texts)
