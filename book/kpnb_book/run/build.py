"""Execute the notebooks and build the HTML book from the executed copies."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kpnb_book.run import engine
from kpnb_book.run.chapters import chapter_of, notebooks_of
from kpnb_book.run.checks import check_run
from kpnb_book.run.errors import NotebookError, UsageError
from kpnb_book.run.notebooks import find_notebook, run_notebook
from kpnb_book.run.origin import origin
from kpnb_book.run.provenance import signed

EXECUTED = Path("book", "_executed")


def build_book(
    profile: str,
    root: Path,
    only: Sequence[str] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> Path:
    """Execute the notebooks of ``_toc.yml`` into ``book/_executed/`` and build the HTML book;
    returns its first page.

    A copy is kept while nothing that it follows from has changed. ``only`` names notebooks to
    execute anyway (numbers or names); the others keep the copies they have. The default profile
    passes no parameter, so that no additional cell shows in the book; nor does the paper's where a
    chapter has none. ``workers`` and ``scheduler`` are those of
    :func:`kpnb_book.run.engine.cluster`. Raises UsageError where a chapter could not run, as in the
    paper's size where it needs data, or has no copy and is not among ``only``, and NotebookError at
    the first notebook that fails, or when Jupyter Book reports an error or a warning.
    """
    chosen = [find_notebook(name, root) for name in only] if only else notebooks_of(root)
    for path in chosen:  # all of them before the first kernel starts
        if not path.is_file():
            raise NotebookError(f"_toc.yml lists {path.relative_to(root)}, which does not exist")
        check_run(path, _parameters(path, profile), here=not scheduler)
    _check_others(root, chosen)
    tasks = [chapter(path, root, _parameters(path, profile)) for path in chosen]
    if not only:
        tasks = [task for task in tasks if not _unchanged(task)]
    if kept := len(chosen) - len(tasks):
        print(f"{kept} of {len(chosen)} notebooks have not changed since they were executed")
    if tasks:
        _execute(tasks, workers, scheduler)
    return build_pages(root)


def _check_others(root: Path, chosen: Sequence[Path]) -> None:
    """Raise UsageError when pages would have holes, as what is not ``chosen`` has no copy yet."""
    rest = [path for path in notebooks_of(root) if path not in chosen]
    missing = [path.stem for path in rest if not (root / EXECUTED / path.name).is_file()]
    if missing:
        alone = chosen[0].stem.split("_")[0]
        raise UsageError(
            f"the pages need every notebook, and of the others {len(missing)} have never been "
            f"executed ({missing[0]}, ...): build once without --only; or run one notebook alone, "
            f"kpnb run {alone}"
        )


def _parameters(path: Path, profile: str) -> dict[str, Any]:
    default = profile == "laptop" or (profile == "paper" and chapter_of(path).small)
    return {} if default else {"profile": profile}


def chapter(path: Path, root: Path, parameters: dict[str, Any]) -> engine.Task:
    """The task to execute a chapter of the book."""
    copy = root / EXECUTED / path.name
    arguments = {"path": path, "output": copy, "parameters": parameters}
    arguments["origin"] = origin(path, parameters)
    log, about = copy.with_suffix(".log"), chapter_of(path)
    return engine.Task(path.stem, path.stem, run_notebook, arguments, log, about.after, about.long)


def _unchanged(task: engine.Task) -> bool:
    return signed(task.arguments["output"]).get("origin") == task.arguments["origin"]


def _execute(tasks: Sequence[engine.Task], workers: int, scheduler: str | None) -> None:
    """Execute chapters; raises NotebookError when one fails."""
    # Let matplotlib list the fonts here: in an empty home it would say so in the first notebook's
    # output.
    fonts = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(fonts, stderr=subprocess.DEVNULL)
    with engine.cluster(min(workers, len(tasks)), scheduler) as client:
        outcomes = engine.run(client, tasks, stop_at_failure=True)
    if failed := [outcome.failed for outcome in outcomes.values() if outcome.failed]:
        raise NotebookError("\n".join(failed))


def build_pages(root: Path, strict: bool = True) -> Path:
    """Call Jupyter Book; returns the first page. When ``strict``, a warning is an error too.

    Raises NotebookError with what Jupyter Book has said.
    """
    page = root / "book" / "_build" / "html" / "index.html"
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(root), "--path-output", str(root / "book"), "--all"]
    if strict:
        command += ["-W", "-n", "--keep-going"]
    done = subprocess.run(
        command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode or not page.exists():
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
        lines = [line for line in said if re.search("WARNING|ERROR", line)] or said[-20:]
        raise NotebookError("Jupyter Book could not build the pages:\n" + "\n".join(lines))
    return page
