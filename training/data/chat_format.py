"""Conversations rendered as samples, in LLaDA's chat format.

By default only answers are trained, and what comes before the first answer has the very ids that
a served model is prompted with: the answer is tokenised on its own, after the assistant's header.
`compat="official"` trains on the special tokens of prompts too, looks for wrong segments in the
whole sequence by their tokens, and takes a row whose pairs all fail for an ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rediff_model.chat_template import SYSTEM
from training.data.conversation import IMAGE_TAG
from training.data.problems import BadRow
from training.data.sample import IMAGE_ID, NO_TOKEN, Rows, Sample, Specials
from training.data.segment_labels import Correction, Occurrences, correct, locate
from training.loss.masked_diffusion import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from rediff_model.sampling.params import Compat
    from training.data.conversation import AnswerTokens, Pair, Row, Turn


@dataclass(frozen=True, slots=True)
class Renderer:
    """Turns rows into samples."""

    tokenizer: Tokenizer
    specials: Specials
    compat: Compat = "default"
    occurrences: Occurrences = "unique"
    canvas_length: int | None = None
    """Fill the last answer up to this many tokens with trained end-of-turn tokens, and cut longer
    ones: the canvas of a served model is this long whatever the answer. None: the sample ends
    with its last turn. Not for compat official."""

    def __call__(self, row: Row) -> Sample:
        """The sample of a row.

        Raises:
            BadRow: `malformed` (picture and tag disagree, a special token in the text, an empty
                answer), `pairless` (the row has pairs, and none can be used: its caption is wrong
                and must not be learnt), `truncated` (all corrections lie past the canvas).
        """
        turns = row.turns[1:] if row.turns[0].role == "assistant" else row.turns
        if self.compat == "official":
            return self._official(row, turns)
        self._check(row, turns)
        answers = [turn.text.rstrip() for turn in turns if turn.role == "assistant"]
        segments, problems = locate(answers, row.pairs, row.where, self.occurrences)
        rows = Rows()
        beside: list[int] = []
        rows.add_prompt([self.specials.bos, *self._header("system"), *self._body(SYSTEM)])
        starts: list[int] = []
        for turn in turns:
            rows.add_prompt(self._header(turn.role))
            if turn.role == "user":
                rows.add_prompt(self._body(_as_served(turn.text)))
                continue
            rows.add_prompt(self._encode("\n\n"))
            own = [segment for segment in segments if segment.answer == len(starts)]
            if row.tokens is not None:
                correction = self._as_sampled(row.tokens, row.where)
            else:
                correction, left_out = correct(answers[len(starts)], own, self.tokenizer, row.where)
                problems += left_out
            if row.draft and not starts:
                drafted = self._encode(row.draft)[: len(correction.ids)]
                beside = [NO_TOKEN] * len(rows.ids) + drafted
            starts.append(len(rows.ids))
            rows.add(correction.ids, correction.labels, correction.revise)
            rows.add([self.specials.end_turn], [self.specials.end_turn])
        if row.pairs and not any(rows.revise):
            raise BadRow(
                "pairless", row.where, "; ".join(f"{p.kind}: {p.reason}" for p in problems)
            )
        if self.canvas_length is not None:
            end = starts[-1] + self.canvas_length
            fill = [self.specials.end_turn] * (end - len(rows.ids))
            rows.add(fill, fill)
            rows.cut(end)
            if row.pairs and not any(rows.revise):
                raise BadRow("truncated", row.where, "the corrections lie past the canvas")
        return rows.sample(row.where, starts[0], problems, beside)

    def _as_sampled(self, tokens: AnswerTokens, where: str) -> Correction:
        vocabulary = self.tokenizer.get_vocab_size()
        if (highest := max(*tokens.ids, *tokens.labels)) >= vocabulary:
            raise BadRow("malformed", where, f"id {highest} lies past {vocabulary} tokens")
        flagged = set(tokens.flags)
        revise = tuple(place in flagged for place in range(len(tokens.ids)))
        return Correction(tokens.ids, tokens.labels, revise)

    def _official(self, row: Row, turns: Sequence[Turn]) -> Sample:
        specials = self.specials
        kept = {specials.bos, specials.header_start, specials.header_end, specials.end_turn}
        rows = Rows()
        start = 0
        rendered = [("system", SYSTEM), *((turn.role, turn.text) for turn in turns)]
        for number, (role, text) in enumerate(rendered):
            ids = [specials.bos] if number == 0 else []
            body = self._body(_tag_first(text)) if row.image else self._text(text)
            ids += [*self._header(role), *body]
            labels = ids if role == "assistant" else [i if i in kept else IGNORE for i in ids]
            if role == "assistant":
                start = start or len(rows.ids)
            rows.add(ids, labels)
        for pair in row.pairs:
            self._official_pair(rows, pair)
        return rows.sample(row.where, start)

    def _official_pair(self, rows: Rows, pair: Pair) -> None:
        """Label the first run of tokens, prompt included, that equals the wrong segment's."""
        org, target = (self._encode(f"dummy {text}")[1:] for text in (pair.org, pair.target))
        if len(org) != len(target):
            return
        for at in range(len(rows.ids) - len(org) + 1):
            if rows.ids[at : at + len(org)] == org:
                rows.labels[at : at + len(org)] = target
                rows.revise[at : at + len(org)] = [True] * len(org)
                return

    def _check(self, row: Row, turns: Sequence[Turn]) -> None:
        if not any(turn.role == "assistant" for turn in turns):
            raise BadRow("malformed", row.where, "the only answer has no question")
        tags = [turn.role for turn in turns for _ in range(turn.text.count(IMAGE_TAG))]
        if tags != (["user"] if row.image else []):
            pictures = "one picture" if row.image else "no picture"
            raise BadRow(
                "malformed", row.where, f"{IMAGE_TAG} in turns of {tags} beside {pictures}"
            )
        for turn in turns:
            if turn.role == "assistant" and not turn.text.strip():
                raise BadRow("malformed", row.where, "an empty answer")
        for text in (*(turn.text for turn in turns), row.draft):
            for token in self._encode(text):
                if token in self.specials.all:
                    name = self.tokenizer.id_to_token(token)
                    raise BadRow("malformed", row.where, f"the text holds the special token {name}")

    def _body(self, text: str) -> list[int]:
        """Ids of a turn after its header, with its end."""
        first, *rest = f"\n\n{text}".split(IMAGE_TAG)
        ids = self._encode(first)
        for piece in rest:
            ids += [IMAGE_ID, *self._encode(piece)]
        return [*ids, self.specials.end_turn]

    def _text(self, text: str) -> list[int]:
        """Ids of a turn without a picture, whatever tags it spells."""
        return [*self._encode(f"\n\n{text}"), self.specials.end_turn]

    def _header(self, role: str) -> list[int]:
        return [self.specials.header_start, *self._encode(role), self.specials.header_end]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _as_served(text: str) -> str:
    """The text as a prompt has it: no outer white space, and a picture that is first on a line
    of its own. Anywhere else the picture stays where it is."""
    text = text.strip()
    if not text.startswith(IMAGE_TAG):
        return text
    return f"{IMAGE_TAG}\n{text.removeprefix(IMAGE_TAG).strip()}".rstrip()


def _tag_first(text: str) -> str:
    """Move a single picture tag to the front, on a line of its own, unless it is there."""
    if text.count(IMAGE_TAG) != 1 or text.startswith(IMAGE_TAG):
        return text
    return f"{IMAGE_TAG}\n{text.replace(IMAGE_TAG, '').strip()}".rstrip()
