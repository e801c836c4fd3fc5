"""Trains the autoregressive twin of the embedded model, or goes on with it.

    python -m training.twin --config training/configs/embedded-twin-cpu.yaml --out runs/twin

A run that goes on may be given another number of steps: `--set 'phases=[{steps: 9000}]'`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import TrainConfigError
from training.loop.state import TrainingError
from training.twin.train import TwinTraining, run

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; `arguments` as on the command line, None for those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m training.twin", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--out", type=Path, required=True, help="the run; it is resumed")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        checkpoint = run(TwinTraining.read(options.config, options.overrides), options.out)
    except (TrainConfigError, TrainingError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"{checkpoint}\n")


if __name__ == "__main__":
    main()
