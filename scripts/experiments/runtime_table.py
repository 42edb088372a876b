"""Write the table of runtimes in docs/exporters.md, from the registry of targets and from what was measured.

    python scripts/experiments/runtime_table.py            prints it
    python scripts/experiments/runtime_table.py --write    puts it into the document

A row for each runtime that a bundle can be opened in, and for each target that no runtime of ours runs: a new one is a
row by itself, with what is not known of it said. What is known comes from docs/results/runtimes.json
(`other_runtimes.py --out`) and docs/results/extras.json (`install_extras.py`); what no machine here can run is stated
in this file.
"""

# Why: docs/decisions/0132.

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters.targets.registry import TARGETS
from icis_deploy.common.files import write_file
from icis_deploy.runtime.sessions.choice import CONVERTED_RUNTIMES, RUNTIME_NAMES

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "exporters.md"
MEASURED = REPOSITORY / "docs" / "results" / "runtimes.json"
INSTALLED = REPOSITORY / "docs" / "results" / "extras.json"
START, END = "<!-- made by scripts/experiments/runtime_table.py -->", "<!-- end -->"

HEADER = (
    "runtime",
    "installs here",
    "fused",
    "updatable",
    "int8",
    "gate's error",
    "time / ONNX Runtime",
    "swap",
    "arm64 wheel",
    "what no machine here can run",
)

FLOAT_ALONE = frozenset(CONVERTED_RUNTIMES) - {"litert"}
"""Runtimes whose converters get the whole model, slots and all."""

EXTRA_OF = {
    "onnxruntime": "cpu",
    "onnxruntime-cuda": "gpu",
    "onnxruntime-tensorrt": "gpu",
    "split": "cpu",
    "qnn": "onnxruntime-qnn",
    "qnn-emulated": "cpu",
}
"""Extras of runtimes that are called otherwise."""

NOT_RUN = {
    "onnxruntime": "-",
    "openvino": "GPU and NPU",
    "split": "a chip's compiler",
    "qnn": "everything but the conversion",
    "qnn-emulated": "the chip's own arithmetic",
    "litert": "GPU and NPU delegates",
    "mnn": "OpenCL, Vulkan, NPU backends",
    "executorch": "GPU and NPU backends, phones",
    "ncnn": "Vulkan, phones",
    "coreml": "everything but the conversion",
    "ort-amd64": "builds without ONNX",
    "ort-arm": "ARM, builds without ONNX",
    "onnxruntime-cuda": "everything: there is no GPU",
    "onnxruntime-tensorrt": "everything: there is no GPU",
    "tensorrt": "everything: there is no GPU",
    "tensorrt-rtx": "everything but the build",
    "triton": "the server",
    "web": "WebGPU, Firefox, Safari",
}

Measured = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By kind of bundle (`updatable, fp32`) and by runtime, what `other_runtimes.py` found."""


def table(names: tuple[str, ...], measured: Measured, installed: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as Markdown.

    Args:
        names: Runtimes, and targets without one.
        measured: What was measured of them.
        installed: What became of each extra in an environment of its own.
    """
    lines = [HEADER, tuple("---" for _ in HEADER), *(row(name, measured, installed) for name in names)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(name: str, measured: Measured, installed: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the cells of one runtime."""
    of_kind = {kind: found[name] for kind, found in measured.items() if name in found}
    main = of_kind.get("updatable, fp32", of_kind.get("fused, fp32", {}))
    extra = installed.get(EXTRA_OF.get(name, name))
    wheel = None if extra is None else extra.get("arm64_wheel_mb")
    swap = main.get("swap_ms")
    return (
        f"`{name}`",
        _installs(name, extra),
        _passed(of_kind, "fused, fp32"),
        _passed(of_kind, "updatable, fp32"),
        "refused" if name in FLOAT_ALONE else _passed(of_kind, "updatable, int8"),
        f"{main['gate_error']:.1e}" if "gate_error" in main else "-",
        f"{main['time_ratio']:.2f}" if "time_ratio" in main else "-",
        "-" if swap is None else f"{max(swap, 0.0):.1f} ms",
        "-" if wheel is None else f"{wheel:.0f} MB",
        NOT_RUN.get(name, "not said yet"),
    )


def _installs(name: str, extra: Mapping[str, Any] | None) -> str:
    if name not in RUNTIME_NAMES:
        return "no library of ours"
    if extra is None or "installs" not in extra:
        return "not tried"
    return f"yes, {extra['size_mb']} MB" if extra["installs"] else "no"


def _passed(of_kind: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    found = of_kind.get(kind, {})
    verdict = str(found.get("gate", "not measured"))
    life = found.get("life")
    if life is None or verdict != "passed":
        return verdict
    is_sound = life["has_same_classes"] and life["refused_by"] and life["is_restored"] and not life["num_torn"]
    return "passed, updated" if is_sound else "passed, **update not sound**"


def present_table() -> str:
    """Return the table of the registry and the results as they are now."""
    names = (*RUNTIME_NAMES, *(name for name, target in TARGETS.items() if target.runtime is None))
    results = [json.loads(path.read_text("utf-8")) if path.is_file() else {} for path in (MEASURED, INSTALLED)]
    return table(tuple(dict.fromkeys(names)), *results)


def with_table(document: str, made: str) -> str:
    """Return a document with another table between its two marks.

    Raises:
        ValueError: If a mark is missing.
    """
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{DOCUMENT} has no {START if not start else END}")
    return f"{before}{START}\n{made}\n{END}{after}"


def main() -> int:
    """Print the table, or put it into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help=f"put it into {DOCUMENT.name}")
    arguments = parser.parse_args()
    if arguments.write:
        write_file(DOCUMENT, with_table(DOCUMENT.read_text("utf-8"), present_table()).encode())
    else:
        print(present_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
