"""``kpnb.entropies`` on data that do not fit: one batch at a time, nothing is kept."""

import gc
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import kpnb
from tests.models import images, small_net
from tests.reads import Reads

GRID = kpnb.ImageGrid(4)
BATCHES = 6


def first_of_pair(x: Tensor) -> Any:
    return x, torch.zeros(len(x))


def mapping(x: Tensor) -> Any:
    return {"input": x}


class Watched:
    """Batches that are made when they are asked for; what is still in memory when the next one is.

    ``events`` is what happened in which order: a batch was made, or its result arrived.
    """

    def __init__(self, form: Any) -> None:
        self.form, self.made, self.alive, self.events = form, [], [], []

    def __iter__(self) -> Iterator[Any]:
        for number in range(BATCHES):
            self.alive.append(self.count())
            self.events.append("batch")
            x = images(2, seed=number)
            self.made.append(weakref.ref(x))
            yield self.form(x)
            del x  # this generator would keep it

    def count(self) -> int:
        return sum(made() is not None for made in self.made)


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Some tests switch the collector of cycles off: its moments are not ours to choose."""
    yield
    gc.enable()


@pytest.mark.parametrize("form", [lambda x: x, first_of_pair, mapping])
def test_a_batch_is_let_go_when_the_next_one_is_there(form):
    """One is alive while the next is made, as in any loop; of the results none is kept."""
    gc.disable()  # nothing waits for it
    batches, results = Watched(form), []
    how = {"perturb": "input"} if form is mapping else {}
    for found in kpnb.entropies(
        small_net().double(), batches, "8", units=GRID, progress=False, **how
    ):
        batches.events.append("result")
        results.append(weakref.ref(found))
        del found
    assert batches.events == ["batch", "result"] * BATCHES
    assert max(batches.alive) <= 1
    assert batches.count() == 0
    assert not any(result() for result in results)


def tensors() -> int:
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects())


def measured(model: nn.Module, x: Tensor, **how: Any) -> None:
    kpnb.entropy(model, x, ["5", "8"], units=GRID, **how)


def bounded(model: nn.Module, x: Tensor) -> None:
    kpnb.lipschitz(model, x, "8", torch.full((2, 16), 0.01).double(), units=GRID, samples=2)


def recorded(model: nn.Module, x: Tensor) -> None:
    foreground = torch.arange(16).expand(2, 16) < 5
    kpnb.trajectory(
        model, [model.state_dict(), small_net(seed=1).state_dict()], x, foreground, "8", units=GRID
    )


@pytest.mark.parametrize(
    "call",
    [
        measured,
        partial(measured, solver=kpnb.ClosedForm(rank=None)),
        partial(measured, solver=kpnb.Stochastic(steps=2, samples=4)),
        partial(measured, max_batch=1),
        lambda model, x: kpnb.capture(model, x, ["5", "8"]),
        bounded,
        recorded,
    ],
)
def test_a_call_leaves_nothing_that_waits_for_a_collection(call):
    """Cycles would keep the graph of a pass, which is most of the memory, until some time later."""
    model, x = small_net().double(), images(2).requires_grad_()
    call(model, x)
    gc.collect()
    gc.disable()
    before = tensors()
    for _ in range(2):
        call(model, x)
    assert tensors() == before


def test_units_of_a_batch_are_let_go_with_it():
    made = []

    def units(x: Tensor) -> kpnb.Regions:
        labels = torch.arange(x[0, 0].numel()).reshape(x.shape[2:]) // 36
        made.append(weakref.ref(labels))
        return kpnb.Regions(labels)

    most = 0
    batches = (images(2, seed=number) for number in range(BATCHES))
    for _ in kpnb.entropies(small_net().double(), batches, "8", units=units, progress=False):
        gc.collect()
        most = max(most, sum(one() is not None for one in made))
    assert len(made) == BATCHES
    assert most <= 2


class Endless(IterableDataset):
    """A stream that has no end, of single images with a label."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        number = 0
        while True:
            yield images(1, seed=number)[0], number % 5
            number += 1


def test_a_stream_without_an_end_is_measured_as_far_as_it_is_asked():
    loader = DataLoader(Endless(), batch_size=3)
    found = kpnb.entropies(small_net().double(), loader, "8", units=GRID, progress=False)
    one, two = next(found), next(found)
    whole = torch.cat([images(1, seed=number) for number in range(6)])
    wanted = kpnb.entropy(small_net().double(), whole, "8", units=GRID).entropy
    assert torch.allclose(torch.cat([one.entropy, two.entropy]), wanted, atol=1e-9)


@pytest.mark.parametrize("known", [True, False])
def test_progress_counts_batches(bars, known):
    """Of how many, where the batches have a length. No bar of its own for each of them."""
    batches = [images(2, seed=number) for number in range(BATCHES)]
    given, seen = batches if known else (x for x in batches), []
    for _ in kpnb.entropies(small_net().double(), given, "8", units=GRID):
        seen.append(len(bars[0].steps))
    (bar,) = bars
    assert seen == list(range(BATCHES))  # a batch is done when the next one is asked for
    assert bar.steps == [1] * BATCHES
    assert (bar.options["total"], bar.options["unit"]) == (BATCHES if known else None, "batch")
    assert bar.closed


