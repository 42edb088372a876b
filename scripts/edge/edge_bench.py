"""Benchmark a device that has no internet: pack everything into one archive, run it there, read the result back.

    python scripts/edge/edge_bench.py pack BUNDLE... --platform manylinux_2_28_aarch64 --python 3.11 --out kit.tar.gz
    (on the device)  tar xf kit.tar.gz && sh edge-kit/run
    python scripts/edge/edge_bench.py read result.json --kit kit.tar.gz --out docs/results/device.json

The archive holds icis-deploy's wheel, all that it needs on the device as wheels of the device's platform, locked by
their hashes, the bundles, the images, and `run` (scripts/edge/edge-run). What follows `--` goes to `icis-deploy bench`
there. This tells a device's platform and Python:

    python3 -c 'import platform as p; print(p.machine(), p.libc_ver(), p.python_version())'
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    from icis_deploy.bundle.manifest import load_manifest
    from icis_deploy.common.files import check_free, sha256_of_file, write_file
    from icis_deploy.errors import (
        ICISDeployError,
        IncompatibleError,
        LoadError,
        MissingDependencyError,
        RuntimeFailureError,
        UsageError,
    )
    from icis_deploy.images.loading import load_image_list
    from icis_deploy.runtime.sessions.choice import Runtime, loaded_files
except ImportError as error:
    print(
        f"Error: edge_bench.py needs icis-deploy's environment, and {sys.executable} has no {error.name}. Run "
        f"./scripts/install dev, then .venv/bin/python scripts/edge/edge_bench.py.",
        file=sys.stderr,
    )
    sys.exit(5)

REPOSITORY = Path(__file__).resolve().parents[2]
KIT_FOLDER = "edge-kit"
KIT_NAME = "kit.json"
SUMS_NAME = "SHA256SUMS"
KIT_VERSION = 1
OLDEST_GLIBC = 17
"""Of the 2.x that manylinux wheels are made for (manylinux2014); older tags name nothing that still gets wheels."""

EXTRA = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device's platform and Python."""

    machine: str
    """As `platform.machine()`: x86_64, aarch64."""

    glibc: int
    """Minor version of its glibc 2.x."""

    python: str
    """Such as 3.11."""

    @property
    def platforms(self) -> list[str]:
        """Every wheel tag that the device can use: pip takes the tags as they are, without the older ones."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        return [*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]

    @property
    def markers(self) -> dict[str, str]:
        """Environment markers (PEP 508) of the device; pip would take those of the machine that it runs on."""
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def parse_target(platform: str, python: str) -> Target:
    """Return the target that a manylinux tag and a Python version name.

    Raises:
        UsageError: If either has another form.
    """
    tag = re.fullmatch(r"manylinux(?:_2_(?P<glibc>\d+)|2014)_(?P<machine>\w+)", platform)
    if tag is None or int(tag["glibc"] or OLDEST_GLIBC) < OLDEST_GLIBC:
        raise UsageError(
            f"The platform {platform!r} is no manylinux tag of glibc 2.{OLDEST_GLIBC} or newer; expected such as "
            f"manylinux_2_28_aarch64 or manylinux2014_x86_64."
        )
    if not re.fullmatch(r"3\.\d+", python):
        raise UsageError(f"The Python version {python!r} is unknown; expected such as 3.11.")
    return Target(machine=tag["machine"], glibc=int(tag["glibc"] or OLDEST_GLIBC), python=python)


# --- pack ---------------------------------------------------------------------------------------------------------


def pack(arguments: argparse.Namespace) -> str:
    """Make the archive and return what to do with it.

    Raises:
        ICISDeployError: If something is missing or cannot be downloaded; no archive is left.
    """
    check_free(arguments.out, overwrite=arguments.overwrite)
    target = parse_target(arguments.platform, arguments.python)
    with tempfile.TemporaryDirectory() as name:
        kit = Path(name) / KIT_FOLDER
        (kit / "wheels").mkdir(parents=True)
        bundles = copy_bundles(arguments.bundles, kit)
        options = [*copy_original(arguments.against, kit), *copy_images(arguments.images, kit)]
        bench_arguments = [*bundles, *options, *arguments.bench_arguments]
        wheel = copy_wheel(arguments.wheel, kit / "wheels")
        download_wheels(wheel, kit / "wheels", target, arguments.constraints)
        (kit / "requirements.txt").write_text("\n".join(locked_requirements(kit / "wheels")) + "\n")
        write_run_script(kit, target, bench_arguments)
        write_contents(kit, target, wheel)
        write_archive(kit, arguments.out)
    size_mb = arguments.out.stat().st_size / 1e6
    return (
        f"{arguments.out}: {size_mb:.0f} MB for {target.machine}, glibc 2.{target.glibc}, Python {target.python}.\n"
        f"On the device: tar xf {arguments.out.name} && sh {KIT_FOLDER}/run\n"
        f"Then here:     python scripts/edge/edge_bench.py read result.json --kit {arguments.out} --out device.json"
    )


def copy_bundles(folders: Sequence[Path], kit: Path) -> list[str]:
    """Copy the bundles and return their paths in the kit."""
    paths = []
    for folder in folders:
        load_manifest(folder)
        path = f"bundles/{folder.resolve().name}"
        if path in paths:
            raise UsageError(f"Two bundles are called {folder.resolve().name!r}; rename one of the folders.")
        shutil.copytree(folder, kit / path)
        paths.append(path)
    return paths


def copy_original(model: Path | None, kit: Path) -> list[str]:
    """Copy the model that all are compared with, and return the option that names it."""
    if model is None:
        return []
    if model.suffix != ".onnx":
        raise UsageError(f"{model} is not a .onnx file; a device has no torch to run anything else with.")
    shutil.copyfile(model, kit / "original.onnx")
    return ["--against", "original.onnx"]


def copy_images(images: Path | None, kit: Path) -> list[str]:
    """Copy the images of a list under plain numbers, and return the option that names them."""
    if images is None:
        return []
    found = load_image_list(images)
    (kit / "images").mkdir()
    with (kit / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class"])
        for index, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
            name = f"images/{index:06d}{path.suffix.lower()}"
            shutil.copyfile(path, kit / name)
            writer.writerow([name, label])
    return ["--images", "images.csv"]


def copy_wheel(wheel: Path | None, folder: Path) -> Path:
    """Put icis-deploy's own wheel into the folder, built here unless one is given."""
    if wheel is not None:
        return Path(shutil.copy(wheel, folder))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    # From another folder: in the repository, the folder `build/` of an earlier build would be imported as the module.
    run(
        command,
        cwd=folder,
        failed="icis-deploy's wheel could not be built (pip install -e '.[dev]' brings what that needs)",
    )
    return next(folder.glob("*.whl"))


