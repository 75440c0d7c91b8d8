"""Curation: who is kept, looked at and dropped, by any score and any method's uncertainty."""

import dataclasses
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from probjepa import VJE, SimSiam, VISimSiam, open_encoder, open_images
from probjepa.curation import LISTS, curate, sort_out
from probjepa.data import ImageSet
from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from probjepa.files import refuse_existing, refuse_foreign
from probjepa.scores import SCORES, score_set

SMALL = {"channels": 1, "image_size": 8, "backbone_options": {"widths": (8, 16)}}
NARROW = {"projector_dim": 16, "predictor_dim": 8, **SMALL}
METHODS = {
    "mean_variance": lambda: VJE("convnet", **SMALL),
    "entropy": lambda: VISimSiam("convnet", **NARROW),
    "": lambda: SimSiam("convnet", **NARROW),
}


def images(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pixels), None, [f"{i}.png" for i in range(count)], name="noise")


@pytest.mark.parametrize("measure", METHODS)
@pytest.mark.parametrize("score", ["likelihood", "knn"])
def test_uncertainty_is_the_methods_main_measure(tmp_path, measure, score):
    torch.manual_seed(0)
    method, some = METHODS[measure]().eval(), images(20, 1)
    reference = images(40, 2) if score == "knn" else None
    if score == "likelihood" and not measure:
        with pytest.raises(ConfigError, match="no likelihood"):
            curate(method, some, tmp_path, score=score)
        return
    counts = curate(method, some, tmp_path, score=score, reference=reference, drop=0.1, review=0.1)
    table = pq.read_table(tmp_path / "ranking.parquet").to_pydict()
    rows = [some.ids.index(name) for name in table["id"]]
    typicality, _ = score_set(method, some, score, reference=reference)
    np.testing.assert_allclose(table["typicality"], np.sort(typicality))
    assert ("uncertainty" in table) == bool(measure)
    uncertain = None
    if measure:
        uncertain = method.uncertainty(some.images)[measure].numpy()
        np.testing.assert_allclose(table["uncertainty"], uncertain[rows], rtol=1e-6)
    verdict = sort_out(typicality, uncertain, 0.1, 0.1)
    assert table["verdict"] == verdict[rows].tolist()
    for name in LISTS:
        listed = (tmp_path / f"{name}.txt").read_text().split()
        assert listed == [
            row for row, said in zip(table["id"], table["verdict"], strict=True) if said == name
        ]
        assert len(listed) == counts[name]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") >= 20
    assert ("by uncertainty" in page) == bool(measure)


def test_what_was_left_out_is_on_a_list_and_on_the_page(tmp_path):
    torch.manual_seed(0)
    lines = ["set/broken.png cannot be decoded", "set/notes.txt is no image of a known format"]
    some = dataclasses.replace(images(20, 1), skipped=lines)
    counts = curate(METHODS["mean_variance"]().eval(), some, tmp_path)
    assert counts["skipped"] == 2 and sum(counts[name] for name in LISTS) == 20
    assert (tmp_path / "skipped.txt").read_text().splitlines() == lines
    page = (tmp_path / "report.html").read_text()
    assert all(line in page for line in lines)
    curate(METHODS["mean_variance"]().eval(), images(20, 1), tmp_path)
    assert (tmp_path / "skipped.txt").read_text() == ""


def test_a_list_of_more_than_is_shown_says_so(tmp_path):
    torch.manual_seed(0)
    curate(METHODS["mean_variance"]().eval(), images(120, 1), tmp_path, drop=0.5, review=0)
    page = (tmp_path / "report.html").read_text()
    assert "drop: 60 images, by likelihood (the first 48 are shown)" in page
    curate(METHODS["mean_variance"]().eval(), images(48, 1), tmp_path, drop=1, review=0)
    page = (tmp_path / "report.html").read_text()
    assert "drop: 48 images, by likelihood<" in page


def test_a_score_of_another_package_sorts(tmp_path):
    class Distance:
        def fit(self, h):
            self.mean = np.mean(h, 0)
            return self

        def score_samples(self, h):
            return -np.linalg.norm(np.asarray(h) - self.mean, axis=1)

    torch.manual_seed(0)
    method, some, known = VJE("convnet", **SMALL).eval(), images(20, 1), images(40, 2)
    SCORES.register("distance", Distance)
    try:
        curate(method, some, tmp_path, score="distance", reference=known)
    finally:
        SCORES.remove("distance")
    h, bank = (method.embed(of.images).numpy() for of in (some, known))
    expected = np.sort(-np.linalg.norm(h - bank.mean(0), axis=1))
    table = pq.read_table(tmp_path / "ranking.parquet").to_pydict()
    np.testing.assert_allclose(table["typicality"], expected, rtol=1e-5)


