"""The book in one file: its pages in reading order, with bookmarks and without dead links."""

from pathlib import Path

import pypdf
import pytest

from kpnb_book.run.browser import BrowserError
from kpnb_book.run.errors import NotebookError
from kpnb_book.run.pdf import print_book
from tests.conftest import give_up

TOC = """format: jb-book
root: book/index
parts:
  - chapters:
      - file: notebooks/10_later
      - file: book/about
"""
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} — the book</title>
<h1 id="here">{title}</h1><p>{text}</p> <a href="#here">to the heading</a>
<a href="/book/about.html">to another page</a> <a href="https://example.org/far">elsewhere</a>
</html>"""
PAGES = {"book/index": "First", "notebooks/10_later": "Second", "book/about": "Third"}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "_toc.yml").write_text(TOC)
    for name, title in PAGES.items():
        page = tmp_path / "book" / "_build" / "html" / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.format(title=title, text=f"What the page called {title} says."))
    return tmp_path


def test_pages_are_printed_in_reading_order(root):
    try:
        reader = pypdf.PdfReader(print_book(root))
    except BrowserError as error:
        give_up(str(error))
    assert [item.title for item in reader.outline] == [*PAGES.values()]
    pages = [reader.get_destination_page_number(item) for item in reader.outline]
    assert pages == [0, 1, 2]
    for page, title in zip(reader.pages, PAGES.values(), strict=True):
        assert f"What the page called {title} says." in page.extract_text()
        links = [link.get_object() for link in page["/Annots"]]
        addresses = [link["/A"]["/URI"] for link in links if "/URI" in link.get("/A", {})]
        assert addresses == ["https://example.org/far"]
        assert len(links) == 2  # and the one to the heading


def test_a_page_that_is_not_built_is_named(root):
    (root / "book" / "_build" / "html" / "book" / "about.html").unlink()
    with pytest.raises(NotebookError, match="book/about is not built: `make book` first"):
        print_book(root)
