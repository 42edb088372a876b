"""Options that have a language model write the tags of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

Command = Callable[..., None]


def llm_options(function: Command) -> Command:
    """Add the options that say which language model is asked; `tags_from_llm` asks it."""
    for option in (
        click.option(
            "--llm-timeout",
            type=click.FloatRange(min=0, min_open=True, max=86_400),
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
        click.option("--llm-model", metavar="NAME", help="What the server calls the language model, with --llm."),
        click.option(
            "--llm",
            metavar="URL",
            help="Have a language model write tags: an OpenAI-compatible server, such as http://localhost:11434/v1. "
            "Class names and texts are sent there, and nothing else; without this option nothing is sent.",
        ),
    ):
        function = option(function)
    return function


def answers_folder(out: Path) -> Path:
    """Return where the answers for a file of descriptors are kept: beside it, `new.answers` for `new.npz`."""
    return out.with_suffix(".answers")


def tags_from_llm(
    class_names: Sequence[str],
    *,
    texts: Path | None,
    out: Path,
    llm: str,
    llm_model: str | None,
    key: str,
    timeout: float,
) -> dict[str, tuple[str, ...]]:
    """Return the words that a language model gives to classes.

    Raises:
        UsageError: If no model is named.
        ICISDeployError: As `ask_tags`.
    """
    from icis_deploy.api.ask_tags import ask_tags
    from icis_deploy.descriptors.language_model import LanguageModel
    from icis_deploy.errors import UsageError

    if not llm_model:
        raise UsageError(
            f"The server {llm} is to be asked, and no model is named.",
            expected="a model's name",
            hint="Give --llm-model NAME, as the server calls it.",
        )
    model = LanguageModel(base_url=llm, name=llm_model, key_variable=key, timeout_s=timeout)
    return ask_tags(class_names, model, folder=answers_folder(out), texts=texts)
