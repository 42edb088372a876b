"""Descriptors from word vectors in text format: GloVe, word2vec, fastText, ConceptNet Numberbatch, plain or gzipped.

Rules:

1. The file is read once, line by line, and only vectors of wanted words are parsed and kept: a file of gigabytes costs
   time but no memory. If words are missing it is read once more, for those spelled most like them.
2. A text is looked up whole first (`great_white_shark` stands in Numberbatch and word2vec as one term), then word by
   word; the vectors of its words are averaged, as in Frome et al. (DeViSE, NIPS 2013) and what followed.
3. Spelling: case, `_`, `-`, other punctuation and Numberbatch's `/c/en/` make no difference; of several spellings in a
   file the lower-case one is taken, else the first, which is the most frequent in files sorted by frequency.
4. A word without a vector is an error that names the closest ones: a descriptor of half a name would lose the rest
   without a sign.
5. Descriptors have unit length; those of several texts of a class are averaged, then brought to it.
"""

from __future__ import annotations

import gzip
import heapq
import io
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import IO

import numpy as np

from icis_deploy.common.arrays import Float32
from icis_deploy.common.files import open_plain
from icis_deploy.descriptors.class_texts import ClassTexts
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import DescriptorError

MAX_LINE_BYTES = 1 << 20
"""No vector is written in more; a longer line means that this is no text file of vectors."""

MAX_LINES = 1 << 25
"""Of a file, packed or not: 34 million vectors. The largest that are shared have nine million; a gzip file of 1 GB may
have a thousand times as many."""

NUM_SUGGESTIONS = 3
MAX_MISSING_SHOWN = 10
"""Words that a message gives suggestions for; each costs time for every line of the file."""

MIN_SIMILARITY = 0.6
"""Ratio of `difflib`, from 0 to 1, below which a word is not suggested."""

Vector = Float32
_NO_LETTER = re.compile(r"[\W_]+")
_ENGLISH = b"/c/en/"
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class _Line:
    """One vector of a file, not parsed yet."""

    number: int
    """Line of the file, from 1."""

    word: str
    """The word as the file has it, without Numberbatch's prefix."""

    term: str
    """The word in the spelling of `term_of`; ConceptNet's words of other languages are unchanged and match no term."""

    text: bytes
    """The whole line, not decoded."""


def describe_with_vectors(texts: ClassTexts, path: Path) -> Descriptors:
    """Return a descriptor of each class from the vectors of the words of its texts.

    Args:
        texts: One or more texts for each class name.
        path: A file with a word and its vector on each line; a header of two numbers may come first.

    Raises:
        DescriptorError: If a word has no vector, or the file is no text file of vectors.
    """
    vectors = _vectors_of(texts, path)
    missing = _missing_words(texts, vectors)
    if missing:
        raise DescriptorError(
            _missing_message(missing, path),
            found=tuple(missing),
            where=path,
            hint="Give these classes another text, in a file with class name, tab and text on each line, as `texts`.",
        )
    return _described(texts, vectors)


def describe_known_with_vectors(texts: ClassTexts, path: Path) -> Descriptors:
    """Return descriptors of those classes whose words all have vectors, where other sources describe the others.

    Raises:
        DescriptorError: If no class has vectors for all of its words, or the file is no text file of vectors.
    """
    vectors = _vectors_of(texts, path)
    known = {name: each for name, each in texts.items() if not _missing_words({name: each}, vectors)}
    return _described(known, vectors) if known else describe_with_vectors(texts, path)


def _vectors_of(texts: ClassTexts, path: Path) -> dict[str, Vector]:
    return read_vectors(path, {term for each in texts.values() for text in each for term in _terms_of(text)})


def _described(texts: ClassTexts, vectors: Mapping[str, Vector]) -> Descriptors:
    values = [np.mean([_unit(_vector_of(text, vectors)) for text in each], axis=0) for each in texts.values()]
    return Descriptors(values=np.array([_unit(value) for value in values]), class_names=tuple(texts))


def term_of(words: str) -> str:
    """Return words in the one spelling in which they are compared: lower case, `_` between them, no apostrophes."""
    return _NO_LETTER.sub("_", words.lower().replace("'", "").replace("\u2019", "")).strip("_")


def read_vectors(path: Path, wanted: Collection[str]) -> dict[str, Vector]:
    """Return `{term: (vector_dim,) float32}` of those wanted terms that a file has.

    Raises:
        DescriptorError: If the file cannot be read, or a line that is wanted is not a word and `vector_dim` numbers.
    """
    found: dict[str, Vector] = {}
    final: set[str] = set()
    vector_dim = 0
    for line in _lines_of(path):
        if not vector_dim:
            vector_dim = len(line.text.split()) - 1
            _parse_vector(line, vector_dim, path)  # also when it is not wanted: a file of something else ends here
        is_first_choice = line.word.islower()
        if line.term not in wanted or line.term in final or (line.term in found and not is_first_choice):
            continue
        if len(line.text.split()) > 1 + vector_dim:
            continue  # a word with spaces in it, which GloVe's largest file has a few of; `line.word` is its beginning
        found[line.term] = _parse_vector(line, vector_dim, path)
        if is_first_choice:
            final.add(line.term)
    if not vector_dim:
        raise DescriptorError(
            f"The vector file {path} is empty.",
            found="nothing",
            expected="a word and its vector on each line",
            where=path,
            hint="Fetch it again.",
        )
    return found


