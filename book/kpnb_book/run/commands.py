"""The commands of ``kpnb`` that run notebooks, and their options."""

import argparse
import re
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shtab

from kpnb_book.run.chapters import notebooks_of
from kpnb_book.run.checks import check_run
from kpnb_book.run.errors import UsageError
from kpnb_book.run.notebooks import TIMEOUT, find_notebook, find_root
from kpnb_book.run.parameters import (
    PROFILES,
    add_parameters,
    read_assignments,
    resolve,
)
from kpnb_book.run.source import defaults_of, lead_of, parameters_of, title_of

Commands = argparse._SubParsersAction


def add(commands: Commands) -> None:
    """Add the commands to those of ``kpnb``."""
    _add_build(commands)
    _add_run(commands)
    _add_sweep(commands)
    _add_list(commands)
    _add_forecast(commands)
    _add_check(commands)


def _add_build(commands: Commands) -> None:
    build = commands.add_parser("build", help="execute the notebooks and build the HTML book")
    build.add_argument(
        "--profile",
        choices=PROFILES,
        default="laptop",
        help="size of the experiments (%(default)s)",
    )
    build.add_argument(
        "--only",
        nargs="+",
        metavar="NOTEBOOK",
        help="execute these, keep the other executed copies",
    )
    _add_workers(build, default=2)
    build.set_defaults(do=build_book)


def _add_run(commands: Commands) -> None:
    example = "Example: kpnb run 10 -p layer=FC2 -p seeds='[0,1]' -p epochs=5"
    run = commands.add_parser(
        "run", help="run one notebook, with other parameters if you like", epilog=example
    )
    _add_notebook(run)
    run.add_argument(
        "--resume", action="store_true", help="if DIR holds this very run already, do nothing"
    )
    _add_output(run, "NAME-TIME")
    _add_scheduler(run)
    run.set_defaults(do=run_one)


def _add_sweep(commands: Commands) -> None:
    example = "Example: kpnb sweep my.yaml -p profile=laptop --workers 2"
    many = commands.add_parser(
        "sweep", help="run a grid of parameters, here or on a Dask cluster", epilog=example
    )
    many.add_argument("file", type=Path, help="the YAML file of the grid").complete = shtab.FILE
    add_parameters(many)
    many.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs and those that are finished, run nothing",
    )
    _add_output(many, "FILE")
    _add_workers(many, default=1)
    many.set_defaults(do=run_many)


def _add_list(commands: Commands) -> None:
    names = commands.add_parser("list", help="list the notebooks, or the parameters of one")
    names.add_argument(
        "notebook", nargs="?", help="say the parameters of this one: number (10), name or path"
    )
    names.set_defaults(do=list_notebooks)


def _add_forecast(commands: Commands) -> None:
    forecast = commands.add_parser(
        "forecast", help="say what a notebook would still train and measure, and how long it takes"
    )
    _add_notebook(forecast)
    forecast.set_defaults(do=forecast_one)


def _add_check(commands: Commands) -> None:
    check = commands.add_parser(
        "check", help="show a folder of your own pictures as networks would see it"
    )
    check.add_argument(
        "folder", type=Path, help="the folder that has images and masks"
    ).complete = shtab.DIRECTORY
    check.add_argument(
        "--size", type=int, default=64, metavar="S", help="side in pixels (%(default)s)"
    )
    check.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the HTML page (default: check-FOLDER.html in the current folder)",
    ).complete = shtab.FILE
    check.set_defaults(do=check_folder)


def _add_notebook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", help="its number (10), name or path").complete = shtab.FILE
    add_parameters(parser)


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    where = parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder of the results (default: reruns/{default} in the current folder)",
    )
    where.complete = shtab.DIRECTORY
    parser.add_argument(
        "--timeout",
        type=int,
        default=TIMEOUT,
        metavar="S",
        help="seconds for a cell (%(default)s)",
    )


def _add_workers(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=default,
        metavar="N",
        help="notebooks that run at a time here (%(default)s)",
    )
    _add_scheduler(parser)


