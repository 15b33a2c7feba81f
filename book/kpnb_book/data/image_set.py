"""Images with a foreground mask: one class, :class:`ImageSet`, and how it is read from files.

A data set is a function of a request and the side in pixels, which returns a :data:`Source`. One
that lies in files lists its objects, each a :class:`Record`, without opening a picture;
:func:`source` does the rest. Nothing is drawn from the samples when the store has the set, so
decoding belongs there; what is wrong with the files should be found before.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kpnb_book.data.samples import SPLITS, Request, Sample, SampleSet, fifth, stamp, stratified
from kpnb_book.store import digest

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, per channel of an image in [0, 1]
STD = (0.229, 0.224, 0.225)
Source = tuple[dict[str, Any], list[str], Iterator[Sample]]  # config, classes, samples: see SOURCES
# Left, top, right, bottom in pixels; the last two are the first outside.
Box = tuple[float, float, float, float]

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
        """Images ``index`` [B] as float32 [B, 3, S, S], and their labels [B].

        They are normalised with ImageNet's mean and standard deviation.
        """
        index = index.to(self.images.device)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        images = (self.images[index].to(device).float() / 255 - mean) / std
        return images, self.labels[index].to(device)

    def incomplete(self) -> dict[str, int]:
        """How many images have no foreground, and how many no background.

        Metrics that need both are NaN there.
        """
        area = self.masks.flatten(1)
        return {"no foreground": int((~area.any(1)).sum()), "no background": int(area.all(1).sum())}


def fields(image: np.ndarray, mask: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Fields of an ``ImageSet`` from an image [S, S, 3], its mask and its label."""
    return {"images": image.transpose(2, 0, 1), "masks": mask, "labels": np.array(label, np.int64)}


# ---- pictures from files


class Record(NamedTuple):
    """One object in a picture, and what its foreground is: the first of these that there is.

    mask      pixels of this file, of the picture's size, that have the ``value``. Without one:
              those above 127, or, in a file that has a palette or no value above 127, those that
              are not 0
    polygons  what lies within them: lists of x, y, x, y, ... in pixels, as in COCO
    box       what lies in it
    image     what is more than half opaque
    """

    image: Path
    mask: Path | None
    name: str  # says in messages and in the set which object this is
    label: int
    box: Box | None = None
    value: int | None = None
    polygons: Sequence[Sequence[float]] | None = None

    @property
    def upright(self) -> bool:
        """Whether an EXIF tag turns the picture.

        It does not where annotations count the pixels as they are stored.
        """
        return self.box is None and self.value is None


def source(
    wanted: Request,
    size: int,
    classes: list[str],
    records: Sequence[Record],
    root: Path,
    crop: float | None = None,
) -> Source:
    """The set of the ``records`` that ``wanted`` asks for, from files in ``root``.

    Files are only read. Fewer than there are are drawn with the seed, classes in proportion. Each
    picture is cut to ``crop`` times its box (None: left whole).
    """
    if not records:
        raise ValueError(f"no image is left for the split {wanted.split!r} in {root}")
    if count := wanted.count or (wanted.at_most and min(wanted.at_most, len(records))):
        labels = np.array([record.label for record in records])
        records = [records[i] for i in stratified(labels, count, wanted.seed, "images")]
    files = dict.fromkeys(
        path for record in records for path in (record.image, record.mask) if path
    )
    config = {
        "dataset": wanted.dataset,
        "split": wanted.split,
        "size": size,
        "count": len(records),
        "crop": crop,
        "classes": classes,
        "files": stamp(files, root),
        "pillow": metadata.version("pillow"),
        "objects": digest([record[2:] for record in records]),  # all but the paths
    }
    return config, classes, ((r.name, fields(*_read(r, size, crop), r.label)) for r in records)


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn whatever a damaged file raises into a ``ValueError`` that names it.

    That a file is missing stays a ``FileNotFoundError``.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"cannot read {what}: {error!r}") from error


def _open(path: Path, upright: bool) -> Image.Image:
    """The decoded image. Raises ``ValueError`` that names a file which is damaged or no image."""
    with reading(f"image {path}"), Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image) if upright else image


