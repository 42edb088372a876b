"""Ask tags: have a language model write the words that say how classes look."""

from __future__ import annotations

from collections.abc import Sequence

from icis_deploy.api.inputs import PathLike, required_class_names
from icis_deploy.common.files import path_from
from icis_deploy.common.given import refused
from icis_deploy.descriptors.class_texts import ClassTexts, texts_from
from icis_deploy.descriptors.language_model import LanguageModel
from icis_deploy.head.class_names import check_unique


def ask_tags(
    classes: PathLike | Sequence[str],
    model: LanguageModel,
    *,
    folder: PathLike,
    texts: PathLike | ClassTexts | None = None,
) -> dict[str, tuple[str, ...]]:
    """Ask a language model for words that say how each class looks, with one vocabulary for all.

    What leaves this machine is the classes' names or texts, the words so far, the name of the model, and the key if
    there is one. A class that the model leaves out twice is not in the result; asking again goes on with these.

    Args:
        classes: Class names, or a text file of them; those that the head knows first, so that new classes take over
            their words.
        model: The model and its server.
        folder: Where answers are kept, one file each, and read before the server is asked.
        texts: What the classes are called, where their names are ids: a file with class name, tab and text on each
            line, or a mapping.

    Returns:
        The words of each class, in the order of the classes.

    Example:
        model = icis_deploy.LanguageModel(base_url="http://localhost:11434/v1", name="qwen3:8b")
        tags = icis_deploy.ask_tags(["zebra", "okapi"], model, folder="answers")

    Raises:
        LanguageModelError: If the server fails, or answers nothing about a batch; what was answered before is kept.
        UsageError: If there is no key where one was promised.
        DescriptorError: If the texts cannot be read.
        StorageError: If an answer cannot be written.
        MissingDependencyError: If the client is not installed.
    """
    from icis_deploy.descriptors.asked_tags import ask_for_tags

    if not isinstance(model, LanguageModel):
        raise refused(model, "a LanguageModel", name="model")
    names = required_class_names(classes)
    check_unique(names)
    known = texts_from(texts)
    return ask_for_tags(names, model, texts=known, folder=path_from(folder, name="folder")).tags
