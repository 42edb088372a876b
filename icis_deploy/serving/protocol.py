"""Requests and responses of the Open Inference Protocol, version 2, as JSON and with its binary tensor extension.

A request is a JSON object; tensors are lists in it, or follow it as bytes, in the order of the inputs. The header
`Inference-Header-Content-Length` then says how long the JSON is. Responses are of the same form.

What a bundle answers are four tensors, of which a request may choose some:

    classes        BYTES  (batch, top)          the most probable classes, the most probable first
    probabilities  FP32   (batch, top)          theirs
    logits         FP32   (batch, num_classes)
    class_names    BYTES  (num_classes,)        in the order of the logits

All of a response are of one version of the head, which stands in `model_version`.

Source: Open Inference Protocol, https://github.com/kserve/open-inference-protocol; the extension is Triton's
`binary_data`.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.json_fields import integer_from_json, load_strict
from icis_deploy.common.terminal_text import reason_of, shown
from icis_deploy.errors import UsageError
from icis_deploy.runtime.answers import Logits, Prediction

JSON_LENGTH_HEADER = "inference-header-content-length"
OUTPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "classes": ("BYTES", (-1, -1)),
    "probabilities": ("FP32", (-1, -1)),
    "logits": ("FP32", (-1, -1)),
    "class_names": ("BYTES", (-1,)),
}
"""Datatype and shape of each output."""

_DATATYPES: Mapping[str, str] = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_OTHER_VALUES = 1 << 12
"""JSON values of a request beside those of its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request that was read."""

    images: Images
    """`(batch, *input_shape)` in the dtype of the model's input."""

    outputs: tuple[str, ...]
    """Names of the outputs that are asked for."""

    binary: frozenset[str]
    """Those of them that are sent as bytes."""

    top: int
    """Classes per input."""

    request_id: str | None
    """What the client calls it."""


