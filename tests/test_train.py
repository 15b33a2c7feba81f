"""kpnb.distill without a store: against loops of plain PyTorch, on any network, data and folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import BaseModelOutputWithPooling

from kpnb import distill
from kpnb._signature import digest_of
from kpnb.checkpoints import Artefacts, Checkpoints
from kpnb.distill import TensorData, seeded
from kpnb.losses import (
    LOSSES,
    Loss,
    TrainingObjective,
    cross_entropy,
    feature,
    feature_at,
    labels_only,
    softened_output,
)
from kpnb.schedule import Schedule
from kpnb_book.store import Store
from kpnb_book.studies import training
from kpnb_book.studies.training import Source, taught
from tests.reads import Reads
from tests.test_distill import Points, mlp, one_thread, same  # noqa: F401 - a fixture


def points(count: int = 37, seed: int = 0) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return TensorData(x, torch.randint(0, 3, (count,), generator=generator))


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    return mlp(seed, dropout).double()


def smooth(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
        return nn.Sequential(*layers).double()


# ---------------------------------------------------------------- the same weights as plain PyTorch


@pytest.mark.parametrize("adamw", [False, True], ids=["SGD", "AdamW"])
def test_a_baseline_is_what_a_plain_loop_gives(adamw: bool):
    data, schedule = points(), Schedule(epochs=3, lr=0.02, batch_size=8, seed=5, adamw=adamw)
    found = distill.baseline(network(), data, schedule)

    model = network().train()
    kind = {False: torch.optim.SGD, True: torch.optim.AdamW}[adamw]
    more = {"betas": (0.9, 0.999)} if adamw else {"momentum": 0.9}
    optimiser = kind(model.parameters(), lr=0.02, weight_decay=1e-4, **more)
    for epoch in (1, 2, 3):
        with seeded(5, epoch):
            order = torch.randperm(len(data))
        for batch in order.split(8):
            optimiser.zero_grad()
            F.cross_entropy(model(data.x[batch]), data.y[batch]).backward()
            optimiser.step()

    torch.testing.assert_close(found.state(), dict(model.state_dict()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adamw", [False, True], ids=["SGD", "AdamW"])
def test_student_and_head_are_what_plain_loops_give(adamw: bool):
    """||f_T - f_S||^2 at a layer, then the labels' loss on frozen features."""
    data, teacher = points(), smooth(1)
    schedule = Schedule(epochs=2, lr=0.02, batch_size=37, weight_decay=0.0, adamw=adamw)
    scale = {"scale": "sum"}
    learned = distill.student(smooth(), teacher, "2", data, schedule, parameters=scale)
    whole = distill.head(learned.load(smooth()), "2", data, schedule)

    model, kind = smooth(), torch.optim.AdamW if adamw else torch.optim.SGD
    more = {"betas": (0.9, 0.999)} if adamw else {"momentum": 0.9}
    below, above, target = model[:3], model[3:], teacher[:3](data.x).detach()
    optimiser = kind(below.parameters(), lr=0.02, weight_decay=0.0, **more)
    for _ in range(2):
        optimiser.zero_grad()
        (below(data.x) - target).square().sum(1).mean().backward()
        optimiser.step()
    torch.testing.assert_close(learned.state(), dict(model.state_dict()), rtol=1e-9, atol=1e-9)

    features = below(data.x).detach()
    optimiser = kind(above.parameters(), lr=0.02, weight_decay=0.0, **more)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(above(features), data.y).backward()
        optimiser.step()
    torch.testing.assert_close(whole.state(), dict(model.state_dict()), rtol=1e-9, atol=1e-9)


def test_a_loss_at_two_layers_with_labels():
    data, teacher, model = points(20), network(1).eval(), network().eval()
    objective = TrainingObjective("feature", ("0", "2"), parameters={"scale": "mean"}, labels=0.5)
    schedule = Schedule(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=20)
    found = distill.train(network(), data, schedule, objective, teacher=teacher)
    model.train()
    first, second = model[:1](data.x), model[:3](data.x)
    loss = (first - teacher[:1](data.x)).square().mean()
    loss = loss + (second - teacher[:3](data.x)).square().mean()
    loss = loss + 0.5 * F.cross_entropy(model[3:](second), data.y)
    loss.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(found.state()[name], expected, rtol=1e-9, atol=1e-9)
    assert found.log[1]["loss"] == pytest.approx(loss.item())


def cosine_distance(student: Tensor, teacher: Tensor, power: float = 1.0) -> Tensor:
    return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))).pow(power).mean()


def test_a_new_loss_is_a_function_and_a_line(monkeypatch):
    monkeypatch.setitem(LOSSES, "cosine", Loss(cosine_distance))
    objective = TrainingObjective("cosine", ("4",), parameters={"power": 2.0})
    schedule, data = Schedule(epochs=30, lr=0.5, batch_size=20), points(40)
    log = distill.train(network(), data, schedule, objective, teacher=network(1)).log
    assert log[-1]["loss"] < 0.2 * log[1]["loss"]
    with pytest.raises(ValueError, match="unknown parameter of cosine 'pow'; did you mean 'power'"):
        TrainingObjective("cosine", parameters={"pow": 2.0})


def test_feature_scales_by_hand():
    ours, theirs = torch.ones(2, 3, 2), torch.zeros(2, 3, 2)
    assert [feature(ours, theirs, scale).item() for scale in ("sum", "mean")] == [6, 1]
    assert feature(ours, theirs, energy=12.0) == 0.5


# ------------------------------------------------------------------------------ what stays as it is


@pytest.mark.parametrize("adamw", [False, True], ids=["SGD", "AdamW"])
def test_parameters_that_were_frozen_stay_frozen(adamw: bool):
    """With a strong decay, which would shrink them; so do statistics of frozen normalisations."""
    data, teacher = points(), network(1)
    model = network()
    model[:2].requires_grad_(False)
    schedule = Schedule(epochs=2, lr=0.1, weight_decay=0.5, batch_size=8, adamw=adamw)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for found in (
        distill.baseline(model, data, schedule),
        distill.student(model, teacher, "4", data, schedule),
        distill.train(model, data, schedule, softened_output(), teacher=teacher),
        distill.head(model, "0", data, schedule),
    ):
        end = found.state()
        assert {key for key in start if torch.equal(start[key], end[key])} >= {
            key for key in start if key[0] in "01"
        }
        assert not torch.equal(start["4.weight"], end["4.weight"])
        assert not found.paths()[1].keys() & {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 4


def test_nothing_to_train_is_named():
    with pytest.raises(ValueError, match="nothing to train: all parameters are frozen"):
        distill.baseline(network().requires_grad_(False), points(), Schedule(epochs=1))


def test_it_trains_where_gradients_are_switched_off():
    data, schedule = points(), Schedule(epochs=1)
    expected = distill.baseline(network(), data, schedule).state()
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert same(distill.baseline(network(), data, schedule).state(), expected)


# -------------------------------------------------------------------------------- networks and data


class Pair(nn.Module):
    """Two inputs by name, a dict for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Linear(5, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, signal: Tensor, context: Tensor) -> dict[str, Tensor]:
        return {"logits": self.end(torch.tanh(self.a(signal) + self.b(context)))}


def test_inputs_and_outputs_may_be_mappings():
    plain = points(30)
    context = torch.randn(30, 2, dtype=torch.float64)
    data = TensorData({"context": context, "signal": plain.x}, plain.y)
    model, schedule = Pair().double(), Schedule(epochs=2, lr=0.1, batch_size=30, momentum=0.0)
    found = distill.baseline(model, data, schedule, test=data)
    for _ in range(2):
        model.zero_grad()
        F.cross_entropy(model(plain.x, context)["logits"], plain.y).backward()
        for parameter in model.parameters():
            step = parameter.grad + 1e-4 * parameter.detach()
            parameter.data -= 0.1 * step
    torch.testing.assert_close(found.state(), dict(model.state_dict()), rtol=1e-9, atol=1e-9)
    chosen = model(plain.x, context)["logits"].argmax(1)
    assert found.accuracy == (chosen == plain.y).double().mean().item()


class Recurrent(nn.Module):
    """An LSTM, which returns tuples, and a prediction from its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.end = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.end(self.lstm(x)[0][:, -1]), "more"


def test_layers_and_networks_may_return_tuples():
    data = TensorData(torch.randn(24, 7, 3), torch.arange(24) % 2)
    schedule = Schedule(epochs=3, lr=0.3, batch_size=12)
    learned = distill.student(Recurrent(), Recurrent(), "lstm", data, schedule, test=data)
    assert learned.log[3]["test_feature_error"] < learned.log[0]["test_feature_error"]
    assert distill.head(learned.load(Recurrent()), "lstm", data, schedule).log[3]["accuracy"] > 0


class Wrapped(nn.Module):
    """``smooth`` in two blocks, whose outputs ``wrap`` puts beside another tensor."""

    def __init__(self, seed: int, wrap, unwrap) -> None:
        super().__init__()
        layers = smooth(seed)
        self.below, self.above = Wrapping(layers[:3], wrap), Wrapping(layers[3:], wrap)
        self.unwrap = unwrap

    def forward(self, x: Tensor) -> Any:
        return self.above(self.unwrap(self.below(x)))


class Wrapping(nn.Module):
    def __init__(self, inner: nn.Module, wrap) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: Tensor) -> Any:
        found = self.inner(x)
        return self.wrap(found, torch.zeros_like(found))


