"""A model that was exported in training mode is refused by name, and one that only could train is taken."""

from __future__ import annotations

import pytest

from exporters.graph.training_mode import refuse_training_mode
from icis_deploy.errors import ModelLoadError
from tests.exporters.head_graphs import parsed_model


def check(text: str) -> None:
    model = parsed_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x, bool asked) => (float[n, 4] y)
        <float half = {{0.5}}, float none = {{0.0}}, bool yes = {{1}}, bool no = {{0}},
         float[4] s = {{1, 1, 1, 1}}, float[4] o = {{0, 0, 0, 0}}> {{ {text} }}"""
    )
    refuse_training_mode(model, where="model.onnx")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("y = Dropout (x, half, yes)", "y (Dropout)"),
        ("y = Dropout (x, , yes)", "y (Dropout)"),
        ("t = Identity (yes) y = Dropout (x, half, t)", "y (Dropout)"),
        ("y, m, v = BatchNormalization <training_mode = 1> (x, s, o, o, s)", "y (BatchNormalization)"),
    ],
)
def test_what_computes_as_in_training_is_named(text: str, name: str):
    with pytest.raises(ModelLoadError, match="was exported in training mode") as caught:
        check(text)

    assert name in str(caught.value)
    assert "model.eval()" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "y = Dropout (x, half)",
        "y = Dropout (x, half, no)",
        "y = Dropout (x, none, yes)",
        "y = Dropout (x, half, asked)",
        "y = BatchNormalization (x, s, o, o, s)",
    ],
)
def test_what_computes_as_in_use_is_taken(text: str):
    check(text)
