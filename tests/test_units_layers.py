"""Grids against hand counts; features by name; the model as it was, whatever happens."""

import copy
import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn

from kpnb._outputs import key_of, picked, replaced
from kpnb.entropy import entropy
from kpnb.features import capture, count_runs, explaining, layer_at, parameters_below
from kpnb.units import ImageGrid
from tests.models import images, small_net


def test_grid_spreads_row_by_row():
    values = torch.arange(6.0)[None]
    spread = ImageGrid(2, 3).spread(values, torch.zeros(1, 3, 4, 6))
    expected = torch.tensor(
        [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]]
    )
    assert torch.equal(spread, expected[None, None].float())


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["channels first", "last"]
)
@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (16, 16, (4, 4)),
        (12, 20, (3, 5)),
        (17, 17, (4, 4)),
        (16, 18, (4, 4)),
        (18, 16, (4, 4)),
        (7, 7, (7, 7)),
        (9, 9, (1, 1)),
    ],
)
def test_gather_is_the_adjoint_of_spread(height, width, grid, layout):
    """<spread(v), e> = <v, gather(e)>, so every pixel belongs to one cell, also where the grid does
    not divide.
    """
    units, generator = ImageGrid(*grid), torch.Generator().manual_seed(height + width)
    values = torch.randn(2, grid[0] * grid[1], generator=generator, dtype=torch.float64)
    elements = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    elements = elements.contiguous(memory_format=layout)
    left = (units.spread(values, elements) * elements).sum((1, 2, 3))
    assert torch.allclose(left, (values * units.gather(elements)).sum(-1))


def test_cells_of_a_non_dividing_grid_differ_by_one_pixel():
    counts = ImageGrid(4).gather(torch.ones(1, 1, 18, 18))
    sides = {4: 0, 5: 0}
    for side in (18 * torch.arange(5) / 4).ceil().diff().tolist():
        sides[side] += 1
    assert sorted(counts[0].tolist()) == sorted(a * b for a in (5, 4, 5, 4) for b in (5, 4, 5, 4))
    assert sum(sides.values()) == 4


def test_coverage_by_hand():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, :2], mask[0, 0, 2] = True, True
    assert ImageGrid(2).coverage(mask).tolist() == [[1.0, 0.25, 0.0, 0.0]]


@pytest.mark.parametrize("grid", [ImageGrid(13), ImageGrid(4, 20)])
def test_grid_that_does_not_fit_is_named(grid):
    with pytest.raises(ValueError, match=f"{grid.rows} x .* does not fit an image of 12 x 12"):
        grid.count(images())


def test_capture_stops_at_the_last_layer_and_survives_in_place_relu():
    model, x = small_net().double().eval(), images()
    reached = []
    model[10].register_forward_hook(lambda *_: reached.append(10))
    found = capture(model, x, ["4", "7"])
    assert not reached
    assert list(found) == ["4", "7"]
    before_relu = model[:5](x)
    assert torch.equal(found["4"], before_relu)
    assert (found["4"] < 0).any()


def test_unknown_layer_names_the_nearest():
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(LookupError, match=r"unknown layer 'feature.1'; did you mean 'features.1'"):
        layer_at(model, "feature.1")


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return self.used(x)
        except Exception as error:  # a model that swallows errors must not swallow the cut
            raise AssertionError from error


def test_layer_never_reached_is_an_error_and_leaves_no_hook():
    model = _Branch()
    with pytest.raises(RuntimeError, match="never reached layer 'unused'"):
        capture(model, torch.ones(1, 4), ["used", "unused"])
    assert not model.used._forward_hooks
    assert not model.unused._forward_hooks
    assert capture(model, torch.ones(1, 4), ["used"])["used"].shape == (1, 4)


def _state(model: nn.Module) -> dict[str, object]:
    return {
        "weights": copy.deepcopy(model.state_dict()),
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
        "rng": torch.get_rng_state(),
    }


