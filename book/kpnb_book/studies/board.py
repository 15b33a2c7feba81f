"""All stored tables together: which there are, and every comparison that they answer.

No comparison is made before all seeds are there that were stated: who looks in between, and stops
where it suits, finds what is not there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kpnb_book.studies import paper
from kpnb_book.studies.evidence import STUDIES, Evidence
from kpnb_book.studies.losses import every
from kpnb_book.studies.results import KEY, RESULTS, Results
from kpnb_book.studies.verdicts import (
    BY_PAPER,
    KIND,
    QUESTIONS,
    Estimate,
    Question,
    estimates,
    seeds_of,
    verdicts,
)

SHOWN = ("student", "baseline", "untrained")
"""Networks whose points are shown where they lie."""


@dataclass(frozen=True)
class Stored:
    """The tables of one study.

    kind                        of data
    networks, samples, places   frames as in ``results.Rows``, of the stated seeds alone
    stated                      seeds that were stated before any was computed
    roles                       networks that each of these has in the end
    outdated                    what the tables belong to that is otherwise today, in words
    """

    kind: str
    networks: pd.DataFrame
    samples: pd.DataFrame
    places: pd.DataFrame
    stated: tuple[int, ...]
    roles: frozenset[str]
    outdated: tuple[str, ...] = ()

    def seeds(self, question: Question = BY_PAPER) -> int:
        """How many seeds have both networks of a question."""
        return len(seeds_of(self.samples, question.student, question.other))

    def finished(self, question: Question = BY_PAPER) -> bool:
        """Whether all stated seeds have them, and there are two at least."""
        return self.seeds(question) == len(self.stated) > 1


def stored(folder: str | Path | None = None) -> dict[str, Stored]:
    """The tables in ``folder`` (default ``book/results``) by name.

    First the studies that are expected, in their order, then others.
    """
    root = Path(folder or RESULTS)
    others = sorted(path.name for path in root.glob("*") if path.name not in every())
    names = [*STUDIES, *others]  # losses have a chapter of their own
    results = {name: Results(root / name) for name in names}
    return {
        name: _stored(each, STUDIES.get(name))
        for name, each in results.items()
        if each.origin is not None
    }


def _stored(results: Results, evidence: Evidence | None) -> Stored:
    """One study's tables; of one that is not expected, what is there is all that was stated."""
    rows = results.read()
    stated = tuple(results.seeds() if evidence is None else evidence.seeds)
    roles = frozenset(rows.networks["network"] if evidence is None else evidence.roles)
    frames = [
        frame[frame["seed"].isin(stated)] for frame in (rows.networks, rows.samples, rows.places)
    ]
    outdated = () if evidence is None else tuple(evidence.outdated(results))
    return Stored(KIND[results.origin["study"]], *frames, stated, roles, outdated)


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
    """Why a question to the study of that ``name`` has no answer yet: "no seed yet", "7 of 20
    seeds"; "" when nothing is waited for.
    """
    if name not in found:
        return "no seed yet"
    (asked,) = (each for each in QUESTIONS if each.name == question)
    study = found[name]
    for each in (BY_PAPER, asked):
        if {each.student, each.other} <= study.roles and not study.finished(each):
            return f"{study.seeds(each)} of {len(study.stated)} seeds"
    return ""


def estimated(found: Mapping[str, Stored]) -> dict[str, list[Estimate]]:
    """``verdicts.estimates`` of the studies that stand for a kind of data, by kind, where they are
    finished.
    """
    tables, ready = paper.read(), finished(found)
    return {
        kind: estimates(ready[name].samples, kind, tables)
        for kind, name in standing().items()
        if name in ready
    }


def shares_of_cells(each: Stored, layer: str) -> dict[str, np.ndarray]:
    """Where knowledge points lie on a square grid, ``[rows, columns]`` by network: the share of
    samples and seeds in which a cell is one.
    """
    cells = [column for column in each.places if column not in KEY]
    rows = round(len(cells) ** 0.5)
    here = each.places[each.places["layer"] == layer]
    means = here.groupby("network")[cells].mean() / each.samples["sample"].nunique()
    return {
        role: means.loc[role].to_numpy(float).reshape(rows, rows)
        for role in SHOWN
        if role in means.index
    }