def _read(record: Record, size: int, crop: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [size, size, 3] and mask bool [size, size]: cropped, then squeezed to squares."""
    image = _open(record.image, record.upright)
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white without a word
        found = f"image {record.image} has more than 8 bits a channel (mode {image.mode})"
        raise ValueError(f"{found}; convert it to 8 bits")
    foreground = Image.fromarray(_foreground(record, image)).convert("L")
    layers = (image.convert("RGBA").convert("RGB"), foreground)  # RGBA: for palettes
    window = _window(record, image, crop or np.inf)
    pixels, share = (
        np.asarray(layer.crop(window).resize((size, size), Image.Resampling.BILINEAR))
        for layer in layers
    )
    return pixels, share > 127


def _window(record: Record, image: Image.Image, factor: float) -> tuple[int, ...]:
    """The box, ``factor`` times as wide and high about its centre.

    In whole pixels of the image, at least one each way. Raises ``ValueError`` for a box outside.
    """
    if record.box is None:
        return 0, 0, *image.size
    low, high = np.reshape(record.box, (2, 2))
    if not ((low <= high) & (low < image.size) & (high > 0)).all():
        found = "box {} of {} does not lie in image {}, which is {} x {} pixels"
        raise ValueError(found.format(record.box, record.name, record.image, *image.size))
    grow = (factor - 1) / 2 * np.maximum(high - low, 1)
    low = np.clip(np.round(low - grow), 0, np.array(image.size) - 1)
    high = np.clip(np.round(high + grow), low + 1, image.size)
    return tuple(np.concatenate([low, high]).astype(int).tolist())


def _foreground(record: Record, image: Image.Image) -> np.ndarray:
    """Foreground of the whole image, bool [H, W]: see :class:`Record`."""
    left, top, right, bottom = _window(record, image, 1)  # first: a box may be wrong in any case
    if record.mask is not None:
        return _masked(record, image)
    if record.polygons is not None:
        from pycocotools import mask as coco  # an extra

        with reading(f"polygons of {record.name}"):
            encoded = coco.frPyObjects(record.polygons, image.height, image.width)
            return coco.decode(coco.merge(encoded)).astype(bool)
    if record.box is not None:
        inside = np.zeros((image.height, image.width), bool)
        inside[top:bottom, left:right] = True
        return inside
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))[..., 3] > 127
    wanted = record.image.parents[2] / "masks" / record.image.parent.name / f"{record.image.stem}.*"
    missing = f"there is no {wanted} and the image has no alpha channel"
    raise FileNotFoundError(f"no mask for {record.image}: {missing}")


def _masked(record: Record, image: Image.Image) -> np.ndarray:
    """Foreground bool [H, W] from the mask's file."""
    mask = _open(record.mask, record.upright)
    if mask.size != image.size:
        found = "mask {} is {} x {} pixels, but image {} is {} x {}"
        raise ValueError(found.format(record.mask, *mask.size, record.image, *image.size))
    values = np.asarray(mask if mask.mode in ("P", "I", "I;16") else mask.convert("L"))
    if record.value is not None:
        return values == record.value
    return values > (127 if mask.mode != "P" and values.max() > 127 else 0)


# ---- "folder": your own

LAYOUT = """expected
  images/<class>/<stem>.*   one folder for each class, any format that Pillow reads
  masks/<class>/<stem>.*    same size as the image; or no mask and an alpha channel in the image
in the folder itself, or in both its sub-folders train and test"""


def folder(wanted: Request, size: int) -> Source:
    """Your own images. ``root`` is only read.

    Sub-folders ``train`` and ``test`` are the splits when both exist; otherwise a fifth, classes in
    proportion, is the test split, always the same fifth, so that no ``seed`` can leak a test image
    into training.
    """
    if wanted.root is None:
        raise ValueError(f"the data set 'folder' needs root=, the folder of your images; {LAYOUT}")
    root = Path(wanted.root).expanduser()
    divided = all((root / split).is_dir() for split in SPLITS)
    if divided:
        odd = set(_classes(root / "train")) ^ set(_classes(root / "test"))
        if odd:
            found = f"{', '.join(sorted(odd))} is in one of them only"
            raise ValueError(f"train and test in {root} have different classes: {found}")
    base = root / wanted.split if divided else root
    classes = _classes(base)
    paths = _pictures(base / "images")
    if empty := set(classes) - {path.parent.name for path in paths}:
        raise FileNotFoundError(f"class folder {base / 'images' / min(empty)} holds no image")
    masks = {(path.parent.name, path.stem): path for path in _pictures(base / "masks")}
    labels = np.array([classes.index(path.parent.name) for path in paths])
    records = []
    for i in range(len(paths)) if divided else fifth(labels, wanted.split):
        name, mask = paths[i].parent.name, masks.get((paths[i].parent.name, paths[i].stem))
        records.append(Record(paths[i], mask, f"{name}/{paths[i].name}", int(labels[i])))
    return source(wanted, size, classes, records, base)


def _classes(base: Path) -> list[str]:
    names = sorted(path.name for path in (base / "images").glob("[!.]*") if path.is_dir())
    if not names:
        raise FileNotFoundError(f"no folder of a class in {base / 'images'}; {LAYOUT}")
    return names


def _pictures(folder: Path) -> list[Path]:
    """Files ``<class>/<name>`` in ``folder`` that Pillow may read, by their extension.

    Hidden ones do not count.
    """
    known = Image.registered_extensions()
    return sorted(path for path in folder.glob("[!.]*/[!.]*") if path.suffix.lower() in known)
