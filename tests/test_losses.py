"""The losses of a distillation: against formulas written out by hand, by what must not change them,
and in trainings that are resumed.
"""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from kpnb import distill
from kpnb.checkpoints import Checkpoints
from kpnb.distill import TensorData, seeded
from kpnb.losses import (
    ALIASES,
    LOSSES,
    Loss,
    Projections,
    Regressor,
    TrainingObjective,
    angles,
    attention_transfer,
    contrastive_in_batch,
    decoupled,
    feature,
    feature_at,
    hints,
    mean_energy,
    probabilistic_transfer,
    relational,
    similarity_preserving,
    soft_targets,
    softened_output,
    unit,
)
from kpnb.schedule import Schedule
from kpnb.weights import load_weights
from tests.test_distill import one_thread, same  # noqa: F401 - a fixture


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rotation(size: int, seed: int = 5) -> Tensor:
    """A random orthogonal matrix."""
    return torch.linalg.qr(draw(size, size, seed=seed)).Q


LABELS = torch.tensor([2, 0, 1, 2, 2])


# ------------------------------------------------------------------- the same, written out by hand


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def divergence(theirs: list[float], ours: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def length(a: list[float]) -> float:
    return math.sqrt(dot(a, a))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / (length(a) * length(b))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_soft_targets_by_hand():
    ours, theirs = draw(5, 3), draw(5, 3, seed=1)
    parts = [
        divergence(softmax(t, 2.5), softmax(s, 2.5))
        for s, t in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]
    assert soft_targets(ours, theirs, 2.5).item() == pytest.approx(2.5**2 * mean(parts))


def test_hints_by_hand():
    ours, theirs = draw(4, 2, 3), draw(4, 2, 3, seed=1)
    rows = zip(ours.flatten(1).tolist(), theirs.flatten(1).tolist(), strict=True)
    gaps = [minus(s, t) for s, t in rows]
    assert hints(ours, theirs).item() == pytest.approx(mean([dot(g, g) / 2 for g in gaps]))
    unchanged = Regressor(ours, theirs)
    assert not list(unchanged.parameters())
    value = hints(*unchanged(ours, theirs))
    assert value == feature(ours, theirs, "sum") / 2


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_transfer_by_hand(power: float):
    ours, theirs = draw(3, 4, 2, 3), draw(3, 6, 2, 3, seed=1)  # of 4 and of 6 channels
    total = 0.0
    for x in range(3):
        maps = []
        for f in (ours[x], theirs[x]):
            places = [(row, column) for row in range(2) for column in range(3)]
            attention = [sum(abs(c[p].item()) ** power for c in f) for p in places]
            maps.append([value / length(attention) for value in attention])
        total += dot(minus(*maps), minus(*maps))
    assert attention_transfer(ours, theirs, power).item() == pytest.approx(total / (3 * 6))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_by_hand(temperature: float):
    ours, theirs = draw(5, 4), draw(5, 4, seed=1)
    parts = []
    for s, t, label in zip(ours.tolist(), theirs.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        target = divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest = [k for k in range(4) if k != label]
        others = divergence(
            [p[k] / (1 - p[label]) for k in rest], [q[k] / (1 - q[label]) for k in rest]
        )
        parts.append(0.7 * target + 3.0 * others)
    found = decoupled(ours, theirs, LABELS, temperature, alpha=0.7, beta=3.0)
    assert found.item() == pytest.approx(temperature**2 * mean(parts))


def test_similarity_preserving_by_hand():
    ours, theirs = draw(4, 5), draw(4, 2, 3, seed=1)
    gram = []
    for f in (ours.tolist(), theirs.flatten(1).tolist()):
        rows = [[dot(a, b) for b in f] for a in f]
        gram.append([[value / length(row) for value in row] for row in rows])
    total = sum(dot(minus(a, b), minus(a, b)) for a, b in zip(*gram, strict=True))
    assert similarity_preserving(ours, theirs).item() == pytest.approx(total / 16)


def test_relational_by_hand():
    batch = 5
    ours, theirs = (10 * draw(batch, 3)).tolist(), draw(batch, 6, seed=1).tolist()
    theirs[0] = [20 * value for value in theirs[0]]  # far out, so that Huber's loss is linear there

    def distance(f: list[list[float]], i: int, j: int) -> float:
        pairs = permutations(range(batch), 2)
        return length(minus(f[i], f[j])) / mean([length(minus(f[a], f[b])) for a, b in pairs])

    def angle(f: list[list[float]], i: int, j: int, k: int) -> float:
        return cosine(minus(f[i], f[j]), minus(f[k], f[j]))

    gaps = [distance(ours, *p) - distance(theirs, *p) for p in permutations(range(batch), 2)]
    turns = [angle(ours, *t) - angle(theirs, *t) for t in permutations(range(batch), 3)]
    assert max(map(abs, gaps)) > 1 > min(map(abs, gaps))
    assert max(map(abs, turns)) > 1 > min(map(abs, turns))
    pairs, triples = mean(list(map(huber, gaps))), mean(list(map(huber, turns)))
    tensors = torch.tensor(ours).double(), torch.tensor(theirs).double()
    assert relational(*tensors, 1, 0).item() == pytest.approx(pairs, rel=1e-5)
    assert relational(*tensors, 0, 1).item() == pytest.approx(triples, rel=1e-5)
    assert relational(*tensors).item() == pytest.approx(25 * pairs + 50 * triples, rel=1e-5)


def test_relational_in_small_batches():
    ours, theirs = draw(2, 3), draw(2, 3, seed=1)
    assert relational(ours, theirs) == 0, "two samples have one distance, which is its own mean"
    known = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    line = torch.tensor([[0.0], [1.0], [-1.0]])
    # cosines of the angles: 0, sqrt(1/2), sqrt(1/2) of the known; -1, 1, 1 of the line
    expected = (huber(-1) + 2 * huber(1 - math.sqrt(0.5))) / 3
    assert relational(line, known, 0, 1).item() == pytest.approx(expected)


def test_probabilistic_transfer_by_hand():
    ours, theirs = draw(5, 3), draw(5, 2, 3, seed=1)
    near = []
    for f in (ours.tolist(), theirs.flatten(1).tolist()):
        kernel = [[(cosine(a, b) + 1) / 2 for b in f if b is not a] for a in f]
        near.append([[value / sum(row) for value in row] for row in kernel])
    parts = [divergence(t, s) for s, t in zip(*near, strict=True)]
    assert probabilistic_transfer(ours, theirs).item() == pytest.approx(mean(parts))


def test_contrastive_in_batch_by_hand():
    ours, theirs = unit(draw(4, 3)).tolist(), unit(draw(4, 3, seed=1)).tolist()
    parts = []
    for i in range(4):
        own = math.exp(dot(ours[i], theirs[i]) / 0.5)
        to_teachers = sum(math.exp(dot(ours[i], theirs[j]) / 0.5) for j in range(4))
        to_students = sum(math.exp(dot(ours[j], theirs[i]) / 0.5) for j in range(4))
        parts.append(-math.log(own / to_teachers) - math.log(own / to_students))
    tensors = torch.tensor(ours).double(), torch.tensor(theirs).double()
    assert contrastive_in_batch(*tensors, 0.5).item() == pytest.approx(mean(parts), rel=1e-6)
    alone = torch.eye(6)
    assert contrastive_in_batch(alone, alone, 0.01) < 1e-6, "each is next to its own"
    apart = contrastive_in_batch(torch.ones(6, 1), torch.ones(6, 1))
    assert apart.item() == pytest.approx(2 * math.log(6)), "chance: one of the batch"


# ------------------------------------------------------------------------ what must not change them


def test_each_is_least_where_the_student_is_its_teacher():
    f, z = draw(5, 3, 2, 2), draw(5, 4)
    for name in ("feature", "hints", "at", "sp", "rkd", "pkt"):
        assert LOSSES[name].function(f, f).abs() < 1e-12, name
        assert LOSSES[name].function(draw(5, 3, 2, 2, seed=1), f) > 1e-4, name
    assert soft_targets(z, z).abs() < 1e-12
    assert decoupled(z, z, LABELS).abs() < 1e-12


def test_relational_ignores_moves_turns_and_scale():
    ours, theirs = draw(6, 4), draw(6, 7, seed=1)
    value = relational(ours, theirs)
    moved = ours @ rotation(4) + draw(4, seed=2)
    torch.testing.assert_close(relational(moved, theirs), value)
    torch.testing.assert_close(relational(9.0 * moved, theirs), value)
    torch.testing.assert_close(relational(ours, 0.1 * theirs @ rotation(7) - 3), value)
    stretched = ours * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert abs(relational(stretched, theirs) - value) > 1e-3


def test_similarity_preserving_ignores_orthogonal_maps_and_scale():
    ours, theirs = draw(6, 4), draw(6, 7, seed=1)
    value = similarity_preserving(ours, theirs)
    torch.testing.assert_close(similarity_preserving(3.0 * ours @ rotation(4), theirs), value)
    torch.testing.assert_close(similarity_preserving(ours, theirs @ rotation(7)), value)
    wider = torch.cat([ours, torch.zeros(6, 3)], 1) @ rotation(7)  # an isometry
    torch.testing.assert_close(similarity_preserving(wider, theirs), value)
    assert abs(similarity_preserving(ours + 1, theirs) - value) > 1e-3


def test_attention_transfer_ignores_order_and_sign_of_channels_and_scale():
    ours, theirs = draw(3, 4, 2, 3), draw(3, 6, 2, 3, seed=1)
    value = attention_transfer(ours, theirs)
    torch.testing.assert_close(attention_transfer(ours[:, [2, 0, 3, 1]], theirs), value)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0]).view(4, 1, 1)
    torch.testing.assert_close(attention_transfer(5.0 * signs * ours, theirs), value)
    mixed = torch.einsum("ab,nbhw->nahw", rotation(4), ours)
    torch.testing.assert_close(attention_transfer(mixed, theirs), value)
    assert abs(attention_transfer(ours.flip(3), theirs) - value) > 1e-4


