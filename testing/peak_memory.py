"""How much memory Python code takes at most, in a process of its own."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """
import json, os, sys
from pathlib import Path
{setup}
def high():
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
for line in sys.stdin:
    call, *sys.argv[1:] = json.loads(line)
    child = os.fork()
    if child:
        if status := os.waitpid(child, 0)[1]:
            sys.exit(f"a call ended with status {{status}}")
        continue
    before, said = high(), None
    try:
        exec(call)
    except Exception as error:
        said = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps([said, high() - before]), flush=True)
    os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What came of a call, and what it took."""

    said: str | None
    """Type and message of what it raised; `None` if it returned."""

    num_bytes: int
    """How much larger the process was at its largest than before the call."""


class PeakMemory:
    """Interpreters, one for each setup; every call is made in a fork of one, which no other call has touched."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, subprocess.Popen[str]] = {}

    def of(self, setup: str, call: str, *arguments: str | Path, limit_s: float = 300) -> Peak:
        """Make a call and return the memory that it took.

        The high-water mark of the process itself is read, as that of `getrusage` is inherited from its parent.

        Args:
            setup: Statements that are not counted: imports, mostly. They are run once, whatever is called after them.
            call: One expression; `sys.argv[1:]` are the arguments.
            arguments: Of the call.
            limit_s: After how many seconds it is taken as hung.

        Raises:
            subprocess.SubprocessError: If it dies, or does not end.
        """
        process = self._running.get(setup) or self._started(setup)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([call, *map(str, arguments)]) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], limit_s)[0]:
            raise subprocess.TimeoutExpired(process.args, limit_s)
        line = process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(process.wait(), process.args)
        said, num_bytes = json.loads(line)
        return Peak(said=said, num_bytes=num_bytes)

    def _started(self, setup: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _PROGRAM.format(setup=setup)]
        process = subprocess.Popen(  # noqa: S603 - our own code
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        self._running[setup] = process
        return process


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure calls until the block ends."""
    with ExitStack() as stack:
        yield PeakMemory(stack)
