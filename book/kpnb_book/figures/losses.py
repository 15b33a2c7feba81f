"""The chapter on losses: its figures, and what it says of tables in any state."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kpnb.losses import LOSSES
from kpnb.metrics import NAMES, SYMBOL
from kpnb.stats import Difference
from kpnb_book.figures.plots import (
    COLOUR,
    GREY,
    VERDICT,
    draw_cells,
    draw_image,
    legend_below,
    styled,
)
from kpnb_book.numbers import interval, value
from kpnb_book.studies import transfer
from kpnb_book.studies.losses import UNTRAINED, way_of
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.transfer import baselines, by_network, by_seed, compared, taught_by

KNOWN_AS = {
    "feature": "feature",
    "soft_targets": "KD",
    "hints": "hints",
    "at": "AT",
    "dkd": "DKD",
    "sp": "SP",
    "rkd": "RKD",
    "pkt": "PKT",
    "crd_in_batch": "CRD in batch",
}
AXIS = {"iou_teacher": "shared with the teacher"} | {name: SYMBOL[name] for name in NAMES}


def known_as(network: str) -> str:
    """What a loss is called in its paper; the name of one's own."""
    if network.startswith(UNTRAINED):
        return f"{UNTRAINED}{known_as(network.removeprefix(UNTRAINED))}"
    return KNOWN_AS.get(network, network)


# ---- figures


def _strip(axis: Axes, row: float, values: np.ndarray, ends: tuple[float, float]) -> None:
    """A dot for each seed, their mean, and its interval if there is one."""
    axis.scatter(values, [row] * len(values), s=22, color=COLOUR["student"], alpha=0.5, lw=0)
    axis.plot([values.mean()], [row], "o", color=COLOUR["student"], ms=7, mec="white", zorder=3)
    if np.isfinite(ends).all():
        axis.plot(ends, [row, row], color=COLOUR["student"], lw=3, alpha=0.7)


@styled
def ranked(taught: Stored, order: pd.DataFrame) -> Figure:
    """Losses by what their students share with the teacher, beside how much accuracy they gain.

    order   ``transfer.ranking``, from top to bottom; intervals are drawn once all seeds are there
    """
    table, known = by_network(taught), baselines(taught)
    size = (8.2, 0.38 * len(order) + 1.5)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True)
    whole = transfer.finished(taught)
    for row, found in enumerate(order.to_dict("records")):
        each = compared(table, found["loss"])
        for axis, name in zip(axes, ("shared", "gain"), strict=True):
            scale = 100 if name == "gain" else 1
            low, high = scale * found[f"{name}_low"], scale * found[f"{name}_high"]
            ends = (low, high) if whole else (np.nan, np.nan)
            _strip(axis, row, scale * each[name].to_numpy(), ends)
    axes[0].axvline(known["teacher"], color=COLOUR["baseline"], lw=1.5)
    axes[0].axvline(known["each other"], color=COLOUR["baseline"], lw=1.5, ls=":")
    axes[1].axvline(0, color=GREY, ls="--", lw=1)
    axes[0].set_yticks(range(len(order)), [known_as(name) for name in order["loss"]])
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    axes[0].set(xlabel="share of points (IoU)", title="points shared with the teacher")
    axes[1].set(xlabel="percentage points", title="accuracy, above the baseline's")
    lines = [plt.Line2D([], [], color=COLOUR["baseline"], ls=style) for style in ("-", ":")]
    names = ["a baseline and the teacher", "two baselines"]
    figure.legend(lines, names, loc="outside lower center", ncols=2)
    return figure


