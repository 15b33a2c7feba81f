"""The figure of the page on benchmarks: how exact an entropy is for the time that it takes.

Its points are those of ``benchmarks/frontier.py``, a row for each way to measure a layer of a
network; nothing is computed here.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kpnb_book.figures.plots import GREY, SERIES, styled

ALT = (
    "For each network two panels over CPU time on a logarithmic axis: error of H, which falls, "
    "and IoU of knowledge points, which rises to 1."
)
CAPTION = (
    "Error of H and IoU of knowledge points, both against the exact Jacobian, over the CPU time of "
    "a sample. Lines: the closed form, from few directions to many; stars: the exact Jacobian. "
    "Squares: the stochastic learner as released in 2020; diamonds: stopped when aligned."
)
LEAST = 1e-4  # nats
LEARNERS = {"learner, as released": "s", "learner, stopped when aligned": "D"}


def read(path: Path) -> pd.DataFrame:
    """The points that a file of ``benchmarks/results`` holds, below its comments."""
    return pd.read_csv(path, comment="#")


def _lines(axes: tuple[Axes, Axes], rows: pd.DataFrame) -> None:
    """A line for each layer, over all its samples, and the marks beside it."""
    whole = rows[rows["samples"] == rows.groupby("layer")["samples"].transform("max")]
    for (layer, line), colour in zip(whole.groupby("layer", sort=False), SERIES, strict=False):
        look = {"color": colour, "marker": "o", "ms": 3, "lw": 1, "label": layer}
        sketched = line[line["way"] == "closed form"]
        axes[0].plot(sketched["milliseconds"], sketched["error"], **look)
        axes[1].plot(sketched["milliseconds"], sketched["iou"], **look)
        exact = line[line["way"] == "exact Jacobian"]
        axes[1].plot(exact["milliseconds"], exact["iou"], "*", color=colour, ms=8)
        learned = rows[(rows["layer"] == layer) & rows["way"].isin(LEARNERS)]
        for row in learned.itertuples():
            about = {"color": colour, "s": 22, "zorder": 3, "marker": LEARNERS[row.way]}
            axes[0].scatter(row.milliseconds, row.error, **about)
            axes[1].scatter(row.milliseconds, row.iou, **about)


@styled
def draw(rows: pd.DataFrame) -> Figure:
    """Error of H and IoU of knowledge points against CPU time, a row of panels for each network.

    rows    columns as in ``benchmarks.frontier.Point``

    Lines are the closed form, from few directions to many. Stars are the exact Jacobian, whose
    error is 0 and cannot be drawn. Squares and diamonds are the learner, as released and stopped
    when aligned, on its few images. Errors below ``LEAST`` are rounding.
    """
    networks = list(rows.groupby(["network", "when"], sort=False))
    size = (7, 1.9 * len(networks) + 0.5)
    figure, axes = plt.subplots(len(networks), 2, figsize=size, squeeze=False, sharex="col")
    for pair, ((network, when), found) in zip(axes, networks, strict=True):
        _lines(tuple(pair), found)
        pair[0].set(xscale="log", yscale="log", ylabel="error of H, nats")
        pair[0].set_ylim(bottom=max(LEAST, pair[0].get_ylim()[0]))
        pair[1].set(xscale="log", ylabel="IoU of points", ylim=(None, 1.02))
        pair[0].set_title(f"{network}, {when}", loc="left")
        pair[1].legend(fontsize=8)
        for axis in pair:
            axis.grid(color=GREY, alpha=0.25, lw=0.5)
    for axis in axes[-1]:
        axis.set_xlabel("CPU time of a sample, ms")
    return figure
