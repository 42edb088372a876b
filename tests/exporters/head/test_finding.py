"""Finding the head: what is certain, what is not, and what the messages say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.graph.edits import apply_passes
from exporters.head.finding import find_head, read_head
from exporters.head.surgery import AddSlotsPass, FuseHeadPass
from icis_deploy.errors import AmbiguousHeadError, ModelLoadError, UsageError
from tests.exporters.head_graphs import GRAPHS, HEADER, parsed_model, rows, run_model

NAMES = tuple(f"class {index}" for index in range(5))
WEIGHT, BIAS = rows(0)
IMAGES = GRAPHS["gemm"].images(0)


def graph(
    body: str, outputs: str = "float[batch, 5] y", constants: str = "", inputs: str = "float[batch, 4] x", **weights
):
    weights = {"w": WEIGHT, "b": BIAS} | weights
    used = {
        name: array
        for name, array in weights.items()
        if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return parsed_model(f"{HEADER} g ({inputs}) => ({outputs}) {constants} {{ {body} }}", **used)


def test_a_location_says_all_of_a_plain_head():
    location = find_head(GRAPHS["softmax"].model(WEIGHT, BIAS))

    assert location.kind == "gemm"
    assert location.node_name == "head"
    assert location.weight_name == "w"
    assert location.precision == "float32"
    assert (location.num_classes, location.feature_dim) == (5, 4)
    assert (location.feature_name, location.logits_name, location.output_name) == ("h", "logits", "scores")
    assert location.followed_by == ("Softmax",)
    assert location.certainty == "certain"
    assert location.reason == "the only linear operator before the outputs, with Softmax after it"


@pytest.mark.parametrize(
    ("kind", "output", "followed_by"),
    [
        ("logits and probabilities", "logits", ()),
        ("top 2", "scores", ()),
        ("argmax", "scores", ()),
        ("log-softmax", "scores", ("LogSoftmax",)),
        ("temperature and softmax on a map", "scores", ("Softmax", "Flatten")),
        ("uint8, scale per row, quantized logits", "logits", ()),
    ],
)
def test_the_output_is_the_one_nearest_to_the_logits(kind: str, output: str, followed_by: tuple[str, ...]):
    location = find_head(GRAPHS[kind].model(WEIGHT, BIAS))

    assert location.output_name == output
    assert location.followed_by == followed_by


def test_a_node_without_a_name_is_called_by_its_output():
    model = ir.from_onnx_text(
        f"""{HEADER} g (float[batch, 4] x) => (float[batch, 2] y) <float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{
            y = MatMul (x, w)
        }}"""
    )

    location = find_head(model)

    assert location.node_name == "y"
    assert find_head(model, "y").certainty == "chosen"


def test_a_hidden_layer_that_is_also_an_output_is_not_the_head():
    model = graph(
        "hidden = Gemm <transB = 1> (x, inner) [last] y = Gemm <transB = 1> (hidden, w, b)",
        outputs="float[batch, 4] hidden, float[batch, 5] y",
        inner=np.eye(4, dtype=np.float32),
    )

    location = find_head(model)

    assert (location.node_name, location.output_name) == ("last", "y")
    assert list(run_model(apply_passes(model, AddSlotsPass(location, 2)), x=IMAGES)) == ["y", "hidden", "features"]


def test_two_heads_are_listed_and_head_node_chooses_one():
    model = graph(
        "[animals] y = Gemm <transB = 1> (x, w, b) [plants] z = MatMul (x, v)",
        outputs="float[batch, 5] y, float[batch, 3] z",
        v=np.ones((4, 3), dtype=np.float32),
    )

    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(model)
    location = find_head(model, "plants")

    assert str(caught.value) == (
        "Several layers could be the head: animals (Gemm, 5 classes, feature_dim 4); plants (MatMul, 3 classes, "
        "feature_dim 4). Choose one with `head_node`."
    )
    assert (location.num_classes, location.output_name, location.certainty) == (3, "z", "chosen")
    assert location.reason == "chosen by its name, plants"
    assert [output.shape[1] for output in apply_passes(model, AddSlotsPass(location, 2)).graph.outputs] == [5, 5, 4]


def test_a_head_that_something_unusual_follows_is_not_certain_but_can_be_chosen():
    model = graph(
        "[head] l = Gemm <transB = 1> (x, w, b) [rest] y = Relu (l) [same] z = Identity (l)",
        "float[batch, 5] z, float[batch, 5] y",
    )

    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(model)
    location = find_head(model, "head")
    head = read_head(model, location, NAMES).expand(np.ones((1, 5)), ["new"])

    assert str(caught.value) == (
        "It is not certain that this is the head: head (Gemm, 5 classes, feature_dim 4): followed by Relu rest. If it "
        "is, give `head_node='head'`."
    )
    scores = run_model(apply_passes(model, FuseHeadPass(location, head)), x=IMAGES)["y"]
    np.testing.assert_allclose(scores, np.maximum(head.logits(IMAGES), 0), rtol=1e-5)


@pytest.mark.parametrize(
    ("rest", "operators"),
    [("y = Relu (l)", "Relu"), ("a = Div (l, cap) t = Tanh (a) y = Mul (t, cap)", "Tanh, Mul")],
)
def test_choosing_a_head_is_no_advice_where_no_bundle_could_hold_the_model(rest: str, operators: str):
    model = graph(f"[head] l = Gemm <transB = 1> (x, w, b) {rest}", cap=np.float32(30))

    with pytest.raises(ModelLoadError) as caught:
        find_head(model)

    assert str(caught.value) == (
        f"The head head is followed by {operators}; a bundle can hold a model that ends in its logits, a Softmax, a "
        f"LogSoftmax or a Sigmoid. Export the model without what comes after."
    )


def test_a_margin_on_every_class_can_be_kept_when_the_head_is_chosen():
    """ArcFace's cos(angle + margin), applied to all classes as in training, is elementwise: rows can be added."""
    unit = (WEIGHT / np.linalg.norm(WEIGHT, axis=1, keepdims=True)).T
    model = graph(
        """h = LpNormalization <axis = 1> (x)
        [head] cosine = MatMul (h, w)
        square = Mul (cosine, cosine)
        rest = Sub (one, square)
        kept = Clip (rest, tiny, one)
        sine = Sqrt (kept)
        left = Mul (cosine, cos_m)
        right = Mul (sine, sin_m)
        turned = Sub (left, right)
        near = Greater (cosine, threshold)
        linear = Sub (cosine, penalty)
        with_margin = Where (near, turned, linear)
        y = Mul (with_margin, scale)""",
        constants="<float one = {1}, float tiny = {0}, float cos_m = {0.8776}, float sin_m = {0.4794}, "
        "float threshold = {-0.8776}, float penalty = {0.2397}, float scale = {16}>",
        w=np.ascontiguousarray(unit),
    )

    with pytest.raises(ModelLoadError, match="is followed by Mul, Sub, Clip"):
        find_head(model)
    location = find_head(model, "head")
    head = read_head(model, location, NAMES).expand(np.r_[0.5, 0.5, 0.5, 0.5, 0][None], ["new"])

    assert location.kind == "cosine"
    scores = run_model(apply_passes(model, FuseHeadPass(location, head)), x=IMAGES)["y"]
    cosine = head.logits(IMAGES / np.linalg.norm(IMAGES, axis=1, keepdims=True))
    expected = np.where(cosine > -0.8776, np.cos(np.arccos(cosine) + 0.5), cosine - 0.2397) * 16
    np.testing.assert_allclose(scores, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "l = MatMul (x, m) s = Softmax (l) [prior] y = Mul (s, priors)",
            "prior (Mul) combines the logits with one value per class",
        ),
        (
            "l = MatMul (x, m) [few] y = Gather <axis = 1> (l, picks)",
            "few (Gather) takes some of the classes, or of several positions",
        ),
        (
            "l = MatMul (x, m) c = ArgMax <axis = 1> (l) [ids] y = Gather (table, c)",
            "ids (Gather) looks classes up in a table",
        ),
        ("l = MatMul (x, m) [around] y = Neg (l)", "around (Neg) reverses the logits' order: the lowest would win"),
        (
            "l = MatMul (x, m) r = Identity (l) s = Sigmoid (r) [around] y = Mul (s, minus)",
            "around (Mul) reverses the logits' order",
        ),
        ("l = MatMul (x, m) [batch_wise] y = Softmax <axis = 0> (l)", "batch_wise (Softmax) is not over the classes"),
        ("l = MatMul (x, m) [mixed] y = Reshape (l, flat)", "mixed (Reshape) mixes classes with another axis"),
        (
            "l = MatMul (x, m) [lowest] y, i = TopK <largest = 0> (l, one)",
            "lowest (TopK) does not choose the greatest logits",
        ),
    ],
)
def test_a_model_that_can_take_no_more_classes_says_which_node_forbids_it(body: str, why: str):
    model = graph(
        body,
        outputs="float[batch, 5] y" if "[batch_wise]" in body else "float y",
        constants="<float minus = {-2}, int64[2] picks = {0, 3}, int64[6] table = {9, 8, 7, 6, 5, 4}, "
        "int64[1] flat = {-1}, int64[1] one = {1}>",
        m=np.ascontiguousarray(WEIGHT.T),
        priors=np.ones(5, dtype=np.float32),
    )

    with pytest.raises(ModelLoadError) as caught:
        find_head(model)

    assert str(caught.value).startswith(
        "No class can be added to this model's head: l (MatMul, 5 classes, feature_dim 4): "
    )
    assert why in str(caught.value)
    with pytest.raises(ModelLoadError, match="No class can be added to the head l: "):
        find_head(model, "l")


