"""Tables of names: open to objects and to installed packages, and slow to import."""

import sys

import pytest

from probjepa.errors import ConfigError
from probjepa.registry import Registry


@pytest.fixture
def table():
    return Registry("colour", {"pi": "math:pi", "gone": "math:no_such"}, group="probjepa.test_colours")


def test_an_entry_is_imported_when_it_is_asked_for(table):
    import math

    assert table["pi"] == math.pi
    assert list(table) == ["pi", "gone"]
    assert table.path("pi") == "math:pi"
    with pytest.raises(AttributeError):
        table["gone"]


def test_an_unknown_name_has_the_nearest_one_suggested(table):
    with pytest.raises(ConfigError, match=r"unknown colour 'pie', did you mean 'pi'\? \(known: gone, pi\)"):
        table["pie"]


def test_objects_and_paths_are_registered_and_taken_out(table):
    class Red:
        pass

    assert table.register("red", Red) is Red
    assert table["red"] is Red
    assert table.path("red").endswith(":test_objects_and_paths_are_registered_and_taken_out.<locals>.Red")
    assert "red" in table
    assert list(table) == ["pi", "gone", "red"]
    assert len(table) == 3
    table.register("red", Red)  # once more is no harm
    with pytest.raises(ConfigError, match="'red' is registered already: choose another name"):
        table.register("red", object)
    with pytest.raises(ConfigError, match="'pi' is registered already"):
        table.register("pi", object)

    @table.register("blue")
    class Blue:
        pass

    assert table["blue"] is Blue
    table.register("e", "math:e")
    assert 2.7 < table["e"] < 2.8
    table.remove("red")
    assert "red" not in table


def test_where_a_name_is_taken_an_object_is_too(table):
    assert table.resolve("pi") == table["pi"]
    assert table.resolve(len) is len
    with pytest.raises(ConfigError, match="3 is no colour: give an object, or one of gone, pi"):
        table.resolve(3)


def test_an_installed_package_adds_entries(table, tmp_path, monkeypatch):
    (tmp_path / "greens.py").write_text("green = 'green'\n")
    information = tmp_path / "greens-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: greens\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[probjepa.test_colours]\ngreen = greens:green\nbroken = greens:brown\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(table) == ["pi", "gone", "green", "broken"] or set(table) == {"pi", "gone", "green", "broken"}
    assert table["green"] == "green"
    with pytest.raises(ConfigError, match="'broken' cannot be imported from 'greens:brown'"):
        table["broken"]
    sys.modules.pop("greens", None)
