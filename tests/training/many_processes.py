"""Runs of each method, as one of the processes that torchrun starts, or as the only one."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import lightning.pytorch as L
import numpy as np
import torch

import probjepa as pj
from probjepa.launch import started
from probjepa.methods import METHODS
from probjepa.methods.var_jepa import VarJEPA
from probjepa.training import EpochLoader, fit
from probjepa.training.module import Module
from probjepa.training.processes import SyncBatchNorm

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import fsdp2

L_TRAINER = L.Trainer

TOTAL, EPOCHS = 16, 2  # images a step
VIT = {
    "backbone_options": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}, "predictor_width": 16,
    "predictor_depth": 1,
}  # fmt: skip
CASES = {
    "simsiam": ("simsiam", {}),
    "byol": ("byol", {}),
    "vicreg": ("vicreg", {"projector_dim": 16}),
    "barlow-twins": ("barlow-twins", {"projector_dim": 16}),
    "lejepa": ("lejepa", {"projector_dim": 16}),
    "vi-simsiam": ("vi-simsiam", {"projector_dim": 16}),
    "vje": ("vje", {}),
    "vje, averaged target": ("vje", {"target": "ema"}),
    "vje, no draws": ("vje", {"draws": 0}),
    **{f"i-jepa, {head}": ("i-jepa", {"head": head, **VIT}) for head in (
        "deterministic", "realnvp", "flow_matching", "diffusion",
    )},
}  # fmt: skip


def digits():
    """48 images of 16 px, three of which lie beyond the last whole batch."""
    drawn = np.random.default_rng(0).integers(0, 256, (51, 1, 16, 16), dtype=np.uint8)
    return pj.open_images(drawn)


def model_of(name):
    method, settings = CASES[name]
    if method != "i-jepa":
        settings = {"backbone": "convnet", "backbone_options": {"widths": (8, 16)}, **settings}
    return METHODS[method](channels=1, image_size=16, seed=0, **settings)


def run(name, folder, processes, **options):
    """Train a case into ``folder / name``."""
    usual = {"batch_size": TOTAL // processes, "out": Path(folder) / name, "precision": "32-true"}
    settings = usual | {"epochs": EPOCHS, "learning_rate": 1e-3, "progress": False}
    return fit(model_of(name), digits(), **(settings | options))


class Terminator(L.Callback):
    """Ask the second process to end amid its third step, when the first waits for it."""

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGTERM)


class Killer(L.Callback):
    """Kill a process some seconds after its so many-th step."""

    def __init__(self, step, rank, seconds):
        self.left, self.rank, self.seconds = step, rank, seconds

    def on_train_batch_end(self, trainer, *_):
        self.left -= 1
        if self.left == 0 and trainer.global_rank == self.rank:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            if not self.seconds:
                time.sleep(60.0)


def run_var_jepa(folder, processes):
    """Train the method of tables' pairs with Lightning's Trainer."""
    model = VarJEPA(x_dim=4, y_dim=3, latent_dim=3, z_dim=2, hidden=(8,), sigreg_weight=0.1, seed=0)
    rows = torch.randn(48, 7, generator=torch.Generator().manual_seed(0))

    class Pairs:
        def __len__(self):
            return 48

        def get(self, chosen):
            return rows[chosen][:, :4], rows[chosen][:, 4:]

    class Seen(L.Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, module, *_):
            self.losses.append(module.terms["loss"])

    seen = Seen()
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[seen], plugins=[SyncBatchNorm()],
        **({"devices": 1} | started()),
    )  # fmt: skip
    loader = EpochLoader(Pairs(), TOTAL // processes, seed=0, rank=trainer.global_rank, world_size=processes)
    trainer.fit(Module(model, epochs=EPOCHS, learning_rate=1e-3), loader)
    if trainer.is_global_zero:
        (Path(folder) / "var-jepa.txt").write_text(" ".join(map(str, seen.losses)))


def main(folder, what, *when):
    place = Path(folder)
    if what == "all":
        for case in CASES:
            run(case, place, 2)
        run_var_jepa(place, 2)
        # the first of its epochs, and the others as the same command goes on
        with mock.patch.object(fsdp2.L, "Trainer", lambda **given: L_TRAINER(**given | {"max_epochs": 1})):
            fsdp2.main("sklearn:digits", place / "fsdp2")
        fsdp2.main("sklearn:digits", place / "fsdp2")
    options = {"out": place / "killed", "checkpoint_seconds": 0.0}
    if what == "resume":
        run("vje", place, 2, **options, resume=True)
    elif what == "terminate":
        run("vje", place, 2, **options, callbacks=[Terminator()])
    elif what == "apart":  # with other images, or fewer, than the first has
        data = digits() if os.environ["RANK"] == "0" else pj.open_images(digits().images[: int(when[0])] ^ 1)
        fit(model_of("vje"), data, batch_size=8, epochs=1, out=place / "apart", progress=False)
    elif what != "all":  # EPOCHS, and when which process is killed
        killer = [Killer(int(when[0]), int(when[1]), float(when[2]))] if when else []
        going_on = (place / "killed" / "checkpoints" / "last.ckpt").is_file()
        run(
            "vje",
            place,
            2,
            **options,
            epochs=int(what),
            callbacks=killer,
            resume=going_on,
            overwrite=not going_on,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
