"""The chapter on losses: its figures, and what it says of tables in any state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kpnb.losses import LOSSES
from kpnb.metrics import BETTER, NAMES, SYMBOL
from kpnb.stats import LEVEL, Difference
from kpnb_book.figures.estimation import point_places
from kpnb_book.figures.plots import (
    COLOUR,
    GREY,
    VERDICT,
    by_region,
    draw_cells,
    draw_image,
    interval_bar,
    legend_below,
    square_panels,
    styled,
)
from kpnb_book.figures.report import decided_as, six_table
from kpnb_book.figures.views import View, sharing
from kpnb_book.numbers import interval, p_value, value
from kpnb_book.studies import transfer
from kpnb_book.studies.losses import (
    AT_LAYERS,
    LOSSES_EVIDENCE,
    ON_PHOTOGRAPHS,
    UNTRAINED,
    LossesEvidence,
    way_of,
)
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
SHARE = {"d_mean": "share of path, mean", "d_var": "share of path, var."}
"""What the shares of ``transfer.Gaps`` have by these names."""
AXIS = {"iou_teacher": "shared with the teacher"} | {name: SYMBOL[name] for name in NAMES}


def known_as(network: str) -> str:
    """What a loss is called in its paper; the name of one's own."""
    if network.startswith(UNTRAINED):
        return f"{UNTRAINED}{known_as(network.removeprefix(UNTRAINED))}"
    return KNOWN_AS.get(network, network)


# ---- figures


def _strip(axis: Axes, row: float, values: np.ndarray, ends: tuple[float, float]) -> None:
    """A dot for each seed, their mean, and its interval if there is one."""
    known = values[np.isfinite(values)]
    if not len(known):
        return
    axis.scatter(known, [row] * len(known), s=22, color=COLOUR["student"], alpha=0.5, lw=0)
    axis.plot([known.mean()], [row], "o", color=COLOUR["student"], ms=7, mec="white", zorder=3)
    if np.isfinite(ends).all():
        axis.plot(ends, [row, row], color=COLOUR["student"], lw=3, alpha=0.7)


@styled
def ranked(taught: Stored, order: pd.DataFrame) -> Figure:
    """Losses by what their students share with the teacher beyond place, beside how much accuracy
    they gain.

    order   ``transfer.ranking``, from top to bottom; intervals are drawn once all seeds are there
    """
    table, known = by_network(taught), baselines(taught)
    size = (8.2, 0.38 * len(order) + 1.5)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True)
    whole = transfer.finished(taught)
    for row, found in enumerate(order.to_dict("records")):
        each = compared(table, found["loss"])
        for axis, name in zip(axes, ("beyond", "gain"), strict=True):
            scale = 100 if name == "gain" else 1
            low, high = scale * found[f"{name}_low"], scale * found[f"{name}_high"]
            ends = (low, high) if whole else (np.nan, np.nan)
            _strip(axis, row, scale * each[name].to_numpy(), ends)
    axes[0].axvline(known["beyond"], color=COLOUR["baseline"], lw=1.5)
    axes[1].axvline(0, color=COLOUR["baseline"], lw=1.5)
    axes[0].set_yticks(range(len(order)), [known_as(name) for name in order["loss"]])
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    axes[0].set(xlabel="share of points (IoU)", title="shared with the teacher, beyond place")
    axes[1].set(xlabel="percentage points", title="accuracy, above the baseline's")
    line = plt.Line2D([], [], color=COLOUR["baseline"])
    figure.legend([line], ["the baseline"], loc="outside lower center")
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
    figure, axes = square_panels(len(points) + 1, [""] * len(images))
    figure.set_size_inches(size)
    for column, (image, inside) in enumerate(zip(images, foreground, strict=True)):
        draw_image(axes[0, column], image)
        for row, found in enumerate(points.values(), 1):
            draw_cells(axes[row, column], image, shape, by_region(found[column], inside))
    for axis, name in zip(axes[:, 0], ["input", *points], strict=True):
        axis.set_ylabel(known_as(name), rotation=0, ha="right", va="center")
    colours = [COLOUR["foreground"], COLOUR["background"]]
    legend_below(figure, ["on the object", "on the background"], colours, marker="s")
    return figure


