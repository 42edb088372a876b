"""Read which words a language model, or a person, gives to each class, however the answer is wrapped.

Rules:

1. What is asked about decides: a line, a cell or a key is about a class if it begins with the class's name, its text,
   or both, in any spelling of `parts_of`, and goes on with a separator. The longest name that fits wins.
2. JSON is read as JSON wherever it parses, also inside text: objects by class, lists of objects, lists of pairs, words
   by group, words that are true or false. JSON that was cut off is read up to there; what else is no whole JSON is
   read line by line, like everything else.
3. A line `class: word, word` is an entry, whatever bullet, number or emphasis is around the name; so is a row of a
   table. A name alone is a heading: the lines below it hold its words, and what stands before a colon there is no word.
4. A class that is answered several times has all of its words; which classes these are is said.
5. Sentences are no words. What looks like an entry about a class that nobody asked for is said, and not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icis_deploy.common.files import read_capped
from icis_deploy.common.terminal_text import shown
from icis_deploy.descriptors.class_texts import text_from_name
from icis_deploy.descriptors.tag_words import SENTENCE_PARTS, parts_of, with_one_spelling, words_in
from icis_deploy.errors import DescriptorError
from icis_deploy.head.class_names import quoted

MAX_ANSWER_BYTES = 1 << 24
MAX_CELLS_BEFORE_WORDS = 3
"""Cells of a table in which a class may be named: a number may come first, and an id."""

MAX_INVENTED_PARTS = 6
"""Parts of what may be the name of a class that nobody asked for; what has more is a sentence."""

MAX_OPEN_BRACKETS = 20
"""Brackets without an end, each of which takes a search to the end of the text; what follows is read as text alone."""

EXAMPLE = "zebra: mammal, hoofed, four-legs, striped, black, white, mane, savanna"

_PART = re.compile(r"[^\W_]+(?:['\u2018\u2019`\u00b4][^\W_]+)*")
_BULLET = re.compile(r"^\s*(?:[-*+\u2022\u2013>#\"'\[{]|\d+[.)]\s)")
_ITEM = re.compile(r"\s*(?:[-*+\u2022\u2013]|\d+[.)])\s")
_AFTER_NAME = re.compile(r"[ *_`\"'\u201c\u201d\])}]*(?:\([^()]*\)[ *_`\"'\]]*)?")
_SEPARATOR = re.compile(r"(?::|\t|=>|=|->|\u2192|\u2013|\u2014|\||,|;|-{1,2}(?=\s))[\s*_`\"']*")
_CELL = re.compile(r"(?<!\\)\|")
_JSON_TOKEN = re.compile(r"\s*(\"(?:[^\"\\\n]|\\.)*\"|[\[\]{},:]|-?\d[\d.eE+-]*|true|false|null)")
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_CLASS_LABELS = frozenset(("class", "name", "species", "label", "item", "object", "id"))
_LABELS = _CLASS_LABELS.union(
    (
        *("classes", "names", "group", "own", "shared"),
        *("word", "words", "tag", "tags", "attribute", "attributes", "feature", "features", "description"),
        *("vocabulary", "answer", "batch", "note", "notes"),
    )
)
"""What stands before a colon, or is a key, without being a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagAnswers:
    """What answers say about the classes that were asked for."""

    tags: dict[str, tuple[str, ...]]
    """The words of each class that has some, in the order of the classes; each word in one spelling."""

    missing: tuple[str, ...]
    """Classes without words."""

    doubled: tuple[str, ...]
    """Classes that were answered more than once; all of their words count."""

    invented: tuple[str, ...]
    """What looks like a class, has words, and was not asked for."""


