"""Damage and forge every file that a device reads at its start, and count what it makes of them.

    python scripts/robustness/state_mutations.py --files 4000

A *damaged* file still has the hash stated of it elsewhere, or none; a *forged* one is damaged first and then given the
hashes that make it pass, as somebody with access to the disk could. A bundle that opens in spite of it is put to work:
it answers, changes its classes, takes an update. What counts as wrong is anything raised but an error of icis-deploy,
an answer whose classes and logits do not fit each other, a damaged journal or slot table that opens as another state
than it was, and more than 100 MB. The exit code is 1 if there is any.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.bundle.engine_sidecar import EngineInput, EngineOutput, EngineSidecar, parse_sidecar, serialize_sidecar
from icis_deploy.bundle.few_shot import parse_few_shot, serialize_few_shot
from icis_deploy.bundle.generator_metadata import GeneratorMetadata, Limits, parse_metadata, serialize_metadata
from icis_deploy.bundle.manifest import MANIFEST_NAME, SLOTS_NAME, file_entry
from icis_deploy.bundle.slot_files import parse_slots, serialize_slots
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.slots import SlotTable
from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.operations import classes
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from scripts.robustness.loop import counted, main, say
from scripts.robustness.mutations import MAX_BYTES, change_one, cut, flip_bits, nest, random_bytes, splice
from testing.bundles import FEATURE_DIM, images, make_update, signed_bytes, trust, write_bundle
from testing.references import make_few_shot

_START, _MIDDLE, _END = b'{"journal":', b',"sha256":"', b'"}\n'
_DAMAGES = (flip_bits, cut, splice, random_bytes, nest)
MAX_SECONDS = 20.0

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclass(kw_only=True)
class StateReport:
    """What a device made of damaged and forged files."""

    num_files: int = 0
    """How many were tried."""

    num_refused: int = 0
    """How many were refused with an error of icis-deploy."""

    num_opened: int = 0
    """How many were read: the change has no effect, or whoever forges the file may make it."""

    wrong: list[str] = field(default_factory=list)
    """What should never happen, in words."""

    peak_bytes: int = 0
    """The most memory that one of them took, by Python's and numpy's allocations."""

    def count_wrong(self, what: str) -> None:
        """Keep and print what should never happen."""
        self.wrong.append(what)
        say(what)

    @property
    def is_clean(self) -> bool:
        """Whether none did harm."""
        return not self.wrong and self.peak_bytes <= MAX_BYTES

    @property
    def summary(self) -> str:
        """The counts, on one line."""
        return (
            f"{self.num_files} files: {self.num_refused} refused, {self.num_opened} read, {len(self.wrong)} wrong, "
            f"at most {self.peak_bytes / 1e6:.1f} MB"
        )


class StateTarget:
    """A bundle with a history, and the files of which a device reads every byte."""

    def __init__(self, folder: Path) -> None:
        keys = keygen(folder / "state-key")
        self.folder = write_bundle(folder / "state-bundle", arbiter=True)
        trust(self.folder, keys.public_path)
        device = Device.open(self.folder, num_threads=1)
        self.next_update = signed_bytes(make_update("gnu", version=7), keys.private_path)
        for content in (
            make_update("okapi", "zebra", arbiter=np.ones((2, 5))),
            trusted_keys_from_files([keys.public_path]),
        ):
            device.apply(signed_bytes(content, keys.private_path))
        device._opened.updater.teach("quagga", lambda _table: np.ones(FEATURE_DIM + 1, np.float32))
        device.disable("owl")
        self.good = self._snapshot()
        shutil.copytree(self.folder, folder / "state-copy")
        self._copy = folder / "state-copy"

    def restore(self) -> None:
        """Bring the bundle back to what it was."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._copy, self.folder)

    @property
    def journal(self) -> Path:
        """Its journal."""
        return self.folder / "state" / "journal.json"

    @property
    def slots(self) -> Path:
        """The slot table of its current state."""
        states = json.loads(self.journal.read_bytes())["journal"]["states"]
        return self.folder / "state" / f"slots-{states[-1]['slots']['sha256']}.safetensors"

    def _snapshot(self) -> tuple[Any, ...]:
        device = Device.open(self.folder, num_threads=1)
        return device.version, device.classes(), device.logits(images(2)).values.tobytes()

    def open_and_work(self, *, is_forged: bool) -> None:
        """Open the bundle and do everything with it that a device does.

        Raises:
            AssertionError: If an answer does not fit itself, or a damaged file gave another state.
            ICISDeployError: If it is refused, as it should be.
        """
        found = self._snapshot()
        assert is_forged or found == self.good, "a damaged file opened as another state"
        device = Device.open(self.folder, num_threads=1)
        answer = device.logits(images(2))
        assert len(set(answer.class_names)) == answer.values.shape[1], "classes and logits do not fit each other"
        assert device.predict(images(1), top=3)[0].class_names, "no class was chosen"
        listed = [each.name for each in classes(self.folder).classes if each.is_enabled]
        assert tuple(listed) == device.classes(), "the listing knows other classes than the device"
        changes: tuple[Callable[[], Any], ...] = (
            lambda: device.apply(self.next_update),
            lambda: device._opened.updater.teach("bongo", lambda _table: np.ones(FEATURE_DIM + 1, np.float32)),
            lambda: device.disable(device.classes()[0]),
            lambda: device.enable("owl"),
            device.rollback,
            device.history,
        )
        for change in changes:
            with suppress(ICISDeployError):
                change()
        again = Device.open(self.folder, num_threads=1)
        assert (again.version, again.classes()) == (device.version, device.classes()), "disk and memory differ"


