"""From stored tables to verdicts: against plain arithmetic, and with networks whose truth is
planted.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from math import exp, log

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from kpnb.metrics import NAMES
from kpnb.points import knowledge_points
from kpnb_book.studies import paper
from kpnb_book.studies.controls import false_positives_of_seeds, networks_of, null_gaps
from kpnb_book.studies.replication import agreement, coverage, replication
from kpnb_book.studies.rows import place_counts
from kpnb_book.studies.verdicts import by_seed, estimates, seeds_of, verdicts
from tests.simulated import LEVELS, tables

PAPER = paper.read()


def judged(samples: pd.DataFrame, networks: pd.DataFrame, kind: str = "images") -> pd.DataFrame:
    """The frame by question and metric."""
    return verdicts(samples, networks, kind, PAPER).set_index(["question", "metric"])


def words(frame: pd.DataFrame, question: str) -> dict[str, str]:
    return frame.loc[question, "verdict"].to_dict()


# ---- what the paper leads to expect


def test_expected_differences_by_plain_arithmetic():
    """The n-th student of a table, data set, network and layer and the n-th baseline there."""
    sides = {"student": defaultdict(list), "baseline": defaultdict(list)}
    with open(paper.PAPER) as file:
        for row in csv.DictReader(file):
            where = (row["table"], row["dataset"], row["network"], row["layer"])
            sides.get(row["role"], defaultdict(list))[where].append(row)
    gaps, logs = defaultdict(list), defaultdict(list)
    for where, students in sides["student"].items():
        cloud = where[1].startswith("ModelNet")
        kind = "clouds" if cloud else {"SST-2": "sentiment", "SQuAD": "questions"}.get(where[1])
        for student, baseline in zip(students, sides["baseline"][where], strict=True):
            for name in NAMES:
                if student[name] and baseline[name]:
                    one, other = float(student[name]), float(baseline[name])
                    gaps[kind or "images", name].append(one - other)
                    logs[kind or "images", name].append(log(one / other))
    found = paper.expected(PAPER)
    for (kind, name), values in gaps.items():
        expected = np.mean(values)
        if name in ("d_mean", "d_var") or (kind == "clouds" and name in ("n_fg", "n_bg")):
            expected = exp(np.mean(logs[kind, name])) - 1
        assert found.loc[kind, name] == pytest.approx(expected)
    assert sum(len(values) for values in gaps.values()) == 564


def test_delta_is_half_of_it_in_our_units():
    ours = dict.fromkeys(NAMES, 10.0)
    expected = paper.expected(PAPER)
    images, clouds = (paper.deltas(PAPER, kind, ours) for kind in ("images", "clouds"))
    assert images["n_fg"] == pytest.approx(expected.loc["images", "n_fg"] / 2)
    assert images["n_bg"] == pytest.approx(-expected.loc["images", "n_bg"] / 2)
    assert images["d_mean"] == pytest.approx(-5 * expected.loc["images", "d_mean"])
    assert clouds["n_fg"] == pytest.approx(5 * expected.loc["clouds", "n_fg"])
    assert all(delta > 0 for delta in (*images.values(), *clouds.values()))


# ---- questions and tables


def test_values_are_means_over_seeds_layers_and_samples():
    samples, networks = tables({"student": {"n_fg": 3.0}, "untrained": {}}, seeds=4)
    frame = judged(samples, networks)
    means = samples.groupby("network")[["n_fg", "place_lambda", "lambda", "d"]].mean()
    gap = means.loc["student"] - means.loc["baseline"]
    assert frame.loc[("paper", "n_fg"), "value"] == pytest.approx(gap["n_fg"])
    assert frame.loc[("place", "lambda"), "value"] == pytest.approx(gap["place_lambda"])
    left = frame.loc[("beyond place", "lambda"), "value"]
    assert left == pytest.approx(gap["lambda"] - gap["place_lambda"])
    smooth = means.loc["untrained", "d"] - means.loc["baseline", "d"]
    assert frame.loc[("smooth target", "d_mean"), "value"] == pytest.approx(smooth)
    path = networks.groupby("network")["path"].mean()
    expected = path["student"] - path["baseline"]
    assert frame.loc[("length of the path", "d_mean"), "value"] == pytest.approx(expected)
    groups = samples.groupby(["network", "seed", "layer"])["share"].var(ddof=0)
    varied = groups.groupby("network").mean()
    expected = varied["student"] - varied["baseline"]
    assert frame.loc[("share of the path", "d_var"), "value"] == pytest.approx(expected)


def test_tests_are_corrected_within_a_question():
    samples, networks = tables(seeds=5)
    frame = judged(samples, networks)
    means = by_seed(samples)
    raw = {name: stats.ttest_1samp(means[name], 0).pvalue for name in NAMES}
    for name in NAMES:
        assert frame.loc[("paper", name), "p"] >= min(1, raw[name])
    assert (frame.loc["paper", "p"] >= min(1.0, 6 * min(raw.values())) - 1e-9).all()


def test_what_the_tables_lack_is_left_out():
    samples, networks = tables({"student": {}}, seeds=3)
    frame = judged(samples.assign(d_equal=np.nan), networks)
    answered = {*frame.index.get_level_values("question")}
    assert not answered & {"smooth target", "equal rates", "equal length of the path"}
    assert answered >= {"paper", "beyond place", "share of the path"}


def test_a_difference_that_one_of_the_networks_never_has_is_left_out():
    """As at equal length, where the student's path is longer after its first epoch."""
    samples, networks = tables({"student": {}}, seeds=3)
    question = "equal length of the path"
    assert question in judged(samples, networks).index.get_level_values("question")
    samples.loc[samples["network"] == "student", "d_equal"] = np.nan
    assert question not in judged(samples, networks).index.get_level_values("question")


