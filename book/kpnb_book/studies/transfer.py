"""What each loss teaches, read from tables of ``losses``: which loss transfers most, how accurate
its students are, and whether the two go together.

Tables are those that are stored, or those of a build's own students.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from kpnb.checkpoints import digest
from kpnb.losses import LOSSES
from kpnb.stats import LEVEL, Difference, holm_values
from kpnb_book.studies import losses, paper
from kpnb_book.studies.evidence import PROFILE
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.losses import LOSSES_EVIDENCE, OVERLAP, PICTURES, UNTRAINED
from kpnb_book.studies.results import KEY
from kpnb_book.studies.stored import Stored, read_one
from kpnb_book.studies.verdicts import BY_PAPER, SIX, Question, answers, decided, means

CLAIM = ("lambda", "n_fg", "iou_teacher")
"""What accuracy should go with: the paper's Fig. 2 says it of lambda."""


def stored(folder: str | Path | None = None) -> Stored | None:
    """The tables in ``folder`` (default ``book/results``), of the stated seeds alone; None without
    a baseline and a student.
    """
    found = read_one(LOSSES_EVIDENCE, folder)
    return (
        found if found and any(found.seeds(question(loss)) for loss in taught_by(found)) else None
    )


def own(study: ImageStudy, seed: int, names: Collection[str]) -> Stored:
    """Tables of a build's own students, which are trained here; no seed of theirs was stated."""
    rows = losses.own_students(study, seed, names)
    return Stored("images", rows.networks, rows.samples, rows.places, (), frozenset())


def taught_by(taught: Stored) -> list[str]:
    """The losses that have students here, in the order of ``LOSSES``."""
    known = set(taught.networks["network"])
    return [name for name in LOSSES if name in known]


def question(loss: str, other: str = "baseline") -> Question:
    """The paper's, of the student of a loss."""
    return Question(loss, loss, other, BY_PAPER.columns)


def finished(taught: Stored) -> bool:
    """Whether every loss has all seeds that were stated."""
    return all(taught.finished(question(loss)) for loss in LOSSES)


def by_network(taught: Stored) -> pd.DataFrame:
    """A row for each seed, layer and network: its accuracy, and means over the samples of the six
    metrics and of ``OVERLAP``.
    """
    groups = taught.samples.groupby(KEY)
    columns = {metric: groups[column].mean() for metric, column in SIX.items()}
    columns["d_var"] = groups["d"].var(ddof=0)
    columns |= {name: groups[name].mean() for name in OVERLAP}
    accuracies = taught.networks.set_index(KEY)["accuracy"]
    return pd.DataFrame(columns).join(accuracies).reset_index()


def by_seed(table: pd.DataFrame, network: str) -> pd.DataFrame:
    """``by_network`` of one network, means over the layers, a row for each seed."""
    chosen = table[table["network"] == network]
    return chosen.drop(columns=["layer", "network"]).groupby("seed").mean()


def mean_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean over the seeds, and its 95 % interval by Student's t; NaN of a single seed."""
    known = values.dropna()
    if len(known) < 2:
        return float(known.mean()), np.nan, np.nan
    half = stats.t.ppf(1 - LEVEL / 2, len(known) - 1) * known.sem()
    return float(known.mean()), float(known.mean() - half), float(known.mean() + half)


def compared(table: pd.DataFrame, loss: str) -> pd.DataFrame:
    """For each seed of a loss's students, means over the layers:

    shared   knowledge points shared with the teacher, of those that either has
    place    the same with the teacher's points in other samples: what a liking for a place gives
    more     shared, less what the baseline of that seed shares with the teacher
    added    points that neither teacher nor baseline has
    gain     accuracy, less the baseline's
    """
    ours = by_seed(table, loss)
    baseline = by_seed(table, "baseline").reindex(ours.index)
    return pd.DataFrame(
        {
            "shared": ours["iou_teacher"],
            "place": ours["iou_place"],
            "more": ours["iou_teacher"] - baseline["iou_teacher"],
            "added": ours["added_fg"] + ours["added_bg"],
            "gain": ours["accuracy"] - baseline["accuracy"],
        }
    )


def ranking(taught: Stored) -> pd.DataFrame:
    """A row for each loss, the one that shares most with the teacher first: means of ``compared``
    over the seeds, with the intervals of "shared" and "gain", and "raises": whether accuracy is
    above the baseline's ("yes", "no: lower", "not clear"), by Student's t, whose p is corrected for
    the number of losses (Holm).
    """
    table = by_network(taught)
    rows = []
    for loss in taught_by(taught):
        found = compared(table, loss)
        row = {"loss": loss, "seeds": len(found), **found.mean()}
        for name in ("shared", "gain"):
            _, row[f"{name}_low"], row[f"{name}_high"] = mean_interval(found[name])
        gains = found["gain"].dropna()
        row["p"] = stats.ttest_1samp(gains, 0).pvalue if len(gains) > 1 else np.nan
        rows.append(row)
    every = pd.DataFrame(rows)
    every["p"] = holm_values(every["p"], len(every))
    every["raises"] = [_raises(row["gain"], row["p"]) for row in every.to_dict("records")]
    return every.sort_values("shared", ascending=False, ignore_index=True)


def _raises(gain: float, p: float) -> str:
    if not p <= LEVEL:
        return "not clear"
    return "yes" if gain > 0 else "no: lower"


