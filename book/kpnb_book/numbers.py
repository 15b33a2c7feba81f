"""How numbers are written in tables, on figures and in sentences: one way for all.

Plain decimals, no more of them than say something; the ends of an interval have equally many. What
is undefined is a dash, and what is zero has no sign. A value that is not zero is never written as
zero, because the side of zero on which an interval ends decides a verdict.
"""

import math
from collections.abc import Iterable

DASH = "\N{EN DASH}"
SMALLEST = 6  # decimals; what needs more is written with a power of ten


def value(number: float, digits: int = 3, sign: bool = False) -> str:
    """``number`` with ``digits`` significant ones; with ``sign`` a positive one has a plus."""
    return written(number, decimals([number], digits), sign)


def interval(low: float, high: float, digits: int = 3, sign: bool = False) -> str:
    """``low to high``, where the end further from zero has ``digits`` significant ones, and more
    where both would be written alike.
    """
    places = max(decimals([low, high], digits), min(decimals([high - low], 1), SMALLEST))
    ends = [written(end, places, sign) for end in (low, high)]
    return DASH if ends == [DASH, DASH] else " to ".join(ends)


def p_value(number: float) -> str:
    """A probability of a test, of which less than a thousandth is not told apart."""
    return "< 0.001" if number < 1e-3 else value(number, 2)


def column(numbers: Iterable[float], digits: int = 3) -> list[str]:
    """The numbers of a column with equally many decimals, the largest with ``digits`` significant
    ones; whole numbers have none.
    """
    known = list(numbers)
    places = decimals(known, digits)
    return [written(number, places) for number in known]


def decimals(numbers: Iterable[float], digits: int) -> int:
    """How many decimals give the largest of ``numbers`` its ``digits`` significant ones."""
    sizes = [abs(number) for number in numbers if math.isfinite(number)]
    largest = max(sizes, default=0.0)
    if largest == 0 or all(size == round(size) for size in sizes):
        return 0
    # Of the rounded number, which may have one digit more: 0.9996 is 1.00.
    exponent = int(f"{largest:.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)


def written(number: float, places: int, sign: bool = False) -> str:
    """``number`` with so many decimal ``places``, and more where it would be written as zero."""
    if math.isnan(number):
        return DASH
    if number == 0:
        return f"{0:.{min(places, SMALLEST)}f}"
    plus = "+" if sign else ""
    if math.isinf(number):
        return f"{number:{plus}}"
    if round(number, places) == 0:  # one significant digit of its own
        places = -int(f"{number:.0e}".partition("e")[2])
    return f"{number:{plus}.{places}f}" if places <= SMALLEST else f"{number:{plus}.0e}"
