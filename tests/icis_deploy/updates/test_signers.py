"""Who signs: keys with a passphrase, commands, and securesystemslib's signers; all of them really sign here."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

import icis_deploy
from icis_deploy.errors import ICISDeployWarning, MissingDependencyError, SignatureError, UsageError
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import save_update
from icis_deploy.updates.signing import keygen
from testing.bundles import make_update, trust, write_bundle

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
ED25519_WITH_OPENSSL = 'f=$(mktemp) && cat > $f && openssl pkeyutl -sign -rawin -inkey "$0" -in $f; rm -f $f'
"""openssl signs a file with Ed25519, and no pipe."""


@pytest.fixture
def update(tmp_path):
    """An unsigned class update."""
    save_update(make_update("okapi"), tmp_path / "new.icis")
    return tmp_path / "new.icis"


@pytest.fixture
def keys(tmp_path):
    return keygen(tmp_path / "key")


def ec_keys(folder, curve):
    """Write an ECDSA key pair as a token would have it, and return both files."""
    key = ec.generate_private_key(curve)
    private, public = folder / "ec", folder / "ec.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def taken_by_a_device(update, public_key, folder):
    """Return whether a device that trusts this key alone has the update's class afterwards."""
    bundle = write_bundle(folder / "bundle")
    trust(bundle, public_key)
    Device.open(bundle, num_threads=1).apply(update)
    return "okapi" in Device.open(bundle, num_threads=1).classes()


# Passphrases.


def test_a_key_with_a_passphrase_signs_with_it_alone(update, tmp_path):
    keys = icis_deploy.keygen(tmp_path / "locked", passphrase="Füchse, 9 of them")
    data = update.read_bytes()

    assert keys.private_path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert stat.S_IMODE(keys.private_path.stat().st_mode) == 0o600
    with pytest.raises(SignatureError, match="is encrypted, and no passphrase was given") as missing:
        icis_deploy.sign(update, key=keys.private_path)
    assert missing.value.where == keys.private_path
    with pytest.raises(SignatureError, match="cannot be decrypted: the passphrase is another one"):
        icis_deploy.sign(update, key=icis_deploy.KeyFile(path=keys.private_path, passphrase="Fuchse"))
    assert update.read_bytes() == data

    asked = []
    key = icis_deploy.KeyFile(
        path=keys.private_path, passphrase=lambda purpose: asked.append(purpose) or "Füchse, 9 of them"
    )
    assert icis_deploy.sign(update, key=key).signed_by == keys.key_id
    assert asked == [f"passphrase of {keys.private_path}"]
    assert taken_by_a_device(update, keys.public_path, tmp_path)


def test_a_key_without_a_passphrase_asks_for_none(update, keys):
    def never(purpose):
        raise AssertionError(purpose)

    key = icis_deploy.KeyFile(path=keys.private_path, passphrase=never)
    assert icis_deploy.sign(update, key=key).signed_by == keys.key_id


def test_another_tool_reads_a_key_with_a_passphrase_and_the_other_way_round(update, tmp_path):
    keys = keygen(tmp_path / "locked", passphrase="secret")
    private_key = load_pem_private_key(keys.private_path.read_bytes(), b"secret")

    theirs = tmp_path / "theirs"
    theirs.touch(0o600)
    theirs.write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"other")))
    key = icis_deploy.KeyFile(path=theirs, passphrase="other")
    assert icis_deploy.sign(update, key=key).signed_by == keys.key_id


@pytest.mark.parametrize("passphrase", ["", "x" * 1025])
def test_a_passphrase_that_protects_nothing_or_has_no_end_is_refused(passphrase, tmp_path):
    with pytest.raises(UsageError, match="expected 1 to 1024"):
        keygen(tmp_path / "key", passphrase=passphrase)
    assert list(tmp_path.iterdir()) == []


def test_no_passphrase_shows_in_a_text(tmp_path):
    assert "secret" not in repr(icis_deploy.KeyFile(path="key", passphrase="secret"))
    assert "secret" not in repr(icis_deploy.SignerURI(uri="hsm:", public_key="key.pub", secret="secret"))


# Modes.


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o644])
def test_a_private_key_that_others_can_reach_is_warned_of_wherever_it_signs(mode, update, keys, tmp_path):
    keys.private_path.chmod(mode)
    bundle = write_bundle(tmp_path / "bundle")

    for sign in (
        lambda: icis_deploy.sign(update, key=keys.private_path),
        lambda: icis_deploy.sign_bundle(bundle, key=keys.private_path),
        lambda: icis_deploy.rotate_keys(
            [keys.public_path], key=keys.private_path, version=1, out=tmp_path / f"{mode}.icis"
        ),
    ):
        with pytest.warns(ICISDeployWarning, match=rf"can be read or written by others .*mode {mode:o}"):
            sign()


