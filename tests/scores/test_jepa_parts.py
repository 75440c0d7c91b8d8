"""JEPA-SCORE of a set, part by part: the rows are the library's, and no part is taken for another scoring's."""

import errno
import os
import shutil
from dataclasses import fields, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.progress import Progress

from probjepa import VJE, files
from probjepa.claims import claimed
from probjepa.data import ImageSet
from probjepa.data.preprocess import Preprocess
from probjepa.data.rows import open_table
from probjepa.errors import ArtifactError, DataError
from probjepa.jacobian import as_encoder, jepa_score_details, latent
from probjepa.jacobian.estimators import Settings
from probjepa.metrics.conformal import Rule
from probjepa.scores import jepa_parts

ROWS_A_PART = jepa_parts.rows_a_part(Settings())


def images(count, seed, labels=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    known = None if labels is None else torch.tensor(labels)
    return ImageSet(torch.from_numpy(pixels), known, [f"{seed}.{i}" for i in range(count)])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return as_encoder(VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (4,)}).eval())


@pytest.fixture(autouse=True)
def _four_rows_a_part(monkeypatch):
    monkeypatch.setattr(jepa_parts, "_ROWS_A_PART", 4)


def scored(encoder, data, out, how=Settings(seed=3), **options):  # noqa: B008
    return jepa_parts.score_jepa(encoder, data, out, how, progress=False, **options)


