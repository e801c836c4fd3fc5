"""All commands of `rediff` under their names, and how a run of one ends.

Heavy imports stand inside the commands, so that `rediff --help` answers at once.
"""

# Annotations are not postponed here: typer reads them at run time.
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from server import __version__
from server.commands.caption import caption
from server.commands.command import Command, OutputClosedError
from server.commands.data import data
from server.commands.evaluate import evaluate, experiment
from server.commands.options import PREFIX, CommandError, variable_of
from server.commands.score import score
from server.commands.serve import serve
from server.commands.tools import bench, doctor
from server.commands.train import train
from server.terminal import echo

app = typer.Typer(
    help="Captions from a refining masked-diffusion model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")
app.add_typer(score, name="score")
for _command in (caption, evaluate, experiment, doctor, serve):
    app.command(cls=Command)(_command)


def run() -> int:
    """Do what the command line says; its exit status.

    Whatever is wrong with its use is one line on stderr and a status that is not zero.
    """
    try:
        status = app(prog_name="rediff", standalone_mode=False)
    except TyperException as error:
        echo(f"rediff: {error.format_message()}", err=True)
        status = getattr(error, "exit_code", 2)
    except CommandError as error:
        echo(f"rediff: {error}", err=True)
        status = error.status
    except OutputClosedError:
        status = 0
    return status if isinstance(status, int) else 0


ELSEWHERE = {f"{PREFIX}{name}" for name in ("API_KEY", "CHROMIUM", "GOLDENS", "PUBLISH")}
"""Variables that no option has: of `rediff caption`, of the tests and of compose."""
SERVICE = re.compile("REDIFF_.*(SERVICE|PORT)_")
"""What Kubernetes sets for a service of this name."""


def mistyped(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for every variable that looks like one of ours and is none."""
    known = ELSEWHERE | set(_variables(typer.main.get_command(app)))
    ends = [name.removeprefix(PREFIX) for name in known]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known and not SERVICE.match(name):
            near = get_close_matches(name.removeprefix(PREFIX), ends, n=1)
            yield f"{name} is no setting{f': did you mean {PREFIX}{near[0]}?' if near else ''}"


def _variables(command: Any) -> Iterator[str]:
    yield from filter(None, map(variable_of, command.params))
    for inner in getattr(command, "commands", {}).values():
        yield from _variables(inner)


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"rediff-serve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    """Captions from a refining masked-diffusion model."""
    for line in mistyped(os.environ):
        echo(f"rediff: {line}", err=True)
