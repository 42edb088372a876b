"""Compacting keeps a bundle's own model, in whatever form: the same answers, free slots after them."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from exporters.bundles.compaction import FormerBundle, compare_compacted
from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head
from exporters.head.slot_baking import BakeRowsPass
from exporters.head.surgery import AddSlotsPass, FuseHeadPass, SetSlotDefaultsPass
from icis_deploy.api.compact import compact
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.bundle.model_form import ModelForm
from icis_deploy.errors import CapacityError, IncompatibleError, MissingDependencyError, UsageError
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.images.loading import load_image_list
from icis_deploy.runtime.device import Device, state_of
from icis_deploy.runtime.state.store import Store
from testing.bundles import files_in, write_bundle
from testing.tiny_project import FEATURE_DIM, NUM_SEEN, TinyProject
from tests.exporters.head_graphs import FEATURE_DIM as GRAPH_DIM
from tests.exporters.head_graphs import GRAPHS, NUM_CLASSES, HeadGraph, rows, run_model

FORMS = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
    "pixels and choice": {"model_input": "uint8", "top": 3},
    "int8, pixels and choice": {"precision": "int8", "model_input": "uint8", "top": 3},
}
TARGETS = ["triton", *(["openvino"] if find_spec("openvino") else [])]


def exported(project: TinyProject, out: Path, *, targets: list[str] | None = None, **form: object) -> Device:
    calibration = project.images if form.get("precision") == "int8" else None
    icis_deploy.export(
        project.model,
        classes=project.classes,
        options=icis_deploy.ExportOptions(
            head="updatable",
            capacity=6,
            preprocess=project.preprocess,
            form=ModelForm(calibration_images=calibration, **form),
            targets=targets or ["onnx"],
            max_changed_answers=None,
        ),
        out=out,
    )
    return Device.open(out, num_threads=1)


def update_for(device: Device, *names: str, version: int, **fields: object) -> bytes:
    from icis_deploy.updates.envelope import envelope_of, serialize_envelope

    values = np.random.default_rng(version).normal(size=(len(names), FEATURE_DIM + 1)) * 8
    content = ClassUpdate(
        base_fingerprint=device.bundle.base_fingerprint, rows=values, added=names, version=version, **fields
    )
    return serialize_envelope(envelope_of(content))


def images_for(device: Device, project: TinyProject) -> np.ndarray:
    return device.prepare(load_image_list(project.images).paths[:8])


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_of_any_form_keeps_its_form_and_its_logits(form: str, tiny_project: TinyProject, tmp_path: Path):
    device = exported(tiny_project, tmp_path / "bundle", **FORMS[form])
    device.apply(update_for(device, "okapi", "bongo", "zebra", version=1), allow_unsigned=True)
    device.apply(update_for(device, version=2, removed=("bongo",)), allow_unsigned=True)
    batch = images_for(device, tiny_project)
    before, stated = device.logits(batch), device.bundle

    for step, added in enumerate((("quagga", "gnu"), ())):  # a compacted bundle is compacted again
        made = compact(tmp_path / "bundle" if step == 0 else tmp_path / "0", out=tmp_path / str(step), capacity=5)

        for field in ("precision", "top", "model_input", "preprocessing", "score_kind", "base_fingerprint"):
            assert getattr(made, field) == getattr(stated, field)
        assert made.head_version == before.version
        history, version = device.history(), device.version
        device.replace(tmp_path / str(step), num_threads=1)
        assert (device.version, device.history()[:-1]) == (version, history)
        after = device.logits(batch)
        assert after.class_names == before.class_names
        np.testing.assert_array_equal(after.values[:, :NUM_SEEN], before.values[:, :NUM_SEEN])
        np.testing.assert_allclose(after.values, before.values, rtol=1e-5, atol=1e-5 * np.abs(before.values).max())
        assert [a.class_names for a in device.predict(batch, top=3)] == [
            tuple(before.class_names[index] for index in np.argsort(-row, kind="stable")[:3]) for row in after.values
        ]
        if added:
            device.apply(update_for(device, *added, version=3), allow_unsigned=True)
            before = device.logits(batch)
    assert device.bundle.class_names[NUM_SEEN:] == ("okapi", "zebra", "quagga", "gnu")


def test_what_a_bundle_holds_for_other_runtimes_is_built_again(tiny_project: TinyProject, tmp_path: Path):
    device = exported(tiny_project, tmp_path / "bundle", targets=TARGETS)
    device.apply(update_for(device, "okapi", "zebra", version=1), allow_unsigned=True)
    device.disable("okapi")
    made = compact(tmp_path / "bundle", out=tmp_path / "new")
    assert set(made.files) == set(device.bundle.files) | {"injected.safetensors"}
    assert len(made.parity) == 1 + len(TARGETS)
    labels = (tmp_path / "new/triton/classifier_head/labels.txt").read_text().split()
    assert labels[NUM_SEEN : NUM_SEEN + 2] == ["okapi", "zebra"]
    compact(tmp_path / "new", out=tmp_path / "again")
    for name in TARGETS[1:]:
        opened = Device.open(tmp_path / "again", runtime=name)
        batch = images_for(opened, tiny_project)
        assert opened.classes() == device.classes()
        np.testing.assert_allclose(opened.logits(batch).values, device.logits(batch).values, atol=1e-3)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_an_engine_is_built_again_as_its_sidecar_says(tiny_project: TinyProject, tmp_path: Path):
    from exporters.targets.tensorrt.target import settings_of
    from icis_deploy.bundle.target_options import EngineSettings, TargetOptions

    settings = EngineSettings(min_batch=1, opt_batch=2, max_batch=4, compute_capabilities=("8.6",))
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        options=icis_deploy.ExportOptions(
            head="updatable", capacity=6, targets=["tensorrt-rtx"], target_options=TargetOptions(engine=settings)
        ),
        out=tmp_path / "bundle",
    )
    device = Device.open(tmp_path / "bundle")
    device.apply(update_for(device, "okapi", version=1), allow_unsigned=True)
    made = compact(tmp_path / "bundle", out=tmp_path / "new")
    assert settings_of(tmp_path / "new", made) == settings


@pytest.mark.parametrize("out", ["bundle/new", "bundle/some/new", "link/new", "bundle/link/../new"])
def test_no_bundle_is_written_into_the_one_that_it_is_made_of(out: str, tmp_path: Path):
    write_bundle(tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    before = files_in(tmp_path / "bundle")

    with pytest.raises(UsageError, match=r"is within .*bundle, the bundle that is compacted"):
        compact(tmp_path / "bundle", out=tmp_path / out)

    assert files_in(tmp_path / "bundle") == before


def test_a_target_that_this_machine_cannot_build_is_named_before_anything_is_written(
    tiny_project: TinyProject, tmp_path: Path
):
    from exporters.targets.registry import TARGETS as KNOWN
    from icis_deploy.bundle.target_options import TargetOptions

    if KNOWN["tensorrt"].obstacle(TargetOptions()) is None:
        pytest.skip("TensorRT builds engines here")
    from icis_deploy.bundle.manifest import MANIFEST_NAME, file_entry, serialize_manifest

    exported(tiny_project, tmp_path / "bundle")
    engine = tmp_path / "bundle/engines/tensorrt.engine"
    engine.parent.mkdir()
    engine.write_bytes(b"of another machine")
    bundle = load_bundle(tmp_path / "bundle")
    files = {**bundle.files, "engines/tensorrt.engine": file_entry(engine)}
    (tmp_path / "bundle" / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))
    with pytest.raises(MissingDependencyError, match="The target 'tensorrt' cannot be built on this machine"):
        compact(tmp_path / "bundle", out=tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_the_gate_sees_a_row_that_is_not_the_one_it_was(tiny_project: TinyProject, tmp_path: Path):
    device = exported(tiny_project, tmp_path / "bundle")
    device.apply(update_for(device, "okapi", "zebra", version=1), allow_unsigned=True)
    made = compact(tmp_path / "bundle", out=tmp_path / "new")
    table = state_of(device).table
    assert table is not None

    def report(table: SlotTable):
        journal = Store(tmp_path / "bundle").load_journal(device.bundle)
        former = FormerBundle(folder=tmp_path / "bundle", bundle=device.bundle, journal=journal, table=table)
        (found,) = compare_compacted(tmp_path / "new", made, former=former)
        return found

    assert report(table).passed
    swapped = SlotTable(
        weight=table.weight[[1, 0, 2, 3, 4, 5]], bias=table.bias[[1, 0, 2, 3, 4, 5]], class_names=table.class_names
    )
    assert "max_scaled_error" in report(swapped).failures[0]


def test_taught_classes_need_slots(tiny_project: TinyProject, tmp_path: Path):
    device = exported(tiny_project, tmp_path / "bundle")
    for name in ("okapi", "zebra"):
        row = np.ones(FEATURE_DIM + 1, np.float32)
        device._opened.updater.teach(name, lambda _table, row=row: row)
    with pytest.raises(CapacityError, match="was taught 2 classes, which stay in slots; a capacity of 1 does not hold"):
        compact(tmp_path / "bundle", out=tmp_path / "new", capacity=1)
    made = compact(tmp_path / "bundle", out=tmp_path / "new", capacity=2)
    assert (made.capacity, made.class_names) == (2, made.seen_names)
    assert Store(tmp_path / "new").load_journal(made).current.taught == ("okapi", "zebra")


def table_of(seed: int, num_rows: int, *, prefix: str) -> SlotTable:
    weight, bias = rows(seed, num_rows)
    return SlotTable(weight=weight, bias=bias, class_names=tuple(f"{prefix}{index}" for index in range(num_rows)))


@pytest.mark.parametrize("graph", [pytest.param(graph, id=name) for name, graph in GRAPHS.items()])
def test_rows_keep_their_logits_behind_every_kind_of_head(graph: HeadGraph):
    model = graph.model(*rows(1))
    location = find_head(model)
    filled = table_of(2, 3, prefix="new")
    slotted = apply_passes(model, AddSlotsPass(location, 3), SetSlotDefaultsPass(filled.weight, filled.bias))
    before = run_model(slotted, x=graph.images(1))

    slots = empty_slots(2, GRAPH_DIM)
    baked = apply_passes(slotted, BakeRowsPass(num_seen=NUM_CLASSES, baked=filled, slots=slots))

    after = run_model(baked, x=graph.images(1))
    assert list(after) == list(before)
    name = next(iter(before))
    np.testing.assert_allclose(after[name][:, : NUM_CLASSES + 3], before[name], rtol=1e-5, atol=1e-6)
    again = apply_passes(baked, BakeRowsPass(num_seen=NUM_CLASSES, baked=filled, slots=slots))
    assert run_model(again, x=graph.images(1))[name].tobytes() == after[name].tobytes()
    assert sum(node.op_type == "Gemm" for node in again.graph) == sum(node.op_type == "Gemm" for node in baked.graph)


def test_rows_that_are_in_the_head_already_are_not_baked_twice():
    graph = GRAPHS["gemm"]
    weight, bias = rows(1)
    model, former = graph.model(weight, bias), table_of(3, 2, prefix="former")
    all_rows = np.concatenate([np.concatenate([weight, bias[:, None]], axis=1), former.rows()])
    names = tuple(str(index) for index in range(len(all_rows)))
    fused = apply_passes(model, FuseHeadPass(find_head(model), Head(rows=all_rows, class_names=names)))
    slotted = apply_passes(fused, AddSlotsPass(find_head(fused), 2))
    filled = table_of(2, 2, prefix="new")
    joined = SlotTable(
        weight=np.concatenate([former.weight, filled.weight]),
        bias=np.concatenate([former.bias, filled.bias]),
        class_names=(*former.class_names, *filled.class_names),
    )
    with_rows = apply_passes(slotted, SetSlotDefaultsPass(filled.weight, filled.bias))
    before = run_model(with_rows, x=graph.images(1))["logits"]
    baked = apply_passes(slotted, BakeRowsPass(num_seen=NUM_CLASSES, baked=joined, slots=empty_slots(4, GRAPH_DIM)))
    after = run_model(baked, x=graph.images(1))["logits"]
    assert after.shape[1] == NUM_CLASSES + 4 + 4
    np.testing.assert_allclose(after[:, : NUM_CLASSES + 4], before, rtol=1e-6)


def test_a_model_without_slots_is_refused():
    model = GRAPHS["gemm"].model(*rows(1))
    with pytest.raises(IncompatibleError, match="The model has no slots whose logits are joined to those of its head"):
        apply_passes(
            model, BakeRowsPass(num_seen=NUM_CLASSES, baked=table_of(2, 1, prefix="n"), slots=empty_slots(1, GRAPH_DIM))
        )


def test_a_capacity_is_refused_that_leaves_fewer_scores_than_the_model_chooses(
    tiny_project: TinyProject, tmp_path: Path
):
    exported(tiny_project, tmp_path / "bundle", top=NUM_SEEN + 6)
    with pytest.raises(UsageError, match=r"give 45 scores, and it chooses 46 classes itself. Give a larger `capacity`"):
        compact(tmp_path / "bundle", out=tmp_path / "new", capacity=5)
    assert not (tmp_path / "new").exists()
