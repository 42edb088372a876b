"""Every command and every block of Python in the documents fits the code, and most of them are run here, for real.

Three questions. Does the command line take each command as it stands: all options, types and required ones? Does the
library have what each block of Python names, with these arguments? And does it work: each command is run on a tiny
classifier, or one that has its options is; what cannot be run here is listed with the test that runs it.
"""

from __future__ import annotations

import ast
import gzip
import inspect
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import cli, run
from icis_deploy.descriptors.files import load_descriptors
from testing.tiny_project import TinyProject
from tests.icis_deploy.api.test_reference import noise_images, write_list

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from tests.test_site import PAGES, REPOSITORY, commands_of

DOCUMENTS = (REPOSITORY / "README.md", REPOSITORY / "RELEASE.md", *PAGES)
TESTS = REPOSITORY / "tests"


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a document."""

    page: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.arguments[0]

    @property
    def options(self) -> frozenset[str]:
        return frozenset(word.partition("=")[0] for word in self.arguments if word.startswith("--"))

    def __str__(self) -> str:
        return f"{self.page}: icis-deploy {' '.join(self.arguments)}"


def documented() -> list[Command]:
    return [
        Command(path.relative_to(REPOSITORY).as_posix(), tuple(arguments))
        for path in DOCUMENTS
        for arguments in commands_of(path.read_text("utf-8"))
        if not arguments[0].startswith("-")
    ]


# --- as it stands -------------------------------------------------------------------------------------------------


def fault_of(arguments: tuple[str, ...]) -> str | None:
    """Return what the command line has against a command; whether its files are there is another question."""
    try:
        with cli.make_context("icis-deploy", list(arguments), resilient_parsing=False) as context:
            name, command, rest = cli.resolve_command(context, list(arguments))
            assert command is not None
            command.make_context(name, rest, parent=context)
    except click.ClickException as error:
        return error.format_message()
    except click.exceptions.Exit:
        return None  # --help, --version
    return None


@pytest.fixture
def any_path(monkeypatch):
    """Let every path be one that is there."""
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _param, _ctx: Path(value))


def test_the_command_line_takes_every_command_of_the_documents(any_path):
    faults = {str(command): fault_of(command.arguments) for command in documented()}

    assert {command: fault for command, fault in faults.items() if fault is not None} == {}
    assert len(faults) > 100


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("inject", "model.onnx"), "Missing option '--out'"),
        (("apply", "new.icis"), "Missing option '--to'"),
        (("keygen", "--out", "KEY", "--force"), "No such option '--force'"),
        (("inject", "m.onnx", "--out", "a", "--max-seen-loss", "2%"), "'2%' is not a valid float"),
        (("export", "m.onnx", "--out", "a", "--precision", "fp8"), "'fp8' is not one of"),
        (("rollback", "bundle", "3"), "unexpected extra argument"),
        (("predict", "bundle"), "Missing argument 'IMAGE...'"),
        (("aply", "new.icis"), "No such command 'aply'"),
    ],
)
def test_what_the_command_line_does_not_take_would_be_found(any_path, arguments, fault):
    assert fault in str(fault_of(arguments))


# --- Python -------------------------------------------------------------------------------------------------------


def python_blocks() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(REPOSITORY).as_posix()}, block {index}", block)
        for path in DOCUMENTS
        for index, block in enumerate(
            re.findall(r"^```(?:python|py)\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL), start=1
        )
    ]


def python_faults(source: str) -> list[str]:
    """Return what a block names that the library does not have, or calls with arguments that it does not take."""
    tree, known, faults = ast.parse(source), dict[str, Any](), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = _type_of(node.value, known)
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            known[node.optional_vars.id] = _type_of(node.context_expr, known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = _value_of(node.value, known)
            if owner is not None and not _has(owner, node.attr):
                faults.append(f"{ast.unparse(node.value)} has no {node.attr}")
        elif isinstance(node, ast.Call) and callable(called := _value_of(node.func, known)):
            faults += _faults_of_call(node, called)
    return faults


def _value_of(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return what an expression of names stands for: a value of the library, or the class of one; `None` if unknown."""
    if isinstance(node, ast.Name):
        return icis_deploy if node.id == "icis_deploy" else known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value_of(node.value, known)
        return None if owner is None else getattr(owner, node.attr, None)
    return _type_of(node, known)


