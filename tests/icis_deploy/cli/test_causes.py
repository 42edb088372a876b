"""`-v` names what caused an error, `--debug` shows the traceback: of every command, before its name or after it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from icis_deploy.cli.causes import causes_of
from icis_deploy.cli.main import cli, run
from icis_deploy.errors import BundleError


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder whose manifest is no JSON: what reads it wraps an error of Python's own."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{")
    return tmp_path / "bundle"


@pytest.mark.parametrize("name", list(cli.commands))
@pytest.mark.parametrize("place", ["before", "after"])
def test_every_command_names_causes_and_shows_the_traceback(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_arguments: object, **_keywords: object) -> None:
        try:
            raise OSError("the disk is gone")
        except OSError as error:
            raise BundleError("It cannot be read.", hint="Copy it again.") from error

    command = cli.commands[name]
    monkeypatch.setattr(command, "callback", failing)
    for parameter in command.params:
        monkeypatch.setattr(parameter, "required", False)

    (tmp_path / "project.yaml").write_text("")  # what `run` looks for
    monkeypatch.chdir(tmp_path)

    for options in ([], ["-v"], ["--debug"], ["--verbose", "--debug"]):
        assert run([*options, name] if place == "before" else [name, *options]) == 3
        said = capsys.readouterr().err
        assert "Error: It cannot be read. Copy it again.\n" in said
        assert ("Caused by OSError: the disk is gone" in said) == bool({"-v", "--verbose"} & set(options))
        assert ("Traceback (most recent call last)" in said) == ("--debug" in options)
        assert options or said.count("\n") == 1


def test_without_either_an_error_is_one_line(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classes", str(broken)]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_causes_stand_below_the_error_and_the_traceback_above_it(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["classes", str(broken), "-v", "--debug"]) == 3
    lines = capsys.readouterr().err.splitlines()
    (place,) = [index for index, line in enumerate(lines) if line.startswith("Error: ")]

    assert lines[0].startswith(("Traceback", "json.decoder.JSONDecodeError"))
    assert any('File "' in line for line in lines[:place])
    assert lines[place + 1].startswith("Caused by ")
    assert "JSONDecodeError: Expecting property name" in " ".join(lines[place + 1 :])


def test_json_has_the_causes_when_asked(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classes", str(broken), "--format", "json", "-v"]) == 3
    asked = json.loads(capsys.readouterr().out)["error"]
    assert run(["classes", str(broken), "--format", "json"]) == 3
    plain = json.loads(capsys.readouterr().out)["error"]

    assert any("JSONDecodeError" in cause for cause in asked["causes"])
    assert asked == plain | {"causes": asked["causes"]}


def test_a_wrong_option_shows_its_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "classes", "--nothing"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "No such option '--nothing'" in said


def raised(error: BaseException, cause: BaseException | None, *, hidden: bool = False) -> BaseException:
    try:
        try:
            if cause is not None:
                raise cause
            raise error
        except type(cause or error):
            if cause is None:
                raise
            if hidden:
                raise error from None
            raise error  # noqa: B904 - what is handled counts as well
    except type(error) as caught:
        return caught


def test_a_chain_is_followed_to_its_end_and_no_further() -> None:
    inner, middle = ValueError("3\nlines"), click.ClickException("")
    middle.__cause__ = inner
    outer = BundleError("outer")
    outer.__cause__ = middle
    inner.__context__ = outer  # a ring ends

    assert list(causes_of(outer)) == ["click.exceptions.ClickException", "ValueError: 3 lines"]
    assert list(causes_of(raised(BundleError("a"), KeyError("b")))) == ["KeyError: 'b'"]
    assert list(causes_of(raised(BundleError("a"), KeyError("b"), hidden=True))) == []
    assert list(causes_of(BundleError("alone"))) == []


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*_arguments: object, **_keywords: object) -> None:
        raise MemoryError("Unable to allocate 3.00 GiB for an array")

    monkeypatch.setattr(cli.commands["classes"], "callback", failing)

    assert run(["classes", "."]) == 4
    assert capsys.readouterr().err == (
        "Error: There is not enough memory: Unable to allocate 3.00 GiB for an array. End other programs, or use a "
        "machine with more memory.\n"
    )
