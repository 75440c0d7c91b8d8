"""Look at an encoder once: its dimensions, its memory, its first layer; then choose estimator and chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probjepa.errors import ConfigError
from probjepa.jacobian.encoders import Encoder, checked_embeddings, embeddings, refuse_batch_dependence
from probjepa.jacobian.estimators import SKETCH_ROW_BLOCKS, Rank
from probjepa.jacobian.memory import fitting
from probjepa.jacobian.rows import Passes, live_rows, worthwhile_batch

Estimator = Literal["exact", "folded", "sketch", "slq", "subspace", "calibrated"]


@dataclass(frozen=True)
class Plan:
    """What was chosen for an encoder and the shape of its inputs, and why.

    Attributes
    ----------
    estimator
        never "auto"; "calibrated" is found out later
    reason
        half a sentence for people
    chunk_size
        inputs at a time, to begin with
    passes
        how derivatives are taken
    dim
        K
    few_columns
        whether P < K
    """

    estimator: Estimator
    reason: str
    chunk_size: int
    passes: Passes
    dim: int
    few_columns: bool


def make_plan(encoder: Encoder, x: Tensor, estimator: str, rank: Rank, chunk_size: int | None) -> Plan:
    """Choose, from one prepared input (1, …).

    "auto" is "folded" where the first layer is a convolution over non-overlapping patches with at most as
    many channels as a patch has numbers, else "exact"; and "sketch" where the Jacobian of one input does not
    go into half of the free memory. It never picks an approximation that is biased (slq, subspace).

    Raises
    ------
    ConfigError
        for an encoder that depends on its batch, or "folded" without such a first layer
    """
    refuse_batch_dependence(encoder, x)
    saved = _SavedBytes(encoder.module)
    with torch.autograd.graph.saved_tensors_hooks(saved, _itself):
        dim = embeddings(encoder, x.clone().requires_grad_()).shape[1]
    patchify = find_patchify(encoder, x) if estimator in ("auto", "folded") else None
    if estimator == "folded" and patchify is None:
        raise ConfigError(
            f"{encoder.name}: estimator='folded' needs a first layer that is a convolution over "
            "non-overlapping patches (kernel = stride, no padding), used once: use 'exact'"
        )
    width = x[0].numel()
    # rows, their 64-bit block and spectrum; activations twice: a backward pass has about as many alive
    jacobian = dim * (width * x.element_size() + 3 * 8 * dim)
    activations = 2 * saved.bytes
    if estimator == "auto":
        if fitting(jacobian + activations, x.device) < 1 and not isinstance(rank, int):
            chosen, reason = "sketch", "the Jacobian of one input does not go into half of the free memory"
        elif patchify is not None and patchify.out_channels <= patchify.weight[0].numel():
            chosen, reason = "folded", "the first layer is a patch embedding: exact, with fewer numbers"
        else:
            chosen, reason = "exact", "no patch embedding comes first"
    else:
        chosen, reason = estimator, "as asked"
    held = {"sketch": jacobian // SKETCH_ROW_BLOCKS, "slq": 0}.get(chosen, jacobian)
    live = _live_rows(encoder, x) if chosen in ("exact", "folded") else None
    # a column costs about as much as two rows
    forward = live is not None and 2 * width <= dim
    # of few columns another input's zero rows would not be seen either, see exact_spectrum
    skips = live is not None and not forward and (width < dim or not bool(live.all()))
    if chosen == "slq" or forward or skips:
        activations *= 3  # the graph of the first derivative stays too
    if chunk_size is None:
        chunk_size = max(1, min(fitting(held + activations, x.device), largest_chunk(x.device, width)))
    return Plan(
        estimator=chosen,  # type: ignore[arg-type]
        reason=reason,
        chunk_size=chunk_size,
        passes=Passes(
            least_batch=max(1, min(fitting(activations, x.device), worthwhile_batch(x.device))),
            patchify=patchify if chosen == "folded" else None,
            skip_zero_rows=skips,
            forward=forward,
            channels_last=_takes_channels_last(encoder, x),
        ),
        dim=dim,
        few_columns=width < dim,
    )


def largest_chunk(device: torch.device, width: int) -> int:
    """How many inputs of ``width`` numbers fill a device in a backward pass: larger chunks gain no speed."""
    return max(8, (2**24 if device.type == "cuda" else 2**18) // width)


def _live_rows(encoder: Encoder, x: Tensor) -> Tensor | None:
    """Rows that are not zero, or None where something in the encoder has no second derivative."""
    try:
        return live_rows(encoder, x)
    except (RuntimeError, NotImplementedError):
        return None


def _takes_channels_last(encoder: Encoder, x: Tensor) -> bool:
    """Whether an encoder of images runs on a CPU with each pixel's channels side by side in memory.

    Convolutions are up to three times as fast so. What is no image (1, C, H, W) raises, and so does an
    operation that asks for another order, as ``view`` does.
    """
    if x.device.type != "cpu":
        return False
    try:
        again = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        torch.autograd.grad(embeddings(encoder, again).sum(), again)
    except RuntimeError:
        return False
    return True


class _SavedBytes:
    """Counts the memory that a forward pass of one input keeps for its backward, besides the weights.

    By storage: a tensor that is kept twice, or as two views, takes its memory once, and a view of a weight,
    as a linear layer's transposed one, takes none.
    """

    def __init__(self, module: nn.Module | None) -> None:
        weights = [] if module is None else [*module.parameters(), *module.buffers()]
        self._seen = {_memory(weight)[0] for weight in weights}
        self.bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        address, size = _memory(tensor)
        if address not in self._seen and not isinstance(tensor, nn.Parameter):
            self._seen.add(address)
            self.bytes += size
        return tensor


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers are, and how many bytes they take; a sparse one has no single place."""
    if tensor.layout is not torch.strided:
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def find_patchify(encoder: Encoder, x: Tensor) -> nn.Conv2d | None:
    """Return the convolution over non-overlapping patches that is all that the encoder does with x, if any.

    Found by running it: the convolution is applied once, to x itself and all of it, and nothing else in the
    encoder's graph leads to x.
    """
    parts = [] if encoder.module is None else encoder.module.modules()
    eligible = [part for part in parts if isinstance(part, nn.Conv2d) and _is_patchify(part)]
    calls: list[nn.Conv2d] = []
    of_x: list[nn.Conv2d] = []
    probe = x.detach().clone().requires_grad_()
    given = probe.clone()
    unchanged = given._version

    def watch(module: nn.Conv2d, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        calls.append(module)
        if not inputs or inputs[0].data_ptr() != given.data_ptr() or inputs[0].shape != given.shape:
            return None
        if inputs[0]._version != unchanged:  # normalised in place, say
            return None
        of_x.append(module)
        return output.detach().requires_grad_()

    handles = [part.register_forward_hook(watch) for part in eligible]
    try:
        out = checked_embeddings(encoder, probe, encoder.forward(given))
    except ConfigError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    if len(of_x) != 1 or calls.count(of_x[0]) != 1:
        return None
    (other,) = torch.autograd.grad(out.sum(), probe, allow_unused=True)
    return of_x[0] if other is None else None


def _is_patchify(part: nn.Conv2d) -> bool:
    plain = part.groups == 1 and part.dilation == (1, 1) and part.padding in ((0, 0), "valid")
    return plain and tuple(part.kernel_size) == tuple(part.stride)
