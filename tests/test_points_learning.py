"""Eq. 5-9 on sequences worked out by hand, and what is undefined."""

import math

import numpy as np
import pytest
import torch

from kpnb.entropy import Entropy
from kpnb.learning import (
    d_mean_var,
    detour_ratio,
    learning_distance,
    richest_epoch,
    step_norms,
    weight_distance,
)
from kpnb.metrics import Choices, six_metrics
from kpnb.points import (
    background_level,
    foreground_units,
    knowledge_points,
    released_filter,
    summarise,
)

# Two images of six units; the first three are foreground. H-bar is -2.0 for the first image, -3.0
# for the second.
FOREGROUND = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2, dtype=torch.bool)
ENTROPY = torch.tensor(
    [
        [-2.5, -2.1, -2.3, -2.4, -1.7, -1.9],
        [-3.0, -2.0, -3.1, -3.0, -3.0, -3.0],
    ],
    dtype=torch.float64,
)


def test_counts_and_lambda_by_hand():
    found = knowledge_points(ENTROPY, FOREGROUND)
    assert torch.allclose(
        background_level(ENTROPY, ~FOREGROUND).flatten(), torch.tensor([-2.0, -3.0]).double()
    )
    assert found.points.tolist() == [[True, False, True, True, False, False], [False] * 6]
    assert found.n_fg.tolist() == [2, 0]
    assert found.n_bg.tolist() == [1, 0]
    assert found.ratio[0] == 2 / 3
    assert found.ratio[1].isnan()  # no knowledge point at all: lambda is undefined, not 0
    assert summarise(found.ratio) == summarise(
        torch.tensor([2 / 3, torch.nan], dtype=torch.float64)
    )
    assert (summarise(found.ratio).defined, summarise(found.ratio).undefined) == (1, 1)


def test_threshold_is_strict_and_grows():
    entropy = torch.tensor(
        [[-2.25, -2.5, -2.0]], dtype=torch.float64
    )  # binary fractions: 0.25 below exactly
    foreground = torch.tensor([[True, True, False]])
    assert knowledge_points(entropy, foreground, b=0.25).n_fg.tolist() == [1]
    assert knowledge_points(entropy, foreground, b=0.2).n_fg.tolist() == [2]
    assert knowledge_points(entropy, foreground, b=0.5).n_fg.tolist() == [0]


def test_points_ignore_a_shift_of_each_image_but_the_dataset_level_does_not():
    shifted = ENTROPY + torch.tensor([[1.0], [-2.0]])
    for entropy in (ENTROPY, shifted):
        assert knowledge_points(entropy, FOREGROUND).n_fg.tolist() == [2, 0]
    # released: H-bar is the mean -2.5 of both images' backgrounds
    released = knowledge_points(ENTROPY, FOREGROUND, level="dataset")
    assert released.n_fg.tolist() == [0, 2]
    assert released.n_bg.tolist() == [0, 3]
    with pytest.raises(ValueError, match="unknown level 'batch'; known: 'image', 'dataset'"):
        knowledge_points(ENTROPY, FOREGROUND, level="batch")


def test_epoch_axis_is_kept():
    stacked = torch.stack([ENTROPY, ENTROPY.flip(0)])
    found = knowledge_points(stacked, FOREGROUND)
    assert found.n_fg.tolist() == [[2, 0], [0, 2]]
    assert found.on_foreground.shape == (2, 2, 6)


def test_images_without_a_region_are_undefined_and_counted():
    foreground = torch.stack([FOREGROUND[0], torch.ones(6, dtype=torch.bool)])
    found = knowledge_points(ENTROPY, foreground)
    assert found.n_fg.tolist()[0] == 2
    assert found.n_fg[1].isnan()
    assert found.n_bg[1].isnan()
    nothing = torch.stack([FOREGROUND[0], torch.zeros(6, dtype=torch.bool)])
    assert knowledge_points(ENTROPY, nothing).ratio[1].isnan()
    assert summarise(knowledge_points(ENTROPY, nothing).n_fg).undefined == 1
    spoiled = ENTROPY.clone()
    spoiled[1] = torch.nan
    assert knowledge_points(spoiled, FOREGROUND).n_fg.isnan().tolist() == [False, True]


