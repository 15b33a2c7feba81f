"""Students of all losses: what they are trained with, what is stored of them, how rates are chosen,
and what the tables say.
"""

import math
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import kpnb
from kpnb.losses import LOSSES, Loss, TrainingObjective
from kpnb_book.store import Store
from kpnb_book.studies import choose, collecting, losses, measure
from kpnb_book.studies.again import again
from kpnb_book.studies.board import stored
from kpnb_book.studies.catalogue import every
from kpnb_book.studies.collecting import collect, plan, seed_rows
from kpnb_book.studies.curves import CURVES
from kpnb_book.studies.evidence import CONSTANT, FITTED, TEACHER, Evidence
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.losses import (
    AT_LAYERS,
    HERE,
    LEARNED,
    LOSSES_EVIDENCE,
    OTHER,
    OVERLAP,
    TRAINED,
    WAYS,
    LossesEvidence,
    Way,
    way_of,
)
from kpnb_book.studies.results import KEY, NETWORK, SAMPLE, Results, Rows
from kpnb_book.studies.training import Training
from tests.test_study import TINY, draw

pytestmark = pytest.mark.xdist_group("losses")  # they share what is trained
ROLES = ("baseline", "feature", "at", "dkd", "pkt", "untrained at")
EVERYWHERE = [f"{layer} {name}" for layer in ("Conv", "FC1", "FC2", "FC3") for name in AT_LAYERS]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> LossesEvidence:
    root = draw(tmp_path_factory.mktemp("shapes"))
    settings = TINY | {"dataset": "folder", "data_root": str(root), "b": 0.05}
    return LossesEvidence("shapes", ImageStudy, settings, controls=(), seeds=range(2))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def study(shapes, store) -> ImageStudy:
    return shapes.study(store)


@pytest.fixture(scope="module")
def rows(shapes, study) -> Rows:
    return seed_rows(shapes, study, 0, ROLES)


