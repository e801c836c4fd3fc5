"""`rediff caption`: captions of a few files, printed, and of whole data sets, written."""

# Annotations are not postponed here: typer reads them at run time.
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.options import (
    CommandError,
    Device,
    Dtype,
    MaxBatch,
    MaxImageBytes,
    MaxImagePixels,
    MaxImageSide,
    Model,
    Revision,
    Threads,
    load_runner,
    read_settings,
)

if TYPE_CHECKING:
    from server.bulk.options import BulkOptions
    from server.offline import Order
    from server.settings import Settings


def _option(name: str, help_text: str, default: str | None = None, metavar: str = "") -> Any:
    """An option with its variable; `default` is told where the command knows none."""
    return typer.Option(
        f"--{name}",
        envvar=f"REDIFF_{name.upper().replace('-', '_')}",
        help=help_text,
        show_default=default or True,
        metavar=metavar or None,
    )


def _switch(name: str, help_text: str) -> Any:
    """An option without a value."""
    return typer.Option(
        f"--{name}", envvar=f"REDIFF_{name.upper().replace('-', '_')}", help=help_text
    )


Text = str | None
Number = int | None
Part = float | None


def caption(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF files, folders of them, webdataset "
            "shards (.tar), parquet.",
            metavar="[FILE]...",
            # What cannot be read is a failure of its own, and stops nothing.
            readable=False,
        ),
    ] = None,
    lists: Annotated[
        list[Path] | None, _option("list", "A file with a path a line; may be repeated.")
    ] = None,
    recursive: Annotated[bool, _switch("recursive", "Folders below a folder as well.")] = False,
    globs: Annotated[
        list[str] | None, _option("glob", "Which files of a folder; may be repeated.", "pictures")
    ] = None,
    naming: Annotated[
        Text, _option("id", "Of a file: its path below the folder, name or stem.", "path")
    ] = None,
    image_column: Annotated[Text, _option("image-column", "Of parquet.", "image")] = None,
    id_column: Annotated[Text, _option("id-column", "Of parquet.", "row number")] = None,
    out: Annotated[
        Path | None, _option("out", "File or folder to write.", "beside the pictures")
    ] = None,
    output_format: Annotated[
        Text,
        _option("format", "txt, jsonl, json, csv, parquet or webdataset.", "by --out, else txt"),
    ] = None,
    shard_size: Annotated[Number, _option("shard-size", "Pictures a shard.", "1000")] = None,
    min_confidence: Annotated[
        Part, _option("min-confidence", "Captions below it go to the second output.", "0")
    ] = None,
    doubtful: Annotated[
        Path | None, _option("doubtful", "The second output.", ".doubtful beside --out")
    ] = None,
    report: Annotated[
        Path | None, _option("report", "JSON lines of what has no caption, and why.", "stderr")
    ] = None,
    strict: Annotated[bool, _switch("strict", "Status 1 if a picture has no caption.")] = False,
    overwrite: Annotated[bool, _switch("overwrite", "Replace what is there.")] = False,
    resume: Annotated[bool, _switch("resume", "Go on with what a stopped run wrote.")] = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            envvar="REDIFF_PROGRESS",
            help="Draw a bar.",
            show_default="on a terminal",
        ),
    ] = None,
    workers: Annotated[
        Number, _option("workers", "Processes that decode.", "processors but one, up to 8")
    ] = None,
    base_url: Annotated[
        Text, _option("base-url", "A running server; its key in REDIFF_API_KEY.", "none")
    ] = None,
    concurrency: Annotated[
        Number, _option("concurrency", "Requests to it at a time.", "16")
    ] = None,
    retries: Annotated[
        Number, _option("retries", "Attempts after the first, for each picture.", "8")
    ] = None,
    ray: Annotated[
        bool, _switch("ray", "Engines on a Ray cluster. Needs --out; reads no parquet.")
    ] = False,
    ray_engines: Annotated[
        Number, _option("ray-engines", "How many, one a GPU.", "the cluster's GPUs, or 1")
    ] = None,
    ray_group: Annotated[
        Number, _option("ray-group", "Pictures handed to an engine at a time.", "64")
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    max_image_bytes: MaxImageBytes = None,
    max_image_pixels: MaxImagePixels = None,
    max_image_side: MaxImageSide = None,
    prompt: Annotated[Text, _option("prompt", "The question.")] = None,
    prompt_file: Annotated[Path | None, _option("prompt-file", "The same, from a file.")] = None,
    prepend: Annotated[Text, _option("prepend", "Text before every caption.")] = None,
    append: Annotated[Text, _option("append", "Text behind every caption.")] = None,
    trigger: Annotated[Text, _option("trigger", "Words before all, with a comma.")] = None,
    drop_incomplete_sentence: Annotated[
        bool,
        _switch(
            "drop-incomplete-sentence",
            "End a caption that was cut off at its last full sentence.",
        ),
    ] = False,
    preset: Annotated[
        Text, _option("preset", "rediff, mask, adaptive or careful.", "the model's")
    ] = None,
    max_new_tokens: Annotated[
        Number, _option("max-new-tokens", "Most tokens, up to the model's.", "the model's")
    ] = None,
    canvas_length: Annotated[
        Number, _option("canvas-length", "Tokens of the canvas.", "the model's")
    ] = None,
    block_length: Annotated[
        Number, _option("block-length", "Tokens denoised together.", "the model's")
    ] = None,
    tokens_per_step: Annotated[
        Number, _option("tokens-per-step", "Tokens revealed a step.", "by --preset")
    ] = None,
    steps: Annotated[Number, _option("steps", "Steps, for --tokens-per-step.")] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine", envvar="REDIFF_REFINE", help="Revise revealed tokens."
        ),
    ] = None,
    refine_fraction: Annotated[
        Part, _option("refine-fraction", "Only this part, the most confident.")
    ] = None,
    refine_start: Annotated[
        Part, _option("refine-start", "Only in this last part of the steps.")
    ] = None,
    reveal_threshold: Annotated[
        Part, _option("reveal-threshold", "Reveal besides what is more confident.")
    ] = None,
    edit_threshold: Annotated[
        Part, _option("edit-threshold", "Revise only by what is more confident.")
    ] = None,
    end_threshold: Annotated[
        Part, _option("end-threshold", "Reveal besides every end more confident.")
    ] = None,
    extra_refine_steps: Annotated[
        Number, _option("extra-refine-steps", "Most steps after the last mask.", "the model's")
    ] = None,
    temperature: Annotated[Part, _option("temperature", "0 is greedy.", "0")] = None,
    seed: Annotated[Number, _option("seed", "Repeats chance.")] = None,
    cfg_scale: Annotated[Part, _option("cfg-scale", "Guidance away from no prompt.", "0")] = None,
    remasking: Annotated[Text, _option("remasking", "low_confidence or random.")] = None,
    as_json: Annotated[bool, _switch("json", "Print one JSON object a file.")] = False,
) -> None:
    """Caption pictures here, with the server that --base-url names, or on a cluster with --ray.

    Files alone are printed: of one the caption, of several `FILE: caption`; one that cannot be
    read is told on stderr, and the exit status is 1. With folders, lists, shards, --out or
    --format captions are written: by default a .txt beside each picture, those that are there
    already skipped. See docs/datasets.md.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    settings = read_settings(given)
    from server.bulk.command import caption as run
    from server.bulk.item import BulkError
    from server.bulk.options import BulkOptions
    from server.offline import CannotCaption, Order

    try:
        options = BulkOptions.read(given)
        order = Order.read(settings, given, _question(prompt, prompt_file))
        if options.writes or options.base_url is not None:
            key = _key()
            status = run(
                options, settings, order, lambda: load_runner(settings), key, as_json=as_json
            )
        else:
            status = _print(options, settings, order, as_json=as_json)
    except (BulkError, CannotCaption) as error:
        raise CommandError(str(error)) from None
    raise typer.Exit(status)


def _key() -> str | None:
    """The key of `REDIFF_API_KEY`; None if there is none."""
    from rediff_model.network.keys import KeyTextError, clean_key

    try:
        return clean_key(os.environ.get("REDIFF_API_KEY", "")) or None
    except KeyTextError as error:
        raise CommandError(f"REDIFF_API_KEY: {error}") from None


def _question(prompt: str | None, prompt_file: Path | None) -> str | None:
    """The question of the two options that give one."""
    if prompt_file is None:
        return prompt
    if prompt is not None:
        raise CommandError("--prompt and --prompt-file are the same: give one")
    try:
        return prompt_file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CommandError(f"--prompt-file {prompt_file}: {reason}") from None


def _print(options: "BulkOptions", settings: "Settings", order: "Order", *, as_json: bool) -> int:
    """Captions of a few files on standard output; the exit status."""
    from server.bulk.names import one_line, utf8
    from server.bulk.printed import json_line
    from server.offline import Captions

    captions = Captions.open(lambda: load_runner(settings), settings, order)
    for warning in captions.fitted.warnings:
        typer.echo(f"rediff: {warning}", err=True)
    warned = {"warnings": captions.fitted.warnings} if captions.fitted.warnings else {}
    failed = False
    for result in captions.of(options.files):
        failed |= result.generation is None
        reason = "" if result.generation is None else result.generation.finish_reason
        text = options.wording.around(result.text, reason)
        if as_json:
            row = result.row() | {"file": utf8(str(result.path))}
            if result.generation is not None:
                row |= {"caption": text, **warned}
            typer.echo(json_line(row))
        elif result.generation is None:
            typer.echo(f"rediff: {one_line(str(result.path))}: {result.error}", err=True)
        else:
            name = one_line(str(result.path))
            typer.echo(text if len(options.files) == 1 else f"{name}: {text}")
    return int(failed)
