"""Every way to stop a command, and odd files: what is left is whole, and the rerun ends the same.

Each trial is a fork of one process that has imported everything. A command is killed before each of its file
operations in turn, or the disk is full at it; each signal comes once in the middle; its streams are lost;
configs, checkpoints and inputs are damaged by a seeded hand. Nothing is timed; pictures are not drawn, since
they are nine tenths of the work.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import harness
from fault_cases import Case, Tally, cheaper, command, content, left_over, make_world, misbehaved
from fault_files import damaged_settings, hostile_inputs

SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGKILL": [signal.SIGKILL],
}


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
