"""The command `icis-deploy`, and `python -m icis_deploy` where its script is not on the path."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a process that SIGINT ends, by the rules of shells."""


def main() -> NoReturn:
    """Run the command line and exit.

    What the commands import is imported here: it takes long enough for a Ctrl-C to fall into.
    """
    try:
        from icis_deploy.cli.main import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            with suppress(OSError):
                sys.stderr.write("Interrupted.\n")
                sys.stderr.flush()
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
