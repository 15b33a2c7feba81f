"""Point clouds with a foreground mask: one class, :class:`CloudSet`, and the two data sets that give it.

``shapes``      made on the fly: parametric objects of twelve everyday classes, built with ``trimesh``.
``modelnet40``  in any of its three usual layouts, see :data:`LAYOUTS`; the files are only read.

Both are composed as the paper says (section 4.1): five clouds of other classes are drawn for every object, and 500 of
their points are attached to it as background. The paper does not say where. Here each of the five is shrunk to a
quarter of the object's size and put beside it, like things that stand around it: in a random horizontal direction, at
the distance at which the spheres around both touch. So no background point lies within the object's sphere, and the
background fills few of the directions by whose extremes a max-pooled network knows an object. ``scale`` and
``distance`` change that (1 and 0: all clouds on top of each other).

Order of the steps: every cloud is moved to its centroid and scaled to the unit sphere; the five are placed and their
points drawn; the whole is scaled to the unit sphere, the object's centroid staying at the origin. The object's points
come first.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from trimesh import creation, transformations

from kpnb._messages import unknown
from kpnb._progress import Progress
from kpnb.data.samples import SampleSet, stratified


@dataclass(frozen=True, eq=False, kw_only=True)
class CloudSet(SampleSet):
    """N clouds of P points with labels and foreground masks.

    Raises ``ValueError`` that names the field when the parts do not fit together, and for NaN coordinates.
    """

    KIND: ClassVar[str] = "clouds"
    INPUT: ClassVar[str] = "points"

    points: Tensor  # float32 [N, P, 3]; masks are [N, P]

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"points must be float32 [N, P, 3] with N, P > 0, not {self.points.dtype} {list(shape)}")
        self._check(torch.float32, shape[1])
        if bad := (~self.points.isfinite().flatten(1).all(1)).nonzero().flatten().tolist():
            raise ValueError(f"cloud {bad[0]} ({self.names[bad[0]]}) has NaN or infinite coordinates")

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Clouds ``index`` [B] as float32 [B, P, 3] in the unit sphere, and labels [B]."""
        index = index.to(self.points.device)
        return self.points[index].to(device), self.labels[index].to(device)


class Objects(NamedTuple):
    """Single objects that clouds are composed of."""

    config: dict[str, Any]  # determines them
    classes: list[str]
    labels: np.ndarray  # [M]
    names: list[str]
    cloud: Callable[[int, int], np.ndarray]  # (object, how many points) to points [P, 3], the same at every call
    donors: int  # background comes from the first so many objects
    up: int = 2  # the upright axis


