"""Every notebook in JupyterLab: run in a headless browser as a reader would, then read.

    python -m tests.jupyterlab              # all notebooks, with the smallest settings
    python -m tests.jupyterlab 00 03 10     # only these
    python -m tests.jupyterlab --profile laptop --store ~/.cache/kpnb 00

What is looked at is what JupyterLab shows without any extension but that of ipywidgets. Faults are
MyST that is left as it is written, formulas that are not set, errors, whatever a cell says on its
standard error, lines of a log, pictures that do not load, figures that are not there, links to
files that do not exist, and controls of the live panel that do not answer within a second. Exit
status 1 when there is any.

Notebooks are copied, and so is what they link to; results go to a store that is removed. The user's
settings of Jupyter are neither read nor changed.
"""

import argparse
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page
from playwright.sync_api import TimeoutError as Late

from kpnb_book.data.reviews import ARCHIVE
from kpnb_book.run.browser import BrowserError, open_browser
from kpnb_book.run.errors import UsageError
from kpnb_book.run.notebooks import find_notebook
from kpnb_book.store import Store
from tests.test_pages import dead_controls

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = ("_build", "_executed", "__pycache__", ".ipynb_checkpoints", "kpnb_book")
SETTINGS = {
    # Cells out of sight would not be in the page.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    # News would come from the network.
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}
DESK = {"width": 1280, "height": 900}
HIGHEST = 16_000  # pixels that a screenshot may be high
START = 60.0  # seconds for JupyterLab, and for a kernel, to start
ANSWER = 1.0  # seconds that a reader waits for the live panel
PATIENCE = 20.0  # seconds after which a control is taken for dead
# Set by a signal. An exception out of a signal's handler would leave playwright hanging.
STOP = threading.Event()

READY = """() => {
  const name = document.querySelector(".jp-Toolbar-kernelName")?.textContent ?? "No Kernel";
  const status = document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status;
  return status === "idle" && !name.includes("No Kernel");
}"""
# After "Run All Cells" a cell has a star until it has been executed, then its number; but one whose
# source is folded has neither, and between two cells a kernel is idle for a moment.
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
BEGUN = f"() => {PROMPTS}.some(prompt => /[*\\d]/.test(prompt))"
QUIET = f"() => {PROMPTS}.every(prompt => !prompt.includes('*')) && ({READY})()"
SAVED = "() => !document.querySelector('.lm-DockPanel-tabBar .jp-mod-dirty')"
LOADED = "() => [...document.querySelectorAll('.jp-Notebook img')].every(image => image.complete)"
# Of every cell: what it shows, with code between a backtick and an acute accent, which tells the
# two ends apart, and without formulas.
READ = """() => {
  const written = shown => {
    const copy = shown.cloneNode(true);
    copy.querySelectorAll("mjx-container, script, style, svg, .jp-InternalAnchorLink")
      .forEach(part => part.remove());
    for (const code of copy.querySelectorAll("code")) {
      const kind = code.className.replace(/^language-/, "");
      const block = code.parentElement.tagName === "PRE";
      code.textContent = block ? "```" + kind + "\\n```\\n" : "`" + code.textContent + "\u00b4";
    }
    return copy.textContent;
  };
  const formulas = "mjx-merror, [data-mjx-error], mjx-mtext[style*='red']";
  const part = shown => ({
    mime: shown.dataset.mimeType ?? "widget",
    text: written(shown),
    figures: shown.querySelectorAll("img, svg, canvas").length,
    broken: [...shown.querySelectorAll("img")].filter(image => !image.naturalWidth)
      .map(image => image.alt || image.src.slice(0, 80)),
    formulas: shown.querySelectorAll("mjx-container").length,
    unset: [...shown.querySelectorAll(formulas)]
      .map(formula => formula.closest("mjx-container").querySelector("math").textContent),
    links: [...shown.querySelectorAll("a[href]")].map(link => link.href),
  });
  return [...document.querySelectorAll(".jp-Notebook .jp-Cell")].map(cell => ({
    parts: [...cell.querySelectorAll(".jp-MarkdownOutput, .jp-OutputArea-output")].map(part),
  }));
}"""
LOOK = """panel => JSON.stringify([
  [...panel.querySelectorAll("img")].map(image => image.src),
  [...panel.querySelectorAll(".widget-html")].map(words => words.textContent)])"""

