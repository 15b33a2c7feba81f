"""Public image sets in the layouts in which they are handed out; ``official.json`` says where to
get them.

What is cropped follows section 4.1 of the paper: to the object's box (CUB), to 1.2 (VOC) or 1.5
times its width and height (DET, whose terrestrial mammals are all mammals among its categories but
seal and whale; the paper does not list them). Of COCO and Tiny-ImageNet it does not say: COCO is
cropped like VOC, while Tiny-ImageNet's images, of 64 pixels, stay whole, because nothing but
foreground would be left of them. So do those of the Pet set, which the paper does not use. Where
annotations of the test split are not public, the validation split takes its place.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

from kpnb._messages import package, unknown
from kpnb_book.data import image_set
from kpnb_book.data.image_set import Box, Record, Source, reading
from kpnb_book.data.samples import Request
from kpnb_book.store import Store

ABOUT: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf8"))
NAMES = tuple(ABOUT)
Listing = tuple[
    Mapping[Any, str], list[Record]
]  # category to class name, and objects whose label is a category


def source(wanted: Request, size: int) -> Source:
    """The set for :func:`kpnb_book.data.images.load`. ``root`` is the folder of its files, or the
    one that holds that.

    Raises ``FileNotFoundError`` that says where to get a set, ``ValueError`` that names what is
    damaged.
    """
    about = ABOUT[wanted.dataset]
    where = f"get {about['title']} from {about['url']}"
    if wanted.root is None and wanted.dataset != "pet":
        raise ValueError(
            f"the data set {wanted.dataset!r} needs root=, the folder of its files: {where}"
        )
    root = Path(wanted.root).expanduser() if wanted.root is not None else _fetched_pet(where)
    base = root / about["unpacked"] if (root / about["unpacked"]).is_dir() else root
    if missing := [name for name in about["needs"] if not (base / name).exists()]:
        raise FileNotFoundError(
            f"there is no {missing[0]} in {base.absolute()}: {where}, and unpack it there"
        )
    with reading(f"the annotations in {base}"):
        classes, records = LISTINGS[wanted.dataset](base, wanted.split, about.get("classes", {}))
    labels = {category: label for label, category in enumerate(classes)}
    if odd := [record for record in records if record.label not in labels]:
        raise ValueError(
            f"annotation of {odd[0].image}: {unknown('category', odd[0].label, labels)}"
        )
    records = [record._replace(label=labels[record.label]) for record in records]
    return image_set.source(
        wanted, size, [*classes.values()], records, base.parent, about["crop"]
    )  # CUB's masks may lie there


def _fetched_pet(where: str) -> Path:
    """The folder in the store, never one of yours, into which torchvision puts the set, once."""
    from torchvision.datasets import OxfordIIITPet

    folder = Store().root / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    inside = staticmethod(
        tarfile.data_filter
    )  # nothing in an archive may lie outside of the folder
    try:
        with patch.object(tarfile.TarFile, "extraction_filter", inside, create=True):
            OxfordIIITPet(folder, download=True)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise RuntimeError(
            f"torchvision could not fill {folder} ({error}); {where}, and pass root="
        ) from error
    return folder


def _rows(path: Path, columns: int) -> list[list[str]]:
    """The lines of a text file, divided at blanks."""
    with reading(path):
        rows = [line.split() for line in path.read_text("utf8").splitlines()]
        if short := [number for number, row in enumerate(rows, 1) if len(row) != columns]:
            raise ValueError(f"line {short[0]} has not {columns} columns")
    return rows


def _box(x: float, y: float, width: float, height: float) -> Box:
    return float(x), float(y), float(x) + float(width), float(y) + float(height)


def _annotated(path: Path, image: Path, mask: Path | None = None) -> list[Record]:
    """The objects of an image, from PASCAL's XML. Those of a ``mask`` have their numbers, and
    coordinates from 1.
    """
    records = []
    with reading(path):
        for number, item in enumerate(ElementTree.parse(path).findall("object"), 1):
            left, top, *end = (
                float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            box = (left - 1, top - 1, *end) if mask else (left, top, *end)
            value = number if mask else None
            records.append(
                Record(image, mask, f"{path.stem}/{number}", item.findtext("name"), box, value)
            )
    return records


def _cub(base: Path, split: str, _: Mapping) -> Listing:
    columns = {
        "classes": 2,
        "images": 2,
        "image_class_labels": 2,
        "train_test_split": 2,
        "bounding_boxes": 5,
    }
    tables = [
        {key: rest for key, *rest in _rows(base / f"{name}.txt", n)} for name, n in columns.items()
    ]
    classes, images, labels, training, boxes = tables
    masks = base if (base / "segmentations").is_dir() else base.parent  # an archive of its own
    records = []
    for key, (name,) in images.items():
        if training[key] == ["1" if split == "train" else "0"]:
            mask = (masks / "segmentations" / name).with_suffix(".png")
            records.append(
                Record(base / "images" / name, mask, name, *labels[key], _box(*boxes[key]))
            )
    return {key: name for key, (name,) in classes.items()}, records


def _voc(base: Path, split: str, classes: Mapping[str, str]) -> Listing:
    records = []
    for (stem,) in _rows(base / "ImageSets" / "Segmentation" / f"{PUBLIC[split]}.txt", 1):
        files = ("Annotations", "xml"), ("JPEGImages", "jpg"), ("SegmentationObject", "png")
        records += _annotated(*(base / folder / f"{stem}.{suffix}" for folder, suffix in files))
    return classes, records


def _det(base: Path, split: str, mammals: Mapping[str, str]) -> Listing:
    root, part = (
        base / "Annotations",
        {"train": "DET/train/ILSVRC2013_train", "test": "DET/val"}[split],
    )
    records = []
    for path in sorted((root / part).rglob("*.xml")):
        if split == "test" or path.parent.name in mammals:
            records += _annotated(
                path, (base / "Data" / path.relative_to(root)).with_suffix(".JPEG")
            )
    return mammals, [record for record in records if record.label in mammals]


def _coco(base: Path, split: str, _: Mapping) -> Listing:
    package("pycocotools")
    contents = {}
    for part in dict.fromkeys(
        ("train", PUBLIC[split])
    ):  # training images say which categories are the largest
        path = base / "annotations" / f"instances_{part}2017.json"
        with reading(path):
            contents[part] = json.loads(path.read_text("utf8"))
    sizes = Counter(
        item["category_id"] for item in contents["train"]["annotations"] if not item["iscrowd"]
    )
    names, files = (
        {item["id"]: item for item in contents[part][key]} for key in ("categories", "images")
    )
    classes = {key: names[key]["name"] for key, _ in sizes.most_common(10) if key in names}
    records = []
    for item in contents[part]["annotations"]:
        key, image = (
            item["category_id"],
            base / f"{part}2017" / files[item["image_id"]]["file_name"],
        )
        if not item["iscrowd"] and (key in classes or key not in names):
            name = f"{path.stem}/{item['id']}"
            records.append(
                Record(image, None, name, key, _box(*item["bbox"]), None, item["segmentation"])
            )
    return classes, records


def _tiny(base: Path, split: str, _: Mapping) -> Listing:
    classes = {synset: synset for (synset,) in _rows(base / "wnids.txt", 1)}
    train = {base / "train" / synset / f"{synset}_boxes.txt": [synset] for synset in classes}
    records = []
    for table, synset in (
        train.items() if split == "train" else [(base / "val" / "val_annotations.txt", [])]
    ):
        for name, *more in _rows(table, 6 - len(synset)):
            label, left, top, *last = synset + more
            box = (
                float(left),
                float(top),
                *(float(end) + 1 for end in last),
            )  # the last pixels are inside
            records.append(Record(table.parent / "images" / name, None, name, label, box))
    return classes, records


def _pet(base: Path, split: str, _: Mapping) -> Listing:
    root, part = base / "annotations", {"train": "trainval", "test": "test"}[split]
    rows = sorted(_rows(root / f"{part}.txt", 4), key=lambda row: int(row[1]))
    paths = [
        (base / "images" / f"{stem}.jpg", root / "trimaps" / f"{stem}.png") for stem, *_ in rows
    ]
    records = [
        Record(*files, row[0], row[1], value=1) for files, row in zip(paths, rows, strict=True)
    ]
    return {number: stem.rpartition("_")[0] for stem, number, *_ in rows}, records


PUBLIC = {"train": "train", "test": "val"}
LISTINGS = {"cub": _cub, "voc": _voc, "det": _det, "coco": _coco, "tiny": _tiny, "pet": _pet}
