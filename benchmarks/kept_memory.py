"""A training step with malloc's defaults, and as the command line has it: memory kept, threads asleep."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import Result, arguments, parse, write
from probjepa.cli import own_process

SIZE, DEFAULT, KEPT, ASLEEP = 32, "malloc's defaults", "freed memory kept", "and waiting threads asleep"
MOST = 0.95


def steps(width: float, batch_size: int, count: int, threads: int) -> dict[str, float]:
    """Return the medians of some steps of VJE: seconds, those of them in the system, faults; and the peak."""
    import torch

    from probjepa.methods.vje import VJE

    torch.set_num_threads(threads)
    method = VJE("resnet18", backbone_options={"width": width}, image_size=SIZE, seed=0).train()
    views = [torch.rand(batch_size, 3, SIZE, SIZE) for _ in range(2)]
    clock = time.process_time if threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {"seconds": [], "system": [], "faults": []}
    for _ in range(count):
        before, start = resource.getrusage(resource.RUSAGE_SELF), clock()
        method.zero_grad()
        torch.autograd.backward(method.loss(views)["loss"])
        found["seconds"].append(clock() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        found["system"].append(after.ru_stime - before.ru_stime)
        found["faults"].append(after.ru_minflt - before.ru_minflt)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**{name: statistics.median(values[2:]) for name, values in found.items()}, "peak MB": peak}


def main() -> None:
    parser = arguments(__doc__, "kept_memory", repeats=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet-18")
    parser.add_argument("--steps", type=int, default=6, help="a process; the first two do not count")
    parser.add_argument("--child", choices=(DEFAULT, KEPT, ASLEEP), help="for the benchmark's own use")
    args = parser.parse_args()
    if args.child:  # a process of its own: what malloc was told cannot be taken back
        if args.child != DEFAULT:
            own_process()
        print(json.dumps(steps(args.width, args.batch_size, args.steps, args.threads)))
        return
    args = parse(parser)
    names = (DEFAULT, KEPT, ASLEEP) if args.threads > 1 else (DEFAULT, KEPT)
    result = Result("kept_memory", {name: [] for name in names}, reference=DEFAULT)
    others: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(args.repeats):
        for name in result.seconds:
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--child", name]
            # read before torch is imported, which a benchmark has done when it starts
            policy = {"OMP_WAIT_POLICY": "PASSIVE"} if name == ASLEEP else {}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | policy
            )
            said = done.stdout
            for key, value in json.loads(said).items():
                (result.seconds[name] if key == "seconds" else others[name].setdefault(key, [])).append(value)
    result.figures = {
        "width": args.width,
        "batch_size": args.batch_size,
        "image_size": SIZE,
        **{name: {key: statistics.median(v) for key, v in of.items()} for name, of in others.items()},
    }
    for name in names[1:]:
        result.target(f"{name} / {DEFAULT}", result.ratio(name).median, MOST)
    write(result, args.out)


if __name__ == "__main__":
    main()
