"""There is no GPU where these tests run: a library that answers as NVIDIA's does stands in for it."""

import os
import sys
from types import SimpleNamespace

import pytest

from benchmarks.machine.gpu import GpuState, read_gpu_memory, read_gpu_state, read_gpus
from benchmarks.machine.monitor import read_machine_state
from benchmarks.machine.system_files import Unavailable


class NVMLError(Exception):
    pass


def refuse(*arguments):
    raise NVMLError("Not Supported")


def always(answer):
    def reply(*arguments):
        return answer

    return reply


def library(**answers):
    """A library with one GPU that answers what is given, and supports nothing else."""
    questions = [
        "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetName", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetComputeRunningProcesses",
    ]  # fmt: skip
    module = SimpleNamespace(NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, shutdowns=0)
    for question in questions:
        setattr(module, question, refuse)
    for question, answer in {"nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": "handle", **answers}.items():
        setattr(module, question, answer if callable(answer) else always(answer))
    module.nvmlInit = lambda: None

    def shut_down():
        module.shutdowns += 1

    module.nvmlShutdown = shut_down
    return module


@pytest.fixture
def installed(monkeypatch):
    def install(module):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


def test_without_the_library_the_reason_names_what_installs_it(installed):
    installed(None)  # as if it were not installed: `import pynvml` raises

    reason = "nvidia-ml-py is not installed; pip install 'icis-deploy[bench]' installs nvidia-ml-py"
    assert read_gpus() == read_gpu_state() == read_gpu_memory(1) == Unavailable(reason)
    assert read_machine_state().missing["gpu_power_w"] == reason


def test_without_a_driver_the_reason_says_so(installed):
    module = library()
    module.nvmlInit = refuse
    installed(module)

    assert read_gpus() == read_gpu_state() == Unavailable("no NVIDIA driver: Not Supported")
    assert module.shutdowns == 0


def test_a_gpu_is_described(installed):
    module = installed(
        library(
            nvmlSystemGetDriverVersion=b"540.4.0",
            nvmlDeviceGetName="NVIDIA L4",
            nvmlDeviceGetMemoryInfo=SimpleNamespace(total=24 * 2**30),
            nvmlDeviceGetMaxClockInfo=2040,
            nvmlDeviceGetEnforcedPowerLimit=72_000,
            nvmlDeviceGetCudaComputeCapability=(8, 9),
        )
    )

    assert read_gpus() == [
        {
            "name": "NVIDIA L4",
            "memory_bytes": 24 * 2**30,
            "driver": "540.4.0",
            "max_clock_mhz": 2040,
            "power_limit_w": 72.0,
            "compute_capability": (8, 9),
        }
    ]
    assert module.shutdowns == 1


def test_what_a_gpu_does_not_support_is_none(installed):
    installed(library(nvmlDeviceGetName="Orin"))

    described = read_gpus()[0]
    assert described.pop("name") == "Orin"
    assert set(described.values()) == {None}
    assert read_gpu_state() == GpuState(clock_mhz=None, temperature_c=None, power_w=None, throttle_reasons=())


def test_a_gpu_says_what_slows_it_down(installed):
    installed(
        library(
            nvmlDeviceGetClockInfo=1200,
            nvmlDeviceGetTemperature=84,
            nvmlDeviceGetPowerUsage=71_900,
            nvmlDeviceGetCurrentClocksThrottleReasons=0x0004 | 0x0020 | 0x0001,  # the last: idle, no lost speed
        )
    )
    state = read_machine_state()

    assert (state.gpu_mhz, state.gpu_temperature_c, state.gpu_power_w) == (1200, 84, pytest.approx(71.9))
    assert state.throttle_reasons[:2] == (
        "the GPU is held back by its power limit",
        "the GPU is held back by its temperature",
    )


@pytest.mark.parametrize(("visible", "index"), [("", 0), ("2,0", 2), ("GPU-8932f937", 0)])
def test_the_state_is_that_of_the_gpu_this_process_sees(visible, index, installed, monkeypatch):
    asked = []
    installed(library(nvmlDeviceGetHandleByIndex=lambda index: asked.append(index) or "handle"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    read_gpu_state()

    assert asked == [index]


def test_the_memory_of_a_process_is_counted_over_its_contexts(installed):
    mine, other = os.getpid(), os.getpid() + 1
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in ((mine, 300), (other, 7), (mine, 100))]
    installed(library(nvmlDeviceGetComputeRunningProcesses=processes))

    assert read_gpu_memory(mine) == 400
    assert read_gpu_memory(other + 1) == Unavailable("the NVIDIA driver counts no memory for this process")


def test_the_library_is_shut_down_even_after_a_failure(installed):
    def fail(*arguments):
        raise RuntimeError("driver reset")

    module = installed(library(nvmlDeviceGetName=fail))
    with pytest.raises(RuntimeError, match="driver reset"):
        read_gpus()
    assert module.shutdowns == 1
