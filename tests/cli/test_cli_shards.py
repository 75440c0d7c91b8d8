"""The commands on a folder of shards give what they give of it as one set."""

from __future__ import annotations

import json

import fsspec
import pyarrow.parquet as pq
import pytest

from probjepa.cli import run
from shard_cases import assert_alike, png, rows, small_model, write_shard, write_shards


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli-shards")
    small_model(root / "model")
    write_shards(root / "in")
    known = root / "known"
    known.mkdir()
    for i in range(12):
        (known / f"{i}.png").write_bytes(png(100 + i))
    held = root / "held"
    held.mkdir()
    for i in range(9):
        (held / f"{i}.png").write_bytes(png(200 + i))
    return root


@pytest.mark.parametrize(
    "command",
    [
        ["embed"],
        ["score"],
        ["score", "--score", "knn", "--reference", "KNOWN"],
        ["score", "--score", "predictive", "--reference", "KNOWN", "--reference-size", "8"],
        ["score", "--score", "fisher", "--reference", "KNOWN"],
        ["score", "--score", "jepa", "--estimator", "sketch", "--seed", "3"],
        ["score", "--score", "jepa", "--estimator", "auto", "--tolerance", "0.5"],
        ["score", "--score", "jepa", "--latent", "reference", "--reference", "KNOWN"],
        ["score", "--calibration", "HELD", "--alpha", "0.4"],
        ["score", "--calibration", "HELD", "--alpha", "0.3", "--score", "knn", "--reference", "KNOWN"],
        ["score", "--calibration", "HELD", "--alpha", "0.3", "--score", "jepa"],
        ["curate"],
    ],
    ids=lambda words: "-".join(words[:7]),
)
def test_shards_have_the_rows_and_values_of_the_set(places, tmp_path, command):
    name, *options = [str(places / word.lower()) if word.isupper() else word for word in command]
    data = ["--data", str(places / "in"), "-q", *options]
    rank = ["--rank-only"] if name == "curate" else []
    assert run([name, str(places / "model"), *data, "--out", str(tmp_path / "out"), *rank]) == 0
    whole = tmp_path / "set" if rank else tmp_path / "set.parquet"
    assert run([name, str(places / "model"), *data, "--out", str(whole)]) == 0
    mine, theirs = rows(tmp_path / "out"), pq.read_table(whole / "ranking.parquet" if rank else whole)
    if rank:
        theirs = theirs.drop_columns("verdict").take(
            [theirs["id"].to_pylist().index(i) for i in mine["id"].to_pylist()]
        )
    if "--calibration" in command:  # q-values are of all rows together
        theirs = theirs.drop_columns("q_value")
        assert 0 < sum(mine["flagged"].to_pylist()) < len(mine)
    assert_alike(mine, theirs)


def test_shares_and_a_store(places, tmp_path, capsys):
    store = fsspec.filesystem("memory")
    store.put(str(places / "in"), "/cli-in", recursive=True)
    for share in ("1/2", "2/2"):
        arguments = ["--data", "memory://cli-in", "--out", "memory://cli-out", "--shard", share, "-q"]
        assert run(["embed", str(places / "model"), *arguments]) == 0
    assert "of all 3, 0 are left: memory://cli-out/manifest.json" in capsys.readouterr().out
    store.get("/cli-out", str(tmp_path / "got"), recursive=True)
    assert (
        run(
            ["embed", str(places / "model"), "--data", str(places / "in"), "--out", str(tmp_path / "o"), "-q"]
        )
        == 0
    )
    assert rows(tmp_path / "got").equals(rows(tmp_path / "o"))
    assert json.loads((tmp_path / "got" / "manifest.json").read_text())["shards"]["done"] == 3
    store.rm("/cli-in", recursive=True)
    store.rm("/cli-out", recursive=True)


