"""The expert that knows the scene graph: drafts of scenes against the nearest true caption."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from training.correction.records import Verdict
from training.correction.token_edits import token_offsets
from training.data.conversation import Pair
from training.stickers.nearest_caption import begins_word, repair
from training.stickers.true_sentences import expected_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenizers import Tokenizer

    from training.correction.records import Draft
    from training.stickers.graph import Scene
    from training.stickers.nearest_caption import Piece


@dataclass(frozen=True, slots=True)
class OracleExpert:
    """Least changes, in whole words, that make every sentence true, fluent and new."""

    scene_of: Callable[[Draft], Scene]
    tokenizer: Tokenizer
    concurrency: int = 1

    def judge(self, draft: Draft) -> Verdict:
        """Right if every sentence is true and said once, even where something is left out."""
        return self.judge_against(draft, self.scene_of(draft))

    def judge_against(self, draft: Draft, scene: Scene) -> Verdict:
        """What the verdict would be were the picture of `scene`."""
        pieces = repair(draft.ids, scene, self.tokenizer)
        said = frozenset(topic for piece in pieces for topic in piece.topics)
        mended = all(piece.target is not None for piece in pieces)
        whole = mended and expected_topics(scene) <= said
        if draft.ids and mended and not any(piece.changed(draft.ids) for piece in pieces):
            return Verdict(right=True, whole=whole)
        offsets = token_offsets(draft.ids, self.tokenizer)
        pairs = [pair for piece in pieces for pair in self._pairs(draft, piece, offsets)]
        return Verdict(tuple(pairs), whole=whole)

    def usage(self) -> dict[str, float]:
        return {}

    def _pairs(self, draft: Draft, piece: Piece, offsets: Sequence[int]) -> Iterator[Pair]:
        for first, last in self._runs(draft.ids[piece.first : piece.last], piece.labels):
            begin = piece.first + first
            start, end = offsets[begin], offsets[piece.first + last]
            org = draft.text[start:end]
            target = self.tokenizer.decode(piece.labels[first:last])
            if org[:1] == target[:1] == " ":
                start, org, target = start + 1, org[1:], target[1:]
            if org.strip() and org != target:
                yield Pair(org, target, start)

    def _runs(self, org: Sequence[int], target: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Differing tokens, extended to where words begin on both sides."""
        edges = [
            i
            for i in range(len(org))
            if i == 0
            or (begins_word(org[i], self.tokenizer) and begins_word(target[i], self.tokenizer))
        ]
        edges.append(len(org))
        begin = end = 0
        for first, last in pairwise(edges):
            if org[first:last] == target[first:last]:
                continue
            if first != end:
                if end > begin:
                    yield begin, end
                begin = first
            end = last
        if end > begin:
            yield begin, end
