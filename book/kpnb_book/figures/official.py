"""The chapters on the paper's own data: what they say of tables in any state, and their tables."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from kpnb.metrics import BETTER, NAMES
from kpnb_book.figures.plots import (
    COLOUR,
    GREY,
    draw_cells,
    draw_image,
    legend_below,
    square_panels,
    styled,
)
from kpnb_book.figures.report import HTML
from kpnb_book.numbers import interval, value
from kpnb_book.studies.evidence import BY_HEART, STUDIES
from kpnb_book.studies.stored import Stored

CONTROLS = {
    "smooth target": "untrained teacher - baseline",
    "beyond a smooth target": "student - untrained teacher's",
    "encoder as it came": "encoder as it came - baseline",
    "beyond the encoder as it came": "student - encoder's as it came",
    "labels in random order": "random labels - baseline",
    "beyond labels in random order": "student - random labels'",
}
"""Headings of the questions about students that are taught nothing of the classes."""
COLOURS = (COLOUR["foreground"], COLOUR["background"], GREY)


def state(found: Mapping[str, Stored], names: Iterable[str]) -> str:
    """How far the evidence is, in a sentence for the top of a page."""
    parts = []
    for name in names:
        stated = len(STUDIES[name].seeds)
        seeds = found[name].seeds() if name in found else 0
        if seeds < stated:
            parts.append(f"`{name}` has {seeds} of {stated} seeds")
    if not parts:
        return "Stored evidence is complete."
    return f"Stored evidence is not complete: {', '.join(parts)}; nothing is judged before."


def counted(signs: pd.DataFrame) -> str:
    """What ``DataSet.signs`` says, in a sentence."""
    known = signs[["paper", "pairs", "here", "seeds"]].sum()
    said = (
        "Over all metrics, the student is what the hypotheses want in "
        f"{known['paper']} of {known['pairs']} comparisons of the paper's table"
    )
    if not known["seeds"]:
        return f"{said}."
    return f"{said}, and in {known['here']} of {known['seeds']} here, each of one layer and seed."


def signs_table(signs: pd.DataFrame) -> pd.DataFrame:
    """``DataSet.signs`` for a page."""
    wanted = {True: "larger", False: "smaller"}
    rows = [
        {
            "metric": HTML[row["metric"]],
            "wanted": wanted[BETTER[row["metric"]] > 0],
            "paper": f"{row['paper']} of {row['pairs']}",
            "here": f"{row['here']} of {row['seeds']}" if row["seeds"] else "",
        }
        for row in signs.to_dict("records")
    ]
    return pd.DataFrame(rows)


def intervals_table(by_layer: pd.DataFrame) -> pd.DataFrame:
    """``DataSet.by_layer`` for a page: the paper's difference, where it has any at these layers,
    and ours, with its 95 % interval over samples and seeds.
    """
    table = pd.DataFrame(
        {
            "study": row["study"],
            "layer": row["layer"],
            "metric": HTML[row["metric"]],
            "paper": value(row["paper"], 2, sign=True),
            "difference": value(row["value"], 2, sign=True),
            "95 % interval": interval(row["low"], row["high"], 2, True),
            "p (Holm)": value(row["p"], 2),
            "verdict": row["verdict"],
            "seeds": row["seeds"],
        }
        for row in by_layer.to_dict("records")
    )
    if len(table) and by_layer["paper"].isna().all():
        return table.drop(columns="paper")
    return table


def controls_table(asked: pd.DataFrame, study: str) -> pd.DataFrame:
    """Value and verdict of each metric for the questions of ``CONTROLS`` and the paper's; empty
    while none is answered.
    """
    if asked.empty:
        return pd.DataFrame()
    known = asked[asked["study"] == study].set_index(["question", "metric"])
    headings = {"paper": "student - baseline", **CONTROLS}
    answered = [question for question in headings if question in known.index.unique("question")]
    rows = []
    for metric in NAMES if answered else ():
        row = {"metric": HTML[metric]}
        for question in answered:
            cell = known.loc[(question, metric)]
            row[headings[question]] = f"{value(cell['value'], 2, sign=True)} {cell['verdict']}"
        rows.append(row)
    return pd.DataFrame(rows)


def by_heart(each: Stored | None) -> str:
    """How well the teachers of labels in random order have learned them, in a sentence; "" where
    there is none.
    """
    known = pd.Series(dtype=float) if each is None else each.networks.get(BY_HEART)
    if known is None or known.dropna().empty:
        return ""
    return (
        f"The teacher of labels in random order has {known.mean():.1%} of them right at the end of "
        "its training: it knows its samples one by one."
    )


def rules_table(rows: pd.DataFrame) -> pd.DataFrame:
    """``studies.official.by_rule`` for a page: a row for each metric, a column for each rule."""
    if rows.empty:
        return rows
    cells = rows.assign(
        said=[
            f"{value(row['value'], 2, sign=True)} "
            f"({interval(row['low'], row['high'], 2, True)}) {row['verdict']}"
            for row in rows.to_dict("records")
        ]
    )
    wide = cells.pivot(index="metric", columns="rule", values="said")
    wide = wide.loc[[*NAMES], [*dict.fromkeys(rows["rule"])]]
    wide.insert(0, "metric", [HTML[metric] for metric in NAMES])
    return wide.reset_index(drop=True)


@styled
def regions(
    images: Tensor, found: Mapping[str, tuple[Tensor, Tensor, Tensor]], shape: tuple[int, int]
) -> Figure:
    """What a rule calls foreground and background, on the same images.

    found   by column title: knowledge points, foreground and background, bool ``[N, n]`` each. A
            point that lies on neither is grey
    """
    figure, axes = square_panels(len(images), ["input", *found])
    for row, image in enumerate(images):
        draw_image(axes[row, 0], image)
        for axis, (points, *both) in zip(axes[row, 1:], found.values(), strict=True):
            foreground, background = (points[row] & region[row] for region in both)
            neither = points[row] & ~(foreground | background)
            chosen = (foreground, background, neither)
            draw_cells(axis, image, shape, dict(zip(COLOURS, chosen, strict=True)))
    names = ["on the object", "on the background", "on neither"]
    legend_below(figure, names, COLOURS, marker="s")
    return figure


def correlated(found: pd.Series) -> str:
    """``studies.official.quality_correlation`` in a sentence."""
    known = found.dropna()
    if known.empty:
        return ""
    positive = int((known > 0).sum())
    return (
        f"Over the epochs of one training the rank correlation of the two is {known.mean():+.2f} "
        f"in the mean of {len(known)} baselines, and positive in {positive} of them."
    )
