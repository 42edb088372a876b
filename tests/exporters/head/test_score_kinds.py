"""What a model's scores are, told from the operators that the classes pass after the head."""

from __future__ import annotations

import pytest

from exporters.head.finding import find_head
from exporters.head.score_kinds import score_kind
from icis_deploy.errors import ModelLoadError
from tests.exporters.head.test_tail import TAILS, with_tail

MATRIX = "float[batch, 5] y"
TAIL_KINDS: dict[str, tuple[str, str, str]] = {
    "nothing": ("y = Identity (l)", MATRIX, "logits"),
    "softmax": ("y = Softmax (l)", MATRIX, "probabilities"),
    "log-softmax, cast": ("s = LogSoftmax (l) y = Cast <to = 1> (s)", MATRIX, "log-probabilities"),
    "sigmoid": ("y = Sigmoid (l)", MATRIX, "sigmoid"),
    "view by the logits' own size": (
        """u = Unsqueeze (l, last_two) sizes = Shape (u) images = Gather (sizes, zero)
        target = Concat <axis = 0> (images, minus_one) y = Reshape (u, target)""",
        MATRIX,
        "logits",
    ),
    "softmax of a matrix, reshaped to the logits' own shape": (
        "u = Unsqueeze (l, one) m = Reshape (u, matrix) s = Softmax (m) sizes = Shape (u) y = Reshape (s, sizes)",
        "float[batch, 1, 5] y",
        "probabilities",
    ),
    "softmax over the last axis, brought there": (
        "u = Unsqueeze (l, last_two) t = Transpose <perm = [0, 2, 3, 1]> (u) s = Softmax (t) y = Reshape (s, matrix)",
        MATRIX,
        "probabilities",
    ),
}


@pytest.mark.parametrize(("tail", "output", "kind"), TAIL_KINDS.values(), ids=TAIL_KINDS.keys())
@pytest.mark.parametrize("opset", [13, 20])
def test_operators_that_only_move_scores_do_not_change_what_they_are(opset: int, tail: str, output: str, kind: str):
    location = find_head(with_tail(tail, output, opset))

    assert score_kind(location.node_name, location.followed_by) == kind


@pytest.mark.parametrize("name", ["softmax written out", "two branches that meet", "bounds"])
def test_scores_of_another_kind_are_refused_with_what_makes_them(name: str):
    tail, output, _ = TAILS[name]

    location = find_head(with_tail(tail, output), "head")

    with pytest.raises(ModelLoadError, match=r"The head head is followed by .*; a bundle can hold a model that"):
        score_kind(location.node_name, location.followed_by)


def test_integers_after_the_head_are_told_to_come_from_a_float_model():
    with pytest.raises(ModelLoadError, match=r"followed by QuantizeLinear, Softmax;.* with `precision='int8'`\."):
        score_kind("head", ("QuantizeLinear", "Softmax"))
