"""``python -m kpnb_book`` is the command ``kpnb``."""

import sys

from kpnb_book.command import main

if __name__ == "__main__":
    sys.exit(main())
