"""A plan on paper for a very large data set: GPUs, hours, storage, network and cost.

    python -m benchmarks.scale
    python -m benchmarks.scale --images 2e8 --gpus 64 --mfu 0.35 --attention full --refresh 8
    python -m benchmarks.scale --captions-per-second 3.1

What a GPU makes of the operations of a caption is an assumption (`--mfu`, `--mbu`), until it is
measured and given as `--captions-per-second`. Prints the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Final, Literal

from benchmarks.plan import Plan, caption, hours, row_bytes, sample_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TIME: Final = ("", "TFLOP a caption", "captions/s a GPU", "GPU-hours", "days", "cost")
_MAY_BE_ZERO: Final = ("captions_per_second", "failures", "bad_images", "price")
_KINDS: Final[tuple[tuple[str, Literal["prefix", "full"], int], ...]] = (
    ("prefix", "prefix", 1),
    ("full, refreshed every 8 steps", "full", 8),
    ("full", "full", 1),
)
_SIZES: Final = ((384, 384), (640, 480), (1024, 1024), (1920, 1080))


def tables(plan: Plan) -> str:
    """The tables of docs/scale.md."""
    one = caption(plan)
    flops = (one.tower_flops, one.prompt_flops, one.step_flops)
    tower, prompt, steps = (f"{part / 1e12:,.0f}" for part in flops)
    parts = [
        f"{plan.images:,.0f} pictures on {plan.gpus} GPUs at {plan.price:g} an hour. A caption: "
        f"{tower} TFLOP for {one.tiles} tiles, {prompt} for {one.prompt_rows:,} rows of prompt, "
        f"{steps} for {one.steps} steps; {one.batch} requests run at once.",
        _table(_TIME, (_time(changed, name) for name, changed in _uses(plan))),
        _table(_TIME, (_time(changed, name) for name, changed in _ways(plan))),
        _table(_TIME, (_time(changed, name) for name, changed in _pictures(plan))),
        _table(("what", "how much", "from"), _data(plan)),
    ]
    return "\n\n".join(parts) + "\n"


def _uses(plan: Plan) -> Iterable[tuple[str, Plan]]:
    """The plan at other parts of the peak; itself alone when its rate is measured."""
    if plan.captions_per_second:
        return [(f"measured: {plan.captions_per_second:g} captions/s", plan)]
    uses = sorted({0.2, 0.3, 0.4, 0.5, plan.mfu})
    return [(f"MFU {use:.2f}", replace(plan, mfu=use)) for use in uses]


def _ways(plan: Plan) -> Iterable[tuple[str, Plan]]:
    """Attention and tokens a step, by the cost model."""
    modelled = replace(plan, captions_per_second=0.0)
    for tokens in (1, 4, 8):
        for name, attention, refresh in _KINDS:
            way = replace(modelled, tokens_per_step=tokens, attention=attention, refresh=refresh)
            yield f"{tokens} token{'s' * (tokens > 1)} a step, {name}", way


def _pictures(plan: Plan) -> Iterable[tuple[str, Plan]]:
    """Sizes of pictures, by the cost model."""
    for width, height in _SIZES:
        changed = replace(plan, captions_per_second=0.0, width=width, height=height)
        one = caption(changed)
        yield f"{width} x {height}: {one.tiles} tiles, {one.prompt_rows:,} rows", changed


def _time(plan: Plan, name: str) -> tuple[str, ...]:
    one, total = caption(plan), hours(plan)
    return (
        name,
        f"{one.flops / 1e12:,.0f}",
        f"{1 / one.seconds:,.2f}",
        f"{total:,.0f}",
        f"{total / plan.gpus / 24:,.1f}",
        f"{total * plan.price:,.0f}",
    )


def _data(plan: Plan) -> Iterable[tuple[str, str, str]]:
    total, rate = hours(plan), plan.gpus / caption(plan).seconds
    shards = ceil(plan.images / plan.shard_size)
    picture, sample = 1e3 * plan.image_kb, sample_bytes(plan)
    busy = rate * plan.prepare_ms / 1e3
    broken = plan.failures * total
    return (
        ("pictures read", f"{plan.images * picture / 1e12:,.0f} TB", "images x picture"),
        ("network in", f"{rate * picture * 8 / 1e9:,.2f} Gbit/s", "captions/s x picture"),
        ("rows as jsonl", f"{plan.images * row_bytes(plan) / 1e9:,.0f} GB", "images x row"),
        ("as shards", f"{plan.images * sample / 1e12:,.1f} TB", "images x sample"),
        ("shards", f"{shards:,} of {plan.shard_size * sample / 1e6:,.0f} MB", "images / shard"),
        ("sidecars", f"{plan.images:,.0f} files", "one a picture"),
        ("requests, by shards", f"{2 * shards:,}", "a GET and a PUT a shard"),
        ("the same a second", f"{2 * rate / plan.shard_size:,.2f}", "captions/s"),
        ("requests, by files", f"{2 * plan.images:,.0f}", "a GET and a PUT a picture"),
        ("the same a second", f"{2 * rate:,.0f}", "captions/s"),
        ("processors to decode and tile", f"{busy:,.1f}", "captions/s x processor time"),
        ("interruptions", f"{broken:,.1f}", "rate x GPU-hours"),
        ("pictures that fail", f"{plan.bad_images * plan.images:,.0f}", "part x images"),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; `arguments` as on the command line, None for those of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Plan()
    for name in Plan.__dataclass_fields__:
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            choices=("prefix", "full") if isinstance(value, str) else None,
            help=f"default {value}",
        )
    plan = Plan(**vars(parser.parse_args(arguments)))
    for name in Plan.__dataclass_fields__:
        value = getattr(plan, name)
        least = 0 if name in _MAY_BE_ZERO else sys.float_info.min
        if not isinstance(value, str) and not value >= least:
            parser.error(f"--{name.replace('_', '-')} {value:g} is too small")
    try:
        sys.stdout.write(tables(plan))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
