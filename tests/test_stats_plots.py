"""Intervals against theory, verdicts by hand, and figures that show what they were given."""

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from scipy import stats

from kpnb.learning import d_mean_var, learning_distance
from kpnb.metrics import BETTER, NAMES, Choices, Metrics
from kpnb.stats import Difference, compare, judge, paired, tally, verdict
from kpnb_book.figures import plots


def metrics(seed: int, shift: float = 0.0, images: int = 400) -> Metrics:
    """Values of ``images`` images, normal with mean ``shift`` and standard deviation 1."""
    values = (
        torch.randn(5, images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        + shift
    )
    return Metrics(*values, points=torch.zeros(2, images, 4, dtype=torch.bool))


def test_a_solvers_error_stands_over_its_cost():
    rows = [
        ("cells", "exact", 0.0, 64),
        ("cells", "default", 0.01, 14),
        ("points", "slow", 0.1, 640),
    ]
    table = pd.DataFrame(rows, columns=["unit", "solver", "error", "backwards"])
    axis = plots.error_and_cost(table).axes[0]
    assert axis.collections[0].get_offsets().tolist() == [[14, 0.01], [640, 0.1]]  # exact is 0
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    colours = axis.collections[0].get_facecolors()
    assert colours[0].tolist() != colours[1].tolist()
    words = {text.get_text() for text in axis.get_legend().get_texts()}
    assert {"cells", "points", "default", "slow"} <= words


def test_interval_is_that_of_a_paired_mean():
    """Normal theory: mean of the differences plus or minus 1.96 standard errors."""
    student, baseline = metrics(0, 0.2), metrics(1)
    found = compare(student, baseline)
    for name in ("n_fg", "n_bg", "lambda", "d_mean", "rho"):
        gap = (student.per_image()[name] - baseline.per_image()[name]).numpy()
        half = 1.96 * gap.std(ddof=1) / 20
        assert found[name].value == pytest.approx(gap.mean())
        assert found[name].low == pytest.approx(gap.mean() - half, abs=0.15 * half)
        assert found[name].high == pytest.approx(gap.mean() + half, abs=0.15 * half)
    assert found["d_var"].value == pytest.approx(
        np.var(student.distance.numpy()) - np.var(baseline.distance.numpy())
    )


def test_metrics_of_one_side_and_of_other_names_are_named():
    with pytest.raises(ValueError, match="only the student has rho: give both the same"):
        paired({"n_fg": [1.0, 2.0], "rho": [1.0, 2.0]}, {"n_fg": [1.0, 2.0]})
    with pytest.raises(ValueError, match="metric 'accuracy'"):
        judge({"accuracy": np.ones((4, 20))})
    with pytest.raises(ValueError, match=r"first = 1\.5: epochs count from 0, in whole"):
        Choices(first=1.5)
    assert Choices(first=np.int64(1)) == Choices(first=1)


def test_means_that_are_equal_by_chance_are_not_certain():
    """Every seed and every image has the mean 0.5, and single values are 0 or 1: of four such
    values nothing is known to the last digit.
    """
    found = judge({"n_fg": np.array([[1.0, 0.0], [0.0, 1.0]])})["n_fg"]
    assert found.low < 0 < 1 < found.high
    assert found.verdict == "open"


def test_interval_covers_the_truth_as_often_as_it_says():
    """60 images, true difference 0.3: between 88 and 99 of 100 intervals of 95 % hold it."""
    gaps = [metrics(2 * s, 0.3, 60).n_fg - metrics(2 * s + 1, 0.0, 60).n_fg for s in range(100)]
    found = [judge({"n_fg": gap[None]}, "images")["n_fg"] for gap in gaps]
    assert 88 <= sum(d.low <= 0.3 <= d.high for d in found) <= 99


def test_undefined_images_are_left_out_in_pairs():
    student, baseline = metrics(0), metrics(1)
    student.rho[:100], baseline.rho[50:150] = torch.nan, torch.nan
    found = compare(student, baseline)["rho"]
    assert found.images == 250
    assert found.value == pytest.approx((student.rho - baseline.rho)[150:].mean().item())
    student.rho[:] = torch.nan
    nothing = compare(student, baseline)["rho"]
    assert nothing.images == 0
    assert nothing.verdict == "open"


def hardly_defined() -> np.ndarray:
    """Three seeds and ten images, of which the third seed defines one."""
    gaps = np.random.default_rng(0).normal(1, 0.3, (3, 10))
    gaps[2, 1:] = np.nan
    return gaps


@pytest.mark.parametrize("chance", ["images", "bootstrap"])
def test_a_seed_that_hardly_any_image_defines_does_not_undo_the_interval(chance):
    """Where none of its images is drawn it is left out, as in the data; the same by plain loops."""
    gaps, rng, means = hardly_defined(), np.random.default_rng(1), []
    for _ in range(4000):
        images = rng.integers(10, size=10)
        seeds = rng.integers(3, size=3) if chance == "bootstrap" else range(3)
        known = [[v for v in gaps[seed, images] if not np.isnan(v)] for seed in seeds]
        of_seeds = [np.mean(values) for values in known if values]
        means += [np.mean(of_seeds)] if of_seeds else []
    found = judge({"n_fg": gaps}, chance)["n_fg"]
    ends = np.quantile(means, [0.025, 0.975, 0.05, 0.95])
    wanted = pytest.approx(ends, abs=0.1 * (ends[1] - ends[0]))
    assert [found.low, found.high, found.low90, found.high90] == wanted
    assert found.verdict == "shows"


def test_a_bootstrap_without_undefined_seeds_is_that_of_scipy():
    gaps = np.random.default_rng(2).normal(size=(9, 20))

    def mean(image: np.ndarray, axis: int = -1) -> np.ndarray:
        return gaps[:, image].mean(-1).mean(0)

    how = {"method": "percentile", "n_resamples": 4000, "batch": 500, "vectorized": True}
    wanted = stats.bootstrap([np.arange(20)], mean, rng=np.random.default_rng(0), **how)
    found = judge({"n_fg": gaps}, "images")["n_fg"]
    interval = wanted.confidence_interval
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high], rel=1e-12)


