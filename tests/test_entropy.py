"""The closed form against the full Jacobian, the stochastic learner against the closed form, and
what can go wrong.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import kpnb.energy
import kpnb.perturb
from kpnb.energy import ClosedForm, unit_energies
from kpnb.entropy import entropy
from kpnb.lipschitz import lipschitz
from kpnb.objectives import Aligned, Converged, solve
from kpnb.sampling import Stochastic
from kpnb.units import ImageGrid, Regions
from tests.models import Linear, images, jacobian_energies, perturbed, small_net

GRID = ImageGrid(4)


@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize(("layer", "depth"), [("8", 9), ("5", 6), ("10", 11)])
def test_exact_energies_are_the_full_jacobian(layer, depth, grid):
    model, x = small_net().double().eval(), images()
    found = unit_energies(perturbed(model, x, ImageGrid(grid)), [layer], ClosedForm(rank=None))[
        layer
    ]
    assert torch.allclose(found.energy, jacobian_energies(model, depth, x, grid), rtol=1e-10)
    assert not found.deviation.any()


@pytest.mark.parametrize(
    "solver", [ClosedForm(rank=16, noise=16, probes=8), ClosedForm(rank=20, noise=24, probes=4)]
)
def test_range_finder_is_exact_when_it_spans_the_feature(solver):
    """24 coordinates after the ReLU: with rank + probes = 24 the probes span what the directions
    leave.
    """
    model, x = small_net(width=25).double().eval(), images()
    found = unit_energies(perturbed(model, x, GRID), ["8"], solver)["8"]
    alive = (model[:9](x) > 0).sum(-1)
    assert (alive <= 24).all()
    assert torch.allclose(found.energy, jacobian_energies(model, 9, x, 4), rtol=1e-6)
    assert found.deviation.max() < 1e-6 * found.energy.max()


def _errors(
    model: nn.Module, x: torch.Tensor, solver: ClosedForm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actual and predicted root mean square error of H over 60 seeds."""
    exact = entropy(model, x, "8", units=GRID, solver=ClosedForm(rank=None)).entropy
    found = [
        entropy(model, x, "8", units=GRID, solver=solver, seed=10 * seed) for seed in range(60)
    ]
    actual = torch.stack([f.entropy - exact for f in found]).square().mean().sqrt()
    return actual, torch.stack([f.error for f in found]).square().mean().sqrt()


def test_shrinking_lowers_the_error_and_says_how_large_it_is():
    model, x = small_net(width=60).double(), images(6)
    plain, _ = _errors(model, x, ClosedForm(rank=6, probes=4, noise=8, shrink=False))
    shrunk, predicted = _errors(model, x, ClosedForm(rank=6, probes=4, noise=8))
    assert shrunk < 0.95 * plain
    assert 2 / 3 < predicted / shrunk < 3 / 2


def test_estimate_has_no_bias_and_an_honest_error():
    """Mean over seeds within four standard errors of the truth; predicted and actual spread agree
    within a third.
    """
    model, x = Linear(432, 40).double(), images(2)
    truth = entropy(model, x, "f", units=GRID, solver=ClosedForm(rank=None))
    solver = ClosedForm(rank=4, probes=4, noise=6, shrink=False)
    perturbations = [perturbed(model, x, GRID, seed=10 * seed) for seed in range(200)]
    found = [unit_energies(p, ["f"], solver)["f"] for p in perturbations]
    energies = torch.stack([f.energy for f in found])
    exact = unit_energies(perturbations[0], ["f"], ClosedForm(rank=None))["f"].energy
    assert ((energies.mean(0) - exact).abs() < 4 * energies.std(0) / 200**0.5).all()
    solved = [solve(f.energy, f.deviation, Aligned(), 0.01) for f in found]
    errors = torch.stack([error for _, error in solved])
    entropies = torch.stack([sigma.log() for sigma, _ in solved])
    actual = (entropies - truth.sigma.log()).square().mean().sqrt()
    assert 2 / 3 < errors.square().mean().sqrt() / actual < 3 / 2


