"""The embedded point clouds: parametric objects of ten everyday classes, built with ``trimesh``."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from trimesh import Trimesh, creation
from trimesh.transformations import rotation_matrix
from trimesh.triangles import to_kwargs

from kpnb_book.data.cloud_set import Objects, surface
from kpnb_book.data.samples import Request

X, Y, Z = np.eye(3)  # along, across, up
Draw = Callable[..., float]  # Generator.uniform: u(low, high), or u() in [0, 1]
SOLIDS = {  # triangles [F, 3, 3] that fill the cube of side 1 around the origin
    "box": creation.box().triangles,
    "ball": creation.icosphere(2, 0.5).triangles,
    "rod": creation.cylinder(0.5, 1, sections=20).triangles,
    "ring": creation.torus(0.42, 0.08, major_sections=20, minor_sections=8).triangles,
}


class Part(NamedTuple):
    """A part of an object, in the order in which it is made.

    solid   one of :data:`SOLIDS`, or the line of (radius, height) that a lathe turns around the
            upright axis
    size    factor on the solid, or one along each axis; no point hits a part of size 0
    at      place of its centre
    turn    degrees around ``axis``
    mirror  axes along which a mirrored copy is added, one after the other
    taper   width at the top over width at the bottom
    """

    solid: str | Sequence[tuple[float, float]]
    size: ArrayLike = 1
    at: ArrayLike = 0
    turn: float = 0
    axis: np.ndarray = Z
    mirror: Sequence[np.ndarray] = ()
    taper: float = 1

    def triangles(self) -> np.ndarray:
        """Its surface [F, 3, 3]: tapered, sized, turned, moved, mirrored."""
        if isinstance(self.solid, str):
            made = np.array(SOLIDS[self.solid])
        else:
            made = np.array(creation.revolve(self.solid, sections=20).triangles)
        width = 1 + (self.taper - 1) * (made[..., 2:] + 0.5)
        made = made * np.where((1, 1, 0), width, 1) * self.size
        made = made @ rotation_matrix(np.radians(self.turn), self.axis)[:3, :3].T + self.at
        for normal in self.mirror:
            made = np.concatenate([made, made * (1 - 2 * normal)])
        return made


# ---- the classes
# The order in which numbers are drawn is part of what the sets are: see ``source``.


def airplane(u: Draw) -> list[Part]:
    """A body, two wings, a tail fin and a tailplane, at its foot or on its top."""
    body = u(0.2, 0.4)
    tail = u(0.3, 0.5)
    chord = u(0.25, 0.5)
    span = u(0.7, 1.2)
    height = u(-0.1, 0.1)
    sweep = u(5, 35)
    top = tail if u() < 0.4 else 0
    return [
        Part("ball", (2, body, body)),
        Part("box", (0.25, 0.04, tail), at=(-1, 0, tail / 2), turn=-20, axis=Y),
        Part("box", (chord, span, 0.04), at=(0, span / 2, height), turn=sweep, mirror=[Y]),
        Part("box", (0.22, tail, 0.03), at=(-0.9, tail / 2, top), turn=sweep, mirror=[Y]),
    ]


def bed(u: Draw) -> list[Part]:
    """A mattress between two boards, on four legs."""
    wide = u(0.8, 1.8)
    thick = u(0.15, 0.4)
    head = u(0.4, 1)
    foot = u(0.1, 0.7)
    low = u(0, 0.5)
    return [
        Part("box", (2, wide, thick)),
        Part("box", (0.08, wide, head), at=(-1, 0, head / 2)),
        Part("box", (0.08, wide, foot), at=(1, 0, foot / 2)),
        Part("box", (0.1, 0.1, 0.7), at=(0.9, 0.45 * wide, -low), mirror=(X, Y)),
    ]


def bookshelf(u: Draw) -> list[Part]:
    """Two sides, perhaps a back, and shelves, on which there may be books."""
    deep = u(0.2, 0.5)
    high = u(1.2, 2)
    wide = u(0.6, 1.4)
    back = wide if u() < 0.7 else 0
    parts = [
        Part("box", (0.05, deep, high), at=wide / 2 * X, mirror=[X]),
        Part("box", (back, 0.03, high), at=deep / 2 * Y),
    ]
    for z in np.linspace(-high / 2, high / 2, int(u(4, 8))):
        share = u(0.1, 0.9)
        books = wide * share if u() < 0.6 else 0
        place = (wide * (1 - share) / 2, 0, z + 0.1)
        parts += [
            Part("box", (wide, deep, 0.04), at=z * Z),
            Part("box", (books, 0.7 * deep, 0.2), at=place),
        ]
    return parts


def bottle(u: Draw) -> list[Part]:
    """A body, a neck and a cap."""
    body = u(0.2, 0.45)
    waist = u(0.75, 1)
    shoulder = u(0.9, 1.3)
    neck = u(0.06, 0.14)
    top = u(1.6, 1.9)
    cap = u(1, 3) * neck
    outline = [
        (0, 0),
        (body, 0),
        (body * waist, 0.5),
        (body, shoulder),
        (neck, shoulder + 0.25),
        (neck, top),
    ]
    return [Part(outline), Part("rod", (cap, cap, 0.15), at=top * Z)]


def car(u: Draw) -> list[Part]:
    """A body, a cabin that is narrower at its top, and four wheels."""
    wide = u(0.75, 1)
    low = u(0.25, 0.4)
    long = u(0.8, 1.5)
    high = u(0.25, 0.5)
    place = u(-0.35, 0.1)
    wheel = u(0.35, 0.5)
    axle = u(0.5, 0.7)
    return [
        Part("box", (2, wide, low)),
        Part("box", (long, 0.9 * wide, high), at=(place, 0, (low + high) / 2), taper=0.75),
        Part(
            "rod",
            (wheel, wheel, 0.18),
            at=(axle, wide / 2, -low / 2),
            turn=90,
            axis=X,
            mirror=(X, Y),
        ),
    ]


def chair(u: Draw) -> list[Part]:
    """A seat on legs or a foot, a back of bars (a single one is a plate), and perhaps arms."""
    wide = u(0.8, 1.2)
    deep = u(0.8, 1.1)
    thick = u(0.06, 0.25)
    legs = _legs(u, wide, deep, high=u(0.6, 1.1))
    high = u(0.7, 1.5)
    lean = u(0, 15)
    bars = int(u(1, 6))
    arm = 0.06 if u() < 0.4 else 0
    bar = 0.08 + wide if bars == 1 else 0.08
    behind = deep / 2 + high * lean / 120
    back = [
        Part("box", (bar, 0.08, high), at=(x * wide, behind, high / 2), turn=-lean, axis=X)
        for x in np.arange(0.5 - bars / 2, bars / 2) / 5
    ]
    arms = Part("box", (0.08, deep, arm), at=(wide / 2, 0, 0.4), mirror=[X])
    return [Part("box", (wide, deep, thick)), *legs, *back, arms]


def guitar(u: Draw) -> list[Part]:
    """A body of two discs, a neck and a head; it stands."""
    low = u(0.7, 0.95)
    thick = u(0.08, 0.25)
    high = u(0.5, 0.7)
    waist = u(0.4, 0.55)
    neck = u(0.8, 1.2)
    front = -thick / 2
    return [
        Part("rod", (low, low, thick), turn=90, axis=X),
        Part("rod", (high, high, thick), at=waist * Z, turn=90, axis=X),
        Part("box", (0.1, 0.06, neck), at=(0, front, waist + (high + neck) / 2 - 0.1)),
        Part("box", (0.18, 0.06, 0.25), at=(0, front, waist + high / 2 + neck)),
    ]


def lamp(u: Draw) -> list[Part]:
    """A foot, a pole and a shade that is open above and below."""
    foot = u(0.3, 0.6)
    pole = u(0.8, 1.7)
    wide = u(0.3, 0.6)
    high = u(0.15, 0.3)
    narrow = u(0.12, 0.3)
    return [
        Part("rod", (foot, foot, 0.08)),
        Part("rod", (0.06, 0.06, pole), at=pole / 2 * Z),
        Part([(wide, pole - high), (narrow, pole + high)]),
    ]


def mug(u: Draw) -> list[Part]:
    """A hollow body and a handle."""
    low = u(0.35, 0.55)
    top = low * u(0.9, 1.3)
    high = u(0.8, 1.2)
    handle = u(0.5, 0.75)
    outline = [(0, 0), (low, 0), (top, high), (top - 0.05, high), (low - 0.05, 0.05), (0, 0.05)]
    return [
        Part(outline),
        Part("ring", (handle, handle, 0.6), at=(top, 0, high / 2), turn=90, axis=X),
    ]


def table(u: Draw) -> list[Part]:
    """A plate with corners or without, on legs or a foot."""
    solid = "rod" if u() < 0.5 else "box"
    wide = u(1.2, 2.2)
    deep = u(0.8, 1.3)
    thick = u(0.05, 0.12)
    return [
        Part(solid, (wide, deep, thick)),
        *_legs(u, 0.8 * wide, 0.8 * deep, high=u(0.5, 1)),
    ]


def _legs(u: Draw, wide: float, deep: float, high: float) -> list[Part]:
    """Four legs below a plate at height 0, or a foot in the middle."""
    thick = u(0.06, 0.14)
    solid = "rod" if u() < 0.5 else "box"
    if u() < 0.3:
        foot = u(0.5, 0.9) * min(wide, deep)
        return [
            Part("rod", (thick, thick, high), at=-high / 2 * Z),
            Part("rod", (foot, foot, 0.06), at=-high * Z),
        ]
    corner = ((wide - thick) / 2, (deep - thick) / 2, -high / 2)
    return [Part(solid, (thick, thick, high), at=corner, mirror=(X, Y), taper=u(1, 1.8))]


SHAPES: dict[str, Callable[[Draw], list[Part]]] = {
    "airplane": airplane,
    "bed": bed,
    "bookshelf": bookshelf,
    "bottle": bottle,
    "car": car,
    "chair": chair,
    "guitar": guitar,
    "lamp": lamp,
    "mug": mug,
    "table": table,
}
TRAINING = 4000  # objects that are made unless the request says how many
DONORS = 100 * len(SHAPES)  # background comes from the first so many objects of a split


# ---- the data set


def source(wanted: Request) -> Objects:
    """The objects for :func:`kpnb_book.data.clouds.load`, a function of (seed, split, i) each.

    Object i is of class i mod 10. A change of the shapes must change ``recipe``.
    """
    if wanted.root is not None:
        found = "the data set 'shapes' is made, not read"
        raise ValueError(f"{found}; for root= use dataset='modelnet40'")
    classes = list(SHAPES)
    count = wanted.count or (TRAINING if wanted.split == "train" else DONORS)
    labels = np.arange(max(count, DONORS)) % len(classes)

    @cache
    def cloud(i: int, points: int) -> np.ndarray:
        rng = wanted.rng(i, 0)
        parts = SHAPES[classes[labels[i]]](rng.uniform)
        triangles = np.concatenate([part.triangles() for part in parts])
        turn = rotation_matrix(rng.uniform(-0.5, 0.5), Z)[:3, :3]
        return surface(Trimesh(**to_kwargs(triangles), process=False), points, rng) @ turn

    names = [f"{classes[y]}/{i}" for i, y in enumerate(labels)]
    return Objects({"recipe": 2}, classes, labels, names, cloud, DONORS, made=True)