def load_tag_answers(
    path: Path, class_names: Sequence[str], *, texts: Mapping[str, Sequence[str]] | None = None
) -> TagAnswers:
    """Read the words of classes from a file of answers.

    Args:
        path: Text in UTF-8, with or without a byte order mark.
        class_names: The classes that are asked for.
        texts: What the classes are called, where their names are ids.

    Raises:
        DescriptorError: If the file cannot be read, is no text in UTF-8, is empty, or gives words to no class.
    """
    data = read_capped(path, max_bytes=MAX_ANSWER_BYTES, what="file of tags", error_type=DescriptorError)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DescriptorError(
            f"The file of tags {path} is not text in UTF-8: {error}.",
            found=str(error),
            expected="text in UTF-8",
            where=path,
            hint="Save it again as UTF-8.",
        ) from error
    expected = f"a line for each class, such as `{EXAMPLE}`"
    if not text.strip():
        raise DescriptorError(
            f"The file of tags {path} is empty.",
            found="nothing",
            expected=expected,
            where=path,
            hint="Write a line for each class: its name, a colon, and words with commas between.",
        )
    answers = read_tag_answers(text, class_names, texts=texts)
    if not answers.tags:
        others = f" It speaks of {quoted(answers.invented)} instead." if answers.invented else ""
        raise DescriptorError(
            f"The file of tags {path} gives words to none of the {len(class_names)} classes, such as "
            f"{quoted(class_names[:2])}.{others} It begins with {shown(text.strip()[:60])}; expected {expected}.",
            found=text.strip()[:60],
            expected=expected,
            where=path,
            hint="Sentences are not read: ask for a list of words, with the class's name in front of each line.",
        )
    return answers


