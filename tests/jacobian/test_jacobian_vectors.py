"""Right singular vectors against torch's SVD of a Jacobian that is known."""

import pytest
import torch

from probjepa.errors import ConfigError
from probjepa.jacobian import singular_vectors


def test_linear_map():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 1, 3, 4, generator=generator, dtype=torch.float64)
    sigma, vectors = singular_vectors(lambda x: x.flatten(1) @ matrix.T, images, count=3)
    _, expected, right = torch.linalg.svd(matrix, full_matrices=False)
    assert vectors.shape == (3, 3, 1, 3, 4)
    torch.testing.assert_close(sigma, expected[:3].expand(3, 3))
    cosine = (vectors.flatten(2) * right[:3]).sum(2)
    torch.testing.assert_close(cosine.abs(), torch.ones(3, 3, dtype=torch.float64))
    flat = vectors.flatten(2)
    assert (flat.gather(2, flat.abs().argmax(2, keepdim=True)) > 0).all()


def test_the_embedding_moves_by_sigma_along_a_vector():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh()).double().eval()
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    sigma, vectors = singular_vectors(net, images, count=1)
    step = 1e-5
    moved = (net(images + step * vectors[:, 0]) - net(images)).norm(dim=1) / step
    torch.testing.assert_close(moved, sigma[:, 0], rtol=1e-4, atol=0)


def test_too_many():
    with pytest.raises(ConfigError, match="1 to 2"):
        singular_vectors(lambda x: x[:, :2], torch.randn(2, 4), count=3)
