"""From token ids to what clients read: captions, tokens, words, steps."""

from __future__ import annotations

import math
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from rediff_model.sampling.template_text import Text
from rediff_model.words import token_texts, words
from server.api.schemas import (
    Candidate,
    CaptionAnswer,
    DiffPart,
    HoleAnswer,
    StepMark,
    TimingAnswer,
    Token,
    Usage,
    Word,
)
from server.word_diff import word_diff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rediff_model.sampling.outputs import Alternative, Generation, StepEvent
    from rediff_model.sampling.template_text import TemplateText
    from server.request_handle import Caption

    Decode = Callable[[tuple[int, ...]], str]

MASK_TEXT: Final = "▒"
"""Stands for a masked position in the text of a step."""


def caption_answer(
    caption: Caption,
    identity: str,
    model: str,
    decode: Decode,
    *,
    with_tokens: bool,
    with_steps: bool = False,
    template: TemplateText | None = None,
    draft: str | None = None,
    warnings: Sequence[str] = (),
) -> CaptionAnswer:
    """The answer to `POST /caption`; with `with_tokens` also tokens and words, with `with_steps`
    also the step map, of a `template` also its holes, with a `draft` what changed in it."""
    done, timing = caption.generation, caption.timing
    answer = CaptionAnswer(
        id=identity,
        model=model,
        caption=caption_text(done, decode),
        finish_reason=done.finish_reason,
        usage=Usage(
            image_tokens=caption.prompt.image_tokens,
            prompt_tokens=caption.prompt.prompt_tokens,
            caption_tokens=len(done.ids),
        ),
        steps=done.steps,
        revisions=done.revisions,
        flips=done.flips,
        timing=TimingAnswer(
            decode=round(timing.decode, 6),
            vision=round(timing.vision, 6),
            queue=round(timing.queue, 6),
            generate=round(timing.generate, 6),
            total=round(timing.total, 6),
        ),
        warnings=list(warnings) or None,
    )
    if with_steps:
        counts = zip(done.step_map, done.revision_counts, strict=True)
        marks = [StepMark(step=step, revisions=revisions) for step, revisions in counts]
        answer.step_map = marks[: len(done.ids)]
    if draft is not None:
        parts = word_diff(draft, answer.caption)
        answer.diff = [DiffPart(**part._asdict()) for part in parts]
    if template is not None:
        answer.holes = holes(template, done, decode)
    if with_tokens:
        texts = token_texts(done.ids, decode)
        answer.tokens = [
            Token(id=token, text=text, confidence=round(confidence, 6), revisions=revisions)
            for token, text, confidence, revisions in zip(
                done.ids, texts, done.confidences, done.revision_counts, strict=False
            )
        ]
        for token, found in zip(answer.tokens, done.alternatives, strict=False):
            token.alternatives = candidates(found, decode)
        answer.words = [
            Word(text=word.text, confidence=round(word.confidence, 6))
            for word in words(texts, done.confidences[: len(done.ids)])
        ]
        answer.caption_confidence = generation_confidence(done, answer.caption)
    return answer


def caption_text(done: Generation, decode: Decode) -> str:
    """The caption without white space around it; that of a template stays."""
    text = decode(done.ids)
    return text if done.holes else text.strip()


def generation_confidence(done: Generation, caption: str) -> float:
    """`caption_confidence` of all tokens, or of those in a template's holes."""
    spans = [(hole.first, hole.last) for hole in done.holes] or [(0, len(done.ids))]
    chosen = [one for first, last in spans for one in done.confidences[first:last]]
    return caption_confidence(caption, chosen)


def candidates(found: Sequence[Alternative], decode: Decode) -> list[Candidate]:
    """Alternatives of a token."""
    return [
        Candidate(id=one.id, text=decode((one.id,)), confidence=round(one.confidence, 6))
        for one in found
    ]


def holes(template: TemplateText, done: Generation, decode: Decode) -> list[HoleAnswer]:
    """The filled holes of a template with their places."""
    whole = decode(done.ids)
    found: list[HoleAnswer] = []
    at = 0
    for piece in template.pieces:
        if isinstance(piece, Text):
            at += len(piece.text)
            continue
        filled = done.holes[len(found)]
        end = _shared(decode(done.ids[: filled.last]), whole)
        text = whole[at:end]
        if filled.chances is None:
            choices = None
            confidence = caption_confidence(text, done.confidences[filled.first : filled.last])
        else:
            chances = zip(piece.choices, filled.chances, strict=True)
            choices = {choice: round(chance, 6) for choice, chance in chances}
            confidence = round(max(filled.chances), 6)
        found.append(
            HoleAnswer(
                text=text,
                confidence=confidence,
                start=at,
                end=end,
                token_start=filled.first,
                token_end=filled.last,
                choices=choices,
            )
        )
        at = end
    return found


def _shared(start: str, whole: str) -> int:
    """Characters that both begin with: of a character that is cut at the end of `start`, none."""
    pairs = zip(start, whole, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def caption_confidence(caption: str, confidences: Sequence[float]) -> float:
    """Geometric mean of the tokens' confidences, rounded; 0 of a blank caption."""
    if not caption.strip() or min(confidences) <= 0:
        return 0.0
    return round(math.exp(sum(map(math.log, confidences)) / len(confidences)), 6)


def step_answer(event: StepEvent, decode: Decode, mask_id: int, stop_id: int) -> dict[str, Any]:
    """The data of an `event: step`."""
    return {
        "step": event.step,
        "steps": event.steps,
        "masked": event.masked,
        "text": canvas_text(event.canvas, decode, mask_id, stop_id),
        "changed": [
            {
                "position": change.position,
                "id": change.id,
                "text": decode((change.id,)),
                "confidence": round(change.confidence, 6),
                "kind": change.kind,
                "was": change.was if change.kind == "revise" else None,
            }
            for change in event.changed
        ],
    }


def canvas_answer(event: StepEvent, decode: Decode, mask_id: int, stop_id: int) -> dict[str, Any]:
    """The data of an `event: canvas`: what stood on the canvas before the event's step."""
    before = list(event.canvas)
    for change in event.changed:
        before[change.position] = change.was
    end = before.index(stop_id) if stop_id in before else len(before)
    in_hole = {place for first, last in event.holes for place in range(first, last)}
    tokens = []
    for place, token in enumerate(before[:end]):
        if token != mask_id:
            kind = "draft" if not event.holes else "choice" if place in in_hole else "fixed"
            tokens.append({"position": place, "id": token, "text": decode((token,)), "kind": kind})
    return {"tokens": tokens, "holes": [list(span) for span in event.holes]}


def canvas_text(canvas: tuple[int, ...], decode: Decode, mask_id: int, stop_id: int) -> str:
    """A canvas as text up to its first stop, each masked position shown as `MASK_TEXT`."""
    parts: list[str] = []
    run: list[int] = []
    for token in (*canvas, stop_id):
        if token not in (mask_id, stop_id):
            run.append(token)
            continue
        if run:
            parts.append(decode(tuple(run)))
            run.clear()
        if token == stop_id:
            break
        parts.append(MASK_TEXT)
    return "".join(parts)
