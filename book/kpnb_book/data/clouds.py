"""The point cloud data sets by name.

``shapes``      parametric objects, made here: :mod:`kpnb_book.data.shapes`.
``modelnet40``  read from its folder: :mod:`kpnb_book.data.modelnet`.
"""

from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from kpnb_book.data import modelnet, shapes
from kpnb_book.data.cloud_set import CloudRequest, CloudSet, Objects, composed
from kpnb_book.data.samples import Sample, stratified

# Name to a function of a request. Add your own: it needs nothing else.
SOURCES: dict[str, Callable[[CloudRequest], Objects]] = {
    "shapes": shapes.source,
    "modelnet40": modelnet.source,
}
ROOTS = {"shapes": False, "modelnet40": True}  # whether a set needs the folder of its files


def load(
    dataset: str = "shapes", split: str = "train", *, store: Any = None, **more: Any
) -> CloudSet:
    """The ``split`` ("train" or "test") of a data set.

    ``more`` takes the fields of :class:`CloudRequest`. ``count`` clouds: 4,000 for training and
    1,000 for testing ("shapes") or all ("modelnet40") by default; fewer of ModelNet40 (``count``,
    ``at_most``) are drawn with ``seed``, classes in proportion. Cloud i depends on (seed, split, i)
    alone. ``root`` is ModelNet40's folder. ``store``, a
    :class:`kpnb_book.store.Store`, keeps the set; without one it is made anew. Raises
    ``ValueError`` (``FileNotFoundError`` for a missing folder or file) that names the culprit.
    """
    wanted = CloudRequest(dataset, split, store=store, **more)
    objects = wanted.source(SOURCES)
    there = len(objects.labels)
    index = np.arange(wanted.count or there)
    count = wanted.count or (wanted.at_most and min(wanted.at_most, there))
    if count and not objects.made:
        index = stratified(objects.labels, count, wanted.seed, "clouds")
    config = {
        **wanted.config,
        "count": len(index),
        "trimesh": metadata.version("trimesh"),
        **objects.config,
    }
    mask = np.arange(wanted.points + wanted.background) < wanted.points

    def samples() -> Iterator[Sample]:
        for i in index.tolist():
            points = composed(objects, i, wanted).astype(np.float32)
            yield objects.names[i], {"points": points, "labels": objects.labels[i], "masks": mask}

    return CloudSet.made(store, config, objects.classes, samples())
