"""What a training step costs: parameters, operations, time beside SimSiam's step, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from probjepa.data.views import views
from probjepa.experiments.cells import COST_REFERENCE, Cell, build
from probjepa.methods import METHODS
from probjepa.methods.base import Method
from probjepa.training.device import resolve_device
from probjepa.training.optim import make_optimizer

_WARMUP = 3
Figures = dict[str, dict[str, float | None]]


def measure_cost(cell: Cell) -> tuple[Figures, list[str]]:
    """Return figure → {value, low, high}, and what was not measured.

    A step is the loss, its gradient, the optimiser and ``after_step``; the views are made once, as they are
    the same for all. The method and SimSiam take turns, so that a drift of the machine falls on both alike;
    "step ratio" is the median of the rounds' ratios with their quartiles as bounds, "step seconds" likewise.
    SimSiam against itself shows what a ratio is worth.
    """
    device = resolve_device(cell.fit["device"])
    method = build(cell).to(device)
    step = _stepper(method, cell, device)
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    flops = _flops(step)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        reference: Method = METHODS[COST_REFERENCE](**cell.fit["reference"])
    other = _stepper(reference.to(device), cell, device)
    mine, theirs = [], []
    for turn in range(_WARMUP + int(cell.fit["rounds"])):
        seconds = [_seconds(run, device) for run in ((step, other) if turn % 2 else (other, step))]
        if turn >= _WARMUP:
            mine.append(seconds[turn % 2])
            theirs.append(seconds[1 - turn % 2])
    figures = {
        "parameters": _exactly(parameters / 1e6),
        "flops": _exactly(flops / 1e9),
        "step seconds": _quartiles(mine),
        "step ratio": _quartiles([a / b for a, b in zip(mine, theirs, strict=True)]),
    }
    if device.type != "cuda":
        return figures, ["memory: not measured on a CPU"]
    del other, reference
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    figures["memory"] = _exactly(torch.cuda.max_memory_allocated(device) / 2**30)
    return figures, []


def _stepper(method: Method, cell: Cell, device: torch.device) -> Callable[[], None]:
    size, channels = method.preprocess.size, method.preprocess.channels
    half = cell.fit["precision"] == "bf16-mixed" or (
        device.type == "cuda" and cell.fit["precision"] == "auto"
    )
    last = cell.fit["channels_last"] is True or (
        device.type == "cuda" and cell.fit["channels_last"] == "auto"
    )
    config = method.preprocess.config()
    pixels = torch.randint(
        0, 256, (int(cell.fit["batch_size"]), channels, size, size), dtype=torch.uint8,
        generator=torch.Generator().manual_seed(cell.seed),
    ).to(device)  # fmt: skip
    make = views(method.view_recipe, size=size, channels=channels, mean=config["mean"], std=config["std"])
    with torch.no_grad():
        batch = make.to(device)(pixels, cell.seed)
    method.train()
    if last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = [view.contiguous(memory_format=torch.channels_last) for view in batch]
    # the size of a step does not change its cost, and weights that hardly move cannot diverge
    optimizer = make_optimizer(
        method.recipe.get("optimizer", "sgd"), method, learning_rate=1e-6, momentum=0.9, weight_decay=1e-4
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = method.loss(batch)["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        method.after_step(0, 1000)

    return step


def _flops(step: Callable[[], None]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _exactly(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def _quartiles(values: list[float]) -> dict[str, float | None]:
    low, median, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return {"value": median, "low": low, "high": high}
