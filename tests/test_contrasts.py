"""Whether a rule, a setting or the data change a difference: planted tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from kpnb.metrics import NAMES
from kpnb_book.studies import contrasts
from kpnb_book.studies.stored import Stored, read
from kpnb_book.studies.verdicts import by_seed
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


def test_two_studies_lie_as_far_apart_as_their_seeds_say(tmp_path, images):
    """Against Welch's t by hand."""
    other = stored(tmp_path, "two", {"student": {"n_fg": 9.0}}, seeds=8, samples=20, seed=3)
    found = contrasts.of_studies(other, images).set_index("metric")
    assert [*found.index] == [*NAMES]
    ours, theirs = (by_seed(each.samples)["n_fg"] for each in (other, images))
    parts = ours.var() / 8, theirs.var() / 12
    free = sum(parts) ** 2 / (parts[0] ** 2 / 7 + parts[1] ** 2 / 11)
    half = t.ppf(0.975, free) * sum(parts) ** 0.5
    row = found.loc["n_fg"]
    assert row["value"] == pytest.approx(ours.mean() - theirs.mean())
    assert (row["low"], row["high"]) == pytest.approx((row["value"] - half, row["value"] + half))
    assert row["seeds"] == (8, 12)
    assert row["low"] > 0
    plain = 2 * t.sf(row["value"] / sum(parts) ** 0.5, free)
    assert row["p"] == pytest.approx(6 * plain)  # Holm: the least of six
    assert found.loc["rho", "p"] > 0.05


def test_the_same_seeds_are_compared_in_pairs(tmp_path, images):
    """The other study is this one, shifted: paired, there is no spread at all."""
    samples = images.samples.copy()
    samples.loc[samples["network"] == "student", "n_fg"] += 2.0
    shifted = replace(images, samples=samples[samples["seed"] < 5], stated=tuple(range(5)))
    found = contrasts.of_studies(shifted, images, paired=True).set_index("metric").loc["n_fg"]
    assert found["seeds"] == (5, 5)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((2.0, 2.0, 2.0))
    apart = contrasts.of_studies(shifted, images).set_index("metric").loc["n_fg"]
    assert apart["high"] - apart["low"] > 0.5


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
