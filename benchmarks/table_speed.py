"""VarTJEPA on Adult: an epoch and ``transform`` at the published size, a fit of the default, what that gains.

And training steps of tables with many columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from harness import Result, arguments, compare, parse, write
from probjepa.evaluation.predictors import PREDICTORS
from probjepa.tabular import VarTJEPA, networks
from probjepa.tabular.masks import Masks, draw_masks
from probjepa.tabular.networks import Block, in_bf16
from probjepa.tabular.presets import PRESETS
from probjepa.tabular.tokens import Rows
from probjepa_experiments.table_sets import SOURCES, TableSet

SIZES = ("adult", "small")  # the published preset and ours
ROWS = 34_000  # of the epoch that the target is of
_MATRIX = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "scaled_dot_product")


def main() -> None:
    parser = arguments(__doc__, "table_speed", repeats=3)
    parser.add_argument(
        "--gain-rows", type=int, default=4_200, help="training rows of the comparison; 0: none"
    )
    args = parse(parser)
    data = SOURCES["adult"].open(args.data_root)
    train = data.train.drop(columns=data.target)
    result = Result("table_speed", reference="transform, adult")
    figures: dict[str, Any] = {"rows": len(train)}

    published = VarTJEPA("adult", max_epochs=1, random_state=0, device=args.device)
    wall, own = time.perf_counter(), time.process_time()
    published.fit(train)
    per_row = (time.perf_counter() - wall) / len(train)
    figures["epoch, published size"] = {
        "seconds": per_row * len(train),
        "seconds of all cores": time.process_time() - own,
    }
    outside, largest = outside_matrix_products(published, train)
    figures["outside matrix products, published size"] = {"share": outside, "largest": largest}
    figures["step, published size"] = published_steps(published, train, args.repeats)
    result.target(f"an epoch of {ROWS:,} rows, published size", per_row * ROWS, 90, "s")

    own = time.process_time()
    fitted = VarTJEPA(random_state=0, device=args.device).fit(train)
    spent = time.process_time() - own
    figures["fit, default preset"] = {"seconds of all cores": spent, "epochs": fitted.n_iter_}
    result.target("a fit of the default preset", spent, 360, "s of one core")

    models = {"adult": published, "small": VarTJEPA(max_epochs=1, random_state=0, device=args.device)}
    models["small"].fit(train.iloc[:2_000])
    rows = {"adult": train.iloc[:4_000], "small": train.iloc[:16_000]}
    seconds: dict[str, list[float]] = {f"transform, {size}": [] for size in SIZES}
    for turn in range(1 + args.repeats):
        for size in SIZES:
            started = time.perf_counter()
            models[size].transform(rows[size])
            if turn:
                seconds[f"transform, {size}"].append((time.perf_counter() - started) / len(rows[size]))
    for columns in (14, 100, 300):
        figures[f"step, {columns} columns"] = step(columns, args.repeats)
    result.seconds = seconds  # of a row
    figures["transform, rows a second"] = {
        size: 1 / result.time(f"transform, {size}").median for size in SIZES
    }
    result.target("a row's transform, small preset", 1e3 * result.time("transform, small").median, 0.2, "ms")

    if args.gain_rows:
        figures["gain"] = gains(data, args.gain_rows, args.device)
        published_gain, small_gain = (figures["gain"][size] for size in SIZES)
        share = small_gain["accuracy gain"] / published_gain["accuracy gain"]
        figures["gain"]["small / published"] = share
        result.target("0.95 − share of the published size's gain", 0.95 - share, 0)
        result.target(
            "small preset's time / published size's",
            small_gain["seconds of all cores"] / published_gain["seconds of all cores"], 0.1,
        )  # fmt: skip
    result.figures = figures
    write(result, args.out)


def step(columns: int, repeats: int) -> dict[str, Any]:
    """Training steps of the default preset on 64 rows of number columns.

    With the target masks in one sequence, each apart, and so in bf16 and compiled; the default is the quicker
    of the first two by the number of tokens.
    """
    table = np.random.default_rng(0).normal(size=(200, columns)).astype(np.float32)
    model = VarTJEPA(max_epochs=1, min_steps=1, max_steps=1, copula="none", random_state=0, device="cpu")
    rows, network = next(model.fit(table)._batches(table[:64])), model.network_.train()
    drawn = [
        draw_masks(
            64, columns, context_share=PRESETS["small"]["context_share"],
            target_share=PRESETS["small"]["target_share"], n_targets=4,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(3)
    ]  # fmt: skip

    compiled = torch.compile(Block.forward, dynamic=True)

    def run(wide: int, **how: Any) -> None:
        networks._WIDE = wide
        for masks in drawn:
            train_step(network, rows, masks, **how)

    usual = networks._WIDE
    ways = {
        "masks in one sequence": lambda: run(10**9),
        "a mask at a time": lambda: run(0),
        "the default": lambda: run(usual),
        "the default in bf16": lambda: run(usual, bf16=True),
        "the default, compiled": lambda: run(usual, forward=compiled),
    }
    try:
        found = compare("steps", ways, "masks in one sequence", repeats, clock=time.process_time)
    finally:
        networks._WIDE = usual
    return a_step(found, ways, len(drawn))


def train_step(
    network: Any, rows: Rows, masks: Masks, *, bf16: bool = False, forward: Any = Block.forward
) -> None:
    """A loss and its gradients, the transformers' blocks by ``forward``."""
    with mock.patch.object(Block, "forward", forward):
        with in_bf16(network, bf16):
            loss = network.loss(rows, masks)["loss"]
        loss.backward()


