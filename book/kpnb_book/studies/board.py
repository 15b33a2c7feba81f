"""All stored tables together: which there are, and every comparison that they answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kpnb_book.studies import paper
from kpnb_book.studies.evidence import STUDIES
from kpnb_book.studies.results import KEY, RESULTS, Results
from kpnb_book.studies.verdicts import KIND, Estimate, estimates, verdicts

SHOWN = ("student", "baseline", "untrained")
"""Networks whose points are shown where they lie."""


@dataclass(frozen=True)
class Stored:
    """The tables of one study: its kind of data, frames as in ``results.Rows``, and whether they
    have the two seeds that a comparison needs.
    """

    kind: str
    networks: pd.DataFrame
    samples: pd.DataFrame
    places: pd.DataFrame

    @property
    def seeds(self) -> int:
        return int(self.networks["seed"].nunique())


def stored(folder: str | Path | None = None) -> dict[str, Stored]:
    """The tables in ``folder`` (default ``book/results``) by name, those of two seeds at least.

    First the studies that are expected, in their order, then others.
    """
    root = Path(folder or RESULTS)
    names = [*STUDIES, *sorted(path.name for path in root.glob("*") if path.name not in STUDIES)]
    found = {}
    for name in names:
        results = Results(root / name)
        if len(results.seeds()) > 1:
            rows = results.read()
            kind = KIND[results.origin["study"]]
            found[name] = Stored(kind, rows.networks, rows.samples, rows.places)
    return found


def missing(found: Mapping[str, Stored]) -> list[str]:
    """Names of the studies that are expected and not there."""
    return [name for name in STUDIES if name not in found]


def board(found: Mapping[str, Stored]) -> pd.DataFrame:
    """``verdicts.verdicts`` of all studies, with the columns study and kind before it."""
    tables = paper.read()
    parts = []
    for name, each in found.items():
        frame = verdicts(each.samples, each.networks, each.kind, tables)
        frame.insert(0, "study", name)
        frame.insert(1, "kind", each.kind)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def estimated(found: Mapping[str, Stored]) -> dict[str, list[Estimate]]:
    """``verdicts.estimates`` of the first study of each kind of data, by kind."""
    tables, first = paper.read(), {}
    for each in found.values():
        first.setdefault(each.kind, each)
    return {kind: estimates(each.samples, kind, tables) for kind, each in first.items()}


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
