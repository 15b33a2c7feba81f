"""What can be known of a run before a kernel starts: one check for run, sweep, build and forecast.

Besides types and ranges (``parameters``) these are names that only studies know, functions of the
user's own, and checkpoints. What lies on another machine alone cannot be seen from here: folders of
data sets are left to the run.
"""

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kpnb_book.run.chapters import WAITS_FOR
from kpnb_book.run.errors import UsageError
from kpnb_book.run.parameters import check_parameters
from kpnb_book.run.source import defaults_of

NAMES = ("dataset", "network", "teachers", "layer")  # that studies know
TOGETHER = ("model", "student_checkpoints", "baseline_checkpoints")
IMPORT = """
import pkgutil, sys
found = pkgutil.resolve_name(sys.argv[1])
if not callable(found):
    sys.exit(f"it is no function but {found!r}")
"""


def check_run(path: Path, parameters: Mapping[str, Any]) -> None:
    """Check what the notebook in ``path`` is to be run with; no kernel is started.

    Raises UsageError for what ``check_parameters`` refuses; for a data set, network or layer that
    the chapter's study does not know; for a function ``package.module:function`` that cannot be
    imported; and for checkpoints that are not complete.
    """
    check_parameters(path, parameters)
    values = defaults_of(path) | dict(parameters)
    try:
        if any(parameters.get(name) is not None for name in NAMES):
            _check_names(path, values)
        for name in ("model", "dataset"):
            value = values.get(name)
            if isinstance(value, str) and ":" in value:
                _check_function(name, value, path.parent)
        if set(TOGETHER) <= values.keys():
            _check_checkpoints(values)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path.name}: {error}") from error


def _check_names(path: Path, values: Mapping[str, Any]) -> None:
    """``ValueError``, with the nearest names, for what the study of a chapter does not know.

    A notebook of another name is somebody's own, and its parameters mean what they like.
    """
    if path.stem not in WAITS_FOR:
        return
    from kpnb_book.studies import chapters  # brings PyTorch

    if path.stem[:2] in chapters.CHAPTERS:
        chapters.check_names(path.stem[:2], values)


def _check_function(name: str, value: str, folder: Path) -> None:
    if why := _not_imported(value, folder):
        raise ValueError(
            f"{name}={value!r} cannot be imported: {why}. A module of your own is installed or "
            "lies in a folder of PYTHONPATH"
        )


@cache
def _not_imported(value: str, folder: Path) -> str:
    """Why a kernel in ``folder`` could not import the function ``value``; "" when it could.

    In a process of its own, because importing runs somebody's code.
    """
    command = [sys.executable, "-c", IMPORT, value]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    return (said[-1] if said else f"exit code {done.returncode}") if done.returncode else ""


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
        from kpnb.trajectory import in_order

        for name in TOGETHER[1:]:
            try:
                in_order(values[name])
            except (ValueError, OSError) as error:
                raise ValueError(f"{name}={values[name]!r}: {error}") from error
