"""JEPA-SCORE of a set, kept part by part, so that a stopped scoring goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import Progress

from probjepa import __version__
from probjepa.data import Images
from probjepa.data.fitting import Fit
from probjepa.data.overlap import refuse_overlap
from probjepa.data.preprocess import Preprocess
from probjepa.data.rows import identity, open_table
from probjepa.errors import ArtifactError
from probjepa.files import (
    RECORD,
    drop_parts,
    note_written,
    parts_of,
    refuse_existing,
    staged_file,
    write_text,
)
from probjepa.jacobian import Encoder, jepa_score_details
from probjepa.jacobian.estimators import Settings
from probjepa.jacobian.latent import fit_normal
from probjepa.metrics.conformal import Rule
from probjepa.terminal import passing
from probjepa.training.folder import data_fingerprint, weights_fingerprint

_ROWS_A_PART = 64
_ROWS_WITH_TOLERANCE = 512  # each part measures some rows exactly to learn from, so these must be few of it


def score_jepa(
    encoder: Encoder,
    images: Images,
    out: Path,
    how: Settings,
    *,
    latent: str = "none",
    reference: Images | None = None,
    calibration: Images | None = None,
    rule: Rule = Rule(),  # noqa: B008
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[int, int | None]:
    """Write a row per input: id, label, score, its two terms, numerical rank and extreme singular values.

    With ``calibration``, held-out typical images that are scored too, also p_value, q_value and flagged.

    Finished parts wait in a hidden folder beside ``out``; the same command goes on from them, another command
    for the same ``out`` is refused until ``overwrite`` drops them. The name of a part has a hash of the
    weights, the settings and all images, so that none is taken for another scoring's.

    Returns
    -------
    int, int or None
        how many images an earlier run had scored, and how many are flagged

    Raises
    ------
    ArtifactError
        if ``out`` exists, another scoring of it was begun, or it cannot be written
    ConfigError, DataError
        as ``jepa_score``
    """
    refuse_existing(out, overwrite)
    if calibration is not None:
        rule.check(len(calibration))
    sets = {"": images} if calibration is None else {"calibration": calibration, "": images}
    if reference is not None:
        for name, of in sets.items():
            refuse_overlap(of, reference, of=f"{name} images" if name else "images to score")
    settings: dict[str, Any] = {
        "version": __version__,
        "encoder": encoder.name,
        "weights": encoder_fingerprint(encoder),
        **asdict(how),
        "latent": latent,
        "labels": _labels(images),
        **data_fingerprint(images),
        **(data_fingerprint(reference, "reference") if reference is not None else {}),
        **(data_fingerprint(calibration, "calibration") if calibration is not None else {}),
    }
    parts = parts_of(out)
    mark = _claim(parts, settings, overwrite)
    density: Any = None if latent == "none" else latent
    if reference is not None:
        density = fit_normal(embedded(encoder, reference))  # once for all parts
    step = rows_a_part(how)
    pieces = {
        parts / f"{mark}-{name}{start:09d}.parquet": (name, slice(start, min(start + step, len(of))))
        for name, of in sets.items()
        for start in range(0, len(of), step)
    }
    done = {place: n for place, (_, rows) in pieces.items() if _is_whole(place, n := rows.stop - rows.start)}
    total = sum(len(of) for of in sets.values())
    with Progress(**passing(progress)) as bar:
        task = bar.add_task("JEPA-SCORE", total=total, completed=sum(done.values()))
        for place, (name, rows) in pieces.items():
            if place in done:
                continue
            of = sets[name]
            found = {**identity(of, rows), **columns(encoder, of.get(rows), how, density)}
            with open_table(place, overwrite=True) as table:
                table.write(found)
            bar.update(task, advance=rows.stop - rows.start)

    def whole(which: str) -> pa.Table:
        return pa.concat_tables([_read(place) for place, (name, _) in pieces.items() if name == which])

    scored, flagged = whole(""), None
    if calibration is not None:
        scores = (scored["score"].to_numpy(), whole("calibration")["score"].to_numpy())
        decided = rule.decide(*scores)
        for name, values in decided.items():
            scored = scored.append_column(name, pa.array(values))
        flagged = int(decided["flagged"].sum())
    # hours may have passed
    refuse_existing(out, overwrite, "what was scored is kept: move that away and give the same command again")
    with staged_file(out) as stage:
        with open(stage, "wb") as file:
            pq.write_table(scored, file)
        note_written(out, stage)  # once it has its name the parts are dropped, and until then gone on from
    drop_parts(out)
    return sum(count for place, count in done.items() if not pieces[place][0]), flagged


def _is_whole(place: Path, rows: int) -> bool:
    """Whether a part is there with all its rows: a power cut may leave a file without its content."""
    try:
        with open(place, "rb") as file:
            return bool(pq.read_metadata(file).num_rows == rows)
    except (OSError, pa.ArrowException):
        return False


def _read(place: Path) -> pa.Table:
    with open(place, "rb") as file:  # Arrow takes no path with bytes that are no text
        return pq.read_table(file)


def rows_a_part(how: Settings) -> int:
    """Return how many rows are scored, and kept, together: with a tolerance, enough to learn from some."""
    return _ROWS_A_PART if how.tolerance == 0 else _ROWS_WITH_TOLERANCE


def columns(encoder: Encoder, images: torch.Tensor, how: Settings, latent: Any) -> dict[str, Any]:
    """Return the score of N images (N, C, H, W) and what belongs to it, by name, each (N,)."""
    found = jepa_score_details(encoder, images, latent=latent, **asdict(how))
    return {
        "score": found.score.numpy(),
        "log_volume": found.log_volume.numpy(),
        "latent": found.latent.numpy(),
        "numerical_rank": found.rank.numpy(),
        "directions": found.used.numpy(),
        "sigma_max": found.sigma_max.numpy(),
        "sigma_min": found.sigma_min.numpy(),
        "standard_error": found.standard_error.numpy(),
        "estimator": [found.estimator] * len(images),
    }


def _claim(parts: Path, settings: dict[str, Any], overwrite: bool) -> str:
    """Make the folder of parts this scoring's own, or find that it is; return the mark of its parts."""
    record = parts / RECORD
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if record.is_file() and (found := record.read_bytes()) != text.encode():
        if not overwrite:
            try:
                before = dict(json.loads(found))
            except (ValueError, TypeError) as error:
                raise ArtifactError(f"{record} is damaged: drop it with --overwrite") from error
            changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
            raise ArtifactError(
                f"a scoring with other {', '.join(changed)} was begun in {parts}: finish it with its own "
                "settings, or drop it with --overwrite"
            )
        shutil.rmtree(parts)
    if not record.is_file():
        write_text(record, text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _labels(images: Images) -> str:
    """A hash of the labels that are written beside the scores."""
    labels = identity(images, slice(None)).get("label", ())
    return hashlib.sha256(json.dumps(pa.array(labels).to_pylist()).encode()).hexdigest()[:16]


def encoder_fingerprint(encoder: Encoder) -> str:
    """Return a hash of an encoder's weights, and of how its images are prepared."""
    preprocess = encoder.preprocess
    prepared = preprocess.config() if isinstance(preprocess, Preprocess) else ""
    weights = None if encoder.module is None else weights_fingerprint(encoder.module)
    return hashlib.sha256(repr((prepared, weights)).encode()).hexdigest()[:16]


def embedded(encoder: Encoder, images: Images) -> torch.Tensor:
    """Return the embeddings (N, D) of a set, float64."""
    with torch.no_grad():
        return torch.cat(
            [encoder.forward(encoder.prepare(batch)).double().cpu() for batch, _ in images.batches(256)]
        )


def input_shape(encoder: Encoder) -> tuple[int | Fit | None, int | None]:
    """Return the side and the channels that images are decoded to for it; None: as they are."""
    if isinstance(encoder.preprocess, Preprocess):
        return encoder.preprocess.opened, encoder.preprocess.open_channels
    return None, None
