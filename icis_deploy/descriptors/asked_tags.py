"""Tags of classes from a language model: the questions and the reading of answers, put to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from icis_deploy.descriptors.language_model import LanguageModel, ask_about_classes
from icis_deploy.descriptors.tag_answers import TagAnswers, read_tag_answers
from icis_deploy.descriptors.tag_questions import BATCH_SIZE, question_about


def ask_for_tags(
    class_names: Sequence[str],
    model: LanguageModel,
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    folder: Path,
) -> TagAnswers:
    """Ask a language model for the words of classes, with one vocabulary for all.

    Args:
        class_names: Unique; those that the head knows first, so that new classes take over their words.
        model: Whom to ask.
        texts: What the classes are called, where their names are ids.
        folder: Where answers are kept, and read before the server is asked.

    Raises:
        LanguageModelError: If the server fails, or answers nothing about a batch; what was answered before is kept.
        UsageError: If there is no key where one was promised.
        StorageError: If an answer cannot be written.
        MissingDependencyError: If the client is not installed.
    """

    def question_of(asked: Sequence[str], answers: str) -> str:
        return question_about(asked, tags=read_tag_answers(answers, class_names, texts=texts).tags, texts=texts)

    answers = ask_about_classes(
        class_names,
        model,
        question_of=question_of,
        described_in=lambda answer: read_tag_answers(answer, class_names, texts=texts).tags,
        folder=folder,
        batch_size=BATCH_SIZE,
    )
    return read_tag_answers(answers.text, class_names, texts=texts)
