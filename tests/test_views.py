"""Views on a page: projection, colours, escaping, data, and the script itself run by Node, where a
pen takes notes.
"""

import html
import json
import re
import shutil
import subprocess
from base64 import b64decode
from math import pi
from types import SimpleNamespace

import matplotlib.colors
import numpy as np
import pytest
import torch

from kpnb.energy import ClosedForm
from kpnb.entropy import entropy
from kpnb.points import foreground_units, knowledge_points
from kpnb.units import ImageGrid
from kpnb_book.data.image_set import ImageSet
from kpnb_book.figures.live import Live
from kpnb_book.figures.plots import COLOUR, KINDS, cloud_maps, project
from kpnb_book.figures.views import COLOURS, explorable, sharing, turnable
from tests.models import small_net

CLOUD = torch.nn.functional.normalize(
    torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1
)
KIND = torch.arange(40) % 4


def test_projection_is_the_rotation_it_says():
    torch.testing.assert_close(project(CLOUD, 0, 0), CLOUD[:, [0, 2, 1]])
    torch.testing.assert_close(
        project(CLOUD, pi / 2, 0), torch.stack([-CLOUD[:, 1], CLOUD[:, 2], CLOUD[:, 0]], 1)
    )
    torch.testing.assert_close(
        project(CLOUD, 0.4, pi / 2)[:, 2], -CLOUD[:, 2]
    )  # from above, the top is nearest
    torch.testing.assert_close(project(CLOUD, 1.1, -0.7).norm(dim=1), CLOUD.norm(dim=1))


def test_picture_has_every_point_in_the_colour_of_its_kind():
    figure = cloud_maps(
        CLOUD.expand(2, -1, -1), {"one": KIND.expand(2, -1), "other": (0 * KIND).expand(2, -1)}
    )
    panels = [axis.collections[0] for axis in figure.axes]
    for panel, kinds in zip(panels, (KIND, 0 * KIND) * 2, strict=True):
        colours = {tuple(np.round(c[:3] * 255).astype(int)) for c in panel.get_facecolors()}
        wanted = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in KINDS.values()]
        assert colours == {wanted[k] for k in kinds}
        found = sorted(map(tuple, panel.get_offsets().round(4).tolist()))
        assert found == sorted(map(tuple, project(CLOUD)[:, :2].double().numpy().round(4).tolist()))
    assert list(KINDS.values())[2:] == [COLOUR["background"], COLOUR["foreground"]]


def view(title="a", alt="a cloud"):
    return turnable({title: CLOUD, "b": CLOUD[:8]}, {title: KIND, "b": KIND[:8]}, alt)._repr_html_()


def test_page_names_what_it_shows_and_loads_nothing():
    page = view(title="</script><b>", alt='a "cloud" & <more>')
    assert page.count("</script>") == 1
    assert html.unescape(re.search(r'aria-label="([^"]*)"', page)[1]) == 'a "cloud" & <more>'
    assert 'role="img"' in page
    assert 'tabindex="0"' in page
    assert [tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)</span>", page)] == [
        (10, 2)
    ] * 4
    assert not re.search(r"https?:|src=|import ", page)


PEN = """
const events = {}, log = [];
const pen = { scale() {}, beginPath() {}, fill() {}, fillText(text) { log.push(text); },
  arc(x, y) { log.push([x, y, this.fillStyle]); } };
const canvas = { clientWidth: 800, clientHeight: 324, getContext: () => pen, setPointerCapture() {},
  addEventListener: (name, act) => { events[name] = act; } };
const window = { devicePixelRatio: 2 };
const document = { currentScript: { previousElementSibling: canvas } };
class ResizeObserver { observe() {} }
"""
ACT = """
const drawings = [log.splice(0)];
const at = (x, y) => ({ clientX: x, clientY: y, pointerId: 1, key: "", preventDefault() {} });
events.pointerdown(at(10, 10)); events.pointermove(at(60, 30)); events.pointerup(at(60, 30));
drawings.push(log.splice(0));
events.pointermove(at(90, 90));
events.keydown({ key: "ArrowLeft", preventDefault() {} });
drawings.push(log.splice(0));
events.keydown({ key: "x", preventDefault() { throw new Error("not ours"); } });
console.log(JSON.stringify([...drawings, log]));
"""


needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs Node")


