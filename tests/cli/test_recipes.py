"""The settings that each method recommends: what fit takes, and what `probjepa train` starts from."""

import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from probjepa.backbones import BACKBONES
from probjepa.cli import run
from probjepa.cli.settings import fill_in, image_types, sort_settings
from probjepa.errors import ConfigError
from probjepa.loading import load
from probjepa.methods import METHODS
from probjepa.training import Module, fit
from probjepa.training.settings import LoopSettings


@pytest.mark.parametrize("name", METHODS)
def test_recipes_are_keywords_of_fit(name):
    recipe = METHODS[name].recipe
    assert set(recipe) <= {field.name for field in fields(LoopSettings)} - {"seed"}
    LoopSettings(**recipe)  # complains of a wrong one


# small, and as different from the defaults as can be told apart
NARROW = {
    "vje": {"hidden_dim": 8, "target": "ema", "ema_momentum": 0.5},
    "vi-simsiam": {"projector_dim": 8, "predictor_dim": 4},
    "simsiam": {"projector_dim": 8, "predictor_dim": 4},
    "byol": {"projector_dim": 4, "hidden_dim": 8},
    "vicreg": {"projector_dim": 8},
    "barlow-twins": {"projector_dim": 8},
    "lejepa": {"projector_dim": 4, "hidden_dim": 8},
    "i-jepa": {"predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2, "head": "deterministic"},
}
VIT = {"patch_size": 4, "width": 8, "depth": 1, "heads": 2}


def encoder_of(name):
    return ("vit", VIT) if name == "i-jepa" else ("convnet", {"widths": [4, 8]})


@pytest.mark.parametrize("name", METHODS)
def test_both_doors_resolve_to_the_same_settings_and_the_same_run(name, images, tmp_path):
    backbone, options = encoder_of(name)
    own = {"image_size": 20, "channels": 1, **NARROW[name]}
    written = {"batch_size": 4, "backbone": backbone, **options, **own}
    out = tmp_path / "command"
    items = given(f"{key}={value}" for key, value in written.items())
    command = ["train", name, "--data", str(images), "--out", str(out), "--epochs", "2", "--seed", "3", "-q"]
    assert run([*command, *items]) == 0
    torch.rand(7)  # the global generator is no part of it
    method = METHODS[name](backbone, backbone_options=options, seed=3, **own)
    other = tmp_path / "python"
    trained = fit(method, str(images), epochs=2, seed=3, batch_size=4, out=other, progress=False)
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (out, other)]
    assert configs[0] == configs[1]
    recipe = METHODS[name].recipe
    assert {key: configs[0][key] for key in recipe} == recipe
    adapter = Module(METHODS[name](backbone, backbone_options=options, **own), epochs=2, seed=3).settings
    assert {key: configs[0][key] for key in adapter} == adapter
    weights = load(out).state_dict()
    assert weights and all(torch.equal(value, weights[key]) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_of_a_method_decides_its_weights_and_nothing_else(name):
    backbone, options = encoder_of(name)
    own = {"backbone_options": options, "image_size": 20, "channels": 1, **NARROW[name]}
    before = torch.get_rng_state()
    one, same, other = (METHODS[name](backbone, seed=seed, **own) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    unseeded = METHODS[name](backbone, **own)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]) and torch.equal(value, unseeded.state_dict()[key])
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert one.settings == unseeded.settings
    assert "seed" not in one.settings
    with pytest.raises(ConfigError, match="the setting seed takes a whole number or null, got 'x'"):
        METHODS[name](backbone, seed="x", **own)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_setting_of_the_command_line_has_one_meaning(name, backbone):
    types = image_types(name, backbone)
    assert len(set().union(*types.values())) == sum(len(of) for of in types.values())


def test_both_momenta_can_be_set_and_a_bare_one_is_refused(images, tmp_path, capfd):
    command = ["train", "byol", "--data", str(images), "--out", str(tmp_path / "run"), "--epochs", "1", "-q"]
    small = given(["batch_size=8", "backbone=convnet", "widths=[4,8]", "projector_dim=4", "hidden_dim=4"])
    assert run([*command, *small, "--set", "momentum=0.5"]) == 2
    assert "the setting momentum may be ema_momentum or sgd_momentum: write which" in capfd.readouterr().err
    assert run([*command, *small, *given(["ema_momentum=0.5", "sgd_momentum=0.25"])]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["method"]["ema_momentum"], config["sgd_momentum"]) == (0.5, 0.25)


