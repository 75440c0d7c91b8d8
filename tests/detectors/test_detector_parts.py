"""Detectors fitted to parts of the rows, which are put together."""

import pickle

import numpy as np
import pytest
from detector_rows import FIT, TEST

from probjepa.detectors import Mahalanobis
from probjepa.errors import ConfigError, DataError


@pytest.mark.parametrize("shrinkage", [None, 0.3, "ledoit-wolf"])
@pytest.mark.parametrize("labelled", [False, True])
def test_parts_of_a_fit_are_the_fit(shrinkage, labelled):
    rows = FIT + 5 * np.eye(5)[np.arange(400) % 5]
    y = np.array(["a", "b", "c", None], dtype=object)[np.arange(400) % 4] if labelled else None
    whole = Mahalanobis(shrinkage).fit(rows, y)
    parts = [slice(0, 3), slice(3, 250), slice(250, 400)]  # the first alone gives no covariance
    of = lambda part: (rows[part], None if y is None else y[part])  # noqa: E731
    partial, merged = Mahalanobis(shrinkage), Mahalanobis(shrinkage)
    for part in parts:
        assert partial.partial_fit(*of(part)) is partial
        merged.merge(Mahalanobis(shrinkage).partial_fit(*of(part)))
    if labelled and shrinkage == "ledoit-wolf":
        with pytest.raises(ConfigError, match="cannot be put together from parts: use a number"):
            partial.score_samples(TEST)
        return
    for found in (partial, merged, pickle.loads(pickle.dumps(partial))):
        np.testing.assert_allclose(found.score_samples(TEST), whole.score_samples(TEST), rtol=1e-10)
        assert found.offset_ == pytest.approx(whole.offset_, rel=1e-10)
        np.testing.assert_array_equal(found.predict(TEST), whole.predict(TEST))
    # more rows may come after a score, and a fit starts anew
    np.testing.assert_allclose(
        Mahalanobis(0.3).fit(rows[:250]).partial_fit(rows[250:]).score_samples(TEST),
        Mahalanobis(0.3).fit(rows).score_samples(TEST),
        rtol=1e-10,
    )
    np.testing.assert_array_equal(partial.fit(rows, y).score_samples(TEST), whole.score_samples(TEST))


def test_parts_far_from_one_another_lose_nothing():
    rows = 1e4 + FIT + 1e2 * (np.arange(400) >= 200)[:, None]
    parts = Mahalanobis("ledoit-wolf").partial_fit(rows[:200]).partial_fit(rows[200:])
    whole = Mahalanobis("ledoit-wolf").fit(rows)
    np.testing.assert_allclose(parts.score_samples(rows), whole.score_samples(rows), rtol=1e-8)


def test_the_threshold_of_many_parts_is_of_all_of_them(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(6000, 3)) + np.linspace(0, 3, 6000)[:, None]
    parts = Mahalanobis()
    for start in range(0, 6000, 500):
        parts.partial_fit(rows[start : start + 500])
    assert (parts.predict(rows) == -1).mean() == pytest.approx(0.1, abs=0.03)
    assert len(parts._sample) == 1024


@pytest.mark.parametrize(
    "sizes", [(300, 4000, 1200), (4000, 100, 30), (900, 200), (524, 500), (500, 500, 25)]
)
def test_each_part_has_its_share_of_the_rows_of_the_threshold(sizes):
    """Also where parts are fitted elsewhere and merged."""
    random, share = np.random.default_rng(0), np.array(sizes) / max(sum(sizes), 1024)
    parts, merged = Mahalanobis(), Mahalanobis()
    for number, size in enumerate(sizes):
        rows = np.stack([np.full(size, number), random.normal(size=size)], 1)
        parts.partial_fit(rows)
        merged.merge(Mahalanobis().partial_fit(rows))
    for found in (parts, merged):
        counts = np.bincount(found._sample[:, 0].astype(int))
        assert counts.sum() == min(sum(sizes), 1024)
        np.testing.assert_allclose(counts, 1024 * share, atol=len(sizes))


def test_the_rows_of_the_threshold_are_as_many_as_there_are_where_few_have_a_class():
    """The shares are those of the rows with a class, of which either part has too few."""
    few, most = (np.where(np.arange(900) < count, np.arange(900) % 2, -1) for count in (100, 800))
    for first, second, kept in ((few, most[:300], 724), (most[:300], few, 300)):
        rows = [
            np.random.default_rng(0).normal(part, 1, (len(y), 2)) for part, y in enumerate((first, second))
        ]
        parts = Mahalanobis().partial_fit(rows[0], first).partial_fit(rows[1], second)
        assert len(parts._sample) == 1024
        np.testing.assert_array_equal(parts._sample[kept], rows[1][0])


def test_parts_that_do_not_fit_together_are_one_line():
    parts = Mahalanobis().partial_fit(FIT)
    for message, call in {
        "expecting 5 features": lambda: parts.partial_fit(FIT[:, :4]),
        "has 5 features and the one to merge 4": lambda: parts.merge(Mahalanobis().fit(FIT[:, :4])),
        "give all, or none": lambda: parts.partial_fit(FIT, np.arange(400) % 2),
        "not fitted": lambda: parts.merge(Mahalanobis()),
        "at least 6 rows": lambda: Mahalanobis().partial_fit(FIT[:5]).score_samples(TEST),
        "the setting shrinkage takes a number or 'ledoit-wolf' or null": lambda: (
            Mahalanobis("oas").partial_fit(FIT).score_samples(TEST)
        ),
    }.items():
        with pytest.raises((DataError, ConfigError), match=message) as error:
            call()
        assert "\n" not in str(error.value)
    np.testing.assert_array_equal(parts.score_samples(TEST), Mahalanobis().fit(FIT).score_samples(TEST))
