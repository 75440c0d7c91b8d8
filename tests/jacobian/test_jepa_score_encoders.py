"""Every kind of encoder: models of this library, saved ones, transformers and timm."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jacobian_models import TinyViT, reference_score
from PIL import Image
from torch import Tensor

import probjepa
from probjepa.data import open_images
from probjepa.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from probjepa.jacobian import (
    as_encoder,
    jacobian_spectrum,
    jepa_score,
    jepa_score_details,
    singular_vectors,
)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(
        0, 256, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def method() -> probjepa.VJE:
    torch.manual_seed(0)
    return probjepa.VJE(
        TinyViT(norm=False), channels=3, image_size=16, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]
    ).eval()


def test_method_prepares_pixels_and_differentiates_by_prepared_floats(
    method: probjepa.VJE, pixels: Tensor
) -> None:
    prepared = method.preprocess(pixels)
    expected = reference_score(method.encoder, prepared)
    found = jepa_score_details(method, pixels)
    torch.testing.assert_close(found.score, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.embeddings, method.embed(pixels), rtol=0, atol=1e-5)
    torch.testing.assert_close(jepa_score(method.encoder, prepared), found.score)
    images = open_images(pixels.numpy())
    torch.testing.assert_close(jepa_score(method, images, chunk_size=2), found.score, rtol=0, atol=1e-4)
    assert jacobian_spectrum(method, images).shape == (3, 16)


def test_method_in_training_mode_with_batch_norm_is_refused(pixels: Tensor) -> None:
    model = probjepa.VJE("resnet18", image_size=16, backbone_options={"width": 0.125})
    with pytest.raises(ConfigError, match=r"training mode.*\.eval\(\)"):
        jepa_score(model.train(), pixels)


def test_saved_model_is_loaded_by_its_path(tmp_path: Path, pixels: Tensor) -> None:
    model = probjepa.VJE(
        "resnet18",
        image_size=16,
        backbone_options={"width": 0.125},
        mean=[0.5] * 3,
        std=[0.25] * 3,
    ).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = jepa_score(str(tmp_path / "model"), pixels)
    torch.testing.assert_close(loaded, jepa_score(model, pixels), rtol=0, atol=1e-4)


def test_bound_methods_and_encoders_are_taken() -> None:
    f, x = TinyViT(norm=False).eval(), torch.randn(2, 3, 16, 16)
    assert as_encoder(f.forward).module is f
    encoder = as_encoder(f)
    assert as_encoder(encoder) is encoder
    torch.testing.assert_close(jepa_score(f.forward, x), jepa_score(encoder, x))


class Plain:
    """A model that is no torch module."""

    def embed(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    __call__ = embed


def test_a_method_of_any_object_is_taken() -> None:
    encoder, x = as_encoder(Plain().embed), torch.randn(2, 5)
    assert encoder.module is None
    assert encoder.name == "embed"
    assert as_encoder(Plain()).name == "Plain"
    torch.testing.assert_close(jepa_score(Plain().embed, x), jepa_score(torch.tanh, x))


class Normalised(torch.nn.Module):
    """A patch embedding of normalised images, which ``in_place`` changes the images themselves to."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.patches, self.out = torch.nn.Conv2d(3, 6, 2, 2), torch.nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.4).div_(0.2) if self.in_place else (x - 0.4) / 0.2
        return self.out(torch.tanh(self.patches(x)).flatten(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "auto"},
        {"estimator": "sketch", "sketch_size": 50},
        {"estimator": "slq"},
        {"estimator": "subspace"},
    ],
)
def test_an_encoder_may_work_in_place(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder, plain = Normalised(in_place=True), Normalised(in_place=False)
    plain.load_state_dict(encoder.state_dict())
    x = torch.rand(3, 3, 4, 4)
    before = x.clone()
    torch.testing.assert_close(jepa_score(encoder, x, **options), jepa_score(plain, x, **options))
    assert torch.equal(x, before)
    for found, expected in zip(singular_vectors(encoder, x, 2), singular_vectors(plain, x, 2), strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_inputs_take_the_type_of_the_encoders_weights(kind: torch.dtype, given: torch.dtype) -> None:
    net, x = torch.nn.Linear(6, 4).to(kind), torch.randn(3, 6).to(given)
    assert as_encoder(net).prepare(x).dtype == kind
    expected = torch.linalg.svdvals(net.weight.detach().double()).log().sum()
    torch.testing.assert_close(jepa_score(net, x), expected.expand(3), rtol=0, atol=1e-5)


def test_files_are_opened_at_the_models_size(method: probjepa.VJE, tmp_path: Path) -> None:
    for name, sides in (("a", (20, 24)), ("b", (40, 18))):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    expected = jepa_score(method, open_images(tmp_path, size=16))
    torch.testing.assert_close(jepa_score(method, str(tmp_path)), expected)


def test_what_is_no_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="an encoder cannot be made of a int"):
        as_encoder(3)
    with pytest.raises(ConfigError, match="pooling goes with"):
        as_encoder(torch.tanh, pooling="cls")
    with pytest.raises(DataError, match="pass a tensor or array"):
        jepa_score(torch.tanh, [[1.0, 2.0]])  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="no such model"):
        as_encoder("nowhere")


