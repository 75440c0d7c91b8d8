"""What needs the whole batch where several processes train: sums, rows and a seed in common."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from probjepa.draws import drawn


def world_size() -> int:
    """Number of processes that train together: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def of_each(mine: Any) -> list[Any]:
    """Return what every process has, in the order of their ranks. It is plain, as JSON is."""
    found: list[Any] = [mine] * world_size()
    if len(found) > 1:
        dist.all_gather_object(found, mine)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        ctx.dim = dim
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # a sum: every process has a loss of its own in which this process's rows stand
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size(), ctx.dim)[dist.get_rank()], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def summed(x: Tensor) -> Tensor:
    """Add up ``x`` of all processes, with gradients: those of every process's loss. Of one it is ``x``."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


def standard_deviation(x: Tensor) -> Tensor:
    """Standard deviations of the features of x (N, ...) over the rows of all processes, without gradients."""
    if world_size() == 1:
        return x.detach().std(0, correction=0)
    mean = summed(x.detach().mean(0)) / world_size()
    return (summed((x.detach() - mean).square().mean(0)) / world_size()).sqrt()


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """Join the rows of all processes along ``dim``, in the order of their ranks, with gradients.

    A loss of the joined rows is the same number in every process. Its gradient reaches each process's rows
    once from every process, so that parameter gradients averaged over the processes, as DDP does, are
    exactly those of one process with the joined batch. Batch normalisation in front of it stays each
    process's own, unless the trainer joins that too (``sync_batchnorm``). In one process it returns ``x``.

    Parameters
    ----------
    x
        of one shape in all processes
    """
    if world_size() == 1:
        return x
    joined: Tensor = _Gather.apply(x, dim)  # type: ignore[no-untyped-call]
    return joined


def total(count: int) -> int:
    """Add up a number of all processes, on whatever device these exchange tensors."""
    if world_size() == 1:
        return count
    counts = [0] * world_size()
    dist.all_gather_object(counts, count)
    return sum(counts)


def shared_seed(device: torch.device) -> int:
    """Draw a seed from torch's global generator, the same in all processes: the first one's.

    Parameters
    ----------
    device
        one that the processes can exchange tensors on
    """
    seed = drawn(partial(torch.randint, 2**62), (), None)
    if world_size() > 1:
        seed = seed.to(device)
        dist.broadcast(seed, 0)
    return int(seed)
