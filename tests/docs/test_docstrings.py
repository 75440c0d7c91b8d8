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
