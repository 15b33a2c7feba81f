"""From stored tables to comparisons: what the paper asks, and what is left of it beyond place,
beyond a smooth target and beyond the path.

Tables are the data frames of ``book/results``: ``samples`` has a row for each seed, layer, network
(``student``, ``baseline``, ...) and sample, ``networks`` one for each seed, layer and network.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from kpnb.metrics import NAMES
from kpnb.stats import LEVEL, NAN, Difference, VarianceComponents, holm, judge, paired, seed_means
from kpnb_book.studies import paper

KIND = {"ImageStudy": "images", "SomeClasses": "images", "CloudStudy": "clouds"}
KIND |= {"TextStudy": "sentiment", "QuestionStudy": "questions"}
"""Kinds of data of the studies, by the names of their classes."""
SIX = {"n_fg": "n_fg", "n_bg": "n_bg", "lambda": "lambda", "d_mean": "d", "rho": "rho"}
"""Columns of ``samples`` by metric; D_var comes with the distances."""
POINTS = ("n_fg", "n_bg", "lambda")
BEYOND = ("n_fg", "lambda")
"""Metrics of which something can be left beyond place. Masks of other samples share out the same
points, so what is left of N_bg is that of N_fg with the other sign.
"""
SPEED = ("d_mean", "d_var")
BY_HEART = "learned_by_heart"
"""Column of networks: of how many labels in random order the teacher has learned each, in its last
epoch.
"""
FITS = 0.95
"""What that has to be: a teacher that does not fit such labels is no control of one that fits its
own, and nothing is asked of its students.
"""
LEAST = 0.1
"""Share of the samples for which both networks have to define a metric before it is judged: else a
few odd samples would speak for all.
"""


@dataclass(frozen=True)
class Question:
    """One comparison of two networks.

    name           in tables
    student, other   roles; the second is subtracted
    columns        of ``samples`` (as ``prepared``) by metric
    metrics        which of the six are compared, all corrected for each other
    same_units     whether values are those of the paper's metrics, so that its delta applies
    """

    name: str
    student: str
    other: str
    columns: Mapping[str, str]
    metrics: tuple[str, ...] = NAMES
    same_units: bool = True

    @property
    def roles(self) -> tuple[str, str]:
        """The two networks that are compared."""
        return self.student, self.other


BY_PAPER = Question("paper", "student", "baseline", SIX)
_ALL = (
    BY_PAPER,
    Question("place", "student", "baseline", {m: f"place_{m}" for m in POINTS}, POINTS),
    Question("beyond place", "student", "baseline", {m: f"left_{m}" for m in BEYOND}, BEYOND),
    Question("smooth target", "untrained", "baseline", SIX),
    Question("beyond a smooth target", "student", "untrained", SIX),
    Question("encoder as it came", "pretrained", "baseline", SIX),
    Question("beyond the encoder as it came", "student", "pretrained", SIX),
    Question("labels in random order", "random-labels", "baseline", SIX),
    Question("beyond labels in random order", "student", "random-labels", SIX),
    Question("length of the path", "student", "baseline", {"d_mean": "path"}, ("d_mean",), False),
    Question("share of the path", "student", "baseline", {"d_mean": "share"}, SPEED, False),
    Question("share, against untrained", "student", "untrained", {"d_mean": "share"}, SPEED, False),
    Question("equal rates", "equal-rate", "baseline", {"d_mean": "d"}, SPEED),
    Question("equal length of the path", "student", "baseline", {"d_mean": "d_equal"}, SPEED),
)
QUESTIONS = {question.name: question for question in _ALL}
"""What is asked of stored tables, by name; a question whose networks they lack is left out."""


def of_path(student: str, other: str = "baseline") -> Question:
    """The share of its own path at which a network has the most points, which is asked of other
    pairs in the same way: its mean, and its variance.
    """
    name = f"{student}, share of the path"
    return Question(name, student, other, {"d_mean": "share"}, SPEED, same_units=False)


def prepared(samples: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """``samples`` with two kinds of columns that follow from others.

    left_n_fg, left_n_bg, left_lambda   the value less what place alone gives
    path                                the network's whole path, the same for all of its samples
    """
    left = {f"left_{metric}": samples[metric] - samples[f"place_{metric}"] for metric in POINTS}
    keys = ["seed", "layer", "network"]
    return samples.assign(**left).merge(networks[[*keys, "path"]], on=keys, how="left")


def values(
    samples: pd.DataFrame, role: str, columns: Mapping[str, str], seeds: list[int]
) -> dict[str, np.ndarray]:
    """One network's values ``[S, L, N]`` by metric, of these seeds, every layer and every sample.

    A seed without a row there is NaN.
    """
    chosen = samples[samples["network"] == role].set_index(["seed", "layer", "sample"])
    every = [seeds, sorted(samples["layer"].unique()), sorted(samples["sample"].unique())]
    filled = chosen.reindex(pd.MultiIndex.from_product(every))
    shape = [len(part) for part in every]
    return {
        metric: filled[column].to_numpy(float).reshape(shape) for metric, column in columns.items()
    }


def seeds_of(samples: pd.DataFrame, *roles: str) -> list[int]:
    """Seeds of which the tables have all of these networks at every layer, in order."""
    layers = samples["layer"].nunique()
    chosen = samples[samples["network"].isin(roles)]
    found = chosen[["seed", "layer", "network"]].drop_duplicates().groupby("seed").size()
    return sorted(found[found == layers * len(roles)].index)


def gaps(samples: pd.DataFrame, question: Question = BY_PAPER) -> dict[str, np.ndarray]:
    """Differences ``[S, L, N]`` by metric, for ``judge``; without any seed that has both networks,
    S is 0.
    """
    seeds = seeds_of(samples, *question.roles)
    sides = [values(samples, role, question.columns, seeds) for role in question.roles]
    found = paired(*sides)
    return {metric: found[metric] for metric in question.metrics}


def by_seed(samples: pd.DataFrame, chosen: Sequence[int] | None = None) -> pd.DataFrame:
    """Student minus baseline in each seed, means over layers and samples: a row a seed, a column a
    metric.

    chosen   the samples that count (None: all)
    """
    kept = samples if chosen is None else samples[samples["sample"].isin(chosen)]
    seeds = seeds_of(kept, *BY_PAPER.roles)
    index = pd.Index(seeds, name="seed")
    return pd.DataFrame(seed_means(gaps(kept)), index=index)


def answers(samples: pd.DataFrame, question: Question, stated: Collection[int] = ()) -> bool:
    """Whether the tables have what is asked: both networks of two seeds, and of all that were
    ``stated``, and every column defined for enough samples of each, ``LEAST``, and by both in two
    seeds, without which there is no test over seeds.
    """
    roles = question.roles
    seeds = seeds_of(samples, *roles)
    there = len(seeds) > 1 and {*stated} <= {*seeds}
    return there and all(
        min(defined(samples, role, column) for role in roles) >= LEAST
        and len(set.intersection(*(defining_seeds(samples, role, column) for role in roles))) > 1
        for column in question.columns.values()
    )


def defined(samples: pd.DataFrame, role: str, column: str) -> float:
    """For which share of a network's rows a column is defined; 0 without the column."""
    values = samples.loc[samples["network"] == role].get(column)
    return 0.0 if values is None or values.empty else float(values.notna().mean())