def added(taught: Stored) -> Figure | None:
    """``transfer.added_places`` of the baseline and of every loss, with their mean number; None
    where tables have no points.
    """
    shares = transfer.added_places(taught)
    known = [name for name in ("baseline", *taught_by(taught)) if name in shares]
    if not known:
        return None
    titles = {name: f"{known_as(name)}: {value(shares[name].sum(), 2)}" for name in known}
    return point_places({titles[name]: shares[name] for name in known})


@styled
def related(taught: Stored, found: pd.DataFrame) -> Figure:
    """Accuracy against what it should go with: a mark for each student at each layer, a colour for
    each loss and another mark for each layer.

    found   ``transfer.correlations``
    """
    table = by_network(taught)
    colours = plt.get_cmap("tab10").colors
    marks = dict(zip(sorted(table["layer"].unique()), "o^sD", strict=False))
    size = (3.0 * len(found), 3.4)
    figure, axes = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], found["name"], strict=True):
        for number, loss in enumerate(taught_by(taught)):
            mine = table[table["network"] == loss]
            look = {"color": colours[number % len(colours)], "s": 26, "lw": 0, "alpha": 0.85}
            for layer, mark in marks.items():
                chosen = mine[mine["layer"] == layer]
                axis.scatter(chosen[name], 100 * chosen["accuracy"], marker=mark, **look)
        axis.set(xlabel=AXIS[name])
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set_ylabel("held-out accuracy, %")
    shown = [colours[number % len(colours)] for number in range(len(taught_by(taught)))]
    handles = [plt.Line2D([], [], marker="o", ls="", color=colour) for colour in shown]
    names = [known_as(loss) for loss in taught_by(taught)]
    if len(marks) > 1:
        handles += [plt.Line2D([], [], marker=m, ls="", color=GREY) for m in marks.values()]
        names += [f"at {layer}" for layer in marks]
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8)
    return figure


@styled
def six_by_loss(
    found: Mapping[str, Mapping[str, Difference]],
    counts: Sequence[int],
    shares: Mapping[str, Mapping[str, Difference]] | None = None,
) -> Figure:
    """Students minus another network in the six metrics, a row for each loss, coloured by the
    verdict.

    counts  rows and columns of panels
    shares  those of ``transfer.Gaps``, which have two more panels (None: no such panels)
    """
    expected = {name: "more" if BETTER[name] > 0 else "less" for name in NAMES}
    panels = [(f"{SYMBOL[name]}: {expected[name]} expected", found, name) for name in NAMES]
    panels += [(SHARE[name], shares, name) for name in SHARE if shares is not None]
    figure, axes = plt.subplots(*counts, figsize=(9, 0.26 * len(found) * 2 + 2.2), sharey=True)
    for axis, (title, of_losses, metric) in zip(axes.flat, panels, strict=True):
        for row, loss in enumerate(found):
            if loss in of_losses:
                interval_bar(axis, row, of_losses[loss][metric])
        axis.axvline(0, color=GREY, ls="--", lw=1)
        axis.set_yticks(range(len(found)), [known_as(name) for name in found])
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set_title(title)
        axis.set_xlabel("difference")
        axis.locator_params(axis="x", nbins=4)
    words = ["shows", "opposite", "negligible"]
    legend_below(figure, [*words, "not decided"], [*(VERDICT[word] for word in words), GREY])
    return figure


def explore(seen: transfer.Pictures) -> View | None:
    """The same pictures through student and teacher, with what the tables say of it; None where
    there are no pictures to show.
    """
    if not len(seen.images):
        return None
    every = [each for of_layer in seen.points.values() for each in of_layer.values()]
    networks = dict.fromkeys(name for each in every for name in each)
    last = ("teacher", "baseline")  # no students
    names = {name: known_as(name) for name in networks if name not in last}
    names["baseline"] = "baseline"
    alt = "Pictures with the knowledge points of a student and its teacher, by student and seed"
    said = in_words(seen.taught)
    return sharing(seen.images, seen.points, said, seen.foreground, seen.shape, names, alt)


