"""The commands. Each imports what it needs when it runs, so that ``--help`` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probjepa.cli.commands import curate, embed, evaluate, export, score, train
from probjepa.cli.options import Command, OutFolder, Overwrite, Quiet, Seed, grouped
from probjepa.errors import ConfigError, unknown_name
from probjepa.terminal import say

app = typer.Typer(
    help="Joint embeddings that know what they don't know: train, embed, score, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from probjepa import __version__

        say(f"probjepa {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Joint embeddings that know what they don't know: train, embed, score, evaluate."""


@app.command(cls=Command)
def demo(
    out: OutFolder = Path("probjepa-demo"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Train VJE on embedded real images and score held-out, unseen, natural and noise images."""
    from probjepa.claims import claimed
    from probjepa.demo import run_demo

    with claimed(out, folder=True):
        run_demo(out, seed=seed, overwrite=overwrite, progress=not quiet)


for command in (train, embed, score, evaluate, curate, export):
    app.command(cls=Command)(grouped(command))


@app.command(cls=Command)
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="an experiment of `probjepa list`")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder  [reproduce-NAME]")] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", metavar="DIR", help="folder of the data sets it needs")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="quick|small|medium|full", help="what a cell is trained with  [full]"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="--budget quick: digits, in minutes")] = False,
    cells: Annotated[
        Path | None,
        typer.Option(
            "--cells", metavar="DIR", help="finished cells, which experiments can share  [OUT/cells]"
        ),
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="run nothing: the page of the cells that are finished")
    ] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run one experiment of a paper: ours beside the published figures; finished cells are kept."""
    from probjepa.claims import claimed
    from probjepa.registry import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    if quick and budget not in (None, "quick"):
        raise ConfigError(f"--quick is --budget quick, and --budget is '{budget}': pass one of them")
    folder = out or Path(f"reproduce-{name}")
    with claimed(folder, folder=True):
        EXPERIMENTS[name](
            folder,
            data_root=data_root,
            budget="quick" if quick else budget or "full",
            cells=cells,
            seed=seed,
            overwrite=overwrite,
            progress=not quiet,
            **({"finished_only": True} if finished else {}),
        )
    say(f"wrote {folder}/metrics.json and {folder}/report.html")


@app.command("list", cls=Command)
def list_names() -> None:
    """List methods, heads, backbones, scores, view recipes, data sources and experiments."""
    from probjepa.backbones import BACKBONES
    from probjepa.data.sources import READERS
    from probjepa.data.views import RECIPES
    from probjepa.heads import HEADS
    from probjepa.jacobian.estimators import ESTIMATORS
    from probjepa.methods import METHODS, MODELS
    from probjepa.registry import EXPERIMENTS
    from probjepa.scores import SCORES, score_class
    from probjepa.tabular import TABLE_METHODS

    for title, names in (
        ("methods", METHODS),
        ("methods of tables", TABLE_METHODS),
        ("other models, in Python", [name for name in MODELS if name not in METHODS]),
        ("heads", HEADS),
        ("backbones", BACKBONES),
        ("scores", SCORES),
        ("estimators of jepa", ESTIMATORS),
        ("view recipes", RECIPES),
        ("data sources", READERS),
        ("experiments", EXPERIMENTS),
    ):
        say(f"{title}: {', '.join(names)}")
    for name in SCORES:
        say(f"  {name}: {score_class(name).summary}")