# how a block returns a tensor beside another; how it is had; what has to be said to have it
WRAPPINGS = {
    "dict": (lambda f, o: {"other": o, "logits": f}, lambda out: out["logits"], "logits"),
    "tuple": (lambda f, o: (o, f), lambda out: out[1], 1),
    "nested": (lambda f, o: {"all": [o, (f,)]}, lambda out: out["all"][1][0], ("all", 1, 0)),
    "model output": (
        lambda f, o: BaseModelOutputWithPooling(last_hidden_state=o, pooler_output=f),
        lambda out: out.pooler_output,
        "pooler_output",
    ),
}


@pytest.mark.parametrize("form", WRAPPINGS)
@pytest.mark.parametrize("both", [True, False], ids=["both", "student"])
def test_the_part_of_an_output_can_be_named(form: str, both: bool):
    """The same weights as without wrapping: baseline, student at a layer and at its end, head."""
    wrap, unwrap, key = WRAPPINGS[form]
    data, schedule = points(24), Schedule(epochs=2, lr=0.1, batch_size=8)
    plain = (lambda f, o: f), (lambda out: out)
    teacher = Wrapped(1, *((wrap, unwrap) if both else plain))

    def trained(how, select, theirs) -> list[dict[str, Tensor]]:
        model = Wrapped(0, *how)
        one = {} if select is None else {"select": select}
        two = one | ({} if select is None else {"teacher_select": theirs})
        learned = distill.student(model, teacher_for[how], "below", data, schedule, **two)
        everywhere = {"": select, "below": select} if select is not None else None
        return [
            distill.baseline(model, data, schedule, test=data, **one).state(),
            learned.state(),
            distill.train(
                model, data, schedule, softened_output(), teacher=teacher_for[how], **two
            ).state(),
            distill.head(
                learned.load(Wrapped(0, *how)), "below", data, schedule, select=everywhere
            ).state(),
        ]

    teacher_for = {plain: Wrapped(1, *plain), (wrap, unwrap): teacher}
    wanted = trained(plain, None, None)
    # {} is no part of any layer; None would be the student's
    found = trained((wrap, unwrap), key, key if both else {})
    assert all(same(one, two) for one, two in zip(found, wanted, strict=True))


def test_an_output_whose_part_is_not_clear_says_what_is_there():
    wrap, unwrap, _ = WRAPPINGS["dict"]
    model, data, schedule = Wrapped(0, wrap, unwrap), points(8), Schedule(epochs=1)
    message = r"layer '' returns dict of 'other': \[2, 3\], 'logits': \[2, 3\]: choose with select="
    with pytest.raises(TypeError, match=message):
        distill.baseline(model, data, schedule)
    with pytest.raises(TypeError, match=r"layer 'below' returns dict .*choose with select="):
        distill.student(model, model, "below", data, schedule)
    with pytest.raises(TypeError, match=r"layer 'below' returns dict .*choose with select="):
        distill.student(model, model, "below", data, schedule, select="logits", teacher_select={})
    with pytest.raises(TypeError, match="has no 'logit'"):
        distill.baseline(model, data, schedule, select="logit")


def test_a_folder_knows_which_part_was_taken(tmp_path: Path):
    wrap, unwrap, _ = WRAPPINGS["tuple"]
    model, data, schedule = Wrapped(0, wrap, unwrap), points(8), Schedule(epochs=1)
    distill.baseline(model, data, schedule, select=1, folder=tmp_path)
    distill.baseline(model, data, Schedule(epochs=2), select=1, folder=tmp_path)
    with pytest.raises(ValueError, match="another training, whose select is"):
        distill.baseline(model, data, Schedule(epochs=3), select=0, folder=tmp_path)


def shared(seed: int = 0) -> nn.Sequential:
    """One activation under two names."""
    layers, tanh = smooth(seed), nn.Tanh()
    return nn.Sequential(layers[0], tanh, layers[2], tanh, layers[4])


def test_a_run_of_a_shared_module_can_be_distilled():
    """As with modules of their own, under both names; without a run it is an error that says so."""
    data, schedule = points(24), Schedule(epochs=2, lr=0.1, batch_size=8)
    for name in ("1", "3"):
        for run, own in enumerate(("1", "3")):
            layer = f"{name}:{run}"
            found = distill.student(shared(), shared(1), layer, data, schedule)
            wanted = distill.student(smooth(), smooth(1), own, data, schedule)
            assert same(found.state(), wanted.state())
            one, two = found.load(shared()), wanted.load(smooth())
            assert same(
                distill.head(one, layer, data, schedule).state(),
                distill.head(two, own, data, schedule).state(),
            )
        message = rf"layer '{name}' runs 2 times in a pass: .*'{name}:0' to '{name}:1'"
        with pytest.raises(ValueError, match=message):
            distill.student(shared(), smooth(1), name, data, schedule, teacher_layer="1")
        with pytest.raises(ValueError, match=message):
            distill.student(smooth(), shared(1), "1", data, schedule, teacher_layer=name)
        with pytest.raises(ValueError, match=message):
            distill.head(shared(), name, data, schedule)
    with pytest.raises(RuntimeError, match=r"never reached layer '1:2' \(it runs 2 times\)"):
        distill.student(shared(), shared(1), "1:2", data, schedule)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x.transpose(0, 1)).mean(0))


