"""Section 4.1, the experiment: its samples, and the trainings of its networks.

A ``Study`` says what is trained on what: a teacher, a baseline for every seed, and a student for
every target layer and seed. ``kpnb_book.studies`` has a subclass for each modality, which says what
the data, the networks and the units are. How its networks are measured is in ``measure``, what
becomes of that in ``tables``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from kpnb.entropy import Entropy, Options, entropy
from kpnb.features import capture, parameters_below
from kpnb.losses import TrainingObjective, feature_at
from kpnb.units import Units
from kpnb_book.data.samples import check_dataset, stratified
from kpnb_book.store import Store
from kpnb_book.studies import settings, training
from kpnb_book.studies.settings import ALL, Count, Settings
from kpnb_book.studies.training import Model, Schedule, Training

MEASURED_SEED = 1  # which samples of the share are measured
TEACHER_SEED = 1000  # the teacher starts from other weights than any student or baseline
LEARNED = ("pretrained", "weights")  # what tells a network to start from learned weights


class Study(ABC):
    """One experiment: its data and its trainings.

    A training is a description, which is read from the store, or computed, only when its log or its
    weights are asked for.
    """

    Settings: ClassVar[type[Settings]]
    PROFILES: ClassVar[dict[str, dict[str, Any]]]
    SOURCES: ClassVar[Mapping[str, Callable[..., Any]]] = {}  # data sets that go by a name
    ROOTS: ClassVar[Mapping[str, bool]] = {}  # whether one of them needs a folder
    MEMORISING: ClassVar[int] = 50
    """Epochs after which a teacher knows labels in random order by heart, a control. Of 8,000
    photographs it has 99.96 % right then, and 8 % after the teacher's 15 epochs.
    """
    build: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self, profile: str = "laptop", *, store: Store | None = None, **overrides: Any
    ) -> None:
        self.profile = profile
        self.settings = self.resolve(profile, **overrides)
        self.store = store or Store()
        self._below: dict[str, dict[str, torch.Size]] = {}
        if self.SOURCES:
            check_dataset(self.settings.dataset, self.SOURCES)
        for layer in self.settings.layers:
            self.path(layer)
        settings.note(self.settings)

    @classmethod
    def resolve(cls, profile: str = "laptop", **overrides: Any) -> Settings:
        """A profile's ``Settings`` with ``overrides``, as ``settings.resolve`` finds them."""
        return settings.resolve(cls.Settings, cls.PROFILES, profile, overrides)

    @abstractmethod
    def load(self, split: str, count: int | None) -> Any:
        """The "train" or "test" data, ``count`` samples of it at most (None: all)."""

    def path(self, layer: str) -> str:
        """Dotted module name of a layer such as "FC1"; ``ValueError`` when the network has none of
        that name.
        """
        return layer

    def teacher_path(self, layer: str) -> str:
        """The same in the teacher, whose feature must have the shape of the student's."""
        return self.path(layer)

    @abstractmethod
    def spec(self, seed: int) -> dict[str, Any]:
        """Arguments of ``build`` for the network that starts from ``seed``."""

    def teacher_spec(self) -> dict[str, Any]:
        """Arguments of ``build`` for the teacher."""
        return self.spec(TEACHER_SEED)

    # What it is about.

    @cached_property
    def train(self) -> Any:
        """The teacher's training samples; as all data loaded when they are first needed."""
        return self.load("train", at_most(self.settings.teacher_samples))

    @cached_property
    def share(self) -> Any:
        """The training samples of student and baseline, some of the teacher's."""
        share = self.settings.share
        count = round(share * len(self.train)) if isinstance(share, float) else at_most(share)
        return drawn(self.train, count, seed=0)

    @cached_property
    def test(self) -> Any:
        """Held-out samples, for accuracies."""
        return self.load("test", at_most(self.settings.test_samples))

    @cached_property
    def measured(self) -> Any:
        """The samples of the share that are measured."""
        return self.first_measured(self.settings.analysed)

    def first_measured(self, count: int) -> Any:
        """The samples that are measured where ``count`` are asked for."""
        # Training samples are measured, as in the paper, and of these only such as have both
        # regions: no metric is defined for another.
        both = self.share.complete()
        return both.share(min(count, len(both)), seed=MEASURED_SEED)

    def positions(self, count: int) -> np.ndarray:
        """Their positions among those of the share that have both regions, ascending."""
        labels = self.share.complete().labels.numpy()
        return stratified(labels, min(count, len(labels)), seed=MEASURED_SEED)

    @property
    @abstractmethod
    def units(self) -> Units:
        """What a unit of the input is."""

    @property
    def foreground(self) -> Tensor:
        """Foreground units of the measured samples, bool ``[N, n]``; their masks, where these are
        made of units.
        """
        return self.measured.masks

    @property
    def background(self) -> Tensor:
        """Background units, bool ``[N, n]``: all others, where none belongs to neither."""
        return ~self.foreground

    def other_regions(self, shift: int) -> tuple[Tensor, Tensor]:
        """Foreground and background of each measured sample as the regions of the sample ``shift``
        places further on would have it, both bool ``[N, n]``: what lies where its object lies.
        """
        return self.foreground.roll(-shift, 0), self.background.roll(-shift, 0)

    @cached_property
    def x(self) -> Any:
        """The measured samples as the networks see them, ``[N, ...]`` on the device; of texts
        several tensors by name.
        """
        return self.measured.batch(torch.arange(len(self.measured)), self.settings.device)[0]

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """What is perturbed when ``model`` is measured, and how: the arguments of
        ``kpnb.entropy`` that the experiment decides.
        """
        s = self.settings
        return {"x": self.x, "units": self.units, "scale": s.scale, "max_batch": s.max_batch}

    def entropies(
        self, model: nn.Module, layers: Sequence[str], **options: Unpack[Options]
    ) -> dict[str, Entropy]:
        """``kpnb.entropy`` of the measured samples at these ``layers`` (module names)."""
        return entropy(model, layers=layers, **options, **self.inputs(model))

    def parameters_below(self, layer: str) -> dict[str, torch.Size]:
        """Names and shapes of the parameters that the feature at ``layer`` depends on, in the
        network's order.
        """
        if layer not in self._below:
            network, (x, _) = type(self).build(**self.spec(0)), self.measured.batch(torch.arange(1))
            names = parameters_below(network, x, self.path(layer))
            shapes = {name: value.shape for name, value in network.named_parameters()}
            self._below[layer] = {name: s for name, s in shapes.items() if name in names}
        return self._below[layer]

    def fits(self, layer: str) -> bool:
        """Whether the features of teacher and student have one shape at ``layer``, as distilling
        one into the other takes.
        """
        teacher = {k: value for k, value in self.teacher_spec().items() if k not in LEARNED}
        x, _ = self.measured.batch(torch.arange(1))
        shapes = []
        for spec, path in ((teacher, self.teacher_path(layer)), (self.spec(0), self.path(layer))):
            network = type(self).build(**spec).eval()
            with torch.no_grad():
                shapes.append(capture(network, x, [path])[path].shape)
        return shapes[0] == shapes[1]

    def weight_of(self, layer: str) -> str:
        """Name of the target layer's own weight: the last one that maps values to others, which is
        no gain of a normalisation.
        """
        below = self.parameters_below(layer)
        return [name for name, shape in below.items() if len(shape) > 1][-1]

    # Its trainings.

    def teacher(self) -> Training:
        """Cross-entropy on all training samples, the rate falling along a cosine."""
        s = self.settings
        schedule = self.schedule(s.teacher_epochs, s.teacher_lr or s.lr, TEACHER_SEED, cosine=True)
        found = self.classifier(self.teacher_spec(), self.train, schedule, kind="teacher")
        found.label = "teacher"
        return found

    def baseline(self, seed: int = 0) -> Training:
        """Cross-entropy on the share: the network that learns from scratch."""
        schedule = self.schedule(self.settings.epochs, self.settings.lr, seed)
        return self.classifier(self.spec(seed), self.share, schedule)

    def student(
        self,
        layer: str,
        seed: int = 0,
        teacher_epoch: int = -1,
        teacher: Training | None = None,
    ) -> Training:
        """The teacher's feature at ``layer`` learned on the share, from the baseline's initial
        weights.

        ``teacher_epoch=0`` takes the teacher as it starts, and ``teacher`` another one, for
        controls.
        """
        return self.taught(
            feature_at(self.path(layer), self.teacher_path(layer)),
            seed,
            teacher or self.teacher(),
            teacher_epoch=teacher_epoch,
            label=f"student of {layer}, seed {seed}",
        )

    def taught(
        self,
        objective: TrainingObjective,
        seed: int,
        teacher: Training,
        *,
        teacher_epoch: int = -1,
        schedule: Schedule | None = None,
        kind: str = "student",
        label: str = "",
    ) -> Training:
        """A network that learns from a ``teacher`` (after ``teacher_epoch``) on the share, from the
        baseline's initial weights.

        schedule      None: the student's
        kind, label   of the ``Training``
        """
        s = self.settings
        return training.taught(
            self.store,
            self.spec(seed),
            self.share,
            schedule or self.schedule(s.epochs, s.student_lr, seed),
            objective,
            teacher,
            teacher_epoch=teacher_epoch,
            kind=kind,
            label=label,
            **self.how,
        )

    def untrained_teacher(self) -> Training:
        """A teacher of random weights, which knows nothing; its epoch 0 is what counts. Where the
        teacher starts from weights that were learned elsewhere, it is another network.
        """
        spec, teacher = self.teacher_spec(), self.teacher()
        random = {name: value for name, value in spec.items() if name not in LEARNED}
        if random == spec:
            return teacher
        schedule = replace(teacher.schedule, epochs=0)
        return self.classifier(random, self.train, schedule, kind="teacher")

    def untrained_student(self, layer: str, seed: int = 0) -> Training:
        """The student of the untrained teacher, a control: its target is a function of the input
        that is nobody's knowledge, and often nearly a constant (``targets.constant_error``).
        """
        found = self.student(layer, seed, teacher_epoch=0, teacher=self.untrained_teacher())
        found.label = f"student of {layer} by an untrained teacher, seed {seed}"
        return found

    def head(self, layer: str, seed: int = 0, student: Training | None = None) -> Training:
        """The student of ``layer``, or another ``student`` that learned there, with what lies above
        it trained on the share's labels.
        """
        student = student or self.student(layer, seed)
        schedule = self.schedule(self.settings.head_epochs, self.settings.head_lr, seed)
        label = f"head of {student.label}"
        return training.head(
            self.store, student, self.path(layer), self.share, schedule, label=label, **self.how
        )

    def classifier(
        self, model: Model, data: Any, schedule: Schedule, kind: str = "baseline"
    ) -> Training:
        """A network of this experiment that learns the labels of ``data``."""
        return training.baseline(self.store, model, data, schedule, kind=kind, **self.how)

    def schedule(self, epochs: int, lr: float, seed: int, cosine: bool = False) -> Schedule:
        """How a network is trained in this experiment."""
        size = self.settings.batch_size
        return Schedule(epochs, lr, batch_size=size, seed=seed, cosine=cosine)

    @property
    def how(self) -> training.How:
        """What all trainings have in common: how networks are built, where they run, and the
        samples that test them; options of the functions of ``training``.
        """
        return {"build": type(self).build, "test": self.test, "device": self.settings.device}

    def scores(self, network: Training) -> dict[str, float]:
        """Held-out scores of a network by name."""
        return {"accuracy": network.accuracy}


def at_most(count: Count) -> int | None:
    """``count`` as loaders take it: None for all."""
    return None if count == ALL else count


def drawn(data: Any, count: int | None, seed: int) -> Any:
    """``count`` of the samples, or all when there are no more or ``count`` is None."""
    return data if count is None or count >= len(data) else data.share(count, seed=seed)
