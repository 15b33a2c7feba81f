"""Training and distillation: closed formulas, frozen parts bit for bit, real kills, real rivals."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kpnb.checkpoints import Checkpoints  # noqa: F401 - for the processes
from kpnb.distill import seeded
from kpnb.losses import feature_at, softened_output
from kpnb.schedule import Schedule
from kpnb_book.store import Store
from kpnb_book.studies import training as distill
from kpnb_book.studies.training import taught

HERE = Path(__file__).parent
PATHS = (HERE, HERE.parent, HERE.parent / "book")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, PATHS))}


class Points:
    """Labelled Gaussian points, or small images with ``image=True``."""

    def __init__(
        self,
        count: int = 40,
        seed: int = 0,
        image: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(
            (count, 3, 8, 8) if image else (count, 5), generator=generator, dtype=dtype
        )
        self.y = torch.randint(0, 3, (count,), generator=generator)
        self.config = {"points": count, "seed": seed, "image": image, "dtype": str(dtype)}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: torch.Tensor, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index].to(device), self.y[index].to(device)


def mlp(seed: int = 0, dropout: float = 0.3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drop = [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), *drop, nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3)
        )


def cnn(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64, 6),
            nn.BatchNorm1d(6),
            nn.Dropout(0.2),
            nn.Linear(6, 3),
        )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def results(training: distill.Training) -> list[dict]:
    return [{k: repr(v) for k, v in entry.items() if k != "seconds"} for entry in training.log]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits are compared, also with those of other processes: sums depend on how many threads share
    them (they are always the same for one number of threads).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -------------------------------------------------------------------------- the arithmetic, against
# independent formulas


def test_momentum_sgd_equals_a_hand_written_loop(disk: Store):
    data, model = Points(37, dtype=torch.float64), nn.Linear(5, 3).double()
    schedule = Schedule(epochs=3, lr=0.1, weight_decay=0.01, batch_size=8, cosine=True, seed=3)
    training = distill.baseline(disk, model, data, schedule)
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    speed = [torch.zeros_like(w), torch.zeros_like(b)]
    rates, losses = [0.0, 0.1, 0.075, 0.025], []  # half a cosine: 1 + cos of 0, 60 and 120 degrees
    for epoch in (1, 2, 3):
        rate, total, path = rates[epoch], 0.0, 0.0
        with seeded(3, epoch):
            order = torch.randperm(37)
        start = w.clone()
        for batch in order.split(8):
            x, y = data.batch(batch)
            p = torch.softmax(x @ w.T + b, 1)
            total += -p[range(len(y)), y].log().sum().item()
            error = (p - F.one_hot(y, 3)) / len(y)
            for value, gradient, v in zip((w, b), (error.T @ x, error.sum(0)), speed, strict=True):
                v.mul_(0.9).add_(gradient + 0.01 * value)
                value.sub_(rate * v)
            path += rate * speed[0].norm().item()
        losses.append(total / 37)
        state = training.state(epoch)
        torch.testing.assert_close(state["weight"], w, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(state["bias"], b, rtol=1e-10, atol=1e-12)
        assert training.step_norms()[epoch]["weight"] == pytest.approx(
            (w - start).norm().item(), rel=1e-9
        )
        assert training.paths()[epoch]["weight"] == pytest.approx(path, rel=1e-5)
    assert [entry["loss"] for entry in training.log[1:]] == pytest.approx(losses)
    assert [entry["lr"] for entry in training.log] == pytest.approx(rates)
    assert training.step_norms()[0]["weight"] == pytest.approx(
        model.weight.norm().item(), rel=1e-12
    )


def test_cosine_rate():
    rates = [Schedule(epochs=4, lr=2.0, cosine=True).rate(epoch) for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])


@pytest.mark.parametrize("scale", ["energy", "sum", "mean"])
def test_one_distillation_step_of_a_linear_student(disk: Store, scale: str):
    data = Points(20, dtype=torch.float64)
    teacher, model = (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double() for _ in range(2))
    schedule = Schedule(epochs=1, lr=0.05, momentum=0.9, weight_decay=0.0, batch_size=20)
    training = taught(disk, model, data, schedule, feature_at("0", scale=scale), teacher)
    with torch.no_grad():
        ours, theirs = model[0](data.x), teacher[0](data.x)
        unit = {"sum": 1.0, "mean": 4.0, "energy": theirs.square().sum(1).mean().item()}[scale]
        gradient = 2 / 20 / unit * (ours - theirs).T @ data.x
        expected = model[0].weight - 0.05 * gradient
        loss = (ours - theirs).square().sum(1).mean().item() / unit
    torch.testing.assert_close(training.state()["0.weight"], expected, rtol=1e-10, atol=1e-12)
    assert training.log[1]["loss"] == pytest.approx(loss)


def test_soft_loss_gradient_is_that_of_the_formula(disk: Store):
    data, temperature = Points(16, dtype=torch.float64), 3.0
    teacher, model = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    schedule = Schedule(epochs=1, lr=0.2, weight_decay=0.0, batch_size=16)
    training = taught(disk, model, data, schedule, softened_output(temperature), teacher)
    with torch.no_grad():
        ours, theirs = ((net(data.x) / temperature).softmax(1) for net in (model, teacher))
        gradient = (
            temperature * (ours - theirs).T @ data.x / 16
        )  # Hinton et al. 2015, Eq. 2, times T^2
        loss = temperature**2 * (theirs * (theirs / ours).log()).sum(1).mean().item()
    torch.testing.assert_close(training.state()["weight"], model.weight.detach() - 0.2 * gradient)
    assert training.log[1]["loss"] == pytest.approx(loss)
    assert training.log[1]["accuracy"] == (model(data.x).argmax(1) == data.y).double().mean().item()


def test_a_student_that_is_its_teacher_stays(disk: Store):
    data, teacher = Points(24, image=True), cnn()
    twin = nn.Sequential(teacher[0], nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    schedule = Schedule(epochs=2, lr=1.0, weight_decay=0.0, batch_size=24)
    training = taught(
        disk, twin, data, schedule, feature_at("1"), twin, test=Points(9, 1, image=True)
    )
    assert all(entry["loss"] < 1e-12 for entry in training.log[1:])
    assert all(entry["test_feature_error"] < 1e-12 for entry in training.log)
    for key, value in training.state().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=0, atol=1e-6)


def test_held_out_accuracy_and_feature_error(disk: Store):
    data, test, teacher = Points(30), Points(11, seed=1), mlp(1)
    schedule = Schedule(epochs=2, batch_size=8)
    plain = distill.baseline(disk, mlp(), data, schedule, test=test)
    for epoch in range(3):
        right = (plain.load(epoch=epoch)(test.x).argmax(1) == test.y).double().mean().item()
        assert plain.log[epoch]["test_accuracy"] == pytest.approx(right)
    assert plain.accuracy == plain.log[-1]["test_accuracy"]
    mimic = taught(disk, mlp(), data, schedule, feature_at("4"), teacher, test=test)
    net, teacher = mimic.load(epoch=1)[:5], teacher.eval()[:5]
    error = (net(test.x) - teacher(test.x)).square().sum() / teacher(test.x).square().sum()
    assert mimic.log[1]["test_feature_error"] == pytest.approx(error.item(), rel=1e-5)
    assert math.isnan(mimic.accuracy)
    assert math.isnan(mimic.log[1]["accuracy"])


def test_learning_happens(disk: Store):
    data = Points(200)
    data.y = (data.x @ torch.randn(5, 3, generator=torch.Generator().manual_seed(5))).argmax(1)
    schedule = Schedule(epochs=25, lr=0.1, batch_size=20)
    teacher = distill.baseline(disk, mlp(1, dropout=0), data, schedule, kind="teacher", test=data)
    mimic = taught(disk, mlp(2, dropout=0), data, schedule, feature_at("4"), teacher, test=data)
    whole = distill.head(disk, mimic, "4", data, schedule, test=data)
    assert teacher.accuracy > 0.9
    assert mimic.log[-1]["test_feature_error"] < 0.1 < 0.5 < mimic.log[0]["test_feature_error"]
    assert whole.accuracy > 0.85


# ------------------------------------------------------------------------------- what must not move


def test_distillation_leaves_what_lies_above(disk: Store):
    model = cnn()
    schedule = Schedule(epochs=2, lr=0.1, weight_decay=0.5, batch_size=16)
    training = taught(disk, model, Points(40, image=True), schedule, feature_at("5"), cnn(1))
    start, end = model.state_dict(), training.state()
    above = {key for key in start if int(key.split(".")[0]) > 5}
    assert {key for key in start if torch.equal(start[key], end[key])} == above
    assert all(
        training.step_norms()[2][key] == 0
        for key in above
        if "running" not in key and "num" not in key
    )


def test_head_leaves_features_and_all_that_lies_below(disk: Store):
    data = Points(40, image=True)
    schedule = Schedule(epochs=2, lr=0.1, weight_decay=0.5, batch_size=16)
    mimic = taught(disk, cnn(), data, schedule, feature_at("5"), cnn(1))
    whole = distill.head(disk, mimic, "5", data, schedule)
    start, end = mimic.state(), whole.state()
    below = {key for key in start if int(key.split(".")[0]) <= 5}
    assert {key for key in start if torch.equal(start[key], end[key])} == below
    assert torch.equal(mimic.load()[:6](data.x), whole.load()[:6](data.x))
    assert same(whole.state(0), start)


def test_head_of_the_last_layer_is_the_student(disk: Store):
    data, schedule = Points(30), Schedule(epochs=2, lr=0.1)
    mimic = taught(disk, mlp(), data, schedule, feature_at("5"), mlp(1))
    whole = distill.head(disk, mimic, "5", data, schedule, test=data)
    assert same(whole.state(), mimic.state())
    assert whole.accuracy == (mimic.load()(data.x).argmax(1) == data.y).double().mean().item()


@pytest.mark.parametrize("above", [0.0, 0.5])
def test_head_freezes_blocks_that_read_their_own_mode_and_nothing_above(disk: Store, above: float):
    data = Points(20)
    data.x = torch.randn(20, 4, 8)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model = nn.Sequential(block, nn.Flatten(), nn.Dropout(above), nn.Linear(32, 3))
    loss = distill.head(disk, model, "1", data, Schedule(epochs=1)).log[1]["loss"]
    without_noise = F.cross_entropy(model.eval()(data.x), data.y).item()
    assert (abs(loss - without_noise) < 1e-4) == (above == 0)


def test_caller_keeps_generators_model_and_teacher(disk: Store):
    model, teacher, data = mlp(), mlp(1), Points(30)
    teacher[0].requires_grad_(False)
    teacher[1].eval()
    before = [
        {key: value.clone() for key, value in net.state_dict().items()} for net in (model, teacher)
    ]
    modes = [module.training for net in (model, teacher) for module in net.modules()]
    random = torch.get_rng_state()
    fast = Schedule(epochs=1)
    taught(disk, model, data, fast, feature_at("4"), teacher, test=data).finish()
    taught(disk, model, data, fast, softened_output(), teacher).finish()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for net in (model, teacher) for module in net.modules()] == modes
    assert same(model.state_dict(), before[0])
    assert same(teacher.state_dict(), before[1])
    assert [p.requires_grad for p in teacher.parameters()][:3] == [False, False, True]
    assert all(p.grad is None for net in (model, teacher) for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


# -------------------------------------------------------------------- runs: what is stored, shared,
# resumed, repaired


def test_cached_runs_read_no_tensor_file_and_build_no_network(disk: Store, monkeypatch):
    data, built = Points(30), []

    def build(seed: int) -> nn.Module:
        built.append(seed)
        return mlp(seed)

    def protocol() -> list[distill.Training]:
        schedule, common = Schedule(epochs=2), {"build": build, "test": data}
        teacher = distill.baseline(disk, {"seed": 1}, data, schedule, kind="teacher", **common)
        mimic = taught(disk, {"seed": 0}, data, schedule, feature_at("4"), teacher, **common)
        return [teacher, mimic, distill.head(disk, mimic, "4", data, schedule, test=data)]

    first = [results(training) for training in protocol()]
    built.clear()
    opened: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or real(path))
    again = protocol()
    assert not opened
    assert [results(training) for training in again] == first
    assert again[0].step_norms()[1]["0.weight"] > 0
    assert opened
    assert not [name for name in opened if not name.endswith(".json")]
    assert not built


def test_noise_depends_on_seed_and_epoch_alone(disk: Store):
    class Noted(Points):
        def batch(
            self, index: torch.Tensor, device: str = "cpu"
        ) -> tuple[torch.Tensor, torch.Tensor]:
            orders.append(index.tolist())
            return super().batch(index, device)

    seen = []
    for caller, seed in ((1, 0), (2, 0), (1, 5)):
        orders: list[list[int]] = []
        with torch.random.fork_rng():
            torch.manual_seed(caller)
            fresh = Store(disk.root / f"{caller}-{seed}")
            state = distill.baseline(
                fresh, mlp(), Noted(40), Schedule(epochs=2, batch_size=40, seed=seed)
            ).state()
        seen.append((orders[1:], state))
    assert seen[0][0] == seen[1][0]
    assert same(seen[0][1], seen[1][1])
    assert seen[0][0][0] != seen[0][0][1], "every epoch has the same order"
    assert seen[0][0] != seen[2][0]


def test_a_longer_training_extends_a_shorter(disk: Store):
    short = distill.baseline(disk, mlp(), Points(), Schedule(epochs=1))
    long = distill.baseline(disk, mlp(), Points(), Schedule(epochs=2))
    assert long.address == short.address
    fresh = distill.baseline(Store(disk.root / "fresh"), mlp(), Points(), Schedule(epochs=2))
    assert same(long.state(), fresh.state())
    cosine = [
        distill.baseline(disk, mlp(), Points(), Schedule(epochs=n, cosine=True)).address
        for n in (1, 2)
    ]
    assert len(set(cosine)) == 2


def test_everything_that_determines_a_run_is_in_its_address(disk: Store):
    data, plain = Points(20), Schedule(epochs=0)
    model, other = mlp(), mlp(1)
    one = distill.baseline(disk, model, data, plain)
    others = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 2, "seed": 1}
    others |= {"cosine": True, "adamw": True, "bf16": True}
    trainings = [
        one,
        distill.baseline(disk, other, data, plain),
        distill.baseline(disk, mlp(dropout=0.4), data, plain),
        distill.baseline(disk, model, Points(20, seed=1), plain),
        distill.baseline(disk, model, data, plain, test=data),
        distill.baseline(disk, one, data, plain),
    ]
    for name, value in others.items():
        schedule = Schedule(epochs=0, **{name: value})
        trainings.append(distill.baseline(disk, model, data, schedule))
    for teacher, layer, scale in product((one, other), ("0", "4"), ("sum", "energy")):
        objective = feature_at(layer, scale=scale)
        trainings.append(taught(disk, model, data, plain, objective, teacher))
    for temperature in (1.0, 2.0):
        objective = softened_output(temperature)
        trainings.append(taught(disk, model, data, plain, objective, other))
    for layer in ("0", "4"):
        trainings.append(distill.head(disk, model, layer, data, plain))
    addresses = [training.address for training in trainings]
    assert len(set(addresses)) == len(addresses)
    assert distill.baseline(disk, mlp(), Points(20), plain).address == one.address


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_a_damaged_middle_epoch_is_recomputed_alone(disk: Store, damage: str, caplog):
    data, schedule = Points(40, image=True), Schedule(epochs=4, batch_size=16)
    training = taught(disk, cnn(), data, schedule, feature_at("5"), cnn(1), test=data)
    states = [training.state(epoch) for epoch in range(5)]
    written = {
        path.name: path.stat().st_mtime_ns for path in training.run.path.glob("*.safetensors")
    }
    path = training.run.path / "epoch-002.safetensors"
    data_on_disk = bytearray(path.read_bytes())
    data_on_disk[-1] ^= 4
    path.write_bytes(data_on_disk[:-9] if damage == "truncate" else data_on_disk)
    if damage == "missing":
        path.unlink()
    again = taught(disk, cnn(), data, schedule, feature_at("5"), cnn(1), test=data)
    assert all(same(again.state(epoch), states[epoch]) for epoch in range(5))
    now = {path.name: path.stat().st_mtime_ns for path in training.run.path.glob("*.safetensors")}
    assert {name for name in now if now[name] != written[name]} == {"epoch-002.safetensors"}
    assert caplog.text.count("is damaged") == 1


def test_all_lost_but_asked_for(disk: Store):
    training = distill.baseline(disk, mlp(), Points(), Schedule(epochs=5))
    last = training.state()
    for path in training.run.path.glob("epoch-*"):
        path.unlink()
    assert same(training.state(), last)


def test_loss_that_is_not_finite_stops_and_keeps_epochs(disk: Store):
    data, schedule = Points(40), Schedule(epochs=50, lr=1e6)
    training = taught(disk, mlp(), data, schedule, feature_at("5", scale="sum"), mlp(1))
    with pytest.raises(
        FloatingPointError, match=r"became (nan|inf) in epoch \d+ after \d+ samples: use a lower"
    ):
        training.finish()
    (run,) = disk.root.glob("student/*")
    assert (run / "epoch-000.json").exists()
    assert not list(run.glob("*.tmp"))


def test_bad_input_is_named(disk: Store):
    data, fast = Points(20), Schedule(epochs=1)
    model, teacher = mlp(), mlp(1)
    with pytest.raises(ValueError, match=r"student's '4' is \[6\], the teacher's '0' \[8\]"):
        taught(disk, model, data, fast, feature_at("4", "0"), teacher).finish()
    with pytest.raises(
        ValueError, match=r"student's 'output' is \[3\], the teacher's 'output' \[8\]"
    ):
        taught(disk, model, data, fast, softened_output(), nn.Linear(5, 8)).finish()
    with pytest.raises(LookupError, match="unknown layer '9'"):
        taught(disk, model, data, fast, feature_at("9"), teacher).finish()
    with pytest.raises(ValueError, match="unknown scale 'sums'; did you mean 'sum'"):
        feature_at("4", scale="sums")
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        softened_output(0)
    with pytest.raises(ValueError, match="batch_size=0 must be positive"):
        Schedule(batch_size=0)
    with pytest.raises(ValueError, match="no samples to train on"):
        distill.baseline(disk, model, Points(0), fast)
    with pytest.raises(TypeError, match="needs build="):
        distill.baseline(disk, {"seed": 1}, data, fast)
    with pytest.raises(IndexError, match="it has the epochs 0 to 1"):
        distill.baseline(disk, model, data, fast).load(epoch=2)
    assert not list(disk.root.glob("*/*/epoch-*")), "found out after training had started"


class Viewed(nn.Module):
    """``view`` refuses channels-last memory; ``share`` ties two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = (
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(192, 192),
            nn.Linear(192, 192),
        )
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.conv(x).view(len(x), -1)))


