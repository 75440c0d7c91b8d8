"""A checkpoint is whole or not there."""

import errno
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from probjepa import __version__
from probjepa.errors import ArtifactError
from probjepa.files import _PROCESS, _SWEPT, temporary_name
from probjepa.training.callbacks import AtomicCheckpointIO
from probjepa.training.checkpoint import CHECKPOINT_FORMAT, check_signature, sign
from probjepa.training.folder import RunFolder


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.arange(3.0)}, path)
    return path


def holds_the_old_one(path):
    return torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weight"], torch.arange(3.0))


def test_round_trip_leaves_one_file(saved):
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2), "step": 7}, saved)
    assert AtomicCheckpointIO().load_checkpoint(saved)["step"] == 7
    assert os.listdir(saved.parent) == ["last.ckpt"]


class Full:
    """A file on a disk that fills up: half of the content arrives."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ArtifactError,
            "No space left on device; free some space",
        ),
        (OSError(errno.EACCES, "Permission denied"), ArtifactError, "Permission denied"),
        (KeyboardInterrupt("enough"), KeyboardInterrupt, "enough"),
    ],
)
def test_a_failed_write_keeps_the_old_checkpoint_and_leaves_nothing_behind(
    saved, monkeypatch, error, raised, message
):
    monkeypatch.setattr("builtins.open", lambda path, mode, _open=open: Full(_open(path, mode), error))
    with pytest.raises(raised, match=message) as caught:
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(100)}, saved)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert os.listdir(saved.parent) == ["last.ckpt"]
    assert holds_the_old_one(saved)


def test_what_a_killed_process_left_half_written_is_overwritten(saved):
    (saved.parent / temporary_name("last.ckpt").replace(_PROCESS, "0" * 8)).write_bytes(b"half")
    _SWEPT.clear()
    assert holds_the_old_one(saved)
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, saved)
    assert os.listdir(saved.parent) == ["last.ckpt"]


class Payload:
    def __reduce__(self):
        return (os.mkdir, (str(Payload.place),))


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    Payload.place = tmp_path / "was_run"
    for write in (lambda f: pickle.dump(Payload(), f, protocol=2), lambda f: torch.save({"x": Payload()}, f)):
        with open(tmp_path / "bad.ckpt", "wb") as file:
            write(file)
        with pytest.raises(ArtifactError, match="damaged or not one that probjepa wrote"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)
    assert not Payload.place.exists()


def test_missing_and_truncated_checkpoints_are_one_line_errors(saved):
    with pytest.raises(ArtifactError, match="no checkpoint at"):
        AtomicCheckpointIO().load_checkpoint(saved.with_name("none.ckpt"))
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="damaged") as caught:
        AtomicCheckpointIO().load_checkpoint(saved)
    assert "\n" not in str(caught.value)


def test_another_format_version_or_setting_is_refused():
    good = {"format": CHECKPOINT_FORMAT, "version": __version__, "fingerprint": {"batch_size": 8}}
    signed = {}
    sign(signed, {"batch_size": 8})
    assert signed == {"probjepa": good}
    check_signature(signed, {"batch_size": 8})
    with pytest.raises(ArtifactError, match="batch_size=8, this run has 16"):
        check_signature(signed, {"batch_size": 16})
    with pytest.raises(ArtifactError, match=r"size=None, this run has 16: resume .*, or remove it$"):
        check_signature(signed, {"size": 16}, "remove it")
    with pytest.raises(ArtifactError, match=r"probjepa 0\.0\.1"):
        check_signature({"probjepa": good | {"version": "0.0.1"}}, {"batch_size": 8})
    with pytest.raises(ArtifactError, match="format 99"):
        check_signature({"probjepa": good | {"format": 99}}, {"batch_size": 8})
    for unsigned in ({}, {"probjepa": None}):
        with pytest.raises(ArtifactError, match="not probjepa's"):
            check_signature(unsigned, {})


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_killed_before_its_config_begins_again(how, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / temporary_name("config.yaml")).write_text("half")
    folder.check(**{"resume": False, "overwrite": False} | how)
    with pytest.raises(ArtifactError, match="holds no run to resume"):
        RunFolder(tmp_path / "typo").check(resume=True, overwrite=False)


def test_a_run_is_overwritten_in_an_order_that_can_be_cut_short(tmp_path, monkeypatch):
    folder, settings = RunFolder(tmp_path), {"method": "vje", "method.df": 3}
    seen = []

    def look(name):
        before = getattr(shutil if name == "rmtree" else Path, name)

        def looked(*args, **kwargs):
            folder.check(resume=False, overwrite=True)  # what stands now could be overwritten again
            seen.append({p.name for p in tmp_path.iterdir() if not p.name.startswith(".")})
            return before(*args, **kwargs)

        return looked

    folder.start(settings, torch.device("cpu"), {})
    for name in ("model", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "metrics.csv").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(shutil, "rmtree", look("rmtree"))
    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, look(name))
    folder.start(settings | {"method.df": 5}, torch.device("cpu"), {})
    monkeypatch.undo()
    assert len(seen) > 4 and all("config.yaml" in names for names in seen)
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "notes.txt"}
    assert "df: 5" in folder.config.read_text()
