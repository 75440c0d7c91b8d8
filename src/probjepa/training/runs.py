"""``fit``: from a data source to a trained method and a run folder."""

from __future__ import annotations

import dataclasses
import inspect
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from probjepa.backbones.frozen import refuse_inference
from probjepa.claims import claimed
from probjepa.data import Images
from probjepa.data.streams import Stream, lane_count
from probjepa.draws import forked, sample_rows
from probjepa.errors import ArtifactError, ConfigError, ProbjepaError, short, warn
from probjepa.files import DAMAGES, first_line
from probjepa.launch import is_first_process, started
from probjepa.methods.base import Method
from probjepa.terminal import say
from probjepa.training.auto import Auto, choose, remembered, using_threads
from probjepa.training.cached import CachedViews, drawn_views
from probjepa.training.callbacks import AtomicCheckpointIO, Checkpointer, MetricsTable, ProgressLine, Restored
from probjepa.training.checkpoint import check_signature
from probjepa.training.device import resolve_device
from probjepa.training.folder import RunFolder, data_fingerprint
from probjepa.training.interrupt import Interrupted, StopRequest, stop_on_signal
from probjepa.training.loader import lost_worker, make_loader
from probjepa.training.module import Module, views_for
from probjepa.training.monitors import make_monitors
from probjepa.training.processes import batch_size_of_each, check_lanes, lost_another
from probjepa.training.record import for_the_card, of_data, of_settings, run_fingerprint
from probjepa.training.settings import FitSettings, check_epochs, split_settings, with_settings
from probjepa.training.source import Batches, open_source, refuse_stream, sample_of, to_device
from probjepa.training.trainer import (
    as_list,
    check_options,
    make_logger,
    make_trainer,
    process_as_before,
    quiet_lightning,
)
from probjepa.typed import check_plain

M = TypeVar("M", bound=Method)

_CALIBRATION_ROWS = 10_000
_LEAST_COMPILED = 4_000  # steps: on an H100 a small ResNet's takes 11 ms less, and compiling 40 s
_HASHED_BYTES = 2**34  # of a streamed set, to know it by: some seconds a gigabyte