def download_wheels(wheel: Path, folder: Path, target: Target, constraints: Path) -> None:
    """Download what icis-deploy's wheel needs on the target, and pip itself."""
    download({f"icis-deploy[{EXTRA}] @ {wheel.resolve().as_uri()}", "pip"}, folder, target, constraints)


def download(wanted: set[str], folder: Path, target: Target, constraints: Path) -> None:
    # Why: docs/decisions/0031.
    """Download wheels that the target can use, with all that they need there.

    pip judges environment markers by the machine that it runs on, so what only the target needs is asked for until
    nothing is missing.

    Args:
        wanted: Requirements, as pip takes them.
        folder: Where the wheels go.
        target: What they are for.
        constraints: A file of versions to take.

    Raises:
        RuntimeFailureError: If pip finds none.
        MissingDependencyError: If something that a wheel needs stays missing.
    """
    while wanted:
        platforms = [part for tag in target.platforms for part in ("--platform", tag)]
        run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--only-binary", ":all:", "--implementation", "cp", "--python-version", target.python, *platforms),
                *("--constraint", constraints, "--find-links", folder, "--dest", folder, *sorted(wanted)),
            ],
            failed=f"pip found no wheels for {target.platforms[0]} and Python {target.python}. The versions in "
            f"{constraints} may not exist for it: give --constraints with others, or /dev/null for the newest",
        )
        asked_for, wanted = wanted, missing_requirements(folder, target)
        if wanted == asked_for:
            raise MissingDependencyError(f"{', '.join(sorted(wanted))} were not found for {target.platforms[0]}.")


