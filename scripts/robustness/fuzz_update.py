"""Fuzz what a device reads of an update with atheris, which follows the branches that a file takes.

    pip install atheris
    python scripts/robustness/fuzz_update.py [libFuzzer options, such as -max_total_time=300]

Every input takes an update's path: size, signature, payload. Half of them are signed here first with the trusted key:
a mutation of a signed file is refused at the signature, and the readers after it would never be reached. It stops at
the first input that is accepted without being signed, or that raises anything but an error of icis-deploy. libFuzzer
reads the command line, so `scripts.robustness.loop` is not used here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["icis_deploy", "securesystemslib"]):
    from icis_deploy.errors import ICISDeployError
    from icis_deploy.runtime.changes.rules import verify_bytes
    from icis_deploy.updates.envelope import parse_envelope, serialize_envelope
    from icis_deploy.updates.payload import PAYLOAD_TYPE, serialize_payload

from securesystemslib.dsse import Envelope

from icis_deploy.updates.signing import load_private_key
from scripts.robustness.mutations import Target
from testing.bundles import make_update


def main() -> None:
    """Run until libFuzzer has had enough."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = Target(folder)
        signer = load_private_key(folder / "mutations-key")
        payloads = {parse_envelope(data).payload for data in target.good}
        updates = {"payload": make_update("okapi", "bongo"), "arbiter": make_update("okapi", arbiter=[[1.0] * 5])}
        corpus = folder / "corpus"
        corpus.mkdir()
        for index, data in enumerate(target.good):
            (corpus / f"signed{index}").write_bytes(b"\0" + data)
        for kind, update in updates.items():
            (corpus / kind).write_bytes(b"\1" + serialize_payload(update))

        def try_one(data: bytes) -> None:
            is_payload, rest = data[:1] == b"\1", data[1:]
            if is_payload:
                envelope = Envelope(rest, PAYLOAD_TYPE, {})
                envelope.sign(signer)
                rest = serialize_envelope(envelope)
            try:
                verify_bytes(rest, bundle=target.bundle, trusted_keys=target.keys, allow_unsigned=False)
            except ICISDeployError:
                return
            # Whatever passes must be signed by us: as one of the files of the corpus, or just now.
            payload = parse_envelope(rest).payload
            assert is_payload or payload in payloads, "accepted what nobody signed"

        atheris.Setup([sys.argv[0], *sys.argv[1:], str(corpus)], try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
