"""Units of any shape, and masks as people have them."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kpnb import (
    ClosedForm,
    ImageGrid,
    Points,
    Regions,
    Stochastic,
    Tokens,
    covered_units,
    entropy,
    knowledge_points,
    lipschitz,
    read_masks,
)
from kpnb.units import units_of
from tests.models import images, perturbed, small_net


def grid_labels(size: int, grid: int) -> Tensor:
    place = torch.arange(size) * grid // size
    return place[:, None] * grid + place


def sequences(count: int = 4, length: int = 6, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, length, width, generator=generator, dtype=torch.float64)


class Reader(nn.Module):
    """Each sample's feature is a sum over its positions, so what is zero at the end is padding."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.feature = nn.Linear(width, 20), nn.Linear(20, 14)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.feature((self.one(x).tanh() * (x != 0).any(-1, keepdim=True)).sum(1))


# ------------------------------------------------------------------------------------------ regions

RAGGED = torch.tensor([[0, 1, 1, 2, -1, 0], [2, 2, -1, -1, 0, 0]])  # unit 1 is not in the second


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (grid_labels(6, 3), (2, 3, 6, 6)),  # shared by samples and channels
        (torch.arange(18).reshape(3, 6, 1) % 4, (2, 3, 6, 6)),  # other units in each channel
        (torch.stack([grid_labels(6, 2), grid_labels(6, 3)])[:, None], (2, 3, 6, 6)),  # by sample
        (RAGGED[..., None], (2, 6, 5)),
        (torch.arange(6)[:, None], (2, 6, 5)),
        (torch.arange(24) // 5, (2, 2, 24)),
        (torch.randint(-1, 5, (2, 3, 4, 5, 6)), (2, 3, 4, 5, 6)),  # voxels, all different
        (torch.tensor([0, 1, 2]).reshape(1, 3, 1, 1), (2, 3, 6, 6)),  # a unit for each channel
    ],
)
def test_spread_and_gather_by_hand(labels, shape):
    units, x = Regions(labels), torch.randn(shape, dtype=torch.float64)
    count = int(labels.max()) + 1
    assert units.count(x) == count
    values = torch.randn(2, count, dtype=torch.float64)
    laid = labels.expand(shape)
    spread, gathered = units.spread(values, x).expand(shape), units.gather(x)
    for sample in range(2):
        for unit in range(count):
            inside = laid[sample] == unit
            assert (spread[sample][inside] == values[sample, unit]).all()
            assert torch.isclose(gathered[sample, unit], x[sample][inside].sum())
        assert not spread[sample][laid[sample] < 0].any()
    one = units_of(units, slice(1, 2), x)
    assert one.count(x[1:]) == count  # also where the sample lacks the last unit
    assert torch.allclose(one.gather(x[1:]), gathered[1:])
    assert torch.equal(one.spread(values[1:], x[1:]).expand(1, *shape[1:]), spread[1:])


@pytest.mark.parametrize(
    ("units", "labels", "x"),
    [
        (ImageGrid(4), grid_labels(12, 4), images()),
        (ImageGrid(5), grid_labels(12, 5), images()),
        (Points(), torch.arange(6)[:, None], sequences(width=3)),
        (Tokens(), torch.arange(6)[:, None], sequences()),
        (
            Tokens(torch.arange(6) < torch.tensor([[6], [3], [5], [1]])),
            torch.arange(6)
            .expand(4, 6)
            .where(torch.arange(6) < torch.tensor([[6], [3], [5], [1]]), -1)[..., None],
            sequences(),
        ),
    ],
    ids=["grid", "uneven grid", "points", "tokens", "tokens that count"],
)
@pytest.mark.parametrize("solver", [ClosedForm(), Stochastic(steps=3, samples=8)])
def test_grid_points_and_tokens_are_regions(units, labels, x, solver):
    model, layer = (small_net().double(), "8") if x.dim() == 4 else (Reader(x.shape[2]), "feature")
    one, two = (
        entropy(model, x, layer, units=u, solver=solver, max_batch=3)
        for u in (units, Regions(labels))
    )
    for name, value in one.tensors().items():
        torch.testing.assert_close(
            two.tensors()[name][..., : value.shape[-1]], value, rtol=1e-9, atol=1e-9, equal_nan=True
        )


