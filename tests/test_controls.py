"""Controls whose outcome is known, sensitivity against single choices, the scoreboard against plain
counts.
"""

import csv
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from kpnb.metrics import BETTER, NAMES, Choices, six_metrics
from kpnb.points import released_filter
from kpnb.stats import Difference, compare_seeds
from kpnb_book.figures.scoreboard import HYPOTHESES, outcome, paper_signs, scoreboard
from kpnb_book.networks.images import build
from kpnb_book.store import Store
from kpnb_book.studies import measure, tables
from kpnb_book.studies.controls import (
    SHUFFLED,
    controls_plan,
    sensitivity,
    shuffled_baseline,
    shuffled_masks,
    splits,
)
from kpnb_book.studies.forecast import forecast
from kpnb_book.studies.images import ImageStudy
from tests.drawn import TINY, draw

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root, store = draw(tmp_path_factory.mktemp("shapes")), Store(tmp_path_factory.mktemp("store"))
    return ImageStudy(
        "laptop", dataset="folder", data_root=str(root), store=store, **TINY | {"seeds": (0, 1)}
    )


def test_labels_are_shuffled_and_nothing_else_is(study):
    other, one = shuffled_baseline(study), study.baseline()
    assert torch.equal(other.data.images, study.share.images)
    assert other.data.labels.bincount().tolist() == study.share.labels.bincount().tolist()
    assert not torch.equal(other.data.labels, study.share.labels)
    assert other.address not in (one.address, shuffled_baseline(study, 1).address)
    assert (other.kind, other.schedule, other.test) == (one.kind, one.schedule, one.test)
    assert one.data is study.share  # the study itself is as it was


def test_masks_of_other_images_are_used(study):
    entropy = measure.entropies(study, study.baseline(), "FC1")["entropy"]
    found = shuffled_masks(study, study.baseline(), "FC1", shift=2)
    points = measure.metrics(study, study.baseline(), "FC1").points[-1]
    for i in range(len(points)):
        mask = study.foreground[(i + 2) % len(points)]
        level = entropy[-1, i][~mask].mean()
        assert found.n_fg[i] == ((level - entropy[-1, i] > 0.2) & mask).sum()


def untrained(study: ImageStudy) -> torch.Tensor:
    return build(**study.teacher_spec()).features[0].weight


def test_student_of_an_untrained_teacher(study):
    """It starts where the student starts, and mimics what the teacher was before its training."""
    student, control = study.student("FC1"), study.untrained_student("FC1")
    assert torch.equal(student.state(0)["features.0.weight"], control.state(0)["features.0.weight"])
    assert control.run.config["teacher"] == {"run": study.teacher().address, "epoch": 0}
    assert torch.equal(control.teacher.state(0)["features.0.weight"], untrained(study))
    assert control.address != student.address


def test_an_untrained_teacher_knows_nothing_where_the_teacher_starts_from_learned_weights(
    study, tmp_path
):
    weights = tmp_path / "learned.pt"
    torch.save(build(**study.spec(77)).state_dict(), weights)
    options = asdict(study.settings) | {"teacher_weights": str(weights)}
    other = ImageStudy("laptop", store=Store(tmp_path), **options)
    learned = torch.load(weights)["features.0.weight"]
    assert torch.equal(other.teacher().state(0)["features.0.weight"], learned)
    control = other.untrained_student("FC1")
    assert torch.equal(control.teacher.state(0)["features.0.weight"], untrained(study))
    assert control.teacher.epochs == 0


def test_forecast_of_the_controls(study, tmp_path):
    """A teacher, three baselines and four of shuffled labels, a student of either teacher for both
    seeds.
    """
    other = ImageStudy(
        "laptop", **asdict(study.settings) | {"epochs": 1, "analysed": 3}, store=Store(tmp_path)
    )
    other.teacher().finish()
    plan = controls_plan(other, 3)
    found = forecast([plan])
    assert found.trainings == 3 + SHUFFLED + 2 * 2
    assert found.measurements == 2 * found.trainings
    for wanted in plan.measurements:
        wanted.finish()
    assert not forecast([plan])


def test_splits_of_equal_networks(study):
    """Six networks: ten ways to halve them; exchanging the halves is not another one. Five: one is
    left out.
    """
    found = list(splits(list("abcdef")))
    sides = {
        frozenset({"".join(sorted(n[0][i] for n in pairs)) for i in (0, 1)}) for pairs in found
    }
    assert len(found) == len(sides) == 10
    assert all(sorted("".join(a + b for [(a, b)] in pairs)) == list("abcdef") for pairs in found)
    assert len(list(splits(list("abcde")))) == 3
    networks = [measure.metrics(study, study.baseline(seed), "FC1") for seed in (0, 1)]
    (only,) = splits(networks)
    assert compare_seeds(only)["n_fg"].images == 6


