"""Two replicas on a small Ray cluster of its own, at a port, until standard input ends."""

from __future__ import annotations

import sys
from typing import Any, cast

import ray
from ray import serve
from ray_program import start

from server.ray_serve import Scale, application

if __name__ == "__main__":
    start()
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(application(Scale(min_replicas=2, max_replicas=2, cpus=0.5)), name="rediff")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    # Untyped in Ray.
    cast("Any", serve.shutdown)()
    ray.shutdown()