def test_one_image_has_a_difference_and_no_interval():
    found = judge({"n_bg": [[np.nan, -5.0, np.nan]], "n_fg": [[np.nan] * 3]})
    one, none = found["n_bg"], found["n_fg"]
    assert (one.value, one.images, one.verdict) == (-5.0, 1, "open")
    assert np.isnan([one.low, one.high, one.p, none.value]).all()
    assert np.isnan(judge({"d_var": [[0.0]]})["d_var"].value)
    assert repr(one).startswith("Difference(n_bg -5, no interval, open; 1 images")


def test_identical_networks_are_open():
    found = compare(metrics(3), metrics(3))
    assert {d.verdict for d in found.values()} == {"open"}


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("n_fg", 0.1, 0.5, "shows"),
        ("n_fg", -0.5, -0.1, "opposite"),
        ("n_fg", -0.1, 0.5, "open"),
        ("n_bg", -0.5, -0.1, "shows"),
        ("d_var", 0.1, 0.5, "opposite"),
        ("rho", float("nan"), float("nan"), "open"),
    ],
)
def test_verdict_of_a_pair(metric, low, high, expected):
    assert Difference(metric, (low + high) / 2, low, high, 10).verdict == expected


def pair(**signs: int) -> dict[str, Difference]:
    """Differences that show (1), are open (0) or are opposite (-1)."""
    found = {}
    for name, sign in signs.items():
        low, high = (
            (-1.0, 1.0)
            if not sign
            else sorted((0.5 * sign * BETTER[name], 1.5 * sign * BETTER[name]))
        )
        found[name] = Difference(name, (low + high) / 2, low, high, 9)
    return found


def test_verdict_of_a_hypothesis():
    both = ("d_mean", "d_var")
    yes, part, no, none = (
        pair(d_mean=1, d_var=1),
        pair(d_mean=1, d_var=0),
        pair(d_mean=-1, d_var=-1),
        pair(d_mean=0, d_var=0),
    )
    assert tally([yes, part, no], "d_var") == {"shows": 1, "open": 1, "opposite": 1}
    assert verdict([yes, yes, part], both) == "supported"
    assert verdict([yes, part], both) == "mixed"  # exactly half is not more than half
    assert verdict([yes, yes, no], both) == "mixed"
    assert verdict([no, no, none], both) == "contradicted"
    assert verdict([none, none], both) == "open"


IMAGES = torch.randint(
    0, 255, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
POINTS = torch.rand(5, 3, 16, generator=torch.Generator().manual_seed(1)) > 0.6
FOREGROUND = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)) > 0.5


def cells(axis, colour: str) -> int:
    """Marked cells of a colour in a panel."""
    wanted = matplotlib.colors.to_rgb(colour)
    return sum(isinstance(p, Rectangle) and p.get_facecolor()[:3] == wanted for p in axis.patches)


