"""Images with a foreground mask: one class, :class:`ImageSet`, and how it is read from files.

A data set is a function of a request and the side in pixels, which returns a :data:`Source`. One
that lies in files lists its objects, each a :class:`Record`, without opening a picture;
:func:`source` does the rest. Nothing is drawn from the samples when the store has the set, so
decoding belongs there; what is wrong with the files should be found before.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from kpnb._tensors import moved
from kpnb.masks import covered_units, read_masks
from kpnb.points import foreground_units
from kpnb.units import Units
from kpnb_book.data.contents import contents
from kpnb_book.data.samples import Request, Sample, SampleSet, stratified
from kpnb_book.store import digest

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, per channel of an image in [0, 1]
STD = (0.229, 0.224, 0.225)
Source = tuple[dict[str, Any], list[str], Iterator[Sample]]  # config, classes, samples: see SOURCES
# Left, top, right, bottom in pixels; the last two are the first outside.
Box = tuple[float, float, float, float]

BACKGROUND = "white"  # behind what is transparent
ORIENTATION = 0x0112  # EXIF: 1 is upright

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(SampleSet):
    """N square images with labels and foreground masks.

    Raises ``ValueError`` that names the field when the parts do not fit together.
    """

    KIND: ClassVar[str] = "images"
    INPUT: ClassVar[str] = "images"

    images: Tensor  # uint8 [N, 3, S, S]; masks are [N, S, S]
    void: Tensor | None = None  # bool [N, S, S]: neither foreground nor background; None: nowhere

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[0]:
            raise ValueError(f"images must be [N, 3, S, S] with N > 0, not {list(shape)}")
        self._check(torch.uint8, *shape[2:])
        void = self.void
        if void is not None and (void.dtype != torch.bool or void.shape != self.masks.shape):
            asked = f"{torch.bool} {list(self.masks.shape)} for these {self.KIND}"
            raise ValueError(f"void must be {asked}, not {void.dtype} {list(void.shape)}")

    def batch(
        self,
        index: Tensor,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images ``index`` [B] as float32 [B, 3, S, S], and their labels [B].

        They are normalised with a mean and a standard deviation for each channel of an image in
        [0, 1]; None: ImageNet's.
        """
        index = index.to(self.images.device)
        shift = torch.tensor(mean or MEAN, dtype=torch.float32, device=device).view(3, 1, 1)
        scale = torch.tensor(std or STD, dtype=torch.float32, device=device).view(3, 1, 1)
        images = (moved(self.images[index], device).float() / 255 - shift) / scale
        return images, moved(self.labels[index], device)

    @property
    def outside(self) -> Tensor:
        return ~self.masks if self.void is None else ~(self.masks | self.void)

    def incomplete(self) -> dict[str, int]:
        """How many images have no foreground, and how many no background.

        Metrics that need both are NaN there.
        """
        area = self.masks.flatten(1)
        full = area if self.void is None else area | self.void.flatten(1)
        return {"no foreground": int((~area.any(1)).sum()), "no background": int(full.all(1).sum())}

    def regions(self, units: Units) -> tuple[Tensor, Tensor]:
        """Foreground and background ``units``, both bool ``[N, n]``.

        A unit is foreground when at least half of what is not void is; mostly void ones are
        neither.
        """
        if self.void is not None:
            return covered_units(units, self.images, self.masks, self.void)
        foreground = foreground_units(units.coverage(self.masks))
        return foreground, ~foreground


@dataclass(frozen=True)
class ImageRequest(Request):
    """What :func:`kpnb_book.data.images.load` is asked for.

    What files do not say themselves; None stands for what the set says, else for the first value:

    background  a colour ("white", "#7f7f7f") behind what is transparent in a picture, or "keep":
                the colour that the file has there
    void        value of a mask that belongs to neither foreground nor background (None: there is
                none). This and the following for the data set "folder"
    foreground  value of a mask that is the foreground (None: 1 or 255 beside 0)
    above       values of a mask above this are foreground, in masks with grey edges
    exif        True: pictures and masks are turned upright as the EXIF tag of each says; False:
                both are taken as they are stored
    learned     whether a network is to learn from the split "train": few images are said then
    """

    LEFT_OUT: ClassVar[tuple[str, ...]] = (
        *Request.LEFT_OUT,
        "background",
        "void",
        "foreground",
        "above",
        "exif",
        "learned",
    )

    background: str | None = None
    void: int | None = None
    foreground: int | None = None
    above: float | None = None
    exif: bool | None = None
    learned: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.foreground is not None and self.above is not None:
            raise ValueError("foreground= and above= exclude each other: say one of them")
        if self.foreground is not None and self.foreground == self.void:
            raise ValueError(f"foreground= and void= are both {self.void}")
        colour(self.background or BACKGROUND)


