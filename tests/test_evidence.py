"""Stored evidence: its rows against the library's own numbers and plain loops, and faults on the
way to it.
"""

import concurrent.futures as futures
import json
import lzma
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import torch

from kpnb.checkpoints import digest
from kpnb_book.figures import reliability
from kpnb_book.figures.findings import Found, own_seeds, replicated
from kpnb_book.run.command_line import main
from kpnb_book.run.errors import UsageError
from kpnb_book.run.evidence_commands import several_seeds
from kpnb_book.store import Store
from kpnb_book.studies import collecting, evidence, measure, replication
from kpnb_book.studies.again import again, compared, predicted_means
from kpnb_book.studies.catalogue import every
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.collecting import collect, networks, plans, seed_rows
from kpnb_book.studies.controls import random_labels_teacher
from kpnb_book.studies.evidence import BY_HEART, CONSTANT, FITTED, NETWORKS, TEACHER, Evidence
from kpnb_book.studies.forecast import forecast
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.results import (
    KEY,
    NETWORK,
    RESULTS,
    SAMPLE,
    Results,
    Rows,
    Stale,
    changed_settings,
    merged,
    zipped,
)
from kpnb_book.studies.rows import distance_within, place_counts
from kpnb_book.studies.text import TextStudy
from tests.drawn import TINY, draw
from tests.tiny_text import tiny_model, write_sst2

CONTROLS = ("untrained", "equal-rate", "random-labels")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Evidence:
    root = draw(tmp_path_factory.mktemp("shapes"))
    settings = TINY | {"dataset": "folder", "data_root": str(root), "b": 0.05}
    return Evidence("shapes", ImageStudy, settings, CONTROLS)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def study(shapes, store) -> ImageStudy:
    return shapes.study(store)


@pytest.fixture(scope="module")
def rows(shapes, study) -> Rows:
    return seed_rows(shapes, study, 0)


def of(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[frame["network"] == name].reset_index(drop=True)


def test_every_network_has_its_rows(rows, study):
    names = ["baseline", "student", *CONTROLS]
    assert rows.networks["network"].tolist() == names
    assert rows.samples.groupby("network").size().to_dict() == dict.fromkeys(names, 6)
    assert list(rows.samples) == [*KEY, "sample", *SAMPLE]
    assert len(rows.places) == len(names)
    assert (rows.networks["seconds"] >= 0).all()


def test_what_teachers_learned_is_stored(rows, study):
    """Of the classes on held-out samples; of labels in random order on those that it learned."""
    known = rows.networks.set_index("network")
    by_heart = random_labels_teacher(study)
    assert known[TEACHER].dropna().to_dict() == {
        "student": study.teacher().accuracy,
        "equal-rate": study.teacher().accuracy,
        "random-labels": by_heart.accuracy,
    }
    for role in ("student", *CONTROLS):
        training = NETWORKS[role](study, "FC1", 0)
        assert known.loc[role, FITTED] == training.log[-1]["feature_error"]
    assert math.isnan(known.loc["baseline", FITTED])
    assert known[BY_HEART].dropna().to_dict() == {
        "random-labels": pytest.approx(by_heart.log[-1]["accuracy"])
    }


def test_metrics_are_those_of_the_study(rows, study):
    pairs = dict(zip(("student", "baseline"), measure.pair(study, "FC1", 0), strict=True))
    for name, metrics in pairs.items():
        found = of(rows.samples, name)
        for column, values in metrics.per_image().items():
            ours = torch.tensor(found["d" if column == "d_mean" else column].to_numpy(float))
            assert torch.allclose(ours, values.double(), rtol=1e-6, equal_nan=True), column
        cells = of(rows.places, name).filter(like="cell").to_numpy(int)
        assert cells[0].tolist() == metrics.points[-1].sum(0).tolist()


def test_scores_and_paths_are_those_of_the_trainings(rows, study):
    baseline, student = study.baseline(0), study.student("FC1", 0)
    path = measure.distance(study, student, "FC1")[-1].item()
    assert of(rows.networks, "baseline")["accuracy"].item() == baseline.accuracy
    assert of(rows.networks, "student")["accuracy"].item() == study.head("FC1", 0).accuracy
    assert of(rows.networks, "student")["path"].item() == pytest.approx(path)
    error = student.log[-1]["test_feature_error"]
    assert of(rows.networks, "student")["feature_error"].item() == error
    for role, epoch in (("student", -1), ("untrained", 0)):
        teacher, seen = study.teacher().load(epoch=epoch), []
        layer = teacher.get_submodule(study.path("FC1"))
        layer.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1].detach().numpy()))
        for data in (study.share, study.test):
            teacher(data.batch(torch.arange(len(data)))[0])
        learned, held_out = seen
        gap = ((held_out - learned.mean(0)) ** 2).sum() / (held_out**2).sum()
        assert of(rows.networks, role)["constant_error"].item() == pytest.approx(gap, rel=1e-4)
    assert of(rows.networks, "baseline")["constant_error"].isna().all()
    shares = of(rows.samples, "student").eval("d / share").dropna()
    assert shares.to_numpy() == pytest.approx(path)


