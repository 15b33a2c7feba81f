"""Point clouds with a foreground mask: one class, :class:`CloudSet`, and how clouds are composed.

A data set is a function from a :class:`CloudRequest` to :class:`Objects`. All are composed as the
paper says (section 4.1): five clouds of other classes are drawn for every object, and 500 of their
points are attached to it as background. The paper does not say where. Here each of the five is
shrunk to a quarter of the object's size and put beside it, like things that stand around it: in a
random horizontal direction, at the distance at which the spheres around both touch. So no
background point lies within the object's sphere, and the background fills few of the directions by
whose extremes a max-pooled network knows an object. ``scale`` and ``distance`` change that (1 and
0: all clouds on top of each other).

Order of the steps: every cloud is moved to its centroid and scaled to the unit sphere; the five are
placed and their points drawn; the whole is scaled to the unit sphere, the object's centroid staying
at the origin. The object's points come first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from trimesh import Trimesh
from trimesh.sample import sample_surface

from kpnb._messages import not_negative, positive
from kpnb._tensors import moved
from kpnb_book.data.samples import Request, SampleSet


@dataclass(frozen=True, eq=False, kw_only=True)
class CloudSet(SampleSet):
    """N clouds of P points with labels and foreground masks.

    Raises ``ValueError`` that names the field when the parts do not fit together, and for NaN
    coordinates.
    """

    KIND: ClassVar[str] = "clouds"
    INPUT: ClassVar[str] = "points"

    points: Tensor  # float32 [N, P, 3]; masks are [N, P]

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            found = f"{self.points.dtype} {list(shape)}"
            raise ValueError(f"points must be float32 [N, P, 3] with N, P > 0, not {found}")
        self._check(torch.float32, shape[1])
        finite = self.points.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise ValueError(f"cloud {bad} ({self.names[bad]}) has NaN or infinite coordinates")

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Clouds ``index`` [B] as float32 [B, P, 3] in the unit sphere, and labels [B]."""
        index = index.to(self.points.device)
        return moved(self.points[index], device), moved(self.labels[index], device)


class Objects(NamedTuple):
    """Single objects that clouds are composed of."""

    config: dict[str, Any]  # determines them
    classes: list[str]
    labels: np.ndarray  # [M]
    names: list[str]
    # (object, how many points) to points [P, 3], upright in the third axis, the same at every call
    cloud: Callable[[int, int], np.ndarray]
    donors: int  # background comes from the first so many objects
    made: bool = False  # there are as many as wanted; else fewer are drawn, classes in proportion


def surface(mesh: Trimesh, count: int, rng: Generator) -> np.ndarray:
    """``count`` points [P, 3] spread evenly over the area of ``mesh``.

    Raises ``ValueError`` when it has none.
    """
    if not 0 < mesh.area < np.inf:
        found = "it has no surface; or it has NaN or infinite coordinates"
        raise ValueError(f"the mesh is empty: {found}")
    return sample_surface(mesh, count, seed=rng)[0]


def unit(points: np.ndarray) -> np.ndarray:
    """``points`` [P, 3] moved to their centroid and scaled to the unit sphere.

    All zero if they are one point.
    """
    points = points - points.mean(0)
    return points / (np.linalg.norm(points, axis=1).max() or 1)


@dataclass(frozen=True)
class CloudRequest(Request):
    """What :func:`load` is asked for: ``points`` on the object and ``background`` points around it.

    The latter are drawn from ``clouds`` clouds of other classes. ``scale`` is their radius and
    ``distance`` how far their centres are from the object's, both in radii of the object; spheres
    touch at ``distance = 1 + scale``.
    """

    points: int = 512
    background: int = 500
    clouds: int = 5
    scale: float = 0.25
    distance: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(points=self.points, clouds=self.clouds, scale=self.scale)
        not_negative(background=self.background, distance=self.distance)
        if self.background > self.clouds * self.points:
            source = f"{self.clouds} clouds of {self.points}"
            raise ValueError(f"background={self.background} points cannot be drawn from {source}")


def composed(objects: Objects, i: int, wanted: CloudRequest) -> np.ndarray:
    """Object i and its background [points + background, 3]: see the head of this module."""
    rng = wanted.rng(i, 1)
    others = np.flatnonzero(objects.labels[: objects.donors] != objects.labels[i])
    if len(others) < wanted.clouds:
        asked = f"{wanted.clouds} clouds of other classes wanted for {objects.names[i]}"
        raise ValueError(f"{asked}; there are {len(others)}")
    centres = rng.normal(size=(wanted.clouds, 1, 3))
    centres[..., 2] = 0  # beside the object, at its height
    centres *= wanted.distance / np.linalg.norm(centres, axis=-1, keepdims=True)
    drawn = rng.choice(others, wanted.clouds, replace=False)
    mine = unit(objects.cloud(i, wanted.points))
    around = np.stack([unit(objects.cloud(j, wanted.points)) for j in drawn])
    ground = (wanted.scale * around + centres).reshape(-1, 3)
    whole = np.concatenate([mine, rng.choice(ground, wanted.background, replace=False)])
    return whole / (np.linalg.norm(whole, axis=1).max() or 1)
