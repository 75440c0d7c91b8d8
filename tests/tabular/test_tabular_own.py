"""A table method of the user's own: registered, it is trained, saved and loaded as ours are."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tabular_cases import TINY, mixed_table
from torch import nn

import probjepa as pj
from probjepa.cli import run
from probjepa.errors import ArtifactError
from probjepa.tabular import TABLE_METHODS
from probjepa.tabular.estimator import TableTransformer
from probjepa.tabular.networks import pick
from probjepa.tabular.tokens import FeatureTokenizer


class MeanNetwork(nn.Module):
    """Says of every masked token what the mean of the shown ones is."""

    def __init__(self, layout, dim, scale):
        super().__init__()
        self.dim, self.n_features, self.scale = dim, layout.n_features, scale
        self.tokenizer = FeatureTokenizer(layout, dim)
        self.say = nn.Linear(dim, dim)

    def loss(self, rows, masks, epoch=0.0):
        tokens = self.tokenizer(rows)
        said = self.say(pick(tokens, masks.context).mean(1, keepdim=True))
        asked = pick(tokens, masks.targets[0]).detach()
        return {"loss": self.scale * (said - asked).square().mean()}

    def after_step(self, step, total_steps):
        pass


def make_estimator():
    """Again for each test: a registry keeps what it was given."""

    class Mean(TableTransformer):
        def __init__(
            self, preset="small", *, scale=1.0, max_epochs=None, batch_size=None, learning_rate=None,
            warmup_epochs=None, weight_decay=None, context_share=None, target_share=None, n_targets=None,
            dim=None, n_layers=None, n_heads=None, ff_dim=None, dropout=None, embedding="flattened",
            column_types=None, numeric_transform="quantile", max_categories=256, random_state=None,
            device="auto", verbose=False,
        ):  # fmt: skip
            self._set_parameters(locals())

        def _settings(self):
            return super()._settings() | {"scale": self.scale, "validation_fraction": 0.0}

        def _build(self, layout, settings):
            return MeanNetwork(layout, settings["dim"], settings["scale"])

        @torch.no_grad()
        def transform(self, X):
            return np.concatenate(
                [self._arranged(self.network_.tokenizer(rows)) for rows in self._batches(X)]
            )

    return Mean


@pytest.fixture
def registered():
    made = TABLE_METHODS.register("mean", make_estimator())
    yield made
    TABLE_METHODS.remove("mean")


def test_it_is_fitted_saved_and_loaded(registered, tmp_path):
    table = mixed_table()
    model = registered(**TINY, scale=2.0).fit(table)
    assert model.get_params()["scale"] == 2.0 and model.n_iter_ == 2
    assert model.history_[1]["loss"] < model.history_[0]["loss"]
    model.save(tmp_path / "m")
    for again in (pj.load(tmp_path / "m"), registered.load(tmp_path / "m")):
        assert isinstance(again, registered) and again.get_params() == model.get_params()
        np.testing.assert_array_equal(again.transform(table), model.transform(table))
    TABLE_METHODS.remove("mean")
    with pytest.raises(ArtifactError, match="holds a Mean, which this version does not know"):
        pj.load(tmp_path / "m")


def test_the_command_line_trains_it_and_embeds_with_it(registered, tmp_path):
    mixed_table().to_parquet(tmp_path / "table.parquet")
    data = ["--data", str(tmp_path / "table.parquet"), "--device", "cpu", "-q"]
    settings = ["--epochs", "1", "--set", "scale=3.0", "--set", "dim=8"]
    assert run(["train", "mean", *data, "--out", str(tmp_path / "run"), *settings]) == 0
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (saved["estimator"], saved["settings"]["scale"]) == ("Mean", 3.0)
    assert run(["embed", str(tmp_path / "run"), *data, "--out", str(tmp_path / "e.parquet")]) == 0
    embedding = np.stack(pd.read_parquet(tmp_path / "e.parquet")["embedding"])
    expected = pj.load(tmp_path / "run").transform(mixed_table())
    np.testing.assert_allclose(embedding, expected, rtol=1e-6)


def test_its_plain_uncertainty_and_score_are_evaluated(tmp_path):
    class Full(make_estimator()):
        def uncertainty(self, X):
            return np.abs(self.transform(X)).sum(1)

        def score_samples(self, X):
            return -self.uncertainty(X)

    TABLE_METHODS.register("mean", Full)
    try:
        table = mixed_table(120)
        target = np.where(np.arange(len(table)) % 2, "a", "b")
        model = Full(**TINY).fit(table)
        model.save(tmp_path / "m")
        table[80:].to_parquet(tmp_path / "x.parquet")
        table["target"] = target
        table[:80].to_parquet(tmp_path / "train.parquet")
        table[80:].to_parquet(tmp_path / "test.parquet")
        common = ["--test", str(tmp_path / "test.parquet"), "--target", "target", "--device", "cpu", "-q"]
        out = tmp_path / "out"
        code = run(["evaluate", str(tmp_path / "m"), "--train", str(tmp_path / "train.parquet"), *common,
                    "--out", str(out)])  # fmt: skip
        assert code == 0
        found = json.loads((out / "metrics.json").read_text())["selective"]
        assert {"model uncertainty", "−log-likelihood"} <= {
            source for of in found.values() for by in of.values() for source in by
        }
        scored = [
            "score",
            str(tmp_path / "m"),
            "--data",
            str(tmp_path / "x.parquet"),
            "-q",
            "--device",
            "cpu",
        ]
        assert run([*scored, "--out", str(tmp_path / "s.parquet")]) == 0
        assert {"score", "uncertainty"} <= set(pd.read_parquet(tmp_path / "s.parquet").columns)
    finally:
        TABLE_METHODS.remove("mean")


def test_a_sub_class_may_take_fewer_parameters():
    class Small(pj.TJEPA):
        def __init__(self, note="", *, max_epochs=1, random_state=0):
            super().__init__(max_epochs=max_epochs, random_state=random_state, device="cpu")
            self.note = note

    model = Small("mine").fit(mixed_table())
    assert model.settings_ == pj.TJEPA(max_epochs=1)._settings()
    assert model.get_params() == {"note": "mine", "max_epochs": 1, "random_state": 0}
