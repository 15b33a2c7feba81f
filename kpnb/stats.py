"""How sure a difference between student and baseline is: for these trainings, and for others like
them.

Chance enters twice. Other images would give other values, and another training seed another
network. An interval over the images of one training knows nothing of the second, so what holds for
it need not hold for the next training.
"""

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kpnb._messages import listed, not_negative, one_of
from kpnb.metrics import BETTER, Metrics
from kpnb.trajectory import Trajectory
from kpnb.weights import bare_name

log = logging.getLogger(__name__)

LEVEL = 0.05
MOST_SEEDS = 1_000_000  # beyond that, more seeds are said not to decide
TINY = 1e-12  # of a variance: what rounding leaves of none
NAN = float("nan")
Chance = Literal["images", "bootstrap", "seeds"]


@dataclass(frozen=True)
class VarianceComponents:
    """What makes a mean of differences ``[S, N]`` vary: images crossed with seeds, both drawn at
    random.

    seeds       S
    images      how many count: N, or fewer where some are defined for few of the seeds
    of_seeds    variance of the seeds' means
    of_images   variance of the images' means, less the part of ``rest`` in it; negative where
                chance has it so
    rest        variance of what is peculiar to one seed and one image, in one seed
    """

    seeds: int
    images: float
    of_seeds: float
    of_images: float
    rest: float

    @classmethod
    def of(cls, gaps: np.ndarray) -> "VarianceComponents":
        """Of ``gaps [S, N]`` with two seeds and two images at least; every seed and every image has
        a value that is not NaN.
        """
        known = ~np.isnan(gaps)
        by_seed, by_image, weight = _mean(gaps, 1), _mean(gaps, 0), _weights(gaps)
        value, images = by_seed.mean(), 1 / np.square(weight).sum()
        left = np.where(known, gaps - by_seed[:, None] - by_image + value, 0)
        rest = np.square(left).sum() / max(1, known.sum() - sum(gaps.shape) + 1)
        in_images = (weight / known.sum(0)).sum() * rest
        spread = (weight * np.square(by_image - value)).sum() * images / (images - 1)
        seeds, of_seeds = len(gaps), float(by_seed.var(ddof=1))
        return cls(seeds, images, of_seeds, float(spread - in_images), float(in_images * seeds))

    def half_width(self, level: float, seeds: int | None = None) -> float:
        """Half of the interval of level ``1 - level``, from these seeds or from so many.

        The half-widths of the t interval over the seeds' means and of that over the images' means,
        added in squares. What is peculiar to one seed and one image counts in both, so this errs on
        the wide side, never below either.
        """
        from scipy import special  # SciPy's functions are loaded by those who compare

        seeds = seeds or self.seeds
        of_images = max(0.0, self.of_images + self.rest / seeds)
        squares = self.of_seeds / seeds, of_images / self.images
        if max(squares) <= TINY * self.rest:  # means that are equal by chance
            squares = self.rest / (seeds * self.images), 0.0
        t = special.stdtrit((seeds - 1, self.images - 1), level / 2)
        return float(np.hypot(*(t * np.sqrt(squares))))

    def p(self, value: float) -> float:
        """P of no difference: the level whose interval around ``value`` ends at 0."""
        from scipy import optimize

        if self.half_width(1e-9) <= abs(value):
            return 0.0
        return float(optimize.brentq(lambda level: self.half_width(level) - abs(value), 1e-9, 1))


