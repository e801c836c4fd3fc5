"""The Triton kernels against torch eager, torch.compile and the copy bandwidth, as JSON.

On a GPU every kernel is compared with the reference before it is timed, and what differs gets
no figure. Elsewhere tiny shapes go through Triton's interpreter, which shows that this program
and the kernels work; nothing is timed then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from kernels import ops, reference
from kernels.canvas import Canvas, Plan, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Calls = tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]
    """The kernel, what it is timed against, and what it must agree with."""

VOCABULARY = 126464
HIDDEN = 4096
SUPPRESSED = (126081, 126080, 126346, 126347)
MASK = 126336
ROWS = (128, 512, 2048, 8192)
CANVASES = (1, 8, 64)
VARIANT_ROWS = (128, 2048)
"""Rows that are also timed with entropy, and with temperature."""
REPEATS = 30
INTERPRET = "TRITON_INTERPRET"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one JSON object to --json or standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write here")
    chosen = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    if not gpu and os.environ.get(INTERPRET) != "1":
        # The interpreter has to be chosen before anything imports triton.
        given = sys.argv[1:] if arguments is None else arguments
        command = [sys.executable, "-m", "benchmarks.kernels", *given]
        done = subprocess.run(command, env={**os.environ, INTERPRET: "1"}, check=False)
        sys.exit(done.returncode)
    results = on_gpu() if gpu else interpreted()
    text = json.dumps(results, indent=2) + "\n"
    if chosen.json is None:
        sys.stdout.write(text)
    else:
        chosen.json.write_text(text, encoding="utf-8")
    if not all(entry["agrees"] for entry in results["kernels"]):
        sys.exit("a kernel differs from its reference")


def on_gpu() -> dict[str, Any]:
    """Agreement and times of every kernel at the shapes of the 8B model."""
    copied = copy_bandwidth()
    entries = []
    for rows in ROWS:
        logits_TV = torch.randn(rows, VOCABULARY, device="cuda", dtype=torch.bfloat16) * 4
        calls = {"select_tokens": selection(logits_TV)}
        if rows in VARIANT_ROWS:
            calls |= variants(logits_TV)
        for name, call in calls.items():
            entry = measure(name, [rows, VOCABULARY], *call)
            if "kernel_seconds" in entry:
                entry["copy_fraction"] = logits_TV.nbytes / entry["kernel_seconds"] / copied
            entries.append(entry)
        hidden_TD = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
        weight_VD = torch.randn(VOCABULARY, HIDDEN, device="cuda", dtype=torch.bfloat16) / 16
        shape = [rows, HIDDEN, VOCABULARY]
        entries.append(measure("lm_head_select", shape, *fused(hidden_TD, weight_VD)))
    entries += [
        measure("refine_canvas", [batch, 128], *step(batch, 128, "cuda")) for batch in CANVASES
    ]
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bytes_per_second": copied,
        "kernels": entries,
    }


def interpreted() -> dict[str, Any]:
    """Agreement at tiny shapes."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(3, 1000, generator=generator)
    hidden_TD = torch.randn(3, 20, generator=generator)
    weight_VD = torch.randn(200, 20, generator=generator)
    cases = (
        ("select_tokens", [3, 1000], selection(logits_TV)),
        *((name, [3, 1000], calls) for name, calls in variants(logits_TV).items()),
        ("lm_head_select", [3, 20, 200], fused(hidden_TD, weight_VD)),
        ("refine_canvas", [2, 12], step(2, 12, "cpu")),
    )
    return {
        "device": "cpu, Triton's interpreter: agreement only, no times",
        "torch": torch.__version__,
        "kernels": [
            {"kernel": name, "shape": shape, "agrees": agree(kernel(), exact())}
            for name, shape, (kernel, _, exact) in cases
        ],
    }


def measure(
    name: str,
    shape: list[int],
    kernel: Callable[[], Any],
    plain: Callable[[], Any],
    exact: Callable[[], Any],
) -> dict[str, Any]:
    """Median seconds of the kernel, torch eager and torch.compile, if the results agree."""
    entry: dict[str, Any] = {"kernel": name, "shape": shape, "agrees": agree(kernel(), exact())}
    if not entry["agrees"]:
        return entry
    entry["kernel_seconds"] = seconds(kernel)
    entry["eager_seconds"] = seconds(plain)
    entry["compiled_seconds"] = seconds(torch.compile(plain))
    entry["speedup_eager"] = entry["eager_seconds"] / entry["kernel_seconds"]
    entry["speedup_compiled"] = entry["compiled_seconds"] / entry["kernel_seconds"]
    return entry


def seconds(call: Callable[[], Any]) -> float:
    """Median time on the device; earlier calls warm up and compile."""
    for _ in range(5):
        call()
    # Twice the second-level cache, rewritten before every call.
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = (event() for _ in range(2))
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return median(times)


def event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def copy_bandwidth() -> float:
    """Bytes read and written a second by a large copy."""
    size = 4 << 30
    source = torch.empty(size, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source))


