"""Input units: the variables that are perturbed together and counted as one (sections 3.1 and 3.2).

A unit type spreads one value per unit over the elements of an input and gathers an input's elements
per unit. ``Regions`` takes any partition; the grid, points and tokens are cases of it with a faster
way to do it. Anything with the three methods of ``Units`` can take their place. A unit without
elements, such as padding, does not exist for a sample: it is neither perturbed nor counted, and its
entropy is NaN.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from kpnb._messages import check_units, plain_numbers, positive, whole
from kpnb._precision import widest
from kpnb._tensors import as_tensor, described
from kpnb.masks import read_masks


class Units(Protocol):
    """What the entropy of any kind of input unit needs to know about the units.

    Units that differ between samples have a fourth method, ``rows_of(which, x)``, which gives those
    of the samples ``which``, a slice of all ``x``.
    """

    def count(self, x: Tensor) -> int:
        """Number ``n`` of units of each sample of ``x [B, ...]``; ``ValueError`` when ``x`` does
        not fit.
        """

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """``values [B, n]`` laid over the elements of ``x [B, ...]``, broadcastable to ``x``."""

    def gather(self, elements: Tensor) -> Tensor:
        """Sums of ``elements [B, ...]`` (shaped like ``x``) over the elements of each unit, ``[B,
        n]``.
        """


def read_units(units: Any) -> Units:
    """``units``, by default the paper's grid; ``TypeError`` for what lacks methods of ``Units``."""
    if units is None:
        return ImageGrid()
    check_units(units)
    return units


def on_device(units: Units, device: torch.device) -> Units:
    """The ``units`` with what tells them apart on ``device``, where each direction looks at it."""
    name = {Tokens: "mask", Regions: "labels"}.get(type(units), "")
    there = getattr(units, name, None)
    if there is None or there.device == device:
        return units
    return replace(units, **{name: there.to(device)})


def units_of(units: Units, which: slice, x: Tensor) -> Units:
    """The units of the samples ``which`` of ``x [N, ...]``; the same object when it serves every
    sample.
    """
    rows = getattr(units, "rows_of", None)
    return rows(which, x) if rows else units


def _digest(values: Tensor) -> str:
    """A few letters that stand for the content of ``values``, for the settings of a result."""
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


def _cells(pixels: int, cells: int, like: Tensor) -> Tensor:
    """Membership ``[cells, pixels]``: pixel ``p`` lies in cell ``floor(p * cells / pixels)``
    (nearest up-sampling).
    """
    position = torch.arange(pixels, device=like.device) * cells // pixels
    return (position == torch.arange(cells, device=like.device)[:, None]).to(like.dtype)


