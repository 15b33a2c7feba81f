"""Results on a page: values by name, sentences that quote them, and tables."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from kpnb.metrics import NAMES, SYMBOL, Choices
from kpnb.stats import Difference, tally
from kpnb_book import numbers
from kpnb_book.figures.scoreboard import outcome
from kpnb_book.figures.views import View
from kpnb_book.studies import paper
from kpnb_book.studies.study import Study
from kpnb_book.studies.tables import table5

_HTML = ("N<sup>fg</sup>", "N<sup>bg</sup>", "λ", "D<sub>mean</sub>", "D<sub>var</sub>", "ρ")
HTML = dict(zip(NAMES, _HTML, strict=True))
"""Symbols of the metrics in tables, where pages do not typeset mathematics."""


GLUED: dict[str, Any] = {}
"""What this notebook has glued, by name."""


def glue(**values: float | int | str | Styler | pd.DataFrame | View) -> None:
    """Name results, for :func:`say`, and for other pages, which quote them with ``{glue:text}`` or
    ``{glue:any}``.

    Numbers become plain Python numbers: those of NumPy and torch cannot be formatted in the text. A
    DataFrame is for ``kpnb run`` and ``kpnb sweep``, which collect its rows (ten decimals).
    """
    plain = str | int | Styler | pd.DataFrame | View
    named = {n: value if isinstance(value, plain) else float(value) for n, value in values.items()}
    GLUED.update(named)
    try:
        from myst_nb import glue as paste
    except ImportError:  # other pages are of no concern without the book's packages
        return
    with pd.option_context("display.html.table_schema", True):
        for name, value in named.items():
            paste(name, value, display=False)


def markdown(text: str) -> Markdown | None:
    """A ``text`` for a page; nothing of an empty one, of which a page would show the class."""
    return Markdown(text) if text.strip() else None


REMINDER = (
    "By [the rule](../book/verdicts.md), a metric *shows* when its 95 % interval and its test, "
    "corrected for the number of metrics, both put the difference on the side that the hypothesis "
    "wants. It is *opposite* when both put it on the other side; else it is *open*: these "
    "trainings do not decide. (The rule was stated before any result; when something is judged at "
    "all was narrowed later, twice.) In stored evidence, wherever it is known how large a "
    "difference matters, *open* is split into *negligible*, too small to matter, and *undecided*, "
    "for want of seeds."
)
"""One line for pages with verdicts; what it says in short, book/verdicts.md says in full."""
OF_PAIRS = (
    "Of a single pair of networks, *shows* and *opposite* say whether interval and test put the "
    "difference on the side that the hypothesis wants or on the other, and *open* that they do "
    "neither; that [decides nothing](../book/verdicts.md) about the next two."
)
"""The same for pages that compare single trainings."""
RULES = {"rule": REMINDER, "pair_rule": OF_PAIRS}


def say(text: str) -> Markdown:
    """``text`` as a cell's output, with glued values in it: ``{{h1_n_fg_mean:+.2f}}`` is a name and
    how the value is written; ``{{rule}}`` and ``{{pair_rule}}`` are those of ``RULES``.

    As an output, a sentence with its numbers reads the same in a notebook as on a page. Decimals
    are those asked for, and more where a value would be written as zero and is not. Raises
    ``LookupError`` for a name that was not glued.
    """

    def value(found: re.Match[str]) -> str:
        name, form = found.groups(default="")
        if name in RULES:
            return RULES[name]
        if name not in GLUED:
            raise LookupError(f"the text quotes {name}, which this notebook has not glued")
        if places := re.fullmatch(r"(\+?)\.(\d)f", form):
            return numbers.written(GLUED[name], int(places[2]), sign=bool(places[1]))
        return format(GLUED[name], form)

    # At the start of a line "1) differ" would be the item of a list.
    text = re.sub(r"\s*\n(?:> ?)*(?=\{\{[^{}]*\}\}[.)]\s)", " ", text.strip())
    return Markdown(re.sub(r"\{\{(\w+)(?::([^{}]*))?\}\}", value, text))


def symbols(metrics: Iterable[str]) -> str:
    """Metrics in a sentence: "$N^{fg}$, $\\rho$", or "none"."""
    return ", ".join(SYMBOL[metric] for metric in metrics) or "none"


def interval(d: Difference) -> str:
    """The 95 % interval of a difference in words."""
    return numbers.interval(d.low, d.high)


def glue_pairs(
    prefix: str, pairs: Iterable[Mapping[str, Difference]], metrics: Sequence[str]
) -> None:
    """Name the outcome of student/baseline ``pairs``: the verdict, which says its direction, and
    for each metric its counts and mean difference.

    Names: ``h1_verdict``, ``h1_pairs``, and ``h1_n_fg_shows``, ``_opposite``, ``_open``, ``_mean``
    and ``_interval`` (of each pair) for every metric.
    """
    found = list(pairs)
    glue(**{f"{prefix}_verdict": outcome(found, metrics), f"{prefix}_pairs": len(found)})
    for metric in metrics:
        counts = tally(found, metric)
        mean = sum(pair[metric].value for pair in found) / len(found)
        name = f"{prefix}_{metric}"
        glue(
            **{f"{name}_{word}": counts[word] for word in ("shows", "opposite", "open")},
            **{f"{name}_mean": mean},
        )
        glue(**{f"{name}_interval": "; ".join(interval(pair[metric]) for pair in found)})


def show(table: pd.DataFrame, precision: int = 2) -> Styler:
    """A table for the page: symbols for the metrics, a dash for what is undefined, no index.

    Numbers of a column have equally many decimals, ``precision`` at most and no more than they
    need.
    """
    renamed = table.rename(
        columns=lambda name: " ".join(HTML.get(word, word) for word in name.split(" "))
    )
    style = renamed.style.format(na_rep=numbers.DASH).hide(axis="index")
    for name in renamed.select_dtypes("float"):
        places = min(precision, numbers.decimals(renamed[name], digits=4))
        style = style.format(partial(numbers.written, places=places), subset=[name])
    return style


def table_rows(study: Study, setting: str = "", choices: Choices | None = None) -> pd.DataFrame:
    """``tables.table5`` in the columns of the paper's tables, where the network is the
    architecture.
    """
    rows = table5(study, choices).rename(columns={"network": "role"})
    return rows.assign(
        dataset=study.settings.dataset, network=study.settings.network, setting=setting
    )


def beside_paper(table: int, ours: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``ours``, then those of one of the paper's tables, in the columns that the paper
    fills.

    The paper's "Distilling from X", and "pair of: ..." in the baseline's row, become "teacher X"; a
    layer that all rows share is left out. So the table fits into the page.
    """
    theirs = paper.read().query(f"table == '{table}'").dropna(axis="columns", how="all")
    rows = pd.concat({"ours": ours, "paper": theirs}, names=["source"]).reset_index("source")
    rows = rows[["source", *theirs.columns[1:]]].fillna({"setting": ""})
    shorter = rows["setting"].str.replace("^(pair of: )?Distilling from", "teacher", regex=True)
    return rows.assign(setting=shorter).drop(
        columns="layer" if rows["layer"].nunique() == 1 else []
    )


