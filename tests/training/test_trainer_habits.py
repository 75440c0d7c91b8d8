"""What Lightning does otherwise: a step's share, runs that end early, doubles, and what it leaves in a process."""

import dataclasses
import os
import signal
import warnings
from multiprocessing import active_children

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, IterableDataset

import probjepa as pj
from probjepa.data import ImageSet, open_images
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaError, ProbjepaWarning
from probjepa.training import Interrupted, Module
from probjepa.training.checkpoint import check_signature, sign
from probjepa.training.loader import _read_ahead
from probjepa.yaml_files import read_yaml


def method(kind=pj.VJE, **more):
    torch.manual_seed(0)
    return kind("convnet", backbone_options={"widths": (4, 8)}, channels=1, image_size=8, **more)


def images(n=40, seed=1, labels=None):
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()
    return ImageSet(pixels, labels, [f"{i}.png" for i in range(n)], name=f"set {seed}")


def train(data=None, model=None, **settings):
    defaults = {"epochs": 1, "batch_size": 8, "progress": False, "device": "cpu"}
    return pj.fit(model or method(), images() if data is None else data, **defaults | settings)


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


class Gradients(L.Callback):
    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found.append([p.grad.clone() for p in pl_module.method.parameters() if p.grad is not None])


class Press(L.Callback):
    """Ctrl-C in the last step of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_last_step_of_an_epoch_has_the_mean_gradient_of_its_batches():
    """Five batches two by two: the fifth's gradient is its own, not half of it."""
    losses, terms, inner = [], [], Module.terms_of

    class Watch(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            losses.append(float(loss.detach()) * trainer.accumulate_grad_batches)

    def noted(self, *args, **kwargs):
        terms.append(inner(self, *args, **kwargs))
        return terms[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Module, "terms_of", noted)
        train(accumulate_grad_batches=2, callbacks=[Watch()])
    plain = [float(of["loss"].detach()) for of in terms]
    assert losses[:4] == pytest.approx(plain[:4]) and losses[4] == pytest.approx(2 * plain[4])


@pytest.mark.parametrize("asked", [{"max_steps": 3}, {"max_epochs": 3}])
def test_the_length_of_a_run_is_its_epochs(asked):
    with pytest.raises(ConfigError, match="is set by epochs"):
        train(**asked)


@pytest.mark.parametrize("given", [None, "one", "several"])
def test_callbacks_and_plugins_as_lightning_takes_them(given):
    seen = Gradients()
    callbacks = {None: None, "one": seen, "several": (seen,)}[given]
    train(callbacks=callbacks, plugins=None)
    assert len(seen.found) == (0 if given is None else 5)


def test_a_negative_seed_is_refused_whatever_the_size_of_the_set():
    with pytest.raises(ConfigError, match="seed takes a whole number from 0"):
        train(seed=-1)


def test_a_run_of_doubles_is_resumed_exactly(tmp_path):
    how = {"precision": "64-true", "epochs": 2}
    whole = train(out=tmp_path / "whole", **how)
    with pytest.raises(Interrupted):
        train(out=tmp_path / "run", callbacks=Press(4), **how)
    assert same(whole, train(out=tmp_path / "run", resume=True, **how))
    assert same(whole, train(out=tmp_path / "whole", resume=True, **how))
    assert whole.encoder.state_dict().keys() and next(whole.parameters()).dtype == torch.float64


def test_a_run_that_a_callback_has_ended_trains_no_more(tmp_path):
    def stopping():
        return EarlyStopping("train/loss", patience=1, min_delta=1e9)

    how = {"epochs": 6, "out": tmp_path / "run"}
    ended = train(callbacks=[stopping()], **how)
    rows = (tmp_path / "run" / "metrics.csv").read_text()
    assert rows.count("\n") == 3  # the header and two epochs
    again = train(callbacks=[stopping()], resume=True, **how)
    assert same(ended, again) and (tmp_path / "run" / "metrics.csv").read_text() == rows


def first_recipe(batch, seed):
    return [batch.float() / 255, batch.float() / 255 + 0.01]


def second_recipe(batch, seed):
    return [batch.float() / 255, batch.float() / 255 - 0.01]


def test_functions_that_make_views_are_told_apart(tmp_path):
    with pytest.raises(Interrupted):
        train(views=first_recipe, epochs=2, out=tmp_path / "run", callbacks=[Press(4)])
    assert read_yaml(tmp_path / "run" / "config.yaml")["views"] == "first_recipe"
    with pytest.raises(ArtifactError, match="views=first_recipe, this run has second_recipe"):
        train(views=second_recipe, epochs=2, out=tmp_path / "run", resume=True)
    train(views=first_recipe, epochs=2, out=tmp_path / "run", resume=True)


def test_a_run_keeps_what_it_is_looked_at_by(tmp_path):
    labelled = [images(40, seed, torch.arange(40) % 2) for seed in (1, 2)]
    how = {"epochs": 2, "out": tmp_path / "run"}
    with pytest.raises(Interrupted):
        train(labelled[0], val=labelled[1], knn_every=2, decode_size=8, callbacks=[Press(4)], **how)
    kept = read_yaml(tmp_path / "run" / "config.yaml")["options"]
    assert (kept["knn_every"], kept["decode_size"]) == (2, 8) and "monitor_every" not in kept
    with pytest.raises(ConfigError, match=r"has held-out images, 'set 2': give them again as val"):
        train(labelled[0], resume=True, **how)
    with pytest.raises(ArtifactError, match="the checkpoint was made with val_sha256="):
        train(labelled[0], val=images(40, 3, torch.arange(40) % 2), knn_every=2, resume=True, **how)
    train(labelled[0], val=labelled[1], knn_every=2, resume=True, **how)


@pytest.mark.parametrize("frozen", [False, True])
def test_held_out_images_that_say_nothing_are_named(frozen):
    labels = torch.arange(40) % 2
    model = method(freeze=frozen)
    data, val = images(40, 1, labels if frozen else None), images(40, 2, labels)
    says = "stay the same" if frozen else "set 1 has no labels"
    with pytest.warns(ProbjepaWarning, match=f"val is not used, there is no kNN: .*{says}"):
        train(data, model, val=val)


def test_what_a_process_computes_by_is_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    train(deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_overwriting_leaves_no_kept_views(tmp_path):
    how = {"out": tmp_path / "run", "epochs": 1}
    train(model=method(freeze=True), cache_views=2, **how)
    assert (tmp_path / "run" / "views.f16").exists()
    train(model=method(freeze=True), overwrite=True, **how)
    assert not {"views.f16", "views.json"} & {file.name for file in (tmp_path / "run").iterdir()}


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(8, 1, 8, 8, dtype=torch.uint8)


def loader(dataset=None):
    batches = [torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8) for _ in range(2)]
    return DataLoader(dataset or batches, batch_size=None)


QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def test_a_trainer_of_one_s_own_is_told_of_a_loader_without_a_length_and_of_too_many_epochs():
    with pytest.raises(ConfigError, match="the loader has no length"):
        L.Trainer(max_epochs=1, limit_train_batches=None, **QUIET).fit(
            Module(method(), epochs=1), loader(Endless())
        )
    L.Trainer(max_epochs=1, limit_train_batches=2, **QUIET).fit(Module(method(), epochs=1), loader(Endless()))
    with pytest.warns(ProbjepaWarning, match="the schedule ends after 1 epochs, and the Trainer goes on"):
        L.Trainer(max_epochs=2, **QUIET).fit(Module(method(), epochs=1), loader())


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ({"image": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "a dict of image"),
        ("a name", "a str"),
        ((), "a tuple"),
        (([torch.zeros(2, 1, 8, 8, dtype=torch.uint8)], 0), "a list"),
    ],
)
def test_batches_without_images_first_are_one_line(batch, what):
    with pytest.raises(DataError, match=f"the loader gave {what} for images: give batches that are a tensor"):
        Module(method(), epochs=1).terms_of(batch, 0)


