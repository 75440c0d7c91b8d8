"""The commands on an encoder that is trained already: a head on it, by its folder's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import probjepa as pj
from probjepa.cli import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("encoder")
    encoder = pj.SimSiam(
        "convnet", projector_dim=8, predictor_dim=4, backbone_options={"widths": (4, 8)}, image_size=16,
        mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], seed=0,
    ).eval()  # fmt: skip
    encoder.save_pretrained(root / "encoder")
    generator = torch.Generator().manual_seed(0)
    np.save(root / "x.npy", torch.randint(0, 256, (24, 20, 20, 3), generator=generator).byte().numpy())
    return root


def train(root: Path, out: Path, *more: str) -> int:
    return run(
        ["train", "vje", "--data", str(root / "x.npy"), "--out", str(out), "--epochs", "2", "-q", "--device", "cpu",
         "--set", f"backbone={root / 'encoder'}", "--set", "freeze=true", "--set", "batch_size=8",
         "--set", "learning_rate=0.001", *more]
    )  # fmt: skip


def test_a_head_is_trained_on_a_saved_encoder_and_every_command_takes_it(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(folder, out, "--cache-views", "3") == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["cache_views"] == 3 and config["method"]["freeze"] is True
    assert config["method"]["backbone"] == str(folder / "encoder")
    encoder, model = pj.load(folder / "encoder"), pj.load(out)
    images = pj.open_images(folder / "x.npy", size=16)
    assert torch.equal(model.embed(images), encoder.embed(images))
    assert (
        run(["score", str(out), "--data", str(folder / "x.npy"), "--out", str(tmp_path / "s.parquet"), "-q"])
        == 0
    )
    assert np.isfinite(pq.read_table(tmp_path / "s.parquet")["score"].to_numpy()).all()


def test_a_resumed_run_opens_the_same_encoder_again(folder: Path, tmp_path: Path, capsys) -> None:
    assert train(folder, tmp_path / "whole", "--cache-views", "2") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "model" / "model.safetensors").unlink()
    resumed = [
        "train",
        "vje",
        "--data",
        str(folder / "x.npy"),
        "--out",
        str(tmp_path / "part"),
        "--resume",
        "-q",
    ]
    assert run(resumed) == 0
    whole, part = pj.load(tmp_path / "whole"), pj.load(tmp_path / "part")
    assert whole.preprocess.config() == part.preprocess.config()
    for got, wanted in zip(part.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(got, wanted)
    capsys.readouterr()
    (folder / "encoder").rename(folder / "moved")
    try:
        assert run(resumed) == 2
    finally:
        (folder / "moved").rename(folder / "encoder")
    error = capsys.readouterr().err
    assert "encoder" in error and error.strip().count("\n") == 0


@pytest.mark.parametrize("more", [("--cache-views", "2"), ()])
def test_a_run_is_not_resumed_on_an_encoder_with_other_weights(
    folder: Path, tmp_path: Path, more, capsys
) -> None:
    assert train(folder, tmp_path / "run", *more) == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    weights = folder / "encoder" / "model.safetensors"
    before = weights.read_bytes()
    other = pj.load(folder / "encoder")
    with torch.no_grad():
        next(other.encoder.parameters()).mul_(2)
    try:
        other.save_pretrained(folder / "encoder")
        capsys.readouterr()
        assert train(folder, tmp_path / "run", "--resume", *more) == 2
    finally:
        weights.write_bytes(before)
    error = capsys.readouterr().err
    assert "encoder_sha256" in error and error.strip().count("\n") == 0
    assert kept == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_statistics_that_were_given_are_those_of_a_resumed_run(folder: Path, tmp_path: Path) -> None:
    first = ["train", "vje", "--data", str(folder / "x.npy"), "--out", str(tmp_path / "run"), "-q", "--epochs", "1",
             "--set", "mean=[0.1,0.2,0.3]", "--set", "std=[0.4,0.5,0.6]", "--set", "batch_size=8",
             "--set", "backbone=convnet", "--set", "widths=[4,8]"]  # fmt: skip
    assert run(first) == 0
    assert run([*first[:7], "--resume"]) == 0
    assert pj.load(tmp_path / "run").preprocess.config()["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "backbone=runs/none"], "runs/none"),
        (["--set", "widths=[2]"], "widths"),
        (["--cache-views", "1"], "2 or more views"),
        (["--set", "freeze=false", "--cache-views", "2"], "freeze=True"),
        (["--set", "freeze=perhaps"], "freeze"),
        (["--cache-views", "2", "--set", "cache_views=3"], "given by an option and by --set"),
        (["--set", "image_size=24"], "takes images of 16 pixels"),
        (["--set", "layer_decay=0.5"], "layer_decay is of an encoder's layers"),
    ],
)
def test_bad_settings_of_a_trained_encoder_are_one_line(
    folder: Path, tmp_path: Path, more, message: str, capsys
) -> None:
    items = {item.partition("=")[0]: item for item in more if "=" in item}
    given = {"backbone": f"backbone={folder / 'encoder'}", "freeze": "freeze=true"} | items
    given["batch"] = "batch_size=8"
    options = [word for item in given.values() for word in ("--set", item)]
    plain = [word for word in more if "=" not in word and word != "--set"]
    code = run(
        [
            "train",
            "vje",
            "--data",
            str(folder / "x.npy"),
            "--out",
            str(tmp_path / "r"),
            "-q",
            *options,
            *plain,
        ]
    )
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error and error.strip().count("\n") == 0
    assert not (tmp_path / "r" / "model").exists()