@dataclass(frozen=True, repr=False)
class Difference:
    """Student minus baseline: the value, its 95 % interval, and the numbers of images and of
    trainings behind it.

    metric       its name, as in ``metrics.NAMES``
    low, high    the 95 % interval (NaN: of one image there is none)
    images       how many count: those with a value, fewer where some have one in few trainings only
    seeds        how many trainings count
    p            of a test of no difference (NaN: none was made)
    effect       Cohen's d of paired values: the mean over the standard deviation over the images
    low90, high90    the 90 % interval
    delta        a difference that is too small to matter (NaN: nobody has said)
    spread       what makes the value vary (None: over one training, or by a bootstrap)
    tests        how many comparisons p is corrected for

    ``verdict``, a rule stated before any result:
    "shows" or "opposite" when the whole 95 % interval lies on the side the hypothesis wants, or on
    the other, and p, corrected where several comparisons are made (``holm``), is at most 0.05;
    else "negligible" when the 90 % interval lies within plus or minus delta, which is two one-sided
    tests at 5 %;
    else "undecided", where delta is known: more trainings would decide (``seeds_needed``);
    else "open": without delta, no effect and too few trainings cannot be told apart.
    """

    metric: str
    value: float
    low: float
    high: float
    images: int
    seeds: int = 1
    p: float = NAN
    effect: float = NAN
    low90: float = NAN
    high90: float = NAN
    delta: float = NAN
    spread: VarianceComponents | None = None
    tests: int = 1

    def __repr__(self) -> str:
        ends = f"95 % interval {self.low:+.3g} to {self.high:+.3g}, p {self.p:.2g}"
        if np.isnan(self.low):
            ends = "no interval"
        behind = f"{self.images} images, trainings: {self.seeds}"
        return f"Difference({self.metric} {self.value:+.3g}, {ends}, {self.verdict}; {behind})"

    @property
    def verdict(self) -> str:
        """ "shows", "opposite", "negligible", "undecided" or "open", by the rule above."""
        if (self.low > 0 or self.high < 0) and not self.p > LEVEL:
            return "shows" if BETTER[self.metric] * self.low > 0 else "opposite"
        if self.small:
            return "negligible"
        return "open" if np.isnan(self.delta) else "undecided"

    @property
    def small(self) -> bool:
        """Whether the 90 % interval lies within plus or minus delta, as of what is negligible; what
        "shows" or is "opposite" may be so small too.
        """
        return bool(-self.delta < self.low90 and self.high90 < self.delta)

    @property
    def seeds_needed(self) -> float:
        """How many seeds would decide, were the value and its spread to stay as they are.

        Either way: the interval excludes 0, at a level divided by ``tests``, or the 90 % interval
        lies within delta. Infinite where no number of seeds does with these images; NaN where the
        spread of seeds is not known. An open or undecided difference needs more than it has.
        """
        if self.spread is None:
            return NAN
        decides = bisect_left(range(2, MOST_SEEDS), True, key=self._decided)
        return decides + 2 if decides + 2 < MOST_SEEDS else float("inf")

    def _decided(self, seeds: int) -> bool:
        """Whether this value would be decided, had it come from so many ``seeds``."""
        apart = self.spread.half_width(LEVEL / self.tests, seeds) < abs(self.value)
        within = abs(self.value) + self.spread.half_width(2 * LEVEL, seeds) < self.delta
        return apart or within


def _weights(gaps: np.ndarray) -> np.ndarray:
    """What each image contributes to the mean of the seeds' means of ``gaps [S, N]``, ``[N]``."""
    known = ~np.isnan(gaps)
    return (known / known.sum(1, keepdims=True)).mean(0)


def _mean(values: np.ndarray, axis: int, where: np.ndarray | bool = True) -> np.ndarray:
    """Mean of what is defined; NaN where nothing is."""
    known = ~np.isnan(values) & where
    with np.errstate(invalid="ignore"):
        return np.sum(values, axis, where=known) / known.sum(axis)


