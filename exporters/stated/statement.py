"""One thing that a model says of itself, or why it cannot be taken at its word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from icis_deploy.errors import ClassConflictError, ICISDeployError, ModelLoadError
from icis_deploy.head.class_names import check_unique

Value = TypeVar("Value")

GIVE_CLASSES = "Give `classes`, a text file with one class name a line."
GIVE_PREPROCESS = "Give `preprocess`, which says how images are prepared."


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Generic[Value]):
    """What a model says of its classes, or of how its images are prepared.

    Whoever says it otherwise, explicitly, is believed instead: an obstacle matters to nobody then.

    Example:
        said = icis_deploy.inspect("my-vit").loaded.stated_classes
        print("nothing" if said is None else f"{said.source}: {said.value}")
    """

    source: str
    """Where the model says it, such as `config.json (id2label)`."""

    value: Value | None
    """`None` where it cannot be taken at its word."""

    obstacle: ICISDeployError | None = None
    """Why not, and what to do instead; `None` where it can."""

    told_apart: Value | None = None
    """Class names of which some occur more than once, each of those with the number of its class behind it, as in
    `crane (134)`, for whoever makes a list of their own from it; `None` where that is not the obstacle."""

    def require(self) -> Value:
        """Return what is said.

        Raises:
            ICISDeployError: If it cannot be taken at its word.
        """
        if self.obstacle is not None:
            raise self.obstacle
        assert self.value is not None, "a statement has a value or an obstacle"
        return self.value


def stated(read: Callable[[], Value], *, source: str) -> Statement[Value]:
    """Return what `read` gives, or what it raises as an obstacle.

    Args:
        read: Raises `ICISDeployError` where the model cannot be taken at its word.
        source: Where the model says it.
    """
    try:
        return Statement(source=source, value=read())
    except ICISDeployError as error:
        return Statement(source=source, value=None, obstacle=error)


def stated_names(names: Sequence[object], *, source: str) -> Statement[tuple[str, ...]]:
    """Return the class names that a model states, in the order of its logits, if a head can have them.

    Names that only count, as transformers writes them where nobody gave others, describe no class.
    """

    def read() -> tuple[str, ...]:
        texts = tuple(name.strip() if isinstance(name, str) else name for name in names)
        if texts == tuple(f"LABEL_{index}" for index in range(len(texts))):
            raise ModelLoadError(
                f"{source} only counts the classes (LABEL_0, LABEL_1 …); nobody gave them names.",
                found="LABEL_0",
                expected="names of classes",
                where=source,
                hint=GIVE_CLASSES,
            )
        try:
            check_unique(texts)  # type: ignore[arg-type]  # it says what is no text
        except ClassConflictError as error:
            raise ModelLoadError(
                f"{source}: {error.what}",
                found=error.found,
                expected=error.expected,
                where=source,
                hint=f"{GIVE_CLASSES} Names must differ, as in 'crane (bird)' and 'crane (machine)'.",
            ) from error
        return tuple(str(text) for text in texts)

    said = stated(read, source=source)
    return said if said.obstacle is None else replace(said, told_apart=_told_apart(names))


def _told_apart(names: Sequence[object]) -> tuple[str, ...] | None:
    texts = [name.strip() for name in names if isinstance(name, str)]
    counts = Counter(texts)
    if len(texts) < len(names) or "" in counts or max(counts.values(), default=1) == 1:
        return None
    apart = tuple(text if counts[text] == 1 else f"{text} ({index})" for index, text in enumerate(texts))
    try:
        check_unique(apart)
    except ClassConflictError:
        return None
    return apart


def names_by_index(names: object, *, source: str) -> Statement[tuple[str, ...]]:
    """Return class names of a mapping from index to name, whose keys may be numbers or their digits.

    Args:
        names: As transformers (`id2label`) and Ultralytics (`names`) write it; a list is taken as well.
        source: Where the model says it.
    """

    def refused() -> ModelLoadError:
        return ModelLoadError(
            f"{source} does not name classes 0, 1, 2 … one by one.",
            expected="a name for each index from 0 on",
            where=source,
            hint=GIVE_CLASSES,
        )

    if isinstance(names, list | tuple):
        return stated_names(names, source=source)
    try:
        by_index = {int(index): name for index, name in dict(names).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return Statement(source=source, value=None, obstacle=refused())
    if not by_index or sorted(by_index) != list(range(len(by_index))):
        return Statement(source=source, value=None, obstacle=refused())
    return stated_names([by_index[index] for index in range(len(by_index))], source=source)
