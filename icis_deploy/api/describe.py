"""Describe: make the descriptors of classes from what is known of them without an image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icis_deploy.api.inputs import PathLike, descriptors_from, options_from, required_class_names
from icis_deploy.api.notices import tell
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_flag, items
from icis_deploy.common.terminal_text import shown
from icis_deploy.descriptors.class_texts import ClassTexts, texts_from, texts_of
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.sources import DescribedClasses, joined_blocks, missing_notes, named_block
from icis_deploy.descriptors.tag_answers import TagAnswers, load_tag_answers
from icis_deploy.descriptors.tag_words import ClassTags, joined, words_in
from icis_deploy.errors import DescriptorError, UsageError
from icis_deploy.head.class_names import check_unique, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeOptions:
    """How `describe` reads its sources.

    Example:
        options = icis_deploy.DescribeOptions(templates=["a photo of a {}."])
        icis_deploy.describe(["okapi", "zebra"], model="clip-vit-base-patch32/", options=options)

    Raises:
        UsageError: On construction, if something is of another type.
    """

    templates: Sequence[str] = ()
    """Prompts for the model, each with a `{}`; their vectors are averaged."""

    replace: bool = False
    """Whether a new block takes the place of one of the same name in `blocks`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", items(self.templates, "prompts", name="templates"))
        check_flag(self.replace, name="replace")


def describe(
    classes: PathLike | Sequence[str],
    *,
    tags: PathLike | ClassTags | None = None,
    attributes: PathLike | Descriptors | None = None,
    vectors: PathLike | None = None,
    model: PathLike | None = None,
    texts: PathLike | ClassTexts | None = None,
    blocks: PathLike | Descriptors | None = None,
    options: DescribeOptions | None = None,
) -> Descriptors:
    """Make a descriptor for each class, with a block for each source that is given.

    With no source at all, the names or texts are read by a small text model. A class that a source does not know is
    missing in its block, and a warning names it; one source must describe it.

    Args:
        classes: Class names, or a text file of them; seen and unseen ones together, since one space must hold all.
        tags: Words that say how classes look: a mapping, or a file of answers of a language model, however they are
            wrapped. Words of one class alone are dropped. Block `tags`; with a `model`, also `tag_sentences`.
        attributes: Numbers by class, as `load_descriptors` reads them. Block `attributes`.
        vectors: A file of word vectors in text format. Block `vectors`.
        model: The folder of a transformers or sentence-transformers model, or its name on the Hugging Face hub. It
            reads the texts, and the tags as sentences; the names where there are neither. Block `texts`.
        texts: What the classes are called, where their names are ids: a file with class name, tab and text on each
            line, or a mapping. A class may have several texts; they are averaged.
        blocks: Descriptors that are there already, whose blocks come first.
        options: Templates, and what becomes of a block that is there already.

    Example:
        descriptors = icis_deploy.describe(["okapi", "zebra"], vectors="numberbatch-en.txt.gz", tags="answers.txt")
        icis_deploy.save_descriptors(descriptors, "descriptors.npz")

    Raises:
        UsageError: If a template does not fit, or a block is there already.
        DescriptorError: If no source describes a class, or a source cannot be read.
        MissingDependencyError: If the library that the model needs is not installed.
    """
    made = describe_with_notes(
        classes,
        tags=tags,
        attributes=attributes,
        vectors=vectors,
        model=model,
        texts=texts,
        blocks=blocks,
        options=options,
    )
    tell(made.notes)
    return made.descriptors


