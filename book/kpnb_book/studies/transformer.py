"""A vision transformer under the same microscope: by which teacher it was taught, and how; what its
blocks discard, and which output is the feature; how it differs from a convolutional network.

    collect(TRANSFORMER_EVIDENCE, range(5), Results(RESULTS / "transformer"))

All students begin with the baseline's weights and see its share of the images. The paper's student
learns a feature of a transformer; the others learn what their teacher says, beside the labels:
that of another transformer, or of the convolutional network of the other chapters.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from kpnb._messages import one_of
from kpnb.losses import TrainingObjective
from kpnb.points import background_level
from kpnb_book.networks.images import LAYERS, TRANSFORMERS
from kpnb_book.studies import losses, measure
from kpnb_book.studies.curves import curve_columns
from kpnb_book.studies.evidence import ENOUGH, Evidence
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement, metrics
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import Rows
from kpnb_book.studies.rows import OneNetwork
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training

TAUGHT = ("student", "outputs", "convolution")  # by a feature; by outputs, of either teacher
UNTRAINED = {
    "student": "untrained",
    "outputs": "untrained outputs",
    "convolution": "untrained convolution",
}
"""The same students, of a teacher of random weights: the same one before its training, unless that
starts from weights that were learned elsewhere (``Study.untrained_teacher``).
"""
CONTROL_OF = {control: taught for taught, control in UNTRAINED.items()}
"""What each of these is a control of."""
OF_FEATURES = ("student", "untrained")
"""Networks that learn a feature alone, and get a head afterwards."""
SAME = (
    "dataset", "data_root", "size", "width", "hidden", "teacher_samples", "teacher_epochs",
    "share", "test_samples", "analysed", "grid", "device",
)  # fmt: skip
"""What the convolutional teacher's study has from the transformers'."""


def convolutional(study: Study) -> ImageStudy:
    """The study of convolutional networks on the same data."""
    same = {name: getattr(study.settings, name) for name in SAME}
    return on_data_of(study, ImageStudy(study.profile, store=study.store, **same))


def in_patches(study: ImageStudy) -> ImageStudy:
    """The same study with a transformer's patches as units."""
    s = study.settings
    settings = asdict(s) | {"grid": s.size // TRANSFORMERS[s.network][1]}
    return on_data_of(study, ImageStudy(study.profile, store=study.store, **settings))


def on_data_of(study: Study, other: ImageStudy) -> ImageStudy:
    """The ``other`` study with the samples of ``study``, which may be some of those that it would
    measure; it is changed.
    """
    other.train, other.share, other.test = study.train, study.share, study.test
    other.measured = study.measured
    return other


def layers_of(study: Study) -> tuple[str, ...]:
    """A transformer's layers but the logits, from the input on: its blocks, and what may be called
    its feature.
    """
    return tuple(name for name in LAYERS[study.settings.network] if name != "FC3")


def by_outputs(study: Study, teachers: Study, seed: int, untrained: bool = False) -> Training:
    """The student of a teacher's softened outputs beside the labels, at the baseline's rate.

    teachers    the study whose teacher it is
    untrained   whether that teacher has random weights
    """
    teacher = teachers.untrained_teacher() if untrained else teachers.teacher()
    epoch, whose = (0, "an untrained teacher") if untrained else (-1, "a teacher")
    return study.taught(
        TrainingObjective("soft_targets", labels=1.0),
        seed,
        teacher,
        teacher_epoch=epoch,
        schedule=study.baseline(seed).schedule,
        label=f"student of {whose}'s outputs, seed {seed}",
    )


def network(study: Study, role: str, layer: str, seed: int) -> Training:
    """The network of a ``role``: "baseline", one of ``TAUGHT``, or its control in ``UNTRAINED``."""
    if role == "baseline":
        return study.baseline(seed)
    taught, untrained = CONTROL_OF.get(role, role), role in CONTROL_OF
    one_of("network", taught, TAUGHT)
    if taught == "student":
        return study.untrained_student(layer, seed) if untrained else study.student(layer, seed)
    teachers = study if taught == "outputs" else convolutional(study)
    return by_outputs(study, teachers, seed, untrained)


TEACHERS = ("transformer", "convolution")
"""Kinds of teacher, as in names of columns."""
SHARED = ("shared_transformer", "shared_convolution")
"""Columns of samples: of the points that a network or that teacher has, the share that both have,
after the last epoch."""


@dataclass(frozen=True)
class TransformerEvidence(Evidence):
    """Besides the columns of all studies, of the last epoch: networks have for each layer what
    ``by_layer`` says, as "Block1 n_fg", and what it says of the transformer's teacher, as "teacher
    Block1 n_fg", and of the untrained one; samples have ``contrasts`` at each layer, as "Block1
    lambda", and with patches as units, as "patch lambda"; and what they have in common with either
    teacher, ``SHARED``. All networks have their points by epoch, their rate, and how well they
    learned, as those of losses; ``places`` the knowledge points of every sample, packed.
    """

    @property
    def roles(self) -> tuple[str, ...]:
        return "baseline", *TAUGHT, *UNTRAINED.values()

    @property
    def taught(self) -> tuple[str, ...]:
        return TAUGHT

    def teacher_of(self, role: str) -> str:
        return "convolutional teacher" if role == "convolution" else "teacher"

    def training(self, study: Study, role: str, layer: str, seed: int) -> Training:
        return network(study, role, layer, seed)

    def whole(self, one: OneNetwork) -> Training:
        return with_head(one.study, one.role, one.layer, one.seed, one.training)

    def diverged(self, one: OneNetwork, why: str) -> Rows:
        """As of all studies; its accuracy is that of guessing."""
        found = super().diverged(one, why)
        known = losses.trained_columns(one.training) | {"accuracy": losses.guessing(one.study)}
        return replace(found, networks=found.networks.assign(**known))

    def completed(self, plan: Plan, roles: Collection[str], seed: int) -> Plan:
        study = plan.study
        last = [last_epoch(study, each.training) for each in plan.measurements]
        last += [
            Measurement(in_patches(study), each.training, each.layers, epochs=[-1])
            for each in plan.measurements
        ]
        convolutions = convolutional(study)
        first = convolutions.settings.layers[:1]
        last += [
            *teachers(study).values(),
            Measurement(convolutions, convolutions.teacher(), first, epochs=[-1]),
        ]
        heads = [
            with_head(study, role, layer, seed, network(study, role, layer, seed))
            for role in OF_FEATURES
            for layer in study.settings.layers
            if role in roles
        ]
        return replace(plan.also(*heads), measurements=(*plan.measurements, *last))

    def rows(self, one: OneNetwork) -> Rows:
        study, layer, training = one.study, one.layer, one.training
        found, whole = super().rows(one), self.whole(one)
        more = losses.trained_columns(training) | losses.learned_columns(training, whole)
        more |= by_layer(study, last_epoch(study, training)) | teacher_columns(study)
        more |= curve_columns(study, training, layer)
        networks = found.networks.assign(accuracy=losses.accuracy(whole))
        networks = pd.concat([networks, pd.DataFrame([more])], axis=1)
        patches = in_patches(study)
        H = measure.entropies(patches, training, layer, [-1])["entropy"][0]
        samples = found.samples.assign(
            **contrasts_by_layer(study, training),
            **contrasts(patches, H, "patch"),
            **shared_columns(study, training, layer),
        )
        packs = point_columns(study, training, layer)
        return Rows(networks, samples, found.places.assign(**packs))


TRANSFORMER_EVIDENCE = TransformerEvidence(
    "transformer",
    ImageStudy,
    {"network": "vit_4_8", "layers": "cls", "analysed": ENOUGH["images"]},
    controls=(),
    seeds=range(5),
)
ON_PHOTOGRAPHS = replace(
    TRANSFORMER_EVIDENCE,
    name="transformer-tiny-imagenet",
    overrides={**TRANSFORMER_EVIDENCE.overrides, "dataset": "tiny-20"},
    official=True,
)
"""The same on the paper's photographs, with rates that were chosen on drawings."""


MEASURES = ("n_fg", "n_bg", "gap")


def with_head(study: Study, role: str, layer: str, seed: int, learned: Training) -> Training:
    """The network of a ``role`` whose accuracy counts: what has ``learned``, with a head if it has
    learned a feature.
    """
    return study.head(layer, seed, learned) if role in OF_FEATURES else learned


def last_epoch(study: Study, training: Training) -> Measurement:
    """The entropies of a network's last epoch at all of ``layers_of``."""
    return Measurement(study, training, layers_of(study), epochs=[-1])


def teachers(study: Study) -> dict[str, Measurement]:
    """The same of the transformers' teacher, and of the untrained one before its first epoch."""
    before = Measurement(study, study.untrained_teacher(), layers_of(study), epochs=[0])
    return {"teacher": last_epoch(study, study.teacher()), "untrained teacher": before}


def teacher_columns(study: Study) -> dict[str, float]:
    """What ``by_layer`` says of both, as "teacher Block1 gap"."""
    return {
        f"{name} {column}": value
        for name, measured in teachers(study).items()
        for column, value in by_layer(study, measured).items()
    }


def by_layer(study: Study, measured: Measurement) -> dict[str, float]:
    """Means over the samples at each layer, of one epoch that is ``measured``: ``MEASURES``, and
    ``linearity`` and ``error`` (nats) of the entropies.
    """
    found = {}
    for layer, values in measured.values().items():
        of_samples = contrasts(study, values["entropy"][0], layer)
        means = {name: of_samples[f"{layer} {name}"] for name in MEASURES}
        means |= {name: values[name].flatten().tolist() for name in ("linearity", "error")}
        found |= {f"{layer} {name}": _mean(each) for name, each in means.items()}
    return found


def _mean(values: list[float]) -> float:
    """That of what is defined; NaN of nothing."""
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


def contrasts(study: Study, H: Tensor, prefix: str) -> dict[str, list[float]]:
    """Of each sample's entropies ``H [N, n]``, as "prefix n_fg": foreground and background points,
    lambda; the ``gap``, by how many nats more of the background is discarded than of the
    foreground; and the ``spread`` of H over the background, a standard deviation (nats). The mean
    of H is the same at every layer, so that few points may mean but little spread.
    """
    points = measure.points(study, H)
    H = H.double()
    inside, outside = (background_level(H, each) for each in (study.foreground, study.background))
    off = H.where(study.background, torch.nan)
    spread = (off - off.nanmean(-1, keepdim=True)).square().nanmean(-1).sqrt()
    values = {"n_fg": points.n_fg, "n_bg": points.n_bg, "lambda": points.ratio}
    values |= {"gap": (outside - inside)[:, 0], "spread": spread}
    return {f"{prefix} {name}": each.tolist() for name, each in values.items()}


def contrasts_by_layer(study: Study, training: Training) -> dict[str, list[float]]:
    """``contrasts`` after the last epoch at all of ``layers_of``."""
    found: dict[str, list[float]] = {}
    for layer, values in last_epoch(study, training).values().items():
        found |= contrasts(study, values["entropy"][0], layer)
    return found


def point_columns(study: Study, training: Training, layer: str) -> dict[str, str]:
    """Knowledge points of all samples after the last epoch, packed as those of losses: the
    network's, in cells ("points") and in patches ("patch points"), and those of both teachers, of
    which ``SHARED`` are shares ("transformer points", "convolution points"). The network's and the
    transformer's are there at the other layers, too ("Block1 points", "Block1 transformer points").
    """
    convolutions, teacher = convolutional(study), study.teacher()
    known = {
        "points": (study, training, layer),
        "patch points": (in_patches(study), training, layer),
        "transformer points": (study, teacher, layer),
        "convolution points": (
            convolutions, convolutions.teacher(), convolutions.settings.layers[0]
        ),
    }  # fmt: skip
    for other in layers_of(study):
        if other != layer:
            known[f"{other} points"] = study, training, other
            known[f"{other} transformer points"] = study, teacher, other
    return {name: losses.packed(losses.last_points(*which).points) for name, which in known.items()}


def shared_columns(study: Study, training: Training, layer: str) -> dict[str, list[float]]:
    """The columns ``SHARED``, of a network's points at ``layer`` and those of a teacher at the
    first layer of its study; undefined where either's points are.
    """
    ours = losses.last_points(study, training, layer)
    found = {}
    for name, each in zip(SHARED, (study, convolutional(study)), strict=True):
        theirs = losses.last_points(each, each.teacher(), each.settings.layers[0])
        both = losses.iou(ours.points, theirs.points)
        found[name] = both.where(ours.defined & theirs.defined, torch.nan).tolist()
    return found


# ------------------------------------------------------------------------ a build's own networks

OWN = ("baseline", "convolution")
BRIEF = {"laptop": {"epochs": 3, "share": 1000, "analysed": 12}}
"""Settings of the networks that a build trains, by profile: stored evidence has the others."""


def own_networks(
    study: Study, seed: int, students: Iterable[str] | None = None
) -> dict[str, Training]:
    """Those of a build: the baseline, the student of a convolutional network, and other
    ``students`` where they are asked for; their teachers would take longer than the rest of the
    chapter.
    """
    layer, roles = study.settings.layers[0], dict.fromkeys([*OWN, *(students or ())])
    return {role: network(study, role, layer, seed) for role in roles}


def last_points(
    study: Study, networks: Mapping[str, Training], layer: str, chosen: Tensor
) -> dict[str, Tensor]:
    """Knowledge points bool ``[K, n]`` after the last epoch, by network, of the samples ``chosen``
    ``[K]`` among the measured.
    """
    return {
        name: losses.last_points(study, training, layer).points[chosen]
        for name, training in networks.items()
    }


def accuracy(study: Study, role: str, layer: str, seed: int, training: Training) -> float:
    """Held-out accuracy, of those that learn a feature with their heads."""
    return losses.accuracy(with_head(study, role, layer, seed, training))


def own_table(study: Study, seed: int, students: Iterable[str] | None = None) -> pd.DataFrame:
    """A row for each of them: the six metrics, held-out accuracy, and ``by_layer``."""
    (layer,) = study.settings.layers
    rows = [
        {"network": role}
        | metrics(study, training, layer).row()
        | {"accuracy": accuracy(study, role, layer, seed, training)}
        | by_layer(study, last_epoch(study, training))
        for role, training in own_networks(study, seed, students).items()
    ]
    return pd.DataFrame(rows)


def transformer_plan(study: Study, seed: int, students: Iterable[str] | None = None) -> Plan:
    """What a build trains and measures."""
    networks = own_networks(study, seed, students)
    (layer,) = study.settings.layers
    planned = Plan.measuring(study, [(each, layer) for each in networks.values()])
    last = [last_epoch(study, each) for each in networks.values()]
    heads = [with_head(study, role, layer, seed, each) for role, each in networks.items()]
    return replace(planned.also(*heads), measurements=(*planned.measurements, *last))
