"""Attention, in whichever of torch's ways is quick where it runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 256  # keys: with more, the weights of every pair would take more memory than they save time


def attention(query: Tensor, key: Tensor, value: Tensor, allow: Tensor | None = None) -> Tensor:
    r"""Return softmax(QKᵀ/√d)·V (…, L, d) of queries (…, L, d), and keys and values (…, S, d).

    In bfloat16 on a CPU, with at most 256 keys, it is spelled out: with its gradients torch's fused attention
    takes up to four times as long there as in float32 (``benchmarks/attention.py``). Sums are in
    float32 there too; logits and weights are rounded. Anywhere else it is the fused one.

    Parameters
    ----------
    allow
        boolean (…, L, S), whether a query attends to a key; every query needs one. None: to all
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or key.shape[-2] > SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allow)
    with torch.autocast("cpu", enabled=False):  # a softmax in float32 would take three times the memory
        logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        if allow is not None:
            logits = logits.masked_fill(~allow, -math.inf)
        return torch.softmax(logits, -1) @ value
