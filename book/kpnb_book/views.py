"""Clouds that can be turned, and coloured texts, on a page: HTML without a kernel, a library or a network."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kpnb_book.plots import KINDS

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


KEY = "the more colour, the less of the token is discarded (tooltip: nats above the text's mean) &middot; "
KEY += '<b style="outline:2px solid">knowledge point</b> &middot; <u>foreground</u>'


def heat_map(texts: Any, entropies: Mapping[str, Tensor], points: Mapping[str, Tensor], index: int) -> View:
    """The text ``index`` once for each title, to be opened and closed; the last three are open.

    texts       a ``data.text.TextSet`` of N texts
    entropies   by title, ``[N, T]`` nats; coloured is the difference to the text's mean, because networks with other
                embeddings have another mean; the colour scale is common to all titles
    points      by title, the knowledge points, bool ``[N, T]``

    The colour is a translucent layer, so that the text keeps the page's own in light and dark mode; knowledge points
    are framed and bold, the foreground is underlined, and every token has its number as a tooltip.
    """
    row, parts = texts.rows[texts.names[index]], []
    levels = torch.stack([entropy[index] - entropy[index].nanmean() for entropy in entropies.values()])
    known = levels[~levels.isnan()]
    shades = 0.5 * (known.max() - levels) / (known.max() - known.min())
    for title, *values in zip(entropies, levels, shades, strict=True):
        columns = (texts.offsets[index], texts.masks[index], points[title][index], *values)
        body = _marked(row.text, zip(*(column.tolist() for column in columns), strict=True))
        shown = " open" * (title in [*entropies][-3:])
        parts.append(f"<details{shown}><summary>{escape(title)}</summary><p>{body}</p></details>")
    parts = [f"<p><em>{escape(row.question)}</em></p>"] * bool(row.question) + parts
    return View(f'<figure style="line-height:1.9">{"".join(parts)}<figcaption>{KEY}</figcaption></figure>')


def _marked(text: str, tokens: Iterable[tuple[Any, ...]]) -> str:
    """The text with its tokens marked; what lies between them stays as it is."""
    body, done = "", 0
    for (start, end), inside, point, level, shade in tokens:
        if end:
            look = f"background:rgba(230,159,0,{shade:.2f}){';outline:2px solid;font-weight:bold' * point}"
            word = "<u>" * inside + escape(text[start:end]) + "</u>" * inside
            body += f'{escape(text[done:start])}<span style="{look}" title="{level:+.2f} nats">{word}</span>'
            done = end
    return body + escape(text[done:])
