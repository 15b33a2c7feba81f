"""What is measured of a study's networks: entropies, weight distances, and the six metrics of them.

A :class:`Measurement` describes, as a training does, something that is in the store or still to be
computed; it computes nothing before it is asked for values. The functions below it give what tables
and figures are made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from kpnb._messages import one_of
from kpnb._progress import Progress
from kpnb.checkpoints import Item
from kpnb.energy import ClosedForm
from kpnb.entropy import Entropy
from kpnb.learning import weight_distance
from kpnb.metrics import Choices, Metrics, six_metrics
from kpnb.objectives import Aligned, Objective
from kpnb.points import KnowledgePoints, background_level, knowledge_points
from kpnb.sampling import Stochastic
from kpnb_book.store import Run
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training, announce

Scope = Literal["all", "below", "layer", "layer steps"]
Solver = ClosedForm | Stochastic


def solver_of(settings: Settings) -> ClosedForm:
    """What measures the entropies of a study unless another solver is asked for."""
    return ClosedForm(rank=settings.rank, probes=settings.probes, noise=settings.noise)


@dataclass(frozen=True)
class Measurement:
    """The entropies of one network at some ``layers``, after some of its ``epochs``, as data.

    epochs      numbers as in ``Training.number``; None: all, 0 to M
    noise_seed  of noise and probes, which are the same for all networks and epochs
    solver, objective   of ``kpnb.entropy``; None: the study's solver, the aligned point

    All layers are measured in one call, but none of them depends on the company: each is stored
    for itself, under what determines it.
    """

    study: Study
    training: Training
    layers: tuple[str, ...]
    epochs: Sequence[int] | None = None
    noise_seed: int = 0
    solver: Solver | None = None
    objective: Objective = field(default_factory=Aligned)

    @property
    def numbers(self) -> list[int]:
        """The epochs, counted from 0."""
        if self.epochs is None:
            return list(range(self.training.epochs + 1))
        return [self.training.number(epoch) for epoch in self.epochs]

    @property
    def used(self) -> Solver:
        """The solver that is used."""
        return self.solver or solver_of(self.study.settings)

    def run(self, layer: str) -> Run:
        """Where the store keeps the entropies at ``layer``, an artefact for each epoch."""
        config = {
            "network": self.training.address,
            "samples": self.study.measured.config,
            "layer": self.study.path(layer),
            "seed": self.noise_seed,
            "solver": {"name": type(self.used).__name__, **asdict(self.used)},
            "objective": {"name": type(self.objective).__name__, **asdict(self.objective)},
            "units": repr(self.study.units),
            "scale": self.study.settings.scale,
        }
        return self.study.store.run("entropy", config)

    def missing(self, layer: str) -> list[int]:
        """Epochs whose entropies at ``layer`` the store does not hold."""
        run = self.run(layer)
        return [epoch for epoch in self.numbers if not run.has(artefact(epoch))]

    def finish(self) -> "Measurement":
        """Compute what the store does not hold; epoch by epoch, all layers together."""
        # Each run once, and all in one order, so that two processes never wait for each other.
        by_path = {self.study.path(layer): layer for layer in self.layers}
        layers = [by_path[path] for path in sorted(by_path)]
        lacking = {layer: set(self.missing(layer)) for layer in layers}
        epochs = [n for n in self.numbers if any(n in missing for missing in lacking.values())]
        if epochs:
            self.training.finish()
        what = f"entropy of {self.training.label} at {', '.join(layers)}"
        with Progress(len(epochs), what, hidden=not epochs) as bar:
            for epoch in epochs:
                self._store(epoch, [layer for layer in layers if epoch in lacking[layer]])
                bar.step()
        return self

    def values(self) -> dict[str, dict[str, Tensor]]:
        """By layer, the fields of ``Entropy`` by name, ``[epochs, N, ...]`` on the CPU.

        A sample whose feature does not move has NaN.
        """
        self.finish()
        return {layer: self._read(layer) for layer in self.layers}

    def _read(self, layer: str) -> dict[str, Tensor]:
        items = [self._item(epoch, layer) for epoch in self.numbers]
        return {key: torch.stack([item.tensors[key] for item in items]) for key in items[0].tensors}

    def origins(self, layer: str) -> list[dict[str, Any]]:
        """Of every epoch, the settings of its ``Entropy`` at ``layer``, ready for JSON."""
        self.finish()
        return [self._item(epoch, layer).info for epoch in self.numbers]

    def _item(self, epoch: int, layer: str) -> Item:
        def again() -> tuple[dict[str, Tensor], dict[str, Any]]:  # should it be damaged
            return stored(self._measure(epoch, [layer])[layer])

        return self.run(layer).get(artefact(epoch), again)

    def _store(self, epoch: int, layers: Sequence[str]) -> None:
        """Measure all ``layers`` while the first one's run is locked, and write the others too."""
        first, *others = layers

        def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
            found = self._measure(epoch, layers)
            for layer in others:
                self.run(layer).get(artefact(epoch), lambda layer=layer: stored(found[layer]))
            return stored(found[first])

        self.run(first).get(artefact(epoch), compute)

    def _measure(self, epoch: int, layers: Sequence[str]) -> dict[str, Entropy]:
        study = self.study
        model = self.training.load(epoch=epoch).to(study.settings.device)
        found = study.entropies(
            model,
            [study.path(layer) for layer in layers],
            solver=self.used,
            objective=self.objective,
            seed=self.noise_seed,
            dead="nan",
            progress=False,
        )
        return {layer: found[study.path(layer)] for layer in layers}


