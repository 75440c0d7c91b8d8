"""What an evaluation was computed on, which score leads its page, and a disk that is full."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probjepa.errors import ArtifactError
from probjepa.report.evaluation import evaluation_report
from probjepa.report.provenance import sets_table, settings_tables
from probjepa.report.training import training_report

SETS = {
    "train": {"name": "t.npz", "images": 1200, "shape": [3, 32, 32], "sha256": "00ffaa11"},
    "test": {"name": "v.npz", "images": 300, "shape": [3, 32, 32], "sha256": "0123abcd"},
    "noise": {"name": "<b>n</b>", "images": 40, "shape": [3, 32, 32], "sha256": "deadbeef"},
}


def metrics(auroc: float) -> dict[str, dict[str, float]]:
    return {"auroc": {"value": auroc, "low": auroc - 0.01, "high": auroc + 0.01}}


def cards(html: str) -> list[tuple[str, str, str]]:
    parts = r'class="label">(.*?)</div><div class="value">(.*?)</div>(?:<div class="note">(.*?)</div>)?'
    return re.findall(parts, html)


def test_every_set_is_named_with_its_size_hash_and_what_was_not_used() -> None:
    table = sets_table(SETS, {"test": 7, "noise": 0}, {"v.npz": ["a.png", "b.png"]})
    rows = {row[0]["text"]: [cell["text"] for cell in row[1:]] for row in table.cells}
    assert list(rows) == ["train", "test", "noise"]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in rows["test"]] == [
        "v.npz",
        "300",
        "3 × 32 × 32",
        "0123abcd",
        "7",
        "2",
    ]
    assert rows["train"][0::4] == ["t.npz", "–"]
    assert rows["noise"][-2:] == ["0", "0"]


def test_sets_of_tables_stand_in_the_same_table() -> None:
    about = {"name": "b.parquet", "rows": 60, "columns": 3, "sha256": "0123456789abcdef01"}
    html = evaluation_report({"sets": {"test": about}, "left_out_as_in_train": 2})
    assert "3 columns" in html and "Rows used" in html
    table = sets_table({"test": about}, {"test": 2}, {})
    assert [cell["text"] for cell in table.cells[0]] == [
        "test", "b.parquet", "60", "3 columns", "0123456789abcdef", "2", "0",
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "says"), [(50, ""), (60, " The first 50 of 60.")])
def test_classes_that_are_not_shown_are_said(count: int, says: str) -> None:
    result = {"classes": {f"c{i}": 7 for i in range(count)}, "sets": SETS}
    assert f"<caption>Classes of the target.{says}</caption>" in evaluation_report(result)


def test_a_set_outside_that_is_called_like_the_test_set_keeps_it_apart() -> None:
    scores = {"knn": {"test": np.arange(9.0), "a.npz": np.arange(9.0) - 20}}
    result = {"test": "a.npz", "ood": {"a.npz": {"knn": metrics(0.9)}}}
    html = evaluation_report(result, {"scores": scores})
    assert "medians: a.npz, held out 4, a.npz −16" in html


def test_provenance_reaches_the_page_escaped() -> None:
    html = evaluation_report({"sets": SETS, "left_out_as_in_train": {"test": 7}, "skipped": {}})
    assert all(about["sha256"] in html for about in SETS.values())
    assert "&lt;b&gt;n&lt;/b&gt;" in html
    assert "<b>n" not in html


@pytest.mark.parametrize(
    ("result", "says"),
    [({"reencode": "jpeg:75"}, "re-encoded alike (jpeg:75)"), ({"reencode": None}, "were not re-encoded")],
)
def test_the_codec_is_stated(result: dict[str, Any], says: str) -> None:
    assert says in evaluation_report({"sets": SETS, **result})
    assert "re-encoded" not in evaluation_report({"sets": SETS})


def test_a_long_hash_is_cut() -> None:
    table = sets_table({"test": {"sha256": "0123456789abcdef" * 4}}, {}, {})
    assert table.cells[0][4]["text"] == "0123456789abcdef"


def test_a_set_described_in_part_is_shown_in_part() -> None:
    table = sets_table({"test": {}}, {}, {})
    assert [cell["text"] for cell in table.cells[0]] == ["test", "–", "–", "–", "–", "–", "0"]


def test_long_settings_are_split_and_keep_every_row_in_order() -> None:
    settings = {f"s{i}": i for i in range(9)}
    tables = settings_tables(settings, "c")
    assert len(tables) == 2
    assert [row[0] for table in tables for row in table.rows] == list(settings)
    assert len(settings_tables({"a": 1}, "c")) == 1


@pytest.mark.parametrize(
    ("detectors", "leads"),
    [
        (["likelihood", "predictive", "knn"], "predictive"),
        (["knn", "likelihood"], "likelihood"),
        (["gmm", "knn"], "Gaussian mixture"),
    ],
)
def test_the_headline_is_of_one_named_score(detectors: list[str], leads: str) -> None:
    values = {d: 0.5 + 0.1 * (i + 1) for i, d in enumerate(detectors)}
    own = {"gmm": "Gaussian mixture"}
    wanted = next(v for d, v in values.items() if own.get(d, d) == leads)
    scores = {d: {"test": np.arange(4.0) + i, "noise": np.zeros(3)} for i, d in enumerate(detectors)}
    html = evaluation_report(
        {"ood": {"noise": {d: metrics(v) for d, v in values.items()}}},
        {"scores": scores, "images": np.zeros((4, 1, 4, 4), np.uint8)},
    )
    (card,) = cards(html)
    assert card[:2] == ("AUROC against noise", f"{wanted:.3f}")
    assert card[2].startswith(f"{leads} score; 95 % interval")
    assert f"Images sorted by the {leads} score" in html


@pytest.mark.parametrize(
    "inside",
    [np.zeros(6), np.full(6, -np.inf), np.full(6, np.nan), np.array([np.inf, -np.inf, 1, 2, 3, 4.0])],
    ids=["constant", "infinite", "nan", "mixed"],
)
def test_degenerate_scores_one_class_and_no_ood_are_a_page_without_nan(inside: np.ndarray) -> None:
    arrays: dict[str, Any] = {
        "scores": {"predictive": {"test": inside, "noise": inside[:3]}},
        "images": np.zeros((6, 1, 4, 4), np.uint8),
        "ood_images": {"noise": np.zeros((3, 1, 4, 4), np.uint8)},
        "embeddings": np.ones((6, 3)),
        "variance": np.ones((6, 3)),
        "labels": np.zeros(6, int),
        "classes": ["only"],
    }
    html = evaluation_report({"ood": {}, "accuracy": {}}, arrays)
    words = re.sub(r"data:[^\"]*|<style>.*?</style>", " ", html, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|none)\b", re.sub(r"<[^>]*>", " ", words), re.I)


def test_a_full_disk_is_a_one_line_error_and_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,train/loss\n1,2.0\n", encoding="utf-8")
    (tmp_path / "report.html").write_text("old", encoding="utf-8")

    def full(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ArtifactError) as caught:
            training_report(tmp_path)
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "report.html"]