def test_probabilistic_transfer_ignores_turns_and_lengths():
    ours, theirs = draw(6, 4), draw(6, 7, seed=1)
    value = probabilistic_transfer(ours, theirs)
    lengths = draw(6, 1, seed=3).exp()
    torch.testing.assert_close(probabilistic_transfer(lengths * ours @ rotation(4), theirs), value)
    torch.testing.assert_close(probabilistic_transfer(ours, lengths * theirs), value)
    assert abs(probabilistic_transfer(-ours.abs() + ours, theirs) - value) > 1e-4


@pytest.mark.parametrize("function", [similarity_preserving, relational, probabilistic_transfer])
def test_relations_do_not_depend_on_the_order_of_samples(function):
    ours, theirs, order = draw(6, 4), draw(6, 7, seed=1), torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(function(ours[order], theirs[order]), function(ours, theirs))
    assert abs(function(ours[order], theirs) - function(ours, theirs)) > 1e-6


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_two_parts_of_the_decoupled_loss(temperature: float):
    """KD = TCKD + (1 - p_t) NCKD for each sample, p_t the teacher's probability of its label."""
    ours, theirs = 3 * draw(5, 4), 3 * draw(5, 4, seed=1)
    parts = []
    for i in range(5):
        one = slice(i, i + 1)
        beta = 1 - (theirs[i] / temperature).softmax(0)[LABELS[i]].item()
        parts.append(decoupled(ours[one], theirs[one], LABELS[one], temperature, 1.0, beta))
    together = soft_targets(ours, theirs, temperature)
    torch.testing.assert_close(torch.stack(parts).mean(), together)


