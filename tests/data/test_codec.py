"""Re-encoding against a round trip through Pillow, in memory and streamed."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from probjepa.data import ImageSet, open_images
from probjepa.data.codec import jpeg_quality, reencode
from probjepa.data.fingerprint import fingerprint
from probjepa.errors import ConfigError


def images(channels=3, count=5, seed=0):
    shape = (count, channels, 24, 16)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return ImageSet(
        torch.from_numpy(pixels), torch.arange(count), [f"{i}.png" for i in range(count)], name="n"
    )


def round_trip(picture, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 75, 95])
def test_a_set_in_memory(channels, quality):
    before = images(channels)
    after = reencode(before, f"jpeg:{quality}")
    for old, new in zip(before.images, after.images, strict=True):
        picture = old.permute(1, 2, 0).squeeze(-1).numpy()
        # Pillow's own default of chroma sampling is 4:2:0
        expected = round_trip(picture, quality=quality).reshape(24, 16, channels)
        np.testing.assert_array_equal(new.permute(1, 2, 0).numpy(), expected)
    assert (after.ids, after.name) == (before.ids, before.name)
    assert after.labels.equal(before.labels)
    assert not before.images.equal(after.images)


def test_chroma_is_subsampled():
    after = reencode(images(), "jpeg:90").images[0].permute(1, 2, 0).numpy()
    full = round_trip(images().images[0].permute(1, 2, 0).numpy(), quality=90, subsampling="4:4:4")
    assert np.abs(after.astype(int) - full.astype(int)).mean() > 1


@pytest.mark.parametrize("mixed", [False, True], ids=["colour", "grey and colour"])
def test_a_streamed_set_is_the_same(tmp_path, mixed):
    for row, pixels in enumerate(images().images):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        (image.convert("L") if mixed and row % 2 else image).save(tmp_path / f"{row}.png")
    memory = reencode(open_images(tmp_path, size=16), "jpeg:60")
    streamed = reencode(open_images(tmp_path, size=16, memory_limit=0), "jpeg:60")
    assert type(streamed) is not type(memory)
    assert streamed.get(slice(None)).equal(memory.images)
    assert streamed.subset([3, 1]).get([0]).equal(memory.images[[3]])
    assert pickle.loads(pickle.dumps(streamed)).get([2]).equal(memory.images[[2]])
    twice = reencode(streamed, "jpeg:20").get(slice(None))
    assert twice.equal(reencode(memory, "jpeg:20").images)
    assert fingerprint(streamed) == fingerprint(memory)


@pytest.mark.parametrize(
    "codec", ["jpeg", "jpeg:", "jpeg:0", "jpeg:96", "jpeg:7.5", "jpeg:-3", "webp:75", "", "jpeg:²"]
)
def test_another_codec_is_refused(codec):
    with pytest.raises(ConfigError, match="pass jpeg:QUALITY") as error:
        reencode(images(), codec)
    assert "\n" not in str(error.value)


def test_png_would_change_nothing_and_is_refused():
    with pytest.raises(ConfigError, match="lossless"):
        jpeg_quality("png")


def test_a_fingerprint_is_of_shape_ids_order_and_pixels():
    one = images()
    found = {
        fingerprint(one),
        fingerprint(images(seed=1)),
        fingerprint(one.subset([1, 0, 2, 3, 4])),
        fingerprint(one.subset([0, 1, 2, 3])),
        fingerprint(ImageSet(one.images, None, list("abcde"))),
        fingerprint(ImageSet(one.images.reshape(5, 3, 16, 24), None, one.ids)),
    }
    assert len(found) == 6
    assert fingerprint(one) == fingerprint(images())
    # five images, all of them in the sample: the same hash
    assert fingerprint(one, sample=16) == fingerprint(one)