# ---- what no reader should see

MYST = {
    "a role": r"\{[a-zA-Z][\w:+.-]*\}`[^`´]*",
    "a directive": r"(?:```|:{3,})\s*\{[^}]*\}.*",
    "a label": r"^\([\w:.-]+\)=$",
}
MARKDOWN = {  # in what has been rendered, outside of code
    "a substitution": r"\{\{.*?\}\}",
    "a footnote": r"\[\^[\w-]+\]",
    "a formula": r"\$[^$\n]+\$|\\[a-zA-Z]{2,}.*",
    "Markdown": r"\*\*\w.*|^#{1,6} .*|^```.*",
    "HTML": r"</?(?:details|summary|div|span|p|b|i|sub|sup|a|img)\b.*",
}
LOG = {
    "a line of a log": r"waiting for another process.*|^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b.*"
    r"|^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d,\d{3}.*|.*\d%\|.*",
}
RENDERED = ("text/markdown", "text/html", "text/latex")
STDERR = "application/vnd.jupyter.stderr"  # also the kind of a traceback


@dataclass
class Report:
    """What one notebook showed."""

    name: str
    seconds: float = 0.0
    cells: int = 0
    figures: int = 0
    formulas: int = 0
    answers: dict[str, float] = field(default_factory=dict)  # seconds, by control of the live panel
    faults: list[str] = field(default_factory=list)

    def count(self, cells: Sequence[dict[str, Any]]) -> None:
        """Note how much ``cells``, as ``READ`` gives them, show."""
        shown = [part for cell in cells for part in cell["parts"]]
        self.cells = len(cells)
        self.figures = sum(part["figures"] for part in shown)
        self.formulas = sum(part["formulas"] for part in shown)

    def row(self) -> str:
        """A line of the table."""
        slowest = f"{max(self.answers.values()):.2f} s" if self.answers else "-"
        return (
            f"{self.name:32}{self.seconds:6.1f} s{self.cells:7}{self.figures:9}{self.formulas:10}"
            f"{slowest:>10}   {len(self.faults) or 'none'}"
        )


HEADER = (
    f"{'notebook':32}{'time':>8}{'cells':>7}{'figures':>9}{'formulas':>10}{'panel':>10}   faults"
)


def found(rules: dict[str, str], text: str) -> Iterator[str]:
    """What of ``rules`` (names and patterns) stands in ``text``, each with its name."""
    for name, pattern in rules.items():
        for match in re.finditer(pattern, text, re.MULTILINE):
            yield f"{name}: {match.group().strip()[:80]}"


def part_faults(part: dict[str, Any]) -> Iterator[str]:
    """What is wrong in one rendered text or output, as ``READ`` gives it."""
    text = part["text"]
    if part["mime"] == STDERR:
        if "Traceback (most recent call last)" in text:
            yield f"an error: {text.strip().splitlines()[-1][:120]}"
        else:
            said = text.strip()
            yield f"standard error: {said[:120] or 'an empty red strip'}"
        return
    yield from found(MYST, text)
    if part["mime"] in RENDERED:
        code = re.compile(r"```.*\n```|`[^`´]*´")
        yield from found(MARKDOWN, code.sub("", text))
    yield from found(LOG, text)
    yield from (f"a picture that does not load: {name}" for name in part["broken"])
    yield from (f"a formula that is not set: {formula}" for formula in part["unset"])


WITH_TABLES = re.compile(r"^own_seeds\(| if \w+ else None$")
"""Cells whose figure comes with tables of stored evidence."""


