"""The rows of one network in the tables of evidence: what it learned, its metrics sample by sample,
and where they come from.
"""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kpnb import __version__
from kpnb.learning import learning_distance
from kpnb.metrics import Metrics
from kpnb_book.studies import measure
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement, artefact, distance
from kpnb_book.studies.results import KEY, NETWORK, SAMPLE, Rows
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training

OTHERS = 15  # samples whose regions judge a sample


def shifts(samples: int) -> range:
    """How many places further on the ``OTHERS`` lie, among so many samples; all others of a few."""
    return range(1, min(OTHERS + 1, samples))


@dataclass(frozen=True)
class OneNetwork:
    """A network whose rows are written, and what it is of the ``study``.

    whole   the study whose first measured samples are those of ``study``, for the regions of other
            samples; None: the study itself
    """

    study: Study
    layer: str
    role: str
    training: Training
    seed: int
    whole: Study | None = None


def rows_of(one: OneNetwork) -> Rows:
    """Those of one network: its own row, those of the samples, that of the cells."""
    study, layer, training = one.study, one.layer, one.training
    measured = Measurement(study, training, (layer,)).values()[layer]
    path = distance(study, training, layer)
    found = measure.six(study, measured["entropy"], path)
    where = {"seed": one.seed, "layer": layer, "network": one.role}
    network = where | scores(one)
    network |= addresses(study, layer, training) | provenance(study, layer, training)
    network["path"] = path[-1].item()
    network["linearity"] = measured["linearity"][-1].nanmean().item()

    columns = sample_columns(study, found, measured["entropy"], path, shorter_path(one))
    columns |= place_columns(one.whole or study, found)
    samples = pd.DataFrame({"sample": range(len(found.n_fg))} | columns)
    return Rows(
        pd.DataFrame([network])[[*KEY, *NETWORK]],
        samples.assign(**where)[[*KEY, "sample", *SAMPLE]],
        place_row(study, where, found),
    )


def without_numbers(one: OneNetwork, why: str) -> Rows:
    """The rows of a network that has nothing to measure: its own, which says ``why``."""
    network = {"seed": one.seed, "layer": one.layer, "network": one.role, "diverged": why}
    network |= addresses(one.study, one.layer, one.training) | here(one.study.settings.device)
    none = pd.DataFrame(columns=KEY)
    return Rows(pd.DataFrame([dict.fromkeys(NETWORK, math.nan) | network]), none, none)


def shorter_path(one: OneNetwork) -> float | None:
    """Length of the shorter path of student and baseline; None for another network, and where the
    student's training diverged.
    """
    if one.role not in ("student", "baseline"):
        return None
    pair = one.study.student(one.layer, one.seed), one.study.baseline(one.seed)
    try:
        return min(distance(one.study, training, one.layer)[-1].item() for training in pair)
    except FloatingPointError:
        return None


def scores(one: OneNetwork) -> dict[str, float]:
    """Held-out accuracy, of a student with its head, and feature error, where there is one."""
    accuracy = math.nan
    if one.role == "student":
        accuracy = one.study.scores(one.study.head(one.layer, one.seed))["accuracy"]
    elif one.role == "baseline":
        accuracy = one.study.scores(one.training)["accuracy"]
    error = one.training.log[-1].get("test_feature_error", math.nan)
    return {"accuracy": accuracy, "feature_error": error}


def sample_columns(
    study: Study, found: Metrics, entropy: Tensor, path: Tensor, shorter: float | None
) -> dict[str, list[float]]:
    """The columns of ``SAMPLE`` that a sample's own regions give, ``N`` values each, from a
    network's ``entropy [M + 1, N, n]`` and ``path [M + 1]``; ``shorter`` is the length of the
    shorter path of a pair, if there is one.
    """
    values = {
        "n_fg": found.n_fg,
        "n_bg": found.n_bg,
        "lambda": found.ratio,
        "d": found.distance,
        "share": found.distance / path[-1],
        "d_equal": distance_within(study, entropy, path, shorter),
        "rho": found.rho,
    }
    return {name: value.tolist() for name, value in values.items()}


