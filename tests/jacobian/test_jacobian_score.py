"""What a score is put together from: transforms, chunks and their order, and what is said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jacobian_models import double
from rich.progress import Progress
from torch import Tensor, nn

from probjepa.data import open_images
from probjepa.errors import ConfigError
from probjepa.jacobian import jacobian_spectrum, jepa_score, jepa_score_details
from probjepa.jacobian.encoders import Encoder

A = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cut_off(x: Tensor) -> Tensor:
    """Zero rows in numbers that differ: what is the most cautious depends on the transform."""
    return torch.relu(x.flatten(1) @ A.T)


PARTS = {"used": "amin", "rank": "amin", "sigma_max": "amax", "sigma_min": "amin", "standard_error": "amax"}


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_parts_over_transforms_are_means_the_last_or_the_most_cautious(estimator: str) -> None:
    x, drawn = double(8, 9), []

    def noisy(one: Tensor) -> Tensor:
        drawn.append(one + torch.randn_like(one))
        return drawn[-1]

    options: dict[str, Any] = {"estimator": estimator, "rank": "auto", "latent": "normal"}
    found = jepa_score_details(cut_off, x, transforms=noisy, n_transforms=3, **options)
    views = torch.cat(drawn[1:]).view(3, 8, 9)  # the first call looks at the encoder
    each = [jepa_score_details(cut_off, view, **options) for view in views]

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(one, name) for one in each])

    scores = stacked("score")
    torch.testing.assert_close(found.score, -torch.log(torch.exp(-scores).mean(0)))
    for name in ("log_volume", "latent"):
        torch.testing.assert_close(getattr(found, name), stacked(name).mean(0))
    for name, reduce in PARTS.items():
        values = stacked(name)
        torch.testing.assert_close(getattr(found, name), getattr(values, reduce)(0))
        if name != "standard_error" or estimator == "sketch":
            assert bool((values.amax(0) > values.amin(0)).any()), name  # it does depend on the transform
    torch.testing.assert_close(found.embeddings, cut_off(views[-1]))


def test_what_a_transform_draws_is_by_the_seed_the_image_and_the_turn() -> None:
    x = double(4, 9)
    x[3] = x[0]
    drawn: list[tuple[Tensor, Tensor]] = []

    def noisy(one: Tensor) -> Tensor:
        noise = torch.randn_like(one)
        drawn.append((one, noise))
        return one + noise

    jepa_score(cut_off, x, transforms=noisy, n_transforms=2, chunk_size=4)
    assert torch.equal(drawn[0][0], x[:1])  # the look at the encoder
    assert all(one.shape == (1, 9) for one, _ in drawn)
    noise = torch.cat([noise for _, noise in drawn[1:]]).view(2, 4, 9)
    assert torch.equal(noise[:, 3], noise[:, 0])
    different = [*noise[:, :3].flatten(0, 1)]
    drawn.clear()
    jepa_score(cut_off, x[:1], transforms=noisy, n_transforms=1, seed=1)
    different.append(drawn[-1][1][0])
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    drawn.clear()
    jepa_score(cut_off, x[2:3], transforms=noisy, n_transforms=2)
    assert torch.equal(torch.cat([noise for _, noise in drawn[1:]]), noise[:, 2])


def test_a_transform_runs_without_a_graph_and_on_what_the_preprocessing_takes() -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    def shifted(one: Tensor) -> Tensor:
        seen.append((one.dtype, torch.is_grad_enabled()))
        return one // 2

    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh()).double()
    encoder = Encoder(module, module, lambda pixels: pixels.double() / 255, "mine")
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    found = jepa_score(encoder, pixels, transforms=shifted)
    assert set(seen) == {(torch.uint8, False)}
    torch.testing.assert_close(found, jepa_score(module, (pixels // 2).double() / 255))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (lambda x: torch.cat([x, x]), r"returned a tensor \(2, 9\) for a batch \(1, 9\)"),
        (lambda x: x[:0], r"returned a tensor \(0, 9\) for a batch \(1, 9\)"),
        (lambda x: [x], r"returned list for a batch \(1, 9\)"),
        (lambda x: None, r"returned NoneType for a batch \(1, 9\)"),
    ],
)
def test_what_a_transform_returned_in_place_of_an_image_is_named(output: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^transforms {text}: it must return one for one"):
        jepa_score(cut_off, double(2, 9), transforms=output)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"transforms": "flip"}, "transforms takes a random map of a batch, got 'flip'"),
        ({"n_transforms": 2}, "n_transforms > 1 needs transforms"),
        (
            {"transforms": torch.tanh, "n_transforms": 2, "estimator": "auto", "tolerance": 0.1},
            "a tolerance goes with one transform at most",
        ),
    ],
)
def test_arguments_that_do_not_go_together(options: dict[str, Any], text: str) -> None:
    for call in (jepa_score, jepa_score_details):
        with pytest.raises(ConfigError, match=text):
            call(cut_off, double(2, 9), **options)


def test_arguments_that_do() -> None:
    x = double(3, 9)
    plain = jepa_score(cut_off, x)
    for options in (
        {"transforms": lambda one: one, "n_transforms": 2},
        {"n_transforms": 1},
        {"transforms": lambda one: one, "estimator": "auto", "tolerance": 0.1},
    ):
        torch.testing.assert_close(jepa_score(cut_off, x, **options), plain)  # type: ignore[arg-type]


def test_what_is_said_beside_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)
    found = jepa_score_details(torch.tanh, double(7, 4), rank=2, chunk_size=3)
    assert (found.estimator, found.reason, found.rank_rule, found.chunk_size) == ("exact", "as asked", 2, 3)
    assert torch.equal(found.latent, torch.zeros(7).double())

    def hungry(x: Tensor) -> Tensor:
        if len(x) > 9:  # few inputs run as copies
            raise MemoryError
        return torch.tanh(x)

    assert jepa_score_details(hungry, double(50, 4), chunk_size=40).chunk_size == 5
    assert jepa_score_details(torch.tanh, double(2, 4), estimator="auto").reason == (
        "no patch embedding comes first"
    )
    for name in ("score", "log_volume", "latent", "sigma_max", "sigma_min", "standard_error"):
        assert getattr(found, name).dtype == torch.float64


@pytest.mark.parametrize(("rank", "chosen"), [(None, "sketch"), ("auto", "sketch"), (2, "exact")])
def test_little_memory_changes_the_estimator_unless_the_rank_asks_for_exact_ones(
    monkeypatch: pytest.MonkeyPatch, rank: Any, chosen: str
) -> None:
    monkeypatch.setattr("probjepa.jacobian.memory.free_memory", lambda device: 100)
    found = jepa_score_details(torch.tanh, double(3, 4), estimator="auto", rank=rank)
    assert (found.estimator, found.chunk_size) == (chosen, 1)


@pytest.mark.parametrize("estimator", ["exact", "sketch", "slq", "subspace"])
def test_the_estimator_that_is_asked_for_runs(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    called: list[str] = []
    for name in ("exact", "sketch", "slq", "subspace"):
        run = getattr(__import__("probjepa.jacobian.estimators", fromlist=[name]), name)

        def noted(*arguments: Any, run: Any = run, name: str = name) -> Any:
            called.append(name)
            return run(*arguments)

        monkeypatch.setattr(f"probjepa.jacobian.estimators.{name}", noted)
    assert jepa_score_details(torch.tanh, double(2, 4), estimator=estimator).estimator == estimator
    assert called == [estimator]


def test_draws_of_many_images_all_differ() -> None:
    first: set[float] = set()
    jepa_score(lambda x: x, double(100, 2), transforms=lambda x: first.add(float(torch.rand(()))) or x)
    assert len(first) == 100  # the look at the encoder draws what the first image does


@pytest.mark.parametrize("call", [jepa_score, jacobian_spectrum])
def test_an_encoder_is_looked_at_with_one_input(call: Any) -> None:
    sizes: list[int] = []

    def f(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.tanh(x)

    call(f, double(30, 4))
    assert sizes[0] == 2  # a pair is made of it
    assert sizes[-1] == 30
    assert set(sizes[1:-1]) == {1, 2}


def test_without_a_tolerance_many_inputs_are_measured_as_few_are() -> None:
    for options in ({}, {"estimator": "auto"}):
        found = jepa_score_details(cut_off, double(70, 9), **options)
        assert found.estimator == "exact"
        assert found.reason == ("no patch embedding comes first" if options else "as asked")


@pytest.mark.parametrize("kind", ["tensor", "array", "images", "inference"])
def test_inputs_are_read_and_left_as_they_are(kind: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh()).double()
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    floats = pixels.double() / 255
    expected = jepa_score(module, floats)
    encoder: Any = module
    given: Any = floats.clone()
    if kind == "array":
        given = floats.numpy().copy()
    elif kind == "images":
        encoder = Encoder(module, module, lambda p: p.double() / 255, "mine")
        given = open_images(pixels.numpy())
    elif kind == "inference":
        with torch.inference_mode():
            given = floats.clone()
    for chunk_size in (None, 2):
        torch.testing.assert_close(jepa_score(encoder, given, chunk_size=chunk_size), expected)
        spectrum = jacobian_spectrum(encoder, given, chunk_size=chunk_size)
        torch.testing.assert_close(spectrum.log().sum(1), expected)
    if kind in ("tensor", "inference"):
        assert torch.equal(given, floats)
        assert not given.requires_grad
    if kind == "array":
        assert np.array_equal(given, floats.numpy())


@pytest.mark.parametrize("chunk_size", [1, 2, None])
@pytest.mark.parametrize("width", [2, 4, 9])
def test_a_spectrum_has_a_number_for_each_dimension(width: int, chunk_size: int | None) -> None:
    a, x = double(6, width), double(3, width)
    found = jacobian_spectrum(lambda z: z @ a.T, x, chunk_size=chunk_size)
    assert (found.shape, found.dtype) == ((3, 6), torch.float64)
    sigma = torch.linalg.svdvals(a)
    torch.testing.assert_close(found[:, : len(sigma)], sigma.expand(3, -1))
    assert not found[:, len(sigma) :].any()


def test_a_bar_says_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    class Watched(Progress):
        def add_task(self, description: str, *rest: Any, **options: Any) -> Any:
            told.append((description, options["total"]))
            return super().add_task(description, *rest, **options)

    monkeypatch.setattr("probjepa.jacobian.score.Progress", Watched)
    jepa_score(torch.tanh, double(5, 4))
    jacobian_spectrum(torch.tanh, double(3, 4))
    assert told == [("JEPA-SCORE", 5), ("Jacobian spectra", 3)]
