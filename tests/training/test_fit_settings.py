"""Settings of a run: declared once, typed, documented where they are taken."""

import dataclasses
import inspect
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import probjepa as pj
from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.training import FitSettings, Module
from probjepa.training.device import resolve_device
from probjepa.training.optim import OPTIMIZERS, make_optimizer
from probjepa.training.settings import LoopSettings
from processes import held

HUGE = 10**5000  # Python does not even write it out


def method():
    torch.manual_seed(0)
    return pj.VJE("convnet", backbone_options={"widths": (4, 8)}, channels=1, image_size=8)


def train(of=None, **settings):
    data = torch.randint(0, 256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
    defaults = {"epochs": 1, "batch_size": 8, "progress": False, "device": "cpu"}
    return pj.fit(method() if of is None else of, data, **defaults | settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate takes a number or null, got 'fast'"),
        (
            {"learning_rate": HUGE},
            "learning_rate takes a number or null, got 'a number of thousands of digits'",
        ),
        ({"warmup_epochs": [1]}, r"warmup_epochs takes a number or null, got '\[1\]'"),
        ({"batch_size": 8.5}, "batch_size takes a whole number, got '8.5'"),
        ({"batch_size": True}, "batch_size takes a whole number, got 'True'"),
        ({"batch_size": float("nan")}, "batch_size takes a whole number, got 'nan'"),
        ({"seed": HUGE}, "seed takes a whole number, got 'a number of thousands of digits'"),
        ({"epochs": "3"}, "epochs takes a whole number, got '3'"),
        ({"device": 1}, "device takes a name, got '1'"),
        ({"loggers": 3}, "unknown logger '3'"),
        ({"loggers": "csv"}, "unknown logger 'csv'"),
        ({"loggers": [3]}, "unknown logger '3'"),
        ({"channels_last": "yes"}, "channels_last takes true or false or 'auto', got 'yes'"),
        ({"on_error": "stop"}, "on_error takes 'raise' or 'skip', got 'stop'"),
        ({"knn_every": "x" * 100}, "knn_every takes a whole number or null, got 'x{59}…'"),
        ({"views": 1.5}, "views takes a view recipe's name, a number or a module, got 1.5"),
        ({"views": "digit"}, "unknown view recipe 'digit', did you mean 'digits'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam', did you mean 'adamw'"),
        ({"learning_rate": -1}, "learning_rate must be a positive number, got -1"),
        ({"gradient_clip_val": -1}, "gradient_clip_val must be 0 or more, got -1"),
        *[
            ({name: least - 1}, f"{name} must be {least} or more, got {least - 1}")
            for name, least in [
                ("knn_every", 0),
                ("monitor_every", 0),
                ("workers", 0),
                ("checkpoint_seconds", 0),
                ("decode_size", 8),
                ("accumulate_grad_batches", 1),
            ]
        ],
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds must be 0 or more, got nan"),
        ({"momentum": 0.5}, "unknown setting 'momentum', did you mean 'sgd_momentum'"),
        ({"sgd_momentum": 1.5}, r"sgd_momentum must lie in \[0, 1\), got 1.5"),
        ({"sgd_momentum": 0.5, "optimizer": "adamw"}, "sgd_momentum is 0.5, and the optimizer is 'adamw'"),
    ],
)
def test_a_wrong_setting_is_one_line(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        train(**setting, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["vje", pj.VJE, nn.Linear(2, 2), None, pj.VarJEPA(x_dim=2, y_dim=2)])
def test_what_is_no_method_of_images_is_refused_where_it_is_given(what):
    with pytest.raises(ConfigError, match=r"fit takes a method, such as VJE\('resnet18'\), got ") as caught:
        pj.fit(what, "no such folder", epochs=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", [Path, lambda images, seed: [images], nn.Identity(), 3, ["digits"]])
def test_a_view_recipe_that_is_no_name_is_refused_where_it_is_given(recipe):
    with pytest.raises(ConfigError, match=r"view_recipe takes the name of a view recipe, got .*views=module"):
        pj.SimSiam("convnet", view_recipe=recipe)


def test_the_adapter_checks_the_same_and_says_the_nearest_name():
    for settings, message in [
        ({"learning_rate": "fast"}, "learning_rate takes a number or null, got 'fast'"),
        ({"learning_rat": 1.0}, "unknown setting 'learning_rat', did you mean 'learning_rate'"),
        ({"batch_size": 8}, "unknown setting 'batch_size'"),
        ({"channels_last": "yes"}, "channels_last takes true or false, got 'yes'"),
        ({"compile": "no"}, "compile takes true or false, got 'no'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Module(method(), epochs=1, **settings)


def test_the_adapter_takes_methods_alone():
    for what, message in [
        ("vje", "method is a module such as pj.VJE.backbone., got 'vje'"),
        (pj.VJE, "method is a module such as pj.VJE.backbone., got <class"),
        (nn.Linear(2, 2), "a Linear has no loss and no after_step"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Module(what, epochs=1)


def test_numpy_numbers_and_devices_are_taken():
    settings = FitSettings(
        learning_rate=np.float32(0.5), warmup_epochs=np.int64(2), device=torch.device("cuda", 1)
    )
    assert (settings.learning_rate, settings.resolved({}, 3)["warmup_epochs"]) == (0.5, 2)
    assert settings.device == "cuda:1"
    assert FitSettings(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize("taker", [pj.fit, Module])
def test_signature_and_help_have_every_setting(taker):
    settings = FitSettings if taker is pj.fit else LoopSettings
    parameters = inspect.signature(taker).parameters
    for field in dataclasses.fields(settings):
        assert parameters[field.name].default == field.default
        if taker is pj.fit:
            assert any(field.name in line.split(", ") for line in pj.fit.__doc__.splitlines()), field.name


def test_signatures_are_short():
    for taker in (pj.fit, Module.__init__):
        code = inspect.unwrap(taker).__code__
        assert code.co_argcount + code.co_kwonlyargcount <= 12


class Halves(nn.Module):
    """Two views without chance: the image, and the image in half the contrast."""

    def forward(self, images, seed):
        x = images.float() / 255
        return [x, x / 2]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_views_are_the_recipes_of_a_name_or_a_module(tmp_path):
    own = weights(train())
    assert torch.equal(weights(train(views=method().view_recipe)), own)
    given = weights(train(views=Halves(), out=tmp_path / "run"))
    assert not torch.equal(given, own)
    assert "views: Halves" in (tmp_path / "run" / "config.yaml").read_text()
    assert torch.equal(weights(train(views=Halves(), out=tmp_path / "run", resume=True)), given)
    with pytest.raises(ArtifactError, match="views=Halves, this run has None"):
        train(out=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="a VarJEPA trains on pairs, not on views"):
        Module(pj.VarJEPA(x_dim=2, y_dim=2), epochs=1, views="digits")


def test_what_is_no_setting_goes_to_the_trainer():
    seen = []

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append((trainer.accumulate_grad_batches, trainer.precision))

    train(accumulate_grad_batches=2, precision="bf16-mixed", callbacks=[Look()])
    assert seen == [(2, "bf16-mixed")]


@pytest.mark.parametrize("listens", [False, True])
def test_terms_are_logged_where_somebody_listens(monkeypatch, tmp_path, listens):
    seen, log_dict = [], Module.log_dict

    class Listener(L.Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append(sorted(trainer.callback_metrics))

    monkeypatch.setattr(
        Module, "log_dict", lambda self, of, **how: [seen.append(1), log_dict(self, of, **how)]
    )
    train(out=tmp_path / "run", monitor_every=0, **({"callbacks": [Listener()]} if listens else {}))
    terms = ["directional", "kl", "loss", "mean_variance", "radial"]
    assert seen == ([1, 1, [f"train/{name}" for name in terms]] if listens else [])
    columns = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert sorted(name for name in columns if "/" in name) == [f"train/{name}" for name in terms]


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_fit_in_another_type_of_weights_works_and_leaves_the_default_type(precision):
    model = train(precision=precision)
    wanted = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}[precision]
    assert model.dtype == wanted
    assert model.embed(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).isfinite().all()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_step_moves_every_weight_in_every_type(name, dtype):
    layer = torch.nn.Linear(37, 41).to(dtype)
    before = [weight.detach().clone() for weight in layer.parameters()]
    optimizer = make_optimizer(name, layer, learning_rate=0.5, weight_decay=0.0)
    for _ in range(2):
        for weight in layer.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert all((weight != was).all() for weight, was in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize("clipped_by", [{"gradient_clip_val": 0.1}, {"gradient_clip_algorithm": "value"}])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision(precision, clipped_by):
    plain = train(precision=precision)
    assert not torch.equal(
        weights(train(precision=precision, **{"gradient_clip_val": 0.1, **clipped_by})), weights(plain)
    )


def test_a_fit_does_not_depend_on_the_callers_mode_of_gradients():
    def fitted(method):
        return pj.fit(method, np.zeros((8, 1, 16, 16), "uint8"), epochs=1, batch_size=4, progress=False)

    def make():
        return pj.SimSiam("convnet", channels=1, image_size=16, seed=0)

    expected = fitted(make()).state_dict()
    for mode in (torch.no_grad, torch.inference_mode):
        method = make()
        with mode():
            found = fitted(method).state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    with torch.inference_mode():
        method = make()
    with pytest.raises(ConfigError, match=r"made under torch\.inference_mode"):
        fitted(method)


def test_the_momentum_of_a_recipe_is_of_its_own_optimizer():
    recipe = {"sgd_momentum": 0.95}
    assert LoopSettings().resolved(recipe, 10)["sgd_momentum"] == 0.95
    assert LoopSettings(optimizer="adamw").resolved(recipe, 10)["sgd_momentum"] == 0.9
    with pytest.raises(ConfigError, match=r"sgd_momentum is 0\.95, and the optimizer is 'adamw'"):
        LoopSettings(optimizer="adamw", sgd_momentum=0.95).resolved(recipe, 10)


def test_a_logger_may_stand_alone(tmp_path):
    train(loggers=CSVLogger(tmp_path))
    assert list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("wrong", [{"warmup_epochs": 5}, {"strategy": "nonsense"}, {"knn_every": 1}], ids=str)
def test_a_refused_run_leaves_the_method_as_it_was(wrong):
    untrained = method().eval()
    weights = {key: value.clone() for key, value in untrained.state_dict().items()}
    dark = torch.randint(0, 60, (20, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
    with pytest.raises(ConfigError):
        pj.fit(untrained, dark, epochs=1, batch_size=8, progress=False, device="cpu", **wrong)
    assert not untrained.calibrated and not untrained.training
    assert all(torch.equal(value, weights[key]) for key, value in untrained.state_dict().items())
    bright = dark + 190
    pj.fit(untrained, bright, epochs=1, batch_size=8, progress=False, device="cpu")
    assert untrained.preprocess.config()["mean"][0] == pytest.approx(
        float(bright.float().mean()) / 255, abs=1e-4
    )


def test_gradients_go_with_the_run_and_an_error_in_it_leaves_evaluation_mode():
    class Fails(L.Callback):
        def on_train_batch_end(self, *_):
            raise DataError("the disk is full")

    trained = train()
    assert not trained.training and all(p.grad is None for p in trained.parameters())
    broken = method()
    with pytest.raises(DataError, match="the disk is full"):
        train(broken, callbacks=[Fails()])
    assert not broken.training and broken.calibrated and all(p.grad is None for p in broken.parameters())


def test_cuda_is_the_current_gpu_as_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = [str(resolve_device(name)) for name in ("auto", "cuda", "cuda:0")]
    assert found == ["cuda:1", "cuda:1", "cuda:0"]


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_that_another_process_trains_is_left_alone(how, tmp_path):
    out = tmp_path / "run"
    if how:
        train(out=out)
    before = {place: place.read_bytes() for place in out.rglob("*") if place.is_file()}
    with (
        held(out, folder=True),
        pytest.raises(ArtifactError, match=r"another process writes .*run: wait for it"),
    ):
        train(out=out, **how)
    assert {place: place.read_bytes() for place in out.rglob("*") if place.is_file()} == before
    train(out=out, **how)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["run"]
