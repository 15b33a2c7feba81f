"""Command line: run notebooks with other parameters, and look after the store of their results."""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import shtab
from filelock import FileLock, Timeout

from kpnb._messages import unknown
from kpnb_book.run import commands as notebook_commands
from kpnb_book.run.notebooks import NotebookError, UsageError
from kpnb_book.store import Store


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``kpnb``."""
    top = argparse.ArgumentParser(prog="kpnb", description=__doc__)
    shtab.add_argument_to(
        top, "--print-completion", help="print a completion script for this shell"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    notebook_commands.add(commands)

    commands.add_parser(
        "status", help="what the store holds, by kind, and how large it is"
    ).set_defaults(do=status)
    remove = commands.add_parser(
        "clean", help="remove runs from the store; they are computed anew when needed"
    )
    remove.add_argument(
        "kinds", nargs="*", metavar="KIND", help="of these kinds (status lists them)"
    )
    remove.add_argument(
        "--older-than", type=float, default=0, metavar="DAYS", help="not changed for so many days"
    )
    remove.add_argument(
        "--everything", action="store_true", help="of every kind and age; downloaded archives stay"
    )
    remove.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, remove nothing"
    )
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(do=clean)
    return top


def folders(root: Path) -> pd.DataFrame:
    """Every run below ``root``, a row each: path, kind, complete and unfinished artefacts, bytes,
    days since a change.

    Only folders that a store has made, and none behind a link: ``clean`` removes what is listed
    here.
    """
    rows = [
        _row(path) for path in sorted(root.glob("*/*")) if re.fullmatch("[0-9a-f]{20}", path.name)
    ]
    columns = ["path", "kind", "complete", "unfinished", "bytes", "days"]
    return pd.DataFrame([row for row in rows if row], columns=columns)


def _row(path: Path) -> tuple[Any, ...] | None:
    if path.is_symlink() or path.parent.is_symlink() or not path.is_dir():
        return None
    sizes, changed = {}, path.stat().st_mtime
    for file in path.iterdir():
        with suppress(FileNotFoundError):  # a temporary file of another process
            sizes[file.name], changed = file.lstat().st_size, max(changed, file.lstat().st_mtime)
    tensors = [name.removesuffix(".safetensors") for name in sizes if name.endswith(".safetensors")]
    complete = sum(f"{name}.json" in sizes for name in tensors)
    size = sum(sizes.values())
    return (
        path,
        path.parent.name,
        complete,
        len(tensors) - complete,
        size,
        (time.time() - changed) / 86400,
    )


def _summary(found: pd.DataFrame) -> str:
    """Runs, artefacts and size by kind, and in all."""
    by_kind = found.groupby("kind").agg(
        runs=("path", "size"),
        complete=("complete", "sum"),
        unfinished=("unfinished", "sum"),
        MB=("bytes", "sum"),
    )
    by_kind.loc["in all"] = by_kind.sum()
    by_kind["MB"] = (by_kind["MB"] / 1e6).round(1)
    return by_kind.astype({"runs": int, "complete": int, "unfinished": int}).to_string(
        index_names=False
    )


def status(options: argparse.Namespace) -> int:
    """``kpnb status``."""
    root = Store().root
    print(_summary(folders(root)))
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    print(f"{root}: {shutil.disk_usage(there).free / 1e9:.1f} GB free")
    return 0


def clean(options: argparse.Namespace) -> int:
    """``kpnb clean``: says what goes, asks, and leaves what another process is computing."""
    found = folders(Store().root)
    for kind in set(options.kinds) - set(found["kind"]):
        raise UsageError(unknown("kind", kind, found["kind"].unique()))
    if not (options.kinds or options.older_than or options.everything):
        raise UsageError("say what to remove: KIND, --older-than DAYS or --everything")
    found = found[
        (found["days"] >= options.older_than)
        & (found["kind"].isin(options.kinds) | (not options.kinds))
    ]
    print(_summary(found))
    if options.dry_run or found.empty:
        return 0
    if not options.yes and input(
        f"Remove them from {Store().root}? [y/N] "
    ).strip().lower() not in ("y", "yes"):
        return 1
    for path in found["path"]:
        try:
            with FileLock(path / ".lock", timeout=0):
                shutil.rmtree(path)
        except Timeout:
            print(f"kept, another process is computing it: {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 when a notebook fails, 2 when called wrongly, 130 after
    Ctrl-C.
    """
    options = parser().parse_args(arguments)
    try:
        return options.do(options)
    except (NotebookError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(
            "interrupted: what is finished is kept; the same command goes on from there",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