def test_a_private_key_of_its_owner_alone_is_no_reason_to_warn(update, keys):
    for mode in (0o600, 0o400):
        keys.private_path.chmod(mode)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            icis_deploy.sign(update, key=keys.private_path)
        assert icis_deploy.verify_update(update, trust=[keys.public_path]).signed_by is not None


# Commands.


@needs_openssl
def test_openssl_signs_with_ed25519_and_a_device_takes_it(update, keys, tmp_path):
    key = icis_deploy.SigningCommand(
        command=["sh", "-c", ED25519_WITH_OPENSSL, str(keys.private_path)], public_key=keys.public_path
    )

    assert icis_deploy.sign(update, key=key).signed_by == keys.key_id
    assert taken_by_a_device(update, keys.public_path, tmp_path)


@needs_openssl
@pytest.mark.parametrize(("curve", "digest"), [(ec.SECP256R1(), "-sha256"), (ec.SECP384R1(), "-sha384")])
def test_openssl_signs_with_the_keys_of_tokens_and_a_device_takes_it(curve, digest, update, tmp_path):
    private, public = ec_keys(tmp_path, curve)
    key = icis_deploy.SigningCommand(command=["openssl", "dgst", digest, "-sign", str(private)], public_key=public)

    icis_deploy.sign(update, key=key)
    assert taken_by_a_device(update, public, tmp_path)


def test_a_command_may_print_base64(update, keys, tmp_path):
    script = (
        "import base64, sys; from cryptography.hazmat.primitives.serialization import load_pem_private_key;"
        "key = load_pem_private_key(open(sys.argv[1], 'rb').read(), None);"
        "text = base64.b64encode(key.sign(sys.stdin.buffer.read())).decode(); print(text[:40]); print(text[40:])"
    )
    key = icis_deploy.SigningCommand(
        command=[sys.executable, "-c", script, str(keys.private_path)], public_key=keys.public_path
    )

    icis_deploy.sign(update, key=key)
    assert taken_by_a_device(update, keys.public_path, tmp_path)


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such-program-here"], "could not be run: No such file or directory"),
        (python("import sys; sys.exit(7)"), "ended with exit code 7"),
        (python("pass"), "gave 0 bytes that are no signature by the key"),
        (python("print('please touch the token')"), "that are no signature by the key"),
        (python("import sys; sys.stdout.buffer.write(bytes(64))"), "gave 64 bytes that are no signature by the key"),
    ],
)
def test_a_command_that_does_not_sign_changes_nothing(command, message, update, keys):
    data = update.read_bytes()

    with pytest.raises(SignatureError, match=message) as raised:
        icis_deploy.sign(update, key=icis_deploy.SigningCommand(command=command, public_key=keys.public_path))
    assert "Nothing was signed" in raised.value.what
    assert update.read_bytes() == data


@needs_openssl
def test_a_signature_by_another_key_is_noticed_before_anything_is_written(update, keys, tmp_path):
    other, data = keygen(tmp_path / "other"), update.read_bytes()
    command = ["sh", "-c", ED25519_WITH_OPENSSL, str(other.private_path)]

    with pytest.raises(SignatureError, match=f"no signature by the key {keys.key_id[:16]}"):
        icis_deploy.sign(update, key=icis_deploy.SigningCommand(command=command, public_key=keys.public_path))
    assert update.read_bytes() == data


def test_a_command_that_waits_for_ever_is_ended(update, keys):
    key = icis_deploy.SigningCommand(
        command=python("import time; time.sleep(600)"), public_key=keys.public_path, timeout_s=0.3
    )
    start = time.monotonic()

    with pytest.raises(SignatureError, match=r"has not answered in 0\.3 seconds, and was ended"):
        icis_deploy.sign(update, key=key)
    assert time.monotonic() - start < 300


@pytest.mark.parametrize(
    "fields",
    [
        *({"command": each} for each in ([], [""], "sign --slot 2", b"sign", None, ["sign", 2])),
        *({"timeout_s": each} for each in (0, float("nan"), "5", True, 1e9)),
    ],
)
def test_a_command_that_could_not_run_is_refused_at_once(fields):
    with pytest.raises(UsageError):
        icis_deploy.SigningCommand(**{"command": ["sign"], "public_key": "key.pub", **fields})


def test_a_program_with_a_null_byte_in_its_name_is_none(update, keys):
    key = icis_deploy.SigningCommand(command=["sign\0"], public_key=keys.public_path)
    with pytest.raises(SignatureError, match=r"could not be run: embedded null byte\. Nothing was signed"):
        icis_deploy.sign(update, key=key)


