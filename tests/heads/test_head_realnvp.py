"""The coupling flow and ActNorm: round trips, and log|det| against autograd."""

import pytest
import torch

from probjepa.heads import RealNVP
from probjepa.heads.networks import ActNorm
from probjepa.heads.realnvp import Coupling


def randomised(module, seed=0, std=0.4):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(std * torch.randn_like(p))
    return module.double().eval()


def slogdet(function, rows):
    """log|det| of a function's Jacobian at each row, and the Jacobians."""
    jacobians = torch.stack([torch.autograd.functional.jacobian(function, row) for row in rows])
    return torch.linalg.slogdet(jacobians).logabsdet, jacobians


ROWS = {d: torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d)) for d in (2, 5)}


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("parity", [0, 1])
def test_a_coupling(dim, parity):
    coupling = randomised(Coupling(dim, 3, (8, 7), parity))
    code = coupling.context(torch.randn(3, dtype=torch.float64))
    y, log_det = coupling(ROWS[dim], code)
    torch.testing.assert_close(coupling.inverse(y, code), ROWS[dim])
    expected, jacobians = slogdet(lambda x: coupling(x, code)[0], ROWS[dim])
    torch.testing.assert_close(log_det, expected)
    assert torch.equal(y[:, parity::2], ROWS[dim][:, parity::2])
    assert (jacobians[:, 1 - parity :: 2, parity::2] != 0).all()  # what moves sees what stays


def test_a_scale_is_bounded():
    coupling = randomised(Coupling(4, 3, (8,), 0), std=20)
    _, log_det = coupling(10 * torch.randn(500, 4).double(), coupling.context(torch.zeros(3).double()))
    assert log_det.abs().max() <= 2 * 2 + 1e-9 and log_det.abs().max() > 3.9


@pytest.mark.parametrize("dim", [2, 5])
def test_the_flow(dim):
    head = randomised(RealNVP(dim, 3, hidden=(8,)))
    prediction = head(torch.randn(3, dtype=torch.float64))
    z, log_det = prediction.to_noise(ROWS[dim])
    torch.testing.assert_close(prediction.from_noise(z), ROWS[dim])
    expected, jacobians = slogdet(lambda x: prediction.to_noise(x)[0], ROWS[dim])
    torch.testing.assert_close(log_det, expected)
    torch.testing.assert_close(prediction.log_abs_det(ROWS[dim]), expected)
    assert (jacobians != 0).all()  # alternating masks: every coordinate sees every other
    normal = torch.distributions.MultivariateNormal(torch.zeros(dim).double(), torch.eye(dim).double())
    torch.testing.assert_close(prediction.log_prob(ROWS[dim]), normal.log_prob(z) + expected)


def test_the_density_integrates_to_one():
    prediction = randomised(RealNVP(2, 3, hidden=(8,)), std=0.15)(torch.randn(3, dtype=torch.float64))
    axis = torch.linspace(-60, 60, 1201, dtype=torch.float64)
    with torch.no_grad():
        density = prediction.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-4)


def test_samples_are_the_inverse_of_noise():
    prediction = randomised(RealNVP(5, 3, hidden=(8,)))(torch.randn(4, 3, dtype=torch.float64))
    drawn = prediction.sample((6,), torch.Generator().manual_seed(0))
    noise = torch.randn(6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prediction.to_noise(drawn)[0], noise)
    assert prediction.rsample((2,)).requires_grad


def test_an_untrained_flow_is_a_standard_normal():
    y = torch.randn(7, 5)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(5), torch.ones(5)), 1)
    torch.testing.assert_close(RealNVP(5, 3).eval()(torch.randn(7, 3)).log_prob(y), normal.log_prob(y))


