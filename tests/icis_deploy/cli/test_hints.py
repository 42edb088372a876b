import ast
import copy
import functools
import json
import pickle  # noqa: TID251 - errors cross processes
import re
import textwrap
from pathlib import Path

import pytest

from icis_deploy import errors
from icis_deploy.cli import main
from icis_deploy.cli.hints import PARAMETERS, command_line_hint, option_of, project_file_hint
from icis_deploy.cli.main import cli, run
from icis_deploy.cli.output import plain_value
from icis_deploy.errors import BundleError, CorruptFileError, ICISDeployError, UsageError

REPOSITORY = Path(__file__).parents[3]
PACKAGES = ("icis_deploy", "exporters", "benchmarks")
OPTION = re.compile(r"--[a-z][a-z-]+")
COMMAND = re.compile(rf"icis-deploy ({'|'.join(sorted(cli.commands, key=len, reverse=True))})\b")
INSTALL = re.compile(r"pip (un)?install[^.;]*")
BACKTICKED = re.compile(r"`([^`]+)`")
NOT_FOR_PYTHON = {
    "benchmarks/report/canvas.py": "variables of the report's style sheet",
    "benchmarks/results/text.py": "what the commands of the benchmark print",
    "exporters/targets/mnn_target.py": "options of the converter of MNN",
}
"""Modules whose texts may hold an option or something that looks like one, and why."""


@functools.cache
def library_trees():
    """Return `{path: syntax tree}` of all modules but those of the command line."""
    paths = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    names = {path.relative_to(REPOSITORY).as_posix(): path for path in paths}
    return {
        name: ast.parse(path.read_text())
        for name, path in names.items()
        if not name.startswith("icis_deploy/cli/") and name not in NOT_FOR_PYTHON
    }


def texts_of(tree):
    """Yield line and text of every string in a module but its docstrings; values in f-strings stand as `{}`."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join([part.value if isinstance(part, ast.Constant) else "{}" for part in node.values])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | inside):
            yield node.lineno, node.value


def words_of_the_command_line(tree):
    """Return what a module's texts name that only the command line has: options, and commands."""
    found = []
    for line, text in texts_of(tree):
        rest = INSTALL.sub("", text)
        found += [(line, each[0]) for pattern in (OPTION, COMMAND) for each in pattern.finditer(rest)]
    return found


def named_in_hints():
    """Return `{(what stands in backticks in a hint, with 0 for values that are not known before)}` of the library."""
    return {
        (name, each[1].replace("{}", "0"))
        for name, tree in library_trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword | ast.Assign) and hint_of(node) is not None
        for _, text in texts_of(hint_of(node))
        for each in BACKTICKED.finditer(text)
        if each[1] != "{}"
    }


def hint_of(node):
    """Return the value that a keyword or a variable called `hint` or `choice` is given; `None` of anything else."""
    if isinstance(node, ast.keyword):
        return node.value if node.arg == "hint" else None
    return node.value if isinstance(node.targets[0], ast.Name) and node.targets[0].id in {"hint", "choice"} else None


def test_no_text_of_the_library_names_an_option_or_a_command():
    found = {name: words_of_the_command_line(tree) for name, tree in library_trees().items()}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('"Give --preprocess."', ["--preprocess"]),
        ('f"{path} is no generator. `icis-deploy export-generator` writes one."', ["icis-deploy export-generator"]),
        ('"Install it again: pip install --no-deps icis-deploy. Then give --out."', ["--out"]),
        ('f"Sign it with a greater " f"--version than {held}."', ["--version"]),
    ],
)
def test_a_text_that_names_one_would_be_noticed(message, expected):
    tree = ast.parse(f'def check(path, held):\n    """See --help."""\n    raise UsageError("a", hint={message})\n')
    assert [word for _, word in words_of_the_command_line(tree)] == expected


def test_each_name_in_a_hint_is_a_word_of_the_command_line():
    named = named_in_hints()
    assert len(named) > 60
    strange = {(name, text) for name, text in named if command_line_hint(f"`{text}`", cli.commands) == f"`{text}`"}
    assert strange == set()


def test_each_name_in_a_hint_is_one_of_the_library():
    defined = set()
    for tree in library_trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                defined |= {node.name, *(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
    used = set()
    for _, text in named_in_hints():
        [call] = ast.parse(f"_({text})").body
        for node in ast.walk(call.value):
            if isinstance(node, ast.keyword):
                used.add(node.arg)
            elif isinstance(node, ast.Name) and node.id not in {"_", "Device"}:
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    assert used - defined == set()


def test_each_parameter_of_another_name_leads_to_an_option():
    assert [name for name in PARAMETERS if option_of(name, cli.commands) is None] == []


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("Give `preprocess`.", "Give --preprocess."),
        ("Choose one with `head_node`.", "Choose one with --head-node."),
        ("Give `head_node='a b'`.", "Give --head-node 'a b'."),
        ("Export it with `head='updatable'`.", "Export it with --head updatable."),
        ("Give `overwrite=True`.", "Give --overwrite."),
        ("Give `model_input='uint8'`.", "Give --input uint8."),
        ("Give `targets=['tensorrt', 'onnx']`.", "Give --target tensorrt --target onnx."),
        ("Give `batch_sizes=(1, 8)`.", "Give --batch 1,8."),
        ("Give `input_shape=(3, 224, 224)`.", "Give --input-shape 3,224,224."),
        ("`Device.rollback()` undoes it.", "`icis-deploy rollback` undoes it."),
        ("`export_generator()` writes one.", "`icis-deploy export-generator` writes one."),
        ("Use `Device.apply(allow_unsigned=True)`.", "Use `icis-deploy apply --allow-unsigned`."),
        ("`export(targets=['openvino'])`", "`icis-deploy export --target openvino`"),
    ],
)
def test_names_of_the_library_become_words_of_the_command_line(hint, expected):
    assert command_line_hint(hint, cli.commands) == expected


