"""Recorded generations of the official code: their inputs, and what must come out.

Arrays of a case have a row a step; positions count from the first answer position, suffix
included. The README of the golden data describes the fields.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rediff_model.config import LanguageConfig
from rediff_model.language import LanguageModel
from rediff_model.sampling.params import Compat, SamplerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rediff_model.sampling.outputs import Generation
    from rediff_model.sampling.reference import StepRecord

CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
)
PROBABILITY_TOLERANCE = 5e-4


def build_model(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> LanguageModel:
    """A language model from a golden configuration and its tensors."""
    model = LanguageModel(LanguageConfig(**{key: config[key] for key in CONFIG_KEYS}))
    model.load_state_dict(weights)
    return model.eval()


def build_settings(case: Mapping[str, Any], compat: Compat, seed: int = 0) -> SamplerSettings:
    """The settings of a golden case."""
    return SamplerSettings(
        canvas_length=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        refine=case["revise"],
        refine_fraction=case["revise_topk"],
        refine_start=case["revise_start"],
        temperature=case.get("temperature", 0.0),
        seed=seed,
        cfg_scale=case["cfg_scale"],
        remasking=case.get("remasking", "low_confidence"),
        draft=None if case["draft"] is None else tuple(case["draft"]),
        stop=tuple(tuple(sequence) for sequence in case["stop"] or ()),
        suffix=tuple(case.get("suffix") or ()),
        compat=compat,
    )


def arrays_of(case: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The arrays of one case by field name."""
    prefix = f"{case['id']}/"
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def defects_shown(case: Mapping[str, Any], want: Mapping[str, NDArray[Any]], mask: int) -> set[str]:
    """Which official defects the recording shows; without any, the default must repeat it."""
    shown = set()
    length, block = case["gen_length"], case["block_length"]
    stops = [tuple(sequence) for sequence in case["stop"] or ()]
    if "masked_prompt" in want:
        shown.add("prompt row counted as masked")
    if (want["pred"] == mask).any():
        shown.add("mask token predicted")
    first = want["canvas"][0, :length].reshape(-1, block)
    if case["revise"] and (first != mask).all(axis=1).any():
        shown.add("complete draft not refined")
    before = length
    for row, (number, step, count, bound, _, after) in enumerate(want["step_info"].tolist()):
        begin, end = number * block, (number + 1) * block
        canvas = want["canvas"][row]
        if before != _first_of(canvas[:length], stops):
            shown.add("stop does not follow the canvas")
        if bound != min(before, end):
            shown.add("block end ignored after a stop")
        masks = int((canvas[begin:end] == mask).sum())
        left = case["steps"] // (length // block) - step
        if count != -(-masks // left):
            shown.add("schedule not adapted")
        before = after
    if before != _first_of(want["canvas"][-1, :length], stops):
        shown.add("stop does not follow the canvas")
    return shown


def assert_equals_recording(
    records: Sequence[StepRecord],
    got: Generation,
    settings: SamplerSettings,
    prompt: int,
    want: Mapping[str, NDArray[Any]],
) -> None:
    """Every step of `reference.generate` is the recorded one."""
    assert [*got.ids, *settings.suffix] == want["final"].tolist()
    assert got.steps == len(records) == len(want["pred"])
    for row, record in enumerate(records):
        assert record.before_C.tolist() == want["canvas"][row].tolist()
        assert record.masked_N[prompt:].tolist() == want["masked"][row].tolist()
        assert record.predicted_N[prompt:].tolist() == want["pred"][row].tolist()
        np.testing.assert_allclose(
            record.score_N[prompt:].numpy(), want["prob"][row], atol=PROBABILITY_TOLERANCE
        )
        for name, rows in (("transfer", record.revealed), ("revised", record.revised)):
            flags = np.zeros(prompt + want[name].shape[1], dtype=bool)
            flags[list(rows)] = True
            assert flags[prompt:].tolist() == want[name][row].tolist()
            if f"{name}_prompt" in want:
                assert flags[:prompt].tolist() == want[f"{name}_prompt"][row].tolist()
            else:
                assert not flags[:prompt].any()
        assert record.after_reveal_C.tolist() == want["after_transfer"][row].tolist()
        assert record.after_C.tolist() == want["canvas"][row + 1].tolist()
        stopped = int(record.stop < settings.canvas_length)
        info = (record.block, record.step_in_block, record.count, record.bound)
        assert [*info, stopped, record.stop] == want["step_info"][row].tolist()


def recipe(seed: int, name: str, count: int) -> NDArray[np.float64]:
    """`count` uniform numbers of the golden recipe: splitmix64 keyed by a hash of the name."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        counter = np.arange(1, count + 1, dtype=np.uint64)
        mixed = np.uint64(key) + counter * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """Where the recorded draws of one sequence come from."""

    seed: int
    prompt: int
    rows: int
    """Of the whole sequence: a call draws for all of them."""


class RecordedNoise:
    """The recorded draws of several sequences, told apart by the seed of their settings."""

    def __init__(self, draws: Mapping[int, Draws]) -> None:
        self.draws = draws

    def tokens(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor, columns: int) -> Tensor:
        numbers_TV = torch.empty((len(seed_T), columns), dtype=torch.float64)
        for rows, draws, step in self._sequences(seed_T, step_T):
            drawn = recipe(draws.seed, f"rand_like/{step}", draws.rows * columns)
            place = (position_T[rows] + draws.prompt).clamp(max=draws.rows - 1)
            numbers_TV[rows] = torch.from_numpy(drawn).view(-1, columns)[place]
        return numbers_TV

    def keys(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> None:
        """Recorded numbers follow from no keys."""

    def order(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        numbers_T = torch.zeros(len(seed_T), dtype=torch.float64)
        for rows, draws, step in self._sequences(seed_T, step_T):
            drawn = recipe(draws.seed, f"rand/{step}", draws.rows).astype(np.float32)
            place = (position_T[rows] + draws.prompt).clamp(max=draws.rows - 1)
            numbers_T[rows] = torch.from_numpy(drawn.astype(np.float64))[place]
        return numbers_T

    def _sequences(self, seed_T: Tensor, step_T: Tensor) -> list[tuple[Tensor, Draws, int]]:
        known = sorted(set(seed_T.tolist()) & self.draws.keys())
        found = [(seed_T == seed, self.draws[seed]) for seed in known]
        return [(rows, draws, int(step_T[rows][0])) for rows, draws in found]


def _first_of(answer: NDArray[Any], stops: Sequence[tuple[int, ...]]) -> int:
    """Where the first of the stop sequences occurs; the answer's length if none does."""
    ids = tuple(answer.tolist())
    for place in range(len(ids)):
        if any(ids[place : place + len(stop)] == stop for stop in stops):
            return place
    return len(ids)