@styled
def same_pictures(
    images: Tensor, points: Mapping[str, Tensor], foreground: Tensor, shape: tuple[int, int]
) -> Figure:
    """The same pictures through all networks: a row for each network, a column for each picture.

    images      uint8 ``[K, 3, S, S]``; foreground bool ``[K, n]``
    points      by network, bool ``[K, n]``
    """
    size = (max(3.2, 1.1 * len(images) + 1.2), 1.1 * (len(points) + 1) + 0.6)
    options = {"figsize": size, "squeeze": False, "layout": "compressed"}
    figure, axes = plt.subplots(len(points) + 1, len(images), **options)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    colours = [COLOUR["foreground"], COLOUR["background"]]
    for column, (image, inside) in enumerate(zip(images, foreground, strict=True)):
        draw_image(axes[0, column], image)
        for row, found in enumerate(points.values(), 1):
            regions = (found[column] & inside, found[column] & ~inside)
            draw_cells(axes[row, column], image, shape, dict(zip(colours, regions, strict=True)))
    for axis, name in zip(axes[:, 0], ["input", *points], strict=True):
        axis.set_ylabel(known_as(name), rotation=0, ha="right", va="center")
    legend_below(figure, ["on the object", "on the background"], colours, marker="s")
    return figure


@styled
def related(taught: Stored, found: pd.DataFrame) -> Figure:
    """Accuracy against what it should go with: a dot for each student, a colour for each loss.

    found   ``transfer.correlations``
    """
    table = by_network(taught)
    colours = plt.get_cmap("tab10").colors
    size = (3.0 * len(found), 3.4)
    figure, axes = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], found["name"], strict=True):
        for number, loss in enumerate(taught_by(taught)):
            mine = table[table["network"] == loss]
            look = {"color": colours[number % len(colours)], "s": 26, "lw": 0, "alpha": 0.85}
            axis.scatter(mine[name], 100 * mine["accuracy"], **look)
        axis.set(xlabel=AXIS[name])
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set_ylabel("held-out accuracy, %")
    shown = [colours[number % len(colours)] for number in range(len(taught_by(taught)))]
    handles = [plt.Line2D([], [], marker="o", ls="", color=colour) for colour in shown]
    names = [known_as(loss) for loss in taught_by(taught)]
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8)
    return figure


@styled
def six_by_loss(found: Mapping[str, Mapping[str, Difference]], counts: Sequence[int]) -> Figure:
    """Students minus another network in the six metrics, a row for each loss, coloured by the
    verdict.

    counts  rows and columns of panels
    """
    figure, axes = plt.subplots(*counts, figsize=(9, 0.26 * len(found) * 2 + 2.2), sharey=True)
    for axis, metric in zip(axes.flat, NAMES, strict=True):
        for row, by_metric in enumerate(found.values()):
            d = by_metric[metric]
            colour = VERDICT.get(d.verdict, GREY)
            axis.plot([d.low, d.high], [row, row], color=colour, lw=2.5, solid_capstyle="butt")
            axis.plot([d.value], [row], "o", color=colour)
        axis.axvline(0, color=GREY, ls="--", lw=1)
        axis.set_yticks(range(len(found)), [known_as(name) for name in found])
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set_title(SYMBOL[metric])
        axis.locator_params(axis="x", nbins=4)
    words = ["shows", "opposite", "negligible"]
    legend_below(figure, [*words, "not decided"], [*(VERDICT[word] for word in words), GREY])
    return figure


# ---- words


def state(stored: Stored | None, epochs: int) -> str:
    """How far stored evidence is; ``epochs`` of the build's own students, where there is none."""
    if stored is None:
        return (
            "There is no stored evidence of losses yet. These are this build's own students, of "
            f"one seed and {epochs} epochs, which decide nothing."
        )
    late = min(stored.seeds(transfer.question(loss)) for loss in taught_by(stored))
    stated = len(stored.stated)
    if transfer.finished(stored):
        return f"Stored evidence of {stated} seeds, and {len(taught_by(stored))} losses:"
    losses = ", ".join(known_as(loss) for loss in taught_by(stored))
    return (
        f"Stored evidence has {late} of {stated} seeds of every loss that it knows ({losses}); the "
        "verdict waits for all. So far:"
    )


