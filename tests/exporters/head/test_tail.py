"""What follows the head grows with it: the class axis is followed through every operator that may come after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.graph.class_axis import reduced_axes
from exporters.graph.edits import apply_passes
from exporters.graph.reading import integers
from exporters.head.finding import find_head, read_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from icis_deploy.errors import ModelLoadError
from tests.exporters.head_graphs import GRAPHS, parsed_model, rows, run_model, softmax

NAMES = tuple(f"class {index}" for index in range(5))
WEIGHT, BIAS = rows(0)
IMAGES = GRAPHS["gemm"].images(0)
NEW_ROWS = np.random.default_rng(3).normal(size=(3, 5)).astype(np.float32)
CONSTANTS = """<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[2] one_and_two = {1, 2},
    int64[2] last_two = {2, 3}, int64[3] wide = {0, 1, 5}, int64[3] copied = {0, 0, 1}, int64[2] matrix = {-1, 5},
    int64[1] minus_one = {-1}, int64[1] classes = {5}, float half = {0.5}, int64 nought = {0}>"""


def with_tail(tail: str, output: str, opset: int = 20) -> ir.Model:
    return parsed_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[batch, 4] x) => ({output}) {CONSTANTS} {{
            [head] l = Gemm <transB = 1> (x, w, b)
            {tail}
        }}""",
        w=WEIGHT,
        b=BIAS,
    )


TAILS: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "unsqueeze, transpose, squeeze": (
        "u = Unsqueeze (l, two) t = Transpose <perm = [0, 2, 1]> (u) y = Squeeze (t, one)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "an axis of length 1 in between": (
        "y = Unsqueeze (l, one)",
        "float[batch, 1, 5] y",
        lambda logits: logits,
    ),
    "an axis of length 1 before the images": (
        "y = Unsqueeze (l, zero)",
        "float[1, batch, 5] y",
        lambda logits: logits[None],
    ),
    "transpose that turns all axes round": (
        "u = Unsqueeze (l, one) y = Transpose (u)",
        "float[5, 1, batch] y",
        lambda logits: logits.T[:, None],
    ),
    "squeeze of whatever is 1": (
        "u = Unsqueeze (l, one_and_two) y = Squeeze (u)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "flatten before the classes": (
        "u = Unsqueeze (l, one) y = Flatten <axis = 2> (u)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "flatten counted from behind": (
        "u = Unsqueeze (l, last_two) y = Flatten <axis = -3> (u)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "the only position, by its number": (
        "u = Unsqueeze (l, last_two) a = Gather <axis = 3> (u, zero) y = Gather <axis = 2> (a, nought)",
        "float[batch, 5, 1] y",
        lambda logits: logits,
    ),
    "the only position, cut out": (
        "u = Unsqueeze (l, last_two) a = Slice (u, zero, one, two) y = Flatten (a)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "reshape that names the classes": ("y = Reshape (l, wide)", "float[batch, 1, 5] y", lambda logits: logits),
    "reshape that copies the classes": (
        "y = Reshape (l, copied)",
        "float[batch, 5, 1] y",
        lambda logits: logits,
    ),
    "two reshapes by one constant": (
        "a = Reshape (l, matrix) s = Sigmoid (a) y = Reshape (s, matrix)",
        "float[batch, 5] y",
        lambda logits: 1 / (1 + np.exp(-logits)),
    ),
    "reshape by numbers that are joined": (
        "target = Concat <axis = 0> (minus_one, classes) y = Reshape (l, target)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "pools of one position": (
        "u = Unsqueeze (l, last_two) a = GlobalMaxPool (u) p = AveragePool <kernel_shape = [1, 1]> (a) y = Flatten (p)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "mean over axes of length 1": (
        "u = Unsqueeze (l, last_two) y = ReduceMax <keepdims = 0> (u, last_two)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "softmax written out": (
        """top = ReduceMax (l, one)
        shifted = Sub (l, top)
        powers = Exp (shifted)
        total = ReduceSum (powers, one)
        y = Div (powers, total)""",
        "float[batch, 5] y",
        softmax,
    ),
    "two branches that meet": (
        "gate = Sigmoid (l) y = Mul (l, gate)",
        "float[batch, 5] y",
        lambda logits: logits / (1 + np.exp(-logits)),
    ),
    "dropout": ("y = Dropout (l, half)", "float[batch, 5] y", lambda logits: logits),
    "a number less the logits, which is the rows' own affair": (
        "y = Sub (half, l)",
        "float[batch, 5] y",
        lambda logits: logits,
    ),
    "bounds": ("y = Clip (l, half)", "float[batch, 5] y", lambda logits: np.maximum(logits, 0.5)),
}