def cell_faults(cells: Sequence[dict[str, Any]], saved: nbformat.NotebookNode) -> Iterator[str]:
    """What is wrong in all ``cells`` of a notebook that was ``saved`` after its run, each with the
    number of its cell.
    """
    if len(cells) != len(saved.cells):
        yield f"{len(cells)} cells are shown of {len(saved.cells)}"
        return
    for number, (cell, own) in enumerate(zip(cells, saved.cells, strict=True), 1):
        where = f"cell {number}"
        for part in cell["parts"]:
            yield from (f"{where} shows {fault}" for fault in dict.fromkeys(part_faults(part)))
        if own.cell_type == "code" and own.source.strip() and not own.execution_count:
            yield f"{where} was not executed"
        wanted = "figure" in own.metadata.get("mystnb", {})
        if WITH_TABLES.search(own.source.rstrip()):  # without them it writes nothing
            wanted = wanted and bool(own.get("outputs"))
        if wanted and not any(part["figures"] for part in cell["parts"]):
            yield f"{where} shows no figure"


# ---- JupyterLab


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    token: str

    def ask(self, path: str, method: str = "GET") -> bytes:
        """The answer to a request with the token."""
        header = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=header)
        with urllib.request.urlopen(request, timeout=START) as answer:
            return answer.read()

    def exists(self, address: str) -> bool:
        """Whether a link to a file of this server leads anywhere."""
        try:
            self.ask(address.removeprefix(self.url).partition("?")[0])
        except urllib.error.HTTPError:
            return False
        return True

    def end_kernels(self) -> None:
        """Shut down what the notebooks of this server run on."""
        for session in json.loads(self.ask("api/sessions")):
            self.ask(f"api/sessions/{session['id']}", "DELETE")


def lab_environment(folder: Path, store: Path, token: str) -> dict[str, str]:
    """Variables of a JupyterLab that has all its own files in ``folder``."""
    for name, values in SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    (folder / "tmp").mkdir()
    own = {
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_DATA_DIR": folder / "data",
        "JUPYTER_RUNTIME_DIR": folder / "r",  # the names of sockets in it must be short
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
        "IPYTHONDIR": folder / "ipython",
        "TMPDIR": folder / "tmp",
        "KPNB_STORE": store,
    }
    env = {name: value for name, value in os.environ.items() if name != "KPNB_PROGRESS"}
    return env | {name: str(path) for name, path in own.items()} | {"JUPYTER_TOKEN": token}


