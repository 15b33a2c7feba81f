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

from kpnb._messages import one_of, plain_numbers, positive, whole
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
    only. Each of the ``steps`` takes so many ``samples`` of the perturbation. ``clamp`` bounds
    sigma in units of the input's scale. ``bf16`` runs the network under bfloat16 autocast.
    ``progress`` shows the steps of each batch.

    ``stop`` says when a sample's descent to ``Aligned`` is over, which needs no step behind it:

    None          after all ``steps``
    "released"    as in the release: after three quarters of the steps (60 of 80) if the mean
                  entropy has passed the one asked for; otherwise the weight of the entropy is
                  raised by half for the steps that are left. That makes 60 x 96 = 5,760 passes
    "aligned"     at the first step whose mean entropy has passed it: about 40, 3,700 passes
    """

    method: Literal["sgd", "adam"] = "sgd"
    lr: float | None = None
    steps: int = 80
    samples: int = 96
    clamp: tuple[float, float] = (1e-3, 1.0)
    bf16: bool = False
    progress: bool = False
    stop: Literal["aligned", "released"] | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        one_of("method", self.method, ("sgd", "adam"))
        if self.stop is not None:
            one_of("stop", self.stop, ("aligned", "released"))
        whole(steps=self.steps, samples=self.samples)
        positive(steps=self.steps, samples=self.samples, lr=self.lr)
        low, high = self.clamp
        object.__setattr__(self, "clamp", (float(low), float(high)))
        if not 0 < low < high:
            raise ValueError(f"clamp = {self.clamp}: a lower and an upper bound of sigma, above 0")

    def may_stop(self, step: int) -> bool:
        """Whether samples that have passed the mean entropy stop after this ``step``."""
        return self.stop == "aligned" or (self.stop == "released" and step == self.steps * 3 // 4)


@dataclass(frozen=True)
class Learned:
    """What was learned for a batch, and what it took.

    sigma       ``[B, n]`` input units
    delta_f2    ``[B]`` squared feature units
    stopped     ``[B]`` the step at which each sample stopped, counted from 1
    forwards, backwards     passes of each sample; a batch goes on until its last sample has stopped
    """

    sigma: Tensor
    delta_f2: Tensor
    stopped: Tensor
    forwards: int
    backwards: int


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
            # One by one: what a generator draws depends on how much is drawn at once.
            delta = torch.stack([self._drawn() for _ in range(min(per_pass, total - start))])
            noise = (self.perturbation.units.spread(sigma, x) * delta).to(x.dtype)
            with self.precision:
                features = next(self.perturbation.features([self.layer], noise))[self.layer]
            yield (features - self.feature).float().square().sum(-1).sum(0) / total

    def _drawn(self) -> Tensor:
        """Standard normal noise ``[1, ...]``, the same for all samples of the batch."""
        x = self.perturbation.x
        return torch.randn(
            (1, *x.shape[1:]), generator=self.generator, device=x.device, dtype=x.dtype
        )

    def gradient(self, sigma: Tensor) -> Tensor:
        """Gradient ``[B, n]`` of the mean; each part's graph is freed before the next is built."""
        leaf = sigma.detach().requires_grad_(True)
        with torch.enable_grad():
            return sum(torch.autograd.grad(part.sum(), leaf)[0] for part in self.parts(leaf))


def learn_sigma(
    perturbation: Perturbation, layer: str, solver: Stochastic, objective: Objective
) -> Learned:
    """Sigma of every unit of a batch by descent on Eq. 4 from sigma_0, all samples at once.

    Units that a sample does not have are NaN, and all of a sample whose feature does not move or is
    not finite. Under ``Aligned`` each sample keeps the step whose
    mean entropy is nearest to the one asked for; otherwise the last step counts.
    """
    _check_together(solver, objective)
    change = _SquaredChange(perturbation, layer, solver)
    start = torch.where(perturbation.exists(), perturbation.tau, torch.nan)
    with torch.no_grad():
        delta_f2 = sum(change.parts(start))
    path = _Path(change, start, delta_f2, solver, objective)
    sigma, stopped, steps = _kept(path, perturbation.scale, solver, objective)
    moves = delta_f2.isfinite() & (delta_f2 > 0)  # elsewhere there is nothing to divide by
    sigma = sigma.where(moves[:, None], torch.nan)
    passes = solver.samples * steps
    return Learned(sigma, delta_f2, stopped, 1 + solver.samples + passes, passes)


