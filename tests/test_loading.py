"""Saved models: round trips to the bit, no pickle, one-line errors, a place for classes of ones own."""

import json
import math
import os
import pickle
import shutil
import struct
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import probjepa as pj
from probjepa import model_files
from probjepa.errors import ArtifactError, ConfigError
from probjepa.loading import target_of
from probjepa.methods import METHODS, Method
from saved_models import FILES, Own, Tied, pixels, refused, same, small


def edit(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.fixture
def saved(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


# --- round trips ----------------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"df": math.inf},
    {"df": 3, "draws": 4, "variance": "isotropic", "kl_weight": 0.25, "hidden_dim": 8},
    {"likelihood": "standard"},
    {"target": "ema", "ema_momentum": 0.9, "center_log_variance": True},
    {"mean": [0.1307], "std": [0.3081], "radial": False, "view_recipe": "byol-32"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_round_trip_is_exact(settings, tmp_path):
    model = small(**settings)
    if model.target is not None:
        model.after_step(0, 1)
    assert model.save_pretrained(tmp_path / "a" / "model") is None
    assert {p.name for p in (tmp_path / "a" / "model").iterdir()} == FILES
    for loaded in (
        pj.load(tmp_path / "a" / "model"),
        pj.load(str(tmp_path / "a")),  # a run folder, which holds model/
        pj.VJE.from_pretrained(tmp_path / "a" / "model"),
        Method.from_pretrained(tmp_path / "a"),
    ):
        assert type(loaded) is pj.VJE
        assert same(loaded, model)
        assert json.dumps(loaded.settings) == json.dumps(model.settings)
        assert loaded.preprocess.config() == model.preprocess.config()
        assert torch.equal(loaded.preprocess(pixels()), model.preprocess(pixels()))
        assert torch.equal(loaded.score_samples(pixels()), model.score_samples(pixels()))
        assert not loaded.training


def test_statistics_of_the_training_images_are_saved(tmp_path):
    model = small()
    model.calibrate(pixels())
    model.save_pretrained(tmp_path)
    loaded = pj.load(tmp_path)
    assert loaded.preprocess.config() == model.preprocess.config()
    assert loaded.calibrated


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_backbone_of_the_users_own(memory_format, tmp_path):
    model = small(backbone=Own()).to(memory_format=memory_format)
    model.save_pretrained(tmp_path)
    for loaded in (pj.load(tmp_path, backbone=Own()), pj.VJE.from_pretrained(tmp_path, backbone=Own())):
        assert same(loaded, model)
        torch.testing.assert_close(loaded.embed(pixels()), model.embed(pixels()))
    refused(tmp_path, "pass it, load")
    refused(tmp_path, "does not fit its config.*size mismatch", backbone=Own(dim=13))
    refused(tmp_path, "does not fit its config.*Missing key", backbone=Tied())
    with pytest.raises(ConfigError, match="one embedding an image"):  # the module's fault, not the file's
        pj.load(tmp_path, backbone=nn.Conv2d(1, 2, 3))


def test_tied_weights(tmp_path):
    model = small(backbone=Tied())
    model.save_pretrained(tmp_path)
    loaded = pj.load(tmp_path, backbone=Tied())
    assert same(loaded, model)
    assert loaded.encoder.second.weight is loaded.encoder.first.weight


class OwnHead(nn.Module):
    """A Gaussian of fixed scale whose mean is linear in c."""

    def __init__(self, width=16, dim=32):
        super().__init__()
        self.linear = nn.Linear(width, dim)

    def forward(self, c):
        return OwnPrediction(self.linear(c), 1.0)


class OwnPrediction(torch.distributions.Normal):
    def loss(self, y):
        return -self.log_prob(y).mean(-1)


def test_a_head_of_ones_own_is_filled(tmp_path):
    torch.manual_seed(0)
    vit = {"patch_size": 4, "width": 32, "depth": 1, "heads": 4}
    options = {
        "channels": 1,
        "image_size": 16,
        "backbone_options": vit,
        "predictor_width": 16,
        "predictor_heads": 4,
    }
    model = pj.IJEPA(head=OwnHead(), **options)
    model.save_pretrained(tmp_path)
    for loaded in (pj.load(tmp_path, head=OwnHead()), pj.IJEPA.from_pretrained(tmp_path, head=OwnHead())):
        assert torch.equal(loaded.head.linear.weight, model.head.linear.weight)
    refused(tmp_path, r"built on a head of its user's own: pass it, load\(…, head=module\)")
    refused(tmp_path, "does not fit its config.*size mismatch", head=OwnHead(dim=31))


@pytest.mark.parametrize("name", ["hf:facebook/dinov2-small", "timm:resnet18"])
def test_encoders_of_hubs_are_another_door(name):
    with pytest.raises(
        ConfigError, match=f"{name} is an encoder, and no saved model: open it by open_encoder"
    ):
        pj.load(name)


@pytest.mark.parametrize("kind", [pj.VarTJEPA, pj.TJEPA])
def test_models_of_tables_are_loaded_too(tmp_path, kind):
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(40, 3))
    model = kind(max_epochs=1, dim=8, n_heads=2, ff_dim=8, random_state=0).fit(rows)
    model.save(tmp_path / "model")
    for place in (tmp_path, tmp_path / "model"):  # as a run folder, and itself
        loaded = pj.load(place)
        assert type(loaded) is kind
        np.testing.assert_array_equal(loaded.transform(rows), model.transform(rows))
    with pytest.raises(
        ArtifactError, match=f"holds a {kind.__name__}, not a VJE: load it with probjepa.load$"
    ):
        pj.VJE.from_pretrained(tmp_path)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace(f'"{kind.__name__}"', '"NewerJEPA"'))
    refused(tmp_path, "holds a NewerJEPA, which this version does not know")
    config.write_text(config.read_text().replace("NewerJEPA", r"New\ner"))
    refused(tmp_path, "holds a New er, which")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_config_is_strict_json(settings, tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    small(**settings).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    assert config["format_version"] == model_files.FORMAT_VERSION
    assert config["probjepa_version"] == pj.__version__
    assert config["method"] == "vje"


@pytest.mark.parametrize("value", [math.nan, object(), {1, 2}])
def test_settings_that_are_no_json(value, tmp_path):
    model = small()
    model.settings["view_recipe"] = value
    with pytest.raises(ArtifactError, match="no JSON") as error:
        model.save_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_the_state_and_nothing_else(saved):
    model, folder = saved
    found = load_file(folder / "model.safetensors")
    assert found.keys() == model.state_dict().keys()
    length = struct.unpack("<Q", (folder / "model.safetensors").read_bytes()[:8])[0]
    assert json.loads((folder / "model.safetensors").read_bytes()[8 : 8 + length])  # a plain JSON header


# --- what is refused ------------------------------------------------------------------------------------


def test_another_methods_model(saved):
    class Other(Method):
        name = "other"

    with pytest.raises(
        ArtifactError, match=r"holds a VJE, not a Other: load it with probjepa.load$"
    ) as error:
        Other.from_pretrained(saved[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"model"', "null", "\x00", '{"format_version": 1}'])
def test_damaged_json(text, saved):
    (saved[1] / "config.json").write_text(text)
    refused(saved[1], r"config\.json is damaged")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"settings": ...}, "no 'settings'"),
        ({"preprocess": ...}, "no 'preprocess'"),
        ({"method": ...}, "no 'method'"),
        ({"settings": {}}, "no 'backbone'"),
        ({"settings": {"backbone": "convnet", "warmth": 3}}, "warmth"),
        (
            {"settings": {"backbone": "convnet", "channels": 1, "image_size": 8, "df": -1}},
            "df must be positive",
        ),
        ({"preprocess": {"mean": [0.5]}}, "no 'std'"),
        ({"preprocess": 3}, "damaged"),
    ],
)
def test_config_that_describes_no_model(changes, match, saved):
    edit(saved[1], **changes)
    refused(saved[1], match)
    refused(saved[1], r"config\.json is damaged")


