"""How many inputs to take at a time, and what to do when that was too many."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from probjepa import provenance
from probjepa.errors import ConfigError, is_out_of_memory

T = TypeVar("T")
_SHARE = 0.5  # of the free memory that is planned with: the rest is for what is not counted


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return provenance.free_memory()


def fitting(bytes_each: int, device: torch.device) -> int:
    """How many things of ``bytes_each`` go into half of the free memory; may be 0."""
    return int(_SHARE * free_memory(device) / max(bytes_each, 1))


def in_chunks(
    count: int, size: int, compute: Callable[[slice], T], advice: str
) -> Iterator[tuple[slice, T, int]]:
    """Call ``compute`` on consecutive slices of ``count`` rows; out of memory halves the size and goes on.

    Yields
    ------
    tuple[slice, T, int]
        the rows, what ``compute`` made of them, and the size that they were taken with

    Raises
    ------
    ConfigError
        if a single row does not fit; ``advice`` ends the line
    """
    start = 0
    while start < count:
        rows = slice(start, min(start + size, count))
        result: T | None = None
        try:
            result = compute(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # outside the handler: the error's traceback holds the tensors that filled the memory
        if result is not None:
            yield rows, result, size
            start = rows.stop
            continue
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rows.stop - rows.start == 1:
            raise ConfigError(f"out of memory on a single input: {advice}")
        size = (rows.stop - rows.start) // 2
