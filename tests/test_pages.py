"""The built pages in a real browser.

Errors, requests, accessibility, width on a telephone, weight, search, and views.
Pages are those of ``book/_build/html`` when nothing has changed since they were built; else a book
is made in which only three notebooks have been executed. All tests share one visit of each page.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request

from kpnb_book.run.browser import serve
from kpnb_book.run.build import build_pages
from kpnb_book.run.notebooks import run_notebook
from tests.conftest import give_up

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "book" / "_build" / "html"
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
SOME = ("00_quickstart", "20_clouds_h1", "30_sentiment_h1")  # quick, and with views
NOT_SOURCES = ("_build", "_executed", "__pycache__", ".ipynb_checkpoints")
TELEPHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
PATIENCE = 120_000  # milliseconds that a busy machine may take
LIMIT = 5_000_000  # bytes of a page with all that it loads
NOT_OURS = {
    # docutils writes a bibliography with roles that ARIA has since withdrawn,
    "aria-allowed-role": ".citation",
    "aria-deprecated-role": ".citation",
    "aria-required-children": ".citation-list",
    # and the theme its frame: a logo outside of a landmark, buttons whose name is not what is
    # written on them, on folded cells too.
    "region": ".logo__image",
    "label-content-name-mismatch": (
        ".search-button-field, .theme-switch-button, details.hide > summary"
    ),
}

# Whether what a reader sees of a view has changed since the last look, without the look of its
# controls: a click that only moves the focus changes nothing.
SEEN = """view => {
  const before = view.seen;
  view.seen = JSON.stringify([...view.querySelectorAll("*")]
  .filter(part => part.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
  .filter(part => !part.closest("input, select, button, label, summary, script, style"))
  .map(part => {
    const look = getComputedStyle(part);
    const words = [...part.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim());
    const picture = part.currentSrc || part.getAttribute("d") || "";
    const drawn = part.tagName === "CANVAS" ? part.toDataURL() : picture;
    const place = [part.getAttribute("x"), part.getAttribute("y")];
    return [part.tagName, words.join(" "), drawn, place, look.fill, look.backgroundColor,
      look.backgroundImage, look.backgroundPosition, look.borderColor, look.outlineStyle,
      look.opacity];
  }));
  return view.seen !== before;
}"""
CONTROLS = "input, select, button, summary, canvas[tabindex]"
# Not: what is hidden or switched off, the radio button that is chosen, a list of one.
USABLE = """c => !c.disabled && !(c.type === "radio" && c.checked) && !(c.options?.length === 1)
  && (c.checkVisibility() || ["radio", "checkbox"].includes(c.type))"""
LONE = """() => [...document.querySelectorAll(
    "article :is(canvas, select, input[type=range], input[type=radio])")]
  .filter(control => !control.closest(".kpnb-view, .sd-tab-set"))
  .map(control => control.outerHTML.slice(0, 80))"""
WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? []
  : [...document.querySelectorAll("body *")]
  .filter(part => part.getBoundingClientRect().right > innerWidth + 1 && part.checkVisibility())
  .map(part => part.outerHTML.slice(0, 80))"""
# Two thirds of a page may be words of code, each in a colour of a few: one of each is looked at,
# and the others stand there as plain text meanwhile. Formulas, which are left out, are empty boxes
# of the same size meanwhile: axe lists every part even of what it leaves out.
VIOLATIONS = """([rules, others]) => {
  const seen = new Set(), whole = [];
  for (const code of document.querySelectorAll(".highlight pre")) {
    const copy = code.cloneNode(true), where = code.closest("[class*=highlight-]")?.className;
    for (const word of copy.querySelectorAll("span[class]:not([id])")) {
      const kind = [where, word.parentElement.className, word.className].join("|");
      seen.has(kind) ? word.replaceWith(...word.childNodes) : seen.add(kind);
    }
    whole.push([code, [...code.childNodes]]);
    code.replaceChildren(...copy.childNodes);
  }
  const formulas = [...document.querySelectorAll("mjx-container")]
    .map(one => [one, one.getBoundingClientRect(), one.style.cssText, [...one.childNodes]]);
  for (const [one, box] of formulas) {
    one.style.cssText += `; display: inline-block; width: ${box.width}px; height: ${box.height}px`;
    one.replaceChildren();
  }
  const ours = rule => node => !others[rule.id]
    || !document.querySelector(node.target[0]).matches(others[rule.id]);
  const line = rule => node => `${rule.id}: ${node.html.slice(0, 160)} ${node.failureSummary}`;
  return axe.run({ exclude: [["mjx-container"]] }, { resultTypes: ["violations"], ...rules })
    .then(found => found.violations
      .flatMap(rule => rule.nodes.filter(ours(rule)).map(line(rule))))
    .finally(() => {
      whole.forEach(([code, words]) => code.replaceChildren(...words));
      formulas.forEach(([one, , style, parts]) => {
        one.style.cssText = style;
        one.replaceChildren(...parts);
      });
    });
}"""
# On a telephone: tables that scroll without saying so, and verdicts that are not in sight.
HIDDEN = """() => {
  const cut = [...document.querySelectorAll("article *")]
    .filter(box => box.querySelector(":scope > table, :scope > * > table"))
    .filter(box => box.scrollWidth > box.clientWidth + 1)
    .filter(box => box.checkVisibility())  // a folded one says so when it is opened
    .filter(box => ["auto", "scroll"].includes(getComputedStyle(box).overflowX))
    .filter(box => getComputedStyle(box, "::before").content === "none");
  const verdicts = [...document.querySelectorAll("article table")]
    .filter(table => table.querySelector("thead th:last-child")?.textContent.trim() === "verdict")
    .flatMap(table => [...table.querySelectorAll("tr > :last-child")])
    .filter(cell => cell.checkVisibility() && cell.getBoundingClientRect().right > innerWidth);
  return [...cut, ...verdicts].map(part => part.outerHTML.slice(0, 80));
}"""
# What a kernel writes to its error stream, bars of progress, and the names of classes.
LOGS = """() => {
  const log = /waiting for another process|WARNING|INFO|it\\/s\\]|\\d%\\||<\\w+\\.\\w.* object/;
  return [...document.querySelectorAll("article .cell_output")]
    .filter(output => output.querySelector(".stderr") || log.test(output.textContent))
    .map(output => output.textContent.slice(0, 120));
}"""
# A figure at the size at which it was drawn: 10 points of lettering are 15 pixels there.
AS_DRAWN = """figure => figure.getBoundingClientRect().width >= figure.naturalWidth - 1"""
UNOPENED = f"""async ([figures, limit]) => {{
  const drawn = {AS_DRAWN}, large = document.querySelector("dialog.kpnb-large"), left = [];
  for (const figure of figures) {{
    figure.click();
    const shown = large.querySelector("img");
    const late = new Promise(done => setTimeout(done, limit));
    if (!shown?.complete) await Promise.race([late, shown?.decode().catch(() => null)]);
    const same = shown?.alt === figure.alt && shown?.currentSrc === figure.currentSrc;
    if (!large.open || !same || !drawn(shown)) left.push(figure.outerHTML.slice(0, 120));
    large.close();
  }}
  return left;
}}"""
DEPEND_ON_LOOK = {
    "runOnly": [
        "color-contrast",
        "scrollable-region-focusable",
        "link-in-text-block",
        "target-size",
    ]
}
# Whether the browser draws; without a limit of time the promise of a tab that it has stopped
# drawing is never kept.
FRAME = """limit => new Promise(done => {
  setTimeout(() => done(false), limit);
  requestAnimationFrame(() => requestAnimationFrame(() => done(true)));
})"""
# what a page keeps for the next one; a blank page may keep nothing
FORGET = "() => { try { localStorage.clear(); sessionStorage.clear(); } catch { } }"
# the theme scrolls slowly, and a click waits for it
AT_ONCE = "() => { document.documentElement.style.scrollBehavior = 'auto' }"
# the theme waits 300 ms after a change of width
SETTLED = "() => new Promise(done => setTimeout(done, 400))"


def sources() -> Iterator[Path]:
    yield from (ROOT / "_config.yml", ROOT / "_toc.yml")
    for folder, folders, names in chain(os.walk(ROOT / "book"), os.walk(ROOT / "notebooks")):
        folders[:] = [name for name in folders if name not in NOT_SOURCES]
        yield from (Path(folder, name) for name in names)


def small_book(root: Path) -> Path:
    """The pages with three notebooks executed, with the smallest settings, and the others as they
    are; in a copy.
    """
    for name in ("book", "notebooks"):
        shutil.copytree(
            ROOT / name, root / name, ignore=lambda folder, names: set(names) & set(NOT_SOURCES)
        )
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    for name in SOME:
        source = root / "notebooks" / f"{name}.ipynb"
        run_notebook(source, root / "book" / "_executed" / source.name, {"profile": "smoke"})
    return build_pages(root, strict=False).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    last = BUILT / "searchindex.js"  # what is written last
    if last.exists() and last.stat().st_mtime > max(path.stat().st_mtime for path in sources()):
        return BUILT
    if os.environ.get("CI"):
        pytest.fail("CI tests the whole book: build it first, as .ci/run does")
    return small_book(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def address(browser: Browser, site: Path) -> Iterator[str]:
    with serve(site) as address:
        yield address


@dataclass
class Visit:
    """What one page did and showed."""

    errors: list[str] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)  # bytes of everything that the page loads
    wide: list[str] = field(default_factory=list)
    barriers: list[str] = field(default_factory=list)
    views: int = 0
    dead: list[str] = field(default_factory=list)  # controls that change nothing
    lone: list[str] = field(default_factory=list)  # controls outside of any view
    small: list[str] = field(default_factory=list)  # figures that nothing shows at full size
    hidden: list[str] = field(default_factory=list)  # verdicts out of sight, boxes without a hint
    logs: list[str] = field(default_factory=list)  # outputs that are no results


class Undrawn(Exception):
    """The browser has stopped drawing a tab, as Chromium was seen to do, for no known reason."""


def draw(page: Page) -> None:
    """Wait until what has changed is drawn; raises Undrawn where it never is."""
    if not page.evaluate(FRAME, PATIENCE / 4):
        raise Undrawn(page.url)


def use(control: Locator, kind: str) -> None:
    """Do with a control what it is for."""
    if kind == "SELECT":
        control.select_option(
            index=control.evaluate("c => (c.selectedIndex + 1) % c.options.length")
        )
    elif kind == "range":
        control.press(control.evaluate("c => c.value === c.min ? 'End' : 'Home'"))
    elif kind == "CANVAS":
        control.press("ArrowRight")
    elif kind in ("radio", "checkbox"):  # the box itself may be hidden behind its label
        control.evaluate("c => c.click()")
    else:
        control.click()


def dead_controls(page: Page) -> Iterator[str]:
    """Use every control of every view; gives those that change nothing of what is seen."""
    for view in page.locator(".kpnb-view").all():
        view.evaluate(SEEN)
        for control in view.locator(CONTROLS).all():
            if not control.evaluate(USABLE):
                continue
            use(control, control.evaluate("c => c.tagName === 'INPUT' ? c.type : c.tagName"))
            draw(page)
            if not view.evaluate(SEEN):
                yield control.evaluate("c => c.outerHTML.slice(0, 120)")


def small_figures(page: Page) -> Iterator[str]:
    """Open every figure that is smaller than it was drawn; gives those that are not shown at that
    size. The first is tapped where it is on the screen, and closed again by a key; the others,
    which lie in the same kind of button and dialog, are sent a click.
    """
    every = page.query_selector_all("article .cell_output img")
    small = [one for one in every if one.is_visible() and not one.evaluate(AS_DRAWN)]
    if not small:
        return
    small[0].click()  # which scrolls to it
    large = page.locator("dialog.kpnb-large")
    opened = large.count() and large.is_visible()
    page.keyboard.press("Escape")
    if not opened or large.is_visible():
        yield small[0].evaluate("figure => figure.outerHTML.slice(0, 120)")
    else:
        yield from page.evaluate(UNOPENED, [small, PATIENCE / 4])


def barriers(page: Page, when: str, rules: dict[str, list[str]]) -> list[str]:
    """What axe-core finds, by all rules or some."""
    return (
        [f"{when}: {found}" for found in page.evaluate(VIOLATIONS, [rules, NOT_OURS])]
        if AXE.exists()
        else []
    )


def visit(page: Page, address: str, site: Path, name: str) -> Visit:
    """Load a page, look at it on a desk in light mode and on a telephone in dark mode, and use its
    controls.
    """
    seen = Visit()

    def record(request: Request) -> None:
        path = request.url.removeprefix(address)
        if path != request.url:
            file = site / unquote(urlsplit(path).path).lstrip("/")
            seen.files[file.name] = file.stat().st_size if file.is_file() else 0
        elif not request.url.startswith(("data:", "blob:")):
            seen.foreign.add(request.url)

    page.on("request", record)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", lambda said: said.type == "error" and seen.errors.append(said.text))
    page.goto(f"{address}/{name}")
    page.evaluate("() => window.MathJax?.startup?.promise")
    if AXE.exists():
        page.evaluate(AXE.read_text("utf8"))
    seen.barriers += barriers(page, "light", {})
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(TELEPHONE)
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    draw(page)
    page.evaluate(SETTLED)
    page.evaluate(AT_ONCE)
    seen.wide += page.evaluate(WIDE)
    seen.barriers += barriers(page, "dark", DEPEND_ON_LOOK)
    seen.views, seen.lone = page.locator(".kpnb-view").count(), page.evaluate(LONE)
    seen.hidden += page.evaluate(HIDDEN)
    seen.logs += page.evaluate(LOGS)
    seen.dead += dead_controls(page)
    seen.small += small_figures(page)
    return seen


def visited(
    browser: Browser | BrowserContext, address: str, site: Path, name: str, tabs: int = 2
) -> Visit:
    """The ``visit`` of a page in a tab of its own, and in up to ``tabs`` others where that is not
    drawn.
    """
    page = browser.new_page()
    page.set_viewport_size(DESK)
    # a click would wait for seconds until a long page has scrolled smoothly
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    try:
        seen = visit(page, address, site, name)
        page.evaluate(FORGET)
        return seen
    except Undrawn:
        if not tabs:
            raise
    finally:
        page.close()
    return visited(browser, address, site, name, tabs - 1)


@pytest.fixture(scope="module")
def visits(browser: Browser, address: str, site: Path) -> dict[str, Visit]:
    found = {}
    with browser.new_context() as shared:  # what all pages load is read and compiled once
        for path in [
            *sorted(site.glob("book/*.html")),
            *sorted(site.glob("notebooks/*.html")),
            site / "search.html",
        ]:
            name = path.relative_to(site).as_posix()
            found[name] = visited(shared, address, site, name)
    return found


def culprits(visits: dict[str, Visit], attribute: str) -> dict[str, Any]:
    return {name: found for name, seen in visits.items() if (found := getattr(seen, attribute))}


PLANTED = """<!doctype html><html lang="en" data-theme="light"><title>Planted</title>
<script>
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (dark) => {
    document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  });
  throw new Error("planted");
</script>
<article>
  <div style="width: 2000px">wider than a telephone</div>
  <label>outside <select><option>a<option>b</select></label>
  <div class="kpnb-view"><label>dead <select><option>a<option>b</select></label></div>
  <div style="overflow-x: auto; width: 200px"><table style="width: 900px">
    <thead><tr><th>a</th><th>verdict</th></tr></thead><tr><td>1</td><td>shows</td></tr>
  </table></div>
  <div class="cell_output"><pre class="stderr">INFO</pre>
    <img alt="small" src="large.png" width="100"></div>
  <img src="http://example.invalid/x.png">
</article></html>"""


def test_what_is_planted_is_found(browser, tmp_path):
    """A page with a fault of every kind that visits look for."""
    (tmp_path / "planted.html").write_text(PLANTED)
    Image.new("RGB", (900, 300), "red").save(tmp_path / "large.png")
    with serve(tmp_path) as address:
        seen = visited(browser, address, tmp_path, "planted.html")
    assert any("planted" in error for error in seen.errors)
    assert seen.foreign == {"http://example.invalid/x.png"}
    assert any("2000px" in part for part in seen.wide)
    assert any("image-alt" in found for found in seen.barriers) or not AXE.exists()
    assert len(seen.dead) == len(seen.lone) == len(seen.small) == seen.views == 1
    assert any("overflow-x" in part for part in seen.hidden)
    assert any("shows" in part for part in seen.hidden)
    assert len(seen.logs) == 1


def test_every_page_was_visited(visits, site):
    toc = (site.parents[2] / "_toc.yml").read_text("utf8")
    assert {f"{name}.html" for name in re.findall(r"(?:file|root): (\S+)", toc)} <= set(visits)


def test_no_script_fails(visits):
    found = culprits(visits, "errors")
    assert not found


def test_nothing_is_asked_of_another_host(visits, site):
    if not (site / "_static" / "vendor").exists():
        give_up("these pages load scripts from their CDN: `make vendor` needs npm")
    found = culprits(visits, "foreign")
    assert not found


def test_no_barriers(visits):
    if not AXE.exists():
        give_up("there is no axe-core: `make vendor` needs npm")
    found = culprits(visits, "barriers")
    assert not found


def test_no_page_is_wider_than_a_telephone(visits):
    found = culprits(visits, "wide")
    assert not found


def test_no_page_is_heavy(visits):
    weights = {name: sum(seen.files.values()) for name, seen in visits.items()}
    heavy = {name: weight for name, weight in weights.items() if weight > LIMIT}
    assert not heavy


def test_every_control_of_every_view_changes_it(visits):
    count = sum(seen.views for seen in visits.values())
    assert count > 0
    found = culprits(visits, "dead")
    assert not found


def test_no_control_stands_outside_a_view(visits):
    found = culprits(visits, "lone")
    assert not found


def test_every_figure_opens_at_full_size_on_a_telephone(visits):
    found = culprits(visits, "small")
    assert not found


def test_no_verdict_is_out_of_sight_and_tables_say_that_they_scroll(visits):
    found = culprits(visits, "hidden")
    assert not found


def test_a_folded_table_says_that_it_scrolls_when_it_is_opened(browser, address, site):
    page = browser.new_page(viewport=TELEPHONE)
    page.goto(f"{address}/notebooks/80_evidence.html")
    page.evaluate("() => document.querySelectorAll('article details').forEach(d => d.open = true)")
    page.wait_for_function(f"() => !({HIDDEN})().length")
    page.close()


def test_outputs_are_results_and_not_logs(visits):
    found = culprits(visits, "logs")
    assert not found


def test_the_large_figure_by_keyboard(browser, address, site):
    """It opens by Enter, has no barriers, keeps the focus inside, closes by Escape, its button and
    a click beside it, and gives the focus back.
    """
    page = browser.new_page(viewport=TELEPHONE, color_scheme="dark")
    page.goto(f"{address}/notebooks/{SOME[0]}.html")
    figure = page.locator("article button.kpnb-zoom").first
    large = page.locator("dialog.kpnb-large")
    ways = [
        lambda: page.keyboard.press("Escape"),
        lambda: page.keyboard.press("Enter"),  # the focus is on the button
        lambda: large.click(position={"x": 5, "y": 100}),
    ]
    for way in ways:
        figure.focus()
        page.keyboard.press("Enter")
        assert large.is_visible()
        assert page.evaluate("() => document.activeElement.textContent") == "Close"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        inside = "() => [document.body, ...document.querySelectorAll('.kpnb-large, .kpnb-large *')]"
        assert page.evaluate(f"({inside})().includes(document.activeElement)")
        large.locator("button").focus()
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        way()
        assert not large.is_visible()
        assert figure.evaluate("button => button === document.activeElement")
    if AXE.exists():
        page.evaluate(AXE.read_text("utf8"))
        figure.click()
        assert not barriers(page, "large", {})
    page.close()


def test_gallery_leads_to_every_figure(browser, address, site):
    """Each card has its picture, if the figure has one, and leads to an element that is there."""
    page = browser.new_page(viewport=DESK)
    page.goto(f"{address}/book/gallery.html")
    cards = page.locator("article .sd-card")
    links = cards.locator("a.sd-stretched-link").evaluate_all("links => links.map(l => l.href)")
    assert len(links) == cards.count() > len(SOME)
    for link in links:
        path, _, label = link.removeprefix(f"{address}/").partition("#")
        assert f'id="{label}"' in (site / path).read_text("utf8"), link
    pictures = cards.locator("img")
    assert pictures.count() > len(SOME)
    loaded = "pictures => pictures.filter(p => !p.complete || !p.naturalWidth || !p.alt).length"
    assert pictures.evaluate_all(loaded) == 0
    page.close()


def test_search_finds_a_word(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=detours")
    found = page.locator("#search-results li a")
    found.first.wait_for(timeout=PATIENCE)
    assert any("book/" in link.get_attribute("href") for link in found.all())
    page.close()


def test_buttons_lead_to_files_of_the_repository(site):
    """Binder, Colab and the edit button name a file by its path; of every notebook there are all
    three.
    """
    address = yaml.safe_load((ROOT / "_config.yml").read_text("utf8"))["repository"][
        "url"
    ].removeprefix("https://")
    owner = address.split("/", 1)[1]
    kinds = {
        "edit": rf"https://{address}/edit/main/([^\"?]+)",
        "binder": rf"https://mybinder.org/v2/gh/{owner}/main\?urlpath=lab/tree/([^\"&]+)",
        "colab": rf"https://colab.research.google.com/github/{owner}/blob/main/([^\"?]+)",
    }
    for page in [*site.glob("book/*.html"), *site.glob("notebooks/*.html")]:
        found = {
            kind: set(re.findall(link, page.read_text("utf8"))) for kind, link in kinds.items()
        }
        source = f"{page.parent.name}/{page.stem}"
        if page.parent.name == "notebooks":
            assert found == {kind: {f"{source}.ipynb"} for kind in kinds}
            assert (ROOT / f"{source}.ipynb").is_file()
        else:
            assert found == {"edit": {f"{source}.md"}, "binder": set(), "colab": set()}
            assert (ROOT / f"{source}.md").is_file()


def test_a_tab_that_is_not_drawn_is_visited_again_and_not_for_ever(
    browser, address, site, monkeypatch
):
    """Planted: frames that never come, at first and then always."""
    tabs = []

    def visit(page: Page, *_: Any) -> Visit:
        tabs.append(page)
        blind = len(tabs) in (1, 3, 4, 5)
        monkeypatch.setattr(__name__ + ".PATIENCE", 200 if blind else PATIENCE)
        if blind:
            page.evaluate("() => { window.requestAnimationFrame = () => 0; }")
        draw(page)
        return Visit()

    monkeypatch.setattr(__name__ + ".visit", visit)
    assert visited(browser, address, site, "search.html") == Visit()
    assert len(tabs) == 2
    with pytest.raises(Undrawn):
        visited(browser, address, site, "search.html")
    assert len(tabs) == 5
    assert all(page.is_closed() for page in tabs)
