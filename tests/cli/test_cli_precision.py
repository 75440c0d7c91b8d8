"""The precision that commands encode in: said, written down, and refused where it has no meaning."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from probjepa import provenance
from probjepa.backbones import encoding
from probjepa.cli import run
from shard_cases import png, small_model, write_shards


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli-precision")
    small_model(root / "model")
    write_shards(root / "shards")
    for name, first in (("in", 0), ("known", 100)):
        (root / name).mkdir()
        for i in range(12):
            (root / name / f"{i:02d}.png").write_bytes(png(first + i))
    return root


@pytest.fixture
def units(monkeypatch):
    monkeypatch.setattr(provenance, "cpu_flags", lambda: ["avx512_bf16"])


def call(places, *words):
    return run([str(places / word[1:]) if word.startswith("@") else word for word in words])


def noted(path):
    return json.loads(pq.read_metadata(path).metadata[encoding.KEY])


@pytest.mark.parametrize(
    "command",
    [
        ["embed"],
        ["score"],
        ["score", "--score", "knn", "--reference", "@known"],
        ["score", "--score", "fisher", "--reference", "@known"],
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_what_was_used_is_said_and_in_the_table(places, tmp_path, units, capsys, command):
    name, *options = command
    tables = {}
    for precision in ("float32", "bf16"):
        out = tmp_path / f"{precision}.parquet"
        words = [name, "@model", "--data", "@in", "--out", str(out), "-q", *options]
        assert call(places, *words, "--precision", precision) == 0
        err = capsys.readouterr().err
        assert err.startswith("bf16: error ") if precision == "bf16" else not err
        assert len(err.splitlines()) == (precision == "bf16")
        assert noted(out)["precision"] == precision
        assert ("bf16_error" in noted(out)) == (precision == "bf16")
        tables[precision] = pq.read_table(out)
    plain, half = tables.values()
    assert plain.schema.remove_metadata() == half.schema.remove_metadata()
    column = np.array(plain["embedding" if name == "embed" else "score"].to_pylist())
    other = np.array(half["embedding" if name == "embed" else "score"].to_pylist())
    assert column.shape == other.shape
    if name == "embed":
        assert 0 < np.abs(column - other).max() < 0.05 * np.abs(column).max()
    assert (
        call(places, name, "@model", "--data", "@in", "--out", str(tmp_path / "d.parquet"), "-q", *options)
        == 0
    )
    assert pq.read_table(tmp_path / "d.parquet").equals(plain)  # float32 is the default


def test_auto_on_a_machine_without_units(places, tmp_path, capsys):
    out = tmp_path / "x.parquet"
    assert (
        call(places, "embed", "@model", "--data", "@in", "--out", str(out), "--precision", "auto", "-q") == 0
    )
    assert capsys.readouterr().err == "auto: float32, for this cpu has no units for bf16\n"
    assert noted(out) == {"precision": "float32"}


def test_evaluate_and_curate_write_it_down(places, tmp_path, units):
    given = ["--precision", "bf16", "-q", "--out", str(tmp_path / "out")]
    words = ["evaluate", "@model", "--train", "@known", "--test", "@in", "--bootstrap", "10"]
    assert call(places, *words, *given) == 0
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    assert settings["precision"] == "bf16" and settings["bf16_error"] > 0
    assert call(places, "curate", "@model", "--data", "@in", *given, "--overwrite") == 0
    assert noted(tmp_path / "out" / "ranking.parquet")["precision"] == "bf16"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["embed", "--data", "@in", "--precision", "bf16"], "this cpu has no units for bf16"),
        (["embed", "--data", "@in", "--precision", "half"], "unknown precision 'half'"),
        (["score", "--score", "jepa", "--data", "@in", "--precision", "auto"], "leave it out"),
        (["score", "--score", "jepa", "--data", "@shards", "--precision", "bf16"], "leave it out"),
        (["embed", "--data", "@shards", "--precision", "auto"], "name float32 or bf16"),
        (["curate", "--rank-only", "--data", "@shards", "--precision", "auto"], "name float32 or bf16"),
    ],
)
def test_refusals_are_one_line(places, tmp_path, capsys, words, text):
    out = tmp_path / ("out" if "@shards" in words else "out.parquet")
    assert call(places, words[0], "@model", *words[1:], "--out", str(out), "-q") == 2
    err = capsys.readouterr().err
    assert err.startswith("probjepa: ") and text in err and len(err.splitlines()) == 1
    assert not out.exists()
