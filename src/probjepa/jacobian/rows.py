"""Rows of the Jacobian of a batch of inputs, a backward pass each, and their Gram matrix in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from probjepa.errors import DataError
from probjepa.jacobian.encoders import Encoder, embeddings

# A backward pass over fewer inputs than this leaves the machine idle; measured on a ViT-S at 96 px, 1 core:
# 128 ms a row and input with 1, 69 with 4, 47 with 16.
WORTHWHILE_BATCH = {"cpu": 8, "cuda": 32}
_BLOCK_ELEMENTS = 2**22  # of float64 at a time: 32 MiB


class JacobianRows:
    """y = f(x), run once, and rows of the Jacobian of every input on demand.

    The k-th backward pass, of Σ_n y[n, k], gives row k for all inputs at once because no embedding depends
    on another input. Few inputs are run as several copies, and a pass then gives a row for each copy: the
    same arithmetic in fewer, larger operations, without asking the encoder's operations for a vmap rule.

    Parameters
    ----------
    x
        prepared inputs (B, …)
    least_batch
        run this many, as copies, where there are fewer inputs; each holds its activations
    patchify
        the convolution whose output the Jacobian is taken with respect to, in place of x
    """

    def __init__(
        self, encoder: Encoder, x: Tensor, least_batch: int, patchify: nn.Conv2d | None = None
    ) -> None:
        self.inputs = len(x)
        self.copies = max(1, least_batch // len(x))
        repeated = x.detach().repeat(self.copies, *[1] * (x.ndim - 1))
        caught: list[Tensor] = []
        with nullcontext() if patchify is None else _leaf_at(patchify, caught):
            if patchify is None:
                caught.append(repeated.requires_grad_())
            self._out = embeddings(encoder, repeated)
        self._leaf = caught[0]
        self.shape = self._leaf.shape[1:]  # of what the Jacobian is with respect to
        self.embeddings = self._out.detach()[: self.inputs]

    def __call__(self, directions: Tensor) -> Tensor:
        """Return directions · J: (R, K) → (B, R, P), in the encoder's floating type."""
        count = len(directions)
        rows = self._leaf.new_empty(self.inputs, count, self.shape.numel())
        for start in range(0, count, self.copies):
            some = directions[start : start + self.copies].to(self._out)
            cotangent = torch.zeros_like(self._out)
            cotangent[: len(some) * self.inputs] = some.repeat_interleave(self.inputs, 0)
            (gradient,) = torch.autograd.grad(self._out, self._leaf, cotangent, retain_graph=True)
            parts = gradient.reshape(self.copies, self.inputs, -1)[: len(some)]
            rows[:, start : start + len(some)] = parts.transpose(0, 1)
        return rows


@contextmanager
def _leaf_at(module: nn.Module, caught: list[Tensor]) -> Iterator[None]:
    """Cut the graph at a module's output, which becomes the leaf that derivatives are taken to."""

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    handle = module.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def gram(rows: Tensor) -> Tensor:
    """Gram matrix over the shorter side, in float64: (B, R, P) → (B, m, m), m = min(R, P).

    Blocks of P columns are cast, so that no second copy of the rows is held. In float32 the products would
    square the rounding: Σ log σ is then wrong by 0.8 for a ViT-S, and the small σ are lost.
    """
    if rows.shape[2] < rows.shape[1]:
        rows = rows.transpose(1, 2)
    return _accumulate(rows, rows.shape[1], lambda block: block)


def folded_gram(rows: Tensor, factor: Tensor) -> Tensor:
    """Gram of the pixel rows from the rows with respect to patch tokens: J_tok (I ⊗ EEᵀ) J_tokᵀ.

    Parameters
    ----------
    rows
        (B, R, D, T): the derivative by D channels of T tokens
    factor
        L (D, r) float64 with LLᵀ = EEᵀ, E (D, C·p·p) the patch embedding
    """
    by_token = rows.transpose(2, 3)  # (B, R, T, D)
    return _accumulate(by_token, rows.shape[1] * factor.shape[0], lambda block: (block @ factor).flatten(2))


def _accumulate(rows: Tensor, per_column: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ of the blocks' Grams (B, R, R), of rows (B, R, columns, …) with ``per_column`` numbers a column."""
    batch, side, columns = rows.shape[:3]
    total = torch.zeros(batch, side, side, dtype=torch.float64, device=rows.device)
    width = max(1, _BLOCK_ELEMENTS // (batch * per_column))
    for start in range(0, columns, width):
        block = transform(rows[:, :, start : start + width].double())
        total.baddbmm_(block, block.transpose(1, 2))
    return total


def singular_values(gram_matrix: Tensor) -> Tensor:
    """σ (B, m), falling, of the rows behind a Gram matrix (B, m, m).

    Raises
    ------
    DataError
        if a derivative is NaN or infinite
    """
    finite = torch.isfinite(gram_matrix).flatten(1).all(1)
    if not bool(finite.all()):
        raise DataError(
            f"the encoder's derivative at input {int(finite.int().argmin())} of its chunk is NaN or "
            "infinite: look for a square root or norm at 0, or a diverged model"
        )
    values: Tensor = torch.linalg.eigvalsh(gram_matrix)
    return values.clamp(min=0).sqrt().flip(1)
