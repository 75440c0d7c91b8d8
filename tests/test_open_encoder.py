"""Encoders trained elsewhere: prepared as their own library does it, and taken by every command."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import probjepa as pj
from probjepa.backbones import build_backbone
from probjepa.backbones.hub import TransformersEncoder, processor_settings
from probjepa.cli import run
from probjepa.data.fitting import Fit
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaWarning
from undrawn import _undrawn  # noqa: F401

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
SIDE = 16
PROCESSORS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 2},
    "clip": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "resample": 3,
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 21}, "resample": 3,
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True,
    },
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIDE}, "crop_pct": 0.8,
        "resample": 3,
    },
    "plain": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 3,
        "do_normalize": False, "rescale_factor": 1 / 127.5,
    },
}  # fmt: skip
SHAPES = [(16, 16), (21, 21), (40, 25), (25, 40), (37, 53), (90, 31), (17, 33)]


def vit(folder, processor=None):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    torch.manual_seed(7)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIDE,
        patch_size=4, initializer_range=0.4,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(folder)
    if processor is not None:
        settings = {"image_mean": MEAN, "image_std": STD, **processor}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def picture(height, width, seed):
    """Smooth colours with some noise, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_are_prepared_as_transformers_does_it(tmp_path, kind):
    """To within one grey level: files through Pillow, and arrays in batches on the device."""
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    folder = vit(tmp_path / "model", PROCESSORS[kind])
    encoder = pj.open_encoder(f"hf:{folder}")
    own = transformers.AutoImageProcessor.from_pretrained(folder)
    scale = 255 if kind != "plain" else 127.5
    std = torch.tensor(STD if kind != "plain" else [1.0] * 3)[:, None, None]
    for number, (height, width) in enumerate(SHAPES):
        pixels = picture(height, width, number)
        expected = own(images=pixels, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        Image.fromarray(pixels).save(tmp_path / "x.png")
        opened = encoder.open(tmp_path / "x.png").get(slice(None))
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        for given in (opened, batch):
            levels = (encoder.preprocess(given) - expected).abs() * std * scale
            assert levels.max() <= 1.01, (kind, height, width, levels.max())


@pytest.mark.parametrize(
    "fit", [Fit(16, 20), Fit(16, 20, even=True), Fit(16, 16, "bilinear"), Fit(9, 9, stretch=True)]
)
def test_what_is_opened_for_it_is_cut_at_the_same_place(fit):
    """Pillow's square of ``side`` pixels and the batch's centre of it are the whole picture's centre."""
    for number, (height, width) in enumerate(SHAPES):
        pixels = picture(height, width, number)
        resized = Image.fromarray(pixels).resize(
            fit.resized(width, height), Image.Resampling[fit.interpolation.upper()]
        )
        left, top = fit.margin(resized.width), fit.margin(resized.height)
        expected = np.asarray(resized)[top : top + fit.size, left : left + fit.size]
        square = np.asarray(fit.image(Image.fromarray(pixels)))
        assert square.shape == (fit.side, fit.side, 3)
        batch = fit.batch(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])
        assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), expected)
        whole = fit.batch(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        assert np.abs(whole.astype(int) - expected).max() <= 1
        meta = fit._resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], *fit.resized(width, height))
        assert meta.shape[2:] == resized.size[::-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder")
    vit(root / "model", PROCESSORS["dinov2"])
    for name, count in (("train", 24), ("test", 9), ("odd", 8)):
        for number in range(count):
            (root / name / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            pixels = picture(24 + number % 3, 30, number + 100 * len(name))
            pixels = 255 - pixels // 2 if name == "odd" else pixels
            Image.fromarray(pixels).save(root / name / "ab"[number % 2] / f"{number}.png")
    return root


def command(folder, name, *more):
    return run([name, f"hf:{folder / 'model'}", *map(str, more), "-q"])


def test_it_is_what_a_trained_method_is(folder):
    encoder = pj.open_encoder(f"hf:{folder / 'model'}")
    images = pj.open_images(folder / "test", size=encoder.preprocess.opened)
    h = encoder.embed(images)
    assert h.shape == (9, 16) == (9, encoder.embedding_dim) and encoder.device == torch.device("cpu")
    assert torch.equal(h, encoder.embed(folder / "test"))
    grey = images.images[:2, :1]
    assert torch.equal(encoder.embed(grey), encoder.embed(grey.expand(-1, 3, -1, -1)))
    assert pj.open_encoder(encoder) is encoder
    larger = pj.open_encoder(f"hf:{folder / 'model'}", pooling="mean")
    assert not torch.equal(h, larger.embed(images))
    with pytest.raises(ConfigError, match="no loss to train by"):
        pj.fit(encoder, images, epochs=1, batch_size=4, progress=False)


def test_a_module_is_given_pixels_in_0_to_1():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
    encoder = pj.open_encoder(module, image_size=8)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.allclose(encoder.embed(pixels), module(pixels / 255))


def test_it_is_saved_and_loaded(folder, tmp_path):
    encoder = pj.open_encoder(f"hf:{folder / 'model'}")
    encoder.save_pretrained(tmp_path / "saved")
    again = pj.open_encoder(tmp_path / "saved")
    assert torch.equal(encoder.embed(folder / "test"), again.embed(folder / "test"))
    assert again.preprocess.config() == encoder.preprocess.config()


def test_every_command_takes_it(folder, tmp_path):
    assert command(folder, "embed", "--data", folder / "test", "--out", tmp_path / "e.parquet") == 0
    embedded = pq.read_table(tmp_path / "e.parquet").to_pandas()
    expected = pj.open_encoder(f"hf:{folder / 'model'}").embed(folder / "test")
    np.testing.assert_array_equal(np.stack(embedded["embedding"]), expected.numpy())
    scored = ["--data", folder / "test", "--reference", folder / "train", "--score", "knn"]
    assert command(folder, "score", *scored, "--out", tmp_path / "s.parquet") == 0
    jepa = ["--data", folder / "test", "--score", "jepa", "--out", tmp_path / "j.parquet"]
    assert command(folder, "score", *jepa) == 0
    found = pd.read_parquet(tmp_path / "j.parquet")["score"]
    np.testing.assert_allclose(found, pj.jepa_score(f"hf:{folder / 'model'}", folder / "test"), atol=1e-3)
    sets = ["--train", folder / "train", "--test", folder / "test", "--ood", f"odd={folder / 'odd'}"]
    assert command(folder, "evaluate", *sets, "--bootstrap", 20, "--out", tmp_path / "v") == 0
    metrics = json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert {"h", "random-init", "raw pixels"} <= metrics["accuracy"].keys()
    assert "knn" in metrics["ood"]["odd"] and "likelihood" not in metrics["ood"]["odd"]
    curated = ["--data", folder / "test", "--score", "knn", "--reference", folder / "train"]
    assert command(folder, "curate", *curated, "--out", tmp_path / "c") == 0
    assert (tmp_path / "c" / "report.html").is_file()


def test_the_baseline_is_the_same_architecture_with_weights_of_a_seed(folder):
    encoder = pj.open_encoder(f"hf:{folder / 'model'}")
    state = torch.get_rng_state()
    one, again, other = (encoder.reinitialised(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    h, known = one.embed(folder / "test"), encoder.embed(folder / "test")
    assert torch.equal(h, again.embed(folder / "test")) and h.shape == known.shape
    assert not torch.equal(h, known) and not torch.equal(h, other.embed(folder / "test"))
    assert one.preprocess.config() == encoder.preprocess.config()


def test_a_likelihood_is_refused_in_one_line(folder, tmp_path, capsys):
    assert command(folder, "score", "--data", folder / "test", "--out", tmp_path / "x.parquet") == 2
    assert "no likelihood" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda folder: "hf:no/such model", ArtifactError, "no model 'hf:"),
        (lambda folder: f"hf:{vit(folder / 'bare')}", ConfigError, "preprocessor_config.json"),
        (
            lambda folder: f"hf:{vit(folder / 'a', PROCESSORS['clip'] | {'resample': 0})}",
            ConfigError,
            "filter 0",
        ),
        (
            lambda folder: (
                f"hf:{vit(folder / 'b', PROCESSORS['vit'] | {'size': {'height': 16, 'width': 20}})}"
            ),
            ConfigError,
            "squares",
        ),
        (lambda folder: torch.nn.Flatten(), ConfigError, "image_size"),
        (lambda folder: "nowhere", ArtifactError, "no such model"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch, wrong, error, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=says) as caught:
        pj.open_encoder(wrong(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_text_model_is_one_line(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    for name in (f"hf:{tmp_path}", transformers.BertModel(config)):
        with pytest.raises(ConfigError, match="takes input_ids, not images") as caught:
            pj.open_encoder(name, image_size=16)
        assert "\n" not in str(caught.value)


def test_a_classifier_is_taken_off_or_named(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    vit(tmp_path)
    whole = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = whole.vit(images).last_hidden_state[:, 0]
    torch.testing.assert_close(pj.open_encoder(whole, image_size=SIDE)(images), expected)
    module = torch.nn.Sequential()
    module.add_module("features", torch.nn.Flatten())
    module.add_module("fc", torch.nn.Linear(192, 10))
    with pytest.warns(ProbjepaWarning, match=r"'fc' gives 10 numbers.*set its \.fc to torch.nn.Identity"):
        pj.open_encoder(module, image_size=8)
    with pytest.warns(ProbjepaWarning, match="'fc' gives 10"):
        pj.VJE(module, image_size=8)


def test_embeddings_with_nan_are_one_line(tmp_path):
    linear = torch.nn.Linear(192, 4)
    torch.nn.init.constant_(linear.weight, float("nan"))
    encoder = pj.open_encoder(torch.nn.Sequential(torch.nn.Flatten(), linear), image_size=8)
    with pytest.raises(DataError, match=r"NaN or Inf for 2 of 2 images: .* if that is float16"):
        encoder.embed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_what_is_no_image_encoder_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="return one embedding an image"):
        pj.open_encoder(torch.nn.Identity(), image_size=8)
    with pytest.raises(ConfigError, match="has its own"):
        pj.open_encoder(pj.VJE("convnet", image_size=16), image_size=32)
    encoder = pj.open_encoder(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), image_size=8)
    with pytest.raises(DataError, match="3-channel"):
        encoder.embed(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="of your own"):
        encoder.reinitialised()


def test_every_command_takes_a_checkpoint_by_the_name_of_its_backbone(folder, tmp_path, capsys):
    """``BACKBONE:FILE``; and ``train`` starts from it."""
    width = {
        "patch_size": 4,
        "width": 192,
        "depth": 1,
        "heads": 3,
        "positions": "learned",
        "prefix_tokens": 1,
    }
    state = build_backbone("vit", image_size=16, **width).state_dict()
    torch.save({"teacher": state, "head": {"weight": torch.ones(3)}}, tmp_path / "dino.pth")
    name = f"vit:{tmp_path / 'dino.pth'}"

    def call(verb, *more):
        code = run([verb, *map(str, more), "-q"])
        return code, capsys.readouterr().err

    code, said = call("embed", name, "--data", folder / "test", "--out", tmp_path / "e.parquet")
    assert code == 0 and "left out: head.* (1)" in " ".join(said.split())
    with pytest.warns(ProbjepaWarning, match="left out: head"):
        expected = pj.open_encoder(name).embed(folder / "test")
    found = np.stack(pq.read_table(tmp_path / "e.parquet").to_pandas()["embedding"])
    np.testing.assert_array_equal(found, expected.numpy())
    scored = ["--data", folder / "test", "--reference", folder / "train", "--score", "knn"]
    assert call("score", name, *scored, "--out", tmp_path / "s.parquet")[0] == 0
    jepa = ["--data", folder / "test", "--score", "jepa", "--rank", "4", "--out", tmp_path / "j.parquet"]
    assert call("score", name, *jepa)[0] == 0
    sets = ["--train", folder / "train", "--test", folder / "test", "--bootstrap", 20]
    assert call("evaluate", name, *sets, "--out", tmp_path / "v")[0] == 0
    metrics = json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert {"h", "random-init", "raw pixels"} <= metrics["accuracy"].keys()
    more = ["--set", "backbone=vit", "--set", "image_size=16", "--set", f"weights={tmp_path / 'dino.pth'}"]
    small = ["--epochs", "1", "--set", "batch_size=12", "--set", "learning_rate=1e-9"]
    code, said = call(
        "train", "simsiam", "--data", folder / "train", *more, *small, "--out", tmp_path / "run"
    )
    assert code == 0, said
    started = pj.load(tmp_path / "run")
    assert all(
        torch.allclose(value, state[key], atol=1e-6) for key, value in started.encoder.state_dict().items()
    )
    code, said = call("embed", "resnet50", "--data", folder / "test", "--out", tmp_path / "no.parquet")
    assert code == 2 and "alone has no weights: give 'resnet50:FILE'" in " ".join(said.split())
    assert "weights" not in json.loads((tmp_path / "run" / "model" / "config.json").read_text())["settings"]


def test_a_masked_autoencoder_hides_nothing(tmp_path):
    """Its patches all count, in their order; it draws no random numbers."""
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=SIDE,
        patch_size=4, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=8, initializer_range=0.4,
    )  # fmt: skip
    model = transformers.ViTMAEModel(config).eval()
    encoder = pj.open_encoder(model, image_size=SIDE)
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    before = torch.get_rng_state()
    found = encoder.embed(pixels)
    assert torch.equal(found, encoder.embed(pixels)) and torch.equal(torch.get_rng_state(), before)
    assert model.config.mask_ratio == 0.75  # to be trained on as it was
    with torch.no_grad():
        prepared, noise = encoder.preprocess(pixels), torch.rand(3, (SIDE // 4) ** 2)
        model.config.mask_ratio = 0.0
        shuffled = model(prepared, noise=noise).last_hidden_state[:, 0]
    torch.testing.assert_close(found, shuffled)
    for row in range(0, SIDE, 4):
        other = pixels.clone()
        other[:, :, row : row + 4, row : row + 4] ^= 255
        assert ((encoder.embed(other) - found).abs().amax(1) > 1e-4).all()
    assert pj.jepa_score(encoder, pixels).isfinite().all()


def test_the_mean_of_patches_has_no_distillation_token():
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    config = transformers.DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIDE,
        patch_size=4,
    )  # fmt: skip
    model, images = transformers.DeiTModel(config).eval(), torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = model(images).last_hidden_state[:, 2:].mean(1)
        torch.testing.assert_close(TransformersEncoder(model, "mean")(images), expected)


@pytest.mark.parametrize(
    ("asks", "names"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_pad": True}, "do_pad"),
        ({"include_top": True}, "include_top"),
        ({"size": {"shortest_edge": SIDE}}, "keeps the shape"),
    ],
)
def test_a_processor_that_does_more_is_refused(asks, names):
    known = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "do_reduce_labels": True}
    assert processor_settings({**known, "do_pad": False}, "it")["size"] == SIDE
    with pytest.raises(ConfigError, match=f"it .*{names}.*(itself|squares)"):
        processor_settings({**known, **asks}, "it")


def test_an_encoder_that_draws_random_numbers_is_refused():
    class Dropping(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x.flatten(1), 0.5)

    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="two embeddings of the same image differ"):
        pj.open_encoder(Dropping(), image_size=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_jepa_score_takes_the_size_as_other_scores_do(folder, tmp_path, capsys):
    vit(tmp_path / "vit", {"size": {"height": SIDE, "width": SIDE}})
    sizes = (["--size", "24"], [])
    for number, size in enumerate(sizes):
        call = ["score", f"hf:{tmp_path / 'vit'}", "--data", str(folder / "test"), "--score", "jepa", "-q"]
        assert run([*call, *size, "--out", str(tmp_path / f"{number}.parquet")]) == (2 if size else 0)
    assert "24" in capsys.readouterr().err  # this transformer takes images of one size
    pj.VJE("convnet", image_size=16).save_pretrained(tmp_path / "m")
    call = ["score", str(tmp_path / "m"), "--data", str(folder / "test"), "--score", "jepa", "--size", "8"]
    assert run([*call, "--out", str(tmp_path / "x.parquet")]) == 2
    assert "has its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "layer", [torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5), torch.nn.Dropout(0.0), torch.nn.ReLU()]
)
def test_a_module_in_training_is_told_that_it_is_in_evaluation_mode_now(layer, recwarn):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5), layer).train()
    pj.open_encoder(module, image_size=8)
    assert not module.training and not layer.training
    said = [str(warning.message) for warning in recwarn.list]
    assert len(said) == (isinstance(layer, torch.nn.BatchNorm1d) or getattr(layer, "p", 0) > 0)
    assert all("is in evaluation mode from here on" in line for line in said)
    pj.open_encoder(module, image_size=8)
    assert len(recwarn.list) == len(said)