def _kept(
    path: "_Path", scale: float, solver: Stochastic, objective: Objective
) -> tuple[Tensor, Tensor, int]:
    """Sigma ``[B, n]`` of the step that each sample keeps, the step ``[B]`` at which it stopped,
    and how many were taken.
    """
    kept = path.sigma
    nearest = torch.full_like(kept[:, :1], torch.inf)  # of all mean entropies to the one asked for
    running = torch.ones_like(nearest, dtype=torch.bool)
    stopped = torch.zeros_like(nearest, dtype=torch.int64)
    hidden = not solver.progress
    with Progress(solver.steps, "stochastic learner", unit="step", hidden=hidden) as bar:
        for step in range(1, solver.steps + 1):
            sigma = path.step()
            bar.step()
            stopped = torch.where(running, step, stopped)
            if not isinstance(objective, Aligned):
                kept = sigma
                continue
            mean = entropy_of(sigma / scale).nanmean(-1, keepdim=True)
            distance = (mean - objective.mean).abs()
            nearer = running & (distance < nearest)
            kept = torch.where(nearer, sigma, kept)
            nearest = torch.where(nearer, distance, nearest)
            if not solver.may_stop(step):
                continue
            running = running & (mean < objective.mean)  # not where the mean is NaN
            if not running.any():
                break
            if solver.stop == "released":
                path.alpha = 1.5 * path.alpha  # for those that are late
    return kept, stopped[:, 0], step


def _check_together(solver: Stochastic, objective: Objective) -> None:
    """Raise for a solver that does not go with the objective."""
    aligned = isinstance(objective, Aligned)
    if aligned and solver.method == "adam":
        raise ValueError(
            "method='adam' leaves the path that Aligned is defined on; use 'sgd', or "
            "Converged(alpha)"
        )
    if solver.stop is not None and not aligned:
        raise ValueError(
            f"stop={solver.stop!r} waits for the mean entropy of Aligned; leave it out, or "
            "measure Aligned()"
        )


class _Path:
    """The descent on Eq. 4 from ``sigma [B, n]``, step by step."""

    def __init__(
        self,
        change: _SquaredChange,
        sigma: Tensor,
        delta_f2: Tensor,
        solver: Stochastic,
        objective: Objective,
    ) -> None:
        perturbation = change.perturbation
        n = (~sigma.isnan()).sum(-1, keepdim=True)
        self.change = change
        self.sigma = sigma
        self.delta_f2 = delta_f2[:, None]
        self.alpha = objective.mean_weight(n) / n  # weight of the summed entropy in Eq. 3, [B, 1]
        self.low, self.high = (perturbation.scale * limit for limit in solver.clamp)
        self.rate = solver.lr or perturbation.tau**2 * n / 256
        # Adam moves log sigma, whose gradient is sigma times that of sigma
        self.log_sigma = sigma.log()
        self.adam = None
        if solver.method == "adam":
            self.adam = torch.optim.Adam([self.log_sigma], solver.lr or 0.05)

    def step(self) -> Tensor:
        """Sigma ``[B, n]`` after one more step."""
        gradient = self.change.gradient(self.sigma) / self.delta_f2 - self.alpha / self.sigma
        if self.adam is None:
            self.sigma = (self.sigma - self.rate * gradient).clamp(self.low, self.high)
            return self.sigma
        self.log_sigma.grad = gradient * self.log_sigma.exp()
        self.adam.step()
        self.sigma = self.log_sigma.clamp_(math.log(self.low), math.log(self.high)).exp()
        return self.sigma
