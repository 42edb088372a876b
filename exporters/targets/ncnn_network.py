"""A network of ncnn as its two files: layers in text, weights in bytes; and the head as layers of it.

    7767517
    3 3                                             layers, blobs
    Input         image  0 1 in0                    type, name, numbers of inputs and outputs, their names, parameters
    InnerProduct  fc     1 1 in0 1 0=4 1=1 2=24

Rules:

1. A layer stands behind those that it reads. Every blob has one reader: where there are more, a layer Split copies it.
2. The second file holds weights in the order of the layers. Weights of an InnerProduct stand behind four bytes that say
   how they are stored, 0 for float32; its biases and a MemoryData have none.
3. ncnn knows no batch. The head is written for one image: features are one axis, and so are logits.

Source: ncnn's documents `param and model file structure` and `operation param weight table`.
"""

# Why: docs/decisions/0129.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from exporters.targets.head_parts import HeadParts
from icis_deploy.bundle.manifest import FEATURES, SLOT_ARBITER, SLOT_BIAS, SLOT_WEIGHT
from icis_deploy.common.arrays import Float32
from icis_deploy.head.arbiter import GREATEST, TINY

MAGIC = "7767517"
SCORES = "scores"
"""What the first output is called in a network that `with_head` made."""

_ADD, _SUBTRACT, _MULTIPLY, _MAXIMUM = 0, 1, 2, 4
_SUM, _MEAN, _GREATEST = 0, 3, 4
_EXP, _LOG = 7, 8
_IS_GREATEST = -1e-37
"""Above what the difference from the greatest logit is the greatest logit's own: it is 0, and others' are below."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer."""

    kind: str
    """Its type, such as `InnerProduct`."""

    name: str
    inputs: tuple[str, ...]
    """Blobs that it reads."""

    outputs: tuple[str, ...]
    """Blobs that it writes."""

    parameters: str = ""
    """As the file states them: `0=4 1=1`."""

    weights: bytes = field(default=b"", repr=False)
    """What the second file holds for it, where it was not read from a file."""


def parse_layers(text: str) -> list[Layer]:
    """Return the layers of a network, without their weights.

    Raises:
        ValueError: If the text is not such a file.
    """
    lines = text.split("\n")
    if lines[0].strip() != MAGIC:
        raise ValueError(f"it begins with {lines[0][:20]!r} and not with {MAGIC}")
    return [_parse_layer(line) for line in lines[2:] if line.strip()]


def serialize_layers(layers: Sequence[Layer]) -> str:
    """Return the text of a network."""
    num_blobs = sum(len(layer.outputs) for layer in layers)
    lines = [
        " ".join(
            [layer.kind, layer.name, str(len(layer.inputs)), str(len(layer.outputs)), *layer.inputs, *layer.outputs]
        )
        + (f" {layer.parameters}" if layer.parameters else "")
        for layer in layers
    ]
    return "\n".join([MAGIC, f"{len(layers)} {num_blobs}", *lines, ""])


def with_head(backbone: Sequence[Layer], features: str, head: HeadParts) -> list[Layer]:
    """Return a network that goes on from features to scores.

    Slots are inputs under the names of `icis_deploy.bundle.manifest`. It ends in `SCORES` and `FEATURES`.

    Args:
        backbone: Layers that end in the features of one image.
        features: The blob that they end in.
        head: What follows.
    """
    writer = _HeadWriter(head, features)
    writer.write()
    return _with_splits([*backbone, *writer.layers])


