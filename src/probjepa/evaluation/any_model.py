"""One evaluation for any model, as the command has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from probjepa.backbones import names_hub
from probjepa.errors import ConfigError
from probjepa.evaluation import images
from probjepa.evaluation.figures import Evaluation
from probjepa.evaluation.tables import evaluate_table
from probjepa.methods import Method
from probjepa.registry import LOADERS
from probjepa.tabular.files import read_table
from probjepa.tabular.rows import indexed
from probjepa.tabular.text_files import text_for


def evaluate(
    model: Any, train: Any, test: Any, ood: Mapping[str, Any] | None = None, **options: Any
) -> Evaluation:
    """Evaluate any model of images or of tables, as ``probjepa evaluate`` does.

    Parameters
    ----------
    model
        a trained method or a fitted table estimator; or what ``load`` and ``open_encoder`` take: a run or
        model folder, ``owner/name``, ``"hf:NAME"``, ``"timm:NAME"``
    train, test
        reference and held-out rows: all that ``open_images`` takes, or a table (a DataFrame, or its file,
        which is read as the one that the run of ``model`` was fitted to)
    ood
        name → out-of-distribution set, of images
    options
        ``calibration``; of images: ``openood``, ``reencode``, ``seed``, ``n_bootstrap``, ``jepa``,
        ``reference_size``, ``progress``; of tables: the ``target`` column, ``validation`` (a table or its
        file), ``seeds`` and what else :func:`evaluate_table` takes

    Raises
    ------
    ConfigError, DataError, ArtifactError
        for a model, sets or options that do not go together; see the evaluations of images and of tables
    """
    text, ids = dict[str, Any](), ()
    if isinstance(model, str | Path) and not names_hub(model):
        text, ids = LOADERS["text of a run"](model), LOADERS["row names of a run"](model)
        model, name = LOADERS["saved model"](model), model
        if not hasattr(model, "transform") and not isinstance(model, Method):
            raise ConfigError(
                f"{name} holds a {type(model).__name__}, which is no model of images and none of tables"
            )
    elif not hasattr(model, "transform") and not isinstance(model, Method):
        if not isinstance(model, str | nn.Module):
            raise ConfigError(f"evaluate takes a model or its name, got a {type(model).__name__}")
        model = LOADERS["encoder"](model)
    if not hasattr(model, "transform"):
        return images.evaluate(model, train, test, ood, **options)
    if ood is not None:
        raise ConfigError("ood: not for tables, leave it out")
    if "target" not in options:
        raise ConfigError("an evaluation on tables needs target=, the column of classes to predict")
    others = {name: options.pop(name, None) for name in ("validation", "calibration")}
    given = {"train": train, "test": test, **others}
    schema, target = getattr(model, "schema_", None), options["target"]
    columns, texts = (getattr(schema, name, ()) for name in ("columns", "texts"))

    def opened(of: Any) -> Any:
        if not isinstance(of, str | Path):
            return of
        frame = read_table(of, target, columns, texts, ids, **text_for(of, {}, text))
        return indexed(frame, [*columns, target], ids)

    return evaluate_table(model, **{name: opened(of) for name, of in given.items()}, **options)