@pytest.mark.parametrize("count", [40, 33])
def test_any_module_with_tied_weights_views_and_a_last_batch_of_one(disk: Store, count: int):
    data = Points(count, image=True)
    training = distill.baseline(disk, Viewed(), data, Schedule(epochs=1, batch_size=16))
    assert torch.equal(training.state()["a.weight"], training.state()["b.weight"])
    norm = distill.baseline(disk, mlp(), Points(count), Schedule(epochs=1, batch_size=16))
    assert norm.state()["1.num_batches_tracked"] == (3 if count == 40 else 2)


# ------------------------------------------------------------------ real processes and real signals

WORK = """
import sys, time, torch
from test_distill import *

root, pause = Path(sys.argv[1]), float(sys.argv[2])
class Slow(Points):
    def batch(self, index, device="cpu"):
        time.sleep(pause)
        return super().batch(index, device)
real = Checkpoints.write
def noted(self, epoch, tensors, entry):
    with open(root / "computed", "a") as file:
        file.write(f"{self.artefacts.kind}-{epoch}\\n")
    return real(self, epoch, tensors, entry)
Checkpoints.write = noted
torch.set_num_threads(1)
for training in work(Store(root / "store"), Slow(48, image=True)):
    training.finish()
"""
EPOCHS = 6


