"""VJE's loss, scores and uncertainty against plain references written from the paper's formulas."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from probjepa import VJE
from probjepa.distributions import PolarStudentT
from probjepa.errors import ConfigError, DataError
from probjepa.methods.vje import gaussian_kl

N, D = 5, 6
INF = math.inf


class Lookup(nn.Module):
    """An "encoder" whose embeddings are free parameters: row i for image i, whatever its pixels."""

    def __init__(self, rows=2 * N, dim=D):
        super().__init__()
        self.embedding_dim = dim
        self.weight = nn.Parameter(torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)))

    def forward(self, images):
        return self.weight[: len(images)].clone()


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (4, D)}, **settings)


def two_views(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 1, 8, 8, generator=generator) for _ in range(2)]


def pixels(n, seed=0, size=8):
    return torch.randint(
        0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def spread(model):
    """Give the inference network weights large enough that μ and σ² differ between inputs and features."""
    with torch.no_grad():
        model.inference.mean.weight.mul_(3)
        model.inference.raw_variance.weight.mul_(3)
    return model


# --- the plain reference: one sample at a time, in float64, as the formulas are written -----------------


def kernel(d2, df, dim):
    return 0.5 * d2 if df == INF else 0.5 * (df + dim) * math.log(1 + d2 / df)


def directional_nll(h, z, variance, df, center=False):
    if center:
        variance = variance / np.exp(np.log(variance).mean())
    dim = len(h)
    u, s = h / np.linalg.norm(h), z / np.linalg.norm(z)
    theta = math.acos(np.clip(u @ s, -1, 1))
    v = theta / math.sin(theta) * (u - math.cos(theta) * s)
    precision = np.diag(1 / variance)
    delta2 = v @ precision @ v - (s @ precision @ v) ** 2 / (s @ precision @ s)
    log_det = np.log(variance).sum() + math.log(s @ precision @ s)
    jacobian = (dim - 2) * math.log(math.sin(theta) / theta)
    return kernel(delta2, df, dim - 1) + 0.5 * log_det + jacobian


def radial_nll(h, z, df):
    return kernel((np.linalg.norm(h) - np.linalg.norm(z)) ** 2, df, 1)


def standard_nll(h, z, variance, df):
    """From scipy's density, less the constant of the loss."""
    if df == INF:
        constant = stats.norm.logpdf(0) * len(h)
        return constant - stats.norm.logpdf(h, z, np.sqrt(variance)).sum()
    constant = stats.multivariate_t.logpdf(np.zeros(len(h)), shape=np.eye(len(h)), df=df)
    return constant - stats.multivariate_t.logpdf(h, z, np.diag(variance), df=df)


def kl_to_prior(mean, variance):
    return 0.5 * sum(m * m + v - math.log(v) - 1 for m, v in zip(mean, variance, strict=True))


