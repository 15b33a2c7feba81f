"""Pictures, clouds and texts to explore on a page: HTML without a kernel, a library or a network.

A reader changes network, layer, epoch and threshold, or turns a cloud; ``views.js`` follows with
the same rule as ``kpnb.knowledge_points``. Every view has the class ``kpnb-view``, and says what it
shows before anything is touched.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from kpnb.points import KnowledgePoints, background_level, knowledge_points
from kpnb_book.figures.plots import COLOUR, KINDS
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import Measurement, entropies

LOOK = 'style="width:100%;height:320px;cursor:grab;touch-action:pan-y"'
PIXELS = 96  # of a picture's longer side, at most
NAN = 65535
CSS_PIXELS = 96  # of an inch


@dataclass(frozen=True)
class View:
    """HTML that a notebook shows."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def as_picture(figure: Figure, alt: str) -> View:
    """A figure as HTML that another page can show too; ``alt`` says what it shows."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * CSS_PIXELS, facecolor="none")
    data = b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * CSS_PIXELS)
    look = f'style="width:{width}px;max-width:100%;height:auto"'
    return View(f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {look}>')


def _call(function: str, element: str, *data: Any) -> str:
    """The script, and the call of one of its functions for an element relative to the script's
    own.
    """
    script = Path(__file__).with_suffix(".js").read_text("utf8").rstrip()
    values = "".join(", " + json.dumps(part).replace("<", "\\u003c") for part in data)
    return f"<script>(\n{script}\n).{function}(document.currentScript.{element}{values});</script>"


def _slider(name: str, label: str, value: float, top: float, step: float, said: str) -> str:
    scale = f'type="range" name="{name}" min="0" max="{top:g}" step="{step:g}" value="{value:g}"'
    width = 'style="vertical-align:middle;width:9em"'
    return f"<span><label>{label} <input {scale} {width}></label> <span>{said}</span></span>"


def _threshold(b: float) -> str:
    return _slider("b", "threshold <i>b</i>", b, max(0.6, 2 * b), 0.01, f"{b:.2f} nats")


def _choice(name: str, options: Iterable[str], values: Iterable[Any]) -> str:
    """A labelled list to choose from; of one option there is no choice."""
    pairs = [*zip(options, values, strict=True)]
    if len(pairs) == 1:
        return f'<input type="hidden" name="{name}" value="{escape(str(pairs[0][1]))}">'
    listed = "".join(
        f'<option value="{escape(str(value))}">{escape(text)}</option>' for text, value in pairs
    )
    return f'<label>{name} <select name="{name}">{listed}</select></label>'


def _packed(values: np.ndarray) -> str:
    return b64encode(values.tobytes()).decode()


def _quantised(maps: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Entropies as 16-bit steps, in base64; their ``low`` and ``step``, and the ``range`` for
    colours, in nats.
    """
    known = torch.cat([h[~h.isnan()] for layers in maps.values() for h in layers.values()]).double()
    low, high = float(known.min()), float(known.max())
    step = (high - low) / (NAN - 1) or 1.0

    def pack(h: Tensor) -> str:
        levels = ((h.double() - low) / step).round().nan_to_num(NAN)
        return _packed(levels.numpy().astype("<u2"))

    packed = {
        network: {layer: pack(h) for layer, h in layers.items()} for network, layers in maps.items()
    }
    bounds = np.quantile(known.numpy(), (0.01, 0.99)).round(2).tolist()
    return {"maps": packed, "low": low, "step": step, "range": bounds}


PANELS = {
    "knowledge points: orange on the object, blue on the background": (
        "the picture with its knowledge points"
    ),
    "entropy of each cell, dark is kept; knowledge points are framed": "the entropy of each cell",
    "H\u0304 \u2212 H<sub>i</sub> of each cell in nats; right of the line it counts": (
        "how far cells lie below H-bar"
    ),
}


