"""The settings that each method recommends: what fit takes, and what `probjepa train` starts from."""

import inspect

import numpy as np
import pytest
import yaml
from lightning import Trainer
from PIL import Image

from probjepa.cli import run
from probjepa.cli.settings import fill_in
from probjepa.errors import ConfigError
from probjepa.methods import METHODS
from probjepa.training import fit
from probjepa.training.optim import OPTIMIZERS


@pytest.mark.parametrize("name", METHODS)
def test_recipes_are_keywords_of_fit(name):
    recipe = METHODS[name].recipe
    assert set(recipe) <= {
        "learning_rate", "momentum", "weight_decay", "optimizer", "warmup_epochs", "gradient_clip_val",
    }  # fmt: skip
    parameters = inspect.signature(fit).parameters | inspect.signature(Trainer.__init__).parameters
    for key, value in recipe.items():
        assert isinstance(value, str) if key == "optimizer" else value >= 0
        assert parameters[key].default is not inspect.Parameter.empty
    assert recipe.get("optimizer", "sgd") in OPTIMIZERS


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


def test_ijepa_trains_on_a_vit_whose_patch_divides_the_images_and_resumes(images, tmp_path):
    out = tmp_path / "run"
    settings = ["batch_size=8", "width=8", "depth=1", "heads=2", "predictor_width=8", "predictor_depth=1"]
    command = ["train", "i-jepa", "--data", str(images), "--out", str(out), "--epochs", "1"]
    assert run([*command, *given([*settings, "predictor_heads=2"]), "-q"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["method"]["backbone"] == "vit"
    assert config["method"]["image_size"] == 20  # of 21 pixels, a multiple of 4
    assert config["method"]["backbone_options"]["patch_size"] == 2
    assert config["optimizer"] == "adamw"
    assert config["options"]["gradient_clip_val"] == 3.0
    (out / "checkpoints" / "last.ckpt").unlink()  # to go on from the start
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
