"""What the data sets of every modality have in common.

Labels, foreground masks, parts that know their origin, and what is asked for.
"""

import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from kpnb._messages import not_negative, one_of, positive
from kpnb._progress import Progress
from kpnb_book.store import digest

SPLITS = ("train", "test")
Sample = tuple[str, dict[str, np.ndarray]]  # where it comes from, and its inputs, label and mask


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleSet:
    """N samples with labels and foreground masks; a subclass adds the inputs and ``batch``.

    ``config`` is JSON-able and determines the content, so that it can address whatever is computed
    from the set.
    """

    KIND: ClassVar[str]  # what messages call the samples, in the plural
    INPUT: ClassVar[str]  # the field with the inputs [N, ...]

    labels: Tensor  # int64 [N], each an index into classes
    masks: Tensor  # bool [N, ...], True on the foreground; may be all or nothing of a sample
    classes: tuple[str, ...]
    names: tuple[str, ...]  # for each sample, where it comes from
    config: dict[str, Any]

    def _check(self, dtype: torch.dtype, *mask: int) -> None:
        """Raise ``ValueError`` that names a field which does not fit the others.

        Inputs have to be of ``dtype``, and masks [N, *mask].
        """
        shape = getattr(self, self.INPUT).shape
        wanted = {
            self.INPUT: (dtype, shape),
            "labels": (torch.int64, shape[:1]),
            "masks": (torch.bool, (len(self), *mask)),
        }
        for field, (kind, size) in wanted.items():
            tensor = getattr(self, field)
            if tensor.dtype != kind or tensor.shape != size:
                asked = f"{kind} {list(size)} for these {self.KIND}"
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{field} must be {asked}, not {found}")
        low = int(self.labels.min())
        high = int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            classes = f"there are {len(self.classes)} classes"
            raise ValueError(f"labels run from {low} to {high}, but {classes}")
        if len(self.names) != len(self):
            raise ValueError(f"{len(self.names)} names for {len(self)} {self.KIND}")
        try:
            json.dumps(self.config)
        except TypeError as error:
            raise ValueError(f"config must be JSON-able: {error}") from error

    def __len__(self) -> int:
        return len(getattr(self, self.INPUT))

    @classmethod
    def made(
        cls,
        store: Any,
        config: dict[str, Any],
        classes: Iterable[str],
        samples: Iterable[Sample],
        **more: Any,
    ) -> Self:
        """The set that ``config`` determines, from the ``store`` if there is one.

        It has config["count"] ``samples``, which are names and fields (inputs, labels, masks).
        None is drawn when the store has the set. ``more`` are fields that samples have in common.
        """
        make = partial(_stacked, samples, config["count"], cls.KIND)
        tensors, info = make() if store is None else store.run(cls.KIND, config).get("set", make)
        common = {"classes": tuple(classes), "names": tuple(info["names"]), "config": config}
        return cls(**tensors, **common, **more)

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The samples at ``index`` (positions, or a bool for each sample), in that order."""
        index = torch.as_tensor(index)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        step = {self.KIND: len(index), "index": digest(index.numpy().tobytes())[:16]}
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: part[index] for name, part in parts.items() if isinstance(part, Tensor)}
        names = tuple(self.names[i] for i in index.tolist())
        config = {**self.config, "subsets": [*self.config.get("subsets", []), step]}
        return replace(self, **chosen, names=names, config=config)

    @property
    def outside(self) -> Tensor:
        """What is background, bool ``[N, ...]``: everything that is not foreground."""
        return ~self.masks

    def complete(self) -> Self:
        """The samples that have a foreground and a background; all where none has both."""
        both = self.masks.flatten(1).any(1) & self.outside.flatten(1).any(1)
        return self.subset(both) if both.any() and not both.all() else self

    def share(self, n: int, seed: int) -> Self:
        """``n`` samples drawn without replacement, each class in proportion.

        A larger share holds the smaller one.
        """
        return self.subset(torch.from_numpy(stratified(self.labels.numpy(), n, seed, self.KIND)))

    def where(self, prefix: str) -> Tensor:
        """Positions [K] of the samples whose name starts with ``prefix``.

        That may be one vendor's artwork, or one class.
        """
        found = [i for i, name in enumerate(self.names) if name.startswith(prefix)]
        return torch.tensor(found, dtype=torch.int64)


def _stacked(
    samples: Iterable[Sample], count: int, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a :class:`SampleSet`, and its names."""
    names: list[str] = []
    arrays: dict[str, np.ndarray] = {}  # filled row by row: a list of samples would need it twice
    with Progress(count, kind, unit=kind.removesuffix("s")) as progress:
        for name, sample in samples:
            for field, value in sample.items():
                if field not in arrays:
                    arrays[field] = np.empty((count, *value.shape), value.dtype)
                arrays[field][len(names)] = value
            names.append(name)
            progress.step()
    return {field: torch.from_numpy(array) for field, array in arrays.items()}, {"names": names}