def test_units_of_each_sample_stay_with_it():
    """However the samples are divided."""
    x, labels = images(5), torch.randint(-1, 7, (5, 1, 12, 12), generator=torch.manual_seed(0))
    model = small_net().double()
    together = entropy(model, x, "8", units=Regions(labels))
    for rows in (1, 2):
        parts = entropy(model, x, "8", units=Regions(labels), max_batch=rows)
        assert torch.allclose(parts.entropy, together.entropy, atol=1e-9, equal_nan=True)
    for sample in range(5):
        rows = slice(sample, sample + 1)
        alone = entropy(model, x[rows], "8", units=Regions(labels[rows], n=7))
        assert torch.allclose(alone.entropy, together.entropy[rows], atol=1e-9, equal_nan=True)
    kappa = lipschitz(model, x, "8", together.sigma, units=Regions(labels), samples=2).kappa
    assert kappa.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regions(torch.rand(4, 4)), "labels are integers"),
        (lambda: Regions(torch.ones(4, 4) > 0), r"labels are integers.*mask\.long\(\) makes two"),
        (lambda: Regions(torch.full((4, 4), -1)), "all labels are negative: no element"),
        (lambda: Regions(torch.arange(4), n=3), "largest label is 3, the number of units n = 3"),
        (lambda: Regions(grid_labels(8, 2)).count(images()), r"\[8, 8\] do not broadcast"),
        (
            lambda: Regions(grid_labels(12, 2).expand(4, 12, 12)).count(images()),
            r"\[4, 12, 12\] do not broadcast .* try labels\[:, None\]$",
        ),
        (
            lambda: Regions(torch.zeros(4, 6).long()).count(sequences()),
            r"\[4, 6\] do not broadcast .* try labels\[..., None\]$",
        ),
        (
            lambda: entropy(
                small_net().double(), images(3), "8", units=Regions(torch.zeros(3, 12, 12).long())
            ),
            r"each sample or for each channel .*labels\[:, None\] or labels\[None\]",
        ),
        (lambda: Tokens(3), "bool .* got 3"),
        (lambda: Regions(torch.ones(4) + 0j), "labels are integers"),
        (lambda: Tokens(torch.tensor([[0, 2]])), r"bool .* got torch.int64 \(1, 2\)"),
        (
            lambda: Tokens(torch.ones(4, 5)).count(sequences()),
            r"\[4, 5\], the texts are \[4, 6, 5\]",
        ),
        (lambda: Tokens().count(torch.ones(2, 3)), r"\[B, T, E\]; got \(2, 3\)"),
    ],
)
def test_units_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_units_with_three_methods_are_enough():
    """The page's example: nothing but ``count``, ``spread`` and ``gather``."""

    class Words:
        def count(self, x: Tensor) -> int:
            return x.shape[1]

        def spread(self, values: Tensor, x: Tensor) -> Tensor:
            return values[..., None]

        def gather(self, elements: Tensor) -> Tensor:
            return elements.sum(-1)

    one, two = (entropy(Reader(), sequences(), "feature", units=u) for u in (Words(), Tokens()))
    assert torch.equal(one.entropy, two.entropy)


@pytest.mark.parametrize("units", ["tokens", "regions", "own"])
def test_padding_at_the_end_changes_nothing(units):
    """The noise of a position does not depend on how many follow, whatever the units are."""
    x, length = sequences(2, 40), torch.tensor([[7], [33]])
    counts = torch.arange(40) < length
    x = x * counts[..., None]

    def of(rows: slice, width: int):
        mask = counts[rows, :width]
        if units == "tokens":
            return Tokens(mask)
        return Regions(torch.arange(width).expand_as(mask).where(mask, -1)[..., None], n=40)

    if units == "own":
        one, two = (perturbed(Reader(), x[:, :w], Tokens()).normal(5, 0) for w in (7, 40))
        assert torch.equal(one, two[:, :, :7])
        return
    padded = entropy(Reader(), x, "feature", units=of(slice(0, 2), 40))
    for row, width in enumerate([7, 33]):
        rows = slice(row, row + 1)
        alone = entropy(Reader(), x[rows, :width], "feature", units=of(rows, width))
        assert torch.allclose(alone.entropy[0, :width], padded.entropy[row, :width], atol=1e-9)
        assert padded.entropy[row, width:].isnan().all()


# -------------------------------------------------------------------------------------------- masks


HALF = torch.tensor([[1, 1, 0, 0]] * 4)  # the left half of 4 x 4


@pytest.mark.parametrize(
    "masks",
    [
        HALF.bool()[None],
        HALF[None],
        HALF.float()[None],
        HALF.to(torch.uint8)[None] * 255,
        HALF.to(torch.uint8)[None, None] * 255,
        HALF[None].numpy(),
        HALF[None].double().numpy(),
        HALF[None].half(),
    ],
    ids=["bool", "0/1", "float", "0/255", "[N, 1, H, W]", "array", "float64", "half"],
)
def test_masks_are_read_in_every_form(masks):
    foreground, void = read_masks(masks)
    assert torch.equal(foreground, HALF.bool()[None])
    assert not void.any()
    assert ImageGrid(2).coverage(masks).tolist() == [[1, 0, 1, 0]]
    for form in (masks, masks.tolist()):
        covered, rest = covered_units(ImageGrid(2), np.zeros((1, 3, 4, 4)), form)
        assert covered.tolist() == [[True, False, True, False]]
        assert torch.equal(rest, ~covered)