@pytest.mark.parametrize("level", ["image", "dataset"])
@pytest.mark.parametrize("region", [FOREGROUND, ~FOREGROUND], ids=["foreground", "background"])
def test_a_region_of_nothing_but_nan_is_none(region, level):
    """In the second epoch, of the second image; it has points in the other region."""
    other = torch.tensor([-2.0, -2.1, -9.0, -2.0, -2.1, -9.0], dtype=torch.float64)
    epochs = torch.stack([ENTROPY, torch.stack([ENTROPY[0], other]), ENTROPY])
    epochs[1, 1, region[1]] = torch.nan
    found = knowledge_points(epochs, FOREGROUND, level=level)
    assert found.defined.tolist() == [[True, True], [True, False], [True, True]]
    for value in (found.n_fg, found.n_bg):
        assert torch.equal(value.isnan(), ~found.defined)
    assert found.ratio[1, 1].isnan()


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_an_image_whose_foreground_is_nan_has_none_of_the_metrics(empty):
    """All of its foreground is special tokens, say; of the first image nothing changes."""
    epochs = torch.stack([ENTROPY] * 3)
    epochs[:, 1] = torch.tensor([torch.nan] * 3 + [-2.0, -2.1, -9.0], dtype=torch.float64)
    choices = Choices(empty=empty)
    found = six_metrics(epochs, FOREGROUND, [0.0, 0.5, 1.0], choices)
    alone = six_metrics(epochs[:, :1], FOREGROUND[:1], [0.0, 0.5, 1.0], choices)
    assert set(found.undefined().values()) == {1}
    assert found.row() == alone.row()


def test_units_that_do_not_exist_are_ignored():
    """Padding (NaN at every epoch) changes neither level nor counts; NaN at one epoch makes that
    epoch undefined.
    """
    padded = torch.cat([ENTROPY, torch.full((2, 3), torch.nan)], 1)
    wider = torch.cat([FOREGROUND, torch.zeros(2, 3, dtype=torch.bool)], 1)
    assert torch.equal(background_level(padded, ~wider), background_level(ENTROPY, ~FOREGROUND))
    plain, found = knowledge_points(ENTROPY, FOREGROUND), knowledge_points(padded, wider)
    assert torch.equal(found.points[:, :6], plain.points)
    assert not found.points[:, 6:].any()
    for name in ("n_fg", "n_bg", "ratio"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), equal_nan=True)
    dead = torch.stack([torch.full_like(padded, torch.nan), padded])
    assert knowledge_points(dead, wider).n_fg.isnan().tolist() == [[True, True], [False, False]]


def test_units_of_neither_region_are_not_counted():
    background = torch.tensor([[0, 0, 0, 1, 1, 0]] * 2, dtype=torch.bool)
    spoiled = ENTROPY.clone()
    spoiled[:, 5] = torch.nan  # padding
    found = knowledge_points(
        spoiled, FOREGROUND, background=background
    )  # H-bar of the first image: -2.05
    assert found.points[0].tolist() == [True, False, True, True, False, False]
    assert found.defined.all()


def test_wrong_regions_are_refused():
    with pytest.raises(
        ValueError, match=r"foreground must be bool with the shape \(2, 6\).*\(2, 5\)"
    ):
        knowledge_points(ENTROPY, FOREGROUND[:, :5])
    with pytest.raises(ValueError, match=r"foreground must be bool.*float32"):
        knowledge_points(ENTROPY, FOREGROUND.float(), background=~FOREGROUND)
    with pytest.raises(ValueError, match="no image has a background unit"):
        knowledge_points(ENTROPY, torch.ones_like(FOREGROUND))
    with pytest.raises(ValueError, match="no image has a foreground unit"):
        knowledge_points(ENTROPY, torch.zeros_like(FOREGROUND))
    with pytest.raises(ValueError, match="on the foreground and on the background"):
        knowledge_points(ENTROPY, FOREGROUND, background=torch.ones_like(FOREGROUND))


def test_foreground_units_by_coverage():
    assert foreground_units(torch.tensor([[0.5, 0.49, 1.0]])).tolist() == [[True, False, True]]
    assert foreground_units(torch.tensor([[0.5, 0.49, 0.1]]), at_least=0.2).tolist() == [
        [True, True, False]
    ]


def test_released_filter_keeps_images_whose_background_is_discarded_more():
    """Foreground means -2.3 and -2.7, background -2.0 and -3.0."""
    epochs = torch.stack([-ENTROPY, ENTROPY])
    assert released_filter(epochs, FOREGROUND, ~FOREGROUND).tolist() == [True, False]
    assert released_filter(epochs, FOREGROUND, ~FOREGROUND, late=2).tolist() == [False, False]


def test_released_filter_looks_at_the_background_that_is_given():
    """Of the first image the units that are neither would lift it above the foreground."""
    entropy = torch.tensor([[-2.0, -2.5, 0.0, 0.0], [-2.0, -1.5, 0.0, 0.0]]).repeat(2, 1, 1)
    foreground = torch.tensor([[True, False, False, False]]).repeat(2, 1)
    background = torch.tensor([[False, True, False, False]]).repeat(2, 1)
    for given, kept in ((background, [False, True]), (None, [True, True])):
        found = six_metrics(
            entropy, foreground, [0.0, 1.0], Choices(filtered=True), background=given
        )
        assert (~found.n_fg.isnan()).tolist() == kept


