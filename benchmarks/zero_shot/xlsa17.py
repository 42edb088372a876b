"""The data sets of zero-shot learning as Xian et al. share them: features, labels, attributes and the proposed splits.

Source: Xian, Lampert, Schiele & Akata, "Zero-shot learning - A comprehensive evaluation of the good, the bad and the
ugly", TPAMI 2018 (xlsa17), proposed splits version 2.0. Indices in the files count from 1, here from 0.

`train_loc` and `val_loc` of the files split the seen *classes* in two, to choose hyper-parameters of zero-shot methods
on. They are not used: a head needs every seen class, and is selected on images held out of each of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Bool, Float32, Int64
from icis_deploy.common.files import open_plain
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors, read_mat
from icis_deploy.errors import LoadError
from icis_deploy.head.class_names import quoted

SPLITS_NAME = "att_splits.mat"
FEATURES_NAME = "res101.mat"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Features of images, and the class of each."""

    features: Float32
    """`(num_images, feature_dim)` float32."""

    labels: Int64
    """`(num_images,)` int64, index of the class among seen and then unseen ones."""

    def subset(self, indices: NDArray[np.integer] | Bool) -> Images:
        """Return these images only."""
        return Images(features=self.features[indices], labels=self.labels[indices])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZeroShotData:
    """One data set. Labels count seen classes first, then unseen ones."""

    name: str
    """Name of the data set's folder."""

    seen: Descriptors
    """Attributes of the classes that the head learns."""

    unseen: Descriptors
    """Attributes of the classes that are injected."""

    trainval: Images
    """Images of seen classes, the only ones that anything is trained on."""

    test_seen: Images
    """Test images of seen classes."""

    test_unseen: Images
    """Test images of unseen classes."""


def load_zero_shot_data(folder: Path, *, features_name: str = FEATURES_NAME) -> ZeroShotData:
    """Read a data set from its folder, which holds `att_splits.mat` and a file of features.

    Args:
        folder: Such as `xlsa17/data/CUB`.
        features_name: `features` `(feature_dim, num_images)` and `labels` `(num_images, 1)`.

    Raises:
        LoadError: If a file is missing or damaged, lacks an array, or the files do not belong together.
        DescriptorError: If the attributes are no descriptors.
        MissingDependencyError: If scipy is not installed.
    """
    splits_path, features_path = folder / SPLITS_NAME, folder / features_name
    described = load_descriptors(splits_path)
    arrays = _load_mat(features_path, ("features", "labels"))
    labels = _indices(arrays["labels"], features_path, "labels")
    features = np.asarray(arrays["features"], dtype=np.float32).T
    if len(features) != len(labels) or not len(labels) or labels.max() >= described.num_classes:
        raise LoadError(
            f"{features_path} has features of {len(features)} images and labels of {len(labels)}, of classes up to "
            f"number {labels.max(initial=-1) + 1}; {splits_path} has {described.num_classes} classes. Expected one "
            f"label for each image, and both files from the same data set.",
            found=(len(features), len(labels)),
            expected="one label for each image",
            where=features_path,
        )
    split_names = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
    splits = _load_mat(splits_path, split_names)
    located = {name: _indices(splits[name], splits_path, name) for name in split_names}
    beyond = [name for name, indices in located.items() if not len(indices) or indices.max() >= len(labels)]
    if beyond:
        raise LoadError(
            f"{splits_path}: {', '.join(beyond)} is empty or names images beyond the {len(labels)} of "
            f"{features_path}. Expected both files from the same data set.",
            found=tuple(beyond),
            expected=len(labels),
            where=splits_path,
            hint="Take both files from one folder of xlsa17.",
        )
    seen, unseen = (np.unique(labels[located[name]]) for name in ("trainval_loc", "test_unseen_loc"))
    _check_disjoint(seen, unseen, labels[located["test_seen_loc"]], described.class_names, splits_path)
    new_label = np.full(described.num_classes, -1)
    new_label[np.concatenate([seen, unseen])] = np.arange(len(seen) + len(unseen))
    images = [Images(features=features[located[name]], labels=new_label[labels[located[name]]]) for name in split_names]
    names = described.class_names
    return ZeroShotData(
        name=folder.name,
        seen=described.select([names[index] for index in seen]),
        unseen=described.select([names[index] for index in unseen]),
        trainval=images[0],
        test_seen=images[1],
        test_unseen=images[2],
    )


def hold_out(labels: Int64, *, share: float, seed: int) -> Bool:
    """Choose images to select on: the same share of each class, at least one, never the last of its class.

    Args:
        labels: `(num_images,)`.
        share: Part of each class's images.
        seed: Of the choice.

    Returns:
        `(num_images,)` bool, true for images that are held out.
    """
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = random.permutation(np.flatnonzero(labels == label))
        held[images[: min(max(1, round(share * len(images))), len(images) - 1)]] = True
    return held


def _load_mat(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        with open_plain(path) as raw, io.BufferedReader(raw) as file:
            content = read_mat(file, names)
    except (LoadError, OSError) as error:
        raise LoadError(
            f"Cannot read the MATLAB file {path}: {error}.",
            found=str(error),
            where=path,
            hint="Fetch the data set again.",
        ) from error
    missing = [name for name in names if name not in content]
    if missing:
        raise LoadError(
            f"{path} has no {', '.join(missing)}; expected {', '.join(names)}, as xlsa17 has them.",
            found=tuple(missing),
            expected=tuple(names),
            where=path,
            hint="Take the files res101.mat and att_splits.mat of xlsa17.",
        )
    return content


def _indices(values: Any, path: Path, name: str) -> Int64:
    """Return a column of numbers that count from 1 as `(n,)` int64 that count from 0."""
    numbers = np.asarray(values).reshape(-1)
    if numbers.dtype.kind not in "iuf" or not (numbers >= 1).all() or (numbers != numbers.astype(np.int64)).any():
        raise LoadError(
            f"{path}: {name} does not hold whole numbers from 1 on.",
            expected="whole numbers from 1 on",
            where=path,
        )
    return numbers.astype(np.int64) - 1


def _check_disjoint(
    seen: Int64, unseen: Int64, test_seen_labels: Int64, class_names: Sequence[str], path: Path
) -> None:
    both = [class_names[index] for index in np.intersect1d(seen, unseen)]
    untrained = [class_names[index] for index in np.setdiff1d(test_seen_labels, seen)]
    if both or untrained:
        raise LoadError(
            f"{path}: {quoted(both or untrained)} is "
            f"{'both seen and unseen' if both else 'tested as seen, untrained'}.",
            found=tuple(both or untrained),
            where=path,
        )
