"""The first step of Stage II: the model captions, at a mix of tokens a step, refining on.

Shape suffixes: P prompt rows, D hidden size.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tqdm import tqdm

from rediff_model.config import Preferences
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import generate
from training.correction.records import Appender, Draft
from training.data.conversation import IMAGE_TAG
from training.data.images import ImageError
from training.data.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from rediff_model.config import TokenIds
    from rediff_model.language import LanguageModel
    from rediff_model.model import Captioner
    from rediff_model.sampling.ledger import StepEvents
    from training.data.images import ImageStore
    from training.data.problems import Report
    from training.data.row_files import RowSource


@dataclass(frozen=True, slots=True)
class Subject:
    """A picture, by name or as a scene's split and seed, with a question and a right answer."""

    key: str
    question: str
    reference: str
    image: str | None = None
    scene: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """How drafts are sampled."""

    tokens_per_step: tuple[int, ...] = (1, 4, 8)
    """The paper drafts at 128, 32 and 16 steps for 128 tokens."""
    every: bool = False
    """A draft of each subject for every number of tokens a step, instead of for one of them."""
    canvas_length: int = 128
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16
    states: int = 0
    """How many canvases on the way to a draft to keep with it."""
    reveal_thresholds: Mapping[int, float] = field(default_factory=dict)
    """By tokens a step: besides those, what is surer than this is revealed."""
    preferences: Preferences = field(default_factory=Preferences)
    """The checkpoint's, see `ModelConfig.preferences`: a draft is what would be served."""

    def __post_init__(self) -> None:
        if not self.tokens_per_step or min(self.tokens_per_step) < 1:
            raise ValueError(f"tokens_per_step must be numbers from 1, got {self.tokens_per_step}")
        if self.every and len(set(self.tokens_per_step)) < len(self.tokens_per_step):
            raise ValueError(f"every speed of tokens_per_step {self.tokens_per_step} drafts once")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        if self.states < 0:
            raise ValueError(f"states must be 0 or more, got {self.states}")
        if unused := self.reveal_thresholds.keys() - set(self.tokens_per_step):
            raise ValueError(f"reveal_thresholds for {min(unused)} tokens a step are never used")

    def sampling(self, subject: Subject, tokens_per_step: int) -> SamplerSettings:
        """The sampler's settings of one draft; they do not depend on its batch."""
        return SamplerSettings(
            canvas_length=self.canvas_length,
            tokens_per_step=tokens_per_step,
            refine=True,
            temperature=self.temperature,
            seed=self._seed(subject, tokens_per_step),
            reveal_threshold=self.reveal_thresholds.get(tokens_per_step),
        ).preferring(self.preferences)

    def chosen(
        self, subject: Subject, tokens_per_step: int, canvases: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, ...], ...]:
        """Of the canvases that a draft went through, those to keep, in order."""
        chance = random.Random(self._seed(subject, tokens_per_step))
        kept = sorted(chance.sample(range(len(canvases)), min(self.states, len(canvases))))
        return tuple(canvases[step] for step in kept)

    def _seed(self, subject: Subject, tokens_per_step: int) -> int:
        return zlib.crc32(f"{self.seed}:{subject.key}:{tokens_per_step}".encode())

    def plan(self, subjects: Sequence[Subject]) -> list[tuple[int, int]]:
        """(tokens a step, subject number) of every draft, those of one speed together."""
        number = len(self.tokens_per_step)
        return sorted(
            (tokens, i)
            for i in range(len(subjects))
            for n, tokens in enumerate(self.tokens_per_step)
            if self.every or (i + self.seed) % number == n
        )


def write_drafts(
    model: LanguageModel,
    ids: TokenIds,
    decode: Callable[[Sequence[int]], str],
    subjects: Sequence[Subject],
    prompts: Callable[[Sequence[int]], Sequence[Tensor | None]],
    settings: DraftSettings,
    path: Path,
    *,
    progress: bool = False,
) -> int:
    """Write the drafts that `path` does not hold yet; returns how many it holds then.

    `prompts` gives prompts [P, D] of subjects by number, a batch at a time, and None for one that
    cannot be had. A draft's key is its subject's with `@` and the tokens a step.
    """
    with Appender(path) as out:
        plan = [
            (tokens, i)
            for tokens, i in settings.plan(subjects)
            if _key(subjects[i], tokens) not in out.keys
        ]
        bar = tqdm(total=len(plan), disable=not progress, dynamic_ncols=True)
        for start in range(0, len(plan), settings.batch_size):
            asked = plan[start : start + settings.batch_size]
            found = zip(asked, prompts([i for _, i in asked]), strict=True)
            ready = [(place, prompt) for place, prompt in found if prompt is not None]
            batch = [place for place, _ in ready]
            empty = (ids.mask,) * settings.canvas_length
            canvases = [[empty] for _ in batch]
            generations = generate(
                model,
                [prompt for _, prompt in ready],
                [settings.sampling(subjects[i], tokens) for tokens, i in batch],
                ids,
                on_step=partial(_keep, canvases) if settings.states else None,
            )
            for (tokens, i), generation, passed in zip(batch, generations, canvases, strict=True):
                subject = subjects[i]
                record = Draft(
                    key=_key(subject, tokens),
                    question=subject.question,
                    reference=subject.reference,
                    ids=generation.ids,
                    text=decode(generation.ids),
                    tokens_per_step=tokens,
                    image=subject.image,
                    scene=subject.scene,
                    states=settings.chosen(subject, tokens, passed),
                )
                out.add(record.to_json())
            bar.update(len(asked))
        bar.close()
        return len(out.keys)


def _keep(canvases: Sequence[list[tuple[int, ...]]], events: StepEvents) -> None:
    """Add the canvas of every request that goes on."""
    for event in events:
        if not event.done:
            canvases[event.request].append(event.canvas)


def row_subjects(rows: RowSource) -> list[Subject]:
    """Subjects of conversation rows: the first question, and its answer as the reference.

    Rows without a picture, or which begin with an answer, are left out.
    """
    subjects = []
    for row in (rows.row(index) for index in range(len(rows))):
        if row.image is not None and [turn.role for turn in row.turns[:2]] == ["user", "assistant"]:
            question = row.turns[0].text.replace(IMAGE_TAG, "").strip()
            subjects.append(Subject(row.where, question, row.turns[1].text, image=row.image))
    return subjects


def picture_prompts(
    captioner: Captioner, subjects: Sequence[Subject], images: ImageStore, report: Report
) -> Callable[[Sequence[int]], list[Tensor | None]]:
    """Prompts of subjects with pictures, for `write_drafts`; broken pictures go to `report`."""

    def prompts(numbers: Sequence[int]) -> list[Tensor | None]:
        opened: dict[int, Image.Image] = {}
        for number in numbers:
            try:
                opened[number] = images.open(subjects[number].image or "")
            except ImageError as error:
                report.add(Problem("image", subjects[number].key, str(error)))
        features = dict(zip(opened, captioner.image_features(list(opened.values())), strict=True))
        return [
            captioner.prompt(features[number], subjects[number].question)
            if number in features
            else None
            for number in numbers
        ]

    return prompts


def _key(subject: Subject, tokens_per_step: int) -> str:
    return f"{subject.key}@{tokens_per_step}"
