"""Tables in, tables out: what a model of tables makes of a folder is what it makes of one table."""

from __future__ import annotations

import json
import shutil

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probjepa.cli import run
from probjepa.errors import DataError
from probjepa.shards import Job, run_shards
from shard_cases import assert_alike, rows

SMALL = ("dim=8", "n_layers=1", "n_heads=2", "ff_dim=8")


def table(count: int, seed: int, *, ids: bool = False) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    y = random.integers(2, size=count)
    place = np.array(["here", "there"])[y].astype(object)
    place[::9] = None
    columns = {"number": y + random.normal(size=count), "place": place, "y": np.array(["no", "yes"])[y]}
    return pd.DataFrame(({"id": seed * 1000 + np.arange(count)} if ids else {}) | columns)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("table-shards")
    table(120, 0).to_parquet(root / "train.parquet", index=False)
    table(120, 0).to_csv(root / "train.csv", index=False)
    settings = [word for setting in SMALL for word in ("--set", setting)]
    how = ["--target", "y", "--epochs", "2", "--device", "cpu", "-q", *settings]
    assert (
        run(["train", "var-t-jepa", "--data", str(root / "train.parquet"), "--out", str(root / "run"), *how])
        == 0
    )
    (root / "in" / "b").mkdir(parents=True)
    table(9, 1, ids=True).to_parquet(root / "in" / "a.parquet", index=False)
    table(7, 2, ids=True).to_csv(root / "in" / "b" / "c.csv", index=False)
    table(5, 3, ids=True).to_feather(root / "in" / "b" / "d.feather")
    (root / "in" / "notes.txt").write_text("not a table")
    together = [pd.read_parquet(root / "in" / "a.parquet"), pd.read_csv(root / "in" / "b" / "c.csv")]
    pd.concat([*together, pd.read_feather(root / "in" / "b" / "d.feather")]).to_csv(
        root / "set.csv", index=False
    )
    table(40, 4).to_csv(root / "known.csv", index=False)
    table(30, 5).to_csv(root / "held.csv", index=False)
    return root


def command(places, name, data, out, *options):
    return run(
        [name, str(places / "run"), "--data", str(data), "--out", str(out), "--device", "cpu", "-q", *options]
    )


