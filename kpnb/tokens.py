"""A text coloured by what a network keeps of each token: plain HTML without a kernel, a script file or a network."""

from collections.abc import Mapping
from html import escape

import torch
from torch import Tensor

from kpnb.data.text import TextSet
from kpnb.views import View

SLIDE = "for (const [i, frame] of [...this.closest('figure').querySelectorAll('[data-frame]')].entries()) "
SLIDE += "frame.hidden = i != this.value"
KEY = "the more colour, the less of the token is discarded (tooltip: nats above the text's mean) &middot; "
KEY += '<b style="outline:2px solid">knowledge point</b> &middot; <u>foreground</u>'


def heat_map(
    texts: TextSet, entropies: Mapping[str, Tensor], points: Mapping[str, Tensor], index: int, slider: bool = False
) -> View:
    """The text ``index`` once for each title: one below the other, or one at a time with a slider (for epochs).

    entropies   by title, ``[N, T]`` nats; coloured is the difference to the text's mean, because networks with other
                embeddings have another mean; the colour scale is common to all titles
    points      by title, the knowledge points, bool ``[N, T]``

    The colour is a translucent layer, so that the text keeps the page's own in light and dark mode; knowledge points
    are framed and bold, the foreground is underlined, and every token has its number as a tooltip.
    """
    rows = {title: entropy[index] - entropy[index].nanmean() for title, entropy in entropies.items()}
    known = torch.cat([row[~row.isnan()] for row in rows.values()])
    low, high = known.min().item(), known.max().item()
    frames = []
    for number, (title, row) in enumerate(rows.items()):
        shade = 0.5 * (high - row) / max(high - low, 1e-9)
        body = _words(texts, index, row.tolist(), shade.tolist(), points[title][index].tolist())
        hidden = " hidden" * (slider and number < len(rows) - 1)
        frames.append(f"<div data-frame{hidden}><strong>{escape(title)}</strong><p>{body}</p></div>")
    last = len(frames) - 1
    bar = (
        f'<input type="range" aria-label="which of {last + 1} is shown" max="{last}" value="{last}" oninput="{SLIDE}">'
        if slider
        else ""
    )
    asked = f"<p><em>{escape(texts.rows[index].question)}</em></p>" if texts.rows[index].question else ""
    return View(f'<figure style="line-height:1.9">{asked}{bar}{"".join(frames)}<figcaption>{KEY}</figcaption></figure>')


def _words(texts: TextSet, index: int, level: list[float], shade: list[float], points: list[bool]) -> str:
    """The text with its tokens marked; what lies between them, or was cut, stays as it is."""
    text, parts, done = texts.rows[index].text, [], 0
    for (start, end), h, alpha, point, inside in zip(
        texts.offsets[index].tolist(), level, shade, points, texts.masks[index].tolist(), strict=False
    ):
        if end > start:
            word = f"<u>{escape(text[start:end])}</u>" if inside else escape(text[start:end])
            style = f"background:rgba(230,159,0,{alpha:.2f})" + ";outline:2px solid" * point
            tag = "b" if point else "span"
            parts.append(f'{escape(text[done:start])}<{tag} style="{style}" title="{h:+.2f} nats">{word}</{tag}>')
            done = end
    return "".join(parts) + escape(text[done:])
