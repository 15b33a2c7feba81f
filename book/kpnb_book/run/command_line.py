"""Command line: run notebooks with other parameters, and look after the store of their results."""

import argparse
import os
import sys
from collections.abc import Sequence

import shtab

from kpnb_book.run import commands as notebooks
from kpnb_book.run import evidence_commands, store_commands
from kpnb_book.run.errors import NotebookError, UsageError


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``kpnb``."""
    top = argparse.ArgumentParser(prog="kpnb", description=__doc__)
    shtab.add_argument_to(
        top, "--print-completion", help="print a completion script for this shell"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    notebooks.add(commands)
    evidence_commands.add(commands)
    store_commands.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 when a notebook fails, 2 when called wrongly, 130 after
    Ctrl-C, 141 when nobody reads on, as behind ``| head``.
    """
    options = _options(arguments)
    _see_search_path_from_here()
    try:
        code = options.do(options)
        sys.stdout.flush()  # a pipe that is closed is noticed here and not at the exit
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        return 141
    except (NotebookError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(
            "interrupted: what is finished is kept; the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command that is called; of a parameter without -p, the remedy is named."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest:
        meant = next((word for word in rest if "=" in word and not word.startswith("-")), None)
        remedy = f"; did you mean -p {meant}?" if meant else ""
        top.error(f"unrecognized arguments: {' '.join(rest)}{remedy}")
    return options


def _see_search_path_from_here() -> None:
    """Make the folders of PYTHONPATH absolute: kernels, which inherit it, run in another folder."""
    if search := os.environ.get("PYTHONPATH"):
        folders = [os.path.abspath(folder) for folder in search.split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
