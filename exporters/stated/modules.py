"""What modules of torch say of themselves: configurations of transformers and timm, published weights of torchvision.

Sources: transformers, `PretrainedConfig.id2label`; timm, `pretrained_cfg` (timm/models/_pretrained.py); torchvision,
`get_model_weights`, whose members have `url`, `transforms` and `meta` (torchvision/models/_api.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from exporters.stated.statement import Statement, names_by_index, stated, stated_names
from exporters.stated.transforms import preprocessing_of_timm, preprocessing_of_transforms
from icis_deploy.images.preprocessing import Preprocessing

_TIMM = ("pretrained_cfg", "default_cfg")


def names_of_module(module: object, *, where: str) -> Statement[tuple[str, ...]] | None:
    """Return the class names that a module of transformers or timm states; `None` where it states none."""
    id2label = getattr(getattr(module, "config", None), "id2label", None)
    if id2label:
        return names_by_index(id2label, source=f"{where} (config.id2label)")
    name, config = timm_config(module)
    labels = config.get("label_names")
    return stated_names(list(labels), source=f"{where} ({name}, label_names)") if labels else None


def preprocessing_of_module(module: object, *, where: str) -> Statement[Preprocessing] | None:
    """Return how images are prepared for a module of timm; `None` where a module does not say."""
    name, config = timm_config(module)
    if not config.get("input_size"):
        return None
    return stated(lambda: preprocessing_of_timm(config, where=where), source=f"{where} ({name})")


def timm_config(module: object) -> tuple[str, Mapping[str, Any]]:
    """Return timm's configuration of a module, and the name that it has there; an empty one where it has none."""
    for name in _TIMM:
        config = getattr(module, name, None)
        if isinstance(config, Mapping):
            return name, config
    return "", {}


def published_weights(models: object, builder: str, weights: Path) -> Any | None:
    """Return the published weights that a file holds, by the name that they are downloaded under.

    Args:
        models: The module that the model's factory is in; `None` is returned unless it has torchvision's
            `get_model_weights`.
        builder: Name of the factory.
        weights: The file; what it is called decides, but for its ending.
    """
    get_weights = getattr(models, "get_model_weights", None)
    if get_weights is None:
        return None
    try:
        members = list(get_weights(builder))
    except Exception:  # the library's own way of saying that it has none
        return None
    for member in members:
        if PurePosixPath(urlparse(str(getattr(member, "url", ""))).path).stem == weights.stem:
            return member
    return None


def names_of_weights(member: Any, *, where: str) -> Statement[tuple[str, ...]] | None:
    """Return the class names of published weights."""
    categories = getattr(member, "meta", {}).get("categories")
    return stated_names(list(categories), source=f"{where} ({member}, categories)") if categories else None


def preprocessing_of_weights(member: Any, *, where: str) -> Statement[Preprocessing]:
    """Return how images are prepared for published weights."""
    return stated(
        lambda: preprocessing_of_transforms(member.transforms(), where=where), source=f"{where} ({member}, transforms)"
    )