# Why: docs/decisions/0027.
def closest_words(path: Path, words: Collection[str]) -> dict[str, list[str]]:
    """Return, for each word, those in a file that are spelled most like it and start with the same letter."""
    best: dict[str, list[tuple[float, str]]] = {word: [] for word in words}
    matchers = {word: SequenceMatcher(autojunk=False, b=word) for word in words}
    for line in _lines_of(path):
        for word, matcher in matchers.items():
            if line.term[:1] != word[:1]:
                continue
            matcher.set_seq1(line.term)
            if min(matcher.real_quick_ratio(), matcher.quick_ratio()) < MIN_SIMILARITY:
                continue
            entry = (matcher.ratio(), line.word)
            if entry[0] >= MIN_SIMILARITY and entry not in best[word]:
                heapq.heappush(best[word], entry)
                if len(best[word]) > NUM_SUGGESTIONS:
                    heapq.heappop(best[word])
    return {word: [each for _, each in sorted(entries, reverse=True)] for word, entries in best.items()}


def _terms_of(text: str) -> list[str]:
    """Return everything that a text could be looked up as: whole, and word by word."""
    whole = term_of(text)
    return [whole, *whole.split("_")]


def _vector_of(text: str, vectors: Mapping[str, Vector]) -> Vector:
    whole, *words = _terms_of(text)
    return vectors[whole] if whole in vectors else np.mean([vectors[word] for word in words], axis=0)


def _unit(vector: Vector) -> Vector:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector  # a zero vector is refused, with its class, by `Descriptors`


def _missing_words(texts: ClassTexts, vectors: Mapping[str, Vector]) -> dict[str, str]:
    """Return `{word: class name}` of the words that keep a text from having a vector."""
    missing: dict[str, str] = {}
    for class_name, each in texts.items():
        for text in each:
            whole, *words = _terms_of(text)
            if whole not in vectors:
                missing |= {word: class_name for word in words if word not in vectors and word not in missing}
    return missing


def _missing_message(missing: Mapping[str, str], path: Path) -> str:
    shown = list(missing)[:MAX_MISSING_SHOWN]
    closest = closest_words(path, shown)
    parts = [
        f"{word!r} (of {missing[word]!r}; closest: {', '.join(map(repr, closest[word])) or 'none'})" for word in shown
    ]
    more = f" and {len(missing) - len(shown)} more" if len(missing) > len(shown) else ""
    return f"The vector file {path} has no vector for {len(missing)} of the words: {'; '.join(parts)}{more}."


def _lines_of(path: Path) -> Iterator[_Line]:
    """Yield the vectors of a file one by one, without its header."""
    with _opened(path) as file:
        number = 0
        while text := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(text) == MAX_LINE_BYTES:
                raise DescriptorError(
                    f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes. Expected a word and its vector on "
                    f"each line, as text; word2vec's binary form has to be converted first.",
                    found=f"a line longer than {MAX_LINE_BYTES} bytes",
                    expected="a word and its vector on each line, as text",
                    where=f"{path}, line {number}",
                    hint=(
                        "Give vectors as text; gensim's save_word2vec_format(..., binary=False) converts "
                        "word2vec's binary form."
                    ),
                )
            if number > MAX_LINES:
                raise DescriptorError(
                    f"The vector file {path} has more than {MAX_LINES} lines. Not read further.",
                    found=f"more than {MAX_LINES} lines",
                    expected=f"at most {MAX_LINES} lines",
                    where=path,
                    hint="Give a file of fewer words: those that stand first are the most frequent in most files.",
                )
            if number == 1 and _is_header(text):
                continue
            first = text.split(None, 1)[:1] or [b""]
            word = first[0].removeprefix(_ENGLISH).decode("utf-8", "replace")
            is_foreign = word.startswith("/c/")  # as in /c/de/haus
            yield _Line(number, word, word if is_foreign else term_of(word), text)


def _is_header(text: bytes) -> bool:
    """Say whether a line is word2vec's first: number of vectors, and their width."""
    fields = text.split()
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _parse_vector(line: _Line, vector_dim: int, path: Path) -> Vector:
    fields = line.text.split()[1:]
    try:
        vector = np.array([float(field) for field in fields], dtype=np.float32)
    except ValueError:
        vector = np.empty(0, dtype=np.float32)
    if len(vector) != vector_dim or vector_dim < 2 or not np.isfinite(vector).all():
        expected = f"{vector_dim} numbers" if vector_dim >= 2 else "its vector"
        start = line.text[:40].decode(errors="replace").rstrip()
        raise DescriptorError(
            f"{path}, line {line.number}: {start!r} has {len(fields)} fields after the word; expected a word and "
            f"{expected}, as text. word2vec's binary form has to be converted first.",
            found=len(fields),
            expected=expected,
            where=f"{path}, line {line.number}",
            hint=(
                "Give vectors as text; gensim's save_word2vec_format(..., binary=False) converts "
                "word2vec's binary form."
            ),
        )
    return vector


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be gzipped, whatever its name, and wrap what reading it raises."""
    try:
        with open_plain(path) as raw, io.BufferedReader(raw) as file:
            is_gzip = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if is_gzip:
                with gzip.open(file) as inflated:
                    yield inflated  # type: ignore[misc]  # a BufferedIOBase, which has all that is used here
            else:
                yield file
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DescriptorError(
            f"Cannot read the vector file {path}: {error}.",
            found=str(error),
            where=path,
            hint="Check the path; a .gz that was cut short has to be fetched again.",
        ) from error
