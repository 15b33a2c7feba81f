"""Figures of stored evidence: estimation plots, where knowledge points lie, and replications.

Every metric has an axis of its own, one strip below the other, so that a figure can be read on a
telephone. Nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kpnb.metrics import BETTER, NAMES, SYMBOL
from kpnb_book.figures.plots import COLOUR, GREY, VERDICT, styled
from kpnb_book.figures.report import decided_as
from kpnb_book.numbers import interval, value
from kpnb_book.studies.replication import Beside
from kpnb_book.studies.verdicts import Estimate

WIDE = 4.6  # of a strip with its words, inches
TALL = 0.62
LOWER = 0.0  # our seeds
UPPER = 1.0  # what they are compared with


def _strips(count: int) -> tuple[Figure, list[Axes]]:
    """So many axes below each other, with nothing but their ticks."""
    size = (WIDE, TALL * count + 0.5)
    figure, axes = plt.subplots(count, 1, figsize=size, squeeze=False)
    figure.get_layout_engine().set(h_pad=0.015, hspace=0.0)
    for axis in axes[:, 0]:
        axis.set(yticks=[], ylim=(-0.6, 1.5))
        axis.spines["left"].set_visible(False)
        axis.tick_params(labelsize=9, length=3, pad=1)
        axis.locator_params(axis="x", nbins=5)
    return figure, list(axes[:, 0])


def _limits(axis: Axes, whole: Sequence[float], most: np.ndarray) -> None:
    """Show all of ``whole`` and 90 % of ``most``."""
    ends = [*whole, *(np.quantile(most, (0.05, 0.95)) if len(most) else ())]
    known = [end for end in ends if np.isfinite(end)] or [0.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 1.0
    axis.set_xlim(low - room, high + room)


def _dots(axis: Axes, values: np.ndarray, height: float, colour: str, marker: str = "o") -> None:
    """``values`` about a height, none on top of the next; what lies beyond the axis is an arrow at
    its end.
    """
    low, high = axis.get_xlim()
    heights = height + 0.16 * np.sin(2.4 * np.arange(len(values)))
    inside = (values >= low) & (values <= high)
    look = {"s": 16, "alpha": 0.55, "lw": 0, "color": colour, "clip_on": False}
    axis.scatter(values[inside], heights[inside], marker=marker, **look)
    for beyond, end, arrow in ((values < low, low, "<"), (values > high, high, ">")):
        axis.scatter(np.full(beyond.sum(), end), heights[beyond], marker=arrow, **look)


def _interval(axis: Axes, low: float, high: float, height: float, colour: str) -> None:
    look = {"color": colour, "lw": 3, "solid_capstyle": "butt", "zorder": 3}
    axis.plot([low, high], [height, height], **look)


def _named(axis: Axes, symbol: str, words: str, colour: str) -> None:
    """The metric on the left, what is found on the right."""
    beside = {"xycoords": "axes fraction", "va": "center", "annotation_clip": False}
    axis.annotate(symbol, (-0.02, 0.5), ha="right", fontsize=11, **beside)
    axis.annotate(words, (1.02, 0.5), ha="left", fontsize=9, color=colour, **beside)


def _written(found: Estimate) -> str:
    """Value, interval and verdict."""
    unit, scale = (" %", 100) if found.relative else ("", 1)
    ends = interval(scale * found.low, scale * found.high, digits=2, sign=True)
    verdict = decided_as(found.verdict, found.small)
    return f"{value(scale * found.value, 2, sign=True)}{unit}\n({ends})\n{verdict}"


def _estimate(axis: Axes, found: Estimate) -> None:
    """A strip of ``estimation``."""
    scale = 100 if found.relative else 1
    small, colour = found.delta * scale, VERDICT[found.verdict]
    low, high = found.low * scale, found.high * scale
    seeds, paper = found.seeds * scale, found.paper * scale
    _limits(axis, [*seeds, low, high, -small, small, 0], paper)
    axis.axvspan(-small, small, color=GREY, alpha=0.22, lw=0)
    axis.axvline(0, color=GREY, lw=1)
    _dots(axis, paper, UPPER, COLOUR["baseline"], "D")
    _dots(axis, seeds, LOWER, COLOUR["foreground"])
    _interval(axis, low, high, LOWER, colour)
    axis.plot([found.value * scale], [LOWER], "o", color=colour, ms=7, mec="white", zorder=4)
    wanted = "\N{RIGHTWARDS ARROW}" if BETTER[found.metric] > 0 else "\N{LEFTWARDS ARROW}"
    _named(axis, f"{SYMBOL[found.metric]} {wanted}", _written(found), colour)
    if found.relative:
        axis.xaxis.set_major_formatter("{x:g} %")


@styled
def estimation(found: Mapping[str, Sequence[Estimate]]) -> Figure:
    """Student minus baseline, a strip for each metric of each kind of data.

    found   by title, estimates of the metrics

    Upper dots are the paper's pairs, lower dots our seeds, the bar is the 95 % interval of their
    mean, and the grey band is what is too small to matter. The arrow points where the hypothesis
    wants the student to be. Distances are in proportion to the baseline.
    """
    figure, axes = _strips(sum(len(each) for each in found.values()))
    strips = iter(axes)
    for title, each in found.items():
        for number, estimate in enumerate(each):
            axis = next(strips)
            _estimate(axis, estimate)
            if not number:
                axis.set_title(title, fontsize=10, fontweight="bold", pad=3)
    names = {
        "the paper's pairs": ("D", COLOUR["baseline"]),
        "our seeds": ("o", COLOUR["foreground"]),
    }
    _legend(figure, names, {"too small to matter": GREY})
    return figure


def _legend(
    figure: Figure,
    dots: Mapping[str, tuple[str, str]],
    bands: Mapping[str, str],
    columns: int = 3,
) -> None:
    """Name markers and bands below the strips."""
    handles = [plt.Line2D([], [], marker=m, ls="", color=colour) for m, colour in dots.values()]
    handles += [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.22) for colour in bands.values()]
    options = {"loc": "outside lower center", "ncols": columns, "fontsize": 8, "handletextpad": 0.3}
    figure.legend(handles, [*dots, *bands], **options, columnspacing=1.0)


def _replication(axis: Axes, row: Mapping[str, Any], before: np.ndarray, after: np.ndarray) -> None:
    """A strip of ``replications``: the stored seeds are ``before``, the own ones ``after``."""
    _limits(axis, [*before, *after, row["low"], row["high"]], np.empty(0))
    axis.axvspan(row["low"], row["high"], color=GREY, alpha=0.22, lw=0)
    colour = COLOUR["teacher"] if row["inside"] else COLOUR["student"]
    _dots(axis, before, UPPER, COLOUR["baseline"], "D")
    _dots(axis, after, LOWER, COLOUR["foreground"])
    axis.plot([row["own"]] * 2, [LOWER - 0.4, LOWER + 0.4], color=colour, lw=3)
    ends = interval(row["low"], row["high"], digits=2, sign=True)
    where = "inside" if row["inside"] else "outside"
    words = f"{value(row['own'], 2, sign=True)}\n({ends})\n{where}"
    _named(axis, SYMBOL[row["metric"]], words, colour)


@styled
def replications(found: Mapping[str, Beside], metrics: Sequence[str] = NAMES) -> Figure:
    """Own seeds beside the stored ones, a strip for each of the ``metrics`` of each study.

    found   by title ("": none is written)

    Upper dots are the stored seeds, lower dots the own ones, the line their mean. It should lie in
    the band, where the stored seeds say that it does in 95 of 100 cases.
    """
    rows = {title: each.rows(metrics).to_dict("records") for title, each in found.items()}
    figure, axes = _strips(sum(len(each) for each in rows.values()))
    strips = iter(axes)
    for title, each in found.items():
        for number, row in enumerate(rows[title]):
            axis = next(strips)
            seeds = (table[row["metric"]].dropna().to_numpy() for table in (each.stored, each.own))
            _replication(axis, row, *seeds)
            if not number:
                axis.set_title(title, fontsize=10, fontweight="bold", pad=3)
    names = {"stored seeds": ("D", COLOUR["baseline"]), "own seeds": ("o", COLOUR["foreground"])}
    _legend(figure, names, {"expected of their mean": GREY})
    return figure


@styled
def point_places(shares: Mapping[str, np.ndarray]) -> Figure:
    """Where knowledge points lie on average, one map a network, on one colour scale; five in a row.

    shares   by network, ``[rows, columns]``: the share of images in which a cell is one
    """
    columns = min(5, len(shares))
    rows = -(-len(shares) // columns)
    size = (max(WIDE, 1.5 * columns + 0.9), 1.8 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    highest = max(float(share.max()) for share in shares.values())
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, share) in zip(axes.flat, shares.items(), strict=False):
        shown = axis.imshow(share, cmap="cividis", vmin=0, vmax=highest)
        axis.set_title(name, fontsize=9)
    label = "share of images"
    bar = figure.colorbar(shown, ax=axes, label=label, shrink=0.85, format="{x:.0%}")
    bar.outline.set_visible(False)
    return figure


OF_ROLES = {
    "student": COLOUR["student"],
    "untrained": COLOUR["teacher"],
    "equal-rate": COLOUR["foreground"],
    "baseline": COLOUR["baseline"],
}
KNOWN_AS = {
    "student": "student",
    "untrained": "student of an untrained teacher",
    "pretrained": "student of the teacher's encoder as it came",
    "random-labels": "student of a teacher with labels in random order",
    "equal-rate": "student at the baseline's rate",
    "baseline": "baseline",
}
"""What networks are called, by their role in a study."""


@styled
def metrics_of_roles(means: pd.DataFrame) -> Figure:
    """The six metrics of several kinds of network, a strip for each metric, a row of dots in it for
    each kind: every dot is a seed, a bar their mean.

    means   columns network, seed and ``NAMES``: ``board.seed_means``
    """
    figure, axes = _strips(len(NAMES))
    roles = list(dict.fromkeys(means["network"]))
    heights = np.linspace(UPPER + 0.3, LOWER - 0.3, len(roles))
    for axis, metric in zip(axes, NAMES, strict=True):
        _limits(axis, means[metric].dropna(), np.empty(0))
        for role, height in zip(roles, heights, strict=True):
            values = means.loc[means["network"] == role, metric].dropna().to_numpy()
            _dots(axis, values, height, OF_ROLES[role])
            ends = [height - 0.3, height + 0.3]
            if len(values):
                axis.plot([values.mean()] * 2, ends, color=OF_ROLES[role], lw=3)
        _named(axis, SYMBOL[metric], "", GREY)
    _legend(figure, {KNOWN_AS[role]: ("o", OF_ROLES[role]) for role in roles}, {}, columns=1)
    return figure


@styled
def factors_of_distance(means: pd.DataFrame) -> Figure:
    """D_mean of each network over the length of its whole path; every dot is a seed.

    means   columns network, seed, d_mean and path: ``board.seed_means``

    On a line from the origin the share of the path is the same.
    """
    figure, axis = plt.subplots(figsize=(WIDE, 3.2))
    longest = 1.05 * means["path"].max()
    for share in (0.25, 0.5, 0.75, 1.0):
        axis.plot([0, longest], [0, share * longest], color=GREY, lw=1, ls=":", zorder=0)
        axis.annotate(f" {100 * share:.0f} %", (longest, share * longest), color=GREY, fontsize=8)
    for role, seeds in means.groupby("network", sort=False):
        look = {"s": 22, "alpha": 0.75, "lw": 0, "color": OF_ROLES[role]}
        axis.scatter(seeds["path"], seeds["d_mean"], label=KNOWN_AS[role], **look)
    axis.set(xlim=(0, longest), ylim=(0, None), xlabel="length of the whole path")
    axis.set_ylabel(SYMBOL["d_mean"])
    figure.legend(loc="outside lower center", fontsize=8, ncols=1)
    return figure
