"""One contract for every registered method: a new one is tested by its registry line alone."""

import inspect
import math

import pytest
import torch
from torch.distributions import Distribution

import probjepa as pj
from probjepa.data.views import views
from probjepa.errors import DataError
from probjepa.heads import HEADS
from probjepa.methods import METHODS, Method, ProbabilisticMethod
from probjepa.methods.base import EncoderSettings

SMALL = {"channels": 1, "image_size": 16}
CONVNET = {"backbone": "convnet", "backbone_options": {"widths": (8, 16)}}
# of the methods that take no convnet
OWN = {
    "i-jepa": {
        "backbone_options": {"patch_size": 4, "width": 16, "depth": 2, "heads": 2},
        "predictor_width": 16,
        "predictor_depth": 1,
    },
}


def small(name, **settings):
    torch.manual_seed(0)
    takes = inspect.signature(METHODS[name]).parameters
    narrow = {key: 64 for key in ("projector_dim", "hidden_dim") if key in takes and "projector_dim" in takes}
    return METHODS[name](**SMALL, **OWN.get(name, CONVNET), **narrow, **settings)


def pixels(n=6, seed=0):
    return torch.randint(
        0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_has_a_default_that_works(name):
    cls = METHODS[name]
    parameters = list(inspect.signature(cls).parameters.values())
    assert all(p.default is not p.empty for p in parameters)
    model = cls()
    assert isinstance(model, Method)
    assert model.name == name
    assert model.embed(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, model.embedding_dim)
    # the channel statistics are in the preprocessing; the seed is spent, and the file of weights read
    recorded = set(model.settings) | {"mean", "std", "seed", "weights"}
    assert recorded == {p.name for p in parameters}


# as the papers have them, or their code
DEFAULTS = {
    "vje": {
        "hidden_dim": None, "df": 1.0, "kl_weight": 1.0, "directional": True, "radial": True, "draws": 1,
        "variance": "diagonal", "likelihood": "polar", "target": "stop-gradient", "ema_momentum": 0.996,
        "center_log_variance": False,
    },
    "i-jepa": {
        "head": "gaussian", "head_options": None, "predictor_width": 192, "predictor_depth": 4,
        "predictor_heads": 8, "ema_momentum": 0.998, "ema_schedule": "cosine", "score_masks": 4,
        "score_draws": 8, "score_seed": 0,
    },
    "simsiam": {"projector_dim": 2048, "projector_layers": 2, "predictor_dim": 512},
    "vi-simsiam": {"projector_dim": 2048, "projector_layers": 2, "predictor_dim": 512, "kl_weight": 1.0},
    "byol": {"projector_dim": 256, "hidden_dim": 4096, "ema_momentum": 0.996},
    "vicreg": {
        "projector_dim": 2048, "projector_layers": 3, "invariance_weight": 25.0, "variance_weight": 25.0,
        "covariance_weight": 1.0,
    },
    "barlow-twins": {"projector_dim": 2048, "projector_layers": 3, "redundancy_weight": 5e-3},
    "lejepa": {"projector_dim": 128, "hidden_dim": 2048, "sigreg_weight": 0.02, "n_directions": 256},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_unset_its_own_settings_are_the_papers(name):
    parameters = inspect.signature(METHODS[name]).parameters.values()
    encoder = {*EncoderSettings.__annotations__, "backbone", "seed"}
    assert {p.name: p.default for p in parameters if p.name not in encoder} == DEFAULTS[name]


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_rows_is_refused(name):
    model = small(name)
    with pytest.raises(DataError, match=r"of one image or more|at least one image a batch") as error:
        model.loss([torch.zeros(0, 1, 16, 16)] * min(model.most_views, 2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_on_the_views_of_its_own_recipe(name):
    model = small(name).train()
    batch = views(model.view_recipe, **model.preprocess.config())(pixels(), 0)
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)  # its steps do not shrink with the gradient
    before = {k: p.detach().clone() for k, p in trained.items()}
    for step in range(1, 4):
        terms = model.loss(batch)
        assert all(isinstance(v, torch.Tensor) and v.shape == () for v in terms.values())
        assert all(math.isfinite(v.item()) for v in terms.values())
        optimizer.zero_grad()
        terms["loss"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())
        optimizer.step()
        model.after_step(step, 3)
    assert all(not torch.equal(before[k], p) for k, p in trained.items())


# of I-JEPA's heads, to be fast
SIZES = {"hidden": (16,), "couplings": 2, "width": 8, "blocks": 1, "code_width": 8, "steps": 3}


def with_head(head):
    takes = inspect.signature(HEADS[head]).parameters
    options = {key: size for key, size in SIZES.items() if key in takes and head != "autoregressive"}
    return {"head": head, "head_options": options, "score_masks": 1, "score_draws": 2}


CASES = [(name, {}) for name in METHODS if name != "i-jepa"] + [("i-jepa", with_head(h)) for h in HEADS]


# None: bfloat16 autocast around a model of float32
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, None], ids=str)
@pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else x.get("head", "")
)
def test_every_type_works(name, settings, dtype):
    """Losses and what is read are in float32 at least, and near those of float32."""
    model = small(name, **settings).train()
    batch = views(model.view_recipe, **model.preprocess.config())(pixels(), 0)
    torch.manual_seed(1)
    exact = model.loss(batch)
    model.to(dtype or torch.float32)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is None):
        terms = model.loss(batch)
    terms["loss"].backward()
    for key, value in terms.items():
        assert value.dtype in (torch.float32, torch.float64), key
        assert value.isfinite(), key
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    narrow = dtype != torch.float64
    if name not in ("vje", "i-jepa"):  # the same draws in another type are other numbers
        torch.testing.assert_close(
            terms["loss"].double(), exact["loss"].double(), rtol=0.3 if narrow else 0.01, atol=0.1
        )
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is None):
        assert model.embed(pixels()).isfinite().all()
        if isinstance(model, ProbabilisticMethod):
            assert model.score_samples(pixels()).isfinite().all()
            assert all(value.isfinite().all() for value in model.uncertainty(pixels()).values())
            assert model.posterior(pixels()).mean.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_it_survives_saving(name, tmp_path):
    model = small(name)
    model.save_pretrained(tmp_path / "model")
    for load in (pj.load, METHODS[name].from_pretrained):
        loaded = load(tmp_path / "model")
        assert type(loaded) is METHODS[name]
        assert torch.equal(loaded.embed(pixels()), model.embed(pixels()))


