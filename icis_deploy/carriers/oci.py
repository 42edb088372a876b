"""Class updates and bundles as artifacts in an OCI registry: pushed, and pulled with every digest compared here.

An artifact is an image manifest without an image (OCI image specification 1.1): its `artifactType` says what it is, and
each file is a layer, named by the annotation `org.opencontainers.image.title`, as ORAS has it. A bundle is one artifact
of all its files, so that what did not change is neither pushed nor stored again. Both work with `oras` as well; what a
registry sends is compared with the manifest's digests, and the manifest with the reference's, if it has one.

A digest says that the bytes are those that were pushed. Who made them, a device asks the signature in them.
"""

# Why: docs/decisions/0119.

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from icis_deploy.bundle.manifest import MANIFEST_NAME
from icis_deploy.carriers.transfer import Answer, fetch_file, is_of_server, parts_of, place_in, refusal, request
from icis_deploy.common.files import new_folder, sha256_of_file
from icis_deploy.common.json_fields import (
    integer_from_json,
    list_from_json,
    load_strict,
    object_from_json,
    text_from_json,
)
from icis_deploy.common.terminal_text import percent, reason_of, shown
from icis_deploy.errors import (
    CorruptFileError,
    IncompatibleError,
    LoadError,
    StorageError,
    TransferError,
    UsageError,
)

UPDATE_TYPE = "application/vnd.icis-deploy.update"
BUNDLE_TYPE = "application/vnd.icis-deploy.bundle"
MAX_UPDATE_BYTES = 1 << 28
"""Of all files of an artifact of class updates; a device has its own limit, which follows from its slots."""
_MAX_SHARE_OF_FREE = 0.9
"""Of the free disk, for a bundle: a disk that is full stops whatever else a device does."""
MAX_FILES = 128
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_EMPTY_TYPE, _EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_TITLE = "org.opencontainers.image.title"
_STATE = "state"
"""The folder in a bundle that is a device's own, and that no signature covers."""

