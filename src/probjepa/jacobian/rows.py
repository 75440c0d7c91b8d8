"""Rows of the Jacobian of a batch of inputs, a backward pass each, and their Gram matrix in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from probjepa.errors import DataError
from probjepa.jacobian.encoders import Encoder, embeddings

_BLOCK_ELEMENTS = 2**22  # of float64 at a time: 32 MiB


def worthwhile_batch(device: torch.device) -> int:
    """How many inputs keep a device busy in a backward pass.

    Measured on a ViT-S at 96 px, 1 core: 128 ms a row and input with 1, 69 with 4, 47 with 16.
    """
    return 32 if device.type == "cuda" else 8


@dataclass(frozen=True)
class Passes:
    """How derivatives of an encoder are taken; ``make_plan`` finds out what it allows and what pays.

    Attributes
    ----------
    least_batch
        run this many inputs, as copies, where there are fewer; each holds its activations
    patchify
        the convolution whose output the Jacobian is taken with respect to, in place of the input
    skip_zero_rows
        whether to look for rows that are zero throughout, and to take no pass for them
    forward
        whether to take columns of the Jacobian in place of its rows: fewer passes where P < K
    channels_last
        the order of images in memory that CPUs convolve faster in
    """

    least_batch: int = 1
    patchify: nn.Conv2d | None = None
    skip_zero_rows: bool = False
    forward: bool = False
    channels_last: bool = False


class JacobianRows:
    """y = f(x), run once, and rows of the Jacobian of every input on demand.

    The k-th backward pass, of Σ_n y[n, k], gives row k for all inputs at once because no embedding depends
    on another input. Few inputs are run as several copies, and a pass then gives a row for each copy: the
    same arithmetic in fewer, larger operations, without asking the encoder's operations for a vmap rule.

    Parameters
    ----------
    x
        prepared inputs (B, …)
    """

    def __init__(self, encoder: Encoder, x: Tensor, passes: Passes) -> None:
        self.inputs = len(x)
        self.copies = max(1, passes.least_batch // len(x))
        self._patchify = passes.patchify
        repeated = x.detach().repeat(self.copies, *[1] * (x.ndim - 1))
        if passes.channels_last:
            repeated = repeated.contiguous(memory_format=torch.channels_last)
        caught: list[Tensor] = []
        with nullcontext() if self._patchify is None else _leaf_at(self._patchify, caught):
            if self._patchify is None:
                caught.append(repeated.requires_grad_())
            self._out = embeddings(encoder, repeated)
        self._leaf = caught[0]
        self.embeddings = self._out.detach()[: self.inputs]

    def __call__(self, directions: Tensor) -> Tensor:
        """Return directions · J (B, R, P), in the encoder's floating type.

        Directions are (R, K), or (B, R, K) with each input's own, or (B, R) whole numbers: rows of J itself.
        """
        dim = self._out.shape[1]
        if directions.ndim == 2 and directions.is_floating_point():
            directions = directions.expand(self.inputs, *directions.shape)
        count = directions.shape[1]
        rows = self._leaf.new_empty(self.inputs, count, self._leaf[0].numel())
        for start in range(0, count, self.copies):
            some = directions[:, start : start + self.copies].transpose(0, 1)
            some = some if some.is_floating_point() else F.one_hot(some, dim)
            cotangent = torch.zeros_like(self._out)
            cotangent[: len(some) * self.inputs] = some.flatten(0, 1)
            (gradient,) = torch.autograd.grad(self._out, self._leaf, cotangent, retain_graph=True)
            parts = gradient.reshape(self.copies, self.inputs, -1)[: len(some)]
            rows[:, start : start + len(some)] = parts.transpose(0, 1)
        return rows

    def gram(self, directions: Tensor) -> Tensor:
        """Return the Gram matrix of directions · J over its shorter side, in float64.

        A folded first layer with weight E comes back in here: JJᵀ = J_tok (EEᵀ) J_tokᵀ, which is exact,
        holds J_tok (D numbers a token in place of C·p·p) and saves the layer's backward.
        """
        rows = self(directions)
        if self._patchify is None:
            return gram(rows)
        kernel = self._patchify.weight.detach().double().flatten(1)
        values, vectors = torch.linalg.eigh(kernel @ kernel.T)
        factor = vectors * values.clamp(min=0).sqrt()
        return folded_gram(rows.view(*rows.shape[:2], self._leaf.shape[1], -1), factor)


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


Product = Callable[[Tensor], Tensor]


def derivatives(encoder: Encoder, x: Tensor) -> tuple[Tensor, Product, Product]:
    """Return f(x) (B, K), u ↦ Jᵀu (B, …) and v ↦ J·v (B, K), which differentiates the former's graph.

    f runs forward once. Attention takes its plain form, the fused ones have no second derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        leaf = x.detach().clone().requires_grad_()
        out = embeddings(encoder, leaf)
        dual = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, leaf, dual, create_graph=True)

    def back(u: Tensor) -> Tensor:
        return torch.autograd.grad(out, leaf, u, retain_graph=True)[0]

    def forth(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, dual, v, retain_graph=True)[0]

    return out.detach(), back, forth


def live_rows(encoder: Encoder, x: Tensor) -> Tensor:
    """Return which rows of the Jacobian of each input are not zero throughout: (B, K), in two passes.

    A zero row gives 0 along every direction of the input, and any other row does not along a random one: a
    channel that a ReLU has cut off at every position needs no backward pass of its own.
    """
    out, _, forth = derivatives(encoder, x)
    generator = torch.Generator().manual_seed(0)
    live = torch.zeros_like(out, dtype=torch.bool)
    for _ in range(2):  # one sum of roundings may come to 0
        direction = torch.randn(x.shape[1:], generator=generator, dtype=torch.float64)
        live |= forth(direction.to(x).expand_as(x)) != 0
    return live


def forward_columns(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Jᵀ (B, P, K) and f(x) (B, K), in P forward derivatives."""
    out, _, forth = derivatives(encoder, x)
    unit = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    columns = [forth(one.view(x.shape[1:]).expand_as(x)) for one in unit]
    return torch.stack(columns, 1), out


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


def refuse_infinite(squares: Tensor) -> None:
    """Raise DataError unless squares of derivatives (B, …) are finite."""
    finite = torch.isfinite(squares).flatten(1).all(1)
    if not bool(finite.all()):
        raise DataError(
            f"the encoder's derivative at input {int(finite.int().argmin())} of its chunk, or its square, is "
            "NaN or infinite: look for a square root or norm at 0, a diverged model, or too large a scale"
        )


def singular_values(gram_matrix: Tensor) -> Tensor:
    """σ (B, m), falling, of the rows behind a Gram matrix (B, m, m); as many are 0 as rows are.

    Raises
    ------
    DataError
        if a derivative is NaN or infinite, or its square is
    """
    refuse_infinite(gram_matrix)
    values = torch.linalg.eigvalsh(gram_matrix).clamp(min=0).sqrt().flip(1)
    live = (gram_matrix.diagonal(dim1=1, dim2=2) > 0).sum(1, keepdim=True)
    # where a row is 0 a value is rounding of the largest
    return torch.where(torch.arange(values.shape[1], device=values.device) < live, values, 0.0)
