"""Names do nothing on a terminal, and a stream that is lost changes nothing."""

import io
import os

import pytest
import torch
from rich.table import Table

from probjepa.jacobian import jepa_score
from probjepa.terminal import Steady, console, printable, say, tracked


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nb\r", r"a\nb\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("caf\udce9", r"caf\udce9"),
        ("a\u2028b", r"a\u2028b"),
        ("a\u202egpj.exe\u2066", r"a\u202egpj.exe\u2066"),
        ("σ² – ↑ 日本\u3000語 [/] :smile:", "σ² – ↑ 日本\u3000語 [/] :smile:"),
    ],
)
def test_names_are_shown_and_do_nothing(name, shown, capsys):
    assert printable(name) == shown
    say(name)
    say(name, error=True)
    table = Table(printable(name), title=printable(name))
    table.add_row(printable(name))
    console(error=False).print(table)
    said = capsys.readouterr()
    assert said.err == shown + "\n"
    assert said.out.startswith(shown + "\n")
    assert said.out.count(shown) == 4
    assert "\x1b" not in said.out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "gbk", "utf-8"])
def test_text_that_the_encoding_lacks_is_written_as_escapes(encoding):
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("σ² ↔ \udce9\n")
    stream.flush()
    assert raw.getvalue().decode(encoding).endswith("\\udce9\n")


def broken():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def full():
    return open("/dev/full", "w")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [broken, closed, full, lambda: None])
def test_a_lost_stream_changes_nothing(stream, monkeypatch):
    lost = stream()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", Steady(lost))
    for error in (False, True):
        say("lost", error=error)
        console(error=error).print("lost")
    print("lost" * 10_000, flush=True)
    if lost is not None:
        lost.close()  # what is buffered goes nowhere, and does not fail


def test_a_bar_that_goes_when_it_ends_writes_nothing_into_a_file(capsys):
    assert list(tracked(range(3), "shards", 3, shown=True)) == [0, 1, 2]
    jepa_score(torch.nn.Linear(3, 2), torch.randn(2, 3), progress=True)
    assert capsys.readouterr() == ("", "")
