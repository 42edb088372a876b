import inspect
import re

import pytest

from icis_deploy import errors
from icis_deploy.errors import ICISDeployError

LINE = re.compile(r"^    (?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)\s+(?P<code>[1-6](?:-6)?|-)?")

ROOTS = {"ICISDeployError": (Exception, "1-6"), "ICISDeployWarning": (UserWarning, "-")}
"""Classes without a parent in the module: base of Python's, and exit code as the tree states it."""


def tree_in_docstring():
    """Return `{class name: (parent name, exit code)}` as the module's docstring draws it."""
    parents, drawn = [], {}
    for line in errors.__doc__.splitlines():
        found = LINE.match(line)
        if not found:
            continue
        depth = len(found["indent"]) // 4
        parents[depth:] = [found["name"]]
        parent = parents[depth - 1] if depth else None
        code = found["code"] or drawn[parent][1]
        drawn[found["name"]] = (parent, code)
    return drawn


def error_classes():
    return {
        name: value
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if value.__module__ == errors.__name__
    }


def test_the_docstring_draws_exactly_the_classes_that_exist():
    assert set(tree_in_docstring()) == set(error_classes())


def test_every_class_has_the_parent_and_the_exit_code_that_the_tree_states():
    classes = error_classes()
    for name, (parent, code) in tree_in_docstring().items():
        if parent is None:
            assert (classes[name].__bases__, code) == ((ROOTS[name][0],), ROOTS[name][1])
        else:
            assert classes[name].__bases__ == (classes[parent],), name
            assert classes[name].exit_code == int(code), name


def test_every_branch_has_one_exit_code_and_none_is_success_or_interrupted():
    assert {branch.exit_code for branch in ICISDeployError.__subclasses__()} == {1, 2, 3, 4, 5, 6}
    assert ICISDeployError.exit_code == 4, "an error of no branch is a failure, never a verdict"


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_every_class_is_documented_and_carries_its_message(name):
    error = error_classes()[name]("what, found, expected")

    assert inspect.getdoc(error_classes()[name])
    assert str(error) == "what, found, expected"