def test_controls_differ_from_the_student_in_what_their_name_says(shapes, study):
    of_layer = {name: t for _, name, t in networks(shapes, study, 0)}
    student, equal = of_layer["student"], of_layer["equal-rate"]
    assert equal.schedule == replace(student.schedule, lr=study.settings.lr) != student.schedule
    assert equal.teacher.address == student.teacher.address
    assert of_layer["untrained"].teacher_source.identity["epoch"] == 0
    other = of_layer["random-labels"].teacher
    assert other.address == random_labels_teacher(study).address != study.teacher().address
    assert other.epochs == study.MEMORISING
    assert torch.equal(other.data.images, study.train.images)
    assert not torch.equal(other.data.labels, study.train.labels)


def test_place_counts_the_same_points_by_masks_of_other_images(rows, study):
    """Of six images five are others: an image's own mask would tell of its object."""
    points = measure.metrics(study, study.baseline(0), "FC1").points[-1]
    found, total = of(rows.samples, "baseline"), len(points)
    for i in range(total):
        on, off, ratio = [], [], []
        for shift in range(1, total):
            mask = study.foreground[(i + shift) % total]
            on.append(sum(int(p and m) for p, m in zip(points[i], mask, strict=True)))
            off.append(sum(int(p and not m) for p, m in zip(points[i], mask, strict=True)))
            if on[-1] + off[-1]:
                ratio.append(on[-1] / (on[-1] + off[-1]))
        assert found["place_n_fg"][i] == pytest.approx(sum(on) / len(on))
        assert found["place_n_bg"][i] == pytest.approx(sum(off) / len(on))
        if ratio:
            assert found["place_lambda"][i] == pytest.approx(sum(ratio) / len(ratio))
        else:
            assert math.isnan(found["place_lambda"][i])


def test_a_liking_for_the_middle_is_place_and_one_for_the_object_is_not(study):
    """Planted: points on the cells that most objects cover, or on each sample's own object."""
    total, _ = study.foreground.shape
    middle = study.foreground.sum(0) > total / 2
    ours = {
        "middle": middle.expand_as(study.foreground),
        "object": study.foreground,
    }
    left = {}
    for name, points in ours.items():
        own = (points & study.foreground).sum(-1) / points.sum(-1)
        left[name] = (own - place_counts(study, points)[2]).mean().item()
    assert abs(left["middle"]) < 0.1 < left["object"]
    assert left["object"] > 3 * abs(left["middle"])


def test_distance_at_equal_path_length(study):
    """A planted trajectory: cell 0 of the object is a point in epoch 1, two cells in epoch 3."""
    foreground = study.foreground
    entropy = torch.full((4, *foreground.shape), 5.0)
    for sample, row in enumerate(foreground):
        first, second = row.nonzero()[:2, 0]
        entropy[1, sample, first] = 0
        entropy[3, sample, [first, second]] = 0
    path = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert distance_within(study, entropy, path, 4.0).tolist() == [4.0] * len(foreground)
    assert distance_within(study, entropy, path, 3.9).tolist() == [1.0] * len(foreground)
    for nothing in (0.5, None):
        assert distance_within(study, entropy, path, nothing).isnan().all()


