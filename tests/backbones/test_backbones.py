"""Backbones: parameter counts and names of torchvision's models, shapes, weights in and out, errors."""

import math

import pytest
import torch
from torch import nn

from probjepa.backbones import BACKBONES, build_backbone, embedding_dim_of
from probjepa.backbones.convnet import ConvNet
from probjepa.backbones.resnet import resnet18, resnet34, resnet50
from probjepa.errors import ConfigError, DataError

# name: (build, blocks a stage, convolutions a block, expansion, torchvision's parameters less its fc)
TORCHVISION = {
    "resnet18": (resnet18, (2, 2, 2, 2), 2, 1, 11_689_512 - 513_000),
    "resnet34": (resnet34, (3, 4, 6, 3), 2, 1, 21_797_672 - 513_000),
    "resnet50": (resnet50, (3, 4, 6, 3), 3, 4, 25_557_032 - 2_049_000),
}


def torchvision_names(depths, convolutions, expansion):
    """Parameter names in torchvision's order, written from the paper's structure."""
    norm = ("weight", "bias")
    names = ["conv1.weight", *(f"bn1.{part}" for part in norm)]
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            here = f"layer{stage}.{block}"
            for index in range(1, convolutions + 1):
                names += [f"{here}.conv{index}.weight", *(f"{here}.bn{index}.{part}" for part in norm)]
            if block == 0 and (stage > 1 or expansion > 1):
                names += [f"{here}.downsample.0.weight", *(f"{here}.downsample.1.{part}" for part in norm)]
    return names


@pytest.mark.parametrize("name", TORCHVISION)
def test_resnet_has_torchvisions_parameters(name):
    build, depths, convolutions, expansion, count = TORCHVISION[name]
    model = build(stem="imagenet")
    assert [key for key, _ in model.named_parameters()] == torchvision_names(depths, convolutions, expansion)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.embedding_dim == 512 * expansion


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_resnet_embeds_small_and_odd_sizes(name, stem):
    model = TORCHVISION[name][0](stem=stem, width=0.125).eval()
    for height, width in ((8, 8), (17, 9), (32, 32)):
        out = model(torch.randn(2, 3, height, width))
        assert out.shape == (2, model.embedding_dim)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize(("stem", "side"), [("cifar", 4), ("imagenet", 1)])
def test_stem_sets_the_resolution(stem, side):
    model = resnet18(stem=stem, width=0.125).eval()
    seen = {}
    model.layer4.register_forward_hook(lambda module, args, out: seen.update(features=out))
    out = model(torch.randn(1, 3, 32, 32))
    assert seen["features"].shape[2:] == (side, side)
    torch.testing.assert_close(out, seen["features"].flatten(2).mean(dim=2))


def test_stem_follows_the_image_size():
    assert build_backbone("resnet18", image_size=32, width=0.125).conv1.kernel_size == (3, 3)
    assert build_backbone("resnet18", image_size=224, width=0.125).conv1.kernel_size == (7, 7)
    assert build_backbone("resnet18", image_size=224, width=0.125, stem="cifar").conv1.kernel_size == (3, 3)


def test_width_rounds_to_multiples_of_8():
    model = resnet18(width=0.3)  # 19.2, 38.4, 76.8, 153.6
    widths = [model.get_submodule(f"layer{stage}")[0].conv1.out_channels for stage in range(1, 5)]
    assert widths == [16, 40, 80, 152]


def test_convolutions_start_from_kaiming_fan_out():
    torch.manual_seed(0)
    weight = resnet18().layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (weight.shape[0] * 9)), rel=0.01)
    assert resnet18().layer1[0].bn2.weight.eq(1).all()  # no zero-init of the residual branch


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_backbone_trains_and_says_its_dimension(name, channels):
    settings = {
        "convnet": {"widths": (8, 16)},
        "vit": {"patch_size": 4, "width": 16, "depth": 2, "heads": 2},
    }
    small = settings.get(name, {"width": 0.125})
    model = build_backbone(name, channels=channels, image_size=16, **small)
    out = model(torch.randn(4, channels, 16, 16))
    assert out.shape == (4, embedding_dim_of(model, channels, 16))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(DataError, match="channels"):
        model(torch.randn(2, 4 - channels, 16, 16))
    with pytest.raises(DataError, match="at least 8x8"):
        model(torch.randn(2, channels, 16, 7))
    with pytest.raises(DataError, match=r"\(N, C, H, W\)"):
        model(torch.randn(channels, 16, 16))


def test_convnet_shapes():
    model = ConvNet(widths=(4, 8, 16))
    assert [layer.stride for layer in model.stages if isinstance(layer, nn.Conv2d)] == [
        (1, 1),
        (2, 2),
        (2, 2),
    ]
    assert model(torch.randn(3, 1, 64, 64)).shape == (3, model.embedding_dim) == (3, 16)
    count = (9 * 4 + 8) + (9 * 4 * 8 + 16) + (9 * 8 * 16 + 32)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("resnet18", {"widht": 2}, "no option 'widht': did you mean 'width'"),
        ("convnet", {"stem": "cifar"}, "no option 'stem'"),
        ("resnet18", {"image_size": 7}, "at least 8"),
        ("resnet18", {"channels": 2}, "1 .* or 3"),
        ("convnet", {"channels": 4}, "1 .* or 3"),
        ("resnet18", {"stem": "mnist"}, "'cifar' or 'imagenet'"),
        ("resnet18", {"width": 0.0}, "factor above 0"),
        ("convnet", {"widths": ()}, "one positive width"),
        ("convnet", {"widths": (8, 0)}, "one positive width"),
    ],
)
def test_wrong_settings(name, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_backbone(name, **options)
    assert "\n" not in str(error.value)


def test_embedding_dim_by_dry_run_leaves_no_trace():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model[1].eval()  # a batch norm frozen by its user stays frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert embedding_dim_of(model, 3, 16) == 6
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 6, 3), r"a tensor \(2, 6, 14, 14\)"),
        (nn.LSTM(16, 4), "fails on images of shape 2x3x16x16"),
        (nn.Conv2d(1, 6, 3), "fails on images of shape 2x3x16x16"),
    ],
)
def test_embedding_dim_refuses_what_is_no_encoder(model, message):
    with pytest.raises(ConfigError, match=message) as error:
        embedding_dim_of(model, 3, 16)
    assert "\n" not in str(error.value)
    assert model.training
