"""The image data sets by name.

``folder``  your own: ``root/images/<class>/*`` with ``root/masks/<class>/<same stem>.*`` or an
            alpha channel.
``emoji``   pictograms on photographs, made here, and two variants of it:
            :mod:`kpnb_book.data.emoji`.
``cub``, ``voc``, ``det``, ``coco``, ``tiny``, ``pet``   the public sets:
                                                         :mod:`kpnb_book.data.official`.
"""

import logging
from collections.abc import Callable
from typing import Any

from kpnb._messages import positive
from kpnb_book.data import emoji, official
from kpnb_book.data.folder import folder
from kpnb_book.data.image_set import ImageRequest, ImageSet, Source

log = logging.getLogger(__name__)

# Name to a function of a request and the side in pixels. Add your own: it needs nothing else.
SOURCES: dict[str, Callable[[ImageRequest, int], Source]] = {
    "folder": folder,
    **dict.fromkeys(emoji.NAMES, emoji.source),
    **dict.fromkeys(official.NAMES, official.source),
}
# Whether a set needs the folder of its files; another may have one.
ROOTS = {"folder": True, **dict.fromkeys(emoji.NAMES, False)} | {
    name: True for name in official.NAMES if "archives" not in official.ABOUT[name]
}


def load(
    dataset: str = "emoji", split: str = "train", *, size: int = 64, store: Any = None, **more: Any
) -> ImageSet:
    """The ``split`` ("train" or "test") of a data set, as images of ``size`` pixels a side.

    ``more`` takes the fields of :class:`kpnb_book.data.image_set.ImageRequest`: ``count``,
    ``at_most``, ``seed``, ``root``, and how pictures and masks are read. ``count`` images: 8,000
    for training and 1,000 for testing ("emoji") or all (others) by default; fewer are drawn with
    ``seed``, classes in proportion, while "emoji" makes other images for another ``seed``.
    ``root`` is the folder of a data set that lives in files. ``store``, a
    :class:`kpnb_book.store.Store`, keeps the decoded set; without one it is made anew.
    Raises ``ValueError`` (``FileNotFoundError`` for a missing folder or file) that names the
    culprit.
    """
    positive(size=size)
    wanted = ImageRequest(dataset, split, store=store, **more)
    _check_options(wanted)
    data = ImageSet.made(store, *wanted.source(SOURCES, size))
    for what, images in data.incomplete().items():
        if images:
            log.warning(
                "%d of %d images of %s (%s) have %s", images, len(data), dataset, split, what
            )
    return data


def _check_options(wanted: ImageRequest) -> None:
    """Raise ``ValueError`` for an option of how files are read that this set has no use for."""
    if wanted.dataset not in (*emoji.NAMES, *official.NAMES):
        return
    used = ("background",) if wanted.dataset in official.NAMES else ()
    for name in ("background", "void", "foreground", "above", "exif"):
        if name not in used and getattr(wanted, name) is not None:
            found = f"{name}= is for dataset='folder' or one of your own"
            raise ValueError(f"{found}; the set {wanted.dataset!r} says itself how it is read")
