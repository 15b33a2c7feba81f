"""How numbers are written: by hand, and what has to hold for any of them."""

import math
import random
import re

import pandas as pd
import pytest

from kpnb_book.figures.report import show
from kpnb_book.numbers import column, interval, p_value, value

NAN = float("nan")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (100.0, "100"),
        (87.4321, "87.4"),
        (0.133, "0.133"),
        (0.99961, "1.00"),
        (12345.6, "12346"),
        (-6.43e-4, "-0.000643"),
        (-6.43e-5, "-6e-05"),  # a page has no room for seven decimals
        (3e-9, "3e-09"),
        (0, "0"),
        (-0.0, "0"),
        (NAN, "–"),
        (float("inf"), "inf"),
    ],
)
def test_value_by_hand(number, text):
    assert value(number) == text


@pytest.mark.parametrize(
    ("low", "high", "sign", "text"),
    [
        (-6.43e-5, 0.133, False, "-0.00006 to 0.133"),
        (-0.6, 0, True, "-0.600 to 0.000"),
        (-0.6, 0.041, True, "-0.600 to +0.041"),
        (1.5, 23.27, True, "+1.5 to +23.3"),
        (2, 4, False, "2 to 4"),
        (NAN, NAN, True, "–"),
        (NAN, 1.5, False, "– to 1.50"),
        (0.0, 0.0, False, "0 to 0"),
        (-99.96, 1, False, "-100 to 1"),
        (-1.3142, -1.3128, False, "-1.314 to -1.313"),  # not alike
        (1.0, 1.0 + 1e-12, False, "1.000000 to 1.000000"),
    ],
)
def test_interval_by_hand(low, high, sign, text):
    assert interval(low, high, sign=sign) == text


def test_column_has_equally_many_decimals():
    assert column([100.0, 87.5, NAN]) == ["100", "88", "–"]
    assert column([100.0, 87.5, NAN], digits=4) == ["100.0", "87.5", "–"]
    assert column([0.5, 0.0666]) == ["0.500", "0.067"]
    assert column([3.0, 20.0]) == ["3", "20"]
    assert column([]) == []


def test_reading_gives_the_number_back_on_its_side_of_zero():
    draw = random.Random(0)
    for _ in range(3000):
        number = draw.choice([-1, 1]) * 10 ** draw.uniform(-9, 5)
        other = draw.choice([-1, 1]) * 10 ** draw.uniform(-9, 5)
        largest = max(abs(number), abs(other))
        ends = [float(part) for part in interval(number, other, sign=True).split(" to ")]
        assert [math.copysign(1, end) for end in ends if end] == [
            math.copysign(1, number),
            math.copysign(1, other),
        ]
        # Half a unit of the third digit of the larger end; what needs seven decimals has one digit.
        step = 0.5 if largest < 1e-3 else 0.005
        assert abs(ends[0] - number) <= step * largest * 1.001
        assert abs(float(value(number)) - number) <= 0.5 * abs(number)


def test_tables_of_the_page_write_numbers_so():
    """No decimals that say nothing, and none lost that say on which side of zero a value lies."""
    columns = {"share": [100.0, 50.0, NAN], "rho": [0.25, 1.0, -2e-5], "text": ["a", "b", "c"]}
    page = show(pd.DataFrame(columns), precision=3).to_html()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    rows = [cells[0:3], cells[3:6], cells[6:9]]
    assert rows == [["100", "0.250", "a"], ["50", "1.000", "b"], ["–", "-0.00002", "c"]]


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.0, "< 0.001"), (7e-8, "< 0.001"), (0.0037, "0.0037"), (0.22, "0.22"), (1, "1")],
)
def test_what_is_less_than_a_thousandth_is_not_told_apart(p: float, said: str):
    assert p_value(p) == said
