"""Every way to stop a command, and odd files: what is left is whole, and the rerun ends the same.

Each trial is a fork of one process that has imported everything. A command is killed before each of its file
operations in turn, or the disk is full at it; each signal comes once in the middle; its streams are lost;
configs, checkpoints and inputs are damaged by a seeded hand. Nothing is timed; pictures are not drawn, since
they are nine tenths of the work.
"""

from __future__ import annotations

import atexit
import csv
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import harness
import probjepa.cli
import probjepa.cli.images
import probjepa.cli.tables
import probjepa.curation
import probjepa.evaluation.tables
import probjepa.report.evaluation
import probjepa.scores.jepa_parts
import probjepa.training
from probjepa import demo
from probjepa.model_files import write_checkpoint
from probjepa.report.page import Figure

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree")
_IMPORTED: set[str] = set()
LIMIT = 120  # seconds, after which a trial hangs
IMAGES = ["--set", "batch_size=8", "--set", "backbone=convnet", "--set", "widths=[4,8]", "--epochs", "2"]
TABLES = ["dim=8", "n_layers=1", "n_heads=2", "ff_dim=8", "batch_size=16", "anneal_epochs=[1,1,1]"]
SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGKILL": [signal.SIGKILL],
}
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


def cheaper() -> None:
    """Put an empty picture in the place of every one; cut the demo and the classifiers of tables short."""
    demo.STEPS, demo.evaluate = 16, partial(demo.evaluate, n_bootstrap=5)
    predictors = probjepa.evaluation.tables.PREDICTORS
    probjepa.evaluation.tables.PREDICTORS = dict([next(iter(predictors.items()))])

    def picture(title: str, draw: Any, caption: str = "", *, width: Any = "full", **_: Any) -> Figure:
        return Figure(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", caption, title, width)

    for name, module in list(sys.modules.items()):
        if name.startswith("probjepa.") and hasattr(module, "picture"):
            module.picture = picture  # type: ignore[attr-defined]


# --- one command in a fork --------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a command ended: its exit code (negative: the signal), and what it said."""

    code: int
    out: str
    err: str
    operations: int


def operations_of(root: Path, act: Callable[[str, int], None]) -> None:
    """Call ``act(event, number)`` before every operation that changes files below ``root``."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES and not (event == "open" and arguments[2] & WRITES):
            return
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(root)):
            count += 1
            act(event, count)

    sys.addaudithook(hook)


def command(
    arguments: Sequence[str],
    root: Path,
    act: Callable[[str, int], None] = lambda event, number: None,
    *,
    before: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a command in a fork, with a fault."""
    said = [root.parent / f"{name}.txt" for name in ("out", "err", "count", "modules")]
    _IMPORTED.update(sys.modules)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.alarm(LIMIT)
        for number, path in enumerate(said[:2], 1):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        counted = os.open(said[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def counting(event: str, number: int) -> None:
            os.pwrite(counted, str(number).encode(), 0)
            act(event, number)

        code = 1
        try:
            os.chdir(root)
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", line_buffering=True)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", line_buffering=True)
            sys.argv = ["probjepa", *arguments]
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup's ignore them
            before()
            operations_of(root, counting)
            probjepa.cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            try:
                said[3].write_text("\n".join(sorted(set(sys.modules) - _IMPORTED)))
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                code = 120
            os._exit(code)
    _, status = os.waitpid(child, 0)
    text = [path.read_text(errors="replace") for path in said]
    return Ended(os.waitstatus_to_exitcode(status), text[0], text[1], int(text[2] or 0))


# --- what must hold ---------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Trials and failures by kind."""

    trials: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    def count(self, kind: str, what: str, wrong: Sequence[str]) -> None:
        """Add a trial, and what it broke."""
        self.trials[kind] = self.trials.get(kind, 0) + 1
        for line in wrong:
            self.failures.append({"kind": kind, "trial": what, "wrong": line[:2000]})
            print(f"FAILED {kind}: {what}: {line[:2000]}", flush=True)


def misbehaved(ended: Ended, codes: Sequence[int]) -> list[str]:
    """Say what is wrong with an ending: another code, a traceback, more than a line, an escape sequence."""
    wrong = []
    if ended.code not in codes:
        wrong.append(f"exit code {ended.code}, not {codes}: {ended.err[-1500:]}")
    if "Traceback" in ended.err:
        wrong.append(f"a traceback: {ended.err[-1500:]}")
    lines = [line for line in ended.err.splitlines() if not line.startswith(("warning: ", "stopping after"))]
    if ended.code == 2 and (len(lines) != 1 or not lines[0].startswith("probjepa: ")):
        wrong.append(f"no single line: {ended.err[:500]}")
    if "\x1b" in ended.out + ended.err:
        wrong.append("an escape sequence on the terminal")
    return wrong


def content(path: Path) -> dict[str, Any]:
    """What an output holds, without its times: file → something to compare."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found: dict[str, Any] = {}
    for file in files:
        name = file.relative_to(path).as_posix()
        if file.suffix == ".parquet":
            found[name] = pq.read_table(file).to_pydict().__repr__()
        elif file.suffix == ".csv":
            with file.open() as rows:
                found[name] = [
                    {k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(rows)
                ]
        elif file.suffix == ".html":
            found[name] = file.read_text().rstrip().endswith("</html>")
        elif file.suffix == ".ckpt":
            found[name] = "a checkpoint"
        elif file.name in ("metrics.json", "manifest.json"):
            found[name] = _without_times(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes()
    return found


TIMES = ("seconds", "images_per_second", "date", "hardware")


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def left_over(root: Path) -> list[str]:
    """Hidden names: what a command leaves behind when it does not tidy up."""
    return [p.relative_to(root).as_posix() for p in root.rglob(".*")]


# --- the commands -----------------------------------------------------------------------------------------


@dataclass
class Case:
    """A command on one output.

    ``whole`` is what the output holds when the command ends well; ``old`` what it held before, if anything.
    """

    name: str
    arguments: list[str]
    out: str = "out"
    prepared: Path | None = None  # a copy of what stands at ``out`` before
    whole: dict[str, Any] = field(default_factory=dict)
    operations: int = 0

    def place(self, root: Path) -> None:
        """Put what was there before, and nothing else, into ``root``."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if self.prepared is not None:
            if self.prepared.is_dir():
                shutil.copytree(self.prepared, root / self.out)
            else:
                shutil.copy(self.prepared, root / self.out)

    def stopped(self, root: Path) -> bool:
        """Whether the model that stands is that of a stopped fit: of tables, the best weights so far."""
        place = root / self.out
        made, checkpoint = place / "model/config.json", place / "checkpoints/last.ckpt"
        known = (self.whole.get("model/config.json"), (content(self.prepared) if self.prepared else {}).get(
            "model/config.json"))  # fmt: skip
        return checkpoint.is_file() and made.is_file() and made.read_bytes() not in known

    def recovered(self, root: Path) -> list[str]:
        """Run the command again, or with --resume, and say in what the end differs."""
        resume = [*(a for a in self.arguments if a != "--overwrite"), "--resume"]
        again = command(resume if self.stopped(root) else self.arguments, root)
        if again.code == 2 and "resume" in again.err:
            again = command(resume, root)
        if again.code == 2 and "exists already" in again.err:
            wrong = misbehaved(again, [2])
        else:
            wrong = misbehaved(again, [0])
        found = content(root / self.out)
        if not wrong and found != self.whole:
            differs = sorted(k for k in {*found, *self.whole} if found.get(k) != self.whole.get(k))
            wrong.append(f"the rerun ends otherwise: {differs}")
        if left := left_over(root):
            wrong.append(f"left behind after the rerun: {left}")
        return wrong

    def stands(self, root: Path) -> list[str]:
        """Say what is wrong with what a fault left: files that are half-written, or stand for a whole."""
        place = root / self.out
        if not place.exists():
            return []
        seen = {k: v for k, v in content(place).items() if not Path(k).name.startswith(".")}
        old = content(self.prepared) if self.prepared else {}
        whole = {**self.whole}
        odd = [
            name
            for name, value in seen.items()
            if not any(part.startswith(".") for part in Path(name).parts)
            and Path(name).name not in ("metrics.csv", "config.yaml", "last.ckpt", "manifest.json")
            and value not in (whole.get(name), old.get(name))
        ]
        if self.name.startswith("train tables") and self.stopped(root):  # it can be used as it is
            odd = [name for name in odd if not name.startswith("model/")]
            use = ["embed", self.out, "--data", f"{root.parent / 'test.csv'}", "--out", "used.parquet", "-q"]
            odd += misbehaved(command(use, root), [0])
        wrong = [f"neither the old nor the new: {odd}"] if odd else []
        mark = next((m for m in ("model/config.json", "report.html") if m in whole), None)
        if mark in seen and self.name.startswith(("evaluate", "curate")):
            partial = [k for k in whole if seen.get(k) != whole[k]] and [
                k for k in old if seen.get(k) != old[k]
            ]
            if partial or len(seen) < len(whole):
                wrong.append(f"a part looks finished: {sorted(seen)}")
        return wrong


def make_world(home: Path) -> dict[str, Case]:
    """Make data, models and the cases, each run once to its end."""
    rng = np.random.default_rng(0)
    for split in ("train", "test", "far"):
        for label in ("cat", "dog"):
            (home / split / label).mkdir(parents=True)
            for i in range(12):
                level = 60 * (label == "dog") + 100 * (split == "far")
                pixels = rng.integers(level, level + 80, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(home / split / label / f"{i}.png")
    for split in ("train", "test"):
        y = rng.integers(2, size=60)
        place = np.array(["here", "there"])[y]
        pd.DataFrame({"number": y + rng.normal(size=60), "place": place, "y": y}).to_csv(
            home / f"{split}.csv", index=False
        )
    shards = home / "shards"
    shards.mkdir()
    for label in ("cat", "dog"):
        files = sorted((home / "test" / label).iterdir())
        rows = [{"image": path.read_bytes(), "label": label} for path in files]
        pq.write_table(pa.Table.from_pylist(rows), shards / f"{label}.parquet")
    runs, train, test, csv_ = home / "runs", home / "train", home / "test", home / "train.csv"
    runs.mkdir()
    image, table = (
        ["train", "vje", "--data", f"{train}", *IMAGES],
        ["train", "var-t-jepa", "--data", f"{csv_}"],
    )
    table += ["--target", "y", "--epochs", "3", *(word for item in TABLES for word in ("--set", item))]
    made: dict[str, Case] = {}

    def add(name: str, arguments: list[str], out: str = "out", prepared: Path | None = None) -> None:
        case = Case(
            name, [*arguments, "--out", out, *([] if arguments[0] == "list" else ["-q"])], out, prepared
        )
        root = home / "sandbox"
        case.place(root)
        ended = command(case.arguments, root)
        if ended.code:
            raise SystemExit(f"{name} does not run: {ended.err}")
        for module in (home / "modules.txt").read_text().split():
            with suppress(ImportError):  # once, and not in every fork
                importlib.import_module(module)
        case.whole, case.operations = content(root / out), ended.operations
        kept = runs / f"{name.replace(' ', '-')}{Path(out).suffix}"
        shutil.move(root / out, kept)
        made[name] = case

    add("train images", image)
    add("train tables", table)
    trained, fitted = runs / "train-images", runs / "train-tables"
    add("train images over a run", [*image, "--set", "df=5", "--overwrite"], prepared=trained)
    add("train tables over a run", [*table, "--seed", "1", "--overwrite"], prepared=fitted)
    add("embed images", ["embed", f"{trained}", "--data", f"{test}"], "out.parquet")
    add("embed shards", ["embed", f"{trained}", "--data", f"{shards}"])
    add(
        "embed over shards",
        ["embed", f"{trained}", "--data", f"{shards}", "--labels", "none"],
        prepared=runs / "embed-shards",
    )
    embedded = runs / "embed-images.parquet"
    add(
        "embed over a table",
        ["embed", f"{trained}", "--data", f"{train}", "--overwrite"],
        "out.parquet",
        embedded,
    )
    add("embed tables", ["embed", f"{fitted}", "--data", f"{home / 'test.csv'}"], "out.parquet")
    add("score images", ["score", f"{trained}", "--data", f"{test}"], "out.parquet")
    add("score tables", ["score", f"{fitted}", "--data", f"{home / 'test.csv'}"], "out.parquet")
    jepa = ["score", f"{trained}", "--data", f"{test}", "--score", "jepa"]
    add("score jepa", jepa, "out.parquet")
    sets = ["--train", f"{train}", "--test", f"{test}", "--ood", f"far={home / 'far'}", "--bootstrap", "5"]
    add("evaluate images", ["evaluate", f"{trained}", *sets])
    evaluated = runs / "evaluate-images"
    add(
        "evaluate over a page",
        ["evaluate", f"{trained}", *sets, "--seed", "1", "--overwrite"],
        prepared=evaluated,
    )
    tables = ["--train", f"{csv_}", "--test", f"{home / 'test.csv'}", "--target", "y"]
    add("evaluate tables", ["evaluate", f"{fitted}", *tables])
    add("curate", ["curate", f"{trained}", "--data", f"{test}", "--drop", "0.1"])
    curated = runs / "curate"
    add("curate over a page", ["curate", f"{trained}", "--data", f"{test}", "--drop", "0.2", "--overwrite"],
        prepared=curated)  # fmt: skip
    add("demo", ["demo"])
    return made


# --- the trials -------------------------------------------------------------------------------------------


def kills(case: Case, home: Path, tally: Tally, every: int) -> None:
    """Kill the command before each of its file operations."""
    root = home / "sandbox"

    for place in range(1, case.operations + 1, every):

        def kill(event: str, number: int, at: int = place) -> None:
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)

        case.place(root)
        ended = command(case.arguments, root, kill)
        wrong = misbehaved(ended, [-signal.SIGKILL]) + case.stands(root)
        tally.count("kill", f"{case.name}, operation {place}", wrong + case.recovered(root))


def full_disks(case: Case, home: Path, tally: Tally, every: int) -> None:
    """Refuse each file, folder and rename by ENOSPC, and every file above a size by the system."""
    root = home / "sandbox"
    old = content(case.prepared) if case.prepared else None

    def trial(what: str, **fault: Any) -> None:
        case.place(root)
        ended = command(case.arguments, root, **fault)
        wrong = misbehaved(ended, [0, 2]) + case.stands(root)
        if old is not None and Path(case.out).suffix and content(root / case.out) not in (old, case.whole):
            wrong.append("the old output is gone")
        if left := [name for name in left_over(root) if not name.endswith(".parts")]:
            wrong += [f"left behind: {left}"] if ".parts/" not in left[0] else []
        tally.count("full disk", f"{case.name}, {what}", wrong + case.recovered(root))

    for place in range(1, case.operations + 1, every):

        def full(event: str, number: int, at: int = place) -> None:
            if number == at and event in ("open", "os.mkdir", "os.rename"):
                raise OSError(28, os.strerror(28))

        trial(f"operation {place}", act=full)
    sizes = {len(v) if isinstance(v, bytes) else 3000 for v in case.whole.values()} | {0, 100}

    for size in sorted(sizes)[::every]:

        def limit(most: int = size) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)

        # the limit also falls on what the trial itself says: stderr is short enough from 100 bytes on
        if size >= 400:
            trial(f"files above {size} bytes", before=limit)


def signals(case: Case, home: Path, tally: Tally, rng: random.Random) -> None:
    """Send each signal once, at a file operation in the middle, with stderr whole and lost."""
    root = home / "sandbox"
    streams: dict[str, Callable[[], None]] = {"": lambda: None}
    if case.name.startswith("train"):
        streams |= {", stderr broken": _broken(2), ", stderr full": _full(2), ", stdout full": _full(1)}
    for name, sent in SIGNALS.items():
        for stream, lose in streams.items():
            place = rng.randint(2, max(2, case.operations - 1))

            def send(event: str, number: int, at: int = place, sent: Sequence[int] = tuple(sent)) -> None:
                if number == at:
                    for signum in sent:
                        os.kill(os.getpid(), signum)

            case.place(root)
            ended = command(case.arguments, root, send, before=lose)
            codes = (
                [0, 130, 128 + sent[0], -signal.SIGKILL]
                if sent[0] == signal.SIGKILL
                else [0, 130, 128 + sent[0]]
            )
            wrong = misbehaved(ended, codes)
            if sent[0] != signal.SIGKILL and (left := [x for x in left_over(root) if ".parts" not in x]):
                wrong.append(f"left behind: {left}")
            where = f"{case.name}, {name} at operation {place}{stream}"
            tally.count("signal", where, wrong + case.stands(root) + case.recovered(root))


def _broken(number: int) -> Callable[[], None]:
    def lose() -> None:
        read, write = os.pipe()
        os.dup2(write, number)
        os.close(read)

    return lose


def _full(number: int) -> Callable[[], None]:
    return lambda: (os.dup2(os.open("/dev/full", os.O_WRONLY), number), None)[1]


def streams(cases: Mapping[str, Case], home: Path, tally: Tally) -> None:
    """Lose stdout or stderr from the start: the work is done, and nothing is said of it."""
    root = home / "sandbox"
    faults: dict[str, Callable[[], None]] = {}
    for number, name in ((1, "stdout"), (2, "stderr")):
        faults[f"{name} broken"], faults[f"{name} full"] = _broken(number), _full(number)
        faults[f"{name} closed"] = lambda number=number: os.close(number)
    for case in cases.values():
        for name, lose in faults.items():
            case.place(root)
            wrong = misbehaved(command(case.arguments, root, before=lose), [0])
            if content(root / case.out) != case.whole:
                wrong.append("another result")
            tally.count("lost stream", f"{case.name}, {name}", wrong)


# --- damaged files ----------------------------------------------------------------------------------------


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
                shutil.copy(whole[4 * i + j], folder + b"/" + name + b".png")
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


# --- all --------------------------------------------------------------------------------------------------


def parts(home: Path, *, quick: bool) -> dict[str, Callable[[Tally, random.Random], None]]:
    """Make the world, and return what can be run alone in it, by name."""
    torch.set_num_threads(1)
    cheaper()
    os.environ["TMPDIR"] = str(home)
    cases = make_world(home)
    every = 9 if quick else 1
    heard = {"embed images": cases["embed images"]} if quick else cases
    found: dict[str, Callable[[Tally, random.Random], None]] = {
        "damaged settings": lambda t, rng: damaged_settings(cases, home, t, rng, 20 if quick else 200),
        "hostile input": lambda t, rng: hostile_inputs(cases, home, t, rng, 30 if quick else 300),
    }
    for name, case in sorted(cases.items()):
        if case.prepared and name.startswith("train"):
            case.operations = min(case.operations, 16)  # the others are those of a first run
        found[f"kill, {name}"] = lambda t, rng, case=case: kills(case, home, t, every)
        found[f"full disk, {name}"] = lambda t, rng, case=case: full_disks(case, home, t, every)
        found[f"signal, {name}"] = lambda t, rng, case=case: signals(case, home, t, rng)
    for name, case in sorted(heard.items()):
        found[f"lost stream, {name}"] = lambda t, rng, name=name, case=case: streams({name: case}, home, t)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the trials and write the counts, part by part."""
    parser = harness.arguments(__doc__, "faults")
    parser.set_defaults(threads=1)
    parser.add_argument("--seed", type=int, default=0, help="of damages, and of where signals come")
    parser.add_argument("--quick", action="store_true", help="a ninth of the trials")
    parser.add_argument(
        "--resume", action="store_true", help="only the parts that --out lacks, or that failed"
    )
    parser.add_argument(
        "--part", action="append", default=[], help="these first (repeatable): 'signal, demo'"
    )
    args = harness.parse(parser, argv)
    done: dict[str, Any] = {}
    if args.resume and args.out.exists():
        figures = json.loads(args.out.read_text())["figures"]
        if (figures["seed"], figures["quick"]) != (args.seed, args.quick):
            raise SystemExit(f"{args.out} has other trials: leave --resume out")
        done = {name: part for name, part in figures["parts"].items() if not part["failures"]}
    home = Path(tempfile.mkdtemp())  # not a TemporaryDirectory, which every fork would remove at its exit
    try:
        found = parts(home, quick=args.quick)
        missing = [name for name in found if name not in done]
        for name in sorted(missing, key=lambda name: name not in args.part):
            tally = Tally()
            found[name](tally, random.Random(f"{args.seed} {name}"))
            done[name] = {"trials": tally.trials, "failures": tally.failures, "commit": harness.commit()}
            figures = {"seed": args.seed, "quick": args.quick, "missing": [n for n in found if n not in done]}
            harness.write(result_of(figures, done), args.out)
    finally:
        shutil.rmtree(home)


def result_of(figures: dict[str, Any], done: Mapping[str, Any]) -> harness.Result:
    """Count by kind what the parts that are done have found."""
    result = harness.Result("faults", figures=figures | {"parts": done})
    trials: dict[str, int] = {}
    failed: dict[str, set[str]] = {}
    for part in done.values():
        for kind, count in part["trials"].items():
            trials[kind] = trials.get(kind, 0) + count
            failed.setdefault(kind, set()).update(f["trial"] for f in part["failures"] if f["kind"] == kind)
    for kind, count in trials.items():
        result.target(f"failures of {count} trials, {kind}", len(failed[kind]), 0)
    return result


if __name__ == "__main__":
    main()
