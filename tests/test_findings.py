"""Sentences and tables that the chapters share, against differences that are known; how values are
written in a sentence; parameters in their places.
"""

import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from markdown_it import MarkdownIt

from kpnb.stats import Difference
from kpnb_book.figures import findings, report
from kpnb_book.figures.findings import Found
from kpnb_book.studies import tables
from kpnb_book.studies.stored import Stored
from tests.simulated import tables as simulated

NAN = float("nan")


def difference(metric: str, value: float, half: float = 0.5, seeds: int = 2) -> Difference:
    return Difference(metric, value, value - half, value + half, images=9, seeds=seeds)


def points(n_fg: float, n_bg: float, ratio: float, seeds: int = 2) -> dict[str, Difference]:
    values = {"n_fg": n_fg, "n_bg": n_bg, "lambda": ratio}
    return {name: difference(name, value, seeds=seeds) for name, value in values.items()}


TWO = Found(
    "H1",
    "images",
    {"": {"FC1, seed 0": points(1, 1, 0), "FC1, seed 1": points(3, -1, 0.25)}},
    {"": points(2.25, 0, 0.125)},
)
ONE = Found(
    "H1", "texts", {"": {"feature, seed 0": points(1, 1, 1)}}, {"": points(2, 0, 1, seeds=1)}
)


@pytest.fixture(autouse=True)
def nothing_glued(monkeypatch):
    monkeypatch.setattr(report, "GLUED", {})


# ---- what a sentence quotes


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (2, "", "2"),
        ("open", "", "open"),
        (0.12345, ":.3f", "0.123"),
        (0.12345, ":+.2f", "+0.12"),
        (-1.5, ":+.2f", "-1.50"),
        (0.00004, ":.2f", "0.00004"),  # never as if it were zero
        (-0.0, ":+.2f", "0.00"),
        (NAN, ":+.2f", "–"),
        (1e-7, ":.1g", "1e-07"),
    ],
)
def test_a_glued_value_is_written_as_asked(value, form, text):
    report.glue(a_value=value)
    assert report.say(f"it is {{{{a_value{form}}}}}.").data == f"it is {text}."


def test_a_value_that_was_not_glued_is_an_error():
    report.glue(a_value=1)
    with pytest.raises(LookupError, match="the text quotes b_value"):
        report.say("{{a_value}} and {{b_value:.2f}}")


def test_braces_of_formulas_are_no_values():
    report.glue(a=1.0)
    text = r"$N^{fg}$ is $\frac{a}{b}$ of {{a:.0f}}. {{rule}} {{pair_rule}}"
    rules = f"{report.REMINDER} {report.OF_PAIRS}"
    assert report.say(text).data == rf"$N^{{fg}}$ is $\frac{{a}}{{b}}$ of 1. {rules}"


def test_metrics_have_their_symbols_in_a_sentence():
    assert report.symbols(["n_bg", "rho"]) == r"$N^{bg}$, $\rho$"
    assert report.symbols(m for m in ()) == "none"


# ---- what a chapter found


def test_rows_are_the_pairs_and_all_of_them():
    assert list(TWO.rows) == ["FC1, seed 0", "FC1, seed 1", "all"]
    assert TWO.rows["all"] is TWO.overall[""]
    assert TWO.metrics == ("n_fg", "n_bg", "lambda")


def test_a_single_pair_has_one_row_as_it_decides():
    assert ONE.rows == {"feature, seed 0": ONE.overall[""]}


def test_studies_are_named_in_rows():
    both = Found("H1", "clouds", {"A": TWO.alone[""], "B": ONE.alone[""]},
                 {"A": TWO.overall[""], "B": ONE.overall[""]})  # fmt: skip
    names = ["A, FC1, seed 0", "A, FC1, seed 1", "A, all", "B, feature, seed 0"]
    assert list(both.rows) == names
    assert list(both.pairs) == [*names[:2], names[3]]


