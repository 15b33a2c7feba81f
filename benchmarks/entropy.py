"""Speed, accuracy and memory of the closed form, as ratios within one run.

    python benchmarks/entropy.py            # about five minutes on two cores, after the laptop's teacher is trained
    python benchmarks/entropy.py --images 2 # fewer images for the slow stochastic learner

Network and images are those of the image chapters. Timings are medians; machines are noisy, ratios less so.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kpnb
from kpnb.layers import capture, explaining
from kpnb.metrics import agreement
from kpnb.studies.images import ImageStudy

EXACT = kpnb.ClosedForm(rank=None)


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median time of ``run``, after one call that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bare_loop(model: nn.Module, x: Tensor, path: str, solver: kpnb.ClosedForm, max_batch: int) -> None:
    """As many forward and backward passes as the closed form makes, and nothing else."""
    with explaining(model, x.device):
        for rows in x.split(max_batch):
            leaf = rows.clone().requires_grad_(True)
            with torch.no_grad():
                for _ in range(solver.noise + solver.check):
                    capture(model, rows, [path])
            feature = capture(model, leaf.clone(), [path])[path]
            vector = torch.ones_like(feature)
            for _ in range(solver.rank + solver.probes):
                torch.autograd.grad(feature, leaf, vector, retain_graph=True)


def against_the_learner(study: ImageStudy, model: nn.Module, layer: str, images: int) -> None:
    """The closed form and the stochastic learner with the released 2020 settings, on the same images."""
    path, x, foreground = study.path(layer), study.x[:images], study.foreground[:images]
    exact = kpnb.entropy(model, x, path, units=study.units, solver=EXACT)
    before = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units))
    closed = kpnb.entropy(model, x, path, units=study.units)
    start = time.perf_counter()
    learner = kpnb.Stochastic()
    learned = kpnb.entropy(model, x, path, units=study.units, solver=learner, max_batch=96)
    slow = (time.perf_counter() - start) / images
    after = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units))
    fast = (before + after) / 2 / len(study.x)
    again = kpnb.entropy(model, x, path, units=study.units, solver=learner, max_batch=96, seed=1)
    print(f"\n{layer}: closed form (16 forwards, 14 backwards) against the released 2020 settings, {images} images")
    print(f"  closed form          {1000 * fast:10.1f} ms an image")
    passes = learner.steps * learner.samples
    print(f"  stochastic learner   {1000 * slow:10.1f} ms an image, {passes} forwards and backwards")
    print(f"  ratio                {slow / fast:10.0f}   (target: at least 500)")
    for name, one, two in (
        ("closed form and exact", closed, exact),
        ("learner and exact", learned, exact),
        ("learner, two seeds", learned, again),
    ):
        error, iou = agreement(one.entropy, two.entropy, foreground, study.settings.b)
        print(f"  {name:22s} mean abs. difference {error:.4f} nats, IoU of knowledge points {iou:.3f}")


def against_the_bare_loop(study: ImageStudy, model: nn.Module, layer: str) -> None:
    path, solver = study.path(layer), kpnb.ClosedForm()
    ratios = []
    for _ in range(3):
        bare = seconds(lambda: bare_loop(model, study.x, path, solver, 32), 3)
        full = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units, solver=solver), 3)
        ratios.append(bare / full)
    print(f"\n{layer}: throughput over a bare loop of the same calls {statistics.median(ratios):.2f} (target: 0.8)")


def ranks(study: ImageStudy, model: nn.Module, title: str) -> None:
    """What rank each layer needs."""
    print(f"\n{title}: IoU of knowledge points with the exact Jacobian (mean abs. error of H in nats)")
    settings = ((9, 5, 14), (16, 16, 24), (32, 32, 40), (64, 32, 80))
    print("  rank + probes, noise  " + "".join(f"{f'{r} + {p}, {n}':>18s}" for r, p, n in settings))
    for layer in ("Conv", "FC1", "FC2", "FC3"):
        path = study.path(layer)
        exact = kpnb.entropy(model, study.x, path, units=study.units, solver=EXACT, dead="nan").entropy
        row = ""
        for rank, probes, noise in settings:
            solver = kpnb.ClosedForm(rank=rank, probes=probes, noise=noise)
            found = kpnb.entropy(model, study.x, path, units=study.units, solver=solver, dead="nan").entropy
            error, iou = agreement(found, exact, study.foreground, study.settings.b)
            row += f"{f'{iou:.3f} ({error:.4f})':>18s}"
        print(f"  {layer:22s}{row}")


def peak(images: int, max_batch: int) -> float:
    """Peak memory in MiB that the closed form adds, in a process of its own."""
    code = (
        "import resource, torch, kpnb; from kpnb.networks.images import build\n"
        "model = build('vgg11', 12, input_size=64, width=0.5, hidden=256); x = torch.randn(2, 3, 64, 64)\n"
        "kpnb.entropy(model, x, 'classifier.1', max_batch=2)\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20\n"
        f"x = torch.randn({images}, 3, 64, 64); before = rss()\n"
        f"kpnb.entropy(model, x, 'classifier.1', max_batch={max_batch})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def memory() -> None:
    print("\npeak memory added by one call (Linux), VGG-11 at half width, 64 px")
    for images, max_batch in ((64, 16), (256, 16), (256, 64), (256, 256)):
        print(f"  {images:4d} images, max_batch {max_batch:4d}: {peak(images, max_batch):7.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="images for the stochastic learner")
    images = parser.parse_args().images
    study = ImageStudy("laptop")
    model = study.teacher().load()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for layer in ("FC1", "FC2"):
        against_the_bare_loop(study, model, layer)
        against_the_learner(study, model, layer, images)
    ranks(study, model, "teacher")
    ranks(study, study.baseline().load(), "baseline, last epoch")
    memory()
    print(f"\npeak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
