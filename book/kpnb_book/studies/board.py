"""All stored tables together: which there are, and every comparison that they answer.

No comparison is made before all seeds are there that were stated: those who look in between, and
stop where it suits, find what is not there."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kpnb.stats import Difference
from kpnb_book.studies import paper
from kpnb_book.studies.catalogue import every
from kpnb_book.studies.evidence import CONSTANT, SEEDS, STUDIES, TEACHER
from kpnb_book.studies.replication import concerns
from kpnb_book.studies.results import KEY, RESULTS
from kpnb_book.studies.stored import Stored, read
from kpnb_book.studies.study import Study
from kpnb_book.studies.verdicts import (
    BY_PAPER,
    KIND,
    QUESTIONS,
    SIX,
    Estimate,
    answers,
    as_the_paper_asks,
    estimates,
    verdicts,
)

PAPERS_OWN = {
    "Tiny-ImageNet with VGG-11": "tiny-imagenet-vgg11",
    "Tiny-ImageNet with AlexNet": "tiny-imagenet-alexnet",
    "Tiny-ImageNet with VGG-16": "tiny-imagenet-vgg16",
    "Tiny-ImageNet with VGG-19": "tiny-imagenet-vgg19",
    "SST-2": "sst2",
}
"""The studies on data sets of the paper's own, by set and network."""
SHOWN = ("student", "baseline", "untrained", "random-labels")
"""Networks whose points are shown where they lie."""


def stored(folder: str | Path | None = None) -> dict[str, Stored]:
    """The tables in ``folder`` (default ``book/results``) by name.

    First the studies that are expected, in their order, then others.
    """
    root = Path(folder or RESULTS)
    others = sorted(path.name for path in root.glob("*") if path.name not in every())
    # losses and the transformer have chapters of their own
    return read({**STUDIES, **dict.fromkeys(others)}, root)


def about(studies: Iterable[Study]) -> dict[str, Stored]:
    """Those of the book's tables that belong to the settings of one of the ``studies``."""
    return {
        name: each
        for name, each in stored().items()
        if name in STUDIES and any(concerns(STUDIES[name], study) for study in studies)
    }


def decided_about(studies: Iterable[Study]) -> dict[str, dict[str, Difference]]:
    """What the paper asks of the book's tables ``about`` these studies, by name; of those that are
    finished, not stale, and have points enough (``verdicts.answers``).
    """
    tables = paper.read()
    return {
        name: as_the_paper_asks(each.samples, each.kind, tables)
        for name, each in finished(about(studies)).items()
        if not each.outdated and answers(each.samples, BY_PAPER, each.stated)
    }


def finished(found: Mapping[str, Stored]) -> dict[str, Stored]:
    """Those with student and baseline of all stated seeds."""
    return {name: each for name, each in found.items() if each.finished()}


def missing(found: Mapping[str, Stored]) -> list[str]:
    """Names of the studies that are expected and have no tables."""
    return [name for name in STUDIES if name not in found]


def standing() -> dict[str, str]:
    """The study that stands for a kind of data, by kind: the first one, whatever is computed."""
    first: dict[str, str] = {}
    for name, evidence in STUDIES.items():
        first.setdefault(KIND[evidence.kind.__name__], name)
    return first


def board(found: Mapping[str, Stored]) -> pd.DataFrame:
    """``verdicts.verdicts`` of all finished studies, with the columns study and kind before it."""
    tables = paper.read()
    parts = []
    for name, each in finished(found).items():
        frame = verdicts(each.samples, each.networks, each.kind, tables, each.stated)
        frame.insert(0, "study", name)
        frame.insert(1, "kind", each.kind)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def waiting(found: Mapping[str, Stored], name: str, question: str) -> str:
    """Why a question to the study of that ``name`` has no answer: "no seed yet", or what
    ``Stored.lacks`` says; "" when nothing is lacking.
    """
    if name not in found:
        return "no seed yet"
    study = found[name]
    for each in (BY_PAPER, QUESTIONS[question]):
        if study.roles.issuperset(each.roles) and (lacks := study.lacks(each)):
            return lacks
    return ""


