"""The commands as a user runs them: what they leave, their exit codes and their one-line errors."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import probjepa
from probjepa import cli
from probjepa.cli import run
from probjepa.data.codec import reencode
from probjepa.data.fingerprint import fingerprint
from probjepa.errors import ConfigError
from probjepa.provenance import OWN_THREADS
from shard_cases import write_shard

QUICK = ["--set", "batch_size=8", "--set", "backbone=convnet", "--set", "widths=[4,8]", "-q"]
THREADING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of images, good and bad, and a trained run."""
    root = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)

    def image(path, mode="RGB", side=20):
        path.parent.mkdir(parents=True, exist_ok=True)
        bands = len(Image.new(mode, (1, 1)).getbands())
        shape = (side, side) if bands == 1 else (side, side, bands)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode).save(path)

    for name in ("ok", "text", "truncated", "held"):
        for label in ("cat", "dog"):
            for i in range(10):
                image(root / name / label / f"{i}.png")
    (root / "text" / "cat" / "zz.png").write_text("not an image")
    image(root / "truncated" / "dog" / "zz.jpg")
    whole = (root / "truncated" / "dog" / "zz.jpg").read_bytes()
    (root / "truncated" / "dog" / "zz.jpg").write_bytes(whole[: len(whole) // 2])
    for mode, name in (("RGBA", "rgba"), ("L", "grey")):
        for i in range(3):
            image(root / name / f"{i}.png", mode)
    image(root / "one" / "x.png")
    (root / "empty").mkdir()
    array = random.random((30, 20, 20, 3), dtype=np.float32)
    array[7, 0, 0, 0] = np.nan
    np.save(root / "nan.npy", array)
    assert (
        run(["train", "vje", "--data", str(root / "ok"), "--out", str(root / "run"), "--epochs", "2", *QUICK])
        == 0
    )
    return root


def test_run_folder(places):
    out = places / "run"
    assert {"config.yaml", "model", "checkpoints", "metrics.csv", "report.html"} <= {
        p.name for p in out.iterdir()
    }
    assert {"config.json", "model.safetensors"} <= {p.name for p in (out / "model").iterdir()}
    assert (out / "checkpoints" / "last.ckpt").is_file()
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]


def test_embed_equals_the_library(places, tmp_path):
    out = tmp_path / "e.parquet"
    assert run(["embed", str(places / "run"), "--data", str(places / "held"), "--out", str(out), "-q"]) == 0
    table = pq.read_table(out)
    model = probjepa.load(places / "run")
    images = probjepa.open_images(str(places / "held"), size=model.preprocess.size)
    features = model.features(images.images)
    for column, key in (("embedding", "h"), ("variance", "variance")):
        written = np.array(table[column].to_pylist(), dtype=np.float32)
        np.testing.assert_array_equal(written, features[key].numpy())
    assert table["id"].to_pylist() == images.ids
    assert table["label"].to_pylist() == ["cat"] * 10 + ["dog"] * 10


@pytest.mark.parametrize(
    "score", ["likelihood", "predictive", "knn", "mahalanobis", "gmm", "radial", "mean variance"]
)
def test_score_equals_the_library(places, tmp_path, score):
    out = tmp_path / "s.parquet"
    reference = (
        [] if score in ("likelihood", "radial", "mean variance") else ["--reference", str(places / "ok")]
    )
    arguments = ["score", str(places / "run"), "--data", str(places / "held"), "--out", str(out), "-q"]
    assert run([*arguments, "--score", score, *reference]) == 0
    table = pq.read_table(out)
    assert len(table) == 20
    values = np.array(table["score"].to_pylist())
    assert np.isfinite(values).all()
    if score in ("likelihood", "predictive"):
        model = probjepa.load(places / "run")
        held, known = (probjepa.open_images(str(places / n), size=20).images for n in ("held", "ok"))
        options = {"score": score, "reference": known} if reference else {}
        np.testing.assert_allclose(values, model.score_samples(held, **options).numpy(), rtol=1e-12)
    if score in ("radial", "mean variance"):
        model = probjepa.load(places / "run")
        features = model.features(probjepa.open_images(str(places / "held"), size=20).images)
        with torch.no_grad():
            np.testing.assert_allclose(values, model.ood_scores(features)[score].numpy(), rtol=1e-6)
    if not reference:
        assert {"mean_variance", "directional_nll", "radial_nll", "kl"} <= set(table.column_names)


def test_evaluate(places, tmp_path, capsys):
    out = tmp_path / "ev"
    grey = f"grey={places / 'grey'}"
    arguments = [
        "evaluate",
        str(places / "run"),
        "--train",
        str(places / "ok"),
        "--test",
        str(places / "held"),
    ]
    assert run([*arguments, "--out", str(out), "--ood", grey, "--convert", "--bootstrap", "20", "-q"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["accuracy"]) == {"h", "mu", "random-init", "raw pixels"}
    detectors = metrics["ood"]["grey"]
    assert {"likelihood", "predictive", "knn", "mahalanobis", "gmm", "knn, raw pixels"} <= set(detectors)
    for entry in (d["auroc"] for d in detectors.values()):
        assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
    page = (out / "report.html").read_text()
    assert page.startswith("<!") and "grey" in page
    assert "AUROC" in capsys.readouterr().out


def test_evaluate_on_openood_through_one_codec(places, tmp_path, capsys):
    out = tmp_path / "ev"
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "svhn").symlink_to(places / "grey")
    sets = [
        "--train",
        str(places / "ok"),
        "--test",
        str(places / "held"),
        "--openood",
        str(tmp_path / "sets"),
    ]
    arguments = ["evaluate", str(places / "run"), *sets, "--out", str(out), "--bootstrap", "20", "-q"]
    assert run([*arguments, "--reencode", "jpeg:60"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["reencode"] == "jpeg:60"
    grey = probjepa.open_images(str(places / "grey"), size=20, channels=3, convert=True)
    assert metrics["sets"]["svhn"]["sha256"] == fingerprint(reencode(grey, "jpeg:60"))
    assert (
        metrics["openood"]["averages"]["knn"]["auroc"]["far"]
        == metrics["ood"]["svhn"]["knn"]["auroc"]["value"]
    )
    page = (out / "report.html").read_text()
    for text in (
        "re-encoded alike (jpeg:60)",
        "Selective prediction",
        "Uncertainty and the classes",
        "svhn has 3",
    ):
        assert text in page
    assert "OpenOOD: mean AUROC" in capsys.readouterr().out


TRAIN = ["train", "vje", "--epochs", "1", "-q"]
MODEL_ERRORS = ["embed", "{run}", "--out", "{new}", "-q"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*TRAIN, "--out", "{new}", "--data", "{root}/nowhere"], "no such file or folder"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/empty"], "holds no images"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/text"], "zz.png"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/truncated"], "zz.jpg"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/rgba"], "--convert"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/nan.npy"], "row 7"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/one"], "at least 2 images"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "batch_size=99"], "99"),
        (["train", "vjee", "--out", "{new}", "--data", "{root}/ok"], "did you mean 'vje'"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "backbone=resnet19"], "did you mean 'resnet18'"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "batchsize=3"], "did you mean 'batch_size'"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "df=-1"], "df must be positive"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "df"], "key=value"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "kl_weight=much"], "a number"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--set", "batch_size=1.5"], "a whole number"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--on-error", "ignore"], "raise or skip"),
        ([*TRAIN, "--out", "{run}", "--data", "{root}/ok"], "--overwrite"),
        ([*TRAIN, "--out", "{new}", "--data", "{root}/ok", "--resume"], "no run to resume"),
        ([*TRAIN, "--out", "{new}"], "--data"),
        ([*MODEL_ERRORS, "--data", "{root}/grey"], "--convert"),
        ([*MODEL_ERRORS, "--data", "{root}/rgba"], "alpha"),
        (["embed", "{root}/ok", "--data", "{root}/ok", "--out", "{new}", "-q"], "holds no model"),
        (["embed", "{root}/nothing", "--data", "{root}/ok", "--out", "{new}", "-q"], "no such model"),
        (["evaluate", "{root}/nothing", "--train", "{root}/ok", "--test", "{root}/ok", "--target", "y",
          "--out", "{new}"], "no such model"),
        (["score", *MODEL_ERRORS[1:], "--data", "{root}/ok", "--score", "predictive"], "--reference"),
        (
            ["score", *MODEL_ERRORS[1:], "--data", "{root}/ok", "--score", "gmm", "--reference", "{root}/ok"],
            "20 of 20 images",
        ),
        (["score", *MODEL_ERRORS[1:], "--data", "{root}/ok", "--score", "likelyhood"], "did you mean 'likelihood'"),
        (["evaluate", *MODEL_ERRORS[1:], "--train", "{root}/ok", "--test", "{root}/ok"], "held-out"),
        (["evaluate", *MODEL_ERRORS[1:], "--train", "{root}/ok", "--test", "{root}/held", "--reencode", "png"], "lossless"),
        (
            ["evaluate", *MODEL_ERRORS[1:], "--train", "{root}/ok", "--test", "{root}/held", "--openood", "{root}/ok"],
            "none of OpenOOD's sets",
        ),
        (["frobnicate"], "frobnicate"),
        (["evaluate"], "(see probjepa evaluate --help)"),
        (["train", "VJE", "--data", "{root}/ok", "--out", "{new}"], "did you mean 'vje'"),
        (["train", "vje", "--data", "{root}/ok", "--out", "{new}", "--set", "lr=0.1"], "did you mean 'learning_rate'"),
        (["train", "vje", "--data", "{root}/ok", "--out", "{new}", "--device", "gpu"], "did you mean 'cuda'"),
        (["embed", "dinov2", "--data", "{root}/ok", "--out", "{new}"], "hf:NAME"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(places, tmp_path, capfd, arguments, says):
    names = {"root": places, "run": places / "run", "new": tmp_path / "new"}
    before = sorted(p for p in places.rglob("*"))
    assert run([argument.format(**names) for argument in arguments]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("probjepa: ")
    assert says in error[0]
    assert not (tmp_path / "new").exists()
    assert sorted(p for p in places.rglob("*")) == before


def test_on_error_skip_counts_and_lists(places, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    arguments = ["embed", str(places / "run"), "--data", str(places / "text"), "--out", str(out), "-q"]
    assert run([*arguments, "--on-error", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "skipped 1 unreadable file of" in printed
    assert "zz.png" in printed
    assert len(pq.read_table(out)) == 20


INTERRUPTED = """
import os, signal, sys
from probjepa import cli
import probjepa.data.sources

def open_images(*args, **options):
    os.kill(os.getpid(), signal.SIGNUM)
    signal.sigtimedwait([], 5)

probjepa.data.sources.open_images = open_images
sys.argv = ["probjepa", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(("signum", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupted_command_says_what_to_do(places, tmp_path, signum, code):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("SIGNUM", signum), "embed", str(places / "run"), "--data",
         str(places / "held"), "--out", str(tmp_path / "e.parquet")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr == (
        "probjepa: interrupted: run the same command again (train, where it had begun: with --resume)\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.parametrize("kind", ["embed", "shards", "evaluate"])
def test_an_output_may_have_a_name_that_is_no_text(places, tmp_path, kind):
    out = str(tmp_path / os.fsdecode(b"x\xff"))
    common = [str(places / "run"), "-q", "--device", "cpu"]
    if kind == "evaluate":
        words = [
            "--train",
            str(places / "ok"),
            "--test",
            str(places / "held"),
            "--bootstrap",
            "5",
            "--out",
            out,
        ]
        assert run(["evaluate", *common, *words]) == 0
        assert "scores.parquet" in os.listdir(out)
        return
    if kind == "shards":
        write_shard(tmp_path / "in" / "a.parquet", range(3))
    data = str(tmp_path / "in") if kind == "shards" else str(places / "held")
    written = os.path.join(out, "a.parquet") if kind == "shards" else out + ".parquet"
    words = ["embed", *common, "--data", data, "--out", out if kind == "shards" else written]
    assert run(words) == 0
    with open(written, "rb") as file:
        assert pq.read_table(file).num_rows == (3 if kind == "shards" else 20)
    assert run(words) == (0 if kind == "shards" else 2)


def test_overwrite_replaces_what_the_command_writes_and_no_other_folder(places, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    common = ["--out", str(tmp_path / "mine"), "--overwrite"]
    run_folder, held = str(places / "run"), str(places / "held")
    for words in (
        ["demo"],
        ["evaluate", run_folder, "--train", str(places / "ok"), "--test", held],
        ["curate", run_folder, "--data", held],
    ):
        assert run([*words, *common]) == 2
        assert "has files of something else, and no report.html" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_home_folder_of_an_option_is_read(places, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["embed", str(places / "run"), f"--data={places / 'ok'}", "-q"]
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--out=~/e.parquet"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]
    for other in ("--na=~", "--set=~/x", "a=~/x", "--set x=~/y", "~/x"):
        expected = f"--set={tmp_path}/x" if other == "--set=~/x" else other
        assert cli._expanded(other) == expected


def test_existing_output_needs_overwrite(places, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    out.write_text("mine")
    arguments = ["embed", str(places / "run"), "--data", str(places / "held"), "--out", str(out), "-q"]
    assert run(arguments) == 2
    assert out.read_text() == "mine"
    assert run([*arguments, "--overwrite"]) == 0
    assert len(pq.read_table(out)) == 20


def test_run_of_another_format(places, tmp_path, capsys):
    folder = tmp_path / "model"
    probjepa.load(places / "run").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"format_version": 99, "probjepa_version": "9.9"})
    )
    code = run(
        ["embed", str(folder), "--data", str(places / "held"), "--out", str(tmp_path / "e.parquet"), "-q"]
    )
    error = capsys.readouterr().err
    assert code == 2
    assert "9.9" in error and "format 99" in error
    assert len(error.strip().splitlines()) == 1


def test_disk_full_leaves_nothing(places, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    out = tmp_path / "e.parquet"
    assert run(["embed", str(places / "run"), "--data", str(places / "held"), "--out", str(out), "-q"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "No space left" in error[0]
    assert list(tmp_path.iterdir()) == []


def test_config_file_reproduces_a_run(places, tmp_path):
    out = tmp_path / "again"
    config = str(places / "run" / "config.yaml")
    assert (
        run(["train", "vje", "--data", str(places / "ok"), "--out", str(out), "--config", config, "-q"]) == 0
    )
    first, second = (probjepa.load(p) for p in (places / "run", out))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_help_and_list_load_no_torch():
    commands = ("train", "embed", "score", "evaluate", "curate", "demo", "reproduce", "list")
    code = (
        "import sys; from probjepa.cli import run\n"
        "for words in sys.argv[1:]:\n"
        "    assert run(words.split()) == 0, words\n"
        "    heavy = {'torch', 'yaml'} | ({'pydantic'} if words.startswith('--') else set())\n"  # typer's own, of a command
        "    assert not heavy & set(sys.modules), words\n"
        "    print('end of', words)\n"
    )
    asked = ["--help", "--version", *(f"{name} --help" for name in commands)]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rest = done.stdout
    for words in asked:
        said, end, rest = rest.partition(f"end of {words}\n")
        assert said.strip() and end, words


@pytest.mark.parametrize(
    ("given", "usable", "wanted"),
    [
        ({}, 8, {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}),
        ({}, 2, {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "2"}),
        (dict.fromkeys(THREADING, "7"), 2, dict.fromkeys(THREADING, "7")),
    ],
)
def test_the_command_shares_the_processors_unless_the_user_says_how(monkeypatch, given, usable, wanted):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("probjepa.provenance.usable_cpus", lambda: usable)
    for name in THREADING:
        monkeypatch.setenv(name, "")  # put back afterwards, what the command sets too
        monkeypatch.delenv(name)
        if name in given:
            monkeypatch.setenv(name, given[name])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())  # another C library
    monkeypatch.setenv(OWN_THREADS, "")
    monkeypatch.delenv(OWN_THREADS)
    found = {}
    monkeypatch.setattr(cli, "run", lambda arguments: found.update(os.environ) or 0)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert {name: found[name] for name in THREADING if name in found} == wanted
    assert (OWN_THREADS in found) == (usable == 2 and not given)  # training may try other numbers


@pytest.mark.parametrize("given", [None, "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_command_keeps_the_memory_of_a_step_unless_the_user_says_how(monkeypatch, given):
    for name in (*THREADING, *[name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv(given, "0")
    said = []
    libc = types.SimpleNamespace(mallopt=lambda *what: said.append(what))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    cli.own_process()
    assert said == ([] if given else [(-4, 0), (-1, -1)])


def test_without_arguments_the_help_is_shown_as_it_is(capsys):
    assert run([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Usage: probjepa") and said.count("\n") > 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "nosuch", "--resume"], "nosuch holds no run to resume"),
        (["--out", "kept", "--overwrite"], "kept is no training run and is not overwritten"),
        (["--out", "r", "--resume", "--overwrite"], "pass one of them"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--set", "learning_rate=-1"], "learning_rate must be a positive number"),
        (["--set", "optimizer=adam"], "did you mean 'adamw'"),
        (["--set", "cache_views=4"], "frozen encoder"),
        (["--device", "nonsense"], "nonsense"),
        (["--set", "learing_rate=0.1"], "unknown setting 'learing_rate', did you mean 'learning_rate'"),
        (["--set", "backbone=vit", "--set", "dept=2"], "unknown setting 'dept', did you mean 'depth'"),
        (["--set", "backbone=convnt"], "did you mean 'convnet'"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_its_data_are_read(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("")
    monkeypatch.setattr("probjepa.cli.images.open_training", None)
    out = [] if "--out" in words else ["--out", "r"]
    assert run(["train", "vje", "--data", "sklearn:digits", *out, *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["score", "--score", "knnn"], "unknown score 'knnn', did you mean 'knn'"),
        (["score", "--score", "knn"], "--reference"),
        (["score", "--reference", "x"], "uses no reference set"),
        (["score", "--reference-size", "5"], "goes with a reference set"),
        (["score", "--score", "knn", "--reference", "x", "--reference-size", "1"], "at least 2 rows"),
        (["curate", "--score", "knnn"], "did you mean 'knn'"),
        (["curate", "--score", "gmm"], "--reference"),
        (["curate", "--drop", "1.5"], "drop 1.5 and review 0.05 are shares"),
        (["curate", "--duplicates", "96"], "96"),
        (["curate", "--against", "x"], "--against goes with --duplicates"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused_before_its_data_are_read(
    places, tmp_path, monkeypatch, capsys, words, says
):
    monkeypatch.setattr("probjepa.cli.images.open_images", None)
    what = [words[0], str(places / "run"), "--data", str(places / "ok"), "--out", str(tmp_path / "out"), "-q"]
    assert run([*what, *words[1:]]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_train_says_how_images_of_several_sizes_come_to_one(tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 24)).save(tmp_path / "b.png")
    assert run(["train", "vje", "--data", str(tmp_path), "--out", str(tmp_path / "r"), "-q"]) == 2
    assert "--set image_size=20" in capsys.readouterr().err


def test_the_size_that_images_are_decoded_to_is_a_setting(tmp_path, monkeypatch):
    seen = []

    def make_loader(images, *args, **options):
        seen.append(images.size)
        raise ConfigError("seen")

    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 48, 48), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    monkeypatch.setattr("probjepa.training.runs.make_loader", make_loader)
    sizes = ["--set", "image_size=16", "--set", "decode_size=32", "--out", str(tmp_path / "r")]
    assert run(["train", "vje", "--data", str(tmp_path / "x.npy"), *sizes]) == 2
    assert seen == [32]


def test_python_m_probjepa_is_the_command():
    done = subprocess.run([sys.executable, "-m", "probjepa", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"probjepa {probjepa.__version__}\n")


def test_list_names_what_is_registered(capsys):
    assert run(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("vje", "resnet18", "convnet", "predictive", "byol-32", "flow_matching", "sklearn:"):
        assert name in printed
    lines = printed.splitlines()
    assert "other models, in Python: var-jepa, encoder" in lines
    assert "  likelihood: log-density of h at its own latent; no reference set" in lines
    assert "var-jepa" not in lines[0].partition(": ")[2].split(", ")  # train does not train it


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embed", "x", "--data", "", "--out", "f.parquet"], "--data is empty: give a value"),
        (["embed", "x", "--data", "y", "--out", ""], "--out is empty: give a value"),
        (["train", "vje", "--data", "sklearn:digits", "--out", "", "--overwrite"], "--out is empty"),
        (["embed", "", "--data", "y", "--out", "f.parquet"], "ENCODER is empty: give a value"),
        (
            ["score", "x", "--data", "y", "--out", "f.parquet", "--seed", "-1"],
            "from 0 up to 2⁶³ − 1, got '-1'",
        ),
        (["train", "vje", "--data", "sklearn:digits", "--out", "r", "--seed", "-1"], "got '-1'"),
        (["demo", "--out", "r", "--seed", str(10**23)], "from 0 up to 2⁶³ − 1"),
        (["embed", "x", "--data", "y", "--out", "f.csv"], "--out 'f.csv' is written as parquet"),
        (["score", "x", "--data", "y", "--out", "f.npz"], "give a name that ends in .parquet"),
    ],
)
def test_what_a_value_cannot_be_is_said_before_any_work(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the folder that one stands in stays")
def test_a_working_directory_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["list"]) == 2
    assert capsys.readouterr().err == "probjepa: the working directory is gone: cd to another\n"
