"""How commands are found: help in sections, the closest match of what was mistyped, completion in shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icis_deploy.cli.main import INTERRUPTED, SECTIONS, cli, run
from icis_deploy.common.closest import closest, did_you_mean
from testing.bundles import seen_head, write_bundle


def test_the_help_lists_every_command_once_in_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0

    text = capsys.readouterr().out
    listed = {
        title: re.findall(r"^  ([a-z-]+) +\S", text.split(f"\n{title}:\n")[1].split("\n\n")[0], re.MULTILINE)
        for title in SECTIONS
    }
    assert list(listed) == ["Workbench", "Device", "Fleet", "Keys", "Benchmarks"]
    assert listed == {title: [each.name for each in commands] for title, commands in SECTIONS.items()}
    assert [name for names in listed.values() for name in names] == list(cli.commands)
    assert "Commands:" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["exprot"], "No such command 'exprot'. Did you mean 'export'?"),
        (["verify-bundel"], "Did you mean"),
        (["export", "model.onnx", "--captivity", "3"], "No such option '--captivity'. Did you mean '--capacity'?"),
        (["inject", "model.onnx", "--descriptor", "a.npz"], "'--descriptors'"),
    ],
)
def test_a_mistyped_command_or_option_gets_the_closest_one(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert expected in capsys.readouterr().err


def test_a_mistyped_class_gets_the_closest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    known = seen_head().class_names[0]

    assert run(["disable", str(bundle), f"{known}x"]) == 3
    assert f"Did you mean '{known}'? `icis-deploy classes` lists" in capsys.readouterr().err
    assert run(["disable", str(bundle), "qqqqqqqqqqqqqqqq"]) == 3
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"), [("okapy", "okapi"), ("OKAPI", "okapi"), ("Grévy zebra", "Grévy's zebra"), ("tram", None)]
)
def test_the_closest_name_is_alike_whatever_the_case(name: str, expected: str | None) -> None:
    assert closest(name, ["zebra", "okapi", "Grévy's zebra"]) == expected


def test_the_question_names_which_of_several_it_is_about() -> None:
    assert did_you_mean(["okapy"], ["okapi"]) == "Did you mean 'okapi'? "
    assert did_you_mean(["tram", "okapy"], ["okapi"]) == "Did you mean 'okapi' by 'okapy'? "
    assert did_you_mean(["tram"], ["okapi"]) == ""
    assert did_you_mean(["tram"], []) == ""


COMMAND = "import sys; from icis_deploy.cli.main import main; main()"


def completions(shell: str, words: list[str], cwd: Path) -> list[str]:
    """Return what the command line answers to the function that a shell calls for completion."""
    typed = " ".join(["icis-deploy", *words])
    last = {"bash": str(len(words)), "zsh": str(len(words)), "fish": words[-1]}[shell]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**os.environ, "_ICIS_DEPLOY_COMPLETE": f"{shell}_complete", "COMP_WORDS": typed, "COMP_CWORD": last},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("bash", ["plain,verify", "plain,verify-update", "plain,verify-bundle"]),
        ("zsh", ["plain", "verify", "Compare a bundle with the model it was made from."]),
        ("fish", ["plain,verify\tCompare a bundle with the model it was made from."]),
    ],
)
def test_each_shell_is_told_the_commands(shell: str, expected: list[str], tmp_path: Path) -> None:
    assert completions(shell, ["ver"], tmp_path)[: len(expected)] == expected


def test_options_their_values_and_classes_are_completed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    known = seen_head().class_names

    assert "plain,--capacity" in completions("bash", ["export", "--cap"], tmp_path)
    assert completions("bash", ["export", "--head", "up"], tmp_path) == ["plain,updatable"]
    assert completions("bash", ["disable", bundle.name, ""], tmp_path) == [f"plain,{name}" for name in known]
    assert completions("bash", ["disable", "no-bundle", ""], tmp_path) == [""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_completes_with_the_function_that_the_command_gives(shell: str, tmp_path: Path) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    command = tmp_path / "icis-deploy"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{COMMAND}' \"$@\"\n")
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    source = f"_ICIS_DEPLOY_COMPLETE={shell}_source icis-deploy"
    program = {
        "bash": f'eval "$({source})"; COMP_WORDS=(icis-deploy insp); COMP_CWORD=1; '
        "_icis_deploy_completion icis-deploy; echo ${COMPREPLY[@]}",
        "zsh": f'autoload -Uz compinit; compinit -u; eval "$({source})"; print ${{_comps[icis-deploy]:+inspect}}',
        "fish": f"env {source} | source; complete -C 'icis-deploy insp' | string split -f1 \t",
    }[shell]
    done = subprocess.run(
        [found, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.stdout.split() == ["inspect"], done.stderr


def test_python_runs_the_command_line_where_its_script_is_not_on_the_path() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "icis_deploy", "no-such-command"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'no-such-command'" in done.stderr


def test_an_interruption_while_the_commands_are_imported_ends_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")  # in the place of the first library they import

    done = subprocess.run(
        [sys.executable, "-c", "from icis_deploy.__main__ import main; main()", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "Interrupted.\n")
