"""Open a bundle's engine: everything that is stated of it is compared before its bytes reach TensorRT."""

# Why: docs/decisions/0032.

from __future__ import annotations

from pathlib import Path
from typing import Any

from icis_deploy.bundle.engine_sidecar import (
    MAX_SIDECAR_BYTES,
    EngineSidecar,
    engine_name,
    model_sha256,
    parse_sidecar,
    sidecar_name,
    verify_engine,
    verify_gpu,
)
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.files import read_plain
from icis_deploy.errors import BundleError, IncompatibleError, ModelLoadError
from icis_deploy.runtime.sessions.cuda_calls import load_cuda
from icis_deploy.runtime.sessions.tensorrt_library import load_tensorrt, new_logger
from icis_deploy.runtime.sessions.tensorrt_session import TensorRTSession


def load_engine_session(
    folder: Path, bundle: Bundle, runtime: str, *, num_streams: int = 1, cuda_graph: bool = False
) -> TensorRTSession:
    """Load a bundle's engine.

    Args:
        folder: The bundle's files.
        bundle: What its manifest says, or will say.
        runtime: `tensorrt` or `tensorrt-rtx`.
        num_streams: How many requests may run at the same time.
        cuda_graph: Whether requests replay captured graphs.

    Raises:
        MissingDependencyError: If the library is not installed, or there is no GPU.
        IncompatibleError: If the bundle holds no engine of this runtime.
        EngineMismatchError: If it was built for another version, GPU architecture, platform, model or head.
        BundleError: If its sidecar cannot be read.
        ModelLoadError: If TensorRT cannot load it all the same.
    """
    trt = load_tensorrt(runtime)
    sidecar = load_sidecar(folder, bundle, runtime)
    path = folder / engine_name(runtime)
    verify_engine(
        sidecar,
        runtime=runtime,
        runtime_version=str(trt.__version__),
        model_sha256=model_sha256(bundle),
        head_fingerprint=bundle.base_fingerprint,
        engine_sha256=bundle.files[engine_name(runtime)].sha256,
    )
    cuda = load_cuda()
    verify_gpu(sidecar, cuda.compute_capability())
    return TensorRTSession(
        trt, _engine_loader(trt, path), cuda, sidecar, num_streams=num_streams, cuda_graph=cuda_graph
    )


def load_sidecar(folder: Path, bundle: Bundle, runtime: str) -> EngineSidecar:
    """Read the sidecar of a bundle's engine.

    Raises:
        IncompatibleError: If the bundle holds no engine of this runtime.
        BundleError: If the sidecar cannot be read.
    """
    if not {engine_name(runtime), sidecar_name(runtime)} <= bundle.files.keys():
        raise IncompatibleError(
            f"The bundle {folder} holds no engine for {runtime!r}.",
            expected=runtime,
            where=folder,
            hint=f"Export it with `targets=['{runtime}']`, or open it in another runtime.",
        )
    path = folder / sidecar_name(runtime)
    try:
        return parse_sidecar(
            read_plain(path, max_bytes=MAX_SIDECAR_BYTES, what="engine's sidecar", error_type=BundleError)
        )
    except BundleError as error:
        raise BundleError.at(path, error) from error


def _engine_loader(trt: Any, path: Path) -> Any:
    logger = new_logger(trt)
    # The runtime must outlive its engines.
    library = trt.Runtime(logger)

    def load() -> Any:
        engine = library.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ModelLoadError(
                f"TensorRT cannot load the engine {path}: {logger.last_error()}.",
                found=logger.last_error(),
                where=path,
                hint="Build it again.",
            )
        return engine

    return load
