"""An output is claimed before the work: one process at a time, and a place that can be written."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from probjepa import claims
from probjepa.claims import claimed
from probjepa.errors import ArtifactError
from probjepa.files import parts_of
from processes import claiming, held


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_a_second_process_is_refused_until_the_first(folder, end, tmp_path):
    place = tmp_path / "deep" / "out"
    with held(place, folder=folder) as holder:
        with pytest.raises(ArtifactError, match="another process writes"), claimed(place, folder=folder):
            pass
        if end == "is killed":
            holder.kill()
    with claimed(place, folder=folder), claimed(place, folder=folder):
        assert not place.exists()
    assert not list(tmp_path.rglob(".*"))


def test_parts_that_another_process_makes_or_removes_are_let_be(tmp_path):
    place = tmp_path / "j.parquet"
    place.write_text("old")
    with held(place, folder=False):
        parts_of(place).mkdir()
        with pytest.raises(ArtifactError, match="another process writes"), claimed(place):
            pass
        assert parts_of(place).is_dir()
    with claimed(place):
        assert not parts_of(place).exists()


@pytest.mark.parametrize("length", [60, 250])
def test_long_names_that_begin_alike_have_locks_of_their_own(length, tmp_path):
    first, second = (tmp_path / f"{'x' * (length - 1)}{end}" for end in "12")
    with claimed(first):
        lock = list(tmp_path.glob(".*.lock"))
        with claimed(second):
            assert len(list(tmp_path.glob(".*.lock"))) == 2
        assert list(tmp_path.glob(".*.lock")) == lock and claims.has_lock(first)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_cannot_be_written_is_noticed_before_the_work(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "file/below", "file" if folder else "folder", "n" * 259):
        with pytest.raises(ArtifactError) as error, claimed(tmp_path / name, folder=folder):
            pass
        assert "\n" not in str(error.value)
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ArtifactError, match="Permission denied"), claimed(tmp_path / "new", folder=folder):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder", "fifo"}


def test_a_signal_between_the_lock_s_file_and_its_holder_leaves_no_file(tmp_path, monkeypatch):
    lock, calls = claims._lock, []

    def signalled(path, place):
        if not calls:
            calls.append(os.open(place.parent / f".{place.name}.lock", os.O_RDWR | os.O_CREAT))
            raise SystemExit(143)
        return lock(path, place)

    monkeypatch.setattr(claims, "_lock", signalled)
    with pytest.raises(SystemExit), claimed(tmp_path / "x.parquet"):
        pass
    os.close(calls[0])
    assert not list(tmp_path.iterdir())


def test_a_signal_at_the_removal_of_a_lock_s_file_leaves_no_file(tmp_path, monkeypatch):
    unlink, calls = Path.unlink, []

    def signalled(path, missing_ok=False):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with pytest.raises(KeyboardInterrupt), claims.claimed(tmp_path / "a.parquet"):
        monkeypatch.setattr(Path, "unlink", signalled)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    with claims.claimed(tmp_path / "a.parquet"):
        pass


@pytest.mark.parametrize("folder", [False, True])
def test_a_second_thread_is_refused_and_the_first_keeps_its_claim(folder, tmp_path):
    place, errors = tmp_path / "out", []
    command = claiming(place, folder=False)

    def second():
        try:
            with claimed(place, folder=folder):
                pass
        except ArtifactError as error:
            errors.append(str(error))

    with claimed(place, folder=folder), claimed(place, folder=folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        other = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert len(errors) == 1 and "another thread writes" in errors[0]
    assert "another process writes" in other.stderr
    second()
    assert len(errors) == 1 and not claims._HELD and not [*tmp_path.iterdir()]
