"""Write the example results of this folder again, by the commands themselves: real runs on a tiny model.

Run it in the repository's root after a change of the format: `python -m tests.benchmarks.results.make_results`.
"""

import tempfile
from pathlib import Path

from icis_deploy.cli.main import run
from testing.exported_bundles import export_bundles
from testing.tiny_project import write_tiny_project

HERE = Path(__file__).resolve().parent


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = write_tiny_project(folder / "project")
        bundles = export_bundles(project, folder)
        fused, updatable, model = (str(path) for path in (bundles.fused, bundles.updatable, project.model))
        settings = ("--preset", "quick", "--batch", "1,8", "--threads", "1", "--images", str(project.images))
        loads = ("--scenario", "single-stream", "--scenario", "server", "--scenario", "offline")
        write("bench", "bench", fused, updatable, "--against", model, *settings, *loads)
        write("scale", "bench-scale", "--classes", "100,1000,5000", "--features", "256")
        write("update", "bench-update", updatable, "--against", model, "--classes", "4", "--updates", "70")


def write(name: str, *arguments: str) -> None:
    exit_code = run([*arguments, "--out", str(HERE / f"{name}.json"), "--overwrite"])
    assert exit_code == 0, (name, exit_code)


if __name__ == "__main__":
    main()
