"""A small data set in the files that xlsa17 has, with features that a linear head and its attributes explain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

NUM_SEEN, NUM_UNSEEN, NUM_ATTRIBUTES = 24, 6, 12
FEATURE_DIM = 2048
NUM_IMAGES = 12
"""Of each class."""


def write_data_set(folder: Path, *, seed: int = 0) -> Path:
    """Write `res101.mat` and `att_splits.mat`: unseen classes stand among the seen ones, images in random order."""
    random = np.random.default_rng(seed)
    num_classes = NUM_SEEN + NUM_UNSEEN
    unseen = np.sort(random.choice(num_classes, NUM_UNSEEN, replace=False))
    attributes = random.normal(size=(num_classes, NUM_ATTRIBUTES))
    means = attributes @ random.normal(size=(NUM_ATTRIBUTES, FEATURE_DIM))
    labels = random.permutation(np.repeat(np.arange(num_classes), NUM_IMAGES))
    features = np.maximum(means[labels] + random.normal(scale=3.0, size=(len(labels), FEATURE_DIM)), 0)
    of_unseen = np.isin(labels, unseen)
    of_seen = random.permutation(np.flatnonzero(~of_unseen))
    num_test = len(of_seen) // 4
    locations = {
        "trainval_loc": of_seen[num_test:],
        "test_seen_loc": of_seen[:num_test],
        "test_unseen_loc": np.flatnonzero(of_unseen),
        # Of disjoint classes, as there: whoever trains on `train_loc` alone lacks rows.
        "train_loc": np.flatnonzero(labels < num_classes // 2),
        "val_loc": np.flatnonzero(labels >= num_classes // 2),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = np.empty((len(labels), 1), dtype=object)
    files[:, 0] = [f"/images/{index}.jpg" for index in range(len(labels))]
    savemat(
        folder / "res101.mat",
        {"features": features.T.astype(np.float32), "labels": labels[:, None] + 1.0, "image_files": files},
    )
    names = np.empty((num_classes, 1), dtype=object)
    names[:, 0] = [f"{index + 1:03d}.Class_{index}" for index in range(num_classes)]
    columns = {name: (indices[:, None] + 1).astype(np.uint16) for name, indices in locations.items()}
    attributes /= np.linalg.norm(attributes, axis=1, keepdims=True)
    savemat(folder / "att_splits.mat", {"att": attributes.T, "allclasses_names": names, **columns})
    return folder
