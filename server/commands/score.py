"""`rediff score`: captions by measures and file formats that others published."""

# Annotations are not postponed here: typer reads them at run time.
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rediff_model.files.atomic import write_json
from server.commands.command import Command
from server.commands.options import CommandError, option
from server.terminal import echo

score = typer.Typer(
    help="Score captions by published measures, see docs/benchmarks.md.", rich_markup_mode=None
)

Predictions = Annotated[
    Path,
    option(
        "Inputs", "--predictions", "Captions by picture, .json, .jsonl or .csv.", command="score"
    ),
]
JsonFile = Annotated[
    Path | None, option("Outputs", "--json", "JSON file for the scores.", command="score")
]


@score.command(cls=Command)
def caparena(
    results: Annotated[
        Path,
        option(
            "Inputs", "--results", "JSON list of judged battles of CapArena-Auto.", command="score"
        ),
    ],
    as_published: Annotated[
        bool,
        option(
            "Scoring",
            "--as-published",
            "Ignore verdicts that are not word for word as asked for.",
            command="score",
        ),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Score a finished result file of CapArena-Auto: net wins in percent, -100 to 100."""
    from training.evaluation.caparena import read_battles, score_battles

    try:
        scored = score_battles(read_battles(results, as_published=as_published))
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    figures = {"average": scored.average, **{f"vs {k}": v for k, v in scored.baselines.items()}}
    counts = {str(name): count for name, count in scored.outcomes.items()}
    _report(figures, {"words": scored.words} | counts, json_file, digits=2)


@score.command(cls=Command)
def chair(
    predictions: Predictions,
    annotations: Annotated[
        list[Path],
        option(
            "Inputs",
            "--annotations",
            "COCO instances or captions, or an object of picture to object names, .json; several.",
            command="score",
        ),
    ],
    json_file: JsonFile = None,
) -> None:
    """Score captions of COCO pictures: share of mentioned objects that are not there."""
    from training.evaluation.caption_files import read_predictions
    from training.evaluation.chair import chair_figures, read_truth

    try:
        captions, truth = read_predictions(predictions), read_truth(annotations)
        known = {key: shown for key in captions if (shown := truth.of(key)) is not None}
        if not known:
            first = next(iter(captions))
            raise CommandError(f"no picture of {predictions} is annotated, such as {first!r}")
        figures = chair_figures([captions[key] for key in known], list(known.values()))
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    counts = {"captions": len(known), "captions_without_annotation": len(captions) - len(known)}
    _report(figures, counts, json_file, digits=4)


@score.command(cls=Command)
def text(
    predictions: Predictions,
    references: Annotated[
        Path | None,
        option(
            "Inputs",
            "--references",
            "Reference captions by the same pictures, one or several each.",
            command="score",
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Score captions without a judge: repetition, length, empty and leaking captions.

    With references also BLEU, ROUGE-L and CIDEr-D.
    """
    from training.evaluation.caption_files import read_captions, read_predictions
    from training.evaluation.text_scores import reference_figures, text_figures

    try:
        captions = read_predictions(predictions)
        figures = text_figures(list(captions.values()))
        counts = {"captions": len(captions)}
        if references is not None:
            several = read_captions(references)
            shared = captions.keys() & several.keys()
            if not shared:
                raise CommandError(
                    f"no picture of {predictions} is in {references}: {next(iter(captions))!r} "
                    f"and {next(iter(several))!r} are their first ones"
                )
            figures |= reference_figures(captions, several)
            counts["references_without_caption"] = len(several) - len(shared)
            counts["captions_without_reference"] = len(captions) - len(shared)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    _report(figures, counts, json_file, digits=4)


def _report(
    figures: Mapping[str, Any], counts: Mapping[str, float], json_file: Path | None, *, digits: int
) -> None:
    """Print figures with their intervals, and counts; write both to a file."""
    width = max(map(len, [*figures, *counts]))
    for name, one in figures.items():
        low, high = f"{one.low:.{digits}f}", f"{one.high:.{digits}f}"
        echo(f"{name:<{width}}  {one.mean:9.{digits}f}  ({low} to {high})")
    for name, count in counts.items():
        echo(f"{name:<{width}}  {count:9.{0 if isinstance(count, int) else digits}f}")
    if json_file is not None:
        scores = {
            name: {"value": one.mean, "low": one.low, "high": one.high}
            for name, one in figures.items()
        }
        try:
            write_json(json_file, {"scores": scores, "counts": dict(counts)})
        except OSError as error:
            raise CommandError(f"--json {json_file}: {error}") from None
