"""Training on shards that are streamed: resumed anywhere it ends as if it had been left alone."""

import os
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import active_children

import pytest
import test_fit_resume as resumed
import torch
import yaml
from torch import distributed as dist

from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaWarning
from probjepa.training import Interrupted
from probjepa.training.loader import EpochLoader, StreamLoader, make_loader
from processes import READY
from shard_cases import needs_litdata, opened, write_numbered

SETTINGS = {"stream": True, "stream_buffer": 32, "workers": 0, "checkpoint_seconds": 0.0}
EPOCHS, STEPS = 2, 5


def train(out, data, **settings):
    return resumed.train(out, data=str(data), **{"epochs": EPOCHS} | SETTINGS | settings)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("data") / "shards", (20, 3, 19))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shards):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(out, shards)


def test_the_run_says_what_it_was_trained_on(whole, shards):
    config = yaml.safe_load((whole[0] / "config.yaml").read_text())
    assert (config["data"], config["data_images"], config["data_shards"]) == (str(shards), 42, 3)
    assert config["stream_buffer"] == 32
    rows = resumed.table(whole[0])
    assert [row["step"] for row in rows] == ["5", "10"]
    assert all(float(row["effective_rank"]) > 0 for row in rows)
    assert "unreadable" not in rows[0]


# in an epoch, at its end, in the next one; with reading processes or without
@pytest.mark.parametrize(("step", "workers"), [(1, 0), (4, 0), (6, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, shards, step, workers):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, shards, callbacks=[resumed.SignalAt(step)], workers=workers)
    method = train(out, shards, resume=True, stream="auto")  # goes on as it was begun
    resumed.assert_same_weights(whole[1], method)
    assert resumed.table(out) == resumed.table(whole[0])


@needs_litdata
def test_chunks_of_litdata_are_streamed_unasked_to_the_same_weights(tmp_path, whole):
    data = write_numbered(tmp_path / "chunks", (20, 3, 19), "bin")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", data, stream="auto", callbacks=[resumed.SignalAt(4)])
    method = train(tmp_path / "run", data, resume=True, stream="auto")
    resumed.assert_same_weights(whole[1], method)


def test_a_run_that_is_cut_off_between_two_checkpoints_resumes_exactly(tmp_path, whole, shards):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped at once in step 7"):
        train(out, shards, callbacks=[resumed.SignalAt(7, times=2)])
    resumed.assert_same_weights(whole[1], train(out, shards, resume=True))


def test_no_copy_of_the_shards_is_made(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "empty"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "empty").mkdir()
    train(None, shards, epochs=1)
    assert not list((tmp_path / "empty").iterdir())


def test_a_resume_on_other_shards_or_another_buffer_is_refused(tmp_path, whole, shards):
    with pytest.raises(ArtifactError, match="stream_buffer=32, this run has 64"):
        train(whole[0], shards, resume=True, stream_buffer=64)
    copy = shutil.copytree(shards, tmp_path / "copy")  # with its times
    train(whole[0], copy, resume=True)
    os.utime(copy / "part-01.parquet")
    with pytest.raises(ArtifactError, match=r"data_sha256=.*: resume with the same data"):
        train(whole[0], copy, resume=True)


def test_a_resume_by_processes_that_read_in_another_order_is_refused(tmp_path, whole, shards):
    copy = shutil.copytree(whole[0], tmp_path / "run")
    lines = (copy / "config.yaml").read_text()
    assert "stream_lanes: 32\n" in lines
    (copy / "config.yaml").write_text(lines.replace("stream_lanes: 32\n", "stream_lanes: 33\n"))
    with pytest.raises(ConfigError, match=r"^1 processes read .* one of these numbers: 3, 11, 33$"):
        train(copy, shards, resume=True)


def test_rows_that_cannot_be_read_are_counted_and_shorten_no_epoch(tmp_path):
    data = write_numbered(tmp_path / "shards", (20, 22), spoil={3, 30})
    with pytest.raises(DataError, match=r"row 3 is not an image|row 10 is not an image"):
        train(None, data)
    with pytest.warns(ProbjepaWarning, match="another image is in its place, and metrics.csv counts"):
        method = train(tmp_path / "run", data, on_error="skip", batch_size=7)
    rows = resumed.table(tmp_path / "run")
    assert [row["step"] for row in rows] == ["6", "12"]
    assert [row["unreadable"] for row in rows] == ["2", "2"]
    out = tmp_path / "other"
    with pytest.raises(Interrupted), pytest.warns(ProbjepaWarning):
        train(out, data, on_error="skip", batch_size=7, callbacks=[resumed.SignalAt(4)])
    resumed.assert_same_weights(method, train(out, data, on_error="skip", batch_size=7, resume=True))
    assert resumed.table(out) == rows


def left_out(rank, folder, store):
    """How many rows a process of two counts in an epoch that is stopped half way, and goes on."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    stream = opened(folder, on_error="skip")
    first, then = (StreamLoader(stream, 5, seed=0, rank=rank, world_size=2) for _ in range(2))
    list(islice(first, 2))
    states = [first.state_dict()]  # of all processes; the first one's is written
    dist.broadcast_object_list(states)
    list(first)
    then.load_state_dict(states[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(then)
    counts = [first.unreadable, then.unreadable]
    dist.destroy_process_group()
    return counts


@pytest.mark.filterwarnings("ignore:.*another image is in its place")
def test_rows_that_two_processes_leave_out_are_counted_once_after_a_resume(tmp_path):
    data = write_numbered(tmp_path / "shards", (20, 22), spoil=range(3, 42, 3))
    with ProcessPoolExecutor(2, mp_context=READY) as pool:
        jobs = [pool.submit(left_out, rank, data, str(tmp_path / "store")) for rank in (0, 1)]
        counts = [job.result() for job in jobs]
    whole, resumed_ = (sum(of) for of in zip(*counts, strict=True))
    assert whole == resumed_ > 0


def test_one_core_is_no_reason_for_a_warning(shards, tmp_path, monkeypatch):
    """PyTorch's, of more workers than cores, is also in the way of commands that are to be quiet."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "run", shards, workers=2)


def test_what_a_stream_cannot_do_is_one_line(shards, tmp_path):
    with pytest.raises(ConfigError, match="batch_size 64 is more than the 42 images: set it to 42"):
        train(None, shards, batch_size=64)
    with pytest.raises(ConfigError, match="stream_buffer must be 32 or more, got 8"):
        train(None, shards, stream_buffer=8)
    frozen = resumed.VJE(resumed.small_method().eval(), freeze=True)
    with pytest.raises(ConfigError, match="these are a stream: leave it out"):
        resumed.train(None, frozen, data=str(shards), cache_views=2, **SETTINGS)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_loader_gives_the_same_batches_with_any_number_of_workers(shards, workers):
    stream = opened(shards)
    expected = list(StreamLoader(stream, 5, seed=3))
    loader = make_loader(stream, 5, seed=3, workers=workers)
    state = torch.random.get_rng_state()
    found = [batch.clone() for batch in loader]
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(found) == len(loader) == 8
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert isinstance(make_loader(stream.sample, 5, seed=3), EpochLoader)


def test_an_error_in_a_worker_is_one_line(tmp_path):
    stream = opened(write_numbered(tmp_path / "shards", (20, 22)))
    os.utime(tmp_path / "shards" / "part-00.parquet")
    before = set(active_children())
    with pytest.raises(DataError, match=r"part-00.parquet' has changed") as caught:
        list(StreamLoader(stream, 5, seed=3, workers=1))
    assert "\n" not in str(caught.value)
    # though the error, whose traceback has the loader's frames, is still held
    assert not set(active_children()) - before
