"""What torchrun and srun tell each process that they start: which it is, and of how many."""

from __future__ import annotations

import os
from typing import Any


def is_first_process() -> bool:
    """Whether this is the first process of a distributed run, or the only one: it alone writes."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:  # torchrun, which does not number the machines by NODE_RANK
        return env["RANK"] == "0"
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # srun
        return env["SLURM_PROCID"] == "0"
    return env.get("LOCAL_RANK", "0") == env.get("NODE_RANK", "0") == "0"


def started() -> dict[str, Any]:
    """Return the Trainer's options for the processes that torchrun or srun has started; none: nothing."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        total, here = int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
    else:  # a batch script's own step has no tasks: it is one process
        total = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
        here = total // int(env.get("SLURM_STEP_NUM_NODES", "1"))
    if total == 1:
        return {}
    return {"devices": here, "num_nodes": total // here, "strategy": "ddp"}
