"""Clouds on a page: projection, colours, escaping, and the script itself run by Node with a pen that takes notes."""

import html
import json
import re
import shutil
import subprocess
from math import pi

import numpy as np
import pytest
import torch

from kpnb_book.plots import COLOUR, KINDS, cloud_maps, project
from kpnb_book.views import turnable

CLOUD = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1)
KIND = torch.arange(40) % 4


def test_projection_is_the_rotation_it_says():
    torch.testing.assert_close(project(CLOUD, 0, 0), CLOUD[:, [0, 2, 1]])
    torch.testing.assert_close(project(CLOUD, pi / 2, 0), torch.stack([-CLOUD[:, 1], CLOUD[:, 2], CLOUD[:, 0]], 1))
    torch.testing.assert_close(project(CLOUD, 0.4, pi / 2)[:, 2], -CLOUD[:, 2])  # from above, the top is nearest
    torch.testing.assert_close(project(CLOUD, 1.1, -0.7).norm(dim=1), CLOUD.norm(dim=1))


def test_picture_has_every_point_in_the_colour_of_its_kind():
    figure = cloud_maps(CLOUD.expand(2, -1, -1), {"one": KIND.expand(2, -1), "other": (0 * KIND).expand(2, -1)})
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
    assert [tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)</span>", page)] == [(10, 2)] * 4
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


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
def test_script_draws_the_projection_and_turns():
    script = re.search(r"<script>(.*)</script>", view(), re.S)[1]
    said = subprocess.run(["node", "-e", PEN + script + ACT], capture_output=True, text=True, check=True).stdout
    *drawings, rest = json.loads(said)
    assert rest == []  # neither a move without a held button nor another key draws
    colours = list(KINDS.values())
    for drawing, (turn, tilt) in zip(drawings, [(0.6, 0.35), (1.1, 0.55), (1.0, 0.55)], strict=True):
        assert [mark for mark in drawing if isinstance(mark, str)] == ["a", "b"]
        marks = [mark for mark in drawing if not isinstance(mark, str)]
        right, up, away = project(CLOUD, turn, tilt).double().numpy().T
        size = 0.48 * 300
        wanted = [(200 + size * right[i], 174 - size * up[i], colours[i % 4]) for i in np.argsort(-away)]
        assert [m[2] for m in marks[:40]] == [w[2] for w in wanted]
        np.testing.assert_allclose([m[:2] for m in marks[:40]], [w[:2] for w in wanted], atol=0.3)
        assert len(marks) == 48
