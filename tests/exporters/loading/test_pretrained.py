"""Models of transformers: folders, names on the hub, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from exporters.loading.models import load_model
from exporters.loading.pretrained import is_pretrained, load_pretrained
from icis_deploy.errors import ModelLoadError, UsageError
from icis_deploy.images.preprocessing import Preprocessing
from testing.pretrained_models import MODELS, NAMES, write_pretrained

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ViT with its image processor."""
    return write_pretrained(tmp_path / "my-vit", "vit")


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_a_classifier_with_names_shape_and_preprocessing(name: str, tmp_path: Path):
    folder = write_pretrained(tmp_path / name, name)

    loaded = load_model(str(folder))

    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = np.random.default_rng(0).normal(size=(3, *loaded.input_shape[1:])).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).logits.numpy()
    assert (loaded.source, loaded.input_name, loaded.output_names) == ("transformers", "pixel_values", ("logits",))
    np.testing.assert_allclose(loaded.original_logits(images), expected, atol=1e-5 * np.abs(expected).max())
    assert loaded.stated_classes is not None
    assert loaded.stated_classes.require() == NAMES
    assert loaded.stated_preprocessing is not None
    assert loaded.stated_preprocessing.require().input_shape == loaded.input_shape[1:]


def test_what_somebody_says_counts_before_what_the_folder_states(tmp_path: Path):
    folder = write_pretrained(tmp_path / "net", "resnet")
    explicit = Preprocessing(resize=80, crop=(72, 80), mean=(0.5,) * 3, std=(0.5,) * 3)

    loaded = load_model(str(folder), preprocessing=explicit)

    assert loaded.input_shape == ("batch", 3, 72, 80)
    assert loaded.stated_preprocessing is None
    assert load_model(str(folder), None, (3, 96, 96)).input_shape == ("batch", 3, 96, 96)


def test_a_folder_without_image_processor_has_the_shape_of_its_configuration(folder: Path):
    (folder / "preprocessor_config.json").unlink()

    loaded = load_model(str(folder))

    assert loaded.stated_preprocessing is None
    assert loaded.input_shape == ("batch", 3, 48, 48)


def test_a_model_saved_in_half_precision_is_loaded_in_float32(folder: Path):
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    model.half().save_pretrained(folder)

    assert load_model(str(folder)).input_dtype == np.float32


def test_a_backbone_gets_no_head_at_random(folder: Path):
    transformers.ViTModel.from_pretrained(folder).save_pretrained(folder)

    with pytest.raises(
        ModelLoadError, match=r"lacks weights of ViTForImageClassification: 'classifier\.bias', "
    ) as caught:
        load_model(str(folder))
    assert "transformers would draw them at random" in str(caught.value)


def test_weights_of_another_size_are_refused(folder: Path):
    state = load_file(folder / "model.safetensors")
    state["classifier.weight"] = state["classifier.weight"][:-1].contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelLoadError, match=r"^transformers cannot load \S+my-vit as an image classifier: "):
        load_model(str(folder))


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_pickled_weights_are_read_without_running_what_is_in_them(folder: Path, tmp_path: Path):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(str(folder)).input_shape == ("batch", 3, 48, 48)

    for is_archive in (True, False):
        bomb = dict(state) | {"x": Bomb(tmp_path / "ran")}
        torch.save(bomb, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_archive)
        with pytest.raises(ModelLoadError, match=r"^transformers cannot load \S+my-vit as an image classifier: "):
            load_model(str(folder))
        assert not (tmp_path / "ran").exists()


def test_code_of_a_model_is_not_run(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")

    with pytest.raises(ModelLoadError, match=r"^\S+my-vit needs code of its own, which would run here; refused\."):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), r"^transformers cannot load \S+my-vit as an image classifier"),
        (lambda f: (f / "model.safetensors").unlink(), r"^transformers cannot load \S+my-vit as an image classifier"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), r"^transformers cannot load \S+my-vit as an imag"),
        (
            lambda f: (f / "config.json").unlink(),
            r"is no model that can be loaded: found a folder without a config\.json",
        ),
        (
            lambda f: transformers.BertConfig(num_hidden_layers=1).save_pretrained(f),
            r"as an image classifier: its configuration is a BertConfig, and no image classifier of transformers has "
            r"one\. If it classifies text, sound or the like, export it yourself with one float32 input",
        ),
    ],
)
def test_a_folder_that_is_no_image_classifier_is_refused(change, message: str, folder: Path):
    change(folder)

    with pytest.raises(ModelLoadError, match=message):
        load_model(str(folder))


def test_a_folder_holds_its_own_weights(folder: Path):
    with pytest.raises(UsageError, match=r"my-vit holds its own weights; others go with package\.module:factory only"):
        load_model(str(folder), folder / "model.safetensors")


# --- the hub ------------------------------------------------------------------------------------------------------


def test_a_name_on_the_hub_is_owner_and_name_and_no_path_that_leads_nowhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    assert is_pretrained("google/vit-base-patch16-224")
    assert is_pretrained("timm/resnet18.a1_in1k@main")
    for path in (
        "models/my-vit",
        "my-vit",
        "a/b/c",
        "./my/vit",
        "/tmp/vit",
        "mine/model.onnx",
        "../a/b",
        "a:b/c",
        "models",
    ):
        assert not is_pretrained(path), path
    with pytest.raises(
        ModelLoadError, match=r"^models/my-vit is no model that can be loaded: found nothing of that name"
    ):
        load_model("models/my-vit")


def test_without_a_network_a_name_says_so_and_what_to_do(tmp_path: Path):
    code = "from exporters.loading.models import load_model; load_model('owner/no-such-model')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}

    run = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False)

    assert (
        "ModelLoadError: owner/no-such-model is no file or folder here, and no model could be had from the hub"
        in run.stderr
    )
    assert "(hf download NAME), and give its folder" in run.stderr


def test_a_folder_never_asks_the_hub(folder: Path, monkeypatch):
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    assert load_pretrained(str(folder), needs_preprocessing=True).class_names.require() == NAMES