def paired(
    student: Mapping[str, ArrayLike], baseline: Mapping[str, ArrayLike]
) -> dict[str, np.ndarray]:
    """Student minus baseline in each image, ``[..., N]`` by metric, which ``judge`` takes.

    student, baseline   values ``[..., N]`` by metric, NaN where undefined: those of ``NAMES``
                        without "d_var", or some of them

    D_var is no mean over images. For it (with "d_mean") stand the squared deviations from each
    network's own mean, over the images where both are defined; their mean is the variance.
    """
    ours, theirs = (
        {name: np.asarray(values, float) for name, values in side.items()}
        for side in (student, baseline)
    )
    if lacking := ours.keys() ^ theirs.keys():
        side = "student" if lacking & ours.keys() else "baseline"
        raise ValueError(f"only the {side} has {listed(sorted(lacking))}: give both the same ones")
    gaps = {}
    for name in ours:
        one, other = (np.atleast_1d(side[name]).shape[-1] for side in (ours, theirs))
        if one != other:
            raise ValueError(
                f"student and baseline have {one} and {other} images ({name}): only the same "
                "images can be compared"
            )
        gaps[name] = ours[name] - theirs[name]
    if "d_mean" in gaps:
        both = ~np.isnan(gaps["d_mean"])
        squares = [
            np.square(side["d_mean"] - _mean(side["d_mean"], -1, both)[..., None])
            for side in (ours, theirs)
        ]
        gaps["d_var"] = squares[0] - squares[1]
    return gaps


def _bootstrap(gaps: np.ndarray, over_seeds: bool, rng: "np.random.Generator") -> np.ndarray:
    """Means of resampled ``gaps [S, N]``: of images, the same for every training since all measure
    the same; and of seeds.

    What is resampled is the mean that ``_difference`` takes, so a seed without a value among the
    images drawn is left out there as it is in the data. (Without these resamples the images that
    such a seed defines would be drawn more often than others.) Those in which no seed has a value
    have no mean, and are not returned.
    """
    seeds, images = gaps.shape
    found = []
    for _ in range(8):  # 500 at a time: 4000 of them would fill the memory
        image = rng.integers(0, images, (500, images))
        seed = rng.integers(0, seeds, (500, seeds)) if over_seeds else np.arange(seeds)[None]
        by_seed = _mean(gaps[seed[:, :, None], image[:, None, :]], -1)
        complete = by_seed.mean(-1)
        found.append(np.where(np.isnan(complete), _mean(by_seed, -1), complete))
    means = np.concatenate(found)
    return means[~np.isnan(means)]


def _permuted(means: np.ndarray, rng: "np.random.Generator") -> float:
    """P of no difference, when the sign of every image's mean could as well be the other."""
    from scipy import stats  # takes half a second, which only those wait who compare

    flipped = {"permutation_type": "samples", "n_resamples": 4999, "rng": rng}
    return float(stats.permutation_test((means,), np.mean, **flipped).pvalue)


def _over_seeds(base: Difference, gaps: np.ndarray) -> Difference:
    """Intervals and p for other images and other seeds, by Student's t."""
    spread = VarianceComponents.of(gaps)
    half, half90 = spread.half_width(LEVEL), spread.half_width(2 * LEVEL)
    return replace(
        base,
        low=base.value - half,
        high=base.value + half,
        low90=base.value - half90,
        high90=base.value + half90,
        p=spread.p(base.value),
        spread=spread,
    )


def _resampled(
    base: Difference, gaps: np.ndarray, over_seeds: bool, rng: "np.random.Generator"
) -> Difference:
    """Intervals by a percentile bootstrap, and p for other images only."""
    ends = (LEVEL / 2, 1 - LEVEL / 2, LEVEL, 1 - LEVEL)
    low, high, low90, high90 = np.quantile(_bootstrap(gaps, over_seeds, rng), ends).tolist()
    p = NAN if over_seeds else _permuted(_mean(gaps, 0), rng)
    return replace(base, low=low, high=high, low90=low90, high90=high90, p=p)