def work(disk: Store, data: Points) -> list[distill.Training]:
    schedule = Schedule(epochs=EPOCHS, batch_size=16)
    teacher = distill.baseline(disk, cnn(1), data, schedule, kind="teacher", test=data)
    return [
        teacher,
        taught(disk, cnn(), data, schedule, feature_at("5"), teacher, test=data),
    ]


def start(root: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WORK, str(root), str(pause)]
    with open(root / "stderr", "a") as stderr:
        return subprocess.Popen(command, env=ENV, stderr=stderr)


def wait_for(root: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not list((root / "store").glob(pattern)):
        assert process.poll() is None, (root / "stderr").read_text()
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_thread) -> list[tuple[list, dict]]:
    """Logs and last weights of both trainings, computed by one process that nobody disturbed."""
    return outcome(tmp_path_factory.mktemp("undisturbed"))


def outcome(root: Path) -> list[tuple[list, dict]]:
    """What ``work`` ends with when it is called again, here, on what other processes left in
    ``root``.
    """
    trainings = work(Store(root / "store"), Points(48, image=True))
    found = [(results(training), training.checkpoints.tensors()) for training in trainings]
    assert not list(root.glob("store/*/*/*.tmp"))
    return found


def alike(one: list[tuple[list, dict]], two: list[tuple[list, dict]]) -> bool:
    return all(a[0] == b[0] and same(a[1], b[1]) for a, b in zip(one, two, strict=True))


