"""Several processes that train together: images of each, and batch statistics of all their rows."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.plugins import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn

from probjepa.data.streams import lane_count
from probjepa.distributed import summed
from probjepa.errors import ConfigError
from probjepa.yaml_files import read_mapping


def batch_size_of_each(config: Path, batch_size: int, processes: int) -> int:
    """Return the images a step of each process where a run is resumed by another number of processes.

    Together they take as many as those that began: the curve goes on. A ``batch_size`` that is not the one
    in the run's config.yaml stays as it is.

    Raises
    ------
    ConfigError
        if the processes cannot share a step's images evenly
    """
    record = read_mapping(config)
    were = record.get("processes")
    if record.get("batch_size") != batch_size or not isinstance(were, int) or were == processes:
        return batch_size
    images = batch_size * were
    if images % processes:
        raise ConfigError(
            f"a step of this run takes {images} images, which {processes} processes cannot share: "
            "resume it with a number that divides them"
        )
    return images // processes


def check_lanes(config: Path, processes: int) -> None:
    """Raise ConfigError where so many processes read streamed shards in another order than the run before."""
    lanes = read_mapping(config).get("stream_lanes")
    if isinstance(lanes, int) and lane_count(processes) != lanes:
        counts = [str(count) for count in range(1, lanes + 1) if lane_count(count) == lanes]
        raise ConfigError(
            f"{processes} processes read streamed shards in another order than those that began this run: "
            f"resume it with as many, or with one of these numbers: {', '.join(counts)}"
        )


def lost_another(error: Exception) -> bool:
    """Whether an error says that another process of the run is gone."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


class SyncBatchNorm(LayerSync):
    """Lightning plugin: batch normalisation by the rows of all processes, on a CPU; PyTorch's takes GPUs.

    The layers stay the objects that they are, and are their old selves again when training ends. One with a
    forward pass of its own (timm's, with an activation) is as it was in evaluation mode, and is refused where
    it is trained.
    """

    def __init__(self) -> None:
        self._before: dict[nn.Module, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise every layer of batch normalisation."""
        for layer in model.modules() if torch.distributed.get_world_size() > 1 else ():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, _Synchronised):
                kind = self._before[layer] = type(layer)
                layer.__class__ = type(kind.__name__, (_Synchronised, kind), {"kind": kind})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Make the layers what they were."""
        while self._before:
            layer, kind = self._before.popitem()
            layer.__class__ = kind
        return model


class TorchSync(TorchSyncBatchNorm):
    """Lightning's plugin for GPUs; it would drop what a layer's own forward pass does beside."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise every layer of batch normalisation; ConfigError for one of the user's own."""
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                _refuse_own(type(layer))
        converted: nn.Module = super().apply(model)
        return converted


def _refuse_own(kind: type[nn.Module]) -> None:
    """Raise ConfigError for a kind of batch normalisation whose forward pass is not PyTorch's."""
    if not kind.forward.__module__.startswith("torch.nn."):
        raise ConfigError(
            f"a {kind.__name__} has a forward pass of its own, which several processes cannot synchronise: "
            "pass sync_batchnorm=False, train in one process, or freeze the encoder"
        )


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    kind: type[nn.Module]

    def _check_input_dim(self, input: Tensor) -> None:
        """Take what the layer has taken so far."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)  # the layer's own
        _refuse_own(self.kind)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype.itemsize < 4 else x
            shape = [1, -1, *[1] * (x.ndim - 2)]
            count = wide.numel() / wide.shape[1] * torch.distributed.get_world_size()
            mean = summed(wide.sum(axes)) / count
            centred = wide - mean.view(shape)
            variance = summed(centred.square().sum(axes)) / count
            out = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                out = out * self.weight.view(shape) + self.bias.view(shape)
            if self.running_mean is not None and self.running_var is not None:
                unbiased = variance.detach() * count / max(count - 1, 1)
                self._follow(self.running_mean, self.running_var, mean.detach(), unbiased)
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, means: Tensor, variances: Tensor, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        means.lerp_(mean.to(means.dtype), momentum)
        variances.lerp_(variance.to(variances.dtype), momentum)