def model_metadata(bundle: Bundle, *, name: str, version: int, platform: str) -> dict[str, Any]:
    """Return what the protocol says of a model, as JSON."""
    taken = bundle.model_input
    return {
        "name": name,
        "versions": [str(version)],
        "platform": platform,
        "inputs": [{"name": taken.name, "datatype": _DATATYPES[taken.dtype], "shape": [-1, *taken.shape]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": list(shape)}
            for output, (datatype, shape) in OUTPUTS.items()
        ],
    }


def parse_request(
    body: bytes, json_length: str | None, bundle: Bundle, *, max_batch: int, default_top: int
) -> InferRequest:
    """Read a request.

    Args:
        body: The body.
        json_length: The header that says how many of its bytes are JSON; `None` where all are.
        bundle: Whose model is asked.
        max_batch: Inputs that a request may have.
        default_top: Classes per input, where the request does not say it.

    Raises:
        UsageError: If it is none, or does not fit the model.
    """
    head, tensors = _split(body, json_length)
    taken = bundle.model_input
    # The lists of a tensor that is nested to its last axis, where each image has one for each of its parts.
    max_lists = max_batch * sum(math.prod(taken.shape[:axis]) for axis in range(len(taken.shape))) + _MAX_OTHER_VALUES
    num_lists = head.count(b"[") + head.count(b"{")
    if num_lists > max_lists:  # an empty one takes twenty times its two bytes
        raise _refused(
            f"The request is no JSON that is taken: it has {num_lists} lists and objects, and at most {max_lists} are.",
            num_lists,
            f"at most {max_lists}",
            hint=f"Send at most {max_batch} inputs, each flat or as {list(taken.shape)}.",
        )
    max_values = max_batch * math.prod(taken.shape) + max_lists
    try:
        request = load_strict(head, max_values=max_values)
    except (ValueError, RecursionError) as error:
        raise _refused(f"The request is no JSON that is taken: {reason_of(error)}.", reason_of(error)) from error
    if not isinstance(request, dict):
        raise _refused("The request is no JSON object.", type(request).__name__, "an object")
    images = _images(request.get("inputs"), tensors, bundle, max_batch=max_batch)
    parameters = _parameters(request, "the request")
    outputs, binary = _outputs(request.get("outputs"), by_default=parameters.get("binary_data_output") is True)
    top = _integer(parameters.get("top", default_top), "the parameter 'top'")
    if top < 1:
        raise _refused(f"The parameter 'top' is {top}; at least one class must be asked for.", top, "at least 1")
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise _refused("The request's id is no string.", shown(request_id), "a string")
    if request_id is not None and _SURROGATE.search(request_id):  # JSON can say it, and no answer can repeat it
        raise _refused("The request's id holds half of a surrogate pair.", shown(request_id), "a text of UTF-8")
    return InferRequest(images=images, outputs=outputs, binary=binary, top=top, request_id=request_id)


def _split(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    if json_length is None:
        return body, memoryview(b"")
    length = int(json_length) if json_length.isascii() and json_length.isdigit() and len(json_length) < 12 else -1
    if not 0 <= length <= len(body):
        raise _refused(
            f"The header Inference-Header-Content-Length is {shown(json_length)}; the body has {len(body)} bytes.",
            shown(json_length),
            f"0 to {len(body)}",
        )
    return body[:length], memoryview(body)[length:]


def _images(inputs: object, tensors: memoryview, bundle: Bundle, *, max_batch: int) -> Images:
    taken = bundle.model_input
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        found = len(inputs) if isinstance(inputs, list) else shown(inputs)
        raise _refused(f"The request has {found} inputs; the model has one, {taken.name!r}.", found, 1)
    (tensor,) = inputs
    expected = (taken.name, _DATATYPES[taken.dtype])
    given = (tensor.get("name"), tensor.get("datatype"))
    if given != expected:
        raise _refused(
            f"The input is {shown(given[0])} of {shown(given[1])}; the model takes {expected[0]!r} of {expected[1]}.",
            tuple(map(shown, given)),
            expected,
        )
    shape = _shape(tensor.get("shape"), taken.shape, max_batch=max_batch)
    size = _parameters(tensor, "the input").get("binary_data_size")
    if size is None:
        if len(tensors):
            raise _refused(
                f"{len(tensors)} bytes follow the JSON, and no input says that they are its own.", len(tensors), 0
            )
        return _from_json(tensor.get("data"), shape, taken.dtype)
    dtype = np.dtype(taken.dtype).newbyteorder("<")
    num_bytes = math.prod(shape) * dtype.itemsize
    if not _integer(size, "binary_data_size") == num_bytes == len(tensors) or "data" in tensor:
        raise _refused(
            f"The input states {shown(size)} bytes, and {len(tensors)} follow the JSON; {list(shape)} of "
            f"{expected[1]} has {num_bytes}.",
            (shown(size), len(tensors)),
            num_bytes,
        )
    return np.frombuffer(tensors, dtype=dtype).reshape(shape).astype(taken.dtype, copy=False)


def _shape(value: object, input_shape: tuple[int, ...], *, max_batch: int) -> tuple[int, ...]:
    wanted = ["batch", *input_shape]
    if not isinstance(value, list) or len(value) != len(wanted) or value[1:] != list(input_shape):
        raise _refused(f"The input's shape is {shown(value)}; expected {wanted}.", shown(value), str(wanted))
    batch = _integer(value[0], "the input's shape")
    if not 1 <= batch <= max_batch:
        raise _refused(
            f"The request has {batch} inputs; 1 to {max_batch} are taken at once.",
            batch,
            f"1 to {max_batch}",
            hint="Send several requests.",
        )
    return (batch, *input_shape)


def _from_json(data: object, shape: tuple[int, ...], dtype: str) -> Images:
    if not isinstance(data, list):
        raise _refused("The input has no data: neither a list nor binary_data_size.", shown(data), "a list of numbers")
    if not _holds_numbers(data, len(shape)):
        raise _refused(
            "The input's data holds something else than numbers.",
            "something else",
            f"numbers, flat or as {list(shape)}",
        )
    try:
        values = np.array(data)
    except ValueError as error:  # lists of different lengths
        raise _refused(f"The input's data is no tensor: {reason_of(error)}.", reason_of(error)) from error
    if values.size != math.prod(shape) or (values.ndim > 1 and values.shape != shape):
        raise _refused(
            f"The input's data is {list(values.shape)}; its shape says {list(shape)}.",
            str(list(values.shape)),
            f"numbers, flat or as {list(shape)}",
        )
    if values.dtype.kind == "O":  # whole numbers that 64 bits do not hold
        raise _refused("The input's data holds whole numbers beyond 64 bits.", None, f"numbers of {dtype}")
    if np.dtype(dtype).kind == "u":
        limit = np.iinfo(dtype).max
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > limit:
            raise _refused(f"The input's data is not of whole numbers from 0 to {limit}.", None, f"0 to {limit}")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with its answer
        return np.ascontiguousarray(values.reshape(shape), dtype=dtype)


def _holds_numbers(data: list[Any], depth: int) -> bool:
    """Say whether a list holds numbers alone, in lists of at most `depth` levels.

    numpy is not asked: of one long text it makes an array in which each number is as long.
    """
    kinds = set(map(type, data))  # without a loop in Python
    if kinds == {list} and depth > 1:
        return all(_holds_numbers(each, depth - 1) for each in data)
    return kinds <= {int, float}


def _outputs(value: object, *, by_default: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    if value is None or value == []:
        return tuple(OUTPUTS), frozenset(OUTPUTS if by_default else ())
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _refused(f"The request's outputs are {shown(value)}.", shown(value), "a list of objects")
    binary, names = set(), []
    for each in value:
        name = each.get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in names:
            raise _refused(
                f"The output {shown(name)} is not there, or asked for twice; the model has {', '.join(OUTPUTS)}.",
                shown(name),
                tuple(OUTPUTS),
            )
        parameters = _parameters(each, f"the output {name!r}")
        if parameters.get("classification"):
            raise _refused(
                "Outputs as Triton's classifications are not given.", "classification", "the output 'classes'"
            )
        names.append(name)
        if parameters.get("binary_data", by_default) is True:
            binary.add(name)
    return tuple(names), frozenset(binary)


def _parameters(value: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = value.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _refused(f"The parameters of {what} are {shown(parameters)}.", shown(parameters), "an object")
    return parameters


def _integer(value: object, what: str) -> int:
    try:
        return integer_from_json(value, where=what)
    except (TypeError, ValueError) as error:
        raise _refused(f"{what} is {shown(value)}.", shown(value), "a whole number") from error


def serialize_response(
    request: InferRequest, predictions: Sequence[Prediction], logits: Logits | None, *, name: str, version: int
) -> tuple[bytes, int | None]:
    """Write a response.

    Args:
        request: What it answers.
        predictions: The most probable classes of each input.
        logits: Of all classes; `None` where neither they nor their names are asked for.
        name: Of the model.
        version: Of the head that answered.

    Returns:
        The body, and how many bytes of it are JSON where others follow; else `None`.
    """
    outputs, tensors = [], []
    for output in request.outputs:
        values = _output_values(output, predictions, logits)
        tensor: dict[str, Any] = {
            "name": output,
            "datatype": OUTPUTS[output][0],
            "shape": list(values.shape) if isinstance(values, np.ndarray) else _shape_of(values),
        }
        if output in request.binary:
            data = values.astype("<f4").tobytes() if isinstance(values, np.ndarray) else _bytes_tensor(values)
            tensors.append(data)
            tensor["parameters"] = {"binary_data_size": len(data)}
        else:
            tensor["data"] = values.ravel().tolist() if isinstance(values, np.ndarray) else _flat(values)
        outputs.append(tensor)
    response: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": outputs}
    if request.request_id is not None:
        response["id"] = request.request_id
    head = json.dumps(response, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return (head + b"".join(tensors), len(head)) if tensors else (head, None)


Names = Sequence[str] | Sequence[Sequence[str]]


def _output_values(
    output: str, predictions: Sequence[Prediction], logits: Logits | None
) -> NDArray[np.float32] | Names:
    if output == "classes":
        return [each.class_names for each in predictions]
    if output == "probabilities":
        return np.array([each.probabilities for each in predictions], dtype=np.float32)
    assert logits is not None
    return _finite(logits.values) if output == "logits" else logits.class_names


def _finite(values: Float32) -> Float32:
    """Return values as JSON can hold them: the logarithm of a probability of 0 becomes the least float32."""
    limits = np.finfo(np.float32)
    return np.clip(values, limits.min, limits.max)


def _shape_of(names: Names) -> list[int]:
    return [len(names)] if not names or isinstance(names[0], str) else [len(names), len(names[0])]


def _flat(names: Names) -> list[str]:
    return [name for each in names for name in ([each] if isinstance(each, str) else each)]


def _bytes_tensor(names: Names) -> bytes:
    encoded = [name.encode() for name in _flat(names)]
    return b"".join([struct.pack("<I", len(name)) + name for name in encoded])


def _refused(what: str, found: object, expected: object = None, *, hint: str | None = None) -> UsageError:
    return UsageError(what, found=found, expected=expected, hint=hint)
