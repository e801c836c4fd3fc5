"""`rediff data`: makes and prepares data sets."""

# Annotations are not postponed here: typer reads them at run time.
import re
from pathlib import Path
from typing import Annotated, get_args

import typer

from server.commands.command import Command
from server.commands.options import (
    CommandError,
    Model,
    Revision,
    Split,
    extra,
    option,
    read_settings,
)
from server.terminal import echo

data = typer.Typer(help="Make data sets.", rich_markup_mode=None)

_DATA = "Data"


@data.command(cls=Command)
def scenes(
    n: Annotated[int, option(_DATA, "--n", "Number of scenes.", command="scenes", least=1)],
    out: Annotated[Path, option(_DATA, "--out", "Folder to write.", command="scenes")],
    split: Annotated[
        Split,
        option(
            _DATA, "--split", ", ".join(get_args(Split)) + ".", command="scenes", metavar="SPLIT"
        ),
    ] = "test",
    seed: Annotated[int, option(_DATA, "--seed", "Random seed.", command="scenes", least=0)] = 0,
    overwrite: Annotated[
        bool, option(_DATA, "--overwrite", "Replace existing scenes.", command="scenes")
    ] = False,
) -> None:
    """Write sticker scenes: PNG pictures and annotations.jsonl."""
    _check_folder(out, overwrite=overwrite)
    from training.stickers.atlas import Atlas
    from training.stickers.export import write_split
    from training.stickers.grammar import compose

    try:
        write_split(split, n, seed, out, Atlas.load(), compose, overwrite=overwrite)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None


@data.command(cls=Command)
def vicrit(
    file: Annotated[Path, typer.Argument(help="ViCrit rows, .json or .jsonl.")],
    out: Annotated[Path, option(_DATA, "--out", "File for the rows, .jsonl.", command="vicrit")],
    model: Annotated[
        str, option(_DATA, "--model", "Checkpoint of the tokenizer.", command="vicrit")
    ],
    revision: Revision = None,
    question: Annotated[
        str | None,
        option(
            _DATA,
            "--question",
            "Prompt of every row.",
            "the default prompt",
            command="vicrit",
        ),
    ] = None,
) -> None:
    """Turn ViCrit pairs into rows with one correction of equal token count each.

    Rows that are left out are reported on stderr, with file and line.
    """
    from tokenizers import Tokenizer

    from rediff_model.chat_template import DEFAULT_QUESTION
    from rediff_model.checkpoint import resolve
    from training.data.problems import Report
    from training.data.vicrit import convert

    report = Report()
    try:
        tokens = resolve(model, revision=revision) / "tokenizer.json"
        if not tokens.is_file():
            raise CommandError(f"{tokens.parent} has no {tokens.name}, whose tokens are counted")
        tokenizer = Tokenizer.from_file(str(tokens))
        count = convert(file, tokenizer, out, question or DEFAULT_QUESTION, report)
    except CommandError:
        raise
    except Exception as error:  # The tokenizer's library raises nothing more specific.
        raise CommandError(" ".join(str(error).split())) from None
    for problem in report.problems:
        echo(str(problem), err=True)
    echo(f"{count} rows; left out: {report.summary()}")


@data.command(cls=Command)
def errors(
    drafts: Annotated[Path, typer.Argument(help="drafts.jsonl of a round of Stage II on scenes.")],
    out: Annotated[Path, option(_DATA, "--out", "Folder for table and plot.", command="errors")],
    config: Annotated[
        Path,
        option(
            _DATA,
            "--config",
            "Stage I configuration; its last phase is compared with.",
            command="errors",
        ),
    ],
    model: Model = None,
    seed: Annotated[
        int,
        option(_DATA, "--seed", "Random seed of the synthetic errors.", command="errors", least=0),
    ] = 0,
) -> None:
    """Compare the errors of drafts with those that Stage I trains on."""
    settings = read_settings({"model": model})
    with extra("train"):
        from training.config import SceneTraining, TrainConfigError
        from training.correction.records import RecordError
        from training.scenes.error_report import as_text, compare, write
        from training.scenes.stage1 import mix_of
        from training.stickers.atlas import Atlas

    try:
        shape = SceneTraining.read(config)
        if not shape.phases:
            raise CommandError(f"{config}: phases is empty, and the last is what is compared with")
        rows = compare(drafts, settings.model, mix_of(shape.phases[-1]), Atlas.load(), seed)
        write(rows, out)
    except (TrainConfigError, RecordError, ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    echo(as_text(rows))


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything, or when overwriting anything but scenes."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not overwrite:
            raise CommandError(f"{folder} is not empty; --overwrite replaces it")
        if not re.fullmatch(r"annotations\.jsonl|\d{6,}\.png", path.name):
            raise CommandError(f"{folder} holds {path.name}, which is no part of a set of scenes")
