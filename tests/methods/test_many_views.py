"""Losses of more than two views: plain double loops over the ordered pairs, each image encoded once a view."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from baseline_cases import small, view_pair

import probjepa as pj
from probjepa.data.views import views
from probjepa.errors import ConfigError, DataError
from probjepa.methods import METHODS
from probjepa.methods.losses import mean_of, other_views
from probjepa.methods.vi_simsiam import kl_to_uniform, power_spherical
from probjepa.training import fit

NARROW = {
    "vje": {"hidden_dim": 8},
    "vi-simsiam": {"projector_dim": 6, "predictor_dim": 5},
    "simsiam": {"projector_dim": 6, "predictor_dim": 5},
    "byol": {"projector_dim": 6, "hidden_dim": 8},
    "vicreg": {"projector_dim": 6},
    "barlow-twins": {"projector_dim": 6},
    "lejepa": {"projector_dim": 6, "hidden_dim": 8},
}


def pairs(views, term):
    return np.mean([term(i, j).item() for i, j in permutations(range(views), 2)])


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b).mean()


def vje(model, images, views):
    h = model.encoder(images)
    mean, variance = model.inference(h)
    torch.manual_seed(5)
    z = (mean + variance.sqrt() * torch.randn(1, *mean.shape))[0].chunk(views)
    h, variance = h.chunk(views), variance.chunk(views)
    kl = 0.5 * (mean.square() + torch.cat(variance) - torch.cat(variance).log() - 1).sum(1).mean()
    nll = pairs(views, lambda i, j: pj.distributions.PolarStudentT(z[i], variance[i], 1.0).nll(h[j]).mean())
    return nll + kl.item()


def vi_simsiam(model, images, views):
    out = {name: x.chunk(views) for name, x in model.features_of(model.encoder(images)).items()}
    density = [power_spherical(*x) for x in zip(out["direction"], out["concentration"], strict=True)]
    kl = np.mean([kl_to_uniform(of).mean().item() for of in density])
    return kl + pairs(views, lambda i, j: -density[i].log_prob(out["z"][j]).mean())


def simsiam(model, images, views):
    z = model.projector(model.encoder(images))
    p, z = model.predictor(z).chunk(views), z.chunk(views)
    return pairs(views, lambda i, j: -cosine(p[i], z[j]))


def byol(model, images, views):
    p = model.predictor(model.projector(model.encoder(images))).chunk(views)
    t = model.target(images).chunk(views)
    return 2 * pairs(views, lambda i, j: 2 - 2 * cosine(p[i], t[j]))


def vicreg(model, images, views):
    z = model.projector(model.encoder(images)).chunk(views)

    def term(i, j):
        a, b = z[i], z[j]
        off = [torch.cov(x.T) - torch.diag(torch.cov(x.T).diag()) for x in (a, b)]
        hinge = [(1 - (x.var(0) + 1e-4).sqrt()).clamp_min(0).mean() for x in (a, b)]
        width = a.shape[1]
        return 25 * (a - b).square().mean() + 12.5 * sum(hinge) + sum(x.square().sum() for x in off) / width

    return pairs(views, term)


def barlow_twins(model, images, views):
    z = model.projector(model.encoder(images)).chunk(views)
    z = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z]

    def term(i, j):
        c = z[i].T @ z[j] / len(z[i])
        weight = torch.full_like(c, 5e-3).fill_diagonal_(1)
        return (weight * (c - torch.eye(len(c))).square()).sum()

    return pairs(views, term)


PLAIN = {
    "vje": vje,
    "vi-simsiam": vi_simsiam,
    "simsiam": simsiam,
    "byol": byol,
    "vicreg": vicreg,
    "barlow-twins": barlow_twins,
}


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_the_loss_is_the_mean_over_ordered_pairs(name, views):
    model = small(name, **NARROW[name]).train()
    batch = view_pair(n=6, count=views)
    torch.manual_seed(5)
    found = model.loss(batch)
    with torch.no_grad():
        expected = PLAIN[name](model, torch.cat(batch), views)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)
    found["loss"].backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", NARROW)
def test_every_view_of_an_image_is_encoded_once(name):
    model, batch = small(name, **NARROW[name]).train(), view_pair(n=6, count=3)
    seen = []
    model.encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model.loss(batch)
    assert seen == [18]


def test_turns_put_every_other_view_in_the_place_of_each():
    rows = torch.arange(6)  # three views of two images
    assert [turn.tolist() for turn in other_views(rows, 3)] == [[2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3]]
    assert [turn.tolist() for turn in other_views(rows, 2)] == [[3, 4, 5, 0, 1, 2]]
    assert mean_of([torch.tensor(0.1), torch.tensor(0.2)]) == 0.5 * (torch.tensor(0.1) + torch.tensor(0.2))


def test_what_takes_how_many_views():
    assert {name for name in METHODS if METHODS[name].most_views == math.inf} == set(NARROW)
    assert METHODS["i-jepa"].most_views == 1
    for count in (1, 0):
        with pytest.raises(DataError, match="takes two or more views of the same images"):
            small("simsiam", **NARROW["simsiam"]).loss(view_pair(count=max(count, 1))[:count])


# --- through fit ------------------------------------------------------------------------------------------


class TwoAtMost(pj.SimSiam):
    """A method of a user's own that keeps to the default."""

    name = "two-at-most"
    most_views = 2


