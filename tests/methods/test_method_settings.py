"""Settings of the wrong type, given to a method's or a head's constructor: one line that names the setting."""

import inspect

import numpy as np
import pytest
import torch

import probjepa as pj
from probjepa.errors import ConfigError
from probjepa.heads import HEADS
from probjepa.methods import METHODS
from probjepa.typed import is_plain, types_of

WRONG = [[[]], "a", object(), float("nan"), 1.5j, {1: 2}]
IMAGES = ("vje", "vi-simsiam", "simsiam", "byol", "vicreg", "barlow-twins", "lejepa", "i-jepa")
OPTIONS = ("backbone_options", "head_options")


def plain(kind):
    return [name for name, of in types_of(kind).items() if is_plain(of) or name in OPTIONS]


def takes_text(kind, name):
    return str in [types_of(kind)[name], *getattr(types_of(kind)[name], "__args__", ())]


def build(name, **settings):
    backbone = "vit" if name == "i-jepa" else "convnet"
    return METHODS[name](backbone, **{"image_size": 16} | settings)


def test_all_methods_of_images_are_here():
    assert {*IMAGES} == {*METHODS} - {"var-jepa"}


@pytest.mark.parametrize("name", IMAGES)
def test_a_methods_setting_of_the_wrong_type_is_one_line(name):
    for setting in plain(METHODS[name]):
        for value in WRONG:
            if value == "a" and (takes_text(METHODS[name], setting) or setting == "backbone"):
                continue
            with pytest.raises(ConfigError, match=rf"{setting}.* takes .*, got "):
                build(name, **{setting: value})


@pytest.mark.parametrize("name", HEADS)
def test_a_heads_setting_of_the_wrong_type_is_one_line(name):
    for setting in plain(HEADS[name]):
        for value in WRONG:
            if value != "a" or not takes_text(HEADS[name], setting):
                with pytest.raises(ConfigError, match=rf"^the setting {setting} takes .*, got '.*'$"):
                    HEADS[name](**{"dim": 4, "context_dim": 4} | {setting: value})


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("setting", ["n_transforms", "chunk_size", "eps", "transforms", "estimator", "rank"])
def test_a_scores_setting_of_the_wrong_type_is_one_line(setting, value):
    with pytest.raises(ConfigError, match=f"{setting}|rank"):
        pj.jepa_score(torch.nn.Linear(6, 4), torch.randn(3, 6), **{setting: value})


def test_numbers_of_other_libraries_and_lists_of_them_are_taken():
    plainly = pj.VJE("convnet", image_size=16, kl_weight=2.0, mean=(0.5,) * 3, std=(0.25,) * 3, seed=1)
    given = pj.VJE(
        "convnet", image_size=np.int64(16), kl_weight=np.float32(2), mean=np.full(3, 0.5),
        std=torch.full((3,), 0.25), seed=np.uint8(1),
    )  # fmt: skip
    assert given.settings == plainly.settings
    assert given.config() == plainly.config()
    for mine, theirs in zip(given.parameters(), plainly.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_infinity_is_one_where_it_belongs():
    assert pj.VJE("convnet", image_size=16, df=float("inf")).settings["df"] in (float("inf"), "inf")


@pytest.mark.parametrize("setting", ["seed", "hidden_dim"])
def test_no_number_is_larger_than_torchs(setting):
    with pytest.raises(ConfigError, match=rf"the setting {setting} takes a whole number .*up to 2⁶³ − 1"):
        pj.VJE("convnet", image_size=16, **{setting: 10**30})


def test_a_signature_is_as_it_was_written():
    assert "context_dim" in inspect.signature(HEADS["mdn"]).parameters
