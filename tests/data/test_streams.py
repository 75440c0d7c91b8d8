"""Shards as a stream: which rows come in which order, what is read for it, and what is wrong with a shard."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probjepa.data import Images, shard_files
from probjepa.data import streams as module
from probjepa.data.shard_files import ShardError
from probjepa.data.streams import LANES, Stream, lane_count, open_training
from probjepa.errors import ConfigError, DataError
from shard_cases import needs_litdata, numbered_png, opened, write_numbered, write_shards, write_tar


def number(image) -> int:
    return int(image[0, 0, 0]) + 16 * int(image[0, 7, 0])


def of_form(form, home):
    return opened(write_numbered(home, (60, 1, 90, 33, 0, 16), form), buffer=64)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return of_form("parquet", tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("form", ["arrow", "tar", "tar.gz", pytest.param("bin", marks=needs_litdata)])
def test_the_order_does_not_depend_on_the_form_of_the_shards(tmp_path, stream, form):
    other = of_form(form, tmp_path)
    assert epoch(other, 1, 20) == epoch(stream, 1, 20)
    assert epoch(other, 1, 20, 8) == epoch(stream, 1, 20, 8)
    assert torch.equal(other.sample.images, stream.sample.images)
    assert other.sample.labels is not None


def epoch(stream, draw, batch, start=0, **options):
    """The rows of each batch of one process, put together from its readers' pieces."""
    world = options.get("world_size", 1)
    batches = range(start, len(stream) // (batch * world))
    readers = options.pop("readers", 1)
    pieces = [
        list(stream.pieces(draw, batch, batches, share=(i, readers), **options)) for i in range(readers)
    ]
    found = []
    for parts in zip(*pieces, strict=True):
        rows = [-1] * batch
        for places, pixels, _ in parts:
            for place, image in zip(places.tolist(), pixels, strict=True):
                rows[place] = number(image)
        found.append(rows)
    assert len(found) == len(batches)
    return found


def flat(batches):
    return [row for batch in batches for row in batch]


def test_an_epoch_has_every_row_once_in_an_order_that_one_number_decides_on(stream):
    first, second = epoch(stream, 1, 20), epoch(stream, 2, 20)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(200))
    assert first != second
    assert first == epoch(stream, 1, 20)
    assert min(np.ptp(rows) for rows in first) > 100, "each batch is of all shards"


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_groups_of_several_images_in_a_tar_are_read_from_any_row(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("probjepa.data.shard_readers._SPACING", 4)
    names = [f"{row // rows:04d}.{row % rows}.png" for row in range(200)]
    write_tar(tmp_path / "x.tar", {name: numbered_png(row) for row, name in enumerate(names)})
    stream = opened(tmp_path, buffer=64)
    assert sorted(flat(epoch(stream, 1, 20))) == list(range(200))
    assert epoch(stream, 1, 20, 6) == epoch(stream, 1, 20)[6:]


def test_what_fills_no_batch_differs_from_epoch_to_epoch(stream):
    left = [set(range(200)) - set(flat(epoch(stream, draw, 12))) for draw in range(3)]
    assert {len(rows) for rows in left} == {200 % 12}
    assert len(set.union(*left)) > 1.5 * (200 % 12)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    draw=st.integers(0, 2**63 - 1), batch=st.integers(2, 40), world=st.integers(1, 5), rank=st.integers(0, 4),
    readers=st.integers(1, 4), buffer=st.integers(32, 300), at=st.floats(0, 1),
)  # fmt: skip
def test_a_batch_is_the_same_from_any_start_and_with_any_readers(
    stream, draw, batch, world, rank, readers, buffer, at
):
    stream.buffer = buffer
    options = {"rank": rank % world, "world_size": world}
    whole = epoch(stream, draw, batch, **options)
    start = round(at * len(whole))
    assert epoch(stream, draw, batch, start, readers=readers, **options) == whole[start:]


