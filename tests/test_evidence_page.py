"""What the page of stored evidence shows and says: figures against what they were given, words
against the tables, and the page itself with tables and without any.
"""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from kpnb.metrics import BETTER, NAMES
from kpnb_book.figures import estimation, front, reliability, sentences, stored_tables
from kpnb_book.figures.plots import COLOUR, VERDICT
from kpnb_book.numbers import DASH, value
from kpnb_book.studies import board, paper
from kpnb_book.studies import stored as tables_of
from kpnb_book.studies.evidence import STUDIES, TEACHER
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.replication import Beside
from kpnb_book.studies.text import TextStudy
from kpnb_book.studies.verdicts import BEYOND, Estimate, by_seed
from tests.executed import executed
from tests.simulated import tables, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "80_evidence.ipynb"
EFFECTS = {"student": {"n_fg": 6.0, "d": -0.2, "lambda": 0.05}, "untrained": {"d": -0.2}}
EFFECTS |= {"equal-rate": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write(root / "images", "ImageStudy", EFFECTS, seeds=20, samples=12)
    write(root / "sentiment", "TextStudy", {"student": {}}, seeds=4, samples=12)
    write(root / "dgcnn", "CloudStudy", {"student": {}}, seeds=10, samples=12)
    write(root / "pointconv", "CloudStudy", {"student": {}}, seeds=1, samples=12)
    write(root / "questions", "QuestionStudy", {"student": {}}, seeds=22, samples=12)
    write(root / "another", "ImageStudy", {"student": {}}, seeds=3, samples=12)
    return root


@pytest.fixture(scope="module")
def stored(folder) -> dict[str, board.Stored]:
    return board.stored(folder)


def test_a_metric_that_no_network_defines_has_an_axis_without_dots(stored):
    images = stored["images"]
    none = replace(images, samples=images.samples.assign(rho=np.nan))
    means = board.seed_means(none, ("student", "baseline"))
    figure = estimation.metrics_of_roles(means)
    assert len(figure.axes) == len(NAMES)


@pytest.fixture(scope="module")
def asked(stored) -> pd.DataFrame:
    """What all of these tables answer."""
    return board.board(stored)


def dots(axis: Axes, colour: str) -> np.ndarray:
    """Where the dots of a colour are, left to right."""
    wanted = matplotlib.colors.to_rgb(colour)
    found = [
        part.get_offsets()[:, 0].data
        for part in axis.collections
        if len(part.get_facecolor()) and tuple(part.get_facecolor()[0, :3]) == wanted
    ]
    return np.sort(np.concatenate(found))


# ---- figures


def an_estimate(**others: object) -> Estimate:
    rng = np.random.default_rng(0)
    values = {"metric": "n_bg", "paper": rng.normal(size=50), "seeds": np.array([-1.0, 0.5, 1.5])}
    values |= {"value": 0.4, "low": -0.3, "high": 1.1, "delta": 0.6, "verdict": "undecided"}
    return Estimate(**(values | {"small": False, "relative": False} | others))


def test_estimation_shows_every_pair_and_seed_the_interval_and_the_band():
    found = an_estimate()
    found.paper[:2] = -80.0, 90.0  # beyond the axis: an arrow at its end
    figure = estimation.estimation({"images": [found, found], "clouds": [found]})
    assert len(figure.axes) == 3
    assert [axis.get_title() for axis in figure.axes] == ["images", "", "clouds"]
    axis = figure.axes[0]
    assert dots(axis, COLOUR["foreground"]) == pytest.approx(found.seeds)
    low, high = axis.get_xlim()
    assert low < found.low < found.high < high < 10
    shown = dots(axis, COLOUR["baseline"])
    assert len(shown) == 50
    assert shown == pytest.approx(np.sort(found.paper.clip(low, high)))
    (bar,) = (line for line in axis.lines if line.get_linewidth() == 3)
    assert bar.get_xdata() == pytest.approx([found.low, found.high])
    assert matplotlib.colors.same_color(bar.get_color(), VERDICT["undecided"])
    (band,) = axis.patches
    assert band.get_x() == pytest.approx(-0.6)
    assert band.get_width() == pytest.approx(1.2)
    words = [text.get_text() for text in axis.texts]
    assert words[0].endswith("\N{LEFTWARDS ARROW}")
    assert BETTER["n_bg"] < 0
    assert words[1] == "+0.40\n(-0.3 to +1.1)\nundecided"


def test_figures_are_drawn_on_a_transparent_ground(stored):
    one = stored["images"]
    means = by_seed(one.samples)
    before, after = means.iloc[:4], means.iloc[4:]
    figures = [
        estimation.estimation(board.estimated(stored)),
        estimation.replications({"": Beside("images", before, after, 12, 20)}),
        estimation.point_places(board.shares_of_cells(one, "Conv")),
    ]
    for figure in figures:
        figure.canvas.draw()
        assert figure.get_facecolor()[3] == 0
        assert all(axis.get_facecolor()[3] == 0 for axis in figure.axes)


def test_replications_show_where_the_mean_lies():
    stored_means = by_seed(tables(seeds=8)[0])
    own = by_seed(tables({"student": {"n_fg": 90.0}}, seeds=2, first=100, seed=3)[0])
    both = Beside("images", stored_means, own, 30, 20)
    figure = estimation.replications({"one": both, "other": both}, ["n_fg", "rho"])
    assert [axis.get_title() for axis in figure.axes] == ["one", "", "other", ""]
    rows = [both.found.set_index("metric").loc[name] for name in ("n_fg", "rho")]
    for axis, row in zip(figure.axes, [*rows, *rows], strict=True):
        (band,) = axis.patches
        assert band.get_x() == pytest.approx(row["low"])
        (line,) = axis.lines
        assert line.get_xdata() == pytest.approx([row["own"]] * 2)
        colour = COLOUR["teacher"] if row["inside"] else COLOUR["student"]
        assert matplotlib.colors.same_color(line.get_color(), colour)
        assert dots(axis, COLOUR["foreground"]) == pytest.approx(np.sort(own[row.name]))
    assert "outside" in figure.axes[0].texts[1].get_text()


def test_places_are_means_over_seeds_and_samples(stored):
    one = stored["images"]
    shares = board.shares_of_cells(one, "FC1")
    assert list(shares) == ["student", "baseline", "untrained"]
    rows = one.places.query("layer == 'FC1' and network == 'student'")
    assert shares["student"][1, 2] == pytest.approx(rows["cell6"].mean() / 12)
    figure = estimation.point_places(shares)
    limits = {axis.images[0].get_clim() for axis in figure.axes if axis.images}
    assert len(limits) == 1


# ---- which tables there are, and what they say


def test_every_seed_is_a_dot_of_its_network(stored):
    roles = ("student", "untrained", "baseline")
    means = board.seed_means(stored["images"], roles)
    assert list(dict.fromkeys(means["network"])) == [*roles]
    samples = stored["images"].samples
    one = samples[(samples["network"] == "student") & (samples["seed"] == 7)]
    row = means[(means["network"] == "student") & (means["seed"] == 7)].iloc[0]
    assert row["n_fg"] == pytest.approx(one["n_fg"].mean())
    assert row["d_var"] == pytest.approx(one.groupby("layer")["d"].var(ddof=0).mean())
    networks = stored["images"].networks
    paths = networks[(networks["network"] == "student") & (networks["seed"] == 7)]["path"]
    assert row["path"] == pytest.approx(paths.mean())
    strips = estimation.metrics_of_roles(means).axes
    for axis, metric in zip(strips, NAMES, strict=True):
        for role in roles:
            ours = means.loc[means["network"] == role, metric].sort_values()
            assert dots(axis, estimation.OF_ROLES[role]) == pytest.approx(ours.to_numpy())
    (axis,) = estimation.factors_of_distance(means).axes
    for role in roles:
        ours = means.loc[means["network"] == role, "path"].sort_values()
        assert dots(axis, estimation.OF_ROLES[role]) == pytest.approx(ours.to_numpy())


def test_tables_are_read_in_the_order_of_the_studies(stored):
    there = ["images", "dgcnn", "pointconv", "sentiment", "questions"]
    assert list(stored) == [*there, "another"]
    assert board.missing(stored) == [name for name in STUDIES if name not in there]
    said = stored_tables.which(stored, board.missing(stored))
    assert "**images** (images): 20 seeds, 12 samples, Conv, FC1\n" in said
    assert "`pointnet`" in said
    assert "Stale" not in said


def test_there_is_no_verdict_before_all_stated_seeds(asked, stored):
    """Whatever those that are there say: sentiment has 4 of 20, pointconv 1 of 10."""
    assert list(board.finished(stored)) == ["images", "dgcnn", "questions", "another"]
    assert {*asked["study"]} == {"images", "dgcnn", "questions", "another"}
    said = stored_tables.which(stored, ())
    assert "**sentiment** (sentiment): 4 of 20 seeds, 12 samples, Conv, FC1; no verdict\n" in said
    assert "**pointconv** (clouds): 1 of 10 seeds" in said


def test_seeds_beyond_the_stated_ones_do_not_count(stored):
    """Of 22 seeds of the questions 20 were stated."""
    assert stored["questions"].networks["seed"].nunique() == 20
    asked = board.board(stored).query("study == 'questions' and question == 'paper'")
    assert (asked["seeds"] == 20).all()


def test_a_control_waits_for_as_many_seeds_as_its_verdict(folder, tmp_path):
    """Two of the twenty untrained teachers' students are still to be computed."""
    samples, networks = tables(EFFECTS, seeds=20, samples=5)
    lacking = (samples["network"] == "untrained") & (samples["seed"] > 17)
    of_control = (networks["network"] == "untrained") & (networks["seed"] > 17)
    one = board.Stored(
        "images",
        networks[~of_control],
        samples[~lacking],
        networks.iloc[:0],
        tuple(range(20)),
        frozenset(STUDIES["images"].roles),
    )
    asked = board.board({"images": one})
    assert "paper" in {*asked["question"]}
    assert not {"smooth target", "beyond a smooth target"} & {*asked["question"]}
    table = sentences.scoreboard(asked, {"images": one})
    assert (table["against the untrained teacher's student"][:6] == "18 of 20 seeds").all()
    means = board.seed_means(one, ("student", "untrained"))
    assert {*means["network"]} == {"student"}
    said = stored_tables.which({"images": one}, ())
    assert "no verdict on *smooth target* (18 of 20 seeds), " in said
    assert "*beyond a smooth target* (18 of 20 seeds)" in said


def test_stale_tables_are_told_wherever_they_are_quoted(tmp_path):
    """Planted: the tables were computed with another threshold."""
    write(tmp_path / "images", "ImageStudy", EFFECTS, seeds=20, samples=5)
    path = tmp_path / "images" / "settings.json"
    origin = json.loads(path.read_text())
    origin["settings"]["b"] = 0.3
    path.write_text(json.dumps(origin))
    found = board.stored(tmp_path)
    assert found["images"].outdated == ("settings.b was 0.3, is 0.2",)
    text = on_tables(tmp_path)
    assert "> **Stale.** These tables" in text
    assert "> - `images`: settings.b was 0.3, is 0.2" in text
    assert "`kpnb evidence images --replace`" in text
    official = stored_tables.stale({"sst2": replace(found["images"], outdated=("b was 1, is 2",))})
    assert "`kpnb evidence sst2 -p data_root=FOLDER --replace`" in official
    assert "images 20 seeds (<strong>stale</strong>)" in front.progress(found)


def test_tables_of_other_samples_than_the_books_say_so(tmp_path, monkeypatch):
    """Planted: the tables in the book are of some classes, a reader's of others."""
    for place, measured in (("book", "a"), ("mine", "b"), ("again", "a")):
        write(tmp_path / place / "images", "ImageStudy", EFFECTS, seeds=20, samples=5)
        path = tmp_path / place / "images" / "settings.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"measured": measured}))
    monkeypatch.setattr(tables_of, "RESULTS", tmp_path / "book")
    assert not board.stored(tmp_path / "again")["images"].other_samples
    assert board.stored(tmp_path / "mine")["images"].other_samples
    told = "> **Other samples.** The tables of `images` are of other samples"
    assert told in stored_tables.remarks(board.stored(tmp_path / "mine"))
    assert stored_tables.remarks(board.stored(tmp_path / "again")) == ""


def test_one_study_stands_for_a_kind_of_data(stored):
    """The first one, which is not exchanged for another that is finished sooner."""
    expected = {"images": "images", "clouds": "pointnet"}
    assert board.standing() == expected | {"sentiment": "sentiment", "questions": "questions"}
    found = board.estimated(stored)
    assert list(found) == ["images", "questions"]
    seeds = by_seed(stored["images"].samples)
    assert found["images"][0].seeds == pytest.approx(seeds["n_fg"].to_numpy())
    own = {"sst2": stored["questions"], "tiny-imagenet-alexnet": stored["images"]}
    titles = [*board.estimated({**stored, **own})]
    assert titles == ["SST-2", "images", "questions"]  # AlexNet has fewer seeds than these


def test_a_chapter_finds_what_the_tables_of_its_settings_decide(asked, stored, monkeypatch):
    fresh = {name: replace(each, outdated=()) for name, each in stored.items()}
    monkeypatch.setattr(board, "stored", lambda: fresh)
    found = board.decided_about([ImageStudy("laptop")])
    assert list(found) == ["images"]
    rows = asked[(asked["study"] == "images") & (asked["question"] == "paper")].set_index("metric")
    assert {m: d.verdict for m, d in found["images"].items()} == rows["verdict"].to_dict()
    assert found["images"]["n_fg"].verdict == "shows"  # as planted
    assert board.decided_about([ImageStudy("laptop", b=0.3)]) == {}
    assert board.decided_about([TextStudy("laptop")]) == {}  # four seeds of twenty
    fresh["images"] = replace(fresh["images"], outdated=("settings.b",))
    assert board.decided_about([ImageStudy("laptop")]) == {}


def test_words_are_those_of_the_board(asked, stored):
    table = sentences.words(asked, stored, ["images", "another"])
    assert len(table) == 2 * len(NAMES)
    row = asked[(asked["study"] == "images") & (asked["question"] == "beyond place")].iloc[0]
    assert row["metric"] == "n_fg"
    assert table.loc[0, "beyond place"].startswith(
        f"{value(row['value'], 2, sign=True)} {row['verdict']}"
    )
    assert table.loc[0, "share of path"] == ""
    still = asked[asked["verdict"].isin(["open", "undecided"]) & np.isfinite(asked["seeds_needed"])]
    assert len(still)
    assert (still["seeds_needed"] > still["seeds"]).all()
    counts = asked[asked["question"] == "paper"]["verdict"].value_counts()
    assert f"{counts['shows']} show" in sentences.total(asked, "paper")
    assert sentences.place(asked).count("left for the object") == 4
    smooth = sentences.smooth(asked, stored)
    assert "\n  - Student of an untrained teacher against baseline: $D_{mean}$ shows" in smooth
    who = "student of an untrained teacher"
    assert f"- **images**, {who}\n  - Student against baseline: $N^{{fg}}$" in smooth
    assert smooth.count("\n  - Student against the student of an untrained teacher: ") == 1
    paths = sentences.path(asked, board.finished(stored))
    assert paths.count("\n  - At equal rates: $D_{mean}$ ") == 1
    assert "- **images**, student minus baseline:\n  - $D_{mean}$: -0.20" in paths
    for part in ("Length of the path: ", "Share of the path: ", "$D_{var}$: "):
        assert paths.count(f"\n  - {part}") == len(board.finished(stored))
    assert paths.count("is a shorter path, not sooner learning.") == 1  # planted in images alone


def test_a_control_without_points_is_named(stored):
    """The student of an untrained teacher has none, so that most metrics are not defined."""
    images = stored["images"]
    samples = images.samples.copy()
    blank = samples["network"] == "untrained"
    samples.loc[blank, ["n_fg", "n_bg"]] = 0
    samples.loc[blank, ["lambda", "d", "share", "rho"]] = np.nan
    found = {"images": replace(images, samples=samples)}
    asked = board.board(found)
    said = sentences.smooth(asked, found)
    assert said.startswith("- **images**: the student of an untrained teacher has hardly any")
    assert "nothing is compared" not in sentences.smooth(board.board(stored), stored)
    table = sentences.words(asked, found, ["images"])
    assert (table["against the untrained teacher's student"] == "no points").all()
    said = front.on_one(asked, found, "images")
    assert "**Against that student**: no points." in said
    assert "seed" not in said
    assert not (table[["as the paper asks", "beyond place", "share of path"]] == "no points").any(
        axis=None
    )


def test_a_control_with_points_on_the_background_alone_is_not_said_to_have_none(stored):
    """Five of them: lambda is 0, and neither distance nor detour is defined."""
    images = stored["images"]
    samples = images.samples.copy()
    blank = samples["network"] == "untrained"
    samples.loc[blank, ["n_fg", "n_bg", "lambda"]] = 0, 5, 0
    samples.loc[blank, ["d", "share", "rho"]] = np.nan
    found = {"images": replace(images, samples=samples)}
    (said,) = sentences.smooth(board.board(found), found).splitlines()
    assert "hardly any knowledge points on the object, 0 in a sample" in said
    assert "hardly ever defines $D_{mean}$, $\\rho$, and nothing is compared" in said


def test_samples_that_define_a_metric_are_counted(stored):
    """By a plain loop; planted: one sample has no lambda in one network, two no distance."""
    images = stored["images"]
    samples = images.samples.copy()
    here = (samples["seed"] == 3) & (samples["layer"] == "FC1") & (samples["network"] == "student")
    samples.loc[here & (samples["sample"] == 0), "lambda"] = np.nan
    samples.loc[here & (samples["sample"] < 2), "d"] = np.nan
    (row,) = board.samples_defining({"images": replace(images, samples=samples)}).to_dict("records")
    assert (row["measured"], row["lambda, median"], row["lambda, least"]) == (12, 12, 11)
    assert (row["d, least"], row["rho, least"]) == (10, 12)
    table = sentences.defining({"images": replace(images, samples=samples)})
    assert table.iloc[0].tolist() == ["images", 12, "12 (11)", "12 (10)", "12 (12)"]


def test_a_study_whose_student_has_no_points_is_named_and_not_judged(stored):
    """Its detours are hardly ever defined, so that the paper's question has no answer."""
    images = stored["images"]
    samples = images.samples.copy()
    samples.loc[(samples["network"] == "student") & (samples["sample"] > 0), "rho"] = np.nan
    found = {**stored, "images": replace(images, samples=samples)}
    asked = board.board(found)
    assert "paper" not in set(asked.loc[asked["study"] == "images", "question"])
    named = "- **images**: student or baseline has too few knowledge points"
    ready = board.finished(found)
    for said in (
        sentences.place(asked),
        sentences.smooth(asked, found),
        sentences.path(asked, ready),
    ):
        assert said.count(named) == 1
    table = front.hypotheses(asked, found).set_index("data")
    assert table.loc["images"].tolist() == ["no points"] * 4
    assert "images" in board.estimated(stored)
    assert "images" not in board.estimated(found)  # nor does the figure judge it
    assert front.opening(asked, found)["points"] == DASH
    counted = front.counts(asked, found).set_index("data")
    assert counted.loc["images", "as the paper asks"] == "no points"


def test_paths_of_which_one_outruns_the_other_are_not_compared_at_equal_length(stored):
    """The student's is longer after its first epoch than the baseline's as a whole."""
    images = stored["images"]
    outrun = images.samples.copy()
    outrun.loc[outrun["network"] == "student", "d_equal"] = np.nan
    for samples, said in ((images.samples, False), (outrun, True)):
        found = {"images": replace(images, samples=samples)}
        paths = sentences.path(board.board(found), found)
        assert ("there is nothing to compare" in paths) is said
        there = re.search(r"\n  - \$D_\{mean\}\$ at equal length of the path: [+-]", paths)
        assert bool(there) is not said


def test_a_student_that_learned_nothing_is_no_control_of_rates(stored):
    images = stored["images"]
    for error, said in ((0.97, False), (1.06, True)):
        networks = images.networks.assign(feature_error=np.nan)
        networks.loc[networks["network"] == "equal-rate", "feature_error"] = error
        found = {"images": replace(images, networks=networks)}
        paths = sentences.path(board.board(found), found)
        assert ("nothing of distillation: at that rate" in paths) is said
        assert ("stays at 1.1" in paths) is said
    for constant, said in ((1.0, False), (0.9, True)):  # as a constant does, which is no 0
        networks = networks.assign(feature_error=0.95, constant_error=constant)
        found = {"images": replace(images, networks=networks)}
        assert ("a constant does as well" in sentences.path(board.board(found), found)) is said


def test_what_networks_learned_is_a_mean_over_seeds_and_layers(stored):
    images = stored["images"]
    networks = images.networks.assign(accuracy=0.25, feature_error=np.nan)
    student = networks["network"] == "student"
    networks.loc[student, "feature_error"] = np.linspace(0.1, 0.5, student.sum())
    table = sentences.networks({"images": replace(images, networks=networks)})
    assert table["network"].tolist() == [
        "student", "of an untrained teacher", "at the baseline's rate", "baseline",
    ]  # fmt: skip
    assert table["feature error"].iloc[0] == pytest.approx(0.3)
    assert table["feature error"].iloc[1:].isna().all()
    assert (table["accuracy"] == 0.25).all()
    assert (table["explained"].fillna("") == "").all()  # older tables do not say
    networks["constant_error"] = networks["feature_error"] / np.where(networks["seed"] < 10, 0.5, 1)
    networks.loc[networks["network"] == "untrained", ["feature_error", "constant_error"]] = 0.2, 0.1
    table = sentences.networks({"images": replace(images, networks=networks)})
    assert table["explained"].fillna("").tolist()[:2] == ["25 %", "none"]  # of half and nothing
    said = sentences.smooth(board.board(stored), {"images": replace(images, networks=networks)})
    assert "an untrained teacher has learned none, the student 25 % of its own." in said
    assert sentences.networks({}).empty
    networks[TEACHER] = np.where(student, 0.5, np.nan)
    table = sentences.networks({"images": replace(images, networks=networks)})
    assert table["network"].tolist()[:2] == ["teacher", "student"]
    assert table["accuracy"].tolist() == [0.5, *[0.25] * 4]


@pytest.mark.parametrize(
    ("distance", "share", "length", "said"),
    [
        ("shows", "shows", "shows", "its points sooner."),
        ("shows", "opposite", "shows", "later: what shows in $D_{mean}$ is a shorter path, not so"),
        ("shows", "open", "shows", "as far as these seeds tell: what shows in $D_{mean}$ is a sh"),
        ("shows", "open", "open", "tell; nor does the length of the path alone explain $D_{mean}$"),
        ("opposite", "shows", "opposite", "sooner: what $D_{mean}$ tells is a longer path, not l"),
        ("opposite", "open", "shows", "tell; nor does the length of the path alone explain"),
        ("opposite", "opposite", "open", "its points later."),
        ("negligible", "opposite", "shows", "its points later."),
    ],
)
def test_what_follows_for_hypothesis_2(distance, share, length, said):
    assert said in sentences.sooner(distance, share, length)


@pytest.mark.parametrize(
    ("needed", "said"), [(31.0, "(31 seeds)"), (float("inf"), "(more seeds would not help)")]
)
def test_undecided_cells_say_what_would_decide(needed, said):
    row = {"study": "images", "question": "paper", "metric": "rho", "value": 0.1}
    frame = pd.DataFrame([{**row, "verdict": "undecided", "seeds_needed": needed}])
    cell = sentences.words(frame, {}, ["images"])["as the paper asks"].iloc[-1]
    assert cell == f"+0.10 undecided {said}"


def test_the_first_paragraph_says_what_follows_from_the_control(asked, stored):
    opening = front.opening(asked, stored)
    itself = asked[(asked["question"] == "smooth target") & (asked["study"] == "images")]
    count = (itself["verdict"] == "shows").sum()
    left = asked[(asked["question"] == "beyond a smooth target") & (asked["study"] == "images")]
    real = (left["verdict"] == "shows").sum()
    said = f"shows {count} of 6 metrics against the same baseline; against it the real one shows "
    assert f"{said}{real}" in opening["control"]
    trace = "What a student of an untrained teacher shows as well is no trace of what a teacher"
    assert (trace in opening["follows"]) == (real == 0 < count)
    none = asked.assign(verdict="negligible")
    none.loc[asked["question"] == "smooth target", "verdict"] = "shows"
    said = front.opening(none, stored)
    assert said["control"].endswith("baseline; against it the real one shows 0.")
    assert said["follows"] == f"{trace} knows."
    beyond = none["question"] == "beyond a smooth target"
    none.loc[beyond & none["metric"].isin(["rho", "d_mean"]), "verdict"] = "opposite"
    none.loc[beyond & (none["metric"] == "n_bg"), "verdict"] = "undecided"
    said = front.opening(none, stored)
    assert said["control"].endswith("shows 0, and the opposite in 2.")
    assert said["follows"] == f"{trace} knows, as far as these seeds tell."
    neither = none.assign(verdict="negligible")
    assert "Neither" in front.opening(neither, stored)["follows"]
    one = none.copy()
    one.loc[beyond & (one["metric"] == "lambda"), "verdict"] = "shows"
    assert "teacher's training adds" in front.opening(one, stored)["follows"]
    pairs = {"labels in random order": "shows", "beyond labels in random order": "negligible"}
    rows = asked[(asked["study"] == "images") & (asked["question"] == "paper")]
    both = [rows.assign(question=name, verdict=word) for name, word in pairs.items()]
    said = front.opening(pd.concat([none, *both]), stored)["control"]
    assert (
        "That of a teacher of labels in random order shows 6 of 6; against it the real one shows 0."
        in said
    )


def test_a_word_for_each_hypothesis_is_that_of_its_verdicts(asked, stored):
    words = front.hypotheses(asked, stored).set_index("data")
    assert (words.loc["clouds"] == "no seed yet").all()
    assert (words.loc["sentiment"] == "4 of 20 seeds").all()
    paper = asked[asked["question"] == "paper"].set_index(["study", "metric"])["verdict"]
    planted = paper["images"][["n_fg", "n_bg", "lambda"]]
    assert planted["n_fg"] == "shows"  # six more points
    count = (planted == "shows").sum()
    assert f"{count} of 3 show" in words.loc["images", "H1"]
    assert words.loc["images", "H2"].startswith(("supported", "partly supported (1 of 2"))
    opening = front.opening(asked, stored)
    names = {"H1": "H1", "H2": "H2", "H3": "H3"}
    said = {heading: opening[name] for name, heading in names.items()}
    assert said == words.loc["images"].drop(front.BY_SHARE).to_dict()
    shares = asked[asked["question"] == "share of the path"].set_index(["study", "metric"])
    mean, variance = (shares["verdict"]["images", name] for name in ("d_mean", "d_var"))
    assert words.loc["images", front.BY_SHARE] == f"mean {mean}, variance {variance}"
    assert opening["data"] == "the embedded images"
    assert opening["seeds"] == "20"
    assert float(opening["points"]) == pytest.approx(6, abs=1)


def test_the_first_paragraph_has_no_number_before_all_seeds_are_there(stored):
    """Nor is there an error: the page is built with whatever tables there are."""
    for found in ({}, {"sentiment": stored["sentiment"]}):
        opening = front.opening(board.board(found), found)
        assert [opening[name] for name in ("points", "interval", "seeds")] == [DASH] * 3
        assert opening["H1"] == "no seed yet"
        assert opening["control"].endswith("is still to be compared with the same baseline.")
        assert "cannot be told yet" in opening["follows"]


def test_24_cells_whatever_there_is(stored):
    """Images and questions are there, sentiment in part, clouds not at all."""
    table = sentences.scoreboard(board.board(stored), stored)
    assert table["data"].tolist() == [k for k in board.standing() for _ in NAMES]
    by_kind = dict(iter(table.groupby("data")))
    assert (by_kind["clouds"]["as the paper asks"] == "no seed yet").all()
    assert (by_kind["sentiment"]["as the paper asks"] == "4 of 20 seeds").all()
    asked = board.board(stored).query("question == 'paper'").set_index(["study", "metric"])
    for kind in ("images", "questions"):
        for name, cell in zip(NAMES, by_kind[kind]["as the paper asks"], strict=True):
            row = asked.loc[(kind, name)]
            assert cell.startswith(f"{value(row['value'], 2, sign=True)} {row['verdict']}")
    assert (
        by_kind["questions"]["against the untrained teacher's student"] == "0 of 20 seeds"
    ).all()
    place = table["metric"].isin([sentences.HTML[name] for name in BEYOND])
    assert (table.loc[~place, "beyond place"] == "").all()
    assert (table.loc[place, "beyond place"] != "").all()


def test_counts_are_those_of_the_verdicts(asked, stored):
    """Images and questions are there, sentiment in part, clouds not at all."""
    table = front.counts(asked, stored).set_index("data")
    for question, said in front.ASKED.items():
        for kind, name in board.standing().items():
            here = asked[(asked["study"] == name) & (asked["question"] == question)]
            here = here[here["metric"].isin(sentences.PLACED.get(question, NAMES))]
            cell = table.loc[kind, said]
            counts = Counter(here["verdict"])
            if len(here):
                assert re.match(rf"{counts['shows']} of {len(here)}\b", cell)
                for word in ("opposite", "negligible", "undecided"):
                    assert (f"{counts[word]}\xa0{word}" in cell) == (counts[word] > 0)
    both = table.loc["sentiment", ["as the paper asks", "beyond place"]]
    assert (both == "not yet: 4 of 20 seeds").all()
    assert table.loc["clouds", "as the paper asks"] == "not yet: no seed yet"
    assert table.loc["questions", "against that student"] == "not yet: 0 of 20 seeds"
    assert re.match("[0-2] of 2", table.loc["images", "by share of path"])  # D_mean and D_var
    labels = table[front.ASKED["beyond labels in random order"]]
    assert labels[[*board.standing()]].isna().all()  # asked of the paper's own data alone
    assert table.index.tolist() == [*board.PAPERS_OWN, *board.standing()]


def test_nothing_is_counted_before_anything_is_judged():
    table = front.counts(pd.DataFrame(), {}).drop(columns="data")
    assert {*table.stack().dropna()} == {"not yet: no seed yet"}


def test_what_is_there_may_be_small(stored):
    """Planted: half of delta, and surely below it."""
    rows = [{"study": "images", "question": "paper", "metric": "n_fg", "value": 2.0}]
    rows[0] |= {"verdict": "shows", "small": True, "seeds_needed": 3.0}
    assert (
        sentences.words(pd.DataFrame(rows), {}, ["images"])["as the paper asks"].iloc[0]
        == "+2 shows, small"
    )

    def counted():
        table = front.counts(pd.DataFrame(rows), {}).set_index("data")
        return table.loc["images", "as the paper asks"].replace("\xa0", " ")

    assert counted() == "1 of 1 (1 small)"
    rows += [rows[0] | {"metric": "n_bg", "small": False}, rows[0] | {"metric": "rho"}]
    assert counted() == "3 of 3 (2 small)"
    rows += [rows[0] | {"metric": "d_var", "verdict": "opposite"}]
    rows += [rows[0] | {"metric": "d_mean", "verdict": "opposite", "small": False}]
    assert counted() == "3 of 5 (2 small); 2 opposite (1 small)"
    rows = [rows[0] | {"verdict": "negligible"}]  # which says it already
    assert (
        sentences.words(pd.DataFrame(rows), {}, ["images"])["as the paper asks"].iloc[0]
        == "+2 negligible"
    )
    assert counted() == "0 of 1; 1 negligible"
    there = an_estimate(verdict="opposite", small=True)
    (axis,) = estimation.estimation({"images": [there]}).axes
    assert axis.texts[1].get_text().endswith("opposite, small")


def test_what_is_too_small_to_matter_stands_with_its_pairs():
    tables = paper.read()
    table = sentences.too_small(tables).set_index("data")
    pairs = paper.differences(tables)
    for kind in board.standing():
        assert table.loc[kind, "the paper's pairs"] == len(pairs.xs(kind, level="kind"))
    half = abs(pairs.xs("sentiment", level="kind")["rho"].mean()) / 2
    assert float(table.loc["sentiment", sentences.HTML["rho"]]) == pytest.approx(half, rel=0.05)
    assert table.loc["images", sentences.HTML["d_mean"]].endswith(" %")


def test_hours_are_summed_by_study_and_machine(stored):
    images = stored["images"]
    one = images.networks["seed"] % 2 == 0
    networks = images.networks.assign(seconds=36.0, machine=np.where(one, "one", "two"))
    table = sentences.hours({"images": replace(images, networks=networks)}).set_index("machine")
    assert table["networks"].to_dict() == {"one": one.sum(), "two": (~one).sum()}
    assert table.loc["one", "hours"] == pytest.approx(one.sum() / 100)
    assert sentences.hours({}).empty


def test_the_papers_own_data_come_first(asked, stored, tmp_path):
    """As soon as they have all their seeds; until then it is said that they wait."""
    words = front.hypotheses(asked, stored)
    assert words["data"].tolist() == [*board.PAPERS_OWN, *board.standing()]
    assert (words.set_index("data").loc["Tiny-ImageNet with VGG-11"] == "no seed yet").all()
    write(tmp_path / "tiny-imagenet-vgg11", "ImageStudy", {"student": {"n_fg": 6.0}}, seeds=20)
    found = stored | board.stored(tmp_path)
    asked = board.board(found)
    opening = front.opening(asked, found)
    assert opening["data"].startswith("20 classes of Tiny-ImageNet")
    assert opening["verdict"].startswith("as the hypothesis wants")
    assert {*front.WANTED} == {*VERDICT}
    assert float(opening["points"]) == pytest.approx(6, abs=1)
    table = front.counts(asked, found).set_index("data")["as the paper asks"]
    assert re.match("[1-6] of 6", table["Tiny-ImageNet with VGG-11"])
    assert table["SST-2"] == "not yet: no seed yet"


def test_what_is_small_is_called_so_wherever_its_verdict_stands(asked):
    """Planted: every difference is surely too small to matter."""
    for small, said in ((False, "**shows**"), (True, "**shows, small**")):
        rows = asked.assign(verdict="shows", small=small)
        assert said in sentences.place(rows)
        assert said in sentences.outcome(rows.iloc[0])


def test_a_study_that_waits_for_nothing_is_not_said_to_wait(stored):
    """A student that diverged keeps its place, without samples; and a study of a single seed."""
    images = stored["images"]
    lost = (images.samples["network"] == "student") & (images.samples["seed"] == 3)
    found = {"images": replace(images, samples=images.samples[~lost])}
    assert found["images"].lacks() == "a training diverged"
    assert "images** (images): a training diverged, 12 samples" in stored_tables.which(found, [])
    assert "images a training diverged, no verdict" in front.progress(found)
    counted = front.counts(board.board(found), found).set_index("data").loc["images"]
    assert counted["as the paper asks"] == "not yet: a training diverged"
    left_out = {name: frame[frame["seed"] != 3] for name, frame in vars(images).items() if name in (
        "networks", "samples", "places")}  # fmt: skip
    assert replace(images, **left_out).lacks() == "19 of 20 seeds"
    one = {name: frame[frame["seed"] == 3] for name, frame in vars(images).items() if name in (
        "networks", "samples", "places")}  # fmt: skip
    alone = {"images": replace(images, **one, stated=(3,))}
    assert alone["images"].lacks() == "a single seed"
    assert "a single seed" in front.progress(alone)


def test_of_one_study_is_said_what_shows_and_what_is_left(asked, stored):
    said = front.on_one(asked, stored, "images")
    rows = asked[asked["study"] == "images"].set_index(["question", "metric"])["verdict"]
    shows = sum(rows["paper"] == "shows")
    assert f"**As the paper asks**: {shows} of 6" in said
    left = sum(rows["beyond place"] == "shows")
    assert f"**Beyond place**: {left} of 2" in said
    assert front.on_one(asked, stored, "clouds") == front.on_one(pd.DataFrame(), {}, "images") == ""


def test_own_seeds_are_told_with_how_many_are_stored():
    before = by_seed(tables(seeds=7)[0])
    own = by_seed(tables({"student": {"n_fg": 90.0}}, seeds=1, first=100, seed=3)[0])
    both = Beside("images", before, own, 30, 20)
    text = reliability.replicated({"": both}, ["n_fg", "rho"])
    assert text.startswith("1 seed of this build beside 7 of 20 seeds of the [stored evidence]")
    assert "all but $N^{fg}$ lie in the 95 % prediction interval" in text
    far = by_seed(tables({"student": {"n_fg": 90.0, "n_bg": 90.0}}, seeds=1, first=100)[0])
    said = reliability.replicated({"": Beside("images", before, far, 30, 20)}, ["n_fg", "n_bg"])
    assert ": none of its metrics lies in the 95 % prediction interval." in said
    alone = reliability.replicated({"": both}, ["n_fg"])
    assert ": $N^{fg}$ does not lie in the 95 % prediction interval." in alone
    old = Beside("pointnet", pd.DataFrame(), pd.DataFrame(), 0, 20, ("method was 1, is 2",))
    text = reliability.replicated({"images": both, "clouds": old})
    assert text.startswith("images: 1 seed")
    assert "> - `pointnet`: method was 1, is 2" in text
    inside = both.found["inside"].sum()
    said = reliability.agreeing([both, old])
    assert said.startswith(f"Of the metrics of 1 study, {inside} of 6 (")
    assert "no stored seeds yet" in reliability.agreeing([old])


# ---- the page


def on_tables(folder: Path) -> str:
    """What the page's cells write, from the tables in ``folder``."""
    return executed(PAGE, {"results": str(folder), "profile": "smoke"})


def test_the_page_says_what_the_tables_say(asked, folder, stored):
    text = on_tables(folder)
    rows = asked[(asked["question"] == "paper") & (asked["study"] == "images")]
    counts = Counter(rows["verdict"])
    said = ", ".join(f"{counts[word]} {name}" for word, name in sentences.WORDS.items())
    assert f"- **images**: {said}\n" in text
    assert "> **Takeaway.** As the paper asks, over the tables of this page: " in text
    assert "**all**: of single comparisons" in text


def test_the_page_works_without_any_table(tmp_path):
    text = on_tables(tmp_path)
    assert all(f"`{name}`" in text for name in STUDIES)
    assert f"> **Takeaway.** {sentences.NOTHING_JUDGED}" in text
