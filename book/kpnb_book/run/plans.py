"""What a chapter trains and measures, planned and not done: for the studies that the notebook
itself makes, in its first two code cells.

    forecast(plans_of(Path("notebooks/10_images_h1.ipynb"), {"profile": "paper"}))

Other solvers and other noise, which chapters 01, 12, 20, 22, 32, 42, 60 and 61 try on single
epochs, are not planned. Chapters 03 to 05 and 80 have no plan: what they train is written out in
them, or somebody else's.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kpnb_book.run.chapters import CHAPTERS
from kpnb_book.run.source import cells_of, python
from kpnb_book.studies.controls import controls_plan
from kpnb_book.studies.experiments import fine_tuned_plan, softened_plan
from kpnb_book.studies.losses import losses_plan
from kpnb_book.studies.plan import Plan, plan_of
from kpnb_book.studies.study import Study
from kpnb_book.studies.transformer import transformer_plan


def made_by(path: Path, parameters: Mapping[str, Any]) -> SimpleNamespace:
    """What the first two code cells of a notebook make: its parameters, and studies of them."""
    cells = [cell for cell in cells_of(path) if cell.kind == "code"]
    own = [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    first, making = (python(cell.source) for cell in own[:2])
    made: dict[str, Any] = {}
    exec(first, made)  # as a kernel does when the chapter is run
    made |= parameters
    exec(making, made)
    return SimpleNamespace(**made)


def _each(studies: Iterable[Study], what: str = "pairs") -> list[Plan]:
    return [plan_of(study, what) for study in studies]


def _of_clouds(made: SimpleNamespace) -> list[Plan]:
    """The teachers of the first and the last network are measured too."""
    names = [*made.studies]
    kinds = dict.fromkeys((names[0], names[-1]), "first chapter")
    return [plan_of(study, kinds.get(name, "chapter")) for name, study in made.studies.items()]


def _of_outputs(made: SimpleNamespace) -> list[Plan]:
    plan = softened_plan(made.study, made.seed, made.temperature)
    return [plan.also(made.study.head("FC3", made.seed))]


def _of_fine_tuning(made: SimpleNamespace) -> list[Plan]:
    before = None if made.weights else made.before.teacher()
    return [fine_tuned_plan(made.study, before, made.layer, made.seed)]


PLANS: dict[str, Callable[[SimpleNamespace], list[Plan]]] = {
    "00": lambda made: _each([made.study], "baseline"),
    "20": _of_clouds,
    "50": lambda made: _each([*made.fc1.values(), *made.conv.values()]),
    "51": lambda made: _each([*made.studies.values(), made.study]),
    "52": _of_outputs,
    "53": _of_fine_tuning,
    "60": lambda made: [
        plan_of(made.study, "teacher"), *_each([made.study, made.clouds], "baseline")
    ],
    "61": lambda made: [
        *_each([made.study]), controls_plan(made.short, made.control_seeds)
    ],
    "70": lambda made: [losses_plan(made.study, made.seed, made.losses)],
    "71": lambda made: [transformer_plan(made.study, made.seed, made.students)],
    "90": lambda made: _each(made.studies.values()),
} | {
    **dict.fromkeys(("01", "02"), lambda made: _each([made.study], "teacher")),
    **dict.fromkeys(("10", "30", "40"), lambda made: _each([made.study], "first chapter")),
    **dict.fromkeys(("21", "22"), lambda made: _each(made.studies.values())),
    **dict.fromkeys(
        ("11", "12", "13", "14", "31", "32", "33", "41", "42"), lambda made: _each([made.study])
    ),
}  # fmt: skip
"""By the number of a chapter, its plans of what its notebook has made."""


def plans_of(path: Path, parameters: Mapping[str, Any]) -> list[Plan]:
    """What the chapter in ``path`` trains and measures with these ``parameters``.

    Raises ``ValueError`` for a notebook without a plan, and what a study raises that cannot be
    made.
    """
    number = path.stem[:2]
    if path.stem not in CHAPTERS or number not in PLANS:
        raise ValueError(
            "it has no plan, because no study of this book says what it trains; these chapters "
            f"have one: {', '.join(sorted(PLANS))}"
        )
    return PLANS[number](made_by(path, parameters))
