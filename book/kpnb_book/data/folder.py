"""The image set "folder": your own pictures, one sub-folder a class.

What such a folder leaves open stands in a file ``kpnb.json`` in it, for example
``{"void": 255, "background": "keep"}``, or is said as an option of ``load``, which goes first: see
:class:`kpnb_book.data.image_set.ImageRequest`.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from kpnb._messages import one_of
from kpnb_book.data.image_set import ImageRequest, Record, Source, reading, source
from kpnb_book.data.samples import SPLITS, fifth

LAYOUT = """expected
  images/<class>/<stem>.*   one folder for each class, any format that Pillow reads
  masks/<class>/<stem>.*    same size as the image; or no mask and an alpha channel in the image
in the folder itself, or in both its sub-folders train and test;
kpnb check FOLDER lists what it finds there"""
OPTIONS = {"background": str, "void": int, "foreground": int, "above": (int, float), "exif": bool}
FEW = 10  # training pictures of a class; with fewer, it is said

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What a folder holds for one split, found without opening a picture."""

    base: Path  # the folder that has images and masks
    classes: list[str]
    records: list[Record]
    skipped: list[str]  # what was found and is not used, and why
    remarks: list[str]  # what is unusual about what is used, and what to do

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures of each class."""
        return _counts(self.classes, self.records)


def folder(wanted: ImageRequest, size: int) -> Source:
    """Your own images. ``root`` is only read.

    Sub-folders ``train`` and ``test`` are the splits when both exist; otherwise a fifth, classes in
    proportion, is the test split, always the same fifth, so that no ``seed`` can leak a test image
    into training.
    """
    wanted = with_options(wanted)
    found = listing(wanted)
    if found.skipped and (wanted.split == "train" or found.base != _root(wanted)):
        log.warning("%d things in %s are not used: %s", *_summary(found.skipped, found.base))
    for remark in found.remarks:
        log.warning("%s", remark)
    return source(wanted, size, found.classes, found.records, found.base)


def with_options(wanted: ImageRequest) -> ImageRequest:
    """``wanted`` with what ``kpnb.json`` says where it says nothing itself.

    Raises ``ValueError`` that names an option of the file which is unknown or of a wrong kind.
    """
    path = _root(wanted) / "kpnb.json"
    if not path.is_file():
        return wanted
    with reading(path):
        said = json.loads(path.read_text("utf8"))
        if not isinstance(said, dict):
            raise ValueError('it should hold names and values, such as {"void": 255}')
        for name, value in said.items():
            one_of("option", name, OPTIONS)
            wrong = isinstance(value, bool) and OPTIONS[name] is not bool
            if wrong or not isinstance(value, OPTIONS[name]):
                raise ValueError(f"{name} cannot be {value!r}")
        open_ = {name: value for name, value in said.items() if getattr(wanted, name) is None}
        return replace(wanted, **open_)


def listing(wanted: ImageRequest) -> Listing:
    """The pictures of a split and their masks; raises ``ValueError`` or ``FileNotFoundError`` for
    a folder of another layout.
    """
    root = _root(wanted)
    divided = _divided(root)
    base = root / wanted.split if divided else root
    classes = _classes(base)
    paths = _pictures(base / "images")
    _check_classes(base, classes, paths)
    masks = _by_stem(_pictures(base / "masks"))
    labels = np.array([classes.index(path.parent.name) for path in paths])
    exif = True if wanted.exif is None else wanted.exif
    records = []
    for i in range(len(paths)) if divided else fifth(labels, wanted.split):
        kind = paths[i].parent.name
        mask = masks.get((kind, paths[i].stem))
        record = Record(paths[i], mask, f"{kind}/{paths[i].name}", int(labels[i]), exif=exif)
        rule = {"value": wanted.foreground, "above": wanted.above, "void": wanted.void}
        records.append(record._replace(**rule) if mask else record)
    skipped = _skipped(root, base, paths, masks.values())
    learned = wanted.split == "train" and wanted.learned
    remarks = _few(base, classes, records) if learned else []
    return Listing(base, classes, records, skipped, remarks)


def _root(wanted: ImageRequest) -> Path:
    if wanted.root is None:
        raise ValueError(
            "the data set 'folder' needs root= (data_root= of a command), the folder of your "
            f"images; {LAYOUT}"
        )
    return Path(wanted.root).expanduser()


def _divided(root: Path) -> bool:
    """Whether the folder has splits of its own; they must have the same classes."""
    if not all((root / split).is_dir() for split in SPLITS):
        return False
    if odd := set(_classes(root / "train")) ^ set(_classes(root / "test")):
        found = f"{', '.join(sorted(odd))} is in one of them only"
        raise ValueError(f"train and test in {root} have different classes: {found}")
    return True


def _classes(base: Path) -> list[str]:
    names = sorted(path.name for path in (base / "images").glob("[!.]*") if path.is_dir())
    if not names:
        raise FileNotFoundError(f"no folder of a class in {base / 'images'}; {LAYOUT}")
    return names


def _check_classes(base: Path, classes: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise for a class without pictures, and where there is nothing to tell apart."""
    if empty := set(classes) - {path.parent.name for path in paths}:
        folder = base / "images" / min(empty)
        nested = [path for path in folder.rglob("*") if path.is_file() and _known(path)]
        where = f"; {nested[0]} lies too deep, move it up" if nested else ""
        raise FileNotFoundError(f"class folder {folder} holds no image{where}")
    if len(classes) == 1:
        found = f"{base / 'images'} has one class only, {classes[0]}"
        raise ValueError(f"{found}: a network needs two to tell apart; add a folder of another one")


