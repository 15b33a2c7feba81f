"""What a study says, as tables: Table 5, accuracies, the six comparisons that decide, and what
other choices and other noise would give.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import pandas as pd

from kpnb.metrics import Choices, agreement
from kpnb.stats import Difference, compare_seeds, holm
from kpnb_book.studies.measure import Scope, distance, entropies, every_pair
from kpnb_book.studies.study import TEACHER_SEED, Study
from kpnb_book.studies.training import Training, announce


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


def overall(study: Study) -> dict[str, Difference]:
    """Student minus baseline in every metric, averaged over the layers: the six comparisons that
    decide.

    Interval and test allow for other images and other seeds, and the tests are corrected for being
    six.
    """
    found, s = every_pair(study), study.settings
    return holm(compare_seeds([[found[layer, n] for layer in s.layers] for n in s.seeds], "seeds"))


@dataclass(frozen=True)
class Factors:
    """What a weight distance is made of.

    length   how far the student's weights travel in all, in proportion to the baseline's; mean over
             layers and seeds
    share    student minus baseline in the share of its own path at which a sample has the most
             foreground points: its mean ("d_mean") and variance ("d_var"), tests corrected for two
    """

    length: float
    share: Mapping[str, Difference]


def factors(study: Study) -> Factors:
    """The factors of D_mean and D_var, for all layers and seeds of a study."""
    s, ratios, pairs = study.settings, [], {}
    for (layer, seed), found in every_pair(study).items():
        networks = study.student(layer, seed), study.baseline(seed)
        whole = [distance(study, network, layer)[-1] for network in networks]
        ratios.append(float(whole[0] / whole[1]))
        pairs[layer, seed] = tuple(
            replace(metrics, distance=metrics.distance / length)
            for metrics, length in zip(found, whole, strict=True)
        )
    shares = compare_seeds([[pairs[layer, seed] for layer in s.layers] for seed in s.seeds])
    speed = {metric: shares[metric] for metric in ("d_mean", "d_var")}
    return Factors(sum(ratios) / len(ratios), holm(speed))


def by_scope(study: Study) -> pd.DataFrame:
    """Student minus baseline in D_mean and D_var, means over layers and seeds, a row for each path
    of the weights (``Scope``); "layer steps" with the released procedure's choices, to which it
    belongs.
    """
    gaps = {}
    for scope in get_args(Scope):
        choices = Choices.released(study.settings.b) if scope == "layer steps" else None
        found = table5(study, scope=scope, choices=choices)
        means = found.groupby("network")[["d_mean", "d_var"]].mean()
        gaps[scope] = means.loc["student"] - means.loc["baseline"]
    return pd.DataFrame(gaps).T


def by_choice(study: Study) -> pd.DataFrame:
    """Mean rho of students and of baselines: by the paper's text, with the untrained network as an
    epoch, and by the released procedure.
    """
    b = study.settings.b
    choices = {"text": Choices(b), "epoch 0": Choices(b, first=0), "released": Choices.released(b)}
    means = {
        title: table5(study, choices=choice).groupby("network")["rho"].mean()
        for title, choice in choices.items()
    }
    return pd.DataFrame(means).T


def repeated(study: Study, networks: Mapping[str, Training], layer: str) -> pd.DataFrame:
    """The last checkpoint of each of the ``networks`` estimated twice, with other noise: mean
    difference of the entropies ("nats") and overlap of the knowledge points ("IoU").
    """
    rows = []
    for name, network in networks.items():
        once, again = (
            entropies(study, network, layer, [-1], noise_seed=seed)["entropy"][0].cpu()
            for seed in (0, 100)
        )
        error, iou = agreement(once, again, study.foreground, study.settings.b, study.background)
        rows.append({"network": name, "nats": error, "IoU": iou})
    return pd.DataFrame(rows)


def linearity(study: Study, networks: Mapping[str, Training], layer: str) -> pd.DataFrame:
    """How linear each of the ``networks`` is within the perturbation, before and after training:
    median and largest linearity of the samples, and the mean standard error of an entropy, nats.
    """
    rows = []
    for name, network in networks.items():
        for epoch in (0, network.epochs):
            found = entropies(study, network, layer, [epoch])
            ratio, error = found["linearity"][0], found["error"][0].nanmean()
            row = {"network": name, "epoch": epoch, "median": float(ratio.nanmedian())}
            row["largest"] = float(ratio.nan_to_num().max())
            rows.append({**row, "error of H": float(error)})
    return pd.DataFrame(rows)
