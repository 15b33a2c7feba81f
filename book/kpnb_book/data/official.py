"""Public image sets in the layouts in which they are handed out.

``official.json`` says where to get them.

What is cropped follows section 4.1 of the paper: to the object's box (CUB), to 1.2 (VOC) or 1.5
times its width and height (DET, whose terrestrial mammals are all mammals among its categories but
seal and whale; the paper does not list them). Of COCO and Tiny-ImageNet it does not say: COCO is
cropped like VOC, while Tiny-ImageNet's images, of 64 pixels, stay whole, because nothing but
foreground would be left of them. So do those of the Pet set, which the paper does not use. Where
annotations of the test split are not public, the validation split takes its place.
"""

import json
import logging
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from filelock import FileLock

from kpnb._messages import unknown
from kpnb_book.data import image_set
from kpnb_book.data.image_set import Box, Record, Source, reading
from kpnb_book.data.samples import Request
from kpnb_book.packages import package
from kpnb_book.store import Store

ABOUT: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf8"))
NAMES = tuple(ABOUT)
# Category to class name, and objects whose label is a category.
Listing = tuple[Mapping[Any, str], list[Record]]
log = logging.getLogger(__name__)
PUBLIC = {"train": "train", "test": "val"}  # what is called the test split here


def source(wanted: Request, size: int) -> Source:
    """The set for :func:`kpnb_book.data.images.load`.

    ``root`` is the folder of its files, or the one that holds that. Raises ``FileNotFoundError``
    that says where to get a set, ``ValueError`` that names what is damaged.
    """
    about = ABOUT[wanted.dataset]
    where = f"get {about['title']} from {about['url']}"
    if wanted.root is not None:
        root = Path(wanted.root).expanduser()
    elif "archives" in about:
        root = _fetched(about["archives"], about["unpacked"], where)
    else:
        asked = (
            f"the data set {wanted.dataset!r} needs root= (data_root= of a command), the folder "
        )
        asked += "of its files"
        raise ValueError(f"{asked}: {where}")
    base = root / about["unpacked"] if (root / about["unpacked"]).is_dir() else root
    if missing := [name for name in about["needs"] if not (base / name).exists()]:
        found = f"there is no {missing[0]} in {base.absolute()}"
        raise FileNotFoundError(f"{found}: {where}, and unpack it there")
    with reading(f"the annotations in {base}"):
        classes, records = LISTINGS[wanted.dataset](base, wanted.split, about.get("classes", {}))
    if "only" in about:
        classes, records = narrowed(classes, records, about["only"], base)
    labels = {category: label for label, category in enumerate(classes)}
    if odd := [record for record in records if record.label not in labels]:
        found = unknown("category", odd[0].label, labels)
        raise ValueError(f"annotation of {odd[0].image}: {found}")
    records = [record._replace(label=labels[record.label]) for record in records]
    root = base.parent  # where CUB's masks may lie
    return image_set.source(wanted, size, [*classes.values()], records, root, about["crop"])


def narrowed(
    classes: Mapping[str, str], records: list[Record], only: list[str], base: Path
) -> tuple[Mapping[str, str], list[Record]]:
    """The categories ``only``, in their order, and the objects of these, whatever others there are:
    the same set from the whole archive and from a part of it. All where some of them are missing.
    """
    if missing := [category for category in only if category not in classes]:
        log.warning(
            "%d of %d classes are not in %s (%s, ...): all %d classes that are there are taken",
            len(missing), len(only), base, missing[0], len(classes),
        )  # fmt: skip
        return classes, records
    order = {category: number for number, category in enumerate(only)}
    kept = [record for record in records if record.label in order]
    kept.sort(key=lambda record: order[record.label])  # stable: within a class as listed
    return {category: classes[category] for category in only}, kept


def _fetched(archives: Iterable[tuple[str, str]], unpacked: str, where: str) -> Path:
    """The folder of the store, never one of yours, that holds the folder ``unpacked``.

    It is filled once, from ``archives`` (address and MD5) that have one folder each.
    """
    folder = Store().root / "downloads"
    base = folder / unpacked
    base.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{unpacked}.lock"):
            for url, md5 in archives:
                _unpack(url, md5, base)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        remedy = f"{where}, and pass root="
        raise RuntimeError(f"torchvision could not fill {folder} ({error}); {remedy}") from error
    return folder


def _unpack(url: str, md5: str, base: Path) -> None:
    """Put the folder that an archive holds into ``base``, whole, unless it is there."""
    from torchvision.datasets.utils import download_url  # takes a second

    name = url.rpartition("/")[2]
    folder = name.removesuffix(".tar.gz")
    if (base / folder).is_dir():
        return
    download_url(url, base, md5=md5)
    with TemporaryDirectory(dir=base) as new, tarfile.open(base / name) as archive:
        archive.extractall(new, filter="data")  # nothing can lie outside of the folder
        Path(new, folder).rename(base / folder)


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
    """The objects of an image, from PASCAL's XML.

    Those of a ``mask`` have their numbers in it, and coordinates from 1.
    """
    records = []
    with reading(path):
        for number, item in enumerate(ElementTree.parse(path).findall("object"), 1):
            name = f"{path.stem}/{number}"
            label = item.findtext("name")
            sides = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = map(float, sides)
            if mask is None:
                records.append(Record(image, None, name, label, (left, top, right, bottom)))
            else:
                box = (left - 1, top - 1, right, bottom)
                records.append(Record(image, mask, name, label, box, value=number))
    return records


