"""What the page of stored evidence shows and says: figures against what they were given, words
against the tables, and the page itself with tables and without any.
"""

import ast
from pathlib import Path

import matplotlib.colors
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from kpnb.metrics import BETTER, NAMES
from kpnb_book.figures import estimation, sentences
from kpnb_book.figures.plots import COLOUR, VERDICT
from kpnb_book.numbers import value
from kpnb_book.studies import board
from kpnb_book.studies.evidence import STUDIES
from kpnb_book.studies.replication import replication
from kpnb_book.studies.verdicts import Estimate, by_seed
from tests.simulated import tables, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "80_evidence.ipynb"
EFFECTS = {"student": {"n_fg": 6.0, "d": -0.2, "lambda": 0.05}, "untrained": {"d": -0.2}}
EFFECTS |= {"equal-rate": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write(root / "images", "ImageStudy", EFFECTS, seeds=6, samples=20)
    write(root / "sentiment", "TextStudy", {"student": {}}, seeds=4, samples=20)
    write(root / "dgcnn", "CloudStudy", {"student": {}}, seeds=1, samples=20)
    write(root / "another", "ImageStudy", {"student": {}}, seeds=3, samples=20)
    return root


@pytest.fixture(scope="module")
def stored(folder) -> dict[str, board.Stored]:
    return board.stored(folder)


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
    values |= {"value": 0.4, "low": -0.3, "high": 1.1, "delta": 0.6, "verdict": "open"}
    return Estimate(**values, relative=False, **others)


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
    assert matplotlib.colors.same_color(bar.get_color(), VERDICT["open"])
    (band,) = axis.patches
    assert band.get_x() == pytest.approx(-0.6)
    assert band.get_width() == pytest.approx(1.2)
    words = [text.get_text() for text in axis.texts]
    assert words[0].endswith("\N{LEFTWARDS ARROW}")
    assert BETTER["n_bg"] < 0
    assert words[1] == "+0.40\n(-0.3 to +1.1)\nopen"


def test_figures_are_drawn_on_a_transparent_ground(stored):
    one = stored["images"]
    means = by_seed(one.samples)
    before, after = means.iloc[:4], means.iloc[4:]
    figures = [
        estimation.estimation(board.estimated(stored)),
        estimation.replications(replication(before, after), before, after),
        estimation.point_places(board.shares_of_cells(one, "Conv")),
    ]
    for figure in figures:
        figure.canvas.draw()
        assert figure.get_facecolor()[3] == 0
        assert all(axis.get_facecolor()[3] == 0 for axis in figure.axes)


def test_replications_show_where_the_mean_lies():
    stored_means = by_seed(tables(seeds=8)[0])
    own = by_seed(tables({"student": {"n_fg": 90.0}}, seeds=2, first=100, seed=3)[0])
    found = replication(stored_means, own)
    figure = estimation.replications(found, stored_means, own)
    for axis, row in zip(figure.axes, found.to_dict("records"), strict=True):
        (band,) = axis.patches
        assert band.get_x() == pytest.approx(row["low"])
        (line,) = axis.lines
        assert line.get_xdata() == pytest.approx([row["own"]] * 2)
        colour = COLOUR["teacher"] if row["inside"] else COLOUR["student"]
        assert matplotlib.colors.same_color(line.get_color(), colour)
        assert dots(axis, COLOUR["foreground"]) == pytest.approx(np.sort(own[row["metric"]]))
    assert "outside" in figure.axes[0].texts[1].get_text()


def test_places_are_means_over_seeds_and_samples(stored):
    one = stored["images"]
    shares = board.shares_of_cells(one, "FC1")
    assert list(shares) == ["student", "baseline", "untrained"]
    rows = one.places.query("layer == 'FC1' and network == 'student'")
    assert shares["student"][1, 2] == pytest.approx(rows["cell6"].mean() / 20)
    figure = estimation.point_places(shares)
    limits = {axis.images[0].get_clim() for axis in figure.axes if axis.images}
    assert len(limits) == 1


# ---- which tables there are, and what they say


def test_tables_of_two_seeds_are_read_in_the_order_of_the_studies(stored):
    assert list(stored) == ["images", "sentiment", "another"]
    assert stored["sentiment"].seeds == 4
    assert stored["another"].kind == "images"
    assert board.missing(stored) == [n for n in STUDIES if n not in ("images", "sentiment")]
    said = sentences.which(stored, board.missing(stored))
    assert "**images** (images): 6 seeds, 20 samples, Conv, FC1" in said
    assert "`dgcnn`" in said


def test_one_study_stands_for_a_kind_of_data(stored):
    found = board.estimated(stored)
    assert list(found) == ["images", "sentiment"]
    seeds = by_seed(stored["images"].samples)
    assert found["images"][0].seeds == pytest.approx(seeds["n_fg"].to_numpy())


def test_words_are_those_of_the_board(stored):
    asked = board.board(stored)
    table = sentences.words(asked)
    assert len(table) == 3 * len(NAMES)
    row = asked[(asked["study"] == "images") & (asked["question"] == "beyond place")].iloc[0]
    assert row["metric"] == "n_fg"
    assert table.loc[0, "beyond place"].startswith(
        f"{value(row['value'], 2, sign=True)} {row['verdict']}"
    )
    assert table.loc[0, "share of path"] == ""
    still = asked[(asked["verdict"] == "open") & np.isfinite(asked["seeds_needed"])]
    assert (still["seeds_needed"] > still["seeds"]).all()
    counts = asked[asked["question"] == "paper"]["verdict"].value_counts()
    assert f"{counts['shows']} show" in sentences.total(asked, "paper")
    assert sentences.place(asked).count("left for the object") == 3
    assert "and $D_{mean}$ shows for the student of an untrained" in sentences.smooth(asked)
    assert sentences.path(asked, stored).count("at equal rates") == 1


@pytest.mark.parametrize(("needed", "said"), [(31.0, "(31)"), (float("inf"), "(no number)")])
def test_open_cells_say_what_would_decide(needed, said):
    row = {"study": "images", "question": "paper", "metric": "rho", "value": 0.1}
    frame = pd.DataFrame([{**row, "verdict": "open", "seeds_needed": needed}])
    assert sentences.words(frame)["paper"].iloc[-1] == f"+0.10 open {said}"


# ---- the page


def executed(folder: Path) -> str:
    """The Markdown that the page's cells write, from the tables in ``folder``."""
    space: dict = {}
    written = []
    for cell in nbformat.read(PAGE, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), "page", "eval"), space)
                written.append(getattr(value, "data", ""))
            else:
                exec(compile(ast.Module([node], []), "page", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"results": str(folder), "profile": "smoke"}
    return "\n".join(text for text in written if isinstance(text, str))


def test_the_page_says_what_the_tables_say(folder, stored):
    text = executed(folder)
    assert sentences.tallies(board.board(stored)) in text
    assert "> **Takeaway.** As the paper asks, over all tables: " in text
    assert "**all**: of single comparisons" in text


def test_the_page_works_without_any_table(tmp_path):
    text = executed(tmp_path)
    assert all(f"`{name}`" in text for name in STUDIES)
    assert "over all tables: 0 show, 0 opposite, 0 negligible, 0 open." in text
