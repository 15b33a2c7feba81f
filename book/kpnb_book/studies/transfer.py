"""What each loss teaches, read from tables of ``losses``: which loss transfers most, how accurate
its students are, and whether the two go together.

Tables are those that are stored, or those of a build's own students.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from kpnb.checkpoints import digest
from kpnb.losses import LOSSES
from kpnb.stats import LEVEL, Difference, holm_values
from kpnb_book.networks.images import LAYERS
from kpnb_book.studies import losses, paper
from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.losses import (
    AT_LAYERS,
    LOSSES_EVIDENCE,
    OVERLAP,
    UNTRAINED,
    LossesEvidence,
)
from kpnb_book.studies.results import KEY
from kpnb_book.studies.stored import Stored, read_one
from kpnb_book.studies.verdicts import SIX, Question, all_decided, means, of_path

CLAIM = ("lambda", "n_fg", "iou_teacher")
"""What accuracy should go with: the paper's Fig. 2 says it of lambda."""
JUDGED = ("more", "gain")
"""Columns of ``compared`` that are judged of every loss."""


def stored(
    folder: str | Path | None = None, evidence: LossesEvidence = LOSSES_EVIDENCE
) -> Stored | None:
    """The tables in ``folder`` (default ``book/results``), of the stated seeds alone; None without
    a baseline and a student.
    """
    found = read_one(evidence, folder)
    networks = {*found.networks["network"]} if found else set()
    return found if "baseline" in networks and networks.intersection(LOSSES) else None


def own(study: ImageStudy, seed: int, names: Collection[str]) -> Stored:
    """Tables of a build's own students, which are trained here; no seed of theirs was stated."""
    rows = losses.own_students(study, seed, names)
    return Stored("images", rows.networks, rows.samples, rows.places, (), frozenset())


def taught_by(taught: Stored) -> list[str]:
    """The losses that have students here, in the order of ``LOSSES``."""
    known = set(taught.networks["network"])
    return [name for name in LOSSES if name in known]


def students_of(taught: Stored) -> list[str]:
    """All students here: ``taught_by``, then those of untrained teachers."""
    known = set(taught.networks["network"])
    return taught_by(taught) + [name for loss in LOSSES if (name := f"{UNTRAINED}{loss}") in known]


def measured(taught: Stored) -> list[str]:
    """``students_of`` whose training stayed finite, so that they have points."""
    known = set(taught.samples["network"])
    return [name for name in students_of(taught) if name in known]


def finished(taught: Stored) -> bool:
    """Whether every loss of which evidence is stored has all seeds that were stated, also where
    its training diverged.
    """
    wanted = {"baseline", *LOSSES_EVIDENCE.losses}
    return len(taught.stated) > 1 and wanted <= taught.complete


def controls_finished(taught: Stored) -> bool:
    """Whether the students of untrained teachers have all seeds too."""
    return finished(taught) and {*LOSSES_EVIDENCE.roles} <= taught.complete


def by_network(taught: Stored) -> pd.DataFrame:
    """A row for each seed, layer and network: its accuracy, and means over the samples of the six
    metrics, of the share of its path ("share") and of ``OVERLAP``; undefined where its training
    diverged.
    """
    groups = taught.samples.groupby(KEY)
    columns = {metric: groups[column].mean() for metric, column in SIX.items()}
    columns |= {"d_var": groups["d"].var(ddof=0), "share": groups["share"].mean()}
    columns |= {name: groups[name].mean() for name in OVERLAP}
    accuracies = taught.networks.set_index(KEY)["accuracy"]
    return pd.DataFrame(columns).join(accuracies, how="right").reset_index()


def by_seed(table: pd.DataFrame, network: str) -> pd.DataFrame:
    """``by_network`` of one network, means over the layers, a row for each seed; undefined where
    one layer is, since layers differ more than networks.
    """
    chosen = table[table["network"] == network].drop(columns=["layer", "network"])
    return chosen.groupby("seed").mean(skipna=False)


def mean_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean over the seeds, and its 95 % interval by Student's t; NaN of a single seed."""
    known = values.dropna()
    if len(known) < 2:
        return float(known.mean()), np.nan, np.nan
    half = stats.t.ppf(1 - LEVEL / 2, len(known) - 1) * known.sem()
    return float(known.mean()), float(known.mean() - half), float(known.mean() + half)


