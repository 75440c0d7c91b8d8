"""An encoder that stays as it is while it is looked at, or while something is trained on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from probjepa.errors import ConfigError

# module → who looks at it, and the mode that the last of them gives back
_LOOKED_AT: WeakKeyDictionary[nn.Module, tuple[set[object], bool]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def refuse_inference(module: nn.Module, name: str) -> None:
    """Raise ConfigError for a module, called ``name``, with weights that were made under inference_mode."""
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise ConfigError(
            f"{name} was made under torch.inference_mode, which bars its weights from gradients for good: "
            "make it outside"
        )


def learns(layer: nn.Module) -> bool:
    """Whether a layer is torch's batch normalisation or dropout, and computes as in training."""
    dropout = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
    return layer.training and (dropout or isinstance(layer, nn.modules.batchnorm._BatchNorm))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode without gradients, and give each sub-module its mode back.

    Where several threads do so at once, the last one gives it back. A Ctrl-C at any moment does so too.
    """
    parts, look = list(module.modules()), object()
    try:
        try:
            with _LOCK:
                for m in parts:
                    if (found := _LOOKED_AT.get(m)) is None:
                        _LOOKED_AT[m] = {look}, m.training
                    else:
                        found[0].add(look)
                module.eval()
            with torch.no_grad():
                yield
        finally:
            _give_back(parts, look)
    except BaseException:
        _give_back(parts, look)  # a Ctrl-C may have cut the first short
        raise


def _give_back(parts: list[nn.Module], look: object) -> None:
    """End a look at modules, or what is left of its end."""
    with _LOCK:
        for m in parts:
            if (found := _LOOKED_AT.get(m)) is None:
                continue
            looks, mode = found
            looks.discard(look)
            if not looks:
                m.training = mode
                del _LOOKED_AT[m]


class Frozen(nn.Module):
    """An encoder in evaluation mode, whatever mode is set, whose parameters take no gradient.

    What the encoder said of images once may be given in their place: embeddings (N, D) pass through.
    Gradients with respect to images flow.
    """

    def __init__(self, module: nn.Module, embedding_dim: int) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.embedding_dim = embedding_dim
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (N, D) of prepared images (N, C, H, W), or of themselves."""
        if x.ndim == 2:
            return x
        h: Tensor = self.module(x)
        return h

    def __getattr__(self, name: str) -> Any:
        """What a method asks of its encoder beside embeddings (``tokens``) is the module's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)
