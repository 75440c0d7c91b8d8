"""The fault trials on one command: what they see, and that the command stands them."""

import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fault_cases
import fault_files
import faults
from saved_models import small


@pytest.fixture(params=["out.parquet", "out"])
def case(tmp_path, request):
    small().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    out, data = request.param, tmp_path / "data"
    if out == "out":  # of shards
        data = tmp_path / "shards"
        data.mkdir()
        for i in range(3):
            image = (tmp_path / "data" / f"{i}.png").read_bytes()
            pq.write_table(pa.table({"image": [image]}), data / f"{i}.parquet")
    made = fault_cases.Case(
        "embed", ["embed", f"{tmp_path / 'model'}", "--data", f"{data}", "--out", out, "-q"], out
    )
    made.place(tmp_path / "sandbox")
    ended = fault_cases.command(made.arguments, tmp_path / "sandbox")
    assert ended.code == 0, ended.err
    made.whole, made.operations = fault_cases.content(tmp_path / "sandbox" / out), ended.operations
    return made


def test_a_command_stands_kills_and_a_full_disk(case, tmp_path):
    tally = fault_cases.Tally()
    faults.kills(case, tmp_path, tally, every=case.operations - 1)
    faults.full_disks(case, tmp_path, tally, every=99)
    assert not tally.failures
    assert tally.trials == {"kill": 2, "full disk": 1}


def test_what_is_wrong_is_seen(case, tmp_path):
    root = tmp_path / "sandbox"
    (root / ".left").write_text("")
    case.whole = {".": "another"}
    wrong = case.recovered(root)
    assert any("ends otherwise" in line for line in wrong)
    assert any("left behind" in line for line in wrong)
    assert fault_cases.misbehaved(fault_cases.Ended(1, "", "Traceback", 0), [0]) != []
    assert fault_cases.misbehaved(fault_cases.Ended(2, "", "probjepa: one line", 0), [0, 2]) == []


def test_damages_are_seeded():
    whole = bytes(range(256)) * 4
    assert fault_files.damaged(random.Random(1), whole) == fault_files.damaged(random.Random(1), whole)
    assert len({fault_files.damaged(random.Random(i), whole) for i in range(20)}) > 15
    assert fault_files.mistyped(random.Random(0), {"a": {"b": [1, 2]}}) != {"a": {"b": [1, 2]}}
