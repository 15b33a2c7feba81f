"""Whether trainings of one's own agree with the stored ones, and how often the rule for verdicts
errs, both from stored tables.

A study's trainings are drawn anew with every seed. So the stored seeds say where the mean of so
many further ones lies in 95 of 100 cases, and a build whose seeds lie there replicates them.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from kpnb.metrics import NAMES
from kpnb.stats import Difference, holm, judge, paired, predicted
from kpnb_book.studies.verdicts import SIX, seeds_of, values

NULL = ("baseline", "student")
"""Networks of one kind, whose trainings differ in nothing but their seed."""


def replication(stored: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """A row for each metric: where the mean of the own seeds lies, and where the stored seeds say
    that it should, in 95 of 100 cases.

    stored, own   ``verdicts.by_seed`` on the same samples, with no seed in common

    Columns: metric, own, seeds (of the own), stored, low, high, inside. Raises ``ValueError`` when
    a seed is in both: it would say nothing of further ones.
    """
    twice = sorted({*stored.index} & {*own.index})
    if twice:
        raise ValueError(f"seeds {twice} are stored already: a replication needs seeds of its own")
    rows = []
    for metric in stored:
        mine = own[metric].dropna()
        if stored[metric].count() < 2 or mine.empty:
            continue
        low, high = predicted(stored[metric], len(mine))
        value = mine.mean()
        row = {"metric": metric, "own": value, "seeds": len(mine), "stored": stored[metric].mean()}
        rows.append(row | {"low": low, "high": high, "inside": low <= value <= high})
    return pd.DataFrame(rows)


def share(hits: int, total: int) -> dict[str, float]:
    """``count`` of ``total``, their ``rate`` and its 95 % interval (Clopper and Pearson)."""
    found = binomtest(hits, total).proportion_ci()
    rate = {"count": hits, "total": total, "rate": hits / total}
    return rate | {"low": found.low, "high": found.high}


def pooled(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The ``share`` over all of these."""
    every = list(found)
    return share(sum(each["count"] for each in every), sum(each["total"] for each in every))


def agreement(found: Iterable[pd.DataFrame]) -> dict[str, float]:
    """Over several ``replication`` tables, of studies or of builds, the ``share`` of inside."""
    inside = pd.concat(found)["inside"]
    return share(int(inside.sum()), len(inside))


def coverage(stored: pd.DataFrame) -> dict[str, float]:
    """Of the stored seeds, how many lie where all others say: ``share`` over seeds and metrics.

    Its interval takes the metrics of a seed for independent, which they are not: it is too narrow.
    """
    inside = []
    for seed in stored.index:
        found = replication(stored.drop(seed), stored.loc[[seed]])
        inside += found["inside"].tolist()
    return share(sum(inside), len(inside))


# How often the rule errs.


def networks_of(samples: pd.DataFrame, roles: Sequence[str] = NULL) -> list[dict[str, np.ndarray]]:
    """For each role the values ``[S, L, N]`` of its networks by metric."""
    return [values(samples, role, SIX, seeds_of(samples, role)) for role in roles]


def null_gaps(
    networks: Sequence[Mapping[str, np.ndarray]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Differences ``[S, L, N]`` between networks that differ in their seed only, by metric.

    networks   ``networks_of``; those of one role are paired at random, each in one pair (of an odd
               number one is left out), and either may be called the student

    Two roles of twenty seeds give twenty differences.
    """
    parts = []
    for role in networks:
        order = rng.permutation(len(role["n_fg"]))
        half = len(order) // 2
        one, other = order[:half], order[half : 2 * half]
        sides = ({name: each[side] for name, each in role.items()} for side in (one, other))
        parts.append(paired(*sides))
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in NAMES}


def false_positives(
    samples: pd.DataFrame,
    draws: int = 200,
    seed: int = 0,
    delta: Mapping[str, float] | None = None,
) -> dict[str, dict[str, float]]:
    """How often the whole rule finds what is not there, over so many ``draws`` of ``null_gaps``.

    Returns ``share`` by what is counted: "comparisons" of one metric that are called "shows" or
    "opposite", and "families" of six with one at least. Draws share their networks: the interval is
    that of the draws, and tells nothing of other networks.
    """
    rng, networks = np.random.default_rng(seed), networks_of(samples)
    wrong = []
    for _ in range(draws):
        found = holm(judge(null_gaps(networks, rng), delta=delta))
        wrong.append([_claims(d) for d in found.values()])
    claims = np.array(wrong)
    return {
        "comparisons": share(int(claims.sum()), claims.size),
        "families": share(int(claims.any(1).sum()), draws),
    }


def _claims(d: Difference) -> bool:
    return d.verdict in ("shows", "opposite")