@pytest.mark.parametrize("quote", ["", "> "])
@pytest.mark.parametrize("value", [1, "[101, 102]", 0.5])
def test_no_value_becomes_the_item_of_a_list(quote, value):
    """As Markdown would have it of a number with a bracket at the start of a line."""
    report.glue(a_value=value)
    for end in (") differ", ". It is so"):
        said = report.say(f"{quote}so (with the seeds\n{quote}{{{{a_value}}}}{end}").data
        tokens = [token.type for token in MarkdownIt().parse(said)]
        assert "ordered_list_open" not in tokens
    listed = f"{quote}1. so\n{quote}2. and so"
    assert report.say(listed).data == listed


def test_a_conclusion_says_each_difference_and_what_words_mean():
    text = findings.conclusion("h1", TWO).data
    assert text.startswith("> **Takeaway.** Student minus baseline")
    assert all(line.startswith(">") for line in text.splitlines())
    assert "over images and 2 training seeds" in text
    assert r"+2.25 in $N^{fg}$ (1.75 to 2.75: *shows*)" in text
    assert r"0 in $N^{bg}$ (-0.500 to 0.500: *open*)" in text
    assert "Hypothesis 1 is **partly supported (1 of 3 shows)**" in text
    assert "*open*: these trainings do not decide" in text
    assert "(../book/verdicts.md)" in text
    assert report.GLUED["h1_n_fg_mean"] == 2.25
    assert report.GLUED["h1_n_fg_interval"] == "1.75 to 2.75"
    assert report.GLUED["h1_verdict"] == "partly supported (1 of 3 shows)"
    assert (report.GLUED["h1_pair_n_bg_shows"], report.GLUED["h1_pair_n_bg_opposite"]) == (1, 1)


def test_a_conclusion_has_stored_evidence_first():
    stored = points(-1, 1, 0, seeds=20)
    stored["n_bg"] = replace(stored["n_bg"], delta=2.0, low90=0.6, high90=1.4)
    text = findings.conclusion("h1", replace(TWO, evidence={"images": stored})).data
    first, second, _ = text.split("\n>\n> ")
    assert first.startswith("> **Takeaway.** [Stored evidence](80_evidence.ipynb)")
    assert "over images and 20 training seeds: -1 in" in first
    assert "*opposite, small*" in first
    assert first.endswith("Hypothesis 1 is **partly contradicted (2 of 3 opposite)** there.")
    assert "over images and 2 training seeds: +2.25 in" in second
    assert second.endswith("Hypothesis 1 is **partly supported (1 of 3 shows)** by these.")


def test_a_conclusion_of_one_training_says_so():
    text = findings.conclusion("s1", ONE).data
    assert "over texts, for a single training seed" in text


def test_a_conclusion_on_several_networks_lists_them():
    overall = {"A": points(2.25, 0, 0), "B": points(-2.25, 0, 0)}
    alone = {name: {"FC1, seed 0": found} for name, found in overall.items()}
    several = Found("H1", "clouds", alone, overall)
    lines = findings.conclusion("c1", several).data.splitlines()
    listed = [line for line in lines if line.startswith("> - ")]
    assert [line.split(":")[0] for line in listed] == ["> - A", "> - B"]
    assert "+2.25" in listed[0]
    assert "-2.25" in listed[1]
    assert "**mixed (1 of 6 shows, 1 opposite)** on this data set and these networks" in lines[-3]


def test_counts_of_pairs_and_what_decides():
    n_fg, n_bg, ratio = findings.counted(TWO).data.splitlines()
    assert "should be larger in the student" in n_fg
    assert (
        "Of 2 pairs, each judged over its images alone, it shows in 2, and the opposite in 0"
        in n_fg
    )
    assert n_fg.endswith("+2.25, *shows*.")
    assert "should be smaller" in n_bg
    assert "it shows in 1, and the opposite in 1" in n_bg
    assert ratio.endswith("+0.125, *open*.")
    assert "pairs" not in findings.counted(ONE).data  # one pair is all there is


