"""Figures that a change of the code's shape must leave alone, made through the public doors.

``python tests/golden/figures.py FILE`` writes them: loss terms of a short run of every method, ten scores of images,
and what a small table fit says. ``test_golden.py`` compares them with ``figures.json``, written before the
house was rebuilt in November 2026.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits, load_wine

import probjepa as pj
from probjepa.cli import run

SMALL = {
    "vje": ["hidden_dim=16"],
    "vi-simsiam": ["projector_dim=64", "predictor_dim=16"],
    "simsiam": ["projector_dim=64", "predictor_dim=16"],
    "byol": ["projector_dim=32", "hidden_dim=64"],
    "vicreg": ["projector_dim=64"],
    "barlow-twins": ["projector_dim=64"],
    "lejepa": ["projector_dim=16"],
    "i-jepa": [
        "width=32",
        "depth=2",
        "heads=4",
        "predictor_width=16",
        "predictor_depth=1",
        "predictor_heads=2",
    ],
}
SCORES = (
    "likelihood", "predictive", "jepa", "knn", "mahalanobis", "gmm", "directional", "radial", "kl",
    "mean variance", "anisotropy",
)  # fmt: skip
WITH_REFERENCE = ("predictive", "knn", "mahalanobis", "gmm")


def call(*arguments: str) -> None:
    """Run a command, which must succeed."""
    assert run(list(arguments)) == 0, arguments


def summary(values: Any) -> list[float]:
    """Mean, spread and the first two of a column."""
    array = np.asarray(values, dtype=np.float64)
    return [float(array.mean()), float(array.std()), *map(float, array.ravel()[:2])]


def images_figures(folder: Path) -> dict[str, Any]:
    """Loss terms of two epochs of every method, and scores of VJE, VI-SimSiam and I-JEPA."""
    digits = load_digits()
    pixels = (digits.images[:, None] * 15.9375).round().astype(np.uint8)
    pixels = np.repeat(np.repeat(pixels, 2, 2), 2, 3)
    np.savez(folder / "train.npz", images=pixels[:320], labels=digits.target[:320])
    np.savez(folder / "test.npz", images=pixels[320:384], labels=digits.target[320:384])
    train, test = str(folder / "train.npz"), str(folder / "test.npz")
    figures: dict[str, Any] = {}
    for method, settings in SMALL.items():
        common = ["batch_size=64", "image_size=16", "precision=32-true", "channels_last=false"]  # on any CPU
        sets = [x for s in [*settings, *common] for x in ("--set", s)]
        call(
            "train", method, "--data", train, "--out", str(folder / method), "--epochs", "2", "--quiet",
            "--device", "cpu", *sets,
        )  # fmt: skip
        with open(folder / method / "metrics.csv", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        figures[f"train/{method}"] = {k: float(v) for k, v in last.items() if v and k != "seconds"}
    for method in ("vje", "vi-simsiam", "i-jepa"):
        for score in SCORES if method == "vje" else ("likelihood",):
            out = folder / f"{method}-{score}.parquet"
            reference = ["--reference", train] if score in WITH_REFERENCE else []
            call(
                "score", str(folder / method), "--data", test, "--out", str(out), "--score", score, "--quiet",
                "--device", "cpu", *reference,
            )  # fmt: skip
            table = pq.read_table(out)
            figures[f"score/{method}/{score}"] = {
                name: summary(table[name].to_numpy())
                for name in table.column_names
                if name not in ("id", "label", "estimator")
            }
    return figures


def table_figures(folder: Path) -> dict[str, Any]:
    """What the two table estimators say of wine."""
    wine = load_wine(as_frame=True).frame
    features = wine.drop(columns="target")
    features["kind"] = pd.Categorical(np.where(wine["target"] > 0, "b", "a"))
    figures: dict[str, Any] = {}
    sizes = {"max_epochs": 3, "dim": 16, "n_layers": 1, "ff_dim": 32, "random_state": 0, "device": "cpu"}
    paper = {"alpha_pred": 0.0, "max_grad_norm": 1.0}
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "VarTJEPA": (pj.VarTJEPA, paper),
        "VarTJEPA adult": (pj.VarTJEPA, {"preset": "adult"}),
        "TJEPA": (pj.TJEPA, {}),
    }
    for name, (kind, settings) in cases.items():
        model = kind(**sizes, **settings).fit(features)
        figures[f"table/{name}/loss"] = {k: float(v) for k, v in model.history_[-1].items()}
        figures[f"table/{name}/embedding"] = {"all": summary(model.transform(features))}
        if kind is pj.VarTJEPA:
            figures[f"table/{name}/score"] = {"score": summary(model.score_samples(features))}
            figures[f"table/{name}/uncertainty"] = {"mean": summary(model.uncertainty(features))}
    return figures


def figures() -> dict[str, Any]:
    """All of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return images_figures(Path(folder)) | table_figures(Path(folder))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(figures(), indent=1) + "\n", encoding="utf-8")
