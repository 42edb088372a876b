"""Transforms of torchvision and configurations of timm, read by their attributes.

Neither can be installed beside the CPU build of torch that the tests use, so the classes here have their names and
their attributes (torchvision 0.25, timm 1.0), and do nothing else.
"""

from __future__ import annotations

from enum import Enum
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from exporters.stated.modules import (
    names_of_weights,
    preprocessing_of_module,
    preprocessing_of_weights,
    published_weights,
)
from exporters.stated.transforms import is_transforms, preprocessing_of_timm, preprocessing_of_transforms
from icis_deploy.errors import IncompatibleError
from icis_deploy.images.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class ImageClassification(torch.nn.Module):
    """As in torchvision/transforms/_presets.py."""

    def __init__(
        self,
        *,
        crop_size,
        resize_size=256,
        mean=MEAN,
        std=STD,
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    ):
        super().__init__()
        self.crop_size = [crop_size]
        self.resize_size = [resize_size]
        self.mean = list(mean)
        self.std = list(std)
        self.interpolation = interpolation
        self.antialias = antialias


class Step:
    def __init__(self, **attributes):
        self.__dict__ |= attributes


def step(name, **attributes):
    return type(name, (Step,), {})(**attributes)


class Compose:
    def __init__(self, *steps):
        self.transforms = list(steps)


def resize(size, interpolation=InterpolationMode.BILINEAR, antialias=True, max_size=None):
    return step("Resize", size=size, interpolation=interpolation, antialias=antialias, max_size=max_size)


def crop(size):
    return step("CenterCrop", size=size)


TO_TENSOR = step("ToTensor")
NORMALIZE = step("Normalize", mean=list(MEAN), std=list(STD), inplace=False)


def test_the_transforms_of_published_weights_are_read():
    given = ImageClassification(crop_size=224, resize_size=232, interpolation=InterpolationMode.BICUBIC)

    assert is_transforms(given)
    assert preprocessing_of_transforms(given, where="weights") == Preprocessing(
        resize=232, crop=224, mean=MEAN, std=STD, interpolation="bicubic"
    )