@with_settings(FitSettings, rest="trainer_options")
@torch.inference_mode(False)  # gradients on, whatever the caller's mode
def fit(
    method: M,
    data: Any,
    *,
    epochs: int,
    out: str | Path | None = None,
    val: Any = None,
    views: nn.Module | str | int | None = None,
    precision: str | int = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> M:
    """Train ``method`` on ``data`` and return it in evaluation mode, on the device that it was trained on.

    A run draws from (``seed``, step) alone: interrupted at any moment, by Ctrl-C or by force, and resumed, it
    ends with the weights and the metrics.csv of an uninterrupted one.

    Parameters
    ----------
    method
        any method; its channel statistics are calibrated on the data unless they were given
    data, val
        what ``open_images`` takes: a string, an array, an ``ImageSet``, …; ``val`` is never trained on
    epochs
        passes over the data; the learning rate's cosine spans them
    out
        run folder: config.yaml, model/, checkpoints/last.ckpt, metrics.csv; None writes nothing
    views
        a view recipe's name; how many views of an image the method's own recipe makes; or a module: uint8
        batch, seed → list of float batches; None: the method's own recipe
    precision
        a Lightning precision; ``"auto"`` is bf16-mixed on a GPU that has it, and on a CPU with units for it
        (AMX, AVX512-BF16) unless timed steps are slower so, else 32-true; short runs are not timed. Where it,
        or ``channels_last``, is auto, one thread is used if it is faster than all of torch's (unless
        OMP_NUM_THREADS is set). What was chosen stands in config.yaml ("auto"), and a resume keeps it.
        Likelihoods are float32 in each
    resume
        go on from the run's last checkpoint, with the same data and settings
    overwrite
        remove the run that is in ``out``
    progress
        show a bar
    options
        the settings of :class:`~probjepa.training.settings.FitSettings`; others go to ``lightning.Trainer``
        (``accumulate_grad_batches``, ``devices``, ``strategy``, …)

    Raises
    ------
    ConfigError, DataError, ArtifactError
        for a setting of the wrong type or out of its range, unusable data, an ``out`` in the way or one that
        another process trains in, a checkpoint of another run
    MissingExtraError
        for a logger that is not installed
    Interrupted
        after Ctrl-C or SIGTERM; the run is resumable
    ProbjepaError
        if a loss or gradient is not finite
    """
    _check_trains(method)
    epochs = check_plain("epochs", epochs, int)
    check_epochs(epochs)
    precision = str(check_plain("precision", precision, str | int))
    settings, trainer_options = split_settings(FitSettings, options)
    processes = started()
    check_options(trainer_options, inspect.signature(fit).parameters)
    trainer_options |= {k: v.item() for k, v in trainer_options.items() if isinstance(v, np.generic)}
    refuse_stream(data, settings)
    device = resolve_device(settings.device)
    with _claimed(out):
        folder = _run_folder(out, resume=resume, overwrite=overwrite)
        loggers = [make_logger(logger, folder) for logger in settings.loggers]
        resumed = folder if resume and folder is not None and folder.checkpoint.is_file() else None
        if resume and resumed is None and is_first_process():
            warn(f"{out} has no checkpoint to go on from: the run begins again")
        if resumed is not None:
            resumed.check_val(val)
            settings = dataclasses.replace(settings, stream=resumed.streamed(settings.stream))
        source, held_out = open_source(method, data, settings), None
        if val is not None:
            held_out = sample_of(open_source(method, val, dataclasses.replace(settings, stream=False)))
        _run(
            _Job(
                method=method, source=source, held_out=held_out, epochs=epochs, views=views,
                precision=precision, settings=settings, trainer_options=trainer_options, processes=processes,
                loggers=loggers, device=device, folder=folder, resumed=resumed, progress=progress,
            )
        )  # fmt: skip
    return method


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A call of ``fit``: its settings are checked, its data are open, and nothing is written yet."""

    method: Method
    source: Images | Stream
    held_out: Images | None
    epochs: int
    views: nn.Module | str | int | None
    precision: str
    settings: FitSettings
    trainer_options: dict[str, Any]
    processes: dict[str, Any]
    loggers: list[Any]
    device: torch.device
    folder: RunFolder | None
    resumed: RunFolder | None  # that folder, where a run goes on from its checkpoint
    progress: bool

    @property
    def images(self) -> Images:
        """What of the data is looked at beside the training."""
        return sample_of(self.source)

    @cached_property
    def steps(self) -> int:
        """Steps of the whole run; DataError or ConfigError where a batch is more than the data have."""
        loader = make_loader(self.source, self.settings.batch_size, seed=self.settings.seed)
        return self.epochs * len(loader)


def _run(job: _Job) -> None:
    """Train, save and leave the method in evaluation mode; as it was, if the run ends before it trains."""
    method = job.method
    before, training = (method.preprocess, method.calibrated), method.training
    module = None
    try:
        module, cached = _prepared(job)
        how = _how(job, module, cached)
        stop = _trained(job, module, cached, how)
    except BaseException:
        if module is None or not module.restored:
            method.preprocess, method.calibrated = before
            method.train(training)
        else:
            method.eval()
        raise
    finally:
        method.zero_grad(set_to_none=True)
    if stop:  # in the last step or after it
        raise Interrupted("interrupted after the last step: the run is complete")


def _prepared(job: _Job) -> tuple[Module, CachedViews | None]:
    """Calibrate the method; return what trains it, and the views that are kept."""
    method, settings, views = job.method, job.settings, job.views
    steps, images = job.steps, job.images  # the steps may complain
    method.calibrate(images.get(sample_rows(len(images), _CALIBRATION_ROWS, settings.seed)))
    cached = _cached(method, job.source, views, settings, job.folder) if settings.cache_views else None
    module = Module(
        method,
        epochs=job.epochs,
        views=views if cached is None else partial(drawn_views, count=_count(views)),
        compile=_compiled(settings.compile, job.device, steps),
        **settings.loop(),
    )
    return module, cached


def _how(job: _Job, module: Module, cached: CachedViews | None) -> Auto:
    """Return how the run computes, chosen for it or by the run that goes on, and say what was chosen."""
    settings = job.settings
    if job.resumed is not None and (how := remembered(job.resumed.config)) is not None:
        return how
    options = job.processes | job.trainer_options
    # processes must not differ, and a step of what stands on kept views is short
    alone = cached is None and all(options.get(name, 1) == 1 for name in ("devices", "num_nodes"))
    images, size = job.images, settings.batch_size
    how = choose(
        module, lambda: images.get(torch.arange(size) % len(images)), job.device, job.precision,
        settings.channels_last, job.steps if alone else None,
    )  # fmt: skip
    asked = "auto" in (job.precision, settings.channels_last)
    if asked and job.progress and is_first_process() and job.device.type == "cpu":
        say(str(how), error=True)
    return how


def _trained(job: _Job, module: Module, cached: CachedViews | None, how: Auto) -> StopRequest:
    """Train from the start or the checkpoint, and write the run folder; return whether a stop was asked."""
    method, settings, folder, options = job.method, job.settings, job.folder, job.trainer_options
    precision = how.precision if job.precision == "auto" else job.precision
    if how.channels_last if settings.channels_last == "auto" else settings.channels_last:
        module.hold_channels_last(True)
    module.logs = bool(job.loggers or options.get("callbacks"))
    with (
        stop_on_signal() as stop,
        forked(job.device),
        quiet_lightning(),
        process_as_before(),
        using_threads(how.threads),
    ):
        table = MetricsTable(folder.metrics if folder else None)
        callbacks = [
            Restored(),
            *make_monitors(job.images, job.held_out, job.epochs, settings, frozen=method.frozen),
            table,
            *([ProgressLine()] if job.progress else []),
            *as_list(options.get("callbacks")),
            Checkpointer(folder.checkpoint if folder else None, stop, settings.checkpoint_seconds),
        ]
        run = {"precision": precision, "max_epochs": job.epochs, "logger": job.loggers or False}
        trainer = make_trainer(job.device, {**job.processes, **run, **options, "callbacks": callbacks})
        if cached is not None and trainer.world_size > 1:
            raise ConfigError("cache_views works in one process: leave it out, or train on one device")
        if job.resumed is not None:
            each = batch_size_of_each(job.resumed.config, settings.batch_size, trainer.world_size)
            settings = dataclasses.replace(settings, batch_size=each)
        batch = {"batch_size": settings.batch_size, "processes": trainer.world_size}
        module.fingerprint |= {"global_batch_size": math.prod(batch.values()), "precision": precision}
        module.fingerprint |= run_fingerprint(method, job.views, trainer, settings, options)
        if isinstance(job.source, Stream):
            module.fingerprint["stream_lanes"] = lane_count(trainer.world_size)
            if job.resumed is not None:
                check_lanes(job.resumed.config, trainer.world_size)
        if folder is not None or trainer.world_size > 1:
            module.fingerprint |= data_fingerprint(job.source, most=_HASHED_BYTES)
            if job.held_out is not None:  # metrics.csv is of one set
                module.fingerprint |= data_fingerprint(job.held_out, "val", most=_HASHED_BYTES)
        if folder is not None and is_first_process() and job.resumed is None:
            chosen = {"auto": {k: v for k, v in how._asdict().items() if k != "precision"}}
            begun = batch | module.fingerprint | of_data(job.source, job.held_out) | chosen
            more = {k: v for k, v in options.items() if k not in module.fingerprint}
            folder.start(begun, job.device, of_settings(settings) | more)
        if cached is not None:
            if job.resumed is not None:  # a refusal comes before the work, and leaves what is kept
                before = AtomicCheckpointIO().load_checkpoint(job.resumed.checkpoint)
                check_signature(before, module.fingerprint)
            method.to(job.device)
            seen = {k: v for k, v in module.fingerprint.items() if k.startswith(("data_", "views"))}
            recipe = (method.view_recipe, method.preprocess.config(), method.settings | method.source)
            cached.make(stop, key=repr((seen, recipe)), progress=job.progress)
        _train(trainer, module, cached or job.source, settings, job, stop)
    method.eval().to(job.device)
    record = for_the_card(job.source, batch | module.fingerprint, table.rows)
    method.card_text, method.run_record = None, record
    if folder is not None and trainer.is_global_zero:
        method.save_pretrained(folder.model)
    return stop


def _check_trains(method: Any) -> None:
    if not isinstance(method, Method):
        raise ConfigError(
            f"fit takes a method, such as VJE('resnet18'), got {short(repr(method), 40)}: make one first"
        )
    if type(method).loss is Method.loss:
        raise ConfigError(
            f"{type(method).__name__} has no loss to train by: give it, or its name, as backbone= to a method"
        )
    if not any(p.requires_grad for p in method.parameters()):
        raise ConfigError(
            f"nothing of this {type(method).__name__} is trained: it has no parameters beside its frozen "
            "encoder"
        )
    refuse_inference(method, f"this {type(method).__name__}")


def _claimed(out: str | Path | None) -> AbstractContextManager[None]:
    """Keep other processes from the run folder: the first process of a distributed run does it for all."""
    if not isinstance(out, str | Path) or not is_first_process():
        return nullcontext()
    return claimed(Path(out), folder=True)


def _run_folder(out: str | Path | None, *, resume: bool, overwrite: bool) -> RunFolder | None:
    if out is None:
        if resume or overwrite:
            raise ConfigError("resume and overwrite are about a run folder: give its path as out")
        return None
    if not isinstance(out, str | Path):
        raise ConfigError(f"out takes the path of a folder, got {short(repr(out))}")
    folder = RunFolder(out)
    if is_first_process():  # a second process of a distributed run finds the folder that the first has made
        folder.check(resume=resume, overwrite=overwrite)
    return folder


def _cached(
    method: Method, source: Images | Stream, views: Any, settings: FitSettings, folder: RunFolder | None
) -> CachedViews:
    """The views that are to be kept of each image; ConfigError where they cannot be."""
    if isinstance(source, Stream):
        raise ConfigError("cache_views keeps views of each image, and these are a stream: leave it out")
    if (drawn := _count(views)) > max(settings.cache_views, 2):
        raise ConfigError(
            f"views is {drawn}, and cache_views keeps {settings.cache_views} an image: raise it"
        )
    return CachedViews(
        source, method, views_for(method, views), settings.cache_views, seed=settings.seed,
        folder=folder.path if folder else None,
    )  # fmt: skip


def _count(views: Any) -> int:
    """How many of the kept views of an image a step draws."""
    return views if isinstance(views, int) else 2


def _compiled(asked: bool | str, device: torch.device, steps: int) -> bool:
    return device.type == "cuda" and steps >= _LEAST_COMPILED if asked == "auto" else bool(asked)


def _train(
    trainer: L.Trainer,
    module: Module,
    images: Images | Stream | CachedViews,
    settings: FitSettings,
    job: _Job,
    stop: StopRequest,
) -> None:
    device = trainer.strategy.root_device
    if device.type == "cuda" and trainer.world_size == 1:
        images = to_device(images, device)
    batches = Batches(images, settings)
    checkpoint = None if job.resumed is None else job.resumed.checkpoint
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=checkpoint)
    except DAMAGES as error:
        if lost_worker(error):
            then = "go on with resume=True (--resume)" if job.folder else "start again, nothing was saved"
            raise ProbjepaError(
                f"a process that reads images was killed in step {trainer.global_step}, most often for want "
                f"of memory or of /dev/shm: set fewer workers or a smaller batch_size, and {then}"
            ) from error
        if trainer.world_size > 1 and lost_another(error):
            then = (
                "start all of them again with resume=True (--resume)" if job.folder else "nothing was saved"
            )
            where = f"another process of the run ended in step {trainer.global_step}"
            raise ProbjepaError(f"{where}: {then}") from error
        if checkpoint is None or module.restored or isinstance(error, ProbjepaError):
            raise
        raise ArtifactError(
            f"the checkpoint {checkpoint} does not fit this run ({type(error).__name__}: "
            f"{short(first_line(error), 100)}): if it is the checkpoint's fault, start from scratch with "
            "overwrite"
        ) from error
    except MisconfigurationException as error:
        raise ConfigError(f"Lightning cannot train with these settings: {short(error, 200)}") from error
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        if not stop:
            raise
        then = (
            "go on from the last checkpoint with resume=True (--resume)"
            if job.folder
            else "nothing was saved"
        )
        raise Interrupted(f"stopped at once in step {trainer.global_step}: {then}") from None
