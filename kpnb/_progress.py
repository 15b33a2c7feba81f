"""Progress of long work: a plain text bar, or a status file that a parent process shows.

``tqdm.auto`` would become a widget inside Jupyter, which neither papermill nor a rendered page can
show. When ``KPNB_PROGRESS`` names a file, as for notebooks that are executed without a browser, the
current line goes there and nothing is printed, so that they hold results only.
"""

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


def _stream() -> TextIO:
    """Where a bar is shown: standard error; in a notebook standard output, because Jupyter paints
    the place of a bar red that was on standard error, long after it has gone.
    """
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    return sys.stdout if in_notebook else sys.stderr


class Progress:
    """Context manager that shows how much of ``total`` is done, with named values and the time
    left.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        unit: str = "epoch",
        hidden: bool = False,
        delay: float = 0,
    ) -> None:
        path = os.environ.get("KPNB_PROGRESS")
        self._file = Path(path) if path else None
        self._sink = open(os.devnull, "w") if path else None  # noqa: SIM115
        self._shown_from = time.monotonic() + delay  # seconds: what is done sooner needs no bar
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=unit,
            file=self._sink or _stream(),
            leave=False,
            disable=hidden,
            delay=delay,
        )

    def __enter__(self) -> "Progress":
        return self

    def say(self, what: str) -> None:
        """Say from now on that ``what`` is done."""
        self._bar.set_description(what, refresh=False)

    def step(self, n: int = 1, **values: float) -> None:
        """Advance by ``n`` and show ``values``, for example ``loss=0.31``."""
        if values:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
        self._bar.update(n)
        if self._file and not self._bar.disable and time.monotonic() >= self._shown_from:
            self._file.write_text(str(self._bar))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._sink:
            self._sink.close()
