"""Put the rows of a class update into the PyTorch module that they were predicted for, to go on training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from icis_deploy.api.inputs import ClassNames, PathLike, class_names_from, update_from
from icis_deploy.common.arrays import Float32
from icis_deploy.errors import ClassConflictError, IncompatibleError, UsageError, WrongBaseError
from icis_deploy.head.arbiter import deviation_lengths
from icis_deploy.head.class_names import quoted
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_NAMED = 3


def add_to_module(model: nn.Module, update: PathLike | ClassUpdate, *, classes: ClassNames | None = None) -> nn.Module:
    """Return a copy of a PyTorch module whose last linear layer also has the rows of a class update.

    Its logits are those of the original, and after them those of the new classes; all parameters can be trained. Of an
    update with an arbiter the layer becomes one that computes it (`ArbitratedLinear`).

    Args:
        model: The classifier that the update was made for; it is not changed.
        update: A class update that adds classes, or its file.
        classes: The class names that the head was read with; by default those of `model.config.id2label`.

    Example:
        def with_new_classes(model):
            return icis_deploy.add_to_module(model, "new.icis", classes="classes.txt")

    Raises:
        WrongBaseError: If no linear layer of the module, with these class names, is the head that the update was made
            for.
        ClassConflictError: If the update replaces or removes classes, which a module does not know.
        IncompatibleError: If the update has an arbiter, and the head is a convolution.
        UsageError: If nothing says what the classes are, or `model` is no module.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"A {type(model).__name__} is no PyTorch module.",
            found=type(model).__name__,
            expected="torch.nn.Module",
            hint="Give the module that was exported, as it was then.",
        )
    change, names = update_from(update), _names_of(model, classes)
    if change.replaced or change.removed:
        raise ClassConflictError(
            f"The class update replaces or removes {quoted((*change.replaced, *change.removed))}, which a module "
            f"without slots does not know.",
            found=(*change.replaced, *change.removed),
            expected="an update that only adds classes",
            hint="Give the update that `inject()` made.",
        )
    paths, head = _head_of(model, names, change)
    larger = copy.deepcopy(model)
    layer = _expanded(larger.get_submodule(paths[0]), change, head)
    if paths == [""]:
        return layer
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(larger.get_submodule(parent), name, layer)
    _rename(larger, (*names, *change.added))
    return larger


def _names_of(model: nn.Module, classes: ClassNames | None) -> tuple[str, ...]:
    stated = getattr(getattr(model, "config", None), "id2label", None) if classes is None else classes
    names = class_names_from(stated)
    if names is None:
        raise UsageError(
            "Nothing says which classes the module knows, and an update is made for a head with its class names.",
            found="no class names",
            expected="those that `inject()` was given",
            hint="Give `classes`.",
        )
    return names


def _rows_in(model: nn.Module) -> Iterator[tuple[str, Float32, Float32]]:
    """Yield the rows of every layer that can be a head, by its path; a layer with two paths comes twice."""
    from torch import nn

    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.Linear):
            weight = layer.weight
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
            weight = layer.weight.flatten(1)
        else:
            continue
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
        yield path, _numpy(weight), _numpy(bias)


def _numpy(tensor: Tensor) -> Float32:
    return np.asarray(tensor.detach().float().cpu().numpy())


def _head_of(model: nn.Module, names: tuple[str, ...], update: ClassUpdate) -> tuple[list[str], Head]:
    """Return the paths of the layer that an update was made for, and what it holds.

    Raises:
        WrongBaseError: If there is none.
    """
    found: list[str] = []
    alike: list[str] = []
    head = None
    for path, weight, bias in _rows_in(model):
        if weight.shape != (len(names), update.rows.shape[1] - 1):
            continue
        alike.append(path)
        rows = np.concatenate([weight, bias[:, None]], axis=1)
        each = Head(rows=rows, class_names=names) if np.isfinite(rows).all() else None
        if each is not None and each.fingerprint == update.base_fingerprint:
            found.append(path)
            head = each
    if head is None:
        shape = f"{len(names)} rows of {update.rows.shape[1] - 1} weights"
        listed = ", ".join(alike[:_MAX_NAMED])
        none = f"it has no linear layer with {shape}"
        what = f"its layers with {shape} ({listed}) hold other rows" if alike else none
        raise WrongBaseError(
            f"The class update was made for the head {update.base_fingerprint[:16]}…, which this module lacks: {what}, "
            f"or the class names are others.",
            found=tuple(alike),
            expected=update.base_fingerprint,
            where=type(model).__name__,
            hint="Give the module as it was when its classes were injected, with the class list of then.",
        )
    return found, head


def _expanded(layer: nn.Module, update: ClassUpdate, head: Head) -> nn.Module:
    """Return a layer with the rows of an update after its own, in its type and on its device."""
    import torch
    from torch import nn

    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight, has_arbiter = layer.weight, update.arbiter is not None and bool(update.arbiter.any())
    if has_arbiter and not isinstance(layer, nn.Linear):
        raise IncompatibleError(
            "The class update has an arbiter, and the head of the module is a convolution.",
            found="an arbiter",
            expected="constant offsets",
            hint="Inject again with `arbiter='off'`.",
        )
    rows = torch.from_numpy(update.rows.copy()).to(weight)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
    larger = copy.deepcopy(layer)
    new = rows[:, :-1].reshape(len(rows), *weight.shape[1:])
    larger.weight = nn.Parameter(torch.cat([weight.detach(), new]), requires_grad=weight.requires_grad)
    larger.bias = nn.Parameter(torch.cat([bias.detach(), rows[:, -1]]), requires_grad=weight.requires_grad)
    if isinstance(larger, nn.Linear):
        larger.out_features = len(larger.weight)
    else:
        larger.out_channels = len(larger.weight)
    if not has_arbiter or not isinstance(larger, nn.Linear):
        return larger
    from icis_deploy.api.module_head import ArbitratedLinear

    arbiter = torch.from_numpy(np.array(update.arbiter)).to(weight)
    return ArbitratedLinear(larger, arbiter, torch.from_numpy(deviation_lengths(head.rows)).to(weight))


def _rename(model: Any, names: tuple[str, ...]) -> None:
    """Bring what a module says of its classes up to date, where it says it as transformers and timm do."""
    config = getattr(model, "config", None)
    if isinstance(getattr(config, "id2label", None), dict) and config is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    for attribute in ("num_labels", "num_classes"):
        if isinstance(getattr(model, attribute, None), int):
            setattr(model, attribute, len(names))
