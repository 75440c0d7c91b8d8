"""The synthetic study: its mixture, its samplers, a run cut very short, and resuming."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiment_tables import measured_by, run, with_budget
from scipy.special import logsumexp
from scipy.stats import energy_distance as scipy_energy_distance
from scipy.stats import multivariate_normal

from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.jacobian import jepa_score
from probjepa.registry import EXPERIMENTS
from probjepa_experiments import gmm_cells, jepa_score_gmm
from probjepa_experiments.gaussian_mixture import GaussianMixture, energy_distance, langevin
from probjepa_experiments.jepa_score_gmm import STUDY


@pytest.mark.parametrize(("dim", "smoothing"), [(1, 0.0), (2, 0.3), (8, 0.0)])
def test_log_density_is_scipys(dim, smoothing):
    mixture = GaussianMixture(dim, smoothing)
    plain = GaussianMixture(dim)
    points = 2 * np.random.default_rng(0).normal(size=(30, dim))
    parts = [
        multivariate_normal(mean.numpy(), covariance.numpy() + smoothing**2 * np.eye(dim)).logpdf(points)
        for mean, covariance in zip(plain.means, plain.covariances, strict=True)
    ]
    expected = logsumexp(parts, axis=0) - math.log(len(parts))
    assert np.allclose(mixture.log_prob(torch.from_numpy(points)), expected, atol=1e-10)


def test_mixture_is_standardised_and_sampled_from_its_density():
    mixture = GaussianMixture(3)
    draws = mixture.sample(40_000, torch.Generator().manual_seed(0))
    within = mixture.covariances.mean(0)
    total = within + torch.einsum("ki,kj->ij", mixture.means, mixture.means) / len(mixture.means)
    assert torch.allclose(mixture.means.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert total.trace().item() == pytest.approx(3)
    assert torch.allclose(draws.mean(0), torch.zeros(3, dtype=torch.float64), atol=0.03)
    assert torch.allclose(torch.cov(draws.T), total, atol=0.04)
    # E[q(X)/p(X)] = 1 for any other density q on the same space
    other = multivariate_normal(np.zeros(3), 0.3 * np.eye(3)).logpdf(draws.numpy())
    assert np.exp(other - mixture.log_prob(draws).numpy()).mean() == pytest.approx(1, abs=0.1)


def test_mixture_refuses_no_dimension():
    with pytest.raises(ConfigError, match="dim is 0"):
        GaussianMixture(0)


def test_energy_distance_against_brute_force_and_scipy():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 3)), random.normal(0.5, 2, (9, 3))
    cross = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    first = np.mean([np.linalg.norm(x[i] - x[j]) for i in range(12) for j in range(12) if i != j])
    second = np.mean([np.linalg.norm(y[i] - y[j]) for i in range(9) for j in range(9) if i != j])
    found = energy_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(2 * cross - first - second, abs=1e-12)
    # scipy's is the root of the version with the pairs of a point with itself, in one dimension
    u, v = random.normal(size=400), random.normal(0.7, 1, 300)
    biased = scipy_energy_distance(u, v) ** 2
    pairs = sum(np.abs(w[:, None] - w).sum() / (len(w) ** 2 * (len(w) - 1)) for w in (u, v))
    found = energy_distance(torch.from_numpy(u)[:, None], torch.from_numpy(v)[:, None])
    assert found == pytest.approx(biased - pairs, abs=1e-10)
    with pytest.raises(DataError, match="energy distance"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))


def test_langevin_finds_a_normal():
    mean = torch.tensor([0.5, -0.3], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(mean, covariance)
    start = torch.full((4000, 2), 2.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = langevin(law.log_prob, start, step=0.25, steps=80, generator=generator, bound=20.0)
    assert torch.allclose(drawn.mean(0), mean, atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=0.05)


def test_langevin_stays_within_its_bound():
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(3000, 1, generator=generator, dtype=torch.float64)
    drawn = langevin(lambda x: 0 * x.sum(1), start, step=0.5, steps=60, generator=generator, bound=1.0)
    # a flat density on [−1, 1]: variance 1/3
    assert drawn.abs().max() <= 1
    assert drawn.var().item() == pytest.approx(1 / 3, abs=0.02)


def test_differentiable_score_is_the_librarys():
    torch.manual_seed(0)
    model = gmm_cells.ResidualMLP(2, 2, 8, 2).double()
    x = torch.randn(20, 2, dtype=torch.float64)
    expected = jepa_score(model, x, latent="normal")
    assert torch.allclose(gmm_cells.differentiable_score(model, x).detach(), expected, atol=1e-9)
    assert torch.autograd.gradcheck(
        lambda points: gmm_cells.differentiable_score(model, points), x[:3].clone().requires_grad_()
    )


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(gmm_cells.LANGEVIN, "chains", 20)
    monkeypatch.setitem(gmm_cells.LANGEVIN, "proposals", 2)
    quick = jepa_score_gmm.BUDGETS["quick"]
    return with_budget(STUDY, replace(quick, settings={**quick.settings, "steps": 3}))


def test_the_study_has_the_cells_of_the_paper():
    full, quick = (STUDY.rows_of(budget) for budget in ("full", "quick"))
    asked = [(row.settings["dim"], row.settings["samples"], row.settings["embedding_dim"]) for row in full]
    assert {(dim, n) for dim, n, _ in asked} == {(d, n) for d in (2, 4, 8, 16) for n in (1e3, 1e4, 1e5)}
    assert [row.settings["dim"] for row in full if not row.settings["steps"]] == [2, 4, 8, 16]
    assert {k for dim, n, k in asked if (dim, n) == (4, 10_000)} == {4, 16, 64}
    assert sum(row.settings["resolution"] == 3 for row in full) == 3
    assert [row.settings["embedding_dim"] for row in quick] == [2, 16, 8]
    assert EXPERIMENTS["jepa-score-gmm"] is STUDY


def claims(words):
    return [finding for finding in STUDY.findings if words in finding.claim]


def test_targets_are_of_the_best_trained_encoder():
    in_two, in_eight = claims("the best encoder of 10,000")

    def look(values):
        return lambda row, column: values[row] if column == jepa_score_gmm.NORMAL else None

    figures = {row.label: 0.99 if "random" in row.label else 0.5 for row in STUDY.rows}
    assert not in_two.holds(look(figures))
    figures["2-D, 10,000 samples, K = 2, 4,000 steps, s = 3"] = 0.91
    assert in_two.holds(look(figures))
    assert not in_eight.holds(look(figures))


def test_the_papers_form_is_judged_at_every_size_and_beside_the_latent_term():
    paper = {row.label: 0.6 for row in STUDY.rows}
    normal = {row.label: 0.65 for row in STUDY.rows}

    def look(row, column):
        return {jepa_score_gmm.PAPER_FORM: paper, jepa_score_gmm.NORMAL: normal}[column][row]

    finds, leaves_out = claims("more than 0.5"), claims("leaving out")
    assert len(finds) == len(leaves_out) == 4
    assert all(claim.holds(look) for claim in finds + leaves_out)
    paper["8-D, 1,000 samples, K = 8, 1,000 steps"] = 0.4
    paper["4-D, random initialisation"] = normal["4-D, random initialisation"] = -0.9
    assert [claim.holds(look) for claim in finds + leaves_out] == 2 * [True, True, False, True]


def test_langevin_samples_are_judged_of_the_best_square_encoder_of_the_plane():
    (claim,) = claims("Langevin")
    best = "2-D, 10,000 samples, K = 2, 10,000 steps, s = 3"
    distances = {jepa_score_gmm.FROM_SCORE: 0.02, jepa_score_gmm.FROM_NORMAL: 0.03}

    def look(row, column):
        return float(row == best) if column == jepa_score_gmm.NORMAL else distances[column] + (row != best)

    assert claim.holds(look)
    distances[jepa_score_gmm.FROM_SCORE] = 0.04
    assert not claim.holds(look)


def test_an_encoder_that_is_not_trained_is_as_it_was_drawn():
    settings = {**jepa_score_gmm.SETTINGS, "dim": 2, "embedding_dim": 2, "width": 8, "steps": 0}
    points = torch.randn(20, 2)
    (model, gaussianity), (again, _) = (gmm_cells.train(settings, points, 0) for _ in range(2))
    assert math.isnan(gaussianity)
    assert torch.equal(model(points), again(points))
    weight = model.linear.weight
    assert torch.allclose(weight @ weight.T, torch.eye(2), atol=1e-6)


def test_quick_run_leaves_metrics_and_report_and_resumes(tmp_path, short, monkeypatch, capsys):
    out = tmp_path / "study"
    metrics = run(short, out)
    assert [cell["cell"]["settings"]["embedding_dim"] for cell in metrics["cells"]] == [2, 16, 8]
    for cell in metrics["cells"]:
        values = [
            of["value"] for key, of in cell["figures"].items() if key.startswith(("pearson", "spearman"))
        ]
        assert len(values) >= 10
        assert all(-1 <= value <= 1 for value in values)
    assert "energy distance/langevin" in metrics["cells"][0]["figures"]
    assert metrics["cells"][2]["figures"]["flipped"]["value"] is not None
    html = (out / "report.html").read_text()
    assert html.count("<svg") + html.count("data:image/svg") >= 3
    assert "K = 16" in capsys.readouterr().out

    with pytest.raises(ArtifactError, match="--overwrite"):
        run(short, out)

    # cut short: one cell is lost, and another is of a study with other settings
    (out / "metrics.json").unlink()
    (out / "begun.json").write_text(json.dumps({"experiment": short.name}))
    first, second, third = sorted((out / "cells").glob("*.json"))
    kept = json.loads(first.read_text())
    second.unlink()
    other = json.loads(third.read_text())
    other["cell"]["settings"]["noise"] = 9.0
    third.write_text(json.dumps(other))
    ran = []
    roots = ("probjepa_experiments.gmm_cells",)
    counted = measured_by(
        short, lambda cell, *rest: (ran.append(cell.key), gmm_cells.run(cell, *rest))[1], roots=roots
    )
    again = run(counted, out)
    assert sorted(ran) == [second.stem, third.stem]
    assert kept["figures"] in [cell["figures"] for cell in again["cells"]]
    assert all(cell["cell"]["settings"]["noise"] < 1 for cell in again["cells"])
    # what was drawn and trained again is what it was
    assert again["tables"] == metrics["tables"]


def test_refuses_a_folder_of_something_else(tmp_path, short):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        run(short, tmp_path)


def test_refuses_the_budget_that_it_does_not_have(tmp_path):
    with pytest.raises(ConfigError, match="quick or full, not 'small': its data are drawn, any CPU will do"):
        run(STUDY, tmp_path / "out", budget="small")


def test_training_makes_embeddings_gaussian():
    small = {"dim": 2, "embedding_dim": 2, "steps": 300, "batch_size": 256, "directions": 4, "width": 16}
    data = 0.3 + 0.5 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    model, gaussianity = gmm_cells.train({**jepa_score_gmm.SETTINGS, **small}, data, 0)
    with torch.no_grad():
        out = model(data)
    assert gaussianity < 2  # 1.06 for a normal
    assert torch.allclose(out.mean(0), torch.zeros(2), atol=0.2)
    assert torch.allclose(torch.cov(out.T), torch.eye(2), atol=0.3)
