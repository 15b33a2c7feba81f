"""One experiment end to end on a folder of drawn images: what is trained, what is shared, what the
tables say.
"""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import kpnb
from kpnb._progress import Progress
from kpnb.metrics import Choices, agreement, six_metrics
from kpnb.stats import compare
from kpnb_book.figures import report
from kpnb_book.figures.report import difference_table, show
from kpnb_book.networks.images import build
from kpnb_book.store import Store
from kpnb_book.studies import measure, tables
from kpnb_book.studies.chapters import SETTINGS
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.settings import OWN
from kpnb_book.studies.training import Training
from tests.by_hand import metrics_by_hand
from tests.drawn import TINY, draw
from tests.executed import executed


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root = draw(tmp_path_factory.mktemp("shapes"))
    store = Store(tmp_path_factory.mktemp("store"))
    return ImageStudy("laptop", dataset="folder", data_root=str(root), store=store, **TINY)


def test_table_agrees_with_a_count_by_hand(study):
    """Eq. 6-9 once more with plain loops over the stored entropies and the drawn masks."""
    table = tables.table5(study).set_index("network")
    assert list(table.index) == ["student", "baseline"]
    for role, training in (("student", study.student("FC1")), ("baseline", study.baseline())):
        entropy = measure.entropies(study, training, "FC1")["entropy"].numpy()
        masks = (
            study.measured.masks.numpy().reshape(6, 4, 8, 4, 8).mean((2, 4)).reshape(6, 16) >= 0.5
        )
        for name, value in metrics_by_hand(entropy, masks, training.step_norms(), b=0.2).items():
            assert table.loc[role, name] == pytest.approx(value, nan_ok=True)


def test_tables_of_choices_agree_with_a_count_by_hand(study):
    """The weight distance's scopes and the choices of rho, once more from the stored entropies."""
    networks = {"student": study.student("FC1"), "baseline": study.baseline()}
    at, rho = {}, {}
    for role, training in networks.items():
        entropy = measure.entropies(study, training, "FC1")["entropy"]
        points = (
            entropy
            < (entropy * study.background).sum(-1, keepdim=True)
            / (study.background.sum(-1, keepdim=True))
            - study.settings.b
        )
        points &= study.foreground
        known = points.any(-1).any(0)  # an image without a single point has no richest epoch
        counts = points.sum(-1)[1:, known]
        for scope in ("all", "below", "layer"):
            path = measure.distance(study, training, "FC1", scope)
            at[scope, role] = path[counts.argmax(0) + 1].mean().item()
        tried, kept = points[1:].any(0).sum(-1), points[-1].sum(-1)
        rho["text", role] = (kept / tried)[tried > 0].mean().item()
        tried = points.any(0).sum(-1)
        rho["epoch 0", role] = (kept / tried)[tried > 0].mean().item()
    assert np.isfinite([*at.values(), *rho.values()]).all()
    gaps, means = tables.by_scope(study), tables.by_choice(study)
    assert list(gaps.index) == ["all", "below", "layer", "layer steps"]
    for scope in ("all", "below", "layer"):
        expected = at[scope, "student"] - at[scope, "baseline"]
        assert gaps.loc[scope, "d_mean"] == pytest.approx(expected)
    assert list(means.index) == ["text", "epoch 0", "released"]
    for title, role in rho:
        assert means.loc[title, role] == pytest.approx(rho[title, role])


def test_factors_of_the_weight_distance(study):
    """Equation 8 by hand: the share of the path at the richest epoch, and the whole of it."""
    shares, whole = {}, {}
    for role, training in (("student", study.student("FC1")), ("baseline", study.baseline())):
        path = measure.distance(study, training, "FC1")
        counts = measure.point_counts(study, training, "FC1")[1:]
        known = counts.sum(0) > 0
        found = path[counts.argmax(0) + 1] / path[-1]
        shares[role], whole[role] = found.where(known, torch.nan), path[-1].item()
    both = ~(shares["student"] - shares["baseline"]).isnan()
    gap = (shares["student"] - shares["baseline"])[both].mean().item()
    student, baseline = (shares[role][both].var(correction=0) for role in ("student", "baseline"))
    factors = tables.factors(study)
    assert factors.length == pytest.approx(whole["student"] / whole["baseline"])
    assert factors.share["d_mean"].value == pytest.approx(gap)
    assert factors.share["d_var"].value == pytest.approx((student - baseline).item())


