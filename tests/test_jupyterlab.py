"""The reader of notebooks in JupyterLab: it finds what is planted, and the quickstart is in order.

``make lab`` reads all notebooks; see :mod:`tests.jupyterlab`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Browser, Page

from tests import jupyterlab
from tests.jupyterlab import (
    MYST,
    READ,
    Report,
    answer,
    cell_faults,
    copied_lab,
    look_at,
    slow,
    ways,
)

# ---- on a page that looks like JupyterLab's


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return browser.new_page()


def faults_of(page: Page, shown: str, mime: str | None) -> list[str]:
    """What is found in one cell: an output of the kind ``mime``, or without it a text."""
    name = "jp-OutputArea-output" if mime else "jp-MarkdownOutput"
    part = f'<div class="{name}" data-mime-type="{mime or "text/markdown"}">{shown}</div>'
    page.set_content(f'<div class="jp-Notebook"><div class="jp-Cell">{part}</div></div>')
    page.wait_for_function(jupyterlab.LOADED)
    cell = new_code_cell("1", execution_count=1) if mime else new_markdown_cell()
    found = list(cell_faults(page.evaluate(READ), new_notebook(cells=[cell])))
    return [fault.removeprefix("cell 1 shows ") for fault in found]


FORMULA = "<mjx-container>{}<math><mi>x</mi></math></mjx-container>"
STDOUT = "application/vnd.jupyter.stdout"
STDERR = "application/vnd.jupyter.stderr"


@pytest.mark.parametrize(
    ("shown", "mime", "fault"),
    [
        ("<p>see {doc}<code>../book/method</code></p>", None, "a role: {doc}`../book/method"),
        ("<p>{glue:text}<code>n:.1f</code> nats</p>", None, "a role: {glue:text}`n:.1f"),
        ("<p>{eq}<code>eq-5</code></p>", "text/markdown", "a role: {eq}`eq-5"),
        ("<pre>{numref}`fig-1`</pre>", STDOUT, "a role: {numref}`fig-1"),
        (
            '<pre><code class="language-{admonition} Try it">:class: tip</code></pre>',
            None,
            "a directive: ```{admonition} Try it",
        ),
        ("<p>:::{note}\nIt is so.\n:::</p>", None, "a directive: :::{note}"),
        ("<p>(rule)=</p>", None, "a label: (rule)="),
        ("<p>{{ version }}</p>", None, "a substitution: {{ version }}"),
        ("<p>so it is [^1]</p>", None, "a footnote: [^1]"),
        ("<p>where $H_i$ is</p>", None, "a formula: $H_i$"),
        ("<p>where \\lambda is</p>", "text/html", "a formula: \\lambda is"),
        ("<details>**bold** words</details>", None, "Markdown: **bold** words"),
        ("<p>&lt;details> more</p>", None, "HTML: <details> more"),
        (FORMULA.format("<mjx-merror>x</mjx-merror>"), None, "a formula that is not set: x"),
        (
            FORMULA.format('<mjx-mtext style="color: red;"></mjx-mtext>'),
            "text/markdown",
            "a formula that is not set: x",
        ),
        ('<img src="data:," alt="a map">', "text/html", "a picture that does not load: a map"),
        ("<pre>careful\n</pre>", STDERR, "standard error: careful"),
        ("<pre>            </pre>", STDERR, "standard error: an empty red strip"),
        (
            "<pre>Traceback (most recent call last)\nValueError: no</pre>",
            STDERR,
            "an error: ValueError: no",
        ),
        (
            "<pre>waiting for another process that computes entropy/1</pre>",
            STDOUT,
            "a line of a log: waiting for another process that computes entropy/1",
        ),
        ("<pre>INFO:kpnb:stored</pre>", STDOUT, "a line of a log: INFO:kpnb:stored"),
        ("<pre>epoch:  40%|####</pre>", STDOUT, "a line of a log: epoch:  40%|####"),
    ],
)
def test_a_fault_is_found(page, shown, mime, fault):
    assert faults_of(page, shown, mime) == [fault]


@pytest.mark.parametrize(
    ("shown", "mime"),
    [
        (
            "<p>the set {a, b}, 40 % of it, <b>bold</b>, <code>{doc}</code> and <code>x</code></p>",
            None,
        ),
        ('<pre><code class="language-python"># $x$ and **y**\n{doc}`z`</code></pre>', None),
        (f"<p>where {FORMULA.format('<mjx-math></mjx-math>')} is</p>", "text/markdown"),
        ("<details><summary>Solution</summary><p>Not <em>every</em> cell.</p></details>", None),
        ("<pre>{'a': 1}, 2 ** 3, \\n, N = {3}</pre>", "text/plain"),
        ("<pre>                      </pre>", STDOUT),
        ("<img src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>\">", "text/html"),
    ],
)
def test_nothing_is_found_where_nothing_is_wrong(page, shown, mime):
    assert faults_of(page, shown, mime) == []


def test_a_cell_without_its_figure_or_its_run_is_found():
    figure = {"mystnb": {"figure": {"name": "fig-1"}}}
    cells = [new_code_cell("plot()", metadata=figure), new_code_cell(""), new_markdown_cell("a")]
    shown = [{"parts": []}] * 3
    found = list(cell_faults(shown, new_notebook(cells=cells)))
    assert found == ["cell 1 was not executed", "cell 1 shows no figure"]
    found = list(cell_faults(shown[:2], new_notebook(cells=cells)))
    assert found == ["2 cells are shown of 3"]


@pytest.mark.parametrize("source", ["own_seeds(found)", "a = 1\nplot(a) if found else None"])
def test_figures_of_stored_evidence_come_with_its_tables(source):
    figure = {"mystnb": {"figure": {"name": "fig-1"}}}
    cell = new_code_cell(source, metadata=figure, execution_count=1)
    assert list(cell_faults([{"parts": []}], new_notebook(cells=[cell]))) == []
    cell.outputs = [new_output("display_data", {"text/plain": "no picture"})]
    found = list(cell_faults([{"parts": []}], new_notebook(cells=[cell])))
    assert found == ["cell 1 shows no figure"]


PANEL = """
<div class="panel">
  <select id="alive" onchange="words.textContent = this.value">
    <option>a</option><option>b</option></select>
  <select id="dead"><option>a</option><option>b</option></select>
  <select id="lone"><option>a</option></select>
  <div id="slider" role="slider" tabindex="0" aria-valuemin="0" aria-valuemax="3" aria-valuenow="1"
    onkeydown="words.textContent = event.key"></div>
  <p class="widget-html" id="words"></p>
