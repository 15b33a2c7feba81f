"""The chapters on the paper's own data: planted tables, and what is said of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kpnb.metrics import BETTER, NAMES
from kpnb_book.figures import front, plots, sentences, stored_tables
from kpnb_book.figures import official as shown
from kpnb_book.figures.report import six_table
from kpnb_book.numbers import interval
from kpnb_book.store import Store
from kpnb_book.studies import board, fine_tuning, official, paper, replication, verdicts
from kpnb_book.studies.catalogue import every
from kpnb_book.studies.collecting import seed_rows
from kpnb_book.studies.evidence import BY_HEART, CONSTANT, OFFICIAL, STUDIES, TEACHER
from kpnb_book.studies.experiments import SomeClasses
from kpnb_book.studies.fine_tuning import FINE_TUNING_EVIDENCE
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.official import SST2, TINY_IMAGENET
from kpnb_book.studies.results import KEY, Results, Rows
from kpnb_book.studies.text import TextStudy
from tests.drawn import TINY, draw
from tests.executed import executed
from tests.simulated import origin_of, tables
from tests.test_text_study import TINY as SHORT
from tests.tiny_text import tiny_model, write_sst2

EFFECTS = {"student": {"n_fg": 6.0, "n_bg": -4.0, "lambda": 0.06, "d": -0.2, "rho": 0.1}}
EFFECTS |= {"untrained": {"d": -0.2}, "random-labels": {"d": -0.2}, "equal-rate": {}}
EPOCHS = 4


def planted(
    folder: Path,
    name: str,
    effects: dict[str, dict[str, float]],
    seeds: int,
    layers=("Conv", "FC1"),
) -> None:
    """Tables of a study: by its other rules the student has more, by a point of the
    object, and accuracy rises with lambda from epoch to epoch.
    """
    samples, networks = tables(effects, seeds=seeds, samples=12, layers=layers)
    for rule in getattr(every()[name], "rules", ()):
        more = (samples["network"] == "student").astype(float)
        added = {f"{rule}_n_fg": samples["n_fg"] + more}
        added |= {f"{rule}_{each}": samples[each] for each in ("n_bg", "lambda", "d", "rho")}
        samples = samples.assign(**added)
    for epoch in range(EPOCHS + 1):
        is_baseline = networks["network"] == "baseline"
        networks[f"epoch {epoch} n_fg"] = 2.0 * epoch + networks["seed"]
        networks[f"epoch {epoch} n_bg"] = 1.0
        networks[f"epoch {epoch} lambda"] = 0.1 * epoch
        networks[f"epoch {epoch} accuracy"] = np.where(is_baseline, 0.2 * epoch, np.nan)
    kind = every()[name].kind.__name__
    cells = {f"cell{number}": 1.0 for number in range(16)} if "Text" not in kind else {}
    places = networks[KEY].assign(**cells) if cells else networks[KEY].iloc[:0]
    origin = origin_of(name, kind) | {"samples": 12}
    Results(folder / name).add(origin, Rows(networks, samples, places))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    planted(root, "tiny-imagenet-vgg11", EFFECTS, 20)
    planted(root, "tiny-imagenet-vgg16", {"student": {"n_fg": -6.0}}, 2)
    planted(root, "images", {"student": {}}, 20, ("FC1", "FC2"))
    planted(root, "sst2", {"student": {}}, 3, ("feature",))
    return root


@pytest.fixture(scope="module")
def stored(folder) -> dict[str, board.Stored]:
    return TINY_IMAGENET.stored(folder)


def test_rows_of_the_paper_stand_beside_ours(stored):
    rows = TINY_IMAGENET.rows(stored)
    theirs, ours = (rows[rows["from"] == source] for source in ("paper", "here"))
    table = paper.read().query("table == '9' and dataset == 'Tiny-ImageNet'")
    assert theirs[[*NAMES]].to_numpy().tolist() == table[[*NAMES]].to_numpy().tolist()
    assert len(ours) == 2 * 2  # layers, roles; the other study waits for its seeds
    student = ours[(ours["role"] == "student") & (ours["layer"] == "FC1")].set_index("network")
    samples = stored["tiny-imagenet-vgg11"].samples
    chosen = samples[(samples["network"] == "student") & (samples["layer"] == "FC1")]
    assert student.loc["VGG-11", "n_fg"] == pytest.approx(chosen["n_fg"].mean())
    assert student.loc["VGG-11", "d_var"] == pytest.approx(
        chosen.groupby("seed")["d"].var(ddof=0).mean()
    )


def test_signs_are_counted_as_the_hypotheses_want_them(stored):
    signs = TINY_IMAGENET.signs(stored)
    known = signs.set_index(["source", "metric"])
    pairs = paper.paper_pairs(TINY_IMAGENET.paper_rows())
    for metric in NAMES:
        gaps = (pairs["student"] - pairs["baseline"])[metric] * BETTER[metric]
        assert known.loc[("paper", metric), "wanted"] == sum(gap > 0 for gap in gaps)
        assert known.loc[("paper", metric), "pairs"] == len(gaps) == 6
    assert {*signs["source"]} == {"paper", "tiny-imagenet-vgg11"}  # the other study waits
    samples = stored["tiny-imagenet-vgg11"].samples.query("layer == 'Conv'")  # as in the paper
    means = samples.groupby(["seed", "network"])["n_fg"].mean().unstack()
    ours = known.loc[("tiny-imagenet-vgg11", "n_fg")]
    assert ours.to_dict() == {"wanted": (means["student"] > means["baseline"]).sum(), "pairs": 20}
    table = shown.signs_table(signs, TINY_IMAGENET)
    assert [*table] == ["metric", "wanted", "paper", "VGG-11 from VGG-11"]
    assert table["VGG-11 from VGG-11"].iloc[0] == f"{ours['wanted']} of 20"
    none = TINY_IMAGENET.signs({})
    assert {*none["source"]} == {"paper"}
    assert shown.counted(none, TINY_IMAGENET).endswith("comparisons of the paper's table.")


def test_the_figure_on_top_compares_what_is_alike(stored):
    """Our seeds at the layer of the paper's table, beside the pairs of that table alone."""
    (found,) = TINY_IMAGENET.estimated(stored).values()
    by_metric = {each.metric: each for each in found}
    pairs = paper.differences(TINY_IMAGENET.paper_rows())["n_fg"]
    assert by_metric["n_fg"].paper.tolist() == pairs.tolist()
    samples = stored["tiny-imagenet-vgg11"].samples.query("layer == 'Conv'")
    gaps = samples.groupby(["seed", "network"])["n_fg"].mean().unstack()
    expected = (gaps["student"] - gaps["baseline"]).tolist()
    assert by_metric["n_fg"].seeds.tolist() == pytest.approx(expected)
    assert SST2.estimated({}) == {}


