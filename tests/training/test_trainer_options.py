"""What a Trainer is given: refused where it would do nothing or change the schedule, and put back after it."""

import os

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateMonitor,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.plugins import LayerSync
from torch import nn

import probjepa as pj
from probjepa.errors import ArtifactError, ConfigError, ProbjepaWarning
from probjepa.training import Module, processes
from probjepa.training.loader import make_loader


def method(**settings):
    options = {"widths": (4, 8)}
    return pj.VJE("convnet", backbone_options=options, channels=1, image_size=8, seed=0, **settings)


def images(n=24):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()


def train(data=None, **settings):
    defaults = {"epochs": 1, "batch_size": 8, "progress": False, "device": "cpu", "monitor_every": 0}
    return pj.fit(method(), images() if data is None else data, **defaults | settings)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"overfit_batches": 2}, "overfit_batches would take other images each epoch"),
        ({"limit_train_batches": 0}, "limit_train_batches is 0, which trains nothing"),
        ({"limit_train_batches": 0.01}, "Lightning cannot train with these settings"),
        ({"callbacks": "x"}, "callbacks takes callbacks of lightning.pytorch, got 'x'"),
        ({"callbacks": [3]}, "callbacks takes callbacks of lightning.pytorch, got 3"),
        ({"callbacks": LearningRateMonitor()}, "Lightning cannot train with these settings"),  # it logs
        ({"callbacks": GradientAccumulationScheduler({0: 1, 1: 2})}, "give accumulate_grad_batches=N"),
        ({"max_time": {"hours": 1}}, "max_time would end the run as if it were whole: stop it by Ctrl-C"),
        ({"callbacks": Timer({"hours": 1})}, "a Timer would end the run as if it were whole"),
        ({"fast_dev_run": True}, "fast_dev_run would end .*: give epochs=1 and limit_train_batches=1"),
        ({"profiler": "xla"}, "Lightning cannot train with these settings: .*torch_xla"),
        ({"log_every_n_steps": "x"}, "the setting log_every_n_steps takes a whole number, got 'x'"),
        ({"detect_anomaly": "x"}, "the setting detect_anomaly takes true or false, got 'x'"),
        ({"deterministic": "wran"}, "the setting deterministic takes true or false or 'warn', got 'wran'"),
        ({"epochs": None}, "the setting epochs takes a whole number, got 'null'"),
        ({"precision": None}, "the setting precision takes .*, got 'null'"),
        ({"out": 3}, "out takes the path of a folder, got 3"),
    ],
    ids=lambda of: next(iter(of)) if isinstance(of, dict) else "",
)
def test_what_a_trainer_cannot_take_is_one_line(given, says):
    with pytest.raises(ConfigError, match=says):
        train(**given)


def test_an_opened_set_is_not_streamed():
    with pytest.raises(ConfigError, match="stream=True is for data that fit opens"):
        train(pj.open_images(images()), stream=True)


def test_numbers_of_numpy_are_numbers(tmp_path):
    kept = train(
        epochs=np.int64(2), accumulate_grad_batches=np.int64(1), limit_train_batches=np.float64(0.75),
        out=tmp_path / "run",
    )  # fmt: skip
    plain = train(epochs=2, limit_train_batches=0.75)
    assert all(map(torch.equal, kept.state_dict().values(), plain.state_dict().values()))


def test_a_trainer_of_ones_own_refuses_them_too():
    trainer = own_trainer(2, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
    with pytest.raises(ConfigError, match="give accumulate_grad_batches=N"):
        trainer.fit(Module(method(), epochs=2), make_loader(pj.open_images(images()), 8, seed=0))


def own_trainer(epochs, precision="32-true", **more):
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, precision=precision,
        enable_progress_bar=False, enable_model_summary=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_resume_by_a_trainer_of_ones_own_is_exact(tmp_path, precision):
    loader = make_loader(pj.open_images(images()), 8, seed=0)
    whole = Module(method(), epochs=2)
    own_trainer(2, precision).fit(whole, loader)
    half, trainer = Module(method(), epochs=2), own_trainer(1, precision)
    trainer.fit(half, loader)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = Module(method(), epochs=2)
    own_trainer(2, precision).fit(rest, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))
    other = Module(method(df=7.0), epochs=2)
    with pytest.raises(ArtifactError, match=r"was made with method\.df="):
        own_trainer(2, precision).fit(other, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=True)


def test_the_process_is_as_it_was(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with torch.no_grad():
        train(deterministic=True)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


class NormAct(nn.BatchNorm2d):
    """As timm's: it activates too."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, NormAct])
def test_batch_norm_of_ones_own_is_itself_in_evaluation_and_refused_in_training(kind, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(processes, "summed", lambda x: 2 * x)  # two processes of equal rows
    layer, x = kind(3), torch.randn(4, 3, 2, 2)
    plain = kind(3)
    sync: LayerSync = processes.SyncBatchNorm()
    sync.apply(layer)
    assert isinstance(layer, kind)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))
    if kind is NormAct:
        with pytest.raises(ConfigError, match="a NormAct has a forward pass of its own"):
            layer.train()(x)
        with pytest.raises(ConfigError, match="a NormAct has a forward pass of its own"):
            processes.TorchSync().apply(nn.Sequential(kind(3)))
    else:
        torch.testing.assert_close(layer.train()(x), plain.train()(x))
    sync.revert(layer)
    assert type(layer) is kind


def test_an_averaging_of_weights_with_a_rate_of_its_own_is_told():
    averaging = StochasticWeightAveraging(1.0, swa_epoch_start=1)
    trainer = own_trainer(2, callbacks=[averaging])
    calibrated = method(mean=[0.5], std=[0.25])
    with pytest.warns(ProbjepaWarning) as caught:
        trainer.fit(Module(calibrated, epochs=2), make_loader(pj.open_images(images()), 8, seed=0))
    (said,) = [str(of.message) for of in caught if of.category is ProbjepaWarning]
    assert "its swa_lrs are not used" in said  # and nothing of the epoch that Lightning adds