def at_least_one(text: str) -> int:
    """A count; ``ArgumentTypeError`` for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _add_scheduler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on this Dask cluster, as tcp://10.0.0.1:8786"
    )


def build_book(options: argparse.Namespace) -> int:
    """``kpnb build``."""
    from kpnb_book.run import build

    page = build.build_book(
        options.profile, find_root(), options.only, options.workers, options.scheduler
    )
    print(f"The book is at {page}")
    return 0


def _results_folder(options: argparse.Namespace, name: str, root: Path) -> Path:
    """``--output``, else ``reruns/name`` in the caller's folder. Anywhere inside the clone ``root``
    that is the clone's own ``reruns``, which git ignores.
    """
    here = Path.cwd()
    base = root if here.is_relative_to(root) else here
    return (options.output or base / "reruns" / name).absolute()


def run_one(options: argparse.Namespace) -> int:
    """``kpnb run``."""
    from kpnb_book.run import rerun

    root = find_root()
    path = find_notebook(options.notebook, root)
    given = read_assignments(options.parameters, path)
    parameters = resolve(path, given, Path.cwd())
    name = f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = _results_folder(options, name, root)
    rerun.run_one(path, folder, parameters, options.timeout, options.resume, options.scheduler)
    print(f"Executed copy: {folder / path.name}; page and results beside it: .html, .json")
    return 0


def run_many(options: argparse.Namespace) -> int:
    """``kpnb sweep``; 1 when a run has failed."""
    from kpnb_book.run import sweep

    root = find_root()
    given = read_assignments(options.parameters)
    members = sweep.read(options.file, root, given, here=not options.scheduler)
    folder = _results_folder(options, options.file.stem, root)
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
    """``kpnb list``: what every notebook is about; of one, its parameters as well."""
    root = find_root()
    if options.notebook:
        path = find_notebook(options.notebook, root)
        print(_about(path))
        print("\nParameters, their defaults and meanings:")
        for name, known in parameters_of(path).items():
            print(f"  {f'{name} = {known.default}':<22}  {known.help}".rstrip())
        return 0
    for path in sorted(notebooks_of(root), key=lambda path: path.name):
        if path.is_file():
            print(_about(path))
    print("\nParameters of one of them: kpnb list 10")
    return 0


def _about(path: Path) -> str:
    """Number and title of a notebook, and below them its first sentence."""
    number = re.match(r"\d*", path.name)[0] or path.name
    indent = " " * (len(number) + 2)
    title = f"{number}  {title_of(path) or path.stem}"
    options = {"width": 100, "initial_indent": indent, "subsequent_indent": indent}
    return "\n".join([title, *textwrap.wrap(lead_of(path), **options)])


def forecast_one(options: argparse.Namespace) -> int:
    """``kpnb forecast``."""
    path = find_notebook(options.notebook, find_root())
    given = read_assignments(options.parameters, path)
    parameters = resolve(path, given, Path.cwd())
    check_run(path, parameters, here=False)
    print(_forecast(path, defaults_of(path) | parameters))
    return 0


def check_folder(options: argparse.Namespace) -> int:
    """``kpnb check``: writes a contact sheet; 1 when something is wrong or left unused."""
    from kpnb_book.data.check import check, page

    folder = options.folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder (looked for in {Path.cwd()})")
    if options.size < 1:
        raise UsageError(f"--size={options.size} must be positive")
    output = options.output or Path(f"check-{folder.resolve().name}.html")
    found = check(folder, options.size)
    try:
        output.write_text(page(found), "utf8")
    except OSError as error:
        raise UsageError(f"cannot write the page to {output}: {error}") from error
    print(found.summary)
    print(f"{'fine' if found.fine else 'something is wrong'}: the contact sheet is {output}")
    return int(not found.fine)


def _forecast(path: Path, parameters: Mapping[str, Any]) -> str:
    """What the chapter in ``path`` would take.

    Raises UsageError for a notebook without a plan, and for what a study cannot be made of.
    """
    from kpnb_book.run.plans import plans_of
    from kpnb_book.studies.forecast import forecast

    try:
        return str(forecast(plans_of(path, parameters)))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path.name}: {error}") from error
