"""Run folders of tables: wherever a fit is stopped, what stands is usable, and --resume ends the same."""

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from tabular_cases import mixed_table

import probjepa as pj
from probjepa.errors import ArtifactError
from probjepa.tabular import TJEPA
from probjepa.tabular.runs import fit_run
from probjepa.training.folder import RunFolder
from probjepa.training.interrupt import Interrupted

TINY = {
    "max_epochs": 3, "batch_size": 16, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "warmup_epochs": 1,
    "random_state": 3, "device": "cpu",
}  # fmt: skip


def run(out, resume=False, overwrite=False):
    folder = RunFolder(out)
    folder.check(resume=resume, overwrite=overwrite)
    fit_run("t-jepa", TJEPA(**TINY), mixed_table(), folder, {}, resume=resume)


def content(out):
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    state = torch.load(io.BytesIO(found["checkpoints/last.ckpt"]))["state"]
    return found | {"checkpoints/last.ckpt": repr(state)}  # the file's bytes depend on which tensors share


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out)
    return content(out)


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """The folder of a finished run of other settings."""
    out = tmp_path_factory.mktemp("runs") / "another"
    fit_run("t-jepa", TJEPA(**TINY | {"dim": 4}), mixed_table(), RunFolder(out), {})
    return out


def stop_at(monkeypatch, number, after):
    """A KeyboardInterrupt, as a second Ctrl-C raises it, beside a file's rename, counted from 1."""
    rename, seen = Path.replace, []

    def replace(self, target):
        seen.append(target)
        if len(seen) == number and not after:
            raise KeyboardInterrupt
        made = rename(self, target)
        if len(seen) == number:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Path, "replace", replace)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*config\.yaml: No space left"):
        run(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("over", [False, True], ids=["first", "over another"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_run_that_is_stopped_at_once_while_it_writes_goes_on(
    number, after, over, whole, another, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    if over:
        shutil.copytree(another, out)
    with monkeypatch.context() as patch:
        stop_at(patch, number, after)
        with pytest.raises((Interrupted, KeyboardInterrupt)) as stopped:
            run(out, overwrite=over)
    if stopped.type is Interrupted and "can be used" in str(stopped.value):
        assert pj.load(out).transform(mixed_table()).shape[0] == len(mixed_table())
        assert (out / "checkpoints" / "last.ckpt").is_file()
    try:
        run(out, resume=True)
    except ArtifactError:
        assert over or not out.exists()  # the one before still stands, or its record does; or none has begun
        run(out, overwrite=over)
    assert content(out) == whole
