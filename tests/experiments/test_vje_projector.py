"""Methods with a projector that they do not have, or without theirs: what is trained, and what is measured."""

from dataclasses import replace

import pytest
import torch
from experiment_tables import TINY, trainings
from torch import nn

from probjepa.errors import ConfigError
from probjepa_experiments import projector_cells
from probjepa_experiments.datasets import SOURCES
from probjepa_experiments.images import build
from probjepa_experiments.study import Data
from probjepa_experiments.vje import H
from probjepa_experiments.vje_projector import SMALL, STUDY, best, rates

SETTINGS = {
    "vje": {"channels": 1, "image_size": 16, "backbone": "convnet", "hidden_dim": 8},
    "vicreg": {"channels": 1, "image_size": 16, "backbone": "convnet", "projector_dim": 8},
    "simsiam": {
        "channels": 1,
        "image_size": 16,
        "backbone": "convnet",
        "projector_dim": 8,
        "predictor_dim": 4,
    },
}


def test_rows_differ_in_projector_and_rate_alone():
    rows = trainings(STUDY)
    cells = [STUDY.cell_of(row, SMALL, "cifar10-validation", Data("mark"), 0) for row in rows]
    assert len({cell.key for cell in cells}) == len(rows) == 9
    for name in SETTINGS:
        plain, *others = (cell for cell in cells if cell.method == name)
        assert plain.settings["projector"] == "as it is"
        for cell in others:
            assert {**cell.settings, "projector": "as it is"} == plain.settings
            assert {**cell.fit, "learning_rate": 0} == {**plain.fit, "learning_rate": 0}


@pytest.mark.parametrize("name", ["vicreg", "simsiam"])
def test_without_its_projector_a_loss_takes_the_embedding(name):
    before = torch.get_rng_state()
    plain, bare = build(name, SETTINGS[name], 0), projector_cells.altered(name, SETTINGS[name], "none", 0)
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(bare.projector, nn.Identity)
    for one, other in zip(plain.encoder.parameters(), bare.encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    views = [torch.randn(8, 1, 16, 16) for _ in range(2)]
    z = bare.encoder(torch.cat(views))
    if name == "vicreg":
        from probjepa.methods.vicreg import vicreg_loss

        expected = vicreg_loss(z.chunk(2))["loss"]
    else:
        from probjepa.methods.simsiam import simsiam_loss

        expected = simsiam_loss(bare.predictor(z).chunk(2), z.chunk(2))
    torch.testing.assert_close(bare.loss(views)["loss"], expected)


def test_behind_a_projector_the_likelihood_is_of_its_output_and_kNN_of_what_is_before():
    model = projector_cells.altered("vje", SETTINGS["vje"], "own", 0)
    assert model.embedding_dim == projector_cells.WIDTH
    images = SOURCES["digits"].open(None, 64).test.subset(range(5))
    h = projector_cells.embedded(model, images)
    assert h.shape == (5, 64)
    torch.testing.assert_close(h, build("vje", SETTINGS["vje"], 0).embed(images), atol=1e-5, rtol=1e-4)
    again = projector_cells.altered("vje", SETTINGS["vje"], "own", 0)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", ["as it is", "own", "none"])
def test_a_cell_that_was_trained_is_only_measured(tmp_path, how):
    data = SOURCES["digits"].open(None, 96)
    row = next(row for row in STUDY.rows if row.settings.get("projector", "as it is") == how)
    methods = {row.method: {key: of for key, of in SETTINGS[row.method].items() if key.endswith("_dim")}}
    cell = STUDY.cell_of(row, replace(TINY, methods=methods), "digits", data, 0)
    whole = projector_cells.run(cell, data, tmp_path / "whole", TINY, False).figures
    assert 0 <= whole["knn20/h"]["value"] <= 1
    written = (tmp_path / "whole" / "metrics.csv").stat().st_mtime_ns
    # what a whole run left is gone on with, and has nothing left to train
    assert projector_cells.run(cell, data, tmp_path / "whole", TINY, False).figures == whole
    assert (tmp_path / "whole" / "metrics.csv").stat().st_mtime_ns == written


def test_an_unknown_projector_is_refused():
    with pytest.raises(ConfigError, match="unknown projector 'mine'"):
        projector_cells.altered("vje", SETTINGS["vje"], "mine", 0)


def test_findings_take_the_better_rate():
    figures = {row.label: 0.3 for row in STUDY.rows}

    def look(row, column):
        assert column == H
        return figures[row]

    assert [finding.holds(look) for finding in STUDY.findings] == [False, True, True, False]
    figures["VICReg"] = 0.4
    figures[f"VJE behind a projector, {rates('vje')[1]:g}"] = 0.35
    assert best(look, "vje") == 0.35
    assert [finding.holds(look) for finding in STUDY.findings] == [True] * 4
