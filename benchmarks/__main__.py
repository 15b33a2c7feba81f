"""All benchmarks, or those that are named.

    python -m benchmarks                # everything: an hour at most, with trained networks
    python -m benchmarks --quick        # everything, small: minutes
    python -m benchmarks speed memory   # only these
    python -m benchmarks gpu FOLDER     # on a CUDA card: at most 8 minutes; gpu --help says more
    python -m benchmarks.directions         # what the best directions would give the closed form
    python -m benchmarks.metrics STUDY      # what settings of the closed form change in the metrics
    python -m benchmarks.regression OTHER   # whether anything got slower or less exact than in
                                            # another clone or revision
    python -m benchmarks.losses             # the same students by another implementation's losses

speed     entropy per image beside its two bounds, by what it depends on; several layers in one call
scaling   with the number of images and of epochs
memory    peak of one call, by the number of images and ``max_batch``
solvers   the closed form against the stochastic learner and against the exact Jacobian: time and
          accuracy
frontier  error of H and knowledge points against time, from the fewest directions to the exact
          Jacobian; --points keeps it as a table, --figure draws it
clouds    training the point cloud networks, beside their usual formulation
fullsize  entropy of an image by networks of full size, and what a row of the paper's Table 5 takes
          from that
sweep     a sweep on two Dask workers beside one
chapters  what the chapters took when the book was last built

Times are CPU time but for the last three, so that other work on the machine disturbs little; ratios
disturb it less than absolute numbers. With everything, what is printed is kept for the page of the
book as well; --output benchmarks/results/NAME.txt keeps it for everybody's. Set
OMP_NUM_THREADS=1 to compare with other machines.
"""

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch


def later(module: str, name: str = "run") -> Callable[..., None]:
    """A benchmark whose module is imported when it runs: the card's needs none of the others."""

    def run(quick: bool, **where: Any) -> None:
        getattr(import_module(f"benchmarks.{module}"), name)(quick, **where)

    return run


ALL = {
    "speed": later("speed"),
    "scaling": later("speed", "scaling"),
    "memory": later("memory"),
    "solvers": later("solvers"),
    "frontier": later("frontier"),
    "clouds": later("clouds"),
    "fullsize": later("fullsize"),
    "sweep": later("sweep"),
    "chapters": later("chapters"),
}


class Tee(StringIO):
    """Keeps what it writes to the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = sys.stdout

    def write(self, text: str) -> int:
        self.terminal.write(text)
        self.terminal.flush()
        return super().write(text)


def machine() -> str:
    """What the figures belong to."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf8"))
    except OSError:  # not Linux
        found = None
    processor = found[1] if found else platform.processor() or platform.machine()
    lines = [
        f"processor   {processor}, {os.cpu_count()} cores",
        f"system      {platform.system()}, Python {platform.python_version()}",
        f"PyTorch     {torch.__version__}, {torch.get_num_threads()} threads",
        f"measured    {datetime.now(UTC):%Y-%m-%d}, load before that: {os.getloadavg()[0]:.1f}",
    ]
    return "\n".join(lines)


def measure(names: list[str], quick: bool, where: dict[str, dict[str, Path]]) -> None:
    """Print the machine and the benchmarks of these names; ``where`` some keep more than they
    print.
    """
    print(machine())
    if quick:
        print("            with --quick: small and little repeated, so the figures are rough")
    for name in names:
        ALL[name](quick, **where.get(name, {}))


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:  # options of its own, and not a part of everything
        import_module("benchmarks.gpu").main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)} (default: all)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to keep what is printed (with everything: the page of the book); files in "
        "benchmarks/results/ are shipped with it",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer, smaller and less repeated measurements"
    )
    parser.add_argument(
        "--points", type=Path, metavar="FILE", help="where to keep those of the frontier, as CSV"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="where to draw the frontier: .svg or .png"
    )
    given = parser.parse_args()
    if unknown := set(given.names) - ALL.keys():
        parser.error(f"unknown benchmark {min(unknown)!r}: choose from {', '.join(ALL)}")
    names = given.names or [*ALL]
    files = {"points": given.points, "figure": given.figure}
    where = {"frontier": {name: file for name, file in files.items() if file}}
    if where["frontier"] and "frontier" not in names:
        parser.error("--points and --figure are of the frontier: name it too")
    kept = given.output
    if kept is None and not given.names:
        from kpnb_book.run.notebooks import find_root

        kept = find_root() / "book" / "_executed" / "benchmarks.txt"
    if kept is None:
        measure(names, given.quick, where)
        return
    with redirect_stdout(Tee()) as said:
        measure(names, given.quick, where)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(said.getvalue(), "utf8")
    print(f"\nkept: {kept}")


if __name__ == "__main__":
    main()
