"""Trajectory and Recorder: against a plain loop measured by hand, each other, and real faults."""

import copy
import dataclasses
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import kpnb
from kpnb import distill
from kpnb._signature import digest_of_inputs, digest_of_units, digest_of_weights
from kpnb.checkpoint_files import in_order
from kpnb.checkpoints import Artefacts
from kpnb.distill import TensorData
from kpnb.inputs import read_inputs
from kpnb.learning import step_norms, weight_distance
from kpnb.metrics import NAMES, six_metrics
from kpnb.schedule import Schedule
from tests.by_hand import metrics_by_hand
from tests.models import images, small_net

GRID = kpnb.ImageGrid(4)
X = images(6, dtype=torch.float32)
FOREGROUND = (torch.arange(16) % 3 == 0).repeat(6, 1)
CHEAP = {"units": GRID, "choices": kpnb.Choices(b=0.05)}


def net(seed: int = 0) -> nn.Sequential:
    return small_net(seed=seed, norm=True)


def loop(model: nn.Module, epochs: int = 4, first: int = 1, seed: int = 0):
    """A training in plain PyTorch, with momentum-free steps; yields before it and after each
    epoch.
    """
    yield 0
    for epoch in range(first, epochs + 1):
        generator = torch.Generator().manual_seed(100 * seed + epoch)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            x = torch.randn(8, 3, 12, 12, generator=generator)
            y = torch.randint(5, (8,), generator=generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x), y).backward()
            optimiser.step()
        yield epoch


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """State dicts of a training, by epoch, and the pattern of the files it wrote."""
    folder, model, states = tmp_path_factory.mktemp("training"), net(), []
    torch.manual_seed(0)
    for epoch in loop(model):
        states.append(copy.deepcopy(model.state_dict()))
        torch.save({"model": states[-1], "epoch": epoch}, folder / f"epoch-{epoch}.pt")
    return states, str(folder / "epoch-*.pt")


def equal(one: kpnb.Trajectory, other: kpnb.Trajectory) -> bool:
    """Whether two trajectories are the same to the bit."""
    same = all(torch.equal(one.measured[k], other.measured[k]) for k in ("entropy", "sigma"))
    return same and list(one.norms) == list(other.norms) and dict(one.settings) == other.settings


def by_hand(states: list[dict]) -> dict[str, float]:
    """The metrics of a training, with kpnb's entropy and nothing else of kpnb."""
    model, entropies, norms = net(), [], []
    names = [name for name, _ in model.named_parameters()]
    before = {name: torch.zeros(()) for name in names}
    for state in states:
        model.load_state_dict(state)
        entropies.append(kpnb.entropy(model, X, "8", units=GRID).entropy.numpy())
        norms.append(
            {n: (state[n] - before[n]).double().square().sum().sqrt().item() for n in names}
        )
        before = state
    return metrics_by_hand(np.stack(entropies), FOREGROUND.numpy(), norms, 0.05)


def test_trajectory_and_recorder_agree_with_each_other_and_by_hand(trained):
    states, files = trained
    model = net()
    torch.manual_seed(0)
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", **CHEAP)
    for _ in loop(model):
        recorder.epoch()
    live = recorder.trajectory()
    assert all(torch.equal(states[-1][n], v) for n, v in model.state_dict().items())
    for checkpoints in (files, states, [lambda s=s: s for s in states]):
        assert equal(live, kpnb.trajectory(net(3), checkpoints, X, FOREGROUND, "8", **CHEAP))
    row, expected = live.row(), by_hand(states)
    for name in ("n_fg", "n_bg", "d_mean", "d_var", "rho"):
        assert row[name] == pytest.approx(expected[name], rel=1e-6)
    assert row["n_fg"] > 0
    assert live.metrics().undefined()["rho"] == expected["undefined rho"]


def test_what_a_trajectory_holds(trained):
    states, _ = trained
    found = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP)
    assert found.entropy.shape == (5, 6, 16)
    expected = six_metrics(found.entropy, FOREGROUND, found.distance, kpnb.Choices(b=0.05))
    assert found.row() == pytest.approx(expected.row(), nan_ok=True)
    strict = found.metrics(kpnb.Choices(b=0.1))
    assert strict.points.sum() < found.metrics().points.sum()
    table = found.table()
    assert [line["epoch"] for line in table] == [0, 1, 2, 3, 4]
    assert table[0]["distance"] == 0
    assert table[-1]["n_fg"] == pytest.approx(found.row()["n_fg"])
    assert found.settings["layer"] == "8"
    assert found.settings["epochs"] == 4


def test_distance_is_that_of_parameters_alone(trained):
    states, _ = trained
    found = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP)
    names = [name for name, _ in net().named_parameters()]

    def vector(state: dict) -> Tensor:
        return torch.cat([state[name].double().flatten() for name in names])

    path = [0.0]
    for before, after in pairwise(states):
        path.append(path[-1] + (vector(after) - vector(before)).norm().item())
    path = [length / vector(states[0]).norm().item() for length in path]
    assert found.distance.tolist() == pytest.approx(path)
    whole = [step_norms(states[0])]
    whole += [step_norms(a, b) for b, a in pairwise(states)]
    with pytest.raises(ValueError, match=r"running_mean is no parameter.*named_parameters"):
        weight_distance(whole[0], whole[1:])
    assert weight_distance(whole[0], whole[1:], names).tolist() == found.distance.tolist()


def test_a_known_trajectory_gives_known_numbers():
    """Weights 3-4 that move by 1 and 2, and points that are chosen: D and rho by hand."""
    entropy = torch.zeros(3, 2, 4)
    entropy[:, :, 2:] = 1.0  # the background, nats
    entropy[0] = 1.0
    entropy[1, 0, 1] = 1.0  # image 0: unit 0, then 0 and 1; image 1: 0 and 1, then 0
    entropy[2, 1, 1] = 1.0
    norms = [{"a": 3.0, "b": 4.0}, {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 2.0}]
    foreground = torch.tensor([[True, True, False, False]] * 2)
    found = kpnb.Trajectory(
        {"entropy": entropy}, norms, foreground, None, kpnb.Choices(), {"layer": "f"}
    )
    assert found.distance.tolist() == pytest.approx([0, 0.2, 0.6])
    row = found.row()
    assert row["n_fg"] == 1.5
    assert row["n_bg"] == 0
    assert row["lambda"] == 1
    assert row["d_mean"] == pytest.approx(0.4)  # 0.6 and 0.2
    assert row["d_var"] == pytest.approx(0.04)
    assert row["rho"] == pytest.approx(0.75)  # 2 of 2, 1 of 2


def test_a_filter_of_images_holds_for_row_and_table():
    """The second image's background is kept better than its foreground, so it does not count."""
    entropy = torch.zeros(2, 2, 4)
    entropy[:, 0, 1:] = 1.0
    entropy[:, 1, :3] = 1.0
    norms = [{"a": 3.0}, {"a": 1.0}]
    foreground = torch.tensor([[True, True, False, False]] * 2)
    given = ({"entropy": entropy}, norms, foreground)
    plain, filtered = (
        kpnb.Trajectory(*given, None, kpnb.Choices(filtered=filtered), {})
        for filtered in (False, True)
    )
    for each, n_fg in ((plain, 0.5), (filtered, 1.0)):
        assert each.row()["n_fg"] == each.table()[-1]["n_fg"] == n_fg


def test_a_background_that_is_not_named_is_everything_else():
    given = ({"entropy": torch.rand(2, 7, 4)}, [{"a": 3.0}, {"a": 1.0}])
    foreground = torch.tensor([[True, True, False, False]] * 7)
    one, same, other = (
        kpnb.Trajectory(*given, foreground, background, kpnb.Choices(), {})
        for background in (
            None,
            ~foreground,
            ~foreground & torch.tensor([False, False, True, False]),
        )
    )
    assert kpnb.compare(one, same)["n_bg"].value == 0
    with pytest.raises(ValueError, match=r"measured differently \(background\)"):
        kpnb.compare(one, other)


