"""Cloud sets: exact masks, one function of (seed, split, index), ModelNet40's layouts read or
refused clearly.
"""

import shutil
import sys

import numpy as np
import pytest
import torch
import trimesh
from trimesh.transformations import rotation_matrix
from trimesh.triangles import to_kwargs

from kpnb_book.data import cloud_set, clouds, shapes
from kpnb_book.data.cloud_set import CloudSet, surface, unit
from kpnb_book.data.clouds import load
from kpnb_book.data.samples import Request
from kpnb_book.data.shapes import SHAPES
from kpnb_book.store import Store

SMALL = {"points": 24, "background": 30, "clouds": 2}


def same(a, b):
    return (
        all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("points", "labels", "masks"))
        and a.names == b.names
    )


# ---- CloudSet


def parts():
    return {
        "points": torch.rand(2, 4, 3),
        "labels": torch.arange(2),
        "masks": torch.zeros(2, 4, dtype=torch.bool),
    } | {
        "classes": ("a", "b"),
        "names": ("x", "y"),
        "config": {},
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points": torch.rand(2, 3, 4)}, r"points must be float32 \[N, P, 3\].*\[2, 3, 4\]"),
        ({"points": torch.rand(2, 4, 3).double()}, "not torch.float64"),
        ({"points": torch.full((2, 4, 3), torch.nan)}, r"cloud 0 \(x\) has NaN"),
        (
            {"masks": torch.zeros(2, 3, dtype=torch.bool)},
            r"masks must be torch.bool \[2, 4\].*\[2, 3\]",
        ),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be torch.int64 \[2\]"),
        ({"labels": torch.tensor([0, 2])}, "labels run from 0 to 2, but there are 2 classes"),
        ({"names": ("x",)}, "1 names for 2 clouds"),
        ({"config": {"a": torch.zeros(1)}}, "config must be JSON-able"),
    ],
)
def test_parts_that_do_not_fit_are_named(wrong, message):
    CloudSet(**parts())
    with pytest.raises(ValueError, match=message):
        CloudSet(**(parts() | wrong))


def test_batch_subset_and_share():
    data = load(count=40, **SMALL)
    x, y = data.batch(torch.tensor([5, 2]))
    assert torch.equal(x, data.points[[5, 2]])
    assert y.tolist() == [5, 2]
    some = data.subset(data.labels == 3)
    assert some.names == tuple(data.names[i] for i in (3, 13, 23, 33))
    assert torch.equal(some.points, data.points[3::10])
    share = data.share(20, seed=1)
    assert share.labels.bincount().tolist() == [2] * 10
    assert set(share.share(10, seed=1).names) < set(data.names)
    assert len({str(d.config) for d in (data, some, share, data.share(20, seed=2))}) == 4


# ---- composition


def test_object_and_background_are_where_they_should_be(monkeypatch):
    data = load(count=36, points=64, background=50, seed=3)
    assert data.points.shape == (36, 114, 3)
    assert data.masks.sum(1).tolist() == [64] * 36
    torch.testing.assert_close(data.points.norm(dim=-1).amax(1), torch.ones(36))
    objects = shapes.source(Request("shapes", seed=3))
    for i in range(36):
        alone = torch.from_numpy(unit(objects.cloud(i, 64))).float()
        found = data.points[i][data.masks[i]]
        size = found.norm(dim=-1).max()
        torch.testing.assert_close(found / size, alone)  # the mask marks exactly the object
        assert (
            data.points[i][~data.masks[i]].norm(dim=-1).min() >= size - 1e-5
        )  # no background point in its sphere
    rows = {tuple(p) for p in (data.points[0] / data.points[0, :64].norm(dim=-1).max()).tolist()}
    assert len(rows) == 114  # drawn without replacement


def test_background_is_of_other_classes_and_held_out_objects():
    for split in ("train", "test"):
        objects, used = shapes.source(Request("shapes", split)), []

        def cloud(i, points, used=used, make=objects.cloud):
            used.append(i)
            return make(i, points)

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(
                clouds.SOURCES, "shapes", lambda *a, o=objects, c=cloud: o._replace(cloud=c)
            )
            load(split=split, count=12, points=16, background=20)
        assert len(used) == 12 * 6
        for first in range(0, 72, 6):
            own, *others = (int(objects.labels[i]) for i in used[first : first + 6])
            assert own not in others
            assert len(set(used[first + 1 : first + 6])) == 5
    assert not same(load(count=12, **SMALL), load(split="test", count=12, **SMALL))