def test_what_lies_at_the_place_of_a_point_or_a_token(tmp_path):
    clouds = CloudStudy(
        "smoke", store=Store(tmp_path / "clouds"), teacher_samples=20, share=12, analysed=4
    )
    points, masks = clouds.measured.points, clouds.foreground
    found, background = clouds.other_regions(1)
    assert torch.equal(background, ~found)
    for i in range(4):
        j = (i + 1) % 4
        for p in range(0, points.shape[1], 7):
            nearest = (points[j] - points[i, p]).square().sum(-1).argmin()
            assert found[i, p] == masks[j, nearest]

    files, network = tmp_path / "sst2", tmp_path / "model"
    files.mkdir()
    write_sst2(files)
    texts = TextStudy(
        "laptop",
        dataset="sst2",
        data_root=str(files),
        network=str(tiny_model(network)),
        store=Store(tmp_path / "texts"),
        share=8,
        analysed=5,
    )
    counts, masks = texts.measured.counts, texts.foreground
    found, background = texts.other_regions(2)
    assert not (found & ~counts).any()
    assert torch.equal(background, counts & ~found)
    for i in range(len(counts)):
        j = (i + 2) % len(counts)
        theirs, mine = masks[j][counts[j]], found[i][counts[i]]
        assert mine[0] == theirs[0]
        assert mine[-1] == theirs[-1]
        if len(mine) == len(theirs):
            assert torch.equal(mine, theirs)


def test_seeds_are_kept_and_not_computed_again(shapes, store, tmp_path, monkeypatch):
    results = Results(tmp_path / "shapes")
    assert collect(shapes, [0], results, store) == [0]
    before = (results.folder / "samples.csv.xz").read_bytes()
    monkeypatch.setattr(collecting, "seed_rows", None)  # would fail
    assert collect(shapes, [0], results, store) == []
    assert (results.folder / "samples.csv.xz").read_bytes() == before
    assert not collecting.folder_of(store, "shapes-0").exists()
    (collecting.folder_of(store, "shapes-0") / "student").mkdir(parents=True)  # killed at the end
    assert collect(shapes, [0], results, store) == []
    assert not collecting.folder_of(store, "shapes-0").exists()
    text = lzma.decompress(before).decode()
    assert text.startswith("seed,layer,network,sample,n_fg")
    assert zipped(text) == before


