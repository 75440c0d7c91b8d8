"""Images, from a source to batches of views: opening, decoding, preprocessing and augmentation.

Names are imported on first use: ``import probjepa.data`` loads neither kornia, scikit-learn nor pyarrow.
The view recipes are in ``probjepa.data.views``, where ``views(recipe, …)`` makes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.registry import lazy

_LAZY = {
    "ImageSet": "images",
    "Images": "images",
    "Preprocess": "preprocess",
    "StreamedImages": "images",
    "Views": "views",
    "as_images": "sources",
    "channel_statistics": "preprocess",
    "default_recipe": "views",
    "open_images": "sources",
    "split": "images",
}

__all__ = list(_LAZY)

if TYPE_CHECKING:
    from probjepa.data.images import Images as Images
    from probjepa.data.images import ImageSet as ImageSet
    from probjepa.data.images import StreamedImages as StreamedImages
    from probjepa.data.images import split as split
    from probjepa.data.preprocess import Preprocess as Preprocess
    from probjepa.data.preprocess import channel_statistics as channel_statistics
    from probjepa.data.sources import as_images as as_images
    from probjepa.data.sources import open_images as open_images
    from probjepa.data.views import Views as Views
    from probjepa.data.views import default_recipe as default_recipe

__getattr__ = lazy(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
