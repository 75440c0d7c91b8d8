"""An installed package adds one of each kind by entry points, and the commands know them by name."""

import json
import os
import subprocess
import sys

import pytest

ENTRY_POINTS = """
[probjepa.methods]
outside-loss = outside:Pull
[probjepa.backbones]
outside-backbone = outside:Tiny
[probjepa.heads]
outside-head = outside:Unit
[probjepa.scores]
outside-score = outside:Length
outside-detector = outside:Nearest
[probjepa.sources]
outside: = outside:read
[probjepa.view_recipes]
outside-views = outside:crops
[probjepa.table_methods]
outside-tables = outside:Tables
[probjepa.experiments]
outside-experiment = outside:reproduce
[probjepa.heads.unrelated]
nothing = no_such_module:X
"""

MODULE = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from probjepa.data.augment import RandomResizedCrop
from probjepa.data.records import ArrayRecords
from probjepa.files import write_text
from probjepa.heads import Head
from probjepa.heads.base import DensityPrediction
from probjepa.methods import Method
from probjepa.scores import Score
from probjepa.tabular import TJEPA


class Tiny(nn.Module):
    def __init__(self, *, channels=3, width: int = 4):
        super().__init__()
        self.embedding_dim = width
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x):
        return self.net(x)


class Pull(Method):
    name = "outside-loss"

    def __init__(self, backbone="convnet", *, weight: float = 1.0, **encoder):
        super().__init__(backbone, **encoder)
        self.weight = weight

    def loss(self, batch):
        first, second = (self(view) for view in batch)
        return {"loss": self.weight * (first - second).square().mean()}


class Unit(Head):
    name = "outside-head"

    def __init__(self, dim, context_dim, *, bias: bool = True):
        super().__init__(dim, context_dim)
        self.net = nn.Linear(context_dim, dim, bias=bias)

    def forward(self, context):
        return UnitPrediction(self, self.net(self.checked(context)).to(self.dtype))


class UnitPrediction(DensityPrediction):
    def __init__(self, head, mean):
        super().__init__(head, mean.shape[:-1])
        self._mean = mean

    mean = property(lambda self: self._mean)
    variance = property(lambda self: torch.ones_like(self._mean))

    def log_prob(self, value):
        return -0.5 * (self.checked(value) - self._mean).square().sum(-1)

    def sample(self, sample_shape=(), generator=None):
        return self._mean.detach() + self.standard_normal(sample_shape, generator)


class Length(Score):
    name, summary = "outside-score", "length of the embedding"

    def score(self, features):
        return np.linalg.norm(np.asarray(features["h"], dtype=np.float64), axis=1)


class Nearest:
    """Negative distance to the nearest row, in scikit-learn's manner."""

    def fit(self, X):
        self.known = np.asarray(X)
        return self

    def score_samples(self, X):
        return -np.linalg.norm(np.asarray(X)[:, None] - self.known, axis=2).min(1)


def read(text):
    seed, count = map(int, text.split("x"))
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16), dtype=np.uint8)
    return ArrayRecords(f"outside:{text}", pixels, np.arange(count) % 2)


def crops(size, channels):
    return [[RandomResizedCrop(size, scale=(0.5, 1.0))] for _ in range(2)]


class Tables(TJEPA):
    pass


def reproduce(out, *, data_root, budget, cells, seed, overwrite, progress):
    write_text(out / "metrics.json", f'{{"budget": "{budget}", "seed": {seed}}}')
    write_text(out / "report.html", "<!doctype html>")
