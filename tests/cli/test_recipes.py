"""The settings that each method recommends: what fit takes, and what `probjepa train` starts from."""

import inspect

import numpy as np
import pytest
import yaml
from PIL import Image

from probjepa.cli import run
from probjepa.methods import METHODS
from probjepa.training import fit
from probjepa.training.optim import OPTIMIZERS


@pytest.mark.parametrize("name", METHODS)
def test_recipes_are_keywords_of_fit(name):
    recipe = METHODS[name].recipe
    assert set(recipe) <= {"learning_rate", "momentum", "weight_decay", "optimizer", "warmup_epochs"}
    parameters = inspect.signature(fit).parameters
    for key, value in recipe.items():
        assert isinstance(value, str) if key == "optimizer" else value >= 0
        assert parameters[key].kind is inspect.Parameter.KEYWORD_ONLY
    assert recipe.get("optimizer", "sgd") in OPTIMIZERS


def test_train_takes_the_recipe_and_what_is_given_goes_before_it(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels, "L").save(tmp_path / "images" / f"{i}.png")
    settings = ["batch_size=8", "backbone=convnet", "widths=[4,8]", "projector_dim=4", "hidden_dim=4"]
    given = [part for setting in [*settings, "weight_decay=0.125"] for part in ("--set", setting)]
    out = tmp_path / "run"
    command = ["train", "lejepa", "--data", str(tmp_path / "images"), "--out", str(out), "--epochs", "1"]
    assert run([*command, *given, "-q"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    recipe = METHODS["lejepa"].recipe
    assert config["optimizer"] == recipe["optimizer"] == "adamw"
    assert config["learning_rate"] == recipe["learning_rate"]
    assert config["weight_decay"] == 0.125 != recipe["weight_decay"]
