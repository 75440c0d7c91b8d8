"""Modes of modules that are looked at: given back whatever ends the look."""

import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from probjepa.backbones import frozen

SOURCE = Path(frozen.__file__).read_text().splitlines()
WITH_LOCK = {number for number, line in enumerate(SOURCE, 1) if line.strip() == "with _LOCK:"}


def _modules():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)), nn.Linear(2, 2))
    net[1].eval()
    return net


def _modes(net):
    return [m.training for m in net.modules()]


def _interrupted_at(line, net, depth):
    """Look at a net, ``depth`` times at once, with a Ctrl-C at the n-th line of frozen.py; False: it has fewer."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != frozen.__file__:
            return None
        # the end of a ``with`` comes by its line too, where no signal can
        if event == "line" and not (frozen._LOCK.locked() and frame.f_lineno in WITH_LOCK):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    def look(more):
        with frozen.evaluating(net):
            assert not any(_modes(net))
            if more > 1:
                look(more - 1)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with torch.enable_grad():  # torch's own end of no_grad is none of ours
            look(depth)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return left < 1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_the_modes_as_they_were(depth):
    net = _modules()
    before = _modes(net)
    lines = 0
    while _interrupted_at(lines + 1, net, depth):
        lines += 1
        assert _modes(net) == before, f"line event {lines}"
        assert not [m for m in net.modules() if m in frozen._LOOKED_AT]
    assert lines > 40


def test_the_last_of_several_looks_gives_the_modes_back():
    net = _modules()
    before = _modes(net)
    with frozen.evaluating(net):
        ready, go_on = threading.Event(), threading.Event()

        def look():
            with frozen.evaluating(net[1]), frozen.evaluating(net):
                ready.set()
                go_on.wait(10)

        thread = threading.Thread(target=look)
        thread.start()
        assert ready.wait(10)
    assert not any(_modes(net))
    go_on.set()
    thread.join(10)
    assert _modes(net) == before and torch.is_grad_enabled()
