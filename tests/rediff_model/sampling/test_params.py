"""Sampler settings: what they mean in steps, and which are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from rediff_model.config import ConfigError, ModelConfig, Preferences, Preset, TokenIds
from rediff_model.sampling.params import (
    PRESETS,
    SamplerSettings,
    SettingsError,
)


@pytest.mark.parametrize(
    ("fields", "blocks", "steps_per_block"),
    [
        ({}, 1, 32),
        ({"tokens_per_step": 1}, 1, 128),
        ({"tokens_per_step": 3}, 1, 43),
        ({"tokens_per_step": 500}, 1, 1),
        ({"steps": 16}, 1, 16),
        ({"block_length": 32}, 4, 8),
        ({"block_length": 32, "tokens_per_step": 5}, 4, 7),
        ({"block_length": 32, "steps": 64}, 4, 16),
        ({"canvas_length": 10, "block_length": 5, "steps": 2}, 2, 1),
    ],
)
def test_blocks_and_steps(fields: dict[str, Any], blocks: int, steps_per_block: int) -> None:
    settings = SamplerSettings(**fields)
    assert (settings.blocks, settings.steps_per_block) == (blocks, steps_per_block)
    assert settings.planned_steps == blocks * steps_per_block


@pytest.mark.parametrize(
    ("start", "steps", "first"),
    [(1.0, 10, 0), (0.5, 10, 5), (0.0, 10, 10), (0.3, 10, 7), (0.28, 25, 17), (0.5, 5, 2)],
)
def test_refine_start_is_a_last_part_of_the_steps(start: float, steps: int, first: int) -> None:
    # 0.28 of 25 is 7.000000000000001, which the official ceiling takes to 8.
    assert SamplerSettings(steps=steps, refine_start=start).refine_from == first
    assert SamplerSettings(steps=steps, refine_start=start, refine=False).refine_from == steps
    assert SamplerSettings(steps=steps, refine_start=start).refines == (start > 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"canvas_length": 0}, "canvas_length must be 1 or more, got 0"),
        ({"block_length": -4}, "block_length must be 1 or more, got -4"),
        ({"block_length": 48}, "block_length 48 does not divide canvas_length 128"),
        ({"tokens_per_step": 0}, "tokens_per_step must be 1 or more, got 0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"steps": 8, "tokens_per_step": 4}, "steps 8 and tokens_per_step 4 exclude each other"),
        ({"steps": 7, "block_length": 64}, "steps 7 is no multiple of 2 blocks"),
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or more, got nan"),
        ({"cfg_scale": math.inf}, "cfg_scale must be 0 or more, got inf"),
        ({"refine_fraction": 1.5}, "refine_fraction must lie in 0 to 1, got 1.5"),
        ({"refine_start": math.nan}, "refine_start must lie in 0 to 1, got nan"),
        ({"reveal_threshold": 1.01}, "reveal_threshold must lie in 0 to 1, got 1.01"),
        ({"edit_threshold": math.nan}, "edit_threshold must lie in 0 to 1, got nan"),
        ({"extra_refine_steps": -2}, "extra_refine_steps must be 0 or more, got -2"),
        (
            {"compat": "official", "reveal_threshold": 0.0},
            "compat official has no reveal_threshold, got 0.0",
        ),
        ({"end_threshold": -0.5}, "end_threshold must lie in 0 to 1, got -0.5"),
        (
            {"compat": "official", "end_threshold": 0.7},
            "compat official has no end_threshold, got 0.7",
        ),
        (
            {"compat": "official", "extra_refine_steps": 1},
            "compat official has no extra_refine_steps, got 1",
        ),
        ({"seed": -(2**63) - 1}, "seed must lie in -2^63 to 2^63 - 1, got -9223372036854775809"),
        ({"seed": 2**63}, "seed must lie in -2^63 to 2^63 - 1, got 9223372036854775808"),
        ({"remasking": "entropy"}, "remasking must be one of .*, got 'entropy'"),
        ({"compat": "old"}, "compat must be one of .*, got 'old'"),
        ({"canvas_length": 2, "draft": (1, 2, 3)}, "draft has 3 tokens, canvas_length is 2"),
        ({"stop": ((1,), ())}, "stop must not hold an empty sequence"),
    ],
)
def test_refused_values_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("^", r"\^")):
        SamplerSettings(**fields)


def test_stop_defaults_to_the_model_s() -> None:
    ids = TokenIds.from_config(ModelConfig())
    assert SamplerSettings().stops(ids) == ((126348,),)
    assert SamplerSettings(stop=()).stops(ids) == ()
    assert SamplerSettings(stop=((1, 2),)).stops(ids) == ((1, 2),)


def test_presets() -> None:
    assert PRESETS["rediff"] == SamplerSettings(tokens_per_step=None)
    assert PRESETS["rediff"].steps_per_block == 32
    assert not PRESETS["mask"].refine


def test_with_a_threshold_steps_are_as_many_as_a_single_token_each_would_take() -> None:
    adaptive = SamplerSettings(canvas_length=96, block_length=48, reveal_threshold=0.5)
    assert (adaptive.steps_per_block, adaptive.least_revealed) == (48, 1)
    adaptive = SamplerSettings(tokens_per_step=8, reveal_threshold=0.5)
    assert (adaptive.steps_per_block, adaptive.least_revealed) == (16, 8)
    adaptive = SamplerSettings(steps=50, reveal_threshold=0.0)
    assert (adaptive.steps_per_block, adaptive.least_revealed) == (50, 3)
    assert SamplerSettings().least_revealed == 0
    shrinking = SamplerSettings(canvas_length=96, end_threshold=0.7)
    assert (shrinking.steps_per_block, shrinking.least_revealed) == (24, 4)


def test_extra_steps_are_planned_for_where_something_refines() -> None:
    refining = SamplerSettings(block_length=32, extra_refine_steps=3)
    assert refining.planned_steps == 4 * (8 + 3)
    assert SamplerSettings(extra_refine_steps=3, refine=False).planned_steps == 32
    assert SamplerSettings(extra_refine_steps=3, refine_start=0.0).planned_steps == 32


def test_explicit_fields_override_the_preset() -> None:
    plain = SamplerSettings.from_preset("mask", {"canvas_length": 64, "seed": 3})
    assert plain == SamplerSettings(canvas_length=64, refine=False, seed=3)
    quick = SamplerSettings.from_preset("adaptive", {"steps": 12})
    assert (quick.steps, quick.tokens_per_step) == (12, None)
    assert quick.reveal_threshold == PRESETS["adaptive"].reveal_threshold
    for name, preset in PRESETS.items():
        assert SamplerSettings.from_preset(name, {}) == preset
    with pytest.raises(SettingsError, match="steps 8 and tokens_per_step 4 exclude each other"):
        SamplerSettings.from_preset("adaptive", {"steps": 8, "tokens_per_step": 4})
    with pytest.raises(SettingsError, match="preset must be one of"):
        SamplerSettings.from_preset("fast", {})
    with pytest.raises(SettingsError, match="top_k is no sampler setting"):
        SamplerSettings.from_preset("rediff", {"top_k": 3})


@pytest.mark.parametrize(
    ("fields", "block"),
    [
        ({"tokens_per_step": 1}, 8),
        ({"tokens_per_step": 2}, 32),
        ({"tokens_per_step": 3}, 128),
        ({}, 128),
        ({"tokens_per_step": 1, "block_length": 128}, 128),
        ({"tokens_per_step": 1, "block_length": 64}, 64),
        ({"steps": 128}, 128),
        ({"tokens_per_step": 1, "draft": (5, 6)}, 128),
        ({"tokens_per_step": 1, "canvas_length": 100}, 100),
        ({"tokens_per_step": 1, "canvas_length": 96}, 8),
    ],
)
def test_a_checkpoint_s_block_length_holds_where_the_settings_leave_it_open(
    fields: dict[str, Any], block: int
) -> None:
    assert SamplerSettings(**fields).preferring(Preferences((8, 32))).block == block


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({}, 4),
        ({"extra_refine_steps": 0}, 0),
        ({"extra_refine_steps": 2}, 2),
        ({"tokens_per_step": 1}, 0),
        ({"reveal_threshold": 0.8}, 0),
        ({"block_length": 32}, 0),
        ({"block_length": 128}, 4),
        ({"steps": 16}, 0),
        ({"refine": False}, 0),
        ({"draft": (5, 6)}, 0),
        ({"compat": "official"}, 0),
    ],
)
def test_a_checkpoint_s_extra_steps_hold_where_the_settings_leave_them_open(
    fields: dict[str, Any], extra: int
) -> None:
    assert SamplerSettings(**fields).preferring(Preferences((8,), 4)).extra_steps == extra


@pytest.mark.parametrize(
    ("name", "fields", "preset"),
    [
        (None, {}, "adaptive"),
        (None, {"seed": 3}, "adaptive"),
        (None, {"tokens_per_step": 8}, "rediff"),
        (None, {"steps": 8}, "rediff"),
        ("mask", {}, "mask"),
        ("adaptive", {"tokens_per_step": 8}, "adaptive"),
    ],
)
def test_a_checkpoint_s_preset_holds_where_neither_a_preset_nor_a_pace_is_given(
    name: str | None, fields: dict[str, Any], preset: str
) -> None:
    chosen = SamplerSettings.from_preset(name, fields, Preferences(preset="adaptive").preset)
    assert chosen == SamplerSettings.from_preset(preset, fields)


def test_a_configuration_s_preset_must_be_known() -> None:
    config = ModelConfig(preferences=Preferences(preset="adaptive"))
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match=r"preset must be one of .*, got 'best'"):
        ModelConfig(preferences=Preferences(preset="best"))


@pytest.mark.parametrize("extra", [-1, 129])
def test_a_configuration_s_extra_steps_must_not_exceed_its_canvas(extra: int) -> None:
    config = ModelConfig(preferences=Preferences(extra_refine_steps=4))
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match=f"extra_refine_steps .* canvas_length 128, got {extra}"):
        ModelConfig(preferences=Preferences(extra_refine_steps=extra))


def test_a_configuration_s_block_lengths_must_divide_its_canvas() -> None:
    config = ModelConfig(preferences=Preferences((8, 64)))
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="got 48"):
        ModelConfig(preferences=Preferences((8, 48)))


def test_a_checkpoint_may_name_every_preset_and_no_other() -> None:
    assert tuple(PRESETS) == get_args(Preset)


def test_the_seed_of_minus_one_is_none() -> None:
    assert SamplerSettings(seed=-1) == SamplerSettings()
    assert replace(SamplerSettings(seed=5), seed=-1).seed is None
    for seed in (-2, -(2**63), 0, 2**63 - 1):
        assert SamplerSettings(seed=seed).seed == seed
