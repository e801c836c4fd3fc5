"""The command `rediff`: reads options, wires the parts together, and tells errors in a line.

Heavy imports stand inside the commands, so that `rediff --help` answers at once.
"""

# Annotations are not postponed here: typer reads them at run time.
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from server import __version__

if TYPE_CHECKING:
    from server.engine.request import Runner
    from server.settings import Settings

app = typer.Typer(
    help="Captions from a refining masked-diffusion model.",
    add_completion=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Make data sets.", rich_markup_mode=None)
app.add_typer(data, name="data")
train = typer.Typer(help="Train checkpoints.", rich_markup_mode=None)
app.add_typer(train, name="train")


def main() -> None:
    """Run the command line; whatever is wrong with its use is one line and a non-zero status."""
    # Read when torch is first imported. With the default, threads of torch that wait for each
    # other spin, and on a machine with other work a step takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = app(prog_name="rediff", standalone_mode=False)
    except TyperException as error:
        typer.echo(f"rediff: {error.format_message()}", err=True)
        status = getattr(error, "exit_code", 2)
    except CommandError as error:
        typer.echo(f"rediff: {error}", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


class CommandError(Exception):
    """A command that cannot do its work; the message is one line."""


def _setting(default: object, help_text: str, name: str, metavar: str = "TEXT") -> Any:
    """An option that stands for a field of the settings, which check it and know its default."""
    return typer.Option(
        f"--{name.replace('_', '-')}",
        envvar=f"REDIFF_{name.upper()}",
        help=help_text,
        show_default=str(default),
        metavar={int: "INTEGER", float: "NUMBER"}.get(type(default), metavar),
    )


def _settings_list(help_text: str, flag: str, name: str, metavar: str) -> Any:
    """An option that may be repeated, for a field that holds several values."""
    return typer.Option(
        flag, envvar=f"REDIFF_{name.upper()}", help=help_text, show_default="none", metavar=metavar
    )


Model = Annotated[
    str | None, _setting("the embedded checkpoint", "Checkpoint folder or hub id.", "model")
]
Revision = Annotated[
    str | None, _setting("newest", "Branch, tag or commit on the hub.", "revision")
]
Device = Annotated[str | None, _setting("auto", "auto, cpu, cuda or cuda:N.", "device")]
Dtype = Annotated[str | None, _setting("auto", "auto, float32, bfloat16 or float16.", "dtype")]
Threads = Annotated[
    str | None, _setting("torch's own", "Threads of torch on the CPU.", "threads", "INTEGER")
]
MaxBatch = Annotated[str | None, _setting(16, "Pictures that share a step.", "max_batch")]
MaxImageBytes = Annotated[
    str | None, _setting(20971520, "Largest picture file.", "max_image_bytes")
]
MaxImagePixels = Annotated[
    str | None, _setting(50000000, "Most pixels of a picture.", "max_image_pixels")
]
MaxImageSide = Annotated[
    str | None, _setting(30000, "Longest side of a picture.", "max_image_side")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rediff-serve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show it."),
    ] = False,
) -> None:
    """Captions from a refining masked-diffusion model."""


@app.command()
def serve(
    host: Annotated[str | None, _setting("127.0.0.1", "Address to listen on.", "host")] = None,
    port: Annotated[str | None, _setting(8000, "0 takes a free one.", "port")] = None,
    model: Model = None,
    revision: Revision = None,
    served_model_name: Annotated[
        str | None, _setting("from --model", "Name that clients see.", "served_model_name")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    max_rows: Annotated[
        str | None,
        _setting("what fits", "Prompt and canvas rows that run at a time.", "max_rows", "INTEGER"),
    ] = None,
    max_prefill_rows: Annotated[
        str | None, _setting(4096, "Prompt rows that join in one step.", "max_prefill_rows")
    ] = None,
    prefix_refresh_interval: Annotated[
        str | None,
        _setting(
            1,
            "With full prefix attention, steps after which a prompt is computed again; 1 is exact; "
            "or never.",
            "prefix_refresh_interval",
        ),
    ] = None,
    vision_cache_bytes: Annotated[
        str | None,
        _setting(268435456, "Memory for features of known pictures.", "vision_cache_bytes"),
    ] = None,
    max_queue: Annotated[
        str | None, _setting(256, "Waiting requests; one more is refused.", "max_queue")
    ] = None,
    max_canvas: Annotated[
        str | None, _setting(1024, "Longest canvas, and most steps.", "max_canvas")
    ] = None,
    prepare_threads: Annotated[
        str | None, _setting(2, "Pictures decoded at the same time.", "prepare_threads")
    ] = None,
    max_image_bytes: MaxImageBytes = None,
    max_image_pixels: MaxImagePixels = None,
    max_image_side: MaxImageSide = None,
    max_body_bytes: Annotated[
        str | None, _setting(33554432, "Largest request body.", "max_body_bytes")
    ] = None,
    max_buffered_bytes: Annotated[
        str | None, _setting(536870912, "All bodies held at a time.", "max_buffered_bytes")
    ] = None,
    max_prompt_characters: Annotated[
        str | None, _setting(4000, "Longest prompt or draft.", "max_prompt_characters")
    ] = None,
    max_prompt_tokens: Annotated[
        str | None, _setting(1024, "The same in tokens.", "max_prompt_tokens")
    ] = None,
    request_timeout: Annotated[
        str | None, _setting(60.0, "Seconds for a caption.", "request_timeout")
    ] = None,
    max_request_timeout: Annotated[
        str | None, _setting(600.0, "Most a request may ask for.", "max_request_timeout")
    ] = None,
    body_timeout: Annotated[
        str | None, _setting(30.0, "Seconds for reading a body.", "body_timeout")
    ] = None,
    drain_timeout: Annotated[
        str | None, _setting(30.0, "Seconds that SIGTERM leaves.", "drain_timeout")
    ] = None,
    log_level: Annotated[
        str | None, _setting("info", "debug, info, warning or error.", "log_level")
    ] = None,
    log_format: Annotated[
        str | None, _setting("text", "text, or json with one object a line.", "log_format")
    ] = None,
    api_keys: Annotated[
        list[str] | None,
        _settings_list(
            "A key that lets clients in; may be repeated. Others see a command line: prefer the "
            "variable or the file.",
            "--api-key",
            "api_keys",
            "KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        str | None, _setting("none", "File with a key a line.", "api_key_file", "FILE")
    ] = None,
    metrics_public: Annotated[
        bool | None,
        typer.Option(
            "--metrics-public",
            envvar="REDIFF_METRICS_PUBLIC",
            help="Show /metrics without a key.",
            show_default="False",
        ),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        _settings_list(
            "A web origin whose pages may call the server, or *; may be repeated.",
            "--cors-origin",
            "cors_origins",
            "ORIGIN",
        ),
    ] = None,
    image_hosts: Annotated[
        list[str] | None,
        _settings_list(
            "A host from which pictures may be fetched by https, or *.DOMAIN; may be repeated.",
            "--image-host",
            "image_hosts",
            "HOST",
        ),
    ] = None,
    image_fetch_timeout: Annotated[
        str | None, _setting(5.0, "Seconds for fetching one.", "image_fetch_timeout")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        _setting("none", "Where traces go: http://…:4318/v1/traces.", "otlp_endpoint", "URL"),
    ] = None,
) -> None:
    """Serve captions over HTTP until SIGTERM or SIGINT."""
    settings = _settings(dict(locals()))
    from server.api.process import CannotServe, run

    try:
        run(settings, lambda: _load(settings))
    except CannotServe as error:
        raise CommandError(str(error)) from None


@app.command()
def caption(
    files: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WEBP files.", metavar="FILE")],
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    max_image_bytes: MaxImageBytes = None,
    max_image_pixels: MaxImagePixels = None,
    max_image_side: MaxImageSide = None,
    prompt: Annotated[
        str | None, typer.Option(envvar="REDIFF_PROMPT", help="The question.")
    ] = None,
    preset: Annotated[
        str, typer.Option(envvar="REDIFF_PRESET", help="rediff, mask or adaptive.")
    ] = "rediff",
    tokens_per_step: Annotated[
        int | None, typer.Option(envvar="REDIFF_TOKENS_PER_STEP", help="Tokens revealed a step.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(envvar="REDIFF_STEPS", help="Steps, for --tokens-per-step.")
    ] = None,
    canvas_length: Annotated[
        int | None, typer.Option(envvar="REDIFF_CANVAS_LENGTH", help="Most tokens.")
    ] = None,
    refine: Annotated[
        bool | None, typer.Option(envvar="REDIFF_REFINE", help="Revise revealed tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(envvar="REDIFF_TEMPERATURE", help="0 is greedy.")
    ] = None,
    seed: Annotated[int | None, typer.Option(envvar="REDIFF_SEED", help="Repeats chance.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", envvar="REDIFF_JSON", help="One JSON object a file.")
    ] = False,
) -> None:
    """Print a caption of each file, without a server.

    Of one file the caption alone, of several `FILE: caption`. A file that cannot be read is told
    on stderr, and the exit status is 1.
    """
    given = dict(locals())
    settings = _settings(given)
    from server.offline import CannotCaption, Captions

    try:
        captions = Captions.open(lambda: _load(settings), settings, given, prompt)
    except CannotCaption as error:
        raise CommandError(str(error)) from None
    failed = False
    for result in captions.of(files):
        failed |= result.generation is None
        if as_json:
            typer.echo(json.dumps(result.row(), ensure_ascii=False))
        elif result.generation is None:
            typer.echo(f"rediff: {result.path}: {result.error}", err=True)
        else:
            typer.echo(result.text if len(files) == 1 else f"{result.path}: {result.text}")
    raise typer.Exit(int(failed))


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
    from training.scenes.atlas import Atlas
    from training.scenes.export import write_split
    from training.scenes.grammar import compose

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

    from rediff_model.checkpoint import resolve
    from rediff_model.prompt import DEFAULT_QUESTION
    from training.report import Report
    from training.vicrit import convert

    report = Report()
    try:
        tokenizer = Tokenizer.from_file(str(resolve(model, revision=revision) / "tokenizer.json"))
        count = convert(file, tokenizer, out, question or DEFAULT_QUESTION, report)
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
    seed: Annotated[int, typer.Option(envvar="REDIFF_SEED", help="Draws the synthetic.")] = 0,
) -> None:
    """Compare the errors of drafts with those that Stage I trains on."""
    settings = _settings({"model": model})
    from training.config import SceneTraining, TrainConfigError
    from training.records import RecordError
    from training.scenes.atlas import Atlas
    from training.scenes.error_report import as_text, compare, write
    from training.stage1 import mix_of

    try:
        shape = SceneTraining.read(config)
        mix = mix_of(shape.phases[-1])
        rows = compare(drafts, settings.model, mix, Atlas.load(), seed)
        write(rows, out)
    except (TrainConfigError, RecordError, ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    typer.echo(as_text(rows))


Config = Annotated[
    Path, typer.Option(envvar="REDIFF_CONFIG", help="YAML file; see training/configs.")
]
RunFolder = Annotated[
    Path, typer.Option("--out", envvar="REDIFF_OUT", help="The run; what it holds is resumed.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one value: data.scenes=100."),
]


@train.command()
def stage1(config: Config, out: RunFolder, override: Overrides = None) -> None:
    """Stage I: an embedded model on sticker scenes, or a checkpoint on conversations."""
    from training.kinds import stage1 as run

    _train(lambda: run(config, override or (), out))


@train.command()
def stage2(config: Config, out: RunFolder, override: Overrides = None) -> None:
    """Let the model draft, an expert correct, and train on the corrections."""
    from training.kinds import stage2 as run

    _train(lambda: run(config, override or (), out))


def _train(run: Callable[[], Path]) -> None:
    """Run a training with its progress on stderr and print the checkpoint's folder."""
    import logging

    from training.config import TrainConfigError
    from training.experts.protocol import ExpertError
    from training.state import TrainingError, processes

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        checkpoint = run()
        if processes().is_main_process:
            typer.echo(checkpoint)
    except (TrainConfigError, TrainingError, ExpertError, OSError, ValueError) as error:
        raise CommandError(str(error)) from None


@app.command()
def evaluate(
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    split: Annotated[str, typer.Option(envvar="REDIFF_SPLIT", help="Which scenes.")] = "test",
    seed: Annotated[int, typer.Option(envvar="REDIFF_SEED", help="Draws the scenes.")] = 0,
    n: Annotated[int, typer.Option("--n", envvar="REDIFF_N", help="How many scenes.")] = 200,
    tokens_per_step: Annotated[
        str, typer.Option(envvar="REDIFF_TOKENS_PER_STEP", help="Comma-separated.")
    ] = "1,4,8",
    refine: Annotated[str, typer.Option(envvar="REDIFF_REFINE", help="on, off or both.")] = "on",
    block_length: Annotated[
        int | None, typer.Option(envvar="REDIFF_BLOCK_LENGTH", help="Tokens denoised together.")
    ] = None,
    atlas: Annotated[
        Path | None, typer.Option(envvar="REDIFF_ATLAS", help="Pictures of another vendor.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", envvar="REDIFF_JSON", help="File for the figures.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(envvar="REDIFF_CAPTIONS", help="File for every caption.")
    ] = None,
) -> None:
    """Caption unseen sticker scenes and score them with the exact evaluator."""
    settings = _settings(dict(locals()))
    kinds = {"on": (True,), "off": (False,), "both": (False, True)}
    if refine not in kinds:
        raise CommandError(f"--refine must be on, off or both, got {refine!r}")
    sizes = tokens_per_step.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise CommandError(f"--tokens-per-step must list positive numbers, got {tokens_per_step!r}")
    from server.engine.runner import load_captioner
    from training.evaluate import evaluate_split, table, write_captions
    from training.scenes.atlas import Atlas

    try:
        rows, scenes = evaluate_split(
            load_captioner(settings.engine()),
            split,
            seed,
            n,
            Atlas.load(atlas),
            [int(size) for size in sizes],
            kinds[refine],
            block_length,
        )
        if captions is not None:
            write_captions(captions, rows, scenes, split)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    typer.echo(table(rows))
    if json_file is not None:
        figures = {
            "split": split,
            "seed": seed,
            "n": n,
            "block_length": block_length,
            "rows": [row.to_json() for row in rows],
        }
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="Which one; `all` for every one of them.")],
    size: Annotated[
        str,
        typer.Option(envvar="REDIFF_SIZE", help="small, shipped, tiny, or a YAML file."),
    ] = "small",
    out: Annotated[
        Path, typer.Option(envvar="REDIFF_OUT", help="Folder of branches, figures and plots.")
    ] = Path("runs/experiments"),
    evaluation_scenes: Annotated[
        int | None, typer.Option("--n", envvar="REDIFF_N", help="Scenes of each evaluation seed.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(envvar="REDIFF_PAGE", help="Markdown page to write as well.")
    ] = None,
) -> None:
    """Run an experiment of the paper: train its branches, evaluate, tabulate and plot.

    A killed run goes on where it stopped, and experiments share the branches they have in common.
    """
    from training.config import TrainConfigError
    from training.experiments.catalogue import EXPERIMENTS
    from training.experiments.plan import Size
    from training.experiments.report import plot, section, table
    from training.experiments.run import run

    if name != "all" and name not in EXPERIMENTS:
        raise CommandError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and all")
    given = Path(size)
    if given.suffix not in (".yaml", ".yml"):
        given = _configurations() / f"experiment-{size}.yaml"
    overrides = [] if evaluation_scenes is None else [f"evaluation_scenes={evaluation_scenes}"]
    try:
        chosen = Size.read(given, overrides)
        sections = []
        for each in EXPERIMENTS.values() if name == "all" else [EXPERIMENTS[name]]:
            figures = run(each, chosen, out)
            picture = out / f"{each.name}.png"
            plot(figures, picture)
            typer.echo(table(figures))
            sections.append(section(figures, picture.name))
    except (TrainConfigError, ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    if page is not None:
        page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _configurations() -> Path:
    """The folder of the ready-made training configurations."""
    import training

    return Path(training.__file__).parent / "configs"


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything, or when overwriting anything but scenes."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not overwrite:
            raise CommandError(f"{folder} is not empty; --overwrite replaces it")
        if not re.fullmatch(r"annotations\.jsonl|\d{6,}\.png", path.name):
            raise CommandError(f"{folder} holds {path.name}, which is no part of a set of scenes")


def _settings(given: dict[str, Any]) -> "Settings":
    from server.settings import BadSettings, Settings

    try:
        return Settings.read({k: v for k, v in given.items() if k in Settings.model_fields})
    except BadSettings as error:
        raise CommandError(str(error)) from None


def _load(settings: "Settings") -> "Runner":
    """Runs in the engine's thread when serving: torch is imported here."""
    from server.engine.runner import SamplerRunner

    return SamplerRunner.load(settings.engine())
