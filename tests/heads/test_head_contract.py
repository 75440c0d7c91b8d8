"""What every predictive head promises, whichever it is."""

import inspect
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch

import probjepa as pj
from probjepa.errors import ConfigError, DataError, ProbjepaError
from probjepa.heads import HEADS
from probjepa.heads.base import MEAN_DRAWS, DensityPrediction, Head, NoDensityError, Prediction
from probjepa.heads.names import CLASSES

# what makes a network small, for every head that has a setting of the name
SIZES = {
    "hidden": (16, 12), "components": 3, "couplings": 4, "width": 16, "blocks": 2, "code_width": 8, "steps": 6,
}  # fmt: skip
DIM, CONTEXT = 5, 4

WITH_DENSITY = [name for name in HEADS if HEADS[name].has_density]
every_head = pytest.mark.parametrize("name", list(HEADS))
every_density = pytest.mark.parametrize("name", WITH_DENSITY)


def small(name, dim=DIM):
    """A small head as it is made."""
    takes = inspect.signature(HEADS[name]).parameters
    return HEADS[name](dim, CONTEXT, **{key: size for key, size in SIZES.items() if key in takes})


def build(name, dim=DIM, seed=0, dtype=torch.float32):
    """A head in evaluation mode with random weights everywhere: layers that start at zero too."""
    torch.manual_seed(seed)
    head = small(name, dim).to(dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return head.eval()


def draw(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_names_are_read_without_torch():
    code = "import sys; from probjepa.heads import HEADS; print(*HEADS); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [name for name in HEADS if HEADS.path(name).startswith("probjepa.")]


@every_head
def test_registered_heads_are_the_public_classes(name):
    cls = HEADS[name]
    if cls.__module__.startswith("probjepa."):
        assert getattr(pj.heads, cls.__name__) is cls
    assert issubclass(cls, Head) and cls.name == name


@every_head
@pytest.mark.parametrize("batch", [(), (7,), (2, 3)], ids=str)
def test_shapes(name, batch):
    head, target = build(name), draw(*batch, DIM)
    prediction = head(draw(*batch, CONTEXT, seed=2))
    assert isinstance(prediction, Prediction)
    assert prediction.batch_shape == batch and prediction.event_shape == (DIM,)
    assert prediction.loss(target).shape == batch
    assert prediction.mean.shape == (*batch, DIM)
    for shape in ((), (3,), (3, 2)):
        drawn = prediction.sample(shape)
        assert drawn.shape == (*shape, *batch, DIM) and not drawn.requires_grad
        assert prediction.loss(drawn).shape == (*shape, *batch)
        if name in WITH_DENSITY:
            assert prediction.log_prob(drawn).shape == (*shape, *batch)


@every_head
def test_a_density_is_there_or_not_as_the_head_says(name):
    prediction, target = build(name)(draw(3, CONTEXT)), draw(3, DIM)
    if HEADS[name].has_density:
        assert prediction.log_prob(target).isfinite().all()
    else:
        with pytest.raises(NoDensityError):
            prediction.log_prob(target)


@every_head
def test_draws_are_differentiable_as_the_prediction_says(name):
    context = draw(3, CONTEXT).requires_grad_()
    prediction = build(name)(context)
    if not prediction.has_rsample:
        with pytest.raises(NotImplementedError):
            prediction.rsample((2,))
        return
    drawn = prediction.rsample((2,), seeded())
    assert torch.equal(drawn, prediction.sample((2,), seeded()))
    assert torch.autograd.grad(drawn.sum(), context)[0].abs().sum() > 0


@every_head
def test_what_a_prediction_prints(name):
    printed = repr(build(name)(draw(3, CONTEXT)))
    assert printed.endswith("Prediction(batch_shape: torch.Size([3]), event_shape: torch.Size([5]))")


@every_density
def test_log_prob_of_many_draws_is_that_of_each(name):
    head, context = build(name), draw(3, CONTEXT)
    target = draw(2, 3, DIM, seed=2)
    together = head(context).log_prob(target)
    for i in range(2):
        for j in range(3):
            alone = head(context[j]).log_prob(target[i, j])
            torch.testing.assert_close(alone, together[i, j], rtol=1e-4, atol=1e-4)


@every_density
def test_loss_is_the_negative_log_likelihood_a_coordinate(name):
    prediction, target = build(name)(draw(6, CONTEXT)), draw(6, DIM, seed=2)
    if type(prediction).loss is not DensityPrediction.loss:
        pytest.skip("trains by a loss of its own")
    torch.testing.assert_close(prediction.loss(target), -prediction.log_prob(target) / DIM)


@every_head
@pytest.mark.parametrize(("batch", "draws"), [((0,), (2,)), ((3,), (0,)), ((2, 0), ()), ((0,), (0, 4))])
def test_nothing_in_is_nothing_out(name, batch, draws):
    prediction = build(name)(draw(*batch, CONTEXT))
    assert prediction.sample(draws).shape == (*draws, *batch, DIM)
    if HEADS[name].has_density and 0 in batch:
        assert prediction.log_prob(draw(*batch, DIM)).shape == batch


@every_density
def test_half_and_double_precision_agree(name):
    double = build(name, dtype=torch.float64)
    single = build(name)
    single.load_state_dict(double.state_dict())
    context, target = draw(6, CONTEXT), draw(6, DIM, seed=2)
    exact = double(context.double()).log_prob(target.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(single(context).log_prob(target).double(), exact, rtol=1e-4, atol=1e-4)


# a type that the head is put into; None: bfloat16 autocast around a head of float32
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, None]


@every_head
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e6], ids=str)
def test_every_type_works_and_is_finite_far_away(name, dtype, size):
    """Losses, densities, means and draws, in float32 at least, of contexts and targets up to 1e6."""
    head = build(name, 12).to(dtype or torch.float32).train()
    context, target = size * draw(8, CONTEXT), size * draw(8, 12, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is None):
        prediction = head(context)
        loss = prediction.loss(target)
        found = {"loss": loss, "mean": prediction.mean, "draws": prediction.sample((2,), seeded())}
        if name in WITH_DENSITY:
            found["density"] = prediction.log_prob(target)
    for key, value in found.items():
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), key
        assert value.isfinite().all(), key
    loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_of_what_a_head_is_part_of_leaves_it_as_it_is(name, dtype):
    head = build(name)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2), head).to(dtype)
    assert whole[0].weight.dtype == dtype
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@every_head
def test_autocast_changes_the_networks_only(name):
    head, context, target = build(name), draw(64, CONTEXT), draw(64, DIM, seed=2)
    torch.manual_seed(0)
    plain = head(context).loss(target)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = head(context)
        mixed = prediction.loss(target)
        drawn, mean = prediction.sample((2,)), prediction.mean
        if name in WITH_DENSITY:
            assert prediction.log_prob(target).dtype == torch.float32
    assert mixed.dtype == drawn.dtype == mean.dtype == torch.float32
    assert drawn.isfinite().all() and mean.isfinite().all()
    torch.testing.assert_close(mixed.mean(), plain.mean(), rtol=0.03, atol=0.03)
    assert head(context.bfloat16()).loss(target.bfloat16()).dtype == torch.float32


