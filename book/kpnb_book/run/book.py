"""Execute every notebook with papermill and build the HTML book: what ``make book`` runs."""

import argparse
import sys
from collections.abc import Sequence

from kpnb_book.run.build import build_book
from kpnb_book.run.notebooks import PROFILES, NotebookError, UsageError, find_root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 when a notebook or the book fails, 2 when it was called
    wrongly.
    """
    parser = argparse.ArgumentParser(prog="python -m kpnb_book", description=__doc__)
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default="laptop",
        help="size of the experiments (%(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NOTEBOOK",
        help="execute these, keep the other executed copies",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="notebooks that run at the same time (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        print(
            f"The book is at {build_book(options.profile, find_root(), options.only, options.workers)}"
        )
    except (NotebookError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
