"""Anything that maps float tensors to embeddings, as one object: what it takes, and how to prepare it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.fx.experimental.symbolic_shapes  # autograd.grad would import it, and with it sympy's filters
from torch import Tensor, nn

from probjepa._arrays import as_float_tensor
from probjepa.backbones import names_hub
from probjepa.backbones.frozen import learns, refuse_inference
from probjepa.backbones.hub import load_pretrained
from probjepa.data import Images, Preprocess, as_images
from probjepa.errors import ConfigError, DataError
from probjepa.methods.base import Method
from probjepa.registry import LOADERS

Pooling = Literal["cls", "mean"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A differentiable map f from a float tensor (N, …) to embeddings (N, K).

    The Jacobian is taken with respect to what ``forward`` is given: *prepared* inputs, which for images are
    resized, cropped and normalised pixels (as in the paper's code). Pixels in [0, 1] would add
    −Σ log std to a square Jacobian's log-volume and reweigh the channels of any other.

    Attributes
    ----------
    forward
        f
    module
        the module behind f, whose parameters are frozen while derivatives are taken; None: not known
    preprocess
        uint8 images (N, C, H, W) → what f takes; None: f takes float tensors only, prepared ones
    name
        for messages
    """

    forward: Callable[[Tensor], Tensor]
    module: nn.Module | None
    preprocess: Callable[[Tensor], Tensor] | None
    name: str

    def to(self, device: torch.device) -> Encoder:
        """Move the module to a device, and return the encoder."""
        if self.module is not None:
            self.module.to(device)
        return self

    def source(self, inputs: Any) -> Tensor | Images:
        """Return N inputs to be read in batches: images for its preprocessing, or else prepared floats.

        Raises
        ------
        DataError
            as ``open_images`` with a preprocessing, or for what is no tensor or array (N, …)
        """
        if self.preprocess is not None:
            images = as_images(inputs, getattr(self.preprocess, "opened", None))
            if not len(images):
                raise DataError(f"{images.name} has no images: pass at least one")
            return images
        if isinstance(inputs, np.ndarray):
            if inputs.dtype.kind not in "fui":
                raise DataError(f"the inputs are an array of {inputs.dtype}: pass prepared floats")
            if inputs.dtype.kind == "f":
                inputs = as_float_tensor(inputs, "the inputs")
            else:
                inputs = torch.from_numpy(np.array(inputs, dtype=inputs.dtype.newbyteorder("=")))
        if not isinstance(inputs, Tensor | Images):
            raise DataError(
                f"images are a {type(inputs).__name__}: pass a tensor or array (N, …), or an opened set"
            )
        if (isinstance(inputs, Tensor) and inputs.ndim < 2) or not len(inputs):
            raise DataError(f"images have shape {tuple(inputs.shape)}: pass at least one, (N, …)")
        return inputs

    def prepare(self, images: Tensor) -> Tensor:
        """Return what ``forward`` takes, on the encoder's device and in its floating type.

        With a preprocessing, ``images`` are uint8 or floats in [0, 1]; without, they are prepared floats.

        Raises
        ------
        DataError
            for integers without a preprocessing, or NaN and Inf
        """
        if self.preprocess is not None:
            images = self.preprocess(as_images(images).get(slice(None)))
        if not images.is_floating_point():
            raise DataError(
                f"{self.name} takes float tensors, and these are {str(images.dtype).removeprefix('torch.')}: "
                "pass them as the encoder was trained on them (normalised)"
            )
        like = None if self.module is None else next(self.module.parameters(), None)
        if like is not None and like.is_floating_point():
            images = images.to(like.device, like.dtype)
        finite = torch.isfinite(images).flatten(1).all(1)
        if not bool(finite.all()):
            raise DataError(f"input {int(finite.int().argmin())} holds NaN or Inf: repair or remove it")
        return images


def as_encoder(encoder: Any, *, pooling: Pooling | None = None, image_size: int | None = None) -> Encoder:
    """Make an ``Encoder`` of a model.

    Parameters
    ----------
    encoder
        a method of this library; any torch module or callable, float (N, …) → (N, K); ``"hf:NAME"``
        (transformers) or ``"timm:NAME"``, NAME a hub's or a local folder; another string or path: a saved
        model of this library, as ``probjepa.load`` takes it
    pooling
        of ``hf:`` and ``timm:`` token models: "cls", "mean" (of the patch tokens); None: timm's
        models pool as they do themselves, others take the class token where there is one
    image_size
        side of the images that it is given, see ``probjepa.open_encoder``; None: its own

    Raises
    ------
    ConfigError
        for something that cannot be called, or a pooling or size where there is none to choose
    MissingExtraError
        where transformers or timm is not installed
    """
    if image_size is not None:
        encoder, pooling = LOADERS["encoder"](encoder, image_size=image_size, pooling=pooling), None
    if names_hub(encoder):
        module, settings = load_pretrained(encoder, pooling)
        return Encoder(module, module, None if settings is None else Preprocess(**settings), encoder)
    if pooling is not None:
        raise ConfigError("pooling goes with 'hf:' and 'timm:' encoders: this one pools by itself")
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str | Path):
        encoder = LOADERS["saved model"](encoder)
    if isinstance(encoder, Method):
        return Encoder(encoder.encoder, encoder.encoder, encoder.preprocess, type(encoder).__name__)
    if isinstance(encoder, nn.Module):
        return Encoder(encoder, encoder, None, type(encoder).__name__)
    if not callable(encoder):
        raise ConfigError(
            f"an encoder cannot be made of a {type(encoder).__name__}: pass a model, a torch module, "
            "a callable (N, …) → (N, K), 'hf:NAME' or 'timm:NAME'"
        )
    owner = getattr(encoder, "__self__", None)
    name = getattr(encoder, "__name__", type(encoder).__name__)
    return Encoder(encoder, owner if isinstance(owner, nn.Module) else None, None, name)