@pytest.mark.parametrize(("tail", "output", "after"), TAILS.values(), ids=TAILS.keys())
def test_what_follows_computes_the_same_over_more_classes(tail: str, output: str, after):
    model = with_tail(tail, output)
    location = find_head(model, "head")
    head = read_head(model, location, NAMES).expand(NEW_ROWS, ["a", "b", "c"])

    fused = apply_passes(model, FuseHeadPass(location, head))
    updatable = apply_passes(model, AddSlotsPass(location, 3))

    expected = after(head.logits(IMAGES).astype(np.float32))
    slots = {"slot_weight": NEW_ROWS[:, :-1], "slot_bias": NEW_ROWS[:, -1]}
    for edited, given in ((fused, {}), (updatable, slots)):
        onnx.checker.check_model(ir.to_proto(edited), full_check=True)
        outputs = run_model(edited, x=IMAGES, **given)
        np.testing.assert_allclose(outputs["y"], expected, atol=1e-5)
        scores = edited.graph.outputs[0]
        assert [str(size) for size in scores.shape] == ["batch", "8"]
        assert outputs[scores.name].shape == (len(IMAGES), 8)


@pytest.mark.parametrize(
    "tail",
    ["y = Reshape (l, classes)", "s = Softmax (l) m = Reshape (s, wide) y = Squeeze (m)"],
    ids=["reshape", "squeeze"],
)
def test_the_scores_of_a_fixed_single_image_may_be_a_vector(tail: str):
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[1, 4] x) => (float[5] y) {CONSTANTS} {{
        [head] l = Gemm <transB = 1> (x, w, b)
        {tail}
    }}"""
    model = parsed_model(text, w=WEIGHT, b=BIAS)
    location = find_head(model)
    head = read_head(model, location, NAMES).expand(NEW_ROWS, ["a", "b", "c"])

    outputs = run_model(apply_passes(model, FuseHeadPass(location, head)), x=IMAGES[:1])

    assert location.output_name == "l"
    logits = head.logits(IMAGES[:1]).astype(np.float32)
    np.testing.assert_allclose(outputs["l"], logits, atol=1e-5)
    np.testing.assert_allclose(outputs["y"], (softmax(logits) if "Softmax" in tail else logits)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("tail", "output", "why"),
    [
        ("y = Reshape (l, minus_one)", "float[n] y", "(Reshape) mixes classes with another axis"),
        ("y = Flatten <axis = 0> (l)", "float[1, n] y", "(Flatten) mixes classes with another axis"),
        ("y = Flatten <axis = 2> (l)", "float[n, 1] y", "(Flatten) mixes classes with another axis"),
        ("t = Transpose (l) y = Mul (l, t)", "float[n, m] y", "(Mul) combines classes with classes"),
        (
            "u = Unsqueeze (l, one) y = AveragePool <kernel_shape = [5]> (u)",
            "float[b, 1, 1] y",
            "(AveragePool) pools logits",
        ),
        (
            "k, i = TopK <axis = 0> (l, one) y = Identity (k)",
            "float[1, 5] y",
            "(TopK) does not choose the greatest logits",
        ),
        ("i = ArgMax <axis = 0> (l) y = Cast <to = 1> (i)", "float[1, 5] y", "(ArgMax) does not choose the greatest"),
        ("s = Sigmoid (l) y = Sub (half, s)", "float[b, 5] y", "(Sub) reverses the logits' order"),
        ("f = Mul (half, l) z = Neg (f) y = Exp (z)", "float[b, 5] y", "z (Neg) reverses the logits' order"),
        (
            "n = Shape (l) u = Unsqueeze (l, n) y = Identity (u)",
            "float y",
            "(Unsqueeze) has axes that are not constant",
        ),
        ("s = ReduceMean (l, zero_axis) y = Identity (s)", "float[1, 5] y", "takes the logits of several images"),
        ("y = CumSum (l, one_scalar)", "float[b, 5] y", "(CumSum) mixes classes, or takes a fixed number of them"),
    ],
)
def test_what_cannot_take_more_classes_is_named(tail: str, output: str, why: str):
    model = parsed_model(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[batch, 4] x) => ({output}) {CONSTANTS[:-1]},
            int64[1] zero_axis = {{0}}, int64 one_scalar = {{1}}> {{
            [head] l = Gemm <transB = 1> (x, w, b)
            {tail}
        }}""",
        w=WEIGHT,
        b=BIAS,
    )

    with pytest.raises(ModelLoadError) as caught:
        find_head(model, "head")

    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("opset", "node", "axes"),
    [
        (13, "y = ReduceMean <axes = [-1, 0]> (x)", (0, 2)),
        (20, "y = ReduceMean (x, given)", (0, 2)),
        (20, "y = ReduceMean (x)", (0, 1, 2)),
        (20, "y = ReduceMean <noop_with_empty_axes = 1> (x)", ()),
        (20, "y = ReduceMean (x, open)", None),
    ],
)
def test_reduced_axes_are_read_wherever_the_opset_has_them(opset: int, node: str, axes: tuple[int, ...] | None):
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[2, 3, 4] x, int64[2] open) => (float y)
        <int64[2] given = {{2, 0}}> {{ {node} }}"""
    )

    assert reduced_axes(model.graph[0], 3) == axes


def test_attributes_that_list_integers_are_empty_where_there_are_none():
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 20]> g (float[1, 1, 4, 4] x, float[1, 1, 3, 3] w) => (float y) {
            y = Conv <pads = [1, 1, 1, 1]> (x, w)
        }"""
    )

    assert integers(model.graph[0], "pads") == (1, 1, 1, 1)
    assert integers(model.graph[0], "strides") == ()


