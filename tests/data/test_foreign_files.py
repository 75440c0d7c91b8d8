"""Files that nobody should trust: strips, pipes, devices, paths that lead away, formats that start programs."""

import io
import json
import os
import signal
import socket
import sys
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from probjepa import load
from probjepa.cli import run
from probjepa.data import Preprocess, open_images
from probjepa.data import decode as decode_module
from probjepa.data.decode import Decoder, Unreadable
from probjepa.data.preprocess import resize_centre
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaError
from probjepa.files import regular
from probjepa.model_files import read_checkpoint, read_config
from probjepa.report.training import read_metrics
from probjepa.tabular.files import read_table
from probjepa.yaml_files import read_yaml
from shard_cases import write_shard


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = png(np.arange(256, dtype=np.uint8).reshape(16, 16))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def alarm():
    """Ends a test that hangs at a pipe."""

    def ring(*_):
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(300)  # much more than a slow machine needs
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- more memory than the file says ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1_000_000, 8), (8, 1_000_000)])
@pytest.mark.parametrize("limit", [None, 1])
def test_a_strip_is_unreadable_and_skipped(tmp_path, size, limit):
    (tmp_path / "a.png").write_bytes(GOOD)
    Image.new("L", size).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"strip\.png is .* more than 100 times as long as wide") as error:
        open_images(tmp_path, size=224, memory_limit=limit)
    one_line(error)
    opened = open_images(tmp_path, size=224, on_error="skip", memory_limit=limit)
    assert opened.ids == ["a.png"] and "strip.png" in opened.skipped[0]