def test_a_program_may_be_a_path():
    command = icis_deploy.SigningCommand(command=[Path("bin/sign"), "--slot"], public_key="key.pub").command
    assert command == ("bin/sign", "--slot")


@pytest.mark.parametrize("wrong", [5, None, ["key"], b"key"], ids=["number", "nothing", "list", "bytes"])
def test_what_is_no_key_is_named_by_its_parameter(wrong, update, keys):
    def sign(key):
        return lambda: icis_deploy.sign(update, key=key)

    public_key = str(keys.public_path)
    calls = {
        "key": sign(wrong),
        "path": sign(icis_deploy.KeyFile(path=wrong, passphrase="x")),
        "public_key": sign(icis_deploy.SigningCommand(command=["sign"], public_key=wrong)),
        "uri": sign(icis_deploy.SignerURI(uri=wrong, public_key=public_key)),
    }
    for name, call in calls.items():
        with pytest.raises(UsageError, match=f"^`{name}` is "):
            call()
    if wrong is not None:
        with pytest.raises(UsageError, match=r"^`passphrase` is of type .*; expected a text"):
            keygen(keys.private_path.with_name("other"), passphrase=wrong)


# URIs of securesystemslib.


def test_a_signer_of_securesystemslib_signs_and_a_device_takes_it(update, keys, tmp_path):
    key = icis_deploy.SignerURI(uri=f"file2:{keys.private_path}", public_key=keys.public_path)

    assert icis_deploy.sign(update, key=key).signed_by == keys.key_id
    assert taken_by_a_device(update, keys.public_path, tmp_path)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_a_signer_with_the_keys_of_tokens_signs_and_a_device_takes_it(curve, update, tmp_path):
    private, public = ec_keys(tmp_path, curve)

    icis_deploy.sign(update, key=icis_deploy.SignerURI(uri=f"file2:{private}", public_key=public))
    assert taken_by_a_device(update, public, tmp_path)


def test_the_key_of_a_signer_must_be_the_one_that_is_named(update, keys, tmp_path):
    other, data = keygen(tmp_path / "other"), update.read_bytes()

    with pytest.raises(SignatureError, match=r"failed: .*Nothing was signed"):
        icis_deploy.sign(
            update, key=icis_deploy.SignerURI(uri=f"file2:{other.private_path}", public_key=keys.public_path)
        )
    assert update.read_bytes() == data


def test_a_signer_that_is_not_known_is_a_mistake(update, keys):
    with pytest.raises(UsageError, match="of no kind that securesystemslib knows") as raised:
        icis_deploy.sign(update, key=icis_deploy.SignerURI(uri="pkcs11:token=1", public_key=keys.public_path))
    assert "hsm" in raised.value.expected


def test_a_signer_whose_library_is_missing_says_how_to_install_it(update, tmp_path, monkeypatch):
    import securesystemslib.signer._hsm_signer as hsm

    monkeypatch.setattr(hsm, "PKCS11_IMPORT_ERROR", "'python-pkcs11' required")  # as where it is not installed
    _, public = ec_keys(tmp_path, ec.SECP256R1())

    with pytest.raises(MissingDependencyError, match="pip install 'icis-deploy\\[hsm\\]'"):
        icis_deploy.sign(update, key=icis_deploy.SignerURI(uri="hsm:2", public_key=public, secret="123456"))


def test_a_signer_that_asks_for_a_secret_is_told_so_where_none_was_given(update, keys, monkeypatch):
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME

    class Asking:
        @classmethod
        def from_priv_key_uri(cls, _uri, _public_key, secrets_handler):
            raise ValueError(f"with {secrets_handler('PIN')}")

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "asking", Asking)
    key = icis_deploy.SignerURI(uri="asking:", public_key=keys.public_path)
    with pytest.raises(SignatureError, match="it asks for its PIN, and none was given"):
        icis_deploy.sign(update, key=key)
    with pytest.raises(SignatureError, match="with 1234"):
        icis_deploy.sign(update, key=icis_deploy.SignerURI(uri="asking:", public_key=keys.public_path, secret="1234"))


def test_a_token_that_is_pulled_out_before_it_signs_leaves_the_update_as_it_was(update, keys, monkeypatch):
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME

    class Leaving:
        @classmethod
        def from_priv_key_uri(cls, *_):
            return cls()

        def sign(self, _payload):
            raise OSError("device removed")

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "leaving", Leaving)
    before = update.read_bytes()
    message = r"^The signer leaving:1 failed: device removed\. Nothing was signed\."
    with pytest.raises(SignatureError, match=message) as raised:
        icis_deploy.sign(update, key=icis_deploy.SignerURI(uri="leaving:1", public_key=keys.public_path))
    assert raised.value.where == "leaving:1"
    assert update.read_bytes() == before


