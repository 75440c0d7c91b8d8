"""What the likelihoods share: full precision, shapes that print, no samples of what is no full density."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution


def at_least_float32(x: Tensor) -> Tensor:
    """Return x, in float32 if its type is narrower; ValueError for complex numbers."""
    if x.is_complex():
        raise ValueError("got complex numbers: give their real parts, or their absolute values")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which autocast is off on the device of ``x``, where that has any."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@contextmanager
def unchecked() -> Iterator[None]:
    """Context in which torch's distributions do not look at their parameters, which a graph cannot.

    PyTorch's compiler turns the checks off for the whole process at its first use; here they come back.
    """
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)


class FullPrecision(nn.Module):
    """A module that stays in float32 or float64: ``half`` and ``bfloat16``, of its parent too, pass it by.

    Likelihoods and pixels need the digits. For speed there is autocast.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def wide(x: Tensor) -> Tensor:
            out = fn(x)
            narrow = out.is_floating_point() and out.dtype.itemsize < 4
            return at_least_float32(x).to(out.device) if narrow else out

        applied: Self = super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return applied


class Likelihood(Distribution):
    """A torch distribution that prints its shapes and its parameters, named in ``shown``."""

    shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        parts = {"batch_shape": self._batch_shape, "event_shape": self._event_shape}
        parts |= {name: _printed(getattr(self, name)) for name in self.shown}
        return f"{type(self).__name__}({', '.join(f'{name}: {part}' for name, part in parts.items())})"


def _printed(value: Any) -> Any:
    """A number as it is, a tensor of several numbers by its shape: as torch prints its distributions."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.numel() == 1 else value.shape


class SubDensity(Likelihood):
    """A density whose mass is below 1: a log-density, without samples, mean or variance.

    A sub-class says in ``lost`` where the rest of the mass went.
    """

    has_rsample = False
    lost: ClassVar[str]

    def rsample(self, sample_shape: Any = ()) -> NoReturn:
        """Raise NotImplementedError, as ``sample`` does: no random vector has a mass below 1."""
        raise self._missing("samples")

    @property
    def mean(self) -> Tensor:
        """Raises NotImplementedError, as there are no samples."""
        raise self._missing("mean")

    @property
    def variance(self) -> Tensor:
        """Raises NotImplementedError, as there are no samples; ``scale_squared`` is the σ² that was given."""
        raise self._missing("variance")

    def _missing(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no {what}: its mass is below 1 ({self.lost})")