def test_the_users_model_is_left_as_it_was(trained):
    _, files = trained
    model = net(3).train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    loss = model(X).sum()  # a pass whose gradient is taken later
    model[7].weight.grad = torch.ones_like(model[7].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    kpnb.trajectory(model, files, X, FOREGROUND, "8", **CHEAP)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert torch.equal(model[7].weight.grad, torch.ones_like(model[7].weight))
    loss.backward()


def test_a_recorder_does_not_touch_the_training(trained):
    states, _ = trained
    model = net()
    torch.manual_seed(0)
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", **CHEAP)
    for _ in loop(model):
        mode = model.training
        recorder.epoch()
        assert model.training == mode
    assert all(torch.equal(states[-1][n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize("adamw", [False, True])
def test_it_agrees_with_our_own_trainings_to_the_digit(adamw, tmp_path):
    """Entropy, weight distance and metrics from a training's log, as a study takes them."""
    torch.manual_seed(0)
    data = TensorData(torch.randn(24, 3, 12, 12), torch.randint(5, (24,)))
    schedule = Schedule(epochs=3, batch_size=8, lr=0.01, adamw=adamw)
    training = distill.baseline(net(), data, schedule, folder=tmp_path)
    initial, *steps = training.step_norms()
    entropy = torch.stack(
        [
            kpnb.entropy(training.load(net(), epoch), X, "8", units=GRID).entropy
            for epoch in range(4)
        ]
    )
    expected = six_metrics(entropy, FOREGROUND, weight_distance(initial, steps), CHEAP["choices"])
    beside = CHEAP | {"folder": tmp_path}  # what was measured lies there from the first call on
    for checkpoints in (training, *[tmp_path / name for name in ("epoch-*.safetensors", "", "*s")]):
        found = kpnb.trajectory(net(3), checkpoints, X, FOREGROUND, "8", **beside)
        assert torch.equal(found.entropy, entropy)
        assert torch.equal(found.distance, weight_distance(initial, steps))
        assert str(found.row()) == str(expected.row())


def test_several_layers_at_once(trained):
    states, _ = trained
    layers, model = ["5", "8"], net(3)
    together = kpnb.trajectory(model, states, X, FOREGROUND, layers, **CHEAP)
    assert list(together) == layers
    alone = kpnb.trajectory(model, states, X, FOREGROUND, "8", **CHEAP)
    for epoch, state in enumerate(states):
        model.load_state_dict(state)
        expected = kpnb.entropy(model, X, layers, units=GRID)
        for layer in layers:
            assert torch.equal(together[layer].entropy[epoch], expected[layer].entropy)
    for layer in layers:
        assert torch.equal(together[layer].distance, alone.distance)
        assert together[layer].settings["layer"] == layer


def count_measurements(monkeypatch, fail_at: int | None = None) -> list[int]:
    """A list that grows by one with each measurement; the one of that number fails."""
    module = __import__("sys").modules["kpnb.trajectory"]
    measure, calls = module.entropy, []

    def counted(*args, **options):
        if len(calls) == fail_at:
            raise RuntimeError("power cut")
        calls.append(1)
        return measure(*args, **options)

    monkeypatch.setattr(module, "entropy", counted)
    return calls


class Counting(nn.Module):
    """A network that counts the rows of its passes, and how often weights are loaded."""

    passes: ClassVar[list[int]] = []
    loads: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        return self.net(x)

    def load_state_dict(self, *args, **options):
        self.loads.append(len(self.passes))
        return super().load_state_dict(*args, **options)


def test_an_epoch_costs_one_load_and_one_measurement(tmp_path):
    """As many passes of as many rows as a call of ``entropy`` for each checkpoint; the layers share
    them. Only the first epoch is looked at beforehand.
    """
    model, layers = Counting(), ["net.5", "net.8"]
    for epoch in range(4):
        torch.save({"state_dict": Counting().state_dict()}, tmp_path / f"epoch-{epoch}.pt")
    counts = {}
    for check in (True, False):
        Counting.passes.clear()
        kpnb.entropy(model, X, layers, units=GRID, check=check)
        counts[check] = [*Counting.passes]
    Counting.passes.clear(), Counting.loads.clear()
    kpnb.trajectory(model, str(tmp_path / "epoch-*.pt"), X, FOREGROUND, layers, **CHEAP)
    assert len(counts[True]) > len(counts[False]) > 0
    assert Counting.passes == counts[True] + 3 * counts[False]
    looked, each = len(counts[True]), len(counts[False])
    assert Counting.loads == [0, looked, looked + each, looked + 2 * each]


def test_stored_work_resumes_and_a_second_call_measures_nothing(trained, tmp_path, monkeypatch):
    _, files = trained
    plain = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)

    def run(**options) -> kpnb.Trajectory:
        options = CHEAP | options
        return kpnb.trajectory(net(3), files, X, FOREGROUND, "8", folder=tmp_path, **options)

    with monkeypatch.context() as patch:
        calls = count_measurements(patch, fail_at=3)
        with pytest.raises(RuntimeError, match="power cut") as error:
            run()
        assert "in checkpoint 3 of 0 to 4" in str(error.value.__notes__)
    calls = count_measurements(monkeypatch)
    assert equal(run(), plain)
    assert len(calls) == 2
    assert equal(run(), plain)
    assert len(calls) == 2
    run(seed=1)
    assert len(calls) == 7
    run(units=kpnb.ImageGrid(4), max_batch=8, choices=kpnb.Choices(b=0.3))  # alters no measurement
    assert len(calls) == 7
    artefact = sorted(tmp_path.glob("*.safetensors"))[0]
    data = bytearray(artefact.read_bytes())
    data[-1] ^= 1
    artefact.write_bytes(data)
    run(), run(seed=1)
    assert len(calls) == 8


@pytest.mark.parametrize("change", ["weights", "buffers", "input", "network", "layer"])
def test_what_was_measured_is_taken_only_for_the_same(change, trained, tmp_path, monkeypatch):
    states, _ = trained
    first = [copy.deepcopy(state) for state in states[:2]]
    kpnb.trajectory(net(3), first, X, FOREGROUND, "8", folder=tmp_path, **CHEAP)
    calls = count_measurements(monkeypatch)
    model, x, layer = net(3), X, "8"
    if change == "weights":
        first[0]["0.weight"][0, 0, 0, 0] += 1e-3
    elif change == "buffers":
        first[0]["1.running_mean"] += 1e-3
    elif change == "input":
        x = X + 1e-3
    elif change == "network":
        model[5] = nn.GELU()
    else:
        layer = "5"
    kpnb.trajectory(model, first, x, FOREGROUND, layer, folder=tmp_path, **CHEAP)
    assert len(calls) == (1 if change in ("weights", "buffers") else 2)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_recorder_goes_on_after_an_interruption(foreseen, trained, tmp_path, monkeypatch):
    """Also when nobody thought of ``resume`` before it."""
    states, files = trained
    plain = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)

    def recorder(model: nn.Module, resume: bool = True) -> kpnb.Recorder:
        return kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, resume=resume, **CHEAP)

    model = net()
    torch.manual_seed(0)
    first = recorder(model, resume=foreseen)
    for epoch in loop(model):
        if epoch == 3:
            break  # trained, and neither recorded nor saved
        first.epoch()
        generator = torch.get_rng_state()
    other = [net(seed).state_dict() for seed in (6, 7)]
    kpnb.trajectory(net(), other, X, FOREGROUND, "8", folder=tmp_path, **CHEAP)  # no training
    calls = count_measurements(monkeypatch)
    model = net(9)
    model.load_state_dict(states[2])
    torch.set_rng_state(generator)
    second = recorder(model)
    for _ in loop(model, first=3):
        second.epoch()
    assert equal(second.trajectory(), plain)
    assert len(calls) == 2
    stranger = recorder(net(5))
    with pytest.raises(ValueError, match="5 recorded epochs, and the model's weights are those of"):
        stranger.epoch()
    (tmp_path / "recorder.json").write_text("{")
    with pytest.raises(ValueError, match=r"list of epochs in .* is damaged"):
        recorder(model).epoch()


def recorded_with_schedule(folder: Path) -> nn.Sequential:
    """A network of two recorded epochs, whose rate of dropout the training has changed between."""
    model = net()
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", folder=folder, **CHEAP)
    recorder.epoch()
    model.load_state_dict(net(1).state_dict())
    model[9].p = 0.2
    recorder.epoch()
    return model


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1], ids=["as built", "as recorded", "next"])
def test_a_network_whose_attributes_the_training_changes_is_recorded_further(
    rate, tmp_path, monkeypatch, caplog
):
    states = [net(seed).state_dict() for seed in range(3)]
    plain = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP)
    model = recorded_with_schedule(tmp_path)
    calls = count_measurements(monkeypatch)
    model[9].p = rate
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, resume=True, **CHEAP)
    recorder.epoch()
    assert not caplog.messages
    model.load_state_dict(states[2])
    recorder.epoch()
    assert len(calls) == 1
    assert equal(recorder.trajectory(), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"with other settings \(seed\): give those again"),
        ({"scale": 2.0}, r"with other settings \(scale\)"),
        ({"x": X + 1}, r"with other settings \(input\)"),
        ({"layer": "5", "solver": kpnb.Stochastic()}, r"other settings \(layers, solver\)"),
        ({"damaged": "entropy-*.safetensors"}, "an epoch recorded in .* is damaged"),
        ({"forward": lambda model, x: model(2 * x)}, "epoch 1 the model computes something else"),
        ({"activation": nn.GELU()}, "epoch 1 the model computes something else"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_what_was_recorded_in_another_way_is_not_gone_on_with(change, message, tmp_path):
    model = recorded_with_schedule(tmp_path)
    given = {"x": X, "foreground": FOREGROUND, "layer": "8", "folder": tmp_path, "resume": True}
    given |= CHEAP | change
    model[8] = given.pop("activation", model[8])
    for file in tmp_path.glob(given.pop("damaged", "none")):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    recorder = kpnb.Recorder(model, **given)
    with pytest.raises(ValueError, match=message):
        recorder.epoch()


def test_epochs_that_are_not_gone_on_after_are_told(tmp_path, caplog):
    model = recorded_with_schedule(tmp_path)
    recorder = kpnb.Recorder(net(), X, FOREGROUND, "8", folder=tmp_path, resume=True, **CHEAP)
    recorder.epoch()  # an untrained network again
    assert "the training goes on after epoch 0 of the 1 that are recorded" in caplog.text
    caplog.clear()
    again = kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, resume=True, **CHEAP)
    again.epoch()  # nothing was replaced yet
    assert not caplog.messages


def test_a_damaged_measurement_is_told_and_made_anew(trained, tmp_path, caplog):
    states, _ = trained
    measure = lambda: kpnb.trajectory(net(9), states, X, FOREGROUND, "8", folder=tmp_path, **CHEAP)  # noqa: E731
    plain = measure()
    broken = sorted(tmp_path.glob("entropy-*.safetensors"))[1]
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    caplog.clear()
    assert equal(measure(), plain)
    assert f"{broken} is damaged: it is computed again" in caplog.text
    caplog.clear()
    assert equal(measure(), plain)
    assert not caplog.messages
    assert repr(plain).startswith(f"Trajectory(8, epochs 0 to {len(states) - 1}, {len(X)} x ")
    assert len(repr(plain)) < 60


