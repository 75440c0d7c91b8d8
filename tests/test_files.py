"""Files are whole or as they were: full disks, moves cut short, what killed processes left."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import probjepa as pj
from probjepa import files
from probjepa.errors import ArtifactError
from saved_models import FILES, refused, same, small


@pytest.fixture
def saved(tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


# --- writing --------------------------------------------------------------------------------------------


def test_saving_over_a_model_replaces_it(saved):
    _, folder = saved
    (folder / "README.md").write_text("my own card")
    (folder / "notes.txt").write_text("mine")
    other = small(seed=1, df=7.0)
    other.save_pretrained(folder)
    assert same(pj.load(folder), other)
    assert pj.load(folder).df == 7.0
    assert {p.name for p in folder.iterdir()} == FILES | {"notes.txt"}
    assert (folder / "README.md").read_text() == "my own card"


def test_a_move_cut_short_leaves_no_mixture(saved, monkeypatch):
    _, folder = saved
    replace, moves = Path.replace, []

    def once(self, target):
        moves.append(target)
        if len(moves) == 3:
            raise KeyboardInterrupt
        return replace(self, target)

    (folder / "README.md").unlink()
    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        small(seed=1, df=7.0).save_pretrained(folder)
    monkeypatch.undo()
    assert len(moves) == 3  # the weights are in place, the settings are not
    refused(folder, "holds no model")
    assert not list(folder.glob(".stage-*"))


@contextlib.contextmanager
def largest_file(size):
    """Let the system refuse to write files beyond ``size`` bytes, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fault", ["limit", "write_bytes", "write_text", "mkdtemp"])
def test_a_full_disk_keeps_the_old_model(fault, saved, monkeypatch):
    model, folder = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    if fault == "limit":
        writing, match = largest_file(4096), "File too large"
    else:
        writing, match = contextlib.nullcontext(), "No space left on device"
        home = files.tempfile if fault == "mkdtemp" else Path
        monkeypatch.setattr(home, fault, full)
    with writing, pytest.raises(ArtifactError, match=f"cannot write .*{match}; free some space") as error:
        small(seed=1).save_pretrained(folder)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert same(pj.load(folder), model)


@pytest.mark.parametrize("fault", ["limit", "write_text", "replace"])
def test_a_full_disk_keeps_the_old_file(fault, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "metrics.json"
    files.write_text(path, "old")
    if fault == "limit":
        writing = largest_file(4096)
    else:
        writing = contextlib.nullcontext()
        monkeypatch.setattr(Path, fault, full)
    with writing, pytest.raises(ArtifactError, match=r"cannot write .*metrics\.json") as error:
        files.write_text(path, "new" * 10_000)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (
        lambda: small().save_pretrained(tmp_path / "file"),
        lambda: small().save_pretrained(tmp_path / "file" / "model"),
        lambda: files.write_text(tmp_path / "file" / "x.json", ""),
    ):
        with pytest.raises(ArtifactError, match="cannot write") as error:
            write()
        assert "\n" not in str(error.value)


def test_an_error_of_the_callers_own_passes_and_leaves_nothing(tmp_path):
    def fail(stage):
        stage.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), files.staged_file(tmp_path / "x") as stage:
        fail(stage)
    with pytest.raises(ZeroDivisionError), files.staged_directory(tmp_path) as stage:
        fail(stage / "half")
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_not_overwritten_unasked(tmp_path):
    file, folder, empty = tmp_path / "a.parquet", tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    for path in (file, folder, empty):
        files.refuse_existing(path, overwrite=False)
    file.write_text("")
    folder.mkdir()
    (folder / "x").write_text("")
    for path in (file, folder):
        files.refuse_existing(path, overwrite=True)
        with pytest.raises(ArtifactError, match="--overwrite"):
            files.refuse_existing(path, overwrite=False)


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_swept_and_what_others_write_is_not(tmp_path):
    host = socket.gethostname()
    left = tmp_path / f".x.json.{host}-{dead_process()}-abc.tmp"
    busy = tmp_path / f".x.json.{host}-{os.getpid()}-abc.tmp"
    elsewhere = tmp_path / ".x.json.another-1-abc.tmp"
    others = tmp_path / f".y.json.{host}-{dead_process()}-abc.tmp"
    for path in (left, busy, elsewhere, others):
        path.write_text("half")
    files.write_text(tmp_path / "x.json", "{}")
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", busy.name, elsewhere.name, others.name}
    stage = tmp_path / f".stage-{host}-{dead_process()}-abc"
    stage.mkdir()
    (stage / "model.safetensors").write_bytes(b"half")
    small().save_pretrained(tmp_path)
    assert not stage.exists()