def test_sensitivity_has_the_text_first_and_every_choice_once(study):
    table = sensitivity(study)
    assert (
        len(table)
        == len(table.drop_duplicates(["level", "first", "empty", "filtered", "scope"]))
        == 64
    )
    pick = {
        "level": "dataset",
        "first": 0,
        "empty": "zero",
        "filtered": False,
        "scope": "layer steps",
    }
    for row, options in (
        (0, {}),
        (None, {"choices": Choices.released(0.2), "scope": "layer steps"}),
    ):
        chosen = (
            table.iloc[row]
            if row is not None
            else table[(table[list(pick)] == pick).all(axis=1)].iloc[0]
        )
        means = tables.table5(study, **options).groupby("network")[[*NAMES]].mean()
        for name in NAMES:
            expected = means.loc["student", name] - means.loc["baseline", name]
            assert chosen[name] == pytest.approx(expected, nan_ok=True)


def test_filter_is_a_choice(study):
    """The images that the release leaves out are undefined, the others keep their values."""
    entropy, distance = (
        measure.entropies(study, study.baseline(), "FC1")["entropy"].clone(),
        torch.tensor([0.0, 0.1, 0.2]),
    )
    entropy[-1, 0] = -2.8 + 0.1 * study.foreground[0]
    kept = released_filter(entropy, study.foreground, study.background)
    every, some = (
        six_metrics(entropy, study.foreground, distance, Choices(filtered=f)) for f in (False, True)
    )
    assert 0 < kept.sum() < len(kept)
    assert some.n_fg[~kept].isnan().all()
    assert torch.equal(some.n_fg[kept], every.n_fg[kept])


def test_papers_signs_by_plain_counting():
    """The n-th student of a table, data set, network and layer against the n-th baseline there."""
    with open(ROOT / "book" / "paper_tables.csv") as file:
        rows = list(csv.DictReader(file))
    sides, better, pairs = {"student": {}, "baseline": {}}, Counter(), Counter()
    for row in rows:
        if row["role"] in sides:
            where = (row["table"], row["dataset"], row["network"], row["layer"])
            sides[row["role"]].setdefault(where, []).append(row)
    for where, students in sides["student"].items():
        for student, baseline in zip(students, sides["baseline"][where], strict=True):
            for name in NAMES:
                if student[name] and baseline[name]:
                    pairs[name] += 1
                    better[name] += (
                        BETTER[name] * (float(student[name]) - float(baseline[name])) > 0
                    )
    found = paper_signs(pd.read_csv(ROOT / "book" / "paper_tables.csv"))
    assert list(found.index) == ["clouds", "images", "questions", "sentiment"]
    assert found["better"].sum().to_dict() == dict(better)
    assert found["pairs"].sum().to_dict() == dict(pairs)
    assert found.loc["sentiment", ("pairs", "rho")] == 1
    assert found.loc["sentiment", ("better", "n_bg")] == 0  # 1.13 against 0.79
    assert found.loc["questions", ("better", "n_bg")] == 1  # 10.24 against 10.55
    assert found.loc["clouds", ("pairs", "rho")] == 8


def test_scoreboard_says_what_the_study_says(study):
    table = scoreboard(
        {"images, a tiny network": study}, pd.read_csv(ROOT / "book" / "paper_tables.csv")
    )
    assert (
        list(table["metric"])
        == [metric for metrics in HYPOTHESES.values() for metric in metrics]
        == list(NAMES)
    )
    decided = tables.overall(study)
    for row in table.to_dict("records"):
        d = decided[row["metric"]]
        assert (row["effect"], row["p"], row["verdict"]) == pytest.approx(
            (d.value, d.p, d.verdict), nan_ok=True
        )
        gaps = [
            student.row()[d.metric] - baseline.row()[d.metric]
            for student, baseline in measure.pairs(study).values()
        ]
        assert row["ours"].split(" / ")[0] == str(sum(BETTER[d.metric] * gap > 0 for gap in gaps))


def test_outcome_says_which_way_a_mixed_hypothesis_goes():
    """Three metrics of two networks: n_fg and n_bg opposite in both, lambda shows in one."""

    def found(n_fg: float, n_bg: float, ratio: float) -> dict[str, Difference]:
        values = {"n_fg": n_fg, "n_bg": n_bg, "lambda": ratio}
        return {name: Difference(name, v, v - 0.5, v + 0.5, 9) for name, v in values.items()}

    one, other = found(-1, 1, 1), found(-1, 1, 0)
    assert outcome([one, other], HYPOTHESES["H1"]) == "mixed (1 of 6 shows, 4 opposite)"
    assert outcome([other, other], HYPOTHESES["H1"]) == "partly contradicted (4 of 6 opposite)"
    assert outcome([found(1, 0, 0)], HYPOTHESES["H1"]) == "partly supported (1 of 3 shows)"
    assert outcome([found(1, -1, 0)], HYPOTHESES["H1"]) == "partly supported (2 of 3 show)"
    assert outcome([found(1, -1, 1)], HYPOTHESES["H1"]) == "supported"
    assert outcome([found(0, 0, 0)], HYPOTHESES["H1"]) == "open"
    sure = {m: replace(d, delta=9.0, low90=-1.0, high90=1.0) for m, d in found(0, 0, 0).items()}
    assert outcome([sure], HYPOTHESES["H1"]) == "negligible"
    assert outcome([sure, found(0, 0, 0)], HYPOTHESES["H1"]) == "open"
