"""The sampler for one sequence, slow and obvious: what a refining step means.

Equal to the official implementation step by step in `compat="official"`; by default its defects
are gone (docs/fidelity.md lists them). Like the official code it runs prompt and canvas again at
every step, makes logits for every row, and a float64 softmax over the vocabulary.

Shape suffixes: P prompt rows, C canvas rows (answer and suffix), N = P + C, V vocabulary, D
hidden size.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from kernels.canvas import REMEMBERED, SIGHT
from rediff_model.sampling.batch_state import check_ids, looks_masked
from rediff_model.sampling.outputs import LEAST, LEVEL, Alternative, Generation
from rediff_model.sampling.rng import CounterNoise, Noise
from rediff_model.sampling.template import Choosing, Layout, likeliest, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from rediff_model.config import TokenIds
    from rediff_model.language import LanguageModel
    from rediff_model.sampling.params import SamplerSettings
    from rediff_model.sampling.template import Template

PROMPT = -1
"""Stands for the id of a prompt row, which is known by its embedding only."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Everything about one step, for comparison with other implementations."""

    block: int
    step_in_block: int
    count: int
    """Positions that the schedule asked for."""
    bound: int
    """Answer positions from here on were not open."""
    masked_N: Tensor
    """At the beginning of the step."""
    predicted_N: Tensor
    score_N: Tensor
    """What positions are ranked by, float64."""
    revealed: tuple[int, ...]
    """Rows of the sequence, the best first."""
    revised: tuple[int, ...]
    before_C: Tensor
    after_reveal_C: Tensor
    after_C: Tensor
    stop: int
    """After the step; the canvas length if there is none."""


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt_PD: Tensor,
    settings: SamplerSettings,
    ids: TokenIds,
    noise: Noise | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> Generation:
    """Caption one prompt. `noise` replaces the numbers that the seed gives.

    Raises:
        SettingsError: a draft, stop, suffix or template id outside the vocabulary.
    """
    check_ids(settings, model.model.config.vocab_size)
    run = _Sequence(model, prompt_PD, settings, ids, noise or CounterNoise())
    choices, layout = None, None
    if (template := settings.template) is not None:
        choices = _choose(run, template)
        layout = choices.layout(ids.mask, ids.stop)
        run.begin(layout, choices)
    for block in range(settings.blocks):
        if block * settings.block < run.stop and (template is None or template.masks):
            _denoise_block(run, block, on_step)
    last = _best_of_cycle(run)
    length = settings.canvas_length
    canvas = last.canvas[:length]
    revisions = tuple(last.revisions_C[:length].tolist())
    return Generation(
        ids=canvas[: last.stop],
        canvas=canvas,
        steps=run.steps,
        revisions=sum(revisions),
        confidences=tuple(last.confidence_C[:length].tolist()),
        revision_counts=revisions,
        flips=int(last.flips_C[:length].sum()),
        step_map=tuple(last.written_C[:length].tolist()),
        finish_reason="stop" if last.stop < length else "length",
        holes=() if choices is None or layout is None else choices.filled(layout),
        alternatives=last.alternatives[:length] if settings.alternatives else (),
    )


def _choose(run: _Sequence, template: Template) -> Choosing:
    """Make the choices of a template, from the first to the last.

    An option's probability is that of its first token, with the option masked, times that of the
    second with the first in place, and so on, each on a canvas that is as long as the option asks.
    """
    mask, stop = run.ids.mask, run.ids.stop
    chosen: list[tuple[int, ...]] = []
    chances: list[tuple[float, ...]] = []
    for hole in template.choices:
        seen: dict[tuple[int, ...], Tensor] = {}
        logs: list[list[float]] = []
        for option in hole.options:
            logs.append([])
            for place, token in enumerate(option):
                trial = (*option[:place], *(mask,) * (len(option) - place))
                layout = template.layout((*chosen, trial), mask, stop)
                if trial not in seen:
                    seen[trial] = run.log_chances(layout)
                at = _hole_of(layout, template, len(chosen)) + place
                logs[-1].append(float(seen[trial][run.prompt + at, token]))
        shared = shares([sum(one) for one in logs])
        chosen.append(hole.options[likeliest(shared)])
        chances.append(shared)
        run.passes += len(seen)
    return Choosing(template, tuple(chances), passed=run.passes)