@dataclass(frozen=True)
class ImageGrid:
    """The cells of a grid laid over images ``[B, C, H, W]``, row by row; all channels of a cell
    share one sigma.

    The paper takes 16 x 16; ``columns=None`` is as many as there are rows. A grid that does not
    divide the image gives cells that differ by one pixel in size. ``ValueError`` unless both are
    whole and positive.
    """

    rows: int = 16
    columns: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        whole(rows=self.rows, columns=self.columns)
        positive(rows=self.rows, columns=self.columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.rows, self.rows if self.columns is None else self.columns

    def count(self, x: Tensor) -> int:
        rows, columns = self.shape
        if x.dim() != 4:
            one_image = x.dim() == 3 and len(x) in (1, 3)
            alone = "x[None] is a batch of one image; " if one_image else ""
            if x.dim() == 3 and not one_image:
                alone = "x[:, None] are grey images, if it is of these; "
            raise ValueError(
                f"an image batch has the shape [B, C, H, W]; got {tuple(x.shape)} ({alone}inputs "
                "that are no images need units=: kpnb.Tokens() for sequences [B, T, E], "
                "kpnb.Points() for sets of points, kpnb.Regions(labels) for anything)"
            )
        if rows > x.shape[2] or columns > x.shape[3]:
            hint = "; x.permute(0, 3, 1, 2) puts channels first" if x.shape[3] in (1, 3, 4) else ""
            raise ValueError(
                f"a grid of {rows} x {columns} cells does not fit an image of {x.shape[2]} x "
                f"{x.shape[3]} pixels{hint}"
            )
        return rows * columns

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.shape, x.shape[-2:]
        row = torch.arange(height, device=values.device) * rows // height
        column = torch.arange(width, device=values.device) * columns // width
        return (
            values.unflatten(-1, (rows, columns))
            .index_select(-2, row)
            .index_select(-1, column)[:, None]
        )

    def gather(self, elements: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.shape, elements.shape[-2:]
        if height % rows or width % columns:
            down = _cells(height, rows, elements)
            right = _cells(width, columns, elements)
            return (down @ elements.contiguous().sum(1) @ right.T).flatten(-2)
        cells = (
            elements.movedim(1, -1)
            .contiguous()
            .unflatten(2, (columns, -1))
            .unflatten(1, (rows, -1))
        )
        return cells.sum(2).sum((-2, -1)).flatten(-2)

    def coverage(self, masks: Any) -> Tensor:
        """Share of each cell's pixels that the ``masks [B, H, W]`` or ``[B, 1, H, W]`` mark, ``[B,
        n]`` in [0, 1].

        The masks are read as ``kpnb.read_masks`` does, from tensors, arrays or lists. Where a void
        value belongs to neither foreground nor background, ``kpnb.covered_units`` tells both.
        """
        marked = read_masks(masks)[0]
        if marked.dim() != 3:
            given = tuple(as_tensor(masks, "masks").shape)
            raise ValueError(f"masks have the shape [B, H, W] or [B, 1, H, W]; got {given}")
        marked = widest(marked[:, None])
        self.count(marked)
        return (self.gather(marked) / self.gather(torch.ones_like(marked))).to(torch.float32)


@dataclass(frozen=True)
class Points:
    """The points of clouds ``[B, N, 3]``; the three coordinates of a point share one sigma (section
    4.1).
    """

    def count(self, x: Tensor) -> int:
        if x.dim() != 3 or x.shape[2] != 3 or not x.shape[1]:
            first = x.dim() == 3 and x.shape[1] == 3
            hint = (
                ": x.transpose(1, 2) puts the coordinates last, and "
                "forward=lambda model, x: model(x.transpose(1, 2)) calls a network that has them "
                "before the points"
            )
            raise ValueError(
                f"a batch of clouds has the shape [B, N, 3]; got {tuple(x.shape)}"
                f"{hint if first else ''}"
            )
        return x.shape[1]

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        return values[..., None]

    def gather(self, elements: Tensor) -> Tensor:
        return elements.sum(-1)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of texts ``[B, T, E]``; the E numbers of a word embedding share one sigma (section
    3.1).

    mask    bool ``[N, T]``, or 0 and 1, a tensor, array or list: which tokens count. Special and
            padding tokens are no units. None: all count. ``ValueError`` for anything else
    """

    mask: Any = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        mask = as_tensor(self.mask, "the mask of tokens")
        if mask.dim() != 2 or not ((mask == 0) | (mask == 1)).all():
            what = described(mask) if mask.dim() else repr(self.mask)
            raise ValueError(f"the mask of tokens is bool [N, T], or 0 and 1; got {what}")
        object.__setattr__(self, "mask", mask.bool())

    def __repr__(self) -> str:
        return "Tokens()" if self.mask is None else f"Tokens({_digest(self.mask)})"

    def rows_of(self, which: slice, x: Tensor) -> "Tokens":
        return self if self.mask is None else Tokens(self.mask[which])

    def count(self, x: Tensor) -> int:
        if x.dim() != 3:
            raise ValueError(f"a batch of texts has the shape [B, T, E]; got {tuple(x.shape)}")
        if self.mask is not None and self.mask.shape != x.shape[:2]:
            raise ValueError(
                f"the mask of tokens is {list(self.mask.shape)}, the texts are {list(x.shape)}"
            )
        return x.shape[1]

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        return self._inside(values)[..., None]

    def gather(self, elements: Tensor) -> Tensor:
        return self._inside(elements.sum(-1))

    def _inside(self, values: Tensor) -> Tensor:
        """``values [B, T]`` with 0 at tokens that do not count."""
        return values if self.mask is None else values.where(self.mask.to(values.device), 0)


@dataclass(frozen=True, eq=False)
class Regions:
    """Any partition of the input's elements: superpixels, voxels, windows of a signal, patches.

    labels  integers 0 to n - 1, the unit of each element, as a tensor, array or list; negative: it
            belongs to none. They are laid over the input ``x [N, ...]`` as PyTorch broadcasts: for
            images ``[H, W]`` is shared by all samples and channels, ``[N, 1, H, W]`` has a
            partition for each sample; for sequences ``[T, 1]`` and ``[N, T, 1]``; for signals
            ``[L]`` and ``[N, 1, L]``

    n       number of units; None: the largest label + 1. A unit whose number a sample does not use
            is a unit that this sample does not have
    """

    labels: Any
    n: int | None = None

    def __post_init__(self) -> None:
        labels = as_tensor(self.labels, "labels")
        numbers = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        if numbers or not labels.numel():
            two = "; mask.long() makes two units of a mask" if labels.dtype == torch.bool else ""
            raise ValueError(
                "labels are integers, the number of each element's unit; got "
                f"{described(labels)}{two}"
            )
        whole(n=self.n)
        labels = labels.long()  # not all small types can be compared
        largest = int(labels.max())
        if largest < 0:
            raise ValueError("all labels are negative: no element belongs to any unit")
        size = largest + 1 if self.n is None else self.n
        if size < 1 or largest >= size:
            raise ValueError(f"the largest label is {largest}, the number of units n = {self.n}")
        object.__setattr__(self, "n", int(size))
        object.__setattr__(self, "labels", labels)

    def __repr__(self) -> str:
        return f"Regions({self.n} units, {_digest(self.labels)})"

    def rows_of(self, which: slice, x: Tensor) -> "Regions":
        shape = self.labels.shape
        if len(shape) == x.dim() - 1 and shape[0] == len(x) == x.shape[1] > 1:
            raise ValueError(
                f"labels {list(shape)} could be one partition for each sample or for each channel "
                f"of {list(x.shape)}: write labels[:, None] or labels[None]"
            )
        return replace(self, labels=self.labels[which]) if self._each(x) else self

    def _each(self, x: Tensor) -> bool:
        """Whether every sample of ``x`` has labels of its own."""
        return self.labels.dim() == x.dim() and len(self.labels) == len(x)

    def count(self, x: Tensor) -> int:
        if not _broadcasts(self.labels, x):
            given = list(self.labels.shape)
            remedies = {
                "labels[:, None]": self.labels[:, None],
                "labels[..., None]": self.labels[..., None],
            }
            fit = [name for name, labels in remedies.items() if _broadcasts(labels, x)]
            hint = f"; try {' or '.join(fit)}" if fit else ""
            raise ValueError(f"labels {given} do not broadcast to the input {list(x.shape)}{hint}")
        return int(self.n)

    @cached_property
    def _slots(self) -> Tensor:
        """The labels, with n for what belongs to none: one slot more, which is cut off."""
        return self.labels.where(self.labels >= 0, self.n)

    def _aligned(self, x: Tensor) -> Tensor:
        """The slots ``[B or 1, ...]`` with as many dimensions as ``x [B, ...]``, on its device."""
        missing = x.dim() - self.labels.dim()
        return self._slots.to(x.device)[(None,) * missing]

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        labels = self._aligned(x)
        slots = torch.nn.functional.pad(values, (0, 1))
        if len(labels) == 1:
            return slots.index_select(1, labels.flatten()).reshape(len(x), *labels.shape[1:])
        return slots.gather(1, labels.flatten(1)).reshape(labels.shape)

    def gather(self, elements: Tensor) -> Tensor:
        labels = self._aligned(elements)
        shared = [d for d in range(1, labels.dim()) if labels.shape[d] == 1]
        parts = elements.sum(shared).flatten(1) if shared else elements.flatten(1)
        slots = parts.new_zeros(len(parts), self.n + 1)
        if len(labels) == 1:
            slots = slots.index_add(1, labels.flatten(), parts)
        else:
            slots = slots.scatter_add(1, labels.flatten(1), parts)
        return slots[:, : self.n]


def _broadcasts(labels: Tensor, x: Tensor) -> bool:
    """Whether ``labels`` can be laid over ``x`` as PyTorch broadcasts."""
    try:
        return torch.broadcast_shapes(labels.shape, x.shape) == x.shape
    except RuntimeError:
        return False
