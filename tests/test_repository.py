"""What the repository promises about itself: thin notebooks without outputs, a small package,
nothing local.
"""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEFT_OUT = {
    ".git",
    ".venv",
    "_build",
    "_executed",
    "vendor",
    "reruns",
    "__pycache__",
    "node_modules",
}
TEXT = {
    ".py",
    ".md",
    ".ipynb",
    ".yml",
    ".yaml",
    ".toml",
    ".txt",
    ".cff",
    ".sh",
    ".css",
    ".svg",
    ".json",
    ".bib",
    "",
}
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf8"), re.M))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_files() -> Iterator[Path]:
    """Files that belong to the repository, whether or not they are committed yet."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in LEFT_OUT and not re.search(r"egg-info|_cache", name)
        ]
        if (
            Path(folder) == ROOT and "data" in folders
        ):  # the user's own data sets; kpnb/data is ours
            folders.remove("data")
        yield from (Path(folder, name) for name in names if Path(name).suffix in TEXT)


@each_notebook
def test_notebook_has_no_outputs(path):
    for cell in code_cells(path):
        assert not cell.outputs, f"run nbstripout: {cell.source[:60]!r} has outputs"
        assert cell.execution_count is None
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata.kernelspec.get("language") == "python"  # papermill asks for it
    assert "papermill" not in metadata
    assert "widgets" not in metadata


@each_notebook
def test_notebook_cells_are_thin(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 15, (
            f"a cell of more than 15 lines: {cell.source[:60]!r}"
        )
        tree = ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.M))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 3, (
                    f"{node.name} belongs in kpnb, not in a notebook"
                )


@each_notebook
def test_notebook_has_one_parameters_cell_with_a_profile(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {
        target.id
        for node in ast.parse(tagged[0].source).body
        for target in getattr(node, "targets", [])
    }
    assert "profile" in names


def test_every_page_of_the_contents_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    pages = [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]
    missing = [
        p
        for p in pages
        if not any((ROOT / f"{p}{suffix}").is_file() for suffix in (".md", ".ipynb"))
    ]
    assert not missing
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= set(pages), (
        "a notebook that no page list names"
    )


def test_kpnb_does_without_the_book():
    sources = {path.name: path.read_text("utf8") for path in (ROOT / "kpnb").rglob("*.py")}
    assert not [
        name
        for name, text in sources.items()
        if re.search(r"^\s*(import|from) kpnb_book", text, re.M)
    ]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of its docstring."""
    first = function.body[0]
    described = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - described


def test_functions_fit_on_a_screen():
    for path in [*(ROOT / "kpnb").rglob("*.py"), *(ROOT / "book" / "kpnb_book").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert lines_of(node) < 60, f"{path.name}: {node.name} is longer than a screen"


def test_no_file_names_a_local_folder():
    own = [
        f"{folder}/" for folder in {ROOT, Path.home()} if folder != Path("/")
    ]  # of whoever runs this
    local = re.compile("|".join([*map(re.escape, own), r"/(?:home|Users)/\w+/"]))
    assert not [path.name for path in text_files() if local.search(path.read_text("utf8"))]


def test_versions_are_pinned_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = {re.sub("[-_.]+", "-", name).lower() for name in PINS}
    names = {re.sub("[-_.]+", "-", re.match(r"[\w.-]+", line).group()).lower() for line in wanted}
    assert names <= pinned
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"][0][
        "hooks"
    ]
    for name, version in (
        line.split("==") for hook in hooks for line in hook["additional_dependencies"]
    ):
        assert PINS[name] == version
