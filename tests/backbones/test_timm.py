"""timm's models through the one door. timm needs torchvision: an environment of their own runs these."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

timm = pytest.importorskip("timm", reason="timm (extra 'timm', with torchvision) is not installed")

import probjepa as pj  # noqa: E402
from probjepa.backbones.hub import TimmEncoder, data_settings  # noqa: E402
from probjepa.cli import run  # noqa: E402
from probjepa.data import Preprocess  # noqa: E402
from probjepa.data.fitting import Fit  # noqa: E402
from probjepa.errors import ArtifactError, ConfigError  # noqa: E402

pytestmark = pytest.mark.timm
MODELS = {
    "resnet18": "bicubic, 0.95", "resnet18.tv_in1k": "bilinear, 0.875", "vit_small_patch16_224": "0.9",
    "convnext_tiny": "0.875", "efficientnet_b0": "bicubic", "efficientnet_lite0": "0.875, other statistics",
    "vit_small_patch14_dinov2": "518 px, 1.0", "test_vit": "160 px", "convnext_tiny.fb_in22k_ft_in1k_384": "squash",
    "vit_base_patch16_siglip_224": "squash, 0.9", "mobilenetv3_small_100": "bicubic",
}  # fmt: skip
SHAPES = [(224, 224), (300, 200), (200, 300), (64, 48), (333, 517), (900, 310), (161, 160), (518, 519)]


def picture(height, width, seed):
    """Smooth colours with some noise, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_images_are_prepared_as_timm_does_it(name):
    """Files through Pillow to the pixel; arrays in batches to a grey level, of two roundings a few to two."""
    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    own = timm.data.create_transform(**data)
    preprocess = Preprocess(**data_settings(data, name))
    std = torch.tensor(data["std"])[:, None, None]
    for number, (height, width) in enumerate(SHAPES):
        pixels = picture(height, width, number)
        expected = own(Image.fromarray(pixels))
        opened = torch.from_numpy(np.asarray(preprocess.fit.image(Image.fromarray(pixels))).copy())
        for given, most in ((opened, 0), (torch.from_numpy(pixels), 1)):
            levels = (preprocess(given.permute(2, 0, 1)[None]) - expected).abs() * std * 255
            assert levels.max() < 2.01 * most + 0.01, (height, width, levels.max())
            assert (levels > 1.01).float().mean() < 1e-4, (height, width)


@pytest.mark.parametrize(
    "odd",
    [
        {"crop_mode": "border"}, {"input_size": (3, 96, 64)}, {"crop_pct": 1.15}, {"interpolation": "lanczos"},
    ],
)  # fmt: skip
def test_what_is_prepared_otherwise_is_one_line(odd):
    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("test_vit").to_dict()) | odd
    with pytest.raises(ConfigError, match="give the module itself") as caught:
        data_settings(data, "timm:x")
    assert "\n" not in str(caught.value)


def saved(folder, name, side=None):
    torch.manual_seed(7)
    options = {} if side is None else {"img_size": side, "dynamic_img_size": False}
    model = timm.create_model(name, num_classes=5, **options)
    data = timm.data.resolve_model_data_config(model) | (
        {} if side is None else {"input_size": (3, side, side)}
    )
    timm.models.save_for_hf(model, folder, model_args=options, safe_serialization=True, data_config=data)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("timm")
    saved(root / "model", "test_vit", 48)
    for name, count in (("train", 24), ("test", 9), ("odd", 8)):
        for number in range(count):
            (root / name / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            pixels = picture(60 + number % 3, 70, number + 100 * len(name))
            Image.fromarray(255 - pixels // 2 if name == "odd" else pixels).save(
                root / name / "ab"[number % 2] / f"{number}.png"
            )
    return root


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_it_embeds_as_timm_does(tmp_path, name):
    model = saved(tmp_path / "model", name)
    encoder = pj.open_encoder(f"timm:local-dir:{tmp_path / 'model'}")
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = [picture(180, 200, number) for number in range(3)]
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    model.reset_classifier(0)
    with torch.no_grad():
        expected = model(torch.stack([own(Image.fromarray(image)) for image in pixels]))
    h = encoder.embed(tmp_path / "images")
    assert h.shape == (3, encoder.embedding_dim) == tuple(expected.shape)
    torch.testing.assert_close(h, expected, atol=1e-4, rtol=1e-4)
    again = encoder.reinitialised(1).embed(tmp_path / "images")
    assert not torch.equal(again, h) and again.shape == h.shape


def test_pooling(folder):
    name = f"timm:local-dir:{folder / 'model'}"
    own, cls, mean = (pj.open_encoder(name, pooling=how) for how in (None, "cls", "mean"))
    x = torch.randn(2, 3, 48, 48)
    model = own.encoder.model
    with torch.no_grad():
        tokens = model.forward_features(x)
        torch.testing.assert_close(own(x), model.forward_head(tokens))
        torch.testing.assert_close(cls(x), tokens[:, 0])
        torch.testing.assert_close(mean(x), tokens[:, model.num_prefix_tokens :].mean(1))


def test_pooling_of_a_feature_map(tmp_path):
    saved(tmp_path, "test_resnet")
    name = f"timm:local-dir:{tmp_path}"
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(pj.open_encoder(name, pooling="mean")(x), pj.open_encoder(name)(x))
    with pytest.raises(ConfigError, match="no class token"):
        pj.open_encoder(name, pooling="cls")


def test_pooling_of_a_feature_map_with_channels_last():
    small = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 0}
    model = timm.create_model("swin_tiny_patch4_window7_224", **small).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(TimmEncoder(model, "mean", "")(x), TimmEncoder(model, None, "")(x))


