import json
import os
import time

import pytest

from benchmarks.machine.monitor import read_machine_state, read_others_s
from benchmarks.machine.system_files import Unavailable
from benchmarks.results.json_values import json_from_value

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def system(tmp_path):
    """Write files below a root that stands for `/`, and return the root."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def test_a_machine_that_tells_nothing_gives_none_and_the_reasons(tmp_path):
    state = read_machine_state(tmp_path)

    assert (state.cpu_mhz, state.temperature_c, state.power_w, state.num_throttles) == (None, None, None, None)
    assert state.throttle_reasons == ()
    assert state.missing["temperature_c"] == "no /sys/class/thermal/thermal_zone*/temp"
    assert state.missing["steal_s"] == "no /proc/stat"
    assert state.missing["waited_s"] == "no /proc/self/schedstat"


def test_a_jetson_tells_clocks_temperature_power_and_what_is_throttled(system):
    hwmon, thermal = "sys/class/hwmon/hwmon3", "sys/class/thermal"
    state = read_machine_state(
        system(
            {
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600",
                "sys/class/devfreq/17000000.gpu/cur_freq": "624750000",
                f"{thermal}/thermal_zone0/temp": "48500",
                f"{thermal}/thermal_zone1/temp": "51250",
                f"{thermal}/thermal_zone2/temp": "-256000",  # a part that is switched off
                f"{thermal}/cooling_device0/type": "pwm-fan",
                f"{thermal}/cooling_device0/cur_state": "2",
                f"{thermal}/cooling_device1/type": "cpufreq-cpu0",
                f"{thermal}/cooling_device1/cur_state": "3",
                f"{thermal}/cooling_device2/type": "17000000.gpu",
                f"{thermal}/cooling_device2/cur_state": "0",
                f"{hwmon}/in1_label": "VDD_IN",
                f"{hwmon}/in1_input": "4960",
                f"{hwmon}/curr1_input": "1500",
                f"{hwmon}/in2_label": "VDD_CPU_GPU_CV",
                f"{hwmon}/in2_input": "4960",
                f"{hwmon}/curr2_input": "400",
            }
        )
    )

    assert state.cpu_mhz == pytest.approx(1120.0)
    assert state.gpu_mhz == pytest.approx(624.75)
    assert state.temperature_c == pytest.approx(51.25)
    assert state.power_w == pytest.approx(4.96 * 1.5)
    assert state.throttle_reasons == ("cpufreq-cpu0 is throttled to level 3 because of the temperature",)


def test_a_raspberry_pi_tells_what_its_firmware_holds_back(system):
    state = read_machine_state(
        system({"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})  # the upper half is the past
    )

    assert state.throttle_reasons == (
        "the board's supply voltage is too low",
        "the processor is throttled by the firmware",
    )


def test_an_x86_machine_tells_how_often_it_was_throttled(system):
    folder = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
    state = read_machine_state(system({folder.format(0): "3", folder.format(1): "4"}))

    assert state.num_throttles == 7


def test_clocks_without_cpufreq_are_those_the_kernel_lists(system):
    assert read_machine_state(
        system({"proc/cpuinfo": "flags\t: sse\ncpu MHz\t: 2400.5\ncpu MHz\t: 1600.5\n"})
    ).cpu_mhz == (pytest.approx(2000.5))


def test_the_clock_shown_to_a_virtual_machine_is_not_believed(system):
    state = read_machine_state(system({"proc/cpuinfo": "flags\t: sse hypervisor\ncpu MHz\t: 2400.5\n"}))

    assert state.cpu_mhz is None
    assert state.missing["cpu_mhz"] == "a virtual machine is shown a fixed clock"


def test_time_given_to_others_is_read(system):
    state = read_machine_state(
        system(
            {
                "proc/stat": f"cpu  {10 * TICKS} 0 {5 * TICKS} {80 * TICKS} 0 0 0 {5 * TICKS} 7 0\ncpu0 1 2 3\n",
                "proc/self/schedstat": "5000000000 250000000 12\n",
            }
        )
    )

    assert (state.steal_s, state.busy_and_idle_s, state.waited_s) == (5.0, 100.0, 0.25)


def test_what_other_processes_had_is_all_but_idle_time_and_this_process(system):
    root = system({"proc/stat": f"cpu  {10**6 * TICKS} {2 * TICKS} {5 * TICKS} {80 * TICKS} 7 7 7 {3 * TICKS} 7 0\n"})

    before = time.process_time()
    others = read_others_s(root)

    assert before <= 10**6 + 10 - others <= time.process_time()
    assert isinstance(read_others_s(system({"proc/stat": "intr 1 2"})), Unavailable)


@pytest.mark.parametrize(
    ("files", "name", "reason"),
    [
        ({"proc/stat": "intr 1 2"}, "steal_s", "/proc/stat does not tell"),
        ({"proc/stat": ""}, "steal_s", "/proc/stat does not tell"),
        ({"proc/self/schedstat": "0"}, "waited_s", "/proc/self/schedstat does not tell"),
    ],
)
def test_files_of_another_form_are_no_error(files, name, reason, system):
    state = read_machine_state(system(files))

    assert getattr(state, name) is None
    assert state.missing[name] == reason


def test_this_machine_can_be_read_and_written_down():
    written = json.loads(json.dumps(json_from_value(read_machine_state()), allow_nan=False))

    values = {name: value for name, value in written.items() if name not in ("missing", "throttle_reasons")}
    assert all((value is None) == (name in written["missing"]) for name, value in values.items())