def test_solvers_are_not_compared_with_each_other(trained):
    states, _ = trained
    draft, usual = (
        kpnb.trajectory(net(), states[:2], X, FOREGROUND, "8", solver=solver, **CHEAP)
        for solver in (kpnb.ClosedForm.draft(), kpnb.ClosedForm())
    )
    with pytest.raises(ValueError, match=r"measured differently \(solver ClosedForm\(.*compared$"):
        kpnb.compare(draft, usual)
    other = kpnb.trajectory(net(), states[:2], X, FOREGROUND, "5", **CHEAP)
    with pytest.raises(ValueError, match=r"\(layer '8' and '5'\).*two names, compare student\.met"):
        kpnb.compare(usual, other)
    with pytest.raises(TypeError, match=r"a size for each metric, \{'n_fg': 1\.0\}; got 0\.1"):
        kpnb.compare(usual, usual, delta=0.1)


def test_functions_that_share_a_folder_keep_what_is_theirs(tmp_path, monkeypatch):
    """With the same weights: each finds its own again, and a recorded training goes on."""
    model = recorded_with_schedule(tmp_path)
    states, calls = [net(seed).state_dict() for seed in (0, 1)], count_measurements(monkeypatch)
    for factor, expected in ((2, 2), (3, 4), (2, 4), (1, 4), (3, 4)):
        how = CHEAP | {"folder": tmp_path, "forward": eval(f"lambda m, x: m({factor} * x)")}
        found = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **how)
        assert len(calls) == expected
        plain = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **how | {"folder": None})
        assert torch.equal(found.entropy, plain.entropy)
        del calls[expected:]
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, resume=True, **CHEAP)
    recorder.epoch()
    model.load_state_dict(net(2).state_dict())
    recorder.epoch()
    assert len(recorder.trajectory().norms) == 3


def test_a_network_that_changes_its_function_alone_is_recorded_too(tmp_path):
    """An epoch of warm-up may leave the weights as they are, and an attribute not."""
    model = Scaled()
    recorder = kpnb.Recorder(model, X, FOREGROUND, "body.8", folder=tmp_path, **CHEAP)
    for gain in (1.0, 0.5):
        model.gain = gain
        recorder.epoch()
    with torch.no_grad():
        model.body[0].weight.mul_(2)
    recorder.epoch()
    first = recorder.trajectory()
    again = kpnb.Recorder(model, X, FOREGROUND, "body.8", folder=tmp_path, resume=True, **CHEAP)
    again.epoch()
    assert again._epochs == recorder._epochs
    again.epoch()
    assert torch.equal(again.trajectory().entropy[:3], first.entropy)
    model.body[0].weight.data.div_(2)
    for gain, epoch in ((1.0, 0), (0.5, 1)):  # of one state dict, and each is its own epoch
        model.gain = gain
        copied = tmp_path / str(epoch)
        shutil.copytree(
            tmp_path, copied, ignore=lambda folder, names: {n for n in names if n in "01"}
        )
        again = kpnb.Recorder(model, X, FOREGROUND, "body.8", folder=copied, resume=True, **CHEAP)
        again.epoch()
        assert len(again._epochs) == epoch + 1


BODY = nn.Sequential(nn.Flatten(), nn.Linear(432, 16))


class Tail(nn.Module):
    """A layer that is followed by a function, which is no part of its state."""

    def __init__(self, tail, body: nn.Module = BODY) -> None:
        super().__init__()
        self.body, self.tail, self.out = body, tail, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.tail(self.body(x)))


def minus_infinity(tail):
    return lambda h: torch.cat([tail(h), torch.full_like(h[:, :1], -torch.inf)], 1)


@pytest.mark.parametrize(
    ("one", "other", "x"),
    [
        (lambda h: 1e3 + h.relu(), lambda h: 1e3 + h.tanh(), X),
        (minus_infinity(torch.relu), minus_infinity(torch.tanh), X),
        (lambda h: h.relu(), lambda h: h.relu().bfloat16(), X),
        (lambda h: h.relu().bfloat16(), lambda h: h.relu(), X),
    ],
    ids=["beside a constant", "beside infinity", "to half precision", "from half precision"],
)
@pytest.mark.filterwarnings("ignore:the network computes in bfloat16")
def test_another_function_of_the_same_weights_is_measured_anew(
    one, other, x, tmp_path, monkeypatch
):
    states = [Tail(one).state_dict(), {k: 2 * v for k, v in Tail(one).state_dict().items()}]
    calls = count_measurements(monkeypatch)
    for tail, expected in ((one, 2), (other, 4), (one, 4), (other, 4)):
        kpnb.trajectory(Tail(tail), states, x, FOREGROUND, "out", folder=tmp_path, **CHEAP)
        assert len(calls) == expected


def test_a_function_that_differs_beside_the_samples_alone_is_measured_anew(tmp_path, monkeypatch):
    """A clamp to the range of images whose pixels lie at its ends."""
    x = (X > 0).float()
    states = [net(seed).state_dict() for seed in (0, 1)]
    calls = count_measurements(monkeypatch)
    forwards = (lambda m, x: m(x)), (lambda m, x: m(x.clamp(0, 1)))
    assert torch.equal(*(forward(net().eval(), x) for forward in forwards))
    for forward, expected in zip(forwards, (2, 4), strict=True):
        how = CHEAP | {"folder": tmp_path, "forward": forward}
        kpnb.trajectory(net(), states, x, FOREGROUND, "8", **how)
        assert len(calls) == expected


def test_a_layer_that_was_left_out_is_tried_again(tmp_path):
    model, states = Noisy(), [copy.deepcopy(Noisy().state_dict()) for _ in range(2)]
    how = CHEAP | {"folder": tmp_path}
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out 'head'"):
            found = kpnb.trajectory(model, states, X, FOREGROUND, ["body.8", "head"], **how)
        assert list(found) == ["body.8"]
    assert len([*tmp_path.glob("entropy-*.json")]) == 1  # of two equal networks
    found = kpnb.trajectory(Steady(), states, X, FOREGROUND, ["body.8", "head"], **how)
    assert list(found) == ["body.8", "head"]


@pytest.mark.parametrize("rows", [0, -1, 2.5])
def test_batches_of_nothing_are_refused_whatever_is_stored(rows, trained, tmp_path):
    _, files = trained
    how = CHEAP | {"folder": tmp_path}
    kpnb.trajectory(net(), files, X, FOREGROUND, "8", **how)
    with pytest.raises((TypeError, ValueError), match="max_batch"):
        kpnb.trajectory(net(), files, X, FOREGROUND, "8", max_batch=rows, **how)


class Trimming(nn.Module):
    """A model of texts that looks at as many tokens as the longest of a pass has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.out = nn.Linear(6, 5), nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        longest = int(mask.sum(1).max())
        return self.out(self.lin(x[:, :longest]) * mask[:, :longest, None])


def test_how_many_pass_at_a_time_is_no_other_function(tmp_path, monkeypatch):
    mask = torch.arange(9) < torch.tensor([3, 4, 5, 6, 7, 9])[:, None]
    x = {"x": torch.randn(6, 9, 6), "mask": mask.float()}
    states = [Trimming().state_dict(), {k: 2 * v for k, v in Trimming().state_dict().items()}]
    foreground = (torch.arange(9) % 2 == 0).repeat(6, 1)
    calls = count_measurements(monkeypatch)
    how = {"units": kpnb.Tokens(mask), "perturb": "x", "folder": tmp_path}
    for rows in (6, 2, 1):
        kpnb.trajectory(Trimming(), states, x, foreground, "out", max_batch=rows, **how)
        assert len(calls) == 2


def test_a_list_of_epochs_of_an_older_form_is_told(tmp_path):
    model = recorded_with_schedule(tmp_path)
    artefacts = Artefacts(tmp_path)
    epochs = artefacts.read("recorder").info["epochs"]
    older = [{k: v for k, v in entry.items() if k != "tensors"} for entry in epochs]
    artefacts.write("recorder", {}, {"epochs": older}, 0.0)
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, resume=True, **CHEAP)
    with pytest.raises(ValueError, match="damaged or of an older kpnb: start again"):
        recorder.epoch()


def test_a_recording_that_is_replaced_is_told(tmp_path, caplog):
    model = recorded_with_schedule(tmp_path)
    kpnb.trajectory(net(), [net(0), net(1)], X, FOREGROUND, "8", folder=tmp_path, **CHEAP)
    assert not caplog.messages
    further = kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, **CHEAP)
    with pytest.raises(ValueError, match=r"weights of epoch 1 .*: resume=True goes on after it"):
        further.epoch()
    recorder = kpnb.Recorder(net(2), X, FOREGROUND, "8", folder=tmp_path, **CHEAP)
    recorder.epoch()
    (said,) = caplog.messages
    assert "has 2 recorded epochs, whose list is replaced: resume=True goes on" in said


@pytest.mark.parametrize("as_network", [False, True], ids=["state dict", "network"])
def test_an_untrained_network_that_training_has_changed_is_told(
    as_network, trained, tmp_path, caplog
):
    """A live state dict before the files that the training writes, which no two entries share."""
    states, _ = trained
    model, rest = net(), tmp_path / "epoch-*.pt"
    untrained, copied = model.state_dict(), copy.deepcopy(model.state_dict())
    for epoch, state in enumerate(states[1:], 1):
        model.load_state_dict(state)
        torch.save(model.state_dict(), tmp_path / f"epoch-{epoch}.pt")
    right = kpnb.trajectory(net(), [copied, rest], X, FOREGROUND, "8", **CHEAP)
    assert not caplog.messages
    live = model if as_network else untrained
    wrong = kpnb.trajectory(net(), [live, rest], X, FOREGROUND, "8", **CHEAP)
    assert wrong.row()["d_mean"] != right.row()["d_mean"]
    (said,) = caplog.messages
    assert "checkpoint 0 has the weights of the last one, 4" in said
    assert "copy.deepcopy" in said


def test_what_a_killed_measurement_leaves_is_no_checkpoint(trained, tmp_path):
    for epoch, state in enumerate(trained[0]):
        torch.save(state, tmp_path / f"epoch-{epoch}.pt")
    how = {**CHEAP, "folder": tmp_path}
    first = kpnb.trajectory(net(), tmp_path, X, FOREGROUND, "8", **how)
    sorted(tmp_path.glob("entropy-*.json"))[0].unlink()  # the JSON is written last
    assert equal(first, kpnb.trajectory(net(), tmp_path, X, FOREGROUND, "8", **how))


def test_folders_may_have_brackets_in_their_names(tmp_path):
    """As those of sweeps; a name is no pattern where a folder has it."""
    folder = tmp_path / "lr[0.1]" / "run"
    folder.mkdir(parents=True)
    for epoch in range(3):
        torch.save(net(epoch).state_dict(), folder / f"epoch_{epoch}.pt")
        torch.save(net(epoch).state_dict(), folder / f"other_{epoch}.model")
    names = [Path(each).name for each in in_order(folder / "epoch_*.pt")]
    assert names == ["epoch_0.pt", "epoch_1.pt", "epoch_2.pt"]
    assert len(in_order(tmp_path / "lr[[]0.1]" / "*" / "epoch_*.pt")) == 3
    for each in folder.glob("*.pt"):
        each.unlink()
    with pytest.raises(FileNotFoundError, match="give a pattern or a list") as caught:
        in_order(folder)
    pattern = re.search(r"is it the pattern '(.*)'\?", str(caught.value))[1]
    assert len(in_order(pattern)) == 3


def test_after_an_exception_a_recorder_stands_where_it_stood(monkeypatch):
    model = net()
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", **CHEAP)
    recorder.epoch()
    with monkeypatch.context() as patch:
        count_measurements(patch, fail_at=0)
        with pytest.raises(RuntimeError, match="power cut"):
            recorder.epoch()
    with pytest.raises(ValueError, match=r"1 epochs recorded.*call epoch\(\) before the first"):
        recorder.trajectory()
    with torch.no_grad():
        model[7].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"epoch 1: not finite in parameters 7\.weight"):
        recorder.epoch()
    model.load_state_dict(net(1).state_dict())
    recorder.epoch()
    assert len(recorder.trajectory().norms) == 2


def test_a_full_disk_leaves_a_recorder_where_it_stood(tmp_path, monkeypatch):
    """The list of epochs cannot be written; the same epoch, once there is room, counts once."""
    model = net()
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", folder=tmp_path, **CHEAP)
    recorder.epoch()
    model.load_state_dict(net(1).state_dict())
    write = Artefacts.write

    def full(self, name, *rest):
        if name == "recorder":
            raise OSError("no space left")
        return write(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Artefacts, "write", full)
        with pytest.raises(OSError, match="no space"):
            recorder.epoch()
    recorder.epoch()
    steps = step_norms(dict(net(1).named_parameters()), dict(net().named_parameters()))
    (found,) = recorder.trajectory().norms[1:]
    assert found == pytest.approx(steps)


class Columns:
    """Units of somebody's own, without a word on what they are."""

    def __init__(self, width: int) -> None:
        self.width = width

    def count(self, x: Tensor) -> int:
        return x.shape[-1] // self.width

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        return values.repeat_interleave(self.width, 1)[:, None, None]

    def gather(self, elements: Tensor) -> Tensor:
        return elements.sum((1, 2)).unflatten(1, (-1, self.width)).sum(-1)


