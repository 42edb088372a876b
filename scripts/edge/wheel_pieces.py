"""Wheels that a machine without internet lacks, as pieces of one archive that are small enough to be carried.

`pack` runs where there is a package index, in icis-deploy's environment; `unpack` runs where there is none, on Python
alone. Each piece has its hash in `pieces.json`, so that one which was damaged or left behind is named before anything
is installed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PIECES_NAME = "pieces.json"
PIECES_VERSION = 1
EXTRAS = ("gpu", "train", "export", "tensorrt-rtx", "bench")
"""Whose libraries are carried."""

NOT_CARRIED = frozenset({"torch"})
"""The machine has it, built for its driver; a wheel with CUDA would be gigabytes."""

FROM_SOURCE = ("tensorrt-rtx", "tensorrt-rtx-cu13")
"""What the index has as sources alone: frames without code of their own, whose wheels are for any platform."""

FOR_TESTS = ("hypothesis", "packaging", "pytest>=9")


class PiecesError(Exception):
    """A piece is missing or damaged, or there are none; the message says which."""


def requirements() -> list[str]:
    """Return what is to be carried, as pip takes it, from the metadata of the installed icis-deploy."""
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = set(FOR_TESTS)
    for text in metadata.requires("icis-deploy") or ():
        found = Requirement(text)
        asked = found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS))
        if asked and canonicalize_name(found.name) not in NOT_CARRIED | {"icis-deploy"}:
            wanted.add(f"{found.name}{found.specifier}")
    return sorted(wanted)


def pack(
    out: Path,
    *,
    platform: str,
    python: str,
    constraints: Path,
    piece_bytes: int,
    also: Sequence[Path] = (),
) -> str:
    """Download what a GPU check needs besides torch, and write it to a new folder in pieces.

    Args:
        out: The folder; must not exist.
        platform: The machine's manylinux tag, such as `manylinux_2_28_x86_64`.
        python: Its Python, such as 3.12.
        constraints: Versions to take.
        piece_bytes: Greatest size of a piece.
        also: Wheels that no index has, such as TensorRT's.

    Returns:
        What was written, on a line.

    Raises:
        ICISDeployError: If a wheel is not to be had; nothing is left.
    """
    from icis_deploy.common.files import check_free
    from scripts.edge.edge_bench import download, parse_target, run

    check_free(out, overwrite=False)
    target, wanted = parse_target(platform, python), requirements()
    with tempfile.TemporaryDirectory() as name:
        wheels = Path(name) / "wheels"
        wheels.mkdir()
        for wheel in also:
            (wheels / wheel.name).write_bytes(wheel.read_bytes())
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--constraint", constraints]
        run(
            [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", wheels, *FROM_SOURCE],
            failed=f"pip could not build {', '.join(FROM_SOURCE)} from source",
        )
        download({*wanted, "pip"}, wheels, target, constraints)
        archive = Path(name) / "wheels.tar"
        with tarfile.open(archive, "w") as file:
            for wheel in sorted(wheels.iterdir()):
                file.add(wheel, wheel.name)
        added = sorted(wheel.name.split("-")[0] for wheel in also)
        pieces = write_pieces(
            archive,
            out,
            piece_bytes,
            {"platform": platform, "python": python, "requirements": [*wanted, *added]},
        )
    total = sum(piece["size_bytes"] for piece in pieces)
    return f"{out}: {total / 1e6:.0f} MB in {len(pieces)} pieces, for {platform} and Python {python}, without torch."


def write_pieces(archive: Path, out: Path, piece_bytes: int, described: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut a file into pieces in a new folder, with `pieces.json`, and return what that says of each."""
    out.mkdir(parents=True)
    pieces: list[dict[str, Any]] = []
    with archive.open("rb") as file:
        while data := file.read(piece_bytes):
            name = f"wheels.{len(pieces):03d}"
            (out / name).write_bytes(data)
            pieces.append({"name": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    contents = {"pieces_version": PIECES_VERSION, **described, "pieces": pieces}
    (out / PIECES_NAME).write_text(json.dumps(contents, indent=1) + "\n")
    return pieces


def load_pieces(folder: Path) -> dict[str, Any]:
    """Return what `pieces.json` says.

    Raises:
        PiecesError: If it is not there, or of another version.
    """
    path = folder / PIECES_NAME
    try:
        contents: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PiecesError(f"{path} cannot be read ({error}); `gpu-check pack` writes it.") from error
    if contents.get("pieces_version") != PIECES_VERSION:
        raise PiecesError(
            f"{path} has version {contents.get('pieces_version')}; expected {PIECES_VERSION}: pack again."
        )
    return contents


def unpack(folder: Path, out: Path) -> None:
    """Join the pieces and unpack the wheels into `out`.

    Raises:
        PiecesError: If a piece is missing or not what `pieces.json` says; `out` is as it was.
    """
    contents = load_pieces(folder)
    for piece in contents["pieces"]:
        path = folder / piece["name"]
        if not path.is_file():
            raise PiecesError(f"The piece {path} is missing, of {len(contents['pieces'])}. Carry it over as well.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != piece["sha256"]:
            raise PiecesError(
                f"The piece {path} is damaged: its hash is another than {PIECES_NAME} says. Copy it again."
            )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as joined:
        for piece in contents["pieces"]:
            joined.write((folder / piece["name"]).read_bytes())
        joined.seek(0)
        with tarfile.open(fileobj=joined) as archive:
            for member in _wheels_of(archive):
                source = archive.extractfile(member)
                assert source is not None
                (out / member.name).write_bytes(source.read())


def _wheels_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if not member.isfile() or "/" in member.name or not member.name.endswith(".whl"):
            raise PiecesError(f"The pieces hold {member.name!r}, which is no wheel. Pack again.")
        yield member
