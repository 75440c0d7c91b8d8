"""Small models to save: what the tests of files and of loading share."""

import pytest
import torch
from torch import nn

import probjepa as pj
from probjepa.errors import ArtifactError

FILES = {"README.md", "config.json", "model.safetensors"}


class Own(nn.Module):
    def __init__(self, dim=12):
        super().__init__()
        self.conv = nn.Conv2d(1, dim, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.second(self.first(images.flatten(1)).relu())


def small(seed=0, backbone="convnet", **settings):
    torch.manual_seed(seed)
    if backbone == "convnet":
        settings["backbone_options"] = {"widths": (8, 32)}
    model = pj.VJE(backbone, channels=1, image_size=8, **settings)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand(buffer.shape))
    return model


def pixels(n=5):
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def same(a, b):
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def refused(source, match, **options):
    with pytest.raises(ArtifactError, match=match) as error:
        pj.load(source, **options)
    assert "\n" not in str(error.value)
