"""What NVIDIA's management library reports of a GPU; everything `Unavailable`, with the reason, where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.machine.system_files import Unavailable

INSTALL = "pip install 'icis-deploy[bench]' installs nvidia-ml-py"

THROTTLE_REASONS = {
    0x0004: "the GPU is held back by its power limit",
    0x0008: "the GPU is slowed down by its hardware",
    0x0020: "the GPU is held back by its temperature",
    0x0040: "the GPU is slowed down by its hardware because of its temperature",
    0x0080: "the GPU is slowed down by its power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML reference, "Clocks event reasons") that mean lost speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A GPU at one moment; None where this GPU does not tell."""

    clock_mhz: float | None
    """Clock of its processors."""

    temperature_c: float | None
    """Temperature of its die, degrees Celsius."""

    power_w: float | None
    """Power it draws, watts."""

    throttle_reasons: tuple[str, ...]
    """What slows it down, in words."""


def read_gpus() -> list[dict[str, object]] | Unavailable:
    """Return name, memory, driver and highest clock of every GPU."""
    with management_library() as nvml:
        if isinstance(nvml, Unavailable):
            return nvml
        driver = ask(nvml, nvml.nvmlSystemGetDriverVersion)
        gpus = []
        for index in range(ask(nvml, nvml.nvmlDeviceGetCount) or 0):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
            gpus.append(
                {
                    "name": as_text(ask(nvml, nvml.nvmlDeviceGetName, handle)),
                    "memory_bytes": None if memory is None else int(memory.total),
                    "driver": as_text(driver),
                    "max_clock_mhz": ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
                    "power_limit_w": milli(ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
                    "compute_capability": ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle),
                }
            )
        return gpus or Unavailable("the NVIDIA driver reports no GPU")


def read_gpu_state() -> GpuState | Unavailable:
    """Return the state of the GPU that this process uses: the first of CUDA_VISIBLE_DEVICES, or the first."""
    with management_library() as nvml:
        if isinstance(nvml, Unavailable):
            return nvml
        handle = ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index_of_visible_gpu())
        if handle is None:
            return Unavailable(f"the NVIDIA driver has no GPU {index_of_visible_gpu()}")
        bits = ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        return GpuState(
            clock_mhz=ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            temperature_c=ask(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=milli(ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle)),
            throttle_reasons=tuple(text for bit, text in THROTTLE_REASONS.items() if bits & bit),
        )


def read_gpu_memory(process_id: int) -> int | Unavailable:
    """Return the bytes of GPU memory that a process holds now, over all GPUs."""
    with management_library() as nvml:
        if isinstance(nvml, Unavailable):
            return nvml
        used = [
            process.usedGpuMemory
            for index in range(ask(nvml, nvml.nvmlDeviceGetCount) or 0)
            for process in ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetHandleByIndex(index))
            or []
            if process.pid == process_id and process.usedGpuMemory is not None
        ]
        return sum(used) if used else Unavailable("the NVIDIA driver counts no memory for this process")


@contextmanager
def management_library() -> Iterator[Any]:
    """Yield the started library, or `Unavailable`; stop it at the end."""
    try:
        import pynvml
    except ImportError:
        yield Unavailable(f"nvidia-ml-py is not installed; {INSTALL}")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield Unavailable(f"no NVIDIA driver: {error}")
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def ask(nvml: Any, question: Callable[..., Any], *arguments: object) -> Any:
    """Return the answer, or None where this GPU or driver does not support the question."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def index_of_visible_gpu() -> int:
    """Return the index of the first GPU in CUDA_VISIBLE_DEVICES; 0 where it is unset or names GPUs in another way."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def milli(value: float | None) -> float | None:
    """Return a thousandth of a value that may be None."""
    return None if value is None else value / 1000


def as_text(value: str | bytes | None) -> str | None:
    """Return text; older versions of the library answer in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
