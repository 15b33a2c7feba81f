"""What a difference between student and baseline has to be compared with: controls without effect,
and other choices.

Each control is defined by what must not show in it:

* networks that differ in their seed only (baselines, or networks that learn labels in random
  order): any difference;
* masks of other images (``shuffled_masks``): a foreground treated otherwise than the background;
* the student of an untrained teacher (``Study.untrained_student``), whose target is a random
  function: what it has in common with a real student, against the baseline, is no trace of the
  teacher's knowledge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from kpnb.metrics import BETTER, NAMES, Choices, Metrics, six_metrics
from kpnb.stats import Difference, holm, judge, paired
from kpnb_book.studies.measure import Scope, distance, entropies, six
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training
from kpnb_book.studies.verdicts import SIX, seeds_of, values

SHUFFLED = 4  # networks that learn labels in random order
PAIRED = range(2)  # seeds of students, with a teacher and with an untrained one, and of baselines
NULL = ("baseline", "student")
"""Roles whose stored trainings differ in nothing but their seed, each among themselves."""


def shuffled_baseline(study: Study, seed: int = 0) -> Training:
    """A baseline that learns the share with its labels in random order."""
    shuffled = random_labels(study.share, seed)
    return study.classifier(study.spec(seed), shuffled, study.baseline(seed).schedule)


def random_labels_teacher(study: Study) -> Training:
    """A teacher that learns its samples with their labels in random order, and so nothing of the
    classes. It takes more epochs than the teacher: there is nothing to learn but each sample.
    """
    shuffled, teacher = random_labels(study.train, seed=0), study.teacher()
    schedule = replace(teacher.schedule, epochs=study.MEMORISING)
    found = study.classifier(study.teacher_spec(), shuffled, schedule, kind="teacher")
    found.label = "teacher of labels in random order"
    return found


def random_labels(data: Any, seed: int) -> Any:
    """The samples with their labels in random order."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    config = {**data.config, "labels": f"shuffled with seed {seed}"}
    return replace(data, labels=data.labels[order], config=config)


def controls_plan(study: Study, baselines: int) -> Plan:
    """What the controls train, and measure at the first layer; so many ``baselines``."""
    layer = study.settings.layers[0]
    networks = [study.baseline(seed) for seed in {*range(baselines), *PAIRED}]
    networks += [shuffled_baseline(study, seed) for seed in range(SHUFFLED)]
    for seed in PAIRED:
        networks += [study.student(layer, seed), study.untrained_student(layer, seed)]
    return Plan.measuring(study, [(network, layer) for network in networks])


def shuffled_masks(study: Study, training: Training, layer: str, shift: int = 1) -> Metrics:
    """A network's metrics when each measured sample is judged with the mask of the one ``shift``
    places further on.
    """
    masks, others = study.other_regions(shift)
    values, path = entropies(study, training, layer)["entropy"], distance(study, training, layer)
    return six_metrics(values, masks, path, Choices(study.settings.b), background=others)


def splits(networks: Sequence[Metrics]) -> Iterator[list[list[tuple[Metrics, Metrics]]]]:
    """Every way to call half of the ``networks`` students and the other half baselines, for
    ``compare_seeds``.

    Of an odd number the last is left out.
    """
    half = len(networks) // 2
    for chosen in combinations(range(2 * half), half):
        others = [i for i in range(2 * half) if i not in chosen]
        if 0 in chosen:  # otherwise it is the same split with the roles exchanged
            yield [[(networks[i], networks[j])] for i, j in zip(chosen, others, strict=True)]


def false_positives(
    nulls: Iterable[Mapping[str, Difference]], metrics: Iterable[str] = tuple(BETTER)
) -> dict[str, float]:
    """How many comparisons without any effect are called "shows" or "opposite", as
    ``proportion``.

    The interval takes the comparisons for independent; those that share networks are not, so it is
    too narrow.
    """
    wrong = [_claims(pair[metric]) for pair in nulls for metric in metrics]
    return proportion(sum(wrong), len(wrong))


def _claims(d: Difference) -> bool:
    return d.verdict in ("shows", "opposite")


def false_positives_of_seeds(
    samples: pd.DataFrame, draws: int = 200
) -> dict[str, dict[str, float]]:
    """How often the whole rule finds what is not there in stored ``samples``, over so many
    ``draws`` of ``null_gaps``.

    Returns ``proportion`` by what is counted: "comparisons" of one metric that are called "shows"
    or "opposite", and "families" of six with one at least. Draws share their networks: the interval
    is that of the draws, and tells nothing of other networks.
    """
    rng, networks = np.random.default_rng(0), networks_of(samples)
    wrong = []
    for _ in range(draws):
        found = holm(judge(null_gaps(networks, rng)))
        wrong.append([_claims(d) for d in found.values()])
    claims = np.array(wrong)
    return {
        "comparisons": proportion(int(claims.sum()), claims.size),
        "families": proportion(int(claims.any(1).sum()), draws),
    }


def networks_of(samples: pd.DataFrame) -> list[dict[str, np.ndarray]]:
    """For each role in ``NULL`` the values ``[S, L, N]`` of its networks by metric."""
    return [values(samples, role, SIX, seeds_of(samples, role)) for role in NULL]


def null_gaps(
    networks: Sequence[Mapping[str, np.ndarray]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Differences ``[S, L, N]`` between networks that differ in their seed only, by metric.

    networks   ``networks_of``; those of one role are paired at random, each in one pair (of an odd
               number one is left out), and either may be called the student

    Two roles of twenty seeds give twenty differences.
    """
    parts = []
    for role in networks:
        order = rng.permutation(len(role["n_fg"]))
        half = len(order) // 2
        one, other = order[:half], order[half : 2 * half]
        sides = ({name: each[side] for name, each in role.items()} for side in (one, other))
        parts.append(paired(*sides))
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in NAMES}


def proportion(hits: int, total: int) -> dict[str, float]:
    """``count`` of ``total``, their ``rate`` and its 95 % interval (Clopper and Pearson)."""
    found = binomtest(hits, total).proportion_ci()
    rate = {"count": hits, "total": total, "rate": hits / total}
    return rate | {"low": found.low, "high": found.high}


OPTIONS = {  # of ``Choices``, the text's first
    "level": ("image", "dataset"),
    "first": (1, 0),
    "empty": ("nan", "zero"),
    "filtered": (False, True),
}


def sensitivity(study: Study) -> pd.DataFrame:
    """Student minus baseline, means over layers and seeds, under every combination of what text and
    release choose.

    Columns: the fields of ``Choices`` that differ, the scope of the weight distance, and the six
    metrics. The first row is the text's.
    """
    rows = []
    for layer, seed in product(study.settings.layers, study.settings.seeds):
        networks = {"student": study.student(layer, seed), "baseline": study.baseline(seed)}
        for role, network in networks.items():
            rows += [{"role": role, **row} for row in _every_choice(study, network, layer)]
    means = pd.DataFrame(rows).groupby(["role", *OPTIONS, "scope"], sort=False).mean()
    return (means.loc["student"] - means.loc["baseline"]).reset_index()


def _every_choice(study: Study, network: Training, layer: str) -> Iterator[dict[str, Any]]:
    """The metrics of one network under every choice."""
    values = entropies(study, network, layer)["entropy"]
    paths = {scope: distance(study, network, layer, scope) for scope in get_args(Scope)}
    for chosen in product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, chosen, strict=True))
        choices = Choices(study.settings.b, **options)
        for scope, path in paths.items():
            yield {**options, "scope": scope, **six(study, values, path, choices).row()}
