"""Fine-tuning as evidence, for the paper's figure 7 on the paper's own images: networks that
learned half of the classes, and then learn the other half, beside others from scratch.

    collect(FINE_TUNING_EVIDENCE, range(5), Results(RESULTS / "tiny-imagenet-fine-tuning"), ...)
"""

from dataclasses import dataclass, replace

from kpnb._messages import one_of
from kpnb_book.studies.evidence import ENOUGH, ImageEvidence
from kpnb_book.studies.experiments import SomeClasses, fine_tuned
from kpnb_book.studies.results import Rows
from kpnb_book.studies.rows import OneNetwork
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training
from kpnb_book.studies.verdicts import NAMES, SIX, Question, of_path

BEFORE, NEW = range(10), range(10, 20)
"""Positions of the classes that are learned before, and of those that all networks learn."""
ROLES = ("fine-tuned", "from scratch")
QUESTION = Question("fine-tuned - from scratch", *ROLES, SIX, NAMES)
SHARE = replace(of_path(*ROLES), name="share of the path")
SAME = ("data_root", "device", "dataset", "network", "size", "width", "hidden", "grid")
"""What the network that is fine-tuned has from the study of the new classes."""


def before(study: Study) -> Training:
    """The training that fine-tuning starts from: the teacher of the other classes.

    Raises ValueError where the data have fewer classes than the two halves.
    """
    same = {name: getattr(study.settings, name) for name in SAME}
    return SomeClasses(study.profile, store=study.store, classes=(*BEFORE,), **same).teacher()


@dataclass(frozen=True)
class FineTuningEvidence(ImageEvidence):
    """Its networks are one that is fine-tuned, and one from scratch in the same schedule."""

    @property
    def roles(self) -> tuple[str, ...]:
        return ROLES

    @property
    def checked(self) -> tuple[str, ...]:
        return ROLES

    def training(self, study: Study, role: str, layer: str, seed: int) -> Training:
        one_of("network", role, ROLES)
        if role == "from scratch":
            return study.baseline(seed)
        return fine_tuned(study, before(study), seed)

    def rows(self, one: OneNetwork) -> Rows:
        found, accuracy = super().rows(one), one.study.scores(one.training)["accuracy"]
        return replace(found, networks=found.networks.assign(accuracy=accuracy))


FINE_TUNING_EVIDENCE = FineTuningEvidence(
    "tiny-imagenet-fine-tuning",
    SomeClasses,
    {
        "dataset": "tiny-20",
        "classes": (*NEW,),
        "layers": ("Conv",),
        "analysed": ENOUGH["images"],
    },
    controls=(),
    seeds=range(5),
    official=True,
)
