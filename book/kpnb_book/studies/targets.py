"""What a student is taught: how much its teacher's feature depends on the input at all."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kpnb.features import capture
from kpnb_book.studies.training import Data, Training

BATCH = 128


@torch.no_grad()
def constant_error(training: Training) -> float:
    """The held-out feature error ``sum ||f_T - c||^2 / sum ||f_T||^2`` of the constant ``c`` that
    is the mean of the teacher's feature over what its student learns from: what a student reaches
    that does not look at its input. NaN of a training without such a loss, or without test samples.

    Features of a network of random weights hardly depend on the input: their constant comes near.
    A student has learned the share ``1 - feature_error / constant_error`` of how its target varies.
    """
    objective = training.objective
    if objective.loss != "feature" or len(objective.layers) != 1 or training.test is None:
        return math.nan
    (layer,) = objective.theirs
    teacher = training.teacher_source.make().eval().to(training.device)

    def features(data: Data) -> Iterator[Tensor]:
        for index in torch.arange(len(data)).split(BATCH):
            x, _ = data.batch(index, training.device)
            yield capture(teacher, x, [layer])[layer].double()

    mean = sum(f.sum(0) for f in features(training.data)) / len(training.data)
    sums = [((f - mean).square().sum(), f.square().sum()) for f in features(training.test)]
    error, size = (sum(part).item() for part in zip(*sums, strict=True))
    return error / size
