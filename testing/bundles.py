"""Small bundles written by hand, and class updates for them.

The model is a matrix product and a ReLU, four features wide; its head has three seen classes and, if it is updatable,
some slots. With an arbiter it also computes the statistics of the seen logits and the features.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icis_deploy.bundle.arbiter_constants import serialize_row_lengths
from icis_deploy.bundle.manifest import (
    ARBITER_NAME,
    INJECTED_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    SLOTS_NAME,
    Bundle,
    ModelInput,
    file_entry,
    load_bundle,
    serialize_manifest,
)
from icis_deploy.bundle.slot_files import serialize_slots
from icis_deploy.common.arrays import Float32, Float64
from icis_deploy.head.arbiter import deviation_lengths
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.updates.envelope import envelope_of, save_update, serialize_envelope
from icis_deploy.updates.signing import load_private_key, sign
from icis_deploy.updates.trusted_keys import TrustedKeys

INPUT_DIM, FEATURE_DIM, SEEN_NAMES = 6, 4, ("cat", "dog", "owl")

UPDATABLE = """
<ir_version: 8, opset_import: ["" : 20]>
updatable (float[batch, 6] image, float[{capacity}, 4] slot_weight, float[{capacity}] slot_bias)
  => (float[batch, outputs] {output}, float[batch, 4] features)
{{
  hidden = MatMul (image, backbone)
  features = Relu (hidden)
  seen = Gemm <transB = 1> (features, head_weight, head_bias)
  slots = Gemm <transB = 1> (features, slot_weight, slot_bias)
  {joined} = Concat <axis = 1> (seen, slots)
  {tail}
}}
"""
FUSED = """
<ir_version: 8, opset_import: ["" : 20]>
fused (float[batch, 6] image) => (float[batch, 3] logits)
{{
  hidden = MatMul (image, backbone)
  features = Relu (hidden)
  logits = Gemm <transB = 1> (features, head_weight, head_bias)
}}
"""
ARBITER = """
<ir_version: 8, opset_import: ["" : 20]>
arbitrated ({inputs}) => (float[batch, outputs] {output}, float[batch, 4] features)
<int64[1] axis = {{1}}, float tiny = {{1e-12}}>
{{
  hidden = MatMul (image, backbone)
  features = Relu (hidden)
  seen = Gemm <transB = 1> (features, head_weight, head_bias)
  top_logit = ReduceMax (seen, axis)
  mean_logit = ReduceMean (seen, axis)
  centred = Sub (seen, mean_logit)
  squares = Mul (centred, centred)
  variance = ReduceMean (squares, axis)
  some_variance = Max (variance, tiny)
  log_variance = Log (some_variance)
  squared_length = ReduceSumSquare (features, axis)
  some_length = Max (squared_length, tiny)
  log_squared_length = Log (some_length)
  top_class = ArgMax <axis = 1> (seen)
  top_deviation = Gather (row_lengths, top_class)
  statistics = Concat <axis = 1> (top_logit, mean_logit, log_variance, log_squared_length, top_deviation)
  {new}
  {joined} = Concat <axis = 1> ({parts})
  {tail}
}}
"""
NEW = """
  {kind}_plain = Gemm <transB = 1> (features, {kind}_weight, {kind}_bias)
  {kind} = Gemm <transB = 1> (statistics, {kind}_arbiter, {kind}_plain)
"""
"""Logits of new classes that have an arbiter: `slot` or `baked`."""

TAILS = {
    "logits": ("logits", "logits", ""),
    "probabilities": ("joined", "probabilities", "probabilities = Softmax <axis = 1> (joined)"),
    "log-probabilities": ("joined", "scores", "scores = LogSoftmax <axis = 1> (joined)"),
}


def seen_head(seed: int = 0) -> Head:
    """Return a head of the three seen classes with random rows, `(3, 5)`."""
    rows = np.random.default_rng(seed).normal(size=(len(SEEN_NAMES), FEATURE_DIM + 1)).astype(np.float32)
    return Head(rows=rows, class_names=SEEN_NAMES)


def backbone() -> Float32:
    """Return the backbone's matrix, `(6, 4)`."""
    return np.random.default_rng(7).normal(size=(INPUT_DIM, FEATURE_DIM)).astype(np.float32)