@dataclass(frozen=True)
class Request:
    """What ``load`` is asked for, whatever the modality.

    Raises ``ValueError`` that names what makes no sense.

    dataset  its name, or "package.module:function" for a function of your own
    split    "train" or "test"
    count    so many samples; None stands for all, or for what the data set says
    at_most  of a data set that lives in files, so many samples or all there are; where that has no
             meaning, ignored
    seed     of what is made or drawn
    root     folder of a data set that lives in files
    store    remembers the content of these files, see :func:`kpnb_book.data.contents.contents`
    """

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("root", "at_most", "store")

    dataset: str
    split: str = "train"
    count: int | None = None
    seed: int = 0
    root: str | Path | None = None
    at_most: int | None = None
    store: Any = None

    def __post_init__(self) -> None:
        one_of("split", self.split, SPLITS)
        positive(count=self.count, at_most=self.at_most)
        not_negative(seed=self.seed)

    @property
    def config(self) -> dict[str, Any]:
        """What determines the samples; of a folder only the content of its files does."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names if name not in self.LEFT_OUT}

    def rng(self, i: int, *stream: int) -> np.random.Generator:
        """Random numbers for sample ``i``: a function of (seed, split, i) and the ``stream``."""
        return np.random.default_rng([self.seed, self.split == "test", i, *stream])

    def source(self, sources: Mapping[str, Callable[..., Any]], *options: Any) -> Any:
        """What the data set's function makes of this request and ``options``.

        It is the one of that name among the ``sources``, or one of the caller's. Raises
        ``ValueError`` for an unknown name, ``ImportError`` or ``AttributeError`` for a function
        that is not there.
        """
        check_dataset(self.dataset, sources)
        if ":" in self.dataset:
            return pkgutil.resolve_name(self.dataset)(self, *options)
        return sources[self.dataset](self, *options)


def check_dataset(name: str, sources: Mapping[str, Callable[..., Any]]) -> None:
    """``ValueError`` for a name that is not among the ``sources``; "module:function" may be one."""
    if ":" not in name:
        one_of("data set", name, sources)


def check_root(name: str, root: str | Path | None, needs: Mapping[str, bool]) -> None:
    """``ValueError`` for a data set that ``needs`` a folder and has none, or reads none and has
    one.

    A name that is not there may have one.
    """
    if needs.get(name) is True and root is None:
        raise ValueError(f"the data set {name!r} needs data_root=, the folder of its files")
    if needs.get(name) is False and root is not None:
        others = ", ".join(repr(other) for other, needed in needs.items() if needed)
        found = f"data_root={str(root)!r}: the data set {name!r} reads no folder"
        raise ValueError(f"{found}; these do: {others}")


def fifth(labels: np.ndarray, split: str) -> np.ndarray:
    """Positions of a split's samples where the data have no splits.

    A fifth is for testing, classes in proportion; always the same fifth, so that no ``seed`` can
    leak a test sample into training.
    """
    test = stratified(labels, max(1, len(labels) // 5), seed=0)
    return test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)


def stratified(labels: np.ndarray, n: int, seed: int, kind: str = "samples") -> np.ndarray:
    """Sorted positions of ``n`` labels, classes in proportion, random within a class.

    Places are dealt out by Sainte-Laguë's method, ties in random order. Raises ``ValueError`` when
    there are not that many; it calls them ``kind``.
    """
    if not 0 < n <= len(labels):
        raise ValueError(f"cannot draw {n} of {len(labels)} {kind}")
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(labels))
    key = np.empty(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        key[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    tie = rng.permutation(labels.max() + 1)[labels]
    return np.sort(np.lexsort((tie, key))[:n])
