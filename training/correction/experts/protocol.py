"""What every expert does, and how it may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from training.correction.records import Draft, Verdict


class Expert(Protocol):
    """Judges drafts; called from as many threads at a time as `concurrency` says."""

    @property
    def concurrency(self) -> int: ...

    def judge(self, draft: Draft) -> Verdict:
        """The draft's corrections.

        Raises:
            Unanswered: nothing came back for this draft; asking again later may help.
            ExpertError: no draft will get an answer.
        """
        ...

    def usage(self) -> dict[str, float]:
        """What the verdicts have taken so far, for the record; empty if nothing worth telling."""
        ...


class ExpertError(RuntimeError):
    """An expert that cannot be used, such as one that refuses the key."""


class Unanswered(RuntimeError):
    """No answer for one draft after all attempts."""
