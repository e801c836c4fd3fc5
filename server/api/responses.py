"""From token ids to what clients read: captions, tokens, words, steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from rediff_model.words import token_texts, words
from server.api.schemas import CaptionAnswer, StepMark, TimingAnswer, Token, Usage, Word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rediff_model.sampling.outputs import StepEvent
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
    warnings: Sequence[str] = (),
) -> CaptionAnswer:
    """The answer to `POST /caption`; with `with_tokens` also tokens and words, with `with_steps`
    also the step map."""
    done, timing = caption.generation, caption.timing
    answer = CaptionAnswer(
        id=identity,
        model=model,
        caption=decode(done.ids).strip(),
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
    if with_tokens:
        texts = token_texts(done.ids, decode)
        answer.tokens = [
            Token(id=token, text=text, confidence=round(confidence, 6), revisions=revisions)
            for token, text, confidence, revisions in zip(
                done.ids, texts, done.confidences, done.revision_counts, strict=False
            )
        ]
        confidences = done.confidences[: len(done.ids)]
        answer.words = [
            Word(text=word.text, confidence=round(word.confidence, 6))
            for word in words(texts, confidences)
        ]
        answer.caption_confidence = caption_confidence(answer.caption, confidences)
    return answer


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
