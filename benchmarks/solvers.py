"""The closed form against the stochastic learner and the exact Jacobian: time and accuracy, on
trained networks.

Network and images are those of the image chapters; ``quick`` takes their smoke profile, whose
numbers mean little.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

import kpnb
from benchmarks.speed import turns
from kpnb.metrics import agreement
from kpnb_book.studies.images import ImageStudy

EXACT = kpnb.ClosedForm(rank=None)


def seconds(run: Callable[[], object]) -> float:
    """Median CPU time of ``run``."""
    return statistics.median(turns([run], 5)[0])


def against_the_learner(study: ImageStudy, model: nn.Module, layer: str, images: int) -> None:
    """The closed form and the stochastic learner with the released 2020 settings, on the same
    images.
    """
    path, x, foreground = study.path(layer), study.x[:images], study.foreground[:images]
    exact = kpnb.entropy(model, x, path, units=study.units, solver=EXACT)
    before = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units))
    closed = kpnb.entropy(model, x, path, units=study.units)
    start = time.process_time()
    learner = kpnb.Stochastic()
    learned = kpnb.entropy(model, x, path, units=study.units, solver=learner, max_batch=96)
    slow = (time.process_time() - start) / images
    after = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units))
    fast = (before + after) / 2 / len(study.x)
    again = kpnb.entropy(model, x, path, units=study.units, solver=learner, max_batch=96, seed=1)
    print(
        f"\n{layer}: closed form (16 forwards, 14 backwards) against the released 2020 settings, "
        f"{images} images"
    )
    print(f"  closed form          {1000 * fast:10.1f} ms an image")
    passes = learner.steps * learner.samples
    print(
        f"  stochastic learner   {1000 * slow:10.1f} ms an image, {passes} forwards and backwards"
    )
    print(f"  ratio                {slow / fast:10.0f}   (target: at least 500)")
    for name, one, two in (
        ("closed form and exact", closed, exact),
        ("learner and exact", learned, exact),
        ("learner, two seeds", learned, again),
    ):
        error, iou = agreement(one.entropy, two.entropy, foreground, study.settings.b)
        print(
            f"  {name:22s} mean abs. difference {error:.4f} nats, IoU of knowledge points {iou:.3f}"
        )


def ranks(study: ImageStudy, model: nn.Module, title: str) -> None:
    """What rank each layer needs."""
    print(
        f"\n{title}: IoU of knowledge points with the exact Jacobian (mean abs. error of H in nats)"
    )
    settings = ((9, 5, 14), (16, 16, 24), (32, 32, 40), (64, 32, 80))
    print("  rank + probes, noise  " + "".join(f"{f'{r} + {p}, {n}':>18s}" for r, p, n in settings))
    for layer in ("Conv", "FC1", "FC2", "FC3"):
        path = study.path(layer)
        exact = kpnb.entropy(
            model, study.x, path, units=study.units, solver=EXACT, dead="nan"
        ).entropy
        row = ""
        for rank, probes, noise in settings:
            solver = kpnb.ClosedForm(rank=rank, probes=probes, noise=noise)
            found = kpnb.entropy(
                model, study.x, path, units=study.units, solver=solver, dead="nan"
            ).entropy
            error, iou = agreement(found, exact, study.foreground, study.settings.b)
            row += f"{f'{iou:.3f} ({error:.4f})':>18s}"
        print(f"  {layer:22s}{row}")


def shrinking(study: ImageStudy, training: Any, layers: Sequence[str]) -> None:
    """What shrinking saves in error at the same passes, early and late in a training."""
    print(
        f"\n{training.run.kind}: mean abs. error of H with shrinking (without it), and their ratio"
    )
    settings = ((9, 5, 14), (16, 16, 24))
    print("  rank + probes, noise  " + "".join(f"{f'{r} + {p}, {n}':>26s}" for r, p, n in settings))
    for epoch in (1, training.epochs):
        model = training.load(epoch=epoch)
        for layer in layers:
            path, row = study.path(layer), ""
            how = {"units": study.units, "dead": "nan"}
            exact = kpnb.entropy(model, study.x, path, solver=EXACT, **how).entropy
            for settings_of in settings:
                errors = []
                for shrink in (True, False):
                    solver = kpnb.ClosedForm(*settings_of, shrink=shrink)
                    found = kpnb.entropy(model, study.x, path, solver=solver, **how).entropy
                    errors.append((found - exact).abs().nanmean().item())
                with_, without = errors
                row += f"{f'{with_:.4f} ({without:.4f}) {without / with_:5.2f}':>26s}"
            print(f"  {f'{layer}, epoch {epoch}':22s}{row}")


def run(quick: bool) -> None:
    study = ImageStudy("smoke" if quick else "laptop", seeds=0)
    model = study.teacher().load()
    for layer in study.settings.layers[: 1 if quick else None]:
        against_the_learner(study, model, layer, images=1 if quick else 4)
    ranks(study, model, "teacher")
    for training in (study.baseline(), study.student("FC1")):
        shrinking(study, training, ("FC1", "FC2"))
    if not quick:
        ranks(study, study.baseline().load(), "baseline, last epoch")
