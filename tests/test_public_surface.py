"""What a user may import: it is complete, its examples are real code, and no signature names anything else."""

import ast
import builtins
import dataclasses
import doctest
import functools
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import icis_deploy
import icis_deploy.errors
import icis_deploy.results
from icis_deploy.workbench import enable_workbench

enable_workbench()

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = {"icis_deploy", "exporters", "benchmarks"}
MAX_PARAMETERS = 8
MODULES = ("errors", "results")
NAMES = [name for name in icis_deploy.__all__ if name not in {"__version__", *MODULES}]
VALUES = {
    **{f"icis_deploy.{name}": getattr(icis_deploy, name) for name in NAMES},
    **{f"icis_deploy.results.{name}": getattr(icis_deploy.results, name) for name in icis_deploy.results.__all__},
}
ERRORS = {
    value
    for value in vars(icis_deploy.errors).values()
    if isinstance(value, type) and issubclass(value, icis_deploy.ICISDeployError)
}
PUBLIC_TYPES = {value for value in VALUES.values() if isinstance(value, type)} | ERRORS
PUBLIC_NAME = re.compile(r"icis_deploy(\.\w+)+")
INTERNAL_CONSTRUCTORS = {icis_deploy.Device: "open"}
"""Classes whose constructor is not for users, and the method that is."""


# --- the lazy tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "others"), [(icis_deploy, {"__version__"}), (icis_deploy.results, set())])
def test_the_public_names_are_those_of_the_lazy_table_in_order(module: ModuleType, others: set[str]):
    assert module.__all__ == sorted({*module._HOMES, *others})


@pytest.mark.parametrize(("module", "others"), [(icis_deploy, {"__version__"}), (icis_deploy.results, set())])
def test_type_checkers_are_told_of_the_same_names(module: ModuleType, others: set[str]):
    told = {
        alias.name: node.module
        for block in ast.parse(inspect.getsource(module)).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }

    assert told | {name: "icis_deploy" for name in MODULES if name in told} == {
        name: "icis_deploy" if home == f"icis_deploy.{name}" else home for name, home in module._HOMES.items()
    }


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_public_name_is_what_its_module_defines(name: str):
    package, short = name.rsplit(".", 1)
    module = importlib.import_module(package)

    assert short in dir(module)
    assert VALUES[name].__name__ == short
    assert VALUES[name].__module__ == module._HOMES[short]


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_are_attributes_without_an_import(name: str):
    code = f"import icis_deploy; print(icis_deploy.{name}.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == f"icis_deploy.{name}\n"


@pytest.mark.parametrize("module", [icis_deploy, icis_deploy.results])
def test_any_other_name_is_an_attribute_error(module: ModuleType):
    with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute 'teach'$"):
        module.teach  # noqa: B018


# --- examples -----------------------------------------------------------------------------------------------------


def example_of(value: object) -> str:
    """Return the example in a docstring, `>>>` and all; an empty text where there is none."""
    _, _, rest = inspect.cleandoc(value.__doc__ or "").partition("Example:\n")
    lines = rest.split("\n")
    end = next((index for index, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])).strip()


def code_of(example: str) -> str:
    """Return the statements of an example, without prompts and what they print."""
    return "".join(part.source for part in doctest.DocTestParser().get_examples(example)) or example


def faults_of_example(code: str) -> Iterator[str]:
    """Yield what a reader could not run as it stands: unknown names, attributes and arguments."""
    tree = ast.parse(code)
    known = {"icis_deploy", *dir(builtins)}
    known |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    known |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    known |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in known:
            yield f"{node.id} is not defined"
        if isinstance(node, ast.Call) and PUBLIC_NAME.fullmatch(ast.unparse(node.func)):
            try:
                function = functools.reduce(getattr, ast.unparse(node.func).split(".")[1:], icis_deploy)
                inspect.signature(function).bind(*node.args, **{each.arg: each.value for each in node.keywords})
            except (AttributeError, TypeError) as error:
                yield f"{ast.unparse(node)}: {error}"


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_public_name_has_an_example_that_uses_the_public_names_as_they_are(name: str):
    code = code_of(example_of(VALUES[name]))

    # The parts of a result are documented where the whole has its example.
    assert "icis_deploy." in code or (name.startswith("icis_deploy.results.") and isinstance(VALUES[name], type))
    assert VALUES[name].__doc__
    assert list(faults_of_example(code)) == []


