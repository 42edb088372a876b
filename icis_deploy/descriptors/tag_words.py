"""Words that say how a class looks, and which spellings of them are one word.

Two spellings are one word if they differ in case, in hyphens, spaces and underscores, in an apostrophe, in the plural
of the last part, or in a British and an American form: `Long necks`, `long-neck`, `long_neck`; `grey` and `gray`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

ClassTags = Mapping[str, tuple[str, ...]]
"""The words of each class, by class name."""

MAX_PARTS = 5
"""Parts of a word, as in `white-stripes-on-dark-legs`; what has more is a sentence."""

_PART = re.compile(r"[^\W_]+")
_APOSTROPHES = re.compile("['\u2018\u2019`\u00b4]")
_BRACKETED = re.compile(r"\([^()]*\)")
_SEPARATOR = re.compile(r"[,;\t|\n\u00b7\u2022\u3001\uff0c]")
SENTENCE_PARTS = frozenset(
    ("is", "are", "was", "were", "has", "have", "had", "it", "its", "they", "you", "i", "we", "which", "that", "this")
)
"""Parts of sentences, which no word for the look of a thing has."""

_AMERICAN = {
    "grey": "gray",
    "greyish": "grayish",
    "colour": "color",
    "coloured": "colored",
    "colourful": "colorful",
    "multicoloured": "multicolored",
    "armour": "armor",
    "armoured": "armored",
    "centre": "center",
    "fibre": "fiber",
    "tyre": "tire",
    "tyres": "tires",
    "moustache": "mustache",
    "moustached": "mustached",
    "jewellery": "jewelry",
    "aluminium": "aluminum",
    "aeroplane": "airplane",
    "harbour": "harbor",
    "panelled": "paneled",
    "pyjamas": "pajamas",
    "woollen": "woolen",
}


def parts_of(text: str) -> tuple[str, ...]:
    """Return the runs of letters and digits of a text, in lower case and without apostrophes."""
    return tuple(_PART.findall(_APOSTROPHES.sub("", unicodedata.normalize("NFKC", text)).lower()))


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a line, parts joined by hyphens, without repetition and without sentences.

    They are separated by commas, semicolons, tabs or bars; where there are none, by spaces.
    """
    text = _BRACKETED.sub(" ", text)
    fields = _SEPARATOR.split(text) if _SEPARATOR.search(text) else text.split()
    parts = [parts_of(re.sub(r"^\s*and\s", "", field)) for field in fields]
    if len(parts) == len(text.split()) and any(SENTENCE_PARTS.intersection(each) for each in parts):
        return ()  # split at its spaces, a sentence is made of short fields
    return tuple(dict.fromkeys("-".join(each) for each in parts if _is_word(each)))


def key_of(word: str) -> str:
    """Return what is the same for all spellings of a word; for comparing, not for reading."""
    *first, last = [_AMERICAN.get(part, part) for part in parts_of(word)] or [""]
    return "-".join([*first, _AMERICAN.get(_singular(last), _singular(last))])


def with_one_spelling(tags: ClassTags) -> dict[str, tuple[str, ...]]:
    """Return the same words, each in the spelling that most classes use; the first one where several are as common."""
    spellings: dict[str, Counter[str]] = {}
    for words in tags.values():
        for word in words:
            spellings.setdefault(key_of(word), Counter())[word] += 1
    chosen = {key: counts.most_common(1)[0][0] for key, counts in spellings.items()}
    return {name: tuple(dict.fromkeys(chosen[key_of(word)] for word in words)) for name, words in tags.items()}


def vocabulary_of(tags: ClassTags) -> Counter[str]:
    """Return how many classes use each word, the most common first; equal ones in the order in which they appear."""
    counts = Counter(word for words in tags.values() for word in dict.fromkeys(words))
    return Counter(dict(counts.most_common()))


def joined(words: Iterable[str]) -> str:
    """Return words as a sentence reads them, for a text model."""
    return ", ".join(word.replace("-", " ") for word in words)


def _is_word(parts: tuple[str, ...]) -> bool:
    return (
        0 < len(parts) <= MAX_PARTS
        and not SENTENCE_PARTS.intersection(parts)
        and any(not part.isdigit() for part in parts)
    )


def _singular(part: str) -> str:
    if len(part) < 4 or not part.endswith("s") or part.endswith(("ss", "us", "is")):
        return part
    if part.endswith("ies"):
        return f"{part[:-3]}y"
    return part[:-2] if part.endswith(("ses", "xes", "zes", "ches", "shes")) else part[:-1]
