"""kNN classification against scikit-learn and brute force."""

import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from probjepa import metrics
from probjepa._arrays import as_features
from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from probjepa.metrics import knn, knn_accuracy, knn_predict, knn_vote


def blobs(n, dim=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return np.eye(classes, dim)[labels] + rng.normal(scale=0.7, size=(n, dim)), labels


TRAIN, TEST = blobs(300), blobs(101, seed=1)


@pytest.mark.parametrize("k", [1, 5, 21])
@pytest.mark.parametrize("chunk_size", [7, 100, 4096])
def test_majority_vote_agrees_with_scikit_learn(k, chunk_size):
    # two classes and odd k: no equal counts, which scikit-learn decides otherwise
    train, test = blobs(300, classes=2), blobs(101, classes=2, seed=1)
    expected = KNeighborsClassifier(k, metric="cosine").fit(*train).predict(test[0])
    predicted = knn_predict(*train, test[0], k=k, chunk_size=chunk_size)
    np.testing.assert_array_equal(predicted, expected)
    accuracy = knn_accuracy(*train, *test, k=k, chunk_size=chunk_size)
    assert accuracy == pytest.approx(np.mean(expected == test[1]))


def brute_force(train, labels, test, k, weigh):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    predicted = []
    for similarity in unit[1] @ unit[0].T:
        nearest = np.argsort(-similarity)[:k]
        votes = {c: weigh(similarity[nearest][labels[nearest] == c]) for c in np.unique(labels)}
        predicted.append(max(votes, key=votes.get))
    return np.array(predicted)


@pytest.mark.parametrize("k", [2, 4, 10, 200])
@pytest.mark.parametrize("chunk_size", [13, 150, 4096])
def test_votes_agree_with_brute_force(k, chunk_size):
    majority = brute_force(*TRAIN, TEST[0], k, lambda s: (len(s), s.sum()))
    np.testing.assert_array_equal(knn_predict(*TRAIN, TEST[0], k=k, chunk_size=chunk_size), majority)
    weighted = brute_force(*TRAIN, TEST[0], k, lambda s: np.exp(s / 0.1).sum())
    predicted = knn_predict(*TRAIN, TEST[0], k=k, temperature=0.1, chunk_size=chunk_size)
    np.testing.assert_array_equal(predicted, weighted)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_the_share_of_the_winning_class(temperature):
    predicted, share = knn_vote(*TRAIN, TEST[0], k=9, temperature=temperature, chunk_size=50)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (TRAIN[0], TEST[0])]
    for row, label, found in zip(unit[1] @ unit[0].T, predicted, share, strict=True):
        nearest = np.argsort(-row)[:9]
        weights = np.ones(9) if temperature is None else np.exp(row[nearest] / temperature)
        expected = weights[TRAIN[1][nearest] == label].sum() / weights.sum()
        assert found == pytest.approx(expected, rel=1e-5)


def test_equal_counts_go_to_the_larger_similarity_then_the_smaller_label():
    bank = [[1.0, 0.2], [1.0, 0.1], [0.0, 1.0], [0.0, -1.0]]
    assert knn_predict(bank, [1, 0, 5, 5], [[1.0, 0.0]], k=2) == [0]
    assert knn_predict(bank, [0, 1, 5, 5], [[1.0, 0.0]], k=2) == [1]
    assert knn_predict([[1.0, 1.0], [1.0, 1.0]], [7, 3], [[1.0, 1.0]], k=2) == [3]


def test_a_small_temperature_is_the_nearest_neighbour():
    nearest = knn_predict(*TRAIN, TEST[0], k=1)
    np.testing.assert_array_equal(knn_predict(*TRAIN, TEST[0], k=50, temperature=1e-5), nearest)