def test_every_command_takes_it(folder, tmp_path):
    def command(name, *more):
        return run([name, f"timm:local-dir:{folder / 'model'}", *map(str, more), "-q"])

    assert command("embed", "--data", folder / "test", "--out", tmp_path / "e.parquet") == 0
    encoder = pj.open_encoder(f"timm:local-dir:{folder / 'model'}")
    found = np.stack(pd.read_parquet(tmp_path / "e.parquet")["embedding"])
    np.testing.assert_array_equal(found, encoder.embed(folder / "test").numpy())
    scored = ["--data", folder / "test", "--reference", folder / "train", "--score", "knn"]
    assert command("score", *scored, "--out", tmp_path / "s.parquet") == 0
    assert (
        command("score", "--data", folder / "test", "--score", "jepa", "--out", tmp_path / "j.parquet") == 0
    )
    sets = ["--train", folder / "train", "--test", folder / "test", "--ood", f"odd={folder / 'odd'}"]
    assert command("evaluate", *sets, "--bootstrap", 20, "--out", tmp_path / "v") == 0
    metrics = json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert {"h", "random-init", "raw pixels"} <= metrics["accuracy"].keys()
    curated = ["--data", folder / "test", "--score", "knn", "--reference", folder / "train"]
    assert command("curate", *curated, "--out", tmp_path / "c") == 0


def test_it_is_saved_and_loaded_and_a_method_stands_on_it(folder, tmp_path):
    name = f"timm:local-dir:{folder / 'model'}"
    encoder = pj.open_encoder(name)
    encoder.save_pretrained(tmp_path / "saved")
    again = pj.open_encoder(tmp_path / "saved")
    assert torch.equal(encoder.embed(folder / "test"), again.embed(folder / "test"))
    assert isinstance(encoder.preprocess.fit, Fit)
    method = pj.VJE(name, image_size=48, mean=[0.5] * 3, std=[0.5] * 3)
    loss = method.loss(torch.randn(2, 4, 3, 48, 48).unbind())["loss"]
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", 48), ("test_resnet", None), ("test_efficientnet", None)]
)
def test_a_saved_model_needs_no_folder_nor_hub(folder, tmp_path, monkeypatch, name, side):
    saved(tmp_path / "timm", name, side)
    of = f"timm:local-dir:{tmp_path / 'timm'}"
    opened = pj.open_encoder(of)
    method = pj.VJE(of, image_size=48, mean=[0.5] * 3, std=[0.5] * 3, seed=0).eval()
    opened.save_pretrained(tmp_path / "opened")
    method.save_pretrained(tmp_path / "method")
    wanted = opened.embed(folder / "test"), method.embed(folder / "test"), opened.reinitialised(1)
    shutil.rmtree(tmp_path / "timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = torch.get_rng_state()
    again = pj.load(tmp_path / "opened"), pj.load(tmp_path / "method")
    assert torch.equal(torch.get_rng_state(), before)
    for model, embedding in zip(again, wanted, strict=False):
        assert torch.equal(model.embed(folder / "test"), embedding)
    fresh = again[0].reinitialised(1)
    assert torch.equal(fresh.embed(folder / "test"), wanted[2].embed(folder / "test"))
    again[0].save_pretrained(tmp_path / "twice")
    assert torch.equal(pj.load(tmp_path / "twice").embed(folder / "test"), wanted[0])


@pytest.mark.parametrize(
    "made_of",
    [
        {"name": "hf-hub:evil/model", "options": {}},
        {"name": "local-dir:/evil", "options": {}},
        {"name": "test_vit", "options": {"checkpoint_path": "/evil"}},
        {"name": "test_vit", "options": {"pretrained_cfg": {"file": "/evil"}}},
        {"name": ["test_vit"], "options": {}},
    ],
)
def test_a_saved_model_that_names_something_else_builds_nothing(folder, tmp_path, monkeypatch, made_of):
    shutil.copytree(folder / "model", tmp_path / "timm")
    pj.open_encoder(f"timm:local-dir:{tmp_path / 'timm'}").save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "timm")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["architecture"]["timm"] |= made_of
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **how: asked.append(how) or create(name, **how))
    with pytest.raises(ArtifactError, match="no model 'timm:local-dir:"):
        pj.load(tmp_path / "saved")
    assert all(how["pretrained"] for how in asked)  # the encoder by its name alone, which is not there


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:resnet81", "Unknown model"),
        ("timm:resnet18.nope", "nope"),
        ("timm:local-dir:/nowhere", "/nowhere"),
        ("timm:resnet18", "connection"),
    ],
)
def test_what_cannot_be_opened_is_one_line(monkeypatch, tmp_path, name, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match=says) as caught:
        pj.open_encoder(name)
    assert "\n" not in str(caught.value)


def test_another_image_size(folder):
    with pytest.raises(ConfigError, match="fails on images of shape 2x3x64x64") as caught:
        pj.open_encoder(f"timm:local-dir:{folder / 'model'}", image_size=64)
    assert "\n" not in str(caught.value)
