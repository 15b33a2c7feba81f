"""What the chapter on losses computes from tables, and the page itself in every state of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from kpnb.losses import LOSSES
from kpnb.metrics import NAMES
from kpnb_book.figures import losses as shown
from kpnb_book.figures import sentences
from kpnb_book.store import Store
from kpnb_book.studies import transfer
from kpnb_book.studies.evidence import PROFILE
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.losses import (
    LOSSES_EVIDENCE,
    OVERLAP,
    UNTRAINED,
    own_students,
    packed,
    way_of,
)
from kpnb_book.studies.results import KEY, Results, Rows
from kpnb_book.studies.stored import Stored
from tests.executed import executed
from tests.simulated import tables
from tests.test_study import TINY, draw

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "70_losses.ipynb"
SETTINGS = ImageStudy.resolve(PROFILE, **LOSSES_EVIDENCE.overrides)
GAINS = dict(zip(LOSSES, (0.08, 0.06, 0.05, 0.04, 0.0, -0.03, 0.07, 0.0, 0.01), strict=True))
SHARED = {name: 0.5 + gain for name, gain in GAINS.items()}  # in the order of the accuracies


def simulated(losses=tuple(LOSSES), seeds: int = 5, untrained: bool = False) -> Rows:
    """Tables with planted accuracies and overlaps."""
    roles = [*losses, *(f"{UNTRAINED}{name}" for name in losses if untrained)]
    effects = {role: {"n_fg": 6.0 if role == "at" else 0.0} for role in roles}
    samples, networks = tables(effects, seeds=seeds, samples=20, layers=("FC1", "FC2"))
    rng = np.random.default_rng(1)
    levels = {"baseline": 0.3} | {role: SHARED.get(role, 0.3) for role in roles}
    shared = samples["network"].map(levels) + rng.normal(0, 0.02, len(samples))
    overlap = dict.fromkeys(OVERLAP, 2.0) | {"iou_teacher": shared, "iou_place": 0.2}
    samples = samples.assign(**overlap | {"iou_baseline": 0.25}, share=0.4)
    gains = networks["network"].map(GAINS).fillna(0)
    ways = {name: way_of(name) for name in LOSSES}
    names = networks["network"].str.removeprefix(UNTRAINED)
    trained = {
        "lr": [ways[n].lr(SETTINGS) if n in ways else SETTINGS.lr for n in names],
        "weight": [ways[n].weight_of(n) if n in ways else np.nan for n in names],
        "labels": [ways[n].labels if n in ways else 1.0 for n in names],
    }
    accuracy = 0.4 + gains + rng.normal(0, 0.004, len(networks))
    networks = networks.assign(accuracy=accuracy, **trained)
    points = packed(torch.arange(256) % 3 == 0)
    columns = {f"{name}{k}": points for name in ("picture", "taught") for k in range(4)}
    return Rows(networks, samples, networks[KEY].assign(cell0=1, **columns))


def write(folder: Path, rows: Rows, **changed: object) -> Path:
    origin = LOSSES_EVIDENCE.stated(SETTINGS) | changed
    Results(folder / LOSSES_EVIDENCE.name).add(origin, rows)
    return folder


def as_read(rows: Rows, stated: tuple[int, ...] = ()) -> Stored:
    """Tables as they are read, or as a build makes them, which states no seeds."""
    return Stored("images", rows.networks, rows.samples, rows.places, stated, frozenset())


@pytest.fixture(scope="module")
def complete() -> Stored:
    return as_read(simulated(untrained=True), tuple(LOSSES_EVIDENCE.seeds))


# ---- what is computed


def test_losses_are_ranked_by_what_they_share(complete):
    order = transfer.ranking(complete)
    planted = sorted(SHARED, key=SHARED.get, reverse=True)
    assert order["loss"].tolist()[:4] == planted[:4]
    raises = order.set_index("loss")["raises"]
    assert [raises[name] for name in ("feature", "soft_targets", "rkd")] == ["yes"] * 3
    assert raises["sp"] == "no: lower"
    assert transfer.finished(complete)
    known = transfer.baselines(complete)
    assert known["teacher"] == pytest.approx(0.3, abs=0.02)
    assert known["each other"] == pytest.approx(0.25)


def test_gains_are_paired_by_seed_and_have_students_interval(complete):
    networks = complete.networks
    table = networks.pivot_table(index="seed", columns="network", values="accuracy")
    gains = table["at"] - table["baseline"]
    row = transfer.ranking(complete).set_index("loss").loc["at"]
    assert row["gain"] == pytest.approx(gains.mean())
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((interval.low, interval.high))


def test_gains_are_corrected_for_the_number_of_losses(complete):
    """Against the textbook's loop; an interval that just excludes 0 does not do."""
    order = transfer.ranking(complete)
    table = transfer.by_network(complete)
    found = {name: transfer.compared(table, name)["gain"] for name in order["loss"]}
    plain = {name: stats.ttest_1samp(gain, 0).pvalue for name, gain in found.items()}
    largest = 0.0
    for left, name in zip(range(9, 0, -1), sorted(plain, key=plain.get), strict=True):
        largest = max(largest, min(1.0, left * plain[name]))
        assert order.set_index("loss").loc[name, "p"] == pytest.approx(largest)
    crd = order.set_index("loss").loc["crd_in_batch"]
    assert crd["gain_low"] > 0
    assert crd["raises"] == "not clear"


