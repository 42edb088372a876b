"""The device half imports neither torch nor onnx, and the test that says so can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import icis_deploy.runtime

RUNTIME = Path(icis_deploy.runtime.__file__).parent
REPOSITORY = RUNTIME.parent.parent
DEVICE_MODULES = [
    *(
        ".".join(("icis_deploy.runtime", *path.relative_to(RUNTIME).with_suffix("").parts))
        for path in sorted(RUNTIME.rglob("*.py"))
        if path.stem != "__init__"
    ),
    "icis_deploy.updates.signing",
    "icis_deploy.api.diff",
]
HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "scipy", "sklearn", "matplotlib")


FOR_CHANGES = (
    *(f"icis_deploy.runtime.changes.{name}" for name in ("rules", "self_test", "teaching_rules", "timings")),
    "icis_deploy.runtime.teaching.generator",
    *("cryptography", "email", "importlib.metadata", "securesystemslib", "shutil", "tempfile"),
    *(
        "icis_deploy.updates.envelope",
        "icis_deploy.images.loading",
        "icis_deploy.updates.trusted_keys",
        "icis_deploy.updates.payload",
    ),
)
"""What only changing a device takes, or reading its images; `email` is what `importlib.metadata` is slow for."""


def heavy_imports(code: str) -> set[str]:
    """What a fresh Python has imported of `HEAVY` after running some code."""
    return {name for name in imports_after(code) if name in HEAVY}


def imports_after(code: str) -> set[str]:
    """What a fresh Python has imported after running some code: modules, and the packages that they are in."""
    script = f"import sys\n{code}\nprint(*sys.modules, *(name.split('.')[0] for name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=120
    )
    return set(result.stdout.split())


def test_the_list_of_modules_is_not_empty():
    assert "icis_deploy.runtime.device" in DEVICE_MODULES
    assert len(DEVICE_MODULES) > 10


def test_importing_every_module_of_the_device_half_imports_nothing_heavy():
    assert heavy_imports("\n".join(f"import {name}" for name in DEVICE_MODULES)) == set()


def test_running_a_device_imports_nothing_heavy(bundle_folder, signed, tmp_path):
    from testing.bundles import make_update

    path = tmp_path / "new.icis"
    path.write_bytes(signed(make_update("okapi")))
    code = f"""
import numpy as np
from icis_deploy.runtime.device import Device
device = Device.open({str(bundle_folder)!r})
device.apply({str(path)!r})
device.predict(np.zeros((1, 6), np.float32))
device.rollback()
"""
    assert heavy_imports(code) == set()


def test_a_device_that_only_answers_imports_nothing_that_only_changes_need(bundle_folder, signed):
    from testing.bundles import make_update

    answer = "device.predict(np.zeros((1, 6), np.float32))"
    opened = f"""
import numpy as np
from icis_deploy.runtime.device import Device
device = Device.open({str(bundle_folder)!r})
{answer}
"""
    assert imports_after(opened) & set(FOR_CHANGES) == set()
    changed = imports_after(f"{opened}\ndevice.apply({signed(make_update('okapi'))!r})\n{answer}")
    assert {"icis_deploy.runtime.changes.rules", "icis_deploy.runtime.changes.self_test", "cryptography"} <= changed
    assert imports_after(opened) & set(FOR_CHANGES) == set(), "what was committed is read with no more"


@pytest.mark.parametrize("name", ["onnx", "scipy"])
def test_a_heavy_import_would_be_noticed(name):
    pytest.importorskip(name)
    assert name in heavy_imports(f"import icis_deploy.runtime.device, {name}")