def test_features_without_samples_in_front_are_named():
    data, schedule = TensorData(torch.randn(9, 5, 3), torch.arange(9) % 2), Schedule(epochs=1)
    with pytest.raises(ValueError, match=r"teacher's 'layer' is \[5, 9, 4\] for 9 samples: to be"):
        distill.student(TimeFirst(), TimeFirst(), "layer", data, schedule)
    one, two = TimeFirst(), nn.Sequential(nn.Flatten(), nn.Linear(15, 4))
    with pytest.raises(ValueError, match=r"student's 'layer' is \[5, 2, 4\] for 2 samples"):
        distill.student(one, two, "layer", data, schedule, teacher_layer="1")


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8, "int16", list, "bool"])
def test_data_may_be_arrays_and_labels_any_integers(labels):
    plain, schedule = points(24), Schedule(epochs=2, lr=0.1, batch_size=8)
    y = plain.y
    if labels == "bool":
        y, plain = plain.y > 0, TensorData(plain.x, (plain.y > 0).long())
    elif labels is list:
        y = plain.y.tolist()
    else:
        y = plain.y.numpy().astype(str(labels).removeprefix("torch."))
        y = torch.from_numpy(y) if isinstance(labels, torch.dtype) else y
    data = TensorData(plain.x.numpy(), y)
    found = distill.baseline(network(), data, schedule, test=data)
    assert same(found.state(), distill.baseline(network(), plain, schedule).state())
    named = TensorData({"input": plain.x.numpy()}, y)
    assert same(distill.baseline(network(), named, schedule).state(), found.state())


PAIR = (torch.randn(6, 5).double(), torch.arange(6) % 3)


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(*PAIR)),
        TensorDataset(*PAIR),
        PAIR,
        PAIR[0],
        PAIR[0].numpy(),
        None,
    ],
    ids=["loader", "data set", "pair", "tensor", "array", "None"],
)
def test_data_of_another_kind_are_named(data):
    fine, schedule = TensorData(*PAIR), Schedule(epochs=1)
    kind = type(data).__name__
    message = rf"data must be TensorData\(x, y\), or an object .*; got {kind}"
    for train in (
        lambda: distill.baseline(network(), data, schedule),
        lambda: distill.student(network(), network(1), "4", data, schedule),
        lambda: distill.head(network(), "4", data, schedule),
        lambda: distill.train(network(), data, schedule, labels_only()),
    ):
        with pytest.raises(TypeError, match=message):
            train()
    if data is not None:
        with pytest.raises(TypeError, match=r"test must be TensorData"):
            distill.baseline(network(), fine, schedule, test=data)


class Arrays(TensorData):
    def batch(self, index: Tensor, device: str = "cpu"):
        return self.x[index].numpy(), self.y[index]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda x, y: TensorData(x.float(), y), ValueError, "computes in torch.float64, the input"),
        (lambda x, y: TensorData(x.long(), y), ValueError, "the input is torch.int64"),
        (lambda x, y: TensorData(x, y + 1), ValueError, "from 1 to 3, .* for the classes 0 to 2"),
        (lambda x, y: TensorData(x, y - 1), ValueError, "labels from -1 to"),
        (lambda x, y: TensorData(x, y.float()), ValueError, r"class numbers.*torch.float32 \(2,\)"),
        (lambda x, y: TensorData(x, y[:, None]), ValueError, r"integers \[2\]; got .*\(2, 1\)"),
        (lambda x, y: TensorData(x, y[:4]), ValueError, r"with one N; y is torch.int64 \(4,\)"),
        (lambda x, y: TensorData(x, ["a"] * 6), TypeError, "labels y must come as a tensor"),
        (lambda x, y: TensorData(x, 3), ValueError, "one N"),
        (lambda x, y: TensorData([x, "a"], y), TypeError, "the inputs 'x' must come as a tensor"),
        (lambda x, y: Arrays(x, y), TypeError, r"Arrays\.batch gives tensors, .*got ndarray"),
        (lambda x, y: TensorData(x[:0], y[:0]), ValueError, "no samples to train on"),
    ],
)
def test_data_that_do_not_fit_are_named_before_training(data, error, message, tmp_path: Path):
    with pytest.raises(error, match=message):
        distill.baseline(network(), data(*PAIR), Schedule(epochs=1), folder=tmp_path)
    assert not list(tmp_path.glob("epoch-*"))


def test_probabilities_and_ignored_labels_are_labels():
    x, y = PAIR
    schedule = Schedule(epochs=1, lr=0.1, batch_size=6)
    certain = TensorData(x, F.one_hot(y, 3).double())
    one, two = (distill.baseline(smooth(), d, schedule) for d in (certain, TensorData(x, y)))
    torch.testing.assert_close(one.state(), two.state())
    ignored = TensorData(torch.cat([x, 9 * x]), torch.cat([y, torch.full_like(y, -100)]))
    whole = Schedule(epochs=1, lr=0.1, batch_size=12)
    torch.testing.assert_close(distill.baseline(smooth(), ignored, whole).state(), two.state())


@pytest.mark.parametrize("ignored", [1, 4])
def test_ignored_labels_count_nowhere_and_parts_of_a_batch_add_up(ignored, monkeypatch):
    """The second half of a batch has no label at all, or a single one is missing."""
    x, y = PAIR
    hidden = y.clone()
    hidden[len(y) - ignored :] = -100
    schedule = Schedule(epochs=2, lr=0.1, batch_size=len(y))
    whole = distill.baseline(smooth(), TensorData(x, hidden), schedule)
    right = smooth()
    right.load_state_dict(whole.state(0))
    known = hidden != -100
    chosen = right(x[known]).argmax(1)
    tested = distill.baseline(smooth(), TensorData(x, y), schedule, test=TensorData(x, hidden))
    assert tested.log[0]["test_accuracy"] == (chosen == y[known]).double().mean().item()

    attempt = distill.train_epoch

    def halved(learner, samples, epoch, rate, rows, bar):
        return attempt(learner, samples, epoch, rate, 2, bar)

    monkeypatch.setattr(distill, "train_epoch", halved)
    parts = distill.baseline(smooth(), TensorData(x, hidden), schedule)
    torch.testing.assert_close(parts.state(), whole.state())
    assert parts.log[2]["loss"] == pytest.approx(whole.log[2]["loss"])


def test_inputs_that_are_not_finite_are_named():
    x, y = PAIR
    broken = x.clone()
    broken[2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"inputs are not finite .*: sample 2$"):
        distill.baseline(smooth(), TensorData(broken, y), Schedule(epochs=1))


# ------------------------------------------------------------------------- a card is not waited for


def reads(count: int, objective: TrainingObjective, monkeypatch) -> int:
    """In an epoch of so many batches, the second, with one look at its end."""
    monkeypatch.setattr(distill, "batches_between_looks", lambda device: 10**6)
    attempt, found = distill.train_epoch, []

    def counted(*arguments):
        with Reads() as seen:
            entry = attempt(*arguments)
        found.append(seen.count)
        return entry

    with monkeypatch.context() as patch:
        patch.setattr(distill, "train_epoch", counted)
        schedule = Schedule(epochs=2, batch_size=4)
        distill.train(smooth(), points(4 * count), schedule, objective, teacher=smooth(1))
    return found[1]


@pytest.mark.parametrize(
    "objective", [labels_only(), feature_at("2"), softened_output(), TrainingObjective("rkd", "2")]
)
def test_an_epoch_reads_no_number_of_its_batches(objective, monkeypatch):
    assert reads(3, objective, monkeypatch) == reads(9, objective, monkeypatch)


def test_on_a_card_the_loss_is_looked_at_now_and_then():
    assert distill.batches_between_looks("cpu") == 1
    assert distill.batches_between_looks("cuda:1") > 1


