"""The commands on tables as a user runs them: what they leave, and their one-line errors."""

import json
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from probjepa.cli import run
from probjepa.tabular import PRESETS, TJEPA, VarTJEPA
from probjepa.training.progress import ProgressBar
from processes import command_line, forked, wait_for_file

SMALL = [
    "--set",
    "dim=8",
    "--set",
    "n_layers=1",
    "--set",
    "n_heads=2",
    "--set",
    "ff_dim=8",
    "--device",
    "cpu",
    "-q",
]


def table(rows, seed):
    random = np.random.default_rng(seed)
    y = random.integers(2, size=rows)
    place = np.array(["here", "there"])[y].astype(object)
    place[::9] = None
    number = y + random.normal(size=rows)
    return pd.DataFrame(
        {"id": np.arange(rows) + 100, "number": number, "place": place, "y": np.array(["no", "yes"])[y]}
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    train, test = table(120, 0), pd.concat([table(40, 1), table(120, 0)[:3]])
    train.to_parquet(root / "train.parquet", index=False)
    test.to_csv(root / "test.csv", index=False)
    pd.read_csv(root / "test.csv").drop(columns="y").to_csv(root / "no-target.csv", index=False)
    train.assign(y="no").to_csv(root / "one-class.csv", index=False)
    train.assign(y=None).to_csv(root / "nan.csv", index=False)
    test.rename(columns={"number": "size"}).to_csv(root / "other.csv", index=False)
    train[:0].to_csv(root / "empty.csv", index=False)
    (root / "nothing.csv").write_text("")
    (root / "broken.parquet").write_text("not parquet")
    pd.DataFrame({"image": [{"bytes": b"x", "path": "a"}]}).to_parquet(root / "images.parquet")
    data = ["--data", str(root / "train.parquet"), "--target", "y"]
    assert run(["train", "var-t-jepa", *data, "--out", str(root / "run"), "--epochs", "2", *SMALL]) == 0
    assert run(["train", "t-jepa", *data, "--out", str(root / "t-run"), "--epochs", "1", *SMALL]) == 0
    (root / "image-run" / "model").mkdir(parents=True)
    shutil.copytree(root / "run" / "model", root / "damaged")
    (root / "damaged" / "config.json").write_text("{")
    (root / "image-run" / "model" / "config.json").write_text(
        json.dumps({"format_version": 1, "method": "vje"})
    )
    (root / "image-run" / "model" / "model.safetensors").write_bytes(b"")
    return root


def test_a_run_folder_can_be_loaded_and_says_what_it_was_made_of(places):
    out = places / "run"
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.csv", "report.html", "model", "checkpoints",
    }  # fmt: skip
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["last.ckpt"]
    model = VarTJEPA.load(out / "model")
    assert model.schema_.columns == ("number", "place")
    alone = VarTJEPA(dim=8, n_layers=1, n_heads=2, ff_dim=8, device="cpu", max_epochs=2, random_state=0)
    frame = pd.read_parquet(places / "train.parquet")[["number", "place"]]
    np.testing.assert_array_equal(model.transform(frame), alone.fit(frame).transform(frame))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["method"]["name"] == "var-t-jepa"
    assert (config["target"], config["row_names"], config["data_rows"]) == ("y", "id", 120)
    losses = pd.read_csv(out / "metrics.csv")
    assert losses["epoch"].tolist() == [1, 2]
    np.testing.assert_allclose(losses["train/loss"], [of["loss"] for of in model.history_])
    assert losses["effective_rank"].notna().tolist() == [False, True]
    assert TJEPA.load(places / "t-run" / "model").n_iter_ == 1


