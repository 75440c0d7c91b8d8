"""Which shards there are, and their rows, by every reader."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import warnings
from contextlib import suppress

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import probjepa as pj
from probjepa.data import shard_readers
from probjepa.data.decode import Decoder
from probjepa.data.shard_files import ShardError, file_mark, find_shards, holds_shards
from probjepa.data.shards import read_layout, read_shard
from probjepa.data.streams import open_training
from probjepa.errors import ConfigError, DataError
from shard_cases import png, read_all, table, write_shards, write_table, write_tar


def write_arrow(path, rows, stream):
    kind = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, kind(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=5)


@pytest.mark.parametrize(
    "suffix", [".parquet", ".arrow", ".feather", ".ipc", ".stream.arrow", ".tar", ".tar.gz", ".tgz"]
)
def test_every_reader_gives_the_same_rows(tmp_path, suffix):
    rows, path = table(0, 7), tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=2)
    elif ".t" in suffix:
        names = ["cat", "dog"]
        files = {f"{names[i % 2]}/{i}.png": png(i) for i in range(7)}
        write_tar(
            path,
            {**files, "README.txt": b"no image", "cat/._0.png": b"x"},
            "w" if suffix == ".tar" else "w:gz",
        )
    else:
        write_arrow(path, rows, stream="stream" in suffix)
    pixels, columns, counts = read_all(path)
    expected = read_rows_of(rows)
    assert torch.equal(pixels, expected) and counts == [3, 3, 1]
    assert columns["label"] == ["cat", "dog", "cat", "dog", "cat", "dog", "cat"]
    of_tar = [f"{'cat' if i % 2 == 0 else 'dog'}/{i}.png" for i in range(7)]
    assert columns["id"] == (of_tar if ".t" in suffix else [f"{path.name}:{i}" for i in range(7)])


def read_rows_of(rows):
    decode = Decoder(8, 3)
    return torch.stack([torch.from_numpy(decode(x["bytes"]).copy()) for x in rows["image"].to_pylist()])


def test_a_tar_of_absolute_names_has_the_same_classes(tmp_path):
    write_tar(tmp_path / "x.tar", {"/cat/0.png": png(0), "../dog/1.png": png(1), "/2.png": png(2)})
    _, columns, _ = read_all(tmp_path / "x.tar")
    assert columns["label"] == ["cat", "dog", None]


def test_images_may_be_of_any_of_arrows_types_of_bytes(tmp_path):
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        held = pa.table({"image": pa.array([png(0), png(1)], kind), "label": ["cat", "dog"]})
        with pa.ipc.new_file(tmp_path / "x.arrow", held.schema) as file:
            file.write_table(held)
        names = ["x.arrow"]
        with suppress(pa.ArrowNotImplementedError):  # old versions write no views to parquet
            pq.write_table(held, tmp_path / "x.parquet")
            names.append("x.parquet")
        assert len(names) == 2 or kind == pa.binary_view()
        for name in names:
            pixels, columns, _ = read_all(tmp_path / name)
            assert len(pixels) == 2 and columns["label"] == ["cat", "dog"]


def test_a_tar_of_webdataset_has_the_labels_beside_its_images(tmp_path):
    members = {
        "a/000.png": png(0),
        "a/000.cls": b"7\n",
        "a/000.json": b"{}",
        "a/001.cls": b"9",
        "a/001.png": png(1),
    }
    write_tar(tmp_path / "x.tar", members)
    _, columns, _ = read_all(tmp_path / "x.tar")
    assert columns == {"id": ["a/000.png", "a/001.png"], "label": ["7", "9"]}
    _, columns, _ = read_all(tmp_path / "x.tar", labels="none")
    assert list(columns) == ["id"]


@pytest.mark.parametrize(
    "order", ["labels last", "labels first", "one amid the others", "one corrected", "one image again"]
)
def test_a_label_in_a_tar_that_does_not_stand_next_to_its_image_is_one_line(tmp_path, order):
    """The folder's name would be taken for it."""
    images = {f"c/{i}.png": png(i) for i in range(3)}
    labels = {f"c/{i}.cls": b"x" for i in range(3)}
    members = {
        "labels last": {**images, **labels},
        "labels first": {**labels, **images},
        "one amid the others": {
            "c/0.png": png(0), "c/0.cls": b"x", "c/1.png": png(1), "c/2.png": png(2), "c/1.cls": b"x",
        },
        "one corrected": {
            "c/0.png": png(0), "c/0.cls": b"x", "c/1.png": png(1), "c/1.cls": b"x", "./c/0.cls": b"y",
        },
        "one image again": {
            "c/0.png": png(0), "c/0.cls": b"x", "c/1.png": png(1), "c/1.cls": b"x", "c/0.jpg": png(2),
        },
    }[order]  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    says = r"x\.tar': c/\d\.cls does not stand next to its image: pack the files by name .*--labels none"
    for read in (read_all, pj.open_images, open_training):
        with pytest.raises(DataError, match=says) as error:
            read(tmp_path / "x.tar")
        assert "\n" not in str(error.value)
    kept = pj.open_images(tmp_path / "x.tar", labels="none")
    assert len(kept) == sum(not name.endswith(".cls") for name in members)


