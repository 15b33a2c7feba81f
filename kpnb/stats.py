"""How sure a difference between student and baseline is: for these trainings, and for others like
them.

Chance enters twice. Other images would give other values, and another training seed another
network. An interval over the images of one training knows nothing of the second, so what holds for
it need not hold for the next training.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from kpnb._messages import one_of
from kpnb.metrics import BETTER, Metrics
from kpnb.trajectory import Trajectory, metrics_of_pair

LEVEL = 0.05
Chance = Literal["images", "bootstrap", "seeds"]


@dataclass(frozen=True)
class Difference:
    """Student minus baseline: the value, its 95 % interval, and the numbers of images and of
    trainings behind it.

    ``p`` belongs to a test of no difference (NaN: none was made). ``effect`` is Cohen's d of paired
    values: the mean over the standard deviation over the images.

    ``verdict``: "shows" when the whole interval lies on the side the hypothesis wants, "opposite"
    when it lies on the other, else "open"; and "open" when p, corrected where several comparisons
    are made (``holm``), is above 0.05. A rule stated before any result.
    """

    metric: str
    value: float
    low: float
    high: float
    images: int
    seeds: int = 1
    p: float = float("nan")
    effect: float = float("nan")

    @property
    def verdict(self) -> str:
        """ "shows", "opposite" or "open", by the rule above."""
        wanted = BETTER[self.metric]
        if self.p > LEVEL or not (self.low > 0 or self.high < 0):
            return "open"
        return "shows" if wanted * self.low > 0 else "opposite"


def _gaps(student: Metrics, baseline: Metrics) -> dict[str, Tensor]:
    """Student minus baseline in each image, ``[N]``: for D_var the squared deviations, whose mean
    is the variance.
    """
    both = ~(student.distance + baseline.distance).isnan()
    ours, theirs = (
        {**m.per_image(), "d_var": (m.distance - m.distance[both].mean()).square()}
        for m in (student, baseline)
    )
    return {name: (ours[name] - theirs[name]).cpu().double() for name in BETTER}


def _bootstrap(gaps: np.ndarray, over_seeds: bool, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile bootstrap over images, the same for every training since all measure the same; and
    over seeds.
    """
    from scipy import stats  # takes half a second, which only those wait who compare

    every = np.arange(len(gaps))

    def mean(image: np.ndarray, seed: np.ndarray = every, axis: int = -1) -> np.ndarray:
        return gaps[seed[..., :, None], image[..., None, :]].mean((-2, -1))

    drawn = [np.arange(count) for count in gaps.shape[::-1]][: 1 + over_seeds]
    found = stats.bootstrap(drawn, mean, method="percentile", n_resamples=4000, batch=500, rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _crossed(gaps: np.ndarray) -> tuple[float, float, float]:
    """Interval and p for images crossed with seeds, both drawn at random.

    The half-widths of the t interval over the seeds' means and of that over the images' means,
    added in squares. What is peculiar to one seed and one image counts in both, so this errs on the
    wide side, never below either.
    """
    from scipy import optimize, stats

    value, free = gaps.mean(), np.array(gaps.shape) - 1
    errors = [stats.sem(gaps.mean(1)), stats.sem(gaps.mean(0))]

    def half(level: float) -> float:
        return float(np.hypot(*stats.t.isf(level / 2, free) * errors))

    p = 0.0
    if half(1e-9) > abs(value):
        p = optimize.brentq(lambda level: half(level) - abs(value), 1e-9, 1)
    return float(value - half(LEVEL)), float(value + half(LEVEL)), float(p)


def _permuted(means: np.ndarray, rng: np.random.Generator) -> float:
    """P of no difference, when the sign of every image's mean could as well be the other."""
    from scipy import stats

    flipped = {"permutation_type": "samples", "n_resamples": 4999, "rng": rng}
    return float(stats.permutation_test((means,), np.mean, **flipped).pvalue)


def _difference(metric: str, gaps: Tensor, chance: Chance, seed: int) -> Difference:
    """From ``gaps [S, N]``, over the images where every training of both networks defines the
    value.
    """
    known, nan = gaps[:, ~gaps.isnan().any(0)].numpy(), float("nan")
    seeds, images = known.shape
    if images < 2:
        return Difference(metric, nan, nan, nan, images, seeds)
    value = float(known.mean())
    if np.ptp(known) == 0:
        return Difference(metric, value, value, value, images, seeds)
    if chance == "seeds" and seeds > 1:
        low, high, p = _crossed(known)
    else:
        rng, over_seeds = np.random.default_rng(seed), chance == "bootstrap" and seeds > 1
        low, high = _bootstrap(known, over_seeds, rng)
        p = nan if over_seeds else _permuted(known.mean(0), rng)
    spread = known.var(1, ddof=1).mean() ** 0.5
    effect = float(value / spread) if spread else nan
    return Difference(metric, value, low, high, images, seeds, p, effect)


def compare(
    student: Metrics | Trajectory, baseline: Metrics | Trajectory, seed: int = 0
) -> dict[str, Difference]:
    """Student minus baseline for each of the six metrics, measured on the same images: for these
    two trainings.

    Raises ``ValueError`` for trajectories that were measured on other inputs or otherwise.
    """
    return compare_seeds([[(student, baseline)]], "images", seed)


def compare_seeds(
    trainings: Sequence[Sequence[tuple[Metrics | Trajectory, Metrics | Trajectory]]],
    chance: Chance = "seeds",
    seed: int = 0,
) -> dict[str, Difference]:
    """Student minus baseline for each of the six metrics, over several trainings measured on the
    same images.

    trainings   for each seed the pairs (student, baseline) whose differences are averaged: one for
                each layer
    chance      what interval and test allow for: other ``"images"`` only, for these very trainings;
                other ``"seeds"`` as well, by Student's t (the default, which decides in this book);
                or a hierarchical ``"bootstrap"`` over seeds and images, which needs many seeds: its
                interval cannot leave the range of the seeds' means, so where seeds are what
                matters, three of them cover the truth 3 times in 4

    With one seed only the images can be allowed for.
    """
    one_of("chance", chance, get_args(Chance))
    gaps = [[_gaps(*metrics_of_pair(*pair)) for pair in pairs] for pairs in trainings]
    means = {
        m: torch.stack([torch.stack([gap[m] for gap in pairs]).nanmean(0) for pairs in gaps])
        for m in BETTER
    }
    return {metric: _difference(metric, values, chance, seed) for metric, values in means.items()}


def holm(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same with every p corrected for the number of comparisons (Holm 1979): all of them
    together err in 5 %.
    """
    tested = sorted(
        (name for name, d in found.items() if not np.isnan(d.p)), key=lambda name: found[name].p
    )
    corrected, p = dict(found), 0.0
    for left, name in zip(range(len(tested), 0, -1), tested, strict=True):
        p = max(p, min(1.0, left * found[name].p))
        corrected[name] = replace(found[name], p=p)
    return corrected


def tally(pairs: Iterable[Mapping[str, Difference]], metric: str) -> Counter[str]:
    """How many student/baseline pairs come out as "shows", "open" and "opposite" in one metric."""
    return Counter(pair[metric].verdict for pair in pairs)


def verdict(pairs: Sequence[Mapping[str, Difference]], metrics: Sequence[str]) -> str:
    """One word for a hypothesis, by a rule stated before any result.

    "supported": in every one of its ``metrics`` more than half of the pairs show it and none is
    opposite; "contradicted": the same with show and opposite exchanged; "mixed": something shows or
    is opposite; else "open".
    """
    counts = [tally(pairs, metric) for metric in metrics]
    for word, one, other in (
        ("supported", "shows", "opposite"),
        ("contradicted", "opposite", "shows"),
    ):
        if all(2 * count[one] > len(pairs) and not count[other] for count in counts):
            return word
    return "mixed" if any(count["shows"] + count["opposite"] for count in counts) else "open"
