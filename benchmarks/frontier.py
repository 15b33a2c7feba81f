"""What a closed form costs and how exact it is: from the fewest directions to the exact Jacobian,
with the stochastic learner beside it.

Each setting of ``ClosedForm`` is measured on networks late and early in their training, several
times with other noise and probes, in turns. Errors are mean absolute ones of H against the exact
Jacobian, and the IoU is of knowledge points with its. Times are CPU time of a call, for a sample.
The learner runs image by image, on few images; there the closed form is judged on the same ones
too. ``quick`` takes the smoke profile's networks, whose numbers mean little.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

import kpnb
from benchmarks.__main__ import machine
from benchmarks.solvers import EXACT, WAYS, one_by_one
from kpnb.metrics import agreement
from kpnb_book.figures.frontier import draw
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.study import Study
from kpnb_book.studies.text import TextStudy
from kpnb_book.studies.training import Training

NAMED = {
    "draft": kpnb.ClosedForm.draft(),
    "default": kpnb.ClosedForm(),
    "careful": kpnb.ClosedForm.careful(),
}
SETTINGS = (
    kpnb.ClosedForm(rank=1, probes=2, noise=1),
    kpnb.ClosedForm(rank=2, probes=2, noise=1),
    kpnb.ClosedForm(rank=2, probes=2, noise=2),
    kpnb.ClosedForm(rank=2, probes=3, noise=1),
    kpnb.ClosedForm(rank=3, probes=2, noise=2),
    kpnb.ClosedForm(rank=3, probes=2, noise=3),
    kpnb.ClosedForm(rank=4, probes=2, noise=4),
    kpnb.ClosedForm(rank=6, probes=4, noise=9),
    kpnb.ClosedForm(rank=9, probes=5, noise=14),
    kpnb.ClosedForm(rank=16, probes=16, noise=24),
    kpnb.ClosedForm(rank=32, probes=32, noise=40),
    kpnb.ClosedForm(rank=64, probes=32, noise=80),
)
SEEDS = range(0, 30, 10)  # of noise and probes
FEW = 4  # images that the learner measures


@dataclass(frozen=True)
class Case:
    """A layer of a network, and what is measured there.

    network, when, layer   what the table calls it, such as "images", "late", "FC1"
    entropies              of a study, which measures its samples as the chapters do
    how                    for the learner, ``x`` and other arguments of ``kpnb.entropy``
    foreground, b          of knowledge points: bool ``[N, n]``, and nats
    few                    how many samples the learner measures; 0: it does not
    """

    network: str
    when: str
    layer: str
    model: nn.Module
    path: str
    entropies: Callable[..., dict[str, kpnb.Entropy]]
    how: dict[str, Any]
    foreground: Tensor
    b: float
    few: int = 0

    def entropy(self, solver: kpnb.ClosedForm, seed: int = 0) -> Tensor:
        """``[N, n]`` of all samples."""
        how = {"solver": solver, "seed": seed, "dead": "nan", "check": False}
        return self.entropies(self.model, [self.path], **how)[self.path].entropy

    def learned(self, learner: kpnb.Stochastic) -> Tensor:
        """``[few, n]`` of the first samples."""
        how = {name: self.how[name] for name in ("units", "scale")}
        return one_by_one(self.model, self.how["x"][: self.few], self.path, learner, **how)[0]


@dataclass(frozen=True)
class Point:
    """How long a ``way`` takes for a sample, and how far it is from the exact Jacobian.

    ``samples`` are those that ``error`` (nats) and ``iou`` are means over; ``rank``, ``probes`` and
    ``noise`` are NaN where the way is none of a sketch.
    """

    network: str
    when: str
    layer: str
    way: str
    rank: float
    probes: float
    noise: float
    milliseconds: float
    samples: int
    error: float
    iou: float


def measured(
    case: Case, settings: Sequence[kpnb.ClosedForm], seeds: Sequence[int], samples: int = 96
) -> Iterator[Point]:
    """Of every setting, of the exact Jacobian, and of the learner with so many ``samples``."""
    case.entropy(settings[0])  # the first call takes longer
    exact, seconds = timed(lambda: case.entropy(EXACT))
    yield from judged(case, "exact Jacobian", None, [seconds / len(exact)], [exact], exact)
    found: dict[kpnb.ClosedForm, list[tuple[Tensor, float]]] = {one: [] for one in settings}
    for seed in seeds:
        for solver in settings:
            found[solver].append(timed(lambda s=solver, k=seed: case.entropy(s, k)))
    for solver, runs in found.items():
        times = [seconds / len(exact) for _, seconds in runs]
        yield from judged(case, "closed form", solver, times, [H for H, _ in runs], exact)
    for name, stop in WAYS.items() if case.few else ():
        learner = kpnb.Stochastic(samples=samples, stop=stop)
        H, seconds = timed(lambda s=learner: case.learned(s))
        yield from judged(case, f"learner, {name}", None, [seconds / case.few], [H], exact)


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What ``run`` returns, and its CPU time in seconds."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def judged(
    case: Case,
    way: str,
    solver: kpnb.ClosedForm | None,
    seconds: Sequence[float],
    found: Sequence[Tensor],
    exact: Tensor,
) -> Iterator[Point]:
    """Over all samples that were ``found``, and over the learner's alone: of time the median, of
    error and IoU the mean.
    """
    numbers = (solver.rank, solver.probes, solver.noise) if solver else (math.nan,) * 3
    about = (case.network, case.when, case.layer, way, *numbers)
    for samples in sorted({case.few, len(found[0])} - {0}):
        pairs = [
            agreement(H[:samples], exact[:samples], case.foreground[:samples], case.b)
            for H in found
        ]
        errors, overlaps = zip(*pairs, strict=True)
        quality = (statistics.mean(errors), statistics.mean(overlaps))
        yield Point(*about, 1000 * statistics.median(seconds), samples, *quality)


def name_of(row: pd.Series) -> str:
    """What a table calls a way: its numbers, and its name where it has one."""
    if row["way"] != "closed form":
        return row["way"]
    numbers = tuple(int(row[name]) for name in ("rank", "probes", "noise"))
    names = [name for name, one in NAMED.items() if (one.rank, one.probes, one.noise) == numbers]
    return "{} + {}, {}".format(*numbers) + "".join(f" ({name})" for name in names)


def show(rows: pd.DataFrame) -> None:
    """Print a table for each case."""
    for (network, when, layer), case in rows.groupby(["network", "when", "layer"], sort=False):
        counts = sorted(case["samples"].unique(), reverse=True)
        over = "".join(f"{f'error, IoU of {count}':>20s}" for count in counts)
        print(f"\n{network}, {when}: {layer}\n  rank + probes, noise             a sample{over}")
        for _, way in case.groupby(["way", "rank", "probes", "noise"], sort=False, dropna=False):
            by_count = way.set_index("samples")
            first = way.iloc[0]
            line = f"  {name_of(first):31s}{first.milliseconds:8.2f} ms"
            for count in counts:
                known = count in by_count.index
                quality = by_count.loc[count] if known else None
                line += f"{quality.error:14.4f}{quality.iou:6.3f}" if known else " " * 20
            print(line)
        compare(case)


def compare(case: pd.DataFrame) -> None:
    """Print what is the fastest closed form that has the released learner's IoU, on its images."""
    learners = case[case["way"].str.startswith("learner")]
    if learners.empty:
        return
    released = learners.iloc[0]
    closed = case[(case["way"] == "closed form") & (case["samples"] == released.samples)]
    enough = closed[closed["iou"] >= released.iou]
    if enough.empty:
        print("  no closed form has the IoU of the learner as released")
        return
    best = enough.loc[enough["milliseconds"].idxmin()]
    ratios = [
        f"{one.milliseconds / best.milliseconds:,.0f} times faster than the {one.way}"
        for one in learners.itertuples()
    ]
    print(f"  {name_of(best)} has the released learner's IoU: {'; '.join(ratios)}")