def test_a_page_says_what_is_too_small_to_matter():
    said = shown.small(TINY_IMAGENET)
    pairs = paper.differences(TINY_IMAGENET.paper_rows())
    assert f"({pairs['n_fg'].mean() / 2:.2g})" in said
    every = paper.differences(paper.read()).xs("images", level="kind")
    assert f"{every['n_fg'].mean() / 2:.2g} (" in said


def test_nothing_is_judged_before_all_seeds_are_there(stored):
    said = shown.state(stored, TINY_IMAGENET.studies)
    assert "`tiny-imagenet-vgg16` (2 of 5 seeds)" in said
    assert "`tiny-imagenet-alexnet` (no seed)" in said
    assert "vgg11" not in said
    asked = board.board(stored)
    assert set(asked["study"]) == {"tiny-imagenet-vgg11"}
    assert len(TINY_IMAGENET.estimated(stored)) == 1
    fewer = {"tiny-imagenet-vgg11": stored["tiny-imagenet-vgg16"]}
    assert TINY_IMAGENET.estimated(fewer) == {}
    assert official.by_rule(stored["tiny-imagenet-vgg16"]).empty
    assert shown.intervals_table(pd.DataFrame()).empty
    assert shown.controls_table(pd.DataFrame(), {}, "sst2").empty
    assert shown.controls_table(asked, stored, "sst2").empty
    alone = asked[asked["question"] == "paper"]
    assert shown.controls_table(alone, stored, "tiny-imagenet-vgg11").empty


