"""One poll of a hawkBit server over its Direct Device Integration API, for the update module of `scripts/fleet`.

The server says which files a device shall have, and wants to hear what became of them. The module, which Mender calls
as well, installs, checks and rolls back: nothing of that is decided here.

    poll -> deployment -> files, each by size and SHA-256 -> ArtifactInstall -> ArtifactCommit -> feedback

A device may lose its power at any point: what was decided about an action is written down before the server hears of
it, so an action that comes again is answered, not done again. A server that is not there leaves the device as it is.
"""

# Why: docs/decisions/0120.

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from icis_deploy.carriers.transfer import Answer, fetch_file, is_of_server, parts_of, refusal, request
from icis_deploy.common.files import read_plain, write_failure, write_file
from icis_deploy.common.syncing import CLOSE_ON_EXEC
from icis_deploy.common.terminal_text import MAX_REASON, printable, reason_of, shown
from icis_deploy.errors import (
    CorruptFileError,
    ICISDeployError,
    LoadError,
    RuntimeFailureError,
    TransferError,
    UsageError,
)

MAX_UPDATE_BYTES = 1 << 28
MAX_FILES = 16
_JSON = "application/json"
_MAX_NOTE_BYTES = 1 << 16
_MAX_ACTION = 100
_SECONDS_OF_A_STATE = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a poll did."""

    action: str | None = None
    """The server's number of the action; `None` if there was nothing to do."""

    succeeded: bool | None = None
    """Whether its files are in effect; `None` if there was nothing to do, or it was cancelled before it began."""

    details: tuple[str, ...] = ()
    """What the server was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str
    url: str
    size: int
    sha256: str


@dataclass(slots=True, kw_only=True)
class Target:
    """A device as a hawkBit server knows it.

    Example:
        target = Target(
            url="https://hawkbit.example", controller="camera-7", authorization="TargetToken 5b2…",
            module=["/usr/share/mender/modules/v3/icis-class-update"], work=Path("/var/lib/icis-deploy/hawkbit"),
        )
        target.poll()
    """

    url: str
    """The server's."""

    controller: str
    """The device's name there."""

    authorization: str
    """`TargetToken …` or `GatewayToken …`."""

    module: Sequence[str]
    """The update module, as a command; it is called with a state and a folder."""

    work: Path
    """A folder of the client's own, which is made if it is not there."""

    tenant: str = "DEFAULT"
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What the server is told about the device where it asks."""

    def poll(self) -> Outcome:
        """Ask once what there is to do, do it, and tell the server.

        Raises:
            TransferError: If the server cannot be reached, or an answer is none of this API. What was installed stays
                so; the server hears of it at the next poll.
            StorageError: If the disk refuses before anything was installed.
            RuntimeFailureError: If another poll works in the same folder, or the module cannot be run.
        """
        with self._alone():
            return self._poll()

    def _poll(self) -> Outcome:
        base = f"{self.url.rstrip('/')}/{quote(self.tenant, safe='')}/controller/v1/{quote(self.controller, safe='')}"
        links = _links(self._get(base))
        if "configData" in links and self.attributes:
            self._put(links["configData"], {"mode": "merge", "data": dict(self.attributes)})
        if "cancelAction" in links:
            return self._cancel(links["cancelAction"])
        if "deploymentBase" in links:
            return self._deploy(links["deploymentBase"])
        return Outcome()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one poll at a time work: a second one would find the first one's files refused, and roll them back."""
        try:
            import fcntl
        except ImportError:  # Windows, which has no shell for the module either
            yield
            return
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.work, os.O_RDONLY | CLOSE_ON_EXEC)
        except OSError as error:
            raise write_failure(self.work, error, after="Nothing was installed.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise RuntimeFailureError(
                f"Another poll works in {self.work}.",
                found="a lock on it",
                expected="one poll at a time",
                where=self.work,
                hint="Wait until it has ended; it tells the server what it did.",
            ) from error
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            os.close(descriptor)

    def _cancel(self, url: str) -> Outcome:
        said = self._get(url)
        action = _action(_member(said, "cancelAction", dict), "stopId")
        if self._decided(action) is not None:
            # Classes that are in effect are taken back by a new update, or an operator; the server must know.
            text = "The action was finished before it was cancelled."
            self._tell(url, _action(said, "id"), "rejected", "none", (text,))
            return Outcome(action=action, details=(text,))
        text = "Nothing was installed."
        if self._is_begun(action):
            # It lost its power half way, perhaps with classes in effect.
            is_back, more = self._call("ArtifactRollback", self._current)
            if not is_back:
                details = ("It had begun, and the rollback failed.", *more)
                self._tell(url, _action(said, "id"), "rejected", "none", details)
                return Outcome(action=action, details=details)
            shutil.rmtree(self._current, ignore_errors=True)
            text = "It had begun, and was rolled back."
        self._tell(url, _action(said, "id"), "closed", "success", (text,))
        return Outcome(action=action, details=(text,))

    def _deploy(self, url: str) -> Outcome:
        said = self._get(url)
        action = _action(said, "id")
        deployment = _member(said, "deployment", dict)
        decided = self._decided(action)
        if decided is None:
            if "skip" in (deployment.get("download"), deployment.get("update")) or (
                deployment.get("maintenanceWindow") == "unavailable"
            ):
                return Outcome(action=action, details=("The server lets it wait.",))
            decided = self._install(action, deployment)
        succeeded, details = decided
        self._tell(url, action, "closed", "success" if succeeded else "failure", details)
        return Outcome(action=action, succeeded=succeeded, details=details)

    def _install(self, action: str, deployment: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
        folder, is_begun = self._current, self._is_begun(action)
        try:
            if not is_begun:
                shutil.rmtree(folder, ignore_errors=True)
            (folder / "files").mkdir(parents=True, exist_ok=True)
            (folder / "tmp").mkdir(exist_ok=True)
        except OSError as error:
            raise write_failure(folder, error, after="Nothing was installed.") from error
        write_file(self.work / "begun", action.encode())
        try:
            for file in _files_of(deployment):
                # A store of files elsewhere is somebody else's: it gets the request without the token.
                headers = self._auth if is_of_server(file.url, self.url) else {}
                fetch_file(file.url, folder / "files" / file.name, size=file.size, sha256=file.sha256, headers=headers)
        except CorruptFileError as error:
            said: tuple[str, ...] = (reason_of(error),)
            if not is_begun:
                return self._decide(action, False, said)
            installed = False
        else:
            installed, said = self._call("ArtifactInstall", folder)
        if installed:
            installed, said = self._call("ArtifactCommit", folder)
        if not installed:
            is_back, more = self._call("ArtifactRollback", folder)
            said += ("Rolled back.",) if is_back else ("The rollback failed, too.", *more)
        # The module forgets in Cleanup what it applied: if the power failed in between, it would apply that again.
        return self._decide(action, installed, said or ("In effect.",), after="Cleanup")

    def _call(self, state: str, folder: Path) -> tuple[bool, tuple[str, ...]]:
        """Call the module; return whether it succeeded, and the last that it said if not."""
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own command
                [*self.module, state, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeFailureError(
                f"The update module {shown(self.module[0])} cannot be run: {reason_of(error)}.",
                found=reason_of(error),
                where=self.module[0],
                hint="Install icis-class-update, of the fleet scripts, and make it executable.",
            ) from error
        with process:
            try:
                _, stderr = process.communicate(timeout=_SECONDS_OF_A_STATE)
            except subprocess.TimeoutExpired:  # such as a health check that hangs: the server must hear of it
                _kill(process)
                return False, (f"{state}: it had not ended after {_SECONDS_OF_A_STATE} seconds.",)
            except BaseException:
                _kill(process)
                raise
        if process.returncode == 0:
            return True, ()
        lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        last = printable(lines[-1], max_length=MAX_REASON) if lines else f"exit code {process.returncode}"
        return False, (f"{state}: {last}",)

    def _decide(
        self, action: str, succeeded: bool, details: tuple[str, ...], *, after: str | None = None
    ) -> tuple[bool, tuple[str, ...]]:
        """Write down what became of an action, before anybody hears of it; then call the module's state `after`."""
        told = {"action": action, "succeeded": succeeded, "details": list(details)}
        write_file(self.work / "decided", json.dumps(told).encode())
        if after is not None:
            self._call(after, self._current)
        shutil.rmtree(self._current, ignore_errors=True)
        return succeeded, details

    def _decided(self, action: str) -> tuple[bool, tuple[str, ...]] | None:
        told = _noted(self.work / "decided")
        try:
            fields = json.loads(told)
            details = tuple(map(str, fields["details"]))
            return (bool(fields["succeeded"]), details) if fields["action"] == action else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _is_begun(self, action: str) -> bool:
        """Say whether this action, and none after it, was begun, and what it left is still there."""
        return _noted(self.work / "begun").decode("utf-8", "replace") == action and self._current.is_dir()

    @property
    def _current(self) -> Path:
        return self.work / "current"

    @property
    def _auth(self) -> dict[str, str]:
        return {"Authorization": self.authorization}

    def _get(self, url: str) -> dict[str, Any]:
        answer = request(url, headers=self._auth | {"Accept": f"application/hal+json, {_JSON}"})
        if answer.status != 200:
            raise refusal(answer, wanted="the device's actions", hint=_hint_of(answer))
        try:
            said = json.loads(answer.body)  # a server may say more than is read here
        except (ValueError, RecursionError) as error:
            raise _no_answer(url, reason_of(error)) from error
        if not isinstance(said, dict):
            raise _no_answer(url, "it is no object")
        parts_of(self.url)
        for link in _links(said).values():
            if not _is_address(link) or not is_of_server(link, self.url):
                raise _no_answer(url, f"a link leads to another server, {shown(link)}, which must not get the token")
        return said

    def _put(self, url: str, fields: Mapping[str, Any]) -> None:
        self._send(url, "PUT", fields)

    def _tell(self, url: str, action: str, execution: str, finished: str, details: tuple[str, ...]) -> None:
        status = {"execution": execution, "result": {"finished": finished}, "details": list(details)}
        place = parts_of(url)._replace(query="", fragment="").geturl()
        self._send(f"{place}/feedback", "POST", {"id": action, "status": status})

    def _send(self, url: str, method: str, fields: Mapping[str, Any]) -> None:
        headers = self._auth | {"Content-Type": _JSON, "Accept": f"application/hal+json, {_JSON}"}
        answer = request(url, method=method, headers=headers, body=json.dumps(fields).encode())
        # 410: the server has closed the action meanwhile, so there is nobody left to tell.
        if answer.status not in {200, 201, 202, 204, 410}:
            raise refusal(answer, wanted="ear to the device", hint=_hint_of(answer))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a module with the commands that it started, of which one could change the bundle after a rollback."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _noted(path: Path) -> bytes:
    """Return what this client wrote down; nothing where it did not, or the disk lost it."""
    try:
        return read_plain(path, max_bytes=_MAX_NOTE_BYTES, what="note of the carrier", error_type=LoadError)
    except LoadError:
        return b""


def _files_of(deployment: Mapping[str, Any]) -> list[_File]:
    """Return the files of a deployment, of all its software modules, in the order of their names."""
    files: list[_File] = []
    try:
        for chunk in _member(deployment, "chunks", list):
            for artifact in _member(chunk, "artifacts", list):
                links = _links(artifact)
                files.append(
                    _File(
                        name=_member(artifact, "filename", str),
                        url=links.get("download") or links["download-http"],
                        size=_member(artifact, "size", int),
                        sha256=_member(_member(artifact, "hashes", dict), "sha256", str).lower(),
                    )
                )
    except (KeyError, TransferError) as error:
        raise CorruptFileError(
            f"The deployment's list of files cannot be read: {reason_of(error)}.",
            hint="Ask the server's operator: this is no answer of hawkBit's direct device integration.",
        ) from error
    names = [file.name for file in files]
    plain = all(map(_is_plain, names))
    if not 0 < len(files) <= MAX_FILES or len(set(names)) < len(names) or not plain:
        raise CorruptFileError(
            f"The deployment has {len(files)} files with the names {shown(names[:4])}.",
            hint="Give the software module one file, the class update.",
        )
    unfit = next((file for file in files if file.size < 0 or not _is_address(file.url)), None)
    if unfit is not None:
        raise CorruptFileError(
            f"The deployment has a file of {shown(unfit.size)} bytes at {shown(unfit.url)}.",
            hint="Ask the server's operator: this is no answer of hawkBit's direct device integration.",
        )
    if sum(file.size for file in files) > MAX_UPDATE_BYTES:
        raise CorruptFileError(
            f"The deployment has more than {MAX_UPDATE_BYTES} bytes, which no class update has.",
            hint="Give the software module one file, the class update.",
        )
    return sorted(files, key=lambda file: file.name)


def _is_plain(name: str) -> bool:
    """Say whether a file may have a name: in this folder, seen, and one that any file system takes."""
    is_here = name == Path(name).name and not name.startswith(".")
    return is_here and name.isprintable() and 0 < len(name.encode()) < 200


def _is_address(url: str) -> bool:
    try:
        parts_of(url)
    except UsageError:
        return False
    return True


def _links(said: Mapping[str, Any]) -> dict[str, str]:
    links = said.get("_links", {})
    if not isinstance(links, dict):
        return {}
    found = {name: link.get("href") for name, link in links.items() if isinstance(link, dict)}
    return {name: href for name, href in found.items() if isinstance(href, str)}


def _member(said: Any, name: str, kind: Any) -> Any:
    value = said.get(name) if isinstance(said, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TransferError(
            f"An answer of the server has {shown(value)} as its {name!r}.",
            found=shown(value),
            expected=f"{name!r} of hawkBit's API",
            hint="Check the server's address.",
        )
    return value


def _action(said: Any, name: str) -> str:
    """Return the number of an action, which hawkBit writes as text; this client writes it down."""
    value = str(_member(said, name, str | int))
    if not value.isprintable() or not 0 < len(value) <= _MAX_ACTION:
        raise TransferError(
            f"An answer of the server has {shown(value)} as its {name!r}.",
            found=shown(value),
            expected="the number of an action",
            hint="Check the server's address.",
        )
    return value


def _hint_of(answer: Answer) -> str:
    if answer.status in {401, 403}:
        return "Check the token, and whether the server takes tokens of this kind."
    return "Check the tenant and the device's name." if answer.status == 404 else "Try again later."


def _no_answer(url: str, why: str) -> ICISDeployError:
    return TransferError(
        f"{url} does not answer as hawkBit does: {why}.", found=why, where=url, hint="Check the server's address."
    )
