import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from icis_deploy import workbench
from icis_deploy.errors import MissingDependencyError

REPOSITORY = Path(workbench.__file__).resolve().parent.parent


def run_next_to_foreign_packages(folder, code):
    """Run Python code in a folder whose own `benchmarks` and `exporters` come first; return what it prints."""
    for name in ("benchmarks", "exporters"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("MINE = True\n")
    (folder / "main.py").write_text(f"import sys\nsys.path.append({str(REPOSITORY)!r})\n" + textwrap.dedent(code))
    result = subprocess.run([sys.executable, "main.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_names_mean_ours_also_next_to_packages_of_the_same_name(tmp_path):
    printed = run_next_to_foreign_packages(
        tmp_path,
        """
        from icis_deploy.workbench import enable_workbench
        enable_workbench()
        enable_workbench()
        import benchmarks, benchmarks.timing.percentiles, exporters, exporters.loading.models
        print(benchmarks.__file__, exporters.__file__, exporters.loading.models.__file__, sep="\\n")
        """,
    )

    assert printed.splitlines() == [
        str(REPOSITORY / "benchmarks" / "__init__.py"),
        str(REPOSITORY / "exporters" / "__init__.py"),
        str(REPOSITORY / "exporters" / "loading" / "models.py"),
    ]


def test_public_names_of_exporters_and_benchmarks_are_ours_too(tmp_path):
    printed = run_next_to_foreign_packages(
        tmp_path,
        """
        import icis_deploy
        import inspect
        print(inspect.getsourcefile(icis_deploy.BuiltTarget), inspect.getsourcefile(icis_deploy.results.Result))
        """,
    )

    files = (REPOSITORY / "exporters" / "targets" / "registry.py", REPOSITORY / "benchmarks" / "results" / "result.py")
    assert printed.split() == [str(path) for path in files]


def test_without_it_the_names_mean_the_packages_in_the_working_directory(tmp_path):
    # Without this, the test above could not fail.
    assert run_next_to_foreign_packages(tmp_path, "import exporters; print(exporters.MINE)") == "True"


@pytest.mark.parametrize("name", ["exporters", "benchmarks"])
def test_a_foreign_package_that_is_already_imported_is_refused(tmp_path, name):
    printed = run_next_to_foreign_packages(
        tmp_path,
        f"""
        import {name}
        from icis_deploy.errors import IncompatibleError
        from icis_deploy.workbench import enable_workbench
        try:
            enable_workbench()
        except IncompatibleError as error:
            print(error)
        print({name}.MINE, [finder for finder in sys.meta_path if "Workbench" in type(finder).__name__])
        """,
    )

    message, state = printed.splitlines()
    assert message == (
        f"A module called {name!r} from {tmp_path / name / '__init__.py'} is already imported; icis-deploy's own is in "
        f"{REPOSITORY / name}. Use icis_deploy before importing the other one, or in a process of its own."
    )
    assert state == "True []", "a refusal leaves the import system as it was"


def test_a_foreign_module_without_a_file_is_refused_as_well(tmp_path):
    printed = run_next_to_foreign_packages(
        tmp_path,
        """
        import types
        sys.modules["exporters"] = types.ModuleType("exporters")
        from icis_deploy.errors import IncompatibleError
        from icis_deploy.workbench import enable_workbench
        try:
            enable_workbench()
        except IncompatibleError as error:
            print(error)
        """,
    )

    assert printed.startswith("A module called 'exporters' from None is already imported; ")


def test_no_other_name_is_touched(tmp_path):
    printed = run_next_to_foreign_packages(
        tmp_path,
        """
        from icis_deploy.workbench import enable_workbench
        enable_workbench()
        import json
        find = sys.meta_path[0].find_spec
        print(json.__file__, all(find(name) is None for name in ("json", "exporters.x", "scripts")))
        """,
    )

    assert printed.split() == [__import__("json").__file__, "True"]


def test_an_installation_without_exporters_says_how_to_repair_it(tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "_PACKAGE", tmp_path / "site-packages" / "icis_deploy")

    with pytest.raises(
        MissingDependencyError,
        match=r"^This installation of icis-deploy in \S+ has no exporters\. Install it again: pip install",
    ):
        workbench.workbench_root()


WITHOUT_LIBRARIES = """
    import sys
    for name in ("onnx", "onnx_ir", "onnxscript", "scipy", "torch"):
        sys.modules[name] = None  # as where it is not installed: importing it raises ModuleNotFoundError
    import icis_deploy
    """


def without_libraries(folder, code):
    """Run Python code where no library of the workbench is installed; return what it prints."""
    program = textwrap.dedent(WITHOUT_LIBRARIES) + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "call",
    [
        "inspect('model.onnx')",
        "export('model.onnx', classes='classes.txt', out='bundle')",
        "inject('model.onnx', classes='classes.txt', descriptors='descriptors.npz')",
        "export_generator('model.onnx', classes='classes.txt', descriptors='descriptors.npz', out='generator.onnx')",
        "verify('bundle', against='model.onnx')",
        "compact('bundle', out='compacted')",
        "LoadedModel",
        "WrittenGenerator",
    ],
)
def test_what_needs_a_missing_library_says_how_to_install_it(tmp_path, call):
    printed = without_libraries(
        tmp_path,
        f"""
        try:
            icis_deploy.{call}
        except icis_deploy.errors.MissingDependencyError as error:
            print(error)
            print(error.expected, type(error.__cause__).__name__)
        """,
    )

    assert printed.splitlines() == [
        "This needs onnx_ir, which is not installed. Install what a workbench needs: pip install "
        "'icis-deploy[train,export]'.",
        "onnx_ir ModuleNotFoundError",
    ]


@pytest.mark.parametrize("arguments", [["inspect", __file__], ["demo"], ["bench-scale"]])
def test_commands_exit_with_the_code_for_a_missing_dependency(tmp_path, arguments):
    printed = without_libraries(tmp_path, f"from icis_deploy.cli.main import run\nprint(run({arguments!r}))")

    assert printed == "5"


def test_results_and_devices_do_without_those_libraries(tmp_path):
    # Without this, the tests above could pass where nothing can be imported at all.
    assert without_libraries(tmp_path, "print(icis_deploy.results.Result.__name__, icis_deploy.Device.__name__)") == (
        "Result Device"
    )


def test_a_module_of_ours_that_is_missing_is_no_missing_dependency(tmp_path):
    printed = without_libraries(
        tmp_path,
        """
        from icis_deploy.workbench import enable_workbench
        enable_workbench()
        try:
            import benchmarks.nothing
        except ModuleNotFoundError as error:
            print(error.name)
        """,
    )

    assert printed == "benchmarks.nothing"


def test_the_packages_inside_a_wheel_go_before_folders_next_to_it(tmp_path, monkeypatch):
    package = tmp_path / "icis_deploy"
    for name in ("exporters", "benchmarks"):
        for root in (tmp_path, package / "_workbench"):
            (root / name).mkdir(parents=True)
            (root / name / "__init__.py").touch()
    monkeypatch.setattr(workbench, "_PACKAGE", package)

    assert workbench.workbench_root() == package / "_workbench"