def surface(triangles: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """``count`` points [P, 3] spread evenly over the area of ``triangles`` [F, 3, 3]; ``ValueError`` without any."""
    a, b, c = triangles.swapaxes(0, 1)
    reach = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    if not 0 < reach[-1] < np.inf:
        raise ValueError("the mesh is empty: it has no surface" if reach[-1] == 0 else "NaN or infinite coordinates")
    face = np.searchsorted(reach, rng.random(count) * reach[-1])
    u, v = rng.random((2, count, 1))
    root = np.sqrt(u)
    return (1 - root) * a[face] + root * (1 - v) * b[face] + root * v * c[face]


def unit(points: np.ndarray) -> np.ndarray:
    """``points`` [P, 3] moved to their centroid and scaled to the unit sphere (all zero if they are one point)."""
    points = points - points.mean(0)
    return points / (np.linalg.norm(points, axis=1).max() or 1)


# ----------------------------------------------------------------------------------------- "shapes": everyday things

X, Y, Z = np.eye(3)  # along, across, up
Part = tuple[Any, ...]  # the arguments of _triangles
Draw = Callable[..., float]  # Generator.uniform
SOLIDS = {  # triangles [F, 3, 3] that fill the cube of side 1 around the origin
    "box": creation.box().triangles,
    "ball": creation.icosphere(2, 0.5).triangles,
    "rod": creation.cylinder(0.5, 1, sections=20).triangles,
    "ring": creation.torus(0.42, 0.08, major_sections=20, minor_sections=8).triangles,
}


def _triangles(
    solid: Any, size: Any = 1, at: Any = 0, turn: float = 0, axis: Any = Z, mirror: Any = (), taper: float = 1
) -> np.ndarray:
    """Triangles [F, 3, 3] of a part: sized, narrowed by ``taper`` towards its top, turned (degrees), moved, mirrored.

    ``solid`` names one, or is the line of (radius, height) that a lathe turns around the upright axis.
    """
    made = np.array(SOLIDS[solid] if isinstance(solid, str) else creation.revolve(solid, sections=20).triangles)
    made = made * np.where((1, 1, 0), 1 + (taper - 1) * (made[..., 2:] + 0.5), 1) * size
    made = made @ transformations.rotation_matrix(np.radians(turn), axis)[:3, :3].T + at
    for normal in mirror:
        made = np.concatenate([made, made * (1 - 2 * normal)])
    return made


def _legs(u: Draw, wide: float, deep: float, high: float) -> list[Part]:
    """Four legs below a plate at height 0, or a foot in the middle."""
    thick, solid = u(0.06, 0.14), ("box", "rod")[u() < 0.5]
    if u() < 0.3:
        foot = u(0.5, 0.9) * min(wide, deep)
        return [("rod", (thick, thick, high), -high / 2 * Z), ("rod", (foot, foot, 0.06), -high * Z)]
    place = ((wide - thick) / 2, (deep - thick) / 2, -high / 2)
    return [(solid, (thick, thick, high), place, 0, Z, (X, Y), u(1, 1.8))]


def _plant(u: Draw) -> list[Part]:
    pot, high, length, stem = u(0.25, 0.45), u(0.4, 0.8), u(0.5, 1), u(0, 0.6)
    rim = [(0, 0), (pot * u(0.6, 0.9), 0), (pot, high), (0, high - 0.05)]
    parts: list[Part] = [(rim,), ("rod", (0.06, 0.06, stem), (high + stem / 2) * Z)]
    for angle in np.linspace(0, 2 * np.pi, int(u(6, 16)), endpoint=False):
        x, y, rise = np.cos(angle), np.sin(angle), np.radians(u(5, 80))
        tip = length * np.array([x * np.cos(rise), y * np.cos(rise), np.sin(rise)])
        size = length * np.abs([x, y, 0]) + (0.1, 0.1, 0.03)
        parts.append(("ball", size, tip / 2 + (high + stem) * Z, -np.degrees(rise), (-y, x, 0)))
    return parts


# Class to its parts, from random numbers u(low, high), or u() in [0, 1]. No point hits a part of size 0.
# fmt: off
SHAPES: dict[str, Callable[[Draw], list[Part]]] = {
    "airplane": lambda u: [
        ("ball", (2, body := u(0.2, 0.4), body)), ("box", (0.25, 0.04, tail := u(0.3, 0.5)), (-1, 0, tail / 2), -20, Y),
        ("box", (u(0.25, 0.5), span := u(0.7, 1.2), 0.04), (0, span / 2, u(-0.1, 0.1)), sweep := u(5, 35), Z, [Y]),
        ("box", (0.22, tail, 0.03), (-0.9, tail / 2, tail * (u() < 0.4)), sweep, Z, [Y]),
        *[("rod", (0.14, 0.14, 0.4), (0.1, span * e, -0.12), 90, Y, [Y]) for e in (0.35, 0.7)[: int(u(0, 3))]]],
    "bed": lambda u: [
        ("box", (2, wide := u(0.8, 1.8), high := u(0.15, 0.4))), ("box", (0.08, wide, h := u(0.4, 1)), (-1, 0, h / 2)),
        ("box", (0.08, wide, f := u(0.1, 0.7)), (1, 0, f / 2)),
        ("box", (0.1, 0.1, 0.7), (0.9, 0.45 * wide, -u(0, 0.5)), 0, Z, (X, Y)),
        ("ball", (0.4, 0.4 * wide, 0.2), (-0.7, (wide > 1.2) * wide / 4, high / 2 + 0.05), 0, Z, [Y])],
    "bookshelf": lambda u: [
        ("box", (0.05, deep := u(0.2, 0.5), high := u(1.2, 2)), (wide := u(0.6, 1.4)) / 2 * X, 0, Z, [X]),
        ("box", (wide * (u() < 0.7), 0.03, high), deep / 2 * Y),
        *[part for z in np.linspace(-high / 2, high / 2, int(u(4, 8))) for books in [u(0.1, 0.9)] for part in (
            ("box", (wide, deep, 0.04), z * Z),
            ("box", (wide * books * (u() < 0.6), 0.7 * deep, 0.2), (wide * (1 - books) / 2, 0, z + 0.1)))]],
    "bottle": lambda u: [([(0, 0), (body := u(0.2, 0.45), 0), (body * u(0.75, 1), 0.5), (body, shoulder := u(0.9, 1.3)),
          (neck := u(0.06, 0.14), shoulder + 0.25), (neck, top := u(1.6, 1.9))],),
        ("rod", (cap := u(1, 3) * neck, cap, 0.15), top * Z)],
    "car": lambda u: [("box", (2, wide := u(0.75, 1), low := u(0.25, 0.4))),
        ("box", (u(0.8, 1.5), 0.9 * wide, high := u(0.25, 0.5)), (u(-0.35, 0.1), 0, (low + high) / 2), 0, Z, (), 0.75),
        ("rod", (wheel := u(0.35, 0.5), wheel, 0.18), (u(0.5, 0.7), wide / 2, -low / 2), 90, X, (X, Y))],
    "chair": lambda u: [
        ("box", (wide := u(0.8, 1.2), deep := u(0.8, 1.1), u(0.06, 0.25))), *_legs(u, wide, deep, u(0.6, 1.1)),
        *[("box", (0.08 + wide * (n == 1), 0.08, high), (x * wide, deep / 2 + high * lean / 120, high / 2), -lean, X)
          for high, lean, n in [(u(0.7, 1.5), u(0, 15), int(u(1, 6)))] for x in np.arange(0.5 - n / 2, n / 2) / 5],
        ("box", (0.08, deep, 0.06 * (u() < 0.4)), (wide / 2, 0, 0.4), 0, Z, [X])],
    "guitar": lambda u: [  # it stands
        ("rod", (low := u(0.7, 0.95), low, thick := u(0.08, 0.25)), 0, 90, X),
        ("rod", (high := u(0.5, 0.7), high, thick), (waist := u(0.4, 0.55)) * Z, 90, X),
        ("box", (0.1, 0.06, neck := u(0.8, 1.2)), (0, -thick / 2, waist + (high + neck) / 2 - 0.1)),
        ("box", (0.18, 0.06, 0.25), (0, -thick / 2, waist + high / 2 + neck))],
    "lamp": lambda u: [
        ("rod", (foot := u(0.3, 0.6), foot, 0.08)), ("rod", (0.06, 0.06, pole := u(0.8, 1.7)), pole / 2 * Z),
        ([(u(0.3, 0.6), pole - (high := u(0.15, 0.3))), (u(0.12, 0.3), pole + high)],)],
    "mug": lambda u: [
        ([(0, 0), (low := u(0.35, 0.55), 0), (top := low * u(0.9, 1.3), high := u(0.8, 1.2)), (top - 0.05, high),
          (low - 0.05, 0.05), (0, 0.05)],), ("ring", (size := u(0.5, 0.75), size, 0.6), (top, 0, high / 2), 90, X)],
    "plant": _plant,
    "stool": lambda u: [(("box", "rod")[u() < 0.5], (wide := u(0.5, 0.9), wide, u(0.06, 0.2))),
        *_legs(u, 0.8 * wide, 0.8 * wide, high := u(0.7, 1.5)),
        ("ring", (wide, wide, 0.3 * (u() < 0.5)), -0.6 * high * Z)],
    "table": lambda u: [(("box", "rod")[u() < 0.5], (wide := u(1.2, 2.2), deep := u(0.8, 1.3), u(0.05, 0.12))),
        *_legs(u, 0.8 * wide, 0.8 * deep, high := u(0.5, 1)),
        ("box", (0.8 * wide, 0.8 * deep, 0.04 * (u() < 0.3)), -0.7 * high * Z)],
}
# fmt: on
DONORS = 100 * len(SHAPES)  # background comes from the first so many objects of a split


def _shapes(split: str, count: int | None, seed: int, root: Path | None) -> Objects:
    """Object i is a function of (seed, split, i), of class i mod 12; other shapes need another ``recipe``."""
    if root is not None:
        raise ValueError("the data set 'shapes' is made, not read; for root= use dataset='modelnet40'")
    classes = list(SHAPES)
    labels = np.arange(max(count or (4000 if split == "train" else DONORS), DONORS)) % len(classes)

    @cache
    def cloud(i: int, points: int) -> np.ndarray:
        rng = np.random.default_rng([seed, split == "test", i, 0])
        triangles = np.concatenate([_triangles(*part) for part in SHAPES[classes[labels[i]]](rng.uniform)])
        return surface(triangles, points, rng) @ transformations.rotation_matrix(rng.uniform(-0.5, 0.5), Z)[:3, :3].T

    config = {"recipe": 1, "trimesh": metadata.version("trimesh")}
    return Objects(config, classes, labels, [f"{classes[y]}/{i}" for i, y in enumerate(labels)], cloud, DONORS)


# ------------------------------------------------------------------------------------------------------- "modelnet40"

LAYOUTS = """expected one of
  meshes   <class>/train/*.off and <class>/test/*.off (ModelNet40.zip)
  text     modelnet40_train.txt, modelnet40_test.txt, <class>/<name>.txt (modelnet40_normal_resampled.zip)
  HDF5     train_files.txt, test_files.txt, shape_names.txt, *.h5 (modelnet40_ply_hdf5_2048.zip)"""
AGAIN = "unpack or download the archive again"
Entry = tuple[str, Path, int]  # class, file, position in the file


def _off(path: Path) -> np.ndarray:
    """Triangles [F, 3, 3] of a mesh. Some of ModelNet40's files have no space between "OFF" and the first number."""
    text = path.read_text()
    if not text.startswith("OFF"):
        raise ValueError("it does not start with OFF")
    numbers = np.array(text[3:].split(), np.float64)
    corners, faces = numbers[:2].astype(int) if len(numbers) > 2 else (0, 0)
    if not corners or not faces:
        raise ValueError("the mesh is empty")
    end = 3 + 3 * corners
    if len(numbers) < end + 4 * faces:
        raise ValueError("the file is cut off")
    index = numbers[end : end + 4 * faces].reshape(-1, 4).astype(int)
    if (index[:, 0] != 3).any() or index[:, 1:].min() < 0 or index[:, 1:].max() >= corners:
        raise ValueError("there are faces other than triangles of the mesh's corners; triangulate it")
    return numbers[3:end].reshape(-1, 3)[index[:, 1:]]


def _hdf5(path: Path, key: str, row: Any = ...) -> np.ndarray:
    try:
        import h5py

        with h5py.File(path) as file:
            return file[key][row]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path} is an HDF5 file, which needs the package h5py: pip install h5py") from None
    except (OSError, KeyError) as error:
        raise ValueError(f"cannot read {path}: {error}; {AGAIN}") from error