def _rim() -> Tensor:
    masks = HALF[None].to(torch.uint8).clone()
    masks[0, 0] = 255
    return masks


def test_void_is_neither():
    wanted = HALF.bool()[None].clone()
    wanted[0, 0] = False
    for masks, void in (
        (_rim(), 255),
        (HALF[None], _rim() == 255),
        (HALF.bool()[None], _rim() == 255),
        (_rim().numpy(), np.uint8(255)),
        (_rim(), torch.tensor(255)),
        (HALF[None].tolist(), (_rim() == 255).numpy()),
        (HALF[None], (_rim() == 255)[:, None]),
    ):
        foreground, neither = read_masks(masks, void)
        assert torch.equal(foreground, wanted)
        assert torch.equal(neither, _rim() == 255)
    stripes = torch.where(_rim() == 255, 7, 255 * HALF[None])
    assert torch.equal(read_masks(stripes, void=7)[0], wanted)


@pytest.mark.parametrize(
    ("masks", "void", "message"),
    [
        (_rim(), None, "masks hold 0, 1, 255: say void=255"),
        (15 * HALF[None], None, r"masks hold 0, 15: say which are foreground, .*masks == 1"),
        (torch.where(_rim() == 255, 255, 15 * HALF[None]), 255, "masks hold 0, 15: say which"),
        (0.3 * HALF[None], None, "masks hold 0, 0.3: say where the foreground begins"),
        (torch.arange(16).reshape(1, 4, 4), None, r"hold 0, 1, 2, 3, 4, 5, 6, 7, \.\.\."),
        (HALF[None], torch.zeros(1, 4, 4), "void is a value, or bool like the masks"),
        (HALF[None], HALF.bool(), r"void is a value, or bool like the masks \(1, 4, 4\)"),
    ],
)
def test_ambiguous_masks_are_refused(masks, void, message):
    with pytest.raises(ValueError, match=message):
        read_masks(masks, void)


def test_units_between_foreground_and_background():
    """2 x 2 cells of four pixels: foreground, void, three of four void, and half void."""
    masks = torch.tensor([[1, 1, 255, 255], [1, 0, 255, 255], [255, 255, 1, 255], [255, 0, 255, 0]])
    x = torch.randn(1, 3, 4, 4)
    foreground, background = covered_units(ImageGrid(2), x, masks[None], void=255)
    assert foreground.tolist() == [[True, False, False, True]]
    assert background.tolist() == [[False, False, False, False]]
    stricter = covered_units(ImageGrid(2), x, masks[None], void=255, at_least=0.8)
    assert stricter[0].tolist() == [[False, False, False, False]]
    assert stricter[1].tolist() == [[True, False, False, True]]
    plain = covered_units(ImageGrid(2), x, HALF[None])
    assert plain[0].tolist() == [[True, False, True, False]]
    assert torch.equal(plain[1], ~plain[0])
    channels = HALF.expand(1, 3, 4, 4)
    assert torch.equal(covered_units(ImageGrid(2), x, channels)[0], plain[0])


def test_units_of_texts_and_regions_by_mask():
    x, marked = sequences(2, 4, 5), torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]])
    counts = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    foreground, background = covered_units(Tokens(counts), x, marked)
    assert foreground.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert background.tolist() == [[False, True, False, False], [True, False, False, False]]
    labels = torch.tensor([0, 0, 1, 1])[:, None]
    foreground, background = covered_units(Regions(labels), x, marked)
    assert foreground.tolist() == [[True, True], [True, False]]
    entropies = torch.tensor([[-3.0, -2.0], [-3.0, -2.0]])
    found = knowledge_points(entropies, foreground, background=background)
    assert found.n_fg[1] == 1


