"""What the tests of detectors share."""

import numpy as np
import pytest


@pytest.fixture
def mapped(tmp_path):
    def mapped(rows):
        file = tmp_path / f"{rows.dtype}-{len(rows)}.npy"
        np.save(file, rows)
        return np.load(file, mmap_mode="r")

    return mapped