def test_logits_may_be_shifted():
    ours, theirs = draw(5, 4), draw(5, 4, seed=1)
    shift = draw(5, 1, seed=2)
    for value, shifted in (
        (soft_targets(ours, theirs), soft_targets(ours + shift, theirs - shift)),
        (decoupled(ours, theirs, LABELS), decoupled(ours + shift, theirs - shift, LABELS)),
    ):
        torch.testing.assert_close(value, shifted)


# -------------------------------------------------------------------------------------- gradients


def with_helper(name: str, student: Tensor, teacher: Tensor) -> tuple[list[Tensor], object]:
    """A loss as a function of the student's output and its helper's parameters, and these."""
    loss = LOSSES[name]
    more = {"labels": LABELS} if "labels" in loss.function.__code__.co_varnames else {}
    if loss.helper is None:
        return [student], lambda f: loss.function(f, teacher, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        helper = loss.helper(student, teacher).double()
    names = [name for name, _ in helper.named_parameters()]

    def value(f: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return loss.function(*torch.func.functional_call(helper, given, (f, teacher)))

    return [student, *(p.detach().clone() for p in helper.parameters())], value


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str):
    """Of the student's output and of what is trained besides, against finite differences."""
    shape = (5, 3) if name in ("soft_targets", "dkd") else (5, 2, 2, 2)
    wider = (5, 3, 1, 2) if name == "hints" else shape
    arguments, value = with_helper(name, draw(*shape), draw(*wider, seed=1))
    assert len(arguments) == {"hints": 3, "crd_in_batch": 5}.get(name, 1)
    assert torch.autograd.gradcheck(value, [a.requires_grad_() for a in arguments])


@pytest.mark.parametrize("name", ["at", "sp", "rkd", "pkt"])
def test_samples_that_are_equal_or_zero_have_finite_gradients(name: str):
    """As dead units make them; in float32, as networks are trained."""
    ours, theirs = draw(6, 2, 2, 2).float(), draw(6, 2, 2, 2, seed=1).float()
    ours[0], ours[1], ours[3] = 0.0, 0.0, ours[2]
    for student in (ours, torch.zeros_like(ours)):
        student.requires_grad_()
        value = LOSSES[name].function(student, theirs)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e3


def test_opposite_samples_have_finite_divergence():
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = probabilistic_transfer(line, draw(3, 4).float())
    value.backward()
    assert value.isfinite()
    assert line.grad.isfinite().all()


def test_angles_are_right_far_from_the_origin():
    """In float32, where products of large numbers would hide the differences."""
    ours, theirs = draw(8, 20), draw(8, 20, seed=1)
    far = [(f + 1000).float() for f in (ours, theirs)]
    exact = relational(*(f.double() for f in far), 0, 1)
    assert relational(*far, 0, 1).item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("apart", [0.0, 1e-6, 3e-5])
def test_rows_that_nearly_coincide_have_no_huge_angle(apart):
    """A cosine is at most 1, also where products of rows have cancelled."""
    f = draw(16, 64).float()
    f[1:3] = f[0] + apart * draw(2, 64, seed=1).float()
    assert angles(f).abs().max() <= 1.01
    assert relational(f, draw(16, 64, seed=2).float()) < 50


def test_a_teacher_of_another_precision_teaches():
    """Squares of half precision overflow; what is learned then is neither nothing nor perfect."""
    assert mean_energy(torch.full((4, 100), 30.0).half()) == pytest.approx(90_000)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(seed=1).half()
            self.net[0].weight.data *= 1000

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.half())

    for name in ("feature", "crd_in_batch", "sp", "rkd"):
        path = ("5", images(), Schedule(epochs=1))
        run = distill.student(network(), Half(), *path, loss=name, teacher_layer="net.5")
        assert 0 < run.log[1]["loss"] < math.inf
        if name == "feature":
            assert 0.1 < run.log[1]["feature_error"] < math.inf


