"""Accuracies by class names, whatever the places of the classes in each set."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from probjepa import VJE, open_images
from probjepa.cli import run
from probjepa.data import ImageSet
from probjepa.data.labels import shared_labels
from probjepa.errors import DataError, ProbjepaWarning
from probjepa.evaluation import evaluate
from probjepa.report.evaluation import evaluation_report
from probjepa.report.summary import print_summary
from probjepa.training.monitors import OnlineKNN

NAMES = [f"class {chr(97 + i)}" for i in range(12)]
CLASSES = {"folder": NAMES, "numbers": None}


def pictures(classes, each, seed):
    """Pixels (N, 1, 8, 8) whose class is plain to see: a bright pair of columns or rows."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.array(classes), each)
    pixels = random.integers(0, 30, (len(labels), 1, 8, 8), dtype=np.uint8)
    for row, label in zip(pixels, labels, strict=True):
        row[0].reshape(-1)[label * 5 : label * 5 + 5] = 220
    return pixels, labels


def opened(kind, classes, each, seed, folder):
    pixels, labels = pictures(classes, each, seed)
    if kind == "numbers":
        return ImageSet(
            torch.from_numpy(pixels), torch.from_numpy(labels), [str(i) for i in range(len(labels))]
        )
    for i, (row, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[0]).save(folder / NAMES[label] / f"{i}.png")
    return open_images(folder)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (8, 16)}).eval()


SOME = [0, 2, 3, 5, 6, 7, 9, 10, 11]


@pytest.mark.parametrize("kind", ["folder", "numbers"])
@pytest.mark.parametrize(("known", "asked"), [(range(12), SOME), (range(12), range(12))])
def test_a_test_set_that_lacks_classes(kind, known, asked, model, tmp_path):
    train, test = (opened(kind, list(of), 6, i, tmp_path / str(i)) for i, of in enumerate((known, asked)))
    result = evaluate(model, train, test, n_bootstrap=10)
    pixels = result.metrics["accuracy"]["raw pixels"]
    assert [pixels[probe]["value"] for probe in ("knn20", "linear")] == [1.0, 1.0]
    assert result.metrics["labels"] == {"unlabelled": {"train": 0, "test": 0}, "classes_not_in_train": []}
    own = result.metrics["accuracy"]["h"]["knn20"]["value"]
    assert result.metrics["selective"]["random"]["accuracy_at"]["1.0"] == pytest.approx(own)
    assert OnlineKNN(train, test, k=3).measure(_Pixels()) == {"knn": 1.0}


class _Pixels:
    """An encoder that has the pixels for its embedding."""

    def embed(self, x):
        return x.flatten(1).float()


def test_unlabelled_rows_are_left_out_and_counted(model, capsys):
    train, test = (opened("numbers", range(4), 6, seed, None) for seed in (0, 1))
    clean = evaluate(model, train, test, n_bootstrap=10).metrics
    stray = [opened("numbers", range(4, 9), 3, seed, None).images for seed in (2, 3)]
    more = [
        ImageSet(
            torch.cat([of.images, extra]),
            torch.cat([of.labels, torch.full((15,), -1)]),
            [str(i) for i in range(39)],
        )
        for of, extra in zip((train, test), stray, strict=True)
    ]
    found = evaluate(model, *more, n_bootstrap=10)
    assert found.metrics["accuracy"] == clean["accuracy"]
    assert found.metrics["labels"]["unlabelled"] == {"train": 15, "test": 15}
    for name in ("margin", "classes"):
        assert found.metrics["geometry"][name] == clean["geometry"][name]
    share = "kNN vote share"
    assert found.metrics["selective"][share] == clean["selective"][share]
    said = "Without a label, and left out of what needs one: 15 of train, 15 of test."
    assert said in evaluation_report(json.loads(json.dumps(found.metrics)), found.arrays)
    print_summary(found.metrics)
    assert said in " ".join(capsys.readouterr().out.split())
    assert OnlineKNN(*more, k=3).measure(_Pixels()) == {"knn": 1.0}


def test_classes_absent_from_train_count_as_wrong_and_are_named(model, tmp_path):
    train, test = (
        opened("folder", of, 6, i, tmp_path / str(i)) for i, of in enumerate(([0, 1, 2], [1, 2, 8]))
    )
    with pytest.warns(ProbjepaWarning, match="class i"):
        result = evaluate(model, train, test, n_bootstrap=10)
    assert result.metrics["accuracy"]["raw pixels"]["linear"]["value"] == pytest.approx(2 / 3)
    assert result.metrics["labels"]["classes_not_in_train"] == ["class i"]
    assert "count as wrong: class i." in evaluation_report(result.metrics, result.arrays)


def test_sets_without_a_class_in_common_are_refused(model, tmp_path):
    train, test = (opened("folder", of, 3, i, tmp_path / str(i)) for i, of in enumerate(([0, 1], [2, 3])))
    for join in (lambda: evaluate(model, train, test), lambda: OnlineKNN(train, test)):
        with pytest.raises(DataError, match="is among the training labels"):
            join()


@pytest.mark.parametrize(
    ("count", "probes"), [(16, ["knn16"]), (40, ["knn20", "knn40"]), (240, ["knn20", "knn200"])]
)
def test_a_figure_carries_the_k_that_it_was_computed_with(count, probes, model):
    train = opened("numbers", range(4), count // 4, 0, None)
    test = opened("numbers", range(4), 3, 1, None)
    result = evaluate(model, train, test, n_bootstrap=10)
    assert list(result.metrics["accuracy"]["h"]) == [*probes, "linear"]
    page = evaluation_report(result.metrics, result.arrays)
    for probe in probes:
        assert f"kNN, k = {probe.removeprefix('knn')}" in page


def test_the_command_trains_and_evaluates_by_name(tmp_path, capsys):
    for i, of in enumerate((range(12), SOME)):
        opened("folder", list(of), 3, i, tmp_path / str(i))
    train, test, out = (str(tmp_path / name) for name in ("0", "1", "run"))
    small = ["--set", "backbone=convnet", "--set", "widths=[4,8]", "--set", "batch_size=8", "-q"]
    arguments = ["train", "vje", "--data", train, "--val", test, "--out", out, "--epochs", "1", *small]
    assert run(arguments) == 0
    asked = ["--train", train, "--test", test, "--out", str(tmp_path / "e"), "--bootstrap", "5", "-q"]
    assert run(["evaluate", out, *asked]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["accuracy"]["raw pixels"]["linear"]["value"] == 1.0
    assert shared_labels(open_images(train), open_images(test)).absent == []
