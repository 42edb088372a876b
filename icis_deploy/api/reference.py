"""The reference of a bundle: on which images a device looks for answers that a change would change.

Rules:

1. Images of known classes that the owner gives; else those of known classes among the images of the parity gate, if
   there are `MIN_GATE_IMAGES` of them; else pseudo-features, which are drawn from the head and from neutral images.
2. As many as fit into the file, at most `MAX_REFERENCE_IMAGES`, spread over the classes. Only those go through the
   backbone, the original one.
3. Where labels are known, only images that the original head is right on are kept: a lost error is no loss. What must
   stay is what it answers, right or not where nobody knows.

Neutral images themselves would refuse honest updates: no class is as sure of them as of a photo, so that new classes
win a fifth of them where they win 4 % of photos. Pseudo-features are as sure as the head's accuracy says
(docs/results/guard.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icis_deploy.api.models import OpenedModel
from icis_deploy.api.seen_images import form_of, given_features
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.bundle.reference import Reference, has_sketches, max_reference_images, sketched
from icis_deploy.common.arrays import Bool, Float32, Float64, Int64
from icis_deploy.common.closest import did_you_mean
from icis_deploy.common.terminal_text import percent
from icis_deploy.errors import IncompatibleError, UsageError
from icis_deploy.head.arbiter import seen_statistics
from icis_deploy.head.class_names import quoted
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.inputs import holds_images, prepared_batches
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.python_values import PythonInputs, source_from
from icis_deploy.images.sources import InputSource
from icis_deploy.metrics.proportions import clopper_pearson
from icis_deploy.runtime.changes.guard import Guard

MAX_REFERENCE_IMAGES = 256
"""A share of 5 % is known to 1.4 points (standard deviation); four times as many images, and of a device's time, would
halve that."""

MIN_GATE_IMAGES = 100
"""Fewer images say little of a share, and those of the gate were not given to say it."""

PSEUDO_ACCURACY = 0.8
"""Accuracy of the head on pseudo-features, where nobody said how accurate it is."""

PSEUDO_CONCENTRATION = 3.2
"""How alike pseudo-features are in how clearly they show their class: like the least alike of those that injection is
validated on, which came closest to photos."""

_MAX_ROWS = 2000
"""Of a larger head so many rows, evenly spaced, are what pseudo-features are drawn from."""

_SPARE = 1.4
"""Times as many images as are kept go through the backbone: some are answered wrongly."""

_UNKNOWN = -1
_LOGITS_AT_ONCE = 1 << 24
_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeReference:
    """The reference of a bundle, and where it is from."""

    reference: Reference
    """What the bundle carries."""

    source: str
    """One of `icis_deploy.bundle.manifest.REFERENCE_SOURCES`."""

    feature_mean: Float32
    """`(feature_dim,)` float32: mean of all features that the reference was chosen from, each class counting the
    same."""

    accuracy: float
    """Accuracy of the original head on them, above 0, at most 1; 1 where nobody knows their classes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shown:
    """Features, and what they show."""

    features: Float32
    """`(num_images, feature_dim)` float32."""

    classes: Int64
    """`(num_images,)`, indices of seen classes; `_UNKNOWN` where nobody said."""

    where: str = "the images"
    """Whence they come, for messages."""