@pytest.mark.parametrize("objective", [Aligned(), Converged(0.1)])
def test_stochastic_learner_agrees_with_the_closed_form(objective):
    """The released settings for Aligned; for Converged as many steps as it takes. 96 samples a
    step.
    """
    model, x = small_net().float(), images(2, dtype=torch.float32)
    exact = entropy(
        model, x, "8", units=GRID, solver=ClosedForm(rank=None, check=200), objective=objective
    )
    assert ((exact.linearity - 1).abs() < 0.5).all()
    steps = 80 if isinstance(objective, Aligned) else 400
    solver = Stochastic(steps=steps, samples=96)
    found = entropy(model, x, "8", units=GRID, solver=solver, objective=objective, max_batch=512)
    assert (found.entropy - exact.entropy).abs().mean() < 0.04
    early = replace(solver, steps=20)
    found_early = entropy(model, x, "8", units=GRID, solver=early, objective=objective)
    assert (found_early.entropy - exact.entropy).abs().mean() > 0.04
    assert torch.allclose(found.delta_f2, exact.delta_f2, rtol=0.3)


def test_adam_reaches_the_minimiser():
    model, x = small_net().float(), images(2, dtype=torch.float32)
    exact = entropy(
        model, x, "8", units=GRID, solver=ClosedForm(rank=None), objective=Converged(0.1)
    )
    adam = Stochastic(method="adam", steps=150, samples=32)
    found = entropy(model, x, "8", units=GRID, solver=adam, objective=Converged(0.1), max_batch=512)
    assert (found.entropy - exact.entropy).abs().mean() < 0.08
    with pytest.raises(ValueError, match="Aligned"):
        entropy(model, x, "8", units=GRID, solver=adam)


def test_bf16_learner_runs_and_stays_near():
    model, x = small_net().float(), images(2, dtype=torch.float32)
    exact = entropy(
        model, x, "8", units=GRID, solver=ClosedForm(rank=None), objective=Converged(20.0)
    )
    solver = Stochastic(method="adam", steps=120, samples=32, bf16=True)
    found = entropy(
        model, x, "8", units=GRID, solver=solver, objective=Converged(20.0), max_batch=512
    )
    assert found.entropy.dtype == torch.float32
    assert (
        torch.corrcoef(torch.stack([found.entropy.flatten(), exact.entropy.flatten()]))[0, 1] > 0.8
    )