def parts(value, path=()):
    """The paths to all parts of a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from parts(item, (*path, key))


@pytest.mark.parametrize("kind", ["images", "table"])
def test_a_mistyped_part_of_a_config_is_one_line(kind, tmp_path):
    if kind == "images":
        small().save_pretrained(tmp_path)
    else:
        import numpy as np
        import pandas as pd

        rng = np.random.default_rng(0)
        table = pd.DataFrame({"a": rng.normal(size=8), "b": rng.choice(["x", "y"], 8)})
        tiny = {"max_epochs": 1, "dim": 8, "n_heads": 2, "n_layers": 1, "ff_dim": 8}
        pj.TJEPA(**tiny, random_state=0, numeric_transform="quantile").fit(table).save(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    said = []
    for place in parts(json.loads(text)):
        for odd in (None, "x", -1, [[1]], {"a": []}, "deep"):
            content = json.loads(text)
            *parents, last = place
            part = content
            for key in parents:
                part = part[key]
            part[last] = odd
            deep = json.dumps(content).replace('"deep"', "[" * 5000 + "]" * 5000)
            path.write_text(deep)
            try:
                pj.load(tmp_path)
            except ArtifactError as error:
                said.append(str(error))
    assert len(said) > 50
    assert not [line for line in said if "\n" in line or len(line) > 600]


def test_preprocessing_that_contradicts_the_settings(saved):
    _, folder = saved
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["preprocess"]["size"] = 16
    path.write_text(json.dumps(content))
    refused(folder, "the preprocessing has size 16, and image_size is 8")


@pytest.mark.parametrize("version", [0, 2, "1", None, ...])
def test_another_format(version, saved):
    edit(saved[1], format_version=version, probjepa_version="9.9")
    refused(saved[1], r"was written by probjepa 9\.9 in format .* install that version, or train again")


def test_weights_that_may_not_be_read_say_so(saved, monkeypatch):
    opened = open

    def refuse(path, *how, **more):
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *how, **more)

    monkeypatch.setattr("builtins.open", refuse)
    refused(saved[1], r"model\.safetensors cannot be read \(Permission denied\): check it and your rights")


def test_weights_cut_short_or_of_another_model(saved, tmp_path):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        refused(folder, "does not fit its config")
    small(hidden_dim=16).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    refused(folder, "does not fit its config.*size mismatch")
    small(target="ema").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    refused(folder, "does not fit its config.*Unexpected key")


def test_no_model_there(saved, tmp_path):
    _, folder = saved
    refused(tmp_path / "nowhere", "no such model")
    refused("./nowhere/model", "no such model")
    refused(folder / "config.json", "holds no model")
    (folder / "model.safetensors").unlink()
    refused(folder, "holds no model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no model")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["BOMB"])),)


def test_pickles_are_never_read(saved, tmp_path, monkeypatch):
    _, folder = saved
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    bomb = pickle.dumps(Bomb())
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb)
    refused(folder, "holds no model")
    (folder / "model.safetensors").write_bytes(bomb)
    refused(folder, "does not fit its config")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # it would have gone off


# --- classes of one's own -------------------------------------------------------------------------------


class Spread(Method):
    """A loss of a user's package."""

    name = "test-spread"

    def __init__(self, backbone="convnet", *, weight=1.0, teacher=None, **encoder):
        super().__init__(backbone, **encoder)
        self.weight = weight
        self.teacher = teacher

    def loss(self, batch):
        h = self.encoder(torch.cat(list(batch)))
        return {"loss": -self.weight * h.std(0).mean()}


