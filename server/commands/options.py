"""Options that several commands share, and how a command fails."""

# Annotations are not postponed here: typer reads them at run time.
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from server.engine.request import Runner
    from server.settings import Settings


class CommandError(Exception):
    """A command that cannot do its work; the message is one line."""


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


def setting(default: object, help_text: str, name: str, metavar: str = "TEXT") -> Any:
    """An option that stands for a field of the settings, which check it and know its default."""
    return typer.Option(
        f"--{name.replace('_', '-')}",
        envvar=f"REDIFF_{name.upper()}",
        help=help_text,
        show_default=str(default),
        metavar={int: "INTEGER", float: "NUMBER"}.get(type(default), metavar),
    )


def settings_list(help_text: str, flag: str, name: str, metavar: str) -> Any:
    """An option that may be repeated, for a field that holds several values."""
    return typer.Option(
        flag, envvar=f"REDIFF_{name.upper()}", help=help_text, show_default="none", metavar=metavar
    )


Model = Annotated[
    str | None,
    setting("the embedded checkpoint", "Checkpoint folder, hub id, or embedded-384.", "model"),
]
Revision = Annotated[str | None, setting("newest", "Branch, tag or commit on the hub.", "revision")]
Device = Annotated[str | None, setting("auto", "auto, cpu, cuda or cuda:N.", "device")]
Dtype = Annotated[str | None, setting("auto", "auto, float32, bfloat16 or float16.", "dtype")]
Threads = Annotated[
    str | None, setting("torch's own", "Threads of torch on the CPU.", "threads", "INTEGER")
]
MaxBatch = Annotated[str | None, setting(16, "Pictures that share a step.", "max_batch")]
MaxImageBytes = Annotated[str | None, setting(20971520, "Largest picture file.", "max_image_bytes")]
MaxImagePixels = Annotated[
    str | None, setting(50000000, "Most pixels of a picture.", "max_image_pixels")
]
MaxImageSide = Annotated[str | None, setting(30000, "Longest side of a picture.", "max_image_side")]


def read_settings(given: dict[str, Any]) -> "Settings":
    """The settings that options and environment give; raises CommandError for a bad value."""
    from server.settings import BadSettings, Settings

    try:
        return Settings.read({k: v for k, v in given.items() if k in Settings.model_fields})
    except BadSettings as error:
        raise CommandError(str(error)) from None


def load_runner(settings: "Settings") -> "Runner":
    """The model, ready to run; when serving, in the engine's thread. Imports torch."""
    from server.engine.model_runner import SamplerRunner

    return SamplerRunner.load(settings.engine())
