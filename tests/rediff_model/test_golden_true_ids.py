"""The real vocabulary and special ids: logits and canvases of the official code."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from generation_case import (
    arrays_of,
    assert_equals_recording,
    build_model,
    build_settings,
    defects_shown,
    recipe,
)
from goldens_dir import GOLDENS, exact_cases, read_json

from rediff_model.config import ModelConfig, TokenIds
from rediff_model.runtime.attention import DenseAttend
from rediff_model.sampling import reference, sampler

if TYPE_CHECKING:
    from rediff_model.language import LanguageModel
    from rediff_model.sampling.params import Compat

META = read_json("true_ids/cases.json")
ARRAYS = dict(np.load(GOLDENS / "true_ids" / META["arrays"]))
CASES = {case["id"]: case for case in exact_cases("true_ids/cases.json")}
IDS = TokenIds.from_config(ModelConfig())
RUNS: list[tuple[Compat, str]] = [("official", name) for name in CASES]
RUNS += [
    ("default", name)
    for name, case in CASES.items()
    if not defects_shown(case, arrays_of(case, ARRAYS), IDS.mask)
]


@cache
def true_model() -> LanguageModel:
    """The model of the weight recipe, every tensor checked by its hash."""
    weights = {}
    tensors = META["weight_recipe"]["tensors"]
    for name, spec in tensors.items():
        numbers = recipe(META["seed"], name, int(np.prod(spec["shape"])))
        values = spec["mean"] + (2 * numbers - 1) * spec["std"] * np.sqrt(3)
        weights[name] = values.astype(np.float32).reshape(spec["shape"])
    head, embedding = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    base = head[126336].copy()
    head += np.float32(0.25) * embedding
    head[126336] = base
    head[126348] *= np.float32(2.5)
    head[[126080, 126081, 126346, 126347]] *= np.float32(2.0)
    for name, spec in tensors.items():
        assert hashlib.sha256(weights[name].tobytes()).hexdigest() == spec["sha256"], name
    return build_model(
        META["config"], {name: torch.from_numpy(array) for name, array in weights.items()}
    )


def test_default_ids_are_the_recorded_ones() -> None:
    assert META["ids"] == {"mask": IDS.mask, "suppressed": list(IDS.suppressed), "eot": IDS.stop}


def test_forward() -> None:
    prompt_PD = torch.from_numpy(ARRAYS["prompt/p0"])
    with torch.inference_mode():
        model = true_model()
        hidden_PD = model.model(prompt_PD, torch.arange(len(prompt_PD)), DenseAttend(1))
        logits_PV = model.logits(hidden_PD)
    columns = torch.from_numpy(ARRAYS["forward/columns"]).long()
    want = torch.from_numpy(ARRAYS["forward/logits_at_columns"])
    torch.testing.assert_close(logits_PV[:, columns], want, atol=2e-4, rtol=0)
    top = logits_PV.topk(5, dim=1)
    assert top.indices.tolist() == ARRAYS["forward/top5_ids"].tolist()
    want = torch.from_numpy(ARRAYS["forward/top5_logits"])
    torch.testing.assert_close(top.values, want, atol=2e-4, rtol=0)
    want = torch.from_numpy(ARRAYS["forward/logsumexp_f64"])
    torch.testing.assert_close(logits_PV.double().logsumexp(dim=1), want, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("compat", "name"), RUNS)
def test_reference_repeats_every_step(compat: Compat, name: str) -> None:
    case = CASES[name]
    prompt = torch.from_numpy(ARRAYS[META["prompts"][case["prompt"]]["array"]])
    settings = build_settings(case, compat)
    records: list[reference.StepRecord] = []
    got = reference.generate(true_model(), prompt, settings, IDS, on_step=records.append)
    assert_equals_recording(records, got, settings, len(prompt), arrays_of(case, ARRAYS))


def test_sampler_repeats_every_canvas_in_a_mixed_batch() -> None:
    prompts = [
        torch.from_numpy(ARRAYS[META["prompts"][CASES[name]["prompt"]]["array"]])
        for _, name in RUNS
    ]
    settings = [build_settings(CASES[name], compat) for compat, name in RUNS]
    canvases: list[list[tuple[int, ...]]] = [[] for _ in RUNS]

    def collect(events: sampler.StepEvents) -> None:
        for event in events:
            canvases[event.request].append(event.canvas)

    captions = sampler.generate(true_model(), prompts, settings, IDS, collect)
    for (_, name), caption, steps in zip(RUNS, captions, canvases, strict=True):
        assert list(caption.ids) == ARRAYS[f"{name}/final"].tolist()
        assert [list(canvas) for canvas in steps] == ARRAYS[f"{name}/canvas"][1:].tolist()
