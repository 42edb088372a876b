"""Users' torch modules: built by a factory, with weights from a file, and run.

Here and in torch_export torch is imported, and only when a function is called: an ONNX model needs none of it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx_io.files import first_line
from exporters.onnx_io.foreign_files import foreign_file
from icis_deploy.common.archives import open_archive
from icis_deploy.common.closest import did_you_mean_path
from icis_deploy.common.files import open_plain
from icis_deploy.errors import MissingDependencyError, ModelLoadError, UsageError
from icis_deploy.head.class_names import quoted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Runner = Callable[..., tuple[NDArray[np.generic], ...]]
_NESTED_STATES = ("state_dict", "model_state_dict", "model")
MAX_MEMBERS = 1 << 18
"""Of an archive of torch: each weight is one."""

_PARALLEL_PREFIX = "module."


def build_module(factory: str, weights: Path) -> Module:
    """Call `package.module:factory` and load weights into what it returns.

    Args:
        factory: Any callable that takes no argument and returns an `nn.Module`, by its import path.
        weights: A `.safetensors` file, or a `.pth` or `.pt` file that holds a state dict.

    Returns:
        The module, in evaluation mode.

    Raises:
        UsageError: If `factory` is not of that form.
        ModelLoadError: If it cannot be imported or called, returns no `nn.Module`, or does not fit the weights.
        MissingDependencyError: If torch is not installed.
    """
    torch = import_torch()
    make = _imported(factory)
    try:
        with quiet_torch():
            module = make()
    except Exception as error:  # user code
        raise ModelLoadError(
            f"{factory}() failed: {type(error).__name__}: {first_line(error)}.",
            found=first_line(error),
            where=factory,
            hint="It must work without arguments.",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(
            f"{factory}() returned a {type(module).__name__}; expected a torch.nn.Module.",
            found=type(module).__name__,
            expected="torch.nn.Module",
            where=factory,
            hint="Name a function or class that gives the network.",
        )
    _load_state(module, read_state(weights), factory=factory, weights=weights)
    loaded: Module = module.eval()
    return loaded


def read_state(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a file, without running any code that is in it.

    A training checkpoint's state dict is found under its usual keys; the prefix of DataParallel is dropped.

    Raises:
        ModelLoadError: If there is no such file, it cannot be read so, or it holds no named tensors.
        MissingDependencyError: If torch is not installed.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a name that is too long is none
        raise ModelLoadError(
            f"There is no weights file {path}.",
            where=path,
            hint=f"{did_you_mean_path(path)}Check `weights`.",
        )
    torch = import_torch()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            _check_archive(path)
            with quiet_torch():
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors', zipfile's, pickle's and torch's own types
        # torch's own message advises to read the file without `weights_only`, which would run whatever code is in it.
        reason = first_line(error) if path.suffix == ".safetensors" else type(error).__name__
        foreign = foreign_file(path, may_be_zip=True)
        if foreign is not None:
            raise ModelLoadError(
                f"{path} cannot be read as weights: it is {foreign[0]}.",
                found=foreign[0],
                expected="a .safetensors file, or a .pth file of tensors",
                where=path,
                hint=foreign[1],
            ) from error
        raise ModelLoadError(
            f"{path} cannot be read as weights ({reason}). Expected a .safetensors file, or a .pth file with nothing "
            f"but tensors in it.",
            found=reason,
            expected="a .safetensors file, or a .pth file of tensors",
            where=path,
            hint="Save the state dict alone: torch.save(model.state_dict(), path).",
        ) from error
    for key in _NESTED_STATES:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    entries = found.items() if isinstance(found, Mapping) else ()
    tensors = {str(name): value for name, value in entries if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelLoadError(
            f"{path} holds a {type(found).__name__} without named tensors; expected a state dict.",
            found=type(found).__name__,
            expected="a state dict",
            where=path,
            hint="Save the state dict alone: torch.save(model.state_dict(), path).",
        )
    if all(name.startswith(_PARALLEL_PREFIX) for name in tensors):
        return {name.removeprefix(_PARALLEL_PREFIX): value for name, value in tensors.items()}
    return tensors


def _check_archive(path: Path) -> None:
    """Refuse a checkpoint that unpacks to much more than it is; torch stores weights unpacked, or in no archive."""
    with open_plain(path) as file:
        if zipfile.is_zipfile(file):
            open_archive(file, max_members=MAX_MEMBERS, max_bytes=2**63).close()


def stated_image_shape(module: object) -> tuple[int, ...] | None:
    """Return the shape of one image where a module states it, as timm's and transformers' modules do.

    Args:
        module: Or anything else with a `config` of transformers.

    Returns:
        `(channels, height, width)`; `None` where the module does not say.
    """
    for name in ("pretrained_cfg", "default_cfg"):  # timm
        config = getattr(module, name, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            return tuple(int(size) for size in config["input_size"])
    config = getattr(module, "config", None)  # transformers
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if isinstance(size, int):
        return (channels, size, size)
    if isinstance(size, list | tuple) and len(size) == 2:
        return (channels, int(size[0]), int(size[1]))
    return None


def own_copy(module: object) -> Module:
    """Return a module of the caller as ours: on the CPU, in evaluation mode, and not touched by further training.

    Raises:
        ModelLoadError: If it is no module, or cannot be copied.
        MissingDependencyError: If torch is not installed.
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(
            f"A {type(module).__name__} is no model; expected a torch.nn.Module, or a path.",
            found=type(module).__name__,
            expected="torch.nn.Module",
            hint="Call what makes the module, and give what it returns.",
        )
    try:
        copied: Module = copy.deepcopy(module).cpu().eval()
    except Exception as error:  # tensors that are part of a graph, and whatever a module holds besides
        raise ModelLoadError(
            f"{type(module).__name__} cannot be copied: {first_line(error)}.",
            found=first_line(error),
            where=type(module).__name__,
            hint="Export it yourself and give the .onnx or .pt2 file.",
        ) from error
    return copied


