"""Which machine, system and versions a result comes from; without them it cannot be compared.

Whatever cannot be read is None, and `missing` says why. Nothing here identifies a person or a network: no host name, no
user, no serial number.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from benchmarks.machine.gpu import read_gpus
from benchmarks.machine.system_files import (
    SYSTEM_ROOT,
    Unavailable,
    matching,
    read_fields,
    read_numbers,
    read_text,
)

REPORTED_PACKAGES = (
    "icis-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "openvino",
    "MNN",
    "ai-edge-litert",
    "executorch",
    "ncnn",
    "torch",
    "mlcommons-loadgen",
)
CPUFREQ = "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")

ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}
"""Part numbers in /proc/cpuinfo of ARM's own cores (Arm, main ID register of each core)."""

CONTAINER_WORDS = ("docker", "kubepods", "containerd", "lxc", "podman")
VIRTUAL_MAKERS = (
    "qemu",
    "kvm",
    "vmware",
    "virtualbox",
    "innotek",
    "xen",
    "amazon ec2",
    "google",
    "bochs",
    "parallels",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Machine, system and versions, by section; and a short name for the machine."""

    sections: Mapping[str, Mapping[str, object]]
    """Values that `json.dumps` takes, by section (`cpu`, `memory`, `board`, `gpu`, `system`, `versions`, `threads`)
    and name; None where a value could not be read."""

    missing: Mapping[str, str]
    """Why a value is None, by `section.name`."""

    DERIVED: ClassVar = ("name", "fingerprint")

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits: equal on machines of the same make, whatever is installed on them."""
        cpu, board, gpus = self.sections["cpu"], self.sections["board"], self.sections["gpu"]["gpus"]
        make = [cpu["model"], cpu["architecture"], cpu["num_cores"], self.memory_gib]
        make += [board["model"], board["virtualization"]]
        make += [each["name"] for each in gpus] if isinstance(gpus, list) else []
        return hashlib.sha256(json.dumps(make).encode()).hexdigest()[:12]

    @property
    def memory_gib(self) -> int | None:
        """Memory in whole GiB; the exact size differs from one start to the next."""
        total = self.sections["memory"]["total_bytes"]
        return round(total / 2**30) if isinstance(total, int) else None

    @property
    def name(self) -> str:
        """What a reader would call this machine."""
        cpu, board, gpu = self.sections["cpu"], self.sections["board"], self.sections["gpu"]
        parts = [str(board["model"] or cpu["model"] or cpu["architecture"]), f"{cpu['num_usable_cores']} cores"]
        gpus = gpu["gpus"]
        if isinstance(gpus, list):
            parts += [str(each["name"]) for each in gpus]
        parts += [str(board[kind]) for kind in ("virtualization", "container") if board[kind] not in (None, "none")]
        return ", ".join(parts)


def read_environment(root: Path = SYSTEM_ROOT) -> Environment:
    """Return the environment of this process.

    Args:
        root: Where `proc`, `sys` and `etc` are.
    """
    readings: dict[str, dict[str, object]] = {
        "cpu": read_cpu(root),
        "memory": read_memory(root),
        "board": read_board(root),
        "gpu": {"gpus": read_gpus()},
        "system": read_system(root),
        "versions": {name: version_of(name) for name in REPORTED_PACKAGES},
        "threads": {name: os.environ.get(name, Unavailable("not set")) for name in THREAD_VARIABLES},
    }
    return Environment(
        sections={
            section: {name: None if isinstance(value, Unavailable) else value for name, value in values.items()}
            for section, values in readings.items()
        },
        missing={
            f"{section}.{name}": value.reason
            for section, values in readings.items()
            for name, value in values.items()
            if isinstance(value, Unavailable)
        },
    )


def read_cpu(root: Path) -> dict[str, object]:
    """Return the processor's model, cores, governor and highest clock."""
    governors = [read_text(root, name) for name in matching(root, f"{CPUFREQ}/scaling_governor")]
    known = sorted({text for text in governors if isinstance(text, str)})
    highest_khz = read_numbers(root, f"{CPUFREQ}/cpuinfo_max_freq")
    return {
        "model": read_cpu_model(root),
        "architecture": platform.machine(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": num_usable_cores(),
        "quota_cores": read_cpu_quota(root),
        "governor": ", ".join(known) if known else Unavailable(f"no /{CPUFREQ}/scaling_governor"),
        "max_mhz": highest_khz if isinstance(highest_khz, Unavailable) else max(highest_khz) / 1000,
    }


def read_cpu_model(root: Path) -> str | Unavailable:
    """Return the processor's name; on ARM, where the kernel gives numbers, the names of its cores."""
    fields = read_fields(root, "proc/cpuinfo", ":")
    if isinstance(fields, Unavailable):
        return platform.processor() or fields
    name = fields.get("model name") or fields.get("Model")
    if name:
        return name
    text = read_text(root, "proc/cpuinfo")
    lines = text.splitlines() if isinstance(text, str) else []
    parts = dict.fromkeys(line.partition(":")[2].strip() for line in lines if line.startswith("CPU part"))
    cores = [ARM_CORES.get(part, f"ARM part {part}") for part in parts]
    return " + ".join(cores) if cores else Unavailable("/proc/cpuinfo names no model")


def num_usable_cores() -> int | None:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def read_cpu_quota(root: Path) -> float | Unavailable:
    """Return how many cores' worth of time the container may use."""
    unified = read_text(root, "sys/fs/cgroup/cpu.max")
    if isinstance(unified, str):
        quota, _, period = unified.partition(" ")
    else:
        first = read_text(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        second = read_text(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us")
        if isinstance(first, Unavailable) or isinstance(second, Unavailable):
            return unified
        quota, period = first, second
    if not (quota.isdecimal() and period.isdecimal()):
        return Unavailable("no quota is set")
    return int(quota) / int(period)


def read_memory(root: Path) -> dict[str, object]:
    """Return the memory of the machine, in bytes."""
    fields = read_fields(root, "proc/meminfo", ":")

    def in_bytes(name: str) -> int | Unavailable:
        if isinstance(fields, Unavailable):
            return fields
        value = fields.get(name, "").removesuffix(" kB")
        return int(value) * 1024 if value.isdecimal() else Unavailable(f"/proc/meminfo has no {name}")

    return {"total_bytes": in_bytes("MemTotal"), "available_bytes": in_bytes("MemAvailable")}


def read_board(root: Path) -> dict[str, object]:
    """Return the board's model, its Jetson release and power mode, and the virtual machine and container."""
    jetson = read_text(root, "etc/nv_tegra_release")
    power_mode = read_text(root, "var/lib/nvpmodel/status")
    return {
        "model": read_text(root, "proc/device-tree/model"),
        "jetson_release": jetson if isinstance(jetson, Unavailable) else jetson.splitlines()[0].lstrip("# "),
        "jetson_power_mode": power_mode,
        "virtualization": read_virtualization(root),
        "container": read_container(root),
    }


def read_virtualization(root: Path) -> str | Unavailable:
    """Return "virtual machine", with its maker where that is known, or "none".

    On x86 the processor tells; on ARM it does not, and only the maker's name does.
    """
    cpuinfo = read_text(root, "proc/cpuinfo")
    if isinstance(cpuinfo, Unavailable):
        return cpuinfo
    made_by = [read_text(root, f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    maker = " ".join(text for text in made_by if isinstance(text, str))
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), None)
    is_virtual = "hypervisor" in flags if flags else any(word in maker.lower() for word in VIRTUAL_MAKERS)
    if not is_virtual:
        return "none"
    return f"virtual machine ({maker})" if maker else "virtual machine"


def read_container(root: Path) -> str | Unavailable:
    """Return the kind of container this process runs in, or "none"."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    groups = read_text(root, "proc/1/cgroup")
    if isinstance(groups, Unavailable):
        return groups
    return next((word for word in CONTAINER_WORDS if word in groups), "none")


def read_system(root: Path) -> dict[str, object]:
    """Return the operating system, its kernel, and Python."""
    release = read_fields(root, "etc/os-release", "=")
    if isinstance(release, Unavailable):
        described: str | Unavailable = platform.platform()
    else:
        described = release.get("PRETTY_NAME") or Unavailable("/etc/os-release has no PRETTY_NAME")
    return {
        "os": described,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "is_64_bit": sys.maxsize > 2**32,
    }


def version_of(package: str) -> str | Unavailable:
    """Return the installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return Unavailable("not installed")