@pytest.mark.parametrize("name", [name for name in NAMES if ">>>" in example_of(getattr(icis_deploy, name))])
def test_examples_that_need_no_files_print_what_they_say(name: str):
    test = doctest.DocTestParser().get_doctest(
        example_of(getattr(icis_deploy, name)), {"icis_deploy": icis_deploy}, name, None, None
    )

    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("module", [icis_deploy, icis_deploy.results])
def test_the_examples_of_the_modules_use_the_public_names_as_they_are(module: ModuleType):
    blocks = [block for block in module.__doc__.split("\n\n") if block.startswith("    ")]

    assert list(faults_of_example(textwrap.dedent("\n".join(blocks)))) == []


def snippets() -> Iterator[tuple[str, str]]:
    """Yield the Python code in documents that uses the library, and which document it is of."""
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))):
        for code in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            if "icis_deploy" in code:
                yield path.name, code


def test_documents_use_the_public_names_as_they_are():
    found = [(name, fault) for name, code in snippets() for fault in faults_of_example(code)]

    assert {"README.md", "descriptors.md"} <= {name for name, _ in snippets()}
    assert found == []
    assert [name for name, code in snippets() if "from icis_deploy" in code] == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("icis_deploy.inspect('model.onnx')", None),
        ("icis_deploy.inspekt('model.onnx')", "no attribute 'inspekt'"),
        ("icis_deploy.inspect('model.onnx', class_list='c')", "unexpected keyword argument 'class_list'"),
        ("icis_deploy.Device.open()", "missing a required argument: 'folder'"),
        ("print(update)", "update is not defined"),
    ],
)
def test_the_check_of_examples_notices_planted_faults(code: str, expected: str | None):
    faults = list(faults_of_example(code))

    assert len(faults) == (expected is not None)
    assert not expected or expected in faults[0]


def test_an_example_ends_where_its_section_does():
    def value() -> None:
        """Do it.

        Example:
            icis_deploy.bench(
                ["bundle"]
            )

        Raises:
            UsageError: Never.
        """

    assert example_of(value) == 'icis_deploy.bench(\n    ["bundle"]\n)'
    assert example_of(test_an_example_ends_where_its_section_does) == ""


# --- signatures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A type that a public signature or field names."""

    where: str
    type: type


@functools.cache
def names_for_types(module_name: str) -> dict[str, Any]:
    """Return the names that annotations of a module may use, those imported for type checkers included."""
    module = sys.modules[module_name]
    names = dict(vars(module))
    for block in ast.parse(inspect.getsource(module)).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                imported = importlib.import_module(node.module)
                names |= {alias.asname or alias.name: getattr(imported, alias.name) for alias in node.names}
    return names


def types_in(hint: object) -> Iterator[type]:
    """Yield every class inside a type hint."""
    if isinstance(hint, list | tuple):
        for each in hint:
            yield from types_in(each)
    elif typing.get_origin(hint) is not None:
        yield from types_in(typing.get_origin(hint))
        yield from types_in(typing.get_args(hint))
    elif isinstance(hint, type):
        yield hint


def hints_of(value: Any) -> dict[str, Any]:
    return typing.get_type_hints(value, globalns=names_for_types(value.__module__), localns={})


