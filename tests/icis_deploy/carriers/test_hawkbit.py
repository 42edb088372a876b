"""The hawkBit client and the real update module, against a small server of its Direct Device Integration API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from icis_deploy.carriers import hawkbit
from icis_deploy.carriers.hawkbit import Target
from icis_deploy.errors import RuntimeFailureError, StorageError, TransferError
from icis_deploy.runtime.operations import classes, history
from icis_deploy.updates.signing import keygen, trusted_keys_from_files
from testing.bundles import make_update, signed_bytes, trust, write_bundle
from testing.local_server import serving

FLEET = Path(__file__).resolve().parents[3] / "scripts" / "fleet"
COMMAND = Path(sys.executable).with_name("icis-deploy")
TOKEN = "TargetToken 5b2f"


class Server:
    """What a hawkBit server holds for one device, as its DDI documentation describes the answers."""

    def __init__(self):
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.action: str | None = None
        self.is_cancelled = False
        self.modes = {"download": "forced", "update": "forced"}
        self.feedback: list[tuple[str, dict]] = []
        self.attributes: dict[str, str] = {}
        self.changed_on_the_way: dict[str, bytes] = {}
        self.loses_feedback = False
        self.num_downloads = 0

    def deploy(self, action, **files):
        self.action, self.files = action, {f"{name}.icis": data for name, data in files.items()}

    def base(self):
        return f"{self.url}/DEFAULT/controller/v1/camera-7"

    def poll(self):
        links = {"configData": {"href": f"{self.base()}/configData"}}
        if self.action is not None and self.is_cancelled:
            links["cancelAction"] = {"href": f"{self.base()}/cancelAction/{self.action}"}
        elif self.action is not None:
            links["deploymentBase"] = {"href": f"{self.base()}/deploymentBase/{self.action}?c=-2127183556"}
        return {"config": {"polling": {"sleep": "00:05:00"}}, "_links": links}

    def deployment(self):
        def artifact(name, data):
            link = {"href": f"{self.base()}/softwaremodules/1/artifacts/{name}"}
            digests = {"sha256": hashlib.sha256(data).hexdigest(), "md5": "0" * 32, "sha1": "0" * 40}
            return {"filename": name, "hashes": digests, "size": len(data), "_links": {"download": link}}

        artifacts = [artifact(name, data) for name, data in reversed(self.files.items())]
        chunks = [{"part": "bApp", "version": "8", "name": "classes", "artifacts": artifacts}]
        return {"id": self.action, "deployment": self.modes | {"chunks": chunks}}

    def answers(self, path):
        """Return what a path answers with: a value, bytes, or `None`."""
        path = path.removeprefix("/DEFAULT/controller/v1/camera-7").partition("?")[0]
        if path == "":
            return self.poll()
        if path == f"/deploymentBase/{self.action}":
            return self.deployment()
        if path == f"/cancelAction/{self.action}":
            return {"id": self.action, "cancelAction": {"stopId": self.action}}
        name = path.rpartition("/")[2]
        if path.startswith("/softwaremodules/1/artifacts/") and name in self.files:
            self.num_downloads += 1
            return self.changed_on_the_way.get(name, self.files[name])
        return None

    def told(self, path, fields):
        """Take what a device says; return the status."""
        path = path.removeprefix("/DEFAULT/controller/v1/camera-7")
        if path == "/configData":
            self.attributes |= fields["data"]
            return 200
        if self.loses_feedback:
            return 503
        kind, action, end = path.strip("/").split("/")
        assert (action, end, fields["id"]) == (self.action, "feedback", self.action)
        assert fields["status"]["execution"] in {"closed", "rejected", "proceeding"}
        self.feedback.append((kind, fields["status"]))
        if fields["status"]["execution"] == "closed":
            self.action = None
        return 200


@pytest.fixture
def server():
    one = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, body=b""):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.headers["Authorization"] != TOKEN:
                self.answer(401)
                return
            found = one.answers(self.path)
            if found is None:
                self.answer(404)
            else:
                self.answer(200, found if isinstance(found, bytes) else json.dumps(found).encode())

        def do_POST(self):
            fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(one.told(self.path, fields))

        do_PUT = do_POST

        def log_message(self, *_arguments):
            pass

    with serving(Handler) as url:
        one.url = url
        yield one


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "KEY")


@pytest.fixture
def bundle(tmp_path, key):
    folder = write_bundle(tmp_path / "bundle")
    trust(folder, key.public_path)
    return folder


@pytest.fixture
def target(server, bundle, tmp_path, monkeypatch):
    for name, value in {"ICIS_BUNDLE": bundle, "ICIS_DEPLOY": COMMAND, "ICIS_CONFIG": "/nowhere"}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "work").mkdir()
    return Target(
        url=server.url,
        controller="camera-7",
        authorization=TOKEN,
        module=["/bin/sh", str(FLEET / "icis-class-update")],
        work=tmp_path / "work",
        attributes={"bundle": "1106f64be2204535"},
    )


def results(server):
    return [(kind, status["execution"], status["result"]["finished"]) for kind, status in server.feedback]


def test_a_device_without_an_action_tells_what_it_is_and_does_nothing(server, target):
    assert target.poll().action is None

    assert server.attributes == {"bundle": "1106f64be2204535"}
    assert server.feedback == []


def test_files_are_applied_in_the_order_of_names_and_the_server_hears_of_it(server, target, bundle, key, tmp_path):
    new = keygen(tmp_path / "NEW")
    keys = signed_bytes(trusted_keys_from_files([new.public_path]), key.private_path)
    server.deploy("12", **{"1-keys": keys, "2": signed_bytes(make_update("okapi", version=1), new.private_path)})

    outcome = target.poll()

    assert (outcome.action, outcome.succeeded) == ("12", True)
    assert results(server) == [("deploymentBase", "closed", "success")]
    assert classes(bundle).version == 1
    assert target.poll().action is None


def test_a_file_that_was_changed_on_the_way_reaches_no_module(server, target, bundle, key):
    data = signed_bytes(make_update("okapi"), key.private_path)
    server.deploy("12", new=data)
    server.changed_on_the_way = {"new.icis": data[:-1] + b"!"}

    outcome = target.poll()

    assert outcome.succeeded is False
    assert results(server) == [("deploymentBase", "closed", "failure")]
    assert "sent other bytes" in server.feedback[0][1]["details"][0]
    assert history(bundle) == ()


def test_an_update_that_the_device_refuses_is_rolled_back_whole(server, target, bundle, key, tmp_path):
    stranger = keygen(tmp_path / "STRANGER")
    files = {
        "1": signed_bytes(make_update("okapi", version=1), key.private_path),
        "2": signed_bytes(make_update("bongo", version=2), stranger.private_path),
    }
    server.deploy("12", **files)

    assert target.poll().succeeded is False

    assert results(server) == [("deploymentBase", "closed", "failure")]
    details = server.feedback[0][1]["details"]
    assert details[0].startswith("ArtifactInstall: ")
    assert "signed" in details[0]
    assert details[1] == "Rolled back."
    assert classes(bundle).version == 0


def test_a_failing_health_check_rolls_back(server, target, bundle, key, monkeypatch):
    monkeypatch.setenv("ICIS_HEALTH", "false")
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))

    assert target.poll().succeeded is False

    assert classes(bundle).version == 0
    assert [entry.action for entry in history(bundle)] == ["apply", "rollback"]


def test_an_action_whose_feedback_was_lost_is_answered_and_not_done_again(server, target, bundle, key):
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    server.loses_feedback = True
    with pytest.raises(TransferError, match="HTTP 503"):
        target.poll()
    assert classes(bundle).version == 1
    server.loses_feedback = False

    assert target.poll().succeeded is True

    assert results(server) == [("deploymentBase", "closed", "success")]
    assert (len(history(bundle)), server.num_downloads) == (1, 1)


@pytest.mark.parametrize("num_applied", [1, 2])
def test_an_installation_that_lost_its_power_is_finished_at_the_next_poll(
    num_applied, server, target, bundle, key, tmp_path
):
    files = {str(n): signed_bytes(make_update(f"class {n}", version=n), key.private_path) for n in (1, 2)}
    server.deploy("12", **files)
    stopping = tmp_path / "stopping"
    stopping.write_text(
        f'#!/bin/sh\n[ "$1" != apply ] || [ "$(wc -l <{tmp_path}/count)" -lt {num_applied} ] || exit 99\n'
        f'{COMMAND} "$@" || exit\n[ "$1" != apply ] || echo >>{tmp_path}/count\n'
    )
    stopping.chmod(0o755)
    (tmp_path / "count").touch()
    broken = Target(**{name: getattr(target, name) for name in ("url", "controller", "authorization", "work")}, module=[
        "/bin/sh", "-c",
        # A module that is cut off where the device lost its power: what it would do after the failure never happens.
        f'ICIS_DEPLOY={stopping} /bin/sh {FLEET}/icis-class-update "$@" || kill -9 $PPID', "sh",
    ])  # fmt: skip
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1]); from icis_deploy.carriers.hawkbit import Target\n"
        "Target(**eval(sys.argv[2])).poll()"
    )
    fields = {
        "url": broken.url, "controller": broken.controller, "authorization": broken.authorization,
        "module": broken.module, "work": None,
    }  # fmt: skip
    text = repr(fields).replace("'work': None", f"'work': __import__('pathlib').Path({str(broken.work)!r})")
    if num_applied == 2:  # both are in effect, and the power fails before that is written down
        text = text.replace('icis-class-update "$@" ||', 'icis-class-update "$@" && [ "$1" != ArtifactInstall ] ||')
    done = subprocess.run([sys.executable, "-c", code, repr(sys.path), text], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (classes(bundle).version, server.feedback) == (num_applied, [])

    assert target.poll().succeeded is True

    assert results(server) == [("deploymentBase", "closed", "success")]
    assert [entry.version for entry in history(bundle)] == [1, 2]


def test_an_action_that_is_cancelled_before_it_began_is_not_done(server, target, bundle, key):
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    server.is_cancelled = True

    assert target.poll().succeeded is None

    assert results(server) == [("cancelAction", "closed", "success")]
    assert history(bundle) == ()


def test_an_action_that_is_cancelled_too_late_stays_and_the_server_knows(server, target, bundle, key):
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    server.loses_feedback = True
    with pytest.raises(TransferError):
        target.poll()
    server.loses_feedback, server.is_cancelled = False, True

    target.poll()

    assert results(server) == [("cancelAction", "rejected", "none")]
    assert classes(bundle).version == 1


@pytest.mark.parametrize("modes", [{"update": "skip"}, {"download": "skip"}, {"maintenanceWindow": "unavailable"}])
def test_what_the_server_lets_wait_waits(modes, server, target, bundle, key):
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    server.modes |= modes

    assert target.poll().succeeded is None

    assert (server.feedback, server.num_downloads, history(bundle)) == ([], 0, ())


@pytest.mark.parametrize(
    "name", ["../../x", ".hidden", "a/b", "", "a\0b", "a\nb", "\ud800", "\u00e9" * 150], ids=lambda name: repr(name[:9])
)
def test_a_file_name_that_leads_elsewhere_fails_the_action(name, server, target, tmp_path):
    server.action, server.files = "12", {name: b"x"}

    assert target.poll().succeeded is False

    assert not (tmp_path / "x").exists()
    assert results(server) == [("deploymentBase", "closed", "failure")]


@pytest.mark.parametrize("changed", [{"size": -(1 << 40)}, {"_links": {"download": {"href": "http://[::1"}}}], ids=str)
def test_a_file_without_a_size_or_an_address_fails_the_action(changed, server, target):
    # Of a negative size all that a server sends would be read at once, and another file's would seem smaller.
    server.deploy("12", one=b"x")
    real = server.deployment

    def deployment():
        said = real()
        said["deployment"]["chunks"][0]["artifacts"][0] |= changed
        return said

    server.deployment = deployment

    assert target.poll().succeeded is False
    assert server.num_downloads == 0
    assert results(server) == [("deploymentBase", "closed", "failure")]


@pytest.mark.parametrize("action", ["", "1\n2", "\ud800", "9" * 200, 10**200], ids=lambda action: repr(action)[:9])
def test_an_action_that_cannot_be_written_down_is_not_begun(action, server, target):
    server.action = "12"
    server.deployment = lambda: {"id": action, "deployment": {}}

    with pytest.raises(TransferError, match="as its 'id'"):
        target.poll()


def test_modes_of_any_type_are_read(server, target):
    server.modes = {"download": ["forced"], "update": {}}
    server.action = "12"

    assert target.poll().succeeded is False


def test_a_server_that_refuses_lacks_the_device_or_is_another_is_named(server, target):
    target.authorization = "TargetToken wrong"
    with pytest.raises(TransferError, match=r"HTTP 401.*Check the token"):
        target.poll()
    target.authorization, target.controller = TOKEN, "unknown"
    with pytest.raises(TransferError, match=r"HTTP 404.*the device's name"):
        target.poll()
    target.controller, real = "camera-7", server.poll
    server.poll = lambda: real() | {"_links": {"deploymentBase": {"href": "http://evil.example/x"}}}
    with pytest.raises(TransferError, match="another server"):
        target.poll()
    server.poll = lambda: {"_links": {"deploymentBase": {"href": "http://[::1"}}}
    with pytest.raises(TransferError, match="another server"):
        target.poll()
    server.poll = lambda: ["no object"]
    with pytest.raises(TransferError, match="does not answer as hawkBit does"):
        target.poll()


def test_a_module_that_is_not_there_leaves_the_action_open(server, target, bundle, key, tmp_path):
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    right, target.module = target.module, [str(tmp_path / "nothing")]
    with pytest.raises(RuntimeFailureError, match="cannot be run"):
        target.poll()
    assert server.feedback == []
    target.module = right

    assert target.poll().succeeded is True


@pytest.mark.skipif(os.geteuid() != 0 and not os.access("/dev/full", os.W_OK), reason="no full disk here")
def test_a_full_disk_leaves_the_action_open(server, target, bundle, key, monkeypatch):
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    real = os.open
    with monkeypatch.context() as full:
        full.setattr(os, "open", lambda path, flags, *rest, **more: real("/dev/full", os.O_WRONLY)
                     if str(path).endswith(".tmp") else real(path, flags, *rest, **more))  # fmt: skip
        with pytest.raises(StorageError, match="No space left"):
            target.poll()
    assert (server.feedback, history(bundle)) == ([], ())

    assert target.poll().succeeded is True


def test_the_script_says_what_became_of_the_action(server, target, bundle, key, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    script = [sys.executable, FLEET / "icis_carrier.py", "hawkbit", server.url, "--device", "camera-7"]
    script += ["--token-file", tmp_path / "token", "--work", target.work, "--module", FLEET / "icis-class-update"]

    def run():
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    assert run() == (0, "nothing to do", "")
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    assert run() == (0, "action 12: In effect.", "")
    server.deploy("13", new=b"no update")
    code, _, error = run()
    assert (code, error[:33]) == (4, "Error: Action 13 failed, and the ")
    assert classes(bundle).version == 1


@pytest.fixture
def lose_power(target, monkeypatch):
    """Return what ends a poll after a state of the module as a power cut would, with nothing done after it."""

    class PowerCut(BaseException):
        pass

    def lose(state):
        call = Target._call

        def cut(self, called, folder):
            done = call(self, called, folder)
            if called == state:
                raise PowerCut
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Target, "_call", cut)
            with pytest.raises(PowerCut):
                target.poll()

    return lose


def two_updates(key):
    return {str(n): signed_bytes(make_update(f"class {n}", version=n), key.private_path) for n in (1, 2)}


def test_an_action_that_is_cancelled_half_way_is_rolled_back_before_the_server_hears(
    server, target, bundle, key, lose_power
):
    server.deploy("12", **two_updates(key))
    lose_power("ArtifactInstall")
    assert classes(bundle).version == 2
    server.is_cancelled = True

    assert target.poll().succeeded is None

    assert results(server) == [("cancelAction", "closed", "success")]
    assert server.feedback[0][1]["details"] == ["It had begun, and was rolled back."]
    assert classes(bundle).version == 0


def test_an_action_that_is_cancelled_half_way_and_cannot_be_rolled_back_is_not_called_cancelled(
    server, target, key, lose_power
):
    server.deploy("12", **two_updates(key))
    lose_power("ArtifactInstall")
    server.is_cancelled = True
    target.module = ["/bin/sh", "-c", "echo no disk >&2; false"]

    target.poll()

    assert results(server) == [("cancelAction", "rejected", "none")]
    assert server.feedback[0][1]["details"][1] == "ArtifactRollback: no disk"


@pytest.mark.parametrize("state", ["ArtifactCommit", "Cleanup"])
def test_power_that_fails_at_the_end_of_an_installation_changes_no_result(
    state, server, target, bundle, key, lose_power
):
    server.deploy("12", **two_updates(key))
    lose_power(state)
    assert (classes(bundle).version, server.feedback) == (2, [])

    assert target.poll().succeeded is True

    assert results(server) == [("deploymentBase", "closed", "success")]
    assert [entry.version for entry in history(bundle)] == [1, 2]


def test_a_file_that_changed_when_an_installation_goes_on_takes_back_what_was_applied(
    server, target, bundle, key, lose_power
):
    server.deploy("12", **two_updates(key))
    lose_power("ArtifactInstall")
    server.changed_on_the_way = {"2.icis": b"!" * len(server.files["2.icis"])}

    assert target.poll().succeeded is False

    assert server.feedback[0][1]["details"][1] == "Rolled back."
    assert classes(bundle).version == 0


def test_a_second_poll_leaves_the_first_one_alone(server, target, bundle, key):
    server.deploy("12", **two_updates(key))
    second: list[str] = []
    call = target._call

    def while_it_installs(state, folder):
        if state == "ArtifactCommit":
            with pytest.raises(RuntimeFailureError) as refused:
                target.poll()
            second.append(str(refused.value))
        return call(state, folder)

    first = Target(
        url=target.url, controller=target.controller, authorization=TOKEN, module=target.module, work=target.work
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "_call", lambda _self, state, folder: while_it_installs(state, folder))
        assert first.poll().succeeded is True

    assert second == [f"Another poll works in {target.work}. Wait until it has ended; it tells the server what it did."]
    assert (classes(bundle).version, results(server)) == (2, [("deploymentBase", "closed", "success")])


def test_a_health_check_that_hangs_is_rolled_back_with_all_that_it_started(
    server, target, bundle, key, monkeypatch, tmp_path
):
    health = tmp_path / "health"
    health.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 300\n")
    health.chmod(0o755)
    monkeypatch.setenv("ICIS_HEALTH", str(health))
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))
    call = Target._call

    def patiently(self, state, folder):
        monkeypatch.setattr(hawkbit, "_SECONDS_OF_A_STATE", 0.5 if state == "ArtifactCommit" else 600)
        return call(self, state, folder)

    monkeypatch.setattr(Target, "_call", patiently)
    assert target.poll().succeeded is False

    assert "had not ended" in server.feedback[0][1]["details"][0]
    assert classes(bundle).version == 0
    if (tmp_path / "pid").exists():  # on a busy machine it may not have come so far
        status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
        assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("note", [b"[" * 60_000, b'{"action": "12", "succeeded": true, "details": 3}', b"\xff"])
def test_a_damaged_note_is_none(note, server, target, bundle, key):
    (target.work / "decided").write_bytes(note)
    server.deploy("12", new=signed_bytes(make_update("okapi"), key.private_path))

    assert target.poll().succeeded is True

    assert classes(bundle).version == 1


def test_limits_hold_before_anything_is_fetched(server, target, monkeypatch):
    monkeypatch.setattr(hawkbit, "MAX_UPDATE_BYTES", 3)
    server.deploy("12", one=b"xx", two=b"xx")

    assert target.poll().succeeded is False
    assert server.num_downloads == 0