@pytest.mark.parametrize(
    ("make", "views", "says"),
    [
        (lambda: small("vje"), 1, "views is 1, and VJE trains on 2 or more of an image"),
        (lambda: small("vje"), True, "views takes a view recipe's name, a number or a module"),
        (lambda: small("vje"), 2.0, "views takes a view recipe's name, a number or a module"),
        (lambda: TwoAtMost("convnet", channels=1, image_size=16), 4, "TwoAtMost trains on 2 views"),
        (
            lambda: pj.IJEPA(channels=1, image_size=16, backbone_options={"patch_size": 2}),
            2,
            "IJEPA trains on 1 view of an image",
        ),
    ],
)
def test_a_number_of_views_that_cannot_be_is_one_line(make, views, says):
    images = torch.arange(8 * 256).reshape(8, 1, 16, 16).byte()
    with pytest.raises(ConfigError, match=says) as error:
        pj.fit(make(), images, epochs=1, batch_size=8, views=views, progress=False, device="cpu")
    assert "\n" not in str(error.value)


def weights_after(views, **options):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 1, 16, 16), dtype=np.uint8))
    model = small("vje", **NARROW["vje"])
    pj.fit(model, images, epochs=1, batch_size=8, views=views, progress=False, device="cpu", **options)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_views_are_the_recipes_own_and_four_are_others(tmp_path):
    own = weights_after(None)
    assert torch.equal(own, weights_after(2))
    four = weights_after(4, out=tmp_path / "run")
    assert not torch.equal(own, four) and bool(four.isfinite().all())
    with pytest.raises(pj.errors.ProbjepaError, match="views"):
        weights_after(3, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", NARROW)
def test_views_of_two_sizes_are_encoded_each_in_its_own(name):
    """The loss is that of the embeddings, of whatever size their images were; neighbours share a pass."""
    model = small(name, **NARROW[name]).eval()  # in training, a batch norm sees each pass on its own
    sizes = (16, 16, 8, 8, 8)
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(6, 1, side, side, generator=generator) for side in sizes]
    calls = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape))
    torch.manual_seed(3)
    found = model.loss(batch)
    handle.remove()
    assert calls == [(12, 1, 16, 16), (18, 1, 8, 8)]
    embeddings = [model.encoder(view).detach() for view in batch]
    model.encoder = torch.nn.Identity()
    if hasattr(model, "target") and isinstance(model.target, torch.nn.Module):
        return  # its averaged encoder takes images
    torch.manual_seed(3)
    expected = model.loss(embeddings)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_views_of_other_images_are_refused():
    model = small("simsiam")
    with pytest.raises(DataError, match="two or more views of the same images"):
        model.loss([torch.zeros(6, 1, 16, 16), torch.zeros(5, 1, 16, 16)])


@pytest.mark.parametrize("backbone", ["convnet", "vit"])
def test_multi_crop_trains(tmp_path, backbone):
    options = {
        "convnet": {"widths": (4, 8)}, "vit": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2},
    }[backbone]  # fmt: skip
    made = views("multi-crop", size=16, channels=1, mean=[0.5], std=[0.25])
    images = torch.randint(0, 256, (16, 1, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    assert [view.shape[-1] for view in made(images, 0)] == [16, 16, 8, 8, 8, 8]
    model = pj.VJE(backbone, backbone_options=options, channels=1, image_size=16, seed=0)
    before = model.encoder.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    fit(model, images, epochs=1, batch_size=8, views="multi-crop", progress=False, device="cpu")
    assert any(not torch.equal(before[key], value) for key, value in model.encoder.state_dict().items())