def _difference(
    metric: str, gaps: ArrayLike, chance: Chance, seed: int, delta: float = NAN
) -> Difference:
    """From ``gaps [S, N]``: the mean of the seeds' means, each over the images that it defines."""
    values = np.asarray(gaps, float)
    known = ~np.isnan(values)
    values = values[known.any(1)][:, known.any(0)]
    seeds, many = values.shape
    if not many:
        return Difference(metric, NAN, NAN, NAN, many, seeds, delta=delta)
    value = float(_mean(values, 1).mean())
    if many == 1:  # no spread over images, and no variance
        value = NAN if metric == "d_var" else value
        return Difference(metric, value, NAN, NAN, many, seeds, delta=delta)
    images = round(1 / np.square(_weights(values)).sum())
    base = Difference(metric, value, value, value, images, seeds, delta=delta)
    rng = np.random.default_rng(seed)
    if np.nanmin(values) == np.nanmax(values):  # no spread to judge by, but for the signs
        p = _permuted(_mean(values, 0), rng) if value else NAN
        return replace(base, low90=value, high90=value, p=p)
    squares = np.square(values - _mean(values, 1)[:, None])
    deviation = np.sqrt(np.nansum(squares) / max(1, np.sum(~np.isnan(values)) - seeds))
    base = replace(base, effect=float(value / deviation) if deviation else NAN)
    if chance == "seeds" and seeds > 1:
        return _over_seeds(base, values)
    return _resampled(base, values, chance == "bootstrap" and seeds > 1, rng)


def judge(
    gaps: Mapping[str, ArrayLike],
    chance: Chance = "seeds",
    seed: int = 0,
    delta: Mapping[str, float] | None = None,
) -> dict[str, Difference]:
    """A comparison for each metric from values that were computed before.

    gaps     student minus baseline by metric, of S seeds on the same N images, NaN where undefined
             (``paired``): ``[S, N]``, or ``[S, L, N]`` of layers that are averaged
    chance, seed   as in ``compare_seeds``
    delta    by metric, a difference that is too small to matter, not negative; where it is not
             given, no difference is called negligible
    """
    one_of("chance", chance, get_args(Chance))
    for metric in gaps:
        one_of("metric", metric, BETTER)
    if not isinstance(delta, Mapping | None):
        raise TypeError(f"delta is a size for each metric, {{'n_fg': 1.0}}; got {delta!r}")
    small = delta or {}
    for metric, size in small.items():
        one_of("metric (delta)", metric, BETTER)
        not_negative(**{f"delta[{metric!r}]": None if size != size else size})  # NaN: unknown
    return {
        metric: _difference(metric, _one_layer(values), chance, seed, small.get(metric, NAN))
        for metric, values in gaps.items()
    }


