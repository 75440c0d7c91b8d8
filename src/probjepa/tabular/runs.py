"""A fit of a table estimator that leaves a run folder, as ``probjepa.fit`` does for images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probjepa.files import staged_directory, write_text
from probjepa.metrics import collapse_summary
from probjepa.training.checkpoint import FitCheckpoint
from probjepa.training.device import resolve_device
from probjepa.training.folder import RunFolder, metrics_csv
from probjepa.training.interrupt import Interrupted

_DIAGNOSED = 2_000  # rows whose embeddings tell a collapse


def fit_run(
    method: str, model: Any, frame: Any, folder: RunFolder, about: Mapping[str, Any], *, resume: bool = False
) -> None:
    """Fit an estimator to a DataFrame, and write its config.yaml, metrics.csv and model.

    The folder is begun when the first epoch is over: from then on it has config.yaml and a checkpoint, which
    ``resume`` goes on with; of a finished run it is that of the last epoch, and the files are written again
    as they are. The other files come once the fit is done; after Ctrl-C with the best weights so far.

    Parameters
    ----------
    method
        its name in ``TABLE_METHODS``
    about
        what config.yaml says of the data

    Raises
    ------
    ConfigError, DataError, ArtifactError
        as ``fit`` of the estimator
    Interrupted
        after Ctrl-C or SIGTERM
    """
    device = resolve_device(model.device)
    params = {k: v for k, v in model.get_params().items() if k not in ("verbose", "device")}
    record = {"method": method, **{f"method.{key}": value for key, value in params.items()}, **about}
    goes_on = resume and folder.checkpoint.is_file()
    checkpoint = FitCheckpoint(
        folder.checkpoint,
        resume=resume,
        before=None if goes_on else lambda: folder.start(record, device, {}),
    )
    stopped = False
    try:
        model.fit(frame, checkpoint=checkpoint)
    except Interrupted:
        if not hasattr(model, "network_"):
            raise
        stopped = True
    model.set_params(device="auto")  # the model is not bound to where it was fitted
    fitted = {"best_epoch": model.best_epoch_, "fitted_with": model.settings_}
    with staged_directory(folder.path) as stage:
        RunFolder(stage).start({**record, **fitted}, device, {})
        model.save(stage / "model")
        write_text(stage / "metrics.csv", _history(model, frame))
        folder.remove_model()  # of the weights so far, after Ctrl-C
    if stopped:
        raise Interrupted(
            f"stopped after {model.n_iter_} epochs: {folder.path} has the weights of epoch "
            f"{model.best_epoch_} and can be used; go on with --resume"
        )


def _history(model: Any, frame: Any) -> str:
    """metrics.csv: losses by epoch; in the last row the collapse diagnostics of the weights that are kept."""
    some = frame.iloc[:: -(-len(frame) // _DIAGNOSED)]
    rows: list[dict[str, Any]] = []
    for epoch, losses in enumerate(model.history_, 1):
        named = {("val/loss" if k == "validation_loss" else f"train/{k}"): v for k, v in losses.items()}
        rows.append({"epoch": epoch, **named})
    rows[-1] |= collapse_summary(model.transform(some))
    return metrics_csv(rows)
