"""Figures of the chapters that write the method from scratch; nothing is computed here.

They take what the reader's own code has made, for one image: ``image`` uint8 ``[3, S, S]``, and one
value for each of the ``n = rows x rows`` cells, row by row.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kpnb_book.figures.plots import (
    COLOUR,
    GREY,
    SERIES,
    by_region,
    draw_cells,
    draw_image,
    square_panels,
    styled,
)

MAP = {"cmap": "cividis", "extent": (0, 1, 1, 0)}


def _shape(cells: Tensor) -> tuple[int, int]:
    side = round(cells.shape[-1] ** 0.5)
    return side, side


@styled
def cell_maps(image: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """An image and maps ``[n]`` by title, on a logarithmic colour scale of their own each."""
    figure, axes = square_panels(1, ["input", *maps], size=2.1)
    draw_image(axes[0, 0], image)
    for axis, values in zip(axes[0, 1:], maps.values(), strict=True):
        grid = values.double().reshape(_shape(values)).numpy()
        axis.imshow(grid, norm="log", **MAP)
    return figure


@styled
def directions(image: Tensor, rows: Mapping[str, Tensor]) -> Figure:
    """What directions of a feature look like in the input: by title, derivatives ``[3, S, S]``.

    Mid-grey is 0. Each picture is scaled by its own largest values.
    """
    figure, axes = square_panels(1, ["input", *rows], size=1.6)
    draw_image(axes[0, 0], image)
    for axis, row in zip(axes[0, 1:], rows.values(), strict=True):
        pixels = row.permute(1, 2, 0).numpy()
        largest = np.quantile(np.abs(pixels), 0.995)
        axis.imshow((0.5 + 0.5 * pixels / largest).clip(0, 1), interpolation="nearest")
    return figure


def _growth(axis: Axes, t: Tensor, curves: Mapping[str, Tensor], stop: float) -> None:
    """Lines of sigma over sigma_0 along the path, and where it ends."""
    for colour, (name, values) in zip(SERIES, curves.items(), strict=False):
        axis.plot(t, values, color=colour, lw=2, label=name)
    axis.axvline(stop, color=GREY, ls=":", lw=1.2)
    ratio = "$\\sigma_i\\,/\\,\\sigma_0$"
    axis.set(xlabel="time $t$", ylabel=ratio, title="the noise of five cells")
    axis.legend(title="$q_i$", loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1)


@styled
def growth(
    t: Tensor,
    curves: Mapping[str, Tensor],
    mean: Tensor,
    stop: float,
    level: float,
    dots: tuple[Tensor, Sequence[Tensor]],
) -> Figure:
    """How sigma grows along the path, and the mean entropy with it; dotted where it is ``level``.

    t       ``[T]`` times; curves by name, sigma over sigma_0 ``[T]``; mean ``[T]`` nats
    dots    times ``[K]`` and, for each curve, what a descent in small steps has there ``[K]``
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.1))
    _growth(left, t, curves, stop)
    for colour, values in zip(SERIES, dots[1], strict=False):
        left.plot(dots[0], values, "o", color=colour, ms=4)
    right.plot(t, mean, color=GREY, lw=2)
    right.axhline(level, color=GREY, ls=":", lw=1.2)
    right.axvline(stop, color=GREY, ls=":", lw=1.2)
    right.set(xlabel="time $t$", ylabel="nats", title="mean entropy of all cells")
    return figure


