"""The model in PyTorch, with more classes by the usual way: rows concatenated to its last layer.

The last layer is found by its values: the parameter that holds the seen rows, which were read from the ONNX graph made
of the same model. A parameter that is replaced needs no change of the code that uses it. Where new logits follow an
arbiter, a call after the last layer adds what it gives them, as the bundle's model does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icis_deploy.common.arrays import Float32, Images
from icis_deploy.errors import MissingDependencyError, ModelLoadError, UsageError
from icis_deploy.head.arbiter import GREATEST, TINY, deviation_lengths

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

COMPILERS = ("c++", "g++", "clang++")

LENGTHS, COEFFICIENTS = "seen_row_lengths", "arbiter_coefficients"
"""Buffers of a module with an arbiter: `(num_seen,)` and `(num_added, 5)` float32."""


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


def add_arbiter(module: Module, seen_rows: Float32, coefficients: Float32) -> None:
    """Let the logits of added rows follow an arbiter, as those of a bundle do.

    Args:
        module: A torch program's, changed in place; coefficients given before are replaced.
        seen_rows: `(num_seen, feature_dim + 1)`, as for `add_rows`.
        coefficients: `(num_added, 5)`: of each added row, for `icis_deploy.head.arbiter.STATISTICS`.

    Raises:
        ModelLoadError: If the last layer is no call of the linear operator, where its features are seen.
    """
    from exporters.loading.torch_modules import import_torch

    torch = import_torch()
    if hasattr(module, COEFFICIENTS):
        module.register_buffer(COEFFICIENTS, torch.tensor(coefficients))
        return
    weight = parameter_with(module, seen_rows[:, :-1])
    graph = module.graph if isinstance(module, torch.fx.GraphModule) else None
    heads = [
        node
        for node in ([] if graph is None else graph.nodes)
        if node.target is torch.ops.aten.linear.default and getattr(node.args[1], "target", None) == weight
    ]
    if graph is None or len(heads) != 1:
        raise ModelLoadError(
            "The new logits follow an arbiter, which needs the features of the torch model: none of its operators is "
            "the one linear call with the weights of the head.",
            found=len(heads),
            expected="one call of torch.ops.aten.linear",
        )
    module.register_buffer(LENGTHS, torch.tensor(deviation_lengths(seen_rows)))
    module.register_buffer(COEFFICIENTS, torch.tensor(coefficients))
    (head,) = heads
    users = list(head.users)
    with graph.inserting_after(head):
        lengths = graph.get_attr(LENGTHS)
    with graph.inserting_after(lengths):
        given = graph.get_attr(COEFFICIENTS)
    with graph.inserting_after(given):
        answer = graph.call_function(arbitrated, (head.args[0], head, lengths, given))
    for user in users:
        user.replace_input_with(head, answer)
    module.recompile()  # type: ignore[operator]  # the module is that of the graph above


def arbitrated(features: Tensor, logits: Tensor, lengths: Tensor, coefficients: Tensor) -> Tensor:
    """Return logits of which the added ones follow an arbiter; `icis_deploy.head.arbiter` in torch.

    Args:
        features: `(batch, feature_dim)` float32.
        logits: `(batch, num_seen + num_added)` float32.
        lengths: `(num_seen,)` float32, of the seen rows' deviations.
        coefficients: `(num_added, 5)` float32.
    """
    from exporters.loading.torch_modules import import_torch

    torch = import_torch()
    least, greatest = float(TINY), float(GREATEST)
    seen, added = logits[:, : lengths.shape[0]], logits[:, lengths.shape[0] :]
    top, first = seen.max(dim=1)
    mean = seen.mean(dim=1)
    variance = (seen - mean[:, None]).square().mean(dim=1)
    squared_length = features.square().sum(dim=1)
    statistics = torch.stack(
        [
            top,
            mean,
            variance.clamp(least, greatest).log(),
            squared_length.clamp(least, greatest).log(),
            lengths[first],
        ],
        dim=1,
    )
    joined: Tensor = torch.cat([seen, added + statistics @ coefficients.T], dim=1)
    return joined


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
