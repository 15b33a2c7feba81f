"""Draw the README's picture, book/_assets/knowledge-points.svg: ``python -m
kpnb_book.figures.picture`` (laptop profile).
"""

from pathlib import Path

from torch import Tensor

from kpnb_book.figures.plots import GREY, KINDS
from kpnb_book.run.notebooks import find_root
from kpnb_book.studies import measure
from kpnb_book.studies.images import ImageStudy

COLOURS = list(KINDS.values())
CELL, GAP, HEAD = 12, 28, 26  # pixels: a cell, between maps, above them


def _cells(units: Tensor, columns: int, left: int) -> str:
    """Path of the squares of the ``units``, indices into a map whose left edge is at ``left``."""
    corners = (
        (left + CELL * (unit % columns), HEAD + CELL * (unit // columns)) for unit in units.tolist()
    )
    return "".join(f"M{x} {y}h{CELL - 1}v{CELL - 1}h-{CELL - 1}z" for x, y in corners)


def picture(study: ImageStudy) -> str:
    """SVG of the cells of one image by kind (``plots.KINDS``), for the networks of the first seed
    and layer.
    """
    (chosen,), layer = study.shown(1).tolist(), study.settings.layers[0]
    student, baseline = measure.pair(study, layer, study.settings.seeds[0])
    networks = {
        "teacher": measure.metrics(study, study.teacher(), layer),
        "student": student,
        "baseline": baseline,
    }
    rows, columns = study.units.shape
    side, foreground, body = columns * CELL, study.foreground[chosen].int(), ""
    width = len(networks) * (side + GAP) - GAP
    for number, (title, metrics) in enumerate(networks.items()):
        left = number * (side + GAP)
        body += f'<text x="{left + side / 2:g}" y="17" text-anchor="middle">{title}</text>\n'
        kinds = foreground + 2 * metrics.points[-1][chosen].int()
        for kind, colour in enumerate(COLOURS):
            path = _cells((kinds == kind).nonzero().flatten(), columns, left)
            body += f'<path fill="{colour}" fill-opacity="{1 if kind > 1 else 0.35}" d="{path}"/>\n'
    box = (
        f'viewBox="0 0 {width} {HEAD + rows * CELL}" width="{width}" height="{HEAD + rows * CELL}"'
    )
    said = f"The cells of one image in three networks, layer {layer}; "
    said += "knowledge points are orange on the object, else blue"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{said}"'
    return f'{head} font-family="sans-serif" font-size="15" fill="{GREY}">\n{body}</svg>\n'


if __name__ == "__main__":
    file = find_root() / "book" / "_assets" / "knowledge-points.svg"
    Path(file).write_text(picture(ImageStudy("laptop")), "utf8")
    print(f"The picture is {file}")
