"""The demo, cut short: its files, its sets and its refusal to overwrite."""

import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from lightning import LightningModule

from probjepa import demo
from probjepa.errors import ArtifactError
from probjepa.training import Interrupted


def test_a_demo_that_was_cut_short_goes_on_and_leaves_metrics_report_and_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STEPS", 16)
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate", lambda *_, **__: exit(143))
        with pytest.raises(SystemExit):
            demo.run_demo(out, progress=False)
    before = (out / "run" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(demo, "evaluate", partial(demo.evaluate, n_bootstrap=5))
    demo.run_demo(out, progress=False)
    assert (out / "run" / "model" / "model.safetensors").read_bytes() == before
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["ood"]) == {"unseen classes", "natural patches", "noise"}
    for by_detector in metrics["ood"].values():
        assert {"likelihood", "predictive", "knn"} <= set(by_detector)
    assert (out / "report.html").stat().st_size > 10_000
    assert "AUROC" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match="--overwrite"):
        demo.run_demo(out, progress=False)


def test_a_new_demo_that_is_interrupted_leaves_no_page_of_the_old_one_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STEPS", 16)
    monkeypatch.setattr(demo, "evaluate", partial(demo.evaluate, n_bootstrap=5))
    out, whole = tmp_path / "demo", tmp_path / "whole"
    demo.run_demo(out, progress=False)
    demo.run_demo(whole, seed=1, progress=False)
    after_one = LightningModule.on_train_epoch_start

    def interrupt(self):
        after_one(self)
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(LightningModule, "on_train_epoch_start", interrupt)
        with pytest.raises(
            Interrupted, match=r"step \d+: run the demo again, without --overwrite, to go on$"
        ):
            demo.run_demo(out, seed=1, overwrite=True, progress=False)
    assert [path.name for path in out.iterdir()] == ["run"]
    demo.run_demo(out, seed=1, progress=False)
    for name in ("metrics.json", "run/model/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("at", ["metrics.json", "run"])
def test_a_demo_that_is_killed_while_an_old_one_goes_begins_again(tmp_path, monkeypatch, at):
    (tmp_path / "run").mkdir()
    for name in ("report.html", "metrics.json", "scores.parquet"):
        (tmp_path / name).write_text("old")
    unlink = demo.Path.unlink

    def killed(self, missing_ok=False):
        if self.name == at:
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    def killed_in(folder):
        folder.rmdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo.Path, "unlink", killed)
        if at == "run":
            patch.setattr(demo, "discard", killed_in)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(tmp_path, overwrite=True, progress=False)
    assert not (tmp_path / "report.html").exists()
    monkeypatch.setattr(demo, "train_demo", lambda *_, **__: exit(143))
    for overwrite in (False, True) if at == "run" else (True,):
        with pytest.raises(SystemExit):
            demo.run_demo(tmp_path, overwrite=overwrite, progress=False)
    assert not list(tmp_path.iterdir())


def test_sets_are_seeded_and_in_range():
    first, second = (demo.natural_patches(20, 16, np.random.default_rng(3)) for _ in range(2))
    assert first.images.equal(second.images)
    assert first.images.shape == (20, 1, 16, 16)
    spread = first.images.flatten(1).float().std(1)
    assert (spread > 1).float().mean() > 0.8  # patches of photographs, not of one colour
    uniform = demo.noise(200, 16, np.random.default_rng(3)).images.float()
    assert abs(uniform.mean().item() - 127.5) < 2


def test_the_demo_gives_the_callers_threads_back(tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def train(*_, **__):
        seen.append(torch.get_num_threads())
        raise ArtifactError("no disk")

    monkeypatch.setattr(demo, "train_demo", train)
    torch.set_num_threads(2)
    try:
        with pytest.raises(ArtifactError, match="no disk"):
            demo.run_demo(tmp_path / "demo", progress=False)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