def make_reference(
    model: OpenedModel,
    *,
    seen_names: Sequence[str],
    seen_images: PythonInputs | None,
    gate_images: InputSource | None,
    preprocessing: Preprocessing | None,
    max_changed_answers: float,
) -> MadeReference | None:
    """Return the reference of a model's bundle; `None` where nothing can be shown to the model without images.

    Args:
        model: The original model.
        seen_names: Its classes.
        seen_images: Images or arrays of them, in any form of `source_from`, or their features; `None` for none.
        gate_images: Images for the parity gate, of any classes; `None` for none.
        preprocessing: How images are prepared.
        max_changed_answers: Share of the answers that a change may change, 0..1.

    Raises:
        UsageError: If it is not known how images are prepared, or there are too few of them to tell such a share.
        IncompatibleError: If one of `seen_images` is of a class that the model does not know.
        ImageError: If one cannot be read.
    """
    most = min(max_reference_images(model.location.feature_dim, model.location.num_classes), MAX_REFERENCE_IMAGES)
    known = frozenset(seen_names)
    if seen_images is not None:
        shown = _given_images(model, seen_images, seen_names, num_images=most, preprocessing=preprocessing)
        made = _made_reference(model, shown, num_images=most, source="seen images")
        _check_number(0 if made is None else made.reference.num_reference, max_changed_answers, shown.where)
        return made
    if gate_images is not None and len(images := _of_classes(gate_images, known)) >= MIN_GATE_IMAGES:
        shown = _shown_images(model, images, seen_names, num_images=most, preprocessing=preprocessing)
        made = _made_reference(model, shown, num_images=most, source="gate images")
        if made is not None and made.reference.num_reference >= MIN_GATE_IMAGES:
            return made
    drawn = _pseudo_features(model, most, preprocessing)
    if drawn is None:
        return None
    is_neutral = bool((drawn.classes == _UNKNOWN).all())
    source = "neutral images" if is_neutral else "pseudo-features"
    return _made_reference(model, drawn, num_images=most, source=source)


def refusals_to_expect(bundle: Bundle, reference: Reference, table: SlotTable) -> tuple[str, ...]:
    """Put the classes of an export through the guard of its devices, as one update of all of them.

    What a fleet would refuse is seen before a fleet has it. A refusal need not be just: features that stand in for
    images may change more answers than images do.

    Args:
        bundle: The bundle, which says what a change may change.
        reference: Its reference.
        table: Its slots.

    Returns:
        A sentence for whoever exports, if the update would be refused.
    """
    names = table.filled_names
    if not names:
        return ()
    changed = Guard(bundle, reference).changed_answers(table.without(names), table, written=names)
    if changed.copies:
        name, seen = changed.copies[0]
        return (
            f"The row of the new class {name!r} is a copy of that of {seen!r}, which the model knows: a device would "
            f"refuse it as an update.",
        )
    if not changed.is_over_limit:
        return ()
    likely = clopper_pearson(changed.num_changed, changed.num_reference).high
    cure = "give images of classes that the model knows with `seen_images`, or " if bundle.is_reference_drawn else ""
    kind = "features that stand in for images" if bundle.is_reference_drawn else "images"
    return (
        f"A device would refuse the new classes as an update, and others like them: they change {changed.num_changed} "
        f"of {changed.num_reference} answers on {kind} of known classes ({percent(changed.share)}), and one update may "
        f"change {percent(changed.limit)}. Inject with a smaller `max_seen_loss`, {cure}allow "
        f"{percent(math.ceil(100.0 * likely) / 100.0)} with `max_changed_answers`.",
    )


def _given_images(
    model: OpenedModel,
    given: PythonInputs,
    seen_names: Sequence[str],
    *,
    num_images: int,
    preprocessing: Preprocessing | None,
) -> _Shown:
    """Return what was given for this purpose: images, or features that somebody has already."""
    form = form_of(model, preprocessing)
    found = given_features(given, form, feature_dim=model.location.feature_dim, what="seen images")
    if found is None:
        images = source_from(given, where="`seen_images`")
        _check_known(images.labels, frozenset(seen_names), where=images.where)
        return _shown_images(model, images, seen_names, num_images=num_images, preprocessing=preprocessing)
    _check_known(found.labels, frozenset(seen_names), where=found.where)
    labels = ("",) * len(found.features) if found.labels is None else found.labels
    chosen = _spread(labels, int(_SPARE * num_images))
    return _Shown(
        features=found.features[chosen],
        classes=_classes([labels[index] for index in chosen], seen_names),
        where=found.where,
    )


