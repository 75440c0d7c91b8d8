"""What every method shares: embedding without side effects, calibration, a baseline of fresh weights."""

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

from probjepa import IJEPA, VJE, distributed, jepa_score, provenance
from probjepa.backbones.frozen import evaluating
from probjepa.data import Preprocess
from probjepa.errors import ConfigError, DataError
from probjepa.methods import Method
from probjepa.methods.base import EncoderSettings
from probjepa.methods.losses import views_of
from probjepa.methods.probabilistic import ProbabilisticMethod


class Encoder(nn.Module):
    """A user's own: batch statistics and dropout, so that the mode shows in the output."""

    def __init__(self, dim=12):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, dim, 3), nn.BatchNorm2d(dim), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images):
        return self.body(images).mean((2, 3))


def model(**settings):
    torch.manual_seed(0)
    return VJE(Encoder(), channels=1, image_size=8, **settings)


def pixels(n=10, seed=0, size=8):
    return torch.randint(
        0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


CALLS = {
    "embed": lambda m, x: m.embed(x),
    "features": lambda m, x: m.features(x)["h"],
    "posterior": lambda m, x: m.posterior(x).mean,
    "score": lambda m, x: m.score_samples(x),
    "predictive": lambda m, x: m.score_samples(x, score="predictive", reference=pixels(8, seed=7)),
    "uncertainty": lambda m, x: m.uncertainty(x)["kl"],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_reading_a_model_leaves_no_trace(call):
    m = model(target="ema").train()
    m.encoder.body[1].eval()  # a layer frozen by its user stays frozen
    modes = {name: part.training for name, part in m.named_modules()}
    state = {k: v.clone() for k, v in m.state_dict().items()}
    rng = torch.random.get_rng_state()
    out = call(m, pixels())
    assert not out.requires_grad
    assert {name: part.training for name, part in m.named_modules()} == modes
    assert all(torch.equal(state[k], v) for k, v in m.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert torch.equal(out, call(m.eval(), pixels()))  # in evaluation mode whatever mode it was in


def test_modes_come_back_after_an_error():
    m = model().train()
    m.encoder.body[3].eval()
    modes = [part.training for part in m.modules()]
    with pytest.raises(DataError):
        m.embed(torch.zeros(2, 3, 8, 8))
    assert [part.training for part in m.modules()] == modes
    with evaluating(m):
        assert not any(part.training for part in m.modules())
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_an_interrupt_while_the_mode_is_set_leaves_nothing_behind(monkeypatch):
    m = model().train()

    def interrupted(mode):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(m.encoder, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            m.embed(pixels())
    m.train()
    m.embed(pixels())
    assert all(part.training for part in m.modules())


def test_the_mode_comes_back_with_the_last_that_looks():
    m = model().train()
    entered, may_leave = Event(), Event()

    def look():
        with evaluating(m.encoder):
            entered.set()
            may_leave.wait(10)
            return m.encoder.training

    with ThreadPoolExecutor(1) as pool:
        with evaluating(m):
            other = pool.submit(look)
            assert entered.wait(10)
        assert m.training and not m.encoder.training
        may_leave.set()
        assert not other.result()
    assert all(part.training for part in m.modules())


def test_raw_and_prepared_images_agree():
    m = model(mean=[0.4], std=[0.3])
    raw = pixels(size=11)
    prepared = Preprocess(size=8, channels=1, mean=[0.4], std=[0.3])(raw)
    torch.testing.assert_close(m.embed(raw), m.eval()(prepared), rtol=0, atol=1e-6)
    by_hand = m.eval().encoder((pixels().float() / 255 - 0.4) / 0.3)
    torch.testing.assert_close(m.embed(pixels()), by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 512])
def test_the_batch_size_does_not_matter(batch_size):
    m, x = model(), pixels()
    found, expected = m.features(x, batch_size), m.features(x)
    assert list(found) == ["h", "mu", "variance"]
    for key in found:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)
    each = torch.cat([m.embed(row[None]) for row in x])
    torch.testing.assert_close(m.embed(x, batch_size), each, rtol=0, atol=1e-5)


def test_no_images_give_no_rows():
    assert model().embed(pixels(0)).shape == (0, 12)
    assert model().score_samples(pixels(0)).shape == (0,)


def test_features_are_float32_under_autocast():
    m = model()
    with torch.autocast("cpu", torch.bfloat16):
        features = m.features(pixels())
    assert {v.dtype for v in features.values()} == {torch.float32}
    torch.testing.assert_close(features["h"], m.embed(pixels()), rtol=0.05, atol=0.05)


def test_forward_is_differentiable():
    m = model()
    m(pixels()).sum().backward()
    assert m.encoder.body[0].weight.grad is not None


def test_calibration_takes_the_images_statistics_once():
    m, x = model(), pixels(50)
    assert not m.calibrated
    m.calibrate(x)
    values = x.double().numpy() / 255
    np.testing.assert_allclose(m.preprocess.config()["mean"], [values.mean()], rtol=1e-10)
    np.testing.assert_allclose(m.preprocess.config()["std"], [values.std()], rtol=1e-10)
    before = m.preprocess.config()
    m.calibrate(pixels(50, seed=1))
    assert m.preprocess.config() == before
    given = model(mean=[0.1], std=[0.2])
    given.calibrate(x)
    assert given.preprocess.config() == {"size": 8, "channels": 1, "mean": [0.1], "std": [0.2]}


def test_a_fresh_baseline_has_the_settings_and_other_weights():
    torch.manual_seed(5)
    m = VJE(
        "convnet", channels=1, image_size=8, backbone_options={"widths": (4, 8)}, df=3, draws=2, target="ema",
        mean=[0.2], std=[0.3],
    )  # fmt: skip
    rng = torch.random.get_rng_state()
    fresh = m.reinitialised(seed=1)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert fresh.settings == m.settings
    assert fresh.preprocess.config() == m.preprocess.config()
    assert not fresh.training
    weights = dict(m.named_parameters())
    assert not torch.equal(
        dict(fresh.named_parameters())["encoder.stages.0.weight"], weights["encoder.stages.0.weight"]
    )
    for (name, a), b in zip(fresh.named_parameters(), m.reinitialised(seed=1).parameters(), strict=True):
        assert torch.equal(a, b), name
    other = m.reinitialised(seed=2)
    assert not torch.equal(other.inference.mean.weight, fresh.inference.mean.weight)
    with pytest.raises(ConfigError, match="build the baseline yourself"):
        model().reinitialised()


def test_a_copy_is_apart_and_equal():
    m = model(df=3.0)
    twin = copy.deepcopy(m)
    assert torch.equal(twin.embed(pixels()), m.embed(pixels()))
    with torch.no_grad():
        m.encoder.body[0].weight.zero_()
    assert twin.encoder.body[0].weight.abs().max() > 0
    assert twin.settings == m.settings


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("convnet", {"channels": 2}, "1 or 3"),
        ("convnet", {"image_size": 7}, "at least 8"),
        ("convnet", {"mean": [0.5]}, "mean and std go together"),
        ("convnet", {"std": [0.5]}, "mean and std go together"),
        ("convnet", {"mean": [0.5] * 3, "std": [0.2] * 3}, "3 means and 3 stds for 1 channels"),
        ("covnet", {}, "did you mean 'convnet'"),
        ("convnet", {"backbone_options": {"width": 2}}, "no option 'width'"),
        (Encoder(), {"backbone_options": {"width": 2}}, "a backbone's name"),
        (nn.Conv2d(1, 2, 3), {}, "one embedding an image"),
    ],
)
def test_wrong_settings(backbone, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        VJE(backbone, **{"channels": 1, "image_size": 8, **settings})
    assert "\n" not in str(error.value)


def test_the_base_leaves_the_objective_to_the_method():
    class Bare(ProbabilisticMethod):
        name = "bare"

    bare = Bare(Encoder(), channels=1, image_size=8)
    assert isinstance(bare, Method)
    assert bare.embed(pixels(3)).shape == (3, 12)
    assert list(bare.features(pixels(3))) == ["h"]
    assert bare.after_step(1, 2) is None
    for missing in (bare.loss, bare.posterior, bare.score_samples, bare.uncertainty):
        with pytest.raises(NotImplementedError):
            missing(pixels(3))


def test_a_methods_signature_has_the_encoders_arguments():
    found = inspect.signature(VJE).parameters
    shared = [name for name in inspect.signature(Method).parameters if name != "backbone"]
    assert list(found)[: 1 + len(shared)] == ["backbone", *shared]
    assert set(shared) == set(EncoderSettings.__annotations__)
    assert "encoder" not in found
    assert inspect.signature(IJEPA).parameters["image_size"].default == 64
    assert "backbone" not in inspect.signature(model()).parameters  # of an instance it is the call's


def test_the_arguments_are_recorded_once_with_their_defaults():
    class Mine(Method):
        name = "mine"

        def __init__(self, backbone="convnet", *, weight=1.0, teacher=None, **encoder):
            super().__init__(backbone, **encoder)

    made = Mine(image_size=16, teacher=nn.Linear(1, 1))
    assert made.settings == {
        "backbone": "convnet", "backbone_options": {}, "channels": 3, "image_size": 16,
        "view_recipe": made.view_recipe, "weight": 1.0, "teacher": None, "freeze": False,
    }  # fmt: skip
    assert made.config()["modules"] == ["teacher"]
    assert copy.deepcopy(made).settings == made.settings
    with pytest.raises(TypeError, match="warmth"):
        Mine(warmth=3)


@pytest.fixture
def units(monkeypatch):
    monkeypatch.setattr(provenance, "cpu_flags", lambda: ["avx512_bf16"])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_door_reads_the_precision(units, call, capsys):
    m = model()
    wanted = call(m, pixels(80))
    assert m.precision == "float32"
    m.precision = "bf16"
    found = call(m, pixels(80))
    assert found.dtype == wanted.dtype and m.precision == "bf16"
    assert not torch.equal(found, wanted)
    far = (found - wanted).abs().max() / wanted.abs().max()
    assert 0 < far < 0.05
    assert len(capsys.readouterr().err.splitlines()) == 1
    m.precision = "float32"
    assert torch.equal(call(m, pixels(80)), wanted)


def test_densities_are_of_the_embeddings_in_float32(units):
    m = model()
    m.precision = "bf16"
    features = m.features(pixels())
    assert {of.dtype for of in features.values()} == {torch.float32}
    with torch.no_grad():
        mean, variance = m.inference(features["h"])
    assert torch.equal(features["mu"], mean) and torch.equal(features["variance"], variance)
    assert torch.equal(m.score_samples(pixels()), m.score_features(features))
    assert m.score_samples(pixels()).dtype == torch.float64


def test_embed_takes_a_precision_for_one_call(units):
    m = model()
    wanted = m.embed(pixels())
    assert torch.equal(m.embed(pixels(), precision="float32"), wanted)
    assert not torch.equal(m.embed(pixels(), precision="bf16"), wanted)
    assert m.precision == "float32" and torch.equal(m.embed(pixels()), wanted)
    with pytest.raises(ConfigError, match="unknown precision 'half'"):
        m.embed(pixels(), precision="half")
    assert m.precision == "float32"


def test_the_names_of_scores_leave_auto_open(units):
    m = model()
    m.precision = "auto"
    assert "likelihood" in m.score_names() and m.precision == "auto"


def test_derivatives_and_a_batch_go_without_it(units):
    m = model().eval()
    wanted = jepa_score(m, pixels(2)), m(pixels(2))
    m.precision = "bf16"
    assert torch.equal(jepa_score(m, pixels(2)), wanted[0]) and torch.equal(m(pixels(2)), wanted[1])


def test_the_embeddings_of_ijepa_take_it_too(units):
    vit = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    m = IJEPA(channels=1, image_size=16, backbone_options=vit, predictor_width=16, seed=0)
    wanted = m.embed(pixels(size=16))
    assert torch.equal(m.features(pixels(size=16))["h"], wanted)
    m.precision = "bf16"
    found = m.embed(pixels(size=16))
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
    assert torch.equal(m.features(pixels(size=16), scored=False)["h"], found)


def test_a_method_takes_two_views_unless_it_says_more():
    model = Method(Encoder(), channels=1, image_size=8)
    views = [torch.zeros(2, 1, 8, 8) for _ in range(3)]
    assert len(views_of(model, views[:2])) == 2
    with pytest.raises(DataError, match="takes two views of the same images"):
        views_of(model, views)
    with pytest.raises(DataError, match="got complex views: give real numbers"):
        views_of(model, [view.to(torch.complex64) for view in views[:2]])


def test_processes_share_the_first_ones_seed(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "broadcast", lambda seed, source: seed.fill_(7 + source))
    assert distributed.shared_seed(torch.device("cpu")) == 7
