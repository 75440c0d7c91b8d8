"""Settings of the wrong type, one kind for all metrics and detectors: one line that names the setting."""

import inspect

import numpy as np
import pytest
import torch

from probjepa import detectors, metrics
from probjepa.errors import ConfigError
from probjepa.typed import is_plain, settings_checked, types_of

RANDOM = np.random.default_rng(0)
ROWS, LABELS, SCORES = RANDOM.normal(size=(60, 6)), RANDOM.integers(0, 3, 60), RANDOM.random(60)
#: what each function with settings is called with
CALLS = {
    "accuracy_interval": (LABELS > 0,),
    "bootstrap_interval": (SCORES,),
    "combined_p_values": (np.c_[SCORES, SCORES], np.c_[SCORES, SCORES]),
    "conformal_p_values": (SCORES, SCORES),
    "duplicate_groups": (ROWS,),
    "energy_score": (RANDOM.normal(size=(5, 4, 3)), RANDOM.normal(size=(4, 3))),
    "knn_accuracy": (ROWS, LABELS, ROWS, LABELS),
    "knn_predict": (ROWS, LABELS, ROWS),
    "knn_vote": (ROWS, LABELS, ROWS),
    "linear_predict": (ROWS, LABELS, ROWS),
    "nearest_twins": (ROWS, ROWS),
    "ood_metrics": (SCORES, SCORES),
    "seed_interval": ([0.1, 0.2, 0.3],),
    "threshold": (SCORES,),
    "uncertainty_geometry": (ROWS, LABELS, {"a": SCORES}),
}
DETECTORS = [value for value in vars(detectors).values() if inspect.isclass(value) and hasattr(value, "fit")]
WRONG = [[], {}, [1], "a", object(), float("nan"), 1.5j]


def plain(function):
    return {name: kind for name, kind in types_of(function).items() if is_plain(kind)}


SETTINGS = [
    (name, setting, value)
    for name in CALLS
    for setting in list(inspect.signature(getattr(metrics, name)).parameters)[len(CALLS[name]) :]
    if setting in plain(inspect.unwrap(getattr(metrics, name)))
    for value in WRONG
]


def test_every_metric_with_settings_is_here():
    functions = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    with_settings = {name for name in functions if plain(inspect.unwrap(getattr(metrics, name)))}
    assert with_settings == {*CALLS}


@pytest.mark.parametrize(("name", "setting", "value"), SETTINGS)
def test_a_metrics_setting_of_the_wrong_type_is_one_line(name, setting, value):
    with pytest.raises(ConfigError, match=rf"^the setting {setting} takes .*, got '.*'$"):
        getattr(metrics, name)(*CALLS[name], **{setting: value})


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    ("detector", "setting"), [(kind, setting) for kind in DETECTORS for setting in plain(kind)]
)
def test_a_detectors_setting_of_the_wrong_type_is_one_line(detector, setting, value):
    with pytest.raises(ConfigError, match=rf"^the setting {setting} takes .*, got '.*'$"):
        detector(**{setting: value}).fit(ROWS)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_is_in_the_range_of_all_generators(seed):
    with pytest.raises(ConfigError, match="the setting seed takes a whole number from 0 up to"):
        metrics.ood_metrics(SCORES, SCORES, seed=seed)


@pytest.mark.parametrize("k", [5, np.int64(5), np.uint8(5), torch.tensor(5)])
def test_numbers_of_other_libraries_are_numbers(k):
    expected = metrics.knn_predict(ROWS, LABELS, ROWS, k=5)
    np.testing.assert_array_equal(metrics.knn_predict(ROWS, LABELS, ROWS, k=k), expected)


def test_what_is_no_setting_is_left_to_the_function():
    @settings_checked
    def function(rows: np.ndarray, *, k: "int" = 3, other: "Unknown" = None):  # noqa: F821
        return rows, k, other

    rows, other = object(), object()
    assert function(rows, other=other) == (rows, 3, other)
    with pytest.raises(TypeError, match="missing a required argument"):
        function()
