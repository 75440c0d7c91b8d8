"""The commands on tables: Var-T-JEPA, T-JEPA, and what other packages register."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probjepa.cli.kind import Columns, Scored, write_scores
from probjepa.cli.options import Evaluating, Scoring, Shared, Training
from probjepa.cli.settings import given_settings
from probjepa.errors import ConfigError, DataError, counted
from probjepa.launch import started
from probjepa.report.training import training_report
from probjepa.tabular import TABLE_METHODS
from probjepa.tabular.described import described, new_lines
from probjepa.tabular.files import read_table, recorded_row_names
from probjepa.tabular.frames import named
from probjepa.tabular.overlap import refuse_fitted, shared_by_chance, table_sha256
from probjepa.tabular.rows import check_ids, embedded_rows, id_column, indexed, named_rows
from probjepa.tabular.runs import fit_run
from probjepa.tabular.schema import TableSchema
from probjepa.tabular.text_files import recorded_text, text_for, warn_of_words
from probjepa.tabular.traps import refuse_traps, warn_of_codes
from probjepa.terminal import say
from probjepa.training.device import resolve_device
from probjepa.training.folder import RunFolder
from probjepa.training.interrupt import Interrupted
from probjepa.typed import check_settings, checked, types_of

if TYPE_CHECKING:
    from probjepa.data.rows import TableWriter

# options of training, and what the estimators call them
SETTINGS = {"epochs": "max_epochs", "seed": "random_state", "device": "device", "target": "target"}


class TableModel:
    """A fitted estimator of tables, and the target that its run left out."""

    unit = "row"

    def __init__(self, source: str, shared: Shared) -> None:
        from probjepa.loading import load, row_names_of, target_of, text_of

        refuse_of_images(shared)
        device = resolve_device(shared.device)
        self.source, self.shared = source, shared
        self.model = load(source)
        self.model.network_.to(device)
        self.columns: Sequence[str] = self.model.schema_.columns
        self.target = target_of(source)
        self._text = text_of(source)
        self._ids = row_names_of(source) if shared.ids is None else (shared.ids,)

    @staticmethod
    def train(method: str, data: str, options: Training) -> str:
        """Fit a table method, leaving the target and a column of row names out, and write the run folder.

        Raises
        ------
        ConfigError, DataError, ArtifactError
            for an unknown setting, a table that cannot be used, or a folder that is in the way
        Interrupted
            after Ctrl-C
        """
        given_of_images = ("val", "convert", "labels", "cache-views")
        asked = {f"--{name}": getattr(options, name.replace("-", "_")) for name in given_of_images}
        _refuse(asked | {"--on-error": options.on_error != "raise"})
        if started():
            raise ConfigError(f"{method} trains in one process: start it without torchrun or srun's tasks")
        folder = RunFolder(options.out)
        folder.check(resume=options.resume, overwrite=options.overwrite)
        given = given_settings(method, options, SETTINGS)
        target = checked("target", given.pop("target", None), str | None)
        kind = TABLE_METHODS[method]
        types = {name: of for name, of in types_of(kind).items() if name != "verbose"}
        given = check_settings({"random_state": 0} | given, types)
        config = options.config or (folder.config if options.resume else None)
        text = text_for(data, options.text, {} if config is None else recorded_text(config))
        run = () if config is None else recorded_row_names(config)
        ids = run if options.ids is None else (options.ids,)
        by_name = next((name for name in ids if name.lower() != "id"), None)
        coded = [name for name, of in (given.get("column_types") or {}).items() if of == "categorical"]
        frame = read_table(data, target, codes=coded, ids=ids, **text)
        check_ids(frame, () if target is None else (target,), by_name, data)
        if target is not None and target not in frame.columns:
            raise DataError(
                f"'{data}' has no column '{target}' to leave out (columns: {named(list(frame.columns))})"
            )
        names = id_column(frame, () if target is None else (target,), ids)
        left_out = [name for name in (target, names) if name is not None]
        features = frame.drop(columns=left_out)
        about = {
            "data": data,
            "data_rows": len(features),
            "target": target,
            "row_names": names,
            "text": text or None,
            "data_sha256": table_sha256(features)[:16],
        }
        model = kind(**given, verbose=not options.quiet)
        signs = {name: text[name] for name in ("decimal", "thousands") if name in text}
        refuse_traps(features, data, model.column_types, **signs)
        read = features if target is None else features.assign(**{target: frame[target]})
        warn_of_words(data, read, text, model.column_types or {})
        warn_of_codes(data, features, text, model.column_types or {})
        if not options.quiet:
            of_schema = ("column_types", "numeric_transform", "max_categories")
            schema = TableSchema.infer(features, **{name: getattr(model, name) for name in of_schema})
            for line in described(schema, features):
                say(line)
        try:
            fit_run(method, model, features, folder, about, resume=options.resume)
        except Interrupted:
            if hasattr(model, "network_"):
                training_report(options.out)
            raise
        training_report(options.out)
        said = f", without {' and '.join(left_out)}" if left_out else ""
        return f"{counted(len(features), 'row')}{said}"

    def read(self, data: str) -> tuple[Any, Columns]:
        """A table's features, and the columns that name its rows: "id", "label" if the target is there."""
        frame = self._table(data, self.target)
        check_ids(frame, [*self.columns, str(self.target)], self.shared.ids, data)
        return named_rows(frame, self.columns, self.target, ids=self._ids)

    def _held(self, data: str | None) -> Any:
        """The features of a table whose rows need no names; None where there is none."""
        if data is None:
            return None
        return named_rows(self._table(data, self.target), self.columns, self.target, ids=self._ids)[0]

    def _table(self, path: str, target: str | None) -> Any:
        text = text_for(path, self.shared.text, self._text)
        return read_table(path, target, self.columns, self.model.schema_.texts, self._ids, **text)

    def _say_new(self, features: Any) -> None:
        if not self.shared.quiet:
            for line in new_lines(self.model.schema_, features):
                say(line)

    def _say_shared(self, among: int, rows: int) -> None:
        if among and not self.shared.quiet:
            say(f"{among} of {counted(rows, 'row')} equal a calibration row, as few values may by chance")

    def embed(self, data: str) -> tuple[int, Iterator[Columns]]:
        """Return id, label where the run's target is there, embedding, and uncertainty where there is one."""
        features, columns = self.read(data)
        self._say_new(features)
        return len(features), iter([columns | embedded_rows(self.model, features)])

    def score(self, data: str, out: Path, options: Scoring) -> Scored:
        """Write id, label, score and decisions; of the likelihood, also each cell's surprise."""
        from probjepa.loading import fitted_to
        from probjepa.scores import SetScorer
        from probjepa.scores.sets import check_score

        _refuse({"--size": options.size})
        rule = options.rule
        check_score(self.model, options.score, options.reference, options.reference_size)
        features, columns = self.read(data)
        self._say_new(features)
        calibration = self._held(options.calibration)
        if calibration is not None:
            rule.check(len(calibration))
            refuse_fitted(calibration, fitted_to(self.source), str(options.calibration))
            dated = self.model.schema_.dated
            among = shared_by_chance(dated(features), dated(calibration), "calibration", "rows to score")
            self._say_shared(among, len(features))
        reference = self._held(options.reference)
        scorer = SetScorer(
            self.model,
            options.score,
            reference=reference,
            reference_size=options.reference_size,
            seed=options.seed,
        )
        return write_scores(self, scorer, features, calibration, rule, columns, out)

    def note(self, table: TableWriter) -> None:
        """Say nothing: rows are in float32."""

    def evaluate(self, train: str, test: str, out: Path, options: Evaluating) -> None:
        """Write the figures of the classifiers that the embedding feeds, with their page."""
        from probjepa.evaluation import evaluate_table
        from probjepa.report.evaluation import table_report
        from probjepa.report.summary import print_table_summary, write_pages

        given = {
            name: getattr(options, name) for name in ("ood", "openood", "reencode", "jepa", "reference_size")
        } | {"bootstrap": options.bootstrap != Evaluating.bootstrap}
        _refuse({f"--{name.replace('_', '-')}": value for name, value in given.items()})
        target = self.target if options.target is None else options.target
        if target is None:
            raise ConfigError("an evaluation on tables needs --target, the column of classes to predict")
        if target in self.columns:
            raise ConfigError(
                f"the model was fitted with the column '{target}': train it without, probjepa train … "
                f"--target {target}"
            )

        def opened(path: str) -> Any:
            return indexed(self._table(path, target), [*self.columns, target], self._ids)

        calibration = None if options.calibration is None else opened(options.calibration)
        result = evaluate_table(
            self.model, opened(train), opened(test), target, seeds=(options.seed,),
            calibration=calibration, progress=not self.shared.quiet,
            names=(Path(train).name, Path(test).name),
        )  # fmt: skip
        write_pages(result, out, table_report(result.metrics, result.arrays))
        print_table_summary(result.metrics)


def refuse_of_images(shared: Shared, size: int | None = None, *, shards: bool = False) -> None:
    """Raise ConfigError if an option of a trained model is set that only images have.

    ``shards`` of tables may be left out where they are broken.
    """
    encoded = shared.precision != "float32"
    broken = shared.on_error != "raise" and not shards
    _refuse(
        {
            "--labels": shared.labels, "--convert": shared.convert,
            "--on-error": broken, "--precision": encoded, "--size": size,
        }
    )  # fmt: skip


def _refuse(given: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option that only images have is set; ``given``: option → whether it is."""
    named = [name for name, value in given.items() if value]
    if named:
        raise ConfigError(f"{', '.join(named)}: not for tables, leave it out")
