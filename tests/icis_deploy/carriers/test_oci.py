"""Artifacts in a real OCI registry, Debian's docker-registry: pushed, pulled, and changed on its disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.carriers.oci import (
    BUNDLE_TYPE,
    UPDATE_TYPE,
    Artifact,
    Layer,
    Reference,
    Repository,
    _artifact_of,
    files_of_bundle,
)
from icis_deploy.errors import (
    CorruptFileError,
    IncompatibleError,
    LoadError,
    StorageError,
    TransferError,
    UsageError,
)
from icis_deploy.runtime.device import Device
from icis_deploy.runtime.inbox import process_inbox
from icis_deploy.updates.signing import keygen
from testing.bundles import files_in, make_update, signed_bytes, trust, write_bundle
from testing.local_server import serving

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "fleet" / "icis_carrier.py"
REGISTRY = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(REGISTRY is None, reason="Debian's docker-registry is not installed")
CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {disk}}}}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""


def started(folder, auth=""):
    """Start a registry; return its process and its host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "registry.yml"
    config.write_text(CONFIG.format(disk=folder / "registry", port=port, auth=auth))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([REGISTRY, "serve", config], stdout=log, stderr=log)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.02)
    return process, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry's host and disk; tests use repositories of their own."""
    folder = tmp_path_factory.mktemp("oci")
    process, host = started(folder)
    yield host, folder / "registry"
    process.terminate()
    process.wait()


@pytest.fixture
def reference(registry, request):
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return Reference.parse(f"{registry[0]}/classes/{name}:8")


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "KEY")


