"""The rules of the architecture, each with a test that the rule can be broken.

`ROOMS` has an entry for each folder: what its modules import when they are imported, what else they import in functions
or for types alone, and which libraries they need at import. It is exact: an import that no entry allows fails, and so
does a permission that nobody uses.
"""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.maintenance import check_sizes

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("icis_deploy", "exporters", "benchmarks")
WORKBENCH_LIBRARIES = {"torch", "onnx", "onnx_ir", "onnxscript", "scipy", "sklearn", "transformers"}
TAKES_TENSORS = "icis_deploy.runtime.sessions.executorch_session"
"""ExecuTorch's bindings take tensors of torch and nothing else; a device with another runtime never gets there."""
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "scipy", "sklearn", "PIL", "rich", "matplotlib"}


@dataclass(frozen=True)
class Room:
    """What the modules of one folder import from other folders: names of folders and libraries, separated by spaces.

    `exporters.{graph,head}` names two folders. A folder stands for those inside it too. Everybody may import numpy and
    the root of `icis_deploy`, which holds the errors.
    """

    at_import: str
    """Folders imported when a module of this one is imported."""

    libraries: str = ""
    """Libraries outside of Python's own that are imported then."""

    later: str = ""
    """Further folders that only functions or type annotations import."""


ROOMS = {
    "icis_deploy": Room(
        "",
        later=(
            "icis_deploy.{api,bundle,descriptors,head,images,injection,metrics,runtime,updates} "
            "exporters.{generator,head,loading,stated,targets} "
            "benchmarks.{bench,machine,results,timing}"
        ),
    ),
    "icis_deploy.common": Room(""),
    "icis_deploy.head": Room("icis_deploy.common"),
    "icis_deploy.few_shot": Room("icis_deploy.common"),
    "icis_deploy.descriptors": Room("icis_deploy.{common,head}"),
    "icis_deploy.images": Room("icis_deploy.common"),
    "icis_deploy.bundle": Room("icis_deploy.{common,few_shot,head,images}"),
    "icis_deploy.injection.rows": Room("icis_deploy.common"),
    "icis_deploy.injection.predictors": Room("icis_deploy.common icis_deploy.injection.rows", "torch"),
    "icis_deploy.injection.pseudo_features": Room("icis_deploy.common icis_deploy.injection.rows"),
    "icis_deploy.injection.validation": Room(
        "icis_deploy.common icis_deploy.injection.{predictors,pseudo_features,rows}"
    ),
    "icis_deploy.injection.estimate": Room(
        "icis_deploy.{common,descriptors} icis_deploy.injection.{predictors,pseudo_features,rows,validation}"
    ),
    "icis_deploy.metrics": Room("icis_deploy.common"),
    "icis_deploy.injection.arbiter": Room(
        "icis_deploy.{common,few_shot,head,metrics} icis_deploy.injection.{rows,validation}"
    ),
    "icis_deploy.injection": Room(
        "icis_deploy.{common,descriptors,few_shot,head,metrics} "
        "icis_deploy.injection.{arbiter,estimate,predictors,pseudo_features,rows,validation}"
    ),
    "icis_deploy.runtime.sessions": Room("icis_deploy.{bundle,common,head}"),
    "icis_deploy.runtime.teaching": Room(
        "icis_deploy.{bundle,common,few_shot,head,images} icis_deploy.runtime.sessions"
    ),
    "icis_deploy.updates": Room("icis_deploy.{common,head}"),
    "icis_deploy.runtime.state": Room(
        "icis_deploy.{bundle,common,head} icis_deploy.runtime.sessions", later="icis_deploy.updates"
    ),
    "icis_deploy.runtime.changes": Room(
        "icis_deploy.{bundle,common,few_shot,head,updates} icis_deploy.runtime.{sessions,state}"
    ),
    "icis_deploy.runtime": Room(
        "icis_deploy.{bundle,common,head} icis_deploy.runtime.{changes,sessions,state,teaching}",
        later="icis_deploy.{images,updates}",
    ),
    "icis_deploy.evaluation": Room("icis_deploy.{bundle,common,head,images,metrics,runtime}"),
    "icis_deploy.serving": Room("icis_deploy.{bundle,common} icis_deploy.runtime", "PIL starlette"),
    "icis_deploy.fleet": Room("icis_deploy.common"),
    "icis_deploy.api": Room(
        "icis_deploy.{bundle,common,descriptors,evaluation,few_shot,head,images,injection,metrics,runtime,updates}",
        "torch",
        later=(
            "exporters.{backbone,bundles,gate,generator,head,loading,stated,targets} "
            "benchmarks.{bench,machine,report,results}"
        ),
    ),
    "icis_deploy.carriers": Room("icis_deploy.{bundle,common}"),
    "icis_deploy.demo": Room(
        "icis_deploy.{api,common,descriptors,head,images,injection,metrics,runtime,updates}", "PIL torch"
    ),
    "icis_deploy.doctor": Room(
        "icis_deploy.{bundle,common,head,updates} icis_deploy.runtime icis_deploy.runtime.{changes,sessions,state}"
    ),
    "icis_deploy.project": Room(
        "icis_deploy.{api,bundle,common,images,injection} icis_deploy.runtime.state",
        "pydantic pydantic_core yaml",
        later="icis_deploy.{descriptors,head,updates} benchmarks.results",
    ),
    "icis_deploy.cli": Room(
        "icis_deploy.{api,common,runtime.sessions}",
        "click",
        later=(
            "icis_deploy.{bundle,demo,descriptors,doctor,fleet,head,images,injection,metrics,project,runtime} "
            "icis_deploy.{serving,updates} "
            "exporters.{generator,loading,stated,targets} "
            "benchmarks.{bench,peers,results,updates,zero_shot}"
        ),
    ),
    "exporters": Room(""),
    "exporters.onnx_io": Room("icis_deploy.common", "onnx_ir"),
    "exporters.graph": Room("exporters.onnx_io", "onnx_ir"),
    "exporters.head": Room("icis_deploy.{bundle,common,head} exporters.{graph,onnx_io}", "onnx_ir"),
    "exporters.stated": Room("icis_deploy.{common,head,images}"),
    "exporters.loading": Room(
        "icis_deploy.{bundle,common,head,images,runtime.sessions} exporters.{graph,head,onnx_io,stated}", "onnx_ir"
    ),
    "exporters.backbone": Room(
        "icis_deploy.{bundle,common,images,runtime.sessions} exporters.{graph,head,loading,onnx_io}", "onnx_ir"
    ),
    "exporters.conversion": Room(
        "icis_deploy.{bundle,common,images} exporters.{backbone,graph,head,loading,onnx_io}", "onnx_ir"
    ),
    "exporters.gate": Room(
        ("icis_deploy.{bundle,common,head,images,metrics,runtime} exporters.{backbone,graph,head,loading,onnx_io}"),
        "onnx_ir",
    ),
    "exporters.targets.tensorrt": Room(
        "icis_deploy.{bundle,common,runtime.sessions} exporters.{conversion,graph,head,onnx_io}", "onnx_ir"
    ),
    "exporters.targets": Room(
        (
            "icis_deploy.{bundle,common,head,metrics,runtime.sessions} "
            "exporters.{backbone,conversion,graph,head,onnx_io,targets.tensorrt}"
        ),
        "onnx_ir torch",
    ),
    "exporters.bundles": Room(
        (
            "icis_deploy.{bundle,common,head,images,metrics,runtime,updates} "
            "exporters.{backbone,conversion,gate,graph,head,loading,onnx_io,targets}"
        ),
        "onnx_ir",
    ),
    "exporters.generator": Room(
        "icis_deploy.{bundle,common,head,injection,runtime.teaching} exporters.{bundles,onnx_io}", "onnx_ir"
    ),
    "benchmarks": Room(""),
    "benchmarks.machine": Room("icis_deploy.common"),
    "benchmarks.timing": Room("icis_deploy.common benchmarks.machine"),
    "benchmarks.results": Room("icis_deploy.common benchmarks.{machine,timing}"),
    "benchmarks.report": Room("icis_deploy.{common,metrics} benchmarks.{machine,results,timing}"),
    "benchmarks.updates": Room(
        "icis_deploy.{bundle,common,head,runtime,updates} benchmarks.{machine,results,timing}",
        later="exporters.{graph,head,loading,onnx_io}",
    ),
    "benchmarks.bench": Room(
        "icis_deploy.{bundle,common,evaluation,head,images,metrics,runtime} "
        "benchmarks.{machine,results,timing,updates}",
        later="exporters.{graph,head,loading,onnx_io}",
    ),
    "benchmarks.peers": Room(
        ("icis_deploy.{bundle,common,descriptors,head,runtime.sessions} benchmarks.{bench,machine,results,updates}"),
        later="exporters.{loading,onnx_io}",
    ),
    "benchmarks.zero_shot": Room(
        "icis_deploy.{api,common,descriptors,head,images,injection,metrics} benchmarks.timing"
    ),
}