@needs_node
def test_script_draws_the_projection_and_turns():
    script = re.search(r"<script>(.*)</script>", view(), re.S)[1]
    said = subprocess.run(
        ["node", "-e", PEN + script + ACT], capture_output=True, text=True, check=True
    ).stdout
    *drawings, rest = json.loads(said)
    assert rest == []  # neither a move without a held button nor another key draws
    colours = list(KINDS.values())
    for drawing, (turn, tilt) in zip(
        drawings, [(0.6, 0.35), (1.1, 0.55), (1.0, 0.55)], strict=True
    ):
        assert [mark for mark in drawing if isinstance(mark, str)] == ["a", "b"]
        marks = [mark for mark in drawing if not isinstance(mark, str)]
        right, up, away = project(CLOUD, turn, tilt).double().numpy().T
        size = 0.48 * 300
        wanted = [
            (200 + size * right[i], 174 - size * up[i], colours[i % 4]) for i in np.argsort(-away)
        ]
        assert [m[2] for m in marks[:40]] == [w[2] for w in wanted]
        np.testing.assert_allclose([m[:2] for m in marks[:40]], [w[:2] for w in wanted], atol=0.3)
        assert len(marks) == 48


GEN = torch.Generator().manual_seed(1)
INSIDE = torch.rand(3, 12, generator=GEN) < 0.3
MAPS = {
    name: {"FC1": torch.randn(4, 3, 12, generator=GEN) * 0.3 - 2.8}
    for name in ("student", "baseline")
}
MAPS["student"]["FC1"][2, 1] = torch.nan  # a picture whose feature does not move
MAPS |= {"teacher": {"FC1": MAPS["baseline"]["FC1"][-1:] - 0.1}}
PICTURES = (torch.rand(3, 3, 8, 8, generator=GEN) * 256).byte()


def cells(background=None):
    alt = 'a "view" & <more>'
    page = explorable(PICTURES, MAPS, INSIDE, (3, 4), alt, b=0.2, background=background).html
    script, data = re.search(
        r"<script>(.*)\.cells\(document\.currentScript\.parentElement, (.*)\);</script>", page, re.S
    ).groups()
    return page, script, json.loads(data)


def unpacked(data, network):
    steps = np.frombuffer(b64decode(data["maps"][network]["FC1"]), "<u2").reshape(-1, 3, 12)
    return torch.tensor(np.where(steps == 65535, np.nan, data["low"] + data["step"] * steps))


def test_view_of_pictures_holds_the_entropies_to_its_step():
    _, _, data = cells()
    assert data["step"] < 1e-4
    for network, layers in MAPS.items():
        torch.testing.assert_close(
            unpacked(data, network),
            layers["FC1"].double(),
            rtol=0,
            atol=0.51 * data["step"],
            equal_nan=True,
        )
    assert data["foreground"] == ["".join(str(int(unit)) for unit in mask) for mask in INSIDE]
    pixels = np.frombuffer(b64decode(data["pixels"][1]), "u1").reshape(8, 8, 3)
    assert (pixels == PICTURES[1].permute(1, 2, 0).numpy()).all()


def test_every_control_of_the_view_has_a_label_and_a_start():
    page, _, _ = cells()
    names = ["image", "network", "epoch", "b"]
    assert (
        '<input type="hidden" name="layer" value="FC1">' in page
    )  # of one layer there is no choice
    assert (
        re.findall(r"<label>[^/]*?(?:<i>b</i> )?<(?:select|input) [^>]*?name=\"(\w+)\"", page)
        == names
    )
    assert 'value="3"' in re.search(r'<input [^>]*name="epoch"[^>]*>', page)[0]
    assert 'value="0.2"' in re.search(r'<input [^>]*name="b"[^>]*>', page)[0]
    assert page.count('<canvas role="img" aria-label="') == 3
    assert 'role="status"' in page
    assert (
        html.unescape(re.search(r'role="group" aria-label="([^"]*)"', page)[1])
        == 'a "view" & <more>'
    )
    assert not re.search(r"https?:|src=|import ", page)


ASK = """
const counts = [];
for (const [name, layers] of Object.entries(data.maps)) {
  const found = views.entropies(layers.FC1, data.low, data.step);
  for (let start = 0; start < found.length; start += 12) {
    const inside = [...data.foreground[(start / 12) % 3]].map((unit) => unit === "1");
    for (const b of thresholds) {
      const { points, fg, bg, ratio } = views.count(views.gaps(found.slice(start, start + 12),
      inside).gaps, inside, b); counts.push([name, start / 36 | 0, (start / 12) % 3, b, points, fg,
      bg, ratio]);
    }
  }
}
console.log(JSON.stringify(counts));
"""


