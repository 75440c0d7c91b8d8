"""What a step is made of that depends on nothing but its number: its learning rate and its seed."""

from __future__ import annotations

import math

_MASK = (1 << 64) - 1


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    r"""Return the factor on the learning rate at ``step``: linear warm-up, then a cosine to 0.

    .. math::
        f(t) = \frac{t + 1}{w} \;(t < w), \qquad
        f(t) = \tfrac12 \bigl(1 + \cos \pi \tfrac{t - w}{T - w}\bigr) \;(t \ge w)

    (Loshchilov & Hutter 2017, with the warm-up of Goyal et al. 2017.) The warm-up starts at 1/w and not at 0,
    so that the first step does something.

    Parameters
    ----------
    step
        how many optimiser steps were taken before this one, t
    total
        how many there are, T; at and after it the factor is 0
    warmup
        how many of them warm up, w; 0 for none
    """
    if step >= total:
        return 0.0
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def _splitmix64(x: int) -> int:
    """Return the splitmix64 finaliser of ``x`` (Steele, Lea & Flood 2014): a bijection of 64-bit integers."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the 63-bit seed of everything random in one step of one process.

    A function of its arguments alone: a resumed run draws what the uninterrupted one would have drawn. The
    mix is three rounds of splitmix64, so that neighbouring steps, seeds and ranks share nothing.
    """
    mixed = _splitmix64(seed & _MASK)
    mixed = _splitmix64(mixed ^ (step & _MASK))
    mixed = _splitmix64(mixed ^ (rank & _MASK))
    return mixed >> 1  # torch.Generator takes any 64 bits, NumPy and signed columns do not
