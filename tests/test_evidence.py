"""Stored evidence: its rows against the library's own numbers and plain loops, and faults on the
way to it.
"""

import gzip
import math
from dataclasses import replace
from threading import Thread

import pandas as pd
import pytest
import torch

from kpnb_book.run.errors import UsageError
from kpnb_book.run.evidence import several_seeds
from kpnb_book.store import Store
from kpnb_book.studies import evidence, measure
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.controls import random_labels_teacher
from kpnb_book.studies.evidence import Evidence, collect, distance_within, networks, seed_rows
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.results import KEY, SAMPLE, Results, Rows, Stale, differences, zipped
from kpnb_book.studies.text import TextStudy
from tests.test_study import TINY, draw
from tests.tiny_text import tiny_model, write_sst2

pytestmark = pytest.mark.xdist_group("evidence")  # they share what is trained
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
    assert torch.equal(other.data.images, study.train.images)
    assert not torch.equal(other.data.labels, study.train.labels)


def test_place_counts_the_same_points_by_masks_of_other_images(rows, study):
    points = measure.metrics(study, study.baseline(0), "FC1").points[-1]
    found, total = of(rows.samples, "baseline"), len(points)
    for i in range(total):
        on, off, ratio = [], [], []
        for shift in range(1, 16):
            mask = study.foreground[(i + shift) % total]
            on.append(sum(int(p and m) for p, m in zip(points[i], mask, strict=True)))
            off.append(sum(int(p and not m) for p, m in zip(points[i], mask, strict=True)))
            if on[-1] + off[-1]:
                ratio.append(on[-1] / (on[-1] + off[-1]))
        assert found["place_n_fg"][i] == pytest.approx(sum(on) / 15)
        assert found["place_n_bg"][i] == pytest.approx(sum(off) / 15)
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
        left[name] = (own - evidence.place_counts(study, points)[2]).mean().item()
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
    before = (results.folder / "samples.csv.gz").read_bytes()
    monkeypatch.setattr(evidence, "seed_rows", None)  # would fail
    assert collect(shapes, [0], results, store) == []
    assert (results.folder / "samples.csv.gz").read_bytes() == before
    assert not evidence.folder_of(store, "shapes-0").exists()
    text = gzip.decompress(before).decode()
    assert text.startswith("seed,layer,network,sample,n_fg")
    assert zipped(text) == before


def test_an_interrupted_seed_goes_on(shapes, store, tmp_path, monkeypatch):
    """What was trained before the interruption is not trained again; the tables keep the others."""
    results, rows_of = Results(tmp_path / "shapes"), evidence.rows_of
    collect(shapes, [0], results, store)

    def interrupted(study, layer, name, training, seed, whole):
        if name == "untrained":
            raise KeyboardInterrupt
        return rows_of(study, layer, name, training, seed, whole=whole)

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


def test_evidence_of_other_settings_is_stale(shapes, store, tmp_path, monkeypatch):
    results = Results(tmp_path / "shapes")
    collect(shapes, [0], results, store)
    with pytest.raises(Stale, match=r"settings\.b was 0\.05, is 0\.1"):
        collect(shapes, [1], results, store, b=0.1)
    monkeypatch.setattr(evidence, "METHOD", 2)
    with pytest.raises(Stale, match="method was 1, is 2"):
        collect(shapes, [1], results, store)
    assert results.seeds() == [0]


def test_where_the_data_lie_makes_no_difference(shapes, store):
    one = shapes.origin(shapes.study(store))
    moved = shapes.overrides["data_root"] + "/."
    assert differences(one, shapes.origin(shapes.study(store, data_root=moved))) == []


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


def test_seeds_of_a_command():
    assert several_seeds("0-3,7") == [0, 1, 2, 3, 7]
    for wrong in ("", "a", "1-", "-1", "1;2"):
        with pytest.raises(UsageError, match="give numbers"):
            several_seeds(wrong)