def test_a_checkpoint_of_a_streamed_fit_is_refused_by_another_trainer():
    checkpoint = {}
    sign(checkpoint, {"data_images": 9, "data_files": "abc of 9 images", "epochs": 1})
    with pytest.raises(ArtifactError, match="the checkpoint was made with"):
        check_signature(checkpoint, {"epochs": 2})


class KillWorkers(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            for worker in active_children():
                os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize("out", [None, "run"])
def test_a_worker_that_is_killed_is_one_line(tmp_path, out):
    data = tmp_path / "rows.npy"
    np.save(data, images(400).images[:, 0].numpy())
    data = open_images(data, memory_limit=0)
    with pytest.raises(ProbjepaError, match="most often for want of memory or of /dev/shm: set few") as error:
        train(data, workers=2, callbacks=[KillWorkers()], out=out and tmp_path / out)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("(--resume)" if out else "nothing was saved")


class Fail(L.Callback):
    def on_train_batch_end(self, *_):
        raise RuntimeError("of somebody else")


def test_another_error_of_torch_stays_as_it_is():
    with pytest.raises(RuntimeError, match=r"^of somebody else$"):
        train(callbacks=[Fail()])


class Numbers(IterableDataset):
    def __iter__(self):
        yield from range(40)


def test_a_signal_to_the_group_leaves_the_readers_at_work():
    """They serve the step that the run still finishes."""
    before = set(active_children())
    numbers = _read_ahead(Numbers(), 2)
    found = [next(numbers), next(numbers)]  # one of each
    workers = set(active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker.pid, signum)
    found += list(numbers)
    assert sorted(found) == sorted([*range(40)] * 2)


def test_settings_have_no_field_that_a_resume_forgets():
    """Each is compared, kept among the options, or recorded by another name."""
    from probjepa.training import FitSettings
    from probjepa.training.record import of_settings

    changed = FitSettings(knn_every=1, monitor_every=2, workers=3, checkpoint_seconds=9.0, decode_size=9)
    known = {
        *of_settings(changed), *(field.name for field in dataclasses.fields(FitSettings.__mro__[1])),
        "batch_size", "device", "loggers", "cache_views", "stream", "stream_buffer",
        "on_error", "convert", "channels_last", "compile",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(FitSettings)} == known


def test_load_from_checkpoint_puts_the_weights_into_a_method(tmp_path):
    trained, fresh = method(), method()
    pixels = DataLoader(images().images, batch_size=8)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Module(trained, epochs=1), pixels)
    path = tmp_path / "end.ckpt"
    trainer.save_checkpoint(path)
    assert not same(trained, fresh)
    loaded = Module.load_from_checkpoint(path, method=fresh, epochs=1)
    assert loaded.method is fresh and same(trained, fresh)
    for settings in (
        {"epochs": 3},
        {"epochs": 1, "seed": 4, "learning_rate": 0.3},
    ):  # of the run, not of the weights
        other = method()
        Module.load_from_checkpoint(path, method=other, **settings)
        assert same(trained, other)
    with pytest.raises(ArtifactError, match=r"made with method\.df=1"):
        Module.load_from_checkpoint(path, method=method(df=3.0), epochs=1)


