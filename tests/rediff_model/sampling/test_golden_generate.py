"""Token canvases of every step against recordings of the official sampler.

All cases run in `compat="official"`. Those whose recording shows none of the official defects
(`defects_shown`) also run by default.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from generation_case import (
    Draws,
    RecordedNoise,
    arrays_of,
    assert_equals_recording,
    build_model,
    build_settings,
    defects_shown,
)
from goldens_dir import GOLDENS, exact_cases, read_json
from safetensors.torch import load_file

from rediff_model.config import TokenIds
from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import Compat, SettingsError

if TYPE_CHECKING:
    from rediff_model.language import LanguageModel

META = read_json("generate/cases.json")
IDS = TokenIds(META["ids"]["mask"], tuple(META["ids"]["suppressed"]), META["ids"]["eot"])
ARRAYS = np.load(GOLDENS / "generate" / META["arrays"])
PROMPTS = {
    name: torch.from_numpy(array)
    for name, array in np.load(GOLDENS / "generate" / META["prompts"]).items()
}
CASES = {case["id"]: case for case in exact_cases("generate/cases.json")}
SEEDS = {name: number for number, name in enumerate(CASES)}


@cache
def recorded(name: str) -> dict[str, Any]:
    fields = ("canvas", "final", "after_transfer", "pred", "prob", "masked", "transfer", "revised")
    prompt_fields = ("masked_prompt", "transfer_prompt", "revised_prompt")
    wanted = [f"{name}/{field}" for field in (*fields, "step_info", *prompt_fields)]
    return arrays_of(CASES[name], {key: ARRAYS[key] for key in wanted if key in ARRAYS})


CLEAN = [name for name, case in CASES.items() if not defects_shown(case, recorded(name), IDS.mask)]
RUNS = [("official", name) for name in CASES] + [("default", name) for name in CLEAN]
MASK_IN_PROMPT = [name for name in CASES if "masked_prompt" in recorded(name)]


@cache
def model_of(name: str) -> LanguageModel:
    """One of the four golden models."""
    meta = META["models"][name]
    weights = load_file(GOLDENS / "generate" / meta["weights"])
    for row, factor in meta.get("lm_head_row_multipliers", {}).items():
        weights["lm_head.weight"][int(row)] *= factor
    weights["lm_head.weight"] *= meta.get("lm_head_multiplier", 1.0)
    return build_model(meta["config"], weights)


@cache
def noise() -> RecordedNoise:
    """The draws of all cases, by case number."""
    draws = {}
    for name, case in CASES.items():
        if "rng_seed" in case:
            rows = case["prompt_len"] + case["gen_length"] + len(case.get("suffix") or ())
            draws[SEEDS[name]] = Draws(case["rng_seed"], case["prompt_len"], rows)
    return RecordedNoise(draws)


@cache
def batch(model: str, compat: Compat) -> dict[str, tuple[list[sampler.StepEvent], Any]]:
    """All cases of a model in one batch: the events of each step, and the caption."""
    names = [
        name
        for mode, name in RUNS
        if mode == compat and CASES[name]["model"] == model and name not in MASK_IN_PROMPT
    ]
    state = sampler.start(
        model_of(model),
        [PROMPTS[CASES[name]["prompt"]] for name in names],
        [build_settings(CASES[name], compat, SEEDS[name]) for name in names],
        IDS,
        noise(),
    )
    events: dict[str, list[sampler.StepEvent]] = {name: [] for name in names}
    while state.slots is not None:
        state, step_events = sampler.step(model_of(model), state)
        for event in step_events:
            events[names[event.request]].append(event)
    return {name: (events[name], state.finished[i]) for i, name in enumerate(names)}


@pytest.mark.parametrize(("compat", "name"), RUNS)
def test_reference_repeats_every_step(compat: Compat, name: str) -> None:
    case = CASES[name]
    prompt = PROMPTS[case["prompt"]]
    settings = build_settings(case, compat, SEEDS[name])
    records: list[reference.StepRecord] = []
    got = reference.generate(
        model_of(case["model"]), prompt, settings, IDS, noise(), records.append
    )
    assert_equals_recording(records, got, settings, len(prompt), recorded(name))


@pytest.mark.parametrize(("compat", "name"), [run for run in RUNS if run[1] not in MASK_IN_PROMPT])
def test_sampler_repeats_every_canvas_in_a_mixed_batch(compat: Compat, name: str) -> None:
    case, want = CASES[name], recorded(name)
    length = case["gen_length"]
    events, got = batch(case["model"], compat)[name]
    assert [*got.ids, *case.get("suffix", [])] == want["final"].tolist()
    assert got.steps == len(events) == len(want["pred"])
    for row, event in enumerate(events):
        assert list(event.canvas) == want["canvas"][row + 1, :length].tolist()
        assert event.masked == int((want["canvas"][row + 1, :length] == IDS.mask).sum())
        changed = np.flatnonzero(want["canvas"][row, :length] != want["canvas"][row + 1, :length])
        assert [change.position for change in event.changed] == changed.tolist()
        for change in event.changed:
            kind = "transfer" if change.kind == "reveal" else "revised"
            assert want[kind][row, change.position]
            if case.get("remasking") != "random":
                assert change.confidence == pytest.approx(
                    want["prob"][row, change.position], abs=5e-4
                )


@pytest.mark.parametrize("name", MASK_IN_PROMPT)
def test_sampler_refuses_a_mask_token_in_an_official_prompt(name: str) -> None:
    case = CASES[name]
    settings = build_settings(case, "official")
    prompts = [PROMPTS[case["prompt"]]]
    with pytest.raises(SettingsError, match="the prompt holds a mask token"):
        sampler.start(model_of(case["model"]), prompts, [settings], IDS)
