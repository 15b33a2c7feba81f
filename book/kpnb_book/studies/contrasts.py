"""Differences between differences: whether another rule, setting or data set changes what student
minus baseline is.

That one study's difference shows and another's does not is no answer: both may have the same. Here
the two are subtracted, and the interval is that of what is left.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from kpnb.metrics import NAMES
from kpnb.stats import LEVEL, NAN, Difference, holm_values
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.verdicts import BY_PAPER, SIX, Question, answers, by_seed, decided


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


def of_studies(one: Stored, other: Stored, paired: bool = False) -> pd.DataFrame:
    """How far student minus baseline of two studies lies apart, a row for each metric, from the
    means of their seeds; ``paired``: from seeds that both have, of which each starts from the same
    weights in both.

    Columns: metric, one, other, value (one less the other), low, high (95 %, by Welch's t or the
    paired one), p (corrected for the metrics), seeds (of one, of the other). Empty before all
    stated seeds are there, and where either lacks a metric.
    """
    sides = [each for each in (one, other) if each.finished() and answers(each.samples, BY_PAPER)]
    if len(sides) < 2:
        return pd.DataFrame()
    ours, theirs = (by_seed(each.samples) for each in sides)
    if paired:
        common = ours.index.intersection(theirs.index)
        ours, theirs = ours.loc[common], theirs.loc[common]
    rows = [{"metric": metric, **_apart(ours[metric], theirs[metric], paired)} for metric in NAMES]
    table = pd.DataFrame(rows)
    return table.assign(p=holm_values(table["p"], int(table["p"].notna().sum())))


def _apart(ours: pd.Series, theirs: pd.Series, paired: bool) -> Mapping[str, Any]:
    """The row of one metric, p not corrected."""
    if paired:
        both = pd.concat([ours, theirs], axis="columns", keys=["ours", "theirs"]).dropna()
        ours, theirs = both["ours"], both["theirs"]
        parts = [both.eval("ours - theirs")]
    else:
        ours, theirs = ours.dropna(), theirs.dropna()
        parts = [ours, theirs]
    value = ours.mean() - theirs.mean()
    row = {"one": ours.mean(), "other": theirs.mean(), "value": value}
    return row | {"seeds": (len(ours), len(theirs)), **_sure(value, parts)}


def _sure(value: float, parts: list[pd.Series]) -> dict[str, float]:
    """Interval and p of a mean, or of a difference of two, whose values are in ``parts``: their
    variances add up, with Welch's degrees of freedom.
    """
    from scipy import special

    if min(map(len, parts)) < 2:
        return {"low": NAN, "high": NAN, "p": NAN}
    variances = np.array([each.var() / len(each) for each in parts])
    if not variances.any():
        return {"low": value, "high": value, "p": float(value == 0)}
    free = variances.sum() ** 2 / sum(
        variance**2 / (len(each) - 1) for variance, each in zip(variances, parts, strict=True)
    )
    error = float(np.sqrt(variances.sum()))
    half = float(-special.stdtrit(free, LEVEL / 2)) * error
    p = 2 * float(special.stdtr(free, -abs(value) / error))
    return {"low": value - half, "high": value + half, "p": p}
