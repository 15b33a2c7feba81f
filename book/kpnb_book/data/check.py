"""A folder of your own pictures as networks would see it, for ``kpnb check``.

Unlike ``load``, which stops at the first fault, this lists them all.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from kpnb._progress import Progress
from kpnb_book.data.folder import Listing, listing, with_options
from kpnb_book.data.image_set import BACKGROUND, ImageRequest, Picture, Record, read, said_turned
from kpnb_book.data.samples import SPLITS

SHOWN = 8  # pictures of a class and split, spread over the class
TINTS = {"mask": (230, 159, 0), "void": (120, 120, 120)}  # of foreground and void on the sheet


@dataclass
class Findings:
    """What a folder holds."""

    root: Path
    size: int
    wanted: ImageRequest
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split, class: pictures
    wrong: list[str] = field(default_factory=list)  # load would refuse, or learn nothing from it
    skipped: list[str] = field(default_factory=list)  # files that are not used, and why
    notes: list[str] = field(default_factory=list)  # to be looked at; may be meant so
    shown: dict[str, dict[str, list[tuple[str, Picture]]]] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong and nothing is left unused."""
        return not self.wrong and not self.skipped

    @property
    def summary(self) -> str:
        """Lines for a terminal."""
        lines = []
        for split, counts in self.counts.items():
            named = ", ".join(f"{name} {count}" for name, count in counts.items())
            lines.append(
                f"{split}: {sum(counts.values())} pictures of {len(counts)} classes: {named}"
            )
        for what, found in (
            ("wrong", self.wrong),
            ("not used", self.skipped),
            ("note", self.notes),
        ):
            lines += [f"{what}: {line}" for line in found]
        return "\n".join(lines)


def check(root: str | Path, size: int = 64) -> Findings:
    """Read every picture and mask below ``root`` as ``load("folder")`` does, at ``size`` pixels."""
    wanted = ImageRequest("folder", root=root)
    found = Findings(Path(root).expanduser(), size, wanted)
    try:
        found.wanted = wanted = with_options(wanted)
        splits = {split: listing(replace(wanted, split=split)) for split in SPLITS}
    except (ValueError, OSError) as error:
        found.wrong.append(str(error))
        return found
    for split, listed in splits.items():
        found.counts[split] = listed.counts
        if not listed.records:
            found.wrong.append(f"no picture is left for the split {split!r}: add more")
        found.wrong += listed.remarks
        found.skipped += [line for line in _named(listed, found.root) if line not in found.skipped]
        _look(found, split, listed)
    return found


def _named(listed: Listing, root: Path) -> Iterable[str]:
    """What was skipped, by its path in ``root``."""
    inner = "" if listed.base == root else f"{listed.base.name}/"
    return [f"{inner}{line}" for line in listed.skipped]


def _look(found: Findings, split: str, listed: Listing) -> None:
    """Read the pictures of a split; note what is wrong, and keep some of each class to be shown."""
    behind = found.wanted.background or BACKGROUND
    chosen = {record.image for record in _spread(listed)}
    found.shown[split] = {name: [] for name in listed.classes}
    unusual: dict[str, list[str]] = {"turned": [], "no foreground": [], "no background": []}
    with Progress(len(listed.records), split, unit="image", delay=1) as progress:
        for record in listed.records:
            progress.step()
            try:
                seen = read(record, found.size, background=behind)
            except (ValueError, OSError) as error:
                found.wrong.append(str(error))
                continue
            for what in _unusual(seen):
                unusual[what].append(record.name)
            if record.image in chosen:
                found.shown[split][listed.classes[record.label]].append((record.name, seen))
    if turned := unusual.pop("turned"):
        found.notes.append(said_turned(turned))
    for what, names in unusual.items():
        if names:
            first = f"{len(names)} of {len(listed.records)} pictures ({split}) have {what}"
            found.notes.append(f"{first}, so no metrics: {_some(names)}")


def _unusual(seen: Picture) -> list[str]:
    found = ["turned"] if seen.turned else []
    if not seen.mask.any():
        found.append("no foreground")
    if (seen.mask | seen.void).all():
        found.append("no background")
    return found


def _spread(listed: Listing) -> list[Record]:
    """At most ``SHOWN`` pictures of each class, from its first to its last."""
    chosen = []
    for label in range(len(listed.classes)):
        mine = [record for record in listed.records if record.label == label]
        places = np.linspace(0, len(mine) - 1, min(SHOWN, len(mine))).round().astype(int)
        chosen += [mine[place] for place in places]
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# ---- the page

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; }
figure { display: inline-block; margin: 0 .6em .8em 0; } figcaption { font-size: 12px; }
img { image-rendering: pixelated; height: 96px; } .wrong { color: #a40000; }"""


def page(found: Findings) -> str:
    """The contact sheet: an HTML page that needs no other file."""
    title = f"{found.root.name}: {'fine' if found.fine else 'something is wrong'}"
    asked = found.wanted
    behind = asked.background or BACKGROUND
    rules = f"""Pictures are squeezed to {found.size} x {found.size} pixels. Behind what is
transparent: {behind}. Foreground is orange, void is grey: of masks {_rule(asked)}; without a mask,
what is more than half opaque."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(rules)}</p>",
        _list("Wrong", found.wrong, "wrong"),
        _list("Not used", found.skipped, "wrong"),
        _list("To be looked at", found.notes),
    ]
    for split, sheet in found.shown.items():
        parts.append(f"<h2>{split}</h2>")
        for name, pictures in sheet.items():
            count = found.counts[split][name]
            parts.append(f"<h3>{html.escape(name)}: {count}</h3>")
            parts += [_figure(*one) for one in pictures]
    return "\n".join(part for part in parts if part) + "\n</html>\n"


def _rule(wanted: ImageRequest) -> str:
    """How masks are read, in words."""
    void = "" if wanted.void is None else f", {wanted.void} is void"
    if wanted.foreground is not None:
        return f"the value {wanted.foreground}{void}"
    if wanted.above is not None:
        return f"values above {wanted.above:g}{void}"
    return f"1 or 255 beside 0{void}"


def _list(title: str, lines: Sequence[str], kind: str = "") -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<h2>{title} ({len(lines)})</h2><ul class="{kind}">{items}</ul>'


def _figure(name: str, seen: Picture) -> str:
    """A picture beside itself with its mask."""
    tinted = seen.image.astype(float)
    for part, tint in TINTS.items():
        inside = getattr(seen, part)
        tinted[inside] = 0.4 * tinted[inside] + 0.6 * np.array(tint)
    both = np.concatenate([seen.image, tinted.astype(np.uint8)], axis=1)
    data = io.BytesIO()
    Image.fromarray(both).save(data, "PNG")
    code = base64.b64encode(data.getvalue()).decode()
    name = html.escape(name)
    alt = f"{name}, and with its mask"
    image = f'<img alt="{alt}" src="data:image/png;base64,{code}">'
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>"