def test_labels_of_all_samples_are_looked_at_before_anything_is_written(tmp_path):
    data = images()
    data.y[-1] = 9
    with pytest.raises(ValueError, match=r"needs labels from 0 to 2, .*: got 0 to 9"):
        distill.student(
            network(), network(seed=1), "", data, Schedule(epochs=1), loss="dkd", folder=tmp_path
        )
    assert not [*tmp_path.glob("epoch-*")]


def test_attention_without_a_derivative_is_refused():
    with pytest.raises(ValueError, match=r"power = 0.5: below 1 it has no derivative"):
        attention_transfer(draw(2, 3, 4), draw(2, 3, 4), power=0.5)


def test_numbers_of_numpy_and_pytorch_are_numbers(tmp_path):
    data, schedule = images(), Schedule(epochs=1)
    given = {"temperature": np.int64(2)}
    path = (network(), network(seed=1), "", data, schedule)
    one = distill.student(*path, loss="soft_targets", parameters=given, weight=np.float32(2))
    parameters = {"temperature": torch.tensor(2)}
    folder = tmp_path / "kept"
    other = distill.student(
        *path, loss="soft_targets", parameters=parameters, weight=2, folder=folder
    )
    torch.testing.assert_close(one.state(), other.state(), rtol=0, atol=0)
    with pytest.raises(TypeError, match="parameter temperature of a loss is a number, a text"):
        TrainingObjective("soft_targets", parameters={"temperature": torch.ones(2)})


def test_a_layer_by_its_name_alone_is_one_layer():
    assert TrainingObjective("feature", "fc1").layers == ("fc1",)
    assert TrainingObjective("feature", "a", teacher_layers="bc").theirs == ("bc",)
    with pytest.raises(TypeError, match=r"objective is a .*TrainingObjective, .*; got str"):
        distill.train(network(), images(), Schedule(epochs=1), objective="feature")


# --------------------------------------------------- another implementation, where it is installed


def outputs_at(layer: str, value: Tensor) -> dict:
    return {layer: {"input": value, "output": value}}