# ------------------------------------------------------------------------------------ the networks


def case(
    study: Study, training: Training, epoch: int, layer: str, network: str, few: int = 0
) -> Case:
    """One layer of a study's network."""
    model = training.load(epoch=epoch)
    late = training.number(epoch) == training.epochs
    when = f"{training.kind} after epoch {training.number(epoch)}"
    return Case(
        network,
        f"{'late' if late else 'early'} ({when})",
        layer,
        model,
        study.path(layer),
        study.entropies,
        study.inputs(model),
        study.foreground,
        study.settings.b,
        few,
    )


def cases(quick: bool) -> Iterator[Case]:
    """Images at three layers, late and early; point clouds and texts at one."""
    profile = "smoke" if quick else "laptop"
    images = ImageStudy(profile, seeds=0, analysed=6 if quick else 32)
    for training, epoch in ((images.teacher(), -1), (images.baseline(), 1)):
        for layer in ("Conv", "FC1", "FC2"):
            few = (1 if quick else FEW) if epoch == -1 and layer != "Conv" else 0
            yield case(images, training, epoch, layer, "images", few)
    clouds = CloudStudy(profile, network="pointnet2", analysed=6 if quick else 20)
    for training, epoch in ((clouds.teacher(), -1), (clouds.baseline(clouds.settings.seeds[0]), 1)):
        yield case(clouds, training, epoch, "FC1", "clouds")
    texts = TextStudy(profile, analysed=6 if quick else 24)
    yield case(texts, texts.teacher(), -1, "feature", "texts")


HEADER = """\
# Measured by `python -m benchmarks frontier`, on the computer that is named below.
# milliseconds: CPU time of one call, a sample. error: mean absolute error of H against the exact
# Jacobian, in nats, over so many samples; iou: of knowledge points with the exact ones. Of the
# closed form both are means over {seeds} seeds of noise and probes. The learner measures the first
# images only.
"""


def keep(rows: pd.DataFrame, path: Path, about: str, seeds: int = len(SEEDS)) -> None:
    """Write the points as CSV, below lines that say what they are, over how many ``seeds``, and
    ``about`` which computer.
    """
    lines = "".join(f"# {line}\n" for line in about.splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    head = HEADER.format(seeds=seeds) + lines
    path.write_text(head + rows.to_csv(index=False, float_format="%.5g"), "utf8")


def run(quick: bool, points: Path | None = None, figure: Path | None = None) -> None:
    """Print the frontier; keep its ``points`` as CSV and draw its ``figure`` where these say so."""
    about = machine()
    seeds = SEEDS[:1] if quick else SEEDS
    settings = sorted(
        {*SETTINGS, *NAMED.values()}, key=lambda one: (one.rank, one.noise, one.probes)
    )
    found: list[Point] = []
    for one in cases(quick):
        new = list(measured(one, settings, seeds, 8 if quick else 96))
        show(pd.DataFrame(map(asdict, new)))
        found += new
    rows = pd.DataFrame(map(asdict, found))
    if points:
        keep(rows, points, about, len(seeds))
    if figure:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw(rows).savefig(figure)
