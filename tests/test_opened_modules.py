"""A module of a user's own as an encoder: what it gives is looked at once, when it is opened."""

import pytest
import torch
from torch import nn

import probjepa as pj
from probjepa.cli import run
from probjepa.errors import ArtifactError, ConfigError


def net(*, running=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=running), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6),
    )  # fmt: skip


class Says(nn.Module):
    """Declares a width, and changes what the network gives."""

    def __init__(self, width, change):
        super().__init__()
        self.net, self.change = net(), change
        if width is not None:
            self.embedding_dim = width

    def forward(self, x):
        return self.change(self.net(x))


def failing(h):
    raise RuntimeError("no kernel for it\nmore lines")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Says(99, lambda h: h), r"\(1, 6\) for one image and \(2, 6\) for two .*embedding_dim, 99"),
        (Says(6, lambda h: h[:, None]), r"\(1, 1, 6\) for one image"),
        (Says(6, lambda h: h.squeeze()), r"\(6,\) for one image and \(2, 6\) for two"),
        (Says(6, lambda h: (h,)), "fails on its images"),
        (Says(6, failing), "fails on its images: no kernel for it$"),
        (Says(None, lambda h: h * 1j), "complex64.*real numbers"),
        (Says(None, lambda h: h[:, :0]), r"returned a tensor \(2, 0\).*one embedding an image"),
        (Says(None, lambda h: h - h.mean(0)), "depends on the others of its batch"),
        (net(running=False), "depends on the others of its batch.*track_running_stats=True"),
    ],
)
def test_what_a_module_gives_is_one_embedding_an_image(module, says):
    """A wrong width or a third dimension went through; an encoder of batches gave what the batch size said."""
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=says) as caught:
        pj.open_encoder(module, image_size=16)
    assert "\n" not in str(caught.value) and torch.equal(torch.get_rng_state(), state)


def test_an_encoder_is_on_the_device_of_its_weights():
    """A module on a GPU had its images prepared, and left, on the CPU."""
    encoder = pj.open_encoder(net(), image_size=16)
    encoder.encoder.to("meta")  # by its own name, after it was opened
    assert encoder.device.type == "meta"
    assert encoder(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).device.type == "meta"
    assert pj.SimSiam(net().to("meta"), image_size=16).device.type == "meta"
    with pytest.raises(ConfigError, match="meta"):
        pj.open_encoder(net().to("meta"), image_size=16)


def test_images_come_in_the_type_of_the_first_weights_that_are_floats():
    """Quantised layers keep their weights as bytes."""
    module = net().double()
    module.insert(0, nn.Identity())
    module[0].packed = nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)
    encoder = pj.open_encoder(module, image_size=16)
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert encoder.dtype == torch.float64
    torch.testing.assert_close(encoder.embed(pixels), module((pixels / 255).double()).float())


@pytest.mark.parametrize("source", [None, 3, b"hf:name", net().state_dict(), nn.Flatten, lambda x: x])
def test_what_is_no_name_is_one_line(source, tmp_path):
    for door in (pj.open_encoder, pj.load, pj.VJE, lambda it: pj.export(it, tmp_path / "x.pt2")):
        with pytest.raises(ConfigError, match="torch module") as caught:
            door(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match="torch module"):
        pj.open_encoder(source, image_size=16)


@pytest.mark.parametrize("name", ["a" * 300, f"{'a' * 300}/b", f"resnet18:{'a' * 300}", f"hf:{'a' * 300}"])
def test_a_name_that_is_too_long_for_a_file_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for door in (pj.open_encoder, pj.load):
        with pytest.raises((ArtifactError, ConfigError)) as caught:
            door(name)
        assert "\n" not in str(caught.value)
    with pytest.raises((ArtifactError, ConfigError)):
        pj.VJE(name)
    out = tmp_path / "e.parquet"
    assert run(["embed", name, "--data", "sklearn:digits", "--out", str(out)]) == 2 and not out.exists()
    assert "Traceback" not in capsys.readouterr().err
