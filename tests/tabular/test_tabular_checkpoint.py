"""A fit that was stopped and gone on with is the fit that was never stopped."""

import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from tabular_cases import mixed_table

from probjepa.errors import ArtifactError
from probjepa.tabular import TJEPA, VarTJEPA
from probjepa.training.checkpoint import FitCheckpoint
from probjepa.training.interrupt import Interrupted
from probjepa.training.progress import ProgressBar

TINY = {
    "max_epochs": 6, "batch_size": 16, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "dropout": 0.1,
    "warmup_epochs": 1, "random_state": 3, "device": "cpu",
}  # fmt: skip
BOTH = pytest.mark.parametrize("kind", [VarTJEPA, TJEPA])


def model_of(kind, **changes):
    own = {"validation_fraction": 0.3, "patience": 2, "anneal_epochs": (2, 3, 2)} if kind is VarTJEPA else {}
    return kind(**TINY | own | changes)


def stop_in(monkeypatch, epoch, how="error"):
    """A stop after the first step of an epoch, counted from 1: KeyboardInterrupt, or a signal."""
    seen = set()

    def update(self, done, number, epochs):
        if number == epoch and epoch not in seen:
            if how == "error":
                raise KeyboardInterrupt
            os.kill(os.getpid(), how)
        seen.add(number)

    monkeypatch.setattr(ProgressBar, "update", update)


def assert_same(one, two):
    assert one.history_ == two.history_
    assert (one.best_epoch_, one.n_iter_) == (two.best_epoch_, two.n_iter_)
    pairs = zip(one.network_.state_dict().items(), two.network_.state_dict().values(), strict=True)
    for (name, a), b in pairs:
        assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def wholes():
    """A fit of each kind that nothing stopped, without a checkpoint."""
    return {kind: model_of(kind).fit(mixed_table()) for kind in (VarTJEPA, TJEPA)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, wholes):
    """The bytes of the checkpoint of a fit that has ended."""
    place = tmp_path_factory.mktemp("finished") / "fit.ckpt"
    assert_same(model_of(VarTJEPA).fit(mixed_table(), checkpoint=place), wholes[VarTJEPA])
    return place.read_bytes()


EPOCHS, HOWS = (2, 4, 6), ("error", signal.SIGINT, signal.SIGTERM)
STOPS = [
    pytest.param(epoch, how, marks=() if EPOCHS.index(epoch) == HOWS.index(how) else pytest.mark.nightly)
    for epoch in EPOCHS
    for how in HOWS
]


@BOTH
@pytest.mark.parametrize(("epoch", "how"), STOPS)
def test_a_stopped_fit_goes_on_as_if_it_had_not_been(kind, epoch, how, wholes, tmp_path, monkeypatch):
    table, place = mixed_table(), tmp_path / "deep" / "fit.ckpt"
    whole, stopped = wholes[kind], model_of(kind)
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_in(patch, epoch, how)
        with pytest.raises(Interrupted, match=f"in epoch {epoch}: .* from its checkpoint"):
            stopped.fit(table, checkpoint=str(place))
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert stopped.history_ == whole.history_[: epoch - 1]
    assert np.isfinite(stopped.transform(table)).all()
    torch.manual_seed(99)  # what the caller's generator holds does not matter
    resumed = model_of(kind).fit(table, checkpoint=place)
    assert_same(resumed, whole)
    np.testing.assert_array_equal(resumed.transform(table), whole.transform(table))
    assert_same(model_of(kind).fit(table, checkpoint=place), whole)  # once more, from its end
    assert [path.name for path in place.parent.iterdir()] == ["fit.ckpt"]


def test_a_signal_in_the_last_step_of_an_epoch_stops_after_the_epoch(tmp_path, monkeypatch, capsys):
    table, model = mixed_table(), model_of(TJEPA)

    def update(self, done, number, epochs):
        if done == 6:  # of three steps an epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressBar, "update", update)
    with pytest.raises(Interrupted, match="was stopped in epoch 3: it has the weights of epoch 2"):
        model.fit(table, checkpoint=tmp_path / "fit.ckpt")
    assert "stopping after this step; press Ctrl-C again" in capsys.readouterr().err
    assert model.n_iter_ == model.best_epoch_ == 2


