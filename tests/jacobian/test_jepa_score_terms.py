"""The latent term, the transforms, and what a call must leave as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from jacobian_models import TinyViT
from rich.progress import Progress
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.nn import functional as F

from probjepa import VJE
from probjepa.errors import ConfigError, DataError
from probjepa.jacobian import jacobian_spectrum, jepa_score, jepa_score_details


@pytest.fixture
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double().eval()


def test_latent_is_added_to_the_papers_form(mlp: nn.Module) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    h, paper = mlp(x).detach(), jepa_score(mlp, x)
    standard = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()).log_prob(h)
    torch.testing.assert_close(jepa_score(mlp, x, latent="normal"), paper + standard)
    cov = torch.eye(4).double() + 0.3
    given = MultivariateNormal(h.mean(0), cov)
    found = jepa_score_details(mlp, x, latent=given)
    torch.testing.assert_close(found.latent, given.log_prob(h))
    torch.testing.assert_close(found.score, paper + given.log_prob(h))
    torch.testing.assert_close(found.embeddings, h)
    factors = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
    torch.testing.assert_close(jepa_score(mlp, x, latent=factors), paper + standard, rtol=0, atol=1e-5)


def test_latent_of_reference_embeddings_is_their_shrunken_normal(mlp: nn.Module) -> None:
    x, reference = torch.randn(3, 6, dtype=torch.float64), torch.randn(12, 4) * 3 + 1
    fit = LedoitWolf().fit(reference.double().numpy())
    expected = MultivariateNormal(torch.from_numpy(fit.location_), torch.from_numpy(fit.covariance_))
    found = jepa_score_details(mlp, x, latent=reference)
    torch.testing.assert_close(found.latent, expected.log_prob(mlp(x).detach()))
    for bad, text in ((reference[:1], "at least 3"), (torch.ones(5, 4), "do not vary")):
        with pytest.raises(DataError, match=text):
            jepa_score(mlp, x, latent=bad)
    with pytest.raises(ConfigError, match="4 dimensions"):
        jepa_score(mlp, x, latent=reference[:, :3])


def test_change_of_variables_of_an_invertible_map_is_exact() -> None:
    # p(x) = N(f(x); 0, I)·|det J| for a bijection: the corrected score is the log-density itself
    a = torch.randn(5, 5, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    truth = MultivariateNormal(torch.zeros(5).double(), precision_matrix=a.T @ a).log_prob(x)
    torch.testing.assert_close(jepa_score(lambda z: z @ a.T, x, latent="normal"), truth)


def test_transforms_aggregate_by_equation_four(mlp: nn.Module) -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    seen: list[Tensor] = []

    def noisy(batch: Tensor) -> Tensor:
        seen.append(batch + 0.5 * torch.randn_like(batch))
        return seen[-1]

    for latent in (None, "normal"):
        seen.clear()
        got = jepa_score(mlp, x, transforms=noisy, n_transforms=3, latent=latent)
        drawn = torch.cat(seen[1:]).view(3, 5, 6)  # the first call looks at the encoder
        each = torch.stack([jepa_score(mlp, one, latent=latent) for one in drawn])
        torch.testing.assert_close(got, -torch.log(torch.exp(-each).mean(0)))
    assert float(each.std(0).min()) > 0


def test_transforms_are_seeded_by_the_image(mlp: nn.Module) -> None:
    x = torch.randn(6, 6, dtype=torch.float64)
    options = {"transforms": lambda batch: batch + torch.randn_like(batch), "n_transforms": 2}
    state = torch.random.get_rng_state()
    first = jepa_score(mlp, x, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(jepa_score(mlp, x.flip(0), chunk_size=1, **options), first.flip(0))
    assert not torch.allclose(jepa_score(mlp, x, seed=1, **options), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transforms_may_work_in_place_and_on_any_type(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    images = torch.rand(2, 1, 4, 4).to(dtype)
    kept = images.clone()
    jepa_score(model, images, transforms=lambda x: x.add_(1), n_transforms=2)
    assert torch.equal(images, kept)


def test_images_of_a_set_are_left_alone_by_transforms() -> None:
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    kept = pixels.clone()
    model = VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (4, 8)}).eval()
    jepa_score(model, pixels, transforms=lambda x: x.bitwise_not_())
    assert torch.equal(pixels, kept)


def test_parameters_and_gradients_are_left_alone() -> None:
    f = TinyViT().eval()
    f.token.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in f.named_parameters()}
    f.position.grad = torch.ones_like(f.position)
    with torch.no_grad():
        outside = jepa_score(f, torch.ones(2, 3, 16, 16), rank="auto")
    assert {name: p.requires_grad for name, p in f.named_parameters()} == flags
    assert torch.equal(f.position.grad, torch.ones_like(f.position))
    assert all(p.grad is None for name, p in f.named_parameters() if name != "position")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = jepa_score(f, torch.ones(2, 3, 16, 16), rank="auto")
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-6)

    def broken(x: Tensor) -> Tensor:
        raise ValueError("mine")

    f.forward = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="mine"):
        jepa_score(f, torch.ones(2, 3, 16, 16))
    assert {name: p.requires_grad for name, p in f.named_parameters()} == flags


def test_reduced_precision_is_off_inside_and_back_afterwards() -> None:
    switch = torch.backends.cuda.matmul
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has the older precision switches only")
    inside = []

    def watching(x: Tensor) -> Tensor:
        inside.append(switch.fp32_precision)
        return torch.tanh(x)

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        jepa_score(watching, torch.randn(2, 4))
        assert switch.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(inside) == {"ieee"}


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(torch.tanh(x), 0.5, training=self.training)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), r"training mode.*call \.eval\(\)"),
        (nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.1)), r"dropout '1' is on: call \.eval\(\)"),
        (nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False)).eval(), "track_running_stats=True"),
        (FunctionalDropout(), r"differ.*call \.eval\(\)"),
        (lambda x: x - x.mean(0), "the others of its batch"),
        (lambda x: x.detach(), "without a graph"),
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_what_is_no_map_of_each_input_is_refused(
    module: Callable[[Tensor], Tensor], text: str, rows: int
) -> None:
    for call in (jepa_score, jacobian_spectrum):
        with pytest.raises(ConfigError, match=text) as caught:
            call(module, torch.randn(rows, 5))
        assert "\n" not in str(caught.value)


def test_harmless_training_mode_is_taken(mlp: nn.Module) -> None:
    x = torch.randn(2, 6, dtype=torch.float64)
    both = nn.Sequential(mlp, nn.Dropout(0.0))
    torch.testing.assert_close(jepa_score(both.train(), x), jepa_score(mlp, x))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_chunk(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, collected = [], []
    # of everything that the tests have loaded, it takes a second
    monkeypatch.setattr("gc.collect", lambda: collected.append(True))

    def hungry(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 9:
            raise error
        return torch.tanh(x)

    x = torch.randn(50, 4, dtype=torch.float64)
    found = jepa_score_details(hungry, x, chunk_size=40)
    assert found.chunk_size == 5  # 40, 20, 10, 5
    assert len(collected) == 3
    torch.testing.assert_close(found.score, jepa_score(torch.tanh, x))
    assert jacobian_spectrum(hungry, x, chunk_size=40).shape == (50, 4)


def test_out_of_memory_on_one_input_ends_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)
    calls = []

    def starving(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(x) > 2:  # a few inputs run as copies
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.tanh(x)

    with pytest.raises(ConfigError, match=r"single input.*sketch"):
        jepa_score(starving, torch.randn(3, 4))


def test_other_runtime_errors_pass() -> None:
    def broken(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("shapes do not match")
        return torch.tanh(x)

    with pytest.raises(RuntimeError, match="shapes do not match"):
        jepa_score(broken, torch.randn(9, 4), chunk_size=9)


def test_a_bar_is_shown_where_it_is_asked_for(mlp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    ends: list[tuple[float | None, float]] = []

    class Watched(Progress):
        def stop(self) -> None:
            ends.extend((task.total, task.completed) for task in self.tasks)

    monkeypatch.setattr("probjepa.jacobian.score.Progress", Watched)
    monkeypatch.setattr(
        "probjepa.jacobian.score.passing", lambda shown: asked.append(shown) or {"disable": True}
    )
    x = torch.randn(5, 6, dtype=torch.float64)
    for call in (jepa_score, jepa_score_details, jacobian_spectrum):
        call(mlp, x)
        call(mlp, x, progress=True, chunk_size=2)
    assert asked == 3 * [False, True]
    assert ends == 6 * [(5, 5)]


@pytest.mark.parametrize("seed", [-1, 10**23, 0.5])
def test_a_seed_is_a_whole_number_from_0(mlp: nn.Module, seed: float) -> None:
    with pytest.raises(ConfigError, match="seed"):
        jepa_score(mlp, torch.randn(5, 6, dtype=torch.float64), seed=seed)


def test_no_images_are_one_line() -> None:
    model = VJE("convnet", channels=1, image_size=16, seed=0).eval()
    for score in (jepa_score, jacobian_spectrum):
        with pytest.raises(DataError, match="pass at least one"):
            score(model, torch.zeros(0, 1, 16, 16, dtype=torch.uint8))
