"""Attention in bf16 on a CPU: torch's fused one beside the spelled out one, and in a step of I-JEPA."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import arguments, compare, parse, write
from probjepa import _attention
from probjepa_experiments.cost import stepper
from probjepa_experiments.ijepa_heads import BUDGETS, STUDY
from probjepa_experiments.images import build
from probjepa_experiments.study import Data

#: what it is in → rows, heads, tokens, and features of a head
SHAPES = {
    "I-JEPA, budget medium": (64, 5, 64, 32),
    "VarTJEPA, 100 columns": (64, 4, 100, 16),
    "ViT-S at 224 px": (64, 6, 197, 64),
}
FUSED, SPELLED, FULL = "fused", "spelled out", "fused, float32"


def step(shape: tuple[int, int, int, int], fused: bool, dtype: torch.dtype) -> None:
    """Attention and its gradients of fixed random numbers."""
    rows, heads, tokens, width = shape
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, rows, tokens, heads, width, generator=generator).to(dtype).requires_grad_()
    of: Any = F.scaled_dot_product_attention if fused else _attention.attention
    mixed: Tensor = of(*drawn.transpose(2, 3))
    torch.autograd.backward(mixed, torch.ones_like(mixed))


def ijepa_step(precision: str, fused: bool) -> Any:
    """A training step of I-JEPA with a Gaussian head at the budget medium."""
    (row,) = (row for row in STUDY.rows_of("medium") if row.label == "gaussian")
    cell = STUDY.cell_of(row, BUDGETS["medium"], "tiny-imagenet", Data("pixels", (3, 64)), 0)
    cell = replace(cell, fit={**cell.fit, "precision": precision})
    run = stepper(build(cell.method, cell.settings, 0), cell)

    def whole() -> None:
        with mock.patch.object(_attention, "SHORT", 0 if fused else _attention.SHORT):
            run()

    return whole


def main() -> None:
    args = parse(arguments(__doc__, "attention", repeats=9))
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        ways = {
            FUSED: partial(step, shape, True, torch.bfloat16),
            SPELLED: partial(step, shape, False, torch.bfloat16),
            FULL: partial(step, shape, True, torch.float32),
        }
        found = compare(name, ways, FUSED, args.repeats, clock=time.process_time)
        figures[name] = found.record()["candidates"]
    result = compare(
        "attention",
        {
            FUSED: ijepa_step("bf16-mixed", fused=True),
            SPELLED: ijepa_step("bf16-mixed", fused=False),
            FULL: ijepa_step("32-true", fused=False),
        },
        FUSED,
        args.repeats,
        clock=time.process_time,
    )
    result.figures = {
        "attention and its gradients": figures,
        "I-JEPA, images a second": {way: 64 / result.time(way).median for way in result.seconds},
    }
    result.target("I-JEPA's step, spelled out / fused", result.ratio(SPELLED).median, 0.6)
    write(result, args.out)


if __name__ == "__main__":
    main()
