"""``open_images`` of shards of every kind: one set, whatever files its rows lie in."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from probjepa.data import ImageSet, StreamedImages, open_images
from probjepa.data.decode import Decoder
from probjepa.data.shard_files import find_shards
from probjepa.data.shards import read_layout, read_shard
from probjepa.data.streams import open_training
from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from shard_cases import png, table, write_shard, write_table, write_tar

COUNT, SHARDS = 30, 3
FORMS = ["parquet", "arrow", "stream.arrow", "feather", "ipc", "tar", "tar.gz", "tgz"]
TARS = ["tar", "tar.gz", "tgz"]
NAMES = ["cat", "dog"]  # of table


def write_set(folder, form, count=COUNT):
    length = count // SHARDS
    for number in range(SHARDS):
        write_shard(folder / f"part-{number}.{form}", range(number * length, (number + 1) * length))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {form: write_set(root / form, form) for form in FORMS}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def expected():
    decode = Decoder(None, 3)
    return torch.stack([torch.from_numpy(decode(png(row)).copy()) for row in range(COUNT)])


def names_of(form, shard, rows):
    if form == "tar":
        return [f"{row:03d}.png" for row in rows]
    if form in TARS:
        return [f"{NAMES[row % 2]}/{row:03d}.png" for row in rows]
    return [f"part-{shard}.{form}:{row - rows.start}" for row in rows]


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("form", FORMS)
def test_shards_of_every_kind_are_the_same_set(sets, form, limit):
    found = open_images(sets[form], memory_limit=limit)
    assert isinstance(found, ImageSet if limit is None else StreamedImages)
    assert torch.equal(found.get(slice(None)), expected())
    assert found.classes == NAMES and found.labels.tolist() == [row % 2 for row in range(COUNT)]
    assert found.ids == [x for s in range(3) for x in names_of(form, s, range(10 * s, 10 * s + 10))]
    assert found.name == str(sets[form]) and found.skipped == []


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_called_what_the_shard_commands_call_them(sets, form):
    found = open_images(sets[form], size=8)
    ids, labels = [], []
    for shard in find_shards(str(sets[form])):
        for part in read_shard(shard, read_layout(shard), Decoder(8, 3), 7):
            ids += part.columns["id"].to_pylist()
            labels += part.columns["label"].to_pylist()
    assert found.ids == ids and [found.classes[label] for label in found.labels] == labels


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_a_glob_and_an_address_open_too(sets, form, limit):
    one = open_images(sets[form] / f"part-1.{form}", memory_limit=limit)
    assert torch.equal(one.get([0, 9]), expected()[[10, 19]])
    assert one.ids[0] == (names_of(form, 1, range(10, 20))[0] if form in TARS else "0")
    two = open_images(f"{sets[form]}/part-[12].{form}", memory_limit=limit)
    assert torch.equal(two.get(slice(None)), expected()[10:]) and two.labels.tolist() == [0, 1] * 10
    store = fsspec.filesystem("memory")
    store.put(str(sets[form]), f"/opened-{form}", recursive=True)
    far = open_images(f"memory://opened-{form}", memory_limit=limit)
    assert torch.equal(far.get(slice(None)), expected())
    assert far.ids == open_images(sets[form]).ids and far.classes == NAMES
    store.rm(f"/opened-{form}", recursive=True)


def test_a_glob_or_an_address_of_nothing_is_one_line(tmp_path):
    (tmp_path / "x.txt").write_text("notes")
    for place, says in (
        (f"{tmp_path}/*.tar", "no shard matches"),
        ("memory://nothing-here", "holds no shards"),
        ("nosuchstore://bucket/x", "cannot be opened"),
        (f"{tmp_path}", "holds no images, of 1 file, such as 'x.txt'"),
    ):
        with pytest.raises((DataError, ConfigError), match=says) as error:
            open_images(place)
        one_line(error)


def look(pickled):
    return pickle.loads(pickled).get([29, 0, 11])


@pytest.mark.parametrize("form", ["arrow", "tar.gz"])
def test_a_streamed_set_is_read_by_another_process(sets, form):
    found = open_images(sets[form], memory_limit=0)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pixels = pool.submit(look, pickle.dumps(found)).result()
    assert torch.equal(pixels, expected()[[29, 0, 11]])
    assert torch.equal(found.subset([3, 7]).get([1]), expected()[[7]])


@pytest.mark.parametrize("form", ["parquet", "stream.arrow", "tar"])
def test_the_copy_of_a_streamed_set_goes_with_it(sets, form, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = open_images(sets[form], memory_limit=0)
    assert [path.suffix for path in tmp_path.rglob("*.*") if path.is_file()] == [".arrow"]
    del found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("form", FORMS)
def test_labels_and_ids_can_be_chosen_or_left_out(sets, form, limit):
    found = open_images(sets[form], labels="none", memory_limit=limit)
    assert found.labels is None and found.classes is None
    if form in TARS:
        by_name = open_images(sets[form], ids="id", labels="label", memory_limit=limit)
        assert by_name.ids == found.ids and by_name.classes == NAMES
    for wanted in ({"labels": "kind"}, {"ids": "kind"}):
        with pytest.raises(DataError, match=r"no column 'kind' \(columns: .*label") as error:
            open_images(sets[form], memory_limit=limit, **wanted)
        one_line(error)


@pytest.mark.parametrize("limit", [None, 0])
def test_rows_of_tar_files_with_the_same_names_are_called_by_shard_and_row(tmp_path, limit):
    for number in range(2):
        members = {f"{row}.png": png(10 * number + row) for row in range(2)}
        write_tar(tmp_path / f"{number}.tar", members)
    found = open_images(tmp_path, memory_limit=limit)
    assert found.ids == ["0.tar:0", "0.tar:1", "1.tar:0", "1.tar:1"]
    assert found.labels is None and found.classes is None
    with pytest.raises(DataError, match="row 2 has the id of row 0 again"):
        open_images(tmp_path, ids="id", memory_limit=limit)


@pytest.mark.parametrize("limit", [None, 0])
def test_class_names_of_the_hub_are_kept_in_every_arrow_file(tmp_path, limit):
    rows = table(0, 4).set_column(1, "label", pa.array([1, 0, 2, 1]))
    about = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    rows = rows.replace_schema_metadata({"huggingface": str(about).replace("'", '"')})
    (tmp_path / "state.json").write_text("{}")
    with pa.ipc.new_stream(str(tmp_path / "data-00000-of-00001.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    found = open_images(tmp_path, memory_limit=limit)  # as datasets.save_to_disk writes it
    assert found.classes == ["a", "b", "c"] and found.labels.tolist() == [1, 0, 2, 1]
    assert found.skipped == [f"{tmp_path / 'state.json'} is no image of a known format"]


@pytest.mark.parametrize("limit", [None, 0])
def test_numbers_of_classes_are_those_of_each_shard(tmp_path, limit):
    for shard, names in enumerate([["cat", "dog"], ["dog", "cat", "cow"], None]):
        rows = table(4 * shard, 4).set_column(1, "label", pa.array([0, 1, None, 1]))
        about = json.dumps({"info": {"features": {"label": {"names": names}}}}) if names else "{}"
        write_table(tmp_path / f"{shard}.parquet", rows.replace_schema_metadata({"huggingface": about}))
    found = open_images(tmp_path, memory_limit=limit)
    labels = [found.classes[label] if label >= 0 else None for label in found.labels]
    # a shard without names has those of the first
    assert labels == ["cat", "dog", None, "dog", "dog", "cat", None, "cat", "cat", "dog", None, "dog"]


@pytest.mark.parametrize("limit", [None, 0])
def test_rows_in_folders_have_ids_of_their_own_in_the_order_of_the_shard_commands(tmp_path, limit):
    for number, folder in enumerate(["a-b", "a", "a/c"]):
        write_shard(tmp_path / folder / "0.parquet", range(10 * number, 10 * number + 3))
    found, ids, pixels = open_images(tmp_path, size=8, memory_limit=limit), [], []
    for shard in find_shards(str(tmp_path)):
        for part in read_shard(shard, read_layout(shard), Decoder(8, 3), 7):
            ids += part.columns["id"].to_pylist()
            pixels.append(part.images.images)
    assert found.ids == ids and torch.equal(found.get(slice(None)), torch.cat(pixels))
    assert ids == [f"{folder}/0.parquet:{row}" for folder in ("a-b", "a", "a/c") for row in range(3)]
    some = open_images(f"{tmp_path}/a*/0.parquet", memory_limit=limit)
    assert some.ids == ids[:6]


@pytest.mark.parametrize("limit", [None, 0])
def test_kinds_may_lie_beside_each_other_where_their_columns_agree(tmp_path, limit):
    for number, form in enumerate(["parquet", "tar", "arrow"]):
        write_shard(tmp_path / f"{number}.{form}", range(10 * number, 10 * number + 10))
    found = open_images(tmp_path, memory_limit=limit)
    assert torch.equal(found.get(slice(None)), expected()) and found.classes == NAMES
    assert found.ids[9:11] == ["0.parquet:9", "1.tar:0"]
    write_shard(tmp_path / "0.tar", range(3))  # a tar file comes first: it has ids, the others none
    os.remove(tmp_path / "0.parquet")
    with pytest.raises(DataError, match=r"2\.arrow' lacks the column id of '.*0\.tar'") as error:
        open_images(tmp_path, memory_limit=limit)
    one_line(error)


@pytest.mark.parametrize("form", ["parquet", "arrow", "ipc"])
def test_other_columns_than_the_first_are_one_line(tmp_path, form):
    write_set(tmp_path, form)
    rows = table(0, 2).rename_columns(["image", "kind"])
    write_table(tmp_path / f"part-1.{form}", rows)
    with pytest.raises(DataError, match=rf"part-1\.{form}' lacks the column label of '.*part-0") as error:
        open_images(tmp_path)
    one_line(error)
    rows = rows.select(["kind"])
    if form != "parquet":
        write_table(tmp_path / f"x.{form}", rows)
        with pytest.raises(DataError, match=rf"x\.{form}': no column holds images \(columns: kind\)"):
            open_images(tmp_path / f"x.{form}")


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_a_broken_shard_is_one_line(tmp_path, form, share):
    broken = write_set(tmp_path, form, 90) / f"part-1.{form}"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(len(whole) * share)])
    for limit in (None, 0):
        with pytest.raises(DataError, match=r"part-1\..* cannot be read as \.\w+.*write it again") as error:
            open_images(tmp_path, memory_limit=limit)
        one_line(error)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_shard_is_passed_over_and_the_first_is_one_line(tmp_path, form):
    write_shard(tmp_path / f"0.{form}", range(10))
    write_shard(tmp_path / f"1.{form}", range(0))
    assert len(open_images(tmp_path)) == len(open_images(tmp_path, memory_limit=0)) == 10
    os.replace(tmp_path / f"1.{form}", tmp_path / f"0.{form}")
    with pytest.raises(DataError, match=r"'.*/0\..*' has no rows: remove it") as error:
        open_images(tmp_path)
    one_line(error)


@pytest.mark.parametrize("form", ["parquet", "arrow", "tar", "tgz"])
def test_a_shard_that_changes_is_one_line(sets, tmp_path, form, monkeypatch):
    write_set(tmp_path, form)
    from probjepa.data import sources

    def change(records, decoder):
        write_shard(tmp_path / f"part-2.{form}", range(12))
        os.utime(tmp_path / f"part-2.{form}", (1, 1))
        return 3, 10, 10

    monkeypatch.setattr(sources, "peek", change)
    for limit in (None, 0):
        with pytest.raises(DataError, match=rf"part-2\.{form}' has changed since it was opened") as error:
            open_images(tmp_path, memory_limit=limit)
        one_line(error)
        write_shard(tmp_path / f"part-2.{form}", range(20, 30))


@pytest.mark.parametrize("form", ["parquet", "ipc", "tar", "tar.gz"])
def test_splits_of_a_folder_are_not_joined(tmp_path, form):
    write_shard(tmp_path / f"train-0.{form}", range(4))
    write_shard(tmp_path / f"test-0.{form}", range(4, 6))
    with pytest.raises(DataError, match=r"several splits \(test, train\): choose one, '.*train\*"):
        open_images(tmp_path)
    assert len(open_images(f"{tmp_path}/train*.{form}")) == 4


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("form", ["parquet", "arrow", "tar", "tar.gz"])
def test_an_image_that_cannot_be_read_is_named_by_shard_and_row(tmp_path, form, limit):
    write_shard(tmp_path / f"0.{form}", range(4))
    if "tar" in form:
        spoilt = {"000.png": png(0), "001.png": b"no image"}
        write_tar(tmp_path / f"1.{form}", spoilt, "w" if form == "tar" else "w:gz")
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = [{"bytes": png(0), "path": None}, {"bytes": b"no image", "path": None}]
        rows = pa.table({"image": pa.array(images, kind), "label": ["cat", "dog"]})
        write_table(tmp_path / f"1.{form}", rows)
    name = r" \('001\.png'\)" if "tar" in form else ""
    with pytest.raises(
        DataError, match=rf"1\.{form}, row 1{name} is not an image .*--on-error skip"
    ) as error:
        open_images(tmp_path, memory_limit=limit)
    one_line(error)
    found = open_images(tmp_path, memory_limit=limit, on_error="skip")
    assert len(found) == 5 and f"1.{form}, row 1" in found.skipped[0]


@pytest.mark.parametrize("form", ["parquet", "arrow", "tar"])
def test_folders_of_images_and_of_shards_are_told_apart(tmp_path, form):
    write_shard(tmp_path / "b" / f"x.{form}", range(2))
    write_shard(tmp_path / "b-1" / f"x.{form}", range(2, 4))
    (tmp_path / "README.md").write_text("notes")
    found = open_images(tmp_path)
    # in the order of the shard commands, and of Arrow's data sets
    np.testing.assert_array_equal(found.images, expected()[[2, 3, 0, 1]])
    files = ds.dataset(tmp_path, format=form, exclude_invalid_files=True).files if form != "tar" else []
    assert [Path(file).parent.name for file in files] == ["b-1", "b"][: len(files)]
    assert found.skipped == [f"{tmp_path / 'README.md'} is no image of a known format"]
    (tmp_path / "without-a-suffix").write_bytes(png(0))
    found = open_images(tmp_path)
    assert found.ids == ["without-a-suffix"] and len(found.skipped) == 3
    shard = tmp_path / "b" / f"x.{form}"
    assert f"{shard} is no image: shards are read where no images lie beside them" in found.skipped


def write_links(path, mode):
    """Images 0 and 1 of ``table``, and links to them under other names; (name, which of them) of those."""
    names = [
        ("x/a.png", 0),
        ("x/0.png", 0),
        ("x/1.png", 1),
        ("x/2.png", 0),
        ("x/3.png", 1),
        ("y/4.png", 0),
        ("y/5.png", 1),
    ]
    with tarfile.open(path, mode) as tar:

        def add(name, content=None, to=None, kind=tarfile.SYMTYPE):
            info = tarfile.TarInfo(name)
            if to is not None:
                info.type, info.linkname = kind, to
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))

        add("x/a.png", to="0.png")  # forward
        add("x/0.png", png(0))
        add("x/1.png", png(1))
        add("x/2.png", to="x/0.png", kind=tarfile.LNKTYPE)
        add("x/3.png", to="./1.png")
        add("y/4.png", to="../x/2.png")  # a link to a link
        add("y/5.png", to="blob")
        add("y/blob", to="../x/1.png")
        add("x/1.png", to="x/1.png", kind=tarfile.LNKTYPE)  # packed twice
        add("y/gone.png", to="../z/0.png")
        add("y/away.png", to="/etc/hostname")
        add("y/round.png", to="round.png")
        add("y/.hidden.png", to="gone")
        add("y/notes.txt", to="../x/0.png")
    return names


LEFT_OUT = [f"y/{name}.png is a link that leads to no file in it" for name in ("gone", "away", "round")]


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("labels", [None, "none"])
@pytest.mark.parametrize("form", [*TARS, "tar.bz2-as.tar", "tar.xz-as.tar"])
def test_links_in_a_tar_are_the_files_that_they_lead_to(tmp_path, form, limit, labels):
    packed = form.split(".")[1].split("-")[0] if "-" in form else "gz"
    path = tmp_path / f"x.{form.split('-as.')[-1]}"
    names = write_links(path, "w" if form == "tar" else f"w:{packed}")
    found = open_images(path, memory_limit=limit, labels=labels)
    assert found.ids == [name for name, _ in names]
    assert torch.equal(found.get(slice(None)), expected()[[of for _, of in names]])
    assert found.skipped == [f"{path}, {line}" for line in LEFT_OUT]
    if labels is None:
        assert [found.classes[label] for label in found.labels] == [name[0] for name, _ in names]


@pytest.mark.parametrize("form", TARS)
def test_links_in_a_tar_are_read_shard_by_shard_and_from_any_place(tmp_path, form, monkeypatch):
    path = tmp_path / f"x.{form}"
    names = write_links(path, "w" if form == "tar" else "w:gz")
    shard, failed = find_shards(str(path))[0], []
    rows = list(read_shard(shard, read_layout(shard), Decoder(10, 3), 3, skip=True, failed=failed))
    assert [name for part in rows for name in part.columns["id"].to_pylist()] == [name for name, _ in names]
    pixels = torch.cat([part.images.images for part in rows])
    assert torch.equal(pixels, expected()[[of for _, of in names]])
    assert failed == [f"{path}, {line}" for line in LEFT_OUT]
    with pytest.warns(ProbjepaWarning, match=r"left out: .*y/gone\.png is a link .*--on-error skip"):
        list(read_shard(shard, read_layout(shard), Decoder(10, 3), 3))
    monkeypatch.setattr("probjepa.data.shard_readers._SPACING", 2)
    stream = open_training(path, size=10)
    assert len(stream) == len(names) and stream.skipped == failed
    pieces = [image for piece in stream.pieces(0, 1, range(len(names))) for image in piece.pixels]
    count = sum(torch.equal(image, expected()[0]) for image in pieces)
    assert (count, len(pieces)) == (4, 7)


def test_a_label_beside_an_image_may_be_a_link(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("0.png", png(0)), ("0.cls", b"cat")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for end in ("png", "cls"):
            info = tarfile.TarInfo(f"1.{end}")
            info.type, info.linkname = tarfile.LNKTYPE, f"0.{end}"
            tar.addfile(info)
    found = open_images(tmp_path / "x.tar")
    assert found.ids == ["0.png", "1.png"] and found.classes == ["cat"] and found.labels.tolist() == [0, 0]


@pytest.mark.parametrize("limit", [None, 0.0])
def test_a_broken_image_of_a_tar_is_called_by_its_name(tmp_path, limit):
    write_tar(tmp_path / "x.tar", {"a/0.png": png(0), "a/bad.png": png(1)[:50], "a/2.png": png(2)})
    says = rf"{tmp_path / 'x.tar'}, row 1 \('a/bad.png'\) "
    with pytest.raises(DataError, match=says):
        open_images(tmp_path / "x.tar", memory_limit=limit)
    found = open_images(tmp_path / "x.tar", on_error="skip", memory_limit=limit)
    assert len(found) == 2 and re.match(says, found.skipped[0])
    with pytest.raises(DataError, match=says):
        open_training(tmp_path / "x.tar")
    assert re.match(says, open_training(tmp_path / "x.tar", on_error="skip").skipped[0])
    (shard,) = find_shards(str(tmp_path / "x.tar"))
    failed = []
    rows = list(read_shard(shard, read_layout(shard), Decoder(8, 3), 3, skip=True, failed=failed))
    assert sum(len(part.images) for part in rows) == 2 and re.match(says, failed[0])


def test_a_broken_row_without_an_id_of_its_own_is_called_by_its_number(tmp_path):
    path, failed = tmp_path / "x.parquet", []
    rows = {"id": [None, None, "x"], "image": [png(0), b"no image", b"no image"]}
    pq.write_table(pa.table(rows), path)
    (shard,) = find_shards(str(path))
    list(read_shard(shard, read_layout(shard), Decoder(8, 3), 3, skip=True, failed=failed))
    for lines in (failed, open_images(path, on_error="skip").skipped):
        assert lines[0].startswith(f"{path}, row 1 is") and lines[1].startswith(f"{path}, row 2 ('x') is")
