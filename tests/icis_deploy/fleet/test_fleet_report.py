"""Statuses of real bundles and of thousands that are made up, as one report: who needs attention, and for what."""

from __future__ import annotations

import html
import json
import re
from datetime import datetime, timedelta, timezone

import pytest

from icis_deploy.cli.main import run
from icis_deploy.errors import LoadError
from icis_deploy.fleet.page import html_page
from icis_deploy.fleet.reporting import ATTENTION, fleet_report
from icis_deploy.fleet.statuses import UnreadableStatus, load_status, status_files
from icis_deploy.runtime.device import Device
from testing.bundles import make_update, write_bundle

A_DAY = timedelta(hours=24)
NOW = datetime(2026, 11, 30, 9, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What `status --format json` prints of a real bundle."""
    folder = write_bundle(tmp_path_factory.mktemp("fleet") / "bundle")
    Device.open(folder).apply(make_update("okapi", version=1), allow_unsigned=True)
    file = folder.parent / "status.json"
    with pytest.MonkeyPatch.context() as patch, file.open("w") as stdout:
        patch.setattr("sys.stdout", stdout)
        assert run(["status", str(folder), "--device", "camera", "--format", "json"]) == 0
    return json.loads(file.read_text())


@pytest.fixture
def write(printed, tmp_path):
    """A function that writes the status of a device, with some fields changed."""

    def write_status(called, **changed):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(printed | {"device": called, "time": "2026-11-30T09:00:00Z"} | changed))
        return path

    return write_status


def report_of(*paths):
    return fleet_report([load_status(path) for path in status_files(paths)], silent_after=A_DAY)


def refused_at(time):
    return {"num_refused": 1, "refusals": [{"file": "9.icis", "time": time, "reason": "no trusted key"}]}


def test_each_device_needs_attention_for_what_is_wrong_with_it(write, tmp_path):
    for number in range(3):
        write(f"good {number}")
    later, earlier = "2099-01-01T00:00:00Z", "2001-01-01T00:00:00Z"
    write("damaged", problems=["model.onnx is damaged"])
    write("differs", head_sha256="f" * 64)
    write("refused", **refused_at(later))
    write("refused long ago", **refused_at(earlier))
    write("behind", version=0, head_sha256="e" * 64)
    write("silent", time="2026-11-29T08:59:59Z")
    write("not yet silent", time="2026-11-29T09:00:00Z")
    write("full", num_free_slots=0)
    write("everything", version=0, head_sha256="e" * 64, num_free_slots=0, problems=["x"], **refused_at(later))
    (tmp_path / "bad.json").write_text("{")

    report = report_of(tmp_path)

    assert [(row.device, row.attention) for row in report.rows] == [
        (str(tmp_path / "bad.json"), ("unreadable",)),
        ("damaged", ("damaged",)),
        ("everything", ("damaged", "refused", "behind", "full")),
        ("differs", ("differs",)),
        ("refused", ("refused",)),
        ("behind", ("behind",)),
        ("silent", ("silent",)),
        ("full", ("full",)),
        *[(name, ()) for name in ("good 0", "good 1", "good 2", "not yet silent", "refused long ago")],
    ]
    assert report.num_ok == 5
    assert report.counts == {
        "unreadable": 1, "damaged": 2, "differs": 1, "refused": 2, "behind": 2, "silent": 1, "full": 2
    }  # fmt: skip


def test_devices_are_compared_with_those_of_the_same_seen_head(write, tmp_path):
    write("one", version=7)
    write("other", base_fingerprint="a" * 64, version=3, head_sha256="b" * 64)

    report = report_of(tmp_path)

    assert [row.attention for row in report.rows] == [(), ()]
    assert [(fleet.newest, fleet.versions) for fleet in report.fleets] == [(3, ((3, 1),)), (7, ((7, 1),))] or [
        (fleet.newest, fleet.versions) for fleet in report.fleets
    ] == [(7, ((7, 1),)), (3, ((3, 1),))]


def test_of_a_device_the_latest_status_counts(write, tmp_path):
    write("camera", time="2026-11-30T09:00:00Z", problems=[])
    write("camera", time="2026-11-30T08:00:00Z", problems=["old"])

    report = report_of(tmp_path)

    assert (len(report.rows), report.num_superseded, report.num_ok) == (1, 1, 1)


@pytest.mark.parametrize(
    ("num_older", "shown"),
    [(1, "1 older status of the same device is left out"), (2, "2 older statuses of these devices are left out")],
)
def test_statuses_that_do_not_count_are_said_to_be_there(num_older: int, shown: str, write, tmp_path, capsys):
    for hour in range(num_older + 1):
        write("camera", time=f"2026-11-30T0{hour}:00:00Z", problems=[])

    assert run(["fleet-report", str(tmp_path), "--out", str(tmp_path / "fleet.html")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"1 device, 1 ok; {shown}"
    assert f" {shown}." in (tmp_path / "fleet.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "expected an object"),
        ("{}", "not 'status' of 1"),
        ('{"schema_version": 2, "command": "status"}', "schema version 2"),
        ('{"schema_version": 1, "command": "history"}', "'history'"),
        ('{"schema_version": 1, "command": "status"}', "it has no 'refusals'"),
        ("[" * 100_000, "JSON values"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_a_file_that_is_no_status_is_a_line_with_the_reason(tmp_path, text, reason):
    path = tmp_path / "bad.json"
    path.write_text(text)

    found = load_status(path)

    assert isinstance(found, UnreadableStatus)
    assert reason in found.reason


@pytest.mark.parametrize("name", ["device", "time", "version", "problems", "refusals", "changed", "disabled"])
def test_a_field_of_another_type_is_a_line_with_the_reason(write, name):
    assert isinstance(load_status(write("camera", **{name: {"a": 1}})), UnreadableStatus)


def test_a_device_that_could_say_nothing_is_a_row(write, tmp_path):
    unknown = dict.fromkeys(
        ("bundle_sha256", "base_fingerprint", "head_sha256", "version", "changed", "num_free_slots", "capacity"), None
    )
    write("camera", problems=["There is no bundle."], **unknown)

    report = report_of(tmp_path)

    assert [row.attention for row in report.rows] == [("damaged",)]
    assert report.fleets[0].versions == ((None, 1),)
    assert "seen head not known" in html_page(report)


def test_the_headline_counts_devices_and_apart_from_them_what_cannot_be_read(write, tmp_path):
    write("camera", problems=[])
    assert "<h1>1 device, 0 need attention</h1>" in html_page(report_of(tmp_path))
    write("door", problems=["damaged"])
    (tmp_path / "bad.json").write_text("")
    assert "<h1>2 devices, 1 needs attention, 1 status cannot be read</h1>" in html_page(report_of(tmp_path))


def test_a_large_file_and_what_is_no_file_are_not_read(tmp_path):
    (tmp_path / "large.json").write_bytes(b" " * (1 << 21))

    assert "larger than" in load_status(tmp_path / "large.json").reason
    assert isinstance(load_status(tmp_path), UnreadableStatus)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(LoadError, match="There are 0 statuses"):
        status_files([tmp_path])


def test_no_device_can_put_a_script_into_the_page_or_a_line_into_the_text(write, tmp_path, capsys):
    evil = "<script>alert(1)</script>\n\x1b[2J"
    write(evil, problems=[evil], version=1)
    page = tmp_path / "fleet.html"

    code = run(["fleet-report", str(tmp_path), "--out", str(page)])

    text = capsys.readouterr().out
    assert code == 0
    assert "\x1b" not in text
    assert "<script>alert" not in page.read_text()
    assert html.escape("<script>alert(1)</script>") in page.read_text()


def test_the_command_gives_text_json_and_a_page_of_thousands(write, printed, tmp_path, capsys):
    folder = tmp_path / "statuses"
    folder.mkdir()
    for number in range(3000):
        version = 1 if number % 10 else 0
        fields = {"device": f"camera-{number:04}", "version": version, "head_sha256": str(version) * 64}
        (folder / f"{number}.json").write_text(json.dumps(printed | fields))
    page = tmp_path / "fleet.html"

    code = run(["fleet-report", str(folder), "--out", str(page), "--format", "json"])
    result = json.loads(capsys.readouterr().out)
    text_code = run(["fleet-report", str(folder)])
    text = capsys.readouterr().out

    assert (code, text_code, result["num_devices"], result["num_ok"]) == (0, 0, 3000, 2700)
    assert result["attention"] == {"behind": 300}
    assert result["fleets"][0]["versions"] == [{"version": 1, "num_devices": 2700}, {"version": 0, "num_devices": 300}]
    assert [each["attention"] for each in result["devices"]] == [["behind"]] * 300 + [[]] * 2700
    assert page.read_text().count("<tr><td") == 3000
    assert not re.search(r"https?:|@import|url\(", page.read_text())
    assert "… and 250 more" in text
    assert "90.0 %" in text


def test_a_page_that_is_there_is_kept(write, tmp_path, capsys):
    write("camera")
    page = tmp_path / "page"
    page.write_text("mine")

    assert run(["fleet-report", str(tmp_path), "--out", str(page)]) == 2
    assert page.read_text() == "mine"
    assert run(["fleet-report", str(tmp_path), "--out", str(page), "--overwrite"]) == 0
    assert "1 device, 0 need attention" in page.read_text()


def test_every_kind_of_attention_has_words():
    assert all(words and words == words.strip() for words in ATTENTION.values())


def test_a_report_of_files_of_which_none_is_a_status_is_written_and_fails(tmp_path, capsys):
    folder, page = tmp_path / "statuses", tmp_path / "fleet.html"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")

    code = run(["fleet-report", str(folder), "--out", str(page), "--format", "json"])

    printed, said = capsys.readouterr()
    result = json.loads(printed)
    assert (code, result["status"], result["attention"], page.is_file()) == (3, "error", {"unreadable": 1}, True)
    assert said.startswith("Error: No status could be read of 1 files.")
