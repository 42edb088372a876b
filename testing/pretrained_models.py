"""Small image classifiers of transformers with random weights, as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = tuple(f"kind {index:02d}" for index in range(24))
"""The classes that the models know."""

NEW_NAMES = tuple(f"new kind {index}" for index in range(4))
DESCRIPTOR_DIM = 12


def _vit(labels: dict[int, str]) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=48,
        patch_size=12,
        id2label=labels,
    )
    return ViTForImageClassification(config)


def _convnext(labels: dict[int, str]) -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_stages=2, hidden_sizes=[16, 48], depths=[1, 1], image_size=224, id2label=labels, layer_scale_init_value=1.0
    )
    return ConvNextForImageClassification(config)


def _mobilenet_v2(labels: dict[int, str]) -> Any:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(
        MobileNetV2Config(depth_multiplier=0.35, image_size=64, finegrained_output=False, id2label=labels)
    )


def _resnet(labels: dict[int, str]) -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 48], depths=[1, 1], id2label=labels)
    return ResNetForImageClassification(config)


def _swin(labels: dict[int, str]) -> Any:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=12, depths=[1], num_heads=[2], window_size=4, id2label=labels
    )
    return SwinForImageClassification(config)


MODELS: Mapping[str, tuple[Callable[[dict[int, str]], Any], str, Mapping[str, Any]]] = {
    "vit": (_vit, "ViTImageProcessorPil", {"size": {"height": 48, "width": 48}}),
    "convnext": (_convnext, "ConvNextImageProcessorPil", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}),
    "mobilenet_v2": (
        _mobilenet_v2,
        "MobileNetV2ImageProcessorPil",
        {"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}},
    ),
    "resnet": (_resnet, "ConvNextImageProcessorPil", {"size": {"shortest_edge": 64}, "crop_pct": 0.95}),
    "swin": (_swin, "ViTImageProcessorPil", {"size": {"height": 64, "width": 64}, "resample": 3}),
}
"""A maker, an image processor and its settings, by name of the architecture."""


def write_pretrained(folder: Path, name: str, *, names: tuple[str, ...] = NAMES, seed: int = 0) -> Path:
    """Write a model with its image processor, and `descriptors.npz` of `NAMES` and `NEW_NAMES` beside its folder.

    Args:
        folder: Made if it does not exist.
        name: One of `MODELS`.
        names: The model's classes.
        seed: Of weights and descriptors.

    Returns:
        `folder`.
    """
    import torch
    import transformers

    make, processor, settings = MODELS[name]
    torch.manual_seed(seed)
    model = make(dict(enumerate(names))).eval()
    with torch.no_grad():  # the few weights of a head of 24 rows, drawn so small that all logits would be equal
        for parameter in model.parameters():
            if parameter.ndim == 2 and len(parameter) == len(names):
                parameter.normal_()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    getattr(transformers, processor)(**settings).save_pretrained(folder)
    described = (*names, *NEW_NAMES)
    values = np.random.default_rng(seed).normal(size=(len(described), DESCRIPTOR_DIM)).astype(np.float32)
    np.savez(folder.parent / "descriptors.npz", names=np.array(described), values=values)
    return folder
