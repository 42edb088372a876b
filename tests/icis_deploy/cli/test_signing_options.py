"""The options that say who signs, on the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from icis_deploy.cli.main import run
from icis_deploy.updates.envelope import load_envelope, save_update
from testing.bundles import make_update

ROOT = Path(__file__).parents[3]
SIGN = (
    "import sys; from cryptography.hazmat.primitives.serialization import load_pem_private_key as load;"
    "sys.stdout.buffer.write(load(open(sys.argv[1], 'rb').read(), None).sign(sys.stdin.buffer.read()))"
)


@pytest.fixture
def update(tmp_path: Path) -> Path:
    save_update(make_update("okapi"), tmp_path / "new.icis")
    return tmp_path / "new.icis"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    assert run(["keygen", "--out", str(tmp_path / "key")]) == 0
    return tmp_path / "key"


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key whose passphrase is in the variable KEY_PASSPHRASE and in the file `passphrase`."""
    monkeypatch.setenv("KEY_PASSPHRASE", "nine foxes")
    (tmp_path / "passphrase").write_text("nine foxes\nand a note that is no part of it\n")
    assert run(["keygen", "--out", str(tmp_path / "locked"), "--passphrase-env", "KEY_PASSPHRASE"]) == 0
    return tmp_path / "locked"


def signatures(path: Path) -> int:
    return len(load_envelope(path).signatures)


def test_a_passphrase_comes_from_a_file_or_the_environment(update: Path, locked: Path, capsys) -> None:
    assert locked.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert run(["sign", str(update), "--key", str(locked), "--passphrase-env", "KEY_PASSPHRASE"]) == 0
    assert run(["sign", str(update), "--key", str(locked), "--passphrase-file", str(locked.parent / "passphrase")]) == 0
    assert signatures(update) == 1


@pytest.mark.parametrize(
    ("given", "message", "code"),
    [
        ([], "there is no terminal to ask for it", 2),
        (["--passphrase-env", "NO_SUCH_VARIABLE"], "There is no environment variable 'NO_SUCH_VARIABLE'", 2),
        (["--passphrase-env", "PATH"], "cannot be decrypted", 6),
    ],
)
def test_without_its_passphrase_a_key_signs_nothing(given, message, code, update: Path, locked: Path, capsys) -> None:
    assert run(["sign", str(update), "--key", str(locked), *given]) == code
    assert message in capsys.readouterr().err
    assert signatures(update) == 0


@pytest.mark.parametrize("command", ["keygen", "sign"])
def test_a_passphrase_is_asked_for_at_a_terminal_and_not_shown(command, update: Path, locked: Path) -> None:
    arguments = {
        "keygen": ["keygen", "--out", str(locked.parent / "new"), "--ask-passphrase"],
        "sign": ["sign", str(update), "--key", str(locked)],
    }[command]
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "icis_deploy.cli.main", *arguments],
        stdin=side,
        stdout=subprocess.PIPE,
        stderr=side,
        cwd=ROOT,
        start_new_session=True,  # so that its terminal is this one, and not that of whoever runs the tests
    )
    os.close(side)
    shown = b""
    for _ in range({"keygen": 2, "sign": 1}[command]):
        while not shown.endswith(b": "):
            shown += os.read(terminal, 1000)
        os.write(terminal, b"nine foxes\n")
        shown += b"|"
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"nine foxes" not in shown + printed
    os.close(terminal)
    if command == "sign":
        assert signatures(update) == 1
    else:
        arguments = ["sign", str(update), "--key", str(locked.parent / "new"), "--passphrase-env", "KEY_PASSPHRASE"]
        assert run(arguments) == 0


def test_a_command_signs(update: Path, key: Path, capsys) -> None:
    command = f'{sys.executable} -c "{SIGN}" {key}'

    assert run(["sign", str(update), "--sign-command", command, "--public-key", f"{key}.pub"]) == 0
    assert run(["verify-update", str(update), "--trust", f"{key}.pub"]) == 0


def test_a_signer_of_securesystemslib_signs(update: Path, key: Path, capsys) -> None:
    assert run(["sign", str(update), "--signer", f"file2:{key}", "--public-key", f"{key}.pub"]) == 0
    assert run(["verify-update", str(update), "--trust", f"{key}.pub"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Nobody is named who signs. Give --key, --signer or --sign-command."),
        (["--key", "KEY", "--signer", "hsm:"], "2 of --key, --signer or --sign-command were given"),
        (["--signer", "hsm:"], "Give its file as --public-key."),
        (["--key", "KEY", "--public-key", "KEY.pub"], "--public-key would do nothing"),
        (
            ["--sign-command", "sign", "--public-key", "KEY.pub", "--passphrase-env", "PATH"],
            "--passphrase-env would do nothing",
        ),
        (["--sign-command", "sign 'open", "--public-key", "KEY.pub"], "cannot be split"),
        (
            ["--signer", "file2:x", "--public-key", "KEY.pub", "--passphrase-env", "PATH", "--passphrase-file", "KEY"],
            "Both",
        ),
    ],
)
def test_options_that_contradict_each_other_or_do_nothing_are_refused(given, message, update, key, capsys) -> None:
    arguments = [text.replace("KEY", str(key)) if text.startswith("KEY") else text for text in given]

    assert run(["sign", str(update), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert signatures(update) == 0


def test_a_key_that_others_can_read_is_warned_of_on_stderr_alone(update: Path, key: Path, tmp_path, capsys) -> None:
    key.chmod(0o644)
    capsys.readouterr()

    assert run(["sign", str(update), "--key", str(key), "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "ok"
    assert printed.err.startswith("Warning: The private key ")
    assert "(mode 644)" in printed.err
    trust = ["--trust", f"{key}.pub", "--version", "1", "--out", str(tmp_path / "keys.icis")]
    assert run(["rotate-keys", *trust, "--key", str(key)]) == 0
    assert "(mode 644)" in capsys.readouterr().err