@pytest.mark.parametrize("world", [2, 3, 4, 40])
def test_processes_share_an_epoch_equally_and_together_see_the_same_batches(stream, world):
    shares = [epoch(stream, 5, 4, rank=rank, world_size=world) for rank in range(world)]
    assert {len(share) for share in shares} == {200 // (4 * world)}
    seen = [row for share in shares for row in flat(share)]
    assert len(set(seen)) == len(seen)
    if LANES % world == 0:
        joined = [sorted(flat(batches)) for batches in zip(*shares, strict=True)]
        assert joined == [sorted(rows) for rows in epoch(stream, 5, 4 * world)]


@pytest.mark.parametrize("world", range(1, 70))
def test_each_process_has_as_many_lanes(world):
    lanes = lane_count(world)
    assert lanes % world == 0 and lanes >= LANES
    assert lanes == LANES or LANES % world


def test_no_more_rows_are_held_than_the_buffer_has(stream, monkeypatch):
    alive, most, images = 0, 0, module.ShardRecords.images

    class Row(bytes):
        def __init__(self, content):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(stream, "buffer", 64)
    monkeypatch.setattr(module.ShardRecords, "images", lambda self, length: map(Row, images(self, 1)))
    epoch(stream, 0, 20)
    assert LANES < most <= 64 + 1
    assert alive == 0


def test_what_lies_before_the_start_is_neither_decoded_nor_read(stream, monkeypatch):
    decoded, read = [], []
    decode, images = Stream._image, module.ShardRecords.images

    def watched(self, row, payload):
        decoded.append(row)
        return decode(self, row, payload)

    def counted(self, length):
        for payload in images(self, 1):
            read.append(self.name)
            yield payload

    monkeypatch.setattr(Stream, "_image", watched)
    monkeypatch.setattr(module.ShardRecords, "images", counted)
    monkeypatch.setattr(stream, "buffer", 64)
    epoch(stream, 0, 20, 9)
    assert len(decoded) == 20
    assert len(read) <= 20 + 64


def test_the_sample_is_spread_over_all_shards_and_has_labels(stream, monkeypatch):
    assert sorted(number(image) for image in stream.sample.images) == list(range(200))
    assert stream.sample.labels is not None and len(stream.sample.labels) == 200
    monkeypatch.setattr(module, "_SAMPLE_ROWS", 64)
    stream.look(3)
    rows = sorted(number(image) for image in stream.sample.images)
    assert len(set(rows)) == len(rows) == 64
    assert max(np.diff(rows)) < 10


def test_texts_are_classes_of_the_sample(tmp_path):
    stream = opened(write_shards(tmp_path / "shards"), channels=3)
    assert stream.sample.classes == ["cat", "dog"]
    assert stream.sample.labels.bincount().tolist() == [9, 9]


def test_a_row_that_cannot_be_read_has_another_in_its_place(tmp_path):
    folder = write_numbered(tmp_path / "shards", (60, 90, 50), spoil={5, 70, 71, 199})
    with pytest.raises(
        DataError, match=r"part-0\d.parquet, row \d+ is not an image that Pillow can read: .*skip"
    ):
        opened(folder)
    stream = opened(folder, on_error="skip", buffer=256)
    pieces = list(stream.pieces(0, 20, range(10)))
    assert len(pieces) == 10 and {len(piece.pixels) for piece in pieces} == {20}
    lines = [line for piece in pieces for line in piece.broken]
    assert sorted(line.partition(" is")[0].rpartition("/")[2] for line in lines) == [
        "part-00.parquet, row 5", "part-01.parquet, row 10", "part-01.parquet, row 11", "part-02.parquet, row 49",
    ]  # fmt: skip
    seen = sorted(number(image) for piece in pieces for image in piece.pixels)
    assert set(range(200)) - set(seen) == {5, 70, 71, 199}
    assert len(stream.sample) == 196
    again = list(stream.pieces(0, 20, range(4, 10)))
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(pieces[4:], again, strict=True))


def test_a_shard_that_changes_is_named(tmp_path):
    stream = opened(write_numbered(tmp_path / "shards", (60, 90)))
    write_numbered(tmp_path / "shards", (60, 80))
    with pytest.raises(ShardError, match=r"part-01.parquet' has changed since it was opened") as caught:
        epoch(stream, 0, 20)
    assert "\n" not in str(caught.value)


def broken(folder):
    (folder / "part-01.parquet").write_bytes(b"PAR1 is all there is")