def test_one_checkpoint_estimated_twice_and_its_linearity(study):
    networks = {"student": study.student("FC1"), "baseline": study.baseline()}
    twice = tables.repeated(study, networks, "FC1").set_index("network")
    linear = tables.linearity(study, networks, "FC1")
    assert [*zip(linear["network"], linear["epoch"], strict=True)] == [
        (name, epoch) for name in networks for epoch in (0, 2)
    ]
    for name, training in networks.items():
        once, again = (
            measure.entropies(study, training, "FC1", [2], noise_seed=seed)["entropy"][0]
            for seed in (0, 100)
        )
        assert twice.loc[name, "nats"] == pytest.approx((once - again).abs().mean().item())
        found = measure.entropies(study, training, "FC1")
        rows = linear[linear["network"] == name].set_index("epoch")
        for epoch in (0, 2):
            ratio = found["linearity"][epoch]
            assert rows.loc[epoch, "median"] == pytest.approx(ratio.nanmedian().item())
            assert rows.loc[epoch, "largest"] == pytest.approx(ratio.max().item())


@pytest.mark.parametrize("role", ["student", "baseline"])
def test_its_checkpoints_measured_as_anybodys_say_the_same_to_the_digit(study, role):
    """By trajectory, from files and from functions, and by a Recorder."""
    training = study.baseline() if role == "baseline" else study.student("FC1")
    s, path, b = study.settings, study.path("FC1"), Choices(b=study.settings.b)
    how = {"units": study.units, "solver": measure.solver_of(s), "max_batch": s.max_batch}
    how |= {"scale": s.scale, "choices": b}
    expected = measure.metrics(study, training, "FC1")
    entropies = measure.entropies(study, training, "FC1")["entropy"]
    epochs = range(training.epochs + 1)

    model = training.make()
    recorder = kpnb.Recorder(model, study.x, study.foreground, path, **how)
    for epoch in epochs:
        training.load(model, epoch)
        recorder.epoch()
    where = {
        "a folder of files": training.run.path,
        "a pattern": f"{training.run.path}/epoch-*.safetensors",
        "functions": [lambda epoch=epoch: training.state(epoch) for epoch in epochs],
        "networks": [training.load(epoch=epoch) for epoch in epochs],
        "kpnb's own": training.checkpoints,
    }
    found = {
        title: kpnb.trajectory(training.make(), given, study.x, study.foreground, path, **how)
        for title, given in where.items()
    }
    assert entropies.isfinite().any()
    for title, one in [*found.items(), ("a recorder", recorder.trajectory())]:
        assert torch.equal(one.entropy.nan_to_num(9.0), entropies.nan_to_num(9.0)), title
        assert torch.equal(one.distance, measure.distance(study, training, "FC1")), title
        np.testing.assert_equal(one.row(), expected.row(), title)


def test_a_wrapped_and_prefixed_teacher_goes_through_a_study(study, tmp_path):
    """Somebody's checkpoint as ``teacher_weights``; what does not fit is listed."""
    theirs = build(**study.teacher_spec() | {"seed": 9}).state_dict()
    file = {f"module.{name}": value for name, value in theirs.items()}
    torch.save(
        {"state_dict": file, "epoch": 90, "best_acc1": 71.3}, tmp_path / "model_best.pth.tar"
    )
    options = TINY | {"dataset": "folder", "data_root": study.settings.data_root}
    own = ImageStudy(
        "laptop", store=study.store, teacher_weights=str(tmp_path / "model_best.pth.tar"), **options
    )
    start = own.teacher().state(0)
    assert all(torch.equal(start[name], value) for name, value in theirs.items())
    assert own.teacher().address != study.teacher().address
    assert math.isfinite(own.student("FC1").log[-1]["loss"])

    del file["module.features.0.weight"]
    torch.save({"state_dict": file}, tmp_path / "half.pth")
    half = ImageStudy(
        "laptop", store=study.store, teacher_weights=str(tmp_path / "half.pth"), **options
    )
    with pytest.raises(ValueError, match=r"missing: features\.0\.weight"):
        half.teacher().finish()


