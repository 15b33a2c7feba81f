"""What an executed notebook follows from, and what it does not."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kpnb_book.run import build
from kpnb_book.run import origin as module
from kpnb_book.run.origin import origin, reached
from tests.test_runner import repository, write


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of ours with a figure, what that uses, and a module that nobody imports."""
    files = {
        "__init__.py": "",
        "figures/__init__.py": "",
        "figures/plot.py": "import numpy\nfrom mini.tools import line\n",
        "figures/plot.css": "red",
        "tools.py": "def line():\n    from mini import late\n",
        "late.py": "from kpnb_book.packages import package\npackage('PyYAML')\n",
        "other.py": "",
        "data/table.csv": "1",
    }
    for name, text in files.items():
        file = tmp_path / "mini" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setitem(module.PACKAGES, "mini", tmp_path / "mini")
    return tmp_path / "mini"


def test_modules_that_are_reached(package):
    files = reached({"mini.figures.plot.draw"})
    assert [str(file.relative_to(package)) for file in files if package in file.parents] == [
        "__init__.py",
        "figures/__init__.py",
        "figures/plot.py",
        "late.py",
        "tools.py",
    ]
    assert reached({"numpy", "nowhere"}) == []
    names = {file.name for file in reached({"kpnb_book.figures.report"})}
    assert {"report.py", "_messages.py"} <= names
    assert "notebooks.py" not in names


def test_tables_of_stored_evidence_count_where_they_are_read(tmp_path, monkeypatch):
    package = tmp_path / "kpnb_book"
    monkeypatch.setitem(module.PACKAGES, "kpnb_book", package)
    files = ("results/images/networks.csv", "results/images/samples.csv.xz")
    files += ("results/images/.lock", "kpnb_book/studies/results.py", "kpnb_book/figures/plots.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    table, zipped, _, reads, other = (tmp_path / name for name in files)
    assert module.with_data([reads]) == sorted([reads, table, zipped])
    assert module.with_data([other]) == [other]


def test_what_changes_the_origin(package, tmp_path, monkeypatch):
    path = write(tmp_path / "10_a.ipynb", "from mini.figures import plot")
    unused = write(tmp_path / "11_b.ipynb", "from mini import other")
    before = origin(path, {}), origin(unused, {})

    def changed() -> tuple[bool, bool]:
        return origin(path, {}) != before[0], origin(unused, {}) != before[1]

    def edited(name: str) -> tuple[bool, bool]:
        file = package / name
        text = file.read_text()
        file.write_text(f"{text}# edited")
        found = changed()
        file.write_text(text)
        return found

    assert changed() == (False, False)
    for name in ("figures/plot.py", "figures/plot.css", "tools.py", "late.py"):
        assert edited(name) == (True, False), name
    assert edited("other.py") == (False, True)
    assert edited("__init__.py") == (True, True)
    assert edited("data/table.csv") == (False, False)
    assert origin(path, {"b": 1}) != before[0]

    version = module.version
    for name, expected in {"numpy": True, "PyYAML": True, "pandas": False, "pip": False}.items():
        with monkeypatch.context() as updated:
            updated.setattr(module, "version", lambda one, name=name: one == name or version(one))
            assert changed() == (expected, False), name
    write(path, "from mini.figures import plot", "1")
    assert changed() == (True, False)


def test_a_notebook_saved_by_an_editor_is_the_same(tmp_path):
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("a + 1", metadata={"mystnb": {"figure": {"caption": "One"}}}),
    ]
    path = tmp_path / "10_a.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    before = origin(path, {})
    saved = nbformat.read(path, as_version=4)
    saved.metadata = {"language_info": {"name": "python", "version": "3.99"}, "widgets": {}}
    for cell in saved.cells:
        cell.id = f"x{cell.id}"
        cell.metadata |= {"collapsed": False, "execution": {"iopub.status.busy": "now"}}
    saved.cells[2].outputs = [new_output("stream", text="2")]
    saved.cells[2].execution_count = 7
    path.write_text(json.dumps(saved, indent=4, ensure_ascii=True))
    assert origin(path, {}) == before
    saved.cells[2].metadata["mystnb"]["figure"]["caption"] = "Another"
    path.write_text(json.dumps(saved))
    assert origin(path, {}) != before


def test_a_figures_code_executes_again_and_trains_nothing(tmp_path, monkeypatch, dask_cluster):
    """One of two chapters trains a network and draws."""
    root = repository(tmp_path)
    (root / "drawn").mkdir()
    (root / "drawn" / "figure.py").write_text("style = 'red'\n")
    monkeypatch.setitem(module.PACKAGES, "drawn", root / "drawn")
    monkeypatch.setattr(build, "build_pages", lambda root: root)
    train = f"""
import sys
sys.path.insert(0, {str(root)!r})
from kpnb_book.store import Store
def compute():
    open({str(root / "trained")!r}, "a").write("x")
    return {{}}, {{"loss": 1}}
Store({str(root / "store")!r}).run("student", {{"seed": 0}}).get("epoch-0", compute)
"""
    note = "open({!r}, 'a').write('{}')"
    ran = str(root / "ran")
    write(root / "notebooks" / "10_first.ipynb", note.format(ran, "1"))
    draw = "from drawn import figure\nprint(figure.style)"
    write(root / "notebooks" / "11_second.ipynb", train, draw, note.format(ran, "2"))
    build.build_book("laptop", root, scheduler=dask_cluster)
    assert sorted(Path(ran).read_text()) == ["1", "2"]
    (root / "drawn" / "figure.py").write_text("style = 'blue'\n")
    build.build_book("laptop", root, scheduler=dask_cluster)
    assert sorted(Path(ran).read_text()) == ["1", "2", "2"]
    assert (root / "trained").read_text() == "x"
    copy = nbformat.read(root / "book" / "_executed" / "11_second.ipynb", as_version=4)
    assert copy.cells[2].outputs[0].text == "blue\n"
