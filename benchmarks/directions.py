"""What the closed form would gain if its directions left out as little energy as any can.

    python -m benchmarks.directions             # the image network of the book, late and early
    python -m benchmarks.directions --quick     # that of the smoke profile: numbers mean little

The sketch takes the directions that noise finds. No others of the same number leave out less energy
than the leading left singular vectors of the Jacobian, which only the whole Jacobian gives. Here
they stand in their place, with the same probes, and the IoU of knowledge points with the exact ones
is compared, at the same number of backward passes. They are the best in energy; that no others have
a higher IoU does not follow.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn

import kpnb
from benchmarks.__main__ import machine
from kpnb.energy import Jacobian, exact_energies, jacobians, sketched_energies, unit_energies
from kpnb.features import Network, call, explaining
from kpnb.inputs import read_inputs
from kpnb.metrics import agreement
from kpnb.objectives import Aligned, entropy_of, solve
from kpnb.perturb import Perturbation, generator
from kpnb.units import Units
from kpnb_book.studies.images import ImageStudy

COUNTS = ((8, 4), (16, 4), (16, 8), (16, 16))  # rank and probes
SEEDS = (0, 10, 20)  # of noise and probes
Sketch = tuple[str, int, int, int]
"""Which directions, "noise" or "best", how many, with how many probes, and the seed."""


def noise_for(rank: int) -> int:
    """Draws of noise, half as many again as directions: what ``careful()`` takes."""
    return 3 * rank // 2


def perturbation(model: nn.Module, x: Tensor, units: Units, seed: int = 0) -> Perturbation:
    """Of the images ``x``, as ``kpnb.entropy`` perturbs them."""
    network = Network(model, call, None, 0)
    return Perturbation(network, read_inputs(model, x, None, None), units, seed=seed)


def leading(jacobian: Jacobian, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors of a single sample's Jacobian, each times its
    singular value, ``[rank, 1, d]``: the changes under noise that the range finder would need.
    """
    flat = jacobian.feature.flatten(1)
    rows = [
        torch.autograd.grad(one, jacobian.x, retain_graph=True)[0].flatten()
        for one in flat[0].unbind()
    ]
    left, sizes, _ = torch.linalg.svd(torch.stack(rows).double(), full_matrices=False)
    return (left * sizes)[:, :rank].T[:, None].to(flat.dtype)


def entropies(
    model: nn.Module,
    x: Tensor,
    layer: str,
    units: Units,
    counts: Sequence[tuple[int, int]] = COUNTS,
    seeds: Sequence[int] = SEEDS,
) -> Iterator[dict[str | Sketch, Tensor]]:
    """For each sample, H ``[n]``: "exact", and that of each ``Sketch``."""
    with explaining(model, x.device):
        for sample in x.split(1):
            about = perturbation(model, sample, units)
            jacobian = jacobians(about, [layer])[layer]
            found = {"exact": exact_energies(jacobian)}
            best = leading(jacobian, max(rank for rank, _ in counts))
            for (rank, probes), seed in product(counts, seeds):
                solver = kpnb.ClosedForm(rank=rank, probes=probes, noise=noise_for(rank))
                seeded = perturbation(model, sample, units, seed)
                gaussian = torch.randn(
                    (best.shape[-1], probes), generator=generator(seed + 1, x.device)
                )
                found["noise", rank, probes, seed] = unit_energies(seeded, [layer], solver)[layer]
                found["best", rank, probes, seed] = sketched_energies(
                    jacobian, best[:rank], solver, gaussian
                )
            yield {
                name: entropy_of(solve(one.energy, one.deviation, Aligned(), about.tau)[0])[0]
                for name, one in found.items()
            }


def show(study: ImageStudy, model: nn.Module, layer: str, title: str) -> None:
    """Print a line for each number of directions and probes."""
    samples = list(entropies(model, study.x, study.path(layer), study.units))
    H = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    print(
        f"\n{title}, {layer}: {len(samples)} images, IoU with the exact points (error of H, nats)"
    )
    print(f"  {'rank + probes':16s}{'as noise finds them':>22s}{'the best there are':>22s}")
    for rank, probes in COUNTS:
        line = f"  {f'{rank} + {probes}':16s}"
        for kind in ("noise", "best"):
            pairs = torch.tensor(
                [
                    agreement(
                        H[kind, rank, probes, seed], H["exact"], study.foreground, study.settings.b
                    )
                    for seed in SEEDS
                ]
            )
            error, iou = pairs.mean(0).tolist()
            line += f"{f'{iou:.3f} ({error:.4f})':>22s}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.directions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the smoke profile, few images")
    parser.add_argument("--layer", default="Conv", help="of the network (default: Conv)")
    given = parser.parse_args()
    profile, images = ("smoke", 2) if given.quick else ("laptop", 12)
    study = ImageStudy(profile, seeds=0, analysed=images)
    print(machine())
    for training, epoch in ((study.teacher(), -1), (study.baseline(), 1)):
        when = f"{training.kind} after epoch {training.number(epoch)}"
        show(study, training.load(epoch=epoch), given.layer, when)


if __name__ == "__main__":
    main()
