"""Weights of torchvision, timm and lightly, against their own models: in an environment that has them."""

import warnings

import pytest
import torch

timm = pytest.importorskip("timm", reason="timm (extra 'timm', with torchvision) is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

from probjepa.backbones.foreign import foreign_encoder  # noqa: E402
from probjepa.errors import ProbjepaWarning  # noqa: E402

pytestmark = pytest.mark.timm


def trained_looking(model):
    """Statistics and scales away from where they start, so that what is left out shows."""
    torch.manual_seed(5)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_(0, 0.2)
        elif value.ndim == 3:
            value.normal_(0, 0.5)
    return model.eval()


def assert_equal(name, weights, expected, images, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)  # a classifier
        encoder, _ = foreign_encoder(name, weights, options, image_size=images.shape[-1])
    with torch.no_grad():
        found, expected = encoder.eval()(images), expected(images)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=1e-5 * max(scale, 1), rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_resnets(source, name):
    make = torchvision.models.get_model if source == "torchvision" else timm.create_model
    model = trained_looking(make(name))
    weights = dict(model.state_dict())
    model.fc = torch.nn.Identity()
    assert_equal(name, weights, model, torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "vit_small_patch14_reg4_dinov2", "deit_tiny_patch16_224"]
)
def test_transformers_of_timm(name):
    side = 56 if "14" in name else 64
    model = trained_looking(timm.create_model(name, img_size=side, depth=2))
    weights = dict(model.state_dict())
    model.reset_classifier(0)
    assert_equal("vit", weights, model, torch.randn(2, 3, side, side))


def test_positions_are_resized_as_timm_does_it():
    model = trained_looking(timm.create_model("vit_small_patch16_224", depth=1, dynamic_img_size=True))
    weights = dict(model.state_dict())
    model.reset_classifier(0)
    assert_equal("vit", weights, model, torch.randn(2, 3, 96, 96))


def test_a_transformer_of_torchvision():
    model = trained_looking(
        torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48
        )
    )
    weights = dict(model.state_dict())
    model.heads = torch.nn.Identity()
    assert_equal("vit", weights, model, torch.randn(2, 3, 32, 32), heads=4)


def test_checkpoints_of_lightly(tmp_path):
    lightly = pytest.importorskip("lightly.models", reason="lightly is not installed")
    from lightly.models.modules import MoCoProjectionHead
    from torch import nn

    images = torch.randn(2, 3, 64, 64)
    for name in ("resnet-18", "resnet-50"):
        model = trained_looking(lightly.ResNetGenerator(name))
        backbone = nn.Sequential(*list(model.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        module = nn.ModuleDict(
            {"backbone": backbone, "projection_head": MoCoProjectionHead(8, 8, 8)}
        )  # as its examples name them
        torch.save({"state_dict": module.state_dict(), "epoch": 1}, tmp_path / "last.ckpt")
        ours = name.replace("-", "")
        assert_equal(ours, tmp_path / "last.ckpt", trained_forward(model), images, stem="cifar")
    model = trained_looking(torchvision.models.resnet18())
    backbone = nn.Sequential(*list(model.children())[:-1])
    torch.save({"state_dict": nn.ModuleDict({"backbone": backbone}).state_dict()}, tmp_path / "last.ckpt")
    assert_equal("resnet18", tmp_path / "last.ckpt", lambda x: backbone(x).flatten(1), images)


def trained_forward(model):
    """Lightly's ResNet up to its pool, as its own forward goes."""

    def features(x):
        x = torch.relu(model.bn1(model.conv1(x)))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
        return x.mean((2, 3))

    return features
