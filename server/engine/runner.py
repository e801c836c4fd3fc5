"""The computing side of the engine: the captioner and the batched sampler behind `Runner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from PIL import Image

from rediff_model import sampler
from rediff_model.model import Captioner
from rediff_model.prompt import DEFAULT_QUESTION
from rediff_model.settings import SamplerSettings
from server.engine.request import Job, ModelInfo, Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.generation import Generation, StepEvent
    from server.engine.config import EngineConfig

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_captioner(config: EngineConfig) -> Captioner:
    """The configured checkpoint on its device.

    Raises:
        ValueError: the checkpoint or the device cannot be used; the message says why.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    return Captioner.load(
        config.model,
        revision=config.revision,
        device=device,
        dtype=_dtype(config.dtype, device),
    )


class SamplerRunner:
    """A captioner whose jobs step through `rediff_model.sampler`."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner
        weights = list(captioner.model.parameters())
        self.info = ModelInfo(
            canvas_length=captioner.config.canvas_length,
            mask_token_id=captioner.config.mask_token_id,
            stop_token_id=captioner.config.stop_token_id,
            parameters=sum(weight.numel() for weight in weights),
            device=str(captioner.model.device),
            dtype=str(captioner.model.newline_D.dtype).removeprefix("torch."),
        )

    @classmethod
    def load(cls, config: EngineConfig) -> SamplerRunner:
        """Load the configured checkpoint to its device.

        Raises:
            ValueError: the checkpoint or the device cannot be used; the message says why.
        """
        return cls(load_captioner(config))

    def prepare(self, image: Image.Image, question: str | None) -> Prepared:
        """The embedded prompt of a picture and a question."""
        features_LD = self._captioner.image_features([image])[0]
        prompt_PD = self._captioner.prompt(features_LD, question or DEFAULT_QUESTION)
        return Prepared(prompt_PD, image_tokens=len(features_LD), prompt_tokens=len(prompt_PD))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text; special tokens spelt out in it are ordinary text."""
        return tuple(self._captioner.encode(text))

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of ids, special tokens left out."""
        return self._captioner.decode(ids)

    def start(self, jobs: list[Job]) -> SamplerBatch:
        """Lay out a batch. Raises SettingsError when a job does not fit the model."""
        return SamplerBatch(self._captioner, jobs)

    def warm_up(self, batch: int) -> None:
        """One step alone and one in a full batch, which settles buffers and thread pools."""
        prompt = self.prepare(Image.new("RGB", (64, 64), "grey"), None)
        settings = SamplerSettings(canvas_length=self.info.canvas_length, steps=1)
        for count in {1, batch}:
            self.start([Job(prompt, settings, lambda event: None)] * count).step()


class SamplerBatch:
    """Jobs that share steps, known by their index."""

    def __init__(self, captioner: Captioner, jobs: list[Job]) -> None:
        self._model = captioner.model
        self._watched = {index for index, job in enumerate(jobs) if job.wants_steps}
        self._state = sampler.start(
            self._model,
            [cast("Tensor", job.prompt.rows) for job in jobs],
            [job.settings for job in jobs],
            captioner.token_ids,
        )
        self._told: set[int] = set()

    def step(self) -> list[tuple[int, StepEvent | Generation]]:
        """One forward pass for all that are left; captions that are done come last."""
        events: list[tuple[int, StepEvent | Generation]] = []
        if self._state.slots is not None:
            self._state, changes = sampler.step(self._model, self._state)
            if self._watched.intersection(changes.requests):
                events += [(one.request, one) for one in changes if one.request in self._watched]
        finished = self._state.finished
        events += [(index, finished[index]) for index in finished.keys() - self._told]
        self._told.update(finished)
        return events

    def drop(self, indices: set[int]) -> None:
        """Give up jobs; they take no part in later steps."""
        self._state = self._state.without(frozenset(indices))
        self._watched -= indices


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} is not available here")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]