def _hole_of(layout: Layout, template: Template, choice: int) -> int:
    """The first position of a choice."""
    spans = [
        span
        for span, hole in zip(layout.spans, template.holes, strict=True)
        if hole in template.choices
    ]
    return spans[choice][0]


def _best_of_cycle(run: _Sequence) -> _Past:
    """What the caption ends on: the last canvas, or a surer one of the cycle that it closes.

    A cycle is closed where a step that began without a mask before the stop brings back one of the
    last canvases. The surest has the largest product of the confidences of its tokens, stop
    included; it is as if the last step had led to it.
    """
    mask, length = run.ids.mask, run.settings.canvas_length
    *_, last = run.past
    recent = run.past[:-1][-REMEMBERED:]
    if run.official or not recent or mask in recent[-1].canvas[: recent[-1].stop]:
        return last
    same = [n for n, past in enumerate(recent) if past.canvas[:length] == last.canvas[:length]]
    best = last
    for past in reversed(recent[same[-1] + 1 :] if same else []):
        if past.joint(length) > best.joint(length) + LEVEL:
            best = past
    return last if best is last else recent[-1].followed_by(best, run.steps, mask)


def _denoise_block(
    run: _Sequence, block: int, on_step: Callable[[StepRecord], None] | None
) -> None:
    """All steps of one block."""
    settings, official, first = run.settings, run.official, run.prompt
    length, steps = settings.canvas_length, settings.steps_per_block
    begin, end = block * settings.block, (block + 1) * settings.block
    in_block = range(first + begin, first + end)
    masks_at_start = int(run.masked()[in_block].sum())
    complete = not run.masked()[first + begin : first + min(run.stop, end)].any()
    polish = complete and settings.refines and not official
    extra = 0 if polish else settings.extra_steps
    refined = 0
    seen = [run.canvas()]
    settled = False

    for step in range(steps + extra):
        masked_N = run.masked()
        masked = masked_N.tolist()
        masked_C = masked_N[first:]
        if official:
            stop_reached = run.stop < length and not masked_C[: run.stop].any()
            if stop_reached or not masked_C[begin:end].any():
                return
        # A stop is the end: masks behind it are not waited for.
        filled = not official and not masked_C[begin : min(run.stop, end)].any()
        if filled and (settled if polish else refined >= extra or (refined > 0 and settled)):
            return
        refined += filled

        predicted_N, chance_N, score_N = run.predict(masked_N)

        if official:
            count = masks_at_start // steps + (step < masks_at_start % steps)
            # The block's end does not count once a stop is known.
            bound = run.stop if run.stop < length else end
        else:
            spread = -(-int(masked_C[begin:end].sum()) // max(steps - step, 1))
            count = max(spread, settings.least_revealed)
            bound = min(run.stop, end)
        score, chance = score_N.tolist(), chance_N.tolist()
        candidates = [row for row in range(first + bound) if masked[row]]
        ends: list[int] = []
        if settings.end_threshold is not None:
            ends = [
                row
                for row in candidates
                if (int(predicted_N[row]),) in run.stops and chance[row] > settings.end_threshold
            ]
        revealed = _best((row for row in candidates if row not in ends), score, count)
        revealed += _best(ends, score, len(ends))
        if settings.reveal_threshold is not None:
            sure = [row for row in candidates if chance[row] > settings.reveal_threshold]
            revealed += [row for row in _best(sure, score, len(sure)) if row not in revealed]

        revised: list[int] = []
        if settings.refines and (step >= settings.refine_from or filled):
            revised = [row for row in in_block if not masked[row] and row < first + run.sight]
            revised = [row for row in revised if row - first not in run.fixed]
            fraction = settings.refine_fraction or 1.0
            if fraction < 1:
                part = int(len(revised) * fraction)
                revised = _best((row for row in revised if row < first + bound), score, part)
        same_N = predicted_N == run.ids_N
        if settings.edit_threshold > 0:
            revised = [
                row for row in revised if same_N[row] or chance[row] > settings.edit_threshold
            ]
        still_masked = any(masked[row] and row not in revealed for row in in_block)
        last = not official and (step == steps - 1 or (filled and not polish))
        if last and run.stop < length and still_masked:
            # Revising the stop away now would leave the masks behind it in the caption.
            kept = range(first + run.stop, first + run.stop + run.longest_stop)
            revised = [row for row in revised if row not in kept or same_N[row]]

        before_C = run.canvas_C.clone()
        run.write(revealed, predicted_N)
        after_reveal_C = run.canvas_C.clone()
        run.write(revised, predicted_N)
        after_C = run.canvas_C.clone()
        run.find_stop()
        settled = run.canvas() in seen[-REMEMBERED:]
        seen.append(run.canvas())

        in_canvas = [row for row in (*revealed, *revised) if row >= first]
        confidence_C = run.past[-1].confidence_C.clone()
        confidence_C[[row - first for row in in_canvas]] = chance_N[in_canvas]
        alternatives = list(run.past[-1].alternatives)
        for row in in_canvas if settings.alternatives else []:
            alternatives[row - first] = run.alternatives(row)
        now = replace(
            run.past[-1],
            canvas=run.canvas(),
            stop=run.stop,
            confidence_C=confidence_C,
            alternatives=tuple(alternatives),
        )
        run.past.append(run.past[-1].followed_by(now, run.steps, run.ids.mask))
        if on_step is not None:
            on_step(
                StepRecord(
                    block=block,
                    step_in_block=step,
                    count=count,
                    bound=bound,
                    masked_N=masked_N,
                    predicted_N=predicted_N,
                    score_N=score_N,
                    revealed=tuple(revealed),
                    revised=tuple(revised),
                    before_C=before_C,
                    after_reveal_C=after_reveal_C,
                    after_C=after_C,
                    stop=run.stop,
                )
            )


class _Sequence:
    """Prompt, canvas and suffix as embeddings and ids, with what is known about them."""

    def __init__(
        self,
        model: LanguageModel,
        prompt_PD: Tensor,
        settings: SamplerSettings,
        ids: TokenIds,
        noise: Noise,
    ) -> None:
        self.model, self.settings, self.ids, self.noise = model, settings, ids, noise
        self.official = settings.compat == "official"
        self.prompt = len(prompt_PD)
        self.seed = secrets.randbits(63) if settings.seed is None else settings.seed
        draft = settings.draft or ()
        masks = (ids.mask,) * (settings.canvas_length - len(draft))
        device = prompt_PD.device
        canvas_C = torch.tensor((*draft, *masks, *settings.suffix), device=device)
        self.embedding_VD = model.model.embed_tokens.weight
        self.rows_ND = torch.cat((prompt_PD, self.embedding_VD[canvas_C]))
        self.ids_N = torch.cat((canvas_C.new_full((self.prompt,), PROMPT), canvas_C))
        self.forwards = 0
        self.passes = 0
        """Forward passes that compared choices."""
        self.fixed: frozenset[int] = frozenset()
        """Canvas positions that a template does not leave open."""
        self.layout: Layout | None = None
        self.stops = settings.stops(ids)
        self.longest_stop = max((len(sequence) for sequence in self.stops), default=0)
        self.stop = settings.canvas_length
        self.sight = len(canvas_C)
        if not self.official:
            self.find_stop()
        none_C = torch.zeros_like(canvas_C)
        sure_C = torch.zeros(len(canvas_C), dtype=torch.float64, device=device)
        nothing = ((),) * len(canvas_C)
        self.past = [
            _Past(self.canvas(), self.stop, sure_C, nothing, none_C, none_C, none_C, none_C - 1)
        ]

    def begin(self, layout: Layout, choices: Choosing) -> None:
        """Take a template's canvas, its choices made."""
        self._place(layout)
        self.layout = layout
        self.fixed = frozenset(place for place, free in enumerate(layout.free) if not free)
        self.find_stop()
        confidences, steps = choices.start(layout)
        blank = self.past[0]
        self.past = [
            replace(
                blank,
                canvas=self.canvas(),
                stop=self.stop,
                confidence_C=blank.confidence_C.new_tensor(confidences),
                written_C=blank.written_C.new_tensor(steps),
            )
        ]

    def _place(self, layout: Layout) -> None:
        canvas_C = self.ids_N.new_tensor(layout.ids)
        self.ids_N[self.prompt :] = canvas_C
        self.rows_ND[self.prompt :] = self.embedding_VD[canvas_C]

    def log_chances(self, layout: Layout) -> Tensor:
        """Log-probabilities of every token at every row of a canvas, [N, V]."""
        self._place(layout)
        logits_NV = self._logits(self.rows_ND)
        logits_NV[:, list(self.ids.suppressed)] = -torch.inf
        return logits_NV.double().log_softmax(dim=1)

    @property
    def steps(self) -> int:
        """Forward passes so far."""
        return self.passes + self.forwards

    @property
    def canvas_C(self) -> Tensor:
        return self.ids_N[self.prompt :]

    def canvas(self) -> tuple[int, ...]:
        return tuple(self.canvas_C.tolist())

    def masked(self) -> Tensor:
        """Which rows are masked, [N]. Officially by embedding, prompt and suffix included."""
        if self.official:
            return looks_masked(self.rows_ND, self.embedding_VD[self.ids.mask])
        masked_N = self.ids_N == self.ids.mask
        masked_N[self.prompt + self.settings.canvas_length :] = False
        return masked_N

    def predict(self, masked_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A forward pass: predicted ids, their probabilities and what they are ranked by.

        Rows out of sight take no part and keep their ids.
        """
        seen = slice(self.prompt + self.sight)
        logits_NV = self._logits(self.rows_ND[seen])
        self._suppress(logits_NV, masked_N[seen])
        self._obey(logits_NV)
        allowed_NV = logits_NV.clone()
        if not self.official:
            # A caption must not contain the mask token; officially it may.
            allowed_NV[:, self.ids.mask] = -torch.inf
        predicted_N = allowed_NV.argmax(dim=1)
        position_N = torch.arange(len(logits_NV), device=logits_NV.device) - self.prompt
        places = (
            torch.full_like(position_N, self.seed),
            torch.full_like(position_N, self.forwards),
            position_N,
        )
        self.forwards += 1
        if self.settings.temperature > 0:
            uniform_NV = self.noise.tokens(*places, logits_NV.shape[1])
            noisy_NV = allowed_NV.double().exp() / (-uniform_NV.log()) ** self.settings.temperature
            predicted_N = noisy_NV.argmax(dim=1)
        chance_NV = logits_NV.double().softmax(dim=1)
        self.chance_NV = chance_NV.masked_fill(allowed_NV == -torch.inf, 0)
        chance_N = chance_NV.gather(1, predicted_N[:, None])[:, 0]
        score_N = self.noise.order(*places) if self.settings.remasking == "random" else chance_N
        unseen_N = self.ids_N[len(predicted_N) :]
        return (
            torch.cat((predicted_N, unseen_N)),
            pad(chance_N, (0, len(unseen_N))),
            pad(score_N, (0, len(unseen_N))),
        )

    def _logits(self, rows_ND: Tensor) -> Tensor:
        """[N, V], guided if asked for; at least float32."""
        logits_NV = self._forward(rows_ND)
        if self.settings.cfg_scale > 0:
            rows_ND = rows_ND.clone()
            rows_ND[: self.prompt] = self.embedding_VD[self.ids.mask]
            without_NV = self._forward(rows_ND)
            logits_NV = without_NV + (self.settings.cfg_scale + 1) * (logits_NV - without_NV)
        return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()

    def _forward(self, rows_ND: Tensor) -> Tensor:
        position_N = torch.arange(len(rows_ND), device=rows_ND.device)
        allowed_NN = None
        if self.model.model.config.prefix_attention == "prefix":
            is_prompt_N = position_N < self.prompt
            allowed_NN = ~is_prompt_N[:, None] | is_prompt_N
        hidden_ND = self.model.model(rows_ND, position_N, _Attend(allowed_NN))
        return self.model.logits(hidden_ND)

    def _suppress(self, logits_NV: Tensor, masked_N: Tensor) -> None:
        """Forbid ids: everywhere when refining, else where the row is masked."""
        rows_N = torch.ones_like(masked_N) if self.settings.refine else masked_N
        for token in self.ids.suppressed:
            logits_NV[rows_N, token] = -torch.inf

    def _obey(self, logits_NV: Tensor) -> None:
        """Forbid what a template's holes cannot hold: a stop, and no space where one is wanted."""
        if self.layout is None:
            return
        spaced_V = torch.zeros(logits_NV.shape[1], dtype=torch.bool, device=logits_NV.device)
        spaced_V[list(self.ids.spaced)] = True
        for place, (free, opens) in enumerate(
            zip(self.layout.free, self.layout.opening, strict=True)
        ):
            if free:
                logits_NV[self.prompt + place, self.ids.stop] = -torch.inf
            if opens:
                logits_NV[self.prompt + place, ~spaced_V] = -torch.inf

    def alternatives(self, row: int) -> tuple[Alternative, ...]:
        """The likeliest tokens of a row in the last pass, ties to the lower id."""
        chance_V, ids_V = self.chance_NV[row].sort(descending=True, stable=True)
        pairs = zip(ids_V.tolist(), chance_V.tolist(), strict=True)
        return tuple(
            Alternative(token, chance)
            for token, chance in islice(pairs, self.settings.alternatives)
            if chance > 0
        )

    def write(self, rows: list[int], predicted_N: Tensor) -> None:
        self.ids_N[rows] = predicted_N[rows]
        self.rows_ND[rows] = self.embedding_VD[predicted_N[rows]]

    def find_stop(self) -> None:
        """Where the answer ends, and which rows of the canvas are in sight of the next pass.

        Officially the stop only moves to earlier places and stays when it is revised away, and
        sequences are looked for in listed order until one is known. With `end_threshold`, and
        without a suffix, rows behind a stop that a step has left where it was are out of sight
        until a step moves it.
        """
        length = self.settings.canvas_length
        answer = self.canvas()[:length]
        if not self.official:
            before = self.stop
            self.stop = min((_first(answer, one) for one in self.stops), default=length)
            self.sight = len(self.canvas_C)
            if self.settings.shrinks and self.stop == before < length:
                self.sight = min(length, -(-(self.stop + self.longest_stop) // SIGHT) * SIGHT)
            return
        for sequence in self.stops:
            self.stop = min(self.stop, _first(answer, sequence))
            if self.stop < length:
                return


@dataclass(frozen=True, slots=True)
class _Past:
    """A canvas after a step, with how it came about."""

    canvas: tuple[int, ...]
    stop: int
    confidence_C: Tensor
    alternatives: tuple[tuple[Alternative, ...], ...]
    revisions_C: Tensor
    flips_C: Tensor
    written_C: Tensor
    """The step in which a position took its value."""
    was_C: Tensor
    """The token before the last revision; -1 is none."""

    def followed_by(self, after: _Past, step: int, mask: int) -> _Past:
        """`after`, reached from here in one step."""
        before_C, after_C = (
            torch.tensor(canvas, device=self.was_C.device) for canvas in (self.canvas, after.canvas)
        )
        revised_C = (before_C != mask) & (after_C != before_C)
        return replace(
            after,
            revisions_C=self.revisions_C + revised_C,
            flips_C=self.flips_C + (revised_C & (after_C == self.was_C)),
            written_C=torch.where(after_C != before_C, step, self.written_C),
            was_C=torch.where(revised_C, before_C, self.was_C),
        )

    def joint(self, length: int) -> float:
        """Logarithm of the product of the confidences up to the stop."""
        sure_C = self.confidence_C[: min(self.stop + 1, length)]
        return float(sure_C.clamp(min=LEAST).log().sum())


@dataclass(frozen=True, slots=True)
class _Attend:
    """Attention over one sequence; `allowed_NN` says which row sees which, None is all."""

    allowed_NN: Tensor | None

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        query, key, value = (rows.transpose(0, 1)[None] for rows in (query_THE, key_TKE, value_TKE))
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=self.allowed_NN, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output[0].transpose(0, 1)


def _best(rows: Iterable[int], score: list[float], count: int) -> list[int]:
    """The `count` rows of highest score, or all if there are fewer; ties to the lower row.

    The official top-k takes rows that are not open when there are fewer. Which ones depends on
    the machine, so that is not repeated.
    """
    return sorted(rows, key=lambda row: (-score[row], row))[:count]


def _first(answer: tuple[int, ...], sequence: tuple[int, ...]) -> int:
    """Where `sequence` first occurs; the answer's length if nowhere."""
    for place in range(len(answer) - len(sequence) + 1):
        if answer[place : place + len(sequence)] == sequence:
            return place
    return len(answer)