def compared(table: pd.DataFrame, loss: str, other: str = "baseline") -> pd.DataFrame:
    """For each seed of a loss's students, means over the layers:

    shared    knowledge points shared with the teacher, of those that either has
    place     the same with the teacher's points in other samples: what a liking for a place gives,
              and what comes of having many points
    beyond    shared, less by place
    more      beyond, less what the ``other`` network shares beyond place
    added_fg, added_bg   points that neither the teacher nor a baseline of another seed has
    gain      accuracy, less the other's
    """
    ours = by_seed(table, loss)
    theirs = by_seed(table, other).reindex(ours.index)
    beyond = [each["iou_teacher"] - each["iou_place"] for each in (ours, theirs)]
    return pd.DataFrame(
        {
            "shared": ours["iou_teacher"],
            "place": ours["iou_place"],
            "beyond": beyond[0],
            "more": beyond[0] - beyond[1],
            "added_fg": ours["added_fg"],
            "added_bg": ours["added_bg"],
            "gain": ours["accuracy"] - theirs["accuracy"],
        }
    )


def ranking(
    taught: Stored, students: Sequence[str] | None = None, against: str = "baseline"
) -> pd.DataFrame:
    """A row for each of the ``students`` (None: of every loss), the one that shares most with the
    teacher beyond place first: means of ``compared`` over the seeds, and intervals of "beyond" and
    ``JUDGED``.

    Whether they share more with the teacher beyond place than another network does ("more"), and
    whether they are more accurate ("gain"), is tested by Student's t. The p of each question
    ("gain_p") is corrected for the number of students (Holm); "gain_said" is "yes", "no: less" or
    "not clear", as "more_said" is where a seed has no points. Of that the interval is undefined
    too.

    against   "baseline", or "untrained": the same student of the untrained teacher
    """
    table, others = by_network(taught), _others(taught, against)
    found = {
        loss: compared(table, loss, others.get(loss, "baseline"))
        for loss in students or taught_by(taught)
    }
    every = judged(found).rename(columns={"network": "loss"})
    return every.sort_values("beyond", ascending=False, ignore_index=True)


