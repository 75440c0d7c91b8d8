"""The rooms that mutants are tried in are there; the runner itself needs packages that the tests do not."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_room_has_its_sources_and_tests():
    tree = ast.parse((ROOT / "benchmarks" / "mutants.py").read_text(encoding="utf-8"))
    names = {"TABLES", "ROOMS"}
    tree.body = [node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id in names]
    found = {}
    exec(compile(tree, "mutants.py", "exec"), found)
    assert {"distributions", "methods", "heads", "jacobian", "scores", "metrics", "tabular"} == {
        *found["ROOMS"]
    }
    for sources, tests in found["ROOMS"].values():
        for home, paths in ((ROOT / "src" / "probjepa", sources), (ROOT / "tests", tests)):
            assert [path for path in paths if not (home / path).exists()] == []


@pytest.fixture
def mutants(monkeypatch):
    for name in ("coverage", "libcst", "mutmut"):
        pytest.importorskip(name, reason=f"{name} is not installed: make mutants installs it")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield __import__("mutants")
    del sys.modules["mutants"]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("Rank = int | None", 0),
        ('Pooling = Literal["cls", "mean"]', 0),
        ('Latent: TypeAlias = Literal["normal"] | None', 0),
        ('T = TypeVar("T")', 0),
        ('__all__ = ["a"]', 0),
        ("def f(x: 3 = y) -> 4: ...", 0),
        ('paper = "https://arxiv.org/abs/1807.03888"', 0),
        ('summary: ClassVar[str] = "a short line"', 0),
        ("x = torch.zeros(n, device=y.device)", 3),  # the call without n, or with None, and x = None
        ('table = {"cuda": 2**24}', 1),  # table = None
        ('ours = kind == "cuda"', 2),  # ours = None, and !=
        ("FIRST = order[0]", 2),
        ("flags = A | B", 2),
        ('name = "knn"', 3),
        ("n = 3", 2),
    ],
)
def test_what_is_no_fault_of_the_mathematics_is_left_out(mutants, monkeypatch, tmp_path, line, count):
    monkeypatch.setattr(mutants, "SOURCE", tmp_path)
    file = tmp_path / "one.py"
    file.write_text(line + "\n", encoding="utf-8")
    found = mutants.sampled(list(mutants.mutants_of(file)), 0, 0)
    assert len(found) == count, [mutant.key for mutant in found]
