"""I-JEPA: its loss and scores against plain loops, what the student may see, and heads of every kind."""

import inspect
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

import probjepa as pj
from probjepa.data.masks import MultiBlockMasks
from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.heads import HEADS
from probjepa.methods.ijepa import IJEPA, PRESETS
from probjepa.methods.token_measures import energy, measures, moments
from probjepa.metrics import energy_score

VIT = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
TINY = {
    "diffusion": {"width": 16, "blocks": 1, "code_width": 8, "steps": 4},
    "flow_matching": {"width": 16, "blocks": 1, "code_width": 8, "steps": 3},
    "autoregressive": {"components": 2, "hidden": [16]},
}


def small(head="gaussian", **settings):
    torch.manual_seed(0)
    options = {"head_options": TINY[head]} if isinstance(head, str) and head in TINY else {}
    model = IJEPA(
        channels=1,
        image_size=16,
        backbone_options=VIT,
        head=head,
        predictor_width=16,
        predictor_depth=2,
        predictor_heads=2,
        score_masks=2,
        **options,
        **settings,
    )
    with torch.no_grad():  # away from the small start, and the teacher away from the student
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return model


def pixels(n=4, seed=0):
    return torch.randint(
        0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def predicted(model, image, context, target):
    """c (Tt, width) of one prepared image (C, H, W) and one target block, token by token."""
    tokens = model.encoder.tokens(image[None], context)[0]
    p = model.predictor
    rows = [p.entry(token) + p.positions[i] for token, i in zip(tokens, context, strict=True)]
    rows += [p.mask_token + p.positions[i] for i in target]
    return p.transformer(torch.stack(rows)[None])[0, len(context) :]


def truth(model, image, target):
    tokens = model.teacher.module.tokens(image[None])[0][target]
    return (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


def normal(model, vector):
    mean, raw = model.head.net(vector).chunk(2, -1)
    return Normal(mean, F.softplus(raw) + 1e-3)


def test_the_loss_equals_a_plain_reference():
    model, x = small().train(), torch.randn(5, 1, 16, 16)
    torch.manual_seed(7)
    terms = model.loss([x])
    torch.manual_seed(7)
    context, targets = model.masks(5)
    losses = []
    for image, seen, blocks in zip(x, context, targets, strict=True):
        for block in blocks:
            prediction = normal(model, predicted(model, image, seen, block))
            losses.append(-prediction.log_prob(truth(model, image, block)).mean())
    torch.testing.assert_close(terms["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    spread = torch.stack([truth(model, image, torch.arange(16)) for image in x]).std(0, correction=0)
    torch.testing.assert_close(terms["target_std"], spread.mean(), rtol=1e-4, atol=1e-5)


def test_every_view_counts_as_an_image():
    model, x = small(), torch.randn(6, 1, 16, 16)
    torch.manual_seed(1)
    one = model.loss([x])
    torch.manual_seed(1)
    two = model.loss(list(x.chunk(2)))
    assert torch.equal(one["loss"], two["loss"])


def test_the_teacher_has_no_gradient_and_follows_the_student():
    model = small(ema_momentum=0.9, ema_schedule="linear").train()
    model.loss([torch.randn(4, 1, 16, 16)])["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    before = [p.clone() for p in model.teacher.parameters()]
    model.after_step(5, 10)
    tau = 0.95  # half way from 0.9 to 1
    for old, new, source in zip(before, model.teacher.parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, tau * old + (1 - tau) * source)


def test_the_student_sees_the_context_alone():
    model, x = small(), torch.randn(1, 1, 16, 16)
    context, targets = model.masks(1, torch.Generator().manual_seed(0))
    changed = x.clone()
    for patch in targets.flatten().tolist():
        row, column = divmod(patch, 4)
        changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    assert torch.equal(model.contexts(x, context, targets), model.contexts(changed, context, targets))
    assert not torch.allclose(model.targets(x), model.targets(changed))
    row, column = divmod(int(context[0, 0]), 4)
    changed = x.clone()
    changed[..., 4 * row, 4 * column] += 1
    assert not torch.allclose(model.contexts(x, context, targets), model.contexts(changed, context, targets))


def test_score_is_the_density_of_the_images_own_tokens():
    model, x = small(), pixels()
    score = model.score_samples(x)
    context, targets = MultiBlockMasks(4)(2, torch.Generator().manual_seed(0))
    spread, entropy = [], []
    for image, found in zip(model.preprocess(x), score, strict=True):
        densities, variances, entropies = [], [], []
        for seen, blocks in zip(context, targets, strict=True):
            for block in blocks:
                prediction = normal(model, predicted(model, image, seen, block))
                densities.append(prediction.log_prob(truth(model, image, block)).mean().item())
                variances.append(prediction.variance.mean().item())
                entropies.append(prediction.entropy().mean().item())
        assert found.item() == pytest.approx(sum(densities) / len(densities), rel=1e-4)
        spread.append(math.sqrt(sum(variances) / len(variances)))
        entropy.append(sum(entropies) / len(entropies))
    assert model.uncertainty(x)["spread"].tolist() == pytest.approx(spread, rel=1e-4)
    assert model.uncertainty(x)["entropy"].tolist() == pytest.approx(entropy, rel=1e-4)
    features = model.features(x)
    assert set(features) == {"h", "log_density", "spread", "entropy"}
    assert torch.equal(features["h"], model.embed(x))
    assert torch.equal(model.score_features(features), score)
    others = model.ood_scores(features)
    assert torch.equal(others["likelihood"], score)
    assert torch.equal(others["spread"], -features["spread"])


def test_posterior_has_the_moments_of_the_mixture():
    model, x = small(), pixels(2)
    context, targets = model._score_masks
    posterior = model.posterior(x)
    assert posterior.batch_shape == (2,) and posterior.event_shape == (16,)
    for row, image in enumerate(model.preprocess(x)):
        each = [
            normal(model, predicted(model, image, seen, block))
            for seen, blocks in zip(context, targets, strict=True)
            for block in blocks
        ]
        means, variances = (torch.cat([getattr(p, name) for p in each]) for name in ("mean", "variance"))
        second = (variances + means.square()).mean(0)
        torch.testing.assert_close(posterior.mean[row], means.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            posterior.variance[row], second - means.mean(0).square(), rtol=1e-3, atol=1e-5
        )


@pytest.mark.filterwarnings("error:.*degrees of freedom:UserWarning")
def test_the_posterior_of_no_images_is_empty_and_warns_of_nothing():
    assert small().posterior(pixels(0)).batch_shape == (0,)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_scores(head):
    model, x = small(head).train(), pixels(3)
    terms = model.loss([model.preprocess(x)])
    terms["loss"].backward()
    assert math.isfinite(terms["loss"].item())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    features = model.features(x)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    kind = "negative_energy_score" if head in ("deterministic", "diffusion") else "log_density"
    assert set(features) - {"entropy"} == {"h", kind, "spread"}
    assert all(torch.isfinite(value).all() for value in features.values())
    assert features[kind].dtype == features["spread"].dtype == torch.float64
    name = "likelihood" if kind == "log_density" else "energy score"
    assert torch.equal(model.ood_scores(features)[name], model.score_samples(x))
    # alone, in another order and in chunks of two: the same
    for other in (
        [model.features(x[i : i + 1])[kind] for i in range(3)],
        [model.features(x.flip(0), batch_size=2)[kind].flip(0)],
    ):
        torch.testing.assert_close(torch.cat(other), features[kind], rtol=1e-4, atol=1e-5)
    assert (features["spread"] == 0).all() == (head == "deterministic")
    posterior = model.posterior(x)
    assert posterior.batch_shape == (3,) and torch.isfinite(posterior.log_prob(torch.zeros(16))).all()


def test_energy_score_is_that_of_the_metrics():
    samples, target = torch.randn(6, 3, 4, 5), torch.randn(3, 4, 5)
    expected = energy_score(samples.flatten(1, 2), target.flatten(0, 1))
    torch.testing.assert_close(energy(samples.double(), target).flatten(), expected)


class Sampled:
    """N(m, s²I) that can only be drawn from, or also has a density."""

    def __init__(self, mean, scale, density):
        self.normal = Normal(mean, scale)
        self.mean = mean
        if density:
            self.log_prob = lambda y: self.normal.log_prob(y).sum(-1)

    def sample(self, shape):
        return self.normal.sample(shape)


@pytest.mark.parametrize("density", [True, False])
def test_the_spread_of_draws_is_that_of_the_distribution(density):
    torch.manual_seed(0)
    scale = torch.tensor([0.3, 1.0, 2.0]).reshape(3, 1, 1).expand(3, 200, 16)
    found = measures(Sampled(torch.randn(3, 200, 16), scale, density), torch.zeros(3, 200, 16), 4)
    # 200 · 16 variances with at least one degree of freedom: a standard error of at most √2/√3200/2 = 1.3 %
    assert found["spread"].tolist() == pytest.approx([0.3, 1.0, 2.0], rel=0.04)
    assert set(found) == {"spread", "log_density" if density else "negative_energy_score"}


def test_moments_of_draws_are_those_of_the_mixture():
    torch.manual_seed(0)
    mean = torch.randn(2, 4000, 3)
    found = moments(Sampled(mean, torch.full_like(mean, 0.5), False), mean, 4)
    torch.testing.assert_close(found["mean"], mean.mean(1))
    expected = 0.25 + mean.var(1, correction=0)
    torch.testing.assert_close(found["variance"], expected, rtol=0.05, atol=0)


def test_what_reference_rows_need_asks_no_head():
    model, x = small("flow_matching"), pixels()
    model.head.forward = None  # calling it would fail
    found = model.features(x, scored=False)
    assert set(found) == {"h"} and torch.equal(found["h"], model.embed(x))


class Laplacian(nn.Module):
    """A head from outside: any distribution with a loss."""

    class Prediction(Independent):
        def loss(self, target):
            return -self.log_prob(target) / target.shape[-1]

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(16, 16)

    def forward(self, context):
        mean = self.net(context)
        return self.Prediction(torch.distributions.Laplace(mean, torch.full_like(mean, 2.0)), 1)


def test_a_head_of_ones_own(tmp_path):
    model, x = small(Laplacian()), pixels()
    model.loss([model.preprocess(x)])["loss"].backward()
    assert model.head.net.weight.grad is not None
    features = model.features(x)
    # Laplace(b): variance 2b², entropy 1 + log 2b
    assert features["spread"].tolist() == pytest.approx([math.sqrt(8)] * 4)
    assert features["entropy"].tolist() == pytest.approx([1 + math.log(4)] * 4)
    assert torch.equal(model.ood_scores(features)["entropy"], -features["entropy"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="built on a head of its user's own"):
        pj.load(tmp_path)
    loaded = pj.load(tmp_path, head=Laplacian())
    torch.testing.assert_close(loaded.features(x), features)
    with pytest.raises(ConfigError, match="a head of your own cannot be built again"):
        model.reinitialised()


def test_a_backbone_of_ones_own():
    torch.manual_seed(0)
    encoder = pj.backbones.build_backbone("vit", channels=1, image_size=16, **VIT)
    model = IJEPA(encoder, channels=1, image_size=16, predictor_width=16)
    assert model.encoder is encoder
    assert math.isfinite(model.loss([torch.randn(4, 1, 16, 16)])["loss"].item())


def test_saved_and_loaded_it_scores_the_same(tmp_path):
    model, x = small("mdn"), pixels()
    model.save_pretrained(tmp_path)
    loaded = pj.load(tmp_path)
    assert torch.equal(loaded.score_samples(x), model.score_samples(x))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_keywords_that_fit_together(name, monkeypatch):
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda weight, **_: weight)  # seconds for a ViT-B
    method, fit = PRESETS[name]["method"], PRESETS[name]["fit"]
    shallow = {"backbone_options": {**method["backbone_options"], "depth": 1}, "predictor_depth": 1}
    model = pj.IJEPA(**{**method, **shallow})
    assert model.embedding_dim == method["backbone_options"]["width"]
    known = set(inspect.signature(pj.fit).parameters)
    assert set(fit) <= known | {"gradient_clip_val"}  # the Trainer's


def test_fit_takes_a_preset(tmp_path):
    model = small()
    before = model.encoder.patch_embedding.weight.clone()
    settings = {**PRESETS["tiny-imagenet"]["fit"], "batch_size": 8}
    pj.fit(model, pixels(16), epochs=2, device="cpu", progress=False, out=tmp_path / "run", **settings)
    assert not torch.equal(before, model.encoder.patch_embedding.weight)
    assert torch.isfinite(pj.load(tmp_path / "run").score_samples(pixels())).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "convnet"}, "ConvNet cannot: use backbone='vit'"),
        ({"head": "gausian"}, "did you mean 'gaussian'"),
        ({"head_options": {"hiden": [8]}}, "did you mean 'hidden'"),
        ({"head_options": {"dim": 8}}, "unknown option of head 'gaussian' 'dim'"),
        ({"head_options": {"context_dim": 8}}, "unknown option of head 'gaussian' 'context_dim'"),
        ({"head": Laplacian(), "head_options": {"hidden": [8]}}, "head's name"),
        ({"ema_momentum": 1.5}, "momentum"),
        ({"ema_schedule": "step"}, "ema_schedule takes 'cosine' or 'linear', got 'step'"),
        ({"predictor_width": 18}, "divisible by 8 heads"),
        ({"score_masks": 0}, "score_masks"),
        ({"score_draws": 1}, "score_draws must be a whole number, at least 2"),
        ({"image_size": 8}, "2×2 patches"),
    ],
)
def test_wrong_settings(settings, message):
    options = {} if "backbone" in settings else {"backbone_options": VIT}
    with pytest.raises(ConfigError, match=message) as error:
        IJEPA(**{"channels": 1, "image_size": 16, **options, **settings})
    assert "\n" not in str(error.value)


def test_wrong_views():
    model = small()
    with pytest.raises(DataError, match="at least one view"):
        model.loss([])
    with pytest.raises(DataError, match="16x16 pixels"):
        model.loss([torch.randn(2, 1, 20, 20)])


@pytest.mark.parametrize("name", ["gaussian", "mdn"])
def test_a_compiled_loss_trains_alike(name, monkeypatch):
    """The masks are drawn outside the graph: how often they are drawn again differs from step to step."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    images = torch.randint(0, 256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    found = []
    for compiled in (False, True):
        model = IJEPA(image_size=32, backbone_options=VIT, head=name, predictor_width=16, predictor_depth=1,
                      predictor_heads=2, seed=0)  # fmt: skip
        pj.fit(model, images, epochs=3, batch_size=8, progress=False, device="cpu", compile=compiled)
        found.append(model.state_dict())
    torch._dynamo.reset()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, msg=key)