@contextmanager
def open_lab(root: Path, store: Path, folder: Path) -> Iterator[Lab]:
    """A JupyterLab for the files below ``root``, on a free port of this machine only.

    Its own files are in ``folder``, and the results of notebooks in ``store``. It ends, and all of
    its kernels with it. Raises RuntimeError, with what it has said, when it does not start.
    """
    token, log = secrets.token_hex(), folder / "log"
    options = ["--no-browser", "--allow-root", f"--ServerApp.root_dir={root}"]
    options += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    if os.name == "posix" and len(os.fsencode(folder)) < 40:  # so short has a socket's name to be
        options += ["--KernelManager.transport=ipc"]
    with log.open("wb") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=lab_environment(folder, store, token),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is ours
        )
        try:
            yield Lab(started(server, folder / "r", log), token)
        finally:
            server.terminate()  # it ends its kernels first
            try:
                server.wait(START)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def started(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """The address of a ``server`` that has just been started, from the file that it leaves."""
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            text = file.read_text("utf8")
            if text.endswith("}"):
                return json.loads(text)["url"]
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab does not start:\n{log.read_text('utf8', 'replace')[-2000:]}")


def copy_book(root: Path, profile: str) -> None:
    """The notebooks with another ``profile``, and what they link to."""
    for name in ("book", "notebooks"):
        shutil.copytree(
            ROOT / name, root / name, ignore=lambda folder, names: set(names) & set(NOT_SOURCES)
        )
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    for path in root.glob("notebooks/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        line = re.compile(r'^profile = "\w+"', re.MULTILINE)
        cell.source, count = line.subn(f'profile = "{profile}"', cell.source)
        if count != 1:
            raise RuntimeError(f"{path.name}: its parameters set no profile that can be changed")
        nbformat.write(notebook, path)


# ---- what a reader does


def choose(page: Page, menu: str, entry: str) -> None:
    """Choose an ``entry`` of a ``menu``."""
    page.locator("#jp-MainMenu .lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{entry}$")).click()


def run_all(page: Page, lab: Lab, path: str, timeout: float) -> None:
    """Open a notebook and choose Run - Run All Cells; returns when the kernel is idle again."""
    page.goto(f"{lab.url}lab/tree/{path}?reset&token={lab.token}")
    wait_for(page, READY, START)
    choose(page, "Run", "Run All Cells")
    wait_for(page, BEGUN, START)
    wait_for(page, QUIET, timeout, looks=5)


def wait_for(page: Page, holds: str, seconds: float, looks: int = 1) -> None:
    """Wait until a condition holds at several ``looks`` in a row, a tenth of a second apart.

    Raises TimeoutError of playwright after that many ``seconds``.
    """
    end, held = time.monotonic() + seconds, 0
    while held < looks:
        if STOP.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > end:
            raise Late(f"more than {seconds:.0f} s")
        held = held + 1 if page.evaluate(holds) else 0
        page.wait_for_timeout(100)


def read(page: Page) -> list[dict[str, Any]]:
    """What the cells show, as soon as two looks at them see the same."""
    last: list[dict[str, Any]] = []
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        wait_for(page, LOADED, START)
        cells = page.evaluate(READ)
        if cells == last:
            break
        last = cells
        page.wait_for_timeout(300)
    return last


def ways(control: Locator) -> list[str]:
    """What a reader may do to a control: the keys that move a slider to its ends, where it is not
    yet, or the next entry of a list, if there is one.
    """
    if control.evaluate("c => c.tagName") == "SELECT":
        return ["next"] if control.evaluate("c => c.options.length") > 1 else []
    now, low, high = (control.get_attribute(f"aria-value{name}") for name in ("now", "min", "max"))
    if low == high:
        return []
    return ["End"] if now == low else ["Home", "End"]


def turn(control: Locator, way: str) -> None:
    """Use a control in one of its ``ways``."""
    if way == "next":
        index = control.evaluate("c => (c.selectedIndex + 1) % c.options.length")
        control.select_option(index=index)
    else:
        control.press(way)


def answer(page: Page, panel: Locator, control: Locator, way: str) -> float:
    """Seconds until a use of a control has changed what its panel shows; infinity if nothing
    does.
    """
    before, start = panel.evaluate(LOOK), time.perf_counter()
    turn(control, way)
    changed = f"([panel, before]) => ({LOOK})(panel) !== before"
    seen = [panel.element_handle(), before]
    try:
        page.wait_for_function(changed, arg=seen, timeout=1000 * PATIENCE)
    except Late:
        return math.inf
    return time.perf_counter() - start


def panel_answers(page: Page) -> dict[str, float]:
    """Use each control of the live panels; gives its slowest :func:`answer`."""
    taken: dict[str, float] = {}
    for panel in page.locator(".jp-OutputArea-output > .jupyter-widgets").all():
        for box in panel.locator(".widget-inline-hbox:has(select, [role=slider])").all():
            name, control = box.locator("label"), box.locator("select, [role=slider]").first
            for way in ways(control):
                seconds = answer(page, panel, control, way)
                label = name.inner_text()
                taken[label] = max(taken.get(label, 0.0), seconds)
                wait_for(page, QUIET, PATIENCE, looks=5)
    return taken


def broken_links(cells: Sequence[dict[str, Any]], lab: Lab) -> Iterator[str]:
    """Links of the texts to files that are not there."""
    links = {link for cell in cells for part in cell["parts"] for link in part["links"]}
    for link in sorted(link for link in links if link.startswith(f"{lab.url}files/")):
        if not lab.exists(link):
            yield f"a link leads nowhere: {link.partition('?')[0].removeprefix(lab.url)}"


def look_at(
    path: Path, lab: Lab, browser: Browser, timeout: float, screenshots: Path | None = None
) -> Report:
    """Run the notebook ``path`` of a copied book in ``lab`` and read it.

    With faults its picture is put into the folder ``screenshots``. The kernel is shut down.
    """
    report, start = Report(path.stem), time.perf_counter()
    page = browser.new_page(viewport=DESK)
    page.on("pageerror", lambda error: report.faults.append(f"a script fails: {error}"))
    try:
        run_all(page, lab, f"notebooks/{path.name}", timeout)
        report.seconds = time.perf_counter() - start
        cells = read(page)
        choose(page, "File", "Save Notebook")
        wait_for(page, SAVED, START)
        saved = nbformat.read(path, as_version=4)
        report.count(cells)
        report.faults += [*cell_faults(cells, saved), *broken_links(cells, lab)]
        dead = dead_controls(page)
        report.faults += [f"a control changes nothing: {control}" for control in dead]
        report.answers = panel_answers(page)
    except Late as late:
        report.faults.append(f"does not come to an end: {str(late).splitlines()[0]}")
    finally:
        if report.faults and screenshots:
            take_picture(page, screenshots / f"{path.stem}.png")
        page.close()
        lab.end_kernels()
    return report


def take_picture(page: Page, file: Path) -> None:
    """The whole notebook in one picture."""
    height = page.evaluate(
        "() => document.querySelector('.jp-WindowedPanel-outer')?.scrollHeight ?? 0"
    )
    page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer')?.scrollTo(0, 0)")
    page.set_viewport_size(DESK | {"height": min(max(DESK["height"], height + 150), HIGHEST)})
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file)


