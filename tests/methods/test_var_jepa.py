"""Var-JEPA against an independent reference, closed-form evidence, and torch's divergences."""

import doctest
import inspect
import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal, kl_divergence

import probjepa as pj
from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.methods import MODELS, var_jepa
from probjepa.methods.sigreg import sigreg

TERMS = ("rec", "gen", "sx", "z", "sy")
SMALL = {"x_dim": 5, "y_dim": 4, "latent_dim": 3, "z_dim": 2, "hidden": (7,)}


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return pj.VarJEPA(**{**SMALL, **settings})


def pair(n=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 5, generator=generator, dtype=dtype),
        torch.randn(n, 4, generator=generator, dtype=dtype),
    )


# --- the five terms -------------------------------------------------------------------------------------


def apply(network, *inputs):
    """An MLP with the exact GELU, in numpy."""
    h = np.concatenate(inputs, 1)
    for layer in network.layers:
        if isinstance(layer, nn.Linear):
            h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            h = 0.5 * h * (1 + erf(h / math.sqrt(2)))
    return h


def reference(model, x, y, noises, log_scale):
    """Each term of the bound, from the formulas, with loops over nothing."""
    split = lambda out: (out[:, : out.shape[1] // 2], np.exp(out[:, out.shape[1] // 2 :]))  # noqa: E731
    draw = lambda m, v, e: m + np.sqrt(v) * e  # noqa: E731

    def kl(m, v, n=0.0, w=1.0):
        return 0.5 * (np.log(w / v) - 1 + (v + (m - n) ** 2) / w).sum(1)

    def nll(mean, data):
        variance = np.exp(2 * log_scale)
        return 0.5 * ((data - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(1)

    m, v = split(apply(model.encoder, x))
    s_x = draw(m, v, noises[0])
    mz, vz = split(apply(model.auxiliary, s_x))
    z = draw(mz, vz, noises[1])
    my, vy = split(apply(model.target_encoder, s_x, z, y))
    s_y = draw(my, vy, noises[2])
    return {
        "rec": nll(apply(model.x_decoder.network, s_x), x),
        "gen": nll(apply(model.y_decoder.network, s_y), y),
        "sx": kl(m, v),
        "z": kl(mz, vz),
        "sy": kl(my, vy, *split(apply(model.predictor, s_x, z))),
    }


@pytest.mark.parametrize("noise", [None, 0.3])
def test_terms_are_the_formulas(noise):
    model = small(noise=noise).double()
    if noise is None:
        for decoder in (model.x_decoder, model.y_decoder):
            decoder.log_scale.data.fill_(-0.4)
    x, y = pair(dtype=torch.float64)
    torch.manual_seed(3)
    noises = [torch.randn(6, k, dtype=torch.float64).numpy() for k in (3, 2, 3)]
    log_scale = -0.4 if noise is None else np.float32(math.log(0.3)).astype(float)
    expected = reference(model, x.numpy(), y.numpy(), noises, log_scale)
    torch.manual_seed(3)
    terms = model.loss((x, y))
    for name in TERMS:
        assert terms[name].item() == pytest.approx(expected[name].mean(), rel=1e-12), name
    assert terms["loss"].item() == pytest.approx(sum(e.mean() for e in expected.values()), rel=1e-12)
    # the score is minus the unweighted sum, a row each, over the same kind of draws
    generator = torch.Generator().manual_seed(5)
    noises = [torch.randn(k, dtype=torch.float64, generator=generator).numpy() for k in (3, 2, 3)]
    expected = reference(model, x.numpy(), y.numpy(), noises, log_scale)
    found = model.score_samples(x, y, draws=1, seed=5)
    assert np.allclose(found.numpy(), -sum(expected.values()), rtol=1e-12)


def test_weights_weigh():
    x, y = pair()
    weights = dict(zip(TERMS, (0.3, 2.0, 0.0, 0.7, 5.0), strict=True))
    model = small(**{f"alpha_{name}": w for name, w in weights.items()})
    terms = model.loss((x, y))
    expected = sum(w * terms[name].item() for name, w in weights.items())
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_sigreg_is_the_mean_distance_of_characteristic_functions():
    x, y = pair(40)
    model = small(sigreg_weight=10.0)
    torch.manual_seed(0)
    terms = model.loss((x, y))
    torch.manual_seed(0)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    s_x = (mean + torch.exp(0.5 * log_variance) * torch.randn(40, 3)).detach().double()
    torch.randn(40, 2), torch.randn(40, 3)  # z and s_y
    seeded = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    directions = nn.functional.normalize(torch.randn(64, 3, generator=seeded), dim=1).double()
    t = np.linspace(0, 5, 64)
    means = []
    for a in directions.numpy():
        phi = np.exp(1j * t[:, None] * (s_x.numpy() @ a)).mean(1)
        means.append(np.trapezoid(abs(phi - np.exp(-(t**2) / 2)) ** 2, t) / 5)
    assert terms["sigreg"].item() == pytest.approx(np.mean(means), rel=1e-4)
    expected = sum(terms[name].item() for name in TERMS) + 10 * np.mean(means)
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_no_window_and_other_frequencies_of_sigreg():
    z = torch.randn(30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = np.linspace(-5, 5, 127)
    phi = np.exp(1j * t[:, None] * z.numpy()[:, 0]).mean(1)
    expected = 30 * np.trapezoid(abs(phi - np.exp(-(t**2) / 2)) ** 2, t)
    found = sigreg(z, 1, resolution=math.inf, points=64, largest_frequency=5.0)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    for bad in ({"points": 1}, {"largest_frequency": 20.0}, {"resolution": math.inf}):
        with pytest.raises(ConfigError, match="SIGReg"):
            sigreg(z, 1, **bad)


# --- the bound ------------------------------------------------------------------------------------------


def linear_gaussian(predictor_scale, seed=0):
    """A model of linear maps and constant variances, in float64: every law in it is Gaussian."""
    model = small(seed, hidden=(), noise=0.6).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name in ("encoder", "auxiliary", "target_encoder", "predictor"):
            layer = model.get_submodule(name).layers[0]
            half = layer.out_features // 2
            layer.weight.copy_(0.5 * torch.randn(layer.weight.shape, generator=generator).double())
            layer.weight[half:] = 0
            layer.bias.copy_(0.5 * torch.randn(layer.bias.shape, generator=generator).double())
        model.predictor.layers[0].weight *= predictor_scale
    return model


def affine(module):
    layer = (module.network if hasattr(module, "network") else module).layers[0]
    return layer.weight.detach(), layer.bias.detach()


def gaussian(module):
    """Weight, bias and diagonal covariance of a network of constant variance."""
    weight, bias = affine(module)
    half = len(bias) // 2
    return weight[:half], bias[:half], torch.diag(bias[half:].exp())


def evidence(model):
    """Mean and covariance of (x, y), their cross-covariance with (s_x, z, s_y), and these latents' moments."""
    eye = torch.eye(5).double()
    weight, bias, noise = gaussian(model.predictor)
    zero = torch.zeros(5, 3).double()
    prior_mean = torch.cat([torch.zeros(5).double(), bias])
    root = torch.cat([torch.cat([eye, zero], 1), torch.cat([weight, torch.eye(3).double()], 1)])
    within = torch.block_diag(eye, noise)
    prior = root @ within @ root.T  # of (s_x, z, s_y)
    (wx, bx), (wy, by) = affine(model.x_decoder), affine(model.y_decoder)
    out = torch.zeros(9, 8).double()
    out[:5, :3], out[5:, 5:] = wx, wy
    variance = model.x_decoder.log_scale.exp() ** 2
    mean = out @ prior_mean + torch.cat([bx, by])
    covariance = out @ prior @ out.T + variance * torch.eye(9).double()
    return mean, covariance, prior @ out.T, prior_mean, prior


def posterior_of_the_family(model, x, y):
    """q(s_x, z, s_y | x, y) of one row as a joint normal."""
    (we, be, ve), (wa, ba, va), (wt, bt, vt) = (
        gaussian(module) for module in (model.encoder, model.auxiliary, model.target_encoder)
    )
    mean_s = we @ x + be
    mean_z = wa @ mean_s + ba
    mean_y = wt @ torch.cat([mean_s, mean_z, y]) + bt
    root = torch.eye(8).double()
    root[3:5, :3] = wa
    root[5:, :3] = wt[:, :3] + wt[:, 3:5] @ wa
    root[5:, 3:5] = wt[:, 3:5]
    return MultivariateNormal(
        torch.cat([mean_s, mean_z, mean_y]), root @ torch.block_diag(ve, va, vt) @ root.T
    )


def bound(model, *parts, n=60_000):
    """Mean and standard error of the bound of one row, in float64, by draws that are side by side."""
    torch.manual_seed(0)
    with torch.no_grad():
        x, y = (None if part is None else part.expand(n, -1) for part in (*parts, None)[:2])
        terms = model._terms(x, y)
    values = -sum(terms[name] for name in ("rec", "gen", "sx", "z", "sy") if name in terms)
    return values.mean().item(), (values.std() / n**0.5).item()


@pytest.mark.parametrize("seed", [0, 1])
def test_bound_lies_below_the_evidence_by_the_divergence_to_the_true_posterior(seed):
    model = linear_gaussian(1.0, seed)
    mean, covariance, cross, prior_mean, prior = evidence(model)
    data = torch.randn(9, generator=torch.Generator().manual_seed(seed)).double()
    log_p = MultivariateNormal(mean, covariance).log_prob(data).item()
    gain = cross @ torch.linalg.inv(covariance)
    truth = prior - gain @ cross.T
    true_posterior = MultivariateNormal(prior_mean + gain @ (data - mean), 0.5 * (truth + truth.T))
    gap = kl_divergence(posterior_of_the_family(model, data[:5], data[5:]), true_posterior).item()
    found, error = bound(model, data[:5], data[5:])
    assert gap > 0.1
    assert found == pytest.approx(log_p - gap, abs=5 * error)
    assert found < log_p


def test_bound_is_tight_where_the_family_holds_the_posterior():
    # with a predictor that does not look, y tells of s_y alone: the posterior factorises as the family does
    model = linear_gaussian(0.0)
    variance = 0.36

    def conditional(decoder, prior_mean, prior_precision):
        """Diagonal posterior of a latent: the decoder's columns are made orthogonal."""
        weight, bias = affine(decoder)
        precision = torch.diag(prior_precision) + weight.T @ weight / variance
        gain = torch.linalg.solve(precision, weight.T / variance)
        return gain, torch.linalg.solve(precision, prior_precision * prior_mean) - gain @ bias, precision

    with torch.no_grad():
        for decoder in (model.x_decoder, model.y_decoder):
            layer = decoder.network.layers[0]
            layer.weight.copy_(torch.linalg.qr(layer.weight)[0] * torch.tensor([0.5, 1.0, 2.0]))
        encoder, auxiliary, target = (
            module.layers[0] for module in (model.encoder, model.auxiliary, model.target_encoder)
        )
        gain, offset, precision = conditional(
            model.x_decoder, torch.zeros(3).double(), torch.ones(3).double()
        )
        encoder.weight[:3], encoder.bias[:3] = gain, offset
        encoder.bias[3:] = -precision.diagonal().log()
        auxiliary.weight.zero_()
        auxiliary.bias.zero_()
        _, prior_mean, prior_covariance = gaussian(model.predictor)
        gain, offset, precision = conditional(model.y_decoder, prior_mean, 1 / prior_covariance.diagonal())
        target.weight.zero_()
        target.weight[:3, 5:] = gain
        target.bias[:3], target.bias[3:] = offset, -precision.diagonal().log()
    mean, covariance, *_ = evidence(model)
    data = mean + torch.randn(9, generator=torch.Generator().manual_seed(2)).double()
    log_p = MultivariateNormal(mean, covariance).log_prob(data).item()
    found, error = bound(model, data[:5], data[5:])
    assert found == pytest.approx(log_p, abs=5 * error)
    # of x alone: a variational autoencoder's bound, tight too
    log_px = MultivariateNormal(mean[:5], covariance[:5, :5]).log_prob(data[:5]).item()
    alone, error = bound(model, data[:5])
    assert alone == pytest.approx(log_px, abs=5 * error)
    # and any other posterior is worse
    with torch.no_grad():
        encoder.bias[0] += 0.5
    moved, error = bound(model, data[:5], data[5:])
    assert moved == pytest.approx(log_p - 0.5 * 0.25 * (1 + 0.25 / variance), abs=5 * error)


# --- training -------------------------------------------------------------------------------------------


def test_gradients_reach_every_weight():
    model = small()
    model.loss(pair(32))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    # no stop-gradient: the target side's divergence alone moves both of its ends, and the encoder below
    model = small(alpha_rec=0.0, alpha_gen=0.0, alpha_sx=0.0, alpha_z=0.0)
    model.loss(pair(32))["loss"].backward()
    for network in (model.target_encoder, model.predictor, model.encoder, model.auxiliary):
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_annealing():
    x, y = pair()
    model = small(anneal=0.25, alpha_z=2.0)
    total = 40  # T is 10 steps
    for step, factor in [(None, 0.0), (0, 0.1), (4, 0.5), (9, 1.0), (39, 1.0)]:
        if step is not None:
            model.after_step(step, total)
        terms = {name: value.item() for name, value in model.loss((x, y)).items()}
        expected = terms["rec"] + terms["gen"] + factor * (terms["sx"] + 2 * terms["z"] + terms["sy"])
        assert terms["loss"] == pytest.approx(expected, rel=1e-5)
    plain = small()
    plain.after_step(0, 40)
    terms = plain.loss((x, y))
    assert terms["loss"].item() == pytest.approx(sum(terms[n].item() for n in TERMS), rel=1e-6)


def test_annealing_goes_on_from_a_checkpoint():
    model, other = small(anneal=0.5), small(1, anneal=0.5)
    model.after_step(3, 16)
    other.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    first = model.loss(pair())["loss"]
    torch.manual_seed(0)
    assert torch.equal(other.loss(pair())["loss"], first)


def test_a_linear_half_of_it_trains_to_probabilistic_pca():
    # a linear variational autoencoder's optimum is PPCA's: loadings of the leading eigenvalues, and a tight
    # bound (Lucas et al., "Don't blame the ELBO!", 2019)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=generator) @ torch.randn(2, 5, generator=generator)
    x = x + 1 + 0.5 * torch.randn(500, 5, generator=generator)
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))
    noise = values[:2].mean()  # three latents leave two directions to the noise
    log_det = np.log(values[2:]).sum() + 2 * np.log(noise)
    best = -0.5 * (5 * np.log(2 * np.pi) + log_det + 5)
    model = small(hidden=(), alpha_gen=0.0, alpha_z=0.0, alpha_sy=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    batch = (x, torch.zeros(500, 4))
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 600)
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    found = model.score_samples(x, draws=2000).mean().item()
    assert best - 0.05 < found < best + 0.01
    assert model.x_decoder.log_scale.exp().item() ** 2 == pytest.approx(noise, rel=0.1)


def test_loss_is_finite_for_extreme_inputs():
    terms = small().loss((torch.full((2, 5), 1e6), torch.full((2, 4), -1e6)))
    assert all(torch.isfinite(v) for v in terms.values())


def test_loss_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = small(sigreg_weight=1.0).loss(pair())
    assert all(v.dtype == torch.float32 for v in terms.values())


# --- what a model says ----------------------------------------------------------------------------------


def test_every_argument_has_a_default_that_works():
    assert MODELS["var-jepa"] is pj.VarJEPA
    assert pj.VarJEPA.name == "var-jepa"
    parameters = inspect.signature(pj.VarJEPA).parameters
    assert all(p.default is not p.empty for p in parameters.values())
    model = pj.VarJEPA()
    assert set(model.settings) == set(parameters) - {"seed"}
    assert model.embed(torch.zeros(2, 32)).shape == (2, 16)


def test_the_loop_of_the_docstring_runs():
    result = doctest.testmod(var_jepa)
    assert result.attempted > 0
    assert result.failed == 0


def test_embedding_posterior_and_uncertainty_agree():
    model, (x, _) = small().train(), pair()
    posterior = model.posterior(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((6,), (3,))
    assert torch.equal(posterior.mean, model.embed(x))
    assert model(x).requires_grad and not model.embed(x).requires_grad
    assert model.training
    measures = model.uncertainty(x)
    assert all(v.shape == (6,) and v.dtype == torch.float64 for v in measures.values())
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    assert torch.allclose(measures["kl"].float(), kl_divergence(posterior, prior), rtol=1e-5)
    assert torch.allclose(measures["trace"].float(), posterior.variance.sum(1), rtol=1e-5)
    assert torch.allclose(measures["mean_variance"], measures["trace"] / 3)


def test_scores_repeat_and_converge():
    model, (x, y) = small(), pair()
    state = torch.get_rng_state()
    first = model.score_samples(x, y, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert first.dtype == torch.float64
    assert torch.equal(first, model.score_samples(x, y, seed=4))
    assert not torch.equal(first, model.score_samples(x, y, seed=5))
    # the expected log-likelihood of a linear decoder is known: E‖x − Wm − b − Wσε‖² = ‖x − Wm − b‖² + Σ W²σ²
    model = small(hidden=(), noise=0.5)
    posterior = model.posterior(x)
    layer = model.x_decoder.network.layers[0]
    spread = (x - layer(posterior.mean)).square().sum(1) + posterior.variance @ layer.weight.square().sum(0)
    expected = -0.5 * (spread / 0.25 + 5 * math.log(2 * math.pi * 0.25)) - model.uncertainty(x)["kl"]
    assert torch.allclose(model.score_samples(x, draws=10_000), expected, atol=0.1, rtol=0.01)


@pytest.mark.parametrize("given", [1, 2], ids=["x", "x and y"])
def test_a_rows_score_is_the_same_among_other_rows(given):
    model, parts = small(), pair()[:given]
    whole = model.score_samples(*parts, seed=3)
    assert len(whole.unique()) == len(whole) > 3
    for rows in ([2], [3, 2], [2, 2], range(len(whole) - 1, -1, -1)):
        found = model.score_samples(*(part[list(rows)] for part in parts), seed=3)
        torch.testing.assert_close(found, whole[list(rows)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e20, 1e30])
def test_scores_are_the_bound_in_float64(size):
    """Networks of zeros: every divergence is 0, and the decoders are N(0, 1)."""
    model = small()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x, y = (size * part for part in pair())
    for given in ((x,), (x, y)):
        values = torch.cat(given, 1).double()
        expected = -0.5 * (values.square() + math.log(2 * math.pi)).sum(1)
        found = model.score_samples(*given, draws=2)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_divergences_of_scores_are_float64():
    model = small()
    scores = model.score_samples(*(1e22 * part for part in pair()))
    assert scores.isfinite().all() and (scores < -1e40).all()


def test_bernoulli_decoders():
    torch.manual_seed(0)
    model = small(x_likelihood="bernoulli")
    x, y = pair()
    x = (x > 0).float()
    torch.manual_seed(1)
    terms = model.loss((x, y))
    torch.manual_seed(1)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    s_x = mean + torch.exp(0.5 * log_variance) * torch.randn(6, 3)
    expected = -Bernoulli(logits=model.x_decoder.network(s_x)).log_prob(x).sum(1).mean()
    assert terms["rec"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(DataError, match="Bernoulli"):
        model.loss((x + 0.5, y))


# --- saving, and networks of the user's own -------------------------------------------------------------


def test_it_survives_saving(tmp_path):
    model, (x, y) = small(anneal=0.5, noise=0.2, sigreg_weight=2.0), pair()
    model.after_step(1, 8)
    model.save_pretrained(tmp_path)
    for load in (pj.load, pj.VarJEPA.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is pj.VarJEPA
        assert loaded.settings == model.settings
        assert torch.equal(loaded.embed(x), model.embed(x))
        assert torch.equal(loaded.score_samples(x, y), model.score_samples(x, y))
        assert torch.equal(loaded.anneal_factor, model.anneal_factor)
    with pytest.raises(ArtifactError, match="holds a VarJEPA, not a VJE"):
        pj.VJE.from_pretrained(tmp_path)


class ClassDecoder(nn.Module):
    """A likelihood of the user's own: y is a class."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, s_y):
        return Categorical(logits=self.linear(s_y))


class ClassTarget(nn.Module):
    """A target encoder of one's own: it embeds the class before it looks at it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(4, 6), nn.Linear(11, 6)

    def forward(self, s_x, z, y):
        return self.linear(torch.cat([s_x, z, self.embedding(y)], 1))


def own_networks():
    return {
        "encoder": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 6)),
        "x_decoder": Image(),
        "target_encoder": ClassTarget(),
        "y_decoder": ClassDecoder(),
    }


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 64)

    def forward(self, s_x):
        return Normal(self.linear(s_x).reshape(-1, 1, 8, 8), 1.0)


def test_networks_of_ones_own(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 4
    model = small(networks=own_networks())
    terms = model.loss((x, y))
    terms["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert math.isfinite(terms["loss"].item())
    model.save_pretrained(tmp_path)
    for load in (pj.load, pj.VarJEPA.from_pretrained):
        loaded = load(tmp_path, networks=own_networks())
        assert torch.equal(loaded.embed(x), model.embed(x))
        assert torch.equal(loaded.score_samples(x, y), model.score_samples(x, y))
        for wrong in (None, {"encoder": nn.Linear(1, 1)}):
            with pytest.raises(ArtifactError, match="encoder, target_encoder, x_decoder, y_decoder"):
                load(tmp_path, networks=wrong)


def test_a_model_without_networks_of_ones_own_takes_none(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="of its user's own: none"):
        pj.load(tmp_path, networks={"encoder": nn.Linear(5, 6)})


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number"),
        ({"hidden": (8, 0)}, r"hidden\[1\]"),
        ({"noise": 0.3, "x_likelihood": "bernoulli", "y_likelihood": "bernoulli"}, "both are Bernoulli"),
        ({"alpha_sx": -1.0}, "alpha_sx"),
        ({"sigreg_weight": math.nan}, "sigreg_weight"),
        ({f"alpha_{name}": 0.0 for name in TERMS}, "every weight is 0"),
        ({"anneal": 1.5}, "anneal"),
        ({"noise": 0.0}, "noise"),
        ({"x_likelihood": "gausian"}, "takes 'gaussian' or 'bernoulli', got 'gausian'"),
        ({"networks": {"encoderr": nn.Linear(5, 6)}}, "did you mean 'encoder'"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        small(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(3, 5),), "takes a batch"),
        ((torch.zeros(3, 5), torch.zeros(2, 4)), "3 rows and y 2"),
        ((torch.zeros(3, 6), torch.zeros(3, 4)), r"x has shape \(3, 6\)"),
        ((torch.zeros(3, 5), torch.zeros(3, 1)), r"y has shape \(3, 1\)"),
        ((torch.zeros(0, 5), torch.zeros(0, 4)), "empty"),
        ((torch.tensor([[0.0] * 5, [math.nan] * 5]), torch.zeros(2, 4)), "NaN or Inf in 1 of 2"),
    ],
)
def test_refuses_data(batch, message):
    with pytest.raises(DataError, match=message) as error:
        small().loss(batch)
    assert "\n" not in str(error.value)


def test_arrays_and_no_rows_at_all():
    model, (x, y) = small(), pair()
    for given in (x.numpy().astype("float64"), x.tolist()):
        assert torch.equal(model.embed(given), model.embed(x))
        assert torch.equal(model.posterior(given).mean, model.posterior(x).mean)
        assert torch.equal(model.score_samples(given, y.numpy()), model.score_samples(x, y))
    assert torch.equal(model.uncertainty(x.numpy())["kl"], model.uncertainty(x)["kl"])
    assert model.loss((x.numpy(), y.numpy()))["loss"].isfinite()
    assert model.embed(x[:0]).shape == (0, model.latent_dim)
    assert model.score_samples(x[:0]).shape == model.score_samples(x[:0], y[:0]).shape == (0,)
    with pytest.raises(DataError, match="one number"):
        model.embed(torch.tensor(3.0))


def test_refuses_networks_that_do_not_fit():
    with pytest.raises(DataError, match=r"'encoder' returned shape \(6, 3\)"):
        small(networks={"encoder": nn.Linear(5, 3)}).loss(pair())
    with pytest.raises(DataError, match=r"Categorical of shape \(6,\)"):
        small(networks={"y_decoder": ClassDecoder()}).loss(pair())
    with pytest.raises(ConfigError, match="draws"):
        small().score_samples(pair()[0], draws=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, None], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_every_type_works_and_is_finite_far_away(dtype, size):
    """None: under bfloat16 autocast."""
    torch.manual_seed(0)
    model = pj.VarJEPA(x_dim=5, y_dim=4, hidden=(8,)).to(dtype or torch.float32)
    pairs = [size * torch.randn(6, 5), size * torch.randn(6, 4)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is None):
        terms = model.loss(pairs)
        embedding = model.embed(pairs[0])
    terms["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for value in (*terms.values(), embedding):
        assert value.isfinite().all()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
