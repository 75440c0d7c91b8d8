"""Fits in bfloat16: what is in it, what never is, and what it leaves behind."""

from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.base import clone
from tabular_cases import TINY, mixed_table, related_table

from probjepa.errors import ArtifactError, ConfigError
from probjepa.loading import load
from probjepa.tabular import TJEPA, VarTJEPA, networks
from probjepa.tabular.networks import Block, Transformer, attend_by_mask, in_bf16
from probjepa.training.interrupt import Interrupted
from probjepa.training.progress import ProgressBar

BOTH = pytest.mark.parametrize("kind", [VarTJEPA, TJEPA])


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer(8, n_layers=2, n_heads=2, ff_dim=16, dropout=0.0).eval()


def seen_dtypes(action):
    """The dtypes of the queries that attention was asked for."""
    found = set()

    def attention(query, *rest):
        found.add(query.dtype)
        return true(query, *rest)

    true = networks.attention
    with mock.patch.object(networks, "attention", attention):
        action()
    return found


@pytest.mark.parametrize("wide", [0, 200], ids=["masks apart", "one sequence"])
def test_products_are_in_bfloat16_and_what_comes_out_is_float32(monkeypatch, transformer, wide):
    monkeypatch.setattr(networks, "_WIDE", wide)
    shown, asked = torch.randn(3, 5, 8), torch.randn(3, 6, 8)
    x, allow = torch.cat([shown, asked], 1), attend_by_mask(5, 2, 3, torch.device("cpu"))
    full = transformer(x, allow), transformer.asked(shown, asked, 2)

    def half():
        with in_bf16(transformer):
            return transformer(x, allow), transformer.asked(shown, asked, 2)

    assert seen_dtypes(half) == {torch.bfloat16}
    for one, other in zip(half(), full, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0)
        assert not torch.equal(one, other)
    assert seen_dtypes(lambda: transformer(x)) == {torch.float32}


def test_it_ends_with_its_context_and_leaves_the_callers_autocast_alone(transformer):
    with pytest.raises(ZeroDivisionError), in_bf16(transformer):
        1 / 0  # noqa: B018
    assert not transformer.bf16
    with in_bf16(transformer, on=False):
        assert not transformer.bf16
    with torch.autocast("cpu", torch.bfloat16):
        assert seen_dtypes(lambda: transformer(torch.randn(2, 3, 8))) == {torch.bfloat16}


@BOTH
def test_steps_are_in_bfloat16_and_nothing_after_them(kind):
    def fit():
        return kind(
            **TINY, precision="bf16", **({"validation_fraction": 0.3} if kind is VarTJEPA else {})
        ).fit(mixed_table())

    found = []

    def block(self, x, *rest):
        found.append((self.training, x.dtype, torch.is_autocast_enabled("cpu")))
        return true(self, x, *rest)

    true = Block.forward
    with mock.patch.object(Block, "forward", block):
        model = fit()
        # T-JEPA's averaged encoder is in evaluation mode, and takes part in the steps
        trained = [half for training, _, half in found if training]
        assert trained and all(trained)
        if kind is VarTJEPA:
            checked = [half for training, _, half in found if not training]
            assert checked and not any(checked)
        assert {dtype for _, dtype, _ in found} == {torch.float32}
        found.clear()
        model.transform(mixed_table())
        assert found and not any(half for *_, half in found)
    assert model.settings_["precision"] == "bf16"
    assert all(of.dtype == torch.float32 for of in model.network_.parameters())


def test_likelihoods_and_kl_terms_are_float32():
    found = set()

    def watched(of):
        def call(*tensors):
            found.update(t.dtype for t in tensors if isinstance(t, torch.Tensor))
            found.add(torch.is_autocast_enabled("cpu"))
            return of(*tensors)

        return call

    from probjepa.tabular import tokens, var_network

    places = [(tokens, "balanced_nll"), (var_network, "kl_diagonal_gaussians"), (var_network, "draw")]
    with ExitStack() as patches:
        for module, name in places:
            patches.enter_context(mock.patch.object(module, name, watched(getattr(module, name))))
        VarTJEPA(**TINY, precision="bf16", copula="none").fit(mixed_table())
    assert found == {torch.float32, False}


def test_what_is_learned_is_what_float32_learns():
    table = related_table(400)
    settings = {
        **TINY,
        "dim": 16,
        "max_epochs": 10,
        "learning_rate": 3e-3,
        "warmup_epochs": 1,
        "copula": "none",
    }
    full, half = (VarTJEPA(**settings, precision=precision).fit(table) for precision in ("float32", "bf16"))
    losses = [min(epoch["validation_loss"] for epoch in model.history_) for model in (full, half)]
    first = full.history_[0]["validation_loss"]
    assert losses[0] < first - 1
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1] != losses[0]


@BOTH
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_callers_autocast_changes_nothing(kind, precision):
    settings = {**TINY, "max_epochs": 4, "learning_rate": 1e-2, "precision": precision}
    alone = kind(**settings).fit(mixed_table())
    with torch.autocast("cpu", torch.bfloat16):
        inside = kind(**settings).fit(mixed_table())
        assert torch.is_autocast_enabled("cpu")
    assert inside.history_ == alone.history_
    np.testing.assert_array_equal(inside.transform(mixed_table()), alone.transform(mixed_table()))


def test_a_float32_fit_has_the_settings_of_one_before_there_was_a_choice():
    assert "precision" not in VarTJEPA(**TINY).fit(mixed_table()).settings_


@BOTH
def test_a_resumed_fit_is_the_whole_one(tmp_path, monkeypatch, kind):
    settings = {**TINY, "max_epochs": 3, "dropout": 0.1, "precision": "bf16"}
    whole = kind(**settings).fit(mixed_table())
    checkpoint = tmp_path / "fit"
    with monkeypatch.context() as patch:

        def update(self, done, number, epochs):
            if number == 2:
                raise KeyboardInterrupt

        patch.setattr(ProgressBar, "update", update)
        with pytest.raises(Interrupted):
            kind(**settings).fit(mixed_table(), checkpoint=checkpoint)
    with pytest.raises(ArtifactError, match="was made with precision=bf16"):
        kind(**{**settings, "precision": "float32"}).fit(mixed_table(), checkpoint=checkpoint)
    resumed = kind(**settings).fit(mixed_table(), checkpoint=checkpoint)
    assert resumed.history_ == whole.history_
    np.testing.assert_array_equal(resumed.transform(mixed_table()), whole.transform(mixed_table()))


@BOTH
def test_it_is_a_parameter_like_others(tmp_path, kind):
    model = clone(kind(**TINY, precision="bf16")).fit(mixed_table())
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.get_params()["precision"] == "bf16"
    np.testing.assert_array_equal(again.transform(mixed_table()), model.transform(mixed_table()))
    with pytest.raises(ConfigError, match="precision"):
        kind(**TINY, precision="fp16").fit(mixed_table())
