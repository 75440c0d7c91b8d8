"""Training on kept views of a frozen encoder's embeddings; rates by layer."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from torch import nn

import probjepa as pj
from probjepa.backbones import build_backbone
from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.training import cached, interrupt
from probjepa.training.cached import CachedViews, drawn_views
from probjepa.training.optim import layers_of, make_optimizer, set_learning_rate

FIT = {
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "progress": False,
    "device": "cpu",
    "cache_views": 3,
}


def images(n: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(1)).byte()


def frozen(seed: int = 0) -> pj.VJE:
    encoder = pj.SimSiam(
        "convnet", projector_dim=8, predictor_dim=4, backbone_options={"widths": (4, 8)}, image_size=16,
        mean=[0.5] * 3, std=[0.25] * 3, seed=0,
    ).eval()  # fmt: skip
    return pj.VJE(encoder, freeze=True, seed=seed)


def test_what_is_kept_is_what_the_encoder_says_of_the_views(tmp_path) -> None:
    model, opened = frozen(), pj.open_images(images(300), size=16)
    calls = []

    def views(batch: torch.Tensor, seed: int) -> list[torch.Tensor]:
        calls.append((len(batch), seed))
        noise = torch.rand(len(batch), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return [noise, noise.flip(3)]

    kept = CachedViews(opened, model, views, 3, seed=5, folder=tmp_path)
    kept.make(interrupt.StopRequest())
    assert (tmp_path / "views.f16").stat().st_size == 300 * 3 * 8 * 2
    assert [count for count, _ in calls] == [256, 256, 44, 44] and len({seed for _, seed in calls}) == 4
    found = kept.get(torch.tensor([0, 299]))
    assert found.dtype == torch.float16 and found.shape == (2, 3, 8)
    first = views(images(256), calls[0][1])
    with torch.no_grad():
        wanted = model.encoder(first[1])[0]
    torch.testing.assert_close(found[0, 1].float(), wanted, rtol=1e-3, atol=1e-3)
    again = CachedViews(opened, model, views, 3, seed=5, folder=tmp_path)
    calls.clear()
    again.make(interrupt.StopRequest())
    assert [count for count, _ in calls] == [256, 256]  # the first batch is looked at, no other
    assert torch.equal(again.get(torch.arange(300)), kept.get(torch.arange(300)))
    in_memory = CachedViews(opened, model, views, 3, seed=5)
    in_memory.make(interrupt.StopRequest())
    assert torch.equal(in_memory.get(torch.arange(300)), kept.get(torch.arange(300)))


@pytest.mark.parametrize("change", ["key", "seed", "encoder", "views", "torn", "state", "short"])
def test_kept_views_of_anything_else_are_made_anew(tmp_path, change: str) -> None:
    model, opened = frozen(), pj.open_images(images(), size=16)

    def views(batch: torch.Tensor, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [scale * torch.rand(len(batch), 3, 16, 16, generator=generator) for _ in range(2)]

    scale = 1.0
    kept = CachedViews(opened, model, views, 2, seed=5, folder=tmp_path)
    kept.make(interrupt.StopRequest(), key="a")
    before = kept.get(torch.arange(20)).clone()
    if change == "encoder":
        with torch.no_grad():
            next(model.encoder.parameters()).add_(1.0)
    if change == "views":
        scale = 0.1
    if change == "torn":
        (tmp_path / "views.json").write_text('{"key": ')
    if change == "state":
        (tmp_path / "views.json").write_text('{"key": 3, "rows": "x"}')
    if change == "short":
        (tmp_path / "views.f16").write_bytes(b"12")
    seed = 6 if change == "seed" else 5
    again = CachedViews(opened, model, views, 2, seed=seed, folder=tmp_path)
    again.make(interrupt.StopRequest(), key="b" if change == "key" else "a")
    fresh = CachedViews(opened, model, views, 2, seed=seed)
    fresh.make(interrupt.StopRequest())
    now = again.get(torch.arange(20))
    assert torch.equal(now, fresh.get(torch.arange(20)))
    assert torch.equal(now, before) == (change not in ("seed", "encoder", "views"))


def test_rows_of_another_set_that_was_killed_are_never_taken(tmp_path, monkeypatch) -> None:
    opened = pj.open_images(images(), size=16)

    def views(batch: torch.Tensor, seed: int) -> list[torch.Tensor]:
        return [batch.float() / 255 + seed % 1000] * 2

    kept = [CachedViews(opened, frozen(), views, 2, seed=seed, folder=tmp_path) for seed in (5, 6)]
    kept[0].make(interrupt.StopRequest())
    before = kept[0].get(torch.arange(20)).clone()
    with monkeypatch.context() as patch:
        patch.setattr(cached, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # its rows are written, and their count is not
            kept[1].make(interrupt.StopRequest())
    kept[0].make(interrupt.StopRequest())
    assert torch.equal(kept[0].get(torch.arange(20)), before)


def test_a_full_disk_is_one_line_and_what_is_written_is_kept(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = pj.open_images(images(), size=16)
    kept = CachedViews(opened, frozen(), lambda x, seed: [x.float()] * 2, 2, seed=0, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cached.os, "fsync", full)
        with pytest.raises(ArtifactError, match=rf"{cached.VIEWS_FILE}.*No space left"):
            kept.make(interrupt.StopRequest())
    kept.make(interrupt.StopRequest())
    assert kept.get(torch.arange(20)).isfinite().all()


@pytest.mark.parametrize(
    ("weight", "says"), [(float("nan"), "NaN or Inf: check its weights"), (1e6, "float16: leave")]
)
def test_an_embedding_that_cannot_be_kept_says_why(weight: float, says: str) -> None:
    linear = torch.nn.Linear(768, 4)
    torch.nn.init.constant_(linear.weight, weight)
    method = pj.VJE(torch.nn.Sequential(torch.nn.Flatten(), linear), image_size=16, freeze=True)
    views = CachedViews(pj.open_images(images(), size=16), method, lambda x, seed: [x.float()] * 2, 2, seed=0)
    with pytest.raises(DataError, match=says):
        views.make(interrupt.StopRequest())


def test_drawn_views_are_different_views_of_each_image_and_follow_the_seed() -> None:
    kept = torch.arange(5 * 4).reshape(5, 4, 1).half()
    drawn = drawn_views(kept, 3)
    assert [part.shape for part in drawn] == [(5, 1), (5, 1)] and drawn[0].dtype == torch.float32
    for first, second, row in zip(*drawn, kept, strict=True):
        assert first != second and first.half() in row and second.half() in row
    assert all(torch.equal(a, b) for a, b in zip(drawn, drawn_views(kept, 3), strict=True))
    many = torch.cat([drawn_views(torch.arange(4).reshape(1, 4, 1).half(), seed)[0] for seed in range(400)])
    assert np.bincount(many.flatten().int().numpy(), minlength=4).min() > 70  # each view as often
    with pytest.raises(ConfigError, match="raise cache_views"):
        drawn_views(kept, 0, 5)


def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch) -> None:
    whole = pj.fit(frozen(), images(300), out=tmp_path / "whole", **FIT)
    stops = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(interrupt.StopRequest, "__bool__", lambda self: next(stops, True))
        with pytest.raises(interrupt.Interrupted, match="image 256 of 300"):
            pj.fit(frozen(), images(300), out=tmp_path / "part", **FIT)
    assert json.loads((tmp_path / "part" / "views.json").read_text())["rows"] == 256
    part = pj.fit(frozen(), images(300), out=tmp_path / "part", resume=True, **FIT)
    for name in ("views.f16", "metrics.csv"):
        cut = (
            (lambda text: text)
            if name == "views.f16"
            else (lambda text: [r.rsplit(b",", 1)[0] for r in text.split(b"\n")])
        )
        assert cut((tmp_path / "whole" / name).read_bytes()) == cut((tmp_path / "part" / name).read_bytes())
    for got, wanted in zip(part.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(got, wanted)
    assert pj.load(tmp_path / "part").frozen


def test_as_many_of_the_kept_views_are_drawn_as_the_loss_is_given(monkeypatch) -> None:
    model, seen = frozen(), []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda batch: seen.append(len(batch)) or loss(batch))
    pj.fit(model, images(), **FIT | {"views": 3})
    assert set(seen) == {3}


def test_cached_training_learns_the_spread_of_the_views() -> None:
    """With views that differ by noise alone, the posterior's variance falls where there is less of it."""
    model = frozen()
    pj.fit(model, images(64), **FIT | {"epochs": 4, "cache_views": 2})
    assert all(bool(p.isfinite().all()) for p in model.inference.parameters())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (lambda: pj.VJE("convnet", image_size=16), {}, "freeze=True"),
        (frozen, {"cache_views": 1}, "2 or more views"),
        (frozen, {"views": 4}, "views is 4, and cache_views keeps 3"),
        (frozen, {"cache_views": -1}, "cache_views must be 0 or more"),
        (frozen, {"cache_views": 2, "views": 4}, "cache_views keeps 2 an image"),
        (
            lambda: pj.IJEPA(
                freeze=True,
                image_size=16,
                backbone_options={"patch_size": 4, "width": 16, "depth": 1, "heads": 2},
            ),
            {},
            "more than embeddings",
        ),
    ],
)
def test_where_views_cannot_be_kept_it_is_said_in_one_line(tmp_path, method, settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        pj.fit(method(), images(), out=tmp_path / "run", **FIT | settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_method_with_nothing_beside_its_frozen_encoder_is_refused() -> None:
    class Bare(pj.methods.Method):
        name = "bare"

        def loss(self, batch):
            return {"loss": self.encoder(batch[0]).mean()}

    with pytest.raises(ConfigError, match="nothing of this Bare is trained"):
        pj.fit(Bare("convnet", image_size=16, freeze=True), images(), **FIT | {"cache_views": 0})


# --- rates by layer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "options", "wanted"),
    [
        ("vit", {"patch_size": 4, "width": 16, "depth": 3, "heads": 2, "image_size": 16}, 4),
        ("resnet18", {"width": 0.125}, 6),
    ],
)
def test_an_encoders_layers_hold_each_parameter_once_from_the_images_up(
    backbone, options, wanted: int
) -> None:
    encoder = build_backbone(backbone, **options)
    layers = layers_of(encoder)
    flat = [p for layer in layers for p in layer]
    assert len(flat) == len({id(p) for p in flat}) == len(list(encoder.parameters()))
    assert len(layers) == wanted
    first = next(encoder.parameters())
    assert any(p is first for p in layers[0])
    last = list(encoder.parameters())[-1]
    assert any(p is last for p in layers[-1])


def test_the_rate_falls_by_layer_and_what_stands_on_the_encoder_has_all_of_it() -> None:
    model = pj.VJE("resnet18", backbone_options={"width": 0.125}, image_size=16)
    optimizer = make_optimizer("sgd", model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    set_learning_rate(optimizer, 2.0)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = layers_of(model.encoder)
    for depth, layer in enumerate(reversed(layers), 1):
        assert {rates[p] for p in layer} == {2.0 * 0.5**depth}
    assert {rates[p] for p in model.inference.parameters()} == {2.0}
    assert len(rates) == len(list(model.parameters()))
    decayed = {p for group in optimizer.param_groups for p in group["params"] if group["weight_decay"]}
    assert decayed == {p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("bias")}


def test_without_a_decay_by_layer_groups_are_as_ever() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    optimizer = make_optimizer("adamw", net, learning_rate=0.1, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("value", [0.0, 1.5, -1, float("nan"), "x"])
def test_a_layer_decay_out_of_its_range_is_one_line(value) -> None:
    with pytest.raises(ConfigError, match="layer_decay"):
        pj.fit(pj.VJE("convnet", image_size=16), images(), epochs=1, layer_decay=value)
