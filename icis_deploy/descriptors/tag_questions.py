"""The question that a language model is asked for the words of classes, and the classes that one question is about.

What makes words useful to classes that nobody has images of: they are seen in a photo, and other classes have them
too. So there is one vocabulary for all classes, seen ones are asked about first, and each later question shows
the words that are in use. Questions are therefore asked one after the other, each with the answers so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from icis_deploy.descriptors.class_texts import text_from_name
from icis_deploy.descriptors.tag_answers import EXAMPLE
from icis_deploy.descriptors.tag_words import ClassTags, vocabulary_of

BATCH_SIZE = 50
"""Classes in one question: about 1,500 tokens of question and 2,500 of answer, which local models' contexts hold."""

MAX_VOCABULARY = 300
"""Words in use that a question shows, the most common first."""

_INSTRUCTIONS = """\
I teach an image classifier new classes from words that say how each class looks in a photo. Write these words
for the classes listed at the end.

Rules:
- 10 to 15 words for each class: 4 to 6 that its whole group shares (what it is, its body or form, its size), and the
  rest its own (colours and which part has them, pattern, material, shape, parts, where it is seen in photos).
- Only what can be seen in a photo: no sounds, no habits, no names of people, no history, no Latin names.
- One shared vocabulary: use the same word for the same thing in all classes, and prefer a word that fits several
  classes. A word that only one class has is of no use, unless another class in this list or a later one could have it.
- Each word in lower case, hyphens for spaces (white-belly, hooked-bill, four-legs), no adjective without a thing
  where it could be of any part. Do not write the name of the class as a word.
- Where classes are alike, give the words that tell them apart.
- One line for each class, its name as in the list, and nothing else: no introduction, no numbers, no closing remark.

Example of a line:
"""


def next_classes(class_names: Sequence[str], tags: ClassTags) -> tuple[str, ...]:
    """Return the classes that the next question is about: the first that have no words yet, at most `BATCH_SIZE`."""
    return tuple(name for name in class_names if name not in tags)[:BATCH_SIZE]


def question_about(
    class_names: Sequence[str], *, tags: ClassTags, texts: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return the question about some classes.

    Args:
        class_names: The classes, at most `BATCH_SIZE` for a small context.
        tags: The words of other classes so far, by class name; their vocabulary is shown.
        texts: What the classes are called, where their names are ids.
    """
    parts = [_INSTRUCTIONS + EXAMPLE]
    vocabulary = list(vocabulary_of(tags))[:MAX_VOCABULARY]
    if vocabulary:
        parts.append(
            "Words in use for other classes, the most common first. Take these where they fit, and a new one only "
            f"where none does:\n{', '.join(vocabulary)}"
        )
    lines = "\n".join(_line_of(name, (texts or {}).get(name, ())) for name in class_names)
    parts.append(f"The {len(class_names)} classes:\n{lines}")
    return "\n\n".join(parts) + "\n"


def _line_of(name: str, texts: Sequence[str]) -> str:
    called = "; ".join(texts) or text_from_name(name)
    return name if called == name or called == text_from_name(name) else f"{name} ({called})"
