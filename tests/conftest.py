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


@pytest.fixture(autouse=True)
def _checked_distributions(monkeypatch):
    """Undo what PyTorch's compiler does to the whole process at its first use."""
    from torch.distributions import Distribution  # after the threads are set: OpenMP reads them once

    monkeypatch.setattr(Distribution, "_validate_args", True)
