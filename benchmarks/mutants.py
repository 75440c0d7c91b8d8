"""Mutation testing: small faults are put into the mathematics, one at a time; do the room's tests notice?

``make mutants`` tries a seeded sample of each room's mutants, ``--sample 0`` all of them. The operators are
mutmut's; the runner is ours, since mutmut leaves out decorated functions and module constants. A mutant is
tried in a forked process, which imports the package with the mutant's source in place of one file and runs
the tests that reach its line, fastest first, until one fails. Nothing is written into the tree.

Left out: annotations and type aliases, docstrings, ``__all__``, text for people (with a space in it, or an
address), where tensors live (``device=``), the name "cuda" and what a table has for it, casts, and arguments
that only add a check (``strict``, ``validate_args``).
``mutants_equivalent.json`` has the survivors that no test should kill, with reasons.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import importlib.abc
import importlib.util
import io
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import coverage
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "probjepa"
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.json")
TABLES = [f"tabular/{name}.py" for name in ("var_network", "networks", "tokens", "elbo", "masks", "copula")]
ROOMS = {
    "distributions": (["distributions"], ["distributions"]),
    "methods": (
        ["methods", "distributed.py"],
        ["methods", "cli/test_recipes.py", "test_open_encoder.py", "test_loading.py", "test_model_hub.py"],
    ),
    "heads": (["heads"], ["heads", "test_outside_package.py"]),
    "jacobian": (["jacobian"], ["jacobian"]),
    "scores": (["scores", "detectors"], ["scores", "detectors"]),
    "metrics": (["metrics"], ["metrics"]),
    "tabular": (TABLES, ["tabular"]),
}  # room: its sources, and the tests that must see to them
SECONDS = 30.0  # of tests, as they take without a mutant, that a mutant has to live through at most
OUTCOMES = ("killed", "timeout", "equivalent", "survived")
CALLS_LEFT_OUT = {"cast", "len", "isinstance"}


@dataclass
class Mutant:
    """One fault: a node of a module, what stands in its place, and where that is."""

    path: str
    number: int  # among the file's mutants
    line: int
    lines: range  # of the statement, whose coverage says which tests reach it
    module: cst.Module
    node: cst.CSTNode
    changed: cst.CSTNode
    told: bool  # whether it changes what is said to people, or a check that cannot fail

    @cached_property
    def source(self) -> str:
        """The whole mutated source."""
        return self.module.deep_replace(self.node, self.changed).code

    @cached_property
    def key(self) -> str:
        """What stays the same when other lines of the file change."""
        old, new = self.module.code.splitlines(), self.source.splitlines()
        pairs = range(min(len(old), len(new)))
        head = next((i for i in pairs if old[i] != new[i]), 0)
        tail = next((i for i in pairs if old[-1 - i] != new[-1 - i]), 0)
        before, after = (" ".join(map(str.strip, of[head : len(of) - tail])) for of in (old, new))
        return f"{self.path}: {before} → {after}"

    @property
    def valid(self) -> bool:
        """Whether it compiles."""
        try:
            compile(self.source, self.path, "exec", dont_inherit=True)
        except SyntaxError:
            return False
        return True


def left_out(node: cst.CSTNode) -> bool:
    """Whether nothing in the node is mutated."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Raise | cst.Import | cst.ImportFrom):
        return True
    if isinstance(node, cst.Arg):
        return keyword_of(node) == "device"
    if isinstance(node, cst.Call):
        return isinstance(node.func, cst.Name) and node.func.value in CALLS_LEFT_OUT
    if isinstance(node, cst.DictElement):
        return left_out(node.key)
    if isinstance(node, cst.SimpleString):
        return node.value == '"cuda"'
    if isinstance(node, cst.AnnAssign):
        return isinstance(kind := node.annotation.annotation, cst.Name) and kind.value == "TypeAlias"
    if isinstance(node, cst.Assign):
        target = node.targets[0].target
        return isinstance(target, cst.Name) and (
            target.value == "__all__" or is_alias(target.value, node.value)
        )
    if isinstance(node, cst.If):
        return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
    return isinstance(node, cst.Expr) and isinstance(node.value, cst.BaseString | cst.ConcatenatedString)