def defining_seeds(samples: pd.DataFrame, role: str, column: str) -> set[int]:
    """Seeds in which a network defines a column for any sample."""
    rows = samples[samples["network"] == role]
    return {*rows.loc[rows[column].notna(), "seed"]}


def means(samples: pd.DataFrame, role: str = "baseline") -> dict[str, float]:
    """The six metrics of a network, means over seeds and layers of what each has."""
    groups = samples[samples["network"] == role].groupby(["seed", "layer"])
    average = {metric: float(groups[column].mean().mean()) for metric, column in SIX.items()}
    return average | {"d_var": float(groups["d"].var(ddof=0).mean())}


def decided(
    samples: pd.DataFrame, question: Question, delta: Mapping[str, float] | None = None
) -> dict[str, Difference]:
    """The answer to one question by metric: intervals for other samples and other seeds, tests
    corrected for the number of metrics.
    """
    return holm(judge(gaps(samples, question), delta=delta if question.same_units else None))


def as_the_paper_asks(
    samples: pd.DataFrame, kind: str, tables: pd.DataFrame
) -> dict[str, Difference]:
    """``decided`` of the paper's question, with delta from its ``tables`` for that kind of data."""
    return decided(samples, BY_PAPER, paper.deltas(tables, kind, means(samples)))


def all_decided(
    samples: pd.DataFrame,
    questions: Mapping[str, Question],
    stated: Collection[int],
    delta: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Difference]]:
    """``decided``, of those ``questions`` that have an answer (``answers``), by their keys."""
    return {
        key: decided(samples, question, delta)
        for key, question in questions.items()
        if answers(samples, question, stated)
    }


