"""Truths that are planted, carried to the end: what a network can see is known by construction, and
so is what the metrics must say of it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import kpnb
from kpnb.metrics import six_metrics
from kpnb.units import ImageGrid
from kpnb_book.store import Store
from kpnb_book.studies import measure, tables
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training

GRID = ImageGrid(6)
SOLVERS = {"exact": kpnb.ClosedForm(rank=None), "closed form": kpnb.ClosedForm()}


class Blinkered(nn.Module):
    """Sees only the marked pixels of an image, or only the others.

    The last channel marks them. Where it lies above one half is constant in between, so the mark
    itself has no derivative.
    """

    def __init__(self, marked: bool, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.marked = marked
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 144, 20)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = (x[:, 2:] > 0.5) == self.marked
        return self.layers(x[:, :2] * seen)


def marked_images() -> tuple[Tensor, Tensor]:
    """Images ``[4, 3, 12, 12]`` of noise with an object of 4 x 4 pixels, elsewhere in each, that
    the last channel marks; and the cells ``[4, 36]`` that the object covers.
    """
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x[:, 2] = 0
    for image, (top, left) in zip(x, [(0, 0), (2, 6), (8, 4), (6, 8)], strict=True):
        image[2, top : top + 4, left : left + 4] = 1
    return x, GRID.coverage(x[:, 2] > 0.5) >= 0.5


def measured(model: nn.Module, x: Tensor, foreground: Tensor, solver: kpnb.ClosedForm):
    """Knowledge points of the network, and its six metrics if it stayed as it is for two epochs."""
    entropy = kpnb.entropy(model.eval(), x, "layers", units=GRID, solver=solver).entropy
    points = kpnb.knowledge_points(entropy, foreground)
    distance = torch.tensor([0.0, 0.5, 0.75], dtype=torch.float64)
    return points, six_metrics(entropy.expand(3, -1, -1), foreground, distance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_that_sees_only_the_foreground(solver):
    x, foreground = marked_images()
    points, found = measured(Blinkered(marked=True), x, foreground, SOLVERS[solver])
    assert (points.n_bg == 0).all()
    assert (points.n_fg > 0).all()
    assert (points.ratio == 1).all()
    row = found.row()
    assert (row["n_bg"], row["lambda"], row["rho"]) == (0, 1, 1)
    assert row["n_fg"] == points.n_fg.mean()
    assert (row["d_mean"], row["d_var"]) == (0.5, 0)  # all of them are there after epoch 1
    assert not any(found.undefined().values())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_that_sees_only_the_background(solver):
    """There are points only where some of the background matters more than the rest of it."""
    x, foreground = marked_images()
    model = Blinkered(marked=False)
    with torch.no_grad():
        weight = model.layers[3].weight.view(20, 6, 12, 12)
        weight[..., ::4, ::4] *= 20
    points, found = measured(model, x, foreground, SOLVERS[solver])
    assert (points.n_fg == 0).all()
    assert (points.n_bg > 0).all()
    assert (points.ratio == 0).all()
    row = found.row()
    assert (row["n_fg"], row["lambda"]) == (0, 0)
    assert found.undefined()["rho"] == found.undefined()["d_mean"] == len(x)


def test_an_object_that_is_always_at_the_same_place():
    """Linear, with weights for the object's pixels only: a network without any nonlinearity."""
    x = torch.randn(5, 2, 12, 12, generator=torch.Generator().manual_seed(2))
    place = torch.zeros(12, 12, dtype=torch.bool)
    place[4:8, 2:8] = True
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 144, 9))
    with torch.no_grad():
        model[1].weight.view(9, 2, 12, 12)[..., ~place] = 0
    foreground = (GRID.coverage(place[None]) >= 0.5).expand(5, -1)
    entropy = kpnb.entropy(model, x, "1", units=GRID).entropy
    points = kpnb.knowledge_points(entropy, foreground)
    assert (points.ratio == 1).all()
    assert (points.n_fg == 6).all()


# ------------------------------------------------------------------- a trajectory written by hand

CELLS = 4  # a side; the network sees some of the 16 cells and nothing of the others
SEEN = [{8, 9, 10, 11}, {0, 1, 10, 11}, {0, 1, 2, 6}, {0, 1, 2, 4, 6}, {1, 2, 3, 4, 7}]
"""After each epoch, beginning with the untrained network."""
OBJECTS = [{0, 1, 4, 5}, {2, 3, 6, 7}]
"""Cells of the foreground, of the first image and the second."""


