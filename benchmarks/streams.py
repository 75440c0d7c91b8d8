"""Training on streamed shards: peak memory by their size, time to the first batch, killed runs that go on."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Peak, Result, arguments, parse, peak_resident, write
from shards import SIZE, generate

MORE_MEMORY, FIRST_BATCH = 1.3, 5.0
WORKERS, BATCH = 2, 256
PLACES, BATCHES = 10, 20
_PSS = re.compile(r"^Pss: +(\d+)", re.MULTILINE)


def train(data: str, out: str | None, callbacks: Any = (), **options: Any) -> Any:
    """Train a small VJE on a stream."""
    import torch

    from probjepa import VJE, fit

    torch.manual_seed(0)
    method = VJE("convnet", backbone_options={"widths": (8, 16)}, image_size=SIZE, seed=0)
    return fit(
        method, data, out=out, stream=True, precision="32-true", channels_last=False, device="cpu",
        progress=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def held() -> int:
    """Return the KiB of this process and the workers below it, each page that they share counted once."""
    total = 0
    for process in (os.getpid(), *(each.pid for each in multiprocessing.active_children())):
        try:
            found = _PSS.search(Path(f"/proc/{process}/smaps_rollup").read_text())
        except OSError:  # it has just ended
            continue
        total += int(found[1]) if found else 0
    return total


def child(data: str, steps: int) -> None:
    """Train for some steps, read batches all over an epoch, and print times and peaks."""
    import lightning.pytorch as L
    import torch

    from probjepa.data.streams import open_training
    from probjepa.training.loader import StreamLoader

    torch.set_num_threads(1)
    first: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            first.append(time.monotonic() - start)

    import kornia  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import probjepa

    assert None not in (probjepa.fit, probjepa.VJE)  # what is imported once is no time of the data
    memory = Peak(held, 0.05)
    memory.start()
    start = time.monotonic()
    train(data, None, [Watch()], epochs=1, batch_size=BATCH, workers=WORKERS, max_steps=steps)
    said = {
        "first batch": first[0], "steps": len(first), "seconds": time.monotonic() - start,
        "peak MB": memory.value / 2**10, "peak MB of the process alone": peak_resident() / 2**20,
    }  # fmt: skip
    start = time.monotonic()
    stream: Any = open_training(data, stream=True, size=SIZE, channels=3)
    loader, read, waits = StreamLoader(stream, BATCH, seed=0, workers=WORKERS), 0, []
    for place in range(PLACES):  # from the first to the last tenth of an epoch, as a resumed run starts
        loader.load_state_dict({"epoch": 0, "batch": place * len(loader) // PLACES, "unreadable": 0})
        begun = time.monotonic()
        for number, batch in enumerate(itertools.islice(loader, BATCHES)):
            read += len(batch)
            if number == 0:
                waits.append(time.monotonic() - begun)
    said |= {"images": read, "seconds to read them": time.monotonic() - start, "waits for a place": waits}
    said["peak MB, all over the epoch"] = memory.value / 2**10
    print(json.dumps(said))


def kills(data: str, home: str, trials: int) -> None:
    """Kill training in the middle of an epoch, each trial elsewhere; print how many end differently."""
    import lightning.pytorch as L
    import torch

    torch.set_num_threads(1)
    options = {"epochs": 2, "batch_size": 16, "stream_buffer": 64, "workers": 1, "checkpoint_seconds": 0.0}
    aim = random.Random(0)

    class Killed(L.Callback):
        def __init__(self, step: int, seconds: float) -> None:
            self.step, self.seconds = step, seconds

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == self.step and os.fork() == 0:  # while the training goes on
                time.sleep(self.seconds)
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)

    def run(out: str, at: tuple[int, float] | None, resume: bool = False) -> int:
        process = os.fork()
        if process == 0:
            train(data, out, [Killed(*at)] if at else [], resume=resume, **options)
            os._exit(0)
        return os.waitpid(process, 0)[1]

    def weights(out: str) -> bytes:
        return (Path(out) / "model" / "model.safetensors").read_bytes()

    assert run(f"{home}/whole", None) == 0
    different = killed = 0
    for trial in range(trials):
        out = f"{home}/{trial}"
        killed += run(out, (aim.randrange(1, 60), aim.uniform(0, 0.05))) == signal.SIGKILL
        assert run(out, None, resume=True) == 0
        different += weights(out) != weights(f"{home}/whole")
    print(json.dumps({"trials": trials, "killed": killed, "different": different}))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--kills"] and len(sys.argv) == 5:
        kills(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = arguments(__doc__, "streams", repeats=1)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--steps", type=int, default=39, help="of training")
    parser.add_argument("--trials", type=int, default=5, help="runs that are killed")
    args = parse(parser)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def said(*words: object) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__)), *map(str, words)]
        found: dict[str, Any] = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=True).stdout
        )
        return found

    result = Result("streams")
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        generate(root / "small", 10_000, args.shards)
        generate(root / "large", args.images, args.shards)
        generate(root / "few", 500, 5)
        small, large = (said("--child", root / name, args.steps) for name in ("small", "large"))
        faults = said("--kills", root / "few", root, args.trials) if args.trials else {}
    result.figures = {
        "images": args.images, "shards": args.shards, "image_size": SIZE, "batch": BATCH, "workers": WORKERS,
        "10,000 images": small, f"{args.images:,} images": large, "killed runs": faults,
    }  # fmt: skip
    for name in (key for key in large if key.startswith("peak")):
        result.target(f"{name}, {args.images:,} images / 10,000", large[name] / small[name], MORE_MEMORY)
    result.target("time to the first batch", large["first batch"], FIRST_BATCH, "s")
    if faults:
        result.target("killed runs that end differently", faults["different"], 0)
    write(result, args.out)


if __name__ == "__main__":
    main()