def test_a_key_of_a_tar_with_several_labels_is_one_line(tmp_path):
    """A key ends at the first dot, as WebDataset has it: both images would have the last label."""
    members = {
        f"IMG.{i}.{end}": png(i) if end == "png" else b"%d" % i for i in (1, 2) for end in ("png", "cls")
    }
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x\.tar': IMG has several labels, of which IMG\.2\.cls is one"):
        read_all(tmp_path / "x.tar")
    assert len(pj.open_images(tmp_path / "x.tar", labels="none")) == 2
    write_tar(tmp_path / "y.tar", members | {"IMG.1.cls": b"2"})
    assert read_all(tmp_path / "y.tar")[1]["label"] == ["2", "2"]


def test_labels_of_a_tar_in_another_folder_than_its_images_are_one_line(tmp_path):
    """The folder's name would be taken for each."""
    members = {f"images/{i}.png": png(i) for i in range(2)} | {f"labels/{i}.cls": b"x" for i in range(2)}
    write_tar(tmp_path / "x.tar", members)
    says = (
        r"x\.tar': no label has an image of its name \(labels/0\.cls, for one\): put KEY\.cls in the folder"
    )
    for read in (read_all, pj.open_images):
        with pytest.raises(DataError, match=says):
            read(tmp_path / "x.tar")
    assert len(pj.open_images(tmp_path / "x.tar", labels="none")) == 2
    write_tar(tmp_path / "y.tar", {"images/2.png": png(2), "images/2.cls": b"y", **members})
    assert read_all(tmp_path / "y.tar")[1]["label"] == ["y", "images", "images"]  # some have none


def test_reading_amid_a_tar_does_not_judge_its_labels_by_its_end(tmp_path):
    known = {
        f"c/{i:03}.{end}": png(i % 9) if end == "png" else b"x" for i in range(600) for end in ("cls", "png")
    }
    write_tar(tmp_path / "x.tar", known | {f"d/{i}.png": png(i) for i in range(9)} | {"d/x.cls": b"y"})
    shard = shard_readers.open_shard(str(tmp_path / "x.tar"))
    rows, places = shard.length(["label"])
    assert rows == 609 and places[-1][0] > 0
    amid = shard_readers.open_shard(str(tmp_path / "x.tar"), places)
    (batch,) = amid.read(100, ["label"], 600)
    assert batch.column(0).to_pylist() == ["d"] * 9


def test_an_empty_label_in_a_tar_is_one_line(tmp_path):
    write_tar(tmp_path / "x.tar", {"c/0.png": png(0), "c/0.cls": b" \n"})
    with pytest.raises(DataError, match=r"x\.tar': c/0\.cls is empty: write the label of its image in it"):
        read_all(tmp_path / "x.tar")
    assert len(pj.open_images(tmp_path / "x.tar", labels="none")) == 1


def test_a_label_in_a_tar_of_another_kind_of_file_is_no_image_s(tmp_path):
    write_tar(tmp_path / "x.tar", {"c/0.png": png(0), "c/0.cls": b"x", "c/1.npy": b"", "c/1.cls": b"y"})
    assert read_all(tmp_path / "x.tar")[1] == {"id": ["c/0.png"], "label": ["x"]}


