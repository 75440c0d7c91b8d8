"""Pages whose pictures are laid out and not drawn, for tests of what a command or an evaluation finds."""

import pytest
from matplotlib.figure import Figure


def empty(self, file, **options):
    """Stand in for ``Figure.savefig``."""
    file.write(b"<svg xmlns='http://www.w3.org/2000/svg'><defs></defs></svg>")


@pytest.fixture(scope="module", autouse=True)
def _undrawn(request):
    """Drawing is most of a page's time: tests/report does it, and so do the tutorials and tests/cli/test_cli.py."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_cli":
            patch.setattr(Figure, "savefig", empty)
        yield