@every_head
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e15], ids=str)
def test_losses_and_gradients_are_finite(name, size):
    head = build(name)
    loss = head(draw(8, CONTEXT)).loss(size * draw(8, DIM, seed=2)).mean()
    loss.backward()
    assert loss.isfinite()
    for key, p in head.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key


def check_far_away(name, size):
    """All that a head gives is finite, gradients too, for a context, a target, and both, of that size."""
    head = build(name)
    context, target = draw(8, CONTEXT), draw(8, DIM, seed=2)
    far_context, far_target = ((size * x).clamp(-3e38, 3e38) for x in (context, target))
    prediction = head(far_context)
    found = [prediction.mean, prediction.sample((2,)), prediction.for_scores().mean]
    for c, y in ((far_context, target), (context, far_target), (far_context, far_target)):
        loss = head(c).loss(y)
        head.zero_grad()
        loss.mean().backward()
        found += [loss, *(p.grad for p in head.parameters())]
    assert all(value.isfinite().all() for value in found)


@every_head
@pytest.mark.parametrize("size", [1e20, 1e30], ids=str)
def test_contexts_and_targets_far_away_give_numbers(name, size):
    check_far_away(name, size)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "deterministic"])
@pytest.mark.parametrize("size", [1e33, 1e37, 3e38], ids=str)
def test_numbers_at_the_end_of_float32_give_numbers(name, size):
    """But for a point, whose distance itself is beyond float32 there."""
    check_far_away(name, size)


