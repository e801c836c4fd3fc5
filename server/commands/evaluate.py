"""`rediff evaluate` and `rediff experiment`: the exact evaluator, and the paper's questions."""

# Annotations are not postponed here: typer reads them at run time.
import json
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from rediff_model.chat_template import DEFAULT_QUESTION
from rediff_model.sampling.params import PRESETS, SamplerSettings
from server.commands.options import (
    CommandError,
    Device,
    Dtype,
    Model,
    Revision,
    Threads,
    extra,
    read_settings,
)


def evaluate(
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    split: Annotated[str, typer.Option(envvar="REDIFF_SPLIT", help="Which scenes.")] = "test",
    seed: Annotated[int, typer.Option(envvar="REDIFF_SEED", help="Draws the scenes.")] = 0,
    n: Annotated[int, typer.Option("--n", envvar="REDIFF_N", help="How many scenes.")] = 200,
    preset: Annotated[
        str | None,
        typer.Option(envvar="REDIFF_PRESET", help="As of a request.", show_default="the model's"),
    ] = None,
    tokens_per_step: Annotated[
        str | None,
        typer.Option(
            envvar="REDIFF_TOKENS_PER_STEP", help="Comma-separated.", show_default="by --preset"
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(envvar="REDIFF_REFINE", help="on, off or both.", show_default="by --preset"),
    ] = None,
    reveal_threshold: Annotated[
        float | None,
        typer.Option(envvar="REDIFF_REVEAL_THRESHOLD", help="Reveal besides what is surer."),
    ] = None,
    end_threshold: Annotated[
        float | None,
        typer.Option(envvar="REDIFF_END_THRESHOLD", help="Reveal besides every end that is surer."),
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(envvar="REDIFF_BLOCK_LENGTH", help="Tokens denoised together.")
    ] = None,
    extra_refine_steps: Annotated[
        int | None,
        typer.Option(envvar="REDIFF_EXTRA_REFINE_STEPS", help="Most steps after the last mask."),
    ] = None,
    atlas: Annotated[
        Path | None, typer.Option(envvar="REDIFF_ATLAS", help="Pictures of another vendor.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            envvar="REDIFF_PROMPTS",
            help="File with a prompt a line, which the scenes are asked in turn.",
            show_default="the default prompt",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", envvar="REDIFF_JSON", help="File for the figures.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(envvar="REDIFF_CAPTIONS", help="File for every caption.")
    ] = None,
) -> None:
    """Caption unseen sticker scenes and score them with the exact evaluator."""
    settings = read_settings(dict(locals()))
    kinds = {None: (None,), "on": (True,), "off": (False,), "both": (False, True)}
    if refine not in kinds:
        raise CommandError(f"--refine must be on, off or both, got {refine!r}")
    if seed < 0:
        raise CommandError(f"--seed must be 0 or more, got {seed}")
    if preset is not None and preset not in PRESETS:
        raise CommandError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    sizes: list[str | None] = [None] if tokens_per_step is None else [*tokens_per_step.split(",")]
    if not all(size is None or (size.strip().isdecimal() and int(size) > 0) for size in sizes):
        raise CommandError(f"--tokens-per-step must list positive numbers, got {tokens_per_step!r}")
    given = {
        "preset": preset,
        "reveal_threshold": reveal_threshold,
        "end_threshold": end_threshold,
        "block_length": block_length,
        "extra_refine_steps": extra_refine_steps,
    }
    questions = (DEFAULT_QUESTION,) if prompts is None else _lines(prompts)
    _writable(json_file, captions)
    from server.engine.model_runner import load_captioner
    from training.stickers.atlas import Atlas
    from training.stickers.evaluate import evaluate_split, table, write_captions

    try:
        captioner = load_captioner(settings.engine())
        preferences = captioner.config.preferences
        ways = []
        for size, revise in product(sizes, kinds[refine]):
            paced = {"tokens_per_step": size and int(size), "refine": revise}
            fields = {k: v for k, v in (given | paced).items() if k != "preset" and v is not None}
            fields["canvas_length"] = captioner.config.canvas_length
            way = SamplerSettings.from_preset(preset, fields, preferences.preset)
            ways.append(way.preferring(preferences))
        rows, scenes = evaluate_split(
            captioner, split, seed, n, Atlas.load(atlas), ways, questions=questions
        )
        typer.echo(table(rows))
        if json_file is not None:
            figures = {
                "split": split,
                "seed": seed,
                "n": n,
                **given,
                "prompts": None if prompts is None else questions,
                "rows": [row.to_json() for row in rows],
            }
            json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if captions is not None:
            write_captions(captions, rows, scenes, split)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None


def _lines(file: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank; raises CommandError if there are none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--prompts {file} cannot be read: {error}") from None
    if not (filled := tuple(line for line in lines if line.strip())):
        raise CommandError(f"--prompts {file} holds no prompt")
    return filled


def experiment(
    name: Annotated[str, typer.Argument(help="Which one; `all` for every one of them.")],
    size: Annotated[
        str,
        typer.Option(envvar="REDIFF_SIZE", help="small, losses, shipped, tiny, or a YAML file."),
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
    with extra("train"):
        from training.config import TrainConfigError
        from training.experiments.catalogue import EXPERIMENTS, check_names
        from training.experiments.plan import Size
        from training.experiments.report import plot, section, table
        from training.experiments.run import run

    if name != "all" and name not in EXPERIMENTS:
        raise CommandError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and all")
    given = Path(size)
    if given.suffix not in (".yaml", ".yml"):
        given = _configurations() / f"experiment-{size}.yaml"
    _writable(page)
    overrides = [] if evaluation_scenes is None else [f"evaluation_scenes={evaluation_scenes}"]
    try:
        chosen = Size.read(given, overrides)
        check_names(chosen)
        sections = []
        for each in EXPERIMENTS.values() if name == "all" else [EXPERIMENTS[name]]:
            figures = run(each, chosen, out)
            picture = out / f"{each.name}.png"
            plot(figures, picture)
            typer.echo(table(figures))
            sections.append(section(figures, picture.name))
        if page is not None:
            page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    except (TrainConfigError, ValueError, OSError) as error:
        raise CommandError(str(error)) from None


def _writable(*files: Path | None) -> None:
    """Raises CommandError for a file that cannot be written, before hours have been spent, or that
    is named twice."""
    named = [file for file in files if file is not None]
    if len({file.resolve() for file in named}) < len(named):
        raise CommandError(f"{named[0]} is named for two things")
    for file in named:
        if not file.parent.is_dir():
            raise CommandError(f"{file} cannot be written: there is no folder {file.parent}")
        there = file.exists()
        try:
            file.open("a").close()
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {error.strerror}") from None
        if not there:
            file.unlink()


def _configurations() -> Path:
    """The folder of the ready-made training configurations."""
    import training

    return Path(training.__file__).parent / "configs"
