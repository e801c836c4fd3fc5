"""Peak memory of loading a checkpoint, as a multiple of the loaded bytes.

Writes a synthetic checkpoint of the official layout, loads it in a fresh process, and reports the
highest anonymous memory above what the imports took. Pages of the mapped file are not anonymous:
the kernel may drop them at any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from rediff_model import checkpoint
from rediff_model.config import LanguageConfig, ModelConfig
from rediff_model.language import LanguageModel

HIDDEN = 2048
INTERMEDIATE = 6144
VOCABULARY = 8192
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PeakMemory:
    """The highest anonymous resident memory of this process while the block runs, in bytes."""

    def __init__(self, interval: float = 0.002) -> None:
        self.interval = interval
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self.baseline = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    def _watch(self) -> None:
        while not self._over.wait(self.interval):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """RssAnon of this process (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel reports no RssAnon")


def synthetic_config(gigabytes: float) -> ModelConfig:
    """A language model of about that many bfloat16 gigabytes."""
    layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE
    layers = round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * HIDDEN) / layer)
    language = LanguageConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=max(1, layers),
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    return ModelConfig(
        language=language, mask_token_id=5, suppressed_token_ids=(1, 2), stop_token_id=3
    )


def write_synthetic(folder: Path, gigabytes: float) -> None:
    """A sharded bfloat16 checkpoint with random weights."""
    config = synthetic_config(gigabytes)
    with torch.device("meta"):
        model = LanguageModel(config.language).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.detach().fill_(0.01)
    checkpoint.save(model, config, None, folder, max_shard_bytes=500_000_000)


def measure(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load a checkpoint in this process; bytes, seconds and the peak above the baseline."""
    config = checkpoint.read_config(folder)
    with torch.device("meta"):
        model = LanguageModel(config.language)
    begin = time.perf_counter()
    with PeakMemory() as memory:
        checkpoint.load_weights(model, folder, "cpu", dtype)
    seconds = time.perf_counter() - begin
    loaded = sum(tensor.nbytes for tensor in model.parameters())
    above = memory.peak - memory.baseline
    return {"loaded": loaded, "peak": above, "ratio": above / loaded, "seconds": seconds}


def measure_in_subprocess(folder: Path, dtype: str) -> dict[str, float]:
    """`measure` in a fresh process, whose memory holds nothing else."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--folder", str(folder)]
    done = subprocess.run([*command, "--dtype", dtype], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Print one JSON object a dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--folder", type=Path, help="measure this checkpoint in this process")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    dtypes = chosen.dtype or ["bfloat16", "float32"]
    if chosen.folder is not None:
        sys.stdout.write(json.dumps(measure(chosen.folder, DTYPES[dtypes[0]])) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "synthetic"
        write_synthetic(folder, chosen.gigabytes)
        rows = [{"dtype": dtype, **measure_in_subprocess(folder, dtype)} for dtype in dtypes]
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    if chosen.json is not None:
        command = "python -m benchmarks.checkpoint"
        result = {"command": command, "torch": torch.__version__, "rows": rows}
        chosen.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
