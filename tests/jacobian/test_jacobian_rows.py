"""Rows of a Jacobian and their Gram matrices, against Jacobians that are known in float64."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
from jacobian_models import double
from torch import Tensor, nn

from probjepa.errors import DataError
from probjepa.jacobian import rows as module
from probjepa.jacobian.encoders import as_encoder
from probjepa.jacobian.rows import (
    JacobianRows,
    Passes,
    derivatives,
    folded_gram,
    forward_columns,
    gram,
    live_rows,
    singular_values,
)

A = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def curved(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ A.T)


def jacobian(x: Tensor) -> Tensor:
    """Of ``curved`` (B, 5, 7): diag(1 − tanh²)·A."""
    return (1 - curved(x).square())[:, :, None] * A


@pytest.mark.parametrize("inputs", [1, 2, 3, 9])
@pytest.mark.parametrize("least_batch", [1, 4, 8])
def test_rows_along_every_kind_of_direction(inputs: int, least_batch: int) -> None:
    x = double(inputs, 7)
    rows = JacobianRows(as_encoder(curved), x, Passes(least_batch=least_batch))
    assert rows.copies == max(1, least_batch // inputs)
    torch.testing.assert_close(rows.embeddings, curved(x))
    assert not rows.embeddings.requires_grad
    j, own = jacobian(x), double(inputs, 4, 5)
    torch.testing.assert_close(rows(own), own @ j)
    torch.testing.assert_close(rows(own[0]), own[0] @ j)
    wanted = torch.stack([torch.randperm(5)[:3] for _ in range(inputs)])
    torch.testing.assert_close(rows(wanted), j.gather(1, wanted[:, :, None].expand(-1, -1, 7)))
    torch.testing.assert_close(rows.gram(own), own @ j @ (own @ j).mT)


def test_a_pass_is_taken_of_as_many_rows_as_there_are_copies() -> None:
    passes = []

    def f(x: Tensor) -> Tensor:
        out = curved(x)
        out.register_hook(lambda gradient: passes.append(int((gradient != 0).any(1).sum())))
        return out

    rows = JacobianRows(as_encoder(f), double(2, 7), Passes(least_batch=4))
    rows(torch.eye(5))
    assert passes == [4, 4, 2]
    assert rows(torch.eye(5)).dtype == torch.float64  # the encoder's type, whatever the directions'


@pytest.mark.parametrize("inputs", [1, 3])
def test_products_with_the_jacobian_and_its_transpose(inputs: int) -> None:
    x, u, v = double(inputs, 7), double(inputs, 5), double(inputs, 7)
    out, back, forth = derivatives(as_encoder(curved), x)
    torch.testing.assert_close(out, curved(x))
    assert not out.requires_grad
    for _ in range(2):  # the graphs stay
        torch.testing.assert_close(back(u), (u[:, None] @ jacobian(x))[:, 0])
        torch.testing.assert_close(forth(v), (jacobian(x) @ v[:, :, None])[:, :, 0])


@pytest.mark.parametrize("inputs", [1, 3])
def test_columns_give_the_gram_of_the_transpose(inputs: int) -> None:
    x = double(inputs, 2, 1)
    tall = double(5, 2)
    columns, out = forward_columns(as_encoder(lambda z: torch.tanh(z.flatten(1) @ tall.T)), x)
    j = (1 - out.square())[:, :, None] * tall
    torch.testing.assert_close(columns, j.mT)
    square = gram(columns)
    torch.testing.assert_close(square, j.mT @ j)
    torch.testing.assert_close(out, torch.tanh(x.flatten(1) @ tall.T))
    assert square.shape == (inputs, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_live_rows_are_those_that_are_not_zero(dtype: torch.dtype) -> None:
    scale = torch.tensor([[1, 0, 1e-9, 0], [0, 0, 0, 0], [2, 3, 0, 1]], dtype=dtype)

    def f(x: Tensor) -> Tensor:
        return (scale[:, :, None] * x[:, None]).sum(2) + 1

    state = torch.random.get_rng_state()
    assert torch.equal(live_rows(as_encoder(f), torch.randn(3, 6).to(dtype) * 0 + 1), scale != 0)
    torch.random.set_rng_state(state)


def test_a_row_is_live_unless_both_of_two_directions_give_zero() -> None:
    """The sums of roundings that may come to 0, played by a derivative that is 0 at its first use."""
    uses = []

    def products(encoder: Any, x: Tensor) -> tuple[Any, ...]:
        def forth(v: Tensor) -> Tensor:
            uses.append(v)
            return torch.tensor([[0.0, 1.0, 0.0]]) if len(uses) == 1 else torch.tensor([[1.0, 0.0, 0.0]])

        return torch.zeros(1, 3), None, forth

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "derivatives", products)
        found = live_rows(as_encoder(curved), torch.randn(1, 2, 4))
    assert found.tolist() == [[True, True, False]]
    assert {v.shape for v in uses} == {(1, 2, 4)}
    assert not torch.equal(uses[0], uses[1])


@pytest.mark.parametrize("shape", [(2, 3, 11), (2, 11, 3), (1, 4, 4)])
@pytest.mark.parametrize("block", [1, 7, 40, 2**22])
def test_gram_is_over_the_shorter_side_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    rows = torch.randn(*shape)
    wide = rows.double() if shape[1] <= shape[2] else rows.double().mT
    found = gram(rows)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wide @ wide.mT)


@pytest.mark.parametrize("block", [1, 60, 10_000])
def test_folded_gram_puts_the_patch_embedding_back_in(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    tokens, kernel = torch.randn(2, 3, 4, 5), double(4, 12)  # (B, R, D, T) and E (D, C·p·p)
    pixels = torch.einsum("brdt,dc->brtc", tokens.double(), kernel).flatten(2)
    factor = torch.linalg.cholesky(kernel @ kernel.T)
    torch.testing.assert_close(folded_gram(tokens, factor), pixels @ pixels.mT)


@pytest.mark.parametrize("limit", [100, 1])  # not one column goes into the latter
@pytest.mark.parametrize("folded", [False, True])
def test_a_block_is_as_large_as_may_be_and_no_larger(
    monkeypatch: pytest.MonkeyPatch, folded: bool, limit: int
) -> None:
    """Of float64 numbers after the cast: 2 inputs × 3 rows (× 4 channels) a column."""
    sizes: list[int] = []
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", limit)
    monkeypatch.setattr(Tensor, "baddbmm_", lambda total, left, right: sizes.append(left.numel()))
    if folded:
        folded_gram(torch.randn(2, 3, 4, 50), double(4, 4))
    else:
        gram(torch.randn(2, 3, 50))
    column = 24 if folded else 6
    assert max(sizes) == max(1, limit // column) * column
    assert sum(sizes) == 50 * column


def test_a_block_holds_32_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(Tensor, "baddbmm_", lambda total, left, right: sizes.append(8 * left.numel()))
    gram(torch.zeros(1, 2, 2**21 + 1))
    assert sizes == [32 * 2**20, 16]


def test_singular_values_fall_and_are_never_negative() -> None:
    rows = double(2, 4, 9)
    rows[1, 3] = rows[1, 0]  # of rank 3
    found = singular_values(gram(rows))
    torch.testing.assert_close(found, torch.linalg.svdvals(rows), rtol=0, atol=1e-6)
    assert bool((found >= 0).all())
    torch.testing.assert_close(
        singular_values(torch.diag(torch.tensor([-1e-20, 4.0]))[None].double()),
        torch.tensor([[2.0, 0.0]]).double(),
    )


@pytest.mark.parametrize(("bad", "named"), [([1, 2], 1), ([0], 0), ([2], 2)])
def test_the_first_input_without_finite_derivatives_is_named(bad: list[int], named: int) -> None:
    square = torch.eye(3).expand(3, 3, 3).double().clone()
    square[bad, 0, 1] = torch.inf
    with pytest.raises(DataError, match=f"at input {named} of its chunk"):
        singular_values(square)


@pytest.mark.parametrize("dim", [2, 20])  # channels of the patch embedding: fewer and more than 12 numbers
def test_rows_by_tokens_have_the_gram_of_rows_by_pixels(dim: int) -> None:
    patch = nn.Conv2d(3, dim, 2, 2).double()
    out = nn.Linear(4 * dim, 5).double()
    encoder = as_encoder(lambda x: torch.tanh(out(torch.tanh(patch(x)).flatten(1))))
    x, directions = double(2, 3, 4, 4), torch.eye(5).double()
    folded = JacobianRows(encoder, x, Passes(patchify=patch, least_batch=4))
    plain = JacobianRows(encoder, x, Passes())
    assert folded(directions).shape == (2, 5, 4 * dim)
    torch.testing.assert_close(folded.gram(directions), plain.gram(directions))
    torch.testing.assert_close(folded.embeddings, plain.embeddings)
    assert not patch._forward_hooks


def test_images_are_handed_on_in_the_order_that_was_chosen() -> None:
    seen: list[bool] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.mean((2, 3))

    for channels_last in (True, False):
        JacobianRows(as_encoder(f), torch.randn(2, 3, 4, 4), Passes(channels_last=channels_last))
    assert seen == [True, False]


def test_passes_are_plain_unless_something_else_is_found_out() -> None:
    plain = Passes()
    assert JacobianRows(as_encoder(curved), double(1, 7), plain).copies == 1
    assert astuple(plain) == (1, None, False, False, False)


def test_rows_of_zeros_have_singular_values_of_zero() -> None:
    rows = 1e4 * torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0)).double()
    rows[:, 5:] = 0
    rows[1, 2] = 0
    sigma = singular_values(rows @ rows.transpose(1, 2))
    assert (sigma > 0).sum(1).tolist() == [5, 4, 5]