@pytest.mark.parametrize(
    "hint",
    ["`file,class`", "`nothing`", "`Device.replace()`", "`f(`", "`a.b`", "`head=name`", "`apply(x=1)`", "`*a`", "`\0`"],
)
def test_what_the_command_line_has_no_word_for_stays(hint):
    assert command_line_hint(hint, cli.commands) == hint


def test_the_running_command_names_its_own_option():
    assert command_line_hint("Give `descriptors`.", cli.commands, command="inject") == "Give --descriptors."
    assert command_line_hint("Give `descriptors`.", cli.commands, command="teach") == "Give --descriptor."
    assert command_line_hint("Give `descriptor` or `images`.", cli.commands, command="teach") == (
        "Give --descriptor or --images."
    )
    assert command_line_hint("Give `model`.", cli.commands, command="verify") == "Give --against."


def error_classes():
    return [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ICISDeployError)]


@pytest.mark.parametrize("kind", error_classes())
def test_an_error_says_what_failed_and_then_what_to_do(kind):
    error = kind("There are 3.", found=3, expected=(1, 2), where="a.csv", hint="Give `top`.")

    assert str(error) == "There are 3. Give `top`."
    assert (error.what, error.found, error.expected) == ("There are 3.", 3, (1, 2))
    assert (error.where, error.hint) == ("a.csv", "Give `top`.")
    assert str(kind("There are 3.")) == "There are 3."
    assert kind.exit_code in range(1, 7)


@pytest.mark.parametrize("kind", error_classes())
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_can_be_copied_and_pickled(kind, copied):
    error = kind("There are 3.", found=3, expected=(1, 2), where=Path("a.csv"), hint="Give `top`.")
    other = copied(error)

    assert type(other) is kind
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_an_error_met_in_a_file_keeps_what_it_carries():
    inner = CorruptFileError("It is empty.", found=0, expected="at least 1 byte", hint="Fetch it again.")
    error = BundleError.at(Path("a/b"), inner)

    assert str(error) == "a/b: It is empty. Fetch it again."
    assert (error.found, error.expected, error.where) == (0, "at least 1 byte", Path("a/b"))
    assert error.hint == "Fetch it again."


def test_the_command_line_names_options_in_text_and_json(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("a\n")
    (tmp_path / "d.npz").write_bytes(b"")
    command = ["describe", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "d.npz"), "--format", "json"]

    assert run(command) == 2
    out, err = capsys.readouterr()
    message = f"{tmp_path / 'd.npz'} already exists. Choose another path, or give --overwrite to replace it."
    assert err == f"Error: {message}\n"
    assert json.loads(out) == {
        "schema_version": 1,
        "command": "describe",
        "status": "error",
        "error": {
            "type": "UsageError",
            "message": message,
            "exit_code": 2,
            "found": None,
            "expected": None,
            "where": str(tmp_path / "d.npz"),
            "hint": "Choose another path, or give --overwrite to replace it.",
        },
    }


def test_json_holds_what_was_found_and_expected(monkeypatch, capsys):
    def fail(*_arguments, **_settings):
        raise UsageError("There are 3.", found={"a": (3, float("nan"))}, expected=[Path("b"), None, True])

    monkeypatch.setattr(main.cli, "main", lambda *_arguments, obj, **_settings: obj.update(format="json") or fail())

    assert run(["inspect"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["found"], error["expected"]) == ({"a": [3, "nan"]}, ["b", None, True])
    assert error["hint"] is None


@pytest.mark.parametrize(("value", "expected"), [(1.5, 1.5), ("a", "a"), ({1: {2}}, {"1": "{2}"}), (b"a", "b'a'")])
def test_what_json_has_no_form_for_becomes_text(value, expected):
    assert plain_value(value) == expected


def test_texts_are_found_whole():
    source = textwrap.dedent(
        '''
        """Not --this."""
        text = "a" f"b{c}d"
        other = "e"
        '''
    )
    assert [text for _, text in texts_of(ast.parse(source))] == ["ab{}d", "e"]


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("Give `preprocess`.", "Give `preprocess`."),
        ("Give `head='updatable'`.", "Give `head: updatable`."),
        ("Give `targets=['tensorrt']`.", 'Give `targets: ["tensorrt"]`.'),
        ("Give `strict=True`.", "Give `strict: true`."),
        ("`sign_bundle()` signs it.", "`icis-deploy sign-bundle` signs it."),
        ("Give `x=y` or `a b`.", "Give `x=y` or `a b`."),
    ],
)
def test_a_project_file_has_the_parameters_names_and_its_own_form(hint, expected):
    assert project_file_hint(hint, cli.commands) == expected
