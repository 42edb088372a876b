"""How much memory Python code takes at most, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_WRAPPED = """
import json, sys
from pathlib import Path
{setup}
def high():
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before, said = high(), None
try:
    {call}
except Exception as error:
    said = f"{{type(error).__name__}}: {{error}}"
print(json.dumps([said, high() - before]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What came of a call, and what it took."""

    said: str | None
    """Type and message of what it raised; `None` if it returned."""

    num_bytes: int
    """How much larger the process was at its largest than before the call."""


def peak_of(setup: str, call: str, *arguments: str | Path, limit_s: int = 300) -> Peak:
    """Run a call in a fresh interpreter and return the memory that it took.

    The high-water mark of the process itself is read, as that of `getrusage` is inherited from its parent.

    Args:
        setup: Statements that are not counted: imports, mostly.
        call: One expression; `sys.argv[1:]` are the arguments.
        arguments: Of the process.
        limit_s: After how many seconds it is taken as hung.

    Raises:
        subprocess.SubprocessError: If it dies, or does not end.
    """
    import json

    code = _WRAPPED.format(setup=setup, call=call)
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=limit_s
    )
    said, num_bytes = json.loads(done.stdout)
    return Peak(said=said, num_bytes=num_bytes)
