"""Students of the losses in ``kpnb.losses.LOSSES``: how each is trained, and what is stored of it.

    student(study, "at", "FC1", seed)       # distilled by attention transfer, measured at FC1
    collect(LOSSES_EVIDENCE, range(5), Results(RESULTS / "losses"))

All learn from one teacher, from the baseline's initial weights, on the baseline's share. A loss
without an entry in ``WAYS`` is compared at the layer that is measured, and its student gets a head
afterwards, as the paper's does; evidence is stored of those that have one.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kpnb._messages import one_of
from kpnb.losses import LOSSES, TrainingObjective
from kpnb.points import KnowledgePoints
from kpnb_book.networks.images import LAYERS
from kpnb_book.studies import collecting, measure
from kpnb_book.studies.curves import curve_columns
from kpnb_book.studies.evidence import ENOUGH, Evidence
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import Results, Rows
from kpnb_book.studies.rows import OneNetwork, shifts
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training

HERE = "here"  # the layer that is measured
OUTPUT = "output"  # the networks' own


@dataclass(frozen=True)
class Way:
    """How the student of one loss is trained.

    layers      where the loss compares: ``HERE``, ``OUTPUT``, or layers such as "Conv", over which
                it is summed
    labels      weight of the labels' cross-entropy beside it; 0: what lies above the layer is
                trained afterwards, as a head
    parameters  of the loss, where they are not its defaults
    rate        in proportion to the study's ``student_lr``
    weight      in proportion to that of the loss's paper

    Rate and weight are None while they are still to be chosen, see ``choose``. Until then the
    weight is the paper's, and the rate the baseline's where labels count, else the student's.
    """

    layers: tuple[str, ...] = (HERE,)
    labels: float = 0.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if not self.labels and self.layers not in ((HERE,), (OUTPUT,)):
            raise ValueError(
                f"without labels nothing trains what lies between {self.layers} and the layer that "
                "is measured: give labels a weight, or compare there"
            )

    @property
    def chosen(self) -> bool:
        """Whether rate and weight are."""
        return self.rate is not None and self.weight is not None

    @property
    def has_head(self) -> bool:
        """Whether the student's head is trained afterwards."""
        return not self.labels and self.layers == (HERE,)

    def lr(self, settings: Settings) -> float:
        """Learning rate."""
        if self.rate is not None:
            return self.rate * settings.student_lr
        return settings.lr if self.labels else settings.student_lr

    def weight_of(self, loss: str) -> float:
        """Weight of the ``loss``, where the labels' is ``labels``."""
        return LOSSES[loss].weight * (1.0 if self.weight is None else self.weight)


# KD and DKD compare at the outputs, as in their papers. AT and hints compare at the top convolution
# alone, where their papers have several depths and a middle layer; the others at the layer that is
# measured, so that what they teach can be counted there. Of FitNets only the hints are taken,
# beside the labels. The feature loss has the rate of the study's students, which was chosen before;
# of the others rate and weight are chosen (`kpnb choose`) at FC1 by held-out accuracy on a seed
# that neither evidence nor builds train. What has none is still to be chosen.
WAYS: dict[str, Way] = {
    "feature": Way(rate=1.0, weight=1.0),
    "soft_targets": Way((OUTPUT,), labels=1.0, rate=0.05, weight=1.0),
    "hints": Way(("Conv",), labels=1.0, rate=0.2, weight=10.0, parameters={"scale": "energy"}),
    "at": Way(("Conv",), labels=1.0, rate=0.1, weight=1.0),
    "dkd": Way((OUTPUT,), labels=1.0, rate=0.025, weight=1.0),
    "sp": Way(labels=1.0, rate=0.1, weight=0.1),
    "rkd": Way(labels=1.0, rate=0.2, weight=1.0),
    "pkt": Way(rate=16.0, weight=1.0),
    "crd_in_batch": Way(labels=1.0, rate=0.5, weight=0.1),
}


def way_of(loss: str) -> Way:
    """How the student of a ``loss`` is trained."""
    return WAYS.get(loss, Way())


def objective(study: Study, loss: str, layer: str, way: Way | None = None) -> TrainingObjective:
    """What the student of a ``loss`` minimises that is measured at ``layer``."""
    way = way or way_of(loss)
    layers = [layer if each == HERE else each for each in way.layers]
    ours = tuple("" if each == OUTPUT else study.path(each) for each in layers)
    theirs = tuple("" if each == OUTPUT else study.teacher_path(each) for each in layers)
    weights = {"labels": way.labels, "weight": way.weight_of(loss)}
    return TrainingObjective(loss, ours, theirs, way.parameters, **weights)