def test_the_same_as_torchdistill():
    """Up to what each averages over: it counts also the pairs of a sample with itself. Two are not
    compared: in 1.1.5 its similarities (SP) have rows of L1 norm 1, its neighbours (PKT) include
    the sample itself.
    """
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = draw(6, 4, 2, 2), draw(6, 5, 2, 2, seed=1)
    flat = [outputs_at("f", f.flatten(1)) for f in (student, teacher)]
    path = {"student_output_path": "f", "teacher_output_path": "f"}
    pair = {side: {"io": "output", "path": "f"} for side in ("student", "teacher")}

    attention = theirs.ATLoss({"pair": pair}, mode="code")
    expected = attention(outputs_at("f", student), outputs_at("f", teacher))
    torch.testing.assert_close(attention_transfer(student, teacher), expected)

    pairs = theirs.RKDLoss(**path, dist_factor=1.0, angle_factor=0.0, reduction="mean")(*flat)
    triples = theirs.RKDLoss(**path, dist_factor=0.0, angle_factor=1.0, reduction="mean")(*flat)
    torch.testing.assert_close(relational(student, teacher, 1, 0), pairs * 6**2 / (6 * 5))
    torch.testing.assert_close(relational(student, teacher, 0, 1), triples * 6**3 / (6 * 5 * 4))

    logits = draw(6, 3), draw(6, 3, seed=1)
    ends = [outputs_at("z", z) for z in logits]
    where = {"student_module_path": "z", "teacher_module_path": "z"}
    where |= {"student_module_io": "output", "teacher_module_io": "output"}
    soft = theirs.KDLoss(**where, temperature=3.0, beta=1.0)(*ends)
    torch.testing.assert_close(soft_targets(*logits, 3.0), 3.0**2 * soft)


# ------------------------------------------------------------------------------ shapes that differ


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        ((6,), (6,), nn.Identity),
        ((6,), (9,), nn.Linear),
        ((7, 6), (7, 4), nn.Linear),  # tokens
        ((6, 7), (4, 7), nn.Conv1d),  # points
        ((3, 8, 8), (5, 8, 8), nn.Conv2d),
        ((3, 8, 6), (5, 4, 6), nn.Conv2d),
        ((3, 8, 6, 5), (5, 4, 6, 4), nn.Conv3d),
    ],
)
def test_a_regressor_leads_to_the_teachers_shape(ours: tuple, theirs: tuple, kind: type):
    student, teacher = torch.randn(2, *ours), torch.randn(2, *theirs)
    regressor = Regressor(student, teacher)
    assert type(regressor.map) is kind
    found, unchanged = regressor(student, teacher)
    assert found.shape == teacher.shape
    assert unchanged is teacher


@pytest.mark.parametrize(
    ("ours", "theirs"), [((3, 4, 4), (3, 8, 8)), ((6,), (3, 2)), ((), (3,)), ((3, 2), (5, 3))]
)
def test_a_shape_that_no_regressor_reaches_is_named(ours: tuple, theirs: tuple):
    with pytest.raises(ValueError, match="no regressor leads from the student's"):
        Regressor(torch.randn(2, *ours), torch.randn(2, *theirs))


def test_embeddings_have_length_one():
    student, teacher = torch.randn(4, 3, 2, 2), torch.randn(4, 7)
    pair = Projections(student, teacher)(student, teacher)
    assert [list(embedding.shape) for embedding in pair] == [[4, 128], [4, 128]]
    for embedding in pair:
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))


# --------------------------------------------------------------------------------------- trainings


