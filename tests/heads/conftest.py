"""Every test of the heads begins at one state of torch's generator: its weights do not depend on the order."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