@pytest.fixture
def registered():
    METHODS.register(Spread.name, Spread)
    yield Spread
    METHODS.remove(Spread.name)


def test_a_module_that_has_no_place_is_named(tmp_path):
    pj.VarJEPA(x_dim=4, y_dim=4, hidden=(4,), seed=0).save_pretrained(tmp_path / "pairs")
    refused(
        tmp_path / "pairs", "holds a VarJEPA, which takes no backbone: leave it", backbone=nn.Linear(2, 2)
    )
    pj.VarTJEPA(max_epochs=1, dim=8, random_state=0).fit(pd.DataFrame({"a": range(40)})).save(
        tmp_path / "rows"
    )
    refused(tmp_path / "rows", "holds a VarTJEPA, which takes no head: leave it out", head=nn.Linear(2, 2))


def test_a_registered_method_trains_saves_and_loads(registered, tmp_path):
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    made = METHODS["test-spread"](
        channels=1, image_size=8, weight=0.5, backbone_options={"widths": (4, 8)}, teacher=nn.Linear(2, 2)
    )
    pj.fit(made, images, epochs=1, batch_size=8, out=tmp_path / "run", device="cpu", progress=False)
    loaded = pj.load(tmp_path / "run", teacher=nn.Linear(2, 2))
    assert type(loaded) is Spread
    assert loaded.weight == 0.5
    assert same(loaded, made)
    refused(tmp_path / "run", r"built on a teacher of its user's own: pass it, load\(…, teacher=module\)")
    refused(tmp_path / "run", "takes no head: leave it out", teacher=nn.Linear(2, 2), head=nn.Linear(1, 1))


