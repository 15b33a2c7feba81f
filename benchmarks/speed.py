"""Entropy per image beside its two bounds: a bare loop of the same autograd calls, and the
machine's matrix product.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import kpnb
from kpnb.features import capture, explaining
from kpnb_book.networks.images import build, layer_path
from kpnb_book.store import Store
from kpnb_book.studies import measure
from kpnb_book.studies.images import ImageStudy

NETWORK, LAYERS = "vgg11_bn", ("Conv", "FC1", "FC2", "FC3")
CLOSED = kpnb.ClosedForm()
STUDY = kpnb.ClosedForm.careful()  # what the chapters of the book use


def turns(runs: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """CPU seconds of every run, ``repeats`` times in turns, after one turn that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, found in zip(runs, times, strict=True):
            start = time.process_time()
            run()
            found.extend([time.process_time() - start] * (turn > 0))
    return times


def ratio(one: list[float], two: list[float]) -> float:
    """Median over the turns of ``one`` over ``two``."""
    return statistics.median(a / b for a, b in zip(one, two, strict=True))


def product_rate(size: int = 1024) -> float:
    """Floating-point operations a second of a float32 matrix product."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / min(turns([lambda: a @ b], 9)[0])


def inputs(images: int = 32, size: int = 64) -> Tensor:
    return torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)


def network(size: int = 64, hidden: int = 256) -> nn.Module:
    """The network of the laptop profile, untrained."""
    return build(NETWORK, 12, input_size=size, width=0.125, hidden=hidden, dropout=0.0).eval()


def bare_loop(
    model: nn.Module, x: Tensor, path: str, solver: kpnb.ClosedForm, max_batch: int = 32
) -> None:
    """As many forward and backward passes as the closed form makes, and nothing else."""
    with explaining(model, x.device):
        for rows in x.split(max_batch):
            leaf = rows.clone().requires_grad_(True)
            feature = capture(model, leaf.clone(), [path])[path]
            vector = torch.ones_like(feature)
            directions = feature[0].numel()
            searched = solver.rank is not None and directions > solver.rank + solver.probes
            with torch.no_grad():
                for _ in range(solver.noise * (searched or solver.rank is None) + solver.check):
                    capture(model, rows, [path])
            for _ in range(solver.rank + solver.probes if searched else directions):
                torch.autograd.grad(feature, leaf, vector, retain_graph=True)


def compare(
    title: str, rate: float, repeats: int, *, layer: str = "FC1", solver: kpnb.ClosedForm = CLOSED,
    grid: int = 16, size: int = 64, hidden: int = 256, batch: int = 32,
) -> None:  # fmt: skip
    """One line: milliseconds an image, and the throughput as a share of what each bound allows."""
    model, x, path = network(size, hidden), inputs(size=size), layer_path(NETWORK, layer)
    how = {"units": kpnb.ImageGrid(grid), "solver": solver, "max_batch": batch, "dead": "nan"}
    runs = [
        lambda: bare_loop(model, x, path, solver, batch),
        lambda: kpnb.entropy(model, x, path, **how),
    ]
    bare, full = turns(runs, repeats)
    with FlopCounterMode(display=False) as counter:
        bare_loop(model, x, path, solver, batch)
    least = counter.get_total_flops() / rate
    mine = statistics.median(full)
    print(
        f"  {title:34s}{1e3 * mine / len(x):8.2f} ms{ratio(bare, full):12.2f}{least / mine:16.2f}"
    )


def run(quick: bool) -> None:
    rate, repeats = product_rate(), 3 if quick else 11
    print(
        f"\nentropy of {NETWORK} at an eighth of its width; the machine's matrix product: "
        f"{rate / 1e9:.0f} GFLOP/s"
    )
    print(
        f"  {'':34s}{'an image':>11s}{'/ bare loop':>12s}{'/ matrix product':>17s}"
        "   (target for / bare loop: 0.9)"
    )
    for name, solver in (
        ("9 + 5 directions, 14 forwards", CLOSED),
        ("16 + 16 directions, 24 forwards", STUDY),
    ):
        for layer in LAYERS:
            compare(f"{layer}: {name}", rate, repeats, layer=layer, solver=solver)
    if not quick:
        compare("FC1: exact Jacobian", rate, 3, solver=kpnb.ClosedForm(rank=None))
    for key, values in {
        "grid": (8, 32),
        "size": (32, 128),
        "hidden": (64, 1024),
        "batch": (8, 128),
    }.items():
        for value in values[: 1 if quick else 2]:
            compare(f"FC1, {key} {value}", rate, repeats, **{key: value})
    several_layers(repeats)
    looking_first(repeats)


def several_layers(repeats: int) -> None:
    """All layers in one call against one call for each: they share the forward passes."""
    model, x, paths = network(), inputs(), [layer_path(NETWORK, layer) for layer in LAYERS]
    how = {"units": kpnb.ImageGrid(16), "dead": "nan"}
    print("\nfour layers in one call, over four calls")
    for name, solver in (("9 + 5 directions", CLOSED), ("16 + 16 directions", STUDY)):
        together, apart = turns(
            [
                lambda s=solver: kpnb.entropy(model, x, paths, solver=s, **how),
                lambda s=solver: [kpnb.entropy(model, x, p, solver=s, **how) for p in paths],
            ],
            repeats,
        )
        print(f"  {name:34s}{ratio(together, apart):11.2f}")


def looking_first(repeats: int) -> None:
    """What it costs to look at the network before measuring, with the settings of the book."""
    model, x, path = network(), inputs(48), layer_path(NETWORK, "FC1")
    how = {"units": kpnb.ImageGrid(16), "dead": "nan", "solver": STUDY}
    runs = [lambda c=c: kpnb.entropy(model, x, path, check=c, **how) for c in (True, False)]
    looked, straight = turns(runs, repeats)
    print(f"\na call that looks first, over one that does not{ratio(looked, straight):11.3f}")


def scaling(quick: bool) -> None:
    more_images(quick, 3 if quick else 7)
    more_epochs(quick, 3 if quick else 7)


def more_images(quick: bool, repeats: int) -> None:
    model, path, units = network(), layer_path(NETWORK, "FC1"), kpnb.ImageGrid(16)
    print("\nentropy of more images, FC1: milliseconds an image")
    for images in (32, 128) if quick else (32, 128, 512):
        x = inputs(images)
        run = lambda x=x: kpnb.entropy(model, x, path, units=units, dead="nan")  # noqa: E731
        (times,) = turns([run], repeats)
        print(f"  {images:4d} images {1e3 * statistics.median(times) / images:21.2f} ms")


def more_epochs(quick: bool, repeats: int) -> None:
    print(
        "\nentropy of more epochs, smoke profile, FC1: an epoch, read from the store and written "
        "there, over the call"
    )
    with tempfile.TemporaryDirectory() as folder:
        study = ImageStudy("smoke", epochs=4 if quick else 16, store=Store(folder))
        training, path, s = study.baseline(), study.path("FC1"), study.settings
        solver = kpnb.ClosedForm(rank=s.rank, probes=s.probes, noise=s.noise)
        options = {"units": study.units, "solver": solver, "max_batch": s.max_batch, "dead": "nan"}
        model = training.load()
        (alone,) = turns([lambda: kpnb.entropy(model, study.x, path, **options)], repeats)
        for epochs in (2, 4) if quick else (4, 16):
            seeds = iter(range(epochs * 100, epochs * 100 + 99))  # each repetition measures anew
            run = lambda e=epochs, s=seeds: measure.entropies(  # noqa: E731
                study, training, "FC1", range(e), noise_seed=next(s)
            )
            (times,) = turns([run], 2)
            each = statistics.median(times) / epochs
            print(f"  {epochs:4d} epochs {each / statistics.median(alone):21.2f}")
