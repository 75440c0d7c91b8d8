"""Odd names and narrow terminals: each command ends well, and nothing in a name acts."""

import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from probjepa.cli import run
from saved_models import small

NAMES = [b"caf\xe9", b"a\nb", b"\x1b[2J", b"[red]", b"[bold", b":smile:"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model, and three sets of images whose files and classes have odd names."""
    root = tmp_path_factory.mktemp("text")
    small().save_pretrained(root / "model")
    random = np.random.default_rng(0)
    for split in (b"train", b"test", b"far"):
        for label in (b"[red]\x1b[1m", b"\xe9\n"):
            folder = os.fsencode(root) + b"/" + split + b"/" + label
            os.makedirs(folder)
            for name in NAMES:
                pixels = random.integers(0, 256, (9, 9), dtype=np.uint8)
                Image.fromarray(pixels).save(folder + b"/" + name + b".png", "PNG")
    return root


@pytest.mark.parametrize("command", ["embed", "score", "curate", "evaluate"])
def test_odd_names_end_well_and_do_nothing(places, command, tmp_path, capfd):
    out = tmp_path / ("out.parquet" if command in ("embed", "score") else "out")
    data = ["--data", str(places / "test")]
    if command == "evaluate":
        ood = f"[/]\x1b[31m\udce9={places / 'far'}"
        data = ["--train", str(places / "train"), "--test", str(places / "test"), "--ood", ood]
        data += ["--bootstrap", "5"]
    assert run([command, str(places / "model"), *data, "--out", str(out), "--device", "cpu"]) == 0
    said = "".join(capfd.readouterr())
    assert "\x1b" not in said
    if command == "evaluate":
        assert r"[/]\x1b[31m\udce9" in said.replace("\n", "")
    if command == "curate":
        lines = [line for name in ("keep", "review", "drop") for line in (out / f"{name}.txt").open("rb")]
        assert len(lines) == 12
        out = out / "ranking.parquet"
    if command != "evaluate":
        ids = pq.read_table(out)["id"].to_pylist()
        assert len(ids) == len(set(ids)) == 12
        assert sum(r"caf\udce9" in name for name in ids) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "gbk"])
@pytest.mark.parametrize("command", [["list"], ["train", "--help"], ["--help"]])
def test_narrow_terminals_get_escapes(encoding, command, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert run(command) == 0
    assert len(raw.getvalue()) > 200