def test_late_looks_change_no_number_and_find_the_same_faults(monkeypatch):
    data, schedule = points(60), Schedule(epochs=2, lr=0.05, batch_size=4)
    test = points(20, seed=1)
    always = distill.baseline(smooth(), data, schedule, test=test)
    monkeypatch.setattr(distill, "batches_between_looks", lambda device: 4)
    seldom = distill.baseline(smooth(), data, schedule, test=test)
    assert same(always.state(), seldom.state())
    for one, other in zip(always.log, seldom.log, strict=True):
        assert str({**one, "seconds": 0}) == str({**other, "seconds": 0})
    broken = data.x.clone()
    broken[17] = torch.nan
    with pytest.raises(ValueError, match=r"inputs are not finite .*: sample 17$"):
        distill.baseline(smooth(), TensorData(broken, data.y), schedule)
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) in epoch 1 after [0-9]+ sampl"):
        distill.baseline(smooth(), data, Schedule(epochs=1, lr=1e30, batch_size=4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "objective", [labels_only(), feature_at("2"), softened_output(), TrainingObjective("rkd", "2")]
)
def test_a_card_trains_the_network_that_the_cpu_does(objective):
    data, test, schedule = points(60), points(20, seed=1), Schedule(epochs=3, lr=0.01, batch_size=8)
    cpu, card = (
        distill.train(
            smooth(), data, schedule, objective, teacher=smooth(1), test=test, device=device
        )
        for device in ("cpu", "cuda")
    )
    assert card.log[-1]["device"].startswith("cuda")
    for name, value in cpu.state().items():
        torch.testing.assert_close(card.state()[name].cpu(), value, rtol=0, atol=1e-8)
    assert card.log[-1]["test_accuracy"] == pytest.approx(
        cpu.log[-1]["test_accuracy"],
        nan_ok=True,  # a feature alone scores no labels
    )


@pytest.mark.parametrize("shape", [(9, 4), (5, 4, 3)])
def test_cross_entropy_is_the_mean_over_known_labels(shape):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator)
    labels = torch.randint(0, 4, (shape[0], *shape[2:]), generator=generator)
    for hidden in (0, 2, shape[0]):
        labels[:hidden] = -100
        ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
        value = cross_entropy(ours, labels)
        value.backward()
        if hidden == shape[0]:
            assert value == 0
            assert not ours.grad.any()
        else:
            plain = F.cross_entropy(theirs, labels)
            plain.backward()
            assert value == plain
            assert torch.equal(ours.grad, theirs.grad)


def test_labels_are_checked_in_the_first_epoch():
    """Of data that are no tensors, whose labels nobody has seen before."""

    class Odd(Points):
        def batch(self, index, device="cpu"):
            x, y = super().batch(index, device)
            return x, torch.where(index == 3, 7, y)

    with pytest.raises(ValueError, match=r"labels from . to 7, but the network has"):
        distill.baseline(mlp(0), Odd(), Schedule(epochs=2, batch_size=4))


def test_seeds_may_be_numbers_of_numpy():
    data, plain = TensorData(*PAIR), Schedule(epochs=1, seed=1)
    numpy = Schedule(
        epochs=np.int64(1), seed=np.int64(1), lr=np.float32(0.5), batch_size=np.int8(4)
    )
    assert numpy == replace(plain, lr=0.5, batch_size=4)
    json.dumps(numpy.config)
    distill.baseline(smooth(), data, numpy)
    with pytest.raises(TypeError, match="seed=None: it must be a number"):
        Schedule(seed=None)


def test_networks_of_another_kind_are_named():
    data, schedule = TensorData(*PAIR), Schedule(epochs=1)
    with pytest.raises(TypeError, match=r"the model is a torch\.nn\.Module; got function"):
        distill.baseline(lambda x: x, data, schedule)
    with pytest.raises(TypeError, match=r"the teacher is a torch\.nn\.Module; got function"):
        distill.student(network(), lambda x: x, "4", data, schedule)
    with pytest.raises(ValueError, match=r"has no shape yet: .* through the teacher first"):
        distill.student(network(), nn.LazyLinear(3), "", data, schedule)
    with pytest.raises(ValueError, match=r"needs logits \[B, K\].*\(2,\)"):
        distill.baseline(
            nn.Sequential(smooth(), nn.Linear(3, 1), nn.Flatten(0)).double(), data, schedule
        )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_of_the_old_form_is_trained_after_a_pass():
    model = nn.utils.weight_norm(nn.Linear(5, 3)).double()
    fresh = distill.baseline(model, points(), Schedule(epochs=2)).state()
    model(points().x)  # which leaves a tensor with a graph in the module
    assert same(distill.baseline(model, points(), Schedule(epochs=2)).state(), fresh)


def test_labels_may_be_anything_that_the_loss_does_not_look_at():
    plain = points(20)
    data = TensorData(plain.x, torch.randn(20))  # numbers, not classes
    log = distill.student(network(), network(1), "3", data, Schedule(epochs=1), test=data).log
    assert log[1]["feature_error"] > 0


@pytest.mark.parametrize(("count", "size"), [(1, 8), (5, 1)])
def test_batch_normalisation_of_one_sample_is_named(count: int, size: int):
    schedule = Schedule(epochs=1, batch_size=size)
    model = network()
    with pytest.raises(ValueError, match=r"cannot learn from a batch of one sample .*batch_size"):
        distill.baseline(model, points(count), schedule)
    distill.head(model, "2", points(count), schedule)  # it is frozen there
    model[1].requires_grad_(False)
    distill.baseline(model, points(count), schedule)


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(8, 8),
        nn.Sequential(
            nn.Unflatten(1, (8, 1)), nn.InstanceNorm1d(8, track_running_stats=True), nn.Flatten()
        ),
    ],
    ids=["groups", "instances"],
)
def test_groups_of_one_value_are_named(norm: nn.Module):
    """Before training; two samples, which are looked at first, PyTorch does not refuse."""
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 3)).double()
    with pytest.raises(ValueError, match=r"groups or instances cannot learn .* batch_size"):
        distill.baseline(model, points(5), Schedule(epochs=1, batch_size=1))


def test_groups_of_several_values_learn_from_one_sample():
    model = nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(4, 8), nn.Linear(8, 3)).double()
    log = distill.baseline(model, points(5), Schedule(epochs=1, batch_size=1)).log
    assert len(log) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_teacher_teaches():
    teacher = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear})
    data = TensorData(torch.randn(40, 5), torch.zeros(40, dtype=torch.int64))
    model, schedule = nn.Linear(5, 3), Schedule(epochs=30, lr=0.1)
    log = distill.train(model, data, schedule, softened_output(), teacher=quantised).log
    assert log[-1]["loss"] < 0.5 * log[1]["loss"]


class Extra(nn.Linear):
    def get_extra_state(self) -> str:
        return "words"

    def set_extra_state(self, state: str) -> None:
        assert state == "words"


def test_what_cannot_be_kept_is_refused(tmp_path: Path):
    old = nn.Sequential(Extra(5, 3).double())
    with pytest.raises(TypeError, match=r"'0\._extra_state' of the network's state is of type str"):
        distill.baseline(old, points(), Schedule(epochs=1), folder=tmp_path)
    with pytest.raises(ValueError, match=r"'weight' has no shape yet: run a batch through"):
        distill.baseline(nn.LazyLinear(3), points(), Schedule(epochs=1), folder=tmp_path)
    assert not list(tmp_path.glob("epoch-*"))