def reference_terms(model, h, target, mean, variance, noise):
    """Every term of the loss for embeddings of both views stacked, (2N, D)."""
    s = model.settings
    total = len(h)
    terms = {"directional": 0.0, "radial": 0.0, "nll": 0.0, "kl": 0.0}
    for i in range(total):
        other = target[(i + total // 2) % total]
        draws = [mean[i] + np.sqrt(variance[i]) * e[i] for e in noise] if len(noise) else [mean[i]]
        for z in draws:
            weight = 1 / (total * len(draws))
            if s["likelihood"] == "standard":
                terms["nll"] += weight * standard_nll(other, z, variance[i], s["df"])
            else:
                terms["directional"] += weight * directional_nll(
                    other, z, variance[i], s["df"], s["center_log_variance"]
                )
                terms["radial"] += weight * radial_nll(other, z, s["df"])
        terms["kl"] += kl_to_prior(mean[i], variance[i]) / total
    kept = {"nll"} if s["likelihood"] == "standard" else {k for k in ("directional", "radial") if s[k]}
    terms = {k: v for k, v in terms.items() if k in kept | {"kl"}}
    return {
        **terms,
        "loss": sum(terms[k] for k in kept) + s["kl_weight"] * terms["kl"],
        "mean_variance": variance.mean(),
    }


ABLATIONS = [
    {},
    {"df": 3},
    {"df": 20.0},
    {"df": INF},
    {"kl_weight": 0},
    {"kl_weight": 0.3},
    {"directional": False},
    {"radial": False},
    {"draws": 0},
    {"draws": 4},
    {"draws": 16},
    {"variance": "isotropic"},
    {"likelihood": "standard"},
    {"likelihood": "standard", "df": INF},
    {"likelihood": "standard", "df": 7, "draws": 4, "variance": "isotropic"},
    {"center_log_variance": True},
    {"target": "ema"},
    {"target": "ema-averaged"},
    {"target": "ema", "df": INF, "draws": 0, "kl_weight": 2.0},
    {"hidden_dim": 16},
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_loss_is_the_plain_reference(settings):
    model = spread(small(**settings))
    if model.target is not None:  # a teacher that has drifted from its student
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.mul_(1.2)
    views = two_views()
    torch.manual_seed(3)
    found = model.loss(views)

    stacked = torch.cat(views)
    draws = model.settings["draws"]
    torch.manual_seed(3)
    noise = torch.randn(draws, 2 * N, D) if draws else []
    with torch.no_grad():
        h = model.encoder(stacked)
        mean, variance = model.inference(h)
        target = h if model.target is None else model.target.module(stacked)
    arrays = [x.double().numpy() for x in (h, target, mean, variance)]
    noise = [e.double().numpy() for e in noise]
    expected = reference_terms(model, *arrays, noise)

    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == ()
        assert found[name].item() == pytest.approx(value, rel=2e-4, abs=2e-4), name


@pytest.mark.parametrize(("target", "own_batch"), [("ema", True), ("ema-averaged", False)])
def test_the_teacher_normalises_by_its_own_batch_or_by_averaged_statistics(target, own_batch):
    model = small(target=target).train()
    before = copy.deepcopy(model.target.module).train(own_batch)
    h = {}
    model.target.module.register_forward_hook(
        lambda m, x, out: h.update(x=x[0], out=out, training=m.training)
    )
    model.loss(two_views())
    assert h["training"] == own_batch and not h["out"].requires_grad
    torch.testing.assert_close(before(h["x"]), h["out"])
    alone = before.eval()(h["x"][:1])  # batch statistics make a row depend on others
    assert torch.allclose(alone, h["out"][:1], atol=1e-5) != own_batch


@pytest.mark.parametrize(
    "settings", [{}, {"draws": 4}, {"likelihood": "standard"}, {"target": "ema"}], ids=str
)
def test_loss_is_symmetric_in_the_views(settings, monkeypatch):
    model = small(**settings)
    first, second = two_views()
    noise = torch.randn(model.draws, 2 * N, D, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: noise.reshape(shape))
    one = model.loss([first, second])
    noise = torch.cat(noise.chunk(2, 1)[::-1], 1)
    other = model.loss([second, first])
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_draws_and_another_does_not():
    model, views = small(), two_views()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model.loss(views)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


# --- gradients ------------------------------------------------------------------------------------------


def lookup_model(**settings):
    """A model whose posterior ignores h: what reaches the embeddings comes by the observation alone."""
    model = VJE(Lookup(), channels=1, image_size=8, draws=0, **settings)
    with torch.no_grad():
        for head in (model.inference.mean, model.inference.raw_variance):
            head.weight.zero_()
        model.inference.mean.bias.copy_(torch.linspace(-1, 2, D))
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"likelihood": "standard"}, {"target": "ema"}, {"df": INF}], ids=str
)
def test_no_gradient_flows_through_the_observation(settings):
    model = lookup_model(**settings)
    views = two_views()
    model.loss(views)["loss"].backward()
    assert model.inference.mean.bias.grad.abs().max() > 1e-3
    assert torch.count_nonzero(model.encoder.weight.grad) == 0
    # the observation does matter to the loss: with its gradient it would have moved the embeddings
    h = model.encoder.weight.detach().clone().requires_grad_()
    mean, variance = model.inference(h.detach())
    model.likelihood(mean, variance).nll(h).sum().backward()
    assert h.grad.abs().max() > 1e-3


