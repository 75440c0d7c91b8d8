"""What surrounds derivatives: precision, gradients and modes inside, all as it was afterwards; what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probjepa
from probjepa.data import open_images
from probjepa.errors import ConfigError, DataError
from probjepa.jacobian import encoders
from probjepa.jacobian.encoders import (
    Encoder,
    as_encoder,
    embeddings,
    exact_gradients,
    refuse_batch_dependence,
)


def switches() -> list[tuple[Any, str, Any]]:
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has the older precision switches only")
    return encoders._precision_switches()


def test_each_precision_is_full_inside_and_what_it_was_afterwards() -> None:
    owners = [owner for owner, _, _ in switches()]
    backends: Any = torch.backends
    expected = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    assert [id(owner) for owner in owners] == [id(owner) for owner in expected]
    before = [owner.fp32_precision for owner in owners]
    chosen = ["tf32", "tf32", "bf16", "bf16"]
    try:
        for owner, precision in zip(owners, chosen, strict=True):
            owner.fp32_precision = precision
        with exact_gradients(as_encoder(torch.tanh)):
            assert [owner.fp32_precision for owner in owners] == 4 * ["ieee"]
        assert [owner.fp32_precision for owner in owners] == chosen
        with pytest.raises(ValueError, match="mine"), exact_gradients(as_encoder(torch.tanh)):
            raise ValueError("mine")
        assert [owner.fp32_precision for owner in owners] == chosen
    finally:
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision


def test_the_switches_of_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, cudnn = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=False)
    older = SimpleNamespace(cuda=SimpleNamespace(matmul=matmul), cudnn=cudnn)
    monkeypatch.setattr(torch, "backends", older)
    found = encoders._precision_switches()
    monkeypatch.undo()
    monkeypatch.setattr(encoders, "_precision_switches", lambda: found)
    with exact_gradients(as_encoder(torch.tanh)):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, False)


def test_autocast_is_off_inside_of_every_device_that_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    f = nn.Linear(3, 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    try:
        for kind, on in (("cuda", True), ("cpu", True)):
            torch.set_autocast_enabled(kind, on)
        for encoder in (as_encoder(f), as_encoder(torch.tanh)):
            with exact_gradients(encoder):
                assert not torch.is_autocast_enabled("cuda")
                assert not torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cuda")
            assert torch.is_autocast_enabled("cpu")
    finally:
        for kind in ("cuda", "cpu"):
            torch.set_autocast_enabled(kind, False)


def test_gradients_are_of_the_input_alone() -> None:
    f = nn.Linear(3, 2)
    f.bias.requires_grad_(False)
    with torch.inference_mode():
        with exact_gradients(as_encoder(f)):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert [p.requires_grad for p in f.parameters()] == [False, False]
        assert torch.is_inference_mode_enabled()
    assert [p.requires_grad for p in f.parameters()] == [True, False]


class Wavering(nn.Module):
    """Another output at each call, by ``step`` of the largest."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.cat([100 * torch.ones_like(x[:, :1]), x + 100 * self.calls * self.step], 1)


def test_runs_may_differ_by_rounding_alone() -> None:
    x = torch.zeros(1, 3)
    for f, taken in ((Wavering(5e-6), True), (Wavering(3e-5), False)):
        if taken:
            refuse_batch_dependence(as_encoder(f), x)
            continue
        with pytest.raises(ConfigError, match=r"^Wavering: two runs on the same input differ"):
            refuse_batch_dependence(as_encoder(f), x)
    for step, taken in ((5e-4, True), (2e-3, False)):  # a thousandth of a number, 100, is rounding too
        large = Wavering(step)
        if taken:
            refuse_batch_dependence(as_encoder(lambda z, f=large: f(z) + 100), x)
            continue
        with pytest.raises(ConfigError, match="two runs on the same input differ"):
            refuse_batch_dependence(as_encoder(lambda z, f=large: f(z) + 100), x)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: torch.cat([x[:, :2], x[:, 2:] + x.flip(0)[:, 2:]], 1),
        lambda x: torch.cat([x[:, :2] + x.flip(0)[:, :2], x[:, 2:]], 1),
        # what comes of the others sums up to 0 over the coordinates, as behind a layer norm
        lambda x: x + normalised(x.flip(0)),
    ],
)
def test_every_way_to_look_at_the_rest_of_the_batch_is_found(mix: Any) -> None:
    with pytest.raises(ConfigError, match="depends on the others of its batch"):
        refuse_batch_dependence(as_encoder(mix), torch.randn(1, 3))


def test_an_input_of_zeros_is_looked_at_as_any_other() -> None:
    refuse_batch_dependence(as_encoder(nn.Linear(3, 2)), torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="depends on the others of its batch"):
        refuse_batch_dependence(as_encoder(lambda x: x - x.mean(0)), torch.zeros(1, 3))


def normalised(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[1:])