# ---- words


def in_words(taught: Stored) -> dict[str, dict[int, dict[str, str]]]:
    """What each network shares with the teacher, and its accuracy beside the baseline's, in a
    sentence; by layer, seed and network.
    """
    table = by_network(taught)
    found: dict[str, dict[int, dict[str, str]]] = {}
    for (layer, seed), rows in table.set_index("network").groupby(["layer", "seed"]):
        base = 100 * rows.loc["baseline", "accuracy"]
        said = {
            name: f"{over_all(row['iou_teacher'], row['iou_place'])} "
            f"Accuracy {100 * row['accuracy']:.1f} %"
            + ("." if name == "baseline" else f", the baseline's {base:.1f} %.")
            for name, row in rows.iterrows()
        }
        found.setdefault(layer, {})[int(seed)] = said
    return found


def over_all(shared: float, by_place: float) -> str:
    """What a network shares with a teacher, in a sentence."""
    if not np.isfinite(shared):
        return "It has no points that could be shared."
    return f"Over all pictures {value(shared, 2)}, by place alone {value(by_place, 2)}."


def state(stored: Stored | None, evidence: LossesEvidence = LOSSES_EVIDENCE) -> str:
    """How far stored evidence is."""
    dataset = evidence.settings.dataset
    if stored is None:
        return f"There is no stored evidence of losses on `{dataset}` yet."
    wanted, stated = ("baseline", *evidence.losses), len(stored.stated)
    if transfer.finished(stored):
        return f"Stored evidence of {stated} seeds, and {len(wanted) - 1} losses, on `{dataset}`."
    seeds = stored.networks.groupby("network")["seed"].nunique()
    late = [name for name in wanted if seeds.get(name, 0) < stated]
    return (
        f"Stored evidence waits for seeds of {_named(late)}; nothing of it is shown before all are "
        "there."
    )


def headline(taught: Stored, order: pd.DataFrame) -> list[str]:
    """What tables with all seeds say in short, in sentences. That one student is ahead is said only
    where it can be told apart from all others (``transfer.leading``).

    order   ``transfer.ranking``
    """
    known = baselines(taught)
    return [
        f"{_first_in_sharing(taught, order)} The baseline shares {value(known['teacher'], 2)} with "
        f"the teacher ({value(known['beyond'], 2)} beyond place), and two baselines share "
        f"{value(known['each other'], 2)}.",
        _first_in_accuracy(taught, order),
        *_all_counted(taught, order),
    ]


def takeaway(taught: Stored | None, photographs: Stored | None) -> str:
    """``headline`` of both sets, as far as they have all seeds (None: not yet), and which losses do
    the same on both: Markdown, a list in a quotation.
    """
    said = headline(taught, transfer.ranking(taught)) if taught else []
    if photographs:
        there = headline(photographs, transfer.ranking(photographs))
        said += [f"On photographs: {each}" for each in there]
    if taught and photographs:
        said += on_both(taught, photographs)
    return "\n".join(f"> - {each}" for each in said) or ">"


def _first_in_sharing(taught: Stored, order: pd.DataFrame) -> str:
    """Whose student shares most with the teacher beyond place, in a sentence."""
    leading = transfer.leading(taught, "beyond")
    left_out = [*order.loc[order["with_points"] < order["seeds"], "loss"]]
    without = f" Left out, for a seed without points: {_named(left_out)}." if left_out else ""
    if not leading:
        return "No loss has points in every seed."
    first, *others = leading
    row = order.set_index("loss").loc[first]
    return (
        f"The student by {known_as(first)} shares most knowledge points with the teacher beyond "
        f"what place explains, {value(row['beyond'], 2)} of those that either has "
        f"({value(row['shared'], 2)} in all){_beside(others, len(order))}.{without}"
    )