def _type_of(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return the class of what a call of the library gives; `None` of anything else."""
    if not isinstance(node, ast.Call):
        return None
    called = _value_of(node.func, known)
    if isinstance(called, type):
        return called
    if called is None or not getattr(called, "__module__", "").startswith("icis_deploy"):
        return None
    returned = inspect.get_annotations(called).get("return")
    if isinstance(returned, str):
        namespace = vars(inspect.getmodule(called))
        owner = getattr(called, "__self__", None)
        returned = owner if returned == "Self" else namespace.get(returned)
    return returned if isinstance(returned, type) else None


def _has(owner: Any, name: str) -> bool:
    return hasattr(owner, name) or name in getattr(owner, "__annotations__", {})


def _faults_of_call(node: ast.Call, called: Any) -> Iterator[str]:
    parameters = inspect.signature(called).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in parameters:
            yield f"{ast.unparse(node.func)} takes no {keyword.arg}"


@pytest.mark.parametrize(("where", "source"), python_blocks(), ids=lambda value: value[:40])
def test_the_library_has_what_blocks_of_python_name(where, source):
    assert python_faults(source) == []


def test_a_block_that_names_what_is_not_there_would_be_found():
    source = (
        "import icis_deploy\n"
        "with icis_deploy.Device.open('bundle', nothing=1) as device:\n"
        "    device.forecast('a.jpg')\n"
        "    device.predict('a.jpg', best=5)\n"
        "update = icis_deploy.inject('m.onnx', describers='d.npz')\n"
        "print(update.class_names_of_it)\n"
        "icis_deploy.Divice.open('bundle')\n"
    )

    assert sorted(python_faults(source)) == [
        "device has no forecast",
        "device.predict takes no best",
        "icis_deploy has no Divice",
        "icis_deploy.Device.open takes no nothing",
        "icis_deploy.inject takes no describers",
        "update has no class_names_of_it",
    ]


# --- run ----------------------------------------------------------------------------------------------------------

ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "bench": ("it measures for minutes", "benchmarks/bench/test_bench.py"),
    "bench-fit": ("it measures for minutes", "benchmarks/zero_shot/test_fit.py"),
    "bench-peers": ("it measures for minutes", "benchmarks/peers/test_peers.py"),
    "bench-scale": ("it measures for minutes", "icis_deploy/cli/test_bench_commands.py"),
    "bench-update": ("it measures for minutes", "icis_deploy/cli/test_bench_commands.py"),
    "compare-methods": ("it trains every method", "icis_deploy/cli/test_commands.py"),
    "demo": ("a minute", "icis_deploy/demo/test_pipeline.py"),
    "doctor": ("it opens every runtime", "icis_deploy/doctor/test_doctor.py"),
    "init": ("a project's own tests", "icis_deploy/project/test_running.py"),
    "report": ("it needs results of benchmarks", "icis_deploy/cli/test_report_command.py"),
    "run": ("a project's own tests", "icis_deploy/project/test_running.py"),
    "serve": ("it does not end", "icis_deploy/serving/test_serving.py"),
}
"""Commands that are not run here: why, and the tests that run them."""

NEEDS: Mapping[str, tuple[str, str]] = {
    "--signer": ("a token or a service", "icis_deploy/updates"),
    "--sign-command": ("a program that signs", "icis_deploy/cli/test_signing_options.py"),
    "--ask-passphrase": ("somebody at the keys", "icis_deploy/cli/test_signing_options.py"),
    "--engine": ("a cluster", "icis_deploy/evaluation/test_on_ray.py"),
    "--onnxruntime-web": ("onnxruntime-web", "exporters/targets/test_web_target.py"),
    "--target": ("a compiler or converter", "exporters/targets"),
    "--runtime": ("another runtime's library", "icis_deploy/runtime/sessions"),
    "--checkpoint": ("the extra data", "icis_deploy/evaluation"),
    "--precision": ("calibration of minutes on a real backbone", "exporters/conversion"),
    "--attributes": ("a MATLAB file of a data set", "icis_deploy/descriptors"),
}
"""Options whose commands are not run here: what they need, and the tests that run them."""

HUB = ("./my-vit", "vit")
"""Models of transformers: `tests/exporters/loading/test_pretrained.py` takes them the whole way."""

TUTORIALS = ("docs/tutorials/first-class.md", "docs/tutorials/device-updates.md")
"""Whole transcripts, which `tests/scripts/test_make_transcripts.py` runs."""


def is_run_here(command: Command) -> bool:
    return (
        command.name not in ELSEWHERE
        and not command.options & set(NEEDS)
        and not set(HUB) & set(command.arguments)
        and command.page not in TUTORIALS
        and not command.page.startswith("docs/results/")
    )


@pytest.mark.parametrize("path", sorted({path for _, path in (*ELSEWHERE.values(), *NEEDS.values())}))
def test_tests_that_run_the_rest_exist(path):
    assert (TESTS / path).exists()


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, (_, path) in ELSEWHERE.items()])
def test_tests_that_run_a_command_name_it(name, path):
    files = sorted((TESTS / path).rglob("*.py")) if (TESTS / path).is_dir() else [TESTS / path]
    words = {name, name.replace("-", "_"), name.removeprefix("bench-")}

    assert any(re.search(rf"\b{word}\b", file.read_text("utf-8")) for file in files for word in words)


def write_files(folder: Path, project: TinyProject) -> None:
    """Write what the documents speak of: a classifier, descriptions with an okapi among them, and images."""
    names = {"class40": "okapi", "class41": "zebra", "class42": "quagga"}
    for source in (project.model, project.classes, project.preprocess):
        shutil.copy(source, folder)
    described = load_descriptors(project.descriptors)
    called = [names.get(name, name) for name in described.class_names]
    np.savez(folder / "descriptors.npz", names=np.array(called), values=described.values)
    shutil.copy(folder / "descriptors.npz", folder / "mine.npz")
    np.savez(folder / "okapi.npz", names=np.array(["okapi"]), values=described.select(("class40",)).values)
    new = [name for name in called if name not in project.seen_names]
    for name in ("new.txt", "unseen.txt"):
        (folder / name).write_text("".join(f"{each}\n" for each in new))
    vectors = [
        f"{name} {' '.join(f'{value:.4f}' for value in row)}\n"
        for name, row in zip(called, described.values, strict=True)
    ]
    (folder / "glove.6B.300d.txt").write_text("".join(vectors))
    for name in ("numberbatch-en.txt.gz", "numberbatch-en-19.08.txt.gz"):
        with gzip.open(folder / name, "wt") as file:
            file.writelines(vectors)
    answers = (f"{name}: kind {index // 2 % 7}, size {index % 5}\n" for index, name in enumerate(called))
    (folder / "answers.txt").write_text("".join(answers))
    images = noise_images(project, folder / "images", num_images=120)
    write_list(folder / "known.csv", images)
    for name in ("images.csv", "mine.csv", "held-out.csv"):
        write_list(folder / name, [*images, *((folder / f"{new}.jpg", new) for new in ("okapi", "zebra"))])
    for name in ("okapi", "zebra", "okapi-1", "okapi-2", "quagga", "1", "2"):
        shutil.copy(images[0][0], folder / f"{name}.jpg")
    (folder / "inbox").mkdir()
    (folder / "statuses").mkdir()
    (folder / "FILE").write_text("a long passphrase\n")
    for arguments in (("KEY",), ("NEW",), ("release.key", "--passphrase-file", "FILE")):
        assert run(["keygen", "--out", *arguments]) == 0


STAGES = (
    *("keygen", "inspect", "describe", "inject", "export-generator", "export", "verify"),
    *("sign", "verify-update", "sign-bundle", "verify-bundle", "diff", "apply", "predict", "evaluate"),
    *("classes", "disable", "enable", "history", "rollback", "teach", "rotate-keys", "inbox"),
    *("status", "fleet-report", "compact"),
)
"""Commands in the order in which one has what it needs from those before."""


def to_run() -> list[Command]:
    """Return commands of the documents: with those of one name whose options another one has too left out."""
    chosen: list[Command] = []
    for command in sorted(filter(is_run_here, documented()), key=lambda command: -len(command.options)):
        if not any(covers(other, command) for other in chosen):
            chosen.append(command)
    return sorted(chosen, key=lambda command: (STAGES.index(command.name), len(command.options)))


def covers(other: Command, command: Command) -> bool:
    return other.name == command.name and command.options <= other.options


def run_documented(command: Command, folder: Path) -> int:
    """Run a command as a reader would who follows one page after another: what it writes is not there yet."""
    words = [re.sub(r"^20\d\d-", f"{datetime.now(timezone.utc).year + 1}-", word) for word in command.arguments]
    for option, value in pairwise(words):
        if option == "--out":
            for name in (value, f"{value}.pub"):
                remove(folder / name)
    code = run(words)
    if command.name == "describe" and (folder / "descriptors.npz").is_file():  # a generator is for one kind of them
        shutil.copy(folder / "mine.npz", folder / "descriptors.npz")
    elif command.name == "keygen":
        shutil.copy(folder / "KEY.pub", folder / "publisher.pub")
    elif command.name == "export":  # pages export different bundles; the next commands get one that has all
        remove(folder / "bundle")
        options = icis_deploy.ExportOptions(
            head="updatable",
            capacity=16,
            preprocess="preprocess.json",
            seen_images="known.csv",
            trust=["KEY.pub"],
            generator="generator.onnx",
        )
        icis_deploy.export("model.onnx", classes="classes.txt", out="bundle", options=options)
    elif command.name == "apply":
        shutil.copytree(folder / "bundle", folder / "applied")
    elif command.name == "status":
        with redirect_stdout(StringIO()) as printed:
            run(["status", "bundle", "--format", "json"])
        (folder / "statuses" / "camera.json").write_text(printed.getvalue())
    return code


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def reader(tiny_project, tmp_path_factory):
    """A folder in which the commands of the documents were run, and what each ended with."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("ignore", icis_deploy.ICISDeployWarning)
        write_files(folder, tiny_project)
        ended = {command: run_documented(command, folder) for command in to_run()}
    return folder, ended


def test_commands_of_the_documents_work(reader):
    _, ended = reader

    assert {str(command): code for command, code in ended.items() if code != 0} == {}
    assert len(ended) > 30


def test_every_command_is_run_here_or_has_a_reason_why_not():
    ran = to_run()

    assert [str(each) for each in filter(is_run_here, documented()) if not any(covers(one, each) for one in ran)] == []
    assert set(STAGES) | set(ELSEWHERE) == set(cli.commands)


BLOCKS_ELSEWHERE = {
    "docs/device.md, block 1": "tests/test_device_examples.py runs it",
    "docs/exporters.md, block 1": "a line of somebody's program, with a session that is open",
    "docs/serving.md, block 1": "tests/icis_deploy/serving/test_serving.py asks a server with this client",
}


@pytest.mark.parametrize(("where", "source"), [each for each in python_blocks() if each[0] not in BLOCKS_ELSEWHERE])
def test_blocks_of_python_work(reader, monkeypatch, tmp_path, where, source):
    made, _ = reader
    folder = shutil.copytree(made, tmp_path / "reader")
    monkeypatch.chdir(folder)
    remove(folder / "bundle")
    if "icis_deploy.export(" not in source:
        shutil.copytree("applied", "bundle")
        assert run(["sign-bundle", "bundle", "--key", "KEY"]) == 0
        shutil.copytree("bundle", "camera")

    exec(compile(source, where, "exec"), {"__name__": "__main__"})
