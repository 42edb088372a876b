"""Tables of labels behind a choice get the new names in every form; what has no plain label is refused.

What they must give is said by ONNX Runtime, on logits of which each class in turn is the greatest.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from exporters.onnx_io.files import normalized, serialize_model
from icis_deploy.errors import IncompatibleError, ModelLoadError
from icis_deploy.head.head import Head

NAMES = tuple(f"seen {index}" for index in range(5))
NEW = ("zebra", "quagga")
WEIGHT = np.vstack([np.eye(5), [[0, 0, 0, 0, 0]] * 2]).astype(np.float32)
ROWS = np.hstack([WEIGHT, np.zeros((7, 1), np.float32)])
ML = "ai.onnx.ml"


def model_with(steps: list[onnx.NodeProto], dtype: int, shape: list[object], **constants: np.ndarray) -> ir.Model:
    """A model that gives its logits `l` and, as `label`, what follows the choice."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])]
    outputs = [
        helper.make_tensor_value_info("l", TensorProto.FLOAT, ["n", 5]),
        helper.make_tensor_value_info("label", dtype, shape),
    ]
    constants = {"w": ROWS[:5, :5], "b": ROWS[:5, 5], **constants}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["l"], name="head", transB=1), *steps],
        "g",
        inputs,
        outputs,
        [_tensor(name, value) for name, value in constants.items()],
    )
    version = 4 if any("keys_tensor" in [a.name for a in node.attribute] for node in steps) else 3
    if any("classes_strings" in [a.name for a in node.attribute] for node in steps):
        version = 1
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, version)])
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    return normalized(ir.from_proto(proto), where="the test's graph")


def _tensor(name: str, value: np.ndarray) -> onnx.TensorProto:
    if value.dtype.kind in "OU":
        return helper.make_tensor(name, TensorProto.STRING, value.shape, [str(v).encode() for v in value.reshape(-1)])
    return numpy_helper.from_array(value, name)


def fused(model: ir.Model, names: tuple[str, ...] = NAMES, new: tuple[str, ...] = NEW) -> onnxruntime.InferenceSession:
    """Two more rows, which win for images of their own: minus ones, and minus twos with another bias."""
    rows = ROWS.copy()
    rows[5, :5], rows[6, :5], rows[6, 5] = -1, -2, -5
    head = Head(rows=rows, class_names=(*names, *new))
    edited = apply_passes(model, FuseHeadPass(find_head(model), head))
    return onnxruntime.InferenceSession(serialize_model(edited), providers=["CPUExecutionProvider"])


IMAGES = np.vstack([2 * np.eye(5), -np.ones((1, 5)), -2 * np.ones((1, 5))]).astype(np.float32)
ARGMAX = helper.make_node("ArgMax", ["l"], ["best"], axis=1, keepdims=0)
STRINGS = np.array(NAMES)
NUMBERS = np.arange(100, 105)


