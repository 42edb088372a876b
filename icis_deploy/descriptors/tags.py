"""Descriptors of the words that say how classes look: one column for each word that several classes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.descriptors.tag_words import ClassTags, vocabulary_of, with_one_spelling
from icis_deploy.errors import DescriptorError
from icis_deploy.head.class_names import quoted

TAGS_BLOCK = "tags"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagDescriptors:
    """What became of the words of classes."""

    descriptors: Descriptors
    """One block `tags`, 1 where a class has a word and 0 elsewhere; only classes that have a shared word."""

    num_shared: int
    """Words that two or more classes have: the columns, the most common first."""

    num_dropped: int
    """Words that one class alone has, which teach nothing about any other."""

    without_shared: tuple[str, ...]
    """Classes with words, none of which another class has."""


def describe_with_tags(tags: ClassTags) -> TagDescriptors:
    """Return descriptors with a column for each word that two or more classes have.

    Raises:
        DescriptorError: If no two classes share a word.
    """
    tags = with_one_spelling(tags)
    counts = vocabulary_of(tags)
    shared = [word for word, count in counts.items() if count > 1]
    if not shared:
        raise DescriptorError(
            f"Each of the {len(counts)} words of the tags is used by one class alone, such as {quoted(list(counts))}; "
            f"expected words that several classes share.",
            found=tuple(counts),
            expected="words that several classes share",
            hint="Words that only one class has say nothing about others: use the same word for the same thing.",
        )
    column = {word: index for index, word in enumerate(shared)}
    names = [name for name, words in tags.items() if any(word in column for word in words)]
    values = np.zeros((len(names), len(shared)), dtype=np.float32)
    for row, name in enumerate(names):
        values[row, [column[word] for word in tags[name] if word in column]] = 1
    return TagDescriptors(
        descriptors=Descriptors(
            values=values, class_names=tuple(names), blocks=(DescriptorBlock(TAGS_BLOCK, len(shared)),)
        ),
        num_shared=len(shared),
        num_dropped=len(counts) - len(shared),
        without_shared=tuple(name for name, words in tags.items() if words and name not in names),
    )
