"""What a study says, as tables: Table 5, accuracies, and the six comparisons that decide."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kpnb.metrics import Choices
from kpnb.stats import Chance, Difference, compare_seeds, holm
from kpnb_book.studies.measure import Scope, every_pair
from kpnb_book.studies.study import TEACHER_SEED, Study
from kpnb_book.studies.training import announce


def table5(study: Study, choices: Choices | None = None, scope: Scope = "all") -> pd.DataFrame:
    """Table 5 of this study: a row for each layer, seed and network, the six metrics and how many
    samples each leaves undefined.
    """
    rows = []
    for (layer, seed), pair in every_pair(study, choices, scope).items():
        for role, metrics in zip(("student", "baseline"), pair, strict=True):
            undefined = {f"undefined {name}": n for name, n in metrics.undefined().items()}
            where = {"layer": layer, "network": role, "seed": seed}
            rows.append({**where, **metrics.row(), **undefined})
    return pd.DataFrame(rows)


def accuracies(study: Study) -> pd.DataFrame:
    """Held-out scores of every network, students after their head was trained."""
    s = study.settings
    heads = [study.head(layer, seed) for seed in s.seeds for layer in s.layers]
    announce([study.teacher(), *map(study.baseline, s.seeds), *heads])
    return pd.DataFrame(list(_scores(study)))


def _scores(study: Study) -> Iterator[dict[str, Any]]:
    teacher = {"network": "teacher", "layer": "", "seed": TEACHER_SEED}
    yield {**teacher, **study.scores(study.teacher())}
    for seed in study.settings.seeds:
        baseline = {"network": "baseline", "layer": "", "seed": seed}
        yield {**baseline, **study.scores(study.baseline(seed))}
        for layer in study.settings.layers:
            student = {"network": "student", "layer": layer, "seed": seed}
            yield {**student, **study.scores(study.head(layer, seed))}


def overall(
    study: Study,
    chance: Chance = "seeds",
    choices: Choices | None = None,
    scope: Scope = "all",
) -> dict[str, Difference]:
    """Student minus baseline in every metric, averaged over the layers: the six comparisons that
    decide.

    Interval and test allow for other images and other seeds, and the tests are corrected for being
    six.
    """
    found, s = every_pair(study, choices, scope), study.settings
    return holm(compare_seeds([[found[layer, n] for layer in s.layers] for n in s.seeds], chance))