def test_a_fit_that_stopped_early_stops_there_again(tmp_path):
    table = mixed_table()
    settings = {"max_epochs": 40, "learning_rate": 0.3, "patience": 1}
    whole = model_of(VarTJEPA, **settings).fit(table, checkpoint=tmp_path / "fit.ckpt")
    assert whole.n_iter_ < 40
    assert_same(model_of(VarTJEPA, **settings).fit(table, checkpoint=tmp_path / "fit.ckpt"), whole)


@pytest.mark.parametrize(
    "other",
    [{"learning_rate": 0.01}, {"max_epochs": 7}, {"random_state": 4}, {"numeric_transform": "standard"}],
)
def test_a_checkpoint_is_of_one_fit(other, finished, tmp_path):
    place = tmp_path / "fit.ckpt"
    place.write_bytes(finished)
    named = "data_sha256" if "numeric_transform" in other else next(iter(other))
    with pytest.raises(ArtifactError, match=f"was made with {named}=.*, or remove .*fit.ckpt"):
        model_of(VarTJEPA, **other).fit(mixed_table(), checkpoint=place)
    with pytest.raises(ArtifactError, match="was made with estimator=VarTJEPA, this run has TJEPA"):
        model_of(TJEPA).fit(mixed_table(), checkpoint=place)
    with pytest.raises(ArtifactError, match="was made with data_sha256="):
        model_of(VarTJEPA).fit(mixed_table().iloc[::-1], checkpoint=place)
    assert place.read_bytes() == finished


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch /tmp/probjepa-was-here",)


@pytest.mark.parametrize("content", ["empty", "cut", "text", "pickle", "another"])
def test_a_damaged_checkpoint_is_one_line(content, finished, tmp_path):
    place = tmp_path / "fit.ckpt"
    if content in ("pickle", "another"):
        torch.save({"state": Dangerous()} if content == "pickle" else {"state": {}}, place)
    else:
        place.write_bytes({"empty": b"", "cut": finished[: len(finished) // 2], "text": b"hello"}[content])
    with pytest.raises(ArtifactError, match="damaged or not one that probjepa wrote") as error:
        model_of(VarTJEPA).fit(mixed_table(), checkpoint=place)
    assert "\n" not in str(error.value)
    assert not os.path.exists("/tmp/probjepa-was-here")


def test_nothing_is_written_before_the_first_epoch_is_over(tmp_path, monkeypatch):
    begun = []
    checkpoint = FitCheckpoint(tmp_path / "fit.ckpt", before=lambda: begun.append(1))
    with monkeypatch.context() as patch:
        stop_in(patch, 1)
        with pytest.raises(Interrupted, match="before its first epoch ended"):
            model_of(TJEPA).fit(mixed_table(), checkpoint=checkpoint)
    assert not begun and not list(tmp_path.iterdir())
    model_of(TJEPA).fit(mixed_table(), checkpoint=checkpoint)
    assert begun == [1]


def test_a_fit_that_is_not_gone_on_with_ignores_what_is_there(wholes, tmp_path):
    place = tmp_path / "fit.ckpt"
    place.write_bytes(b"of another fit")
    fresh = model_of(TJEPA).fit(mixed_table(), checkpoint=FitCheckpoint(place, resume=False))
    assert_same(fresh, wholes[TJEPA])
    assert_same(fresh, model_of(TJEPA).fit(mixed_table(), checkpoint=place))


def test_writing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    from probjepa.training import checkpoint as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    written = []

    def slow(path, content):
        written.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr(module.model_files, "write_checkpoint", slow)
    checkpoint = FitCheckpoint(tmp_path / "fit.ckpt")
    for _ in range(50):
        clock[0] += 1.0
        checkpoint.write(dict)
    assert written[0] == 1.0
    assert all(later - earlier >= 21 for earlier, later in pairwise(written))
    assert len(written) == 3


def test_a_checkpoint_from_before_intervals_widened_goes_on(finished, wholes, tmp_path):
    place = tmp_path / "fit.ckpt"
    place.write_bytes(finished)
    content = torch.load(place, weights_only=True)
    state = content["state"]
    for weights in (state["network"], state["best_state"]):
        weights["calibration.reach"] = weights["calibration.reach"][0]
    older = FitCheckpoint(place)
    older.fingerprint = content["probjepa"]["fingerprint"]
    older.write(lambda: state, at_once=True)
    assert_same(model_of(VarTJEPA).fit(mixed_table(), checkpoint=place), wholes[VarTJEPA])