def decided_as(verdict: str, small: bool) -> str:
    """A verdict; "shows, small" where a difference that is there is surely below delta."""
    return f"{verdict}, small" if small and verdict in ("shows", "opposite") else verdict


def six_table(
    found: Mapping[str, Mapping[str, Difference]], known_as: Callable[[str], str] = str
) -> pd.DataFrame:
    """Values and verdicts in the six metrics, a row for each student.

    found      by student, a comparison for each metric
    known_as   what the page calls a student
    """
    rows = []
    for student, by_metric in found.items():
        cells = {
            HTML[metric]: f"{numbers.value(d.value, 2, sign=True)} {decided_as(d.verdict, d.small)}"
            for metric, d in by_metric.items()
        }
        rows.append({"student": known_as(student), **cells})
    return pd.DataFrame(rows)


def difference_table(
    pairs: Mapping[str, Mapping[str, Difference]],
    metrics: Sequence[str],
    of: str = "student - baseline",
    samples: str = "images",
) -> pd.DataFrame:
    """Each difference with its interval and verdict, a row for each pair and metric.

    of        what is subtracted from what, the heading; "difference" where the pairs' titles say it
    samples   what is measured, in the plural
    """
    rows = []
    for pair, by_metric in pairs.items():
        for d in (by_metric[metric] for metric in metrics):
            row = {"pair": pair, "metric": HTML[d.metric], of: d.value}
            row |= {"95 % interval": interval(d), samples: d.images, "verdict": d.verdict}
            rows.append(row)
    return pd.DataFrame(rows)
