"""The plan for a very large data set: its arithmetic, its sizes, and the page that shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bulk_case import captioned, item

from benchmarks import cost, plan, scale
from benchmarks.plan import Plan
from rediff_model.config import ModelConfig, VisionConfig
from rediff_model.vision.siglip import SiglipTower, build_projector
from server.bulk.shards import ShardWriter
from server.bulk.tables import Journal
from server.engine.memory import row_bytes

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
ONE_DOLLAR_A_CAPTION = Plan(images=3600, gpus=1, captions_per_second=1, price=1 / 3600, failures=0)


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main([])
    page = PAGE.read_text(encoding="utf-8")
    parts = capsys.readouterr().out.strip().split("\n\n")
    assert len(parts) == 5
    for part in parts:
        assert part in page


def test_the_operations_of_the_tower_are_those_of_its_weights() -> None:
    config = VisionConfig(
        image_size=28,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    with torch.device("meta"):
        found = SiglipTower(config)
        projector = build_projector(config.hidden_size, 64)
    layers = [weight for name, weight in found.named_parameters() if "layers." in name]
    products = [weight for weight in layers if weight.dim() == 2]
    products += [weight for weight in projector.parameters() if weight.dim() == 2]
    rows, attention = 4, 2 * 4 * 4 * 4 * 32
    expected = 2 * rows * sum(weight.numel() for weight in products) + attention
    assert plan.tower(config, 64, tiles=1) == expected
    assert plan.tower(config, 64, tiles=5) == 5 * expected


def test_full_attention_computes_the_prompt_at_every_step_and_prefix_once() -> None:
    prefix = plan.caption(Plan())
    full = plan.caption(Plan(attention="full"))
    language, rows = ModelConfig().language, prefix.prompt_rows + 128
    step = cost.forward(language, rows, rows, head_rows=128, itemsize=2).flops
    assert full.step_flops == pytest.approx(32 * step)
    assert full.prompt_flops == 0
    cached = cost.forward(language, 128, rows, head_rows=128, itemsize=2).flops
    assert prefix.step_flops == pytest.approx(32 * cached)
    refreshed = plan.caption(Plan(attention="full", refresh=8))
    assert refreshed.step_flops == pytest.approx(4 * step + 28 * cached)


def test_the_rows_of_a_picture_are_those_of_the_tiling() -> None:
    one = plan.caption(Plan(width=640, height=480, question_rows=80))
    assert (one.tiles, one.prompt_rows) == (5, 2929 + 80)


def test_twice_the_use_is_half_the_time_while_operations_decide() -> None:
    slow, fast = (plan.caption(Plan(mfu=use)).seconds for use in (0.2, 0.4))
    assert slow == pytest.approx(2 * fast)


def test_bytes_decide_when_one_request_runs_alone() -> None:
    alone = Plan(max_batch=1, tokens_per_step=1, mfu=1.0)
    one = plan.caption(alone)
    language = ModelConfig().language
    step = cost.engine_step(language, one.prompt_rows, 128, 1, itemsize=2)
    wait = one.seconds - (one.tower_flops + one.prompt_flops) / 989e12
    assert wait == pytest.approx(128 * step.bytes / (4.8e12 * 0.6))


def test_the_batch_is_what_the_engine_would_take_in() -> None:
    most = plan.fitting(Plan(), 3137)
    values = row_bytes(ModelConfig().language, torch.bfloat16)
    weights = 2 * 8.0e9
    assert most == int(0.5 * (141e9 - weights) / values / 3137)
    with pytest.raises(ValueError, match="memory_gb 17 holds no request of 3137 rows"):
        plan.fitting(Plan(memory_gb=17), 3137)


def test_a_measured_rate_replaces_the_model() -> None:
    assert plan.hours(ONE_DOLLAR_A_CAPTION) == 1
    assert scale._time(ONE_DOLLAR_A_CAPTION, "")[2:] == ("1.00", "1", "0.0", "0")
    slower = replace(ONE_DOLLAR_A_CAPTION, failures=0.5, restart_minutes=60)
    assert plan.hours(slower) == 1.5


def test_rows_and_samples_are_as_large_as_what_is_written(tmp_path: Path) -> None:
    picture = item(Path("pictures/000000/00000000.jpg"))
    row = captioned("x" * 550).row(picture)
    journal = Journal(tmp_path / "journal", {}, overwrite=True)
    journal.append(row)
    before = (tmp_path / "journal").stat().st_size
    journal.append(row)
    journal.close()
    written = (tmp_path / "journal").stat().st_size - before
    size = Plan(caption_bytes=len(row["caption"]), image_kb=7.0)
    assert written == pytest.approx(plan.row_bytes(size), rel=0.05)
    writer = ShardWriter(tmp_path / "shards", 1000, overwrite=True)
    for _ in range(4):
        writer.append(".jpg", bytes(7000), row)
    writer.close()
    shard = (tmp_path / "shards" / "part.rediff").stat().st_size
    assert shard / 4 == pytest.approx(plan.sample_bytes(size), rel=0.05)


@pytest.mark.parametrize("option", ["--images=0", "--mfu=-1", "--price=nan", "--memory-gb=10"])
def test_a_value_that_means_nothing_is_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        scale.main([option])
    assert ended.value.code == 2
    assert option.split("=")[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace(
        "-", "_"
    )
