"""Tables of a study as they are read, and which of the stated seeds they have."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.results import RESULTS, Results
from kpnb_book.studies.verdicts import BY_PAPER, KIND, Question, seeds_of


@dataclass(frozen=True)
class Stored:
    """The tables of one study; those of a build's own networks, too, which state no seeds.

    kind                        of data
    networks, samples, places   frames as in ``results.Rows``, of the stated seeds alone
    stated                      seeds that were stated before any was computed
    roles                       networks that each of these has in the end
    outdated                    settings in which the tables differ from today's, in words
    measured                    identity of the samples
    other_samples               whether the tables that come with the book are of other ones
    """

    kind: str
    networks: pd.DataFrame
    samples: pd.DataFrame
    places: pd.DataFrame
    stated: tuple[int, ...]
    roles: frozenset[str]
    outdated: tuple[str, ...] = ()
    measured: str = ""
    other_samples: bool = False

    def seeds(self, question: Question = BY_PAPER) -> int:
        """How many seeds have both networks of a question."""
        return len(seeds_of(self.samples, *question.roles))

    @property
    def complete(self) -> frozenset[str]:
        """The networks that all stated seeds have; all where none was stated."""
        seeds = self.networks.groupby("network")["seed"].nunique()
        return frozenset(seeds.index[seeds == len(self.stated)] if self.stated else seeds.index)

    @property
    def diverged(self) -> list[str]:
        """Networks whose training did not stay finite, in words."""
        if "diverged" not in self.networks:
            return []
        lost = self.networks[self.networks["diverged"].notna()]
        return [
            f"{network} at {layer}, seed {seed}"
            for seed, layer, network in lost[["seed", "layer", "network"]].to_numpy()
        ]

    def finished(self, question: Question = BY_PAPER) -> bool:
        """Whether all stated seeds have them, and there are two at least."""
        return self.seeds(question) == len(self.stated) > 1

    def lacks(self, question: Question = BY_PAPER) -> str:
        """What a question is not ``finished`` for: "7 of 20 seeds", or that nothing is left to be
        computed; "" when it is.
        """
        if self.finished(question):
            return ""
        if len(self.stated) == 1 and self.seeds(question):
            return "a single seed"
        if {*question.roles} <= self.complete:
            return "a training diverged"
        return f"{self.seeds(question)} of {len(self.stated)} seeds"


def read(
    evidence: Mapping[str, Evidence | None], folder: str | Path | None = None
) -> dict[str, Stored]:
    """The tables in ``folder`` (default ``book/results``) that there are of these studies, by name;
    of one that is not expected (None), what is there is all that was stated.
    """
    found = {}
    for name, expected in evidence.items():
        results = Results(Path(folder or RESULTS) / name)
        if results.origin is not None:
            found[name] = _stored(results, expected)
    return found


def read_one(evidence: Evidence, folder: str | Path | None = None) -> Stored | None:
    """The tables of one study; None if there are none."""
    return read({evidence.name: evidence}, folder).get(evidence.name)


def _stored(results: Results, evidence: Evidence | None) -> Stored:
    rows, origin = results.read(), results.origin
    stated = tuple(results.seeds() if evidence is None else evidence.seeds)
    kept = rows.each(lambda frame: frame[frame["seed"].isin(stated)])
    return Stored(
        KIND[origin["study"]],
        kept.networks,
        kept.samples,
        kept.places,
        stated=stated,
        roles=frozenset(rows.networks["network"] if evidence is None else evidence.roles),
        outdated=() if evidence is None else tuple(evidence.outdated(results)),
        measured=origin.get("measured", ""),
        other_samples=_has_other_samples(results),
    )


def _has_other_samples(results: Results) -> bool:
    """Whether the book has tables of this study too, on other samples, as other classes are."""
    book, here = Results(RESULTS / results.folder.name).origin or {}, results.origin
    return "measured" in book and "measured" in here and book["measured"] != here["measured"]
