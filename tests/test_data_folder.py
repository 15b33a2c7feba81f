"""Folders as people have them: masks of every form, transparency, EXIF tags, files out of place;
and ``kpnb check``, which shows them.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kpnb_book.data import contents, image_set
from kpnb_book.data.check import check
from kpnb_book.data.contents import contents as held
from kpnb_book.data.images import load
from kpnb_book.run.command_line import main
from kpnb_book.store import Store
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import metrics

SIDE = 12
LEFT = np.zeros((SIDE, SIDE), bool)  # the foreground of most masks here
LEFT[:, :5] = True
RIM = np.zeros((SIDE, SIDE), bool)
RIM[:, 5] = True
SIDEWAYS, UPSIDE_DOWN = 6, 3  # EXIF orientations


def pixels(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def tree(root: Path, count: int = 12) -> Path:
    """Two classes of ``count`` pictures each with masks of 0 and 255, all fine."""
    for kind in ("images", "masks"):
        for name in ("cat", "dog"):
            (root / kind / name).mkdir(parents=True)
    for label, name in enumerate(("cat", "dog")):
        for i in range(count):
            Image.fromarray(pixels(100 * label + i)).save(root / f"images/{name}/{i:02}.png")
            Image.fromarray(LEFT).save(root / f"masks/{name}/{i:02}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "mine")


def both(root: Path, size: int = SIDE, **options):
    return [load("folder", split, root=root, size=size, **options) for split in ("train", "test")]


def first(root: Path, **options) -> tuple[np.ndarray, ...]:
    """Picture [S, S, 3], mask and void of cat/00.png."""
    name = "cat/00"
    for data in both(root, **options):
        for i in range(len(data)):
            if data.names[i].startswith(name):
                void = data.void[i].numpy() if data.void is not None else np.zeros_like(LEFT)
                return data.images[i].permute(1, 2, 0).numpy(), data.masks[i].numpy(), void
    raise AssertionError(name)


def mask(root: Path, values: np.ndarray, mode: str = "L") -> None:
    """Write the mask of cat/00.png."""
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0] * 256)  # every index is black
    image.convert(mode).save(root / "masks/cat/00.png")


# ---- masks


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("high", [1, 255])
def test_masks_of_two_values_in_any_mode(root, mode, high):
    values = (LEFT * high).astype(np.uint8)
    if mode == "1":
        Image.fromarray(LEFT).save(root / "masks/cat/00.png")
    elif mode == "I;16":
        Image.fromarray(values.astype(np.uint16)).save(root / "masks/cat/00.png")
    else:
        mask(root, values, mode)
    _, inside, void = first(root)
    np.testing.assert_array_equal(inside, LEFT)
    assert not void.any()


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("way", ["option", "file"])
def test_a_stated_void_belongs_to_neither(root, mode, way):
    mask(root, np.where(RIM, 255, LEFT).astype(np.uint8), mode)
    for path in [*(root / "masks").glob("*/*")]:
        if path.name != "00.png" or path.parent.name != "cat":
            Image.fromarray(LEFT.astype(np.uint8)).save(path)
    options = {"void": 255}
    if way == "file":
        (root / "kpnb.json").write_text(json.dumps(options))
        options = {}
    _, inside, void = first(root, **options)
    np.testing.assert_array_equal(inside, LEFT)
    np.testing.assert_array_equal(void, RIM)
    train = both(root, **options)[0]
    assert train.subset([0, 1]).void.shape == (2, SIDE, SIDE)


def test_void_alone_beside_the_background_is_no_foreground(root):
    mask(root, np.where(RIM, 255, 0).astype(np.uint8))
    _, inside, void = first(root, void=255)
    assert not inside.any()
    np.testing.assert_array_equal(void, RIM)


GREY = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).round().astype(np.uint8)
LABELS = np.where(RIM, 2, LEFT).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "message", "options", "inside"),
    [
        (np.where(RIM, 255, LEFT), "hold 0, 1, 255: say void=255", {"void": 255}, LEFT),
        (np.where(RIM, 255, LEFT), "hold 0, 1, 255", {"foreground": 1}, LEFT),
        (np.where(RIM, 254, LEFT), "hold 0, 1, 254", {"void": 254}, LEFT),
        (LABELS, "hold 0, 1, 2: say which are foreground", {"foreground": 2}, RIM),
        (LABELS, "hold 0, 1, 2", {"above": 0}, LEFT | RIM),
        (GREY, "hold 0, 2, 4, .*above", {"above": 127}, GREY > 127),
        (LEFT * 5, "hold 0, 5", {"foreground": 5}, LEFT),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_ambiguous_masks_are_refused_until_it_is_said(root, values, message, options, inside, mode):
    mask(root, values.astype(np.uint8), mode)
    wanted = rf"mask .*masks.cat.00\.png is ambiguous: masks {message}"
    with pytest.raises(ValueError, match=wanted):
        both(root)
    np.testing.assert_array_equal(first(root, **options)[1], inside)


def test_a_single_pixel_of_255_beside_zeros_is_one_pixel(root):
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[3, 4] = 255
    mask(root, values)
    assert first(root)[1].sum() == 1


def test_void_is_squeezed_with_the_mask(root):
    """Four pixels to one: it is void when most are, else foreground when most known ones are."""
    quarter = np.array([[1, 1, 255, 255, 255, 0], [1, 0, 255, 255, 1, 1]] * 6, np.uint8)
    values = np.kron(np.ones((1, 2), int), quarter)[:SIDE, :SIDE]
    for path in (root / "masks").glob("*/*"):
        Image.fromarray(LEFT.astype(np.uint8)).save(path)
    mask(root, values.astype(np.uint8))
    found = next(data for data in both(root, size=6, void=255) if "cat/00.png" in data.names)
    at = found.names.index("cat/00.png")
    assert found.void[at, 2].tolist() == [False, True, False] * 2
    assert found.masks[at, 2].tolist() == [True, False, True] * 2


def test_void_units_are_on_neither_region_of_a_study(root, tmp_path):
    """Nor do they count in the background's mean entropy."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:, :3], values[:, 9:] = 1, 255
    for path in (root / "masks").glob("*/*"):
        Image.fromarray(values).save(path)
    (root / "kpnb.json").write_text('{"void": 255}')
    tiny = {"epochs": 1, "teacher_epochs": 1, "head_epochs": 1, "size": SIDE * 4, "hidden": 8}
    tiny |= {"width": 0.02, "grid": 4, "analysed": 2, "seeds": (0,), "layers": "FC1", "share": 8}
    tiny |= {"teacher_samples": 8, "test_samples": 2}
    how = {"dataset": "folder", "data_root": str(root), "store": Store(tmp_path / "store")}
    study = ImageStudy("smoke", **how, **tiny)
    columns = torch.arange(16) % 4
    assert (study.foreground == (columns == 0)).all()
    assert (study.background == ((columns == 1) | (columns == 2))).all()
    found = metrics(study, study.baseline(0), "FC1")
    assert not found.points[..., columns == 3].any()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"viod": 255}, "unknown option 'viod'; did you mean 'void'"),
        ({"void": "255"}, "void cannot be '255'"),
        ({"void": True}, "void cannot be True"),
        ({"background": "colourless"}, "background='colourless' is unknown; use a colour"),
        ({"foreground": 1, "above": 3}, "foreground= and above= exclude each other"),
        ({"foreground": 255, "void": 255}, "foreground= and void= are both 255"),
        ([255], "it should hold names and values"),
    ],
)
def test_options_of_a_folder_that_make_no_sense(root, said, message):
    (root / "kpnb.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=rf"kpnb.json.*{re.escape(message)}"):
        load("folder", root=root)


@pytest.mark.parametrize("name", ["emoji", "voc"])
@pytest.mark.parametrize(
    "option", [{"void": 255}, {"foreground": 1}, {"above": 1}, {"exif": False}]
)
def test_options_that_a_set_has_no_use_for_are_refused(name, option):
    with pytest.raises(ValueError, match=rf"{next(iter(option))}= is for dataset='folder'"):
        load(name, **option)


# ---- pictures


@pytest.mark.parametrize("form", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_the_stated_background(root, form):
    """Whatever colour the file has there; ``keep`` shows it."""
    (root / "masks/cat/00.png").unlink()
    grey = np.full((SIDE, SIDE), 90, np.uint8)
    grey[LEFT] = 10
    image = Image.fromarray(grey).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(LEFT, 255, 0).astype(np.uint8)))
    if form == "P":
        image = Image.fromarray(LEFT.astype(np.uint8))
        image.putpalette([90, 90, 90, 10, 10, 10])
        image.save(root / "images/cat/00.png", transparency=0)
    else:
        image.convert(form).save(root / "images/cat/00.png")
    for options, behind in (
        ({}, (255, 255, 255)),
        ({"background": "#102030"}, (16, 32, 48)),
        ({"background": "keep"}, (90, 90, 90)),
    ):
        seen, inside, _ = first(root, **options)
        np.testing.assert_array_equal(inside, LEFT)
        assert (seen[LEFT] == 10).all()
        assert (seen[~LEFT] == behind).all()
    assert both(root)[0].config != both(root, background="keep")[0].config
    (root / "kpnb.json").write_text('{"background": "keep"}')
    assert (first(root)[0][~LEFT] == 90).all()
    assert (first(root, background="white")[0][~LEFT] == 255).all()  # what is said goes first