def student(
    study: Study,
    loss: str,
    layer: str,
    seed: int = 0,
    teacher_epoch: int = -1,
    way: Way | None = None,
) -> Training:
    """The student of a ``loss`` that is measured at ``layer``; ``teacher_epoch=0`` takes the
    untrained teacher.
    """
    lr = (way or way_of(loss)).lr(study.settings)
    teacher = study.untrained_teacher() if teacher_epoch == 0 else study.teacher()
    untrained = " of the untrained teacher" if teacher_epoch == 0 else ""
    return study.taught(
        objective(study, loss, layer, way),
        seed,
        teacher,
        teacher_epoch=teacher_epoch,
        schedule=study.schedule(study.settings.epochs, lr, seed),
        label=f"student by {loss}{untrained} at {layer}, seed {seed}",
    )


def network(study: Study, role: str, layer: str, seed: int) -> Training:
    """The network of a ``role``: "baseline", a loss, or as "untrained at" the student of an
    untrained teacher.
    """
    if role == "baseline":
        return study.baseline(seed)
    untrained = role.startswith(UNTRAINED)
    return student(study, role.removeprefix(UNTRAINED), layer, seed, 0 if untrained else -1)


def with_head(
    study: Study, loss: str, layer: str, learned: Training, way: Way | None = None
) -> Training:
    """The network whose accuracy counts: the student ``learned``, with a head if it needs one."""
    if not (way or way_of(loss)).has_head:
        return learned
    return study.head(layer, learned.schedule.seed, learned)


# ------------------------------------------------------------------------------- what is stored

UNTRAINED = "untrained "  # before a loss's name: the student of the untrained teacher
OTHER = 50  # networks are compared with a baseline whose seed is so far from theirs
STEADY = 5  # last epochs of a training, over which its accuracy is averaged
OVERLAP = [
    "iou_teacher",  # knowledge points shared with the teacher, of those that either has
    "iou_place",  # the same with the teacher's points in other samples, mean over fifteen
    "iou_baseline",  # with a baseline of another seed, whose weights began elsewhere
    "added_fg",  # points on the foreground that neither the teacher nor that baseline has
    "added_bg",
]
TRAINED = ["lr", "weight", "labels"]  # of every network; weight is undefined for baselines
LEARNED = [  # how well it learned, of the student without its head
    "first_loss",  # mean over the first epoch's batches
    "last_loss",
    "train_accuracy",  # of the last epoch, with its head if it needs one
    "last_accuracy",  # held out, by which rates were chosen
]
AT_LAYERS = ("n_fg", "n_bg", "iou_teacher")
"""Columns of samples at every layer of the network, as "Conv n_fg"."""


@dataclass(frozen=True)
class LossesEvidence(Evidence):
    """Its roles are the baseline, a student for each of its ``losses``, which has the loss's name,
    and the same students of the untrained teacher, as "untrained at".

    The losses are stated, like the seeds: one that a reader adds to ``LOSSES`` changes nothing of
    what is stored. Besides the columns of all studies, networks have ``TRAINED``, ``LEARNED`` and
    their points by epoch, samples ``OVERLAP`` and, after the last epoch, ``AT_LAYERS``, and
    ``places`` of drawings the knowledge points of every sample, packed.
    """

    losses: tuple[str, ...] = tuple(WAYS)

    @property
    def roles(self) -> tuple[str, ...]:
        return "baseline", *self.losses, *(f"{UNTRAINED}{name}" for name in self.losses)

    @property
    def checked(self) -> tuple[str, ...]:
        return "feature", "baseline"

    @property
    def taught(self) -> tuple[str, ...]:
        return self.losses

    @property
    def undecided(self) -> tuple[str, ...]:
        missing = [name for name in self.losses if not way_of(name).chosen]
        what = f"rate and weight of {', '.join(missing)} (kpnb choose)"
        return (what,) if missing else ()

    def training(self, study: Study, role: str, layer: str, seed: int) -> Training:
        return network(study, role, layer, seed)

    def whole(self, one: OneNetwork) -> Training:
        loss = one.role.removeprefix(UNTRAINED)
        if one.role == "baseline":
            return one.training
        return with_head(one.study, loss, one.layer, one.training)

    def completed(self, plan: Plan, roles: Collection[str], seed: int) -> Plan:
        study = plan.study
        ones = [
            OneNetwork(study, layer, role, self.training(study, role, layer, seed), seed)
            for role in self.roles
            for layer in study.settings.layers
            if role in roles
        ]
        wholes = [self.whole(one) for one in ones]
        known = [study.teacher(), study.baseline(seed + OTHER)]
        last = {each.address: last_epoch(study, each) for each in (*known, *wholes)}
        return replace(plan.also(*wholes), measurements=(*plan.measurements, *last.values()))

    def rows(self, one: OneNetwork) -> Rows:
        study, layer, training = one.study, one.layer, one.training
        found, whole = super().rows(one), self.whole(one)
        networks = found.networks.assign(
            accuracy=accuracy(whole),
            **trained_columns(training),
            **learned_columns(training, whole),
            **curve_columns(study, training, layer),
        )
        samples = found.samples.assign(
            **overlap_columns(study, layer, training, one.seed, one.whole),
            **layer_columns(study, whole, one.whole),
        )
        # no page draws those of photographs, and they would be a third of the tables
        packs = {} if self.official else point_columns(study, layer, training, one.seed)
        return Rows(networks, samples, found.places.assign(**packs))

    def diverged(self, one: OneNetwork, why: str) -> Rows:
        """As of all studies; its accuracy is that of guessing."""
        found = super().diverged(one, why)
        known = trained_columns(one.training) | {"accuracy": guessing(one.study)}
        return replace(found, networks=found.networks.assign(**known))

    def outdated(self, results: Results) -> list[str]:
        """As for all studies; and students that would be trained differently today."""
        found = super().outdated(results)
        if results.origin is None:
            return found
        stored = results.read().networks.drop_duplicates("network")
        for row in stored[stored["network"] != "baseline"].to_dict("records"):
            loss = row["network"].removeprefix(UNTRAINED)
            if loss in self.losses:
                found += retrained(row, loss, self.settings)
        return found