def test_of_networks_that_not_all_seeds_have_nothing_is_shown(stored):
    """One seed of a control is no row of means and no picture of places."""
    each = stored["tiny-imagenet-vgg11"]
    assert "untrained" in each.complete
    kept = {
        name: frame[(frame["network"] != "untrained") | (frame["seed"] == 0)]
        for name in ("networks", "samples", "places")
        for frame in (getattr(each, name),)
    }
    some = replace(each, **kept)
    assert some.complete == each.complete - {"untrained"}
    one = {"tiny-imagenet-vgg11": replace(some, roles=each.complete)}
    said = shown.state(one, one)
    assert "Controls wait for their seeds (1 of `tiny-imagenet-vgg11`)" in said
    whole = {"tiny-imagenet-vgg11": replace(each, roles=each.complete)}
    assert shown.state(whole, whole) == "Stored evidence is complete."
    assert {*board.learned(each).index} - {*board.learned(some).index} == {"untrained"}
    layer = each.places["layer"].iloc[0]
    assert "untrained" in board.shares_of_cells(each, layer)
    assert "untrained" not in board.shares_of_cells(some, layer)


def test_controls_stand_beside_the_verdict(stored):
    asked = board.board(stored)
    table = shown.controls_table(asked, stored, "tiny-imagenet-vgg11").set_index("metric")
    known = [title for question, title in shown.CONTROLS.items() if "encoder" not in question]
    assert [*table] == ["student - baseline", *known]
    row = table.iloc[NAMES.index("d_mean")]
    assert row["student - baseline"].endswith("shows")
    assert row["untrained teacher - baseline"].endswith("shows")
    assert not row["student - untrained teacher's"].endswith("shows")
    assert table.iloc[NAMES.index("n_fg")]["student - untrained teacher's"].endswith("shows")


def test_a_page_says_how_well_labels_in_random_order_were_learned(stored):
    each = stored["tiny-imagenet-vgg11"]
    assert shown.by_heart({}, TINY_IMAGENET) == shown.by_heart(stored, TINY_IMAGENET) == ""
    rate = np.where(each.networks["network"] == "random-labels", 0.995, np.nan)
    known = replace(each, networks=each.networks.assign(**{BY_HEART: rate}))
    said = shown.by_heart({"tiny-imagenet-vgg11": known}, TINY_IMAGENET)
    assert "has 99.5% of them right" in said
    assert "It had 50 epochs, where the teacher of the classes has 15" in said
    poor = replace(known, networks=known.networks.assign(**{BY_HEART: 0.08}))
    said = shown.by_heart({"tiny-imagenet-vgg11": poor}, TINY_IMAGENET)
    assert "has not learned them, and is no control" in said
    asked = verdicts.verdicts(poor.samples, poor.networks, "images", paper.read(), poor.stated)
    assert not asked["question"].str.contains("random order").any()
    asked = verdicts.verdicts(known.samples, known.networks, "images", paper.read(), poor.stated)
    assert "beyond labels in random order" in set(asked["question"])
    said = sentences.smooth(asked.assign(study="tiny"), {"tiny": poor})
    assert "- **tiny**: the teacher of labels in random order has not learned them" in said
    name = "tiny-imagenet-vgg11"
    counted = front.on_one(board.board({name: poor}), {name: poor}, name)
    assert "**Against this student**: no control." in counted
    assert sentences.absent({name: poor}, name, "beyond labels in random order") == "no control"


def test_a_teacher_that_was_trained_again_is_told(stored):
    name = "tiny-imagenet-vgg11"
    each = stored[name]
    role, seed = each.networks["network"], each.networks["seed"]
    known = np.where(role.isin(["student", "equal-rate"]), 0.548, np.nan)
    known[role == "random-labels"] = 0.05
    same = replace(each, networks=each.networks.assign(**{TEACHER: known}))
    assert stored_tables.remarks({name: same, "none": None}) == ""
    again = np.where((role == "equal-rate") & (seed > 2), 0.551, known)
    other = replace(each, networks=each.networks.assign(**{TEACHER: again}))
    assert f"its students: the teacher of `{name}`." in stored_tables.remarks({name: other})