def _known(path: Path) -> bool:
    """Whether Pillow may read it, by its extension."""
    return path.suffix.lower() in Image.registered_extensions()


def _pictures(folder: Path) -> list[Path]:
    """Files ``<class>/<name>`` in ``folder`` that Pillow may read. Hidden ones do not count."""
    return sorted(path for path in folder.glob("[!.]*/[!.]*") if path.is_file() and _known(path))


def _by_stem(masks: Iterable[Path]) -> dict[tuple[str, str], Path]:
    """Masks by class and stem. Raises ``ValueError`` where two have the same."""
    found: dict[tuple[str, str], Path] = {}
    for path in masks:
        key = (path.parent.name, path.stem)
        if key in found:
            raise ValueError(f"two masks for one image: {found[key]} and {path}; remove one")
        found[key] = path
    return found


def _skipped(root: Path, base: Path, pictures: Sequence[Path], masks: Iterable[Path]) -> list[str]:
    """Files that are not used, by their path in ``base``, and why. Hidden ones are not named."""
    used = {*pictures, *masks}
    there = {(path.parent.name, path.stem) for path in pictures}
    found = []
    for path in sorted(base.glob("images/**/*")) + sorted(base.glob("masks/**/*")):
        name = path.relative_to(base)
        if path.is_dir() or any(part.startswith(".") for part in name.parts):
            continue
        if path not in used:
            found.append(f"{name}: {_reason(path, len(name.parts))}")
        elif name.parts[0] == "masks" and (path.parent.name, path.stem) not in there:
            found.append(f"{name}: there is no image of this name for the mask")
    for split in SPLITS:
        if base == root and (root / split).is_dir():
            other = SPLITS[split == "train"]
            found.append(f"{split}/: there is no {other} beside it, so it is no split")
    if base != root and (root / "images").is_dir():
        found.append("../images/: the folders train and test are there, which are used")
    return found


def _reason(path: Path, depth: int) -> str:
    if not _known(path):
        return "no format that Pillow reads, by its extension"
    if depth < 3:
        return "in no folder of a class; move it into one"
    return "in a folder inside of a class; move it up"


def _counts(classes: Sequence[str], records: Iterable[Record]) -> dict[str, int]:
    found = Counter(record.label for record in records)
    return {name: found[label] for label, name in enumerate(classes)}


def _few(base: Path, classes: Sequence[str], records: Sequence[Record]) -> list[str]:
    """A remark when a class has hardly a picture to learn from."""
    few = {name: count for name, count in _counts(classes, records).items() if count < FEW}
    if not few:
        return []
    named = ", ".join(f"{name} {count}" for name, count in [*few.items()][:8])
    total = f"only {len(records)} training images in {base}, fewer than {FEW} of"
    return [f"{total} {named}: a network hardly learns from them; add images to these classes"]


def _summary(lines: Sequence[str], base: Path) -> tuple[int, Path, str]:
    shown = "; ".join(lines[:3])
    return len(lines), base, shown + ("; ... (kpnb check lists them)" if len(lines) > 3 else "")
