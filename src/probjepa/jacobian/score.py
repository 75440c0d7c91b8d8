"""JEPA-SCORE: log p(x) up to a constant, as any encoder with Gaussian embeddings has learned it."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from rich.progress import Progress
from torch import Tensor

from probjepa.data import Images
from probjepa.draws import forked
from probjepa.errors import ConfigError, short, unknown_name
from probjepa.jacobian import calibrated, estimators
from probjepa.jacobian.encoders import Encoder, as_encoder, exact_gradients
from probjepa.jacobian.estimators import Rank, Settings, Volumes, check_count
from probjepa.jacobian.latent import Latent, as_density, latent_term
from probjepa.jacobian.memory import in_chunks
from probjepa.jacobian.plan import Plan, make_plan
from probjepa.terminal import passing
from probjepa.typed import settings_checked

T = TypeVar("T")
Measure = Callable[[Encoder, Tensor], Volumes]
_SMALLER = "use estimator='sketch' (an eighth of the memory), smaller inputs, or another device"


class _Draws(TypedDict, total=False):
    """What the approximate estimators take: see ``jepa_score``."""

    sketch_size: int | None
    probes: int
    steps: int
    directions: int | None
    tolerance: float
    seed: int


class MoreSettings(_Draws, total=False):
    """Further keywords of ``jepa_score``: see there."""

    progress: bool


class EstimatorSettings(_Draws, total=False):
    """The keywords of ``jepa_score`` that are of its estimator: see there."""

    estimator: str
    rank: Rank
    eps: float


@dataclass(frozen=True, eq=False)
class JepaScores(Volumes):
    """Scores of N inputs and what they are made of, on the CPU.

    Beside what ``Volumes`` has of all N inputs (``log_volume``: mean over the transforms; ``embeddings``: of
    the last of them; the others: the most cautious of them):

    Attributes
    ----------
    score
        (N,) float64, higher = more typical
    latent
        (N,) float64, the term log p_Z (0 without a latent); mean over the transforms
    estimator, reason
        the estimator that ran ("calibrated": with a tolerance, from a few rows), and why
    rank_rule
        the argument ``rank``
    chunk_size
        inputs at a time, at the end
    """

    score: Tensor
    latent: Tensor
    estimator: str
    reason: str
    rank_rule: Rank
    chunk_size: int


@settings_checked
def jepa_score(
    encoder: Any,
    images: Any,
    *,
    estimator: str = "exact",
    rank: Rank = None,
    latent: Latent = None,
    transforms: Callable[[Tensor], Tensor] | None = None,
    n_transforms: int = 1,
    chunk_size: int | None = None,
    eps: float = 1e-6,
    **more: Unpack[MoreSettings],
) -> Tensor:
    r"""Score inputs by the density that the encoder f: R^P → R^K has learned: higher = more typical.

    score(x) = Σ_k log max(σ_k(J_f(x)), eps) + log p_Z(f(x)), with the sum over min(K, P) directions and the
    second term only with ``latent``. With T random transforms of x, eq. (4) of the paper: the score is
    −log (1/T) Σ_t exp(−score_t).

    "Gaussian Embeddings: How JEPAs Secretly Learn Your Data Density", arXiv 2510.05949. The paper drops
    log p_Z on the ground that a Gaussian concentrates on a sphere; where real embeddings do not, the term
    matters (``latent``). Of an encoder that ends in a ReLU, a feature that is off is a row of zeros, which
    adds log eps: the score is then mostly the number of features that are on, which needs no derivative.

    Parameters
    ----------
    encoder
        a method of this library, any torch module or callable on float tensors, ``"hf:NAME"``,
        ``"timm:NAME"`` or a saved model: see ``as_encoder``. It runs in the mode that it is in, and one whose
        output depends on its batch is refused
    images
        for an encoder with a preprocessing of its own, N images: what ``open_images`` takes, floats being
        pixels in [0, 1]. For any other module or callable (so for ``method.encoder``), prepared floats
        (N, …). The Jacobian is with respect to the prepared floats
    estimator
        "exact" (a pass for each of the K rows that is not zero throughout); "folded" (exact, a patch
        embedding taken out of the passes); "sketch" (unbiased, an eighth of the memory); "slq" (biased,
        2·probes·steps passes, for large K); "subspace" (biased); "auto": an exact one where memory allows,
        and with a ``tolerance`` the cheapest that is good enough. Bias, variance and passes:
        ``probjepa.jacobian.estimators``
    rank
        None: all min(K, P) directions, clipped, the paper's form; "auto": those with σ > 1e-4·σ_max, which
        drops the two that a final LayerNorm makes null (their σ are rounding); an int: the largest ones
        (exact and folded). slq and subspace take None
    latent
        None: the paper's form; "normal": N(0, I); a torch Distribution over R^K; or reference embeddings
        (M, K), to which N(m, C) with Ledoit-Wolf's covariance is fitted
    transforms
        a random map of a batch, uint8 where the encoder has a preprocessing, to one of the same kind. It is
        called for one image at a time with torch's generator seeded by ``seed``, the image's bytes and t, so
        that a score does not depend on the image's batch, place or chunk
    n_transforms
        T ≥ 1
    chunk_size
        inputs at a time; None: from the free memory. Out of memory halves it and goes on
    eps
        singular values are clipped from below at this
    more
        ``sketch_size``, m of "sketch" (None: 2K); ``probes`` (4) and ``steps`` (10) of "slq";
        ``directions``, p of "subspace" (None: 64); ``tolerance`` (0: exact) of "auto", see below; ``seed``
        (0) of the transforms and of the estimators' draws; ``progress``, whether to show a bar

    Returns
    -------
    Tensor
        (N,) float64, on the CPU; ``jepa_score_details`` gives its parts too

    Notes
    -----
    With ``tolerance=0.02`` and more than 64 inputs, 32 of them, drawn by ``seed``, are scored exactly. They
    teach how to tell a score from the fewest of K/32 … K/2 random output directions with which the root mean
    square error, leave-one-out, is at most 0.02 times the standard deviation of the 32 scores (without the
    latent term); the other inputs are scored by these. Where K/2 do not do, all are exact. An error that is
    read from 32 scores, and of the first number of directions that passes, is itself uncertain: the others'
    may be somewhat above the tolerance. What ran and its error are in ``jepa_score_details``: ``estimator``,
    ``reason`` and ``standard_error``, of each score. Such scores depend, within that error, on the inputs
    that they were asked for with.

    Raises
    ------
    ConfigError
        for an unknown estimator or setting, a setting out of its range, or an encoder that is not a
        differentiable map of each input by itself
    DataError
        for inputs of a wrong type or with NaN, or derivatives that are not finite

    Examples
    --------
    >>> encoder = torch.nn.Linear(3, 2, bias=False)
    >>> with torch.no_grad():  # both singular values are e, so their logarithms add up to 2
    ...     _ = torch.nn.init.eye_(encoder.weight).mul_(math.e)
    >>> jepa_score(encoder, torch.randn(4, 3)).round(decimals=3)
    tensor([2., 2., 2., 2.], dtype=torch.float64)
    """
    return jepa_score_details(
        encoder,
        images,
        latent=latent,
        transforms=transforms,
        n_transforms=n_transforms,
        chunk_size=chunk_size,
        estimator=estimator,
        rank=rank,
        eps=eps,
        **more,
    ).score


@settings_checked
def jepa_score_details(
    encoder: Any,
    images: Any,
    *,
    latent: Latent = None,
    transforms: Callable[[Tensor], Tensor] | None = None,
    n_transforms: int = 1,
    chunk_size: int | None = None,
    progress: bool = False,
    **settings: Unpack[EstimatorSettings],
) -> JepaScores:
    """Score inputs as ``jepa_score`` does, by the same arguments, and return what the scores are made of."""
    for name in settings:
        if name not in EstimatorSettings.__annotations__:
            known = {*inspect.signature(jepa_score).parameters, *MoreSettings.__annotations__}
            raise unknown_name("setting of jepa_score", name, known - {"encoder", "images", "more"})
    how = Settings(**settings)
    check_count("n_transforms", n_transforms)
    check_count("chunk_size", chunk_size)
    if transforms is not None and not callable(transforms):
        raise ConfigError(f"transforms takes a random map of a batch, got '{short(transforms)}'")
    if transforms is None and n_transforms > 1:
        raise ConfigError("n_transforms > 1 needs transforms: pass a random map of a batch")
    if how.tolerance > 0 and n_transforms > 1:
        raise ConfigError("a tolerance goes with one transform at most: leave n_transforms at 1")
    density = as_density(latent)
    model = as_encoder(encoder)

    def view(batch: Tensor, t: int) -> Tensor:
        if transforms is None:
            return batch
        return torch.cat([_transformed(transforms, image, how.seed, t) for image in torch.split(batch, 1)])

    source = model.source(images)
    place: Tensor | None = None

    def measured(
        source: Tensor | Images, measure: Measure, size: int
    ) -> tuple[list[list[tuple[Volumes, Tensor]]], list[int]]:
        """The parts of each chunk of about that size, view by view, and the sizes that the chunks had."""

        def score_rows(rows: slice) -> list[tuple[Volumes, Tensor]]:
            batch = _rows(source, rows)
            views = []
            for t in range(n_transforms):
                found = measure(model, model.prepare(view(batch, t)))
                views.append((found, latent_term(density, found.embeddings)))
            return views

        return _over_chunks("JEPA-SCORE", source, size, score_rows, progress)

    with exact_gradients(model):
        first = model.prepare(view(_rows(source, slice(1)), 0))
        plan = make_plan(model, first, how.estimator, how.rank, chunk_size)
        plain = partial(_measure, how=how, plan=plan)
        if how.tolerance == 0 or not calibrated.possible(plan, len(source)):
            parts, sizes = measured(source, plain, plan.chunk_size)
        else:
            teachers = calibrated.Teachers(how, plan.passes)
            few, others = calibrated.split(len(source), how.seed)
            of_few = measured(_subset(source, few), teachers.measure, plan.chunk_size)
            found, reason = teachers.fit()
            measure = plain if found is None else found.measure
            of_others = measured(_subset(source, others), measure, plan.chunk_size)
            parts, sizes = of_few[0] + of_others[0], of_few[1] + of_others[1]
            plan = replace(plan, estimator=plan.estimator if found is None else "calibrated", reason=reason)
            place = torch.cat([few, others]).argsort()

    return _joined(parts, place, replace(plan, chunk_size=sizes[-1]), how)


def _joined(
    parts: Sequence[list[tuple[Volumes, Tensor]]], place: Tensor | None, plan: Plan, how: Settings
) -> JepaScores:
    """The scores of chunks, each view by view, with their rows put in ``place`` where there is one."""
    n_transforms = len(parts[0])

    def joined(each: list[Tensor]) -> Tensor:
        rows = torch.cat([one.cpu() for one in each])
        return rows if place is None else rows[place]

    def stacked(name: str) -> Tensor:  # (T, N)
        return torch.stack(
            [joined([getattr(part[t][0], name) for part in parts]) for t in range(n_transforms)]
        )

    volume = stacked("log_volume")
    latents = torch.stack([joined([part[t][1] for part in parts]) for t in range(n_transforms)])
    return JepaScores(
        score=-(torch.logsumexp(-(volume + latents), 0) - math.log(n_transforms)),
        log_volume=volume.mean(0),
        latent=latents.mean(0),
        rank=stacked("rank").amin(0),
        used=stacked("used").amin(0),
        sigma_max=stacked("sigma_max").amax(0),
        sigma_min=stacked("sigma_min").amin(0),
        standard_error=stacked("standard_error").amax(0),
        embeddings=joined([part[-1][0].embeddings for part in parts]),
        estimator=plan.estimator,
        reason=plan.reason,
        rank_rule=how.rank,
        chunk_size=plan.chunk_size,
    )


def _measure(model: Encoder, x: Tensor, how: Settings, plan: Plan) -> Volumes:
    if plan.estimator == "sketch":
        return estimators.sketch(model, x, how, plan.passes)
    if plan.estimator == "slq":
        return estimators.slq(model, x, how)
    if plan.estimator == "subspace":
        return estimators.subspace(model, x, how, plan.passes)
    return estimators.exact(model, x, how, plan.passes)


def jacobian_spectrum(
    encoder: Any, images: Any, *, chunk_size: int | None = None, progress: bool = False
) -> Tensor:
    """Singular values of the Jacobian at each input: (N, K) float64, falling, not clipped.

    For P < K inputs the last K − P are 0. Those below about 1e-7·σ_max are rounding. Parameters and errors
    are ``jepa_score``'s.
    """
    check_count("chunk_size", chunk_size)
    model = as_encoder(encoder)
    source = model.source(images)
    with exact_gradients(model):
        plan = make_plan(model, model.prepare(_rows(source, slice(1))), "exact", None, chunk_size)

        def spectra(rows: slice) -> Tensor:
            x = model.prepare(_rows(source, rows))
            return estimators.exact_spectrum(model, x, plan.passes)[0].cpu()

        parts, _ = _over_chunks("Jacobian spectra", source, plan.chunk_size, spectra, progress)
    sigma = torch.cat(parts)
    return torch.nn.functional.pad(sigma, (0, plan.dim - sigma.shape[1]))


def _over_chunks(
    title: str, source: Tensor | Images, size: int, compute: Callable[[slice], T], progress: bool
) -> tuple[list[T], list[int]]:
    """What ``compute`` makes of all rows, chunk by chunk under a bar, and the chunks' sizes."""
    done, sizes = [], []
    with Progress(**passing(progress)) as bar:
        task = bar.add_task(title, total=len(source))
        for rows, part, at_a_time in in_chunks(len(source), size, compute, _SMALLER):
            done.append(part)
            sizes.append(at_a_time)
            bar.update(task, completed=rows.stop)
    return done, sizes


def _rows(source: Tensor | Images, rows: slice) -> Tensor:
    # cloned: what was made under inference_mode cannot be differentiated
    return source[rows].detach().clone() if isinstance(source, Tensor) else source.get(rows)


def _subset(source: Tensor | Images, rows: Tensor) -> Tensor | Images:
    return source[rows.to(source.device)] if isinstance(source, Tensor) else source.subset(rows.numpy())


def _transformed(transforms: Callable[[Tensor], Tensor], image: Tensor, seed: int, t: int) -> Tensor:
    content = image.cpu().contiguous().view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16
    digest = hashlib.blake2b(content, digest_size=8, key=f"{seed}.{t}".encode())
    # 32 bits: what torch's generator on the CPU takes of a seed
    drawn_from = int.from_bytes(digest.digest()) % 2**32
    with forked(image.device, drawn_from), torch.no_grad():
        out = transforms(image.clone())  # it may work in place
    if not isinstance(out, Tensor) or len(out) != len(image):
        found = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"transforms returned {found} for a batch {tuple(image.shape)}: it must return one for one"
        )
    return out
