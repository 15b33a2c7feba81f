"""What stored evidence says, in words: Markdown for the pages that quote it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from kpnb.metrics import NAMES, SYMBOL
from kpnb_book import numbers
from kpnb_book.studies import replication
from kpnb_book.studies.board import Stored

WORDS = ("shows", "opposite", "negligible", "open")


def outcome(row: Mapping[str, float]) -> str:
    """A row of ``board.board``: value, interval, verdict."""
    interval = numbers.interval(row["low"], row["high"], digits=2, sign=True)
    return f"{_difference(row)} ({interval}), **{row['verdict']}**"


def _difference(row: Mapping[str, float]) -> str:
    return numbers.value(row["value"], digits=2, sign=True)


def tallied(verdicts: Iterable[str]) -> str:
    """ "3 shows, 0 opposite, 2 negligible, 1 open"."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[word]} {word}" for word in WORDS)


def answered(board: pd.DataFrame, question: str) -> pd.DataFrame:
    """The rows of one question, by study and metric."""
    if board.empty:
        return board
    return board[board["question"] == question].set_index(["study", "metric"])


def words(board: pd.DataFrame) -> pd.DataFrame:
    """Value and verdict, a row for each study and question, a column for each metric; where it is
    open, the number of seeds that would decide.
    """
    if board.empty:
        return board
    rows = board.assign(cell=[_cell(row) for row in board.to_dict("records")])
    keys = ["study", "question"]
    table = rows.pivot(index=keys, columns="metric", values="cell")
    order = pd.MultiIndex.from_frame(rows[keys].drop_duplicates())
    return table.reindex(index=order, columns=[*NAMES]).fillna("").reset_index()


def _cell(row: Mapping[str, Any]) -> str:
    needed = row["seeds_needed"]
    if row["verdict"] != "open" or pd.isna(needed):
        return f"{_difference(row)} {row['verdict']}"
    return f"{_difference(row)} open ({needed:,.0f} seeds)".replace("inf", "no number of")


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
            f"- **{study}**: the student shows {shown} against the baseline; the student of an "
            f"untrained teacher shows {alike}; the one shows {left} against the other."
        )
    return "\n".join(lines)


def _showing(rows: pd.DataFrame) -> str:
    """Symbols of the metrics that show."""
    metrics = rows.index[rows["verdict"] == "shows"]
    return ", ".join(SYMBOL[metric] for metric in metrics) or "nothing"


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
            f"weights travel {numbers.value(ratio, digits=2)} times as far as the baseline's; "
            f"{'; '.join(parts)}."
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
