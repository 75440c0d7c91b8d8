"""A method on an encoder that is trained already, frozen or to be fine-tuned."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from torch import nn

import probjepa as pj
from probjepa.errors import ConfigError
from probjepa.methods import METHODS

SMALL = {"backbone_options": {"widths": (4, 8)}, "channels": 3, "image_size": 16, "seed": 0}
ON_AN_ENCODER = [name for name in METHODS if name != "i-jepa"]


def images(n: int = 12, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture
def trained() -> pj.SimSiam:
    model = pj.SimSiam(
        "convnet", projector_dim=8, predictor_dim=4, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], **SMALL
    )
    model.train()
    model(images())  # batch statistics of its own
    return model.eval()


class Own(nn.Module):
    """An encoder with normalisation and dropout, so that a mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


def made(name: str, backbone: object, **more: object) -> pj.methods.Method:
    return METHODS[name](backbone, freeze=True, **more)


@pytest.mark.parametrize("name", ON_AN_ENCODER)
def test_training_moves_what_stands_on_a_frozen_encoder_and_nothing_in_it(
    name: str, trained: pj.SimSiam
) -> None:
    before = {key: value.clone() for key, value in trained.encoder.state_dict().items()}
    wanted = trained.embed(images())
    model = made(name, trained)
    others = {
        k: v.clone() for k, v in model.state_dict().items() if "encoder" not in k and v.is_floating_point()
    }
    pj.fit(model, images(), epochs=2, batch_size=4, learning_rate=1e-3, progress=False, device="cpu")
    for key, value in model.encoder.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(model.embed(images()), wanted)
    now = model.state_dict()
    moved = [key for key, value in others.items() if not torch.equal(value, now[key])]
    assert moved or not others


@pytest.mark.parametrize("name", ON_AN_ENCODER)
def test_a_loss_of_a_frozen_encoders_embeddings_is_the_loss_of_the_images(
    name: str, trained: pj.SimSiam
) -> None:
    model = made(name, trained).train()
    views = [model.preprocess(images()), model.preprocess(images().flip(3))]
    torch.manual_seed(0)
    of_images = model.loss(views)
    with torch.no_grad():
        embedded = [model.encoder(view) for view in views]
    torch.manual_seed(0)
    of_embeddings = model.loss(embedded)
    assert of_images.keys() == of_embeddings.keys()
    for key, value in of_images.items():
        torch.testing.assert_close(value, of_embeddings[key])


def test_a_head_on_many_features_learns_at_the_usual_settings(tmp_path) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1280), nn.ReLU()).eval()
    with torch.no_grad():
        encoder[1].weight.mul_(3)
    method = pj.VJE(pj.open_encoder(encoder, image_size=16), freeze=True, seed=0)
    pj.fit(method, images(32), out=tmp_path / "run", epochs=10, batch_size=16, cache_views=2, progress=False)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "gradient_clip_val: 10.0" in config
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]


def test_a_frozen_encoder_stays_in_evaluation_mode_and_asks_no_gradient(trained: pj.SimSiam) -> None:
    model = made("vje", trained).train()
    assert model.training and model.inference.training
    assert not any(part.training for part in model.encoder.modules())
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.inference.parameters())
    pixels = model.preprocess(images(2)).requires_grad_()
    model(pixels).sum().backward()  # what JEPA-SCORE differentiates
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_a_trained_encoder_brings_the_preparation_of_its_images(tmp_path, trained: pj.SimSiam) -> None:
    trained.save_pretrained(tmp_path / "first")
    for backbone in (tmp_path / "first", str(tmp_path / "first"), trained):
        model = pj.VJE(backbone, freeze=True, seed=1)
        assert model.preprocess.config() == trained.preprocess.config()
        assert torch.equal(model.embed(images(5, 20)), trained.embed(images(5, 20)))
        pj.fit(model, images(), epochs=1, batch_size=4, learning_rate=1e-3, progress=False, device="cpu")
        assert model.preprocess.config() == trained.preprocess.config()
    assert pj.VJE(trained, mean=[0.5] * 3, std=[0.5] * 3).preprocess.config()["mean"] == [0.5] * 3


