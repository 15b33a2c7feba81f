"""What the chapter on losses computes from tables, and the page itself in every state of them."""

import re
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats

from kpnb.losses import LOSSES, Loss
from kpnb.metrics import NAMES
from kpnb_book.figures import losses as shown
from kpnb_book.figures import report, stored_tables
from kpnb_book.numbers import value
from kpnb_book.store import Store
from kpnb_book.studies import transfer
from kpnb_book.studies.evidence import PROFILE
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.losses import (
    AT_LAYERS,
    HERE,
    LOSSES_EVIDENCE,
    ON_PHOTOGRAPHS,
    OVERLAP,
    UNTRAINED,
    LossesEvidence,
    iou,
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
SEEDS = tuple(LOSSES_EVIDENCE.seeds)
SHARED = {name: 0.5 + gain for name, gain in GAINS.items()}  # in the order of the accuracies


def simulated(losses=tuple(LOSSES), seeds: int = 5, untrained: bool = False) -> Rows:
    """Tables with planted accuracies and overlaps."""
    roles = [*losses, *(f"{UNTRAINED}{name}" for name in losses if untrained)]
    effects = {role: {"n_fg": 6.0 if role == "at" else 0.0} for role in roles}
    samples, networks = tables(effects, seeds=seeds, samples=20, layers=("FC1", "FC2"))
    rng = np.random.default_rng(1)
    levels = {"baseline": 0.3} | {role: SHARED.get(role, 0.3) for role in roles}
    shared = samples["network"].map(levels) + rng.normal(0, 0.02, len(samples))
    place = 0.2 + np.random.default_rng(8).normal(0, 0.01, len(samples))
    overlap = dict.fromkeys(OVERLAP, 2.0) | {"iou_teacher": shared, "iou_place": place}
    samples = samples.assign(**overlap | {"iou_baseline": 0.25})
    everywhere = product(("Conv", "FC1", "FC2", "FC3"), AT_LAYERS)
    samples = samples.assign(**{f"{layer} {name}": len(layer) for layer, name in everywhere})
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
    networks = networks.assign(training=[address(*key) for key in networks[KEY].to_numpy()])
    points = packed(torch.arange(256).expand(SETTINGS.analysed, -1) % 3 == 0)
    columns = {"points": points, "taught": points, "other": points}
    return Rows(networks, samples, networks[KEY].assign(cell0=1, **columns))


def without_points(rows: Rows) -> Rows:
    """As of photographs, whose points are not stored."""
    return replace(rows, places=rows.places.drop(columns=["points", "taught", "other"]))


def address(seed: int, layer: str, network: str) -> str:
    """That of a training, which is the same at all layers where the loss is not "here"."""
    loss = network.removeprefix(UNTRAINED)
    here = loss in LOSSES and HERE in way_of(loss).layers
    return f"{network}, {seed}{f', {layer}' if here else ''}"


def write(
    folder: Path, rows: Rows, evidence: LossesEvidence = LOSSES_EVIDENCE, **changed: object
) -> Path:
    origin = evidence.stated(evidence.settings) | changed
    Results(folder / evidence.name).add(origin, rows)
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
    raises = order.set_index("loss")["gain_said"]
    assert [raises[name] for name in ("feature", "soft_targets", "rkd")] == ["yes"] * 3
    assert raises["sp"] == "no: less"
    assert set(order["more_said"]) == {"yes"}
    assert transfer.finished(complete)
    known = transfer.baselines(complete)
    assert known["teacher"] == pytest.approx(0.3, abs=0.02)
    assert known["each other"] == pytest.approx(0.25)


def test_added_points_lie_where_neither_teacher_nor_another_baseline_has_them():
    """Two pictures of two by two cells, a third that has no points; two seeds."""
    corners = torch.eye(4, dtype=torch.bool)
    none = torch.zeros(1, 4, dtype=torch.bool)

    def pack(*cells: int) -> str:  # the last row is of the undefined picture, all points
        return packed(torch.cat([*(corners[[cell]] for cell in cells), ~none]))

    rows = [(0, "baseline", pack(0, 1)), (0, "at", pack(2, 2)), (1, "at", pack(2, 3))]
    key = [{"seed": seed, "layer": "FC1", "network": name} for seed, name, _ in rows]
    others = {"taught": packed(torch.cat([corners[[0]], corners[[0]], none])), "other": pack(3, 3)}
    places = [each | {"points": p} | others for each, (*_, p) in zip(key, rows, strict=True)]
    samples = pd.DataFrame(
        [
            each | {"sample": n, "added_fg": np.nan if n == 2 else 1.0}
            for each in key
            for n in range(3)
        ]
    )
    networks = pd.DataFrame(key).assign(accuracy=0.5)
    places = pd.DataFrame(places).assign(**{f"cell{n}": 0 for n in range(4)})
    shuffled = samples.sample(frac=1, random_state=0)
    found = transfer.added_places(Stored("images", networks, shuffled, places, (), frozenset()))
    assert {name: share.tolist() for name, share in found.items()} == {
        "baseline": [[0, 0.5], [0, 0]],  # its first point is the teacher's
        "at": [[0, 0], [0.75, 0]],  # one of four is the other baseline's
    }


def test_what_repeats_on_photographs_is_said(complete):
    """Planted: on the second set AT shares no more, and SP is more accurate."""
    rows = simulated(untrained=True)
    sample, network = rows.samples["network"], rows.networks["network"]
    shared = rows.samples["iou_teacher"].mask(sample == "at", 0.3)
    gained = rows.networks["accuracy"] + 0.2 * (network == "sp")
    samples = rows.samples.assign(iou_teacher=shared)
    networks = rows.networks.assign(accuracy=gained)
    other = as_read(replace(rows, samples=samples, networks=networks), SEEDS)
    more, gain = shown.on_both(complete, other)
    assert more.endswith("; on drawings alone of those by AT.")
    assert "is clear on drawings and on photographs of those by CRD in batch" in more
    assert gain.endswith("; on photographs alone of those by SP.")
    said = shown.in_short(complete, other)
    assert said.count("<p>") == 3
    assert "On the paper's photographs (<code>tiny-20</code>), 5 seeds" in said
    assert shown.in_short(complete).count("<p>") == 1
    lines = shown.takeaway(complete, other).splitlines()
    assert len(lines) == 2 * len(shown.headline(complete, transfer.ranking(complete))) + 2
    assert all(line.startswith("> - ") for line in lines)
    assert "photographs" not in shown.takeaway(complete, None)
    assert shown.takeaway(None, None) == ">"
    none = other.samples.assign(iou_teacher=0.3)
    assert "clear of none on either" in shown.on_both(*[replace(other, samples=none)] * 2)[0]


def of_seeds(taught: Stored) -> dict[str, pd.DataFrame]:
    """What is judged, ``[seeds, networks]``: less that of the baseline of the same seed."""
    keys = {"index": "seed", "columns": "network"}
    every = {
        "gain": taught.networks.pivot_table(**keys, values="accuracy"),
        "more": taught.samples.assign(
            beyond=taught.samples["iou_teacher"] - taught.samples["iou_place"]
        ).pivot_table(**keys, values="beyond"),
    }
    return {name: table.sub(table["baseline"], axis=0) for name, table in every.items()}


@pytest.mark.parametrize("name", transfer.JUDGED)
def test_what_is_judged_is_paired_by_seed_and_has_students_interval(name, complete):
    values = of_seeds(complete)[name]["at"]
    row = transfer.ranking(complete).set_index("loss").loc["at"]
    assert row[name] == pytest.approx(values.mean())
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("name", transfer.JUDGED)
def test_what_is_judged_is_corrected_for_the_number_of_losses(name, complete):
    """Against the textbook's loop."""
    order = transfer.ranking(complete).set_index("loss")
    values = of_seeds(complete)[name]
    plain = {loss: stats.ttest_1samp(values[loss], 0).pvalue for loss in order.index}
    largest = 0.0
    for left, loss in zip(range(9, 0, -1), sorted(plain, key=plain.get), strict=True):
        largest = max(largest, min(1.0, left * plain[loss]))
        assert order.loc[loss, f"{name}_p"] == pytest.approx(largest)


def test_an_interval_that_just_excludes_0_does_not_do(complete):
    crd = transfer.ranking(complete).set_index("loss").loc["crd_in_batch"]
    assert crd["gain_low"] > 0
    assert crd["gain_said"] == "not clear"


def with_shared(levels: dict[str, float], noise: float = 0.0) -> Stored:
    """Complete tables in which networks share so much with the teacher, plus what a seed adds."""
    rows = simulated()
    by_seed = dict(enumerate(np.random.default_rng(2).normal(0, noise, 5) if noise else [0.0] * 5))
    shared = rows.samples["network"].map(levels).fillna(0.3)
    first = rows.samples["network"] == "at"  # the others of a seed do not move with it
    shared = shared + rows.samples["seed"].map(by_seed).where(first, 0.0)
    small = np.random.default_rng(3).normal(0, 1e-3, len(shared))
    rows = replace(rows, samples=rows.samples.assign(iou_teacher=shared + small))
    return as_read(rows, tuple(LOSSES_EVIDENCE.seeds))


def test_a_loss_is_said_to_lead_only_where_it_can_be_told_apart():
    """Planted: far ahead; ahead in the mean alone, with seeds that disagree; and two equal ones."""
    assert transfer.leading(with_shared({"at": 0.6, "sp": 0.5}), "beyond") == ["at"]
    unsure = with_shared({"at": 0.52, "sp": 0.5, "pkt": 0.4}, noise=0.06)
    names = transfer.leading(unsure, "beyond")
    assert {"at", "sp"} <= {*names}
    assert names[0] == transfer.ranking(unsure)["loss"][0]
    said = " ".join(shown.headline(unsure, transfer.ranking(unsure)))
    first, *others = (shown.known_as(name) for name in names)
    assert f"The student by {first} shares most knowledge points with the teacher beyond" in said
    assert len(others) == len(LOSSES) - 1  # which all have the noise of the first
    assert " in all), and cannot be told apart from any other." in said
    equal = with_shared({"at": 0.6, "sp": 0.6})
    first, second = transfer.leading(equal, "beyond")
    assert {first, second} == {"at", "sp"}
    said = " ".join(shown.headline(equal, transfer.ranking(equal)))
    assert f" in all), and cannot be told apart from those by {second.upper()}." in said
    alone = as_read(simulated(("at", "sp"), seeds=1))
    assert {*transfer.leading(alone, "beyond")} == {"at", "sp"}  # one seed tells nothing apart


def test_how_often_chance_alone_fills_a_table_is_said():
    """Simulated: two families of tests a row, each of which errs in one of twenty cases."""
    draws = np.random.default_rng(0).random((20_000, 9, 2)) < 0.05
    (said,) = re.findall(r"up to (\d+)% of such tables", shown.uncorrected(9))
    assert float(said) == pytest.approx(100 * draws.any((1, 2)).mean(), abs=1.5)
    assert "up to 10% of" in shown.uncorrected(1)


def test_the_front_page_counts_losses_once_all_are_there(complete):
    waits = "They are compared once all of their seeds are there."
    early = as_read(simulated(seeds=4), SEEDS)
    assert waits in shown.in_short(None)
    assert waits in shown.in_short(early)
    said = shown.in_short(complete)
    assert "(<code>emoji</code>), 5 seeds of each of 9 losses. Those of an untrained" in said
    assert "themselves share less than the baseline for 0 of 9 losses, and are less acc" in said
    assert shown.in_short_table(None).empty
    assert shown.in_short_table(early).empty
    order, table = transfer.ranking(complete), shown.in_short_table(complete)
    assert table["student"].tolist() == [shown.known_as(loss) for loss in order["loss"]]
    first, words = order.iloc[0], table.iloc[0]
    shares, gain = words["shares more than the baseline"], words["more accurate than the baseline"]
    assert shares == f"{value(first['more'], 2, sign=True)}: {first['more_said']}"
    assert gain == f"{value(100 * first['gain'], 2, sign=True)}: {first['gain_said']}"
    controls = transfer.ranking(complete, against="untrained").set_index("loss")
    of_control = controls.loc[order["loss"], "more_said"]
    words = table["shares more than its control"].str.split(": ", n=1).str[1]
    assert words.tolist() == of_control.tolist()
    without = as_read(simulated(), SEEDS)
    assert not any("control" in heading for heading in shown.in_short_table(without))
    rows = simulated(untrained=True)
    bad = rows.networks["network"] == f"{UNTRAINED}at"
    networks = rows.networks.assign(accuracy=rows.networks["accuracy"] - 0.2 * bad)
    said = shown.in_short(as_read(replace(rows, networks=networks), SEEDS))
    assert said.endswith("for 0 of 9 losses, and are less accurate for 1.</p>")


def test_many_points_make_no_loss_lead():
    """Planted: one shares more because it has points everywhere, one beyond what that explains."""
    rows = simulated()
    noise = np.random.default_rng(3).normal(0, 1e-3, len(rows.samples))
    levels = {"at": (0.7, 0.68), "sp": (0.5, 0.1)}
    columns = {
        name: rows.samples["network"].map({k: v[i] for k, v in levels.items()}).fillna(0.2)
        for i, name in enumerate(("iou_teacher", "iou_place"))
    }
    columns["iou_teacher"] += noise
    taught = as_read(replace(rows, samples=rows.samples.assign(**columns)), SEEDS)
    order = transfer.ranking(taught)
    assert order["loss"][0] == "sp"
    assert transfer.leading(taught, "beyond") == ["sp"]
    assert " ".join(shown.headline(taught, order)).startswith("The student by SP shares most")


def test_the_headline_where_nothing_is_gained():
    rows = simulated()
    worse = rows.networks["network"] != "baseline"
    networks = rows.networks.assign(accuracy=rows.networks["accuracy"] - 0.2 * worse)
    taught = as_read(replace(rows, networks=networks), SEEDS)
    said = " ".join(shown.headline(taught, transfer.ranking(taught)))
    assert "None is on average more accurate than the baseline; that by" in said
    none = "That students are more accurate than the baseline is clear for none of 9 losses; less "
    assert none in said
    pointless = rows.samples.assign(iou_teacher=np.nan)  # a diverged seed in every loss
    none = as_read(replace(rows, samples=pointless), SEEDS)
    assert transfer.leading(none, "beyond") == []
    said = " ".join(shown.headline(none, transfer.ranking(none)))
    assert said.startswith("No loss has points in every seed. The baseline shares ")


def test_the_first_is_compared_with_each_other_by_hand(complete):
    table = of_seeds(complete)["gain"][[*LOSSES]]
    first = table.mean().idxmax()
    others = [loss for loss in LOSSES if loss != first]
    plain = {loss: stats.ttest_rel(table[first], table[loss]).pvalue for loss in others}
    largest, told = 0.0, []
    for left, loss in zip(range(8, 0, -1), sorted(plain, key=plain.get), strict=True):
        largest = max(largest, min(1.0, left * plain[loss]))
        told += [loss] if largest <= 0.05 else []
    found = transfer.leading(complete, "gain")
    assert found[0] == first
    assert {*found} == {*LOSSES} - {*told}


def test_a_registered_loss_leaves_complete_tables_complete(complete, monkeypatch):
    """The chapter's exercise: one function and one line."""
    monkeypatch.setitem(LOSSES, "cosine", Loss(lambda student, teacher: (student - teacher).sum()))
    assert transfer.finished(complete)
    assert shown.state(complete).startswith("Stored evidence of 5 seeds, and 9 losses, on `emoji`.")
    assert "cosine" not in transfer.ranking(complete)["loss"].tolist()


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
    means = table.groupby(["layer", "network"]).mean(numeric_only=True)
    for name in transfer.CLAIM:
        for column, frame in (("rho", table.set_index("layer")), ("between", means)):
            layers = [frame.loc[layer] for layer in ("FC1", "FC2")]
            rho = [stats.spearmanr(each[name], each["accuracy"]).statistic for each in layers]
            assert found.loc[name, column] == pytest.approx(np.mean(rho))
    assert found.loc["iou_teacher", "verdict"] == "shows"
    assert found.loc["lambda", "verdict"] == "open"
    assert found["losses"].tolist() == [9] * 3
    few = transfer.correlations(as_read(simulated(("at", "sp"), seeds=1)))
    assert set(few["verdict"]) == {"open"}
    assert few["between"].isna().all()


def test_students_that_are_one_training_count_once(complete):
    """Four losses of nine have one training for both layers: KD, DKD, hints and AT."""
    here = [loss for loss in LOSSES if HERE in way_of(loss).layers]
    expected = 5 * (2 * len(here) + 9 - len(here))
    assert set(transfer.correlations(complete)["trainings"]) == {expected}
    assert f"over {expected} students of 9 losses" in shown.claim(
        transfer.correlations(complete), True
    )


def test_the_permutation_keeps_layers_together():
    """Exactly: five losses at two layers, all 120 orders, the same order at both."""
    rng = np.random.default_rng(4)
    points, accuracy = rng.normal(size=(2, 5)), rng.normal(size=5)
    pairs = np.stack([np.stack([row, accuracy], 1) for row in points])
    value, p = transfer._mean_rho(pairs, seed=0)

    def mean(order: tuple[int, ...]) -> float:
        shuffled = accuracy[list(order)]
        return np.mean([stats.spearmanr(row, shuffled).statistic for row in points])

    every = np.array([mean(order) for order in permutations(range(5))])
    assert value == pytest.approx(mean(tuple(range(5))))
    tails = (every >= value - 1e-9).mean(), (every <= value + 1e-9).mean()
    assert p == pytest.approx(min(1, 2 * min(tails)))
    same = np.stack([pairs[0], pairs[0]])  # a layer that is there twice says nothing more
    assert transfer._mean_rho(same, 0) == pytest.approx(transfer._mean_rho(pairs[:1], 0))
    lacking = np.concatenate([pairs, np.full((2, 1, 2), np.nan)], 1)
    assert transfer._mean_rho(lacking, 0) == pytest.approx((value, p))


def test_layers_of_different_levels_make_no_correlation():
    """Students at one layer are alike; those of the other have more points and more accuracy."""
    rng, rows = np.random.default_rng(5), simulated()
    second = rows.samples["layer"] == "FC2"
    shared = rng.normal(0.5, 0.02, len(second)) + 0.3 * second
    accuracy = rng.normal(0.4, 0.02, len(rows.networks)) + 0.3 * (rows.networks["layer"] == "FC2")
    networks = rows.networks.assign(accuracy=accuracy)
    taught = as_read(Rows(networks, rows.samples.assign(iou_teacher=shared), rows.places))
    table = transfer.by_network(taught).query("network in @LOSSES")
    assert stats.spearmanr(table["iou_teacher"], table["accuracy"]).statistic > 0.6
    found = transfer.correlations(taught).set_index("name")
    assert abs(found.loc["iou_teacher", "rho"]) < 0.3


def test_a_layer_without_points_makes_no_difference_of_the_other():
    """Planted: nothing between the networks, but much between the layers."""
    rows = simulated(("at", "sp"))
    layer = rows.samples["layer"].map({"FC1": 0.3, "FC2": 0.6})
    samples = rows.samples.assign(iou_teacher=layer, iou_place=0.1)
    dead = (samples["network"] == "at") & (samples["seed"] == 0) & (samples["layer"] == "FC1")
    samples.loc[dead, ["iou_teacher", "iou_place", "lambda"]] = np.nan
    taught = as_read(replace(rows, samples=samples), tuple(LOSSES_EVIDENCE.seeds))
    row = transfer.ranking(taught).set_index("loss").loc["at"]
    assert row["more"] == pytest.approx(0, abs=1e-9)
    assert (row["seeds"], row["with_points"]) == (5, 4)
    assert transfer.by_seed(transfer.by_network(taught), "at")["lambda"].isna().tolist()[0]


def test_many_points_share_no_more_beyond_place():
    """Random points of another density, without any relation to the teacher's."""
    draw_points = np.random.default_rng(6)
    taught, few, many = (draw_points.random((400, 256)) < share for share in (0.2, 0.2, 0.5))

    def columns(points: np.ndarray) -> dict[str, np.ndarray]:
        shared = [iou(torch.from_numpy(points), torch.from_numpy(np.roll(taught, n, 0))).numpy()
                  for n in range(4)]  # fmt: skip
        return {"iou_teacher": shared[0], "iou_place": np.mean(shared[1:], 0)}

    rows = simulated(("at",), seeds=5)
    samples = rows.samples.copy()
    for name, points in (("at", many), ("baseline", few)):
        mine = samples["network"] == name
        for column, planted in columns(points).items():
            samples.loc[mine, column] = planted[: mine.sum()]
    found = transfer.compared(transfer.by_network(as_read(replace(rows, samples=samples))), "at")
    table = transfer.by_network(as_read(replace(rows, samples=samples)))
    raw = [transfer.by_seed(table, name)["iou_teacher"].mean() for name in ("at", "baseline")]
    assert raw[0] - raw[1] > 0.03
    assert abs(found["more"].mean()) < 0.003


@pytest.fixture(scope="module")
def diverged(tmp_path_factory) -> Stored:
    """Complete tables in which a training of AT has diverged."""
    folder = tmp_path_factory.mktemp("diverged")
    rows = simulated(untrained=True)
    lost = (rows.networks["network"] == "at") & (rows.networks["seed"] == 2)
    networks = rows.networks.assign(diverged=np.where(lost, "became nan", None))
    networks.loc[lost, "accuracy"] = 1 / 12
    keep = ~((rows.samples["network"] == "at") & (rows.samples["seed"] == 2))
    return transfer.stored(write(folder, Rows(networks, rows.samples[keep], rows.places)))


def test_a_diverged_student_counts_with_its_accuracy_and_is_named(complete, diverged):
    taught = diverged
    assert transfer.finished(taught)
    assert taught.diverged == ["at at FC1, seed 2", "at at FC2, seed 2"]
    order = transfer.ranking(taught).set_index("loss")
    usual = transfer.ranking(complete).set_index("loss")
    drop = (1 / 12 - (0.4 + GAINS["at"])) / 5
    assert order.loc["at", "gain"] - usual.loc["at", "gain"] == pytest.approx(drop, abs=0.005)
    assert order.loc["at", ["seeds", "with_points"]].tolist() == [5, 4]
    assert np.isnan(order.loc["at", ["more_low", "more_high"]].astype(float)).all()
    assert np.isfinite(order.loc["at", "gain_low"])
    assert order.loc["at", "more_said"] == "not clear"
    assert np.isnan(order.loc["at", "more_p"])
    assert "at" not in transfer.leading(taught, "beyond")
    found = transfer.differences(taught).six
    assert {*found} == {*LOSSES} - {"at"}
    assert shown.unanswered(taught, found).startswith("No answer for AT: a seed is missing")
    assert "`losses`: at at FC1, seed 2; at at FC2" in stored_tables.remarks({"losses": taught})
    assert stored_tables.remarks({"losses": complete}) == ""


def test_a_network_without_points_is_said_to_have_none(diverged):
    said = shown.in_words(diverged)["FC1"][2]["at"]
    assert said.startswith("It has no points that could be shared. Accuracy 8.3 %, the baseline's")
    assert "at" in transfer.measured(diverged)  # of other seeds
    kept = diverged.samples[diverged.samples["network"] != "at"]
    assert "at" not in transfer.measured(replace(diverged, samples=kept))


def test_a_diverged_student_is_shown_for_what_it_has(complete, diverged):
    order = transfer.ranking(diverged)
    assert "Left out, for a seed without points: AT." in " ".join(shown.headline(diverged, order))
    table = shown.ranking_table(diverged, order).set_index("student")
    assert table.loc["AT", "seeds"] == "5 (4 with points)"
    assert table.loc["AT", "above: 95 % interval"] == ""
    lines = shown.ranked(diverged, order).axes[0].lines
    means = [line.get_xdata()[0] for line in lines if line.get_marker() == "o"]
    assert len(means) == len(LOSSES)
    assert np.isfinite(means).all()
    students = transfer.by_network(diverged)
    known = students[students["network"].isin(LOSSES)].dropna(subset=["lambda"])
    with_points = diverged.networks.merge(known[KEY], on=KEY)["training"].nunique()
    assert set(transfer.correlations(diverged)["trainings"]) == {with_points}
    assert with_points < transfer.correlations(complete)["trainings"].iloc[0]


def test_controls_are_compared_with_their_own_student(complete):
    found = transfer.ranking(complete, against="untrained").set_index("loss")
    table = transfer.by_network(complete)
    for loss in ("at", "pkt"):
        ours, theirs = (transfer.by_seed(table, name) for name in (loss, f"{UNTRAINED}{loss}"))
        assert found.loc[loss, "gain"] == pytest.approx((ours - theirs)["accuracy"].mean())
    shown_table = shown.controls_table(transfer.ranking(complete, against="untrained"))
    assert len(shown_table) == len(LOSSES)
    alone = transfer.ranking(complete, [f"{UNTRAINED}{name}" for name in LOSSES])
    ours, base = (transfer.by_seed(table, name) for name in (f"{UNTRAINED}at", "baseline"))
    row = alone.set_index("loss").loc[f"{UNTRAINED}at"]
    assert row["gain"] == pytest.approx((ours - base)["accuracy"].mean())
    said = " ".join(shown.headline(complete, transfer.ranking(complete)))
    assert "beyond place, than the same student of an untrained teacher" in said
    without = as_read(simulated(), SEEDS)
    assert "untrained teacher" not in " ".join(shown.headline(without, transfer.ranking(without)))
    early = simulated(untrained=True)
    late = (early.networks["network"] == f"{UNTRAINED}at") & (early.networks["seed"] == 4)
    kept = early.networks[~late]
    some = as_read(replace(early, networks=kept), SEEDS)
    assert f"{UNTRAINED}at" not in set(transfer.at_every_layer(some)["network"])
    assert f"{UNTRAINED}sp" in set(transfer.at_every_layer(some)["network"])


def test_the_six_metrics_wait_for_all_seeds(complete):
    found = transfer.differences(complete).six
    assert list(found) == list(LOSSES)
    assert found["at"]["n_fg"].verdict == "shows"
    assert found["at"]["n_fg"].seeds == 5
    beyond = transfer.differences(complete, "untrained").six["at"]["n_fg"]
    assert beyond.value == pytest.approx(6, abs=2)  # its control is as the baseline
    early = as_read(simulated(seeds=4), complete.stated)
    assert transfer.differences(early) == transfer.differences(None) == ({}, {})
    assert not transfer.finished(early)
    assert transfer.differences(early, "untrained") == ({}, {})


def test_tables_of_other_students_are_told(tmp_path):
    rows = simulated(seeds=2)
    write(tmp_path / "a", rows)
    assert transfer.stored(tmp_path / "a").outdated == ()
    write(tmp_path / "b", Rows(rows.networks.assign(lr=0.7), rows.samples, rows.places), method=0)
    stored = transfer.stored(tmp_path / "b")
    assert any(each.startswith("at: lr was 0.7, is ") for each in stored.outdated)
    assert "> - `losses`: method was 0, is 1" in stored_tables.stale({"losses": stored})
    assert transfer.stored(tmp_path / "c") is None


def test_seeds_that_were_not_stated_do_not_count(tmp_path):
    write(tmp_path, simulated(seeds=7))
    stored = transfer.stored(tmp_path)
    assert sorted(stored.networks["seed"].unique()) == [*LOSSES_EVIDENCE.seeds]


def test_distances_have_the_share_of_the_path_beside_them(complete):
    """Planted: a path of four times the length has the distance of four times, and the share of
    one.
    """
    rows = simulated()
    longer = rows.samples["network"] == "pkt"
    samples = rows.samples.assign(d=rows.samples["d"].where(~longer, 4 * rows.samples["d"]))
    taught = as_read(replace(rows, samples=samples), complete.stated)
    found, shares = gaps = transfer.differences(taught)
    assert found["pkt"]["d_mean"].value > 1
    assert list(shares) == list(LOSSES)
    assert list(shares["pkt"]) == ["d_mean", "d_var"]
    ours, theirs = (samples[samples["network"] == name] for name in ("pkt", "baseline"))
    gap = ours["share"].mean() - theirs["share"].mean()
    assert shares["pkt"]["d_mean"].value == pytest.approx(gap)
    table = shown.with_shares(gaps).set_index("student")
    assert table.loc["PKT", shown.SHARE["d_mean"]].endswith(shares["pkt"]["d_mean"].verdict)
    means = shown.means_table(taught).set_index("student")
    assert means.loc["PKT", "share of the path"] == pytest.approx(ours["share"].mean())


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
    gaps, shares = transfer.differences(complete)
    six = shown.six_by_loss(gaps, (2, 3))
    assert len(six.axes) == len(NAMES)
    more = shown.six_by_loss(gaps, (2, 4), shares)
    assert [axis.get_title() for axis in more.axes[len(NAMES) :]] == [*shown.SHARE.values()]
    drawn = [line.get_xdata()[0] for line in more.axes[-2].lines if line.get_marker() == "o"]
    assert drawn == pytest.approx([by_metric["d_mean"].value for by_metric in shares.values()])
    for each in (figure, related, six, more):
        each.canvas.draw()
        assert each.get_facecolor()[3] == 0


# ---- the page


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root = draw(tmp_path_factory.mktemp("shapes"))
    settings = TINY | {"dataset": "folder", "data_root": str(root), "seeds": (101,), "b": 0.05}
    return ImageStudy("laptop", store=Store(tmp_path_factory.mktemp("store")), **settings)


def on_tables(study: ImageStudy, folder: Path, losses=("feature", "dkd")) -> str:
    """What the page's cells write, with a tiny study in place of theirs."""
    asked = {"results": str(folder), "profile": "smoke", "device": "cpu"}
    return executed(PAGE, asked | {"losses": [*losses]}, study=study)


def test_the_page_in_every_state_of_the_tables(study, tmp_path, monkeypatch):
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    text = on_tables(study, tmp_path / "none")
    assert "There is no stored evidence of losses on `emoji` yet." in text
    assert "(data set `folder`, one seed, epochs: 2) decide\n> nothing" in text
    assert "Too few students have points to ask whether accuracy goes with them." in text

    text = on_tables(study, write(tmp_path / "some", simulated(("at", "rkd"), seeds=2)))
    assert "Stored evidence waits for seeds of baseline, feature, KD, hints, AT, DKD," in text
    assert "nothing of it is shown before all are there" in text
    assert not re.search("shares most|are more accurate", text)
    assert "They are judged against the baseline once all seeds are there." in text

    assert text.count("There is no stored evidence of losses on `tiny-20` yet.") == 1

    write(tmp_path / "all", without_points(simulated(seeds=5)), ON_PHOTOGRAPHS)
    text = on_tables(study, write(tmp_path / "all", simulated(untrained=True), method=0))
    assert "There is no stored evidence of losses" not in text
    assert text.count("share of path, mean") == 3  # drawings, these beyond a target, photographs
    assert "Stored evidence of 5 seeds, and 9 losses, on `emoji`." in text
    assert "The student by feature shares most knowledge points" in text
    assert "all 9 losses share more with the teacher, beyond place, than the baseline" in text
    assert "Conv: N<sup>fg</sup>" in text
    assert "beyond place, above its control" in text
    assert text.count("beyond place, above the baseline") == 4  # drawings, controls, photos, own
    assert "No answer for" not in text
    gains = "are more accurate than the baseline (5 of 9 losses); less accurate: SP; for the others"
    assert gains in text
    assert "method was 0, is 1" in text
    assert "shared with the teacher +" in text
    assert "*shows*" in text
    assert "have no complete tables yet" not in text
    assert "share of path, mean" in text
    assert "**Not chosen for this run.** Rates and weights were chosen with `vgg11_bn`" in text


def test_a_run_of_ones_own_is_on_the_page_whatever_is_stored(study, tmp_path, monkeypatch):
    """Other losses, controls and another data set, beside complete tables of stored evidence: the
    values that it glues are those that it has without them.
    """
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    losses = ("pkt", "untrained pkt")
    folders = tmp_path / "none", write(tmp_path / "all", simulated())
    glued = []
    for folder in folders:
        report.GLUED.clear()
        text = on_tables(study, folder, losses)
        glued.append({**report.GLUED})
        assert text.count("untrained PKT") >= 2  # in both tables of this run
        assert "Too few students have points to ask whether accuracy goes with them." in text
    own = transfer.own(study, 101, losses)
    for each in glued:
        assert each["lo_set"] == "folder"
        assert set(each["losses"]["network"]) == {"baseline", *losses}
        shared = transfer.by_network(own).set_index("network").loc["pkt", "iou_teacher"]
        assert each["lo_shared"] == pytest.approx(shared, nan_ok=True)
    differing = {"lo_state", "lo_list", "lo_related"}
    values = [{k: v for k, v in each.items() if k not in {*differing, "losses"}} for each in glued]
    assert values[0].keys() == values[1].keys()
    assert all(str(values[0][name]) == str(values[1][name]) for name in values[0])


def test_pictures_are_those_of_the_tables_where_they_are_the_same(study, tmp_path, monkeypatch):
    """Of another study's tables, or where the network measures other images, its own."""
    own = transfer.own(study, 101, ["feature"])
    seen = transfer.pictures(study, own, None, "FC1")
    points = seen.of_first_seed("FC1")
    assert list(points) == ["teacher", "baseline", "feature"]
    assert seen.images.shape[0] == len(study.shown(8)) == len(points["teacher"])
    assert [*seen.points["FC1"]] == [101]
    row = transfer.by_network(own).set_index("network").loc["feature"]
    said = shown.in_words(own)["FC1"][101]
    assert f"Accuracy {100 * row['accuracy']:.1f} %, the baseline's " in said["feature"]
    assert said["baseline"].endswith(" %.")
    added = own.samples.groupby("network")[["added_fg", "added_bg"]].mean().sum(axis=1)
    for name, share in transfer.added_places(own).items():
        assert share.sum() == pytest.approx(added[name])
    stored = transfer.stored(write(tmp_path, simulated(("at",), seeds=2)))
    assert [*transfer.pictures(study, own, stored, "FC1").of_first_seed("FC1")] == [*points]
    monkeypatch.setattr(transfer, "with_stored_pictures", lambda *given: study)
    places = stored.places.copy()
    places[["points", "taught"]] = packed(torch.arange(16).expand(len(study.measured), -1) < 5)
    planted = replace(stored, places=places)
    theirs = transfer.pictures(study, own, planted, "FC1").of_first_seed("FC1")
    assert list(theirs) == ["teacher", "baseline", "at"]
    assert theirs["at"].sum(1).tolist() == [5] * len(study.shown(8))


def test_a_loss_that_there_is_none_of_is_named(study):
    for name in ("rdk", "untrained rdk"):
        with pytest.raises(ValueError, match="did you mean 'rkd'"):
            own_students(study, 101, [name])


def test_the_sweep_trains_every_student_and_its_control():
    (block,) = yaml.safe_load((ROOT / "sweeps" / "losses.yaml").read_text("utf8"))
    (losses,) = block["grid"]["losses"]
    assert {"baseline", *losses} == {*LOSSES_EVIDENCE.roles}
