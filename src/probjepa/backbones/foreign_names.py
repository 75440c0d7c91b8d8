"""How others name the tensors of ResNets and vision transformers, and what makes ours of them.

Of torchvision, timm, lightly, He et al.'s CIFAR models; of DINO, I-JEPA, MAE, DINOv2 and transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from probjepa.backbones.vit import resized_positions
from probjepa.errors import ConfigError

State = dict[str, Tensor]
Rename = Callable[[str], str]
# a state of ours, the options and the size that it was trained with, and what was done to fit it
Fitted = tuple[State, dict[str, Any], str]


def _resnet(children: str = "") -> Rename:
    """What makes ours of a ResNet's names, also those of an ``nn.Sequential`` of its children."""
    parts = children.split()

    def rename(name: str) -> str:
        name = re.sub(r"^\d+", lambda number: parts[int(number[0])], name)
        return name.replace(".shortcut.", ".downsample.")

    return rename


# a name that only an encoder of such a kind has → what makes ours of its names
RESNETS: dict[str, Rename] = {
    "layer1.0.conv1.weight": _resnet(),
    "2.0.conv1.weight": _resnet("conv1 bn1 layer1 layer2 layer3 layer4"),
    "4.0.conv1.weight": _resnet("conv1 bn1 relu maxpool layer1 layer2 layer3 layer4"),
}


def fit_resnet(state: State, given: Mapping[str, Any]) -> Fitted:
    """A ResNet's weights are taken as they are; the stem says the size of the images."""
    large = "conv1.weight" in state and state["conv1.weight"].shape[-1] == 7
    said = {"stem": "imagenet", "image_size": 224} if large else {"stem": "cifar", "image_size": 32}
    return state, said | dict(given), ""


_VIT = {
    r"^(patch_embed\.proj|embeddings\.patch_embeddings\.projection|conv_proj)\.": "patch_embedding.",
    r"^(pos_embed|embeddings\.position_embeddings|encoder\.pos_embedding)$": "positions",
    r"^(embeddings\.)?(cls_token|class_token)$": "class_token",
    r"^(embeddings\.)?(reg_token|register_tokens)$": "registers",
    r"^embeddings\.mask_token$": "mask_token",
    r"^(norm|layernorm|encoder\.ln)\.": "transformer.norm.",
    r"^(blocks|layers|encoder\.layer|encoder\.layers)\.(?:encoder_layer_)?(\d+)\.": r"transformer.blocks.\2.",
    r"\.(norm1|ln_1|layernorm_before)\.": ".attention_norm.",
    r"\.(norm2|ln_2|layernorm_after)\.": ".mlp_norm.",
    r"\.(attn\.qkv\.|self_attention\.in_proj_)": ".qkv.",
    r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.": r".\1.",
    r"\.(attn\.proj|self_attention\.out_proj|attention\.(o_proj|output\.dense))\.": ".attention_out.",
    r"\.(mlp\.fc1|mlp\.0|mlp\.linear_1|intermediate\.dense)\.": ".mlp_in.",
    r"\.(mlp\.fc2|mlp\.3|mlp\.linear_2|output\.dense)\.": ".mlp_out.",
}


def _vit(name: str) -> str:
    for theirs, ours in _VIT.items():
        name = re.sub(theirs, ours, name)
    return name


OWN_VIT = "transformer.blocks.0.qkv.weight"  # no published one: its heads are anybody's choice
VITS: dict[str, Rename] = {
    OWN_VIT: str,
    "blocks.0.norm1.weight": _vit,
    "encoder.layer.0.layernorm_before.weight": _vit,
    "layers.0.layernorm_before.weight": _vit,
    "encoder.layers.encoder_layer_0.ln_1.weight": _vit,
}
# of the published transformers of such a width
_ATTENTION_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}


def fit_vit(state: State, given: Mapping[str, Any]) -> Fitted:
    """Read a transformer's options off its shapes, and put its parts together as ours.

    The positions of the class token are added to it, and a scale of a layer is multiplied into its weights.
    """
    state = dict(state)
    _join(state)
    weight = state.get("patch_embedding.weight", torch.empty(0))
    if weight.ndim not in (2, 4):
        return state, dict(given), ""
    width = len(weight)
    if weight.ndim == 4:
        state["patch_embedding.weight"] = weight = weight.flatten(1)
    sides = [math.isqrt(weight.shape[1] // channels) for channels in (3, 1)]
    patch = next((s for s, c in zip(sides, (3, 1), strict=True) if s * s * c == weight.shape[1]), sides[0])
    _join_tokens(state)
    blocks = {int(found[1]) for name in state if (found := re.match(r"transformer\.blocks\.(\d+)\.", name))}
    hidden = state.get("transformer.blocks.0.mlp_in.weight", torch.empty(4 * width))
    said = {"patch_size": patch, "width": width, "depth": len(blocks), "mlp_ratio": len(hidden) / width}
    if "heads" not in given and width not in _ATTENTION_HEADS:
        raise ConfigError(
            f"weights of width {width} do not say how many attention heads they have: give "
            "backbone_options={'heads': …}"
        )
    said["heads"] = _ATTENTION_HEADS.get(width, 1)
    options = said | {"prefix_tokens": len(state.get("prefix", ())), "positions": "learned"} | dict(given)
    if "positions" not in state:
        return state, {"image_size": 224} | options, ""
    return _on_grid(state, options)


def _join(state: State) -> None:
    """Put query, key and value in one, and scales of layers into the weights before them."""
    for name in [name for name in state if ".q." in name]:
        parts = [state.pop(name.replace(".q.", f".{part}."), None) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    for scale, layer in (("ls1.gamma", "attention_out"), ("ls2.gamma", "mlp_out")):
        for name in [name for name in state if name.endswith(scale)]:
            gamma, into = state.pop(name), name.removesuffix(scale) + layer
            for part in {f"{into}.weight", f"{into}.bias"} & state.keys():
                state[part] = gamma.view(-1, *[1] * (state[part].ndim - 1)) * state[part]


def _join_tokens(state: State) -> None:
    """Make ``prefix`` of the class token, its position added, and registers; leave the patches' positions."""
    tokens = [state.pop(name).flatten(0, -2) for name in ("class_token", "registers") if name in state]
    positions = state.get("positions", torch.empty(0))
    if positions.ndim == 3:
        state["positions"] = positions = positions[0]
    if not tokens:
        return
    prefix = torch.cat(tokens)
    for count in {len(tokens[0]), len(prefix)}:
        if len(positions) - count == math.isqrt(max(len(positions) - count, 0)) ** 2:
            prefix[:count] += positions[:count]
            state["positions"] = positions[count:]
            break
    state["prefix"] = prefix


def _on_grid(state: State, options: dict[str, Any]) -> Fitted:
    """Resize the positions where the images have another size than they were trained on."""
    trained, patch = math.isqrt(len(state["positions"])), options["patch_size"]
    options = {"image_size": trained * patch} | options
    grid = options["image_size"] // patch
    if grid == trained or not grid or trained**2 != len(state["positions"]):
        return state, options, ""
    state["positions"] = resized_positions(state["positions"], grid, grid)
    return state, options, f"positions resized from {trained}x{trained} to {grid}x{grid} patches"