def network(channels: int = 4, seed: int = 0) -> nn.Sequential:
    """Layer 2 has ``[channels, 4, 4]``, layer 5 twice as many features, and there are 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, channels, 3),
            nn.Dropout(0.1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(channels * 16, 2 * channels),
            nn.Tanh(),
            nn.Linear(2 * channels, 3),
        )


def images(count: int = 33) -> TensorData:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    return TensorData(x, torch.randint(0, 3, (count,), generator=generator))


NARROW_OR_WIDE = {  # a layer, and how many channels the teacher has there (the student has 4)
    "feature": ("5", 4),
    "soft_targets": ("", 6),
    "hints": ("2", 6),
    "at": ("2", 6),
    "dkd": ("", 6),
    "sp": ("5", 6),
    "rkd": ("5", 6),
    "pkt": ("5", 6),
    "crd_in_batch": ("5", 6),
}
each_loss = pytest.mark.parametrize("name", NARROW_OR_WIDE)
FAST = Schedule(epochs=3, lr=0.01, batch_size=11, adamw=True, seed=4)


def objective_of(name: str, **more) -> tuple[TrainingObjective, nn.Module]:
    layer, channels = NARROW_OR_WIDE[name]
    return TrainingObjective(name, (layer,), **more), network(channels, seed=1)


def test_each_loss_is_trained_here():
    assert set(NARROW_OR_WIDE) == set(LOSSES)


@each_loss
def test_training_lowers_it(name: str):
    objective, teacher = objective_of(name)
    schedule = Schedule(epochs=25, lr=0.01, batch_size=11, adamw=True)
    log = distill.train(network(), images(), schedule, objective, teacher=teacher).log
    assert log[-1]["loss"] < 0.7 * log[1]["loss"]


@each_loss
def test_a_training_that_is_resumed_has_the_same_bits(name: str, tmp_path: Path):
    """Network, helpers and optimiser, at every epoch, wherever it was interrupted."""
    objective, teacher = objective_of(name, labels=0.5)
    whole = distill.train(network(), images(), FAST, objective, teacher=teacher)
    one = Schedule(epochs=1, lr=0.01, batch_size=11, adamw=True, seed=4)
    torch.manual_seed(77)  # the caller's numbers do not matter
    distill.train(network(), images(), one, objective, teacher=teacher, folder=tmp_path)
    torch.manual_seed(78)
    resumed = distill.train(network(), images(), FAST, objective, teacher=teacher, folder=tmp_path)
    for epoch in range(4):
        assert same(whole.tensors(epoch), resumed.tensors(epoch)), epoch
    helpers = [key for key in whole.tensors() if key.startswith("helper ")]
    assert bool(helpers) == (LOSSES[name].helper is not None)
    for key in helpers:
        assert not torch.equal(whole.tensors(0)[key], whole.tensors()[key]), "it is not trained"


@each_loss
def test_frozen_layers_stay_frozen(name: str):
    objective, teacher = objective_of(name, labels=0.5)
    model, before = network(), {k: v.clone() for k, v in teacher.state_dict().items()}
    model[0].requires_grad_(False)
    strong = Schedule(epochs=2, lr=0.05, weight_decay=0.5, batch_size=11)
    found = distill.train(model, images(), strong, objective, teacher=teacher)
    moved = {k for k, v in found.state().items() if not torch.equal(v, found.state(0)[k])}
    assert not {"0.weight", "0.bias"} & moved
    assert {"4.weight", "6.weight"} <= moved
    assert same(teacher.state_dict(), before)


def test_what_lies_above_is_trained_by_labels_alone():
    objective, teacher = objective_of("rkd")
    found = distill.train(network(), images(), FAST, objective, teacher=teacher)
    moved = {k for k, v in found.state().items() if not torch.equal(v, found.state(0)[k])}
    assert moved == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert set(found.paths()[1]) == moved, "paths and norms are of the student alone"


def of_helper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a checkpoint's first helper."""
    start = "helper 0."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def plain_loop(
    name: str, depth: int, model: nn.Sequential, helper: nn.Module, target: Tensor, data: TensorData
) -> None:
    """0.3 times the loss after ``depth`` modules plus 0.5 times the labels' cross-entropy."""
    optimiser = torch.optim.SGD(
        [*model.parameters(), *helper.parameters()], 0.02, momentum=0.9, weight_decay=0.1
    )
    for epoch in (1, 2):
        with seeded(6, epoch):
            order = torch.randperm(len(data))
        for batch in order.split(11):
            optimiser.zero_grad()
            ours = model[:depth](data.x[batch])
            pair = (ours, target[batch])
            if LOSSES[name].helper is not None:
                pair = helper(*pair)
            labels = (data.y[batch],) if name == "dkd" else ()
            value = 0.3 * LOSSES[name].function(*pair, *labels)
            value = value + 0.5 * F.cross_entropy(model[depth:](ours), data.y[batch])
            value.backward()
            optimiser.step()


@pytest.mark.parametrize("name", ["hints", "crd_in_batch", "dkd", "rkd"])
def test_student_and_helpers_move_as_in_a_plain_loop(name: str):
    """Weight of the loss, weight of the labels, helpers under the same optimiser."""
    layer, channels = NARROW_OR_WIDE[name]
    data, teacher, model = images(22), network(channels, seed=1).eval(), network()
    model[1].p = 0.0
    schedule = Schedule(epochs=2, lr=0.02, weight_decay=0.1, batch_size=11, seed=6)
    found = distill.student(
        model, teacher, layer, data, schedule, loss=name, weight=0.3, labels=0.5
    )

    depth = len(model) if layer == "" else int(layer) + 1
    target, helper = teacher[:depth](data.x).detach(), nn.Identity()
    if LOSSES[name].helper is not None:
        helper = LOSSES[name].helper(model[:depth](data.x), target)
        helper.load_state_dict(of_helper(found.tensors(0)))
    plain_loop(name, depth, model, helper, target, data)
    torch.testing.assert_close(found.state(), dict(model.state_dict()), rtol=1e-4, atol=1e-6)
    expected = dict(helper.state_dict())
    torch.testing.assert_close(of_helper(found.tensors()), expected, rtol=1e-4, atol=1e-6)