def selection(logits_TV: Tensor, *, hot: bool = False, entropy: bool = False) -> Calls:
    """The kernel and the reference on the same logits; `hot` at temperature 1."""
    launch = import_module("kernels.select_tokens").select_tokens
    rows, columns = logits_TV.shape
    arguments = flags(logits_TV, columns)
    heat_T = key_T2 = None
    if hot:
        heat_T = torch.ones(rows, dtype=torch.float64, device=logits_TV.device)
        row_T = torch.arange(rows, device=logits_TV.device)
        key_T2 = ops.row_keys(row_T // 128, row_T // 128, row_T % 128)

    def plain() -> reference.Selection:
        uniform_TV = None if key_T2 is None else ops.numbers(key_T2, columns)
        # The reference overwrites what it is given.
        copied_TV = logits_TV.to(torch.float32, copy=True)
        return reference.select_tokens(copied_TV, *arguments, heat_T, uniform_TV, entropy=entropy)

    return lambda: launch(logits_TV, *arguments, heat_T, key_T2, entropy=entropy), plain, plain


def variants(logits_TV: Tensor) -> dict[str, Calls]:
    """What `select_tokens` can do besides."""
    return {
        "select_tokens, entropy": selection(logits_TV, entropy=True),
        "select_tokens, temperature": selection(logits_TV, hot=True),
    }


def fused(hidden_TD: Tensor, weight_VD: Tensor) -> Calls:
    """The fused kernel; product and reference; the same in float32, which rounds no logit."""
    launch = import_module("kernels.lm_head_select").lm_head_select
    arguments = flags(hidden_TD, len(weight_VD))
    return (
        lambda: launch(hidden_TD, weight_VD, *arguments),
        lambda: reference.lm_head_select(hidden_TD, weight_VD, *arguments),
        lambda: reference.lm_head_select(hidden_TD.float(), weight_VD.float(), *arguments),
    )


def flags(rows_TX: Tensor, columns: int) -> tuple[Tensor, Tensor, int, Tensor]:
    """What a selection needs beside its rows: all of them suppress and avoid."""
    every_T = torch.ones(len(rows_TX), dtype=torch.bool, device=rows_TX.device)
    ids_S = torch.tensor([token % columns for token in SUPPRESSED], device=rows_TX.device)
    return ids_S, every_T, MASK % columns, every_T


def step(batch: int, columns: int, device: str) -> Calls:
    """A half-filled canvas a request, by kernel and reference."""
    launch = import_module("kernels.refine_canvas").refine_canvas
    generator = torch.Generator().manual_seed(0)

    def whole(value: int) -> Tensor:
        return torch.full((batch,), value, device=device)

    plan = Plan(
        mask_id=0,
        most_blocks=1,
        length_B=whole(columns),
        block_length_B=whole(columns),
        blocks_B=whole(1),
        steps_B=whole(columns // 4),
        refine_B=whole(1).bool(),
        refine_from_B=whole(0),
        refine_fraction_B=whole(1).double(),
        least_B=whole(0),
        reveal_above_B=torch.full((batch,), torch.inf, dtype=torch.float64, device=device),
        end_above_B=torch.full((batch,), torch.inf, dtype=torch.float64, device=device),
        edit_above_B=torch.full((batch,), -torch.inf, dtype=torch.float64, device=device),
        extra_B=whole(0),
        shrinks_B=whole(0).bool(),
        official_B=whole(0).bool(),
        stops_BQL=torch.ones((batch, 1, 1), dtype=torch.int64, device=device),
        stop_lengths_BQ=whole(1)[:, None].contiguous(),
        stop_span_B=whole(1),
    )
    predicted_BC = torch.randint(2, 9, (batch, columns), generator=generator).to(device)
    hidden_BC = torch.rand((batch, columns), generator=generator).to(device) < 0.5
    blank = Canvas.blank(predicted_BC.masked_fill(hidden_BC, 0), whole(columns), whole(columns))
    canvas = reference.enter_block(plan, blank, whole(1).bool())
    log_odds_BC = torch.rand((batch, columns), generator=generator).to(device)
    arguments = (plan, canvas, predicted_BC, log_odds_BC, log_odds_BC)

    def plain() -> tuple[Canvas, Written]:
        return reference.refine_canvas(*arguments)

    return lambda: launch(*arguments), plain, plain


def agree(got: Any, want: Any) -> bool:
    """Whether results are the same, up to rounding where they are floating point.

    Of the ids of a selection one in a hundred may differ, where logits are nearly equal.
    """
    if isinstance(want, tuple):
        return all(agree(*pair) for pair in zip(got, want, strict=True))
    if isinstance(want, reference.Selection):
        same_T = got.ids_T == want.ids_T
        errors_T = (got.logsumexp_T - want.logsumexp_T).abs()
        odds_T = (got.log_odds_T - want.log_odds_T)[same_T].abs()
        close = bool((errors_T < 1e-3).all()) and bool((odds_T < 1e-3).all())
        if want.entropy_T is not None and got.entropy_T is not None:
            close = close and bool(((got.entropy_T - want.entropy_T).abs() < 1e-3).all())
        return close and float(same_T.float().mean()) >= 0.99
    pairs = [(getattr(got, f.name), getattr(want, f.name)) for f in fields(want)]
    return all(torch.equal(*pair) for pair in pairs)


if __name__ == "__main__":
    main()
