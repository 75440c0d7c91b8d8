"""Which features a step shows (the context) and which it asks for (the targets)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probjepa.errors import ConfigError

Share = tuple[float, float]


class Masks(NamedTuple):
    """Feature indices of a batch: context (B, C) and K target masks (K, B, T), disjoint from the context."""

    context: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Masks:
        """Move both."""
        return Masks(self.context.to(device), self.targets.to(device))


def check_share(name: str, share: Share) -> None:
    """Raise ConfigError unless 0 < low ≤ high ≤ 1."""
    if len(share) != 2 or not 0 < share[0] <= share[1] <= 1:
        raise ConfigError(f"{name} is {share!r}: give two numbers, 0 < low <= high <= 1")


def _counts(n_features: int, share: Share) -> range:
    most = max(n_features - 1, 1)
    low, high = (min(max(round(n_features * s), 1), most) for s in share)
    return range(low, high + 1)


def draw_masks(
    n_rows: int,
    n_features: int,
    *,
    context_share: Share,
    target_share: Share,
    n_targets: int,
    generator: torch.Generator,
) -> Masks:
    """Draw a batch's masks: the two counts once, so that all is dense, and the features row by row.

    The counts are uniform over the pairs of the two ranges that fit in a row together (if none does, the
    targets take what the smallest context leaves). The K target masks are drawn independently of one another
    from the features outside the context. Special tokens have no index here and cannot be masked.

    Parameters
    ----------
    n_rows, n_features
        B rows of D features; a single feature is a target without context
    context_share, target_share
        (low, high) shares of the D features; at least one feature each, D > 1
    n_targets
        K
    generator
        a CPU generator: the same one gives the same masks on every device
    """
    if n_features == 1:
        n_context, n_target = 0, 1
    else:
        contexts, targets = _counts(n_features, context_share), _counts(n_features, target_share)
        pairs = [(c, t) for c in contexts for t in targets if c + t <= n_features]
        pairs = pairs or [(contexts[0], n_features - contexts[0])]
        n_context, n_target = pairs[int(torch.randint(len(pairs), (), generator=generator))]
    order = torch.rand(n_rows, n_features, generator=generator).argsort(1)
    outside = order[:, n_context:]
    picks = torch.rand(n_targets, *outside.shape, generator=generator).argsort(2)[..., :n_target]
    return Masks(order[:, :n_context], outside.expand(n_targets, -1, -1).gather(2, picks))
