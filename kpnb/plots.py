"""Every figure of the book, one function each; nothing is computed here that a table would show.

Functions take arrays, return the matplotlib figure, and set no global state. Backgrounds are transparent and text is
mid-grey, so that a figure reads on a light page and on a dark one. Colours are from the Okabe-Ito palette, which
colour-blind readers can tell apart.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import cos, sin
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from kpnb.metrics import BETTER, NAMES, SYMBOL
from kpnb.stats import Difference

GREY = "#808080"
COLOUR = {"teacher": "#009E73", "student": "#D55E00", "baseline": "#0072B2"}
COLOUR |= {"foreground": "#E69F00", "background": "#56B4E9"}
KINDS = {  # of a cloud's points: by kind 0 to 3, on the object + 2 x knowledge point
    "background": GREY,
    "object": "#CC79A7",
    "knowledge point on the background": COLOUR["background"],
    "knowledge point on the object": COLOUR["foreground"],
}
_STYLE: dict[str, Any] = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "axes.grid"), False),
    **dict.fromkeys(("axes.titlesize", "font.size"), 10),
    "savefig.transparent": True,
    "grid.alpha": 0.25,
    "figure.dpi": 110,
}


def _styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, and keep the figure from being shown twice in a notebook."""

    @wraps(plot)
    def drawn(*args: Any, **options: Any) -> Figure:
        with plt.rc_context(_STYLE):
            figure = plot(*args, **options)
        plt.close(figure)
        return figure

    return drawn


def _panels(rows: int, columns: int, size: float = 1.25) -> tuple[Figure, np.ndarray]:
    """A grid of square panels without ticks."""
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows + 0.3), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(wspace=0.06, hspace=0.06)
    return figure, axes


def _picture(axis: Axes, image: Tensor, fade: float = 0.0) -> None:
    """Show ``image`` uint8 ``[3, S, S]``, mixed with white by ``fade``."""
    pixels = image.permute(1, 2, 0).numpy() / 255
    axis.imshow(pixels * (1 - fade) + fade, extent=(0, 1, 1, 0), interpolation="nearest")


def _cells(axis: Axes, chosen: Tensor, shape: tuple[int, int], colour: str, alpha: float = 0.85) -> None:
    """Mark the units ``chosen``, bool ``[n]``, of a grid."""
    rows, columns = shape
    for unit in chosen.nonzero().flatten().tolist():
        corner = ((unit % columns) / columns, (unit // columns) / rows)
        look = {"facecolor": colour, "edgecolor": "white", "lw": 0.4, "alpha": alpha}
        axis.add_patch(Rectangle(corner, 1 / columns, 1 / rows, **look))
    axis.set_xlim(0, 1)
    axis.set_ylim(1, 0)


def _points(axis: Axes, image: Tensor, points: Tensor, foreground: Tensor, shape: tuple[int, int]) -> None:
    """An image with its knowledge points, foreground and background in two colours."""
    _picture(axis, image, fade=0.35)
    _cells(axis, points & foreground, shape, COLOUR["foreground"])
    _cells(axis, points & ~foreground, shape, COLOUR["background"])


def _key(figure: Figure) -> None:
    """Name the colours of the cells below the panels."""
    names = {"foreground": "knowledge point on the foreground", "background": "on the background"}
    handles = [Rectangle((0, 0), 1, 1, color=COLOUR[region]) for region in names]
    figure.legend(handles, names.values(), loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.08))


@_styled
def entropy_maps(images: Tensor, entropies: Mapping[str, Tensor], shape: tuple[int, int]) -> Figure:
    """Figure 1a and 3: one row an image, one column a layer; dark units are discarded least.

    images      uint8 ``[N, 3, S, S]``
    entropies   by column title, ``[N, n]`` nats; all share one colour scale
    """
    figure, axes = _panels(len(images), 1 + len(entropies))
    values = np.concatenate([e.numpy().ravel() for e in entropies.values()])
    low, high = np.nanquantile(values, (0.01, 0.99))
    for row, image in enumerate(images):
        _picture(axes[row, 0], image)
        for column, entropy in enumerate(entropies.values(), 1):
            shown = axes[row, column].imshow(
                entropy[row].reshape(shape).numpy(), cmap="cividis", vmin=low, vmax=high, extent=(0, 1, 1, 0)
            )
    for axis, title in zip(axes[0], ["input", *entropies], strict=True):
        axis.set_title(title)
    bar = figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.02)
    bar.set_label("entropy $H_i$ (nats)")
    bar.outline.set_visible(False)
    return figure


