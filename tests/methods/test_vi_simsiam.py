"""VI-SimSiam's loss and scores against the Power Spherical formulas in scipy, and its stop-gradient."""

import numpy as np
import pytest
import torch
from baseline_cases import check_gradients, embeddings, small, view_pair
from scipy.special import digamma, gammaln
from torch import nn

from probjepa.distributions import PowerSpherical
from probjepa.errors import ConfigError
from probjepa.methods.vi_simsiam import power_spherical, vi_simsiam_loss

NARROW = {"projector_dim": 12, "predictor_dim": 6}


def by_hand(direction, kappa, z):
    """log p(z/‖z‖), entropy and KL to uniform of each row, from arXiv 2006.04437's normaliser."""
    direction, kappa, z = (x.detach().double().numpy() for x in (direction, kappa, z))
    kappa = kappa.reshape(-1)
    d = z.shape[1]
    beta = (d - 1) / 2
    alpha = beta + kappa
    log_c = -((alpha + beta) * np.log(2) + gammaln(alpha) - gammaln(alpha + beta) + beta * np.log(np.pi))
    cosine = (direction * z).sum(1) / np.linalg.norm(direction, axis=1) / np.linalg.norm(z, axis=1)
    log_prob = log_c + kappa * np.log1p(cosine)
    entropy = -(log_c + kappa * (np.log(2) + digamma(alpha) - digamma(alpha + beta)))
    kl = -entropy + np.log(2) + d / 2 * np.log(np.pi) - gammaln(d / 2)
    return {"likelihood": log_prob, "entropy": entropy, "kl": kl, "cosine": cosine, "concentration": kappa}


def concentrations(n, seed=0):
    return 20 * torch.rand(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loss_is_its_formula():
    p, z = embeddings(2)
    kappa = concentrations(len(p))
    expected = by_hand(p, kappa, z)
    terms = vi_simsiam_loss(power_spherical(p, kappa), z, 0.7)
    assert terms["nll"].item() == pytest.approx(-expected["likelihood"].mean(), rel=1e-10)
    assert terms["kl"].item() == pytest.approx(expected["kl"].mean(), rel=1e-10)
    assert terms["loss"].item() == pytest.approx((terms["nll"] + 0.7 * terms["kl"]).item(), rel=1e-12)


def test_gradients():
    p, z = embeddings(2, n=4, dim=3)
    check_gradients(
        lambda a, k: vi_simsiam_loss(power_spherical(a, k), z)["loss"], p, concentrations(4) + 0.1
    )
    z = z.requires_grad_()
    vi_simsiam_loss(power_spherical(p.requires_grad_(), concentrations(4)), z)["loss"].backward()
    assert z.grad is None  # the target is held constant, and the loss does depend on it
    step = torch.zeros_like(z)
    step[0, 0] = 1e-5
    losses = [vi_simsiam_loss(power_spherical(p, concentrations(4)), z + s)["loss"] for s in (step, -step)]
    assert abs(losses[0] - losses[1]).item() > 1e-8


def test_the_best_direction_is_the_target_and_the_best_concentration_the_maximum_likelihood_one():
    z = embeddings(1, n=200, dim=4)[0]
    kappa = torch.full((200, 1), 5.0, dtype=torch.float64)
    best = vi_simsiam_loss(power_spherical(z, kappa), z)["loss"]
    for other in embeddings(2, n=200, dim=4, seed=1):
        assert vi_simsiam_loss(power_spherical(other, kappa), z)["loss"] > best
    # samples of a known density: without the KL the loss has its minimum over κ at that density's
    torch.manual_seed(0)
    true = PowerSpherical(torch.tensor([0.0, 0, 1, 0], dtype=torch.float64), torch.tensor(8.0).double())
    z = true.sample((40_000,))
    grid = [4.0, 6.0, 8.0, 10.0, 14.0]
    losses = [
        vi_simsiam_loss(power_spherical(true.loc.expand(len(z), 4), torch.full((len(z), 1), k)), z, 0.0)
        for k in grid
    ]
    assert grid[int(np.argmin([terms["loss"].item() for terms in losses]))] == 8.0


def test_the_method_is_its_loss_and_symmetric():
    model, (x1, x2) = small("vi-simsiam", kl_weight=0.3, **NARROW).train(), view_pair()
    z = model.projector(model.encoder(torch.cat([x1, x2])))
    out = model.predictor(z)
    p, kappa = out[:, :12], nn.functional.softplus(out[:, 12:]) + 1e-3
    expected = by_hand(p, kappa, torch.cat([z[8:], z[:8]]))  # each view is the other's target
    found = model.loss([x1, x2])
    assert found["nll"].item() == pytest.approx(-expected["likelihood"].mean(), abs=1e-4)
    assert found["kl"].item() == pytest.approx(expected["kl"].mean(), abs=1e-4)
    assert found["loss"].item() == pytest.approx((found["nll"] + 0.3 * found["kl"]).item(), abs=1e-5)
    assert found["concentration"].item() == pytest.approx(kappa.mean().item(), rel=1e-4)
    assert not found["concentration"].requires_grad and not found["spread"].requires_grad
    swapped = model.loss([x2, x1])
    assert swapped["loss"].item() == pytest.approx(found["loss"].item(), abs=1e-4)


def test_it_runs_in_float32_under_autocast():
    model = small("vi-simsiam", **NARROW).train()
    h = torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.features_of(h)
        assert model.loss(view_pair())["loss"].dtype == torch.float32
    outside = model.features_of(h)
    assert list(inside) == ["h", "z", "direction", "concentration"]
    for key, value in inside.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, outside[key])