def of(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[frame["network"] == name].reset_index(drop=True)


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A reader's own loss."""
    return 1 - torch.cosine_similarity(student.flatten(1), teacher.flatten(1)).mean()


# ---- what is trained


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_the_feature_student_is_that_of_all_other_chapters(study, profile):
    """Same address: trained once, and tables of other studies stay what they are."""
    s = ImageStudy.resolve(profile)
    rates = {"lr": s.lr, "student_lr": s.student_lr, "epochs": s.epochs, "layers": ("FC1", "FC2")}
    options = {**TINY, "dataset": "folder", "data_root": study.settings.data_root, **rates}
    own = ImageStudy(profile, store=study.store, **options)
    for layer in own.settings.layers:
        usual = own.student(layer, 3)
        learned = losses.student(own, "feature", layer, 3)
        assert learned.address == usual.address
        head = losses.with_head(own, "feature", layer, learned)
        assert head.address == own.head(layer, 3).address
        control = losses.student(own, "feature", layer, 3, teacher_epoch=0)
        assert control.address == own.untrained_student(layer, 3).address


def test_students_differ_in_their_loss_alone(study):
    every = {name: losses.student(study, name, "FC1") for name in LOSSES}
    assert len({each.address for each in every.values()}) == len(LOSSES)
    for name, each in every.items():
        assert each.objective.loss == name
        assert each.source.identity == study.baseline().source.identity
        assert each.data is study.share
        assert each.teacher.address == study.teacher().address
        assert replace(each.schedule, lr=0) == replace(study.baseline().schedule, lr=0)
        assert each.schedule.lr == way_of(name).lr(study.settings)


def test_where_losses_compare(study):
    conv, fc1 = study.path("Conv"), study.path("FC1")
    layers = {name: losses.objective(study, name, "FC1").layers for name in LOSSES}
    assert layers["at"] == layers["hints"] == (conv,)
    assert layers["soft_targets"] == layers["dkd"] == ("",)
    assert layers["feature"] == layers["rkd"] == layers["pkt"] == (fc1,)
    way = replace(way_of("at"), weight=1.0)
    alone = TrainingObjective("at", (conv,), labels=1.0)
    assert losses.objective(study, "at", "FC2", way).config == alone.config
    # one training, whichever layer is measured
    ends = {losses.student(study, "dkd", layer).address for layer in ("FC1", "FC2")}
    assert len(ends) == 1


def test_several_layers_and_weights(study):
    way = Way(("Conv", HERE), labels=0.5, rate=2.0, weight=0.1)
    found = losses.objective(study, "sp", "FC1", way)
    assert found.layers == (study.path("Conv"), study.path("FC1"))
    assert found.loss_weight == pytest.approx(300)
    assert way.lr(study.settings) == pytest.approx(2 * study.settings.student_lr)
    with pytest.raises(ValueError, match="give labels a weight"):
        Way(("Conv",))


def test_a_loss_of_ones_own_is_a_function_and_a_line(study, monkeypatch):
    """It has a role in a build's own rows, is trained at the measured layer, and gets a head; of
    stored evidence it is no part.
    """
    before = LOSSES_EVIDENCE.roles, LOSSES_EVIDENCE.undecided
    monkeypatch.setitem(LOSSES, "cosine", Loss(cosine_distance))
    assert (LOSSES_EVIDENCE.roles, LOSSES_EVIDENCE.undecided) == before
    assert not any("cosine" in role for role in LOSSES_EVIDENCE.roles)
    learned = losses.student(study, "cosine", "FC1")
    own = losses.own_losses(["cosine", "untrained cosine", "at"])
    assert own.roles == ("baseline", "cosine", "at", "untrained cosine", "untrained at")
    found = losses.own_students(study, 0, ["cosine"])
    assert set(found.networks["network"]) == {"baseline", "cosine"}
    assert of(found.networks, "cosine")["training"].item() == learned.address
    assert learned.objective.layers == (study.path("FC1"),)
    assert losses.with_head(study, "cosine", "FC1", learned).kind == "head"
    first, *_, last = (entry["loss"] for entry in learned.log)
    assert math.isnan(first)
    assert 0 < last < 1


# ---- what is stored


def test_rows_have_the_columns_of_all_studies_and_more(rows, study):
    curves = [f"epoch {k} {name}" for name in CURVES for k in range(study.settings.epochs + 1)]
    assert set(rows.networks) == {
        *KEY,
        *NETWORK,
        *TRAINED,
        *LEARNED,
        *curves,
        TEACHER,
        FITTED,
        CONSTANT,
    }
    taught = rows.networks.set_index("network")[TEACHER].dropna()
    assert taught.to_dict() == dict.fromkeys(ROLES[1:5], study.teacher().accuracy)
    assert list(rows.samples) == [*KEY, "sample", *SAMPLE, *OVERLAP, *EVERYWHERE]
    assert set(rows.networks["network"]) == set(ROLES)
    assert rows.samples.groupby("network").size().to_dict() == dict.fromkeys(ROLES, 6)
    assert rows.networks["accuracy"].between(0, 1).all()
    assert of(rows.networks, "at")["weight"].item() == way_of("at").weight_of("at")
    assert of(rows.networks, "baseline")["weight"].isna().all()
    assert rows.networks.set_index("network")["labels"].to_dict() == {
        "baseline": 1.0,
        "feature": 0.0,
        "at": 1.0,
        "dkd": 1.0,
        "pkt": 0.0,
        "untrained at": 1.0,
    }


def test_other_studies_have_no_more_columns(study, tmp_path):
    usual = Evidence("usual", ImageStudy, {}, controls=())
    found = seed_rows(usual, study, 0)
    assert list(found.networks) == [*KEY, *NETWORK, TEACHER, FITTED, CONSTANT]
    assert list(found.samples) == [*KEY, "sample", *SAMPLE]
    assert not {"points", "taught"} & {*found.places}


def test_accuracy_is_that_of_the_network_itself_where_labels_or_outputs_train_it(rows, study):
    """In the mean over its last epochs, and not of the untrained network."""

    def late(network: Training) -> float:
        scores = [entry["test_accuracy"] for entry in network.log]
        return np.mean(scores[1:][-losses.STEADY :])

    dkd, pkt = (losses.student(study, name, "FC1") for name in ("dkd", "pkt"))
    head = losses.with_head(study, "pkt", "FC1", pkt)
    feature = study.head("FC1", 0)
    for name, network in {"dkd": dkd, "pkt": head, "feature": feature}.items():
        assert of(rows.networks, name)["accuracy"].item() == pytest.approx(late(network))
        last = of(rows.networks, name)["last_accuracy"].item()
        assert last == pytest.approx(network.log[-1]["test_accuracy"])


def test_how_well_a_loss_was_learned_is_that_of_the_student_itself(rows, study):
    """And not of its head, of which the accuracy in training is."""
    pkt = losses.student(study, "pkt", "FC1")
    found = of(rows.networks, "pkt").iloc[0]
    assert found["first_loss"] == pytest.approx(pkt.log[1]["loss"])
    assert found["last_loss"] == pytest.approx(pkt.log[-1]["loss"])
    head = losses.with_head(study, "pkt", "FC1", pkt)
    assert found["train_accuracy"] == pytest.approx(head.log[-1]["accuracy"])


def test_of_photographs_no_points_are_stored(rows, shapes, study):
    """No page draws them; all else is the same."""
    found = seed_rows(replace(shapes, official=True), study, 0, ["baseline"])
    here = of(rows.places, "baseline")
    assert {*here} - {*found.places} == {"points", "taught", "other"}
    pd.testing.assert_frame_equal(found.places, here[[*found.places]])
    pd.testing.assert_frame_equal(found.samples, of(rows.samples, "baseline"))


def test_points_at_every_layer_are_those_of_the_whole_network(rows, study):
    """Below its head a student is what it was; above, the head is measured."""
    pkt = losses.student(study, "pkt", "FC1")
    networks = {"pkt": losses.with_head(study, "pkt", "FC1", pkt), "baseline": study.baseline(0)}
    for name, network in networks.items():
        found = of(rows.samples, name)
        for layer in ("Conv", "FC1", "FC2", "FC3"):
            how = {"solver": measure.solver_of(study.settings), "units": study.units}
            H = kpnb.entropy(network.load(), study.x, study.path(layer), dead="nan", **how).entropy
            points = measure.points(study, H)
            given = torch.tensor(found[f"{layer} n_fg"].to_numpy())
            assert torch.equal(given, points.n_fg.double()), (name, layer)
            taught = losses.last_points(study, study.teacher(), layer).points
            shared = losses.iou(points.points, taught).numpy()
            assert found[f"{layer} iou_teacher"].to_numpy() == pytest.approx(shared, nan_ok=True)
        assert found["FC1 n_bg"].to_numpy() == pytest.approx(found["n_bg"].to_numpy())


def test_accuracy_is_the_mean_of_five_epochs():
    scores = [0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    network = SimpleNamespace(log=[{"test_accuracy": each} for each in scores])
    assert losses.accuracy(network) == pytest.approx(0.3)


def test_overlaps_by_plain_sets(rows, study):
    """Points shared and added, counted one by one."""

    def points(network):
        metrics = measure.metrics(study, network, "FC1")
        return [set(row.nonzero().flatten().tolist()) for row in metrics.points[-1]]

    teacher, reference = points(study.teacher()), points(study.baseline(OTHER))
    sets = {
        "at": points(losses.student(study, "at", "FC1")),
        "baseline": points(study.baseline(0)),
    }
    for name, ours in sets.items():
        found = of(rows.samples, name)
        for i, mine in enumerate(ours):
            theirs, other = teacher[i], reference[i]
            shifted = [
                mine_iou
                for n in range(1, 6)
                if (mine_iou := jaccard(mine, teacher[(i + n) % 6])) is not None
            ]
            expected = {
                "iou_teacher": jaccard(mine, theirs),
                "iou_baseline": jaccard(mine, other),
                "iou_place": np.mean(shifted) if shifted else None,
            }
            for column, value in expected.items():
                given = found[column][i]
                assert math.isnan(given) if value is None else given == pytest.approx(value)
            new = mine - theirs - other
            on = {c for c in new if study.foreground[i, c]}
            assert (found["added_fg"][i], found["added_bg"][i]) == (len(on), len(new - on))


def jaccard(one: set, other: set) -> float | None:
    return len(one & other) / len(one | other) if one | other else None


def test_points_come_back_bit_by_bit(rows, study, shapes, tmp_path):
    results = Results(tmp_path / "shapes")
    results.add(shapes.origin(study), rows)
    kept = losses.points_of(results.read().places, "FC1", 0, 16)
    assert list(kept) == ["teacher", "baseline", "feature", "at", "dkd", "pkt"]
    taught = measure.metrics(study, study.teacher(), "FC1").points[-1]
    assert torch.equal(kept["teacher"], taught)
    points = measure.metrics(study, study.baseline(0), "FC1").points[-1]
    assert torch.equal(kept["baseline"], points)
    other = measure.metrics(study, study.baseline(OTHER), "FC1").points[-1]
    assert torch.equal(losses.unpacked(rows.places["other"].iloc[0], 16), other)
    for cells in (1, 7, 16, 256):
        given = torch.rand(3, cells) < 0.5
        assert torch.equal(losses.unpacked(losses.packed(given), cells), given)


def test_a_build_trains_controls_that_are_asked_for(rows, study):
    """As "untrained at"; the row is that of stored evidence."""
    found = losses.own_students(study, 0, ["untrained at"])
    assert set(found.networks["network"]) == {"baseline", "untrained at"}
    columns = ["training", "measurement", "accuracy", "lr", "weight"]
    ours, theirs = (of(each.networks, "untrained at")[columns] for each in (found, rows))
    pd.testing.assert_frame_equal(ours, theirs)
    planned = losses.losses_plan(study, 0, ["untrained at", "pkt"])
    control = losses.network(study, "untrained at", "FC1", 0)
    assert control.address in planned.everything()
    assert losses.network(study, "at", "FC1", 0).address not in planned.everything()
    with pytest.raises(ValueError, match="did you mean 'at'"):
        losses.own_losses(["untrained att"])


def test_a_loss_of_a_readers_own_stops_no_evidence(
    shapes, rows, study, store, tmp_path, monkeypatch
):
    """Registering it, the chapter's exercise, leaves complete tables complete."""
    results = Results(tmp_path / "shapes")
    results.add(shapes.origin(study), rows)
    missing = collecting.lacking(shapes, 0, results.networks())
    monkeypatch.setitem(LOSSES, "cosine", Loss(cosine_distance))
    assert shapes.undecided == ()
    assert collecting.lacking(shapes, 0, results.networks()) == missing
    assert shapes.outdated(results) == []
    collecting.check(shapes, study, results)


def test_the_plan_holds_all_that_is_trained(shapes, study):
    planned = plan(shapes, study, 0, ["at", "pkt"])
    kinds = [each.kind for each in planned.everything().values()]
    assert kinds.count("teacher") == 1
    assert kinds.count("student") == 2
    assert kinds.count("head") == 1
    assert kinds.count("baseline") == 1  # with which points are compared


def test_a_training_that_diverges_keeps_its_place_and_stops_no_other(
    shapes, store, tmp_path, monkeypatch
):
    """With the reason, without points, and with the accuracy of guessing; nothing is tried again,
    and of its loss no verdict is given.
    """
    usual = shapes.settings.student_lr  # at an endless one the paper's own student diverges too
    shapes = replace(shapes, overrides=shapes.overrides | {"student_lr": 1e9})
    monkeypatch.setitem(WAYS, "at", replace(WAYS["at"], rate=0.1 * usual / 1e9))
    results = Results(tmp_path / "shapes")
    only = ["baseline", "rkd", "feature", "at"]
    assert collect(shapes, [0, 1], results, store, only=only) == [0, 1]
    found = results.read()
    assert of(found.samples, "baseline")["d_equal"].isna().all()
    assert of(found.networks, "feature")["diverged"].notna().all()
    lost = of(found.networks, "rkd")
    assert lost["seed"].tolist() == [0, 1]
    assert lost["diverged"].str.contains("became (?:nan|inf)|no longer finite").all()
    assert of(found.networks, "at")["diverged"].isna().all()
    assert lost["accuracy"].to_numpy() == pytest.approx(1 / 2)
    assert lost["lr"].to_numpy() == pytest.approx(1e9 * WAYS["rkd"].rate)
    assert {*found.samples["network"]} == {*found.places["network"]} == {"baseline", "at"}
    assert collect(shapes, [0, 1], results, store, only=only) == []
    assert shapes.outdated(results) == []
    monkeypatch.setattr(ImageStudy, "baseline", lambda one, n: losses.student(one, "rkd", "FC1"))
    with pytest.raises(FloatingPointError, match=r"^seed 2 is lost: .*student.*; seed 3 is lost: "):
        collect(shapes, [2, 3], Results(tmp_path / "other"), store, only=["baseline"])


# ---- before anything is counted


def test_nothing_is_counted_while_something_is_still_to_be_chosen(
    shapes, store, tmp_path, monkeypatch
):
    some = {name: replace(way_of(name), rate=1.0, weight=1.0) for name in LOSSES}
    monkeypatch.setattr(losses, "WAYS", some | {"rkd": Way(labels=1.0)})
    assert shapes.undecided == ("rate and weight of rkd (kpnb choose)",)
    with pytest.raises(ValueError, match="still to be chosen: rate and weight of rkd"):
        collect(shapes, [0], Results(tmp_path), store)
    monkeypatch.setattr(losses, "WAYS", some)
    assert shapes.undecided == ()


def test_rates_in_use_are_those_that_were_found():
    assert choose.differing() == []


def test_the_seed_of_the_choice_is_of_nobody_else():
    stated = {seed for each in every().values() for seed in each.seeds}
    trained = stated | {seed + OTHER for seed in LOSSES_EVIDENCE.seeds}
    own = {seed for profile in ImageStudy.PROFILES.values() for seed in profile["seeds"]}
    assert choose.SEED not in trained | own | {seed + OTHER for seed in own}


def test_rate_then_weight(study, monkeypatch):
    """Planted accuracies: the best pair is found by two searches, of equals the first."""
    planted = {(0.5, 1.0): 0.6, (1.0, 1.0): 0.6, (0.5, 1e3): 0.7, (1.0, 10.0): 0.9}
    planted |= {(0.5, 10.0): 0.62, (0.5, 100.0): 0.65}
    monkeypatch.setattr(
        choose,
        "held_out",
        lambda study, loss, layer, way: planted.get((way.rate, way.weight), 0.1),
    )
    known = choose.read(Path("nowhere"))
    found = pd.DataFrame(choose.tried(study, "at", known))
    pairs = [*zip(found["rate"], found["weight"], strict=True)]
    weights = [0.1, 10.0, 100.0, 1e3, 1e4]  # the last is worse: 1e3 is no end
    assert pairs == [*((r, 1.0) for r in choose.RATES), *((0.5, w) for w in weights)]
    assert choose.best("at", found) == (0.5, 1e3)
    beside = pd.DataFrame([{"loss": "at", "rate": 9.0, "weight": 1.0, "accuracy": 1.0}])
    more = pd.concat([found, beside])  # higher, and nothing that the rule asks for
    assert choose.best("at", more) == (0.5, 1e3)
    again = choose.tried(study, "at", found[found["weight"] < 1e3])
    assert [row["weight"] for row in again] == [1e3, 1e4]
    alone = pd.DataFrame(choose.tried(study, "pkt", known))
    assert [*alone["weight"]] == [1.0] * len(choose.RATES)  # only scales the rate


@pytest.mark.parametrize(("peak", "beyond"), [(0.05, [0.1, 0.05, 0.025]), (8.0, [4.0, 8.0, 16.0])])
def test_the_search_goes_on_where_the_best_is_at_an_end(peak, beyond):
    asked = []

    def accuracy(value: float) -> float:
        asked.append(value)
        return -abs(math.log(value / peak))

    assert choose.highest(accuracy, choose.RATES, 2) == peak
    assert asked == [*choose.RATES, *beyond]


def test_trainings_that_rates_were_not_chosen_for_are_told(study):
    settings = ImageStudy.resolve("laptop", **LOSSES_EVIDENCE.overrides)
    assert choose.elsewhere(settings) == []
    measured = replace(settings, layers=("FC2",), b=0.1, analysed=3, seeds=(7,), device="cuda")
    assert choose.elsewhere(measured) == []
    assert choose.elsewhere(replace(settings, epochs=3)) == ["epochs"]
    paper = choose.elsewhere(ImageStudy.resolve("paper"))
    assert {"size", "width", "network", "student_lr", "teacher_weights"} <= {*paper}


def test_the_books_table_of_choices_is_of_one_size():
    """What was tried at another size would stand among its rows as if it were tried here."""
    before = choose.TABLE.read_bytes()
    with pytest.raises(ValueError, match=r"about other settings \(epochs, size\): give another"):
        choose.choose(["at"], size=32, epochs=2, data_root="anywhere")
    assert choose.TABLE.read_bytes() == before


def test_the_search_ends():
    asked = []
    choose.highest(lambda value: asked.append(value) or value, choose.RATES, 2)
    assert len(asked) == len(choose.RATES) + choose.FURTHER


def test_what_was_tried_is_kept_and_not_tried_again(shapes, store, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "LOSSES_EVIDENCE", shapes)
    monkeypatch.setattr(choose, "RATES", (1.0, 1e9))
    monkeypatch.setattr(choose, "WEIGHTS", (1.0, 10.0))
    monkeypatch.setattr(choose, "FURTHER", 0)
    table = tmp_path / "losses" / "choice.csv"
    found = choose.choose(["feature", "at"], table, store)
    assert found["loss"].tolist() == ["feature"] * 2 + ["at"] * 3
    assert found["accuracy"][1] == 0  # its loss became infinite
    assert (found["seed"] == choose.SEED).all()
    learned = losses.student(shapes.study(store), "feature", "FC1", choose.SEED)
    assert learned.missing()  # it was deleted with its store
    before = table.read_bytes()
    monkeypatch.setattr(choose, "held_out", None)  # would fail
    choose.choose(["at"], table, store)
    assert table.read_bytes() == before
    assert choose.differing(table)[0].startswith("at: rate 1 and weight ")
    with pytest.raises(ValueError, match="rkd"):
        choose.choose(["rdk"], table, store)


# ---- tables


def test_tables_of_students_that_are_trained_otherwise_are_outdated(
    rows, shapes, study, tmp_path, monkeypatch
):
    results = Results(tmp_path / "shapes")
    results.add(shapes.origin(study), rows)
    assert shapes.outdated(results) == []
    lr, before = way_of("at").lr(study.settings), way_of("at").weight_of("at")
    rate = 3 * study.settings.student_lr
    monkeypatch.setitem(WAYS, "at", replace(WAYS["at"], rate=3.0, weight=0.123))
    assert f"at: lr was {lr:g}, is {rate:g}" in shapes.outdated(results)
    assert f"at: weight was {before:g}, is 123" in shapes.outdated(results)
    with pytest.raises(collecting.Stale, match="training of the at at FC1"):
        collecting.check(shapes, study, results)


def test_tables_computed_again_are_the_same(rows, shapes, study, store, tmp_path):
    results = Results(tmp_path / "shapes")
    results.add(shapes.origin(study), rows)
    found = again(shapes, results, store, samples=4)
    assert (found.exact, found.differing) == (True, ())
    assert found.numbers == 2 * (4 + 4 * len([*SAMPLE, *OVERLAP, *EVERYWHERE]))
    samples = rows.samples.copy()
    place = (samples["network"] == "feature") & (samples["sample"] == 1)
    samples.loc[place, "iou_place"] = 0.987
    results.add(shapes.origin(study), replace(rows, samples=samples))
    (changed,) = again(shapes, results, store, samples=4).differing
    assert changed.startswith("feature at FC1, sample 1: iou_place is stored as 0.987, is ")


def test_the_page_of_evidence_leaves_losses_to_their_chapter(rows, shapes, study, tmp_path):
    for name in ("losses", "another"):
        for seed in (0, 1):
            frames = (rows.networks, rows.samples, rows.places)
            moved = Rows(*(frame.assign(seed=seed) for frame in frames))
            Results(tmp_path / name).add(shapes.origin(study), moved)
    assert "losses" not in stored(tmp_path)
    assert "another" in stored(tmp_path)


def test_processes_that_try_different_losses_keep_each_others_rows(tmp_path):
    table, barrier = tmp_path / "losses" / "choice.csv", Barrier(2)
    names = [*LOSSES][:2]

    def add(loss: str) -> None:
        row = {"loss": loss, "rate": 0.1, "weight": 1.0, "accuracy": 0.5}
        barrier.wait()
        choose._add(pd.DataFrame([row]), table)

    for _ in range(20):
        table.unlink(missing_ok=True)
        threads = [Thread(target=add, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(choose.read(table)["loss"]) == names