def estimated(found: Mapping[str, Stored]) -> dict[str, list[Estimate]]:
    """``verdicts.estimates`` of those of ``PAPERS_OWN`` that have as many seeds as embedded data,
    and of the studies that stand for a kind of these, by title; where they are finished and both
    networks have points enough (``verdicts.answers``).
    """
    tables, ready = paper.read(), finished(found)
    own = {title: name for title, name in PAPERS_OWN.items() if STUDIES[name].seeds == SEEDS}
    return {
        title: estimates(ready[name].samples, ready[name].kind, tables)
        for title, name in {**own, **standing()}.items()
        if name in ready and answers(ready[name].samples, BY_PAPER, ready[name].stated)
    }


def seed_means(each: Stored, roles: Collection[str]) -> pd.DataFrame:
    """The six metrics of each network, a row for each of these ``roles`` and seed: means over the
    samples, then over the layers; and "path", the length of its whole path. Of roles that all
    stated seeds have.
    """
    samples = each.samples[each.samples["network"].isin(each.complete.intersection(roles))]
    groups = samples.groupby(["network", "seed", "layer"])
    table = pd.DataFrame({metric: groups[column].mean() for metric, column in SIX.items()})
    table["d_var"] = groups["d"].var(ddof=0)
    table["path"] = each.networks.set_index(["network", "seed", "layer"])["path"]
    means = table.groupby(["network", "seed"]).mean()
    known = [role for role in roles if role in means.index.unique("network")]
    return means.loc[known].reset_index()


def learned(each: Stored) -> pd.DataFrame:
    """What the networks of a study have learned, a row for each role: means over seeds and layers
    of the held-out accuracy, the relative feature error, the share of how the target varies between
    held-out samples that a student has learned ("explained": 0 of a constant, less of what is worse
    than one), and the length of the whole path; and the accuracy of the teacher. Both of these
    where the tables have it. Of roles that all stated seeds have.
    """
    columns = ["accuracy", "feature_error", "explained", "path"]
    constant = each.networks.get(CONSTANT, np.nan)
    networks = each.networks.assign(explained=1 - each.networks["feature_error"] / constant)
    found = networks.groupby("network")[columns].mean()
    found = found[found.index.isin(each.complete)]
    if TEACHER in each.networks:
        of_students = each.networks["network"] == "student"
        found.loc["teacher", "accuracy"] = each.networks.loc[of_students, TEACHER].mean()
    return found


def samples_defining(found: Mapping[str, Stored]) -> pd.DataFrame:
    """How many samples define what not every sample has, in student and baseline both: for each
    study the median over its seeds and layers, and the least of them.

    Columns: study, measured, and for each of lambda, d and rho the two numbers.
    """
    rows = []
    for name, each in found.items():
        row: dict[str, object] = {"study": name, "measured": each.samples["sample"].nunique()}
        pair = each.samples[each.samples["network"].isin(BY_PAPER.roles)]
        for column in ("lambda", "d", "rho"):
            known = pair[column].notna().groupby([pair["seed"], pair["layer"], pair["sample"]])
            both = known.sum().eq(2).groupby(level=["seed", "layer"]).sum()
            row[f"{column}, median"], row[f"{column}, least"] = both.median(), both.min()
        rows.append(row)
    return pd.DataFrame(rows)


def shares_of_cells(each: Stored, layer: str) -> dict[str, np.ndarray]:
    """Where knowledge points lie on a square grid, ``[rows, columns]`` by network: the share of
    samples and seeds in which a cell is one. Of networks that all stated seeds have.
    """
    cells = [column for column in each.places if column not in KEY]
    rows = round(len(cells) ** 0.5)
    here = each.places[each.places["layer"] == layer]
    means = here.groupby("network")[cells].mean() / each.samples["sample"].nunique()
    return {
        role: means.loc[role].to_numpy(float).reshape(rows, rows)
        for role in SHOWN
        if role in means.index and role in each.complete
    }
