"""Bars of progress that remember what they were asked for and what they counted."""

from typing import Any

import pytest

from kpnb import _progress


class Bar(_progress.tqdm):
    """A bar, with its ``options``, its ``steps``, and whether it was ``closed``."""

    def __init__(self, **options: Any) -> None:
        self.options, self.steps, self.closed = options, [], False
        super().__init__(**options)

    def update(self, n: int = 1) -> None:
        self.steps.append(n)
        super().update(n)

    def close(self) -> None:
        self.closed = True
        super().close()


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """A list that takes up every bar that kpnb shows from now on."""
    shown: list[Bar] = []

    def made(**options: Any) -> Bar:
        bar = Bar(**options)
        shown.extend([] if options["disable"] else [bar])
        return bar

    monkeypatch.setattr(_progress, "tqdm", made)
    return shown
