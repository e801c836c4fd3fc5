"""`rediff train`: Stage I and Stage II from a configuration file."""

# Annotations are not postponed here: typer reads them at run time.
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from server.commands.command import Command
from server.commands.options import CommandError, UsageError, extra, option
from server.terminal import echo

train = typer.Typer(help="Train checkpoints.", rich_markup_mode=None)


Config = Annotated[
    Path,
    option("Training", "--config", "Configuration, YAML; see training/configs.", command="train"),
]
RunFolder = Annotated[
    Path,
    option(
        "Training", "--out", "Folder of the run; an earlier run in it is resumed.", command="train"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the configuration, such as data.scenes=100; may be repeated.",
        rich_help_panel="Training",
    ),
]


@train.command(cls=Command)
def stage1(config: Config, out: RunFolder, override: Overrides = None) -> None:
    """Stage I: an embedded model on sticker scenes, or a checkpoint on conversations."""
    with extra("train"):
        from training.run import stage1 as run

    _train(lambda: run(config, override or (), out))


@train.command(cls=Command)
def stage2(config: Config, out: RunFolder, override: Overrides = None) -> None:
    """Let the model draft, an expert correct, and train on the corrections."""
    with extra("train"):
        from training.run import stage2 as run

    _train(lambda: run(config, override or (), out))


def _train(run: Callable[[], Path]) -> None:
    """Run a training with its progress on stderr and print the checkpoint's folder."""
    import logging

    from training.config import TrainConfigError
    from training.correction.experts.protocol import ExpertError
    from training.loop.state import TrainingError, processes

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # They tell of every request that the expert answers, through the bar that counts them.
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        checkpoint = run()
        if processes().is_main_process:
            echo(checkpoint)
    except TrainConfigError as error:
        raise UsageError(str(error)) from None
    except (TrainingError, ExpertError, OSError, ValueError) as error:
        raise CommandError(str(error)) from None
