"""Progress of long work: a plain text bar, or a status file that a parent process shows.

``tqdm.auto`` would become a widget inside Jupyter, which neither papermill nor a rendered page can
show. When ``KPNB_PROGRESS`` names a file, as for notebooks that are executed without a browser, the
current line goes there and nothing is printed, so that they hold results only.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm


def note(settings: Mapping[str, Any]) -> None:
    """Leave the settings of an experiment beside the status file, for the parent process to keep
    with the results.
    """
    if path := os.environ.get("KPNB_PROGRESS"):
        with Path(path).with_suffix(".settings").open("a") as file:
            print(json.dumps(settings), file=file)


class Progress:
    """Context manager that shows how much of ``total`` is done, with named values and the time
    left.
    """

    def __init__(
        self, total: int, what: str, unit: str = "epoch", done: int = 0, hidden: bool = False
    ) -> None:
        path = os.environ.get("KPNB_PROGRESS")
        self._file = Path(path) if path else None

        self._sink = sink = open(os.devnull, "w") if self._file else None
        self._bar = tqdm(
            total=total, desc=what, unit=unit, initial=done, file=sink, leave=False, disable=hidden
        )

    def __enter__(self) -> "Progress":
        return self

    def step(self, n: int = 1, **values: float) -> None:
        """Advance by ``n`` and show ``values``, for example ``loss=0.31``."""
        if values:
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
        self._bar.update(n)
        if self._file and not self._bar.disable:
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
