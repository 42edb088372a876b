"""What of a machine changes while it works: clocks, temperature, power, throttling, time taken by others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.machine.gpu import GpuState, read_gpu_state
from benchmarks.machine.system_files import SYSTEM_ROOT, Unavailable, matching, read_number, read_numbers, read_text

RASPBERRY_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
RASPBERRY_REASONS = {
    0x1: "the board's supply voltage is too low",
    0x2: "the processor's clock is capped by the firmware",
    0x4: "the processor is throttled by the firmware",
    0x8: "the processor is held back by its temperature",
}
"""Raspberry Pi documentation, `vcgencmd get_throttled`: the bits for "now"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """A machine at one moment. None where it does not tell; `missing` says why."""

    time_s: float | None = None
    """Seconds of a clock with an arbitrary start."""

    cpu_mhz: float | None = None
    """Clock of the processor, mean over the cores."""

    gpu_mhz: float | None = None
    """Clock of the GPU's processors."""

    temperature_c: float | None = None
    """Hottest zone, degrees Celsius."""

    gpu_temperature_c: float | None = None
    """NVIDIA GPU's die, degrees Celsius (on a Jetson it is one of the zones instead)."""

    power_w: float | None = None
    """Power of the whole board where it has sensors (Jetson), watts."""

    gpu_power_w: float | None = None
    """Power of an NVIDIA GPU, watts."""

    num_throttles: int | None = None
    """Times that the processor has throttled itself since it was started, all cores together (x86)."""

    throttle_reasons: tuple[str, ...] = ()
    """What slows the machine down now, in words."""

    steal_s: float | None = None
    """Processor seconds that the hypervisor has given to others since the start."""

    busy_and_idle_s: float | None = None
    """Processor seconds since the start, all cores together."""

    waited_s: float | None = None
    """Seconds that this process's main thread has been ready to run, but had no core."""

    missing: Mapping[str, str] | None = None
    """Why a value is None, by the value's name."""


def read_machine_state(root: Path = SYSTEM_ROOT) -> MachineState:
    """Return the state of this machine.

    Args:
        root: Where `proc` and `sys` are.
    """
    gpu = read_gpu_state()
    readings: dict[str, float | Unavailable | None] = {
        "cpu_mhz": read_cpu_mhz(root),
        "gpu_mhz": read_gpu_mhz(root, gpu),
        "temperature_c": read_temperature_c(root),
        "gpu_temperature_c": gpu if isinstance(gpu, Unavailable) else gpu.temperature_c,
        "power_w": read_board_power_w(root),
        "gpu_power_w": gpu if isinstance(gpu, Unavailable) else gpu.power_w,
        "num_throttles": read_num_throttles(root),
        "steal_s": read_processor_seconds(root)[0],
        "busy_and_idle_s": read_processor_seconds(root)[1],
        "waited_s": read_waited_s(root),
    }
    values = {name: None if isinstance(value, Unavailable) else value for name, value in readings.items()}
    throttles = values.pop("num_throttles")
    gpu_reasons = () if isinstance(gpu, Unavailable) else gpu.throttle_reasons
    return MachineState(
        time_s=time.perf_counter(),
        num_throttles=None if throttles is None else int(throttles),
        throttle_reasons=(*gpu_reasons, *active_cooling(root), *raspberry_reasons(root)),
        missing={name: value.reason for name, value in readings.items() if isinstance(value, Unavailable)},
        **values,
    )


def read_cpu_mhz(root: Path) -> float | Unavailable:
    """Return the mean clock of the cores, from cpufreq or, without it, from what the kernel lists."""
    clocks_khz = read_numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    if not isinstance(clocks_khz, Unavailable):
        return fmean(clocks_khz) / 1000
    text = read_text(root, "proc/cpuinfo")
    if isinstance(text, Unavailable):
        return text
    listed = [line.partition(":")[2] for line in text.splitlines() if line.startswith("cpu MHz")]
    if not listed:
        return clocks_khz
    if any("hypervisor" in line for line in text.splitlines() if line.startswith("flags")):
        return Unavailable("a virtual machine is shown a fixed clock")
    return fmean(float(mhz) for mhz in listed)


