"""Stored evidence, computed again: whether the numbers are still what the code gives.

    print(again(STUDIES["images"], Results(RESULTS / "images")))

One seed, one layer and the first samples are enough to notice that a number was changed, or that
the code gives another.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kpnb_book.store import Store
from kpnb_book.studies.collecting import check, of_one_seed, seed_rows
from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.replication import prediction_interval
from kpnb_book.studies.results import KEY, Results, Rows, as_text
from kpnb_book.studies.rows import machine, versions
from kpnb_book.studies.study import Study

SAMPLES = 32  # the first of the measured ones
COLUMNS = ("accuracy", "feature_error", "path", "training")  # columns that no sample enters
LEVEL = 0.01  # how often a study that agrees is said not to, on another machine


@dataclass(frozen=True)
class Again:
    """What came of it: which ``seed`` and ``layer``, whether it had to agree to the digit, how many
    ``numbers`` were compared, and which ``differing``, in words.
    """

    name: str
    seed: int
    layer: str
    exact: bool
    numbers: int
    differing: tuple[str, ...]

    def __str__(self) -> str:
        how = "to the digit" if self.exact else "within the spread of the seeds"
        what = f"{self.name}, seed {self.seed}, {self.layer}: {self.numbers:,} numbers"
        if not self.differing:
            return f"{what} agree {how}"
        shown = [f"  {each}" for each in self.differing[:10]]
        more = len(self.differing) - len(shown)
        rest = [f"  and {more} more"] if more else []
        return "\n".join([f"{what}, {len(self.differing)} do not agree {how}:", *shown, *rest])


def again(
    evidence: Evidence,
    results: Results,
    store: Store | None = None,
    *,
    seed: int | None = None,
    samples: int = SAMPLES,
    **overrides: Any,
) -> Again:
    """Compute the networks of one ``seed`` (None: the lowest) that stand for all, student and
    baseline, again at the first layer, and compare them with the tables.

    With the versions and the machine of the tables every number has to be the same; else the means
    over the samples have to lie where the other seeds say that a further one does. The teacher is
    that of ``store``, and trained when it has none. Raises ``Stale`` as ``collect`` does, and
    ValueError when the tables lack the seed.
    """
    store = store or Store()
    whole = evidence.study(store, **overrides)
    check(evidence, whole, results)
    known = results.seeds()
    seed = known[0] if seed is None and known else seed
    if seed not in known:
        raise ValueError(f"the tables of {evidence.name} have no seed {seed}, but {known}")

    layer = whole.settings.layers[0]
    with of_one_seed(store, f"check-{evidence.name}-{seed}", anew=True) as apart:
        if apart is None:
            raise ValueError(f"another process checks seed {seed} of {evidence.name}")
        study = first_samples(
            evidence.study(apart, **{**overrides, "layers": (layer,)}), whole, samples
        )
        found = seed_rows(evidence, study, seed, evidence.checked, whole)
    stored = of_layer(results.read(), layer, len(study.measured), evidence.checked)
    here = (machine(study.settings.device), versions())
    exact = had(stored, seed) == {here}
    differing, numbers = (compared if exact else predicted_means)(stored, found)
    return Again(evidence.name, seed, layer, exact, numbers, tuple(differing))


def first_samples(study: Study, whole: Study, count: int) -> Study:
    """``study``, of which the first measured samples of ``whole`` are measured; it is changed."""
    study.train, study.share, study.test = whole.train, whole.share, whole.test
    study.measured = whole.measured.subset(range(min(count, len(whole.measured))))
    return study


def of_layer(rows: Rows, layer: str, samples: int, roles: Collection[str]) -> Rows:
    """The rows of some networks at one layer, and of the first samples."""
    kept = rows.each(lambda frame: frame[(frame["layer"] == layer) & frame["network"].isin(roles)])
    return replace(kept, samples=kept.samples[kept.samples["sample"] < samples])


def had(stored: Rows, seed: int) -> set[tuple[str, str]]:
    """Machine and versions that computed the rows of a seed."""
    mine = stored.networks[stored.networks["seed"] == seed]
    return set(zip(mine["machine"], mine["versions"], strict=True))


def compared(stored: Rows, found: Rows) -> tuple[list[str], int]:
    """Numbers that are not written as they are stored, and how many were compared."""
    pairs = (
        (stored.networks, found.networks, KEY, COLUMNS),
        (stored.samples, found.samples, [*KEY, "sample"], of_sample(found)),
    )
    differing, numbers = [], 0
    for before, now, key, columns in pairs:
        ours = as_text(now).set_index(key)[list(columns)]
        theirs = as_text(before).set_index(key)[list(columns)].reindex(ours.index)
        numbers += ours.size
        for where, row in ours[ours.ne(theirs).any(axis=1)].iterrows():
            for column in columns:
                if row[column] != theirs.at[where, column]:
                    was = theirs.at[where, column] or "nothing"
                    differing.append(
                        f"{named(where)}: {column} is stored as {was}, is {row[column]}"
                    )
    return differing, numbers


def of_sample(rows: Rows) -> list[str]:
    """Columns of the samples: ``SAMPLE``, and those that a study has besides."""
    return [name for name in rows.samples if name not in (*KEY, "sample")]


def named(where: tuple[Any, ...]) -> str:
    """A row's key in words."""
    _, layer, role, *sample = where
    return f"{role} at {layer}" + "".join(f", sample {each}" for each in sample)


def predicted_means(stored: Rows, found: Rows) -> tuple[list[str], int]:
    """Means over samples that lie where the seeds of the tables do not predict them, and how many
    were compared. All together are wrong in ``LEVEL`` of cases.
    """
    every = list(_means(stored, found))
    differing = []
    for what, known, value in every:
        low, high = prediction_interval(known, 1, LEVEL / len(every))
        if not low <= value <= high:
            differing.append(f"{what} is {value:.4g}, the seeds say {low:.4g} to {high:.4g}")
    return differing, len(every)


def _means(stored: Rows, found: Rows) -> Iterator[tuple[str, pd.Series, float]]:
    """A mean's name, what it is in each of the other stored seeds, and what it is now."""
    columns = {
        "networks": [name for name in COLUMNS if name != "training"],
        "samples": of_sample(found),
    }
    for part, names in columns.items():
        before, now = getattr(stored, part), getattr(found, part)
        before = before[~before["seed"].isin(now["seed"])]
        for role in found.networks["network"].unique():
            one, other = (frame[frame["network"] == role] for frame in (before, now))
            for name in names:
                known, value = one.groupby("seed")[name].mean().dropna(), other[name].mean()
                if len(known) > 1 and pd.notna(value):
                    yield f"{role}: {name}", known, value
