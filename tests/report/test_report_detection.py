"""Sections on detection and decisions: what their tables say of the figures."""

from probjepa.report.detection import decisions_section
from probjepa.report.page import render


def test_a_rate_outside_the_band_says_on_which_side():
    flagged = {
        name: {"0.05": {"test": {"value": rate, "low": None, "high": None}}}
        for name, rate in (("few values", 0.01), ("right", 0.05), ("other rows", 0.2))
    }
    decisions = {
        "rows": {"calibration": 99, "test": 400, "split": False},
        "band": {"0.05": {"expected": 0.05, "low": 0.03, "high": 0.08}},
        "flagged": flagged,
    }
    section = decisions_section(decisions, str, "test", "images")
    assert section is not None
    page = render("title", [], [section])
    assert page.count("below the band") == page.count("above the band") == 1
