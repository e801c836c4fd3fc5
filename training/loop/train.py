"""The training loop, on accelerate: one objective, batches by step number, exact resume.

A run's folder holds `state/` (see `training.loop.state`), `log.jsonl` and TensorBoard events.
Everything a step draws follows from its number, so a killed run continues to the same weights.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from tqdm import tqdm

from training.loop.metrics import Log
from training.loop.prefetch import ahead
from training.loop.state import RunState, TrainingError, gathered, local, swapped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

Schedule = Literal["cosine", "linear_tail"]


class Batch(Protocol):
    """What an objective is given."""

    def weight(self) -> float:
        """The sum of its loss weights: what the loss is divided by, over all processes."""
        ...

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        ...


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how a run trains. Steps are optimiser steps."""

    steps: int
    warmup: int = 40
    schedule: Schedule = "linear_tail"
    tail: float = 0.5
    """Share of the steps over which `linear_tail` falls to zero; before that it is constant."""
    clip: float = 1.0
    ema: float = 0.997
    """Of the running average of the weights; 0 keeps none, for want of memory."""
    parts: int = 1
    """Batches that make up a step, over all processes: each takes parts / processes of them."""
    precision: Literal["no", "bf16"] = "bf16"
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 1000
    prefetch: int = 0
    """Batches made ahead in a thread."""
    progress: bool = True


def learning_rate_factor(step: int, settings: LoopSettings) -> float:
    """What the base rates are multiplied by at a step, from 0 to 1."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    left = max(0, settings.steps - step) / settings.steps
    if settings.schedule == "cosine":
        done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return min(1.0, left / settings.tail)


def train(
    objective: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Callable[[int, int], Batch],
    settings: LoopSettings,
    folder: Path,
    *,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
) -> dict[str, Tensor]:
    """Train until `settings.steps` and return the running average of the trained weights.

    `batch(step, part)` makes part number `part` of the `settings.parts` of a step.
    `objective(batch)` returns the weighted sum of the loss and a dictionary of (sum, weight) by
    part for the log, with the same names every time. `evaluate(step)` runs on every process with
    averaged weights in place; the main one's figures are logged. Weights that are sharded come
    back whole on the main process, and not at all on the others.

    Raises:
        TrainingError: the gradient is not finite, the saved state does not fit the model, or the
            parts cannot be shared by the processes.
    """
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=not torch.cuda.is_available(),
        fsdp_plugin=_sharding(settings.precision),
    )
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if settings.parts % ranks:
        raise TrainingError(f"{ranks} processes cannot share a step of {settings.parts} parts")
    prepared, *optimizers = accelerator.prepare(objective, *optimizers)
    inner = accelerator.unwrap_model(prepared)
    trained = {name: value for name, value in inner.named_parameters() if value.requires_grad}
    average: dict[str, Tensor] = dict(trained)
    if settings.ema:
        average = {name: value.detach().clone() for name, value in trained.items()}
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    state = RunState(folder, trained, average, optimizers, accelerator.state)
    start = state.restore()
    log = Log(folder, accelerator, start)
    bar = tqdm(
        total=settings.steps,
        initial=start,
        disable=not (settings.progress and accelerator.is_main_process),
        dynamic_ncols=True,
    )

    def judge(done: int) -> None:
        if evaluate and (done % settings.evaluate_every == 0 or done == settings.steps):
            with swapped(trained, average):
                log.write(done, dict(evaluate(done)))
            accelerator.wait_for_everyone()

    if start and not log.judged(start):
        judge(start)  # killed between saving and evaluating
    own = range(rank, settings.parts, ranks)
    jobs = ((step, part) for step in range(start, settings.steps) for part in own)
    made = ahead(lambda job: batch(*job), jobs, settings.prefetch)
    for step in range(start, settings.steps):
        factor = learning_rate_factor(step, settings)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        batches = [next(made) for _ in own]
        weight = torch.tensor(sum(part.weight() for part in batches), dtype=torch.float64)
        total_weight = accelerator.reduce(weight.to(accelerator.device), reduction="sum").item()
        for number, part in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(prepared):
                loss, parts = prepared(part.to(accelerator.device))
                # Gradients are averaged over the processes, the loss is a sum over them.
                accelerator.backward(loss * (ranks / total_weight))
            log.add({"loss": (loss.detach() / total_weight, 1 / settings.parts), **parts})
        norm = accelerator.clip_grad_norm_(list(trained.values()), settings.clip)
        if not math.isfinite(float(norm)):
            raise TrainingError(f"the gradient is not finite at step {step}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if settings.ema:
            _move(average, trained, 1 - min(settings.ema, (step + 1) / (step + 10)))
        bar.update()
        done = step + 1
        if done % settings.log_every == 0:
            row = log.write(done, {"rate": factor, "norm": float(norm)})
            bar.set_postfix({key: f"{row[key]:.3f}" for key in row if key.startswith("loss")})
        if done % settings.save_every == 0 or done == settings.steps:
            state.save(done)
        judge(done)
    bar.close()
    log.close()
    return gathered(average, keep=accelerator.is_main_process)


def _sharding(precision: Literal["no", "bf16"]) -> FullyShardedDataParallelPlugin | None:
    """With FSDP, gradients are summed in float32 and losses stay in it; the rest is as launched.

    accelerate's own policy would round both to bfloat16.
    """
    if precision == "no" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(mixed_precision_policy=policy)


def _move(average: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> None:
    """Move the average by a share of the way to the weights."""
    with torch.no_grad():
        torch._foreach_lerp_(
            [local(value) for value in average.values()],
            [local(value) for value in trained.values()],
            share,
        )
