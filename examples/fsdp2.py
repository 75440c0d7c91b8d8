"""Train a vision transformer whose weights are spread over the processes (FSDP2).

    torchrun --nproc-per-node 2 examples/fsdp2.py DATA OUT

For models that are too large for one device. DATA is what ``open_images`` takes. It writes OUT/last.ckpt
after each epoch, from which the same command goes on, and OUT/model.
"""

import sys
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

import probjepa as pj
from probjepa.data import Images
from probjepa.launch import started
from probjepa.training import EpochLoader
from probjepa.training.module import Module

EPOCHS, BATCH, SIZE = 2, 64, 16  # images of each process, and their side
VIT = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}  # ViT-L/16: 16, 1024, 24, 16


class Sharded(Module):
    """A method whose transformer blocks are gathered one at a time."""

    def configure_model(self) -> None:
        """Spread the weights; Lightning calls it once the processes know each other."""
        mesh = self.device_mesh["data_parallel"]
        for part in self.method.modules():
            for block in part if isinstance(part, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh)
        fully_shard(self.method, mesh=mesh)
        register_fsdp_forward_method(self.method, "loss")  # training calls loss, and not forward


def make(images: Images) -> pj.IJEPA:
    """The method to train."""
    settings = {"predictor_width": 16, "predictor_depth": 1, "backbone_options": VIT}
    method = pj.IJEPA(channels=images.channels, image_size=images.size, seed=0, **settings)
    method.calibrate(images.get(slice(0, 10_000)))
    return method


def main(data: str, out: Path) -> None:
    """Train, and save the model as one that ``probjepa.load`` opens."""
    images = pj.open_images(data, size=SIZE)
    options = started()
    if not options:
        sys.exit("start it by torchrun, with two processes or more")
    processes = options["devices"] * options["num_nodes"]
    options["strategy"] = ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    # after each epoch, in the place of the last
    keep = ModelCheckpoint(out, "last", enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="auto", logger=False, enable_model_summary=False, callbacks=[keep],
        **options,
    )  # fmt: skip
    loader = EpochLoader(images, BATCH, seed=0, rank=trainer.global_rank, world_size=processes)
    last = out / "last.ckpt"
    module = Sharded(make(images), epochs=EPOCHS, learning_rate=1e-3)
    trainer.fit(module, loader, ckpt_path=last if last.is_file() else None, weights_only=True)
    weights = trainer.strategy.lightning_module_state_dict()  # whole, on the first process
    if trainer.is_global_zero:
        trained = make(images)
        trained.load_state_dict({name.removeprefix("method."): value for name, value in weights.items()})
        trained.save_pretrained(out / "model")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
