"""Commands in a fork, and a world of files to run them in: what `faults.py` does its trials on."""

from __future__ import annotations

import atexit
import csv
import importlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import probjepa.cli
import probjepa.cli.images
import probjepa.cli.tables
import probjepa.curation
import probjepa.evaluation.tables
import probjepa.report.evaluation
import probjepa.scores.jepa_parts
import probjepa.training
from probjepa import demo
from probjepa.files import MOVING
from probjepa.report.page import Figure

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree")
_IMPORTED: set[str] = set()
LIMIT = 120  # seconds, after which a trial hangs
IMAGES = ["--set", "batch_size=8", "--set", "backbone=convnet", "--set", "widths=[4,8]", "--epochs", "2"]
TABLES = ["dim=8", "n_layers=1", "n_heads=2", "ff_dim=8", "batch_size=16", "anneal_epochs=[1,1,1]"]


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
    """Hidden names: what a command leaves behind when it does not tidy up.

    A mark that names the missing last file of a folder, whose files were being replaced, belongs there.
    """
    hidden = root.rglob(".*")
    return [
        p.relative_to(root).as_posix()
        for p in hidden
        if p.name != MOVING or not p.is_file() or (p.parent / p.read_text(encoding="utf-8")).exists()
    ]


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