@styled
def sampled_path(
    t: Tensor,
    curves: Mapping[str, Tensor],
    stop: float,
    sampled: tuple[Tensor, Sequence[Tensor]],
    exact: Tensor,
    learned: Tensor,
) -> Figure:
    """Sigma learned by sampling over the path that it should take, and the entropies of all cells
    at the end.

    t, curves, stop   as for ``growth``
    sampled           times ``[K]`` and, for each curve, the learned sigma over sigma_0 ``[K]``
    exact, learned    entropies ``[n]`` nats
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.1))
    _growth(left, t, curves, stop)
    for colour, values in zip(SERIES, sampled[1], strict=False):
        left.plot(sampled[0], values, color=colour, lw=0.9, marker=".", ms=3, alpha=0.8)
    ends = [exact.min(), exact.max()]
    right.plot(ends, ends, color=GREY, lw=1, ls=":")
    right.plot(exact, learned, "o", color=SERIES[3], ms=3.5, alpha=0.7, mew=0)
    right.set(xlabel="$H_i$ by the Jacobian (nats)", ylabel="by sampling", title="every cell")
    right.set_aspect("equal")
    return figure


@styled
def threshold(image: Tensor, entropy: Tensor, foreground: Tensor, level: float, b: float) -> Figure:
    """Where the threshold cuts: all cells by their entropy, and those that lie below ``level - b``
    on the image.

    entropy, foreground   ``[n]``, nats and bool; level is the background's mean
    """
    widths = {"width_ratios": [1.9, 1]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9), gridspec_kw=widths)
    points = level - entropy > b
    height = np.random.default_rng(0).uniform(-0.32, 0.32, len(entropy))
    for row, region in enumerate(("background", "foreground")):
        inside = foreground if region == "foreground" else ~foreground
        look = {"color": COLOUR[region], "mew": 0, "ls": "", "marker": "o"}
        for chosen, size in ((inside & points, 6), (inside & ~points, 3)):
            left.plot(entropy[chosen], row + height[chosen.numpy()], ms=size, **look)
    left.axvline(level, color=GREY, ls="--", lw=1)
    left.axvline(level - b, color=GREY, lw=1.5)
    for at, name in ((level, " $\\bar H$"), (level - b, "$\\bar H - b$ ")):
        left.text(at, 1.62, name, ha="left" if at == level else "right", va="top")
    left.set(xlabel="entropy $H_i$ (nats)", ylim=(-0.5, 1.65))
    left.set_yticks([0, 1], ["background", "foreground"])
    draw_cells(right, image, _shape(entropy), by_region(points, foreground))
    right.set(xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    return figure


@styled
def sketch_error(left_out: Tensor, rank: Sequence[int], error: Tensor) -> Figure:
    """What the first directions leave out, and what that costs.

    left_out   ``[D]`` share of the energy that is not in the first 0, 1, ... directions
    rank, error   numbers of directions, and mean errors of the entropy ``[len(rank), draws]`` nats
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9))
    left.plot(left_out, color=SERIES[3], lw=2)
    left.set(xlabel="directions", title="share of the energy left out", ylim=(0, 1))
    right.plot(rank, error, ".", color=SERIES[3], alpha=0.5)
    right.plot(rank, error.mean(1), color=SERIES[3], lw=2)
    right.set(xlabel="directions taken exactly", title="mean error of $H_i$ (nats)")
    right.set_yscale("log")
    return figure


@styled
def learning_paths(curves: Mapping[str, tuple[Tensor, Tensor, int | None]]) -> Figure:
    """Figure 4 for one image: foreground knowledge points along the way that the weights travel.

    curves   by network, the weight distance ``[M + 1]``, the counts ``[M + 1]`` and the richest
             epoch, which gets a ring and a line down to its distance; None without a point
    """
    figure, axis = plt.subplots(figsize=(6, 3.2))
    for name, (distance, counts, richest) in curves.items():
        colour, d, n = COLOUR.get(name, GREY), distance.numpy(), counts.numpy()
        axis.plot(d, n, color=colour, lw=2, marker="o", ms=3.5, label=name)
        if richest is not None:
            axis.plot(d[richest], n[richest], "o", ms=12, mfc="none", mec=colour, mew=2)
            axis.vlines(d[richest], 0, n[richest], color=colour, lw=1, ls=":")
    axis.set(xlabel="weight distance", ylabel="$N^{fg}$ of this image", ylim=(0, None))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
