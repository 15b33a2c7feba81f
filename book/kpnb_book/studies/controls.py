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

import pandas as pd
import torch
from scipy.stats import binomtest

from kpnb.metrics import BETTER, Choices, Metrics, six_metrics
from kpnb.stats import Difference
from kpnb_book.studies.measure import Scope, distance, entropies, six
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training

SHUFFLED = 4  # networks that learn labels in random order
PAIRED = range(2)  # seeds of students, with a teacher and with an untrained one, and of baselines


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
    """How many comparisons without any effect are called "shows" or "opposite", as ``share``.

    The interval takes the comparisons for independent; those that share networks are not, so it is
    too narrow.
    """
    wrong = [pair[metric].verdict in ("shows", "opposite") for pair in nulls for metric in metrics]
    return proportion(sum(wrong), len(wrong))


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
