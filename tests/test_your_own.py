"""The page for networks, checkpoints and data of one's own, with all three given."""

import importlib
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kpnb
from kpnb.metrics import NAMES
from kpnb_book.run.rerun import results_of
from tests.drawn import draw
from tests.executed import papermill

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "05_your_own.ipynb"
VERDICTS = ("shows", "opposite", "open")
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


def wrapped(role: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict:
    """What training code of two kinds saves: of DataParallel, and of a compiled network."""
    if role == "student":
        parallel = nn.DataParallel(model)
        return {"state_dict": parallel.state_dict(), "optimizer": optimiser.state_dict()}
    return {"model": {f"_orig_mod.{k}": v for k, v in model.state_dict().items()}, "loss": 0.5}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A package, what its training left behind, and a folder of images, as parameters."""
    root = tmp_path_factory.mktemp("theirs")
    (root / "somebodys").mkdir()
    (root / "somebodys" / "nets.py").write_text(MODULE, "utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        net = importlib.import_module("somebodys.nets").Net
        x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for seed, role in enumerate(("student", "baseline")):
            torch.manual_seed(seed)
            model, labels = net(), torch.arange(16) % 2
            optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
            (root / role).mkdir()
            for epoch in range(8, 12):  # 9 comes before 10
                file = root / role / f"checkpoint_{epoch}.pth.tar"
                torch.save(wrapped(role, model, optimiser), file)
                nn.functional.cross_entropy(model(x), labels).backward()
                optimiser.step()
        draw(root / "images", 8)
        files = {f"{role}_checkpoints": f"{root}/{role}/*" for role in ("student", "baseline")}
        more = {"size": 32, "grid": 4, "b": 0.01, "images": 5, "profile": "smoke"}
        yield {
            "model": "somebodys.nets:Net",
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


def states_of(given: dict, role: str) -> list[dict]:
    """The weights of a role by epoch, read and unwrapped without kpnb."""
    found = []
    for epoch in range(8, 12):
        file = Path(given[f"{role}_checkpoints"]).parent / f"checkpoint_{epoch}.pth.tar"
        saved = torch.load(file, weights_only=True)
        state = saved["state_dict"] if role == "student" else saved["model"]
        found.append({name.partition(".")[2]: value for name, value in state.items()})
    return found


def test_plain_papermill_executes_the_page_on_what_it_is_given(given, tmp_path):
    """Its table is that of ``kpnb.trajectory``, called here, on weights that were read by hand."""
    package = Path(given["data_root"]).parent
    page = papermill(PAGE, tmp_path / "page.ipynb", given, PYTHONPATH=package)
    table = next(cell for cell in page.cells if cell.id == "05-18").outputs[0].data["text/html"]
    rows = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    start = execute(given, 6)  # images and units; nothing is trained or measured so far
    x, units, foreground = start["x"], start["units"], start["foreground"]
    assert x.shape == (5, 3, 32, 32)
    net = importlib.import_module("somebodys.nets").Net()
    choices, wanted = kpnb.Choices(b=0.01), []
    for role in ("student", "baseline"):
        states = states_of(given, role)
        how = {"units": units, "choices": choices}
        found = kpnb.trajectory(net, states, x, foreground, "features", **how)
        for epoch, state in enumerate(states):
            net.load_state_dict(state)
            one = kpnb.entropy(net, x, "features", units=units)
            assert torch.equal(found.entropy[epoch], one.entropy)
        assert found.row()["n_fg"] > 0
        wanted += [role, *(f"{value:.3f}" for value in found.row().values())]
    assert rows == wanted
    printed = str([cell.get("outputs", "") for cell in page.cells])
    assert "The student has 4 checkpoints and the baseline 4" in printed
    top = next(cell for cell in page.cells if cell.id == "05-top")
    assert "Your student has" in str(top.outputs)  # the takeaway, which the last cell puts there
    figure = next(cell for cell in page.cells if cell.id == "05-top-figure")
    assert "image/png" in figure.outputs[0].data
    assert "hardly learns" not in printed  # from few images, when nothing is trained on them
    check_results(results_of(page), rows)


def check_results(found: dict, rows: list[str]) -> None:
    """What is left for other programs is what the page shows."""
    shown = [rows[:7], rows[7:]]
    for line, (role, *values) in zip(found["tables"]["metrics"], shown, strict=True):
        assert line["role"] == role
        assert [f"{line[name]:.3f}" for name in NAMES] == values
    student, baseline = found["tables"]["metrics"]
    differences = {line["metric"]: line for line in found["tables"]["differences"]}
    assert [*differences] == [*NAMES]
    for name in ("n_fg", "n_bg"):  # of all images: the difference of the means
        line = differences[name]
        assert line["value"] == pytest.approx(student[name] - baseline[name])
        assert line["low"] <= line["value"] <= line["high"]
        assert (line["images"], line["verdict"] in VERDICTS) == (5, True)
    assert found["results"]["student_n_fg"] == pytest.approx(student["n_fg"])
    assert found["results"]["n_fg_low"] == pytest.approx(differences["n_fg"]["low"])


def test_void_in_masks_is_neither_object_nor_background(given, tmp_path):
    shutil.copytree(given["data_root"], tmp_path / "images")
    root = tmp_path / "images"
    for path in (root / "masks").rglob("*.png"):
        values = np.asarray(Image.open(path)) // 255
        values[:, :12] = 255
        Image.fromarray(values).save(path)
    given = given | {"data_root": str(root)}
    with pytest.raises(ValueError, match=r"ambiguous: masks hold 0, 1, 255: say void=255"):
        execute(given, 6)
    page = execute(given | {"void": 255})
    names = [page["data"].names[i] for i in page["measured"]]
    masks = np.stack([np.asarray(Image.open(root / "masks" / name)) for name in names])
    cells = masks.reshape(5, 4, 8, 4, 8).swapaxes(2, 3).reshape(5, 16, 64)
    known, object_ = (cells != 255).sum(-1), (cells == 1).sum(-1)
    foreground = (2 * object_ >= known) & (known >= 32)
    background = (2 * object_ < known) & (known >= 32)
    assert (~foreground & ~background).sum() == 5 * 4  # the first column
    np.testing.assert_array_equal(page["foreground"], foreground)
    np.testing.assert_array_equal(page["background"], background)
    entropy = page["student"].entropy[-1].numpy()
    level = np.array([h[b].mean() for h, b in zip(entropy, background, strict=True)])
    points = level[:, None] - entropy > 0.01
    row = page["rows"].loc["student"]
    assert row["n_fg"] == (points & foreground).sum(1).mean()
    assert row["n_bg"] == (points & background).sum(1).mean() > 0
    *_, outside = page["view"]  # which leaves out what lies in neither
    assert torch.equal(outside, page["background"])
    (root / "kpnb.json").write_text('{"void": 255}')
    again = execute(given, 6)  # the folder says it itself
    assert torch.equal(again["background"], page["background"])


@pytest.mark.parametrize("void", [255, None])
def test_masks_without_an_object_are_told_early_and_what_void_has_to_do_with_it(
    given, tmp_path, void
):
    """On masks of 0 and 255, void=255 takes the object away."""
    shutil.copytree(given["data_root"], tmp_path / "images")
    for path in (tmp_path / "images" / "masks").rglob("*.png"):
        values = np.asarray(Image.open(path)) if void else np.zeros((32, 32), np.uint8)
        Image.fromarray(values).save(path)
    given = given | {"data_root": str(tmp_path / "images"), "void": void}
    says = "void is on neither side: is it the value of the object" if void else "check the masks$"
    with pytest.raises(ValueError, match=f"no cell of any measured image is foreground: .*{says}"):
        execute(given, 6)


def test_the_embedded_images_have_no_void():
    with pytest.raises(ValueError, match="void= is for dataset='folder'"):
        execute({"void": 255, "profile": "smoke"}, 5)


def test_what_is_measured_is_of_all_classes(given):
    page = execute(given | {"images": 10}, 6)
    assert len(page["data"].labels[page["measured"]].unique()) == 2


def test_images_are_normalised_as_the_network_wants_them(given, caplog):
    """Here as Pillow reads them, from 0 to 1; of few images, which are only measured, no word."""
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    page = execute(given | plain, 6)
    assert "hardly learns" not in caplog.text
    names = [page["data"].names[i] for i in page["measured"]]
    files = [Path(given["data_root"], "images", name) for name in names]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
    np.testing.assert_allclose(page["x"].numpy(), pixels.transpose(0, 3, 1, 2), atol=1e-6)
    usual = execute(given, 6)["x"]
    shift = torch.tensor([0.485, 0.456, 0.406])
    scale = torch.tensor([0.229, 0.224, 0.225])
    wanted = (page["x"].movedim(1, -1) - shift) / scale
    torch.testing.assert_close(usual.movedim(1, -1), wanted)


def test_few_images_are_said_where_the_example_learns_from_them(given, caplog):
    ours = dict.fromkeys(["model", "student_checkpoints", "baseline_checkpoints"])
    execute(given | ours, 6)
    assert "a network hardly learns from them" in caplog.text


@pytest.mark.parametrize("missing", ["model", "student_checkpoints", "baseline_checkpoints"])
def test_half_of_what_is_needed_is_an_error(given, missing):
    with pytest.raises(ValueError, match="come together"):
        execute(given | {missing: None}, 4)
