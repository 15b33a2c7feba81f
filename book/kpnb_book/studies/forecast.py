"""A forecast: what it takes to carry out plans.

    print(forecast([plan_of(ImageStudy("paper"))]))

It looks up what the store lacks of them, and tries a few samples of each architecture on this
machine.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kpnb.entropy import entropy
from kpnb.units import units_of
from kpnb_book.store import Store
from kpnb_book.studies.measure import Measurement
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training, baseline

BATCH = 8  # samples in a batch of the trial


@dataclass
class Forecast:
    """What the store does not hold yet, and what that takes.

    trainings, epochs       networks to be trained, and their epochs in all
    measurements            of a network at a layer after an epoch
    forwards, backwards     passes of one sample; narrow features need fewer
    seconds, memory, disk   on this machine; memory at its peak, in bytes; disk in bytes

    Seconds and memory are extrapolated from a few samples: good for an order of magnitude.
    """

    trainings: int = 0
    epochs: int = 0
    measurements: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    memory: int = 0
    disk: int = 0

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return self != Forecast()

    def __str__(self) -> str:
        if not self:
            return "Everything is stored: nothing is trained or measured."
        short = self.seconds < 600
        took = f"{self.seconds:.0f} s" if short else f"{self.seconds / 3600:.1f} h"
        return "\n".join(
            [
                "Still to do:",
                f"  trainings: {self.trainings:,}, with {self.epochs:,} epochs in all",
                f"  measurements of a network after an epoch: {self.measurements:,}",
                f"  passes of a sample: {self.forwards:,} forward, {self.backwards:,} backward",
                f"On this machine: about {took}, {self.memory / 2**30:.1f} GiB of memory, "
                f"{self.disk / 2**20:,.0f} MiB on disk",
            ]
        )


def forecast(plans: Iterable[Plan]) -> Forecast:
    """What it takes to carry out the ``plans``; what they share counts once.

    Nothing of it is done, but data are loaded, and a few samples of each architecture are tried.
    """
    count = _Count()
    for plan in plans:
        for training in plan.everything().values():
            count.add_training(plan.study, training)
        for measurement in plan.measurements:
            count.add_measurement(measurement)
    return count.found


@dataclass
class _Count:
    """A forecast that grows, the trials it rests on, and what was counted already."""

    found: Forecast = field(default_factory=Forecast)
    trials: dict[str, Any] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)

    def add_training(self, study: Study, training: Training) -> None:
        lacking = {f"{training.address} {epoch}" for epoch in training.missing()}
        missing = len(lacking - self.counted)
        self.counted |= lacking
        if not missing:
            return
        seconds, size = self._try_training(study, training)
        epochs = min(missing, training.epochs)  # number 0 is the untrained network
        tested = missing * len(training.test or ())
        passes = epochs * len(training.data)
        self.found.trainings += 1
        self.found.epochs += epochs
        self.found.forwards += passes + tested
        self.found.backwards += passes
        # A backward pass takes about twice as long as a forward pass.
        self.found.seconds += seconds * (passes + tested / 3)
        self.found.disk += size * missing

    def _try_training(self, study: Study, training: Training) -> tuple[float, int]:
        """Seconds per sample, and bytes of an epoch's artefact."""
        spec = study.teacher_spec() if training.kind == "teacher" else study.spec(0)
        spec = {**spec, "seed": 0}
        spec.pop("weights", None)  # nothing is downloaded
        if (key := repr(spec)) not in self.trials:
            # The first imports what is needed, which takes time and memory once.
            _, _, small = _trial(study, training, spec, batch=2)
            seconds, size, peak = _trial(study, training, spec, batch=BATCH)
            each = (peak - small) / (BATCH - 2)
            peak += int(each * (training.schedule.batch_size - BATCH))
            self.found.memory = max(self.found.memory, peak)
            self.trials[key] = seconds, size
        return self.trials[key]

    def add_measurement(self, measurement: Measurement) -> None:
        solver, samples = measurement.used, len(measurement.study.measured)
        for layer in measurement.layers:
            address = measurement.run(layer).address
            lacking = {f"{address} {epoch}" for epoch in measurement.missing(layer)}
            new = len(lacking - self.counted)
            self.counted |= lacking
            if not new:
                continue
            self.found.measurements += new
            self.found.forwards += (1 + solver.noise + solver.check) * new * samples
            self.found.backwards += (solver.rank + solver.probes) * new * samples
            self.found.seconds += self._try_measurement(measurement, layer) * new * samples

    def _try_measurement(self, measurement: Measurement, layer: str) -> float:
        """Seconds per sample."""
        study = measurement.study
        s, spec = study.settings, study.spec(0)
        if (key := repr((spec, layer, study.units, measurement.used))) not in self.trials:
            model = type(study).build(**spec).to(s.device)
            options = {"layers": study.path(layer), "solver": measurement.used, "dead": "nan"}
            options |= study.inputs(model)
            batch = min(BATCH, len(study.measured))
            for count in (1, batch):  # the first warms up
                start = time.perf_counter()
                entropy(model, **options | first(options, count))
            self.trials[key] = (time.perf_counter() - start) / batch
            self.found.memory = max(self.found.memory, _peak(s.device))
        return self.trials[key]


def _trial(
    study: Study, training: Training, spec: dict[str, Any], batch: int
) -> tuple[float, int, int]:
    """Seconds per sample when two batches are trained on, bytes of an epoch's artefact, and the
    peak of memory.
    """
    few = study.share.subset(range(min(2 * batch, len(study.share))))
    schedule = replace(training.schedule, epochs=1, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        how = {"build": type(study).build, "device": study.settings.device}
        tried = baseline(Store(folder), spec, few, schedule, kind="trial", **how).finish()
        size = sum(file.stat().st_size for file in tried.run.path.glob("epoch-001.*"))
        return tried.log[-1]["seconds"] / len(few), size, _peak(study.settings.device)


def first(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Input and units, of the ``options`` of ``kpnb.entropy``, for the first samples alone."""
    rows, x, perturb = slice(0, count), options["x"], options.get("perturb")
    units = units_of(options["units"], rows, x[perturb] if perturb else x)
    if isinstance(x, Mapping):
        return {"x": {name: value[rows] for name, value in x.items()}, "units": units}
    return {"x": x[rows], "units": units}


def _peak(device: str) -> int:
    """Bytes of memory that this process has taken at most; on a GPU, of the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