def colour(name: str) -> tuple[int, ...] | None:
    """Red, green and blue of a ``background``; None for "keep"."""
    try:
        return None if name == "keep" else ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError, TypeError):
        known = "a colour (white, #7f7f7f), or keep: the colour under what is transparent"
        raise ValueError(f"background={name!r} is unknown; use {known}") from None


def fields(
    image: np.ndarray, mask: np.ndarray, label: int, void: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Fields of an ``ImageSet`` from an image [S, S, 3], its mask, its label and what is void."""
    found = {"images": image.transpose(2, 0, 1), "masks": mask, "labels": np.array(label, np.int64)}
    return found if void is None else found | {"void": void}


# ---- pictures from files


class Record(NamedTuple):
    """One object in a picture, and what its foreground is: the first of these that there is.

    mask      pixels of this file, of the picture's size, that have the ``value``, or that are
              ``above`` one. With neither, 1 or 255 where the others are 0. Pixels of the value
              ``void`` belong to neither foreground nor background
    polygons  what lies within them: lists of x, y, x, y, ... in pixels, or a run-length encoding,
              as in COCO
    box       what lies in it
    image     what is more than half opaque

    An EXIF tag turns picture and mask, each by its own tag, where ``exif`` is true. None: unless
    annotations (a box, or a mask's value) count the pixels as they are stored.
    """

    image: Path
    mask: Path | None
    name: str  # says in messages and in the set which object this is
    label: int
    box: Box | None = None
    value: int | None = None
    polygons: Sequence[Sequence[float]] | Mapping[str, Any] | None = None
    above: float | None = None
    void: int | None = None
    exif: bool | None = None

    @property
    def upright(self) -> bool:
        """Whether an EXIF tag turns the picture."""
        return self.box is None and self.value is None if self.exif is None else self.exif


class Picture(NamedTuple):
    """One object as networks see it."""

    image: np.ndarray  # uint8 [S, S, 3]
    mask: np.ndarray  # bool [S, S]
    void: np.ndarray  # bool [S, S]
    turned: bool  # an EXIF tag did


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
    behind = getattr(wanted, "background", None) or BACKGROUND
    files = [path for record in records for path in (record.image, record.mask) if path]
    held = contents(files, root, wanted.store)
    config = {
        "dataset": wanted.dataset,
        "split": wanted.split,
        "size": size,
        "count": len(records),
        "crop": crop,
        "classes": classes,
        "background": behind,
        "files": digest([held[path] for path in files]),
        "pillow": metadata.version("pillow"),
        "objects": digest([record[2:] for record in records]),  # all but the paths
    }
    return config, classes, _samples(records, size, crop, behind)


def _samples(
    records: Sequence[Record], size: int, crop: float | None, background: str
) -> Iterator[Sample]:
    """The pictures, one after another; how many were turned is said at the end."""
    has_void = any(record.void is not None for record in records)
    turned = []
    for record in records:
        seen = read(record, size, crop, background)
        void = seen.void if has_void else None
        yield record.name, fields(seen.image, seen.mask, record.label, void)
        if seen.turned:
            turned.append(record.name)
    if turned:
        log.warning("%s", said_turned(turned))


def said_turned(names: Sequence[str]) -> str:
    """What is said of pictures that an EXIF tag turned."""
    rule = "their masks only by a tag of their own, so they have to be drawn on upright pictures"
    remedy = "if they are drawn on the pixels as stored, say exif=False"
    first = f"{len(names)} pictures were turned upright by their EXIF tag ({names[0]}, ...)"
    return f"{first}, {rule}; {remedy}"


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


def _open(path: Path, upright: bool) -> tuple[Image.Image, bool]:
    """The decoded image, and whether its EXIF tag turned it.

    Raises ``ValueError`` that names a file which is damaged, no image, or larger than Pillow's
    limit.
    """
    try:
        with warnings.catch_warnings(), reading(f"image {path}"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                turn = upright and image.getexif().get(ORIENTATION, 1) not in (0, 1)
                return (ImageOps.exif_transpose(image), True) if turn else (image, False)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"more than Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels"
        remedy = "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        raise ValueError(f"image {path} has {limit}; {remedy}") from error


def read(
    record: Record, size: int, crop: float | None = None, background: str = "white"
) -> Picture:
    """The object cropped, and then squeezed to a square of ``size`` pixels a side.

    Raises ``ValueError`` (``FileNotFoundError`` for a missing file) that names the file.
    """
    image, turned = _open(record.image, record.upright)
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white without a word
        found = f"image {record.image} has more than 8 bits a channel (mode {image.mode})"
        raise ValueError(f"{found}; convert it to 8 bits")
    foreground, void = _foreground(record, image, turned)
    window = _window(record, image, crop or np.inf)

    def squeezed(layer: Image.Image) -> np.ndarray:
        cut = layer.crop(window)
        return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))

    share, unknown = (
        squeezed(Image.fromarray(part).convert("L")).astype(int) for part in (foreground, void)
    )
    mask = (2 * share > 255 - unknown) & (unknown <= 127)  # most of what is not void
    return Picture(squeezed(_laid(image, background)), mask, unknown > 127, turned)


def _laid(image: Image.Image, background: str) -> Image.Image:
    """The picture in RGB, laid over the ``background`` where it is transparent."""
    whole = image.convert("RGBA")  # also of palettes
    behind = colour(background)
    if behind is None or not image.has_transparency_data:
        return whole.convert("RGB")
    ground = Image.new("RGBA", whole.size, (*behind, 255))
    return Image.alpha_composite(ground, whole).convert("RGB")


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


def _foreground(record: Record, image: Image.Image, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Foreground of the whole image, and what is void, both bool [H, W]: see :class:`Record`."""
    left, top, right, bottom = _window(record, image, 1)  # first: a box may be wrong in any case
    nowhere = np.zeros((image.height, image.width), bool)
    if record.mask is not None:
        return _masked(record, image, turned)
    if record.polygons is not None:
        return _filled(record, image), nowhere
    if record.box is not None:
        inside = nowhere.copy()
        inside[top:bottom, left:right] = True
        return inside, nowhere
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))[..., 3] > 127, nowhere
    wanted = record.image.parents[2] / "masks" / record.image.parent.name / f"{record.image.stem}.*"
    missing = f"there is no {wanted} and the image has no alpha channel"
    raise FileNotFoundError(f"no mask for {record.image}: {missing}")


