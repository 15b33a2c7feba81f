"""What identifies a data set that lies in files: what is in them, not where or since when.

A folder that was copied, unpacked again or touched is the same data.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from kpnb._progress import Progress
from kpnb.checkpoints import replace_file
from kpnb_book.store import digest

# A file that was changed less than so many seconds ago may change again within one tick of the
# file system's clock, so what it holds is not remembered yet.
FRESH = 2.0
Known = dict[str, list[Any]]  # path in the folder to size, times, and digest of the content


def contents(files: Iterable[Path], root: Path, store: Any = None) -> dict[Path, str]:
    """SHA-256 of each of the ``files`` in ``root``.

    A ``store`` remembers them by path, size and times, so that a file is read once and not at every
    start. Raises ``FileNotFoundError`` for what is missing.
    """
    remembered = _file_of_digests(root, store)
    known = _recalled(remembered)
    states = {path: _state(path) for path in files}
    new = [path for path, state in states.items() if known.get(str(path), [])[:3] != state]
    held = {path: known[str(path)][3] for path in states.keys() - set(new)}
    with Progress(len(new), "reading", unit="file", hidden=not new, delay=1) as progress:
        for path in new:
            held[path] = _content(path)
            progress.step()
    if remembered is not None:
        _remember(remembered, {str(path): [*states[path], held[path]] for path in new})
    return held


def named(name: str, store: Any = None) -> str:
    """What stands for the ``name`` of weights or of a model where something is identified.

    For a file, or a folder of a model with its ``config.json``, that is a digest of what it holds;
    anything else, such as a name on Hugging Face, stands for itself.
    """
    path = Path(name).expanduser()
    if path.suffix and path.is_file():
        return contents([path], path.parent, store)[path]
    if not (path / "config.json").is_file():
        return name
    files = sorted(file for file in path.glob("[!.]*") if file.is_file())
    held = contents(files, path, store)
    return digest([[file.name, held[file]] for file in files])


def _state(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_of_digests(root: Path, store: Any) -> Path | None:
    """The file of the ``store`` that has the digests of ``root``; none without a store."""
    if store is None:
        return None
    return store.root / "contents" / f"{digest(str(root.absolute()).encode())[:20]}.json"


def _recalled(path: Path | None) -> Known:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes()) if path else {}
        return found if isinstance(found, dict) else {}
    return {}


def _remember(path: Path, new: Known) -> None:
    """Add those of the ``new`` digests to ``path`` whose file has been at rest for a while."""
    rest = 1e9 * (time.time() - FRESH)
    kept = {file: entry for file, entry in new.items() if max(entry[1:3]) < rest}
    if not kept:
        return
    with suppress(OSError):  # a store that is full or read-only says so when the set is kept
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            replace_file(path, json.dumps(_recalled(path) | kept).encode())
