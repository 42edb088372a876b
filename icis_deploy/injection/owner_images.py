"""What the owner's images of seen classes are good for, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icis_deploy.common.terminal_text import percent
from icis_deploy.head.class_names import quoted
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.rows.class_features import ClassFeatures
from icis_deploy.metrics.proportions import clopper_pearson

MIN_IMAGES = 50
"""Images of seen classes with which methods are compared; with fewer, drawn features are less noisy."""

MIN_CLASSES = 10
"""Seen classes that must have images for that: fewer say little of classes."""

SUSPECT_ACCURACY = 0.995
"""Accuracy that images have which a network was trained on, and others hardly ever."""

FEW_RIGHT = 0.2
"""Share of right answers below which labels or preprocessing are more likely to be wrong than the model is."""

SUSPECT_EXCESS = 0.02
"""How far the accuracy on images may exceed what the owner says of the model, beyond chance."""


def enough_to_choose(images: SeenImages) -> ClassFeatures | None:
    """Return the images as what methods are compared on; `None` where there are too few."""
    if images.num_images < MIN_IMAGES or images.num_classes < MIN_CLASSES:
        return None
    return ClassFeatures(features=images.features, classes=images.labels, logits=images.logits)


def image_warnings(images: SeenImages, class_names: Sequence[str], *, seen_accuracy: float | None) -> tuple[str, ...]:
    """Return reasons why a budget that the images set may not be kept.

    Args:
        images: Of seen classes.
        class_names: `(num_seen,)`, of the head.
        seen_accuracy: What the owner says of the model, fraction of 1; `None` if nothing.
    """
    warnings = []
    num_right = int(images.is_right.sum())
    low = clopper_pearson(num_right, images.num_images).low
    if images.are_labelled:
        too_good = seen_accuracy is not None and low > seen_accuracy + SUSPECT_EXCESS
        if too_good or (seen_accuracy is None and num_right >= SUSPECT_ACCURACY * images.num_images >= 100):
            stated = "" if seen_accuracy is None else f", and its stated accuracy is {percent(seen_accuracy)}"
            warnings.append(
                f"The model is right on {num_right} of {images.num_images} images of seen classes{stated}: they look "
                f"like images that it was trained on. Such images promise too much: with them a budget of 2 points "
                f"cost 4. Give others."
            )
        elif num_right < FEW_RIGHT * images.num_images:
            warnings.append(
                f"The model is right on only {num_right} of {images.num_images} images of seen classes. Check that "
                f"their labels, the order of the class names and the preprocessing are right: wrong answers cannot be "
                f"lost, so that such images promise nothing."
            )
    absent = np.setdiff1d(np.arange(len(class_names)), images.labels)
    if images.are_labelled and len(absent):
        names = quoted([class_names[index] for index in absent])
        warnings.append(
            f"{len(absent)} of {len(class_names)} seen classes have no image, such as {names}: what they lose is not "
            f"measured."
        )
    return tuple(warnings)
