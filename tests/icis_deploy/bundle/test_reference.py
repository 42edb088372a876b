from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from icis_deploy.bundle.manifest import REFERENCE_NAME, load_manifest
from icis_deploy.bundle.reference import (
    MAX_REFERENCE_BYTES,
    SKETCH_DIM,
    Reference,
    has_sketches,
    load_reference,
    max_reference_images,
    parse_reference,
    serialize_reference,
    sketched,
)
from icis_deploy.errors import CorruptFileError, IncompatibleError
from testing.bundles import write_bundle
from testing.references import add_reference, make_reference


def reference_of(num_images: int, feature_dim: int, num_seen: int) -> Reference:
    random = np.random.default_rng(0)
    has = has_sketches(num_seen, feature_dim)
    return Reference(
        features=random.normal(size=(num_images, feature_dim)).astype(np.float16),
        statistics=random.normal(size=(num_images, 5)),
        answers=random.integers(0, num_seen, num_images),
        sketches=random.normal(size=(num_seen, min(feature_dim, SKETCH_DIM))).astype(np.float16) if has else None,
    )


@pytest.mark.parametrize(("feature_dim", "num_seen"), [(1280, 800), (4, 3), (2048, 21_000), (25_088, 2), (100, 2000)])
def test_as_many_images_as_fit_come_back_bit_for_bit(feature_dim: int, num_seen: int):
    reference = reference_of(max_reference_images(feature_dim, num_seen), feature_dim, num_seen)

    data = serialize_reference(reference)

    assert MAX_REFERENCE_BYTES - 2048 - 2 * feature_dim < len(data) <= MAX_REFERENCE_BYTES
    found = parse_reference(data, feature_dim=feature_dim, num_seen=num_seen)
    for name in ("features", "statistics", "answers"):
        np.testing.assert_array_equal(getattr(found, name), getattr(reference, name))
    assert (found.sketches is None) == (reference.sketches is None) == (num_seen > 2000)
    assert serialize_reference(found) == data


def test_equal_directions_have_equal_sketches_and_others_keep_about_their_angle():
    weight = np.random.default_rng(0).normal(size=(50, 1280)).astype(np.float32)
    weight[1] = 3 * weight[0]
    sketches = sketched(weight)

    assert sketches.shape == (50, SKETCH_DIM)
    unit = sketches / np.linalg.norm(sketches, axis=1, keepdims=True)
    assert unit[0] @ unit[1] == pytest.approx(1.0)
    assert np.abs(np.delete(unit @ unit.T - np.eye(50), [0, 1], axis=0)).max() < 0.6
    np.testing.assert_array_equal(sketched(weight[:, :SKETCH_DIM]), weight[:, :SKETCH_DIM])


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("answers"),
        lambda tensors: tensors.update(more=np.zeros(3, np.float32)),
        lambda tensors: tensors.update(features=tensors["features"][:, :3]),
        lambda tensors: tensors.update(features=tensors["features"].astype(np.float32)),
        lambda tensors: tensors.update(features=np.full_like(tensors["features"], np.nan)),
        lambda tensors: tensors.update(statistics=tensors["statistics"][:, :4]),
        lambda tensors: tensors.update(statistics=np.full_like(tensors["statistics"], np.inf)),
        lambda tensors: tensors.update(answers=tensors["answers"] + 3),
        lambda tensors: tensors.update(answers=tensors["answers"] - 3),
        lambda tensors: tensors.update(sketches=tensors["sketches"][:2]),
        lambda tensors: tensors.update({name: tensor[:0] for name, tensor in tensors.items()}),
    ],
)
def test_what_is_no_reference_for_the_head_is_refused(change):
    tensors = load(serialize_reference(make_reference()))
    change(tensors)

    with pytest.raises(CorruptFileError, match="The reference is damaged"):
        parse_reference(save(tensors), feature_dim=4, num_seen=3)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, serialize_reference(make_reference())[:-1]])
def test_damaged_bytes_are_refused(data: bytes):
    with pytest.raises(CorruptFileError, match="The reference is damaged"):
        parse_reference(data, feature_dim=4, num_seen=3)


def test_a_file_with_another_hash_is_refused(tmp_path):
    folder = add_reference(write_bundle(tmp_path / "bundle"))
    bundle = load_manifest(folder)
    assert load_reference(folder, bundle).num_reference == 200
    path = folder / REFERENCE_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")

    with pytest.raises(CorruptFileError, match="was changed or damaged"):
        load_reference(folder, bundle)


def test_shapes_that_disagree_are_refused():
    reference = make_reference()
    with pytest.raises(IncompatibleError, match="expected at least one image, and 5 statistics and one answer"):
        replace(reference, answers=reference.answers[1:])
