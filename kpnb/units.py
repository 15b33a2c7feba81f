"""Input units: the variables that are perturbed together and counted as one (sections 3.1 and 3.2).

A unit type spreads one value per unit over the elements of an input and gathers an input's elements
per unit. Anything with the three methods of ``Units`` can take the place of the image grid. A unit
without elements, such as padding, does not exist for a sample: it is neither perturbed nor counted,
and its entropy is NaN.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Units(Protocol):
    """What the entropy of any kind of input unit needs to know about the units."""

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

    The paper takes 16 x 16. A grid that does not divide the image gives cells that differ by one
    pixel in size.
    """

    rows: int = 16
    columns: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.rows, self.columns or self.rows

    def count(self, x: Tensor) -> int:
        rows, columns = self.shape
        if x.dim() != 4:
            raise ValueError(f"an image batch has the shape [B, C, H, W]; got {tuple(x.shape)}")
        if min(rows, columns) < 1 or rows > x.shape[2] or columns > x.shape[3]:
            raise ValueError(
                f"a grid of {rows} x {columns} cells does not fit an image of {x.shape[2]} x {x.shape[3]} pixels"
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
            down, right = _cells(height, rows, elements), _cells(width, columns, elements)
            return (down @ elements.contiguous().sum(1) @ right.T).flatten(-2)
        cells = (
            elements.movedim(1, -1)
            .contiguous()
            .unflatten(2, (columns, -1))
            .unflatten(1, (rows, -1))
        )
        return cells.sum(2).sum((-2, -1)).flatten(-2)

    def coverage(self, masks: Tensor) -> Tensor:
        """Share of each cell's pixels that ``masks [B, H, W]`` marks, ``[B, n]`` in [0, 1]."""
        if masks.dim() != 3:
            raise ValueError(f"masks have the shape [B, H, W]; got {tuple(masks.shape)}")
        marked = masks.to(torch.float64)[:, None]
        return (self.gather(marked) / self.gather(torch.ones_like(marked))).to(torch.float32)


@dataclass(frozen=True)
class Points:
    """The points of clouds ``[B, N, 3]``; the three coordinates of a point share one sigma (section
    4.1).
    """

    def count(self, x: Tensor) -> int:
        if x.dim() != 3 or x.shape[2] != 3 or not x.shape[1]:
            raise ValueError(f"a batch of clouds has the shape [B, N, 3]; got {tuple(x.shape)}")
        return x.shape[1]

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        return values[..., None]

    def gather(self, elements: Tensor) -> Tensor:
        return elements.sum(-1)


@dataclass(frozen=True)
class Tokens:
    """The tokens of texts ``[B, T, marks + E]``; the E numbers of a word embedding share one sigma
    (section 3.1).

    The first ``marks`` channels say what a token is and are never perturbed. Channel 0 is 1 for a
    token that counts and 0 for special and padding tokens, which are no units.
    """

    marks: int = 3

    def count(self, x: Tensor) -> int:
        if x.dim() != 3 or x.shape[2] <= self.marks:
            raise ValueError(
                f"a batch of texts has the shape [B, T, {self.marks} + E]; got {tuple(x.shape)}"
            )
        return x.shape[1]

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        embedding = torch.arange(x.shape[2], device=x.device) >= self.marks
        return torch.where(x[..., 0] > 0, values, 0)[..., None] * embedding

    def gather(self, elements: Tensor) -> Tensor:
        return elements[..., self.marks :].sum(-1)
