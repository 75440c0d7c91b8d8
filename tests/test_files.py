"""Files are whole or as they were: full disks, moves cut short, what killed processes left."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import probjepa as pj
from probjepa import files, model_files
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
        if len(moves) == 4:  # the mark, the weights, then the settings: in the stage they have moved once
            raise KeyboardInterrupt
        return replace(self, target)

    (folder / "README.md").unlink()
    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        small(seed=1, df=7.0).save_pretrained(folder)
    monkeypatch.undo()
    assert len(moves) == 4  # the weights are in place, the settings are not
    refused(folder, "holds no model")
    files.refuse_existing(folder, overwrite=False)  # the same command begins again
    files.refuse_foreign(folder)
    small(seed=1, df=7.0).save_pretrained(folder)
    assert not list(folder.glob(".*"))
    with pytest.raises(ArtifactError, match="exists already"):
        files.refuse_existing(folder, overwrite=False)
    with pytest.raises(ArtifactError, match="no report"):
        files.refuse_foreign(folder)


def test_a_run_stays_one_where_a_move_into_it_was_cut_short(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("a run's")

    def killed(self, target):
        raise KeyboardInterrupt

    def written():
        with files.staged_directory(run) as stage:
            (stage / "metrics.csv").write_text("epoch")
            monkeypatch.setattr(Path, "replace", killed)

    with pytest.raises(KeyboardInterrupt):
        written()
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="exists already"):
        files.refuse_existing(run, overwrite=False)


def at_event(monkeypatch, number, folder):
    """Interrupt before the file in a folder, counted from 1, that is removed or comes into it."""
    replace, unlink, seen = Path.replace, Path.unlink, []

    def count(place):
        if Path(place).parent == folder:
            seen.append(place)
            if len(seen) == number:
                raise KeyboardInterrupt

    def replaced(self, target):
        count(target)
        return replace(self, target)

    def unlinked(self, missing_ok=False):
        count(self)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_move_that_is_cut_short_anywhere_is_known_as_such_whatever_old_files_go(tmp_path, monkeypatch):
    out = tmp_path / "out"
    old = {"report.html": "old", "keep.txt": "old", "duplicate.txt": "old", "mine": "mine"}
    new = {"report.html": "new", "keep.txt": "new", "mine": "mine"}

    def write():
        with files.staged_directory(out, last="report.html", drop=("duplicate.txt", "twins.txt")) as stage:
            (stage / "report.html").write_text("new")
            (stage / "keep.txt").write_text("new")

    out.mkdir()
    states = []
    for number in range(1, 10):
        for name, text in old.items():
            (out / name).write_text(text)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            at_event(patch, number, out)
            write()
        left = contents(out)
        marked = left.pop(files.MOVING, None) is not None
        assert marked == ("report.html" not in left) or number == 8  # where it is the mark's removal
        if marked and "report.html" not in left:
            states.append("cut short")
            files.refuse_existing(out, overwrite=False)
            files.refuse_foreign(out)
        else:
            states.append("old" if left == old else "new")
            assert left in (old, new)
        write()
        assert contents(out) == new
    assert states == ["old"] * 3 + ["cut short"] * 4 + ["new"] * 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_mark_that_cannot_be_written_leaves_the_folder_as_it_was(error, saved, monkeypatch):
    model, folder = saved
    before, write = {p.name: p.read_bytes() for p in folder.iterdir()}, Path.write_text

    def half(self, text, **options):
        if files.MOVING in self.name:
            write(self, "")
            raise error
        return write(self, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(ArtifactError if isinstance(error, OSError) else KeyboardInterrupt):
            small(seed=1).save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert same(pj.load(folder), model)


def test_an_empty_mark_is_none(saved):
    _, folder = saved
    (folder / files.MOVING).write_text("")  # as an earlier version left it on a full disk
    (folder / files.CONFIG).unlink()
    with pytest.raises(ArtifactError, match="exists already"):
        files.refuse_existing(folder, overwrite=False)
    small(seed=1).save_pretrained(folder)
    assert not list(folder.glob(".*"))


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


@pytest.mark.parametrize("fault", ["limit", "write_bytes", "write_text", "mkdir"])
def test_a_full_disk_keeps_the_old_model(fault, saved, monkeypatch):
    model, folder = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    if fault == "limit":
        writing, match = largest_file(4096), "File too large"
    else:
        writing, match = contextlib.nullcontext(), "No space left on device"
        monkeypatch.setattr(Path, fault, full)
    with writing, pytest.raises(ArtifactError, match=f"cannot write .*{match}; free some space") as error:
        small(seed=1).save_pretrained(folder)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert same(pj.load(folder), model)


@pytest.mark.parametrize("there", [False, True])
def test_what_cannot_be_written_is_called_what_it_will_be(there, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with files.staged_directory(out) as stage:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(ArtifactError) as error:
                files.write_text(stage / "metrics.json", "{}")
        (stage / "config.json").write_text("{}")
    assert str(error.value).startswith(f"cannot write {out / 'metrics.json'}: No space left on device;")


def test_a_part_that_finds_no_room_says_how_to_go_on(tmp_path, monkeypatch):
    parts = files.parts_of(tmp_path / "s.parquet")
    parts.mkdir()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError) as error:
        files.write_text(parts / "a-0.parquet", "{}")
    assert str(error.value) == (
        f"cannot write a part of {tmp_path / 's.parquet'}: No space left on device; free some space and run "
        "the same command again: it goes on"
    )


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
        with pytest.raises(
            ArtifactError, match=r"cannot write|is a file: give the name of a folder"
        ) as error:
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


@pytest.mark.parametrize("staged", [files.staged_file, files.staged_directory])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ArtifactError("no")])
@pytest.mark.parametrize("other", [False, True])
def test_a_folder_that_was_made_for_what_was_not_written_goes_unless_it_is_used(
    staged, error, other, tmp_path
):
    def write():
        with staged(tmp_path / "a" / "b" / "x"):
            if other:
                (tmp_path / "a" / "theirs").write_text("")
            raise error

    with pytest.raises((ArtifactError, KeyboardInterrupt)):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == (["a", "theirs"] if other else [])
    (tmp_path / "empty").mkdir()
    with pytest.raises((ArtifactError, KeyboardInterrupt)), staged(tmp_path / "empty" / "x"):
        raise error
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("staged", [files.staged_file, files.staged_directory])
def test_a_folder_that_another_process_takes_away_is_made_again(staged, tmp_path, monkeypatch):
    out, stage_in = tmp_path / "a" / "x", files._stage_in

    def taken(folder, name):
        stage = stage_in(folder, name)
        folder.rmdir()
        return stage

    monkeypatch.setattr(files, "_stage_in", taken)
    with staged(out) as stage:
        (stage / "config.json" if stage.is_dir() else stage).write_text("mine")
    assert (out / "config.json" if out.is_dir() else out).read_text() == "mine"


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
    mine, pid = files.temporary_name("x.json"), os.getpid()
    dead = mine.replace(f"-{pid}-", f"-{dead_process()}-")
    restarted = mine.replace(files._PROCESS, "0" * 8)  # another process had this one's number
    folder = dead.replace(".x.json.", ".model.")
    # the same number in another container or on another machine: nothing is known of that process
    elsewhere = [name.replace(files._HERE, "another") for name in (dead, restarted)]
    users, forgotten = ".x.json.mine.tmp", elsewhere[0].replace("x.json", "y.json")
    for name in (dead, restarted, mine, *elsewhere, users, forgotten):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / forgotten, (time.time() - 8 * 24 * 3600,) * 2)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "model.safetensors").write_bytes(b"half")
    files.write_text(tmp_path / "x.json", "{}")
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", mine, *elsewhere, users}


def test_a_folder_that_is_there_stays_the_folder_that_it_is(tmp_path, monkeypatch):
    # a shell may stand in it, and its mode is its owner's
    folder = tmp_path / "here"
    folder.mkdir()
    folder.chmod(0o2750)
    monkeypatch.chdir(folder)
    with files.staged_directory(Path()) as stage:
        (stage / files.CONFIG).write_text("{}")
    assert os.listdir() == [files.CONFIG] and os.getcwd() == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2750


def test_what_killed_processes_left_is_not_in_the_way(tmp_path):
    (tmp_path / files.temporary_name("config.yaml")).write_text("half")
    assert files.is_free(tmp_path)
    files.refuse_existing(tmp_path, overwrite=False)
    (tmp_path / ".notes").write_text("mine")
    assert not files.is_free(tmp_path)


def writers():
    return {
        "text": lambda path: files.write_text(path, "new"),
        "atomic": lambda path: files.write_atomic(path, b"new"),
        "checkpoint": lambda path: model_files.write_checkpoint(path, {"new": 1}),
    }


@pytest.mark.parametrize("writer", writers())
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(writer, umask, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    old.chmod(0o640)
    before = os.umask(umask)
    try:
        for path in (old, new):
            writers()[writer](path)
        small().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    assert new.stat().st_mode & 0o777 == 0o666 & ~umask
    assert old.stat().st_mode & 0o777 == 0o640
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "model").iterdir()} == {0o666 & ~umask}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("writer", writers())
def test_a_link_stays_and_its_target_is_written(writer, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("there", "dangling"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "there").write_text("old")
    for name in ("there", "dangling"):
        writers()[writer](tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert b"new" in (tmp_path / "disk" / name).read_bytes()
    (tmp_path / "linked").symlink_to(tmp_path / "disk" / "folder")
    small().save_pretrained(tmp_path / "linked")
    assert (tmp_path / "linked").is_symlink()
    assert {p.name for p in (tmp_path / "disk").iterdir()} == {"there", "dangling", "folder"}


@pytest.mark.parametrize("writer", writers())
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_regular_file_is_not_replaced(writer, kind, tmp_path):
    place = tmp_path / "place"
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(ArtifactError, match="give the name of a file"):
        writers()[writer](place)
    assert not place.is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_signal_left_that_came_while_it_was_removed_goes_at_the_end(kind, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    staged = files.staged_file if kind == "file" else files.staged_directory
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "unlink", interrupted)
        patch.setattr(files.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out"):
            raise RuntimeError("the block is cut short")
    assert len(list(tmp_path.iterdir())) == 1
    parents = tmp_path / files.temporary_name("x").replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    parents.write_text("")  # this process is a fork of the one that writes it
    monkeypatch.setattr(files, "_STAGES", files._STAGES | {parents})
    files._discard_stages()
    assert list(tmp_path.iterdir()) == [parents]
    assert list(files._STAGES) == [parents]


def test_a_model_is_not_saved_over_a_file(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ArtifactError, match=r"x is a file: give the name of a folder$"):
        small().save_pretrained(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"
    with pytest.raises(ArtifactError, match=r"File exists; choose another place$"):
        files.write_text(tmp_path / "x" / "y", "text")


def test_parts_that_go_are_first_no_longer_what_can_be_gone_on_with(tmp_path, monkeypatch):
    out = tmp_path / "x.parquet"
    files.parts_of(out).mkdir()
    (files.parts_of(out) / files.RECORD).write_text("{}")
    monkeypatch.setattr(files, "discard", lambda stage: None)  # as if it were killed there
    files.drop_parts(out)
    files.refuse_stopped(out, overwrite=False)
    assert list(files.parts_of(out).iterdir()) == []


def test_a_name_that_is_too_long_is_as_what_cannot_be_written(tmp_path):
    long = tmp_path / ("n" * 259)
    for write in (
        lambda: files.refuse_existing(long, overwrite=False),
        lambda: files.write_text(long, "text"),
        lambda: small().save_pretrained(long),
    ):
        with pytest.raises(ArtifactError) as error:
            write()
        assert str(error.value) == f"cannot write {long}: File name too long; choose another place"
    assert not list(tmp_path.iterdir())