@pytest.mark.parametrize("name", [n for n in METHODS if issubclass(METHODS[n], ProbabilisticMethod)])
def test_probabilistic_methods_say_what_they_do_not_know(name):
    model, x = small(name), pixels()
    posterior = model.posterior(x)
    assert isinstance(posterior, Distribution)
    assert posterior.batch_shape == (6,)
    score = model.score_samples(x)
    assert score.shape == (6,)
    assert torch.isfinite(score).all()
    measures = model.uncertainty(x)
    assert measures
    assert all(v.shape == (6,) and torch.isfinite(v).all() for v in measures.values())


# learning rate, weight decay: of the papers, or where they say nothing for CIFAR-10's size, of measured trials
RECOMMENDED = {
    "vje": (0.05, 5e-4),
    "vi-simsiam": (0.006, 5e-4),
    "simsiam": (0.06, 5e-4),
    "byol": (0.03, 5e-4),
    "vicreg": (0.03, 5e-4),
    "barlow-twins": (0.12, 5e-4),
    "lejepa": (2e-3, 5e-2),
    "i-jepa": (5e-4, 0.05),
}


@pytest.mark.parametrize("name", RECOMMENDED)
def test_recommended_settings(name):
    recipe = dict(METHODS[name].recipe)
    assert (recipe.pop("learning_rate"), recipe.pop("weight_decay")) == RECOMMENDED[name]
    sgd = {"sgd_momentum": 0.9}
    assert recipe == {"lejepa": {"optimizer": "adamw"}, "i-jepa": IJEPA_REST}.get(name, sgd)


IJEPA_REST = {"optimizer": "adamw", "gradient_clip_val": 3.0}


@pytest.mark.parametrize("name", list(METHODS))
def test_of_no_images_there_are_no_rows(name):
    model = small(name).eval()
    none = torch.zeros(0, 1, 16, 16, dtype=torch.uint8)
    assert model.embed(none).shape == (0, model.embedding_dim)
    if isinstance(model, ProbabilisticMethod):
        assert model.score_samples(none).shape == (0,)
        assert all(values.shape == (0,) for values in model.uncertainty(none).values())
        assert model.posterior(none).mean.shape[0] == 0
    if name != "i-jepa":
        vit = METHODS[name](
            **SMALL, backbone="vit", backbone_options={"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
        )
        assert vit.eval().embed(none).shape == (0, vit.embedding_dim)


@pytest.mark.parametrize("name", list(METHODS))
def test_views_are_a_list_or_one_tensor(name):
    model = small(name).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    count = 1 if name == "i-jepa" else 2
    views_of = list(torch.randn(count, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    found = []
    for batch in (views_of, torch.stack(views_of)):
        model.load_state_dict(state)
        torch.manual_seed(0)
        found.append(model.loss(batch)["loss"].item())
    assert found[0] == found[1]
