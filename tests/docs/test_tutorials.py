"""Each tutorial runs from top to bottom, in a folder of its own, and prints what it says it prints."""

import warnings
from pathlib import Path

import pytest
import torch
from run_page import blocks, run_page

from probjepa.errors import ProbjepaWarning
from probjepa.methods import METHODS

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs" / "tutorials").glob("*.md") if page.stem != "index")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METHODS, "_added", {**METHODS._added})  # what a page registers, it takes with it
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("error", ProbjepaWarning)
        run_page(page)
    assert "warning: " not in capsys.readouterr().err  # as the commands say them


def test_all_four_are_there_and_in_the_list():
    assert {page.stem for page in PAGES} == {"images", "tables", "encoders", "loss"}
    index = (ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"({page.name})" not in index] == []


def test_a_wrong_output_is_found_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 2\nprint(x)\n```\n\n```text\n3\n```\n", encoding="utf-8")
    assert [(line, language) for line, language, _ in blocks(page.read_text())] == [
        (4, "python"),
        (9, "text"),
    ]
    with pytest.raises(AssertionError, match=r"page.md:9: the page says\n3"):
        run_page(page)
