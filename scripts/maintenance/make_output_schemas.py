"""Write the JSON schemas of what commands print with `--format json` and of a manifest; run it after a change of them.

What the code holds as values is made of them; the rest stands here, and tests validate what commands really print.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results.schema import schema_of
from icis_deploy import errors
from icis_deploy.cli.main import cli
from icis_deploy.cli.output import SCHEMA_VERSION
from icis_deploy.errors import ICISDeployError
from icis_deploy.runtime.operations import ListedClass
from icis_deploy.runtime.status import BundleStatus

REPOSITORY = Path(__file__).resolve().parents[2]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
TEXT, WHOLE, NUMBER, YES_NO = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$"}


def or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that also takes null."""
    return {**schema, "type": [schema["type"], "null"]}


def listed(items: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def fields(values: Mapping[str, Any], *, optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an object that has these fields and no other."""
    every = {**values, **(optional or {})}
    return {"type": "object", "properties": every, "required": list(values), "additionalProperties": False}


ENTRY = fields(
    {
        "sequence": WHOLE,
        "time": TIME,
        "action": TEXT,
        "version": WHOLE,
        "num_added": WHOLE,
        "num_replaced": WHOLE,
        "num_removed": WHOLE,
        "class": or_null(TEXT),
        "payload_sha256": or_null(TEXT),
        "signed_by": or_null(TEXT),
        "changed_answers": or_null(NUMBER),
        "allowed_past_guard": YES_NO,
        "allowed_revoked": YES_NO,
        "photos_sha256": TEXTS,
    }
)
"""A line of a device's history."""

ERROR: dict[str, Any] = {
    "type": "object",
    "description": "Instead of the command's own keys, where it failed.",
    "properties": {
        "type": TEXT,
        "message": {**TEXT, "description": "What stderr says, with the cure."},
        "exit_code": {"enum": [1, 2, 3, 4, 5, 6]},
        "found": {"description": "What was found, as a value; null where none is stated."},
        "expected": {"description": "What was expected, as a value."},
        "where": or_null(TEXT),
        "hint": or_null(TEXT),
        "causes": {**TEXTS, "description": "Only with -v: what caused it, the nearest first."},
    },
    "required": ["type", "message", "exit_code"],
    "additionalProperties": False,
}


def classes_of_errors() -> list[str]:
    """Return the names of all classes of errors, as `error.type` has them; usage errors of the command line besides."""
    return sorted(
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ICISDeployError)
    )


def output_schema() -> dict[str, Any]:
    """Return the schema of what commands print: those that carriers and programs on devices read, in full."""
    status, listed_class = schema_of(BundleStatus, title=""), schema_of(ListedClass, title="")
    own = {
        "apply": {"bundle": TEXT, "update": TEXT, "changed": YES_NO, "entry": {"$ref": "#/$defs/entry"}},
        "teach": {"bundle": TEXT, "class": TEXT, "entry": {"$ref": "#/$defs/entry"}, "warnings": TEXTS},
        "rollback": {"bundle": TEXT, "entry": {"$ref": "#/$defs/entry"}},
        "history": {
            "bundle": TEXT,
            "max_changed_answers": or_null(NUMBER),
            "history": listed({"$ref": "#/$defs/entry"}),
            "doubtful": listed(fields({"signed_by": or_null(TEXT), "num_classes": WHOLE})),
        },
        "classes": {
            "bundle": TEXT,
            "version": WHOLE,
            "capacity": WHOLE,
            "num_free_slots": WHOLE,
            "highest_version": WHOLE,
            "digest": or_null(TEXT),
            "target": TEXT,
            "classes": listed({"$ref": "#/$defs/ListedClass"}),
        },
        "predict": {
            "bundle": TEXT,
            "disabled": TEXTS,
            "predictions": listed(
                fields(
                    {
                        "image": TEXT,
                        "version": WHOLE,
                        "classes": listed(fields({"name": TEXT, "probability": NUMBER})),
                    }
                )
            ),
        },
        "status": status["$defs"]["BundleStatus"]["properties"],
    }
    envelope = {
        "schema_version": {"const": SCHEMA_VERSION},
        "command": {"enum": ["", *cli.commands]},
        "status": {"enum": ["ok", "failed", "error"]},
    }
    cases = [
        {
            "if": {"properties": {"command": {"const": name}}, "not": {"required": ["error"]}},
            "then": {"properties": values, "required": list(values)},
        }
        for name, values in own.items()
    ]
    return {
        "$schema": DRAFT,
        "title": "What a command of icis-deploy prints with --format json",
        "type": "object",
        "properties": {**envelope, "error": {"$ref": "#/$defs/error"}},
        "required": list(envelope),
        "allOf": cases,
        "$defs": {
            "entry": ENTRY,
            "error": {
                **ERROR,
                "properties": {**ERROR["properties"], "type": {**TEXT, "examples": classes_of_errors()}},
            },
            **{name: each for each in (status, listed_class) for name, each in each["$defs"].items()},
        },
    }


def manifest_schema() -> dict[str, Any]:
    """Return the schema of `manifest.json` as this release writes it."""
    return {
        "$schema": DRAFT,
        "title": "The manifest of a bundle of icis-deploy",
        **fields(
            {
                "schema_version": {"const": 3},
                "head_kind": {"enum": ["fused", "updatable"]},
                "class_names": TEXTS,
                "num_seen": WHOLE,
                "feature_dim": WHOLE,
                "capacity": {**WHOLE, "description": "Slots; 0 for a fused head."},
                "base_fingerprint": SHA256,
                "head_version": WHOLE,
                "precision": {"enum": ["fp32", "fp16", "int8"]},
                "score_kind": {"enum": ["logits", "probabilities", "log-probabilities", "sigmoid"]},
                "top": {**WHOLE, "description": "Choices that the model makes itself; 0 for none."},
                "arbiter": YES_NO,
                "model_input": fields({"name": TEXT, "shape": listed(WHOLE), "dtype": TEXT}),
                "preprocessing": {"type": ["object", "null"]},
                "files": {
                    "type": "object",
                    "additionalProperties": fields({"sha256": SHA256, "size_bytes": WHOLE}),
                },
                "parity": listed({"type": "object"}),
                "updates": listed({"type": "object"}),
                "max_changed_answers": or_null(NUMBER),
                "created_by": {"type": "object", "additionalProperties": TEXT},
            },
            optional={"reference_source": or_null(TEXT), "written_at": or_null(TIME)},
        ),
    }


SCHEMAS = {
    "icis_deploy/cli/output.schema.json": output_schema,
    "icis_deploy/bundle/manifest.schema.json": manifest_schema,
}
"""By path in the repository: what makes the schema."""


def main() -> None:
    """Write both."""
    for name, make in SCHEMAS.items():
        (REPOSITORY / name).write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
