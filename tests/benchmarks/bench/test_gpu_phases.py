"""The phases of a query; on a CPU, where its memory is the model's, all but the copies is real."""

import numpy as np
import onnxruntime
import pytest

from benchmarks.bench.bench import measure_all_phases, open_targets
from benchmarks.bench.gpu_phases import NUM_WARM, measure_phases
from icis_deploy.errors import RuntimeFailureError
from icis_deploy.runtime.sessions.onnxruntime_session import load_session


def ticks(*steps_ns):
    """A clock that goes on by these steps, again and again."""
    now, index = 0, -1

    def clock():
        nonlocal now, index
        index += 1
        now += steps_ns[index % len(steps_ns)]
        return now

    return clock


def test_each_phase_is_timed_apart(tiny_bundles):
    session = load_session(tiny_bundles.fused / "model.onnx").inference_session
    images = np.zeros((4, 3, 16, 16), dtype=np.float32)
    # start, copied, ready, computed, back
    clock = ticks(1_000_000, 2_000_000, 500_000, 7_000_000, 3_000_000)
    phases = measure_phases(session, images, None, target="fused", memory="cpu", num_queries=20, clock=clock)

    assert (phases.target, phases.batch_size) == ("fused", 4)
    assert phases.host_to_device_ms.value == pytest.approx(2.0)
    assert phases.compute_ms.value == pytest.approx(7.0)
    assert phases.device_to_host_ms.value == pytest.approx(3.0)
    assert NUM_WARM > 0


def test_a_target_on_the_cpu_has_no_phases(tiny_bundles):
    with open_targets([tiny_bundles.fused], against=None, runtimes=("onnxruntime",), num_threads=1) as targets:
        assert measure_all_phases(targets, [1]) == ()


def test_a_failing_runtime_is_an_error(tiny_bundles):
    session = load_session(tiny_bundles.fused / "model.onnx").inference_session

    with pytest.raises(RuntimeFailureError, match="could not run fused in parts"):
        measure_phases(session, np.zeros((1, 7), dtype=np.float32), None, target="fused", memory="cpu")


@pytest.mark.gpu
def test_every_phase_on_a_gpu_takes_a_time(tiny_bundles):
    if not {"CUDAExecutionProvider"} & set(onnxruntime.get_available_providers()):
        pytest.skip("this ONNX Runtime has no CUDA")
    for folder in (tiny_bundles.fused, tiny_bundles.updatable):
        with open_targets([folder], against=None, runtimes=("onnxruntime-cuda",), num_threads=None) as targets:
            (phases,) = measure_all_phases(targets, [8])

        for part in (phases.host_to_device_ms, phases.compute_ms, phases.device_to_host_ms):
            assert 0 < part.low <= part.value <= part.high
