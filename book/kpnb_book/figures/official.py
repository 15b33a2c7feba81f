"""The chapters on the paper's own data: what they say of tables in any state, and their tables."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from kpnb.metrics import BETTER, NAMES, SYMBOL
from kpnb.stats import LEVEL
from kpnb_book.figures.plots import (
    COLOUR,
    GREY,
    draw_cells,
    draw_image,
    legend_below,
    square_panels,
    styled,
)
from kpnb_book.figures.report import HTML, decided_as
from kpnb_book.figures.sentences import words
from kpnb_book.numbers import interval, p_value, value
from kpnb_book.studies import contrasts, paper, transfer
from kpnb_book.studies.evidence import STUDIES
from kpnb_book.studies.official import DataSet
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.verdicts import BY_HEART, KIND, QUESTIONS, is_control

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
    parts, late = [], []
    for name in names:
        lacks = found[name].lacks() if name in found else "no seed"
        if lacks:
            parts.append(f"`{name}` ({lacks})")
        elif missing := found[name].roles - found[name].complete:
            late.append(f"{len(missing)} of `{name}`")
    said = []
    if parts:
        said.append(f"Stored evidence does not judge {', '.join(parts)}.")
    if late:
        said.append(f"Controls wait for their seeds ({', '.join(late)}), and are not shown before.")
    return " ".join(said) or "Stored evidence is complete."


def counted(signs: pd.DataFrame, data: DataSet) -> str:
    """What ``DataSet.signs`` says of the paper and of the study that stands for the set, in a
    sentence.
    """
    known = signs.groupby("source")[["wanted", "pairs"]].sum()
    theirs = known.loc["paper"]
    said = (
        f"Over all metrics at {data.layer} alone, the student is what the hypotheses want in "
        f"{theirs['wanted']} of {theirs['pairs']} comparisons of the paper's table"
    )
    if data.main not in known.index:
        return f"{said}."
    ours = known.loc[data.main]
    here = f"{ours['wanted']} of {ours['pairs']} here, where each comparison is that of one seed"
    return f"{said}, and in {here}."


def signs_table(signs: pd.DataFrame, data: DataSet) -> pd.DataFrame:
    """``DataSet.signs`` for a page, a column for the paper and for each study."""
    wanted = {True: "larger", False: "smaller"}
    said = signs.assign(said=[f"{row.wanted} of {row.pairs}" for row in signs.itertuples()])
    columns = {
        source: source if source == "paper" else " from ".join(data.studies[source])
        for source in dict.fromkeys(signs["source"])
    }
    cells = said.pivot(index="metric", columns="source", values="said").loc[[*NAMES], [*columns]]
    cells = cells.rename(columns=columns)
    cells.insert(0, "metric", [HTML[metric] for metric in NAMES])
    cells.insert(1, "wanted", [wanted[BETTER[metric] > 0] for metric in NAMES])
    return cells.reset_index(drop=True)


def small(data: DataSet) -> str:
    """Below which differences the rule calls one negligible, and what half of the mean difference
    in this set's own table is, in a sentence; distances, which are in proportion, are left out.
    """
    sources = {"all": paper.read(), "own": data.paper_rows()}
    kind = KIND[STUDIES[data.main].kind.__name__]
    halves = {name: paper.expected(rows).loc[kind].abs() / 2 for name, rows in sources.items()}
    plain = [metric for metric in NAMES if metric not in paper.scaled(kind)]
    listed = ", ".join(
        f"{SYMBOL[metric]} {value(halves['all'][metric], 2)} ({value(halves['own'][metric], 2)})"
        for metric in plain
    )
    return (
        "A difference is negligible by the rule when it is surely smaller than half the mean "
        f"difference of all the paper's pairs on such data: {listed}. In brackets what half would "
        "be of the pairs of this table alone."
    )


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
            "p (Holm)": p_value(row["p"]),
            "verdict": decided_as(row["verdict"], row["small"]),
        }
        for row in by_layer.to_dict("records")
    )
    if len(table) and by_layer["paper"].isna().all():
        table = table.drop(columns="paper")
    one_layer = len(table) and by_layer["layer"].nunique() == 1
    return table.drop(columns="layer") if one_layer else table


def controls_table(asked: pd.DataFrame, found: Mapping[str, Stored], study: str) -> pd.DataFrame:
    """``sentences.words`` on the paper's question, and on those of ``CONTROLS`` that are answered
    of a study; empty while none is.
    """
    known = {*asked.loc[asked["study"] == study, "question"]} if len(asked) else {}
    controls = {name: said for name, said in CONTROLS.items() if name in known}
    if not controls:
        return pd.DataFrame()
    headings = {"paper": "student - baseline"} | controls
    return words(asked, found, [study], headings).drop(columns="study")


def by_heart(found: Mapping[str, Stored], data: DataSet) -> str:
    """How well the teacher of labels in random order has learned them, and in how many epochs, in a
    sentence; "" where there is none.
    """
    known = pd.Series(dtype=float)
    if data.main in found:
        known = found[data.main].networks.get(BY_HEART, known).dropna()
    if known.empty:
        return ""
    evidence = STUDIES[data.main]
    what = "it knows its samples one by one"
    if not is_control(found[data.main].networks, QUESTIONS["labels in random order"]):
        what = "it has not learned them, and is no control"
    return (
        f"The teacher of labels in random order has {known.mean():.1%} of them right at the end: "
        f"{what}. It had {evidence.kind.MEMORISING} epochs, where the teacher of the classes has "
        f"{evidence.settings.teacher_epochs}, so the two differ in that as well."
    )


def rules_table(rows: pd.DataFrame) -> pd.DataFrame:
    """``studies.official.by_rule`` for a page: a row for each metric, a column for each rule."""
    if rows.empty:
        return rows
    cells = rows.assign(
        said=[
            f"{value(row['value'], 2, sign=True)} "
            f"({interval(row['low'], row['high'], 2, True)}) "
            f"{decided_as(row['verdict'], row['small'])}"
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


def correlated(found: pd.DataFrame) -> str:
    """``studies.official.quality_correlation`` in a sentence, with 95 % intervals over seeds."""
    known = found.dropna()
    if len(known) < 2:
        return ""
    said = {}
    for name, each in known.items():
        mean, low, high = transfer.mean_interval(each)
        said[name] = f"{mean:+.2f} ({interval(low, high, 2, True)})"
    return (
        f"Over the epochs of one training the rank correlation of the two is {said['levels']} in "
        f"the mean of {len(known)} baselines. {_with_training(known['levels'].mean())} Of their "
        f"changes from one epoch to the next it is {said['changes']}."
    )


def _with_training(mean: float) -> str:
    """What a rank correlation with accuracy over the epochs of a training says of itself."""
    if mean > 0:
        return "Whatever rises with training gives that."
    return (
        "So it falls while accuracy rises, which is not what the paper's figure shows; whatever "
        "falls with training gives that."
    )


def why(far: pd.DataFrame, changed: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Which change brings drawings nearer to photographs, in a sentence and a list; "" while the
    two are not compared.

    far       ``contrasts.of_studies`` of photographs and drawings
    changed   by what is changed in the drawings: by metric, what that adds to student minus
              baseline, and its p
    """
    if far.empty:
        return ""
    sure = far[far["p"] <= LEVEL].set_index("metric")["value"]
    if sure.empty:
        return "There is no metric in which photographs and drawings surely differ."
    listed = ", ".join(f"{SYMBOL[metric]} ({value(d, 2, sign=True)})" for metric, d in sure.items())
    lines = [f"Photographs and drawings surely differ in {listed}, photographs less drawings.", ""]
    for what, added in changed.items():
        moved = {
            metric: bool(added[metric][0] * sure[metric] > 0)
            for metric in sure.index
            if metric in added and added[metric][1] <= LEVEL
        }
        parts = [
            f"{words} in {', '.join(SYMBOL[metric] for metric in moved if moved[metric] is nearer)}"
            for nearer, words in ((True, "nearer"), (False, "farther away"))
            if nearer in moved.values()
        ]
        said = "too little moves to be told with these seeds"
        if parts:
            said = f"drawings come {' and '.join(parts)}"
        lines.append(f"- *{what}*: {said}.")
    return "\n".join(lines)


def rule_contrasts(each: Stored, titles: Mapping[str, str]) -> pd.DataFrame:
    """``contrasts.of_rule`` for a page, a row for each of the rules and metric."""
    rows = [
        {"by": title, "metric": HTML[metric], "adds": value(d.value, 2, sign=True)}
        | {"95 % interval": interval(d.low, d.high, 2, True), "p (Holm)": p_value(d.p)}
        for rule, title in titles.items()
        if rule
        for metric, d in contrasts.of_rule(each, rule).items()
    ]
    return pd.DataFrame(rows)


def study_contrasts(found: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """``contrasts.of_studies`` for a page; ``one`` and ``other`` head their columns."""
    rows = [
        {"metric": HTML[row["metric"]], one: value(row["one"], 2, sign=True)}
        | {other: value(row["other"], 2, sign=True), "apart": value(row["value"], 2, sign=True)}
        | {"95 % interval": interval(row["low"], row["high"], 2, True)}
        | {"p (Holm)": p_value(row["p"])}
        for row in found.to_dict("records")
    ]
    return pd.DataFrame(rows)
