"""Shared set-up: few threads, so that two test workers do not fight over two cores; signals that arrive."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from probjepa import provenance

os.environ.setdefault("OMP_NUM_THREADS", "1")
provenance.CPUINFO = Path(os.devnull)  # with units for bf16, runs would train in bf16 and not in float32
settings.register_profile("busy machine", deadline=None)  # an example may wait for a core
settings.load_profile("busy machine")
# a shell's job in the background, or one under nohup, ignores them, and so would what the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# files of a quarter of a minute and more, as measured: begun first, none is left to one worker at the end
LONGEST = (
    "test_many_processes", "test_ray_engine", "test_cli_tabular", "test_export", "test_process_state",
    "test_fit_resume", "test_outside_package", "test_tabular_estimators", "test_cli_jepa", "test_image_runs",
    "test_head_of_ones_own", "test_report_documents", "test_tutorials", "test_tabular_checkpoint",
    "test_golden", "test_package",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Put the longest files in front."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _checked_distributions(monkeypatch):
    """Undo what PyTorch's compiler does to the whole process at its first use."""
    from torch.distributions import Distribution  # after the threads are set: OpenMP reads them once

    monkeypatch.setattr(Distribution, "_validate_args", True)


@pytest.fixture
def few_epochs(monkeypatch):
    """End the MLP on embeddings early: it is most of the time of a table's evaluation."""
    monkeypatch.setattr("probjepa.evaluation.predictors._MOST_EPOCHS", 5)