def missing_requirements(folder: Path, target: Target) -> set[str]:
    """Return what the wheels in a folder require on the target and no wheel there provides."""
    provided = {parse_wheel_filename(path.name)[0] for path in folder.glob("*.whl")}
    return {
        str(requirement.name) + str(requirement.specifier)
        for path in folder.glob("*.whl")
        for requirement in requirements_of(path, target)
        if canonicalize_name(requirement.name) not in provided
    }


def requirements_of(wheel: Path, target: Target) -> Iterator[Requirement]:
    """Yield what a wheel requires on the target: icis-deploy with its extra, everything else without extras."""
    extra = EXTRA if parse_wheel_filename(wheel.name)[0] == "icis-deploy" else ""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    for text in headers.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({**target.markers, "extra": extra}):
            yield requirement


def locked_requirements(folder: Path) -> list[str]:
    """Return a line for each wheel, with its hash; pip's own is used from its file."""
    wheels = {parse_wheel_filename(path.name)[:2]: path for path in folder.glob("*.whl")}
    return [
        f"{name}=={version} --hash=sha256:{sha256_of_file(path)}"
        for (name, version), path in sorted(wheels.items())
        if name != "pip"
    ]


def write_run_script(kit: Path, target: Target, bench_arguments: Sequence[str]) -> None:
    """Write `run`, with what it must find and measure."""
    text = (REPOSITORY / "scripts" / "edge" / "edge-run").read_text("utf-8")
    for name, value in (
        ("MACHINE", target.machine),
        ("GLIBC", f"2.{target.glibc}"),
        ("PYTHON", target.python),
        ("ARGUMENTS", shlex.join(bench_arguments)),
    ):
        text = text.replace(f"@{name}@", value)
    (kit / "run").write_text(text)
    (kit / "run").chmod(0o755)


def write_contents(kit: Path, target: Target, wheel: Path) -> None:
    """Write what the kit is, and the hash of every file in it."""
    contents = {
        "kit_version": KIT_VERSION,
        "icis_deploy_version": str(parse_wheel_filename(wheel.name)[1]),
        "platform": target.platforms[0],
        "python": target.python,
        "bundles": {folder.name: bundle_size(folder) for folder in sorted(kit.glob("bundles/*"))},
    }
    (kit / KIT_NAME).write_text(json.dumps(contents, indent=2) + "\n")
    files = sorted(path for path in kit.rglob("*") if path.is_file())
    sums = [f"{sha256_of_file(path)}  {path.relative_to(kit)}\n" for path in files]
    (kit / SUMS_NAME).write_text("".join(sums))


def bundle_size(folder: Path) -> int:
    """Return the bytes of the files that the kit's runtime loads, as a result states them of its target."""
    bundle = load_manifest(folder)
    return sum(bundle.files[name].size_bytes for name in loaded_files(bundle, Runtime()))


def write_archive(kit: Path, out: Path) -> None:
    """Write the archive to a temporary file in its folder and rename that when it is complete."""
    temporary = out.with_name(f".{out.name}.building")
    try:
        # Wheels and images are compressed already: more effort would save nothing.
        with tarfile.open(temporary, "w:gz", compresslevel=1) as archive:
            archive.add(kit, KIT_FOLDER, filter=without_owner)
        temporary.replace(out)
    except OSError as error:
        raise RuntimeFailureError(f"Could not write {out}: {error.strerror}. Nothing was left there.") from error
    finally:
        temporary.unlink(missing_ok=True)


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an archive's member without the name of the one who packed it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def run(command: Sequence[Any], *, failed: str, cwd: Path | None = None) -> None:
    """Run a command.

    Raises:
        RuntimeFailureError: If it fails; with `failed` and the first error that it printed.
    """
    words = [os.fspath(part) for part in command]
    result = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603 - pip and build
    if result.returncode:
        # pip's first error names the packages; its last one only says that there was one.
        reason = next((line for line in result.stderr.splitlines() if "ERROR" in line), result.stderr[-300:])
        raise RuntimeFailureError(f"{failed}. It said: {reason.strip()}")


# --- read ---------------------------------------------------------------------------------------------------------