def test_sort_out_by_hand():
    typicality = np.array([5.0, 1.0, 2.0, 3.0, 4.0])
    uncertainty = np.array([9.0, 0.0, 0.0, 0.0, 0.0])
    verdict = sort_out(typicality, uncertainty, 0.2, 0.2)
    assert verdict.tolist() == ["review", "drop", "review", "keep", "keep"]
    assert sort_out(typicality, None, 0.0, 0.0).tolist() == ["keep"] * 5
    with pytest.raises(ConfigError, match="at most 1"):
        sort_out(typicality, None, 0.7, 0.7)


@pytest.mark.parametrize("score", ["knn", "predictive"])
def test_a_folder_is_ranked_against_itself(tmp_path, score):
    torch.manual_seed(0)
    method, some = METHODS["mean_variance"]().eval(), images(20, 1)
    curate(method, some, tmp_path / "x", score=score)
    typicality = pq.read_table(tmp_path / "x" / "ranking.parquet")["typicality"].to_numpy()
    expected = score_set(method, some, score, reference=some)[0]
    np.testing.assert_allclose(typicality, np.sort(expected))
    for other in ("mahalanobis", "fisher"):
        with pytest.raises(ConfigError, match=f"'{other}' needs a reference set"):
            curate(method, some, tmp_path / other, score=other)


def doubled():
    """20 random images; three copies of the first, and a near copy of the second."""
    some = images(20, 1)
    pixels = some.images.clone()
    pixels[[5, 9, 12]] = pixels[0].clone()
    pixels[7] = pixels[1]
    pixels[7, 0, 0, 0] ^= 1
    return dataclasses.replace(some, images=pixels)


def flat():
    """An encoder whose embedding is the image: what is a duplicate is known."""
    return open_encoder(torch.nn.Flatten(), image_size=8)


def colour(some):
    centred = some.images.repeat(1, 3, 1, 1)
    return dataclasses.replace(some, images=centred)


def test_the_most_typical_of_each_group_of_duplicates_stays(tmp_path):
    some = colour(doubled())
    counts = curate(flat(), some, tmp_path, score="knn", reference=colour(images(30, 3)), duplicates=0.999)
    table = pq.read_table(tmp_path / "ranking.parquet").to_pydict()
    verdict = dict(zip(table["id"], table["verdict"], strict=True))
    typicality = dict(zip(table["id"], table["typicality"], strict=True))
    groups = pq.read_table(tmp_path / "duplicates.parquet").to_pydict()
    found = {}
    for number, name, kept, copy in zip(
        *(groups[key] for key in ("group", "id", "kept", "copy")), strict=True
    ):
        found.setdefault(number, []).append((name, kept, copy))
    assert [sorted(name for name, _, _ in of) for of in found.values()] == [
        ["0.png", "12.png", "5.png", "9.png"], ["1.png", "7.png"],
    ]  # fmt: skip
    assert all(copy for _, _, copy in found[0]) and [copy for _, _, copy in found[1]] == [True, False]
    for of in found.values():
        assert [kept for _, kept, _ in of] == [True] + [False] * (len(of) - 1)
        assert typicality[of[0][0]] == max(typicality[name] for name, _, _ in of)
        assert [verdict[name] == "duplicate" for name, _, _ in of] == [not kept for _, kept, _ in of]
    listed = (tmp_path / "duplicate.txt").read_text().split()
    assert sorted(listed) == sorted(name for of in found.values() for name, kept, _ in of if not kept)
    assert counts["duplicate"] == 4 and sum(counts[name] for name in (*LISTS, "duplicate")) == 20
    assert "2 groups of 6 images" in (tmp_path / "report.html").read_text()


def test_a_cosine_that_joins_most_images_is_remarked_on(tmp_path):
    some = colour(images(20, 1))
    some.images[:11] = some.images[0].clone()  # ten go: half
    options = {"score": "knn", "reference": colour(images(30, 3)), "duplicates": 0.999}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curate(flat(), some, tmp_path / "half", **options)
    some.images[11] = some.images[0].clone()
    with pytest.warns(ProbjepaWarning, match=r"11 of 20 images are duplicates from a cosine of 0\.999"):
        curate(flat(), some, tmp_path / "most", **options)
    page = (tmp_path / "most" / "report.html").read_text()
    assert "1 group of 12 images" in page and "1 groups" not in page


def test_a_score_of_minus_nothing_has_no_sign(tmp_path):
    some = colour(images(4, 1))
    some.images[:] = some.images[0].clone()
    curate(flat(), some, tmp_path, score="knn")
    typicality = pq.read_table(tmp_path / "ranking.parquet")["typicality"].to_numpy()
    assert (typicality == 0).all() and np.signbit(typicality).any()
    page = (tmp_path / "report.html").read_text()
    assert "0.png: 0" in page and "−0<" not in page


