"""A notebook run again, in a folder of its own: the executed copy, a page of it, and what came out
as JSON.
"""

import ast
import json
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from kpnb_book.run import engine
from kpnb_book.run.checks import check_run
from kpnb_book.run.errors import NotebookError, UsageError
from kpnb_book.run.notebooks import TIMEOUT, Tell, run_notebook
from kpnb_book.run.origin import origin
from kpnb_book.run.parameters import check_parameters
from kpnb_book.run.provenance import described
from kpnb_book.run.source import defaults_of

if TYPE_CHECKING:
    from nbformat import NotebookNode

# pandas publishes a table as this: a list of rows, and a schema
TABLE = "application/vnd.dataresource+json"


def run_one(
    path: Path,
    folder: Path,
    parameters: Mapping[str, Any],
    timeout: int = TIMEOUT,
    resume: bool = False,
    scheduler: str | None = None,
) -> None:
    """Run one notebook on the engine. With ``resume`` nothing is started when it is finished.

    Raises UsageError for what does not fit, before anything is started, and NotebookError when the
    notebook fails.
    """
    check_run(path, parameters, here=not scheduler)
    check_folder(folder)
    digest = origin(path, parameters)
    if resume and finished(path, folder, digest):
        return
    arguments = {"path": path, "folder": folder, "parameters": dict(parameters), "digest": digest}
    arguments |= {"timeout": timeout, "resume": resume}
    task = engine.Task(path.stem, path.stem, rerun, arguments, log_of(path, folder))
    with engine.cluster(1, scheduler) as client:
        (outcome,) = engine.run(client, [task]).values()
    if outcome.failed:
        raise NotebookError(outcome.failed)


def log_of(path: Path, folder: Path) -> Path:
    """Where :func:`rerun` leaves what the kernel's process has said outside the cells."""
    return folder / f"{path.stem}.log"


def check_folder(folder: Path) -> None:
    """Raises UsageError where ``folder``, or one above it, is a file."""
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise UsageError(f"--output {folder}: {place} is a file, not a folder")
            return


def make_folder(folder: Path) -> None:
    """Make the ``folder`` of results; raises UsageError when that, or writing there, fails."""
    try:
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = f"--output {folder}: results cannot be written there"
        raise UsageError(f"{found}: {error.strerror}") from error


def finished(path: Path, folder: Path, digest: str) -> dict[str, Any] | None:
    """What :func:`rerun` has written to ``folder`` for the very run that ``digest`` identifies, or
    None.
    """
    try:
        record = json.loads((folder / f"{path.stem}.json").read_bytes())
        return record if record["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rerun(
    path: Path,
    folder: Path,
    parameters: Mapping[str, Any],
    digest: str,
    timeout: int = TIMEOUT,
    resume: bool = False,
    *,
    tell: Tell = lambda line: None,
    scratch: str | None = None,
) -> None:
    """Run a notebook into a ``folder`` of its own: the executed copy, an HTML page of it, and a
    JSON of its results.

    The JSON is written last. It holds ``results`` and ``tables`` by the names they were glued
    under, ``parameters``, ``settings``, versions, git revision, machine and times, and the
    ``digest`` of all that the run follows from. With ``resume`` a finished run is left as it is. A
    second process that wants the same folder waits. Raises what :func:`run_notebook` raises.
    """
    import nbformat

    check_parameters(path, parameters)
    result = folder / f"{path.stem}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if resume and finished(path, folder, digest):
            return
        result.unlink(missing_ok=True)
        record = {"notebook": path.stem, "digest": digest}
        record |= {"parameters": defaults_of(path) | dict(parameters), **provenance(path.parent)}
        record |= run_notebook(
            path,
            folder / path.name,
            parameters,
            timeout,
            origin=digest,
            tell=tell,
            scratch=scratch,
        )
        notebook = nbformat.read(folder / path.name, as_version=4)
        record |= results_of(notebook)
        (folder / f"{path.stem}.html").write_text(page_of(notebook, record["results"]), "utf8")
        result.with_suffix(".tmp").write_text(json.dumps(record, indent=1), "utf8")
        result.with_suffix(".tmp").replace(result)


def provenance(folder: Path) -> dict[str, Any]:
    """Versions of all packages, git revision of ``folder`` (None outside a clone, and without git),
    Python and machine.
    """
    revision = described(folder, "--dirty", "--abbrev=40") or None
    packages = {package.name: package.version for package in metadata.distributions()}
    where = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
    }
    return {"revision": revision, **where, "packages": dict(sorted(packages.items()))}


def results_of(notebook: "NotebookNode") -> dict[str, dict[str, Any]]:
    """What an executed notebook has glued, by name: ``results`` (numbers, texts) and ``tables``
    (lists of rows).
    """
    results, tables = {}, {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        scrap = output.get("metadata", {}).get("scrapbook")
        if not scrap:
            continue
        name, prefix = scrap["name"], scrap["mime_prefix"]
        data = {kind.removeprefix(prefix): value for kind, value in output.data.items()}
        if TABLE in data:
            tables[name] = _table(data[TABLE])
            continue
        with suppress(ValueError):  # a formatted table, for the page only
            results[name] = _value(data["text/plain"])
    return {"results": results, "tables": tables}


def _table(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a published table without its index, columns in their order."""
    fields = [field["name"] for field in data["schema"]["fields"]]
    columns = [name for name in fields if name != "index"]
    return [{name: row[name] for name in columns} for row in data["data"]]


def _value(text: str) -> Any:
    """The value of a Python literal, or of NaN or an infinity, which are none; raises ValueError
    for any other text.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return float(text)


def page_of(notebook: "NotebookNode", results: Mapping[str, Any]) -> str:
    """An executed notebook as one HTML page, its text quoting the glued ``results`` as in the
    book.
    """
    from nbconvert import HTMLExporter  # half a second

    def quoted(role: re.Match[str]) -> str:
        return format(results[role[1]], role[2] or "") if role[1] in results else role[0]

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\{glue:\w+\}`(\w+)(?::([^`]*))?`", quoted, cell.source)
        cell.outputs = [
            output
            for output in cell.get("outputs", [])
            if "scrapbook" not in output.get("metadata", {})
        ]
    return HTMLExporter().from_notebook_node(notebook)[0]
