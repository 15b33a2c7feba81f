"""Chance from images and from training seeds: coverage on simulated networks, and the tests by
hand.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from kpnb.metrics import BETTER, NAMES, Metrics
from kpnb.stats import Difference, compare, compare_seeds, holm, judge
from kpnb_book.studies.controls import false_positives


def network(values: torch.Tensor) -> Metrics:
    """A network whose metrics are ``values [N]`` in every image."""
    return Metrics(*[values] * 5, points=torch.zeros(2, len(values), 4, dtype=torch.bool))


def gaps(
    rng: np.random.Generator, seeds: int, images: int, by_seed: float, by_image: float
) -> np.ndarray:
    """Differences without any effect, and with known deviations between seeds and between images; 1
    for the rest.
    """
    parts = by_seed * rng.standard_normal((seeds, 1)), by_image * rng.standard_normal((1, images))
    return sum(parts) + rng.standard_normal((seeds, images))


def judged_once(values: np.ndarray, chance: str = "seeds") -> tuple[float, float, float]:
    """Interval and p of a metric that is ``values [S, N]``."""
    d = judge({"n_fg": values}, chance)["n_fg"]
    return d.low, d.high, d.p


@pytest.mark.parametrize("by_seed", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_interval_over_seeds_covers_the_truth_as_often_as_it_says(seeds, by_seed):
    """At least 93 in 100 (of 1,000) whether seeds matter or not."""
    rng = np.random.default_rng(0)
    found = [judged_once(gaps(rng, seeds, 60, by_seed, 1.0)) for _ in range(1000)]
    assert np.mean([low <= 0 <= high for low, high, _ in found]) >= 0.93
    assert np.mean([p <= 0.05 for *_, p in found]) <= 0.07


def test_what_ignores_seeds_or_bootstraps_three_of_them_covers_too_rarely():
    """Seeds as different as images are: far fewer than 95 of 100."""
    rng = np.random.default_rng(0)
    drawn = [gaps(rng, 3, 60, 1.0, 1.0) for _ in range(150)]
    share = {}
    for chance in ("images", "bootstrap"):
        found = [judged_once(values, chance) for values in drawn]
        share[chance] = np.mean([low <= 0 <= high for low, high, _ in found])
    assert share["images"] < 0.5
    assert 0.6 < share["bootstrap"] < 0.88


def test_without_one_source_of_chance_it_is_the_t_test_of_the_other():
    values = np.random.default_rng(1).standard_normal(7) + 0.5
    for crossed in (values[:, None].repeat(9, 1), values[None].repeat(4, 0)):
        low, high, p = judged_once(crossed)
        test = stats.ttest_1samp(values, 0)
        assert (low, high) == pytest.approx(tuple(test.confidence_interval()))
        assert p == pytest.approx(test.pvalue)


def test_difference_over_seeds_is_the_mean_over_seeds_and_layers():
    gen = torch.Generator().manual_seed(0)
    draw = [
        [torch.randn(2, 30, generator=gen, dtype=torch.float64) for _layer in range(2)]
        for _seed in range(3)
    ]
    found = compare_seeds([[(network(a), network(b)) for a, b in layers] for layers in draw])
    values = torch.stack(
        [torch.stack([a - b for a, b in layers]).mean(0) for layers in draw]
    ).numpy()
    for name in ("n_fg", "n_bg", "lambda", "d_mean", "rho"):
        d = found[name]
        assert (d.value, d.images, d.seeds) == (pytest.approx(values.mean()), 30, 3)
        assert (d.low, d.high, d.p) == pytest.approx(judged_once(values))
        assert d.effect == pytest.approx(values.mean() / np.sqrt(values.var(1, ddof=1).mean()))
    spread = np.mean([[a.numpy().var() - b.numpy().var() for a, b in layers] for layers in draw])
    assert found["d_var"].value == pytest.approx(spread)
    images_only = compare_seeds(
        [[(network(a), network(b)) for a, b in layers] for layers in draw], "images"
    )
    assert (
        images_only["n_fg"].high - images_only["n_fg"].low < found["n_fg"].high - found["n_fg"].low
    )


def test_one_training_knows_the_images_only():
    a, b = torch.randn(2, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert compare_seeds([[(network(a), network(b))]]) == compare(network(a), network(b))


def test_paired_test_flips_every_sign():
    """Five images, all larger in the student: 2 of the 32 ways to choose signs are as extreme."""
    a = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
    found = compare(network(a), network(torch.zeros_like(a)))["rho"]
    assert found.p == pytest.approx(2 / 32)
    assert found.low > 0
    assert (
        found.verdict == "open"
    )  # the test does not agree with the interval, so nothing is claimed


def test_chance_is_spelled_right():
    with pytest.raises(ValueError, match="unknown chance 'seed'; did you mean 'seeds'"):
        compare_seeds([[(network(torch.arange(3.0)), network(torch.arange(3.0)))]], "seed")


def test_other_numbers_of_images_are_named():
    """One image too, which would go with any number of others."""
    for other in (2, 1):
        with pytest.raises(ValueError, match=f"student and baseline have 4 and {other} images"):
            compare(network(torch.arange(4.0)), network(torch.arange(float(other))))
    four, two = ((network(torch.arange(n)), network(torch.zeros(int(n)))) for n in (4.0, 2.0))
    with pytest.raises(ValueError, match=r"trainings 0 and 1 .*\(4 and 2 images\)"):
        compare_seeds([[four], [two]])
    with pytest.raises(ValueError, match=r"as many images for every seed.*2 rows that differ"):
        judge({"n_fg": [[1.0, 2.0], [1.0]]})


def test_a_difference_too_small_to_matter_is_not_negative():
    pair = network(torch.arange(4.0)), network(torch.zeros(4))
    with pytest.raises(ValueError, match=r"delta\['n_fg'\]=-1 must not be negative"):
        compare(*pair, delta={"n_fg": -1})
    assert np.isnan(compare(*pair, delta={"n_fg": np.nan})["n_fg"].delta)  # nobody has said


def judged(name: str, p: float) -> Difference:
    return Difference(name, *(BETTER[name] * v for v in (1.0, 0.5, 1.5)), 9, 3, p)


def test_holm_by_hand():
    """0.01 x 4, 0.015 x 3, 0.03 x 2 and 0.04 raised to what came before; what was not tested does
    not count.
    """
    p = {"n_fg": 0.03, "n_bg": 0.01, "lambda": 0.04, "d_mean": 0.015, "rho": float("nan")}
    corrected = holm({name: judged(name, value) for name, value in p.items()})
    expected = {"n_fg": 0.06, "n_bg": 0.04, "lambda": 0.06, "d_mean": 0.045}
    assert list(corrected) == list(p)
    assert {name: corrected[name].p for name in expected} == pytest.approx(expected)
    assert [corrected[name].verdict for name in p] == ["open", "shows", "open", "shows", "shows"]


def test_false_positives_are_counted():
    null = {name: judged(name, 0.5) for name in NAMES}
    found = false_positives([null] * 3 + [null | {"rho": judged("rho", 0.01)}])
    assert (found["count"], found["total"], found["rate"]) == (1, 24, 1 / 24)
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, 1, 24))  # Clopper and Pearson
    assert false_positives([null], ["rho"])["total"] == 1
