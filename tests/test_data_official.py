"""Public image sets: miniature trees in their official layouts, read back against crops and masks
made by hand.
"""

import io
import json
import logging
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.datasets import OxfordIIITPet

from kpnb_book.data import emoji, image_set, images, official, samples
from kpnb_book.data.image_set import Record
from kpnb_book.data.images import load
from kpnb_book.data.samples import Request
from kpnb_book.store import Store
from kpnb_book.studies import tables
from kpnb_book.studies.images import ImageStudy

WIDTH, HEIGHT = 40, 30
PIXELS = {}  # what was written to each file
# of pycocotools 2.0.11 with NumPy 2, about its own arrays
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def picture(path, seed=None, width=WIDTH, height=HEIGHT):
    """A picture of random pixels, without loss whatever its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(PIXELS) if seed is None else seed)
    PIXELS[path] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(PIXELS[path]).save(path, "PNG")
    return path


def mask(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image.putpalette([*range(256)] * 3)
    image.save(path, "PNG")
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf8")
    return path


def disc():
    """An irregular figure of 0 and 1, within columns 12 to 27 and rows 8 to 21."""
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).ellipse((12, 8, 27, 21), fill=1)
    return np.asarray(image)


def is_crop(data, i, path, window, foreground):
    """Whether image ``i`` is that window, at its own size, of the picture that was written.

    So is its mask of the foreground.
    """
    left, top, right, bottom = window
    seen = data.images[i].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(seen, PIXELS[path][top:bottom, left:right])
    np.testing.assert_array_equal(
        data.masks[i].numpy(), np.asarray(foreground, bool)[top:bottom, left:right]
    )


def rectangle(left, top, right, bottom):
    values = np.zeros((HEIGHT, WIDTH), bool)
    values[top:bottom, left:right] = True
    return values


# ---- the trees


def xml(objects):
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        "".join(f"<{s}>{v}</{s}>" for s, v in zip(sides, box, strict=True)) for _, box in objects
    ]
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
    part = f"<part><name>head</name><bndbox>{corners}</bndbox></part>"
    items = [
        f"<object><name>{name}</name><bndbox>{box}</bndbox>{part}</object>"
        for (name, _), box in zip(objects, boxes, strict=True)
    ]
    return f"<annotation><filename>x</filename>{''.join(items)}</annotation>"


def cub(root, inside=True):
    """Two classes, of which each has four training images and two test images, boxes of 20 x 20."""
    base = root / "CUB_200_2011"
    rows = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    for number in range(1, 13):
        label = 1 + (number > 6)
        name = f"{label:03}.Bird_{label}/Bird_{number:04}.jpg"
        picture(base / "images" / name)
        masks = (base if inside else root) / "segmentations"
        mask(
            (masks / name).with_suffix(".png"), disc() * 204 + 51 * (disc() == 0)
        )  # annotators agree or not
        rows["images"].append(f"{number} {name}")
        rows["image_class_labels"].append(f"{number} {label}")
        rows["train_test_split"].append(f"{number} {int(number % 3 > 0)}")
        rows["bounding_boxes"].append(f"{number} 10.0 5.0 20.0 20.0")
    for name, lines in rows.items():
        write(base / f"{name}.txt", "\n".join(lines) + "\n")
    write(base / "classes.txt", "1 001.Bird_1\n2 002.Bird_2\n")
    return base


def voc(root):
    base = root / "VOCdevkit" / "VOC2012"
    for stem, part in (("2007_000032", "train"), ("2007_000033", "val")):
        picture(base / "JPEGImages" / f"{stem}.jpg")
        numbers = disc() * 2
        numbers[:3, :3] = 1
        numbers[(disc() == 0) & (np.roll(disc(), 1, 0) == 1)] = 255  # void
        mask(base / "SegmentationObject" / f"{stem}.png", numbers, palette=True)
        write(
            base / "Annotations" / f"{stem}.xml",
            xml([("person", (1, 1, 3, 3)), ("dog", (11, 6, 30, 25))]),
        )
        write(base / "ImageSets" / "Segmentation" / f"{part}.txt", f"{stem}\n")
    return base


def det(root):
    base = root / "ILSVRC"
    found = [
        ("n02084071", (10, 5, 18, 13)),
        ("n01503061", (1, 1, 5, 5)),
        ("n02391049", (0, 0, 8, 8)),
    ]
    train = "train/ILSVRC2013_train/"
    for stem in (
        train + "n02084071/n02084071_1",
        train + "n01503061/n01503061_2",
        "val/ILSVRC2012_val_00000001",
    ):
        picture(base / "Data" / "DET" / f"{stem}.JPEG")
        write(base / "Annotations" / "DET" / f"{stem}.xml", xml(found))
    return base


def coco(root):
    base = root / "coco"
    categories = [{"id": 3 * i, "name": f"thing {i}"} for i in range(1, 13)]
    for part in ("train", "val"):
        objects, number = [], 0
        for kind, category in enumerate(categories):
            for _ in range(
                kind + 1 if part == "train" else 1
            ):  # the first two kinds are the rarest
                number += 1
                polygons = [[10, 5, 20, 5, 20, 15, 10, 15], [14, 2, 16, 2, 16, 5, 14, 5]]
                item = {"id": number, "image_id": 7, "category_id": category["id"], "iscrowd": 0}
                objects.append(item | {"bbox": [10.0, 5.0, 10.0, 10.0], "segmentation": polygons})
        crowd = {"counts": [WIDTH * HEIGHT], "size": [HEIGHT, WIDTH]}
        crowds = [
            objects[0] | {"id": 1000 + i, "iscrowd": 1, "segmentation": crowd} for i in range(50)
        ]
        content = {"images": [{"id": 7, "file_name": "000000000007.jpg"}], "categories": categories}
        content["annotations"] = objects + crowds
        write(base / "annotations" / f"instances_{part}2017.json", json.dumps(content))
        picture(base / f"{part}2017" / "000000000007.jpg")
    return base


def tiny(root):
    base = root / "tiny-imagenet-200"
    write(base / "wnids.txt", "n02124075\nn01443537\n")
    for synset in ("n02124075", "n01443537"):
        folder = base / "train" / synset
        for i in range(3):
            picture(folder / "images" / f"{synset}_{i}.JPEG", width=64, height=64)
        lines = [f"{synset}_{i}.JPEG\t0\t10\t63\t{50 + i}" for i in range(3)]
        write(folder / f"{synset}_boxes.txt", "\n".join(lines) + "\n")
    picture(base / "val" / "images" / "val_0.JPEG", width=64, height=64)
    write(base / "val" / "val_annotations.txt", "val_0.JPEG\tn01443537\t5\t6\t7\t8\n")
    return base


def pet(root):
    base = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_bulldog", "Ragdoll"]
    for part in ("trainval", "test"):
        lines = []
        for number, breed in reversed([*enumerate(breeds, 1)]):
            stem = f"{breed}_{10 if part == 'test' else 2}"
            picture(base / "images" / f"{stem}.jpg")
            mask(
                base / "annotations" / "trimaps" / f"{stem}.png",
                np.where(disc(), 1, 2) + (np.eye(30, 40) == 1),
            )
            lines.append(f"{stem} {number} 1 1")
        write(base / "annotations" / f"{part}.txt", "\n".join(lines) + "\n")
    return base


def tiny_part(root):
    """As whoever measures it has the set: without some of the classes that are measured."""
    return tiny(root)


TREES = {"tiny-20": tiny_part}
TREES |= {"cub": cub, "voc": voc, "det": det, "coco": coco, "tiny": tiny, "pet": pet}
each = pytest.mark.parametrize("name", TREES)


def both(name, root, size=8):
    return [load(name, split, root=root, size=size) for split in ("train", "test")]


def listing(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


# ---- every set


def test_the_table_has_every_set():
    assert {"folder", *emoji.NAMES, *TREES} == images.SOURCES.keys()
    assert {*TREES} == official.ABOUT.keys() == official.LISTINGS.keys()


def test_a_set_of_the_callers_is_one_more_line_of_the_table(monkeypatch):
    monkeypatch.setitem(images.SOURCES, "other", images.SOURCES["folder"])
    with pytest.raises(FileNotFoundError, match="images"):
        images.load("other", root="nowhere")
    with pytest.raises(ValueError, match="did you mean 'other'"):
        images.load("othre")


def test_a_set_may_be_a_function_of_the_callers(tmp_path, monkeypatch):
    cub(tmp_path)
    code = "from kpnb_book.data.image_set import Record, source\n"
    code += "def birds(wanted, size):\n"
    code += f"    path = Path({str(tmp_path)!r})\n"
    code += "    files = sorted(path.rglob('*.jpg'))\n"
    code += "    records = [Record(p, None, p.name, 0, (0, 0, 20, 20)) for p in files]\n"
    code += "    return source(wanted, size, ['bird'], records, path)\n"
    write(tmp_path / "my_sets.py", "from pathlib import Path\n" + code)
    monkeypatch.syspath_prepend(tmp_path)
    data = images.load("my_sets:birds", size=8, count=3)
    assert len(data) == 3
    assert data.classes == ("bird",)
    assert data.config["dataset"] == "my_sets:birds"
    with pytest.raises(AttributeError, match="bees"):
        images.load("my_sets:bees")
    with pytest.raises(ModuleNotFoundError, match="their_sets"):
        images.load("their_sets:birds")


@each
def test_root_may_be_the_folder_or_hold_it_and_stays_as_it_is(name, tmp_path):
    base = TREES[name](tmp_path)
    before = listing(tmp_path)
    for above, own in zip(both(name, tmp_path, 64), both(name, base, 64), strict=True):
        assert torch.equal(above.images, own.images)
        assert torch.equal(above.masks, own.masks)
        assert above.config == own.config
        assert len(set(above.names)) == len(above)
        assert 0 < above.masks.float().mean() < 1
    assert above.classes == both(name, base)[0].classes
    assert listing(tmp_path) == before


@each
def test_missing_folder_says_where_to_get_it_how_large_it_is_and_where_it_looked(name, tmp_path):
    where = r"get .* \([\d.]+ GB\) from https?://\S+, and unpack it there"
    there = rf"there is no .* in {tmp_path}/absent: {where}"
    with pytest.raises(FileNotFoundError, match=there):
        load(name, root=tmp_path / "absent")
    if name != "pet":
        with pytest.raises(ValueError, match=rf"'{name}' needs root=.* GB\) from https?://"):
            load(name)


@each
def test_a_part_of_the_tree_that_is_missing_is_named(name, tmp_path):
    base = TREES[name](tmp_path)
    for needed in official.ABOUT[name]["needs"]:
        (base / needed).rename(base / "elsewhere")
        with pytest.raises(FileNotFoundError, match=rf"there is no {needed} in {base}"):
            load(name, root=base)
        (base / "elsewhere").rename(base / needed)


@each
def test_damaged_picture_is_named(name, tmp_path):
    base = TREES[name](tmp_path)
    path = next(path for path in PIXELS if base in path.parents)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"cannot read image {path}"):
        both(name, base)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        both(name, base)


@each
def test_set_changes_with_its_files_and_is_kept_in_the_store(name, tmp_path, monkeypatch):
    base, store = TREES[name](tmp_path / "root"), Store(tmp_path / "store")
    first = load(name, root=base, size=8, store=store)
    with monkeypatch.context() as patch:
        patch.setattr(image_set, "read", None)  # nothing can be decoded
        assert torch.equal(load(name, root=base, size=8, store=store).images, first.images)
    for path in [path for path in PIXELS if base in path.parents]:
        picture(path, seed=10_000, width=PIXELS[path].shape[1], height=PIXELS[path].shape[0])
    assert load(name, root=base, size=8, store=store).config != first.config


@each
def test_the_same_tree_elsewhere_is_the_same_set(name, tmp_path, monkeypatch):
    """Copied with new times under another name; its sets are read from the store, not decoded."""
    base, store = TREES[name](tmp_path / "here"), Store(tmp_path / "store")
    other = tmp_path / "on another disk" / "there"
    shutil.copytree(tmp_path / "here", other, copy_function=shutil.copyfile)
    splits, seen = ("train", "test"), {}
    for split in splits:
        seen[split] = load(name, split, root=base, size=8, store=store)
    runs = set(store.root.rglob("*.safetensors"))
    assert len(runs) == 2
    monkeypatch.setattr(image_set, "read", None)
    for split in splits:
        again = load(
            name, split, root=other / base.relative_to(tmp_path / "here"), size=8, store=store
        )
        assert again.config == seen[split].config
        assert again.names == seen[split].names
        assert torch.equal(again.images, seen[split].images)
    assert set(store.root.rglob("*.safetensors")) == runs


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cub", "bounding_boxes.txt"),
        ("voc", "Annotations/2007_000032.xml"),
        ("det", "Annotations/DET/val/ILSVRC2012_val_00000001.xml"),
        ("coco", "annotations/instances_train2017.json"),
        ("tiny", "train/n02124075/n02124075_boxes.txt"),
        ("pet", "annotations/test.txt"),
    ],
)
def test_annotations_that_break_off_are_named(name, file, tmp_path):
    path = TREES[name](tmp_path) / file
    path.write_text(path.read_text("utf8")[:-12], "utf8")
    with pytest.raises(ValueError, match=f"cannot read {path}"):
        both(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "known", "wrong"),
    [
        ("cub", "image_class_labels.txt", "12 2\n", "12 3\n"),
        ("voc", "Annotations/2007_000033.xml", "<name>dog", "<name>dragon"),
        ("coco", "annotations/instances_train2017.json", '"category_id": 36', '"category_id": 99'),
        ("coco", "annotations/instances_train2017.json", '"category_id": 3,', '"category_id": 99,'),
        ("tiny", "val/val_annotations.txt", "n01443537", "n99999999"),
    ],
)
def test_unknown_category(name, file, known, wrong, tmp_path):
    path = TREES[name](tmp_path) / file
    path.write_text(path.read_text("utf8").replace(known, wrong, 1), "utf8")
    with pytest.raises(
        ValueError, match=r"annotation of /.*\.(jpg|JPEG): unknown category '?(3|99|dragon|n9{8})"
    ):
        both(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "known", "wrong"),
    [
        ("cub", "bounding_boxes.txt", "10.0 5.0", "40.0 5.0"),
        ("voc", "Annotations/2007_000032.xml", "<xmin>11<", "<xmin>32<"),  # right of its right side
        ("det", "Annotations/DET/val/ILSVRC2012_val_00000001.xml", "<ymin>5<", "<ymin>nan<"),
        ("coco", "annotations/instances_val2017.json", "[10.0, 5.0, 10.0", "[-11.0, 5.0, 10.0"),
        ("tiny", "val/val_annotations.txt", "5\t6\t7\t8", "5\t64\t7\t70"),
    ],
)
def test_box_outside_its_image(name, file, known, wrong, tmp_path):
    path = TREES[name](tmp_path) / file
    assert known in path.read_text("utf8")
    path.write_text(path.read_text("utf8").replace(known, wrong), "utf8")
    with pytest.raises(
        ValueError, match=r"box \(.*\) of .* does not lie in image /.*, which is \d+ x \d+ pixels"
    ):
        both(name, tmp_path)


# ---- cub and count


@pytest.mark.parametrize("inside", [True, False])
def test_cub(tmp_path, inside):
    base = cub(tmp_path, inside)
    train, test = both("cub", tmp_path, 20)
    assert train.classes == ("001.Bird_1", "002.Bird_2")
    assert (len(train), len(test)) == (8, 4)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.names[0] == "001.Bird_1/Bird_0003.jpg"
    for data in (train, test):
        for i, name in enumerate(data.names):
            is_crop(data, i, base / "images" / name, (10, 5, 30, 25), disc())  # the box itself


def test_cub_without_a_segmentation_or_a_row(tmp_path):
    base = cub(tmp_path)
    path = base / "segmentations" / "002.Bird_2" / "Bird_0008.png"
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        both("cub", base)
    mask(path, disc()[:, 1:])
    with pytest.raises(
        ValueError, match=rf"mask {path} is 39 x 30 pixels, but image .* is 40 x 30"
    ):
        both("cub", base)
    path.write_bytes(good)
    both("cub", base)
    table = base / "bounding_boxes.txt"
    table.write_text("".join(table.read_text("utf8").splitlines(True)[:-1]), "utf8")
    with pytest.raises(
        ValueError, match=rf"cannot read the annotations in {base}: KeyError\('12'\)"
    ):
        both("cub", base)


def test_fewer_are_drawn_with_the_seed_and_classes_in_proportion(tmp_path):
    cub(tmp_path)
    one, same, other = (
        load("cub", root=tmp_path, size=4, count=4, seed=seed) for seed in (1, 1, 2)
    )
    assert Counter(one.labels.tolist()) == {0: 2, 1: 2}
    assert one.names == same.names != other.names
    assert one.config != other.config
    with pytest.raises(ValueError, match="cannot draw 9 of 8 images"):
        load("cub", root=tmp_path, size=4, count=9)
    assert len(load("cub", root=tmp_path, size=4, at_most=9)) == 8
    assert load("cub", root=tmp_path, size=4, at_most=4, seed=1).names == one.names


# ---- the other sets


def test_voc(tmp_path):
    base = voc(tmp_path)
    train, test = both("voc", tmp_path, 24)
    assert train.classes[7:15:7] == ("cat", "person")
    assert len(train.classes) == 20
    assert train.names == ("2007_000032/1", "2007_000032/2")
    assert [train.classes[label] for label in train.labels] == ["person", "dog"]
    for data, stem in ((train, "2007_000032"), (test, "2007_000033")):
        # columns 10 to 29 and rows 5 to 24, counted from 0, and 2 more on each side
        is_crop(data, 1, base / "JPEGImages" / f"{stem}.jpg", (8, 3, 32, 27), disc())


def test_det(tmp_path):
    base = det(tmp_path)
    train, test = both("det", tmp_path, 12)
    assert len(train.classes) == 26
    assert "seal" not in train.classes
    for data, stem in (
        (train, "train/ILSVRC2013_train/n02084071/n02084071_1"),
        (test, "val/ILSVRC2012_val_00000001"),
    ):
        found = [data.classes[label] for label in data.labels]
        assert found == ["dog", "zebra"]  # without the bird
        picture = base / "Data" / "DET" / f"{stem}.JPEG"
        is_crop(data, 0, picture, (8, 3, 20, 15), rectangle(10, 5, 18, 13))
    corner = load("det", root=tmp_path, size=10)
    picture = base / "Data" / "DET" / f"{train_stem()}.JPEG"
    is_crop(corner, 1, picture, (0, 0, 10, 10), rectangle(0, 0, 8, 8))  # clipped


def train_stem():
    return "train/ILSVRC2013_train/n02084071/n02084071_1"


def test_coco(tmp_path):
    base = coco(tmp_path)
    train, test = both("coco", tmp_path, 12)
    assert (
        train.classes == test.classes == tuple(f"thing {i}" for i in range(12, 2, -1))
    )  # the largest ten
    assert len(train) == sum(range(3, 13))  # no crowd among them
    assert len(test) == 10
    assert train.names[0] == "instances_train2017/4"
    figure = rectangle(10, 5, 20, 15) | rectangle(14, 2, 16, 5)
    for data, part in ((train, "train2017"), (test, "val2017")):
        is_crop(data, 3, base / part / "000000000007.jpg", (9, 4, 21, 16), figure)


LINE = [10, 5, 20, 15]  # four numbers
TRIANGLE = [10, 5, 20, 5, 20, 15]


@pytest.mark.parametrize(
    "nothing", [[], [[]], [LINE], [LINE, LINE], None], ids=["none", "empty", "4", "4+4", "null"]
)
def test_coco_objects_without_an_area_are_left_out_and_counted(tmp_path, caplog, nothing):
    path = coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text("utf8"))
    content["annotations"][5]["segmentation"] = nothing
    path.write_text(json.dumps(content), "utf8")
    with caplog.at_level(logging.WARNING):
        found = load("coco", "test", root=tmp_path, size=4)
    assert len(found) == 9
    assert "instances_val2017/6" not in found.names
    assert "1 of 10 objects of coco (test) are left out" in caplog.text
    assert "instances_val2017/6" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bbox": None}, "they have no box of four numbers"),
        ({"bbox": [1, 2, 3]}, "they have no box of four numbers"),
        ({"image_id": 999}, "their image is not listed"),
        ({"image_id": None}, "their image is not listed"),
    ],
)
def test_coco_objects_without_a_box_or_an_image_are_left_out_and_counted(
    tmp_path, caplog, wrong, says
):
    path = coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text("utf8"))
    whole = load("coco", "test", root=tmp_path, size=4)
    item = content["annotations"][5]
    for name, value in wrong.items():
        item.pop(name) if value is None else item.update({name: value})
    path.write_text(json.dumps(content), "utf8")
    with caplog.at_level(logging.WARNING):
        found = load("coco", "test", root=tmp_path, size=4)
    assert [*found.names] == [name for name in whole.names if name != "instances_val2017/6"]
    said = f"1 of 10 objects of coco (test) are left out, {says}: instances_val2017/6 ..."
    assert said in caplog.text


def test_coco_objects_without_a_category_are_named(tmp_path):
    path = coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text("utf8"))
    content["annotations"][5].pop("category_id")
    path.write_text(json.dumps(content), "utf8")
    with pytest.raises(ValueError, match=r"annotation of .*jpg: unknown category None"):
        load("coco", "test", root=tmp_path, size=4)


@pytest.mark.parametrize("crowd", [None, 0], ids=["no iscrowd", "0"])
@pytest.mark.parametrize("form", ["runs", "text", "line first", "line last"])
def test_coco_outlines_that_pycocotools_reads(tmp_path, form, crowd):
    """Run lengths for a single object, as numbers and as text; lines beside polygons."""
    coding = pytest.importorskip("pycocotools.mask")
    path = coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text("utf8"))
    inside = rectangle(12, 6, 17, 14)
    flat = inside.T.flatten()  # runs go down the columns, and begin with the background
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    text = coding.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
    corners = [12, 6, 17, 6, 17, 14, 12, 14]
    forms = {
        "runs": {"counts": runs, "size": [HEIGHT, WIDTH]},
        "text": {"counts": text, "size": [HEIGHT, WIDTH]},
        "line first": [LINE, corners],
        "line last": [corners, LINE],
    }
    for item in content["annotations"]:
        item["segmentation"] = forms[form]
        item.pop("iscrowd") if crowd is None else None
    content["annotations"] = content["annotations"][:12]
    path.write_text(json.dumps(content), "utf8")
    found = load("coco", "test", root=tmp_path, size=12)
    assert len(found) == 10
    for mask in found.masks.numpy():
        np.testing.assert_array_equal(mask, inside[4:16, 9:21])


def test_coco_runs_of_another_size_are_named(tmp_path):
    path = coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text("utf8"))
    content["annotations"][5]["segmentation"] = {"counts": [600, 600], "size": [WIDTH, HEIGHT]}
    path.write_text(json.dumps(content), "utf8")
    with pytest.raises(ValueError, match=r"instances_val2017/6.*30 x 40 pixels.*is 40 x 30"):
        load("coco", "test", root=tmp_path, size=4)


def test_coco_without_its_package(tmp_path, monkeypatch):
    coco(tmp_path)

    def missing(name):
        raise FileNotFoundError(f"the package {name} is missing: run make setup")

    monkeypatch.setattr(official, "package", missing)
    with pytest.raises(
        FileNotFoundError, match="the package pycocotools is missing: run make setup"
    ):
        load("coco", root=tmp_path)


def test_tiny(tmp_path):
    base = tiny(tmp_path)
    train, test = both("tiny", tmp_path, 64)
    assert train.classes == test.classes == ("n02124075", "n01443537")
    assert train.labels.tolist() == [0] * 3 + [1] * 3
    assert test.labels.tolist() == [1]
    box = np.zeros((64, 64), bool)
    box[10:53, 0:64] = True
    picture = base / "train" / "n01443537" / "images" / "n01443537_2.JPEG"
    is_crop(train, 5, picture, (0, 0, 64, 64), box)  # whole
    box[:] = False
    box[6:9, 5:8] = True
    is_crop(test, 0, base / "val" / "images" / "val_0.JPEG", (0, 0, 64, 64), box)


def as_many_of_tiny(root, synsets):
    """Tiny-ImageNet of these classes, in this order; of each three pictures, and one to test."""
    base, validated = root / "tiny-imagenet-200", []
    write(base / "wnids.txt", "\n".join(synsets) + "\n")
    for synset in sorted(synsets):
        folder = base / "train" / synset
        for i in range(3):
            picture(
                folder / "images" / f"{synset}_{i}.JPEG",
                width=64,
                height=64,
                seed=int(synset[1:]) + i,
            )
        lines = [f"{synset}_{i}.JPEG\t0\t10\t63\t{50 + i}" for i in range(3)]
        write(folder / f"{synset}_boxes.txt", "\n".join(lines) + "\n")
        picture(
            base / "val" / "images" / f"{synset}.JPEG", width=64, height=64, seed=int(synset[1:])
        )
        validated.append(f"{synset}.JPEG\t{synset}\t5\t6\t20\t30")
    write(base / "val" / "val_annotations.txt", "\n".join(validated) + "\n")


def test_some_classes_of_the_whole_set_are_those_of_a_part_of_it(tmp_path, monkeypatch, caplog):
    """Whatever else there is, and in whatever order."""
    only = ["n03", "n01", "n04"]
    monkeypatch.setitem(official.ABOUT["tiny-20"], "only", only)
    as_many_of_tiny(tmp_path / "whole", ["n02", "n04", "n01", "n05", "n03"])
    as_many_of_tiny(tmp_path / "part", ["n01", "n03", "n04"])
    for split, count in (("train", 9), ("test", 3)):
        whole, part = (
            load("tiny-20", split, root=tmp_path / name, size=16) for name in ("whole", "part")
        )
        assert whole.classes == part.classes == ("n03", "n01", "n04")
        assert len(whole) == count
        assert whole.names == part.names
        assert whole.config == part.config
        assert torch.equal(whole.images, part.images)
        assert torch.equal(whole.labels, part.labels)
        assert [whole.classes[label] for label in whole.labels] == [
            name[:3] for name in whole.names
        ]
    drawn = [load("tiny-20", root=tmp_path / n, size=16, count=6) for n in ("whole", "part")]
    assert drawn[0].names == drawn[1].names
    assert not caplog.records
    as_many_of_tiny(tmp_path / "others", ["n07", "n01"])
    assert load("tiny-20", root=tmp_path / "others", size=16).classes == ("n07", "n01")
    assert "2 of 3 classes are not in" in caplog.text
    assert "all 2 classes that are there are taken" in caplog.text


def test_pet_agrees_with_torchvision(tmp_path):
    pet(tmp_path)
    for split, theirs in (("train", "trainval"), ("test", "test")):
        data = load("pet", split, root=tmp_path, size=40)
        reference = OxfordIIITPet(tmp_path, theirs, target_types=("category", "segmentation"))
        read = [(image, label, np.asarray(trimap)) for image, (label, trimap) in reference]
        assert [name.replace("_", " ").title() for name in data.classes] == reference.classes
        assert sorted(data.labels.tolist()) == sorted(label for _, label, _ in read)
        for image, label, trimap in read:
            i = data.labels.tolist().index(label)
            window = image.resize((40, 40), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(
                data.images[i].permute(1, 2, 0).numpy(), np.asarray(window)
            )
            figure = (
                Image.fromarray(trimap == 1)
                .convert("L")
                .resize((40, 40), Image.Resampling.BILINEAR)
            )
            np.testing.assert_array_equal(data.masks[i].numpy(), np.asarray(figure) > 127)


def test_pet_without_root_is_what_torchvision_put_into_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("KPNB_STORE", str(tmp_path))
    tried = []

    def offline(url, root, **_):
        tried.append(str(root))
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    with pytest.raises(
        RuntimeError,
        match=rf"torchvision could not fill {tmp_path}/downloads \(no network\); get .* GB",
    ):
        load("pet")
    assert tried == [str(tmp_path / "downloads" / "oxford-iiit-pet")]
    pet(tmp_path / "downloads")
    assert len(load("pet", size=8)) == 3
    with pytest.raises(FileNotFoundError):
        load("pet", root=tmp_path / "mine")  # a folder that you name is never filled
    assert len(tried) == 1
    assert not (tmp_path / "mine").exists()


def test_pet_is_unpacked_once_from_the_archives_that_torchvision_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    base = pet(tmp_path / "site")
    asked = []

    def hand_out(url, root, md5):
        asked.append((url, md5))
        name = url.rpartition("/")[2]
        with tarfile.open(Path(root, name), "w:gz") as archive:
            folder = name.removesuffix(".tar.gz")
            archive.add(base / folder, folder)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", hand_out)
    assert torch.equal(load("pet", size=8).images, load("pet", root=base, size=8).images)
    load("pet", "test", size=8)
    assert asked == [*OxfordIIITPet._RESOURCES]


def test_pet_stays_in_its_folder(tmp_path, monkeypatch):
    """Whatever an archive holds."""
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))

    def hand_out(url, root, **_):
        with tarfile.open(Path(root, url.rpartition("/")[2]), "w:gz") as archive:
            member = tarfile.TarInfo("../../../escaped.txt")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", hand_out)
    with pytest.raises(RuntimeError, match="outside the destination"):
        load("pet")
    assert not list(tmp_path.rglob("escaped.txt"))


# ---- the one cropper


@pytest.mark.parametrize(
    ("box", "factor", "window"),
    [
        ((10, 5, 30, 25), 1.0, (10, 5, 30, 25)),
        ((10, 5, 30, 25), 1.2, (8, 3, 32, 27)),
        ((10, 5, 30, 25), 1.5, (5, 0, 35, 30)),
        ((0, 5, 20, 25), 1.5, (0, 0, 25, 30)),
        ((-3.0, 5, 20, 25), 1.0, (0, 5, 20, 25)),
        ((10.4, 5.4, 30.4, 25.6), 1.0, (10, 5, 30, 26)),
        ((10.25, 5.0, 10.25, 9.0), 1.0, (10, 5, 11, 9)),  # COCO has boxes without a width
        ((39.8, 29.9, 40.0, 30.0), 1.0, (39, 29, 40, 30)),
        ((10, 5, 30, 25), np.inf, (0, 0, 40, 30)),
        (None, 1.0, (0, 0, 40, 30)),
    ],
)
def test_windows_by_hand(box, factor, window):
    record = Record(Path("x.png"), None, "x", 0, box)
    assert image_set._window(record, Image.new("RGB", (WIDTH, HEIGHT)), factor) == window


def test_annotated_pictures_are_not_turned(tmp_path):
    """Positions count the pixels as they are stored, whatever an EXIF tag says."""
    base = tiny(tmp_path)
    path = base / "val" / "images" / "val_0.JPEG"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS[path]).save(path, "PNG", exif=exif)
    test = load("tiny", "test", root=base, size=64)
    np.testing.assert_array_equal(test.images[0].permute(1, 2, 0).numpy(), PIXELS[path])


def test_images_without_foreground_are_counted(tmp_path, caplog):
    base = voc(tmp_path)
    mask(base / "SegmentationObject" / "2007_000032.png", disc() * 3, palette=True)
    with caplog.at_level(logging.WARNING):
        load("voc", root=base, size=8)
    assert "2 of 2 images of voc (train) have no foreground" in caplog.text


def test_at_most_is_no_part_of_what_is_made():
    assert Request("emoji", at_most=5).config == Request("emoji").config
    with pytest.raises(ValueError, match="at_most=0 must be positive"):
        samples.Request("emoji", at_most=0)


def test_a_study_of_a_public_set_with_a_resnet(tmp_path):
    cub(tmp_path / "root")
    how = {
        "dataset": "cub",
        "data_root": str(tmp_path / "root"),
        "network": "resnet50",
        "width": 0.02,
        "hidden": 8,
    }
    how |= {
        "teacher_samples": 8,
        "share": 6,
        "test_samples": 100,
        "analysed": 2,
        "epochs": 1,
        "teacher_epochs": 1,
    }
    how |= {
        "layers": "Conv",
        "grid": 4,
        "seeds": (0,),
        "rank": 2,
        "probes": 2,
        "noise": 4,
        "head_epochs": 1,
    }
    study = ImageStudy("smoke", store=Store(tmp_path / "store"), **how)
    assert (len(study.train), len(study.share), len(study.test)) == (8, 6, 4)
    table = tables.table5(study)
    assert table.layer.tolist() == ["Conv"] * 2
    assert table.network.tolist() == ["student", "baseline"]
    assert tables.accuracies(study).accuracy.between(0, 1).all()
    assert study.shown(5).tolist() == [0, 1]