def read_gpu_mhz(root: Path, gpu: GpuState | Unavailable) -> float | Unavailable | None:
    """Return the GPU's clock, from NVIDIA's library or, on a Jetson, from devfreq."""
    if not isinstance(gpu, Unavailable) and gpu.clock_mhz is not None:
        return gpu.clock_mhz
    for pattern in ("sys/class/devfreq/*gpu*/cur_freq", "sys/devices/gpu.0/devfreq/*/cur_freq"):
        clocks_hz = read_numbers(root, pattern)
        if not isinstance(clocks_hz, Unavailable):
            return max(clocks_hz) / 1e6
    return gpu if isinstance(gpu, Unavailable) else None


def read_temperature_c(root: Path) -> float | Unavailable:
    """Return the temperature of the hottest zone."""
    zones = read_numbers(root, "sys/class/thermal/thermal_zone*/temp")
    # Zones that are switched off say so with absolute zero or less, or with 0.
    return zones if isinstance(zones, Unavailable) else max(zones) / 1000


def read_board_power_w(root: Path) -> float | Unavailable:
    """Return the power at the board's input, of a Jetson's INA3221 (volts and amperes of the rail named VDD_IN)."""
    for name in matching(root, "sys/class/hwmon/hwmon*/in[0-9]_label"):
        if read_text(root, name) not in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0"):
            continue
        folder, _, label = name.rpartition("/")
        channel = label.removeprefix("in").removesuffix("_label")
        millivolts = read_number(root, f"{folder}/in{channel}_input")
        milliamperes = read_number(root, f"{folder}/curr{channel}_input")
        if not isinstance(millivolts, Unavailable) and not isinstance(milliamperes, Unavailable):
            return millivolts * milliamperes / 1e6
    return Unavailable("no board power sensor (INA3221 with a rail VDD_IN)")


def read_num_throttles(root: Path) -> float | Unavailable:
    """Return how often the cores have throttled themselves since the start (x86)."""
    counts = read_numbers(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    return counts if isinstance(counts, Unavailable) else sum(counts)


def active_cooling(root: Path) -> list[str]:
    """Return the cooling devices that slow something down now; a fan does not."""
    active = []
    for name in matching(root, "sys/class/thermal/cooling_device*/cur_state"):
        kind = read_text(root, name.replace("cur_state", "type"))
        level = read_number(root, name)
        slows_down = isinstance(kind, str) and any(part in kind.lower() for part in ("cpu", "gpu", "processor"))
        if slows_down and not isinstance(level, Unavailable) and level > 0:
            active.append(f"{kind} is throttled to level {level:.0f} because of the temperature")
    return active


def raspberry_reasons(root: Path) -> list[str]:
    """Return what a Raspberry Pi's firmware holds back now."""
    text = read_text(root, RASPBERRY_THROTTLED)
    if isinstance(text, Unavailable):
        return []
    try:
        bits = int(text, 16)
    except ValueError:
        return []
    return [reason for bit, reason in RASPBERRY_REASONS.items() if bits & bit]


def read_processor_seconds(root: Path) -> tuple[float | Unavailable, float | Unavailable]:
    """Return the processor seconds given to others by the hypervisor, and all of them, since the start."""
    seconds = _seconds_by_kind(root)
    return (seconds, seconds) if isinstance(seconds, Unavailable) else (seconds[7], sum(seconds))


def read_others_s(root: Path = SYSTEM_ROOT) -> float | Unavailable:
    """Return the processor seconds that all but this process have had since the start, other guests included."""
    seconds = _seconds_by_kind(root)
    if isinstance(seconds, Unavailable):
        return seconds
    user, nice, system, steal = (seconds[index] for index in (0, 1, 2, 7))
    return user + nice + system + steal - time.process_time()


def _seconds_by_kind(root: Path) -> list[float] | Unavailable:
    """Return the processor seconds since the start: user nice system idle iowait irq softirq steal."""
    text = read_text(root, "proc/stat")
    if isinstance(text, Unavailable):
        return text
    words = text.splitlines()[0].split() if text else []
    if len(words) < 9 or words[0] != "cpu":
        return Unavailable("/proc/stat does not tell")
    per_second = os.sysconf("SC_CLK_TCK")
    return [int(word) / per_second for word in words[1:9]]  # guests, which come next, are in user


def read_waited_s(root: Path) -> float | Unavailable:
    """Return the seconds that this process's main thread was ready to run but had no core."""
    text = read_text(root, "proc/self/schedstat")
    if isinstance(text, Unavailable):
        return text
    words = text.split()
    return int(words[1]) / 1e9 if len(words) == 3 else Unavailable("/proc/self/schedstat does not tell")