def encoder(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("LabelEncoder", ["best"], ["label"], domain=ML, **attributes)


def tensor_of(values: list[object]) -> onnx.TensorProto:
    return _tensor("t", np.array(values))


ORDER = [3, 1, 0, 4, 2]
FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "LabelEncoder, strings": ([encoder(keys_int64s=range(5), values_strings=NAMES)], {}),
    "LabelEncoder, keys in any order": (
        [encoder(keys_int64s=ORDER, values_strings=[NAMES[i] for i in ORDER], default_string="?")],
        {},
    ),
    "LabelEncoder, tensors": (
        [encoder(keys_tensor=tensor_of([0, 1, 2, 3, 4]), values_tensor=tensor_of(list(NAMES)))],
        {},
    ),
    "LabelEncoder of the first version": ([encoder(classes_strings=NAMES)], {}),
    "Gather": ([helper.make_node("Gather", ["table", "best"], ["label"])], {"table": STRINGS}),
    "Gather along the second axis": (
        [
            helper.make_node("Gather", ["table", "best"], ["row"], axis=1),
            helper.make_node("Reshape", ["row", "flat"], ["label"]),
        ],
        {"table": STRINGS[None], "flat": np.array([-1])},
    ),
    "ArrayFeatureExtractor": (
        [
            helper.make_node("ArrayFeatureExtractor", ["table", "best"], ["row"], domain=ML),
            helper.make_node("Reshape", ["row", "flat"], ["label"]),
        ],
        {"table": STRINGS, "flat": np.array([-1])},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_strings_gets_the_new_names(form: str):
    steps, constants = FORMS[form]
    session = fused(model_with([ARGMAX, *steps], TensorProto.STRING, ["n"], **constants))

    (labels,) = session.run(["label"], {"x": IMAGES})

    assert labels.tolist() == [*NAMES, *NEW]


@pytest.mark.parametrize(
    ("numbers", "names", "new", "expected"),
    [
        (NUMBERS, NAMES, NEW, [*NUMBERS, 105, 106]),
        (np.array([9, 4, 7, 1, 2]), ("9", "4", "7", "1", "2"), ("12", "-3"), [9, 4, 7, 1, 2, 12, -3]),
        (np.arange(5), ("0", "1", "2", "3", "4"), ("7", "12"), [0, 1, 2, 3, 4, 7, 12]),
    ],
    ids=["numbers that count on", "numbers that the names spell", "both"],
)
def test_a_table_of_numbers_goes_on(numbers: np.ndarray, names: tuple[str, ...], new: tuple[str, ...], expected: list):
    gather = helper.make_node("Gather", ["table", "best"], ["label"])
    model = model_with([ARGMAX, gather], TensorProto.INT64, ["n"], table=numbers)

    (labels,) = fused(model, names, new).run(["label"], {"x": IMAGES})

    assert labels.tolist() == expected


def test_names_of_the_top_k_classes_are_looked_up_too():
    steps = [
        helper.make_node("TopK", ["l", "k"], ["greatest", "best"], axis=1),
        helper.make_node("Gather", ["table", "best"], ["label"]),
    ]
    model = model_with(steps, TensorProto.STRING, ["n", 2], table=STRINGS, k=np.array([2]))

    logits, labels = fused(model).run(["l", "label"], {"x": IMAGES})

    order = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    assert labels.tolist() == [[(*NAMES, *NEW)[column] for column in row] for row in order]


@pytest.mark.parametrize(
    ("table", "new", "message"),
    [
        (np.array([9, 4, 7, 1, 2]), NEW, "do not count on"),
        (STRINGS, ("seen 2", "zebra"), "gives the label 'seen 2' to a class that the model knows already"),
    ],
    ids=["numbers in no order", "a label that is taken"],
)
def test_a_class_without_a_plain_label_is_refused(table: np.ndarray, new: tuple[str, ...], message: str):
    dtype = TensorProto.STRING if table.dtype.kind == "U" else TensorProto.INT64
    model = model_with([ARGMAX, helper.make_node("Gather", ["table", "best"], ["label"])], dtype, ["n"], table=table)

    with pytest.raises(IncompatibleError, match=message):
        fused(model, tuple(f"other {index}" for index in range(5)), new)


@pytest.mark.parametrize(
    ("steps", "constants", "dtype", "shape"),
    [
        ([helper.make_node("OneHot", ["best", "five", "off_on"], ["label"])], {}, TensorProto.FLOAT, ["n", 5]),
        ([helper.make_node("Gather", ["wide", "best"], ["label"])], {}, TensorProto.FLOAT, ["n", 2]),
        ([encoder(keys_int64s=[0, 1, 2, 3], values_strings=NAMES[:4])], {}, TensorProto.STRING, ["n"]),
        (
            [
                helper.make_node("Gather", ["table", "best"], ["number"]),
                helper.make_node(
                    "LabelEncoder", ["number"], ["label"], domain=ML, keys_int64s=NUMBERS, values_strings=NAMES
                ),
            ],
            {"table": NUMBERS},
            TensorProto.STRING,
            ["n"],
        ),
    ],
    ids=["one-hot", "a table of vectors", "a table that misses a class", "a table of a table's labels"],
)
def test_other_tables_are_refused(steps: list, constants: dict, dtype: int, shape: list):
    constants = dict(constants)
    names = {name for node in steps for name in node.input}
    if "five" in names:
        constants |= {"five": np.array(5), "off_on": np.array([0, 1], np.float32)}
    if "wide" in names:
        constants["wide"] = np.zeros((5, 2), np.float32)

    with pytest.raises(ModelLoadError, match="No class can be added"):
        find_head(model_with([ARGMAX, *steps], dtype, shape, **constants))


def test_beside_slots_labels_are_no_output_any_more():
    gather = helper.make_node("Gather", ["table", "best"], ["label"])
    model = model_with([ARGMAX, gather], TensorProto.STRING, ["n"], table=STRINGS)

    edited = apply_passes(model, AddSlotsPass(find_head(model), 3))

    assert [output.name for output in edited.graph.outputs] == ["l", "features"]
    assert "Gather" not in {node.op_type for node in edited.graph}
    assert [output.name for output in model.graph.outputs] == ["l", "label"]
