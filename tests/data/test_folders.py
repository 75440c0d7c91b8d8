"""Folders of images: what is read, what is left out and named, links, and folders that are no classes."""

import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from probjepa.data import open_images
from probjepa.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def image(path, format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path, format)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


FORMATS = {
    "a.avif": "AVIF", "b.jp2": "JPEG2000", "c.j2k": "JPEG2000", "d": "PNG", "e.png.bak": "PNG", "f.JFIF": "JPEG",
    "g.dat": "WEBP", "h.pgm": "PPM", "i.12": "GIF", "j.tif": "TIFF", "k.bmp": "BMP",
}  # fmt: skip
BUILT = {
    name: format for name, format in FORMATS.items() if format != "AVIF" or "avif" in features.get_supported()
}


@pytest.mark.parametrize("limit", [None, 1])
def test_all_that_can_be_decoded_is_read_and_the_rest_is_named(tmp_path, limit):
    for name, format in BUILT.items():
        image(tmp_path / name, format)
    others = {
        "notes.txt": b"no image",
        "photo.heic": b"\0\0\0\x18ftypheic",
        "empty": b"",
        "page.eps": b"%!PS",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "to-nothing").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    opened = open_images(tmp_path, memory_limit=limit)
    assert opened.ids == sorted(BUILT)
    left_out = sorted([*others, "to-nothing", "pipe", "x.parquet"])
    assert [line.split(" is no image")[0] for line in opened.skipped] == [str(tmp_path / n) for n in left_out]
    for name in ("d", "g.dat"):
        assert len(open_images(tmp_path / name, memory_limit=limit)) == 1
    for name in ("notes.txt", "empty"):
        with pytest.raises(DataError) as error:
            open_images(tmp_path / name)
        assert name in one_line(error)


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_frames_that_are_not_read_are_a_warning(tmp_path, format, limit):
    frames = [Image.fromarray(PIXELS + np.uint8(step)) for step in range(3)]
    frames[0].save(tmp_path / "a", format, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        open_images(tmp_path, memory_limit=limit)
    texts = [str(warning.message) for warning in found]
    # what a camera puts behind a photo is no frame of it
    assert len(texts) == (format != "MPO") and all(f"several frames ({format})" in text for text in texts)


@pytest.mark.parametrize("name", ["picture", "picture.bin", "picture.data"])
def test_a_file_is_known_by_its_content(tmp_path, name):
    image(tmp_path / name, "png")
    assert len(open_images(tmp_path / name)) == 1


def test_a_link_to_nothing_is_an_unreadable_image(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").symlink_to("c.png")
    with pytest.raises(DataError, match=r"b\.png cannot be read \(No such file"):
        open_images(tmp_path)
    opened = open_images(tmp_path, on_error="skip")
    assert opened.ids == ["a.png"] and "b.png" in opened.skipped[0]
    assert "c.png cannot be read (Too many levels of symbolic links" in opened.skipped[1]


def test_what_was_left_out_stays_with_the_set(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("")
    opened = open_images(tmp_path)
    assert len(opened.skipped) == 1
    for other in (open_images(opened, size=8), opened.subset([0]), open_images(tmp_path, labels="none")):
        assert other.skipped == opened.skipped


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"holds no images, of 1 file, such as 'photo\.heic'"):
        open_images(tmp_path)


def test_linked_folders_are_classes_and_loops_end(tmp_path):
    for name in ("cat", "dog"):
        image(tmp_path / "elsewhere" / name / "deep" / "x.png")
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "cat" / "up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "cat" / "deep" / "self").symlink_to(tmp_path / "elsewhere" / "cat" / "deep")
    opened = open_images(tmp_path / "set")
    assert opened.classes == ["cat", "dog"]
    assert {name for name in opened.ids if "up" not in name} == {"cat/deep/x.png", "dog/deep/x.png"}


def test_labels_can_be_left_out_where_images_lie_beside_folders(tmp_path):
    for name in ("a.png", "sub/b.png"):
        image(tmp_path / name)
    with pytest.raises(DataError, match=r"--labels none"):
        open_images(tmp_path)
    opened = open_images(tmp_path, labels="none")
    assert (opened.ids, opened.labels, opened.classes) == (["a.png", "sub/b.png"], None, None)
    for wanted in ({"labels": "kind"}, {"ids": "kind"}):
        with pytest.raises(DataError, match="has no columns"):
            open_images(tmp_path, **wanted)


@pytest.mark.parametrize(
    "names", [("train", "val"), ("train", "val", "test"), ("Train", "test", "extra"), ("train",)]
)
@pytest.mark.parametrize("below", ["", "cat"])
def test_splits_are_no_classes(tmp_path, names, below):
    for name in names:
        image(tmp_path / name / below / "x.png")
    with pytest.raises(DataError, match="holds splits") as error:
        open_images(tmp_path)
    assert any(f"'{tmp_path / name}'" in one_line(error) for name in names) and "--labels none" in str(
        error.value
    )
    assert len(open_images(tmp_path, labels="none")) == len(names)
    assert open_images(tmp_path / names[0]).classes == ([below] if below else None)


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("cat", "test"):
        image(tmp_path / name / "x.png")
    assert open_images(tmp_path).classes == ["cat", "test"]


def test_shards_of_several_split_folders_are_no_set(tmp_path):
    image(tmp_path / ".x.png")
    table = pa.table({"image": [(tmp_path / ".x.png").read_bytes()]})
    for name in ("train", "test"):
        (tmp_path / "data" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "data" / name / "0.parquet")
    with pytest.raises(DataError, match="several splits") as error:
        open_images(tmp_path)
    assert f"'{tmp_path}/data/train'" in one_line(error)
    assert len(open_images(tmp_path / "data" / "train")) == 1