def test_point_maps_mark_every_knowledge_point_once():
    figure = plots.point_maps(
        IMAGES, {"student": POINTS[0], "baseline": POINTS[1]}, FOREGROUND, (4, 4)
    )
    panels = np.array(figure.axes).reshape(3, 3)
    for row in range(3):
        for column in range(2):
            shown = panels[row, column + 1]
            points = POINTS[column, row]
            assert cells(shown, plots.COLOUR["foreground"]) == (points & FOREGROUND[row]).sum()
            assert cells(shown, plots.COLOUR["background"]) == (points & ~FOREGROUND[row]).sum()


def test_cells_lie_where_their_unit_is():
    only = torch.zeros(3, 16, dtype=torch.bool)
    only[0, 6] = True  # second row, third column of 4 x 4
    figure = plots.point_maps(IMAGES, {"one": only}, only, (4, 4))
    (patch,) = figure.axes[1].patches
    assert patch.get_xy() == (0.5, 0.25)


def test_detour_maps_say_how_many_are_kept():
    figure = plots.detour_maps(IMAGES[0], {"student": POINTS[:, 0]}, [1, 4], (4, 4))
    union, kept = POINTS[1:, 0].any(0), POINTS[1:, 0].any(0) & POINTS[-1, 0]
    last = figure.axes[-1]
    assert last.get_xlabel() == f"kept {kept.sum()} of {union.sum()}"
    assert cells(last, plots.GREY) == (union & ~kept).sum()


def test_entropy_maps_share_one_scale():
    entropies = {
        "FC1": torch.linspace(-3, -2, 48).reshape(3, 16),
        "FC2": torch.linspace(-4, -3, 48).reshape(3, 16),
    }
    figure = plots.entropy_maps(IMAGES, entropies, (4, 4))
    limits = {
        axis.images[0].get_clim()
        for axis in figure.axes[:9]
        if axis.images[0].get_array().ndim == 2
    }
    assert len(limits) == 1


def test_curves_end_where_the_data_do():
    distance, counts = torch.tensor([0.0, 0.5, 1.2]), torch.tensor([[0.0, 1], [4, 2], [3, 5]])
    figure = plots.learning_curves({"student": (distance, counts)})
    mean = figure.axes[0].lines[-1]
    assert mean.get_xdata().tolist() == pytest.approx([0, 0.5, 1.2])
    assert mean.get_ydata().tolist() == [0.5, 3, 4]


def test_samples_without_a_point_have_no_richest_epoch():
    """The second sample never has a point, and the third has not been counted."""
    distance = torch.tensor([0.0, 0.5, 1.2, 2.0])
    counts = torch.tensor([[0.0, 0, 0, 9], [4, 0, torch.nan, 1], [3, 0, torch.nan, 2]])
    counts = torch.cat([counts, torch.tensor([[1.0, 0, torch.nan, 5]])])
    _, axis = plots.learning_curves({"student": (distance, counts)}).axes
    curve, dotted = axis.lines
    d_mean, _ = d_mean_var(learning_distance(counts, distance))
    assert dotted.get_xdata() == pytest.approx([d_mean, d_mean])
    assert d_mean == pytest.approx((0.5 + 2.0) / 2)
    assert set(curve.get_xdata()[1:].tolist()) == {0.5, 2.0}
    assert "samples without a point are left out" in axis.get_title()


def test_networks_without_any_point_have_a_curve_and_no_richest_epoch():
    distance = torch.tensor([0.0, 0.5, 1.2])
    some = torch.tensor([[0.0, 0], [1, 2], [2, 1]])
    figure = plots.learning_curves({"student": (distance, 0 * some), "baseline": (distance, some)})
    curves, peaks = figure.axes
    assert len(curves.lines) == 2 * (2 + 1)
    assert {line.get_color() for line in peaks.lines} == {plots.COLOUR["baseline"]}
    figure.canvas.draw()


def points_of(counts: torch.Tensor) -> Figure:
    """Points by epoch of a student, beside a baseline without any."""
    return plots.point_curves({"all": {"student": counts, "baseline": torch.zeros(3, 2)}})


