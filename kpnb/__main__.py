"""Command line: run one notebook with other parameters, or list the notebooks."""

import argparse
import ast
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from . import runner
from .runner import TIMEOUT, NotebookError, UsageError


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``python -m kpnb``."""
    top = argparse.ArgumentParser(prog="python -m kpnb", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    example = "Example: python -m kpnb run 10 -p layer=FC2 -p seeds=[0,1] -p epochs=5"
    run = commands.add_parser("run", help="run one notebook, with other parameters if you like", epilog=example)
    run.add_argument("notebook", help="its number (10), name or path")
    run.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    run.add_argument("--output", type=Path, metavar="DIR", help="folder of the copy (default: reruns/NAME-TIME)")
    run.add_argument("--timeout", type=int, default=TIMEOUT, metavar="S", help="seconds for a cell (%(default)s)")

    commands.add_parser("list", help="list the notebooks and their parameters")
    return top


def parse_parameters(assignments: Sequence[str]) -> dict[str, object]:
    """``["lr=1e-3", "layer=FC1"]`` to ``{"lr": 0.001, "layer": "FC1"}``: values are Python literals, else YAML.

    Raises UsageError for what is not an assignment or cannot be read.
    """
    parameters: dict[str, object] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-p {assignment}: write -p NAME=VALUE")
        for read in (ast.literal_eval, yaml.safe_load):  # in this order, because 1e-3 is a text in YAML
            with suppress(SyntaxError, ValueError, yaml.YAMLError):
                parameters[name] = read(value)
                break
        else:
            raise UsageError(f"-p {assignment}: the value is neither a Python literal nor YAML")
    return parameters


def list_notebooks(root: Path) -> None:
    """Print every notebook with its parameters, their defaults and what they are for."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        print(path.stem)
        for name, known in runner.parameters_of(path).items():
            print(f"    {name} = {known['default']:<20} {known['help']}".rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 when a notebook or the book fails, 2 when it was called wrongly."""
    options = parser().parse_args(arguments)
    try:
        root = runner.find_root()
        if options.command == "list":
            list_notebooks(root)
        else:
            path = runner.find_notebook(options.notebook, root)
            folder = options.output or root / "reruns" / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
            runner.run_notebook(path, folder / path.name, parse_parameters(options.parameters), options.timeout)
            print(f"Executed copy: {folder / path.name}")
    except (NotebookError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
