"""What stored evidence says, in words: Markdown for the pages that quote it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import pandas as pd

from kpnb.metrics import NAMES, SYMBOL
from kpnb_book.figures.estimation import KNOWN_AS
from kpnb_book.figures.report import HTML, decided_as
from kpnb_book.numbers import interval, value
from kpnb_book.studies import paper
from kpnb_book.studies.board import Stored, learned, samples_defining, standing, waiting
from kpnb_book.studies.evidence import STUDIES
from kpnb_book.studies.verdicts import BEYOND, LEAST, QUESTIONS, SIX, SPEED, defined, is_control

WORDS = {"shows": "show", "opposite": "opposite", "negligible": "negligible"}
WORDS |= {"undecided": "undecided"}
LEFT = {"paper": "as the paper asks", "beyond place": "beyond place"}
LEFT |= {"beyond a smooth target": "against the untrained teacher's student"}
LEFT |= {"length of the path": "length of path", "share of the path": "share of path"}
"""The paper's question, and what is left against each control: headings by question."""
NOTHING_JUDGED = "No study has all its seeds yet, so nothing is judged."
TARGETS = {
    "untrained": ("smooth target", "beyond a smooth target"),
    "pretrained": ("encoder as it came", "beyond the encoder as it came"),
    "random-labels": ("labels in random order", "beyond labels in random order"),
}
"""Controls that have the student's loss and a target without the teacher's knowledge: what they
show against the baseline, and what is left against them."""
PLACED = {"beyond place": BEYOND, "length of the path": ("d_mean",), "share of the path": SPEED}
"""Questions that are asked of some of the metrics only."""


def outcome(row: Mapping[str, float]) -> str:
    """A row of ``board.board``: value, interval, verdict."""
    ends = interval(row["low"], row["high"], digits=2, sign=True)
    verdict = decided_as(row["verdict"], row.get("small", False))
    return f"{value(row['value'], 2, sign=True)} ({ends}), **{verdict}**"


