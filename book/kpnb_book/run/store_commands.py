"""The commands of ``kpnb`` that look after the store: ``status`` and ``clean``."""

import argparse
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpnb_book.place import EVIDENCE, seed_lock, store_folder
from kpnb_book.run.errors import UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("path", "kind", "complete", "unfinished", "bytes", "days")


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to those of ``kpnb``."""
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


def folders(root: Path) -> "pd.DataFrame":
    """Every run below ``root``, a row each, and each seed of stored evidence that is being
    computed: path, kind, complete and unfinished artefacts, bytes, days since a change.

    Only folders that a store has made, and none behind a link: ``clean`` removes what is listed
    here.
    """
    import pandas as pd

    rows = [_row(path) for path in _runs(root)]
    for path in sorted((root / EVIDENCE).glob("*")):
        if re.fullmatch(r"[\w-]+-\d+", path.name) and _is_own(path):
            with suppress(FileNotFoundError):  # the seed was finished just now
                rows.append(_seed_row(path))
    return pd.DataFrame(rows, columns=COLUMNS)


def _runs(root: Path) -> list[Path]:
    """Folders of runs, by kind."""
    found = sorted(root.glob("*/*"))
    return [path for path in found if re.fullmatch("[0-9a-f]{20}", path.name) and _is_own(path)]


def _is_own(path: Path) -> bool:
    """Whether it is a folder, and no link leads to it."""
    return path.is_dir() and not path.is_symlink() and not path.parent.is_symlink()


def _seed_row(path: Path) -> tuple[Any, ...]:
    """The networks of one seed of stored evidence, which are there while it is computed, or after
    an interruption: a small store, whose data and teachers are links.
    """
    rows = [_row(run) for run in _runs(path)]
    complete, unfinished, size = (sum(row[column] for row in rows) for column in (2, 3, 4))
    days = min((row[5] for row in rows), default=_days(path.stat().st_mtime))
    return path, EVIDENCE, complete, unfinished, size, days


def _days(changed: float) -> float:
    return (time.time() - changed) / 86400


def _row(path: Path) -> tuple[Any, ...]:
    sizes, changed = {}, path.stat().st_mtime
    for file in path.iterdir():
        with suppress(FileNotFoundError):  # a temporary file of another process
            sizes[file.name], changed = file.lstat().st_size, max(changed, file.lstat().st_mtime)
    tensors = [name.removesuffix(".safetensors") for name in sizes if name.endswith(".safetensors")]
    complete = sum(f"{name}.json" in sizes for name in tensors)
    unfinished = len(tensors) - complete
    return path, path.parent.name, complete, unfinished, sum(sizes.values()), _days(changed)


def _summary(found: "pd.DataFrame") -> str:
    """Runs, artefacts and size by kind, and in all."""
    by_kind = found.groupby("kind").agg(
        runs=("path", "size"),
        complete=("complete", "sum"),
        unfinished=("unfinished", "sum"),
        MB=("bytes", "sum"),
    )
    by_kind.loc["in all"] = by_kind.sum()
    by_kind["MB"] = (by_kind["MB"] / 1e6).round(1)
    whole = {"runs": int, "complete": int, "unfinished": int}
    return by_kind.astype(whole).to_string(index_names=False)


def status(options: argparse.Namespace) -> int:
    """``kpnb status``."""
    root = store_folder()
    found = folders(root)
    print(_summary(found))
    # Whether a process works there is not asked: it would have to be locked out for that.
    for path, size, days in found.loc[found["kind"] == EVIDENCE, ["path", "bytes", "days"]].values:
        hours = f"last changed {24 * days:.1f} hours ago"
        print(f"  {path.relative_to(root)}: {size / 1e6:.1f} MB, {hours}")
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    print(f"{root}: {shutil.disk_usage(there).free / 1e9:.1f} GB free")
    return 0


def clean(options: argparse.Namespace) -> int:
    """``kpnb clean``: says what goes, asks, and leaves what another process is computing."""
    root = store_folder()
    found = folders(root)
    for kind in set(options.kinds) - set(found["kind"]):
        raise UsageError(unknown("kind", kind, found["kind"].unique()))
    if not (options.kinds or options.older_than > 0 or options.everything):
        raise UsageError("say what to remove: KIND, --older-than DAYS or --everything")
    found = found[
        (found["days"] >= options.older_than)
        & (found["kind"].isin(options.kinds) | (not options.kinds))
    ]
    print(_summary(found))
    if options.dry_run or found.empty:
        return 0
    if not options.yes and not _agreed(f"Remove them from {root}? [y/N] "):
        return 1
    _remove(found["path"])
    return 0


def _agreed(question: str) -> bool:
    """Whether the answer is yes. Raises UsageError where nobody can answer, as in a script."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError as error:
        raise UsageError("nobody answers here: say --yes to remove them") from error


def _remove(paths: "pd.Series") -> None:
    from filelock import FileLock, Timeout

    for path in paths:
        is_seed = path.parent.name == EVIDENCE
        try:
            with FileLock(seed_lock(path) if is_seed else path / ".lock", timeout=0):
                shutil.rmtree(path)
        except Timeout:
            print(f"kept, another process is computing it: {path}")
