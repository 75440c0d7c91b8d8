"""Inputs of metrics and detectors: kinds of numbers that torch does not have, and powers of two."""

import numpy as np
import pytest
import torch

import probjepa as pj
from probjepa._arrays import (
    as_features,
    as_float_tensor,
    as_labels,
    directions,
    is_labelled,
    power_of_two,
)
from probjepa.detectors import Mahalanobis
from probjepa.errors import DataError
from probjepa.metrics import effective_rank, knn_accuracy


def test_what_is_no_label():
    import pandas as pd

    none = [None, float("nan"), pd.NA, -1, -1.0, np.int64(-1)]
    some = ["-1", 0, np.arange(3), torch.zeros(2), np.zeros(0), (1, 2)]
    labels = np.empty(len(none + some), dtype=object)
    labels[:] = none + some
    assert is_labelled(labels).tolist() == [False] * len(none) + [True] * len(some)


ROWS = np.array([[1.0, -2.5], [3.25, 0.0]])


@pytest.mark.parametrize(
    ("kind", "found"),
    [(">f4", torch.float32), (">f8", torch.float64), (">i4", torch.float64), (">f2", torch.float32),
     (np.longdouble, torch.float64)],
)  # fmt: skip
def test_every_kind_of_number_is_read(kind, found, tmp_path):
    array = ROWS.astype(kind)
    np.save(tmp_path / "rows.npy", array)
    for given in (array, np.load(tmp_path / "rows.npy", mmap_mode="r")):
        rows = as_features(given, "rows")
        assert rows.dtype == found
        np.testing.assert_array_equal(rows.numpy(), array.astype(np.float64))
    assert effective_rank(np.eye(3).astype(kind)) == effective_rank(np.eye(3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(2, 2, dtype=torch.complex64), "the rows holds complex64 values: give real numbers"),
        (np.ones((2, 2), dtype=complex), "the rows holds complex128 values: give numbers"),
        ([[1.0, 2.0], [3.0]], "the rows has rows of different lengths: give rows of one length"),
        (torch.eye(3).to_sparse(), r"the rows is a sparse tensor: give a dense one, to_dense\(\)"),
    ],
)
def test_what_is_no_table_of_numbers_is_one_line(values, message):
    with pytest.raises(DataError, match=message) as caught:
        as_float_tensor(values, "the rows")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_power_of_two_is_taken_out_where_the_scale_demands_it(dtype):
    limits = torch.finfo(dtype)
    tiniest = limits.smallest_normal * limits.eps
    largest = torch.tensor(
        [0.0, 1e-3, 1.0, 700.0, tiniest, limits.tiny, 0.9 * limits.max, limits.max], dtype=dtype
    )
    unit = power_of_two(largest)
    assert unit.dtype == dtype and unit[:4].tolist() == [1.0] * 4
    assert (torch.frexp(unit).mantissa == 0.5).all() and unit.isfinite().all()
    over = largest / unit
    assert torch.equal(over * unit, largest)  # nothing is rounded
    assert ((over[5:] >= 1) & (over[5:] < 2)).all()
    assert (over[1:].pow(4) > 0).all() and over.pow(4).isfinite().all()
    assert float(power_of_two(3e200)) == 2.0 ** np.floor(np.log2(3e200))


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1.0, 1e200, 1e305])
def test_directions_have_length_one(scale):
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(directions(rows * scale), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_labels_of_a_tensor_are_read_in_any_type(dtype):
    known, rows = as_labels(torch.tensor([2, -1, 0]).to(dtype), "the labels")
    assert known.tolist() == [2, 0] and rows.tolist() == [0, 2]


def test_labels_of_several_types_are_one_line():
    labels = np.array([1, "a", None, "b"], dtype=object)
    with pytest.raises(DataError, match=r"the labels are of several types \(int, str\): give them one"):
        as_labels(labels, "the labels")
    known, rows = as_labels(labels[1:], "the labels")
    assert known.tolist() == ["a", "b"] and rows.tolist() == [0, 2]
    with pytest.raises(DataError, match="several types"):
        Mahalanobis().fit(np.eye(4), labels)
    with pytest.raises(DataError, match="several types"):
        knn_accuracy(np.eye(4), labels, np.eye(4), labels, k=1)


def test_a_mask_hides_labels_and_is_refused_among_numbers():
    labels = np.ma.array([2, 0, 1], mask=[0, 1, 0])
    known, rows = as_labels(labels, "the labels")
    assert known.tolist() == [2, 1] and rows.tolist() == [0, 2]
    hidden = np.ma.array(np.ones((9, 16, 16)), mask=np.arange(9 * 256).reshape(9, 16, 16) == 7)
    rows = np.ma.array([(0, 1)] * 9, dtype=[("a", "f8"), ("b", "f8")], mask=[(True, False)] * 9)
    for read in (
        lambda: pj.conformal_p_values([2.5], hidden[0, 0]),
        lambda: pj.conformal_p_values(hidden[0, 0], [2.5]),
        lambda: knn_accuracy(hidden[0], np.arange(16), hidden[0], np.arange(16)),
        lambda: Mahalanobis().fit(hidden[0]),
        lambda: Mahalanobis().fit(np.eye(17, 16)).score_samples(hidden[0]),
        lambda: Mahalanobis().fit(rows),
        lambda: Mahalanobis().fit(list(hidden[0])),
        lambda: pj.open_images(hidden),
        lambda: pj.open_images((hidden, np.zeros(9))),
        lambda: pj.open_images({"images": hidden}),
    ):
        with pytest.raises(DataError, match=r"has masked values: fill them, or drop their rows") as error:
            read()
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="row 0 has masked pixels: fill them"):
        pj.open_images(list(hidden))
    assert as_labels(np.ma.array([3, 4]), "the labels")[0].dtype.kind == "i"


def test_texts_in_a_list_beside_what_is_no_label():
    """NumPy makes texts of all of them."""
    for none in (float("nan"), None, -1, np.ma.masked, np.float32("nan")):
        known, rows = as_labels(["cat", none, "dog"], "the labels")
        assert known.tolist() == ["cat", "dog"] and rows.tolist() == [0, 2]
    assert as_labels(["cat", "dog"], "the labels")[0].dtype.kind == "U"
    with pytest.raises(DataError, match="several types"):
        as_labels(["cat", 3], "the labels")


def test_what_is_masked_in_a_list_is_missing():
    for labels in ([2, np.ma.masked, 1], (2.0, np.ma.masked, 1.0), ["b", np.ma.masked, "a"]):
        known, rows = as_labels(labels, "the labels")
        assert known.tolist() == [labels[0], labels[2]] and rows.tolist() == [0, 2]
        images = pj.open_images((np.zeros((3, 8, 8), np.uint8), labels))
        assert images.labels.tolist() == ([1, -1, 0] if labels[0] == "b" else [2, -1, 1])