def _entries(root: Path, split: str) -> tuple[list[str], list[Entry]]:
    """The classes, also those without an object in this ``split``, and where each object is."""
    if (lists := root / "train_files.txt").is_file():
        files = [root / Path(line).name for line in lists.with_stem(f"{split}_files").read_text().split()]
        rows = [(int(y), path, i) for path in files for i, y in enumerate(_hdf5(path, "label").flatten())]
        classes = (root / "shape_names.txt").read_text().split()
        return classes, [(classes[y], path, i) for y, path, i in rows]
    if (root / "modelnet40_train.txt").is_file():
        names = {part: (root / f"modelnet40_{part}.txt").read_text().split() for part in ("train", "test")}
        parts = {part: [(name.rpartition("_")[0], name) for name in names[part]] for part in names}
        classes = sorted({kind for part in parts.values() for kind, _ in part})
        return classes, [(kind, root / kind / f"{name}.txt", 0) for kind, name in parts[split]]
    classes = sorted(path.name for path in root.glob("[!._]*/"))  # without .git, __MACOSX and the like
    return classes, [(kind, path, 0) for kind in classes for path in sorted((root / kind / split).glob("[!.]*.off"))]


def _drawn(path: Path, row: int, count: int, rng: Generator) -> np.ndarray:
    """``count`` random points [P, 3] of the object at ``row`` of a file."""
    if path.suffix == ".off":
        return surface(_off(path), count, rng)
    cloud = np.loadtxt(path, delimiter=",") if path.suffix == ".txt" else _hdf5(path, "data", row).astype(np.float64)
    if cloud.ndim != 2 or cloud.shape[1] < 3 or len(cloud) < count:
        raise ValueError(f"{count} points wanted, found {cloud.shape}")
    return cloud[rng.choice(len(cloud), count, replace=False), :3]


