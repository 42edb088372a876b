"""The classes of the demo: combinations of attributes, some of them held back as unseen.

Rules:

1. A class is one value for each attribute; its name and its descriptor follow from these values alone.
2. Nothing but the attributes tells two classes apart. Position, rotation, light and background vary by image.
3. Every attribute value of an unseen class occurs in many seen classes; the combination occurs in none.
4. The same seed gives the same classes in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import UsageError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "outline": ("bare", "outlined"),
    "texture": ("plain", "striped", "dotted", "checked"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple"),
    "shape": ("circle", "square", "triangle", "star", "heart", "cross"),
}
"""Each attribute's values, in the order in which a class name says them."""

UNSAID_VALUES = frozenset({"bare", "plain"})
"""Values that a name leaves out, as a person would: absence of an outline, absence of a texture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoClass:
    """One value for each attribute.

    Raises:
        UsageError: On construction, if a value is not one of its attribute's.
    """

    size: str
    """How large it is drawn."""

    outline: str
    """Whether a dark line runs around it."""

    texture: str
    """What its surface is like."""

    colour: str
    """Its main colour."""

    shape: str
    """Its shape."""

    def __post_init__(self) -> None:
        for attribute, known in ATTRIBUTES.items():
            if getattr(self, attribute) not in known:
                raise UsageError(
                    f"No {attribute} is called {getattr(self, attribute)!r}; the demo knows {', '.join(known)}.",
                    found=getattr(self, attribute),
                    expected=tuple(known),
                    where=attribute,
                )

    @property
    def values(self) -> tuple[str, ...]:
        """One value for each attribute, in the order of `ATTRIBUTES`."""
        return tuple(getattr(self, attribute) for attribute in ATTRIBUTES)

    @property
    def name(self) -> str:
        """What a person would call it: "large outlined striped red star"."""
        return " ".join(value for value in self.values if value not in UNSAID_VALUES)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The classes of one run of the demo.

    Raises:
        UsageError: On construction, if a class is both seen and unseen or occurs twice, or if an unseen class has an
            attribute value that no seen class has.
    """

    seen: tuple[DemoClass, ...]
    """Classes with training images, in the order of the logits."""

    unseen: tuple[DemoClass, ...]
    """Classes known by their descriptors alone, in the order in which they are injected."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise UsageError(
                "A class of the demo occurs twice; each must be either seen or unseen, once.",
                found=tuple(item.name for item in self.classes),
                expected="each class once",
            )
        known = {value for item in self.seen for value in item.values}
        for item in self.unseen:
            unknown = [value for value in item.values if value not in known]
            if unknown:
                raise UsageError(
                    f"The unseen class {item.name!r} is {' and '.join(unknown)}, and no seen class is: nothing "
                    f"could be learned about it.",
                    where=item.name,
                    hint="Use more seen classes.",
                )

    @property
    def classes(self) -> tuple[DemoClass, ...]:
        """Seen classes, then unseen ones."""
        return self.seen + self.unseen

    @property
    def seen_names(self) -> tuple[str, ...]:
        """Names of the seen classes, in the order of the logits."""
        return tuple(item.name for item in self.seen)

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Names of the unseen classes."""
        return tuple(item.name for item in self.unseen)

    def descriptors(self) -> Descriptors:
        """Return the descriptors of all classes, seen ones first."""
        return describe(self.classes)


def make_world(*, seed: int, num_seen: int = 120, num_unseen: int = 24) -> World:
    """Choose seen and unseen classes among all combinations of attribute values.

    Both choices give the values of each attribute about the same number of classes, and leave the rest to chance; many
    classes therefore differ from another in one attribute only, and a classifier has to learn them all.

    Args:
        seed: Decides the classes and their order.
        num_seen: Classes with training images.
        num_unseen: Classes held back.

    Raises:
        UsageError: If there are not that many combinations, or too few seen classes to show every value.
    """
    everything = [DemoClass(**dict(zip(ATTRIBUTES, values, strict=True))) for values in product(*ATTRIBUTES.values())]
    if num_seen < 1 or num_unseen < 1 or num_seen + num_unseen > len(everything):
        raise UsageError(
            f"The demo can make {len(everything)} classes; {num_seen} seen and {num_unseen} unseen were asked for.",
            found=(num_seen, num_unseen),
            expected=f"at most {len(everything)} together, and at least one of each",
            hint="Ask for at least one of each and no more than that together.",
        )
    rng = np.random.default_rng(seed)
    unseen = draw_balanced(everything, num_unseen, rng)
    held_back = set(unseen)
    seen = draw_balanced([item for item in everything if item not in held_back], num_seen, rng)
    return World(seen=seen, unseen=unseen)


def draw_balanced(pool: Sequence[DemoClass], num_classes: int, rng: np.random.Generator) -> tuple[DemoClass, ...]:
    """Draw classes one by one, each time one whose rarest values were drawn the least so far; ties by chance.

    Args:
        pool: Classes to draw from; each is drawn at most once.
        num_classes: How many to draw; at most `len(pool)`.
        rng: Breaks ties.
    """
    codes = describe(pool).values  # (num_pool, descriptor_dim)
    counts = np.zeros(codes.shape[1])
    num_options = np.array([len(values) for values in ATTRIBUTES.values() for _ in values])
    left = list(rng.permutation(len(pool)))
    drawn: list[DemoClass] = []
    for _ in range(num_classes):
        cost = codes[left] @ (counts * num_options)  # one value of two may come three times as often as one of six
        index = left.pop(int(np.argmin(cost)))
        counts += codes[index]
        drawn.append(pool[index])
    return tuple(drawn)


def describe(classes: Sequence[DemoClass]) -> Descriptors:
    """Return one descriptor per class: a 1 for each value it has, a 0 for each it has not.

    Returns:
        Descriptors of `descriptor_dim` = number of attribute values, in the order of `descriptor_labels()`.
    """
    values = np.array(
        [
            [
                value == other
                for value, options in zip(item.values, ATTRIBUTES.values(), strict=True)
                for other in options
            ]
            for item in classes
        ],
        dtype=np.float32,
    )
    return Descriptors(values=values, class_names=tuple(item.name for item in classes))


def descriptor_labels() -> tuple[str, ...]:
    """Return what each element of a descriptor says, such as "colour: red"."""
    return tuple(f"{attribute}: {value}" for attribute, values in ATTRIBUTES.items() for value in values)