_REFERENCE = re.compile(
    r"(?P<registry>[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?|\[[0-9A-Fa-f:]+\](?::[0-9]+)?)"
    r"/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@sha256:(?P<sha256>[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHALLENGE = re.compile(r'([A-Za-z]+)="([^"]*)"')
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_AGAIN = "Push it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an artifact is: `registry/repository:tag`, or `@sha256:…` for one that cannot change."""

    registry: str
    """Host, and port where it is not that of HTTPS."""

    repository: str

    tag: str | None = None

    sha256: str | None = None
    """Of the manifest, lower-case hexadecimal; `None` where the tag alone says which it is."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the parts of a reference; without tag and digest the tag is `latest`.

        Raises:
            UsageError: If it is none.
        """
        found = _REFERENCE.fullmatch(text)
        try:
            has_host = found is not None and bool(urlsplit(f"//{found['registry']}").hostname)
        except ValueError:  # brackets around what is no address of IPv6
            has_host = False
        if found is None or not has_host:
            raise UsageError(
                f"{shown(text)} names no artifact in a registry.",
                found=text,
                expected="registry/repository:tag or registry/repository@sha256:…",
                hint="For example registry.example/classes/camera:8.",
            )
        parts = found.groupdict()
        if parts["tag"] is None and parts["sha256"] is None:
            parts["tag"] = "latest"
        return cls(**parts)

    @property
    def url(self) -> str:
        """The repository's address: HTTP on this machine, HTTPS everywhere else."""
        host = urlsplit(f"//{self.registry}").hostname
        return f"{'http' if host in _LOCAL else 'https'}://{self.registry}/v2/{self.repository}/"

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.sha256 is None else f"@sha256:{self.sha256}"
        return f"{self.registry}/{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of an artifact."""

    title: str
    """Its path in a bundle, with `/`; the name of an update."""

    size: int
    """In bytes."""

    sha256: str
    """Lower-case hexadecimal."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a manifest says."""

    artifact_type: str
    layers: tuple[Layer, ...]
    sha256: str
    """Of the manifest, lower-case hexadecimal."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(layer.size for layer in self.layers)


@dataclass(slots=True)
class Repository:
    """One repository of a registry, with what it takes to be let in.

    Example:
        from icis_deploy.carriers.oci import UPDATE_TYPE, Reference, Repository
        reference = Reference.parse("registry.example/classes/camera:8")
        repository = Repository(reference)
        repository.pull_updates(repository.resolve(), Path("inbox"))
    """

    reference: Reference
    credentials: tuple[str, str] | None = None
    """User and password; `None` for a registry that lets everybody in."""

    _authorization: str | None = field(default=None, init=False, repr=False)

    def push(self, paths: Mapping[str, Path], artifact_type: str) -> str:
        """Push files as one artifact under the reference's tag; return the SHA-256 of its manifest.

        Nothing moves the tag before all files are there.

        Args:
            paths: The files by title.
            artifact_type: `UPDATE_TYPE` or `BUNDLE_TYPE`.

        Raises:
            UsageError: If the reference has no tag.
            LoadError: If a file cannot be read.
            TransferError: If the registry refuses one, cannot be reached, or keeps other bytes than were sent.
        """
        if self.reference.tag is None:
            raise UsageError(
                f"{self.reference} has no tag to push to.",
                found=str(self.reference),
                expected="registry/repository:tag",
                hint="Write it behind the repository with a colon, such as registry.example/updates:1.",
            )
        layers = [self._push_file(path, title, artifact_type) for title, path in sorted(paths.items())]
        config = _described(_EMPTY, _EMPTY_TYPE)
        self._push_blob(_EMPTY, hashlib.sha256(_EMPTY).hexdigest(), len(_EMPTY))
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": config,
            "layers": layers,
        }
        data = json.dumps(manifest, indent=1).encode()
        url = urljoin(self.reference.url, f"manifests/{self.reference.tag}")
        answer = self._send(url, "PUT", {"Content-Type": _MANIFEST_TYPE}, data)
        if answer.status != 201:
            raise refusal(answer, wanted="a place for the artifact")
        sha256 = hashlib.sha256(data).hexdigest()
        kept = self._manifest(f"sha256:{sha256}")
        if kept != data:
            raise TransferError(
                f"{self.reference} keeps another manifest than was pushed.",
                found=hashlib.sha256(kept).hexdigest(),
                expected=sha256,
                where=url,
                hint="Look for a proxy that changes what it passes on.",
            )
        return sha256

    def resolve(self) -> Artifact:
        """Return what the reference names now.

        Raises:
            TransferError: If the registry cannot be reached, or has no such artifact.
            CorruptFileError: If it answers with another manifest than the reference's digest says, or with none.
            IncompatibleError: If it is an artifact of something else.
        """
        wanted = self.reference.tag if self.reference.sha256 is None else f"sha256:{self.reference.sha256}"
        data = self._manifest(str(wanted))
        sha256 = hashlib.sha256(data).hexdigest()
        if self.reference.sha256 not in {None, sha256}:
            raise CorruptFileError(
                f"{self.reference} has another manifest: SHA-256 {sha256[:16]}…. Nothing was kept.",
                found=sha256,
                expected=self.reference.sha256,
                where=str(self.reference),
                hint="Somebody, or a damaged disk, changed what the registry holds. " + _AGAIN,
            )
        return _artifact_of(data, sha256, where=str(self.reference))

    def pull_updates(self, artifact: Artifact, folder: Path) -> tuple[Path, ...]:
        """Put the class updates of an artifact into a folder, such as an inbox; each appears there whole.

        They come in the order of their names, in which an inbox applies them: one that came before the one that it
        follows would be refused, and gone. Other clients list files as they were given.

        Args:
            artifact: From `resolve`.
            folder: Must exist. A file of the same name is replaced.

        Raises:
            IncompatibleError: If it is no artifact of class updates.
            CorruptFileError: If a file's name is a path, all are too long, or the registry sends other bytes; files
                before it in the manifest are there.
            TransferError, StorageError: As `fetch_file`.
        """
        _check_type(artifact, UPDATE_TYPE, self.reference)
        if artifact.size > MAX_UPDATE_BYTES:
            raise CorruptFileError(
                f"{self.reference} has {artifact.size} bytes, which no class update has. Not read.",
                found=artifact.size,
                expected=f"at most {MAX_UPDATE_BYTES} bytes",
                where=str(self.reference),
                hint="Check the reference: it names something else than a class update.",
            )
        for layer in artifact.layers:
            if "/" in layer.title or not layer.title.endswith(".icis"):
                raise CorruptFileError(
                    f"{self.reference} names a class update {shown(layer.title)}.",
                    found=layer.title,
                    expected="a name that ends in .icis, without a folder",
                    where=str(self.reference),
                    hint="Push it again with such a name.",
                )
        layers = sorted(artifact.layers, key=lambda layer: layer.title)
        return tuple(self._pull_file(layer, folder) for layer in layers)

    def pull_bundle(self, artifact: Artifact, folder: Path) -> tuple[Path, ...]:
        """Put the bundle of an artifact into a new folder, which appears whole.

        Args:
            artifact: From `resolve`.
            folder: Must not exist.

        Raises:
            IncompatibleError: If it is no artifact of a bundle.
            UsageError: If `folder` exists.
            CorruptFileError: If the registry sends other bytes, or a state, which no signature of a bundle covers:
                whoever opens the bundle would believe it.
            StorageError: If the disk has too little room for it.
            TransferError, StorageError: As `fetch_file`.
        """
        _check_type(artifact, BUNDLE_TYPE, self.reference)
        for layer in artifact.layers:
            if _is_state(layer.title):
                raise CorruptFileError(
                    f"{self.reference} brings {shown(layer.title)}, of the state of a device. Nothing was fetched.",
                    found=layer.title,
                    expected="files of a bundle as it was exported",
                    where=str(self.reference),
                    hint="Push the bundle again, which leaves its state out.",
                )
        with new_folder(folder, overwrite=False, marker=MANIFEST_NAME) as building:
            self._check_room(artifact, building)
            for layer in artifact.layers:
                (building / layer.title).parent.mkdir(parents=True, exist_ok=True)
                self._pull_file(layer, building)
        return tuple(folder / layer.title for layer in artifact.layers)

    def _check_room(self, artifact: Artifact, folder: Path) -> None:
        """Raise `StorageError` if an artifact, by the sizes it states, would fill the disk that others need as well."""
        free = shutil.disk_usage(folder).free
        if artifact.size > _MAX_SHARE_OF_FREE * free:
            raise StorageError(
                f"{self.reference} has {artifact.size} bytes; the disk has {free} free, of which a bundle may take "
                f"{percent(_MAX_SHARE_OF_FREE)}. Nothing was fetched.",
                found=artifact.size,
                expected=f"at most {int(_MAX_SHARE_OF_FREE * free)} bytes",
                where=folder.parent,
                hint="Free some space, or look into the registry whether it is the bundle that you mean.",
            )

    def _pull_file(self, layer: Layer, folder: Path) -> Path:
        url = urljoin(self.reference.url, f"blobs/sha256:{layer.sha256}")
        headers = self._auth(url)
        fetch_file(url, folder / layer.title, size=layer.size, sha256=layer.sha256, headers=headers)
        return folder / layer.title

    def _manifest(self, wanted: str) -> bytes:
        url = urljoin(self.reference.url, f"manifests/{wanted}")
        answer = self._send(url, "GET", {"Accept": _MANIFEST_TYPE})
        if answer.status != 200:
            raise refusal(answer, wanted=str(self.reference))
        return answer.body

    def _push_file(self, path: Path, title: str, artifact_type: str) -> dict[str, Any]:
        with _as_load_error(path):
            sha256, size = sha256_of_file(path), path.stat().st_size
            self._push_blob(path, sha256, size)
        return {
            "mediaType": artifact_type,
            "digest": f"sha256:{sha256}",
            "size": size,
            "annotations": {_TITLE: title},
        }

    def _push_blob(self, content: Path | bytes, sha256: str, size: int) -> None:
        url = urljoin(self.reference.url, f"blobs/sha256:{sha256}")
        if self._send(url, "HEAD").status == 200:
            return
        begun = self._send(urljoin(self.reference.url, "blobs/uploads/"), "POST", {"Content-Length": "0"}, b"")
        if begun.status != 202 or "location" not in begun.headers:
            raise refusal(begun, wanted="a place for a file")
        place = place_in(begun, begun.headers["location"], what="the place for a file")
        place += ("&" if parts_of(place).query else "?") + urlencode({"digest": f"sha256:{sha256}"})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if isinstance(content, bytes):
            done = self._send(place, "PUT", headers, content)
        else:
            with content.open("rb") as file:
                headers |= self._auth(place)
                done = request(place, method="PUT", headers=headers, body=file)
        if done.status != 201:
            raise refusal(done, wanted="a place for a file")

    def _send(
        self, url: str, method: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        is_own = is_of_server(url, self.reference.url)
        for is_last in (False, True):
            answer = request(url, method=method, headers=dict(headers or {}) | self._auth(url), body=body)
            if is_last or not is_own or answer.status != 401 or "www-authenticate" not in answer.headers:
                break
            self._authorization = self._let_in(answer)
        return answer

    def _auth(self, url: str) -> dict[str, str]:
        """Return the header that lets in; none where a registry has another server keep its files."""
        if self._authorization is None or not is_of_server(url, self.reference.url):
            return {}
        return {"Authorization": self._authorization}

    def _let_in(self, answer: Answer) -> str:
        """Return the header that a challenge asks for, by the specification of the registry's tokens."""
        scheme, _, rest = answer.headers["www-authenticate"].partition(" ")
        basic = None
        if self.credentials is not None:
            basic = "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()
        if scheme.lower() == "basic" and basic is not None:
            return basic
        fields = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in fields:
            raise refusal(answer, wanted=str(self.reference), hint="Give a user and a password.")
        query = {name: fields[name] for name in ("service", "scope") if name in fields}
        realm = place_in(answer, fields["realm"], what="where a token is given")
        if parts_of(realm).scheme != "https" and parts_of(answer.url).scheme == "https":
            raise TransferError(
                f"{self.reference} asks for the password over plain HTTP, at {shown(realm)}.",
                found=realm,
                expected="an address of HTTPS",
                where=answer.url,
                hint="Use a registry that answers over HTTPS.",
            )
        join = "&" if parts_of(realm).query else "?"
        token = request(
            f"{realm}{join}{urlencode(query, quote_via=quote)}",
            headers={} if basic is None else {"Authorization": basic},
        )
        if token.status != 200:
            raise refusal(token, wanted="a token")
        try:
            # Servers may put anything else next to it, so this is not the strict reader of our own files.
            said = json.loads(token.body)
            return f"Bearer {text_from_json(said.get('token', said.get('access_token')), where='token')}"
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise TransferError(
                f"{shown(realm)} answers with no token: {reason_of(error)}.", where=realm, hint="Check the registry."
            ) from error


def files_of_bundle(folder: Path) -> dict[str, Path]:
    """Return what of a bundle is pushed, by title: all of it but `state/`, which is a device's own, and hidden files.

    Raises:
        LoadError: If it is no bundle, or one of too many files for an artifact.
    """
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    found = {title: path for title, path in paths.items() if not _is_state(title)}
    if MANIFEST_NAME not in found or len(found) > MAX_FILES:
        raise LoadError(
            f"{folder} is no bundle to push: it has {len(found)} files.",
            found=len(found),
            expected=f"{MANIFEST_NAME}, and at most {MAX_FILES} files",
            where=folder,
            hint="Give the folder of one bundle.",
        )
    return found


def _is_state(title: str) -> bool:
    """Say whether a file is of a device's state, also where a file system takes upper and lower case for the same.

    Windows takes a name with points at its end for the one without them.
    """
    return title.partition("/")[0].lower().rstrip(".") == _STATE


def _described(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


@contextmanager
def _as_load_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read: {error.strerror or error}.",
            found=error.strerror or str(error),
            where=path,
            hint="Check the path.",
        ) from error


def _check_type(artifact: Artifact, wanted: str, reference: Reference) -> None:
    if artifact.artifact_type != wanted:
        raise IncompatibleError(
            f"{reference} is an artifact of {shown(artifact.artifact_type)}, not of {wanted}.",
            found=artifact.artifact_type,
            expected=wanted,
            where=str(reference),
            hint="Pull what was pushed as such.",
        )


def _artifact_of(data: bytes, sha256: str, *, where: str) -> Artifact:
    """Return what a manifest says; its unknown fields are others' business.

    Raises:
        CorruptFileError: If it is no manifest of files.
    """
    try:
        fields = object_from_json(load_strict(data))
        listed = [object_from_json(layer, where="layers") for layer in list_from_json(fields["layers"], where="layers")]
        layers = tuple(_layer_of(layer) for layer in listed)
        titles = {layer.title for layer in layers}
        folders = {str(folder) for title in titles for folder in PurePosixPath(title).parents}
        if not folders.isdisjoint(titles):
            raise ValueError(f"it lists {shown(min(folders & titles))} as a file and as a folder")
        if not 0 < len(layers) <= MAX_FILES or len(titles) < len(layers):
            raise ValueError(f"it lists {len(layers)} files with {len(titles)} names")
        return Artifact(text_from_json(fields.get("artifactType", ""), where="artifactType"), layers, sha256)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{where} has no manifest of files: {reason_of(error)}.", found=reason_of(error), where=where, hint=_AGAIN
        ) from error


def _layer_of(fields: Mapping[str, Any]) -> Layer:
    annotations = object_from_json(fields.get("annotations", {}), where="annotations")
    title = text_from_json(annotations[_TITLE], where=_TITLE)
    digest = _DIGEST.fullmatch(text_from_json(fields["digest"], where="digest"))
    size = integer_from_json(fields["size"], where="size")
    if digest is None or size < 0:
        raise ValueError(f"the digest or the size of {shown(title)} is none")
    if not _is_plain(title):
        raise ValueError(f"{shown(title)} names no file below a folder")
    return Layer(title, size, digest[1])


def _is_plain(title: str) -> bool:
    """Say whether a title may be written to on every system: it leads nowhere else and hides nothing."""
    parts: Sequence[str] = title.split("/")
    return len(title) < 200 and all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", part) for part in parts)