def test_the_first_batch_normalises_every_stage():
    head = RealNVP(5, 3, hidden=(8,))
    prediction = head(torch.randn(4, 25, 3))
    y = 7 + 3 * torch.randn(4, 25, 5)
    z, _ = prediction.to_noise(y)
    torch.testing.assert_close(z.mean((0, 1)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var((0, 1), correction=0), torch.ones(5))
    assert all(norm.initialised for norm in head.norms)


# --- ActNorm --------------------------------------------------------------------------------------------


def test_actnorm_is_affine():
    norm = randomised(ActNorm(5))
    y, log_det = norm(ROWS[5])
    torch.testing.assert_close(norm.inverse(y), ROWS[5])
    expected, _ = slogdet(lambda x: norm(x)[0], ROWS[5])
    torch.testing.assert_close(log_det.expand(5), expected)


def test_actnorm_is_set_once_and_in_training_only():
    norm, first, second = ActNorm(3), 5 + 2 * torch.randn(50, 3), torch.randn(50, 3)
    norm.eval()
    assert torch.equal(norm(first)[0], first)
    norm.train()
    norm(first[:1])  # a single row has no variance
    assert not norm.initialised
    norm(first)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    torch.testing.assert_close(state["shift"], first.mean(0))
    torch.testing.assert_close(state["log_scale"], -first.std(0, correction=0).log())
    norm(second)
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())


def test_actnorm_follows_the_state_that_it_loads():
    fresh, trained = ActNorm(3).state_dict(), ActNorm(3)
    fresh = {key: value.clone() for key, value in fresh.items()}
    trained(torch.randn(9, 3))
    kept = {key: value.clone() for key, value in trained.state_dict().items()}
    other = ActNorm(3)
    other.load_state_dict(kept)
    other(10 + torch.randn(9, 3))
    assert torch.equal(other.shift, kept["shift"])  # set already: the batch changes nothing
    other.load_state_dict(fresh)
    batch = 10 + torch.randn(9, 3)
    other(batch)
    torch.testing.assert_close(other.shift, batch.mean(0))


def test_actnorm_of_a_constant_coordinate():
    norm = ActNorm(2)
    y, _ = norm(torch.cat([torch.full((20, 1), 3.0), torch.randn(20, 1)], 1))
    assert y.isfinite().all() and norm.log_scale[0].exp().item() == pytest.approx(1000)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_actnorm_is_not_set_by_a_batch_that_is_not_finite(bad):
    norm, first, second = ActNorm(3), torch.randn(20, 3), 5 + 2 * torch.randn(20, 3)
    first[4, 1] = bad
    norm(first)
    assert not norm.initialised and norm.shift.count_nonzero() == norm.log_scale.count_nonzero() == 0
    norm(second)
    assert norm.initialised
    torch.testing.assert_close(norm.shift, second.mean(0))


@pytest.mark.parametrize("size", [1e15, 1e20, 1e37])
def test_actnorm_of_a_huge_batch(size):
    """Moments as in float64, of one huge coordinate beside an ordinary one."""
    norm, batch = ActNorm(2), torch.randn(50, 2) * torch.tensor([size, 1.0])
    y, _ = norm(batch)
    torch.testing.assert_close(norm.shift, batch.double().mean(0).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.log_scale, -batch.double().std(0, correction=0).log().float())
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2))


def test_actnorm_takes_the_batch_of_all_processes(monkeypatch):
    mine, theirs = 3 + torch.randn(20, 3), 5 * torch.randn(30, 3)
    union = torch.cat([mine, theirs])
    parts = iter(
        [
            torch.tensor(30.0),
            theirs.abs().amax(0),
            theirs.sum(0),
            (theirs - union.mean(0)).square().sum(0),
        ]
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(next(parts)))
    norm = ActNorm(3)
    norm(mine)
    torch.testing.assert_close(norm.shift, union.mean(0))
    torch.testing.assert_close(norm.log_scale, -union.std(0, correction=0).log())


def test_its_state_holds_no_order_of_coordinates():
    names = {name.rpartition(".")[2] for name in RealNVP(4, 3, hidden=(8,)).state_dict()}
    assert names and not names & {"kept", "moved", "order"}
