"""Every figure of the book, one function each; nothing is computed here that a table would show.

Functions take arrays, return the matplotlib figure, and set no global state. Backgrounds are
transparent and text is mid-grey, so that a figure reads on a light page and on a dark one. Colours
are from the Okabe-Ito palette, which colour-blind readers can tell apart.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from math import cos, sin
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter
from scipy.special import stdtrit
from torch import Tensor

from kpnb.learning import d_mean_var, learning_distance
from kpnb.metrics import BETTER, NAMES, SYMBOL
from kpnb.stats import Difference

GREY = "#808080"
COLOUR = {"teacher": "#009E73", "student": "#D55E00", "baseline": "#0072B2"}
COLOUR |= {"foreground": "#E69F00", "background": "#56B4E9"}
COLOUR |= {"fine-tuned": COLOUR["student"], "from scratch": COLOUR["baseline"]}
SERIES = (
    "#CC79A7",
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#E69F00",
    "#56B4E9",
)  # lines that have no colour of their own
VERDICT = {"shows": COLOUR["teacher"], "opposite": COLOUR["student"]}
VERDICT |= {"negligible": SERIES[0], "undecided": GREY, "open": GREY}
KINDS = {  # of a cloud's points: by kind 0 to 3, on the object + 2 x knowledge point
    "background": GREY,
    "object": "#CC79A7",
    "knowledge point on the background": COLOUR["background"],
    "knowledge point on the object": COLOUR["foreground"],
}
STYLE = Path(__file__).with_suffix(".mplstyle")


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, and keep the figure from being shown twice in a notebook."""

    @wraps(plot)
    def drawn(*args: Any, **options: Any) -> Figure:
        with plt.style.context(STYLE):
            figure = plot(*args, **options)
        plt.close(figure)
        return figure

    return drawn


def square_panels(
    rows: int, titles: Sequence[str], size: float = 1.25
) -> tuple[Figure, np.ndarray]:
    """A grid of square panels without ticks, a column for each of ``titles``."""
    options = {
        "figsize": (size * len(titles), size * rows + 0.5),
        "squeeze": False,
        "layout": "compressed",
    }
    figure, axes = plt.subplots(rows, len(titles), **options)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure, axes


def legend_below(
    figure: Figure, names: Iterable[str], colours: Iterable[str], marker: str = "o"
) -> None:
    """Name the colours below the panels of a ``figure``."""
    handles = [plt.Line2D([], [], marker=marker, ls="", color=colour) for colour in colours]
    figure.legend(handles, names, loc="outside lower center", ncols=2)


def draw_image(axis: Axes, image: Tensor, fade: float = 0.0) -> None:
    """Show ``image`` uint8 ``[3, S, S]``, mixed with white by ``fade``."""
    pixels = image.permute(1, 2, 0).numpy() / 255
    axis.imshow(pixels * (1 - fade) + fade, extent=(0, 1, 1, 0), interpolation="nearest")