@pytest.mark.parametrize(
    ("uri", "package", "extra"), [("hf:x", "transformers", "hf"), ("timm:x", "timm", "timm")]
)
def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, uri: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*probjepa\[{extra}\]"):
        as_encoder(uri)


def tiny(kind: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    size: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    configs = {
        "vit": lambda: transformers.ViTConfig(intermediate_size=32, **size),
        "dinov2": lambda: transformers.Dinov2Config(**size),
        "ijepa": lambda: transformers.IJepaConfig(intermediate_size=32, **size),
        "clip": lambda: transformers.CLIPConfig(
            vision_config={"intermediate_size": 32, **size},
            text_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "vocab_size": 64,
            },
            projection_dim=8,
        ),
        "resnet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        ),
    }
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(configs[kind]()).eval()


@pytest.mark.parametrize("kind", ["vit", "dinov2", "ijepa", "clip", "resnet"])
def test_transformers_models_from_a_local_folder(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path)
    encoder = as_encoder(f"hf:{tmp_path}")
    assert encoder.forward is encoder.module
    assert encoder.name == f"hf:{tmp_path}"
    assert encoder.preprocess is None  # the folder has no processor's configuration
    x = torch.randn(2, 3, 16, 16)
    found = jepa_score_details(encoder, x, rank="auto")
    spectrum = reference_score(encoder.module, x, keep=int(found.used[0]))
    torch.testing.assert_close(found.score[:1], spectrum[:1], rtol=0, atol=1e-3)
    assert found.used[0] >= 8
    if kind != "resnet":
        assert jepa_score_details(encoder, x, estimator="auto").estimator == "folded"


def test_transformers_pooling(tmp_path: Path) -> None:
    model = tiny("vit")
    model.save_pretrained(tmp_path / "vit")
    x = torch.randn(2, 3, 16, 16)
    hidden = model(x).last_hidden_state
    cls, mean, default = (as_encoder(f"hf:{tmp_path / 'vit'}", pooling=p) for p in ("cls", "mean", None))  # type: ignore[arg-type]
    torch.testing.assert_close(cls.forward(x), hidden[:, 0])
    torch.testing.assert_close(default.forward(x), hidden[:, 0])
    torch.testing.assert_close(mean.forward(x), hidden[:, 1:].mean(1))
    model = tiny("ijepa")
    model.save_pretrained(tmp_path / "ijepa")
    default = as_encoder(f"hf:{tmp_path / 'ijepa'}")
    torch.testing.assert_close(default.forward(x), model(x).last_hidden_state.mean(1))
    with pytest.raises(ConfigError, match="no class token"):
        as_encoder(f"hf:{tmp_path / 'ijepa'}", pooling="cls")
    with pytest.raises(ConfigError, match="pooling is 'max'"):
        as_encoder(f"hf:{tmp_path / 'ijepa'}", pooling="max")  # type: ignore[arg-type]


def test_transformers_own_preprocessing(tmp_path: Path) -> None:
    model = tiny("vit")
    model.save_pretrained(tmp_path)
    settings = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "size": {"height": 16, "width": 16},
    }
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **settings})
    )
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    encoder = as_encoder(f"hf:{tmp_path}")
    expected = (pixels / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    torch.testing.assert_close(encoder.prepare(pixels), expected, rtol=0, atol=1e-5)
    scored = jepa_score(encoder, pixels)
    torch.testing.assert_close(scored, jepa_score(encoder.forward, expected), rtol=0, atol=1e-2)
    torch.testing.assert_close(scored, jepa_score(encoder, pixels / 255), rtol=0, atol=0)


def test_unknown_transformers_model_ends_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    with pytest.raises(ArtifactError, match="no model 'hf:") as caught:
        as_encoder(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("f", [torch.acosh, lambda z: (z - 1).sqrt()], ids=["acosh", "sqrt"])
def test_an_encoder_that_is_defined_near_its_inputs_alone(f: Any) -> None:
    x = 1.01 + torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = torch.vmap(torch.func.jacrev(f))(x).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(jepa_score(f, x), slope.abs().log().sum(1), rtol=0, atol=1e-10)


def test_an_encoder_that_gives_no_number_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="NaN") as error:
        jepa_score(torch.acosh, torch.zeros(2, 3, dtype=torch.float64))
    assert "\n" not in str(error.value)