def test_the_layer_in_the_way_is_named() -> None:
    x = torch.randn(1, 4)
    for f, text in (
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            "^Sequential: batch norm '1' is in training mode",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), "^Sequential: dropout '1' is on"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
            "^Sequential: batch norm '1' keeps no running statistics",
        ),
    ):
        with pytest.raises(ConfigError, match=text):
            refuse_batch_dependence(as_encoder(f), x)
    refuse_batch_dependence(as_encoder(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval()), x)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda x: x[:, 0], r"a tensor \(2,\)"),
        (lambda x: x[:, None], r"a tensor \(2, 1, 3\)"),
        (lambda x: x[:1], r"a tensor \(1, 3\)"),
        (lambda x: x.long(), r"a tensor \(2, 3\)"),
        (lambda x: (x,), "tuple"),
    ],
)
def test_what_came_instead_of_embeddings_is_named(output: Any, found: str) -> None:
    encoder = Encoder(output, None, None, "mine")
    x = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(ConfigError, match=rf"^mine returned {found} for inputs \(2, 3\): .*\(N, K\)"):
        embeddings(encoder, x)
    with pytest.raises(ConfigError, match=r"^mine returned embeddings without a graph"):
        embeddings(Encoder(lambda z: z.detach(), None, None, "mine"), x)
    assert embeddings(Encoder(torch.tanh, None, None, "mine"), x).grad_fn is not None


def test_encoders_are_named_by_what_they_are(tmp_path: Path) -> None:
    method = probjepa.VJE("resnet18", image_size=16, backbone_options={"width": 0.125}).eval()
    method.save_pretrained(tmp_path / "saved")
    for given in (method, tmp_path / "saved", str(tmp_path / "saved")):
        encoder = as_encoder(given)
        assert (encoder.name, type(encoder.preprocess)) == ("VJE", type(method.preprocess))
        assert encoder.module is encoder.forward
    assert as_encoder(method).module is method.encoder
    linear = nn.Linear(3, 2)
    encoder = as_encoder(linear)
    assert (encoder.name, encoder.forward, encoder.module, encoder.preprocess) == (
        "Linear",
        linear,
        linear,
        None,
    )
    encoder = as_encoder(torch.tanh)
    assert (encoder.name, encoder.forward, encoder.module, encoder.preprocess) == (
        "tanh",
        torch.tanh,
        None,
        None,
    )


def test_an_encoder_moves_with_its_module() -> None:
    linear = nn.Linear(3, 2)
    encoder = as_encoder(linear)
    assert encoder.to(torch.device("meta")) is encoder
    assert linear.weight.device.type == "meta"
    plain = as_encoder(torch.tanh)
    assert plain.to(torch.device("meta")) is plain


def test_sources_of_prepared_floats() -> None:
    encoder = as_encoder(torch.tanh)
    x = torch.randn(3, 4)
    assert encoder.source(x) is x
    images = open_images(np.zeros((2, 8, 8, 3), np.uint8))
    assert encoder.source(images) is images
    array = x.numpy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written
        assert torch.equal(encoder.source(array), x)
    for kind in (np.int16, np.uint8):
        assert encoder.source(np.ones((2, 3), kind)).dtype == torch.from_numpy(np.ones(1, kind)).dtype
    for bad, text in (
        (np.ones((2, 3), bool), "array of bool"),
        (np.ones((2, 3), complex), "array of complex128"),
        ([[1.0]], "images are a list"),
        (torch.zeros(0, 3), r"shape \(0, 3\): pass at least one"),
        (torch.zeros(3), r"shape \(3,\): pass at least one"),
        (np.zeros(3), r"shape \(3,\)"),
    ):
        with pytest.raises(DataError, match=text):
            encoder.source(bad)
    assert encoder.source(torch.zeros(3, 1)).shape == (3, 1)


def test_a_preprocessing_is_given_images_and_its_result_is_checked() -> None:
    seen = []

    def halved(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels.double() / 2

    encoder = Encoder(torch.tanh, None, halved, "mine")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    source = encoder.source(pixels)  # a preprocessing without a size of its own
    assert len(source) == 2
    torch.testing.assert_close(encoder.prepare(source.get(slice(None))), pixels.double() / 2)
    assert torch.equal(seen[-1], pixels)
    torch.testing.assert_close(encoder.prepare(pixels / 255), pixels.double() / 2)
    assert seen[-1].dtype == torch.uint8
    whole = Encoder(torch.tanh, None, lambda p: p.long(), "mine")
    with pytest.raises(DataError, match=r"^mine takes float tensors, and these are int64: "):
        whole.prepare(pixels)


class Counting(nn.Module):
    """Its first parameter is of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)


def test_inputs_keep_their_type_where_the_module_has_none() -> None:
    for module in (nn.Flatten(), Counting()):
        x = torch.randn(2, 3, dtype=torch.float64)
        assert as_encoder(module).prepare(x) is x
    assert as_encoder(nn.Linear(3, 2).double()).prepare(torch.randn(2, 3)).dtype == torch.float64


@pytest.mark.parametrize(("bad", "named"), [([1, 2], 1), ([0], 0)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_input_that_is_not_finite_is_named(bad: list[int], named: int, value: float) -> None:
    x = torch.randn(3, 2, 2)
    x[bad, 1, 0] = value
    with pytest.raises(DataError, match=f"^input {named} holds NaN or Inf"):
        as_encoder(torch.tanh).prepare(x)


def test_weights_without_gradients_for_good_are_one_line_and_others_stay_as_they_are():
    with torch.inference_mode():
        barred = nn.Linear(6, 5)
    model = nn.Sequential(barred, nn.Linear(5, 4))
    with pytest.raises(ConfigError, match=r"made under torch\.inference_mode"):
        probjepa.jepa_score(model, torch.randn(3, 6))
    assert all(parameter.requires_grad for parameter in model.parameters())