def explorable(
    pictures: Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    foreground: Tensor,
    shape: tuple[int, int],
    alt: str,
    b: float = 0.2,
    background: Tensor | None = None,
) -> View:
    """Knowledge points of pictures, for a reader who chooses picture, network, layer, epoch and the
    threshold b.

    pictures    uint8 ``[K, 3, S, S]``
    maps        entropies by network and layer, ``[M + 1, K, n]`` nats; ``[1, K, n]`` for a network
                without epochs. All networks have the same layers, and the first has the most
                epochs; the view starts after its last one
    foreground  bool ``[K, n]``, of a grid of ``shape``
    background  bool ``[K, n]``, default all other cells; a cell that is neither is left out
    alt         what the view shows, for those who cannot see it
    """
    if background is not None:
        known = foreground | background
        maps = {
            network: {layer: h.where(known, torch.nan) for layer, h in layers.items()}
            for network, layers in maps.items()
        }
    first = next(iter(maps.values()))
    epochs = len(next(iter(first.values()))) - 1
    controls = [_images(pictures), _choice("network", maps, maps), _choice("layer", first, first)]
    controls += [_slider("epoch", "epoch", epochs, max(1, epochs), 1, str(epochs)), _threshold(b)]
    data = _on_grid(pictures, foreground, shape) | _quantised(maps)
    return _controlled(controls, PANELS, _call("cells", "parentElement", data), alt)


def _images(pictures: Tensor) -> str:
    count = len(pictures)
    return _choice("image", [str(i + 1) for i in range(count)], range(count))


def _controlled(controls: Iterable[str], panels: Mapping[str, str], call: str, alt: str) -> View:
    """Controls, a line that says what is seen, and a canvas for each of the ``panels``."""
    row = 'style="display:flex;flex-wrap:wrap;gap:0.6em 1.2em;'
    row += 'justify-content:center;text-align:left"'
    body = f"<div {row}>{''.join(controls)}</div>"
    body += '<p role="status" style="text-align:center;margin:0.6em"></p>'
    body += f"<div {row}>{_panels(panels)}</div>{call}"
    return View(f'<div class="kpnb-view" role="group" aria-label="{escape(alt)}">{body}</div>')


SHARING = {
    "the teacher's points: orange on the object, blue on the background": "the teacher's points",
    "the student's points": "the student's points",
    "points of both in green, of the teacher alone in yellow, of the student alone in pink": (
        "points of both, and of either alone"
    ),
}
COLOURS = {"both": "#009e73", "teacher": "#f0e442", "student": "#cc79a7"}
"""Of points that are shared or not, from the colours that Okabe and Ito chose to be told apart."""


def sharing(
    pictures: Tensor,
    points: Mapping[str, Mapping[int, Mapping[str, Tensor]]],
    said: Mapping[str, Mapping[int, Mapping[str, str]]],
    foreground: Tensor,
    shape: tuple[int, int],
    names: Mapping[str, str],
    alt: str,
) -> View:
    """Knowledge points of students beside their teacher's, for a reader who chooses picture,
    student, layer and seed.

    pictures    uint8 ``[K, 3, S, S]``
    points      bool ``[K, n]`` by layer, seed and network; the "teacher" is one in each, others may
                be missing in some
    said        by layer, seed and network, what else there is to say of it
    foreground  bool ``[K, n]``, of a grid of ``shape``
    names       of the networks other than the teacher, what the view calls them
    alt         what the view shows, for those who cannot see it
    """
    seeds = next(iter(points.values()))
    controls = [_images(pictures), _choice("student", names.values(), names)]
    controls += [_choice("layer", points, points), _choice("seed", map(str, seeds), seeds)]
    packed = {
        layer: {
            seed: {network: _packed(np.packbits(found.numpy())) for network, found in each.items()}
            for seed, each in by_seed.items()
        }
        for layer, by_seed in points.items()
    }
    data = _on_grid(pictures, foreground, shape) | {"points": packed, "said": said}
    data["colours"] |= COLOURS
    return _controlled(controls, SHARING, _call("sharing", "parentElement", data), alt)


