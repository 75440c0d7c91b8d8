"""A process knows whether it is the first, and of how many, whoever started it."""

import pytest

from probjepa.launch import is_first_process, started


@pytest.mark.parametrize(
    ("first", "variables"),
    [
        (True, {}),
        (False, {"LOCAL_RANK": "1"}),  # Lightning's own launcher
        (False, {"LOCAL_RANK": "0", "NODE_RANK": "1"}),
        (True, {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0"}),
        (False, {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "LOCAL_RANK": "0"}),  # of the second machine
        (True, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}),
        (False, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}),
        (True, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}),  # the batch script itself
    ],
)
def test_the_first_process_of_a_run_is_known_whoever_started_it(monkeypatch, first, variables):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, {}),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, {}),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            {"devices": 4, "num_nodes": 2, "strategy": "ddp"},
        ),
        (
            {"SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3"},
            {"devices": 2, "num_nodes": 3, "strategy": "ddp"},
        ),
        ({"SLURM_NTASKS": "6", "SLURM_NNODES": "3"}, {}),  # a batch script's own process
    ],
)
def test_what_torchrun_and_srun_have_started_is_known(monkeypatch, variables, options):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started() == options
