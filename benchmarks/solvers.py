"""The closed form against the stochastic learner and the exact Jacobian: time and accuracy, on
trained networks.

The learner is measured as released in 2020, which leaves its loop after 60 of 80 steps (5,760
passes), and stopped as soon as the mean entropy is reached (about 3,400). Network and images are
those of the image chapters; ``quick`` takes their smoke profile, whose numbers mean little.

For texts there was a learner before, that of Guan et al. (2019): 5,000 steps of one sample. Only
its time is taken, from what a step takes here.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import kpnb
from benchmarks.speed import turns
from kpnb.metrics import agreement
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import solver_of
from kpnb_book.studies.text import TextStudy

EXACT = kpnb.ClosedForm(rank=None)
WAYS = {"as released": "released", "stopped when aligned": "aligned"}  # of the learner
STEPS = 5000  # of the learner for texts


def seconds(run: Callable[[], object]) -> float:
    """Median CPU time of ``run``."""
    return statistics.median(turns([run], 5)[0])


def one_by_one(
    model: nn.Module, x: Tensor, path: str, learner: kpnb.Stochastic, **how: Any
) -> tuple[Tensor, float]:
    """Entropies ``[N, n]`` of the learner image by image, as released: in a batch none ends before
    the last. And the forward and backward passes an image.
    """
    how |= {"solver": learner, "max_batch": learner.samples, "check": False, "dead": "nan"}
    found = [kpnb.entropy(model, one, path, **how) for one in x.split(1)]
    passes = sum(each.settings["backwards"] for each in found) / len(x)
    return torch.cat([each.entropy for each in found]), passes


def against_the_learner(
    study: ImageStudy, model: nn.Module, layer: str, images: int, samples: int = 96
) -> None:
    """The closed form and the stochastic learner, in both its ways to stop, on the same images."""
    path, x, foreground = study.path(layer), study.x[:images], study.foreground[:images]
    exact = kpnb.entropy(model, x, path, units=study.units, solver=EXACT).entropy
    closed = kpnb.entropy(model, x, path, units=study.units).entropy
    print(
        f"\n{layer}: closed form (16 forwards, 14 backwards) against the learner with the settings "
        f"of the 2020 release, {images} images"
    )
    print(f"  {'':26s}{'an image':>12s}{'passes':>9s}{'ratio':>8s}")
    found = {"closed form": closed}
    for name, stop in WAYS.items():
        learner = kpnb.Stochastic(samples=samples, stop=stop)
        before = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units))
        start = time.process_time()
        found[name], passes = one_by_one(model, x, path, learner, units=study.units)
        slow = (time.process_time() - start) / images
        after = seconds(lambda: kpnb.entropy(model, study.x, path, units=study.units))
        fast = (before + after) / 2 / len(study.x)
        print(f"  {name:26s}{1000 * slow:9.1f} ms{passes:9,.0f}{slow / fast:8.0f}")
    print(f"  {'closed form':26s}{1000 * fast:9.1f} ms")
    again, _ = one_by_one(model, x, path, learner, units=study.units, seed=1)
    pairs = [(f"{way}, exact", one, exact) for way, one in found.items()]
    pairs.append((f"{name}, two seeds", found[name], again))
    for pair, one, two in pairs:
        error, iou = agreement(one, two, foreground, study.settings.b)
        print(
            f"  {pair:33s} mean abs. difference {error:.4f} nats, IoU of knowledge points {iou:.3f}"
        )


def against_the_interpreter(study: TextStudy, model: nn.Module, steps: int) -> None:
    """The closed form on the measured texts, and the learner for texts on the one of median length,
    without its padding; ``steps`` of it are timed.
    """
    path, x = study.path(study.settings.layers[0]), study.x
    lengths = x["attention_mask"].sum(1)
    length, one = (int(found) for found in lengths.median(0))
    text = {name: value[one : one + 1, :length] for name, value in x.items()}
    text, counts = kpnb.embedded(model, **text), study.measured.counts[one : one + 1, :length]
    how = {"units": kpnb.Tokens(counts), "perturb": "inputs_embeds"}
    how |= {"objective": kpnb.Converged(0.1), "scale": model.words.weight.std().item()}

    def learn(steps: int) -> object:
        learner = kpnb.Stochastic(method="adam", samples=1, steps=steps)
        return kpnb.entropy(model, text, path, solver=learner, check=False, dead="nan", **how)

    step = (seconds(lambda: learn(2 * steps)) - seconds(lambda: learn(steps))) / steps
    print(f"\ntexts: closed form against {STEPS:,} steps of one sample, a text of {length} tokens")
    solvers = {"default": kpnb.ClosedForm(), "chapters": solver_of(study.settings)}
    for name, solver in solvers.items():
        run = lambda s=solver: study.entropies(model, [path], solver=s)  # noqa: E731
        fast = seconds(run) / len(study.measured)
        ratio = f"{STEPS * step / fast:8,.0f}"
        print(f"  {name:26s}{1000 * fast:9.1f} ms{1000 * STEPS * step:12,.0f} ms{ratio}")


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
        against_the_learner(study, model, layer, 1 if quick else 4)
    texts = TextStudy("smoke" if quick else "laptop", seeds=0)
    encoder = type(texts).build(**texts.teacher_spec()).eval()  # time asks for no training
    against_the_interpreter(texts, encoder, 5 if quick else 50)
    ranks(study, model, "teacher")
    for training in (study.baseline(), study.student("FC1")):
        shrinking(study, training, ("FC1", "FC2"))
    if not quick:
        ranks(study, study.baseline().load(), "baseline, last epoch")
