"""TensorRT and TensorRT-RTX as one thing: a module with the same Python interface."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from icis_deploy.common.terminal_text import one_line
from icis_deploy.errors import MissingDependencyError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The import name of each runtime."""

_INSTALL = {
    "tensorrt": "pip install 'icis-deploy[tensorrt]'; on a Jetson it comes with JetPack, for the system's own Python",
    "tensorrt-rtx": "pip install 'icis-deploy[tensorrt-rtx]'",
}


def load_tensorrt(runtime: str) -> Any:
    """Import the library of a runtime.

    Args:
        runtime: `tensorrt` or `tensorrt-rtx`.

    Raises:
        MissingDependencyError: If it is not installed, or a library that it needs is not.
    """
    try:
        module = import_module(MODULES[runtime])
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        raise MissingDependencyError(
            f"The runtime {runtime!r} cannot be imported ({one_line(error)}).",
            found=one_line(error),
            where=MODULES[runtime],
            hint=f"Install it: {_INSTALL[runtime]}.",
        ) from error
    # The package index has a stub called `tensorrt`, whose libraries come from elsewhere.
    if not hasattr(module, "Builder"):
        raise MissingDependencyError(
            f"The module {MODULES[runtime]!r} is not TensorRT.",
            where=MODULES[runtime],
            hint=f"Install it: {_INSTALL[runtime]}.",
        )
    return module


def new_logger(trt: Any) -> Any:
    """Return a logger with the method `last_error`: what TensorRT says goes to its logger and to nobody else."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT calls back through inheritance alone
        """Keeps errors and drops the rest."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Take a message."""
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.errors.append(" ".join(message.split()))

        def last_error(self) -> str:
            """Return what TensorRT said last."""
            return self.errors[-1].rstrip(".") if self.errors else "it did not say why"

    return Logger()