LOSSES_EVIDENCE = LossesEvidence(
    "losses", ImageStudy, {"analysed": ENOUGH["images"]}, controls=(), seeds=range(5)
)
ON_PHOTOGRAPHS = LossesEvidence(
    "losses-tiny-imagenet",
    ImageStudy,
    {"dataset": "tiny-20", "analysed": ENOUGH["images"]},
    controls=(),
    seeds=range(5),
    official=True,
)
"""The same on the paper's photographs, with rates and weights that were chosen on drawings."""


def retrained(row: Mapping[str, Any], loss: str, settings: Settings) -> list[str]:
    """How the student in a ``row`` of the stored networks would be trained otherwise, in words."""
    way = way_of(loss)
    today = {"lr": way.lr(settings), "weight": way.weight_of(loss), "labels": way.labels}
    return [
        f"{row['network']}: {name} was {row[name]:g}, is {today[name]:g}"
        for name in TRAINED
        if not np.isclose(row[name], today[name])
    ]


def accuracy(network: Training) -> float:
    """Held-out accuracy: mean over the last epochs (``STEADY``). Rates do not fall, so that from
    one epoch to the next the accuracy of a baseline goes up and down by nearly as much as from seed
    to seed.
    """
    return fmean(entry["test_accuracy"] for entry in network.log[1:][-STEADY:])


def guessing(study: Study) -> float:
    """The accuracy that comes of it."""
    return 1 / len(study.train.classes)


def trained_columns(training: Training) -> dict[str, float]:
    """The columns ``TRAINED``."""
    objective = training.objective
    weight = objective.loss_weight if objective.loss else np.nan
    return {"lr": training.schedule.lr, "weight": weight, "labels": objective.labels}


def learned_columns(training: Training, whole: Training) -> dict[str, float]:
    """The columns ``LEARNED`` of a ``training``, which has become the ``whole`` network."""
    losses, last = [entry["loss"] for entry in training.log[1:]], whole.log[-1]
    values = losses[0], losses[-1], last["accuracy"], last["test_accuracy"]
    return dict(zip(LEARNED, values, strict=True))


def last_epoch(study: Study, whole: Training) -> Measurement:
    """The entropies of a network's last epoch at all of its layers."""
    return Measurement(study, whole, tuple(LAYERS[study.settings.network]), epochs=[-1])


def layer_columns(
    study: Study, whole: Training, known: Study | None = None
) -> dict[str, list[float]]:
    """The columns ``AT_LAYERS`` of a ``whole`` network, a value for each sample; undefined where a
    network's points are. ``known`` is the study whose first samples are those of ``study``.
    """
    known = known or study
    mine = last_epoch(study, whole).values()
    theirs = last_epoch(known, known.teacher()).values()
    found: dict[str, list[float]] = {}
    for layer, values in mine.items():
        ours = measure.points(study, values["entropy"][0])
        taught = measure.points(known, theirs[layer]["entropy"][0])
        count = len(ours.points)
        shared = iou(ours.points, taught.points[:count])
        shared = shared.where(ours.defined & taught.defined[:count], torch.nan)
        columns = zip(AT_LAYERS, (ours.n_fg, ours.n_bg, shared), strict=True)
        found |= {f"{layer} {name}": value.tolist() for name, value in columns}
    return found


