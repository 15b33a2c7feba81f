"""Show notebooks/NN_name.ipynb with the results of its executed copy, book/_executed/NN_name.ipynb.

The table of contents names the source notebooks, so that the launch and download buttons lead to
real files. The page book/executed.md gets a table of the copies, and the page of the benchmarks
what `python -m benchmarks` has kept there, if it was run. Scripts that `make vendor` has fetched
are used instead of their CDN, and the pages then need no network.
"""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

from kpnb_book.run.chapters import notebooks_of
from kpnb_book.run.provenance import table

log = logging.getLogger(__name__)
TABLE = "<!-- table of executed notebooks -->"


def use_vendored_scripts(app: Sphinx, config: Config) -> None:
    vendor = Path(app.srcdir, "book", "_assets", "vendor")
    if (vendor / "package.json").exists():
        config["mathjax_path"] = "vendor/mathjax/tex-mml-chtml.js"
        config["nb_ipywidgets_js"] = {"vendor/html-manager/embed.js": {}}


def swap(app: Sphinx, docname: str, source: list[str]) -> None:
    executed = Path(app.srcdir, "book", "_executed")
    if docname == "book/benchmarks":
        kept = executed / "benchmarks.txt"
        source[0] = source[0].replace(
            "MEASURED", kept.read_text("utf8") if kept.exists() else "Not measured yet."
        )
    if docname == "book/executed":
        copies = [executed / path.name for path in notebooks_of(Path(app.srcdir))]
        source[0] = source[0].replace(TABLE, table(copies))
    if not docname.startswith("notebooks/"):
        return
    copy = executed / (Path(docname).name + ".ipynb")
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
    app.connect("source-read", swap)
    return {"parallel_read_safe": True}
