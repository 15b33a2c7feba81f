"""A headless browser for the built pages: tests look at them with it, and ``make pdf`` prints
them.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = f"no browser: none of {', '.join(NAMES)} is on the PATH; "
MISSING += "`python -m playwright install chromium` fetches one"
# No name but this machine's is resolved, so that nothing can leave, and the browser asks its vendor
# for nothing.
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-gpu",
]
FLAGS += [
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--no-sandbox",
]


class BrowserError(RuntimeError):
    """There is no browser to look at pages with; the message says how to get one."""


def _executable(playwright: Playwright) -> str:
    """An installed Chromium, else the one that playwright has fetched; raises BrowserError without
    either.
    """
    for path in filter(None, [*map(shutil.which, NAMES), playwright.chromium.executable_path]):
        if Path(path).exists():
            return path
    raise BrowserError(MISSING)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium with a fresh profile that reaches this machine only; raises BrowserError
    without one.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_executable(playwright), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of ``folder`` to this machine only; gives the address,
    ``http://127.0.0.1:PORT``.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
