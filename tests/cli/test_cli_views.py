"""Views of a user's own, and their number, on the command line: code is named there and nowhere else."""

import numpy as np
import pytest

from probjepa.cli import run
from probjepa.data.views import RECIPES

CODE = """
from torch import nn
from probjepa.data.augment import RandomResizedCrop

made = []

def mine(size, channels):
    made.append(size)
    return [[RandomResizedCrop(size, scale=(0.5, 1.0))] for _ in range(3)]

def fails(size, channels):
    raise ValueError("no such view")

def nothing(size, channels):
    return 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "own_views.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (16, 16, 16), dtype=np.uint8))
    yield tmp_path
    for name in [name for name in RECIPES if ":" in name]:
        RECIPES.remove(name)


def train(place, *more, out="run"):
    return run(
        ["train", "vje", "--data", str(place / "x.npy"), "--out", str(place / out), "--device", "cpu", "-q",
         "--set", "batch_size=8", "--set", "hidden_dim=8", "--set", "backbone=convnet", "--set", "widths=[4,8]", *more]
    )  # fmt: skip


def test_code_is_run_where_the_command_line_names_it_and_by_no_file(place, capsys):
    own = ("--set", "view_recipe=own_views:mine")
    assert train(place, "--epochs", "1", *own) == 0
    import own_views

    calls = len(own_views.made)
    assert calls
    RECIPES.remove("own_views:mine")  # as in another process
    (place / "c.yaml").write_text("view_recipe: own_views:mine\n")
    for more, out in (
        (("--resume",), "run"),
        (("--epochs", "1", "--config", str(place / "c.yaml")), "other"),
    ):
        capsys.readouterr()
        assert train(place, *more, out=out) == 2
        error = capsys.readouterr().err.strip()
        assert "give it again, --set view_recipe=own_views:mine" in error and len(error.splitlines()) == 1
    assert len(own_views.made) == calls
    assert run(["embed", str(place / "run"), "--data", str(place / "x.npy"), "--out", str(place / "e.parquet"),
                "-q", "--device", "cpu"]) == 0  # fmt: skip
    assert len(own_views.made) == calls
    assert train(place, "--resume", *own) == 0


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("own_views:fails", "makes no views (ValueError: no such view)"),
        ("own_views:nothing", "makes no views (TypeError"),
        ("own_views:absent", "cannot be imported"),
        ("no_such_module:mine", "cannot be imported"),
    ],
)
def test_code_that_makes_no_views_is_one_line(place, capsys, recipe, says):
    assert train(place, "--epochs", "1", "--set", f"view_recipe={recipe}") == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1 and "Traceback" not in error


def test_a_number_of_views(place, capsys):
    assert train(place, "--epochs", "1", "--set", "views=3") == 0
    assert train(place, "--epochs", "1", "--set", "views=1", out="b") == 2
    assert "trains on 2 or more" in capsys.readouterr().err
