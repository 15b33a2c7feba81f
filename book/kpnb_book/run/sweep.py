"""A grid of parameters: the same notebooks again and again, here or on a cluster, and their results
in one table.

A sweep is a YAML file with one block, or a list of blocks, of these keys:

    notebook: 10                            # number, name or path
    parameters: {profile: paper}            # what all its runs have in common; $NAME is read from
    the environment
    grid: {network: [alexnet, vgg11], layer: [FC1, FC2]}  # every combination is a run
    share: [layer]                          # runs that differ only in these train the same networks

Every run is a process of its own, ``kpnb run`` into a folder named by what determines its results.
So what is finished is not run again, and whatever dies takes nothing else with it.
"""

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from html import escape
from itertools import cycle, product
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch
import yaml
from tqdm import tqdm

from kpnb._messages import unknown
from kpnb_book.run.notebooks import TIMEOUT, UsageError, check_parameters, find_notebook
from kpnb_book.run.rerun import finished, identity

KEYS = ("notebook", "parameters", "grid", "share")


class Member(NamedTuple):
    """One run of a sweep. Members of the same ``group`` train the same networks."""

    path: Path
    parameters: dict[str, Any]
    group: str

    @property
    def name(self) -> str:
        """Folder of the run: its notebook, and what determines its results."""
        return f"{self.path.stem}-{identity(self.path, self.parameters)[:12]}"

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """The record of the finished run in the sweep's ``folder``, or None."""
        return finished(self.path, folder / self.name, self.parameters)

    @property
    def label(self) -> str:
        return " ".join(
            [self.path.stem, *(f"{name}={_text(value)}" for name, value in self.parameters.items())]
        )


def read(file: Path, root: Path, overrides: Mapping[str, Any]) -> list[Member]:
    """The runs of a sweep, each once; ``overrides`` replace its parameters. Everything is checked,
    nothing is started.

    Raises UsageError, with the nearest names, for a file, key, notebook or parameter that does not
    exist or fit.
    """
    try:
        blocks = yaml.safe_load(file.read_text("utf8"))
        found: dict[str, Member] = {}
        for block in blocks if isinstance(blocks, list) else [blocks]:
            for member in members_of(block, root, overrides):
                found.setdefault(member.name, member)
    except (OSError, yaml.YAMLError, UsageError) as error:
        raise UsageError(f"{file}: {error}") from error
    return [*found.values()]


def members_of(block: Any, root: Path, overrides: Mapping[str, Any]) -> Iterator[Member]:
    """The runs of one block of a sweep; raises as :func:`read`."""
    if not isinstance(block, dict) or "notebook" not in block:
        raise UsageError(
            f"a block is a mapping with the keys {', '.join(KEYS)}; 'notebook' is missing in {block!r}"
        )
    for key, value in block.items():
        if key not in KEYS:
            raise UsageError(unknown("key", key, KEYS))
        if key in ("parameters", "grid") and not isinstance(value, dict):
            raise UsageError(f"{key!r} is a mapping of names to values, not {value!r}")
    path, grid = find_notebook(str(block["notebook"]), root), block.get("grid", {})
    for name, values in grid.items():
        if not isinstance(values, list):
            raise UsageError(f"grid of {name!r}: write the values as a list, not {values!r}")
    for values in product(*grid.values()):
        parameters = (
            block.get("parameters", {}) | dict(zip(grid, values, strict=True)) | dict(overrides)
        )
        parameters = {name: _expanded(value) for name, value in parameters.items()}
        check_parameters(path, parameters)
        for name in block.get("share", []):
            if name not in parameters:
                raise UsageError(unknown("parameter in 'share'", name, parameters))
        kept = {
            name: value for name, value in parameters.items() if name not in block.get("share", [])
        }
        yield Member(path, parameters, identity(path, kept))


def _expanded(value: Any) -> Any:
    expanded = os.path.expandvars(value) if isinstance(value, str) else value
    if isinstance(value, str) and (unset := re.search(r"\$\w+|\$\{\w+\}", expanded)):
        raise UsageError(
            f"{value!r}: set the environment variable {unset[0]}, or replace the parameter with -p"
        )
    return expanded


def execute(
    path: str,
    parameters: Mapping[str, Any],
    folder: str,
    timeout: int,
    environment: Mapping[str, str],
) -> str:
    """Run one member in a process of its own, its output in ``log.txt``; returns why it failed, ""
    when it did not.
    """
    command = [
        sys.executable,
        "-m",
        "kpnb",
        "run",
        path,
        "--resume",
        "--output",
        folder,
        "--timeout",
        str(timeout),
    ]
    command += [f"-p{name}={value!r}" for name, value in parameters.items()]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, "log.txt").open("w+", encoding="utf8") as log:
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": log,
            "start_new_session": True,
        }
        code = subprocess.run(command, **streams, env={**os.environ, **environment}).returncode
        log.seek(0)
        said = re.findall("^error: (.*)", log.read(), re.MULTILINE)
    return "" if code == 0 else said[-1] if said else f"exit code {code}, see {log.name}"