def test_scores_and_uncertainty_are_their_formulas():
    model = small("vi-simsiam", **NARROW).eval()
    images = torch.cat(view_pair()).mul(60).add(128).clamp(0, 255).byte()
    features = model.features(images)
    assert features["concentration"].shape == (16, 1)
    torch.testing.assert_close(features["direction"].norm(dim=1), torch.ones(16))
    expected = by_hand(features["direction"], features["concentration"], features["z"])
    expected["elbo"] = expected["likelihood"] - expected["kl"]
    scores, measures = model.ood_scores(features), model.uncertainty_of_features(features)
    assert list(scores) == ["likelihood", "concentration", "elbo", "cosine"]
    assert list(measures) == ["concentration", "entropy", "kl"]
    for name, value in [*scores.items(), *measures.items()]:
        assert value.shape == (16,) and value.dtype == torch.float64
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert torch.equal(model.score_samples(images), scores["likelihood"])
    assert torch.equal(model.uncertainty(images)["kl"], measures["kl"])
    posterior = model.posterior(images)
    assert (posterior.batch_shape, posterior.event_shape) == ((16,), (12,))
    torch.testing.assert_close(posterior.loc, features["direction"])
    torch.testing.assert_close(posterior.concentration, features["concentration"][:, 0])


def test_scores_are_higher_where_the_prediction_is_surer_and_nearer():
    model = small("vi-simsiam", **NARROW)
    z = embeddings(1, dim=12, dtype=torch.float32)[0]
    near = {"z": z, "direction": nn.functional.normalize(z), "concentration": torch.full((len(z), 1), 9.0)}
    far = near | {"direction": -near["direction"]}
    unsure = near | {"concentration": torch.full((len(z), 1), 0.5)}
    for name in ("likelihood", "elbo", "cosine"):
        assert (model.ood_scores(near)[name] > model.ood_scores(far)[name]).all()
    for name in ("likelihood", "concentration", "elbo"):
        assert (model.ood_scores(near)[name] > model.ood_scores(unsure)[name]).all()
    assert all(v.isfinite().all() for v in model.ood_scores(far).values())


@pytest.mark.parametrize("size", [1e-12, 1e20])
def test_the_cosine_score_knows_no_scale(size):
    model, z = small("vi-simsiam", **NARROW), embeddings(1, dim=12)[0]
    features = {"direction": nn.functional.normalize(z[:, :1] + z), "concentration": torch.ones(len(z), 1)}
    scores = [model.ood_scores(features | {"z": scale * z})["cosine"] for scale in (1.0, size)]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-9, atol=0)


def test_layers_and_wrong_settings():
    model = small("vi-simsiam")
    linears = [m for m in model.predictor if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(2048, 512), (512, 2049)]
    assert isinstance(model.projector[-1], nn.BatchNorm1d) and not model.projector[-1].affine
    with pytest.raises(ConfigError, match="kl_weight"):
        small("vi-simsiam", kl_weight=-1.0)
    with pytest.raises(ConfigError, match="at least 2"):
        small("vi-simsiam", projector_dim=1)
