"""Graphs for other runtimes: they say what PyTorch says, on any batch, or are not written."""

import json
import logging
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Distribution

import probjepa as pj
from probjepa import exporting as module
from probjepa import provenance
from probjepa.cli import run
from probjepa.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from saved_models import small

CONVNET = {"backbone_options": {"widths": (8, 32)}, "image_size": 8, "channels": 1}
VIT = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}


def hub_encoder(folder):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    torch.manual_seed(7)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=4, initializer_range=0.4,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 21}, "resample": 3,
        "crop_size": {"height": 16, "width": 16}, "do_center_crop": True, "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return pj.open_encoder(f"hf:{folder}")


def ijepa(head="gaussian", folder=None):
    return pj.IJEPA(
        channels=1, image_size=16, backbone_options=VIT, predictor_width=16, predictor_depth=1, head=head,
        seed=0, score_masks=1,
    )  # fmt: skip


MODELS = {
    "vje": lambda folder: small(),
    "vje-standard": lambda folder: small(likelihood="standard", df=3.0),
    "simsiam": lambda folder: pj.SimSiam("convnet", seed=0, **CONVNET),
    "vi-simsiam": lambda folder: pj.VISimSiam(
        "convnet", projector_dim=16, predictor_dim=8, seed=0, **CONVNET
    ),
    "i-jepa": lambda folder: ijepa(),
    **{
        f"i-jepa-{head}": partial(ijepa, head)
        for head in ("mdn", "autoregressive", "realnvp", "deterministic")
    },
    "var-jepa": lambda folder: pj.VarJEPA(x_dim=6, y_dim=5, hidden=(8,), seed=0),
    "hub": hub_encoder,
    "module": lambda folder: pj.open_encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), image_size=8),
}
CASES = [
    ("vje", "likelihood", "onnx"), ("simsiam", "embed", "pt2"), ("vi-simsiam", "likelihood", "pt2"),
    ("i-jepa", "likelihood", "pt2"), ("i-jepa", "embed", "onnx"), ("var-jepa", "posterior", "onnx"),
    ("hub", "embed", "onnx"), ("module", "embed", "pt2"),
]  # fmt: skip
NIGHTLY = [
    ("vje", "embed", "onnx"), ("vje", "posterior", "onnx"), ("vje", "likelihood", "pt2"),
    ("vje-standard", "likelihood", "onnx"), ("simsiam", "embed", "onnx"),
    ("vi-simsiam", "posterior", "onnx"), ("vi-simsiam", "likelihood", "onnx"),
    ("i-jepa", "likelihood", "onnx"), ("i-jepa", "posterior", "onnx"), ("var-jepa", "embed", "pt2"),
    ("hub", "embed", "pt2"), ("module", "embed", "onnx"),
    *[(f"i-jepa-{head}", "likelihood", kind)
      for head in ("mdn", "autoregressive", "realnvp", "deterministic") for kind in ("onnx", "pt2")],
]  # fmt: skip


UNEXPORTED = {
    "flow_matching": ("posterior", "likelihood"), "diffusion": ("posterior", "likelihood"),
    "realnvp": ("posterior",), "autoregressive": ("posterior",),
}  # fmt: skip


def runner(path):
    if path.suffix == ".pt2":
        graph = torch.export.load(path).module()
        return lambda inputs: [out.numpy() for out in graph(inputs)]  # they carry no gradients
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == ["inputs"]
    assert session.get_inputs()[0].shape[0] == "batch"
    return lambda inputs: session.run(None, {"inputs": inputs.numpy()})


def wanted(model, what, inputs):
    if what == "embed":
        return [model.embed(inputs)]
    if what == "likelihood":
        return [model.score_samples(inputs)]
    posterior = model.posterior(inputs)
    return [posterior.mean, posterior.variance]