def test_a_method_that_no_installed_package_registers(registered, tmp_path):
    registered(channels=1, image_size=8).save_pretrained(tmp_path)
    METHODS.remove("test-spread")
    refused(tmp_path, "unknown method 'test-spread' .*: import the module that registers it, or install")


def test_an_unknown_method_is_named_with_the_nearest(saved):
    edit(saved[1], method="vj")
    refused(saved[1], "holds an unknown method 'vj', did you mean 'vje'")
    edit(saved[1], method="v\nj")
    refused(saved[1], "holds an unknown method 'v j'")


def test_options_that_a_source_has_no_use_for_are_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match="unknown option of load 'revisionn', did you mean 'revision'"):
        pj.load(saved[1], revisionn="x")
    with pytest.raises(ConfigError, match="mean goes with a registered backbone's weights"):
        pj.open_encoder(saved[1], mean=[0.1])
    with pytest.raises(ConfigError, match="head goes with a saved model"):
        pj.load(f"resnet20:{tmp_path}/r20.pt", head=torch.nn.Linear(2, 2))


def test_a_target_is_read_beside_a_run_s_model_alone(tmp_path):
    for name in ("model", "tab"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).write_text("{}")
    (tmp_path / "config.yaml").write_text("target: [3]")
    assert target_of(tmp_path / "tab") is None
    with pytest.raises(ConfigError, match=r"the setting target, in .*config\.yaml, takes"):
        target_of(tmp_path)
    (tmp_path / "config.yaml").write_text("target: income")
    assert target_of(tmp_path) == target_of(tmp_path / "model") == "income"


def test_a_vision_model_of_transformers_is_a_backbone(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, num_channels=1,
    )  # fmt: skip
    vit = transformers.ViTModel(config)
    model = small(backbone=vit)
    assert model.embedding_dim == 16
    with torch.no_grad():
        expected = vit.eval()(model.preprocess(pixels())).last_hidden_state[:, 0]  # the class token
    torch.testing.assert_close(model.embed(pixels()), expected)
    views = [model.preprocess(pixels()), model.preprocess(pixels(5))]
    model.loss(views)["loss"].backward()
    assert vit.embeddings.patch_embeddings.projection.weight.grad is not None
    model.save_pretrained(tmp_path / "own")
    assert same(pj.load(tmp_path / "own", backbone=transformers.ViTModel(config)), model)
    # by name: a folder as transformers writes it
    vit.save_pretrained(tmp_path / "vit")
    named = pj.VJE(f"hf:{tmp_path / 'vit'}", channels=1, image_size=8, backbone_options={"pooling": "mean"})
    with torch.no_grad():
        tokens = vit(named.preprocess(pixels())).last_hidden_state[:, 1:]
    torch.testing.assert_close(named.embed(pixels()), tokens.mean(1))
    named.save_pretrained(tmp_path / "named")
    assert same(pj.load(tmp_path / "named"), named)
    fresh = named.reinitialised(seed=1)  # from its configuration, pooled alike
    assert fresh.encoder.pooling == "mean" and not torch.equal(fresh.embed(pixels()), named.embed(pixels()))
    assert torch.equal(fresh.embed(pixels()), named.reinitialised(seed=1).embed(pixels()))
    with pytest.raises(ConfigError, match="has no option 'width'"):
        pj.VJE(f"hf:{tmp_path / 'vit'}", channels=1, image_size=8, backbone_options={"width": 2})
    with pytest.raises(ConfigError, match="give a name of `probjepa list` or a torch module"):
        pj.VJE(3)
