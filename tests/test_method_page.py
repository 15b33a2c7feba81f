"""The method page finds every equation in one hop: each name of its table is followed."""

import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGE = (BOOK / "method.md").read_text("utf8")
NOTATION = (BOOK / "notation.md").read_text("utf8")

LINK = r"\{download\}`[\w.]+ <([\w./]+\.py)>`"
# What a docstring calls the works that the table names.
CALLED = {
    "halko2011finding": "Halko",
    "meyer2021hutch": "Hutch++",
    "james1961estimation": "James and Stein",
}


class Line(NamedTuple):
    """A line of the table: what it is about, and the names in a file."""

    source: str
    names: list[str]
    file: Path


def table() -> list[Line]:
    section = PAGE.partition("(where)=")[2].partition("\n(")[0]
    lines = []
    for line in section.splitlines():
        if line.startswith("|") and "{download}" in line:
            source, _, names, link = (cell.strip() for cell in line.strip("|").split("|"))
            file = (BOOK / re.search(LINK, link)[1]).resolve()
            lines.append(Line(source, re.findall(r"`([\w.]+)`", names), file))
    return lines


TABLE = table()


def module_of(file: Path) -> Any:
    start = BOOK if BOOK in file.parents else BOOK.parent
    return importlib.import_module(".".join(file.relative_to(start).with_suffix("").parts))


def look_up(file: Path, name: str) -> Any:
    found = module_of(file)
    for part in name.split("."):
        found = getattr(found, part)
    return found.fget if isinstance(found, property) else found


def equations(docstring: str) -> set[int]:
    """The paper's equations that a docstring names: "Eq. 3", "Eq. 5-7", "(Eq. 1-4)"."""
    found = set()
    for first, last in re.findall(r"Eq\. (\d)(?:-(\d))?", docstring):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def expected(source: str) -> set[int]:
    """The paper's equations that a line of the table is about."""
    numbers = [int(number) for number in re.findall(r"\{eq\}`eq-(\d)`", source)]
    return set(range(min(numbers), max(numbers) + 1)) if numbers else set()


each_name = pytest.mark.parametrize(
    ("line", "name"),
    [(line, name) for line in TABLE for name in line.names],
    ids=lambda value: value if isinstance(value, str) else value.file.stem,
)


def test_the_table_has_every_equation():
    assert set().union(*(expected(line.source) for line in TABLE)) == set(range(1, 10))
    text = " ".join(line.source for line in TABLE)
    labels = set(re.findall(r":label: (eq-[a-z]+)", PAGE))
    assert labels == set(re.findall(r"\{eq\}`(eq-[a-z]+)`", text)) == {"eq-energy", "eq-flow"}
    assert all(line.names for line in TABLE)


@each_name
def test_a_name_leads_to_its_file(line, name):
    assert line.file.is_file()
    found = look_up(line.file, name)
    assert isinstance(found, type | FunctionType)
    assert Path(inspect.getsourcefile(found)).resolve() == line.file


@each_name
def test_a_docstring_names_the_equation(line, name):
    docstring = " ".join((inspect.getdoc(look_up(line.file, name)) or "").split())
    assert docstring
    assert expected(line.source) <= equations(docstring)
    for section in re.findall(r"section \d\.\d", line.source):
        assert section in docstring.lower()
    for work in re.findall(r"\{cite:\w\}`(\w+)`", line.source):
        assert CALLED[work] in docstring


def test_what_is_expected_of_docstrings():
    assert equations("(Eq. 1-4), and Eq. 8.") == {1, 2, 3, 4, 8}
    assert equations("Equal to 3") == set()
    assert expected("{eq}`eq-5`–{eq}`eq-7`") == {5, 6, 7}
    assert expected("{eq}`eq-flow`") == set()


def names_and_files(text: str) -> list[tuple[str, str]]:
    """Names that stand before a file in the tables of the notation, with that file.

    "`a`, `b` in [file]" names two of them; "same file" is the one of the line before.
    """
    found, file = [], ""
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        cell = line.strip("|").split("|")[-1]
        start = 0
        for end in re.finditer(LINK + "|same file", cell):
            file = end[1] or file
            part = cell[start : end.start()]
            found += [(name, file) for name in re.findall(r"`([A-Za-z_.]+)(?:\([^`]*\))?`", part)]
            start = end.end()
    return found


@pytest.mark.parametrize(("name", "file"), names_and_files(NOTATION))
def test_a_name_of_the_notation_is_in_its_file(name, file):
    path = (BOOK / file).resolve()
    assert path.is_file()
    source = path.read_text("utf8")
    for part in name.split("."):
        assert re.search(rf"\b{part}\b", source), f"{file} does not know {name}"
