"""A plan, which is data: what is trained and measured; it computes nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product

from kpnb._messages import one_of
from kpnb_book.studies.measure import Measurement
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training, with_required


@dataclass(frozen=True)
class Plan:
    """What is trained and measured for one ``study``.

    What the ``trainings`` require, and those behind the ``measurements``, need not be listed.
    """

    study: Study
    trainings: tuple[Training, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    @classmethod
    def measuring(cls, study: Study, networks: Iterable[tuple[Training, str]]) -> "Plan":
        """The ``networks`` are trained, and each is measured after every epoch at the layer beside
        it; a network at several layers is measured there in one call.
        """
        trainings: dict[str, Training] = {}
        layers: dict[str, list[str]] = {}
        for training, layer in networks:
            trainings[training.address] = training
            layers.setdefault(training.address, []).append(layer)
        measurements = [
            Measurement(study, training, tuple(dict.fromkeys(layers[address])))
            for address, training in trainings.items()
        ]
        return cls(study, tuple(trainings.values()), tuple(measurements))

    def also(self, *trainings: Training) -> "Plan":
        """The same, and these trainings."""
        return replace(self, trainings=(*self.trainings, *trainings))

    def everything(self) -> dict[str, Training]:
        """All trainings by address, each behind those that it requires."""
        return with_required([*self.trainings, *(each.training for each in self.measurements)])


def _pairs(study: Study) -> Plan:
    s, networks = study.settings, []
    for layer, seed in product(s.layers, s.seeds):
        networks.append((study.student(layer, seed), layer))
        networks.append((study.baseline(seed), layer))
    return Plan.measuring(study, networks)


def _chapter(study: Study) -> Plan:
    s, plan = study.settings, _pairs(study)
    heads = [study.head(layer, seed) for layer, seed in product(s.layers, s.seeds)]
    return plan.also(*heads)


def _first_chapter(study: Study) -> Plan:
    plan, layer = _chapter(study), study.settings.layers[0]
    teacher = Measurement(study, study.teacher(), (layer,))
    return replace(plan, measurements=(*plan.measurements, teacher))


def _teacher(study: Study) -> Plan:
    return Plan(study, (study.teacher(),))


def _baseline(study: Study) -> Plan:
    return Plan(study, (study.baseline(study.settings.seeds[0]),))


KINDS: dict[str, Callable[[Study], Plan]] = {
    "pairs": _pairs,  # student and baseline, at every layer and seed
    "chapter": _chapter,  # the same, with the students' heads: what a hypothesis takes
    "first chapter": _first_chapter,  # the same, with the teacher measured at the first layer
    "teacher": _teacher,  # trained, and not measured after every epoch
    "baseline": _baseline,  # that of the first seed; not measured either
}


def plan_of(study: Study, what: str = "chapter") -> Plan:
    """What is trained and measured for a study; ``what`` is one of ``KINDS``."""
    one_of("kind of plan", what, KINDS)
    return KINDS[what](study)