def test_helpers_depend_on_the_seed_and_are_one_for_each_layer():
    teacher = network(6, seed=1)
    objective = TrainingObjective("hints", ("2", "5"))
    firsts = [
        distill.train(
            network(), images(), Schedule(epochs=0, seed=seed), objective, teacher=teacher
        ).tensors(0)
        for seed in (0, 1)
    ]
    shapes = {k: list(v.shape) for k, v in firsts[0].items() if k.startswith("helper ")}
    assert shapes == {
        "helper 0.map.weight": [6, 4, 1, 1],
        "helper 0.map.bias": [6],
        "helper 1.map.weight": [12, 8],
        "helper 1.map.bias": [12],
    }
    for key in shapes:
        assert not torch.equal(firsts[0][key], firsts[1][key])
    assert firsts[0].keys() - shapes.keys() == {f"model.{key}" for key in network().state_dict()}


def test_a_damaged_first_epoch_has_its_helpers_back(tmp_path: Path):
    objective, teacher = objective_of("crd_in_batch", parameters={"dimension": 5})
    one = distill.train(network(), images(), FAST, objective, teacher=teacher, folder=tmp_path)
    tensors = [one.tensors(epoch) for epoch in range(4)]
    assert list(tensors[0]["helper 0.student.weight"].shape) == [5, 8]
    for epoch in (0, 2):
        (tmp_path / f"epoch-00{epoch}.json").unlink()
    again = distill.train(network(), images(), FAST, objective, teacher=teacher, folder=tmp_path)
    assert all(same(again.tensors(epoch), tensors[epoch]) for epoch in range(4))
    assert same(Checkpoints(tmp_path).load(network()).state_dict(), one.state())


class WithHelpers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.helpers = nn.ModuleList([nn.ModuleDict({"map": nn.Linear(5, 4)})])

    def forward(self, x: Tensor) -> Tensor:
        return self.helpers[0]["map"](x)


def test_a_networks_own_helpers_are_not_mistaken():
    """Its weights and their optimiser's state, which have names like those of a regressor."""
    teacher = nn.Sequential(nn.Linear(5, 7))
    data = TensorData(torch.randn(12, 5), torch.zeros(12, dtype=torch.long))
    how = {"teacher_layer": "0", "loss": "hints"}
    found = distill.student(WithHelpers(), teacher, "helpers.0.map", data, FAST, **how)
    tensors = found.tensors()
    assert list(tensors["model.helpers.0.map.weight"].shape) == [4, 5]
    assert list(tensors["helper 0.map.weight"].shape) == [7, 4]
    means = [list(v.shape) for k, v in tensors.items() if k.startswith("mean.") and v.dim() == 2]
    assert sorted(means) == [[4, 5], [7, 4]]
    for epoch in ("epoch-000", "epoch-003"):
        alone = load_file(found.artefacts.path / f"{epoch}.safetensors")
        fresh = WithHelpers()
        assert load_weights(fresh, found.artefacts.path / f"{epoch}.safetensors") == []
        loaded = fresh.state_dict()["helpers.0.map.weight"]
        assert torch.equal(loaded, alone["model.helpers.0.map.weight"])


# ------------------------------------------------------------------------------------ the interface


@pytest.mark.parametrize("name", ["sp", "rkd", "pkt", "crd_in_batch"])
def test_a_batch_whose_samples_are_compared_stays_whole(name: str):
    class Small(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 6:
                raise torch.OutOfMemoryError("too many rows")
            return x

    objective, teacher = objective_of(name)
    objective = TrainingObjective(name, ("1.5",), ("5",))
    model = nn.Sequential(Small(), network())
    with pytest.raises(MemoryError, match=f"the loss {name} needs it whole"):
        distill.train(model, images(), FAST, objective, teacher=teacher)
    with pytest.raises(
        ValueError, match=rf"the loss {name} compares .* \(33 samples, batch_size=1\)"
    ):
        distill.student(
            network(), teacher, "5", images(), Schedule(epochs=1, batch_size=1), loss=name
        )


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.per_sample])
def test_losses_of_each_sample_may_be_taken_in_parts(name: str):
    shape = (5, 3) if name in ("soft_targets", "dkd") else (5, 2, 2, 2)
    ours, theirs = draw(*shape), draw(*shape, seed=1)
    whole = LOSSES[name].value(ours, theirs, LABELS, {})
    parts = [LOSSES[name].value(ours[i], theirs[i], LABELS[i], {}) for i in ([0, 1], [2, 3, 4])]
    torch.testing.assert_close((2 * parts[0] + 3 * parts[1]) / 5, whole)