class Counting(nn.Module):
    """Hands images on, and counts them: those that come, and those whose gradient comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._back)
        return x

    def _back(self, gradient: torch.Tensor) -> None:
        self.backwards += len(gradient)


def counted(solver: Stochastic, x: torch.Tensor, **options: object) -> dict[str, torch.Tensor]:
    """The entropies ``[N, n]`` and sigmas, and at which steps the samples stopped; the passes that
    the settings tell are those that were made.
    """
    counting = Counting()
    model = nn.Sequential(counting, *small_net()).to(x.dtype)
    found = entropy(model, x, "9", units=GRID, solver=solver, check=False, **options)
    told = found.settings["forwards"], found.settings["backwards"]
    assert told == (counting.forwards, counting.backwards)
    stopped = torch.tensor(found.settings["stopped"])
    return {"entropy": found.entropy, "sigma": found.sigma, "stopped": stopped}


@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_passes_of_the_learner_are_those_that_it_tells(max_batch):
    x = images(2, dtype=torch.float32)
    for stop in ("aligned", "released", None):
        counted(Stochastic(samples=4, stop=stop), x, max_batch=max_batch)


def test_the_learner_stops_where_it_is_aligned():
    """A batch goes on until its last sample is there; none of them changes once it has stopped."""
    x, at_once = images(4, dtype=torch.float32), {"max_batch": 64}
    full = counted(Stochastic(samples=16), x, **at_once)
    early = counted(Stochastic(samples=16, stop="aligned"), x, **at_once)
    assert full["stopped"].tolist() == [80] * 4
    steps = early["stopped"].tolist()
    assert len(set(steps)) > 1
    assert torch.equal(early["sigma"], full["sigma"])
    for n in (steps.index(min(steps)), steps.index(max(steps))):
        before = counted(Stochastic(steps=steps[n] - 1, samples=16), x, **at_once)
        there = counted(Stochastic(steps=steps[n], samples=16), x, **at_once)
        assert torch.equal(early["sigma"][n], there["sigma"][n])
        assert torch.equal(early["entropy"][n], there["entropy"][n])
        assert before["entropy"][n].mean() < -2.8, "it had been there a step before"


def test_the_learner_stops_where_the_release_does():
    x = images(3, dtype=torch.float32)
    full, released = (counted(Stochastic(samples=8, stop=s), x) for s in (None, "released"))
    assert released["stopped"].tolist() == [60] * 3
    assert torch.equal(released["sigma"], full["sigma"])


def test_a_slow_descent_is_pushed_after_three_quarters_as_in_the_release():
    """At half the rate no sample is aligned after 60 steps of 80. The last 20 have half again the
    weight: the path is that of dv/dt = 2 w - 4 q v, solved in two pieces with the full Jacobian.
    """
    x, n, weight = images(2, dtype=torch.float32), 16, 7.0
    rate = 0.01**2 * n / 512
    solver = Stochastic(samples=96, lr=rate, stop="released")
    found = counted(solver, x, objective=Aligned(mean=-2.65), max_batch=192)
    assert found["stopped"].tolist() == [80, 80]
    energy = jacobian_energies(small_net().float(), 9, x, 4).double()
    q = energy / energy.mean(-1, keepdim=True)
    v = torch.ones_like(q)
    ends = []
    for steps, w in ((60, weight), (20, 1.5 * weight)):
        decay = torch.exp(-4 * q * steps * rate / (n * 0.01**2))
        unpushed = weight / (2 * q) + (v - weight / (2 * q)) * decay
        v = w / (2 * q) + (v - w / (2 * q)) * decay
        ends.append(unpushed)
    sigma = found["sigma"].double()
    pushed, plain = ((sigma / (0.01 * end.sqrt())).log().mean(-1) for end in (v, ends[-1]))
    assert (pushed.abs() < 0.015).all()
    assert (plain.abs() > 0.04).all()


def test_rescaled_neighbouring_layers_give_the_same_entropy():
    """Section 3.2's coherency test: weights and bias of a layer times 4, the next layer's weight
    over 4.
    """
    model, x = small_net().double(), images()
    twin = small_net().double()
    with torch.no_grad():
        for layer, factor in ((0, 4), (4, 1 / 4)):
            twin[layer].weight *= factor
        twin[0].bias *= 4
    for solver in (ClosedForm(), ClosedForm(rank=None)):
        a, b = (entropy(m, x, ["0", "5", "8"], units=GRID, solver=solver) for m in (model, twin))
        for layer in a:
            assert (a[layer].entropy - b[layer].entropy).abs().max() < 1e-4


def test_sample_does_not_depend_on_its_company_or_on_max_batch():
    model, x, layers = small_net().double(), images(5), ["5", "8"]
    together = entropy(model, x, layers, units=GRID)
    for max_batch in (1, 2, 100):
        alone = entropy(model, x[2:4], layers, units=GRID, max_batch=max_batch)
        for layer in layers:
            assert torch.allclose(alone[layer].entropy, together[layer].entropy[2:4], atol=1e-9)
            assert torch.allclose(alone[layer].linearity, together[layer].linearity[2:4], atol=1e-9)


def test_the_learner_draws_the_same_noise_however_it_is_divided():
    """Inputs of 15 numbers: generators draw those in blocks of 16 otherwise than one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(15, 8), nn.Tanh())
    x, solver = torch.randn(3, 3, 5), Stochastic(steps=5, samples=16)
    how = {"units": Regions(torch.arange(5)), "solver": solver}
    whole = entropy(model, x, "2", **how).entropy
    for max_batch in (1, 3, 6):
        found = entropy(model, x, "2", max_batch=max_batch, **how).entropy
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)
    fewer = entropy(model, x[1:], "2", **how).entropy
    torch.testing.assert_close(fewer, whole[1:], rtol=0, atol=1e-4)


def test_numbers_of_numpy_are_numbers_and_none_is_not():
    model, x = small_net().double(), images(2)
    plain = entropy(model, x, "5", units=GRID, max_batch=2, seed=3, solver=ClosedForm(rank=4))
    solver = ClosedForm(rank=np.int64(4))
    numpy = {"max_batch": np.int64(2), "seed": np.int32(3), "scale": np.float32(1)}
    found = entropy(model, x, "5", units=ImageGrid(np.int64(GRID.rows)), solver=solver, **numpy)
    assert torch.equal(found.entropy, plain.entropy)
    json.dumps(found.settings)
    for name in ("max_batch", "seed", "scale"):
        with pytest.raises(TypeError, match=f"{name}=None: it must be a number"):
            entropy(model, x, "5", units=GRID, **{name: None})


