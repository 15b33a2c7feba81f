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
    low, spread = known.min(), (known.max() - known.min()).clamp_min(1e-9)
    frames, last = [], len(rows) - 1
    for number, (title, row) in enumerate(rows.items()):
        body = _words(texts, index, row, 0.5 * (1 - (row - low) / spread), points[title][index])
        hidden = " hidden" * (slider and number < last)
        frames.append(f"<div data-frame{hidden}><strong>{escape(title)}</strong><p>{body}</p></div>")
    bar = f'<input type="range" aria-label="which is shown" max="{last}" value="{last}" oninput="{SLIDE}">' * slider
    asked = f"<p><em>{escape(texts.rows[index].question)}</em></p>"
    return View(f'<figure style="line-height:1.9">{asked}{bar}{"".join(frames)}<figcaption>{KEY}</figcaption></figure>')


def _words(texts: TextSet, index: int, *values: Tensor) -> str:
    """The text with its tokens marked by level, shade and knowledge points; what lies between stays as it is."""
    text, parts, done = texts.rows[index].text, [], 0
    columns = (texts.offsets[index], texts.masks[index], *values)
    for (start, end), inside, level, shade, point in zip(*(column.tolist() for column in columns), strict=False):
        if end > start:
            tag, line = ("b", ";outline:2px solid") if point else ("span", "")
            look = f'style="background:rgba(230,159,0,{shade:.2f}){line}" title="{level:+.2f} nats"'
            word = f"<u>{escape(text[start:end])}</u>" if inside else escape(text[start:end])
            parts.append(f"{escape(text[done:start])}<{tag} {look}>{word}</{tag}>")
            done = end
    return "".join(parts) + escape(text[done:])
