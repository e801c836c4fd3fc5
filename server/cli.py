"""The command `rediff`, down to an end without a traceback whenever Ctrl-C comes."""

import os
import sys

from server import terminal

_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its status."""
    # Read when torch is first imported. With the default, threads of torch that wait for each
    # other spin, and on a machine with other work a step takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    terminal.prepare()
    try:
        # Half a second of imports, in which people press Ctrl-C too.
        from server.commands.app import run

        status = run()
    except KeyboardInterrupt:
        status = _INTERRUPTED
    terminal.finish()
    sys.exit(status)
