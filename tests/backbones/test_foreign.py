"""Weights of others: recognised by their names under any prefix, and what does not fit is listed."""

import argparse
import pickle
import re
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import probjepa as pj
from probjepa.backbones import BACKBONES, build_backbone
from probjepa.backbones.foreign import foreign_encoder, read_tensors
from probjepa.errors import ArtifactError, ConfigError, ProbjepaWarning

SMALL = {"width": 0.125}
FC = {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}


def trained_looking(model):
    """Every weight and statistic away from where it starts."""
    generator = torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.01)
    return model.eval()


@pytest.fixture(scope="module")
def resnet():
    return trained_looking(build_backbone("resnet18", image_size=224, **SMALL))


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def sequence(state, names):
    """The names of ``nn.Sequential(*resnet.children())``."""
    parts = names.split()
    return {
        re.sub(r"^\w+", lambda name: str(parts.index(name[0])), name): value for name, value in state.items()
    }


def shortcuts(state):
    return {name.replace("downsample", "shortcut"): value for name, value in state.items()}


LIGHTLY = "conv1 bn1 layer1 layer2 layer3 layer4"
CHILDREN = "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4"
OTHER = {"momentum": torch.ones(3)}
# what holds a ResNet's state dict → a file's content, and what is left out
RESNETS = {
    "torchvision": (lambda s: s | FC, "fc.* (2)"),
    "before counters": (lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}, None),
    "moco": (
        lambda s: {
            "epoch": 200,
            "state_dict": under("module.encoder_k.", trained(s))
            | under("module.encoder_q.", s | {"fc.0.weight": FC["fc.weight"]})
            | {"module.queue": torch.zeros(4, 4)},
        },
        "state_dict.module.encoder_q.fc.* (1), state_dict.module.encoder_k.* (120), state_dict.module.queue (1)",
    ),
    "moco v3": (
        lambda s: {"state_dict": under("module.momentum_encoder.", trained(s)) | under("module.base_encoder.", s)},
        "momentum_encoder.* (120)",
    ),
    "simsiam": (
        lambda s: {"state_dict": under("module.encoder.", s) | {"module.predictor.0.weight": torch.ones(2, 2)}},
        "predictor.* (1)",
    ),
    "barlow": (lambda s: {"model": under("module.backbone.", s) | {"module.projector.0.weight": torch.ones(2)}}, "projector"),
    "vicreg": (lambda s: s, None),
    "swav": (lambda s: under("module.", s | {"prototypes.weight": torch.ones(2, 2)}), "prototypes"),
    "solo-learn": (
        lambda s: {"state_dict": under("momentum_backbone.", trained(s)) | under("backbone.", s) | under("classifier.", OTHER)},
        "state_dict.momentum_backbone.* (120), state_dict.classifier.* (1)",
    ),
    "lightly": (
        lambda s: {"state_dict": under("backbone.", sequence(s, CHILDREN)) | under("projection_head.", OTHER)},
        "projection_head",
    ),
    "lightly's own": (lambda s: {"state_dict": under("backbone.", sequence(shortcuts(s), LIGHTLY))}, None),
    "dino": (
        lambda s: {
            "student": under("module.backbone.", trained(s)),
            "teacher": under("backbone.", s) | under("head.", OTHER),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
            "args": argparse.Namespace(arch="resnet50"),
        },
        "student.* (120), teacher.head.* (1), optimizer.* (1)",
    ),
    "timm's average": (lambda s: {"state_dict": trained(s), "state_dict_ema": s}, "state_dict.* (120)"),
}  # fmt: skip


def trained(state):
    return {name: value + 1 for name, value in state.items()}