def test_a_file_of_weights_is_known_by_what_it_holds(study, tmp_path):
    """A copy of it is the same teacher; another training under its name is not."""
    file = tmp_path / "here" / "best.pth"
    file.parent.mkdir()
    torch.save(build(**study.teacher_spec() | {"seed": 9}).state_dict(), file)
    shutil.copytree(file.parent, tmp_path / "there")
    options = TINY | {"dataset": "folder", "data_root": study.settings.data_root}

    def student(where: str) -> Training:
        weights = str(tmp_path / where / "best.pth")
        return ImageStudy("laptop", store=study.store, teacher_weights=weights, **options).student(
            "FC1"
        )

    here, there = student("here"), student("there")
    assert here.address == there.address
    torch.save(build(**study.teacher_spec() | {"seed": 10}).state_dict(), file)
    assert student("here").address != there.address
    assert student("there").address == there.address


def times_of_runs(store):
    """When each file of a run was written. The contents of read files are remembered beside them,
    and those that changed a moment ago only the next time.
    """
    files = [path for path in store.root.rglob("*") if path.is_file()]
    kept = [path for path in files if path.parent.name != "contents"]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_nothing_is_computed_twice(study):
    tables.table5(study)
    files = times_of_runs(study.store)
    again = ImageStudy(
        "laptop", dataset="folder", data_root=study.settings.data_root, store=study.store, **TINY
    )
    assert tables.table5(again).equals(tables.table5(study))
    assert files == times_of_runs(study.store)


def test_who_starts_where_and_what_moves(study):
    student, baseline, teacher = study.student("FC1"), study.baseline(), study.teacher()
    start = build(**study.spec(0)).state_dict()
    assert all(torch.equal(value, student.state(0)[key]) for key, value in start.items())
    assert all(torch.equal(value, baseline.state(0)[key]) for key, value in start.items())
    assert not torch.equal(teacher.state(0)["features.0.weight"], start["features.0.weight"])
    last = student.step_norms()[-1]
    assert last["classifier.0.weight"] > 0
    assert last["classifier.3.weight"] == last["classifier.6.weight"] == 0
    whole, below, one = (
        measure.distance(study, student, "FC1", scope)[-1] for scope in ("all", "below", "layer")
    )
    assert 0 < whole < below  # the layers above count in ||w_0|| only
    initial, *steps = student.step_norms()
    weight = "classifier.0.weight"
    assert one == pytest.approx(sum(step[weight] for step in steps) / initial[weight])
    # A path of two steps an epoch is longer than its chord, unless they go in one direction.
    steps = measure.distance(study, student, "FC1", "layer steps")
    assert len(study.share) == 2 * study.settings.batch_size
    assert steps[-1] > one


def test_student_is_classified_with_its_own_features(study):
    head = study.head("FC1")
    assert torch.equal(
        head.state()["classifier.0.weight"], study.student("FC1").state()["classifier.0.weight"]
    )
    assert torch.equal(
        head.state()["features.1.running_mean"],
        study.student("FC1").state()["features.1.running_mean"],
    )
    accuracies = tables.accuracies(study)
    assert list(accuracies["network"]) == ["teacher", "baseline", "student"]
    assert accuracies["accuracy"].between(0, 1).all()


def test_released_choices_reach_the_table(study):
    released = tables.table5(study, choices=Choices.released(0.2), scope="layer steps")
    entropy = measure.entropies(study, study.baseline(), "FC1")["entropy"]
    distance = measure.distance(study, study.baseline(), "FC1", "layer steps")
    direct = six_metrics(
        entropy, study.foreground, distance, Choices(0.2, "dataset", 0, "zero")
    ).row()
    for name, value in direct.items():
        assert released.set_index("network").loc["baseline", name] == pytest.approx(
            value, nan_ok=True
        )


