"""The adapter under a user's own Trainer, what it refuses, and what the monitors see."""

import math
import warnings

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from probjepa.data import ImageSet
from probjepa.errors import ConfigError, ProbjepaError, ProbjepaWarning
from probjepa.methods.ijepa import IJEPA
from probjepa.methods.vi_simsiam import VISimSiam
from probjepa.methods.vje import VJE
from probjepa.training.callbacks import MetricsTable
from probjepa.training.loader import EpochLoader
from probjepa.training.module import Module
from probjepa.training.monitors import (
    CollapseMonitor,
    OnlineKNN,
    undisturbed,
)
from probjepa.training.schedules import step_seed, warmup_cosine


class Toy(nn.Module):
    """A stand-in method: embeds an image by a linear map, with dropout and a norm to see modes by."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        self.steps, self.draws, self.poison = [], [], None

    @property
    def device(self):
        return self.net[3].weight.device

    def embed(self, x):
        return self.net(x.float())

    def loss(self, batch):
        self.draws.append(torch.rand(()).item())
        fit = sum(self.net(view).square().mean() for view in batch)
        bad = {"nan": fit * math.nan, "gradient": torch.sqrt(fit * 0)}.get(self.poison, torch.zeros(()))
        return {"loss": fit + bad, "fit": fit}

    def after_step(self, step, total_steps):
        self.steps.append((step, total_steps))


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.seeds = []

    def forward(self, images, seed):
        self.seeds.append(seed)
        return [images / 255, 1 - images / 255]


def image_set(n=12, labels=None, pixels=None):
    if pixels is None:
        pixels = torch.randint(0, 256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(1))
    return ImageSet(pixels.to(torch.uint8), labels, [str(i) for i in range(n)])


def trainer(**options):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**quiet | options)


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((trainer.optimizers[0].param_groups[0]["lr"], pl_module.terms))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning")
def test_a_users_own_trainer_and_loader():
    method, views, rates = Toy(), Views(), Rates()
    module = Module(method, epochs=2, learning_rate=0.5, warmup_epochs=1, seed=7, views=views)
    method.eval()
    own = trainer(max_epochs=2, callbacks=[rates])
    data = torch.utils.data.TensorDataset(image_set().images, torch.arange(12))
    own.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    assert method.steps == [(step, 6) for step in range(6)]
    assert [rate for rate, _ in rates.seen] == [0.5 * warmup_cosine(step, 6, 3) for step in range(6)]
    assert views.seeds == [step_seed(7, step, 0) for step in range(6)]
    streams = [torch.Generator().manual_seed(step_seed(seed, 0)) for seed in views.seeds]
    expected = [torch.rand((), generator=stream).item() for stream in streams]
    assert method.draws == expected
    assert method.training
    terms = rates.seen[-1][1]
    assert terms["loss"] == terms["fit"] == own.callback_metrics["train/loss"] > 0


@pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning")
@pytest.mark.parametrize(
    ("poison", "message"),
    [("nan", "the loss term loss is not finite at step 2"), ("gradient", "gradient of ")],
)
def test_what_is_not_finite_is_named_and_no_step_is_taken(poison, message):
    method = Toy()

    class Poison(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            method.poison = poison if trainer.global_step == 2 else None

    module = Module(method, epochs=1, views=Views())
    with pytest.raises(ProbjepaError, match=message) as caught:
        trainer(max_epochs=1, callbacks=[Poison()]).fit(module, EpochLoader(image_set(), 3, seed=0))
    assert "\n" not in str(caught.value)
    assert "clip the gradient (gradient_clip_val=1)" in str(caught.value)
    assert "32-true" not in str(caught.value)  # it is that
    assert len(method.steps) == 2
    assert all(bool(p.isfinite().all()) for p in method.parameters())


def test_evaluation_leaves_no_trace():
    method = Toy()
    method.net[2].eval()
    modes = [m.training for m in method.modules()]
    state = torch.random.get_rng_state()
    with undisturbed(method):
        assert not any(m.training for m in method.modules())
        torch.rand(3)
        assert not method.embed(torch.zeros(2, 4)).requires_grad
    assert [m.training for m in method.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning")
def test_knn_and_table_follow_their_epochs(tmp_path):
    labels = torch.arange(40) % 2
    pixels = (labels * 200)[:, None, None, None] + torch.arange(4).reshape(1, 1, 2, 2) * labels.reshape(
        -1, 1, 1, 1
    )
    train, val = (image_set(40, labels, pixels) for _ in range(2))
    table = MetricsTable(tmp_path / "metrics.csv")
    module = Module(Toy(), epochs=3, learning_rate=1e-9, views=Views())
    knn = OnlineKNN(train, val, every_n_epochs=2, k=5)
    trainer(max_epochs=3, callbacks=[knn, table]).fit(module, EpochLoader(train, 10, seed=0))
    assert [row.get("knn") for row in table.rows] == [None, 1.0, 1.0]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,train/loss,train/fit,learning_rate,knn,seconds"
    assert lines[1].split(",")[-2] == ""
    with pytest.raises(ConfigError, match="has no labels"):
        OnlineKNN(image_set(), val)


def test_collapse_monitor_measures_spread_and_posterior():
    torch.manual_seed(0)
    options = {"widths": (4, 8)}
    method = VJE("convnet", backbone_options=options, channels=1, image_size=8, mean=(0.5,), std=(0.25,))
    pixels = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    monitor = CollapseMonitor(image_set(30, pixels=pixels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)
        values = monitor.measure(method)
    h = torch.nn.functional.normalize(method.embed(pixels.to(torch.uint8)), dim=1)
    posterior = method.posterior(pixels.to(torch.uint8))
    prior = torch.distributions.Normal(torch.zeros(8), torch.ones(8))
    kl = torch.distributions.kl_divergence(posterior.base_dist, prior)
    assert values["std_min"] == pytest.approx(h.std(0, correction=0).min().item(), rel=1e-4)
    assert values["mean_variance"] == pytest.approx(posterior.variance.mean().item(), rel=1e-4)
    assert values["kl_per_dim"] == pytest.approx(kl.mean().item(), rel=1e-4)


def test_the_divergence_is_per_dimension_of_the_posterior_not_of_the_embedding():
    torch.manual_seed(0)
    sizes = {"channels": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}
    method = VISimSiam("convnet", backbone_options={"widths": (4, 8)}, projector_dim=32, **sizes)
    pixels = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)
        values = CollapseMonitor(image_set(30, pixels=pixels)).measure(method)
    kl = method.uncertainty(pixels.to(torch.uint8))["kl"].mean().item()
    assert values["kl_per_dim"] == pytest.approx(kl / 32, rel=1e-4)
    assert 1 <= values["effective_rank"] <= 8


def test_collapse_monitor_asks_for_no_prediction():
    vit = {"patch_size": 4, "width": 8, "depth": 1, "heads": 2}
    method = IJEPA(channels=1, image_size=16, backbone_options=vit, predictor_width=8, predictor_heads=2)
    method.head.forward = None  # a prediction of 2,048 images takes minutes with some heads
    monitor = CollapseMonitor(image_set(6, pixels=torch.randint(0, 256, (6, 1, 16, 16))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)
        assert set(monitor.measure(method)) == {"effective_rank", "std_mean", "std_min"}


def test_a_collapse_is_warned_of_once():
    method = Toy()
    monitor = CollapseMonitor(image_set(pixels=torch.zeros(12, 1, 2, 2)))
    with pytest.warns(ProbjepaWarning, match="embeddings have collapsed"):
        monitor.measure(method.eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure(method)


@pytest.mark.parametrize(("epochs", "said"), [(1, False), (9, False), (10, True)])
@pytest.mark.parametrize("settings", [{"df": 1.0}, {}])
def test_a_collapse_is_judged_by_epoch_and_its_advice_by_method(epochs, said, settings, monkeypatch):
    method = Toy().eval()
    method.settings = settings
    found = {"effective_rank": 1.5, "std_mean": 0.1, "rank_me": 1.5}
    monkeypatch.setattr("probjepa.metrics.collapse.collapse_summary", lambda _: found)
    monitor = CollapseMonitor(image_set(pixels=torch.zeros(12, 1, 2, 2)))
    monitor.epochs = epochs
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor.measure(method)
    assert [("lower df" in str(one.message)) for one in caught] == ([bool(settings)] if said else [])