class Gathered(Columns):
    """The same columns, of which another number is summed."""

    def gather(self, elements: Tensor) -> Tensor:
        return super().gather(elements)[:, :1].repeat(1, 4)


def test_other_units_are_told_apart():
    """Of how many there are, which numbers are theirs, and how these are summed."""
    labels = (torch.arange(600) // 2).expand(1, 600)
    swapped = labels.clone()
    swapped[0, [515, 517]] = swapped[0, [517, 515]]  # 257 and 258, which bfloat16 rounds alike
    x = torch.randn(3, 1, 600).bfloat16()
    regions = kpnb.Regions(labels), kpnb.Regions(swapped), kpnb.Regions(labels, n=301)
    assert len({digest_of_units(units, x) for units in regions}) == 3
    assert digest_of_units(kpnb.Regions(labels.clone()), x) == digest_of_units(regions[0], x)
    assert digest_of_units(Columns(3), X) != digest_of_units(Gathered(3), X)


@pytest.mark.parametrize(
    "make",
    [lambda: kpnb.Regions((torch.arange(12) // 3).expand(12, 12)), lambda: Columns(3)],
    ids=["regions", "of one's own"],
)
def test_units_that_were_used_are_still_the_same(make, tmp_path, monkeypatch):
    """What they have computed since, or where they lie in memory, is no part of them."""
    foreground = torch.tensor([[True, False, False, True]]).repeat(len(X), 1)

    def recorded(weights: list[int]) -> kpnb.Trajectory:
        how = CHEAP | {"units": make(), "folder": tmp_path, "resume": True}
        recorder = kpnb.Recorder(net(), X, foreground, "8", **how)
        for seed in weights:
            recorder.model.load_state_dict(net(seed).state_dict())
            recorder.epoch()
        return recorder.trajectory()

    first = recorded([0, 1])
    calls = count_measurements(monkeypatch)
    longer = recorded([1, 2])  # goes on behind the second epoch
    assert len(calls) == 1
    assert torch.equal(longer.measured["entropy"][:2], first.measured["entropy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(nn.Linear(5, 2)), r"11\.bias is new; 11\.weight is new"),
        (lambda m: m.pop(10), r"10\.bias is gone; 10\.weight is gone"),
        (
            lambda m: m.__setitem__(10, nn.Linear(24, 7)),
            r"10\.bias had the shape \[5\] and has \[7\]; 10\.weight had the shape \[5, 24\]",
        ),
    ],
    ids=["grows", "shrinks", "another head"],
)
def test_a_network_that_changes_while_it_is_recorded_is_told_where(change, message):
    model = net()
    recorder = kpnb.Recorder(model, X, FOREGROUND, "8", **CHEAP)
    recorder.epoch()
    change(model)
    with pytest.raises(ValueError, match=rf"epoch 1: .* have changed \({message}"):
        recorder.epoch()


def test_one_bar_counts_checkpoints_and_a_recorder_shows_none(trained, bars):
    """What measures an epoch shows no bar of its own inside, nor in somebody's training loop."""
    states, _ = trained
    done = []

    def checkpoint(state: dict):
        return lambda: done.append(sum(bars[0].steps)) or state

    given = [checkpoint(state) for state in states]
    kpnb.trajectory(net(3), given, X, FOREGROUND, ["5", "8"], **CHEAP)
    (bar,) = bars
    assert done == [0, 1, 2, 3, 4]  # each is loaded when the ones before it are counted
    assert bar.steps == [1] * 5
    assert (bar.options["total"], bar.options["unit"]) == (5, "checkpoint")
    assert bar.options["desc"] == "entropy at 5, 8"
    assert bar.closed
    bars.clear()
    with pytest.raises(ValueError, match="does not fit"):
        kpnb.trajectory(net(3), [states[0], {"a": X}], X, FOREGROUND, "8", **CHEAP)
    assert [(bar.steps, bar.closed) for bar in bars] == [([1], True)]
    bars.clear()
    kpnb.trajectory(net(3), states, X, FOREGROUND, "8", progress=False, **CHEAP)
    recorder = kpnb.Recorder(net(), X, FOREGROUND, "8", **CHEAP)
    recorder.epoch()
    assert not bars


def test_checkpoints_in_natural_order(tmp_path):
    for epoch in (10, 9, 0, 1, 100):
        (tmp_path / f"epoch={epoch}-step={epoch * 7}.ckpt").touch()
    expected = [tmp_path / f"epoch={e}-step={e * 7}.ckpt" for e in (0, 1, 9, 10, 100)]
    assert in_order(str(tmp_path / "*.ckpt")) == expected
    assert in_order(tmp_path / "epoch*") == expected
    assert in_order(tmp_path) == expected
    assert in_order(expected[::-1]) == expected[::-1]  # a list is taken at its word
    first = tmp_path / "first.pt"
    first.touch()
    assert in_order(iter([first, str(tmp_path / "*.ckpt")])) == [first, *expected]
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"more than their numbers \(.*last\.ckpt\).*narrow"):
        in_order(tmp_path / "*.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoints match .*looked in"):
        in_order("nowhere/*.bin")
    with pytest.raises(ValueError, match=r"1 checkpoint\(s\)"):
        in_order([expected[0]])


def test_what_is_not_there_is_named_before_anything_is_measured(trained, tmp_path, monkeypatch):
    """Alone or among others; a single file that is there is another thing."""
    _, files = trained
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["kpnb.trajectory"], "entropy", None)
    (tmp_path / "ck").mkdir()
    for name in ("runs/nope", "ck/lst/", "ck/nope.pt"):
        for given in (name, Path(name), [files, name]):
            says = (
                rf"{name.rstrip('/')}/?: there is no such file or folder \(looked in {tmp_path}\)"
            )
            with pytest.raises(FileNotFoundError, match=says):
                kpnb.trajectory(net(), given, X, FOREGROUND, "8", **CHEAP)
    with pytest.raises(FileNotFoundError, match=r"/nope: there is no such file or folder$"):
        in_order(tmp_path / "nope")
    with pytest.raises(ValueError, match=r"1 checkpoint\(s\).*one epoch$"):
        kpnb.trajectory(net(), files.replace("*", "1"), X, FOREGROUND, "8", **CHEAP)


def test_the_home_folder_is_where_shells_have_it(trained, tmp_path, monkeypatch):
    states, files = trained
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ck").mkdir()
    for epoch, state in enumerate(states):
        torch.save(state, tmp_path / "ck" / f"{epoch}.pt")
    expected = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)
    for given in ("~/ck", Path("~/ck"), "~/ck/*.pt", [f"~/ck/{k}.pt" for k in range(len(states))]):
        found = kpnb.trajectory(net(3), given, X, FOREGROUND, "8", **CHEAP)
        assert equal(found, expected)
    kpnb.Recorder(net(), X, FOREGROUND, "8", folder="~/kept", **CHEAP).epoch()
    assert (tmp_path / "kept" / "recorder.json").exists()


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_file_where_results_are_to_go_is_told_before_anything_is_measured(
    below, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.modules["kpnb.trajectory"], "entropy", None)
    (tmp_path / "kept").write_text("mine")
    how = {"folder": f"{tmp_path}/kept{below}", **CHEAP}
    says = rf"cannot write to .*kept{below}: {tmp_path}/kept is a file, where a folder is wanted"
    with pytest.raises(NotADirectoryError, match=says):
        kpnb.Recorder(net(), X, FOREGROUND, "8", **how)
    with pytest.raises(NotADirectoryError, match=says):
        kpnb.trajectory(net(), trained[1], X, FOREGROUND, "8", **how)
    with pytest.raises(NotADirectoryError, match=says):  # whatever else writes there
        Artefacts(how["folder"]).write("name", {}, {}, 0.0)
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_folder_of_endings_with_a_dot_in_them(trained, tmp_path):
    """As PyTorch's own examples write them. An archive of another kind does not count."""
    states, files = trained
    for epoch, state in enumerate(states):
        torch.save({"state_dict": state}, tmp_path / f"ck_{epoch}.pth.tar")
    (tmp_path / "images_2.tar").touch()
    found = kpnb.trajectory(net(3), tmp_path, X, FOREGROUND, "8", **CHEAP)
    assert equal(found, kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP))


