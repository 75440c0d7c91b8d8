import pytest

from undrawn import _undrawn  # noqa: F401


@pytest.fixture(autouse=True)
def _quick(few_epochs):
    """Commands are asked what they write, not how well an MLP has learned."""