def read(arguments: argparse.Namespace) -> str:
    """Check a result that came back from a device, keep it, and return what it is.

    Raises:
        LoadError: If it is no result, or the archive no kit.
        IncompatibleError: If it is not what the kit measures; nothing is kept.
    """
    from benchmarks.results.result import load_result

    check_free(arguments.out, overwrite=arguments.overwrite)
    result, kit = load_result(arguments.result), kit_contents(arguments.kit)
    machine = kit["platform"].split("_", 3)[-1]
    sections, sizes = result.environment.sections, {target.name: target.size_bytes for target in result.targets}
    for what, found, expected in (
        ("icis-deploy", sections["versions"]["icis-deploy"], kit["icis_deploy_version"]),
        ("architecture", sections["cpu"]["architecture"], machine),
        ("bundles", {name: sizes.get(name) for name in kit["bundles"]}, kit["bundles"]),
    ):
        if found != expected:
            raise IncompatibleError(
                f"{arguments.result} does not come from {arguments.kit}: its {what}: {found}, the kit's: {expected}. "
                f"Give the kit that it was measured with."
            )
    write_file(arguments.out, arguments.result.read_bytes())
    return (
        f"{arguments.out}: {len(result.targets)} targets on {result.environment.name} "
        f"(fingerprint {result.environment.fingerprint}), {result.created}.\n"
        f"A page of it and others: icis-deploy report {arguments.out} ... --out report.html"
    )


def kit_contents(path: Path) -> dict[str, Any]:
    """Return what a kit says that it is.

    Raises:
        LoadError: If it is no kit, or of another version.
    """
    try:
        with tarfile.open(path) as archive:
            file = archive.extractfile(f"{KIT_FOLDER}/{KIT_NAME}")
            contents: dict[str, Any] = json.load(file) if file is not None else {}
    except (OSError, KeyError, tarfile.TarError, ValueError) as error:
        raise LoadError(f"{path} is not an archive that `edge_bench.py pack` wrote: {error}.") from error
    if contents.get("kit_version") != KIT_VERSION:
        raise LoadError(f"{path} has kit version {contents.get('kit_version')}; this release reads {KIT_VERSION}.")
    return contents


# --- the command line ---------------------------------------------------------------------------------------------


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="edge_bench.py", description=(__doc__ or "").split("\n", 1)[0])
    steps = parser.add_subparsers(required=True, metavar="pack|read")
    packing = steps.add_parser(
        "pack", help="make the archive", usage="edge_bench.py pack BUNDLE... [options] [-- BENCH OPTIONS]"
    )
    packing.set_defaults(step=pack)
    packing.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    packing.add_argument("--platform", required=True, help="manylinux tag of the device: manylinux_2_28_aarch64")
    packing.add_argument("--python", required=True, help="the device's Python: 3.11")
    packing.add_argument("--against", type=Path, help="the original model, .onnx, that all are compared with")
    packing.add_argument("--images", type=Path, help="list of labelled images, `file,class`, to measure accuracy on")
    packing.add_argument("--wheel", type=Path, help="icis-deploy's wheel; built here by default")
    packing.add_argument("--constraints", type=Path, default=REPOSITORY / "constraints.txt", help="versions to take")
    packing.add_argument("--out", type=Path, required=True, help="the archive: kit.tar.gz")
    packing.add_argument("--overwrite", action="store_true", help="replace an archive that is there")
    reading = steps.add_parser("read", help="check a result that came back, and keep it")
    reading.set_defaults(step=read)
    reading.add_argument("result", type=Path, metavar="RESULT", help="result.json, from the device")
    reading.add_argument("--kit", type=Path, required=True, help="the archive that it was measured with")
    reading.add_argument("--out", type=Path, required=True, help="where to keep it: docs/results/device.json")
    reading.add_argument("--overwrite", action="store_true", help="replace a result that is there")
    own, bench_arguments = list(words), []
    if "--" in own:
        own, bench_arguments = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    arguments.bench_arguments = bench_arguments
    return arguments


def main(words: Sequence[str]) -> int:
    """Do what was asked for, and return the exit code of `icis-deploy`'s commands."""
    arguments = parse_arguments(words)
    try:
        print(arguments.step(arguments))
    except ICISDeployError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