def test_an_interrupted_seed_goes_on(shapes, store, tables, monkeypatch):
    """What was trained before the interruption is not trained again; the tables keep the others."""
    results, rows_of = tables, evidence.rows_of

    def interrupted(one):
        if one.role == "untrained":
            raise KeyboardInterrupt
        return rows_of(one)

    monkeypatch.setattr(evidence, "rows_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(shapes, [1], results, store)
    assert results.seeds() == [0]
    left = shapes.study(Store(store.root / "evidence" / "shapes-1"))
    assert left.student("FC1", 1).missing() == []

    monkeypatch.setattr(evidence, "rows_of", rows_of)
    assert collect(shapes, [0, 1], results, store) == [1]
    again = results.read()
    assert again.networks["seed"].tolist() == [0] * 5 + [1] * 5


def test_evidence_of_other_settings_is_stale(shapes, store, tables, monkeypatch):
    with pytest.raises(Stale, match=r"settings\.b was 0\.05, is 0\.1"):
        collect(shapes, [1], tables, store, b=0.1)
    monkeypatch.setattr(evidence, "METHOD", 2)
    with pytest.raises(Stale, match="method was 1, is 2"):
        collect(shapes, [1], tables, store)
    assert tables.seeds() == [0]


def test_where_the_data_lie_makes_no_difference(shapes, store):
    one = shapes.origin(shapes.study(store))
    moved = shapes.overrides["data_root"] + "/."
    assert changed_settings(one, shapes.origin(shapes.study(store, data_root=moved))) == []


@pytest.fixture
def tables(shapes, study, rows, tmp_path) -> Results:
    """The tables of seed 0, written without computing it again."""
    results = Results(tmp_path / "shapes")
    results.add(shapes.origin(study), rows)
    return results


def changed(rows: Rows, part: str, column: str, value: object, **where: object) -> Rows:
    """The rows with another value in one place."""
    frame = getattr(rows, part).copy()
    place = pd.concat([frame[name] == each for name, each in where.items()], axis=1).all(axis=1)
    assert place.sum() == 1
    frame.loc[place, column] = value
    return replace(rows, **{part: frame})


def role_of(rows: Rows, *names: str) -> Rows:
    frames = (rows.networks, rows.samples, rows.places)
    return Rows(*(frame[frame["network"].isin(names)] for frame in frames))


def test_rows_name_what_determines_them(rows, study, tables):
    assert {*rows.networks} == {*KEY, *NETWORK, TEACHER, CONSTANT, BY_HEART, FITTED}
    student = study.student("FC1", 0)
    entropies = measure.Measurement(study, student, ("FC1",)).run("FC1")
    mine = of(rows.networks, "student").iloc[0]
    assert (mine["training"], mine["measurement"]) == (student.address, entropies.address)
    stored = tables.origin
    assert stored["samples"] == len(study.measured) == 6
    assert stored["profile"] == "laptop"
    assert sorted(stored["networks"]) == sorted(["baseline", "student", *CONTROLS])
    assert not {"device", "data_root", "seeds"} & {*stored["settings"]}


@pytest.mark.parametrize("what", ["training", "measurement"])
def test_evidence_of_other_code_is_stale(shapes, study, rows, store, tables, what, monkeypatch):
    """Planted: the code gives another address, though no setting differs."""
    other = changed(rows, "networks", what, "student/0", network="untrained")
    tables.add(shapes.origin(study), role_of(other, "untrained"))
    monkeypatch.setattr(collecting, "seed_rows", lambda *_: rows)
    with pytest.raises(Stale, match=rf"{what} of the untrained at FC1, seed 0, was student/0, is "):
        collect(shapes, [0], tables, store)
    with pytest.raises(Stale):
        next(plans(shapes, [0], tables, store))
    (whole,) = plans(shapes, [0], tables, store, renew=True)
    assert tables.seeds() == [0]  # a forecast removes nothing
    assert collect(shapes, [0], tables, store, renew=True) == [0]
    assert collect(shapes, [0], tables, store) == []
    tables.remove()
    (anew,) = plans(shapes, [0], tables, store)
    assert [*anew.everything()] == [*whole.everything()]


def test_tables_without_addresses_are_stale(shapes, study, rows, store, tmp_path):
    results, old = Results(tmp_path), rows.networks.drop(columns=["training", "measurement"])
    results.add(shapes.origin(study), replace(rows, networks=old))
    with pytest.raises(Stale, match="was unknown, is baseline/"):
        collect(shapes, [0], results, store)


def test_networks_are_added_to_a_seed(shapes, study, rows, store, tmp_path):
    """A control alone, then the others; the tables are the same as if all came together."""
    parts, whole = Results(tmp_path / "parts"), Results(tmp_path / "whole")
    assert collect(shapes, [0], parts, store, only=["equal-rate"]) == [0]
    assert parts.origin["networks"] == ["equal-rate"]
    names = ["baseline", "student", "untrained", "random-labels"]
    assert sorted(collecting.lacking(shapes, 0, parts.networks())) == sorted(names)
    assert collect(shapes, [0], parts, store, only=["equal-rate"]) == []
    parts.add(shapes.origin(study), role_of(rows, *names))
    whole.add(shapes.origin(study), rows)
    for name in ("samples.csv.xz", "places.csv.xz", "settings.json"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    with pytest.raises(ValueError, match="untrained"):
        collect(shapes, [0], parts, store, only=["untrain"])


def test_the_order_of_seeds_leaves_no_trace(rows, shapes, study, tmp_path):
    origin, written = shapes.origin(study), []
    for name, order in {"a": (0, 1, 2), "b": (2, 0, 1)}.items():
        results = Results(tmp_path / name)
        for seed in order:
            frames = (rows.networks, rows.samples, rows.places)
            results.add(origin, Rows(*(frame.assign(seed=seed) for frame in frames)))
        written.append([file.read_bytes() for file in sorted(results.folder.glob("[!.]*"))])
    assert written[0] == written[1]
    assert len(written[0]) == 5


def test_what_networks_were_after_every_epoch_lies_apart(rows, shapes, study, tmp_path):
    """Most columns of images; of networks without them, such as those of clouds, there are none."""
    results, curves = Results(tmp_path / "shapes"), {"epoch 0 n_fg": 1.5, "epoch 1 n_fg": 2.5}
    with_curves = replace(rows, networks=rows.networks.assign(**curves))
    results.add(shapes.origin(study), with_curves)
    assert "epoch" not in (results.folder / "networks.csv").read_text()
    found = results.read().networks
    assert found["epoch 1 n_fg"].tolist() == [2.5] * len(rows.networks)
    assert len(found) == len(found[KEY].drop_duplicates())
    plain = Results(tmp_path / "plain")
    without = rows.networks[[name for name in rows.networks if not name.startswith("epoch ")]]
    plain.add(shapes.origin(study), replace(rows, networks=without))
    assert not [name for name in plain.read().networks if name.startswith("epoch ")]


def test_stored_evidence_is_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert 1e6 < sum(path.stat().st_size for path in files) <= 5e6


def test_a_network_that_has_diverged_replaces_one_with_samples(rows, shapes, study, tmp_path):
    results, student = Results(tmp_path), role_of(rows, "student")
    results.add(shapes.origin(study), rows)
    none = student.samples.iloc[:0], student.places.iloc[:0]
    results.add(shapes.origin(study), Rows(student.networks.assign(diverged="nan"), *none))
    found = results.read()
    assert set(found.networks["network"]) - set(found.samples["network"]) == {"student"}
    assert "student" not in set(found.places["network"])


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_an_interrupted_seed_goes_on_in_a_store_that_was_moved(moved, tmp_path):
    """What it shares with other seeds is that of the new store."""
    old, new = tmp_path / "old", tmp_path / "new"
    with suppress(KeyboardInterrupt), collecting.of_one_seed(Store(old), "images-0"):
        raise KeyboardInterrupt
    old.rename(new) if moved else shutil.copytree(old, new, symlinks=True)
    with collecting.of_one_seed(Store(new), "images-0") as apart:
        apart.run("teacher", {"a": 1}).get("x", lambda: ({"t": torch.ones(1)}, {}))
    assert [path.name for path in new.glob("teacher/*/x.json")] == ["x.json"]
    assert not [*old.glob("teacher/*/x.json")]


def test_a_seed_is_computed_by_one_process(shapes, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collecting, "seed_rows", None)  # would fail
    with collecting.of_one_seed(store, "shapes-0") as apart:
        assert apart is not None
        with collecting.of_one_seed(store, "shapes-0") as second:
            assert second is None
        assert apart.root.is_dir()
        assert collect(shapes, [0], Results(tmp_path), store) == []
    assert "seed 0 is computed by another process" in capsys.readouterr().out
    assert not apart.root.exists()


def test_what_is_left_to_do(shapes, store, tables):
    """Of a seed: baseline, student, head, three controls; teachers are there by now."""
    assert not forecast(plans(shapes, [0], tables, store))
    one = forecast(plans(shapes, [0, 1], tables, store))
    assert one.trainings == 6
    assert one.measurements == 5 * 3  # networks, epochs 0 to 2
    both = forecast(plans(shapes, [1, 2], tables, store))
    assert both.trainings == 12
    alone = forecast(plans(shapes, [1, 2], tables, store, only=["untrained"]))
    assert (alone.trainings, alone.measurements) == (2, 2 * 3)
    with pytest.raises(Stale):
        forecast(plans(shapes, [1], tables, store, b=0.1))


def test_what_pages_can_say_of_stale_tables_without_the_data(shapes, tables, monkeypatch):
    assert shapes.outdated(tables) == []
    assert shapes.outdated(Results(tables.folder / "none")) == []
    other = replace(shapes, overrides={**shapes.overrides, "b": 0.3, "data_root": "nowhere"})
    assert other.outdated(tables) == ["settings.b was 0.05, is 0.3"]
    monkeypatch.setattr(evidence, "METHOD", 2)
    assert shapes.outdated(tables) == ["method was 1, is 2"]


def test_committed_tables_are_of_today():
    committed = {path.parent.name for path in RESULTS.glob("*/settings.json")}
    assert committed >= {"images", "pointnet", "sentiment", "questions"}
    for name in committed:
        assert every()[name].outdated(Results(RESULTS / name)) == [], name


def test_stored_evidence_computed_again_is_the_same(shapes, study, rows, store, tables):
    found = again(shapes, tables, store, samples=4)
    assert (found.exact, found.differing) == (True, ())
    assert found.numbers == 2 * (4 + 4 * len(SAMPLE))

    planted = changed(rows, "samples", "place_lambda", 0.123, network="student", sample=2)
    planted = changed(planted, "networks", "path", 9, network="baseline")
    tables.add(shapes.origin(study), planted)
    found = again(shapes, tables, store, samples=4)
    assert len(found.differing) == 2
    assert "baseline at FC1: path is stored as 9, is " in str(found)
    assert "student at FC1, sample 2: place_lambda is stored as 0.123, is " in str(found)


def test_every_changed_number_is_noticed(rows):
    for column in SAMPLE:
        planted = changed(rows, "samples", column, 0.987654, network="student", sample=0)
        assert len(compared(planted, rows)[0]) == 1, column
    missing = replace(rows, samples=rows.samples[rows.samples["sample"] != 3])
    differing, numbers = compared(missing, rows)
    assert len(differing) > 5 * 5
    assert numbers == 5 * (4 + 6 * len(SAMPLE))


def test_on_another_machine_means_lie_within_the_spread_of_seeds(rows):
    """Planted: seeds that vary by a hundredth, and a network that is off by a tenth."""
    own, seeds = role_of(rows, "student", "baseline"), []
    for seed, factor in enumerate((0.99, 1.0, 1.01, 0.995, 1.005)):
        frames = {"networks": own.networks.copy(), "samples": own.samples.copy()}
        for part, columns in {"networks": ["path", "accuracy"], "samples": SAMPLE}.items():
            frames[part][columns] *= factor
            frames[part]["seed"] = seed
        seeds.append(replace(own, **frames))
    stored = seeds[0]
    for each in seeds[1:]:
        stored = merged(stored, each)
    differing, numbers = predicted_means(stored, own)
    assert numbers > 10
    assert differing == []
    off = own.samples.assign(d=own.samples["d"] * 1.2)
    differing, _ = predicted_means(stored, replace(own, samples=off))
    assert [each.partition(" is ")[0] for each in differing] == ["baseline: d", "student: d"]


def test_texts_have_rows_too(tmp_path):
    files, network = tmp_path / "sst2", tmp_path / "model"
    files.mkdir()
    write_sst2(files)
    settings = {
        "dataset": "sst2",
        "data_root": str(files),
        "network": str(tiny_model(network)),
        "epochs": 2,
        "teacher_epochs": 1,
        "head_epochs": 1,
        "share": 8,
        "analysed": 5,
    }
    texts = Evidence("texts", TextStudy, settings, ("untrained",))
    results = Results(tmp_path / "texts")
    assert collect(texts, [0, 1], results, Store(tmp_path / "store")) == [0, 1]
    found = results.read()
    assert len(found.networks) == 2 * 3
    assert len(found.samples) == 2 * 3 * 5
    assert found.places.empty
    students = found.networks["network"] != "baseline"
    assert (found.networks["feature_error"].notna() == students).all()
    assert found.networks["training"].is_unique


def test_two_processes_write_the_same_tables(rows, shapes, study, tmp_path):
    origin, folder = shapes.origin(study), tmp_path / "shapes"

    def write(seed: int) -> None:
        frames = (rows.networks, rows.samples, rows.places)
        Results(folder).add(origin, Rows(*(frame.assign(seed=seed) for frame in frames)))

    threads = [Thread(target=write, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Results(folder)
    assert found.seeds() == list(range(6))
    assert len(found.read().samples) == 6 * len(rows.samples)


def test_evidence_check_says_which_agree(shapes, study, rows, tmp_path, monkeypatch, capsys):
    """The command itself, on tables of two tiny studies; in one of them a number was changed."""
    monkeypatch.setenv("KPNB_STORE", str(study.store.root))  # which has the teacher
    monkeypatch.setattr(evidence, "STUDIES", {})
    output = ["--output", str(tmp_path / "results")]
    assert main(["evidence-check", *output]) == 0
    assert "there are no tables to check" in capsys.readouterr().out

    planted = changed(rows, "networks", "path", 9, network="student")
    for name, found in {"right": rows, "wrong": planted}.items():
        one = replace(shapes, name=name)
        evidence.STUDIES[name] = one
        Results(tmp_path / "results" / name).add(one.origin(study), found)
    assert main(["evidence-check", *output]) == 1
    out = capsys.readouterr().out
    numbers = 2 * (4 + 6 * len(SAMPLE))  # of two networks and six samples
    assert f"right, seed 0, FC1: {numbers} numbers agree to the digit\n" in out
    assert f"wrong, seed 0, FC1: {numbers} numbers, 1 do not agree to the digit:\n" in out
    assert "student at FC1: path is stored as 9, is " in out
    assert "1 of 2 studies agree with their tables; agree: right; do not: wrong\n" in out
    # that one process after the other takes part was seen; this one need not be started
    monkeypatch.setattr(
        futures, "ProcessPoolExecutor", lambda count, how: ThreadPoolExecutor(count)
    )
    assert main(["evidence-check", "right", *output]) == 0


def test_the_command_hands_its_options_over(tmp_path, monkeypatch, capsys):
    asked = {"collect": [], "plans": []}

    def recorded(name):
        return lambda *what, **how: asked[name].append((what, how)) or []

    for name in asked:
        monkeypatch.setattr(collecting, name, recorded(name))
    where = ["--output", str(tmp_path), "-p", "epochs=3", "--only", "untrained,student"]
    assert main(["evidence", "images", "pointnet", "--seeds", "0-2,7", "--replace", *where]) == 0
    for name, ((one, seeds, results), how) in zip(
        ("images", "pointnet"), asked["collect"], strict=True
    ):
        assert (one.name, [*seeds]) == (name, [0, 1, 2, 7])
        assert results.folder == tmp_path / name
        assert how == {"only": ["untrained", "student"], "renew": True, "epochs": 3}
    assert f"0 seeds computed, 0 in {tmp_path / 'images'}" in capsys.readouterr().out

    assert main(["evidence", "images", "--forecast", *where]) == 0
    (((one, seeds, results), how),) = asked["plans"]
    assert (one.name, seeds) == ("images", one.seeds)  # all that were stated
    assert how == {"only": ["untrained", "student"], "renew": False, "epochs": 3}
    assert len(asked["collect"]) == 2


# ---- a build's own seeds


@pytest.fixture
def twenty(shapes, study, rows, tmp_path, monkeypatch) -> Path:
    """Tables in which the networks of seed 0 stand under the numbers 5 to 9."""
    monkeypatch.setattr(replication, "STUDIES", {"shapes": shapes})
    results = Results(tmp_path / "results" / "shapes")
    for seed in range(5, 10):
        frames = (rows.networks, rows.samples, rows.places)
        results.add(shapes.origin(study), Rows(*(frame.assign(seed=seed) for frame in frames)))
    return tmp_path / "results"


def test_fewer_measured_samples_are_not_the_first_ones(shapes, store, study):
    """So positions are mapped."""
    fewer = shapes.study(store, analysed=3)
    theirs, ours = replication.common_samples(fewer, 6)
    assert ours.tolist() == [0, 1, 2]
    assert theirs.tolist() != [0, 1, 2]
    names = [study.measured.names[position] for position in theirs]
    assert names == list(fewer.measured.names)
    more = shapes.study(store, analysed=9)
    theirs, ours = replication.common_samples(more, 6)
    assert theirs.tolist() == list(range(6))
    assert [more.measured.names[i] for i in ours] == list(study.measured.names)
    assert digest(more.first_measured(6).config) == digest(study.measured.config)


@pytest.mark.parametrize("analysed", [3, 6])
def test_own_seeds_stand_beside_the_same_samples(shapes, store, twenty, rows, analysed):
    """The own seed is the network that is stored, so the values are the same."""
    build = shapes.study(store, analysed=analysed, device="cpu")
    found = replication.beside(build, twenty)
    assert (found.name, found.samples, found.stated) == ("shapes", analysed, 20)
    assert found.stored.index.tolist() == [5, 6, 7, 8, 9]
    assert found.own.index.tolist() == [0]
    theirs, _ = replication.common_samples(build, 6)
    kept = rows.samples[rows.samples["sample"].isin(theirs)]
    gap = of(kept, "student")["n_fg"].mean() - of(kept, "baseline")["n_fg"].mean()
    assert found.stored["n_fg"].tolist() == pytest.approx([gap] * 5)
    assert found.own["n_fg"].tolist() == pytest.approx([gap])
    (own,), (stored, *_) = (frame["d_var"] for frame in (found.own, found.stored))
    assert own == pytest.approx(stored, rel=1e-3)  # of six digits


def test_own_seeds_are_predicted_from_stated_ones_alone(
    shapes, study, store, rows, twenty, monkeypatch
):
    """Of the six that are stored, the last was not stated."""
    frames = (frame.assign(seed=10) for frame in (rows.networks, rows.samples, rows.places))
    Results(twenty / "shapes").add(shapes.origin(study), Rows(*frames))
    monkeypatch.setattr(replication, "STUDIES", {"shapes": replace(shapes, seeds=range(5, 10))})
    found = replication.beside(shapes.study(store), twenty)
    assert (found.stored.index.tolist(), found.stated) == ([5, 6, 7, 8, 9], 5)


def test_own_seeds_stand_beside_nothing_else(shapes, store, twenty):
    """Not beside tables of other settings or too few seeds, nor where the seeds are stored."""
    build = shapes.study(store)
    for other in ({"b": 0.1}, {"epochs": 1}, {"layers": "FC2"}, {"seeds": (5, 6)}):
        assert replication.beside(shapes.study(store, **other), twenty) is None
    assert replication.beside(build, twenty / "nowhere") is None
    assert replication.every_beside({"": build}, twenty).keys() == {""}


def test_stale_tables_are_told_and_not_compared(shapes, store, twenty, monkeypatch):
    """Planted: another version of the method, and tables of other samples."""
    build = shapes.study(store)
    path = twenty / "shapes" / "settings.json"
    origin = json.loads(path.read_text())
    path.write_text(json.dumps(origin | {"measured": "0" * 20}))
    found = replication.beside(build, twenty)
    assert "measured was '00000000000000000000', is " in found.outdated[0]
    path.write_text(json.dumps(origin))
    monkeypatch.setattr(evidence, "METHOD", 2)
    found = replication.beside(build, twenty)
    assert found.outdated == ("method was 1, is 2",)
    assert found.found.empty
    assert "> **Stale.**" in reliability.replicated({"": found})
    chapter = Found("H1", "images", {}, {}, {"": found})
    assert own_seeds(chapter) is None
    assert "method was 1, is 2" in replicated("h1", chapter).data
    assert replicated("h1", Found("H1", "images", {}, {})) is None


def test_chapters_say_where_their_own_seeds_lie(shapes, store, twenty):
    found = Found(
        "H1", "images", {}, {}, replication.every_beside({"": shapes.study(store)}, twenty)
    )
    text = replicated("h1", found).data
    assert text.startswith("1 seed of this build beside 5 of 20 seeds of the [stored evidence]")
    assert "on the 6 samples that both have" in text
    assert len(own_seeds(found).axes) == len(found.stored[""].rows(found.metrics)) > 0


def test_seeds_of_a_command():
    assert several_seeds("0-3,7") == [0, 1, 2, 3, 7]
    for wrong in ("", "a", "1-", "-1", "1;2"):
        with pytest.raises(UsageError, match="give numbers"):
            several_seeds(wrong)
    with pytest.raises(UsageError, match="there is none from 5 to 3"):
        several_seeds("0,5-3")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("profile=paper", "-p profile=...: evidence is computed with the laptop's settings"),
        ("seeds=[0]", "-p seeds=...: give --seeds"),
        ("store=here", "-p store=...: the environment variable KPNB_STORE"),
    ],
)
def test_what_is_no_setting_of_a_study_is_refused(option, said, tmp_path, capsys):
    assert main(["evidence", "images", "--output", str(tmp_path), "-p", option]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
