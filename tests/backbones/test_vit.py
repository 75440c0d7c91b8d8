"""The vision transformer against one written in plain tensor operations."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import probjepa as pj
from probjepa.backbones import build_backbone
from probjepa.backbones.transformer import Transformer, sincos_positions
from probjepa.backbones.vit import ViT
from probjepa.errors import ConfigError, DataError

SMALL = {"channels": 3, "image_size": 16, "patch_size": 4, "width": 32, "depth": 3, "heads": 4}


def small(**settings):
    torch.manual_seed(0)
    model = ViT(**{**SMALL, **settings}).double()
    with torch.no_grad():  # away from the small start, where attention is near uniform
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if "qkv" in name else 0.1))
    return model


def reference(model, images, allowed=None):
    """Tokens (N, T, D) from the parameters, with softmax written out; ``allowed`` (N, T): who is attended to."""
    p, size = dict(model.named_parameters()), model.patch_size
    patches = F.unfold(images, size, stride=size).transpose(1, 2)  # channel-major patches, row by row
    x = patches @ p["patch_embedding.weight"].T + p["patch_embedding.bias"] + model.positions
    width = x.shape[-1]
    for layer, block in enumerate(model.transformer.blocks):
        q = {
            k.removeprefix(f"transformer.blocks.{layer}."): v for k, v in p.items() if f"blocks.{layer}." in k
        }

        def norm(x, name, q=q):
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
            return x * q[f"{name}.weight"] + q[f"{name}.bias"]

        qkv = norm(x, "attention_norm") @ q["qkv.weight"].T + q["qkv.bias"]
        heads = []
        for head in range(block.heads):
            each = width // block.heads
            query, key, value = (
                qkv[..., part * width + head * each : part * width + (head + 1) * each] for part in range(3)
            )
            logits = query @ key.transpose(1, 2) / math.sqrt(each)
            if allowed is not None:
                logits = logits.masked_fill(~allowed[:, None, :], -torch.inf)
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
            heads.append(weights @ value)
        x = x + torch.cat(heads, -1) @ q["attention_out.weight"].T + q["attention_out.bias"]
        hidden = norm(x, "mlp_norm") @ q["mlp_in.weight"].T + q["mlp_in.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + hidden @ q["mlp_out.weight"].T + q["mlp_out.bias"]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    return x * p["transformer.norm.weight"] + p["transformer.norm.bias"]


def test_tokens_equal_the_plain_reference():
    model, images = small(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = reference(model, images)
    torch.testing.assert_close(model.tokens(images), expected)
    torch.testing.assert_close(model(images), expected.mean(1))
    assert model(images).shape == (2, model.embedding_dim)


def test_a_subset_is_attention_restricted_to_it():
    model, images = small(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    keep = torch.stack([torch.randperm(16)[:6] for _ in range(3)])
    allowed = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, keep, True)
    expected = reference(model, images, allowed).gather(1, keep.unsqueeze(-1).expand(-1, -1, 32))
    torch.testing.assert_close(model.tokens(images, keep), expected)
    shared = model.tokens(images, keep[1])  # the same patches for all images
    torch.testing.assert_close(shared[1], expected[1])
    torch.testing.assert_close(shared, model.tokens(images, keep[1].expand(3, -1)))


def test_the_order_of_patches_does_not_matter():
    model, images = small(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    order = torch.randperm(16)
    torch.testing.assert_close(model.tokens(images, order), model.tokens(images)[:, order])


def test_only_kept_pixels_are_seen():
    model, images = small(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    changed = images.clone()
    changed[..., 4:8, 8:12] += 1  # row 1, column 2: patch 6
    others = torch.tensor([p for p in range(16) if p != 6])
    assert torch.equal(model.tokens(images, others), model.tokens(changed, others))
    assert not torch.allclose(model.tokens(images)[:, others], model.tokens(changed)[:, others])


def test_positions_are_the_formula():
    width, rows, columns = 16, 3, 5
    table = sincos_positions(rows, columns, width)
    for patch in range(rows * columns):
        y, x = divmod(patch, columns)
        for k in range(width // 4):
            omega = 1 / 10_000 ** (4 * k / width)
            expected = [math.sin(y * omega), math.cos(y * omega), math.sin(x * omega), math.cos(x * omega)]
            assert table[patch, k :: width // 4].tolist() == pytest.approx(expected, abs=1e-6)


def test_start():
    torch.manual_seed(0)
    model = Transformer(256, 6, 8)
    for layer, block in enumerate(model.blocks, start=1):
        for name in ("qkv", "mlp_in", "attention_out", "mlp_out"):
            linear = block.get_submodule(name)
            std = 0.02 / math.sqrt(2 * layer) if name.endswith("_out") else 0.02
            # the standard error of a standard deviation is σ/√(2n)
            error = std / math.sqrt(2 * linear.weight.numel())
            assert abs(linear.weight.std().item() - std) < 5 * error
            assert linear.bias.eq(0).all()
    vit = ViT(image_size=16)
    assert vit.patch_embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_default_is_the_papers_size():
    model = ViT()
    d, patch = 384, 8 * 8 * 3
    block = (d * 3 * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 4 * d
    assert sum(p.numel() for p in model.parameters()) == patch * d + d + 10 * block + 2 * d
    assert model.tokens(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 384)


def test_other_sizes_at_run_time():
    model = small()
    tokens = model.tokens(torch.randn(2, 3, 12, 20, dtype=torch.float64))
    assert tokens.shape == (2, 15, 32)
    wide = small(image_size=24)
    images = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    wide.load_state_dict(model.state_dict())  # positions are not in it
    torch.testing.assert_close(model.tokens(images), wide.tokens(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 20, "patch_size": 8}, "20 is not divisible by patch_size 8"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"width": 30, "heads": 3}, "divisible by 4"),
        ({"heads": 5}, "32 is not divisible by 5 heads"),
        ({"depth": 0}, "depth must be a whole number"),
        ({"mlp_ratio": -1.0}, "mlp_ratio"),
        ({"channels": 2}, "1 .* or 3"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_backbone("vit", **{**SMALL, **settings})
    assert "\n" not in str(error.value)


def test_images_that_do_not_divide():
    with pytest.raises(DataError, match="18x16 pixels: resize them to multiples of its patch, 4"):
        small()(torch.randn(1, 3, 18, 16))


def test_other_methods_and_jepa_score_take_it():
    torch.manual_seed(0)
    options = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    model = pj.VJE("vit", channels=1, image_size=16, backbone_options=options)
    terms = model.loss([torch.randn(4, 1, 16, 16) for _ in range(2)])
    terms["loss"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert isinstance(model.encoder, nn.Module) and model.embedding_dim == 16
    scores = pj.jepa_score(model, torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8))
    assert torch.isfinite(scores).all()


_HEADS = {pj.heads.RealNVP: "couplings", pj.heads.FlowMatching: "blocks", pj.heads.Diffusion: "blocks"}


@pytest.mark.parametrize(("many", "of_heads"), [(1001, "at most 1000"), (2**70, "up to 2⁶³ − 1")])
def test_a_number_of_blocks_that_would_be_built_for_ever_is_refused(many, of_heads):
    with pytest.raises(ConfigError, match="at most 1000"):
        Transformer(8, many, 2)
    for head, name in _HEADS.items():
        with pytest.raises(ConfigError, match=of_heads):
            head(4, 4, **{name: many})
