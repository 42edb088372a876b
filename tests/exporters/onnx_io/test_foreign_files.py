"""A file that is no model is named as what it is: copied again, it would be the same."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from exporters.loading.models import load_model
from exporters.onnx_io.foreign_files import foreign_file
from icis_deploy.errors import ModelLoadError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", b"")
    return buffer.getvalue()


FOREIGN = {
    "pointer of Git LFS": POINTER,
    "a page or other text": b"\n<!DOCTYPE html><html>404</html>",
    "other text, as a server answers": b'{"error": "Entry not found"}',
    "a gzip archive": gzip.compress(b"model"),
    "a zip archive": zipped(),
    "a TFLite model": b"\x1c\0\0\0TFL3",
}


@pytest.mark.parametrize("found", FOREIGN)
def test_an_onnx_file_that_is_another_kind_is_named(tmp_path: Path, found: str):
    (tmp_path / "model.onnx").write_bytes(FOREIGN[found])

    with pytest.raises(ModelLoadError, match=f"cannot be read as ONNX: it is .*{found}") as caught:
        load_model(str(tmp_path / "model.onnx"))

    assert "copy it again" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt2", "config.json"])
def test_a_pointer_among_torch_files_is_named(tmp_path: Path, name: str):
    pytest.importorskip("torch")
    spec = tmp_path / name
    if name == "config.json":
        pytest.importorskip("transformers")
        spec.write_text('{"architectures": ["ViTForImageClassification"], "model_type": "vit"}')
        (tmp_path / "model.safetensors").write_bytes(POINTER)
        spec = tmp_path
    else:
        spec.write_bytes(POINTER)

    with pytest.raises(ModelLoadError, match="is a pointer of Git LFS"):
        load_model(str(spec))


def test_weights_that_are_a_pointer_are_named(tmp_path: Path):
    pytest.importorskip("torch")
    from exporters.loading.torch_modules import read_state

    for name in ("weights.safetensors", "weights.pth"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(ModelLoadError, match="cannot be read as weights: it is a pointer of Git LFS"):
            read_state(tmp_path / name)


def test_the_beginning_of_a_model_and_what_is_no_file_tell_nothing(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x12\x00")
    (tmp_path / "empty.onnx").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "weights.pt2").write_bytes(zipped())

    assert [foreign_file(tmp_path / name) for name in ("model.onnx", "empty.onnx", "pipe.onnx", "none")] == [None] * 4
    assert foreign_file(tmp_path / "weights.pt2", may_be_zip=True) is None


@pytest.mark.parametrize("spec", ["s3://bucket/model.onnx", "https://example.com/a/model"])
def test_an_address_is_no_model(spec: str):
    with pytest.raises(ModelLoadError, match=f"{spec} is no model that can be loaded: found an address"):
        load_model(spec)