def test_other_names_of_losses_are_of_losses_that_there_are():
    assert set(ALIASES.values()) <= set(LOSSES)
    assert not set(ALIASES) & set(LOSSES)
    for other, ours in {"KD": "soft_targets", "MSE": "feature", "DKD": "dkd", "CRD": "crd"}.items():
        with pytest.raises(ValueError, match=f"unknown loss '{other}'; did you mean '{ours}"):
            TrainingObjective(other)
    with pytest.raises(ValueError, match=r"unknown loss 'CE'; labels alone are loss=None"):
        TrainingObjective("CE", labels=1.0)


def test_bad_input_is_named():
    data, teacher, wide = images(), network(seed=1), network(6, seed=1)
    model = network()

    def train(loss: str, layer: str, teacher: nn.Module = wide, **more) -> None:
        distill.student(model, teacher, layer, data, Schedule(epochs=1), loss=loss, **more)

    with pytest.raises(ValueError, match="unknown loss 'rdk'; did you mean 'rkd'"):
        train("rdk", "5")
    with pytest.raises(ValueError, match="unknown parameter of rkd 'angles'; did you mean 'angle'"):
        train("rkd", "5", parameters={"angles": 1.0})
    with pytest.raises(ValueError, match="unknown parameter of dkd 'labels'"):
        train("dkd", "", parameters={"labels": 1.0})
    with pytest.raises(ValueError, match="weight=0 must be positive"):
        train("rkd", "5", weight=0)
    with pytest.raises(ValueError, match=r"'2' is \[4, 4, 4\], the teacher's '2' \[6, 4, 4\]"):
        train("feature", "2")
    with pytest.raises(ValueError, match=r"compared place by place: the student's \[8\]"):
        train("at", "5")
    with pytest.raises(ValueError, match=r"no regressor leads from the student's \[4, 4, 4\] to"):
        train("hints", "2", teacher_layer="5")
    with pytest.raises(ValueError, match="angle=-1 must not be negative"):
        train("rkd", "5", parameters={"angle": -1})
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        train("dkd", "", parameters={"temperature": 0})
    with pytest.raises(ValueError, match=r"needs logits \[B, K\] and one class for each sample"):
        train("dkd", "2", teacher)
    data = TensorData(data.x, data.y - 100)
    with pytest.raises(ValueError, match=r"needs labels from 0 to 2, .*: got -100 to -98"):
        train("dkd", "")
    data = TensorData(data.x, data.y.float())
    with pytest.raises(ValueError, match=r"labels \[2\] of torch.float32"):
        train("dkd", "")


def test_parameters_of_a_loss_have_defaults():
    def without(student: Tensor, teacher: Tensor, power: float) -> Tensor:
        return (student - teacher).abs().pow(power).mean()

    with pytest.raises(TypeError, match="parameter 'power' of the loss without needs a default"):
        Loss(without)


def test_a_new_loss_with_labels_and_helper_is_a_function_and_a_line(monkeypatch):
    """Of its own kind: a linear probe of the student's feature that imitates labels and teacher."""

    class Probe(nn.Module):
        def __init__(self, student: Tensor, teacher: Tensor, classes: int = 3) -> None:
            super().__init__()
            self.map = nn.Linear(student[0].numel(), classes)

        def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
            return self.map(student.flatten(1)), teacher

    def probed(student: Tensor, teacher: Tensor, labels: Tensor, share: float = 0.5) -> Tensor:
        return share * F.cross_entropy(student, labels) + soft_targets(student, teacher)

    monkeypatch.setitem(LOSSES, "probed", Loss(probed, helper=Probe, same_shape=False))
    objective = TrainingObjective("probed", ("2",), ("",), {"share": 0.3})
    assert objective.config["parameters"] == {"share": 0.3, "classes": 3}
    schedule = Schedule(epochs=20, lr=0.01, batch_size=11, adamw=True)
    log = distill.train(network(), images(), schedule, objective, teacher=network(6, seed=1)).log
    assert log[-1]["loss"] < 0.8 * log[1]["loss"]


def test_what_an_objective_is_called():
    """Defaults are spelt out, so that a training is known by what was done; where nothing is new
    its description is that of earlier versions.
    """
    assert feature_at("4").config == TrainingObjective("feature", ("4",)).config
    assert softened_output().config == TrainingObjective("soft_targets").config
    assert feature_at("4").config == {
        "loss": "feature",
        "layers": ["4"],
        "teacher_layers": ["4"],
        "parameters": {"scale": "energy"},
        "labels": 0.0,
        "frozen_up_to": None,
    }
    assert "weight" not in TrainingObjective("sp", weight=1.0).config
    assert TrainingObjective("sp").config["weight"] == 3000
    assert TrainingObjective("sp", weight=2.0).config["weight"] == 2
    assert TrainingObjective("crd_in_batch").config["parameters"] == {
        "temperature": 0.07,
        "dimension": 128,
    }
