"""The training loop, on accelerate: one objective, batches by step number, exact resume.

A run's folder holds `state/` (weights, their running average and optimiser moments as
safetensors, the step number as JSON), `log.jsonl` and TensorBoard events. Everything a step draws
follows from its number, so a killed run continues to the same weights.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

Schedule = Literal["cosine", "linear_tail"]


class Batch(Protocol):
    """What an objective is given."""

    def weight(self) -> float:
        """The sum of its loss weights: what the loss is divided by, over all processes."""
        ...


class TrainingError(RuntimeError):
    """A run that cannot go on; the message names the step or the file."""


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
    accumulate: int = 1
    precision: Literal["no", "bf16"] = "bf16"
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 1000
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

    `batch(step, part)` makes part number `part` of a step, of accumulate x processes parts.
    `objective(batch)` returns the weighted sum of the loss and a dictionary of (sum, weight) by
    part for the log. `evaluate(step)` runs on the main process with averaged weights in place.

    Raises:
        TrainingError: the loss is not finite, or the saved state does not fit the model.
    """
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=not torch.cuda.is_available())
    prepared = accelerator.prepare(objective)
    inner = accelerator.unwrap_model(prepared)
    trained = {name: value for name, value in inner.named_parameters() if value.requires_grad}
    average = {name: value.detach().clone() for name, value in trained.items()}
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start = restore(folder, trained, average, optimizers)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    log = Log(folder, enabled=accelerator.is_main_process)
    bar = tqdm(
        total=settings.steps,
        initial=start,
        disable=not (settings.progress and accelerator.is_main_process),
        dynamic_ncols=True,
    )
    for step in range(start, settings.steps):
        factor = learning_rate_factor(step, settings)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        batches = [batch(step, i * ranks + rank) for i in range(settings.accumulate)]
        weight = torch.tensor(sum(part.weight() for part in batches), dtype=torch.float64)
        total_weight = accelerator.reduce(weight.to(accelerator.device), reduction="sum").item()
        for number, part in enumerate(batches):
            last = number == settings.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(prepared):
                loss, parts = prepared(part)
                # DDP averages gradients over the processes, the loss is a sum over them.
                accelerator.backward(loss * (ranks / total_weight))
            log.add("loss", loss.item() * ranks / total_weight)
            log.add_parts(parts)
        norm = accelerator.clip_grad_norm_(list(trained.values()), settings.clip)
        if not math.isfinite(float(norm)):
            raise TrainingError(f"the gradient is not finite at step {step}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(average.values()),
                [value.detach() for value in trained.values()],
                1 - min(settings.ema, (step + 1) / (step + 10)),
            )
        bar.update()
        done = step + 1
        if done % settings.log_every == 0:
            row = log.write(done, {"rate": factor, "norm": float(norm)})
            bar.set_postfix({key: f"{row[key]:.3f}" for key in row if key.startswith("loss")})
        if accelerator.is_main_process and (
            done % settings.save_every == 0 or done == settings.steps
        ):
            save(folder, done, trained, average, optimizers)
        if evaluate and (done % settings.evaluate_every == 0 or done == settings.steps):
            if accelerator.is_main_process:
                with swapped(trained, average):
                    log.write(done, dict(evaluate(done)))
            accelerator.wait_for_everyone()
    bar.close()
    log.close()
    return average


class Log:
    """Means since the last line, to `log.jsonl` and TensorBoard."""

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self.sums: dict[str, list[float]] = {}
        self.started = time.monotonic()
        self.path = folder / "log.jsonl" if enabled else None
        self.board: Any = None
        if enabled:
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            self.board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        pair = self.sums.setdefault(name, [0.0, 0.0])
        pair[0] += value
        pair[1] += weight

    def add_parts(self, parts: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Per part the summed loss and the number of tokens, as scalars on any device."""
        for name, (total, count) in parts.items():
            self.add(name, total.item(), count.item())

    def write(self, step: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Write and return one line of means; parts that had no token are left out."""
        row = {name: total / count for name, (total, count) in self.sums.items() if count}
        row |= {**extra, "step": step, "seconds": time.monotonic() - self.started}
        self.sums.clear()
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: round(value, 5) for key, value in row.items()}) + "\n")
            for key, value in row.items():
                self.board.add_scalar(key, value, step)
        return row

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


@contextmanager
def swapped(trained: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Iterator[None]:
    """The averaged weights in the model's place, for an evaluation."""
    kept = {name: value.detach().clone() for name, value in trained.items()}
    _copy_into(trained, average)
    try:
        yield
    finally:
        _copy_into(trained, kept)


def save(
    folder: Path,
    step: int,
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Write `state/` whole: a reader sees the old one or the new one."""
    fresh, old, state = folder / "state.new", folder / "state.old", folder / "state"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(
        {name: value.detach().contiguous() for name, value in trained.items()},
        fresh / "weights.safetensors",
    )
    save_file(dict(average), fresh / "average.safetensors")
    save_file(_moments(optimizers), fresh / "optimizers.safetensors")
    (fresh / "step.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if state.exists():
        state.rename(old)
    fresh.rename(state)
    shutil.rmtree(old, ignore_errors=True)


def restore(
    folder: Path,
    trained: Mapping[str, Tensor],
    average: dict[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    """Load `state/` in place if there is one; returns the number of steps done."""
    state = folder / "state"
    if not state.exists() and (folder / "state.old").exists():
        (folder / "state.old").rename(state)  # killed between the two renames of save
    if not state.exists():
        return 0
    weights = load_file(state / "weights.safetensors")
    if weights.keys() != trained.keys():
        differing = sorted(weights.keys() ^ trained.keys())
        raise TrainingError(f"{state} does not fit the model: {differing[0]} is on one side only")
    _copy_into(trained, weights)
    _copy_into(average, load_file(state / "average.safetensors"))
    moments = load_file(state / "optimizers.safetensors")
    for number, optimizer in enumerate(optimizers):
        values = optimizer.state_dict()
        for key, value in moments.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == number:
                values["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(values)
    step: int = json.loads((state / "step.json").read_text(encoding="utf-8"))["step"]
    logger.info("resuming %s at step %d", folder, step)
    return step


def _moments(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{number}.{index}.{name}": torch.as_tensor(value).contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(sources[name])
