"""Var-JEPA's simulation study: its process, its measures, a run cut very short, and resuming."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiment_tables import measured_by, run, with_budget
from torch.distributions import MultivariateNormal, kl_divergence

from probjepa.errors import ArtifactError, ConfigError
from probjepa_experiments import var_jepa_simulation
from probjepa_experiments.study import RANDOM, Data
from probjepa_experiments.var_jepa_simulation import RAW, STUDY, Simulator, aggregate_gaussianity


def test_simulated_latents_have_the_studys_moments():
    simulator = Simulator(0)
    pairs = simulator.sample(60_000, torch.Generator().manual_seed(0))
    eye, ones = torch.eye(16), torch.ones(16)
    of_s_x = eye + torch.outer(ones, ones)  # the components' means are 1 from theirs on every axis
    assert torch.allclose(pairs.s_x.mean(0), ones, atol=0.03)
    assert torch.allclose(torch.cov(pairs.s_x.T), of_s_x, atol=0.06)
    assert pairs.component.float().mean().item() == pytest.approx(0.5, abs=0.01)
    second = pairs.s_x[pairs.component == 1]
    assert torch.allclose(second.mean(0), 2 * ones, atol=0.03)
    assert torch.allclose(torch.cov(second.T), eye, atol=0.04)
    assert torch.allclose(torch.cov(pairs.z.T), torch.eye(8), atol=0.04)
    # the law of s_y given s_x and z, and with both integrated out
    rest = pairs.s_y - pairs.s_x - pairs.z @ simulator.mixing.T
    assert torch.allclose(torch.cov(rest.T), 0.25 * eye, atol=0.01)
    marginal = of_s_x + simulator.mixing @ simulator.mixing.T + 0.25 * eye
    assert torch.allclose(torch.cov(pairs.s_y.T), marginal, atol=0.1)


def test_observations_are_a_tanh_network_and_noise():
    simulator = Simulator(3, noise=0.3)
    pairs = simulator.sample(20_000, torch.Generator().manual_seed(1))
    for side, (latent, seen) in enumerate(((pairs.s_x, pairs.x), (pairs.s_y, pairs.y))):
        first, second = (w.numpy() for w in simulator.maps[side])
        assert (first.shape, second.shape) == ((64, 16), (32, 64))
        clean = np.tanh(latent.numpy() @ first.T) @ second.T
        rest = seen.numpy() - clean
        assert np.allclose(np.cov(rest.T), 0.09 * np.eye(32), atol=0.01)
        for w in (first, second):  # uniform on ±√(6/(in + out))
            limit = math.sqrt(6 / sum(w.shape))
            assert abs(w).max() <= limit
            assert w.var() == pytest.approx(limit**2 / 3, rel=0.1)


def test_the_matrix_of_the_prediction_has_its_variance():
    values = torch.cat([Simulator(seed).mixing.ravel() for seed in range(60)])
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert values.var().item() == pytest.approx(1 / 8, rel=0.05)


def test_maps_are_frozen_by_the_seed_alone():
    first, again, other = Simulator(5), Simulator(5), Simulator(6)
    first.sample(10, torch.Generator().manual_seed(0))
    s = torch.randn(4, 16)
    assert torch.equal(first.observe(0, s), again.observe(0, s))
    assert not torch.equal(first.observe(0, s), other.observe(0, s))
    assert not torch.equal(first.observe(0, s), first.observe(1, s))


def test_aggregate_kl_is_that_of_the_moments():
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(300, 4, generator=random) @ torch.randn(4, 4, generator=random) + 0.7
    mean, covariance = draws.double().mean(0), torch.cov(draws.double().T)
    standard = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    found = aggregate_gaussianity(draws)
    assert found["aggregate KL"] == pytest.approx(
        kl_divergence(MultivariateNormal(mean, covariance), standard).item(), rel=1e-9
    )
    assert found["mean"] == pytest.approx(np.linalg.norm(draws.numpy().mean(0)), rel=1e-5)
    assert found["covariance"] == pytest.approx(np.linalg.norm(np.cov(draws.numpy().T) - np.eye(4)), rel=1e-5)


@pytest.mark.parametrize("variant", ["A", "G"])
def test_published_figures_are_of_that_definition(variant):
    # near I: KL = ¼‖C − I‖² + ½‖m‖² + O(‖C − I‖³)
    _, kl, covariance, mean = var_jepa_simulation.PUBLISHED[variant]
    assert kl == pytest.approx(covariance**2 / 4 + mean**2 / 2, rel=0.05)


def test_variants_weigh_what_their_names_say():
    settings = {letter: weights for letter, (_, weights) in var_jepa_simulation.VARIANTS.items()}
    assert settings["A"] == {}
    off = {letter: {k for k, v in of.items() if v == 0} for letter, of in settings.items()}
    assert off["E"] == {"alpha_sx"}
    assert off["G"] == {"alpha_rec", "alpha_gen"}
    assert off["I"] == off["J"] == {"alpha_sx", "alpha_z", "alpha_sy"}
    assert settings["J"]["sigreg_weight"] == 10
    assert len({tuple(sorted(of.items())) for of in settings.values()}) == 10


def measured(label, seed, **changes):
    (row,) = (row for row in STUDY.rows if row.label.startswith(label))
    full = var_jepa_simulation.BUDGETS["full"]
    budget = replace(full, settings={**full.settings, **changes})
    cell = STUDY.cell_of(row, budget, "simulation", Data(), seed)
    return var_jepa_simulation.run(cell, Data(), None, budget, False).figures


def test_a_cell_repeats_and_leaves_the_global_generator_alone():
    short = {"samples": 300, "held_out": 200, "epochs": 1, "batch_size": 100}
    state = torch.get_rng_state()
    first, again = (measured("A:", 1, **short) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again
    assert all(math.isfinite(value) for value in first.values())


def test_the_full_bound_informs_and_the_divergences_alone_collapse():
    short = {"samples": 1500, "held_out": 1000, "epochs": 12, "batch_size": 128}
    full, collapsed = (measured(label, 0, **short) for label in ("A:", "G:"))
    assert full["probe"] > 0.97
    assert collapsed["probe"] < 0.7
    assert full["posterior variance"] < 0.97
    assert collapsed["posterior variance"] == pytest.approx(1, abs=0.02)
    # a sample of 1,000 from N(0, I) itself: E‖C − I‖² = 16·17/1,000
    assert collapsed["covariance"] == pytest.approx(math.sqrt(16 * 17 / 1000), rel=0.15)


def test_random_initialisation_is_not_trained_and_raw_pairs_have_no_encoder(monkeypatch):
    short = {"samples": 1500, "held_out": 1000, "batch_size": 128}
    raw = measured(RAW, 0, **short)
    assert set(raw) == {"probe"} and raw["probe"] > 0.97
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("a step was taken"))
        drawn = measured(RANDOM, 0, **short)
    assert 0.5 < drawn["probe"] <= 1
    # untrained, the bound is far below that of a fit
    assert drawn["bound"] < measured("A:", 0, **short, epochs=3)["bound"] - 1


@pytest.fixture
def tiny():
    quick = var_jepa_simulation.BUDGETS["quick"]
    changes = {"samples": 60, "held_out": 50, "epochs": 1, "batch_size": 30}
    return with_budget(STUDY, replace(quick, settings={**quick.settings, **changes}))


def test_a_run_leaves_metrics_and_report_and_resumes(tmp_path, tiny, capsys):
    out = tmp_path / "study"
    metrics = run(tiny, out)
    (table,) = metrics["tables"].values()
    assert [row["label"][0] for row in table["rows"][:5]] == list("AEGIJ")
    assert [row["label"] for row in table["rows"][5:]] == [RANDOM, RAW]
    assert table["rows"][1]["values"]["aggregate KL"]["published"] == 8.374
    assert all(len(row["values"]["probe, %"]["seeds"]) == 2 for row in table["rows"])
    assert len(table["findings"]) == 6
    assert all(finding["judged"] == 2 for finding in table["findings"])
    # seed by seed: a study cut short has every variant of the first ones
    assert [cell["cell"]["seed"] for cell in metrics["cells"]] == [0.0] * 7 + [1.0] * 7
    html = (out / "report.html").read_text()
    assert "10.465" in html and "no reconstruction or generation" in html
    assert "A: full bound" in capsys.readouterr().out

    with pytest.raises(ArtifactError, match="--overwrite"):
        run(tiny, out)

    # cut short: one cell is lost, and another is of other settings
    (out / "metrics.json").unlink()
    (out / "begun.json").write_text(json.dumps({"experiment": tiny.name}))
    first, second, *_ = sorted((out / "cells").glob("*.json"))
    first.unlink()
    other = json.loads(second.read_text())
    other["cell"]["settings"]["noise"] = 9.0
    second.write_text(json.dumps(other))
    ran = []

    def counted(cell, *rest):
        ran.append(cell.key)
        return var_jepa_simulation.run(cell, *rest)

    again = run(measured_by(tiny, counted, roots=("probjepa_experiments.var_jepa_simulation",)), out)
    assert sorted(ran) == [first.stem, second.stem]
    assert again["tables"] == metrics["tables"]


def test_refuses_the_budget_that_it_does_not_have_and_a_folder_of_something_else(tmp_path):
    with pytest.raises(ConfigError, match="quick or full"):
        run(STUDY, tmp_path / "out", budget="small")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        run(STUDY, tmp_path)