def a_step(found: Result, ways: Iterable[str], steps: int = 1) -> dict[str, Any]:
    """Each way's seconds of one step and ratio, where so many were timed together."""
    return {
        way: {"seconds a step": found.time(way).median / steps, "ratio": asdict(found.ratio(way))}
        for way in ways
    }


def batch_of(model: VarTJEPA, train: Any) -> tuple[Rows, Masks]:
    """512 rows and target masks of the published size."""
    rows, columns = next(model._batches(train.iloc[:512])), model.network_.n_features
    masks = draw_masks(
        len(rows), columns, context_share=(0.2, 0.2), target_share=(0.35, 0.35), n_targets=4,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return rows, masks


def outside_matrix_products(model: VarTJEPA, train: Any) -> tuple[float, dict[str, float]]:
    """The share of three training steps' own time that is not in matrix products or attention.

    And the shares of the eight that take the most of it.
    """
    network, (rows, masks) = model.network_.train(), batch_of(model, train)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            network.loss(rows, masks)["loss"].backward()
    network.eval().zero_grad(set_to_none=True)
    events = found.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    shares = {
        e.key: e.self_cpu_time_total / total for e in events if not any(name in e.key for name in _MATRIX)
    }
    return sum(shares.values()), dict(sorted(shares.items(), key=lambda of: -of[1])[:8])


def published_steps(model: VarTJEPA, train: Any, repeats: int) -> dict[str, Any]:
    """Training steps of the published size: as they are, compiled, in bf16, and without dropout.

    ``torch.compile`` is of the transformers' blocks, since the rest has a shape of its own each step; how
    long it took is counted apart.
    """
    network, (rows, masks) = model.network_.train(), batch_of(model, train)
    compiled = torch.compile(Block.forward, dynamic=True)
    dropouts = [of for of in network.modules() if isinstance(of, nn.Dropout)]
    run = partial(train_step, network, rows, masks)

    def without_dropout() -> None:
        for of in dropouts:
            of.eval()
        run()
        network.train()

    started = time.process_time()
    run(forward=compiled)
    first = time.process_time() - started
    ways = {
        "as it is": run,
        "compiled": lambda: run(forward=compiled),
        "in bf16": lambda: run(bf16=True),
        "without dropout": without_dropout,
    }
    found = compare("published steps", ways, "as it is", max(5, repeats), clock=time.process_time)
    network.eval().zero_grad(set_to_none=True)
    return {
        "the first compiled step, seconds": first,
        **a_step(found, ways),
    }


def tables_and_codes(
    data: TableSet, n_rows: int, n_test: int | None = None
) -> tuple[list[Any], list[np.ndarray]]:
    """Training, validation and test tables without their target, of so many training rows, and its codes."""
    parts = [data.train.iloc[:n_rows], data.validation.iloc[: n_rows // 7], data.test.iloc[:n_test]]
    classes = np.unique(parts[0][data.target])
    codes = [np.searchsorted(classes, part[data.target]) for part in parts]
    return [part.drop(columns=data.target) for part in parts], codes


def embedding_accuracy(model: VarTJEPA, parts: list[Any], codes: list[np.ndarray]) -> float:
    """What logistic regression on a model's embedding of the training table gets right of the test table."""
    x, x_val, x_test = (model.transform(part) for part in parts)
    y, y_val, truth = codes
    answers = PREDICTORS["logistic regression"](x, y, x_val, y_val, 0)(x_test).argmax(1)
    return float((answers == truth).mean())


def gains(data: TableSet, n_rows: int, device: str) -> dict[str, Any]:
    """What logistic regression on the embedding gains over the majority class, and what the fit took.

    Both sizes are fitted to the same rows, until they stop: the published one after at most 100 epochs.
    """
    parts, codes = tables_and_codes(data, n_rows)
    majority = float((codes[2] == np.bincount(codes[0]).argmax()).mean())
    found: dict[str, Any] = {"rows": n_rows, "majority class": majority}
    for size in SIZES:
        own = time.process_time()
        model = VarTJEPA(size, random_state=0, device=device).fit(parts[0])
        spent = time.process_time() - own
        accuracy = embedding_accuracy(model, parts, codes)
        found[size] = {
            "accuracy": accuracy,
            "accuracy gain": accuracy - majority,
            "mean log p of a hidden cell": float(model.score_samples(parts[2].iloc[:4_000]).mean()),
            "epochs": model.n_iter_,
            "best epoch": model.best_epoch_,
            "seconds of all cores": spent,
        }
        print(size, found[size], flush=True)
    return found


if __name__ == "__main__":
    main()