@pytest.mark.parametrize(
    "words",
    [
        ["embed"],
        ["score"],
        ["score", "--score", "knn", "--reference", "KNOWN.csv"],
        ["score", "--score", "knn", "--reference", "KNOWN.csv", "--reference-size", "20"],
        ["score", "--calibration", "HELD.csv", "--alpha", "0.3"],
        [
            "score",
            "--calibration",
            "HELD.csv",
            "--alpha",
            "0.3",
            "--score",
            "knn",
            "--reference",
            "KNOWN.csv",
        ],
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_shards_have_the_rows_and_values_of_the_table(places, tmp_path, words):
    name, *options = [str(places / word.lower()) if ".csv" in word else word for word in words]
    assert command(places, name, places / "in", tmp_path / "out", *options) == 0
    assert command(places, name, places / "set.csv", tmp_path / "set.parquet", *options) == 0
    mine, theirs = rows(tmp_path / "out"), pq.read_table(tmp_path / "set.parquet")
    if "--calibration" in words:
        theirs = theirs.drop_columns("q_value")
        assert 0 < sum(mine["flagged"].to_pylist()) < len(mine)
    assert_alike(mine, theirs)
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.parquet")
    )
    assert written == ["a.parquet", "b/c.parquet", "b/d.parquet"]


def test_a_second_run_does_what_changed_and_a_share_its_share(places, tmp_path, capsys):
    data = tmp_path / "in"
    data.mkdir()
    for number in range(3):
        table(4, 10 + number).to_csv(data / f"{number}.csv", index=False)
    assert command(places, "embed", data, tmp_path / "out", "--shard", "1/2") == 0
    assert "wrote 2 shards, 0 were finished, 0 skipped; of all 3, 1 are left" in capsys.readouterr().out
    assert command(places, "embed", data, tmp_path / "out") == 0
    assert "wrote 1 shards, 2 were finished" in capsys.readouterr().out
    table(6, 20).to_csv(data / "1.csv", index=False)
    assert command(places, "embed", data, tmp_path / "out") == 0
    assert "wrote 1 shards, 2 were finished" in capsys.readouterr().out
    found = rows(tmp_path / "out")
    assert len(found) == 14 and found["id"].to_pylist()[:5] == [
        "0.csv:0",
        "0.csv:1",
        "0.csv:2",
        "0.csv:3",
        "1.csv:0",
    ]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rows"] == 14 and manifest["shards"]["done"] == 3


def test_typicality_of_rows(places, tmp_path):
    assert command(places, "curate", places / "in", tmp_path / "out", "--rank-only") == 0
    assert command(places, "score", places / "in", tmp_path / "scored") == 0
    ranked, scored = rows(tmp_path / "out"), rows(tmp_path / "scored")
    assert ranked.column_names == ["id", "label", "typicality", "uncertainty"]
    assert ranked["typicality"].equals(scored["score"]) and ranked["uncertainty"].equals(
        scored["uncertainty"]
    )


def test_a_part_without_rows_has_the_columns_of_the_others(places, tmp_path):
    (tmp_path / "in").mkdir()
    kinds = pa.schema(
        [("id", pa.int64()), ("number", pa.float64()), ("place", pa.string()), ("y", pa.string())]
    )
    pq.write_table(kinds.empty_table(), tmp_path / "in" / "0.parquet")
    pq.write_table(pa.Table.from_pandas(table(6, 30, ids=True), kinds), tmp_path / "in" / "1.parquet")
    for name, *more in (["embed"], ["score", "--calibration", str(places / "held.csv")]):
        assert command(places, name, tmp_path / "in", tmp_path / name, *more) == 0
        empty, full = (pq.read_table(tmp_path / name / f"{number}.parquet") for number in range(2))
        assert (len(empty), len(full)) == (0, 6)
        assert empty.schema.remove_metadata() == full.schema.remove_metadata()


def test_a_text_without_rows_has_an_output_without_rows(places, tmp_path):
    (tmp_path / "in").mkdir()
    table(6, 31, ids=True).to_csv(tmp_path / "in" / "a.csv", index=False)
    (tmp_path / "in" / "b.csv").write_text((tmp_path / "in" / "a.csv").read_text().partition("\n")[0] + "\n")
    for name, *more in (["embed"], ["score", "--calibration", str(places / "held.csv")]):
        assert command(places, name, tmp_path / "in", tmp_path / name, *more) == 0
        full, empty = (pq.read_table(tmp_path / name / f"{part}.parquet") for part in "ab")
        assert (len(full), len(empty)) == (6, 0) and empty.schema.names == full.schema.names


def test_tables_in_a_store(places, tmp_path):
    store = fsspec.filesystem("memory")
    store.put(str(places / "in"), "/tables-in", recursive=True)
    assert command(places, "embed", "memory://tables-in", "memory://tables-out") == 0
    store.get("/tables-out", str(tmp_path / "got"), recursive=True)
    assert command(places, "embed", places / "in", tmp_path / "out") == 0
    assert rows(tmp_path / "got").equals(rows(tmp_path / "out"))


def test_text_is_read_as_the_options_say(places, tmp_path):
    (tmp_path / "in").mkdir()
    table(6, 40).to_csv(tmp_path / "in" / "a.csv", index=False, sep=";", decimal=",")
    table(6, 40).to_csv(tmp_path / "plain.csv", index=False)
    assert command(places, "score", tmp_path / "in", tmp_path / "out", "--sep", ";", "--decimal", ",") == 0
    assert command(places, "score", tmp_path / "plain.csv", tmp_path / "set.parquet") == 0
    expected = pq.read_table(tmp_path / "set.parquet")["score"].to_numpy()
    np.testing.assert_allclose(rows(tmp_path / "out")["score"].to_numpy(), expected, rtol=1e-5)


def test_tables_that_are_read_otherwise_are_done_again(places, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    table(6, 40).replace({"place": {"here": "?"}}).to_csv(tmp_path / "in" / "a.csv", index=False)
    for options, words in (
        ([], "wrote 1 shards, 0 were finished"),
        (["--na", "?"], "wrote 1 shards, 0 were finished"),
        (["--na", "?"], "wrote 0 shards, 1 were finished"),
        (["--na", "?", "--decimal", "."], "wrote 1 shards, 0 were finished"),
    ):
        assert command(places, "embed", tmp_path / "in", tmp_path / "out", *options) == 0
        assert words in capsys.readouterr().out
    assert command(places, "embed", tmp_path / "in", tmp_path / "fresh", "--na", "?") == 0
    assert rows(tmp_path / "out").equals(rows(tmp_path / "fresh"))


def test_broken_tables_are_left_out_and_tried_again(places, tmp_path, capsys):
    data = tmp_path / "in"
    data.mkdir()
    table(4, 50).to_csv(data / "a.csv", index=False)
    table(4, 51).rename(columns={"number": "size"}).to_csv(data / "b.csv", index=False)
    (data / "c.parquet").write_bytes(b"not parquet")
    (data / "d.csv").write_text("")
    assert command(places, "embed", data, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(data / "b.csv") in said and "number" in said
    assert command(places, "embed", data, tmp_path / "out", "--on-error", "skip") == 0
    said = capsys.readouterr().out
    assert "0 were finished, 3 skipped" in said or "1 were finished, 3 skipped" in said
    assert all(f"skipped {name}.parquet" in said for name in "bcd")
    table(4, 51).to_csv(data / "b.csv", index=False)
    assert command(places, "embed", data, tmp_path / "out", "--on-error", "skip") == 0
    assert "wrote 1 shards, 1 were finished, 2 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embed", "--labels", "y"], "--labels: not for tables"),
        (["score", "--size", "8"], "--size: not for tables"),
        (["score", "--score", "jepa"], "jepa"),
        (["score", "--score", "knn"], "--score knn needs --reference"),
        (["score", "--calibration", "HELD.csv", "--fdr", "0.2"], "--fdr decides of all rows together"),
        (["score", "--calibration", "HELD.csv", "--alpha", "0.01"], "30 calibration rows are too few"),
        (["score", "--calibration", "SET.csv", "--alpha", "0.2"], "are in the calibration set"),
        (["score", "--calibration", "TRAIN.csv"], "train.csv' is the table that the model was fitted to"),
        (["embed", "--out", "x.csv", "--shard", "1/2"], "given 2 times"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(places, tmp_path, capsys, words, says):
    name, *options = [
        str(places / word.lower()) if ".csv" in word and "x." not in word else word for word in words
    ]
    assert command(places, name, places / "in", tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_folder_without_tables_and_two_of_one_output(places, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    assert command(places, "embed", tmp_path / "in", tmp_path / "out") == 2
    assert "holds no tables: they are files that end in .csv" in capsys.readouterr().err
    table(3, 60).to_csv(tmp_path / "in" / "a.csv", index=False)
    table(3, 60).to_parquet(tmp_path / "in" / "a.parquet", index=False)
    assert command(places, "embed", tmp_path / "in", tmp_path / "out") == 2
    assert "would both be 'a.parquet'" in capsys.readouterr().err
    assert command(places, "embed", tmp_path / "nowhere", tmp_path / "out", "--shard", "1/1") == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_another_target_is_done_again(places, tmp_path):
    def embed(model):
        return run_shards(Job(str(model), device="cpu"), str(places / "in"), str(tmp_path / "out"))

    copy = shutil.copytree(places / "run", tmp_path / "run")
    assert embed(places / "run")["written"] == 3
    assert embed(copy)["finished"] == 3
    (copy / "config.yaml").unlink()  # which said that y is no feature
    with pytest.raises(DataError, match="'y'"):
        embed(copy)


def test_categories_that_look_like_numbers_in_one_part_are_texts_there_too(tmp_path):
    random = np.random.default_rng(0)
    codes = random.choice(["01", "02", "2A"], size=90)
    frame = pd.DataFrame({"x": random.normal(size=90), "code": codes})
    frame.to_csv(tmp_path / "train.csv", index=False)
    settings = [word for setting in SMALL for word in ("--set", setting)]
    settings += ["--set", "column_types={code: categorical}"]
    made = ["--out", str(tmp_path / "run"), "--epochs", "2", "--device", "cpu", "-q", *settings]
    assert run(["train", "t-jepa", "--data", str(tmp_path / "train.csv"), *made]) == 0
    folder = tmp_path / "in"
    folder.mkdir()
    rest = frame.sort_values("code", ignore_index=True)
    digits = rest["code"] != "2A"
    rest[digits].to_csv(folder / "a.csv", index=False)
    rest[~digits].to_csv(folder / "b.csv", index=False)
    rest.to_csv(tmp_path / "all.csv", index=False)
    for data, out in (("all.csv", "one.parquet"), ("in", "out")):
        words = ["embed", str(tmp_path / "run"), "--data", str(tmp_path / data), "--device", "cpu", "-q"]
        assert run([*words, "--out", str(tmp_path / out)]) == 0
    one = pq.read_table(tmp_path / "one.parquet")["embedding"].to_pylist()
    parts = [pq.read_table(tmp_path / "out" / f"{name}.parquet")["embedding"] for name in "ab"]
    found = [row for of in parts for row in of.to_pylist()]
    np.testing.assert_allclose(found, one, atol=1e-5)
