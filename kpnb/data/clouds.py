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
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from trimesh import creation, transformations

from kpnb._messages import unknown
from kpnb._progress import Progress
from kpnb.data.images import _stratified


@dataclass(frozen=True, eq=False)
class CloudSet:
    """N clouds of P points with labels and foreground masks; the fields are like those of ``ImageSet``.

    Raises ``ValueError`` that names the field when the parts do not fit together.
    """

    points: Tensor  # float32 [N, P, 3]
    labels: Tensor  # int64 [N], each an index into classes
    masks: Tensor  # bool [N, P], True on the foreground object
    classes: tuple[str, ...]
    names: tuple[str, ...]  # for each cloud, where its object comes from
    config: dict[str, Any]

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or self.points.dtype != torch.float32:
            raise ValueError(f"points must be float32 [N, P, 3] with N, P > 0, not {self.points.dtype} {list(shape)}")
        for field, dtype, size in (("labels", torch.int64, shape[:1]), ("masks", torch.bool, shape[:2])):
            tensor = getattr(self, field)
            if tensor.dtype != dtype or tensor.shape != size:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{field} must be {dtype} {list(size)} for these points, not {found}")
        if len(self.names) != len(self):
            raise ValueError(f"{len(self.names)} names for {len(self)} clouds")
        if bad := (~self.points.isfinite().flatten(1).all(1)).nonzero().flatten().tolist():
            raise ValueError(f"cloud {bad[0]} ({self.names[bad[0]]}) has NaN or infinite coordinates")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(f"labels run from {low} to {high}, but there are {len(self.classes)} classes")
        try:
            json.dumps(self.config)
        except TypeError as error:
            raise ValueError(f"config must be JSON-able: {error}") from error

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Clouds ``index`` [B] as float32 [B, P, 3] in the unit sphere, and labels [B]."""
        index = index.to(self.points.device)
        return self.points[index].to(device), self.labels[index].to(device)

    def subset(self, index: Tensor | Sequence[int]) -> "CloudSet":
        """The clouds at ``index`` (positions, or a bool for each cloud), in that order."""
        index = torch.as_tensor(index)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        digest = hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16]
        steps = [*self.config.get("subsets", []), {"clouds": len(index), "index": digest}]
        parts = {field: getattr(self, field)[index] for field in ("points", "labels", "masks")}
        names = tuple(self.names[i] for i in index.tolist())
        return replace(self, **parts, names=names, config={**self.config, "subsets": steps})

    def share(self, n: int, seed: int) -> "CloudSet":
        """``n`` clouds drawn without replacement, each class in proportion; a larger share holds the smaller one."""
        return self.subset(torch.from_numpy(_stratified(self.labels.numpy(), n, seed)))


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

Parts = list[np.ndarray]  # each part's triangles [F, 3, 3]
UP, ALONG, ACROSS = (0, 0, 1), (1, 0, 0), (0, 1, 0)


@cache
def _primitive(kind: str) -> np.ndarray:
    """Triangles [F, 3, 3] of a solid that fills the cube of side 1 around the origin."""
    if kind == "ring":
        mesh = creation.torus(0.42, 0.08, major_sections=20, minor_sections=8)
    else:
        of = {"box": creation.box, "ball": lambda: creation.icosphere(2, 0.5)}
        mesh = of.get(kind, lambda: creation.cylinder(0.5, 1, sections=20))()
    return np.array(mesh.triangles)


def _part(kind: str, size: Any, at: Any = (0, 0, 0), turn: float = 0, axis: Any = UP, taper: float = 1) -> np.ndarray:
    """A "box", "ball", "rod" or "ring" of a size, narrowed by ``taper`` towards its top, turned (degrees) and moved."""
    triangles = _primitive(kind)
    if taper != 1:
        triangles = triangles * np.where((1, 1, 0), 1 + (taper - 1) * (triangles[..., 2:] + 0.5), 1)
    triangles = triangles * size
    if turn:
        triangles = triangles @ transformations.rotation_matrix(np.radians(turn), axis)[:3, :3].T
    return triangles + at


def _lathe(*profile: tuple[float, float]) -> np.ndarray:
    """The surface that a line of (radius, height) makes when it turns around the upright axis."""
    return np.array(creation.revolve(profile, sections=20).triangles)


def _legs(r: Generator, width: float, depth: float, height: float) -> Parts:
    """Four legs below a plate at height 0, or a foot in the middle."""
    if r.random() < 0.3:
        foot, pole = r.uniform(0.5, 0.9) * min(width, depth), r.uniform(0.06, 0.14)
        parts = [_part("rod", (pole, pole, height), (0, 0, -height / 2))]
        return [*parts, _part("rod", (foot, foot, 0.06), (0, 0, -height))]
    kind, thick, taper = r.choice(("box", "rod")), r.uniform(0.06, 0.14), r.uniform(1, 1.8)
    at = [(x * (width - thick) / 2, y * (depth - thick) / 2, -height / 2) for x in (-1, 1) for y in (-1, 1)]
    return [_part(kind, (thick, thick, height), place, taper=taper) for place in at]


def _airplane(r: Generator) -> Parts:
    body, span, chord, sweep, tail = r.uniform((0.22, 0.7, 0.25, 5, 0.3), (0.4, 1.2, 0.5, 35, 0.5))
    parts = [_part("ball", (2, body, body)), _part("box", (0.25, 0.04, tail), (-0.85, 0, tail / 2), -20, ACROSS)]
    engines, high = r.integers(3), r.uniform(-0.1, 0.1)
    for side in (-1, 1):
        parts.append(_part("box", (chord, span, 0.04), (0.1 - span * sweep / 120, side * span / 2, high), side * sweep))
        parts.append(_part("box", (0.22, tail, 0.03), (-0.9, side * tail / 2, tail * (engines == 0)), side * sweep))
        for e in range(engines):
            at = (0.2 - span * sweep / 120, side * span * (0.35 + 0.35 * e), high - 0.12)
            parts.append(_part("rod", (0.14, 0.14, 0.4), at, 90, ACROSS))
    return parts


def _bed(r: Generator) -> Parts:
    wide, high, head, foot = r.uniform((0.8, 0.15, 0.2, 0), (1.8, 0.4, 0.9, 0.4))
    parts = [_part("box", (2, wide, high)), _part("box", (0.08, wide, head + high), (-1, 0, head / 2))]
    parts += [_part("box", (0.08, wide, foot + high), (1, 0, foot / 2))] * int(foot > 0.15)
    for y in (-0.25, 0.25) if wide > 1.2 else (0,):
        parts.append(_part("ball", (0.4, 0.4 * wide, 0.15), (-0.7, y * wide, high / 2 + 0.05)))
    legs = [(x, y * wide / 2, -0.1 - high / 2) for x in (-0.9, 0.9) for y in (-0.9, 0.9)]
    return parts + [_part("box", (0.1, 0.1, 0.2), at) for at in legs] * (r.random() < 0.6)


def _bookshelf(r: Generator) -> Parts:
    wide, deep, high = r.uniform((0.6, 0.2, 1.2), (1.4, 0.5, 2))
    parts = [_part("box", (0.05, deep, high), (x * wide / 2, 0, 0)) for x in (-1, 1)]
    parts += [_part("box", (wide, 0.03, high), (0, deep / 2, 0))] * (r.random() < 0.7)
    levels = np.linspace(-high / 2, high / 2, r.integers(4, 8))
    parts += [_part("box", (wide, deep, 0.04), (0, 0, z)) for z in levels]
    for z in levels[:-1]:  # books on about every other shelf
        books = r.uniform(0.2, 0.9) * wide
        block = _part("box", (books, 0.7 * deep, 0.2), (r.uniform(-0.5, 0.5) * (wide - books), 0, z + 0.1))
        parts += [block] * (r.random() < 0.5)
    return parts


def _bottle(r: Generator) -> Parts:
    body, shoulder, neck, top = r.uniform((0.2, 0.9, 0.06, 1.4), (0.45, 1.3, 0.14, 1.9))
    waist = body * r.uniform(0.75, 1.05)
    parts = [_lathe((0, 0), (body, 0), (waist, shoulder / 2), (body, shoulder), (neck, shoulder + 0.25), (neck, top))]
    return [*parts, _part("rod", (3 * neck, 3 * neck, 0.15), (0, 0, top))] if r.random() < 0.6 else parts


def _car(r: Generator) -> Parts:
    wide, low, cabin, high, back = r.uniform((0.75, 0.25, 0.8, 0.25, -0.35), (1, 0.4, 1.5, 0.5, 0.1))
    roof = _part("box", (cabin, 0.9 * wide, high), (back, 0, (low + high) / 2), taper=0.75)
    parts = [_part("box", (2, wide, low)), roof]
    wheel, apart = r.uniform((0.35, 0.5), (0.5, 0.7))
    for x in (-apart, apart):
        for y in (-wide / 2, wide / 2):
            parts.append(_part("rod", (wheel, wheel, 0.18), (x, y, -low / 2), 90, ALONG))
    return parts


def _chair(r: Generator) -> Parts:
    wide, deep, legs, back, lean = r.uniform((0.8, 0.8, 0.6, 0.7, 0), (1.2, 1.1, 1.1, 1.5, 15))
    parts = [_part("box", (wide, deep, r.uniform(0.06, 0.25))), *_legs(r, wide, deep, legs)]
    bars = r.integers(1, 6)  # one is a whole plate
    for x in np.linspace(-0.45, 0.45, bars) if bars > 1 else (0,):
        size = (wide if bars == 1 else 0.08, 0.08, back)
        parts.append(_part("box", size, (x * wide, deep / 2 + back * lean / 120, back / 2), -lean, ALONG))
    arms = [_part("box", (0.08, deep, 0.06), (side * wide / 2, 0, 0.4)) for side in (-1, 1)]
    return parts + arms * (r.random() < 0.4)


def _guitar(r: Generator) -> Parts:
    lower, upper, waist, neck, thick = r.uniform((0.7, 0.5, 0.4, 0.8, 0.08), (0.95, 0.7, 0.55, 1.2, 0.25))
    parts = [_part("rod", (lower, lower, thick)), _part("rod", (upper, upper, thick), (waist, 0, 0))]
    parts.append(_part("box", (neck, 0.1, 0.06), (waist + upper / 2 + neck / 2 - 0.1, 0, thick / 2)))
    parts.append(_part("box", (0.25, 0.18, 0.06), (waist + upper / 2 + neck, 0, thick / 2)))
    return [part[..., [1, 2, 0]] for part in parts]  # it stands


def _lamp(r: Generator) -> Parts:
    foot, pole, shade, top, high = r.uniform((0.3, 0.8, 0.3, 0.12, 0.3), (0.6, 1.7, 0.6, 0.3, 0.6))
    parts = [_part("rod", (foot, foot, 0.08)), _part("rod", (0.06, 0.06, pole), (0, 0, pole / 2))]
    return [*parts, _lathe((shade, pole - high / 2), (top, pole + high / 2))]


def _mug(r: Generator) -> Parts:
    low, high, wall, size = r.uniform((0.35, 0.8, 0.03, 0.5), (0.55, 1.2, 0.08, 0.75))
    top = low * r.uniform(0.9, 1.3)
    cup = _lathe((0, 0), (low, 0), (top, high), (top - wall, high), (low - wall, wall), (0, wall))
    return [cup, _part("ring", (size, size, 0.6), (top, 0, high / 2), 90, ALONG)]


def _plant(r: Generator) -> Parts:
    pot, high, leaves = r.uniform(0.25, 0.45), r.uniform(0.4, 0.8), r.integers(6, 16)
    parts = [_lathe((0, 0), (pot * r.uniform(0.6, 0.9), 0), (pot, high), (0, high - 0.05))]
    length, stem = r.uniform(0.5, 1), r.uniform(0, 0.6)
    parts.append(_part("rod", (0.06, 0.06, stem), (0, 0, high + stem / 2)))
    for angle in np.linspace(0, 360, leaves, endpoint=False):
        leaf = _part("ball", (length, r.uniform(0.1, 0.25), 0.03), (length / 2, 0, 0))
        up = transformations.euler_matrix(0, -np.radians(r.uniform(5, 80)), np.radians(angle))[:3, :3]
        parts.append(leaf @ up.T + (0, 0, high + stem))
    return parts


def _stool(r: Generator) -> Parts:
    wide, legs = r.uniform((0.5, 0.7), (0.9, 1.5))
    size = (wide, wide, r.uniform(0.06, 0.2))
    parts = [_part(r.choice(("rod", "box")), size), *_legs(r, 0.8 * wide, 0.8 * wide, legs)]
    return parts + [_part("ring", (wide, wide, 0.3), (0, 0, -0.6 * legs))] * (r.random() < 0.5)


def _table(r: Generator) -> Parts:
    wide, deep, legs = r.uniform((1.2, 0.8, 0.5), (2.2, 1.3, 1))
    size = (wide, deep, r.uniform(0.05, 0.12))
    parts = [_part(r.choice(("rod", "box")), size), *_legs(r, 0.8 * wide, 0.8 * deep, legs)]
    return parts + [_part("box", (0.8 * wide, 0.8 * deep, 0.04), (0, 0, -0.7 * legs))] * (r.random() < 0.3)


SHAPES: dict[str, Callable[[Generator], Parts]] = {
    "airplane": _airplane, "bed": _bed, "bookshelf": _bookshelf, "bottle": _bottle, "car": _car, "chair": _chair,
    "guitar": _guitar, "lamp": _lamp, "mug": _mug, "plant": _plant, "stool": _stool, "table": _table,
}  # fmt: skip
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
        triangles = np.concatenate(SHAPES[classes[i % len(classes)]](rng))
        return surface(triangles, points, rng) @ transformations.rotation_matrix(rng.uniform(-0.5, 0.5), UP)[:3, :3].T

    config = {"recipe": 1, "trimesh": metadata.version("trimesh")}
    return Objects(config, classes, labels, [f"{classes[y]}/{i}" for i, y in enumerate(labels)], cloud, DONORS)


# ------------------------------------------------------------------------------------------------------- "modelnet40"

LAYOUTS = """expected one of
  meshes   <class>/train/*.off and <class>/test/*.off (ModelNet40.zip)
  text     modelnet40_train.txt, modelnet40_test.txt, <class>/<name>.txt (modelnet40_normal_resampled.zip)
  HDF5     train_files.txt, test_files.txt, shape_names.txt, *.h5 (modelnet40_ply_hdf5_2048.zip)"""


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


Read = Callable[[int, int, Generator], np.ndarray]  # (object, how many points, random numbers) to points [P, 3]
Entries = tuple[list[str], list[int], list[str], list[Path], Read]  # classes, labels, names, files, read


def _meshes(root: Path, split: str) -> Entries:
    classes = sorted(path.parent.name for path in root.glob("[!.]*/train") if path.is_dir())
    files = [path for name in classes for path in sorted((root / name / split).glob("[!.]*.off"))]
    labels = [classes.index(path.parent.parent.name) for path in files]
    names = [f"{classes[y]}/{path.stem}" for path, y in zip(files, labels, strict=True)]
    return classes, labels, names, files, lambda i, count, rng: surface(_off(files[i]), count, rng)


