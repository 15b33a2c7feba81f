"""What a difference between student and baseline has to be compared with: controls without effect,
and other choices.

Each control is defined by what must not show in it:

* networks that differ in their seed only (baselines, or networks that learn labels in random
  order): any difference;
* masks of other images (``shuffled_masks``): a foreground treated otherwise than the background;
* the student of an untrained teacher (``Study.student(..., teacher_epoch=0)``), which learns a
  random function: what it has in common with a real student, against the baseline, is no trace of
  the teacher's knowledge.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import get_args

import pandas as pd
import torch
from scipy.stats import binomtest

from kpnb.metrics import BETTER, Choices, Metrics, six_metrics
from kpnb.stats import Difference
from kpnb_book.studies.study import Scope, Study
from kpnb_book.studies.training import Training

SHUFFLED = 4  # networks that learn labels in random order


def shuffled_labels(study: Study, seed: int = 0) -> Study:
    """The same measured samples, for networks that learn the share with its labels in random
    order.
    """
    other, share = copy.copy(study), study.share
    order = torch.randperm(len(share), generator=torch.Generator().manual_seed(seed))
    config = share.config | {"labels": f"shuffled with seed {seed}"}
    other.__dict__ |= {
        "measured": study.measured,
        "share": replace(share, labels=share.labels[order], config=config),
    }
    return other


def networks(study: Study, seeds: int) -> Iterator[tuple[Training, str]]:
    """What the controls train, and measure at the first layer, for ``kpnb_book.studies.estimate``;
    ``seeds`` baselines.
    """
    layer = study.settings.layers[0]
    yield from ((study.baseline(seed), layer) for seed in range(seeds))
    yield from ((shuffled_labels(study, n).baseline(n), layer) for n in range(SHUFFLED))
    for seed, epoch in product(study.settings.seeds, (-1, 0)):
        yield study.student(layer, seed, teacher_epoch=epoch), layer
        yield study.baseline(seed), layer


def shuffled_masks(study: Study, training: Training, layer: str, shift: int = 1) -> Metrics:
    """A network's metrics when each measured sample is judged with the mask of the one ``shift``
    places further on.
    """
    masks, path = study.foreground.roll(shift, 0), study.distance(training, layer)
    return six_metrics(
        study.entropies(training, layer)["entropy"].cpu(), masks, path, Choices(study.settings.b)
    )


def splits(networks: Sequence[Metrics]) -> Iterator[list[list[tuple[Metrics, Metrics]]]]:
    """Every way to call half of the ``networks`` students and the other half baselines, for
    ``compare_seeds``.

    Of an odd number the last is left out.
    """
    half = len(networks) // 2
    for chosen in combinations(range(2 * half), half):
        others = [i for i in range(2 * half) if i not in chosen]
        if 0 in chosen:  # or it is the same split with the roles exchanged
            yield [[(networks[i], networks[j])] for i, j in zip(chosen, others, strict=True)]


def false_positives(
    nulls: Iterable[Mapping[str, Difference]], metrics: Iterable[str] = tuple(BETTER)
) -> dict[str, float]:
    """How many comparisons that should be "open" are not: ``count`` of ``total``, ``rate`` and its
    95 % interval.

    The interval takes the comparisons for independent; those that share networks are not, so it is
    too narrow.
    """
    words = [pair[metric].verdict for pair in nulls for metric in metrics]
    wrong = len(words) - Counter(words)["open"]
    interval = binomtest(wrong, len(words)).proportion_ci()
    return {
        "count": wrong,
        "total": len(words),
        "rate": wrong / len(words),
        "low": interval.low,
        "high": interval.high,
    }


def sensitivity(study: Study) -> pd.DataFrame:
    """Student minus baseline, means over layers and seeds, under every combination of what text and
    release choose.

    Columns: the fields of ``Choices`` that differ, the scope of the weight distance, and the six
    metrics. The first row is the text's.
    """
    options = {
        "level": ("image", "dataset"),
        "first": (1, 0),
        "empty": ("nan", "zero"),
        "filtered": (False, True),
    }
    rows = []
    for layer, seed in product(study.settings.layers, study.settings.seeds):
        for role, network in (
            ("student", study.student(layer, seed)),
            ("baseline", study.baseline(seed)),
        ):
            entropy = study.entropies(network, layer)["entropy"].cpu()
            paths = {scope: study.distance(network, layer, scope) for scope in get_args(Scope)}
            for *values, scope in product(*options.values(), paths):
                chosen = dict(zip(options, values, strict=True))
                found = six_metrics(
                    entropy, study.foreground, paths[scope], Choices(study.settings.b, **chosen)
                )
                rows.append({"role": role, **chosen, "scope": scope, **found.row()})
    means = pd.DataFrame(rows).groupby(["role", *options, "scope"], sort=False).mean()
    return (means.loc["student"] - means.loc["baseline"]).reset_index()
