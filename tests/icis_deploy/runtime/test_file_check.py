"""Files are compared during the import of a library, and before anything of them is used."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from icis_deploy.bundle.manifest import check_files, load_manifest
from icis_deploy.common.background_call import BackgroundCall
from icis_deploy.errors import BundleError, CorruptFileError
from icis_deploy.runtime import device


def no_more_threads(_self):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("is_limited", [False, True])
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), CorruptFileError),
        (lambda path: path.write_bytes(path.read_bytes() + b"?"), CorruptFileError),
        (lambda path: path.unlink(), BundleError),
    ],
    ids=["another byte", "one more byte", "no file"],
)
@pytest.mark.parametrize("name", ["model.onnx", "slots.safetensors"])
def test_nothing_is_loaded_of_a_bundle_with_a_damaged_file(name, damage, error, is_limited, bundle_folder, monkeypatch):
    damage(bundle_folder / name)
    if is_limited:
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    loaded = []
    monkeypatch.setattr(device, "open_session", loaded.append)
    with pytest.raises(error, match=name):
        device.Device.open(bundle_folder)
    assert loaded == []


@pytest.mark.parametrize("is_limited", [False, True])
def test_whole_files_pass_and_damaged_ones_do_not_with_and_without_a_thread(is_limited, bundle_folder, monkeypatch):
    if is_limited:
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    check = partial(check_files, bundle_folder, load_manifest(bundle_folder))
    assert BackgroundCall(check).result() is None
    (bundle_folder / "model.onnx").write_bytes(b"another model")
    with pytest.raises(CorruptFileError, match=r"model\.onnx"):
        BackgroundCall(check).result()
