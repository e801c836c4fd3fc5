"""A training sample: ids, labels and revise flags of one conversation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Self

from rediff_model.chat_template import END_OF_HEADER, END_OF_TURN, START_OF_HEADER, START_OF_TEXT
from training.loss.masked_diffusion import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from training.data.problems import Problem

IMAGE_ID = -200
"""Stands for a picture in ids."""

NO_TOKEN = -1
"""Where a draft has no token beside an id."""


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of the special tokens of LLaDA's chat format."""

    bos: int
    pad: int
    mask: int
    header_start: int
    header_end: int
    end_turn: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> Self:
        """Look the ids up.

        Raises:
            ValueError: a token is missing.
        """
        names = {
            "bos": START_OF_TEXT,
            "pad": "<|endoftext|>",
            "mask": "<|mdm_mask|>",
            "header_start": START_OF_HEADER,
            "header_end": END_OF_HEADER,
            "end_turn": END_OF_TURN,
        }
        ids = {}
        for name, token in names.items():
            found = tokenizer.token_to_id(token)
            if found is None:
                raise ValueError(f"the tokenizer lacks the special token {token}")
            ids[name] = found
        return cls(**ids)

    @property
    def all(self) -> frozenset[int]:
        """Every id that may not come from text."""
        return frozenset(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation ready to be collated; ids, labels and flags are equally long."""

    where: str
    ids: tuple[int, ...]
    """`IMAGE_ID` once where the picture goes."""
    labels: tuple[int, ...]
    """`IGNORE` where nothing is trained."""
    revise: tuple[bool, ...]
    """The wrong segments of a pair sample, whose labels are the corrections."""
    prompt_length: int
    """Ids before the first answer, the picture counted as one."""
    problems: tuple[Problem, ...] = ()
    """Pairs that were left out."""
    others: tuple[int, ...] = ()
    """Beside each id that of a weaker model's draft, negative where there is none; empty without a
    draft."""

    @property
    def is_pair(self) -> bool:
        return any(self.revise)


@dataclass(slots=True)
class Rows:
    """A sample while it grows."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    revise: list[bool] = field(default_factory=list)

    def add_prompt(self, ids: Sequence[int]) -> None:
        """Append ids that are not trained."""
        self.add(ids, [IGNORE] * len(ids))

    def add(
        self, ids: Sequence[int], labels: Sequence[int], revise: Sequence[bool] | None = None
    ) -> None:
        """Append ids with as many labels, and flags if any are set."""
        self.ids.extend(ids)
        self.labels.extend(labels)
        self.revise.extend(revise or [False] * len(ids))

    def cut(self, end: int) -> None:
        """Drop everything from row `end` on."""
        del self.ids[end:], self.labels[end:], self.revise[end:]

    def sample(
        self,
        where: str,
        prompt_length: int,
        problems: Sequence[Problem] = (),
        beside: Sequence[int] = (),
    ) -> Sample:
        """The finished sample; `beside` holds a draft's tokens, as far as they go."""
        others = [*beside, *[NO_TOKEN] * (len(self.ids) - len(beside))] if beside else []
        return Sample(
            where,
            tuple(self.ids),
            tuple(self.labels),
            tuple(self.revise),
            prompt_length,
            tuple(problems),
            tuple(others[: len(self.ids)]),
        )