def folders(names: str) -> set[str]:
    """Return the folders that a column of `ROOMS` names."""
    found = set()
    for name in names.split():
        package, brace, listed = name.partition("{")
        found |= {package + each for each in listed.rstrip("}").split(",")} if brace else {name}
    return found


@dataclass(frozen=True)
class Import:
    """One imported name."""

    name: str
    line: int
    when_imported: bool
    """Whether it is imported when the module is: neither inside a function nor for types alone."""

    def is_of(self, names: set[str]) -> bool:
        return is_inside(self.name, names)


@functools.cache
def imports_of(source: str) -> tuple[Import, ...]:
    """Return everything that a module imports, wherever it does; `from a import b` is `a` and `a.b`."""

    def walk(node: ast.AST, when_imported: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"line {child.lineno}: relative imports hide which layer they reach into"
                names = [child.module, *(f"{child.module}.{alias.name}" for alias in child.names)]
            for name in names:
                yield Import(name, child.lineno, when_imported)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, when_imported and not is_function and not is_for_types)

    return tuple(walk(ast.parse(source), True))


def sources_in(package: str) -> dict[str, str]:
    """Return `{module: source}` of a package and everything below it; a package is the module `name.__init__`."""
    paths = sorted((REPOSITORY / package).rglob("*.py"))
    assert paths, package
    return {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path.read_text("utf-8") for path in paths}


