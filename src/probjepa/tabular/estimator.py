"""What the table transformers share: parameters, settings, schema, fit, files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from torch import Tensor, nn

from probjepa import files, model_files
from probjepa.detectors import NotFittedError
from probjepa.distributions.base import full_precision
from probjepa.draws import forked
from probjepa.errors import ArtifactError, ConfigError, DataError, unknown_name, warn
from probjepa.tabular.fitting import FitLoop
from probjepa.tabular.frames import as_frame, has_names, other_columns
from probjepa.tabular.masks import check_share
from probjepa.tabular.presets import PRESETS
from probjepa.tabular.schema import EncodedTable, TableSchema
from probjepa.tabular.tokens import Layout, Rows
from probjepa.training.checkpoint import FitCheckpoint
from probjepa.training.device import resolve_device
from probjepa.training.interrupt import Interrupted, stop_on_signal
from probjepa.training.progress import ProgressBar
from probjepa.typed import check_settings, checked, types_of

# tokens encoded at a time outside the fit
_TOKENS = 65536
_MOST_HELD_OUT = 4096  # rows, in random order: a calibration of a few numbers a column needs no more
# parameters that say by themselves what they take
_OWN_CHECKS = (
    "preset",
    "embedding",
    "numeric_transform",
    "column_types",
    "random_state",
    "device",
    "verbose",
)


class TableTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A self-supervised encoder of tables as a scikit-learn transformer.

    A sub-class has a constructor with the parameters that ``VarTJEPA`` and ``TJEPA`` share, and its own; all
    it does is ``self._set_parameters(locals())``. Its ``_build(layout, settings)`` makes the network (see
    ``fitting.Network``), which has the size of a token as ``dim``, and its ``transform`` embeds a table. Once
    it is registered in ``TABLE_METHODS``, the command line trains it and ``probjepa.load`` loads it.

    A parameter that is None is the preset's (``PRESETS[preset]``).

    ``fit`` is deterministic given ``random_state`` and leaves the global generators as they were (CUDA's
    kernels may still add up in another order). Ctrl-C or SIGTERM during ``fit`` raises ``Interrupted``, so
    that a surrounding search stops as well; if an epoch was finished, the estimator is fitted: it has the
    best weights so far.
    """

    _build: Callable[[Layout, Mapping[str, Any]], nn.Module]
    _called_by_texts: bool | None = None  # the columns of the fit; older models do not say

    preset: str
    random_state: Any
    device: str
    verbose: bool
    column_types: Any
    numeric_transform: Any
    max_categories: int
    embedding: str
    precision: Any = "float32"  # of a class that has no such parameter
    network_: Any  # the sub-class's own, set by ``fit``

    # --- settings ---------------------------------------------------------------------------------------

    def _set_parameters(self, given: Mapping[str, Any]) -> None:
        """Keep the parameters of a constructor, whose ``locals()`` are given."""
        for name, value in given.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def _settings(self) -> dict[str, Any]:
        """Return the parameters that a preset has, with the preset's values for those that are None."""
        if str(self.preset) not in PRESETS:
            raise unknown_name("preset", str(self.preset), PRESETS)
        preset = PRESETS[self.preset]
        types = {name: of for name, of in types_of(type(self)).items() if name not in _OWN_CHECKS}
        given = {}
        for name, value in vars(self).items():
            if name in types:  # of a search over settings it may be NumPy's
                value = checked(name, _plain(value), types[name])
            if name in preset:
                given[name] = value
        settings = {name: preset[name] if value is None else value for name, value in given.items()}
        for name in ("context_share", "target_share"):
            check_share(name, settings[name])
        for name in ("max_epochs", "batch_size", "n_targets", "dim", "n_heads", "ff_dim"):
            if settings[name] < 1:
                raise ConfigError(f"{name} is {settings[name]!r}: use at least 1")
        for name in ("warmup_epochs", "weight_decay", "anneal_epochs"):
            if np.min(settings.get(name, 0)) < 0:
                raise ConfigError(f"{name} is {settings[name]!r}: use numbers from 0")
        if not settings["learning_rate"] > 0:
            raise ConfigError(f"learning_rate is {settings['learning_rate']!r}: use a positive number")
        if not 0 <= settings["dropout"] < 1:
            raise ConfigError(f"dropout is {settings['dropout']!r}: use 0 to below 1")
        self._check_embedding()
        # of a fit in float32 it is no setting: checkpoints from before there was a choice are of the same fit
        return settings if self.precision == "float32" else settings | {"precision": self.precision}

    def _check_embedding(self) -> None:
        if self.embedding not in ("flattened", "pooled"):
            raise ConfigError(f"embedding is {self.embedding!r}: use 'flattened' or 'pooled'")

    # --- fit --------------------------------------------------------------------------------------------

    @torch.inference_mode(False)  # gradients on, whatever the caller's mode
    def fit(self, X: Any, y: Any = None, *, checkpoint: str | Path | FitCheckpoint | None = None) -> Self:
        """Fit to a table (N, D): DataFrame (pandas, polars), pyarrow Table or array; labels are ignored.

        ``checkpoint`` is a file that the fit is written to after its epochs. If it is there already, the fit
        resumes from it, and its numbers are those of a fit that was never stopped; give ``random_state`` as
        an int. The file is not removed.

        Sets ``schema_``, ``settings_`` (with the preset's), ``network_``, ``history_`` (a dict of losses an
        epoch), ``best_epoch_``, ``n_iter_`` (epochs run), ``n_features_in_`` (columns) and, for a table
        with names, ``feature_names_in_``.

        Raises
        ------
        DataError
            for an empty table, Inf, or cells that are not of their column's type
        ConfigError
            for a setting out of its range
        ArtifactError
            if the checkpoint is damaged, is of another fit, or cannot be written
        Interrupted
            at Ctrl-C or SIGTERM; if an epoch was finished (and stands in ``checkpoint``), with the best
            weights so far in place
        """
        settings = self._settings()
        device = resolve_device(str(self.device))
        frame = as_frame(X)
        schema = TableSchema.infer(
            frame,
            column_types=self.column_types,
            numeric_transform=self.numeric_transform,
            max_categories=self.max_categories,
        )
        rows = _as_rows(schema.encode(frame))
        settings = self._settled(settings, schema.layout, len(rows))
        try:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        except ValueError as error:
            raise ConfigError(
                f"random_state: {files.first_line(error)}: use a whole number from 0"
            ) from error
        if checkpoint is not None and not isinstance(checkpoint, FitCheckpoint):
            checkpoint = FitCheckpoint(checkpoint)
        if checkpoint is not None:
            checkpoint.fingerprint = {
                "estimator": type(self).__name__,
                "data_sha256": _sha256(schema, rows),
                "random_state": state if isinstance(state := _plain(self.random_state), int) else seed,
                **json.loads(json.dumps(settings, default=str)),
            }
        with forked(device, seed), full_precision(torch.empty(0, device=device)):
            network = self._build(schema.layout, settings)
            self._prepare(network, rows)
            network = network.to(device)
            self._forget()
            loop = FitLoop(network, rows, settings, seed, device)
            stopped = ""
            try:
                with stop_on_signal() as stop, ProgressBar(bool(self.verbose)) as progress:
                    loop.run(stop, progress, checkpoint)
            except KeyboardInterrupt:
                stopped = f"the fit of this {type(self).__name__} was stopped"
        # weights that stand beside no checkpoint would look like those of a finished fit
        if loop.best_state is None or (stopped and checkpoint is not None and not checkpoint.holds):
            raise Interrupted(f"{stopped} before its first epoch ended: it is not fitted, fit again")
        try:
            self._keep(loop, schema)
        except BaseException:
            self._forget()  # half a fit would look like one
            raise
        self._set_columns(
            named=has_names(X), by_texts=all(isinstance(c, str) for c in getattr(X, "columns", ()))
        )
        if stopped:
            raise Interrupted(
                f"{stopped} in epoch {self.n_iter_ + 1}: it has the weights of epoch {self.best_epoch_} and "
                "can be used, or fitted again" + (" from its checkpoint" if checkpoint is not None else "")
            )
        return self

    def _forget(self) -> None:
        for name in [n for n in vars(self) if n.endswith("_") and not n.startswith("_")]:
            delattr(self, name)

    def _keep(self, loop: FitLoop, schema: TableSchema) -> None:
        """Take the best weights of a fit."""
        loop.network.load_state_dict(loop.best_state)
        self.network_ = loop.network.eval()
        self.schema_ = schema
        self._finish(loop)
        self.settings_ = loop.settings
        self.history_ = loop.history
        self.best_epoch_ = loop.best_epoch
        self.n_iter_ = len(loop.history)

    def _settled(self, settings: dict[str, Any], layout: Layout, n_rows: int) -> dict[str, Any]:
        """Settings of a fit to so many rows of such a table; most do not depend on them."""
        return settings

    def _prepare(self, network: Any, rows: Rows) -> None:
        """Set what is read off the rows before the fit; most have nothing."""

    def _finish(self, loop: FitLoop) -> None:
        """Fit what is fitted after the weights, to rows that these were not fitted to; most have nothing."""

    def _set_columns(self, *, named: bool, by_texts: bool | None) -> None:
        self.n_features_in_ = len(self.schema_.columns)
        self._called_by_texts = by_texts
        if named:
            self.feature_names_in_ = np.array(self.schema_.columns, dtype=object)

    # --- use --------------------------------------------------------------------------------------------

    def _check_is_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit(X) before you use it"
            )

    def _batches(self, X: Any) -> Iterator[Rows]:
        """Check and encode a table, and yield it in pieces on the network's device."""
        self._check_is_fitted()
        encoded = self.schema_.encode(self._by_position(X))
        _warn_of_new(self.schema_, encoded)
        yield from self._pieces(_as_rows(encoded))

    def _by_position(self, X: Any) -> Any:
        """A table as the fit's columns are called: by position where the fit had no names (as scikit-learn).

        Columns that are called as the fit's are, x0, x1, …, keep their names.
        """
        columns = self.schema_.columns
        frame = as_frame(X, columns)
        if hasattr(self, "feature_names_in_") or not other_columns(frame.columns, columns):
            return frame
        own = type(self).__name__
        if len(frame.columns) != len(columns):
            raise DataError(
                f"X has {len(frame.columns)} features, but {own} is expecting {len(columns)} features as "
                "input: give the fit's columns"
            )
        warn(
            f"X has feature names, but {own} was fitted without feature names: its columns are taken by "
            "position"
        )
        return frame.set_axis(list(columns), axis=1)

    def _pieces(self, rows: Rows) -> Iterator[Rows]:
        device = next(self.network_.parameters()).device
        size = rows_at_a_time(self.schema_)
        for start in range(0, len(rows), size):
            yield rows.at(slice(start, start + size), device)

    def _arranged(self, tokens: Tensor) -> npt.NDArray[np.float32]:
        """Tokens (B, D, d) to the embedding asked for, (B, D·d) or (B, d)."""
        self._check_embedding()
        flat = tokens.flatten(1) if self.embedding == "flattened" else tokens.mean(1)
        out: npt.NDArray[np.float32] = flat.float().cpu().numpy()
        return out

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Names of the embedding's columns: "age_0" … for "flattened", "vartjepa0" … for "pooled".

        ``input_features`` are the fit's columns; where the fit had no names, any names for them. Columns of a
        DataFrame that are called by numbers may be "x0", "x1" …, as scikit-learn calls them.

        Raises
        ------
        DataError
            if ``input_features`` are given and are not the fit's columns, or as many
        """
        self._check_is_fitted()
        columns = self.schema_.columns
        given = list(columns if input_features is None else input_features)
        # what scikit-learn's transformers call columns whose names are no texts
        by_texts = self._called_by_texts
        if by_texts is None:
            by_texts = not all(re.fullmatch(r"-?\d+", name) for name in columns)
        made_up = (
            not by_texts
            and len({*given}) == len(given)
            and all(re.fullmatch(r"x\d+", str(name)) for name in given)
        )
        if hasattr(self, "feature_names_in_") and given != list(columns) and not made_up:
            raise DataError("input_features is not equal to feature_names_in_: leave it out, or give those")
        if len(given) != len(columns):
            raise DataError(
                f"input_features should have length equal to number of features ({len(columns)}), "
                f"got {len(given)}: leave it out, or give as many"
            )
        called = dict(zip(columns, given, strict=True))
        dim = self.network_.dim
        if self.embedding == "pooled":
            names = [f"{type(self).__name__.lower()}{i}" for i in range(dim)]
        else:
            features = self.schema_.features
            own = [called[of.column] + (f".{of.part}" if of.part else "") for of in features]
            names = [f"{name}_{i}" for name in own for i in range(dim)]
        return np.array(names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        tags.non_deterministic = False
        return tags

    # --- files ------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return what config.json holds of a fitted estimator: parameters, settings, schema and history."""
        self._check_is_fitted()
        params = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        if not isinstance(params["random_state"], int | None):
            params["random_state"] = None  # a generator's state: of no use to a model that is fitted
        return {
            "estimator": type(self).__name__,
            "params": params,
            "settings": {name: _plain(value) for name, value in self.settings_.items()},
            "schema": self.schema_.to_json(),
            "named": hasattr(self, "feature_names_in_"),
            "called_by_texts": self._called_by_texts,
            "history": self.history_,
            "best_epoch": self.best_epoch_,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a fitted estimator with fresh weights from what ``config`` returned.

        Raises
        ------
        ConfigError, KeyError, TypeError
            for what describes none
        """
        types = types_of(cls)
        model = cls(**check_settings(config["params"], types))
        model.schema_ = TableSchema.from_json(config["schema"])
        with forked(torch.device("cpu")):
            settings = config["settings"].items()  # among them what a method fixes
            model.settings_ = {k: checked(k, v, types.get(k, Any)) for k, v in settings}
            model.network_ = model._build(model.schema_.layout, model.settings_)
        model.network_.to(resolve_device(str(model.device)))
        model.history_ = checked("history", config["history"], list[dict[str, float]])
        model.best_epoch_ = checked("best_epoch", config["best_epoch"], int)
        model.n_iter_ = len(model.history_)
        model._set_columns(named=config["named"], by_texts=config.get("called_by_texts"))
        return model

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Load a saved estimator, fitted; see ``probjepa.load``, which finds the class.

        Raises
        ------
        ArtifactError
            if it is damaged
        """
        try:
            model = cls.from_config(config)
            model_files.read_weights(folder, model.network_.load_state_dict)
        except files.DAMAGES as error:
            raise ArtifactError(
                f"{folder} is damaged ({files.first_line(error)}): save the model again"
            ) from error
        model.network_.eval()
        return model

    def save(self, directory: str | Path) -> None:
        """Write model.safetensors and config.json into a folder, each by a rename; no pickle.

        Raises
        ------
        NotFittedError
            before ``fit``
        ArtifactError
            if it cannot be written, or a parameter is no JSON
        """
        config = self.config()
        with files.staged_directory(Path(directory)) as stage:
            what = f"the parameters of this {type(self).__name__}"
            model_files.write_model(stage, config, self.network_.state_dict(), what)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Load what ``save`` wrote, fitted.

        Raises
        ------
        ArtifactError
            if there is none, it is damaged, another estimator's, or in another format
        """
        folder = Path(directory)
        if not (folder / files.CONFIG).is_file() or not (folder / model_files.WEIGHTS).is_file():
            raise ArtifactError(
                f"{folder} holds no {cls.__name__}: expected {files.CONFIG} and {model_files.WEIGHTS} there"
            )
        config = model_files.read_config(folder)
        found = config.get("estimator") or config.get("method")
        if found != cls.__name__:
            raise ArtifactError(f"{folder} holds a {found}, not a {cls.__name__}: load it with that")
        return cls.from_folder(folder, config)


def rows_at_a_time(schema: TableSchema) -> int:
    """Return how many rows of a table outside the fit are encoded together."""
    return max(1, _TOKENS // (schema.layout.n_features + 3))


def parted(loop: FitLoop, schema: TableSchema) -> tuple[Rows, Rows, Rows]:
    """Return the rows that a fit trained on, those that it held out, and these as new ones would be read.

    That is each by a schema of all others.
    """
    index = loop.validation[:_MOST_HELD_OUT]
    rows = EncodedTable(*(part.numpy() for part in loop.rows))
    left_out = _as_rows(schema.left_out(rows, index.numpy())).at(slice(None), loop.device)
    return loop.rows.at(loop.training, loop.device), loop.rows.at(index, loop.device), left_out


def _plain(value: Any) -> Any:
    """A parameter as JSON has it: of a search over settings it may be NumPy's."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, Mapping):  # of names of columns, which need be no texts
        return {str(name): _plain(of) for name, of in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _sha256(schema: TableSchema, rows: Rows) -> str:
    """Return the beginning of a hash of a table as it is read."""
    digest = hashlib.sha256(json.dumps(schema.to_json(), default=str, sort_keys=True).encode())
    for part in rows:
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]


def _as_rows(table: EncodedTable) -> Rows:
    return Rows(*(torch.from_numpy(part) for part in table))


def _warn_of_new(schema: TableSchema, encoded: EncodedTable) -> None:
    """Warn of columns of which most is new: of another form, unit or time, rather than other rows."""

    def most(shares: Mapping[str, float]) -> str:
        found = [f"{column!r} ({share:.0%})" for column, share in shares.items() if share > 0.5]
        return ", ".join(found[:5]) + (" and others" if len(found) > 5 else "")

    if len(encoded.codes) < 2:
        return
    if named := most(schema.unknown_shares(encoded)):
        warn(
            f"most values of {named} are none of the categories that the fit has kept, "
            "and are read as unknown: are they written as they were then? (Ids are best left out.)"
        )
    if named := most(schema.beyond_shares(encoded)):
        warn(
            f"most values of {named} are beyond the range of the fit, so that nearly every row looks odd: "
            "are they in its units? (Dates that go on are best left out, or made the time since another.)"
        )
