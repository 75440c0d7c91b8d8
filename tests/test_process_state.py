"""No public entry leaves a trace in the process: its generators, threads, types, filters and hooks."""

import json
import subprocess
import sys

import pytest

# each runs in one fresh process, in this order, so that each library is imported for the first time in some
ENTRIES = {
    "make": "m = pj.VJE('convnet', channels=1, image_size=16, seed=0)",
    "open_images": "digits = pj.open_images('sklearn:digits', size=16)",
    "open a folder": "folder = pj.open_images(root, size=16)",
    "fit": "m = pj.fit(m, digits.subset(range(64)), epochs=1, batch_size=32, progress=False)",
    "compiled fit": (
        "import functools; whole = torch.compile; torch.compile = functools.partial(whole, backend='eager')\n"
        "pj.fit(m, digits.subset(range(64)), epochs=1, batch_size=32, progress=False, compile=True)\n"
        "torch.compile = whole"
    ),
    "save": "m.save_pretrained(root + '/model')",
    "load": "m = pj.load(root + '/model')",
    "embed": "h = m.embed(digits.images[:64])",
    "score_samples": "m.score_samples(digits.images[:8])",
    "posterior": "m.posterior(digits.images[:8]).mean",
    "uncertainty": "m.uncertainty(digits.images[:8])",
    "score_set": "from probjepa.scores import score_set; score_set(m, digits.subset(range(8)), 'likelihood')",
    "jepa_score": "pj.jepa_score(m, digits.images[:2])",
    "transforms": "pj.jepa_score(line, torch.ones(2, 4), transforms=lambda x: x)",
    "reinitialised": "m.reinitialised(3)",
    "jacobian_spectrum": "pj.jacobian_spectrum(m, digits.images[:2])",
    "KNN": "from probjepa.detectors import KNN; KNN(k=3).fit(h).score_samples(h)",
    "Mahalanobis": "pj.detectors.Mahalanobis(shrinkage='ledoit-wolf').fit(h).score_samples(h)",
    "GaussianMixture": "pj.detectors.GaussianMixture(2).fit(h).score_samples(h)",
    "knn_accuracy": "pj.metrics.knn_accuracy(h, digits.labels[:64], h, digits.labels[:64])",
    "linear_probe": "pj.metrics.linear_probe(h, digits.labels[:64], h, digits.labels[:64])",
    "ood_metrics": "pj.metrics.ood_metrics(h[:32, 0], h[32:, 0])",
    "evaluate": (
        "from probjepa.evaluation import evaluate\n"
        "evaluate(m, digits.subset(range(200)), digits.subset(range(200, 300)), {}, n_bootstrap=5)"
    ),
    "table fit": "t = pj.VarTJEPA(max_epochs=1, dim=8, n_layers=1, n_heads=2, ff_dim=8, device='cpu', random_state=0).fit(frame)",
    "table transform": "t.transform(frame)",
    "table score_samples": "t.score_samples(frame)",
    "table uncertainty": "t.uncertainty(frame)",
    "table save": "t.save(root + '/table')",
    "table load": "pj.load(root + '/table')",
    "i-jepa": (
        "i = pj.IJEPA(channels=1, image_size=16, predictor_width=16, backbone_options="
        "{'patch_size': 4, 'width': 16, 'depth': 1, 'heads': 2}, seed=0); i.score_samples(digits.images[:4])"
    ),
    "i-jepa's predictions": (
        "from probjepa.evaluation.predictive import evaluate_predictions\n"
        "evaluate_predictions(i, digits.subset(range(8)))"
    ),
    "export": "from probjepa.exporting import export; export(m, root + '/m.pt2')",
    "command embed": (
        "from probjepa.cli import run\n"
        "assert run(['embed', root + '/model', '--data', root, '--out', root + '/e.parquet', '-q']) == 0"
    ),
    "command curate": (
        "assert run(['curate', root + '/model', '--data', root, '--out', root + '/curated', '-q']) == 0"
    ),
}
SCRIPT = """
import json, logging, os, random, signal, sys, warnings
import numpy as np
import torch
import torch.nn.modules.module as modules
import probjepa as pj
from PIL import Image

seeded = []
torch.cuda.manual_seed_all = seeded.append  # torch.manual_seed calls it, and no fork restores every GPU

def state():
    cuda = torch.backends.cudnn
    return {
        "every GPU": len(seeded),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "precision": (torch.get_float32_matmul_precision(), cuda.benchmark, cuda.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "numpy errors": np.geterr(),
        "hooks": [len(hooks) for name, hooks in vars(modules).items() if name.startswith("_global_")
                  and hasattr(hooks, "__len__")],
        "excepthook": (sys.excepthook, sys.unraisablehook),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.root.level, list(logging.root.handlers)),
        "checks of distributions": torch.distributions.Distribution._validate_args,
        "pixels": Image.MAX_IMAGE_PIXELS,
        "folder": os.getcwd(),
    }

random.seed(1), np.random.seed(1), torch.manual_seed(1)
assert seeded == [1]
line = torch.nn.Linear(4, 3)
root = sys.argv[1]
drawn = np.random.default_rng(0)
import pandas as pd
frame = pd.DataFrame({"a": drawn.normal(size=60), "b": list("xyz") * 20})
for row in range(3):
    Image.fromarray(drawn.integers(0, 256, (16, 16), dtype=np.uint8)).save(f"{root}/{row}.png")
moved = {}
for name, code in json.loads(sys.argv[2]).items():
    before = state()
    try:
        exec(code, globals())
    except Exception as error:
        moved[name] = repr(error)
        continue
    after = state()
    moved[name] = [key for key in before if before[key] != after[key]]
print("moved", json.dumps(moved))
"""


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("state")), json.dumps(ENTRIES)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.split("moved ")[-1])


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_leaves_the_process_as_it_was(moved, entry):
    assert moved[entry] == []
