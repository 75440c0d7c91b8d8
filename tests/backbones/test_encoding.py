"""An encoder in bf16: near float32, said so once, and taken by "auto" only where it is near and faster."""

import json
import math

import pytest
import torch
from torch import nn

from probjepa import provenance
from probjepa.backbones import encoding
from probjepa.backbones.encoding import Encoding
from probjepa.errors import ConfigError


class Net(nn.Module):
    """Remembers the type that its layer computed in, and the order of its images."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.layer, self.shift, self.seen = nn.Conv2d(3, 6, 3), shift, []

    def forward(self, images):
        images = images.float()
        found = self.layer(images)
        last = images.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((found.dtype, last, len(images)))
        return found.mean((2, 3)) + self.shift


def net(**options):
    torch.manual_seed(0)
    return Net(**options).eval().requires_grad_(False)


def pixels(count=80):
    shape = (count, 3, 8, 8)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def prepare(images):
    return images.float()


@pytest.fixture
def units(monkeypatch):
    monkeypatch.setattr(provenance, "cpu_flags", lambda: ["avx2", "avx512_bf16"])


@pytest.fixture
def clock(monkeypatch):
    """Say how many seconds a batch takes in float32 and in bf16."""

    def set_up(plain, narrow):
        def timed(forward, prepare, images, bf16):
            return (narrow if bf16 else plain), encoding._encoded(forward, prepare, images, bf16).cpu()

        monkeypatch.setattr(encoding, "timed", timed)

    return set_up


HALF, FULL = (torch.bfloat16, True), (torch.float32, False)


def test_float32_is_the_forward_pass_and_says_nothing(capsys):
    model = net()
    found = Encoding()
    assert torch.equal(found(model, prepare, pixels()), model(pixels()))
    assert model.seen[0] == (*FULL, 80) and found.precision == "float32" and found.error is None
    assert found.record() == {"precision": "float32"}
    assert capsys.readouterr() == ("", "")


def test_bf16_is_near_in_float32_and_states_its_error_once(units, capsys):
    model = net()
    wanted = model(pixels())
    found = Encoding("bf16")
    model.seen.clear()
    h = found(model, prepare, pixels())
    assert h.dtype == torch.float32
    assert model.seen == [(*FULL, 64), (*HALF, 64), (*HALF, 80)]
    first, narrow = wanted[:64], h[:64]
    error = float(((narrow - first).norm(dim=1) / (first - first.mean(0)).norm(dim=1)).median())
    assert 0 < error < 0.05 and found.error == pytest.approx(error, rel=1e-3)
    again = found(model, prepare, pixels(5))
    assert torch.equal(again, h[:5]) and len(model.seen) == 4
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"bf16: error {error:.2g} of the embeddings' spread")
    assert len(err.splitlines()) == 1
    key, text = found.note()
    assert (key, json.loads(text)) == (encoding.KEY, {"precision": "bf16", "bf16_error": found.error})


@pytest.mark.parametrize(
    ("shift", "seconds", "precision", "line"),
    [
        (0.0, (2.0, 1.0), "bf16", "auto: bf16, 2 times as fast as float32; error"),
        (0.0, (1.0, 1.0), "float32", "auto: float32, for bf16 is 1 times as fast; error"),
        (0.0, (1.0, 9.0), "float32", "auto: float32, for bf16 is 0.11 times as fast; error"),
    ],
)
def test_auto_takes_what_is_near_and_faster(
    units, clock, monkeypatch, capsys, shift, seconds, precision, line
):
    monkeypatch.setattr(encoding, "MOST_ERROR", 0.1)
    clock(*seconds)
    found, model = Encoding("auto"), net()
    assert found.precision == "auto"
    h = found(model, prepare, pixels())
    assert found.precision == precision
    assert model.seen[-1] == (*(HALF if precision == "bf16" else FULL), 80)
    assert torch.equal(h, model(pixels())) == (precision == "float32")
    assert capsys.readouterr().err.startswith(line)
    assert ("bf16_error" in found.record()) == (precision == "bf16")


def test_auto_leaves_what_is_off_by_more_than_the_spread_allows(units, clock, capsys):
    clock(9.0, 1.0)
    found = Encoding("auto")
    far = net(shift=100.0)  # a part that all share: beside it the error is small
    h = found(far, prepare, pixels())
    assert torch.equal(h, far(pixels())) and found.precision == "float32" and found.error > 0.01
    assert found.error < 0.01 * 100 and "and 0.01 is the limit" in capsys.readouterr().err
    assert sum(seen[2] == 64 for seen in far.seen) == 2  # no time is taken of what is too far


def test_auto_without_units_looks_at_nothing(capsys):
    found, model = Encoding("auto"), net()
    found(model, prepare, pixels())
    assert found.precision == "float32" and model.seen == [(*FULL, 80)]
    assert capsys.readouterr().err == "auto: float32, for this cpu has no units for bf16\n"


def test_the_time_of_a_batch_is_taken():
    seconds, h = encoding.timed(net(), prepare, pixels(), False)
    assert seconds > 0 and torch.equal(h, net()(pixels()))


@pytest.mark.parametrize("asked", ["bf16", "auto"])
@pytest.mark.parametrize("around", [False, True])
def test_the_callers_autocast_stays(units, asked, around):
    with torch.autocast("cpu", torch.bfloat16, enabled=around, cache_enabled=False):
        Encoding(asked)(net(), prepare, pixels())
        assert torch.is_autocast_enabled("cpu") == around
        assert not torch.is_autocast_cache_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_few_images(units, capsys):
    found = Encoding("auto")
    assert found(net(), prepare, pixels(0)).shape == (0, 6)
    assert found.precision == "auto" and not capsys.readouterr().err  # nothing was seen
    found(net(), prepare, pixels(1))
    assert found.precision == "float32" and found.error == math.inf
    one = Encoding("bf16")
    one(net(), prepare, pixels(1))
    assert one.record() == {"precision": "bf16"}  # JSON has no inf


def test_nan_is_not_near(units, clock):
    clock(9.0, 1.0)
    broken, found = net(), Encoding("auto")
    broken.layer.weight.fill_(math.nan)
    assert found(broken, prepare, pixels()).isnan().all()
    assert found.precision == "float32"


class Fragile(Net):
    def forward(self, images):
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("Got unsupported ScalarType BFloat16")
        return super().forward(images)


def test_an_encoder_that_fails_in_bf16(units, capsys):
    found = Encoding("auto")
    assert torch.isfinite(found(Fragile(), prepare, pixels())).all()
    assert found.precision == "float32"
    assert "the encoder fails in bf16: Got unsupported ScalarType BFloat16" in capsys.readouterr().err
    asked = Encoding("bf16")
    for _ in range(2):
        with pytest.raises(ConfigError, match="the encoder fails in bf16: Got unsupported"):
            asked(Fragile(), prepare, pixels())


@pytest.mark.parametrize(
    ("asked", "device", "text"),
    [
        ("bf16", "cpu", "this cpu has no units for bf16"),
        ("bf16", "mps", "this mps has no units for bf16"),
        ("float16", "cpu", "unknown precision 'float16'"),
    ],
)
def test_what_cannot_be_is_refused_at_once(asked, device, text):
    with pytest.raises(ConfigError, match=text):
        Encoding(asked, device)