# ---- the command


@contextmanager
def copied_lab(profile: str, store: Path | None) -> Iterator[tuple[Path, Lab]]:
    """A copied book and a JupyterLab for it, both in a folder that is removed; gives the copy's
    folder and the server. Without a ``store`` results go there as well.
    """
    with tempfile.TemporaryDirectory(prefix="kpnb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        copy_book(folder / "book", profile)
        kept = store or folder / "store"
        kept.mkdir(parents=True, exist_ok=True)
        reviews = Store().root / ARCHIVE  # set-up has fetched them
        if reviews.is_file() and not (kept / ARCHIVE).exists():
            shutil.copy(reviews, kept)
        with open_lab(folder / "book", kept.resolve(), folder) as lab:
            yield folder / "book", lab


def slow(report: Report) -> Iterator[str]:
    """Controls of the live panel that let a reader wait."""
    for name, seconds in report.answers.items():
        if math.isinf(seconds):
            yield f"the control {name!r} does not answer"
        elif seconds > ANSWER:
            yield f"the control {name!r} answers after {seconds:.2f} s"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.jupyterlab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebooks", nargs="*", help="numbers or names; without any, all")
    parser.add_argument("--profile", choices=("smoke", "laptop", "paper"), default="smoke")
    parser.add_argument("--store", type=Path, help="where results are kept; default: removed")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds for a notebook (%(default)s)"
    )
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of what has faults")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each notebook and what is wrong with it; returns the exit status."""
    chosen = options(arguments)
    every = [path.stem for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    names = [find_notebook(name, ROOT).stem for name in chosen.notebooks or every]
    wrong = False
    # A browser comes first: it may be missing.
    with open_browser() as browser, copied_lab(chosen.profile, chosen.store) as (book, lab):
        print(HEADER)
        for name in names:
            path = book / "notebooks" / f"{name}.ipynb"
            report = look_at(path, lab, browser, chosen.timeout, chosen.screenshots)
            report.faults += slow(report)
            print(report.row(), *(f"    {fault}" for fault in report.faults), sep="\n", flush=True)
            wrong = wrong or bool(report.faults)
    return int(wrong)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: STOP.set())
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (BrowserError, UsageError, RuntimeError) as error:
        sys.exit(f"error: {error}")