def test_noise_seed_changes_the_estimate_a_little(study):
    training = study.baseline()
    one, two = (
        measure.entropies(study, training, "FC1", epochs=[-1], noise_seed=n)["entropy"][0]
        for n in (0, 7)
    )
    error, iou = agreement(one, two, study.foreground)
    assert error < 0.05
    assert iou > 0.5
    assert agreement(one, one, study.foreground) == (0, 1)


def test_tables_for_the_page(study):
    found = {title: compare(*pair) for title, pair in measure.pairs(study).items()}
    html = show(difference_table(found, ("n_fg", "rho"))).to_html()
    assert "N<sup>fg</sup>" in html
    assert "FC1, seed 0" in html
    assert "undefined D<sub>mean</sub>" in show(tables.table5(study)).to_html()
    assert "–" in show(pd.DataFrame({"rho": [float("nan")]})).to_html()


def test_asking_for_a_training_computes_nothing(study, tmp_path):
    other = ImageStudy("laptop", **asdict(study.settings), store=Store(tmp_path))
    networks = [other.teacher(), other.baseline(), other.student("FC1"), other.head("FC1")]
    assert [network.missing() for network in networks] == [[0, 1, 2]] * 3 + [[0, 1]]
    assert not list(tmp_path.glob("*/*/epoch-*"))
    assert other.head("FC1").address == study.head("FC1").address


def test_all_samples_can_be_asked_for(study):
    options = {**asdict(study.settings), "share": "all", "teacher_samples": "all"}
    every = ImageStudy("laptop", **options, store=study.store)
    assert len(every.train) == len(every.share) > 32


def test_layers_measured_together_are_as_if_alone(study, tmp_path):
    """And each is stored for itself."""
    network = study.baseline()
    options = {"epochs": [-1], "noise_seed": 5}
    alone = measure.entropies(study, network, "FC2", **options)
    wanted = measure.Measurement(study, network, ("FC1", "FC2", "Conv"), [0, -1], 5)
    assert [wanted.missing(layer) for layer in wanted.layers] == [[0, 2], [0], [0, 2]]
    together = wanted.values()
    assert [wanted.missing(layer) for layer in wanted.layers] == [[], [], []]
    apart = measure.entropies(study, network, "Conv", noise_seed=6)["entropy"][-1]
    assert not torch.equal(together["Conv"]["entropy"][-1], apart)
    assert torch.equal(together["FC2"]["entropy"][-1], alone["entropy"][-1])
    model, paths = network.load(), [study.path("FC1"), study.path("Conv")]
    how = {"units": study.units, "solver": measure.solver_of(study.settings), "seed": 5}
    for layer, path in zip(("FC1", "Conv"), paths, strict=True):
        found = kpnb.entropy(model, study.x, path, dead="nan", **how).entropy
        assert torch.equal(together[layer]["entropy"][-1], found)


def test_progress_says_which_training_of_how_many(study, tmp_path, monkeypatch):
    """By name and epoch, from the first to the last; what is stored does not count."""
    lines = []
    monkeypatch.setattr(Progress, "say", lambda bar, what: lines.append(what))
    options = asdict(study.settings) | {"layers": ("FC1", "FC2"), "seeds": (3,)}
    other = ImageStudy("laptop", **options, store=Store(tmp_path))
    other.baseline(3).finish()
    of_one = [f"training 1 of 1: baseline, seed 3, epoch {epoch} of 2" for epoch in range(3)]
    assert lines == of_one
    lines.clear()
    tables.accuracies(other)
    said = list(dict.fromkeys(line.rpartition(", epoch")[0] for line in lines))
    assert said == [
        "training 1 of 5: teacher",
        "training 2 of 5: student of FC1, seed 3",
        "training 3 of 5: head of student of FC1, seed 3",
        "training 4 of 5: student of FC2, seed 3",
        "training 5 of 5: head of student of FC2, seed 3",
    ]
    assert lines[-1].endswith("epoch 1 of 1")
    lines.clear()
    tables.accuracies(other)
    assert not lines


