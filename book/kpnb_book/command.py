"""The command ``kpnb``, for an environment that may not have the book's packages."""

import sys


def main() -> int:
    """Run the command line; where a package of the book is missing, name it and its remedy."""
    try:
        from kpnb_book.run.command_line import main as run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "kpnb", "kpnb_book", "torch"):  # no extra brings these
            raise
        install = "pip install -c constraints.txt -e '.[book]' in the clone"
        print(f"error: the package {package} is missing; {install} brings it", file=sys.stderr)
        return 2
    return run()
