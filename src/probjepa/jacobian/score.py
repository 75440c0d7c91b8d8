"""JEPA-SCORE: log p(x) up to a constant, as any encoder with Gaussian embeddings has learned it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from probjepa.data import Images
from probjepa.errors import ConfigError, DataError, unknown_name
from probjepa.jacobian import estimators
from probjepa.jacobian.encoders import as_encoder, exact_gradients
from probjepa.jacobian.estimators import Rank, Volumes
from probjepa.jacobian.latent import Latent, as_density, latent_term
from probjepa.jacobian.memory import in_chunks
from probjepa.jacobian.plan import ESTIMATORS, Plan, make_plan

Inputs = Tensor | np.ndarray[Any, Any] | Images
_SMALLER = "use estimator='sketch' (an eighth of the memory), smaller inputs, or another device"


@dataclass(frozen=True, eq=False)
class JepaScores:
    """Scores of N inputs and what they are made of, on the CPU.

    Attributes
    ----------
    score
        (N,) float64, higher = more typical
    log_volume, latent
        (N,) float64, the two terms Σ log σ and log p_Z (0 without a latent); means over the transforms
    rank
        (N,) numerical rank, the number of σ > 1e-4·σ_max; −1 where the estimator does not see it
    used
        (N,) directions in the sum
    sigma_max, sigma_min
        (N,) the extreme singular values among those in the sum, before clipping (of the sketch, sub-space or
        Ritz values for those estimators)
    standard_error
        (N,) of the log-volume's estimate: 0 if exact, NaN if not known
    embeddings
        (N, K) as the encoder gave them; of the last transform
    estimator, reason
        the estimator that ran, and why
    rank_rule
        the argument ``rank``
    chunk_size
        inputs at a time, at the end
    """

    score: Tensor
    log_volume: Tensor
    latent: Tensor
    rank: Tensor
    used: Tensor
    sigma_max: Tensor
    sigma_min: Tensor
    standard_error: Tensor
    embeddings: Tensor
    estimator: str
    reason: str
    rank_rule: Rank
    chunk_size: int


def jepa_score(
    encoder: Any,
    images: Inputs,
    *,
    estimator: str = "exact",
    rank: Rank = None,
    latent: Latent = None,
    transforms: Callable[[Tensor], Tensor] | None = None,
    n_transforms: int = 1,
    chunk_size: int | None = None,
    eps: float = 1e-6,
    sketch_size: int | None = None,
    probes: int = 4,
    steps: int = 10,
    directions: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    r"""Score inputs by the density that the encoder f: R^P → R^K has learned: higher = more typical.

    score(x) = Σ_k log max(σ_k(J_f(x)), eps) + log p_Z(f(x)), with the sum over min(K, P) directions and the
    second term only with ``latent``. With T random transforms of x, eq. (4) of the paper: the score is
    −log (1/T) Σ_t exp(−score_t).

    "Gaussian Embeddings: How JEPAs Secretly Learn Your Data Density", arXiv 2510.05949. The paper drops
    log p_Z on the ground that a Gaussian concentrates on a sphere; where real embeddings do not, the term
    matters (``latent``).

    Parameters
    ----------
    encoder
        a method of this library, any torch module or callable on float tensors, ``"hf:NAME"``,
        ``"timm:NAME"`` or a saved model: see ``as_encoder``. It runs in the mode that it is in, and one whose
        output depends on its batch is refused
    images
        (N, …): uint8 images, which the encoder's own preprocessing prepares, or floats, taken as prepared; a
        tensor, an array or a set of ``open_images``. The Jacobian is with respect to the prepared floats
    estimator
        "exact" (K passes); "folded" (exact, a patch embedding taken out of the passes); "sketch" (unbiased,
        an eighth of the memory); "slq" (2·probes·steps passes, approximate, for large K); "subspace"
        (biased); "auto". Bias, variance and passes: ``probjepa.jacobian.estimators``
    rank
        None: all min(K, P) directions, clipped, the paper's form; "auto": those with σ > 1e-4·σ_max, which
        drops the two that a final LayerNorm makes null (their σ are rounding); an int: the largest ones
        (exact and folded). slq and subspace take None
    latent
        None: the paper's form; "normal": N(0, I); a torch Distribution over R^K; or reference embeddings
        (M, K), to which N(m, C) with Ledoit-Wolf's covariance is fitted
    transforms
        a random map of a batch, of the kind that ``images`` is, to one of the same kind. It is called for
        one image at a time with torch's generator seeded by ``seed``, the image's bytes and t, so that a
        score does not depend on the image's batch, place or chunk
    n_transforms
        T ≥ 1
    chunk_size
        inputs at a time; None: from the free memory. Out of memory halves it and goes on
    eps
        singular values are clipped from below at this
    sketch_size, probes, steps, directions
        m of "sketch" (None: 2K), both numbers of "slq", p of "subspace" (None: 64)
    seed
        of the transforms and of the estimators' draws
    progress
        show a bar

    Returns
    -------
    Tensor
        (N,) float64, on the CPU; ``jepa_score_details`` gives its parts too

    Raises
    ------
    ConfigError
        for an unknown estimator, a setting out of its range, or an encoder that is not a differentiable map
        of each input by itself
    DataError
        for inputs of a wrong type or with NaN, or derivatives that are not finite
    """
    return jepa_score_details(
        encoder,
        images,
        estimator=estimator,
        rank=rank,
        latent=latent,
        transforms=transforms,
        n_transforms=n_transforms,
        chunk_size=chunk_size,
        eps=eps,
        sketch_size=sketch_size,
        probes=probes,
        steps=steps,
        directions=directions,
        seed=seed,
        progress=progress,
    ).score


def jepa_score_details(
    encoder: Any,
    images: Inputs,
    *,
    estimator: str = "exact",
    rank: Rank = None,
    latent: Latent = None,
    transforms: Callable[[Tensor], Tensor] | None = None,
    n_transforms: int = 1,
    chunk_size: int | None = None,
    eps: float = 1e-6,
    sketch_size: int | None = None,
    probes: int = 4,
    steps: int = 10,
    directions: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> JepaScores:
    """Score inputs as ``jepa_score`` does, and return what the scores are made of."""
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    counts = {"n_transforms": n_transforms, "probes": probes, "steps": steps}
    optional = {"chunk_size": chunk_size, "sketch_size": sketch_size, "directions": directions}
    for name, value in {**counts, **{k: v for k, v in optional.items() if v is not None}}.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}: use a whole number of at least 1")
    if not 0 < eps < math.inf:
        raise ConfigError(f"eps is {eps}: use a small positive number")
    if rank not in (None, "auto") and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise ConfigError(f"rank is {rank!r}: use None, 'auto' or a whole number of at least 1")
    if estimator in ("slq", "subspace") and rank is not None:
        raise ConfigError(f"estimator='{estimator}' sees no single direction: use rank=None, or 'exact'")
    if transforms is None and n_transforms > 1:
        raise ConfigError("n_transforms > 1 needs transforms: pass a random map of a batch")
    density = as_density(latent)
    model = as_encoder(encoder)

    def measure(plan: Plan, x: Tensor) -> Volumes:
        if plan.estimator == "sketch":
            return estimators.sketch(model, x, rank, eps, sketch_size, seed)
        if plan.estimator == "slq":
            return estimators.slq(model, x, eps, probes, steps, seed)
        if plan.estimator == "subspace":
            return estimators.subspace(model, x, eps, plan.least_batch, directions, seed)
        return estimators.exact(model, x, rank, eps, plan.least_batch, plan.patchify)

    def view(batch: Tensor, t: int) -> Tensor:
        if transforms is None:
            return batch
        return torch.cat([_transformed(transforms, image, seed, t) for image in torch.split(batch, 1)])

    source = _as_source(images)
    with exact_gradients(model):
        first = model.prepare(view(_rows(source, slice(0, 1)), 0))
        plan = make_plan(model, first, estimator, rank, chunk_size)

        def score_rows(rows: slice) -> list[tuple[Volumes, Tensor]]:
            batch = _rows(source, rows)
            parts = []
            for t in range(n_transforms):
                found = measure(plan, model.prepare(view(batch, t)))
                parts.append((found, latent_term(density, found.embeddings)))
            return parts

        done, sizes = [], []
        with Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task("JEPA-SCORE", total=len(source))
            for rows, part, size in in_chunks(len(source), plan.chunk_size, score_rows, _SMALLER):
                done.append(part)
                sizes.append(size)
                bar.update(task, completed=rows.stop)

    def stacked(name: str) -> Tensor:  # (T, N)
        return torch.stack(
            [torch.cat([getattr(part[t][0], name).cpu() for part in done]) for t in range(n_transforms)]
        )

    volume = stacked("log_volume")
    latents = torch.stack([torch.cat([part[t][1] for part in done]) for t in range(n_transforms)])
    return JepaScores(
        score=-(torch.logsumexp(-(volume + latents), 0) - math.log(n_transforms)),
        log_volume=volume.mean(0),
        latent=latents.mean(0),
        rank=stacked("rank").amin(0),
        used=stacked("used").amin(0),
        sigma_max=stacked("sigma_max").amax(0),
        sigma_min=stacked("sigma_min").amin(0),
        standard_error=stacked("standard_error").amax(0),
        embeddings=torch.cat([part[-1][0].embeddings.cpu() for part in done]),
        estimator=plan.estimator,
        reason=plan.reason,
        rank_rule=rank,
        chunk_size=sizes[-1],
    )


def jacobian_spectrum(
    encoder: Any, images: Inputs, *, chunk_size: int | None = None, progress: bool = False
) -> Tensor:
    """Singular values of the Jacobian at each input: (N, K) float64, falling, not clipped.

    For P < K inputs the last K − P are 0. Those below about 1e-7·σ_max are rounding. Parameters and errors
    are ``jepa_score``'s.
    """
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ConfigError(f"chunk_size is {chunk_size!r}: use a whole number of at least 1")
    model = as_encoder(encoder)
    source = _as_source(images)
    parts = []
    with exact_gradients(model):
        plan = make_plan(model, model.prepare(_rows(source, slice(0, 1))), "exact", None, chunk_size)

        def spectra(rows: slice) -> Tensor:
            x = model.prepare(_rows(source, rows))
            return estimators.exact_spectrum(model, x, plan.least_batch)[0].cpu()

        with Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task("Jacobian spectra", total=len(source))
            for rows, part, _ in in_chunks(len(source), plan.chunk_size, spectra, _SMALLER):
                parts.append(part)
                bar.update(task, completed=rows.stop)
    sigma = torch.cat(parts)
    return torch.nn.functional.pad(sigma, (0, plan.dim - sigma.shape[1]))


def _as_source(images: Inputs) -> Tensor | Images:
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "fui":
            raise DataError(
                f"the images are an array of {images.dtype}: pass uint8 pixels or prepared floats"
            )
        images = torch.from_numpy(np.array(images))
    if not isinstance(images, Tensor | Images):
        raise DataError(
            f"images are a {type(images).__name__}: pass a tensor or array (N, …), or a set of open_images"
        )
    if len(images) == 0 or (isinstance(images, Tensor) and images.ndim < 2):
        raise DataError(f"images have shape {tuple(images.shape)}: pass at least one, (N, …)")
    return images


def _rows(source: Tensor | Images, rows: slice) -> Tensor:
    # cloned: what was made under inference_mode cannot be differentiated
    return source[rows].detach().clone() if isinstance(source, Tensor) else source.get(rows)


def _transformed(transforms: Callable[[Tensor], Tensor], image: Tensor, seed: int, t: int) -> Tensor:
    digest = hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=8, key=f"{seed}.{t}".encode())
    devices = [image.device] if image.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        # 32 bits: what torch's generator on the CPU takes of a seed
        torch.manual_seed(int.from_bytes(digest.digest(), "big") % 2**32)
        out = transforms(image)
    if not isinstance(out, Tensor) or len(out) != len(image):
        found = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"transforms returned {found} for a batch {tuple(image.shape)}: it must return one for one"
        )
    return out
