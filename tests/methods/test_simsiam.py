"""SimSiam's loss against numpy, its stop-gradient, and the layers that the paper gives."""

import numpy as np
import pytest
import torch
from baseline_cases import check_full_precision, check_gradients, embeddings, rows_cosine, small, view_pair
from torch import nn

from probjepa.errors import ConfigError, DataError
from probjepa.methods.simsiam import direction_spread, negative_cosine, simsiam_loss


def test_loss_is_its_formula():
    p1, p2, z1, z2 = embeddings(4)
    expected = -0.5 * (rows_cosine(p1, z2).mean() + rows_cosine(p2, z1).mean())
    assert simsiam_loss([p1, p2], [z1, z2]).item() == pytest.approx(expected, rel=1e-12)
    assert simsiam_loss([p2, p1], [z2, z1]).item() == pytest.approx(expected, rel=1e-12)
    check_full_precision(lambda a, b, c, d: simsiam_loss([a, b], [c, d]), p1, p2, z1, z2)
    check_gradients(lambda p: negative_cosine(p, z1), p1)


def test_loss_at_its_optimum_is_minus_one():
    p, other = embeddings(2)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1, abs=1e-12)
    assert negative_cosine(p, -p).item() == pytest.approx(1, abs=1e-12)
    p = p.clone().requires_grad_()
    negative_cosine(p, 3 * p.detach()).backward()
    assert p.grad.abs().max() < 1e-12
    assert negative_cosine(p, other) > -1


def test_no_gradient_reaches_the_target():
    p, z = (x.requires_grad_() for x in embeddings(2))
    negative_cosine(p, z).backward()
    assert z.grad is None
    # the loss does depend on z: the zero is the stop-gradient's
    step = torch.zeros_like(z)
    step[0, 0] = 1e-5
    assert abs(negative_cosine(p, z + step) - negative_cosine(p, z - step)).item() > 1e-8


def test_the_encoders_gradient_is_that_of_constant_targets():
    model, batch = small("simsiam", projector_dim=12, predictor_dim=6).train(), view_pair()
    parameters = list(model.parameters())
    found = torch.autograd.grad(model.loss(batch)["loss"], parameters)
    z = model.projector(model.encoder(torch.cat(batch)))
    p = model.predictor(z)

    def loss_of(targets):
        cosine = nn.functional.cosine_similarity(p, torch.cat(targets.chunk(2)[::-1]), dim=1)
        return -cosine.mean()

    stopped = torch.autograd.grad(loss_of(z.detach().clone()), parameters, retain_graph=True)
    through = torch.autograd.grad(loss_of(z), parameters)
    for a, b in zip(found, stopped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    first = next(model.encoder.parameters())
    index = next(i for i, q in enumerate(parameters) if q is first)
    assert not torch.allclose(found[index], through[index], rtol=0.05)


def test_the_model_is_symmetric_in_its_views():
    model = small("simsiam", projector_dim=12, predictor_dim=6).train()
    first, second = view_pair()
    a, b = model.loss([first, second]), model.loss([second, first])
    assert a["loss"].item() == pytest.approx(b["loss"].item(), abs=1e-5)
    assert not a["spread"].requires_grad


def test_spread_of_known_directions():
    spread = direction_spread(torch.randn(4000, 30, generator=torch.Generator().manual_seed(0)))
    assert spread.item() == pytest.approx(1, abs=0.02)
    assert direction_spread(torch.ones(50, 30)).item() == pytest.approx(0, abs=1e-6)
    z = embeddings(1)[0]
    unit = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
    assert direction_spread(z).item() == pytest.approx(unit.std(0).mean() * 5**0.5, rel=1e-5)


def test_layers_are_the_papers():
    model = small("simsiam")
    linears = [m for m in model.projector if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias is None) for m in linears] == [
        (16, 2048, True),
        (2048, 2048, True),
    ]
    assert isinstance(model.projector[-1], nn.BatchNorm1d) and not model.projector[-1].affine
    predictor = [m for m in model.predictor if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in predictor] == [(2048, 512), (512, 2048)]
    assert isinstance(model.predictor[-1], nn.Linear) and model.predictor[-1].bias is not None


def test_wrong_settings_and_batches():
    with pytest.raises(ConfigError, match="projector_layers"):
        small("simsiam", projector_layers=0)
    with pytest.raises(ConfigError, match="whole widths"):
        small("simsiam", predictor_dim=0)
    with pytest.raises(DataError, match="takes two or more views"):
        small("simsiam", projector_dim=8).loss(view_pair(count=1))


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-10, 1e-9, 1.0, 1e20, 3e38])
def test_cosines_know_no_scale(size):
    p = size * torch.ones(1, 4)
    assert negative_cosine(p, p).item() == pytest.approx(-1, abs=1e-6)
    assert negative_cosine(p, torch.tensor([[1.0, 1, 1, -1]])).item() == pytest.approx(-0.5, abs=1e-6)
    if 1e-30 <= size <= 1e20:
        z = embeddings(1, dtype=torch.float32)[0]
        assert direction_spread(size * z).item() == pytest.approx(direction_spread(z).item(), rel=1e-5)


def test_ordinary_cosines_are_pytorchs_to_the_last_bit():
    p, z = embeddings(2, dtype=torch.float32)
    p = p.requires_grad_()
    expected = -nn.functional.cosine_similarity(p, z, dim=-1).mean()
    found = negative_cosine(p, z)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(loss, p)[0] for loss in (found, expected)))
    assert negative_cosine(torch.zeros(2, 3), torch.ones(2, 3)) == 0  # a vector without a direction


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_the_gradient_of_a_cosine_is_that_of_the_direction(size):
    p, z = embeddings(2, dtype=torch.float32)
    grads = []
    for scale in (1.0, size):
        x = (scale * p).requires_grad_()
        grads.append(scale * torch.autograd.grad(negative_cosine(x, z), x)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-7)