def _first_in_accuracy(taught: Stored, order: pd.DataFrame) -> str:
    """Whose student is the most accurate, in a sentence."""
    best, *equal = transfer.leading(taught, "gain")
    gain = 100 * order.set_index("loss").loc[best, "gain"]
    said = f"{value(gain, 2, sign=True)} percentage points against the baseline"
    if gain > 0:
        beside = _beside(equal, len(order))
        return f"That by {known_as(best)} is the most accurate, {said}{beside}."
    return (
        f"None is on average more accurate than the baseline; that by {known_as(best)} is the "
        f"nearest, {said}{_beside(equal, len(order))}."
    )


def _beside(others: Sequence[str], losses: int) -> str:
    """That the first of so many ``losses`` cannot be told apart from these."""
    if not others:
        return ""
    if len(others) == losses - 1:
        return ", and cannot be told apart from any other"
    return f", and cannot be told apart from those by {_named(others)}"


def in_short(taught: Stored | None, photographs: Stored | None = None) -> str:
    """What the front page says of all losses, in HTML; of the paper's ``photographs`` too, once all
    of their seeds are there.
    """
    if taught is None or not transfer.finished(taught):
        return "<p>They are compared once all of their seeds are there.</p>"
    said = [_about("the embedded images", LOSSES_EVIDENCE, taught)]
    if photographs is not None and transfer.finished(photographs):
        said.append(_about("the paper's photographs", ON_PHOTOGRAPHS, photographs))
        said.append(" ".join(on_both(taught, photographs)))
    return "".join(f"<p>{each}</p>" for each in said)


def _about(data: str, evidence: LossesEvidence, taught: Stored) -> str:
    losses, dataset = len(taught_by(taught)), evidence.settings.dataset
    about = f"On {data} (<code>{dataset}</code>), {len(taught.stated)} seeds of each"
    return " ".join([f"{about} of {losses} losses.", *_controls_alone(taught)])


def in_short_table(taught: Stored | None) -> pd.DataFrame:
    """``judged_in_words`` of all losses for the front page, empty before all seeds are there."""
    if taught is None or not transfer.finished(taught):
        return pd.DataFrame()
    orders = {"the baseline": transfer.ranking(taught)}
    if transfer.controls_finished(taught):
        orders["its control"] = transfer.ranking(taught, against="untrained")
    return judged_in_words(orders)


def on_both(taught: Stored, photographs: Stored) -> list[str]:
    """Which losses do what is judged on both sets, and which on one of them alone; a sentence for
    each question.
    """
    orders = [transfer.ranking(each).set_index("loss") for each in (taught, photographs)]
    said = []
    for name in transfer.JUDGED:
        does, _ = COUNTED[name]
        drawings, others = (
            {loss for loss in LOSSES if order[f"{name}_said"].get(loss) == "yes"}
            for order in orders
        )
        parts = {
            "on drawings and on photographs of those by": drawings & others,
            "on drawings alone of those by": drawings - others,
            "on photographs alone of those by": others - drawings,
        }
        listed = [f"{where} {_named(sorted(found))}" for where, found in parts.items() if found]
        answer = "; ".join(listed) or "of none on either set"
        said.append(f"That students {does.format('the baseline')} is clear {answer}.")
    return said


def _all_counted(taught: Stored, order: pd.DataFrame) -> list[str]:
    """``counted`` of all that is judged: against the baseline, and against the controls once these
    have all seeds, with what becomes of these themselves: to be above what does worse than the
    baseline says little.
    """
    parts = [counted(order, name) for name in transfer.JUDGED]
    if transfer.controls_finished(taught):
        controls = transfer.ranking(taught, against="untrained")
        other = "the same student of an untrained teacher"
        parts += [counted(controls, name, other) for name in transfer.JUDGED]
    return parts + _controls_alone(taught)


def _controls_alone(taught: Stored) -> list[str]:
    """What becomes of the controls themselves, in a sentence; none before they have all seeds."""
    if not transfer.controls_finished(taught):
        return []
    alone = transfer.ranking(taught, [f"{UNTRAINED}{name}" for name in taught_by(taught)])
    less = {name: (alone[f"{name}_said"] == "no: less").sum() for name in transfer.JUDGED}
    return [
        f"Those of an untrained teacher themselves share less than the baseline for "
        f"{less['more']} of {len(alone)} losses, and are less accurate for {less['gain']}."
    ]