def test_what_is_half_transparent_is_blended(root):
    values = np.full((SIDE, SIDE, 4), (200, 100, 0, 128), np.uint8)
    Image.fromarray(values).save(root / "images/cat/00.png")  # beside its mask
    seen = first(root, background="black")[0]
    np.testing.assert_allclose(seen[0, 0], [200 * 128 / 255, 100 * 128 / 255, 0], atol=1)


def turned(path: Path, orientation: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Write a picture with that tag; its stored pixels."""
    stored = pixels(7, height, width)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    return stored


def test_a_mask_belongs_to_the_upright_picture(root, caplog):
    """Where sizes cannot tell, it is said; ``exif=False`` is for masks of stored pixels."""
    stored = turned(root / "images/cat/00.png", UPSIDE_DOWN)
    with caplog.at_level(logging.WARNING):
        seen, inside, _ = first(root)
    np.testing.assert_array_equal(seen, stored[::-1, ::-1])
    np.testing.assert_array_equal(inside, LEFT)
    assert "1 pictures were turned upright by their EXIF tag (cat/00.png" in caplog.text
    assert "say exif=False" in caplog.text
    seen, inside, _ = first(root, exif=False)
    np.testing.assert_array_equal(seen, stored)
    np.testing.assert_array_equal(inside, LEFT)


def test_a_mask_with_a_tag_of_its_own_is_turned_by_it(root):
    turned(root / "images/cat/00.png", UPSIDE_DOWN)
    exif = Image.Exif()
    exif[0x0112] = UPSIDE_DOWN
    Image.fromarray(LEFT.astype(np.uint8)).save(root / "masks/cat/00.png", exif=exif)
    np.testing.assert_array_equal(first(root)[1], LEFT[::-1, ::-1])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_sizes_are_compared_after_turning(root, suffix):
    (root / "images/cat/00.png").unlink()
    turned(root / f"images/cat/00.{suffix}", SIDEWAYS, height=8, width=14)
    upright = np.zeros((14, 8), bool)
    upright[:3] = True
    Image.fromarray(upright.T).save(root / "masks/cat/00.png")
    wanted = rf"masks.cat.00.png is 14 x 8 pixels, but image .*images.cat.00.{suffix} is 8 x 14"
    with pytest.raises(ValueError, match=f"{wanted} after its EXIF tag .* or say exif=False"):
        both(root)
    both(root, exif=False)
    Image.fromarray(upright).save(root / "masks/cat/00.png")
    both(root)


@pytest.mark.parametrize("times", [1.5, 3])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_picture_beyond_pillows_limit_is_named(root, monkeypatch, times, kind):
    """Pillow itself warns up to twice its limit, and refuses above; neither names the file."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * SIDE * SIDE)
    wide = np.zeros((SIDE, round(2 * times * SIDE)), bool)
    Image.fromarray(wide).save(root / f"{kind}/dog/03.png")
    wanted = rf"{kind}.dog.03.png has more than Pillow's limit of 288 pixels; make it smaller"
    with pytest.raises(ValueError, match=wanted):
        both(root)


# ---- what is in the folder


def test_what_lies_out_of_place_is_said(root, caplog):
    cat = root / "images/cat"
    (cat / "more").mkdir()
    shutil.copy(cat / "00.png", cat / "more")
    shutil.copy(cat / "00.png", root / "images/loose.png")
    shutil.copy(cat / "00.png", root / "masks/dog/99.png")
    (cat / "notes.txt").write_text("hello")
    (cat / ".DS_Store").write_text("hidden")
    with caplog.at_level(logging.WARNING):
        both(root)
    (line,) = [record.message for record in caplog.records if "not used" in record.message]
    assert line.startswith(f"4 things in {root} are not used: ")  # once, not for each split
    found = check(root).skipped
    reasons = {
        "images/cat/more/00.png": "in a folder inside of a class; move it up",
        "images/cat/notes.txt": "no format that Pillow reads, by its extension",
        "images/loose.png": "in no folder of a class; move it into one",
        "masks/dog/99.png": "there is no image of this name for the mask",
    }
    assert found == [f"{name}: {why}" for name, why in reasons.items()]


def test_a_class_with_nested_pictures_only(root):
    folder = root / "images/cow/more"
    folder.mkdir(parents=True)
    shutil.copy(root / "images/cat/00.png", folder)
    with pytest.raises(FileNotFoundError, match=r"cow holds no image; .*00.png lies too deep"):
        load("folder", root=root)


def test_one_class_is_refused(root):
    shutil.rmtree(root / "images/dog")
    with pytest.raises(ValueError, match="one class only, cat: a network needs two"):
        load("folder", root=root)


def test_two_masks_for_one_image(root):
    shutil.copy(root / "masks/cat/00.png", root / "masks/cat/00.bmp")
    with pytest.raises(ValueError, match=r"two masks for one image: .*00.bmp and .*00.png"):
        load("folder", root=root)


def test_few_training_images_are_said(tmp_path, caplog):
    root = tree(tmp_path / "few", count=4)
    with caplog.at_level(logging.WARNING):
        both(root)
    assert "only 7 training images in" in caplog.text
    assert "a network hardly learns from them" in caplog.text
    for quiet in (
        lambda: both(tree(tmp_path / "many", count=13)),
        lambda: load("folder", root=root, learned=False),  # the same few, which are only measured
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            quiet()
        assert not caplog.records


def test_half_a_division_is_said(root):
    (root / "train").mkdir()
    assert check(root).skipped == ["train/: there is no test beside it, so it is no split"]


# ---- the same data elsewhere


def addresses(root: Path, store: Store) -> list[dict]:
    return [data.config for data in both(root, store=store)]


def old(root: Path) -> None:
    """Make the files look as if they had been at rest."""
    for path in root.rglob("*"):
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("change", ["copied", "moved", "touched", "old"])
def test_the_same_files_are_the_same_data(root, tmp_path, monkeypatch, change):
    store = Store(tmp_path / "store")
    before = addresses(root, store)
    other = tmp_path / "elsewhere" / "renamed"
    if change == "copied":
        shutil.copytree(root, other, copy_function=shutil.copyfile)
    elif change == "moved":
        other.parent.mkdir()
        root.rename(other)
    else:
        other = root
        for path in root.rglob("*"):
            os.utime(path, None if change == "touched" else (1e9, 1e9))
    monkeypatch.setattr(image_set, "read", None)  # nothing can be decoded
    assert addresses(other, store) == before


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_another_pixel_is_other_data_even_in_a_file_of_the_same_size_and_time(root, tmp_path, kind):
    store = Store(tmp_path / "store")
    path = root / kind / "cat/00.png"
    path.with_suffix(".bmp").write_bytes(b"")
    path.unlink()
    path = path.with_suffix(".bmp")  # no compression
    image = Image.fromarray(pixels(1) if kind == "images" else LEFT)
    image.save(path)
    old(root)
    before = addresses(root, store)
    values = np.asarray(image).copy()
    values[0, 0] = 0 if values[0, 0].any() else 1
    Image.fromarray(values).save(path)
    os.utime(path, (1e9, 1e9))
    assert addresses(root, store) != before


def test_a_file_is_read_once_and_not_at_every_start(root, tmp_path, monkeypatch):
    files = sorted(root.glob("*/*/*.png"))
    store = Store(tmp_path / "store")
    wanted = held(files, root)
    assert held(files, root, store) == wanted  # they were changed just now: not remembered
    read = []
    content = contents._content
    monkeypatch.setattr(contents, "_content", lambda path: read.append(path) or content(path))
    monkeypatch.setattr(contents, "FRESH", -10.0)
    for expected in (files, []):
        read.clear()
        assert held(files, root, store) == wanted
        assert sorted(read) == expected
    files[3].write_bytes(files[4].read_bytes() + b"more")
    read.clear()
    assert held(files, root, store) != wanted
    assert read == [files[3]]
    for damaged in ("{", "[]", "null", '{"a": 1}'):
        next((tmp_path / "store/contents").glob("*.json")).write_text(damaged)
        assert held(files[:3], root, store) == {path: wanted[path] for path in files[:3]}


# ---- kpnb check


def test_check_of_a_fine_folder(tmp_path, monkeypatch, capsys):
    root = tree(tmp_path / "fine", count=13)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["check", "fine"]) == 0
    said = capsys.readouterr().out
    assert "train: 21 pictures of 2 classes: cat " in said
    assert "fine: the contact sheet is check-fine.html" in said
    page = (tmp_path / "check-fine.html").read_text("utf8")
    assert "cat/00.png" in page
    assert page.count("data:image/png;base64,") == 8 + 8 + 5  # at most eight of each class
    assert "http" not in page  # it needs no other file
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_check_lists_all_that_is_wrong(root, tmp_path, capsys):
    (root / "images/cat/00.png").write_bytes(b"no picture")
    (root / "masks/cat/01.png").unlink()
    Image.new("L", (3, 3)).save(root / "masks/dog/02.png")
    Image.fromarray(LABELS).save(root / "masks/dog/03.png")
    Image.new("L", (SIDE, SIDE)).save(root / "masks/dog/04.png")
    (root / "images/dog/<b>.txt").write_text("odd name")
    output = tmp_path / "sheet.html"
    assert main(["check", str(root), "--size", "16", "--output", str(output)]) == 1
    page = output.read_text("utf8")
    said = capsys.readouterr().out
    for what in ("cannot read image", "no mask for", "is 3 x 3 pixels", "hold 0, 1, 2"):
        assert what in page
        assert what in said
    assert "have no foreground" in page
    assert "&lt;b&gt;.txt" in page
    assert "<b>" not in page


def test_check_of_what_is_no_such_folder(root, tmp_path, capsys):
    output = ["--output", str(tmp_path / "sheet.html")]
    assert main(["check", str(root / "nowhere")]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    assert main(["check", str(root), "--size", "0"]) == 2
    assert main(["check", str(root), "--output", str(tmp_path)]) == 2
    assert "cannot write the page" in capsys.readouterr().err
    assert main(["check", str(root / "images"), *output]) == 1
    assert "no folder of a class in" in capsys.readouterr().out
    (root / "kpnb.json").write_text("{")
    assert main(["check", str(root), *output]) == 1
    assert "kpnb.json" in capsys.readouterr().out


def test_the_sheet_shows_what_networks_see(root):
    """The very pixels and masks that ``load`` gives."""
    (root / "kpnb.json").write_text('{"background": "#00ff00"}')
    values = np.full((SIDE, SIDE, 4), (9, 9, 9, 255), np.uint8)
    values[~LEFT] = (200, 0, 0, 0)
    Image.fromarray(values).save(root / "images/cat/00.png")
    shown = check(root, size=8).shown
    for split, data in zip(("train", "test"), both(root, size=8), strict=True):
        for one in (one for pictures in shown[split].values() for one in pictures):
            at = data.names.index(one[0])
            np.testing.assert_array_equal(one[1].image, data.images[at].permute(1, 2, 0).numpy())
            np.testing.assert_array_equal(one[1].mask, data.masks[at].numpy())
