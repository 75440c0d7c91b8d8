"""What a GPU must do as the CPU does: losses, runs, scores. Without one they are skipped.

``PROBJEPA_TEST_DEVICE=cpu`` runs them on the CPU, which shows that they run, not that a GPU agrees.
"""

import csv
import os
import warnings

import numpy as np
import pytest
import torch

import probjepa as pj
from probjepa.data import ImageSet
from probjepa.data.views import views
from probjepa.evaluation import evaluate
from probjepa.heads import HEADS
from probjepa.jacobian import jacobian_spectrum, jepa_score, singular_vectors
from probjepa.methods import METHODS, ProbabilisticMethod
from probjepa.scores import SCORES, score_set
from probjepa.training import Interrupted, fit
from probjepa.yaml_files import read_yaml
from processes import free_port

DEVICE = os.environ.get("PROBJEPA_TEST_DEVICE", "cuda")
GPU = DEVICE.startswith("cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(GPU and not torch.cuda.is_available(), reason="needs a GPU"),
]
SMALL = {"channels": 3, "image_size": 16}
OWN = {
    "i-jepa": {
        "backbone_options": {"patch_size": 4, "width": 16, "depth": 2, "heads": 2},
        "predictor_width": 16,
        "predictor_depth": 1,
        "score_masks": 1,
        "score_draws": 2,
    },
}
RESNET = {"backbone": "resnet18", "backbone_options": {"width": 0.125}}