@contextmanager
def workers(count: int, scheduler: str | None) -> Iterator[Callable[..., Future[str]]]:
    """What submits ``execute``: to the Dask cluster of ``scheduler``, else to ``count`` workers
    here.

    Two or more workers here have one thread and, where there are GPUs, one GPU each. Workers of a
    cluster are what they were started as. Raises UsageError without Dask, or when nothing answers
    at ``scheduler``.
    """
    if count < 1:
        raise UsageError(f"--workers {count}: it takes one at least")
    if scheduler:
        try:
            from distributed import Client

            client = Client(scheduler)
        except ImportError as error:
            raise UsageError(
                "--scheduler needs Dask: pip install -c constraints.txt distributed"
            ) from error
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client, client.get_executor(pure=False) as pool:
            yield lambda *run: pool.submit(execute, *run, {})
        return
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    free = SimpleQueue[dict[str, str]]()
    for _, gpu in zip(range(count), cycle(gpus.split(",")), strict=False):
        one = {"OMP_NUM_THREADS": "1"} if count > 1 else {}
        free.put(one | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}))

    def on_a_free_one(*run: Any) -> str:
        environment = free.get()
        try:
            return execute(*run, environment)
        finally:
            free.put(environment)

    with ThreadPoolExecutor(count) as pool:
        yield lambda *run: pool.submit(on_a_free_one, *run)


def run(
    members: Sequence[Member],
    folder: Path,
    count: int = 1,
    scheduler: str | None = None,
    timeout: int = TIMEOUT,
) -> dict[str, str]:
    """Run what is not finished yet, then write tables and page to ``folder``; returns why members
    failed, by label.

    Of members that share trainings the first runs alone; the others wait for it and not for each
    other's locks.
    """
    groups, failed = defaultdict(list), {}
    for member in members:
        if not member.finished(folder):
            groups[member.group].append(member)
    folder.mkdir(parents=True, exist_ok=True)
    tick = 1 if sys.stderr.isatty() else 30  # seconds between two looks at what is going on
    shown = {
        "total": len(members),
        "initial": len(members) - sum(map(len, groups.values())),
        "miniters": 0,
    }
    with (
        workers(count, scheduler) as submit,
        tqdm(**shown, unit="run", mininterval=tick, dynamic_ncols=True) as bar,
    ):
        pending: dict[Future[str], Member] = {}

        def start(chosen: Iterable[Member]) -> None:
            for m in chosen:
                pending[submit(str(m.path), m.parameters, str(folder / m.name), timeout)] = m

        start([group.pop(0) for group in groups.values()])
        try:
            while pending:
                for future in wait(pending, timeout=tick, return_when=FIRST_COMPLETED).done:
                    member = pending.pop(future)
                    start(groups.pop(member.group, ()))
                    if why := _failure(future):
                        failed[member.label] = why
                    bar.write(
                        f"{'failed  ' if why else 'finished'}  {member.label}  {why}".rstrip()
                    )
                    bar.update()
                bar.set_postfix_str(
                    _doing(folder / m.name / "log.txt" for m in pending.values()), refresh=False
                )
                bar.update(0)
        except KeyboardInterrupt:
            for future in pending:
                future.cancel()
            for child in psutil.Process().children():
                child.send_signal(signal.SIGINT)
            raise
    write(members, folder, failed)
    return failed


def _failure(future: Future[str]) -> str:
    try:
        return future.result()
    except Exception as error:  # of a cluster that has lost its workers, or its scheduler
        return f"{type(error).__name__}: {error}"


def _doing(logs: Iterable[Path]) -> str:
    """The last line of the log that was written last."""
    there = [log for log in logs if log.exists() and log.stat().st_size]
    return (
        max(there, key=lambda log: log.stat().st_mtime).read_text("utf8").splitlines()[-1]
        if there
        else ""
    )


def write(members: Sequence[Member], folder: Path, failed: Mapping[str, str]) -> None:
    """Collect what is finished: ``results`` with a row for each run, and every glued table with the
    run's parameters.

    Each is written as CSV and, where pyarrow is installed, as Parquet; ``index.html`` shows them
    side by side.
    """
    rows = defaultdict(list)
    for member in members:
        if record := member.finished(folder):
            about = {
                "run": member.name,
                **{name: _text(value) for name, value in member.parameters.items()},
            }
            for table, lines in {"results": [record["results"]], **record["tables"]}.items():
                rows[table] += [
                    about | {(f"{table} {k}" if k in about else k): line[k] for k in line}
                    for line in lines
                ]
    shown = [f"<li>{escape(label)}: {escape(why)}</li>" for label, why in failed.items()]
    for name, table in ((name, pd.DataFrame(lines)) for name, lines in rows.items()):
        table.to_csv(folder / f"{name}.csv", index=False)
        with suppress(ImportError):
            table.to_parquet(folder / f"{name}.parquet", index=False)
        numbers = [
            column for column in table.select_dtypes("number") if table[column].nunique() > 1
        ]
        style = (
            table.style.hide(axis="index")
            .format(precision=3, na_rep="–", escape="html")
            .format(_link, subset="run")
        )
        shown.append(
            f"<h2>{escape(name)}</h2>{style.background_gradient('Blues', subset=numbers).to_html()}"
        )
    head = f"<!doctype html><meta charset=utf-8><title>{escape(folder.name)}</title><h1>{escape(folder.name)}</h1>"
    (folder / "index.html").write_text(head + "\n".join(shown), "utf8")


def _link(run: str) -> str:
    return f'<a href="{run}/{run.rpartition("-")[0]}.html">{run}</a>'


def _text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