@pytest.mark.parametrize("size", [(800, 8), (8, 800), (300, 20)])
def test_what_is_resized_is_bounded(size, monkeypatch):
    sizes, resize = [], Image.Image.resize

    def spy(image, to, *rest, **options):
        sizes.append(to)
        return resize(image, to, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    values = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    pixels = Decoder(64)(png(values))
    assert all(width * height <= 8 * 64 * 64 for width, height in sizes) and sizes
    to, interpolate = [], torch.nn.functional.interpolate

    def torch_spy(images, shape, **options):
        to.append(shape)
        return interpolate(images, shape, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", torch_spy)
    same = resize_centre(torch.from_numpy(values)[None, None].float(), 64)
    assert all(height * width <= 8 * 64 * 64 for height, width in to) and to
    assert (same[0] - torch.from_numpy(pixels.astype(np.float32))).abs().max() <= 1
    assert Preprocess(64, 1, [0.5], [0.5])(torch.from_numpy(values)[None, None]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("size", [(120, 17), (17, 120), (136, 17), (33, 40)])
def test_ordinary_images_are_resized_whole(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    scale = 24 / min(image.size)
    whole = image.resize([max(24, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - 24) // 2 for side in whole.size)
    expected = np.asarray(whole.crop((left, top, left + 24, top + 24)))
    np.testing.assert_array_equal(Decoder(24)(image).transpose(1, 2, 0), expected)


def test_sixteen_bits_are_rounded_exactly_in_little_memory():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for image in (Image.fromarray(every), Image.fromarray(every.astype(np.int32))):
        np.testing.assert_array_equal(Decoder()(image)[0], (every.astype(int) + 128) // 257)
    large = Image.fromarray(np.tile(every, (4, 4)))
    tracemalloc.start()
    Decoder()(large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 4 * 4 * every.size


# --- files that are none --------------------------------------------------------------------------------

READERS = {
    "x.png": (lambda path: open_images(path), DataError),
    "x.npy": (lambda path: open_images(path), DataError),
    "x.npz": (lambda path: open_images(path), DataError),
    "x.parquet": (lambda path: open_images(path), DataError),
    "x.arrow": (lambda path: open_images(path), DataError),
    "x.tar": (lambda path: open_images(path), DataError),
    "x.csv": (read_table, DataError),
    "x.yaml": (read_yaml, ConfigError),
    "last.ckpt": (lambda path: read_checkpoint(path, "train again"), ArtifactError),
    "metrics.csv": (read_metrics, ArtifactError),
    "config.json": (lambda path: read_config(path.parent), ArtifactError),
    "model.safetensors": (lambda path: load(path.parent), ArtifactError),
}


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_only_regular_files_are_opened(tmp_path, name, kind, monkeypatch):
    path, listener = tmp_path / name, None
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # the path of a socket has at most 108 bytes
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
    read, kind_of_error = READERS[name]
    if name == "model.safetensors":
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(kind_of_error) as error:
        read(path)
    assert name.removesuffix("model.safetensors") in one_line(error)
    if listener is not None:
        listener.close()


@pytest.mark.usefixtures("alarm")
def test_pipes_in_the_places_of_commands(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "x.png")
    data, out = str(tmp_path / "x.png"), str(tmp_path / "out")
    good = ["train", "vje", "--out", out, "--epochs", "1", "-q"]
    for arguments in (
        ["embed", str(tmp_path), "--data", data, "--out", out, "-q"],
        ["embed", str(tmp_path / "model"), "--data", data, "--out", out],
        [*good, "--data", data],
        [*good, "--data", str(tmp_path / "set")],
        [*good, "--data", "sklearn:digits", "--config", data],
    ):
        assert run(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_regular(tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert regular(tmp_path / "b") == tmp_path / "b"
    with pytest.raises(OSError, match="Is a directory"):
        regular(tmp_path)


# --- paths and formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_path_of_a_table_stays_below_its_folder(tmp_path, suffix, limit):
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    for path in (secret, folder / "images" / "a.png"):
        path.write_bytes(GOOD)
    os.mkfifo(folder / "pipe.png")
    paths = ["images/a.png", str(secret), "../secret.png", "images/../../secret.png", "pipe.png", "none.png"]
    paths.append(str(folder / "images" / "a.png"))
    table = pa.table({"image": [{"bytes": None, "path": path} for path in paths]})
    pq.write_table(table, folder / "x.parquet")
    (folder / "x.csv").write_text("\n".join(["file_name", *paths]))
    opened = open_images(folder / f"x.{suffix}", on_error="skip", memory_limit=limit)
    assert opened.ids == [paths[0] if suffix == "csv" else "0"]
    assert len(opened.skipped) == 6 and all("not below" in line for line in opened.skipped[:3])
    assert "' by its whole path, not from '" in opened.skipped[5]
    with pytest.raises(DataError, match=rf"x\.{suffix}, row 1 names the file"):
        open_images(folder / f"x.{suffix}", memory_limit=limit)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "no column of paths"),
        (b"a,b\n1,2\n", r"no column of paths to images \(columns: a, b\): name it 'path'; .*var-t-jepa"),
        (b"path\n", "holds no images"),
        (b"path,label\na.png,1\nb.png\n", r"row 1 has 1 cells for 2 columns"),
        (b"path\n\xff\xfe\x00.png\n", "cannot be read as csv"),
        (b'path\n"a.png\n', "cannot be read as csv"),
        (b"path\n\n", "holds no images"),
        (b"path,label\n" + b"a.png,1\n" * 2 + b"a.png,x\n", "row 0 cannot be read"),
    ],
)
def test_a_csv_that_is_none_is_one_line(tmp_path, text, says):
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(DataError, match=says) as error:
        open_images(tmp_path / "x.csv")
    one_line(error)


def test_a_csv_with_a_mark_in_front_and_labels(tmp_path):
    (tmp_path / "a.png").write_bytes(GOOD)
    (tmp_path / "b.png").write_bytes(GOOD)
    (tmp_path / "x.csv").write_bytes("\ufeffpath,label\r\na.png,cat\r\nb.png,\r\n".encode())
    opened = open_images(str(tmp_path / "x.csv"))
    assert (opened.ids, opened.classes, opened.labels.tolist()) == (["a.png", "b.png"], ["cat"], [0, -1])


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("form", ["file", "bytes"])
def test_only_listed_decoders_are_tried(tmp_path, suffix, form, monkeypatch):
    def no_program(*_, **__):
        raise AssertionError("starts a program")

    monkeypatch.setattr("subprocess.Popen.__init__", no_program)
    content = {"eps": EPS}
    for name in ("SGI", "PCX", "TGA"):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16)).save(buffer, name)
        content[name] = buffer.getvalue()
    for bytes_ in content.values():
        (tmp_path / f"x{suffix}").write_bytes(bytes_)
        payload = tmp_path / f"x{suffix}" if form == "file" else bytes_
        for look in (Decoder(), Decoder().header):
            with pytest.raises(Unreadable, match="not an image"):
                look(payload)
    assert set(decode_module._formats()) <= {
        "PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF",
    }  # fmt: skip


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", ["hf:", "timm:local-dir:"])
def test_pipes_of_hub_folders_are_not_opened(tmp_path, monkeypatch, kind):
    from probjepa.backbones.hub import load_pretrained

    def opens(name, **_):
        return open(f"{name.removeprefix('local-dir:')}/config.json").read()

    auto = SimpleNamespace(from_pretrained=opens)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=opens))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModel=auto, AutoImageProcessor=auto))
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ArtifactError, match="no regular file") as error:
        load_pretrained(f"{kind}{tmp_path}")
    one_line(error)


