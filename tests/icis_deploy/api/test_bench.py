from pathlib import Path

import pytest

from icis_deploy.api.bench import BenchOptions, bench
from icis_deploy.errors import LoadError, UsageError
from testing.tiny_project import TinyProject


def test_a_benchmark_needs_a_bundle():
    with pytest.raises(UsageError, match=r"^There is no bundle to measure\. Give at least one\.$"):
        bench([])


def test_a_baseline_may_be_a_file_and_is_read_before_anything_is_measured(tiny_project: TinyProject, tmp_path: Path):
    with pytest.raises(LoadError, match="is not a benchmark result"):
        bench([tmp_path / "nothing"], baseline=tiny_project.classes)


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        ({"preset": "slow"}, "slow", ("quick", "normal", "submission")),
        ({"batch_sizes": (8, 0)}, (0, 8), "at least one size, each at least 1"),
        ({"num_threads": 0}, 0, "a positive number"),
    ],
)
def test_options_that_cannot_be_measured_say_what_was_found_and_expected(settings, found, expected):
    with pytest.raises(UsageError) as caught:
        BenchOptions(**settings)

    assert (caught.value.found, caught.value.expected) == (found, expected)
