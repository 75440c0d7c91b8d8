"""Ray Train's workers make the run of one process on the joined batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from probjepa.methods import METHODS
from probjepa.training import fit

pytestmark = pytest.mark.nightly
pytest.importorskip("ray.train")


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


def test_two_workers_have_the_curve_of_one_process(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "ray_train.py"
    command = [sys.executable, str(example), "sklearn:digits", str(tmp_path / "ray")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert said.returncode == 0, said.stderr[-3000:]
    method = METHODS["vje"]("convnet", channels=1, image_size=16, seed=0)
    fit(method, "sklearn:digits", out=tmp_path / "one", epochs=2, batch_size=128, progress=False)
    assert losses(tmp_path / "ray") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert (tmp_path / "ray" / "model" / "model.safetensors").is_file()
