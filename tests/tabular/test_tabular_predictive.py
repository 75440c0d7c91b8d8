"""The predictive term, its likelihood of numbers, and the paper's loss, which it leaves alone."""

import json
import math

import numpy as np
import pytest
import torch
from tabular_cases import TINY, mixed_table

import probjepa as pj
from probjepa.errors import ConfigError
from probjepa.tabular import PRESETS, TableSchema, VarTJEPA
from probjepa.tabular.elbo import balanced_nll, gaussian_nll
from probjepa.tabular.masks import Masks
from probjepa.tabular.tokens import FeatureDecoder, Layout, Rows, resolution
from probjepa.tabular.var_network import VarTJEPANetwork, Weights

SIZES = {"dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 16, "dropout": 0.0}
PAPER = Weights(rec=0.3, gen=0.7, sx=0.02, z=0.03, sy=0.05, anneal_epochs=(2, 4, 8))
CONTEXT, TARGET = [4, 1, 6], [0, 2, 3, 5, 7]


def encoded(table):
    schema = TableSchema.infer(table)
    return schema.layout, Rows(*(torch.from_numpy(part) for part in schema.encode(table)))


def network_of(layout, weights):
    torch.manual_seed(0)
    return VarTJEPANetwork(layout, **SIZES, weights=weights).eval()


def masks_of(context, targets, n_rows):
    return Masks(torch.tensor([context] * n_rows), torch.tensor([[target] * n_rows for target in targets]))


def numbers(*columns):
    values = torch.tensor(np.stack(columns, 1), dtype=torch.float32)
    empty = torch.zeros(len(values), 0, dtype=torch.long)
    return Rows(values.nan_to_num(), values.isnan(), empty)


# --- the likelihood of numbers --------------------------------------------------------------------------


def test_the_balanced_gradient_is_the_variance_times_the_likelihoods():
    torch.manual_seed(0)
    value, mean, raw = torch.randn(3, 50).unbind()
    mean.requires_grad_(), raw.requires_grad_()
    plain, balanced = (of(value, mean, raw.exp()) for of in (gaussian_nll, balanced_nll))
    assert torch.equal(plain, balanced)
    inputs = (mean, raw)
    weighted = torch.autograd.grad(plain, inputs, raw.exp().detach())
    torch.testing.assert_close(torch.autograd.grad(balanced.sum(), inputs), weighted)
    torch.testing.assert_close(weighted[0], (mean - value).detach())  # half the squared error's


def test_a_columns_scale_moves_no_others():
    layout = Layout(numeric=(0, 1), categorical=(), cardinalities=(), types=(0, 0))
    torch.manual_seed(0)
    decoder = FeatureDecoder(layout, 4, per_column=True)
    latent = torch.randn(20, 2, 4)
    found = []
    for scale in (1e-3, 1.0, 1e3):
        decoder.zero_grad()
        rows = numbers(np.linspace(-1, 1, 20), scale * np.linspace(-1, 1, 20))
        cells = decoder(latent)
        decoder.surprise(cells, rows).sum().backward()
        found.append((decoder.raw_log_variance.grad[0].clone(), decoder.weight.grad[0].clone()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_a_column_that_is_predicted_exactly_pulls_no_harder():
    layout = Layout(numeric=(0, 1), categorical=(), cardinalities=(), types=(0, 0))
    decoder = FeatureDecoder(layout, 4, per_column=True)
    decoder.raw_log_variance.data[0] = -1  # a variance of 5e-4 and the floor, beside one of 1
    decoder.weight.data.zero_()
    decoder.surprise(decoder(torch.ones(20, 2, 4)), numbers(np.ones(20), np.ones(20))).sum().backward()
    torch.testing.assert_close(decoder.bias.grad, torch.full((2,), -20.0))


def test_the_floor_is_a_columns_resolution():
    n = 2000
    random = np.random.default_rng(0)
    with_gaps = random.normal(size=n)
    with_gaps[::3] = np.nan
    two = np.repeat([-1.0, 1.0], n // 2)
    rare = np.zeros(n)
    rare[:5] = 3.0
    columns = (random.normal(size=n), 5 * random.normal(size=n), with_gaps, two, rare, np.full(n, 7.0))
    floor = resolution(numbers(*columns, np.full(n, np.nan)))
    expected = [0.1, 0.5, 0.1, 2 / math.sqrt(12), 3 / math.sqrt(12), 1, 1]
    np.testing.assert_allclose(floor.numpy(), expected, rtol=0.05)


def test_an_all_but_constant_column_cannot_earn_without_end():
    rare = np.zeros(200)
    rare[0] = 1.0
    layout = Layout(numeric=(0,), categorical=(), cardinalities=(), types=(0,))
    decoder = FeatureDecoder(layout, 4, per_column=True)
    rows = numbers(rare)
    decoder.floor.copy_(resolution(rows))
    decoder.weight.data.zero_()
    decoder.raw_log_variance.data.fill_(-100.0)
    surprise = decoder.surprise(decoder(torch.zeros(200, 1, 4)), rows)
    assert surprise.min() > 0.5 * math.log(2 * math.pi) + math.log(1 / math.sqrt(12)) - 0.01


# --- the term -------------------------------------------------------------------------------------------


def test_the_term_is_what_prediction_says_of_the_target_cells(monkeypatch):
    monkeypatch.setattr("probjepa.tabular.var_network.draw", lambda mean, log_variance, noise: mean)
    layout, rows = encoded(mixed_table())
    network = network_of(layout, PAPER._replace(pred=0.4))
    network.resolve(rows)
    found = network.loss(rows, masks_of(CONTEXT, [TARGET, TARGET], 40))
    hidden = torch.zeros(40, 8, dtype=torch.bool)
    hidden[:, TARGET] = True
    surprise = network.target_decoder.surprise(network._predict(rows, hidden), rows)
    expected = surprise[hidden & network.tokenizer.observed(rows)].mean()
    torch.testing.assert_close(found["pred"], expected)
    # one mask a batch row and the cells of two different masks: the mean over both
    one, other = ([0, 2], [3, 7])
    both = network.loss(rows, masks_of(CONTEXT, [one, other], 40))["pred"]
    singly = [network.loss(rows, masks_of(CONTEXT, [t], 40))["pred"] for t in (one, other)]
    counts = [network.tokenizer.observed(rows)[:, t].sum() for t in (one, other)]
    weighted = sum(v * n for v, n in zip(singly, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(both, weighted)


def test_the_term_against_draws_of_the_prior():
    """−log of the mean likelihood over draws of s_y: numbers are exact, categories MacKay's approximation."""
    layout, rows = encoded(mixed_table())
    network = network_of(layout, PAPER._replace(pred=1.0))
    hidden = torch.zeros(40, 8, dtype=torch.bool)
    hidden[:, TARGET] = True
    with torch.no_grad():
        mean, log_variance = network.predict_latents(rows, hidden)
        decoder = network.target_decoder
        found = decoder.surprise(network._predict(rows, hidden), rows)
        draws = torch.stack(
            [
                -decoder.surprise(decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)), rows)
                for _ in range(1000)
            ]
        )
    expected = -(draws.logsumexp(0) - math.log(1000))
    observed = network.tokenizer.observed(rows)
    numeric = list(layout.numeric)
    gap = (found - expected)[:, numeric]
    assert gap.abs().mean() < 0.02
    categorical = list(layout.categorical)
    gap = (found - expected)[:, categorical][observed[:, categorical]]
    assert gap.abs().mean() < 0.1


def test_only_the_prior_is_asked_to_decode():
    """The term trains context encoder, predictor and decoder; the posterior has no part in it."""
    layout, rows = encoded(mixed_table())
    weights = Weights(rec=0, gen=0, sx=0, z=0, sy=0, anneal_epochs=(0, 0, 0), pred=1.0)
    network = network_of(layout, weights)
    network.loss(rows, masks_of(CONTEXT, [TARGET], 40))["loss"].backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert not [name for name in moved if name.startswith("target_encoder") or "target_head" in name]
    for part in ("context_encoder", "predictor", "predictor_head", "target_decoder", "auxiliary"):
        assert [name for name in moved if name.startswith(part)]


# --- the paper ------------------------------------------------------------------------------------------


def test_without_a_weight_nothing_is_added():
    layout, rows = encoded(mixed_table())
    paper, ours = network_of(layout, PAPER), network_of(layout, PAPER._replace(pred=0.5))
    assert paper.target_decoder.raw_log_variance.shape == ()
    assert not [name for name in paper.state_dict() if "floor" in name]
    masks = masks_of(CONTEXT, [TARGET], 40)
    torch.manual_seed(1)
    losses = paper.loss(rows, masks)
    assert set(losses) == {"loss", "rec", "gen", "kl_sx", "kl_z", "kl_sy"}
    alphas = {"rec": 0.3, "gen": 0.7, "kl_sx": 0.02, "kl_z": 0.03, "kl_sy": 0.05}
    torch.testing.assert_close(losses["loss"], sum(alphas[name] * losses[name] for name in alphas))
    assert set(ours.loss(rows, masks)) == {*losses, "pred"}


def test_published_presets_have_the_papers_loss():
    for name, preset in PRESETS.items():
        expected = (1.0, 10.0) if name == "small" else (0.0, 1.0)
        assert (preset["alpha_pred"], preset["max_grad_norm"]) == expected, name


@pytest.mark.parametrize("setting", [{"alpha_pred": -1.0}, {"max_grad_norm": 0.0}])
def test_settings_out_of_range(setting):
    with pytest.raises(ConfigError, match=r"numbers from 0|positive"):
        VarTJEPA(**TINY, **setting).fit(mixed_table())


def test_a_model_saved_before_the_term_loads(tmp_path):
    table = mixed_table()
    model = VarTJEPA(**TINY, alpha_pred=0.0, max_grad_norm=1.0).fit(table)
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    for part in (config["params"], config["settings"]):
        del part["alpha_pred"], part["max_grad_norm"]
    config.pop("skill", None)
    path.write_text(json.dumps(config))
    again = pj.load(tmp_path / "m")
    for name in ("transform", "score_samples"):
        np.testing.assert_array_equal(getattr(again, name)(table), getattr(model, name)(table))
    assert again.impute(table).table.notna().all().all()


def test_a_saved_model_keeps_its_floors(tmp_path):
    table = mixed_table()
    model = VarTJEPA(**TINY).fit(table)
    assert len(set(model.network_.target_decoder.floor.tolist())) > 1
    model.save(tmp_path / "m")
    again = pj.load(tmp_path / "m")
    np.testing.assert_array_equal(again.score_samples(table), model.score_samples(table))