SOURCES = {name: source for package in PACKAGES for name, source in sources_in(package).items()}
SOURCES.pop("icis_deploy.__main__")  # the command's script, which nothing imports
SCRIPTS = {
    str(path.relative_to(REPOSITORY)): path.read_text("utf-8")
    for path in sorted((REPOSITORY / "scripts").rglob("*"))
    if path.is_file() and (path.suffix == ".py" or path.read_bytes()[:64].startswith(b"#!/usr/bin/env python"))
}


def folder_of(module: str) -> str:
    return module.rpartition(".")[0]


def module_graph(sources: Mapping[str, str], *, when_imported: bool) -> dict[str, set[str]]:
    """Return which modules each module imports; with `when_imported` only those that it needs to be imported."""
    return {
        name: {
            each.name
            for each in imports_of(source)
            if each.name in sources and each.name != name and (each.when_imported or not when_imported)
        }
        for name, source in sources.items()
    }


def folder_graph(sources: Mapping[str, str], *, when_imported: bool) -> dict[str, set[str]]:
    """Return which other folders the modules of each folder import."""
    graph: dict[str, set[str]] = {folder_of(name): set() for name in sources}
    for name, imported in module_graph(sources, when_imported=when_imported).items():
        graph[folder_of(name)] |= {folder_of(each) for each in imported} - {folder_of(name), "icis_deploy"}
    return graph


def libraries_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the libraries that each folder imports when its modules are imported."""
    known = set(sys.stdlib_module_names) | {"numpy"} | {name.partition(".")[0] for name in sources}
    found: dict[str, set[str]] = {folder_of(name): set() for name in sources}
    for name, source in sources.items():
        found[folder_of(name)] |= {
            each.name.partition(".")[0] for each in imports_of(source) if each.when_imported and not each.is_of(known)
        }
    return found


def differences(sources: Mapping[str, str], rooms: Mapping[str, Room]) -> list[str]:
    """Return a sentence for each way in which the imports of modules differ from the table."""
    at_import, ever = (folder_graph(sources, when_imported=flag) for flag in (True, False))
    libraries = libraries_of(sources)
    found = [f"{folder} has no line" for folder in sorted(at_import.keys() - rooms.keys())]
    found += [f"{folder} is no folder" for folder in sorted(rooms.keys() - at_import.keys())]
    for folder in sorted(rooms.keys() & at_import.keys()):
        always, later = folders(rooms[folder].at_import), folders(rooms[folder].later)
        wanted = set(rooms[folder].libraries.split())
        for how, actual, allowed, named in (
            ("at import", at_import[folder], always, always),
            ("later", ever[folder] - at_import[folder], always | later, later),
            ("as a library", libraries[folder], wanted, wanted),
        ):
            found += [f"{folder} imports {name} {how}" for name in sorted(actual) if not is_inside(name, allowed)]
            found += [
                f"{folder} never imports {name} {how}"
                for name in sorted(named)
                if not any(is_inside(each, {name}) for each in actual)
            ]
    return found


def is_inside(folder: str, folders: set[str]) -> bool:
    """Say whether a folder is one of these, or inside one of them."""
    return any(folder == each or folder.startswith(f"{each}.") for each in folders)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the members of a graph that lie on circles, or on a way from one to another."""
    rest = {name: set(imported) for name, imported in graph.items()}
    while ends := {name for name in rest if not rest[name] & rest.keys() or not importers(name, rest)}:
        rest = {name: imported for name, imported in rest.items() if name not in ends}
    return sorted(rest)


