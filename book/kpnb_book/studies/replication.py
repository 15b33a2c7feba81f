"""Whether trainings of one's own agree with the stored ones, from stored tables.

A study's trainings are drawn anew with every seed. So the stored seeds say where the mean of so
many further ones lies in 95 of 100 cases, and a build whose seeds lie there replicates them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor

from kpnb.checkpoints import digest
from kpnb.metrics import NAMES
from kpnb.stats import LEVEL, paired, seed_means
from kpnb_book.studies.controls import proportion
from kpnb_book.studies.evidence import STUDIES, Evidence
from kpnb_book.studies.measure import every_pair
from kpnb_book.studies.results import RESULTS, Results, flat
from kpnb_book.studies.study import Study
from kpnb_book.studies.verdicts import by_seed

FEWEST = 5
"""Stored seeds that an interval for further ones takes: of two it would hold nearly anything."""
COLUMNS = ["metric", "own", "seeds", "stored", "low", "high", "inside"]


def prediction_interval(
    values: ArrayLike, more: int = 1, level: float = LEVEL
) -> tuple[float, float]:
    """Where the mean of so many ``more`` trainings lies in all but ``level`` of cases.

    values   ``[S]``, a mean of each training so far (``seed_means``); NaN are left out

    The t interval of a prediction: both means vary, that of the trainings so far and that of those
    to come. Raises ``ValueError`` for fewer than two trainings.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    count = len(known)
    if count < 2:
        raise ValueError(f"a prediction needs two trainings at least; got {count}")
    error = known.std(ddof=1) * np.sqrt(1 / count + 1 / more)
    half = -special.stdtrit(count - 1, level / 2) * error
    return float(known.mean() - half), float(known.mean() + half)


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
        low, high = prediction_interval(stored[metric], len(mine))
        value = mine.mean()
        row = {"metric": metric, "own": value, "seeds": len(mine), "stored": stored[metric].mean()}
        rows.append(row | {"low": low, "high": high, "inside": low <= value <= high})
    return pd.DataFrame(rows, columns=COLUMNS)


# A build's own seeds.

OTHERWISE = ("settings.analysed", "settings.layers")
"""Settings in which a build may differ: the samples and layers that both have are compared."""


@dataclass(frozen=True)
class Beside:
    """A build's own seeds beside the stored ones of the same settings.

    name          of the stored study
    stored, own   ``by_seed`` at the same layers on the same samples
    samples       how many these are
    stated        how many seeds the stored study has in the end
    outdated      settings in which the tables differ from today's, in words; nothing is compared
                  then, and both frames are empty
    """

    name: str
    stored: pd.DataFrame
    own: pd.DataFrame
    samples: int
    stated: int
    outdated: tuple[str, ...] = ()

    @cached_property
    def found(self) -> pd.DataFrame:
        """``replication`` of the two; empty when the tables are outdated."""
        return replication(self.stored, self.own)

    def rows(self, metrics: Iterable[str] = NAMES) -> pd.DataFrame:
        """Those of some metrics."""
        return self.found[self.found["metric"].isin([*metrics])]


def beside(study: Study, folder: str | Path | None = None) -> Beside | None:
    """The ``study``'s own seeds beside those of the tables in ``folder`` (default
    ``book/results``).

    None where there are no tables of these settings, where they have fewer than ``FEWEST`` seeds,
    or where the study has no seed beyond them.
    """
    evidence = next((each for each in STUDIES.values() if concerns(each, study)), None)
    results = Results(Path(folder or RESULTS) / evidence.name) if evidence else None
    if results is None or results.origin is None:
        return None
    stated = len(evidence.seeds)
    if outdated := evidence.outdated(results) + other_samples(study, results):
        return Beside(evidence.name, pd.DataFrame(), pd.DataFrame(), 0, stated, tuple(outdated))
    theirs, ours = common_samples(study, results.origin["samples"])
    rows = results.read().samples
    rows = rows[rows["seed"].isin(evidence.seeds)]
    stored = by_seed(rows[rows["layer"].isin(study.settings.layers)], theirs)
    new = [seed for seed in study.settings.seeds if seed not in stored.index]
    if len(stored) < FEWEST or not new or not len(ours):
        return None
    return Beside(evidence.name, stored, own_means(study, ours).loc[new], len(ours), stated)


def every_beside(
    studies: Mapping[str, Study], folder: str | Path | None = None
) -> dict[str, Beside]:
    """``beside`` of those of the ``studies`` that have stored seeds, by title."""
    found = {title: beside(study, folder) for title, study in studies.items()}
    return {title: each for title, each in found.items() if each is not None}


def concerns(evidence: Evidence, study: Study) -> bool:
    """Whether the evidence is about the settings of this study, but for ``OTHERWISE``."""
    if type(study) is not evidence.kind:
        return False
    settings = evidence.settings
    theirs, ours = (flat(evidence.stated(each)) for each in (settings, study.settings))
    names = {*theirs, *ours} - {*OTHERWISE}
    same = all(theirs.get(name) == ours.get(name) for name in names)
    return same and {*study.settings.layers} <= {*settings.layers}


def other_samples(study: Study, results: Results) -> list[str]:
    """In words, when the stored samples are not those that the study has today."""
    theirs, count = results.origin.get("measured"), results.origin["samples"]
    ours = digest(study.first_measured(count).config)[:20]
    return [] if theirs == ours else [f"measured was {theirs!r}, is {ours!r}"]


def common_samples(study: Study, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples that are measured both in the study and where ``count`` are measured: their positions
    there, and in the study.

    Which samples are drawn first depends on neither number, but both lists are sorted, so that the
    fewer are not the first of the more.
    """
    more, ours = study.positions(count), study.positions(study.settings.analysed)
    _, there, here = np.intersect1d(more, ours, return_indices=True)
    return there, here


def own_means(study: Study, chosen: np.ndarray) -> pd.DataFrame:
    """``by_seed`` of the study's own seeds, on the ``chosen`` of its measured samples."""
    found, s = every_pair(study), study.settings
    sides = []
    for side in (0, 1):
        networks = [
            [found[layer, seed][side].per_image() for layer in s.layers] for seed in s.seeds
        ]
        sides.append({name: _stacked(networks, name)[..., chosen] for name in networks[0][0]})
    return pd.DataFrame(seed_means(paired(*sides)), index=pd.Index(s.seeds, name="seed"))[[*NAMES]]


def _stacked(networks: list[list[dict[str, Tensor]]], name: str) -> np.ndarray:
    """One metric of networks by seed and layer, ``[S, L, N]``."""
    return np.array([[values[name].cpu().double().numpy() for values in row] for row in networks])


def pooled(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The ``proportion`` over all of these."""
    every = list(found)
    return proportion(sum(each["count"] for each in every), sum(each["total"] for each in every))


def agreement(found: Iterable[pd.DataFrame]) -> dict[str, float]:
    """Over several ``replication`` tables, of studies or builds, the ``proportion`` of inside."""
    inside = pd.concat(found)["inside"]
    return proportion(int(inside.sum()), len(inside))


def coverage(stored: pd.DataFrame) -> dict[str, float]:
    """Of the stored seeds, how many lie where all others say: ``proportion`` of seeds and metrics.

    Its interval takes the metrics of a seed for independent, which they are not: it is too narrow.
    """
    inside = []
    for seed in stored.index:
        found = replication(stored.drop(seed), stored.loc[[seed]])
        inside += found["inside"].tolist()
    return proportion(sum(inside), len(inside))