VOID = ~INSIDE & (torch.rand(3, 12, generator=GEN) < 0.4)


@needs_node
@pytest.mark.parametrize("background", [None, ~INSIDE & ~VOID])
def test_script_counts_what_kpnb_counts(background):
    """Without the cells that belong to neither region, too."""
    assert VOID.any()
    _, script, data = cells(background)
    thresholds = [0, 0.05, 0.2, 0.37, 0.6, 5]
    program = f"const views = {script}, data = {json.dumps(data)}, thresholds = {thresholds};{ASK}"
    said = json.loads(
        subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True).stdout
    )
    assert len(said) == (4 + 4 + 1) * 3 * len(thresholds)
    for network, epoch, image, b, points, fg, bg, ratio in said:
        entropy = MAPS[network]["FC1"].double()[epoch]
        found = knowledge_points(entropy, INSIDE, b=b, background=background)
        assert points == found.points[image].tolist()
        if found.defined[image]:
            assert [fg, bg] == [found.n_fg[image], found.n_bg[image]]
            assert ratio == (None if fg + bg == 0 else pytest.approx(found.ratio[image].item()))
        else:
            assert [fg, bg, ratio] == [0, 0, None]


BITS = {
    layer: {
        seed: {name: torch.rand(3, 12, generator=GEN) < 0.5 for name in ("teacher", "at", "<sp>")}
        for seed in (0, 7)
    }
    for layer in ("FC1", "FC2")
}
SAID = {
    layer: {seed: {name: f"{layer} {seed} {name}" for name in ("at", "<sp>")} for seed in (0, 7)}
    for layer in BITS
}
DRAW = """
const log = [], chosen = { layer: "FC2", seed: "7", student: "at", image: "1" }, status = {};
const canvas = () => ({ clientWidth: 120, clientHeight: 120, getContext: () => ({ scale() {},
  createImageData: (w, h) => ({ data: [] }), putImageData() {}, drawImage() { log.push([]); },
  fillRect(x, y) { log.at(-1).push([Math.round(x), Math.round(y), this.fillStyle]); } }) });
const window = { devicePixelRatio: 1 }, document = { createElement: canvas };
class ResizeObserver { observe() {} }
const canvases = [canvas(), canvas(), canvas()];
const act = {}, root = { querySelectorAll: () => canvases,
  addEventListener: (name, f) => { act[name] = f; },
  querySelector: (at) => (at === "[role=status]" ? status : { value: chosen[at.slice(6, -1)] }) };
views.sharing(root, data);
const first = [log.splice(0), status.innerHTML];
delete data.points.FC2[7].at;
canvases.forEach((each) => { each.width = "as drawn"; });
act.input();
if (canvases.some((each) => each.width === "as drawn")) throw new Error("not cleared");
console.log(JSON.stringify([...first, status.innerHTML]));
"""


