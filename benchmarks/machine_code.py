"""What the Triton kernels compile to for a GPU, found out without one, as JSON.

For every launch: registers a thread, bytes of stack (more than 0: registers are spilled) and of
shared memory; for the main loop of `select_tokens` also the instructions that a logit takes. A
multiprocessor of an H100 or H200 issues one a clock for each of its 128 lanes, which bounds the
logits a second whatever the memory gives.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from benchmarks import kernels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOPPER = 90
"""The compute capability of H100 and H200."""

LANES_A_SECOND = 132 * 128 * 1.755e9
"""Instructions of single lanes that an H100 or H200 (SXM) issues at its boost clock."""

ROWS = 256


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one JSON object to --json or standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=HOPPER, help="of the GPU, such as 80")
    parser.add_argument("--json", type=Path, help="write here")
    chosen = parser.parse_args(arguments)
    text = json.dumps(report(chosen.capability), indent=2) + "\n"
    if chosen.json is None:
        sys.stdout.write(text)
    else:
        chosen.json.write_text(text, encoding="utf-8")


def report(capability: int = HOPPER) -> dict[str, Any]:
    """Figures of every launch of the kernels at the shapes of the 8B model."""
    from kernels.select_tokens import TILE

    launches = []
    for call, kernel in compiled(capability):
        entry = {"call": call, "kernel": kernel.name, **resources(kernel.asm["cubin"])}
        entry["shared_bytes"] = kernel.metadata.shared
        if kernel.name == "_part_kernel" and "temperature" not in call:
            lanes = 32 * kernel.metadata.num_warps
            each = loop_instructions(kernel.asm["cubin"]) / (TILE / lanes)
            size = 4 if "float32" in call else 2
            entry["instructions_a_logit"] = each
            if capability == HOPPER:
                entry["bytes_a_second_at_most"] = size * LANES_A_SECOND / each
        launches.append(entry)
    return {"capability": capability, "launches": launches}


def compiled(capability: int) -> Iterator[tuple[str, Any]]:
    """Every launch and its compiled kernel; nothing is launched, also later in this process."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    kept: list[Any] = []

    def compile_only(function: Any, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            kept.append(function.warmup(*arguments, grid=grid, **options))

        return launch

    driver.set_active(_Absent(capability))
    with patch.object(JITFunction, "__getitem__", compile_only):
        for call, run in _calls():
            run()
            for kernel in kept:
                yield call, kernel
            kept.clear()


def _calls() -> Iterator[tuple[str, Any]]:
    """Kernels on the CPU's memory, of which only types and strides matter."""
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        logits_TV = torch.empty((ROWS, kernels.VOCABULARY), dtype=dtype)
        hidden_TD = torch.empty((ROWS, kernels.HIDDEN), dtype=dtype)
        weight_VD = torch.empty((kernels.VOCABULARY, kernels.HIDDEN), dtype=dtype)
        yield f"select_tokens, {name}", kernels.selection(logits_TV)[0]
        for variant, (run, _, _) in kernels.variants(logits_TV).items():
            yield f"{variant}, {name}", run
        yield f"lm_head_select, {name}", kernels.fused(hidden_TD, weight_VD)[0]
    yield "refine_canvas", kernels.step(8, 128, "cpu")[0]


class _Absent:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def resources(cubin: bytes) -> dict[str, int]:
    """What a program takes."""
    text = _inspected("cuobjdump", cubin, "-res-usage")
    found = {name: re.search(rf"\b{key}:(\d+)", text) for name, key in _RESOURCES.items()}
    return {name: int(match.group(1)) for name, match in found.items() if match is not None}


_RESOURCES = {"registers": "REG", "stack_bytes": "STACK"}


def loop_instructions(cubin: bytes) -> int:
    """Instructions of the longest loop, without those that branches in it mostly jump over."""
    lines = _inspected("nvdisasm", cubin, "-c").splitlines()
    labels = {line.strip()[:-1]: at for at, line in enumerate(lines) if line.startswith(".L_")}
    jumps = [
        (at, labels[match.group(1)])
        for at, line in enumerate(lines)
        if (match := re.search(r"\bBRA `\((\.L_\w+)\)", line)) is not None
    ]
    _, first, last = max((at - target, target, at) for at, target in jumps if target < at)
    rare = [range(at + 1, to) for at, to in jumps if first < at < to <= last]
    return sum(
        re.match(r"\s+/\*[0-9a-f]{4,}\*/\s", lines[at]) is not None
        for at in range(first, last + 1)
        if not any(at in block for block in rare)
    )


def _inspected(tool: str, cubin: bytes, *options: str) -> str:
    """What a tool that comes with Triton says of machine code."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(knobs.nvidia, tool).path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
