"""One of several processes of `rediff train`, on CPU: `launched.py [fsdp] ARGUMENTS`.

accelerate shards (FSDP2) on accelerators only. With `fsdp` the processes pass for such until it has
chosen how to train, so that its sharding runs over gloo.
"""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

from accelerate import PartialState
from accelerate.utils import DistributedType

from server.cli import main

if __name__ == "__main__":
    if sys.argv[1] == "fsdp":
        del sys.argv[1]
        os.environ |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer",
        }
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_XPU
    main()
