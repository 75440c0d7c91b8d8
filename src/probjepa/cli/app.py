"""The commands. Each imports what it needs when it runs, so that ``--help`` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probjepa.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from probjepa.data import Images
    from probjepa.methods import Method

app = typer.Typer(
    help="Joint embeddings that know what they don't know: train, embed, score, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, typer.Option("--data", metavar="URI", help="images: folder, parquet, npy/npz, hf:, …")]
OutFile = Annotated[Path, typer.Option("--out", metavar="F.parquet", help="table to write")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Convert = Annotated[bool, typer.Option("--convert", help="convert grey ↔ RGB and drop alpha")]
OnError = Annotated[str, typer.Option("--on-error", metavar="raise|skip", help="at an unreadable image")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
Seed = Annotated[int, typer.Option("--seed", help="of every random choice")]
Target = Annotated[
    str | None, typer.Option("--target", metavar="COLUMN", help="of tables: the labels, which no model sees")
]


def _version(value: bool) -> None:
    if value:
        from probjepa import __version__

        print(f"probjepa {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Joint embeddings that know what they don't know: train, embed, score, evaluate."""


@app.command()
def demo(
    out: OutFolder = Path("probjepa-demo"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Train VJE on embedded real images and score held-out, unseen, natural and noise images."""
    from probjepa.experiments.demo import run_demo

    run_demo(out, seed=seed, overwrite=overwrite, progress=not quiet)


@app.command()
def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="a name of `probjepa list`")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="run folder")],
    val: Annotated[str | None, typer.Option("--val", metavar="URI", help="held-out images, for kNN")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="passes over the data  [200]")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="F", help="YAML of settings")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the method, backbone or training"),
    ] = None,
    target: Target = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    overwrite: Overwrite = False,
    seed: Annotated[int | None, typer.Option("--seed", help="of every random choice  [0]")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")] = None,
    convert: Convert = False,
    on_error: OnError = "raise",
    quiet: Quiet = False,
) -> None:
    """Train a method; Ctrl-C leaves a run that --resume goes on with."""
    from probjepa.cli.settings import fill_in, parse_assignments, read_config, sort_settings
    from probjepa.cli.tabular import TABLE_METHODS, refuse_image_options, train_table
    from probjepa.methods import METHODS

    if method in TABLE_METHODS:
        refuse_image_options({"--val": val, "--resume": resume, "--convert": convert})
        return train_table(
            method, data, out, target=target, epochs=epochs, config=config, settings=settings or [],
            seed=seed, device=device, overwrite=overwrite, progress=not quiet,
        )  # fmt: skip
    if method not in METHODS:
        raise unknown_name("method", method, [*METHODS, *TABLE_METHODS])
    _refuse_target(target, method)
    given = read_config(config, method) if config else {}
    if resume and config is None and (out / "config.yaml").is_file():
        given = read_config(out / "config.yaml", method)
    given |= parse_assignments(settings or [])
    given |= {k: v for k, v in {"epochs": epochs, "seed": seed, "device": device}.items() if v is not None}

    from probjepa.artifacts import refuse_existing
    from probjepa.data import open_images

    if not resume:
        refuse_existing(out, overwrite, "go on with it with --resume")
    size, channels = given.get("image_size"), given.get("channels")
    opened = open_images(
        data, size=size, channels=channels, convert=convert, on_error=_checked_on_error(on_error),
        progress=not quiet,
    )  # fmt: skip
    given = fill_in(method, given, opened.size, opened.channels)
    side = given["image_size"]
    sorted_settings = sort_settings(method, given)
    if size is None:
        opened = open_images(opened if _in_memory(opened) else data, size=side, channels=opened.channels)
    _say_skipped(opened)

    import torch

    from probjepa.report.training import training_report
    from probjepa.training import fit

    fit_settings: dict[str, Any] = {"epochs": 200, "seed": 0, **METHODS[method].recipe, **sorted_settings.fit}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit_settings["seed"])
        model = METHODS[method](**sorted_settings.method, backbone_options=sorted_settings.backbone)
    held_out = None
    if val is not None:
        held_out = open_images(val, size=side, channels=opened.channels, convert=convert, progress=not quiet)
    fit(
        model, opened, val=held_out, out=out, resume=resume, overwrite=overwrite, progress=not quiet,
        **fit_settings,
    )  # fmt: skip
    training_report(out)
    print(f"trained {method} on {len(opened):,} images: {out}/model, {out}/metrics.csv, {out}/report.html")


def _refuse_target(target: str | None, what: str) -> None:
    if target is not None:
        raise ConfigError(f"--target is for tables, and {what} is of images: leave it out")


def _in_memory(images: Images) -> bool:
    from probjepa.data import ImageSet

    return isinstance(images, ImageSet)


def _checked_on_error(value: str) -> Any:
    if value not in ("raise", "skip"):
        raise ConfigError(f"--on-error is '{value}': pass raise or skip")
    return value


def _say_skipped(images: Images) -> None:
    if images.skipped:
        print(f"skipped {len(images.skipped)} unreadable images of {images.name}:")
        for line in images.skipped:
            print(f"  {line}")


def _load(source: str, device: str) -> Method:
    from probjepa.artifacts import load
    from probjepa.methods import Method
    from probjepa.training.runs import resolve_device

    target = resolve_device(device)
    method = load(source)
    if not isinstance(method, Method):
        raise ConfigError(f"{source} holds a {type(method).__name__}, which is no model of images")
    return method.to(target)


def _open(method: Method, uri: str, **options: Any) -> Images:
    return _open_as(uri, method.preprocess.size, method.preprocess.channels, **options)


def _open_as(
    uri: str, size: int | None, channels: int | None, *, convert: bool, on_error: str = "raise", quiet: bool
) -> Images:
    from probjepa.data import open_images

    images = open_images(
        uri,
        size=size,
        channels=channels,
        convert=convert,
        on_error=_checked_on_error(on_error),
        progress=not quiet,
    )
    _say_skipped(images)
    return images


Model = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="run folder, model folder or owner/name")]


@app.command()
def embed(
    model: Model,
    data: Data,
    out: OutFile,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write a table: id, label, embedding, and the posterior's variance where the model has one."""
    from probjepa.cli.tabular import embed_table, is_table_model

    if is_table_model(model):
        return embed_table(model, data, out, device=device, overwrite=overwrite)
    from rich.console import Console
    from rich.progress import track

    from probjepa.artifacts import refuse_existing
    from probjepa.cli.tables import identity, open_table

    refuse_existing(out, overwrite)
    method = _load(model, device)
    images = _open(method, data, convert=convert, on_error=on_error, quiet=quiet)
    batch = 512
    with open_table(out, overwrite) as table:
        batches = images.batches(batch)
        total = -(-len(images) // batch)
        bar = Console(stderr=True)
        for pixels, rows in track(
            batches, "embedding", total=total, transient=True, disable=quiet, console=bar
        ):
            features = {key: value.cpu().numpy() for key, value in method.representations(pixels).items()}
            columns = {**identity(images, rows), "embedding": features["h"]}
            if "variance" in features:
                columns["variance"] = features["variance"]
            table.write(columns)
    print(f"embedded {len(images):,} images: {out}")


@app.command()
def score(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="run or model folder, owner/name, hf:… or timm:… (jepa)"),
    ],
    data: Data,
    out: OutFile,
    score: Annotated[
        str,
        typer.Option(
            "--score",
            help="likelihood, predictive, jepa, knn, mahalanobis, gmm, or another of the model's own",
        ),
    ] = "likelihood",
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="URI", help="typical images, not in --data")
    ] = None,
    estimator: Annotated[
        str, typer.Option("--estimator", help="of jepa: exact, folded, sketch, slq, subspace, auto")
    ] = "exact",
    rank: Annotated[
        str, typer.Option("--rank", help="of jepa: none (the paper's), auto, or a number")
    ] = "none",
    latent: Annotated[
        str,
        typer.Option(
            "--latent", help="of jepa: none (the paper's), normal, or reference (fitted to --reference)"
        ),
    ] = "none",
    size: Annotated[
        int | None, typer.Option("--size", help="of hf: and timm: models: pixels that images are decoded to")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write a table: id, label, score (higher = more typical), and the score's parts."""
    from probjepa.cli.tabular import is_table_model, score_table

    if is_table_model(model):
        return score_table(
            model, data, out, score=score, reference=reference, seed=seed, device=device, overwrite=overwrite
        )
    from probjepa.artifacts import refuse_existing
    from probjepa.cli.tables import identity, open_table

    refuse_existing(out, overwrite)
    options: dict[str, Any] = {"convert": convert, "on_error": on_error, "quiet": quiet}
    if score == "jepa":
        if latent not in ("none", "normal", "reference"):
            raise unknown_name("latent term", latent, ["none", "normal", "reference"])
        if (latent == "reference") != (reference is not None):
            raise ConfigError("--latent reference and --reference URI go together: give both or neither")
        if rank not in ("none", "auto") and not rank.isdigit():
            raise ConfigError(f"--rank is '{rank}': pass none, auto or a number")
        from probjepa.cli.jepa import input_shape, open_encoder, score_jepa
        from probjepa.training.runs import resolve_device

        encoder = open_encoder(model, resolve_device(device))
        shape = (size, None) if size else input_shape(encoder)
        images = _open_as(data, *shape, **options)
        known = None if reference is None else _open_as(reference, *shape, **options)
        kept = score_jepa(
            encoder, images, out, estimator=estimator, latent=latent, reference=known, seed=seed,
            rank=int(rank) if rank.isdigit() else "auto" if rank == "auto" else None,
            overwrite=overwrite, progress=not quiet,
        )  # fmt: skip
        earlier = f", {kept:,} of them by an earlier run" if kept else ""
        print(f"scored {len(images):,} images by jepa (higher = more typical){earlier}: {out}")
        return
    method = _load(model, device)
    images = _open(method, data, **options)
    known = None if reference is None else _open(method, reference, **options)

    from probjepa.scores import score_set

    values, parts = score_set(method, images, score, reference=known, progress=not quiet)
    with open_table(out, overwrite) as table:
        table.write({**identity(images, slice(None)), "score": values, **parts})
    print(f"scored {len(images):,} images by {score} (higher = more typical): {out}")


@app.command()
def evaluate(
    model: Model,
    train: Annotated[str, typer.Option("--train", metavar="URI", help="reference images")],
    test: Annotated[str, typer.Option("--test", metavar="URI", help="held-out images")],
    out: OutFolder,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", metavar="NAME=URI", help="an out-of-distribution set")
    ] = None,
    openood: Annotated[
        Path | None,
        typer.Option(
            "--openood",
            metavar="DIR",
            help="OpenOOD v1.5: cifar100, tin, mnist, svhn, textures, places365, each NAME/ or NAME.parquet",
        ),
    ] = None,
    reencode: Annotated[
        str | None, typer.Option("--reencode", metavar="jpeg:Q", help="bring all sets through one codec")
    ] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="resamples of each interval")] = 1000,
    jepa: Annotated[bool, typer.Option("--jepa", help="also JEPA-SCORE: slow for wide embeddings")] = False,
    target: Target = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write metrics.json and report.html: accuracy and OOD detection beside their baselines."""
    from probjepa.artifacts import refuse_existing
    from probjepa.cli.tabular import evaluate_tables, is_table_model, refuse_image_options
    from probjepa.data.codec import jpeg_quality

    refuse_existing(out, overwrite)
    if is_table_model(model):
        refuse_image_options(
            {"--ood": ood, "--openood": openood, "--reencode": reencode, "--jepa": jepa, "--convert": convert}
        )
        return evaluate_tables(
            model, train, test, out, target=target, seed=seed, device=device, progress=not quiet
        )
    _refuse_target(target, model)
    if reencode is not None:
        jpeg_quality(reencode)  # its complaint comes before any work
    named = {}
    for item in ood or []:
        name, sign, uri = item.partition("=")
        if not (name and sign and uri):
            raise ConfigError(f"--ood takes NAME=URI, got '{item}'")
        named[name] = uri
    method = _load(model, device)
    options: dict[str, Any] = {"convert": convert, "on_error": on_error, "quiet": quiet}
    sets = {name: _open(method, uri, **options) for name, uri in named.items()}

    from probjepa.cli.output import print_summary, write_evaluation
    from probjepa.evaluation import evaluate as run_evaluation
    from probjepa.evaluation import openood_sets

    benchmark = None
    if openood is not None:
        benchmark = openood_sets(
            openood,
            size=method.preprocess.size,
            channels=method.preprocess.channels,
            on_error=_checked_on_error(on_error),
            progress=not quiet,
        )
        for images in benchmark.values():
            _say_skipped(images)
    result = run_evaluation(
        method,
        _open(method, train, **options),
        _open(method, test, **options),
        sets,
        openood=benchmark,
        reencode=reencode,
        seed=seed,
        n_bootstrap=bootstrap,
        jepa=jepa,
        progress=not quiet,
    )
    write_evaluation(result, out)
    print_summary(result.metrics)
    print(f"wrote {out}/metrics.json and {out}/report.html")


@app.command()
def curate(
    model: Model,
    data: Data,
    out: OutFolder,
    score: Annotated[
        str, typer.Option("--score", help="of typicality: likelihood, predictive, jepa, knn, …")
    ] = "likelihood",
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="URI", help="typical images, not in --data")
    ] = None,
    drop: Annotated[float, typer.Option("--drop", help="share to drop: the least typical")] = 0.01,
    review: Annotated[
        float,
        typer.Option("--review", help="share to review: next least typical, and as many most uncertain"),
    ] = 0.05,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank images by typicality and uncertainty: keep, review and drop lists with thumbnails."""
    from probjepa.artifacts import refuse_existing

    refuse_existing(out, overwrite)
    method = _load(model, device)
    options: dict[str, Any] = {"convert": convert, "on_error": on_error, "quiet": quiet}
    images = _open(method, data, **options)
    known = None if reference is None else _open(method, reference, **options)

    from probjepa.experiments.curate import curate as run_curate

    counts = run_curate(
        method, images, out, score=score, reference=known, drop=drop, review=review, progress=not quiet
    )
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()) + f": {out}/report.html")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="an experiment of `probjepa list`")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder  [reproduce-NAME]")] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", metavar="DIR", help="folder of the data sets it needs")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="quick|small|full", help="what a cell is trained with  [full]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="--budget quick: digits, in minutes")] = False,
    cells: Annotated[
        Path | None,
        typer.Option(
            "--cells", metavar="DIR", help="finished cells, which experiments can share  [OUT/cells]"
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run one experiment of a paper: ours beside the published figures; finished cells are kept."""
    from probjepa.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    if quick and budget not in (None, "quick"):
        raise ConfigError(f"--quick is --budget quick, and --budget is '{budget}': pass one of them")
    folder = out or Path(f"reproduce-{name}")
    EXPERIMENTS[name](
        folder,
        data_root=data_root,
        budget="quick" if quick else budget or "full",
        cells=cells,
        seed=seed,
        overwrite=overwrite,
        progress=not quiet,
    )
    print(f"wrote {folder}/metrics.json and {folder}/report.html")


@app.command("list")
def list_names() -> None:
    """List methods, heads, backbones, scores, view recipes and experiments."""
    from probjepa.backbones import BACKBONES
    from probjepa.cli.tabular import TABLE_METHODS
    from probjepa.data.views import RECIPES
    from probjepa.experiments import EXPERIMENTS
    from probjepa.heads import HEADS
    from probjepa.methods import METHODS
    from probjepa.scores import SCORES

    for title, names in (
        ("methods", METHODS),
        ("methods of tables", TABLE_METHODS),
        ("heads", HEADS),
        ("backbones", BACKBONES),
        ("scores", SCORES),
        ("view recipes", RECIPES),
        ("experiments", EXPERIMENTS),
    ):
        print(f"{title}: {', '.join(names)}")
