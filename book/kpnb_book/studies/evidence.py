"""Evidence: which studies are computed with enough seeds to decide, and which controls with them.

The number of seeds is stated before (``SEEDS``), nothing is looked at in between, and every control
has as many as the verdict beside which it stands. ``collecting`` computes them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kpnb.checkpoints import digest
from kpnb_book.store import Store
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.controls import random_labels_teacher
from kpnb_book.studies.curves import curve_columns
from kpnb_book.studies.foreground import rule_columns
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.plan import Plan
from kpnb_book.studies.results import Results, Rows, changed_settings
from kpnb_book.studies.rows import OneNetwork, rows_of, without_numbers
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.study import Study
from kpnb_book.studies.targets import constant_error
from kpnb_book.studies.text import QuestionStudy, TextStudy
from kpnb_book.studies.training import Training
from kpnb_book.studies.verdicts import BY_HEART

METHOD = 1
"""Raise it when the numbers change though no setting does: stored evidence is stale then."""
PROFILE = "laptop"
SEEDS = range(20)


@dataclass(frozen=True)
class Evidence:
    """What is collected: which study, and which networks of it beside student and baseline.

    name        of the folder of its tables
    kind        the study's class
    overrides   of its laptop profile
    controls    names in ``NETWORKS``
    seeds       how many, stated before any is computed
    official    whether the data are the paper's own, which a reader has to bring
    """

    name: str
    kind: type[Study]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[str, ...] = ("untrained", "equal-rate")
    seeds: range = SEEDS
    official: bool = False

    @property
    def settings(self) -> Settings:
        """Of the study."""
        return self.kind.resolve(PROFILE, **self.overrides)

    @property
    def roles(self) -> tuple[str, ...]:
        """What the networks of a seed are."""
        return "baseline", "student", *self.controls

    @property
    def checked(self) -> tuple[str, ...]:
        """Those that are computed again to check the tables."""
        return "student", "baseline"

    @property
    def taught(self) -> tuple[str, ...]:
        """Those beside which the accuracy of their teacher is stored."""
        return "student", "equal-rate", "random-labels"

    def teacher_of(self, role: str) -> str:
        """Which teacher one of ``taught`` has; those that have the same one answer the same."""
        return role if role == "random-labels" else "teacher"

    @property
    def undecided(self) -> tuple[str, ...]:
        """Settings that have to be chosen before anything is counted, in words."""
        return ()

    def training(self, study: Study, role: str, layer: str, seed: int) -> Training:
        """The network of a ``role`` that is measured at ``layer``."""
        return NETWORKS[role](study, layer, seed)

    def completed(self, plan: Plan, roles: Collection[str], seed: int) -> Plan:
        """``plan``, which measures the networks of these ``roles``, and what their rows take
        besides.
        """
        study = plan.study
        heads = [study.head(layer, seed) for layer in study.settings.layers if "student" in roles]
        return plan.also(*heads)

    def rows(self, one: OneNetwork) -> Rows:
        """The rows of one network, see ``rows_of``."""
        found, training = rows_of(one), one.training
        more: dict[str, float] = {}
        if one.role in self.taught:
            more[TEACHER] = training.teacher.accuracy
        if one.role == "random-labels":
            more[BY_HEART] = training.teacher.log[-1]["accuracy"]
        if (error := training.log[-1].get("feature_error")) is not None:
            more[FITTED] = error
        if training.teacher_source is not None:
            more[CONSTANT] = constant_error(training)
        return replace(found, networks=found.networks.assign(**more))

    def whole(self, one: OneNetwork) -> Training:
        """The last training of a network: that of its head, if its rows take one."""
        return one.study.head(one.layer, one.seed) if one.role == "student" else one.training

    def diverged(self, one: OneNetwork, why: str) -> Rows:
        """The rows of a network whose training, or that of its head, did not stay finite.

        It is not trained again, with another rate or seed: its place is kept, with the reason and
        without a number. ``FloatingPointError`` for a baseline, with which all are compared.
        """
        if one.role == "baseline":
            raise FloatingPointError(f"seed {one.seed} is lost: {why}")
        return without_numbers(one, why)

    def study(self, store: Store | None = None, **overrides: Any) -> Study:
        """The study, at its laptop settings but for ``overrides``."""
        return self.kind(PROFILE, store=store, **{**self.overrides, **overrides})

    def origin(self, study: Study) -> dict[str, Any]:
        """What the tables belong to, in JSON's types."""
        return self.stated(study.settings) | {
            "samples": len(study.measured),
            "measured": digest(study.measured.config)[:20],
        }

    def stated(self, settings: Settings) -> dict[str, Any]:
        """The part of ``origin`` that is known without loading data. Device, folder and seeds are
        left out: no number depends on the first two, and seeds are rows of the tables.
        """
        values = asdict(settings)
        for name in ("device", "data_root", "seeds"):
            del values[name]
        study = {"name": self.name, "study": self.kind.__name__, "profile": PROFILE}
        return study | {"settings": values, "method": METHOD}

    def outdated(self, results: Results) -> list[str]:
        """Settings in which the tables differ from today's, in words; for pages, without the data.
        Empty when there are no tables.
        """
        theirs = results.origin
        if theirs is None:
            return []
        ours = self.stated(self.settings)
        return changed_settings({name: theirs.get(name) for name in ours}, ours)


