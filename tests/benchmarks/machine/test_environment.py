import json
import platform
from importlib import metadata

import pytest

from benchmarks.machine.environment import read_environment
from benchmarks.results.json_values import json_from_value

X86_VIRTUAL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu sse hypervisor\n"
X86_METAL = "processor\t: 0\nmodel name\t: AMD Ryzen 7\nflags\t\t: fpu sse\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: {}\nprocessor\t: 1\nCPU part\t: {}\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Write files below a root that stands for `/`, and return the root."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def test_a_jetson_is_recognised(system):
    environment = read_environment(
        system(
            {
                "proc/cpuinfo": ARM.format("0xd42", "0xd42"),
                "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
                "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400\n# KERNEL\n",
                "var/lib/nvpmodel/status": "pmode:0002\n",
                "proc/meminfo": "MemTotal:        7802340 kB\nMemAvailable:    6000000 kB\n",
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
                "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n",
                "proc/1/cgroup": "0::/init.scope\n",
                "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            }
        )
    )
    cpu, board = environment.sections["cpu"], environment.sections["board"]

    assert (cpu["model"], cpu["governor"], cpu["max_mhz"]) == ("Cortex-A78AE", "schedutil", 1510.4)
    assert board["model"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert board["jetson_release"] == "R36 (release), REVISION: 4.0, GCID: 37537400"
    assert board["jetson_power_mode"] == "pmode:0002"
    assert (board["virtualization"], board["container"]) == ("none", "none")
    assert environment.sections["system"]["os"] == "Ubuntu 22.04.5 LTS"
    assert environment.memory_gib == 7
    assert environment.name.startswith("NVIDIA Jetson Orin Nano Developer Kit, ")


def test_arm_cores_of_two_kinds_and_of_unknown_make_are_named(system):
    environment = read_environment(system({"proc/cpuinfo": ARM.format("0xd05", "0xfff")}))

    assert environment.sections["cpu"]["model"] == "Cortex-A55 + ARM part 0xfff"


@pytest.mark.parametrize(
    ("files", "virtualization"),
    [
        ({"proc/cpuinfo": X86_VIRTUAL}, "virtual machine"),
        (
            {
                "proc/cpuinfo": X86_VIRTUAL,
                "sys/class/dmi/id/sys_vendor": "Amazon EC2",
                "sys/class/dmi/id/product_name": "c7i.large",
            },
            "virtual machine (Amazon EC2 c7i.large)",
        ),
        ({"proc/cpuinfo": X86_METAL, "sys/class/dmi/id/sys_vendor": "Google"}, "none"),  # makes laptops too
        ({"proc/cpuinfo": ARM, "sys/class/dmi/id/sys_vendor": "QEMU"}, "virtual machine (QEMU)"),
        ({"proc/cpuinfo": ARM, "sys/class/dmi/id/sys_vendor": "NVIDIA"}, "none"),
        ({}, None),
    ],
)
def test_a_virtual_machine_is_told_from_a_real_one(files, virtualization, system):
    environment = read_environment(system(files))

    assert environment.sections["board"]["virtualization"] == virtualization
    assert ("board.virtualization" in environment.missing) == (virtualization is None)


@pytest.mark.parametrize(
    ("files", "container"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/1/cgroup": "3:cpu:/kubepods/burstable/pod1"}, "kubepods"),
        ({"proc/1/cgroup": "0::/"}, "none"),
        ({}, None),
    ],
)
def test_a_container_is_recognised(files, container, system):
    assert read_environment(system(files)).sections["board"]["container"] == container


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_read(files, cores, system):
    environment = read_environment(system(files))

    assert environment.sections["cpu"]["quota_cores"] == cores
    assert ("cpu.quota_cores" in environment.missing) == (cores is None)


def test_a_system_that_tells_nothing_gives_none_and_the_reasons(tmp_path):
    environment = read_environment(tmp_path)

    assert environment.sections["cpu"]["governor"] is None
    assert environment.missing["cpu.governor"] == "no /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
    assert environment.missing["memory.total_bytes"] == "no /proc/meminfo"
    assert environment.name
    assert len(environment.fingerprint) == 12


def test_the_fingerprint_is_the_machines_and_not_the_days(system):
    files = {
        "proc/cpuinfo": X86_METAL,
        "proc/meminfo": "MemTotal: 16300000 kB\nMemAvailable: 9000000 kB\n",
        "etc/os-release": "PRETTY_NAME=one",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
    }
    first = read_environment(system(files)).fingerprint
    another_day = {
        **files,
        "proc/meminfo": "MemTotal: 16300100 kB\nMemAvailable: 200 kB\n",
        "etc/os-release": "PRETTY_NAME=two",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    }
    another_processor = {**files, "proc/cpuinfo": X86_VIRTUAL}
    more_memory = {**files, "proc/meminfo": "MemTotal: 32600000 kB\n"}

    assert read_environment(system(another_day)).fingerprint == first
    assert read_environment(system(another_processor)).fingerprint != first
    assert read_environment(system(more_memory)).fingerprint != first


def test_this_machine_can_be_read_and_written_down():
    written = json.loads(json.dumps(json_from_value(read_environment()), allow_nan=False))

    sections = written["sections"]
    assert sections["versions"]["numpy"] == metadata.version("numpy")
    assert sections["system"]["python"].endswith(platform.python_version())
    for section, values in sections.items():
        for name, value in values.items():
            assert (value is None) == (f"{section}.{name}" in written["missing"])


def test_a_result_names_nobody(monkeypatch):
    monkeypatch.setenv("USER", "somebody-by-name")
    written = json.dumps(json_from_value(read_environment()))

    assert "somebody-by-name" not in written
    assert f'"{platform.node()}"' not in written