def other_columns(folder):
    pq.write_table(
        pa.table({"picture": pa.array([numbered_png(0)], pa.binary())}), folder / "part-01.parquet"
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken, "part-01.parquet' cannot be read as .parquet"),
        (other_columns, "has other columns than the first"),
    ],
)
def test_a_shard_that_will_not_do_is_one_line_or_left_out(tmp_path, spoil, message):
    folder = write_numbered(tmp_path / "shards", (60, 30, 40))
    spoil(folder)
    with pytest.raises(ShardError, match=message):
        opened(folder)
    stream = opened(folder, on_error="skip")
    assert len(stream) == 100
    assert len(stream.skipped) == 1 and message.split("'")[0] in stream.skipped[0]


def test_what_is_no_stream_is_one_line(tmp_path):
    for shards, message in (((0, 0), "holds no images"), ((), "holds no shards")):
        with pytest.raises(DataError, match=message):
            opened(write_numbered(tmp_path / f"{len(shards)}", shards))
    with pytest.raises(ConfigError, match="the data is a ndarray: give a folder or an address"):
        open_training(np.zeros((4, 8, 8), dtype=np.uint8), stream=True)
    splits = tmp_path / "splits"
    write_numbered(splits, ())
    for name in ("train", "test"):
        write_numbered(splits / name, (9,), "tar")
    with pytest.raises(DataError, match=r"several splits \(test, train\): choose one, '.*splits/train'"):
        opened(splits)
    with pytest.raises(DataError, match=r"has 3 channel.*pass --convert"):
        opened(write_shards(tmp_path / "colour"))


def test_small_parquet_is_held_in_memory_and_large_or_other_shards_are_streamed(tmp_path):
    def kind(place, **options):
        return type(open_training(str(place), size=8, channels=1, **options)).__name__

    parquet, tar = (
        write_numbered(tmp_path / "parquet", (60, 30)),
        write_numbered(tmp_path / "tar", (60, 30), "tar"),
    )
    assert kind(parquet) == kind(parquet / "part-00.parquet") == "ImageSet"
    assert kind(tar) == kind(tar / "part-00.tar") == "Stream"
    assert kind(parquet, memory_limit=90 * 64) == "ImageSet"
    for place in (parquet, parquet / "part-00.parquet", parquet / "*.parquet"):
        assert kind(place, memory_limit=59 * 64) == "Stream"
    assert kind(parquet, memory_limit=0, stream=False) == "StreamedImages"
    assert isinstance(open_training("sklearn:digits", size=8), Images)


def test_shards_of_a_store_are_streamed(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in write_numbered(tmp_path / "shards", (60, 30)).iterdir():
        store.pipe_file(f"/streams/{file.name}", file.read_bytes())
    stream = open_training("memory://streams", size=8, channels=1)
    assert sorted(flat(epoch(stream, 0, 9))) == list(range(90))
    store.pipe_file("/streams/part-01.parquet", b"other")
    with pytest.raises(ShardError, match=r"/part-01.parquet' has changed"):
        epoch(stream, 0, 9)


def test_a_set_of_the_hub_is_streamed_from_its_parquet_files(tmp_path, monkeypatch):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in write_numbered(tmp_path / "shards", (60, 30)).iterdir():
        store.pipe_file(f"/hub/me/set@refs/convert/parquet/default/train/{file.name}", file.read_bytes())

    def on_the_hub(address):
        return store, address.replace("hf://datasets/", "/hub/")

    monkeypatch.setattr(shard_files, "filesystem", on_the_hub)
    address = shard_files.hub_address("me/set")
    assert address == "hf://datasets/me/set@refs/convert/parquet/default/train"
    with pytest.raises(DataError, match="parquet files of train, and not of all of 'test': choose"):
        shard_files.hub_address("me/set:test")
    with pytest.raises(DataError, match="hf:no/set cannot be streamed"):
        shard_files.hub_address("no/set")
    monkeypatch.undo()
    monkeypatch.setattr(
        module, "hub_address", lambda name: f"memory://hub/{name}@refs/convert/parquet/default/train"
    )
    assert len(open_training("hf:me/set", stream=True, size=8, channels=1)) == 90