def test_arguments_of_another_kind_are_named():
    data, schedule = points(), Schedule(epochs=1)
    loader = DataLoader(TensorDataset(data.x, data.y), 5)
    for given, remedy in (
        (
            loader,
            r"got DataLoader: .*unshuffled, TensorData\(\*map\(torch\.cat, zip\(\*loader\)\)\)$",
        ),
        ((data.x, data.y), r"got tuple: TensorData\(\*data\)$"),
        (loader.dataset, r"got TensorDataset: TensorData\(\*data\.tensors\)$"),
        (data.x, r"got Tensor$"),
    ):
        with pytest.raises(TypeError, match=remedy):
            distill.baseline(network(), given, schedule)
    made = TensorData(*map(torch.cat, zip(*loader, strict=True)))
    assert torch.equal(made.x, data.x)
    assert torch.equal(made.y, data.y)
    with pytest.raises(TypeError, match=r"schedule is a kpnb\.schedule\.Schedule; got int"):
        distill.baseline(network(), data, 5)
    with pytest.raises(TypeError, match="layer is the name of the student's layer; got NoneType"):
        distill.head(network(), None, data, schedule)
    with pytest.raises(ValueError, match=r"momentum=2\.0 must be below 1"):
        Schedule(momentum=2.0)
    for layers in ({"layer": ["0", "4"]}, {"layer": "4", "teacher_layer": ["0", "4"]}):
        with pytest.raises(TypeError, match=r"is the name of one layer; got list\. Several are"):
            distill.student(network(), network(1), data=data, schedule=schedule, **layers)


def test_a_loss_needs_its_teacher_and_pairs_of_layers():
    with pytest.raises(ValueError, match="the loss 'feature' compares with a teacher"):
        distill.train(network(), points(), Schedule(epochs=1), feature_at("4"))
    with pytest.raises(ValueError, match="must be pairs"):
        TrainingObjective("feature", ("0", "4"), ("0",))
    with pytest.raises(ValueError, match="unknown loss 'features'; did you mean 'feature'"):
        TrainingObjective("features")
    with pytest.raises(ValueError, match="nothing to minimise"):
        TrainingObjective()


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_is_gone_on_with(tmp_path: Path):
    data, model = points(), network(dropout=0.3)
    distill.baseline(model, data, Schedule(epochs=2), folder=tmp_path)
    (tmp_path / "epoch-002.json").unlink()
    flipped = bytearray((tmp_path / "epoch-001.safetensors").read_bytes())
    flipped[-1] ^= 1
    (tmp_path / "epoch-001.safetensors").write_bytes(flipped)
    longer = distill.baseline(model, data, Schedule(epochs=4), folder=tmp_path)
    assert same(longer.state(), distill.baseline(model, data, Schedule(epochs=4)).state())
    again = Checkpoints(tmp_path)
    assert again.epochs == 4
    assert again.log == longer.log
    assert same(again.load(network(dropout=0.3)).state_dict(), longer.state())
    assert {path.suffix for path in tmp_path.iterdir() if path.name != ".lock"} == {
        ".json",
        ".safetensors",
    }


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_epochs_without_the_settings_of_their_training_are_refused(how: str, tmp_path: Path):
    """Else another training would go on after them."""
    schedule = Schedule(epochs=2, batch_size=8)
    distill.baseline(network(), points(), schedule, folder=tmp_path)
    settings = tmp_path / "training.json"
    settings.write_text(settings.read_text() + " x") if how == "damaged" else settings.unlink()
    with pytest.raises(ValueError, match=r"training\.json\) are damaged or gone.*another folder"):
        distill.baseline(network(), points(seed=1), replace(schedule, lr=0.5), folder=tmp_path)


def test_another_first_network_is_refused_where_epoch_0_is_damaged(tmp_path: Path):
    """The epochs after it came from the first; of the same weights it is written again."""
    schedule = Schedule(epochs=2, batch_size=8)
    found = distill.baseline(network(), points(), schedule, folder=tmp_path)
    kept = found.state(0)
    damage(tmp_path / "epoch-000.safetensors")
    with pytest.raises(ValueError, match="which started from other weights: choose another"):
        distill.baseline(network(1), points(), schedule, folder=tmp_path)
    again = distill.baseline(network(), points(), schedule, folder=tmp_path)
    torch.testing.assert_close(again.state(0), kept, rtol=0, atol=0)


def damage(path: Path) -> None:
    """Cut the file short, as a full disk does."""
    path.write_bytes(path.read_bytes()[:-8])


def test_a_damaged_epoch_of_the_right_size_is_computed_again(tmp_path: Path):
    """As the message says that reading it gives: "train again with the same folder"."""
    schedule = Schedule(epochs=2, batch_size=8)
    found = distill.baseline(network(), points(), schedule, folder=tmp_path)
    kept, path = found.state(1), tmp_path / "epoch-001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileNotFoundError, match="train again with the same folder"):
        found.state(1)
    again = distill.baseline(network(), points(), schedule, folder=tmp_path)
    torch.testing.assert_close(again.state(1), kept, rtol=0, atol=0)


def test_a_folder_of_another_precision_is_another_training(tmp_path: Path):
    schedule, data = Schedule(epochs=1, batch_size=8), points()
    distill.baseline(network(), data, schedule, folder=tmp_path)
    with pytest.raises(ValueError, match="started from other weights: choose another folder"):
        distill.baseline(network().float(), data, schedule, folder=tmp_path)


@pytest.mark.parametrize("loss", ["feature", "sp"])
def test_autocast_of_the_caller_changes_no_number(loss: str):
    data, schedule = points(), Schedule(epochs=2, batch_size=8)
    single = TensorData(data.x.float(), data.y)

    def learned():
        return distill.student(mlp(0), mlp(1), "2", single, schedule, loss=loss).state()

    plain = learned()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(learned(), plain, rtol=0, atol=0)