def test_nothing_is_shown_where_that_is_asked_for(bars):
    list(kpnb.entropies(small_net().double(), [images(2)], "8", units=GRID, progress=False))
    assert not bars


@pytest.mark.parametrize("max_batch", [1, 2, 3, 32])
@pytest.mark.parametrize("layers", ["8", ["5", "8"]])
def test_progress_of_one_batch_counts_its_samples(bars, max_batch, layers):
    kpnb.entropy(small_net().double(), images(5), layers, units=GRID, max_batch=max_batch)
    (bar,) = bars
    assert (bar.options["total"], bar.options["unit"]) == (5, "sample")
    assert bar.steps == [min(max_batch, 5 - done) for done in range(0, 5, max_batch)]
    assert bar.closed
    how = {"max_batch": max_batch, "progress": False}
    kpnb.entropy(small_net().double(), images(5), layers, units=GRID, **how)
    assert len(bars) == 1


def test_the_bar_goes_away_with_a_failure_and_with_a_break(bars):
    def failing() -> Iterator[Tensor]:
        yield images(2)
        raise OSError("the disk is gone")

    model = small_net().double()
    with pytest.raises(OSError, match="the disk is gone"):
        list(kpnb.entropies(model, failing(), "8", units=GRID))
    for _ in kpnb.entropies(model, [images(2)] * 3, "8", units=GRID):
        break
    gc.collect()
    assert [(bar.steps, bar.closed) for bar in bars] == [([1], True), ([], True)]


def test_a_call_reads_no_number_of_its_batches():
    """A card would have to be waited for each time: what is read does not grow with the batches."""
    counts = []
    for batches in (2, 6):
        with Reads() as seen:
            measured(small_net().double(), images(4 * batches), max_batch=4)
        counts.append(seen.count)
    assert counts[0] == counts[1]


# ---- what samples share, where batches tell it and nobody says it


class Scaled(nn.Module):
    """A linear layer of inputs ``[B, 4]`` with another scale of each, ``[4]`` or ``[B, 4]``."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, width)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x * scale)


SCALE = torch.tensor([1.0, 5.0, 0.2, 3.0])
SCALED = {"units": kpnb.Regions(torch.arange(4)[None]), "perturb": "x", "progress": False}


def rows(count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [6, 60])
@pytest.mark.parametrize("max_batch", [1, 2, 4, 32])
def test_what_all_share_is_no_row_of_each_where_a_batch_has_its_size(width, max_batch):
    """Batches of 5, 4 and 4 samples with one scale of 4 numbers."""
    model, x, how = Scaled(width), rows(13), SCALED | {"max_batch": max_batch}
    batches = [{"x": part, "scale": SCALE} for part in x.split([5, 4, 4])]
    parts = list(kpnb.entropies(model, batches, "layer", shared="scale", **how))
    each = kpnb.entropy(model, {"x": x, "scale": SCALE.expand(13, 4)}, "layer", **SCALED)
    torch.testing.assert_close(torch.cat([part.entropy for part in parts]), each.entropy)
    assert parts[1].settings == each.settings | {"shared": ["scale"]}


def test_rows_of_which_a_batch_has_another_number_are_named():
    """Of 4 samples in the first batch, which nobody has looked at, and 5 in the second."""
    batches = [{"x": part, "scale": SCALE.numpy()} for part in rows(9).split([4, 5])]
    found = kpnb.entropies(Scaled(), batches, "layer", check=False, max_batch=1, **SCALED)
    next(found)
    with pytest.raises(ValueError, match=r"'scale' \[4\] has no row for each of the 5") as raised:
        next(found)
    assert raised.value.__notes__ == ["in batch 1"]
    assert next(kpnb.entropies(Scaled(), batches[1:], "layer", shared="scale", **SCALED))


def test_a_first_size_of_one_tells_nothing():
    """Neither of a batch of one nor of what is laid over all samples."""
    x = rows(6)
    scales = [SCALE[None], torch.rand(3, 4) + 0.5, SCALE[None]]
    batches = [{"x": p, "scale": s} for p, s in zip(x.split([1, 3, 2]), scales, strict=True)]
    parts = kpnb.entropies(Scaled(), batches, "layer", max_batch=2, **SCALED)
    each = torch.cat([scales[0], scales[1], SCALE.expand(2, 4)])
    wanted = kpnb.entropy(Scaled(), {"x": x, "scale": each}, "layer", **SCALED)
    torch.testing.assert_close(torch.cat([part.entropy for part in parts]), wanted.entropy)


def test_a_batch_with_an_input_that_none_before_had_is_looked_at():
    """A scale of 4 numbers that comes with the second batch, of 4 samples, is taken for one of
    each.
    """

    class Optional(Scaled):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return super().forward(x, torch.ones(4) if scale is None else scale)

    one, two = rows(8).split(4)
    batches = [{"x": one}, {"x": two, "scale": SCALE}]
    found = kpnb.entropies(Optional(), batches, "layer", max_batch=1, **SCALED)
    next(found)
    with pytest.raises(ValueError, match=r"not clear\. Of 'scale'.*shared='scale'"):
        next(found)