@dataclass(frozen=True)
class ImageEvidence(Evidence):
    """Besides the columns of all studies, samples have the metrics by other ``rules`` of what is
    foreground, and networks their points by epoch.
    """

    rules: tuple[str, ...] = ()

    def rows(self, one: OneNetwork) -> Rows:
        found, network = super().rows(one), (one.study, one.training, one.layer)
        return replace(
            found,
            networks=found.networks.assign(**curve_columns(*network)),
            samples=found.samples.assign(**rule_columns(*network, self.rules)),
        )


def at_equal_rate(study: Study, layer: str, seed: int) -> Training:
    """The student, trained with the baseline's rate."""
    student = study.student(layer, seed)
    return replace(student, schedule=replace(student.schedule, lr=study.settings.lr))


NETWORKS: dict[str, Callable[[Study, str, int], Training]] = {
    "baseline": lambda study, layer, seed: study.baseline(seed),
    "student": lambda study, layer, seed: study.student(layer, seed),
    "untrained": lambda study, layer, seed: study.untrained_student(layer, seed),
    "pretrained": lambda study, layer, seed: study.student(layer, seed, teacher_epoch=0),
    "equal-rate": at_equal_rate,
    "random-labels": lambda study, layer, seed: study.student(
        layer, seed, teacher=random_labels_teacher(study)
    ),
}

TEACHER = "teacher_accuracy"
"""Column of networks, of those in ``Evidence.taught``: held-out accuracy of their teacher."""
FITTED = "train_feature_error"
"""Column of networks: the relative feature error on the images that a student learned from, which
are measured; it tells what was not learned from what was not generalised.
"""
CONSTANT = "constant_error"
"""Column of networks: the feature error of a constant, for the target that they have."""
ENOUGH = {"images": 112, "clouds": 112, "sentiment": 208, "questions": 160, "sst2": 480}
"""Measured samples. So many were to define each metric for at least a hundred, of SST-2 for two
hundred: on seed 100, 92 of 160 sentences have a foreground point at some epoch in student and
baseline both, without which D and rho are undefined. For questions it turned out to be too few;
the page of evidence has the numbers of all studies.
"""

OFFICIAL = ("untrained", "random-labels", "equal-rate")  # controls on the paper's own data
OF_TEXTS = ("untrained", "pretrained", "equal-rate")
"""Controls where the teacher starts from a pre-trained encoder: also the student of that, as it
came."""


def _clouds(network: str, seeds: range = SEEDS) -> Evidence:
    settings = {"network": network, "analysed": ENOUGH["clouds"]}
    return Evidence(network, CloudStudy, settings, seeds=seeds)


def _drawings(title: str, **changed: Any) -> Evidence:
    """An experiment: the embedded images with one setting ``changed``."""
    settings = {"analysed": ENOUGH["images"], **changed}
    return Evidence(f"images-{title}", ImageStudy, settings, (), range(5))


def _tiny_imagenet(
    network: str,
    title: str,
    controls: tuple[str, ...] = (),
    seeds: range = range(5),
    **more: Any,
) -> Evidence:
    """Photographs; their masks are boxes."""
    settings = {
        "dataset": "tiny-20",
        "network": network,
        "layers": ("Conv", "FC1", "FC2"),
        "analysed": ENOUGH["images"],
        **more,
    }
    name = f"tiny-imagenet-{title}"
    return ImageEvidence(name, ImageStudy, settings, controls, seeds, True, rules=("apart",))


def _sst2(name: str, controls: tuple[str, ...], seeds: range, **more: Any) -> Evidence:
    settings = {"dataset": "sst2", "analysed": ENOUGH["sst2"], **more}
    return Evidence(name, TextStudy, settings, controls, seeds, official=True)


_ALL = [
    ImageEvidence("images", ImageStudy, {"analysed": ENOUGH["images"]}, rules=("box", "apart")),
    _tiny_imagenet("vgg11_bn", "vgg11", OFFICIAL, SEEDS),
    _tiny_imagenet("alexnet", "alexnet"),
    _tiny_imagenet("vgg16_bn", "vgg16"),
    _tiny_imagenet("vgg19_bn", "vgg19"),
    _tiny_imagenet("vgg11_bn", "larger-teacher", seeds=range(10), teacher_network="vgg16_bn"),
    _tiny_imagenet("vgg16_bn", "vgg16-larger-teacher", teacher_network="vgg19_bn"),
    _drawings("small-share", share=500),
    _drawings("weak-teacher", teacher_samples=2000),
    _drawings("one-artist", dataset="emoji-one-artist"),
    _drawings("in-context", dataset="emoji-in-context"),
    _clouds("pointnet"),
    _clouds("pointnet2"),
    _clouds("dgcnn", range(10)),
    _clouds("pointconv", range(10)),
    Evidence("sentiment", TextStudy, {"analysed": ENOUGH["sentiment"]}, OF_TEXTS),
    _sst2("sst2", ("pretrained", *OFFICIAL), SEEDS),
    _sst2("sst2-six-layers", (), range(5), depth="all"),
    Evidence("questions", QuestionStudy, {"analysed": ENOUGH["questions"]}, OF_TEXTS),
]
STUDIES = {each.name: each for each in _ALL}
