"""The training loop: a killed run continues to the same weights, and bad values stop it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import Tensor, nn

from training.loop.prefetch import ahead
from training.loop.state import TrainingError
from training.loop.train import LoopSettings, learning_rate_factor, train


@dataclass(frozen=True)
class Points:
    inputs: Tensor
    targets: Tensor

    def weight(self) -> float:
        return float(len(self.inputs))

    def to(self, device: torch.device) -> "Points":
        return Points(self.inputs.to(device), self.targets.to(device))


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, batch: Points) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        error = (self.layer(batch.inputs) - batch.targets).square().sum()
        return error, {"loss_square": (error.detach(), torch.tensor(len(batch.inputs)))}


def points(step: int, part: int) -> Points:
    generator = torch.Generator().manual_seed(1000 * step + part)
    inputs = torch.randn(8, 4, generator=generator)
    return Points(inputs, inputs.flip(1))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [value for value in model.parameters() if value.ndim == 2]
    others = [value for value in model.parameters() if value.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-2)]


def quiet(steps: int, parts: int = 1) -> LoopSettings:
    return LoopSettings(
        steps=steps,
        log_every=5,
        save_every=5,
        warmup=2,
        parts=parts,
        precision="no",
        progress=False,
    )


class Killed(Exception):
    pass


def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole = Regression()
    expected = train(whole, optimizers(whole), points, quiet(20), tmp_path / "whole")

    def until_13(step: int, part: int) -> Points:
        if step == 13:
            raise Killed
        return points(step, part)

    first, second = Regression(), Regression()
    with pytest.raises(Killed):
        train(first, optimizers(first), until_13, quiet(20), tmp_path / "killed")
    nn.init.constant_(second.layer.weight, 7.0)
    found = train(second, optimizers(second), points, quiet(20), tmp_path / "killed")

    assert torch.equal(second.layer.weight, whole.layer.weight)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_that_goes_on_tells_every_step_once(tmp_path: Path) -> None:
    def until_19(step: int, part: int) -> Points:
        if step == 19:
            raise Killed
        return points(step, part)

    settings = replace(quiet(20), save_every=10)
    whole, killed = Regression(), Regression()
    train(whole, optimizers(whole), points, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train(killed, optimizers(killed), until_19, settings, tmp_path / "killed")
    log = tmp_path / "killed" / "log.jsonl"
    log.write_text(log.read_text() + '{"loss": 0.3, "st')
    train(killed, optimizers(killed), points, settings, tmp_path / "killed")

    def curve(folder: str) -> list[tuple[float, float]]:
        lines = (tmp_path / folder / "log.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, lines)]

    assert curve("killed") == curve("whole")
    assert [step for step, _ in curve("whole")] == [5, 10, 15, 20]
    board = EventAccumulator(str(tmp_path / "killed" / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [5, 10, 15, 20]


def test_a_run_killed_while_it_evaluates_evaluates_when_it_goes_on(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def once_killed(step: int) -> dict[str, float]:
        evaluated.append(step)
        if evaluated.count(10) == 1 and step == 10:
            raise Killed
        return {"score": step / 10}

    settings = replace(quiet(20), evaluate_every=5)
    model = Regression()
    with pytest.raises(Killed):
        train(model, optimizers(model), points, settings, tmp_path, evaluate=once_killed)
    train(model, optimizers(model), points, settings, tmp_path, evaluate=once_killed)
    train(model, optimizers(model), points, settings, tmp_path, evaluate=once_killed)
    assert evaluated == [5, 10, 10, 15, 20]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows if "score" in row] == [0.5, 1.0, 1.5, 2.0]


def test_the_loss_falls_and_is_logged(tmp_path: Path) -> None:
    model = Regression()
    train(model, optimizers(model), points, quiet(60), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 60
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss_square"], rel=1e-4)


def test_accumulated_parts_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    def both(step: int, part: int) -> Points:
        parts = [points(step, 0), points(step, 1)]
        return Points(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))

    one, two = Regression(), Regression()
    train(one, optimizers(one), both, quiet(6), tmp_path / "one")
    train(two, optimizers(two), points, quiet(6, parts=2), tmp_path / "two")
    assert torch.allclose(one.layer.weight, two.layer.weight, atol=1e-6)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def broken(step: int, part: int) -> Points:
        batch = points(step, part)
        return Points(batch.inputs * (torch.inf if step == 3 else 1), batch.targets)

    model = Regression()
    with pytest.raises(TrainingError, match="step 3"):
        train(model, optimizers(model), broken, quiet(5), tmp_path)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model = Regression()
    train(model, optimizers(model), points, quiet(5), tmp_path)

    class Other(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(1))

    other = Other()
    with pytest.raises(TrainingError, match="extra is on one side only"):
        train(other, optimizers(other), points, quiet(10), tmp_path)


def test_a_state_that_lacks_what_the_run_needs_is_refused(tmp_path: Path) -> None:
    model = Regression()
    train(model, optimizers(model), points, replace(quiet(5), ema=0), tmp_path)
    assert not (tmp_path / "state" / "average.safetensors").exists()
    with pytest.raises(TrainingError, match="holds no average"):
        train(model, optimizers(model), points, quiet(10), tmp_path)
    (tmp_path / "state" / "step.json").write_text('{"step": 5, "shards": 2}')
    with pytest.raises(TrainingError, match="saved in 2 shards, this run has 1"):
        train(model, optimizers(model), points, quiet(10), tmp_path)


@pytest.mark.parametrize("name", ["step.json", "weights.safetensors", "optimizers.safetensors"])
@pytest.mark.parametrize("content", [b"", b"null"])
def test_a_damaged_state_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    model = Regression()
    train(model, optimizers(model), points, quiet(5), tmp_path)
    damaged = tmp_path / "state" / name
    damaged.write_bytes(content)
    with pytest.raises(TrainingError, match=f"{damaged} is damaged"):
        train(model, optimizers(model), points, quiet(10), tmp_path)


def test_without_an_average_the_weights_themselves_come_back(tmp_path: Path) -> None:
    model = Regression()
    found = train(model, optimizers(model), points, replace(quiet(5), ema=0), tmp_path)
    assert torch.equal(found["layer.weight"], model.layer.weight)


def test_batches_are_made_ahead_in_order() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        if number == 4:
            raise Killed
        made.append(number)
        return number * number

    squares = ahead(make, range(9), 2)
    assert [next(squares) for _ in range(4)] == [0, 1, 4, 9]
    with pytest.raises(Killed):
        next(squares)
    assert made[:4] == [0, 1, 2, 3]
    assert list(ahead(make, range(3), 0)) == [0, 1, 4]


def test_learning_rate_schedules() -> None:
    linear = LoopSettings(steps=100, warmup=10, tail=0.5)
    assert [learning_rate_factor(step, linear) for step in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 0.5]
    cosine = LoopSettings(steps=100, warmup=10, schedule="cosine")
    assert learning_rate_factor(10, cosine) == 1.0
    assert learning_rate_factor(55, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(99, cosine) < 0.001
