"""Vision transformers of others: recognised by their names, and their outputs are the source's."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import probjepa as pj
from probjepa.backbones import build_backbone
from probjepa.backbones.foreign import foreign_encoder
from probjepa.errors import ConfigError, ProbjepaWarning

WIDTH, HEADS, DEPTH, PATCH, GRID = 16, 2, 2, 4, 4
ASKED = {"heads": HEADS}


def random(*shape, seed=[0]):  # noqa: B006
    seed[0] += 1
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed[0])) * 0.3


def state_dict(tokens=1, registers=0, scales=False, width=WIDTH, depth=DEPTH, grid=GRID):
    """The tensors of a pre-norm vision transformer by the names of DINO, I-JEPA, MAE and timm."""
    state = {
        "pos_embed": random(1, grid**2 + tokens, width),
        "patch_embed.proj.weight": random(width, 3, PATCH, PATCH), "patch_embed.proj.bias": random(width),
        "norm.weight": random(width), "norm.bias": random(width),
    }  # fmt: skip
    if tokens:
        state["cls_token"] = random(1, 1, width)
    if registers:
        state["register_tokens"] = random(1, registers, width)
    for block in range(depth):
        shapes = {
            "norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "norm2.weight": (width,), "norm2.bias": (width,), "mlp.fc1.weight": (3 * width, width),
            "mlp.fc1.bias": (3 * width,), "mlp.fc2.weight": (width, 3 * width), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        shapes |= {"ls1.gamma": (width,), "ls2.gamma": (width,)} if scales else {}
        state |= {f"blocks.{block}.{name}": random(*shape) for name, shape in shapes.items()}
    return state


def run(state, images):
    """Tokens (N, T, D) that such a state makes of images, written from the papers."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    if "cls_token" in state:
        x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["pos_embed"]
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    width = x.shape[-1]
    for block in range(sum("norm1.weight" in name for name in state)):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in state.items()}
        y = F.layer_norm(x, (width,), own["norm1.weight"], own["norm1.bias"], 1e-6)
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in F.linear(y, own["attn.qkv.weight"], own["attn.qkv.bias"]).chunk(3, -1)
        )
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        y = F.linear(mixed.transpose(1, 2).flatten(2), own["attn.proj.weight"], own["attn.proj.bias"])
        x = x + y * own.get("ls1.gamma", 1)
        y = F.layer_norm(x, (width,), own["norm2.weight"], own["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
        x = x + F.linear(y, own["mlp.fc2.weight"], own["mlp.fc2.bias"]) * own.get("ls2.gamma", 1)
    return F.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], 1e-6)


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


HEAD = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2)}
# what holds it → how its state looks, a file's content, which tokens it is pooled from, what is left out
KINDS = {
    "dino": ({}, lambda s: s, slice(0, 1), None),
    "dino, whole": (
        {},
        lambda s: {
            "student": under("module.backbone.", state_dict()),
            "teacher": under("backbone.", s) | HEAD,
            "epoch": 3,
        },
        slice(0, 1),
        "student.* (30), teacher.head.* (2)",
    ),
    "i-jepa": (
        {"tokens": 0},
        lambda s: {
            "encoder": under("module.", state_dict(tokens=0)),
            "target_encoder": under("module.", s),
            "predictor": {"module.predictor_blocks.0.norm1.weight": torch.ones(2)},
            "opt": {"state": {0: {"exp_avg": torch.ones(2)}}},
        },
        slice(0, None),
        "encoder.* (29), predictor.* (1), opt.* (1)",
    ),
    "mae": (
        {},
        lambda s: {"model": s | {"mask_token": torch.ones(1, 1, 4), "decoder_blocks.0.norm1.weight": torch.ones(4)}},
        slice(0, 1),
        "model.mask_token (1), model.decoder_blocks.* (1)",
    ),
    "timm": ({}, lambda s: s | {"head.weight": torch.ones(10, 16), "head.bias": torch.ones(10)}, slice(0, 1), "head.* (2)"),
    "dinov2": (
        {"registers": 3, "scales": True},
        lambda s: s | {"mask_token": torch.ones(1, 16)},
        slice(0, 1),
        "mask_token (1)",
    ),
    "solo-learn": ({}, lambda s: {"state_dict": under("backbone.", s)}, slice(0, 1), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_is_found_and_its_outputs_are_the_sources(tmp_path, kind):
    options, wrap, pooled, left = KINDS[kind]
    state = state_dict(**options)
    torch.save(wrap(dict(state)), tmp_path / "weights.pth")
    images = torch.randn(2, 3, PATCH * GRID, PATCH * GRID)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encoder, found = foreign_encoder("vit", tmp_path / "weights.pth", ASKED)
    expected = run(state, images)
    patches = len(expected[0]) - GRID**2
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), expected[:, pooled].mean(1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder.tokens(images), expected[:, patches:], atol=1e-5, rtol=1e-5)
    assert {key: found[key] for key in ("image_size", "patch_size", "width", "depth")} == {
        "image_size": 16, "patch_size": 4, "width": 16, "depth": 2,
    }  # fmt: skip
    messages = [str(warning.message) for warning in said]
    assert len(messages) == (left is not None) and all(f"left out: {left}" in text for text in messages), (
        messages
    )


def test_timms_registers_have_no_position(tmp_path):
    state = state_dict(registers=2)
    theirs = dict(state)
    theirs["reg_token"] = theirs.pop("register_tokens")
    cls, theirs["pos_embed"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    theirs["cls_token"] = state["cls_token"] + cls
    images = torch.randn(2, 3, 16, 16)
    encoder, _ = foreign_encoder("vit", theirs, ASKED)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), run(state, images)[:, 0], atol=1e-5, rtol=1e-5)


