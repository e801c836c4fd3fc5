"""Average the weights of two checkpoints that went on from the same one.

    python scripts/average_checkpoints.py runs/embedded-stage2/round-0/checkpoint \
        runs/embedded-control/round-0/checkpoint runs/embedded --share 0.7
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, help="checkpoint folder; all but its weights is kept")
    parser.add_argument("second", type=Path, help="checkpoint folder with the same tensors")
    parser.add_argument("target", type=Path, help="checkpoint folder to write; must not exist")
    parser.add_argument("--share", type=float, default=0.5, help="of the first, 0 to 1")
    arguments = parser.parse_args()
    share: float = arguments.share
    if not 0 <= share <= 1:
        parser.error(f"--share must be 0 to 1, got {share}")
    if arguments.target.exists():
        parser.error(f"{arguments.target} exists")
    first, second = (load_file(path / WEIGHTS) for path in (arguments.first, arguments.second))
    shapes = [{name: value.shape for name, value in part.items()} for part in (first, second)]
    if shapes[0] != shapes[1]:
        parser.error(f"{arguments.first} and {arguments.second} do not hold the same tensors")
    mean = {
        name: (share * value.float() + (1 - share) * second[name].float()).to(value.dtype)
        for name, value in first.items()
    }
    with safe_open(arguments.first / WEIGHTS, "pt") as file:
        notes = file.metadata()
    shutil.copytree(arguments.first, arguments.target)
    save_file(mean, arguments.target / WEIGHTS, metadata=notes)


if __name__ == "__main__":
    main()