def module_runner(module: Module) -> Runner:
    """Return a function that runs a module: arrays in, its output tensors out, in the order torch exports them in."""
    torch = import_torch()
    from torch.utils import _pytree as pytree  # the order of torch.export, for which there is no public name

    def run(*arrays: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
        with quiet_torch(), torch.no_grad():
            outputs = module(*(torch.from_numpy(np.array(array)) for array in arrays))
            tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
            return tuple((leaf.float() if leaf.is_floating_point() else leaf).numpy() for leaf in tensors)

    return run


def import_torch() -> Any:
    """Return the torch module.

    Raises:
        MissingDependencyError: If it is not installed; names the extra.
    """
    try:
        import torch
        import torch.export
        import torch.onnx
    except ImportError as error:
        raise MissingDependencyError(
            "A torch model needs torch, which is not installed.",
            hint="Install it: pip install 'icis-deploy[export]'. A .onnx model does not need it.",
        ) from error
    return torch


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch's progress prints, log lines and warnings off stdout, which is for results, and off stderr."""
    disabled_below = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(max(disabled_below, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(disabled_below)


def _imported(factory: str) -> Callable[[], object]:
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise UsageError(
            f"{factory!r} names no factory; expected package.module:function.",
            found=factory,
            expected="package.module:function",
            hint="Write a colon between module and function, such as torchvision.models:resnet18.",
        )
    path = Path(module_name)
    if path.suffix == ".py":
        raise UsageError(
            f"{factory!r} names a file; expected package.module:function.",
            found=factory,
            expected="package.module:function",
            hint=f"Write {path.stem}:{attribute}, and run this in the folder of that file.",
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a console script lacks the current folder, where a user's own model file is
    try:
        with quiet_torch():
            found: Any = importlib.import_module(module_name)
    except Exception as error:  # user code
        raise ModelLoadError(
            f"Cannot import {module_name}: {type(error).__name__}: {first_line(error)}.",
            found=first_line(error),
            where=module_name,
            hint="It must be installed, or lie in the current folder.",
        ) from error
    finally:
        sys.path.remove(here)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelLoadError(
                f"{module_name} has no {attribute!r}.",
                found=attribute,
                where=module_name,
                hint="Check the name after the colon.",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelLoadError(
            f"{factory} is a {type(found).__name__}; expected a function or a class.",
            found=type(found).__name__,
            expected="a function or a class",
            where=factory,
            hint="Name a function or class that gives the network.",
        )
    call: Callable[[], object] = found
    return call


def _load_state(module: Module, state: Mapping[str, Tensor], *, factory: str, weights: Path) -> None:
    own = module.state_dict()
    tied = _tied_names(own)
    # safetensors writes tied weights once, under one of their names.
    state = {name: state[one] for names in tied for one in names if one in state for name in names} | dict(state)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    faults = [f"{quoted(missing)} missing"] if missing else []
    faults += [f"{quoted(unexpected)} unexpected"] if unexpected else []
    faults += [
        f"{name!r} has shape {list(state[name].shape)} where the module has {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and tensor.shape != state[name].shape
    ]
    faults += [
        f"{quoted(names)} are tied, one weight of the module under several names, but differ in the file"
        for names in tied
        if any(name in state and not state[name].equal(state[names[0]]) for name in names)
    ]
    if faults:
        raise ModelLoadError(
            f"The weights {weights} do not fit {factory}: {'; '.join(faults[:3])}.",
            found=tuple(faults),
            where=weights,
            hint="Check that both are of one model.",
        )
    module.load_state_dict(state)


def _tied_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of each weight that a module has under several."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            storage = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            names.setdefault(storage, []).append(name)
    return [each for each in names.values() if len(each) > 1]