@pytest.mark.parametrize("likelihood", ["polar", "standard"])
def test_the_likelihoods_scale_is_the_posteriors_and_trains_it(likelihood):
    """By finite differences of the plain reference: raising σ² of an input changes its likelihood too."""
    model = lookup_model(likelihood=likelihood, kl_weight=0.0)
    model.loss(two_views())["loss"].backward()
    h = model.encoder.weight.detach().double().numpy()
    with torch.no_grad():
        mean, variance = (x.double().numpy() for x in model.inference(model.encoder.weight))
    raw = model.inference.raw_variance.bias.detach().double().numpy()

    def loss(step):
        sigma2 = variance + np.logaddexp(0, raw + step) - np.logaddexp(0, raw)
        return reference_terms(model, h, h, mean, sigma2, [])["loss"]

    each = np.eye(D) * 1e-4
    slopes = [(loss(e) - loss(-e)) / 2e-4 for e in each]
    assert np.abs(slopes).max() > 1e-2
    found = model.inference.raw_variance.bias.grad.numpy()
    np.testing.assert_allclose(found, slopes, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("target", ["stop-gradient", "ema"])
def test_gradients_reach_the_encoder_and_the_inference_network_alone(target):
    model = small(target=target)
    model.loss(two_views())["loss"].backward()
    for name, p in model.named_parameters():
        if name.startswith("target."):
            assert not p.requires_grad
            assert p.grad is None
        else:
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name
    assert any(name.startswith("target.") for name, _ in model.named_parameters()) == (target == "ema")


def test_after_step_moves_the_teacher_along_the_cosine():
    model = small(target="ema", ema_momentum=0.9)
    before = [p.clone() for p in model.target.module.parameters()]
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    model.after_step(5, 20)
    tau = 1 - 0.1 * (1 + math.cos(math.pi * 5 / 20)) / 2
    for old, new, source in zip(
        before, model.target.module.parameters(), model.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, tau * old + (1 - tau) * source, rtol=0, atol=1e-6)
    small().after_step(5, 20)  # without a teacher there is nothing to do


def test_autocast_leaves_the_likelihood_in_float32():
    model, views = spread(small(target="ema")), two_views()
    seen = {}
    model.encoder.register_forward_hook(lambda m, x, out: seen.update(h=out))
    model.target.module.register_forward_hook(lambda m, x, out: seen.update(target=out))
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        # as a backbone that ends in a matrix product under autocast returns it
        model.encoder.register_forward_hook(lambda m, x, out: out.bfloat16())
        terms = model.loss(views)
    assert all(value.dtype == torch.float32 for value in terms.values())
    h = seen["h"].detach().bfloat16().float()
    mean, variance = (x.detach().double().numpy() for x in model.inference(h))
    torch.manual_seed(3)
    noise = [torch.randn(1, 2 * N, D)[0].double().numpy()]
    arrays = h.double().numpy(), seen["target"].double().numpy(), mean, variance
    expected = reference_terms(model, *arrays, noise)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=2e-4, abs=2e-4), name


# --- the boundary and the prior -------------------------------------------------------------------------


def test_gaussian_isotropic_limit_is_the_cosine_loss():
    dim, sigma2 = 8, 1e-4
    model = VJE(Lookup(dim=dim), channels=1, image_size=8, df=INF, draws=0)
    rng = np.random.default_rng(0)
    s = rng.normal(size=dim)
    s /= np.linalg.norm(s)
    tangent = rng.normal(size=dim)
    tangent -= tangent @ s * s
    tangent /= np.linalg.norm(tangent)
    angles = np.array([0.0, 1e-3, 5e-3, 1e-2, 2e-2])
    u = np.cos(angles)[:, None] * s + np.sin(angles)[:, None] * tangent
    likelihood = model.likelihood(torch.tensor(2.5 * s), torch.full((dim,), sigma2, dtype=torch.float64))
    nll = likelihood.directional_nll(torch.tensor(0.7 * u)).numpy()
    cosine_loss = (1 - u @ s) / sigma2
    np.testing.assert_allclose(nll - nll[0], cosine_loss, rtol=1e-3, atol=1e-9)


def test_kl_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(4, 3, D, generator=generator, dtype=torch.float64)
    variance = torch.rand(4, 3, D, generator=generator, dtype=torch.float64) + 1e-3
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Independent(Normal(mean, variance.sqrt()), 1), Independent(prior, 1))
    torch.testing.assert_close(gaussian_kl(mean, variance), expected)


# --- posterior, scores, uncertainty ---------------------------------------------------------------------


def test_posterior_has_the_inference_networks_moments():
    model, x = spread(small()), pixels(7)
    posterior = model.posterior(x)
    assert posterior.batch_shape == (7,)
    assert posterior.event_shape == (D,)
    mean, variance = model.inference(model.embed(x))
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, variance)
    torch.manual_seed(0)
    draws = posterior.rsample((20_000,))
    error = (variance / len(draws)).sqrt()
    assert ((draws.mean(0) - mean).abs() < 6 * error).all()
    assert ((draws.var(0) / variance - 1).abs() < 6 * math.sqrt(2 / len(draws))).all()


