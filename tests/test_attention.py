"""Attention against its definition, and which of torch's ways it takes."""

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from probjepa._attention import SHORT, attention


def drawn(tokens=7, keys=None, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)

    def of(length):
        return (scale * torch.randn(2, 3, length, 4, generator=generator)).to(dtype)

    return of(tokens), of(keys or tokens), of(keys or tokens)


def by_definition(query, key, value, allow=None):
    """A sum over the keys, one query at a time, in float64."""
    out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:-1])):
        row, head, token = index.tolist()
        logits = (key[row, head].double() @ query[row, head, token].double()) / math.sqrt(query.shape[-1])
        if allow is not None:
            logits[~allow.expand(2, 3, -1, -1)[row, head, token]] = -math.inf
        weights = (logits - logits.max()).exp()
        out[row, head, token] = weights @ value[row, head].double() / weights.sum()
    return out


@pytest.mark.parametrize("keys", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_both_ways_are_the_weighted_mean(keys, masked, dtype, within):
    query, key, value = drawn(keys=keys, dtype=dtype)
    allow = None
    if masked:
        allow = torch.rand(2, 1, 7, keys or 7, generator=torch.Generator().manual_seed(1)) < 0.5
        allow[..., 0] = True
    mixed = attention(query, key, value, allow)
    assert mixed.dtype == dtype and mixed.shape == query.shape
    torch.testing.assert_close(mixed.double(), by_definition(query, key, value, allow), atol=within, rtol=0)


def test_gradients_in_bfloat16_are_those_of_float32():
    parts = [part.requires_grad_() for part in drawn()]
    halves = [part.detach().bfloat16().requires_grad_() for part in parts]
    weights = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(2))
    (attention(*parts) * weights).sum().backward()
    (attention(*halves) * weights).sum().backward()
    for part, half in zip(parts, halves, strict=True):
        torch.testing.assert_close(half.grad.float(), part.grad, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("keys", "dtype", "fused"),
    [
        (7, torch.float32, 1),
        (7, torch.bfloat16, 0),
        (SHORT, torch.bfloat16, 0),
        (SHORT + 1, torch.bfloat16, 1),
    ],
)
def test_only_short_bfloat16_is_spelled_out(keys, dtype, fused):
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as taken:
        attention(*drawn(keys=keys, dtype=dtype))
    assert taken.call_count == fused


def test_large_logits_are_no_nan_in_bfloat16():
    query, key, value = drawn(dtype=torch.bfloat16, scale=1e4)
    assert attention(query, key, value).isfinite().all()
    # one key has all of the weight
    sharp = attention(query, key, value).float()
    assert torch.isclose(sharp.unsqueeze(-2), value.float().unsqueeze(-3)).all(-1).any(-1).all()
