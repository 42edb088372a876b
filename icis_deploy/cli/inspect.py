"""`icis-deploy inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.options import NEW_PATH, check_output, classes_option, model_options, model_source, refuse_given
from icis_deploy.cli.output import format_option, note, print_result
from icis_deploy.cli.verify import signature_text
from icis_deploy.common.terminal_text import columns

if TYPE_CHECKING:
    from exporters.loading.models import LoadedModel
    from exporters.stated.statement import Statement
    from icis_deploy.api.models import OpenedModel
    from icis_deploy.errors import ICISDeployError


@click.command(short_help="Show the head that was found in a model, or what a bundle is.")
@click.argument("model")
@classes_option
@model_options
@click.option("--classes-out", type=NEW_PATH, help="Also write the head's class names here, one a line, for --classes.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@format_option
def inspect(
    model: str,
    classes: Path | None,
    weights: Path | None,
    input_shape: str | None,
    head_node: str | None,
    classes_out: Path | None,
    overwrite: bool,
) -> None:
    """Show the head that was found in MODEL, and how sure that is.

    MODEL is a .onnx file, a .pt2 torch.export program, a folder of transformers, owner/name of a model on its hub, or
    package.module:factory with --weights. Of a bundle it is shown what its
    manifest says, and who signed it.
    """
    from icis_deploy.bundle.manifest import MANIFEST_NAME

    if Path(model, MANIFEST_NAME).is_file():
        refuse_given(
            "classes",
            "weights",
            "input_shape",
            "head_node",
            "classes_out",
            "overwrite",
            reason="a bundle says that itself.",
        )
        _inspect_bundle(Path(model))
        return
    from icis_deploy.api.models import inspect as inspect_model

    if classes_out is not None:
        check_output(classes_out, overwrite=overwrite, added_to="classes")
    opened = inspect_model(model_source(model, weights, input_shape, head_node), classes=classes)
    if classes_out is not None:
        _write_classes(opened, classes_out)
    print_result({"model": model, **_result(opened)}, text=_text(opened))


def _write_classes(opened: OpenedModel, path: Path) -> None:
    from icis_deploy.head.class_names import quoted

    said = opened.loaded.stated_classes
    if opened.head is not None:
        _write_lines(path, opened.head.class_names)
        return
    names = None if said is None else said.told_apart
    if said is None or names is None or len(names) != opened.location.num_classes:
        raise _unnamed(opened, path)
    _write_lines(path, names)
    numbered = [name for index, name in enumerate(names) if name.endswith(f" ({index})")]
    note(
        f"Warning: {said.source} gives some classes one name. In {path} the number of the class stands behind it: "
        f"{quoted(numbered)}. Write better names there if you like, and give --classes {path} to every command."
    )


def _write_lines(path: Path, names: Sequence[str]) -> None:
    from icis_deploy.common.files import write_file

    write_file(path, "".join(f"{name}\n" for name in names).encode())


def _unnamed(opened: OpenedModel, path: Path) -> ICISDeployError:
    from icis_deploy.errors import UsageError

    said = opened.loaded.stated_classes
    if said is not None and said.obstacle is not None:
        return said.obstacle
    return UsageError(
        f"The model does not name its classes, so that {path} cannot be written.",
        where=path,
        hint="Write their names there yourself, one a line, in the order of the model's outputs.",
    )


def _inspect_bundle(folder: Path) -> None:
    from icis_deploy.api.signing import signers_of
    from icis_deploy.bundle.manifest import load_bundle, target_digest
    from icis_deploy.runtime.state.store import Store

    bundle, signers = load_bundle(folder), signers_of(folder)
    num_added = len(bundle.class_names) - bundle.num_seen
    written_at = None if bundle.written_at is None else bundle.written_at.isoformat()
    store = Store(folder)
    journal = store.load_journal(bundle)
    num_keys, num_roots = len(store.trusted_keys(journal)), len(journal.root_keys)
    result: dict[str, Any] = {
        "bundle": str(folder),
        "head": bundle.head_kind,
        "num_seen": bundle.num_seen,
        "num_baked": num_added,
        "capacity": bundle.capacity,
        "precision": bundle.precision,
        "fingerprint": bundle.base_fingerprint,
        "target": target_digest(bundle),
        "written_at": written_at,
        "signed_by": list(signers),
        "num_trusted_keys": num_keys,
        "num_root_keys": num_roots,
        "root_threshold": journal.root_threshold if num_roots else None,
    }
    text = [
        ("bundle", str(folder)),
        ("head", f"{bundle.head_kind}, {bundle.num_seen} seen classes, {num_added} baked after them"),
        ("slots", str(bundle.capacity)),
        ("precision", bundle.precision),
        ("fingerprint", bundle.base_fingerprint),
        ("target", str(result["target"])),
        ("written", written_at or "not noted"),
        ("signature", signature_text(signers)),
        ("trusted keys", _keys_text(num_keys, num_roots, journal.root_threshold)),
    ]
    print_result(result, text=columns(text))
    if not signers:
        note(f"Warning: {folder} is not signed: whoever can write to it on its way can exchange it.")


def _keys_text(num_keys: int, num_roots: int, threshold: int) -> str:
    if num_roots:
        return f"{num_keys}; {threshold} of {num_roots} root keys may replace them"
    if num_keys:
        return f"{num_keys}; no root keys, so any one of them may replace the others (`icis-deploy rotate-keys --root`)"
    return "none: updates are taken with --allow-unsigned alone"


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
            ("classes", f"{location.num_classes}{_names_text(opened)}"),
            ("feature_dim", str(location.feature_dim)),
            ("followed by", ", ".join(location.followed_by) or "nothing"),
            ("images", _preprocessing_text(loaded)),
            ("certainty", f"{location.certainty}: {location.reason}"),
            ("export", _export_text(opened)),
            ("fingerprint", no_fingerprint if opened.head is None else opened.head.fingerprint),
        ]
    )


def _export_text(opened: OpenedModel) -> str:
    """Say whether a bundle can hold the model, and what has to be said for that."""
    if opened.obstacle is not None:
        return f"not possible: {_in_options(opened.obstacle)}"
    is_open = any(isinstance(size, str) for size in opened.loaded.input_shape[1:])
    if is_open and opened.preprocessing is None:
        return "possible; inputs may have any size: say which with --preprocess, or with --input-shape"
    return "possible"


def _in_options(text: str) -> str:
    return command_line_hint(text, all_commands(), command="export")


def _stated(said: Statement[Any] | None) -> dict[str, Any] | None:
    """Return what a model states as JSON values; class names as their number."""
    if said is None:
        return None
    value = said.value
    text = len(value) if isinstance(value, tuple) else None if value is None else value.to_json()
    return {"source": said.source, "value": text, "obstacle": None if said.obstacle is None else str(said.obstacle)}


def _names_text(opened: OpenedModel) -> str:
    said = opened.loaded.stated_classes
    if opened.head is not None and said is not None and said.value != opened.head.class_names:
        return ", named by the list that was given"
    if said is None:
        return ""
    if said.obstacle is None:
        return f", named by {said.source}"
    written = "" if said.told_apart is None else " --classes-out writes a list in which they are told apart."
    return f"; {_in_options(str(said.obstacle))}{written}"


def _preprocessing_text(loaded: LoadedModel) -> str:
    said = loaded.stated_preprocessing
    if said is None:
        return "the model does not say how they are prepared: give --preprocess"
    if said.value is None:
        return _in_options(str(said.obstacle))
    settings = ", ".join(f"{name} {value}" for name, value in said.value.to_json().items())
    return f"{settings} ({said.source})"