def verdicts(
    samples: pd.DataFrame,
    networks: pd.DataFrame,
    kind: str,
    tables: pd.DataFrame,
    stated: Collection[int] = (),
) -> pd.DataFrame:
    """A row for each question and metric that the tables of one study answer.

    kind     of data, whose pairs in the paper's ``tables`` (``paper.read()``) give delta
    stated   seeds that a question has to have before it is answered

    Columns: question, metric, value, low, high, low90, high90, low_mixed, high_mixed (95 % by a
    mixed model of seeds and samples, as a check), p (corrected), delta, verdict, small (whether it
    is surely below delta, whatever the verdict), seeds, samples, seeds_needed.
    """
    table = prepared(samples, networks)
    delta = paper.deltas(tables, kind, means(table))
    rows = []
    for question in QUESTIONS.values():
        if is_control(networks, question) and answers(table, question, stated):
            rows += [_row(question, d) for d in decided(table, question, delta).values()]
    return pd.DataFrame(rows)


def is_control(networks: pd.DataFrame, question: Question) -> bool:
    """False of a question about students of labels in random order, if their teacher has not
    learned these (``FITS``).
    """
    known = networks.get(BY_HEART, pd.Series(dtype=float)).dropna()
    fits = known.empty or float(known.mean()) >= FITS
    return fits or "random-labels" not in question.roles


def _row(question: Question, d: Difference) -> dict[str, Any]:
    half = mixed_half_width(d.spread, LEVEL) if d.spread else NAN
    return {
        "question": question.name,
        "metric": d.metric,
        "value": d.value,
        "low": d.low,
        "high": d.high,
        "low90": d.low90,
        "high90": d.high90,
        "low_mixed": d.value - half,
        "high_mixed": d.value + half,
        "p": d.p,
        "delta": d.delta,
        "verdict": d.verdict,
        "small": d.small,
        "seeds": d.seeds,
        "samples": d.images,
        "seeds_needed": d.seeds_needed,
    }


def mixed_half_width(spread: VarianceComponents, level: float) -> float:
    """``VarianceComponents.half_width`` by a mixed model with random seeds and images, which counts
    everything once.

    Moments estimate its variances (on a full table, as here, they are those of restricted maximum
    likelihood as long as none comes out negative), Satterthwaite's rule its degrees of freedom.
    With few seeds it covers the truth less often than it says.
    """
    seeds, images = spread.seeds, spread.images
    rest = spread.rest / (seeds * images)
    of_seeds = max(spread.of_seeds / seeds, rest)
    of_images = max(spread.of_images / images + rest, rest)
    square = of_seeds + of_images - rest
    free = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    uncertain = (np.square([of_seeds, of_images, rest]) / free).sum()
    if not square:
        return 0.0
    return float(-special.stdtrit(square**2 / uncertain, level / 2) * np.sqrt(square))


@dataclass(frozen=True)
class Estimate:
    """One metric on one axis: what the paper's pairs say, what our seeds say, and how sure it is.

    paper, seeds   student minus baseline: in the paper's pairs ``[P]``, and in our seeds ``[S]``
    small          whether the difference is surely below delta, whatever the verdict
    relative       whether everything here is in proportion to the baseline, as for distances
    """

    metric: str
    paper: np.ndarray
    seeds: np.ndarray
    value: float
    low: float
    high: float
    delta: float
    verdict: str
    small: bool
    relative: bool


def estimates(
    samples: pd.DataFrame, kind: str, tables: pd.DataFrame, shown: pd.DataFrame | None = None
) -> list[Estimate]:
    """What the paper asks of one study, an ``Estimate`` for each metric.

    shown   the rows of the paper's ``tables`` whose pairs stand beside it (None: all of its kind)
    """
    ours, every = means(samples), by_seed(samples)
    beside = tables if shown is None else shown
    plain, ratios = (
        found.xs(kind, level="kind")
        for found in (paper.differences(beside), paper.proportions(beside))
    )
    found = []
    for metric, d in as_the_paper_asks(samples, kind, tables).items():
        relative = metric in paper.scaled(kind)
        unit = ours[metric] if relative else 1.0
        theirs = (ratios if relative else plain)[metric].dropna().to_numpy()
        seeds = every[metric].dropna().to_numpy() / unit
        sizes = (size / unit for size in (d.value, d.low, d.high, d.delta))
        found.append(Estimate(metric, theirs, seeds, *sizes, d.verdict, d.small, relative))
    return found
