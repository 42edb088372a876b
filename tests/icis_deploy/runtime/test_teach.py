"""A device is taught a class from its descriptor: usual ones are taken, others refused, and updates still apply."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.generator.writing import write_generator
from icis_deploy.bundle.generator_metadata import METADATA_KEY, ROWS, parse_metadata, serialize_metadata
from icis_deploy.bundle.manifest import MANIFEST_NAME, file_entry, load_manifest, serialize_manifest
from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
from icis_deploy.errors import (
    CapacityError,
    ClassConflictError,
    CorruptFileError,
    DescriptorError,
    IncompatibleError,
    MissingDependencyError,
    ModelLoadError,
    OutlierError,
    RuntimeFailureError,
    SelfTestError,
    VersionRollbackError,
    WrongBaseError,
)
from icis_deploy.head.head import Head
from icis_deploy.injection.inject import inject
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.rows.calibration import Injector
from icis_deploy.runtime.device import Device, session_of, state_of
from icis_deploy.runtime.state.journal import parse_journal, serialize_journal
from icis_deploy.runtime.teaching.generator import load_generator
from icis_deploy.updates.signing import KeyPair
from testing.bundles import (
    FEATURE_DIM,
    files_in,
    images,
    make_update,
    new_logits,
    seen_head,
    signed_bytes,
    trust,
    write_bundle,
)

DESCRIPTOR_DIM, NUM_SEEN = 8, 12


def head_and_descriptors() -> tuple[Head, Descriptors]:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(NUM_SEEN + 3, DESCRIPTOR_DIM)).astype(np.float32)
    rows = values @ rng.normal(size=(DESCRIPTOR_DIM, FEATURE_DIM + 1))
    names = (*(f"seen {index}" for index in range(NUM_SEEN)), "okapi", "quagga", "zebu")
    return Head(rows=rows[:NUM_SEEN], class_names=names[:NUM_SEEN]), Descriptors(values=values, class_names=names)


HEAD, DESCRIPTORS = head_and_descriptors()


def described(name: str) -> np.ndarray:
    return DESCRIPTORS.select((name,)).values[0]


def unlike_all() -> np.ndarray:
    """A descriptor of usual length that points away from all seen ones."""
    seen = DESCRIPTORS.values[:NUM_SEEN]
    centred = seen - seen.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    directions = np.random.default_rng(0).normal(size=(5000, DESCRIPTOR_DIM))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    least = directions[(directions @ centred.T).max(axis=1).argmin()]
    return seen.mean(axis=0) + least * np.linalg.norm(seen, axis=1).mean()


def add_generator(folder: Path, *, head: Head = HEAD, arbiter: tuple[float, ...] | None = None) -> Injector:
    injector = inject(HEAD, DESCRIPTORS, options=InjectionOptions(method="ridge", calibration="length")).injector
    write_generator(
        folder / "generator.onnx",
        injector,
        head=head,
        seen_descriptors=DESCRIPTORS.values[:NUM_SEEN],
        unseen_descriptors=DESCRIPTORS.values[NUM_SEEN:],
        method="ridge",
    )
    if arbiter is not None:
        state_arbiter(folder / "generator.onnx", arbiter)
    bundle = load_manifest(folder)
    files = {**bundle.files, "generator.onnx": file_entry(folder / "generator.onnx")}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))
    return injector


def state_arbiter(path: Path, arbiter: tuple[float, ...]) -> None:
    """Let a generator's metadata state the coefficients of its rows."""
    model = onnx.load(path)
    (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    entry.value = serialize_metadata(replace(parse_metadata(entry.value), arbiter=arbiter))
    onnx.save(model, path)


@pytest.fixture
def teachable(tmp_path: Path, keys: KeyPair) -> Path:
    """A bundle of twelve seen classes and three slots, with a generator."""
    folder = write_bundle(tmp_path / "teachable", capacity=3, head=HEAD)
    trust(folder, keys.public_path)
    add_generator(folder)
    return folder


def update(*added: str, version: int = 1, **fields: object) -> object:
    return make_update(*added, version=version, base_fingerprint=HEAD.fingerprint, **fields)


def test_a_taught_class_answers_with_the_row_of_the_injector(teachable: Path) -> None:
    injector = add_generator(teachable)
    device = Device.open(teachable)
    entry = device.teach("okapi", described("okapi"))
    assert (entry.action, entry.class_name, entry.version, entry.signed_by) == ("teach", "okapi", 0, None)
    assert device.classes() == (*HEAD.class_names, "okapi")
    expected = injector.rows(described("okapi")[None])[0]
    output = session_of(device).run(images(), state_of(device).buffers, with_features=True)
    np.testing.assert_allclose(
        output.logits[:, NUM_SEEN], output.features @ expected[:-1] + expected[-1], rtol=1e-3, atol=1e-3
    )
    assert Device.open(teachable).classes() == device.classes()


def test_the_guard_hears_whether_an_operator_allows_what_a_taught_class_changes(
    teachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, allowed = Device.open(teachable), []
    limits = device._opened.updater.limits
    judged = limits.judged

    def listen(*arguments: object, **options: object) -> object:
        allowed.append(options["allowed"])
        return judged(*arguments, **options)

    monkeypatch.setattr(limits, "judged", listen)
    device.teach("okapi", described("okapi"))
    device.teach("quagga", described("quagga"), allow_changed_answers=True)
    assert allowed == [False, True]


def test_what_is_disabled_stays_so_when_a_class_is_taught_and_rolled_back(teachable: Path) -> None:
    device = Device.open(teachable)
    switched_off = device.classes()[0]
    device.disable(switched_off)

    device.teach("okapi", described("okapi"))
    assert device.disabled_classes() == (switched_off,)
    device.rollback()
    assert device.disabled_classes() == (switched_off,)


def test_a_taught_class_is_rolled_back_like_an_update(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"))
    device.teach("quagga", described("quagga"))
    assert device.rollback().action == "rollback"
    assert device.classes() == (*HEAD.class_names, "okapi")
    assert device.rollback().version == 0
    assert device.classes() == HEAD.class_names


def test_a_version_stays_spent_after_a_rollback_and_a_taught_class(teachable: Path, keys: KeyPair) -> None:
    device = Device.open(teachable)
    spent = signed_bytes(update("zebu", version=3), keys.private_path)
    device.apply(spent)
    device.rollback()
    device.teach("okapi", described("okapi"))
    before = files_in(teachable)

    with pytest.raises(VersionRollbackError, match=r"has version 3; this device has held version 3"):
        device.apply(spent)
    assert files_in(teachable) == before


def test_one_wrong_bit_of_a_taught_row_is_noticed(teachable: Path) -> None:
    device = Device.open(teachable)
    session, before = session_of(device), files_in(teachable)

    class Damaged:
        """A session whose memory loses the sign of a number."""

        run, read_slots = session.run, session.read_slots

        def load_slots(self, weight: np.ndarray, bias: np.ndarray, arbiter: np.ndarray | None = None) -> object:
            wrong = bias.copy()
            wrong[0] = -wrong[0]
            # As where the runtime reads the table's own arrays, the table is wrong as well.
            bias.flags.writeable = True
            bias[...] = wrong
            return session.load_slots(weight, bias, arbiter)

    other = Device(folder=teachable, bundle=device.bundle, session=Damaged(), state=state_of(device))
    with pytest.raises(SelfTestError, match=r"1 of \d+ slots do not hold their rows .*: 'okapi'\."):
        other.teach("okapi", described("okapi"))
    assert files_in(teachable) == before


def test_a_signed_update_applies_after_teaching_and_keeps_other_taught_classes(teachable: Path, keys: KeyPair) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"))
    device.teach("quagga", described("quagga"))
    device.apply(signed_bytes(update("okapi", version=1), keys.private_path))
    assert device.version == 1
    assert sorted(device.classes()[NUM_SEEN:]) == ["okapi", "quagga"]
    row = update("okapi", version=1).rows[0]
    slot = state_of(device).table.class_names.index("okapi")
    np.testing.assert_array_equal(state_of(device).table.weight[slot], row[:-1])
    # The publisher's class is no taught one any more: a second teaching does not touch it, the other one may go.
    with pytest.raises(ClassConflictError, match=r"already knows it\. Teach it under another name, or replace it by a"):
        device.teach("okapi", described("okapi"))
    with pytest.raises(ClassConflictError, match=r"already knows it\. Teach it under another name\.$"):
        device.teach(HEAD.class_names[0], described("okapi"))
    device.teach("quagga", described("zebu"))
    device.apply(signed_bytes(update(version=2, removed=("quagga",)), keys.private_path))
    assert device.classes()[NUM_SEEN:] == ("okapi",)


def test_a_class_is_taught_anew_in_its_slot(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"))
    before = state_of(device).table
    entry = device.teach("okapi", described("quagga"))
    assert (entry.num_added, entry.num_replaced) == (0, 1)
    assert state_of(device).table.class_names == before.class_names
    assert not np.array_equal(state_of(device).table.weight, before.weight)


def test_teaching_stops_at_the_last_slot(teachable: Path) -> None:
    device = Device.open(teachable)
    for name in ("okapi", "quagga", "zebu"):
        device.teach(name, described(name))
    with pytest.raises(CapacityError, match="3 slots, 3 used"):
        device.teach("fourth", (described("okapi") + described("quagga")) / 2)


@pytest.mark.parametrize(
    ("descriptor", "error", "words"),
    [
        (np.ones(5), DescriptorError, r"has shape \(5,\); expected 8 finite numbers"),
        (np.full(8, np.nan), DescriptorError, r"holds nan at 0; expected 8 finite numbers"),
        (np.r_[np.ones(7), 1e300], DescriptorError, r"holds inf at 7; expected 8 finite numbers of float32"),
        (["a"] * 8, DescriptorError, r"is no vector of numbers"),
        (described("okapi") * 100, OutlierError, r"'new' was not taught: the length of its descriptor is .* lies in"),
        (unlike_all(), OutlierError, r"no seen class is like it. The most similar one is 'seen \d+'"),
        (described("seen 4"), ClassConflictError, r"described like 'seen 4' \(cosine 1\.000\)"),
    ],
)
def test_what_is_unlike_the_seen_classes_is_refused_and_no_byte_changes(
    descriptor: object, error: type[Exception], words: str, teachable: Path
) -> None:
    device, before = Device.open(teachable), files_in(teachable)
    with pytest.raises(error, match=words):
        device.teach("new", descriptor)
    assert files_in(teachable) == before
    assert device.classes() == HEAD.class_names


def test_a_row_outside_the_seen_lengths_or_angles_is_refused(teachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = importlib.import_module("icis_deploy.runtime.teaching.generator")
    run, changes = runtime.Generator.run, [lambda rows, _mean: rows * 10, lambda _rows, mean: -mean[None]]
    for change, words in zip(changes, ("length of its row", "cosine of its row with the mean row"), strict=True):
        monkeypatch.setattr(
            runtime.Generator,
            "run",
            lambda self, given, change=change: (
                (found := dict(run(self, given))) | {"rows": change(found["rows"], found["mean_row"])}
            ),
        )
        with pytest.raises(OutlierError, match=f"the {words} is"):
            Device.open(teachable).teach("okapi", described("okapi"))


def test_a_class_described_like_one_in_a_slot_is_refused_by_its_name(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"))
    with pytest.raises(ClassConflictError, match=r"'forest giraffe' .* described like 'okapi' \(cosine 1\.000\)"):
        device.teach("forest giraffe", described("okapi"))


def test_a_bundle_without_a_generator_or_with_anothers_says_so(tmp_path: Path) -> None:
    bare = write_bundle(tmp_path / "bare", head=HEAD)
    with pytest.raises(IncompatibleError, match=r"has no generator\.onnx, so it cannot be taught"):
        Device.open(bare).teach("okapi", described("okapi"))
    add_generator(bare, head=HEAD.expand(np.ones((1, FEATURE_DIM + 1)), ["one more"]))
    with pytest.raises(WrongBaseError, match="The generator was made for the head"):
        Device.open(bare).teach("okapi", described("okapi"))


def test_a_damaged_generator_is_refused(teachable: Path) -> None:
    device = Device.open(teachable)
    data = bytearray((teachable / "generator.onnx").read_bytes())
    data[-1] ^= 1
    (teachable / "generator.onnx").write_bytes(data)
    with pytest.raises(CorruptFileError, match="the manifest states"):
        device.teach("okapi", described("okapi"))


def restate(folder: Path) -> None:
    """Let the manifest state the generator as it is now."""
    bundle = load_manifest(folder)
    files = {**bundle.files, "generator.onnx": file_entry(folder / "generator.onnx")}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))


def test_what_is_no_generator_is_refused_by_name(teachable: Path) -> None:
    path, before = teachable / "generator.onnx", files_in(teachable)
    for data, message in (
        (b"not a model", rf"^ONNX Runtime cannot load {path}: "),
        ((teachable / "model.onnx").read_bytes(), rf"^{path} is no generator\. `export_generator\(\)` writes one"),
    ):
        path.write_bytes(data)
        restate(teachable)
        before = files_in(teachable)
        with pytest.raises(ModelLoadError, match=message) as raised:
            Device.open(teachable).teach("okapi", described("okapi"))
        assert raised.value.where == str(path)
        assert files_in(teachable) == before
    with pytest.raises(ModelLoadError, match=r"^what was uploaded is no generator"):
        load_generator((teachable / "model.onnx").read_bytes(), where="what was uploaded")


def test_a_generator_whose_rows_have_another_width_teaches_nothing(teachable: Path) -> None:
    """Whoever wrote it stated this bundle's head, and gives rows for another."""
    path = teachable / "generator.onnx"
    model = onnx.load(path)
    at, node = next((at, node) for at, node in enumerate(model.graph.node) if ROWS in node.output)
    node.output[list(node.output).index(ROWS)] = "once"
    model.graph.node.insert(at + 1, onnx.helper.make_node("Concat", ["once", "once"], [ROWS], axis=1))
    output = next(each for each in model.graph.output if each.name == ROWS)
    output.type.tensor_type.shape.dim[1].dim_value = 2 * (FEATURE_DIM + 1)
    onnx.save(model, path)
    restate(teachable)
    before = files_in(teachable)

    with pytest.raises(CorruptFileError, match=r"^The generator gives no row of this bundle's width\.") as raised:
        Device.open(teachable).teach("okapi", described("okapi"))
    assert (raised.value.found, raised.value.expected) == ((2 * (FEATURE_DIM + 1),), (FEATURE_DIM + 1,))
    assert files_in(teachable) == before


def test_a_generator_that_fails_is_an_error_in_the_runtimes_own_words(teachable: Path) -> None:
    generator = load_generator(teachable / "generator.onnx")
    with pytest.raises(RuntimeFailureError, match=r"^The generator failed on a descriptor: .*[Ii]nvalid"):
        generator.run(np.zeros((1, DESCRIPTOR_DIM + 1), np.float32))


def test_a_device_without_onnx_runtime_says_what_to_install_before_it_teaches(
    teachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"^Making a row needs ONNX Runtime\. .*'icis-deploy\[cpu\]'"):
        load_generator(teachable / "generator.onnx")


def test_a_fused_head_cannot_be_taught(tmp_path: Path) -> None:
    fused = write_bundle(tmp_path / "fused", capacity=0, head=seen_head())
    with pytest.raises(IncompatibleError, match="cannot be taught"):
        Device.open(fused).teach("okapi", described("okapi"))

    with_generator = write_bundle(tmp_path / "with generator", capacity=0, head=HEAD)
    add_generator(with_generator)
    before = files_in(with_generator)
    with pytest.raises(IncompatibleError, match=r"^The bundle's head is fused: it has no slots to teach a class in\."):
        Device.open(with_generator).teach("okapi", described("okapi"))
    assert files_in(with_generator) == before


def test_a_journal_keeps_the_taught_classes_and_is_as_before_without(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"))
    data = (teachable / "state" / "journal.json").read_bytes()
    journal = parse_journal(data)
    assert journal.current.taught == ("okapi",)
    assert serialize_journal(journal) == data
    assert b'{"slots":null,"version":0}' in data


def test_a_generator_is_loaded_once_and_again_when_its_file_was_touched(teachable: Path) -> None:
    device = Device.open(teachable)
    device.teach("okapi", described("okapi"))
    kept = device._opened.generator.load()
    assert device._opened.generator.load() is kept
    path = teachable / "generator.onnx"
    good = path.read_bytes()
    path.write_bytes(good)
    assert device._opened.generator.load() is not kept
    damaged = bytearray(good)
    damaged[-1] ^= 1
    times = path.stat()
    path.write_bytes(damaged)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nobody had written
    before = files_in(teachable)
    with pytest.raises(CorruptFileError, match="the manifest states"):
        device.teach("quagga", described("quagga"))
    assert files_in(teachable) == before
    path.write_bytes(good)
    device.teach("quagga", described("quagga"))


# A generator whose rows have an arbiter.

COEFFICIENTS = tuple(np.array([0.25, -0.5, 1.0, 0.5, -2.0], np.float32).tolist())


@pytest.fixture
def teachable_with_arbiter(tmp_path: Path, keys: KeyPair) -> Path:
    """A bundle whose model takes arbiters, with a generator that states the coefficients of its rows."""
    folder = write_bundle(tmp_path / "with-arbiter", capacity=3, head=HEAD, arbiter=True)
    trust(folder, keys.public_path)
    add_generator(folder, arbiter=COEFFICIENTS)
    return folder


def test_a_taught_class_has_the_arbiter_of_its_generator_next_to_those_of_updates(
    teachable_with_arbiter: Path, keys: KeyPair
) -> None:
    device = Device.open(teachable_with_arbiter)
    injector = add_generator(teachable_with_arbiter, arbiter=COEFFICIENTS)
    device.apply(signed_bytes(update("zebu", arbiter=np.ones((1, 5))), keys.private_path))
    device.apply(signed_bytes(update("gnu", version=2), keys.private_path))
    device.teach("okapi", described("okapi"))

    np.testing.assert_array_equal(
        state_of(device).table.coefficients, np.array([np.ones(5), np.zeros(5), COEFFICIENTS], np.float32)
    )
    row = injector.rows(described("okapi")[None])
    found = device.logits(images()).values[:, -1:]
    expected = new_logits(images(), row, np.array([COEFFICIENTS]), head=HEAD)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(Device.open(teachable_with_arbiter).logits(images()).values[:, -1:], found)
    device.rollback()
    assert not state_of(device).table.coefficients[2].any()


def test_a_class_that_is_taught_anew_has_the_arbiter_once(teachable_with_arbiter: Path) -> None:
    device = Device.open(teachable_with_arbiter)
    device.teach("okapi", described("okapi"))
    device.teach("okapi", described("quagga"))

    np.testing.assert_array_equal(state_of(device).table.coefficients[0], np.array(COEFFICIENTS, np.float32))
    assert not state_of(device).table.coefficients[1:].any()


def test_a_generator_without_an_arbiter_teaches_classes_with_constant_offsets(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "with-arbiter", capacity=3, head=HEAD, arbiter=True)
    add_generator(folder)
    device = Device.open(folder)
    device.teach("okapi", described("okapi"))

    assert state_of(device).table.arbiter is None


def test_a_model_that_takes_no_arbiter_is_not_taught_by_a_generator_that_states_one(teachable: Path) -> None:
    add_generator(teachable, arbiter=COEFFICIENTS)
    device, before = Device.open(teachable), files_in(teachable)
    with pytest.raises(
        IncompatibleError,
        match=r"^The rows of 'okapi' have an arbiter, and this bundle's model takes none\. Export it again with "
        r"`arbiter='auto'`, or apply a class update\.$",
    ):
        device.teach("okapi", described("okapi"))
    assert files_in(teachable) == before
    assert device.classes() == HEAD.class_names


# --- generators of several blocks ---------------------------------------------------------------------------------


def blocks_of(descriptors: Descriptors) -> tuple[Head, Descriptors]:
    """Return a head that follows from the descriptors and from tags, and both as blocks; the okapi has no tags."""
    rng = np.random.default_rng(11)
    hidden = rng.normal(size=(descriptors.num_classes, 4))
    rows = descriptors.values @ rng.normal(size=(DESCRIPTOR_DIM, FEATURE_DIM + 1))
    rows = rows + 2.0 * hidden @ rng.normal(size=(4, FEATURE_DIM + 1))
    tags = 100.0 * (hidden @ rng.normal(size=(4, 30)) > 0.0)
    names = descriptors.class_names
    parts = [
        Descriptors(values=descriptors.values, class_names=names, blocks=(DescriptorBlock("vectors", DESCRIPTOR_DIM),)),
        Descriptors(values=tags, class_names=names, blocks=(DescriptorBlock("tags", 30),)).select(
            [name for name in names if name != "okapi"]
        ),
    ]
    return Head(rows=rows[:NUM_SEEN], class_names=names[:NUM_SEEN]), Descriptors.merged(parts)


@pytest.fixture
def of_blocks(tmp_path: Path) -> tuple[Path, Injector, Descriptors]:
    """A bundle whose generator takes two blocks, the injector that it was written from, and descriptors."""
    head, descriptors = blocks_of(DESCRIPTORS)
    folder = write_bundle(tmp_path / "teachable", capacity=3, head=head)
    injection = inject(head, descriptors, options=InjectionOptions(method="ridge", calibration="length"))
    assert min(block.weight for block in injection.blocks) > 0.0
    write_generator(
        folder / "generator.onnx",
        injection.injector,
        head=head,
        seen_descriptors=descriptors.select(head.class_names).values,
        unseen_descriptors=descriptors.select(injection.class_names).values,
        method="ridge",
    )
    bundle = load_manifest(folder)
    files = {**bundle.files, "generator.onnx": file_entry(folder / "generator.onnx")}
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(replace(bundle, files=files)))
    return folder, injection.injector, descriptors


def parts_of(descriptors: Descriptors, name: str) -> dict[str, np.ndarray]:
    one = descriptors.select((name,))
    return {block.name: one.block(block.name)[0] for block in one.blocks}


@pytest.mark.parametrize("name", ["okapi", "quagga"])
def test_a_class_is_taught_from_its_blocks_in_any_order_and_without_one_that_says_nothing(
    of_blocks: tuple[Path, Injector, Descriptors], name: str
) -> None:
    folder, injector, descriptors = of_blocks
    flat = descriptors.select((name,)).values
    expected = injector.rows(flat)[0]
    parts = {block: part for block, part in reversed(parts_of(descriptors, name).items()) if part.any()}
    assert ("tags" in parts) == (name != "okapi")
    for descriptor in (flat[0], parts):
        device = Device.open(folder)
        device.teach(name, descriptor)
        output = session_of(device).run(images(), state_of(device).buffers, with_features=True)
        np.testing.assert_allclose(
            output.logits[:, NUM_SEEN], output.features @ expected[:-1] + expected[-1], rtol=1e-3, atol=1e-3
        )
        device.rollback()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": np.ones(3)}, "has a block 'colours'; the generator takes the blocks 'vectors', 'tags'"),
        ({"tags": np.ones(29)}, r"has shape \(29,\) in block 'tags'; expected 30 finite numbers"),
        ({"tags": ["red"]}, "in block 'tags' is no vector of numbers"),
        ({"vectors": np.zeros(8), "tags": np.zeros(30)}, "says nothing in the blocks that rows are made of"),
    ],
)
def test_blocks_that_the_generator_does_not_take_are_refused(
    of_blocks: tuple[Path, Injector, Descriptors], change: dict[str, np.ndarray], message: str
) -> None:
    folder, _, descriptors = of_blocks
    before = files_in(folder)
    with pytest.raises(DescriptorError, match=message):
        Device.open(folder).teach("quagga", parts_of(descriptors, "quagga") | change)
    assert files_in(folder) == before


def test_a_block_of_another_scale_is_refused_by_name(of_blocks: tuple[Path, Injector, Descriptors]) -> None:
    folder, _, descriptors = of_blocks
    parts = parts_of(descriptors, "quagga")
    with pytest.raises(OutlierError, match="length of its descriptor in block 'tags' is"):
        Device.open(folder).teach("quagga", parts | {"tags": parts["tags"] / 100.0})


def test_a_generator_of_one_block_takes_one_under_any_name_and_no_two(teachable: Path) -> None:
    device = Device.open(teachable)
    with pytest.raises(DescriptorError, match="the generator takes descriptors of one block, as one vector"):
        device.teach("okapi", {"vectors": described("okapi"), "tags": np.ones(3)})
    device.teach("okapi", {"vectors": described("okapi")})
    assert device.classes() == (*HEAD.class_names, "okapi")
