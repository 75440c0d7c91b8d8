"""What channels-last costs in digits on a CPU: a VJE encoder's outputs and gradients beside float64's.

PyTorch's batch norm on a CPU adds up in float32 in the channels-last layout, and in float64 in the usual one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from harness import Result, arguments, parse, write
from probjepa.methods.vje import VJE

LAYOUTS = {"usual": torch.contiguous_format, "channels-last": torch.channels_last}
ENCODERS: dict[str, dict[str, Any]] = {
    "convnet, 16 px": {
        "backbone": "convnet", "backbone_options": {"widths": [16, 32, 64]}, "channels": 1, "image_size": 16,
    },
    "resnet18 at a quarter of its width, 32 px": {
        "backbone": "resnet18", "backbone_options": {"width": 0.25}, "image_size": 32,
    },
}  # fmt: skip


def passed(module: nn.Module, x: Tensor, toward: Tensor) -> dict[str, Tensor]:
    """One forward and backward: the output, and the gradient of each parameter."""
    module.zero_grad()
    y = module(x)
    torch.autograd.backward((y * toward).sum())
    gradients = {name: p.grad.double().contiguous() for name, p in module.named_parameters()}  # type: ignore[union-attr]
    return {"output": y.detach().double(), **gradients}


def off(found: Tensor, true: Tensor) -> float:
    """The relative error."""
    return float((found - true).norm() / true.norm())


def main() -> None:
    """Compare both layouts in float32 with float64 on one batch, and the gradients of two batches."""
    args = parse(arguments(__doc__, "layout_numerics"))
    figures = {}
    for name, options in ENCODERS.items():
        encoder = VJE(**options, seed=0).train().encoder
        torch.manual_seed(0)
        shape = (256, options.get("channels", 3), options["image_size"], options["image_size"])
        x, other = torch.rand(shape), torch.rand(shape)
        toward = torch.randn(encoder(x).shape)
        exact = copy.deepcopy(encoder).double()
        true = passed(exact, x.double(), toward.double())
        another = passed(exact, other.double(), toward.double())
        errors = {}
        for layout, order in LAYOUTS.items():
            ours = copy.deepcopy(encoder).to(memory_format=order)  # type: ignore[call-overload]
            found = passed(ours, x.contiguous(memory_format=order), toward)
            off_by = {key: off(found[key], true[key]) for key in true}
            output = off_by.pop("output")
            worst = max(off_by, key=off_by.__getitem__)
            errors[layout] = {"output": output, "worst gradient": off_by[worst], "of": worst}
        between = min(off(another[key], true[key]) for key in true if key != "output")
        figures[name] = {"relative error": errors, "least difference of two batches' gradients": between}
        print(name, figures[name])
    write(Result("layout_numerics", figures=figures), args.out)


if __name__ == "__main__":
    main()
