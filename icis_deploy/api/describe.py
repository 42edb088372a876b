"""Describe: make the descriptors of classes from what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icis_deploy.api.inputs import PathLike, class_names_from
from icis_deploy.descriptors.class_texts import ClassTexts, load_class_texts, texts_of
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import UsageError
from icis_deploy.head.class_names import check_unique


def describe(
    classes: PathLike | Sequence[str],
    *,
    texts: PathLike | ClassTexts | None = None,
    vectors: PathLike | None = None,
    model: PathLike | None = None,
    templates: Sequence[str] = (),
) -> Descriptors:
    """Make a descriptor of unit length for each class from its name, by word vectors or by a text model.

    Args:
        classes: Class names, or a text file of them; seen and unseen ones together, since one space must hold all.
        texts: What the classes are called, where their names are ids: a file with class name, tab and text on each
            line, or a mapping. A class may have several texts; they are averaged.
        vectors: A file of word vectors in text format; either this or `model`.
        model: The folder of a transformers or sentence-transformers model, or its name on the Hugging Face hub.
        templates: Prompts for the model, each with a `{}`; their vectors are averaged.

    Example:
        descriptors = icis_deploy.describe(["okapi", "zebra"], vectors="numberbatch-en.txt.gz")
        icis_deploy.save_descriptors(descriptors, "descriptors.npz")

    Raises:
        UsageError: If not exactly one of `vectors` and `model` is given, or a template does not fit.
        DescriptorError: If a class has no text, a word has no vector, or the source cannot be read.
        MissingDependencyError: If the library that the model needs is not installed.
    """
    if (vectors is None) == (model is None):
        number = "neither was" if vectors is None else "both were"
        raise UsageError(
            f"Descriptors are made from either a file of word vectors or a text model, and {number} given.",
            hint="Give either `vectors` or `model`, and not both.",
        )
    if vectors is not None and templates:
        raise UsageError(
            "Templates are for a text model; word vectors are looked up by the bare text.",
            hint="Leave `templates` out, or give `model` instead of `vectors`.",
        )
    names = class_names_from(classes)
    check_unique(names)
    known = load_class_texts(Path(texts)) if isinstance(texts, str | Path) else texts
    found = texts_of(names, known)
    if vectors is not None:
        from icis_deploy.descriptors.word_vectors import describe_with_vectors

        return describe_with_vectors(found, Path(vectors))
    from icis_deploy.descriptors.text_encoder import describe_with_model

    return describe_with_model(found, str(model), templates=templates)


def indistinguishable_classes(descriptors: Descriptors) -> list[tuple[str, ...]]:
    """Return the groups of classes with the same descriptor, such as the two cranes, which no method can tell apart."""
    groups: dict[bytes, list[str]] = {}
    for name, value in zip(descriptors.class_names, descriptors.values, strict=True):
        groups.setdefault(value.tobytes(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