def test_the_output_says_whether_there_is_one_or_one_a_shard(places, tmp_path):
    model = str(places / "model")
    assert (
        run(["embed", model, "--data", str(places / "in"), "--out", str(tmp_path / "a.parquet"), "-q"]) == 0
    )
    assert (tmp_path / "a.parquet").is_file()
    assert (
        run(["embed", model, "--data", str(places / "known"), "--out", str(tmp_path / "images"), "-q"]) == 0
    )
    assert (tmp_path / "images").is_file()
    one = str(places / "in" / "part-0.parquet")
    assert run(["curate", model, "--data", one, "--out", str(tmp_path / "one"), "--rank-only", "-q"]) == 0
    assert len(rows(tmp_path / "one")) == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "MODEL", "--data", "IN", "--out", "out", "--shard", "5/4"], "--shard is '5/4'"),
        (["embed", "MODEL", "--data", "IN", "--out", "x.parquet", "--shard", "1/2"], "name of a folder"),
        (["embed", "MODEL", "--data", "KNOWN", "--out", "out", "--shard", "1/2"], "holds no shards"),
        (["embed", "MODEL", "--data", "IN", "--out", "out", "--on-error", "no"], "raise or skip"),
        (["embed", "MODEL", "--data", "IN", "--out", "out", "--sep", ";"], "for tables"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--score", "knn"], "needs a reference"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--score", "nn"], "unknown score"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--calibration", "KNOWN", "--fdr", "0.2"], "--fdr decides of all rows together"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--alpha", "0.2"], "--alpha goes with --calibration"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--calibration", "KNOWN", "-q"], "12 calibration rows are too few for alpha = 0.05"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--calibration", "IN", "--alpha", "0.2", "-q"], "are in the calibration set"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--calibration", "KNOWN", "--score", "knn", "--reference", "KNOWN", "--alpha", "0.2", "-q"], "calibration images are in the reference"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--calibration", "KNOWN", "--score", "jepa", "--latent", "reference", "--reference", "KNOWN", "--alpha", "0.2", "-q"], "calibration images are in the reference"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--score", "knn", "--reference", "IN", "-q"], "in the reference"),
        (["score", "MODEL", "--data", "IN", "--out", "out", "--score", "jepa", "--rank", "x"], "--rank is"),
        (["curate", "MODEL", "--data", "IN", "--out", "out", "--rank-only", "--drop", "0.2"], "--drop"),
        (["curate", "MODEL", "--data", "IN", "--out", "out", "--shard", "1/2"], "--rank-only"),
        (["curate", "MODEL", "--data", "IN", "--out", "out", "--engine", "ray"], "--engine: with --rank-only"),
        (["embed", "MODEL", "--data", "IN", "--out", "out", "--engine", "rey"], "unknown engine 'rey', did you mean 'ray'"),
        (["embed", "MODEL", "--data", "IN", "--out", "out", "--workers", "2", "--address", "a:1"], "--address, --workers: with --engine ray"),
        (["embed", "MODEL", "--data", "KNOWN", "--out", "x.parquet", "--worker-gpus", "1"], "--worker-gpus: with --engine ray"),
        (["embed", "MODEL", "--data", "nosuch://x", "--out", "out"], "cannot be opened"),
        (["embed", "MODEL", "--data", "nosuch://x", "--out", "x.parquet"], "name of a folder"),
        (["embed", "MODEL", "--data", "KNOWN", "--out", "memory://x"], "holds no shards"),
        (["embed", "MODEL", "--data", "memory://nothing-here", "--out", "out"], "nothing-here"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(places, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": "model", "IN": "in", "KNOWN": "known"}
    assert run([str(places / names[word]) if word in names else word for word in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
    assert not list(tmp_path.rglob("*.parquet"))


def test_ctrl_c_says_how_to_go_on(places, tmp_path, monkeypatch, capsys):
    from probjepa.data.rows import TableWriter

    def interrupted(writer, columns):
        raise KeyboardInterrupt

    monkeypatch.setattr(TableWriter, "write", interrupted)
    arguments = ["--data", str(places / "in"), "--out", str(tmp_path / "out"), "-q"]
    assert run(["embed", str(places / "model"), *arguments]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet*"))


def test_evaluate_and_references_take_shards_of_every_kind(places, tmp_path, monkeypatch):
    monkeypatch.setattr("probjepa.report.summary.evaluation_report", lambda *figures, **more: "a page")
    found = {}
    for form in ("parquet", "tar"):
        sets = {"train": range(24), "test": range(24, 44), "far": range(50, 60)}
        for name, of in sets.items():
            for number, half in enumerate((of[: len(of) // 2], of[len(of) // 2 :])):
                write_shard(tmp_path / form / name / f"{number}.{form}", half)
        train, test, far = (str(tmp_path / form / name) for name in sets)
        out = tmp_path / form / "out"
        options = ["--train", train, "--test", test, "--ood", f"far={far}", "--bootstrap", "10", "-q"]
        assert run(["evaluate", str(places / "model"), *options, "--out", str(out)]) == 0
        metrics, table = json.loads((out / "metrics.json").read_text()), pq.read_table(out / "scores.parquet")
        score = [
            "--data",
            test,
            "--score",
            "knn",
            "--reference",
            train,
            "-q",
            "--out",
            str(out / "s.parquet"),
        ]
        assert run(["score", str(places / "model"), *score]) == 0
        found[form] = metrics["accuracy"], metrics["ood"], table.drop_columns("id").to_pydict()
        found[form] += (pq.read_table(out / "s.parquet").drop_columns("id").to_pydict(),)
    assert found["parquet"] == found["tar"]
