"""Fuzz the reader in C by coverage: libFuzzer with address and undefined-behaviour sanitizers, on `exporters/c/fuzz.c`.

    apt install clang libclang-rt-dev libssl-dev
    python scripts/robustness/fuzz_c_reader.py --seconds 300

It begins with updates of every kind, as signed files and as payloads that the harness signs itself, some of them
damaged. The exit code is 1 if libFuzzer found a crash, a leak, undefined behaviour or an input that took longer than
ten seconds; the input is then in the folder that the message names.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from icis_deploy.updates.payload import serialize_payload
from icis_deploy.updates.trusted_keys import public_key_from_pem
from scripts.robustness.c_reader import SOURCES, libcrypto_flags, missing_tools
from scripts.robustness.mutations import MUTATIONS
from scripts.robustness.two_readers import damaged, pem_of, signed_file, updates_of_every_kind

BASE = "a" * 64
"""Fingerprint of the head, and digest of the bundle, in `fuzz.c`."""

FEATURE_DIM = 3
SECRET = bytes([1, *([0] * 31)])
"""The key of `fuzz.c`, which signs what begins with an odd byte."""

SECONDS_OF_AN_INPUT, MAX_BYTES = 10, 8192


def write_corpus(folder: Path, *, num_damaged: int = 200) -> None:
    """Write inputs of `fuzz.c` to a new folder: an odd byte before a payload, an even one before a file."""
    folder.mkdir()
    random, private = np.random.default_rng(0), Ed25519PrivateKey.from_private_bytes(SECRET)
    key_id = public_key_from_pem(pem_of(private)).keyid
    updates = [
        replace(update, base_fingerprint=BASE, rows=update.rows[:, : FEATURE_DIM + 1])
        for update in updates_of_every_kind(BASE, BASE)
    ]
    payloads = [serialize_payload(update) for update in updates]
    inputs = [b"\1" + payload for payload in payloads]
    inputs += [b"\0" + signed_file(payload, private, key_id) for payload in payloads]
    for index in range(num_damaged):
        payload = payloads[index % len(payloads)]
        if index % 2:
            inputs.append(b"\1" + damaged(payload, random))
        else:
            mutation = MUTATIONS[index // 2 % len(MUTATIONS)]
            inputs.append(b"\0" + mutation(signed_file(payload, private, key_id), random))
    for index, data in enumerate(inputs):
        (folder / f"{index:04d}").write_bytes(data)


def compile_fuzzer(out: Path) -> Path:
    """Compile `fuzz.c` with libFuzzer, and return the program.

    Raises:
        SystemExit: If clang or libcrypto is missing, or clang fails, with what it said.
    """
    if shutil.which("clang") is None or (missing := missing_tools()) is not None:
        missing = missing if shutil.which("clang") else "there is no clang"
        sys.exit(f"Error: the reader cannot be fuzzed here: {missing}. apt install clang libclang-rt-dev libssl-dev")
    sources = [str(SOURCES / name) for name in ("fuzz.c", "icis_update.c")]
    flags = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    command = ["clang", *flags, *sources, *libcrypto_flags(), "-o", str(out)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - files of the project
    if built.returncode:
        sys.exit(
            f"Error: clang could not compile exporters/c/fuzz.c (libFuzzer needs libclang-rt-dev):\n{built.stderr}"
        )
    return out


def main() -> int:
    """Fuzz for as long as the command line says, and print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="icis-fuzz-"))
    write_corpus(folder / "corpus")
    program = compile_fuzzer(folder / "fuzz")
    limits = [f"-max_total_time={arguments.seconds}", f"-timeout={SECONDS_OF_AN_INPUT}", f"-max_len={MAX_BYTES}"]
    options = [*limits, f"-seed={arguments.seed}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    ran = subprocess.run([program, *options, folder / "corpus"], capture_output=True, text=True, check=False)  # noqa: S603
    executions = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", ran.stderr)
    count = int(executions[1]) if executions else 0
    edges, features = covered[-1] if covered else ("0", "0")
    clean = ran.returncode == 0 and count > 0
    found = "nothing" if clean else "A FAULT"
    print(f"{count:,} executions, {edges} edges and {features} features covered, {found} found")
    if clean:
        shutil.rmtree(folder)
        return 0
    print(f"{ran.stderr[-6000:]}\nThe input is in {folder}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
