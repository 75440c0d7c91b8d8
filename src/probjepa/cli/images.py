"""The commands on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probjepa.backbones import is_trained
from probjepa.cli.kind import Columns, Scored, write_scores
from probjepa.cli.options import Curating, Evaluating, Scoring, Shared, Training
from probjepa.cli.settings import check_early, fill_in, given_settings, sort_settings
from probjepa.data import Images, ImageSet, open_images
from probjepa.data.fitting import Fit
from probjepa.data.overlap import refuse_overlap
from probjepa.data.rows import identity
from probjepa.data.streams import Stream, open_training
from probjepa.errors import ConfigError, ProbjepaError, counted, short, unknown_name
from probjepa.files import first_line, refuse_existing
from probjepa.launch import is_first_process
from probjepa.terminal import say, tracked

if TYPE_CHECKING:
    from probjepa.data.rows import TableWriter
    from probjepa.methods import Method

_BATCH = 512


class ImageModel:
    """A trained model of images; for JEPA-SCORE, any encoder."""

    unit = "image"

    def __init__(self, source: str, shared: Shared) -> None:
        self.source, self.shared = source, shared
        self.size: int | None = None  # of its images; None: its own
        shared.refuse(source)
        self.on_error = checked_on_error(shared.on_error)

    @staticmethod
    def train(method: str, data: str, options: Training) -> str:
        """Train a method on what the data make of its settings, and write the run folder."""
        _refuse_target(options.target, method)
        options.refuse(method)
        on_error = checked_on_error(options.on_error)
        given = given_settings(
            method, options, {name: name for name in ("epochs", "seed", "device", "cache_views")}
        )
        given = check_early(method, given)
        first = is_first_process()  # another process of the run finds the folder that the first has made
        from probjepa.training.folder import RunFolder

        folder = RunFolder(options.out)
        if first:
            if not options.resume:
                refuse_existing(options.out, options.overwrite, "go on with it with --resume")
            folder.check(resume=options.resume, overwrite=options.overwrite)
        _check_fit(given)
        size, channels = given.get("decode_size") or given.get("image_size"), given.get("channels")
        progress, model = first and not options.quiet, None
        if is_trained(given.get("backbone")):  # it says how its images are prepared
            settings = sort_settings(method, given)
            model = _build(method, settings)
            size = given.get("decode_size") or model.preprocess.size
            channels = model.preprocess.channels
        reading: dict[str, Any] = {
            "convert": options.convert or (model is not None and model.preprocess.fit is not None),
            "progress": progress, "on_error": on_error, "labels": options.labels, "ids": options.ids,
        }  # fmt: skip
        stream = given.get("stream", "auto")
        if options.resume:
            stream = folder.streamed(stream)
        names = {"stream_buffer": "buffer", "seed": "seed"}
        shards = {"stream": stream, **{word: given[name] for name, word in names.items() if name in given}}
        images = open_training(data, size=size, channels=channels, **shards, **reading)
        if model is None:
            given = fill_in(method, given, images.size, images.channels)
            settings = sort_settings(method, given)
        side, channels = size or given["image_size"], images.channels
        if size is None and isinstance(images, ImageSet):
            images = open_images(images, size=side, channels=channels)
        elif size is None:
            images = open_training(data, size=side, channels=channels, **shards, **reading)
        _say_skipped(images)
        val = None
        if options.val is not None:
            val = open_images(options.val, size=side, channels=channels, **reading)
            _say_skipped(val)

        from probjepa.report.training import training_report
        from probjepa.training import fit

        of_fit = {"epochs": 200, "seed": 0, **settings["fit"]}
        fit(
            model or _build(method, settings), images, val=val, out=options.out, resume=options.resume,
            overwrite=options.overwrite, progress=progress, **of_fit,
        )  # fmt: skip
        if first:
            training_report(options.out)
        return counted(len(images), "image")

    @cached_property
    def method(self) -> Method:
        """The model, loaded onto its device."""
        from probjepa.loading import open_encoder
        from probjepa.training.device import resolve_device

        device = resolve_device(self.shared.device)
        method = open_encoder(self.source, image_size=self.size).to(device)
        method.precision = self.shared.precision
        return method

    def note(self, table: TableWriter) -> None:
        """Say in a table's metadata how its images were encoded."""
        table.note(*self.method.encoding.note())

    def read(self, uri: str, *, labelled: bool = True) -> Images:
        """Open images as the model takes them; what the options say of labels is for ``labelled`` ones."""
        preprocess = self.method.preprocess
        return self._read(uri, preprocess.opened, preprocess.open_channels, labelled)

    def _read(self, uri: str, size: int | Fit | None, channels: int | None, labelled: bool = True) -> Images:
        shared = self.shared
        images = open_images(
            uri, size=size, channels=channels, convert=shared.convert, on_error=self.on_error,
            labels=shared.labels if labelled else "none", ids=shared.ids if labelled else None,
            progress=not shared.quiet,
        )  # fmt: skip
        _say_skipped(images)
        return images

    def embed(self, data: str) -> tuple[int, Iterator[Columns]]:
        """Return id, label, embedding, and variance where the model has one."""
        images = self.read(data)
        return len(images), self._embed(images)

    def _embed(self, images: Images) -> Iterator[Columns]:
        from probjepa.shards import embeddings

        total = -(-len(images) // _BATCH)
        batches = tracked(images.batches(_BATCH), "embedding", total, shown=not self.shared.quiet)
        for pixels, rows in batches:
            yield {**identity(images, rows), **embeddings(self.method, pixels)}

    def score(self, data: str, out: Path, options: Scoring) -> Scored:
        """Write id, label, score and its parts, and decisions; JEPA-SCORE's part by part."""
        from probjepa.scores import SetScorer
        from probjepa.scores.sets import check_score

        rule = options.rule
        if options.score == "jepa":
            return self._score_jepa(data, out, options)
        self.size = options.size
        check_score(self.method, options.score, options.reference, options.reference_size)
        images = self.read(data)
        calibration = self._calibration(options, images, lambda uri: self.read(uri, labelled=False))
        reference = images if options.reference == data else None
        if options.reference not in (None, data):
            reference = self.read(options.reference, labelled=False)
        scorer = SetScorer(
            self.method, options.score, reference=reference, reference_size=options.reference_size,
            seed=options.seed, progress=not self.shared.quiet,
        )  # fmt: skip
        columns = identity(images, slice(None))
        return write_scores(self, scorer, images, calibration, rule, columns, out)

    def _calibration(self, options: Scoring, images: Images, read: Callable[[str], Images]) -> Images | None:
        """Open the calibration images: enough of them, and none that is to be scored."""
        if options.calibration is None:
            return None
        calibration = read(options.calibration)
        options.rule.check(len(calibration))
        refuse_overlap(images, calibration, "calibration")
        return calibration

    def _score_jepa(self, data: str, out: Path, options: Scoring) -> Scored:
        rank = jepa_rank(options, self.shared)
        from probjepa.jacobian import as_encoder
        from probjepa.jacobian.estimators import Settings
        from probjepa.scores.jepa_parts import input_shape, score_jepa
        from probjepa.training.device import resolve_device

        how = Settings(estimator=options.estimator, rank=rank, seed=options.seed, tolerance=options.tolerance)
        encoder = as_encoder(self.source, image_size=options.size).to(resolve_device(self.shared.device))
        shape = input_shape(encoder)
        images = self._read(data, *shape)
        reference = None if options.reference is None else self._read(options.reference, *shape, False)
        calibration = self._calibration(options, images, lambda uri: self._read(uri, *shape, False))
        known, flagged = score_jepa(
            encoder, images, out, how, latent=options.latent, reference=reference, calibration=calibration,
            rule=options.rule, overwrite=self.shared.overwrite, progress=not self.shared.quiet,
        )  # fmt: skip
        return Scored(len(images), known, flagged)

    def evaluate(self, train: str, test: str, out: Path, options: Evaluating) -> None:
        """Write figures of accuracy, collapse, uncertainty and detection, with their page."""
        from probjepa.data.codec import jpeg_quality
        from probjepa.evaluation import evaluate, openood_sets
        from probjepa.loading import check_there
        from probjepa.report.summary import print_summary, write_evaluation

        if options.target is not None:
            check_there(self.source)  # which says more of one that is not
        _refuse_target(options.target, self.source)
        if options.reencode is not None:
            jpeg_quality(options.reencode)  # its complaint comes before any work
        sets = {name: self.read(uri, labelled=False) for name, uri in _named(options.ood or []).items()}
        progress = not self.shared.quiet
        benchmark = None
        if options.openood is not None:
            preprocess = self.method.preprocess
            size, channels = preprocess.opened, preprocess.open_channels
            benchmark = openood_sets(
                options.openood, size=size, channels=channels, on_error=self.on_error,
                progress=progress,
            )  # fmt: skip
            for images in benchmark.values():
                _say_skipped(images)
        uri = options.calibration
        calibration = None if uri is None else self.read(uri, labelled=False)
        result = evaluate(
            self.method, self.read(train), self.read(test), sets, openood=benchmark,
            reencode=options.reencode, calibration=calibration, seed=options.seed,
            n_bootstrap=options.bootstrap, jepa=options.jepa,
            reference_size=options.reference_size, progress=progress,
        )  # fmt: skip
        write_evaluation(result, out)
        print_summary(result.metrics)

    def curate(self, data: str, out: Path, options: Curating) -> dict[str, int]:
        """Write ranking, lists and page, and return how many images are on each list."""
        from probjepa.curation import check_options, compared_with, curate
        from probjepa.scores.sets import check_score

        check_options(options.drop, options.review, options.duplicates, options.against)
        reference = compared_with(data, options.score, options.reference)
        check_score(self.method, options.score, reference, options.reference_size)
        images = self.read(data)
        known, others = (
            None if uri is None else self.read(uri, labelled=False)
            for uri in (options.reference, options.against)
        )
        return curate(
            self.method, images, out, score=options.score, reference=known,
            reference_size=options.reference_size, drop=options.drop, review=options.review,
            duplicates=options.duplicates, against=others, progress=not self.shared.quiet,
        )  # fmt: skip


def _check_fit(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for what a run cannot have, whatever its data: before they are read."""
    from probjepa.training.cached import check_frozen
    from probjepa.training.device import resolve_device
    from probjepa.training.settings import FitSettings, check_epochs, split_settings

    settings, others = split_settings(FitSettings, given)
    resolve_device(settings.device)
    check_epochs(others.get("epochs", 1))
    if settings.cache_views:
        check_frozen(others.get("freeze"))


def _build(method: str, settings: Mapping[str, Mapping[str, Any]]) -> Method:
    """Make a method with the random weights of a seed; whatever its parts complain of is one line."""
    from probjepa.methods import METHODS

    seed = settings["fit"].get("seed", 0)
    try:
        model: Method = METHODS[method](
            seed=seed, **settings["method"], backbone_options=settings["backbone"]
        )
        return model
    except ProbjepaError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            f"{method} cannot be built with these settings ({short(first_line(error), 100)}): check --set "
            "and --config"
        ) from error


def _named(items: list[str]) -> dict[str, str]:
    named = {}
    for item in items:
        name, sign, uri = item.partition("=")
        if not (name and sign and uri):
            raise ConfigError(f"--ood takes NAME=URI, got '{item}'")
        if name in named:
            raise ConfigError(f"--ood {name}= is given twice: name each set differently")
        named[name] = uri
    return named


def _refuse_target(target: str | None, what: str) -> None:
    if target is not None:
        raise ConfigError(f"--target is for tables, and {what} is of images: leave it out")


def jepa_rank(options: Scoring, shared: Shared) -> Any:
    """Return the rank of JEPA-SCORE as its ``Settings`` have it; ConfigError for options that do not fit."""
    if shared.precision != "float32":
        raise ConfigError("--precision is of embeddings, and jepa's derivatives are in float32: leave it out")
    latent, rank = options.latent, options.rank
    if latent not in ("none", "normal", "reference"):
        raise unknown_name("latent term", latent, ["none", "normal", "reference"])
    if (latent == "reference") != (options.reference is not None):
        raise ConfigError("--latent reference and --reference URI go together: give both or neither")
    if options.reference_size is not None:
        raise ConfigError("--reference-size is of scores against a reference, not of jepa: leave it out")
    is_number = rank.isascii() and rank.isdigit()
    if rank not in ("none", "auto") and not is_number:
        raise ConfigError(f"--rank is '{rank}': pass none, auto or a number")
    return int(rank) if is_number else "auto" if rank == "auto" else None


def checked_on_error(value: str) -> Any:
    """Return ``value``; ConfigError unless it is raise or skip."""
    if value not in ("raise", "skip"):
        raise ConfigError(f"--on-error is '{value}': pass raise or skip")
    return value


def _say_skipped(images: Images | Stream) -> None:
    """Print which images were left out."""
    if images.skipped:
        say(f"skipped {counted(len(images.skipped), 'unreadable file')} of {images.name}:")
        for line in images.skipped:
            say(f"  {line}")
