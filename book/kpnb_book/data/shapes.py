"""The embedded point clouds: parametric objects of ten everyday classes, built with ``trimesh``."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from trimesh import Trimesh, creation
from trimesh.transformations import rotation_matrix
from trimesh.triangles import to_kwargs

from kpnb_book.data.cloud_set import Objects, surface
from kpnb_book.data.samples import Request

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
    solid: Any,
    size: Any = 1,
    at: Any = 0,
    turn: float = 0,
    axis: Any = Z,
    mirror: Any = (),
    taper: float = 1,
) -> np.ndarray:
    """Triangles [F, 3, 3] of a part: sized, narrowed by ``taper`` towards its top, turned
    (degrees), moved, mirrored.

    ``solid`` names one, or is the line of (radius, height) that a lathe turns around the upright
    axis.
    """
    made = np.array(
        SOLIDS[solid] if isinstance(solid, str) else creation.revolve(solid, sections=20).triangles
    )
    made = made * np.where((1, 1, 0), 1 + (taper - 1) * (made[..., 2:] + 0.5), 1) * size
    made = made @ rotation_matrix(np.radians(turn), axis)[:3, :3].T + at
    for normal in mirror:
        made = np.concatenate([made, made * (1 - 2 * normal)])
    return made


def _legs(u: Draw, wide: float, deep: float, high: float) -> list[Part]:
    """Four legs below a plate at height 0, or a foot in the middle."""
    thick, solid = u(0.06, 0.14), ("box", "rod")[u() < 0.5]
    if u() < 0.3:
        foot = u(0.5, 0.9) * min(wide, deep)
        return [
            ("rod", (thick, thick, high), -high / 2 * Z),
            ("rod", (foot, foot, 0.06), -high * Z),
        ]
    place = ((wide - thick) / 2, (deep - thick) / 2, -high / 2)
    return [(solid, (thick, thick, high), place, 0, Z, (X, Y), u(1, 1.8))]


# Class to its parts, from random numbers u(low, high), or u() in [0, 1]. No point hits a part of
# size 0.
SHAPES: dict[str, Callable[[Draw], list[Part]]] = {
    "airplane": lambda u: [
        ("ball", (2, body := u(0.2, 0.4), body)),
        ("box", (0.25, 0.04, tail := u(0.3, 0.5)), (-1, 0, tail / 2), -20, Y),
        (
            "box",
            (u(0.25, 0.5), span := u(0.7, 1.2), 0.04),
            (0, span / 2, u(-0.1, 0.1)),
            sweep := u(5, 35),
            Z,
            [Y],
        ),
        ("box", (0.22, tail, 0.03), (-0.9, tail / 2, tail * (u() < 0.4)), sweep, Z, [Y]),
    ],
    "bed": lambda u: [
        ("box", (2, wide := u(0.8, 1.8), u(0.15, 0.4))),
        ("box", (0.08, wide, h := u(0.4, 1)), (-1, 0, h / 2)),
        ("box", (0.08, wide, f := u(0.1, 0.7)), (1, 0, f / 2)),
        ("box", (0.1, 0.1, 0.7), (0.9, 0.45 * wide, -u(0, 0.5)), 0, Z, (X, Y)),
    ],
    "bookshelf": lambda u: [
        (
            "box",
            (0.05, deep := u(0.2, 0.5), high := u(1.2, 2)),
            (wide := u(0.6, 1.4)) / 2 * X,
            0,
            Z,
            [X],
        ),
        ("box", (wide * (u() < 0.7), 0.03, high), deep / 2 * Y),
        *[
            part
            for z in np.linspace(-high / 2, high / 2, int(u(4, 8)))
            for books in [u(0.1, 0.9)]
            for part in (
                ("box", (wide, deep, 0.04), z * Z),
                (
                    "box",
                    (wide * books * (u() < 0.6), 0.7 * deep, 0.2),
                    (wide * (1 - books) / 2, 0, z + 0.1),
                ),
            )
        ],
    ],
    "bottle": lambda u: [
        (
            [
                (0, 0),
                (body := u(0.2, 0.45), 0),
                (body * u(0.75, 1), 0.5),
                (body, shoulder := u(0.9, 1.3)),
                (neck := u(0.06, 0.14), shoulder + 0.25),
                (neck, top := u(1.6, 1.9)),
            ],
        ),
        ("rod", (cap := u(1, 3) * neck, cap, 0.15), top * Z),
    ],
    "car": lambda u: [
        ("box", (2, wide := u(0.75, 1), low := u(0.25, 0.4))),
        (
            "box",
            (u(0.8, 1.5), 0.9 * wide, high := u(0.25, 0.5)),
            (u(-0.35, 0.1), 0, (low + high) / 2),
            0,
            Z,
            (),
            0.75,
        ),
        (
            "rod",
            (wheel := u(0.35, 0.5), wheel, 0.18),
            (u(0.5, 0.7), wide / 2, -low / 2),
            90,
            X,
            (X, Y),
        ),
    ],
    "chair": lambda u: [
        ("box", (wide := u(0.8, 1.2), deep := u(0.8, 1.1), u(0.06, 0.25))),
        *_legs(u, wide, deep, u(0.6, 1.1)),
        *[
            (
                "box",
                (0.08 + wide * (n == 1), 0.08, high),
                (x * wide, deep / 2 + high * lean / 120, high / 2),
                -lean,
                X,
            )
            for high, lean, n in [(u(0.7, 1.5), u(0, 15), int(u(1, 6)))]
            for x in np.arange(0.5 - n / 2, n / 2) / 5
        ],
        ("box", (0.08, deep, 0.06 * (u() < 0.4)), (wide / 2, 0, 0.4), 0, Z, [X]),
    ],
    "guitar": lambda u: [  # it stands
        ("rod", (low := u(0.7, 0.95), low, thick := u(0.08, 0.25)), 0, 90, X),
        ("rod", (high := u(0.5, 0.7), high, thick), (waist := u(0.4, 0.55)) * Z, 90, X),
        ("box", (0.1, 0.06, neck := u(0.8, 1.2)), (0, -thick / 2, waist + (high + neck) / 2 - 0.1)),
        ("box", (0.18, 0.06, 0.25), (0, -thick / 2, waist + high / 2 + neck)),
    ],
    "lamp": lambda u: [
        ("rod", (foot := u(0.3, 0.6), foot, 0.08)),
        ("rod", (0.06, 0.06, pole := u(0.8, 1.7)), pole / 2 * Z),
        ([(u(0.3, 0.6), pole - (high := u(0.15, 0.3))), (u(0.12, 0.3), pole + high)],),
    ],
    "mug": lambda u: [
        (
            [
                (0, 0),
                (low := u(0.35, 0.55), 0),
                (top := low * u(0.9, 1.3), high := u(0.8, 1.2)),
                (top - 0.05, high),
                (low - 0.05, 0.05),
                (0, 0.05),
            ],
        ),
        ("ring", (size := u(0.5, 0.75), size, 0.6), (top, 0, high / 2), 90, X),
    ],
    "table": lambda u: [
        (("box", "rod")[u() < 0.5], (wide := u(1.2, 2.2), deep := u(0.8, 1.3), u(0.05, 0.12))),
        *_legs(u, 0.8 * wide, 0.8 * deep, u(0.5, 1)),
    ],
}
DONORS = 100 * len(SHAPES)  # background comes from the first so many objects of a split


def source(wanted: Request) -> Objects:
    """The objects for :func:`kpnb_book.data.clouds.load`: object i is a function of (seed, split,
    i).

    It is of class i mod 10. A change of the shapes must change ``recipe``.
    """
    if wanted.root is not None:
        raise ValueError(
            "the data set 'shapes' is made, not read; for root= use dataset='modelnet40'"
        )
    classes = list(SHAPES)
    labels = np.arange(
        max(wanted.count or (4000 if wanted.split == "train" else DONORS), DONORS)
    ) % len(classes)

    @cache
    def cloud(i: int, points: int) -> np.ndarray:
        rng = wanted.rng(i, 0)
        triangles = np.concatenate(
            [_triangles(*part) for part in SHAPES[classes[labels[i]]](rng.uniform)]
        )
        turn = rotation_matrix(rng.uniform(-0.5, 0.5), Z)[:3, :3]
        return surface(Trimesh(**to_kwargs(triangles), process=False), points, rng) @ turn

    names = [f"{classes[y]}/{i}" for i, y in enumerate(labels)]
    return Objects({"recipe": 2}, classes, labels, names, cloud, DONORS, made=True)