def test_a_shard_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", {"c/0.png": png(0)})

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("probjepa.data.shard_readers._opened", refuse)
    with pytest.raises(ShardError, match=r"x\.tar' cannot be read \(Permission denied\): check your rights$"):
        read_all(tmp_path / "x.tar")

    def refuse_as_a_store(path, *_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr("probjepa.data.shard_readers._opened", refuse_as_a_store)
    with pytest.raises(ShardError, match=r"x\.tar' cannot be read \(Access Denied\): check your rights$"):
        read_all(tmp_path / "x.tar")


def test_names_in_a_tar_that_are_no_text_are_escaped(tmp_path):
    write_tar(tmp_path / "x.tar", {"caf\udce9/0.png": png(0)})
    _, columns, _ = read_all(tmp_path / "x.tar")
    assert columns == {"id": ["caf\\udce9/0.png"], "label": ["caf\\udce9"]}


def test_columns_of_labels_and_ids_are_chosen(tmp_path):
    rows = (
        table(0, 3).append_column("id", pa.array([5, 6, None])).append_column("kind", pa.array([1, 2, None]))
    )
    pq.write_table(rows, tmp_path / "x.parquet")
    _, columns, _ = read_all(tmp_path / "x.parquet", labels="kind")
    assert columns == {"id": ["5", "6", "x.parquet:2"], "label": [1, 2, None]}
    with pytest.raises(ShardError, match="row 2 has no id in 'id'"):
        read_all(tmp_path / "x.parquet", ids="id")
    with pytest.raises(ShardError, match="no column 'none of these'"):
        read_all(tmp_path / "x.parquet", labels="none of these")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".tar", ".tgz"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_broken_file_is_one_line(tmp_path, suffix, share):
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(table(0, 9), path)
    elif suffix == ".arrow":
        write_arrow(path, table(0, 9), stream=False)
    else:
        write_tar(path, {f"{i}.png": png(i, 40) for i in range(9)}, "w" if suffix == ".tar" else "w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ShardError, match=rf"x\{suffix}' cannot be read as {suffix}") as error:
        read_all(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.arrow", "x.stream.arrow"])
def test_an_arrow_file_that_is_cut_while_it_is_read_is_one_line(tmp_path, name):
    # in a process of its own: of a file that is mapped, a row that it no longer holds ends it
    write_table(tmp_path / name, table(0, 400), rows=100)
    done = in_process(CUT, tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert f"{name}' cannot be read as .arrow (" in done.stdout and len(done.stdout.splitlines()) == 1


CUT = """
import os, sys
from probjepa.data.shard_readers import open_shard, reading
from probjepa.errors import DataError

try:
    with reading(sys.argv[1]):
        batches = open_shard(sys.argv[1]).read(3, ["image"], 0)
        next(batches)
        os.truncate(sys.argv[1], 4096)
        for batch in batches:
            batch.to_pylist()
except DataError as error:
    print(error)
"""


def in_process(code, path):
    return subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False, timeout=200
    )


@pytest.mark.parametrize("name", ["x.arrow", "x.stream.arrow"])
@pytest.mark.parametrize("kind", ["numbers", "dictionary"])
def test_an_arrow_file_is_read_from_any_row(tmp_path, name, kind):
    rows = pa.table({"image": [png(row) for row in range(11)], "x": range(11)})
    if kind == "dictionary":
        names = pa.array([str(row) for row in range(11)]).dictionary_encode()
        rows = rows.append_column("of", names)
    write_table(tmp_path / name, rows, rows=4)
    path = str(tmp_path / name)
    assert shard_readers.open_shard(path).length([]) == (11, ())
    for start in range(13):
        for columns in (["x"], rows.column_names):
            batches = list(shard_readers.open_shard(path).read(3, columns, start))
            assert all(batch.schema.names == columns for batch in batches)
            assert [row for batch in batches for row in batch.to_pylist()] == rows.slice(start).select(
                columns
            ).to_pylist()


@pytest.mark.parametrize("name", ["x.arrow", "x.stream.arrow"])
def test_rows_of_an_arrow_file_are_counted_and_passed_over_unread(tmp_path, name):
    rows = pa.table({"image": [os.urandom(200_000) for _ in range(20)]})
    write_table(tmp_path / name, rows)
    opened = shard_readers.open_shard(str(tmp_path / name))
    before = bytes_read()
    assert opened.length([]) == (20, ())
    assert bytes_read() - before < 100_000
    opened = shard_readers.open_shard(str(tmp_path / name))
    assert len(list(opened.read(3, ["image"], 18))) == 1
    assert bytes_read() - before < 1_000_000  # the last batch has four rows


def bytes_read():
    with open("/proc/self/io", encoding="ascii") as file:
        return int(file.readline().split()[1])


def test_a_stream_that_is_cut_is_one_line_where_it_is_counted(tmp_path):
    path = tmp_path / "x.stream.arrow"
    write_table(path, table(0, 9))
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ShardError, match=r"cannot be read as \.arrow"), shard_readers.reading(str(path)):
            shard_readers.open_shard(str(path)).length([])


@pytest.mark.parametrize("spoil", ["end", "header", "between"])
def test_a_tar_that_ends_early_is_one_line(tmp_path, spoil):
    path = tmp_path / "x.tar"
    write_tar(path, {f"{i}.png": png(i) for i in range(9)})
    with tarfile.open(path) as tar:
        at = tar.getmember("5.png").offset
    whole = bytearray(path.read_bytes())
    if spoil == "header":
        whole[at + 150] ^= 1  # of its checksum
    path.write_bytes(whole[: {"end": at + 100, "header": len(whole), "between": at}[spoil]])
    with pytest.raises(ShardError, match=r"x\.tar' cannot be read as \.tar \(unexpected end of data\)"):
        read_all(path)


def test_what_is_said_of_frames_and_grey_levels_is_of_the_shard(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    stream, faint = io.BytesIO(), io.BytesIO()
    frames[0].save(stream, "gif", save_all=True, append_images=frames[1:])
    Image.new("I;16", (8, 8), 300).save(faint, "png")
    decoder = Decoder(8, 3, convert=True)
    for name, content in (("0", stream.getvalue()), ("1", png(1)), ("2", faint.getvalue()), ("3", png(3))):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.img": b"", f"{name}.png": content})
    said = []
    for shard in find_shards(str(tmp_path)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(read_shard(shard, read_layout(shard), decoder, 8))
        said.append([str(warning.message) for warning in caught])
    assert [len(lines) for lines in said] == [1, 0, 1, 0]
    assert "several frames (GIF)" in said[0][0] and "1 of 256 grey levels" in said[2][0]


def test_grey_rows_are_repeated_where_colour_is_wanted_and_not_all_are_grey(tmp_path):
    write_shards(tmp_path, (2,))
    rows = pq.read_table(tmp_path / "part-0.parquet").to_pylist()
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(5))).convert("L").save(stream, "png")
    rows[1]["image"]["bytes"] = stream.getvalue()
    pq.write_table(pa.Table.from_pylist(rows, table(0, 1).schema), tmp_path / "part-0.parquet")
    pixels, _, _ = read_all(tmp_path / "part-0.parquet")
    assert torch.equal(pixels[1, 0], pixels[1, 2]) and not torch.equal(pixels[0, 0], pixels[0, 2])
    pq.write_table(pa.Table.from_pylist(rows[1:], table(0, 1).schema), tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match="--convert"):
        read_all(tmp_path / "part-0.parquet")


def test_shards_are_found_by_name_with_their_outputs(tmp_path):
    write_shards(tmp_path / "a" / "train", (1, 1))
    write_tar(tmp_path / "a" / "b.tar.gz", {"0.png": png(0)}, "w:gz")
    (tmp_path / "a" / "README.md").write_text("notes")
    (tmp_path / "a" / ".hidden.parquet").write_text("")
    found = find_shards(str(tmp_path / "a"))
    assert [shard.name for shard in found] == ["b.parquet", "train/part-0.parquet", "train/part-1.parquet"]
    assert [shard.name for shard in find_shards(found[0].path)] == ["b.parquet"]
    write_tar(tmp_path / "a" / "b.tar", {"0.png": png(0)})
    with pytest.raises(DataError, match=r"b\.tar\.gz would both be 'b\.parquet'"):
        find_shards(str(tmp_path / "a"))


def test_what_holds_no_shards_is_one_line(tmp_path):
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError):
            find_shards(str(source))
        assert not holds_shards(str(source))
    write_shards(tmp_path, (1,))
    assert holds_shards(str(tmp_path)) and not holds_shards(str(tmp_path / "part-0.parquet"))
    (tmp_path / "a.png").write_bytes(png(0))  # a folder of images
    assert not holds_shards(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be opened"):
        find_shards("nosuchstore://bucket/x")


def test_a_store_is_read_as_a_folder_is(tmp_path):
    write_shards(tmp_path / "in", (2, 3))
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "in"), "/of-files", recursive=True)
    found = find_shards("memory://of-files")
    assert [shard.name for shard in found] == ["part-0.parquet", "part-1.parquet"]
    pixels, columns, _ = read_all(found[1].path)
    local, known, _ = read_all(tmp_path / "in" / "part-1.parquet")
    assert torch.equal(pixels, local) and columns == known
    before = file_mark(found[0].path)
    assert file_mark(found[0].path) == before
    store.pipe_file("/of-files/part-0.parquet", b"other")
    assert file_mark(found[0].path) != before
    with pytest.raises(ShardError, match="cannot be read"):
        file_mark("memory://of-files/none.parquet")
    store.rm("/of-files", recursive=True)