@pytest.mark.parametrize(
    "solver", [ClosedForm(), Stochastic(steps=3, samples=8)], ids=["closed form", "stochastic"]
)
def test_the_memory_format_of_the_input_changes_nothing(solver):
    model, x = small_net().double(), images(3)
    one, other = (
        entropy(model, x.contiguous(memory_format=layout), "5", units=GRID, solver=solver)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(
            other.tensors()[name], tensor, rtol=1e-9, atol=1e-9, equal_nan=True
        )


def test_largest_forward_pass_is_bounded_and_layers_share_passes():
    model, x, rows = small_net().double(), images(7), []
    model[0].register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    entropy(model, x, "8", units=GRID, max_batch=3)
    assert max(rows) == 3
    rows.clear()
    entropy(model, x, ["8", "5"], units=GRID, max_batch=7, solver=ClosedForm(), check=False)
    assert sum(rows) == 7 * (
        1 + 14 + 2
    )  # one pass with a graph, fourteen with noise, one check for each layer


def test_linearity_is_one_for_a_linear_network():
    found = entropy(
        Linear(432, 20).double(), images(), "f", units=GRID, solver=ClosedForm(rank=None, check=400)
    )
    assert torch.allclose(found.linearity, torch.ones(4, dtype=torch.float64), atol=0.1)


def test_a_layer_of_one_number_for_each_sample_is_measured():
    """A squeezed logit is the same feature as a column of one."""

    class Logit(nn.Module):
        def __init__(self, squeezed: bool) -> None:
            super().__init__()
            self.net, self.squeezed = small_net().double(), squeezed

        def forward(self, x):
            out = self.net(x)[:, :1]
            return out[:, 0] if self.squeezed else out

    plain, squeezed = (Logit(each).eval() for each in (False, True))
    squeezed.load_state_dict(plain.state_dict())
    for solver in (ClosedForm(), Stochastic(steps=3, samples=2)):
        found = [
            entropy(each, images(), "", units=GRID, solver=solver) for each in (plain, squeezed)
        ]
        assert torch.equal(found[0].entropy, found[1].entropy)


def test_linearity_is_no_matter_of_the_seed_that_others_use_too():
    """Weights and images that were drawn with small seeds are no noise of ours."""
    for number in range(5):
        torch.manual_seed(number)
        model = Linear(432, 20)
        torch.nn.init.normal_(model.f.weight)
        torch.manual_seed(number)
        x = torch.randn(1, 3, 12, 12)
        solver = ClosedForm(rank=None, check=1)
        found = [entropy(model, x, "f", units=GRID, solver=solver, seed=seed) for seed in range(3)]
        assert all(0.2 < each.linearity.item() < 5 for each in found)  # 24 of its own weights


@pytest.mark.parametrize("layers", ["2", ["0", "2"]])
def test_noise_far_beyond_the_linear_range_is_warned_of(layers):
    """Planted: a network for inputs of 0.001, where noise in units of 1 saturates a tanh."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten())
    net[0].weight.data *= 1000
    x = 1e-3 * torch.randn(2, 3, 12, 12)
    said = r"^scale=1, while .* deviation 0.00\d+: .* 0.0\d+ at layer '2' times .* scale=0.00"
    with pytest.warns(UserWarning, match=said):
        far = entropy(net, x, layers, units=GRID)
    entropy(net, x, layers, units=GRID, check=False)  # quiet
    near = entropy(net, x, layers, units=GRID, scale=1e-3)
    far, near = (each["2"] if isinstance(each, dict) else each for each in (far, near))
    assert "linearity 0.0" in repr(far)
    assert near.linearity == pytest.approx(torch.ones(2), rel=0.3)


@pytest.mark.parametrize("solver", [ClosedForm(), Stochastic(steps=2, samples=2)])
def test_a_sample_without_a_feature_change_has_no_entropy(solver):
    """Planted: the second sample is below every threshold."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    torch.nn.init.ones_(net[0].weight)
    x = torch.tensor([1.0, -9.0]).view(2, 1, 1, 1) + 0.1 * images(2, dtype=torch.float32)
    found = entropy(net, x, "2", units=GRID, solver=solver, dead="nan", check=False)
    assert found.entropy[0].isfinite().all()
    assert found.delta_f2[1] == 0
    for values in (found.entropy, found.sigma):
        assert values[1].isnan().all()


@pytest.mark.parametrize("rank", [2, None])
def test_a_sample_with_an_infinite_coordinate_has_no_entropy(rank):
    """Planted: one coordinate of the second sample's feature overflows, the others do not."""

    class Overflowing(torch.nn.Sequential):
        def forward(self, x):
            f = super().forward(x)
            return torch.cat([f, 1 / f[:, :1].detach() ** 300], 1)

    net = Overflowing(torch.nn.Flatten(), torch.nn.Linear(432, 6)).double()
    x = images(2)
    with torch.no_grad():
        net[1].bias[0] -= net[1](x[1].flatten())[0]
    found = entropy(net, x, "", units=GRID, solver=ClosedForm(rank=rank), dead="nan", check=False)
    assert found.entropy[0].isfinite().all()
    assert found.entropy[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_learner_measures_half_precision(dtype):
    net, solver = small_net().to(dtype), Stochastic(steps=3, samples=4)
    found = entropy(net, images(dtype=dtype), "8", units=GRID, solver=solver, check=False)
    whole = entropy(
        small_net().float(), images(dtype=torch.float32), "8", units=GRID, solver=solver
    )
    torch.testing.assert_close(found.entropy, whole.entropy, atol=0.1, rtol=0)


def test_a_sample_without_any_unit_is_named():
    labels = torch.zeros(2, 12, 12, dtype=torch.int64)
    labels[1] = -1
    labels[0, :6] = 1
    x = images(2)
    units = Regions(labels[:, None])
    with pytest.raises(ValueError, match=r"^sample 1: no unit at all, .* check the mask"):
        entropy(small_net().double(), x, "8", units=units)
    found = entropy(small_net().double(), x, "8", units=units, dead="nan")
    assert found.entropy[0].isfinite().all()
    assert found.entropy[1].isnan().all()


def test_results_say_in_a_line_what_they_are():
    found = entropy(small_net().double(), images(), "8", units=GRID)
    known = found.entropy
    assert repr(found).startswith(f"Entropy(4 x {known.shape[1]} units: {known.min():.2f} to ")
    assert len(repr(found)) < 80


class Stretched(nn.Module):
    """Two outputs of one number: 3 f and 4 f."""

    def forward(self, feature):
        return feature[:, None] * torch.tensor([3.0, 4.0])


def test_lipschitz_constant_behind_one_number_for_each_sample():
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 1), nn.Flatten(0), Stretched()).eval()
    x = images().float()
    sigma = entropy(model, x, "2", units=GRID).sigma
    found = lipschitz(model, x, "2", sigma, units=GRID, samples=2)
    assert torch.allclose(found.kappa.float(), torch.full((4,), 5.0), atol=1e-4)