@pytest.mark.parametrize("kind", RESNETS)
def test_a_resnet_is_found_in_whatever_holds_it(resnet, tmp_path, kind):
    make, left = RESNETS[kind]
    torch.save(make(dict(resnet.state_dict())), tmp_path / "weights.pth")
    images = torch.rand(2, 3, 64, 64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, options = foreign_encoder("resnet18", tmp_path / "weights.pth", SMALL)
    torch.testing.assert_close(found.eval()(images), resnet(images))
    assert options == SMALL | {"stem": "imagenet", "image_size": 224}
    messages = [str(warning.message) for warning in said]
    assert len(messages) == (left is not None)
    assert left is None or left in messages[0]
    assert all("\n" not in text and len(text) < 600 for text in messages)


class Cifar(nn.Module):
    """He et al.'s ResNet-20 for CIFAR with shortcuts of option A, from its description."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for stage, planes in enumerate((16, 32, 64), start=1):
            blocks = []
            for _ in range(3):
                block = nn.Module()
                stride = 2 if inputs != planes else 1
                block.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
                block.bn1, block.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
                block.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
                blocks.append(block)
                inputs = planes
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def features(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for block in [*self.layer1, *self.layer2, *self.layer3]:
            out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
            if out.shape != x.shape:
                x, zeros = x[:, :, ::2, ::2], torch.zeros(len(x), x.shape[1] // 2, *out.shape[2:])
                x = torch.cat([zeros, x, zeros], 1)
            x = F.relu(out + x)
        return F.avg_pool2d(x, 8).flatten(1)


def test_cifars_resnet20_is_the_papers(tmp_path):
    torch.manual_seed(0)
    source = Cifar()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    source.eval()
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "resnet20.safetensors")
    with pytest.warns(ProbjepaWarning, match=r"left out: linear.\* \(2\)"):
        encoder = pj.open_encoder("resnet20", weights=tmp_path / "resnet20.safetensors")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    prepared = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed(pixels), source.features(prepared), atol=1e-5, rtol=1e-5)
    (tmp_path / "resnet20.safetensors").unlink()
    encoder.save_pretrained(tmp_path / "saved")
    assert torch.equal(pj.open_encoder(tmp_path / "saved").embed(pixels), encoder.embed(pixels))
    random = encoder.reinitialised()
    assert not torch.equal(random.embed(pixels), encoder.embed(pixels))
    assert torch.equal(random.embed(pixels), encoder.reinitialised().embed(pixels))


def test_every_method_takes_weights_and_needs_the_file_once(resnet, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(resnet.state_dict(), file)
    method = pj.VJE("resnet18", weights=file, backbone_options=SMALL, mean=[0.5] * 3, std=[0.2] * 3).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(method(images), resnet(images))
    assert method.settings["backbone_options"] == SMALL | {"stem": "imagenet"}
    file.unlink()
    method.save_pretrained(tmp_path / "saved")
    again = pj.load(tmp_path / "saved")
    assert torch.equal(again(images), method(images)) and again.settings == method.settings
    assert not torch.equal(method.reinitialised()(images), method(images))


def test_what_does_not_fit_is_listed_in_one_message(resnet, tmp_path):
    state = dict(resnet.state_dict())
    deeper = build_backbone("resnet34", image_size=224, **SMALL).state_dict()
    cases = [
        ("resnet18", deeper, SMALL, r"96 tensors unknown: layer1.2.\* \(12\), .* and \d+ more"),
        ("resnet34", state, SMALL, r"80 tensors missing: layer1.2.\* \(10\)"),
        ("resnet50", state, SMALL, r"missing: layer1.0.\* .* of another shape: "),
        ("resnet18", state, {}, r"of another shape: conv1.weight \(8, 3, 7, 7\), not \(64, 3, 7, 7\)"),
        ("resnet18", state, SMALL | {"stem": "cifar"}, r"1 of another shape: conv1.weight \(8, 3, 7, 7\), not \(8, 3, 3, 3\)"),
        ("resnet18", {"blocks.0.weight": torch.ones(1)}, SMALL, r"none of a 'resnet18'.* blocks.0.\* \(1\)"),
    ]  # fmt: skip
    for name, weights, options, message in cases:
        torch.save(weights, tmp_path / "weights.pt")
        with pytest.raises(ConfigError, match=message) as error:
            pj.VJE(name, weights=tmp_path / "weights.pt", backbone_options=options)
        text = str(error.value)
        assert "\n" not in text and len(text) < 900 and "weights.pt" in text
    with pytest.raises(ConfigError, match="not \\(8, 1, 7, 7\\)"):
        foreign_encoder("resnet18", state, SMALL, channels=1)


class Headed(nn.Module):
    """A backbone of the user's own, some of whose layers are called like heads."""

    def __init__(self, channels=3, image_size=32):
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3)
        self.mlp = nn.Linear(4, 5)
        self.embedding_dim = 5

    def forward(self, images):
        return self.mlp(self.stem(images).mean((2, 3)))


