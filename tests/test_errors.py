"""Warnings point to the line of the caller, however deep they arise."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

import probjepa as pj
from probjepa.errors import ProbjepaWarning, warn


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x):
        return self.fc(x.flatten(1))


def places(call):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    return [warning.filename for warning in said if issubclass(warning.category, ProbjepaWarning)]


def test_a_warning_of_an_opened_encoder_is_of_the_caller_s_line():
    found = places(lambda: pj.open_encoder(Classifier(), image_size=8))
    assert found
    assert set(found) == {__file__}


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    return pd.DataFrame({"x": generator.normal(size=60), "c": generator.choice(["a", "b"], 60)})


@pytest.fixture(scope="module")
def fitted(table):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pj.VarTJEPA("small", max_epochs=1).fit(table)


@pytest.mark.parametrize("call", ["transform", "score_samples", "predict", "uncertainty", "impute"])
@pytest.mark.parametrize("how", ["alone", "set_output"])
def test_a_warning_of_a_table_is_of_the_caller_s_line(fitted, table, call, how):
    model = deepcopy(fitted)
    if how == "set_output":
        model.set_output(transform="pandas")
    found = places(lambda: getattr(model, call)(table.assign(c="other")))
    assert found
    assert set(found) == {__file__}


def test_a_warning_within_a_pipeline_is_of_the_caller_s_line(table):
    pipeline = make_pipeline(pj.VarTJEPA("small", max_epochs=1))
    found = places(lambda: pipeline.fit_transform(table))
    assert found
    assert set(found) == {__file__}


def test_a_warning_that_a_hook_of_torch_sets_off_is_of_the_caller_s_line():
    layer = nn.Identity()
    layer.register_forward_hook(lambda *_: warn("hooked"))
    assert places(lambda: layer(torch.zeros(1))) == [__file__]


def test_a_warning_of_a_thread_is_said():
    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")
        pool.submit(warn, "from a thread").result()
    assert [str(warning.message) for warning in said] == ["from a thread"]