COUNTED = {
    "more": ("share more with the teacher, beyond place, than {}", "less"),
    "gain": ("are more accurate than {}", "less accurate"),
}
"""What ``counted`` says of ``transfer.JUDGED``, of students and another network."""


def counted(
    order: pd.DataFrame,
    name: str,
    other: str = "the baseline",
    *,
    known_as: Callable[[str], str] = known_as,
    by: str = "by ",
    of: str = "losses",
) -> str:
    """Students of how many losses are judged to do one of ``COUNTED``, and which are not; of
    ``ranking`` against the ``other`` network.

    known_as, by, of   what a page calls a student, the word before it, and what they are students
                       of
    """
    said, (does, less) = order[f"{name}_said"], COUNTED[name]
    does, every = does.format(other), len(order)
    yes, no = (
        ", ".join(map(known_as, order.loc[said == answer, "loss"]))
        for answer in ("yes", "no: less")
    )
    clear = {answer: int((said == answer).sum()) for answer in ("yes", "no: less")}
    if clear["yes"] == every:
        return f"Students of all {every} {of} {does}."
    parts = [f"That students {does} is clear for none of {every} {of}"]
    if yes:
        parts = [f"Students {by}{yes} {does} ({clear['yes']} of {every} {of})"]
    if no:
        parts.append(f"{less}: {no}")
    if 0 < sum(clear.values()) < every:
        parts.append("for the others it is not clear")
    return "; ".join(parts) + "."


def _named(losses: Sequence[str]) -> str:
    return ", ".join(known_as(loss) for loss in losses)


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
    if not found["rho"].notna().any():
        return "Too few students have points to ask whether accuracy goes with them."
    over = f"{first['trainings']} students of {first['losses']} losses"
    return (
        f"Rank correlation of accuracy with each of {len(parts)} quantities, over {over}, at each "
        f"layer and averaged: {'; '.join(parts)}."
    )


# ---- tables


def ranking_table(taught: Stored, order: pd.DataFrame) -> pd.DataFrame:
    """``transfer.ranking`` for the page; last the baseline, and what two of them share. Intervals,
    and what is judged by them, only once all seeds are there.
    """
    whole = transfer.finished(taught)
    table = pd.DataFrame({"student": order["loss"].map(known_as), "seeds": _seeds(order)})
    table["shared with the teacher"] = order["shared"]
    table["by place alone"] = order["place"]
    table["beyond place, above the baseline"] = order["more"]
    if whole:
        table["above: 95 % interval"] = _intervals(order, "more")
        table["shares more"] = order["more_said"]
    table["added on the object (cells)"], table["off it (cells)"] = (
        order["added_fg"], order["added_bg"]
    )  # fmt: skip
    table["accuracy gained, percentage points"] = 100 * order["gain"]
    if whole:
        table["gained: 95 % interval"] = _intervals(order, "gain", 100)
        table["raises it"] = order["gain_said"]
    mean = by_seed(by_network(taught), "baseline").mean()
    last = {"student": "(baseline)", "seeds": taught.networks["seed"].nunique()}
    last |= {"shared with the teacher": mean["iou_teacher"], "by place alone": mean["iou_place"]}
    last |= {"added on the object (cells)": mean["added_fg"], "off it (cells)": mean["added_bg"]}
    two = {"student": "(two baselines, with each other)", "seeds": last["seeds"]}
    two |= {"shared with the teacher": mean["iou_baseline"]}
    return pd.concat([table, pd.DataFrame([last, two])], ignore_index=True)


def _seeds(order: pd.DataFrame) -> list[str]:
    """How many seeds a mean is over, and how many have points where these are fewer."""
    return [
        f"{seeds}" if seeds == known else f"{seeds} ({known} with points)"
        for seeds, known in order[["seeds", "with_points"]].to_numpy()
    ]