def _modelnet40(split: str, count: int | None, seed: int, root: Path | None) -> Objects:
    """ModelNet40's own split, upright along z in its meshes and along y in the two resampled layouts."""
    if root is None or not root.is_dir():
        raise FileNotFoundError(f"the data set 'modelnet40' needs root=, its folder, not {root}; {LAYOUTS}")
    classes, entries = _entries(root, split)
    if not entries:
        raise FileNotFoundError(f"no point clouds in {root}; {LAYOUTS}")
    if missing := [name for name in classes if name not in {kind for kind, *_ in entries}]:
        raise FileNotFoundError(f"class {missing[0]!r} has no file for the split {split!r} in {root}; {AGAIN}")
    files = list(dict.fromkeys(path for _, path, _ in entries))
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing; {AGAIN}")
    names = [f"{kind}/{path.stem}" + f"/{row}" * (path.suffix == ".h5") for kind, path, row in entries]

    @cache
    def cloud(i: int, points: int) -> np.ndarray:
        try:
            found = _drawn(*entries[i][1:], points, np.random.default_rng([seed, split == "test", i, 0]))
            if not np.isfinite(found).all():
                raise ValueError("NaN or infinite coordinates")
        except ValueError as error:
            raise ValueError(f"cannot use {names[i]} in {root}: {error}; {AGAIN}") from error
        return found

    stamps = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    config = {"files": hashlib.sha256(repr(stamps).encode()).hexdigest()}
    labels, up = np.array([classes.index(kind) for kind, *_ in entries]), 2 if files[0].suffix == ".off" else 1
    return Objects(config, classes, labels, names, cloud, len(labels), up)


