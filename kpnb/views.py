"""Clouds that can be turned on a page: plain HTML and JavaScript, without a kernel, a library or a network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from torch import Tensor

from kpnb.plots import KINDS

LOOK = 'style="width:100%;height:320px;cursor:grab;touch-action:pan-y"'


@dataclass(frozen=True)
class View:
    """HTML that a notebook shows."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def turnable(
    clouds: Mapping[str, Tensor], kinds: Mapping[str, Tensor], alt: str, names: Sequence[str] = tuple(KINDS)
) -> View:
    """Clouds side by side that turn together, by dragging or with the arrow keys; a key with counts below.

    clouds  by title, ``[P, 3]`` in the unit sphere, the third axis upright
    kinds   by title, int ``[P]``: each point's index into ``names``, whose colours are those of ``plots.KINDS``
    alt     what the picture shows, for who cannot see it
    """
    shown = []
    for title, points in clouds.items():
        rows = [[*row, kind] for row, kind in zip(points.tolist(), kinds[title].tolist(), strict=True)]
        shown.append({"title": title, "points": [[round(value, 3) for value in row] for row in rows]})
    data, colours = (json.dumps(part).replace("<", "\\u003c") for part in (shown, list(KINDS.values())))
    counts = [", ".join(f"{int((kinds[title] == kind).sum())}" for title in clouds) for kind in range(len(names))]
    key = "".join(
        f'<span style="margin-right:1.5em"><span style="color:{colour}">&#9679;</span> {escape(name)} ({count})</span>'
        for name, colour, count in zip(names, KINDS.values(), counts, strict=True)
    )
    canvas = f'<canvas tabindex="0" role="img" aria-label="{escape(alt)}" {LOOK}></canvas>'
    script = Path(__file__).with_suffix(".js").read_text("utf8").rstrip()
    call = f"<script>(\n{script}\n)(document.currentScript.previousElementSibling, {data}, {colours});</script>"
    return View(f'<div class="kpnb-clouds">{canvas}{call}<div>{key}</div></div>')
