"""A model that chooses gives what numpy chooses of its scores; without the choice it is what it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.graph.edits import apply_passes
from exporters.head.topk_output import AddTopKPass, RemoveTopKPass
from icis_deploy.bundle.manifest import TOP_CLASS_IDS, TOP_PROBABILITIES
from icis_deploy.errors import ExportError, IncompatibleError, UsageError
from tests.exporters.head_graphs import HEADER, log_softmax, parsed_model, rows, run_model, sigmoid, softmax

WEIGHT, BIAS = rows(0)
IMAGES = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
LOGITS = IMAGES @ WEIGHT.T + BIAS


def classifier(tail: str = "scores = Identity (l)", outputs: str = "float[batch, 5] scores") -> ir.Model:
    return parsed_model(
        f"{HEADER} g (float[batch, 4] x) => ({outputs}) {{ l = Gemm <transB = 1> (x, w, b) {tail} }}",
        w=WEIGHT,
        b=BIAS,
    )


@pytest.mark.parametrize(
    ("score_kind", "tail", "probabilities"),
    [
        ("logits", "scores = Identity (l)", softmax(LOGITS)),
        ("probabilities", "scores = Softmax <axis = 1> (l)", softmax(LOGITS)),
        ("log-probabilities", "scores = LogSoftmax <axis = 1> (l)", np.exp(log_softmax(LOGITS))),
        ("sigmoid", "scores = Sigmoid (l)", sigmoid(LOGITS)),
    ],
)
def test_a_model_gives_its_most_probable_classes_after_its_scores(score_kind, tail, probabilities):
    model = apply_passes(classifier(tail), AddTopKPass(score_kind, 3))

    found = run_model(model, x=IMAGES)

    order = np.argsort(-LOGITS, axis=1, kind="stable")[:, :3]
    assert [output.name for output in model.graph.outputs] == ["scores", TOP_PROBABILITIES, TOP_CLASS_IDS]
    np.testing.assert_array_equal(found[TOP_CLASS_IDS], order)
    np.testing.assert_allclose(found[TOP_PROBABILITIES], np.take_along_axis(probabilities, order, 1), rtol=1e-5)
    np.testing.assert_array_equal(found["scores"], run_model(classifier(tail), x=IMAGES)["scores"])


def test_float16_scores_are_chosen_among_as_float32():
    tail, outputs = "scores = Cast <to = 10> (l)", "float16[batch, 5] scores"

    found = run_model(apply_passes(classifier(tail, outputs), AddTopKPass("logits", 2)), x=IMAGES)

    assert found[TOP_PROBABILITIES].dtype == np.float32
    order = np.argsort(-LOGITS.astype(np.float16), axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(found[TOP_CLASS_IDS], order)


def test_more_classes_than_there_are_scores_cannot_be_chosen():
    with pytest.raises(UsageError, match=r"cannot choose 6 classes: it gives 5 scores\. Give a smaller `top`"):
        apply_passes(classifier(), AddTopKPass("logits", 6))


def test_an_output_that_has_a_name_of_the_choice_is_not_lost():
    tail = f"scores = Identity (l) {TOP_PROBABILITIES} = Neg (l)"
    outputs = f"float[batch, 5] scores, float[batch, 5] {TOP_PROBABILITIES}"

    with pytest.raises(IncompatibleError, match=TOP_PROBABILITIES):
        apply_passes(classifier(tail, outputs), AddTopKPass("logits", 1))


def test_a_graph_that_does_not_choose_after_its_scores_is_no_result():
    with pytest.raises(ExportError, match=r"outputs after the scores are \[\]; expected the choice"):
        AddTopKPass("logits", 1).ensures(classifier())


def test_a_choice_is_removed_with_what_it_needs_and_nothing_else():
    plain, outputs = "scores = Identity (l) other = Neg (l)", "float[batch, 5] scores, float[batch, 5] other"
    choosing = apply_passes(classifier(plain, outputs), AddTopKPass("logits", 2))

    model = apply_passes(choosing, RemoveTopKPass())

    assert [output.name for output in model.graph.outputs] == ["scores", "other"]
    assert [node.op_type for node in model.graph] == ["Gemm", "Identity", "Neg"]
    np.testing.assert_array_equal(run_model(model, x=IMAGES)["other"], run_model(choosing, x=IMAGES)["other"])


def test_a_model_that_does_not_choose_stays_as_it_is():
    model = classifier()

    assert apply_passes(model, RemoveTopKPass()) is model
