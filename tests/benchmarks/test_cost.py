"""The cost page has the committed figures."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_committed_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cost

    figures = json.loads((ROOT / "benchmarks/results/cost.json").read_text())["figures"]
    both = {(encoder, what) for encoder in cost.ENCODERS for what in cost.WORK}
    assert {tuple(name.split(": ")) for name in figures} == both - cost.TOO_LONG
    text = (ROOT / "docs/cost.md").read_text()
    assert cost.fill_in(text, figures) == text
