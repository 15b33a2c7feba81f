"""How sure a difference between student and baseline is: paired bootstrap over the images of one training each."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from kpnb.metrics import BETTER, Metrics


@dataclass(frozen=True)
class Difference:
    """Student minus baseline: the value, its 95 % interval, and the number of images that both define.

    ``verdict``: "shows" when the whole interval lies on the side the hypothesis wants, "opposite" when it lies on the
    other, else "open". A rule stated before any result; it knows nothing of other training seeds.
    """

    metric: str
    value: float
    low: float
    high: float
    images: int

    @property
    def verdict(self) -> str:
        wanted = BETTER[self.metric]
        if min(wanted * self.low, wanted * self.high) > 0:
            return "shows"
        return "opposite" if max(wanted * self.low, wanted * self.high) < 0 else "open"


def _difference(metric: str, student: Tensor, baseline: Tensor, seed: int) -> Difference:
    """Paired percentile bootstrap over the images where both values are defined."""
    pair = np.stack([student.double().numpy(), baseline.double().numpy()])
    pair = pair[:, ~np.isnan(pair).any(0)]
    statistic = np.var if metric == "d_var" else np.mean

    def gap(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(a, axis=axis) - statistic(b, axis=axis)

    if pair.shape[1] < 2:
        return Difference(metric, float("nan"), float("nan"), float("nan"), pair.shape[1])
    value = float(gap(pair[0], pair[1]))
    if np.ptp(pair[0] - pair[1]) == 0 and metric != "d_var":
        return Difference(metric, value, value, value, pair.shape[1])
    interval = stats.bootstrap(
        tuple(pair), gap, paired=True, method="percentile", n_resamples=4000, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Difference(metric, value, float(interval.low), float(interval.high), pair.shape[1])


def compare(student: Metrics, baseline: Metrics, seed: int = 0) -> dict[str, Difference]:
    """Student minus baseline for each of the six metrics, measured on the same images."""
    ours, theirs = ({**m.per_image(), "d_var": m.distance} for m in (student, baseline))
    return {name: _difference(name, ours[name], theirs[name], seed) for name in BETTER}


def tally(pairs: Iterable[Mapping[str, Difference]], metric: str) -> Counter[str]:
    """How many student/baseline pairs come out as "shows", "open" and "opposite" in one metric."""
    return Counter(pair[metric].verdict for pair in pairs)


def verdict(pairs: Sequence[Mapping[str, Difference]], metrics: Sequence[str]) -> str:
    """One word for a hypothesis, by a rule stated before any result.

    "supported": in every one of its ``metrics`` more than half of the pairs show it and none is opposite;
    "contradicted": the same with show and opposite exchanged; "mixed": something shows or is opposite; else "open".
    """
    counts = [tally(pairs, metric) for metric in metrics]
    for word, one, other in (("supported", "shows", "opposite"), ("contradicted", "opposite", "shows")):
        if all(2 * count[one] > len(pairs) and not count[other] for count in counts):
            return word
    return "mixed" if any(count["shows"] + count["opposite"] for count in counts) else "open"