def test_images_with_a_twin_in_another_set_go_too(tmp_path):
    some, other = colour(doubled()), colour(images(12, 4))
    other.images[3], other.images[8] = some.images[0], some.images[15]
    counts = curate(
        flat(), some, tmp_path, score="knn", reference=colour(images(30, 3)), duplicates=0.999, against=other
    )
    twins = pq.read_table(tmp_path / "twins.parquet").to_pydict()
    assert dict(zip(twins["id"], twins["twin"], strict=True)) == {
        **dict.fromkeys(("0.png", "5.png", "9.png", "12.png"), "3.png"), "15.png": "8.png",
    }  # fmt: skip
    assert np.allclose(twins["similarity"], 1) and counts["duplicate"] == 4 + 1 + 1
    assert "5 images with a twin" in (tmp_path / "report.html").read_text()


def test_no_duplicates_is_no_error_and_a_bad_cosine_one_line(tmp_path):
    some = colour(images(20, 1))
    options = {"score": "knn", "reference": colour(images(30, 3))}
    counts = curate(flat(), some, tmp_path, duplicates=1.0, against=colour(images(9, 8)), **options)
    assert counts["duplicate"] == 0 and pq.read_table(tmp_path / "duplicates.parquet").num_rows == 0
    for wrong in ({"duplicates": 1.5}, {"against": some}):
        with pytest.raises(ConfigError, match=r"0\.96"):
            curate(flat(), some, tmp_path / "x", **wrong, **options)
    for name in ("drop", "review", "duplicates"):
        with pytest.raises(ConfigError, match=f"the setting {name} takes a number"):
            curate(flat(), some, tmp_path / "x", **{name: "0.9"}, **options)
    assert not (tmp_path / "x").exists()


def test_a_later_curation_leaves_no_list_of_an_earlier_one(tmp_path):
    some, options = colour(doubled()), {"score": "knn", "reference": colour(images(30, 3))}
    curate(flat(), some, tmp_path, duplicates=0.999, against=colour(images(12, 4)), **options)
    before = {file.name for file in tmp_path.iterdir()}
    curate(flat(), some, tmp_path, **options)
    after = {file.name for file in tmp_path.iterdir()}
    assert before - after == {"duplicate.txt", "duplicates.parquet", "twins.parquet"} and after < before


def test_a_curation_that_is_cut_short_over_an_earlier_one_is_known_as_such(tmp_path, monkeypatch):
    some, options, unlink = (
        colour(doubled()),
        {"score": "knn", "reference": colour(images(30, 3))},
        Path.unlink,
    )
    curate(flat(), some, tmp_path, duplicates=0.999, **options)
    before = [file.name for file in tmp_path.iterdir()]

    def killed(self, missing_ok=False):
        if self.name == "duplicate.txt":
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            curate(flat(), some, tmp_path, **options)
    assert "duplicate.txt" in before and not (tmp_path / "report.html").exists()
    refuse_existing(tmp_path, overwrite=False)
    refuse_foreign(tmp_path)
    curate(flat(), some, tmp_path, **options)
    assert not (tmp_path / "duplicate.txt").exists() and not list(tmp_path.glob(".*"))


def test_shares_are_of_rows_and_of_what_is_not_dropped():
    assert (sort_out(np.arange(100.0), None, 0.07, 0.0) == "drop").sum() == 7
    assert (sort_out(np.arange(100.0), None, 0.071, 0.0) == "drop").sum() == 8
    uncertainty = np.zeros(100)
    uncertainty[:5], uncertainty[95:] = 100, 50  # of what is dropped, and of the most typical
    verdict = sort_out(np.arange(100.0), uncertainty, 0.05, 0.05)
    assert verdict.tolist() == ["drop"] * 5 + ["review"] * 5 + ["keep"] * 85 + ["review"] * 5


def test_a_folder_may_be_a_string(tmp_path):
    curate(METHODS["mean_variance"]().eval(), images(20, 1), str(tmp_path / "out"))
    assert (tmp_path / "out" / "keep.txt").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="names there are no bytes")
def test_lists_name_the_files_as_they_are_on_the_disk(tmp_path):
    names = [
        b"plain.png",
        b"#1.png",
        b";1.png",
        "\u200eIMG 1.png".encode(),
        "caf\u00e9 \u202egpj.png".encode(),
        b"raw\xff.png",
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate(names):
        file = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(file, "png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "two\nlines.png")
    some = open_images(folder, size=8, channels=1)
    counts = curate(METHODS["mean_variance"]().eval(), some, tmp_path / "out", drop=0.5)
    listed = b"".join((tmp_path / "out" / f"{name}.txt").read_bytes() for name in LISTS)
    marked = [b"./" + name if name[:1] in (b"#", b";") else name for name in names]  # else rsync's comments
    assert sorted(listed.splitlines()) == sorted([*marked, b"two\\nlines.png"])
    assert len(listed.splitlines()) == sum(counts[name] for name in LISTS) == 7


def test_an_empty_set_to_compare_with_is_one_line(tmp_path):
    method, none = METHODS["mean_variance"]().eval(), images(3, 2)
    none = none.subset(np.zeros(3, dtype=bool))
    with pytest.raises(DataError, match="noise is empty: give at least one image"):
        curate(method, images(20, 1), tmp_path, duplicates=0.99, against=none)