def test_lipschitz_constant_of_a_linear_head_is_its_spectral_norm():
    model, x = Linear(432, 20).double(), images()
    sigma = entropy(model, x, "f", units=GRID).sigma
    found = lipschitz(model, x, "f", sigma, units=GRID)
    assert torch.allclose(
        found.kappa, torch.linalg.matrix_norm(model.g.weight.detach(), 2).expand(4)
    )
    assert (found.observed <= found.kappa).all()
    assert (found.observed > 0.05 * found.kappa).all()
    nothing_inside = lipschitz(model, x, "f", sigma, units=GRID, tau=1e-12)
    assert not nothing_inside.tau.any()


def test_half_precision_network():
    """It is said, once, with what helps; squares of gradients neither overflow nor vanish."""
    x = images(dtype=torch.float32)
    options = {"units": GRID, "solver": ClosedForm(rank=None)}
    exact = entropy(small_net().float(), x, "8", **options)
    for dtype, size in ((torch.bfloat16, 1), (torch.float16, 1), (torch.float16, 1000)):
        model = small_net().to(dtype)
        with torch.no_grad():
            model[7].weight *= size  # the feature, and so its derivative
            model[7].bias *= size
        with pytest.warns(UserWarning, match=r"computes in b?float16, .*model\.float\(\)") as said:
            found = entropy(model, x.to(dtype), ["7", "8"], **options)["8"]
        assert len(said) == 1
        assert said[0].filename == __file__
        assert (found.entropy - exact.entropy).abs().mean() < 0.02