def is_alias(name: str, value: cst.BaseExpression) -> bool:
    """Whether it is a type that gets a name: a TypeVar, or ``A | B`` or ``A[…]`` of a name in CamelCase."""
    if isinstance(value, cst.Call):
        return isinstance(value.func, cst.Name) and value.func.value == "TypeVar"
    union = isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.BitOr)
    return name[0].isupper() and not name.isupper() and (union or isinstance(value, cst.Subscript))


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")), unsafe_skip_copy=True)
    positions, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)
    number = itertools.count()

    def walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        if not left_out(node):
            yield node
            for child in node.children:
                yield from walk(child)

    for node in walk(wrapper.module):
        for kind, operator in mutation_operators:
            if not isinstance(node, kind):
                continue
            for changed in operator(node):
                if is_placement(node, changed):
                    continue
                statement = node
                while not isinstance(statement, cst.SimpleStatementLine | cst.BaseCompoundStatement):
                    statement = parents[statement]
                start, end = positions[statement].start.line, positions[statement].end.line
                if isinstance(statement, cst.BaseCompoundStatement):
                    end = positions[statement.body].start.line
                line = positions[node].start.line if node in positions else start
                name = str(path.relative_to(SOURCE))
                lines, told = range(start, end + 1), is_told(node, changed, parents)
                yield Mutant(name, next(number), line, lines, wrapper.module, node, changed, told)


def is_told(node: cst.CSTNode, changed: cst.CSTNode, parents: Mapping[cst.CSTNode, cst.CSTNode]) -> bool:
    """Whether it changes text for people, or an argument that only adds a check."""
    gone = lost(node, changed)
    whole = node.value if isinstance(node, cst.Assign | cst.AnnAssign) else node
    texts = [part for part in (whole, *(arg.value for arg in gone)) if isinstance(part, cst.SimpleString)]
    if any(" " in text.value or "://" in text.value for text in texts):
        return True
    return any(keyword_of(arg) in ("strict", "validate_args") for arg in [parents[node], *gone])


def is_placement(node: cst.CSTNode, changed: cst.CSTNode) -> bool:
    """Whether a call lost its ``device=``, or the device it is moved to."""
    return any(
        keyword_of(arg) == "device" or cst.Module([]).code_for_node(arg.value).endswith("device")
        for arg in lost(node, changed)
    )


def lost(node: cst.CSTNode, changed: cst.CSTNode) -> list[cst.Arg]:
    """The arguments of a call that are no more, or have become others."""
    if not isinstance(node, cst.Call) or not isinstance(changed, cst.Call):
        return []
    return [arg for arg in node.args if not any(arg is kept for kept in changed.args)]


def keyword_of(node: cst.CSTNode) -> str | None:
    """The name of an argument that is given by name."""
    return node.keyword.value if isinstance(node, cst.Arg) and node.keyword is not None else None