@_styled
def point_maps(images: Tensor, points: Mapping[str, Tensor], foreground: Tensor, shape: tuple[int, int]) -> Figure:
    """Figure 6: knowledge points of several networks (or layers, or epochs) on the same images.

    points      by column title, bool ``[N, n]``; foreground bool ``[N, n]``
    """
    figure, axes = _panels(len(images), 1 + len(points))
    for row, image in enumerate(images):
        _picture(axes[row, 0], image)
        for column, found in enumerate(points.values(), 1):
            _points(axes[row, column], image, found[row], foreground[row], shape)
    for axis, title in zip(axes[0], ["input", *points], strict=True):
        axis.set_title(title)
    _key(figure)
    return figure


@_styled
def detour_maps(
    image: Tensor, sets: Mapping[str, Tensor], epochs: Sequence[int], shape: tuple[int, int], first: int = 1
) -> Figure:
    """Figure 5: foreground knowledge points after some epochs, at the end, and ever; a row for each network.

    sets    by row title, bool ``[M + 1, n]``; of the last column the cells that were given up again are hollow
    """
    figure, axes = _panels(len(sets), len(epochs) + 1)
    for row, (title, found) in enumerate(sets.items()):
        for axis, epoch in zip(axes[row], epochs, strict=False):
            _picture(axis, image, fade=0.35)
            _cells(axis, found[epoch], shape, COLOUR["foreground"])
        union, last = found[first:].any(0), axes[row, -1]
        _picture(last, image, fade=0.35)
        _cells(last, union & found[-1], shape, COLOUR["foreground"])
        _cells(last, union & ~found[-1], shape, GREY, alpha=0.6)
        last.set_xlabel(f"kept {int((union & found[-1]).sum())} of {int(union.sum())}")
        axes[row, 0].set_ylabel(title, color=COLOUR.get(title, GREY))
    for axis, epoch in zip(axes[0], epochs, strict=False):
        axis.set_title(f"epoch {epoch}")
    axes[0, -1].set_title("ever tried")
    return figure


def project(points: Tensor, turn: float = 0.6, tilt: float = 0.35) -> Tensor:
    """``points [..., 3]``, upright in the third axis, as (right, up, away) of who looks at them; angles in radians."""
    x, y, z = points.unbind(-1)
    far = x * sin(turn) + y * cos(turn)
    up, away = z * cos(tilt) + far * sin(tilt), far * cos(tilt) - z * sin(tilt)
    return torch.stack([x * cos(turn) - y * sin(turn), up, away], -1)


@_styled
def cloud_maps(clouds: Tensor, kinds: Mapping[str, Tensor], names: Sequence[str] = tuple(KINDS)) -> Figure:
    """The picture beside ``views.turnable``: one row a cloud, one column a network (or an epoch).

    clouds  ``[N, P, 3]`` in the unit sphere
    kinds   by column title, int ``[N, P]``: each point's index into ``names``, whose colours are those of ``KINDS``
    """
    figure, axes = _panels(len(clouds), len(kinds), size=2.2)
    colours = np.array(list(KINDS.values()))
    for (title, found), column in zip(kinds.items(), axes.T, strict=True):
        column[0].set_title(title)
        for axis, cloud, kind in zip(column, project(clouds), found, strict=True):
            order = cloud[:, 2].argsort(descending=True)  # the nearest last
            right, up, _ = cloud[order].T.numpy()
            axis.scatter(right, up, c=colours[kind[order]], s=np.where(kind[order] > 1, 12, 3), lw=0)
            axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    handles = [plt.Line2D([], [], marker="o", ls="", color=colour) for colour in colours]
    figure.legend(handles, names, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.08))
    return figure


@_styled
def learning_curves(curves: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Figure 4: foreground knowledge points against the weight distance; a dot marks where each image has most.

    curves  by network, the distance ``[M + 1]`` and the counts ``[M + 1, N]``
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), gridspec_kw={"width_ratios": [3, 2]})
    for name, (distance, counts) in curves.items():
        colour, d, n = COLOUR.get(name, GREY), distance.numpy(), counts.double().numpy()
        axes[0].plot(d, n, color=colour, alpha=0.10, lw=0.8)
        axes[0].plot(d, np.nanmean(n, 1), color=colour, lw=2.2, marker="o", ms=3)
        end = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes[0].annotate(name, (d[-1], np.nanmean(n[-1])), color=colour, **end)
        peak = d[1:][np.nan_to_num(n[1:], nan=-1).argmax(0)]
        sns.ecdfplot(x=peak, ax=axes[1], color=colour, lw=2.2)
        axes[1].axvline(peak.mean(), color=colour, lw=1, ls=":")
    axes[0].set(xlabel="weight distance", ylabel="foreground knowledge points", title="each sample, and their mean")
    axes[1].set(xlabel="weight distance of the richest epoch", ylabel="share of samples", title="dotted: $D_{mean}$")
    figure.tight_layout()
    return figure