def test_undefined_values_are_a_sentence_or_the_rows_that_have_some():
    table = pd.DataFrame({"layer": ["FC1", "FC2"], "network": "student", "seed": 0, "rho": 0.5})
    zeros = table.assign(**{"undefined rho": 0, "undefined lambda": 0})
    assert findings.undefined(zeros, "images").data.endswith("has a value for all images.")
    html = findings.undefined(zeros.assign(**{"undefined rho": [0, 3]}), "images").to_html()
    assert "Images without a value" in html
    assert "FC2" in html
    assert "FC1" not in html
    assert "λ" not in html
    assert re.search(r">\s*3\s*<", html)


def test_heading_and_samples_of_a_table_are_what_it_is_about():
    table = report.difference_table({"a - b": points(1, 1, 1)}, ["n_fg"], "difference")
    assert [*table] == ["pair", "metric", "difference", "95 % interval", "images", "verdict"]
    html = ONE.table().to_html()
    assert "texts" in html
    assert "images" not in html


def test_lengths_of_paths():
    distance = {"student": torch.tensor([0, 0.5, 0.75]), "baseline": torch.tensor([0, 1.0, 2.25])}
    curves = {name: (path, torch.zeros(3, 4)) for name, path in distance.items()}
    text = findings.paths("h2", "fig-x", curves, "images").data
    assert "In 2 epochs" in text
    assert "this student travel 0.75 times, those of the baseline 2.25 times" in text
    assert report.GLUED == {"h2_student_path": 0.75, "h2_baseline_path": 2.25, "h2_epochs": 2}


def test_factors_of_this_build_and_of_stored_evidence(monkeypatch):
    share = {metric: difference(metric, 0.125) for metric in ("d_mean", "d_var")}
    monkeypatch.setattr(tables, "factors", lambda study: tables.Factors(0.25, share))
    monkeypatch.setattr(findings.board, "about", lambda studies: {})
    text = findings.factors("c2", {"PointNet++": None}).data
    assert text.startswith("- PointNet++: in this build the student's weights travel 0.25 times")
    assert "student minus baseline: mean +0.125 (" in text
    assert report.GLUED == {"c2_pointnet2_length": 0.25, "c2_pointnet2_share": 0.125}
    samples, networks = simulated({"student": {"d": -0.2}}, seeds=4)
    roles = frozenset(networks["network"])
    planted = Stored("clouds", networks, samples, networks.iloc[:0], (0, 1, 2, 3), roles)
    monkeypatch.setattr(findings.board, "about", lambda studies: {"pointnet": planted})
    text = findings.factors("c2", {"": None}).data
    assert text.startswith("- In this build")
    assert "- **pointnet**, student minus baseline:\n  - $D_{mean}$: -0.2" in text


def test_what_choices_change():
    gaps = pd.DataFrame(
        {"d_mean": [0.25, 0.5, 1.0, -2.0]}, ["all", "below", "layer", "layer steps"]
    )
    text = findings.by_path("h2", gaps).data
    assert "+0.250 with all" in text
    assert "+0.500 with those below" in text
    assert "-2 under" in text
    assert report.GLUED["h2_layer_steps"] == -2
    means = pd.DataFrame({"student": [0.75, 0.5], "baseline": [0.5, 0.75]}, ["text", "released"])
    text = findings.by_choice("h3", means).data
    assert "+0.250 by the paper's text, -0.250 by the released" in text


def test_two_estimates_and_linearity():
    rows = pd.DataFrame({"baseline of": ["PointNet++"], "nats": [0.015], "IoU": [0.75]})
    assert "PointNet++ 0.015 nats and 0.750" in findings.repeated("c3", rows).data
    assert report.GLUED == {"c3_pointnet2_nats": 0.015, "c3_pointnet2_iou": 0.75}
    rows = pd.DataFrame({"median": [0.9, 1.25], "error of H": [0.005, 0.01]})
    text = findings.linear("s1", rows).data
    assert "between 0.90 and 1.25" in text
    assert "0.010 at most" in text
