"""The stochastic learner: Eq. 4 as printed, sigma learned by gradient descent on sampled
perturbations.

The reference for the closed form, and the tool where sigma leaves the linear range.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kpnb._messages import positive
from kpnb._progress import Progress
from kpnb.objectives import Aligned, Objective, entropy_of
from kpnb.perturb import Perturbation, generator


@dataclass(frozen=True)
class Stochastic:
    """Settings of the stochastic learner; the defaults are those of the released 2020 procedure.

    ``method="sgd"`` descends on sigma itself with the rate ``lr``; ``None`` stands for sigma_0
    squared times n / 256, which is the released 1e-4 for 16 x 16 cells and an input of scale 1 and
    makes the path independent of both. ``method="adam"`` descends on log sigma (``None``: rate
    0.05); it does not follow the path that ``Aligned`` is defined on, so it goes with ``Converged``
    only. ``clamp`` bounds sigma in units of the input's scale. ``bf16`` runs the network under
    bfloat16 autocast.
    """

    method: Literal["sgd", "adam"] = "sgd"
    lr: float | None = None
    steps: int = 80
    samples: int = 96
    clamp: tuple[float, float] = (1e-3, 1.0)
    bf16: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("sgd", "adam"):
            raise ValueError(f"method = {self.method!r}; choose 'sgd' or 'adam'")
        positive(steps=self.steps, samples=self.samples)


@dataclass(frozen=True)
class Learned:
    """``sigma [B, n]`` (input units) and ``delta_f2 [B]`` (squared feature units)."""

    sigma: Tensor
    delta_f2: Tensor


class _SquaredChange:
    """E||f(x') - f(x)||^2 of one layer by sampling, and its gradient with respect to sigma."""

    def __init__(self, perturbation: Perturbation, layer: str, solver: Stochastic) -> None:
        self.perturbation, self.layer, self.samples = perturbation, layer, solver.samples
        x, inputs = perturbation.x, perturbation.inputs
        self.generator = generator(perturbation.seed, x.device)
        self.precision = torch.autocast(x.device.type, torch.bfloat16, enabled=solver.bf16)
        with torch.no_grad(), self.precision:
            features = perturbation.network.features(inputs.with_x(x.clone()), len(x), [layer])
        self.feature = features[layer].flatten(1)

    def parts(self, sigma: Tensor) -> Iterator[Tensor]:
        """Contributions ``[B]`` to the mean over the samples, one forward pass each."""
        x, total = self.perturbation.x, self.samples
        per_pass = max(1, self.perturbation.max_batch // len(x))
        for start in range(0, total, per_pass):
            shape = (min(per_pass, total - start), 1, *x.shape[1:])
            delta = torch.randn(shape, generator=self.generator, device=x.device, dtype=x.dtype)
            noise = self.perturbation.units.spread(sigma, x) * delta
            with self.precision:
                features = next(self.perturbation.features([self.layer], noise))[self.layer]
            yield (features - self.feature).float().square().sum(-1).sum(0) / total

    def gradient(self, sigma: Tensor) -> Tensor:
        """Gradient ``[B, n]`` of the mean; each part's graph is freed before the next is built."""
        leaf = sigma.detach().requires_grad_(True)
        with torch.enable_grad():
            return sum(torch.autograd.grad(part.sum(), leaf)[0] for part in self.parts(leaf))


def learn_sigma(
    perturbation: Perturbation, layer: str, solver: Stochastic, objective: Objective
) -> Learned:
    """Sigma of every unit of a batch by descent on Eq. 4 from sigma_0, all samples at once.

    Units that a sample does not have are NaN. Under ``Aligned`` each sample keeps the step whose
    mean entropy is nearest to the one asked for; otherwise the last step counts.
    """
    aligned, adam = isinstance(objective, Aligned), solver.method == "adam"
    if aligned and adam:
        raise ValueError(
            "method='adam' leaves the path that Aligned is defined on; use 'sgd', or "
            "Converged(alpha)"
        )
    scale, exists = perturbation.scale, perturbation.exists()
    n = exists.sum(-1, keepdim=True)
    change = _SquaredChange(perturbation, layer, solver)
    sigma = torch.where(exists, perturbation.tau, torch.nan)
    with torch.no_grad():
        delta_f2 = sum(change.parts(sigma))
    rate = solver.lr or perturbation.tau**2 * n / 256
    low, high = (scale * limit for limit in solver.clamp)
    log_sigma = sigma.log()
    optimiser = torch.optim.Adam([log_sigma], solver.lr or 0.05)
    kept, gap = sigma, torch.full_like(sigma[:, :1], torch.inf)
    hidden = not solver.progress
    with Progress(solver.steps, "stochastic learner", unit="step", hidden=hidden) as bar:
        for _ in range(solver.steps):
            entropy_term = objective.mean_weight(n) / n / sigma
            gradient = change.gradient(sigma) / delta_f2[:, None] - entropy_term
            if adam:
                log_sigma.grad = gradient * log_sigma.exp()
                optimiser.step()
                sigma = log_sigma.clamp_(math.log(low), math.log(high)).exp()
            else:
                sigma = (sigma - rate * gradient).clamp(low, high)
            bar.step()
            mean = entropy_of(sigma / scale).nanmean(-1, keepdim=True)
            distance = (mean - objective.mean).abs() if aligned else torch.zeros_like(gap)
            nearer = distance < gap
            kept, gap = torch.where(nearer, sigma, kept), torch.minimum(distance, gap)
    return Learned(kept if aligned else sigma, delta_f2)
