"""Published recipes of I-JEPA, as keywords of ``IJEPA`` and of ``fit``, and where each value is from.

"i-jepa": Assran et al. 2023 (arXiv 2301.08243), ViT-B/16

- in the authors' public configurations: 224 px, predictor's width 384, momentum 0.996 → 1 on a line, AdamW at
  1e-3, weight decay from 0.04, batch 2,048
- as the paper has it (appendix A), in no public configuration: ViT-B/16's predictor of 6 layers with the
  encoder's 12 heads, and a warm-up of 15 epochs (40 in the configurations, which are of larger encoders)
- the authors' code, not the paper's formula (squared distance): smooth L1 behind a linear map
- ours: weight decay stays (theirs rises to 0.4), the rate ends at 0 (1e-6), and "ijepa" views are flipped

"tiny-imagenet": "Variational JEPA: Adding Uncertainty to Visual Representations"

- its: 64 px, the encoder, the predictor's width, momentum 0.998 → 1 on a cosine, AdamW and the clip at 3
- ours: 4 predictor layers (its range is 2–6) of 8 heads, batch size, learning rate, weight decay and warm-up
"""

from __future__ import annotations

from typing import Any, TypedDict


class Preset(TypedDict):
    """Keywords of ``IJEPA`` and of ``fit`` that make one published recipe."""

    method: dict[str, Any]
    fit: dict[str, Any]


PRESETS: dict[str, Preset] = {
    "i-jepa": {
        "method": {
            "image_size": 224,
            "backbone_options": {"patch_size": 16, "width": 768, "depth": 12, "heads": 12},
            "head": "deterministic",
            "head_options": {"hidden": []},
            "predictor_width": 384,
            "predictor_depth": 6,
            "predictor_heads": 12,
            "ema_momentum": 0.996,
            "ema_schedule": "linear",
        },
        "fit": {
            "optimizer": "adamw",
            "batch_size": 2048,
            "learning_rate": 1e-3,
            "weight_decay": 0.04,
            "warmup_epochs": 15,
        },
    },
    "tiny-imagenet": {
        "method": {
            "image_size": 64,
            "backbone_options": {"patch_size": 8, "width": 384, "depth": 10, "heads": 8},
            "predictor_width": 192,
            "predictor_depth": 4,
            "predictor_heads": 8,
            "ema_momentum": 0.998,
            "ema_schedule": "cosine",
        },
        "fit": {
            "optimizer": "adamw",
            "batch_size": 256,
            "learning_rate": 5e-4,
            "weight_decay": 0.05,
            "warmup_epochs": None,
            "gradient_clip_val": 3.0,
        },
    },
}
