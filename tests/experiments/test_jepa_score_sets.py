"""JEPA-SCORE of a public encoder: its variants by hand, and a whole study of two images a set."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import multivariate_normal
from torch import nn

import probjepa as pj
from probjepa.errors import DataError
from probjepa.jacobian.latent import fit_normal
from probjepa_experiments import jepa_score_sets as module
from probjepa_experiments.jepa_score_sets import DROPPED, LATENT, PAPER, STUDY, TEST, WITH_LATENT

TINY = replace(
    STUDY,
    budgets={
        "small": replace(
            STUDY.budgets["small"], settings={"images": 2, "reference": 8}, seeds=1, n_bootstrap=20
        )
    },
)


def test_scores_are_those_of_their_formulas():
    known, h = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5)
    sigma = torch.tensor([[8.0, 4.0, 2.0, 1.0, 0.0], [16.0, 1.0, 1.0, 1.0, 1.0]]).double()
    found = module.scores_of(known, {TEST: h}, {TEST: sigma})
    least = math.log(1e-6)
    np.testing.assert_allclose(found[PAPER][TEST], [6 * math.log(2) + least, 4 * math.log(2)])
    np.testing.assert_allclose(found[DROPPED][TEST], [3 * math.log(2) + least, 0.0], atol=1e-12)
    normal = fit_normal(known)
    exact = multivariate_normal(normal.mean.numpy(), normal.covariance_matrix.numpy()).logpdf(h.numpy())
    np.testing.assert_allclose(found[LATENT][TEST], exact)
    np.testing.assert_allclose(found[WITH_LATENT][TEST], found[PAPER][TEST] + exact)


@pytest.fixture
def places(tmp_path):
    """CIFAR-10's files with twelve images each, and the weights of a ResNet-20 that learned nothing."""
    random = np.random.default_rng(0)
    (tmp_path / "cifar10").mkdir()
    for name in ("train", "test"):
        images = random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        table = pa.table({"image": images.tolist(), "label": [*range(10), 0, 1]})
        pq.write_table(table, tmp_path / "cifar10" / f"{name}.parquet")
    (tmp_path / "encoders").mkdir()
    torch.manual_seed(0)
    encoder = pj.SimSiam("resnet20", image_size=32).encoder
    save_file(encoder.state_dict(), tmp_path / "encoders" / "resnet20_cifar10.safetensors")
    return tmp_path


def run(out, data_root):
    TINY(out, data_root=data_root, budget="small", cells=None, seed=0, overwrite=False, progress=False)


def test_a_study_of_two_images_a_set(places, tmp_path, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    monkeypatch.setattr(module, "encoder_of", lambda cell, data: pj.open_encoder(net.eval(), image_size=32))
    run(tmp_path / "out", places)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (table,) = found["tables"].values()
    labels = [column["label"] for column in table["columns"]]
    assert labels == ["AUROC, digits", "AUROC, noise", "mean of the sets"]
    assert [row["label"] for row in table["rows"]] == [row.label for row in STUDY.rows]
    assert "CIFAR-100" in " ".join(found["not_run"])
    report = (tmp_path / "out" / "report.html").read_text()
    for title in ("Typical images of every class", "Singular values of the Jacobian"):
        assert title in report


def test_random_weights_are_the_seeds_and_not_the_files(places):
    data = STUDY.measurement.sources["cifar10"].open(places)
    cells = [
        STUDY.cell_of(row, TINY.budgets["small"], "cifar10", data, seed)
        for seed in (0, 1)
        for row in (
            STUDY.rows[0],
            next(row for row in STUDY.rows if row.settings["encoder"] == module.RANDOM),
        )
    ]
    images = data.test.subset(np.arange(3))
    public, drawn, same, other = (module.encoder_of(cell, data).embed(images) for cell in cells)
    assert torch.equal(public, same)
    assert not torch.equal(public, drawn)
    assert not torch.equal(drawn, other)


def test_without_the_weights_it_says_which_file_is_wanted(places, tmp_path):
    (places / "encoders" / "resnet20_cifar10.safetensors").unlink()
    with pytest.raises(DataError, match=r"no .*resnet20_cifar10.safetensors"):
        run(tmp_path / "out", places)
