import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from probjepa.data import ImageSet, StreamedImages, open_images, split
from probjepa.data import decode as decode_module
from probjepa.data.records import ArrayRecords
from probjepa.data.streams import open_training
from probjepa.errors import ConfigError, DataError, MissingExtraError, ProbjepaWarning
from shard_cases import write_shard

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def pixels(count=6, channels=3, height=12, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def encoded(array, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, format, **options)
    return buffer.getvalue()


def write_parquet(path, images, labels=None, names=None, column="img"):
    table = {column: [{"bytes": encoded(image), "path": None} for image in images]}
    if labels is not None:
        table["label"] = labels
    table = pa.table(table)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)


def nchw(array):
    return torch.from_numpy(array.copy()).permute(0, 3, 1, 2)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_digits_match_sklearn():
    opened = open_images("sklearn:digits")
    raw = load_digits()
    assert torch.equal(opened.images[:, 0].double(), torch.from_numpy(raw.images * 255 / 16).round())
    assert opened.labels.tolist() == raw.target.tolist()
    assert opened.classes == [str(digit) for digit in range(10)]
    assert (opened.channels, opened.size, opened.name) == (1, 8, "sklearn:digits")


@pytest.mark.parametrize("workers", [1, 3])
def test_folder(tmp_path, workers):
    images = pixels(130)
    for row, image in enumerate(images):
        folder = tmp_path / ("cat" if row % 2 else "dog") / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row:03d}.PNG").write_bytes(encoded(image))
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("ignored")
    opened = open_images(tmp_path, workers=workers)
    order = [*range(1, 130, 2), *range(0, 130, 2)]
    assert torch.equal(opened.images, nchw(images)[order])
    assert opened.classes == ["cat", "dog"]
    assert opened.labels.tolist() == [0] * 65 + [1] * 65
    assert opened.ids[:2] == ["cat/deep/001.PNG", "cat/deep/003.PNG"]


def test_flat_folder_and_single_file(tmp_path):
    images = pixels(2)
    for row, image in enumerate(images):
        (tmp_path / f"{row}.bmp").write_bytes(encoded(image, "BMP"))
    assert open_images(tmp_path).labels is None
    one = open_images(str(tmp_path / "1.bmp"))
    assert torch.equal(one.images, nchw(images)[1:])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "2.bmp").write_bytes(encoded(images[0], "BMP"))
    with pytest.raises(DataError, match="sub-folders") as error:
        open_images(tmp_path)
    one_line(error)


def test_parquet_with_names(tmp_path):
    images = pixels(10)
    write_parquet(tmp_path / "x.parquet", images, [row % 3 for row in range(10)], ["a", "b", "c"])
    opened = open_images(tmp_path / "x.parquet")
    assert torch.equal(opened.images, nchw(images))
    assert opened.labels.tolist() == [row % 3 for row in range(10)]
    assert opened.classes == ["a", "b", "c"]
    assert opened.ids[-1] == "9"


def test_parquet_shards_globs_and_splits(tmp_path):
    images = pixels(14)
    write_parquet(tmp_path / "train-0.parquet", images[:9], ["u", "v", "u"] * 3, column="whatever")
    write_parquet(tmp_path / "train-1.parquet", images[9:], ["w"] * 5, column="whatever")
    opened = open_images(tmp_path)
    assert torch.equal(opened.images, nchw(images))
    assert opened.ids[8:10] == ["train-0.parquet:8", "train-1.parquet:0"]
    assert [opened.classes[label] for label in opened.labels] == ["u", "v", "u"] * 3 + ["w"] * 5
    write_parquet(tmp_path / "test-0.parquet", images[:2], ["u", "v"], column="whatever")
    with pytest.raises(DataError, match="several splits"):
        open_images(tmp_path)
    assert len(open_images(f"{tmp_path}/train*.parquet")) == 14


