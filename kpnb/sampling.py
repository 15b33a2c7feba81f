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
        positive(steps=self.steps, samples=self.samples, lr=self.lr)
        low, high = self.clamp
        if not 0 < low < high:
            raise ValueError(f"clamp = {self.clamp}: a lower and an upper bound of sigma, above 0")


@dataclass(frozen=True)
class Learned:
    """``sigma [B, n]`` (input units) and ``delta_f2 [B]`` (squared feature units)."""

    sigma: Tensor
    delta_f2: Tensor


class _SquaredChange:
    """E||f(x') - f(x)||^2 of one layer by sampling, and its gradient with respect to sigma."""

    def __init__(self, perturbation: Perturbation, layer: str, solver: Stochastic) -> None:
        self.perturbation = perturbation
        self.layer = layer
        self.samples = solver.samples
        x = perturbation.x
        inputs = perturbation.inputs
        self.generator = generator(perturbation.seed, x.device)
        self.precision = torch.autocast(x.device.type, torch.bfloat16, enabled=solver.bf16)
        with torch.no_grad(), self.precision:
            features = perturbation.network.features(inputs.with_x(x.clone()), len(x), [layer])
        self.feature = features[layer].flatten(1)

    def parts(self, sigma: Tensor) -> Iterator[Tensor]:
        """Contributions ``[B]`` to the mean over the samples, one forward pass each."""
        x = self.perturbation.x
        total = self.samples
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
    aligned = isinstance(objective, Aligned)
    if aligned and solver.method == "adam":
        raise ValueError(
            "method='adam' leaves the path that Aligned is defined on; use 'sgd', or "
            "Converged(alpha)"
        )
    change = _SquaredChange(perturbation, layer, solver)
    kept = torch.where(perturbation.exists(), perturbation.tau, torch.nan)
    with torch.no_grad():
        delta_f2 = sum(change.parts(kept))
    gap = torch.full_like(kept[:, :1], torch.inf)
    for sigma in _path(change, kept, delta_f2, solver, objective):
        if not aligned:
            kept = sigma
            continue
        mean = entropy_of(sigma / perturbation.scale).nanmean(-1, keepdim=True)
        distance = (mean - objective.mean).abs()
        kept = torch.where(distance < gap, sigma, kept)
        gap = torch.minimum(distance, gap)
    return Learned(kept, delta_f2)


def _path(
    change: _SquaredChange,
    sigma: Tensor,
    delta_f2: Tensor,
    solver: Stochastic,
    objective: Objective,
) -> Iterator[Tensor]:
    """Sigma ``[B, n]`` after every step of the descent on Eq. 4, which starts from ``sigma``."""
    perturbation = change.perturbation
    n = (~sigma.isnan()).sum(-1, keepdim=True)
    low, high = (perturbation.scale * limit for limit in solver.clamp)
    rate = solver.lr or perturbation.tau**2 * n / 256
    # Adam moves log sigma, whose gradient is sigma times that of sigma
    log_sigma = sigma.log()
    optimiser = torch.optim.Adam([log_sigma], solver.lr or 0.05)
    hidden = not solver.progress
    with Progress(solver.steps, "stochastic learner", unit="step", hidden=hidden) as bar:
        for _ in range(solver.steps):
            entropy_term = objective.mean_weight(n) / n / sigma
            gradient = change.gradient(sigma) / delta_f2[:, None] - entropy_term
            if solver.method == "adam":
                log_sigma.grad = gradient * log_sigma.exp()
                optimiser.step()
                sigma = log_sigma.clamp_(math.log(low), math.log(high)).exp()
            else:
                sigma = (sigma - rate * gradient).clamp(low, high)
            bar.step()
            yield sigma
