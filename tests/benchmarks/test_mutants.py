"""The rooms that mutants are tried in are there; the runner itself needs packages that the tests do not."""

import ast
from pathlib import Path

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