def test_a_signer_without_keys_of_this_kind_says_so_once(update, keys, tmp_path):
    # As the signer of a KMS that has no Ed25519 keys fails, and logs what it raises.
    (tmp_path / "signer.py").write_text(
        "import logging\n"
        "from securesystemslib.signer import SIGNER_FOR_URI_SCHEME\n"
        "class Other:\n"
        "    @classmethod\n"
        "    def from_priv_key_uri(cls, uri, public_key, secrets_handler):\n"
        "        logging.getLogger('securesystemslib.signer._aws_signer').error('Failed to sign')\n"
        "        return {}[public_key.scheme]\n"
        "SIGNER_FOR_URI_SCHEME['awskms'] = Other\n"
        "import icis_deploy.__main__\n"
        "icis_deploy.__main__.main()\n"
    )
    command = [sys.executable, str(tmp_path / "signer.py"), "sign", str(update), "--signer", "awskms:1"]
    done = subprocess.run(
        [*command, "--public-key", str(keys.public_path)], check=False, capture_output=True, text=True
    )

    assert done.returncode == 6
    assert done.stderr == (
        "Error: The signer awskms:1 failed: it has no keys of the scheme ed25519, which the public key is of. Nothing "
        "was signed. Check that the URI has the form awskms:KEY-ID, that it can be reached, and give its PIN or "
        "passphrase as --passphrase-file.\n"
    )


def test_a_token_that_cannot_be_reached_is_named(update, keys):
    key = icis_deploy.SignerURI(uri="file2:/no/such/key", public_key=keys.public_path)

    with pytest.raises(SignatureError, match=r"The signer file2:/no/such/key failed: .*not found"):
        icis_deploy.sign(update, key=key)


@needs_openssl
def test_the_bytes_to_sign_are_those_of_dsse(update, keys, tmp_path):
    seen = tmp_path / "seen"
    command = ["sh", "-c", f'tee "{seen}" | {{ {ED25519_WITH_OPENSSL}; }}', str(keys.private_path)]
    icis_deploy.sign(update, key=icis_deploy.SigningCommand(command=command, public_key=keys.public_path))

    assert seen.read_bytes().startswith(b"DSSEv1 55 application/vnd.icis-deploy.class-update.v1+safetensors ")


@pytest.fixture
def token(tmp_path, monkeypatch):
    """A PKCS #11 token in software, its PIN 1234, with a key of P-256, whose public half is returned as a file."""
    pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 (the extra hsm) is not installed here")
    library = next(Path("/usr/lib").rglob("libsofthsm2.so"), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM 2 is not installed here")
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(library))
    create = ["softhsm2-util", "--init-token", "--free", "--label", "icis", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(create, check=True, capture_output=True)
    loaded = pkcs11.lib(str(library))
    loaded.reinitialize()  # it may have been loaded for another token
    with loaded.get_token(token_label="icis").open(rw=True, user_pin="1234") as session:
        curve = pkcs11.util.ec.encode_named_curve_parameters("secp256r1")
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: curve}, local=True
        )
        public, _ = parameters.generate_keypair(store=True, label="release", id=b"\x02")
        der = pkcs11.util.ec.encode_ec_public_key(public)
    path = tmp_path / "token.pub"
    path.write_bytes(load_der_public_key(der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_a_token_signs_what_a_device_takes(update, token, tmp_path):
    key = icis_deploy.SignerURI(uri="hsm:2?label=icis", public_key=token, secret="1234")
    icis_deploy.sign(update, key=key, version=1)
    bundle = write_bundle(tmp_path / "bundle")
    trust(bundle, token)

    assert Device.open(bundle).apply(update).entry.version == 1


@pytest.mark.parametrize(
    ("uri", "pin", "reason"),
    [
        ("hsm:2?label=icis", "9999", "PinIncorrect"),
        ("hsm:7?label=icis", "1234", "could not find"),
        ("hsm:2?label=other", "1234", "other"),
        ("hsm:2?label=icis", None, "none was given"),
    ],
)
def test_a_token_that_does_not_sign_leaves_the_update_as_it_was(update, token, uri, pin, reason):
    data = update.read_bytes()

    with pytest.raises(SignatureError, match=rf"{reason}.*(?<!\.)\. Nothing was signed"):
        icis_deploy.sign(update, key=icis_deploy.SignerURI(uri=uri, public_key=token, secret=pin), version=1)
    assert update.read_bytes() == data
