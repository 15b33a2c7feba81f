"""Evidence: enough seeds of a study to decide, and the controls, computed seed by seed.

    collect(STUDIES["images"], range(20), Results(RESULTS / "images"))

The number of seeds is stated before (``SEEDS``), nothing is looked at in between, and every control
has as many as the verdict beside which it stands.
"""

import math
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kpnb import __version__
from kpnb._progress import Progress
from kpnb.learning import learning_distance
from kpnb.metrics import Choices, Metrics, six_metrics
from kpnb.points import knowledge_points
from kpnb_book.store import Store
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.controls import random_labels_teacher
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement, distance
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import KEY, NETWORK, SAMPLE, Results, Rows
from kpnb_book.studies.study import Study
from kpnb_book.studies.text import QuestionStudy, TextStudy
from kpnb_book.studies.training import Training

METHOD = 1
"""Raise it when the numbers change though no setting does: stored evidence is stale then."""
SEEDS = range(20)
SHIFTS = range(1, 16)  # the samples whose regions judge a sample, so many places further on
SHARED = ("images", "clouds", "texts", "teacher")  # kinds of runs that all seeds have in common


@dataclass(frozen=True)
class Evidence:
    """What is collected: which study, and which networks of it beside student and baseline.

    name        of the folder of its tables
    kind        the study's class
    overrides   of its laptop profile
    controls    names in ``CONTROLS``
    """

    name: str
    kind: Callable[..., Study]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[str, ...] = ("untrained", "equal-rate")

    def study(self, store: Store | None = None, **overrides: Any) -> Study:
        """The study, at its laptop settings but for ``overrides``."""
        return self.kind("laptop", store=store, **{**self.overrides, **overrides})

    def origin(self, study: Study) -> dict[str, Any]:
        """What the tables belong to, in JSON's types: without the device and the data's folder,
        on which no number depends, and without the seeds.
        """
        settings = asdict(study.settings)
        for name in ("device", "data_root", "seeds"):
            del settings[name]
        return {
            "name": self.name,
            "study": type(study).__name__,
            "settings": settings,
            "method": METHOD,
            "networks": ["baseline", "student", *self.controls],
            "samples": len(study.measured),
        }


def at_equal_rate(study: Study, layer: str, seed: int) -> Training:
    """The student, trained with the baseline's rate."""
    student = study.student(layer, seed)
    return replace(student, schedule=replace(student.schedule, lr=study.settings.lr))


CONTROLS: dict[str, Callable[[Study, str, int], Training]] = {
    "untrained": lambda study, layer, seed: study.student(layer, seed, teacher_epoch=0),
    "equal-rate": at_equal_rate,
    "random-labels": lambda study, layer, seed: study.student(
        layer, seed, teacher=random_labels_teacher(study)
    ),
}

ENOUGH = {"images": 112, "clouds": 112, "sentiment": 256, "questions": 160, "sst2": 512}
"""Measured samples, so many that each metric is defined for at least a hundred."""

_ALL = [
    Evidence("images", ImageStudy, {"analysed": ENOUGH["images"]}),
    Evidence(
        "tiny-imagenet",
        ImageStudy,
        {
            "dataset": "tiny",
            "layers": ("Conv", "FC1", "FC2"),
            "analysed": ENOUGH["images"],
        },
        ("untrained", "random-labels", "equal-rate"),
    ),
    Evidence("pointnet", CloudStudy, {"network": "pointnet", "analysed": ENOUGH["clouds"]}),
    Evidence("pointnet2", CloudStudy, {"network": "pointnet2", "analysed": ENOUGH["clouds"]}),
    Evidence("dgcnn", CloudStudy, {"network": "dgcnn", "analysed": ENOUGH["clouds"]}),
    Evidence("pointconv", CloudStudy, {"network": "pointconv", "analysed": ENOUGH["clouds"]}),
    Evidence("sentiment", TextStudy, {"analysed": ENOUGH["sentiment"]}),
    Evidence("questions", QuestionStudy, {"analysed": ENOUGH["questions"]}),
    Evidence(
        "sst2",
        TextStudy,
        {"dataset": "sst2", "analysed": ENOUGH["sst2"]},
        ("untrained", "random-labels", "equal-rate"),
    ),
]
STUDIES = {each.name: each for each in _ALL}


def networks(evidence: Evidence, study: Study, seed: int) -> Iterator[tuple[str, str, Training]]:
    """Layer, name and training of each network of a ``seed``."""
    for layer in study.settings.layers:
        yield layer, "baseline", study.baseline(seed)
    for layer in study.settings.layers:
        yield layer, "student", study.student(layer, seed)
        for name in evidence.controls:
            yield layer, name, CONTROLS[name](study, layer, seed)


def plan(evidence: Evidence, study: Study, seeds: Iterable[int]) -> Plan:
    """What is trained and measured for the ``seeds``."""
    every = [(t, layer) for seed in seeds for layer, _, t in networks(evidence, study, seed)]
    heads = [study.head(layer, seed) for seed in seeds for layer in study.settings.layers]
    return Plan.measuring(study, every).also(*heads)


def collect(
    evidence: Evidence,
    seeds: Iterable[int],
    results: Results,
    store: Store | None = None,
    **overrides: Any,
) -> list[int]:
    """Compute the ``seeds`` that the tables lack, and write each as soon as it is there.

    Returns them. A seed that was interrupted goes on where it stopped. Raises ``Stale`` when the
    tables belong to other settings.
    """
    store = store or Store()
    study = evidence.study(store, **overrides)
    origin = evidence.origin(study)
    results.check(origin)
    missing = sorted(set(seeds) - set(results.seeds()))
    if missing:
        study.teacher().finish()
    with Progress(len(missing), f"seeds of {evidence.name}", hidden=not missing) as bar:
        for seed in missing:
            start = time.perf_counter()
            with of_one_seed(store, f"{evidence.name}-{seed}") as apart:
                rows = seed_rows(evidence, evidence.study(apart, **overrides), seed)
                results.add(origin, rows)
            bar.step()
            print(f"{evidence.name}: seed {seed}, {time.perf_counter() - start:.0f} s", flush=True)
    return missing


