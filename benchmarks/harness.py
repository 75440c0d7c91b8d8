"""What benchmarks share: interleaved timing, ratios pair by pair, and JSON that says where it ran."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import probjepa
from probjepa.errors import ArtifactError
from probjepa.files import refuse_irregular, write_text
from probjepa.provenance import cpu_flags, cpu_model

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of repeated values."""

    median: float
    min: float
    q1: float
    q3: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value; quartiles by linear interpolation, as numpy's."""
        quartiles = [values[0]] * 3 if len(values) == 1 else statistics.quantiles(values, method="inclusive")
        return cls(quartiles[1], min(values), quartiles[0], quartiles[2], max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.q1:.4g}, {self.q3:.4g}]"


@dataclass
class Result:
    """What a benchmark found.

    Attributes
    ----------
    name
        of the benchmark
    seconds
        candidate → its times, one a round; the i-th times of all candidates were taken next to each other
    reference
        the candidate that the others are compared with
    warmup
        rounds before the first one that counts
    figures
        whatever else was found, JSON-able
    targets
        what was promised, and whether it holds
    earlier
        of a result that went on from a file: what made the figures that stood there
    """

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    reference: str | None = None
    warmup: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def resumed(cls, name: str, path: Path) -> Result:
        """Return a result with the figures that stand in a file, if there is one; others come to them."""
        if not path.exists():
            return cls(name)
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(name, figures=record["figures"], earlier=runs_of(record))

    def time(self, candidate: str) -> Spread:
        """Return the spread of a candidate's seconds."""
        return Spread.of(self.seconds[candidate])

    def pairwise(self, candidate: str, combine: Callable[[float, float], float]) -> Spread:
        """Return the spread of ``combine(candidate's seconds, reference's seconds)`` over the rounds."""
        assert self.reference is not None
        pairs = zip(self.seconds[candidate], self.seconds[self.reference], strict=True)
        return Spread.of([combine(mine, theirs) for mine, theirs in pairs])

    def ratio(self, candidate: str) -> Spread:
        """Return the spread of candidate/reference over the rounds: above 1 is slower."""
        return self.pairwise(candidate, lambda mine, theirs: mine / theirs)

    def target(self, what: str, value: float, at_most: float, unit: str = "") -> None:
        """Record a promise that ``value`` is at most ``at_most``."""
        met = value <= at_most
        self.targets.append({"what": what, "value": value, "at_most": at_most, "unit": unit, "met": met})

    def record(self) -> dict[str, Any]:
        """Return the JSON-able record: every candidate with its spread and its ratio to the reference."""
        candidates = {
            name: {
                "seconds": asdict(self.time(name)),
                "ratio": asdict(self.ratio(name)),
                "all_seconds": times,
            }
            for name, times in self.seconds.items()
        }
        return {
            "benchmark": self.name,
            "reference": self.reference,
            "warmup": self.warmup,
            "candidates": candidates,
            "targets": self.targets,
            "figures": self.figures,
            **({"earlier": self.earlier} if self.earlier else {}),
        }

    def __str__(self) -> str:
        lines = [self.name]
        for name in self.seconds:
            lines.append(f"  {name}: {self.time(name)} s, {self.ratio(name)} × {self.reference}")
        for t in self.targets:
            verdict = "met" if t["met"] else "MISSED"
            lines.append(f"  {t['what']}: {t['value']:.3g} {t['unit']} (at most {t['at_most']:g}) {verdict}")
        return "\n".join(lines)


def compare(
    name: str,
    candidates: Mapping[str, Callable[[], object]],
    reference: str,
    repeats: int,
    warmup: int = 1,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Time candidates in turn, A B A B …, so that a drift of the machine falls on all of them alike.

    Ratios are taken within a round and summarised over the rounds. Where CUDA is in use, the clock is read
    only when the device has finished.

    Parameters
    ----------
    candidates
        name → what is timed
    reference
        the name that ratios are taken to
    repeats, warmup
        rounds that count, and rounds before them that do not
    """
    if reference not in candidates:
        raise ValueError(f"the reference '{reference}' is not among the candidates {list(candidates)}")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    seconds: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for turn in range(warmup + repeats):
        for candidate, run in candidates.items():
            synchronise()
            start = clock()
            run()
            synchronise()
            if turn >= warmup:
                seconds[candidate].append(clock() - start)
    return Result(name, seconds, reference, warmup)


def synchronise() -> None:
    """Wait for the GPU, if this process has used one."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def peak_resident() -> int:
    """Bytes of this process's peak; getrusage's would begin at the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Peak(threading.Thread):
    """Keeps the highest of what ``read`` returns, asked every so many seconds while the process lives."""

    def __init__(self, read: Callable[[], int], seconds: float) -> None:
        super().__init__(daemon=True)
        self.read, self.seconds, self.value = read, seconds, 0

    def run(self) -> None:
        """Look again and again."""
        while True:
            self.value = max(self.value, self.read())
            time.sleep(self.seconds)


def write(result: Result, path: Path, argv: Sequence[str] | None = None) -> None:
    """Print a result, and write it as JSON, atomically, with what it ran on; ``argv`` is for tests."""
    print(result)
    record = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line(sys.argv if argv is None else argv),
        "environment": environment(),
        **result.record(),
    }
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"  → {path}")


def runs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the command, date and environment of each run that made a record, the last one at the end."""
    last = {key: record[key] for key in ("date", "command", "environment") if key in record}
    return [*record.get("earlier", []), last]


def command_line(argv: Sequence[str]) -> str:
    """Return the command that ran, with DIR in the place of every absolute path."""
    words = ["python", f"benchmarks/{Path(argv[0]).name}"]
    for word in argv[1:]:
        option, equals, value = word.rpartition("=")
        words.append(f"{option}{equals}DIR" if Path(value).is_absolute() else word)
    return shlex.join(words)


def environment() -> dict[str, Any]:
    """Return the hardware by model, the versions, and how busy the machine was."""
    return {
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        # one minute's average of runnable processes: well above the threads used means a shared machine
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "probjepa": probjepa.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the short commit, with ``-dirty`` where tracked files differ from it, or None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def arguments(description: str | None, name: str, *, repeats: int | None = None) -> argparse.ArgumentParser:
    """Return the parser with the options that benchmarks share; ``repeats`` None: it does not repeat."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("../shared/data"), help="folder of the data sets"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="rounds that count")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / f"{name}.json", help="JSON file"
    )
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and give torch its number of threads.

    Ends with one line, before any work, where ``--out`` is no place for a file.
    """
    args = parser.parse_args(argv)
    try:
        refuse_irregular(args.out)
    except ArtifactError as error:
        parser.error(str(error))
    torch.set_num_threads(args.threads)
    return args
