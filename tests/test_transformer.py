"""Transformers as students: the networks, what is trained and stored of them, and what is said of
the tables.
"""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torchvision import models

from kpnb.features import capture
from kpnb_book.figures import report
from kpnb_book.figures import transformer as shown
from kpnb_book.figures.report import six_table
from kpnb_book.networks.images import LAYERS, build, layer_path
from kpnb_book.run.parameters import RULES
from kpnb_book.run.plans import plans_of
from kpnb_book.store import Store
from kpnb_book.studies import kinds, losses, measure, transformer
from kpnb_book.studies.again import again
from kpnb_book.studies.collecting import collect, plan, seed_rows
from kpnb_book.studies.evidence import PROFILE, TEACHER
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import KEY, NETWORK, SAMPLE, Results, Rows
from kpnb_book.studies.rows import OneNetwork
from kpnb_book.studies.stored import Stored, read_one
from kpnb_book.studies.study import TEACHER_SEED
from kpnb_book.studies.transformer import TAUGHT, TEACHERS, TRANSFORMER_EVIDENCE, UNTRAINED
from kpnb_book.studies.verdicts import POINTS
from tests.drawn import TINY, draw
from tests.executed import executed
from tests.simulated import tables

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "71_transformer.ipynb"
SMALL = {"input_size": 32, "width": 0.03, "hidden": 8}
TRANSFORMER_SETTINGS = TINY | {"network": "vit_4_8", "width": 0.03, "layers": "cls", "b": 0.05}
TRANSFORMER_SETTINGS |= {"lr": 1e-3, "student_lr": 1e-3, "head_lr": 1e-3}
UNTRAINED_OF = {control: taught for taught, control in UNTRAINED.items()}


# ---- the network


def test_at_full_size_it_is_torchvisions():
    ours = build("vit_b_16", 1000, input_size=224)
    with torch.device("meta"):
        theirs = models.vit_b_16()
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


def test_features_are_what_their_names_say():
    model = build("vit_4_8", 5, **SMALL).eval()
    x = torch.randn(3, 3, 32, 32)
    paths = {layer: layer_path("vit_4_8", layer) for layer in LAYERS["vit_4_8"]}
    found = capture(model, x, [*paths.values()])
    tokens = found[paths["tokens"]]
    assert tokens.shape == (3, 1 + 16, 24)  # 768 * 0.03 numbers, shared evenly by 4 heads
    torch.testing.assert_close(found[paths["cls"]], tokens[:, 0])
    torch.testing.assert_close(found[paths["mean"]], tokens.mean(1))
    normalised = model.encoder.ln(found[paths["Block4"]])
    torch.testing.assert_close(normalised, tokens)
    torch.testing.assert_close(found[paths["FC3"]], model(x))
    assert model(x).std(0).min() > 0  # untrained, it tells images apart


def test_its_output_is_torchvisions_for_the_same_weights():
    model = build("vit_4_8", 5, **SMALL).eval()
    theirs = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=4, hidden_dim=24, mlp_dim=96,
        num_classes=5,
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), theirs(x))