def forged_journal(data: bytes, random: np.random.Generator) -> bytes:
    """Change a value of the journal, and let it state its own hash."""
    document = json.loads(data)["journal"]
    if random.integers(4):
        change_one(document, random)
    else:
        forge = _FORGED_VALUES[random.integers(len(_FORGED_VALUES))]
        document.update(forge(document))
    return signed_journal(document)


def signed_journal(document: Any) -> bytes:
    """Return a journal's bytes with the hash that they must state."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return _START + text + _MIDDLE + hashlib.sha256(text).hexdigest().encode() + _END


_FORGED_VALUES: tuple[Callable[[Any], dict[str, Any]], ...] = (
    lambda _: {"disabled": ["cat", "dog", "owl", "okapi", "zebra", "quagga"]},
    lambda _: {"disabled": ["cat"] * 50},
    lambda _: {"highest_version": -5},
    lambda _: {"highest_version": 1 << 80},
    lambda _: {"trust_version": -1},
    lambda _: {"trusted_keys": []},
    lambda _: {"trusted_keys": ["-----BEGIN PUBLIC KEY-----\nno\n-----END PUBLIC KEY-----\n"]},
    lambda old: {"states": old["states"] * 40},
    lambda old: {"states": [{**old["states"][-1], "version": -3}]},
    lambda old: {"states": [{**old["states"][-1], "version": 1 << 70}]},
    lambda old: {"states": [{**old["states"][-1], "taught": ["nobody", "cat"]}]},
    lambda old: {"states": [{**old["states"][-1], "slots": {"sha256": "0" * 64, "size_bytes": 5}}]},
    lambda old: {"states": [*old["states"][:-1], {**old["states"][-1], "slots": None}]},
    lambda old: {"history": old["history"] * 100},
    lambda _: {"last_seen": "0001-01-01T00:00:00Z"},
    lambda _: {"last_seen": "9999-12-31T23:59:59Z"},
    lambda _: {"base_fingerprint": "0" * 64},
)


def forged_slots(data: bytes, random: np.random.Generator) -> bytes:
    """Make a slot table that is one, and not of this bundle or not of these names."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    fields = json.loads(header["__metadata__"]["slot_table"])
    choices = (
        lambda: fields.update(capacity=int(2 ** random.integers(40))),
        lambda: fields.update(class_names=["cat", *fields["class_names"][1:]]),
        lambda: fields.update(class_names=fields["class_names"][::-1], slots=fields["slots"]),
        lambda: change_one(fields, random),
        lambda: change_one(header, random),
    )
    choice = choices[random.integers(len(choices))]
    choice()
    header["__metadata__"] = (
        {"slot_table": json.dumps(fields)} if choice is not choices[4] else header.get("__metadata__")
    )
    text = json.dumps(header).encode()
    if random.integers(4):
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    narrow = SlotTable(
        weight=np.ones((4, 2), np.float32), bias=np.ones(4, np.float32), class_names=("a", "b", None, None)
    )
    return serialize_slots(narrow)


