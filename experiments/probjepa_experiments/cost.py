"""What a training step costs: parameters, operations, time beside SimSiam's step, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from probjepa.data.views import views
from probjepa.methods.base import Method
from probjepa.training.auto import by_processor
from probjepa.training.device import resolve_device
from probjepa.training.optim import make_optimizer
from probjepa_experiments.images import build, modules_of, settings_of
from probjepa_experiments.study import Base, Budget, Cell, Data, Measured, Measurement, Row, Source

RANDOM_PIXELS = "random pixels"
_REFERENCE = "simsiam"
_WARMUP = 3
Clock = Callable[[], float]


def cost_base(row: Row, budget: Budget, dataset: str, data: Data) -> Base:
    """Return the method's settings at the budget's size, and SimSiam's beside them."""
    shape = budget.cost["channels"], budget.cost["image_size"]
    backbone = {key: budget.cost[key] for key in ("backbone", "backbone_options") if key in budget.cost}
    settings = {**settings_of(row, budget, shape), **backbone}
    reference = {**settings_of(Row("the reference", _REFERENCE), budget, shape), **backbone}
    fit = {
        **{key: budget.cost[key] for key in ("batch_size", "rounds")},
        **{key: budget.fit[key] for key in ("device", "precision", "channels_last")},
        "reference": reference,
    }
    modules = modules_of(row.method, settings) + modules_of(_REFERENCE, reference)
    return Base(settings, fit, modules)


def run(cell: Cell, data: Data, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Measure a step's cost.

    A step is the loss, its gradient, the optimiser and ``after_step``; the views are made once, as they are
    the same for all. "step ratio" is the median of the rounds' ratios with their quartiles as bounds, "step
    seconds" likewise. SimSiam against itself shows what a ratio is worth.
    """
    device = resolve_device(cell.fit["device"])
    method = build(cell.method, cell.settings, cell.seed).to(device)
    reference = build(_REFERENCE, cell.fit["reference"], cell.seed).to(device)
    step, other = (stepper(of, cell) for of in (method, reference))
    flops = _flops(step)
    mine, theirs = in_turns(step, other, device, int(cell.fit["rounds"]))
    figures: dict[str, Mapping[str, float | None] | float] = {
        "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad) / 1e6,
        "flops": flops / 1e9,
        "step seconds": quartiles(mine),
        "step ratio": quartiles([a / b for a, b in zip(mine, theirs, strict=True)]),
    }
    if device.type != "cuda":
        return Measured(figures, ["memory: not measured on a CPU"])
    del other, reference
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return Measured({**figures, "memory": torch.cuda.max_memory_allocated(device) / 2**30})


def stepper(method: Method, cell: Cell, *, update: bool = True) -> Callable[[], None]:
    """Return a training step of a method on fixed views of random pixels; the update of weights included."""
    device, size, channels = method.device, method.preprocess.size, method.preprocess.channels
    precision, last = by_processor(device, cell.fit["precision"])
    half = precision == "bf16-mixed"
    last = last if cell.fit["channels_last"] == "auto" else cell.fit["channels_last"]
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
        if update:
            optimizer.step()
            method.after_step(0, 1000)

    return step


def in_turns(
    one: Callable[[], object],
    other: Callable[[], object],
    device: torch.device,
    rounds: int,
    clock: Clock = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Return the seconds of both, round by round: a drift of the machine falls on both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARMUP + rounds):
        for which in (turn % 2, 1 - turn % 2):
            took = timed((one, other)[which], device, clock)
            if turn >= _WARMUP:
                seconds[which].append(took)
    return seconds


def timed(work: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Return the seconds that some work takes, that of the GPU included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(clock() - start, 1e-9)


def quartiles(values: list[float]) -> dict[str, float | None]:
    """Return the median, with the quartiles as bounds."""
    low, median, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return {"value": median, "low": low, "high": high}


def _flops(step: Callable[[], None]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


STEP = Measurement(
    run,
    cost_base,
    {RANDOM_PIXELS: Source(RANDOM_PIXELS)},  # nothing is read
    intervals="the quartiles of the rounds",
)
