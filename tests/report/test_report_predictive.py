"""The predictions' pictures: the colours of masks, and what the section says."""

import numpy as np
import pytest

from probjepa.report.page import Figure, Gallery, Table
from probjepa.report.predictive import mask_overlay, predictive_section

RANDOM = np.random.default_rng(0)
INTERVAL = {"value": 1.0, "low": 0.9, "high": 1.1}


def figures(**changes):
    return {
        "head": "mdn", "images": 8, "tokens": 64, "scored_tokens": 16, "draws": 4, "target_std": 0.6,
        "nll_per_dimension": INTERVAL, "energy_score": INTERVAL, "cosine": INTERVAL, "spread": INTERVAL,
        "energy_score_marginal": {"value": 2.0, "low": 1.9, "high": 2.1}, "nll_marginal": INTERVAL,
        "energy_skill": 0.5,
    } | changes  # fmt: skip


def arrays(**changes):
    return {
        "targets": RANDOM.normal(size=(64, 6)),
        "samples": RANDOM.normal(size=(64, 6)),
        "means": RANDOM.normal(size=(16, 6)),
        "masks": {
            "images": RANDOM.integers(0, 256, (2, 1, 8, 8), dtype=np.uint8),
            "context": np.array([[0, 1], [2, 3]]),
            "targets": np.array([[[2], [3]], [[0], [0]]]),
            "patch": 4,
        },
    } | changes


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_tint_their_patches_and_nothing_else(channels):
    image = np.full((1, channels, 6, 6), 100, np.uint8)
    context, targets = np.array([[0, 4]]), np.array([[[1, 2], [2, 5]]])
    drawn = mask_overlay(image, context, targets, 2)
    assert drawn.shape == (1, 3, 6, 6) and drawn.dtype == np.uint8
    green, red = (np.round(0.55 * 100 + 0.45 * np.array(c)) for c in ((0, 158, 82), (214, 39, 40)))
    for index in range(9):
        top, left = 2 * (index // 3), 2 * (index % 3)
        patch = drawn[0, :, top : top + 2, left : left + 2].reshape(3, -1).T
        expected = green if index in (0, 4) else red if index in (1, 2, 5) else [100] * 3
        assert patch == pytest.approx(np.broadcast_to(expected, (4, 3)), abs=1)
    assert (image == 100).all()


def test_section_shows_what_was_measured():
    assert predictive_section(None) is None
    section = predictive_section(figures(), arrays())
    (table,) = (item for item in section.items if isinstance(item, Table))
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["skill: 1 − energy score / that of other images' targets ↑"] == 0.5
    assert (rows["energy score ↓"].value, rows["energy score ↓"].interval) == (1.0, "0.900–1.100")
    assert rows["targets' standard deviation over images"] == 0.6
    assert [type(item) for item in section.items] == [Figure, Figure, Figure, Gallery, Table]
    (gallery,) = (item for item in section.items if isinstance(item, Gallery))
    assert gallery.images.shape == (2, 3, 8, 8)
    weights = RANDOM.dirichlet(np.ones(3), 64)
    mixture = {
        "components": 3, "entropy": 0.9, "effective_components": 2.4, "effective_components_overall": 2.9,
    }  # fmt: skip
    quantiles = {"mean": 1.0, "quantiles": {"0.05": 0.5, "0.5": 1.0, "0.95": 2.0}}
    full = predictive_section(
        figures(mixture=mixture, sigma=quantiles, log_det=quantiles),
        arrays(
            weights=weights, entropy=RANDOM.uniform(0, 1, 64), components=RANDOM.normal(size=(16, 3, 6)),
            component_weights=weights[:16], sigma=RANDOM.uniform(0.5, 2, 500), log_det=np.full(64, 0.25),
        ),
    )  # fmt: skip
    assert len(full.items) == len(section.items) + 4
    (table,) = (item for item in full.items if isinstance(item, Table))
    assert ["σ, median (5 % to 95 %)", "1 (0.5 to 2)"] in [list(row) for row in table.rows]
    assert ["effective components, of a token", 2.4] in [list(row) for row in table.rows]
    weighed = next(f for f in full.items if isinstance(f, Figure) and "Weights of the components" in f.alt)
    assert all(f"component {k + 1} {mean:.3f}" in weighed.alt for k, mean in enumerate(weights.mean(0)))
    figures_only = predictive_section(figures(nll_per_dimension=None))
    assert [type(item) for item in figures_only.items] == [Table]


def test_a_teacher_that_has_collapsed_is_named():
    assert "has collapsed" in predictive_section(figures(target_std=0.001)).text
    assert "has collapsed" not in predictive_section(figures()).text