def test_means_by_network_by_hand():
    taught = as_read(simulated(("at",), seeds=2))
    table = transfer.by_network(taught).set_index(KEY)
    mine = taught.samples.set_index(KEY).loc[(1, "FC2", "at")]
    row = table.loc[(1, "FC2", "at")]
    assert row["d_mean"] == pytest.approx(mine["d"].mean())
    assert row["d_var"] == pytest.approx(np.var(mine["d"]))
    assert row["iou_teacher"] == pytest.approx(mine["iou_teacher"].mean())


def test_correlation_against_scipy_and_its_verdict(complete):
    """Planted: accuracy goes with what is shared, and with nothing else."""
    found = transfer.correlations(complete).set_index("name")
    table = transfer.by_network(complete).query("network in @LOSSES")
    for name in transfer.CLAIM:
        expected = stats.spearmanr(table[name], table["accuracy"]).statistic
        assert found.loc[name, "rho"] == pytest.approx(expected)
    assert found.loc["iou_teacher", "verdict"] == "shows"
    assert found.loc["lambda", "verdict"] == "open"
    assert found["networks"].tolist() == [90] * 3
    means = table.groupby("network").mean(numeric_only=True)
    p = stats.spearmanr(means["iou_teacher"], means["accuracy"]).pvalue
    assert found.loc["iou_teacher", "p"] == pytest.approx(3 * p, abs=0.01)
    p = stats.spearmanr(means["n_fg"], means["accuracy"]).pvalue
    assert found.loc["n_fg", "p"] == pytest.approx(min(1, 3 * p), abs=0.1)
    few = transfer.correlations(as_read(simulated(("at", "sp"), seeds=1)))
    assert set(few["verdict"]) == {"open"}
    assert few["between"].isna().all()


def test_the_six_metrics_wait_for_all_seeds(complete):
    found = transfer.differences(complete)
    assert list(found) == list(LOSSES)
    assert found["at"]["n_fg"].verdict == "shows"
    assert found["at"]["n_fg"].seeds == 5
    beyond = transfer.differences(complete, "untrained")["at"]["n_fg"]
    assert beyond.value == pytest.approx(6, abs=2)  # its control is as the baseline
    early = as_read(simulated(seeds=4), complete.stated)
    assert transfer.differences(early) == {}
    assert not transfer.finished(early)
    assert transfer.differences(early, "untrained") == {}


def test_tables_of_other_students_are_told(tmp_path):
    rows = simulated(seeds=2)
    write(tmp_path / "a", rows)
    assert transfer.stored(tmp_path / "a").outdated == ()
    write(tmp_path / "b", Rows(rows.networks.assign(lr=0.7), rows.samples, rows.places), method=0)
    stored = transfer.stored(tmp_path / "b")
    assert any(each.startswith("at: lr was 0.7, is ") for each in stored.outdated)
    assert "> - `losses`: method was 0, is 1" in sentences.stale({"losses": stored})
    assert transfer.stored(tmp_path / "c") is None


