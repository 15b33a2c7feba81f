"""What the data sets of every modality have in common: labels, foreground masks, and parts that know their origin."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleSet:
    """N samples with labels and foreground masks; a subclass adds the inputs and ``batch``.

    ``config`` is JSON-able and determines the content, so that it can address whatever is computed from the set.
    """

    KIND: ClassVar[str]  # what messages call the samples, in the plural
    INPUT: ClassVar[str]  # the field with the inputs [N, ...]
    ROWS: ClassVar[tuple[str, ...]] = ("names",)  # fields that are tuples with an entry for each sample

    labels: Tensor  # int64 [N] or [N, ...], each an index into classes
    masks: Tensor  # bool [N, ...], True on the foreground; may be all or nothing of a sample
    classes: tuple[str, ...]
    names: tuple[str, ...]  # for each sample, where it comes from
    config: dict[str, Any]

    def _check(self, dtype: torch.dtype, *mask: int) -> None:
        """``ValueError`` that names the field unless inputs of ``dtype`` and masks [N, *mask] fit the other parts."""
        shape = getattr(self, self.INPUT).shape
        wanted = {self.INPUT: (dtype, shape), "labels": (torch.int64, shape[:1] + self.labels.shape[1:])}
        for field, (kind, size) in (wanted | {"masks": (torch.bool, (len(self), *mask))}).items():
            tensor = getattr(self, field)
            if tensor.dtype != kind or tensor.shape != size:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{field} must be {kind} {list(size)} for these {self.KIND}, not {found}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(f"labels run from {low} to {high}, but there are {len(self.classes)} classes")
        if len(self.names) != len(self):
            raise ValueError(f"{len(self.names)} names for {len(self)} {self.KIND}")
        try:
            json.dumps(self.config)
        except TypeError as error:
            raise ValueError(f"config must be JSON-able: {error}") from error

    def __len__(self) -> int:
        return len(getattr(self, self.INPUT))

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The samples at ``index`` (positions, or a bool for each sample), in that order."""
        index = torch.as_tensor(index)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        digest = hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16]
        steps = [*self.config.get("subsets", []), {self.KIND: len(index), "index": digest}]
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: part[index] for name, part in parts.items() if isinstance(part, Tensor)}
        chosen |= {name: tuple(parts[name][i] for i in index.tolist()) for name in self.ROWS}
        return replace(self, **chosen, config={**self.config, "subsets": steps})

    def share(self, n: int, seed: int) -> Self:
        """``n`` samples drawn without replacement, each class in proportion; a larger share holds the smaller one.

        Samples with several labels each are not divided into classes.
        """
        labels = self.labels if self.labels.dim() == 1 else torch.zeros(len(self), dtype=torch.int64)
        return self.subset(torch.from_numpy(stratified(labels.numpy(), n, seed, self.KIND)))

    def where(self, prefix: str) -> Tensor:
        """Positions of the samples whose name starts with ``prefix``, such as one vendor's artwork or one class."""
        return torch.tensor([i for i, name in enumerate(self.names) if name.startswith(prefix)], dtype=torch.int64)


def stratified(labels: np.ndarray, n: int, seed: int, kind: str = "samples") -> np.ndarray:
    """Sorted positions of ``n`` labels, classes in proportion (Sainte-Laguë, ties in random order), random within.

    ``ValueError`` when there are not that many; it calls them ``kind``.
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