def artefact(epoch: int) -> str:
    """Name of an epoch's entropies in their run."""
    return f"epoch-{epoch:03d}"


def stored(found: Entropy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A result as the store keeps it: tensors, and the settings that produced them."""
    return found.tensors(), found.settings


def entropies(
    study: Study,
    training: Training,
    layer: str,
    epochs: Sequence[int] | None = None,
    *,
    noise_seed: int = 0,
    solver: Solver | None = None,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """Fields of ``Entropy`` by name, ``[epochs, N, ...]``, of the measured samples at one
    ``layer``; the options are those of :class:`Measurement`.
    """
    objective = objective or Aligned()
    wanted = Measurement(study, training, (layer,), epochs, noise_seed, solver, objective)
    return wanted.values()[layer]


def distance(study: Study, training: Training, layer: str, scope: Scope = "all") -> Tensor:
    """Relative weight distance ``[M + 1]`` (inside Eq. 8).

    scope: "all" parameters of the network, as in the text; those the feature depends on ("below");
    the weight of the target layer alone ("layer"); or that weight's path over all optimiser steps
    instead of epochs ("layer steps"), as in the released 2020 procedure.
    """
    one_of("scope", scope, get_args(Scope))
    initial, *steps = training.step_norms()
    if scope == "all":
        return weight_distance(initial, steps)
    if scope == "below":
        return weight_distance(initial, steps, [*study.parameters_below(layer)])
    taken = training.paths()[1:] if scope == "layer steps" else steps
    return weight_distance(initial, taken, [study.weight_of(layer)])


def points(study: Study, entropy: Tensor) -> KnowledgePoints:
    """The knowledge points of the measured samples' ``entropy [..., N, n]``, by the study's regions
    and threshold.
    """
    regions = {"foreground": study.foreground, "background": study.background}
    return knowledge_points(entropy, b=study.settings.b, **regions)


def six(study: Study, entropy: Tensor, path: Tensor, choices: Choices | None = None) -> Metrics:
    """The six metrics of the measured samples' ``entropy [M + 1, N, n]`` and a weight distance
    ``path [M + 1]``, by the study's regions, and its threshold unless ``choices`` says otherwise.
    """
    choices = choices or Choices(b=study.settings.b)
    return six_metrics(entropy, study.foreground, path, choices, background=study.background)


def metrics(
    study: Study,
    training: Training,
    layer: str,
    choices: Choices | None = None,
    scope: Scope = "all",
    *,
    noise_seed: int = 0,
    solver: Solver | None = None,
) -> Metrics:
    """The six metrics of one network at one layer, with the study's threshold unless ``choices``
    says otherwise; ``noise_seed`` and ``solver`` as in :class:`Measurement`.
    """
    values = entropies(study, training, layer, noise_seed=noise_seed, solver=solver)["entropy"]
    return six(study, values, distance(study, training, layer, scope), choices)


def point_counts(study: Study, training: Training, layer: str) -> Tensor:
    """Foreground knowledge points of every measured sample by epoch, ``[M + 1, N]``."""
    return points(study, entropies(study, training, layer)["entropy"]).n_fg


def region_means(study: Study, entropies: Mapping[str, Tensor]) -> pd.DataFrame:
    """Mean entropy of each sample's foreground and background, from ``entropies`` by layer.

    A row for each layer, region and sample.
    """
    regions = {"foreground": study.foreground, "background": study.background}
    frames = []
    for layer, values in entropies.items():
        for name, region in regions.items():
            means = background_level(values, region)[:, 0]
            frames.append(pd.DataFrame({"layer": layer, "region": name, "entropy": means}))
    return pd.concat(frames, ignore_index=True)


def pair(
    study: Study,
    layer: str,
    seed: int = 0,
    choices: Choices | None = None,
    scope: Scope = "all",
) -> tuple[Metrics, Metrics]:
    """Metrics of the student distilled for ``layer`` and of the baseline, both measured there."""
    networks = study.student(layer, seed), study.baseline(seed)
    student, baseline = (metrics(study, net, layer, choices, scope) for net in networks)
    return student, baseline


def every_pair(
    study: Study, choices: Choices | None = None, scope: Scope = "all"
) -> dict[tuple[str, int], tuple[Metrics, Metrics]]:
    """``pair`` for every layer and seed of the study, by both."""
    layers, seeds = study.settings.layers, study.settings.seeds
    students = [study.student(layer, seed) for layer in layers for seed in seeds]
    announce([*map(study.baseline, seeds), *students])
    for seed in seeds:  # a baseline is measured at all layers, which takes one call
        Measurement(study, study.baseline(seed), layers).finish()
    return {
        (layer, seed): pair(study, layer, seed, choices, scope)
        for layer in layers
        for seed in seeds
    }


def pairs(study: Study) -> dict[str, tuple[Metrics, Metrics]]:
    """The same, by a title that names layer and seed."""
    return {f"{layer}, seed {n}": both for (layer, n), both in every_pair(study).items()}