def test_a_model_on_a_saved_encoder_is_whole_without_it(tmp_path, trained: pj.SimSiam) -> None:
    trained.save_pretrained(tmp_path / "first")
    model = pj.VJE(tmp_path / "first", freeze=True, seed=1).eval()
    model.save_pretrained(tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    again = pj.load(tmp_path / "second")
    assert again.frozen and again.settings == model.settings
    assert again.settings["backbone"] == "convnet" and again.settings["image_size"] == 16
    for got, wanted in zip(again.features(images()).values(), model.features(images()).values(), strict=True):
        assert torch.equal(got, wanted)
    assert pj.VJE(tmp_path / "second", freeze=True).encoder.module.__class__ is again.encoder.module.__class__


def test_a_module_of_ones_own_is_opened_as_open_encoder_does(tmp_path) -> None:
    module = Own()
    model = pj.VJE(module, freeze=True, image_size=16)
    wanted = pj.open_encoder(module, image_size=16)
    assert model.preprocess.config() == wanted.preprocess.config()
    assert torch.equal(model.embed(images()), wanted.embed(images()))
    model.save_pretrained(tmp_path / "model")
    again = pj.load(tmp_path / "model", backbone=Own())
    assert torch.equal(again.embed(images()), model.embed(images()))
    with pytest.raises(ConfigError, match="image_size"):
        pj.VJE(Own(), freeze=True)


def test_the_random_baseline_of_a_frozen_model_has_another_encoder(trained: pj.SimSiam) -> None:
    model = pj.VJE(trained, freeze=True)
    fresh = model.reinitialised(seed=3)
    assert not torch.equal(fresh.embed(images()), model.embed(images()))
    assert torch.equal(fresh.embed(images()), model.reinitialised(seed=3).embed(images()))
    with pytest.raises(ConfigError, match="of your own"):
        pj.VJE(Own(), freeze=True, image_size=16).reinitialised()


def test_i_jepa_trains_its_predictor_on_a_frozen_vision_transformer() -> None:
    vit = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    small = {"predictor_width": 16, "predictor_depth": 1, "predictor_heads": 2, "image_size": 16}
    first = pj.IJEPA(backbone_options=vit, seed=0, **small).eval()
    model = pj.IJEPA(first, freeze=True, seed=1, **{k: v for k, v in small.items() if k != "image_size"})
    wanted = first.embed(images())
    pj.fit(model, images(), epochs=1, batch_size=4, learning_rate=1e-3, progress=False, device="cpu")
    assert torch.equal(model.embed(images()), wanted)
    for own, teacher in zip(
        model.encoder.module.parameters(), model.teacher.module.module.parameters(), strict=True
    ):
        assert torch.equal(own, teacher)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 24}, "takes images of 16 pixels"),
        ({"channels": 1}, "takes 3 channels"),
        ({"backbone_options": {"width": 2}}, "no option 'width'"),
        ({"freeze": "yes"}, "freeze"),
    ],
)
def test_what_does_not_go_with_a_trained_encoder_is_one_line(
    arguments, message: str, trained: pj.SimSiam
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        pj.VJE(trained, **{"freeze": True} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("freeze", [True, False])
def test_weights_beside_an_encoder_that_has_its_own_are_refused(
    freeze: bool, tmp_path, trained: pj.SimSiam
) -> None:
    trained.save_pretrained(tmp_path / "first")
    for backbone in (trained, tmp_path / "first"):
        with pytest.raises(ConfigError, match="go with a registered backbone's name"):
            pj.VJE(backbone, freeze=freeze, weights={})


def test_an_encoder_that_is_not_frozen_is_trained_on(trained: pj.SimSiam) -> None:
    wanted = trained.embed(images())
    model = pj.VJE(trained)
    assert torch.equal(model.embed(images()), wanted)
    pj.fit(model, images(), epochs=1, batch_size=4, learning_rate=1e-3, progress=False, device="cpu")
    assert not np.allclose(model.embed(images()), wanted)
