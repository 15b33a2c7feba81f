"""The stochastic learner: Eq. 4 as printed, sigma learned by gradient descent on sampled perturbations.

The reference for the closed form, and the tool where sigma leaves the linear range.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kpnb._progress import Progress
from kpnb.layers import capture
from kpnb.objectives import Aligned, Objective, entropy_of
from kpnb.perturb import Perturbation, generator


@dataclass(frozen=True)
class Stochastic:
    """Settings of the stochastic learner; the defaults are those of the released 2020 procedure.

    ``method="sgd"`` descends on sigma itself with the rate ``lr``; ``None`` stands for sigma_0 squared times n / 256,
    which is the released 1e-4 for 16 x 16 cells and an input of scale 1 and makes the path independent of both.
    ``method="adam"`` descends on log sigma (``None``: rate 0.05); it does not follow the path that ``Aligned`` is
    defined on, so it goes with ``Converged`` only. ``clamp`` bounds sigma in units of the input's scale.
    ``bf16`` runs the network under bfloat16 autocast.
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
        if self.steps < 1 or self.samples < 1:
            raise ValueError(f"steps = {self.steps} and samples = {self.samples} must be positive")


@dataclass(frozen=True)
class Learned:
    """``sigma [B, n]`` (input units) and ``delta_f2 [B]`` (squared feature units)."""

    sigma: Tensor
    delta_f2: Tensor


class _SquaredChange:
    """E||f(x') - f(x)||^2 of one layer by sampling, and its gradient with respect to sigma."""

    def __init__(self, perturbation: Perturbation, x: Tensor, layer: str, solver: Stochastic) -> None:
        self.perturbation, self.x, self.layer, self.solver = perturbation, x.detach(), layer, solver
        self.generator = generator(perturbation.seed, x.device)
        with torch.no_grad(), self._precision():
            self.feature = capture(perturbation.model, self.x, [layer])[layer].flatten(1)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.solver.bf16)

    def _parts(self, sigma: Tensor) -> Iterator[Tensor]:
        """Contributions ``[B]`` to the mean over the samples, one forward pass each."""
        x, total = self.x, self.solver.samples
        per_pass = max(1, self.perturbation.max_batch // len(x))
        for start in range(0, total, per_pass):
            shape = (min(per_pass, total - start), 1, *x.shape[1:])
            delta = torch.randn(shape, generator=self.generator, device=x.device, dtype=x.dtype)
            noise = self.perturbation.units.spread(sigma, x) * delta
            with self._precision():
                features = next(self.perturbation.features(x, [self.layer], noise))[self.layer]
            yield (features - self.feature).float().square().sum(-1).sum(0) / total

    def mean(self, sigma: Tensor) -> Tensor:
        """The mean squared change ``[B]``."""
        with torch.no_grad():
            return sum(self._parts(sigma), torch.zeros(len(self.x), device=self.x.device))

    def gradient(self, sigma: Tensor) -> Tensor:
        """Gradient ``[B, n]`` of the mean; each part's graph is freed before the next is built."""
        leaf, total = sigma.detach().requires_grad_(True), torch.zeros_like(sigma)
        with torch.enable_grad():
            for part in self._parts(leaf):
                total += torch.autograd.grad(part.sum(), leaf)[0]
        return total


def _update(solver: Stochastic, rate: float, limits: tuple[float, float]) -> Callable[[Tensor, Tensor], Tensor]:
    """The step ``(sigma, gradient) -> sigma``."""
    if solver.method == "sgd":
        return lambda sigma, gradient: (sigma - rate * gradient).clamp(*limits)
    state: dict[str, torch.Tensor | torch.optim.Optimizer] = {}

    def adam(sigma: Tensor, gradient: Tensor) -> Tensor:
        if not state:
            state["log"] = sigma.log()
            state["adam"] = torch.optim.Adam([state["log"]], lr=rate)
        log, optimiser = state["log"], state["adam"]
        log.grad = gradient * log.exp()
        optimiser.step()
        log.clamp_(*torch.tensor(limits).log().tolist())
        return log.exp()

    return adam


def learn_sigma(perturbation: Perturbation, x: Tensor, layer: str, solver: Stochastic, objective: Objective) -> Learned:
    """Sigma of every unit of ``x [B, ...]`` by descent on Eq. 4 from sigma_0, all samples at once.

    Under ``Aligned`` each sample keeps the step whose mean entropy is nearest to the one asked for; otherwise the
    last step counts.
    """
    aligned = isinstance(objective, Aligned)
    if aligned and solver.method == "adam":
        raise ValueError("method='adam' leaves the path that Aligned is defined on; use 'sgd', or Converged(alpha)")
    n, scale = perturbation.units.count(x), perturbation.scale
    change = _SquaredChange(perturbation, x, layer, solver)
    sigma = torch.full((len(x), n), perturbation.tau, device=x.device)
    delta_f2 = change.mean(sigma)
    rate = solver.lr or (perturbation.tau**2 * n / 256 if solver.method == "sgd" else 0.05)
    update = _update(solver, rate, (solver.clamp[0] * scale, solver.clamp[1] * scale))
    kept, gap = sigma, torch.full((len(x), 1), torch.inf, device=x.device)
    with Progress(solver.steps, "stochastic learner", unit="step", hidden=not solver.progress) as bar:
        for _ in range(solver.steps):
            gradient = change.gradient(sigma) / delta_f2[:, None] - objective.mean_weight(n) / n / sigma
            sigma = update(sigma, gradient)
            bar.step()
            if aligned:
                distance = (entropy_of(sigma / scale).mean(-1, keepdim=True) - objective.mean).abs()
                kept, gap = torch.where(distance < gap, sigma, kept), torch.minimum(distance, gap)
    return Learned(kept if aligned else sigma, delta_f2)
