"""What stored evidence says, in words: Markdown for the pages that quote it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import pandas as pd

from kpnb.metrics import NAMES, SYMBOL
from kpnb_book.figures.report import HTML
from kpnb_book.numbers import interval, value
from kpnb_book.studies import replication
from kpnb_book.studies.board import Stored

WORDS = {"shows": "show", "opposite": "opposite", "negligible": "negligible", "open": "open"}
LEFT = {"paper": "paper", "beyond place": "beyond place"}
LEFT |= {"beyond a smooth target": "beyond smooth", "share of the path": "share of path"}
"""The paper's question, and what is left against each control: headings by question."""


def outcome(row: Mapping[str, float]) -> str:
    """A row of ``board.board``: value, interval, verdict."""
    ends = interval(row["low"], row["high"], digits=2, sign=True)
    return f"{value(row['value'], 2, sign=True)} ({ends}), **{row['verdict']}**"


def tallied(verdicts: Iterable[str]) -> str:
    """ "3 show, 0 opposite, 2 negligible, 1 open"."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[word]} {said}" for word, said in WORDS.items())


def answered(board: pd.DataFrame, question: str) -> pd.DataFrame:
    """The rows of one question, by study and metric."""
    if board.empty:
        return board
    return board[board["question"] == question].set_index(["study", "metric"])


def words(board: pd.DataFrame) -> pd.DataFrame:
    """Value and verdict, a row for each study and metric, a column for each question of ``LEFT``;
    where it is open, the number of seeds that would decide in brackets.
    """
    if board.empty:
        return board
    rows = board[board["question"].isin(LEFT)]
    rows = rows.assign(cell=[_cell(row) for row in rows.to_dict("records")])
    table = rows.pivot(index=["study", "metric"], columns="question", values="cell")
    order = pd.MultiIndex.from_product([rows["study"].unique(), NAMES], names=["study", "metric"])
    whole = table.reindex(index=order, columns=[*LEFT]).astype(object)
    found = whole.fillna("").reset_index()
    return found.assign(metric=found["metric"].map(HTML)).rename(columns=LEFT)


def _cell(row: Mapping[str, Any]) -> str:
    found, needed = f"{value(row['value'], 2, sign=True)} {row['verdict']}", row["seeds_needed"]
    if row["verdict"] != "open" or pd.isna(needed):
        return found
    return f"{found} ({needed:,.0f})" if isfinite(needed) else f"{found} (no number)"


def total(board: pd.DataFrame, question: str) -> str:
    """The verdicts of one question over all studies, counted."""
    rows = answered(board, question)
    return tallied(rows["verdict"] if len(rows) else ())


def tallies(board: pd.DataFrame) -> str:
    """For each study, the verdicts as the paper asks, counted."""
    rows = answered(board, "paper")
    studies = rows.index.unique("study") if len(rows) else ()
    return "\n".join(f"- **{name}**: {tallied(rows.loc[name, 'verdict'])}" for name in studies)


def mixed(board: pd.DataFrame) -> str:
    """Where the mixed model's interval excludes 0 and the rule's does not."""
    if board.empty:
        return ""
    apart = (board["low_mixed"] > 0) | (board["high_mixed"] < 0)
    holds = (board["low"] <= 0) & (board["high"] >= 0)
    return (
        f"In {int((apart & holds).sum())} of {len(board)} comparisons the interval of the mixed "
        "model excludes 0, and that of the rule does not."
    )


def which(found: Mapping[str, Stored], missing: Iterable[str]) -> str:
    """The tables that there are, and those that are still to be computed."""
    lines = [
        f"- **{name}** ({each.kind}): {each.seeds} seeds, {each.samples['sample'].nunique()} "
        f"samples, {', '.join(sorted(each.samples['layer'].unique()))}"
        for name, each in found.items()
    ]
    absent = ", ".join(f"`{name}`" for name in missing)
    if absent:
        lines += ["", f"Not there yet, with two seeds at least: {absent}."]
    return "\n".join(lines)


def place(board: pd.DataFrame) -> str:
    """For each study, how much of the difference in lambda is place."""
    questions = ("paper", "place", "beyond place")
    whole, elsewhere, left = (answered(board, question) for question in questions)
    lines = []
    for study in left.index.unique("study") if len(left) else ():
        at = (study, "lambda")
        lines.append(
            f"- **{study}**: student minus baseline {outcome(whole.loc[at])}; with the masks of "
            f"other samples {outcome(elsewhere.loc[at])}; left for the object "
            f"{outcome(left.loc[at])}."
        )
    return "\n".join(lines)


def smooth(board: pd.DataFrame) -> str:
    """For each study, what the student of an untrained teacher shows as well."""
    whole, control = answered(board, "paper"), answered(board, "smooth target")
    beyond = answered(board, "beyond a smooth target")
    lines = []
    for study in control.index.unique("study") if len(control) else ():
        shown, alike, left = (_showing(each.loc[study]) for each in (whole, control, beyond))
        lines.append(
            f"- **{study}**: against the baseline, {shown} for the student, and {alike} for the "
            f"student of an untrained teacher; against the latter, {left} for the former."
        )
    return "\n".join(lines)


def _showing(rows: pd.DataFrame) -> str:
    """Which metrics show, and which are opposite: "$\\lambda$ shows, $\\rho$ is opposite"."""
    parts = []
    for word, verb in (("shows", ("shows", "show")), ("opposite", ("is opposite", "are opposite"))):
        metrics = [SYMBOL[metric] for metric in rows.index[rows["verdict"] == word]]
        if metrics:
            parts.append(f"{', '.join(metrics)} {verb[len(metrics) > 1]}")
    return ", ".join(parts) or "nothing shows"


def path(board: pd.DataFrame, found: Mapping[str, Stored]) -> str:
    """For each study, the two factors of D_mean, and D_mean at equal rates and lengths."""
    controls = {
        "share of the path": "its share of the path differs by",
        "equal rates": "at equal rates",
    }
    controls |= {"equal length of the path": "at equal length of the path"}
    lines = []
    for study, each in found.items():
        lengths = each.networks.groupby("network")["path"].mean()
        ratio = lengths["student"] / lengths["baseline"]
        rows = board[(board["study"] == study) & (board["metric"] == "d_mean")]
        rows = rows.set_index("question")
        parts = [
            f"{said} {outcome(rows.loc[name])}"
            for name, said in controls.items()
            if name in rows.index
        ]
        lines.append(
            f"- **{study}**: {SYMBOL['d_mean']} {outcome(rows.loc['paper'])}. The student's "
            f"weights travel {value(ratio, 2)} times as far as the baseline's; {'; '.join(parts)}."
        )
    return "\n".join(lines)


def rate(found: Mapping[str, float]) -> str:
    """A ``replication.share`` in words."""
    return (
        f"{found['count']} of {found['total']} ({100 * found['rate']:.1f} %; 95 % interval "
        f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %)"
    )


def errors(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """``replication.false_positives`` by study, and over all."""
    if not found:
        return ""
    kinds = ("comparisons", "families")
    pooled = {kind: replication.pooled(each[kind] for each in found.values()) for kind in kinds}
    return "\n".join(
        f"- **{name}**: of single comparisons, {rate(each['comparisons'])} are called shows or "
        f"opposite; of families of six, {rate(each['families'])} have one at least."
        for name, each in {**found, "all": pooled}.items()
    )


def coverages(found: Mapping[str, Mapping[str, float]]) -> str:
    """``replication.coverage`` by study, and over all."""
    every = found | {"all": replication.pooled(found.values())} if found else found
    return "\n".join(f"- **{name}**: {rate(each)} lie inside." for name, each in every.items())