def test_the_longer_of_two_trainings_is_counted(study, tmp_path, monkeypatch):
    """At a constant rate they are one training, so far as the shorter one goes."""
    lines = []
    monkeypatch.setattr(Progress, "say", lambda bar, what: lines.append(what))
    short = ImageStudy("laptop", **asdict(study.settings), store=Store(tmp_path)).baseline(3)
    long = replace(short, schedule=replace(short.schedule, epochs=short.epochs + 1))
    assert short.address == long.address
    short.finish()
    long.finish()
    assert {line.partition(":")[0] for line in lines} == {"training 1 of 1"}


def test_settings_are_noted_for_whoever_runs_the_notebook(study, tmp_path, monkeypatch):
    monkeypatch.setenv("KPNB_PROGRESS", str(tmp_path / "progress"))
    ImageStudy("smoke", store=study.store, seeds=4)
    ImageStudy("laptop", store=study.store)
    noted = (tmp_path / "progress.settings").read_text("utf8").splitlines()
    assert [json.loads(line)["seeds"] for line in noted] == [[4], [*OWN[:1]]]


def test_only_free_artwork_is_shown(study, tmp_path):
    assert study.shown(4).tolist() == [0, 1, 2, 3]  # one's own images: all
    embedded = ImageStudy("smoke", store=Store(tmp_path), teacher_samples=60, share=60, analysed=40)
    shown = embedded.shown(3).tolist()
    assert len(shown) == 3
    assert all(embedded.measured.names[i].startswith("Goog/") for i in shown)


@pytest.mark.parametrize(
    ("network", "layer", "name"),
    [
        ("vgg11_bn", "Conv", "features.25.weight"),  # 26 is the gain of its normalisation
        ("vgg11", "Conv", "features.18.weight"),
        ("vgg11_bn", "FC1", "classifier.0.weight"),
        ("vgg11_bn", "FC2", "classifier.3.weight"),
    ],
)
def test_the_weight_of_a_layer_is_its_own(study, network, layer, name):
    other = ImageStudy("laptop", store=study.store, **asdict(study.settings) | {"network": network})
    assert other.weight_of(layer) == name
    path = measure.distance(other, other.baseline(), layer, "layer")
    norms = other.baseline().step_norms()
    assert path[-1] == pytest.approx(sum(step[name] for step in norms[1:]) / norms[0][name])


def test_a_chapters_numbers_are_those_of_its_study(study, tmp_path, monkeypatch):
    """Of a study of the same settings, which finds everything stored."""
    parameters = {"profile": "smoke", "dataset": "folder", "epochs": 1, "seeds": 0, "layer": "FC1"}
    parameters |= {"data_root": study.settings.data_root, "device": "cpu"}
    chapter = Path(__file__).parents[1] / "notebooks" / "11_images_h2.ipynb"
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    executed(chapter, parameters)
    glued = report.GLUED
    settings = {SETTINGS.get(name, name): value for name, value in parameters.items()}
    own = ImageStudy(store=Store(tmp_path / "store"), **settings)
    roles = {"student": own.student("FC1"), "baseline": own.baseline()}
    for role, network in roles.items():
        assert not network.missing()
        path = measure.distance(own, network, "FC1")[-1].item()
        assert path > 0
        assert float(glued[f"h2_{role}_path"]) == pytest.approx(path, rel=1e-6)
    table = tables.table5(own).set_index("network")
    gap = table.loc["student", "d_mean"] - table.loc["baseline", "d_mean"]
    assert float(glued["h2_all"]) == pytest.approx(gap, rel=1e-6, nan_ok=True)
    assert glued["h2_epochs"] == 1