def test_weights_follow_the_seed_and_global_generators_are_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build("vit_4_8", 5, **SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    states = [network.state_dict() for network in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv_proj.weight"], states[2]["conv_proj.weight"])


def test_weights_of_other_classes_come_without_the_classifier(tmp_path):
    donor = build("vit_4_8", 7, **SMALL, seed=3)
    torch.save(donor.state_dict(), tmp_path / "vit.pt")
    loaded = build("vit_4_8", 5, **SMALL, weights=tmp_path / "vit.pt").state_dict()
    fresh = build("vit_4_8", 5, **SMALL).state_dict()
    for name, value in loaded.items():
        source = fresh if name.startswith("heads.") else donor.state_dict()
        assert torch.equal(value, source[name]), name


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="input_size=36 must be a multiple of the patch, 8"):
        build("vit_4_8", 5, input_size=36)
    with pytest.raises(ValueError, match="unknown layer of vit_4_8 'FC1'"):
        layer_path("vit_4_8", "FC1")


# ---- what is trained and stored


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    root = draw(tmp_path_factory.mktemp("shapes"))
    settings = TRANSFORMER_SETTINGS | {"dataset": "folder", "data_root": str(root)}
    return replace(TRANSFORMER_EVIDENCE, name="small", overrides=settings, seeds=range(2))


@pytest.fixture(scope="module")
def study(evidence, tmp_path_factory) -> ImageStudy:
    return evidence.study(Store(tmp_path_factory.mktemp("store")))


def test_students_differ_in_their_teacher_alone(study):
    own, other = (transformer.network(study, role, "cls", 0) for role in ("outputs", "convolution"))
    baseline = study.baseline(0)
    for each in (own, other):
        assert each.source.identity == baseline.source.identity
        assert each.schedule == baseline.schedule
        assert each.schedule.adamw
        assert each.objective.loss == "soft_targets"
        assert each.objective.labels == 1
    assert own.teacher.address == study.teacher().address
    assert other.teacher.address == transformer.convolutional(study).teacher().address
    assert own.objective.config == other.objective.config
    for role, control in UNTRAINED.items():
        taught, untrained = (transformer.network(study, name, "cls", 0) for name in (role, control))
        assert untrained.teacher_source.identity["epoch"] == 0
        assert untrained.teacher.address == taught.teacher.address
        assert untrained.objective == taught.objective
    with pytest.raises(ValueError, match="unknown network 'outputz'"):
        transformer.network(study, "outputz", "cls", 0)


def test_untrained_teachers_have_random_weights_whatever_the_teachers_start_from(study, tmp_path):
    """Where a teacher starts from a file of weights, its own epoch 0 is a trained network."""
    classes, s = len(study.train.classes), study.settings
    size = {"input_size": s.size, "width": s.width, "hidden": s.hidden, "dropout": s.dropout}
    learned = build("vit_4_8", classes, **size, seed=3).state_dict()
    torch.save(learned, tmp_path / "learned.pt")
    options = TRANSFORMER_SETTINGS | {"dataset": "folder", "data_root": s.data_root}
    own = ImageStudy(
        "laptop", store=study.store, **options, teacher_weights=str(tmp_path / "learned.pt")
    )
    assert torch.equal(own.teacher().state(0)["conv_proj.weight"], learned["conv_proj.weight"])
    random = build("vit_4_8", classes, **size, seed=TEACHER_SEED).state_dict()
    for role in ("untrained", "untrained outputs"):
        control = transformer.network(own, role, "cls", 0)
        assert control.teacher.address == own.untrained_teacher().address
        assert control.teacher_source.identity["epoch"] == 0
        taught = control.teacher.state(0)
        assert all(torch.equal(taught[name], value) for name, value in random.items())
        trained = transformer.network(own, UNTRAINED_OF[role], "cls", 0)
        assert trained.teacher.address == own.teacher().address


def test_the_convolutional_control_of_the_papers_profile_is_not_pretrained(study):
    """Its convolutional teacher starts from ImageNet's weights; nothing is loaded here."""
    where = {"dataset": "folder", "data_root": study.settings.data_root, "store": study.store}
    own = ImageStudy("paper", **where, size=32, width=0.1, hidden=8, network="vit_4_8")
    teachers = transformer.convolutional(own)
    assert teachers.settings.teacher_weights == "IMAGENET1K_V1"
    control = transformer.network(own, "untrained convolution", "cls", 0)
    assert control.teacher.address == teachers.untrained_teacher().address
    assert "weights" not in control.teacher.source.identity["arguments"]
    taught = transformer.network(own, "convolution", "cls", 0)
    assert taught.teacher.source.identity["arguments"]["weights"]


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_the_convolutional_teacher_is_that_of_other_chapters(profile, study):
    """Same address, so that it is trained once."""
    where = {"dataset": "folder", "data_root": study.settings.data_root, "store": study.store}
    small = {"size": 32, "width": 0.1, "hidden": 8, "teacher_weights": "IMAGENET1K_V1"}
    small = {name: small[name] for name in ("size", "width", "hidden")}
    usual = ImageStudy(profile, **where, **small, layers="FC1")
    vit = ImageStudy(profile, **where, **small, network="vit_4_8")
    theirs = transformer.convolutional(vit)
    assert theirs.teacher().address == usual.teacher().address


@pytest.fixture(scope="module")
def planned(evidence, study) -> Plan:
    """What a seed takes, finished."""
    planned = plan(evidence, study, 0)
    for measurement in planned.measurements:
        measurement.finish()
    for training in planned.everything().values():
        training.finish()
    return planned


def test_tables_hold_every_network_at_every_feature_and_block(evidence, study, planned, tmp_path):
    results = Results(tmp_path / evidence.name)
    results.add(evidence.origin(study), seed_rows(evidence, study, 0))
    rows = results.read()
    roles = {"baseline", *TAUGHT, *UNTRAINED.values()}
    found = set(map(tuple, rows.networks[["layer", "network"]].to_numpy()))
    assert found == {("cls", role) for role in roles}
    assert [*rows.networks.columns[: len(KEY) + len(NETWORK)]] == [*KEY, *NETWORK]
    assert rows.networks["Block4 gap"].notna().all()
    known = rows.networks.set_index("network")["accuracy"]
    assert known[[*roles]].between(0, 1).all()

    # the tables' numbers are those of the networks
    training = transformer.network(study, "convolution", "cls", 0)
    metrics = measure.metrics(study, training, "cls")
    chosen = rows.samples[rows.samples["network"] == "convolution"]
    stored = chosen.loc[chosen["layer"] == "cls", "n_bg"].to_numpy()
    np.testing.assert_allclose(stored, metrics.n_bg.numpy(), atol=1e-5)

    small = read_one(evidence, tmp_path)
    assert shown.state(small).startswith("Stored evidence has 1 of 2 seeds; nothing of it is shown")
    assert not kinds.finished(small)
    assert kinds.differences(small) == ({}, {})
    means = kinds.layer_means(small.networks)
    blocks = [f"Block{number}" for number in range(1, 5)]
    assert [*means["layer"].unique()] == [*blocks, "tokens", "cls", "mean"]
    figure = shown.by_layer(means)
    assert len(figure.axes) == len(transformer.MEASURES)

    # at the feature that is measured after every epoch, both tables say the same
    last = means.set_index(["network", "layer"]).loc[("convolution", "cls"), "n_bg"]
    assert last == pytest.approx(np.nanmean(stored), abs=1e-5)


def test_tables_hold_patches_other_layers_and_what_teachers_share(evidence, study, planned):
    rows = seed_rows(evidence, study, 0)
    training = transformer.network(study, "convolution", "cls", 0)
    metrics = measure.metrics(study, training, "cls")
    chosen = rows.samples[rows.samples["network"] == "convolution"]
    patched = transformer.in_patches(study)
    assert patched.units.shape == (study.settings.size // 8,) * 2
    in_patches = measure.metrics(patched, training, "cls")
    np.testing.assert_allclose(chosen["patch n_fg"], in_patches.n_fg, atol=1e-5)
    np.testing.assert_allclose(chosen["patch lambda"], in_patches.ratio, atol=1e-5)
    np.testing.assert_allclose(chosen["cls n_bg"], metrics.n_bg, atol=1e-5)
    H = measure.entropies(study, training, "cls", [-1])["entropy"][0].double().numpy()
    for number, row in enumerate(chosen.to_dict("records")):
        on, off = (region[number].numpy() for region in (study.foreground, study.background))
        assert row["cls gap"] == pytest.approx(H[number, off].mean() - H[number, on].mean())
        assert row["cls spread"] == pytest.approx(H[number, off].std(), rel=1e-4)
    mine = rows.places[rows.places["network"] == "convolution"].iloc[0]
    cells, patches = H.shape[1], patched.foreground.shape[1]
    kept = losses.unpacked(mine["points"], cells)
    assert torch.equal(kept, metrics.points[-1])
    kept = losses.unpacked(mine["patch points"], patches)
    assert torch.equal(kept, in_patches.points[-1])
    teachers = transformer.convolutional(study)
    for name, each in zip(transformer.SHARED, (study, teachers), strict=True):
        theirs = measure.metrics(each, each.teacher(), each.settings.layers[0]).points[-1]
        kept = losses.unpacked(mine[f"{name.removeprefix('shared_')} points"], cells)
        assert torch.equal(kept, theirs)
        ours = metrics.points[-1]
        expected = (ours & theirs).sum(1) / (ours | theirs).sum(1)
        np.testing.assert_allclose(chosen[name], expected, atol=1e-6)
    assert np.isfinite(rows.networks["epoch 1 lambda"]).all()
    known = rows.networks.set_index("network")[TEACHER].dropna()
    assert known.to_dict() == {
        "student": study.teacher().accuracy,
        "outputs": study.teacher().accuracy,
        "convolution": teachers.teacher().accuracy,
    }


def test_tables_hold_blocks_of_teachers_too(evidence, study, planned):
    rows = seed_rows(evidence, study, 0)
    means = kinds.layer_means(rows.networks)
    assert {*means["network"]} == {*evidence.roles, "teacher", "untrained teacher"}
    at_block = means.set_index(["network", "layer"])["n_fg"].xs("Block2", level="layer")
    for name, epoch in (("teacher", -1), ("untrained teacher", 0)):
        H = measure.entropies(study, study.teacher(), "Block2", [epoch])["entropy"][0]
        expected = measure.points(study, H).n_fg.nanmean().item()
        assert at_block[name] == pytest.approx(expected, abs=1e-5)
    mine = rows.places.set_index("network").loc["convolution"]
    training = transformer.network(study, "convolution", "cls", 0)
    for name, each in (("", training), ("transformer ", study.teacher())):
        kept = losses.unpacked(mine[f"Block3 {name}points"], study.foreground.shape[1])
        assert torch.equal(kept, losses.last_points(study, each, "Block3").points)
    rates = rows.networks.set_index("network")["lr"]
    settings = study.settings
    assert rates["student"] == settings.student_lr
    assert rates["convolution"] == settings.lr


def test_tables_computed_again_are_the_same(evidence, study, planned, tmp_path):
    """Of the first samples alone, also what patches and the other kind of network give."""
    results = Results(tmp_path / evidence.name)
    results.add(evidence.origin(study), seed_rows(evidence, study, 0))
    found = again(evidence, results, study.store, samples=3)
    assert found.exact
    assert found.numbers > 2 * 3 * len(SAMPLE)
    # another company rounds entropies otherwise; real checks have the company of the first batch
    assert not [each for each in found.differing if not re.search("gap|spread", each)]


def test_accuracy_is_that_of_the_late_epochs(evidence, study, planned):
    rows = seed_rows(evidence, study, 0).networks.set_index("network")
    training = transformer.network(study, "outputs", "cls", 0)
    untaught = transformer.network(study, "untrained", "cls", 0)
    for role, network in (
        ("outputs", training),
        ("student", study.head("cls", 0)),
        ("untrained", study.head("cls", 0, untaught)),
        ("baseline", study.baseline(0)),
    ):
        scores = [entry["test_accuracy"] for entry in network.log[1:][-losses.STEADY :]]
        assert rows.loc[role, "accuracy"] == pytest.approx(np.mean(scores))
        assert rows.loc[role, "last_accuracy"] == pytest.approx(scores[-1])


def test_a_seed_of_which_a_student_diverges(evidence, study, planned, tmp_path):
    """The paper's student at an endless rate, and its control; the others are as they were."""
    wild = replace(evidence, overrides=evidence.overrides | {"student_lr": 1e9})
    results = Results(tmp_path / wild.name)
    assert collect(wild, [0], results, study.store) == [0]
    found = results.read()
    rows = found.networks.set_index("network")
    assert {*rows.index[rows["diverged"].notna()]} == {"student", "untrained"}
    lost = rows.loc[["student", "untrained"], "accuracy"]
    assert lost.tolist() == pytest.approx([1 / len(study.train.classes)] * 2)
    assert {*found.samples["network"]} == {*rows.index} - {"student", "untrained"}
    usual = seed_rows(evidence, study, 0, ["baseline", "outputs"]).samples
    kept = found.samples[found.samples["network"] == "outputs"]
    wanted = usual[usual["network"] == "outputs"]
    np.testing.assert_allclose(kept["n_fg"], wanted["n_fg"], atol=1e-5)


def test_the_plan_is_what_a_seed_takes(evidence, study, planned):
    """After it is finished, rows are read without training or measuring."""
    assert planned.measurements
    before = sorted(path for path in study.store.root.rglob("*.safetensors"))
    for layer, role in (("cls", "outputs"), ("cls", "student")):
        evidence.rows(OneNetwork(study, layer, role, evidence.training(study, role, layer, 0), 0))
    assert sorted(path for path in study.store.root.rglob("*.safetensors")) == before


def test_a_builds_own_networks_are_planned(study):
    own = transformer.own_table(study, 3)
    assert set(own["network"]) == {"baseline", "convolution"}
    everyone = transformer.own_table(study, 3, ["student", "untrained"]).set_index("network")
    for role in ("student", "untrained"):
        head = study.head("cls", 3, transformer.network(study, role, "cls", 3))
        assert everyone.loc[role, "accuracy"] == losses.accuracy(head)
    planned = transformer.transformer_plan(study, 3, ["student", "untrained"])
    assert not any(training.missing() for training in planned.everything().values())
    assert not any(
        measurement.missing(layer)
        for measurement in planned.measurements
        for layer in measurement.layers
    )


def test_the_chapter_has_a_plan():
    (found,) = plans_of(PAGE, {"profile": "smoke"})
    kinds = {training.kind for training in found.everything().values()}
    assert kinds == {"baseline", "student", "teacher"}
    asked = {"profile": "smoke", "students": [*TAUGHT, *UNTRAINED.values()]}
    (more,) = plans_of(PAGE, asked)
    kinds = [training.kind for training in more.everything().values()]
    assert (kinds.count("student"), kinds.count("head")) == (6, 2)
    roles = {*TAUGHT, *UNTRAINED.values()}
    assert all(RULES["students"].fits([role]) for role in roles)
    assert not any(RULES["students"].fits([f"{role}s"]) for role in roles)
    assert {*found.everything()} < {*more.everything()}


# ---- what is said of tables


SAMPLES, CELLS = 40, 256
LEARNED = {"convolution": 0.5, "outputs": 0.1}
"""By student, the share of cells at which it has just what its teacher has."""


def measured_elsewhere(rows: Rows) -> Rows:
    """With columns of other layers, units and teachers, and points at every layer."""
    places = planted_points(rows.networks)
    patches = {f"patch {name}": rows.samples[name] for name in POINTS}
    samples = rows.samples.assign(**patches)
    at = places.set_index(["network", "seed"]).sort_index()
    for kind, column in zip(TEACHERS, transformer.SHARED, strict=True):
        shared = {key: planted_iou(at.loc[key], kind) for key in at.index}
        found = samples[["network", "seed", "sample"]].to_numpy()
        samples[column] = [shared[network, seed][sample] for network, seed, sample in found]
    blocks = {f"Block1 {name}": 1.0 for name in transformer.MEASURES}
    blocks |= {f"teacher {name}": 2.0 for name in blocks}
    networks = rows.networks.assign(**blocks, **{TEACHER: 0.5})
    for number, name in product(range(3), ("n_fg", "n_bg", "lambda", "accuracy")):
        networks[f"epoch {number} {name}"] = number + networks["seed"] / 10
    return Rows(networks, samples, places)


def planted_iou(place: pd.Series, kind: str) -> list[float]:
    both = (losses.unpacked(place[name], CELLS) for name in ("points", f"{kind} points"))
    return losses.iou(*both).tolist()


def planted_points(networks: pd.DataFrame) -> pd.DataFrame:
    """A fifth of the cells are points, at random; those of ``LEARNED`` have some of a teacher."""
    draw = torch.Generator().manual_seed(0)
    random = lambda: torch.rand(SAMPLES, CELLS, generator=draw) < 0.2  # noqa: E731
    teachers = {kind: random() for kind in TEACHERS}
    places = []
    for row in networks[KEY].to_dict("records"):
        taught = teachers[kinds.TEACHER_OF.get(row["network"], "transformer")]
        same = torch.rand(SAMPLES, CELLS, generator=draw) < LEARNED.get(row["network"], 0)
        row["points"] = losses.packed(torch.where(same, taught, random()))
        row |= {f"{kind} points": losses.packed(each) for kind, each in teachers.items()}
        for other in transformer.LAYERS["vit_4_8"]:
            row[f"{other} points"] = losses.packed(random())
            row[f"{other} transformer points"] = losses.packed(random())
        places.append(row | {f"cell{number}": 0 for number in range(CELLS)})
    return pd.DataFrame(places)


def planted(effects: dict[str, dict[str, float]], seeds: int = 5) -> Stored:
    roles = [*TAUGHT, *UNTRAINED.values()]
    every = {role: effects.get(role, {}) for role in roles}
    samples, networks = tables(every, seeds=seeds, samples=SAMPLES, layers=("cls",))
    rows = measured_elsewhere(_rows(samples, networks))
    stated = tuple(TRANSFORMER_EVIDENCE.seeds)
    frames = rows.networks, rows.samples, rows.places
    return Stored("images", *frames, stated, frozenset(every))


def test_students_are_judged_against_baseline_and_control():
    stored = planted({"convolution": {"n_fg": 8.0}, "untrained convolution": {"n_fg": 8.0}})
    found = kinds.differences(stored).six
    assert found["convolution"]["n_fg"].verdict == "shows"
    assert found["convolution"]["n_fg"].value == pytest.approx(8, abs=1.5)
    assert found["outputs"]["n_fg"].verdict != "shows"
    beyond = kinds.differences(stored, "untrained").six
    assert abs(beyond["convolution"]["n_fg"].value) < 2
    table = six_table(found, shown.known_as)
    assert table["student"].tolist() == [shown.known_as(role) for role in TAUGHT]
    said = shown.taught(stored)[-1]
    assert said.startswith("The student taught a convolutional network's outputs: of 6 metrics 1 ")
    assert "none that *shows* or is *opposite* against its control; its control itself" in said
    (kind,) = kinds.kind_of_teacher(stored).values()
    assert kind["n_fg"].value == pytest.approx(8, abs=1.5)
    assert kind["n_fg"].verdict == "shows"
    in_patches = kinds.differences_in_patches(stored)
    assert set(in_patches["convolution"]) == set(POINTS)
    assert in_patches["convolution"]["n_fg"].value == pytest.approx(8, abs=1.5)
    assert kinds.differences(planted({}, seeds=3)) == ({}, {})


def test_a_student_that_diverged_is_named_and_has_no_verdict():
    """Planted: one of five seeds; the others are shown, and the page does not wait for it."""
    stored = planted({})
    lost = (stored.networks["network"] == "outputs") & (stored.networks["seed"] == 1)
    networks = stored.networks.assign(diverged=np.where(lost, "became nan", None))
    kept = ~((stored.samples["network"] == "outputs") & (stored.samples["seed"] == 1))
    stored = replace(stored, networks=networks, samples=stored.samples[kept])
    assert kinds.finished(stored)
    assert stored.diverged == ["outputs at cls, seed 1"]
    assert {*kinds.differences(stored).six} == {"student", "convolution"}
    assert kinds.kind_of_teacher(stored) == {}
    assert set(kinds.network_means(stored)["network"]) == {*TRANSFORMER_EVIDENCE.roles}
    said = shown.unanswered(stored, kinds.differences(stored).six)
    assert said.startswith("No answer for those taught a transformer's outputs: a seed is missing")
    seeds = shown.means_table(stored).set_index("network")["seeds"]
    assert seeds["taught a transformer's outputs"] == "5 (4 with points)"
    assert seeds["from scratch"] == "5"
    order = kinds.sharing(stored).set_index("network")
    assert order.loc["outputs", "more_said"] == "not clear"
    assert np.isnan(order.loc["outputs", "more_p"])


def test_what_is_shared_is_judged_beyond_place():
    """Planted: one student has half of its teacher's points, another a tenth."""
    stored = planted({})
    order = kinds.sharing(stored).set_index("network")
    assert order["more_said"].to_dict() == {
        "student": "not clear",
        "outputs": "yes",
        "convolution": "yes",
    }
    table = kinds.by_seed(stored).set_index(["network", "seed"])
    place = stored.places.set_index(["network", "seed"]).loc[("convolution", 3)]
    ours, theirs = (
        losses.unpacked(place[name], CELLS).numpy() for name in ("points", "convolution points")
    )
    iou = [(a & b).sum() / (a | b).sum() for a, b in zip(ours, theirs, strict=True)]
    others = [
        np.mean(
            [
                (a & b).sum() / (a | b).sum()
                for a, b in zip(ours, np.roll(theirs, -n, 0), strict=True)
            ]
        )
        for n in range(1, 16)
    ]
    row = table.loc[("convolution", 3)]
    assert row["shared_convolution"] == pytest.approx(np.mean(iou))
    assert row["place_convolution"] == pytest.approx(np.mean(others))
    assert row["beyond_convolution"] == pytest.approx(np.mean(iou) - np.mean(others))
    assert abs(row["beyond_transformer"]) < 0.02
    more = kinds.compared(kinds.by_seed(stored), "convolution", "baseline")["more"]
    wanted = table["beyond_convolution"]
    expected = wanted["convolution"] - wanted["baseline"]
    np.testing.assert_allclose(more, expected)
    control = kinds.sharing(stored, "controls").set_index("network")
    assert set(control["more_said"]) == {"not clear"}
    assert kinds.sharing(stored, "untrained")["more_said"].tolist() == [*order["more_said"]]
    chance = 0.2 * 0.2 / (1 - 0.8 * 0.8)
    assert kinds.baselines_share(stored) == pytest.approx(chance, abs=0.02)


def test_only_samples_with_points_are_shared():
    stored = planted({})
    gone = (stored.samples["network"] == "outputs") & (stored.samples["sample"] > 4)
    column = "shared_transformer"
    samples = stored.samples.assign(**{column: stored.samples[column].mask(gone)})
    table = kinds.by_seed(replace(stored, samples=samples)).set_index(["network", "seed"])
    place = stored.places.set_index(["network", "seed"]).loc[("outputs", 1)]
    ours, theirs = (
        losses.unpacked(place[name], CELLS)[:5] for name in ("points", "transformer points")
    )
    expected = losses.iou(ours, theirs).mean().item()
    row = table.loc[("outputs", 1)]
    assert row["shared_transformer"] == pytest.approx(expected)
    whole = losses.unpacked(place["transformer points"], CELLS)
    others = [losses.iou(ours, whole.roll(-n, 0)[:5]).mean().item() for n in range(1, 16)]
    assert row["place_transformer"] == pytest.approx(np.mean(others))


def test_sentences_carry_the_controls_and_what_is_shared():
    stored = planted({})
    said = " ".join(shown.headline(stored, {}))
    assert "not judged without all seeds of both" in said
    assert (
        "Students taught a transformer's outputs, taught a convolutional network's outputs share "
        "more with the teacher, beyond place, than the one from scratch (2 of 3 ways to teach); "
        "for the others it is not clear." in said
    )
    assert "than the same student of an untrained teacher (2 of 3" in said
    alone = "Of the 3 controls themselves, beside the one from scratch, 0 share more and "
    assert alone in said
    kept = ~stored.networks["network"].isin(UNTRAINED.values())
    early = replace(stored, networks=stored.networks[kept])
    assert kinds.finished(early)
    assert not kinds.controls_finished(early)
    assert "untrained teacher" not in " ".join(shown.all_counted(early))
    assert "compared once all" in shown.in_short(None, {})
    assert "5 seeds of each network" in shown.in_short(stored, {})
    assert shown.in_short_table(None).empty
    words = shown.in_short_table(stored).set_index("student")[
        "shares more than the one from scratch"
    ]
    clear = {"taught a transformer's outputs", "taught a convolutional network's outputs"}
    assert {*words.index[words.str.endswith(": yes")]} == clear
    assert len(shown.in_short_table(early).columns) == 3  # no controls yet


def test_the_view_shows_stored_points_of_every_layer():
    stored = planted({})
    pictures = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    inside = torch.rand(3, CELLS) < 0.3
    measured = SimpleNamespace(images=pictures)
    known = SimpleNamespace(
        measured=measured, foreground=inside, units=SimpleNamespace(shape=(16, 16))
    )
    assert shown.explore(known, stored, torch.arange(0)) is None
    html = shown.explore(known, stored, torch.arange(3)).html
    for title in ("cls, transformer teacher", "cls, convolutional teacher", "Block2, transformer"):
        assert title in html
    words = shown.in_words(stored)["convolution", 2]
    row = kinds.by_seed(stored).set_index(["network", "seed"]).loc[("convolution", 2)]
    assert words["convolution"].startswith(f"Over all pictures {row['shared_convolution']:.2f}")


@pytest.mark.parametrize(
    ("effect", "said"),
    [(9.0, "more"), (-6.0, "fewer"), (0.0, "(about as many|not decided)")],
)
def test_both_kinds_are_compared_on_the_same_pictures(effect, said, tmp_path):
    ours, _ = tables({}, seeds=5, samples=40, layers=("cls",), seed=1)
    theirs, _ = tables({}, seeds=7, samples=40, layers=("FC1", "FC2"), seed=2)
    ours = ours.assign(n_bg=ours["n_bg"] + effect, n_fg=ours["n_fg"] - effect)
    frame = kinds.of_both_kinds(ours, theirs, kinds.OF_BOTH_KINDS["from scratch"])
    assert sorted(frame["seed"].unique()) == [*range(5)]
    found = kinds.kinds({"from scratch": frame})["from scratch"]
    assert found["n_bg"].value == pytest.approx(effect, abs=1.5)
    sentence = shown.background({"from scratch": frame})
    background, on_object = sentence.split("On the object: ")
    assert re.search(rf"from scratch \d+\.\d+ against \d+\.\d+, {said} \(", background)
    (row,) = shown.points_table({"from scratch": frame}).to_dict("records")
    in_table = row["points on the background, transformer / convolutional"]
    assert re.fullmatch(rf"\d+\.\d+ / \d+\.\d+: {said}", in_table)
    other = {"more": "fewer", "fewer": "more"}
    for word in set(other) & {said}:
        assert f", {other[word]} (" in on_object
    assert "not judged" in shown.background({})


def test_other_pictures_are_not_compared(tmp_path):
    samples, networks = tables({}, seeds=5, samples=20)
    for name, measured in (("transformer", "a"), ("images", "b")):
        rows = Results(tmp_path / name)
        rows.add({"study": "ImageStudy", "measured": measured}, _rows(samples, networks))
    assert kinds.both_kinds(tmp_path) == {}
    assert kinds.convolutional_layers(tmp_path).empty
    again = Results(tmp_path / "again" / "transformer")
    again.add({"study": "ImageStudy", "measured": "b"}, _rows(samples, networks))
    Results(tmp_path / "again" / "images").add(
        {"study": "ImageStudy", "measured": "b"}, _rows(samples, networks)
    )
    found = kinds.kinds(kinds.both_kinds(tmp_path / "again"))
    assert set(found["from scratch"]) == set(POINTS)


def test_students_of_both_kinds_are_compared_too(tmp_path):
    """Planted: students of transformers have more on the background; a late seed waits."""
    samples, networks = tables({"student": {}}, seeds=5, samples=40, layers=("cls",))
    more = samples["n_bg"] + 9.0 * (samples["network"] == "student")
    for name, table in (("transformer", samples.assign(n_bg=more)), ("images", samples)):
        rows = Results(tmp_path / name)
        rows.add({"study": "ImageStudy", "measured": "a"}, _rows(table, networks))
    found = kinds.kinds(kinds.both_kinds(tmp_path))
    assert [*found] == ["from scratch", "taught by features"]
    assert found["taught by features"]["n_bg"].value == pytest.approx(9)
    assert found["from scratch"]["n_bg"].value == pytest.approx(0)
    late = (samples["network"] == "student") & (samples["seed"] == 4)
    kept = ~((networks["network"] == "student") & (networks["seed"] == 4))
    rows = Results(tmp_path / "late" / "transformer")
    rows.add({"study": "ImageStudy", "measured": "a"}, _rows(samples[~late], networks[kept]))
    rows = Results(tmp_path / "late" / "images")
    rows.add({"study": "ImageStudy", "measured": "a"}, _rows(samples, networks))
    assert [*kinds.both_kinds(tmp_path / "late")] == ["from scratch"]


def test_students_of_the_same_convolutional_teacher_are_compared(tmp_path):
    """Planted: a transformer that learns its outputs has more points than a network that does."""
    samples, networks = tables({"convolution": {}}, seeds=5, samples=40, layers=("cls",))
    losing, taught = tables({"soft_targets": {}}, seeds=5, samples=40, layers=("FC1", "FC2"))
    more = samples["n_bg"] + 9.0 * (samples["network"] == "convolution")
    losing = losing.assign(**{"Conv n_fg": 7.0, "Conv n_bg": 3.0})
    way, settings = losses.way_of("soft_targets"), losses.LOSSES_EVIDENCE.settings
    rates = {"lr": way.lr(settings), "weight": way.weight_of("soft_targets"), "labels": way.labels}
    taught = taught.assign(**rates)
    for name, frames in (
        ("transformer", (samples.assign(n_bg=more), networks)),
        ("losses", (losing, taught)),
    ):
        Results(tmp_path / name).add({"study": "ImageStudy", "measured": "a"}, _rows(*frames))
    found = kinds.kinds(kinds.both_kinds(tmp_path))
    assert [*found] == ["taught by the same outputs"]
    assert found["taught by the same outputs"]["n_bg"].value == pytest.approx(9, abs=1.5)
    row = {"network": "convolutional", "layer": "Conv", "n_fg": 7.0, "n_bg": 3.0}
    beside = kinds.convolutional_layers(tmp_path)
    assert beside.to_dict("records") == [row]
    means = kinds.layer_means(planted({}).networks)
    figure = shown.by_layer(means, beside)
    ticks = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert ticks == ["block 1", "Conv"]
    deeper = planted({}).networks
    block = [f"{of}Block12 {name}" for of in ("", "teacher ") for name in transformer.MEASURES]
    deeper = deeper.assign(**dict.fromkeys(block, 3.0))
    assert [*kinds.layer_means(deeper)["layer"].unique()] == ["Block1", "Block12"]
    table = shown.layers_table(means).set_index("network")
    assert table.loc["the transformer's teacher", "Block1"] == "2.0 / 2.0"


# ---- the page


def on_tables(study: ImageStudy, folder: Path, students: list[str] | None = None) -> str:
    """What the page's cells write, with a tiny study in place of theirs."""
    asked = {"results": str(folder), "profile": "laptop", "device": "cpu", "students": students}
    own = {"dataset": "folder", "data_root": study.settings.data_root}
    options = {**TRANSFORMER_SETTINGS, **own, "seeds": 101}
    options = {name: value for name, value in options.items() if name != "grid"}
    return executed(PAGE, asked, study=study, options=options)


def write(folder: Path, seeds: int) -> Path:
    """Tables with so many seeds of all students, of today's settings."""
    effects = {role: {} for role in (*TAUGHT, *UNTRAINED.values())}
    effects["convolution"] = {"n_bg": 5.0}
    samples, networks = tables(effects, seeds=seeds, samples=40, layers=("cls",))
    rows = measured_elsewhere(_rows(samples, networks))
    for each in (TRANSFORMER_EVIDENCE, transformer.ON_PHOTOGRAPHS):
        settings = ImageStudy.resolve(PROFILE, **each.overrides)
        Results(folder / each.name).add(each.stated(settings), rows)
    return folder


def test_the_page_in_every_state_of_the_tables(study, tmp_path, monkeypatch):
    """A run's own networks are there whatever is stored, and nothing of tables that are only begun;
    the values that it glues are its own.
    """
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    folders = [tmp_path / "none", write(tmp_path / "some", 3), write(tmp_path / "all", 5)]
    glued, texts = [], []
    for folder in folders:
        report.GLUED.clear()
        texts.append(on_tables(study, folder, ["untrained"]))
        glued.append({**report.GLUED})
        assert "taught an untrained transformer's feature" in texts[-1]
        assert "> This run's own networks (data set `folder`, feature cls, one seed" in texts[-1]
    none, some, complete = texts
    assert "There is no stored evidence of transformers on `emoji` yet." in none
    assert "Stored evidence has 3 of 5 seeds; nothing of it is shown before all" in some
    for text in (none, some):
        assert "Nothing of stored evidence is shown before all of its seeds are there." in text
        assert "against the one from scratch, 0 that" not in text
    assert "Stored evidence of 5 seeds, on `emoji`." in complete
    assert "> - The student taught a transformer's feature: of 6 metrics " in complete
    assert "Nothing of stored evidence" not in complete
    assert "There is no stored evidence of transformers on `tiny-20` yet." in none
    assert some.count("Stored evidence has 3 of 5 seeds") == 2
    assert "> - Whether a transformer keeps more background" in some
    assert complete.count("Stored evidence") == 1
    assert complete.count("share of path, mean") == 4  # two of students, controls, photographs
    own = transformer.own_table(study, 101, ["untrained"]).set_index("network")
    for each in glued:
        assert each["vi_taught"] == pytest.approx(own.loc["convolution", "n_bg"], nan_ok=True)
        assert each["vi_before"] == pytest.approx(100 * own.loc["baseline", "accuracy"])
        assert set(each["transformers"]["network"]) == {*own.index}


def test_curves_are_means_over_the_seeds():
    figure = shown.by_epoch(planted({}).networks)
    points, _, accuracy = figure.axes
    assert len(points.lines) == len(TRANSFORMER_EVIDENCE.roles)
    for line, percent in ((points.lines[2], 1), (accuracy.lines[2], 100)):
        np.testing.assert_allclose(line.get_ydata(), percent * (np.arange(3) + 0.2))


def test_every_network_has_its_name_above_a_picture():
    names = [*shown.columns(dict.fromkeys(TRANSFORMER_EVIDENCE.roles))]
    assert len({*names}) == len(TRANSFORMER_EVIDENCE.roles)
    assert "feature, untrained" in names
    assert {*shown.KNOWN_AS} > {*TRANSFORMER_EVIDENCE.roles}


def test_the_sweep_trains_every_student_and_its_control():
    (block,) = yaml.safe_load((PAGE.parents[1] / "sweeps" / "transformer.yaml").read_text("utf8"))
    (students,) = block["grid"]["students"]
    assert {*transformer.OWN, *students} == {*TRANSFORMER_EVIDENCE.roles}


def _rows(samples: pd.DataFrame, networks: pd.DataFrame) -> Rows:
    return Rows(networks, samples, networks[KEY])