def raised(order: pd.DataFrame, finished: bool) -> str:
    """How many losses raise accuracy; once all seeds are there."""
    if not finished:
        return "Which losses raise accuracy is not judged before that."
    counts = order["raises"].value_counts()
    parts = [f"{counts.get('yes', 0)} of {len(order)} losses raise accuracy"]
    for word, said in (("no: lower", "lower it"), ("not clear", "neither clearly")):
        names = [known_as(loss) for loss in order.loc[order["raises"] == word, "loss"]]
        if names:
            parts.append(f"{said}: {', '.join(names)}")
    return "; ".join(parts) + "."


def claim(found: pd.DataFrame, finished: bool) -> str:
    """Whether accuracy goes with each of them, in a sentence; judged once all seeds are there."""
    parts = []
    for row in found.to_dict("records"):
        said = f"{AXIS[row['name']]} {value(row['rho'], 2, sign=True)}"
        if finished:
            between = value(row["between"], 2, sign=True)
            said += f" ({between} between losses, p {value(row['p'], 2)}: *{row['verdict']}*)"
        parts.append(said)
    first = found.iloc[0]
    over = f"{first['networks']} students of {first['losses']} losses"
    return f"Rank correlation of accuracy over {over}, with each: {'; '.join(parts)}."


# ---- tables


def ranking_table(taught: Stored, order: pd.DataFrame) -> pd.DataFrame:
    """``transfer.ranking`` for the page; the baseline last."""
    percent = 100 * order[["gain", "gain_low", "gain_high"]]
    ends = [interval(low, high, 2, True) for low, high in percent.iloc[:, 1:].to_numpy()]
    table = pd.DataFrame(
        {
            "student": order["loss"].map(known_as),
            "seeds": order["seeds"],
            "shared with the teacher": order["shared"],
            "by place alone": order["place"],
            "more than the baseline": order["more"],
            "points added": order["added"],
            "accuracy gained, points": percent["gain"],
        }
    )
    if transfer.finished(taught):
        table = table.assign(**{"95 % interval": ends, "raises it": order["raises"]})
    mean = by_seed(by_network(taught), "baseline").mean()
    last = {"student": "(baseline)", "seeds": taught.networks["seed"].nunique()}
    last |= {"shared with the teacher": mean["iou_teacher"], "by place alone": mean["iou_place"]}
    last |= {"points added": mean["added_fg"] + mean["added_bg"]}
    return pd.concat([table, pd.DataFrame([last])], ignore_index=True)


def means_table(taught: Stored) -> pd.DataFrame:
    """The six metrics of every network, means over layers and seeds."""
    table = by_network(taught)
    means = table.groupby("network", sort=False)[[*NAMES, "accuracy"]].mean()
    order = ["baseline", *taught_by(taught)]
    return means.loc[order].rename(index=known_as).rename_axis("student").reset_index()


def ways_table(settings: Settings) -> pd.DataFrame:
    """How the student of each loss is trained, and whether rate and weight are chosen."""
    rows = []
    for loss in LOSSES:
        way = way_of(loss)
        row = {"student": known_as(loss), "compared at": ", ".join(way.layers)}
        row |= {"weight": way.weight_of(loss), "labels": way.labels, "rate": way.lr(settings)}
        row |= {"then a head": "yes" if way.has_head else ""}
        rows.append(row | {"chosen": "yes" if way.chosen else "still to be"})
    return pd.DataFrame(rows)


def choice(tried: pd.DataFrame) -> str:
    """How rates and weights were chosen, and for which losses that is still to be done."""
    waiting = [known_as(loss) for loss in LOSSES if not way_of(loss).chosen]
    lines = []
    if len(tried):
        spread = tried.groupby("loss")["accuracy"]
        best, least = spread.max().mean(), spread.min().mean()
        lines.append(
            f"{len(tried)} students were tried for {len(spread)} losses. The best of a loss has a "
            f"held-out accuracy of {100 * best:.0f} % on average, the worst {100 * least:.0f} %."
        )
    if waiting:
        lines.append(
            f"Still to be chosen: {', '.join(waiting)}. Until then these have the weights of their "
            "papers, and evidence of losses is not computed."
        )
    return "\n\n".join(lines)