def test_another_process_of_a_run_is_not_refused_and_says_nothing(images, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("epochs: 1\n")  # as the first process has begun it
    trained = []
    monkeypatch.setattr("probjepa.training.fit", lambda *_, **options: trained.append(options["devices"]))
    command = ["train", "vje", "--data", str(images), "--out", str(out), *given(["devices=2"])]
    assert run(command) == 2
    assert "exists already" in capfd.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(command) == 0
    assert trained == [2]
    assert capfd.readouterr().out == ""


class Clash(METHODS["simsiam"]):
    name = "clash"

    def __init__(self, backbone="convnet", *, learning_rate=1.0, **encoder):
        super().__init__(backbone, **encoder)


def test_a_method_whose_argument_is_a_training_setting_is_refused_where_it_is_set():
    METHODS.register("clash", Clash)
    try:
        with pytest.raises(ConfigError, match="learning_rate is a setting of the method and of fit"):
            sort_settings("clash", {"backbone": "convnet", "learning_rate": 0.1})
    finally:
        METHODS.remove("clash")


def test_the_adapter_clips_as_the_recipe_says_unless_the_trainer_does():
    method = METHODS["i-jepa"](backbone_options=VIT, image_size=16, channels=1, seed=0, **NARROW["i-jepa"])
    data = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    clipped = []

    class Adapter(Module):
        def clip_gradients(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            clipped.append(gradient_clip_val)

    for settings, options in (({}, {}), ({"gradient_clip_val": 0.5}, {}), ({}, {"gradient_clip_val": 2.0})):
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
        trainer.fit(Adapter(method, epochs=1, **settings), DataLoader(data, batch_size=8))
    assert clipped == [3.0, 0.5, 2.0]


@pytest.fixture
def images(tmp_path):
    """A folder of eight grey images of 21 pixels."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = random.integers(0, 256, (21, 21), dtype=np.uint8)
        Image.fromarray(pixels, "L").save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def given(settings):
    return [part for setting in settings for part in ("--set", setting)]


def test_train_takes_the_recipe_and_what_is_given_goes_before_it(images, tmp_path):
    settings = ["batch_size=8", "backbone=convnet", "widths=[4,8]", "projector_dim=4", "hidden_dim=4"]
    out = tmp_path / "run"
    command = ["train", "lejepa", "--data", str(images), "--out", str(out), "--epochs", "1"]
    assert run([*command, *given([*settings, "weight_decay=0.125"]), "-q"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    recipe = METHODS["lejepa"].recipe
    assert config["optimizer"] == recipe["optimizer"] == "adamw"
    assert config["learning_rate"] == recipe["learning_rate"]
    assert config["weight_decay"] == 0.125 != recipe["weight_decay"]


def test_ijepa_trains_on_a_vit_whose_patch_divides_the_images_and_resumes(images, tmp_path, capsys):
    out = tmp_path / "run"
    settings = ["batch_size=8", "width=8", "depth=1", "heads=2", "predictor_width=8", "predictor_depth=1"]
    command = ["train", "i-jepa", "--data", str(images), "--out", str(out), "--epochs", "1"]
    assert run([*command, *given([*settings, "predictor_heads=2"]), "-q"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["method"]["backbone"] == "vit"
    assert config["method"]["image_size"] == 20  # of 21 pixels, a multiple of 4
    assert config["method"]["backbone_options"]["patch_size"] == 2
    assert config["optimizer"] == "adamw"
    assert config["gradient_clip_val"] == 3.0
    (out / "checkpoints" / "last.ckpt").unlink()
    assert run([*command, "--resume", "-q"]) == 2
    assert "has a model and no checkpoint to go on from" in capsys.readouterr().err
    shutil.rmtree(out / "model")  # as a run is that was killed in its first epoch
    assert run([*command, "--resume", "-q"]) == 0


@pytest.mark.parametrize(
    ("size", "side", "patch"),
    [(8, 16, 2), (28, 28, 4), (32, 32, 4), (64, 64, 8), (97, 96, 12), (500, 224, 16)],
)
def test_patches_of_a_vit(size, side, patch):
    filled = fill_in("i-jepa", {}, size, 3)
    assert (filled["backbone"], filled["image_size"], filled["patch_size"]) == ("vit", side, patch)
    kept = fill_in("i-jepa", {"patch_size": 1, "image_size": 37}, size, 3)
    assert (kept["image_size"], kept["patch_size"]) == (37, 1)
    with pytest.raises(ConfigError, match="no patch divides images of 37 pixels"):
        fill_in("i-jepa", {"image_size": 37}, size, 3)


def test_other_methods_keep_their_backbones():
    assert fill_in("vje", {}, 28, 1) == {"channels": 1, "backbone": "convnet", "image_size": 28}
    assert fill_in("vje", {}, 32, 1)["backbone"] == "resnet18"
    assert fill_in("vje", {"channels": 3}, 28, 1)["backbone"] == "resnet18"
    assert fill_in("vje", {"backbone": "resnet18"}, 28, 1)["backbone"] == "resnet18"