@pytest.mark.parametrize(
    ("places", "pattern"),
    [
        (["checkpoint-{}/model.safetensors", "checkpoint-{}/optimizer.pt"], "checkpoint-*"),
        (["epoch-{}/weights.pt"], "epoch-*"),
        (["epoch-{}/net.pt", "epoch-{}/optim.pt"], "epoch-*/net.pt"),
        (["ck-{}.weights", "log-{}.txt"], "ck-*.weights"),
    ],
)
@pytest.mark.parametrize("last", [None, "model.safetensors"])
def test_a_folder_that_is_full_of_something_else_says_of_what(
    last, places, pattern, trained, tmp_path
):
    """And the pattern that it suggests is the right one."""
    states, files = trained
    for epoch, state in enumerate(states):
        for place in places:
            path = tmp_path / place.format(epoch)
            path.parent.mkdir(exist_ok=True)
            if path.suffix == ".txt":
                path.write_text("text")
            elif path.suffix == ".safetensors":
                save_file(state, path)
            else:
                torch.save(state, path)
    (tmp_path / ".hidden").touch()
    error, says = FileNotFoundError, r"no checkpoints in .*: it holds (checkpoint|epoch|ck)-0.*"
    says += r"; in a folder, files that end in .*\.pth\.tar.* count"
    if last:  # what the last weights were saved as, beside the others
        save_file(states[-1], tmp_path / last)
        error, says = ValueError, r"1 checkpoint\(s\)"
    with pytest.raises(error, match=f"{says}.*; is it the pattern '.*'") as caught:
        kpnb.trajectory(net(3), tmp_path, X, FOREGROUND, "8", **CHEAP)
    assert ".hidden" not in str(caught.value)
    suggested = re.search("is it the pattern '(.*)'", str(caught.value))[1]
    assert suggested == str(tmp_path / pattern)
    found = kpnb.trajectory(net(3), suggested, X, FOREGROUND, "8", **CHEAP)
    assert equal(found, kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP))


@pytest.mark.parametrize(
    "names",
    [
        ["val_loss=0.9-epoch=0.ckpt", "val_loss=0.8-epoch=1.ckpt", "val_loss=1.2-epoch=2.ckpt"],
        ["acc12_ep0.pt", "acc10_ep1.pt", "acc75_ep10.pt"],
        ["230501_epoch0.pt", "230430_epoch1.pt", "230502_epoch2.pt"],
        ["e0/step=9-epoch=0.ckpt", "e0/step=8-epoch=1.ckpt"],
        ["epoch=0-step=0.ckpt", "epoch=0-step=500.ckpt", "epoch=1-step=0.ckpt"],
        ["ema0.9_global_step0.pt", "ema0.5_global_step500.pt"],
        ["step_2/9.pt", "step_2/10.pt"],
        ["0-0.pt", "500-1.pt", "1000-2.pt"],
        ["0_loss0.90.pt", "1_loss0.85.pt", "2_loss1.20.pt", "3_loss0.70.pt"],
        ["0.7-1.pt", "0.9-2.pt", "0.8-3.pt", "0.85-4.pt"],
    ],
)
def test_epochs_are_ordered_by_the_number_that_counts_them(names, tmp_path, caplog):
    """Not by a score, a clock or a date that comes first."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = in_order(str(tmp_path / ("*/*" if "/" in names[0] else "*")))
    assert found == [tmp_path / name for name in names]
    caplog.clear()
    in_order([str(tmp_path / name) for name in names])
    assert not caplog.records
    in_order([tmp_path / name for name in reversed(names)])
    assert "do not grow as the list goes on" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["0.9-0.pt", "0.8-1.pt", "1.2-2.pt"],
        ["12-10_1.pt", "11-30_2.pt"],
        ["w-100-2.pt", "w-200-1.pt", "w-300-3.pt", "w-400-4.pt"],
        ["top1_87.pt", "top2_86.pt", "top3_88.pt", "top4_83.pt"],
        ["0.5_10_4.pt", "0.4_20_3.pt", "0.3_30_1.pt", "0.2_40_2.pt"],
        ["seed1/epoch-0.pt", "seed1/epoch-1.pt", "seed2/epoch-0.pt", "seed2/epoch-1.pt"],
    ],
)
def test_numbers_that_do_not_agree_about_the_order_are_an_error(names, tmp_path, caplog):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"several numbers that do not grow together .* a list"):
        in_order(str(tmp_path / ("*/*" if "/" in names[0] else "*")))
    files = [tmp_path / name for name in names]
    assert in_order(files) == files


def test_lists_that_are_not_in_the_order_of_their_numbers_are_told(tmp_path, monkeypatch, caplog):
    files = [f"runs/epoch-{epoch}.pt" for epoch in range(12)]
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for name in ("runs/init-0.pt", "other.pt", *files):
        Path(name).touch()
    for fine in (files, map(Path, files), ["runs/init-0.pt", *files[1:]], [net().state_dict()] * 1):
        in_order([*fine, "other.pt"])
    assert not caplog.records
    for wrong in (sorted(files), reversed(files), (Path(file) for file in sorted(files))):
        caplog.clear()
        assert len(in_order(wrong)) == 12
        assert "do not grow as the list goes on" in caplog.text
        assert re.search(r"epoch-\d+\.pt, .*\(12 in all\).*runs.epoch-\*\.pt", caplog.text)
    with pytest.raises(TypeError, match="a set of checkpoints has no order: give a list"):
        in_order(set(files))


def test_folders_of_checkpoints_in_natural_order(trained, tmp_path):
    states, files = trained
    for epoch, state in enumerate(states):
        folder = tmp_path / f"checkpoint-{epoch * 5}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
    found = kpnb.trajectory(net(3), tmp_path / "checkpoint-*", X, FOREGROUND, "8", **CHEAP)
    assert equal(found, kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP))


def test_networks_and_the_model_itself_as_checkpoints(trained):
    """The untrained network is often not saved; the copy that is loaded leaves it alone."""
    _, files = trained
    model = net()
    pattern = files.replace("*", "[1-9]")
    expected = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)
    for first in (model, model.state_dict(), lambda: model):
        assert equal(
            kpnb.trajectory(model, [first, pattern], X, FOREGROUND, "8", **CHEAP), expected
        )
    with pytest.raises(ValueError, match="checkpoints 0 and 1 are the same tensors in memory"):
        kpnb.trajectory(model, [model.state_dict()] * 2, X, FOREGROUND, "8", **CHEAP)


@pytest.mark.parametrize(
    ("kept", "entry"),
    [
        (lambda model: model, None),
        (nn.DataParallel, None),
        (lambda model: model.state_dict(), None),
        (lambda model: {"model": model.state_dict(), "loss": torch.rand(())}, None),
        (lambda model: {"model": net().state_dict(), "ema": model.state_dict()}, "ema"),
    ],
    ids=["network", "wrapped", "state dict", "with a loss", "by its entry"],
)
def test_a_network_that_goes_on_training_is_no_checkpoint(kept, entry):
    """A generator is run to its end first, so all of its epochs would be the last."""
    model, how = net(), CHEAP | {"entry": entry}
    with pytest.raises(ValueError, match=r"0 and 1 are the same tensors .*before the first is"):
        kpnb.trajectory(net(3), (kept(model) for _ in loop(model)), X, FOREGROUND, "8", **how)
    copies = (copy.deepcopy(kept(model)) for _ in loop(model, 2))
    found = kpnb.trajectory(net(3), copies, X, FOREGROUND, "8", **how)
    assert found.distance.diff().min() > 0


def test_averages_and_students_by_name(trained, caplog):
    states, files = trained
    both = [{"state_dict": s, "state_dict_ema": {n: v * 2 for n, v in s.items()}} for s in states]
    found = kpnb.trajectory(net(3), both, X, FOREGROUND, "8", **CHEAP)
    assert equal(found, kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP))
    assert caplog.text.count("weights taken from 'state_dict'") == 1  # said once
    doubled = kpnb.trajectory(net(3), both, X, FOREGROUND, "8", entry="state_dict_ema", **CHEAP)
    assert not torch.equal(doubled.entropy, found.entropy)


def test_a_checkpoint_that_does_not_fit_is_named(trained, tmp_path):
    states, _ = trained
    torch.save(states[0], tmp_path / "epoch-0.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "epoch-1.pt")
    with pytest.raises(ValueError, match=r"epoch-1\.pt does not fit"):
        kpnb.trajectory(net(3), tmp_path, X, FOREGROUND, "8", **CHEAP)


class ZeroHead(nn.Module):
    """A head that starts at zero, as many do: its output does not move before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net(), nn.Linear(5, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_an_untrained_layer_that_does_not_move_is_said(caplog):
    model = ZeroHead()
    states = [copy.deepcopy(model.state_dict())]
    for seed in (1, 2):
        torch.manual_seed(seed)
        nn.init.normal_(model.head.weight)
        states.append(copy.deepcopy(model.state_dict()))
    with caplog.at_level(logging.WARNING):
        found = kpnb.trajectory(model, states, X, FOREGROUND, ["body.8", "head"], **CHEAP)
    assert re.search(r"epoch 0, samples 0, .*5 \(6 of 6\): .*'head' does not move", caplog.text)
    assert found["head"].entropy[0].isnan().all()
    assert not math.isnan(found["head"].row()["n_fg"])
    assert not math.isnan(found["head"].row()["rho"])
    assert not found["body.8"].entropy.isnan().any()


class Explosive(nn.Module):
    """A feature that overflows where what goes in is too strong for ``gain``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.gain = nn.Linear(432, 8), nn.Parameter(torch.ones(()))
        self.hot, self.head = nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x.flatten(1))
        return self.head(self.hot((self.gain * h.abs()).exp())) + 0 * h.sum()


@pytest.mark.parametrize("live", [False, True], ids=["trajectory", "recorder"])
def test_a_feature_that_overflows_in_a_checkpoint_is_said(live, caplog):
    """Which samples do is seen from the model itself; what is finite keeps its numbers."""
    model = Explosive()
    x = X * torch.tensor([1, 1, 9, 1, 9, 1.0])[:, None, None, None]
    states = [copy.deepcopy(model.state_dict()) for _ in range(4)]
    states[2]["gain"] = torch.tensor(5.0)
    model.load_state_dict(states[2])
    finite = model(x).isfinite().all(1)
    assert finite.tolist() == [True, True, False, True, False, True]
    layers = ["hot", "body"]
    if live:
        recorder = kpnb.Recorder(model, x, FOREGROUND, layers, **CHEAP)
        for state in states:
            model.load_state_dict(state)
            recorder.epoch()
        found = recorder.trajectory()
    else:
        found = kpnb.trajectory(model, states, x, FOREGROUND, layers, **CHEAP)
    assert re.findall(r"epoch \d, samples .*", caplog.text) == [
        "epoch 2, samples 2, 4 (2 of 6): the feature of layer 'hot' is not finite (NaN or "
        "infinite), or its derivative or the square of that is not (float64 has room for more); "
        "their entropy is undefined there"
    ]
    assert torch.equal(found["hot"].entropy[2].isfinite().all(-1), finite)
    assert found["hot"].entropy[[0, 1, 3]].isfinite().all()
    assert found["body"].entropy.isfinite().all()
    assert found["hot"].metrics().undefined()["rho"] >= 2


def test_a_mean_entropy_out_of_reach_is_said(caplog):
    states = [net(seed).state_dict() for seed in (1, 2)]
    how = CHEAP | {"objective": kpnb.Aligned(0.5)}
    found = kpnb.trajectory(net(), states, X, FOREGROUND, "8", **how)
    assert found.entropy.isnan().all()
    for epoch in (0, 1):
        assert re.search(rf"epoch {epoch}, .*\(6 of 6\): .*never gets as high", caplog.text)


class TwoInputs(nn.Module):
    """A network of an image and of a gain for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, image: Tensor, gain: Tensor) -> Tensor:
        return self.body(image * gain[:, None, None, None])


