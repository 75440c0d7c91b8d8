"""Autocast never reaches a likelihood."""

import torch

from probjepa.distributions.base import full_precision


def test_autocast_is_off_inside_and_as_it_was_after():
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(a):
            assert (a @ a).dtype is torch.float32
        assert (a @ a).dtype is torch.bfloat16
    with full_precision(torch.zeros(2, device="meta")):  # a device that has no autocast
        assert not torch.is_autocast_enabled("cpu")
