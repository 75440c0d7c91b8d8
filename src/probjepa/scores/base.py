"""The contract of every score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from probjepa.errors import ConfigError
from probjepa.typed import check_plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Values: TypeAlias = npt.NDArray[np.float64]

#: what a model says of N inputs: "h" (N, D), and what else its ``features`` have; "inputs": themselves
Features: TypeAlias = Mapping[str, Any]


class Score(ABC):
    """A score of inputs under a model: higher = more typical.

    Examples
    --------
    A score sets ``name`` and ``summary``, and writes ``score``; with a reference set, also ``fit``:

    >>> class Norm(Score):
    ...     name, summary = "norm", "length of the embedding"
    ...
    ...     def score(self, features):
    ...         return (features["h"] ** 2).sum(1) ** 0.5
    >>> from probjepa.scores import SCORES
    >>> SCORES.register("norm", Norm) is Norm
    True
    >>> SCORES.remove("norm")

    Parameters
    ----------
    model
        a method, or what has its ``features``; scores of embeddings alone do without
    seed
        of what is drawn in ``fit``
    progress
        show a bar where a score takes long

    Attributes
    ----------
    name, summary, paper
        its name, one line on it, and the address of its paper
    needs
        out of "reference" (``fit`` comes first) and "gradients" (it reads ``features["inputs"]``)
    own
        whether it reads what the model says beside its embeddings: ``lacking`` tells which models say it
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    own: ClassVar[bool] = False

    def __init__(self, model: Any = None, *, seed: int = 0, progress: bool = False) -> None:
        self.model = model
        self.seed = check_plain("seed", seed, int)
        self.progress = progress

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        """Say what a model lacks to have this score, as an error message; None: it has the score."""
        return None

    @classmethod
    def unfitted(cls) -> ConfigError:
        """Return the error for a score without its reference set."""
        return ConfigError(f"the score '{cls.name}' needs a reference set: pass --reference URI")

    def fit(self, reference: Features) -> Self:
        """Fit to the features of typical inputs; here there is nothing to fit."""
        return self

    @abstractmethod
    def score(self, features: Features) -> Values:
        """Return the score (N,) float64 of N inputs.

        Raises
        ------
        ConfigError
            before ``fit``, of a score that needs it
        """

    def left_out(self) -> Values | None:
        """Return the score of each row of the reference among the others; None: it has no such score."""
        return None

    def parts(self, features: Features) -> dict[str, Values]:
        """Return what else there is to say of N inputs, by name, each (N,)."""
        return {}

    def columns(self, features: Features) -> dict[str, Values]:
        """Return what a comparison of scores shows of this one: itself, by its name."""
        return {self.name: self.score(features)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, seed={self.seed})"
