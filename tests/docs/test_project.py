"""What the front door says of the project agrees with the project: README, pages, versions, links."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import probjepa

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): Version(str(one.specifier).removeprefix("==")) for one in found}


def lower_bounds(requirements):
    found = [Requirement(text) for text in requirements]
    return {
        canonicalize_name(one.name): Version(next(iter(one.specifier)).version)
        for one in found
        if one.specifier
    }


# --- versions -------------------------------------------------------------------------------------------


def test_make_lowest_pins_exactly_the_lower_bounds():
    extras = PROJECT["project"]["optional-dependencies"]
    bounds = lower_bounds([*PROJECT["project"]["dependencies"], *extras["hf"], *extras["tables"]])
    lowest = pins("constraints-lowest.txt")
    assert (
        lowest.pop("torch") == pins("constraints.txt")["torch"]
    )  # the only CPU wheel that is sure to be there
    del bounds["torch"]
    assert lowest == bounds


def test_make_lowest_installs_what_its_tests_import():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    of_others = {"_pytest", "PIL", "sklearn", "yaml", "fsspec"}  # by another name, or torch's own
    installed = of_others | {name.replace("-", "_") for name in pins("constraints-lowest.txt")}
    line = next(line for line in recipe.splitlines() if "$(LOWEST)" in line and "-e '.[" in line)
    installed |= {word for word in line.split() if word.isidentifier()}
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {
        "probjepa",
        "probjepa_experiments",
        "tests",
    }
    line = next(line for line in recipe.splitlines() if "$(LOWEST)/bin/python -m pytest" in line)
    chosen = [ROOT / word for word in line.split() if word.startswith("tests/")]
    for file in [file for path in chosen for file in (path.rglob("*.py") if path.is_dir() else [path])]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        named += [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
        wanted = {name.split(".")[0] for name in named} - own - sys.stdlib_module_names
        assert wanted - installed == set(), file


def test_the_tested_versions_are_allowed():
    extras = PROJECT["project"]["optional-dependencies"]
    bounds = lower_bounds([*PROJECT["project"]["dependencies"], *extras["dev"], *extras["docs"]])
    tested = pins("constraints.txt")
    assert [name for name in bounds if name in tested and tested[name] < bounds[name]] == []
    assert sorted(set(bounds) - set(tested)) == []


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert probjepa.__version__ == PROJECT["project"]["version"] == citation["version"]
    assert f"## {probjepa.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- files ----------------------------------------------------------------------------------------------


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def test_committed_json_is_json():
    listed = subprocess.run(
        ["git", "ls-files", "*.json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wrong = []
    for name in listed.stdout.splitlines():
        try:
            json.loads((ROOT / name).read_text(encoding="utf-8"), parse_constant=refuse)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    assert "benchmarks/results/table_uncertainty.json" in listed.stdout and wrong == []


# --- pages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    # what a page of the site takes in from the root stands on that page: its links start there
    text = re.sub(r'^--8<-- "(.+)"$', lambda found: (ROOT / found[1]).read_text(encoding="utf-8"),
                  page.read_text(encoding="utf-8"), flags=re.MULTILINE)  # fmt: skip
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in navigation] == []


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    names = [name for name in probjepa.__all__ if name != "__version__"]
    assert [
        name for name in names if not re.search(rf"^::: probjepa\.{name}\b", reference, re.MULTILINE)
    ] == []


ROOMS = [
    "backbones", "data", "detectors", "distributions", "errors", "evaluation", "heads", "jacobian", "methods",
    "metrics", "scores", "tabular", "training",
]  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_room_is_in_the_reference(room):
    """A room that imports its names on first use shows none of them by itself."""
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: probjepa\.(\S+)$", reference, re.MULTILINE))
    module = importlib.import_module(f"probjepa.{room}")
    if room in shown and not hasattr(module, "__getattr__"):
        return
    names = [name for name in module.__all__ if not name.isupper()]
    assert names
    assert [name for name in names if not {name, f"{room}.{name}"} & shown] == []


def test_every_group_of_entry_points_is_documented():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    groups = set(re.findall(r'group="(probjepa\.\w+)"', sources))
    assert "probjepa.methods" in groups
    assert groups == set(re.findall(r"`(probjepa\.\w+)`", text))


def test_the_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 700
    assert text.index("pip install probjepa") < text.index("```python")
    from probjepa.methods import METHODS

    assert [
        f"pj.{METHODS[name].__name__}" for name in METHODS if f"pj.{METHODS[name].__name__}" not in text
    ] == []
    assert "make demo" in text
    assert "make test" in text
