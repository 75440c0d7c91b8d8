"""Where the time of a training step goes, as ``fit`` runs it."""

from __future__ import annotations

import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from torch import Tensor

from harness import Result, Spread, arguments, parse, write
from probjepa.cli import own_process
from probjepa.data import ImageSet
from probjepa.methods import METHODS
from probjepa.methods.base import Method
from probjepa.training import fit, loader

SIZE = 32
NAMES = ("vje", "vi-simsiam", "simsiam", "byol", "vicreg", "barlow-twins", "lejepa", "i-jepa")
ENCODER = ("encoder forward", "encoder backward")
MODEL = (*ENCODER, "heads and loss")
REST = "Lightning and callbacks"  # what no other part counts
MOST = 0.10


class Parts:
    """Seconds by part; a part that is entered inside another one stops the other's clock.

    ``clock`` is the process's own time where there is one thread: it leaves out what else runs.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.inside, self.since = clock, [REST], clock()
        self.seconds: dict[str, float] = defaultdict(float)

    def enter(self, part: str) -> None:
        """Count for a part from now."""
        self._count()
        self.inside.append(part)

    def leave(self) -> None:
        """Count for the part around it from now."""
        self._count()
        self.inside.pop()

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts for a part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return counted

    def turn(self, part: str) -> None:
        """Count for another part from now, in the place of this one."""
        self._count()
        self.inside[-1] = part

    def taken(self) -> dict[str, float]:
        """Return what has been counted since the last call."""
        self._count()
        found, self.seconds = dict(self.seconds), defaultdict(float)
        return found

    def _count(self) -> None:
        now = self.clock()
        self.seconds[self.inside[-1]] += now - self.since
        self.since = now


class Profile(L.Callback):
    """Count the parts of every step, from the start of a batch to that of the next: its loading included."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.steps = parts, list[dict[str, float]]()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put clocks around the parts."""
        module: Any = pl_module
        module.logs = False  # no more than where nobody listens: this callback does not
        within, method = self.parts.within, module.method
        module.views.forward = within("views", module.views.forward)
        method.loss = within("heads and loss", method.loss)
        for part in method.modules():
            if type(part) is type(method.encoder):  # a teacher's copy too
                for name in ("forward", "tokens"):
                    if hasattr(part, name):
                        setattr(part, name, within("encoder forward", self._watched(getattr(part, name))))
        module.on_before_optimizer_step = within("checks and logging", module.on_before_optimizer_step)
        clip = within("checks and logging", module.configure_gradient_clipping)

        def clip_and_go_on(*args: Any, **kwargs: Any) -> None:
            clip(*args, **kwargs)
            self.parts.enter("optimiser")

        module.configure_gradient_clipping = clip_and_go_on
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.parts.leave())
        method.after_step = within("optimiser", method.after_step)

    def _watched(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """An encoder's forward, whose backward begins when the gradient of what it returned is there."""

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            out = forward(*args, **kwargs)
            if out.requires_grad:
                out.register_hook(lambda _: self.parts.turn("encoder backward"))
            return out

        return watched

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Count for the heads, until the gradient is at the encoder."""
        self.parts.enter("heads and loss")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the backward pass."""
        self.parts.leave()

    def on_train_batch_start(self, *_: Any) -> None:
        """End a step."""
        self.steps.append(self.parts.taken())


def make(name: str, width: float) -> Method:
    options: dict[str, Any] = {"backbone": "resnet18", "backbone_options": {"width": width}}
    if name == "i-jepa":
        vit = {"patch_size": 4, "width": 192, "depth": 6, "heads": 3}
        predictor = {"predictor_width": 96, "predictor_depth": 3, "predictor_heads": 3}
        options = {"backbone": "vit", "backbone_options": vit, **predictor}
    method: Method = METHODS[name](image_size=SIZE, seed=0, **options)
    return method


def profile(name: str, args: Any) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Return the seconds of each part, step by step, and how the run computed."""
    count = args.batch_size * (args.warmup + args.repeats + 1)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).byte()
    images = ImageSet(pixels, None, [str(row) for row in range(count)], name="random pixels")
    parts = Parts(time.process_time if args.threads == 1 else time.perf_counter)
    counting, read = Profile(parts), loader._Batches.__getitem__
    loader._Batches.__getitem__ = parts.within("loading", read)  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            fit(
                make(name, args.width), images, epochs=1, batch_size=args.batch_size, device=args.device,
                out=Path(folder) / "run", callbacks=[counting], monitor_every=0,
            )  # fmt: skip
            config = yaml.safe_load((Path(folder) / "run" / "config.yaml").read_text())
    finally:
        loader._Batches.__getitem__ = read  # type: ignore[method-assign]
    # the first comes before any step
    return counting.steps[1 + args.warmup :], {"precision": config["precision"], **config["auto"]}


def main() -> None:
    parser = arguments(__doc__, "step_profile", repeats=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet-18")
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES)
    args = parse(parser)
    own_process()  # as the command line does it: what malloc faults in anew would be counted as the encoder's
    result = Result("step_profile", reference=args.methods[0], warmup=args.warmup)
    shares: dict[str, dict[str, float]] = {}
    for name in args.methods:
        steps, how = profile(name, args)
        result.seconds[name] = [sum(step.values()) for step in steps]
        names = dict.fromkeys(part for step in steps for part in step)
        shares[name] = {
            part: Spread.of([step.get(part, 0.0) / sum(step.values()) for step in steps]).median
            for part in names
        }
        for what, parts in (("not the encoder", ENCODER), ("neither encoder nor heads and loss", MODEL)):
            rest = [1 - sum(step.get(part, 0.0) for part in parts) / sum(step.values()) for step in steps]
            result.target(f"{name}: {what}", Spread.of(rest).median, MOST)
        result.figures["how"] = how
        listed = ", ".join(f"{part} {share:.2%}" for part, share in shares[name].items())
        print(f"{name}: {result.time(name)} s: {listed}", flush=True)
    result.figures |= {
        "batch_size": args.batch_size,
        "width": args.width,
        "image_size": SIZE,
        "device": args.device,
        "shares": shares,
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
