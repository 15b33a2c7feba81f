"""The page for networks, checkpoints and data of one's own, with all three given."""

import importlib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

import kpnb
from tests.test_study import draw

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "05_your_own.ipynb"
MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten()
        )
        self.classifier = nn.Linear(128, 2)

    def forward(self, x):
        return self.classifier(self.features(x))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A package, what its training left behind, and a folder of images, as parameters."""
    root = tmp_path_factory.mktemp("theirs")
    (root / "somebodys_nets.py").write_text(MODULE, "utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        net = importlib.import_module("somebodys_nets").Net
        x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for seed, role in enumerate(("student", "baseline")):
            torch.manual_seed(seed)
            model, labels = nn.DataParallel(net()), torch.arange(16) % 2
            optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
            (root / role).mkdir()
            for epoch in range(4):
                file = {"state_dict": model.state_dict(), "optimizer": optimiser.state_dict()}
                torch.save(file, root / role / f"checkpoint_{epoch}.pth.tar")
                nn.functional.cross_entropy(model(x), labels).backward()
                optimiser.step()
        draw(root / "images", 8)
        files = {f"{role}_checkpoints": f"{root}/{role}/*" for role in ("student", "baseline")}
        more = {"size": 32, "grid": 4, "b": 0.01, "images": 5, "profile": "smoke"}
        yield {
            "model": "somebodys_nets:Net",
            "data_root": str(root / "images"),
            "layer": "features",
            "device": "cpu",
            **files,
            **more,
        }


def execute(parameters: dict, cells: int | None = None) -> dict:
    """The names that the page's code leaves behind, of its first ``cells``."""
    first, *rest = [
        cell.source for cell in nbformat.read(PAGE, 4).cells if cell.cell_type == "code"
    ]
    space: dict = {}
    exec(first, space)
    space |= parameters
    for source in rest[:cells]:
        exec(source, space)
    return space


def test_the_page_measures_what_it_is_given(given):
    page = execute(given)
    assert page["x"].shape == (5, 3, 32, 32)
    assert "teacher" not in page  # nothing was trained
    assert page["units"].count(page["x"]) == 16
    net = importlib.import_module("somebodys_nets").Net()
    for role in ("student", "baseline"):
        entropies = []
        for epoch in range(4):
            file = (
                Path(given["student_checkpoints"]).parents[1] / role / f"checkpoint_{epoch}.pth.tar"
            )
            state = torch.load(file, weights_only=True)["state_dict"]
            net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
            found = kpnb.entropy(net, page["x"], "features", units=page["units"])
            entropies.append(found.entropy)
        assert torch.equal(page[role].entropy, torch.stack(entropies))
        points = kpnb.knowledge_points(entropies[-1], page["foreground"], b=0.01)
        assert page[role].row()["n_fg"] == points.n_fg.mean() > 0
        assert page["rows"].loc[role, "n_fg"] == points.n_fg.mean()
    assert np.isfinite(page["found"]["n_fg"].value)
    assert len(page["recorded"].entropy) == 4


def test_what_is_measured_is_of_all_classes(given):
    page = execute(given | {"images": 10}, 4)
    assert len(page["data"].labels[page["measured"]].unique()) == 2


@pytest.mark.parametrize("missing", ["model", "student_checkpoints", "baseline_checkpoints"])
def test_half_of_what_is_needed_is_an_error(given, missing):
    with pytest.raises(ValueError, match="come together"):
        execute(given | {missing: None}, 2)
