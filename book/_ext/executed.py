"""Show notebooks/NN_name.ipynb with the results of its executed copy, book/_executed/NN_name.ipynb.

The table of contents names the source notebooks, so that the launch and download buttons lead to
real files, and says of each hypothesis what was found. The page book/executed.md gets a table of
the copies, the gallery their figures, the reference what docstrings say, and the page of the
benchmarks the figures that the repository ships, with the frontier drawn of its points, and what
`python -m benchmarks` has kept here, if it was run. Scripts that `make vendor` has fetched are
used instead of their CDN, and the pages then need no network.
"""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

from kpnb_book.figures import frontier
from kpnb_book.run.chapters import notebooks_of
from kpnb_book.run.gallery import gallery
from kpnb_book.run.provenance import table
from kpnb_book.run.reference import reference
from kpnb_book.run.rerun import results_of
from kpnb_book.run.source import title_of

log = logging.getLogger(__name__)
KINDS = {"1": "images", "2": "clouds", "3": "sentiment", "4": "questions"}  # by chapter 10 to 49


def use_vendored_scripts(app: Sphinx, config: Config) -> None:
    vendor = Path(app.srcdir, "book", "_assets", "vendor")
    if (vendor / "package.json").exists():
        config["mathjax_path"] = "vendor/mathjax/tex-mml-chtml.js"
        config["nb_ipywidgets_js"] = {"vendor/html-manager/embed.js": {}}


def say_what_was_found(app: Sphinx, config: Config) -> None:
    """Put the verdict behind the title of each chapter on a hypothesis, in the table of contents:
    the words of the executed scoreboard, with its counts.
    """
    scoreboard = Path(app.srcdir, "book", "_executed", "90_scoreboard.ipynb")
    if not scoreboard.exists():
        return
    found = results_of(nbformat.read(scoreboard, as_version=4))["results"]
    for docname, page in config.external_site_map.items():
        chapter = re.fullmatch(r"notebooks/([1-4])\d_\w+_h([123])", docname)
        if chapter and (said := found.get(f"sb_{KINDS[chapter[1]]}_H{chapter[2]}")):
            title = title_of(Path(app.srcdir, f"{docname}.ipynb"))
            words = said.rstrip(")").replace(" (", ": ")
            page.title = f"{title} ({words})"


def computed(docname: str, root: Path) -> dict[str, str]:
    """What the text of a page holds the place for, by the words that hold it."""
    executed = root / "book" / "_executed"
    copies = [executed / path.name for path in notebooks_of(root)]
    if docname == "book/executed":
        return {"<!-- table of executed notebooks -->": table(copies)}
    if docname == "book/gallery":
        return {"<!-- gallery -->": gallery(copies, executed / "gallery")}
    if docname == "book/reference":
        return {"REFERENCE": reference()}
    if docname == "book/benchmarks":
        shipped = sorted((root / "benchmarks" / "results").glob("*.txt"))
        return {
            "CUDA_TESTED": cuda_tested(os.environ.get("KPNB_CUDA_TESTED", "")),
            "ON_CARDS": _pages(root / "benchmarks" / "results")
            or "None are shipped: it has not been run on a card yet.",
            "SHIPPED": _figures(shipped) or "No figures are shipped with this version.",
            "MEASURED": _figures([executed / "benchmarks.txt"])
            or "Nothing has been measured here yet: `python -m benchmarks` does it.",
            "FRONTIER": _frontiers(root / "benchmarks" / "results", executed / "benchmarks")
            or "No points are shipped with this version.",
        }
    return {}


def cuda_tested(when: str) -> str:
    """When the tests last passed on a CUDA card; ``when`` is what the workflow that publishes the
    pages knows of it ("2026-01-31 at revision 0123abc"), or "".
    """
    if not when:
        return "Whoever built these pages knows of no run of the tests on a card either."
    return f"The tests passed on a card on {when}."


def _frontiers(results: Path, pictures: Path) -> str:
    """Figures of the points that the repository ships, as MyST; drawn into the folder
    ``pictures``, which lies in book/_executed.
    """
    shown = []
    for file in sorted(results.glob("frontier-*.csv")):
        pictures.mkdir(parents=True, exist_ok=True)
        picture = pictures / f"{file.stem}.svg"
        frontier.draw(frontier.read(file)).savefig(picture)
        where = f"{pictures.parent.name}/{pictures.name}/{picture.name}"
        lines = [f"```{{figure}} {where}", f":name: {file.stem}", f":alt: {frontier.ALT}", ""]
        shown.append("\n".join([*lines, frontier.CAPTION, "```"]))
    return "\n\n".join(shown)


def _pages(results: Path) -> str:
    """What the benchmark has found on cards, as sections below those of the page."""
    found = [file.read_text("utf8").strip() for file in sorted(results.glob("gpu-*.md"))]
    return "\n\n".join(re.sub(r"^#", "####", text, flags=re.MULTILINE) for text in found)


def _figures(files: list[Path]) -> str:
    """What the benchmarks have printed into ``files``, as MyST."""
    there = [file.read_text("utf8").rstrip() for file in files if file.exists()]
    return "\n\n".join(f"```text\n{text}\n```" for text in there)


def swap(app: Sphinx, docname: str, source: list[str]) -> None:
    for place, text in computed(docname, Path(app.srcdir)).items():
        source[0] = source[0].replace(place, text)
    if not docname.startswith("notebooks/"):
        return
    copy = Path(app.srcdir, "book", "_executed", Path(docname).name + ".ipynb")
    if not copy.exists():
        log.warning("no executed copy of this notebook: run `make book`", location=docname)
        return
    app.env.note_dependency(str(copy))
    text = copy.read_text("utf8")
    if '"papermill-error-cell-tag"' in text:
        log.warning("the executed copy ends in an exception", location=docname)
    source[0] = text


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", use_vendored_scripts)
    app.connect("config-inited", say_what_was_found, priority=950)  # once _toc.yml is read
    app.connect("source-read", swap)
    return {"parallel_read_safe": True}
