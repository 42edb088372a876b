"""The rules of the architecture, each with a test that the rule can be broken."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
WORKBENCH_LIBRARIES = {"torch", "onnx", "onnx_ir", "onnxscript", "scipy", "sklearn", "transformers"}

ERRORS = {"icis_deploy.errors"}
VALUES = ERRORS | {
    f"icis_deploy.{name}"
    for name in ("arrays", "class_names", "class_update", "descriptors", "files", "head", "json_fields", "printable")
}
PURE_CORES = {
    f"icis_deploy.{name}"
    for name in (
        "accuracy",
        "accuracy_kept",
        "bias_law",
        "bundle",
        "calibration",
        "class_doubts",
        "class_strength",
        "cross_validation",
        "dead_leaves",
        "descriptor_weights",
        "estimate",
        "estimate_ranges",
        "feature_law",
        "feature_mixtures",
        "feature_source",
        "injection",
        "injection_options",
        "learning_curve",
        "methods",
        "model_form",
        "neutral_images",
        "parity",
        "preprocessing",
        "pseudo_features",
        "ridge",
        "row_calibration",
        "row_predictors",
        "row_spectrum",
        "selection",
        "slot_files",
        "slots",
        "trial",
        "turning_points",
        "update_format",
        "runtime.answers",
        "runtime.head_state",
        "runtime.session",
    )
}


@dataclass(frozen=True)
class Import:
    """One imported name."""

    name: str
    line: int
    when_imported: bool
    only_for_types: bool

    def is_of(self, banned: set[str]) -> bool:
        return any(self.name == name or self.name.startswith(f"{name}.") for name in banned)


def imports_of(source: str) -> Iterator[Import]:
    """Yield everything that a module imports, wherever it does; `from a import b` is `a` and `a.b`."""

    def walk(node: ast.AST, when_imported: bool, only_for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"line {child.lineno}: relative imports hide which layer they reach into"
                names = [child.module, *(f"{child.module}.{alias.name}" for alias in child.names)]
            for name in names:
                yield Import(name, child.lineno, when_imported, only_for_types)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, when_imported and not is_function, only_for_types or types)

    return walk(ast.parse(source), True, False)


def modules_in(package: str) -> dict[str, str]:
    """Return `{module name: source}` of a package and everything below it."""
    sources = {}
    for path in sorted((REPOSITORY / package.replace(".", "/")).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    assert sources, package
    return sources


LIBRARY, EXPORTERS = modules_in("icis_deploy"), modules_in("exporters")


def found(modules: dict[str, str], is_violation) -> list[str]:
    """Return a text for each import in these modules that is a violation."""
    return [
        f"{name}:{each.line} imports {each.name}"
        for name, source in modules.items()
        for each in imports_of(source)
        if is_violation(each)
    ]


def chosen(names: set[str]) -> dict[str, str]:
    return {name: LIBRARY[name] for name in sorted(names)}


# --- one-way imports ----------------------------------------------------------------------------------------------


def imports_workbench(each: Import) -> bool:
    return each.when_imported and not each.only_for_types and each.is_of({"exporters", "benchmarks"})


def imports_workbench_libraries(each: Import) -> bool:
    return each.is_of(WORKBENCH_LIBRARIES | {"exporters", "benchmarks"})


def imports_more_than_numpy(each: Import) -> bool:
    allowed = set(sys.stdlib_module_names) | {"numpy", "icis_deploy"}
    return each.when_imported and not each.only_for_types and not each.is_of(allowed)


def imports_benchmarks(each: Import) -> bool:
    return each.is_of({"benchmarks"})


def imports_terminal_libraries(each: Import) -> bool:
    return each.is_of({"click", "rich"})


def test_importing_the_library_never_imports_exporters_or_benchmarks():
    assert found(LIBRARY, imports_workbench) == []


def test_the_device_half_and_the_values_never_import_what_a_device_does_not_have():
    device_half = {name for name in LIBRARY if name.startswith("icis_deploy.runtime")}

    assert found(chosen(device_half | VALUES), imports_workbench_libraries) == []


def test_values_and_pure_cores_are_importable_with_numpy_alone():
    assert found(chosen(VALUES | PURE_CORES), imports_more_than_numpy) == []


def test_values_import_only_values_and_pure_cores_only_values_and_pure_cores():
    def leaves(allowed: set[str]):
        return lambda each: (
            each.when_imported and not each.only_for_types and each.name in LIBRARY and each.name not in allowed
        )

    package = {"icis_deploy", "icis_deploy.runtime"}
    assert found(chosen(ERRORS), leaves(set())) == []
    assert found(chosen(VALUES), leaves(VALUES)) == []
    assert found(chosen(PURE_CORES), leaves(VALUES | PURE_CORES | package)) == []


def test_exporters_never_import_benchmarks():
    assert found(EXPORTERS, imports_benchmarks) == []


def test_only_the_command_line_writes_to_terminals():
    library = {name: source for name, source in LIBRARY.items() if not name.startswith("icis_deploy.cli")}

    assert found(library | EXPORTERS, imports_terminal_libraries) == []
    assert found(library | EXPORTERS, lambda each: each.is_of({"icis_deploy.cli"})) == []


def reachable(start: set[str], modules: dict[str, str]) -> set[str]:
    """Return every module of ours that these modules can make Python import, functions included."""
    seen, waiting = set(), set(start)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        names = {each.name for each in imports_of(modules[name]) if not each.only_for_types}
        waiting |= (names & modules.keys()) - seen
    return seen


def test_nothing_that_the_device_half_ever_reaches_imports_what_a_device_does_not_have():
    device_half = {name for name in LIBRARY if name.startswith("icis_deploy.runtime")}

    assert found(chosen(reachable(device_half, LIBRARY)), imports_workbench_libraries) == []


def test_there_is_no_circle_of_imports():
    graph = {
        name: {
            each.name
            for each in imports_of(source)
            if each.when_imported and not each.only_for_types and each.name in LIBRARY
        }
        - {name, "icis_deploy", "icis_deploy.runtime"}
        for name, source in LIBRARY.items()
    }
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        for name in leaves:
            del graph[name]
    assert graph == {}


@pytest.mark.parametrize(
    ("source", "is_violation", "expected"),
    [
        ("import exporters\n", imports_workbench, ["m:1 imports exporters"]),
        ("class A:\n    from benchmarks.x import y\n", imports_workbench, ["m:2 imports benchmarks.x"] * 1),
        (
            "try:\n    import exporters.x as e\nexcept ImportError:\n    pass\n",
            imports_workbench,
            ["m:2 imports exporters.x"],
        ),
        ("def f():\n    import exporters\n", imports_workbench, []),
        ("if TYPE_CHECKING:\n    import exporters\n", imports_workbench, []),
        ("import exporters_of_others\n", imports_workbench, []),
        ("def f():\n    import torch\n", imports_workbench_libraries, ["m:2 imports torch"]),
        ("if TYPE_CHECKING:\n    import torch\n", imports_workbench_libraries, ["m:2 imports torch"]),
        (
            "async def f():\n    from scipy import io\n",
            imports_workbench_libraries,
            ["m:2 imports scipy", "m:2 imports scipy.io"],
        ),
        ("import onnxruntime\n", imports_workbench_libraries, []),
        ("import os, click\nimport numpy as np\n", imports_more_than_numpy, ["m:1 imports click"]),
        ("def f():\n    import safetensors\n", imports_more_than_numpy, []),
        (
            "f = lambda: __import__('x')\nfrom benchmarks import a\n",
            imports_benchmarks,
            ["m:2 imports benchmarks", "m:2 imports benchmarks.a"],
        ),
    ],
)
def test_the_check_of_imports_finds_planted_violations_and_nothing_else(source, is_violation, expected):
    violations = found({"m": source}, is_violation)

    assert violations[: len(expected)] == expected
    assert bool(violations) == bool(expected)


def test_the_check_of_reachable_modules_follows_imports_inside_functions():
    modules = {"a": "def f():\n    import b\n", "b": "from c import d\n", "c": "", "c.d": "", "e": ""}

    assert reachable({"a"}, modules) == {"a", "b", "c", "c.d"}


def test_the_check_of_imports_refuses_relative_ones():
    with pytest.raises(AssertionError, match="relative imports"):
        list(imports_of("from . import head\n"))


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def check_sizes():
    """The script `scripts/check-sizes` as a module."""
    loader = SourceFileLoader("check_sizes", str(REPOSITORY / "scripts" / "check-sizes"))
    spec = importlib.util.spec_from_loader("check_sizes", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_modules_and_functions_are_short(check_sizes):
    assert check_sizes.check_folders([REPOSITORY / name for name in check_sizes.FOLDERS]) == []


def test_the_check_of_sizes_finds_a_long_module_and_a_long_function(check_sizes):
    function = "def f(a):\n" + "    a += 1\n" * 40
    module = "x = 1\n" * 401

    assert list(check_sizes.sizes_beyond_limit(function, "m.py")) == ["m.py:1: f has 41 lines of code; at most 40"]
    assert list(check_sizes.sizes_beyond_limit(module, "m.py")) == ["m.py: 401 lines; at most 400"]
    assert list(check_sizes.sizes_beyond_limit("x = 1\n" * 400, "m.py")) == []


def test_docstrings_comments_and_empty_lines_are_no_code(check_sizes):
    function = (
        "class A:\n"
        "    @property\n"
        "    def f(self):\n"
        '        """Do it.\n'
        + "\n        More.\n" * 30
        + '        """\n'
        + "        # why\n\n" * 30
        + "        self.x = 1\n" * 39
    )

    assert list(check_sizes.sizes_beyond_limit(function, "m.py")) == []
    assert list(check_sizes.sizes_beyond_limit(function + "        self.y = 2\n", "m.py")) == [
        "m.py:3: f has 41 lines of code; at most 40"
    ]


def test_a_long_text_counts_as_the_lines_it_takes(check_sizes):
    function = 'def f():\n    return """\n' + "text\n" * 40 + '"""\n'

    assert list(check_sizes.sizes_beyond_limit(function, "m.py")) == ["m.py:1: f has 43 lines of code; at most 40"]


def test_the_script_exits_with_1_and_says_where(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * 401)
    script = REPOSITORY / "scripts" / "check-sizes"
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (1, f"{tmp_path / 'long.py'}: 401 lines; at most 400\n")


# --- what an import costs -----------------------------------------------------------------------------------------

HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "scipy", "sklearn", "PIL", "rich", "matplotlib"}


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