def callables_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a public function, or the public methods and properties of a class, each with what to call it."""
    if not isinstance(value, type):
        yield value.__name__, value
        return
    for name, member in vars(value).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        # The constructor of a dataclass takes its fields, which are looked at by themselves.
        is_constructor = name == "__init__" and not (dataclasses.is_dataclass(value) or value in INTERNAL_CONSTRUCTORS)
        if isinstance(function, types.FunctionType) and (is_constructor or not name.startswith("_")):
            yield f"{value.__name__}.{name}", function


def types_named_by(value: Any) -> Iterator[Named]:
    """Yield every type that a public function, or the fields and methods of a public class, name."""
    if isinstance(value, type):
        for field, hint in hints_of(value).items():
            if not field.startswith("_"):
                yield from (Named(f"{value.__name__}.{field}", each) for each in types_in(hint))
        for base in value.__mro__[1:-1]:
            yield Named(f"{value.__name__}, a kind of", base)
    for where, function in callables_of(value):
        for parameter, hint in hints_of(function).items():
            yield from (Named(f"{where}({parameter})", each) for each in types_in(hint))


def internal_types_named_by(value: Any) -> list[str]:
    """Return a text for each type of ours that a public signature names and nobody can import.

    Types of other libraries, such as `PIL.Image.Image`, are public where they come from.
    """
    return [
        f"{each.where} names {each.type.__module__}.{each.type.__qualname__}"
        for each in types_named_by(value)
        if each.type.__module__.split(".")[0] in OURS and each.type not in PUBLIC_TYPES
    ]


def long_signatures_of(value: Any) -> list[str]:
    """Return a text for each public function or method with more parameters than a reader keeps in mind."""
    counts = {
        where: len([name for name in inspect.signature(function).parameters if name not in {"self", "cls"}])
        for where, function in callables_of(value)
    }
    return [f"{where} has {count} parameters" for where, count in counts.items() if count > MAX_PARAMETERS]


@pytest.mark.parametrize("name", sorted(VALUES))
def test_no_public_signature_names_a_type_that_is_not_public(name: str):
    assert internal_types_named_by(VALUES[name]) == []


@pytest.mark.parametrize("name", sorted(VALUES))
def test_no_public_function_has_more_than_eight_parameters(name: str):
    assert long_signatures_of(VALUES[name]) == []


def test_a_class_with_an_internal_constructor_has_a_public_way_to_make_one():
    for value, method in INTERNAL_CONSTRUCTORS.items():
        assert inspect.ismethod(getattr(value, method))
        assert example_of(value).count(f".{method}(")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Public functions and classes with one fault each, and what is wrong with them."""

    class Internal:
        __module__ = "icis_deploy.planted"

    def taken(_value: "dict[str, list[Internal | None]]") -> None: ...

    def called_back(_on: Callable[["Internal"], None]) -> None: ...

    def returned() -> "tuple[Internal, ...]": ...

    def nine(_a, _b, _c, _d, _e, *, f, g, h, i) -> None: ...

    class WithMethod:
        def method(self) -> "Internal": ...

        def _private(self) -> "Internal": ...

    class WithProperty:
        @property
        def value(self) -> "Internal": ...

    class WithConstructor:
        def __init__(self, value: "Internal") -> None: ...

    class WithBase(Internal): ...

    @dataclass
    class WithField:
        value: "Internal | None"
        _kept: "Internal"

    monkeypatch.setitem(globals(), "Internal", Internal)
    names_for_types.cache_clear()
    yield SimpleNamespace(**locals())
    names_for_types.cache_clear()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("taken", "taken(_value)"),
        ("called_back", "called_back(_on)"),
        ("returned", "returned(return)"),
        ("WithMethod", "WithMethod.method(return)"),
        ("WithProperty", "WithProperty.value(return)"),
        ("WithConstructor", "WithConstructor.__init__(value)"),
        ("WithBase", "WithBase, a kind of"),
        ("WithField", "WithField.value"),
    ],
)
def test_the_check_of_signatures_notices_planted_faults(name: str, where: str, planted: SimpleNamespace):
    (found,) = internal_types_named_by(getattr(planted, name))

    assert found.startswith(f"{where} names icis_deploy.planted.")
    assert long_signatures_of(getattr(planted, name)) == []


def test_the_check_of_signatures_counts_parameters(planted: SimpleNamespace):
    assert long_signatures_of(planted.nine) == ["nine has 9 parameters"]
