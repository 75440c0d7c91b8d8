"""Opening 50,000 CIFAR JPEGs from parquet, against a plain one-thread Pillow loop over the same bytes."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from harness import arguments, compare, parse, write
from probjepa.data import open_images


def main() -> None:
    args = parse(arguments(__doc__, "decode", repeats=5))
    source = args.data_root / "cifar10" / "train.parquet"
    encoded = [row["bytes"] for row in pq.read_table(source, columns=["img"])["img"].to_pylist()]

    def pillow() -> npt.NDArray[np.uint8]:
        pixels = np.empty((len(encoded), 32, 32, 3), dtype=np.uint8)
        for row, data in enumerate(encoded):
            pixels[row] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return pixels

    opened = open_images(source).get(slice(None)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(opened, pillow()), "both must decode the same pixels"

    result = compare(
        "decode",
        {"pillow": pillow, "open_images": lambda: open_images(source)},
        reference="pillow",
        repeats=args.repeats,
    )
    seconds = result.time("open_images").median
    result.figures = {"images": len(encoded), "images_per_second": len(encoded) / seconds}
    result.target("open_images of 50,000 images", seconds * 50_000 / len(encoded), 20, "s")
    write(result, args.out)


if __name__ == "__main__":
    main()
