"""How much faster two workers finish a sweep of independent runs than one, measured in one go.

About two minutes on two cores.

Every run is a notebook that computes on one thread and shares nothing with the others. The start of
workers and kernels is part of the time, as it is for a user.
"""

import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

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
    """Time of the sweep with ``workers`` workers on this machine."""
    start = time.perf_counter()
    failed = sweep.run(members, folder, workers)
    if failed:
        raise RuntimeError(f"runs have failed: {failed}")
    return time.perf_counter() - start


def run(quick: bool) -> None:
    runs, length = (2, 4.0) if quick else (4, 12.0)
    start = time.process_time()
    sum(i * i for i in range(3_000_000))
    loops = max(1, round(length / (time.process_time() - start)))
    with tempfile.TemporaryDirectory(prefix="kpnb-") as folder:
        file = clone(Path(folder, "clone"), runs, loops)
        members = sweep.read(file, file.parent, {})
        with redirect_stdout(sys.stderr):  # what the sweeps say on their way
            one, two = (seconds(workers, members, Path(folder, str(workers))) for workers in (1, 2))
    print(
        f"\nsweep of {runs} independent runs of about {length:.0f} s, "
        "workers of one thread (wall time)"
    )
    print(
        f"  one worker {one:.1f} s, two workers {two:.1f} s: {one / two:.2f} times faster "
        "(bound: 2, target: 1.7)"
    )
