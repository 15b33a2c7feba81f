"""All benchmarks, or those that are named.

    python -m benchmarks                # everything: a quarter of an hour, once the laptop's networks are trained
    python -m benchmarks --quick        # everything, small: minutes; for seeing that nothing got slow
    python -m benchmarks speed memory   # only these

speed    entropy per image beside its two bounds, by what it depends on; several layers in one call
scaling  with the number of images and of epochs
memory   peak of one call, by the number of images and ``max_batch``
solvers  the closed form against the stochastic learner and against the exact Jacobian: time and accuracy
clouds   training the point cloud networks, beside their usual formulation

Times are CPU time, so that other work on the machine disturbs little; ratios disturb it less than absolute numbers.
Set OMP_NUM_THREADS=1 to compare with the book's text.
"""

import argparse

import torch

from benchmarks import clouds, memory, solvers, speed

ALL = {
    "speed": speed.run,
    "scaling": speed.scaling,
    "memory": memory.run,
    "solvers": solvers.run,
    "clouds": clouds.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer, smaller and less repeated measurements")
    given = parser.parse_args()
    if unknown := set(given.names) - ALL.keys():
        parser.error(f"unknown benchmark {min(unknown)!r}: choose from {', '.join(ALL)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in given.names or ALL:
        ALL[name](given.quick)


if __name__ == "__main__":
    main()
