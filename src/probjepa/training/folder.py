"""RUN/: what a training run leaves behind, and what it was made of."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from probjepa.data.fingerprint import encoded_fingerprint, fingerprint
from probjepa.data.images import Images, StreamedImages
from probjepa.data.streams import Stream
from probjepa.errors import ArtifactError, ConfigError, short
from probjepa.files import is_free, write_text
from probjepa.provenance import hardware, versions
from probjepa.yaml_files import read_mapping

_NAMED = 99  # skipped files that config.yaml names
_RESULTS = ("model", "metrics.csv", "report.html")
_STATE = ("checkpoints", "tensorboard")
_VIEWS = ("views.f16", "views.json")  # of ``cache_views``: gigabytes


class RunFolder:
    """Paths inside ``out``."""

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out)
        self.config = self.path / "config.yaml"
        self.model = self.path / "model"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.metrics = self.path / "metrics.csv"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that is in the way; nothing is touched yet.

        Raises
        ------
        ArtifactError
            if it holds something and neither ``resume`` nor ``overwrite`` says what to do with it, if there
            is no run to resume or its model stands without a checkpoint, or if what would be overwritten is
            not a run
        ConfigError
            for both ``resume`` and ``overwrite``
        """
        if resume and overwrite:
            raise ConfigError("resume goes on and overwrite starts from scratch: pass one of them")
        if self.path.exists() and not self.path.is_dir():
            raise ArtifactError(f"{self.path} is a file: give out the name of a folder")
        is_run, free = self.config.is_file(), is_free(self.path)
        # a run that was killed before it had a config.yaml begins again
        if resume and not is_run and not (free and self.path.exists()):
            raise ArtifactError(f"{self.path} holds no run to resume: check the path or train without resume")
        if resume and self.model.exists() and not self.checkpoint.is_file():
            raise ArtifactError(
                f"{self.path} has a model and no checkpoint to go on from: give another out or pass overwrite"
            )
        if resume or free:
            return
        if not overwrite:
            raise ArtifactError(
                f"{self.path} exists and is not empty: give another out, or resume the run, or pass overwrite"
            )
        if not is_run:
            raise ArtifactError(f"{self.path} is no training run and is not overwritten: give another out")

    def start(self, settings: Mapping[str, Any], device: torch.device, options: Mapping[str, Any]) -> None:
        """Remove an older run and write config.yaml: data, settings, hardware, versions.

        At no moment do its checkpoints stand without a config.yaml: cut short, it can be overwritten again.
        """
        import yaml

        self._remove(_RESULTS)
        config = {
            **_recorded(settings),
            "options": _plain(options),
            "hardware": hardware(device),
            "versions": _plain(versions()),
        }
        write_text(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self._remove(_STATE if "cache_views" in settings else (*_STATE, *_VIEWS))

    def streamed(self, asked: bool | Literal["auto"]) -> bool | Literal["auto"]:
        """Return whether to stream shards: as asked, but in the place of "auto" as the run here did."""
        if asked != "auto" or not self.config.is_file():
            return asked
        return "stream_buffer" in self._recorded()

    def check_val(self, val: Any) -> None:
        """Raise ConfigError if the run here was looked at on held-out images, and this part of it is not."""
        was = self._recorded().get("val")
        if was is not None and val is None:
            raise ConfigError(
                f"the run in {self.path} has held-out images, '{short(was)}': give them again as val"
            )

    def _recorded(self) -> Mapping[str, Any]:
        return read_mapping(self.config)

    def remove_model(self) -> None:
        """Remove the saved model, where there is one."""
        self._remove(("model",))

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:  # and nothing else: the user may keep notes in there
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def _recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings as config.yaml has them: those of the method in a group."""
    prefix = "method."
    own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    others = {k: v for k, v in settings.items() if not k.startswith("method")}
    record: dict[str, Any] = _plain({"method": {"name": settings["method"], **own}, **others})
    return record


def _plain(value: Any) -> Any:
    """Return what YAML can hold; an object becomes the name of its type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        return [_plain(item) for item in value]
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, np.generic):  # among them float64, which is a float
        value = value.item()
    return value if isinstance(value, (int, float, type(None))) else f"<{type(value).__qualname__}>"


def weights_fingerprint(module: nn.Module) -> str:
    """Return a SHA-256 of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_fingerprint(images: Images | Stream, name: str = "data", most: int | None = None) -> dict[str, Any]:
    """Return what tells a set from another.

    The number of images; "_sha256", of their ids, shape and the pixels of sixteen; and a hash of all of them:
    "_pixels" of a set in memory, "_files" of a streamed one, whose encoded bytes are read up to ``most``.
    """
    if isinstance(images, Stream):
        return images.fingerprint()
    found = {f"{name}_images": len(images), f"{name}_sha256": fingerprint(images, sample=16)[:16]}
    if isinstance(images, StreamedImages):
        digest, rows = encoded_fingerprint(images, most)
        return found | {f"{name}_files": f"{digest[:16]} of {rows} images"}
    return found | {f"{name}_pixels": fingerprint(images)[:16]}


def left_out(images: Images | Stream, name: str = "data") -> dict[str, list[str]]:
    """Return a line for each of the first files that were left out of a set, if there are some."""
    lines = list(images.skipped[:_NAMED])
    if (more := len(images.skipped) - len(lines)) > 0:
        lines.append(f"and {more:,} more")
    return {f"{name}_skipped": lines} if lines else {}


def metrics_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return metrics.csv: a row an epoch; what a row has no value of is empty, "seconds" come last."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted(columns, key=lambda name: name == "seconds"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