@pytest.mark.parametrize(("every", "judged_at_all"), [(5, True), (15, False)])
def test_a_metric_that_few_samples_define_is_not_judged(every, judged_at_all):
    """Of a fifth of 30 samples, and of a fifteenth."""
    samples, networks = tables({"student": {}, "untrained": {}}, seeds=3)
    empty = (samples["network"] == "untrained") & (samples["sample"] % every > 0)
    samples.loc[empty, ["lambda", "d", "rho"]] = np.nan
    found = judged(samples, networks).index.get_level_values("question")
    assert ("beyond a smooth target" in found) == judged_at_all
    assert "paper" in found


@pytest.mark.parametrize(("defining", "judged_at_all"), [({1}, False), ({1, 2}, True)])
def test_a_metric_of_one_seed_is_not_judged(defining, judged_at_all):
    """Of every sample in one of three seeds, a third of all: no test over seeds can come of it."""
    samples, networks = tables({"student": {}}, seeds=3)
    empty = (samples["network"] == "student") & ~samples["seed"].isin(defining)
    samples.loc[empty, ["lambda", "d", "rho"]] = np.nan
    found = judged(samples, networks)
    assert ("paper" in found.index.get_level_values("question")) == judged_at_all
    if judged_at_all:
        assert found.loc[("paper", "rho"), "seeds"] == 2


def test_a_seed_without_one_of_its_networks_does_not_count():
    samples, networks = tables(seeds=5)
    lacking = (samples["seed"] == 3) & (samples["network"] == "student")
    lacking &= samples["layer"] == "FC1"
    fewer = samples[~lacking]
    assert seeds_of(fewer, "student", "baseline") == [0, 1, 2, 4]
    without = samples[samples["seed"] != 3]
    found, expected = (
        judged(table, networks)[["value", "low", "high", "p", "seeds"]]
        for table in (fewer, without)
    )
    pd.testing.assert_frame_equal(found, expected)


def test_a_network_without_any_point_on_an_object_is_left_out_where_it_is_undefined():
    samples, networks = tables(seeds=5)
    idle = (samples["seed"] == 2) & (samples["network"] == "baseline")
    samples.loc[idle, ["d", "share", "d_equal", "rho"]] = np.nan
    frame = judged(samples, networks)
    assert frame.loc[("paper", "rho"), "seeds"] == frame.loc[("paper", "d_var"), "seeds"] == 4
    assert frame.loc[("paper", "n_fg"), "seeds"] == 5
    assert frame.loc["paper", "delta"].notna().all()


def test_the_order_of_rows_does_not_matter():
    samples, networks = tables(seeds=4)
    mixed = samples.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(judged(mixed, networks), judged(samples, networks))


def test_estimates_of_distances_are_in_proportion_to_the_baseline():
    samples, networks = tables({"student": {"d": -0.1}}, seeds=4)
    frame = judged(samples, networks).loc["paper"]
    seeds = by_seed(samples)
    unit = samples.loc[samples["network"] == "baseline", "d"].mean()
    for found in estimates(samples, "images", PAPER):
        scale = 1.0 if not found.relative else frame.loc[found.metric, "value"] / found.value
        assert found.relative == (found.metric in ("d_mean", "d_var"))
        assert found.seeds * scale == pytest.approx(seeds[found.metric].to_numpy())
        assert found.delta * scale == pytest.approx(frame.loc[found.metric, "delta"])
        assert found.verdict == frame.loc[found.metric, "verdict"]
        if found.metric == "d_mean":
            assert scale == pytest.approx(unit)
    paper_row = {"student": 44.48, "baseline": 28.27}  # VGG-11, FC1 on ILSVRC2013, Table 5
    counts = estimates(samples, "images", PAPER)[0].paper
    assert np.isclose(counts, paper_row["student"] - paper_row["baseline"]).any()