def test_scale_and_distance():
    overlaid = load(count=12, **SMALL, scale=1, distance=0)
    torch.testing.assert_close(overlaid.points[:, :24].norm(dim=-1).amax(1), torch.ones(12))
    far = load(count=12, **SMALL, scale=0.1, distance=4)
    assert (far.points[:, :24].norm(dim=-1).amax(1) < 0.26).all()
    assert load(count=2, points=9, background=0).masks.all()


def test_sets_depend_on_seed_split_and_index_alone(tmp_path):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state must not move
    data, again, shorter, other = (
        load(count=n, seed=s, **SMALL) for n, s in ((24, 1), (24, 1), (7, 1), (24, 2))
    )
    assert same(data, again)
    assert same(data.subset(range(7)), shorter)
    assert not torch.equal(data.points, other.points)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    stored = load(count=24, seed=1, **SMALL, store=Store(tmp_path))
    assert same(stored, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud_set, "unit", None)  # nothing is made again
        assert same(load(count=24, seed=1, **SMALL, store=Store(tmp_path)), data)


def test_every_class_varies():
    objects = shapes.source(Request("shapes"))
    assert len(SHAPES) >= 10
    for label, name in enumerate(SHAPES):
        sizes = np.array(
            [np.ptp(objects.cloud(label + len(SHAPES) * n, 400), axis=0) for n in range(12)]
        )
        proportions = sizes / sizes.max(1, keepdims=True)
        assert np.isfinite(sizes).all()
        assert np.ptp(proportions, axis=0).max() > 0.1, name


def test_surface_points_are_spread_by_area():
    big, tiny = [[0, 0, 0], [3, 0, 0], [0, 2, 0]], [[0, 0, 1], [1, 0, 1], [0, 2, 1]]
    mesh = trimesh.Trimesh(**to_kwargs([big, tiny, [[5, 5, 5]] * 3]), process=False)
    points = surface(mesh, 40_000, np.random.default_rng(0))
    low = points[:, 2] == 0
    assert low.mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(
        points[low].mean(0), [1, 2 / 3, 0], atol=0.02
    )  # the centroid of the triangle
    assert (points[low][:, 0] / 3 + points[low][:, 1] / 2 <= 1 + 1e-12).all()


# ---- ModelNet40

CLASSES = ("bed", "night_stand", "sofa")


