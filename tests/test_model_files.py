"""Checkpoints are read as they were written, or refused."""

import pytest
import torch

from probjepa import model_files
from probjepa.errors import ArtifactError


def test_every_damaged_byte_of_a_checkpoint_is_seen(tmp_path):
    path = tmp_path / "last.ckpt"
    model_files.write_checkpoint(path, {"weight": torch.arange(50.0), "names": ["a"]})
    whole = path.read_bytes()
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.arange(50.0))
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match="damaged"):
            model_files.read_checkpoint(path, "")
    path.write_bytes(whole)
    assert model_files.read_checkpoint(path, "")["names"] == ["a"]