'''

COMMANDS = [
    "list",
    "train outside-loss --data outside:1x16 --val outside:2x16 --out loss --epochs 1 --set batch_size=8 "
    "--set backbone=outside-backbone --set width=3 --set weight=0.5 --set view_recipe=outside-views -q",
    "train i-jepa --data outside:1x16 --out head --epochs 1 --set batch_size=8 --set width=8 --set depth=1 "
    "--set heads=2 --set predictor_width=8 --set predictor_depth=1 --set predictor_heads=2 "
    "--set head=outside-head --set 'head_options={bias: false}' -q",
    "embed loss --data outside:2x10 --out embedding.parquet -q",
    "score loss --data outside:2x10 --out length.parquet --score outside-score -q",
    "score loss --data outside:2x10 --out nearest.parquet --score outside-detector --reference outside:1x16 -q",
    "curate loss --data outside:2x10 --out curated --score outside-score -q",
    "evaluate loss --train outside:1x16 --test outside:2x16 --ood far=outside:3x16 --out evaluated --bootstrap 20 -q",
    "evaluate head --train outside:1x16 --test outside:2x16 --out evaluated-head --bootstrap 20 -q",
    "train outside-tables --data table.csv --out tables --epochs 1 --set dim=8 --set n_layers=1 --set n_heads=2 --set ff_dim=8 -q",
    "score tables --data table.csv --out rows.parquet --score outside-score -q",
    "reproduce outside-experiment --out reproduced --budget small --seed 3",
]  # fmt: skip

WRONG = {
    "train outside-los --data outside:1x16 --out x": "did you mean 'outside-loss'",
    "train outside-loss --data outside:1x16 --out x --set weight=much": "the setting weight takes a number",
    "train outside-loss --data outside:1x16 --out x --set backbone=outside-backbone --set widht=3": "did you mean 'width'",
    "score loss --data outside:2x10 --out x --score outside-scor": "did you mean 'outside-score'",
    "score loss --data outside:2x10 --out x --score outside-detector": "--reference",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of outputs, what was printed, and the messages of what was wrong."""
    root = tmp_path_factory.mktemp("outside")
    (root / "outside.py").write_text(MODULE)
    (root / "outside-1.0.dist-info").mkdir()
    (root / "outside-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n"
    )
    (root / "outside-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    numbers = "".join(f"{i % 7},{'xy'[i % 2]}\n" for i in range(30))
    (root / "table.csv").write_text("a,b\n" + numbers)
    code = (
        "import json, shlex, sys; from probjepa.cli import run\n"
        "import undrawn; undrawn.Figure.savefig = undrawn.empty\n"
        "for command in json.loads(sys.argv[1]): assert run(shlex.split(command)) == 0, command\n"
        "for command in json.loads(sys.argv[2]): assert run(shlex.split(command)) == 2, command\n"
    )
    path = os.pathsep.join([str(root), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(COMMANDS), json.dumps(list(WRONG))],
        cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done.stdout, done.stderr.strip().splitlines()


def test_list_names_what_the_package_adds(run):
    printed = run[1].splitlines()
    lines = {line.partition(": ")[0]: line.partition(": ")[2].split(", ") for line in printed if ": " in line}
    for title, name in {
        "methods": "outside-loss", "methods of tables": "outside-tables", "heads": "outside-head",
        "backbones": "outside-backbone", "scores": "outside-score", "view recipes": "outside-views",
        "data sources": "outside:", "experiments": "outside-experiment",
    }.items():  # fmt: skip
        assert name in lines[title], title
    assert "  outside-score: length of the embedding" in printed
    assert "  outside-detector: Negative distance to the nearest row, in scikit-learn's manner." in printed


def test_the_commands_use_it(run):
    import pyarrow.parquet as pq

    root, printed, _ = run
    config = json.loads((root / "loss" / "model" / "config.json").read_text())
    assert config["method"] == "outside-loss"
    assert config["settings"]["backbone_options"] == {"width": 3} and config["settings"]["weight"] == 0.5
    head = json.loads((root / "head" / "model" / "config.json").read_text())["settings"]
    assert (head["head"], head["head_options"]) == ("outside-head", {"bias": False})
    embedding = pq.read_table(root / "embedding.parquet").to_pydict()
    assert len(embedding["embedding"]) == 10 and len(embedding["embedding"][0]) == 3
    length = pq.read_table(root / "length.parquet").to_pydict()["score"]
    for vector, score in zip(embedding["embedding"], length, strict=True):
        assert abs(sum(x * x for x in vector) ** 0.5 - score) < 1e-5
    assert all(score < 0 for score in pq.read_table(root / "nearest.parquet").to_pydict()["score"])
    assert len(pq.read_table(root / "rows.parquet")) == 30
    metrics = json.loads((root / "evaluated" / "metrics.json").read_text())
    assert {"outside-score", "outside-detector", "knn"} <= set(metrics["ood"]["far"])
    page = (root / "evaluated" / "report.html").read_text()
    assert "outside-score" in page
    assert json.loads((root / "reproduced" / "metrics.json").read_text()) == {"budget": "small", "seed": 3}
    assert "scored 10 images by outside-score" in printed


def test_what_is_wrong_names_it(run):
    errors = [line for line in run[2] if line.startswith("probjepa: ")]
    assert len(errors) == len(WRONG), errors
    for error, says in zip(errors, WRONG.values(), strict=True):
        assert says in error