def box(width):
    """A box as ModelNet40's OFF files write one."""
    corners = [(x * width, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    lines = [" ".join(map(str, c)) for c in corners] + ["3 " + " ".join(map(str, f)) for f in faces]
    return f"{len(corners)} {len(faces)} 0\n" + "\n".join(lines) + "\n"


def write_meshes(root):
    for c, name in enumerate(CLASSES):
        for split, n in (("train", 3), ("test", 1)):
            folder = root / name / split
            folder.mkdir(parents=True)
            for i in range(n):  # some real files have no line break after OFF
                (folder / f"{name}_{i:04}.off").write_text(("OFF" if i else "OFF\n") + box(1 + c))


def write_text(root):
    rng = np.random.default_rng(0)
    for split, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        names = [f"{name}_{i:04}" for name in CLASSES for i in numbers]
        (root / f"modelnet40_{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            path = root / name.rpartition("_")[0] / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, rng.normal(size=(40, 6)), delimiter=",", fmt="%.6f")


def write_hdf5(root):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    (root / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    for split, n in (("train", 6), ("test", 3)):
        (root / f"{split}_files.txt").write_text(
            f"data/modelnet40_ply_hdf5_2048/ply_data_{split}0.h5\n"
        )
        with h5py.File(root / f"ply_data_{split}0.h5", "w") as file:
            file["data"] = rng.normal(size=(n, 40, 3)).astype(np.float32)
            file["label"] = (np.arange(n) % 3).astype(np.uint8)[:, None]


# Resampled layouts have y upwards: a quarter turn around x, towards z.
UPRIGHT = rotation_matrix(np.pi / 2, [1, 0, 0])[:3, :3]
WRITERS = {"meshes": write_meshes, "text": write_text, "hdf5": write_hdf5}


def read(root, split="train", **options):
    return load("modelnet40", split, root=root, **SMALL | options)


@pytest.mark.parametrize("layout", WRITERS)
def test_layouts_are_read_and_left_alone(tmp_path, layout):
    WRITERS[layout](tmp_path)
    (tmp_path / "__MACOSX").mkdir()  # unpacked archives have one
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    data, test = read(tmp_path), read(tmp_path, "test")
    assert data.classes == CLASSES
    assert data.labels.bincount().tolist() == ([2] * 3 if layout == "hdf5" else [3] * 3)
    assert test.labels.tolist() == [0, 1, 2]
    assert same(read(tmp_path), data)
    few = read(tmp_path, count=3)
    assert set(few.names) < set(data.names)
    assert torch.equal(few.points[0], data.points[data.names.index(few.names[0])])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_at_most_so_many_clouds_or_all_there_are(tmp_path):
    write_meshes(tmp_path)
    every, few = read(tmp_path), read(tmp_path, at_most=6)
    assert few.labels.bincount().tolist() == [2, 2, 2]
    assert same(few, read(tmp_path, count=6))
    assert same(few, every.subset([every.names.index(name) for name in few.names]))
    assert read(tmp_path, at_most=6, seed=1).names != few.names
    assert read(tmp_path, at_most=9).config == read(tmp_path, at_most=10).config == every.config
    with pytest.raises(ValueError, match="cannot draw 10 of 9 clouds"):
        read(tmp_path, count=10)


def test_points_are_those_of_the_files(tmp_path):
    write_text(tmp_path)
    data = read(tmp_path, background=0, points=40)
    original = unit(np.loadtxt(tmp_path / "bed" / "bed_0001.txt", delimiter=",")[:, :3] @ UPRIGHT.T)
    found = sorted(data.points[data.names.index("bed/bed_0001")].tolist())
    np.testing.assert_allclose(found, sorted(original.tolist()), atol=1e-6)
    shutil.rmtree(tmp_path / "bed")
    write = tmp_path / "meshes"
    write_meshes(write)
    sofa = read(write, background=0, points=2000).points[-1]
    np.testing.assert_allclose(
        np.ptp(sofa.numpy(), axis=0) / np.ptp(sofa[:, 1].numpy()), [3, 1, 1], atol=0.02
    )


def test_hdf5_points_are_those_of_the_file_upright(tmp_path):
    write_hdf5(tmp_path)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "ply_data_train0.h5") as file:
        clouds = file["data"][...].astype(float)
    data = read(tmp_path, background=0, points=40)
    for cloud, found in zip(clouds, data.points, strict=True):
        original = unit(cloud @ UPRIGHT.T)
        np.testing.assert_allclose(sorted(found.tolist()), sorted(original.tolist()), atol=1e-6)


@pytest.mark.parametrize("layout", WRITERS)
def test_background_stands_beside_the_object_at_its_height(tmp_path, layout):
    """Clouds so small that they are points lie in the plane through the object across the third
    axis.
    """
    WRITERS[layout](tmp_path)
    data = read(tmp_path, scale=1e-3, distance=9)
    ground = data.points[~data.masks]
    assert ground[:, 2].abs().max() < 2e-4
    assert (ground[:, :2].abs().amax(0) > 0.5).all()


def test_content_addresses_tell_that_resampled_objects_are_turned(tmp_path):
    """As meshes are not: they stay at their address."""
    for layout, writer in WRITERS.items():
        (tmp_path / layout).mkdir()
        writer(tmp_path / layout)
    recipes = {layout: read(tmp_path / layout).config.get("recipe") for layout in WRITERS}
    assert recipes == {"meshes": None, "text": 2, "hdf5": 2}


HEADS = ["OFF\n", "OFF", "# made by hand\nOFF # a cube\n", "\n\n# one\n# two 8 12\nOFF\n\n#3\n"]


@pytest.mark.parametrize("encoding", ["utf8", "utf-8-sig", "latin1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("head", HEADS)
def test_comments_and_empty_lines_of_off_files(tmp_path, head, end, encoding):
    """Anywhere; and colours behind a face."""
    write_meshes(tmp_path)
    plain = read(tmp_path)
    counts, *lines = box(1).splitlines()
    lines = [f"{line} # größe" for line in lines]
    lines[10] = "# a remark\n\n   \n" + lines[10].replace(" #", "  255 0 0 # OFF")
    text = head + "\n".join([counts + " # of corners, faces and edges", *lines, "# the end"])
    (tmp_path / MESH).write_bytes(text.replace("\n", end).encode(encoding))
    assert same(read(tmp_path), plain)
    (tmp_path / MESH).write_bytes("\n".join(text.splitlines()[:-4]).encode(encoding))
    with pytest.raises(ValueError, match=r"bed/bed_0001 .*cut off"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("head", "behind"),
    [
        ("COFF", " 255 0 0 255"),
        ("COFF", " 0.5 0.5 0.5 1.0"),
        ("NOFF", " 0 0 1"),
        ("STCNOFF", " 0 0 1 9 9 9 1 0.5 0.5"),
        ("off", ""),
        ("coff ", " 1 0 0 1"),
    ],
)
def test_what_else_off_files_say_of_corners_is_left_out(tmp_path, head, behind):
    write_meshes(tmp_path)
    plain = read(tmp_path)
    counts, *lines = box(1).splitlines()
    lines[:8] = [line + behind for line in lines[:8]]
    (tmp_path / MESH).write_text("\n".join([head, counts, *lines]))
    assert same(read(tmp_path), plain)


@pytest.mark.parametrize("head", ["4OFF", "nOFF", "OFF BINARY"])
def test_off_files_of_another_form_are_not_downloaded_again(tmp_path, head):
    write_meshes(tmp_path)
    (tmp_path / MESH).write_text(f"{head}\n{box(1)}")
    with pytest.raises(ValueError, match=rf"bed_0001 .*starts with {head}; convert it .* text$"):
        read(tmp_path)


def test_the_same_meshes_elsewhere_are_the_same_data(tmp_path):
    write_meshes(tmp_path / "here")
    before = read(tmp_path / "here").config
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    assert read(tmp_path / "there").config == before
    (tmp_path / "there" / MESH).write_text("OFF\n" + box(1.5))
    assert read(tmp_path / "there").config != before


MESH = "bed/train/bed_0001.off"
TEXT = "bed/bed_0002.txt"


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        ("meshes", MESH, "", "bed/bed_0001 .*does not start with OFF"),
        ("meshes", MESH, "OFF\n0 0 0\n", "bed/bed_0001 .*mesh is empty"),
        ("meshes", MESH, "OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "bed/bed_0001 .*no surface"),
        ("meshes", MESH, "OFF\n" + box(1)[:-30], "bed/bed_0001 .*cut off"),
        (
            "meshes",
            MESH,
            "OFF\n" + box(1).replace("3 0 1 3", "3 0 1 9"),
            "bed/bed_0001 .*face index outside",
        ),
        ("meshes", MESH, "OFF\n" + box(1).replace("1 1 1", "1 nan 1"), "bed/bed_0001 .*NaN"),
        (
            "meshes",
            MESH,
            "OFF\n" + box(1).replace("1 1 1", "1 x 1"),
            "bed/bed_0001 .*could not convert",
        ),
        ("text", TEXT, "1,2,3,0,0,1\n" * 10, "bed/bed_0002 .*24 points wanted"),
        ("text", TEXT, "1,2,3,0,0,1\n" * 30 + "1,2,", "bed/bed_0002 .*(columns|convert)"),
        ("text", TEXT, "nan,2,3,0,0,1\n" * 30, "bed/bed_0002 .*NaN"),
        (
            "hdf5",
            "ply_data_train0.h5",
            "not HDF5",
            "ply_data_train0.h5.*download the archive again",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, layout, name, content, message):
    WRITERS[layout](tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_missing_files_are_named(tmp_path):
    write_text(tmp_path)
    (tmp_path / "sofa" / "sofa_0004.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"sofa_0004.txt is missing; .*download the archive again"
    ):
        read(tmp_path, "test")
    read(tmp_path)  # the other split is whole


@pytest.mark.parametrize("left", ["sofa/test", "sofa", "armchair"])
def test_class_folders_without_files_are_named(tmp_path, left):
    write_meshes(tmp_path)
    shutil.rmtree(tmp_path / left, ignore_errors=True)
    (tmp_path / left).mkdir()
    name = left.partition("/")[0]
    with pytest.raises(
        FileNotFoundError, match=f"class '{name}' has no file for the split 'test' .*archive again"
    ):
        read(tmp_path, "test")


def test_objects_of_one_repeated_point_stay_finite(tmp_path):
    write_text(tmp_path)
    (tmp_path / TEXT).write_text("1,2,3,0,0,1\n" * 30)
    data = read(tmp_path)
    points = data.points[data.names.index("bed/bed_0002")]
    assert data.points.isfinite().all()
    assert not points[:24].any()
    assert points[24:].norm(dim=-1).max() == pytest.approx(1)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no point clouds in .*expected one of\n  meshes"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="needs root="):
        read(None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")


def test_hdf5_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "train_files.txt").write_text("some.h5\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match="pip install h5py"):
        read(tmp_path)


def test_bad_settings_are_named(tmp_path):
    for options, message in (
        ({"dataset": "shape"}, "unknown data set 'shape'; did you mean 'shapes'"),
        ({"split": "val"}, "unknown split 'val'"),
        ({"points": 0}, "points=0"),
        ({"scale": 0}, "scale=0"),
        ({"seed": -1}, "seed=-1"),
        (
            {"points": 10, "background": 51},
            "background=51 points cannot be drawn from 5 clouds of 10",
        ),
        ({"root": tmp_path}, "made, not read"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**options)
    write_meshes(tmp_path)
    with pytest.raises(
        ValueError, match=r"7 clouds of other classes wanted for bed/bed_0000; there are 6"
    ):
        read(tmp_path, clouds=7)
