"""Sigma for linear networks against the analytic minimiser and a numerical integration of the
flow.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.objectives import HALF_LOG_2PIE, SIGMA_0, Aligned, Converged, flow, relative_energy
from kpnb.sampling import Stochastic
from kpnb.units import ImageGrid
from tests.models import Linear, images

GRID = 4


def _linear_energies(model: Linear, grid: int = GRID) -> torch.Tensor:
    """s_i of a linear layer: column norms of its weight, summed over the pixels of each cell."""
    columns = model.f.weight.detach().square().sum(0).reshape(3, 12, 12).sum(0)
    return torch.stack(
        [block.sum() for rows in columns.split(12 // grid) for block in rows.split(12 // grid, 1)]
    )


def test_converged_is_the_analytic_minimiser():
    """d/d sigma of [sum s sigma^2 / (tau^2 sum s) - alpha sum log sigma] = 0 at sigma^2 = alpha
    tau^2 sum s / (2 s).
    """
    model, alpha = Linear(432, 20).double(), 0.3
    s = _linear_energies(model)
    expected = (alpha * SIGMA_0**2 * s.sum() / (2 * s)).sqrt()
    found = entropy(
        model,
        images(),
        "f",
        units=ImageGrid(GRID),
        solver=ClosedForm(rank=None),
        objective=Converged(alpha),
    )
    assert torch.allclose(found.sigma, expected.expand_as(found.sigma), rtol=1e-10)
    assert torch.allclose(found.entropy, expected.log() + HALF_LOG_2PIE, rtol=1e-10)


def test_aligned_follows_the_flow_of_the_printed_loss():
    """Integrate d sigma/dt = -dLoss/dsigma of Eq. 3 as printed, stop where the mean entropy is
    -2.8.
    """
    model, weight = Linear(432, 20).double(), 7.0
    s = _linear_energies(model).numpy()
    n, delta_f2 = len(s), SIGMA_0**2 * s.sum()

    def descend(_t, sigma):
        return -(2 * s * sigma / delta_f2 - weight / n / sigma)

    def aligned(_t, sigma):
        return sum(math.log(v) for v in sigma) / n + HALF_LOG_2PIE + 2.8

    aligned.terminal = True
    path = solve_ivp(
        descend, (0, 1.0), [SIGMA_0] * n, events=aligned, rtol=1e-11, atol=1e-14, method="DOP853"
    )
    expected = torch.tensor(path.y_events[0][0])
    found = entropy(model, images(), "f", units=ImageGrid(GRID), solver=ClosedForm(rank=None))
    assert torch.allclose(found.sigma, expected.expand_as(found.sigma), rtol=1e-5)
    assert torch.allclose(
        found.entropy.mean(-1), torch.tensor(-2.8, dtype=torch.float64), atol=1e-9
    )


def test_flow_starts_at_one_and_ends_at_the_minimiser():
    q = relative_energy(torch.tensor([[0.1, 1.0, 3.0, 9.0]]))
    zero, late = (
        torch.zeros(1, 1, dtype=torch.float64),
        torch.full((1, 1), 1e4, dtype=torch.float64),
    )
    assert torch.allclose(flow(q, 7.0, zero), torch.ones_like(q))
    assert torch.allclose(flow(q, 7.0, late), 3.5 / q)


def test_unit_without_energy_stays_finite():
    q = relative_energy(torch.tensor([[0.0, 0.0, 1.0, 5.0]]))
    t = Aligned().time(q)
    v = Aligned().variance(q)
    assert torch.allclose(v[0, :2], 1 + 14 * t[0].expand(2))
    assert Converged(0.1).variance(q)[0, 0] == SIGMA_0**-2  # sigma clamped at 1 x the scale


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0, 20.0])
@pytest.mark.parametrize(
    ("weight", "mean"),
    [(2.01, -3.1), (2.5, -2.8), (7.0, -3.18), (7.0, -2.8), (7.0, 0.0), (50.0, -2.0)],
)
def test_the_time_is_the_one_root_of_the_mean_entropy(weight, mean, spread):
    """Brent's method on each sample, whatever its energies: nearly equal, over many decades, zero,
    or missing.
    """
    generator, objective = torch.Generator().manual_seed(3), Aligned(mean, weight)
    energy = torch.exp(spread * torch.randn(12, 64, generator=generator, dtype=torch.float64))
    energy[::3, :5], energy[1::4, 7] = 0, torch.nan
    q, there = relative_energy(energy), 0
    for row, t in zip(q, objective.time(q).flatten().tolist(), strict=True):
        known = row[~row.isnan()]

        def above(log_t: float, known: torch.Tensor = known) -> float:
            at = torch.tensor(log_t, dtype=torch.float64).exp()
            return flow(known, weight, at).log().mean().item() / 2 - objective.rise

        if above(math.log(1e9)) < 0:
            assert math.isnan(t)
            continue
        there += 1
        wanted = math.exp(brentq(above, math.log(1e-9), math.log(1e9), xtol=1e-14))
        one, two = (
            flow(known, weight, torch.tensor(at, dtype=torch.float64)).log() / 2
            for at in (t, wanted)
        )
        assert torch.allclose(one, two, rtol=0, atol=1e-11)
    assert there or not spread or mean == 0  # out of reach where energies are nearly equal


@pytest.mark.parametrize("mean", [-3.1, -2.8, -2.6])
def test_mean_entropy_rises_along_the_path_for_extreme_energies(mean):
    generator = torch.Generator().manual_seed(1)
    energy = torch.exp(4 * torch.randn(50, 256, generator=generator, dtype=torch.float64))
    v = Aligned(mean).variance(relative_energy(energy))
    assert torch.allclose(
        (v.log() / 2).mean(-1),
        torch.full((50,), Aligned(mean).rise, dtype=torch.float64),
        atol=1e-9,
    )
    q = relative_energy(energy)
    times = torch.logspace(-6, 4, 200, dtype=torch.float64)
    means = torch.stack([flow(q, 7.0, t.expand(50, 1)).log().mean(-1) for t in times])
    assert (means.diff(dim=0) > -1e-12).all()


def test_settings_without_a_solution_are_refused():
    with pytest.raises(ValueError, match="weight > 2"):
        Aligned(weight=1.5)
    with pytest.raises(ValueError, match=r"starts at -3\.186"):
        Aligned(mean=-4.0)
    with pytest.raises(ValueError, match="alpha = 0"):
        Converged(0)
    model = Linear(432, 20).double()
    with pytest.raises(ValueError, match=r"samples 0, 1, 2, 3.*'f'.*never gets as high as"):
        entropy(model, images(), "f", units=ImageGrid(GRID), objective=Aligned(mean=3.0))


def test_scale_of_the_input_moves_the_entropy_by_its_logarithm():
    """A network that divides its input by 10 sees the same thing when the input is 10 times as
    large.
    """
    model, scaled = Linear(432, 20).double(), Linear(432, 20).double()
    with torch.no_grad():
        scaled.f.weight /= 10
    exact = ClosedForm(rank=None)
    a = entropy(model, images(), "f", units=ImageGrid(GRID), solver=exact)
    b = entropy(scaled, 10 * images(), "f", units=ImageGrid(GRID), solver=exact, scale=10.0)
    assert torch.allclose(a.entropy + math.log(10), b.entropy, atol=1e-9)


def test_equal_objectives_are_written_alike():
    """They are compared as they are written, in settings and in the names of artefacts."""
    for same in (Aligned(-2.8, 7), Aligned(np.float64(-2.8)), Aligned(weight=np.int64(7))):
        assert repr(same) == repr(Aligned())
    assert repr(Converged(1)) == repr(Converged(1.0))
    assert repr(Stochastic(clamp=[1e-3, 1])) == repr(Stochastic())


@pytest.mark.parametrize("wrong", [{"mean": math.nan}, {"weight": math.nan}])
def test_what_is_no_number_is_no_objective(wrong):
    with pytest.raises(ValueError, match="nan"):
        Aligned(**wrong)
