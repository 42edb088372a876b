"""What a library prints while it is imported or loads a model is not among the answers of a command."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from icis_deploy.runtime.sessions.native_output import printing_to_stderr

FULLY_BUFFERED = 0
"""`_IOFBF` of the C library."""
BUFFER = ctypes.create_string_buffer(4096)
"""Which the C library keeps."""

CODE = """
import os
from icis_deploy.runtime.sessions.native_output import printing_to_stderr
with printing_to_stderr():
    os.write(DESCRIPTOR, b"loaded")
os.write(DESCRIPTOR, b", done")
"""


def test_what_libraries_print_goes_to_standard_error_and_the_answer_does_not(capfd):
    libc = ctypes.CDLL(None)
    # As for any process whose output is no terminal; PYTHONUNBUFFERED turns it off.
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), BUFFER, FULLY_BUFFERED, len(BUFFER))
    sys.stdout.write("before\n")
    libc.printf(b"left in the buffer, ")
    with printing_to_stderr():
        os.write(1, b"by a call, ")
        libc.printf(b"by printf")  # which the C library keeps in a buffer of its own
    sys.stdout.write("after\n")
    sys.stdout.flush()
    found = capfd.readouterr()
    assert (found.out, found.err) == ("before\nleft in the buffer, after\n", "by a call, by printf")


def test_an_import_that_fails_gives_the_standard_output_back(capfd):
    with pytest.raises(ImportError), printing_to_stderr():
        raise ImportError
    os.write(1, b"answer")
    assert capfd.readouterr().out == "answer"


@pytest.mark.parametrize(("closed", "left"), [(1, 2), (2, 1)], ids=["output", "error"])
def test_a_service_without_one_of_the_two_loads_all_the_same(closed, left):
    command = ["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}>&-', sys.executable, CODE.replace("DESCRIPTOR", str(left))]
    done = subprocess.run(command, capture_output=True, check=False)
    found = {1: done.stdout, 2: done.stderr}
    assert (done.returncode, found[left], found[closed]) == (0, b"loaded, done", b"")
