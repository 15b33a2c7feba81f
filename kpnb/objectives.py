r"""Which sigma: the two objectives of Eq. 3, solved in closed form for given unit energies.

With :math:`s_i` the squared norm of the feature's derivative with respect to unit i, small
perturbations change the feature by :math:`\sum_i s_i \sigma_i^2`, and :math:`\delta_f^2 =
\sigma_0^2 \sum_i s_i`. In the relative energy :math:`q_i = n s_i / \sum_j s_j`, the relative
variance :math:`v_i = \sigma_i^2 / \sigma_0^2` and rescaled time, gradient descent on Eq. 3 from
:math:`\sigma_0` follows

.. math:: v_i(t) = e^{-4 q_i t} + 2 w t\, \phi(4 q_i t), \qquad \phi(z) = (1 - e^{-z}) / z,

where w is the weight of the *mean* entropy (the paper's alpha times n). Its limit is the minimiser
:math:`w / (2 q_i)`. The mean entropy rises all along the path when w > 2, because its slope is the
mean of :math:`(w - 2 q_i) e^{-4 q_i t} / v_i`, a product of two functions that both fall with
:math:`q_i`, and :math:`q` has the mean 1 (Chebyshev's sum inequality). So the point with a given
mean entropy is unique.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kpnb._precision import widest

# start of the descent and size tau of the noise behind delta_f^2, in units of the input's scale
SIGMA_0 = 0.01
HALVINGS, NEWTON = 12, 5  # steps of either kind that find the time of ``Aligned``
HALF_LOG_2PIE = 0.5 * math.log(2 * math.pi * math.e)  # entropy of a Gaussian with sigma = 1, nats


def entropy_of(sigma: Tensor) -> Tensor:
    """Entropy of a Gaussian perturbation with standard deviation ``sigma``, nats (below Eq. 2)."""
    return sigma.log() + HALF_LOG_2PIE


def relative_energy(energy: Tensor) -> Tensor:
    """``energy [B, n]`` over its mean, in double precision: q, with mean 1 (NaN where a sample has
    none).

    Units that do not exist have NaN, here and in all that follows, and enter no mean.
    """
    energy = widest(energy)
    return energy / energy.nanmean(-1, keepdim=True)


def _tiny(values: Tensor) -> float:
    """The smallest positive number (of full precision) of the type of ``values``."""
    return torch.finfo(values.dtype).tiny


def flow(q: Tensor, weight: float, t: Tensor) -> Tensor:
    """Relative variance ``v [B, n]`` after the time ``t [B, 1]`` for the relative energies ``q [B,
    n]``.
    """
    z = 4 * q * t
    gone = -torch.expm1(-z)  # 1 - exp(-z), without cancellation where z is small
    phi = (gone / z.clamp_min(_tiny(z))).where(z > 0, torch.ones_like(z))
    return 1 - gone + 2 * weight * t * phi


class Objective(Protocol):
    """What a solver asks of an objective."""

    def variance(self, q: Tensor) -> Tensor:
        """Relative variances ``v [B, n]`` (in units of sigma_0 squared) for relative energies ``q
        [B, n]``.
        """

    def mean_weight(self, n: Any) -> Any:
        """Weight of the mean entropy in the loss for ``n`` units (a number, or one for each
        sample).
        """


@dataclass(frozen=True)
class Aligned:
    """The point of the descent path where the mean entropy over the units is ``mean`` (nats, input
    scale 1).

    The default: it puts all networks, layers and epochs on one mean entropy, which is what the
    threshold b belongs to. ``weight`` multiplies the mean entropy (7 in the released 2020 procedure
    for AlexNet and VGG, 6 for ResNet). A unit without energy stays finite. ``ValueError`` unless
    ``weight`` is above 2.
    """

    mean: float = -2.8
    weight: float = 7.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", float(self.mean))
        object.__setattr__(self, "weight", float(self.weight))
        if not self.weight > 2:
            raise ValueError(
                f"weight = {self.weight}: the mean entropy rises along the path only for weight > 2"
            )
        if not self.rise >= 0:
            raise ValueError(
                f"mean = {self.mean}: the path starts at {self.mean - self.rise:.3f} and rises "
                "from there"
            )

    @property
    def rise(self) -> float:
        """Distance from the start of the path to the mean entropy asked for, nats."""
        return self.mean - (math.log(SIGMA_0) + HALF_LOG_2PIE)

    def mean_weight(self, n: Any) -> Any:
        return self.weight

    def time(self, q: Tensor) -> Tensor:
        """Time ``[B, 1]`` at which the path for ``q [B, n]`` has the mean entropy; NaN where it
        never has.
        """
        low = q.new_full((*q.shape[:-1], 1), math.log(1e-9))
        high = -low
        log_t = 0 * low
        for step in range(HALVINGS + NEWTON):
            v = flow(q, self.weight, log_t.exp())
            gap = self.rise - v.log().nanmean(-1, keepdim=True) / 2
            low = torch.where(gap > 0, log_t, low)
            high = torch.where(gap > 0, high, log_t)
            if step < HALVINGS:
                log_t = (low + high) / 2
                continue
            # the bracket's 41 nats are a hundredth now, where Newton's method doubles the digits
            # with every step
            decay = (-4 * q * log_t.exp()).exp()
            slope = log_t.exp() * ((self.weight - 2 * q) * decay / v).nanmean(-1, keepdim=True)
            log_t = (log_t + gap / slope.clamp_min(_tiny(q))).clamp(low, high)
        reached = gap.abs() < 0.1 * math.sqrt(torch.finfo(q.dtype).eps)
        return log_t.exp().where(reached, torch.nan)

    def variance(self, q: Tensor) -> Tensor:
        return flow(q, self.weight, self.time(q.detach()))


@dataclass(frozen=True)
class Converged:
    """The minimiser of Eq. 3 for the paper's ``alpha``, clamped at sigma = 1 x the input's scale.

    Without the clamp a unit that the feature does not depend on would have an infinite entropy.
    ``ValueError`` unless ``alpha`` is positive.
    """

    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(self.alpha))
        if not self.alpha > 0:
            raise ValueError(
                f"alpha = {self.alpha}: the weight of the entropy in Eq. 3 must be positive"
            )

    def mean_weight(self, n: Any) -> Any:
        return self.alpha * n

    def variance(self, q: Tensor) -> Tensor:
        n = (~q.isnan()).sum(-1, keepdim=True).to(q.dtype)
        return (self.mean_weight(n) / (2 * q).clamp_min(_tiny(q))).clamp_max(SIGMA_0**-2)


def solve(
    energy: Tensor, deviation: Tensor, objective: Objective, tau: float
) -> tuple[Tensor, Tensor]:
    """Sigma ``[B, n]`` (input units) for the energies of units, and the standard error of H (nats).

    energy, deviation   ``[B, n]``: s of every unit and its standard error

    H is the logarithm of sigma and a constant, and depends on its own unit's q: its error is the
    deviation of q times the slope of log sigma there. Both results are float64 where there is any.
    """
    with torch.enable_grad():
        q = relative_energy(energy.detach()).requires_grad_(True)
        sigma = tau * objective.variance(q).sqrt()
        (slope,) = torch.autograd.grad(sigma.log().sum(), q)
    relative = widest(deviation) / widest(energy).nanmean(-1, keepdim=True)
    return sigma.detach(), (slope * relative).abs()