TENSORS = torch.tensor(MEAN), torch.tensor(STD)
COMPOSED = {
    "the usual": (
        [resize(256), crop(224), TO_TENSOR, NORMALIZE],
        {"resize": 256, "crop": 224, "mean": MEAN, "std": STD},
    ),
    "lists and tuples": ([resize([256]), crop((224, 192)), TO_TENSOR], {"resize": 256, "crop": (224, 192)}),
    "squash": (
        [resize((224, 200), InterpolationMode.BICUBIC), TO_TENSOR],
        {"resize": (224, 200), "interpolation": "bicubic"},
    ),
    "exact nearest is Pillow's": (
        [resize((8, 8), InterpolationMode.NEAREST_EXACT), TO_TENSOR],
        {"resize": (8, 8), "interpolation": "nearest"},
    ),
    "numbers of Pillow": ([resize((8, 8), 3), TO_TENSOR], {"resize": (8, 8), "interpolation": "bicubic"}),
    "not resized": ([crop(32), TO_TENSOR], {"resize": None, "crop": 32}),
    "tensors of floats": (
        [TO_TENSOR, resize(40, InterpolationMode.BICUBIC), crop(32)],
        {"resize": 40, "crop": 32, "interpolation": "bicubic", "antialias": "torch"},
    ),
    "tensors of floats, plain": (
        [TO_TENSOR, resize(40, antialias=None), crop(32)],
        {"resize": 40, "crop": 32, "antialias": "off"},
    ),
    "tensors of bytes": (
        [step("ToImage"), resize(40), crop(32), step("ToDtype", dtype=torch.float32, scale=True), NORMALIZE],
        {"resize": 40, "crop": 32, "mean": MEAN, "std": STD},
    ),
    "timm's": (
        [
            resize(235, InterpolationMode.BICUBIC),
            crop((224, 224)),
            step("MaybeToTensor"),
            step("Normalize", mean=TENSORS[0], std=TENSORS[1]),
        ],
        {
            "resize": 235,
            "crop": 224,
            "mean": TENSORS[0].tolist(),
            "std": TENSORS[1].tolist(),
            "interpolation": "bicubic",
        },
    ),
    "bytes stay": (
        [resize((8, 8)), step("PILToTensor"), step("ToDtype", dtype=torch.float32, scale=False)],
        {"resize": (8, 8), "rescale": 1.0},
    ),
    "grey": (
        [
            step("Grayscale", num_output_channels=1),
            resize((8, 8)),
            TO_TENSOR,
            step("Normalize", mean=(0.5,), std=(0.2,)),
        ],
        {"resize": (8, 8), "color": "L", "mean": 0.5, "std": 0.2},
    ),
    "grey for three": (
        [step("Grayscale", num_output_channels=3), resize((8, 8)), TO_TENSOR, NORMALIZE],
        {"resize": (8, 8), "color": "L", "channels": 3, "mean": MEAN, "std": STD},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_transforms_are_read(name):
    steps, expected = COMPOSED[name]

    assert preprocessing_of_transforms(Compose(*steps), where="mine") == Preprocessing(
        **{"mean": 0.0, "std": 1.0, **expected}
    )


REFUSED = {
    "unknown": (
        [resize((8, 8)), step("Lambda", lambd=abs), TO_TENSOR],
        r"The transforms of mine have Lambda; expected",
    ),
    "order": ([crop(8), resize(8), TO_TENSOR], r"The transforms of mine have Resize after CenterCrop; expected Grays"),
    "twice": ([resize(9), resize(8), TO_TENSOR], r"The transforms of mine have Resize after Resize; expected"),
    "shapes": (
        [resize(8), TO_TENSOR],
        r"The transforms of mine leave images of different shapes; expected Resize to a",
    ),
    "max_size": ([resize(8, max_size=20), crop(8)], r"Resize of mine has max_size '?20'?; expected none"),
    "filter": ([resize((8, 8), step("Other", value="cubic"))], r"The transforms of mine interpolate by '?cubic'?; exp"),
    "bytes": ([step("ToImage"), resize(8, antialias=False), crop(8)], r"Resize of mine resizes 8-bit tensors without"),
    "exact": ([TO_TENSOR, resize((8, 8), InterpolationMode.NEAREST_EXACT)], r"The transforms of mine interpolate by"),
    "size": ([resize("8"), TO_TENSOR], r"The transforms of mine have the size '?8'?; expected whole numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_transforms_that_no_preprocessing_says_are_refused_by_name(name):
    steps, message = REFUSED[name]

    with pytest.raises(IncompatibleError, match=f"^{message}") as caught:
        preprocessing_of_transforms(Compose(*steps), where="mine")
    assert caught.value.hint == "Give `preprocess`, which says how images are prepared."


# --- timm ---------------------------------------------------------------------------------------------------------

CONFIG = {
    "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.95,
    "crop_mode": "center", "interpolation": "bicubic", "mean": MEAN, "std": STD, "first_conv": "conv1",
    "classifier": "fc", "label_names": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"resize": 235, "crop": 224, "interpolation": "bicubic"}),
        ({"crop_pct": None, "interpolation": ""}, {"resize": 256, "crop": 224}),
        ({"interpolation": "random"}, {"resize": 235, "crop": 224}),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, {"resize": (224, 224), "crop": 224, "interpolation": "bicubic"}),
        (
            {"input_size": (3, 192, 128), "crop_mode": "squash"},
            {"resize": (202, 134), "crop": (192, 128), "interpolation": "bicubic"},
        ),
        (
            {"input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,)},
            {"resize": 29, "crop": 28, "color": "L", "mean": 0.1, "std": 0.3, "interpolation": "bicubic"},
        ),
    ],
)
def test_a_configuration_of_timm_is_read(change, expected):
    module = torch.nn.Identity()
    module.pretrained_cfg = CONFIG | change

    said = preprocessing_of_module(module, where="timm's")

    assert said.require() == Preprocessing(**{"mean": MEAN, "std": STD, **expected})
    assert said.source == "timm's (pretrained_cfg)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "border"}, r"timm's configuration of mine has crop_mode '?border'? and images of 224 x 224"),
        (
            {"input_size": (3, 192, 128)},
            r"timm's configuration of mine has crop_mode '?center'? and images of 192 x 128",
        ),
        ({"input_size": (6, 8, 8)}, r"mine takes images of 6 channels; expected one of \(1, 3, 4\)"),
    ],
)
def test_configurations_of_timm_that_no_preprocessing_says_are_refused(change, message):
    with pytest.raises(IncompatibleError, match=f"^{message}"):
        preprocessing_of_timm(CONFIG | change, where="mine")


# --- published weights of torchvision -----------------------------------------------------------------------------


class Weights(Enum):
    """As torchvision/models/_api.py's WeightsEnum: members pass on url, transforms and meta."""

    V1 = ("https://download.example.org/models/net-0123abcd.pth", 256, ("tench", "goldfish"))
    V2 = ("https://download.example.org/models/net-89ef4567.pth", 232, ("tench", "crane", "crane"))

    @property
    def url(self):
        return self.value[0]

    @property
    def transforms(self):
        return partial(ImageClassification, crop_size=224, resize_size=self.value[1])

    @property
    def meta(self):
        return {"categories": list(self.value[2])}


class Models:
    @staticmethod
    def get_model_weights(name):
        if name != "net":
            raise ValueError(f"Unknown model {name}")
        return Weights


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_the_file_of_published_weights_says_which_they_are(ending, tmp_path):
    found = published_weights(Models, "net", tmp_path / f"net-89ef4567{ending}")

    assert found is Weights.V2
    assert preprocessing_of_weights(found, where="net").require().resize == 232
    assert names_of_weights(Weights.V1, where="net").require() == ("tench", "goldfish")
    obstacle = names_of_weights(found, where="net").obstacle
    assert "'crane' is named twice" in str(obstacle)
    assert "'crane (bird)'" in str(obstacle)


def test_other_weights_are_nobodys(tmp_path):
    assert published_weights(Models, "net", tmp_path / "mine.pth") is None
    assert published_weights(Models, "other", tmp_path / "net-89ef4567.pth") is None
    assert published_weights(object(), "net", tmp_path / "net-89ef4567.pth") is None


def test_tensors_of_floats_are_prepared_as_torch_does():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    given = preprocessing_of_transforms(Compose(TO_TENSOR, resize((20, 24)), NORMALIZE), where="mine")

    tensor = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None].float() / 255
    scaled = torch.nn.functional.interpolate(tensor, size=(20, 24), mode="bilinear", antialias=True)[0].numpy()
    expected = (scaled - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(given.prepare(image), expected, atol=1e-4)
