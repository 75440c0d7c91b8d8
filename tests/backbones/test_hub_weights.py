"""No weights of a hub's or a folder's encoder are unpickled, whatever their library asks torch for."""

import os
import pickle
from types import SimpleNamespace

import pytest
import torch

from probjepa.backbones import hub
from probjepa.errors import ArtifactError

FORCED = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


class Harmful:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def timm(path):
    """A stand-in that reads as timm up to 1.0.24 does."""
    return SimpleNamespace(create_model=lambda name, **_: torch.load(path, weights_only=False))


@pytest.mark.parametrize("setting", [None, "1"])
def test_timm_cannot_unpickle(setting, tmp_path, monkeypatch):
    mark, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    torch.save({"weight": Harmful(str(mark))}, path, pickle_module=pickle)
    monkeypatch.setattr(hub, "required", lambda package, extra: timm(path))
    for name in FORCED:
        monkeypatch.delenv(name, raising=False)
    if setting is not None:
        monkeypatch.setenv(FORCED[1], setting)
    with pytest.raises(ArtifactError, match="no model 'timm:local-dir:") as caught:
        hub.load_pretrained(f"timm:local-dir:{tmp_path}")
    assert not mark.exists() and "\n" not in str(caught.value)
    assert [os.environ.get(name) for name in FORCED] == [None, setting]