def _on_grid(pictures: Tensor, foreground: Tensor, shape: tuple[int, int]) -> dict[str, Any]:
    """What the script takes of pictures: their pixels and foreground, packed, and the colours."""
    size = min(PIXELS, pictures.shape[-1])
    small = (
        torch.nn.functional.interpolate(pictures.float(), (size, size), mode="area").round().byte()
    )
    data: dict[str, Any] = {"shape": shape, "size": size}
    data["pixels"] = [_packed(picture.permute(1, 2, 0).contiguous().numpy()) for picture in small]
    data["foreground"] = [
        "".join("01"[unit] for unit in mask) for mask in foreground.int().tolist()
    ]
    data["ramp"] = [
        to_hex(colour) for colour in matplotlib.colormaps["cividis"](np.linspace(0, 1, 64))
    ]
    data["colours"] = {"fg": COLOUR["foreground"], "bg": COLOUR["background"]}
    return data


def _panels(panels: Mapping[str, str]) -> str:
    """A canvas for each of the ``panels``, with its caption."""
    square = 'style="width:100%;aspect-ratio:1;display:block"'
    small_print = 'style="font-size:small;line-height:1.3"'
    return "".join(
        '<div style="flex:1 1 10rem;max-width:20rem">'
        f'<canvas role="img" aria-label="{said}" {square}></canvas>'
        f"<div {small_print}>{caption}</div></div>"
        for caption, said in panels.items()
    )


def explore(study: ImageStudy, chosen: Tensor, layers: Sequence[str], alt: str) -> View:
    """``explorable`` for measured images of a study: student and baseline after every epoch, the
    teacher at its end.
    """
    seed, every = study.settings.seeds[0], tuple(layers)
    students = {layer: entropies(study, study.student(layer, seed), layer) for layer in layers}
    found = {
        "student": students,
        "baseline": Measurement(study, study.baseline(seed), every).values(),
        "teacher": Measurement(study, study.teacher(), every, epochs=[-1]).values(),
    }
    maps = {
        role: {layer: fields["entropy"][:, chosen] for layer, fields in by_layer.items()}
        for role, by_layer in found.items()
    }
    pictures, shape, b = study.measured.images[chosen], study.units.shape, study.settings.b
    foreground, background = study.foreground[chosen], study.background[chosen]
    return explorable(pictures, maps, foreground, shape, alt, b, background)


def turnable(
    clouds: Mapping[str, Tensor],
    kinds: Mapping[str, Tensor],
    alt: str,
    names: Sequence[str] = tuple(KINDS),
) -> View:
    """Clouds side by side that turn together, by dragging or with the arrow keys; a key with counts
    below.

    clouds  by title, ``[P, 3]`` in the unit sphere, the third axis upright
    kinds   by title, int ``[P]``: each point's index into ``names``, whose colours are those of
            ``plots.KINDS``
    alt     what the picture shows, for those who cannot see it
    """
    shown = []
    for title, points in clouds.items():
        rows = [
            [*row, kind] for row, kind in zip(points.tolist(), kinds[title].tolist(), strict=True)
        ]
        shown.append(
            {"title": title, "points": [[round(value, 3) for value in row] for row in rows]}
        )
    counts = [
        ", ".join(f"{int((kinds[title] == kind).sum())}" for title in clouds)
        for kind in range(len(names))
    ]
    apart = "display:inline-block;margin-right:1.5em"
    key = "".join(
        f'<span style="{apart}"><span style="color:{colour}">&#9679;</span> '
        f"{escape(name)} ({count})</span>"
        for name, colour, count in zip(names, KINDS.values(), counts, strict=True)
    )
    canvas = f'<canvas tabindex="0" role="img" aria-label="{escape(alt)}" {LOOK}></canvas>'
    call = _call("clouds", "previousElementSibling", shown, list(KINDS.values()))
    return View(f'<div class="kpnb-view">{canvas}{call}<div>{key}</div></div>')


MOST = 0.6  # opacity of the deepest tint: words on it can be read on a light page and on a dark one
KEY = """the more colour, the further H<sub>i</sub> lies below H\u0304, the mean of the background,
and the less of the token is discarded (tooltip: H\u0304 \u2212 H<sub>i</sub> in nats) &middot;
<span style="outline:2px solid">knowledge point</span>: more than <i>b</i> below &middot;
<u>foreground</u>"""