@dataclass(frozen=True)
class TwoImages:
    """Images of 16 pixels, a cell each, whose content does not matter to a linear network."""

    config: dict[str, str] = field(default_factory=lambda: {"dataset": "two images"})
    classes: ClassVar[tuple[str, ...]] = ("first", "second")
    masks: ClassVar[Tensor] = torch.stack([torch.isin(torch.arange(16), torch.tensor([*cells]))
                                           for cells in OBJECTS])  # fmt: skip

    def __len__(self) -> int:
        return 2

    def complete(self) -> "TwoImages":
        return self

    def share(self, count: int, seed: int) -> "TwoImages":
        return self

    def batch(self, index: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
        x = torch.arange(32.0).view(2, 1, CELLS, CELLS).sin()
        return x[index], index


def linear(seed: int) -> nn.Module:
    """One weight a cell: ``feature_i = w_i x_i``, without a bias."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False))


class LinearStudy(Study):
    Settings = Settings
    PROFILES: ClassVar = {"laptop": {"layers": ("1",), "seeds": (0,), "epochs": 4, "analysed": 2}}
    build = staticmethod(linear)
    units = ImageGrid(CELLS)

    def load(self, split: str, count: int | None) -> TwoImages:
        return TwoImages()

    def spec(self, seed: int) -> dict[str, int]:
        return {"seed": seed}


def write(training: Training) -> None:
    """The trajectory of ``SEEN``: weight 0.5 for what is seen, 0 for the rest.

    A step moves as many weights as cells are gained or lost, each by 0.5.
    """
    previous: set[int] = set()
    for epoch, seen in enumerate(SEEN):
        weight = torch.diag(torch.tensor([0.5 * (cell in seen) for cell in range(16)]))
        entry = {"norms": {"1.weight": 0.5 * len(seen ^ previous) ** 0.5}, "seconds": 0.0}
        training.checkpoints.write(epoch, {"model.1.weight": weight}, entry)
        previous = seen


def test_a_trajectory_written_by_hand(tmp_path):
    """Of the first image's cells {0, 1, 4, 5} the network sees 0, 2, 2, 3, 2 after the epochs 0 to
    4, of the second's {2, 3, 6, 7} it sees 0, 0, 2, 2, 3. Its four weights move by 1 in all steps
    but the third, in which one of them moves by 0.5; they have the length 1 at the start.
    """
    study = LinearStudy(store=Store(tmp_path), device="cpu")
    training = study.baseline()
    write(training)
    assert training.missing() == []
    assert measure.distance(study, training, "1").tolist() == [0, 1, 2, 2.5, 3.5]
    assert measure.distance(study, training, "1", "layer").tolist() == [0, 1, 2, 2.5, 3.5]
    counts = measure.point_counts(study, training, "1")
    assert counts.T.tolist() == [[0, 2, 2, 3, 2], [0, 0, 2, 2, 3]]
    found = measure.metrics(study, training, "1")
    cells = [set(points.nonzero().flatten().tolist()) for points in found.points[:, 0]]
    assert cells == SEEN  # in both images: these are the knowledge points
    assert found.n_fg.tolist() == [2, 3]
    assert found.n_bg.tolist() == [3, 2]
    assert found.ratio.tolist() == [2 / 5, 3 / 5]
    # The first image is richest after epoch 3, the second after epoch 4.
    assert found.distance.tolist() == [2.5, 3.5]
    # Ever tried: {0, 1, 4} and {2, 3, 6, 7}; kept: {1, 4} and {2, 3, 7}.
    assert found.rho.tolist() == [2 / 3, 3 / 4]
    row = found.row()
    assert (row["d_mean"], row["d_var"]) == (3.0, 0.25)
    assert row["rho"] == pytest.approx(17 / 24)
    assert row["lambda"] == pytest.approx(1 / 2)


def test_student_and_baseline_of_one_trajectory_are_alike(tmp_path):
    """The planted numbers in the study's table, and no difference between the networks."""
    study = LinearStudy(store=Store(tmp_path), device="cpu")
    write(study.baseline())
    write(study.student("1"))
    table = tables.table5(study).set_index("network")
    assert list(table.index) == ["student", "baseline"]
    assert table["rho"].tolist() == pytest.approx([17 / 24] * 2)
    assert table["d_var"].tolist() == [0.25] * 2
    assert {difference.value for difference in tables.overall(study).values()} == {0}