def test_networks_of_several_inputs(trained, tmp_path, monkeypatch):
    """Gains of one change nothing; others are another input."""
    states, files = trained
    plain = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)
    states = [{f"body.{name}": value for name, value in state.items()} for state in states]
    layer, options = "body.8", CHEAP | {"perturb": "image", "folder": tmp_path}
    x = {"image": X, "gain": torch.ones(6)}
    found = kpnb.trajectory(TwoInputs(), states, x, FOREGROUND, layer, **options)
    assert torch.equal(found.entropy, plain.entropy)
    calls = count_measurements(monkeypatch)
    kpnb.trajectory(TwoInputs(), states, x, FOREGROUND, layer, **options)
    assert not calls
    louder = x | {"gain": torch.full((6,), 2.0)}
    other = kpnb.trajectory(TwoInputs(), states, louder, FOREGROUND, layer, **options)
    assert len(calls) == 5
    with pytest.raises(ValueError, match=r"measured differently \(input\)"):
        kpnb.compare(found, other)
    recorder = kpnb.Recorder(
        net(), X, FOREGROUND, "8", forward=lambda model, x: model(x[..., :12]), **CHEAP
    )
    recorder.epoch()
    recorder.epoch()
    assert torch.equal(recorder.trajectory().entropy[0], plain.entropy[0])


class Weighted(nn.Module):
    """A network of an image and of weights of its pixels, the first 432, wherever those are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, image: Tensor, kept: object) -> Tensor:
        while not isinstance(kept, Tensor):
            kept = vars(kept) if hasattr(kept, "__dict__") else kept
            kept = next(iter(kept.values() if isinstance(kept, dict) else kept))
        return self.body(image * kept.to_dense()[:432].view(3, 12, 12))


class Kept:
    def __init__(self, weights: object) -> None:
        self.weights = weights


@pytest.mark.parametrize(
    "kept",
    [
        lambda w: [w],
        lambda w: (w,),
        lambda w: {"weights": w},
        lambda w: {"weights": [w]},
        lambda w: SimpleNamespace(weights=w),
        Kept,
        lambda w: [w.to_sparse()],
    ],
    ids=["list", "tuple", "dict", "nested", "namespace", "object", "sparse"],
)
def test_tensors_in_containers_are_part_of_the_input(kept, tmp_path, monkeypatch):
    """All of their numbers, of which text shows the first and last."""
    weights = torch.full((2000,), 1.1)
    other = weights.clone()
    other[3:-3] = 1.2
    states = [Weighted().state_dict(), {k: 2 * v for k, v in Weighted().state_dict().items()}]
    calls = count_measurements(monkeypatch)

    def measured(w: Tensor, folder: Path | None = tmp_path) -> kpnb.Trajectory:
        given = {"image": X, "kept": kept(w.clone())}
        how = CHEAP | {"perturb": "image", "shared": "kept", "folder": folder}
        return kpnb.trajectory(Weighted(), states, given, FOREGROUND, "body.8", **how)

    for w, expected in ((weights, 2), (weights, 2), (other, 4), (other, 4)):
        found = measured(w)
        assert len(calls) == expected
    assert torch.equal(found.entropy, measured(other, folder=None).entropy)


def test_the_digest_of_inputs_takes_in_tensors_and_constants_wherever_they_are():
    def of(value: object) -> str:
        given = {"image": X, "other": value}
        return digest_of_inputs(read_inputs(net(), given, "image", "other"))

    one, two = torch.ones(2), torch.zeros(2)
    pairs = [(value, value + 1) for value in (1, 1.5, one, 2j)]
    pairs += [({"a": None}, {"a": 1}), ("a", "b"), (None, False), ([1, [2]], [1, [3]]), ([], ())]
    pairs += [({1: one, "1": two}, {1: two, "1": one}), ({"a": {"b": one}}, {"a]['b": one})]
    pairs += [([1, {"a": one}], [1, {"a": other}]) for one, other in pairs]
    for value, other in pairs:
        assert of(value) == of(copy.deepcopy(value))
        assert of(value) != of(other)
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    within: list = [1]
    within.append(within)
    strange = (SimpleNamespace(a=1), within, torch.ones(2, dtype=torch.complex64).conj())
    strange += ([torch.ones(2, device="meta")], [torch.ones(2).to_sparse()], torch.empty(0))
    for value in strange:  # whose addresses say nothing
        assert of(value) == of(value)


def test_how_the_model_is_called_is_part_of_what_was_measured(trained, tmp_path, monkeypatch):
    states, _ = trained
    calls = count_measurements(monkeypatch)
    for factor, expected in ((1, 2), (1, 2), (2, 4)):
        source = f"lambda model, x: model({factor} * x)"
        options = CHEAP | {"forward": eval(source), "folder": tmp_path}
        kpnb.trajectory(net(3), states[:2], X, FOREGROUND, "8", **options)
        assert len(calls) == expected


GAIN = 1.0


class Scaled(nn.Module):
    """A network whose function depends on a number that is no weight, wherever that is kept."""

    gains: ClassVar[list[float]] = [1.0]
    named: ClassVar[dict[str, tuple[float]]] = {"gain": (1.0,)}

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.body, self.gain = net(), gain
        self.config, self.table = SimpleNamespace(gain=gain), {"gain": [torch.tensor(gain)]}

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.gain * self.config.gain * self.table["gain"][0]
        x = x * self.gains[0] * self.named["gain"][0]
        return self.body(scaled(x))


def scaled(x: Tensor) -> Tensor:
    return torch.stack([GAIN * image for image in x])


def scale_by(gain: float):
    return lambda model, x: model(gain * x)


ops, inner = ModuleType("ops"), ModuleType("ops.inner")  # of somebody's own, in two files
ops.inner, inner.ops = inner, ops  # that import each other


def written_in(module: ModuleType, gain: float) -> ModuleType:
    exec(f"def times(x):\n    return {gain} * x", vars(module))
    return module


class ScaleBy:
    def __init__(self, gain: float) -> None:
        self.gain = gain

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        return model(self.gain * x)


CHANGES = {
    "closure": lambda g, model, patch: scale_by(g),
    "nested closure": lambda g, model, patch: (lambda f: lambda m, x: f(m, x))(scale_by(g)),
    "partial": lambda g, model, patch: partial(lambda m, x, g: m(g * x), g=g),
    "method": lambda g, model, patch: ScaleBy(g).__call__,
    "object": lambda g, model, patch: ScaleBy(g),
    "attribute": lambda g, model, patch: setattr(model, "gain", g),
    "attribute of an attribute": lambda g, model, patch: setattr(model.config, "gain", g),
    "tensor in a container": lambda g, model, patch: model.table["gain"][0].fill_(g),
    "slope of a layer": lambda g, model, patch: setattr(model.body, "2", nn.LeakyReLU(g)),
    "global": lambda g, model, patch: patch.setattr(sys.modules[__name__], "GAIN", g),
    "list of a class": lambda g, model, patch: patch.setattr(Scaled, "gains", [g]),
    "dict of a class": lambda g, model, patch: patch.setattr(Scaled, "named", {"gain": (g,)}),
    "module": lambda g, model, patch: written_in(ops, g) and (lambda m, x: m(ops.times(x))),
    "module in a module": lambda g, model, patch: (
        written_in(inner, g) and (lambda m, x: m(ops.inner.times(x)))
    ),
    "module in a closure": lambda g, model, patch: (lambda own: lambda m, x: m(own.times(x)))(
        written_in(inner, g)
    ),
    "sparse matrix": lambda g, model, patch: partial(
        lambda m, x, w: m(x * w.to_dense()[:432].view(3, 12, 12)),
        w=torch.cat([torch.ones(9), torch.full((1980,), g), torch.ones(11)]).to_sparse(),
    ),
    "hook": lambda g, model, patch: model.register_forward_pre_hook(lambda m, x: (x[0] * g,)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_function_that_was_measured_is_known_by_what_it_depends_on(
    change, trained, tmp_path, monkeypatch
):
    """Another number anywhere is another function; the same again is read, and says the same."""
    states = [{f"body.{name}": value for name, value in s.items()} for s in trained[0][:2]]
    calls = count_measurements(monkeypatch)

    def measured(gain: float, folder: Path | None = tmp_path) -> Tensor:
        model = Scaled()
        with pytest.MonkeyPatch.context() as patch:
            forward = change(gain, model, patch)
            how = CHEAP | ({"forward": forward} if callable(forward) else {}) | {"folder": folder}
            return kpnb.trajectory(model, states, X, FOREGROUND, "body.8", **how).entropy

    for gain, expected in ((1.0, 2), (0.2, 4), (1.0, 4), (0.2, 4)):
        found = measured(gain)
        assert len(calls) == expected
    assert torch.equal(found, measured(0.2, folder=None))


def test_another_process_measures_nothing_again(trained, tmp_path):
    """Whatever its addresses, the order of its sets and the number of its threads."""
    _, files = trained
    first = kpnb.trajectory(net(), files, X, FOREGROUND, "8", folder=tmp_path, **CHEAP)
    code = f"""
        import torch, kpnb
        from tests.test_trajectory import CHEAP, FOREGROUND, X, net
        torch.set_num_threads(2)
        kpnb.trajectory.__globals__["entropy"] = None
        how = CHEAP | {{"folder": {str(tmp_path)!r}}}
        found = kpnb.trajectory(net(), {files!r}, X, FOREGROUND, "8", **how)
        print(found.row()["rho"])
    """
    told = os.environ | {"PYTHONHASHSEED": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=True)
    assert float(done.stdout) == first.row()["rho"]


def test_a_change_of_one_sample_among_many_is_seen(tmp_path, monkeypatch):
    """Though it is lost in the mean over all of them; rounding is no change."""
    x, foreground = images(60, dtype=torch.float32), FOREGROUND[:1].repeat(60, 1)
    states = [net(seed).state_dict() for seed in (0, 1)]
    calls = count_measurements(monkeypatch)
    factor = torch.ones(60, 1, 1, 1)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch * factor if len(batch) == 60 else batch)

    for change, expected in ((1.0, 2), (1 + 1e-7, 2), (1.01, 4)):
        factor[7] = change
        how = CHEAP | {"forward": forward, "folder": tmp_path, "max_batch": 60}
        kpnb.trajectory(net(), states, x, foreground, "8", **how)
        assert len(calls) == expected


@pytest.mark.parametrize("layer", ["8", "_orig_mod.8"])
def test_a_compiled_model_is_measured_as_the_original(trained, layer):
    _, files = trained
    expected = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)
    model = torch.compile(net(3), backend="eager")
    found = kpnb.trajectory(model, files, X, FOREGROUND, layer, **CHEAP)
    assert torch.equal(found.entropy, expected.entropy)
    assert torch.equal(found.distance, expected.distance)


class Noisy(nn.Module):
    """Another output each time, and a layer before it that has none of that."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.body(x)))


