"""Labels: what sources say, what is missing, and one vocabulary over two sets."""

import datetime
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from probjepa.data import ImageSet
from probjepa.data.labels import labelled_rows, shared_labels
from probjepa.data.records import encode_labels
from probjepa.errors import DataError, ProbjepaWarning


def labelled(labels, classes=None, name="set"):
    pixels = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    return ImageSet(pixels, torch.tensor(labels), [str(i) for i in range(len(labels))], classes, name)


@pytest.mark.parametrize(
    ("values", "codes", "classes"),
    [
        ([2, None, 0], [2, -1, 0], None),
        ([2.0, float("nan"), 0.0], [2, -1, 0], None),
        (np.array([2, -1, 0]), [2, -1, 0], None),
        (torch.tensor([2, -1, 0]), [2, -1, 0], None),
        (torch.tensor([2, -1, 0]).bfloat16(), [2, -1, 0], None),
        (torch.tensor([2.0, -1.0, 0.0], requires_grad=True), [2, -1, 0], None),
        (["b", None, "a"], [1, -1, 0], ["a", "b"]),
        (["b", float("nan"), "a"], [1, -1, 0], ["a", "b"]),
        (pd.array([2, None, 0], dtype="Int64").tolist(), [2, -1, 0], None),
        (pd.array(["b", None, "a"], dtype="string").tolist(), [1, -1, 0], ["a", "b"]),
        (np.array([True, False, True]), [1, 0, 1], None),
    ],
)
def test_a_missing_label_is_minus_one(values, codes, classes):
    found, names = encode_labels(values, "x", 3)
    assert (found.tolist(), found.dtype, names) == (codes, torch.int64, classes)


@pytest.mark.parametrize("values", [[None] * 3, [-1] * 3, [float("nan")] * 3])
def test_no_label_at_all_is_no_labels(values):
    assert encode_labels(values, "x", 3)[0] is None


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([0, 1, 2], ["a", "b"], "labels 0 to 2 and 2 class names"),
        ([0, -2, 1], ["a", "b"], "labels -2 to 1 and 2 class names"),
        ([0.5, 1, 2], None, "neither whole numbers nor strings"),
        (["a", 1, 2], None, "neither whole numbers nor strings"),
        ([datetime.date.today()] * 3, None, "neither whole numbers nor strings"),
        ([1, 2], None, "3 images but labels of shape"),
    ],
)
def test_what_is_no_label_is_named(values, classes, message):
    with pytest.raises(DataError, match=message):
        encode_labels(values, "x", 3, classes)


@pytest.mark.parametrize(
    ("reference", "other", "asked"),
    [
        # by name, wherever the name stands
        (([0, 1, 2], ["a", "b", "c"]), ([0, 1, -1], ["a", "c"]), [0, 2, -1]),
        # numbers by value
        (([5, 7, 9], None), ([9, 5], None), [9, 5]),
        # names that are numbers are those numbers
        (([3, 4, 5], None), ([0, 1], ["3", "5"]), [3, 5]),
        (([0, 1], ["3", "5"]), ([3, 5, -1], None), [0, 1, -1]),
    ],
)
def test_classes_go_by_their_names(reference, other, asked):
    known, images = labelled(*reference), labelled(*other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = shared_labels(known, images)
    assert (shared.known.tolist(), shared.asked.tolist(), shared.absent) == (reference[0], asked, [])


def test_numbers_beside_names_are_their_places_and_that_is_said():
    named, numbers = labelled([0, 1, 2], ["a", "b", "c"]), labelled([2, 0, 1], name="numbers")
    with pytest.warns(ProbjepaWarning, match="numbers has labels without names: 0 to 2 are taken for places"):
        assert shared_labels(named, numbers).asked.tolist() == [2, 0, 1]
    with pytest.warns(ProbjepaWarning, match="taken for places"):
        assert shared_labels(numbers, named).asked.tolist() == [0, 1, 2]


def test_classes_that_the_reference_lacks_are_named_and_kept():
    known = labelled([0, 1, -1], ["ant", "bee", "cow"], "train")  # no row of its third class
    with pytest.warns(ProbjepaWarning, match="lack cow, elk, so that"):
        shared = shared_labels(known, labelled([0, 1, 2, 0], ["ant", "cow", "elk"], "test"))
    assert shared.absent == ["cow", "elk"]
    assert shared.asked[0] == 0 and len(set(shared.asked.tolist())) == 3
    assert not set(shared.asked[1:3].tolist()) & {0, 1, -1}


@pytest.mark.parametrize(
    ("reference", "other", "message"),
    [
        (([0, 1], ["a", "b"]), ([0, 1], ["c", "d"]), r"no class \(c, d\) is among .*\(a, b\)"),
        (([0, 1], ["a", "b"]), ([0, 7], None), "labels 0 to 7 without names, and the other set 2 names"),
        (([0, 7], None), ([0, 1], ["a", "b"]), "labels 0 to 7 without names, and the other set 2 names"),
        (([0, 1], None), ([2, 3], None), r"no class \(2, 3\) is among .*\(0, 1\)"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(reference, other, message):
    with pytest.raises(DataError, match=message):
        shared_labels(labelled(*reference), labelled(*other))


def test_a_side_without_a_labelled_row_shares_nothing():
    some, none = labelled([0, 1]), labelled([-1, -1])
    assert shared_labels(some, none) is None and shared_labels(none, some) is None
    assert labelled_rows(labelled([-1, 3])).tolist() == [False, True]


def test_a_label_has_a_name_of_its_class():
    with pytest.raises(DataError, match="labels to 5 and 2 class names: number the classes from 0"):
        labelled([0, 1, 5], ["a", "b"])
    assert labelled([-1, 1], ["a", "b"]).classes == ["a", "b"]
    assert len(labelled([], ["a", "b"])) == 0