def describe_with_notes(
    classes: PathLike | Sequence[str],
    *,
    tags: PathLike | ClassTags | None,
    attributes: PathLike | Descriptors | None,
    vectors: PathLike | None,
    model: PathLike | None,
    texts: PathLike | ClassTexts | None,
    blocks: PathLike | Descriptors | None,
    options: DescribeOptions | None,
) -> DescribedClasses:
    """Do what `describe` does, and return what it warns of."""
    options = options_from(options, DescribeOptions)
    names = required_class_names(classes)
    check_unique(names)
    notes: list[str] = []
    known = texts_from(texts)
    if all(source is None for source in (tags, attributes, vectors, model, blocks)):
        from icis_deploy.descriptors.text_encoder import DEFAULT_MODEL

        model = DEFAULT_MODEL
        notes.append(
            f"Read by {DEFAULT_MODEL}; words that say how classes look (`tags`) and word vectors (`vectors`) do better."
        )
    if options.templates and model is None:
        raise UsageError(
            "Templates are for a text model; word vectors are looked up by the bare text.",
            hint="Leave `templates` out, or give `model`.",
        )
    parts: list[Descriptors] = []
    words: ClassTags | None = None
    spoken_of: list[str] = []
    if tags is not None:
        words, tag_block, tag_notes, spoken_of = _tags(tags, names, known)
        parts.append(tag_block)
        notes += tag_notes
    if attributes is not None:
        given = descriptors_from(attributes)
        spoken_of += given.class_names
        parts.append(named_block(given, "attributes", names))
    is_alone = sum(source is not None for source in (tags, attributes, vectors, model, blocks)) < 2
    spoken = _spoken(names, known, is_alone=is_alone)
    if vectors is not None:
        from icis_deploy.descriptors.word_vectors import describe_known_with_vectors, describe_with_vectors

        read = describe_with_vectors if is_alone else describe_known_with_vectors
        parts.append(named_block(read(spoken, path_from(vectors, name="vectors")), "vectors", names))
    if model is not None:
        path_from(model, name="model")  # not taken: a name on the hub is no path
        from icis_deploy.descriptors.text_encoder import describe_with_model

        if texts is not None or words is None:
            made = describe_with_model(spoken, str(model), templates=options.templates)
            parts.append(named_block(made, "texts", names))
        if words is not None:
            sentences = {name: (joined(each),) for name, each in words.items()}
            parts.append(named_block(describe_with_model(sentences, str(model)), "tag_sentences", names))
    base = None if blocks is None else descriptors_from(blocks)
    made = joined_blocks(names, parts, base=base, replace=options.replace, unused=spoken_of)
    return DescribedClasses(descriptors=made, notes=(*notes, *missing_notes(made)))


def _spoken(names: Sequence[str], known: ClassTexts | None, *, is_alone: bool) -> ClassTexts:
    """Return the texts of classes; where other sources describe them, those without a text are left out."""
    if known is None or is_alone:
        return texts_of(names, known)
    return texts_of([name for name in names if known.get(name)], known)


def _tags(
    tags: PathLike | ClassTags, names: Sequence[str], texts: ClassTexts | None
) -> tuple[ClassTags, Descriptors, list[str], list[str]]:
    """Return the words of classes, their block, what is to be said of it, and names that no class has."""
    from icis_deploy.descriptors.tags import describe_with_tags

    notes: list[str] = []
    words: ClassTags
    if isinstance(tags, str | os.PathLike):
        answers = load_tag_answers(path_from(tags, name="tags"), names, texts=texts)
        words = answers.tags
        notes += _answer_notes(answers)
        others = list(answers.invented)
    else:
        if not isinstance(tags, Mapping):
            raise UsageError(
                f"Tags cannot be {shown(type(tags).__name__)}.",
                found=type(tags).__name__,
                expected="the path of a file of tags, or words by class name",
                hint="Give a dict, such as {'zebra': ['striped', 'four-legs']}.",
            )
        others = [str(name) for name in tags]
        given: dict[str, Any] = {name: tags[name] for name in names if tags.get(name)}
        # A text is words as a file has them: its letters are none.
        words = {name: words_in(each) if isinstance(each, str) else tuple(each) for name, each in given.items()}
        if not words:
            raise DescriptorError(
                f"The tags give words to none of the {len(names)} classes, such as {quoted(names[:2])}.",
                found=tuple(tags),
                expected=tuple(names),
                hint=f"{did_you_mean([str(name) for name in tags], names)}Tags are matched to classes by name.",
            )
    made = describe_with_tags(words)
    notes.insert(
        0, f"Tags: {made.num_shared} words are shared by classes; {made.num_dropped} of one class are dropped."
    )
    if made.without_shared:
        notes.append(f"No word of {quoted(made.without_shared)} is used by another class, so the tags leave it out.")
    return words, made.descriptors, notes, others


def _answer_notes(answers: TagAnswers) -> list[str]:
    notes = []
    if answers.doubled:
        notes.append(f"The tags name {quoted(answers.doubled)} more than once; all of its words count.")
    if answers.invented:
        meant = did_you_mean(answers.invented, answers.missing)
        notes.append(
            f"The tags speak of {quoted(answers.invented)}, which no list of classes has; not used. {meant}".rstrip()
        )
    return notes


def indistinguishable_classes(descriptors: Descriptors) -> list[tuple[str, ...]]:
    """Return the groups of classes with the same descriptor, such as the two cranes, which no method can tell apart."""
    groups: dict[bytes, list[str]] = {}
    for name, value in zip(descriptors.class_names, descriptors.values, strict=True):
        groups.setdefault(value.tobytes(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
