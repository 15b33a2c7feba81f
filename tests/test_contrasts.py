"""Whether a rule, a setting or the data change a difference: planted tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kpnb.metrics import NAMES
from kpnb.stats import holm_values, judge
from kpnb_book.studies import contrasts
from kpnb_book.studies.stored import Stored, read
from kpnb_book.studies.verdicts import by_seed, gaps
from tests.simulated import tables, write

BOTH = {"student": {"n_fg": 3.0}}


def stored(folder, name: str, effects, **options) -> Stored:
    write(folder / name, "ImageStudy", effects, **options)
    return read({name: None}, folder)[name]


@pytest.fixture
def images(tmp_path) -> Stored:
    return stored(tmp_path, "one", BOTH, seeds=12, samples=20)


def with_rule(each: Stored, added: float) -> Stored:
    """By the rule "box" the student has so many more points than by the mask."""
    rng, samples = np.random.default_rng(5), each.samples
    more = added * (samples["network"] == "student") + rng.normal(0, 1, len(samples))
    columns = {f"box_{name}": samples[name] for name in ("n_bg", "lambda", "d", "rho")}
    return replace(each, samples=samples.assign(box_n_fg=samples["n_fg"] + more, **columns))


@pytest.mark.parametrize(("added", "differs"), [(0.0, False), (1.5, True)])
def test_what_a_rule_adds(images, added, differs):
    """Both rules show the planted three points; only the second adds to them."""
    found = contrasts.of_rule(with_rule(images, added), "box")
    assert [*found] == ["n_fg", "n_bg", "lambda", "d_mean", "rho"]
    assert found["n_fg"].value == pytest.approx(added, abs=0.3)
    assert (found["n_fg"].low > 0) is differs
    assert found["n_bg"].value == found["rho"].value == 0


def test_a_rule_that_tables_lack_adds_nothing(images):
    assert contrasts.of_rule(images, "box") == {}


def test_two_studies_lie_as_far_apart_as_seeds_and_samples_say(tmp_path, images):
    """The interval is as wide as both in squares, and p the level at which it ends at 0."""
    other = stored(tmp_path, "two", {"student": {"n_fg": 9.0}}, seeds=8, samples=20, seed=3)
    found = contrasts.of_studies(other, images).set_index("metric")
    assert [*found.index] == [*NAMES]
    sides = [judge(gaps(each.samples)) for each in (other, images)]
    halves = [(side["n_fg"].high - side["n_fg"].low) / 2 for side in sides]
    row, value = found.loc["n_fg"], sides[0]["n_fg"].value - sides[1]["n_fg"].value
    assert row["value"] == pytest.approx(value)
    half = (halves[0] ** 2 + halves[1] ** 2) ** 0.5
    assert (row["low"], row["high"]) == pytest.approx((value - half, value + half))
    assert row["low"] > 0
    assert row["p"] < 0.01
    plain = [level_of(sides, metric) for metric in NAMES]
    assert found["p"].tolist() == pytest.approx(holm_values(plain, 6).tolist(), rel=0.02, abs=1e-3)


def level_of(sides, metric: str) -> float:
    """The level at which the interval of a difference ends at 0, on a fine grid."""
    value = abs(sides[0][metric].value - sides[1][metric].value)
    for level in np.linspace(1e-4, 1, 2000):
        if np.hypot(*(side[metric].spread.half_width(level) for side in sides)) < value:
            return level
    return 1.0


def test_a_study_is_not_apart_from_itself(images):
    found = contrasts.of_studies(images, images).set_index("metric")
    assert (found["value"] == 0).all()
    assert found["p"].tolist() == pytest.approx([1.0] * 6)


def test_nothing_is_compared_before_all_seeds_are_there(tmp_path, images):
    late = replace(images, stated=tuple(range(20)))
    assert contrasts.of_studies(late, images).empty
    assert contrasts.of_studies(images, late).empty
    assert contrasts.of_rule(with_rule(late, 1.5), "box") == {}
    pointless = images.samples.assign(rho=np.nan)
    assert contrasts.of_studies(images, replace(images, samples=pointless)).empty


def test_planted_tables_are_what_they_say():
    samples, _ = tables(BOTH, seeds=12, samples=20)
    assert isinstance(samples, pd.DataFrame)
    assert by_seed(samples)["n_fg"].mean() == pytest.approx(3, abs=1.5)