@needs_node
def test_script_draws_what_student_and_teacher_share():
    names = {"at": "AT", "<sp>": "<SP>"}
    page = sharing(PICTURES, BITS, SAID, INSIDE, (3, 4), names, "points").html
    script, data = re.search(
        r"<script>(.*)\.sharing\(document\.currentScript\.parentElement, (.*)\);</script>",
        page,
        re.S,
    ).groups()
    assert [*re.findall(r'name="(\w+)"', page)] == ["image", "student", "layer", "seed"]
    assert '<option value="&lt;sp&gt;">&lt;SP&gt;</option>' in page
    program = f"const views = {script}, data = {data};{DRAW}"
    run = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    drawn, said, lost = json.loads(run.stdout)
    teacher, own = (BITS["FC2"][7][name][1] for name in ("teacher", "at"))
    regions = [COLOUR["foreground" if i else "background"] for i in INSIDE[1].tolist()]
    both = [
        COLOURS["both" if t and o else "teacher" if t else "student"]
        for t, o in zip(teacher.tolist(), own.tolist(), strict=True)
    ]
    wanted = [(teacher, regions), (own, regions), (teacher | own, both)]
    for (points, colours), found in zip(wanted, drawn, strict=True):
        cells = points.nonzero().flatten().tolist()
        places = [[30 * (i % 4), 40 * (i // 4), colours[i]] for i in cells]
        assert [[x - 1, y - 1, c] for x, y, c in found] == places
    shared, every = int((teacher & own).sum()), int((teacher | own).sum())
    assert said == (
        f"{shared} of {every} points that either has here are shared ({shared / every:.2f}). "
        "FC2 7 at"
    )
    assert lost == "There are no points of this training."


def live(images=3):
    """A panel for a small network and three random pictures, without a study's data and
    training.
    """
    masks = torch.zeros(images, 12, 12, dtype=torch.bool)
    masks[:, 3:9, 3:9] = True
    x = torch.rand(images, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    exact = {"rank": None, "probes": 5, "noise": 14}
    settings = SimpleNamespace(scale=1.0, grid=4, b=0.2, **exact)
    names = tuple(map(str, range(images)))
    about = {"labels": torch.zeros(images).long(), "classes": ("a",), "names": names, "config": {}}
    measured = ImageSet(images=(255 * x).byte(), masks=masks, **about)
    study = SimpleNamespace(
        x=x,
        settings=settings,
        measured=measured,
        units=ImageGrid(4),
        path=str,
    )
    study.foreground = foreground_units(study.units.coverage(masks))
    study.background = ~study.foreground
    nets = {name: small_net(seed=seed).float().eval() for seed, name in enumerate(("one", "other"))}
    return Live(study, nets, torch.tensor([2, 0]), ["4", "7"]), study, nets


def test_live_panel_counts_anew_for_image_layer_network_and_grid():
    panel, study, nets = live()
    for image, network, layer, grid, b in (
        (0, "one", "4", 4, 0.2),
        (1, "other", "7", 6, 0.05),
        (0, "one", "7", 12, 0.0),
    ):
        position, units = panel.chosen[image], ImageGrid(grid)
        h = entropy(
            nets[network],
            study.x[position : position + 1],
            layer,
            units=units,
            solver=ClosedForm(rank=None),
        )
        inside = foreground_units(units.coverage(study.measured.masks[position : position + 1]))
        wanted = knowledge_points(h.entropy, inside, b=b)
        found = panel.points(image, network, layer, grid, b)
        assert torch.equal(found.points, wanted.points)
        assert torch.equal(found.foreground, inside)


def test_sliders_change_picture_and_counts_and_pages_get_the_view(monkeypatch):
    panel, study, _ = live()
    study.measured.masks[0] = False
    study.measured.masks[0, :3, :3] = True
    *controls, picture, words = panel.widget().children
    shown = {(bytes(picture.value), words.value.partition("(")[0])}
    for control, value in zip(controls, (1, "other", "7", 8, 0.0), strict=True):
        control.value = value
        state = (bytes(picture.value), words.value.partition("(")[0])
        assert state not in shown
        assert state[0].startswith(b"\x89PNG")
        shown.add(state)
    found = panel.points(1, "other", "7", 8, 0.0)
    assert f"= {found.n_fg.item():.0f}, N<sup>bg</sup> = {found.n_bg.item():.0f}," in words.value
    before = bytes(picture.value)
    study.measured.masks[0] = False
    study.measured.masks[0, 0, 0] = True  # no cell's larger part
    controls[3].value = 4
    assert "not defined: on a grid of 4" in words.value
    assert bytes(picture.value) != before  # the picture is that of the grid, not the one before
    assert "N<sup>" not in words.value
    study.measured.masks[0, :3, :3] = True
    assert 0 < panel.seconds() < 60
    given = []
    monkeypatch.setattr("IPython.display.display", given.append)
    monkeypatch.setenv("KPNB_PROGRESS", "somewhere")
    panel._ipython_display_()
    monkeypatch.delenv("KPNB_PROGRESS")
    panel._ipython_display_()
    assert "kpnb-view" in given[0].html
    assert given[1].children


def test_panel_in_jupyter_shows_the_strip_and_names_its_colours():
    """The fourth panel has every cell at H-bar - H; right of b are as many as are counted."""
    panel, _, _ = live()
    choice = {"image": 0, "network": "one", "layer": "4", "grid": 6, "b": 0.05}
    found, figure = panel.points(**choice), panel.figure(**choice)
    strip = figure.axes[3]
    right = {"foreground": 0, "background": 0}
    dots = 0
    for group in strip.collections:
        at = group.get_offsets()[:, 0]
        dots += len(at)
        for region in right:
            colour = matplotlib.colors.to_rgb(COLOUR[region])
            if len(at) and np.allclose(group.get_facecolor()[0, :3], colour):
                right[region] += int((at > 0.05).sum())
    assert dots == 36
    assert right == {"foreground": found.n_fg.item(), "background": found.n_bg.item()}
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["on the object", "on the background"]
