"""Two processes are one: the same curve, resumed by as many or by fewer, whoever is killed."""

import csv
import shutil
import signal
import subprocess
import sys

import many_processes
import pytest
import safetensors.torch
import torch
from many_processes import CASES, EPOCHS, fsdp2, run, run_var_jepa

import probjepa as pj
from probjepa.errors import ConfigError
from probjepa.training import fit
from probjepa.training.processes import SyncBatchNorm, batch_size_of_each, check_lanes
from processes import forked, free_port, joined

KILLED = "vje"


def started_by_hand(folder, *words):
    """The same two processes with nobody above them, who would end the one when the other is lost.

    Returns what each has said, and its exit code.
    """
    told = {
        "TORCHELASTIC_RUN_ID": "by hand", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    files = [folder / f"said-{rank}.txt" for rank in "01"]
    processes = [
        forked(file, told | {"RANK": rank, "LOCAL_RANK": rank}, many_processes.main, folder, *words)
        for file, rank in zip(files, "01", strict=True)
    ]
    codes = joined(processes, together=False)
    return [(file.read_text(), code) for file, code in zip(files, codes, strict=True)]


def losses(run_folder):
    """What metrics.csv says of the training's steps."""
    with (run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == EPOCHS
    return [float(value) for row in rows for name, value in row.items() if name.startswith("train/")]


def weights(run_folder):
    return safetensors.torch.load_file(run_folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Every case by two processes, and one whose second process was killed amid the second epoch."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    said = subprocess.run([*command, many_processes.__file__, folder, "all"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    # torchrun would stop the other before it sees what has happened, or after
    (first, code), (_, killed) = started_by_hand(folder, str(EPOCHS), "5", "1", "0.0")
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "another process of the run ended in step 5: start all of them again" in first, first[-3000:]
    assert (folder / "killed" / "checkpoints" / "last.ckpt").is_file()
    assert not (folder / "killed" / "model").exists()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_curve_of_one_on_the_joined_batch(two, tmp_path, case):
    run(case, tmp_path, 1)
    near = 5e-4 if "realnvp" in case else 1e-4  # a flow amplifies the order of sums
    assert losses(two / case) == pytest.approx(losses(tmp_path / case), rel=near, abs=near)
    ours, theirs = weights(tmp_path / case), weights(two / case)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0.01, atol=0.01, msg=name)


def test_so_has_var_jepa(two, tmp_path):
    run_var_jepa(tmp_path, 1)
    found, exact = (
        [float(x) for x in (folder / "var-jepa.txt").read_text().split()] for folder in (two, tmp_path)
    )
    assert len(exact) == 6
    assert found == pytest.approx(exact, rel=1e-4)


def test_weights_that_are_spread_over_the_processes_learn_the_same(two):
    images = pj.open_images("sklearn:digits", size=fsdp2.SIZE)
    method = fsdp2.make(images)
    fit(
        method, images, epochs=fsdp2.EPOCHS, batch_size=2 * fsdp2.BATCH, learning_rate=1e-3, progress=False,
        monitor_every=0, precision="32-true",
    )  # fmt: skip
    spread = pj.load(two / "fsdp2" / "model").state_dict()
    for name, value in method.state_dict().items():
        torch.testing.assert_close(spread[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_a_run_whose_process_was_killed_goes_on_as_if_nothing_had_been(two, tmp_path):
    for folder in ("by two", "by one"):
        shutil.copytree(two / "killed", tmp_path / folder / "killed")
    for said, code in started_by_hand(tmp_path / "by two", "resume"):
        assert code == 0, said[-3000:]
    exact = weights(two / KILLED)
    for name, value in weights(tmp_path / "by two" / "killed").items():
        assert torch.equal(value, exact[name]), name
    assert losses(tmp_path / "by two" / "killed") == losses(two / KILLED)
    # one process takes the batches of both
    run(KILLED, tmp_path / "by one", 1, out=tmp_path / "by one" / "killed", batch_size=8, resume=True)
    assert losses(tmp_path / "by one" / "killed") == pytest.approx(losses(two / KILLED), rel=1e-4)


def test_a_process_that_is_asked_to_end_ends_all_with_a_checkpoint(two, tmp_path):
    for said, code in started_by_hand(tmp_path, "terminate"):
        assert code == 1 and "interrupted after step 3: go on from" in said, said[-3000:]
    for said, code in started_by_hand(tmp_path, "resume"):
        assert code == 0, said[-3000:]
    for name, value in weights(tmp_path / "killed").items():
        assert torch.equal(value, weights(two / KILLED)[name]), name


@pytest.mark.parametrize(
    ("count", "says"), [("51", "data_sha256: '"), ("32", "data_images: 51 in the first")]
)
def test_processes_with_other_data_are_told_before_the_first_step(tmp_path, count, says):
    for said, code in started_by_hand(tmp_path, "apart", count):
        assert code == 1 and f"the processes of the run differ in {says}" in said, said[-3000:]
    assert not (tmp_path / "apart" / "model").exists()


def test_a_streamed_run_is_resumed_by_processes_that_read_in_its_order(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("stream_lanes: 32\n")
    for count in (1, 2, 4, 8, 16, 32):
        check_lanes(config, count)
    for count in (3, 5, 64):
        with pytest.raises(ConfigError, match=rf"^{count} processes .* these numbers: 1, 2, 4, 8, 16, 32$"):
            check_lanes(config, count)


def test_processes_that_cannot_share_a_step_are_one_line(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("batch_size: 8\nprocesses: 2\n")
    assert [batch_size_of_each(config, 8, count) for count in (1, 2, 4)] == [16, 8, 4]
    assert batch_size_of_each(config, 6, 1) == 6  # asked for; the checkpoint's signature says no
    with pytest.raises(ConfigError, match="takes 16 images, which 3 processes"):
        batch_size_of_each(config, 8, 3)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 4)])
def test_layers_of_one_process_keep_their_bits_and_come_back(tmp_path, shape, momentum):
    kind = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(shape)]
    layer, plain = (torch.nn.Sequential(kind(3, momentum=momentum)).double() for _ in range(2))
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        sync = SyncBatchNorm()
        assert type(sync.apply(layer)[0]) is kind
        torch.distributed.get_world_size, world = lambda: 2, torch.distributed.get_world_size
        try:
            sync.apply(layer)
        finally:
            torch.distributed.get_world_size = world
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outs = [module(x) for module, x in zip((layer, plain), inputs, strict=True)]
        for out in outs:
            out.square().mul(torch.arange(out.numel()).view(shape)).sum().backward()
        torch.testing.assert_close(outs[0], outs[1])
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[name], value)
        torch.testing.assert_close(layer.eval()(x), plain.eval()(x))
        assert type(sync.revert(layer)[0]) is kind
    finally:
        torch.distributed.destroy_process_group()