# ------------------------------------------------------------------------------------------------------- all data sets

# Name to a function of (split, count or None, seed, root or None). Nothing is made or decoded that the store has.
SOURCES: dict[str, Callable[..., Objects]] = {"shapes": _shapes, "modelnet40": _modelnet40}


def _composed(
    objects: Objects, i: int, rng: Generator, points: int, background: int, clouds: int, scale: float, distance: float
) -> np.ndarray:
    """Object i and its background [points + background, 3]: see the head of this module and :func:`load`."""
    others = np.flatnonzero(objects.labels[: objects.donors] != objects.labels[i])
    if len(others) < clouds:
        raise ValueError(f"{clouds} clouds of other classes wanted for {objects.names[i]}; there are {len(others)}")
    centres = rng.normal(size=(clouds, 1, 3))
    centres[..., objects.up] = 0
    centres *= distance / np.linalg.norm(centres, axis=-1, keepdims=True)
    mine = unit(objects.cloud(i, points))
    found = [unit(objects.cloud(j, points)) for j in rng.choice(others, clouds, replace=False)]
    ground = (scale * np.stack(found) + centres).reshape(-1, 3)
    whole = np.concatenate([mine, rng.choice(ground, background, replace=False)])
    return whole / (np.linalg.norm(whole, axis=1).max() or 1)


