"""Differences between differences: whether another rule, setting or data set changes what student
minus baseline is.

That one study's difference shows and another's does not is no answer: both may have the same. Here
the two are subtracted, and the interval is that of what is left.
"""

from math import hypot

import pandas as pd

from kpnb.metrics import NAMES
from kpnb.stats import LEVEL, NAN, Difference, holm_values
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.verdicts import BY_PAPER, SIX, Question, answers, decided


def of_rule(each: Stored, rule: str) -> dict[str, Difference]:
    """What another ``rule`` of what is foreground adds to student minus baseline, by metric: that
    difference by the rule, less that by the study's own regions, of the same points' entropies.
    Tests are corrected for the metrics. D_var is left out, which is not a mean over samples.

    Empty before all stated seeds are there, and where the tables lack the rule.
    """
    added = {
        f"more_{column}": each.samples[f"{rule}_{column}"] - each.samples[column]
        for column in SIX.values()
        if f"{rule}_{column}" in each.samples
    }
    columns = {metric: f"more_{column}" for metric, column in SIX.items()}
    question = Question(rule, "student", "baseline", columns, tuple(SIX), same_units=False)
    samples = each.samples.assign(**added)
    if not each.finished() or not answers(samples, question):
        return {}
    return decided(samples, question)


def of_studies(one: Stored, other: Stored) -> pd.DataFrame:
    """How far student minus baseline of two studies lies apart, a row for each metric. Their seeds
    and samples vary independently, so that the half-widths of their intervals add in squares.

    Columns: metric, one, other, value (one less the other), low, high (95 %), p (corrected for the
    metrics). Empty before all stated seeds are there, and where either lacks a metric.
    """
    sides = [each for each in (one, other) if each.finished() and answers(each.samples, BY_PAPER)]
    if len(sides) < 2:
        return pd.DataFrame()
    ours, theirs = (decided(each.samples, BY_PAPER) for each in sides)
    rows = []
    for metric in NAMES:
        pair = (ours[metric], theirs[metric])
        value, half = pair[0].value - pair[1].value, _half_width(pair, LEVEL)
        row = {"metric": metric, "one": pair[0].value, "other": pair[1].value, "value": value}
        rows.append(row | {"low": value - half, "high": value + half, "p": _p(pair, value)})
    table = pd.DataFrame(rows)
    return table.assign(p=holm_values(table["p"], int(table["p"].notna().sum())))


def _half_width(pair: tuple[Difference, Difference], level: float) -> float:
    """Half of the interval of level ``1 - level``; what does not vary adds nothing."""
    return hypot(*(d.spread.half_width(level) for d in pair if d.spread))


def _p(pair: tuple[Difference, Difference], value: float) -> float:
    """P of no difference: the level whose interval around ``value`` ends at 0."""
    from scipy import optimize

    if not any(d.spread for d in pair):
        return NAN
    if _half_width(pair, 1e-9) <= abs(value):
        return 0.0
    return float(optimize.brentq(lambda level: _half_width(pair, level) - abs(value), 1e-9, 1))