def importers(name: str, graph: Mapping[str, set[str]]) -> set[str]:
    return {other for other, imported in graph.items() if name in imported}


def reachable(start: set[str], sources: Mapping[str, str]) -> set[str]:
    """Return every module of ours that these modules can make Python import, functions included."""
    graph = module_graph(sources, when_imported=False)
    seen, waiting = set(), set(start)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= graph[name] - seen
    return seen


def found(sources: Mapping[str, str], banned: set[str], *, when_imported: bool = False) -> list[str]:
    """Return a text for each import of something banned."""
    return [
        f"{name}:{each.line} imports {each.name}"
        for name, source in sources.items()
        for each in imports_of(source)
        if each.is_of(banned) and (each.when_imported or not when_imported)
    ]


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_folder_imports_what_its_line_allows_and_nothing_else():
    assert differences(SOURCES, ROOMS) == []


def test_no_room_is_reached_from_below_not_even_inside_a_function():
    graph = folder_graph(SOURCES, when_imported=False)
    del graph["icis_deploy"]  # it names the public surface for type checkers, which is everything

    assert circle(graph) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle_of_imports(package):
    sources = {name: source for name, source in SOURCES.items() if name.startswith(f"{package}.")}

    assert circle(module_graph(sources, when_imported=True)) == []


def test_a_package_shows_rooms_and_few_modules():
    for package in PACKAGES:
        assert len(list((REPOSITORY / package).glob("*.py"))) <= 10


def test_every_folder_says_what_it_holds():
    architecture = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
    silent = [folder for folder in ROOMS if not ast.get_docstring(ast.parse(SOURCES[f"{folder}.__init__"]))]

    assert silent  # those on a device's path, where an import shall cost nothing
    for folder in silent:
        assert SOURCES[f"{folder}.__init__"] == "", folder
        assert f"`{folder.removeprefix('icis_deploy.').replace('.', '/')}/`" in architecture, folder


PLANTED = {
    "p.__init__": "",
    "p.low.__init__": "",
    "p.low.a": "import json, numpy\n",
    "p.high.__init__": "",
    "p.high.b": "from p.low.a import x\n",
}
PLANTED_ROOMS = {"p": Room(""), "p.low": Room(""), "p.high": Room("p.low")}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"p.low.a": "from p.high.b import y\n"}, ["p.low imports p.high at import"]),
        ({"p.low.a": "class A:\n    import p.high.b\n"}, ["p.low imports p.high at import"]),
        ({"p.low.a": "def f():\n    from p.high import b\n"}, ["p.low imports p.high later"]),
        ({"p.low.a": "if TYPE_CHECKING:\n    from p.high.b import y\n"}, ["p.low imports p.high later"]),
        ({"p.low.a": "try:\n    import click\nexcept ImportError:\n    pass\n"}, ["p.low imports click as a library"]),
        ({"p.low.a": "def f():\n    import click\n"}, []),
        ({"p.high.b": ""}, ["p.high never imports p.low at import"]),
        ({"p.new.__init__": "", "p.new.c": ""}, ["p.new has no line"]),
    ],
)
def test_the_check_of_the_table_notices_every_planted_difference_and_nothing_else(changed, expected):
    assert differences(PLANTED | changed, PLANTED_ROOMS) == expected


def test_the_check_of_the_table_notices_a_line_without_a_folder():
    assert differences(PLANTED, PLANTED_ROOMS | {"p.gone": Room("")}) == ["p.gone is no folder"]


@pytest.mark.parametrize(
    "graph", [{"a": {"b"}, "b": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}]
)
def test_the_check_of_circles_finds_their_members(graph):
    assert circle(graph) == sorted(graph.keys() - {"d", "e"})


def test_the_check_of_imports_refuses_relative_ones():
    with pytest.raises(AssertionError, match="relative imports"):
        imports_of("from . import head\n")


# --- what a device does not have, and what only the command line does -------------------------------------------------


def library(prefix: str = "icis_deploy.") -> dict[str, str]:
    return {name: source for name, source in SOURCES.items() if name.startswith(prefix)}


def test_importing_the_library_never_imports_exporters_or_benchmarks():
    assert found(library(), {"exporters", "benchmarks"}, when_imported=True) == []


def test_nothing_that_the_device_half_ever_reaches_imports_what_a_device_does_not_have():
    reached = reachable(set(library("icis_deploy.runtime.")), SOURCES)

    assert len(reached) > 30
    assert (
        found(
            {name: SOURCES[name] for name in reached - {TAKES_TENSORS}},
            WORKBENCH_LIBRARIES | {"exporters", "benchmarks"},
        )
        == []
    )


