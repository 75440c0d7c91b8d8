"""The two reports: what they show of a run or an evaluation, with parts missing, and in a real browser."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probjepa.errors import ArtifactError
from probjepa.metrics import collapse_summary
from probjepa.report.detection import detection_section
from probjepa.report.evaluation import evaluation_report, table_report
from probjepa.report.page import Section
from probjepa.report.provenance import flatten
from probjepa.report.sections import accuracy_section, collapse_section, diagnosis
from probjepa.report.training import _steps, read_metrics, training_report

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


class Page(HTMLParser):
    """Collects the cards of a page (label → value, note) and the rows of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cards: dict[str, tuple[str, ...]] = {}
        self.rows: list[list[str]] = []
        self._card: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("class") or ""
        self._open.append(tag)
        if tag == "li" and name.startswith("card"):
            self._card = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "li" and self._card:
            self.cards[self._card[0]] = tuple(self._card[1:])
            self._card = []
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self._open[-2:] or "th" in self._open[-1:]:
            self.rows[-1][-1] += (" " if self.rows[-1][-1] else "") + data
        elif "li" in self._open and "div" in self._open:
            self._card.append(data)


@pytest.fixture(scope="module")
def evaluated() -> str:
    return evaluation_report(*example())


def test_evaluation_shows_what_was_found(evaluated: str) -> None:
    html = evaluated
    page = Page(html)
    assert page.cards["Accuracy, kNN, k = 20"] == ("90.0 %", "95 % interval 88.0–92.0")
    assert page.cards["Accuracy, linear probe"] == ("93.0 %", "95 % interval 91.0–95.0")
    assert page.cards["AUROC against noise"] == ("0.950", "likelihood score; 95 % interval 0.930–0.970")
    assert page.cards["Effective rank"] == ("6.2", "of 8 directions")
    assert ["raw pixels", "60.0 58.0–62.0", "50.0 48.0–52.0", "70.0 68.0–72.0"] in page.rows
    assert ["kNN", "0.970 0.950–0.990", "0.600 0.580–0.620"] in page.rows
    assert ["nested.sizes", "1, 2"] in page.rows
    assert ["effective rank", "6.2"] in page.rows and ["mean σ²", "0.4"] in page.rows
    assert "collapsed" not in html
    assert HOSTILE not in html


def test_the_best_of_every_column_is_marked() -> None:
    accuracy = {"h": {"knn20": near(0.9)}, "raw pixels": {"knn20": near(0.6)}, "mu": {"knn20": near(0.95)}}
    section = accuracy_section(accuracy, "photos")
    assert section is not None
    (table,) = section.items
    assert {row[0]["text"]: row[1]["best"] for row in table.cells} == {
        "h, the embedding": False, "raw pixels": False, "μ, the posterior mean": True,
    }  # fmt: skip


@pytest.mark.parametrize("auroc", [0.3, 0.51, 0.8])
def test_detection_is_drawn_beside_chance(auroc: float) -> None:
    section = detection_section({"noise": {"likelihood": metrics_of(auroc)}}, "photos", {"noise": "#0067a5"})
    assert section is not None
    dots, summary, every = section.items
    assert dots.alt == f"noise: likelihood {auroc:.3f}"
    assert "stroke-dasharray" in dots.image.decode()
    assert [[cell["text"] for cell in row] for row in summary.cells] == [["likelihood", f"{auroc:.3f}"]]
    assert [row["text"] for row in every.cells[0]] == ["likelihood", f"{auroc:.3f}", *["0.250"] * 4]
    assert every.best["FPR at 95 % caught ↓"] == "min" and every.best["AUPR-in ↑"] == "max"


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
    page = Page(html)
    assert page.cards["Epochs"] == ("12", "120 steps")
    assert page.cards["Training loss"] == ("5.002", "first epoch 9")
    assert page.cards["Effective rank"] == ("30", "directions in use")
    assert "loss: from 9 to 5.002" in html
    assert "method.df" in html
    assert html.index("More to say.") < html.index("config.yaml")
    assert not list(run.glob("*.tmp"))


def test_a_run_of_one_epoch_and_a_loss_that_was_never_finite(tmp_path: Path) -> None:
    assert "loss: from 9 to 9" in training_report(write_run(tmp_path / "one", epochs=1))
    never = write_run(tmp_path / "never", epochs=3, **{"train/loss": ["nan"] * 3})
    assert Page(training_report(never)).cards["Training loss"][0] == "never finite"
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
        ({"effective_rank": 1.2, "std_mean": 0.1}, "warn", "The embeddings have collapsed"),
        ({"effective_rank": 20.0, "std_mean": 1e-4}, "warn", "The embeddings have collapsed"),
        ({"effective_rank": 20.0, "mean_variance": 1e-5}, "warn", "to a point"),
        ({"effective_rank": 20.0, "mean_variance": 0.999, "kl_per_dim": 1e-5}, "warn", "to the prior"),
        ({"effective_rank": 20.0, "mean_variance": 0.4, "kl_per_dim": 0.3}, "good", "rank near 1"),
        ({"std_mean": 0.12}, "good", "rank near 1"),
        ({"effective_rank": float("nan")}, "plain", "not recorded"),
        ({"mean_variance": 0.5}, "plain", "not recorded"),
        ({}, "plain", "not recorded"),
    ],
)
def test_a_collapse_is_named_with_its_remedy(values: dict[str, float], tone: str, word: str) -> None:
    text, found = diagnosis(values, dim=64)
    assert found == tone
    assert word in text
    assert ("have collapsed" in text or "the posterior has" in text.lower()) == (tone == "warn")


@pytest.mark.parametrize(("rows", "tone"), [(1, "plain"), (3, "plain"), (300, "warn")])
def test_a_few_rows_are_no_collapse(rows: int, tone: str) -> None:
    h = np.random.default_rng(0).normal(size=(min(rows, 3), 64))
    result = {"collapse": collapse_summary(h), "sets": {"test": {"name": "a", "images": rows, "rows": rows}}}
    for page in (evaluation_report(result), table_report(result)):
        assert ("have collapsed" in page) == (tone == "warn")
        assert ("do not tell" in page) == (tone == "plain")
        assert f'class="card {tone}"' in page


def test_a_posterior_without_information_is_found_in_an_evaluation() -> None:
    variance = {"mean": near(1.0), "kl_per_dimension": {"value": 1e-6}}
    section, tone = collapse_section({"effective_rank": near(20.0)}, variance, "the images", 64)
    assert section is not None and tone == "warn" and "fallen back to the prior" in section.text
    assert [[row[0] for row in table.rows] for table in section.items] == [
        ["effective rank"], ["mean σ²", "KL to the prior, nats per dimension"],
    ]  # fmt: skip
    assert collapse_section({}, {}, "the images") == (None, "plain")


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
def test_a_browser_shows_the_whole_page(evaluated: str, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    page.write_text(evaluated.replace("</body>", PROBE), encoding="utf-8")
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


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(999.4, "999 s"), (999.7, "0.28 hours"), (7200, "2 hours"), (36_000, "10 hours"), (5e6, "1,389 hours")],
)
def test_durations_are_numbers_that_people_read(seconds: float, said: str) -> None:
    assert _steps({"step": 1200}, [seconds]) == f"1,200 steps in {said}"


@pytest.mark.parametrize("count", ["data_images", "data_rows"])
def test_few_rows_have_no_rank_to_lose(count: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", effective_rank=[1.0] * 12)
    assert "have collapsed" in training_report(run)
    with open(run / "config.yaml", "a", encoding="utf-8") as config:
        config.write(f"{count}: 4\n")
    assert "have collapsed" not in training_report(run)