@pytest.mark.parametrize(
    ("name", "what", "kind"), [*CASES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in NIGHTLY)]
)
def test_a_graph_says_what_pytorch_says(tmp_path, name, what, kind):
    """On 30 random batches of 1 to 9 inputs; the model, the generators and the process stay as they were."""
    model = MODELS[name](folder=tmp_path / "hub").train()
    state = torch.get_rng_state()
    parts = [(part.training, len(part._forward_hooks)) for part in model.modules()]
    path = tmp_path / f"model.{kind}"
    assert pj.export(model, path, what=what) == path
    assert [item.name for item in tmp_path.iterdir() if item.name != "hub"] == [path.name]
    assert torch.equal(torch.get_rng_state(), state)
    assert [(part.training, len(part._forward_hooks)) for part in model.modules()] == parts
    assert Distribution._validate_args and logging.getLogger("torch.onnx").level == 0
    graph, generator = runner(path), torch.Generator().manual_seed(5)
    for number in range(30):
        inputs = model.example_batch(number % 9 + 1, generator)
        expected = wanted(model, what, inputs)
        found = graph(inputs)
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


class Branching(nn.Module):
    """An encoder that looks at its numbers."""

    def forward(self, x):
        return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))


class Counting(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).reshape(len(x), 3)


class Noisy(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + torch.randn(x.shape[0], 3)


class Lost(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * float("nan")


@pytest.mark.parametrize(
    ("make", "what", "says"),
    [
        (
            lambda: pj.open_encoder(nn.Sequential(Branching()), image_size=8),
            "embed",
            r"'encoder.0' \(Branching\)",
        ),
        (lambda: pj.open_encoder(Noisy(), image_size=8), "embed", "draws random numbers"),
        (lambda: pj.open_encoder(nn.Sequential(Counting()), image_size=8), "embed", "x.shape"),
        (nn.Flatten, "embed", "open it first, open_encoder"),
        (lambda: pj.SimSiam("convnet", **CONVNET), "posterior", "has no posterior"),
        (lambda: pj.SimSiam("convnet", **CONVNET), "likelihood", "has no likelihood"),
        (lambda: pj.open_encoder(Lost(), image_size=8), "embed", "NaN or Inf: check its weights"),
        (lambda: pj.VarJEPA(), "likelihood", "random draws"),
        *[
            (
                partial(ijepa, head),
                what,
                f"^{what} of an i-jepa with the head '{head}' cannot be exported: it",
            )
            for head, refused in UNEXPORTED.items()
            for what in refused
        ],
        (lambda: pj.SimSiam("convnet", **CONVNET), "embd", "did you mean 'embed'"),
    ],
)
def test_what_no_graph_holds_is_one_line(tmp_path, make, what, says):
    with pytest.raises((ConfigError, DataError), match=says) as caught:
        pj.export(make(), tmp_path / "x.pt2", what=what)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_refusal_is_without_torchs_log(tmp_path, capfd, monkeypatch):
    model = ijepa("flow_matching")
    monkeypatch.setattr(type(model.head), "exported", ("likelihood",))
    with pytest.raises(ConfigError, match="cannot be exported: it holds what no graph does"):
        pj.export(model, tmp_path / "x.pt2", what="likelihood")
    assert capfd.readouterr() == ("", "")


def test_a_file_that_disagrees_is_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_expected", lambda model, what, inputs: [model.embed(inputs) * 1.001])
    with pytest.raises(ArtifactError, match="embeddings differs"):
        pj.export(small(), tmp_path / "x.pt2")
    monkeypatch.setattr(module, "_expected", lambda model, what, inputs: [model.embed(inputs)[:, 1:]])
    with pytest.raises(ArtifactError, match=r"embeddings of \d+ inputs is \(\d+, \d+\), and PyTorch's"):
        pj.export(small(), tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_onnx_computes_in_float32_whatever_the_weights_are(tmp_path, kind):
    """Such models were refused, since ONNX has no runtime of their types or rounds otherwise."""
    model = pj.SimSiam("convnet", seed=0, **CONVNET).to(kind).eval()
    graph = runner(pj.export(model, tmp_path / "x.onnx"))
    assert model.dtype == kind
    inputs = model.example_batch(5, torch.Generator().manual_seed(3))
    found, expected = graph(inputs)[0], model.float().embed(inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("df", [1e7, float("inf")])
def test_onnx_has_a_log1p_of_small_numbers(tmp_path, df):
    """ONNX writes it as log(1 + x): a likelihood near the Gaussian's was refused."""
    model = small(df=df).eval()
    graph = runner(pj.export(model, tmp_path / "x.onnx", what="likelihood"))
    inputs = model.example_batch(5, torch.Generator().manual_seed(3))
    np.testing.assert_allclose(graph(inputs)[0], model.score_samples(inputs), rtol=1e-5)
    x = torch.tensor([-0.9, -0.5, -1e-6, 0.0, 1e-9, 0.3, 0.5, 1e3, 1e30, float("inf")])
    with module._Single():
        found = torch.log1p(x)
    torch.testing.assert_close(found.double(), torch.log1p(x.double()), rtol=1e-6, atol=0)


def test_a_model_that_encodes_in_bf16_is_exported(tmp_path, monkeypatch):
    """It was compared with its embeddings in bf16, and refused."""
    monkeypatch.setattr(provenance, "cpu_flags", lambda: ["avx2", "avx512_bf16"])
    model = pj.SimSiam("convnet", seed=0, **CONVNET)
    model.precision = "bf16"
    assert pj.export(model, tmp_path / "x.pt2").is_file() and model.precision == "bf16"


def test_a_traced_module_is_exported_and_a_scripted_one_is_one_line(tmp_path):
    """Its hooks, which TorchScript refuses, were a traceback."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    model = pj.open_encoder(torch.jit.trace(plain, torch.rand(2, 3, 8, 8)), image_size=8)
    inputs = model.example_batch(5, torch.Generator().manual_seed(3))
    graph = runner(pj.export(model, tmp_path / "x.pt2"))
    np.testing.assert_allclose(graph(inputs)[0], model.embed(inputs), atol=1e-5)
    with pytest.raises(ConfigError, match="cannot be exported") as caught:
        pj.export(pj.open_encoder(torch.jit.script(plain), image_size=8), tmp_path / "y.pt2")
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["x.pt2"]


FULL_DISK = """
import resource, signal, sys
from probjepa.cli import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(run(["export", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_full_disk_is_one_line(tmp_path, suffix):
    pytest.importorskip("onnxscript")
    small().save_pretrained(tmp_path / "model")
    out = tmp_path / f"x.{suffix}"
    words = [sys.executable, "-c", FULL_DISK, str(tmp_path / "model"), str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"probjepa\[onnx\]"):
        pj.export(small(), tmp_path / "x.onnx")


def test_weights_beyond_one_file_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 100)
    with pytest.raises(ConfigError, match=r"write a \.pt2"):
        pj.export(small(), tmp_path / "x.onnx")


def test_the_command(tmp_path, capsys):
    small().save_pretrained(tmp_path / "model")
    asked = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "x.pt2"), "--what", "likelihood"]
    assert run(asked) == 0 and (tmp_path / "x.pt2").is_file()
    assert "likelihood" in capsys.readouterr().out
    assert run(asked) == 2 and "exists already" in capsys.readouterr().err
    assert run([*asked, "--overwrite"]) == 0
    assert run([*asked[:2], "--out", str(tmp_path / "x.pt")]) == 2
    assert "neither" in capsys.readouterr().err
    pj.VarJEPA(x_dim=6, y_dim=5, hidden=(8,)).save_pretrained(tmp_path / "var")
    assert run(["export", str(tmp_path / "var"), "--out", str(tmp_path / "v.pt2")]) == 0
