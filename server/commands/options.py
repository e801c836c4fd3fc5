"""Options that several commands share, and how a command fails."""

# Annotations are not postponed here: typer reads them at run time.
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from server.engine.request import Runner
    from server.settings import Settings


PREFIX = "REDIFF_"
"""Of every environment variable."""


class CommandError(Exception):
    """A command that cannot do its work; the message is one line."""

    status = 1


class UsageError(CommandError):
    """A command line or environment that no command can work with. Fields are named as such."""

    status = 2


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports that need the packages of an optional extra.

    Raises:
        CommandError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this needs {error.name}: pip install 'rediff-serve[{name}]', or make install"
        ) from None


def option(
    group: str,
    flag: str,
    help_text: str,
    default: object = None,
    *,
    command: str = "",
    variable: str = "",
    metavar: str | None = None,
    least: int | None = None,
) -> Any:
    """An option in a group of the help, with its environment variable.

    Args:
        default: what is shown, where the function's own default is None.
        command: begins the variable of an option that other commands lack or mean otherwise.
        variable: name of the variable without the prefix, if it is not the flag's.
        least: smallest number that is accepted.
    """
    name = variable or "_".join(filter(None, (command, flag.partition("/")[0].strip(" -"))))
    return typer.Option(
        flag,
        envvar=PREFIX + name.upper().replace("-", "_"),
        help=help_text,
        show_default=True if default is None else str(default),
        metavar=metavar or {int: "INTEGER", float: "NUMBER"}.get(type(default)),
        rich_help_panel=group,
        min=least,
    )


def variable_of(parameter: Any) -> str | None:
    """The environment variable of an option."""
    variable: str | None = getattr(parameter, "envvar", None)
    return variable


Split = Literal["train", "validation", "test", "held_out_pairs"]
"""The streams of sticker scenes."""

MODEL, BATCHING, LIMITS = "Model", "Batching", "Limits"

Model = Annotated[
    str | None,
    option(
        MODEL,
        "--model",
        "Checkpoint folder, hub id (OWNER/NAME), or embedded-384.",
        "the embedded checkpoint",
    ),
]
Revision = Annotated[
    str | None, option(MODEL, "--revision", "Branch, tag or commit on the hub.", "newest")
]
Device = Annotated[str | None, option(MODEL, "--device", "auto, cpu, cuda or cuda:N.", "auto")]
Dtype = Annotated[
    str | None, option(MODEL, "--dtype", "auto, float32, bfloat16 or float16.", "auto")
]
Threads = Annotated[
    str | None,
    option(MODEL, "--threads", "CPU threads of torch.", "torch's own", metavar="INTEGER"),
]
MaxBatch = Annotated[
    str | None, option(BATCHING, "--max-batch", "Images per forward pass at most.", 16)
]
MaxImageBytes = Annotated[
    str | None, option(LIMITS, "--max-image-bytes", "Largest image file in bytes.", 20971520)
]
MaxImagePixels = Annotated[
    str | None, option(LIMITS, "--max-image-pixels", "Pixels of an image at most.", 50000000)
]
MaxImageSide = Annotated[
    str | None, option(LIMITS, "--max-image-side", "Pixels of the longer side at most.", 30000)
]


def read_settings(given: dict[str, Any]) -> "Settings":
    """The settings that options and environment give; raises UsageError for a bad value."""
    from server.settings import BadSettings, Settings

    try:
        return Settings.read({k: v for k, v in given.items() if k in Settings.model_fields})
    except BadSettings as error:
        raise UsageError(str(error)) from None


def load_runner(settings: "Settings") -> "Runner":
    """The model, ready to run; when serving, in the engine's thread. Imports torch."""
    from server.engine.model_runner import SamplerRunner

    return SamplerRunner.load(settings.engine())
