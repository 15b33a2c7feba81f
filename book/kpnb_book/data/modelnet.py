"""ModelNet40 in any of its three usual layouts, see :data:`LAYOUTS`; the files are only read."""

import re
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from trimesh import Trimesh, load_mesh

from kpnb_book.data.cloud_set import Objects, surface
from kpnb_book.data.contents import contents
from kpnb_book.data.samples import SPLITS, Request
from kpnb_book.store import digest

LAYOUTS = """expected one of
  meshes   <class>/train/*.off and <class>/test/*.off (ModelNet40.zip)
  text     modelnet40_train.txt, modelnet40_test.txt, <class>/<name>.txt
           (modelnet40_normal_resampled.zip)
  HDF5     train_files.txt, test_files.txt, shape_names.txt, *.h5 (modelnet40_ply_hdf5_2048.zip)"""
AGAIN = "unpack or download the archive again"
# Whatever a corner of the mesh has besides (texture ST, colour C, normal N) stands behind x y z.
HEADER = re.compile(r"((?:ST)?C?N?OFF|(?:st)?c?n?off)\s*(\d+)\s+(\d+)\b")
OTHER = re.compile(r"(?:ST)?C?N?(?:4n?|n)OFF|\S*OFF\s+BINARY")  # more coordinates, or no text
Entry = tuple[str, Path, int]  # class, file, position in the file


class _OtherForm(ValueError):
    """A file that may be whole, but is of a form that is not read here."""


def _mesh(path: Path) -> Trimesh:
    """The mesh in a file, which may have comments (from # to the end of a line) and empty lines.

    trimesh takes a file that is cut off for a smaller one, so the faces are counted.
    """
    whole = path.read_text("utf-8-sig", "replace")  # a comment may be in any encoding
    lines = [line.partition("#")[0].strip() for line in whole.splitlines()]
    text = "\n".join(line for line in lines if line)
    if other := OTHER.match(text):
        raise _OtherForm(f"it starts with {other[0]}; convert it to OFF with x, y and z as text")
    head = HEADER.match(text)
    if not head or 0 in (int(head[2]), int(head[3])):
        raise ValueError("it does not start with OFF and two numbers, or the mesh is empty")
    plain = "OFF\n" + text[head.start(2) :]
    mesh = load_mesh(BytesIO(plain.encode()), file_type="off", process=False)
    if len(mesh.faces) < int(head[3]):
        raise ValueError("the file is cut off")
    return mesh


def _hdf5(path: Path, key: str, row: Any = ...) -> np.ndarray:
    try:
        import h5py  # an extra
    except ModuleNotFoundError:
        remedy = "which needs the package h5py: pip install h5py"
        raise ModuleNotFoundError(f"{path} is an HDF5 file, {remedy}") from None
    try:
        with h5py.File(path) as file:
            return file[key][row]
    except (OSError, KeyError) as error:
        raise ValueError(f"cannot read {path}: {error}; {AGAIN}") from error


def _entries(root: Path, split: str) -> tuple[list[str], list[Entry]]:
    """The classes, also those without an object in this ``split``, and where each object is."""
    if (root / "train_files.txt").is_file():
        return _in_hdf5(root, split)
    if (root / "modelnet40_train.txt").is_file():
        return _in_text(root, split)
    return _in_meshes(root, split)


def _in_hdf5(root: Path, split: str) -> tuple[list[str], list[Entry]]:
    found = []
    for line in (root / f"{split}_files.txt").read_text().split():
        path = root / Path(line).name
        for row, label in enumerate(_hdf5(path, "label").flatten()):
            found.append((int(label), path, row))
    classes = (root / "shape_names.txt").read_text().split()
    return classes, [(classes[label], path, row) for label, path, row in found]


def _in_text(root: Path, split: str) -> tuple[list[str], list[Entry]]:
    names = {part: (root / f"modelnet40_{part}.txt").read_text().split() for part in SPLITS}
    classes = sorted({name.rpartition("_")[0] for part in SPLITS for name in names[part]})
    kinds = [name.rpartition("_")[0] for name in names[split]]
    files = zip(kinds, names[split], strict=True)
    return classes, [(kind, root / kind / f"{name}.txt", 0) for kind, name in files]


def _in_meshes(root: Path, split: str) -> tuple[list[str], list[Entry]]:
    classes = sorted(path.name for path in root.glob("[!._]*/"))  # without .git, __MACOSX ...
    entries = []
    for kind in classes:
        for path in sorted((root / kind / split).glob("[!.]*.off")):
            entries.append((kind, path, 0))
    return classes, entries


def _drawn(path: Path, row: int, count: int, rng: Generator) -> np.ndarray:
    """``count`` random points [P, 3] of the object at ``row`` of a file, upright in the third
    axis.
    """
    if path.suffix == ".off":
        return surface(_mesh(path), count, rng)
    if path.suffix == ".txt":
        cloud = np.loadtxt(path, delimiter=",")
    else:
        cloud = _hdf5(path, "data", row).astype(np.float64)
    if cloud.ndim != 2 or cloud.shape[1] < 3 or len(cloud) < count:
        raise ValueError(f"{count} points wanted, found {cloud.shape}")
    if not np.isfinite(cloud).all():
        raise ValueError("NaN or infinite coordinates")
    x, y, z = cloud[rng.choice(len(cloud), count, replace=False), :3].T
    return np.stack([x, -z, y], 1)  # y is upwards in resampled layouts: a quarter turn around x


def source(wanted: Request) -> Objects:
    """ModelNet40's own split.

    All are upright in the third axis: those of the two resampled layouts, which have y upwards,
    are turned. Raises ``FileNotFoundError`` that names what is missing, ``ValueError`` for what is
    damaged.
    """
    root = wanted.root and Path(wanted.root).expanduser()
    if not root or not root.is_dir():
        asked = "the data set 'modelnet40' needs root= (data_root= of a command), its folder, "
        asked += f"not {root}"
        raise FileNotFoundError(f"{asked}; {LAYOUTS}")
    classes, entries = _entries(root, wanted.split)
    files = list(dict.fromkeys(path for _, path, _ in entries))
    _complete(root, wanted.split, classes, entries, files)
    names = []
    for kind, path, row in entries:
        name = f"{kind}/{path.stem}"
        names.append(f"{name}/{row}" if path.suffix == ".h5" else name)

    @cache
    def cloud(i: int, points: int) -> np.ndarray:
        try:
            return _drawn(*entries[i][1:], points, wanted.rng(i, 0))
        except ValueError as error:
            remedy = "" if isinstance(error, _OtherForm) else f"; {AGAIN}"
            raise ValueError(f"cannot use {names[i]} in {root}: {error}{remedy}") from error

    held = contents(files, root, wanted.store)
    config = {"files": digest([held[path] for path in files]), "objects": digest(names)}
    if files[0].suffix != ".off":
        config["recipe"] = 2  # raise it when the same files become other points
    labels = np.array([classes.index(kind) for kind, *_ in entries])
    return Objects(config, classes, labels, names, cloud, len(labels))


def _complete(
    root: Path, split: str, classes: list[str], entries: list[Entry], files: list[Path]
) -> None:
    """Raise ``FileNotFoundError`` that names what is missing."""
    if not entries:
        raise FileNotFoundError(f"no point clouds in {root}; {LAYOUTS}")
    there = {kind for kind, *_ in entries}
    for name in classes:
        if name not in there:
            missing = f"class {name!r} has no file for the split {split!r} in {root}"
            raise FileNotFoundError(f"{missing}; {AGAIN}")
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {AGAIN}")