def seed_means(gaps: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The mean difference of each seed, ``[S]`` by metric, over the images where it is defined for
    that seed; ``gaps`` as for ``judge``.
    """
    return {metric: _mean(_one_layer(values), -1) for metric, values in gaps.items()}


def _one_layer(gaps: ArrayLike) -> np.ndarray:
    """``[S, N]`` of ``[S, N]`` or ``[S, L, N]``."""
    try:
        values = np.asarray(gaps, float)
    except ValueError as error:
        raise ValueError(
            "differences are [seeds, images] or [seeds, layers, images], as many images for every "
            f"seed and layer; got {len(gaps)} rows that differ in length"
        ) from error
    if values.ndim not in (2, 3):
        raise ValueError(
            f"differences are [seeds, images] or [seeds, layers, images]; got {values.shape}"
        )
    return values if values.ndim == 2 else _mean(values, 1)


def compare(
    student: Metrics | Trajectory,
    baseline: Metrics | Trajectory,
    seed: int = 0,
    delta: Mapping[str, float] | None = None,
) -> dict[str, Difference]:
    """``student`` minus ``baseline`` for each of the six metrics, measured on the same images: for
    these two trainings.

    Intervals are those of a bootstrap over the images, p of flipping the signs of their
    differences. Of fewer than six images p cannot be as small as 0.05, so that nothing "shows".

    seed    of the bootstrap over images and of the sign flips
    delta   by metric, a difference that is too small to matter; without it none is negligible

    Raises ``ValueError`` for trajectories that were measured on other inputs, at another layer or
    with other settings. What ``forward=`` does is not known to them, and not compared.
    """
    return compare_seeds([[(student, baseline)]], "images", seed, delta)


def compare_seeds(
    trainings: Sequence[Sequence[tuple[Metrics | Trajectory, Metrics | Trajectory]]],
    chance: Chance = "seeds",
    seed: int = 0,
    delta: Mapping[str, float] | None = None,
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
    seed        of the bootstrap and of the sign flips; Student's t has none
    delta       by metric, a difference that is too small to matter; without it none is negligible

    With one seed only the images can be allowed for. Raises ``ValueError`` for what is no list of
    lists of pairs, and for seeds with other images, layers or settings than the first.
    """
    if not trainings or any(not _are_pairs(pairs) for pairs in trainings):
        raise ValueError(
            "trainings are, for each seed, a list of pairs (student, baseline), one for each "
            "layer: [[(student, baseline)], ...]"
        )
    gaps = [[_gaps(*metrics_of_pair(*pair)) for pair in pairs] for pairs in trainings]
    _check_seeds(trainings)
    means = {
        metric: [_mean(np.stack([gap[metric] for gap in pairs]), 0) for pairs in gaps]
        for metric in BETTER
    }
    return judge(means, chance, seed, delta)


def metrics_of_pair(
    student: Trajectory | Metrics, baseline: Trajectory | Metrics
) -> tuple[Metrics, Metrics]:
    """The metrics of two networks that are to be compared.

    Raises ``ValueError`` for trajectories of other layers, inputs, regions, units or choices.
    """
    for given in (student, baseline):
        if not isinstance(given, Trajectory | Metrics):
            kind = type(given).__name__
            raise TypeError(
                f"compare a Trajectory or Metrics of one layer, not {kind}; of several layers, "
                'trajectory["layer"]'
            )
    if isinstance(student, Trajectory) and isinstance(baseline, Trajectory):
        _check_comparable(student, baseline)
    return tuple(m.metrics() if isinstance(m, Trajectory) else m for m in (student, baseline))


def _check_comparable(student: Trajectory, baseline: Trajectory) -> None:
    differ = changed_settings(student, baseline)
    if differ:
        by_name = all(each.startswith("layer ") for each in differ)
        raise ValueError(
            f"student and baseline were measured differently ({', '.join(differ)}): only the same "
            "layer, inputs and settings can be compared"
            + (
                ". Where the layer only goes by two names, compare student.metrics() and "
                "baseline.metrics()"
                if by_name
                else ""
            )
        )
    one, other = (len(found.entropy) - 1 for found in (student, baseline))
    if one != other:
        log.warning(
            "the student was followed over %d epochs, the baseline over %d: D_mean, D_var and rho "
            "depend on how many there are",
            one,
            other,
        )


def changed_settings(
    student: Trajectory, baseline: Trajectory, but: Collection[str] = ()
) -> list[str]:
    """In what two measurements differ, in words, ``but`` for some settings; empty where they can be
    compared.
    """
    differ = []
    for name in ("layer", "select", "input", "units", "solver", "objective", "scale", "seed"):
        one, other = _setting(student, name), _setting(baseline, name)
        if one != other and name not in but:
            shown = "" if name == "input" else f" {one} and {other}"  # of inputs, digests
            differ.append(f"{name}{shown}")
    if student.choices != baseline.choices:
        differ.append("choices")
    if not torch.equal(student.foreground, baseline.foreground):
        differ.append("foreground")
    elif not torch.equal(_background(student), _background(baseline)):
        differ.append("background")
    return differ


def _background(found: Trajectory) -> Tensor:
    """Its background, which is everything else where none is named."""
    return ~found.foreground if found.background is None else found.background


def _setting(found: Trajectory, name: str) -> Any:
    """A setting as messages show it; of a layer the name without what wrappers add inside it."""
    value = found.settings.get(name)
    return repr(bare_name(value)) if name == "layer" and value is not None else value


def _are_pairs(pairs: object) -> bool:
    """Whether these are some pairs of networks."""
    network = Metrics | Trajectory
    if isinstance(pairs, network) or not isinstance(pairs, Sequence) or not pairs:
        return False
    return not any(isinstance(p, network) or len(p) != 2 for p in pairs)


def _check_seeds(
    trainings: Sequence[Sequence[tuple[Metrics | Trajectory, Metrics | Trajectory]]],
) -> None:
    """Raise ``ValueError`` unless every seed has the first one's layers, images and settings."""
    first = trainings[0]
    for number, pairs in enumerate(trainings):
        if len(pairs) != len(first):
            raise ValueError(
                f"trainings 0 and {number} have {len(first)} and {len(pairs)} pairs: give those of "
                "the same layers for every seed"
            )
        for (wanted, _), (found, _) in zip(first, pairs, strict=True):
            differ = _other_images(first[0][0], found)
            if isinstance(wanted, Trajectory) and isinstance(found, Trajectory) and not differ:
                # each training may have its own seed
                differ = changed_settings(wanted, found, but=("seed",))
            if differ:
                raise ValueError(
                    f"trainings 0 and {number} were measured differently ({', '.join(differ)}): "
                    "all of them need the same images, layers in the same order, and settings"
                )


def _other_images(one: Metrics | Trajectory, other: Metrics | Trajectory) -> list[str]:
    """In what the images of two networks differ, in words, as far as is known."""
    counts = [
        len(each.foreground if isinstance(each, Trajectory) else each.n_fg) for each in (one, other)
    ]
    if counts[0] != counts[1]:
        return [f"{counts[0]} and {counts[1]} images"]
    known = isinstance(one, Trajectory) and isinstance(other, Trajectory)
    same = not known or one.settings.get("input") == other.settings.get("input")
    return [] if same else ["input"]


def _gaps(student: Metrics, baseline: Metrics) -> dict[str, np.ndarray]:
    """``paired`` of two networks, ``[N]``."""
    sides = [
        {name: values.cpu().double().numpy() for name, values in side.per_image().items()}
        for side in (student, baseline)
    ]
    return paired(*sides)


def holm(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """What was ``found``, with every p corrected for the number of comparisons (Holm 1979): all of
    them together err in 5 %.
    """
    p = np.array([d.p for d in found.values()])
    tests = int(np.count_nonzero(~np.isnan(p)))
    return {
        name: d if np.isnan(d.p) else replace(d, p=float(corrected), tests=tests)
        for (name, d), corrected in zip(found.items(), holm_values(p, tests), strict=True)
    }


def holm_values(p: ArrayLike, tests: int) -> np.ndarray:
    """Values ``p [T]`` corrected for a number of ``tests``, T or fewer if some are NaN and do not
    count (Holm 1979); NaN stays.
    """
    values = np.array(p, float)
    known = np.count_nonzero(~np.isnan(values))
    order = values.argsort()[:known]  # NaN is sorted to the end
    left = np.arange(tests, tests - known, -1)
    values[order] = np.maximum.accumulate(np.minimum(1.0, left * values[order]))
    return values


def tally(pairs: Iterable[Mapping[str, Difference]], metric: str) -> Counter[str]:
    """How many student/baseline pairs come out with each verdict in one metric."""
    one_of("metric", metric, BETTER)
    return Counter(pair[metric].verdict for pair in pairs)


def verdict(pairs: Sequence[Mapping[str, Difference]], metrics: Sequence[str]) -> str:
    """One word for a hypothesis, by a rule stated before any result.

    "supported": in every one of its ``metrics`` more than half of the ``pairs`` show it and none is
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