def test_a_student_that_imitates_no_better_than_a_constant_is_told(stored):
    name = "tiny-imagenet-vgg11"
    each = stored[name]
    role, seed = each.networks["network"], each.networks["seed"]
    taught = each.networks.assign(feature_error=0.4, **{CONSTANT: 0.7})
    assert "Nothing learned" not in stored_tables.remarks({name: replace(each, networks=taught)})
    of_seeds = (role == "student") & seed.isin([1, 3]) & (each.networks["layer"] == "Conv")
    lost = taught.assign(feature_error=np.where(of_seeds | (role == "untrained"), 0.7, 0.4))
    said = stored_tables.remarks({name: replace(each, networks=lost)})
    assert f"samples: `{name}` at Conv, seeds 1 and 3. They" in said


@pytest.mark.parametrize(("role", "told"), [("outputs", True), ("convolution", False)])
def test_teachers_of_transformers_are_of_two_kinds(stored, role, told):
    each = stored["tiny-imagenet-vgg11"]
    networks = each.networks[each.networks["network"].isin(["student", "equal-rate"])]
    scores = networks["network"].map({"student": 0.5, "equal-rate": 0.6})
    names = networks["network"].replace("equal-rate", role)
    found = replace(each, networks=networks.assign(network=names, **{TEACHER: scores}))
    assert bool(stored_tables.remarks({"transformer": found})) == told


def test_each_layer_is_judged_beside_the_papers_pair(stored):
    rows = TINY_IMAGENET.by_layer(stored)
    assert [*rows["layer"].unique()] == ["Conv", "FC1"]  # the paper's layer first
    assert set(rows["study"]) == {"tiny-imagenet-vgg11"}
    rows = rows.set_index(["layer", "metric"])
    assert rows.loc[("Conv", "n_fg"), "paper"] == pytest.approx(19.78 - 14.33)
    assert rows.loc["FC1", "paper"].isna().all()
    samples = stored["tiny-imagenet-vgg11"].samples
    for layer in ("Conv", "FC1"):
        means = samples[samples["layer"] == layer].groupby("network")["n_fg"].mean()
        gap = means["student"] - means["baseline"]
        assert rows.loc[(layer, "n_fg"), "value"] == pytest.approx(gap)
        assert rows.loc[(layer, "n_fg"), "verdict"] == "shows"
    table = shown.intervals_table(rows.reset_index())
    assert table["paper"].tolist()[0] in ("+5.4", "+5.5")  # 5.45 is rounded somehow
    assert SST2.by_layer(official.stored(["sst2"], Path("nowhere"))).empty


def test_drawings_and_photographs_are_compared_at_the_same_layers(folder):
    found = official.at_common_layers(official.stored(official.BOTH, folder))
    assert [*found] == [*official.BOTH]
    for each in found.values():
        for frame in (each.networks, each.samples, each.places):
            assert {*frame["layer"]} == {"FC1"}
    assert official.at_common_layers({}) == {}


PAGES = Path(__file__).resolve().parents[1] / "notebooks"
ONE_EACH = "here, where each comparison is that of one seed"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root = draw(tmp_path_factory.mktemp("shapes"))
    settings = TINY | {"dataset": "folder", "data_root": str(root), "seeds": (101,), "b": 0.05}
    return ImageStudy("laptop", store=Store(tmp_path_factory.mktemp("store")), **settings)


