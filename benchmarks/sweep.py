"""How much faster two Dask workers finish a sweep of independent runs than one, measured in one go.

    python benchmarks/sweep.py             # about two minutes on two cores; needs Dask (the extra "cluster")
    python benchmarks/sweep.py --runs 6 --seconds 20

Every run is a notebook that computes on one thread and shares nothing with the others. Both sweeps run on workers of
one thread, started before the clock. The start of each run's processes is part of the time, as it is for a user.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from distributed import LocalCluster
from nbformat.v4 import new_code_cell, new_notebook

from kpnb_book import sweep


def clone(root: Path, runs: int, loops: int) -> Path:
    """A clone with one notebook, which sums squares ``loops`` times, and a sweep of it; returns the sweep's file."""
    (root / "notebooks").mkdir(parents=True)
    (root / "_toc.yml").touch()
    setting = new_code_cell(f"seed = 0\nloops = {loops}", metadata={"tags": ["parameters"]})
    work = new_code_cell("for _ in range(loops):\n    total = sum(i * i for i in range(3_000_000))")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new_notebook(cells=[setting, work], metadata={"kernelspec": kernel}), root / "notebooks/10_work.ipynb"
    )
    file = root / "work.yaml"
    file.write_text(f"notebook: 10\ngrid: {{seed: {list(range(runs))}}}\n")
    return file


def seconds(workers: int, members: list[sweep.Member], folder: Path) -> float:
    """Time of the sweep on a local Dask cluster of ``workers`` workers with one thread each."""
    quiet = {"dashboard_address": ":0", "silence_logs": 50}
    with LocalCluster(n_workers=workers, threads_per_worker=1, **quiet) as cluster:
        start = time.perf_counter()
        failed = sweep.run(members, folder, scheduler=cluster.scheduler_address)
        taken = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"runs have failed: {failed}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=4, help="independent runs of a sweep (%(default)s)")
    parser.add_argument("--seconds", type=float, default=12, help="computing time of one, about (%(default)s)")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    start = time.process_time()
    sum(i * i for i in range(3_000_000))
    loops = max(1, round(options.seconds / (time.process_time() - start)))
    with tempfile.TemporaryDirectory(prefix="kpnb-") as folder:
        file = clone(Path(folder, "clone"), options.runs, loops)
        members = sweep.read(file, file.parent, {})
        one, two = (seconds(workers, members, Path(folder, str(workers))) for workers in (1, 2))
    print(f"{options.runs} runs of about {options.seconds:.0f} s: one worker {one:.1f} s, two workers {two:.1f} s")
    print(f"two workers are {one / two:.2f} times faster (bound 2, wanted 1.7)")


if __name__ == "__main__":
    main()