def read_tag_answers(
    text: str, class_names: Sequence[str], *, texts: Mapping[str, Sequence[str]] | None = None
) -> TagAnswers:
    """Return the words of classes from the text of one or more answers; no words at all are no error here.

    Args:
        text: One answer, or several one after the other.
        class_names: The classes that are asked for.
        texts: What the classes are called, where their names are ids.
    """
    reader = _Reader(_Names.of(class_names, texts or {}))
    lines = text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
    for piece in _pieces(lines):
        if isinstance(piece, str):
            reader.read_text(piece)
        else:
            reader.read_json(piece)
    found = {name: tuple(dict.fromkeys(reader.words[name])) for name in class_names if reader.words.get(name)}
    return TagAnswers(
        tags=with_one_spelling(found),
        missing=tuple(name for name in class_names if name not in found),
        doubled=tuple(name for name in class_names if reader.num_entries.get(name, 0) > 1),
        invented=tuple(dict.fromkeys(reader.invented)),
    )


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of JSON, with keys that may occur twice."""

    pairs: list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class _Names:
    """Which class a text begins with."""

    exact: dict[str, str]
    by_parts: dict[tuple[str, ...], str]
    """Class name by the parts of what it may be called; spellings that two classes share are left out."""

    max_parts: int

    @classmethod
    def of(cls, class_names: Sequence[str], texts: Mapping[str, Sequence[str]]) -> _Names:
        owners: dict[tuple[str, ...], set[str]] = {}
        for name in class_names:
            called = [text for text in texts.get(name, ()) if len(parts_of(text)) <= MAX_INVENTED_PARTS]
            first = texts.get(name, ("",))[0]
            for spelling in (name, text_from_name(name), *called, f"{name} {first}"):
                owners.setdefault(parts_of(spelling), set()).add(name)
        for name in class_names:  # a name is its own class's, also where another class is called that
            if len(owners[parts_of(name)]) > 1 and sum(parts_of(name) == parts_of(each) for each in class_names) == 1:
                owners[parts_of(name)] = {name}
        owners.pop((), None)
        by_parts = {parts: next(iter(names)) for parts, names in owners.items() if len(names) == 1}
        return cls({name: name for name in class_names}, by_parts, max(map(len, owners), default=0))

    def whole(self, text: str) -> str | None:
        """Return the class that a text is the name of."""
        text = text.strip()
        if text in self.exact:
            return text
        found = self.by_parts.get(parts_of(text)) or self.by_parts.get(parts_of(re.sub(r"\([^()]*\)", "", text)))
        if found is None and (numbered := re.match(r"\s*\d+[.)]\s*", text)):
            found = self.by_parts.get(parts_of(text[numbered.end() :]))
        return found

    def beginning(self, line: str) -> tuple[str, str] | None:
        """Return the class that a line begins with, and the rest, from the separator on; empty for a name alone."""
        parts = list(_PART.finditer(line))
        starts = [0]
        if parts and parts[0][0].isdigit():
            starts.append(1)
        if parts and parts[0][0].lower() in _CLASS_LABELS:
            starts += [1, 2]
        for start in starts:
            for stop in range(min(len(parts), start + 2 * self.max_parts), start, -1):
                begin, end = parts[start].start(), parts[stop - 1].end()
                spelled = line[begin:end]
                name = spelled if spelled in self.exact else self.by_parts.get(parts_of(spelled))
                if name is None:
                    continue
                rest = line[_AFTER_NAME.match(line, end).end() :]  # type: ignore[union-attr]  # matches nothing, too
                if not rest or _SEPARATOR.match(rest):
                    return name, rest
        return None


@dataclass(slots=True)
class _Block:
    """What the lines below a line may belong to."""

    name: str | None
    """The class; `None` below what is called like no class that was asked for."""

    line: str
    is_heading: bool
    """Whether the words stand below the line, and not in it."""

    is_counted: bool
    """Whether the class has had words here."""

    goes_on: bool
    """Whether the next line goes on with the words, whatever it looks like."""

    def holds(self, line: str) -> bool:
        """Say whether a line stands below this one, as an item of its list."""
        is_first_item = bool(_ITEM.match(line)) and not _ITEM.match(self.line)
        return self.is_heading and (_indent(line) > _indent(self.line) or is_first_item)


@dataclass(slots=True)
class _Reader:
    """What was read so far."""

    names: _Names
    words: dict[str, list[str]] = field(default_factory=dict)
    num_entries: dict[str, int] = field(default_factory=dict)
    invented: list[str] = field(default_factory=list)
    block: _Block | None = None

    def add(self, name: str, words: Sequence[str], *, is_new: bool = True) -> None:
        if words:
            self.num_entries[name] = self.num_entries.get(name, 0) + is_new
            self.words.setdefault(name, []).extend(words)

    def read_json(self, value: Any) -> None:
        if isinstance(value, _Object):
            if not self._read_record(value):
                self._read_mapping(value)
        elif isinstance(value, list):
            name = self.names.whole(value[0]) if value and isinstance(value[0], str) else None
            if name is not None:
                self.add(name, _json_words(value[1:]))
                return
            for each in value:
                self.read_json(each)

    def _read_record(self, value: _Object) -> bool:
        """Read an object about one class, such as `{"class": "zebra", "words": [...]}`; say whether it is one."""
        texts = [(key, each) for key, each in value.pairs if isinstance(each, str)]
        label = next((each for key, each in texts if key.lower().split("_")[0] in _LABELS and _is_name(each)), None)
        name = next((found for _, each in texts if (found := self.names.whole(each))), None)
        if any(self.names.whole(key) for key, _ in value.pairs) or (label is None and name is None):
            return False
        called = [each for _, each in texts if each == label or self.names.whole(each) is not None]
        words = _json_words([each for _, each in value.pairs if each not in called])
        if name is not None:
            self.add(name, words)
        elif len(words) > 1:
            self.invented.append(str(label))
        return bool(words)

    def _read_mapping(self, value: _Object) -> None:
        for key, each in value.pairs:
            name = self.names.whole(key)
            if name is not None:
                self.add(name, _json_words(each))
            elif key.lower() in _LABELS or _holds_objects(each) or any(map(self.names.whole, _keys(each))):
                self.read_json(each)
            elif len(_json_words(each)) > 1:
                self.invented.append(key)

    def read_text(self, text: str) -> None:
        self.block = None
        for line in text.split("\n"):
            # What has no letter is empty, a rule, a fence or a bracket alone.
            if _PART.search(line) and not (self._read_row(line) or self._read_entry(line)):
                below = self._without_label(line)
                if below is not None:
                    self._read_words(line, below)

    def _read_entry(self, line: str) -> bool:
        """Read a line that begins with a class; say whether it is one."""
        begun = self.names.beginning(line)
        if begun is None:
            return False
        name, rest = begun
        if self._is_list_of_words(line, rest):
            return False  # `- black` or `black, white` below a class, where there is a class `black`
        words = _words_after(rest)
        is_heading = not rest.strip(" :*_[{\t\"'")
        goes_on = is_heading or line.rstrip().endswith((",", ";", "["))
        self.add(name, words)
        self.block = _Block(name, line, is_heading, bool(words), goes_on)
        return True

    def _is_list_of_words(self, line: str, rest: str) -> bool:
        """Say whether a line that begins like a class goes on with the words of the class above it."""
        block = self.block
        if block is None or block.name is None:
            return False
        if not rest.strip(" ,;."):
            return block.holds(line) or (block.goes_on and block.is_counted)
        return block.goes_on and rest.startswith((",", ";"))

    def _without_label(self, line: str) -> str | None:
        """Return a line without what stands before its colon; `None` for one that begins something else."""
        head, separator, rest = line.partition(":")
        if separator and _is_name(head):
            is_label = bool(_LABELS.intersection(parts_of(head)))
            if is_label or (self.block is not None and self.block.name is not None and self.block.holds(line)):
                return rest
            self.block = _Block(None, line, is_heading=True, is_counted=False, goes_on=False)
            if len(words_in(rest)) > 1:
                self._count_unknown(head)
            return None
        if _is_heading(line):
            self.block = _Block(None, line, is_heading=True, is_counted=False, goes_on=False)
            return None
        return line

    def _read_words(self, line: str, below: str) -> None:
        """Read words that stand below a class's name, or below words of it."""
        block = self.block
        is_bullet = bool(_BULLET.match(line))
        words = words_in(f"{_BULLET.sub('', below, count=1)}," if is_bullet else below)
        is_list = is_bullet or "," in below or ";" in below
        if block is None or not words or not (block.goes_on or (is_list and (block.is_heading or line[:1].isspace()))):
            return
        if block.name is None:
            self._count_unknown(block.line)
            return
        self.add(block.name, words, is_new=not block.is_counted)
        block.is_counted = True
        block.goes_on = line.rstrip().endswith((",", ";"))

    def _count_unknown(self, line: str) -> None:
        if self.block is not None and not self.block.is_counted:
            self.block.is_counted = True
            self.invented.append(re.sub(r"^\d+[.)]\s*", "", line.strip(" \t-*#_\"'>:")))

    def _read_row(self, line: str) -> bool:
        """Read a row of a table; say whether the line is one."""
        if not line.strip().startswith("|") and len(_CELL.findall(line)) < 2:
            return False
        self.block = None
        cells = [cell.replace("\\|", "|").strip(" \t*_`\"'") for cell in _CELL.split(line.strip().strip("|"))]
        for index, cell in enumerate(cells[:MAX_CELLS_BEFORE_WORDS]):
            name = self.names.whole(cell)
            if name is not None:
                rest = [other for other in cells[index + 1 :] if self.names.whole(other) != name]
                is_one_each = sum(map(bool, rest)) > 1  # else all words stand in one cell
                each = (words_in(f"{_without_breaks(other)},") if is_one_each else _cell_words(other) for other in rest)
                self.add(name, [word for words in each for word in words])
                return True
        first = next((cell for cell in cells if _PART.search(cell) and not cell.strip(".").isdigit()), "")
        others = [word for cell in cells if cell != first for word in words_in(cell)]
        if _is_name(first) and not _LABELS.intersection(parts_of(first)) and len(others) > 1:
            self.invented.append(first)
        return True