def test_seeds_that_were_not_stated_do_not_count(tmp_path):
    write(tmp_path, simulated(seeds=7))
    stored = transfer.stored(tmp_path)
    assert sorted(stored.networks["seed"].unique()) == [*LOSSES_EVIDENCE.seeds]


# ---- figures


def test_figures_show_what_they_were_given(complete):
    order = transfer.ranking(complete)
    figure = shown.ranked(complete, order)
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == [shown.known_as(name) for name in order["loss"]]
    means = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    assert means == pytest.approx((100 * order["gain"]).tolist())
    assert sum(line.get_linewidth() == 3 for line in right.lines) == len(order)
    early = as_read(simulated(seeds=2), complete.stated)
    right = shown.ranked(early, transfer.ranking(early)).axes[1]
    assert not [line for line in right.lines if line.get_linewidth() == 3]

    related = shown.related(complete, transfer.correlations(complete))
    assert sum(len(dots.get_offsets()) for dots in related.axes[0].collections) == 90
    six = shown.six_by_loss(transfer.differences(complete), (2, 3))
    assert len(six.axes) == len(NAMES)
    for each in (figure, related, six):
        each.canvas.draw()
        assert each.get_facecolor()[3] == 0


# ---- the page


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root = draw(tmp_path_factory.mktemp("shapes"))
    settings = TINY | {"dataset": "folder", "data_root": str(root), "seeds": (101,), "b": 0.05}
    return ImageStudy("laptop", store=Store(tmp_path_factory.mktemp("store")), **settings)


def on_tables(study: ImageStudy, folder: Path) -> str:
    """What the page's cells write, with a tiny study in place of theirs."""
    asked = {"results": str(folder), "profile": "smoke", "device": "cpu"}
    return executed(PAGE, asked | {"losses": ["feature", "dkd"]}, study=study)


def test_the_page_in_every_state_of_the_tables(study, tmp_path, monkeypatch):
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    text = on_tables(study, tmp_path / "none")
    assert "There is no stored evidence of losses yet." in text
    assert "of one seed and 2 epochs, which decide nothing" in text
    assert "students of 2 losses" in text

    text = on_tables(study, write(tmp_path / "some", simulated(("at", "rkd"), seeds=2)))
    assert "Stored evidence has 2 of 5 seeds of every loss that it knows (AT, RKD)" in text
    assert "the verdict waits for all" in text
    assert "Which losses raise accuracy is not judged before that." in text
    assert "They are judged against the baseline once all seeds are there." in text

    text = on_tables(study, write(tmp_path / "all", simulated(untrained=True), method=0))
    assert "Stored evidence of 5 seeds, and 9 losses:" in text
    assert "The student by feature shares most knowledge points" in text
    assert "5 of 9 losses raise accuracy; lower it: SP; neither clearly: " in text
    assert "method was 0, is 1" in text
    assert "shared with the teacher +" in text
    assert "*shows*" in text
    assert "have no complete tables yet" not in text


def test_pictures_are_those_of_the_tables_where_they_are_the_same(study, tmp_path, monkeypatch):
    """Of another study's tables, or where the network measures other images, its own."""
    own = transfer.own(study, 101, ["feature"])
    seen = transfer.pictures(study, own, None, "FC1")
    assert list(seen.points) == ["teacher", "baseline", "feature"]
    assert seen.images.shape[0] == len(study.shown(4)) == len(seen.points["teacher"])
    stored = transfer.stored(write(tmp_path, simulated(("at",), seeds=2)))
    assert list(transfer.pictures(study, own, stored, "FC1").points) == [*seen.points]
    monkeypatch.setattr(transfer, "with_stored_pictures", lambda *given: study)
    places = stored.places.copy()
    cells = packed(torch.arange(16) < 5)
    for name in places.filter(regex="picture|taught"):
        places[name] = cells
    planted = replace(stored, places=places)
    theirs = transfer.pictures(study, own, planted, "FC1").points
    assert list(theirs) == ["teacher", "baseline", "at"]
    assert theirs["at"].sum(1).tolist() == [5] * 4


def test_a_loss_that_there_is_none_of_is_named(study):
    with pytest.raises(ValueError, match="did you mean 'rkd'"):
        own_students(study, 101, ["rdk"])