@pytest.mark.parametrize(
    ("body", "outputs", "inputs", "why"),
    [
        ("y = Relu (x)", "float[batch, 4] y", "float[batch, 4] x", "its 1 nodes depend on no linear operator"),
        (
            "[mix] y = Einsum <equation = 'ij,kj->ik'> (x, w)".replace("'", '"'),
            "float[batch, 5] y",
            "float[batch, 4] x",
            "output 'y' comes from mix (Einsum)",
        ),
        (
            "[big] y = Conv <pads = [1, 1, 1, 1]> (x, k)",
            "float[batch, 5, 3, 3] y",
            "float[batch, 4, 3, 3] x",
            "big (Conv) is none, as its kernel is 3x3; expected 1x1",
        ),
        (
            "[dense] y = Conv (x, p)",
            "float[batch, 5, 3, 3] y",
            "float[batch, 4, 3, 3] x",
            "dense (Conv) is none, as it is applied at every position of features of shape [batch, 4, 3, 3], which "
            "nothing averages",
        ),
        (
            "m = Conv (x, p) y = GlobalMaxPool (m)",
            "float[batch, 5, 1, 1] y",
            "float[batch, 4, 3, 3] x",
            "which nothing averages",
        ),
        (
            "m = Conv (x, p) [bent] r = Relu (m) y = GlobalAveragePool (r)",
            "float[batch, 5, 1, 1] y",
            "float[batch, 4, 3, 3] x",
            "which nothing averages before bent (Relu); scores that are cut or bent at each position do not follow",
        ),
        (
            "[value] y = MatMul (x, one)",
            "float[batch, 1] y",
            "float[batch, 4] x",
            "value (MatMul, 1 classes, feature_dim 4) gives one number, which is no choice between classes",
        ),
        (
            "t = Transpose (x) [sideways] y = Gemm <transA = 1, transB = 1> (t, w)",
            "float[batch, 5] y",
            "float[batch, 4] x",
            "sideways (Gemm) is none, as its features are transposed (transA)",
        ),
        (
            "[grouped] y = Conv <group = 2> (x, pairs)",
            "float[batch, 6, 1, 1] y",
            "float[batch, 4, 1, 1] x",
            "grouped (Conv) is none, as it is a grouped convolution",
        ),
        (
            "[padded] m = Conv <pads = [1, 1, 1, 1]> (x, p) y = GlobalAveragePool (m)",
            "float[batch, 5, 1, 1] y",
            "float[batch, 4, 3, 3] x",
            "padded (Conv) is none, as it pads its input",
        ),
        (
            "[skipping] m = Conv <strides = [2, 2]> (x, p) y = GlobalAveragePool (m)",
            "float[batch, 5, 1, 1] y",
            "float[batch, 4, 3, 3] x",
            "skipping (Conv) is none, as it skips positions (strides)",
        ),
        (
            "[stacked] y = MatMul (x, many)",
            "float[2, batch, 5] y",
            "float[batch, 4] x",
            "stacked (MatMul) is none, as its weight has shape [2, 4, 5]; expected 2 dimensions",
        ),
        (
            "[of_images] y = Gemm <transB = 1> (x, w, column)",
            "float[3, 5] y",
            "float[3, 4] x",
            "of_images (Gemm) is none, as its bias is not a constant with one value per class",
        ),
        (
            "[of_five] y = Gemm <transB = 1> (x, w, column_of_5)",  # as many images as classes
            "float[5, 5] y",
            "float[5, 4] x",
            "of_five (Gemm) is none, as its bias is not a constant with one value per class",
        ),
        (
            "[attention] y = MatMul (x, x)",
            "float[4, 4] y",
            "float[4, 4] x",
            "output 'y' comes from attention (MatMul)",
        ),
        (
            "q, s, z = DynamicQuantizeLinear (x) [whole] y = MatMulInteger (q, stored, z)",
            "int32[batch, 5] y",
            "float[batch, 4] x",
            "It computes in integers: export the float model that it was made from, with `precision='int8'`.",
        ),
        (
            "[whole] y = MatMul (x, ints)",
            "int32[batch, 5] y",
            "int32[batch, 4] x",
            "whole (MatMul) is none, as its weight's type is INT32; expected one of BFLOAT16, DOUBLE, FLOAT, FLOAT16",
        ),
    ],
)
def test_a_model_without_a_head_says_what_was_found(body: str, outputs: str, inputs: str, why: str):
    model = graph(
        body,
        outputs=outputs,
        inputs=inputs,
        k=np.ones((5, 4, 3, 3), dtype=np.float32),
        pairs=np.ones((6, 2, 1, 1), dtype=np.float32),
        many=np.ones((2, 4, 5), dtype=np.float32),
        column=np.ones((3, 1), dtype=np.float32),
        column_of_5=np.ones((5, 1), dtype=np.float32),
        p=np.ones((5, 4, 1, 1), dtype=np.float32),
        one=np.ones((4, 1), dtype=np.float32),
        ints=np.ones((4, 5), dtype=np.int32),
        stored=np.ones((4, 5), dtype=np.uint8),
    )

    with pytest.raises(ModelLoadError) as caught:
        find_head(model)

    assert str(caught.value).startswith("No head was found: ")
    assert why in str(caught.value)


