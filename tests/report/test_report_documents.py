"""The two reports: what they say about a run or an evaluation, with parts missing, and in a real browser."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probjepa.errors import ArtifactError
from probjepa.report.evaluation import evaluation_report
from probjepa.report.page import Section
from probjepa.report.provenance import flatten
from probjepa.report.training import read_metrics, training_report
from probjepa.report.verdicts import collapse_verdict

HOSTILE = "<script>alert(1)</script>"


def near(value: float, width: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def metrics_of(auroc: float) -> dict[str, dict[str, float]]:
    names = ("auroc", "aupr_in", "aupr_out", "fpr_at_95_tpr_in", "fpr_at_95_tpr_out")
    return {name: near(auroc if name == "auroc" else 0.25) for name in names}


def example() -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(0)
    count, classes = 60, ["cat", "dog", HOSTILE]
    labels = np.arange(count) % 3
    result = {
        "version": "0.1.0",
        "hardware": "a processor",
        "settings": {"method": "vje", "seed": 0, "nested": {"df": 1.0, "sizes": [1, 2]}},
        "train": "photos, train",
        "test": "photos",
        "accuracy": {
            "h": {"knn20": near(0.9), "knn200": near(0.88), "linear": near(0.93)},
            "raw pixels": {"knn20": near(0.6), "knn200": near(0.5), "linear": near(0.7)},
        },
        "collapse": {"effective_rank": 6.2, "rank_me": 7.0, "std_mean": 0.3, "std_min": 0.2},
        "variance": {"mean": 0.4, "kl_per_dimension": 0.3, "anisotropy": 0.2},
        "ood": {
            "noise": {"likelihood": metrics_of(0.95), "knn": metrics_of(0.97)},
            HOSTILE: {"likelihood": metrics_of(0.7), "knn": metrics_of(0.6)},
        },
    }
    arrays = {
        "scores": {
            d: {"test": random.normal(size=count), "noise": random.normal(size=30) - 4, HOSTILE: np.zeros(20)}
            for d in ("likelihood", "knn")
        },
        "variance": np.exp(random.normal(size=(count, 8)) - 1),
        "embeddings": random.normal(size=(count, 8)) + 4 * np.eye(3, 8)[labels],
        "labels": labels,
        "classes": classes,
        "images": random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8),
        "ood_images": {"noise": random.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)},
    }
    return result, arrays


def write_run(folder: Path, epochs: int = 12, **columns: list[Any]) -> Path:
    rows: dict[str, list[Any]] = {
        "epoch": list(range(1, epochs + 1)),
        "step": [10 * e for e in range(1, epochs + 1)],
        "train/loss": [5 + 4 * 0.5**e for e in range(epochs)],
        "learning_rate": [0.1] * epochs,
        "effective_rank": ["" if e % 2 else 20.0 + e for e in range(epochs)],
        **columns,
    }
    folder.mkdir(exist_ok=True)
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows(zip(*rows.values(), strict=True))
    (folder / "config.yaml").write_text("method:\n  name: vje\n  df: 1.0\nseed: 7\n", encoding="utf-8")
    return folder


def test_evaluation_says_what_was_found() -> None:
    html = evaluation_report(*example())
    assert "90.0 %" in html
    assert "The intervals do not overlap" in html
    assert "No sign of collapse" in html
    assert "nested.sizes" in html
    assert "Another detector does better on 1 of 2 sets." in html
    assert HOSTILE not in html


@pytest.mark.parametrize(
    ("ours", "rival", "sentence"),
    [
        (0.9, 0.6, "The intervals do not overlap"),
        (0.9, 0.89, "within the intervals"),
        (0.6, 0.9, "Training has not yet paid off"),
    ],
)
def test_accuracy_is_judged_against_the_best_baseline(ours: float, rival: float, sentence: str) -> None:
    accuracy = {"h": {"knn20": near(ours)}, "raw pixels": {"knn20": near(rival)}, "mu": {"knn20": near(1.0)}}
    assert sentence in evaluation_report({"accuracy": accuracy})


@pytest.mark.parametrize(
    ("auroc", "sentence"),
    [(0.3, "looks more typical than"), (0.51, "no better than a coin toss"), (0.8, "No other detector")],
)
def test_detection_is_judged_against_chance(auroc: float, sentence: str) -> None:
    html = evaluation_report({"ood": {"noise": {"likelihood": metrics_of(auroc)}}})
    assert sentence in html


RESULT, ARRAYS = example()


@pytest.mark.parametrize("part", RESULT)
def test_a_missing_part_of_the_result_is_left_out(part: str) -> None:
    partial = {key: value for key, value in RESULT.items() if key != part}
    assert "</html>" in evaluation_report(partial, {"labels": None, "embeddings": None})


@pytest.mark.parametrize("part", ARRAYS)
def test_a_missing_array_is_left_out(part: str) -> None:
    html = evaluation_report({"test": "photos"}, ARRAYS | {part: None})
    gone = {
        "scores": '<h2 id="h1">Scores',
        "embeddings": "Map</h2>",
        "variance": "Posterior variance</h2>",
        "images": "Least typical",
    }
    assert "</html>" in html
    assert part not in gone or gone[part] not in html


def test_nothing_at_all_is_still_a_page() -> None:
    assert "</html>" in evaluation_report({})


def test_values_that_are_not_finite_do_not_reach_the_page() -> None:
    result, arrays = copy.deepcopy(RESULT), copy.deepcopy(ARRAYS)
    result["ood"]["noise"]["likelihood"]["auroc"] = {"value": float("nan"), "low": None, "high": None}
    result["collapse"]["effective_rank"] = float("nan")
    arrays["embeddings"][0] = np.nan
    arrays["variance"][1] = np.inf
    for by_set in arrays["scores"].values():
        by_set["test"][:2] = np.nan, -np.inf
    html = evaluation_report(result, arrays)
    text = " ".join(piece.split('"', 1)[-1] for piece in html.split("base64,"))
    assert not {"nan", "inf", "-inf"} & set(text.lower().replace("<", " ").replace(">", " ").split())


def test_a_training_report_is_written_into_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    html = training_report(run, [Section("Extra", "More to say.")])
    assert (run / "report.html").read_text(encoding="utf-8") == html
    assert "Training of vje" in html
    assert "The loss fell from 9 to 5.002 over 12 epochs. It had levelled off by the end." in html
    assert "spread over about 30 directions" in html
    assert "method.df" in html
    assert html.index("More to say.") < html.index("config.yaml")
    assert not list(run.glob("*.tmp"))


def test_a_run_of_one_epoch_and_a_loss_that_was_never_finite(tmp_path: Path) -> None:
    assert "One epoch was logged" in training_report(write_run(tmp_path / "one", epochs=1))
    never = write_run(tmp_path / "never", epochs=3, **{"train/loss": ["nan"] * 3})
    assert "never finite" in training_report(never)
    (never / "config.yaml").unlink()
    assert "Settings" not in training_report(never)


@pytest.mark.parametrize("broken", ["missing", "no rows", "not text", "config", "unwritable"])
def test_what_cannot_be_read_or_written_is_a_one_line_error(tmp_path: Path, broken: str) -> None:
    run = write_run(tmp_path / "run")
    if broken == "missing":
        (run / "metrics.csv").unlink()
    elif broken == "no rows":
        (run / "metrics.csv").write_text("epoch,step\n", encoding="utf-8")
    elif broken == "not text":
        (run / "metrics.csv").write_bytes(b"epoch\n\xff\xfe\n")
    elif broken == "config":
        (run / "config.yaml").write_text("a: [1\nb: }", encoding="utf-8")
    else:
        (run / "report.html").mkdir()
    with pytest.raises(ArtifactError) as caught:
        training_report(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)


def test_cells_that_are_empty_or_no_numbers_are_missing(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,a,b\n1,,x\n2,3\n", encoding="utf-8")
    metrics = read_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(metrics["epoch"], [1, 2])
    np.testing.assert_array_equal(metrics["a"], [np.nan, 3])
    np.testing.assert_array_equal(metrics["b"], [np.nan, np.nan])


@pytest.mark.parametrize(
    ("values", "tone", "word"),
    [
        ({"effective_rank": 1.2, "std_mean": 0.1}, "warn", "Collapsed"),
        ({"effective_rank": 20.0, "std_mean": 1e-4}, "warn", "Collapsed"),
        ({"effective_rank": 20.0, "mean_variance": 1e-5}, "warn", "point"),
        ({"effective_rank": 20.0, "mean_variance": 0.999, "kl_per_dim": 1e-5}, "warn", "prior"),
        ({"effective_rank": 20.0, "mean_variance": 0.4, "kl_per_dim": 0.3}, "good", "No sign"),
        ({"std_mean": 0.12}, "good", "No sign"),
        ({"effective_rank": float("nan")}, "plain", "not recorded"),
        ({}, "plain", "not recorded"),
    ],
)
def test_collapse_verdict(values: dict[str, float], tone: str, word: str) -> None:
    found, sentence = collapse_verdict(values, dim=64)
    assert found == tone
    assert word in sentence


def test_settings_are_flattened_with_dotted_names() -> None:
    nested = {"a": {"b": {"c": 1}, "d": []}, "e": None, "f": {}, "g": (1, "x")}
    assert dict(flatten(nested)) == {"a.b.c": "1", "a.d": "–", "e": "–", "f": "–", "g": "1, x"}


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# run inside a copy of the page: what only a browser knows
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  document.documentElement.dataset.probe = JSON.stringify({
    broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    images: images.length,
    sections: [...document.querySelectorAll("section h2")].map(h => h.textContent),
    overflow: document.documentElement.scrollWidth - innerWidth,
    requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length,
  });
});</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500], ids=["desktop", "narrow"])
def test_a_browser_shows_the_whole_page(tmp_path: Path, width: int) -> None:
    html = evaluation_report(*example())
    page = tmp_path / "report.html"
    page.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    picture = tmp_path / "shot.png"
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600",
            f"--screenshot={picture}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    dom = done.stdout.decode("utf-8", errors="replace")
    assert picture.exists(), done.stderr[-500:]
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape[1] == width
    assert len(np.unique(pixels)) > 50
    assert pixels.std() > 5
    if "data-probe" not in dom:  # some versions take the picture and print nothing
        dom = subprocess.run(
            [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
             f"--window-size={width},1600", "--dump-dom", page.as_uri()],
            capture_output=True, timeout=120, check=True,
        ).stdout.decode("utf-8", errors="replace")  # fmt: skip
    probe = dom.split('data-probe="', 1)[1].split('"', 1)[0].replace("&quot;", '"')
    seen = json.loads(probe)
    assert seen["broken"] == 0
    assert seen["images"] > 20
    assert seen["requests"] == 0
    assert seen["overflow"] <= 0
    assert seen["sections"] == [
        "Accuracy",
        "Out-of-distribution detection",
        "Scores",
        "Typical and unusual",
        "Map",
        "Posterior variance",
        "Collapse",
        "Provenance",
    ]
