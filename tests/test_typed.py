"""Settings checked against the types of arguments."""

import inspect
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from torch import nn

from probjepa.backbones import BACKBONES
from probjepa.errors import ConfigError
from probjepa.evaluation.images import evaluate
from probjepa.heads import HEADS
from probjepa.methods import METHODS
from probjepa.tabular import TABLE_METHODS
from probjepa.training import fit
from probjepa.typed import checked, describe, types_of


class Colour(Enum):
    RED = "red"


Share = tuple[float, float] | None


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        (1, int, 1), (1, float, 1), (0.5, float, 0.5), ("1e-3", float, 1e-3), (True, bool, True),
        ("1e5", str, "1e5"), (None, int | None, None), ("a", str | nn.Module, "a"),
        ([1, 2], Sequence[int], [1, 2]), ([0.5, 1], Share, (0.5, 1.0)), (None, Share, None),
        (["1e-3", 1], Share, (1e-3, 1.0)), ("auto", bool | Literal["auto"], "auto"),
        (math.inf, float | Literal["inf"], "inf"), ("inf", float | Literal["inf"], "inf"),
        ({"a": [1]}, Mapping[str, Any] | None, {"a": [1]}), (object, Any, object),
        (3, int | np.random.RandomState | None, 3), ("a/b", Path, Path("a/b")), ("red", Colour, Colour.RED),
    ],
)  # fmt: skip
def test_values_of_their_type(value, kind, read):
    assert checked("x", value, kind) == read


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ("much", float, "a number, got 'much'"), (True, float, "a number, got 'True'"),
        (1.0, int, "a whole number, got '1.0'"), (True, int, "a whole number"), ("3", int, "a whole number"),
        (1, bool, "true or false"), (None, float, "a number, got 'null'"), (3, str | nn.Module, "a name"),
        (["a"], str, "a name"), ({"a": 1}, float, "a number"), ([1], float, "a number"),
        (math.nan, float, "a finite number, got 'nan'"), (math.inf, float, "a finite number, got 'inf'"),
        ("1e999", float, "a number"), (math.nan, float | Literal["inf"], "a finite number or 'inf'"),
        ("c", Literal["a", "b"], "'a' or 'b', got 'c'"), (3, bool | Literal["auto"], "true or false or 'auto'"),
        ([1, "x"], Sequence[int], "a list of whole numbers"), ("ab", Sequence[str], "a list of names"),
        ([1], Share, "a list of 2 numbers or null, got '\\[1\\]'"), (3, Mapping[str, Any] | None, "a mapping or null"),
        ("x" * 5000, float, "a number, got 'x{59}…'"), ([0.5] * 3, Share, "a list of 2 numbers"),
        ("x", int | np.random.RandomState | None, "a whole number or null"),
    ],
)  # fmt: skip
def test_values_of_another_type(value, kind, says):
    with pytest.raises(ConfigError, match=f"^the setting x takes {says}") as error:
        checked("x", value, kind)
    assert len(str(error.value)) < 150


def test_types_of_arguments():
    vje = types_of(METHODS["vje"])
    assert (vje["kl_weight"], vje["channels"], vje["draws"]) == (float, int, int)
    assert vje["variance"] == Literal["diagonal", "isotropic"]
    assert describe(vje["df"]) == "a number or 'inf'"
    assert "encoder" not in vje and "self" not in vje
    assert types_of(BACKBONES["resnet18"])["width"] is float
    assert types_of(lambda a, b=1, *c, d=0.5, **e: None) == {"a": Any, "b": int, "d": float}


@pytest.mark.parametrize(
    "kind",
    [fit, *(table[name] for table in (METHODS, BACKBONES, HEADS, TABLE_METHODS) for name in table)],
    ids=lambda kind: kind.__name__,
)
def test_every_default_is_of_its_type(kind):
    types = types_of(kind)
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in types and parameter.default is not parameter.empty:
            default = parameter.default
            checked(name, list(default) if isinstance(default, tuple) else default, types[name])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: METHODS["vje"]("convnet", dff=3), r"VJE\(\) .* argument 'dff', did you mean 'df'\?"),
        (lambda: METHODS["i-jepa"](heads="mdn"), r"IJEPA\(\) .* argument 'heads', did you mean 'head'\?"),
        (
            lambda: HEADS["gaussian"](3, 4, hiden_dim=3),
            r"Gaussian\(\) .* 'hiden_dim', did you mean 'hidden'\?",
        ),
        (lambda: evaluate(None, None, None, bootstrap=9), r"evaluate\(\) .* did you mean 'n_bootstrap'\?"),
    ],
)
def test_an_unknown_argument_has_the_nearest_name_beside_it(call, says):
    with pytest.raises(TypeError, match=says):
        call()


def test_an_error_inside_a_method_is_its_own():
    class Mine(METHODS["simsiam"]):
        def __init__(self, **keywords):
            super().__init__("convnet", **keywords)
            dict.fromkeys([], nothing=1)

    with pytest.raises(TypeError, match="fromkeys"):
        Mine()
