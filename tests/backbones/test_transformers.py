"""Vision models of transformers: which part of one encodes images, and which of its tokens are patches."""

import pytest
import torch

import probjepa as pj
from probjepa.backbones.hub import TransformersEncoder
from probjepa.errors import ConfigError

SIDE, PATCH = 32, 8
PATCHES = (SIDE // PATCH) ** 2
VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.4,
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
HIERA = {
    "image_size": [SIDE, SIDE], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1,
    "masked_unit_size": [4, 4], "query_stride": [2, 2], "patch_size": [3, 3], "patch_stride": [2, 2],
    "patch_padding": [1, 1],
}  # fmt: skip
CVT = {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}
RADIO = {"num_cls_tokens": 2, "num_registers": 3, "max_img_size": SIDE, "summary_idxs": [0]}
# model → its settings, and how many tokens stand before the patches; None: there is no class token
MODELS = {
    "DINOv3ViT": ({**VIT, "num_register_tokens": 3}, 4),
    "DINOv3ConvNext": (STAGES, 1),
    "Sapiens2": ({**VIT, "num_register_tokens": 3}, 4),
    "Pixio": ({**VIT, "n_cls_tokens": 4}, 4),
    "Radio": ({**VIT, **RADIO}, 5),
    "Aimv2Vision": (VIT, None),
    "Hiera": (HIERA, None),
    "Cvt": (CVT, None),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_class_token_and_the_mean_of_patches_are_the_models_own(name):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    settings, prefix = MODELS[name]
    if not hasattr(transformers, f"{name}Model"):
        pytest.skip(f"this version of transformers has no {name}")
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings)).eval()
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        found = model(pixels / 255)
    hidden = found.last_hidden_state
    hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
    pooled = {"cls": hidden[:, 0], "mean": hidden[:, prefix or 0 :].mean(1)}
    if name == "DINOv3ViT":
        torch.testing.assert_close(pooled["cls"], found.pooler_output)
        assert hidden.shape[1] == prefix + PATCHES
    encoder = pj.open_encoder(model, image_size=SIDE)
    expected = pooled["mean" if prefix is None else "cls"]
    torch.testing.assert_close(encoder.embed(pixels), expected)
    for pooling, expected in pooled.items():
        if pooling == "cls" and prefix is None:
            with pytest.raises(ConfigError, match="no class token: use pooling='mean'"):
                TransformersEncoder(model, pooling)
        else:
            with torch.no_grad():
                torch.testing.assert_close(TransformersEncoder(model, pooling)(pixels / 255), expected)