def _text(root: Path, split: str) -> Entries:
    lists = {part: (root / f"modelnet40_{part}.txt").read_text().split() for part in ("train", "test")}
    classes = sorted({name.rpartition("_")[0] for names in lists.values() for name in names})
    labels = [classes.index(name.rpartition("_")[0]) for name in lists[split]]
    names = [f"{classes[y]}/{name}" for name, y in zip(lists[split], labels, strict=True)]
    files = [root / f"{name}.txt" for name in names]
    return classes, labels, names, files, lambda i, count, rng: _drawn(np.loadtxt(files[i], delimiter=","), count, rng)


def _hdf5(root: Path, split: str) -> Entries:
    try:
        import h5py
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{root} holds HDF5 files, which need the package h5py: pip install h5py") from None
    classes = (root / "shape_names.txt").read_text().split()
    files = [root / Path(line).name for line in (root / f"{split}_files.txt").read_text().split()]
    points, labels, names = [], [], []
    for path in files:
        try:
            with h5py.File(path) as file:
                points.append(file["data"][:])
                labels += file["label"][:].flatten().tolist()
        except (OSError, KeyError) as error:
            raise ValueError(f"cannot read {path}: {error}; {AGAIN}") from error
        names += [f"{path.name}/{i}" for i in range(len(points[-1]))]
    clouds = np.concatenate(points)
    return classes, labels, names, files, lambda i, count, rng: _drawn(clouds[i], count, rng)


