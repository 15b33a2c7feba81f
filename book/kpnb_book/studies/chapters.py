"""Which studies a chapter builds from its parameters, and what it trains and measures for them.

    forecast(plans_of("10", parameters))

The parameters are those of the notebook's first code cell, all of them, by name. Other solvers and
other noise, which chapters 01, 12, 20, 22, 32, 42, 60 and 61 try on single epochs, are not planned.
Chapters 03 to 05 have no plan: what they train is written out in them, or somebody else's.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from kpnb._messages import one_of
from kpnb_book.data.samples import check_root
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.controls import controls_plan
from kpnb_book.studies.experiments import (
    BRIEF_BEFORE,
    BRIEF_FINE_TUNING,
    BRIEF_OUTPUTS,
    BRIEF_TEACHER_SIZE,
    FewOutputs,
    SomeClasses,
    fine_tuned_plan,
    halves,
    softened_plan,
)
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.images import Settings as ImageSettings
from kpnb_book.studies.losses import BRIEF, losses_plan
from kpnb_book.studies.plan import Plan, plan_of
from kpnb_book.studies.settings import brief, several
from kpnb_book.studies.study import Study
from kpnb_book.studies.text import QuestionStudy, TextStudy
from kpnb_book.studies.transformer import BRIEF as OF_TRANSFORMERS
from kpnb_book.studies.transformer import transformer_plan

Parameters = Mapping[str, Any]

SETTINGS = {"layer": "layers", "seed": "seeds"}  # parameters with other names than the settings


def given(parameters: Parameters, but: Iterable[str] = ()) -> dict[str, Any]:
    """Parameters as settings of a study, without the profile and those ``but``."""
    left = {name: value for name, value in parameters.items() if name not in {"profile", *but}}
    return {SETTINGS.get(name, name): value for name, value in left.items()}


def on_own_data(parameters: Parameters, kind: type[Study]) -> list[Plan]:
    """A chapter on stored evidence, with networks of one study beside it."""
    options = given(parameters, but=["results"])
    return [plan_of(kind(parameters["profile"], **options), "pairs")]


def one_plan(parameters: Parameters, kind: type[Study], what: str) -> list[Plan]:
    """A chapter on one study."""
    return [plan_of(kind(parameters["profile"], **given(parameters)), what)]


def clouds_plans(parameters: Parameters, what: str, ends: str | None = None) -> list[Plan]:
    """A chapter on several networks for clouds; ``ends``: of the first and the last network."""
    options = given(parameters, but=["network"])
    studies = CloudStudy.several(parameters["profile"], parameters["network"], **options)
    kinds = dict.fromkeys(studies, what)
    for name in (next(iter(studies)), next(reversed(studies))):
        kinds[name] = ends or what
    return [plan_of(study, kinds[name]) for name, study in studies.items()]


def coherency(parameters: Parameters) -> list[Plan]:
    options = given(parameters, but=["factor", "images"])
    return [plan_of(ImageStudy(parameters["profile"], **options), "teacher")]


def teacher_size(parameters: Parameters) -> list[Plan]:
    profile, paper = parameters["profile"], parameters["profile"] == "paper"
    usual = ["vgg11", "vgg16", "vgg19"] if paper else ["vgg11_bn", "vgg16_bn"]
    options = given(parameters, but=["teachers"])
    options["network"] = parameters["network"] or ("vgg11" if paper else None)
    options |= brief(BRIEF_TEACHER_SIZE, profile, parameters["epochs"])
    studies = [
        ImageStudy(profile, **options, layers=layer, teacher_network=name)
        for layer in ("FC1", "Conv")
        for name in parameters["teachers"] or usual
    ]
    return [plan_of(study, "pairs") for study in studies if study.fits(*study.settings.layers)]


def grid_and_threshold(parameters: Parameters) -> list[Plan]:
    profile = parameters["profile"]
    options = given(parameters, but=["grids", "thresholds"])
    fewer = {"layers": "FC1", "analysed": {"smoke": 8, "laptop": 16}.get(profile)}
    grids = [ImageStudy(profile, grid=grid, **options, **fewer) for grid in parameters["grids"]]
    whole = ImageStudy(profile, **{**options, "seeds": None})
    return [plan_of(study, "pairs") for study in (*grids, whole)]


def output_distillation(parameters: Parameters) -> list[Plan]:
    profile, seed = parameters["profile"], parameters["seed"]
    options = given(parameters, but=["classes", "temperature"])
    whole = ImageStudy(profile, **options)
    counts = whole.train.labels.bincount()
    largest = counts.argsort(descending=True, stable=True)[: parameters["classes"]]
    options |= brief(BRIEF_OUTPUTS, profile, parameters["epochs"])
    study = FewOutputs(
        profile,
        whole=whole,
        classes=largest.tolist(),
        layers="FC3",
        head_epochs=0,
        **options,
    )
    plan = softened_plan(study, seed, parameters["temperature"])
    return [plan.also(study.head("FC3", seed))]


def fine_tuning(parameters: Parameters) -> list[Plan]:
    profile, layer, seed = (parameters[name] for name in ("profile", "layer", "seed"))
    options = given(parameters)
    first = brief(BRIEF_BEFORE, profile, parameters["epochs"])
    shorter = brief(BRIEF_FINE_TUNING, profile, parameters["epochs"])
    known = ImageStudy(profile, **{**options, "layers": None}).train.classes
    weights = ImageStudy.resolve(profile).teacher_weights
    earlier, later = halves(known, weights)
    study = SomeClasses(profile, classes=later, **options | shorter)
    if weights:
        return [fine_tuned_plan(study, None, layer, seed)]
    before = SomeClasses(profile, classes=earlier, **options | first)
    return [fine_tuned_plan(study, before.teacher(), layer, seed)]


def agreement(parameters: Parameters) -> list[Plan]:
    profile, device = parameters["profile"], parameters["device"]
    study = ImageStudy(profile, **given(parameters))
    points = CloudStudy(profile, epochs=2, analysed=1, device=device)
    return [plan_of(study, "teacher"), plan_of(study, "baseline"), plan_of(points, "baseline")]


def noise_and_controls(parameters: Parameters) -> list[Plan]:
    profile = parameters["profile"]
    options = given(parameters, but=["control_epochs", "control_seeds"])
    study = ImageStudy(profile, **options)
    options["epochs"] = parameters["control_epochs"] or min(3, study.settings.epochs)
    short = ImageStudy(profile, **options)
    return [plan_of(study, "pairs"), controls_plan(short, parameters["control_seeds"])]


def losses(parameters: Parameters) -> list[Plan]:
    profile, seed = parameters["profile"], parameters["seed"]
    options = given(parameters, but=["losses", "results"])
    study = ImageStudy(profile, **options | brief(BRIEF, profile, parameters["epochs"]))
    return [losses_plan(study, seed, parameters["losses"])]


def transformer(parameters: Parameters) -> list[Plan]:
    profile, seed = parameters["profile"], parameters["seed"]
    options = given(parameters, but=["results", "students"])
    options |= brief(OF_TRANSFORMERS, profile, parameters["epochs"])
    study = ImageStudy(profile, **options)
    return [transformer_plan(study, seed, parameters["students"])]


def scoreboard(parameters: Parameters) -> list[Plan]:
    profile, device = parameters["profile"], parameters["device"]
    studies = [
        ImageStudy(profile, **given(parameters)),
        *CloudStudy.several(profile, None, device=device).values(),
        TextStudy(profile, device=device),
        QuestionStudy(profile, device=device),
    ]
    return [plan_of(study, "pairs") for study in studies]


CHAPTERS: dict[str, Callable[[Parameters], list[Plan]]] = {
    "00": partial(one_plan, kind=ImageStudy, what="baseline"),
    "01": partial(one_plan, kind=ImageStudy, what="teacher"),
    "02": coherency,
    "10": partial(one_plan, kind=ImageStudy, what="first chapter"),
    "11": partial(one_plan, kind=ImageStudy, what="pairs"),
    "12": partial(one_plan, kind=ImageStudy, what="pairs"),
    "13": partial(on_own_data, kind=ImageStudy),
    "14": partial(on_own_data, kind=ImageStudy),
    "20": partial(clouds_plans, what="chapter", ends="first chapter"),
    "21": partial(clouds_plans, what="pairs"),
    "22": partial(clouds_plans, what="pairs"),
    "30": partial(one_plan, kind=TextStudy, what="first chapter"),
    "31": partial(one_plan, kind=TextStudy, what="pairs"),
    "32": partial(one_plan, kind=TextStudy, what="pairs"),
    "33": partial(on_own_data, kind=TextStudy),
    "40": partial(one_plan, kind=QuestionStudy, what="first chapter"),
    "41": partial(one_plan, kind=QuestionStudy, what="pairs"),
    "42": partial(one_plan, kind=QuestionStudy, what="pairs"),
    "50": teacher_size,
    "51": grid_and_threshold,
    "52": output_distillation,
    "53": fine_tuning,
    "60": agreement,
    "61": noise_and_controls,
    "70": losses,
    "71": transformer,
    "90": scoreboard,
}


STUDIES: dict[str, type[Study]] = {
    "0": ImageStudy,
    "1": ImageStudy,
    "2": CloudStudy,
    "3": TextStudy,
    "4": QuestionStudy,
    "5": ImageStudy,
    "6": ImageStudy,
    "7": ImageStudy,
    "9": ImageStudy,
}
"""The study that the parameters of a chapter are about, by the first digit of its number."""


def check_names(number: str, parameters: Parameters) -> None:
    """``ValueError``, with the nearest names, for a data set, network or layer that the study of
    the chapter with this ``number`` ("10") does not know; for a folder that the data set lacks or
    does not read; and for more cells than pixels. Nothing is loaded.
    """
    kind = STUDIES[number[0]]
    networks = parameters.get("network")
    if isinstance(networks, list) and kind is not CloudStudy:
        raise ValueError(
            f"network={networks}: this chapter takes one; a sweep with a grid of them runs several"
        )
    names = ("dataset", "data_root", "layer", "grid")
    named = {name: parameters[name] for name in names if name in parameters}
    for network in (*several(networks), *(parameters.get("teachers") or ())):
        chosen = kind(parameters["profile"], network=network, **given(named)).settings
        check_root(chosen.dataset, chosen.data_root, kind.ROOTS)
        if isinstance(chosen, ImageSettings):
            _check_grids((chosen.grid, *several(parameters.get("grids") or ())), chosen.size)


def _check_grids(grids: Iterable[int], size: int) -> None:
    for grid in grids:
        if grid > size:
            found = f"its images have {size} pixels a side"
            raise ValueError(f"grid={grid}: {found} in this profile, so at most {size} cells")


def plans_of(number: str, parameters: Parameters) -> list[Plan]:
    """What the chapter with this ``number`` ("10") trains and measures, for its ``parameters``."""
    one_of("chapter with a plan", number, CHAPTERS)
    return CHAPTERS[number](parameters)