def _cub(base: Path, split: str, _: Mapping) -> Listing:
    def table(name: str, columns: int = 2) -> dict[str, list[str]]:
        return {key: rest for key, *rest in _rows(base / f"{name}.txt", columns)}

    images = table("images")
    labels = table("image_class_labels")
    training = table("train_test_split")
    boxes = table("bounding_boxes", columns=5)
    masks = base if (base / "segmentations").is_dir() else base.parent  # an archive of its own
    records = []
    for key, (name,) in images.items():
        if training[key] == ["1" if split == "train" else "0"]:
            image = base / "images" / name
            mask = (masks / "segmentations" / name).with_suffix(".png")
            box = _box(*boxes[key])
            records.append(Record(image, mask, name, labels[key][0], box, above=127))
    return {key: name for key, (name,) in table("classes").items()}, records


def _voc(base: Path, split: str, classes: Mapping[str, str]) -> Listing:
    records = []
    for (stem,) in _rows(base / "ImageSets" / "Segmentation" / f"{PUBLIC[split]}.txt", 1):
        records += _annotated(
            base / "Annotations" / f"{stem}.xml",
            base / "JPEGImages" / f"{stem}.jpg",
            base / "SegmentationObject" / f"{stem}.png",
        )
    return classes, records


def _det(base: Path, split: str, mammals: Mapping[str, str]) -> Listing:
    root = base / "Annotations"
    part = {"train": "DET/train/ILSVRC2013_train", "test": "DET/val"}[split]
    records = []
    for path in sorted((root / part).rglob("*.xml")):
        if split == "test" or path.parent.name in mammals:
            image = (base / "Data" / path.relative_to(root)).with_suffix(".JPEG")
            records += _annotated(path, image)
    return mammals, [record for record in records if record.label in mammals]


def _coco(base: Path, split: str, _: Mapping) -> Listing:
    package("pycocotools")

    def annotations(part: str) -> dict[str, Any]:
        path = base / "annotations" / f"instances_{part}2017.json"
        with reading(path):
            return json.loads(path.read_text("utf8"))

    part = PUBLIC[split]
    training = annotations("train")  # they say which categories are the largest
    content = training if part == "train" else annotations(part)
    names = {item["id"]: item["name"] for item in content["categories"]}
    files = {item["id"]: item["file_name"] for item in content["images"]}
    objects = [item for item in training["annotations"] if not item.get("iscrowd")]
    sizes = Counter(item.get("category_id") for item in objects)
    classes = {key: names[key] for key, _ in sizes.most_common(10) if key in names}
    records = []
    without = defaultdict(list)  # objects that cannot be used, by what they lack
    for item in content["annotations"]:
        key = item.get("category_id")
        if item.get("iscrowd") or (key in names and key not in classes):
            continue
        name = f"instances_{part}2017/{item['id']}"
        shape = _shape(item.get("segmentation"))
        if lack := _lack(item, shape, files):
            without[lack].append(name)
        else:
            image = base / f"{part}2017" / files[item["image_id"]]
            record = Record(image, None, name, key, _box(*item["bbox"]), polygons=shape)
            records.append(record)
    count = len(records) + sum(map(len, without.values()))
    for lack, left in without.items():
        found = f"{len(left)} of {count} objects of coco ({split})"
        log.warning("%s are left out, %s: %s ...", found, lack, left[0])
    return classes, records


def _lack(item: Mapping[str, Any], shape: Any, files: Mapping[Any, str]) -> str:
    """What an object of COCO lacks; "" when it can be used. pycocotools, which goes from images to
    their objects, never meets one of an image that is not listed.
    """
    if item.get("image_id") not in files:
        return "their image is not listed"
    if not shape:
        return "no outline has an area"
    box = item.get("bbox")
    whole = isinstance(box, list) and len(box) == 4
    return "" if whole else "they have no box of four numbers"


def _shape(outline: Any) -> Any:
    """An outline of COCO without the polygons of fewer than three corners, which have no area.

    pycocotools takes four numbers for a box if they come first, and fails. A run-length encoding
    stays as it is.
    """
    if isinstance(outline, Mapping):
        return outline
    return [polygon for polygon in outline or [] if len(polygon) >= 6]


def _tiny(base: Path, split: str, _: Mapping) -> Listing:
    classes = {synset: synset for (synset,) in _rows(base / "wnids.txt", 1)}
    rows = []  # of the picture, its synset, and the corners of the box
    if split == "train":
        for synset in classes:
            folder = base / "train" / synset
            for name, *corners in _rows(folder / f"{synset}_boxes.txt", 5):
                rows.append((folder / "images" / name, synset, corners))
    else:
        for name, synset, *corners in _rows(base / "val" / "val_annotations.txt", 6):
            rows.append((base / "val" / "images" / name, synset, corners))
    records = []
    for path, synset, corners in rows:
        left, top, right, bottom = map(float, corners)  # the last pixels are inside
        box = (left, top, right + 1, bottom + 1)
        records.append(Record(path, None, path.name, synset, box))
    return classes, records


def _pet(base: Path, split: str, _: Mapping) -> Listing:
    part = {"train": "trainval", "test": "test"}[split]
    classes = {}
    records = []
    rows = _rows(base / "annotations" / f"{part}.txt", 4)
    for stem, number, *_ in sorted(rows, key=lambda row: int(row[1])):
        image = base / "images" / f"{stem}.jpg"
        trimap = base / "annotations" / "trimaps" / f"{stem}.png"
        records.append(Record(image, trimap, stem, number, value=1))
        classes[number] = stem.rpartition("_")[0]
    return classes, records


LISTINGS = {
    "cub": _cub,
    "voc": _voc,
    "det": _det,
    "coco": _coco,
    "tiny": _tiny,
    "tiny-20": _tiny,
    "pet": _pet,
}
