"""Run a page's code blocks in order: ``python run_page.py PAGE``, in the current folder.

``python`` blocks share one namespace. In ``sh`` blocks a line that starts with ``probjepa`` is run by the
command line's own function, which saves an import of torch a command; any other line goes to the shell.
A ``text`` block must equal what the block before it printed, where ``...`` stands for anything.
"""

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Return (line, language, text) of every block of code of a page, in order."""
    return [(page.count("\n", 0, found.start()) + 2, *found.groups()) for found in _FENCE.finditer(page)]


def commands(text):
    """Return (line, words) of every command of a block."""
    lines = text.replace("\\\n", " ").splitlines()
    return [(line, words) for line in lines if (words := shlex.split(line, comments=True))]


def run_shell(text):
    """Run a block of commands; one that fails stops the page."""
    from probjepa.cli import run

    for line, words in commands(text):
        if words[0] != "probjepa":
            subprocess.run(["bash", "-euc", line], check=True)
            continue
        code = run(words[1:])
        assert code == 0, f"exit code {code}: {line}"


def run_page(path):
    """Run all blocks; a wrong output raises AssertionError, with the page's line."""
    names = {"__name__": "__main__"}
    printed = ""
    for line, language, text in blocks(path.read_text(encoding="utf-8")):
        if language == "text":
            same = doctest.OutputChecker().check_output(text, printed, doctest.ELLIPSIS)
            assert same, f"{path.name}:{line}: the page says\n{text}\nand the code printed\n{printed}"
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if language == "python":
                # as many empty lines before it as the page has, so that a traceback names the page's line
                exec(compile("\n" * (line - 1) + text, str(path), "exec"), names)
            elif language == "sh":
                run_shell(text)
        printed = out.getvalue()


if __name__ == "__main__":
    run_page(Path(sys.argv[1]).resolve())