def log_density(h, z, variance, df, standard):
    """scipy's densities: the standard one, or the tangent coordinates', the Jacobian's and the radius's."""
    scale = np.diag(variance)
    if standard:
        return (
            stats.multivariate_normal.logpdf(h, z, scale)
            if df == INF
            else stats.multivariate_t.logpdf(h, z, scale, df=df)
        )
    s, u = z / np.linalg.norm(z), h / np.linalg.norm(h)
    theta = math.acos(np.clip(u @ s, -1, 1))
    basis = np.linalg.svd(s[None])[2][1:].T  # of the tangent space at s
    x, shape = basis.T @ (theta / math.sin(theta) * u), basis.T @ scale @ basis
    r = np.linalg.norm(h) - np.linalg.norm(z)
    if df == INF:
        parts = stats.multivariate_normal.logpdf(x, None, shape) + stats.norm.logpdf(r)
    else:
        parts = stats.multivariate_t.logpdf(x, None, shape, df=df) + stats.t.logpdf(r, df)
    return parts - (len(h) - 2) * math.log(math.sin(theta) / theta)


@pytest.mark.parametrize(("likelihood", "df"), [*product(["polar", "standard"], [1.0, 7.0, INF])])
def test_score_is_scipys_log_density_at_the_posterior_mean(likelihood, df):
    model, x = spread(small(likelihood=likelihood, df=df)), pixels(6)
    score = model.score_samples(x)
    assert score.shape == (6,)
    assert score.dtype == torch.float64
    features = {k: v.double().numpy() for k, v in model.features(x).items()}
    for i in range(6):
        expected = log_density(
            features["h"][i], features["mu"][i], features["variance"][i], df, likelihood == "standard"
        )
        assert score[i].item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("settings", [{}, {"df": 7.0}, {"center_log_variance": True}], ids=str)
def test_uncertainty_by_its_definitions(settings):
    model, x = spread(small(**settings)), pixels(6)
    found = model.uncertainty(x)
    assert all(value.shape == (6,) and value.dtype == torch.float64 for value in found.values())
    f = {k: v.double().numpy() for k, v in model.features(x).items()}
    h, mu, var = f["h"], f["mu"], f["variance"]
    center = model.center_log_variance
    expected = {
        "mean_variance": var.mean(1),
        "trace": var.sum(1),
        "anisotropy": stats.variation(var, axis=1),
        "kl": [kl_to_prior(*row) for row in zip(mu, var, strict=True)],
        "directional_nll": [directional_nll(*row, model.df, center) for row in zip(h, mu, var, strict=True)],
        "radial_nll": [radial_nll(*row, model.df) for row in zip(h, mu, strict=True)],
        "h_norm": np.linalg.norm(h, axis=1),
        "mu_norm": np.linalg.norm(mu, axis=1),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-8, err_msg=name)


def test_isotropic_variance_has_no_anisotropy():
    assert small(variance="isotropic").uncertainty(pixels(3))["anisotropy"].abs().max() < 1e-6


def test_predictive_score_is_the_mean_density_under_the_reference():
    model = spread(small(df=3.0))
    x, reference = pixels(6, seed=1), pixels(20, seed=2)
    score = model.score_samples(x, score="predictive", reference=reference)
    assert score.shape == (6,)
    mixture = model.predictive(reference)
    h = model.embed(x).double()
    known = {k: v.double() for k, v in model.features(reference).items()}
    variance = mixture.scale * known["variance"].mean(0)
    each = PolarStudentT(known["h"], variance.expand_as(known["h"]), 3.0).log_prob(h[:, None])
    expected = each.logsumexp(1) - math.log(20)
    torch.testing.assert_close(score, expected, rtol=1e-8, atol=1e-8)
    encoded = model.predictive(model.features(reference))  # images, or what was encoded before
    assert torch.equal(encoded.log_prob(h), mixture.log_prob(h))