def written(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.icis").write_bytes(data)
    return {f"{name}.icis": folder / f"{name}.icis" for name in files}


def blob(registry, data):
    """Return where the registry keeps these bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    return registry[1] / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"


@needs_registry
def test_an_update_comes_back_and_is_applied(reference, key, tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    trust(bundle, key.public_path)
    data = signed_bytes(make_update("okapi"), key.private_path)
    pushed = Repository(reference).push(written(tmp_path / "out", new=data), UPDATE_TYPE)
    (tmp_path / "inbox").mkdir()

    repository = Repository(Reference.parse(f"{reference}@sha256:{pushed}"))
    (path,) = repository.pull_updates(repository.resolve(), tmp_path / "inbox")

    assert path.read_bytes() == data
    (taken,) = process_inbox(tmp_path / "inbox", bundle).files
    assert (taken.name, taken.reason) == ("new.icis", None)


@needs_registry
@pytest.mark.parametrize("how", ["bit", "longer", "shorter", "gone"])
def test_a_blob_that_was_changed_on_the_registrys_disk_is_refused(how, registry, reference, tmp_path):
    data = b"an update " + how.encode() * 100
    Repository(reference).push(written(tmp_path / "out", new=data), UPDATE_TYPE)
    changed = {"bit": bytes([data[0] ^ 1]) + data[1:], "longer": data + b"x", "shorter": data[:-1]}
    if how == "gone":
        blob(registry, data).unlink()
    else:
        blob(registry, data).write_bytes(changed[how])
    (tmp_path / "inbox").mkdir()

    repository = Repository(reference)
    with pytest.raises(TransferError if how == "gone" else CorruptFileError):
        repository.pull_updates(repository.resolve(), tmp_path / "inbox")

    assert list((tmp_path / "inbox").iterdir()) == []


@needs_registry
def test_a_manifest_that_was_changed_on_the_registrys_disk_is_refused_where_its_digest_is_known(
    registry, reference, tmp_path
):
    pushed = Repository(reference).push(written(tmp_path / "out", new=b"good", evil=b"evil"), UPDATE_TYPE)
    named = Reference.parse(f"{reference}@sha256:{pushed}")
    place = registry[1] / "docker/registry/v2/blobs/sha256" / pushed[:2] / pushed / "data"
    place.write_bytes(place.read_bytes().replace(b'"new.icis"', b'"now.icis"'))

    with pytest.raises((CorruptFileError, TransferError)):  # some registries notice by themselves
        Repository(named).resolve()


@needs_registry
def test_a_tag_moves_only_when_all_files_are_there(reference, tmp_path):
    files = written(tmp_path / "out", one=b"one")
    first = Repository(reference).push(files, UPDATE_TYPE)

    with pytest.raises(LoadError, match=r"missing\.icis"):
        Repository(reference).push(files | {"missing.icis": tmp_path / "missing.icis"}, UPDATE_TYPE)

    assert Repository(reference).resolve().sha256 == first
    assert Repository(reference).push(files, UPDATE_TYPE) == first  # the same artifact has the same digest


@needs_registry
def test_a_signed_bundle_comes_back_whole_and_opens_with_the_key(reference, key, tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    trust(bundle, key.public_path)
    icis_deploy.sign_bundle(bundle, key=key.private_path)
    pushed = files_of_bundle(bundle)
    Device.open(bundle).apply(signed_bytes(make_update("okapi"), key.private_path))  # `state/` is the device's own
    assert files_of_bundle(bundle) == pushed
    Repository(reference).push(pushed, BUNDLE_TYPE)

    repository = Repository(reference)
    repository.pull_bundle(repository.resolve(), tmp_path / "new")

    assert {name: data for name, data in files_in(tmp_path / "new").items() if data} == {
        name: path.read_bytes() for name, path in pushed.items()
    }
    assert Device.open(tmp_path / "new", trust=[key.public_path]).version == 0


@pytest.mark.parametrize(
    "title", ["state/journal.json", f"state/slots-{'0' * 64}.safetensors", "State/x", "state", "state./x"]
)
def test_no_registry_puts_a_state_into_a_bundle(title, tmp_path):
    """Its keys and rows would be believed, though the bundle around it is signed."""
    layers = tuple(Layer(name, 1, "0" * 64) for name in ("manifest.json", title))
    repository = Repository(Reference.parse("127.0.0.1:9/fleet:new"))

    with pytest.raises(CorruptFileError, match=r"of the state of a device\. Nothing was fetched"):
        repository.pull_bundle(Artifact(BUNDLE_TYPE, layers, "0" * 64), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_no_registry_fills_the_disk_by_a_bundle(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    layers = tuple(Layer(name, free, "0" * 64) for name in ("manifest.json", "model.onnx"))
    repository = Repository(Reference.parse("127.0.0.1:9/fleet:new"))

    with pytest.raises(StorageError, match=r"may take 90\.0 %\. Nothing was fetched") as caught:
        repository.pull_bundle(Artifact(BUNDLE_TYPE, layers, "0" * 64), tmp_path / "new")
    assert caught.value.found == 2 * free
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_is_nested_without_end_is_none():
    from icis_deploy.carriers.oci import _artifact_of

    for data in (b"[" * 100_000, b'{"layers":' * 50_000):
        with pytest.raises(CorruptFileError, match="no manifest of files"):
            _artifact_of(data, "0" * 64, where="x")


def test_a_file_that_is_a_folder_too_is_no_manifest_of_files():
    layers = [
        {"digest": f"sha256:{'0' * 64}", "size": 1, "annotations": {"org.opencontainers.image.title": title}}
        for title in ("targets/x/model", "targets")
    ]

    with pytest.raises(CorruptFileError, match="'targets' as a file and as a folder"):
        _artifact_of(json.dumps({"layers": layers}).encode(), "0" * 64, where="here")


def registry_that_names(place, seen):
    """Return a handler of a registry that lets in by password and has its files kept at another place."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, "Authorization" in self.headers))
            if "Authorization" not in self.headers:
                self.reply(401, ("WWW-Authenticate", 'Basic realm="here"'))
            elif self.command == "POST":
                self.reply(202, ("Location", place))
            else:
                self.reply(404)

        def reply(self, status, *headers):
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", "0")):
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_POST = do_PUT = do_GET = answer

        def log_message(self, *_arguments):
            pass

    return Handler


def test_a_password_is_not_sent_to_another_server_that_keeps_files(tmp_path):
    own, others = [], []
    with serving(registry_that_names("", others)) as store, serving(registry_that_names(f"{store}/x", own)) as url:
        repository = Repository(Reference.parse(f"{url.removeprefix('http://')}/a:1"), ("user", "secret"))
        with pytest.raises(TransferError, match="HTTP 401"):
            repository.push(written(tmp_path / "out", new=b"x"), UPDATE_TYPE)

    assert ("POST", True) in own
    assert others == [("PUT", False)]


@pytest.mark.parametrize("place", ["http://[::1", "file:///etc/passwd", "//["])
def test_a_place_that_is_no_address_is_named(place, tmp_path):
    with serving(registry_that_names(place, [])) as url:
        repository = Repository(Reference.parse(f"{url.removeprefix('http://')}/a:1"), ("user", "secret"))
        with pytest.raises(TransferError, match="no address of HTTP"):
            repository.push(written(tmp_path / "out", new=b"x"), UPDATE_TYPE)


def test_updates_come_in_the_order_in_which_an_inbox_applies_them(tmp_path):
    """Oras lists files as it was given them; an inbox that is watched takes each one as it appears."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.rpartition(":")[2])
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *_arguments):
            pass

    sha256 = hashlib.sha256(b"x").hexdigest()
    layers = tuple(Layer(title, 1, sha256) for title in ("3.icis", "1.icis", "2.icis"))
    with serving(Handler) as url:
        repository = Repository(Reference.parse(f"{url.removeprefix('http://')}/a:1"))
        paths = repository.pull_updates(Artifact(UPDATE_TYPE, layers, "0" * 64), tmp_path)

    assert [path.name for path in paths] == ["1.icis", "2.icis", "3.icis"]
    assert len(asked) == 3


def run_script(*arguments, **streams):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], text=True, check=False, timeout=60, **streams)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a/8.icis", "b/8.icis"], "a/8.icis cannot be pushed under the name 8.icis"),
        (["8.txt"], "8.txt cannot be pushed under the name 8.txt"),
        (["8.icis", "--user", "camera"], "--user and --password-file are of use together alone"),
    ],
)
def test_the_script_pushes_nothing_that_was_not_meant(arguments, reason):
    done = run_script("push-updates", "127.0.0.1:9/a:1", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert (done.returncode, done.stdout) == (UsageError.exit_code, "")
    assert done.stderr.startswith(f"Error: {reason}")
    assert done.stderr.count("\n") == 1


@needs_registry
def test_an_update_is_brought_whether_or_not_somebody_can_read_of_it(reference, tmp_path):
    Repository(reference).push(written(tmp_path / "out", new=b"update"), UPDATE_TYPE)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "state" / "brought").mkdir(parents=True)  # damaged, too
    pull = ("pull-updates", reference, tmp_path / "inbox", "--state", tmp_path / "state")

    assert run_script(*pull, stdout=subprocess.PIPE, stderr=subprocess.PIPE).returncode == StorageError.exit_code
    (tmp_path / "state" / "brought").rmdir()
    with Path("/dev/full").open("w") as full:
        done = run_script(*pull, stdout=full, stderr=subprocess.PIPE)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "inbox" / "new.icis").read_bytes() == b"update"
    with Path("/dev/full").open("w") as full:
        done = run_script("pull-updates", "none", tmp_path, "--state", tmp_path, stdout=full, stderr=full)
    assert done.returncode == UsageError.exit_code


@needs_registry
def test_half_a_bundle_leaves_no_folder(registry, reference, tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    Repository(reference).push(files_of_bundle(bundle), BUNDLE_TYPE)
    blob(registry, (bundle / "model.onnx").read_bytes()).write_bytes(b"another model")

    repository = Repository(reference)
    with pytest.raises(CorruptFileError):
        repository.pull_bundle(repository.resolve(), tmp_path / "new")

    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))


@needs_registry
def test_an_artifact_of_something_else_is_refused(reference, tmp_path):
    Repository(reference).push(written(tmp_path / "out", new=b"x"), UPDATE_TYPE)
    repository = Repository(reference)

    with pytest.raises(IncompatibleError, match=r"not of application/vnd\.icis-deploy\.bundle"):
        repository.pull_bundle(repository.resolve(), tmp_path / "new")


@needs_registry
@pytest.mark.parametrize(
    "title", ["../8.icis", "/etc/8.icis", "a/../../8.icis", ".hidden.icis", "a\\b.icis", "", "x\n.icis", "-8.icis"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(title, reference, tmp_path):
    Repository(reference).push({title: written(tmp_path / "out", new=b"x")["new.icis"]}, BUNDLE_TYPE)

    with pytest.raises(CorruptFileError, match="names no file below a folder"):
        Repository(reference).resolve()


@needs_registry
@pytest.mark.parametrize("title", ["folder/8.icis", "8.txt"])
def test_an_update_that_no_inbox_would_take_is_refused(title, reference, tmp_path):
    Repository(reference).push({title: written(tmp_path / "out", new=b"x")["new.icis"]}, UPDATE_TYPE)
    repository = Repository(reference)

    with pytest.raises(CorruptFileError, match="names a class update"):
        repository.pull_updates(repository.resolve(), tmp_path)


@needs_registry
def test_what_is_not_there_is_named(reference, tmp_path):
    with pytest.raises(TransferError, match="HTTP 404") as caught:
        Repository(reference).resolve()
    assert str(reference) in str(caught.value)

    Repository(reference).push(written(tmp_path / "out", new=b"x"), UPDATE_TYPE)
    repository = Repository(reference)
    with pytest.raises(StorageError):
        repository.pull_updates(repository.resolve(), tmp_path / "no inbox")


@needs_registry
def test_a_registry_with_passwords_lets_in_who_has_one(tmp_path):
    # The password is "secret".
    (tmp_path / "htpasswd").write_text("device:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n")
    process, host = started(tmp_path, f"auth: {{htpasswd: {{realm: r, path: {tmp_path / 'htpasswd'}}}}}")
    reference = Reference.parse(f"{host}/classes/camera:8")
    try:
        files = written(tmp_path / "out", new=b"x")
        Repository(reference, ("device", "secret")).push(files, UPDATE_TYPE)
        with pytest.raises(TransferError, match=r"HTTP 401.*user and a password"):
            Repository(reference).resolve()
        with pytest.raises(TransferError, match=r"HTTP 401"):
            Repository(reference, ("device", "wrong")).resolve()
    finally:
        process.terminate()
        process.wait()


@needs_registry
def test_the_script_pushes_and_brings_an_update_once(reference, tmp_path):
    written(tmp_path / "out", new=b"update")
    (tmp_path / "inbox").mkdir()

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.strip(), done.stderr

    pull = ("pull-updates", reference, tmp_path / "inbox", "--state", tmp_path / "state")
    code, _, error = run(*pull)
    assert (code, error.count("\n")) == (4, 1)
    assert error.startswith("Error: ")
    assert "Traceback" not in error
    code, pushed, _ = run("push-updates", reference, tmp_path / "out" / "new.icis")
    assert (code, pushed) == (0, f"{reference}@sha256:{Repository(reference).resolve().sha256}")
    assert run(*pull) == (0, str(tmp_path / "inbox" / "new.icis"), "")
    (tmp_path / "inbox" / "new.icis").unlink()
    assert run(*pull) == (0, "nothing new", "")


@pytest.mark.parametrize(
    ("text", "registry_name", "tag"),
    [
        ("registry.example/classes/camera", "registry.example", "latest"),
        ("registry.example:5000/camera:8", "registry.example:5000", "8"),
        ("[::1]:5000/camera:8", "[::1]:5000", "8"),
        (f"registry.example/camera@sha256:{'0' * 64}", "registry.example", None),
    ],
)
def test_references(text, registry_name, tag):
    reference = Reference.parse(text)

    assert (reference.registry, reference.tag) == (registry_name, tag)
    assert reference.url.startswith("http://[::1]" if "::1" in text else "https://registry.example")


@pytest.mark.parametrize(
    "text", ["camera", "registry.example/Camera:8", "a/b@sha256:12", "a/b:x y", "../x/y", "a//b", "[1:2:3]/a:1"]
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(UsageError, match="names no artifact"):
        Reference.parse(text)


def test_a_manifest_of_layers_is_told_from_anything_else():
    from icis_deploy.carriers.oci import _artifact_of

    digest = f"sha256:{'0' * 64}"
    layer = {"digest": digest, "size": 1, "annotations": {"org.opencontainers.image.title": "8.icis"}}
    for manifest in (
        [],
        {},
        {"manifests": []},
        {"layers": []},
        {"layers": [layer, layer]},
        {"layers": [layer | {"size": -1}]},
        {"layers": [layer | {"size": "1"}]},
        {"layers": [layer | {"digest": "md5:0"}]},
        {"layers": [layer | {"annotations": {}}]},
        {"layers": [layer | {"annotations": []}]},
        {"layers": [{**layer, "annotations": {"org.opencontainers.image.title": f"{n}.icis"}} for n in range(200)]},
    ):
        with pytest.raises(CorruptFileError, match="no manifest of files"):
            _artifact_of(json.dumps(manifest).encode(), "0" * 64, where="x")
    assert _artifact_of(json.dumps({"layers": [layer], "new": 1}).encode(), "0" * 64, where="x").size == 1
