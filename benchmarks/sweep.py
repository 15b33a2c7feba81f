"""How much faster two Dask workers finish a sweep of independent runs than one, measured in one go.

About two minutes on two cores; needs Dask (the extra "cluster").

Every run is a notebook that computes on one thread and shares nothing with the others. Both sweeps
run on workers of one thread, started before the clock. The start of each run's processes is part of
the time, as it is for a user.
"""

import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from kpnb_book.run import sweep


def clone(root: Path, runs: int, loops: int) -> Path:
    """A clone with one notebook, which sums squares ``loops`` times, and a sweep of it; returns the
    sweep's file.
    """
    (root / "notebooks").mkdir(parents=True)
    (root / "_toc.yml").touch()
    setting = new_code_cell(f"seed = 0\nloops = {loops}", metadata={"tags": ["parameters"]})
    work = new_code_cell("for _ in range(loops):\n    total = sum(i * i for i in range(3_000_000))")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new_notebook(cells=[setting, work], metadata={"kernelspec": kernel}),
        root / "notebooks/10_work.ipynb",
    )
    file = root / "work.yaml"
    file.write_text(f"notebook: 10\ngrid: {{seed: {list(range(runs))}}}\n")
    return file


def seconds(workers: int, members: list[sweep.Member], folder: Path) -> float:
    """Time of the sweep on a local Dask cluster of ``workers`` workers with one thread each."""
    from distributed import LocalCluster

    quiet = {"dashboard_address": ":0", "silence_logs": 50}
    with LocalCluster(n_workers=workers, threads_per_worker=1, **quiet) as cluster:
        start = time.perf_counter()
        failed = sweep.run(members, folder, scheduler=cluster.scheduler_address)
        taken = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"runs have failed: {failed}")
    return taken


def run(quick: bool) -> None:
    if not find_spec("distributed"):
        print(
            "\nworkers of a sweep: Dask is not installed (pip install -c constraints.txt distributed)"
        )
        return
    runs, length = (2, 4.0) if quick else (4, 12.0)
    start = time.process_time()
    sum(i * i for i in range(3_000_000))
    loops = max(1, round(length / (time.process_time() - start)))
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory(prefix="kpnb-") as folder, patch.dict(os.environ, paths):
        file = clone(Path(folder, "clone"), runs, loops)
        members = sweep.read(file, file.parent, {})
        with redirect_stdout(sys.stderr):  # what the sweeps say on their way
            one, two = (seconds(workers, members, Path(folder, str(workers))) for workers in (1, 2))
    print(
        f"\nsweep of {runs} independent runs of about {length:.0f} s, Dask workers of one thread (wall time)"
    )
    print(
        f"  one worker {one:.1f} s, two workers {two:.1f} s: {one / two:.2f} times faster (bound: 2, target: 1.7)"
    )
