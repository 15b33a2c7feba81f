"""The paper's other experiments on images in miniature, plans and forecasts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import kpnb
from kpnb_book.figures import plots
from kpnb_book.figures.report import beside_paper, table_rows
from kpnb_book.run.store_commands import folders
from kpnb_book.store import Store
from kpnb_book.studies import measure, tables
from kpnb_book.studies.experiments import (
    FewOutputs,
    SomeClasses,
    fine_tuned,
    fine_tuned_plan,
    folded,
    halves,
    inner_layers,
    other_maps,
    probe_accuracies,
    relative_change,
    rescaled,
    softened,
    softened_plan,
)
from kpnb_book.studies.forecast import Forecast, forecast
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.plan import plan_of
from tests.drawn import TINY, draw

FOUR = TINY | {
    "dataset": "emoji",
    "size": 32,
    "share": 24,
    "teacher_samples": 48,
    "test_samples": 24,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(draw(tmp_path_factory.mktemp("shapes")))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def study(root, store) -> ImageStudy:
    return ImageStudy("laptop", dataset="folder", data_root=root, store=store, **TINY)


@pytest.fixture(scope="module")
def model(study) -> nn.Module:
    """A trained network whose normalisations and biases are all at work."""
    model = study.teacher().load()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith("features") and value.dim() == 1:
                value += 0.3 * torch.rand(value.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("way", ["even", "uneven"])
def test_rescaled_networks_compute_the_same(model, study, way):
    logits = model(study.x)
    assert torch.allclose(folded(model)(study.x), logits, atol=1e-5)
    other = rescaled(model, way)
    assert torch.allclose(other(study.x), logits, atol=1e-5)
    assert not torch.equal(other.features[0].weight, folded(model).features[0].weight)
    assert not torch.allclose(rescaled(model, "as printed")(study.x), logits, atol=1e-3)


def test_rescaling_by_hand():
    """Two convolutions of one pixel and no normalisation: c w1, c b1, w2 / c, and b2 as it was."""
    model = nn.Module()
    model.features = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1), nn.ReLU())
    (first, _, second, _), (one, _, two, _) = model.features, rescaled(model).features
    assert torch.equal(one.weight, 4 * first.weight)
    assert torch.equal(one.bias, 4 * first.bias)
    assert torch.equal(two.weight, second.weight / 4)
    assert torch.equal(two.bias, second.bias)
    assert torch.equal(rescaled(model, "as printed").features[2].bias, second.bias / 4)
    assert torch.allclose(
        rescaled(model, "uneven").features[0].bias, first.bias * torch.tensor([0.25, 4.0])
    )


def test_entropy_is_coherent_and_the_gradient_is_not(model, study):
    """Between two convolutions the feature is 4 times as large: gradients are a quarter, Grad-CAM
    takes that back.
    """
    target, maps = model(study.x).argmax(1), {}
    inner = next(iter(inner_layers(folded(model))))
    for way in ("original", "even"):
        net = folded(model) if way == "original" else rescaled(model, way)
        found = kpnb.entropy(net, study.x, inner, units=study.units, dead="nan").entropy
        maps[way] = {"entropy": found, **other_maps(net, study.x, inner, target)}
    change = {
        how: relative_change(maps["original"][how], maps["even"][how]) for how in maps["even"]
    }
    assert change["entropy"] <= 1e-3
    assert change["gradient"] == pytest.approx(0.75, abs=1e-4)
    assert change["internal influence"] == pytest.approx(0.75, abs=1e-4)
    assert change["Grad-CAM"] == pytest.approx(0, abs=1e-4)


def test_gradient_map_against_autograd(model, study):
    net, target = folded(model), torch.zeros(len(study.x), dtype=torch.long)
    gradient = other_maps(net, study.x, "features.2", target)["gradient"]
    feature = net.features[:3](study.x).detach().requires_grad_(True)
    logits = net.classifier(torch.flatten(net.avgpool(net.features[3:](feature)), 1))
    (expected,) = torch.autograd.grad(logits[:, 0].sum(), feature)
    assert torch.allclose(gradient, expected.norm(dim=1), atol=1e-6)


def test_relative_change_by_hand():
    assert relative_change(
        torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.5], [0.0, 0.0]])
    ) == pytest.approx(0.55)


def test_a_larger_teacher(study, root):
    options = TINY | {"dataset": "folder", "data_root": root, "store": study.store}
    deep = ImageStudy("laptop", teacher_network="vgg16_bn", **options)
    assert sum(isinstance(m, nn.Conv2d) for m in deep.teacher().load().modules()) == 13
    student = deep.student("FC1")
    assert sum(isinstance(m, nn.Conv2d) for m in student.load().modules()) == 8
    assert torch.equal(
        student.state(0)["classifier.0.weight"], study.baseline().state(0)["classifier.0.weight"]
    )
    assert deep.baseline().address == study.baseline().address
    assert deep.head("FC1").accuracy >= 0
    table = beside_paper(2, table_rows(deep, "teacher vgg16_bn"))
    assert list(table["source"].value_counts()[["ours", "paper"]]) == [2, 12]
    assert sorted(set(table["setting"])) == [
        f"teacher {n}" for n in ("AlexNet", "VGG-11", "VGG-16", "VGG-19", "vgg16_bn")
    ]
    assert "layer" not in table  # the same everywhere
    same = ImageStudy("laptop", teacher_network="vgg11_bn", **options)
    assert same.student("FC1").address == study.student("FC1").address


def test_layers_of_other_widths_are_refused(study, root):
    options = TINY | {
        "dataset": "folder",
        "data_root": root,
        "store": study.store,
        "size": 64,
        "layers": ("Conv",),
    }
    alien = ImageStudy("laptop", teacher_network="alexnet", **options)
    with pytest.raises(ValueError, match="choose layers of one shape"):
        alien.student("Conv").finish()


def test_grid_and_threshold_reuse_the_networks(study, root):
    options = TINY | {"dataset": "folder", "data_root": root, "store": study.store, "grid": 8}
    finer = ImageStudy("laptop", **options)
    assert finer.student("FC1").address == study.student("FC1").address
    assert measure.metrics(finer, finer.baseline(), "FC1").points.shape[-1] == 64
    table = beside_paper(3, table_rows(finer, "grid=8x8"))
    assert len(table) == 2 + 24
    assert "rho" in table
    four = beside_paper(4, table_rows(study))
    assert list(four.columns) == [
        "source",
        "dataset",
        "network",
        "layer",
        "role",
        "setting",
        "n_fg",
        "lambda",
    ]


def test_few_outputs_are_those_of_the_whole_teacher(store):
    whole = ImageStudy("laptop", store=store, **FOUR)
    few = FewOutputs(
        "laptop", whole=whole, classes=[7, 2, 5], **FOUR | {"layers": "FC3", "head_epochs": 0}
    )
    assert few.train.classes == tuple(whole.train.classes[i] for i in (2, 5, 7))
    originals = {name.split("/")[1] for i in (2, 5, 7) for name in _names(whole, i)}
    assert {name.split("/")[1] for name in few.train.names} <= originals
    assert set(few.share.labels.tolist()) == {0, 1, 2}
    x = few.x
    assert torch.allclose(
        few.teacher().load()(x), whole.teacher().load()(x)[:, [2, 5, 7]], atol=1e-6
    )
    students = few.student("FC3"), softened(few)
    assert all(measure.metrics(few, network, "FC3").n_fg.shape == (6,) for network in students)
    assert students[1].log[-1]["accuracy"] >= 0
    assert torch.equal(
        students[0].state(0)["classifier.6.weight"], few.baseline().state(0)["classifier.6.weight"]
    )
    assert few.head("FC3").accuracy == pytest.approx(
        (
            students[0].load()(few.test.batch(torch.arange(len(few.test)))[0]).argmax(1)
            == few.test.labels
        )
        .double()
        .mean()
    )


def _names(study: ImageStudy, label: int) -> list[str]:
    return [
        name
        for name, y in zip(study.train.names, study.train.labels.tolist(), strict=True)
        if y == label
    ]


def test_fine_tuning_starts_from_what_was_learned(store):
    before, study = (
        SomeClasses("laptop", classes=c, store=store, **FOUR) for c in (range(4), range(4, 12))
    )
    tuned, source = fine_tuned(study, before.teacher()), before.teacher().state()
    start, scratch = tuned.state(0), study.baseline().state(0)
    fresh = {"classifier.6.weight", "classifier.6.bias"}
    assert all(
        torch.equal(start[key], scratch[key] if key in fresh else source[key]) for key in start
    )
    assert tuned.address != study.baseline().address
    counts = measure.point_counts(study, tuned, "FC1")
    assert counts.shape == (3, 6)


def test_fine_tuning_from_a_file_of_weights(study, root, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(study.teacher().state(), path)
    options = TINY | {"dataset": "folder", "data_root": root, "store": study.store}
    tuned = fine_tuned(ImageStudy("laptop", teacher_weights=str(path), **options), None)
    assert torch.equal(
        tuned.state(0)["features.0.weight"], study.teacher().state()["features.0.weight"]
    )


def test_probe_is_ridge_regression(study):
    """Against the augmented least-squares problem: sqrt(ridge) times the identity below the
    features.
    """
    network = study.baseline()
    (x, y), (other, truth) = (d.batch(torch.arange(len(d))) for d in (study.share, study.test))
    model = network.load()

    def feature(v: torch.Tensor) -> torch.Tensor:
        return model.classifier[:2](model.avgpool(model.features(v)).flatten(1))

    with torch.no_grad():
        learned, held_out = (
            np.pad(feature(v).double().numpy(), ((0, 0), (0, 1)), constant_values=1)
            for v in (x, other)
        )
    ridge = 1e-3 * np.square(learned).sum() / learned.shape[1]
    tall = np.concatenate([learned, np.sqrt(ridge) * np.eye(learned.shape[1])])
    target = np.concatenate([np.eye(2)[y.numpy()], np.zeros((learned.shape[1], 2))])
    weight = np.linalg.lstsq(tall, target, rcond=None)[0]
    expected = ((held_out @ weight).argmax(1) == truth.numpy()).mean()
    found = probe_accuracies(study, network, "FC1")
    assert found.shape == (3,)
    assert found[-1].item() == pytest.approx(expected)
    longer = replace(network, schedule=replace(network.schedule, epochs=3))
    assert longer.address == network.address  # so far as the shorter one goes
    assert probe_accuracies(study, longer, "FC1").shape == (4,)
    assert torch.equal(probe_accuracies(study, network, "FC1"), found)


def test_classes_are_halved_where_there_are_enough():
    assert [*map(list, halves("abcde", None))] == [[0, 1], [2, 3, 4]]
    assert [*map(list, halves("abc", "weights.pth"))] == [[], [0, 1, 2]]
    with pytest.raises(ValueError, match=r"needs four classes, .* has 3 \(a, b, c\)"):
        halves("abc", None)


def test_forecast_against_what_is_done(root, tmp_path):
    """Counts are exact and disk is within a half; nothing is computed for it."""
    options = TINY | {"share": 40, "epochs": 3, "analysed": 12}
    study = ImageStudy(
        "laptop", dataset="folder", data_root=root, store=Store(tmp_path / "store"), **options
    )
    found = forecast([plan_of(study), plan_of(study)])
    assert set(folders(study.store.root)["kind"]) <= {"images"}
    train, share, test, s = len(study.train), len(study.share), len(study.test), study.settings
    assert found.trainings == 4
    assert found.epochs == 2 + 3 + 3 + 1
    assert found.measurements == 2 * 4
    assert found.backwards == 2 * train + 7 * share + 8 * 12 * (s.rank + s.probes)
    tested = (3 + 4 + 4 + 2) * test
    assert found.forwards == 2 * train + 7 * share + tested + 8 * 12 * (2 + s.noise)
    tables.table5(study)
    tables.accuracies(study)
    kinds = ["teacher", "student", "baseline", "head"]
    disk = folders(study.store.root).groupby("kind")["bytes"].sum()[kinds].sum()
    assert disk <= found.disk < 1.5 * disk  # the untrained network has no optimiser's state
    assert found.seconds > 0
    assert found.memory > 0
    for line in (
        "trainings: 4, with 9 epochs in all",
        "measurements of a network after an epoch: 8",
        f"passes of a sample: {found.forwards:,} forward, {found.backwards:,} backward",
    ):
        assert f"\n  {line}\n" in str(found)
    done = forecast([plan_of(study)])
    assert str(done) == "Everything is stored: nothing is trained or measured."


def test_forecasts_by_what_is_planned(root, tmp_path):
    study = ImageStudy("laptop", dataset="folder", data_root=root, store=Store(tmp_path), **TINY)
    assert forecast([plan_of(study, "teacher")]).trainings == 1
    assert forecast([plan_of(study, "baseline")]).trainings == 1
    assert forecast([plan_of(study, "pairs")]).trainings == 3
    assert forecast([plan_of(study, "first chapter")]).measurements == 3 * 3
    study.teacher().finish()
    assert forecast([plan_of(study)]).trainings == 3
    with pytest.raises(ValueError, match="unknown kind of plan 'pair'; did you mean 'pairs'"):
        plan_of(study, "pair")


def test_a_forecast_is_short():
    assert "2.0 h" in str(Forecast(forwards=1, seconds=7200))
    large = Forecast(*[10**13] * 5, seconds=10**8, memory=10**13, disk=10**13)
    assert max(map(len, str(large).splitlines())) <= 90


def test_plans_name_what_is_needed_first(store):
    """Training and measuring in the order of the plan never computes anything on the way."""
    whole = ImageStudy("laptop", store=store, **FOUR)
    few = FewOutputs("laptop", whole=whole, classes=[7, 2], **FOUR | {"layers": "FC3"})
    plan = softened_plan(few, 0, 4.0)
    kinds = [training.kind for training in plan.everything().values()]
    assert kinds == ["teacher", "teacher", "student", "output", "baseline"]
    before, study = (SomeClasses("laptop", classes=c, store=store, **FOUR) for c in ([0], [1, 2]))
    plan = fine_tuned_plan(study, before.teacher(), "FC1", 0)
    kinds = [training.kind for training in plan.everything().values()]
    assert kinds == ["teacher", "fine-tuned", "baseline"]


def test_figures_show_what_they_are_given():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    maps = {
        how: {net: torch.rand(2, 4, 4) for net in ("original", "even")}
        for how in ("entropy", "gradient")
    }
    figure = plots.coherency_maps(images, maps)
    assert len(figure.axes) == 2 * 5
    shown = figure.axes[6].images[0]
    assert np.allclose(shown.get_array(), maps["entropy"]["original"][1])
    low = min(value[1].min() for value in maps["entropy"].values())
    assert (
        shown.get_clim()[0] == figure.axes[7].images[0].get_clim()[0] == pytest.approx(low.item())
    )
    counts = {
        "all": {
            "fine-tuned": torch.tensor([[1.0, 3.0], [2.0, 4.0]]),
            "from scratch": torch.zeros(2, 2),
        }
    }
    figure = plots.point_curves(counts)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2, 3]
    columns = {
        "network": ["student"] * 2,
        "epoch": [1, 2],
        "lambda": [0.5, 0.6],
        "accuracy": [0.2, 0.3],
    }
    figure = plots.quality_and_accuracy(pd.DataFrame(columns))
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[0.5, 0.2], [0.6, 0.3]]
    assert Path(plots.STYLE).exists()
