"""Images with a foreground mask: one class, :class:`ImageSet`, and the data sets that give it.

``folder``  your own: ``root/images/<class>/*`` with ``root/masks/<class>/<same stem>.*`` or an alpha channel.

A further data set is a function like those in :data:`SOURCES`, in a package that names it as an entry point of the
group ``kpnb.images``. So does the book with its own, ``emoji``: see :mod:`kpnb_book.emoji`.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kpnb._messages import positive
from kpnb.data.samples import SPLITS, Request, Sample, SampleSet, fifth, stamp, stratified

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, per channel of an image in [0, 1]
STD = (0.229, 0.224, 0.225)
Source = tuple[dict[str, Any], list[str], Iterator[Sample]]  # config, classes, samples: see SOURCES

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(SampleSet):
    """N square images with labels and foreground masks.

    Raises ``ValueError`` that names the field when the parts do not fit together.
    """

    KIND: ClassVar[str] = "images"
    INPUT: ClassVar[str] = "images"

    images: Tensor  # uint8 [N, 3, S, S]; masks are [N, S, S]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[0]:
            raise ValueError(f"images must be [N, 3, S, S] with N > 0, not {list(shape)}")
        self._check(torch.uint8, *shape[2:])

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images ``index`` [B] as float32 [B, 3, S, S], normalised with ImageNet's mean and std, and labels [B]."""
        index = index.to(self.images.device)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        return (self.images[index].to(device).float() / 255 - mean) / std, self.labels[index].to(device)

    def incomplete(self) -> dict[str, int]:
        """How many images have no foreground, and how many no background: metrics that need both are NaN there."""
        area = self.masks.flatten(1)
        return {"no foreground": int((~area.any(1)).sum()), "no background": int(area.all(1).sum())}


def fields(image: np.ndarray, mask: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Fields of an ``ImageSet`` from an image [S, S, 3], its mask and its label."""
    return {"images": image.transpose(2, 0, 1), "masks": mask, "labels": np.array(label, np.int64)}


# ----------------------------------------------------------------------------------------------- "folder": your own

LAYOUT = """expected
  images/<class>/<stem>.*   one folder for each class, any format that Pillow reads
  masks/<class>/<stem>.*    same size as the image; or no mask and an alpha channel in the image
in the folder itself, or in both its sub-folders train and test"""


def _folder(wanted: Request, size: int) -> Source:
    """Your own images. ``root`` is only read.

    Sub-folders ``train`` and ``test`` are the splits when both exist; otherwise a fifth, classes in proportion, is the
    test split, always the same fifth, so that no ``seed`` can leak a test image into training.
    """
    if wanted.root is None:
        raise ValueError(f"the data set 'folder' needs root=, the folder of your images; {LAYOUT}")
    root = Path(wanted.root).expanduser()
    divided = all((root / split).is_dir() for split in SPLITS)
    if divided and (odd := set.symmetric_difference(*(set(_classes(root / split)) for split in SPLITS))):
        names = ", ".join(sorted(odd))
        raise ValueError(f"train and test in {root} have different classes: {names} is in one of them only")
    base = root / wanted.split if divided else root
    classes, paths = _classes(base), _pictures(base / "images")
    labels = np.array([classes.index(path.parent.name) for path in paths])
    if empty := set(classes) - {path.parent.name for path in paths}:
        raise FileNotFoundError(f"class folder {base / 'images' / min(empty)} holds no image")
    keep = np.arange(len(paths)) if divided else fifth(labels, wanted.split)
    if wanted.count is not None:
        keep = keep[stratified(labels[keep], wanted.count, wanted.seed, "images")]
    if not len(keep):
        raise ValueError(f"no image is left for the split {wanted.split!r}: {root} holds a single one")
    masks = {path.relative_to(base / "masks").with_suffix(""): path for path in _pictures(base / "masks")}
    chosen = [(paths[i], masks.get(Path(classes[labels[i]], paths[i].stem)), int(labels[i])) for i in keep]
    files = stamp([path for image, mask, _ in chosen for path in (image, mask) if path], base)
    config = {"dataset": "folder", "split": wanted.split, "size": size, "count": len(chosen), "classes": classes}
    config |= {"files": files, "pillow": metadata.version("pillow")}
    samples = ((f"{classes[y]}/{image.name}", fields(*_read(image, mask, size), y)) for image, mask, y in chosen)
    return config, classes, samples


def _classes(base: Path) -> list[str]:
    names = sorted(path.name for path in (base / "images").glob("[!.]*") if path.is_dir())
    if not names:
        raise FileNotFoundError(f"no folder of a class in {base / 'images'}; {LAYOUT}")
    return names


def _pictures(folder: Path) -> list[Path]:
    """Files ``<class>/<name>`` in ``folder`` that Pillow may read, by their extension; hidden ones do not count."""
    known = Image.registered_extensions()
    return sorted(path for path in folder.glob("[!.]*/[!.]*") if path.suffix.lower() in known)


def _open(path: Path) -> Image.Image:
    """The decoded image, upright. Raises ``ValueError`` that names a file which is damaged or no image."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read image {path}: {error}") from error