def test_what_an_error_of_coverage_advises_exists():
    """``coverage`` knows no void; the call that its error names does."""
    masks, x, grid = _rim(), torch.zeros(1, 3, 4, 4), ImageGrid(4)
    with pytest.raises(ValueError, match="masks hold 0, 1, 255") as raised:
        grid.coverage(masks)
    advice = re.search(r"kpnb\.(covered_units\(.*?\))\)", str(raised.value))[1]
    foreground, background = eval(
        advice, {"covered_units": covered_units, "units": grid, "x": x, "masks": masks}
    )
    assert torch.equal(foreground, (masks == 1).flatten(1))
    assert torch.equal(background, (masks == 0).flatten(1))


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (HALF, ValueError, r"\[B, H, W\] or \[B, 1, H, W\]; got \(4, 4\)"),
        (HALF.expand(2, 3, 4, 4), ValueError, r"got \(2, 3, 4, 4\)"),
        (HALF[None, ..., None].numpy(), ValueError, r"got \(1, 4, 4, 1\)"),
        (HALF[None, :1], ValueError, "grid of 2 x 2 cells does not fit an image of 1 x 4"),
        (HALF[None] * torch.nan, ValueError, "masks hold nan:"),
        (HALF[None] + 0j, TypeError, "masks hold real numbers"),
        ("mask.png", TypeError, "masks must come as a tensor or an array of numbers; got str"),
        (None, TypeError, "got NoneType"),
        ({"a": HALF}, TypeError, "got dict: pass one entry of 'a'"),
    ],
)
def test_masks_of_another_kind_are_named(masks, error, message):
    with pytest.raises(error, match=message):
        ImageGrid(2).coverage(masks)


def test_units_of_another_kind_are_named():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(TypeError, match="units are an object such as"):
        covered_units(2, x, HALF[None])
    with pytest.raises(TypeError, match=r"the input x must come .*got dict: pass one entry of 'x'"):
        covered_units(ImageGrid(2), {"x": x}, HALF[None])
    with pytest.raises(ValueError, match="at_least=2 is a share"):
        covered_units(ImageGrid(2), x, HALF[None], at_least=2)
    with pytest.raises(TypeError, match=r"rows=2\.5 must be a whole number"):
        ImageGrid(2.5)


def test_labels_and_masks_of_units_may_be_arrays():
    labels, kept = grid_labels(12, 3), torch.tensor([[1, 0, 1]])
    for given in (labels.numpy(), labels.to(torch.uint16), labels.tolist()):
        assert repr(Regions(given)) == repr(Regions(labels))
    for given in (kept.numpy(), kept.double().numpy(), kept.tolist(), kept.bool()):
        assert repr(Tokens(given)) == repr(Tokens(kept))


def test_masks_that_do_not_fit_are_named():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"masks \[2, 5, 4\] do not fit the input \[2, 3, 4, 4\]"):
        covered_units(ImageGrid(2), x, torch.ones(2, 5, 4))
    with pytest.raises(ValueError, match="could lack the second or the last dimension"):
        covered_units(Tokens(), torch.randn(2, 4, 4), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((3, 32, 32), r"x\[None\] is a batch of one image; .*kpnb\.Tokens\(\) for sequences"),
        ((4, 12, 5), r"\(4, 12, 5\) \(x\[:, None\] are grey .*kpnb\.Tokens\(\) for sequences"),
        ((4, 7), r"kpnb\.Regions\(labels\) for anything"),
    ],
)
def test_what_is_no_batch_of_images_is_told_what_fits(shape, remedy):
    with pytest.raises(ValueError, match=remedy):
        ImageGrid(4).count(torch.zeros(shape))


def test_masks_whose_foreground_is_called_void_are_told(caplog):
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[:, 2:5, 2:5] = 255
    read_masks(masks)
    labels = masks.copy()
    labels[0, 0, 0] = 1  # something is foreground
    read_masks(labels, void=255)
    assert not caplog.records
    foreground, _ = read_masks(masks, void=255)
    assert not foreground.any()
    assert "no element is foreground" in caplog.text


def test_swapped_arguments_of_covered_units_are_named():
    x = images(2)
    masks = (x[:, :1] > 0.5).float()
    for swapped in (masks, masks.bool(), (masks * 255).to(torch.uint8), masks[:, 0]):
        with pytest.raises(
            ValueError, match=r"the input comes first, kpnb\.covered_units\(units, x,"
        ):
            covered_units(ImageGrid(2), swapped, x)
    with pytest.raises(TypeError, match=r"units are an object such as .* got a tensor \[2, 3,"):
        covered_units(x, ImageGrid(2), masks)
    with pytest.raises(ValueError, match="masks hold 0, 7"):  # a mere placeholder of the input
        covered_units(ImageGrid(2), torch.zeros_like(x), 7 * masks)


def test_a_share_at_the_limit_counts_in_either_way():
    """For all k of n elements, where k / n is written in binary digits, and rounded."""
    units = ImageGrid(1)
    for n in range(2, 9):
        for k in range(1, n * n + 1):
            masks = (torch.arange(n * n) < k).view(1, n, n)
            inside, _ = covered_units(units, torch.zeros(1, 1, n, n), masks, at_least=k / n**2)
            assert inside.all(), (k, n)