def heat_map(texts: Any, entropies: Mapping[str, Tensor], index: int, b: float = 0.2) -> View:
    """The text ``index``, with its question if it has one, once for each title, to be opened and
    closed; the last three are open. A slider moves ``b``.

    texts       a ``data.text.TextSet`` of N texts
    entropies   by title, ``[N, T]`` nats; coloured is how far a token lies below the background's
                mean, from which the threshold counts as well; the colour scale is common to all
                titles

    The colour is a translucent layer, so that the text keeps the page's own in light and dark mode;
    knowledge points are framed, the foreground is underlined, and every token has its number as a
    tooltip.
    """
    parts = []
    gaps = torch.stack([(background_level(h, ~texts.masks) - h)[index] for h in entropies.values()])
    top = gaps[~gaps.isnan()].quantile(0.98).clamp(min=1e-6)
    shades = MOST * (gaps / top).clamp(0, 1)
    for (title, entropy), gap, shade in zip(entropies.items(), gaps, shades, strict=True):
        found = knowledge_points(entropy, texts.masks, b=b)
        columns = (texts.masks[index], found.points[index], gap, shade)
        body = _body(texts, index, [*zip(*(column.tolist() for column in columns), strict=True)])
        last = title in [*entropies][-3:]
        # Of many texts a screen reader says three.
        shown, live = (" open", ' role="status"') if last else ("", "")
        summary = f"{escape(title)} &middot; <span data-counts{live}>{_said(found, index)}</span>"
        parts.append(f"<details{shown}><summary>{summary}</summary>{body}</details>")
    key = 'style="color:inherit;text-align:left"'
    parts = [f"<div>{_threshold(b)}</div>", *parts, f"<figcaption {key}>{KEY}</figcaption>"]
    body = "".join(parts) + _call("tokens", "parentElement")
    return View(
        f'<figure class="kpnb-view" style="line-height:1.9;text-align:left">{body}</figure>'
    )


def _body(texts: Any, index: int, marks: Sequence[tuple[Any, ...]]) -> str:
    """A text with ``marks`` for each of its tokens, below its question: whose tokens are units as
    well.
    """
    row, places = texts.rows[texts.names[index]], texts.offsets[index].tolist()
    asked = texts.token_type_ids[index].tolist()
    tokens = list(zip(places, marks, asked, strict=True))
    of_text = [(place, mark) for place, mark, kind in tokens if kind or not row.question]
    body = f"<p>{_marked(row.text, of_text)}</p>"
    if not row.question:
        return body
    of_question = [(place, mark) for place, mark, kind in tokens if not kind]
    return f"<p><em>{_marked(row.question, of_question)}</em></p>{body}"


def _said(found: KnowledgePoints, index: int) -> str:
    """The counts of one text."""
    points, inside = found.points[index], found.foreground[index]
    return counts_and_share(int((points & inside).sum()), int((points & ~inside).sum()))


def counts_and_share(n_fg: float, n_bg: float) -> str:
    """The numbers of knowledge points on foreground and background and lambda, the share of the
    first, as ``views.js`` says them.
    """
    share = f"{n_fg / (n_fg + n_bg):.2f}" if n_fg + n_bg > 0 else "undefined"
    return f"N<sup>fg</sup> = {n_fg:.0f}, N<sup>bg</sup> = {n_bg:.0f}, \u03bb = {share}"


def _marked(text: str, tokens: Iterable[tuple[Sequence[int], tuple[Any, ...]]]) -> str:
    """The text with its tokens marked; what lies between them stays as it is."""
    body, done = "", 0
    for (start, end), (inside, point, gap, shade) in tokens:
        if end:
            look = f"background:rgba(230,159,0,{shade:.2f})"
            look += ";outline:2px solid" if point else ""
            word = escape(text[start:end])
            word = f"<u>{word}</u>" if inside else word
            marks = f'data-gap="{gap:.6f}"{" data-fg" if inside else ""} '
            marks += f'style="{look}" title="{gap:+.2f} nats"'
            body += f"{escape(text[done:start])}<span {marks}>{word}</span>"
            done = end
    return body + escape(text[done:])
