"""How far verdicts and intervals can be relied on, in words: how often they err where nothing is to
be found, and whether seeds of one's own lie where the stored ones say.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from kpnb.metrics import NAMES, SYMBOL
from kpnb_book.figures.stored_tables import number, seeds, stale
from kpnb_book.studies import replication


def rate(found: Mapping[str, float]) -> str:
    """A ``controls.proportion`` in words."""
    return (
        f"{found['count']} of {found['total']} ({100 * found['rate']:.1f} %; 95 % interval "
        f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %)"
    )


def errors(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """``controls.false_positives_of_seeds`` by study, and over all."""
    if not found:
        return ""
    kinds = ("comparisons", "families")
    pooled = {kind: replication.pooled(each[kind] for each in found.values()) for kind in kinds}
    return "\n".join(
        f"- **{name}**: of single comparisons, {rate(each['comparisons'])} are called shows or "
        f"opposite; of families of six, {rate(each['families'])} have one at least."
        for name, each in {**found, "all": pooled}.items()
    )


def coverages(found: Mapping[str, Mapping[str, float]]) -> str:
    """``replication.coverage`` by study, and over all."""
    every = found | {"all": replication.pooled(found.values())} if found else found
    return "\n".join(f"- **{name}**: {rate(each)} lie inside." for name, each in every.items())


def replicated(found: Mapping[str, replication.Beside], metrics: Iterable[str] = NAMES) -> str:
    """Whether own seeds lie where the stored ones say, study by study, with a warning of tables
    that are stale; "" without any stored seeds.

    found   by title ("": none is written)
    """
    warning = stale({each.name: each for each in found.values()})
    lines = [
        f"{f'{title}: ' if title else ''}{_replicated(each, rows)}"
        for title, each in found.items()
        if len(rows := each.rows(metrics))
    ]
    listed = lines if len(lines) < 2 else [f"- {line}" for line in lines]
    return "\n".join([*listed, *(["", warning] if warning else [])]).strip()


def _replicated(each: replication.Beside, rows: pd.DataFrame) -> str:
    """Of one study with these ``rows``."""
    outside = [SYMBOL[metric] for metric in rows.loc[~rows["inside"], "metric"]]
    stored = seeds(len(each.stored), each.stated)
    own = "seed" if len(each.own) == 1 else "seeds"
    where = f"all but {', '.join(outside)} lie" if outside else "every metric lies"
    if len(outside) == len(rows):
        where = "none of its metrics lies" if len(rows) > 1 else f"{outside[0]} does not lie"
    return (
        f"{len(each.own)} {own} of this build beside {stored} of the [stored "
        f"evidence](80_evidence.ipynb), on the {each.samples} samples that both have: {where} in "
        "the 95 % prediction interval."
    )


def agreeing(found: Iterable[replication.Beside]) -> str:
    """How many metrics of how many studies lie where the stored seeds say, over all of them."""
    tables = [each.found for each in found if len(each.found)]
    if not tables:
        return "There are no stored seeds yet beside which those of this build could be put."
    inside = rate(replication.agreement(tables))
    studies = f"{len(tables)} {number(len(tables), 'study', 'studies')}"
    return (
        f"Of the metrics of {studies}, {inside} lie where the stored seeds say that this "
        "build's do in 95 % of cases."
    )