def _filled(record: Record, image: Image.Image) -> np.ndarray:
    """Foreground bool [H, W] from COCO's polygons or run-length encoding."""
    from pycocotools import mask as coco  # an extra

    shape = record.polygons
    with reading(f"polygons of {record.name}"):
        if isinstance(shape, Mapping) and isinstance(shape["counts"], str):
            encoded = {"counts": shape["counts"].encode(), "size": shape["size"]}
        elif isinstance(shape, Mapping):
            encoded = coco.frPyObjects(dict(shape), *shape["size"])
        else:
            encoded = coco.merge(coco.frPyObjects(shape, image.height, image.width))
        inside = coco.decode(encoded).astype(bool)
        if inside.shape != (image.height, image.width):
            found = "its runs are of {1} x {0} pixels, but image {2} is {3} x {4}"
            raise ValueError(found.format(*inside.shape, record.image, *image.size))
        return inside


def _masked(record: Record, image: Image.Image, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Foreground and what is void, both bool [H, W], from the mask's file."""
    mask, _ = _open(record.mask, record.upright)
    if mask.size != image.size:
        found = "mask {} is {} x {} pixels, but image {} is {} x {}"
        found = found.format(record.mask, *mask.size, record.image, *image.size)
        rule = "after its EXIF tag turned it upright: draw the mask on the upright picture, or say"
        raise ValueError(f"{found} {rule} exif=False" if turned else found)
    values = _values(mask, record.mask)
    void = np.zeros(values.shape, bool) if record.void is None else values == record.void
    if record.value is not None:
        return (values == record.value) & ~void, void
    if record.above is not None:
        return (values > record.above) & ~void, void
    present = np.flatnonzero(np.bincount(values.ravel()))
    try:
        found = read_masks(torch.tensor(present), record.void)
    except ValueError as error:
        named = "as an option or in kpnb.json of the folder: void, foreground (a value), or above"
        grey = "(127 for masks with grey edges)"
        raise ValueError(f"mask {record.mask} is ambiguous: {error}; {named} {grey}") from error
    foreground, void = (np.isin(values, present[part.numpy()]) for part in found)
    return foreground, void


def _values(mask: Image.Image, path: Path) -> np.ndarray:
    """The numbers in a mask [H, W]: indices of a palette, not its colours; else grey levels."""
    if mask.mode.startswith(("I;", "1", "P")) and mask.mode != "PA":
        return np.asarray(mask).astype(np.uint16)
    if mask.mode.startswith(("I", "F")):
        raise ValueError(f"mask {path} has 32 bits a pixel; convert it to 8 bits")
    return np.asarray(mask.convert("L"))
