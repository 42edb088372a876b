"""The target `web`: required slots, gated, stated in the manifest, compacted, and refused where it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import icis_deploy
from exporters.head.slot_inputs import with_slots_as_inputs
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets import web_target
from exporters.targets.registry import plan_targets
from exporters.targets.web_target import LIBRARY_NAMES, compare_web_model, library_files, write_web_target
from icis_deploy.bundle.manifest import load_bundle, load_manifest
from icis_deploy.bundle.target_options import TargetOptions
from icis_deploy.errors import ExportError, MissingDependencyError, RuntimeFailureError, UsageError
from icis_deploy.runtime.sessions.onnxruntime_session import load_session
from icis_deploy.updates.signing import keygen
from testing.bundles import images, trust, write_bundle

SLOTS = ["slot_weight", "slot_bias", "slot_arbiter"]


@pytest.fixture
def library(tmp_path) -> Path:
    """A place that looks like an installed onnxruntime-web: its files are copied, not run."""
    dist = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in LIBRARY_NAMES:
        (dist / name).write_bytes(name.encode())
    return tmp_path / "node_modules"


@pytest.mark.parametrize("arbiter", [False, True])
def test_slots_become_required_inputs_and_give_the_same(tmp_path, arbiter):
    folder = write_bundle(tmp_path / "bundle", arbiter=arbiter)
    model = load_onnx_file(folder / "model.onnx")

    save_model(with_slots_as_inputs(model), tmp_path / "required.onnx")

    graph = onnx.load(tmp_path / "required.onnx").graph
    names = SLOTS if arbiter else SLOTS[:2]
    assert [value.name for value in graph.input] == ["image", *names]
    assert not {tensor.name for tensor in graph.initializer} & set(names)
    whole, required = load_session(folder / "model.onnx"), load_session(tmp_path / "required.onnx")
    random = np.random.default_rng(0)
    rows = random.normal(size=(4, 4)).astype(np.float32), random.normal(size=4).astype(np.float32)
    coefficients = random.normal(size=(4, 5)).astype(np.float32) if arbiter else None
    one, other = (session.run(images(), session.load_slots(*rows, coefficients)) for session in (whole, required))
    np.testing.assert_array_equal(one.logits, other.logits)
    with pytest.raises(RuntimeFailureError, match="slot_weight"):
        required.run(images())


def test_a_fused_model_stays_as_it_is(tmp_path):
    model = load_onnx_file(write_bundle(tmp_path / "bundle", capacity=0) / "model.onnx")
    assert with_slots_as_inputs(model) is model


@pytest.mark.parametrize("head", ["fused", "updatable"])
def test_an_export_for_browsers_passes_its_gate_and_is_stated(tiny_project, tmp_path, library, head):
    key = keygen(tmp_path / "publisher.key")
    built = []
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        out=tmp_path / "bundle",
        options=icis_deploy.ExportOptions(
            head=head,
            capacity=4 if head == "updatable" else None,
            trust=(key.public_path,) if head == "updatable" else (),
            preprocess=tiny_project.preprocess,
            targets=("web",),
            target_options=TargetOptions(onnxruntime_web=library),
        ),
        on_target=built.append,
    )

    bundle = load_bundle(tmp_path / "bundle")  # compares every file with its hash
    (report,) = built[0].reports
    assert (built[0].name, report.passed) == ("web", True)
    assert {"web/index.html", "web/page.js", "web/icis-deploy/src/index.js", "web/icis-deploy/index.d.ts"} <= set(
        bundle.files
    )
    assert {f"web/ort/{name}" for name in LIBRARY_NAMES} <= set(bundle.files)
    written = {
        path.relative_to(tmp_path / "bundle").as_posix()
        for path in (tmp_path / "bundle" / "web").rglob("*")
        if path.is_file()
    }
    assert written <= set(bundle.files)
    keys = json.loads((tmp_path / "bundle" / "web" / "keys.json").read_text())["public_keys"]
    assert keys == ([key.public_path.read_text()] if head == "updatable" else [])


def test_a_graph_with_other_slots_than_it_is_fed_fails_the_gate(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    bundle = load_manifest(folder)
    write_web_target(folder, bundle, None)
    assert compare_web_model(folder, bundle).passed
    model = onnx.load(folder / "web" / "model.onnx")
    for node in model.graph.node:  # as a converter does that bakes the weights: it feeds on nothing but zeros
        if "slot_weight" in node.input:
            node.input[1] = "baked"
    weight = onnx.numpy_helper.from_array(np.zeros((4, 4), np.float32), "baked")
    model.graph.initializer.append(weight)
    onnx.save(model, folder / "web" / "model.onnx")

    assert not compare_web_model(folder, bundle).passed


def test_compacting_writes_the_page_again_with_its_library_and_keys(tiny_project, tmp_path, library):
    key = keygen(tmp_path / "publisher.key")
    options = icis_deploy.ExportOptions(
        head="updatable",
        capacity=4,
        trust=(key.public_path,),
        preprocess=tiny_project.preprocess,
        targets=("web",),
        target_options=TargetOptions(onnxruntime_web=library),
    )
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=tmp_path / "bundle", options=options)

    icis_deploy.compact(tmp_path / "bundle", out=tmp_path / "compacted", capacity=6)

    bundle = load_bundle(tmp_path / "compacted")
    assert {f"web/ort/{name}" for name in LIBRARY_NAMES} <= set(bundle.files)
    assert json.loads((tmp_path / "compacted" / "web" / "keys.json").read_text())["public_keys"]
    shape = onnx.load(tmp_path / "compacted" / "web" / "model.onnx").graph.input[1].type.tensor_type.shape
    assert shape.dim[0].dim_value == 6


def test_what_a_page_cannot_have_is_refused_before_anything_is_built(tmp_path, library):
    assert plan_targets(["web"], TargetOptions(onnxruntime_web=library)).targets
    with pytest.raises(MissingDependencyError, match=r"holds no onnxruntime-web .*npm install onnxruntime-web"):
        plan_targets(["web"], TargetOptions(onnxruntime_web=tmp_path))
    with pytest.raises(UsageError, match=r"onnxruntime-web was given, but no page is written.*`onnxruntime_web` out"):
        plan_targets(["openvino"], TargetOptions(onnxruntime_web=library))
    folder = write_bundle(tmp_path / "bundle")
    bundle = load_manifest(folder)
    large = replace(bundle, files={**bundle.files, "model.onnx.data": bundle.files["model.onnx"]})
    with pytest.raises(ExportError, match="weights in a file of their own"):
        write_web_target(folder, large, None)


def test_the_library_is_found_in_each_place_where_it_may_be(library):
    package = library / "onnxruntime-web"
    found = {library_files(place) for place in (library, package, package / "dist")}
    assert len(found) == 1
    assert library_files(library / "other") is None


def test_keys_of_a_bundle_are_written_for_pages(tmp_path):
    folder, key = write_bundle(tmp_path / "bundle"), keygen(tmp_path / "publisher.key")
    trust(folder, key.public_path)
    write_web_target(folder, load_manifest(folder), None)
    assert json.loads((folder / web_target.KEYS_NAME).read_text()) == {"public_keys": [key.public_path.read_text()]}
