"""What the tests of the baseline methods share: small models, views, numbers, and checks of a loss."""

import numpy as np
import torch

from probjepa.methods import METHODS

SMALL = {"channels": 1, "image_size": 16, "backbone_options": {"widths": (8, 16)}}


def small(name, **settings):
    torch.manual_seed(0)
    return METHODS[name]("convnet", **SMALL, **settings)


def view_pair(n=8, seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 1, 16, 16, generator=generator) for _ in range(count)]


def embeddings(count=2, n=12, dim=5, seed=0, dtype=torch.float64):
    """Correlated (N, D) tensors of mean and scale away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, n, dim, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.3, 2, dim, dtype=torch.float64)
    return list(((common + 0.5 * noise) * scale + 0.4).to(dtype))


def rows_cosine(a, b):
    """Cosines (N,) of rows, in numpy."""
    a, b = a.detach().double().numpy(), b.detach().double().numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def check_gradients(function, *inputs):
    """Compare autograd with finite differences in float64."""
    assert torch.autograd.gradcheck(function, [x.detach().clone().requires_grad_() for x in inputs])


def check_full_precision(function, *inputs):
    """Under autocast a loss of bfloat16 embeddings is the one of their values in float32."""
    narrow = [x.bfloat16() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        inside = function(*narrow)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, function(*(x.float() for x in narrow)))
