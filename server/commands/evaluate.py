"""`rediff evaluate` and `rediff experiment`: the exact evaluator, and the paper's questions."""

# Annotations are not postponed here: typer reads them at run time.
import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from rediff_model.chat_template import DEFAULT_QUESTION
from rediff_model.sampling.params import PRESETS, SamplerSettings
from server.commands.options import (
    CommandError,
    Device,
    Dtype,
    Model,
    Revision,
    Split,
    Threads,
    UsageError,
    extra,
    option,
    read_settings,
)
from server.terminal import echo


def _scenes(
    flag: str,
    help_text: str,
    metavar: str | None = None,
    *,
    default: str | None = None,
    least: int | None = None,
) -> Any:
    return option(
        "Scenes", flag, help_text, default, command="evaluate", metavar=metavar, least=least
    )


def _sampling(flag: str, help_text: str, default: str | None = None) -> Any:
    return option("Sampling", flag, help_text, default, command="evaluate")


def evaluate(
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    split: Annotated[Split, _scenes("--split", ", ".join(get_args(Split)) + ".", "SPLIT")] = "test",
    seed: Annotated[int, _scenes("--seed", "Random seed of the scenes.", least=0)] = 0,
    n: Annotated[int, _scenes("--n", "Number of scenes.", least=1)] = 200,
    atlas: Annotated[
        Path | None, _scenes("--atlas", "Sticker atlas to render.", default="the package's")
    ] = None,
    prompts: Annotated[
        Path | None,
        _scenes(
            "--prompts",
            "Text file with a prompt a line; scene after scene takes the next.",
            default="the default prompt",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _sampling("--preset", "rediff, mask, adaptive or careful.", "the model's"),
    ] = None,
    tokens_per_step: Annotated[
        str | None,
        _sampling(
            "--tokens-per-step", "Tokens unmasked per step; several with commas.", "from --preset"
        ),
    ] = None,
    refine: Annotated[
        str | None,
        _sampling(
            "--refine", "Revise unmasked tokens: on, off, or both for comparison.", "from --preset"
        ),
    ] = None,
    reveal_threshold: Annotated[
        float | None,
        _sampling(
            "--reveal-threshold", "Also unmask every position whose confidence exceeds this."
        ),
    ] = None,
    end_threshold: Annotated[
        float | None,
        _sampling(
            "--end-threshold",
            "Also unmask every predicted end of text whose confidence exceeds this.",
        ),
    ] = None,
    block_length: Annotated[
        int | None, _sampling("--block-length", "Tokens denoised together.", "the model's")
    ] = None,
    extra_refine_steps: Annotated[
        int | None,
        _sampling(
            "--extra-refine-steps",
            "Steps at most that only revise, after the last mask.",
            "the model's",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, option("Outputs", "--json", "JSON file for the scores.", command="evaluate")
    ] = None,
    captions: Annotated[
        Path | None,
        option("Outputs", "--captions", "JSON lines file for the captions.", command="evaluate"),
    ] = None,
) -> None:
    """Score captions of unseen sticker scenes with the exact evaluator."""
    settings = read_settings(dict(locals()))
    kinds = {None: (None,), "on": (True,), "off": (False,), "both": (False, True)}
    if refine not in kinds:
        raise UsageError(f"--refine must be on, off or both, got {refine!r}")
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    sizes: list[str | None] = [None] if tokens_per_step is None else [*tokens_per_step.split(",")]
    if not all(size is None or (size.strip().isdecimal() and int(size) > 0) for size in sizes):
        raise UsageError(f"--tokens-per-step must list positive numbers, got {tokens_per_step!r}")
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
        echo(table(rows))
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
        raise UsageError(f"--prompts {file} holds no prompt")
    return filled


def experiment(
    name: Annotated[
        str, typer.Argument(help="Name of the experiment; `all` for every one.", metavar="NAME")
    ],
    size: Annotated[
        str,
        option(
            "Experiment",
            "--size",
            "small, losses, shipped, tiny, or a YAML file.",
            command="experiment",
        ),
    ] = "small",
    out: Annotated[
        Path,
        option(
            "Experiment",
            "--out",
            "Folder for branches, scores and plots.",
            command="experiment",
        ),
    ] = Path("runs/experiments"),
    evaluation_scenes: Annotated[
        int | None,
        option(
            "Experiment",
            "--n",
            "Scenes of each evaluation seed.",
            "from --size",
            command="experiment",
            metavar="INTEGER",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        option("Experiment", "--page", "Also write a Markdown page.", command="experiment"),
    ] = None,
) -> None:
    """Run an experiment of the paper.

    Its branches are trained, evaluated, tabulated and plotted. A run that was killed resumes where
    it stopped; experiments share the branches that they have in common.
    """
    with extra("train"):
        from training.config import TrainConfigError
        from training.experiments.catalogue import EXPERIMENTS, check_names
        from training.experiments.plan import Size
        from training.experiments.report import plot, section, table
        from training.experiments.run import run

    if name != "all" and name not in EXPERIMENTS:
        raise UsageError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and all")
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
            echo(table(figures))
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
        raise UsageError(f"{named[0]} is named for two things")
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