def sampled(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Some of them (0: all), by a hash of each: a change of one file leaves those of others in the sample."""

    def rank(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed}/{mutant.path}/{mutant.number}".encode()).digest()

    ranked = (m for m in sorted(mutants, key=rank) if not m.told and m.valid)
    return list(itertools.islice(ranked, count or None))


class Reached:
    """A pytest plugin: how long each test takes, and which lines it reaches."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.coverage = coverage.Coverage(data_file=None, source=[str(SOURCE)], config_file=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Say which test the lines that follow belong to."""
        self.coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up set-up, call and tear-down."""
        self.seconds[report.nodeid] += report.duration


def reach(tests: list[str]) -> dict[str, Any]:
    """Run the tests: seconds of each, and of each file and line those that reach it ("": any)."""
    plugin = Reached()
    plugin.coverage.start()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[plugin])
    plugin.coverage.stop()
    if code:
        sys.exit("the tests fail without a mutant: mend them first")
    data = plugin.coverage.get_data()
    lines = {
        str(Path(file).relative_to(SOURCE)): {
            str(line): [c for c in contexts if c] for line, contexts in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    return {"seconds": dict(plugin.seconds), "lines": lines}


class Only:
    """A pytest plugin: tests of a later date than the map first, then the wanted ones in their order."""

    def __init__(self, wanted: list[str], known: Container[str]) -> None:
        self.rank = {name: i for i, name in enumerate(wanted)}
        self.known = known

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Choose and sort."""
        kept = [item for item in items if item.nodeid in self.rank or item.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: self.rank.get(item.nodeid, -1))


class Loader(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Import one module from a source that is in no file."""

    def __init__(self, path: str, source: str) -> None:
        self.file, self.source = SOURCE / path, source
        parts = ["probjepa", *Path(path).with_suffix("").parts]
        self.package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.package else parts)

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Take the one module."""
        if name != self.name:
            return None
        places = [str(self.file.parent)] if self.package else None
        return importlib.util.spec_from_file_location(
            name, self.file, loader=self, submodule_search_locations=places
        )

    def get_source(self, fullname: str) -> str:
        """Return the mutated source."""
        return self.source

    def get_code(self, fullname: str) -> Any:
        """Return its code, under the file's name."""
        return compile(self.source, str(self.file), "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        """Return whether it is an ``__init__``."""
        return self.package


def tests_of(mutant: Mutant, reached: dict[str, Any], folders: tuple[str, ...]) -> list[str]:
    """The tests of the room that reach the mutant's statement, fastest first; if none does, its file, or any.

    A module of constants is run by its import alone, before the first test.
    """
    lines = reached["lines"].get(mutant.path, {})

    def of(numbers: Any) -> list[str]:
        names = {test for line in numbers for test in lines.get(str(line), ())}
        return [name for name in names if name.startswith(folders)]

    room = [name for name in reached["seconds"] if name.startswith(folders)]
    own = [name for name in room if f"/test_{Path(mutant.path).stem}.py" in name]
    return affordable(of(mutant.lines) or of(lines) or own or room, reached["seconds"])


def affordable(names: list[str], seconds: dict[str, float]) -> list[str]:
    """The fastest of some tests, fastest first: as many as take ``SECONDS``, at least one."""
    total, kept = 0.0, []
    for name in sorted(names, key=lambda name: (seconds[name], name)):
        total += seconds[name]
        if kept and total > SECONDS:
            break
        kept.append(name)
    return kept


def outcome(path: str, source: str, tests: list[str], seconds: dict[str, float], more: list[str]) -> str:
    """Try one mutant in a fork: "killed", "survived" or "timeout". ``more``: where new tests are."""
    child = os.fork()
    if not child:
        os.setsid()
        limit = int(30 + 4 * sum(seconds[name] for name in tests))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        signal.alarm(10 * limit)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        sys.meta_path.insert(0, Loader(path, source))
        code = 1
        with contextlib.suppress(BaseException):
            files = more or sorted({name.split("::")[0] for name in tests})
            options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", *files]
            code = pytest.main(options, plugins=[Only(tests, seconds)])
        os._exit(int(code))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL):
        return "timeout"
    return "survived" if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 5) else "killed"


def warm(tests: list[str]) -> None:
    """Import what the tests import, and forget the package and the tests themselves."""
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *tests])
    folder = str(ROOT)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.split(".")[0] == "probjepa" or (file.startswith(folder) and name != "__main__"):
            del sys.modules[name]


def mapped(file: Path, tests: list[str]) -> dict[str, Any]:
    """What ``reach`` finds, from the file if it is there, or written to it."""
    if not file.exists():
        child = os.fork()  # coverage, and the package that it has watched, end with it
        if not child:
            file.write_text(json.dumps(reach(tests)), encoding="utf-8")
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit("no map of the tests: see above")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def try_room(
    room: str, args: argparse.Namespace, reached: dict[str, Any], earlier: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Try the mutants of a room, those after an earlier result, or its survivors; yield after each."""
    sources, places = ROOMS[room]
    own = [f"tests/{name}" for name in places]
    paths = [path for name in sources for path in (sorted((SOURCE / name).glob("*.py")) or [SOURCE / name])]
    everything = [mutant for path in paths for mutant in mutants_of(path)]
    seconds = reached["seconds"]
    control = affordable([name for name in seconds if name.startswith(tuple(own))], seconds)
    first = str(paths[0].relative_to(SOURCE))
    if outcome(first, paths[0].read_text(encoding="utf-8"), control, seconds, []) != "survived":
        sys.exit(f"{room}: its tests fail in a fork without a mutant")
    survivors, counts = [], collections.Counter[str]()
    if not args.again:
        chosen = sampled(everything, args.sample, args.seed)
        if earlier is not None:
            chosen, survivors = chosen[earlier["tried"] :], earlier["survivors"]
            counts.update({name: earlier[name] for name in OUTCOMES})
    else:
        assert earlier is not None
        wanted = {survivor["mutant"] for survivor in earlier["survivors"]}
        texts = {str(p.relative_to(SOURCE)): p.read_text(encoding="utf-8").splitlines() for p in paths}
        # a key takes a tenth of a second: only where a line of the statement stands in one that is wanted
        keys = {path: [key for key in wanted if key.startswith(f"{path}: ")] for path in texts}
        near = [
            m
            for m in everything
            if any(texts[m.path][line - 1].strip() in key for line in m.lines for key in keys[m.path])
        ]
        chosen = [m for m in near if m.key in wanted]
        if gone := wanted - {m.key for m in chosen}:
            print(f"{room}: no longer there: {'; '.join(sorted(gone))}", flush=True)
        counts.update(killed=earlier["killed"], timeout=earlier["timeout"])
    reasons = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    for i, mutant in enumerate(chosen):
        names = tests_of(mutant, reached, tuple(own))
        started = time.monotonic()
        what = outcome(mutant.path, mutant.source, names, seconds, own if args.again else [])
        if what == "survived":
            reason = reasons.get(mutant.key)
            what = "equivalent" if reason else what
            survivors.append({"mutant": mutant.key, "line": mutant.line, "reason": reason})
        counts[what] += 1
        note = f"{mutant.line}  {mutant.key}" if what != "killed" else ""
        spent = f"{time.monotonic() - started:.0f} s, {len(names)} tests"
        print(f"{room} {i + 1}/{len(chosen)} {what} {spent}  {note}", flush=True)
        killed = counts["killed"] + counts["timeout"]
        yield {
            "mutants": len(everything),
            "seed": args.seed,
            "tried": counts.total(),
            **{name: counts[name] for name in OUTCOMES},
            "share killed": round(killed / max(killed + counts["survived"], 1), 4),
            "survivors": survivors,
        }


def main() -> int:
    """Run what the arguments ask for; 1 if a room is below 95 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--room", action="append", choices=list(ROOMS), help="only this one (repeatable)")
    parser.add_argument("--sample", type=int, default=60, help="mutants a room; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--reach", type=Path, required=True, help="map of tests and lines: read, or written")
    parser.add_argument("--again", action="store_true", help="try only the survivors in --out again")
    parser.add_argument("--resume", action="store_true", help="go on after those in --out, of the same seed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.json")
    args = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job in the background
    rooms = args.room or list(ROOMS)
    tests = [f"tests/{name}" for room in ROOMS for name in ROOMS[room][1]]
    reached = mapped(args.reach, tests)
    warm(tests)
    result: dict[str, Any] = {"rooms": {}}
    if args.out.exists() and (args.again or args.room or args.resume):
        result = json.loads(args.out.read_text(encoding="utf-8"))
    for room in rooms:
        earlier = result["rooms"].get(room) if args.again or args.resume else None
        if args.resume and earlier and earlier["seed"] != args.seed:
            sys.exit(f"{room} in {args.out} has another seed: leave --resume out")
        for found in try_room(room, args, reached, earlier):
            result["rooms"][room] = found
            args.out.write_text(
                json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )
        if room in result["rooms"]:
            print(room, {k: v for k, v in result["rooms"][room].items() if k != "survivors"}, flush=True)
    return int(any(room["share killed"] < 0.95 for room in result["rooms"].values()))


if __name__ == "__main__":
    sys.exit(main())
