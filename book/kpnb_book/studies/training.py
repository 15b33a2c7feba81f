"""Trainings that the store keeps: described first, computed by ``kpnb.distill`` when something of
them is read.

    teacher = baseline(store, spec, everything, schedule, build=build, kind="teacher")
    learned = taught(store, spec, share, schedule, feature_at("fc1"), teacher, build=build)
    whole = head(store, learned, "fc1", share, schedule)
    whole.missing()     # epochs that are not stored; nothing has been computed so far
    whole.accuracy      # trains what is missing, of teacher and student too
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypedDict, Unpack

import safetensors.torch
from torch import Tensor, nn

from kpnb.checkpoints import Checkpoints, copied, digest
from kpnb.distill import NetworkInput, seeded, train
from kpnb.losses import TrainingObjective, labels_only
from kpnb.schedule import Schedule
from kpnb_book.data.contents import named
from kpnb_book.store import Store

Build = Callable[..., nn.Module]


class Data(Protocol):
    """What can be trained on, as in ``kpnb.distill``. ``config`` (JSON-able) determines the
    content, because it addresses stored runs.
    """

    config: Mapping[str, Any]

    def __len__(self) -> int: ...
    def batch(self, index: Tensor, device: str = "cpu") -> tuple[NetworkInput, Tensor]:
        """Inputs and labels of the samples ``index [B]``."""


class Source(NamedTuple):
    """Where a network comes from: what identifies it (JSON-able), a function that makes it, and the
    trainings that must be finished before.
    """

    identity: dict[str, Any]
    make: Callable[[], nn.Module]
    requires: "tuple[Training, ...]" = ()


@dataclass
class Training:
    """A training of a copy of ``model`` on ``data``, in the ``store`` under its ``kind``; made, as
    a rule, by the functions below. Making one computes nothing.

    ``model`` is a network, known by its class, its printed structure and the digest of its weights;
    or, faster when everything is stored, a dict of arguments for ``build``, known by them and the
    name of ``build``, files and folders among them by what they hold; or a training to go on from;
    or a ``Source``. See ``kpnb.distill.train`` for the rest.

    ``log``, ``accuracy`` and ``step_norms`` read JSON only; weights are read, and verified, when
    they are asked for. What is not stored yet, was lost or damaged is computed, and raises what
    ``train`` raises. Everywhere ``epoch`` counts from 0, and -1 is the last one, number ``epochs``.
    ``address`` is that of the ``run`` in its store. ``label`` is what is shown of it while it runs,
    such as "student of FC1, seed 0". Raises ValueError without data.
    """

    store: Store
    kind: str
    model: "Model"
    data: Data
    objective: TrainingObjective
    schedule: Schedule
    teacher_source: Source | None = None
    build: Build | None = None
    test: Data | None = None
    device: str = "cpu"
    label: str = ""

    def __post_init__(self) -> None:
        if len(self.data) == 0:
            raise ValueError(f"no samples to train on in {dict(self.data.config)}")
        self.source = source_of(self.model, self.build, store=self.store)
        config = {
            "model": self.source.identity,
            "teacher": self.teacher_source and self.teacher_source.identity,
            "objective": self.objective.config,
            "schedule": self.schedule.config,
            "data": self.data.config,
            "test": None if self.test is None else self.test.config,
        }
        self.run = self.store.run(self.kind, config)
        self.address, self.epochs = self.run.address, self.schedule.epochs
        self.checkpoints = Checkpoints(self.run, self.epochs)
        self.label = self.label or f"{self.kind}, seed {self.schedule.seed}"

    @property
    def log(self) -> list[dict[str, Any]]:
        """An entry for each epoch, see ``kpnb.checkpoints.Checkpoints``."""
        return self.finish().checkpoints.log

    @property
    def accuracy(self) -> float:
        """Held-out accuracy after the last epoch; NaN without a test set or a classification."""
        return self.finish().checkpoints.accuracy

    def step_norms(self) -> list[dict[str, float]]:
        """Per epoch k and parameter ``||w_k - w_{k-1}||``, and for k = 0 ``||w_0||``: the
        ingredients of Eq. 8.
        """
        return self.finish().checkpoints.step_norms()

    def paths(self) -> list[dict[str, float]]:
        """Per epoch, each trained parameter's path over the optimiser's steps (Eq. 8 as released in
        2020).
        """
        return self.finish().checkpoints.paths()

    def state(self, epoch: int = -1) -> dict[str, Tensor]:
        """The state dict of an epoch, on the CPU."""
        epoch = self.number(epoch)
        self.finish()
        try:
            return self.checkpoints.state(epoch)
        except FileNotFoundError:  # it has the right size, but not the right content
            self.checkpoints.discard(epoch)
            return self.finish().checkpoints.state(epoch)

    def load(self, model: nn.Module | None = None, epoch: int = -1) -> nn.Module:
        """``model`` (mode and device untouched) with the weights of an epoch, or a new one in
        evaluation mode.
        """
        state = self.state(epoch)
        model = self.make().eval() if model is None else model
        model.load_state_dict(state)
        return model

    def make(self) -> nn.Module:
        """The network before training; a builder that draws random numbers always draws the
        same.
        """
        with seeded(self.schedule.seed, -1):
            return self.source.make()

    def number(self, epoch: int) -> int:
        """``epoch`` counted from 0; raises IndexError when there is no such epoch."""
        return self.checkpoints.number(epoch)

    def missing(self) -> list[int]:
        """The epochs that are not stored; no tensor is read."""
        return self.checkpoints.missing()

    @property
    def teacher(self) -> "Training | None":
        """The training that the teacher comes from, if there is one."""
        source = self.teacher_source
        return source.requires[0] if source and source.requires else None

    def requires(self) -> "list[Training]":
        """The trainings that this one needs: the one that it goes on from, and its teacher's."""
        sources = [self.source, self.teacher_source]
        return [training for source in sources if source for training in source.requires]

    def finish(self) -> Self:
        """Compute, in order, every epoch that is not stored, and first the trainings that it
        requires.
        """
        if self.missing():
            announce([self])
            with seeded(self.schedule.seed, -1):
                model = self.source.make()
                teacher = self.teacher_source.make() if self.teacher_source else None
            self.run.said = f"training {_place()}: {self.label}"
            train(
                model,
                self.data,
                self.schedule,
                self.objective,
                teacher=teacher,
                test=self.test,
                folder=self.run,
                device=self.device,
            )
        return self


