"""The tables of one study, and which seeds of it they have."""

from dataclasses import dataclass

import pandas as pd

from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.results import Results
from kpnb_book.studies.verdicts import BY_PAPER, KIND, Question, seeds_of


@dataclass(frozen=True)
class Stored:
    """The tables of one study.

    kind                        of data
    networks, samples, places   frames as in ``results.Rows``, of the stated seeds alone
    stated                      seeds that were stated before any was computed
    roles                       networks that each of these has in the end
    outdated                    settings in which the tables differ from today's, in words
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


def stored_of(results: Results, evidence: Evidence | None) -> Stored:
    """One study's tables; of one that is not expected, what is there is all that was stated."""
    rows = results.read()
    stated = tuple(results.seeds() if evidence is None else evidence.seeds)
    roles = frozenset(rows.networks["network"] if evidence is None else evidence.roles)
    frames = [
        frame[frame["seed"].isin(stated)] for frame in (rows.networks, rows.samples, rows.places)
    ]
    outdated = () if evidence is None else tuple(evidence.outdated(results))
    return Stored(KIND[results.origin["study"]], *frames, stated, roles, outdated)
