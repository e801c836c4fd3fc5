"""`rediff data`: makes and prepares data sets."""

# Annotations are not postponed here: typer reads them at run time.
import re
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import CommandError, Model, Revision, extra, read_settings

data = typer.Typer(help="Make data sets.", rich_markup_mode=None)


@data.command()
def scenes(
    n: Annotated[int, typer.Option("--n", envvar="REDIFF_N", help="How many scenes.", min=1)],
    out: Annotated[Path, typer.Option(envvar="REDIFF_OUT", help="Folder to write to.")],
    split: Annotated[str, typer.Option(envvar="REDIFF_SPLIT", help="Which scenes.")] = "test",
    seed: Annotated[int, typer.Option(envvar="REDIFF_SEED", help="Draws the scenes.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", envvar="REDIFF_OVERWRITE", help="Replace older scenes.")
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


@data.command()
def vicrit(
    file: Annotated[Path, typer.Argument(help="ViCrit rows, .json or .jsonl.")],
    out: Annotated[Path, typer.Option(envvar="REDIFF_OUT", help="Rows to write, .jsonl.")],
    model: Annotated[
        str, typer.Option(envvar="REDIFF_MODEL", help="Checkpoint whose tokenizer counts.")
    ],
    revision: Revision = None,
    question: Annotated[
        str | None, typer.Option(envvar="REDIFF_QUESTION", help="What is asked of every picture.")
    ] = None,
) -> None:
    """Turn ViCrit pairs into rows with one correction of equal token count each.

    What is left out is told on stderr, with file and line.
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
        typer.echo(str(problem), err=True)
    typer.echo(f"{count} rows; left out: {report.summary()}")


@data.command()
def errors(
    drafts: Annotated[Path, typer.Argument(help="drafts.jsonl of a round of Stage II on scenes.")],
    out: Annotated[Path, typer.Option(envvar="REDIFF_OUT", help="Folder for table and plot.")],
    config: Annotated[
        Path, typer.Option(envvar="REDIFF_CONFIG", help="Stage I to compare with; its last phase.")
    ],
    model: Model = None,
    seed: Annotated[
        int, typer.Option(envvar="REDIFF_SEED", help="Draws the synthetic.", min=0)
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
    typer.echo(as_text(rows))


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything, or when overwriting anything but scenes."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not overwrite:
            raise CommandError(f"{folder} is not empty; --overwrite replaces it")
        if not re.fullmatch(r"annotations\.jsonl|\d{6,}\.png", path.name):
            raise CommandError(f"{folder} holds {path.name}, which is no part of a set of scenes")
