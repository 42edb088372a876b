"""The whole job on a real classifier, which is kept beside the project: what README claims of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import icis_deploy
import icis_deploy.pipeline
from icis_deploy.class_update import ClassUpdate
from icis_deploy.images import load_image_list
from icis_deploy.runtime.onnxruntime_session import load_session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def opened(imagenet_mobilenet: Path) -> icis_deploy.pipeline.OpenedModel:
    return icis_deploy.inspect(imagenet_mobilenet / "model.onnx", classes=imagenet_mobilenet / "classes.txt")


@pytest.fixture(scope="module")
def update(opened: icis_deploy.pipeline.OpenedModel, imagenet_mobilenet: Path) -> ClassUpdate:
    names = imagenet_mobilenet / "unseen.txt"
    descriptors = imagenet_mobilenet / "descriptors.npz"
    preprocess = imagenet_mobilenet / "preprocess.json"
    return icis_deploy.inject(opened, descriptors=descriptors, unseen=names, preprocess=preprocess)


@pytest.fixture(scope="module", params=["fused", "updatable"])
def bundle(
    request: pytest.FixtureRequest,
    opened: icis_deploy.pipeline.OpenedModel,
    update: ClassUpdate,
    imagenet_mobilenet: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("bundle") / request.param
    icis_deploy.export(
        opened,
        updates=[update],
        head=request.param,
        capacity=256 if request.param == "updatable" else None,
        preprocess=imagenet_mobilenet / "preprocess.json",
        out=out,
    )
    return out


def test_injected_classes_are_recognised_and_seen_ones_still_are(bundle: Path, imagenet_mobilenet: Path) -> None:
    names = imagenet_mobilenet / "unseen.txt"
    report = icis_deploy.evaluate(bundle, images=imagenet_mobilenet / "images.csv", unseen=names)
    assert abs(report.S_original - 0.884) <= 0.005
    assert report.T >= 0.36
    assert report.H >= 0.40


def test_a_bundle_is_as_near_to_its_original_as_floats_allow(bundle: Path, imagenet_mobilenet: Path) -> None:
    for report in icis_deploy.verify(bundle, against=imagenet_mobilenet / "model.onnx"):
        assert report.passed
        assert report.max_scaled_error <= 1e-4
        assert report.num_disagreements == 0


def test_a_torch_program_and_its_onnx_file_have_the_same_head(
    opened: icis_deploy.pipeline.OpenedModel, imagenet_mobilenet: Path
) -> None:
    program = icis_deploy.inspect(imagenet_mobilenet / "model.pt2", classes=imagenet_mobilenet / "classes.txt")
    assert program.head == opened.head


def test_seen_logits_of_an_updatable_head_keep_their_bits(
    opened: icis_deploy.pipeline.OpenedModel, update: ClassUpdate, imagenet_mobilenet: Path, tmp_path: Path
) -> None:
    settings = {"head": "updatable", "capacity": 256, "preprocess": imagenet_mobilenet / "preprocess.json"}
    icis_deploy.export(opened, updates=[update], out=tmp_path / "with", **settings)
    icis_deploy.export(opened, out=tmp_path / "without", **settings)
    device = icis_deploy.Device.open(tmp_path / "with")
    images = device.prepare(load_image_list(imagenet_mobilenet / "images.csv").paths[:32])
    original = load_session(imagenet_mobilenet / "model.onnx").run(images).logits
    for name in ("with", "without"):
        seen = icis_deploy.Device.open(tmp_path / name).logits(images).values[:, :800]
        np.testing.assert_array_equal(seen, original)
