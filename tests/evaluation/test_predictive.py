"""The figures of predictive heads against closed forms, for heads whose predictions are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import gamma
from torch import nn

from probjepa.data import open_images
from probjepa.errors import DataError
from probjepa.evaluation import evaluate
from probjepa.evaluation.predictive import evaluate_predictions, target_std
from probjepa.heads import HEADS, MixtureDensity
from probjepa.heads.gaussian import Gaussian, GaussianPrediction
from probjepa.methods.ijepa import IJEPA

VIT = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
TINY = {
    "diffusion": {"width": 16, "blocks": 1, "code_width": 8, "steps": 4},
    "flow_matching": {"width": 16, "blocks": 1, "code_width": 8, "steps": 3},
    "autoregressive": {"components": 2, "hidden": [16]},
}


class Known(Gaussian):
    """N(m, s²I) whatever the context says."""

    def __init__(self, location, scale):
        super().__init__(16, 16)
        self.location, self.scale = location, scale

    def forward(self, context):
        ones = context.new_ones(*context.shape[:-1], 16)
        return GaussianPrediction(self, self.location * ones, self.scale * ones)


def small(head="gaussian", **options):
    torch.manual_seed(0)
    model = IJEPA(
        channels=1, image_size=16, backbone_options=VIT, head=head, head_options=options, mean=(0.5,),
        std=(0.25,), predictor_width=16, predictor_depth=1, predictor_heads=2, score_masks=1, score_draws=2,
    )  # fmt: skip
    with torch.no_grad():  # away from the small start, where all tokens are nearly the same
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def images(n, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (n, 1, 16, 16), dtype=np.uint8)
    return open_images(pixels, size=16)


def test_scores_of_a_known_gaussian_are_the_closed_forms():
    scale, dim = 0.7, 16
    # layer-normed tokens have the same norm, so m = 0 has a closed form for every one of them
    model = small(Known(0.0, scale))
    figures, arrays = evaluate_predictions(model, images(40), draws=400, n_scored=80)
    y = torch.from_numpy(arrays["scored_targets"]).double()
    assert y.norm(dim=1).numpy() == pytest.approx(math.sqrt(dim), rel=1e-3)
    nll = 0.5 * math.log(2 * math.pi * scale**2) + (y**2).mean().item() / (2 * scale**2)
    assert figures["nll_per_dimension"]["value"] == pytest.approx(nll, rel=1e-5)
    # E‖X − y‖ by Monte Carlo of another stream; E‖X − X′‖ = 2s·Γ((D + 1)/2)/Γ(D/2)
    draws = scale * torch.randn(200_000, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    to_target = (draws - y[0]).norm(dim=1).mean().item()  # the same for every y of this norm
    apart = 2 * scale * gamma((dim + 1) / 2) / gamma(dim / 2)
    # 32,000 draws in all: a standard error of 0.004
    assert figures["energy_score"]["value"] == pytest.approx(to_target - apart / 2, abs=0.015)
    assert figures["spread"]["value"] == pytest.approx(scale, rel=0.01)
    assert figures["sigma"]["quantiles"]["0.5"] == pytest.approx(scale, rel=1e-6)
    assert arrays["samples"].std() == pytest.approx(scale, rel=0.05)


def test_cosine_target_std_and_marginal_are_what_their_names_say():
    model, data = small(Known(0.5, 1.0)), images(12)
    figures, arrays = evaluate_predictions(model, data, n_scored=24)
    y = arrays["scored_targets"].astype(np.float64)
    cosine = y.sum(1) / np.linalg.norm(y, axis=1) / math.sqrt(16)
    assert figures["cosine"]["value"] == pytest.approx(cosine.mean(), abs=1e-6)
    pixels = torch.as_tensor(data.get(slice(None)))
    tokens = model.targets(model.preprocess(pixels))
    assert figures["target_std"] == pytest.approx(tokens.numpy().std(0).mean(), rel=1e-5)
    assert target_std(model, pixels) == pytest.approx(figures["target_std"], rel=1e-6)
    everything = arrays["targets"].astype(np.float64)
    mean, scale = everything.mean(0), everything.std(0)
    nll = (np.log(scale) + 0.5 * np.log(2 * np.pi) + (y - mean) ** 2 / (2 * scale**2)).mean()
    assert figures["nll_marginal"]["value"] == pytest.approx(nll, rel=1e-5)
    assert figures["energy_skill"] == pytest.approx(
        1 - figures["energy_score"]["value"] / figures["energy_score_marginal"]["value"]
    )


def test_a_prediction_of_the_targets_own_distribution_has_no_skill():
    model = small()
    _, arrays = evaluate_predictions(model, images(150), n_scored=300)
    y = torch.from_numpy(arrays["targets"])
    mean, std = y.mean(0), y.std(0)
    model.head = Known(mean, std)
    figures, _ = evaluate_predictions(model, images(150), n_scored=300)
    assert figures["nll_per_dimension"]["value"] == pytest.approx(figures["nll_marginal"]["value"], rel=1e-3)
    assert abs(figures["energy_skill"]) < 0.05


def test_a_collapsed_teacher_is_seen():
    model = small()
    with torch.no_grad():
        for p in model.teacher.module.patch_embedding.parameters():
            p.zero_()
    figures, _ = evaluate_predictions(model, images(6), n_scored=6)
    assert figures["target_std"] < 1e-5


def test_mixture_entropy_and_components_by_formula():
    model = small("mdn", components=3)
    logits = torch.tensor([1.0, 0.0, -2.0])
    last = [m for m in model.head.net.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight[:3] = 0  # the weights do not depend on the context
        last.bias[:3] = logits
    figures, arrays = evaluate_predictions(model, images(8), n_scored=8)
    p = logits.double().softmax(0).numpy()
    entropy = -(p * np.log(p)).sum()
    found = figures["mixture"]
    assert found["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert found["effective_components"] == pytest.approx(np.exp(entropy), abs=1e-5)
    assert found["effective_components_overall"] == pytest.approx(np.exp(entropy), abs=1e-5)
    assert found["weights"] == pytest.approx(p.tolist(), abs=1e-6)
    assert arrays["components"].shape[1:] == (3, 16)
    assert isinstance(model.head, MixtureDensity)


def test_log_determinants_of_an_untrained_flow_are_those_of_its_actnorms():
    model = small("realnvp", hidden=[8], couplings=2)
    with torch.no_grad():
        for coupling in model.head.couplings:  # the identity
            for p in coupling.rest.parameters():
                p.zero_()
    figures, arrays = evaluate_predictions(model, images(6), n_scored=6)
    y = torch.from_numpy(arrays["targets"])
    expected = sum(norm(y)[1] for norm in model.head.norms).detach() / 16
    assert arrays["log_det"] == pytest.approx(expected.expand(len(y)).numpy(), abs=1e-5)
    assert figures["log_det"]["mean"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_the_seed_decides_and_the_caps_hold():
    model = small()
    one, first = evaluate_predictions(model, images(9), n_images=5, n_tokens=20, n_scored=10, seed=3)
    two, second = evaluate_predictions(model, images(9), n_images=5, n_tokens=20, n_scored=10, seed=3)
    other, _ = evaluate_predictions(model, images(9), n_images=5, n_tokens=20, n_scored=10, seed=4)
    assert one == two != other
    assert np.array_equal(first["samples"], second["samples"])
    assert (one["images"], one["tokens"], one["scored_tokens"]) == (5, 20, 10)
    masks = first["masks"]
    assert masks["images"].shape == (5, 1, 16, 16)
    for context, targets in zip(masks["context"], masks["targets"], strict=True):
        assert not set(context) & set(targets.ravel())
    with pytest.raises(DataError, match="two or more"):
        evaluate_predictions(model, images(1))


@pytest.mark.parametrize("head", HEADS)
def test_evaluate_includes_the_predictions_of_every_head(head):
    model = small(head, **TINY.get(head, {}))
    pixels = np.random.default_rng(1).integers(0, 256, (36, 1, 16, 16), dtype=np.uint8)
    data = open_images(pixels, size=16)
    data = replace(data, labels=torch.arange(36) % 2, classes=["a", "b"])
    result = evaluate(
        model, data.subset(np.arange(36) < 24), data.subset(np.arange(36) >= 24), n_bootstrap=50
    )
    json.dumps(result.metrics)
    found = result.metrics["predictive"]
    assert found["head"] == head
    assert (found["nll_per_dimension"] is None) == (head in ("deterministic", "diffusion"))
    assert found["energy_score"]["low"] <= found["energy_score"]["value"] <= found["energy_score"]["high"]
    assert ("mixture" in found, "log_det" in found) == (head == "mdn", head == "realnvp")
    assert result.arrays["predictive"]["samples"].shape == result.arrays["predictive"]["targets"].shape


def test_evaluate_asks_the_head_about_scored_images_only(monkeypatch):
    model, asked = small(), []
    features = IJEPA.features

    def counted(self, x, *rest, scored=True):
        if scored:
            asked.append(len(x))
        return features(self, x, *rest, scored=scored)

    monkeypatch.setattr(IJEPA, "features", counted)
    evaluate(model, images(30), images(7, seed=1), {"far": images(5, seed=2)}, n_bootstrap=20)
    # the sets, a blank image, and the fifth of the reference that a combination holds out: no baseline's
    assert asked == [7, 5, 1, 6]