def place_columns(study: Study, found: Metrics) -> dict[str, list[float]]:
    """The columns of ``SAMPLE`` that the regions of other samples give; undefined where the
    sample's own numbers are.
    """
    undefined = found.n_fg.isnan()
    names = ("place_n_fg", "place_n_bg", "place_lambda")
    counts = place_counts(study, found.points[-1])
    return {
        name: count.where(~undefined, torch.nan).tolist()
        for name, count in zip(names, counts, strict=True)
    }


def distance_within(study: Study, entropy: Tensor, path: Tensor, length: float | None) -> Tensor:
    """Weight distance ``[N]`` at which each sample has the most foreground points (Eq. 8), among
    the epochs up to which the network has gone at most ``length``; NaN without one.
    """
    epochs = 0 if length is None else int((path <= length * (1 + 1e-9)).sum())
    if epochs < 2:  # the untrained network alone is no path
        return torch.full((entropy.shape[1],), torch.nan, dtype=path.dtype)
    return learning_distance(measure.points(study, entropy[:epochs]).n_fg, path[:epochs])


def place_counts(study: Study, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a liking for a place alone gives: foreground and background points and lambda, ``[N]``
    each, of the same ``points [N, n]`` judged by the regions of ``OTHERS``, mean over these; they
    may be those of the first measured samples only.

    The points stay as they are: the level that decides is still that of the sample's own
    background.
    """
    on, off, ratio = [], [], []
    for shift in shifts(len(study.foreground)):
        foreground, background = (each[: len(points)] for each in study.other_regions(shift))
        inside = (points & foreground).sum(-1).double()
        outside = (points & background).sum(-1).double()
        on.append(inside)
        off.append(outside)
        ratio.append(inside / (inside + outside))
    return tuple(torch.stack(part).nanmean(0) for part in (on, off, ratio))


def place_row(study: Study, where: Mapping[str, Any], found: Metrics) -> pd.DataFrame:
    """In how many samples each cell of a grid is a knowledge point; no row for other units."""
    if not isinstance(study, ImageStudy):
        return pd.DataFrame(columns=KEY)
    counts = found.points[-1].sum(0).tolist()
    cells = {f"cell{number}": count for number, count in enumerate(counts)}
    return pd.DataFrame([{**where, **cells}])


# ------------------------------------------------------------------------------- where it is from


def addresses(study: Study, layer: str, training: Training) -> dict[str, str]:
    """What determines a network and its entropies, as the store addresses them."""
    measured = Measurement(study, training, (layer,)).run(layer)
    return {"training": training.address, "measurement": measured.address}


def provenance(study: Study, layer: str, training: Training) -> dict[str, Any]:
    """Where a network was trained and measured, with what, when, and how long it took."""
    measured = Measurement(study, training, (layer,))
    seconds = sum(entry.get("seconds", 0.0) for entry in training.log)
    for epoch in measured.numbers:
        sidecar = measured.run(layer).path / f"{artefact(epoch)}.json"
        seconds += json.loads(sidecar.read_text("utf8"))["seconds"]
    return {"seconds": round(seconds, 1)} | here(study.settings.device)


def here(device: str) -> dict[str, str]:
    """With what something is computed, and when."""
    return {
        "machine": machine(device),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def versions() -> str:
    """Of the packages on which the numbers depend."""
    return f"torch {torch.__version__}, kpnb {__version__}"


def machine(device: str = "cpu") -> str:
    """What the processor is called, and how many threads it has; before it the GPU, if one is
    used.
    """
    threads = torch.get_num_threads()
    found = f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}"
    is_gpu = torch.device(device).type == "cuda"
    return f"{torch.cuda.get_device_name(device)}, {found}" if is_gpu else found


def processor() -> str:
    """What the processor is called."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