def test_a_backbone_s_own_layers_may_be_called_like_heads(request):
    BACKBONES.register("headed", Headed)
    request.addfinalizer(lambda: BACKBONES.remove("headed"))
    own = trained_looking(Headed())
    with pytest.warns(ProbjepaWarning, match=r"left out: fc\.\* \(2\)"):
        encoder, _ = foreign_encoder("headed", own.state_dict() | FC, {})
    for name, value in own.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)


class Run:
    """Stands for whatever a pickle would run."""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: torch.save({"state_dict": {}, "args": Run()}, file), "unpickled"),
        (lambda file: torch.save({"epoch": 3}, file), "no tensors by name"),
        (lambda file: file.write_bytes(b"PK\x03\x04 and no more"), "cannot read the weights"),
        (lambda file: file.write_bytes(b""), "cannot read the weights"),
        (lambda file: file.mkdir(), "cannot read the weights"),
        (
            lambda file: file.write_bytes(pickle.dumps({"weight": [1.0]}, 4)),
            "damaged, or neither what torch.save",
        ),
        (lambda file: save_file({"a": torch.ones(2)}, file), "damaged, or neither.*end in .safetensors"),
        (
            lambda file: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(file),
            "TorchScript.*state dict",
        ),
        (lambda file: None, "cannot read the weights"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, write, message):
    write(tmp_path / "x.pth")
    with pytest.raises(ArtifactError, match=message) as error:
        read_tensors(tmp_path / "x.pth")
    assert "\n" not in str(error.value) and "x.pth" in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's advice is to unpickle it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: (value * 50).to(torch.int8), r"100 tensors that are no plain floats: conv1\.\* \(1\)"),
        (lambda value: value.to(torch.complex64), "no plain floats"),
        (lambda value: value.to_sparse(), "no plain floats"),
        (lambda value: value.to("meta"), "no plain floats"),
        (lambda value: value.numpy(), "hold no tensors by name: give a state dict"),
        (lambda value: value.half(), None),
    ],
)
def test_weights_are_float_numbers(resnet, change, message):
    """Whole numbers of a quantised network were taken for its weights."""
    state = {k: change(v) if v.is_floating_point() else v for k, v in resnet.state_dict().items()}
    if message is None:
        assert foreign_encoder("resnet18", state, SMALL)
        return
    if "tensors by name" in message:
        state = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
    with pytest.raises((ConfigError, ArtifactError), match=message) as error:
        foreign_encoder("resnet18", state, SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [nn.Module, list])
def test_what_is_no_weights_is_one_line(resnet, kind):
    """A module was printed, layer by layer."""
    given = resnet if kind is nn.Module else [resnet.state_dict()]
    for call in (pj.VJE, pj.open_encoder):
        with pytest.raises(
            ConfigError, match=r"weights is a (ResNet|list): give a file, or a state dict"
        ) as error:
            call("resnet18", weights=given)
        assert "\n" not in str(error.value)


def test_statistics_beside_weights_go_together(resnet):
    """One of them alone went with the other of ImageNet's, as nowhere else."""
    more = {"weights": resnet.state_dict(), "backbone_options": SMALL}
    for one in ({"mean": [0.5] * 3}, {"std": [0.5] * 3}):
        with pytest.raises(ConfigError, match="mean and std go together"):
            pj.open_encoder("resnet18", **more, **one)
    with pytest.raises(ConfigError, match="0 means and 0 stds for 3 channels"):
        pj.open_encoder("resnet18", **more, mean=[], std=[])


def test_weights_go_with_a_registered_backbone(tmp_path):
    with pytest.raises(ConfigError, match="registered backbone"):
        pj.VJE(nn.Flatten(), image_size=8, weights=tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="registered backbone"):
        pj.open_encoder(f"hf:{tmp_path}", weights=tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        pj.open_encoder("resnet81", weights={"x": torch.ones(1)})
