"""Transcripts are what commands print: the script that makes them, and the tutorials, run with a tiny classifier."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.injection.options import InjectionOptions
from scripts.maintenance.make_transcripts import (
    CommandFailedError,
    Step,
    cut_as,
    main,
    parse_block,
    shell_in,
    steps_of,
    with_output,
)
from testing.tiny_project import TinyProject
from tests.icis_deploy.api.test_reference import noise_images, write_list

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


def test_a_block_is_read_as_commands_with_what_they_print():
    assert parse_block("$ one \\\n    more\na\nb\n$ two\n") == [Step("one \\\n    more", ("a", "b")), Step("two", ())]


def test_text_before_the_first_command_is_refused():
    with pytest.raises(ValueError, match=r"begins with 'a'; expected a command after '\$ '"):
        parse_block("a\n$ one\n")


@pytest.mark.parametrize(
    ("before", "expected"),
    [((), ["a", "b", "c"]), (("x", "…"), ["a", "…"]), (("1", "2", "3", "4", "…"), ["a", "b", "c"])],
)
def test_an_output_stays_cut_off_where_the_document_cuts_it_off(before, expected):
    assert cut_as("a\nb  \nc\n", before) == expected


def test_only_console_blocks_change(tmp_path):
    text = "```\n$ echo no\n```\ntext\n```console\n$ echo one > file\n$ cat file\nold\n```\n"

    renewed = with_output(text, shell_in(tmp_path))

    assert renewed == text.replace("$ cat file\nold", "$ cat file\none")
    assert with_output(renewed, shell_in(tmp_path)) == renewed


def test_a_command_that_fails_is_named_with_what_it_printed_and_the_document_stays(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("```console\n$ ls nowhere\n```\n")

    with pytest.raises(CommandFailedError, match=r"ls nowhere\n.*nowhere"):
        main([str(document)])

    assert document.read_text() == "```console\n$ ls nowhere\n```\n"


def as_the_demo_leaves_it(project: TinyProject, folder: Path) -> None:
    """Write the files that `icis-deploy demo` makes, of a tiny classifier."""
    folder.mkdir()
    for path in (project.model, project.classes, project.unseen, project.descriptors, project.preprocess):
        shutil.copy(path, folder)
    (folder / "images").mkdir()
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class"])
        for name in (*project.seen_names, *project.unseen_names):
            shutil.copy(project.images.parent / f"{name}.png", folder / "images" / f"{name}-001.png")
            writer.writerow([f"images/{name}-001.png", name])
    write_list(folder / "seen.csv", noise_images(project, folder / "noise", num_images=120))
    (folder / "seen").mkdir()
    shutil.copy(folder / "seen.csv", folder / "seen" / "images.csv")
    update = icis_deploy.inject(
        project.model,
        classes=project.classes,
        descriptors=project.descriptors,
        options=InjectionOptions(method="ridge"),
    )
    icis_deploy.save_update(update, folder / "new.icis")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first-class.md", "device-updates.md"])
def test_the_tutorials_run_as_they_stand(name, tiny_project: TinyProject, tmp_path, monkeypatch):
    text = (TUTORIALS / name).read_text("utf-8").replace("model.pt2", "model.onnx")
    folder = tmp_path / "demo"
    as_the_demo_leaves_it(tiny_project, folder)
    run = shell_in(folder)

    outputs = {step.command: run(step.command) for step in steps_of(text)}

    assert len(outputs) >= 7
    if name == "device-updates.md":
        refused = [output for command, output in outputs.items() if "exit code" in command]
        assert len(refused) == 2
        assert all(output.endswith("exit code 6\n") for output in refused)
        (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        monkeypatch.chdir(folder)
        exec(compile(code, name, "exec"), {})
        assert icis_deploy.Device.open("camera").classes() == tiny_project.seen_names


@pytest.mark.parametrize("name", ["first-class.md", "device-updates.md"])
def test_every_command_of_the_tutorials_shows_what_it_prints(name):
    quiet = re.compile(r"^(tail|grep) .*> [\w.-]+$")

    assert [
        step.command
        for step in steps_of((TUTORIALS / name).read_text("utf-8"))
        if not step.output and not quiet.match(step.command)
    ] == []