def tallied(verdicts: Iterable[str]) -> str:
    """ "3 show, 0 opposite, 2 negligible, 1 undecided"."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[word]} {said}" for word, said in WORDS.items())


def answered(board: pd.DataFrame, question: str) -> pd.DataFrame:
    """The rows of one question, by study and metric."""
    if board.empty:
        return board
    return board[board["question"] == question].set_index(["study", "metric"])


def words(
    board: pd.DataFrame,
    found: Mapping[str, Stored],
    studies: Iterable[str],
    headings: Mapping[str, str] = LEFT,
) -> pd.DataFrame:
    """Value and verdict, a row for each metric of each of the ``studies``, a column for each
    question of ``headings``; where it is undecided, the number of seeds that would decide in
    brackets, and where seeds are still to be computed, how many there are. "no points": one of the
    networks has hardly any, so that not all metrics are defined.
    """
    cells = {
        (row["study"], row["metric"], row["question"]): _cell(row)
        for row in board.to_dict("records")
    }
    rows = []
    for study in studies:
        for metric in NAMES:
            row = {"study": study, "metric": HTML[metric]}
            for question, heading in headings.items():
                asked = metric in PLACED.get(question, NAMES)
                nothing = absent(found, study, question) if asked else ""
                row[heading] = cells.get((study, metric, question), nothing)
            rows.append(row)
    return pd.DataFrame(rows)


def absent(found: Mapping[str, Stored], study: str, question: str) -> str:
    """What stands in the place of an answer that is not there."""
    roles = found[study].roles if study in found else frozenset()
    undefined = "no points" if roles.issuperset(QUESTIONS[question].roles) else ""
    if study in found and not is_control(found[study].networks, QUESTIONS[question]):
        undefined = "no control"
    return waiting(found, study, question) or undefined


def scoreboard(board: pd.DataFrame, found: Mapping[str, Stored]) -> pd.DataFrame:
    """``words`` of the studies that stand for a kind of data, which is named: 24 rows, whatever
    tables there are.
    """
    kinds = {name: kind for kind, name in standing().items()}
    rows = words(board, found, kinds)
    return rows.assign(study=rows["study"].map(kinds)).rename(columns={"study": "data"})


def is_asked(found: Mapping[str, Stored], study: str, question: str) -> bool:
    """Whether the networks that a question is about are part of a study, be it there or not."""
    known = found if study in found else STUDIES
    return study in known and {*QUESTIONS[question].roles} <= {*known[study].roles}


def _cell(row: Mapping[str, Any]) -> str:
    verdict, needed = decided_as(row["verdict"], row.get("small", False)), row["seeds_needed"]
    found = f"{value(row['value'], 2, sign=True)} {verdict}"
    if row["verdict"] not in ("undecided", "open") or pd.isna(needed):
        return found
    would = f"{needed:,.0f} seeds" if isfinite(needed) else "more seeds would not help"
    return f"{found} ({would})"


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


def networks(found: Mapping[str, Stored]) -> pd.DataFrame:
    """``board.learned`` of each study, the teacher's row first where there is one, and then the
    student's; other students by what they are of.
    """
    order = ("teacher", *KNOWN_AS)
    names = {role: said.removeprefix("student ") for role, said in KNOWN_AS.items()}
    parts = []
    for name, each in found.items():
        rows = learned(each)
        rows = rows.assign(explained=[_percent(share) for share in rows["explained"]])
        shown = [role for role in order if role in rows.index or role in each.roles]
        parts.append(rows.reindex(shown).rename(names).reset_index().assign(study=name))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True).rename(columns={"feature_error": "feature error"})
    return table[["study", "network", "accuracy", "feature error", "explained", "path"]]


def _percent(share: float) -> str:
    """A share that was learned, "none" where a constant does as well; "" where it is not known."""
    if not isfinite(share):
        return ""
    return f"{100 * share:.0f} %" if round(100 * share) > 0 else "none"


def defining(found: Mapping[str, Stored]) -> pd.DataFrame:
    """``board.samples_defining`` for a page."""
    rows = [
        {"study": row["study"], "measured": row["measured"]}
        | {
            HTML[metric]: f"{row[f'{SIX[metric]}, median']:g} ({row[f'{SIX[metric]}, least']:g})"
            for metric in ("lambda", "d_mean", "rho")
        }
        for row in samples_defining(found).to_dict("records")
    ]
    return pd.DataFrame(rows)


def too_small(tables: pd.DataFrame) -> pd.DataFrame:
    """Below which a difference is too small to matter, by kind of data, and of how many pairs of
    the paper's ``tables`` that is; in percent of the baseline where it is in proportion to it.
    """
    expected, pairs = paper.expected(tables), paper.differences(tables).groupby("kind").size()
    rows = []
    for kind in standing():
        row = {"data": kind, "the paper's pairs": pairs[kind]}
        for metric in NAMES:
            half = abs(expected.loc[kind, metric]) / 2
            in_percent = metric in paper.scaled(kind)
            row[HTML[metric]] = f"{value(100 * half, 2)} %" if in_percent else value(half, 2)
        rows.append(row)
    return pd.DataFrame(rows)


def hours(found: Mapping[str, Stored]) -> pd.DataFrame:
    """What the tables took to compute: hours of training and measuring, for each study and machine.

    What one training gives to several layers counts at each of them.
    """
    parts = [
        each.networks.groupby("machine")
        .agg(networks=("seconds", "size"), hours=("seconds", lambda s: s.sum() / 3600))
        .reset_index()
        .assign(study=name)
        for name, each in found.items()
        if "machine" in each.networks
    ]
    columns = ["study", "machine", "networks", "hours"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame()


def place(board: pd.DataFrame) -> str:
    """For each study, how much of the difference in lambda is place."""
    questions = ("paper", "place", "beyond place")
    whole, elsewhere, left = (answered(board, question) for question in questions)
    lines = []
    for study in left.index.unique("study") if len(left) else ():
        at = (study, "lambda")
        if at not in whole.index:
            lines.append(_undefined(study))
            continue
        lines.append(
            f"- **{study}**: {SYMBOL['lambda']}, student minus baseline, {outcome(whole.loc[at])}; "
            f"with the masks of other samples {outcome(elsewhere.loc[at])}; left for the object "
            f"{outcome(left.loc[at])}."
        )
    return "\n".join(lines)


def smooth(board: pd.DataFrame, found: Mapping[str, Stored]) -> str:
    """For each study, what the student of an untrained teacher shows as well, and of texts that of
    the teacher's encoder as it came; or that it has hardly any points, without which other metrics
    are not defined.
    """
    lines = [
        _of_control(board, study, each, role) for role in TARGETS for study, each in found.items()
    ]
    return "\n".join(filter(None, dict.fromkeys(lines)))


def _of_control(board: pd.DataFrame, study: str, found: Stored, role: str) -> str:
    """A line on one control of one study; "" while seeds of it are to be computed."""
    question, beyond = TARGETS[role]
    if role not in found.roles or not found.finished(QUESTIONS[question]):
        return ""
    control, paper = answered(board, question), answered(board, "paper")
    if study not in paper.index.unique("study"):
        return _undefined(study)
    if not is_control(found.networks, QUESTIONS[question]):
        unfit = "the teacher of labels in random order has not learned them, and is no control"
        return f"- **{study}**: {unfit}."
    if study in control.index.unique("study"):
        rows = (paper, control, answered(board, beyond))
        shown, alike, left = (_showing(each.loc[study]) for each in rows)
        said = KNOWN_AS[role]
        lines = [
            f"- **{study}**, {said}",
            f"Student against baseline: {shown}.",
            f"{said[0].upper()}{said[1:]} against baseline: {alike}.",
            f"Student against the {said}: {left}.",
            _explained(found, role),
        ]
        return "\n  - ".join(filter(None, lines))
    points = found.samples.groupby("network")["n_fg"].mean()
    few = [name for name, column in SIX.items() if defined(found.samples, role, column) < LEAST]
    rarely = f"hardly ever defines {', '.join(SYMBOL[name] for name in few)}"
    if not few:
        rarely = "defines some metric in one seed only"
    return (
        f"- **{study}**: the {KNOWN_AS[role]} has hardly any knowledge points on the object, "
        f"{value(points[role], 3)} in a sample on average; the student has "
        f"{value(points['student'], 2)} and the baseline {value(points['baseline'], 2)}. So it "
        f"{rarely}, and nothing is compared."
    )


def _explained(found: Stored, role: str) -> str:
    """How much of their targets two students have learned; "" where the tables do not say."""
    shares = learned(found)["explained"]
    if not {"student", role} <= {*shares.dropna().index}:
        return ""
    ours, theirs = (_percent(shares[each]) for each in ("student", role))
    return (
        f"Of how its target varies between held-out samples the {KNOWN_AS[role]} has learned "
        f"{theirs}, the student {ours} of its own."
    )


def _undefined(study: str) -> str:
    """A line on a study whose student or baseline hardly ever defines a metric."""
    return (
        f"- **{study}**: student or baseline has too few knowledge points for all six metrics to "
        "be defined, and nothing is compared."
    )


def _showing(rows: pd.DataFrame) -> str:
    """Which metrics show, and which are opposite: "$\\lambda$ shows; $\\rho$ is opposite"."""
    parts = []
    for word, verb in (("shows", ("shows", "show")), ("opposite", ("is opposite", "are opposite"))):
        metrics = [SYMBOL[metric] for metric in rows.index[rows["verdict"] == word]]
        if metrics:
            parts.append(f"{', '.join(metrics)} {verb[len(metrics) > 1]}")
    return "; ".join(parts) or "nothing shows"


def path(board: pd.DataFrame, found: Mapping[str, Stored]) -> str:
    """For each study, the two factors of D_mean and D_var, and D_mean at equal rates and lengths. A
    path that is longer after its first epoch than another one as a whole has no part of that
    length.
    """
    lines = []
    for study, each in found.items():
        of_roles = learned(each)
        ratio = of_roles.loc["student", "path"] / of_roles.loc["baseline", "path"]
        both = board[board["study"] == study].set_index(["metric", "question"])
        if ("d_mean", "paper") not in both.index:
            lines.append(_undefined(study))
            continue
        # both factors are there wherever the distance is
        rows, spread = both.loc["d_mean"], both.loc["d_var"]
        distance, share = rows.loc["paper"], rows.loc["share of the path"]
        whole = rows.loc["length of the path"]
        parts = [
            f"- **{study}**, student minus baseline:",
            f"{SYMBOL['d_mean']}: {outcome(distance)}.",
            f"Length of the path: {outcome(whole)}; the student's weights travel "
            f"{value(ratio, 2)} times as far as the baseline's.",
            f"Share of the path: {outcome(share)}.",
            f"{SYMBOL['d_var']}: {outcome(spread.loc['paper'])}; of the shares alone: "
            f"{outcome(spread.loc['share of the path'])}.",
        ]
        if "equal rates" in rows.index:
            untaught = _untaught(of_roles.loc["equal-rate"])
            parts.append(
                f"At equal rates: {SYMBOL['d_mean']} {outcome(rows.loc['equal rates'])}; "
                f"{SYMBOL['d_var']} {outcome(spread.loc['equal rates'])}{untaught}."
            )
        alike = f"{SYMBOL['d_mean']} at equal length of the path"
        if "equal length of the path" in rows.index:
            parts.append(f"{alike}: {outcome(rows.loc['equal length of the path'])}.")
        elif each.samples["d_equal"].notna().any():
            parts.append(
                f"{alike}: there is nothing to compare, as one of the two paths is longer after "
                "its first epoch than the other as a whole."
            )
        parts.append(sooner(distance["verdict"], share["verdict"], whole["verdict"]))
        lines.append("\n  - ".join(parts))
    return "\n".join(lines)


def _untaught(student: Mapping[str, float]) -> str:
    """Says that a student, a row of ``board.learned``, has learned nothing; "" of others."""
    if not (student["feature_error"] >= 1 or student["explained"] <= 0):
        return ""
    return (
        ", which says nothing of distillation: at that rate the student's held-out feature error "
        f"stays at {value(student['feature_error'], 2)}, and a constant does as well"
    )


def sooner(distance: str, share: str, length: str) -> str:
    """What follows for hypothesis 2 from the verdicts on D_mean, as printed, and on its factors:
    the share of each network's own path, and the length of that path.
    """
    if share == "shows":
        alone = "By the share of its own path the student has its points sooner"
    elif share == "opposite":
        alone = "By the share of its own path the student has its points later"
    else:
        alone = "By the share of its own path the student has its points neither sooner nor later"
        alone += ", as far as these seeds tell"
    if distance not in ("shows", "opposite") or distance == share:
        return f"{alone}."
    if length != distance:
        return f"{alone}; nor does the length of the path alone explain {SYMBOL['d_mean']} here."
    if distance == "shows":
        return f"{alone}: what shows in {SYMBOL['d_mean']} is a shorter path, not sooner learning."
    return f"{alone}: what {SYMBOL['d_mean']} tells is a longer path, not later learning."