def load(
    dataset: str = "shapes",
    split: str = "train",
    *,
    points: int = 512,
    background: int = 500,
    clouds: int = 5,
    scale: float = 0.25,
    distance: float = 1.25,
    count: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    store: Any = None,
) -> CloudSet:
    """The ``split`` ("train" or "test") of a data set, as clouds of ``points`` object and ``background`` points.

    ``background`` points are drawn from ``clouds`` clouds of other classes. ``scale`` is their radius and ``distance``
    how far their centres are from the object's, both in radii of the object; spheres touch at ``distance = 1 + scale``.
    ``count`` clouds: 4,000 for training and 1,200 for testing ("shapes") or all ("modelnet40") by default; fewer of
    ModelNet40 are drawn with ``seed``, classes in proportion. Cloud i depends on (seed, split, i) alone.
    ``root`` is ModelNet40's folder. ``store``, a :class:`kpnb.store.Store`, keeps the set; without one it is made anew.
    Raises ``ValueError`` (``FileNotFoundError`` for a missing folder or file) that names the culprit.
    """
    if dataset not in SOURCES:
        raise ValueError(unknown("data set", dataset, SOURCES))
    if split not in ("train", "test"):
        raise ValueError(unknown("split", split, ("train", "test")))
    if min(points, clouds, 1 if count is None else count) < 1 or min(seed, background, distance) < 0 or scale <= 0:
        given = f"points={points}, clouds={clouds}, scale={scale} and count={count} must be positive"
        raise ValueError(f"{given}; background={background}, distance={distance} and seed={seed} not negative")
    if background > clouds * points:
        raise ValueError(f"background={background} points cannot be drawn from {clouds} clouds of {points}")
    objects = SOURCES[dataset](split, count, seed, None if root is None else Path(root).expanduser())
    chosen = stratified(objects.labels, count, seed, "clouds") if count and dataset != "shapes" else None
    index = np.arange(count or len(objects.labels)) if chosen is None else chosen
    how = {"points": points, "background": background, "clouds": clouds, "scale": scale, "distance": distance}
    config = {"dataset": dataset, "split": split, "count": len(index), "seed": seed, **how, **objects.config}

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        made = np.empty((len(index), points + background, 3), np.float32)
        with Progress(len(index), "clouds", unit="cloud") as progress:
            for n, i in enumerate(index.tolist()):
                made[n] = _composed(objects, i, np.random.default_rng([seed, split == "test", i, 1]), **how)
                if n % 100 == 99:
                    progress.step(100)
        return {"points": torch.from_numpy(made)}, {}

    tensors = make()[0] if store is None else store.run("clouds", config).get("set", make).tensors
    masks = (torch.arange(points + background) < points).repeat(len(index), 1)
    labels, names = torch.from_numpy(objects.labels[index]).long(), tuple(objects.names[i] for i in index)
    parts = {"labels": labels, "masks": masks, "classes": tuple(objects.classes), "names": names, "config": config}
    return CloudSet(points=tensors["points"], **parts)
