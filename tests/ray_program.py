"""`rediff` on a small Ray cluster of its own, which ends with this process, however it ends."""

from __future__ import annotations

import logging
import os

os.environ["OMP_NUM_THREADS"] = "1"

import ray

from server.cli import main


def start() -> None:
    """A cluster of two processors, without a dashboard; it lets in who has the token."""
    ray.init(
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


if __name__ == "__main__":
    start()
    main()