class _HeadWriter:
    """The layers of one head, in order; each method returns the blob that it ends in."""

    def __init__(self, head: HeadParts, features: str) -> None:
        self.layers: list[Layer] = []
        self._head = head
        self._backbone_features = features

    def write(self) -> None:
        head = self._head
        feature_dim = head.rows.shape[1] - 1
        features = self._add("Reshape", [self._backbone_features], f"0={feature_dim}", blob="head_features")
        seen = self._linear(features, head.rows[: head.num_seen], "seen")
        statistics = self._statistics(features, seen) if head.lengths is not None else None
        parts = [seen]
        if len(head.rows) > head.num_seen:
            new = self._linear(features, head.rows[head.num_seen :], "baked")
            if statistics is not None and head.baked_arbiter is not None:
                coefficients = np.pad(head.baked_arbiter, ((0, 0), (0, 1)))
                new = self._binary(_ADD, new, self._linear(statistics, coefficients, "baked_offsets"))
            parts.append(new)
        if head.capacity:
            parts.append(self._slots(features, statistics))
        logits = self._add("Concat", parts, "0=0") if len(parts) > 1 else seen
        self._tail(logits)
        self._add("Noop", [features], blob=FEATURES)

    def _slots(self, features: str, statistics: str | None) -> str:
        names = [SLOT_WEIGHT, SLOT_BIAS, *([] if statistics is None else [SLOT_ARBITER])]
        self.layers = [Layer("Input", name, (), (name,)) for name in names] + self.layers
        logits = self._binary(_ADD, self._add("MatMul", [features, SLOT_WEIGHT], "0=1"), SLOT_BIAS)
        if statistics is None:
            return logits
        return self._binary(_ADD, logits, self._add("MatMul", [statistics, SLOT_ARBITER], "0=1"))

    def _statistics(self, features: str, seen: str) -> str:
        """Return the statistics of `icis_deploy.head.arbiter.seen_statistics`, as layers compute them."""
        assert self._head.lengths is not None
        greatest, mean = self._reduced(_GREATEST, seen), self._reduced(_MEAN, seen)
        centred = self._binary(_SUBTRACT, seen, mean)
        variance = self._reduced(_MEAN, self._binary(_MULTIPLY, centred, centred))
        squared_length = self._reduced(_SUM, self._binary(_MULTIPLY, features, features))
        positive = self._add("Concat", [variance, squared_length], "0=0")
        logarithms = self._unary(_LOG, self._add("Clip", [positive], f"0={TINY:.9e} 1={GREATEST:.9e}"))
        # ncnn has no gather by a computed index: 1 at the greatest logit and 0 elsewhere, times the lengths.
        is_top = self._add("Threshold", [self._binary(_SUBTRACT, seen, greatest)], f"0={_IS_GREATEST:e}")
        lengths = self._add("MemoryData", [], f"0={self._head.num_seen}", weights=_floats(self._head.lengths))
        deviation = self._reduced(_GREATEST, self._binary(_MULTIPLY, is_top, lengths))
        return self._add("Concat", [greatest, mean, logarithms, deviation], "0=0")

    def _tail(self, logits: str) -> None:
        kind = self._head.score_kind
        if kind == "probabilities":
            self._add("Softmax", [logits], "0=0 1=1", blob=SCORES)
        elif kind == "log-probabilities":
            shifted = self._binary(_SUBTRACT, logits, self._reduced(_GREATEST, logits))
            total = self._reduced(_SUM, self._unary(_EXP, shifted))
            self._binary(_SUBTRACT, shifted, self._unary(_LOG, total), blob=SCORES)
        else:
            self._add("Sigmoid" if kind == "sigmoid" else "Noop", [logits], blob=SCORES)

    def _linear(self, source: str, rows: Float32, name: str) -> str:
        weight, bias = rows[:, :-1], rows[:, -1]
        parameters = f"0={len(rows)} 1=1 2={weight.size}"
        return self._add("InnerProduct", [source], parameters, blob=f"head_{name}", weights=_stored(weight, bias))

    def _reduced(self, operation: int, source: str) -> str:
        return self._add("Reduction", [source], f"0={operation} 1=1 4=0 5=1")

    def _binary(self, operation: int, first: str, second: str, *, blob: str | None = None) -> str:
        return self._add("BinaryOp", [first, second], f"0={operation}", blob=blob)

    def _unary(self, operation: int, source: str) -> str:
        return self._add("UnaryOp", [source], f"0={operation}")

    def _add(
        self, kind: str, inputs: Sequence[str], parameters: str = "", *, blob: str | None = None, weights: bytes = b""
    ) -> str:
        name = f"head_{len(self.layers)}_{kind}"
        output = name if blob is None else blob
        self.layers.append(Layer(kind, name, tuple(inputs), (output,), parameters, weights))
        return output


def _with_splits(layers: Sequence[Layer]) -> list[Layer]:
    """Return layers in which every blob has one reader; inputs stand first, as ncnn's own tools write them."""
    ordered = [layer for layer in layers if layer.kind == "Input"] + [
        layer for layer in layers if layer.kind != "Input"
    ]
    readers = Counter(blob for layer in ordered for blob in layer.inputs)
    taken: Counter[str] = Counter()
    result = []
    for layer in ordered:
        inputs = []
        for blob in layer.inputs:
            inputs.append(f"{blob}_split{taken[blob]}" if readers[blob] > 1 else blob)
            taken[blob] += 1
        result.append(Layer(layer.kind, layer.name, tuple(inputs), layer.outputs, layer.parameters, layer.weights))
        for blob in layer.outputs:
            if readers[blob] > 1:
                copies = tuple(f"{blob}_split{index}" for index in range(readers[blob]))
                result.append(Layer("Split", f"split_{blob}", (blob,), copies))
    return result


def _parse_layer(line: str) -> Layer:
    kind, name, num_inputs, num_outputs, *rest = line.split()
    end = int(num_inputs) + int(num_outputs)
    if len(rest) < end:
        raise ValueError(f"the layer {name!r} states {end} blobs and names {len(rest)}")
    return Layer(kind, name, tuple(rest[: int(num_inputs)]), tuple(rest[int(num_inputs) : end]), " ".join(rest[end:]))


def _stored(weight: Float32, bias: Float32) -> bytes:
    return bytes(4) + _floats(weight) + _floats(bias)


def _floats(array: Float32) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()
