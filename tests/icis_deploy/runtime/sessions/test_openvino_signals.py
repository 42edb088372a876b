"""Signals in a process whose OpenVINO sessions come and go, as those of a device do that goes over to a new bundle."""

import subprocess
import sys

import pytest

from testing.bundles import write_bundle

pytest.importorskip("openvino", reason="OpenVINO is not installed")

PROGRAM = """
import os, signal, sys
from pathlib import Path
from icis_deploy.runtime.sessions.openvino_session import load_openvino_session
old = load_openvino_session(Path(sys.argv[1]), num_threads=1)
new = load_openvino_session(Path(sys.argv[1]), num_threads=1)
del old, new
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_handled_after_sessions_were_freed_in_the_order_in_which_they_were_loaded(tmp_path):
    model = write_bundle(tmp_path / "bundle") / "model.onnx"

    done = subprocess.run([sys.executable, "-c", PROGRAM, model], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