def _drawn(cloud: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    if cloud.ndim != 2 or cloud.shape[1] < 3 or len(cloud) < count:
        raise ValueError(f"{count} points wanted, found {cloud.shape}")
    return cloud[rng.choice(len(cloud), count, replace=False), :3]


AGAIN = "unpack or download the archive again"


def _modelnet40(split: str, count: int | None, seed: int, root: Path | None) -> Objects:
    """ModelNet40's own split, upright along z in its meshes and along y in the two resampled layouts."""
    if root is None or not root.is_dir():
        raise FileNotFoundError(f"the data set 'modelnet40' needs root=, its folder, not {root}; {LAYOUTS}")
    hdf5, text = (root / "train_files.txt").is_file(), (root / "modelnet40_train.txt").is_file()
    classes, labels, names, files, read = (_hdf5 if hdf5 else _text if text else _meshes)(root, split)
    if not classes:
        raise FileNotFoundError(f"no point clouds in {root}; {LAYOUTS}")
    if missing := [name for label, name in enumerate(classes) if label not in labels]:
        raise FileNotFoundError(f"class {missing[0]!r} has no file for the split {split!r} in {root}; {AGAIN}")
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing; {AGAIN}")

    @cache
    def cloud(i: int, points: int) -> np.ndarray:
        try:
            found = read(i, points, np.random.default_rng([seed, split == "test", i, 0])).astype(np.float64)
            if not np.isfinite(found).all():
                raise ValueError("NaN or infinite coordinates")
        except ValueError as error:
            raise ValueError(f"cannot use {names[i]} in {root}: {error}; {AGAIN}") from error
        return found

    stamps = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    config = {"files": hashlib.sha256(repr(stamps).encode()).hexdigest()}
    return Objects(config, classes, np.array(labels), names, cloud, len(labels), 1 if hdf5 or text else 2)


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
    if (
        min(points, clouds) < 1
        or min(seed, background, distance) < 0
        or scale <= 0
        or (count is not None and count < 1)
    ):
        given = f"points={points}, clouds={clouds}, scale={scale} and count={count} must be positive"
        raise ValueError(f"{given}; background={background}, distance={distance} and seed={seed} not negative")
    if background > clouds * points:
        raise ValueError(f"background={background} points cannot be drawn from {clouds} clouds of {points}")
    objects = SOURCES[dataset](split, count, seed, None if root is None else Path(root).expanduser())
    index = _stratified(objects.labels, count, seed) if dataset == "modelnet40" and count else None
    index = np.arange(count or len(objects.labels)) if index is None else index
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
    return CloudSet(tensors["points"], labels, masks, tuple(objects.classes), names, config)