def stopped(encoder, data, out, monkeypatch, after=2, **options):
    """Score until a part after some is due, and stop."""
    columns, begun = jepa_parts.columns, []

    def until(*arguments):
        begun.append(1)
        if len(begun) > after:
            raise KeyboardInterrupt
        return columns(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(jepa_parts, "columns", until)
        with pytest.raises(KeyboardInterrupt):
            scored(encoder, data, out, **options)


def check(table, found):
    for name, of in {
        "score": found.score, "log_volume": found.log_volume, "latent": found.latent,
        "numerical_rank": found.rank, "directions": found.used, "sigma_max": found.sigma_max,
        "sigma_min": found.sigma_min, "standard_error": found.standard_error,
    }.items():  # fmt: skip
        np.testing.assert_allclose(table[name].to_numpy(), of.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(table["estimator"].to_pylist()) == {found.estimator}


@pytest.mark.parametrize("latent", ["none", "normal"])
def test_rows_are_the_librarys(encoder, tmp_path, latent):
    data = images(10, 0, [0, 1] * 5)
    assert scored(encoder, data, tmp_path / "j.parquet", latent=latent) == (0, None)
    table = pq.read_table(tmp_path / "j.parquet")
    assert table["id"].to_pylist() == data.ids and table["label"].to_pylist() == [0, 1] * 5
    check(table, jepa_score_details(encoder, data, latent=None if latent == "none" else latent))
    assert [file.name for file in tmp_path.iterdir()] == ["j.parquet"]
    with pytest.raises(ArtifactError, match="exists"):
        scored(encoder, data, tmp_path / "j.parquet")


def test_a_tolerance_has_enough_rows_to_learn_from(encoder, tmp_path):
    """Parts of a few rows would all be exact: with a tolerance they are large, whatever is said of others."""
    data, how = images(90, 0), Settings("auto", tolerance=0.9)
    scored(encoder, data, tmp_path / "j.parquet", how)
    found = jepa_score_details(encoder, data, estimator="auto", tolerance=0.9)
    assert found.estimator == "calibrated" and found.standard_error.count_nonzero() == 90 - 32
    check(pq.read_table(tmp_path / "j.parquet"), found)


def test_the_latent_term_of_a_reference(encoder, tmp_path):
    data, reference = images(6, 0), images(20, 1)
    scored(encoder, data, tmp_path / "j.parquet", latent="reference", reference=reference)
    with torch.no_grad():
        h = encoder.forward(encoder.prepare(reference.images))
    check(pq.read_table(tmp_path / "j.parquet"), jepa_score_details(encoder, data, latent=h))
    for where, asked, wrong in (
        ("images to score", reference, {}),
        ("images to score", reference, {"calibration": images(20, 2), "rule": Rule(0.1)}),
        ("calibration images", data, {"calibration": reference}),
    ):
        with pytest.raises(DataError, match=f"20 of 20 {where} are in the reference"):
            scored(encoder, asked, tmp_path / "k.parquet", reference=reference, **wrong)


def test_calibration_rows_decide(encoder, tmp_path):
    data, calibration, rule = images(9, 0), images(13, 1), Rule(alpha=0.3)
    out = tmp_path / "j.parquet"
    counted = scored(encoder, data, out, calibration=calibration, rule=rule)
    scores = [jepa_score_details(encoder, of).score.numpy() for of in (data, calibration)]
    expected = rule.decide(*scores)
    table = pq.read_table(out)
    assert len(table) == 9 and counted == (0, expected["flagged"].sum())
    for name in ("p_value", "q_value", "flagged"):
        np.testing.assert_allclose(table[name].to_numpy(), expected[name], err_msg=name)


def test_a_stopped_scoring_goes_on(encoder, tmp_path, monkeypatch):
    data, calibration = images(10, 0), images(6, 1)
    whole, out = tmp_path / "whole.parquet", tmp_path / "j.parquet"
    scored(encoder, data, whole, calibration=calibration, rule=Rule(0.4))
    # the calibration's parts of four and two rows come first
    stopped(encoder, data, out, monkeypatch, after=4, calibration=calibration, rule=Rule(0.4))
    assert scored(encoder, data, out, calibration=calibration, rule=Rule(0.4))[0] == 8
    assert pq.read_table(whole).equals(pq.read_table(out))


def not_scored_again(patch):
    patch.setattr(jepa_parts, "columns", lambda *_: pytest.fail("scored again"))


@pytest.mark.parametrize("old", [False, True])
def test_a_finished_scoring_that_is_cut_short_anywhere_is_kept(encoder, tmp_path, monkeypatch, old):
    """Whatever file is due: the new output stands, or its parts are gone on with, and none stays."""
    data, source, out, ended = images(10, 0), tmp_path / "old", tmp_path / "j.parquet", []
    scored(encoder, data, source)

    def interrupting(patch, number):
        seen, write = [], jepa_parts.pq.write_table

        def events(called):
            def counted(*arguments, **options):
                seen.append(called)
                if len(seen) == number:
                    raise KeyboardInterrupt
                return called(*arguments, **options)

            return counted

        def armed(*arguments):  # all parts are finished
            write(*arguments)
            for name in ("replace", "unlink", "write_text"):
                patch.setattr(files.Path, name, events(getattr(files.Path, name)))
            patch.setattr(files.shutil, "rmtree", events(files.shutil.rmtree))

        patch.setattr(jepa_parts.pq, "write_table", armed)

    for number in range(1, 20):
        out.unlink(missing_ok=True)
        if old:
            shutil.copy(source, out)
        before = out.stat().st_ino if old else None
        with monkeypatch.context() as patch:
            interrupting(patch, number)
            try:
                with claimed(out):
                    scored(encoder, data, out, overwrite=True)
                ended.append(number)
            except KeyboardInterrupt:
                pass
        with monkeypatch.context() as patch, claimed(out):
            not_scored_again(patch)
            if not out.exists() or out.stat().st_ino == before:
                assert scored(encoder, data, out, overwrite=True) == (10, None)
        assert pq.read_table(out).equals(pq.read_table(source))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["j.parquet", "old"]
    assert ended and ended[0] > 4


def test_a_finished_scoring_whose_output_cannot_take_its_name_is_kept(encoder, tmp_path, monkeypatch):
    data, out, replace = images(10, 0), tmp_path / "j.parquet", files.Path.replace
    scored(encoder, data, out)

    def refused(self, target):
        if target == out:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", refused)
        for _ in range(2):
            with pytest.raises(ArtifactError, match=r"cannot write .*j\.parquet"), claimed(out):
                scored(encoder, data, out, overwrite=True)
            not_scored_again(patch)
    with monkeypatch.context() as patch, claimed(out):
        not_scored_again(patch)
        assert scored(encoder, data, out, overwrite=True) == (10, None)
    assert [path.name for path in tmp_path.iterdir()] == ["j.parquet"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_scoring_that_cannot_begin_leaves_no_folder(encoder, tmp_path, monkeypatch, error):
    def fail(self, *_, **__):
        raise error

    monkeypatch.setattr(files.Path, "write_text", fail)
    with pytest.raises((ArtifactError, KeyboardInterrupt)):
        scored(encoder, images(5, 0), tmp_path / "j.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_part_is_scored_again(encoder, tmp_path, monkeypatch, kept):
    data, out = images(10, 0), tmp_path / "j.parquet"
    scored(encoder, data, tmp_path / "whole.parquet")
    stopped(encoder, data, out, monkeypatch)
    part = min(tmp_path.rglob("*0000.parquet"))
    part.write_bytes(part.read_bytes()[:kept])  # as a power cut may leave it
    assert scored(encoder, data, out)[0] == 4
    assert pq.read_table(tmp_path / "whole.parquet").equals(pq.read_table(out))


def test_a_reference_is_fitted_once(encoder, tmp_path, monkeypatch):
    fitted = []
    fit = latent.fit_normal
    monkeypatch.setattr(jepa_parts, "fit_normal", lambda rows: fitted.append(len(rows)) or fit(rows))
    monkeypatch.setattr(latent, "fit_normal", lambda rows: pytest.fail("fitted again"))
    scored(encoder, images(10, 0), tmp_path / "j.parquet", reference=images(20, 1))
    assert fitted == [20]


@pytest.mark.parametrize(("options", "shown"), [({"progress": False}, False), ({}, True)])
def test_a_bar_is_shown_where_it_is_asked_for(encoder, tmp_path, monkeypatch, options, shown):
    asked = []
    monkeypatch.setattr(jepa_parts, "passing", lambda shown: asked.append(shown) or {"disable": True})
    jepa_parts.score_jepa(encoder, images(5, 0), tmp_path / "j.parquet", Settings(), **options)
    assert asked == [shown]


def test_a_bar_goes_from_the_rows_that_are_done_to_all(encoder, tmp_path, monkeypatch):
    made, given = [], {"calibration": images(6, 1), "rule": Rule(0.4)}
    stopped(encoder, images(9, 0), tmp_path / "j.parquet", monkeypatch, after=3, **given)

    class Bar(Progress):
        def add_task(self, what, **options):
            made.append((what, options["total"], options["completed"]))
            return super().add_task(what, **options)

        def stop(self):
            made.append(self.tasks[0].completed)
            super().stop()

    monkeypatch.setattr(jepa_parts, "Progress", Bar)
    scored(encoder, images(9, 0), tmp_path / "j.parquet", **given)
    assert made == [("JEPA-SCORE", 15, 10), 15]  # done were parts of four, two and four rows


def test_an_output_is_replaced_where_that_is_asked_for(encoder, tmp_path):
    out = tmp_path / "j.parquet"
    for count in (5, 3):
        assert scored(encoder, images(count, 0), out, overwrite=True) == (0, None)
        assert len(pq.read_table(out)) == count


def test_a_stopped_scoring_is_not_lost_to_another_table(encoder, tmp_path, monkeypatch):
    data, out = images(10, 0), tmp_path / "j.parquet"
    stopped(encoder, data, out, monkeypatch)
    said = r"a JEPA-SCORE of .* was stopped and can go on .*--overwrite"
    with pytest.raises(ArtifactError, match=said), open_table(out, overwrite=False):
        raise AssertionError
    with pytest.raises(ZeroDivisionError), open_table(out, overwrite=True):  # and nothing was written
        raise ZeroDivisionError
    assert scored(encoder, data, out)[0] == 8
    stopped(encoder, data, out, monkeypatch, overwrite=True)
    with open_table(out, overwrite=True) as table:
        table.write({"x": np.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["j.parquet"]


def test_a_file_that_came_meanwhile_stays(encoder, tmp_path, monkeypatch):
    data, out = images(5, 0), tmp_path / "j.parquet"
    columns = jepa_parts.columns

    def written(*arguments):
        out.write_text("notes")
        return columns(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(jepa_parts, "columns", written)
        with pytest.raises(ArtifactError, match="exists already: what was scored is kept: move that away"):
            scored(encoder, data, out)
    assert out.read_text() == "notes"
    out.rename(tmp_path / "theirs")
    assert scored(encoder, data, out)[0] == 5


def test_a_name_may_be_as_long_as_a_file_systems(encoder, tmp_path):
    for name in ("x" * 247 + ".parquet", "ü" * 123 + ".parquet"):
        scored(encoder, images(5, 0), tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_rows_that_are_their_own_calibration(encoder, tmp_path):
    data = images(9, 0)
    scored(encoder, data, tmp_path / "j.parquet", calibration=data, rule=Rule(0.3))
    assert pq.read_table(tmp_path / "j.parquet")["id"].to_pylist() == data.ids


def test_a_part_is_small_but_for_a_tolerance():
    assert 1 < ROWS_A_PART < jepa_parts.rows_a_part(Settings("auto", tolerance=0.1))


#: what is said to be other → a change of the scoring
CHANGES = [
    ("seed", {"how": Settings(seed=4)}),
    ("rank", {"how": Settings(rank="auto", seed=3)}),
    ("estimator", {"how": Settings("sketch", seed=3)}),
    ("eps", {"how": Settings(eps=1e-3, seed=3)}),
    ("estimator, probes", {"how": Settings("slq", probes=5, seed=3)}),
    ("estimator, steps", {"how": Settings("slq", steps=11, seed=3)}),
    ("estimator, sketch_size", {"how": Settings("sketch", sketch_size=9, seed=3)}),
    ("directions, estimator", {"how": Settings("subspace", directions=2, seed=3)}),
    ("estimator, tolerance", {"how": Settings("auto", tolerance=0.1, seed=3)}),
    ("latent", {"latent": "normal"}),
    ("labels", {"data": images(10, 0, [1, 0] * 5)}),
    ("data_pixels, data_sha256, labels", {"data": images(10, 2)}),
    ("calibration_images, calibration_pixels, calibration_sha256", {"calibration": images(19, 3)}),
    ("reference_images, reference_pixels, reference_sha256", {"reference": images(9, 3)}),
]


@pytest.mark.parametrize(("other", "change"), CHANGES)
def test_what_is_another_scoring_is_named(encoder, tmp_path, monkeypatch, other, change):
    out, fresh = tmp_path / "j.parquet", tmp_path / "fresh.parquet"
    given = {"data": images(10, 0, [0, 1] * 5)}
    stopped(encoder, out=out, monkeypatch=monkeypatch, **given)
    with pytest.raises(ArtifactError, match=f"a scoring with other {other} was begun"):
        scored(encoder, out=out, **given | change)
    assert scored(encoder, out=out, overwrite=True, **given | change)[0] == 0
    scored(encoder, out=fresh, **given | change)
    ours, anew = (pq.read_table(place).to_pandas() for place in (out, fresh))
    assert ours.equals(anew)  # NaN is NaN here


def test_another_version_and_another_name_are_named(encoder, tmp_path, monkeypatch):
    out, data = tmp_path / "j.parquet", images(10, 0)
    stopped(encoder, data, out, monkeypatch)
    with pytest.raises(ArtifactError, match="a scoring with other encoder was begun"):
        scored(replace(encoder, name="another"), data, out)
    monkeypatch.setattr(jepa_parts, "__version__", "0.0")
    with pytest.raises(ArtifactError, match="a scoring with other version was begun"):
        scored(encoder, data, out)


def test_a_damaged_record_is_one_line(encoder, tmp_path, monkeypatch):
    out, data = tmp_path / "j.parquet", images(10, 0)
    stopped(encoder, data, out, monkeypatch)
    (record,) = tmp_path.rglob("settings.json")
    for damaged in (b"[1, 2", b"\xff\xfe", b""):
        record.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"settings\.json is damaged: drop it with --overwrite"):
            scored(encoder, data, out)
    assert scored(encoder, data, out, overwrite=True)[0] == 0


def test_every_setting_of_an_estimator_is_tried_above():
    named = {name for other, _ in CHANGES for name in other.split(", ")}
    assert {field.name for field in fields(Settings)} <= named


def test_too_few_calibration_rows_are_found_before_the_work(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(jepa_parts, "columns", None)
    with pytest.raises(DataError, match="9 calibration rows are too few"):
        scored(encoder, images(10, 0), tmp_path / "j.parquet", calibration=images(9, 1), rule=Rule(0.01))
    assert not list(tmp_path.iterdir())


def test_another_model_is_another_scoring(encoder, tmp_path, monkeypatch):
    torch.manual_seed(1)
    other = VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (4,)}).eval()
    stopped(encoder, images(10, 0), tmp_path / "j.parquet", monkeypatch)
    with pytest.raises(ArtifactError, match="other weights was begun"):
        scored(as_encoder(other), images(10, 0), tmp_path / "j.parquet")
    with pytest.raises(ArtifactError, match="other weights was begun"):
        scored(
            replace(encoder, preprocess=Preprocess(8, 1, [0.1], [0.9])), images(10, 0), tmp_path / "j.parquet"
        )
    assert jepa_parts.encoder_fingerprint(as_encoder(torch.tanh)) == jepa_parts.encoder_fingerprint(
        as_encoder(torch.sin)
    )


def test_images_are_opened_as_the_encoder_takes_them(encoder):
    assert jepa_parts.input_shape(encoder) == (8, 1)
    assert jepa_parts.input_shape(as_encoder(torch.tanh)) == (None, None)