def test_inputs_of_every_kind_agree():
    expected = knn_predict(*TRAIN, TEST[0], k=5)
    tensors = torch.from_numpy(TRAIN[0]), torch.from_numpy(TRAIN[1]), torch.from_numpy(TEST[0])
    np.testing.assert_array_equal(knn_predict(*tensors, k=5), expected)
    tensors[0].requires_grad_()
    np.testing.assert_array_equal(knn_predict(*tensors, k=5), expected)
    reversed_rows = TRAIN[0][::-1], TRAIN[1][::-1], TEST[0].astype(np.float32)
    np.testing.assert_array_equal(knn_predict(*reversed_rows, k=5), expected)
    names = np.array(["ant", "bee", "cat", "dog"])
    np.testing.assert_array_equal(knn_predict(TRAIN[0], names[TRAIN[1]], TEST[0], k=5), names[expected])
    # scale does not matter to the cosine
    np.testing.assert_array_equal(knn_predict(TRAIN[0] * 1e3, TRAIN[1], TEST[0] * 1e-3, k=5), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 301}, ConfigError, "k is 301 with 300 labelled training rows"),
        ({"k": 0}, ConfigError, "k is 0"),
        ({"temperature": 0.0}, ConfigError, "temperature"),
        ({"chunk_size": 0}, ConfigError, "chunk_size"),
        ({"test": TEST[0][:, :5]}, DataError, "6-dimensional and the test ones 5"),
        ({"train_labels": TRAIN[1][:-1]}, DataError, r"training labels has shape \(299,\) for 300 rows"),
        ({"test_labels": TEST[1][:-1]}, DataError, r"test labels has shape \(100,\) for 101 rows"),
        ({"train": np.where(np.arange(300)[:, None] < 3, np.nan, TRAIN[0])}, DataError, "in 3 of 300 rows"),
        ({"test": np.full((101, 6), np.inf)}, DataError, "in 101 of 101 rows"),
        ({"train": np.zeros((0, 6))}, DataError, "empty"),
        ({"train": np.zeros(300)}, DataError, r"\(N, D\)"),
        ({"train": np.full((300, 6), "a")}, DataError, "give numbers"),
    ],
)
def test_errors(change, error, message):
    arguments = {"train": TRAIN[0], "train_labels": TRAIN[1], "test": TEST[0], "test_labels": TEST[1]}
    with pytest.raises(error, match=message) as caught:
        knn_accuracy(**{**arguments, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("accuracy", [metrics.knn_accuracy, metrics.linear_probe])
@pytest.mark.parametrize("kind", ["numbers", "names", "floats"])
def test_unlabelled_rows_are_left_out(accuracy, kind):
    expected = accuracy(*TRAIN, *TEST)
    (train, known), (test, asked) = ((x, y.astype(object)) for x, y in (TRAIN, TEST))
    stray = np.r_[TRAIN[0][:20] * -1, np.ones((20, TRAIN[0].shape[1]))]
    train, test = np.r_[train, stray], np.r_[test, stray]
    nothing = {"numbers": -1, "names": None, "floats": np.nan}[kind]
    known, asked = (np.r_[y, np.full(40, nothing, dtype=object)] for y in (known, asked))
    if kind == "names":
        known, asked = (np.array([None if v is None else f"c{v}" for v in y], object) for y in (known, asked))
    else:
        known, asked = (y.astype(float if kind == "floats" else int) for y in (known, asked))
    assert accuracy(train, known, test, asked) == pytest.approx(expected)


@pytest.mark.parametrize("accuracy", [metrics.knn_accuracy, metrics.linear_probe])
def test_labels_that_do_not_fit(accuracy):
    only = {name: np.full(len(y), -1) for name, (_, y) in (("train", TRAIN), ("test", TEST))}
    with pytest.raises(DataError, match="training labels name no class in any of 300 rows"):
        accuracy(TRAIN[0], only["train"], *TEST)
    with pytest.raises(DataError, match="test labels name no class in any of 101 rows"):
        accuracy(*TRAIN, TEST[0], only["test"])
    with pytest.raises(DataError, match=r"no class \('0', '1'\) is among the training labels \(0, 1\)"):
        knn_accuracy(np.eye(4), [0, 1] * 2, np.eye(4), ["0", "1"] * 2, k=1)
    with pytest.raises(DataError, match="test labels: no class"):
        accuracy(*TRAIN, TEST[0], TEST[1] + 100)
    with pytest.raises(DataError, match="test labels: no class"):
        accuracy(*TRAIN, TEST[0], TEST[1].astype(str))
    with pytest.warns(ProbjepaWarning, match="the training labels lack 99, so that"):
        found = accuracy(*TRAIN, TEST[0], np.where(TEST[1] == 0, 99, TEST[1]))
    assert 0 < found < accuracy(*TRAIN, *TEST)
    with pytest.raises(DataError, match=r"number the classes from 0|at least two"):  # −1 and 1 as classes
        accuracy(TRAIN[0], np.where(TRAIN[1] == 0, -1, 1), TEST[0], np.where(TEST[1] == 0, -1, 1))


@pytest.mark.parametrize(
    ("kind", "scale"), [("f4", 1e37), ("f4", 1e30), ("f4", 1e-30), ("f8", 1e300), ("f8", 1e-200)]
)
@pytest.mark.parametrize("bank", [1.0, None])
def test_directions_do_not_depend_on_lengths(kind, scale, bank):
    (train, labels), (test, _) = TRAIN, TEST
    train = (train * (bank or scale)).astype("f4" if bank else kind)
    expected = knn_vote(TRAIN[0].astype("f4"), labels, TEST[0].astype("f4"), k=5)
    found = knn_vote(train, labels, (test * scale).astype(kind), k=5, chunk_size=64)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_blas_is_limited_by_one_caller_at_a_time(monkeypatch):
    # it puts back the number of threads that it found: another caller's, if two overlapped
    inside, most = [], []

    class Controller:
        @contextmanager
        def limit(self, **_):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()
            yield

    monkeypatch.setattr(sys.modules[knn_predict.__module__], "ThreadpoolController", Controller)
    callers = [threading.Thread(target=knn_predict, args=(*TRAIN, TEST[0])) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most == [1, 1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unlabelled", [0, 40])
def test_a_mapped_bank_is_an_array_and_is_not_copied(tmp_path, dtype, unlabelled):
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(300, 8)).astype(dtype), rng.normal(size=(50, 8)).astype(dtype)
    labels = np.where(np.arange(300) < unlabelled, -1, np.arange(300) % 3)
    np.save(tmp_path / "bank.npy", rows)
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")
    seen = as_features(bank, "the bank")
    assert seen.data_ptr() == bank.ctypes.data and seen.dtype == torch.from_numpy(rows).dtype
    for chunk_size in (17, 4096):
        found = knn_vote(bank, labels, queries, k=5, chunk_size=chunk_size)
        for one, other in zip(
            found, knn_vote(rows, labels, queries, k=5, chunk_size=chunk_size), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert not bank.flags.writeable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("one_dnn", [True, False])
def test_products_are_those_of_float64_by_any_library(monkeypatch, dtype, one_dnn):
    if one_dnn and (dtype == torch.float64 or knn._one_dnn() is None):
        pytest.skip("oneDNN is for float32, on a processor with AVX-512")
    if not one_dnn:
        monkeypatch.setattr(knn, "_one_dnn", lambda: None)
    monkeypatch.setattr(knn, "_ROWS", 4)  # the last block is shorter
    random = torch.Generator().manual_seed(0)
    queries, bank = (torch.randn(n, 33, generator=random).to(dtype) for n in (11, 29))
    space, threads = knn._Products(11, 40), torch.get_num_threads()
    wanted = queries.double() @ bank.double().T
    off = 1e-5 if dtype == torch.float32 else 1e-13
    for rows, columns in ((11, 29), (7, 3)):  # a smaller product in the place of a larger one
        found = space.product(queries[:rows], bank[:columns])
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted[:rows, :columns], rtol=0, atol=off)
    turned = space.product(queries.T.contiguous().T, bank)  # rows that are not beside one another
    torch.testing.assert_close(turned.double(), wanted, rtol=0, atol=off)
    assert torch.get_num_threads() == threads


def test_no_library_is_taken_that_the_processor_cannot_use(monkeypatch):
    knn._one_dnn.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert knn._one_dnn() is None
    knn._one_dnn.cache_clear()


def test_autocast_leaves_similarities_alone():
    rows = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    given = rows[:200], np.arange(200) % 5, rows[200:]
    expected = knn_vote(*given, k=7, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn_vote(*given, k=7, temperature=0.1)
    np.testing.assert_array_equal(found, expected)