def features_of(images: Float32) -> Float64:
    """Return the features that the models here compute of images `(batch, 6)`: `(batch, 4)`."""
    return np.maximum(images.astype(np.float64) @ backbone().astype(np.float64), 0.0)


def new_logits(
    images: Float32, rows: ArrayLike, arbiter: ArrayLike, *, head: Head | None = None, disabled: Sequence[str] = ()
) -> Float64:
    """Return the logits of new classes, `(batch, num_new)`, as a device must give them.

    Args:
        images: `(batch, 6)`.
        rows: `(num_new, 5)`.
        arbiter: `(num_new, 5)`: their coefficients.
        head: The seen classes; by default `seen_head()`.
        disabled: Seen classes that take no part in the statistics, of which two others must be left.
    """
    head, features = seen_head() if head is None else head, features_of(images)
    part = np.array([name not in disabled for name in head.class_names])
    seen = head.logits(features)[:, part]
    deviations = np.linalg.norm(head.rows - head.rows.mean(axis=0), axis=1)[part]
    statistics = np.stack(
        [
            seen.max(axis=1),
            seen.mean(axis=1),
            np.log(np.maximum(seen.var(axis=1), 1e-12)),
            np.log(np.maximum(np.square(features).sum(axis=1), 1e-12)),
            deviations[seen.argmax(axis=1)],
        ],
        axis=1,
    )
    weight, bias = np.asarray(rows, dtype=np.float64)[:, :-1], np.asarray(rows, dtype=np.float64)[:, -1]
    return np.asarray(features @ weight.T + bias + statistics @ np.asarray(arbiter, dtype=np.float64).T)


def write_bundle(
    folder: Path,
    *,
    capacity: int = 4,
    head: Head | None = None,
    score_kind: str = "logits",
    head_version: int = 0,
    table: SlotTable | None = None,
    arbiter: bool = False,
    baked: SlotTable | None = None,
    written_at: datetime | None = None,
) -> Path:
    """Write a bundle to a new folder and return the folder.

    Args:
        folder: Must not exist.
        capacity: Number of slots; 0 gives a fused head.
        head: The seen classes, four features wide; by default `seen_head()`.
        score_kind: A key of `TAILS`: what the model returns. A fused head without an arbiter returns logits.
        head_version: Version of the last class update that the export contains; 0 for none.
        table: What the slots hold when the bundle is exported; by default all are empty.
        arbiter: Whether the model adds an arbiter's offsets to the logits of new classes.
        baked: New classes in the baked part of the head, if it has an arbiter.
        written_at: What its manifest says of when it was written; by default nothing, as in earlier releases.
    """
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    head = seen_head() if head is None else head
    table = empty_slots(capacity, FEATURE_DIM) if table is None and capacity else table
    folder.mkdir()
    text = _arbiter_text(capacity, score_kind, has_baked=baked is not None) if arbiter else _text(capacity, score_kind)
    model = onnx.parser.parse_model(text)
    tensors = {"backbone": backbone(), "head_weight": head.weight, "head_bias": head.bias}
    if table is not None:
        tensors |= {"slot_weight": table.weight, "slot_bias": table.bias}
        (folder / SLOTS_NAME).write_bytes(serialize_slots(table))
    if arbiter:
        tensors |= {"row_lengths": deviation_lengths(head.rows)}
        tensors |= {} if table is None else {"slot_arbiter": table.coefficients}
        (folder / ARBITER_NAME).write_bytes(serialize_row_lengths(deviation_lengths(head.rows)))
    if baked is not None:
        tensors |= {"baked_weight": baked.weight, "baked_bias": baked.bias, "baked_arbiter": baked.coefficients}
        (folder / INJECTED_NAME).write_bytes(serialize_slots(baked))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()
    )
    onnx.checker.check_model(model)
    (folder / MODEL_NAME).write_bytes(model.SerializeToString())
    bundle = Bundle(
        head_kind="updatable" if capacity else "fused",
        class_names=head.class_names if baked is None else (*head.class_names, *baked.filled_names),
        num_seen=head.num_classes,
        feature_dim=FEATURE_DIM,
        capacity=capacity,
        base_fingerprint=head.fingerprint,
        head_version=head_version,
        model_input=ModelInput(name="image", shape=(INPUT_DIM,), dtype="float32"),
        score_kind=score_kind,
        preprocessing=None,
        files={path.name: file_entry(path) for path in folder.iterdir()},
        parity=(),
        arbiter=arbiter,
        written_at=written_at,
    )
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    return folder


