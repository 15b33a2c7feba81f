"""The paper's own result tables: which student belongs to which baseline, and how large a
difference they lead to expect.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kpnb.metrics import NAMES

PAPER = Path(__file__).parents[2] / "paper_tables.csv"
KINDS = {"SQuAD": "questions", "SST-2": "sentiment", "ModelNet40+background": "clouds"}
"""Kinds of data of the paper's sets; all others are images."""
DISTANCES = ("d_mean", "d_var")
SCALED = {"clouds": ("n_fg", "n_bg", *DISTANCES)}
"""Metrics whose size depends on more than the kind of data: distances on the network (0.02 to 927
in the paper's tables), points of a cloud on how many it has (1,024 there, fewer here).
"""


def read() -> pd.DataFrame:
    """``book/paper_tables.csv``."""
    return pd.read_csv(PAPER, dtype={"table": str})


def paper_pairs(tables: pd.DataFrame) -> pd.DataFrame:
    """The paper's pairs of a student and its baseline, a row each.

    tables   ``read()``; the n-th student of a table, data set, network and layer belongs to the
             n-th baseline there

    Columns: kind ("images", "clouds", "sentiment" or "questions"), table, dataset, network, layer,
    and ("student", metric) and ("baseline", metric) as two levels.
    """
    keys = ["role", "table", "dataset", "network", "layer"]
    numbered = tables.assign(number=tables.groupby(keys).cumcount())
    values = numbered.set_index([*keys, "number"])[[*NAMES]]
    roles = ("student", "baseline")
    wide = pd.concat({role: values.loc[role] for role in roles}, axis="columns", join="inner")
    kind = wide.index.get_level_values("dataset").map(lambda name: KINDS.get(name, "images"))
    return wide.set_index(pd.Index(kind, name="kind"), append=True)


def differences(tables: pd.DataFrame) -> pd.DataFrame:
    """Student minus baseline in each pair of ``paper_pairs``, by metric; with its index."""
    pairs = paper_pairs(tables)
    return pairs["student"] - pairs["baseline"]


def proportions(tables: pd.DataFrame) -> pd.DataFrame:
    """Student over baseline, less 1, in each pair of ``paper_pairs``; with its index."""
    pairs = paper_pairs(tables)
    return pairs["student"] / pairs["baseline"] - 1


def scaled(kind: str) -> tuple[str, ...]:
    """Metrics that are compared in proportion to the baseline for this kind of data."""
    return SCALED.get(kind, DISTANCES)


def expected(tables: pd.DataFrame) -> pd.DataFrame:
    """Mean difference of student and baseline that the paper's tables give, kind by metric.

    For the metrics of ``scaled`` it is the geometric mean of the ratios, less 1: a mean of plain
    differences would be that of the one network whose weights travel farthest.
    """
    plain = differences(tables).groupby("kind").mean()
    ratios = np.log1p(proportions(tables)).groupby("kind").mean()
    found = plain.copy()
    for kind in found.index:
        for metric in scaled(kind):
            found.loc[kind, metric] = np.expm1(ratios.loc[kind, metric])
    return found[[*NAMES]]


def deltas(tables: pd.DataFrame, kind: str, baseline: Mapping[str, float]) -> dict[str, float]:
    """By metric, a difference that is too small to matter: half of what the paper leads to expect.

    baseline   our baselines' metrics, to which what is ``scaled`` is proportional
    """
    halves = expected(tables).loc[kind].abs() / 2
    for metric in scaled(kind):
        halves[metric] *= baseline[metric]
    return halves.to_dict()
