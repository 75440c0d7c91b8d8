"""Random draws: the states of global generators, and draws that several processes share.

What processes draw together is what one process would draw.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def reseed(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's global generators of the CPU and of ``device``, and of no other device.

    Python's and NumPy's are seeded, too: a loss, or a view recipe, of the user's own may draw from them.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every GPU, whoever draws there
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device is not None and device.type == "mps":
        torch.mps.manual_seed(seed)


def sklearn_seed(seed: int) -> int:
    """Return the seed that scikit-learn, which takes 32 bits, gets for one of this library's.

    Examples
    --------
    >>> sklearn_seed(7), sklearn_seed(2**32 + 7)
    (7, 7)
    """
    return seed % 2**32


def sample_rows(count: int, most: int, seed: int) -> Tensor:
    """Return at most ``most`` of ``count`` row numbers, in order, the same for the same seed."""
    if count <= most:
        return torch.arange(count)
    rows = np.random.default_rng(seed).choice(count, most, replace=False)
    return torch.from_numpy(np.sort(rows))


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that draws and dropout on ``device`` come from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def restore_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Set what ``random_state`` returned; of another device's states that of the CPU alone."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif len(states) > 1 and device.type == "mps":
        torch.mps.set_rng_state(states[1])


@contextmanager
def forked(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """After the block the global generators of the CPU and of ``device`` are as they were before it.

    So are Python's and NumPy's. With a ``seed`` they begin the block with it. They are the process's own:
    blocks of several threads run one after another, so that each draws what it would draw alone.
    """
    on = device or torch.device("cpu")
    with _ONE_AT_A_TIME:
        before = random_state(on)
        pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            if seed is not None:
                reseed(seed, device)
            yield
        finally:
            restore_random_state(before, on)
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002


_ONE_AT_A_TIME = threading.RLock()


def _unlocked() -> None:
    """Give a forked process a lock of its own: a thread that holds the parent's is not there."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)


class _Share:
    """This process's part of a batch: rows ``rank``, ``rank + world``, …, as the loader deals them."""

    def __init__(self, seed: int, rank: int, world: int) -> None:
        self.seed, self.rank, self.world = seed, rank, world
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of a device that is in the same state in all processes."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


_share: _Share | None = None  # no context variable: PyTorch's compiler reads none


@contextmanager
def shared_draws(seed: int, rank: int, world: int) -> Iterator[None]:
    """Within the block ``drawn`` draws for all processes, from ``seed``, and gives ``rank`` its rows.

    What is drawn in other ways comes from torch's generators, which each process seeds for itself. With one
    process nothing changes.
    """
    global _share
    before, _share = _share, _Share(seed, rank, world) if world > 1 else None
    try:
        yield
    finally:
        _share = before


def drawn(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    dim: int | None = 0,
    *,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor:
    """Draw numbers for a batch, of torch's global generator or, in ``shared_draws``, of the shared one.

    Parameters
    ----------
    draw
        ``torch.rand``, or what is called like it
    shape
        of what this process gets
    dim
        along which the batch's rows lie: of views one after another, all rows of the first come first. None:
        the draws are of the batch as a whole, the same in every process
    """
    if _share is None:
        return draw(shape, device=device, **options)
    whole, rows = list(shape), [slice(None)] * len(shape)
    if dim is not None:
        whole[dim] *= _share.world
        rows[dim] = slice(_share.rank, None, _share.world)
    numbers = draw(whole, device=device, generator=_share.generator(torch.device(device)), **options)
    return numbers[tuple(rows)]


def drawn_rows(
    make: Callable[[int, torch.Generator | None], Sequence[Tensor]], count: int
) -> Sequence[Tensor]:
    """Return what ``make(count, generator)`` draws on the CPU, each (count, …), shared as by ``drawn``."""
    if _share is None:
        return make(count, None)
    whole = make(count * _share.world, _share.generator(torch.device("cpu")))
    return [part[_share.rank :: _share.world] for part in whole]