def forged_manifest(data: bytes, random: np.random.Generator) -> bytes:
    """Change a value of the manifest, which states no hash of itself."""
    document = json.loads(data)
    if random.integers(3):
        change_one(document, random)
    else:
        sizes = ("capacity", "feature_dim", "num_seen", "head_version", "top")
        document[sizes[random.integers(len(sizes))]] = int(2 ** random.integers(70))
        if not random.integers(3):
            document["model_input"] = {**document["model_input"], "shape": [int(2 ** random.integers(40))] * 3}
    return json.dumps(document).encode()


def try_case(target: StateTarget, kind: str, random: np.random.Generator) -> None:
    """Damage or forge one file and open the bundle.

    Raises:
        AssertionError, ICISDeployError: As `StateTarget.open_and_work`.
    """
    damage = _DAMAGES[random.integers(len(_DAMAGES))]
    if kind in PARSERS:
        PARSERS[kind](damage, random, target.folder.parent)
        return
    path = {
        "journal": target.journal,
        "slots": target.slots,
        "manifest": target.folder / MANIFEST_NAME,
        "exported slots": target.folder / SLOTS_NAME,
        "trust": next((target.folder / "trust").iterdir()),
    }[kind]
    data = path.read_bytes()
    is_forged = bool(random.integers(3)) or kind in {"manifest", "trust"}
    forge = {"journal": forged_journal, "slots": forged_slots, "exported slots": forged_slots}.get(kind, damage)
    if kind == "manifest" and random.integers(3):
        forge = forged_manifest
    damaged = (forge if is_forged else damage)(data, random)
    path.write_bytes(damaged)
    if kind == "slots" and is_forged:
        _name_in_journal(target, path, damaged)
    if kind == "trust":
        target.journal.unlink()  # which has keys of its own
    if kind == "exported slots" and is_forged:
        target.journal.unlink()
        manifest = json.loads((target.folder / MANIFEST_NAME).read_bytes())
        manifest["files"][SLOTS_NAME] = asdict(file_entry(path))
        (target.folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    target.open_and_work(is_forged=is_forged or damaged == data)


def _name_in_journal(target: StateTarget, path: Path, data: bytes) -> None:
    document = json.loads(target.journal.read_bytes())["journal"]
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    document["states"][-1]["slots"] = entry
    path.rename(path.with_name(f"slots-{entry['sha256']}.safetensors"))
    target.journal.write_bytes(signed_journal(document))


def _damaged_text(good: bytes, damage: Mutation, random: np.random.Generator) -> bytes:
    if random.integers(2):
        return damage(good, random)
    document = json.loads(good)
    change_one(document, random)
    return json.dumps(document).encode()


def _try_sidecar(damage: Mutation, random: np.random.Generator, _folder: Path) -> None:
    shapes = {"min_shape": (1, 3, 8, 8), "opt_shape": (1, 3, 8, 8), "max_shape": (4, 3, 8, 8)}
    sidecar = EngineSidecar(
        runtime="tensorrt",
        runtime_version="10.3.0",
        precision="fp32",
        platform="linux-x86_64",
        compute_capabilities=("8.6",),
        hardware_compatibility="none",
        model_sha256="0" * 64,
        engine_sha256="1" * 64,
        head_fingerprint="2" * 64,
        inputs=(EngineInput(name="image", dtype="float32", **shapes),),
        outputs=(EngineOutput(name="logits", dtype="float32", shape=(-1, 5)),),
        refittable=(),
        created_by="0",
    )
    parse_sidecar(_damaged_text(serialize_sidecar(sidecar), damage, random))


def _try_metadata(damage: Mutation, random: np.random.Generator, _folder: Path) -> None:
    limits = dict.fromkeys(("row_length", "row_cosine", "descriptor_length", "similarity"), Limits(low=0.1, high=2.0))
    metadata = GeneratorMetadata(base_fingerprint="0" * 64, method="ridge", descriptor_dim=8, feature_dim=4, **limits)
    parse_metadata(_damaged_text(serialize_metadata(metadata).encode(), damage, random).decode("utf-8", "replace"))


def _try_preprocessing(damage: Mutation, random: np.random.Generator, folder: Path) -> None:
    settings = Preprocessing(resize=9, crop=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    path = folder / "preprocess.json"
    path.write_bytes(_damaged_text(json.dumps(settings.to_json()).encode(), damage, random))
    load_preprocessing(path)


def _try_injected(damage: Mutation, random: np.random.Generator, _folder: Path) -> None:
    table = SlotTable(weight=np.ones((2, 4), np.float32), bias=np.ones(2, np.float32), class_names=("okapi", "zebra"))
    data = serialize_slots(table)
    parse_slots((damage if random.integers(2) else forged_slots)(data, random), capacity=2, feature_dim=4)


def _try_few_shot(damage: Mutation, random: np.random.Generator, _folder: Path) -> None:
    parse_few_shot(damage(serialize_few_shot(make_few_shot()), random), feature_dim=FEATURE_DIM)


PARSERS: dict[str, Callable[[Mutation, np.random.Generator, Path], None]] = {
    "sidecar": _try_sidecar,
    "generator's metadata": _try_metadata,
    "preprocess.json": _try_preprocessing,
    "injected rows": _try_injected,
    "few_shot.safetensors": _try_few_shot,
}
"""Files that are read by one function, with what damages and reads one."""

KINDS = ("journal", "slots", "manifest", "journal", "exported slots", "trust", *PARSERS)


def run_state_mutations(folder: Path, num_files: int, *, seed: int) -> StateReport:
    """Try `num_files` damaged and forged files; the bundle is made in `folder`."""
    target, report = StateTarget(folder), StateReport()
    tracemalloc.start()
    try:
        for index in counted(num_files, "files"):
            kind = KINDS[index % len(KINDS)]
            count_case(target, kind, np.random.default_rng((seed, index)), report, where=f"{kind}, case {index}")
    finally:
        tracemalloc.stop()
    return report


def count_case(target: StateTarget, kind: str, random: np.random.Generator, report: StateReport, *, where: str) -> None:
    """Try one file and count what came of it."""
    report.num_files += 1
    target.restore()
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.monotonic()
    try:
        try_case(target, kind, random)
        report.num_opened += 1
    except ICISDeployError as error:
        report.num_refused += 1
        if "\n" in str(error) or len(str(error)) > 2000:
            report.count_wrong(f"{where}: a message of {len(str(error))} characters, or of several lines")
    except Exception as error:  # whatever it is, it is no answer
        report.count_wrong(f"{where}: {type(error).__name__}: {error}")
    peak = tracemalloc.get_traced_memory()[1] - before
    report.peak_bytes = max(report.peak_bytes, peak)
    if peak > MAX_BYTES:
        report.count_wrong(f"{where}: {peak / 1e6:.0f} MB")
    if time.monotonic() - start > MAX_SECONDS:
        report.count_wrong(f"{where}: took longer than {MAX_SECONDS:.0f} s")


if __name__ == "__main__":
    raise SystemExit(main(run_state_mutations, description=__doc__, unit="files", default=4_000))
