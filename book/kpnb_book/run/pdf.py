"""Print the built book into one PDF file: what ``make pdf`` runs."""

import re
import sys
from io import BytesIO
from pathlib import Path

from playwright.sync_api import Page
from pypdf import PdfWriter

from kpnb_book.run.browser import BrowserError, open_browser, serve
from kpnb_book.run.notebooks import NotebookError, find_root

MARGIN = dict.fromkeys(("top", "bottom", "left", "right"), "18mm")
# In the one file, a link to a page leads nowhere; one to a place on its own page does.
UNLINK = """() => document.querySelectorAll("a").forEach(a => a.host === location.host
  && !(a.hash && a.pathname === location.pathname) && a.removeAttribute("href"))"""


def _print(page: Page, address: str) -> bytes:
    page.goto(address)
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate(UNLINK)
    return page.pdf(format="A4", margin=MARGIN, print_background=True, tagged=True)


def print_book(root: Path) -> Path:
    """All pages of ``_toc.yml`` in reading order, with bookmarks, beside the first page; returns
    the file.

    Raises NotebookError when the book is not built, and BrowserError without a browser.
    """
    site = root / "book" / "_build" / "html"
    pages = re.findall(
        r"^[\s-]*(?:root|file): *(\S+)", (root / "_toc.yml").read_text("utf8"), re.MULTILINE
    )
    missing = [name for name in pages if not (site / f"{name}.html").is_file()]
    if missing:
        raise NotebookError(f"{', '.join(missing)} is not built: `make book` first")
    file, writer = site / "kpnb.pdf", PdfWriter()
    with open_browser() as browser, serve(site) as address:
        page = browser.new_page(color_scheme="light")
        for name in pages:
            printed = _print(page, f"{address}/{name}.html")
            writer.append(
                BytesIO(printed), outline_item=page.title().split(" — ")[0], import_outline=False
            )
    writer.compress_identical_objects()  # fonts, which every page brings
    writer.add_metadata({"/Title": "Knowledge points"})
    writer.write(file)
    return file


if __name__ == "__main__":
    try:
        print(f"The book in one file: {print_book(find_root())}")
    except (BrowserError, NotebookError) as error:
        sys.exit(f"error: {error}")
