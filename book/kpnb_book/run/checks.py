"""What can be known of a run before a kernel starts: one check for run, sweep, build and forecast.

Besides types and ranges (``parameters``) these are names that only studies know, functions of the
user's own, checkpoints, and what only fits other parameters. What lies on another machine alone
cannot be seen from here: folders of data sets, which only have to be given, are left to the run.
"""

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kpnb_book.run.chapters import CHAPTERS
from kpnb_book.run.errors import UsageError
from kpnb_book.run.importable import UNFIT
from kpnb_book.run.parameters import RULES, check_parameters
from kpnb_book.run.source import defaults_of

# What studies know. PyTorch, which they bring, is imported only for one of these.
NAMES = ("dataset", "data_root", "network", "teachers", "layer", "grid", "grids")
TOGETHER = ("model", "student_checkpoints", "baseline_checkpoints")
FROM_SCRATCH = ("03_method_from_scratch", "04_distillation_from_scratch")
PIXELS = 64  # a side of the pictures in the pages from scratch


def check_run(path: Path, parameters: Mapping[str, Any], here: bool = True) -> None:
    """Check what the notebook in ``path`` is to be run with; no kernel is started.

    Raises UsageError for what ``check_parameters`` refuses; for a data set, network or layer that
    the chapter's study does not know, a data set's folder that is missing or not read, and more
    cells than pixels; for a function ``package.module:function`` that cannot be imported or takes
    other arguments; for checkpoints that are not complete; and, when it is to run ``here`` and not
    on a cluster, for a device that this machine does not have.
    """
    check_parameters(path, parameters)
    values = defaults_of(path) | dict(parameters)
    try:
        if path.stem in CHAPTERS:  # of another name it is somebody's own
            _check_page(path, values)
            if _asks_a_study(parameters):
                _check_names(path, values)
        for name in ("model", "dataset"):
            value = values.get(name)
            if isinstance(value, str) and ":" in value:
                _check_function(name, value, path)
        if here and RULES["device"].fits(values.get("device")):
            _check_device(values["device"])
        if set(TOGETHER) <= values.keys():
            _check_checkpoints(values)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path.name}: {error}") from error


def _asks_a_study(parameters: Mapping[str, Any]) -> bool:
    """Whether some of the ``parameters`` that are given only a study can check.

    The paper's profile is one: some of its data sets lie in a folder.
    """
    named = any(parameters.get(name) is not None for name in NAMES)
    return named or parameters.get("profile") == "paper"


def _check_page(path: Path, values: Mapping[str, Any]) -> None:
    """``ValueError`` for what a page without a study, such as chapter 05, cannot do."""
    grid = values.get("grid") or 1
    if path.stem in FROM_SCRATCH and PIXELS % grid:
        raise ValueError(f"grid={grid} does not divide the {PIXELS} pixels of a side")
    if grid > values.get("size", grid):
        raise ValueError(f"grid={grid}: more cells a side than size={values['size']} has pixels")
    if values.get("void") is not None and values.get("data_root") is None:
        raise ValueError("void is a value in masks of your own: it needs data_root")


def _check_names(path: Path, values: Mapping[str, Any]) -> None:
    """``ValueError``, with the nearest names, for what the study of a chapter does not know."""
    from kpnb_book.studies.chapters import check_names  # brings PyTorch

    if not CHAPTERS[path.stem].small:  # those have no study
        check_names(path.stem[:2], values)


def _check_function(name: str, value: str, path: Path) -> None:
    """``ValueError`` for a function that cannot be imported, or called as the notebook calls it."""
    arguments: tuple[str, ...] = ()
    if name == "dataset":
        of_images = path.stem[0] not in "234"  # clouds and texts have no size in pixels
        arguments = ("request", "size") if of_images else ("request",)
    code, why = _not_imported(value, arguments, path.parent)
    if code == UNFIT:
        raise ValueError(f"{name}={value!r}: {why}")
    if code:
        raise ValueError(
            f"{name}={value!r} cannot be imported: {why}. A module of your own is installed or "
            "lies in a folder of PYTHONPATH"
        )


@cache
def _not_imported(value: str, arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """Exit code, and why a kernel in ``folder`` could not import the function ``value`` and call it
    with the ``arguments``; 0 when it could.

    In a process of its own, because importing runs somebody's code.
    """
    command = [sys.executable, "-m", "kpnb_book.run.importable", value, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    return done.returncode, said[-1] if said else f"exit code {done.returncode}"


def _check_device(device: str) -> None:
    """``ValueError`` for a device that this machine does not have. Nothing is started on it."""
    if device == "cpu":
        return
    import torch

    kind, _, number = device.partition(":")
    count = torch.get_device_module(kind).device_count()
    if int(number or 0) >= count:
        raise ValueError(f"device={device!r}: PyTorch finds {count} {kind} devices on this machine")


def _check_checkpoints(values: Mapping[str, Any]) -> None:
    """``ValueError`` for a network without checkpoints or the other way round, for a single
    checkpoint, and for files whose order is not known; ``FileNotFoundError`` for none.

    Student and baseline may have different numbers of them: networks are compared as they are.
    """
    missing = [name for name in TOGETHER if not values[name]]
    if missing and len(missing) < len(TOGETHER):
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(
            f"{', '.join(TOGETHER)} come together: {', '.join(missing)} {verb} missing"
        )
    if not missing:
        from kpnb.checkpoint_files import in_order

        for name in TOGETHER[1:]:
            try:
                in_order(values[name])
            except (ValueError, OSError) as error:
                raise ValueError(f"{name}={values[name]!r}: {error}") from error
