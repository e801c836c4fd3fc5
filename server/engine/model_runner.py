"""The computing side of the engine: the captioner and the batched sampler behind `Runner`."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image

from kernels.ops import backend
from rediff_model.chat_template import DEFAULT_QUESTION, conversation
from rediff_model.model import Captioner
from rediff_model.runtime import thread_pool
from rediff_model.runtime.cuda_graphs import replays
from rediff_model.runtime.varlen import runs_packed
from rediff_model.sampling import sampler
from rediff_model.sampling.params import SamplerSettings
from rediff_model.vision.tiling import layout
from server.engine.feature_cache import FeatureCache, content_key
from server.engine.memory import free_bytes, row_bytes
from server.engine.request import Job, ModelInfo, Outcome, OutOfMemory, Prepared

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from torch import Tensor

    from rediff_model.chat_template import Question
    from rediff_model.language import LanguageModel
    from rediff_model.sampling.ledger import StepEvents
    from rediff_model.sampling.outputs import StepEvent
    from server.engine.config import EngineConfig

logger = logging.getLogger(__name__)

USUAL_PICTURE = (1024, 768)
"""Width and height that a request of the usual size is counted with."""

_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
    # A library that finds no memory for itself, and Triton.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "Triton Error [CUDA]: out of memory",
)
"""What torch says in errors of no class of their own."""

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
    device = choose_device(config.device)
    return Captioner.load(
        config.model,
        revision=config.revision,
        device=device,
        dtype=resolve_dtype(config.dtype, device),
    )


class SamplerRunner:
    """A captioner whose jobs step through `rediff_model.sampling.sampler`."""

    def __init__(self, captioner: Captioner, config: EngineConfig) -> None:
        self._captioner = captioner
        self._interval = config.prefix_refresh_interval
        self._cuda_graphs = config.cuda_graphs
        self._compile = config.compile
        self._features = FeatureCache(config.vision_cache_bytes)
        model = captioner.model
        shape = captioner.config
        dtype = model.newline_D.dtype
        turns = conversation([DEFAULT_QUESTION])
        words = sum(len(part) for part in captioner.codec.encode_prompt(turns))
        picture = layout(USUAL_PICTURE, shape).tokens
        on_cpu = model.device.type == "cpu"
        packed = runs_packed(model.device, dtype, shape.language.head_dim)
        self.info = ModelInfo(
            canvas_length=shape.canvas_length,
            mask_token_id=shape.mask_token_id,
            stop_token_id=shape.stop_token_id,
            parameters=sum(weight.numel() for weight in model.parameters()),
            device=str(model.device),
            dtype=str(dtype).removeprefix("torch."),
            row_bytes=row_bytes(shape.language, dtype),
            preferences=shape.preferences,
            taught_prompts=shape.taught_prompts,
            single_question=shape.single_question,
            domain=shape.domain,
            spaced=bool(captioner.codec.spaced),
            request_rows=words + picture + shape.canvas_length,
            free_bytes=free_bytes(model.device),
            kernels=backend(),
            attention="packed" if packed else "sequential" if on_cpu else "buckets",
            compiled=config.compile,
            cuda_graphs=config.cuda_graphs and replays(model.device),
        )
        logger.info(
            "kernels: %s, attention: %s, layers: %s",
            self.info.kernels,
            self.info.attention,
            "compiled" if config.compile else "as they are",
        )
        if config.cuda_graphs and not self.info.cuda_graphs:
            logger.warning("cuda_graphs has no effect on %s", model.device)
        if on_cpu:
            # Now, and not beside threads that touch torch for the first time.
            thread_pool.prepare()

    @classmethod
    def load(cls, config: EngineConfig) -> SamplerRunner:
        """Load the configured checkpoint to its device.

        Raises:
            ValueError: the checkpoint or the device cannot be used; the message says why.
        """
        return cls(load_captioner(config), config)

    def prepare(self, image: Image.Image, question: Question | None) -> Prepared:
        """The embedded prompt of a picture and a question."""
        features_LD, cached = self._features.get_or_make(
            content_key(image), lambda: self._captioner.image_features([image])[0]
        )
        prompt_PD = self._captioner.prompt(features_LD, question or DEFAULT_QUESTION)
        return Prepared(prompt_PD, len(features_LD), len(prompt_PD), cached=cached)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text; special tokens spelt out in it are ordinary text."""
        return tuple(self._captioner.encode(text))

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of ids, special tokens left out."""
        return self._captioner.decode(ids)

    def open(self) -> SamplerBatch:
        """An empty batch."""
        model = self._captioner.model
        state = sampler.open_state(
            model,
            self._captioner.token_ids,
            prompt_refresh_interval=self._interval,
            cuda_graphs=self._cuda_graphs,
            compiled=self._compile,
        )
        return SamplerBatch(model, state, self._interval)

    def warm_up(self, batch: int) -> None:
        """One step alone and one in a full batch, which settles buffers and thread pools."""
        features_LD = self._captioner.image_features([Image.new("RGB", (64, 64), "grey")])[0]
        prompt_PD = self._captioner.prompt(features_LD)
        prompt = Prepared(prompt_PD, len(features_LD), len(prompt_PD))
        settings = SamplerSettings(canvas_length=self.info.canvas_length, steps=1)
        for count in {1, batch}:
            opened = self.open()
            opened.join({number: Job(prompt, settings, lambda _: None) for number in range(count)})
            opened.step()


class SamplerBatch:
    """Jobs that share steps, known by the caller's numbers."""

    def __init__(self, model: LanguageModel, state: sampler.State, interval: int | None) -> None:
        """`state` without requests; `interval` is the one that it was opened with."""
        self._model = model
        self._state = state
        self._interval = interval if model.model.config.prefix_attention == "full" else None
        self._watched: set[int] = set()

    def join(self, jobs: Mapping[int, Job]) -> None:
        """Take in jobs, computing their prompts.

        Raises:
            SettingsError: one of them does not fit the model.
            OutOfMemory: there is no room for them.
        """
        with memory_named():
            self._state = sampler.join(
                self._model,
                self._state,
                list(jobs),
                [cast("Tensor", job.prompt.rows) for job in jobs.values()],
                [job.settings for job in jobs.values()],
            )
        self._watched |= {number for number, job in jobs.items() if job.wants_steps}

    def step(self) -> Outcome:
        """One forward pass for all that are left.

        Raises:
            OutOfMemory: it does not fit.
        """
        if self._state.slots is None:
            # Drafts that needed no step are done before the first.
            self._state, captions = self._state.taken()
            self._watched -= captions.keys()
            return Outcome(captions=captions)
        canvas_rows = sum(self._state.slots.context.seen)
        with memory_named():
            state, changes = sampler.step(self._model, self._state)
        self._state, captions = state.taken()
        report, before_BC = changes.report, changes.before.ids_BC
        changed_BC = report.ids_BC != before_BC
        masked_BC = before_BC == changes.before.mask_id
        broken = frozenset(changes.broken)
        steps: tuple[tuple[int, StepEvent], ...] = ()
        if self._watched.intersection(changes.requests):
            wanted = self._watched - broken
            steps = tuple((one.request, one) for one in changes if one.request in wanted)
        self._watched -= captions.keys()
        return Outcome(
            steps=steps,
            captions=captions,
            broken=broken,
            refreshed=self._refreshed(changes),
            canvas_rows=canvas_rows,
            revealed=int((changed_BC & masked_BC).sum()),
            revised=int((changed_BC & ~masked_BC).sum()),
        )

    def drop(self, numbers: Collection[int]) -> None:
        """Give up jobs; they take no part in later steps."""
        if numbers:
            self._state = self._state.without(frozenset(numbers))
            self._watched.difference_update(numbers)

    def _refreshed(self, changes: StepEvents) -> frozenset[int]:
        """Requests whose prompt ran in this step, but for those that joined with it."""
        if self._interval is None:
            return frozenset()
        before_B = changes.report.forwards_B - 1
        due_B = (before_B > 0) & (before_B % self._interval == 0)
        return frozenset(changes.requests[slot] for slot in np.flatnonzero(due_B).tolist())


@contextmanager
def memory_named() -> Iterator[None]:
    """Turn the device's and the processor's lack of memory into OutOfMemory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        # torch has no class of its own for the processor's, nor for that of the GPU's libraries.
        if not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        raise OutOfMemory(str(error)) from error


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} is not available here")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The configured dtype; `auto` is what the device computes fast."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        # Older GPUs have no units for bfloat16.
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    return _DTYPES[name]