def judged(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """``found`` is for each network, seed by seed, at least "beyond", "more" and "gain" as in
    ``compared``; a row for each, with the means of its columns over the seeds, intervals of
    "beyond" and ``JUDGED``, and for these "more_p" and "more_said" as in ``ranking``.

    Columns besides: network, seeds, with_points (how many seeds have any).
    """
    rows = []
    for network, of_seeds in found.items():
        counts = {"seeds": of_seeds["gain"].count(), "with_points": of_seeds["beyond"].count()}
        row = {"network": network, **counts, **of_seeds.mean()}
        for name in ("beyond", *JUDGED):
            _, row[f"{name}_low"], row[f"{name}_high"] = mean_interval(of_seeds[name])
        row |= {f"{name}_p": no_difference(of_seeds[name]) for name in JUDGED}
        if of_seeds["more"].isna().any():  # the training of a seed diverged, or has no points
            row |= dict.fromkeys(["more_p", "more_low", "more_high"], np.nan)
        rows.append(row)
    every = pd.DataFrame(rows)
    for name in JUDGED:
        every[f"{name}_p"] = holm_values(every[f"{name}_p"], len(every))
        pairs = zip(every[name], every[f"{name}_p"], strict=True)
        every[f"{name}_said"] = [_said(mean, p) for mean, p in pairs]
    return every


def no_difference(values: pd.Series) -> float:
    """P that the mean over the seeds is 0, by Student's t; NaN of a single seed."""
    known = values.dropna()
    return float(stats.ttest_1samp(known, 0).pvalue) if len(known) > 1 else np.nan


def _said(mean: float, p: float) -> str:
    if not p <= LEVEL:
        return "not clear"
    return "yes" if mean > 0 else "no: less"


def leading(taught: Stored, name: str) -> list[str]:
    """The loss whose students have the highest mean of ``compared``'s column ``name``, and behind
    it those that cannot be told apart from it. Without losses that have a seed without points;
    empty where none is left.

    Another loss is told apart when the mean difference over the seeds is not 0 by Student's t, with
    a p corrected (Holm) for all pairs of losses, because it is the data that say which is first. So
    the first is alone only where it lies above each of the others.
    """
    table = by_network(taught)
    found = pd.DataFrame({loss: compared(table, loss)[name] for loss in taught_by(taught)})
    found = found.dropna(axis=1)
    if found.empty:
        return []
    first, *others = found.mean().sort_values(ascending=False, kind="stable").index
    pairs = list(combinations([first, *others], 2))  # those with the first come first
    p = holm_values([no_difference(found[one] - found[two]) for one, two in pairs], len(pairs))
    return [first, *(loss for loss, each in zip(others, p, strict=False) if not each <= LEVEL)]


def baselines(taught: Stored) -> dict[str, float]:
    """What networks share that learned nothing from each other, means over seeds and layers: a
    baseline with the teacher ("teacher"), the same beyond place ("beyond"), and two baselines
    ("each other").
    """
    found = by_seed(by_network(taught), "baseline").mean()
    return {
        "teacher": found["iou_teacher"],
        "beyond": found["iou_teacher"] - found["iou_place"],
        "each other": found["iou_baseline"],
    }


class Gaps(NamedTuple):
    """Networks minus others, by student: in the ``six`` metrics, and in the ``shares`` of their own
    paths at which they have the most points, mean and variance, corrected for the two.

    A distance is that share times the length of the path. Learning rates of losses are far apart,
    and with them the lengths, so that distances alone say little of what is taught.
    """

    six: dict[str, dict[str, Difference]]
    shares: dict[str, dict[str, Difference]]


def gaps_of(taught: Stored, pairs: Mapping[str, tuple[str, str]]) -> Gaps:
    """The gaps, over samples and seeds, of ``pairs`` that have all seeds that were stated, and both
    points enough (``verdicts.answers``).

    pairs   by student, a network and what is subtracted from it
    """
    delta = paper.deltas(paper.read(), "images", means(taught.samples))
    six = {name: Question(name, *pair, SIX) for name, pair in pairs.items()}
    path = {name: of_path(*pair) for name, pair in pairs.items()}
    return Gaps(
        all_decided(taught.samples, six, taught.stated, delta),
        all_decided(taught.samples, path, taught.stated),
    )


def differences(taught: Stored | None, against: str = "baseline") -> Gaps:
    """By loss, the gaps between its student and another network; none without tables.

    against   "baseline", or "untrained": the same student of the untrained teacher
    """
    if taught is None:
        return Gaps({}, {})
    return gaps_of(
        taught, {loss: (loss, other) for loss, other in _others(taught, against).items()}
    )


def _others(taught: Stored, against: str) -> dict[str, str]:
    """By loss, the network that is subtracted from its student."""
    return {
        loss: f"{UNTRAINED}{loss}" if against == "untrained" else against
        for loss in taught_by(taught)
    }


def at_every_layer(taught: Stored) -> pd.DataFrame:
    """Points after the last epoch at every layer of the networks, whatever layer a student was
    trained for: a row for each layer and network that has all seeds that were stated, with means
    over samples, seeds and trainings.

    Columns: network, layer, n_fg, n_bg, iou_teacher. Empty where tables have none of it.
    """
    names = [
        name
        for name in LAYERS[LOSSES_EVIDENCE.settings.network]
        if f"{name} n_fg" in taught.samples
    ]
    means = taught.samples.groupby("network").mean(numeric_only=True)
    rows = [
        {"network": network, "layer": layer}
        | {name: means.loc[network, f"{layer} {name}"] for name in AT_LAYERS}
        for network in ("baseline", *students_of(taught))
        for layer in names
        if network in means.index and (network in taught.complete or not taught.stated)
    ]
    return pd.DataFrame(rows, columns=["network", "layer", *AT_LAYERS])


def added_places(taught: Stored) -> dict[str, np.ndarray]:
    """Where networks have points that neither the teacher nor a baseline of another seed has: on a
    square grid ``[rows, columns]`` by network, the baseline first, the share of pictures (those
    that count, of all seeds and layers) in which a cell is one.
    """
    if "points" not in taught.places:
        return {}
    cells = losses.cells_of(taught.places)
    rows = round(cells**0.5)
    counted = taught.samples[taught.samples["added_fg"].notna()].groupby(KEY)["sample"]
    seen = {key: samples.to_numpy() for key, samples in counted}
    added: dict[str, list[np.ndarray]] = {}
    for row in taught.places[taught.places["points"].notna()].to_dict("records"):
        ours, teacher, other = (
            losses.unpacked(row[name], cells).numpy() for name in ("points", "taught", "other")
        )
        here = (ours & ~teacher & ~other)[seen.get(tuple(row[key] for key in KEY), [])]
        added.setdefault(row["network"], []).append(here)
    means = {
        name: np.concatenate(each).mean(0) for name, each in added.items() if any(map(len, each))
    }
    known = [name for name in ("baseline", *students_of(taught)) if name in means]
    return {name: means[name].reshape(rows, rows) for name in known}


# Whether accuracy goes with it.


def correlations(taught: Stored) -> pd.DataFrame:
    """Rank correlation (Spearman's) of accuracy with each metric of ``CLAIM``: over the students at
    one layer, mean over the layers.

    Layers are kept apart because points differ between them, and because a training that is the
    same for all layers, as by a loss of outputs, would count several times with one accuracy.
    Students of one loss are more alike than others, so that the test is of the losses' means at
    each layer: how often a mean correlation as large comes of accuracies in random order over the
    losses, in the same order at every layer; corrected (Bonferroni) for the number of metrics.

    Columns: name, rho, between (of the losses' means), p, trainings (distinct ones with points),
    losses, verdict ("shows", "opposite" or "open").
    """
    known = taught_by(taught)
    table = by_network(taught)
    at_layer = [each[each["network"].isin(known)] for _, each in table.groupby("layer")]
    counted = table[table["network"].isin(known)].dropna(subset=[*CLAIM, "accuracy"])
    trainings = taught.networks.merge(counted[KEY], on=KEY)["training"].nunique()
    counts = {"trainings": trainings, "losses": len(known)}
    rows = []
    for name in CLAIM:
        pair = ["network", name, "accuracy"]
        defined = [each[pair].dropna().set_index("network") for each in at_layer]
        students = [_rho(each.to_numpy()) for each in defined]
        of_losses = [each.groupby("network").mean().reindex(known) for each in defined]
        between, p = _mean_rho(np.stack([each.to_numpy() for each in of_losses]), seed=0)
        row = {"name": name, "rho": float(np.mean(students)), "between": between, "p": p}
        rows.append(row | counts)
    found = pd.DataFrame(rows)
    found["p"] = (len(rows) * found["p"]).clip(upper=1.0)
    return found.assign(verdict=[_word(row) for row in found.to_dict("records")])


def _mean_rho(pairs: np.ndarray, seed: int) -> tuple[float, float]:
    """Mean over the layers of Spearman's correlation of two columns ``[L, n, 2]``, and P of none:
    the second column is permuted, in all layers alike. A row that is undefined at one layer is left
    out of all; both are NaN where a correlation is.
    """
    pairs = pairs[:, ~np.isnan(pairs).any((0, 2))]
    value = float(np.mean([_rho(each) for each in pairs]))
    if np.isnan(value):
        return value, value
    ranks = stats.rankdata(pairs, axis=1)
    ranks = (ranks - ranks.mean(1, keepdims=True)) / ranks.std(1, keepdims=True)
    one, other = ranks[..., 0], ranks[..., 1]
    found = stats.permutation_test(
        (np.arange(pairs.shape[1]),),
        # orders [..., n]; other[:, orders] is [L, ..., n]
        lambda orders, axis: np.einsum("ln,l...n->...", one, other[:, orders]),
        permutation_type="pairings",
        n_resamples=4999,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return value, float(found.pvalue)


def _word(row: Mapping[str, float]) -> str:
    if not row["p"] <= LEVEL:
        return "open"
    return "shows" if row["between"] > 0 else "opposite"


def _rho(pairs: np.ndarray) -> float:
    """Spearman's correlation of two columns ``[n, 2]``; NaN of fewer than three rows, or where one
    column is constant.
    """
    known = pairs[~np.isnan(pairs).any(1)]
    if len(known) < 3 or not np.ptp(known, axis=0).all():
        return np.nan
    return float(stats.spearmanr(*known.T).statistic)


# Pictures.

PICTURES = 8  # that can be looked at
SAME = ("dataset", "data_root", "size", "grid", "teacher_samples", "share")
"""Settings on which it depends whether two studies measure the same pictures."""


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 ``[K, 3, S, S]``, their foreground bool ``[K, n]``, on a grid of ``shape``,
    and knowledge points bool ``[K, n]`` by layer, seed and network. ``taught`` are the tables that
    these are from.
    """

    images: Tensor
    foreground: Tensor
    shape: tuple[int, int]
    points: dict[str, dict[int, dict[str, Tensor]]]
    taught: Stored

    def of_first_seed(self, layer: str) -> dict[str, Tensor]:
        """The points at a ``layer`` by network."""
        of_layer = self.points[layer]
        return of_layer[min(of_layer)]


def pictures(study: ImageStudy, own: Stored, stored: Stored | None, layer: str) -> Pictures:
    """The same pictures through all networks: those of the stored tables, where ``study`` has the
    same pictures, else those of its own.
    """
    taught = own
    known = stored is not None and layer in set(stored.places["layer"])
    if known and (whole := with_stored_pictures(study, stored)):
        study, taught = whole, stored
    chosen, units = study.shown(PICTURES), study.foreground.shape[1]
    points: dict[str, dict[int, dict[str, Tensor]]] = {}
    for at, seed in taught.places[["layer", "seed"]].drop_duplicates().itertuples(index=False):
        found = losses.points_of(taught.places, at, seed, units)
        points.setdefault(at, {})[int(seed)] = {name: each[chosen] for name, each in found.items()}
    images, foreground = study.measured.images[chosen], study.foreground[chosen]
    return Pictures(images, foreground, study.units.shape, points, taught)


def with_stored_pictures(
    study: ImageStudy,
    stored: Stored,
    evidence: Evidence = LOSSES_EVIDENCE,
    same: Collection[str] = SAME,
) -> ImageStudy | None:
    """A study that measures what is ``stored`` of the ``evidence``, if ``study`` is about the same
    pictures, which depends on the ``same`` settings.
    """
    wanted = evidence.settings
    if any(getattr(study.settings, name) != getattr(wanted, name) for name in same):
        return None
    whole = evidence.study(study.store)
    return whole if digest(whole.measured.config)[:20] == stored.measured else None