def test_a_folder_with_another_training_is_refused(tmp_path: Path):
    data = points()
    distill.baseline(network(), data, Schedule(epochs=1), folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"another training, whose schedule has lr = 0\.01, not 0"):
        distill.baseline(network(), data, Schedule(epochs=2, lr=0.1), folder=tmp_path)
    with pytest.raises(ValueError, match="holds another training, whose samples is 37, not 9"):
        distill.baseline(network(), points(9), Schedule(epochs=1), folder=tmp_path)
    with pytest.raises(ValueError, match="another training, which started from other weights"):
        distill.baseline(network(1), data, Schedule(epochs=2), folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    taught = tmp_path / "taught"
    distill.student(network(), network(1), "3", data, Schedule(epochs=1), folder=taught)
    with pytest.raises(ValueError, match="holds another training, whose teacher is"):
        distill.student(network(), network(2), "3", data, Schedule(epochs=2), folder=taught)


@pytest.mark.parametrize("change", ["an input", "a label", "the order", "other names"])
def test_a_folder_with_the_training_on_other_data_is_refused(change, tmp_path: Path):
    data = points()
    distill.baseline(Named(), of_names(data), Schedule(epochs=1), folder=tmp_path)
    x, y, name = data.x.clone(), data.y.clone(), "x"
    if change == "an input":
        x[-1, 0] += 0.01
    elif change == "a label":
        y[-1] = 2 - y[-1]
    elif change == "the order":
        x[:2], y[:2] = x[[1, 0]], y[[1, 0]]
    else:
        name = "z"
    other = TensorData({name: x}, y)
    for epochs in (1, 2):
        with pytest.raises(ValueError, match="whose data are others, or the same in another order"):
            distill.baseline(Named(), other, Schedule(epochs=epochs), folder=tmp_path)


@pytest.mark.parametrize("kind", ["as they were", "of an older form", "no tensors"])
def test_a_folder_is_gone_on_with_where_data_are_the_same_or_not_known(
    kind, tmp_path: Path, caplog
):
    data = points()
    distill.baseline(Named(), of_names(data), Schedule(epochs=1), folder=tmp_path)
    again = of_names(data)
    if kind == "of an older form":
        artefacts = Artefacts(tmp_path)
        known = artefacts.info("training")
        del known["data"]
        artefacts.write("training", {}, known, 0.0)
        again = of_names(points(seed=1))  # of which nothing is known there
    elif kind == "no tensors":
        again = Plain(again)
    assert distill.baseline(Named(), again, Schedule(epochs=2), folder=tmp_path).epochs == 2
    assert not caplog.messages


class Named(nn.Module):
    """A network whose input has a name; any will do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, **given: Tensor) -> Tensor:
        (x,) = given.values()
        return self.body(x)


def of_names(data: TensorData) -> TensorData:
    return TensorData({"x": data.x}, data.y)


class Plain:
    """Data that say nothing of how they come about."""

    def __init__(self, data: TensorData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: Tensor, device: str = "cpu") -> tuple[Any, Tensor]:
        return self.data.batch(index, device)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.LeakyReLU(0.1), nn.ReLU(), nn.ReLU6()], ids=repr
)
def test_another_function_of_the_same_weights_is_told(activation, bf16, tmp_path: Path, caplog):
    """ReLU6 is the function before, where nothing gets as high as 6."""
    schedule, before = Schedule(epochs=1, bf16=bf16), network().float()
    data = TensorData(points().x.float(), points().y)
    distill.baseline(before, data, schedule, folder=tmp_path)
    other = network().float()
    places = [i for i, module in enumerate(other) if isinstance(module, nn.ReLU)]
    for place in places:
        other[place] = activation
    assert places
    for epochs in (1, 2):
        caplog.clear()
        longer = replace(schedule, epochs=epochs)
        assert distill.baseline(other, data, longer, folder=tmp_path).epochs == epochs
        told = [
            each for each in caplog.messages if "the network computes something else at" in each
        ]
        assert len(told) == (not isinstance(activation, nn.ReLU | nn.ReLU6))


def test_another_teacher_of_the_same_weights_is_told(tmp_path: Path, caplog):
    data, schedule, teacher = points(), Schedule(epochs=1), network(1)
    distill.student(network(), teacher, "4", data, schedule, folder=tmp_path)
    (place, *_) = (i for i, module in enumerate(teacher) if isinstance(module, nn.ReLU))
    teacher[place] = nn.Tanh()
    distill.student(network(), teacher, "4", data, schedule, folder=tmp_path)
    (said,) = caplog.messages
    assert "the teacher computes something else at '4' than when the training began" in said


def test_other_held_out_samples_are_refused(tmp_path: Path):
    """Also behind the first ones."""
    data, test = points(), points(60, seed=1)
    distill.baseline(network(), data, Schedule(epochs=1), test=test, folder=tmp_path)
    other = TensorData(test.x, torch.cat([test.y[:50], 2 - test.y[50:]]))
    with pytest.raises(ValueError, match="another training, whose held-out data are others"):
        distill.baseline(network(), data, Schedule(epochs=2), test=other, folder=tmp_path)
    empty = TensorData(test.x[:0], test.y[:0])
    for none, again in ((None, empty), (empty, None)):
        folder = tmp_path / f"{none is None}"
        for each in (none, again):
            distill.baseline(network(), data, Schedule(epochs=1), test=each, folder=folder)


def test_data_are_known_by_their_bits_however_they_lie_in_memory(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, 6, 3, generator=generator)
    lying = x.contiguous(memory_format=torch.channels_last)
    found = digest_of({"x": x})
    assert found == digest_of({"x": lying})
    assert found == digest_of({"x": x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)})
    other = x.clone()
    other[-1, -1, -1, -1] += 1e-6
    others = [{"x": other}, {"y": x}, {"x": x.double()}, {"x": x[:8]}, {"x": x.flatten(1)}]
    assert len({found, *map(digest_of, others)}) == 6
    large = torch.zeros(1, 2**22 + 5, dtype=torch.uint8)  # a sample that is larger than a piece
    changed = large.clone()
    changed[0, -1] = 1
    assert digest_of({"x": large}) != digest_of({"x": changed})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_folder_may_be_used_without_gradients(mode, tmp_path: Path):
    data, schedule = points(), Schedule(epochs=1)
    for _ in range(2):
        with mode():
            found = distill.student(network(), network(1), "4", data, schedule, folder=tmp_path)
    assert same(found.state(), distill.student(network(), network(1), "4", data, schedule).state())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_what_a_card_has_trained_is_read_where_there_is_none(tmp_path: Path):
    schedule = Schedule(epochs=1)
    found = distill.baseline(network(), points(), schedule, folder=tmp_path)
    for device in ("cuda", "cuda:1"):
        again = distill.baseline(network(), points(), schedule, folder=tmp_path, device=device)
        assert same(again.state(), found.state())


def test_states_are_read_in_one_order(tmp_path: Path):
    found = distill.baseline(network(), points(), Schedule(epochs=1), folder=tmp_path)
    assert [[*found.state()] for _ in range(5)] == [sorted(network().state_dict())] * 5
    assert [*found.tensors()] == sorted(found.tensors())


BAD_LOSSES = {
    "for each sample": (lambda s, t: (s - t).square().mean(1), TypeError, r"one number, .*\(2,\)"),
    "a float": (lambda s, t: 1.0, TypeError, "a tensor of one number, a mean; got float"),
    "detached": (lambda s, t: (s.detach() - t).mean(), TypeError, "does not depend on the student"),
    "nan": (lambda s, t: (s - t).mean() * torch.nan, FloatingPointError, "is nan for the first ba"),
}


@pytest.mark.parametrize("labels", [0.0, 1.0])
@pytest.mark.parametrize("layers", [("4",), ("4", "")])
@pytest.mark.parametrize("kind", BAD_LOSSES)
def test_a_loss_of_ones_own_that_is_none_is_named(kind, layers, labels, monkeypatch):
    function, error, message = BAD_LOSSES[kind]
    monkeypatch.setitem(LOSSES, "mine", Loss(function))
    objective = TrainingObjective("mine", layers, labels=labels)
    with pytest.raises(error, match=message):
        distill.train(network(), points(), Schedule(epochs=1), objective, teacher=network(1))


def test_a_loss_may_need_more_than_two_samples_or_work_in_place(monkeypatch):
    def spread(student: Tensor, teacher: Tensor) -> Tensor:
        apart = [torch.pdist(each.flatten(1)) for each in (student, teacher)]
        one, two = ((d - d.mean()).square().sum() / (len(d) - 1) for d in apart)
        return (one - two).square()

    def in_place(student: Tensor, teacher: Tensor) -> Tensor:
        student -= teacher
        return student.square().mean()

    schedule = Schedule(epochs=1, batch_size=12)
    for name, function in (("spread", spread), ("in place", in_place)):
        monkeypatch.setitem(LOSSES, name, Loss(function, per_sample=name == "in place"))
        given = network(), network(1), "4", points(36), schedule
        assert distill.student(*given, loss=name).log[-1]["loss"] >= 0


def test_what_is_no_loss_is_named(monkeypatch):
    given = network(), network(1), "4", points(), Schedule(epochs=1)
    monkeypatch.setitem(LOSSES, "mine", lambda s, t: (s - t).mean())
    with pytest.raises(TypeError, match=r"LOSSES\['mine'\] = Loss\(function\)"):
        distill.student(*given, loss="mine")
    with pytest.raises(TypeError, match=r"register a function, LOSSES\['mine'\] = Loss\(it\)"):
        distill.student(*given, loss=feature)
    with pytest.raises(TypeError, match=r"unknown option 'temperature'.*parameters=\{'temperature"):
        distill.student(*given, loss="soft_targets", temperature=2.0)


class Masking(nn.Module):
    """Logits of which one class is impossible; and one that is drawn anew in each pass."""

    def __init__(self, low: float = -torch.inf, noise: float = 0.0) -> None:
        super().__init__()
        self.body, self.low, self.noise = network(), low, noise

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.noise * torch.randn(3, dtype=x.dtype)
        return torch.cat([y, torch.full_like(y[:, :1], self.low)], 1)


def test_infinite_and_random_outputs_are_compared_for_what_they_are(tmp_path: Path, caplog):
    data, schedule = points(), Schedule(epochs=1)
    distill.baseline(Masking(), data, schedule, folder=tmp_path / "a")
    distill.baseline(Masking(), data, schedule, folder=tmp_path / "a")
    distill.baseline(Masking(noise=1.0), data, schedule, folder=tmp_path / "b")
    distill.baseline(Masking(noise=1.0), data, schedule, folder=tmp_path / "b")
    assert not caplog.messages
    distill.baseline(Masking(-5.0), data, schedule, folder=tmp_path / "a")
    assert "computes something else" in caplog.text


def test_a_transformer_with_padding_is_trained_in_bf16():
    """Whose fast path for evaluation PyTorch does not have in two precisions."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, 8, generator=generator)
    mask = (torch.arange(5) > 2).expand(8, -1)
    data = TensorData({"x": x, "mask": mask}, torch.arange(8) % 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Padded()
    fast = torch.backends.mha.get_fastpath_enabled()
    assert distill.baseline(model, data, Schedule(epochs=1, bf16=True), test=data).accuracy >= 0
    assert torch.backends.mha.get_fastpath_enabled() is fast


def test_a_call_that_failed_beforehand_does_not_claim_its_folder(tmp_path: Path):
    data, schedule = points(), Schedule(epochs=1)
    with pytest.raises(ValueError, match="choose layers of one shape"):
        distill.student(
            network(), network(1), "4", data, schedule, teacher_layer="0", folder=tmp_path
        )
    distill.student(network(), network(1), "4", data, schedule, folder=tmp_path)


def test_a_temporary_folder_goes_with_its_checkpoints():
    found = distill.baseline(network(), points(), Schedule(epochs=1))
    folder = found.artefacts.path
    assert (folder / "epoch-001.json").exists()
    del found
    assert not folder.exists()


def test_checkpoints_that_are_lost_or_damaged_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoints in {tmp_path}"):
        Checkpoints(tmp_path)
    found = distill.baseline(network(), points(), Schedule(epochs=2), folder=tmp_path)
    sidecar = tmp_path / "epoch-001.json"
    entry = json.loads(sidecar.read_text())
    entry["info"]["loss"] = 0.0
    sidecar.write_text(json.dumps(entry))
    for read in (lambda: found.state(1), lambda: found.log):
        with pytest.raises(FileNotFoundError, match=r"epoch 1 of .* is missing or damaged: train"):
            read()


# ---------------------------------------------------------------------------------- lazy trainings


def test_a_training_computes_nothing_before_it_is_read(tmp_path: Path):
    built = []

    def build(seed: int) -> nn.Module:
        built.append(seed)
        return mlp(seed)

    class Watched(Points):
        def batch(self, index: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
            built.append("batch")
            return super().batch(index, device)

    store, data, schedule = Store(tmp_path / "store"), Watched(30), Schedule(epochs=2)
    teacher = training.baseline(
        store, {"seed": 1}, data, schedule, kind="teacher", build=build, test=data
    )
    mimic = taught(
        store, {"seed": 0}, data, schedule, feature_at("4"), teacher, build=build, test=data
    )
    whole = training.head(store, mimic, "4", data, schedule, test=data)
    softened = taught(store, {"seed": 0}, data, schedule, softened_output(), teacher, build=build)
    derived = training.baseline(
        store, Source({"from": mimic.address}, lambda: mimic.load()[:5], (mimic,)), data, schedule
    )
    everything = [teacher, mimic, whole, softened, derived]
    assert [one.missing() for one in everything] == [[0, 1, 2]] * 5
    assert [one.requires() for one in everything] == [[], [teacher], [mimic], [teacher], [mimic]]
    assert [one.teacher for one in everything] == [None, teacher, None, teacher, None]
    assert not built
    assert not store.root.exists()

    assert whole.accuracy >= 0  # which takes its student, and that its teacher
    assert [one.missing() for one in everything] == [[], [], [], [0, 1, 2], [0, 1, 2]]
    built.clear()
    longer = training.baseline(
        store, {"seed": 1}, data, Schedule(epochs=4), kind="teacher", build=build, test=data
    )
    assert longer.missing() == [3, 4]
    assert not built


def test_the_store_and_a_folder_hold_the_same_training(tmp_path: Path):
    data, schedule = Points(30), Schedule(epochs=2, batch_size=8)
    stored = training.baseline(Store(tmp_path), mlp(), data, schedule)
    plain = distill.train(mlp(), data, schedule, labels_only())
    assert same(stored.finish().checkpoints.tensors(), plain.tensors())


# ------------------------------------------------------------------ a folder of one's own training


class Failing(TensorData):
    """Held-out samples of which no more than the first 32 can be had."""

    def batch(self, index: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
        if int(index.max()) > 31:
            raise MemoryError("too many samples")
        return super().batch(index, device)


def held_out(seed: int = 1) -> TensorData:
    return points(40, seed)


def test_a_start_that_failed_leaves_no_settings_behind(tmp_path: Path):
    """The next training in that folder is the one that it says it is, and can be resumed."""
    data, failing = points(), Failing(held_out().x, held_out().y)
    first, second = (Schedule(epochs=1, lr=0.1, batch_size=size) for size in (8, 4))
    with pytest.raises(MemoryError, match="too many samples"):
        distill.baseline(smooth(), data, first, folder=tmp_path, test=failing)
    found = distill.baseline(smooth(), data, second, folder=tmp_path)
    assert same(found.state(), distill.baseline(smooth(), data, second).state())
    again = distill.baseline(smooth(), data, second, folder=tmp_path)
    assert same(again.state(), found.state())
    with pytest.raises(ValueError, match="whose schedule has batch_size = 4, not 8"):
        distill.baseline(smooth(), data, first, folder=tmp_path)


def test_who_waited_for_the_folder_does_not_get_anothers_training(tmp_path: Path, monkeypatch):
    """Planted: while this training waits for the lock, another one is finished in its folder."""
    data, slow, fast = points(), Schedule(epochs=1, lr=0.1), Schedule(epochs=1, lr=1.0)
    locked = Artefacts.locked
    waited = []

    def waits(artefacts):
        if not waited:
            waited.append(True)
            distill.baseline(smooth(), data, slow, folder=tmp_path)
        return locked(artefacts)

    monkeypatch.setattr(Artefacts, "locked", waits)
    with pytest.raises(ValueError, match=r"whose schedule has lr = 0\.1, not 1\.0"):
        distill.baseline(smooth(), data, fast, folder=tmp_path)


class Two(nn.Module):
    """Two heads, of which ``select`` says which one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = smooth(1), smooth(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_what_only_one_of_two_trainings_says_tells_them_apart(tmp_path: Path):
    data, schedule = points(), Schedule(epochs=1)
    distill.baseline(Two(), data, schedule, folder=tmp_path / "select")
    with pytest.raises(ValueError, match="whose select is None, not "):
        distill.baseline(Two(), data, schedule, folder=tmp_path / "select", select={"": 1})
    folder = tmp_path / "test"
    one = distill.baseline(smooth(), data, schedule, folder=folder, test=held_out())
    assert distill.baseline(smooth(), data, schedule, folder=folder, test=held_out()).log == one.log
    for other in (held_out(2), None):
        with pytest.raises(ValueError, match=r"whose test is 40 samples, .*, not "):
            distill.baseline(smooth(), data, schedule, folder=folder, test=other)


# ------------------------------------------------------------------ which parameters are trained


class Experts(nn.Module):
    """Each sample goes to the expert that the sign of its first number says."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.experts = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4)]).double()
            self.above = nn.Linear(4, 3).double()

    def mixed(self, x: Tensor) -> Tensor:
        found = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            mine = (x[:, 0] > 0) == bool(number)
            if mine.any():
                found = found.index_put((mine.nonzero()[:, 0],), expert(x[mine]))
        return found

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.mixed(x)
        return self.above(self.seen.tanh())


class Mixed(nn.Module):
    """The same with a layer at which a feature can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Experts()
        self.feature = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.above(self.feature(self.inner.mixed(x)).tanh())


@pytest.mark.parametrize("taught", [False, True], ids=["labels", "feature"])
def test_an_expert_that_the_first_samples_do_not_reach_learns_too(taught: bool):
    data = points(64)
    first = data.x[:, 0].abs()
    first[2:] *= torch.where(torch.arange(62) % 2 == 0, -1.0, 1.0)
    data = TensorData(torch.cat([first[:, None], data.x[:, 1:]], 1), data.y)
    schedule = Schedule(epochs=1, lr=0.05, batch_size=8, weight_decay=0.0)
    if taught:
        teacher = Mixed()
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter += 0.3
        found = distill.student(Mixed(), teacher, "feature", data, schedule)
    else:
        found = distill.baseline(Mixed(), data, schedule)
    norms = found.step_norms()[1]
    assert all(norms[f"inner.experts.{number}.weight"] > 0 for number in (0, 1))
    assert (norms["inner.above.weight"] == 0) is taught  # it lies above the feature


class Branches(nn.Module):
    """A branch with batch normalisation that runs before ``body`` and does not lie below it."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double()
        self.body = nn.Linear(5, 4).double()
        self.end = nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        beside = self.beside(x)
        return self.end(torch.cat([beside, self.body(x)], 1))


def test_only_what_lies_below_the_frozen_layer_rests():
    found = distill.head(Branches(), "body", points(), Schedule(epochs=1, lr=0.1, batch_size=8))
    norms = found.step_norms()[1]
    assert norms["body.weight"] == 0 < norms["beside.0.weight"]
    before, after = found.state(0), found.state(1)
    assert not torch.equal(before["beside.1.running_mean"], after["beside.1.running_mean"])


class Shared(nn.Module):
    """One dropout before a layer and after it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.body, self.end = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
        self.drop, self.act = nn.Dropout(p), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.act(self.drop(self.body(self.act(self.drop(x))))))


def test_a_dropout_on_both_sides_of_the_frozen_layer_is_refused():
    data, schedule = points(), Schedule(epochs=1, lr=0.1)
    with pytest.raises(ValueError, match=r"dropout 'drop' runs below 'body', where .* two modules"):
        distill.head(Shared(0.5), "body", data, schedule)
    assert distill.head(Shared(0.0), "body", data, schedule).step_norms()[1]["end.weight"] > 0


# ------------------------------------------------------------------ what cannot be learned


def test_one_logit_and_numbers_that_are_no_probabilities_are_refused():
    x, _ = PAIR
    one = nn.Linear(5, 1).double()
    yes = (x[:, :1] > 0).double()
    schedule = Schedule(epochs=1)
    with pytest.raises(
        ValueError, match=r"a single logit, .*, is 0 whatever it is: .* two for yes"
    ):
        distill.baseline(one, TensorData(x, yes), schedule)
    with pytest.raises(ValueError, match=r"softened outputs need logits .* got \[2, 1\]"):
        distill.student(one, one, "", TensorData(x, yes), schedule, loss="soft_targets")
    values = torch.linspace(-1, 2, 3 * len(x), dtype=torch.float64).reshape(-1, 3)
    with pytest.raises(ValueError, match="sum to 1; got numbers from -1 to"):
        distill.baseline(network(), TensorData(x, values), schedule)


class Tokens(nn.Module):
    """Logits of each token, the classes last, or second as PyTorch's losses have them."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.end, self.second = nn.Linear(5, 4).double(), second

    def forward(self, x: Tensor) -> Tensor:
        logits = self.end(x[:, None].expand(-1, 6, -1))
        return logits.transpose(1, 2) if self.second else logits


def test_softened_outputs_of_tokens_want_the_classes_second():
    x, _ = PAIR
    labels = torch.arange(6).remainder(4).expand(len(x), 6).contiguous()
    data, schedule = TensorData(x, labels), Schedule(epochs=1)
    with pytest.raises(ValueError, match=r"\[B, K, n\], the classes second; got \[2, 6, 4\]"):
        distill.student(Tokens(False), Tokens(False), "", data, schedule, loss="soft_targets")
    distill.student(Tokens(True), Tokens(True), "", data, schedule, loss="soft_targets")


class Root(nn.Module):
    """Its loss is finite, the derivative of the root of 0 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.end, self.g = nn.Linear(5, 3).double(), nn.Parameter(torch.zeros(()).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.end(x) * (1 + self.g.sqrt())


def test_a_last_step_that_loses_the_weights_is_no_epoch(tmp_path: Path):
    data, schedule = points(8), Schedule(epochs=1, lr=0.1, batch_size=8)
    with pytest.raises(FloatingPointError, match=r"'g' of .* is no longer finite after epoch 1"):
        distill.baseline(Root(), data, schedule, folder=tmp_path)
    assert [path.stem for path in tmp_path.glob("epoch-*.json")] == ["epoch-000"]


class Wave(nn.Module):
    """A complex weight, as networks have that learn in the Fourier domain."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(5, 3, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.w.dtype) @ self.w).real


def test_steps_of_complex_weights_have_a_length():
    found = distill.baseline(Wave(), points(), Schedule(epochs=1, lr=0.1, weight_decay=0.0))
    step = found.state(1)["w"] - found.state(0)["w"]
    wanted = (step.real.square() + step.imag.square()).sum().sqrt().item()
    assert found.step_norms()[1]["w"] == pytest.approx(wanted)
    assert wanted > 0
    double = Wave(torch.complex128)
    with pytest.raises(TypeError, match=r"'w' .* complex128, which no file"):
        distill.baseline(double, points(), Schedule(epochs=1))


def test_a_feature_of_one_number_for_each_sample_is_told():
    def squeezed(seed: int) -> nn.Sequential:
        return nn.Sequential(network(seed), nn.Linear(3, 1).double(), nn.Flatten(0))

    schedule = Schedule(epochs=1, batch_size=8)
    with pytest.raises(ValueError, match=r"one number for each sample: losses take it as \[8, 1"):
        distill.train(squeezed(0), points(16), schedule, feature_at("2"), teacher=squeezed(1))
