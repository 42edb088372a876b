"""A generator makes the rows of the injector that it was written from, for every method that has a closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporters.generator.writing import write_generator
from icis_deploy.bundle.generator_metadata import (
    MEAN_ROW,
    NEAREST,
    ROWS,
    SIMILARITY,
    parse_metadata,
    serialize_metadata,
)
from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.errors import CorruptFileError, GateFailedError, IncompatibleError, ModelLoadError
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.predictors.icis import ICISConfig
from icis_deploy.injection.predictors.registry import METHODS
from icis_deploy.injection.rows.calibration import Injector, LengthFactor
from icis_deploy.injection.rows.predictors import LatentPredictor
from icis_deploy.runtime.teaching.generator import load_generator

NUM_SEEN, NUM_UNSEEN, DESCRIPTOR_DIM, FEATURE_DIM = 60, 6, 12, 16
CLOSED_FORMS = [name for name in METHODS if name not in {"mixture", "ensemble"}]


def world(seed: int = 0) -> tuple[Head, Descriptors]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(NUM_SEEN + NUM_UNSEEN, DESCRIPTOR_DIM)).astype(np.float32)
    rows = values @ rng.normal(size=(DESCRIPTOR_DIM, FEATURE_DIM + 1)) + rng.normal(size=FEATURE_DIM + 1)
    names = tuple(f"class {index}" for index in range(len(values)))
    return Head(rows=rows[:NUM_SEEN], class_names=names[:NUM_SEEN]), Descriptors(values=values, class_names=names)


def injection_by(method: str, calibration: str = "length") -> Injection:
    head, descriptors = world()
    return inject(head, descriptors, options=InjectionOptions(method=method, calibration=calibration))


def write(
    path: Path, injector: Injector, *, precision: str = "fp32", method: str = "ridge", arbiter: np.ndarray | None = None
) -> object:
    head, descriptors = world()
    return write_generator(
        path,
        injector,
        head=head,
        seen_descriptors=descriptors.values[:NUM_SEEN],
        unseen_descriptors=descriptors.values[NUM_SEEN:],
        method=method,
        arbiter=arbiter,
        precision=precision,
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("method", CLOSED_FORMS)
def test_a_generator_makes_the_rows_of_its_injector(method: str, precision: str, tmp_path: Path) -> None:
    injection = injection_by(method)
    written = write(tmp_path / "generator.onnx", injection.injector, precision=precision, method=method)
    head, descriptors = world()
    generator = load_generator(tmp_path / "generator.onnx")
    rows = generator.run(descriptors.values[NUM_SEEN:])[ROWS]
    scale = np.linalg.norm(injection.rows, axis=1).max()
    np.testing.assert_allclose(rows / scale, injection.rows / scale, atol=1e-4 if precision == "fp32" else 1e-2)
    assert generator.metadata == written.metadata
    assert (generator.metadata.base_fingerprint, generator.metadata.method) == (head.fingerprint, method)


def test_a_calibration_along_the_principal_axes_and_an_ensemble_are_written_too(tmp_path: Path) -> None:
    injection = injection_by("ensemble", "auto")
    calibration = injection.injector.calibration
    gain = np.linspace(-0.3, 0.3, len(calibration.axes)).astype(np.float32)
    injector = replace(injection.injector, calibration=replace(calibration, axis_gain=gain, offset=0.25))
    assert write(tmp_path / "generator.onnx", injector).max_row_error < 1e-4


def test_a_law_of_the_biases_is_written_too(tmp_path: Path) -> None:
    injection = injection_by("ridge", "auto")
    calibration = injection.injector.calibration
    law = np.linspace(-3.0, 3.0, len(calibration.mean_row) - 1).astype(np.float32)
    injector = replace(injection.injector, calibration=replace(calibration, bias_law=law))
    assert write(tmp_path / "generator.onnx", injector).max_row_error < 1e-4


def test_a_generator_names_the_arbiter_of_its_rows(tmp_path: Path) -> None:
    arbiter = np.linspace(-1.0, 1.0, 5).astype(np.float32)
    write(tmp_path / "generator.onnx", injection_by("ridge").injector, arbiter=arbiter)
    metadata = load_generator(tmp_path / "generator.onnx").metadata
    np.testing.assert_array_equal(np.array(metadata.arbiter, np.float32), arbiter)


def test_similarity_names_the_seen_class_that_is_most_alike(tmp_path: Path) -> None:
    write(tmp_path / "generator.onnx", injection_by("ridge").injector)
    head, descriptors = world()
    outputs = load_generator(tmp_path / "generator.onnx").run(descriptors.values[:NUM_SEEN])
    np.testing.assert_array_equal(outputs[NEAREST], np.arange(NUM_SEEN))
    np.testing.assert_allclose(outputs[SIMILARITY], 1, atol=1e-5)
    np.testing.assert_allclose(outputs[MEAN_ROW], head.rows.mean(axis=0), atol=1e-5)


def test_a_method_without_a_closed_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="'mixture' solves a problem for each class"):
        write(tmp_path / "generator.onnx", injection_by("mixture").injector)
    assert not list(tmp_path.iterdir())


def test_a_generator_that_makes_other_rows_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LengthFactor, "apply", lambda self, rows: rows * np.float32(self.factor * 1.01))
    with pytest.raises(GateFailedError, match=r"up to 0\.0099 of their length off .* Choose another `method`, or"):
        write(tmp_path / "generator.onnx", injection_by("ridge").injector)
    assert not list(tmp_path.iterdir())


def test_half_precision_stays_under_20_mb_at_the_default_latent_width(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    latent, row_dim, descriptor_dim = ICISConfig().latent_dim, 2049, 300
    assert latent == 2048
    descriptors = rng.normal(size=(1000, descriptor_dim)).astype(np.float32)
    head = Head(rows=rng.normal(size=(1000, row_dim)), class_names=[f"class {index}" for index in range(1000)])
    predictor = LatentPredictor(
        encoder_weight=rng.normal(0, 0.02, (latent, descriptor_dim)).astype(np.float32),
        encoder_bias=np.zeros(latent, np.float32),
        decoder_weight=rng.normal(0, 0.02, (row_dim, latent)).astype(np.float32),
        decoder_bias=np.zeros(row_dim, np.float32),
        origin=np.zeros(row_dim, np.float32),
    )
    written = write_generator(
        tmp_path / "generator.onnx",
        Injector(predictor=predictor, calibration=LengthFactor(factor=2.0)),
        head=head,
        seen_descriptors=descriptors,
        unseen_descriptors=descriptors[:0],
        method="icis",
        precision="fp16",
    )
    assert written.size_bytes == (tmp_path / "generator.onnx").stat().st_size < 20e6


def test_another_model_is_no_generator(tmp_path: Path, tiny_project: object) -> None:
    with pytest.raises(ModelLoadError, match=r"model\.onnx is no generator"):
        load_generator(tiny_project.model)


@pytest.mark.parametrize("damage", ["{}", "[", "schema", "limits"])
def test_damaged_metadata_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    metadata = write(tmp_path / "generator.onnx", injection_by("mean").injector).metadata
    text = serialize_metadata(metadata)
    assert parse_metadata(text) == metadata
    changed = {"schema": text.replace('"schema_version": 1', '"schema_version": 2'), "limits": text.replace("low", "l")}
    with pytest.raises(CorruptFileError, match="The generator's metadata is damaged"):
        parse_metadata(changed.get(damage, damage))


# --- several blocks of descriptors --------------------------------------------------------------------------------


def blocks_world(*, useless: bool = True) -> tuple[Head, Descriptors]:
    """Return a head and descriptors of two blocks that help and, first, one that does not; some classes lack tags."""
    head, vectors = world()
    rng = np.random.default_rng(5)
    names = vectors.class_names
    seen = head.rows - head.rows.mean(axis=0)
    # Rows follow from more than the vectors: the tags show the rest.
    hidden = rng.normal(size=(len(names), 6))
    head = Head(
        rows=seen + 3.0 * hidden[:NUM_SEEN] @ rng.normal(size=(6, FEATURE_DIM + 1)), class_names=head.class_names
    )
    tags = (hidden @ rng.normal(size=(6, 40)) > 0.0).astype(np.float32)
    has_tags = [name for index, name in enumerate(names) if index % 9 and index != NUM_SEEN + 1]
    parts = [
        Descriptors(values=vectors.values, class_names=names, blocks=(DescriptorBlock("vectors", DESCRIPTOR_DIM),)),
        Descriptors(values=tags, class_names=names, blocks=(DescriptorBlock("tags", 40),)).select(has_tags),
    ]
    if useless:
        noise = rng.normal(size=(len(names), 30))
        parts.insert(0, Descriptors(values=noise, class_names=names, blocks=(DescriptorBlock("noise", 30),)))
    return head, Descriptors.merged(parts)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("method", CLOSED_FORMS)
def test_a_generator_of_several_blocks_makes_the_rows_of_its_injector(
    method: str, precision: str, tmp_path: Path
) -> None:
    head, descriptors = blocks_world()
    injection = inject(head, descriptors, options=InjectionOptions(method=method, calibration="length"))
    assert [block.weight > 0.0 for block in injection.blocks] == [False, True, True]
    path = tmp_path / "generator.onnx"
    new = descriptors.select(injection.class_names).values
    written = write_generator(
        path,
        injection.injector,
        head=head,
        seen_descriptors=descriptors.select(head.class_names).values,
        unseen_descriptors=new,
        method=method,
        precision=precision,
    )
    assert [(block.name, block.width, block.is_used) for block in written.metadata.blocks] == [
        ("noise", 30, False),
        ("vectors", DESCRIPTOR_DIM, True),
        ("tags", 40, True),
    ]
    generator = load_generator(path)
    assert generator.metadata == written.metadata
    outputs = generator.run(new)
    scale = np.linalg.norm(injection.rows, axis=1).max()
    np.testing.assert_allclose(
        outputs[ROWS] / scale, injection.rows / scale, atol=1e-4 if precision == "fp32" else 1e-2
    )
    # What a dropped block says makes no difference.
    other = new.copy()
    other[:, :30] = 100.0
    np.testing.assert_array_equal(generator.run(other)[ROWS], outputs[ROWS])


def test_similarity_of_several_blocks_is_that_of_the_joined_descriptors(tmp_path: Path) -> None:
    head, descriptors = blocks_world()
    injection = inject(head, descriptors, options=InjectionOptions(method="ridge", calibration="length"))
    seen = descriptors.select(head.class_names).values
    path = tmp_path / "generator.onnx"
    write_generator(
        path,
        injection.injector,
        head=head,
        seen_descriptors=seen,
        unseen_descriptors=descriptors.select(injection.class_names).values,
        method="ridge",
    )
    outputs = load_generator(path).run(seen)
    np.testing.assert_array_equal(outputs[NEAREST], np.arange(NUM_SEEN))
    np.testing.assert_allclose(outputs[SIMILARITY], 1.0, atol=1e-5)