@pytest.mark.parametrize("room", ["common", "head", "updates", "bundle", "images", "metrics", "runtime"])
def test_rooms_on_a_devices_path_never_name_what_a_device_does_not_have(room):
    modules = {name: source for name, source in library(f"icis_deploy.{room}.").items() if name != TAKES_TENSORS}
    assert found(modules, WORKBENCH_LIBRARIES | {"exporters", "benchmarks"}) == []


def test_only_the_command_line_writes_to_terminals():
    others = {name: source for name, source in SOURCES.items() if not name.startswith("icis_deploy.cli.")}

    assert found(others, {"click", "rich", "icis_deploy.cli"}) == []


def test_the_check_of_reachable_modules_follows_imports_inside_functions():
    modules = {"a": "def f():\n    import b\n", "b": "from c import d\n", "c": "", "c.d": "", "e": ""}

    assert reachable({"a"}, modules) == {"a", "b", "c", "c.d"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import exporters\n", ["m:1 imports exporters"]),
        ("async def f():\n    from exporters import x\n", ["m:2 imports exporters", "m:2 imports exporters.x"]),
        ("if TYPE_CHECKING:\n    import exporters.x as e\n", ["m:2 imports exporters.x"]),
        ("f = lambda: __import__('x')\nimport os, exporters\n", ["m:2 imports exporters"]),
        ("import exporters_of_others\n", []),
    ],
)
def test_the_check_of_imports_finds_planted_violations_and_nothing_else(source, expected):
    assert found({"m": source}, {"exporters"}) == expected


def test_the_check_of_imports_can_leave_out_what_is_imported_later():
    source = "import a\ndef f():\n    import b\nif TYPE_CHECKING:\n    import c\n"

    assert found({"m": source}, {"a", "b", "c"}, when_imported=True) == ["m:1 imports a"]


# --- scripts ----------------------------------------------------------------------------------------------------------


def changes_to_path(source: str) -> bool:
    """Say whether a script changes where Python looks for modules."""
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node).startswith("sys.path")
        for node in ast.walk(ast.parse(source))
    )


def test_scripts_use_the_installed_packages_and_share_nothing_with_tests_or_the_command_line():
    assert len(SCRIPTS) > 15
    assert found(SCRIPTS, {"tests"}) == []
    # What stands in the documents of the command line is made of it.
    others = {name: source for name, source in SCRIPTS.items() if not name.startswith("scripts/maintenance/")}
    assert found(others, {"icis_deploy.cli"}) == []
    assert [name for name, source in SCRIPTS.items() if changes_to_path(source)] == []


@pytest.mark.parametrize("source", ["import sys\nsys.path.insert(0, 'x')\n", "import sys\nsys.path += ['x']\n"])
def test_the_check_of_scripts_notices_a_changed_path(source):
    assert changes_to_path(source)
    assert not changes_to_path("import sys\nsys.exit(0)\n")


OUTSIDE_OF_THE_WHEEL = {"testing", "tests", "scripts"}


def test_packages_of_the_wheel_import_nothing_that_it_does_not_contain():
    assert found(SOURCES, OUTSIDE_OF_THE_WHEEL) == []
    assert found({"m": "def f():\n    import testing.bundles\n"}, OUTSIDE_OF_THE_WHEEL) == [
        "m:2 imports testing.bundles"
    ]


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_the_list_of_sizes_names_long_modules_alone(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * 601)
    (tmp_path / "short.py").write_text("x = 1\n" * 600)

    assert check_sizes.long_modules([tmp_path]) == [f"{tmp_path / 'long.py'}: 601 lines"]


def test_the_list_of_sizes_is_no_verdict(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * 601)
    script = REPOSITORY / "scripts" / "maintenance" / "check_sizes.py"
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'long.py'}: 601 lines\n")


# --- what an import costs ---------------------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh process has loaded after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_importing_icis_deploy_loads_not_even_numpy():
    assert loaded_by("import icis_deploy") & (HEAVY | {"numpy", "click"}) == set()


@pytest.mark.parametrize(
    "module",
    [
        "icis_deploy.runtime.device",
        "icis_deploy.cli.main",
        "icis_deploy.descriptors.files",
        "icis_deploy.updates.envelope",
    ],
)
def test_importing_a_module_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_the_check_of_loaded_modules_sees_one_that_is_loaded():
    assert "rich" in loaded_by("import icis_deploy, rich.console")
    assert "PIL" in loaded_by("from icis_deploy.images.loading import load_images; import PIL.Image")
