"""The targets `tensorrt` and `tensorrt-rtx`: an engine in the bundle, with its sidecar."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.graph.edits import apply_passes
from exporters.onnx_io.files import load_onnx_file, save_model
from exporters.targets.tensorrt.build import BuiltEngine, build_engine
from exporters.targets.tensorrt.graph import graph_for_tensorrt, refittable_weights
from exporters.targets.tensorrt.symmetric_quantization import SymmetricQuantizationPass
from icis_deploy._version import __version__
from icis_deploy.bundle.engine_sidecar import (
    MAX_SIDECAR_BYTES,
    EngineSidecar,
    engine_name,
    model_sha256,
    parse_sidecar,
    serialize_sidecar,
    sidecar_name,
    this_platform,
)
from icis_deploy.bundle.manifest import MODEL_NAME, Bundle
from icis_deploy.bundle.target_options import EngineSettings
from icis_deploy.common.files import read_capped, write_file
from icis_deploy.errors import BundleError, ExportError, MissingDependencyError, StorageError
from icis_deploy.runtime.sessions.cuda_calls import load_cuda
from icis_deploy.runtime.sessions.tensorrt_library import load_tensorrt

ENGINE_REWRITES: Mapping[str, ir.passes.PassBase] = {"int8": SymmetricQuantizationPass()}
"""By a model's precision, the pass that TensorRT needs and that changes what the graph computes."""


def engine_obstacle(runtime: str, settings: EngineSettings) -> str | None:
    """Return why engines of a runtime cannot be built here, and what to do; `None` where they can.

    Args:
        runtime: `tensorrt` or `tensorrt-rtx`.
        settings: How the engine is built.
    """
    try:
        load_tensorrt(runtime)
        # TensorRT measures kernels on the GPU; TensorRT-RTX leaves that to the device, but a refit is tested here.
        if runtime == "tensorrt" or settings.refit:
            load_cuda()
    except MissingDependencyError as error:
        return str(error)
    return None


def write_engine(runtime: str, folder: Path, bundle: Bundle, settings: EngineSettings) -> Sequence[str]:
    """Build an engine from a bundle's model and write it with its sidecar.

    Args:
        runtime: `tensorrt` or `tensorrt-rtx`.
        folder: The bundle's files.
        bundle: Its manifest, written or not.
        settings: How to build.

    Returns:
        Both files, relative to the folder.

    Raises:
        MissingDependencyError: If the library is not there, or needs a GPU.
        ExportError: If TensorRT refuses the model.
        UsageError: If the settings do not fit the library or the model.
        StorageError: If the disk refuses.
    """
    trt = load_tensorrt(runtime)
    built = _build(trt, folder / MODEL_NAME, settings, precision=bundle.precision)
    sidecar = EngineSidecar(
        runtime=runtime,
        runtime_version=str(trt.__version__),
        platform=this_platform(),
        compute_capabilities=built.compute_capabilities or (load_cuda().compute_capability(),),
        hardware_compatibility="none" if built.compute_capabilities else settings.hardware_compatibility,
        model_sha256=model_sha256(bundle),
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        head_fingerprint=bundle.base_fingerprint,
        inputs=built.inputs,
        outputs=built.outputs,
        refittable=built.refittable,
        precision=bundle.precision,
        created_by=__version__,
    )
    names = engine_name(runtime), sidecar_name(runtime)
    for name, data in zip(names, (built.data, serialize_sidecar(sidecar)), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, data)
    return names


def _build(trt: Any, model: Path, settings: EngineSettings, *, precision: str) -> BuiltEngine:
    graph = load_onnx_file(model)
    rewrite = ENGINE_REWRITES.get(precision)
    rewritten = graph if rewrite is None else apply_passes(graph, rewrite)
    prepared = graph_for_tensorrt(rewritten, refit=settings.refit)
    try:
        return build_engine(trt, model, settings) if prepared is graph else _build_of(trt, prepared, settings)
    except ExportError as error:
        if rewrite is not None or not any(node.op_type == "DequantizeLinear" for node in graph.graph):
            raise
        raise ExportError(
            f"{error.what} The model was quantized before it was exported, and TensorRT takes zero points of 0 and "
            f"float biases alone.",
            found=error.found,
            where=error.where,
            hint="Export the float model that it was made from, with `precision='int8'`.",
        ) from error


def _build_of(trt: Any, prepared: ir.Model, settings: EngineSettings) -> BuiltEngine:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_NAME
            save_model(prepared, path)
            return build_engine(trt, path, settings, refittable=refittable_weights(prepared) if settings.refit else ())
    except OSError as error:
        raise StorageError(
            f"Could not write the model for TensorRT: {error.strerror or error}.",
            found=error.strerror or str(error),
            hint="Free some space.",
        ) from error


def settings_of(folder: Path, bundle: Bundle) -> EngineSettings:
    """Return how the engines of a bundle were built, as their sidecars say; the default where it holds none.

    Raises:
        BundleError: If a sidecar cannot be read.
    """
    sidecars = {
        runtime: parse_sidecar(
            read_capped(
                folder / sidecar_name(runtime), max_bytes=MAX_SIDECAR_BYTES, what="sidecar", error_type=BundleError
            )
        )
        for runtime in ("tensorrt", "tensorrt-rtx")
        if sidecar_name(runtime) in bundle.files
    }
    if not sidecars:
        return EngineSettings()
    first, images = next(iter(sidecars.values())), next(iter(sidecars.values())).inputs[0]
    portable = sidecars.get("tensorrt-rtx")
    return EngineSettings(
        min_batch=images.min_shape[0],
        opt_batch=images.opt_shape[0],
        max_batch=images.max_shape[0],
        compute_capabilities=() if portable is None else portable.compute_capabilities,
        hardware_compatibility=first.hardware_compatibility,
        refit=bool(first.refittable),
    )
