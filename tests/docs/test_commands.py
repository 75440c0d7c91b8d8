"""Every command on a page is one that the command line knows, with options that it has; the README's Python runs."""

from pathlib import Path

import pytest
import typer
from run_page import blocks, commands

from probjepa.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = [
    pytest.param(words, id=f"{page.stem}:{' '.join(words[1:4])}")
    for page in PAGES
    for _, language, text in blocks(page.read_text(encoding="utf-8"))
    if language == "sh"
    for _, words in commands(text)
    if words[0] == "probjepa"
]


@pytest.mark.parametrize("words", LINES)
def test_a_command_and_its_options_exist(words):
    known = typer.main.get_command(app).commands
    assert words[1] in known
    options = {option for parameter in known[words[1]].params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} - options == set()


def test_the_readme_shows_ten_lines_of_shell_that_cover_the_commands():
    shown = {words.values[0][1] for words in LINES if words.id.startswith("README:")}
    assert shown >= {"demo", "train", "embed", "score", "evaluate", "curate", "list"}


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (text,) = (
        text
        for _, language, text in blocks((ROOT / "README.md").read_text(encoding="utf-8"))
        if language == "python"
    )
    assert "epochs=20" in text
    code = (
        text.replace("epochs=20", "epochs=1") + "\nassert embeddings.shape == variance.shape == (1797, 64)\n"
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "digits-model" / "model.safetensors").is_file()