def baselines(taught: Stored) -> dict[str, float]:
    """What networks share that learned nothing from each other, means over seeds and layers: a
    baseline with the teacher ("teacher"), and two baselines ("each other").
    """
    found = by_seed(by_network(taught), "baseline").mean()
    return {"teacher": found["iou_teacher"], "each other": found["iou_baseline"]}


def differences(
    taught: Stored, against: str = "baseline", tables: pd.DataFrame | None = None
) -> dict[str, dict[str, Difference]]:
    """By loss, its student minus another network in the six metrics, with intervals over samples
    and seeds, for losses that have all seeds that were stated, and of which both networks have
    points enough (``verdicts.answers``).

    against   "baseline", or "untrained": the same student of the untrained teacher
    tables    the paper's (None: read), which give what is too small to matter
    """
    delta = paper.deltas(
        paper.read() if tables is None else tables, "images", means(taught.samples)
    )
    found = {}
    for loss in taught_by(taught):
        other = f"{UNTRAINED}{loss}" if against == "untrained" else against
        asked = question(loss, other)
        if answers(taught.samples, asked, taught.stated):
            found[loss] = decided(taught.samples, asked, delta)
    return found


# Whether accuracy goes with it.


def correlations(taught: Stored, names: Sequence[str] = CLAIM, seed: int = 0) -> pd.DataFrame:
    """Rank correlation (Spearman's) of accuracy with each of ``names``, over all students.

    Students of one loss are more alike than others, so that the test is of the losses' means: how
    often a correlation as large comes of means in random order, corrected (Bonferroni) for the
    number of ``names``.

    Columns: name, rho, between (of the losses' means), p, networks, losses, verdict ("shows",
    "opposite" or "open").
    """
    table = by_network(taught)
    table = table[table["network"].isin(taught_by(taught))]
    middle = table.groupby("network").mean(numeric_only=True)
    rows = []
    for name in names:
        pairs = middle[[name, "accuracy"]].to_numpy()
        row = {"name": name, "rho": _rho(table[[name, "accuracy"]].to_numpy())}
        row |= {"between": _rho(pairs), "p": _p(pairs, seed)}
        rows.append(row | {"networks": len(table), "losses": len(middle)})
    found = pd.DataFrame(rows)
    found["p"] = (len(rows) * found["p"]).clip(upper=1.0)
    return found.assign(verdict=[_word(row) for row in found.to_dict("records")])


def _p(pairs: np.ndarray, seed: int) -> float:
    """P of no correlation between two columns ``[n, 2]``, by permutation of ranks."""
    if np.isnan(_rho(pairs)):
        return np.nan
    one, other = stats.rankdata(pairs[~np.isnan(pairs).any(1)], axis=0).T
    other = other - other.mean()
    rng = np.random.default_rng(seed)
    # ranks in another order have another covariance, and the same variances
    found = stats.permutation_test(
        (one,),
        lambda order, axis: (order * other).sum(axis),
        permutation_type="pairings",
        n_resamples=4999,
        vectorized=True,
        rng=rng,
    )
    return float(found.pvalue)


def _word(row: Mapping[str, float]) -> str:
    if not row["p"] <= LEVEL:
        return "open"
    return "shows" if row["between"] > 0 else "opposite"


def _rho(pairs: np.ndarray) -> float:
    """Spearman's correlation of two columns ``[n, 2]``; NaN of fewer than three rows, or where one
    column is constant.
    """
    known = pairs[~np.isnan(pairs).any(1)]
    if len(known) < 3:
        return np.nan
    ranks = stats.rankdata(known, axis=0)
    spread = ranks.std(0)
    if not spread.all():
        return np.nan
    return float(((ranks - ranks.mean(0)) / spread).prod(1).mean())


# Pictures.

SAME = ("dataset", "data_root", "size", "grid", "teacher_samples", "share")
"""Settings on which it depends whether two studies measure the same pictures."""


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 ``[K, 3, S, S]``, their foreground bool ``[K, n]``, on a grid of ``shape``,
    and knowledge points bool ``[K, n]`` by network.
    """

    images: Tensor
    foreground: Tensor
    shape: tuple[int, int]
    points: dict[str, Tensor]


def pictures(study: ImageStudy, own: Stored, stored: Stored | None, layer: str) -> Pictures:
    """The same pictures through all networks: those of the stored tables, where ``study`` has the
    same pictures, else those of its own.
    """
    taught = own
    if stored is not None and (whole := with_stored_pictures(study, stored, layer)):
        study, taught = whole, stored
    chosen = study.shown(PICTURES)
    seed = taught.networks["seed"].min()
    points = losses.pictures(taught.places, layer, seed, study.foreground.shape[1])
    return Pictures(
        study.measured.images[chosen], study.foreground[chosen], study.units.shape, points
    )


def with_stored_pictures(study: ImageStudy, stored: Stored, layer: str) -> ImageStudy | None:
    """A study that measures what is stored, if ``study`` is about the same pictures."""
    wanted = LOSSES_EVIDENCE.kind.resolve(PROFILE, **LOSSES_EVIDENCE.overrides)
    same = all(getattr(study.settings, name) == getattr(wanted, name) for name in SAME)
    if not same or layer not in set(stored.places["layer"]):
        return None
    whole = LOSSES_EVIDENCE.study(study.store)
    return whole if digest(whole.measured.config)[:20] == stored.measured else None
