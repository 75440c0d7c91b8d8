"""Scoring shards: peak memory by the size of a shard and of all; the rate of one process, two, and Ray."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness import Result, arguments, parse, peak_resident, write

SIZE, DRAWN = 32, 2000
MORE_MEMORY, FASTER, OF_TWO = 1.1, 1.7, 0.9


def generate(folder: Path, images: int, shards: int, size: int = SIZE, seed: int = 0) -> None:
    """Write JPEGs of blurred noise, a file a shard of one row group: the worst case for a reader's memory."""
    random = np.random.default_rng(seed)
    encoded = []
    for _ in range(min(DRAWN, max(images, 1))):
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((size, size)).save(stream, "jpeg", quality=90)
        encoded.append(stream.getvalue())
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, count in enumerate(np.diff(np.linspace(0, images, shards + 1).round().astype(int)).tolist()):
        cells = [{"bytes": encoded[i], "path": None} for i in random.integers(0, len(encoded), count)]
        table = pa.table({"image": pa.array(cells, kind), "label": pa.array(range(count))})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=max(count, 1))


def save_model(folder: Path, width: float) -> None:
    """Save VJE with a ResNet-18 of random weights, which cost what trained ones do."""
    from probjepa.methods.vje import VJE

    options = {"width": width}
    VJE("resnet18", backbone_options=options, image_size=SIZE, seed=0).eval().save_pretrained(folder)


def child(model: str, data: str, out: str, share: str) -> None:
    """Score as the command line does, and print when it worked, how long, and the peak."""
    from probjepa.cli import own_process

    own_process()
    import torch

    from probjepa.shards import Job, RayEngine, ShardWorker, parse_share, run_shards

    torch.set_num_threads(1)
    job = Job(model, what="score", device="cpu")
    assert ShardWorker(job).marks  # what is imported and opened once is no time of the work
    print("ready", flush=True)
    sys.stdin.readline()  # all begin at once
    start, used = time.time(), time.process_time()
    if share == "ray":
        found = run_shards(job, data, out, engine=RayEngine(workers=2))
        ended = {name: (Path(out) / name).stat().st_mtime for name in found["each"]}
        start = min(end - found["each"][name]["seconds"] for name, end in ended.items())
        end = max(ended.values())
    else:
        found = run_shards(job, data, out, share=parse_share(share))
        end = time.time()
    print(json.dumps({
        "start": start, "end": end, "processor": time.process_time() - used,
        "left": found["shards"]["left"], "peak MB": peak_resident() / 2**20,
    }))  # fmt: skip


def scored(*arguments: tuple[Path, Path, Path, str]) -> list[dict[str, float]]:
    """Run processes of one thread at once, and return what they print."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(Path(__file__)), "--child"]
    running = [
        subprocess.Popen(
            [*script, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        for words in arguments
    ]
    assert all(process.stdout and process.stdout.readline() == "ready\n" for process in running)
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    return [json.loads(text) for text in said]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:  # a process of its own: a peak is never taken back
        child(*sys.argv[2:])
        return
    parser = arguments(__doc__, "shards", repeats=1)  # 0: only the memory of all shards
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--width", type=float, default=0.125, help="of the ResNet-18")
    args = parse(parser)
    one, two, ray = "one process", "two processes", "two workers on Ray"
    timed = args.repeats > 0
    result = Result("shards", {one: [], two: [], ray: []} if timed else {}, reference=one if timed else None)
    peaks, busy = {}, {one: [], two: []}
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        save_model(root / "model", args.width)
        generate(root / "shards", args.images, args.shards)
        if timed:
            generate(root / "whole", args.images, 1)
        generate(root / "small", args.images // args.shards, 1)
        folders = {"small": "small", **({"whole": "whole"} if timed else {}), "all shards": "shards"}
        for name, folder in folders.items():
            (said,) = scored((root / "model", root / folder, root / f"out-{folder}", "1/1"))
            peaks[name] = said["peak MB"]
        for turn in range(args.repeats):
            for name, shares in ((one, ["1/1"]), (two, ["1/2", "2/2"]), (ray, ["ray"])):
                out = root / f"{turn}-{name}"
                said = scored(*((root / "model", root / "shards", out, share) for share in shares))
                assert min(each["left"] for each in said) == 0
                result.seconds[name].append(max(s["end"] for s in said) - min(s["start"] for s in said))
                if name != ray:  # whose work is done by other processes
                    busy[name].append(sum(each["processor"] for each in said))
    result.figures = {
        "images": args.images,
        "shards": args.shards,
        "width": args.width,
        "image_size": SIZE,
        "images_per_second": {name: args.images / result.time(name).median for name in result.seconds},
        "processor_seconds": busy,
        "peak_mb": peaks,
        "peak_mb_of": {
            "small": f"one shard of {args.images // args.shards:,} images",
            "whole": f"one shard of {args.images:,} images in one row group",
            "all shards": f"{args.shards} shards",
        },
    }
    for name in peaks.keys() - {"small"}:
        result.target(f"peak memory, {name} / small", peaks[name] / peaks["small"], MORE_MEMORY)
    if timed:
        result.target("two processes / one", result.ratio(two).median, 1 / FASTER)
        rate = result.time(two).median / result.time(ray).median
        result.figures["rate of Ray over two processes"] = rate
        result.target("two workers on Ray / two processes", 1 / rate, 1 / OF_TWO)
    write(result, args.out)


if __name__ == "__main__":
    main()
