"""The method page, and that of the losses, find every equation in one hop: each name of their
tables is followed.
"""

import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import pytest

from kpnb import losses

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGE = (BOOK / "method.md").read_text("utf8")
LOSSES = (BOOK / "losses.md").read_text("utf8")
NOTATION = (BOOK / "notation.md").read_text("utf8")

LINK = r"\{download\}`[\w.]+ <([\w./]+\.py)>`"
# What a docstring calls the works that the tables name.
CALLED = {
    "halko2011finding": "Halko",
    "meyer2021hutch": "Hutch++",
    "james1961estimation": "James and Stein",
    "hinton2015distilling": "Hinton",
    "romero2014fitnets": "Romero",
    "zagoruyko2017paying": "Zagoruyko and Komodakis",
    "zhao2022decoupled": "Zhao",
    "tung2019similarity": "Tung and Mori",
    "park2019relational": "Park",
    "passalis2018learning": "Passalis and Tefas",
    "tian2020contrastive": "Tian",
    "oord2018representation": "van den Oord",
}


class Line(NamedTuple):
    """A line of the table: what it is about, and the names in a file."""

    source: str
    names: list[str]
    file: Path


def table(page: str, start: str) -> list[Line]:
    section = page.partition(f"({start})=")[2].partition("\n(")[0]
    lines = []
    for line in section.splitlines():
        if line.startswith("|") and "{download}" in line:
            source, _, names, link = (cell.strip() for cell in line.strip("|").split("|"))
            file = (BOOK / re.search(LINK, link)[1]).resolve()
            lines.append(Line(source, re.findall(r"`([\w.]+)`", names), file))
    return lines


METHOD = table(PAGE, "where")
TABLE = METHOD + table(LOSSES, "losses-table")


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
    assert set().union(*(expected(line.source) for line in METHOD)) == set(range(1, 10))
    text = " ".join(line.source for line in METHOD)
    labels = set(re.findall(r":label: (eq-[a-z]+)", PAGE))
    assert labels == set(re.findall(r"\{eq\}`(eq-[a-z]+)`", text)) == {"eq-energy", "eq-flow"}
    assert all(line.names for line in TABLE)


def test_the_page_of_the_losses_has_each_with_its_defaults():
    """And each of their equations is in the table."""
    found = {}
    for line in LOSSES.partition("(losses-table)=")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`") and cells[0] != "`loss`":
            pairs = re.findall(r'`(\w+)="?([\w.]+)"?`', cells[3])
            found[cells[0].strip("`")] = (dict(pairs), float(cells[4]))
    expected = {}
    for name, loss in losses.LOSSES.items():
        defaults = {key: f"{v:g}" if v != str(v) else v for key, v in loss.parameters().items()}
        expected[name] = (defaults, loss.weight)
    assert found == expected
    labels = set(re.findall(r":label: (loss-\w+)", LOSSES)) - {"loss-objective"}
    assert labels == set(re.findall(r"\{eq\}`(loss-\w+)`", LOSSES))
    named = {name for line in TABLE for name in line.names}
    functions = {loss.function.__name__ for loss in losses.LOSSES.values()}
    assert functions <= named
    assert {loss.helper.__name__ for loss in losses.LOSSES.values() if loss.helper} <= named


def test_the_examples_of_the_losses_run(monkeypatch):
    """One after the other, as a reader would; the new loss is known to this test alone."""
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    blocks = re.findall(r"```python\n(.*?)```", LOSSES, re.S)
    assert len(blocks) == 2
    done: dict[str, Any] = {}
    exec("\n".join(blocks), done)
    assert done["learned"].log[-1]["loss"] > 0
    assert done["ends"].log[-1]["loss"] < done["ends"].log[1]["loss"]


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