def _assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    for name in ("modes", "requires_grad", "hooks"):
        assert before[name] == after[name], name
    assert torch.equal(before["rng"], after["rng"])
    assert all(torch.equal(before["weights"][k], after["weights"][k]) for k in before["weights"])
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class _NoisyFailure(nn.Module):
    """Uses the global RNG in every pass and, when told, fails after a number of passes."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.body, self.left = small_net(norm=True).double(), passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        torch.rand(3)
        if not self.left:
            raise RuntimeError("out of luck")
        return self.body(x)


@pytest.mark.parametrize("passes", [10**6, 1, 2, 3])
def test_explaining_leaves_the_model_untouched(passes):
    model = _NoisyFailure(passes)
    model.body[4].weight.requires_grad_(False)
    model.body[9].eval()
    model.body[7].weight.grad = torch.ones_like(model.body[7].weight)
    before = _state(model)
    if passes < 100:
        with pytest.raises(RuntimeError, match="out of luck"):
            entropy(model, images(), "body.8", units=ImageGrid(4))
    else:
        entropy(model, images(), "body.8", units=ImageGrid(4))
    _assert_same(before, _state(model))


def test_explaining_restores_after_keyboard_interrupt():
    model = small_net()
    modes = []

    def interrupted():
        with explaining(model, torch.device("cpu")):
            modes.append(model.training)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert modes == [False]
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


class Merged(nn.Linear):
    """A layer that adds its update to its weights for evaluation, and subtracts it for training."""

    def __init__(self) -> None:
        super().__init__(432, 6)
        self.update, self.merged = nn.Parameter(torch.randn(6, 432) / 10), False

    def train(self, mode: bool = True) -> "Merged":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.update.data if mode else self.update.data
            self.merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (0 if self.merged else x @ self.update.T)


@pytest.mark.parametrize("modes", [(True, True), (True, False), (False, True), (False, False)])
def test_a_layer_that_merges_its_weights_for_evaluation_comes_back(modes):
    """To the bit, in the mode of the model and in one of its own."""
    model = nn.Sequential(nn.Flatten(), Merged(), nn.Dropout(0.5), nn.Linear(6, 3))
    model.train(modes[0])
    model[1].train(modes[1])
    model[2].training = not modes[0]  # set by hand
    model[1].weight.requires_grad_(False)
    before = _state(model)
    entropy(model, images(dtype=torch.float32), "1", units=ImageGrid(4))
    _assert_same(before, _state(model))
    assert model[1].merged is not modes[1]
    with explaining(model, torch.device("cpu")):
        assert model[1].merged
    _assert_same(before, _state(model))


def test_a_model_that_freezes_itself_in_training_stays_as_its_owner_left_it():
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self[1].eval()
            return self.requires_grad_(not mode)

    model = Frozen(*small_net(norm=True)).double().train()
    model[1].train()
    model[0].weight.requires_grad_(True)
    before = _state(model)
    entropy(model, images(), "8", units=ImageGrid(4))
    _assert_same(before, _state(model))


def test_modes_come_back_where_a_part_has_only_one():
    class Exported(nn.Linear):
        def train(self, mode: bool = True) -> "Exported":
            raise NotImplementedError("it has one mode")

    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 6), nn.Dropout(0.5), Exported(6, 3))
    before = _state(model)
    with pytest.raises(NotImplementedError, match="one mode"):
        entropy(model, images(dtype=torch.float32), "1", units=ImageGrid(4))
    _assert_same(before, _state(model))


def test_what_lies_below_a_layer():
    model, x = small_net(norm=True), images(dtype=torch.float32)
    model[4].weight.requires_grad_(False)  # frozen by its owner, still below
    assert parameters_below(model, x, "5") == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    }
    assert count_runs(model, x, "5") == dict.fromkeys("012345", 1)
    assert not model[4].weight.requires_grad


@dataclasses.dataclass
class Parts:
    feature: torch.Tensor
    logits: torch.Tensor


class Named(NamedTuple):
    feature: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize("kind", [Parts, Named, lambda *parts: [*parts]])
def test_parts_go_by_names_of_dataclasses_and_named_tuples_and_from_the_end(kind):
    feature, logits = torch.randn(2, 3), torch.randn(2, 5)
    output = kind(feature, logits)
    if kind in (Parts, Named):
        assert picked(output, "head", "logits") is logits
        assert picked(output, "head", "feature") is feature
    if kind is not Parts:
        assert picked(output, "head", -1) is logits
        assert picked(output, "head", -2) is feature
    key = key_of(output, "head", "logits" if kind is Parts else -1)
    changed = replaced(output, key, torch.zeros(2, 5))
    assert type(changed) is type(output)
    assert not picked(changed, "head", key).any()
    assert picked(output, "head", key) is logits  # the original stays
    with pytest.raises(TypeError, match="which has no 'nothing'"):
        picked(output, "head", "nothing")


@pytest.mark.parametrize("shape", [(0,), (-1,), (4, 0), (True,), (4, True), (2.0,)])
def test_a_grid_without_cells_is_refused(shape):
    with pytest.raises((TypeError, ValueError), match=r"(rows|columns)=.* must be"):
        ImageGrid(*shape)