def test_a_model_with_operators_of_a_runtimes_optimizer_says_what_to_give_instead():
    model = parsed_model(
        """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
        g (float[batch, 4, 1, 1] x) => (float[batch, 5, 1, 1] y) {
            m = com.microsoft.FusedConv (x, v)
            y = Conv (m, w)
        }""",
        v=np.ones((4, 4, 1, 1), dtype=np.float32),
        w=np.ones((5, 4, 1, 1), dtype=np.float32),
    )

    with pytest.raises(ModelLoadError, match=r"shape of its features is unknown.* such as FusedConv of com\.microsoft"):
        find_head(model)


def test_a_head_that_is_averaged_with_another_cannot_grow():
    """As in distilled vision transformers, which average a class token's and a distillation token's head."""
    model = graph(
        """[class_head] a = Gemm <transB = 1> (x, w, b)
        [distilled_head] c = Gemm <transB = 1> (x, v, b)
        [both] s = Add (a, c)
        y = Mul (s, half)""",
        constants="<float half = {0.5}>",
        v=WEIGHT * 2,
    )

    with pytest.raises(ModelLoadError) as caught:
        find_head(model)

    assert "both (Add) combines the logits with one value per class" in str(caught.value)
    assert "class_head" in str(caught.value)
    assert "distilled_head" in str(caught.value)


