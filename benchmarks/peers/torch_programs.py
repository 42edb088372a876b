"""The model in PyTorch, with more classes by the usual way: rows concatenated to its last layer.

The last layer is found by its values: the parameter that holds the seen rows, which were read from the ONNX graph made
of the same model. A parameter that is replaced needs no change of the code that uses it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import MissingDependencyError, ModelLoadError, UsageError

if TYPE_CHECKING:
    from torch.nn import Module

COMPILERS = ("c++", "g++", "clang++")


def load_module(path: Path) -> Module:
    """Return a `.pt2` program as a module.

    Raises:
        UsageError: If it is another kind of file.
        ICISDeployError: If it cannot be loaded.
    """
    from exporters.loading.torch_export import load_program
    from exporters.loading.torch_modules import quiet_torch

    if path.suffix != ".pt2":
        raise UsageError(
            f"{path.name} is no torch model.",
            expected=".pt2",
            where=path,
            hint="Give the .pt2 program to measure PyTorch too.",
        )
    with quiet_torch():
        return load_program(path).module()


def add_rows(module: Module, seen_rows: Float32, rows: Float32) -> None:
    """Make rows a module's last layer gives logits for: those it has, and more after them.

    Args:
        module: Changed in place; rows added before are kept out.
        seen_rows: `(num_seen, feature_dim + 1)`, as the module had them when it was loaded.
        rows: `(num_added, feature_dim + 1)`.

    Raises:
        ModelLoadError: If no parameter holds the seen rows.
    """
    from exporters.loading.torch_modules import import_torch

    torch = import_torch()
    weight, bias = seen_rows[:, :-1], seen_rows[:, -1]
    for values, added, what in ((weight, rows[:, :-1], "weights"), (bias, rows[:, -1], "biases")):
        name = parameter_with(module, values)
        if name is None and not values.any():
            continue  # a layer without biases
        if name is None:
            raise ModelLoadError(
                f"No parameter of the torch model holds the {what} of its head as the ONNX graph does.",
                expected=what,
            )
        owner, _, attribute = name.rpartition(".")
        grown = np.concatenate([values, added])
        setattr(module.get_submodule(owner), attribute, torch.nn.Parameter(torch.from_numpy(grown)))


def parameter_with(module: Module, values: Float32) -> str | None:
    """Return the name of the parameter whose first rows are these values, None if there is none."""
    for name, parameter in module.named_parameters():
        found = parameter.detach().numpy()
        same_shape = found.ndim == values.ndim and found.shape[1:] == values.shape[1:] and len(found) >= len(values)
        if same_shape and np.allclose(found[: len(values)], values, rtol=1e-5, atol=1e-6):
            return name
    return None


def runner(module: Module, num_threads: int | None) -> Callable[[Images], Float32]:
    """Return what answers prepared images in eager mode, or compiled if the module is.

    Args:
        module: In evaluation mode.
        num_threads: Threads of torch, for the whole process; None leaves them.
    """
    from exporters.loading.torch_modules import import_torch

    torch = import_torch()
    if num_threads is not None:
        torch.set_num_threads(num_threads)

    def answer(images: Images) -> Float32:
        with torch.inference_mode():
            logits = module(torch.from_numpy(images))
        return np.asarray(logits.numpy(), dtype=np.float32)

    return answer


def compiled(module: Module) -> Module:
    """Return a module that is compiled for every new shape when it is first run.

    Raises:
        MissingDependencyError: If there is no C++ compiler, which torch.compile needs on a CPU.
    """
    from exporters.loading.torch_modules import import_torch

    if not any(shutil.which(name) for name in COMPILERS):
        raise MissingDependencyError(
            "torch.compile needs a C++ compiler, and none is installed.",
            hint="Install one, such as g++.",
        )
    torch = import_torch()
    torch.compiler.reset()
    made: Any = torch.compile(module)
    return made  # type: ignore[no-any-return]


def save_as_onnx(module: Module, image_shape: tuple[int, ...], path: Path) -> None:
    """Export a module to ONNX, as its owner would.

    Raises:
        ExportError: If torch cannot convert it.
    """
    from exporters.loading.torch_export import export_module, onnx_from_program
    from exporters.onnx_io.files import save_model

    save_model(onnx_from_program(export_module(module, image_shape)), path)