def test_the_page_on_photographs_with_and_without_tables(study, folder, tmp_path, monkeypatch):
    page, own = PAGES / "13_tiny_imagenet.ipynb", {"study": study, "first": "FC1", "seed": 101}
    text = executed(page, {"results": str(tmp_path), "profile": "smoke"}, **own)
    assert "does not judge `tiny-imagenet-alexnet` (no seed), `tiny-imagenet-vgg11` (no" in text
    assert "Not judged before all seeds are there." in text
    assert "There is no evidence with accuracies by epoch yet." in text
    text = executed(page, {"results": str(folder), "profile": "smoke"}, **own)
    assert "`tiny-imagenet-vgg16` (2 of 5 seeds)" in text
    assert f"of 120 {ONE_EACH}" in text  # none of the two seeds
    assert "untrained teacher - baseline" in text
    assert "- **tiny-imagenet-vgg11**, student of an untrained teacher\n  - Student against" in text
    assert "At equal rates: $D_{mean}$ " in text
    assert "in the mean of 20 baselines" in text
    assert "Of their changes from one epoch to the next it is " in text
    assert "Here they are not." in text  # drawn shapes
    monkeypatch.setattr(replication, "concerns", lambda each, _: each.name == "tiny-imagenet-vgg11")
    monkeypatch.setattr(replication, "other_samples", lambda *_: [])
    monkeypatch.setattr(replication, "common_samples", lambda *_: (np.arange(4), np.arange(4)))
    text = executed(page, {"results": str(folder), "profile": "smoke"}, **own)
    assert "1 seed of this build beside 20 seeds of the [stored evidence]" in text


def test_the_page_on_drawings_and_photographs_with_and_without_tables(study, folder, tmp_path):
    page, own = PAGES / "14_drawings_photographs.ipynb", {"study": study, "first": "FC1"}
    own |= {"seed": 101}
    text = executed(page, {"results": str(tmp_path), "profile": "smoke"}, **own)
    assert text.count("Not judged before all seeds are there.") == 7
    text = executed(page, {"results": str(folder), "profile": "smoke"}, **own)
    assert text.count("Not judged before all seeds are there.") == 1  # the experiments
    assert "photographs" in text
    assert "cells next to the object count as neither" in text


