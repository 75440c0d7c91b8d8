"""Every example in a docstring runs, and prints what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import probjepa

SOURCE = Path(probjepa.__file__).parent
MODULES = sorted(
    ".".join(["probjepa", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_examples_stand_in_their_section(name):
    """Elsewhere the site shows them as quoted prose."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    with_examples = [test for test in found if test.examples]
    before = {test.name: test.docstring.partition(">>> ")[0] for test in with_examples}
    assert [name for name, text in before.items() if "Examples\n" not in text] == []
