"""`rediff caption`: captions of a few files, printed, and of whole data sets, written."""

# Annotations are not postponed here: typer reads them at run time.
import os
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import (
    BATCHING,
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
    UsageError,
    load_runner,
    option,
    read_settings,
)

Text = str | None
Number = int | None
Part = float | None

_IN, _OUT, _WORDS, _SAMPLING = "Inputs", "Outputs", "Prompt and wording", "Sampling"
_SERVER, _RAY = "Captions from a server", "Captions from a Ray cluster"


def caption(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF files, folders of them, webdataset "
            "shards (.tar), or parquet files.",
            metavar="[FILE]...",
            # What cannot be read is a failure of its own, and stops nothing.
            readable=False,
        ),
    ] = None,
    lists: Annotated[
        list[Path] | None, option(_IN, "--list", "Text file with a path a line; may be repeated.")
    ] = None,
    recursive: Annotated[
        bool, option(_IN, "--recursive", "Read the folders below a folder too.")
    ] = False,
    globs: Annotated[
        list[str] | None,
        option(
            _IN, "--glob", "Pattern of file names in folders; may be repeated.", "image suffixes"
        ),
    ] = None,
    naming: Annotated[
        Text,
        option(_IN, "--id", "Id of an image file: path (below its folder), name or stem.", "path"),
    ] = None,
    image_column: Annotated[
        Text, option(_IN, "--image-column", "Parquet column with image bytes.", "image")
    ] = None,
    id_column: Annotated[
        Text, option(_IN, "--id-column", "Parquet column with ids.", "row number")
    ] = None,
    out: Annotated[
        Path | None,
        option(_OUT, "--out", "File or folder for the captions.", "beside the images"),
    ] = None,
    output_format: Annotated[
        Text,
        option(
            _OUT,
            "--format",
            "txt, jsonl, json, csv, parquet or webdataset.",
            "from --out, else txt",
        ),
    ] = None,
    shard_size: Annotated[
        Number, option(_OUT, "--shard-size", "Images per webdataset shard.", 1000)
    ] = None,
    min_confidence: Annotated[
        Part,
        option(
            _OUT, "--min-confidence", "Write captions below this confidence to --doubtful.", 0.0
        ),
    ] = None,
    doubtful: Annotated[
        Path | None,
        option(
            _OUT, "--doubtful", "File or folder for doubtful captions.", ".doubtful beside --out"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        option(_OUT, "--report", "JSON lines file for images without a caption.", "stderr"),
    ] = None,
    strict: Annotated[
        bool, option(_OUT, "--strict", "Exit with 1 if an image has no caption.")
    ] = False,
    overwrite: Annotated[bool, option(_OUT, "--overwrite", "Replace existing captions.")] = False,
    resume: Annotated[bool, option(_OUT, "--resume", "Resume a run that was stopped.")] = False,
    as_json: Annotated[
        bool, option(_OUT, "--json", "Print a JSON object per file, for captions that are printed.")
    ] = False,
    progress: Annotated[
        bool | None,
        option(_OUT, "--progress/--no-progress", "Show a progress bar.", "on a terminal"),
    ] = None,
    prompt: Annotated[
        Text, option(_WORDS, "--prompt", "Prompt for every image.", "the default prompt")
    ] = None,
    prompt_file: Annotated[
        Path | None, option(_WORDS, "--prompt-file", "Text file with the prompt.")
    ] = None,
    prepend: Annotated[Text, option(_WORDS, "--prepend", "Text before every caption.")] = None,
    append: Annotated[Text, option(_WORDS, "--append", "Text after every caption.")] = None,
    trigger: Annotated[
        Text, option(_WORDS, "--trigger", "Words before everything, with a comma after them.")
    ] = None,
    drop_incomplete_sentence: Annotated[
        bool,
        option(
            _WORDS,
            "--drop-incomplete-sentence",
            "End a caption that was cut off at its last full sentence.",
        ),
    ] = False,
    preset: Annotated[
        Text,
        option(_SAMPLING, "--preset", "rediff, mask, adaptive or careful.", "the model's"),
    ] = None,
    max_new_tokens: Annotated[
        Number,
        option(
            _SAMPLING, "--max-new-tokens", "Tokens of a caption, up to the model's.", "the model's"
        ),
    ] = None,
    canvas_length: Annotated[
        Number, option(_SAMPLING, "--canvas-length", "Tokens of the canvas.", "the model's")
    ] = None,
    block_length: Annotated[
        Number, option(_SAMPLING, "--block-length", "Tokens denoised together.", "the model's")
    ] = None,
    tokens_per_step: Annotated[
        Number,
        option(_SAMPLING, "--tokens-per-step", "Tokens unmasked per step.", "from --preset"),
    ] = None,
    steps: Annotated[
        Number, option(_SAMPLING, "--steps", "Number of steps, instead of --tokens-per-step.")
    ] = None,
    refine: Annotated[
        bool | None,
        option(
            _SAMPLING, "--refine/--no-refine", "Revise unmasked tokens, or keep them as they are."
        ),
    ] = None,
    refine_fraction: Annotated[
        Part,
        option(
            _SAMPLING,
            "--refine-fraction",
            "Fraction of revealed tokens eligible for revision, the most confident first.",
        ),
    ] = None,
    refine_start: Annotated[
        Part,
        option(_SAMPLING, "--refine-start", "Revise only in this last fraction of the steps."),
    ] = None,
    reveal_threshold: Annotated[
        Part,
        option(
            _SAMPLING,
            "--reveal-threshold",
            "Also unmask every position whose confidence exceeds this.",
        ),
    ] = None,
    edit_threshold: Annotated[
        Part, option(_SAMPLING, "--edit-threshold", "Accept a revision only above this confidence.")
    ] = None,
    end_threshold: Annotated[
        Part,
        option(
            _SAMPLING,
            "--end-threshold",
            "Also unmask every predicted end of text whose confidence exceeds this.",
        ),
    ] = None,
    extra_refine_steps: Annotated[
        Number,
        option(
            _SAMPLING,
            "--extra-refine-steps",
            "Steps at most that only revise, after the last mask.",
            "the model's",
        ),
    ] = None,
    temperature: Annotated[
        Part, option(_SAMPLING, "--temperature", "Sampling temperature; 0 is greedy.", 0.0)
    ] = None,
    seed: Annotated[Number, option(_SAMPLING, "--seed", "Random seed; -1 draws a new one.")] = None,
    cfg_scale: Annotated[
        Part, option(_SAMPLING, "--cfg-scale", "Scale of classifier-free guidance.", 0.0)
    ] = None,
    remasking: Annotated[
        Text,
        option(
            _SAMPLING,
            "--remasking",
            "Unmask the most confident positions first (low_confidence), or random ones.",
        ),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    workers: Annotated[
        Number,
        option(
            BATCHING, "--workers", "Processes that decode images.", "processors but one, up to 8"
        ),
    ] = None,
    max_image_bytes: MaxImageBytes = None,
    max_image_pixels: MaxImagePixels = None,
    max_image_side: MaxImageSide = None,
    base_url: Annotated[
        Text,
        option(
            _SERVER,
            "--base-url",
            "Address of a running server; its API key in REDIFF_API_KEY.",
            "none",
            metavar="URL",
        ),
    ] = None,
    concurrency: Annotated[
        Number, option(_SERVER, "--concurrency", "Simultaneous requests.", 16)
    ] = None,
    retries: Annotated[
        Number, option(_SERVER, "--retries", "Retries of a request that failed.", 8)
    ] = None,
    ray: Annotated[
        bool, option(_RAY, "--ray", "Use a Ray cluster. Needs --out; reads no parquet.")
    ] = False,
    ray_engines: Annotated[
        Number,
        option(_RAY, "--ray-engines", "Engines, one per GPU.", "the cluster's GPUs, or 1"),
    ] = None,
    ray_group: Annotated[
        Number, option(_RAY, "--ray-group", "Images per task of an engine.", 64)
    ] = None,
) -> None:
    """Caption images, here, with a server or on a Ray cluster.

    Captions of files are printed: of one file the caption, of several files lines of `FILE:
    caption`. A file that cannot be read is reported on stderr, and the exit status is 1. Captions
    are written instead if there are folders, lists or shards, or with --out or --format: by default
    to a .txt file beside each image, skipping images that have one. See docs/datasets.md.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    settings = read_settings(given)
    from server.bulk.command import caption as run
    from server.bulk.item import BulkError
    from server.bulk.options import BulkOptions
    from server.bulk.order import Order

    try:
        options = BulkOptions.read(given)
        order = Order.read(settings, given, _question(prompt, prompt_file))
    except BulkError as error:
        raise UsageError(str(error)) from None
    try:
        key = None if options.base_url is None else _key()
        status = run(options, settings, order, lambda: load_runner(settings), key, as_json=as_json)
    except BulkError as error:
        raise CommandError(str(error)) from None
    raise typer.Exit(status)


def _key() -> str | None:
    """The key of `REDIFF_API_KEY`; None if there is none."""
    from rediff_model.network.keys import KeyTextError, clean_key

    try:
        return clean_key(os.environ.get("REDIFF_API_KEY", "")) or None
    except KeyTextError as error:
        raise UsageError(f"REDIFF_API_KEY: {error}") from None


def _question(prompt: str | None, prompt_file: Path | None) -> str | None:
    """The question of the two options that give one."""
    if prompt_file is None:
        return prompt
    if prompt is not None:
        raise UsageError("--prompt and --prompt-file are the same: give one")
    try:
        return prompt_file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CommandError(f"--prompt-file {prompt_file}: {reason}") from None