# ---- planted truths

GRID = 12


def masks(count: int, gen: torch.Generator) -> torch.Tensor:
    """Discs that lie about the middle, bool ``[N, n]``."""
    middle = GRID / 2 + 1.5 * torch.randn(count, 2, generator=gen)
    cells = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)) + 0.5
    return torch.cdist(middle, cells) < 3


def entropies(liking: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Entropies ``[N, n]`` in which a unit is a knowledge point with the probability ``liking``."""
    return -1.0 * (torch.rand(liking.shape, generator=gen) < liking)


@dataclass(frozen=True)
class Discs:
    """What ``place_counts`` asks of a study."""

    foreground: torch.Tensor

    def other_regions(self, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        others = self.foreground.roll(-shift, 0)
        return others, ~others


def counted(entropy: torch.Tensor, own: torch.Tensor) -> dict[str, np.ndarray]:
    """The columns of ``samples`` that tell of points: by own masks, and by those of others."""
    found = knowledge_points(entropy, own)
    values = [found.n_fg, found.n_bg, found.ratio, *place_counts(Discs(own), found.points)]
    names = ("n_fg", "n_bg", "lambda", "place_n_fg", "place_n_bg", "place_lambda")
    return {name: value.double().numpy() for name, value in zip(names, values, strict=True)}


def planted(student_likes: str, seeds: int = 8, count: int = 60) -> pd.DataFrame:
    """Tables of a baseline whose points lie anywhere, and a student that likes the "middle" or the
    "object".
    """
    gen = torch.Generator().manual_seed(0)
    own = masks(count, gen)
    rows, columns = torch.cartesian_prod(*[torch.arange(GRID) - (GRID - 1) / 2] * 2).unbind(1)
    middle = 0.7 * torch.exp(-(rows**2 + columns**2) / 18)
    liking = {"baseline": torch.full(own.shape, 0.2), "middle": middle.expand(own.shape)}
    liking["object"] = 0.05 + 0.5 * own
    samples, networks = tables(seeds=seeds, samples=count, layers=("Conv",))
    for seed in range(seeds):
        for role in ("student", "baseline"):
            wanted = liking[student_likes if role == "student" else "baseline"]
            here = (samples["seed"] == seed) & (samples["network"] == role)
            for name, values in counted(entropies(wanted, gen), own).items():
                samples.loc[here, name] = values
    return judged(samples, networks)


def test_a_liking_for_the_middle_is_all_place():
    """lambda above the baseline's, and nothing left of it."""
    frame = planted("middle")
    assert words(frame, "paper")["lambda"] == words(frame, "place")["lambda"] == "shows"
    assert words(frame, "beyond place")["lambda"] == "negligible"
    left, whole = (frame.loc[(q, "lambda"), "value"] for q in ("beyond place", "paper"))
    assert abs(left) < 0.1 * whole


def test_a_liking_for_the_object_is_left_beyond_place():
    frame = planted("object")
    assert words(frame, "paper")["lambda"] == words(frame, "beyond place")["lambda"] == "shows"
    assert words(frame, "beyond place")["n_fg"] == "shows"
    assert frame.loc[("beyond place", "lambda"), "value"] > 0.2


def stretched(factor: float, later: float = 0.0) -> pd.DataFrame:
    """A student whose path is ``factor`` times as long, and whose richest epochs come ``later`` on
    it.
    """
    samples, networks = tables({"student": {"share": later}, "equal-rate": {}}, seeds=8)
    path = {"student": factor, "baseline": 1.0, "equal-rate": 1.0}
    networks["path"] = networks["network"].map(path)
    samples["d"] = samples["share"] * samples["network"].map(path)
    samples["d_equal"] = samples["share"] * min(factor, 1.0)
    return judged(samples, networks)


def test_a_shorter_path_shows_in_d_and_not_in_the_share():
    frame = stretched(0.3)
    assert words(frame, "paper")["d_mean"] == words(frame, "paper")["d_var"] == "shows"
    assert words(frame, "length of the path") == {"d_mean": "shows"}
    for question in ("share of the path", "equal length of the path", "equal rates"):
        assert not {"shows", "opposite"} & {*words(frame, question).values()}
    assert words(frame, "equal rates")["d_mean"] == "negligible"


def test_later_on_a_shorter_path_is_opposite_in_the_share():
    frame = stretched(0.3, later=0.2)
    assert words(frame, "paper")["d_mean"] == "shows"
    assert words(frame, "share of the path")["d_mean"] == "opposite"


def test_a_smooth_target_that_does_it_all():
    """Student and untrained teacher's student alike: it shows against the baseline, and nothing is
    left.
    """
    same = {"n_bg": -3.0, "rho": 0.2}
    frame = judged(*tables({"student": same, "untrained": same}, seeds=10))
    for metric in same:
        assert words(frame, "paper")[metric] == words(frame, "smooth target")[metric] == "shows"
        assert words(frame, "beyond a smooth target")[metric] in ("negligible", "undecided")


# ---- replication


def test_a_seed_of_the_same_study_is_predicted():
    stored = by_seed(tables({"student": {"n_fg": 4.0}}, seeds=20)[0])
    own = by_seed(tables({"student": {"n_fg": 4.0}}, seeds=3, first=100, seed=5)[0])
    found = replication(stored, own).set_index("metric")
    assert [*found.index] == [*NAMES]
    half = stats.t.ppf(0.975, 19) * stored["n_fg"].std() * np.sqrt(1 / 20 + 1 / 3)
    assert found.loc["n_fg", "low"] == pytest.approx(stored["n_fg"].mean() - half)
    assert (found["seeds"] == 3).all()
    assert found["inside"].mean() >= 5 / 6


def test_another_study_is_not():
    stored = by_seed(tables({"student": {"n_fg": 4.0}}, seeds=20)[0])
    own = by_seed(tables({"student": {"n_fg": -4.0}}, seeds=3, first=100, seed=5)[0])
    assert not replication(stored, own).set_index("metric").loc["n_fg", "inside"]


def test_only_the_samples_of_a_build_count():
    samples, _ = tables(seeds=4, samples=30)
    kept = by_seed(samples, chosen=range(10))
    pd.testing.assert_frame_equal(kept, by_seed(samples[samples["sample"] < 10]))
    assert not np.allclose(kept, by_seed(samples))


def test_a_stored_seed_replicates_nothing():
    stored = by_seed(tables(seeds=4)[0])
    with pytest.raises(ValueError, match=r"seeds \[3\] are stored already"):
        replication(stored, stored.loc[[3]])


def test_builds_and_single_seeds_lie_inside_as_often_as_they_should():
    """95 of 100, within what chance allows for so many cells that hang together."""
    inside, total, alone = 0, 0, []
    for draw in range(12):
        stored = by_seed(tables(seeds=20, samples=10, layers=("FC1",), seed=draw)[0])
        own = by_seed(tables(seeds=2, samples=10, layers=("FC1",), first=100, seed=99 + draw)[0])
        found = agreement([replication(stored, own)])
        inside, total = inside + found["count"], total + found["total"]
        alone.append(coverage(stored)["rate"])
    assert total == 12 * len(NAMES)
    assert inside / total >= stats.binom.ppf(0.001, total, 0.95) / total
    assert 0.92 < np.mean(alone) < 0.98


# ---- errors of the rule


def test_null_comparisons_use_every_network_once():
    samples, _ = tables(seeds=6)
    labelled = samples.assign(n_fg=samples["seed"] * 1.0)
    found = null_gaps(networks_of(labelled)[:1], np.random.default_rng(0))["n_fg"]
    assert found.shape == (3, 2, 30)
    steps = np.abs(found[:, 0, 0])
    assert (steps > 0).all()  # never a network against itself
    pairs = null_gaps(networks_of(samples), np.random.default_rng(0))["n_fg"]
    assert len(pairs) == 6  # two roles of six


def test_false_positives_do_not_depend_on_an_effect():
    """What a student has more of cancels in a comparison of students."""
    rates = [
        false_positives_of_seeds(tables({"student": effect}, seeds=8, samples=12)[0], draws=60)
        for effect in ({}, {name: 10 * level for name, level in LEVELS.items()})
    ]
    assert rates[0] == rates[1]


def test_the_rule_errs_in_5_percent_of_families_at_most():
    wrong = total = 0
    for draw in range(8):
        samples, _ = tables(seeds=20, samples=60, layers=("FC1",), seed=draw)
        found = false_positives_of_seeds(samples, draws=25)["families"]
        wrong, total = wrong + found["count"], total + found["total"]
    assert total == 200
    assert 0 < wrong <= stats.binom.ppf(0.999, total, 0.05)
