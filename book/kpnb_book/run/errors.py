"""What goes wrong when notebooks are run."""

from collections.abc import Iterable


class UsageError(ValueError):
    """What was asked for does not exist or does not fit; the message names the nearest that
    does.
    """


class NotebookError(RuntimeError):
    """A notebook, or the book, did not come out right; the message says where and why."""


def unknown(what: str, name: object, options: Iterable[object]) -> str:
    """Say that ``name`` is not a known ``what`` and name the nearest ``options``."""
    # Imported when it is needed: it brings PyTorch, and commands should answer at once.
    from kpnb._messages import unknown as wording

    return wording(what, name, options)
