"""Models as people have them: nothing said but where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from PIL import Image

import icis_deploy
from icis_deploy.api.inputs import preprocessing_from
from icis_deploy.api.models import head_of, open_with_preprocessing
from icis_deploy.cli.main import run
from icis_deploy.errors import IncompatibleError, LoadError, ModelLoadError, UsageError
from icis_deploy.images.loading import load_image_list
from icis_deploy.images.preprocessing import Preprocessing
from testing.pretrained_models import NAMES, NEW_NAMES, write_pretrained
from testing.tiny_project import TinyProject


@pytest.mark.slow
def test_a_folder_of_transformers_goes_the_whole_way_without_a_word_about_it(tmp_path, monkeypatch):
    """No --classes, no --preprocess, no --input-shape; how other architectures load, test_pretrained.py tests."""
    folder = write_pretrained(tmp_path / "my-vit", "vit")
    monkeypatch.chdir(tmp_path)
    model = "./my-vit"

    assert run(["inject", model, "--descriptors", "descriptors.npz", "--method", "ridge", "--out", "new.icis"]) == 0
    assert run(["export", model, "--update", "new.icis", "--out", "bundle"]) == 0
    assert run(["verify", "bundle", "--against", model]) == 0

    bundle = icis_deploy.load_bundle("bundle")
    assert bundle.class_names == (*NAMES, *NEW_NAMES)
    pixels = np.random.default_rng(0).integers(0, 256, (91, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    device = icis_deploy.Device.open("bundle")
    logits = device.logits(device.prepare(["picture.png"])).values[0, : len(NAMES)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    original = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = original(**processor(images=[Image.open("picture.png")], return_tensors="pt")).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


class Small(torch.nn.Module):
    """Twelve features of a picture, five classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 12, 3, stride=2)
        self.dropout = torch.nn.Dropout(0.5)
        self.classifier = torch.nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.conv(image).relu().mean(dim=(2, 3))))


def five(tmp_path: Path) -> Path:
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    return tmp_path / "five.txt"


def test_a_module_is_a_model_and_stays_what_it_was(tmp_path):
    module = Small().train()
    source = icis_deploy.ModelSource(spec=module, example=torch.zeros(2, 3, 16, 16))

    opened = icis_deploy.inspect(source, classes=five(tmp_path))

    assert (opened.loaded.source, opened.loaded.spec) == ("module", "Small")
    assert opened.loaded.input_shape == ("batch", 3, 16, 16)
    assert module.training
    np.testing.assert_array_equal(opened.head.rows[:, :-1], module.classifier.weight.detach().numpy())
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    before = opened.loaded.original_logits(images)
    with torch.no_grad():
        module.classifier.weight.zero_()
    np.testing.assert_array_equal(opened.loaded.original_logits(images), before)