@pytest.mark.parametrize("kind", ["binary", "lists", "float lists"])
def test_parquet_other_image_columns(tmp_path, kind):
    images = pixels(3)
    column = {
        "binary": lambda: [encoded(image) for image in images],
        "lists": lambda: images.tolist(),
        "float lists": lambda: (images / 255).transpose(0, 3, 1, 2).tolist(),
    }[kind]()
    pq.write_table(pa.table({"name": ["a", "b", "c"], "image": column}), tmp_path / "x.parquet")
    assert torch.equal(open_images(tmp_path / "x.parquet").images, nchw(images))


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "nhw"])
@pytest.mark.parametrize("scale", ["uint8", "float32", "int64"])
@pytest.mark.parametrize("form", ["npz", "npy", "array", "tensor"])
def test_array_layouts(tmp_path, layout, scale, form):
    images = pixels(4, 1 if layout == "nhw" else 3, 9, 11)
    expected = nchw(images)
    array = {"nhwc": images, "nchw": images.transpose(0, 3, 1, 2), "nhw": images[..., 0]}[layout]
    array = array / np.float32(255) if scale == "float32" else array.astype(scale)
    source = array
    if form == "npz":
        source = tmp_path / "x.npz"
        np.savez(source, images=array, labels=np.arange(4)[:, None])
    elif form == "npy":
        source = tmp_path / "x.npy"
        np.save(source, array)
    elif form == "tensor":
        source = torch.from_numpy(np.ascontiguousarray(array))
    opened = open_images(source)
    assert torch.equal(opened.images, expected)
    assert (opened.labels is not None) == (form == "npz")
    streamed = open_images(source, memory_limit=1)
    assert torch.equal(pickle.loads(pickle.dumps(streamed)).get([2, 0]), expected[[2, 0]])


def test_dataframe_and_torch_dataset():
    pd = pytest.importorskip("pandas")
    images = pixels(5)
    frame = pd.DataFrame({"id": range(5), "img": [encoded(i) for i in images], "class": list("abcab")})
    opened = open_images(frame)
    assert torch.equal(opened.images, nchw(images))
    assert opened.labels.tolist() == [0, 1, 2, 0, 1]

    class Pairs(torch.utils.data.Dataset):
        classes = ("zero", "one")

        def __len__(self):
            return 5

        def __getitem__(self, row):
            forms = [Image.fromarray, lambda a: a, lambda a: torch.from_numpy(a / 255).permute(2, 0, 1)]
            return forms[row % 3](images[row]), torch.tensor(row % 2)

    for limit in (None, 1):
        opened = open_images(Pairs(), memory_limit=limit)
        assert torch.equal(opened.get(range(5)), nchw(images))
        assert opened.labels.tolist() == [0, 1, 0, 1, 0]
        assert opened.classes == ["zero", "one"]