def test_a_linear_layer_inside_is_named_when_something_else_makes_the_output():
    model = graph(
        "[head] l = Gemm <transB = 1> (x, w, b) [rest] y = LayerNormalization (l, gain)",
        gain=np.ones(5, dtype=np.float32),
    )

    with pytest.raises(ModelLoadError) as caught:
        find_head(model)

    assert "output 'y' comes from rest (LayerNormalization)" in str(caught.value)
    assert (
        "The last linear operator is head (Gemm, 5 classes, feature_dim 4): rest (LayerNormalization) mixes classes, "
        "or takes a fixed number of them."
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("head_node", "message"),
    [
        (
            "nowhere",
            "The node nowhere, chosen as the head, is no node of this graph. Expected one of: head (Gemm, 5 classes, "
            "feature_dim 4). Choose one of them with `head_node`.",
        ),
        (
            "rest",
            "The node rest, chosen as the head, is a Softmax. Expected one of: head (Gemm, 5 classes, feature_dim 4). "
            "Choose one of them with `head_node`.",
        ),
    ],
)
def test_a_head_node_that_is_none_is_a_usage_error_that_lists_what_there_is(head_node: str, message: str):
    model = graph("[head] l = Gemm <transB = 1> (x, w, b) [rest] y = Softmax (l)")

    with pytest.raises(UsageError) as caught:
        find_head(model, head_node)

    assert str(caught.value) == message


