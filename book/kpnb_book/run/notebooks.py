"""Find notebooks, read what they say, and execute one of them without a browser.

Its parameters are checked before a kernel starts, and only a complete run leaves an executed copy
where the book looks for one, so a page can never show half a result.
"""

import json
import logging
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kpnb_book.run.errors import NotebookError, UsageError, unknown
from kpnb_book.run.parameters import check_parameters
from kpnb_book.run.provenance import sign

ERROR_TAG = "papermill-error-cell-tag"  # of the cells that papermill adds to a failed copy
# Seconds that one cell may take: far more than a laptop run, so that only a hanging cell meets it.
TIMEOUT = 4 * 3600
# Bytes of a socket's name: systems take 104 or 108, and a number is put behind it.
LONGEST_SOCKET = 95

# What papermill warns of when it reads the parameters cell line by line. Parameters are checked
# before, against the whole cell.
CHECKED = ("Unable to parse line", "Passed unknown parameter")

Tell = Callable[[str], None]  # is told what a kernel is doing


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


def run_notebook(
    path: Path,
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: int = TIMEOUT,
    *,
    origin: str = "",
    tell: Tell = lambda line: None,
    scratch: str | None = None,
) -> dict[str, Any]:
    """Execute the notebook ``path`` in its own folder and write the executed copy to ``output``.

    Returns when it ``started`` (UTC), the ``seconds`` taken, and the ``settings`` that its studies
    resolved. ``timeout`` is in seconds for each cell. With ``parameters`` the copy holds an
    additional cell with them. ``origin``, which identifies all that the copy follows from, is
    written into it. ``tell`` is called with each new line that the kernel says of its progress.
    Temporary files are in the folder ``scratch``. What the kernel's process has printed outside its
    cells is left beside ``output`` as ``<stem>.log``, if there is any.

    Raises UsageError for parameters that do not fit, before a kernel starts, and NotebookError,
    which names notebook, cell and exception, when a cell fails, hangs or loses its kernel. Then
    ``output`` does not exist (an older copy is removed) and the partial copy is kept beside it as
    ``<stem>.failed.ipynb``.
    """
    path, output, parameters = path.resolve(), output.resolve(), dict(parameters or {})
    if output == path:
        raise UsageError(
            f"{path.name}: the executed copy would overwrite the notebook; choose another folder"
        )
    check_parameters(path, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, failed = (output.with_suffix(f".{state}.ipynb") for state in ("running", "failed"))
    log = output.with_suffix(".log")
    for old in (output, partial, failed, log):
        old.unlink(missing_ok=True)
    started, start = datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kpnb-", dir=scratch) as folder:
        progress = Path(folder, "progress")
        try:
            with _watched(progress, tell):
                _execute(path, partial, parameters, timeout, Path(folder), log)
        except Exception as error:
            where = _where_stopped(error, partial)
            if partial.exists():
                where += f"\nThe copy up to there: {partial.replace(failed)}"
            raise NotebookError(f"{path.name} failed in {where}") from error
        finally:
            if log.exists() and not log.stat().st_size:
                log.unlink()
        settings = _lines(progress.with_suffix(".settings"))
    sign(partial, path.parent.parent, origin)
    partial.replace(output)
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.monotonic() - start,
        "settings": [json.loads(line) for line in settings],
    }


def _execute(
    path: Path, copy: Path, parameters: dict[str, Any], timeout: int, folder: Path, log: Path
) -> None:
    """Call papermill. Folders of Jupyter and IPython are in the temporary ``folder``: nothing in
    the user's home changes a run or is needed for it.
    """
    import papermill
    from traitlets.config import Config

    from kpnb_book.run.kernel import Kernel

    for name in ("papermill", "papermill.translators"):
        logging.getLogger(name).addFilter(_is_news)
    variables = {
        "KPNB_PROGRESS": str(folder / "progress"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    config = {
        "variables": variables,
        "log_file": str(log),
        "connection_file": str(folder / "kernel.json"),
        "transport_encryption": "auto",  # without it a kernel prints a warning
        **_transport(folder),
    }
    papermill.execute_notebook(
        _literal(path),
        _literal(copy),
        parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
        execution_timeout=timeout,
        kernel_manager_class=Kernel,
        config=Config(Kernel=config),
        resources={"metadata": {"path": str(path.parent)}},  # where the kernel runs
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of papermill's log says more than our own check of parameters."""
    return not record.getMessage().startswith(CHECKED)


def _transport(folder: Path) -> dict[str, str]:
    """How to speak with a kernel: through sockets in the temporary ``folder``, where the system has
    such and their names are short enough; on Linux else through sockets without a file. Numbers of
    ports are chosen before a kernel takes them, so somebody else may take one first.
    """
    address = str(folder / "k")
    if os.name == "posix" and len(os.fsencode(address)) <= LONGEST_SOCKET:
        return {"transport": "ipc", "ip": address}
    if sys.platform == "linux":
        return {"transport": "ipc", "ip": f"@kpnb-{secrets.token_hex(16)}"}
    return {}


def _literal(path: Path) -> str:
    """A path for papermill, which would put parameters in for {names}."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _watched(progress: Path, tell: Tell) -> Iterator[None]:
    """Tell what a kernel writes to ``progress``, twice a second when it has changed."""
    done = threading.Event()

    def watch() -> None:
        last = ""
        while not done.wait(0.5):
            line = " ".join(_lines(progress)).strip()
            if line and line != last:
                tell(line)
                last = line

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _lines(file: Path) -> list[str]:
    return file.read_text("utf8", errors="replace").splitlines() if file.exists() else []


def _where_stopped(error: Exception, copy: Path) -> str:
    """Where in ``copy`` the run stopped, and why: "cell 3 (x = 1/0): ZeroDivisionError: division by
    zero".
    """
    from papermill.exceptions import PapermillExecutionError

    name, value = type(error).__name__, _first_line(str(error))
    if isinstance(error, PapermillExecutionError):  # otherwise the cell hung or lost its kernel
        name, value = error.ename, error.evalue
    cells = json.loads(copy.read_text("utf8"))["cells"] if copy.exists() else []
    cells = [cell for cell in cells if ERROR_TAG not in cell["metadata"].get("tags", [])]
    begun = [
        i for i, cell in enumerate(cells) if cell["metadata"].get("papermill", {}).get("start_time")
    ]
    if not begun:
        return f"its start: {name}: {value}"
    source = "".join(cells[begun[-1]]["source"])
    return f"cell {begun[-1] + 1} ({_first_line(source)}): {name}: {value}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