@_styled
def detour_histogram(rho: Mapping[str, Tensor]) -> Figure:
    """Distribution of rho over the images, by network."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    for name, values in rho.items():
        known = values[~values.isnan()].numpy()
        sns.histplot(
            x=known, bins=np.linspace(0, 1, 16), ax=axis, color=COLOUR.get(name, GREY), alpha=0.45, label=name, lw=0
        )
        axis.axvline(known.mean(), color=COLOUR.get(name, GREY), lw=2)
    axis.set(xlabel="$\\rho$: kept share of the tried knowledge points (line: mean)", ylabel="samples", xlim=(0, 1))
    axis.legend()
    figure.tight_layout()
    return figure


@_styled
def six_panels(table: pd.DataFrame) -> Figure:
    """Table 5 as a picture: student and baseline at each layer, a panel for each metric, a pair for each seed."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.2))
    layers = list(dict.fromkeys(table["layer"]))
    for axis, metric in zip(axes.flat, NAMES, strict=True):
        for (layer, seed), pair in table.groupby(["layer", "seed"], sort=False):
            y = layers.index(layer) + 0.12 * seed
            values = pair.set_index("network")[metric]
            axis.plot(values, [y] * len(values), color=GREY, lw=1, zorder=1)
            axis.scatter(values, [y] * len(values), color=[COLOUR[n] for n in values.index], s=45, zorder=2)
        axis.set_yticks(range(len(layers)), layers)
        axis.set_ylim(len(layers) - 0.4, -0.6)
        axis.margins(x=0.15)
        axis.set_title(f"{SYMBOL[metric]}  ({'more' if BETTER[metric] > 0 else 'less'} expected of the student)")
    handles = [plt.Line2D([], [], marker="o", ls="", color=COLOUR[n]) for n in ("student", "baseline")]
    figure.tight_layout()
    figure.legend(handles, ["student", "baseline"], loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.02))
    return figure


@_styled
def differences(found: Mapping[str, Mapping[str, Difference]], metrics: Sequence[str]) -> Figure:
    """Student minus baseline with its 95 % interval, a panel for each metric, a row for each layer.

    Right of the dashed line is the side the hypothesis wants for "more", left for "less"; the row says the verdict.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(3 * len(metrics), 0.55 * len(found) + 1.2), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for row, by_metric in enumerate(found.values()):
            d = by_metric[metric]
            colour = {"shows": COLOUR["teacher"], "opposite": COLOUR["student"], "open": GREY}[d.verdict]
            axis.plot([d.low, d.high], [row, row], color=colour, lw=2.5, solid_capstyle="butt")
            axis.plot([d.value], [row], "o", color=colour)
            axis.annotate(d.verdict, (d.high, row), xytext=(5, 6), textcoords="offset points", color=colour, fontsize=9)
        axis.axvline(0, color=GREY, ls="--", lw=1)
        axis.set_yticks(range(len(found)), found.keys())
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.margins(x=0.2)
        axis.set_title(f"{SYMBOL[metric]}: {'more' if BETTER[metric] > 0 else 'less'} expected")
    figure.tight_layout()
    return figure


@_styled
def training_curves(logs: Mapping[str, pd.DataFrame], value: str, label: str) -> Figure:
    """One value of the training logs by epoch, a line for each network, named at its end."""
    figure, axis = plt.subplots(figsize=(6, 3))
    for (name, log), colour in zip(logs.items(), sns.color_palette("colorblind", len(logs)), strict=True):
        known = log.dropna(subset=[value])
        axis.plot(known["epoch"], known[value], color=colour, lw=2, label=name)
    axis.set(xlabel="epoch", ylabel=label)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


@_styled
def discarding_by_layer(means: pd.DataFrame) -> Figure:
    """Mean entropy of foreground and background by layer, with the spread over images.

    means   columns layer, region ("foreground" or "background"), image, entropy
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    sns.pointplot(
        means, x="layer", y="entropy", hue="region", palette=COLOUR, errorbar=("pi", 50), dodge=0.15, ax=axis, lw=2
    )
    axis.set(xlabel="", ylabel="mean entropy (nats)")
    axis.legend(title="", loc="best")
    figure.tight_layout()
    return figure
