"""Plain words for collapse diagnostics."""

from __future__ import annotations

import math
from collections.abc import Mapping

from probjepa.report.page import Tone


def collapse_verdict(values: Mapping[str, float], dim: int | None = None) -> tuple[Tone, str]:
    """Return whether the embeddings look collapsed, and a sentence that says why and what to do.

    The thresholds are those of the warning during training.

    Parameters
    ----------
    values
        any of ``effective_rank``, ``std_mean`` (mean std of a feature of L2-normalised embeddings),
        ``mean_variance`` (mean σ²) and ``kl_per_dim``; what is missing or not finite is not judged
    dim
        size D of the embedding: evenly spread normalised features have a std of 1/√D. Without it the
        spread is judged as if D were 10,000
    """
    known = {name: float(x) for name, x in values.items() if x is not None and math.isfinite(x)}
    rank, std = known.get("effective_rank"), known.get("std_mean")
    variance, kl = known.get("mean_variance"), known.get("kl_per_dim")
    found = []
    if rank is not None and rank < 2:
        found.append(f"an effective rank of {rank:.3g} means that nearly all embeddings lie on one line")
    if std is not None and std < 0.1 / math.sqrt(dim or 10_000):
        found.append(f"a feature std of {std:.2g} means that embeddings hardly differ between images")
    if found:
        return "warn", f"Collapsed: {'; '.join(found)}. Lower the learning rate, or use larger batches."
    if variance is not None and variance < 1e-3:
        return "warn", (
            f"The posterior has shrunk to a point (mean σ² {variance:.2g}), so its variances say nothing "
            "about an input. Raise the weight of the KL term."
        )
    if variance is not None and kl is not None and abs(variance - 1) < 0.01 and kl < 1e-3:
        return "warn", (
            f"The posterior has become the prior (mean σ² {variance:.3f}, KL per dimension {kl:.2g}), "
            "so its variances say nothing about an input. Lower the weight of the KL term."
        )
    facts = []
    if rank is not None:
        facts.append(f"the embeddings spread over about {rank:.3g}{f' of {dim}' if dim else ''} directions")
    elif std is not None:
        facts.append(f"the embeddings differ between images (feature std {std:.2g})")
    else:
        return "plain", "The spread of the embeddings was not recorded, so a collapse cannot be ruled out."
    if variance is not None:
        facts.append(f"the posterior variance is {variance:.3g} on average, against 1 under the prior")
    return "good", f"No sign of collapse: {' and '.join(facts)}."
