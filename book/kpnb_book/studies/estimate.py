"""What is still to be computed, and what that will take on this machine, before it starts."""

import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from kpnb.entropy import entropy
from kpnb.objectives import Aligned
from kpnb_book.store import Run, Store
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import CrossEntropy, Training, planned

Network = tuple[Training, str]  # and the layer at which it is measured
BATCH = 8  # samples in a batch of the trial


def pairs(study: Study) -> Iterator[Network]:
    """Student and baseline at every layer and seed."""
    for layer, seed in product(study.settings.layers, study.settings.seeds):
        yield study.student(layer, seed), layer
        yield study.baseline(seed), layer


def chapter(study: Study) -> Iterator[Network]:
    """The same with the students' heads: what a chapter on the hypotheses takes."""
    for layer, seed in product(study.settings.layers, study.settings.seeds):
        study.head(layer, seed)
    return pairs(study)


def teacher_only(study: Study) -> Iterable[Network]:
    """The teacher is trained, and nothing is measured by epoch."""
    study.teacher()
    return ()


class Estimate(Counter[str]):
    """What the store does not hold yet: trainings, epochs, measurements (of a network after an
    epoch), forwards and backwards (passes of one sample; narrow features need fewer), and for that
    seconds, memory at the peak and disk, in bytes. Seconds and memory are extrapolated from a few
    samples: good for an order of magnitude.
    """

    def __str__(self) -> str:
        if not self["forwards"]:
            return "Everything is stored: nothing is trained or measured."
        took = (
            f"{self['seconds']:.0f} s"
            if self["seconds"] < 600
            else f"{self['seconds'] / 3600:.1f} h"
        )
        return "\n".join(
            [
                "Still to do:",
                f"  trainings: {self['trainings']:,}, with {self['epochs']:,} epochs in all",
                f"  measurements of a network after an epoch: {self['measurements']:,}",
                f"  passes of a sample: {self['forwards']:,} forward, {self['backwards']:,} backward",
                f"On this machine: about {took}, {self['memory'] / 2**30:.1f} GiB of memory, "
                f"{self['disk'] / 2**20:,.0f} MiB on disk",
            ]
        )


def estimate(*studies: Study, networks: Callable[[Study], Iterable[Network]] = chapter) -> Estimate:
    """What it takes to train and to measure the ``networks`` of all ``studies``; what they share
    counts once.

    ``networks`` yields trainings and the layers at which they are measured; trainings that it asks
    for on the way count as well. Nothing of that is done, but a few samples of each architecture
    are tried. ``kpnb`` shows the result on its terminal while the notebook goes on.
    """
    found, rates, seen = Estimate(), {}, set()

    def missing(run: Run, training: Training) -> int:
        known, _ = run.address in seen, seen.add(run.address)
        return (
            0
            if known
            else sum(not run.has(f"epoch-{epoch:03d}") for epoch in range(training.epochs + 1))
        )

    for study in studies:
        with planned() as asked:
            wanted = list(networks(study))
        for training in asked:
            if lacking := missing(training.run, training):
                _add_training(found, rates, study, training, lacking)
        for training, layer in wanted:
            if lacking := missing(
                study.entropy_run(training, layer, 0, study.solver, Aligned()), training
            ):
                _add_measurements(found, rates, study, layer, lacking * len(study.measured))
                found["measurements"] += lacking
    if found["forwards"] and (path := os.environ.get("KPNB_PROGRESS")):
        Path(path).with_suffix(".note").write_text(str(found), "utf8")
    return found


def _peak(device: str) -> int:
    """Bytes of memory that this process has taken at most; on a GPU, of the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _try(study: Study, training: Training, spec: dict, batch: int) -> tuple[float, int, int]:
    """Seconds per sample when two batches are trained on, bytes of an epoch's artefact, and the
    peak of memory.
    """
    few = study.share.subset(range(min(2 * batch, len(study.share))))
    schedule, device = replace(training.schedule, epochs=1, batch_size=batch), study.settings.device
    with tempfile.TemporaryDirectory() as folder:
        how = {"build": type(study).build, "device": device}
        tried = Training(
            Store(folder), "trial", spec, few, CrossEntropy(), schedule, **how
        ).finish()
        size = sum(file.stat().st_size for file in tried.run.path.glob("epoch-001.*"))
        return tried.log[-1]["seconds"] / len(few), size, _peak(device)


def _add_training(
    found: Estimate, rates: dict, study: Study, training: Training, missing: int
) -> None:
    spec = study.teacher_spec() if training.kind == "teacher" else study.spec(0)
    spec = {key: value for key, value in spec.items() if key != "weights"} | {
        "seed": 0
    }  # nothing is downloaded
    if (key := repr(spec)) not in rates:
        *_, small = _try(
            study, training, spec, 2
        )  # imports what is needed, which takes time and memory once
        seconds, size, peak = _try(study, training, spec, BATCH)
        rates[key] = seconds, size
        peak += (peak - small) * (training.schedule.batch_size - BATCH) // (BATCH - 2)
        found["memory"] = max(found["memory"], peak)
    seconds, size = rates[key]
    epochs, tested = min(missing, training.epochs), missing * len(training.test or ())
    passes = epochs * len(training.data)
    found.update(
        trainings=1, epochs=epochs, forwards=passes + tested, backwards=passes, disk=size * missing
    )
    found["seconds"] += seconds * (
        passes + tested / 3
    )  # a backward pass takes about twice as long as a forward pass


def _add_measurements(found: Estimate, rates: dict, study: Study, layer: str, samples: int) -> None:
    spec, s, solver = study.spec(0), study.settings, study.solver
    if (key := repr((spec, layer, study.units))) not in rates:
        model = type(study).build(**spec).to(s.device)
        x, scale = study.inputs(model)
        options = {
            "units": study.units,
            "solver": solver,
            "scale": scale,
            "max_batch": s.max_batch,
            "dead": "nan",
        }
        for few in (x[:1], x[:BATCH]):  # the first warms up
            start = time.perf_counter()
            entropy(model, few, study.path(layer), **options)
        rates[key] = (time.perf_counter() - start) / len(few)
        found["memory"] = max(found["memory"], _peak(s.device))
    passes = {"forwards": 1 + solver.noise + solver.check, "backwards": solver.rank + solver.probes}
    found.update(
        {name: count * samples for name, count in passes.items()}, seconds=rates[key] * samples
    )
