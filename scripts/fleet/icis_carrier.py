#!/usr/bin/env python3
"""Bring class updates to a device, and put them where devices find them; each call does one thing and ends.

    icis_carrier.py push-updates REFERENCE new.icis…           into an OCI registry
    icis_carrier.py push-bundle REFERENCE BUNDLE               a reference is such as registry.example/classes/camera:8
    icis_carrier.py pull-updates REFERENCE INBOX --state DIR   from there, unless the device has had it
    icis_carrier.py pull-bundle REFERENCE NEW_FOLDER
    icis_carrier.py tuf REPOSITORY TARGET INBOX --root root.json --state DIR
    icis_carrier.py hawkbit SERVER --device NAME --token-file FILE --work DIR

It needs icis-deploy and, for `tuf`, tuf. A password or a token is read from a file, never from an argument. Exit codes
are those of icis-deploy: 0 brought, or nothing new; 6 refused; 4 the server or the disk is at fault, try again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from icis_deploy.carriers import hawkbit, oci, tuf_repository
from icis_deploy.common.files import read_plain, write_file
from icis_deploy.common.terminal_text import printable
from icis_deploy.errors import ICISDeployError, LoadError, RuntimeFailureError, UsageError

MODULE = "/usr/share/mender/modules/v3/icis-class-update"
MAX_SECRET_BYTES = 16384


def main() -> int:
    """Do what the arguments ask; return the exit code."""
    given = _parser().parse_args()
    run: Callable[[argparse.Namespace], str] = given.run
    try:
        said, stream, code = run(given), sys.stdout, 0
    except ICISDeployError as error:
        said, stream, code = f"Error: {printable(' '.join(str(error).split()))}", sys.stderr, error.exit_code
    # What was brought is there, and what was refused is refused, whether or not somebody can read of it.
    try:
        if stream is not None:
            print(said, file=stream, flush=True)
    except (OSError, UnicodeEncodeError):
        with suppress(OSError), Path(os.devnull).open("w") as nothing:  # Python writes once more when it ends
            os.dup2(nothing.fileno(), stream.fileno())
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], str], *positional: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, allow_abbrev=False)
        one.set_defaults(run=run)
        for each in positional:
            one.add_argument(each)
        return one

    for name, run, what in (
        ("push-updates", _push_updates, "files"),
        ("push-bundle", _push_bundle, "folder"),
        ("pull-updates", _pull_updates, "inbox"),
        ("pull-bundle", _pull_bundle, "folder"),
    ):
        one = action(name, run, "reference")
        one.add_argument(what, type=Path, nargs="+" if what == "files" else None)
        one.add_argument("--user")
        one.add_argument("--password-file", type=Path)
        if what == "inbox":
            one.add_argument("--state", type=Path, required=True, help="a folder of its own, for what was brought")
    one = action("tuf", _tuf, "repository", "target")
    one.add_argument("inbox", type=Path)
    one.add_argument("--root", type=Path, required=True, help="the root metadata that was built into the device")
    one.add_argument("--state", type=Path, required=True, help="a folder of its own, for the metadata of TUF")
    one = action("hawkbit", _hawkbit, "server")
    one.add_argument("--device", required=True, help="its name on the server, the controller's id")
    one.add_argument("--token-file", type=Path, required=True, help="with a line such as: TargetToken 5b2…")
    one.add_argument("--work", type=Path, required=True, help="a folder of its own")
    one.add_argument("--tenant", default="DEFAULT")
    one.add_argument("--module", default=MODULE, help=f"the update module; {MODULE}")
    return parser


def _repository(given: argparse.Namespace) -> oci.Repository:
    credentials = None
    if (given.user is None) != (given.password_file is None):
        raise UsageError(
            "--user and --password-file are of use together alone.",
            found="one of them",
            expected="both, or none for a registry that lets everybody in",
            hint="Give the other one as well.",
        )
    if given.user is not None:
        credentials = (given.user, _secret(given.password_file))
    return oci.Repository(oci.Reference.parse(given.reference), credentials)


def _push_updates(given: argparse.Namespace) -> str:
    paths = {path.name: path for path in given.files}
    unfit = next((path for path in given.files if path.suffix != ".icis" or paths[path.name] != path), None)
    if unfit is not None:
        raise UsageError(
            f"{unfit} cannot be pushed under the name {unfit.name}.",
            found=unfit.name,
            expected="names that end in .icis, each for one file; folders are left out",
            where=unfit,
            hint="Rename it: devices take no other name, and apply files in the order of names.",
        )
    sha256 = _repository(given).push(paths, oci.UPDATE_TYPE)
    return f"{given.reference}@sha256:{sha256}"


def _push_bundle(given: argparse.Namespace) -> str:
    sha256 = _repository(given).push(oci.files_of_bundle(given.folder), oci.BUNDLE_TYPE)
    return f"{given.reference}@sha256:{sha256}"


def _pull_updates(given: argparse.Namespace) -> str:
    repository, brought = _repository(given), given.state / "brought"
    artifact = repository.resolve()
    with suppress(LoadError):  # without the note, or with a damaged one, it is brought again, which a device notices
        note = read_plain(brought, max_bytes=MAX_SECRET_BYTES, what="note of the carrier", error_type=LoadError)
        if note == artifact.sha256.encode():
            return "nothing new"
    paths = repository.pull_updates(artifact, given.inbox)
    _make(given.state)
    write_file(brought, artifact.sha256.encode())
    return "\n".join(map(str, paths))


def _pull_bundle(given: argparse.Namespace) -> str:
    repository = _repository(given)
    repository.pull_bundle(repository.resolve(), given.folder)
    return f"{given.folder}: open it with the keys that you trust, or ask icis-deploy verify-bundle first"


def _tuf(given: argparse.Namespace) -> str:
    address = given.repository.rstrip("/")
    found = tuf_repository.fetch_target(
        metadata_url=f"{address}/metadata/",
        targets_url=f"{address}/targets/",
        target=given.target,
        root=given.root,
        state=given.state,
        out=given.inbox / Path(given.target).name,
    )
    return "nothing new" if found is None else str(found)


def _hawkbit(given: argparse.Namespace) -> str:
    _make(given.work)
    target = hawkbit.Target(
        url=given.server,
        controller=given.device,
        authorization=_secret(given.token_file),
        module=[given.module],
        work=given.work,
        tenant=given.tenant,
    )
    outcome = target.poll()
    if outcome.succeeded is False:
        raise RuntimeFailureError(f"Action {outcome.action} failed, and the server knows. {' '.join(outcome.details)}")
    return "nothing to do" if outcome.action is None else f"action {outcome.action}: {' '.join(outcome.details)}"


def _secret(path: Path) -> str:
    data = read_plain(path, max_bytes=MAX_SECRET_BYTES, what="file of a secret", error_type=LoadError)
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is no text.", found="other bytes", expected="one line of text", where=path) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeFailureError(f"Cannot make {folder}: {error.strerror}.", where=folder) from error


if __name__ == "__main__":
    sys.exit(main())