def controls_table(order: pd.DataFrame, other: str = "its control") -> pd.DataFrame:
    """``transfer.ranking`` of students against the students of the untrained teacher, or of these
    against the baseline, which is the ``other`` network then; for the page.
    """
    return pd.DataFrame(
        {
            "student": order["loss"].map(known_as),
            "seeds": _seeds(order),
            f"beyond place, above {other}": order["more"],
            "95 % interval": _intervals(order, "more"),
            "shares more": order["more_said"],
            "accuracy above it, percentage points": 100 * order["gain"],
            "its 95 % interval": _intervals(order, "gain", 100),
            "is more accurate": order["gain_said"],
        }
    )


def judged_in_words(
    orders: Mapping[str, pd.DataFrame], known_as: Callable[[str], str] = known_as
) -> pd.DataFrame:
    """What is judged of students, "+0.058: yes", a row for each, against each of the others.

    orders   by the other network, ``transfer.ranking`` of the same students against it
    """
    first = next(iter(orders.values()))
    table = pd.DataFrame({"student": first["loss"].map(known_as)})
    for other, order in orders.items():
        rows = order.set_index("loss").loc[first["loss"]]
        for name, (heading, scale) in _JUDGED.items():
            table[heading.format(other)] = [
                f"{value(scale * mean, 2, sign=True)}: {said}"
                for mean, said in rows[[name, f"{name}_said"]].to_numpy()
            ]
    return table


_JUDGED = {
    "more": ("shares more than {}", 1),
    "gain": ("more accurate than {}", 100),
}
"""Headings of ``judged_in_words``, and the units of its numbers."""


def unanswered(taught: Stored, found: Mapping[str, Mapping[str, Difference]]) -> str:
    """Which losses have students here and no verdict; "" where all have one."""
    missing = [name for name in taught_by(taught) if name not in found]
    if not missing:
        return ""
    return (
        f"No answer for {_named(missing)}: a seed is missing or diverged, or one of both networks "
        "has points in too few images."
    )


def layers_table(taught: Stored) -> pd.DataFrame:
    """``transfer.at_every_layer`` for the page: a row for each student, three columns a layer."""
    found = transfer.at_every_layer(taught)
    if found.empty:
        return pd.DataFrame()
    wide = found.pivot(index="network", columns="layer", values=[*AT_LAYERS])
    names = {"n_fg": "n_fg", "n_bg": "n_bg", "iou_teacher": "shared"}  # headings, see report.show
    layers = [*dict.fromkeys(found["layer"])]
    wide = wide.loc[[*dict.fromkeys(found["network"])]]
    columns = {
        f"{layer}: {names[name]}": wide[name][layer].to_numpy()
        for layer in layers
        for name in AT_LAYERS
    }
    return pd.DataFrame({"student": [known_as(name) for name in wide.index], **columns})


def _intervals(order: pd.DataFrame, name: str, scale: float = 1) -> list[str]:
    """Those of one column of ``transfer.ranking`` in words, with the corrected p."""
    columns = [f"{name}_low", f"{name}_high", f"{name}_p"]
    return [
        f"{interval(scale * low, scale * high, 2, True)} (p\N{NO-BREAK SPACE}{p_value(p)})"
        if low == low
        else ""
        for low, high, p in order[columns].to_numpy()
    ]


def means_table(taught: Stored) -> pd.DataFrame:
    """The six metrics of every network and its share of the path, means over layers and seeds; of
    networks that all stated seeds have.
    """
    table = by_network(taught)
    order = ["baseline", *transfer.students_of(taught)]
    rows = {
        known_as(name): by_seed(table, name).mean() for name in order if name in taught.complete
    }
    named = pd.DataFrame(rows).T[[*NAMES, "share", "accuracy"]]
    named = named.rename_axis("student").reset_index()
    return named.rename(columns={"share": "share of the path"})


