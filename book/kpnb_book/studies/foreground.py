"""What counts as foreground, and what counts as background: other rules for the same entropies.

The paper judges a cell by the object's mask or by its bounding box, whichever a data set has, and
says nothing of cells that an outline crosses. A study goes by its masks. Here are other rules, and
the columns of evidence that say what they would change: ``box_n_fg`` and so on.

Nothing is trained or measured again for them: only the regions differ, and with them the level that
a cell is compared with.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from kpnb.metrics import Choices, Metrics, six_metrics
from kpnb.points import foreground_units
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement, distance
from kpnb_book.studies.training import Training

Regions = tuple[Tensor, Tensor]  # foreground and background, both bool [N, n]


def boxes(masks: Tensor) -> Tensor:
    """The smallest upright rectangle around each of the ``masks``, both bool ``[N, H, W]``."""
    rows, columns = masks.any(2), masks.any(1)
    return _span(rows)[:, :, None] & _span(columns)[:, None, :]


def _span(line: Tensor) -> Tensor:
    """What lies between the first and the last true place of each row, with both, ``[N, L]``."""
    line = line.int()
    begun = line.cummax(1).values
    goes_on = line.flip(1).cummax(1).values.flip(1)
    return (begun & goes_on).bool()


def in_the_box(study: ImageStudy) -> Regions:
    """The rectangle around an object is foreground, as where a data set has bounding boxes alone;
    what the study leaves out belongs to neither.
    """
    inside = foreground_units(study.units.coverage(boxes(study.measured.masks)))
    counts = study.foreground | study.background
    return inside & counts, counts & ~inside


def apart(study: ImageStudy) -> Regions:
    """Background cells that touch a foreground cell, at a side or a corner, belong to neither."""
    foreground, background = study.foreground, study.background
    grid = foreground.reshape(len(foreground), 1, *study.units.shape)
    near = max_pool2d(grid.float(), 3, stride=1, padding=1).flatten(1).bool()
    return foreground, background & ~near


RULES: dict[str, Callable[[ImageStudy], Regions]] = {"box": in_the_box, "apart": apart}


def metrics_by_rule(
    study: ImageStudy, training: Training, layer: str, rule: str | None = None
) -> Metrics:
    """The six metrics of a network by one of the ``RULES``; None: by the study's own regions."""
    foreground, background = RULES[rule](study) if rule else study.regions
    H = Measurement(study, training, (layer,)).values()[layer]["entropy"]
    path = distance(study, training, layer)
    return six_metrics(H, foreground, path, Choices(b=study.settings.b), background=background)


def rule_columns(
    study: ImageStudy, training: Training, layer: str, rules: Collection[str]
) -> dict[str, list[float]]:
    """By column, a value for each sample: what a network's metrics would be by each of the
    ``rules``; ``d`` is the weight distance at m-hat (inside Eq. 8).
    """
    columns: dict[str, list[float]] = {}
    for rule in rules:
        found = metrics_by_rule(study, training, layer, rule)
        values = {
            "n_fg": found.n_fg,
            "n_bg": found.n_bg,
            "lambda": found.ratio,
            "d": found.distance,
            "rho": found.rho,
        }
        columns |= {f"{rule}_{name}": each.tolist() for name, each in values.items()}
    return columns


def ring_share(study: ImageStudy, points: Tensor) -> float:
    """Of all background knowledge points ``[N, n]``, the share that touches the object."""
    background = points & study.background
    far = background & apart(study)[1]
    total = background.sum()
    return float(1 - far.sum() / total) if total else float(torch.nan)
