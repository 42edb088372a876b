"""An engine's sidecar: read strictly, and every field that differs is named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from icis_deploy.bundle.engine_sidecar import (
    EngineInput,
    EngineOutput,
    EngineSidecar,
    model_sha256,
    parse_sidecar,
    serialize_sidecar,
    this_platform,
    verify_engine,
    verify_gpu,
)
from icis_deploy.bundle.manifest import Bundle, FileEntry, ModelInput
from icis_deploy.errors import BundleError, EngineMismatchError

HASHES = {"model_sha256": "a" * 64, "engine_sha256": "b" * 64, "head_fingerprint": "c" * 64}
HERE = {"runtime": "tensorrt-rtx", "runtime_version": "1.7.1.116", **HASHES}


def sidecar(**changes: Any) -> EngineSidecar:
    image = EngineInput(
        name="image", dtype="float32", min_shape=(1, 3, 8, 8), opt_shape=(4, 3, 8, 8), max_shape=(16, 3, 8, 8)
    )
    values = {
        **HERE,
        "platform": this_platform(),
        "compute_capabilities": ("8.0", "8.6"),
        "hardware_compatibility": "none",
        "inputs": (image,),
        "outputs": (EngineOutput(name="logits", dtype="float32", shape=(-1, 40)),),
        "refittable": (),
        "precision": "fp32",
        "created_by": "0.1.0",
    }
    return EngineSidecar(**{**values, **changes})


def test_a_sidecar_comes_back_as_it_was_written():
    assert parse_sidecar(serialize_sidecar(sidecar())) == sidecar()
    assert parse_sidecar(serialize_sidecar(sidecar(refittable=("slot_rows",)))).refittable == ("slot_rows",)


def test_equal_sidecars_have_equal_bytes():
    assert serialize_sidecar(sidecar()) == serialize_sidecar(sidecar())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("platform"), r"it lacks \['platform'\]"),
        (lambda v: v.update(extra=1), r"it has the unknown \['extra'\]"),
        (lambda v: v.update(runtime_version=10.3), "runtime_version: expected a text, found 10.3"),
        (lambda v: v.update(compute_capabilities="8.6"), "compute_capabilities: expected a list of texts, found '8.6'"),
        (lambda v: v.update(inputs={}), "inputs: expected a list, found an object"),
        (
            lambda v: v["inputs"][0].update(max_shape=[True]),
            r"inputs\[0\]\.max_shape\[0\]: expected a whole number, found True",
        ),
        (lambda v: v["inputs"][0].pop("dtype"), r"inputs\[0\] lacks \['dtype'\]"),
        (
            lambda v: v["outputs"][0].update(shape=[-1, 2.5]),
            r"outputs\[0\]\.shape\[1\]: .* number, found 2\.5",
        ),
        (lambda v: v.update(hardware_compatibility="all"), "states the hardware compatibility 'all'"),
        (lambda v: v.update(precision="int4"), "states the precision 'int4'"),
        (lambda v: v.update(precision=5000 * "x"), "states the precision 'x{40}';"),
        (lambda v: v.pop("schema_version"), "the field 'schema_version'"),
        (lambda v: v.update(schema_version=3), r"has schema version 3; this release reads \(1, 2\)"),
    ],
)
def test_a_sidecar_with_a_wrong_field_is_refused_and_the_field_named(change, message):
    values = json.loads(serialize_sidecar(sidecar()))
    change(values)

    with pytest.raises(BundleError, match=message):
        parse_sidecar(json.dumps(values).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_bytes_that_are_no_sidecar_are_refused(data):
    with pytest.raises(BundleError, match="sidecar"):
        parse_sidecar(data)


@pytest.mark.parametrize("field", [*HERE, "platform"])
def test_an_engine_for_this_use_passes_and_a_field_that_differs_is_named_with_both_values(field):
    verify_engine(sidecar(), **HERE)
    found = sidecar(**{field: "something else"})

    here = {**HERE, "platform": this_platform()}[field]
    with pytest.raises(EngineMismatchError, match=re.escape(f"{field} is something else, here {here}")) as caught:
        verify_engine(found, **HERE)
    assert caught.value.exit_code == 3
    assert str(caught.value).count(" is something else") == 1


def test_every_field_that_differs_is_named_and_what_to_do():
    with pytest.raises(EngineMismatchError) as caught:
        verify_engine(replace(sidecar(), runtime_version="1.6.0", model_sha256="d" * 64), **HERE)
    assert str(caught.value) == (
        f"The tensorrt-rtx engine was not built for this use: runtime_version is 1.6.0, here 1.7.1.116; model_sha256 "
        f"is {'d' * 64}, here {'a' * 64}. Build it here and from this model: `export(targets=['tensorrt-rtx'])`."
    )


@pytest.mark.parametrize(
    ("compatibility", "gpu", "runs"),
    [
        ("none", "8.6", True),
        ("none", "8.9", False),
        ("none", "8", False),
        ("ampere_plus", "8.9", True),
        ("ampere_plus", "12.0", True),
        ("ampere_plus", "7.5", False),
        ("same_compute_capability", "8.0", True),
        ("same_compute_capability", "9.0", False),
    ],
)
def test_an_engine_runs_on_the_architectures_that_it_was_built_for(compatibility, gpu, runs):
    found = sidecar(hardware_compatibility=compatibility)
    if runs:
        verify_gpu(found, gpu)
        return
    with pytest.raises(
        EngineMismatchError, match=rf"compute_capabilities is 8\.0, 8\.6, here {re.escape(gpu)}\. Build"
    ):
        verify_gpu(found, gpu)


def test_the_hash_of_a_model_covers_the_weights_next_to_it():
    def bundle(**hashes: str) -> Bundle:
        return Bundle(
            head_kind="fused",
            class_names=("cat",),
            num_seen=1,
            feature_dim=2,
            capacity=0,
            base_fingerprint="c" * 64,
            head_version=0,
            model_input=ModelInput(name="image", shape=(2,), dtype="float32"),
            score_kind="logits",
            preprocessing=None,
            files={name.replace("_", "."): FileEntry(sha256=sha, size_bytes=1) for name, sha in hashes.items()},
            parity=(),
        )

    assert model_sha256(bundle(model_onnx="1" * 64, other="2" * 64)) == "1" * 64
    with_weights = model_sha256(bundle(model_onnx="1" * 64, model_onnx_data="2" * 64))
    assert len({"1" * 64, with_weights, model_sha256(bundle(model_onnx="1" * 64, model_onnx_data="3" * 64))}) == 3
