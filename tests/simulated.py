"""Stored tables with known effects, in the columns of ``book/results``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kpnb_book.studies.evidence import PROFILE, STUDIES
from kpnb_book.studies.results import KEY, Results, Rows

LEVELS = {"n_fg": 25.0, "n_bg": 9.0, "lambda": 0.7, "d": 0.4, "share": 0.35, "rho": 0.5}
SPREADS = {"n_fg": 5.0, "n_bg": 3.0, "lambda": 0.1, "d": 0.1, "share": 0.1, "rho": 0.1}
"""Standard deviation over samples, and of what is peculiar to one network and sample; a quarter of
it over seeds.
"""


def tables(
    effects: Mapping[str, Mapping[str, float]] | None = None,
    seeds: int = 6,
    samples: int = 30,
    layers: tuple[str, ...] = ("Conv", "FC1"),
    first: int = 0,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``samples`` and ``networks`` of a study.

    effects   by network, what is added to a column's level; the networks are these and a baseline
    """
    # Samples are the same whatever the seeds, as they are in a study.
    of_samples = np.random.default_rng(99).standard_normal((len(LEVELS), 1000))[:, :samples]
    rng = np.random.default_rng(seed)
    effects = {"baseline": {}} | {**(effects or {"student": {}})}
    parts, networks = [], []
    for network in range(first, first + seeds):
        for role, added in effects.items():
            by_seed = rng.standard_normal((len(LEVELS), 1)) / 4
            for layer in layers:
                noise = rng.standard_normal((len(LEVELS), samples))
                where = {"seed": network, "layer": layer, "network": role}
                found = dict(zip(LEVELS, of_samples + by_seed + noise, strict=True))
                columns = {
                    name: LEVELS[name] + added.get(name, 0) + SPREADS[name] * found[name]
                    for name in LEVELS
                }
                place = {
                    f"place_{name}": columns[name] * 0.6 for name in ("n_fg", "n_bg", "lambda")
                }
                path = columns["d"].mean() / columns["share"].mean()
                columns["d_equal"] = columns["d"]
                parts.append(pd.DataFrame({**where, "sample": range(samples), **columns, **place}))
                error = np.nan if role == "baseline" else 0.3
                networks.append({**where, "accuracy": 0.4, "feature_error": error, "path": path})
    return pd.concat(parts, ignore_index=True), pd.DataFrame(networks)


def write(
    folder: Path,
    study: str = "ImageStudy",
    effects: Mapping[str, Mapping[str, float]] | None = None,
    **options: Any,
) -> None:
    """Stored tables of a ``study`` (its class's name) in ``folder``, which has its name; of one of
    ``STUDIES``, those of today's settings.
    """
    found, networks = tables(effects, **options)
    places = networks[KEY]
    if study == "ImageStudy":
        rng = np.random.default_rng(0)
        counts = rng.integers(0, found["sample"].nunique(), (len(places), 16))
        cells = pd.DataFrame(counts, columns=[f"cell{number}" for number in range(16)])
        places = pd.concat([places, cells], axis="columns")
    else:
        places = places.iloc[:0]
    Results(folder).add(origin_of(folder.name, study), Rows(networks, found, places))


def origin_of(name: str, study: str) -> dict[str, Any]:
    """What tables of today belong to, as far as can be said without data."""
    evidence = STUDIES.get(name)
    if evidence is None or evidence.kind.__name__ != study:
        return {"name": name, "study": study}
    return evidence.stated(evidence.kind.resolve(PROFILE, **evidence.overrides))