def test_the_shape_of_a_module_comes_from_its_preprocessing(tmp_path):
    settings = {"resize": [20, 16], "mean": 0.5, "std": 0.5}

    options = icis_deploy.ExportOptions(preprocess=settings)
    bundle = icis_deploy.export(Small(), classes=five(tmp_path), out=tmp_path / "bundle", options=options)

    assert bundle.model_input.shape == (3, 20, 16)
    assert bundle.preprocessing == Preprocessing(resize=(20, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert icis_deploy.verify(tmp_path / "bundle", against=Small())[0].passed


def test_timms_module_states_how_its_images_are_prepared(tmp_path):
    module = Small()
    module.pretrained_cfg = {"input_size": (3, 24, 24), "crop_pct": 0.8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    module.pretrained_cfg["label_names"] = ["a", "b", "c", "d", "e"]

    opened = icis_deploy.inspect(module)

    assert opened.preprocessing == Preprocessing(resize=30, crop=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert head_of(opened).class_names == ("a", "b", "c", "d", "e")
    module.pretrained_cfg["label_names"] = ["a", "b", "c"]
    with pytest.raises(
        IncompatibleError, match=r"^Small \(pretrained_cfg, label_names\) names 3 classes; the head .* has 5\."
    ):
        icis_deploy.inspect(module)
    assert head_of(icis_deploy.inspect(module, classes=five(tmp_path))).class_names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Small(), UsageError, r"^Small does not state the shape of its input\. Give it, such as `input_shape="),
        (Small, ModelLoadError, r"^A type is no model; expected a torch\.nn\.Module, or a path\. Call what makes"),
        (abs, ModelLoadError, r"^A builtin_function_or_method is no model"),
        (icis_deploy.ModelSource(spec=Small(), example=np.zeros(3)), UsageError, r"^The example has shape \(3,\)"),
        (
            icis_deploy.ModelSource(spec=Small(), example=np.zeros((1, 3, 8, 8)), input_shape=(3, 9, 9)),
            UsageError,
            r"^The example has shape \(1, 3, 8, 8\), and the input shape is \(3, 9, 9\)",
        ),
        (
            icis_deploy.ModelSource(spec=Small(), weights="weights.pth", input_shape=(3, 8, 8)),
            UsageError,
            r"^Small holds its own weights",
        ),
    ],
)
def test_what_is_no_model_or_says_too_little_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        icis_deploy.inspect(model)


def with_metadata(project: TinyProject, path: Path, **metadata: str) -> Path:
    model = onnx.load(project.model)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_an_onnx_model_of_ultralytics_says_all(tiny_project, tmp_path):
    names = {index: f"class{index:02d}" for index in range(40)}
    model = with_metadata(tiny_project, tmp_path / "m.onnx", names=str(names), imgsz="[16, 16]", task="classify")

    update = icis_deploy.inject(
        model, descriptors=tiny_project.descriptors, options=icis_deploy.InjectionOptions(method="ridge")
    )
    bundle = icis_deploy.export(model, updates=[update], out=tmp_path / "bundle")

    assert bundle.seen_names == tiny_project.seen_names
    assert bundle.preprocessing == Preprocessing(resize=16, crop=16, mean=(0,) * 3, std=(1,) * 3)
    explicit = Preprocessing(resize=18, crop=16, mean=(0.5,) * 3, std=(1,) * 3)
    assert open_with_preprocessing(model, classes=None, preprocess=explicit)[1] == explicit


def test_what_metadata_contradict_is_named_with_them(tiny_project, tmp_path):
    model = with_metadata(
        tiny_project, tmp_path / "m.onnx", names="{0: 'a', 1: 'b'}", imgsz="[32, 32]", task="classify"
    )

    with pytest.raises(
        IncompatibleError, match=r"m\.onnx \(names in its metadata\) names 2 classes; the head \S+ has 40\."
    ):
        icis_deploy.inspect(model)
    with pytest.raises(
        IncompatibleError,
        match=r"m\.onnx \(imgsz in its metadata\) says that images have shape \(3, 32, 32\); the model takes",
    ):
        open_with_preprocessing(model, classes=tiny_project.classes, preprocess=None)
    opened, _ = open_with_preprocessing(model, classes=tiny_project.classes, preprocess=tiny_project.preprocess)
    assert head_of(opened).class_names == tiny_project.seen_names


def test_a_model_that_states_no_names_asks_for_them(tiny_project):
    with pytest.raises(UsageError, match=r"^The classes of .*model\.onnx are not known\. Give `classes`, a text file"):
        head_of(icis_deploy.inspect(tiny_project.model))


def test_names_that_only_count_are_no_names(tmp_path):
    folder = write_pretrained(tmp_path / "net", "resnet", names=("LABEL_0", "LABEL_1", "LABEL_2"))

    opened = icis_deploy.inspect(folder)

    assert opened.head is None
    with pytest.raises(
        ModelLoadError, match=r"\(config\.json, id2label\) only counts the classes .* Give `classes`, a text"
    ):
        head_of(opened)


# --- preprocessing as people have it -------------------------------------------------------------------------------

SETTINGS = {"resize": [32, 40], "mean": 0.5, "std": 0.25, "interpolation": "bicubic"}
EXPECTED = Preprocessing(resize=(32, 40), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic")


def test_preprocessing_is_a_mapping_a_file_a_value_or_a_processor(tmp_path):
    (tmp_path / "preprocess.json").write_text(json.dumps(SETTINGS))
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 40}, resample=3, image_std=[0.25] * 3)
    processor.save_pretrained(tmp_path)

    for given in (SETTINGS, tmp_path / "preprocess.json", str(tmp_path / "preprocess.json"), EXPECTED):
        assert preprocessing_from(given) == EXPECTED
    written = (tmp_path / "preprocessor_config.json").read_text()
    (tmp_path / "vit.json").write_text("\ufeff" + written, encoding="utf-8")
    for given in (processor, tmp_path / "preprocessor_config.json", tmp_path / "vit.json", json.loads(written)):
        found = preprocessing_from(given)
        assert found.to_json() == EXPECTED.to_json() | {"crop_rounding": "down"}
    assert preprocessing_from(None) is None


def test_what_says_nothing_about_preprocessing_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^A builtin_function_or_method does not say how images are prepared\."):
        preprocessing_from(abs)
    with pytest.raises(IncompatibleError, match=r"^preprocess: unknown keys \['size'\], missing keys "):
        preprocessing_from({"size": 3})
    with pytest.raises(
        LoadError, match=r"^Cannot read the preprocessing file .*preprocessor_config\.json: No such file"
    ):
        preprocessing_from(tmp_path / "preprocessor_config.json")


@pytest.mark.parametrize("antialias", ["torch", "off"])
def test_pixels_that_are_not_whole_are_no_input_of_bytes(antialias, tiny_project, tmp_path):
    settings = {"resize": 20, "crop": 16, "mean": 0.5, "std": 0.25, "antialias": antialias}

    for model_input in ("float32", "uint8"):
        options = icis_deploy.ExportOptions(preprocess=settings, form=icis_deploy.ModelForm(model_input=model_input))
        export = {"classes": tiny_project.classes, "out": tmp_path / model_input, "options": options}
        if model_input == "float32":
            assert icis_deploy.export(tiny_project.model, **export).preprocessing.antialias == antialias
            continue
        with pytest.raises(
            IncompatibleError, match=rf"^The preprocessing has antialias '{antialias}', whose pixels are "
        ):
            icis_deploy.export(tiny_project.model, **export)
        assert not (tmp_path / "uint8").exists()


def test_a_model_that_takes_bytes_scales_them_as_the_preprocessing_says(tiny_project, tmp_path):
    settings = {"resize": [16, 16], "mean": [120, 110, 100], "std": 60, "rescale": 1.0, "color": "BGR"}
    logits = {}
    for model_input in ("float32", "uint8"):
        options = icis_deploy.ExportOptions(preprocess=settings, form=icis_deploy.ModelForm(model_input=model_input))
        icis_deploy.export(
            tiny_project.model, classes=tiny_project.classes, out=tmp_path / model_input, options=options
        )
        device = icis_deploy.Device.open(tmp_path / model_input)
        paths = load_image_list(tiny_project.images).paths[:4]
        logits[model_input] = device.logits(device.prepare(paths)).values
    np.testing.assert_allclose(logits["uint8"], logits["float32"], atol=1e-4 * np.abs(logits["float32"]).max())
