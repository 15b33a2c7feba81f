"""Execute the notebooks with papermill, some at a time, and build the HTML book from the executed
copies.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import kpnb
import kpnb_book
from kpnb_book.run.notebooks import NotebookError, check_parameters, find_notebook, run_notebook
from kpnb_book.run.provenance import sign, signed
from kpnb_book.run.warm import warm
from kpnb_book.store import digest


def notebooks_of(root: Path) -> list[Path]:
    """The notebooks that ``_toc.yml`` lists, in reading order."""
    files = re.findall(
        r"^[\s-]*file: *notebooks/([^\s.]+)", (root / "_toc.yml").read_text("utf8"), re.MULTILINE
    )
    return [root / "notebooks" / f"{name}.ipynb" for name in files]


def build_book(
    profile: str, root: Path, only: Sequence[str] | None = None, workers: int = 1
) -> Path:
    """Execute the notebooks of ``_toc.yml`` into ``book/_executed/`` and build the HTML book;
    returns its first page.

    A copy is kept while nothing that it follows from has changed: its notebook, the profile, the
    code, its data and the versions of packages. ``only`` names notebooks to execute anyway (numbers
    or names); the others keep the copies they have. ``workers`` run at the same time and share the
    processor's cores. The default profile passes no parameter, so that no additional cell shows in
    the book. Raises NotebookError at the first notebook that fails, or when Jupyter Book reports an
    error or a warning.
    """
    chosen = [find_notebook(name, root) for name in only] if only else notebooks_of(root)
    parameters = {} if profile == "laptop" else {"profile": profile}
    for path in chosen:  # all of them before the first kernel starts
        if not path.is_file():
            raise NotebookError(f"_toc.yml lists {path.relative_to(root)}, which does not exist")
        check_parameters(path, parameters)
    jobs = [
        (path, root / "book" / "_executed" / path.name, parameters, _origin(path, parameters))
        for path in chosen
    ]
    if not only:
        jobs = [job for job in jobs if signed(job[1]).get("origin") != job[3]]
        if kept := len(chosen) - len(jobs):
            print(
                f"{kept} of {len(chosen)} notebooks have not changed since they were executed (`make clean` forgets)"
            )
    # Let matplotlib list the fonts here: in an empty home it would say so in the first notebook's
    # output.
    subprocess.run(
        [sys.executable, "-c", "import matplotlib.font_manager"], stderr=subprocess.DEVNULL
    )
    # Chapters whose number ends in 0 train what the others of their part read: first, or one would
    # wait for the other.
    jobs.sort(key=lambda job: job[0].stem[1] != "0")
    if not jobs:
        return _build_pages(root)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} | os.environ
    with (
        patch.dict(os.environ, threads),
        warm(),
        get_context("spawn").Pool(workers) as pool,
    ):  # which stops at its end
        for _ in pool.imap_unordered(_execute, jobs):
            pass
    return _build_pages(root)


Job = tuple[
    Path, Path, dict[str, str], str
]  # notebook, its executed copy, parameters, and what that follows from


def _origin(path: Path, parameters: dict[str, str]) -> str:
    """Digest of all that the executed copy of a notebook follows from."""
    tables = sorted((path.parent.parent / "book").glob("*.csv"))
    return digest([parameters, _code(), *(digest(file.read_bytes()) for file in (path, *tables))])


@cache
def _code() -> str:
    """Digest of our code with its data, and of the versions of all packages."""
    folders = [Path(module.__file__).parent for module in (kpnb, kpnb_book)]
    files = [
        file
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix not in ("", ".pyc")
    ]
    versions = sorted(f"{one.name} {one.version}" for one in distributions())
    return digest([sys.version, versions, *(digest(file.read_bytes()) for file in files)])


def _execute(job: Job) -> None:
    path, copy, parameters, origin = job
    run_notebook(path, copy, parameters)
    sign(copy, path.parent.parent, origin)


def _build_pages(root: Path, executed: bool = True) -> Path:
    """Call Jupyter Book; returns the first page. A warning is an error, unless notebooks are not
    executed.
    """
    page = root / "book" / "_build" / "html" / "index.html"
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(root),
    ]
    command += [
        "--path-output",
        str(root / "book"),
        "--all",
        *(["-W", "-n", "--keep-going"] * executed),
    ]
    done = subprocess.run(
        command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode or not page.exists():
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
        lines = [line for line in said if re.search("WARNING|ERROR", line)] or said[-20:]
        raise NotebookError("Jupyter Book could not build the pages:\n" + "\n".join(lines))
    return page