def test_weight_distance_by_hand():
    """||w_0|| = 5; steps of length 1, 2 and 0.5 in two parameters."""
    initial = {"a": 3.0, "b": 4.0}
    steps = [{"a": 0.6, "b": 0.8}, {"a": 2.0, "b": 0.0}, {"a": 0.0, "b": 0.5}]
    assert torch.allclose(
        weight_distance(initial, steps), torch.tensor([0, 0.2, 0.6, 0.7]).double()
    )
    only_a = weight_distance(initial, steps, ["a"])
    assert torch.allclose(only_a, torch.tensor([0, 0.2, 2.6 / 3, 2.6 / 3]).double())
    with pytest.raises(LookupError, match=r"\['c'\]; known: \['a', 'b'\]"):
        weight_distance(initial, steps, ["c"])
    with pytest.raises(ValueError, match=r"parameters \['b'\] are all 0 at the start"):
        weight_distance(initial | {"b": 0.0}, steps, ["b"])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_steps_of_complex_parameters_are_those_of_their_parts(dtype):
    before = {"w": torch.tensor([1 + 1j, 2j, 0], dtype=dtype), "b": torch.zeros(2)}
    now = {"w": torch.tensor([4 + 1j, 2 - 2j, -1j], dtype=dtype), "b": torch.tensor([3.0, 4.0])}
    assert step_norms(before) == pytest.approx({"w": 6**0.5, "b": 0.0})
    assert step_norms(now, before) == pytest.approx({"w": 30**0.5, "b": 5.0})
    assert step_norms({"w": now["w"].conj()}) == pytest.approx({"w": 26**0.5})


N_FG = torch.tensor(
    [[9, 1, 0], [2, 1, 0], [5, 3, 0], [5, 2, 0]], dtype=torch.float64
)  # epochs 0..3, three images


def test_learning_distance_by_hand():
    distance = torch.tensor([0.0, 0.2, 0.6, 0.7], dtype=torch.float64)
    assert richest_epoch(N_FG).tolist()[:2] == [
        2,
        2,
    ]  # epoch 0 does not count, the earliest of equals does
    assert richest_epoch(N_FG, first=0).tolist()[:2] == [0, 2]
    found = learning_distance(N_FG, distance)
    assert found[:2].tolist() == [0.6, 0.6]
    assert found[2].isnan()  # never a foreground knowledge point
    assert d_mean_var(found) == (0.6, 0.0)
    released = learning_distance(N_FG, distance, first=0)
    mean, variance = d_mean_var(released)
    assert (mean, variance) == (
        pytest.approx(0.3),
        pytest.approx(0.09),
    )  # population variance of 0 and 0.6
    assert all(math.isnan(v) for v in d_mean_var(found[2:]))
    with pytest.raises(ValueError, match="4 epochs of counts, but 3"):
        learning_distance(N_FG, distance[:3])


def test_detour_ratio_by_hand():
    sets = torch.zeros(4, 3, 5, dtype=torch.bool)
    sets[0, 0, 4] = True  # epoch 0 only: not in the paper's union
    sets[1, 0, :3] = True
    sets[2, 0, 1:4] = True
    sets[3, 0, 2:4] = True  # union {0, 1, 2, 3}, kept {2, 3}
    sets[1:, 1, 0] = True  # no detour at all
    rho = detour_ratio(sets)
    assert rho.tolist()[:2] == [0.5, 1.0]
    assert rho[2].isnan()
    assert detour_ratio(sets, empty="zero")[2] == 0
    assert detour_ratio(sets, first=0)[0] == 2 / 5
    with pytest.raises(ValueError, match="unknown empty 'skip'; known: 'nan', 'zero'"):
        detour_ratio(sets, empty="skip")


def test_detour_ratio_of_a_single_epoch_is_one():
    generator = torch.Generator().manual_seed(0)
    sets = torch.rand(2, 50, 30, generator=generator) > 0.7
    rho = detour_ratio(sets)
    assert (rho[~rho.isnan()] == 1).all()


# ----------------------------------------------------------------------- arrays, lists, other kinds


@pytest.mark.parametrize("form", [torch.Tensor.numpy, torch.Tensor.tolist], ids=["array", "list"])
def test_arrays_and_lists_give_what_tensors_give(form):
    epochs, distance = torch.stack([ENTROPY, ENTROPY.flip(0), ENTROPY]), torch.arange(3.0)
    wanted = knowledge_points(epochs, FOREGROUND)
    found = knowledge_points(form(epochs), form(FOREGROUND), background=form(~FOREGROUND))
    assert torch.equal(found.points, wanted.points)
    assert torch.equal(found.n_fg, wanted.n_fg)
    one, two = (
        six_metrics(e, f, d).row()
        for e, f, d in (
            (epochs, FOREGROUND, distance),
            (form(epochs), form(FOREGROUND), form(distance)),
        )
    )
    assert one == pytest.approx(two, nan_ok=True)
    assert summarise(form(wanted.n_fg[0])) == summarise(wanted.n_fg[0])
    learned = learning_distance(wanted.n_fg, distance)
    assert torch.equal(learning_distance(form(wanted.n_fg), form(distance)), learned)
    assert d_mean_var(form(learned)) == d_mean_var(learned)
    held = wanted.on_foreground
    torch.testing.assert_close(detour_ratio(form(held)), detour_ratio(held), equal_nan=True)
    share = torch.tensor([[0.2, 0.7]])
    assert torch.equal(foreground_units(form(share)), foreground_units(share))


