"""Damaged settings, checkpoints and inputs, by a seeded hand: trials of `faults.py`."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from PIL import Image

from fault_cases import Case, Tally, command, misbehaved
from probjepa.model_files import write_checkpoint

ODD = [
    None,
    True,
    -1,
    0,
    3,
    1e308,
    "",
    "x",
    "1e-3",
    [],
    [[1]],
    {},
    {"a": {"b": []}},
    ["x"] * 3,
    "\x1b[2J",
    2**70,
]


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """Flip, cut, repeat or blank some bytes."""
    spot = rng.randrange(max(1, len(whole)))
    span = rng.choice([1, 1, 4, 64, 1000])
    ways: list[Callable[[], bytes]] = [
        lambda: whole[:spot],
        lambda: whole[:spot] + bytes(rng.randrange(256) for _ in range(span)) + whole[spot + span :],
        lambda: whole[:spot] + bytes(span) + whole[spot + span :],
        lambda: whole[:spot] + whole[max(0, spot - span) :],
        lambda: b"",
        lambda: rng.randbytes(len(whole)),
    ]
    return rng.choice(ways[:4] * 3 + ways[4:])()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every part of a value."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, item in items:
        yield from leaves(item, (*path, key))


def mistyped(rng: random.Random, value: Any) -> Any:
    """Put an odd value in the place of a part, or drop it."""
    *parents, last = rng.choice([path for path in leaves(value) if path])
    part = value
    for key in parents:
        part = part[key]
    if isinstance(part, tuple):
        return value
    if isinstance(part, dict) and rng.random() < 0.3:
        del part[last]
    else:
        part[last] = rng.choice(ODD) if rng.random() < 0.9 else json.loads("[" * 100 + "]" * 100)
    return value


def damaged_settings(
    cases: Mapping[str, Case], home: Path, tally: Tally, rng: random.Random, count: int
) -> None:
    """Damage or mistype what models and runs are read from; each command then ends in a line, or works."""
    import yaml

    root, runs = home / "sandbox", home / "runs"
    interrupted = {"images": home / "stopped-images", "tables": home / "stopped-tables"}
    for kind, place in interrupted.items():
        case = cases[f"train {kind}"]
        case.place(root)
        last = case.operations * 2 // 3

        def kill(event: str, number: int, at: int = last) -> None:
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)

        command(case.arguments, root, kill)
        shutil.copytree(root / "out", place, dirs_exist_ok=True)
    read = {"images": home / "test", "tables": home / "test.csv"}
    kinds = ["model/config.json", "model/config.json", "checkpoint", "checkpoint", "config.yaml", "weights"]
    for number in range(count):
        data, what = rng.choice(["images", "tables"]), kinds[number % len(kinds)]
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        resumes = what in ("checkpoint", "config.yaml")
        shutil.copytree(interrupted[data] if resumes else runs / f"train-{data}", root / "out")
        names = {"checkpoint": "checkpoints/last.ckpt", "weights": "model/model.safetensors"}
        file = root / "out" / names.get(what, what)
        how = "damaged"
        if not file.is_file():
            continue
        if rng.random() < 0.4 or what == "weights":
            file.write_bytes(damaged(rng, file.read_bytes()))
        else:
            how = "mistyped"
            if what == "checkpoint":
                write_checkpoint(file, mistyped(rng, torch.load(file, weights_only=True)))
            elif what == "config.yaml":
                file.write_text(yaml.safe_dump(mistyped(rng, yaml.safe_load(file.read_text()))))
            else:
                file.write_text(json.dumps(mistyped(rng, json.loads(file.read_text()))))
        arguments = [*cases[f"train {data}"].arguments, "--resume"]
        if not resumes:
            arguments = ["embed", "out", "--data", f"{read[data]}", "--out", "e.parquet", "-q"]
        tally.count("damaged settings", f"{number}: {what} of {data}, {how}",
                    misbehaved(command(arguments, root), [0, 2]))  # fmt: skip


NAMES = [
    b"caf\xe9",
    b"a\nb",
    b"\x1b[2J",
    b"[bold",
    b"[red]x",
    "日本".encode(),
    b":smile:",
    b"-q",
    b"a" * 200,
    b"\x9b31m",
]


def hostile_inputs(
    cases: Mapping[str, Case], home: Path, tally: Tally, rng: random.Random, count: int
) -> None:
    """Give images, arrays and tables that are damaged, of odd types or oddly named."""
    root, trained, fitted = home / "sandbox", home / "runs/train-images", home / "runs/train-tables"
    whole = sorted((home / "test").rglob("*.png"))
    own = np.random.default_rng(0)  # named pictures stand in no other set
    table = (home / "test.csv").read_bytes()
    for number in range(count):
        shutil.rmtree(root, ignore_errors=True)
        data = root / "data"
        data.mkdir(parents=True)
        what = rng.choice(["image", "image", "name", "npy", "csv", "parquet"])
        source, model = data, trained
        for i, label in enumerate(rng.sample(NAMES, 2) if what == "name" else [b"cat", b"dog"]):
            folder = os.fsencode(data) + b"/" + label
            os.mkdir(folder)
            for j in range(4):
                name = rng.choice(NAMES) if what == "name" else b"%d" % j
                file = folder + b"/" + name + b".png"
                if what == "name":
                    pixels = own.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(os.fsdecode(file), "PNG")
                else:
                    shutil.copy(whole[4 * i + j], file)
        if what == "image":
            suffix = rng.choice([".png", ".jpg", ".bmp", ".gif", ".webp", ".tif"])
            buffer = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(
                buffer, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
            )
            (data / "cat" / f"odd{suffix}").write_bytes(damaged(rng, buffer.getvalue()))
        elif what == "npy":
            source = root / "x.npy"
            shape = rng.choice(
                [(5, 12, 12, 3), (5, 12, 12), (5,), (0, 12, 12, 3), (5, 12, 12, 3, 1), (5, 3, 12, 12)]
            )
            kind = rng.choice(["uint8", "float32", "int64", "complex64", "U3", "bool", "float16"])
            np.save(source, np.zeros(shape).astype(kind))
            if rng.random() < 0.5:
                source.write_bytes(damaged(rng, source.read_bytes()))
        elif what == "csv":
            source, model = root / "x.csv", fitted
            lines = table.split(b"\n")
            odd = rng.choice(
                [b"x,x,x", b",,", b"inf,here,1", b"1e999,\xe9,1", b'"', b"1,2,3,4,5", b"\x00", b"nan,[/],0"]
            )
            lines[rng.randrange(len(lines))] = odd
            source.write_bytes(b"\n".join(lines) if rng.random() < 0.6 else damaged(rng, table))
        elif what == "parquet":
            source = root / "x.parquet"
            values = [b"x", "text", 1, None, {"bytes": b"x", "path": "../p"}, [1.0], whole[0].read_bytes()]
            column = [rng.choice(values)] * 3
            pd.DataFrame({rng.choice(["image", "img", "x"]): column, "label": [0, 1, 1]}).to_parquet(source)
            if rng.random() < 0.3:
                source.write_bytes(damaged(rng, source.read_bytes()))
        out = ["--data", f"{source}", "--out"]
        ways = [["embed", f"{model}", *out, "e.parquet"], ["score", f"{model}", *out, "s.parquet"]]
        if model is trained:
            ways.append(["curate", f"{model}", *out, "c", "--drop", "0.5"])
            ways = [[*way, "--on-error", rng.choice(["raise", "skip"])] for way in ways]
        if what == "name":
            label = os.fsdecode(rng.choice(NAMES)).replace("=", "")
            sets = ["--train", f"{home / 'train'}", "--test", f"{home / 'test'}", "--ood", f"{label}={data}"]
            ways = [*ways[2:], ["evaluate", f"{model}", *sets, "--bootstrap", "5", "--out", "v"]]
        arguments = [*rng.choice(ways), "-q"]
        ended = command(arguments, root)
        wrong = misbehaved(ended, [0, 2])
        if what == "name":
            wrong += misbehaved(ended, [0])
        if (root / "c/keep.txt").is_file():
            kept = sum(
                len((root / f"c/{n}.txt").read_text().splitlines()) for n in ("keep", "review", "drop")
            )
            if kept != pq.read_table(root / "c/ranking.parquet").num_rows:
                wrong.append("more lines than images in the lists")
        tally.count("hostile input", f"{number}: {what}, {arguments[0]}", wrong)
