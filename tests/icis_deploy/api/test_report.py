"""The report as a Python function; the command's own tests read what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.errors import LoadError, UsageError

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "bench.json"


def test_a_result_is_taken_as_a_value_or_as_its_file(tmp_path: Path):
    result = icis_deploy.results.load_result(str(RESULT))
    from_value = icis_deploy.report([result], markdown=tmp_path / "value.md")
    from_file = icis_deploy.report([str(RESULT)], markdown=str(tmp_path / "file.md"))

    assert (tmp_path / "value.md").read_bytes() == (tmp_path / "file.md").read_bytes()
    assert from_value.files == {tmp_path / "value.md": (tmp_path / "value.md").stat().st_size}
    assert (from_file.devices, from_file.num_results, from_file.num_rows) == (from_value.devices, 1, 6)


def test_nothing_to_write_is_refused():
    with pytest.raises(UsageError, match=r"^There is nothing to write: say where the page goes"):
        icis_deploy.report([RESULT])


def test_what_is_no_result_leaves_nothing(tmp_path: Path):
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(LoadError, match="no JSON object with a `schema_version`"):
        icis_deploy.report([RESULT, tmp_path / "wrong.json"], markdown=tmp_path / "report.md")

    assert [path.name for path in tmp_path.iterdir()] == ["wrong.json"]


def test_a_result_is_written_and_compared_through_public_names(tmp_path: Path):
    result = icis_deploy.results.load_result(RESULT)
    icis_deploy.results.save_result(result, str(tmp_path / "copy.json"))

    assert icis_deploy.results.load_result(tmp_path / "copy.json") == result
    assert icis_deploy.results.find_regressions(result, result, max_regression=0.0) == ()
