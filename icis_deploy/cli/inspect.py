"""`icis-deploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.options import classes_option, model_options, model_source
from icis_deploy.cli.output import format_option, print_result
from icis_deploy.common.terminal_text import columns

if TYPE_CHECKING:
    from exporters.loading.models import LoadedModel
    from exporters.stated.statement import Statement
    from icis_deploy.api.models import OpenedModel


@click.command(short_help="Show the head that was found in a model.")
@click.argument("model")
@classes_option
@model_options
@format_option
def inspect(
    model: str, classes: Path | None, weights: Path | None, input_shape: str | None, head_node: str | None
) -> None:
    """Show the head that was found in MODEL, and how sure that is.

    MODEL is a .onnx file, a .pt2 torch.export program, a folder of transformers, owner/name of a model on its hub, or
    package.module:factory with --weights.
    """
    from icis_deploy.api.models import inspect as inspect_model

    opened = inspect_model(model_source(model, weights, input_shape, head_node), classes=classes)
    print_result({"model": model, **_result(opened)}, text=_text(opened))


def _result(opened: OpenedModel) -> dict[str, Any]:
    location, loaded = opened.location, opened.loaded
    return {
        "source": loaded.source,
        "input": {"name": loaded.input_name, "shape": list(loaded.input_shape), "dtype": str(loaded.input_dtype)},
        "head": {
            "kind": location.kind,
            "node": location.node_name,
            "weight": location.weight_name,
            "num_classes": location.num_classes,
            "feature_dim": location.feature_dim,
            "followed_by": list(location.followed_by),
            "certainty": location.certainty,
            "reason": location.reason,
            "fingerprint": None if opened.head is None else opened.head.fingerprint,
        },
        "stated": {
            "classes": _stated(loaded.stated_classes),
            "preprocessing": _stated(loaded.stated_preprocessing),
        },
        "obstacle": opened.obstacle,
    }


def _text(opened: OpenedModel) -> str:
    location, loaded = opened.location, opened.loaded
    shape = ", ".join(str(size) for size in loaded.input_shape)
    no_fingerprint = "give --classes: it covers the class names too"
    return columns(
        [
            ("model", f"{loaded.spec} ({loaded.source})"),
            ("input", f"{loaded.input_name} ({shape}) {loaded.input_dtype}"),
            ("head", f"{location.kind}, node {location.node_name!r}, weight {location.weight_name!r}"),
            ("classes", f"{location.num_classes}{_names_text(loaded)}"),
            ("feature_dim", str(location.feature_dim)),
            ("followed by", ", ".join(location.followed_by) or "nothing"),
            ("images", _preprocessing_text(loaded)),
            ("certainty", f"{location.certainty}: {location.reason}"),
            ("export", "possible" if opened.obstacle is None else f"not possible: {opened.obstacle}"),
            ("fingerprint", no_fingerprint if opened.head is None else opened.head.fingerprint),
        ]
    )


def _stated(said: Statement[Any] | None) -> dict[str, Any] | None:
    """Return what a model states as JSON values; class names as their number."""
    if said is None:
        return None
    value = said.value
    text = len(value) if isinstance(value, tuple) else None if value is None else value.to_json()
    return {"source": said.source, "value": text, "obstacle": None if said.obstacle is None else str(said.obstacle)}


def _names_text(loaded: LoadedModel) -> str:
    said = loaded.stated_classes
    if said is None:
        return ""
    return f", named by {said.source}" if said.obstacle is None else f"; {said.obstacle}"


def _preprocessing_text(loaded: LoadedModel) -> str:
    said = loaded.stated_preprocessing
    if said is None:
        return "the model does not say how they are prepared: give --preprocess"
    if said.value is None:
        return str(said.obstacle)
    settings = ", ".join(f"{name} {value}" for name, value in said.value.to_json().items())
    return f"{settings} ({said.source})"
