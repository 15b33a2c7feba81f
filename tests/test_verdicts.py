"""The rule for verdicts: by hand, against the t tests of SciPy, and as often as it says on
simulated trainings; arrays against the same comparison of networks.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import kpnb
from kpnb.metrics import BETTER, NAMES, Choices, Metrics, six_metrics
from kpnb.stats import (
    Difference,
    VarianceComponents,
    compare_seeds,
    holm,
    judge,
    paired,
    seed_means,
    tally,
    verdict,
)
from kpnb_book.studies.replication import prediction_interval
from kpnb_book.studies.verdicts import mixed_half_width


def trainings(
    rng: np.random.Generator, seeds: int, images: int, by_seed: float = 0.5, effect: float = 0.0
) -> np.ndarray:
    """Differences ``[S, N]``: an effect, deviations of seeds, images, and of both together."""
    parts = by_seed * rng.standard_normal((seeds, 1)), rng.standard_normal((1, images))
    return effect + sum(parts) + rng.standard_normal((seeds, images))


# ---- the rule


@pytest.mark.parametrize(
    ("low", "high", "low90", "high90", "p", "expected"),
    [
        (0.1, 0.5, 0.15, 0.45, 0.01, "shows"),  # small, but it shows
        (-0.5, -0.1, -0.45, -0.15, 0.01, "opposite"),
        (0.1, 0.5, 0.15, 0.45, 0.07, "negligible"),  # not after Holm, and within delta
        (-0.7, 0.5, -0.55, 0.45, 0.5, "negligible"),  # the 90 % interval decides
        (-0.7, 0.5, -0.65, 0.45, 0.5, "undecided"),
        (-0.5, 0.7, -0.45, 0.65, 0.5, "undecided"),
    ],
)
def test_verdict_by_interval_p_and_delta(low, high, low90, high90, p, expected):
    d = Difference("n_fg", (low + high) / 2, low, high, 9, 3, p, low90=low90, high90=high90)
    assert replace(d, delta=0.6).verdict == expected
    unknown = expected if expected in ("shows", "opposite") else "open"
    assert d.verdict == unknown


def test_negligible_is_two_one_sided_tests_at_5_percent():
    """Of one seed's worth of chance: SciPy's one-sided t tests against -delta and delta."""
    rng = np.random.default_rng(2)
    found = set()
    for _ in range(40):
        means = 0.4 * rng.standard_normal(12)
        gaps = means[:, None].repeat(30, 1)
        d = judge({"rho": gaps}, delta={"rho": 0.25})["rho"]
        above = stats.ttest_1samp(means, -0.25, alternative="greater").pvalue
        below = stats.ttest_1samp(means, 0.25, alternative="less").pvalue
        if d.p > 0.05:
            assert (d.verdict == "negligible") == (max(above, below) < 0.05)
            found.add(d.verdict)
    assert found == {"negligible", "undecided"}


def test_what_matters_is_called_negligible_in_5_percent_at_most():
    """The truth is delta: half of the time the value lies within it."""
    rng = np.random.default_rng(3)
    words = []
    for _ in range(600):
        d = judge({"n_fg": trainings(rng, 20, 60, effect=0.7)}, delta={"n_fg": 0.7})["n_fg"]
        words.append(d.high90 < 0.7 and d.low90 > -0.7)
    assert sum(words) <= stats.binom.ppf(0.999, 600, 0.05)


# ---- seeds that would decide


@pytest.mark.parametrize("effect", [0.0, 0.15, 0.4])
def test_an_undecided_difference_needs_more_seeds_than_it_has(effect):
    rng = np.random.default_rng(4)
    words = set()
    for _ in range(60):
        values = {name: trainings(rng, 6, 300, effect=effect) for name in NAMES}
        for d in holm(judge(values, delta=dict.fromkeys(NAMES, 0.6))).values():
            words.add(d.verdict)
            assert d.verdict != "undecided" or d.seeds_needed > d.seeds
    assert "undecided" in words
    assert "open" not in words


def test_seeds_needed_by_the_t_test_alone():
    """Chance from seeds only: the first S with t(S - 1) x sd / sqrt(S) below the value, or within
    delta.
    """
    means = np.array([0.5, -0.4, 1.3, -0.9, 0.8])
    value, deviation = means.mean(), means.std(ddof=1)
    (d,) = judge({"rho": means[:, None].repeat(9, 1)}).values()

    def half(seeds: int, tail: float) -> float:
        return stats.t.isf(tail, seeds - 1) * deviation / seeds**0.5

    excludes = next(s for s in range(2, 1000) if half(s, 0.025) < value)
    assert d.seeds_needed == excludes
    within = next(s for s in range(2, 1000) if value + half(s, 0.05) < 0.8)
    assert within < excludes
    assert replace(d, delta=0.8).seeds_needed == within
    six = next(s for s in range(2, 1000) if half(s, 0.025 / 6) < value)
    assert replace(d, tests=6).seeds_needed == six > excludes


def test_so_many_seeds_decide():
    """Trained once more, with as many seeds as were said to be needed and the same spread: decided
    about as often as not.
    """
    rng = np.random.default_rng(5)
    needed, decided = [], []
    for _ in range(40):
        (d,) = judge({"n_fg": trainings(rng, 8, 400, effect=0.3)}).values()
        if d.verdict == "open" and 8 < d.seeds_needed < 60:
            needed.append(d.seeds_needed)
            again = trainings(rng, int(d.seeds_needed), 400, effect=d.value)
            decided.append(judge({"n_fg": again})["n_fg"].verdict == "shows")
    assert len(needed) > 10
    assert 0.25 < np.mean(decided) < 0.9


def test_no_number_of_seeds_decides_what_images_leave_open():
    values = np.random.default_rng(6).standard_normal(12)
    (d,) = judge({"rho": (values - values.mean() + 0.01)[None].repeat(4, 0)}).values()
    assert d.verdict == "open"
    assert d.seeds_needed == float("inf")
    (one,) = judge({"rho": values[None]}).values()
    assert np.isnan(one.seeds_needed)  # one training knows no spread of seeds


# ---- values that are not defined everywhere


def test_images_that_some_seeds_leave_undefined_count_where_they_are_defined():
    """Half of the values missing at random: none of 20 seeds' images is complete, and the truth is
    covered as often as it says.
    """
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(300):
        values = trainings(rng, 20, 60, effect=0.3)
        values[rng.random(values.shape) < 0.5] = np.nan
        assert np.isnan(values).any(0).all()
        (d,) = judge({"rho": values}).values()
        covered.append(d.low <= 0.3 <= d.high)
    assert d.value == pytest.approx(np.nanmean(values, 1).mean())
    assert 40 < d.images <= 60
    assert np.mean(covered) >= 0.93


def test_an_image_that_one_seed_defines_hardly_counts():
    values = trainings(np.random.default_rng(8), 5, 30)
    more = np.full((5, 60), np.nan)
    more[:, :30] = values
    more[np.arange(30) % 5, 30 + np.arange(30)] = 0.0
    few, many = (judge({"rho": v})["rho"] for v in (values, more))
    assert few.images == 30
    assert 30 < many.images < 45


def test_a_seed_without_any_value_is_left_out():
    values = trainings(np.random.default_rng(9), 4, 30)
    values[2] = np.nan
    (d,) = judge({"rho": values}).values()
    assert d == judge({"rho": np.delete(values, 2, 0)})["rho"]
    assert d.seeds == 3


@pytest.mark.parametrize("shape", [(1, 2), (1, 5), (2, 2), (3, 5)])
def test_differences_without_any_spread_are_judged_by_their_signs(shape):
    """All equal to 1: with n images the signs alone have a p of 2 / 2 ** n."""
    (d,) = judge({"n_fg": np.ones(shape)}).values()
    assert (d.value, d.low, d.high) == (1, 1, 1)
    assert d.p == pytest.approx(2 * 0.5 ** shape[1])
    assert d.verdict == "open"
    (many,) = judge({"n_fg": np.ones((shape[0], 12))}).values()
    assert many.verdict == "shows"
    (none,) = judge({"n_fg": np.zeros(shape)}, delta={"n_fg": 0.1}).values()
    assert none.verdict == "negligible"


# ---- the same from arrays as from networks


def network(values: torch.Tensor) -> Metrics:
    """``values [5, N]``."""
    return Metrics(*values, points=torch.zeros(2, values.shape[1], 4, dtype=torch.bool))


def test_arrays_are_judged_as_networks_are():
    gen = torch.Generator().manual_seed(0)
    sides = torch.randn(2, 4, 3, 5, 40, generator=gen, dtype=torch.float64)  # role, seed, layer
    sides[torch.rand(sides.shape, generator=gen) < 0.1] = torch.nan
    live = compare_seeds(
        [
            [(network(sides[0, seed, layer]), network(sides[1, seed, layer])) for layer in range(3)]
            for seed in range(4)
        ]
    )
    names = ("n_fg", "n_bg", "lambda", "d_mean", "rho")
    arrays = [dict(zip(names, side.permute(2, 0, 1, 3).numpy(), strict=True)) for side in sides]
    stored = judge(paired(*arrays))
    assert set(stored) == set(live) == set(NAMES)
    for name, d in live.items():
        assert stored[name].value == pytest.approx(d.value)
        assert (stored[name].low, stored[name].p) == pytest.approx((d.low, d.p))


def test_squared_deviations_have_the_variance_as_their_mean():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((2, 3, 50))
    ours[0, :10], theirs[1, 5:20] = np.nan, np.nan
    found = seed_means(paired({"d_mean": ours}, {"d_mean": theirs}))["d_var"]
    for seed in range(3):
        both = ~np.isnan(ours[seed] + theirs[seed])
        expected = np.var(ours[seed, both]) - np.var(theirs[seed, both])
        assert found[seed] == pytest.approx(expected)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[seeds, images\].*got \(4,\)"):
        judge({"rho": np.zeros(4)})
    with pytest.raises(ValueError, match="two trainings at least; got 1"):
        prediction_interval([0.5])


# ---- a mixed model beside it


def test_mixed_interval_is_narrower_and_agrees_where_one_source_rules():
    values = np.random.default_rng(1).standard_normal(7)
    for gaps in (values[:, None].repeat(9, 1), values[None].repeat(4, 0)):
        spread = VarianceComponents.of(gaps)
        half = stats.t.isf(0.025, 6) * values.std(ddof=1) / 7**0.5
        assert mixed_half_width(spread, 0.05) == pytest.approx(half)
    both = VarianceComponents.of(trainings(np.random.default_rng(2), 6, 40))
    assert 0 < mixed_half_width(both, 0.05) < both.half_width(0.05)


def test_mixed_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(10)
    halves = []
    for _ in range(400):
        gaps = trainings(rng, 20, 40)
        halves.append(abs(gaps.mean()) <= mixed_half_width(VarianceComponents.of(gaps), 0.05))
    low, high = stats.binom.ppf((0.001, 0.999), 400, 0.95)
    assert low <= sum(halves) <= high


def test_mixed_model_of_statsmodels():
    """Restricted maximum likelihood of crossed seeds and images: the same standard error."""
    models = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    gaps = trainings(np.random.default_rng(11), 6, 15, by_seed=1.0)
    seed, image = (axis.ravel() for axis in np.indices(gaps.shape))
    parts = {"seed": np.eye(6)[seed], "image": np.eye(15)[image]}
    spread = VarianceComponents.of(gaps)
    square = (spread.of_seeds / 6) + spread.of_images / 15
    model = models.MixedLM(
        gaps.ravel(),
        np.ones((gaps.size, 1)),
        groups=np.zeros(gaps.size),
        exog_vc=models.VCSpec(
            list(parts),
            [[[f"{name}{i}" for i in range(m.shape[1])]] for name, m in parts.items()],
            [[m] for m in parts.values()],
        ),
    )
    found = model.fit(reml=True)
    assert found.fe_params[0] == pytest.approx(gaps.mean())
    assert found.bse_fe[0] == pytest.approx(square**0.5, rel=0.01)


# ---- predictions


def test_prediction_for_one_more_is_the_t_interval_of_a_prediction():
    values = np.random.default_rng(0).standard_normal(9)
    low, high = prediction_interval([*values, np.nan])
    half = stats.t.ppf(0.975, 8) * values.std(ddof=1) * np.sqrt(1 + 1 / 9)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


@pytest.mark.parametrize("more", [1, 3, 10])
def test_predictions_hold_as_often_as_they_say(more):
    rng = np.random.default_rng(more)
    inside = 0
    for _ in range(1000):
        low, high = prediction_interval(rng.standard_normal(20), more)
        inside += low <= rng.standard_normal(more).mean() <= high
    expected = stats.binom.ppf((0.001, 0.999), 1000, 0.95)
    assert expected[0] <= inside <= expected[1]


def test_directions_are_those_of_the_hypotheses():
    gaps = {name: 1 + trainings(np.random.default_rng(0), 5, 20) * 0.01 for name in NAMES}
    for name, d in judge(gaps).items():
        assert d.verdict == ("shows" if BETTER[name] > 0 else "opposite")


def test_what_is_no_list_of_pairs_or_no_metric_is_named():
    pair = tuple(networks_of(seed) for seed in (0, 1))
    for wrong in ([], [[]], [pair], pair, [[pair[0]]]):
        with pytest.raises(ValueError, match=r"\[\[\(student, baseline\)\], \.\.\.\]"):
            kpnb.compare_seeds(wrong)
    with pytest.raises(ValueError, match=r"metric \(delta\) 'nfg'; did you mean 'n_fg'"):
        kpnb.compare(*pair, delta={"nfg": 0.5})
    with pytest.raises(ValueError, match="metric 'nfg'; did you mean 'n_fg'"):
        verdict([kpnb.compare(*pair)], ["nfg"])
    with pytest.raises(ValueError, match="metric 'nfg'; did you mean 'n_fg'"):
        tally([kpnb.compare(*pair)], "nfg")


def networks_of(seed: int) -> Metrics:
    """Six metrics of random entropies."""
    rng = torch.Generator().manual_seed(seed)
    foreground = torch.arange(20).expand(6, 20) < 8
    entropy = torch.rand(4, 6, 20, generator=rng)
    return six_metrics(entropy, foreground, torch.arange(4.0).double(), Choices(b=0.1))