def test_a_chosen_layer_inside_the_network_cannot_be_the_head():
    model = graph(
        "[inside] h = Gemm <transB = 1> (x, inner) r = Relu (h) [head] y = Gemm <transB = 1> (r, w, b)",
        inner=np.eye(4, dtype=np.float32),
    )

    with pytest.raises(ModelLoadError, match=r"No class can be added to the head inside: head \(Gemm\) mixes classes"):
        find_head(model, "inside")


@pytest.mark.parametrize("bend", ["Relu", "LeakyRelu", "Sigmoid"])
def test_a_head_that_is_bent_before_it_is_averaged_is_named_with_what_to_do(bend: str):
    model = graph(
        f"m = Conv (x, p) [bent] r = {bend} (m) y = GlobalAveragePool (r)",
        outputs="float[batch, 5, 1, 1] y",
        inputs="float[batch, 4, 3, 3] x",
        p=WEIGHT[:, :, None, None],
    )

    with pytest.raises(ModelLoadError, match=r"before bent .* what a new class gets") as caught:
        find_head(model)
    assert "Such is SqueezeNet's head: average the features first" in str(caught.value)
    with pytest.raises(ModelLoadError, match="cannot be used as a head: it is applied at every position"):
        find_head(model, "m")


def test_what_is_said_of_a_bent_map_is_not_said_of_a_body_whose_kernel_is_greater():
    model = graph(
        "m = Conv (x, k) r = Relu (m) a = GlobalAveragePool (r) f = Flatten (a) y = Mul (f, f)",
        inputs="float[batch, 4, 6, 6] x",
        k=np.ones((5, 4, 3, 3), np.float32),
    )

    with pytest.raises(ModelLoadError, match="its kernel is 3x3") as caught:
        find_head(model)
    assert "SqueezeNet" not in str(caught.value)


def test_what_is_said_of_a_bent_map_is_not_said_of_a_body_behind_an_unknown_head():
    model = graph(
        "m = Conv (x, p) r = Relu (m) a = GlobalAveragePool (r) f = Flatten (a) "
        'y = Einsum <equation = "nf,kf->nk"> (f, w)',
        inputs="float[batch, 4, 3, 3] x",
        p=np.ones((4, 4, 1, 1), np.float32),
    )

    with pytest.raises(ModelLoadError, match="comes from") as caught:
        find_head(model)
    assert "SqueezeNet" not in str(caught.value)


@pytest.mark.parametrize(
    "groups",
    [
        "p = Softmax (logits) y = MatMul (p, g)",
        "best = ArgMax <axis = 1, keepdims = 0> (logits) p = OneHot (best, depth, ends) y = MatMul (p, g)",
    ],
)
def test_what_sums_the_classes_of_a_head_to_groups_is_no_head(groups: str):
    model = graph(
        f"h = Relu (x) [head] logits = Gemm <transB = 1> (h, w, b) {groups}",
        outputs="float[batch, 3] y, float[batch, 5] logits",
        constants="<int64 depth = {5}, float[2] ends = {0.0, 1.0}>",
        g=np.ones((5, 3), dtype=np.float32),
    )

    with pytest.raises(ModelLoadError, match=r"No class can be added to this model's head: head \(Gemm, 5 classes"):
        find_head(model)
    assert find_head(model, "y").num_classes == 3


def test_an_embedding_that_is_given_too_leaves_the_head_certain():
    model = graph(
        "e = Gemm <transB = 1> (x, v) h = Relu (e) [head] y = Gemm <transB = 1> (h, w, b)",
        outputs="float[batch, 5] y, float[batch, 4] e",
        v=np.ones((4, 4), dtype=np.float32),
    )

    assert (find_head(model).node_name, find_head(model).certainty) == ("head", "certain")


def test_a_bias_that_is_added_to_turned_logits_is_said_to_fit_into_the_head():
    model = graph(
        """l = MatMul (x, m) t = Transpose <perm = [1, 0]> (l)
        [late_bias] s = Add (t, column)
        y = Transpose <perm = [1, 0]> (s)""",
        m=np.ascontiguousarray(WEIGHT.T),
        column=BIAS[:, None],
    )

    with pytest.raises(ModelLoadError, match=r"late_bias \(Add\) .* can go into the head's own bias"):
        find_head(model)