def test_settings_follow_profile_network_and_overrides():
    assert ImageStudy.resolve("laptop").grid == 16
    assert ImageStudy.resolve("laptop", epochs=None, grid=8).grid == 8
    assert ImageStudy.resolve("laptop", network="alexnet").b == 0.25
    assert ImageStudy.resolve("laptop", network="alexnet", b=0.3).b == 0.3
    assert ImageStudy.resolve("smoke", network="alexnet").size == 64
    assert ImageStudy.resolve("laptop", layers="FC3", seeds=4).layers == ("FC3",)
    assert ImageStudy.resolve("laptop", layers="FC3", seeds=4).seeds == (4,)
    assert ImageStudy.resolve("laptop", layers=["FC1", "FC2"]).layers == ("FC1", "FC2")
    assert ImageStudy.resolve("paper").layers == ("Conv", "FC1", "FC2", "FC3")
    assert ImageStudy.resolve("laptop", share="all").share == "all"
    assert ImageStudy.resolve("laptop", share=None).share == 2000


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("lapop", {}, "unknown profile 'lapop'; did you mean 'laptop'"),
        ("laptop", {"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ("laptop", {"layers": "FC9"}, "unknown layer of vgg11_bn 'FC9'"),
        ("laptop", {"network": "vgg12"}, "unknown network 'vgg12'"),
        ("laptop", {"share": 2000.0}, r"share=2000.0 is a fraction of the teacher's samples"),
        ("laptop", {"share": 0.0}, r"share=0.0 is a fraction of the teacher's samples"),
        (
            "laptop",
            {"share": "al"},
            r"unknown number of samples \(share\) 'al'; did you mean 'all'",
        ),
    ],
)
def test_wrong_settings_are_named(profile, overrides, message):
    with pytest.raises(ValueError, match=message):
        ImageStudy(profile, **overrides)


def test_six_metrics_need_two_epochs():
    with pytest.raises(ValueError, match=r"at least two epochs; got \(1, 2, 3\)"):
        six_metrics(torch.zeros(1, 2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(1))


def test_teachers_of_another_shape_do_not_fit(study):
    """AlexNet's feature at Conv has another shape than a VGG's; FC1 is as wide in all of them."""
    options = asdict(study.settings) | {"size": 64}
    for teacher, fits in (("alexnet", False), ("vgg16_bn", True)):
        other = ImageStudy("laptop", store=study.store, **options | {"teacher_network": teacher})
        assert other.fits("Conv") is fits
        assert other.fits("FC1")


@pytest.mark.parametrize("network", ["alexnet", "vgg16"])
@pytest.mark.parametrize(("profile", "rates"), [("laptop", (0.01, 0.05)), ("paper", (0.01, 0.01))])
def test_without_normalisation_rates_are_lower_where_the_profile_sets_none(profile, rates, network):
    found = ImageStudy.resolve(profile, network=network)
    assert (found.lr, found.student_lr) == rates
    assert ImageStudy.resolve(profile, network=network, lr=0.3).lr == 0.3
    assert found.b == (0.25 if network == "alexnet" else 0.2)
    assert ImageStudy.resolve("laptop", network=f"{network}_bn").lr == 0.05


def test_the_page_says_what_the_profiles_are():
    """Row by row, but for what a profile is meant for."""
    page = (Path(__file__).parents[1] / "book" / "rerun.md").read_text("utf8")
    table = page.partition("### Profiles")[2].partition("`ImageStudy.PROFILES`")[0]
    said = {}
    for line in table.strip().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        said[name] = [cell.replace(",", "") for cell in cells]
    for place, profile in enumerate(("smoke", "laptop", "paper")):
        s = ImageStudy.resolve(profile)
        assert said["image, grid"][place] == f"{s.size} px {s.grid} × {s.grid}"
        samples = f"{s.teacher_samples} / {s.share}"
        assert said["training images: teacher / student and baseline"][place] == samples
        epochs = f"{s.teacher_epochs} / {s.epochs} / {s.head_epochs}"
        assert said["epochs: teacher / student and baseline / head"][place] == epochs
        assert said["seeds"][place] == str(len(s.seeds))
        assert said["target layers"][place].split() == [*s.layers]
        assert said["images measured"][place] == str(s.analysed)
        assert ("random" in said["teacher starts from"][place]) == (s.teacher_weights is None)
        network = said["network"][0 if said["network"][place] == "the same" else place]
        full = {"VGG-16 full width": ("vgg16", 1.0)}
        full |= {"VGG-11 with batch normalisation 1/8 of the channels": ("vgg11_bn", 1 / 8)}
        assert full[network] == (s.network, s.width)
    assert len(said) == 2 + 9  # heading and rule, and a row for each of the above and "meant for"
