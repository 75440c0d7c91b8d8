"""``pj.evaluate``: any model or its name, and the figures of the command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import probjepa as pj
from probjepa.cli import run
from probjepa.errors import ConfigError


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("test", 12), ("odd", 10)):
        images = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        np.savez(root / f"{name}.npz", images=images, labels=np.arange(count) % 3)
    model = pj.VJE("convnet", channels=1, image_size=12, backbone_options={"widths": (4, 8)}, seed=0).eval()
    model.save_pretrained(root / "model")
    for name, count in (("rows", 60), ("held", 30)):
        frame = pd.DataFrame({"a": rng.standard_normal(count), "b": rng.choice(list("xyz"), count)})
        frame.assign(y=np.where(frame["a"] > 0, "yes", "no")).to_csv(root / f"{name}.csv", index=False)
    estimator = pj.VarTJEPA(max_epochs=1, dim=8, n_layers=1, n_heads=2, ff_dim=8, random_state=0)
    estimator.fit(pd.read_csv(root / "rows.csv").drop(columns="y")).save(root / "table")
    pj.VarJEPA(x_dim=4, y_dim=4, hidden=(8,)).save_pretrained(root / "pairs")
    return root


def sets(places):
    return [str(places / f"{name}.npz") for name in ("train", "test", "odd")]


def test_a_name_a_model_and_the_command_give_the_same(places, tmp_path):
    train, test, odd = sets(places)
    by_name = pj.evaluate(str(places / "model"), train, test, {"odd": odd}, n_bootstrap=20).metrics
    by_model = pj.evaluate(pj.load(places / "model"), train, test, ood={"odd": odd}, n_bootstrap=20).metrics
    arguments = ["--train", train, "--test", test, "--ood", f"odd={odd}", "--bootstrap", "20", "-q"]
    assert run(["evaluate", str(places / "model"), *arguments, "--out", str(tmp_path / "v")]) == 0
    written = json.loads((tmp_path / "v" / "metrics.json").read_text())
    for part in ("accuracy", "ood", "collapse"):
        assert by_name[part] == by_model[part]
        assert json.loads(json.dumps(by_name[part])) == written[part]


@pytest.mark.usefixtures("few_epochs")
def test_tables_and_their_files(places):
    by_file = pj.evaluate(
        places / "table", places / "rows.csv", str(places / "held.csv"), target="y",
        predictors=["logistic regression"],
    )  # fmt: skip
    frames = [pd.read_csv(places / f"{name}.csv") for name in ("rows", "held")]
    by_frame = pj.evaluate(pj.load(places / "table"), *frames, target="y", predictors=["logistic regression"])
    assert by_file.metrics["accuracy"] == by_frame.metrics["accuracy"]
    more = {"target": "y", "predictors": ["logistic regression", "MLP"]}
    model = pj.load(places / "table")
    validated, as_frame = (
        pj.evaluate(model, *frames, validation=of, **more).metrics["accuracy"]
        for of in (places / "rows.csv", frames[0])
    )
    assert validated == as_frame


def test_a_module_is_an_encoder(places):
    train, test, _ = sets(places)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 144, 6))
    opened = pj.open_encoder(encoder, image_size=12)
    colour = {
        name: pj.open_images(uri, channels=3, convert=True) for name, uri in (("a", train), ("b", test))
    }
    found = pj.evaluate(opened, colour["a"], colour["b"], n_bootstrap=20).metrics
    assert "h" in found["accuracy"] and "random-init" not in found["accuracy"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda p: pj.evaluate(3, *sets(p)[:2]), "takes a model or its name"),
        (lambda p: pj.evaluate(p / "pairs", *sets(p)[:2]), "holds a VarJEPA, which is no model of images"),
        (lambda p: pj.evaluate(p / "table", p / "rows.csv", p / "held.csv"), "needs target="),
        (
            lambda p: pj.evaluate(p / "table", p / "rows.csv", p / "held.csv", {"x": 1}, target="y"),
            "not for tables",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(places, wrong, says):
    with pytest.raises(ConfigError, match=says) as caught:
        wrong(places)
    assert "\n" not in str(caught.value)
