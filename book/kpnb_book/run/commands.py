"""The commands of ``kpnb`` that run notebooks: ``run``, ``list`` and ``sweep``; see
``kpnb.commands`` in pyproject.
"""

import argparse
import ast
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import shtab
import yaml

from kpnb_book.run import notebooks as runner
from kpnb_book.run import sweep
from kpnb_book.run.notebooks import TIMEOUT, UsageError, find_notebook, find_root
from kpnb_book.run.rerun import rerun


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to those of ``kpnb``."""
    example = "Example: kpnb run 10 -p layer=FC2 -p seeds=[0,1] -p epochs=5"
    one = commands.add_parser(
        "run", help="run one notebook, with other parameters if you like", epilog=example
    )
    one.add_argument("notebook", help="its number (10), name or path").complete = shtab.FILE
    one.add_argument(
        "--resume", action="store_true", help="if DIR holds this very run already, do nothing"
    )
    one.set_defaults(do=run_one)

    example = "Example: kpnb sweep sweeps/table7.yaml -p profile=laptop --workers 2"
    many = commands.add_parser(
        "sweep", help="run a grid of parameters, here or on a Dask cluster", epilog=example
    )
    many.add_argument("file", type=Path, help="the YAML file of the grid").complete = shtab.FILE
    many.add_argument(
        "--workers", type=int, default=1, metavar="N", help="runs at a time here (%(default)s)"
    )
    many.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on this Dask cluster, as tcp://10.0.0.1:8786"
    )
    many.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs and those that are finished, run nothing",
    )
    many.set_defaults(do=run_many)

    for command, default in ((one, "NAME-TIME"), (many, "FILE")):
        option = command.add_argument
        option(
            "-p",
            dest="parameters",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a parameter",
        )
        where = option(
            "--output",
            type=Path,
            metavar="DIR",
            help=f"folder of the results (default: reruns/{default})",
        )
        where.complete = shtab.DIRECTORY
        option(
            "--timeout",
            type=int,
            default=TIMEOUT,
            metavar="S",
            help="seconds for a cell (%(default)s)",
        )

    commands.add_parser("list", help="list the notebooks and their parameters").set_defaults(
        do=list_notebooks
    )


def run_one(options: argparse.Namespace) -> int:
    """``kpnb run``."""
    root = find_root()
    path = find_notebook(options.notebook, root)
    folder = options.output or root / "reruns" / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    rerun(path, folder, parse_parameters(options.parameters), options.timeout, options.resume)
    print(f"Executed copy: {folder / path.name}; page and results beside it: .html, .json")
    return 0


def run_many(options: argparse.Namespace) -> int:
    """``kpnb sweep``; 1 when a run has failed."""
    root = find_root()
    members = sweep.read(options.file, root, parse_parameters(options.parameters))
    folder = (options.output or root / "reruns" / options.file.stem).absolute()
    if options.dry_run:
        for member in members:
            print(f"{'finished' if member.finished(folder) else 'to do   '}  {member.label}")
        return 0
    failed = sweep.run(members, folder, options.workers, options.scheduler, options.timeout)
    print(
        f"{len(members) - len(failed)} of {len(members)} runs are finished: {folder / 'index.html'}"
    )
    for label, why in failed.items():
        print(f"failed: {label}: {why}")
    return int(bool(failed))


def list_notebooks(options: argparse.Namespace) -> int:
    """``kpnb list``: every notebook with its parameters, their defaults and what they are for."""
    for path in sorted((find_root() / "notebooks").glob("*.ipynb")):
        print(path.stem)
        for name, known in runner.parameters_of(path).items():
            print(f"    {name} = {known['default']:<20} {known['help']}".rstrip())
    return 0


def parse_parameters(assignments: Sequence[str]) -> dict[str, object]:
    """``["lr=1e-3", "layer=FC1"]`` to ``{"lr": 0.001, "layer": "FC1"}``: values are Python
    literals, else YAML.

    Raises UsageError for what is not an assignment or cannot be read.
    """
    parameters: dict[str, object] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-p {assignment}: write -p NAME=VALUE")
        for read in (
            ast.literal_eval,
            yaml.safe_load,
        ):  # in this order, because 1e-3 is a text in YAML
            with suppress(SyntaxError, ValueError, yaml.YAMLError):
                parameters[name] = read(value)
                break
        else:
            raise UsageError(f"-p {assignment}: the value is neither a Python literal nor YAML")
    return parameters