@pytest.mark.parametrize(("count", "skip"), [(1499, 0), (1500, 1), (2600, 2)])
def test_of_many_reference_rows_each_images_nearest_are_left_out(count, skip, monkeypatch):
    """Against the density of each component: M/1000 rounded, less one, of the largest are not in the mean."""
    monkeypatch.setattr("probjepa.distributions.PolarStudentTMixture.fit_scale", lambda self: self)
    model = small(df=3.0)
    rows = torch.randn(count + 3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h, x = rows[3:], rows[:3]
    variance = 0.5 + torch.rand(count, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    each = PolarStudentT(h, variance.mean(0).expand_as(h), 3.0).log_prob(x[:, None]).sort(1).values
    kept = each[:, : count - skip]
    expected = kept.logsumexp(1) - math.log(count - skip)
    found = model.predictive({"h": h, "variance": variance}).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_scores_are_signed_so_that_higher_is_more_typical():
    """The posterior's KL as torch has it, and the others against the measures that they are made of."""
    model, x = spread(small()), pixels(7)
    features = model.features(x)
    q = Normal(features["mu"].double(), features["variance"].double().sqrt())
    kl = kl_divergence(Independent(q, 1), Independent(Normal(torch.zeros_like(q.mean), 1.0), 1))
    scores, variance = model.ood_scores(features), features["variance"].double().numpy()
    torch.testing.assert_close(scores["kl"], kl)
    np.testing.assert_allclose(scores["mean variance"], -variance.mean(1))
    np.testing.assert_allclose(scores["anisotropy"], stats.variation(variance, axis=1))
    mean, h = (features[key].double().numpy() for key in ("mu", "h"))
    radial = [radial_nll(*pair, 1.0) for pair in zip(h, mean, strict=True)]
    directional = [directional_nll(*row, 1.0) for row in zip(h, mean, variance, strict=True)]
    np.testing.assert_allclose(scores["radial"], -np.array(radial), rtol=1e-6)
    np.testing.assert_allclose(scores["directional"], -np.array(directional), rtol=1e-6)


def test_predictive_score_refuses_the_references_own_rows():
    model, x = small(), pixels(6)
    with pytest.raises(DataError, match="2 of 3 images to score are in the reference") as error:
        model.score_samples(torch.cat([x[:2], pixels(1, seed=9)]), score="predictive", reference=x)
    assert "\n" not in str(error.value)


def test_predictive_score_needs_a_reference_of_two_different_rows():
    model = small()
    for reference in (pixels(1), pixels(1).expand(3, -1, -1, -1)):
        with pytest.raises(DataError, match="at least 2") as error:
            model.score_samples(pixels(2, seed=3), score="predictive", reference=reference)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"score": "likelyhood"}, "did you mean 'likelihood'"),
        ({}, {"score": "predictive"}, "give both or neither"),
        ({}, {"reference": True}, "give both or neither"),
        ({"df": INF}, {"score": "predictive", "reference": True}, "finite df"),
        ({"likelihood": "standard"}, {"score": "predictive", "reference": True}, "likelihood='polar'"),
    ],
)
def test_wrong_scores(settings, arguments, message):
    if "reference" in arguments:
        arguments = {**arguments, "reference": pixels(4, seed=5)}
    with pytest.raises(ConfigError, match=message) as error:
        small(**settings).score_samples(pixels(2), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"df": 0}, "df must be positive"),
        ({"df": math.nan}, "df takes a finite number or 'inf', got 'nan'"),
        ({"df": "one"}, "df takes a number or 'inf', got 'one'"),
        ({"kl_weight": -1}, "kl_weight"),
        ({"kl_weight": INF}, "kl_weight"),
        ({"draws": -1}, "draws must be a whole number"),
        ({"draws": 1.5}, "draws takes a whole number"),
        ({"variance": "full"}, "'diagonal' or 'isotropic'"),
        ({"likelihood": "normal"}, "'polar' or 'standard'"),
        ({"target": "teacher"}, "'stop-gradient' or 'ema'"),
        ({"target": "ema", "ema_momentum": 1.1}, "momentum"),
        ({"ema_momentum": 0.9}, "averaged encoder: set target='ema', or leave it out"),
        ({"hidden_dim": 1}, "hidden_dim"),
        ({"hidden_dim": 2.5}, "hidden_dim"),
        ({"directional": False, "radial": False}, "keep one of them"),
        ({"likelihood": "standard", "radial": False}, "leave them at their defaults"),
        ({"likelihood": "standard", "center_log_variance": True}, "leave them at their defaults"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        small(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shapes", [[4], [4, 4, 2], [4, 2]])
def test_loss_takes_two_or_more_views_of_one_shape(shapes):
    with pytest.raises(DataError, match="two or more views of the same images"):
        small().loss([torch.zeros(n, 1, 8, 8) for n in shapes])


def test_without_its_weight_the_kl_is_left_out():
    model = small(kl_weight=0.0)
    with torch.no_grad():
        model.inference.mean.bias.fill_(1e20)
    terms = model.loss(two_views())
    assert terms["kl"].isinf() and terms["loss"].isfinite()


def test_no_images_have_no_uncertainty_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = VJE("convnet", image_size=16, seed=0)
    none = torch.zeros(0, model.embedding_dim)
    found = model.uncertainty_of_features({"h": none, "mu": none, "variance": none})
    assert {tuple(of.shape) for of in found.values()} == {(0,)} and not recwarn.list