_announced: dict[str, Training] = {}  # by address; some of them may be stored by now


def announce(trainings: Iterable[Training]) -> None:
    """Say that ``trainings`` and what they require are going to be finished, so that progress can
    say how many of how many; what is stored already does not count.

    What was announced before is forgotten, unless one of these belongs to it.
    """
    missing = [training for training in trainings if training.missing()]
    if not any(training.address in _announced for training in missing):
        _announced.clear()
    together = [*_announced.values(), *missing]
    _announced.update(with_required(together, wanted=_counts))


def _counts(training: Training) -> bool:
    """Whether it is to be computed, or was when it was announced."""
    return training.address in _announced or bool(training.missing())


def with_required(
    trainings: Iterable[Training], wanted: Callable[[Training], bool] = lambda training: True
) -> dict[str, Training]:
    """The ``trainings`` and those that they require, by address, each behind those that it
    requires. Of two that differ in their last epoch alone it is the longer one.

    wanted   whether a training counts; what is required by one that does not is left out with it
    """
    found: dict[str, Training] = {}

    def add(training: Training) -> None:
        if not wanted(training):
            return
        for required in training.requires():
            add(required)
        known = found.get(training.address, training)
        found[training.address] = max(known, training, key=lambda each: each.epochs)

    for training in trainings:
        add(training)
    return found


def _place() -> str:
    """Which of the announced trainings is next: "3 of 14"."""
    stored = sum(not training.missing() for training in _announced.values())
    return f"{stored + 1} of {len(_announced)}"


Model = Training | nn.Module | Mapping[str, Any] | Source


class How(TypedDict, total=False):
    """Keyword arguments that the functions below hand on to ``Training``, which says what they
    mean.
    """

    build: Build | None
    test: Data | None
    device: str
    label: str


def baseline(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule,
    *,
    kind: str = "baseline",
    **how: Unpack[How],
) -> Training:
    """Train with cross-entropy: a baseline, or a teacher when ``data`` is everything.

    These functions describe a training; nothing is computed before something of it is read.
    """
    return Training(store, kind, model, data, labels_only(), schedule, **how)


def taught(
    store: Store,
    model: Model,
    data: Data,
    schedule: Schedule,
    objective: TrainingObjective,
    teacher: Model,
    *,
    teacher_epoch: int = -1,
    kind: str = "student",
    **how: Unpack[How],
) -> Training:
    """Train a student of the ``teacher`` (of a training: after ``teacher_epoch``) by an
    ``objective`` that compares the two.
    """
    source = source_of(teacher, how.get("build"), teacher_epoch, store)
    return Training(store, kind, model, data, objective, schedule, teacher_source=source, **how)


def head(
    store: Store, student: Model, layer: str, data: Data, schedule: Schedule, **how: Unpack[How]
) -> Training:
    """Train what lies above ``layer`` of a distilled student (its last epoch) with cross-entropy,
    the rest frozen.

    When nothing lies above it (distillation from the output), every epoch is the student itself,
    with its accuracy.
    """
    objective = labels_only(frozen_up_to=layer)
    return Training(store, "head", student, data, objective, schedule, **how)


def source_of(
    model: Model, build: Build | None = None, epoch: int = -1, store: Store | None = None
) -> Source:
    """Where the network ``model`` comes from; of a training, its ``epoch``. The ``store`` remembers
    what files of weights hold.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, Training):
        identity = {"run": model.address, "epoch": model.number(epoch)}
        return Source(identity, lambda: model.load(epoch=epoch), (model,))
    if isinstance(model, nn.Module):
        kept = copy.deepcopy(model)  # the caller may train it on before it is needed here
        content = repr(model).encode() + safetensors.torch.save(copied(model.state_dict()))
        identity = {"class": type(model).__qualname__, "digest": digest(content)}
        return Source(identity, lambda: copy.deepcopy(kept))
    if build is None:
        raise TypeError(
            "a model given as a dict of arguments needs build=, the function that takes them"
        )
    arguments = {
        name: named(str(value), store) if isinstance(value, str | Path) else value
        for name, value in model.items()
    }
    identity = {"build": f"{build.__module__}.{build.__qualname__}", "arguments": arguments}
    return Source(identity, lambda: build(**model))
