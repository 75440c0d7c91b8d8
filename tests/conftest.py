"""Shared set-up: few threads, so that two test workers do not fight over two cores; signals that arrive."""

import os
import signal
from pathlib import Path

import pytest

from probjepa import provenance

os.environ.setdefault("OMP_NUM_THREADS", "1")
provenance.CPUINFO = Path(os.devnull)  # with units for bf16, runs would train in bf16 and not in float32
# a shell's job in the background, or one under nohup, ignores them, and so would what the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# files of half a minute and more: begun first, no worker is left with one when the other has nothing to do
LONGEST = (
    "test_many_processes", "test_ray_engine", "test_image_runs", "test_cli_tabular", "test_tabular_estimators",
    "test_fit_resume", "test_cli_frozen", "test_export", "test_process_state", "test_tutorials",
    "test_tabular_checkpoint", "test_method_contract", "test_student_t_numerics", "test_head_contract",
    "test_golden", "test_outside_package", "test_demo", "test_report_documents", "test_cli_sources",
    "test_package", "test_faults", "test_gpu",
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
