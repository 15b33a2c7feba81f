"""Full-size networks with random weights: seconds and memory of one image's entropy maps, all four
layers in one call.

    OMP_NUM_THREADS=1 python -m benchmarks fullsize     # about ten minutes on one core
    OMP_NUM_THREADS=2 python -m benchmarks.fullsize vgg16 --max-batch 4     # one of them

Each network has a process of its own, for its peak memory. From the seconds of VGG-16 follow the
hours of its whole row of Table 5 on CUB-200-2011: a student for each of the four layers, measured
at its layer, and one baseline, measured at all four, each before the first epoch and after every
one. The paper does not say how many images it measured. The stochastic learner is taken as released
in 2020, which leaves its loop after 60 of 80 steps of 96 samples for each image and layer (5,760
passes), and stopped when aligned, after 36 steps (about 3,400 passes). The time of a few samples of
one step stands for all of them. Training is not counted.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

import kpnb
from kpnb.features import capture
from kpnb_book.networks.images import LAYERS, build
from kpnb_book.studies.images import ImageStudy

SIZES = {"alexnet": 227, "vgg16": 224, "resnet50": 224}  # pixels
LIMIT = 8.0  # GiB
PAPER = ImageStudy.PROFILES["paper"]
IMAGES = {"all training images": 5994, "as many as the profile 'paper' measures": PAPER["analysed"]}
SAMPLES = 8  # of one step of the learner, to be timed
STEPS = {"learner, as released": 60, "learner, stopped when aligned": 36}


def seconds(model: nn.Module, x: Tensor, layers: list[str], repeats: int, **how: object) -> float:
    """Median time of one call, after whatever warmed up before."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        kpnb.entropy(model, x, layers, dead="nan", **how)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, max_batch: int, repeats: int) -> None:
    """Print what one network takes; the peak is that of this process."""
    started, busy = time.perf_counter(), time.process_time()
    model, x = build(name, 200, input_size=SIZES[name]), torch.randn(1, 3, SIZES[name], SIZES[name])
    paths = LAYERS[name]
    found = kpnb.entropy(model, x, [*paths.values()], max_batch=max_batch, dead="nan")
    together = seconds(model, x, [*paths.values()], repeats, max_batch=max_batch)
    alone = {
        layer: seconds(model, x, [path], repeats, max_batch=max_batch)
        for layer, path in paths.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"\n{name} at {SIZES[name]} px, {parameters:.0f} million parameters, "
        f"at most {max_batch} images at once"
    )
    for layer, path in paths.items():
        shape = " x ".join(map(str, capture(model, x, [path])[path].shape[1:]))
        spread, linear = found[path].entropy.std().item(), found[path].linearity.item()
        print(
            f"  {layer:5s}{shape:15s} alone {alone[layer]:6.2f} s   "
            f"std of H {spread:.3f}   linearity {linear:.3f}"
        )
    print(f"  all four in one call {together:6.2f} s, {together / 4:.2f} s a map")
    verdict = "within" if peak < LIMIT else "ABOVE"
    print(f"  peak memory          {peak:6.2f} GiB: {verdict} {LIMIT:.0f} GiB", flush=True)
    share = (time.process_time() - busy) / (time.perf_counter() - started) / torch.get_num_threads()
    print(
        f"  share of the cores   {100 * share:6.0f} %, "
        "with much less than 100 all seconds are too long",
        flush=True,
    )
    if name == "vgg16":
        row(together + sum(alone.values()), learner(model, x, [*paths.values()], repeats))


def learner(model: nn.Module, x: Tensor, layers: list[str], repeats: int) -> float:
    """Seconds of one of the learner's steps for one image at all ``layers``, from a part of one at
    each.
    """
    whole, few = kpnb.Stochastic(), {"repeats": repeats, "max_batch": SAMPLES}
    one, two = (kpnb.Stochastic(steps=steps, samples=SAMPLES) for steps in (1, 2))
    parts = [
        seconds(model, x, [p], solver=two, **few) - seconds(model, x, [p], solver=one, **few)
        for p in layers
    ]
    return sum(parts) * whole.samples / SAMPLES


def row(closed: float, step: float) -> None:
    """Hours of the row, for seconds an image and epoch of the closed form, and of one ``step`` of
    the learner at four layers.
    """
    solver, checkpoints = kpnb.ClosedForm(), PAPER["epochs"] + 1
    # Each of 8 maps has its own backwards and its own check; the four in one call share the rest.
    calls = 4 + 1
    counts = calls * (1 + solver.noise) + 8 * (solver.check + solver.rank + solver.probes)
    ways = {"closed form": (closed, counts)}
    for way, steps in STEPS.items():
        ways[way] = (2 * step * steps, 8 * 2 * steps * kpnb.Stochastic().samples)
    print(
        "\nTable 5, VGG-16 on CUB-200-2011: 4 students (a map each) and 1 baseline (4 maps), "
        f"{checkpoints} checkpoints"
    )
    for what, images in IMAGES.items():
        print(f"  {what} ({images:,}): {8 * checkpoints * images:,} maps")
        for way, (cost, passes) in ways.items():
            hours, total = cost * checkpoints * images / 3600, passes * checkpoints * images
            each = f"{cost:10,.1f} s and {passes:7,} passes for an image and a checkpoint of all"
            print(f"    {way:30s}{each}, {hours:11,.0f} h, {total:.1e} forward and backward passes")
    for way, steps in STEPS.items():
        print(f"  the {way} takes {2 * step * steps / closed:.0f} times as long")


def run(quick: bool) -> None:
    for name in ["alexnet"] if quick else SIZES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.fullsize",
            name,
            "--repeats",
            "1" if quick else "3",
        ]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=SIZES)
    parser.add_argument("--max-batch", type=int, default=8, help="rows of the largest forward pass")
    parser.add_argument("--repeats", type=int, default=3, help="calls of which the median counts")
    options = parser.parse_args()
    measure(options.network, options.max_batch, options.repeats)


if __name__ == "__main__":
    main()