</div>"""


def test_a_control_that_changes_nothing_is_told_from_one_that_does(page, monkeypatch):
    monkeypatch.setattr(jupyterlab, "PATIENCE", 0.2)
    page.set_content(PANEL)
    panel = page.locator(".panel")
    alive, dead, lone, slider = (
        page.locator(f"#{name}") for name in ("alive", "dead", "lone", "slider")
    )
    assert ways(alive) == ways(dead) == ["next"]
    assert ways(lone) == []
    assert ways(slider) == ["Home", "End"]
    slider.evaluate("slider => slider.ariaValueNow = 0")
    assert ways(slider) == ["End"]
    assert answer(page, panel, dead, "next") == math.inf
    monkeypatch.setattr(jupyterlab, "PATIENCE", 20.0)
    for control, way, shown in [
        (alive, "next", "b"),
        (slider, "Home", "Home"),
        (slider, "End", "End"),
    ]:
        assert answer(page, panel, control, way) < math.inf
        assert page.locator("#words").inner_text() == shown


def test_a_reader_does_not_wait_for_a_control():
    answers = {"grid": 0.4, "layer": 1.25, "b": math.inf}
    assert list(slow(Report("00", answers=answers))) == [
        "the control 'layer' answers after 1.25 s",
        "the control 'b' does not answer",
    ]


# ---- in JupyterLab itself

FOLDED = {"jupyter": {"source_hidden": True}}
PLANTED = [
    new_markdown_cell(
        "See {doc}`../book/method` and [that](nowhere.md).\n\n```{tip}\nTry it.\n```"
    ),
    new_markdown_cell("A [page](../book/method.md), $a^2$.\n\n$$\\frac{a}{b}$$"),
    new_markdown_cell("$\\undefined$ ![a map](gone.png)"),
    new_code_cell("import sys; print('careful', file=sys.stderr)", metadata=FOLDED),
    new_code_cell("from IPython.display import Markdown; Markdown('**so** {eq}`eq-5`, $a_1$')"),
    new_code_cell("1 / 0"),
    new_code_cell("2"),
]


@dataclass
class Seen:
    """What was read, and what JupyterLab was and left."""

    planted: Report
    quickstart: Report
    folder: Path
    at_work: list[int]  # processes while it was open

    def processes(self) -> list[int]:
        return processes(self.folder)


def processes(folder: Path) -> list[int]:
    """Processes that were started for something in ``folder``."""
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if str(folder) in " ".join(p.info["cmdline"] or [])]


@pytest.fixture(scope="module")
def seen(browser: Browser) -> Seen:
    with copied_lab("smoke", None) as (book, lab):
        source = book / "notebooks" / "00_quickstart.ipynb"
        metadata = nbformat.read(source, as_version=4).metadata
        path = source.with_name("planted.ipynb")
        nbformat.write(new_notebook(cells=PLANTED, metadata=metadata), path)
        planted = look_at(path, lab, browser, 120)
        quickstart = look_at(source, lab, browser, 300)
        return Seen(planted, quickstart, book.parent, processes(book.parent))


def test_what_is_planted_is_found_in_jupyterlab(seen):
    assert seen.planted.faults == [
        "cell 1 shows a role: {doc}`../book/method",
        "cell 1 shows a directive: ```{tip}",
        "cell 3 shows a picture that does not load: a map",
        "cell 3 shows a formula that is not set: \\undefined",
        "cell 4 shows standard error: careful",
        "cell 5 shows a role: {eq}`eq-5",
        "cell 6 shows an error: ZeroDivisionError: division by zero",
        "cell 7 was not executed",
        "a link leads nowhere: files/notebooks/nowhere.md",
    ]
    assert seen.planted.formulas == 4


def test_the_quickstart_runs_in_jupyterlab(seen):
    report = seen.quickstart
    assert not [
        fault for fault in report.faults if not any(f"shows {name}:" in fault for name in MYST)
    ]
    assert report.figures == 3
    assert report.formulas > 0
    assert set(report.answers) == {"layer", "grid", "b (nats)"}  # of images it shows one
    assert max(report.answers.values()) < math.inf


def test_the_quickstart_reads_well_in_jupyterlab(seen):
    assert not seen.quickstart.faults


def test_nothing_is_left_of_jupyterlab(seen):
    assert seen.at_work
    assert not seen.processes()
    assert not seen.folder.exists()
