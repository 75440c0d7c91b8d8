"""Right singular vectors against torch's SVD of a Jacobian that is known."""

import pytest
import torch
from torch import nn

from probjepa.data import open_images
from probjepa.errors import ConfigError, DataError
from probjepa.jacobian import singular_vectors
from probjepa.jacobian.encoders import Encoder


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


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_all_of_them_put_the_jacobian_together_again(shape: tuple[int, int], inputs: int) -> None:
    a = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(inputs, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = (1 - torch.tanh(x @ a.T).square())[:, :, None] * a
    sigma, vectors = singular_vectors(lambda z: torch.tanh(z @ a.T), x)  # four by default
    assert (sigma.shape, vectors.shape) == ((inputs, 4), (inputs, 4, shape[1]))
    torch.testing.assert_close(sigma, torch.linalg.svdvals(jacobian)[:, :4])
    squared = vectors.mT @ (sigma.square()[:, :, None] * vectors)  # VΣ²Vᵀ = JᵀJ
    torch.testing.assert_close(squared, jacobian.mT @ jacobian)
    largest = vectors.gather(2, vectors.abs().argmax(2, keepdim=True))
    assert bool((largest > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_in_float64_and_images_are_prepared(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).to(dtype)
    encoder = Encoder(module, module, lambda pixels: pixels.to(dtype) / 255, "mine")
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    for given in (pixels, open_images(pixels.numpy())):
        sigma, vectors = singular_vectors(encoder, given, count=3)
        assert (sigma.dtype, vectors.dtype) == (torch.float64, torch.float64)
        assert vectors.shape == (2, 3, 1, 8, 8)
        expected = torch.linalg.svdvals(module[1].weight.detach().double())
        torch.testing.assert_close(sigma, expected.expand(2, 3))
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(("count", "width"), [(3, 4), (0, 4), (-1, 4), (2, 1)])
def test_a_count_that_there_is_not(count: int, width: int) -> None:
    limit = min(2, width)
    with pytest.raises(ConfigError, match=f"count is {count}: use 1 to {limit}"):
        singular_vectors(lambda x: torch.cat([x, x], 1)[:, :2], torch.randn(2, width), count=count)


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_all_are_taken(count: int) -> None:
    assert singular_vectors(lambda x: 3 * x[:, :2], torch.randn(2, 4), count=count)[0].tolist() == 2 * [
        count * [3.0]
    ]


@pytest.mark.parametrize("row", [0, 1])
def test_derivatives_that_are_not_finite(row: int) -> None:
    x = torch.ones(2, 3)
    x[row, 1] = 0
    with pytest.raises(DataError, match="derivatives of the encoder are not finite"):
        singular_vectors(torch.sqrt, x, count=1)


def test_batch_norm_in_training_mode_is_refused_and_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(ConfigError, match="training mode"):
        singular_vectors(model, torch.rand(4, 1, 6, 6), count=1)
    assert torch.equal(model[1].running_mean, torch.zeros(2))


def test_a_count_is_a_whole_number() -> None:
    with pytest.raises(ConfigError, match="the setting count takes a whole number"):
        singular_vectors(nn.Linear(4, 3), torch.randn(2, 4), 2.5)  # type: ignore[arg-type]
