"""What a library prints while it is imported or loads a model is not among the answers of a command."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from icis_deploy.runtime.sessions.native_output import printing_to_stderr

FULLY_BUFFERED, UNBUFFERED = 0, 2
"""`_IOFBF` and `_IONBF` of the C library."""

CODE = """
import os
from icis_deploy.runtime.sessions.native_output import printing_to_stderr
with printing_to_stderr():
    os.write(DESCRIPTOR, b"loaded")
os.write(DESCRIPTOR, b", done")
"""


@pytest.fixture
def libc() -> Iterator[ctypes.CDLL]:
    """The C library, which keeps what it prints, as in any process whose output is no terminal."""
    library, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(4096)
    stdout = ctypes.c_void_p.in_dll(library, "stdout")
    library.setvbuf(stdout, buffer, FULLY_BUFFERED, len(buffer))
    yield library
    library.fflush(None)
    library.setvbuf(stdout, None, UNBUFFERED, 0)  # before the buffer is freed


def test_what_libraries_print_goes_to_standard_error_and_the_answer_does_not(libc, capfd):
    sys.stdout.write("before\n")
    libc.printf(b"left in the buffer, ")
    with printing_to_stderr():
        os.write(1, b"by a call, ")
        libc.printf(b"by printf")
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
