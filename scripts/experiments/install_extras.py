"""Install each extra alone into an empty environment, as the documents say, and note what became of it.

    python scripts/experiments/install_extras.py --out docs/results/extras.json [--only litert,mnn]

The wheel is built once. An extra is installed with `pip install -c constraints.txt WHEEL[extra]` into a new
environment, which must then hold no contradictions (`pip check`), answer `icis-deploy doctor`, and say of the extra
that nothing is missing. Time, size and number of distributions are noted, and which wheel of the runtime there is for
arm64; of what fails, the line in which pip says why. A result that is there is kept for the extras that are not asked
for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icis_deploy.common.files import write_file
from icis_deploy.extras import EXTRAS
from scripts.edge.edge_bench import parse_target

REPOSITORY = Path(__file__).resolve().parents[2]
CONSTRAINTS = REPOSITORY / "constraints.txt"
SECONDS = 900
NOT_OF_ARM64 = frozenset({"torch", "cuda-python"})
"""Libraries that are no runtime of their own."""


def run(command: Sequence[object], *, seconds: float = SECONDS) -> tuple[int, str]:
    """Run a command, and return its exit code and what it printed; 124 where it took too long."""
    # Of this environment nothing may be seen there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        ran = subprocess.run(  # noqa: S603 - pip, and what it installed
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=tempfile.gettempdir(),
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return 124, f"it took more than {seconds:.0f} s"
    return ran.returncode, ran.stdout + ran.stderr


def reason(printed: str) -> str:
    """Return the line in which pip, or whatever failed, says why."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors[-1] if errors else lines[-1] if lines else "it said nothing")[:300]


def try_extra(wheel: Path, extra: str, folder: Path) -> dict[str, Any]:
    """Install an extra into a new environment in `folder`, and return what became of it."""
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "venv", folder])
    start = time.monotonic()
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    code, printed = run([*pip, "install", "-c", CONSTRAINTS, f"{wheel}[{extra}]"])
    seconds = time.monotonic() - start
    if code:
        return {"installs": False, "reason": reason(printed)}
    code, printed = run([*pip, "check"])
    if code:
        return {"installs": False, "reason": f"pip check: {reason(printed)}"}
    _, printed = run([python, "-m", "icis_deploy.cli.main", "doctor", "--format", "json"])
    state = state_of(extra, printed)
    if state is None or state["missing"]:
        return {"installs": False, "reason": f"doctor: {reason(printed) if state is None else state['missing']}"}
    (site,) = folder.glob("lib/python*/site-packages")
    pip_bytes = sum(size(path) for path in site.glob("pip*")) + sum(size(path) for path in site.glob("setuptools*"))
    return {
        "installs": True,
        "seconds": round(seconds),
        "size_mb": round((size(site) - pip_bytes) / 1e6),
        "num_distributions": len(list(site.glob("*.dist-info"))) - 2,
    }


def state_of(extra: str, printed: str) -> dict[str, Any] | None:
    """Return what `doctor` says of an extra, `None` where it said nothing.

    Its exit code says whether a runtime works, which is not asked here: most extras bring none.
    """
    start = re.search(r"^\{", printed, re.MULTILINE)  # libraries print lines of their own before it
    try:
        said, _ = json.JSONDecoder().raw_decode(printed, 0 if start is None else start.start())
    except ValueError:
        return None
    return next((each for each in said["extras"] if each["name"] == extra), None)


def size(path: Path) -> int:
    """Return the bytes of a file, or of a folder's files."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    )


def arm64_wheel(extra: str, folder: Path) -> float | None:
    """Return the size in MB of the runtime's wheel for arm64, `None` where there is none."""
    found, target = 0.0, parse_target("manylinux_2_39_aarch64", "3.11")
    for name in EXTRAS[extra].requires:
        if name in NOT_OF_ARM64:
            continue
        platforms = [word for tag in target.platforms for word in ("--platform", tag)]
        options = [
            "--no-deps",
            "--only-binary",
            ":all:",
            "--python-version",
            target.python,
            "--dest",
            folder,
            *platforms,
        ]
        code, _ = run([sys.executable, "-m", "pip", "download", "--quiet", *options, "-c", CONSTRAINTS, name])
        wheels = list(folder.glob("*.whl"))
        if code or not wheels:
            return None
        found += sum(wheel.stat().st_size for wheel in wheels)
        for wheel in wheels:
            wheel.unlink()
    return round(found / 1e6, 1)


RUNTIME_EXTRAS = frozenset(
    name
    for name, extra in EXTRAS.items()
    if "CPU" in extra.purpose or "GPU" in extra.purpose or "engines" in extra.purpose
)


def main() -> int:
    """Try every extra that was asked for, and write each result at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="extras, separated by commas; by default all")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(EXTRAS)
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        dist = Path(name) / "dist"
        # `run` works in another folder: here `build/` of an earlier build would be imported as the module.
        code, printed = run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, REPOSITORY])
        if code:
            print(f"Error: the wheel could not be built: {reason(printed)}", file=sys.stderr)
            return 1
        (wheel,) = dist.glob("*.whl")
        for extra in wanted:
            with tempfile.TemporaryDirectory() as place:
                found = try_extra(wheel, extra, Path(place) / "env")
                if extra in RUNTIME_EXTRAS:
                    found["arm64_wheel_mb"] = arm64_wheel(extra, Path(place))
            results[extra] = found
            ordered = {each: results[each] for each in EXTRAS if each in results}
            write_file(arguments.out, (json.dumps(ordered, indent=1) + "\n").encode())
            print(extra, found, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