@pytest.mark.parametrize("name", ["flow_matching", "diffusion"])
def test_a_field_tends_to_its_limit_far_away(name):
    """Layer norms leave the direction of a context alone: at 1e10 it is that of 1e30."""
    head, context = build(name).double(), draw(8, CONTEXT, dtype=torch.float64)
    near, far = (head(size * context).sample((2,), seeded()) for size in (1e10, 1e30))
    torch.testing.assert_close(near, far, rtol=1e-6, atol=1e-6)
    far = head.float()(1e30 * context).sample((), seeded())
    near = head(1e10 * context).sample((), seeded())
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-3)


@every_head
def test_every_parameter_learns(name):
    head = build(name)
    torch.manual_seed(0)
    head(draw(64, CONTEXT)).loss(draw(64, DIM, seed=2)).mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


@every_head
def test_gradients_reach_the_context(name):
    context = draw(8, CONTEXT).requires_grad_()
    build(name)(context).loss(draw(8, DIM, seed=2)).mean().backward()
    assert (context.grad.abs().sum(1) > 0).all()


@every_head
def test_one_element_says_nothing_of_another(name):
    head, context = build(name), draw(3, CONTEXT)
    other = context.clone()
    other[1] += 1
    first, second = (head(c).sample((2,), seeded()) for c in (context, other))
    torch.testing.assert_close(first[:, [0, 2]], second[:, [0, 2]])
    assert not torch.allclose(first[:, 1], second[:, 1])


@every_head
def test_a_generator_makes_samples_repeat_and_spares_the_global_one(name):
    prediction = build(name)(draw(3, CONTEXT))
    state = torch.get_rng_state()
    first, again = prediction.sample((5,), seeded()), prediction.sample((5,), seeded())
    assert torch.equal(first, again)
    assert torch.equal(prediction.mean, prediction.mean)
    assert torch.equal(torch.get_rng_state(), state)
    if name != "deterministic":
        assert not torch.allclose(prediction.sample((5,), seeded(1)), first)


# flow matching's mean is the field's own estimate: test_head_flow_matching.py has it, on an exact field
@pytest.mark.parametrize("name", [name for name in HEADS if name != "flow_matching"])
def test_the_mean_is_that_of_samples(name):
    prediction = build(name)(draw(2, CONTEXT))
    drawn = prediction.sample((4000,), seeded(3))
    exact = name in ("deterministic", "gaussian", "mdn")
    draws = 1 / 4000 + (0 if exact else 1 / MEAN_DRAWS)
    error = drawn.std(0) * draws**0.5
    assert ((prediction.mean - drawn.mean(0)).abs() <= 4 * error + 1e-6).all()
    with suppress(NotImplementedError):
        torch.testing.assert_close(prediction.variance, drawn.var(0), rtol=0.15, atol=0)


@every_head
def test_a_saved_state_is_the_whole_head(name):
    head = small(name)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for seed in range(3):
        optimizer.zero_grad()
        head(draw(32, CONTEXT, seed=seed)).loss(3 + 2 * draw(32, DIM, seed=9 + seed)).mean().backward()
        optimizer.step()
    loaded = small(name)
    loaded.load_state_dict(head.state_dict())
    context, target = draw(6, CONTEXT), draw(6, DIM, seed=2)
    for mode in (True, False):  # in training mode too: what the first batch has set is not set anew
        torch.manual_seed(0)
        expected = head.train(mode)(context).loss(target)
        torch.manual_seed(0)
        assert torch.equal(loaded.train(mode)(context).loss(target), expected)
    assert torch.equal(loaded(context).sample((3,), seeded()), head(context).sample((3,), seeded()))


@every_head
def test_evaluation_changes_no_state(name):
    head = small(name).eval()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    prediction = head(draw(16, CONTEXT))
    prediction.loss(draw(16, DIM, seed=2))
    prediction.sample((2,))
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize("name", [name for name in HEADS if name not in WITH_DENSITY])
def test_no_density_names_the_heads_that_have_one(name):
    with pytest.raises(NoDensityError) as error:
        build(name)(draw(3, CONTEXT)).log_prob(draw(3, DIM))
    assert isinstance(error.value, ProbjepaError) and isinstance(error.value, NotImplementedError)
    message = str(error.value)
    assert message.split("(")[1].rstrip(")").split(", ") == WITH_DENSITY
    assert name in message and "\n" not in message


@every_head
def test_wrong_shapes_are_one_line(name):
    head = build(name)
    with pytest.raises(DataError, match=rf"'{name}' got a context of shape \(3, 9\)"):
        head(draw(3, 9))
    prediction = head(draw(3, CONTEXT))
    for shape in ((3, DIM + 1), (2, DIM), (DIM,)):
        with pytest.raises(DataError, match="got a target of shape"):
            prediction.loss(draw(*shape))