def test_the_page_on_sentences_with_and_without_tables(folder, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    write_sst2(files)
    sst2 = {"dataset": "sst2", "data_root": str(files), "network": tiny_model(tmp_path / "model")}
    study = TextStudy("smoke", store=Store(tmp_path / "store"), **sst2, **SHORT)
    page = PAGES / "33_sst2.ipynb"
    text = executed(page, {"results": str(folder), "profile": "smoke"}, study=study)
    assert "`sst2` (3 of 20 seeds)" in text
    assert ONE_EACH not in text
    samples_of = {"student": {}, "untrained": {}, "pretrained": {}, "random-labels": {}}
    planted(tmp_path / "all", "sst2", samples_of | {"equal-rate": {}}, 20, ("feature",))
    text = executed(page, {"results": str(tmp_path / "all"), "profile": "smoke"}, study=study)
    assert "encoder as it came - baseline" in text
    assert f"of 120 {ONE_EACH}" in text


def test_another_rule_of_what_is_foreground_has_its_own_differences(folder):
    drawn = official.stored(official.BOTH, folder)["images"]
    rows = official.by_rule(drawn).set_index(["rule", "metric"])["value"]
    masks, box, apart = official.RULE_TITLES.values()
    assert rows[box, "n_fg"] == pytest.approx(rows[masks, "n_fg"] + 1)
    assert rows[apart, "lambda"] == pytest.approx(rows[masks, "lambda"])
    table = shown.rules_table(official.by_rule(drawn))
    assert [*table] == ["metric", masks, box, apart]
    assert len(table) == len(NAMES)


def test_curves_are_those_of_the_tables(stored):
    each = stored["tiny-imagenet-vgg11"]
    found = official.points_by_epoch(each, "FC1")["on the object"]["student"]
    assert found.shape == (EPOCHS + 1, 20)
    assert found[3].tolist() == [6.0 + seed for seed in range(20)]
    plots.point_curves(official.points_by_epoch(each, "FC1"))
    quality = official.quality_by_epoch(each, "FC1")
    assert quality["accuracy"].tolist() == pytest.approx([0.2 * k for k in range(EPOCHS + 1)])
    plots.quality_and_accuracy(quality)
    found = official.quality_correlation(each, "FC1")
    assert found["levels"].tolist() == pytest.approx([1.0] * 20)
    assert shown.correlated(pd.DataFrame({"levels": [math.nan], "changes": [0.0]})) == ""
    several = pd.DataFrame({"levels": [0.8, 0.9, 1.0], "changes": [-0.1, 0.0, 0.1]})
    half = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    said = shown.correlated(several)
    first = interval(0.9 - half, 0.9 + half, 2, True)
    assert f"+0.90 ({first}) in the mean of 3 baselines" in said
    assert f"it is +0.00 ({interval(-half, half, 2, True)})." in said
    assert "Whatever rises with training gives that." in said
    assert "So it falls while accuracy rises" in shown.correlated(-several)


def test_changes_correlate_only_where_they_go_together(stored):
    """Planted: accuracy and lambda both rise, but in turns."""
    each = stored["tiny-imagenet-vgg11"]
    turns = {"lambda": [0.0, 0.1, 0.1, 0.3, 0.31], "accuracy": [0.0, 0.2, 0.4, 0.41, 0.6]}
    networks = each.networks.copy()
    for name, values in turns.items():
        for epoch, number in enumerate(values):
            networks[f"epoch {epoch} {name}"] = number
    found = official.quality_correlation(replace(each, networks=networks), "FC1")
    assert (found["levels"] > 0.9).all()
    assert (found["changes"] < -0.9).all()


def test_points_by_epoch_have_a_panel_for_both_kinds_together(stored):
    """The paper's figure 7: N all is the sum."""
    found = official.points_by_epoch(stored["tiny-imagenet-vgg11"], "FC1")
    on, off, every = (found[name]["baseline"] for name in found)
    assert torch.equal(on + off, every)


def test_tables_without_curves_have_no_figure(folder, tmp_path):
    samples, networks = tables({"student": {}}, seeds=2, samples=4)
    name = "tiny-imagenet-vgg11"
    Results(tmp_path / name).add(
        origin_of(name, "ImageStudy"), Rows(networks, samples, networks[KEY].iloc[:0])
    )
    (each,) = TINY_IMAGENET.stored(tmp_path).values()
    assert official.points_by_epoch(each, "FC1") == {}
    assert official.quality_by_epoch(each, "FC1").empty
    assert official.quality_correlation(each, "FC1").empty
    assert shown.correlated(official.quality_correlation(each, "FC1")) == ""


def test_evidence_on_the_papers_own_data_is_what_the_chapters_name():
    for data in (TINY_IMAGENET, SST2):
        assert all(STUDIES[name].official for name in data.studies)
        assert len(data.paper_rows())
    assert STUDIES["tiny-imagenet-vgg11"].controls == OFFICIAL
    assert STUDIES["sst2"].controls == ("pretrained", *OFFICIAL)
    assert len(STUDIES["tiny-imagenet-vgg11"].seeds) == len(STUDIES["sst2"].seeds) == 20
    own = {name for name, each in STUDIES.items() if each.official}
    assert own == {*TINY_IMAGENET.studies, *SST2.studies}
    settings = STUDIES["sst2-six-layers"].kind.resolve(
        "laptop", **STUDIES["sst2-six-layers"].overrides
    )
    assert settings.depth == "all"


@pytest.mark.parametrize("name", official.EXPERIMENTS)
def test_an_experiment_changes_one_setting(name):
    resolved = {
        each: STUDIES[each].kind.resolve("laptop", **STUDIES[each].overrides)
        for each in ("images", name)
    }
    changed = [
        field
        for field in vars(resolved["images"])
        if getattr(resolved["images"], field) != getattr(resolved[name], field)
    ]
    assert len(changed) == 1


# ---- fine-tuning


def test_fine_tuning_is_stored_beside_learning_from_scratch(tmp_path):
    """Of drawn shapes: each network is of the class that the other has not seen before."""
    root = draw(tmp_path / "shapes")
    settings = TINY | {"dataset": "folder", "data_root": str(root), "b": 0.05, "layers": ("Conv",)}
    small = replace(
        FINE_TUNING_EVIDENCE, name="small", overrides={**settings, "classes": (0, 1)}, rules=()
    )
    study = small.study(Store(tmp_path / "store"))
    source = study.baseline(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "before", lambda study: source)
        rows = seed_rows(small, study, 0)
        tuned = small.training(study, "fine-tuned", "Conv", 0)
    assert rows.networks["network"].tolist() == ["fine-tuned", "from scratch"]
    assert rows.networks["accuracy"].tolist() == [tuned.accuracy, study.baseline(0).accuracy]
    first, learned = tuned.state(0), source.state()
    assert all(
        torch.equal(first[name], learned[name])
        for name in first
        if not name.startswith("classifier.6.")
    )
    with pytest.raises(ValueError, match="network"):
        small.training(study, "student", "Conv", 0)


def test_what_is_learned_before_has_other_classes(tmp_path):
    assert not {*fine_tuning.BEFORE} & {*fine_tuning.NEW}
    root = draw(tmp_path / "shapes")
    how = {"dataset": "folder", "data_root": str(root), "device": "cpu"}
    study = SomeClasses("laptop", store=Store(tmp_path / "store"), classes=(1,), **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "BEFORE", range(1))
        teacher = fine_tuning.before(study)
    assert teacher.data.classes == ("disc",)
    assert study.share.classes == ("square",)


def test_figure_7_waits_for_its_seeds(tmp_path):
    assert official.fine_tuned(tmp_path) == ({}, {})
    for seeds in (2, 5):
        folder, name = tmp_path / str(seeds), FINE_TUNING_EVIDENCE.name
        planted(folder, name, {"fine-tuned": {"n_fg": 9.0}, "from scratch": {}}, seeds, ("Conv",))
        curves, gaps = official.fine_tuned(folder)
        assert bool(gaps) == bool(curves) == (seeds == 5)
    assert curves["on the object"]["fine-tuned"].shape == (EPOCHS + 1, 5)
    assert [*gaps] == ["fine-tuned - from scratch", "share of the path"]
    assert gaps["fine-tuned - from scratch"]["n_fg"].value == pytest.approx(9.0, abs=2.5)
    assert [*gaps["share of the path"]] == ["d_mean", "d_var"]
    assert six_table(gaps)["student"].tolist() == [*gaps]


def test_fine_tuning_takes_the_classes_of_both_halves(tmp_path):
    root = draw(tmp_path / "shapes")
    asked = TINY | {"dataset": "folder", "data_root": str(root), "classes": (0, 12)}
    study = SomeClasses("laptop", store=Store(tmp_path / "store"), **asked)
    with pytest.raises(ValueError, match=r"class number 12 is asked for .* 'folder' has 2 classes"):
        _ = study.train


def test_why_drawings_differ_is_said_of_what_is_sure():
    """Planted: the sets are apart in two metrics; one change explains one of them."""
    far = pd.DataFrame({"metric": ["n_fg", "n_bg", "rho"], "value": [4.0, -3.0, 0.5]})
    far["p"] = [0.01, 0.04, 0.2]
    changed = {
        "nearer": {"n_fg": (1.0, 0.001), "n_bg": (-1.0, 0.2), "rho": (0.4, 0.001)},
        "both ways": {"n_fg": (-1.0, 0.01), "n_bg": (-1.0, 0.01)},
        "nothing": {"n_fg": (1.0, 0.06)},
    }
    first, _, *lines = shown.why(far, changed).splitlines()
    differ = "Photographs and drawings surely differ in $N^{fg}$ (+4), $N^{bg}$ (-3), "
    assert first == f"{differ}photographs less drawings."
    assert lines == [
        "- *nearer*: drawings come nearer in $N^{fg}$.",
        "- *both ways*: drawings come nearer in $N^{bg}$ and farther away in $N^{fg}$.",
        "- *nothing*: too little moves to be told with these seeds.",
    ]
    assert "There is no metric in which" in shown.why(far.assign(p=1.0), changed)
    assert shown.why(pd.DataFrame(), changed) == ""
