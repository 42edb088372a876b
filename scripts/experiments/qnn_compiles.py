"""What does Qualcomm's own compiler say of `qnn/backbone.onnx`? No chip is needed, and none is asked.

    python3.11 -m venv qnn && qnn/bin/pip install onnxruntime onnxruntime-qnn
    qnn/bin/python scripts/experiments/qnn_compiles.py bundle

The x86-64 wheel of ONNX Runtime's QNN provider compiles a graph for an NPU and writes the result. The fallback to the
CPU is forbidden, so an operator that the NPU lacks is an error, and the result is one node.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path


def main() -> None:
    """Compile, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--htp-arch", default="73", help="generation of the NPU (default: %(default)s)")
    arguments = parser.parse_args()
    import onnxruntime
    import onnxruntime_qnn

    told = json.loads((arguments.bundle / "qnn" / "session.json").read_text("utf-8"))
    provider = told["execution_provider"]
    onnxruntime.register_execution_provider_library(provider, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "context.onnx"
        entries = {"ep.context_enable": "1", "ep.context_embed_mode": "1", "ep.context_file_path": str(path)}
        for name, value in (told["session_config_entries"] | entries).items():
            options.add_session_config_entry(name, value)
        options.add_provider_for_devices(devices, told["provider_options"] | {"htp_arch": arguments.htp_arch})
        onnxruntime.InferenceSession(str(arguments.bundle / "qnn" / "backbone.onnx"), options)
        print(f"compiled as a whole for HTP v{arguments.htp_arch}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