def test_hub_reads_undecoded_bytes(monkeypatch):
    images = pixels(4)

    class Image:  # stands for datasets.Image
        def __init__(self, decode=True):
            self.decode = decode

    class Dataset:
        column_names = ["picture", "label"]  # noqa: RUF012

        def __init__(self, decode=True):
            self.features = {"picture": Image(decode), "label": SimpleNamespace(names=["a", "b"])}

        def cast_column(self, name, feature):
            return Dataset(feature.decode)

        def __len__(self):
            return 4

        def __getitem__(self, key):
            if key == "label":
                return [0, 1, 1, 0]
            assert not self.features["picture"].decode
            return {"picture": {"bytes": encoded(images[key]), "path": None}, "label": 0}

    asked = []
    hub = SimpleNamespace(load_dataset=lambda name, split, **o: asked.append((name, split, o)) or Dataset())
    monkeypatch.setitem(sys.modules, "datasets", hub)
    opened = open_images("hf:owner/name:test")
    open_images("hf:owner/name")
    no_code = {"trust_remote_code": False}
    assert asked == [("owner/name", "test", no_code), ("owner/name", "train", no_code)]
    assert torch.equal(opened.images, nchw(images))
    assert (opened.labels.tolist(), opened.classes) == ([0, 1, 1, 0], ["a", "b"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"probjepa\[hf\]"):
        open_images("hf:owner/name")


def test_sizes(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(pixels(1, 3, 20, 30)[0]))
    (tmp_path / "b.png").write_bytes(encoded(pixels(1, 3, 16, 16)[0]))
    with pytest.raises(DataError, match="size=16") as error:
        open_images(tmp_path)
    assert "30×20" in one_line(error)
    assert "16×16" in one_line(error) and "size=16" in one_line(error)
    (tmp_path / "large").mkdir()
    for height in (300, 500):
        Image.new("L", (400, height)).save(tmp_path / "large" / f"{height}.png")
    with pytest.raises(DataError, match=r"--set image_size=224; open_images: size=224"):
        open_images(tmp_path / "large")
    shutil.rmtree(tmp_path / "large")
    opened = open_images(tmp_path, size=10)
    image = Image.open(tmp_path / "a.png").resize((15, 10), Image.Resampling.BILINEAR).crop((2, 0, 12, 10))
    assert torch.equal(opened.images[0], nchw(np.asarray(image)[None])[0])
    with pytest.raises(ConfigError):
        open_images(tmp_path, size=4)


def test_grey_in_a_colour_set_and_channel_errors(tmp_path):
    grey, colour = pixels(2, 1), pixels(2, 3, seed=1)
    for row, image in enumerate([grey[0], colour[0], grey[1], colour[1]]):
        (tmp_path / f"{row}.png").write_bytes(encoded(image))
    expected = torch.stack(
        [nchw(grey)[0].repeat(3, 1, 1), nchw(colour)[0], nchw(grey)[1].repeat(3, 1, 1), nchw(colour)[1]]
    )
    for limit in (None, 1):
        opened = open_images(tmp_path, memory_limit=limit)
        assert torch.equal(opened.get(slice(None)), expected)
        with pytest.raises(DataError, match=r"1\.png has 3 channel.*--convert"):
            open_images(tmp_path, channels=1, memory_limit=limit)
        with pytest.raises(DataError, match=r"has 1 channel.*--convert"):
            open_images(grey, channels=3, memory_limit=limit)
        luma = open_images(tmp_path, channels=1, convert=True, memory_limit=limit).get([1])[0, 0].double()
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
        exact = torch.einsum("chw,c->hw", nchw(colour)[0].double(), weights)
        assert (luma - exact).abs().max() <= 0.51
        repeated = open_images(grey, channels=3, convert=True, memory_limit=limit).get([0, 1])
        assert torch.equal(repeated, nchw(grey).repeat(1, 3, 1, 1))


def test_alpha_palette_and_sixteen_bits(tmp_path):
    rgba = pixels(1, 4)[0]
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has an alpha channel"):
        open_images(tmp_path)
    assert torch.equal(open_images(tmp_path, convert=True).images, nchw(rgba[None, ..., :3]))
    (tmp_path / "a.png").unlink()

    palette = Image.fromarray(pixels(1)[0]).quantize(16)
    palette.save(tmp_path / "p.png")
    assert torch.equal(open_images(tmp_path / "p.png").images, nchw(np.asarray(palette.convert("RGB"))[None]))
    deep = np.linspace(0, 65535, 144).reshape(12, 12).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    opened = open_images(tmp_path / "deep.png")
    assert np.abs(opened.images[0, 0].numpy() - deep / 257).max() <= 0.5 + 1e-9
    assert open_images(tmp_path / "deep.png", memory_limit=1).channels == 1


def deep_png(values):
    """A PNG of 16 bits a channel, grey or RGB, which Pillow cannot write: values uint16 (H, W[, 3])."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize(("bits", "levels"), [(12, 17), (8, 2), (13, 0), (16, 0)])
def test_few_grey_levels_left_are_a_warning(tmp_path, limit, channels, bits, levels):
    if channels and bits < 16:  # Pillow keeps the upper eight bits of each colour
        levels = max(1, 2**bits // 256) if bits <= 12 else 0
    values = np.random.default_rng(0).integers(0, 2**bits, (3, 64, 64, *channels)).astype(np.uint16)
    for row, image in enumerate(values):
        (tmp_path / f"{row}.png").write_bytes(deep_png(image))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        opened = open_images(tmp_path, memory_limit=limit)
    assert opened.channels == (channels or (1,))[0]
    texts = [str(warning.message) for warning in found]
    if not levels:
        assert texts == []
        return
    assert len(texts) == 1 and f"left {levels} of 256 grey levels" in texts[0]
    assert issubclass(found[0].category, ProbjepaWarning)


def test_exif_orientation(tmp_path):
    image = pixels(1, 3, 10, 14)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    (tmp_path / "t.png").write_bytes(encoded(image, exif=exif))
    expected = nchw(np.rot90(image, -1)[None])
    assert torch.equal(open_images(tmp_path).images, expected)
    assert torch.equal(open_images(tmp_path, memory_limit=1).get([0]), expected)


@pytest.mark.parametrize("limit", [None, 1])
def test_corrupt_images(tmp_path, limit):
    good = pixels(3, 3, 32, 32)
    for row in (0, 3):
        (tmp_path / f"{row}.png").write_bytes(encoded(good[row % 3]))
    (tmp_path / "1.jpg").write_bytes(encoded(good[1], "JPEG")[:-200])
    (tmp_path / "2.png").write_text("not an image")
    opened = open_images(tmp_path, on_error="skip", memory_limit=limit)
    assert opened.ids == ["0.png", "3.png"]
    assert torch.equal(opened.get([0, 1]), nchw(good)[[0, 0]])
    assert len(opened.skipped) == 2
    assert "1.jpg" in opened.skipped[0]
    assert "not an image" in opened.skipped[1]
    with pytest.raises(DataError, match=r"1\.jpg|2\.png") as error:
        open_images(tmp_path, memory_limit=limit)
    one_line(error)


def test_truncated_image_in_a_stream_names_the_row(tmp_path):
    rows = [encoded(image, "JPEG") for image in pixels(300, 3, 32, 32)]
    rows[270] = rows[270][:-200]
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    opened = open_images(tmp_path / "x.parquet", memory_limit=1)
    with pytest.raises(DataError, match=r"x\.parquet, row 270 .*truncated"):
        opened.get(range(260, 280))
    with pytest.raises(DataError, match=r"x\.parquet, row 270 "):
        open_images(tmp_path / "x.parquet")


def test_errors_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.zip").write_text("")
    (tmp_path / "bad.parquet").write_text("bad")
    (tmp_path / "bad.npy").write_text("bad")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table.parquet")
    cases = {
        "missing": "no such file",
        "empty": "holds no images",
        "x.zip": "'.zip' is not supported",
        "bad.parquet": "cannot be read as .parquet",
        "table.parquet": "no column holds images",
        "bad.npy": "cannot be read as .npy",
        "objects.npy": "not objects",
        "other.npz": "no array of images",
    }
    for name, message in cases.items():
        with pytest.raises(DataError) as error:
            open_images(tmp_path / name)
        assert message in one_line(error)
        assert name in one_line(error)
    with pytest.raises(ConfigError):
        open_images("sklearn:digit")
    floats = np.zeros((5, 8, 8), dtype=np.float32)
    floats[3, 2, 2] = np.nan
    floats[4, 2, 2] = np.inf
    with pytest.raises(DataError, match="row 3 holds NaN or Inf"):
        open_images(floats)
    assert open_images(floats, on_error="skip").ids == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"row 1: floats from -2 to -2.*\[0, 1\]"):
        open_images(-np.arange(3)[:, None, None] * 2.0 * np.ones((3, 8, 8)), on_error="skip")
    for bad in (np.zeros((4, 7, 9), np.uint8), np.zeros((4, 9, 9, 5), np.uint8), np.zeros((4, 64), np.uint8)):
        with pytest.raises(DataError) as error:
            open_images(bad)
        one_line(error)
    with pytest.raises(DataError, match="holds no images"):
        open_images(np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(DataError, match="no data source"):
        open_images(3)
    monkeypatch.setattr(decode_module.Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "big.png").write_bytes(encoded(pixels(1, 3, 12, 12)[0]))
    with pytest.raises(DataError, match=r"big\.png is larger than"):
        open_images(tmp_path / "big.png")


def test_labels_must_fit(tmp_path):
    for labels, message in ((np.arange(3), "4 images"), (np.array([0.5] * 4), "whole numbers")):
        np.savez(tmp_path / "x.npz", x=np.zeros((4, 8, 8), np.uint8), y=labels)
        with pytest.raises(DataError, match=message):
            open_images(tmp_path / "x.npz")
    table = pa.table({"image": [encoded(i) for i in pixels(2)], "label": [1, None]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert open_images(tmp_path / "x.parquet").labels.tolist() == [1, -1]


def test_stream_reads_like_a_set(tmp_path):
    images = pixels(700)
    write_parquet(tmp_path / "a.parquet", images[:300], [row % 5 for row in range(300)])
    write_parquet(tmp_path / "b.parquet", images[300:], [row % 5 for row in range(300, 700)])
    memory = open_images(tmp_path)
    stream = open_images(tmp_path, memory_limit=1000, workers=2)
    assert isinstance(memory, ImageSet)
    assert isinstance(stream, StreamedImages)
    assert stream.ids == memory.ids
    rows = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream.get(rows), memory.get(rows))
    assert torch.equal(pickle.loads(pickle.dumps(stream)).get([-1, 300]), memory.get([-1, 300]))
    for (one, where), (other, same) in zip(memory.batches(256), stream.batches(256), strict=True):
        assert where == same
        assert torch.equal(one, other)
    part, same_part = memory.with_labels_in([1, 4]), stream.with_labels_in([1, 4])
    assert set(part.labels.tolist()) == {1, 4}
    assert part.ids == same_part.ids
    assert torch.equal(part.images, same_part.get(slice(None)))
    file = stream.records.folder
    assert file.exists()
    del stream, same_part
    assert not file.exists()


def test_subset_checks_rows():
    opened = open_images("sklearn:digits")
    assert opened.subset([5, -1]).ids == ["5", "1796"]
    assert opened.with_labels_in(["3"]).labels.unique().tolist() == [3]
    for rows in ([1797], torch.ones(3, dtype=torch.bool)):
        with pytest.raises(DataError):
            opened.subset(rows)
    assert open_images(opened) is opened
    assert open_images(opened, size=16).labels is not None
    with pytest.raises(DataError, match="labels"):
        open_images(pixels(2)).with_labels_in([0])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_stratified(fraction):
    opened = open_images("sklearn:digits")
    rest, held = split(opened, fraction, seed=1)
    assert len(held) == round(len(opened) * fraction)
    assert sorted(rest.ids + held.ids) == sorted(opened.ids)
    share = len(held) / len(opened)
    for label in range(10):
        exact = (opened.labels == label).sum().item() * share
        assert abs((held.labels == label).sum().item() - exact) < 1
    assert split(opened, fraction, seed=1)[1].ids == held.ids
    assert split(opened, fraction, seed=2)[1].ids != held.ids
    with pytest.raises(DataError):
        split(opened, 0.0, seed=0)


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 5, 6, 7, 8, 9, 77])
def test_every_orientation_is_the_same_in_memory_and_streamed(tmp_path, orientation, format, limit):
    image, exif = pixels(1, 3, 10, 14)[0], Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    (tmp_path / f"a.{format.lower()}").write_bytes(content)
    turned = {3: np.rot90(image, 2), 6: np.rot90(image, -1), 8: np.rot90(image)}
    turned |= {5: image.transpose(1, 0, 2), 7: np.rot90(image, 2).transpose(1, 0, 2)}
    found = open_images(tmp_path, memory_limit=limit).get([0])
    expected = nchw(turned.get(orientation, image)[None])
    assert found.shape == expected.shape and (format == "JPEG" or torch.equal(found, expected))


@pytest.mark.parametrize("limit", [None, 1])
def test_the_limit_of_pixels_is_no_filter_of_warnings(tmp_path, monkeypatch, limit):
    for row, image in enumerate(pixels(8, 3, 16, 16)):
        (tmp_path / f"{row}.png").write_bytes(encoded(image))
    opened, before = open_images(tmp_path, memory_limit=limit), list(warnings.filters)
    seen, decode = [], decode_module.Decoder.__call__

    def spy(self, payload):
        seen.append(list(warnings.filters))
        return decode(self, payload)

    monkeypatch.setattr(decode_module.Decoder, "__call__", spy)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: opened.get([row % 8, (row + 3) % 8]), range(100)))
    open_images(tmp_path)
    assert seen and all(filters == before for filters in seen) and warnings.filters == before
    monkeypatch.setattr(decode_module.Image, "MAX_IMAGE_PIXELS", 16 * 16)
    assert len(open_images(tmp_path, memory_limit=limit)) == 8
    for most in (16 * 16 - 1, 16 * 4):  # Pillow warns, and refuses
        monkeypatch.setattr(decode_module.Image, "MAX_IMAGE_PIXELS", most)
        for action in ("ignore", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(action, Image.DecompressionBombWarning)
                with pytest.raises(DataError, match=rf"0\.png is larger than the {most} pixels") as error:
                    open_images(tmp_path, memory_limit=limit)
            one_line(error)


@pytest.fixture(params=[None, 1])
def five(request):
    """A set in memory, and a streamed one."""
    return open_images(pixels(5), memory_limit=request.param)


@pytest.mark.parametrize("rows", [
    np.array([1.0, 0, 1, 0, 0]), [0.5], torch.tensor([True] * 4), np.array([[0, 1]]), [[0], [1, 2]], 3, ["a"], "ab",
    np.array([1j]), [None], {"a": 1}, [5], [-6],
], ids=str)  # fmt: skip
def test_what_is_no_row_is_one_line(five, rows):
    for choose in (five.subset, five.get):
        with pytest.raises(DataError, match=r"row|mask") as error:
            choose(rows)
        one_line(error)


@pytest.mark.parametrize("rows", [
    [4, 0, 0], (1, 2), range(1, 4), np.arange(5)[::-1], np.array([1, 2], np.uint8), torch.tensor([3]), [np.int32(1)],
    slice(1, None, 2), slice(None, None, -1), slice(4, 1), [], np.array([]), [True, False, True, False, False],
], ids=str)  # fmt: skip
def test_rows_are_those_of_numpy(five, rows):
    of = np.arange(5)[rows if isinstance(rows, slice) else np.array(list(rows), None if len(rows) else int)]
    assert five.subset(rows).ids == [str(row) for row in of]
    assert torch.equal(five.get(rows), five.get(slice(None))[torch.from_numpy(of.copy())])


def test_labels_to_choose_by_are_whole_numbers_or_names():
    opened = open_images("sklearn:digits")
    assert opened.with_labels_in([np.int64(3), torch.tensor(4)]).labels.unique().tolist() == [3, 4]
    for label in (3.5, None, [3]):
        with pytest.raises(DataError, match="is no label to choose by: pass whole numbers or class names"):
            opened.with_labels_in([label])


@pytest.mark.parametrize(("name", "value", "takes"), [
    ("size", 16.0, "a whole number"), ("size", "16", "a whole number"), ("size", math.nan, "a whole number"),
    ("channels", "3", "a whole number"), ("convert", "no", "true or false"), ("on_error", "x", "'raise' or 'skip'"),
    ("labels", 3, "a name"), ("workers", 1.5, "a whole number"), ("memory_limit", "1 GB", "a number"),
])  # fmt: skip
def test_a_setting_of_another_type_is_one_line(tmp_path, name, value, takes):
    for form in ("parquet", "tar"):  # in memory, and as a stream
        write_shard(tmp_path / f"x.{form}", range(3))
        for opens in (open_images, open_training):
            with pytest.raises(ConfigError, match=f"the setting {name} takes {takes}") as error:
                opens(tmp_path / f"x.{form}", **{name: value})
            one_line(error)
    with pytest.raises(ConfigError, match="channels is 2: pass 1"):
        open_training(tmp_path / "x.tar", channels=2)
    with pytest.raises(ConfigError, match="size is 4: pass at least 8"):
        open_training(tmp_path / "x.tar", size=4)
    assert open_images(tmp_path / "x.tar", size=np.int64(8), memory_limit=1e9).size == 8


def test_a_share_or_a_batch_that_is_no_number_is_one_line():
    opened = open_images("sklearn:digits")
    for fraction, seed in ((math.nan, 0), (math.inf, 0), ("0.5", 0), (0.5, 0.5), (0.5, -1)):
        with pytest.raises(ConfigError, match=r"the setting (fraction|seed) takes") as error:
            split(opened, fraction, seed)
        one_line(error)
    for size in (2.0, "2"):
        with pytest.raises(ConfigError, match="the setting batch_size takes a whole number"):
            next(iter(opened.batches(size)))


def test_an_array_file_that_changes_while_it_is_read_is_one_line(tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    images = open_images(path, size=8, memory_limit=0)
    assert images.get(slice(50, 55)).shape[0] == 5
    shutil.copyfile(path, tmp_path / "other.npy")
    os.replace(tmp_path / "other.npy", path)  # another file in its place leaves the mapped one as it was
    assert images.get(slice(50, 55)).shape[0] == 5
    path.unlink()
    assert images.get(slice(50, 55)).shape[0] == 5
    np.save(path, rows)
    images = open_images(path, size=8, memory_limit=0)
    with open(path, "r+b") as file:  # in place: a row that it no longer holds would end the process
        file.truncate(2000)
    for rows_asked in (slice(0, 5), slice(50, 55)):
        with pytest.raises(DataError, match=r"rows\.npy changed while it was read: leave it as it is"):
            images.get(rows_asked)


def test_rows_of_an_array_file_that_are_read_stay_what_they_were(tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    read = next(iter(ArrayRecords("rows", np.load(path, mmap_mode="r"), file=path).chunks(60)))
    np.save(path, rows[::-1])
    np.testing.assert_array_equal(np.stack(read), rows)  # and no view of what the file holds now


def test_an_array_file_that_is_another_for_a_worker_is_one_line(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((6, 8, 8), np.uint8))
    sent = pickle.dumps(open_images(path, size=8, memory_limit=0))
    for spoil in (lambda: path.write_bytes(bytes(500)), lambda: path.write_bytes(b""), path.unlink):
        spoil()
        with pytest.raises(DataError, match=r"rows\.npy changed while it was read") as error:
            pickle.loads(sent).get([0])
        one_line(error)


@pytest.mark.parametrize("kind", [pl.DataFrame, pa.Table.from_pydict])
def test_tables_that_give_columns_by_number_are_told_the_way_to_rows(kind):
    frame = kind({"image": [[[0] * 8] * 8] * 3, "label": [0, 1, 2]})
    with pytest.raises(
        DataError, match=r"is no data source here: pass its pandas DataFrame, \w+\.to_pandas\(\)"
    ):
        open_images(frame)
    assert len(open_images(frame.to_pandas())) == 3
    column = pa.array([[[0] * 8] * 8] * 3)
    assert torch.equal(open_images(column).images, open_images(frame.to_pandas()).images)


def test_rows_of_ones_own_that_can_be_a_frame_are_rows():
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, row):
            return np.full((8, 8), row, np.uint8), row

        def to_pandas(self):
            raise AssertionError

    assert open_images(Rows()).labels.tolist() == [0, 1, 2]
