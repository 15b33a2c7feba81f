"""Execute notebooks without a browser.

A notebook is run with papermill. Its parameters are checked before a kernel starts, and only a
complete run leaves an executed copy where the book looks for one, so a page can never show half a
result.
"""

import ast
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from papermill.execute import ERROR_MARKER_TAG
from traitlets.config import Config

from kpnb._messages import unknown

PROFILES = ("smoke", "laptop", "paper")
# Jupyter ends a kernel with an interrupt first. One that still tidies up after its last answer
# calls that an error.
INTERRUPTED = "KeyboardInterrupt caught in kernel"
QUIET = f"__import__('logging').getLogger('IPKernelApp').addFilter(lambda said: {INTERRUPTED!r} not in str(said.msg))"
# Threads that spin for long while they wait slow a notebook down many times when the machine is
# shared; and a debugger that no one uses may print a warning.
KERNEL = {"GOMP_SPINCOUNT": "10000", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
TIMEOUT = (
    4 * 3600
    # seconds that one cell may take: far more than a laptop run, so that only a hanging cell meets it
)


class UsageError(ValueError):
    """What was asked for does not exist or does not fit; the message names the nearest that
    does.
    """


class NotebookError(RuntimeError):
    """A notebook, or the book, did not come out right; the message says where and why."""


def find_root() -> Path:
    """The folder with ``_toc.yml`` and ``notebooks/``: here or above, else beside the package; else
    NotebookError.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise NotebookError(
        f"no _toc.yml with notebooks/ in {here} or above: run this inside a clone of the repository"
    )


def find_notebook(name: str, root: Path) -> Path:
    """The notebook that ``name`` means: a path, a file name, or the number it starts with ("10",
    "0").
    """
    known = sorted((root / "notebooks").glob("*.ipynb"))
    for path in (Path(name), root / name):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    for path in known:
        if name in (path.name, path.stem) or path.stem.startswith(f"{name.zfill(2)}_"):
            return path
    raise UsageError(unknown("notebook", name, [path.stem for path in known]))


def parameters_of(path: Path) -> dict[str, dict[str, str]]:
    """Name to ``default`` (source text) and ``help`` (comment) of what the parameters cell of
    ``path`` assigns.
    """
    try:
        return papermill.inspect_notebook(str(path))
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NotebookError(f"{path} is not a readable Python notebook: {error}") from error


def defaults_of(path: Path) -> dict[str, Any]:
    """Name to default of every parameter of ``path``; None for an expression, whose value only a
    kernel knows.
    """
    defaults = dict.fromkeys(found := parameters_of(path))
    for name, known in found.items():
        with suppress(SyntaxError, ValueError):
            defaults[name] = ast.literal_eval(known["default"])
    return defaults


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Compare ``parameters`` with the notebook's parameters cell; no kernel is started.

    Raises UsageError for a name that the cell does not assign, and for a value of another type than
    the default (an int may stand for a float; a default of None takes anything).
    """
    known = defaults_of(path)
    for name, value in parameters.items():
        if name not in known:
            raise UsageError(f"{path.name}: {unknown('parameter', name, known)}")
        default, kind, given = known[name], type(known[name]), type(value)
        if default is not None and given is not kind and (kind, given) != (float, int):
            wanted = f"takes {kind.__name__}, as in {default!r}, not {given.__name__} {value!r}"
            raise UsageError(f"{path.name}: parameter {name!r} {wanted}")


def run_notebook(
    path: Path,
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: int = TIMEOUT,
    label: str = "",
) -> dict[str, Any]:
    """Execute the notebook ``path`` in its own folder and write the executed copy to ``output``.

    Returns when it ``started`` (UTC), the ``seconds`` taken, and the ``settings`` that its studies
    resolved. ``timeout`` is in seconds for each cell; ``label`` (default: the notebook's name)
    begins the line on the terminal. With ``parameters`` the copy holds an additional cell with
    them.

    Raises UsageError for parameters that do not fit, before a kernel starts, and NotebookError,
    which names notebook, cell and exception, when a cell fails, hangs or loses its kernel. Then
    ``output`` does not exist (an older copy is removed) and the partial copy is kept beside it as
    ``<stem>.failed.ipynb``.
    """
    if output.resolve() == path.resolve():
        raise UsageError(
            f"{path.name}: the executed copy would overwrite the notebook; choose another folder"
        )
    parameters = dict(parameters or {})
    check_parameters(path, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, failed = (output.with_suffix(f".{state}.ipynb") for state in ("running", "failed"))
    for old in (output, partial, failed):
        old.unlink(missing_ok=True)
    options = {
        "kernel_name": "python3",
        "cwd": str(path.resolve().parent),
        "execution_timeout": timeout,
    }
    options["config"] = Config(
        KernelManager={"transport_encryption": "auto"}
    )  # without it a kernel prints a warning
    options["shutdown_kernel"] = (
        "immediate"  # what matters is stored; a farewell takes up to three seconds
    )
    options["extra_arguments"] = [f"--IPKernelApp.exec_lines={QUIET}"]
    started, start, label = datetime.now(UTC), time.monotonic(), label or path.stem
    with (
        tempfile.TemporaryDirectory(prefix="kpnb-") as folder,
        _status(label, Path(folder, "progress")) as progress,
    ):
        # Folders of Jupyter and IPython are temporary: nothing in the user's home changes a run or
        # is needed for it.
        kernel = {"JUPYTER_RUNTIME_DIR": f"{folder}/runtime", "IPYTHONDIR": f"{folder}/ipython"}
        try:
            with patch.dict(os.environ, KERNEL | os.environ | kernel, KPNB_PROGRESS=str(progress)):
                papermill.execute_notebook(
                    path.resolve(), partial.resolve(), parameters, progress_bar=False, **options
                )
        except Exception as error:
            where = _place(error, partial)
            if partial.exists():
                where += f"\nThe copy up to there: {partial.replace(failed)}"
            raise NotebookError(f"{path.name} failed in {where}") from error
        noted = progress.with_suffix(".settings")
        settings = (
            [json.loads(line) for line in noted.read_text("utf8").splitlines()]
            if noted.exists()
            else []
        )
    partial.replace(output)
    seconds = time.monotonic() - start
    print(f"{label}  {seconds:.1f} s", flush=True)
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "settings": settings,
    }


def _place(error: Exception, copy: Path) -> str:
    """Where in ``copy`` the run stopped, and why: "cell 3 (x = 1/0): ZeroDivisionError: division by
    zero".
    """
    name, value = type(error).__name__, _first_line(str(error))
    if isinstance(error, PapermillExecutionError):  # otherwise the cell hung or lost its kernel
        name, value = error.ename, error.evalue
    cells = nbformat.read(copy, as_version=4).cells if copy.exists() else []
    cells = [cell for cell in cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])]
    begun = [
        i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")
    ]
    where = (
        f"cell {begun[-1] + 1} ({_first_line(cells[begun[-1]].source)})" if begun else "its start"
    )
    return f"{where}: {name}: {value}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


@contextmanager
def _status(label: str, progress: Path) -> Iterator[Path]:
    """Show elapsed time and the kernel's own ``progress``: a line that is rewritten, or a line
    every 30 s in a log.
    """
    alone = multiprocessing.parent_process() is None  # else others write to the same terminal
    live, start, done = sys.stdout.isatty() and alone, time.monotonic(), threading.Event()
    begin, end = ("\r\x1b[K", "") if live else ("", "\n")

    def watch() -> None:
        note = progress.with_suffix(
            ".note"
        )  # what a kernel says beforehand, to be read when the run is long
        while not done.wait(0.5 if live else 30):
            if note.exists():
                print(f"{begin}{label}  {note.read_text('utf8')}", flush=True)
                note.unlink()
            doing = (
                progress.read_text("utf8", errors="replace").strip() if progress.exists() else ""
            )
            line = f"{label}  {time.monotonic() - start:.0f} s  {doing}"
            print(
                begin + (line[: shutil.get_terminal_size().columns - 1] if live else line),
                end=end,
                flush=True,
            )

    print(f"{label} ...", end=end, flush=True)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        done.set()
        thread.join()
        print(begin, end="", flush=True)
