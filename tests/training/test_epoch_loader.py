"""The order of batches, and starting in the middle of it."""

import multiprocessing
import subprocess
import sys

import pytest
import torch

from probjepa.errors import ArtifactError, ConfigError, DataError
from probjepa.training.loader import EpochLoader


class Rows:
    """A stand-in for an image set: the image of row i is i everywhere."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def get(self, indices):
        return torch.as_tensor(indices).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def rows_of(batches):
    return [batch[:, 0, 0, 0].tolist() for batch in batches]


def flat(batches):
    return [row for batch in rows_of(batches) for row in batch]


def test_an_epoch_is_a_permutation_that_changes_with_epoch_and_seed():
    loader = EpochLoader(Rows(20), 5, seed=3)
    epochs = [flat(loader) for _ in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == flat(EpochLoader(Rows(20), 5, seed=3))
    assert epochs[0] != flat(EpochLoader(Rows(20), 5, seed=4))


def test_batches_are_uint8_images_and_the_last_one_may_be_kept():
    loader = EpochLoader(Rows(11), 4, seed=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 2
    assert batches[0].dtype == torch.uint8
    assert batches[0].shape == (4, 1, 2, 2)
    kept = EpochLoader(Rows(11), 4, seed=0, drop_last=False, shuffle=False)
    assert len(kept) == 3
    assert rows_of(kept) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("done", [0, 2, 4, 7])
def test_a_new_loader_goes_on_where_the_old_one_stopped(done, workers):
    whole = EpochLoader(Rows(20), 5, seed=3)
    expected = rows_of(whole) + rows_of(whole)
    first = EpochLoader(Rows(20), 5, seed=3)
    taken = 0
    while taken < done:
        for _ in first:
            taken += 1
            if taken == done:
                break
    second = EpochLoader(Rows(20), 5, seed=3, workers=workers)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(done // 4)  # as Lightning does: inside the epoch, it must not rewind
    rest = rows_of(second)
    assert rest == expected[done : done + len(rest)]
    assert len(rest) == 4 - done % 4
    assert len(second) == 4


def test_setting_another_epoch_starts_it_afresh():
    loader = EpochLoader(Rows(20), 5, seed=3)
    next(iter(loader))
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}
    assert len(list(loader)) == 4


@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_an_epoch(drop_last):
    shares = [
        EpochLoader(Rows(23), 4, seed=0, rank=rank, world_size=2, drop_last=drop_last) for rank in range(2)
    ]
    seen = [flat(share) for share in shares]
    assert len(shares[0]) == len(shares[1]) == (2 if drop_last else 3)
    assert len(seen[0]) == len(seen[1])
    together = seen[0] + seen[1]
    if drop_last:
        assert len(set(together)) == 16
    else:  # one row is seen twice, so that both have as many
        assert set(together) == set(range(23))
        assert len(together) == 24


def test_worker_processes_do_not_draw_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(EpochLoader(Rows(8), 4, seed=0, workers=1))
    assert torch.equal(before, torch.random.get_rng_state())


ENDS = """
import sys, torch
from probjepa.training.loader import EpochLoader

class Rows:
    def __len__(self):
        return 40

    def get(self, indices):
        if sys.argv[1] == "an error" and 7 in indices:
            raise ValueError("a row that cannot be read")
        return torch.zeros(len(indices), 1, 2, 2, dtype=torch.uint8)

batches = iter(EpochLoader(Rows(), 5, seed=0, workers=2))
next(batches)
print("read", flush=True)
while sys.argv[1] == "an error":
    next(batches)
"""


@pytest.mark.parametrize(("how", "code"), [("the end of the script", 0), ("an error", 1)])
def test_python_ends_while_batches_are_half_read(how, code):
    # what holds the batches, here a global variable, holds their workers, and these do not heed SIGTERM
    done = subprocess.run(
        [sys.executable, "-c", ENDS, how], capture_output=True, text=True, check=False, timeout=200
    )
    assert (done.returncode, done.stdout) == (code, "read\n")
    assert how != "an error" or "a row that cannot be read" in done.stderr


def test_workers_end_with_what_they_read():
    before = set(multiprocessing.active_children())
    batches = iter(EpochLoader(Rows(40), 5, seed=0, workers=2))
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert not set(multiprocessing.active_children()) - before


class Broken(Rows):
    def get(self, indices):
        if 7 in indices:
            raise DataError("row 7 cannot be read: repair it")
        return super().get(indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_the_same_line_as_without(workers):
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError) as caught:
        list(EpochLoader(Broken(40), 5, seed=0, workers=workers))
    assert str(caught.value) == "row 7 cannot be read: repair it"
    # though the error, whose traceback has the loader's frames, is still held
    assert not set(multiprocessing.active_children()) - before


def test_too_few_images_or_too_large_batches_are_one_line_errors():
    with pytest.raises(DataError, match="at least 2 images, the data has 1"):
        EpochLoader(Rows(1), 2, seed=0)
    with pytest.raises(ConfigError, match="batch_size 32 is more than the 20 images: set it to 20 or"):
        EpochLoader(Rows(20), 32, seed=0)
    with pytest.raises(ConfigError, match="on 2 processes is more than the 20 images"):
        EpochLoader(Rows(20), 16, seed=0, world_size=2)
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        EpochLoader(Rows(20), 1, seed=0)
    with pytest.raises(ArtifactError, match="stopped at batch 9, an epoch of this data has 4"):
        EpochLoader(Rows(20), 5, seed=0).load_state_dict({"epoch": 0, "batch": 9})