def last_points(study: Study, network: Training, layer: str) -> KnowledgePoints:
    """A network's knowledge points after its last epoch, ``[N, n]``."""
    return measure.points(study, measure.entropies(study, network, layer, [-1])["entropy"][0])


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Of the points that either has, the share that both have, ``[N]``, of points bool ``[N, n]``;
    NaN where there are none.
    """
    return (one & other).sum(-1).double() / (one | other).sum(-1)


def overlap_columns(
    study: Study, layer: str, network: Training, seed: int, whole: Study | None = None
) -> dict[str, list[float]]:
    """The columns ``OVERLAP``, a value for each sample; undefined where a network's points are.

    whole   the study whose first samples are those of ``study``, for the teacher's points in other
            samples; None: the study itself
    """
    known = whole or study
    ours, theirs = last_points(study, network, layer), last_points(known, known.teacher(), layer)
    others = last_points(study, study.baseline(seed + OTHER), layer)
    count = len(ours.points)
    taught = theirs.points[:count]
    added = ours.points & ~taught & ~others.points
    further = shifts(len(theirs.points))
    shifted = [iou(ours.points, theirs.points.roll(-n, 0)[:count]) for n in further]
    values = {
        "iou_teacher": iou(ours.points, taught),
        "iou_place": torch.stack(shifted).nanmean(0),
        "iou_baseline": iou(ours.points, others.points),
        "added_fg": (added & study.foreground).sum(-1).double(),
        "added_bg": (added & study.background).sum(-1).double(),
    }
    defined = ours.defined & theirs.defined[:count] & others.defined
    return {name: value.where(defined, torch.nan).tolist() for name, value in values.items()}


# --------------------------------------------------------------------------------- stored points


def point_columns(study: Study, layer: str, network: Training, seed: int) -> dict[str, str]:
    """Knowledge points of all samples after the last epoch, ``packed``: the network's ("points"),
    the teacher's ("taught"), and those of a baseline of another seed ("other").
    """
    known = {"points": network, "taught": study.teacher(), "other": study.baseline(seed + OTHER)}
    return {name: packed(last_points(study, each, layer).points) for name, each in known.items()}


def packed(points: Tensor) -> str:
    """``points`` bool ``[N, n]`` as "x" and hexadecimal digits, which no reader takes for a number;
    each row begins with a byte of its own.
    """
    return "x" + np.packbits(points.numpy(), axis=1).tobytes().hex()


def unpacked(text: str, cells: int) -> Tensor:
    """The points bool ``[N, cells]`` that ``packed`` has made a text of."""
    rows = np.frombuffer(bytes.fromhex(text[1:]), np.uint8).reshape(-1, math.ceil(cells / 8))
    return torch.from_numpy(np.unpackbits(rows, axis=1, count=cells)).bool()


def cells_of(places: pd.DataFrame) -> int:
    """How many cells a picture has there."""
    return sum(column.startswith("cell") for column in places)


def points_of(places: pd.DataFrame, layer: str, seed: int, cells: int) -> dict[str, Tensor]:
    """The stored points bool ``[N, cells]`` at a layer, by network; first those of the teacher, the
    baseline, and students in the order of ``LOSSES``.
    """
    chosen = places[(places["layer"] == layer) & (places["seed"] == seed)].set_index("network")
    taught = {"teacher": unpacked(chosen["taught"].iloc[0], cells)}
    order = [name for name in ("baseline", *LOSSES) if name in chosen.index]
    return taught | {name: unpacked(chosen.loc[name, "points"], cells) for name in order}


# ------------------------------------------------------------------------- a build's own students

BRIEF = {"laptop": {"epochs": 3, "analysed": 24, "head_epochs": 2}}
"""Settings of the students that a build trains, by profile: stored evidence has the others."""


def own_losses(names: Collection[str]) -> LossesEvidence:
    """Rows as of stored evidence, of the networks of a build: students of these losses, whoever
    has written them, and their controls. Raises ``ValueError`` for a loss that there is none of.

    names   as "at", or "untrained at" for the student of the untrained teacher
    """
    known = dict.fromkeys(name.removeprefix(UNTRAINED) for name in names)
    for name in known:
        one_of("loss", name, LOSSES)
    return replace(LOSSES_EVIDENCE, losses=tuple(known))


def own_students(study: Study, seed: int, names: Collection[str]) -> Rows:
    """The rows of a build's own networks, with a baseline: trained and measured, and nothing is
    written; ``names`` as in ``own_losses``.
    """
    return collecting.seed_rows(own_losses(names), study, seed, ["baseline", *names])


def losses_plan(study: Study, seed: int, names: Collection[str]) -> Plan:
    """What that trains and measures; the paper's student comes along, because the baseline's rows
    say how far both have travelled.
    """
    planned = collecting.plan(own_losses(names), study, seed, ["baseline", *names])
    usual = [study.student(layer, seed) for layer in study.settings.layers]
    return planned.also(*usual)
