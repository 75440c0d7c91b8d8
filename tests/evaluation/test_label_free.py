"""All scores that need no label: each goes by the name that it is registered by."""

import numpy as np
import torch

from probjepa.evaluation.label_free import label_free_scores
from probjepa.scores import SCORES
from probjepa.scores.combined import Fisher
from probjepa.scores.detectors import KNNScore


def test_two_entries_of_one_class_stand_side_by_side():
    generator = torch.Generator().manual_seed(0)
    reference, test = ({"h": torch.randn(n, 4, generator=generator)} for n in (50, 9))
    plain = label_free_scores(None, reference, {"test": test})
    SCORES.register("knn again", KNNScore)
    SCORES.register("fisher again", Fisher)
    try:
        found = label_free_scores(None, reference, {"test": test})
    finally:
        SCORES.remove("knn again")
        SCORES.remove("fisher again")
    assert set(found) == {*plain, "knn again", "fisher again"}
    for name in ("knn", "fisher"):
        np.testing.assert_array_equal(found[f"{name} again"]["test"], found[name]["test"])
