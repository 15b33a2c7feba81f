"""Whether the study of a chapter knows what its notebook is to be run with."""

from collections.abc import Iterable, Mapping
from typing import Any

from kpnb_book.data.samples import check_root
from kpnb_book.studies.clouds import CloudStudy
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.images import Settings as ImageSettings
from kpnb_book.studies.settings import several
from kpnb_book.studies.study import Study
from kpnb_book.studies.text import QuestionStudy, TextStudy

Parameters = Mapping[str, Any]

SETTINGS = {"layer": "layers", "seed": "seeds"}  # parameters with other names than the settings


def given(parameters: Parameters) -> dict[str, Any]:
    """Parameters as settings of a study."""
    return {SETTINGS.get(name, name): value for name, value in parameters.items()}


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