@pytest.mark.parametrize(("change", "was", "now"), [({"accumulate_grad_batches": 2}, 20, 12), ({}, 20, 20)])
def test_a_resume_with_another_number_of_steps_is_told(tmp_path, change, was, now):
    def trainer(epochs, **options):
        return L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=tmp_path,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         **options)  # fmt: skip

    pixels = pj.training.EpochLoader(images(), 8, seed=0)
    of = method(mean=[0.5], std=[0.25])
    first = trainer(2)
    first.fit(Module(of, epochs=4), pixels)
    first.save_checkpoint(tmp_path / "half.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ProbjepaWarning)
        trainer(4, **change).fit(Module(of, epochs=4), pixels, ckpt_path=tmp_path / "half.ckpt")
    said = [str(one.message) for one in caught if "the learning rate jumps" in str(one.message)]
    assert len(said) == (was != now)
    if said:
        assert said[0].startswith(
            f"the schedule had {was} steps when the checkpoint was written, and has {now} now"
        )


def test_a_trainer_of_ones_own_is_told_of_statistics_that_nobody_took():
    def train(of):
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(of, epochs=1), pj.training.EpochLoader(images(), 8, seed=0))

    with pytest.warns(ProbjepaWarning, match=r"call method\.calibrate\(images\)"):
        train(method())
    calibrated = method()
    calibrated.calibrate(images().images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProbjepaWarning)
        train(calibrated)
        train(method(mean=(0.1,), std=(0.2,)))