def means_by_layer(taught: Stored) -> pd.DataFrame:
    """``means_table`` for each of the layers that students were trained for, and what they share
    with the teacher.
    """
    columns = [*NAMES, "iou_teacher", "iou_place"]
    means = by_network(taught).groupby(["network", "layer"])[columns].mean()
    rows = [
        {"student": known_as(name), "layer": layer} | means.loc[name, layer].to_dict()
        for name in ["baseline", *transfer.students_of(taught)]
        for layer in sorted(taught.networks["layer"].unique())
        if name in taught.complete
    ]
    table = pd.DataFrame(rows)
    return table.rename(columns={"iou_teacher": "shared", "iou_place": "by place alone"})


def uncorrected(students: int) -> str:
    """What the tests in ``with_shares`` of so many students are corrected for, and what not."""
    chance = 1 - (1 - LEVEL) ** (2 * students)  # the six metrics, and the two shares
    return (
        f"Each row is corrected for its six metrics, and for its two shares of the path; not for "
        f"the number of rows. Were none of these {students} students different, up to {chance:.0%} "
        "of such tables would have a difference in them that shows, or is opposite, by chance."
    )


def with_shares(gaps: transfer.Gaps, named: Callable[[str], str] = known_as) -> pd.DataFrame:
    """``six_table`` of the six metrics, and the shares of the path beside it; ``named`` is what the
    page calls a student.
    """
    table = six_table(gaps.six, named)
    for metric, heading in SHARE.items():
        given = [gaps.shares[loss][metric] if loss in gaps.shares else None for loss in gaps.six]
        table[heading] = [
            "" if d is None else f"{value(d.value, 2, sign=True)} {decided_as(d.verdict, d.small)}"
            for d in given
        ]
    return table


def ways_table(settings: Settings) -> pd.DataFrame:
    """How the student of each loss is trained, and whether rate and weight are chosen."""
    rows = []
    for loss in LOSSES:
        way = way_of(loss)
        row = {"student": known_as(loss), "compared at": ", ".join(way.layers)}
        row |= {"weight": way.weight_of(loss), "labels": way.labels, "rate": way.lr(settings)}
        named = [f"{name}: {value}" for name, value in way.parameters.items()]
        row |= {"besides": ", ".join(named), "then a head": "yes" if way.has_head else ""}
        rows.append(row | {"chosen": "yes" if way.chosen else "still to be"})
    return pd.DataFrame(rows)


def choice(tried: pd.DataFrame) -> str:
    """How rates and weights were chosen, and for which losses that is still to be done."""
    waiting = [known_as(loss) for loss in LOSSES_EVIDENCE.losses if not way_of(loss).chosen]
    lines = []
    if len(tried):
        least = tried.groupby("loss")["accuracy"].min()
        used = tried[[_is_used(row) for row in tried.to_dict("records")]]
        lines.append(
            f"{len(tried)} students were tried for {len(least)} losses. Those with the rate and "
            f"weight that are used have a held-out accuracy of {100 * used['accuracy'].mean():.0f} "
            f"% on average, the worst of each loss {100 * least.mean():.0f} %. Some were tried "
            "before the rule was what it is now; it asks for no pair of these."
        )
    if waiting:
        lines.append(
            f"Still to be chosen: {', '.join(waiting)}. Until then these have the weights of their "
            "papers, and evidence of losses is not computed."
        )
    return "\n\n".join(lines)


def _is_used(row: Mapping[str, Any]) -> bool:
    """Whether a loss has the rate and weight that a ``row`` tells of."""
    way = way_of(row["loss"])
    return np.allclose([row["rate"], row["weight"]], [way.rate or 0, way.weight or 0])


def chosen_elsewhere(names: Sequence[str]) -> str:
    """That rates and weights were not chosen for this run, where its trainings differ in the
    settings of these ``names`` (``choose.elsewhere``) from those that they were chosen with.
    """
    if not names:
        return ""
    chosen = LOSSES_EVIDENCE.settings
    listed = ", ".join(f"`{name}`" for name in names)
    return (
        f"**Not chosen for this run.** Rates and weights were chosen with `{chosen.network}` of "
        f"width {chosen.width:g} on `{chosen.dataset}` at {chosen.size} pixels, over "
        f"{chosen.epochs} epochs. This run differs in {listed}. It has the same weights, and of "
        "its own `student_lr` the same multiples; others may suit it better."
    )
