"""The JEPA-SCORE sections: what is there is drawn, what is not is left out."""

import numpy as np
import pytest

from probjepa.report.jacobian import jacobian_sections
from probjepa.report.page import Gallery


def arrays(**changes):
    random = np.random.default_rng(0)
    found = {
        "scores": {"jepa": {"test": random.normal(size=40), "far": random.normal(size=10) - 5}},
        "images": random.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8),
        "labels": np.repeat([0, 1], 20),
        "classes": ["cat", "<script>"],
        "spectra": {"test": random.random((5, 6)), "far": random.random((5, 6))},
        "singular": {
            "images": random.integers(0, 256, (2, 1, 8, 8), dtype=np.uint8),
            "vectors": random.normal(size=(2, 3, 1, 8, 8)),
        },
    }
    return found | changes


def test_sections_and_order_of_the_galleries():
    found = arrays()
    sections = jacobian_sections(found)
    assert [s.title for s in sections] == [
        "JEPA-SCORE",
        "Typical images of every class",
        "What the embedding responds to",
    ]
    scores, gallery = found["scores"]["jepa"]["test"], sections[1].items[0]
    best, worst = np.argsort(-scores[:20])[[0, -1]]
    np.testing.assert_array_equal(gallery.images[0], found["images"][best])
    np.testing.assert_array_equal(gallery.images[-1], found["images"][worst])
    vectors = sections[2].items[0]
    assert isinstance(vectors, Gallery)
    assert len(vectors.images) == 4  # the image and three directions
    assert vectors.images[1:].max() == 255 or vectors.images[1:].min() == 0  # each fills its range


@pytest.mark.parametrize(("count", "says"), [(10, ""), (20, " (the first 10 of 20)")])
def test_galleries_are_of_the_classes_that_the_text_says(count, says):
    section = jacobian_sections(arrays(labels=np.arange(40) % count, classes=None))[1]
    assert section.text == f"For each class{says}, its images with the highest and the lowest JEPA-SCORE."
    assert len(section.items) == 10
    captions = [caption for gallery in section.items for caption in gallery.captions]
    assert any("−" in caption for caption in captions) and not any("-" in caption for caption in captions)


def test_a_vector_without_change_is_grey():
    silent = arrays(
        singular={"images": np.zeros((1, 1, 8, 8), np.uint8), "vectors": np.zeros((1, 2, 1, 8, 8))}
    )
    assert set(np.unique(jacobian_sections(silent)[2].items[0].images[1:])) == {128}


def test_what_is_not_there_is_left_out():
    assert jacobian_sections({"scores": {"knn": {"test": np.zeros(3)}}}) == []
    bare = arrays(labels=None, spectra=None, singular=None)
    assert [s.title for s in jacobian_sections(bare)] == ["JEPA-SCORE"]
