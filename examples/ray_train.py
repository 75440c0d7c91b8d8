"""Train by the workers of a Ray cluster, with Ray Train's Lightning integration.

    pip install 'probjepa[ray]' 'ray[train]'
    python examples/ray_train.py DATA OUT

DATA is what ``open_images`` takes, OUT a run folder that all workers see. Started again after a
crash, it goes on.
"""

import sys
from pathlib import Path

import ray.train
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
from ray.train.torch import TorchTrainer

from probjepa.methods import METHODS
from probjepa.training import fit


def train(settings: dict) -> None:
    """What each worker does."""
    out = Path(settings["out"])
    fit(
        METHODS["vje"]("convnet", channels=1, image_size=16, seed=0), settings["data"], out=out,
        resume=(out / "config.yaml").is_file(), epochs=2, batch_size=64, progress=False,
        devices="auto", strategy=RayDDPStrategy(), plugins=[RayLightningEnvironment()],
    )  # fmt: skip


def main(data: str, out: str) -> None:
    """Train with two workers; a worker that dies is replaced, and all go on from the last checkpoint."""
    trainer = TorchTrainer(
        train,
        train_loop_config={"data": data, "out": str(Path(out).absolute())},
        scaling_config=ray.train.ScalingConfig(num_workers=2),  # use_gpu=True: a GPU each
        run_config=ray.train.RunConfig(failure_config=ray.train.FailureConfig(max_failures=3)),
    )
    trainer.fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