@contextmanager
def exact_gradients(encoder: Encoder) -> Iterator[None]:
    """Derivatives in full precision and of the input only, whatever surrounds the call.

    Gradients are on (also under ``no_grad`` and ``inference_mode``), autocast and TF32 are off, and the
    parameters are frozen; all of it is put back afterwards. Raises ConfigError for parameters that were made
    under ``inference_mode``.
    """
    if encoder.module is not None:
        refuse_inference(encoder.module, encoder.name)
    parameters = [] if encoder.module is None else list(encoder.module.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    kinds = {"cpu", *(parameter.device.type for parameter in parameters)}
    if torch.cuda.is_available():
        kinds.add("cuda")
    switches = _precision_switches()
    precisions = [getattr(owner, name) for owner, name, _ in switches]
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
    try:
        for owner, name, exact in switches:
            setattr(owner, name, exact)
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for (owner, name, _), precision in zip(switches, precisions, strict=True):
            setattr(owner, name, precision)
        for kind, on in autocast.items():
            torch.set_autocast_enabled(kind, on)
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


def _precision_switches() -> list[tuple[Any, str, Any]]:
    """Where torch keeps the precision of float32 products: (owner, attribute, value for full precision)."""
    backends: Any = torch.backends  # torch's own annotations do not have all of these
    if hasattr(backends.cudnn, "conv"):
        # reading the older switches below raises once a user has set one of these
        owners = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
        return [(owner, "fp32_precision", "ieee") for owner in owners]
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]


def refuse_batch_dependence(encoder: Encoder, x: Tensor) -> None:
    """Refuse an encoder whose embedding of an input depends on the rest of its batch, or on chance.

    The modules are looked through for batch statistics and dropout; then a pair of inputs is encoded twice,
    which also finds what a callable or a functional form hides.

    Parameters
    ----------
    x
        one prepared input (1, …)

    Raises
    ------
    ConfigError
        one line that says how to mend it
    """
    advice = "call .eval() on it first"
    for path, part in [] if encoder.module is None else encoder.module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if learns(part):
                raise ConfigError(
                    f"{encoder.name}: batch norm '{path}' is in training mode, so that an embedding depends "
                    f"on its batch: {advice}"
                )
            if part.running_mean is None:
                raise ConfigError(
                    f"{encoder.name}: batch norm '{path}' keeps no running statistics, so that an embedding "
                    "depends on its batch: build it with track_running_stats=True"
                )
        elif learns(part):
            raise ConfigError(f"{encoder.name}: dropout '{path}' is on: {advice}")
    pair = torch.cat([x, 0.999 * x]).requires_grad_()  # near x: f need not be defined further off
    out = embeddings(encoder, pair)
    with torch.no_grad():
        again = encoder.forward(pair.clone())
    size = float(out.detach().nan_to_num(0, 0, 0).abs().max())
    if not torch.allclose(out, again, rtol=1e-3, atol=1e-5 * size, equal_nan=True):
        raise ConfigError(f"{encoder.name}: two runs on the same input differ (dropout?): {advice}")
    weights = torch.linspace(-1, 2, out.shape[1], device=out.device, dtype=out.dtype)
    (gradient,) = torch.autograd.grad(out[0] @ weights, pair)
    if bool((gradient[1].nan_to_num() != 0).any()):  # NaN: an infinite derivative times 0
        raise ConfigError(
            f"{encoder.name}: the embedding of an input depends on the others of its batch: "
            f"{advice}, or take the batch statistics out"
        )


def embeddings(encoder: Encoder, x: Tensor) -> Tensor:
    """Return f(x) (N, K), with its graph, or raise a ConfigError if it is no such thing."""
    return checked_embeddings(encoder, x, encoder.forward(x.clone()))  # f may work in place, as a ReLU can


def checked_embeddings(encoder: Encoder, x: Tensor, out: Any) -> Tensor:
    """Return what f made of x, if that is embeddings (N, K) with a graph; errors as ``embeddings``."""
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x) or not out.is_floating_point():
        found = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"{encoder.name} returned {found} for inputs {tuple(x.shape)}: it must return one embedding "
            "an input, a float tensor (N, K); add pooling or flatten its output"
        )
    if not out.requires_grad:
        raise ConfigError(
            f"{encoder.name} returned embeddings without a graph: take no_grad or detach out of it, "
            "and pass its differentiable forward"
        )
    return out