def test_a_run_is_replaced_only_when_asked_and_its_config_makes_it_again(places, tmp_path):
    out = tmp_path / "run"
    data = ["--data", str(places / "train.parquet"), "--out", str(out)]
    again = [*data, "--config", str(places / "run" / "config.yaml"), "--device", "cpu", "-q"]
    assert run(["train", "var-t-jepa", *again]) == 0
    (out / "notes.txt").write_text("mine")
    before = (out / "model" / "model.safetensors").read_bytes()
    assert before == (places / "run" / "model" / "model.safetensors").read_bytes()
    assert run(["train", "var-t-jepa", *again]) == 2
    assert run(["train", "var-t-jepa", *again, "--overwrite", "--seed", "5"]) == 0
    assert (out / "model" / "model.safetensors").read_bytes() != before
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.rglob(".stage*"))


@pytest.fixture(scope="module")
def whole(places):
    """A run of 12 epochs that nothing stopped, and its command line."""
    command = ["train", "var-t-jepa", "--data", str(places / "train.parquet"), "--target", "y", *SMALL]
    command += ["--epochs", "12", "--set", "patience=12", "--set", "batch_size=16"]
    assert run([*command, "--out", str(places / "whole")]) == 0
    return places / "whole", command


def assert_same_run(one, two):
    assert (one / "metrics.csv").read_text() == (two / "metrics.csv").read_text()
    weights = [(out / "model" / "model.safetensors").read_bytes() for out in (one, two)]
    assert weights[0] == weights[1]
    configs = [(out / "config.yaml").read_text() for out in (one, two)]
    assert configs[0] == configs[1]
    names = [{path.name for path in out.iterdir()} for out in (one, two)]
    assert names[0] == names[1] == {"config.yaml", "metrics.csv", "report.html", "model", "checkpoints"}


def test_ctrl_c_leaves_a_model_and_a_run_that_goes_on(whole, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"

    def update(self, done, number, epochs):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "update", update)
        assert run([*whole[1], "--out", str(out)]) == 130
    assert "go on with --resume" in capsys.readouterr().err and (out / "model" / "config.json").is_file()
    assert run([*whole[1], "--out", str(out), "--resume"]) == 0
    assert_same_run(out, whole[0])


