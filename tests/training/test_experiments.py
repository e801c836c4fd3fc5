"""The experiments: what their branches are made of, and one from start to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from training.config import TrainConfigError
from training.experiments.catalogue import BASE, EXPERIMENTS, check_names
from training.experiments.plan import Branch, Experiment, Given, Size
from training.experiments.report import plot, section, table
from training.experiments.run import run

if TYPE_CHECKING:
    from training.experiments.plan import Recipe

CONFIGS = Path("training/configs")
SIZES = sorted(CONFIGS.glob("experiment-*.yaml"))


def steps(experiment: Experiment, name: str) -> float:
    return sum(
        branch.units * int(branch.overrides.get("rounds", 1)) for branch in experiment.lineage(name)
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_compared_branches_have_had_equally_many_steps(experiment: Experiment) -> None:
    totals = {name: steps(experiment, name) for name in experiment.shown}
    if experiment.name == "prefix-conversion":
        assert totals["converted"] - totals["full"] == 0.25
    else:
        assert max(totals.values()) == pytest.approx(min(totals.values())), totals


@pytest.mark.parametrize("path", SIZES, ids=lambda path: path.stem)
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_branch_is_a_valid_configuration_at_every_size(
    experiment: Experiment, path: Path
) -> None:
    from training.config import SceneTraining
    from training.scenes.stage2 import SceneCorrection

    size = Size.read(path)
    for branch in experiment.branches:
        start = None if branch.after is None else Path("before")
        kind = SceneCorrection if branch.recipe == "stage2" else SceneTraining
        config = kind.model_validate(size.values(branch, start))
        if start is None and size.base:
            assert config.phases == size.base
        else:
            assert config.steps == round(size.unit * branch.units)


def test_a_branch_must_come_after_the_one_it_starts_from() -> None:
    recipe: Recipe = "mask"
    later = Branch("later", "later", recipe, after="base")
    base = Branch("base", "base", recipe)
    with pytest.raises(ValueError, match="starts from base"):
        Experiment("x", "?", (later, base), ("later",))


def tiny(experiment: Experiment, folder: Path, **changes: object) -> dict[str, object]:
    size = Size.read(CONFIGS / "experiment-tiny.yaml").model_copy(update=changes)
    return run(experiment, size, folder)


def test_an_experiment_runs_through_and_is_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(
        "mini",
        "Does it run?",
        (
            BASE,
            Branch("stage2", "Stage II", "stage2", 1.0, "base"),
            Branch("official", "official", "stage1", 1.0, "base", {"loss": "official"}),
            Branch("mended", "mended", "stage1", 1.0, "base", {"loss": "default"}),
        ),
        ("stage2", "official", "mended"),
        (32,),
        (False, True),
    )
    figures = tiny(experiment, tmp_path)
    rows = figures["rows"]
    assert isinstance(rows, list)
    assert [(row["branch"], row["refine"]) for row in rows] == [
        (name, refine) for name in experiment.shown for refine in (False, True)
    ]
    for row in rows:
        assert len(row["coverage"]["by_seed"]) == 2
        assert row["coverage"]["low"] <= row["coverage"]["mean"] <= row["coverage"]["high"]
        # What the shipped checkpoint prefers goes on with its weights: up to four steps more.
        assert row["forwards"] == 4 or (row["refine"] and 4 < row["forwards"] <= 8)
    assert json.loads((tmp_path / "mini.json").read_text()) == figures
    plot(figures, tmp_path / "mini.png")
    assert (tmp_path / "mini.png").stat().st_size > 5000
    assert "Does it run?" in section(figures, "mini.png")
    assert table(figures).count("\n") == 1 + len(rows)

    def fail(*_: object) -> None:
        raise AssertionError("trained or decoded again")

    monkeypatch.setattr("training.experiments.run.stage1.run", fail)
    monkeypatch.setattr("training.experiments.run.stage2.run", fail)
    monkeypatch.setattr("training.experiments.run.decode", fail)
    assert tiny(experiment, tmp_path) == figures


def test_every_round_of_the_tiny_size_has_drafts_to_correct(tmp_path: Path) -> None:
    """Of the branches in the catalogue, not of some that are easier to run; decoded once."""
    rounds = replace(EXPERIMENTS["rounds"], tokens_per_step=(32,))
    figures: Any = tiny(rounds, tmp_path)
    assert [row["branch"] for row in figures["rows"]] == ["rounds-1", "rounds-2", "rounds-3"]
    counts = [
        json.loads(path.read_text())["filter"]
        for path in (tmp_path / "branches").glob("stage2-*/round-*/counts.json")
    ]
    assert len(counts) == 6
    assert all(count["kept"] for count in counts), counts


def test_a_model_is_converted_to_prefix_attention_and_its_prompt_refreshed_less_often(
    tmp_path: Path,
) -> None:
    conversion = EXPERIMENTS["prefix-conversion"]
    figures = tiny(
        Experiment(
            "mini",
            conversion.question,
            conversion.branches,
            conversion.shown,
            (32,),
            (True,),
            (1, 2, None),
        ),
        tmp_path,
    )
    assert isinstance(figures["rows"], list)
    assert [row["refresh"] for row in figures["rows"]] == [1, 2, None] * 2
    configs = [
        json.loads(path.read_text())["prefix_attention"]
        for path in (tmp_path / "branches").glob("stage1-*/checkpoint/config.json")
    ]
    assert sorted(configs) == ["full", "prefix"]


def test_branches_of_equal_making_are_trained_once_and_drafts_are_shared(tmp_path: Path) -> None:
    noisy = {"expert": {"kind": "noisy", "dropped": 0.5, "wrong": 0.0}}
    experiment = Experiment(
        "mini",
        "Does it share?",
        (
            BASE,
            Branch("one", "one", "stage2", 1.0, "base"),
            Branch("same", "the same again", "stage2", 1.0, "base"),
            Branch("noisy", "another expert", "stage2", 1.0, "base", noisy),
        ),
        ("one", "same", "noisy"),
        (32,),
    )
    tiny(experiment, tmp_path)
    corrected = sorted((tmp_path / "branches").glob("stage2-*"))
    assert len(corrected) == 2
    drafts = [(home / "round-0" / "drafts.jsonl").read_bytes() for home in corrected]
    verdicts = [(home / "round-0" / "verdicts.jsonl").read_bytes() for home in corrected]
    assert drafts[0] == drafts[1]
    assert verdicts[0] != verdicts[1]
    assert len(list((tmp_path / "drafts").iterdir())) == 1
    seeds = [
        json.loads((home / "round-0" / "config.json").read_text())["seed"] for home in corrected
    ]
    taken = Size.read(CONFIGS / "experiment-tiny.yaml").given["base"].steps
    assert seeds == [taken, taken], "a branch that goes on draws anew"


def test_a_given_branch_is_not_trained_and_a_left_out_one_not_shown(tmp_path: Path) -> None:
    experiment = Experiment(
        "mini",
        "Given?",
        (
            Branch("base", "plain", "mask"),
            Branch("there", "there", "stage1", 1.0, "base"),
            Branch("out", "out", "stage1", 1.0, "base"),
        ),
        ("there", "out"),
        (32,),
    )
    shipped = Given(checkpoint=Path("rediff_model/checkpoints/embedded-384"), steps=7)
    figures = tiny(experiment, tmp_path / "new", given={"there": shipped}, left_out=("out",))
    assert figures["branches"] == [
        {
            "name": "there",
            "label": "there",
            "recipe": "stage1",
            "after": "base",
            "steps": 7,
            "seconds": 0.0,
        }
    ]
    assert not (tmp_path / "new" / "branches").exists()
    assert not Path("rediff_model/checkpoints/embedded-384/rows.json").exists()
    missing = Given(checkpoint=tmp_path / "none", steps=7)
    with pytest.raises(ValueError, match=r"branch there: no checkpoint folder at .*none"):
        tiny(experiment, tmp_path, given={"there": missing}, left_out=("out",))
    with pytest.raises(ValueError, match="every branch is left out"):
        tiny(experiment, tmp_path, left_out=("out", "there"))


def test_the_name_of_a_branch_of_checkpoints_of_the_package_is_the_same_in_every_folder(
    tmp_path: Path,
) -> None:
    from rediff_model.checkpoint import SHIPPED
    from training.config import SceneTraining
    from training.experiments.run import _fingerprint

    values = {"tower": "embedded-384", "phases": [{"steps": 1}]}
    names = set()
    for place in ("embedded-384", SHIPPED / "embedded-384"):
        config = SceneTraining.model_validate(values | {"start_from": place})
        names.add(_fingerprint(config, tmp_path))
    assert len(names) == 1


def test_what_is_given_is_looked_for_before_a_branch_is_trained(tmp_path: Path) -> None:
    experiment = Experiment(
        "mini",
        "When?",
        (Branch("base", "plain", "mask"), Branch("late", "late", "stage1", 1.0, "base")),
        ("base", "late"),
        (32,),
    )
    missing = Given(checkpoint=tmp_path / "none", steps=7)
    with pytest.raises(ValueError, match=r"branch late: no checkpoint folder at .*none"):
        tiny(experiment, tmp_path / "out", given={"late": missing})
    assert not (tmp_path / "out").exists()


def test_kept_figures_are_of_the_way_a_checkpoint_wants_to_be_decoded(tmp_path: Path) -> None:
    experiment = Experiment("mini", "Kept?", (Branch("base", "plain", "mask"),), ("base",), (32,))
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree("rediff_model/checkpoints/embedded-384", checkpoint)
    given = {"base": Given(checkpoint=checkpoint, steps=7)}
    forwards: list[float] = []
    for extra in (8, 0):
        values = json.loads((checkpoint / "config.json").read_text())
        values["extra_refine_steps"] = extra
        (checkpoint / "config.json").write_text(json.dumps(values))
        figures: Any = tiny(experiment, tmp_path / "out", given=given)
        forwards.append(figures["rows"][0]["forwards"])
    assert forwards[0] > forwards[1]


def test_a_branch_that_cannot_be_trained_is_named_before_one_is(tmp_path: Path) -> None:
    experiment = Experiment(
        "mini",
        "When?",
        (Branch("base", "plain", "mask"), Branch("late", "late", "stage2", 1.0, "base")),
        ("late",),
        (32,),
    )
    recipes = {**Size.read(CONFIGS / "experiment-tiny.yaml").recipes}
    recipes["stage2"] = {**recipes["stage2"], "drafts": {"scnes": 4}}
    with pytest.raises(TrainConfigError, match=r"branch late: drafts\.scnes"):
        tiny(experiment, tmp_path, recipes=recipes)
    assert not (tmp_path / "branches").exists()


def test_a_seed_of_the_evaluation_is_checked_before_anything_is_trained() -> None:
    with pytest.raises(TrainConfigError, match=r"evaluation_seeds\.1: .* equal to 0, got -1"):
        Size.read(CONFIGS / "experiment-tiny.yaml", ["evaluation_seeds=[1, -1]"])


def test_names_of_branches_that_nothing_has_are_refused() -> None:
    size = Size.read(CONFIGS / "experiment-tiny.yaml", ["left_out=[stage1-onyl]"])
    with pytest.raises(ValueError, match="no experiment has a branch 'stage1-onyl'"):
        check_names(size)
    check_names(Size.read(CONFIGS / "experiment-shipped.yaml"))


def test_a_setting_at_its_default_does_not_rename_a_branch(tmp_path: Path) -> None:
    from training.config import SceneTraining
    from training.experiments.run import _fingerprint

    values = {"tower": tmp_path, "phases": [{"steps": 1}]}
    plain, said, other = (
        SceneTraining.model_validate(values | more)
        for more in ({}, {"tower_steps": 0, "parts": 1}, {"wordings": 3})
    )
    assert _fingerprint(plain, tmp_path) == _fingerprint(said, tmp_path)
    assert _fingerprint(plain, tmp_path) != _fingerprint(other, tmp_path)


def test_a_branch_that_corrects_nothing_has_no_drafts_to_share(tmp_path: Path) -> None:
    shipped = {"start_from": "rediff_model/checkpoints/embedded-384", "correction_share": 0.0}
    experiment = Experiment(
        "mini", "None?", (Branch("more", "more", "stage2", overrides=shipped),), ("more",), (32,)
    )
    tiny(experiment, tmp_path)
    assert not list((tmp_path / "drafts").iterdir())