@every_head
def test_complex_numbers_are_refused(name):
    head = build(name)
    with pytest.raises(DataError, match=f"'{name}' got a complex context"):
        head(draw(3, CONTEXT).to(torch.complex64))
    with pytest.raises(DataError, match=f"'{name}' got a complex target"):
        head(draw(3, CONTEXT)).loss(draw(3, DIM).to(torch.complex64))


@pytest.mark.parametrize("name", ["flow_matching", "diffusion"])
@pytest.mark.parametrize("steps", [-1, 0, 1.5, True])
def test_steps_are_whole_and_at_least_one(name, steps):
    prediction = build(name)(draw(3, CONTEXT))
    with pytest.raises(ConfigError, match=f"'{name}': steps must be a whole number, at least 1, got {steps}"):
        prediction.sample(steps=steps)
    with pytest.raises(ConfigError, match="steps must be"):
        prediction.for_scores().sample(steps=steps)
    if name == "flow_matching":
        with pytest.raises(ConfigError, match="steps must be"):
            prediction.log_prob(draw(3, DIM), steps=steps)


@every_head
@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (2.5, 4)], ids=str)
def test_wrong_sizes_are_refused(name, sizes):
    with pytest.raises(ConfigError, match=r"(dim|context_dim) (must be|takes) a whole number"):
        HEADS[name](*sizes)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("deterministic", {"loss": "l2"}, "smooth-l1"),
        ("gaussian", {"hidden": (0,)}, "hidden width"),
        ("mdn", {"components": 0}, "components"),
        ("mdn", {"log_variance_weight": -1.0}, "log_variance_weight"),
        ("autoregressive", {"hidden": (8, 4)}, "at least dim = 5"),
        ("autoregressive", {"hidden": ()}, "at least dim = 5"),
        ("realnvp", {"hidden": ()}, "hidden layer"),
        ("realnvp", {"couplings": 0}, "couplings"),
        ("flow_matching", {"solver": "rk4"}, "heun"),
        ("flow_matching", {"steps": 0}, "steps"),
        ("diffusion", {"blocks": 0}, "blocks"),
    ],
)
def test_settings_out_of_range_are_one_line(name, settings, match):
    with pytest.raises(ConfigError, match=match) as error:
        HEADS[name](DIM, CONTEXT, **settings)
    assert "\n" not in str(error.value)


def test_a_coupling_flow_needs_two_coordinates():
    with pytest.raises(ConfigError, match="dim ≥ 2"):
        HEADS["realnvp"](1, CONTEXT)


@every_head
def test_noise_that_is_alike_makes_an_element_independent_of_its_neighbours(name):
    """Against each element on its own, from the same seed."""
    head, context, target = build(name), draw(3, 4, CONTEXT), draw(3, 4, DIM, seed=2)

    def read(prediction, y):
        torch.manual_seed(5)
        density = prediction.log_prob(y) if name in WITH_DENSITY else None
        return prediction.sample((6,)), density

    together = read(head(context).for_scores(alike=1), target)
    assert together[0].shape == (6, 3, 4, DIM)
    for i in range(3):
        alone = read(head(context[i]).for_scores(), target[i])
        torch.testing.assert_close(together[0][:, i], alone[0], rtol=1e-4, atol=1e-5)
        if name in WITH_DENSITY:
            torch.testing.assert_close(together[1][i], alone[1], rtol=1e-4, atol=1e-5)
    apart = read(head(context[:1].expand(3, 4, CONTEXT)).for_scores(), target)[0]
    assert torch.allclose(apart[:, 0], apart[:, 1]) == (name == "deterministic")


def test_the_field_depends_on_the_time():
    """Of the denoiser that flow matching and diffusion share: sines and cosines of 1000·10000^(−k/32)·t."""
    field = build("diffusion").network
    y, code = draw(4, DIM), field.encode(draw(4, CONTEXT, seed=3))
    seen = []
    field.time.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    times = torch.tensor([0.0, 0.2, 0.7])
    outs = [field(y, t, code) for t in times]
    assert not torch.allclose(outs[0], outs[1]) and not torch.allclose(outs[1], outs[2])
    rates = np.array([1000 * 10_000 ** (-k / 32) for k in range(32)])
    for t, found in zip(times.double().numpy(), seen, strict=True):
        np.testing.assert_allclose(found.numpy(), np.r_[np.sin(rates * t), np.cos(rates * t)], atol=2e-4)