def draw_cells(
    axis: Axes, image: Tensor, shape: tuple[int, int], chosen: Mapping[str, Tensor]
) -> None:
    """An image and, by colour, units of its grid, bool ``[n]``."""
    draw_image(axis, image, fade=0.35)
    rows, columns = shape
    for colour, units in chosen.items():
        for unit in units.nonzero().flatten().tolist():
            corner = ((unit % columns) / columns, (unit // columns) / rows)
            axis.add_patch(
                Rectangle(corner, 1 / columns, 1 / rows, fc=colour, ec="white", lw=0.4, alpha=0.85)
            )


def by_region(points: Tensor, foreground: Tensor) -> dict[str, Tensor]:
    """Knowledge points of one image on the foreground and those on the background, by the colours
    of these; bool ``[n]`` each.
    """
    return {
        COLOUR["foreground"]: points & foreground,
        COLOUR["background"]: points & ~foreground,
    }


def _rows(axis: Axes, names: Collection[str], metric: str) -> None:
    """A panel of a metric, with the rows ``names`` from top to bottom."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.margins(x=0.2)
    axis.set_title(f"{SYMBOL[metric]}: {'more' if BETTER[metric] > 0 else 'less'} expected")


@styled
def entropy_maps(images: Tensor, entropies: Mapping[str, Tensor], shape: tuple[int, int]) -> Figure:
    """Figure 1a and 3: one row an image, one column a layer; dark units are discarded least.

    images      uint8 ``[N, 3, S, S]``
    entropies   by column title, ``[N, n]`` nats; all share one colour scale
    """
    figure, axes = square_panels(len(images), ["input", *entropies])
    values = torch.stack([*entropies.values()]).numpy()
    low, high = np.nanquantile(values, (0.01, 0.99))
    look = {"cmap": "cividis", "vmin": low, "vmax": high, "extent": (0, 1, 1, 0)}
    for image, found, (first, *others) in zip(images, values.swapaxes(0, 1), axes, strict=True):
        draw_image(first, image)
        for axis, entropy in zip(others, found, strict=True):
            shown = axis.imshow(entropy.reshape(shape), **look)
    bar = figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.02, label="entropy $H_i$ (nats)")
    bar.outline.set_visible(False)
    return figure


@styled
def coherency_maps(images: Tensor, maps: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Figure 1b: one row an image, one column a method and network; a method's columns share one
    scale per image.

    images  uint8 ``[N, 3, S, S]``; maps by method and then by network, ``[N, h, w]``
    """
    titles = [f"{method},\n{network}" for method, columns in maps.items() for network in columns]
    figure, axes = square_panels(len(images), ["input", *titles])
    for row, image in enumerate(images):
        draw_image(axes[row, 0], image)
        shown = iter(axes[row, 1:])
        for columns in maps.values():
            values = torch.stack([column[row] for column in columns.values()])
            for value in values:
                next(shown).imshow(
                    value.numpy(), cmap="cividis", vmin=values.min(), vmax=values.max()
                )
    return figure


def _mean_and_half(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the samples of ``values [M + 1, N]`` and half the width of its 95 % interval by
    Student's t, both ``[M + 1]``.

    What is NaN is left out of its epoch; one sample alone has no interval, NaN.
    """
    values = values.double()
    count = (~values.isnan()).sum(1)
    mean = values.nanmean(1)
    variance = (values - mean[:, None]).square().nansum(1) / (count - 1)
    t = torch.from_numpy(stdtrit(count.numpy() - 1, 0.975))
    return mean, t * (variance / count).sqrt()


@styled
def point_curves(counts: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Figure 7: knowledge points by epoch, a panel for each kind of point, a line for each network.

    counts  by kind and network, ``[M + 1, N]``; lines are means over the samples, bands their 95 %
            intervals by Student's t; a sample that is NaN is left out of that epoch
    """
    figure, axes = plt.subplots(1, len(counts), figsize=(3.2 * len(counts), 2.8), squeeze=False)
    for axis, (kind, networks) in zip(axes[0], counts.items(), strict=True):
        for name, values in networks.items():
            mean, half = _mean_and_half(values)
            colour = COLOUR["student" if name == next(iter(networks)) else "baseline"]
            axis.plot(mean, color=colour, lw=2.2, label=name)
            axis.fill_between(
                range(len(mean)), mean - half, mean + half, color=colour, alpha=0.2, lw=0
            )
        axis.set(xlabel="epoch", title=kind)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("knowledge points a sample")
    legend_below(figure, networks, [COLOUR["student"], COLOUR["baseline"]])
    return figure


@styled
def quality_and_accuracy(table: pd.DataFrame) -> Figure:
    """Figure 2: accuracy against lambda, a dot for each epoch of each network, large dots late.

    table   columns network ("student", ...), epoch, lambda and accuracy
    """
    figure, axis = plt.subplots(figsize=(5.5, 3.2))
    for name, frame in table.groupby("network", sort=False):
        dots = {
            "s": 10 + 90 * frame["epoch"] / table["epoch"].max(),
            "color": COLOUR[name],
            "label": name,
        }
        axis.plot(frame["lambda"], frame["accuracy"], color=COLOUR[name], lw=1, alpha=0.5)
        axis.scatter(frame["lambda"], frame["accuracy"], **dots, alpha=0.8)
    axis.set(
        xlabel=f"{SYMBOL['lambda']}, share on the object",
        ylabel="held-out accuracy",
        title="larger dot: later epoch",
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def point_maps(
    images: Tensor, points: Mapping[str, Tensor], foreground: Tensor, shape: tuple[int, int]
) -> Figure:
    """Figure 6: knowledge points of several networks (or layers, or epochs) on the same images.

    points      by column title, bool ``[N, n]``; foreground bool ``[N, n]``
    """
    figure, axes = square_panels(len(images), ["input", *points])
    for row, (image, inside) in enumerate(zip(images, foreground, strict=True)):
        draw_image(axes[row, 0], image)
        for axis, found in zip(axes[row, 1:], points.values(), strict=True):
            draw_cells(axis, image, shape, by_region(found[row], inside))
    names = ["knowledge point on the foreground", "on the background"]
    legend_below(figure, names, [COLOUR["foreground"], COLOUR["background"]], marker="s")
    return figure


def _strip(axis: Axes, gaps: Tensor, foreground: Tensor, b: float) -> None:
    """Every cell as a dot at H-bar - H, ``gaps [n]`` nats, the object's above the background's."""
    height = (torch.arange(len(gaps)) * 0.618034) % 1  # golden ratio: even, and always the same
    for row, region in enumerate(("background", "foreground")):
        inside = foreground if region == "foreground" else ~foreground
        for chosen, alpha in ((inside & (gaps > b), 1), (inside & (gaps <= b), 0.4)):
            y = row + 0.7 * (height[chosen] - 0.5)
            axis.scatter(gaps[chosen], y, s=7, color=COLOUR[region], alpha=alpha, lw=0)
    axis.axvline(b, color=GREY, lw=1.5)
    axis.text(b, 1.62, f" b = {b:.2f}", va="top")
    axis.set(xlabel="$\\bar{H} - H_i$ (nats)", xlim=(-0.6, 1.2), ylim=(-0.5, 1.65))
    axis.set_yticks([0, 1], ["background", "object"])
    axis.set_xticks([-0.5, 0, 0.5, 1])
    axis.set_box_aspect(1)
    axis.spines[["left", "bottom"]].set_visible(True)


@styled
def one_image(
    image: Tensor,
    entropy: Tensor,
    gaps: Tensor,
    points: Tensor,
    foreground: Tensor,
    shape: tuple[int, int],
    b: float,
) -> Figure:
    """An image ``[3, S, S]``, its entropy map, its knowledge points, and every cell by how far it
    lies below the background's mean, ``gaps``; ``[n]`` each, on a grid of ``shape``.
    """
    titles = ["input", "entropy (dark: kept)", "knowledge points", "right of the line: counts"]
    figure, axes = square_panels(1, titles, size=2.2)
    figure.set_size_inches(9.6, 3.5)
    draw_image(axes[0, 0], image)
    axes[0, 1].imshow(entropy.reshape(shape).numpy(), cmap="cividis", extent=(0, 1, 1, 0))
    chosen = by_region(points, foreground)
    draw_cells(axes[0, 2], image, shape, chosen)
    _strip(axes[0, 3], gaps.clamp(-0.6, 1.2), foreground, b)
    legend_below(figure, ["on the object", "on the background"], chosen, marker="s")
    return figure


@styled
def detour_maps(
    image: Tensor,
    sets: Mapping[str, Tensor],
    epochs: Sequence[int],
    shape: tuple[int, int],
) -> Figure:
    """Figure 5: foreground knowledge points after some epochs, at the end, and ever; a row for each
    network.

    sets    by row title, bool ``[M + 1, n]``; of the last column the cells that were given up again
            are grey
    """
    figure, axes = square_panels(len(sets), [*(f"epoch {epoch}" for epoch in epochs), "ever tried"])
    kept = COLOUR["foreground"]
    for row, (title, found) in zip(axes, sets.items(), strict=True):
        for axis, epoch in zip(row, epochs, strict=False):
            draw_cells(axis, image, shape, {kept: found[epoch]})
        union = found[1:].any(0)
        draw_cells(row[-1], image, shape, {kept: union & found[-1], GREY: union & ~found[-1]})
        row[-1].set_xlabel(f"kept {int((union & found[-1]).sum())} of {int(union.sum())}")
        row[0].set_ylabel(title, color=COLOUR.get(title, GREY))
    return figure


def project(points: Tensor, turn: float = 0.6, tilt: float = 0.35) -> Tensor:
    """``points [..., 3]``, upright in the third axis, as a viewer sees them: (right, up, away);
    angles in radians.
    """
    x, y, z = points.unbind(-1)
    far = x * sin(turn) + y * cos(turn)
    up, away = z * cos(tilt) + far * sin(tilt), far * cos(tilt) - z * sin(tilt)
    return torch.stack([x * cos(turn) - y * sin(turn), up, away], -1)


@styled
def cloud_maps(clouds: Tensor, kinds: Mapping[str, Tensor]) -> Figure:
    """The picture beside ``views.turnable``: one row a cloud, one column a network (or an epoch).

    clouds  ``[N, P, 3]`` in the unit sphere
    kinds   by column title, int ``[N, P]``: each point's index into ``KINDS``
    """
    figure, axes = square_panels(len(clouds), [*kinds], size=2.2)
    colours = np.array(list(KINDS.values()))
    for found, column in zip(kinds.values(), axes.T, strict=True):
        for axis, cloud, kind in zip(column, project(clouds), found, strict=True):
            order = cloud[:, 2].argsort(descending=True)  # the nearest last
            right, up, _ = cloud[order].T.numpy()
            axis.scatter(
                right, up, c=colours[kind[order]], s=np.where(kind[order] > 1, 12, 3), lw=0
            )
            axis.set(xlim=(-1, 1), ylim=(-0.8, 0.8), aspect="equal")
    legend_below(figure, KINDS, colours)
    return figure


@styled
def learning_curves(curves: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Figure 4: foreground knowledge points against the weight distance, and the share of samples
    whose richest epoch lies within a distance.

    curves  by network, the distance ``[M + 1]`` and the counts ``[M + 1, N]``; samples that never
            have a point have no richest epoch, and are left out of the right panel as of D_mean
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), gridspec_kw={"width_ratios": [3, 2]})
    for name, (distance, counts) in curves.items():
        colour, d, n = COLOUR.get(name, GREY), distance.numpy(), counts.double().numpy()
        axes[0].plot(d, n, color=colour, alpha=0.18, lw=0.8)
        axes[0].plot(d, np.nanmean(n, 1), color=colour, lw=2.2, marker="o", ms=3)
        end = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes[0].annotate(name, (d[-1], np.nanmean(n[-1])), color=colour, **end)
        richest = learning_distance(counts, distance)
        known = richest[~richest.isnan()].numpy()
        if len(known):  # a network may have no point at all
            sns.ecdfplot(x=known, ax=axes[1], color=colour, lw=2.2)
            axes[1].axvline(d_mean_var(known)[0], color=colour, lw=1, ls=":")
    axes[0].set(
        xlabel="weight distance",
        ylabel="foreground knowledge points",
        title="each sample, and their mean",
    )
    axes[1].set(
        xlabel="weight distance of the richest epoch",
        ylabel="share of samples",
        title="dotted: $D_{mean}$\nsamples without a point are left out",
    )
    return figure


@styled
def detour_histogram(rho: Mapping[str, Tensor]) -> Figure:
    """Distribution of rho over the images, by network."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    values = {name: value[~value.isnan()].numpy() for name, value in rho.items()}
    for name, value in values.items():
        if len(value):  # rho may be undefined everywhere
            colour = COLOUR.get(name, GREY)
            sns.histplot(
                value,
                bins=np.linspace(0, 1, 16),
                color=colour,
                label=name,
                alpha=0.45,
                lw=0,
                ax=axis,
            )
            axis.axvline(value.mean(), color=colour, lw=2)
    legend_below(figure, values, [COLOUR.get(name, GREY) for name in values], marker="s")
    axis.set(
        xlabel="$\\rho$: kept share of the tried knowledge points (line: mean)",
        ylabel="samples",
        xlim=(0, 1),
    )
    return figure


@styled
def six_panels(table: pd.DataFrame) -> Figure:
    """Table 5 as a picture: student and baseline at each layer, a panel for each metric, a pair for
    each seed, in the order of the table.
    """
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.2), sharey=True)
    layers = list(dict.fromkeys(table["layer"]))
    seeds = list(dict.fromkeys(table["seed"]))
    # Around the layer's tick, 0.12 apart; many come closer, so that they stay in its row.
    reach = min(0.06 * (len(seeds) - 1), 0.35)
    beside = dict(zip(seeds, np.linspace(-reach, reach, len(seeds)), strict=True))
    for axis, metric in zip(axes.flat, NAMES, strict=True):
        for (layer, seed), pair in table.groupby(["layer", "seed"], sort=False):
            y = layers.index(layer) + beside[seed]
            values = pair.set_index("network")[metric]
            axis.plot(values, [y] * len(values), color=GREY, lw=1, zorder=1)
            axis.scatter(
                values, [y] * len(values), color=[COLOUR[n] for n in values.index], s=45, zorder=2
            )
        _rows(axis, layers, metric)
        axis.locator_params(axis="x", nbins=4)
    legend_below(figure, ["student", "baseline"], [COLOUR["student"], COLOUR["baseline"]])
    return figure


def interval_bar(axis: Axes, row: float, d: Difference) -> str:
    """A difference and its interval in a row of an axis, in the colour of its verdict, which is
    returned.
    """
    colour = VERDICT.get(d.verdict, GREY)
    axis.plot([d.low, d.high], [row, row], color=colour, lw=2.5, solid_capstyle="butt")
    axis.plot([d.value], [row], "o", color=colour)
    return colour


@styled
def differences(found: Mapping[str, Mapping[str, Difference]], metrics: Sequence[str]) -> Figure:
    """Student minus baseline with its 95 % interval, a panel for each metric, a row for each layer.

    Right of the dashed line is the side the hypothesis wants for "more", left for "less"; the row
    says the verdict.
    """
    size = (2.9 * len(metrics) + 1.2, 0.45 * len(found) + 1.2)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False, sharey=True)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for row, by_metric in enumerate(found.values()):
            d = by_metric[metric]
            colour = interval_bar(axis, row, d)
            beside = {
                "xycoords": ("axes fraction", "data"),
                "va": "center",
                "annotation_clip": False,
            }
            axis.annotate(d.verdict, (1.02, row), **beside, color=colour, fontsize=9)
        axis.axvline(0, color=GREY, ls="--", lw=1)
        _rows(axis, found, metric)
    return figure


@styled
def training_curves(logs: Mapping[str, pd.DataFrame], value: str, label: str) -> Figure:
    """One value of the training logs by epoch, a line for each network."""
    figure, axis = plt.subplots(figsize=(6, 3))
    table = pd.concat(logs, names=["network"]).reset_index()
    palette = [COLOUR.get(name, colour) for name, colour in zip(logs, cycle(SERIES), strict=False)]
    look = {"hue": "network", "style": "network", "palette": palette, "lw": 2}
    sns.lineplot(table, x="epoch", y=value, **look, ax=axis)
    axis.set(ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)
    return figure


@styled
def discarding_by_layer(means: pd.DataFrame) -> Figure:
    """Mean entropy of foreground and background by layer, with the spread over images.

    means   columns layer, region ("foreground" or "background"), entropy; a row for each image
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    look = {"palette": COLOUR, "errorbar": ("pi", 50), "dodge": 0.15, "lw": 2}
    sns.pointplot(means, x="layer", y="entropy", hue="region", ax=axis, **look)
    axis.set(xlabel="", ylabel="mean entropy (nats)")
    axis.legend(title="", loc="best")
    return figure


@styled
def error_and_cost(table: pd.DataFrame) -> Figure:
    """Distance to the exact entropy against backward passes, a point for each solver but the exact
    one, and each kind of unit.

    table   columns unit, solver, error (nats), backwards
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    found, units = table[table["solver"] != "exact"], table["unit"].nunique()
    look = {"hue": "unit", "style": "solver", "palette": [*SERIES[2 : 2 + units]], "s": 80}
    sns.scatterplot(found.astype({"error": float}), x="backwards", y="error", **look, ax=axis)
    axis.set(xscale="log", yscale="log", xlabel="backward passes for one input")
    axis.set(ylabel="mean error (nats)")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