def _check_known(labels: Sequence[str] | None, known: frozenset[str], *, where: str) -> None:
    """Check that images with labels are all of known classes."""
    unknown = sorted(set(labels or ()) - known)
    if unknown:
        raise IncompatibleError(
            f"{where} has images of {quoted(unknown)}, which the model does not know; images of seen classes alone "
            f"show what a new class takes from them.",
            found=tuple(unknown),
            expected="classes that the model knows",
            where=where,
            hint=f"{did_you_mean(unknown, known)}Leave them out of `seen_images`.",
        )


def _classes(labels: Sequence[str], seen_names: Sequence[str]) -> Int64:
    """Return the index of each label's class, `(num_images,)`; `_UNKNOWN` where nobody said."""
    index_of = {name: index for index, name in enumerate(seen_names)}
    return np.array([index_of.get(label, _UNKNOWN) for label in labels], dtype=np.int64)


def _of_classes(images: InputSource, known: frozenset[str]) -> InputSource:
    return images.select([index for index, label in enumerate(images.labels or ()) if label in known])


def _spread(labels: Sequence[str], num_images: int) -> Int64:
    """Return at most so many of the images, by index: one of each class at random, then a second one, and so on."""
    order = np.random.default_rng(0).permutation(len(labels))
    counts: dict[str, int] = {}
    turns = []
    for index in order:
        turn = counts[labels[index]] = counts.get(labels[index], 0) + 1
        turns.append(turn)
    return np.asarray(order[np.argsort(turns, kind="stable")[:num_images]], dtype=np.int64)


def _check_number(num_images: int, max_changed_answers: float, where: str) -> None:
    needed = 1 if max_changed_answers == 0.0 else int(np.ceil(1.0 / max_changed_answers))
    if num_images < needed:
        raise UsageError(
            f"The model is right on {num_images} of the images of {where}; to tell whether "
            f"{percent(max_changed_answers)} of the answers change takes {needed} or more.",
            found=num_images,
            expected=f"at least {needed}",
            where=where,
            hint="Give more `seen_images`, or leave them out.",
        )


def _shown_images(
    model: OpenedModel,
    images: InputSource,
    seen_names: Sequence[str],
    *,
    num_images: int,
    preprocessing: Preprocessing | None,
) -> _Shown:
    """Run the backbone on somewhat more images than are kept: it is not right on all of them."""
    from exporters.backbone.features import backbone_features

    if preprocessing is None and holds_images(images):
        raise UsageError(
            "Images of seen classes can only be used where it is known how they are prepared.",
            hint="Export with `preprocess`, give arrays as the model takes them or features, or leave `seen_images` "
            "out.",
        )
    labels = ("",) * len(images) if images.labels is None else images.labels
    order = _spread(labels, int(_SPARE * num_images))
    chosen = images.select(order.tolist())
    prepared = prepared_batches(chosen, form_of(model, preprocessing), batch_size=_BATCH_SIZE)
    batches = (np.asarray(batch.inputs, dtype=np.float32) for batch in prepared)
    return _Shown(
        features=backbone_features(model.loaded, model.location, batches),
        classes=_classes([labels[index] for index in order], seen_names),
        where=images.where,
    )


def _pseudo_features(model: OpenedModel, num_images: int, preprocessing: Preprocessing | None) -> _Shown | None:
    """Return features that stand in for images of the classes; `None` where the backbone takes no images.

    They are those of neutral images where the head has too few classes to draw from.
    """
    from exporters.backbone.features import neutral_features
    from icis_deploy.injection.pseudo_features.draws import draw, find_feature_source

    neutral = neutral_features(model.loaded, model.location, preprocessing=preprocessing, seed=0)
    if neutral is None:
        return None
    rows = _some_rows(model)
    if len(rows) < 3:
        return _Shown(features=neutral, classes=np.full(len(neutral), _UNKNOWN, dtype=np.int64))
    count = int(_SPARE * num_images)
    source = find_feature_source(
        rows, neutral_features=neutral, seen_accuracy=PSEUDO_ACCURACY, max_features=count, seed=0
    )
    draws = draw(source, max_features=count, seed=0).with_lengths()
    drawn = draws.features(seen_accuracy=PSEUDO_ACCURACY, concentration=PSEUDO_CONCENTRATION)
    classes = np.flatnonzero(_evenly_spaced(model.location.num_classes, _MAX_ROWS))[drawn.classes]
    return _Shown(features=drawn.features, classes=classes.astype(np.int64))