def _read(path: Path, mask_path: Path | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [size, size, 3] and mask bool [size, size], squeezed to squares so that nothing is cut off.

    Foreground is alpha > 0.5, or whatever is above 127 in the mask; in a mask that has only values up to 127, or a
    palette, whatever is not 0.
    """
    image = _open(path)
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white without a word
        raise ValueError(f"image {path} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    if mask_path is not None:
        mask = _open(mask_path)
        values = np.asarray(mask if mask.mode in ("P", "I", "I;16") else mask.convert("L"))
        foreground = values > (127 if mask.mode != "P" and values.max() > 127 else 0)
        if mask.size != image.size:
            found = "mask {} is {} x {} pixels, but image {} is {} x {}"
            raise ValueError(found.format(mask_path, *mask.size, path, *image.size))
    elif image.has_transparency_data:
        foreground = np.asarray(image.convert("RGBA"))[..., 3] > 127
    else:
        wanted = path.parents[2] / "masks" / path.parent.name / f"{path.stem}.*"
        raise FileNotFoundError(f"no mask for {path}: there is no {wanted} and the image has no alpha channel")
    layers = image.convert("RGBA").convert("RGB"), Image.fromarray(foreground).convert("L")  # RGBA: for palettes
    pixels, share = (np.asarray(layer.resize((size, size), Image.Resampling.BILINEAR)) for layer in layers)
    return pixels, share > 127


# ------------------------------------------------------------------------------------------------------- all data sets

# Name to a function of (request, size), which returns a config ("count" is the number of samples), the classes and an
# iterator of samples. Nothing is drawn from the iterator when the store has the set, so decoding belongs there; what is
# wrong with the files should be found before it where that is cheap.
SOURCES: dict[str, Callable[[Request, int], Source]] = {"folder": _folder}


def load(dataset: str = "emoji", split: str = "train", *, size: int = 64, store: Any = None, **more: Any) -> ImageSet:
    """The ``split`` ("train" or "test") of a data set, as images of ``size`` pixels a side.

    What may be said ``more``, ``count``, ``seed`` and ``root``, is that of :class:`kpnb.data.samples.Request`.
    ``count`` images: 8,000 for training and 1,000 for testing ("emoji") or all ("folder") by default; fewer of a
    folder are drawn with ``seed``, classes in proportion, while "emoji" makes other images for another ``seed``.
    ``root`` is the folder of a data set that lives in files. ``store``, a :class:`kpnb.store.Store`, keeps the decoded
    set; without one it is made anew.
    Raises ``ValueError`` (``FileNotFoundError`` for a missing folder or file) that names the culprit.
    """
    positive(size=size)
    data = ImageSet.made(store, *Request(dataset, split, **more).source("kpnb.images", SOURCES, size))
    for what, images in data.incomplete().items():
        if images:
            log.warning("%d of %d images of %s (%s) have %s", images, len(data), dataset, split, what)
    return data
