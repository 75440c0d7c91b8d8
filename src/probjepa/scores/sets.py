"""Encode a set once, then score it: by the model's own densities or by a detector on its embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa._arrays import as_features, as_float_tensor
from probjepa.data import Images
from probjepa.data.overlap import pixel_hashes, refuse_overlap, same_images
from probjepa.draws import sample_rows
from probjepa.errors import ConfigError, DataError, unknown_name
from probjepa.scores import SCORES
from probjepa.scores.base import Score
from probjepa.scores.own import Own, own_names, uncertainty
from probjepa.scores.table import leaves_one_out, score_class
from probjepa.terminal import tracked
from probjepa.typed import check_plain

if TYPE_CHECKING:
    from probjepa.scores.base import Values


def encode(
    method: Any, images: Images, *, batch_size: int = 512, progress: bool = False, scored: bool = True
) -> dict[str, Tensor]:
    """Encode a set once: the method's ``features`` by name, (N, …) on the CPU.

    A set that is not ``scored`` by the method's own measures may have its embeddings alone. DataError for an
    empty set.
    """
    if not len(images):
        raise DataError(f"{images.name} is empty: give at least one image")
    total = -(-len(images) // batch_size)
    parts = [
        {k: v.cpu() for k, v in method.features(batch, batch_size, scored=scored).items()}
        for batch, _ in tracked(images.batches(batch_size), f"encoding {images.name}", total, shown=progress)
    ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


class TableSubject:
    """A fitted estimator of tables in the words of ``ProbabilisticMethod``, for scores to read."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def open(self, table: Any) -> Any:
        """Return a table of any kind as a DataFrame of the fit's columns."""
        schema = getattr(self.estimator, "schema_", None)  # one that is not fitted says so later
        return table if schema is None or not len(table) else schema.frame(table)

    def score_names(self) -> list[str]:
        """Return "likelihood" where the estimator has one."""
        return ["likelihood"] if hasattr(self.estimator, "score_samples") else []

    def features(self, table: Any, *, scored: bool = True) -> dict[str, Tensor]:
        """Return the embeddings "h" of a table's rows, and where these are ``scored`` the "likelihood"."""
        # a frame where ``set_output`` asks for one
        found = {"h": as_features(self.estimator.transform(table), "the embeddings")}
        if scored and self.score_names():
            found["likelihood"] = as_float_tensor(self.estimator.score_samples(table), "the likelihood")
        return found

    def ood_scores(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the likelihood, if there is one."""
        return {name: features[name] for name in self.score_names()}

    def parts(self, table: Any, score: str) -> dict[str, Values]:
        """Return the rows' "uncertainty".

        With the likelihood also the "predictive_entropy", where the estimator has one (how ambiguous a row
        is, in nats), and the "surprise." of the cells.
        """
        found: dict[str, Values] = {}
        if hasattr(self.estimator, "uncertainty"):
            found["uncertainty"] = self.estimator.uncertainty(table)
        if score == "likelihood":
            if hasattr(self.estimator, "uncertainty_features"):
                expected = np.asarray(self.estimator.uncertainty_features(table), dtype=np.float64)
                found["predictive_entropy"] = expected.mean(1)
            if hasattr(self.estimator, "score_features"):
                surprise = self.estimator.score_features(table)
                found |= {f"surprise.{name}": surprise[name].to_numpy() for name in surprise.columns}
        return found


class SetScorer:
    """A score of a model, fitted to its reference set once: called on a set, it returns its scores.

    Parameters
    ----------
    model
        a method, with images as its ``open`` takes them; or a fitted table estimator, with a DataFrame of its
        columns
    score
        one of ``SCORES``, a class that could be one, or another of the model's own label-free scores
        (``ood_scores``: VJE's "radial" or "kl", say)
    reference
        typical inputs, of the kind that is scored, for a score that needs them
    reference_size
        take so many rows of the reference, drawn at random by ``seed``, if it has more; None: all
    seed
        of what a score draws in its fit
    progress
        show bars

    Attributes
    ----------
    embeddings
        (N, D) of the set that was scored last; None where the score needs none

    Raises
    ------
    ConfigError
        for an unknown score, one that the model does not have, or a missing (or needless) reference
    """

    def __init__(
        self,
        model: Any,
        score: str | type,
        *,
        reference: Any = None,
        reference_size: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self._progress = progress
        self._subject = _subject(model)
        self._table = isinstance(self._subject, TableSubject)
        self._open = getattr(self._subject, "open", lambda data: data)
        self._kind = kind = check_score(model, score, reference, reference_size)
        self._reference: Any = None if reference is None else self._open(reference)
        if self._reference is not None and not len(self._reference):
            raise DataError("the reference set is empty: give typical inputs")
        self._score = kind(self._subject, seed=seed, progress=progress)  # checks the seed, too
        self._drawn = None if self._reference is None else draw(len(self._reference), reference_size, seed)
        self._fitted = self._reference is None
        self._hashes: npt.NDArray[np.uint64] | None = None  # of the reference
        self.embeddings: Tensor | None = None

    def __call__(
        self, data: Any, *, calibration: bool = False, part: bool = False
    ) -> tuple[Values, dict[str, Values]]:
        """Score N inputs: the score (N,), and its named parts, each (N,).

        The parts are the score's own and, where the model has them, its measures of uncertainty. If the
        inputs are the reference itself, "knn" and "predictive" compare each with the others, but not where
        they are of a ``calibration`` set, or a ``part`` of the inputs.

        Raises
        ------
        DataError
            if any input is in the reference set, and not all are or the score cannot leave one out; for a
            set without inputs, or a score that is NaN
        """
        data = self._open(data)
        if not len(data):
            raise DataError("there is nothing to score: give at least one input")
        compares = self._reference is not None and not (calibration or part)
        compares = compares and leaves_one_out(self._kind)
        alone = compares and self._same(data)
        if self._reference is not None and not self._table and not alone:
            what = "calibration images" if calibration else "images to score"
            if self._hashes is None:
                self._hashes = pixel_hashes(self._reference)
            refuse_overlap(data, self._hashes, of=what)
        features = {"inputs": data}
        measured = hasattr(self._subject, "uncertainty_of_features")
        if measured or "gradients" not in self._kind.needs:
            features |= self._read(data, own=self._kind.own or measured)
        self.embeddings = features.get("h")
        if alone and self._drawn is not None:
            raise ConfigError(
                "reference_size is of a reference set beside the scored one: leave one of both out"
            )
        values = self._score.fit(features).left_out() if alone else None
        self._fitted = self._fitted and not alone
        if values is None:
            if not self._fitted:
                known = self._reference
                if self._drawn is not None:
                    known = known.iloc[self._drawn] if self._table else known.subset(self._drawn)
                self._score.fit({"inputs": known} | self._read(known, own=False))
                self._fitted = True
            values = self._score.score(features)
        if wrong := int(np.isnan(values).sum()):
            raise DataError(
                f"the score '{self._kind.name}' is NaN for {wrong} of {len(values)} inputs: check the model"
            )
        more = self._subject.parts(data, self._kind.name) if self._table else {}
        return values, self._score.parts(features) | uncertainty(self._subject, features) | more

    def _same(self, data: Any) -> bool:
        """Whether these are the rows of the reference."""
        known: Any = self._reference
        return bool(data.equals(known)) if self._table else same_images(data, known)

    def _read(self, data: Any, *, own: bool) -> dict[str, Tensor]:
        if isinstance(data, Images):
            return encode(self._subject, data, progress=self._progress, scored=own)
        features: dict[str, Tensor] = self._subject.features(data, scored=own)
        return features


def check_score(
    model: Any, score: str | type, reference: Any = None, reference_size: int | None = None
) -> type[Score]:
    """Return the class of a model's score, checked without looking at any input: before data are read.

    Of ``reference`` only whether there is one matters.

    Raises
    ------
    ConfigError
        as ``SetScorer``
    """
    subject = _subject(model)
    table = isinstance(subject, TableSubject)
    kind = _kind(subject, score, table)
    if (lacking := kind.lacking(subject)) is not None:
        raise ConfigError(lacking)
    if table and reference is None and "reference" in kind.needs:
        raise ConfigError(f"--score {kind.name} needs --reference, a table of typical rows")
    if reference is None and "reference" in kind.needs:
        raise kind.unfitted()
    if reference is not None and kind.fit is Score.fit:
        raise ConfigError(f"the score '{kind.name}' uses no reference set: leave --reference out")
    if reference is None and reference_size is not None:
        raise ConfigError("reference_size goes with a reference set: give both, --reference URI")
    check_size(reference_size)
    return kind


def _subject(model: Any) -> Any:
    """What is scored: an image model itself, or the reader of a table's model."""
    return TableSubject(model) if hasattr(model, "transform") else model


def check_size(size: int | None) -> None:
    """Raise ConfigError for a ``reference_size`` that is no whole number, or below 2."""
    check_plain("reference_size", size, int | None)
    if size is not None and size < 2:
        raise ConfigError(f"reference_size is {size}: give at least 2 rows")


def draw(count: int, size: int | None, seed: int) -> npt.NDArray[np.intp] | None:
    """Return ``size`` of ``count`` rows, drawn at random, ascending; None where that is all of them.

    Raises
    ------
    ConfigError
        for a size below 2, or that is no whole number
    """
    check_size(size)
    if size is None or size >= count:
        return None
    rows: npt.NDArray[np.intp] = sample_rows(count, size, seed).numpy()
    return rows


def score_set(model: Any, data: Any, score: str | type, **options: Any) -> tuple[Values, dict[str, Values]]:
    """Score a set of N images, or the N rows of a table: the score (N,), and its named parts, each (N,).

    ``SetScorer(model, score, **options)(data)``: see there. Of its ``reference``, no row may be in ``data``,
    but for "knn" and "predictive" the two may be one.

    Raises
    ------
    ConfigError, DataError
        as ``SetScorer``
    """
    return SetScorer(model, score, **options)(data)


def _kind(subject: Any, score: str | type, table: bool) -> type[Score]:
    """The class of a score by name, the model's own among them."""
    if not isinstance(score, str):
        return score_class(score)
    if table:
        known = {
            *subject.score_names(),
            *(name for name in SCORES if score_class(name).lacking(subject) is None),
        }
        if score not in {*known, "likelihood"}:  # that one is known, and its lack is said by itself
            raise unknown_name("score of tables", score, known)
    if score in SCORES:
        return score_class(score)
    own = own_names(subject)
    if score not in own:
        raise unknown_name("score", score, {*SCORES, *own})
    return Own.named(score)
