"""Every score that needs no label, of every set: the model's own, then those of any encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probjepa.scores.combined import Combined
from probjepa.scores.own import Own, own_scores
from probjepa.scores.table import available

if TYPE_CHECKING:
    from probjepa.scores.base import Features, Score, Values


def label_free_scores(
    model: Any,
    reference: Features,
    sets: Mapping[str, Features],
    *,
    seed: int = 0,
    gradients: bool = False,
    progress: bool = False,
) -> dict[str, dict[str, Values]]:
    """Return score → set → (N,), higher = more typical: all that the model has.

    The main one of its own comes first, then its density of the reference, its other ones (``ood_scores``),
    and the other entries of ``SCORES``.

    Parameters
    ----------
    reference, sets
        the model's ``features`` of the reference, and of every set by name, each with its "inputs"
    seed
        of the detectors
    gradients
        also the scores that need gradients, which read "inputs" of each set; each shows a bar with
        ``progress``
    """
    own = {name: own_scores(model, of) for name, of in sets.items()}
    parts = list(next(iter(own.values())))
    kinds = available(model, but=Own, gradients=gradients)
    densities = [name for name, kind in kinds.items() if kind.own and not issubclass(kind, Combined)]
    slow_last = sorted(kinds, key=lambda name: "gradients" in kinds[name].needs)
    table: dict[str, dict[str, Values]] = {}
    for name in dict.fromkeys([*parts[:1], *densities, *parts, *slow_last]):
        if name in parts:
            table[name] = {of: values[name] for of, values in own.items()}
        elif name not in table:  # as a column of another score
            score = kinds[name](model, seed=seed, progress=progress)
            found = columns(score, reference, sets)
            table |= {name if column == score.name else column: of for column, of in found.items()}
    return table


def columns(score: Score, reference: Features, sets: Mapping[str, Features]) -> dict[str, dict[str, Values]]:
    """Return what a score shows of every set: column → set → (N,)."""
    score.fit(reference)
    by_set = {name: score.columns(of) for name, of in sets.items()}
    return {
        column: {name: of[column] for name, of in by_set.items()} for column in next(iter(by_set.values()))
    }
