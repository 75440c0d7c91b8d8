"""Two processes, one of which is killed again and again, end as if nothing had been."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

pytestmark = pytest.mark.nightly

SCRIPT = Path(__file__).parents[1] / "training" / "many_processes.py"
RUNS, KILLS, EPOCHS = 4, 10, 12


def torchrun(folder, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, SCRIPT, folder, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )


def outcome(folder):
    weights = safetensors.torch.load_file(folder / "killed" / "model" / "model.safetensors")
    lines = (folder / "killed" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    timed = {i for i, name in enumerate(names) if "second" in name}
    return weights, [[x for i, x in enumerate(line.split(",")) if i not in timed] for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    said = torchrun(folder, EPOCHS)
    assert said.returncode == 0, said.stderr[-3000:]
    return outcome(folder)


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_run_whose_processes_are_killed_again_and_again(whole, tmp_path, seed):
    chosen = random.Random(seed)
    for _ in range(KILLS):
        step, rank, seconds = (
            chosen.randrange(1, 4),
            chosen.randrange(2),
            chosen.choice([0.0, chosen.random() / 20]),
        )
        said = torchrun(tmp_path, EPOCHS, step, rank, seconds)
        assert said.returncode != 0, (step, rank, seconds, said.stderr[-3000:])
        assert not (tmp_path / "killed" / "model").exists()
    assert torchrun(tmp_path, EPOCHS).returncode == 0
    weights, lines = outcome(tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())
    assert lines == whole[1]
