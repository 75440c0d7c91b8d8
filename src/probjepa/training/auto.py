"""What "auto" means for a run: precision, memory order and threads, by the processor and by timed steps."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_type_hints

import torch
from torch import Tensor

from probjepa.draws import forked
from probjepa.errors import ConfigError, counted, short
from probjepa.provenance import OWN_THREADS, bf16_units, computes_bf16, usable_cpus
from probjepa.training.module import Module
from probjepa.typed import checked
from probjepa.yaml_files import read_mapping

LEAST_SHARE = 50  # a run is at least so many times as long as what is spent on choosing, at worst
_ROUNDS = 3  # the first warms up, the faster of the others counts
_GAIN = 0.95  # of the time that a step takes as it is usual; a smaller gain may be the clock's
_MOST_THREADS = 4096
Option = tuple[str, bool]  # a Lightning precision, and whether weights and views are channels-last


class Auto(NamedTuple):
    """How a run computes, and why."""

    precision: str
    channels_last: bool
    threads: int
    why: str

    def __str__(self) -> str:
        threads = counted(self.threads, "thread")
        return f"auto: {_name(self.precision, self.channels_last)}, {threads}, {self.why}"


def by_processor(device: torch.device, precision: str = "auto") -> Option:
    """Return the usual precision, unless one is given, and memory order on a device: nothing is timed.

    bf16-mixed and channels-last on a GPU and on a CPU with units for bf16 (AMX, AVX512-BF16), else 32-true in
    the plain order.
    """
    gpu = device.type == "cuda"
    units = computes_bf16(device.type)
    if precision == "auto":
        precision = "bf16-mixed" if units else "32-true"
    return precision, gpu or (units and precision == "bf16-mixed")


def threads_that_fit() -> int:
    """Return how many threads torch has, but no more than the process may use, unless the user says so."""
    threads = torch.get_num_threads()
    return threads if "OMP_NUM_THREADS" in os.environ else min(threads, usable_cpus())


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Give torch so many threads for the length of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose(
    module: Module,
    batch: Callable[[], Tensor],
    device: torch.device,
    precision: str,
    channels_last: bool | Literal["auto"],
    steps: int | None,
) -> Auto:
    """Return how a run of so many steps computes; what is not "auto" stays.

    On a CPU, steps of a copy of ``module`` on a batch are timed, with bf16 where the processor has units for
    it, then with one thread in the place of all. Another way than float32 in the plain order has to gain a
    twentieth. A run that is too short to win the time back, and one of ``steps`` None, goes by the processor.
    """
    threads = threads_that_fit()
    usual = by_processor(device, precision)
    if channels_last != "auto":
        if precision != "auto":
            return Auto(precision, channels_last, threads, "as given")
        usual = usual[0], channels_last
    orders = [False, True] if channels_last == "auto" else [channels_last]
    precisions = ["32-true", "bf16-mixed"][: 1 + bool(bf16_units())] if precision == "auto" else [precision]
    options = [(kind, order) for kind in precisions for order in orders]
    if device.type != "cpu":
        return Auto(*usual, threads, "as on every such device")
    why = f"by the processor ({', '.join(bf16_units()) or 'no bf16 units'})"
    if steps is None or not {*precisions} <= {"32-true", "bf16-mixed"}:
        return Auto(*usual, threads, why)
    spent, given = _ROUNDS * len(options), "OMP_NUM_THREADS" in os.environ and OWN_THREADS not in os.environ
    # with one thread a step may take as long as with all of them times their number
    try_one = threads > 1 and not given and steps >= LEAST_SHARE * (spent + _ROUNDS * threads)
    few = steps < LEAST_SHARE * spent
    if few or (len(options) == 1 and not try_one):
        return Auto(*usual, threads, why + f": {steps} steps are too few to time some" * few)
    try:
        trial = copy.deepcopy(module).to(device)
    except (TypeError, RuntimeError):  # a user's own module may hold what has no copy
        return Auto(*usual, threads, f"{why}: the model cannot be copied to time it")
    images = batch()
    with forked(device), using_threads(threads):
        times = _fastest(trial, images, options)
        best = min(options, key=lambda option: times[option])
        if times[best] > _GAIN * times[options[0]]:
            best = options[0]
        if try_one:
            torch.set_num_threads(1)
            alone = _fastest(trial, images, [best])[best]
            if alone <= _GAIN * times[best]:
                return Auto(*best, 1, f"{alone:.3g} s a step ({threads} threads: {_listed(times)})")
    return Auto(*best, threads, f"{times[best]:.3g} s a step ({_listed(times)})")


def remembered(config: Path) -> Auto | None:
    """Return what a run's config.yaml says was chosen; None where it says nothing.

    Raises
    ------
    ConfigError
        if it is damaged
    """
    content = read_mapping(config)
    kept = content.get("auto")
    if kept is None:
        return None
    if not isinstance(kept, Mapping):
        raise ConfigError(f"auto in {config} takes a mapping, got '{short(kept)}'")
    kept = {"precision": content.get("precision"), **kept}
    found = Auto(
        **{
            name: checked(f"{name} in {config}", kept.get(name), of)
            for name, of in get_type_hints(Auto).items()
        }
    )
    if not 1 <= found.threads <= _MOST_THREADS:
        raise ConfigError(
            f"the setting threads in {config} takes a whole number from 1 to {_MOST_THREADS}, "
            f"got '{found.threads}'"
        )
    return found


def step_seconds(
    trial: Module, images: Tensor, option: Option, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how long a step takes, its views included and the optimiser not: that is the same for all."""
    precision, channels_last = option
    trial.hold_channels_last(channels_last)
    start = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = trial.terms_of(images, 0)["loss"]
    torch.autograd.backward(loss)
    seconds = clock() - start
    trial.zero_grad()
    return seconds


def _fastest(trial: Module, images: Tensor, options: list[Option]) -> dict[Option, float]:
    """The seconds of a step of each kind, taken in turns: a slow moment of the machine is all of theirs."""
    trial.train()
    rounds = [{option: step_seconds(trial, images, option) for option in options} for _ in range(_ROUNDS)]
    return {option: min(seconds[option] for seconds in rounds[1:]) for option in options}


def _name(precision: str, channels_last: bool) -> str:
    return precision + " channels-last" * channels_last


def _listed(times: Mapping[Option, float]) -> str:
    return ", ".join(f"{_name(*option)} {seconds:.3g}" for option, seconds in times.items())