def times(root: Path) -> dict[str, int]:
    return {
        f"{p.parent.parent.name}-{p.name}": p.stat().st_mtime_ns
        for p in root.glob("store/*/*/epoch-*.json")
    }


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(tmp_path: Path, undisturbed):
    class Interrupted(Points):
        calls = 0

        def batch(
            self, index: torch.Tensor, device: str = "cpu"
        ) -> tuple[torch.Tensor, torch.Tensor]:
            self.calls += 1
            if self.calls == 23:  # in the middle of an epoch of the teacher
                raise KeyboardInterrupt
            return super().batch(index, device)

    with pytest.raises(KeyboardInterrupt):
        work(Store(tmp_path / "store"), Interrupted(48, image=True))[0].finish()
    finished = times(tmp_path)
    assert "teacher-epoch-002.json" in finished
    assert f"teacher-epoch-{EPOCHS:03d}.json" not in finished
    assert alike(outcome(tmp_path), undisturbed)
    assert finished.items() <= times(tmp_path).items(), "a finished epoch was computed again"


def test_two_processes_share_a_training(tmp_path: Path, undisturbed):
    rivals = [start(tmp_path, 0.01), start(tmp_path, 0.01)]
    assert [rival.wait(60) for rival in rivals] == [0, 0]
    computed = (tmp_path / "computed").read_text().split()
    assert sorted(computed) == sorted(
        f"{kind}-{k}" for kind in ("teacher", "student") for k in range(EPOCHS + 1)
    )
    assert alike(outcome(tmp_path), undisturbed)