def band(axis) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of the first band in a panel, by epoch."""
    shown = axis.collections[0]
    corners = [tuple(corner) for path in shown.get_paths() for corner in path.vertices]
    epochs = sorted({x for x, _ in corners})
    ys = [[y for x, y in corners if x == epoch] for epoch in epochs]
    return np.array([min(y) for y in ys]), np.array([max(y) for y in ys])


def test_bands_of_few_samples_are_students_t():
    counts = torch.tensor([[1.0, 2, 3, 4, 7], [0, 5, 5, 5, 9]])
    axis = points_of(counts).axes[0]
    found = [
        stats.t.interval(0.95, df=4, loc=np.mean(row), scale=stats.sem(row))
        for row in counts.numpy().astype(float)
    ]
    np.testing.assert_allclose(np.transpose(band(axis)), found, rtol=1e-6)


def test_a_sample_without_a_number_is_left_out_of_its_epoch_alone():
    counts = torch.tensor([[1.0, 2, 6], [torch.nan, 5, 8], [3, 4, 8]])
    axis = points_of(counts).axes[0]
    assert axis.lines[0].get_ydata().tolist() == [3, 6.5, 5]
    low, high = band(axis)
    of_two = stats.t.interval(0.95, df=1, loc=6.5, scale=stats.sem([5, 8]))
    assert (low[1], high[1]) == pytest.approx(of_two)
    of_three = stats.t.interval(0.95, df=2, loc=5, scale=stats.sem([3, 4, 8]))
    assert (low[2], high[2]) == pytest.approx(of_three)


def test_one_sample_has_a_line_and_no_band():
    counts = torch.tensor([[1.0, torch.nan], [2, torch.nan], [torch.nan, torch.nan]])
    figure = points_of(counts)
    np.testing.assert_equal(figure.axes[0].lines[0].get_ydata(), [1, 2, np.nan])
    assert not [path for path in figure.axes[0].collections[0].get_paths() if len(path.vertices)]
    figure.canvas.draw()


@pytest.mark.parametrize("seeds", [[0], [0, 1], [101, 102, 103], [7, 3], range(101, 121)])
def test_dots_of_every_seed_lie_in_the_row_of_their_layer(seeds):
    """Each dot says by its value to which layer and seed it belongs."""
    layers = ("Conv", "FC1", "FC2")
    rows = [
        {"layer": layer, "seed": seed, "network": network} | dict.fromkeys(NAMES, row + seed / 1000)
        for row, layer in enumerate(layers)
        for seed in seeds
        for network in ("student", "baseline")
    ]
    figure = plots.six_panels(pd.DataFrame(rows))
    assert len(figure.axes) == 6
    for axis in figure.axes:
        dots = np.concatenate([shown.get_offsets() for shown in axis.collections])
        low, high = sorted(axis.get_ylim())
        assert len(dots) == len(rows)
        assert ((dots[:, 1] > low) & (dots[:, 1] < high)).all()
        nearest = np.abs(dots[:, 1, None] - axis.get_yticks()).argmin(1)
        assert nearest.tolist() == np.floor(dots[:, 0]).astype(int).tolist()
        assert len(np.unique(dots[:, 1])) == len(layers) * len(seeds)


def test_every_other_figure_draws_on_a_transparent_ground():
    row = {
        "n_fg": 1.0,
        "n_bg": 2.0,
        "lambda": 0.3,
        "d_mean": 0.5,
        "d_var": 0.1,
        "rho": float("nan"),
    }
    table = pd.DataFrame(
        [
            {"layer": "FC1", "network": n, "seed": s, **row}
            for s in (0, 1)
            for n in ("student", "baseline")
        ]
    )
    log = pd.DataFrame({"epoch": [0, 1, 2], "loss": [float("nan"), 2.0, 1.0]})
    means = pd.DataFrame(
        {
            "layer": ["Conv", "FC1"] * 4,
            "region": ["foreground"] * 4 + ["background"] * 4,
            "entropy": range(8),
        }
    )
    figures = [
        plots.six_panels(table),
        plots.differences({"FC1": compare(metrics(0, 1), metrics(1))}, ("n_fg", "n_bg")),
        plots.training_curves({"student": log}, "loss", "loss"),
        plots.discarding_by_layer(means),
        plots.detour_histogram({"student": torch.tensor([0.2, 0.9, torch.nan])}),
    ]
    for figure in figures:
        figure.canvas.draw()
        assert figure.get_facecolor()[3] == 0
        assert all(axis.get_facecolor()[3] == 0 for axis in figure.axes)
        letters = [text for text in figure.findobj(Text) if text.get_text().strip()]
        # Pixels at the size at which a figure is drawn, and at which a tap opens it.
        assert min(text.get_fontsize() * figure.dpi / 72 for text in letters) >= 9
    assert len(figures[0].axes) == 6
    assert figures[1].axes[0].get_title().endswith("more expected")
    assert figures[1].axes[1].get_title().endswith("less expected")