def test_autocast_is_half_precision_too():
    def autocast(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    x = images(dtype=torch.float32)
    with pytest.warns(UserWarning, match="computes in bfloat16"):
        entropy(small_net().float(), x, "8", units=GRID, forward=autocast)


class _Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.relu = nn.Linear(432, 20), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness = x.flatten(1).mean(1, keepdim=True)
        return self.relu(self.f(x.flatten(1)) - 1e6 * (brightness > 5))


def test_feature_that_does_not_move_is_named_or_nan():
    model, x = _Dead().double(), images()
    x[2] += 10
    with pytest.raises(ValueError, match=r"sample 2: the feature of layer 'relu' does not move"):
        entropy(model, x, "relu", units=GRID)
    found = entropy(model, x, "relu", units=GRID, dead="nan")
    assert found.entropy.isnan().any(-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[1, 0, 0, 0].fill_(torch.nan), "sample 1 of the batch: NaN"),
        (lambda x: x[3].fill_(0.5), "sample 3 of the batch: the same value everywhere"),
    ],
)
def test_bad_samples_are_named(spoil, message):
    x = images()
    spoil(x)
    with pytest.raises(ValueError, match=message):
        entropy(small_net().double(), x, "8", units=GRID)


def test_other_bad_input_is_named():
    model, x = small_net().double(), images()
    with pytest.raises(LookupError, match="unknown layer '88'; did you mean '8'"):
        entropy(model, x, "88")
    with pytest.raises(ValueError, match="16 x 16 cells does not fit an image of 12 x 12"):
        entropy(model, x, "8")
    with pytest.raises(ValueError, match=r"floating-point batch .* torch.int64"):
        entropy(model, x.long(), "8")
    with pytest.raises(ValueError, match="model is on cpu, the input on meta"):
        entropy(model, x.to("meta"), "8", units=GRID)
    with pytest.raises(ValueError, match="rank = 20"):
        ClosedForm(rank=20)
    with pytest.raises(ValueError, match="lr=-1 must be positive"):
        Stochastic(lr=-1)
    with pytest.raises(ValueError, match="unknown stop 'early'; known: 'aligned', 'released'"):
        Stochastic(stop="early")
    learner = Stochastic(stop="released")
    with pytest.raises(ValueError, match="stop='released' waits for the mean entropy of Aligned"):
        entropy(model, x, "8", units=GRID, solver=learner, objective=Converged(0.1))
    for clamp in ((1.0, 0.1), (0.0, 1.0)):
        with pytest.raises(ValueError, match="a lower and an upper bound of sigma"):
            Stochastic(clamp=clamp)


def test_everything_is_created_on_the_inputs_device(monkeypatch):
    """Fake CUDA tensors refuse to meet CPU tensors, so a result on the device proves the forward
    paths.

    Autograd's engine wants a real device: the gradient is replaced by an empty one after a check of
    its arguments.
    """

    def gradient(outputs, inputs, vectors=None, **_options):
        inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
        assert {
            t.device.type for t in (outputs, *inputs, *([] if vectors is None else [vectors]))
        } == {"cuda"}
        return tuple(map(torch.empty_like, inputs))

    monkeypatch.setattr(torch.autograd, "grad", gradient)
    monkeypatch.setattr(kpnb.perturb, "generator", lambda _seed: None)
    with FakeTensorMode(allow_non_fake_inputs=False):
        with torch.device("cuda"):
            model, x = small_net().eval(), torch.empty(4, 3, 12, 12)
        perturbation = perturbed(model, x, GRID)
        for solver in (ClosedForm(), ClosedForm(rank=12, probes=12)):
            for name, found in unit_energies(perturbation, ["5", "8"], solver).items():
                for objective in (Aligned(), Converged(0.1)):
                    sigma, error = solve(found.energy, found.deviation, objective, perturbation.tau)
                    assert (sigma.device.type, error.device.type, sigma.shape) == (
                        "cuda",
                        "cuda",
                        (4, 16),
                    ), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "solver", [ClosedForm(), ClosedForm(rank=None), Stochastic(steps=3, samples=8)]
)
def test_gpu_gives_the_cpu_result(solver):
    model, x = small_net().double(), images()
    cpu = entropy(model, x, ["5", "8"], units=GRID, solver=solver)
    gpu = entropy(model.cuda(), x.cuda(), ["5", "8"], units=GRID, solver=solver)
    tolerance = 1e-6 if isinstance(solver, ClosedForm) else 0.3  # the learner's is the card's noise
    for layer in cpu:
        assert gpu[layer].entropy.device.type == "cuda"
        assert (gpu[layer].entropy.cpu() - cpu[layer].entropy).abs().max() < tolerance