GRACEFUL = [pytest.param(sent, marks=pytest.mark.nightly) for sent in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("sent", [signal.SIGKILL, *GRACEFUL])
def test_a_stopped_run_resumes_exactly(whole, tmp_path, capsys, sent):
    out = tmp_path / "run"
    process = forked(tmp_path / "said.txt", {}, command_line, *whole[1], "--out", str(out))
    try:
        wait_for_file(out / "checkpoints" / "last.ckpt", process)
        os.kill(process.pid, sent)
        process.join(timeout=120)
    finally:
        process.kill()
    if sent == signal.SIGKILL:
        assert process.exitcode == -sent
    else:
        assert process.exitcode == 130
        assert (
            "go on with --resume" in (tmp_path / "said.txt").read_text()
            and (out / "model" / "config.json").is_file()
        )
    assert run([*whole[1], "--out", str(out)]) == 2
    assert "resume the run" in capsys.readouterr().err
    wider = ["dim=16" if word.startswith("dim=") else word for word in whole[1]]
    assert wider != whole[1] and run([*wider, "--out", str(out), "--resume"]) == 2
    assert "was made with dim=8, this run has 16" in capsys.readouterr().err
    assert run([*whole[1], "--out", str(out), "--resume"]) == 0
    assert_same_run(out, whole[0])
    (out / "report.html").unlink()  # as if it had been killed while it finished
    assert run([*whole[1], "--out", str(out), "--resume"]) == 0
    assert_same_run(out, whole[0])
    assert (out / "report.html").is_file()
    elsewhere = ["place" if word == "y" else word for word in whole[1]]
    for other, named in ((wider, "dim=8"), (elsewhere, "data_sha256=")):
        assert run([*other, "--out", str(out), "--resume"]) == 2
        assert f"was made with {named}" in capsys.readouterr().err
    (out / "checkpoints" / "last.ckpt").unlink()
    assert run([*whole[1], "--out", str(out), "--resume"]) == 2
    assert "has a model and no checkpoint to go on from" in capsys.readouterr().err


def test_what_a_run_was_started_with_need_not_be_said_again(whole, places, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    started = ["train", "var-t-jepa", "--data", str(places / "train.parquet"), "--out", str(out), "-q"]
    (out / "config.yaml").write_text((whole[0] / "config.yaml").read_text())
    (out / "checkpoints").mkdir()
    frame = pd.read_parquet(places / "train.parquet")[["number", "place"]]
    VarTJEPA(dim=8, n_layers=1, n_heads=2, ff_dim=8, device="cpu", max_epochs=12, patience=12, batch_size=16,
             random_state=0).fit(frame, checkpoint=out / "checkpoints" / "last.ckpt")  # fmt: skip
    assert run([*started, "--resume"]) == 0
    assert_same_run(out, whole[0])


def test_overwriting_starts_afresh(whole, places, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(places / "run", out)  # of other settings
    (out / "checkpoints" / "last.ckpt").write_bytes(b"of a run that was stopped")
    assert run([*whole[1], "--out", str(out), "--overwrite"]) == 0
    assert_same_run(out, whole[0])


def test_embed_and_score_equal_the_library(places, tmp_path):
    model = VarTJEPA.load(places / "run" / "model")
    test = pd.read_csv(places / "test.csv")
    common = [str(places / "run"), "--data", str(places / "test.csv"), "-q", "--device", "cpu"]
    assert run(["embed", *common, "--out", str(tmp_path / "e.parquet")]) == 0
    found = pq.read_table(tmp_path / "e.parquet").to_pydict()
    features = test[["number", "place"]]
    np.testing.assert_array_equal(np.array(found["embedding"], np.float32), model.transform(features))
    np.testing.assert_array_equal(found["uncertainty"], model.uncertainty(features))
    assert found["id"] == [str(x) for x in test["id"]]
    assert found["label"] == test["y"].tolist()
    assert run(["score", *common, "--out", str(tmp_path / "s.parquet")]) == 0
    scored = pd.read_parquet(tmp_path / "s.parquet")
    np.testing.assert_array_equal(scored["score"], model.score_samples(features))
    np.testing.assert_array_equal(
        scored[["surprise.number", "surprise.place"]].to_numpy(), model.score_features(features).to_numpy()
    )


def test_t_jepa_is_scored_by_distance(places, tmp_path):
    held = table(20, 7)
    held.to_csv(tmp_path / "held.csv", index=False)
    common = ["score", str(places / "t-run"), "--data", str(tmp_path / "held.csv"), "-q", "--device", "cpu"]
    out = ["--out", str(tmp_path / "s.parquet")]
    assert run([*common, *out]) == 2
    assert run([*common, *out, "--score", "knn", "--reference", str(places / "train.parquet")]) == 0
    assert pq.read_table(tmp_path / "s.parquet").column_names == ["id", "label", "score"]


def test_a_score_that_cannot_be_is_refused_before_the_table_is_read(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("probjepa.cli.tables.TableModel.read", None)
    what = ["score", str(places / "run"), "--data", str(places / "test.csv"), "--out", str(tmp_path / "o")]
    for words, says in (
        (["--score", "likelyhood"], "did you mean 'likelihood'"),
        (["--score", "knn"], "--score knn needs --reference"),
        (["--reference", "x.csv"], "uses no reference set"),
    ):
        assert run([*what, *words]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1


def test_evaluate_writes_figures_and_a_page(places, tmp_path, capsys):
    out = tmp_path / "evaluation"
    code = run(["evaluate", str(places / "run"), "--train", str(places / "train.parquet"), "--test",
                str(places / "test.csv"), "--target", "y", "--out", str(out), "--device", "cpu", "-q"])  # fmt: skip
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["left_out_as_in_train"] == 3
    assert metrics["sets"]["test"]["rows"] == 40
    assert set(metrics["accuracy"]) == {"majority class", "raw", "embedding", "raw + embedding"}
    assert "3 test rows also stand in the training table" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "Most surprising rows" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("evaluate run --train train.parquet --test no-target.csv --target y", "has no column 'y'"),
        ("evaluate run --train train.parquet --test test.csv --target z", "has no column 'z'"),
        ("evaluate run --train one-class.csv --test test.csv", "has one class, 'no'"),
        ("evaluate run --train nan.csv --test test.csv", "is missing in every row"),
        ("evaluate run --train train.parquet --test other.csv", "missing: 'number'; unexpected: 'size'"),
        ("evaluate run --train train.parquet --test empty.csv", "has 0 rows"),
        ("evaluate run --train train.parquet --test nothing.csv", "is empty"),
        ("evaluate run --train train.parquet --test broken.parquet", "cannot be read as parquet"),
        ("evaluate run --train train.parquet --test absent.csv", "no such table"),
        ("evaluate run --train train.parquet --test train.parquet", "also stands in"),
        ("evaluate run --train train.parquet --test test.csv --target number", "was fitted with the column"),
        ("evaluate run --train train.parquet --test test.csv --ood a=b", "not for tables"),
        ("evaluate run --train train.parquet --test test.csv --bootstrap 5", "--bootstrap: not for tables"),
        ("evaluate image-run --train train.parquet --test test.csv --target y", "--target is for tables"),
        ("evaluate image-run --train train.parquet --test test.csv", "image-run"),
        ("evaluate damaged --train train.parquet --test test.csv --target y", "damaged/config.json"),
        ("embed run --data images.parquet", "this model is of tables"),
        ("embed run --data other.csv", "unexpected: 'size'"),
        ("embed run --data .", "broken.parquet' cannot be read as parquet"),
        ("score run --data test.csv --score jepa", "unknown score of tables 'jepa'"),
        ("score run --data test.csv --score knn", "needs --reference"),
        ("score run --data train.parquet --score gmm --reference train.parquet", "fitted on"),
        ("train var-t-jepa --data images.parquet", "this model is of tables"),
        ("train var-t-jepa --data train.parquet --target z", "has no column 'z' to leave out"),
        ("train var-t-jepa --data train.parquet --set dimm=8", "did you mean 'dim'"),
        ("train var-t-jepa --data train.parquet --set dim=wide", "the setting dim takes a whole number or null, got 'wide'"),
        ("train var-t-jepa --data train.parquet --set preset=huge", "unknown preset"),
        ("train var-t-jepa --data train.parquet --resume", "holds no run to resume"),
        ("train vje --data train.parquet --target y", "--target is for tables"),
        ("train vje --data train.parquet", "no column holds images"),
        ("train var-t-jepaa --data train.parquet", "did you mean 'var-t-jepa'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(places, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(places)
    out = tmp_path / "out.parquet"
    assert run([*arguments.split(), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_banks_preset_takes_any_bank_table(tmp_path):
    table(60, 0).to_csv(tmp_path / "my-bank.csv", sep=";", index=False)
    data = ["--data", str(tmp_path / "my-bank.csv"), "--sep", ";", "--target", "y"]
    settings = ["--set", "preset=bank", "--epochs", "1", *SMALL]
    assert run(["train", "var-t-jepa", *data, "--out", str(tmp_path / "run"), *settings]) == 0
    model = VarTJEPA.load(tmp_path / "run" / "model")
    given = {"dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "max_epochs": 1}
    assert model.preset == "bank" and model.schema_.columns == ("number", "place")
    assert model.settings_ == {**PRESETS["bank"], **given}


def test_a_finished_run_says_in_which_setting_another_differs(whole, capsys):
    longer = ["13" if word == "12" else word for word in whole[1]]
    assert longer != whole[1] and run([*longer, "--out", str(whole[0]), "--resume"]) == 2
    assert "was made with max_epochs=12, this run has 13" in capsys.readouterr().err