class Steady(Noisy):
    """The same without the noise."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_layers_that_cannot_be_measured_are_left_out_and_named(tmp_path):
    states = [copy.deepcopy(Noisy().state_dict()) for _ in range(2)]
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out 'head'"):
            found = kpnb.trajectory(Noisy(), states, X, FOREGROUND, ["body.8", "head"], **CHEAP)
        assert list(found) == ["body.8"]
        assert len(found["body.8"].norms) == 2


def test_regions_that_do_not_fit_are_refused_before_anything_is_measured(trained, monkeypatch):
    states, _ = trained
    calls = count_measurements(monkeypatch)
    for wrong in (FOREGROUND[:5], FOREGROUND.float(), FOREGROUND[:, :9]):
        with pytest.raises(ValueError, match=r"bool \[6, 16\], images by units.*covered_units"):
            kpnb.trajectory(net(), states, X, wrong, "8", **CHEAP)
    none, every = torch.zeros_like(FOREGROUND), torch.ones_like(FOREGROUND)
    for regions, message in (
        ({"background": FOREGROUND}, r"foreground and on the background \(samples 0, .*covered_"),
        ({"background": none}, "no image has a background unit.*void value"),
        ({"foreground": none}, "no image has a foreground unit.*void value"),
        ({"foreground": every}, "no image has a background unit"),
    ):
        given = {"x": X, "layer": "8", "foreground": FOREGROUND, **CHEAP} | regions
        with pytest.raises(ValueError, match=message):
            kpnb.trajectory(net(), states, **given)
        with pytest.raises(ValueError, match=message):
            kpnb.Recorder(net(), **given)
    assert not calls


def test_regions_and_inputs_may_be_arrays(trained):
    states, _ = trained
    wanted = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP)
    for region in (FOREGROUND.numpy(), FOREGROUND.tolist()):
        other = (~FOREGROUND).numpy()
        found = kpnb.trajectory(
            net(3), states, X.double().numpy(), region, "8", background=other, **CHEAP
        )
        assert torch.equal(found.entropy, wanted.entropy)
        assert found.row() == pytest.approx(wanted.row(), nan_ok=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"foreground": "mask.png"}, TypeError, "a region must come as a tensor or an array"),
        ({"model": lambda x: x}, TypeError, r"the model is a torch\.nn\.Module; got function"),
        ({"x": iter([X])}, TypeError, "the input is a tensor .*kpnb.entropies"),
        ({"layer": 8}, TypeError, "layers go by their names"),
        ({"units": 4}, TypeError, "units are an object such as .*got int 4"),
        ({"choices": 0.2}, TypeError, r"choices are kpnb\.Choices"),
        ({"sclae": 2.0}, TypeError, "unknown option 'sclae'; did you mean 'scale'"),
        ({"foldr": "kept"}, TypeError, "unknown option 'foldr'; did you mean 'folder'"),
        ({"dead": "nan"}, TypeError, "dead is an option of kpnb.entropy alone"),
        ({"check": False}, TypeError, "check is an option of kpnb.entropy alone"),
    ],
)
def test_arguments_of_another_kind_are_named(change, error, message):
    given = {"model": net(), "x": X, "foreground": FOREGROUND, "layer": "8", **CHEAP} | change
    for measured in (
        lambda **how: kpnb.trajectory(checkpoints=[net(s).state_dict() for s in (0, 1)], **how),
        kpnb.Recorder,
    ):
        with pytest.raises(error, match=message):
            measured(**given)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"b": -0.1}, "b=-0.1 must not be negative"),
        ({"level": "images"}, "unknown level 'images'; did you mean 'image'"),
        ({"empty": "no"}, "unknown empty 'no'"),
        ({"first": -1}, "epochs count from 0"),
    ],
)
def test_choices_that_make_no_sense_are_named(how, message):
    with pytest.raises(ValueError, match=message):
        kpnb.Choices(**how)


def test_units_of_neither_region_do_not_count(trained):
    states, _ = trained
    background = ~FOREGROUND
    background[:, 8:] = False
    foreground = FOREGROUND.clone()
    foreground[:, 8:] = False
    found = kpnb.trajectory(net(3), states, X, foreground, "8", background=background, **CHEAP)
    half = {"entropy": found.entropy[..., :8]}
    alone = kpnb.Trajectory(half, found.norms, foreground[:, :8], None, found.choices, {})
    assert found.row() == pytest.approx(alone.row(), nan_ok=True)


def test_comparisons_take_trajectories(trained):
    states, _ = trained
    student = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP)
    baseline = kpnb.trajectory(net(3), states[:3], X, FOREGROUND, "8", **CHEAP)
    expected = kpnb.compare(student.metrics(), baseline.metrics())
    assert str(kpnb.compare(student, baseline)) == str(expected)
    assert str(kpnb.compare_seeds([[(student, baseline)]])) == str(expected)
    other = kpnb.trajectory(net(3), states[:3], X + 1, FOREGROUND, "8", **CHEAP)
    with pytest.raises(ValueError, match=r"measured differently \(input\)"):
        kpnb.compare(student, other)
    with pytest.raises(TypeError, match=r'not dict; of several layers, trajectory\["layer"\]'):
        kpnb.compare({"8": student}, baseline)


def test_comparisons_name_the_settings_that_differ(trained):
    states, _ = trained
    found = kpnb.trajectory(net(3), states[:2], X, FOREGROUND, ["5", "8"], **CHEAP)
    student = found["8"]
    with pytest.raises(ValueError, match=r"differently \(layer '8' and '5'\): .*\.metrics\(\)"):
        kpnb.compare(student, found["5"])
    with pytest.raises(ValueError, match=r"\(layer '5' and '8'\)"):
        kpnb.compare_seeds([[(student, student)], [(found["5"], student)]])
    kpnb.compare(student.metrics(), found["5"].metrics())  # who says so
    parts = dataclasses.replace(student, settings=student.settings | {"select": "1", "seed": 3})
    with pytest.raises(ValueError, match=r"\(select None and 1, seed 0 and 3\)"):
        kpnb.compare(student, parts)
    wrapped = dataclasses.replace(student, settings=student.settings | {"layer": "_orig_mod.8"})
    kpnb.compare(student, wrapped)


def test_seeds_are_measured_on_the_same_images_at_the_same_layers(trained):
    """With whatever seed each; as many images is all that can be seen of plain metrics."""
    states, _ = trained
    found = kpnb.trajectory(net(3), states[:2], X, FOREGROUND, ["5", "8"], **CHEAP)
    five, eight = ((found[layer], found[layer]) for layer in ("5", "8"))

    def measured(x: Tensor, foreground: Tensor, layer: str = "8", **options):
        one = kpnb.trajectory(net(3), states[:2], x, foreground, layer, **CHEAP | options)
        return one, one

    kpnb.compare_seeds([[five, eight], [five, measured(X, FOREGROUND, seed=4)]])
    for other, what in (
        ([measured(X + 1, FOREGROUND)], r"\(input\)"),
        ([five], r"\(layer '8' and '5'\)"),
        ([measured(X, ~FOREGROUND)], r"\(foreground\)"),
        ([measured(X, FOREGROUND, choices=kpnb.Choices(b=0.3))], r"\(choices\)"),
        ([measured(X[:2], FOREGROUND[:2])], r"\(6 and 2 images\)"),
    ):
        with pytest.raises(ValueError, match="trainings 0 and 2 were measured differently " + what):
            kpnb.compare_seeds([[eight], [eight], other])
    with pytest.raises(ValueError, match="trainings 0 and 1 have 2 and 1 pairs"):
        kpnb.compare_seeds([[five, eight], [five]])
    with pytest.raises(ValueError, match=r"trainings 0 and 0 .*\(6 and 2 images\)"):
        kpnb.compare_seeds([[five, measured(X[:2], FOREGROUND[:2])]])


def test_a_model_that_is_wrapped(trained):
    _, files = trained
    expected = kpnb.trajectory(net(3), files, X, FOREGROUND, "8", **CHEAP)
    found = kpnb.trajectory(nn.DataParallel(net(3)), files, X, FOREGROUND, "module.8", **CHEAP)
    assert torch.equal(found.entropy, expected.entropy)
    assert torch.equal(found.distance, expected.distance)


def test_what_cannot_be_a_sequence_of_checkpoints_or_a_network(trained):
    states, _ = trained
    for wrong in (None, states[0], dict(enumerate(states))):
        with pytest.raises(TypeError, match="a pattern, a folder or a sequence, epoch 0 first"):
            kpnb.trajectory(net(3), wrong, X, FOREGROUND, "8", **CHEAP)
    with pytest.raises(TypeError, match="got Sequential, a network, which is one checkpoint"):
        kpnb.trajectory(net(3), net(), X, FOREGROUND, "8", **CHEAP)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Tanh())
    with pytest.raises(ValueError, match=r"1\.weight' has no shape yet"):
        kpnb.trajectory(lazy, states, X, FOREGROUND, "2", **CHEAP)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_of_the_old_form_after_a_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(432, 8)), nn.Tanh())
    model(X)
    states = [copy.deepcopy(dict(model.state_dict())) for _ in range(2)]
    states[1]["1.weight_g"] *= 2
    found = kpnb.trajectory(model, states, X, FOREGROUND, "2", **CHEAP)
    assert not torch.equal(found.entropy[0], found.entropy[1])


def test_the_digest_of_weights_does_not_depend_on_wrappers_and_counters():
    model, other = net(), net()
    other[1].num_batches_tracked += 3
    assert digest_of_weights(model) == digest_of_weights(torch.compile(other))
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    assert digest_of_weights(model) != digest_of_weights(other)


def read_me_snippet() -> str:
    text = (Path(__file__).parents[1] / "README.md").read_text("utf8")
    section = text.partition("## The six metrics for your student and baseline")[2]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


class Net(nn.Module):
    """A small network with a layer of the name that the read-me uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(x).flatten(1))


