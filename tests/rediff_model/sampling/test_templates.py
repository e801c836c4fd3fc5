"""Templates: fixed text stays, holes keep their limits, choices are compared in place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampler_case import IDS, any_settings, assert_equal, model_of, prompt_of, with_template

from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.template import Choices, Masks, Template

if TYPE_CHECKING:
    from rediff_model.sampling.outputs import Generation

PLAIN = list(HealthCheck)


def of(template: tuple[Any, ...], **changes: Any) -> SamplerSettings:
    return SamplerSettings(template=Template(template), **changes)


def check(done: Generation, chosen: SamplerSettings) -> None:
    """What holds of every filled template."""
    template = chosen.template
    assert template is not None
    filled = iter(done.holes)
    at = 0
    for part in template.parts:
        if isinstance(part, tuple):
            assert done.ids[at : at + len(part)] == part
            assert set(done.confidences[at : at + len(part)]) == {1.0}
            assert set(done.step_map[at : at + len(part)]) == {0}
            at += len(part)
            continue
        hole = next(filled)
        held = done.ids[hole.first : hole.last]
        assert hole.first == at
        at = hole.last
        if isinstance(part, Choices):
            assert hole.chances is not None
            assert len(hole.chances) == len(part.options)
            assert sum(hole.chances) == pytest.approx(1)
            assert held == part.options[hole.chances.index(max(hole.chances))]
            assert set(done.confidences[hole.first : hole.last]) == {max(hole.chances)}
        else:
            assert hole.chances is None
            assert len(held) == part.count
            assert not {IDS.stop, IDS.mask} & set(held)
            assert not part.opens_with_space or held[0] in IDS.spaced
    assert len(done.ids) == at
    assert done.finish_reason == "stop"
    assert set(done.revision_counts[at:]) == {0}
    assert done.steps <= chosen.planned_steps


visits = st.lists(
    st.tuples(
        with_template() | with_template() | any_settings(), st.integers(0, 30), st.integers(0, 6)
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=PLAIN)
@given(visits, st.sampled_from(["full", "prefix"]))
def test_templates_equal_the_reference_whoever_joins_at_which_step(
    arrivals: list[tuple[SamplerSettings, int, int]], prefix_attention: Any
) -> None:
    model = model_of(prefix_attention, 1)
    state = sampler.open_state(model, IDS)
    done: dict[int, Generation] = {}
    step = 0
    while len(done) < len(arrivals):
        for number, (chosen, seed, arrival) in enumerate(arrivals):
            if arrival == step:
                prompt = prompt_of(seed, 2 + seed % 5)
                state = sampler.join(model, state, [number], [prompt], [chosen])
        if state.slots is not None:
            state, events = sampler.step(model, state)
            for event in events:
                moving = [c for c in event.changed if c.kind == "revise"]
                inside = [range(*span) for span in event.holes]
                template = arrivals[event.request][0].template is not None
                assert all(any(c.position in one for one in inside) for c in moving if template)
                assert not (event.choosing and event.changed)
        state, taken = state.taken()
        done |= taken
        step += 1
    for number, (chosen, seed, _) in enumerate(arrivals):
        want = reference.generate(model, prompt_of(seed, 2 + seed % 5), chosen, IDS)
        assert_equal(done[number], want)
        if chosen.template is not None:
            check(done[number], chosen)


def test_a_choice_s_probability_is_that_of_its_tokens_one_after_another() -> None:
    """Computed here from nothing but forward passes."""
    model, prompt_PD = model_of("prefix", 0), prompt_of(3, 4)
    options = ((0,), (1, 2), (1, 4), (5, 0, 1))
    chosen = of(((2, 2), Choices(options), (4,)))

    @torch.inference_mode()
    def chance(before: tuple[int, ...], masks: int, token: int) -> float:
        fill = (IDS.stop,) * (3 - len(before) - masks)
        canvas = (2, 2, *before, *(IDS.mask,) * masks, 4, IDS.stop, *fill)
        plain = SamplerSettings(canvas_length=7, draft=canvas)
        run = reference._Sequence(model, prompt_PD, plain, IDS, None)  # type: ignore[arg-type]
        logits_V = run._logits(run.rows_ND)[4 + 2 + len(before)]
        logits_V[list(IDS.suppressed)] = -torch.inf
        return float(logits_V.double().softmax(0)[token])

    joint = [
        math.prod(chance(option[:n], len(option) - n, token) for n, token in enumerate(option))
        for option in options
    ]
    [done] = sampler.generate(model, [prompt_PD], [chosen], IDS)
    [hole] = done.holes
    assert hole.chances == pytest.approx([one / sum(joint) for one in joint], abs=1e-9)
    # One pass for one token, two for the pair with a common beginning, three for three tokens.
    assert done.steps == 1 + 2 + 3
    check(done, chosen)


def test_a_template_without_holes_of_tokens_takes_no_pass_more() -> None:
    [done] = sampler.generate(
        model_of("full", 0), [prompt_of(0, 3)], [of(((1,), Choices(((2,), (4,)))))], IDS
    )
    assert done.steps == 1
    [fixed] = sampler.generate(model_of("full", 0), [prompt_of(0, 3)], [of(((1, 2),))], IDS)
    assert (fixed.ids, fixed.steps, fixed.holes) == ((1, 2), 0, ())


def test_what_a_hole_is_filled_with_is_refined_and_its_steps_count() -> None:
    """Over many prompts something is revised, and only inside the hole."""
    chosen = of(((0, 1), Masks(6), (4, 2)), tokens_per_step=1, extra_refine_steps=3)
    prompts = [prompt_of(seed, 4) for seed in range(20)]
    made = sampler.generate(model_of("full", 2), prompts, [chosen] * 20, IDS)
    assert sum(one.revisions for one in made) > 0
    for one in made:
        check(one, chosen)
        assert one.revision_counts[:2] == one.revision_counts[8:10] == (0, 0)


def test_ids_of_a_template_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="template id 99 lies outside the vocabulary 9"):
        sampler.start(model_of("full", 0), [prompt_of(0, 2)], [of(((99,), Masks(1)))], IDS)


def test_alternatives_are_those_of_the_pass_of_the_confidence() -> None:
    model, prompt_PD = model_of("prefix", 0), prompt_of(5, 4)
    chosen = SamplerSettings(canvas_length=12, alternatives=3, stop=())
    [done] = sampler.generate(model, [prompt_PD], [chosen], IDS)
    for token, confidence, found in zip(
        done.canvas, done.confidences, done.alternatives, strict=True
    ):
        assert [one.confidence for one in found] == sorted(
            (one.confidence for one in found), reverse=True
        )
        # Without temperature the token is the likeliest one.
        assert found[0].id == token
        assert found[0].confidence == pytest.approx(confidence, abs=1e-9)
        assert len({one.id for one in found}) == 3
        assert not {IDS.mask, *IDS.suppressed} & {one.id for one in found}
