"""``score --score jepa`` goes on where it stopped; ``curate`` sorts a folder."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import probjepa
from probjepa.cli import run
from probjepa.scores import jepa_parts as jepa


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("jepa")
    random = np.random.default_rng(0)
    for name, count in (("data", 10), ("reference", 30)):
        (root / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    torch.manual_seed(0)
    model = probjepa.VJE("convnet", channels=1, image_size=16, backbone_options={"widths": (8, 12)}).eval()
    model.save_pretrained(root / "model")
    return root


def score(places, out, *more):
    arguments = ["score", str(places / "model"), "--score", "jepa", "--data", str(places / "data"), "-q"]
    return run([*arguments, "--out", str(out), *more])


def test_rows_equal_the_library(places, tmp_path):
    out = tmp_path / "j.parquet"
    assert score(places, out) == 0
    table = pq.read_table(out).to_pydict()
    model = probjepa.load(places / "model")
    images = probjepa.open_images(str(places / "data")).images
    np.testing.assert_allclose(table["score"], probjepa.jepa_score(model, images).numpy(), atol=1e-6)
    sigma = probjepa.jacobian_spectrum(model, images)
    np.testing.assert_allclose(table["sigma_max"], sigma[:, 0].numpy(), rtol=1e-6)
    assert table["numerical_rank"] == (sigma > 1e-4 * sigma[:, :1]).sum(1).tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["j.parquet"]


def test_a_stopped_scoring_goes_on(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jepa, "_ROWS_A_PART", 4)
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"
    assert score(places, whole) == 0
    details, calls = jepa.jepa_score_details, []

    def interrupted(encoder, images, **options):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return details(encoder, images, **options)

    monkeypatch.setattr(jepa, "jepa_score_details", interrupted)
    assert score(places, stopped) == 130
    assert not stopped.exists()
    assert score(places, stopped, "--rank", "auto") == 2  # other settings: not the same scoring
    assert "rank" in capsys.readouterr().err
    assert score(places, stopped) == 0
    assert calls == [4, 4, 2, 2]  # two parts were kept, the third is scored again
    assert "8 of them by an earlier run" in capsys.readouterr().out
    assert pq.read_table(whole).equals(pq.read_table(stopped))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stopped.parquet", "whole.parquet"]


@pytest.mark.parametrize("named", [False, True], ids=["before its name", "after it"])
def test_a_scoring_that_is_killed_while_it_finishes_leaves_nothing(places, tmp_path, monkeypatch, named):
    whole, out = tmp_path / "whole.parquet", tmp_path / "j.parquet"
    assert score(places, whole) == 0
    rename = Path.replace

    def killed(self, target):
        if Path(target) != out or named:
            rename(self, target)
        if Path(target) == out:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        assert score(places, out) == 130
    assert out.exists() == named and jepa.parts_of(out).is_dir()
    assert score(places, out) == (2 if named else 0)
    assert pq.read_table(whole).equals(pq.read_table(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j.parquet", "whole.parquet"]


def begun(places, data, out, monkeypatch, model="model"):
    """Score by a model until the third part is due, and stop."""
    monkeypatch.setattr(jepa, "_ROWS_A_PART", 4)
    details, calls = jepa.jepa_score_details, []

    def interrupted(encoder, images, **options):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return details(encoder, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(jepa, "jepa_score_details", interrupted)
        assert rescored(places, data, out, model=model) == 130


def rescored(places, data, out, *more, model="model"):
    return run(
        ["score", str(places / model), "--score", "jepa", "--data", str(data), "--out", str(out), "-q", *more]
    )


@pytest.fixture(scope="module")
def other(places):
    """Another model, with the same settings, and one with the same weights and another normalisation."""
    for name, seed, mean in (("other", 1, 0.5), ("shifted", 0, 0.6)):
        torch.manual_seed(seed)
        options = {"channels": 1, "image_size": 16, "backbone_options": {"widths": (8, 12)}}
        probjepa.VJE("convnet", mean=[mean], std=[0.25], **options).save_pretrained(places / name)


@pytest.mark.parametrize("model", ["other", "shifted"])
@pytest.mark.parametrize("left", ["all", "no record", "the record alone"])
def test_parts_of_another_model_are_not_taken(places, other, tmp_path, monkeypatch, model, left):
    out, fresh = tmp_path / "j.parquet", tmp_path / "fresh.parquet"
    begun(places, places / "data", out, monkeypatch)
    parts = tmp_path / ".j.parquet.parts"
    for file in parts.iterdir():  # as a kill in the middle of removing them leaves them
        if (left == "no record") == (file.suffix == ".json") and left != "all":
            file.unlink()
    assert rescored(places, places / "data", out, "--overwrite", model=model) == 0
    assert rescored(places, places / "data", fresh, model=model) == 0
    assert pq.read_table(out).equals(pq.read_table(fresh))
    assert not parts.exists()


def shade(folder):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "5.png")


def rename(folder):
    (folder / "5.png").rename(folder / "5b.png")


def label(folder):
    for file in list(folder.glob("*.png")):
        (folder / "class").mkdir(exist_ok=True)
        file.rename(folder / "class" / file.name)


@pytest.mark.parametrize("change", [shade, rename, label])
def test_parts_of_other_rows_are_not_taken(places, tmp_path, monkeypatch, change):
    data, out, fresh = tmp_path / "data", tmp_path / "j.parquet", tmp_path / "fresh.parquet"
    shutil.copytree(places / "data", data)
    begun(places, data, out, monkeypatch)
    change(data)
    assert rescored(places, data, out) == 2  # refused: it is another scoring
    assert rescored(places, data, out, "--overwrite") == 0
    assert rescored(places, data, fresh) == 0
    assert pq.read_table(out).equals(pq.read_table(fresh))


def test_latent_term_of_a_reference(places, tmp_path):
    out = tmp_path / "j.parquet"
    assert score(places, out, "--latent", "reference", "--reference", str(places / "reference")) == 0
    table = pq.read_table(out).to_pydict()
    model = probjepa.load(places / "model")
    data, reference = (probjepa.open_images(str(places / n)).images for n in ("data", "reference"))
    expected = probjepa.jepa_score(model, data, latent=model.embed(reference))
    np.testing.assert_allclose(table["score"], expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(np.add(table["log_volume"], table["latent"]), table["score"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--latent", "reference"], "--reference"),
        (["--latent", "norma"], "did you mean 'normal'"),
        (["--rank", "some"], "--rank"),
        (["--rank", "²"], "--rank is '²': pass none, auto or a number"),
        (["--estimator", "exakt"], "did you mean 'exact'"),
        (["--tolerance", "0.1"], "estimator='auto'"),
        (["--estimator", "auto", "--tolerance", "2"], "tolerance is 2.0"),
    ],
)
def test_bad_settings(places, tmp_path, capfd, more, says):
    assert score(places, tmp_path / "j.parquet", *more) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]
    assert list(tmp_path.iterdir()) == []


def test_curate_lists_every_image_once(places, tmp_path):
    out = tmp_path / "curated"
    arguments = ["curate", str(places / "model"), "--data", str(places / "data"), "--out", str(out), "-q"]
    assert run([*arguments, "--drop", "0.2", "--review", "0.1"]) == 0
    lists = {name: (out / f"{name}.txt").read_text().split() for name in ("keep", "review", "drop")}
    assert sorted(itertools.chain(*lists.values())) == sorted(f"{i}.png" for i in range(10))
    model = probjepa.load(places / "model")
    images = probjepa.open_images(str(places / "data"))
    likelihood = model.score_samples(images.images).numpy()
    assert lists["drop"] == [images.ids[i] for i in np.argsort(likelihood)[:2]]
    ranking = pq.read_table(out / "ranking.parquet").to_pydict()
    assert ranking["typicality"] == sorted(ranking["typicality"])
    assert (out / "report.html").read_text().count("data:image/png") >= 10
    assert run(arguments) == 2  # it exists


def test_another_process_goes_on_with_labelled_images(places, tmp_path, monkeypatch, capsys):
    """The record of a scoring holds nothing of the process that wrote it, such as an address."""
    monkeypatch.setattr(jepa, "_ROWS_A_PART", 4)
    random = np.random.default_rng(3)
    for i in range(10):
        (tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
    out = tmp_path / "j.parquet"
    arguments = ["score", str(places / "model"), "--score", "jepa", "--data", str(tmp_path / "data"), "-q"]
    code = (
        "import sys; from probjepa.scores import jepa_parts as jepa; from probjepa.cli import run\n"
        "jepa._ROWS_A_PART = 4; details, calls = jepa.jepa_score_details, []\n"
        "def stopped(*given, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: raise KeyboardInterrupt\n"
        "    return details(*given, **options)\n"
        "jepa.jepa_score_details = stopped\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments, "--out", str(out)])
    assert done.returncode == 130 and not out.exists()
    capsys.readouterr()
    assert run([*arguments, "--out", str(out)]) == 0
    assert "4 of them by an earlier run" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "j.parquet"]


def test_a_stopped_scoring_is_in_the_way_of_other_commands_before_they_work(tmp_path, capsys):
    (tmp_path / ".s.parquet.parts").mkdir()
    (tmp_path / ".s.parquet.parts" / "settings.json").write_text("{}")
    out = ["--data", "nothing.csv", "--out", str(tmp_path / "s.parquet")]
    for command in (["score", "no-model", "--score", "likelihood"], ["embed", "no-model"]):
        assert run([*command, *out]) == 2
        assert "a JEPA-SCORE of" in (said := capsys.readouterr().err) and "was stopped and can go on" in said
    for command in (["score", "no-model", "--score", "jepa"], ["embed", "no-model", "--overwrite"]):
        assert run([*command, *out]) == 2
        assert "no such model: no-model" in capsys.readouterr().err
