"""Measure the peak memory of exporting a large head; Linux only.

    python scripts/experiments/large_head.py ROWS WIDTH [--external] [--head fused|updatable]
        [--added N] [--folder FOLDER]

Writes a classifier of one convolution with a head of ROWS x WIDTH, exports it with N more classes in a process of its
own, and prints that process's peak as a multiple of the head's bytes. What the libraries themselves take is not the
head's: the process first exports the same network with a small head, and the peak is counted from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icis_deploy.bundle.manifest import Bundle

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
large (float[batch, 3, {side}, {side}] image) => (float[batch, {rows}] logits) {{
    maps = Conv <kernel_shape = [8, 8], strides = [8, 8]> (image, filters)
    positive = Relu (maps)
    pooled = GlobalAveragePool (positive)
    features = Flatten (pooled)
    logits = Gemm <transB = 1> (features, weight, bias)
}}
"""


def write_model(folder: Path, rows: int, width: int, *, external: bool, added: int) -> None:
    """Write model.onnx, classes.txt and a class update of `added` classes to a new folder."""
    import numpy as np
    import onnx.parser
    import onnx_ir as ir

    from icis_deploy.api.models import head_of, inspect
    from icis_deploy.head.class_update import ClassUpdate
    from icis_deploy.updates.envelope import save_update

    folder.mkdir()
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GRAPH.format(rows=rows, side=SIDE))
    shapes = {"filters": (width, 3, 8, 8), "weight": (rows, width), "bias": (rows,)}
    for name, shape in shapes.items():
        # A placeholder without data, which protobuf could not hold; the weight is set below.
        proto.graph.initializer.add(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT, data_location=1)
    model = ir.from_proto(proto)
    for name, shape in shapes.items():
        tensor = ir.Tensor(rng.standard_normal(shape, dtype=np.float32), name=name)
        model.graph.initializers[name].const_value = tensor
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data" if external else None)
    (folder / "classes.txt").write_text("\n".join(f"class {index}" for index in range(rows)))
    del model
    head = head_of(inspect(folder / "model.onnx", classes=folder / "classes.txt"))
    update = ClassUpdate(
        base_fingerprint=head.fingerprint,
        rows=rng.standard_normal((added, width + 1), dtype=np.float32),
        added=tuple(f"new {index}" for index in range(added)),
    )
    save_update(update, folder / "new.icis")


def export_and_measure(folder: Path, kind: str, added: int) -> None:
    """Export what `write_model` wrote, and print what that took as JSON."""
    _export(folder / "small", kind, added)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, start = _resident_bytes("VmRSS"), time.perf_counter()
    bundle = _export(folder / "large", kind, added)
    seconds = time.perf_counter() - start
    files = {name: entry.size_bytes for name, entry in bundle.files.items()}
    peak = _resident_bytes("VmHWM") - before
    print(json.dumps({"peak_bytes": peak, "seconds": round(seconds, 1), "files": files}))


def _export(folder: Path, kind: str, added: int) -> Bundle:
    import icis_deploy

    return icis_deploy.export(
        folder / "model.onnx",
        classes=folder / "classes.txt",
        updates=[folder / "new.icis"],
        options=icis_deploy.ExportOptions(head=kind, capacity=added if kind == "updatable" else None),
        out=folder / "bundle",
    )


def _resident_bytes(name: str) -> int:
    """Return this process's resident memory now (VmRSS) or at its peak (VmHWM), mapped files included.

    From /proc and not from getrusage, whose peak a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def measure(folder: Path, rows: int, width: int, *, kind: str, added: int, external: bool = False) -> dict[str, object]:
    """Write both models, run `export_and_measure` in a process of its own, and compare with the head's size."""
    write_model(folder / "small", 100, width, external=False, added=added)
    write_model(folder / "large", rows, width, external=external, added=added)
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(folder), kind, str(added)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - this file
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    head_bytes = 4 * rows * (width + 1)
    return {
        "head": f"{rows} x {width}, {kind}",
        "head_mb": round(head_bytes / 1e6),
        "peak_mb": round(found["peak_bytes"] / 1e6),
        "ratio": round(found["peak_bytes"] / head_bytes, 2),
        "seconds": found["seconds"],
        "files": found["files"],
    }


def main() -> None:
    """Measure one head."""
    if sys.argv[1:2] == ["--child"]:
        export_and_measure(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--external", action="store_true", help="keep the original's weights in a file of their own")
    parser.add_argument("--head", choices=["fused", "updatable"], default="fused")
    parser.add_argument("--added", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where to write; twice the head's size is needed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        found = measure(
            Path(name), given.rows, given.width, kind=given.head, added=given.added, external=given.external
        )
        print(json.dumps(found))


if __name__ == "__main__":
    main()