@pytest.fixture(autouse=True)
def exact_float32():
    """TF32 has ten bits of mantissa: the CPU's figures are compared with those of float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def pixels(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)


def small(name, **settings):
    torch.manual_seed(0)
    return METHODS[name](seed=0, **SMALL, **OWN.get(name, RESNET), **settings)


def train(out, name="vje", *, epochs=3, **settings):
    common = {"batch_size": 8, "progress": False, "device": DEVICE, "learning_rate": 0.01}
    return fit(small(name), pixels(), epochs=epochs, out=out, **common | settings)


def table(out):
    with open(out / "metrics.csv") as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds" and v} for row in csv.DictReader(file)]


@pytest.mark.parametrize("recipe", ["byol-32", "byol-32-solarised", "byol-224", "digits", "ijepa"])
def test_the_same_seed_gives_the_same_views(recipe):
    make = views(recipe, size=16, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    here, there = make(pixels(), 3), make.to(DEVICE)(pixels().to(DEVICE), 3)
    for one, other in zip(here, there, strict=True):
        assert other.device.type == torch.device(DEVICE).type
        torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-4)


# without draws, whose numbers are the device's own
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("vi-simsiam", "lejepa")])
def test_losses_and_gradients_are_the_cpus(name):
    settings = {"vje": {"draws": 0}, "i-jepa": {"head": "deterministic"}}.get(name, {})
    model = small(name, **settings).train()
    batch = views(model.view_recipe, **model.preprocess.config())(pixels(), 0)
    found = {}
    for device in ("cpu", DEVICE):
        model.to(device).zero_grad()
        torch.manual_seed(1)
        loss = model.loss([view.to(device) for view in batch])["loss"]
        loss.backward()
        found[device] = (
            loss.detach().cpu(),
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).cpu(),
        )
    torch.testing.assert_close(found[DEVICE], found["cpu"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_embeds_and_scores(tmp_path, name):
    out = tmp_path / "run"
    model = train(out, name, epochs=1)
    assert model.device.type == torch.device(DEVICE).type
    rows = table(out)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    again = pj.load(out / "model").to("cpu")
    torch.testing.assert_close(model.embed(pixels()).cpu(), again.embed(pixels()), rtol=1e-3, atol=1e-3)
    if isinstance(model, ProbabilisticMethod):
        # a diffusion's or flow's scores draw noise, always on the CPU
        torch.testing.assert_close(
            model.score_samples(pixels()).cpu(), again.score_samples(pixels()), rtol=1e-2, atol=1e-2
        )


def test_on_its_own_a_gpu_trains_in_bfloat16_and_channels_last(tmp_path):
    model = train(tmp_path / "run", epochs=1)
    config = read_yaml(tmp_path / "run" / "config.yaml")
    convolution = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1)
    last = convolution.weight.is_contiguous(memory_format=torch.channels_last)
    if GPU:
        assert config["precision"] == "bf16-mixed"
        assert last


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_precisions_and_memory_orders_agree(tmp_path, precision, channels_last):
    settings = {"precision": precision, "channels_last": channels_last}
    train(tmp_path / "run", "simsiam", epochs=2, **settings)
    train(tmp_path / "plain", "simsiam", epochs=2, precision="32-true", channels_last=False)
    close = {"rel": 1e-3, "abs": 1e-3} if precision == "32-true" else {"rel": 0.1, "abs": 0.1}
    got, exact = (table(tmp_path / name)[0]["train/loss"] for name in ("run", "plain"))
    assert got == pytest.approx(exact, **close)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, workers):
    import lightning.pytorch as L

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4 and not resumed:
                os.kill(os.getpid(), 2)

    settings = {"precision": "32-true", "workers": workers}
    # cuDNN's fastest convolutions add in an order of their own
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        resumed = True
        whole = train(tmp_path / "whole", **settings)
        resumed = False
        with pytest.raises(Interrupted):
            train(tmp_path / "run", callbacks=[Stop()], **settings)
        resumed = True
        again = train(tmp_path / "run", resume=True, **settings)
    finally:
        torch.backends.cudnn.deterministic = before
    for (key, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_both_optimisers_step_as_on_the_cpu(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "precision": "32-true", "channels_last": False, "learning_rate": 1e-3}
    one = train(tmp_path / "there", "simsiam", epochs=1, **settings)
    other = train(tmp_path / "here", "simsiam", epochs=1, **settings | {"device": "cpu"})
    first, second = (table(tmp_path / name)[0]["train/loss"] for name in ("there", "here"))
    assert first == pytest.approx(second, rel=1e-2, abs=1e-2)
    assert one.embed(pixels()).cpu().numpy() == pytest.approx(other.embed(pixels()).numpy(), rel=0.2, abs=0.2)


# on a GPU the later steps replay a CUDA graph
@pytest.mark.parametrize(
    ("name", "settings"),
    [("simsiam", {}), ("vje", {"draws": 0}), ("vje", {"draws": 0, "target": "ema"}), ("byol", {})],
    ids=["simsiam", "vje", "vje-ema", "byol"],
)
def test_a_compiled_loss_is_the_loss(tmp_path, name, settings):
    common = {"precision": "32-true", "epochs": 4, "batch_size": 8, "progress": False, "device": DEVICE}
    for folder, compiled in (("compiled", True), ("eager", False)):
        model = METHODS[name]("convnet", backbone_options={"widths": (8, 16)}, seed=0, **SMALL, **settings)
        fit(model, pixels(), out=tmp_path / folder, compile=compiled, learning_rate=1e-3, **common)
    got, exact = ([row["train/loss"] for row in table(tmp_path / each)] for each in ("compiled", "eager"))
    assert got == pytest.approx(exact, rel=1e-2, abs=1e-2)


def test_ddp_of_one_process_is_the_run_without_it(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    settings = {"precision": "32-true", "epochs": 1}
    train(tmp_path / "ddp", "simsiam", strategy="ddp", **settings)
    torch.distributed.destroy_process_group()
    train(tmp_path / "alone", "simsiam", **settings)
    got, exact = (table(tmp_path / name)[0]["train/loss"] for name in ("ddp", "alone"))
    assert got == pytest.approx(exact, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("score", ["likelihood", "predictive", "knn", "mahalanobis", "gmm", "fisher", "jepa"])
def test_scores_are_the_cpus(score):
    assert score in SCORES
    model = small("vje").eval()
    known = {} if score == "likelihood" else {"reference": pixels(60, seed=1), "seed": 0}
    found = {}
    for device in ("cpu", DEVICE):
        found[device] = score_set(model.to(device), pixels(), score, **known)[0]
    here, there = (np.asarray(torch.as_tensor(found[device]).cpu()) for device in ("cpu", DEVICE))
    np.testing.assert_allclose(there, here, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("estimator", ["exact", "auto", "sketch", "slq"])
def test_jepa_scores_are_the_cpus(estimator):
    model = small("vje").eval()
    here = jepa_score(model, pixels(4), estimator=estimator)
    there = jepa_score(model.to(DEVICE), pixels(4), estimator=estimator)
    # a sketch's directions are drawn on the device, whose generator is its own
    rough = {"rtol": 2e-2, "atol": 0.0} if estimator == "sketch" else {"rtol": 1e-3, "atol": 1e-2}
    torch.testing.assert_close(there.cpu(), here, **rough)


def test_the_parts_of_a_jacobian_are_the_cpus():
    model = small("vje").eval()
    found = {}
    for device in ("cpu", DEVICE):
        values, vectors = singular_vectors(model.to(device), pixels(2), count=2)
        found[device] = [t.cpu() for t in (values, vectors.abs(), jacobian_spectrum(model, pixels(2)))]
    for here, there in zip(found["cpu"], found[DEVICE], strict=True):
        torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["vje", "i-jepa"])
def test_an_evaluation_is_made_there(name):
    model = small(name).eval().to(DEVICE)
    sets = [
        ImageSet(pixels(n, seed), torch.arange(n) % 2, [f"{i}" for i in range(n)])
        for n, seed in ((60, 1), (30, 2))
    ]
    found = evaluate(model, *sets, {"noise": pixels(20, 3)}, seed=0, n_bootstrap=5)
    here = evaluate(model.cpu(), *sets, {"noise": pixels(20, 3)}, seed=0, n_bootstrap=5)
    both = [each.metrics["ood"]["noise"] for each in (found, here)]
    assert both[0].keys() == both[1].keys()


@pytest.mark.parametrize("name", HEADS)
def test_every_head_works_there(name):
    torch.manual_seed(0)
    head = HEADS[name](4, 3).to(DEVICE)
    context, target = torch.randn(5, 3, device=DEVICE), torch.randn(5, 4, device=DEVICE)
    head.train()(context).loss(target).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    head.eval()
    with torch.no_grad():
        sample = head(context).sample((2,), generator=torch.Generator(DEVICE).manual_seed(0))
    assert sample.device.type == torch.device(DEVICE).type
    assert sample.isfinite().all()


def test_a_table_is_learned_there():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    X[:, 1] = X[:, 0] + 0.1 * rng.normal(size=300)
    model = pj.VarTJEPA(max_epochs=2, max_steps=20, device=DEVICE, random_state=0, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few rows, and of so few steps
        model.fit(X)
    assert np.isfinite(model.transform(X)).all()
    assert np.isfinite(model.score_samples(X)).all()
    hidden = X.copy()
    hidden[::7, 1] = np.nan
    assert np.isfinite(np.asarray(model.impute(hidden).table, dtype=float)).all()
