"""Image processors of transformers: the same images, to the last bit."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image

from exporters.stated.processors import load_processor, preprocessing_of_processor
from icis_deploy.errors import IncompatibleError, ModelLoadError
from icis_deploy.images.preprocessing import preprocessing_from_json

IMAGENET_STD = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

TABLE = {
    "ViT": ("ViTImageProcessorPil", {}),
    "ViT, grey": ("ViTImageProcessorPil", {"image_mean": [0.5], "image_std": [0.25]}),
    "ViT, short form": ("ViTImageProcessorPil", {"size": 64, "resample": 3}),
    "ViT, no square": ("ViTImageProcessorPil", {"size": {"height": 48, "width": 96}, "resample": 0}),
    "DeiT": ("DeiTImageProcessorPil", {}),
    "Swin": ("ViTImageProcessorPil", {"resample": 3, **IMAGENET_STD}),
    "ConvNeXT below 384": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}),
    "ConvNeXT, other part": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 100}, "crop_pct": 0.95}),
    "ConvNeXT from 384 on": ("ConvNextImageProcessorPil", {}),
    "ResNet": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, **IMAGENET_STD}),
    "MobileNetV1": ("MobileNetV1ImageProcessorPil", {}),
    "MobileNetV2": ("MobileNetV2ImageProcessorPil", {}),
    "EfficientNet": ("EfficientNetImageProcessorPil", {}),
    "EfficientNet B0": (
        "EfficientNetImageProcessorPil",
        {
            "size": {"height": 224, "width": 224},
            "resample": 0,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.47853944, 0.4732864, 0.47434163],
        },
    ),
    "EfficientNet, offset": ("EfficientNetImageProcessorPil", {"rescale_factor": 1 / 127.5, "rescale_offset": True}),
    "CLIP": ("CLIPImageProcessorPil", {}),
    "CLIP, small crop": ("CLIPImageProcessorPil", {"crop_size": {"height": 97, "width": 130}}),
    "SigLIP": ("SiglipImageProcessorPil", {}),
    "BEiT": ("BeitImageProcessorPil", {}),
    "BEiT, cropped": ("BeitImageProcessorPil", {"size": {"height": 256, "width": 256}, "do_center_crop": True}),
    "BiT": ("BitImageProcessorPil", {"resample": 1}),
    "LeViT": ("LevitImageProcessorPil", {}),
    "MobileViT": ("MobileViTImageProcessorPil", {"size": {"shortest_edge": 288}}),
    "PVT": ("PvtImageProcessorPil", {}),
    "PoolFormer": ("PoolFormerImageProcessorPil", {}),
    "not normalised": ("ViTImageProcessorPil", {"do_normalize": False}),
    "not rescaled": ("ViTImageProcessorPil", {"do_rescale": False, "image_mean": 127.5, "image_std": 127.5}),
    "not resized": ("CLIPImageProcessorPil", {"do_resize": False}),
}
"""Processor and settings; what is left out has the default of its class."""

DIFFERS = {
    "EfficientNet": 1e-6,
    "EfficientNet B0": 1e-6,
    "EfficientNet, offset": 2e-6,
}
"""Greatest difference of a prepared value where it is not 0: two divisions, or two offsets, are done in one."""

SIZES = [(64, 48), (301, 173), (173, 301), (257, 256), (640, 427), (224, 224), (90, 700)]


def picture(size, num_channels):
    shape = (size[1], size[0], num_channels)[: 2 if num_channels == 1 else 3]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("name", TABLE)
def test_images_are_prepared_as_transformers_prepares_them(name):
    processor = getattr(transformers, TABLE[name][0])(**TABLE[name][1])
    num_channels = 1 if name == "ViT, grey" else 3

    preprocessing = preprocessing_of_processor(processor, num_channels=num_channels, where=name)

    for size in SIZES:
        image = picture(size, num_channels)
        expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
        found = preprocessing.prepare(image)
        assert found.shape == expected.shape == preprocessing.input_shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=DIFFERS.get(name, 0), err_msg=f"{name} {size}")
    assert preprocessing_from_json(json.loads(json.dumps(preprocessing.to_json())), where="") == preprocessing


@pytest.mark.parametrize("name", ["Odd", "OffByOne"])
def test_a_processor_that_does_something_of_its_own_is_refused(name):
    # Here, and not in each process that collects the tests: these classes take a second to be imported.
    class Odd(transformers.ViTImageProcessorPil):
        """Has the settings of another, and does something else."""

        def normalize(self, image, mean, std, **options):
            return super().normalize(image[:, ::-1], mean, std, **options)

    class OffByOne(transformers.CLIPImageProcessorPil):
        """Cuts one pixel beside the centre."""

        def center_crop(self, image, size, **options):
            return super().center_crop(np.roll(image, 1, axis=2), size, **options)

    make = {"Odd": Odd, "OffByOne": OffByOne}[name]
    with pytest.raises(
        IncompatibleError,
        match=rf"^{name} of my-model prepares images in a way of its own: a picture of 230 x",
    ) as caught:
        preprocessing_of_processor(make(), where="my-model")
    assert caught.value.hint == "Give `preprocess`, which says how images are prepared."
    assert caught.value.found > 10


@pytest.mark.parametrize(
    ("processor", "settings", "message"),
    [
        (
            "PerceiverImageProcessorPil",
            {},
            r"PerceiverImageProcessorPil of here gives images of shape \(3, 224, 224\); ",
        ),
        ("CLIPImageProcessorPil", {"do_center_crop": False}, r".* has size .*shortest_edge.*: images differ in shape"),
        (
            "ViTImageProcessorPil",
            {"size": {"shortest_edge": 224, "longest_edge": 300}},
            r"The image processor of here has size .*; expected height and width, or shortest_edge alone\.",
        ),
        ("ViTImageProcessorPil", {"size": {"max_height": 9, "max_width": 9}}, r".* expected height and width, or shor"),
        ("ViTImageProcessorPil", {"image_mean": None}, r".* has image_mean .*None.*; expected numbers where do_normal"),
        ("ViTImageProcessorPil", {"image_mean": [0.5]}, r"The image processor of here fails on a picture of 230 x 151"),
    ],
)
def test_what_no_preprocessing_says_is_refused_by_name(processor, settings, message):
    with pytest.raises(IncompatibleError, match=f"^{message}"):
        preprocessing_of_processor(getattr(transformers, processor)(**settings), where="here")


def test_images_of_many_channels_are_refused_by_number():
    with pytest.raises(IncompatibleError, match=r"has num_channels '?7'?; expected one of \(1, 3, 4\)"):
        preprocessing_of_processor(transformers.ViTImageProcessorPil(), num_channels=7, where="here")


def test_a_processor_is_loaded_with_pillow_and_without_code_of_its_own(tmp_path):
    transformers.CLIPImageProcessorPil().save_pretrained(tmp_path)
    assert type(load_processor(str(tmp_path))).__name__ == "CLIPImageProcessorPil"

    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config |= {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    with pytest.raises(ModelLoadError, match=r"^transformers cannot load the image processor of "):
        load_processor(str(tmp_path))
    assert not (tmp_path / "ran").exists()
