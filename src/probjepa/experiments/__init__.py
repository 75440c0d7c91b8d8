"""Whole experiments: the demo and the papers' tables."""

from __future__ import annotations

from probjepa.registry import Registry

# each: reproduce(out, *, data_root, quick, seed, overwrite, progress) -> None
EXPERIMENTS = Registry("experiment", {"jepa-score-gmm": "probjepa.experiments.jepa_score_gmm:reproduce"})
