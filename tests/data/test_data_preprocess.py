import json

import numpy as np
import pytest
import torch
from PIL import Image

from probjepa.data import Preprocess, channel_statistics
from probjepa.errors import ConfigError, DataError


def test_same_size_is_only_normalised():
    images = torch.randint(
        0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean, std = channel_statistics(images)
    out = Preprocess(16, 3, mean, std)(images)
    assert out.dtype == torch.float32
    assert torch.allclose(out.double().mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(
        out.double().std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5
    )
    exact = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(out.double(), exact, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 16), (40, 30, 16), (17, 50, 10), (8, 9, 8)])
def test_resize_agrees_with_pillow(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = Preprocess(size, 3, [0.0] * 3, [1 / 255] * 3)(torch.from_numpy(image).permute(2, 0, 1)[None])
    scale = size / min(height, width)
    h, w = round(height * scale), round(width * scale)
    small = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
    left, top = (w - size) // 2, (h - size) // 2
    expected = np.asarray(small.crop((left, top, left + size, top + size)), dtype=np.float32)
    # Pillow rounds to whole grey levels after each of its two passes
    assert np.abs(out[0].permute(1, 2, 0).numpy() - expected).max() <= 1.01


def test_floats_pass_as_prepared():
    prepare = Preprocess(8, 1, [0.3], [0.2])
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(prepare(images), images)
    with pytest.raises(DataError, match="prepared"):
        prepare(torch.randn(3, 1, 9, 9))
    images[1, 0, 2, 2] = torch.inf
    with pytest.raises(DataError, match="image 1 holds NaN or Inf"):
        prepare(images)


def test_config_round_trip():
    prepare = Preprocess(12, 3, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    again = Preprocess(**json.loads(json.dumps(prepare.config())))
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(prepare(images), again(images))
    assert not prepare.state_dict()


def test_errors():
    prepare = Preprocess(12, 3, [0.5] * 3, [0.5] * 3)
    with pytest.raises(DataError, match="trained on 3-channel images; these have 1"):
        prepare(torch.zeros(2, 1, 12, 12, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"the 3 channels of one image x, pass x\[None\]"):
        prepare(torch.zeros(3, 1, 12, 12, dtype=torch.uint8))
    for bad in (
        torch.zeros(2, 3, 7, 12, dtype=torch.uint8),
        torch.zeros(3, 12, 12, dtype=torch.uint8),
        torch.zeros(2, 3, 12, 12, dtype=torch.int64),
    ):
        with pytest.raises(DataError):
            prepare(bad)
    for arguments in (
        (4, 3, [0.5] * 3, [0.5] * 3),
        (8, 2, [0.5] * 2, [0.5] * 2),
        (8, 1, [0.5], [0.0]),
        (8, 3, [0.5], [1]),
    ):
        with pytest.raises(ConfigError):
            Preprocess(*arguments)


def test_channel_statistics_match_numpy():
    images = torch.randint(
        0, 200, (5000, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    images[:, 2] = 7
    mean, std = channel_statistics(images)
    exact = images.double().numpy() / 255
    assert mean == pytest.approx(exact.mean((0, 2, 3)), abs=1e-12)
    assert std[:2] == pytest.approx(exact.std((0, 2, 3))[:2], abs=1e-12)
    assert std[2] == pytest.approx(1 / 255)  # a constant channel can still be divided by
    with pytest.raises(DataError):
        channel_statistics(images.float())
