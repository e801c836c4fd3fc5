"""The command `rediff`, down to an end without a traceback whenever Ctrl-C comes."""

import io
import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its status."""
    # Read when torch is first imported. With the default, threads of torch that wait for each
    # other spin, and on a machine with other work a step takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks is escaped instead of ending the run.
            stream.reconfigure(errors="backslashreplace")
    try:
        # Half a second of imports, in which people press Ctrl-C too.
        from server.commands.app import run

        status = run()
    except KeyboardInterrupt:
        status = _INTERRUPTED
    # As of `head`: who read the output has seen enough.
    except BrokenPipeError:
        status = 0
    _flush()
    sys.exit(status)


def _flush() -> None:
    """Write out what is left. What nobody reads is dropped, as the interpreter would report it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