@pytest.mark.parametrize("part", ["model", "processor"])
def test_code_in_a_hub_folder_is_never_run_nor_asked_about(tmp_path, monkeypatch, part):
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    from probjepa.backbones.hub import load_transformers

    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import PreTrainedModel as Own\n"
    folder = tmp_path / "own"
    if part == "model":
        folder.mkdir()
        auto = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
        (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    else:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        auto = {"AutoImageProcessor": "own.Own"}
        (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": auto}))
    (folder / "own.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: (marker.write_text("asked"), "y")[1])
    if part == "model":
        with pytest.raises(ArtifactError, match="no model 'hf:") as error:
            load_transformers(str(folder))
        one_line(error)
    else:
        load_transformers(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".arrow", ".tar"])
def test_a_damaged_file_is_an_error_of_ours(tmp_path, suffix):
    """Whatever its readers raise: a header of numpy is parsed as Python, one of parquet as Thrift."""
    file = tmp_path / f"x{suffix}"
    pixels = np.zeros((3, 8, 8), np.uint8)
    if suffix == ".npy":
        np.save(file, pixels)
    elif suffix == ".npz":
        np.savez(file, images=pixels)
    elif suffix == ".parquet":
        pd.DataFrame({"image": [x.tobytes() for x in pixels]}).to_parquet(file)
    else:
        write_shard(file, range(3))
    whole = file.read_bytes()
    assert suffix != ".npy" or len(open_images(file)) == 3
    rng = np.random.default_rng(0)
    for number in range(150):
        damaged = bytearray(whole)
        at = rng.integers(min(len(whole), 120)) if number % 2 else rng.integers(len(whole))
        damaged[at] = rng.integers(256) if number % 3 else ord("(")
        file.write_bytes(damaged if number % 5 else whole[: rng.integers(len(whole))])
        with suppress(ProbjepaError):
            open_images(file)


def test_a_damaged_table_is_an_error_of_ours(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv")
    rng = np.random.default_rng(0)
    for name in ("t.parquet", "t.csv"):
        whole = (tmp_path / name).read_bytes()
        for number in range(150):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged if number % 5 else whole[: rng.integers(len(whole))])
            with suppress(ProbjepaError):
                read_table(tmp_path / name)


def test_nobody_is_told_to_unpickle(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([{}]), allow_pickle=True)
    (tmp_path / "objects.npy").write_bytes(stream.getvalue())
    np.savez(tmp_path / "objects.npz", images=np.array([{}]))
    for name in ("zeros.npy", "zeros.npz"):
        (tmp_path / name).write_bytes(bytes(500))
    pd.DataFrame({"image": [stream.getvalue()]}).to_parquet(tmp_path / "cells.parquet")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError) as error:
            open_images(file)
        assert "Python objects" in one_line(error) and "pickle" not in str(error.value)