def _pieces(text: str) -> Iterator[Any]:
    """Yield the text outside JSON, and the values of JSON, in order."""
    decoder = json.JSONDecoder(object_pairs_hook=_Object)
    start = at = num_open = 0
    while num_open < MAX_OPEN_BRACKETS and (match := re.compile(r"^[ \t]*[\[{]", re.MULTILINE).search(text, at)):
        value, end = _decoded(decoder, text, match.end() - 1)
        if value is None:
            num_open += end == len(text)
            at = match.end()
            continue
        yield text[start : match.start()]
        yield value
        start = at = end
        while text[at : at + 1] in (",", "\n", " ") and at < len(text):  # JSON lines, with or without commas
            at += 1
    yield text[start:]


def _decoded(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    """Return the value of JSON that begins at a place and where it ends; `None` for what is none."""
    try:
        value, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        # A comma before a bracket is the one fault that language models and people alike put into whole JSON.
        end = _bracket_end(text, start)
        try:
            value, _ = decoder.raw_decode(_TRAILING_COMMA.sub(r"\1", text[start:end]))
        except (ValueError, RecursionError):
            value, stop = _decoded_until_cut(decoder, text, start)
            if value is None:
                return None, end
            end = stop
    return (
        (value, end)
        if isinstance(value, _Object) or any(isinstance(e, list | _Object) for e in value)
        else (None, start)
    )


def _decoded_until_cut(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    """Return what is whole of JSON that ends in the middle, as answers do that grew too long, and where it ends.

    `None` for what is no JSON. Read as text, all entries of a line would be words of its first class.
    """
    closing: list[str] = []
    end, open_there = start, ""
    at, before = start, ""
    while match := _JSON_TOKEN.match(text, at):
        mark = match[1]
        if mark in "[{":
            closing.append("]" if mark == "[" else "}")
        elif mark in "]}" and (not closing or closing.pop() != mark):
            return None, start
        if not 0 < len(closing) <= MAX_OPEN_BRACKETS:
            return None, start  # it has an end, and something else is wrong with it; or is no answer
        if mark in "]}" or (mark[0] == '"' and (closing[-1] == "]" or before == ":")):
            end, open_there = match.end(), "".join(closing)
        elif mark == ",":
            end, open_there = match.start(1), "".join(closing)
        at, before = match.end(), mark
    line_end = text.find("\n", at)
    line_end = len(text) if line_end < 0 else line_end
    rest = text[at:line_end].strip()
    if rest and not (rest.startswith('"') and '"' not in rest[1:]):
        return None, start  # it goes on, as no JSON
    try:
        return decoder.raw_decode(_TRAILING_COMMA.sub(r"\1", text[start:end] + open_there[::-1]))[0], line_end
    except (ValueError, RecursionError):
        return None, start


def _bracket_end(text: str, start: int) -> int:
    depth = 0
    is_text = False
    for match in re.compile(r'\\.|"|[\[{]|[\]}]').finditer(text, start):
        mark = match[0]
        if mark == '"':
            is_text = not is_text
        elif not is_text and mark in "[{":
            depth += 1
        elif not is_text and mark in "]}":
            depth -= 1
            if depth == 0:
                return match.end()
    return len(text)


def _json_words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return _cell_words(value)
    if isinstance(value, list):
        return tuple(word for each in value for word in (_one_or_more(each)))
    if isinstance(value, _Object):
        if value.pairs and all(isinstance(each, bool | int | float) for _, each in value.pairs):
            return tuple(word for key, each in value.pairs if each for word in _one_or_more(key))
        return tuple(word for _, each in value.pairs for word in _json_words(each))
    return ()


def _one_or_more(value: Any) -> tuple[str, ...]:
    """Return the words of an entry of a list: a text without commas is one word, also with spaces."""
    return words_in(f"{value},") if isinstance(value, str) else _json_words(value)


def _cell_words(text: str) -> tuple[str, ...]:
    return words_in(_without_breaks(text))


def _without_breaks(text: str) -> str:
    return re.sub(r"<br\s*/?>", ",", text)


def _words_after(rest: str) -> tuple[str, ...]:
    """Return the words of an entry, from the separator after the class's name on."""
    separator = _SEPARATOR.match(rest)
    if separator is None:
        return ()
    if separator[0][:1] in ",;" and rest.rstrip().endswith((".", "!", "?", ":")):
        return ()  # "Zebras, horses and okapis share much."
    return words_in(rest[separator.end() :])


def _is_name(text: str) -> bool:
    parts = parts_of(re.sub(r"^\s*\d+[.)]\s", "", text))
    return 0 < len(parts) <= MAX_INVENTED_PARTS and not SENTENCE_PARTS.intersection(parts)


def _is_heading(line: str) -> bool:
    body = line.strip()
    return _is_name(body) and (
        body.startswith("#") or body.endswith(":") or (body.startswith(("**", "__")) and body.endswith(("**", "__")))
    )


def _indent(line: str) -> int:
    return len(line.expandtabs()) - len(line.expandtabs().lstrip())


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, _Object | list) for each in value)


def _keys(value: Any) -> list[str]:
    return [key for key, _ in value.pairs] if isinstance(value, _Object) else []
