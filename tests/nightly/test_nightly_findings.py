"""Every table of the papers on digits: what is claimed to be stable over seeds is.

PROBJEPA_CELLS names a folder in which finished cells are kept from one run to the next.
"""

import json
import os
from pathlib import Path

import pytest

from probjepa.registry import EXPERIMENTS

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    kept = os.environ.get("PROBJEPA_CELLS")
    return Path(kept) if kept else tmp_path_factory.mktemp("cells")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_findings(name, cells, tmp_path):
    out = tmp_path / "out"
    EXPERIMENTS[name](
        out,
        data_root=None,
        budget="quick",
        cells=cells,
        seed=0,
        overwrite=False,
        progress=True,
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert (out / "report.html").stat().st_size > 10_000
    findings = [f for table in metrics.get("tables", {}).values() for f in table["findings"]]
    for finding in findings:
        if finding["asserted"]:
            assert finding["holds"] == finding["judged"] == 3, finding