def _some_rows(model: OpenedModel) -> Float32:
    """Return the rows of `_evenly_spaced` classes, `(num_chosen, feature_dim + 1)`."""
    chosen = _evenly_spaced(model.location.num_classes, _MAX_ROWS)
    start, parts = 0, []
    for block in row_blocks(model):
        parts.append(block[chosen[start : start + len(block)]])
        start += len(block)
    return np.concatenate(parts)


def _evenly_spaced(num_classes: int, count: int) -> Bool:
    chosen = np.zeros(num_classes, dtype=np.bool_)
    chosen[np.unique(np.linspace(0, num_classes - 1, min(num_classes, count)).astype(np.int64))] = True
    return chosen


def row_blocks(model: OpenedModel) -> Iterator[Float32]:
    """Yield the rows of the original head, a block at a time: a large one is not held."""
    from exporters.head.expanded_head import ExpandedHead

    none = np.empty((0, model.location.feature_dim + 1), dtype=np.float32)
    return ExpandedHead(model=model.loaded.model, location=model.location, injected=none).blocks()


def _made_reference(model: OpenedModel, shown: _Shown, *, num_images: int, source: str) -> MadeReference | None:
    """Return features with what the original head makes of them, as many images at once as memory is meant for."""
    from exporters.head.expanded_head import seen_row_lengths

    with np.errstate(over="ignore"):  # what is no number in float16 is left out
        features = shown.features.astype(np.float16).astype(np.float32)
    size = max(1, _LOGITS_AT_ONCE // model.location.num_classes)
    lengths = seen_row_lengths(model.loaded.model, model.location)
    statistics: list[Float32] = []
    answers: list[NDArray[np.int32]] = []
    for start in range(0, len(features), size):
        part = features[start : start + size]
        logits = np.concatenate([part @ block[:, :-1].T + block[:, -1] for block in row_blocks(model)], axis=1)
        statistics.append(seen_statistics(part, logits, lengths))
        answers.append(logits.argmax(axis=1).astype(np.int32))
    answered = np.concatenate(answers)
    is_right = (shown.classes == answered) | (shown.classes == _UNKNOWN)
    is_finite = np.isfinite(features).all(axis=1)
    kept = np.flatnonzero(is_right & is_finite)[:num_images]
    if not len(kept):
        return None
    weights = _class_weights(shown.classes[is_finite])
    return MadeReference(
        reference=Reference(
            features=features[kept],
            statistics=np.concatenate(statistics)[kept],
            answers=answered[kept],
            sketches=_sketches(model),
        ),
        source=source,
        feature_mean=np.asarray(weights @ features[is_finite], dtype=np.float32),
        accuracy=min(1.0, float(weights @ is_right[is_finite])),
    )


def _class_weights(classes: Int64) -> Float64:
    """Return weights that sum to 1, `(num_images,)`: the same for each class; for each image of unknown ones."""
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (counts[inverse] * len(counts)))


def _sketches(model: OpenedModel) -> Float32 | None:
    """Return sketches of all seen weights, `(num_seen, sketch_dim)`; `None` of a large head."""
    if not has_sketches(model.location.num_classes, model.location.feature_dim):
        return None
    sketches = np.concatenate([sketched(block[:, :-1]) for block in row_blocks(model)])
    return None if np.abs(sketches).max() > np.finfo(np.float16).max else sketches
