"""The saved state of a run, `state/`: weights, their running average, moments and step number.

All tensors are safetensors. Weights that are whole on every process are written by the main one;
of weights that are sharded over processes (FSDP) each writes its share, and only as many processes
can read them again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message names the step or the file."""


def processes() -> PartialState:
    """The processes and devices that the launcher's environment describes, or this one alone."""
    return PartialState(cpu=not torch.cuda.is_available())


def wait_for(path: Path) -> None:
    """Return when another process has written `path`.

    For what takes hours: a barrier of torch.distributed gives up after minutes.
    """
    while not path.exists():
        time.sleep(1.0)


@dataclass(frozen=True, slots=True)
class RunState:
    """What changes while a run trains, and where it is kept."""

    folder: Path
    trained: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    """The very tensors of `trained` in a run without an average."""
    optimizers: Sequence[Optimizer]
    processes: PartialState

    @property
    def sharded(self) -> bool:
        return any(isinstance(value, DTensor) for value in self.trained.values())

    @property
    def averaged(self) -> bool:
        return any(self.average[name] is not value for name, value in self.trained.items())

    def save(self, step: int) -> None:
        """Write `state/` whole: a reader sees the old one or the new one. All processes call."""
        fresh, old, state = (self.folder / f"state{end}" for end in (".new", ".old", ""))
        if self.processes.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        self.processes.wait_for_everyone()
        if self.sharded or self.processes.is_main_process:
            save_file(_parts(self.trained), fresh / self._file("weights"))
            if self.averaged:
                save_file(_parts(self.average), fresh / self._file("average"))
            save_file(_moments(self.optimizers), fresh / self._file("optimizers"))
        self.processes.wait_for_everyone()
        if self.processes.is_main_process:
            noted = {"step": step, "shards": self.processes.num_processes if self.sharded else 1}
            (fresh / "step.json").write_text(json.dumps(noted), encoding="utf-8")
            shutil.rmtree(old, ignore_errors=True)
            if state.exists():
                state.rename(old)
            fresh.rename(state)
            shutil.rmtree(old, ignore_errors=True)

    def restore(self) -> int:
        """Load `state/` in place if there is one; returns the number of steps done.

        Raises:
            TrainingError: it is of other weights, of another number of processes, has no average
                where one is wanted, or a file of it is damaged.
        """
        state = self.folder / "state"
        if self.processes.is_main_process:
            old = self.folder / "state.old"
            if not state.exists() and old.exists():
                old.rename(state)  # killed between the two renames of save
        self.processes.wait_for_everyone()
        if not state.exists():
            return 0
        noted = _noted(state / "step.json")
        shards = self.processes.num_processes if self.sharded else 1
        if noted.get("shards", 1) != shards:
            raise TrainingError(
                f"{state} was saved in {noted.get('shards', 1)} shards, this run has {shards}"
            )
        weights = _loaded(state / self._file("weights"))
        if weights.keys() != self.trained.keys():
            differing = sorted(weights.keys() ^ self.trained.keys())
            raise TrainingError(
                f"{state} does not fit the model: {differing[0]} is on one side only"
            )
        copy_into(self.trained, weights)
        if self.averaged:
            if not (state / self._file("average")).exists():
                raise TrainingError(f"{state} holds no average: the run was begun with ema 0")
            copy_into(self.average, _loaded(state / self._file("average")))
        _restore_moments(self.optimizers, _loaded(state / self._file("optimizers")))
        step: int = noted["step"]
        if self.processes.is_main_process:
            logger.info("resuming %s at step %d", self.folder, step)
        return step

    def _file(self, name: str) -> str:
        share = ""
        if self.sharded:
            share = f"-{self.processes.process_index}-of-{self.processes.num_processes}"
        return f"{name}{share}.safetensors"


def _noted(path: Path) -> dict[str, int]:
    try:
        noted: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return {**noted, "step": int(noted["step"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from None


def _loaded(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{path} is damaged ({error}); without {path.parent} the run begins anew")


def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy values in place by name; of sharded tensors the share of this process."""
    with torch.no_grad():
        for name, target in targets.items():
            local(target).copy_(local(sources[name]))


def take_over(module: nn.Module, average: Mapping[str, Tensor]) -> None:
    """Put what a run gave, weights by name, in their places in a module."""
    named = dict(module.named_parameters())
    copy_into({name: named[name] for name in average}, average)


def local(value: Tensor) -> Tensor:
    """The share of this process in a sharded tensor; other tensors as they are."""
    if isinstance(value, DTensor):
        share: Tensor = value.to_local()
        return share
    return value.detach()


def gathered(values: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Sharded tensors put together on the CPU where `keep` says so, left out elsewhere.

    Whole ones stay as they are. All processes call.
    """
    found = {}
    for name, value in values.items():
        if not isinstance(value, DTensor):
            found[name] = value
            continue
        whole = value.full_tensor()
        if keep:
            found[name] = whole.cpu()
    return found


@contextmanager
def swapped(trained: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Iterator[None]:
    """The averaged weights in the model's place, for an evaluation."""
    kept = {name: local(value).clone() for name, value in trained.items()}
    copy_into(trained, average)
    try:
        yield
    finally:
        copy_into(trained, kept)


def _parts(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: local(value).contiguous() for name, value in values.items()}


def _moments(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    return {
        f"{number}.{index}.{name}": local(torch.as_tensor(value)).contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_moments(optimizers: Sequence[Optimizer], moments: Mapping[str, Tensor]) -> None:
    for number, optimizer in enumerate(optimizers):
        values = optimizer.state_dict()
        owners = [value for group in optimizer.param_groups for value in group["params"]]
        for key, value in moments.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == number:
                values["state"].setdefault(int(index), {})[name] = _like(owners[int(index)], value)
        optimizer.load_state_dict(values)


def _like(owner: Tensor, share: Tensor) -> Tensor:
    """A moment as its weight is: sharded, if that is."""
    if not isinstance(owner, DTensor) or not share.ndim:
        return share
    whole: Tensor = DTensor.from_local(
        share.to(owner.to_local().device),
        owner.device_mesh,
        owner.placements,
        shape=owner.shape,
        stride=owner.stride(),
    )
    return whole