def hf(name, tmp_path, **more):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=16,
        patch_size=4, layer_norm_eps=1e-6, initializer_range=0.4, **more,
    )  # fmt: skip
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}Model")(config).eval()
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("name", ["IJepa", "ViT"])
def test_those_of_transformers(tmp_path, name):
    model = hf(name, tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        hidden = model(images).last_hidden_state
    expected = hidden.mean(1) if name == "IJepa" else hidden[:, 0]
    for weights in (tmp_path / "model.safetensors", model.state_dict()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbjepaWarning)  # a pooler
            encoder, _ = foreign_encoder("vit", weights, ASKED)
        with torch.no_grad():
            torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_positions_are_resized_and_said(tmp_path):
    state = state_dict(tokens=0)
    # what changes linearly over the grid still does
    axis = torch.arange(GRID) - (GRID - 1) / 2
    state["pos_embed"] = (axis[:, None] + 2 * axis).reshape(1, -1, 1).expand(1, -1, WIDTH).contiguous()
    with pytest.warns(ProbjepaWarning, match="positions resized from 4x4 to 8x8 patches"):
        encoder, options = foreign_encoder("vit", state, ASKED, image_size=32)
    assert options["image_size"] == 32
    finer = (torch.arange(8) - 3.5) / 2
    expected = (finer[:, None] + 2 * finer)[3:5, 3:5]
    found = encoder.positions.detach()[:, 0].view(8, 8)[3:5, 3:5]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert encoder(torch.randn(1, 3, 24, 40)).shape == (1, WIDTH)


def test_every_method_takes_them_and_saves_them(tmp_path):
    state = state_dict(tokens=0)
    model = pj.IJEPA("vit", weights=state, image_size=16, backbone_options=ASKED, predictor_width=16)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), run(state, images).mean(1), atol=1e-5, rtol=1e-5)
    assert model.train().loss([images])["loss"].isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(pj.load(tmp_path)(images), model.eval()(images))
    opened = pj.open_encoder("vit", weights=state_dict(), pooling="mean", backbone_options=ASKED)
    assert opened.encoder.pooling == "mean" and opened.preprocess.size == 16
    opened.save_pretrained(tmp_path / "opened")
    again = pj.open_encoder(tmp_path / "opened")
    assert torch.equal(again(images), opened(images)) and again.settings == opened.settings


def test_our_own_weights_are_taken_too(tmp_path):
    method = pj.IJEPA(image_size=16, backbone_options={"patch_size": 4, "width": 16, "depth": 1, "heads": 2})
    method.save_pretrained(tmp_path)
    with pytest.warns(ProbjepaWarning, match="the encoder is "):
        encoder, _ = foreign_encoder("vit", tmp_path / "model.safetensors", ASKED | {"positions": "sincos"})
    images = torch.randn(2, 3, 16, 16)
    assert any(
        torch.equal(encoder.eval()(images), part.eval()(images))
        for part in (method.encoder, method.teacher.module)
    )


def test_the_heads_of_our_own_weights_are_said_to_be_taken_from_published_ones():
    options = {"patch_size": 4, "width": 192, "depth": 1, "heads": 8, "positions": "learned"}
    state = build_backbone("vit", image_size=16, **options).state_dict()
    with pytest.warns(
        ProbjepaWarning, match=r"3 attention heads, as published .* for others give backbone_op"
    ):
        _, found = foreign_encoder("vit", state, {})
    assert found["heads"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = foreign_encoder("vit", state, {"heads": 8})
    assert found["heads"] == 8


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s, {}, "how many attention heads"),
        (lambda s: s, ASKED | {"depth": 3}, r"12 tensors missing: transformer.blocks.2.\* \(12\)"),
        (lambda s: s, ASKED | {"width": 32}, r"of another shape: positions \(16, 16\), not \(16, 32\)"),
        (lambda s: s | {"dist_token": s["cls_token"]}, ASKED, r"1 tensors unknown: dist_token \(1\)"),
        (lambda s: {k: v for k, v in s.items() if k != "pos_embed"}, ASKED, "1 tensors missing: positions"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(4)}, ASKED, "1 tensors unknown: transformer.blocks.0"),
        (lambda s: s | {"pos_embed": s["pos_embed"][:, :14]}, ASKED, r"of another shape: positions"),
        (lambda s: {"layer1.0.conv1.weight": torch.ones(1)}, ASKED, "none of a 'vit'"),
        (lambda s: s, ASKED | {"patch_size": 8}, "of another shape: patch_embedding.weight"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_message(change, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        foreign_encoder("vit", change(state_dict()), options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_a_class_token_and_learned_positions_train():
    model = build_backbone(
        "vit", image_size=16, patch_size=4, width=16, depth=1, heads=2, positions="learned", prefix_tokens=2
    )
    images = torch.randn(3, 3, 16, 16)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert isinstance(model.positions, nn.Parameter)
    assert model.tokens(images, torch.tensor([1, 5])).shape == (3, 2, 16)
    torch.testing.assert_close(model(images), model._encode(images)[:, 0])
    for wrong in ({"pooling": "cls"}, {"positions": "rotary"}, {"prefix_tokens": -1}, {"pooling": "max"}):
        with pytest.raises(ConfigError, match="ViT: "):
            build_backbone("vit", image_size=16, patch_size=4, width=16, heads=2, **wrong)