CHOICES = {
    "the index of the best class": "best = ArgMax <axis = 1, keepdims = 0> (l)",
    "the indices of the best classes": "values, best = TopK (l, two_best)",
    "an index that was moved": "raw = ArgMax <axis = 1> (l) flat = Squeeze (raw, one) best = Cast <to = 7> (flat)",
    "an index counted from 1": "raw = ArgMax <axis = 1, keepdims = 0> (l) best = Add (raw, one)",
    "one of several indices": "values, raw = TopK (l, two_best) best = Gather <axis = 1> (raw, zero)",
}
TABLES = {
    "a table that is computed": "six = Add (table, one) pair = Concat <axis = 0> (six, depths) y = Gather (pair, best)",
    "OneHot": "y = OneHot (best, depth, on_off)",
    "LabelEncoder": 'y = ai.onnx.ml.LabelEncoder <keys_int64s = [0, 1], values_strings = ["a", "b"]> (best)',
    "an operator of a domain that nobody knows": "y = maker.Lookup (best)",
    "one column for each class": "y = Equal (best, table)",
    "an index that is divided": "y = Div (best, two_best)",
    "a branch": "c = Equal (flag, zero) y = If <then_branch = t () => (float a) { a = Cast <to = 1> (best) }, "
    "else_branch = e () => (float d) { d = Cast <to = 1> (best) }> (c)",
}


def chosen(choice: str, rest: str) -> ir.Model:
    return parsed_model(
        f"""<ir_version: 10, opset_import: ["": 20, "ai.onnx.ml": 3, "maker": 1]>
        g (float[batch, 4] x) => (y) {CONSTANTS[:-1]}, int64[1] two_best = {{2}}, int64[1] flag = {{0}},
            int64 depth = {{5}}, int64[1] depths = {{5}}, int64[2] on_off = {{0, 1}},
            int64[5] table = {{7, 8, 9, 10, 11}}> {{
            [head] l = Gemm <transB = 1> (x, w, b)
            {choice}
            {rest}
        }}""".replace("=> (y)", "=> (int64[a] y)"),
        w=WEIGHT,
        b=BIAS,
    )


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_classes_is_an_obstacle_whatever_looks_up_in_it(choice: str, table: str):
    with pytest.raises(ModelLoadError, match=r"looks classes up in a table|takes classes in a graph of its own"):
        find_head(chosen(CHOICES[choice], TABLES[table]), "head")


@pytest.mark.parametrize("choice", CHOICES)
def test_a_table_of_one_label_per_class_is_none_unless_its_index_was_changed(choice: str):
    model = chosen(CHOICES[choice], "y = Gather (table, best)")

    if "from 1" in choice:
        with pytest.raises(ModelLoadError, match="looks classes up in a table"):
            find_head(model, "head")
    else:
        assert find_head(model, "head").certainty == "chosen"


@pytest.mark.parametrize("choice", CHOICES)
def test_an_index_of_a_new_class_leaves_by_every_operator_that_only_moves_it(choice: str):
    model = chosen(CHOICES[choice], "y = Identity (best)")
    location = find_head(model, "head")
    head = read_head(model, location, NAMES).expand(np.stack([NEW_ROWS[0]]) + 50, ["new"])

    outputs = run_model(apply_passes(model, FuseHeadPass(location, head)), x=np.abs(IMAGES))

    assert outputs["y"].reshape(len(IMAGES), -1)[:, 0].tolist() == [6 if "from 1" in choice else 5] * len(IMAGES)
