"""Standard output and error: whatever their encoding, and for as long as somebody reads them."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any


def prepare() -> None:
    """Escape what a stream's encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def echo(line: object, *, err: bool = False) -> None:
    """Write a line to standard output or error. Not by `typer.echo`, which takes ASCII for UTF-8.

    Raises:
        BrokenPipeError: nobody reads the stream.
    """
    stream = sys.stderr if err else sys.stdout
    # None without a console, or closed by the shell.
    if stream is not None:
        stream.write(f"{line}\n")
        stream.flush()


def json_line(row: dict[str, Any]) -> str:
    """The row as JSON that standard output can hold: escaped where that is not Unicode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    unicode = codecs.lookup(encoding).name.startswith("utf")
    return json.dumps(row, ensure_ascii=not unicode)


def finish() -> None:
    """Write out what is left; drop it if nobody reads, which the interpreter would report."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
