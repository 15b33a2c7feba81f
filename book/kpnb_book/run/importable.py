"""Whether a function ``package.module:function`` can be imported and called with these arguments.

A program of its own, ``python -m kpnb_book.run.importable FUNCTION ARGUMENT ...``, because
importing runs somebody's code. Its search path begins with the folder that it is started in, as a
kernel's.
"""

import inspect
import pkgutil
import sys
from collections.abc import Sequence

UNFIT = 3  # exit code


def main(name: str, arguments: Sequence[str]) -> int:
    """Exit code: 0, 1 for what is no function, ``UNFIT`` for one that takes other arguments; why is
    printed last. Raises what importing raises.
    """
    found = pkgutil.resolve_name(name)
    if not callable(found):
        print(f"it is no function but {found!r}", file=sys.stderr)
        return 1
    try:
        inspect.signature(found).bind(*arguments)
    except ValueError:
        pass  # some functions of C do not say what they take
    except TypeError as error:
        call = f"{name.rpartition(':')[2]}({', '.join(arguments)})"
        print(f"it is called as {call}: {error}", file=sys.stderr)
        return UNFIT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
