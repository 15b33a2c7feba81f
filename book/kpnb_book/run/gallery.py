"""All figures of the executed notebooks on one page: small ones that lead to where they stand."""

import io
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kpnb_book.run.source import title_of

if TYPE_CHECKING:
    from nbformat import NotebookNode

WIDTH = 400  # pixels of a small picture, at most
TO_EXPLORE = "*This one can be explored on its page.*"


@dataclass(frozen=True)
class Shown:
    """A figure of a page: its label, its caption, what it shows for those who cannot see it, and
    its picture as PNG, which a view that moves lacks.
    """

    label: str
    caption: str
    alt: str
    png: bytes | None


def figures_of(copy: Path) -> Iterator[Shown]:
    """The figures of an executed notebook that have a caption, in their order; not those of cells
    that showed nothing, for which the page has no label.
    """
    import nbformat

    for cell in nbformat.read(copy, as_version=4).cells:
        about = cell.metadata.get("mystnb", {})
        figure = about.get("figure")
        if figure and any(output.get("data") for output in cell.get("outputs", [])):
            alt = about.get("image", {}).get("alt", "")
            yield Shown(figure["name"], figure["caption"], alt, _picture(cell))


def _picture(cell: "NotebookNode") -> bytes | None:
    for output in cell.get("outputs", []):
        if text := output.get("data", {}).get("image/png"):
            return b64decode(text)
    return None


def _small(png: bytes) -> bytes:
    """The picture, not wider than ``WIDTH`` and in 256 colours, a third of the bytes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((WIDTH, picture.height))
    small = io.BytesIO()
    picture.quantize(method=Image.Quantize.FASTOCTREE).save(small, "PNG", optimize=True)
    return small.getvalue()


def gallery(copies: Iterable[Path], folder: Path) -> str:
    """A section of MyST for each of the executed ``copies`` that has figures, a card for each
    figure; small pictures are written to ``folder``, which lies beside the copies.
    """
    sections = []
    for copy in copies:
        if copy.is_file() and (cards := [_card(shown, folder) for shown in figures_of(copy)]):
            head = f"## {{doc}}`{title_of(copy)} <../notebooks/{copy.stem}>`"
            grid = ["::::{grid} 1 2 2 3", ":gutter: 2", "", *cards, "::::"]
            sections.append("\n".join([head, "", *grid]))
    return "\n\n".join(sections) or "Nothing has been executed yet: `make book` does it."


def _card(shown: Shown, folder: Path) -> str:
    lines = [":::{grid-item-card}", f":link: {shown.label}", ":link-type: ref"]
    lines += [f":link-alt: {_plain(shown.caption)}", ""]
    if shown.png:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{shown.label}.png").write_bytes(_small(shown.png))
        where = f"{folder.parent.name}/{folder.name}/{shown.label}.png"
        lines += [f"```{{image}} {where}", f":alt: {shown.alt}", "```"]
    lines += [shown.caption, *([] if shown.png else ["", TO_EXPLORE]), ":::"]
    return "\n".join(lines)


def _plain(caption: str) -> str:
    """The caption's first sentence on one line, for screen readers, as the name of a card's
    link.
    """
    return " ".join(caption.partition(". ")[0].split()).rstrip(".")
