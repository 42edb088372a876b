"""Build engines with TensorRT or TensorRT-RTX, which have the same Python interface.

Everything here is written against the module that it is given: `tensorrt` from 10.3 (JetPack 6) on, or `tensorrt_rtx`,
which builds engines without a GPU.

Rules:

1. Networks are strongly typed: what the graph computes in is what the engine computes in. From TensorRT 11 there are no
   others; 10.x has a flag for it.
2. There is one optimization profile, from the least to the greatest batch: a refittable engine may have no second one.
3. Of a refittable engine only the slots' rows can be refitted (REFIT_INDIVIDUAL, from 10.2 on). REFIT makes every
   weight refittable and keeps layers from being fused; REFIT_IDENTICAL is undefined for other rows. Neither is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icis_deploy.bundle.engine_sidecar import EngineInput, EngineOutput
from icis_deploy.bundle.target_options import EngineSettings
from icis_deploy.common.files import write_file
from icis_deploy.errors import ExportError, UsageError
from icis_deploy.runtime.sessions.tensorrt_library import new_logger

MIN_PORTABLE_CAPABILITY = (8, 0)
"""TensorRT-RTX knows 7.5 as well, and refuses float32 products there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine's bytes, with its inputs and outputs."""

    data: bytes
    """The serialized engine."""

    inputs: tuple[EngineInput, ...]
    """Name, type and range of shapes of each, in the network's order."""

    outputs: tuple[EngineOutput, ...]
    """Name, type and shape of each, in the network's order; -1 for the batch."""

    compute_capabilities: tuple[str, ...]
    """GPU architectures that it was built for, such as `8.6`; empty for the GPU of this machine."""

    refittable: tuple[str, ...] = ()
    """Names of the weights that may be refitted."""


def build_engine(trt: Any, model: Path, settings: EngineSettings, *, refittable: Sequence[str] = ()) -> BuiltEngine:
    """Build an engine from an ONNX file.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        model: The file; external weights next to it are found.
        settings: How to build.
        refittable: Names of the weights that may be refitted; an ONNX initializer gives its name to the weight.

    Raises:
        ExportError: If the parser or the builder refuses the model; the message quotes it.
        UsageError: If the settings do not fit the library or the model.
    """
    logger = new_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise ExportError(_parser_message(parser))
    config = builder.create_builder_config()
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    inputs = _add_profile(trt, builder, network, config, settings)
    capabilities = _set_hardware(trt, config, settings)
    _mark_refittable(trt, network, config, refittable)
    cache = _load_timing_cache(config, settings.timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(
            f"{trt.__name__} {trt.__version__} could not build the engine: {logger.last_error()}.",
            found=logger.last_error(),
            hint=("Leave the target out, or export with `precision='fp32'`; ONNX Runtime runs the bundle in any case."),
        )
    if cache is not None and settings.timing_cache is not None:
        write_file(settings.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return BuiltEngine(
        data=bytes(memoryview(serialized)),
        inputs=inputs,
        outputs=tuple(EngineOutput(name=o.name, dtype=_dtype_name(trt, o), shape=tuple(o.shape)) for o in outputs),
        compute_capabilities=capabilities,
        refittable=tuple(refittable),
    )


def known_capabilities(trt: Any) -> Mapping[str, Any]:
    """Return the GPU architectures that a library can build for without that GPU, by number such as `8.6`."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    numbers = {name[2:]: value for name, value in members.items() if name.startswith("SM") and name[2:].isdigit()}
    return {f"{digits[:-1]}.{digits[-1]}": value for digits, value in numbers.items()}


def _network_flags(trt: Any) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_message(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return "TensorRT's parser refused the model and did not say why."
    error = errors[0]
    where = f"the node {error.node_name()!r} ({error.node_operator()})" if error.node_name() else "the model"
    reason = " ".join(error.desc().split()).rstrip(".")
    return f"TensorRT's parser refused {where}: {reason}. {len(errors)} errors in all."


def _add_profile(
    trt: Any, builder: Any, network: Any, config: Any, settings: EngineSettings
) -> tuple[EngineInput, ...]:
    """Add the profile with the settings' range of batches; return the inputs."""
    profile = builder.create_optimization_profile()
    batches = (settings.min_batch, settings.opt_batch, settings.max_batch)
    inputs = []
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise UsageError(
                f"The input {tensor.name!r} has the shape {shape}; an engine needs every size but the batch to be "
                f"fixed.",
                found=str(shape),
                where=tensor.name,
                hint="Export the model with a fixed image size, or let it take pixels: `model_input='uint8'`.",
            )
        ranges = [(batch, *shape[1:]) if shape and shape[0] == -1 else shape for batch in batches]
        if index == 0 and shape and shape[0] != -1 and set(batches) != {shape[0]} and settings.batches_were_chosen:
            raise UsageError(
                f"The model takes batches of {shape[0]} alone, so the engine cannot take {batches[0]} to {batches[2]}.",
                found=tuple(batches),
                expected=shape[0],
                hint="Leave `min_batch`, `opt_batch` and `max_batch` out, or export a model that takes any batch.",
            )
        if -1 in shape:
            profile.set_shape(tensor.name, *ranges)
        least, usual, greatest = ranges
        dtype = _dtype_name(trt, tensor)
        inputs.append(EngineInput(name=tensor.name, dtype=dtype, min_shape=least, opt_shape=usual, max_shape=greatest))
    config.add_optimization_profile(profile)
    return tuple(inputs)


def _set_hardware(trt: Any, config: Any, settings: EngineSettings) -> tuple[str, ...]:
    """Set which GPUs the engine is for; return their architectures, none for the GPU of this machine."""
    known = known_capabilities(trt)
    if not known:
        if settings.hardware_compatibility != "none":
            level = settings.hardware_compatibility.upper()
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        return ()
    wanted = settings.compute_capabilities or tuple(
        name for name in known if tuple(int(part) for part in name.split(".")) >= MIN_PORTABLE_CAPABILITY
    )
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} does not build for the compute capability {unknown[0]}; it knows "
            f"{', '.join(known)}.",
            found=unknown[0],
            expected=tuple(known),
        )
    config.num_compute_capabilities = len(wanted)
    for index, name in enumerate(wanted):
        config.set_compute_capability(known[name], index)
    return wanted


def _mark_refittable(trt: Any, network: Any, config: Any, names: Sequence[str]) -> None:
    if not names:
        return
    flag = getattr(trt.BuilderFlag, "REFIT_INDIVIDUAL", None)
    if flag is None:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} cannot make single weights refittable, which came with 10.2.",
            found=trt.__version__,
            expected="at least 10.2",
            hint="Leave `refit` out: slots are then inputs.",
        )
    config.set_flag(flag)
    for name in names:
        if not network.mark_weights_refittable(name):
            raise ExportError(
                f"TensorRT knows no weight {name!r} that could be refitted: the parser folded it away.",
                where=name,
            )


def _load_timing_cache(config: Any, path: Path | None) -> Any:
    """Set the timings of earlier builds, and return the cache; `None` without a file."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # A cache of another version or GPU is refused; the build then measures again and writes a new one.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _dtype_name(trt: Any, tensor: Any) -> str:
    return str(np.dtype(trt.nptype(tensor.dtype)).name)