RESULT = Entropy(*[ENTROPY] * 6, settings={})


@pytest.mark.parametrize(
    ("entropy", "foreground", "error", "message"),
    [
        (RESULT, FOREGROUND, TypeError, r"entropy must come .*got Entropy: pass its \.entropy"),
        ({"8": ENTROPY}, FOREGROUND, TypeError, "got dict: pass one entry of '8'"),
        (ENTROPY + 0j, FOREGROUND, TypeError, "entropy holds real numbers"),
        (None, FOREGROUND, TypeError, "entropy must come as a tensor .*NoneType"),
        (ENTROPY, None, TypeError, "foreground must come as a tensor"),
        (ENTROPY[0], FOREGROUND[0], ValueError, r"a single image is entropy\[None\]"),
        (ENTROPY, FOREGROUND[None], ValueError, r"got torch.bool \(1, 2, 6\)"),
        (ENTROPY, FOREGROUND.double().numpy(), ValueError, r"float64 .*kpnb.foreground_units"),
        (ENTROPY, FOREGROUND.to(torch.uint8), ValueError, "must be bool .*torch.uint8"),
        (ENTROPY, np.ones((2, 12, 12), bool), ValueError, r"got torch.bool \(2, 12, 12\)"),
        (ENTROPY[:0], FOREGROUND[:0], ValueError, "no image has a foreground unit"),
    ],
)
def test_entropies_and_regions_that_do_not_fit_are_named(entropy, foreground, error, message):
    with pytest.raises(error, match=message):
        knowledge_points(entropy, foreground)
    epochs = torch.stack([entropy] * 2) if isinstance(entropy, torch.Tensor) else entropy
    if error is TypeError or epochs.dim() == 3:
        with pytest.raises(error, match=message):
            six_metrics(epochs, foreground, [0.0, 1.0])


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: knowledge_points(ENTROPY, FOREGROUND, b=-0.2), ValueError, "b=-0.2 must not be"),
        (lambda: knowledge_points(ENTROPY, FOREGROUND, b="0.2"), TypeError, "must be a number"),
        (lambda: six_metrics([ENTROPY.tolist()] * 2, FOREGROUND, [0.0]), ValueError, "2 epochs of"),
        (
            lambda: six_metrics(torch.stack([ENTROPY] * 2), FOREGROUND, [0, 1], 0.2),
            TypeError,
            "Choi",
        ),
        (lambda: summarise(ENTROPY), ValueError, r"one for each image; got .*\(2, 6\)"),
        (lambda: summarise("abc"), TypeError, "values must come as a tensor"),
        (lambda: foreground_units(torch.ones(2, 4, 4)), ValueError, r"units\.coverage\(masks\)"),
        (lambda: foreground_units([[0, 255]]), ValueError, "from 0 to 1"),
        (lambda: foreground_units([[0, 1]], at_least=0), ValueError, "above 0 and at most 1"),
        (lambda: learning_distance([1, 2], [0, 1]), ValueError, "epochs first"),
        (lambda: learning_distance(torch.ones(2, 3), [0, 1], first=2), ValueError, "are 0 to 1"),
        (lambda: learning_distance(torch.ones(2, 3), [0, 1], first=-1), ValueError, "are 0 to 1"),
        (lambda: detour_ratio(torch.ones(2, 3, 4)), ValueError, "bool .*torch.float32"),
        (lambda: detour_ratio(torch.ones(2, 3) > 0), ValueError, r"bool \[M \+ 1, N, n\]"),
        (lambda: d_mean_var(None), TypeError, "distances must come as a tensor"),
        (lambda: weight_distance({"w": torch.ones(2)}, []), TypeError, "step_norms"),
        (lambda: weight_distance({"w": 1.0}, {"w": 1.0}), TypeError, "step_norms"),
        (lambda: weight_distance(1.0, [1.0]), TypeError, "step_norms"),
        (lambda: weight_distance({"w": 1.0}, [{"w": 1.0}, {}]), LookupError, r"epoch 2 .*\['w'\]"),
    ],
)
def test_what_does_not_fit_is_named(ask, error, message):
    with pytest.raises(error, match=message):
        ask()