def _text(capacity: int, score_kind: str) -> str:
    joined, output, tail = TAILS[score_kind]
    text = UPDATABLE if capacity else FUSED
    return text.format(capacity=capacity, joined=joined, output=output, tail=tail)


def _arbiter_text(capacity: int, score_kind: str, *, has_baked: bool) -> str:
    joined, output, tail = TAILS[score_kind]
    kinds = (["baked"] if has_baked else []) + (["slot"] if capacity else [])
    inputs = ["float[batch, 6] image"]
    if capacity:
        inputs += [f"float[{capacity}, 4] slot_weight", f"float[{capacity}] slot_bias"]
        inputs += [f"float[{capacity}, 5] slot_arbiter"]
    return ARBITER.format(
        inputs=", ".join(inputs),
        output=output,
        new="".join(NEW.format(kind=kind) for kind in kinds),
        joined=joined,
        parts=", ".join(["seen", *kinds]),
        tail=tail,
    )


def trust(folder: Path, *public_keys: Path) -> None:
    """Copy public keys into the `trust/` folder of a bundle."""
    (folder / "trust").mkdir(exist_ok=True)
    for path in public_keys:
        shutil.copy(path, folder / "trust")


def make_update(*added: str, version: int = 1, seed: int | None = None, **fields: Any) -> ClassUpdate:
    """Return a class update with random rows, by default for the head of `write_bundle`.

    Args:
        added: Names of the added classes.
        version: The update's version.
        seed: Of the rows; by default the version, so that updates of one version have equal rows.
        fields: Further fields of `ClassUpdate`.
    """
    num_rows = len(added) + len(fields.get("replaced", ()))
    rows = np.random.default_rng(version if seed is None else seed).normal(size=(num_rows, FEATURE_DIM + 1))
    values: dict[str, Any] = {
        "base_fingerprint": seen_head().fingerprint,
        "rows": rows,
        "added": added,
        "version": version,
    } | fields
    return ClassUpdate(**values)


def write_signed(path: Path, content: ClassUpdate | TrustedKeys, private_key: Path) -> Path:
    """Save an update and sign the file, as the command line does; return its path."""
    save_update(content, path)
    sign(path, private_key)
    return path


def signed_bytes(content: ClassUpdate | TrustedKeys, private_key: Path) -> bytes:
    """Return the bytes of a signed update, without writing a file."""
    envelope = envelope_of(content)
    envelope.sign(load_private_key(private_key))
    return serialize_envelope(envelope)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return `{relative path: bytes}` of everything below a folder; a folder has no bytes."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))
    }


def images(batch: int = 3, seed: int = 0) -> Float32:
    """Return random inputs of the models here, `(batch, 6)`."""
    return np.random.default_rng(seed).normal(size=(batch, INPUT_DIM)).astype(np.float32)


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return the time that was set."""
        return self.now


def add_targets(folder: Path, *names: str) -> Path:
    """Build targets into a bundle as `export` does, without the gate; return the folder.

    Raises:
        MissingDependencyError: If this machine cannot build one, with the reason.
    """
    from exporters.targets.registry import TargetJob, plan_targets

    plan = plan_targets(names)
    bundle = load_bundle(folder)
    for target in plan.targets:
        written = target.build(TargetJob(folder=folder, bundle=bundle, options=plan.options))
        bundle = replace(bundle, files={**bundle.files, **{name: file_entry(folder / name) for name in written}})
    (folder / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    return folder