def test_ten_lines_for_somebody_elses_student_and_baseline(tmp_path, monkeypatch, capsys):
    """The read-me's snippet, as it stands there, on what training code leaves behind."""
    for seed, role in enumerate(("student", "baseline")):
        (tmp_path / "runs" / role).mkdir(parents=True)
        torch.manual_seed(seed)
        model = nn.DataParallel(Net())
        for epoch in loop(model, 2, seed=seed):
            torch.save({"model": model.state_dict()}, tmp_path / f"runs/{role}/epoch-{epoch}.pt")
    masks = torch.zeros(6, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * (1 + masks[:, None])
    monkeypatch.chdir(tmp_path)
    exec(read_me_snippet(), {"model": Net(), "x": x, "masks": masks})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, *_ in lines] == list(NAMES)
    foreground = kpnb.foreground_units(kpnb.ImageGrid(16).coverage(masks))
    for line, role in ((1, "student"), (2, "baseline")):
        found = kpnb.trajectory(
            Net(), f"runs/{role}", x, foreground, "layer4", units=kpnb.ImageGrid(16)
        )
        assert [float(words[line]) for words in lines] == pytest.approx(
            list(found.row().values()), nan_ok=True
        )
    assert len(read_me_snippet().strip().splitlines()) <= 11  # one of them empty


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((0, 1, 2), None), ((0, 5, 10), None), ((1, 3, 9), "1, 3, 9"), ((1, 2, 3), "1, 2, 3")],
)
def test_numbers_of_files_that_are_no_epochs_are_told(numbers, told, tmp_path, caplog):
    for number in numbers:
        (tmp_path / f"epoch-{number}.pt").touch()
    found = in_order(str(tmp_path / "epoch-*.pt"))
    assert [path.name for path in found] == [f"epoch-{number}.pt" for number in numbers]
    if told is None:
        assert not caplog.records
    else:
        assert f"have the numbers {told}, taken as epochs 0 to 2" in caplog.text
        assert "the first counts as the untrained network" in caplog.text


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((1, 2, 3), False), ((0, 1, 2), False), ((5, 10, 15), False), ((1, 2, 50), True)],
)
def test_numbers_behind_an_untrained_network_are_no_epochs(numbers, told, tmp_path, caplog):
    for number in numbers:
        (tmp_path / f"epoch-{number}.pt").touch()
    assert len(in_order([net().state_dict(), str(tmp_path / "epoch-*.pt")])) == 4
    said = [f"{tmp_path}/epoch-*.pt have the numbers 1, 2, 50, taken as one epoch after the other"]
    assert [each.removeprefix("the files of ") for each in caplog.messages] == said * told


@pytest.mark.parametrize("inside", [False, True], ids=["entry", "prefix"])
def test_an_untrained_network_in_memory_has_no_entry(inside, trained, tmp_path):
    """Entry and prefix are those of the files behind it."""
    states, _ = trained
    for number, state in enumerate(states[1:], 1):
        kept = {f"student.{name}": value for name, value in state.items()} if inside else state
        torch.save({"weights": kept, "other": states[0]}, tmp_path / f"epoch-{number}.pt")
    how = CHEAP | {"entry": "weights", "prefix": "student." if inside else None}
    wanted = kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP)
    model = net(3)
    model.load_state_dict(states[0])
    for first in (states[0], model, lambda: states[0]):
        given = [first, str(tmp_path / "epoch-*.pt")]
        assert equal(kpnb.trajectory(net(3), given, X, FOREGROUND, "8", **how), wanted)
    for name in ("entry", "prefix"):
        with pytest.raises(ValueError, match=f"{name}='typo': none of the state dicts has it"):
            kpnb.trajectory(net(3), states, X, FOREGROUND, "8", **CHEAP, **{name: "typo"})
    wrapped = {"wieghts": states[0]}
    with pytest.raises(ValueError, match="unknown entry 'weights'; did you mean 'wieghts'"):
        kpnb.trajectory(net(3), [wrapped, states[1]], X, FOREGROUND, "8", **how)


def test_trainings_of_several_lengths_are_compared_with_a_word(trained, caplog):
    states, _ = trained
    long = kpnb.trajectory(net(), states, X, FOREGROUND, "8", **CHEAP)
    short = kpnb.trajectory(net(), states[:3], X, FOREGROUND, "8", **CHEAP)
    kpnb.compare(long, long)
    assert not caplog.messages
    kpnb.compare(long, short)
    (said,) = caplog.messages
    assert said.startswith("the student was followed over 4 epochs, the baseline over 2: D_mean")


def test_a_recorder_of_a_model_that_is_not_trained_says_so(caplog):
    model, x = small_net().double(), images()
    foreground = torch.zeros(len(x), 16, dtype=torch.bool)
    foreground[:, :4] = True
    recorder = kpnb.Recorder(model, x, foreground, "8", units=kpnb.ImageGrid(4))
    recorder.epoch()
    assert not caplog.messages
    recorder.epoch()
    (said,) = caplog.messages
    assert said.startswith("epoch 1: no parameter has changed since the epoch before")
