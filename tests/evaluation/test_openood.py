"""OpenOOD: what a folder holds, the averages by hand, and the resizing against torchvision's arithmetic."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from probjepa.errors import DataError
from probjepa.evaluation import openood_sets, openood_summary
from probjepa.evaluation.openood import GROUPS, MEAN, STD
from probjepa.report.detection import openood_section

PREPROCESS = {"size": 32, "channels": 3, "mean": list(MEAN), "std": list(STD)}


def picture(height, width, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        save(tmp_path / "mnist" / f"{i}.png", picture(28, 28, i, channels=1))
        save(tmp_path / "textures" / "banded" / f"{i}.png", picture(60, 40, i))
    for i in range(2):
        save(tmp_path / "textures" / "dotted" / f"{i}.png", picture(40, 41, i))
    save(tmp_path / "elsewhere" / "x.png", picture(40, 40))
    cells = [{"bytes": (tmp_path / "elsewhere" / "x.png").read_bytes(), "path": None}] * 4
    pq.write_table(pa.table({"image": cells}), tmp_path / "tin.parquet")
    return tmp_path


def test_any_subset_is_found_in_the_protocols_order(folder):
    sets = openood_sets(folder)
    assert {name: len(images) for name, images in sets.items()} == {"tin": 4, "mnist": 3, "textures": 5}
    assert list(sets) == ["tin", "mnist", "textures"]
    assert {images.shape for images in sets.values()} == {(3, 32, 32)}
    grey = sets["mnist"].images
    assert (grey[:, 0] == grey[:, 2]).all()


def test_what_cannot_be_found_is_one_line(folder, tmp_path):
    (folder / "empty").mkdir()
    for place, says in ((folder / "no", "no such folder"), (folder / "empty", "none of OpenOOD's sets")):
        with pytest.raises(DataError, match=says) as error:
            openood_sets(place)
        assert "\n" not in str(error.value)
    (folder / "tin").mkdir()
    with pytest.raises(DataError, match=r"tin/ and tin.parquet"):
        openood_sets(folder)


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (64, 64), (28, 28), (480, 640), (213, 300), (300, 331)]
)
def test_resizing_is_the_protocols_to_a_pixel(tmp_path, height, width):
    image = picture(height, width)
    save(tmp_path / "svhn" / "a.png", image)
    found = openood_sets(tmp_path)["svhn"].images[0].permute(1, 2, 0).numpy()
    # torchvision: Resize(32) makes the long side int(32 * long / short), CenterCrop(32) rounds half to even
    short = min(height, width)
    candidates = []
    for grow in (0, 1):
        h, w = (int(32 * side / short) + (grow if side > short else 0) for side in (height, width))
        small = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
        for shift in (0, -1):
            top, left = (round((side - 32) / 2) + (shift if side > 32 else 0) for side in (h, w))
            candidates.append(np.asarray(small.crop((left, top, left + 32, top + 32))))
    if height == width:
        np.testing.assert_array_equal(found, candidates[0])
    assert any(np.array_equal(found, candidate) for candidate in candidates)


def ood(**auroc):
    return {name: {"knn": {"auroc": {"value": x, "low": x, "high": x}}} for name, x in auroc.items()}


def test_averages_are_of_groups_then_of_the_two():
    values = {"cifar100": 0.5, "tin": 0.7, "mnist": 0.9, "svhn": 0.8, "textures": 0.7, "places365": 1.0}
    counts = {name: n for sets in GROUPS.values() for name, n in sets.items()}
    found = openood_summary(ood(**values), counts, PREPROCESS)
    assert found["averages"]["knn"]["auroc"] == pytest.approx({"near": 0.6, "far": 0.85, "overall": 0.725})
    assert not any("images, the protocol" in line or "not evaluated" in line for line in found["differences"])


def test_the_published_rows_are_the_mean_of_the_groups():
    # near, far, overall of the supervised rows: only the mean of the two groups gives the third
    for near, far, overall in (
        (88.0, 90.7, 89.4),
        (87.1, 90.4, 88.8),
        (90.6, 93.0, 91.8),
        (88.7, 93.5, 91.1),
    ):
        values = dict.fromkeys(GROUPS["near"], near) | dict.fromkeys(GROUPS["far"], far)
        found = openood_summary(ood(**values), dict.fromkeys(values, 1), PREPROCESS)
        assert abs(found["averages"]["knn"]["auroc"]["overall"] - overall) <= 0.0501


def test_a_subset_and_other_counts_are_stated():
    found = openood_summary(
        ood(svhn=0.6, other=0.9), {"svhn": 10, "other": 3}, PREPROCESS | {"size": 64}, "jpeg:75"
    )
    assert found["averages"]["knn"]["auroc"] == {"near": None, "far": 0.6, "overall": None}
    assert found["sets"] == {"svhn": {"group": "far", "images": 10, "expected": 26_032}}
    text = "\n".join(found["differences"])
    for part in ("svhn has 10 images, the protocol's list 26,032", "cifar100, tin, mnist", "64 pixels", "jpeg:75",
                 "model's own mean (0.4914, 0.4822, 0.4465)"):  # fmt: skip
        assert part in text


def test_the_section_shows_averages_counts_and_differences():
    metric = {"value": 0.5, "low": 0.4, "high": 0.6}
    # OpenOOD v1.5 takes the outside images as positive (its evaluators/metrics.py)
    both = {
        "auroc": metric,
        "fpr_at_95_tpr_out": metric | {"value": 0.25},
        "fpr_at_95_tpr_in": metric | {"value": 0.75},
    }
    found = openood_summary(
        {"tin": {"knn": both}, "svhn": {"knn": both}}, {"tin": 7_793, "svhn": 2}, PREPROCESS
    )
    section = openood_section(found, str.upper)
    averages, counts, differences = section.items
    assert [cell["text"] for cell in averages.cells[0]] == ["KNN", *["50.0"] * 3, *["25.0"] * 3]
    assert [cell["text"] for cell in counts.cells[1]] == ["svhn", "far", "2", "26,032"]
    assert len(differences.rows) == len(found["differences"]) > 2
    assert openood_section({}) is None