@contextmanager
def of_one_seed(store: Store, name: str) -> Iterator[Store]:
    """A store for the networks of one seed, which is deleted in the end: hundreds of networks with
    their weights of every epoch would fill a disk. Data and teacher are those of ``store``.

    It stays when the work in it was interrupted, so that it can be taken up.
    """
    folder = store.root / "evidence" / name
    folder.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        (store.root / kind).mkdir(exist_ok=True)
        if not (folder / kind).is_symlink():
            (folder / kind).symlink_to(store.root / kind, target_is_directory=True)
    yield Store(folder)
    shutil.rmtree(folder)  # of links to folders only the links


def seed_rows(evidence: Evidence, study: Study, seed: int) -> Rows:
    """The rows of all networks of one ``seed``."""
    # A baseline is measured at all layers, which takes one call.
    Measurement(study, study.baseline(seed), study.settings.layers).finish()
    found = [rows_of(study, *each, seed) for each in networks(evidence, study, seed)]
    return Rows(*(pd.concat(part, ignore_index=True) for part in zip(*found, strict=True)))


def rows_of(
    study: Study, layer: str, name: str, training: Training, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Frames of one network: its own row, those of the samples, that of the cells."""
    measured = Measurement(study, training, (layer,)).values()[layer]
    path = distance(study, training, layer)
    found = six_metrics(
        measured["entropy"],
        study.foreground,
        path,
        Choices(b=study.settings.b),
        background=study.background,
    )
    where = {"seed": seed, "layer": layer, "network": name}
    network = where | scores(study, layer, name, training, seed) | provenance(training)
    network["path"] = path[-1].item()
    network["linearity"] = measured["linearity"][-1].nanmean().item()

    shorter = shorter_path(study, layer, name, seed)
    columns = sample_columns(study, found, measured["entropy"], path, shorter)
    samples = pd.DataFrame({"sample": range(len(found.n_fg))} | columns)
    return (
        pd.DataFrame([network])[[*KEY, *NETWORK]],
        samples.assign(**where)[[*KEY, "sample", *SAMPLE]],
        place_row(study, where, found),
    )


def shorter_path(study: Study, layer: str, name: str, seed: int) -> float | None:
    """Length of the shorter path of student and baseline; None for another network."""
    if name not in ("student", "baseline"):
        return None
    pair = study.student(layer, seed), study.baseline(seed)
    return min(distance(study, training, layer)[-1].item() for training in pair)


def scores(study: Study, layer: str, name: str, training: Training, seed: int) -> dict[str, float]:
    """Held-out accuracy, of a student with its head, and feature error, where there is one."""
    whole = {"student": study.head(layer, seed), "baseline": training}.get(name)
    return {
        "accuracy": math.nan if whole is None else study.scores(whole)["accuracy"],
        "feature_error": training.log[-1].get("test_feature_error", math.nan),
    }


def provenance(training: Training) -> dict[str, Any]:
    """Where a network was trained, with what, when, and how long it took."""
    threads = torch.get_num_threads()
    return {
        "seconds": round(sum(entry.get("seconds", 0.0) for entry in training.log), 1),
        "machine": f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}",
        "versions": f"torch {torch.__version__}, kpnb {__version__}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def sample_columns(
    study: Study, found: Metrics, entropy: Tensor, path: Tensor, shorter: float | None
) -> dict[str, list[float]]:
    """The columns ``SAMPLE``, ``N`` values each, from a network's ``entropy [M + 1, N, n]`` and
    ``path [M + 1]``; ``shorter`` is the length of the shorter path of a pair, if there is one.
    """
    n_fg, n_bg, ratio = place_counts(study, found.points[-1])
    undefined = found.n_fg.isnan()
    values = {
        "n_fg": found.n_fg,
        "n_bg": found.n_bg,
        "lambda": found.ratio,
        "d": found.distance,
        "share": found.distance / path[-1],
        "d_equal": distance_within(study, entropy, path, shorter),
        "rho": found.rho,
        "place_n_fg": n_fg.where(~undefined, torch.nan),
        "place_n_bg": n_bg.where(~undefined, torch.nan),
        "place_lambda": ratio.where(~undefined, torch.nan),
    }
    return {name: values[name].tolist() for name in SAMPLE}


def distance_within(study: Study, entropy: Tensor, path: Tensor, length: float | None) -> Tensor:
    """Weight distance ``[N]`` at which each sample has the most foreground points (Eq. 8), among
    the epochs up to which the network has gone at most ``length``; NaN without one.
    """
    epochs = 0 if length is None else int((path <= length * (1 + 1e-9)).sum())
    if epochs < 2:  # the untrained network alone is no path
        return torch.full((entropy.shape[1],), torch.nan, dtype=path.dtype)
    points = knowledge_points(
        entropy[:epochs], study.foreground, b=study.settings.b, background=study.background
    )
    return learning_distance(points.n_fg, path[:epochs])


def place_counts(study: Study, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a liking for a place alone gives: foreground and background points and lambda, ``[N]``
    each, of the same ``points [N, n]`` judged by the regions of other samples, mean over
    ``SHIFTS``.

    The points stay as they are: the level that decides is still that of the sample's own
    background.
    """
    on, off, ratio = [], [], []
    for shift in SHIFTS:
        foreground, background = study.other_regions(shift)
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


def processor() -> str:
    """What the processor is called."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
