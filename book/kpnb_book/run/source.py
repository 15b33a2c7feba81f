"""What the file of a notebook says: its cells, its title, its parameters. Nothing is executed."""

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpnb_book.run.errors import NotebookError


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook; ``kind`` is code, markdown or raw."""

    kind: str
    source: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """What the parameters cell assigns: the ``default`` as source text, its ``value`` (None for an
    expression, whose value only a kernel knows), and the comment behind it.
    """

    default: str
    value: Any
    help: str


def cells_of(path: Path) -> list[Cell]:
    """The cells of a notebook. Raises NotebookError for a file that is none."""
    try:
        cells = json.loads(path.read_text("utf8"))["cells"]
        return [
            Cell(cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in cells
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"{path} is not a readable Python notebook: {error}") from error


def title_of(path: Path) -> str:
    """The first heading of a notebook; "" without one."""
    for cell in cells_of(path):
        if cell.kind == "markdown" and (
            heading := re.search("^# +(.+)", cell.source, re.MULTILINE)
        ):
            return heading[1].strip()
    return ""


def lead_of(path: Path) -> str:
    """The first sentence below the first heading of a notebook, without markup; "" without one."""
    for cell in cells_of(path):
        if cell.kind == "markdown" and (
            found := re.search(r"^# +.+\n\s*((?:.+\n?)+)", cell.source, re.MULTILINE)
        ):
            text = " ".join(line.lstrip("> ") for line in found[1].splitlines())
            text = re.sub(r"\{[\w:]+\}`([^`]*)`", r"\1", text)  # a role of MyST
            text = re.sub(r"[*`$]", "", text)
            return re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0].strip()
    return ""


def python(source: str) -> str:
    """A code cell as Python: lines that only IPython understands are comments."""
    return re.sub(r"^(\s*)[%!]", r"\1#", source, flags=re.MULTILINE)


def parameters_of(path: Path) -> dict[str, Parameter]:
    """What the parameters cell of a notebook assigns, by name; raises as :func:`cells_of`."""
    tagged = [cell for cell in cells_of(path) if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return {}
    source = python(tagged[0].source)
    try:
        tree, comments = ast.parse(source), _comments(source)
    except (SyntaxError, tokenize.TokenError) as error:
        raise NotebookError(f"{path}: its parameters cell is not Python: {error}") from error
    found = {}
    for node in tree.body:
        for name in _names(node):
            default = ast.get_source_segment(source, node.value) or ""
            found[name] = Parameter(default, _value(node.value), comments.get(node.end_lineno, ""))
    return found


def defaults_of(path: Path) -> dict[str, Any]:
    """The parameters of a notebook with their values; raises as :func:`parameters_of`."""
    return {name: known.value for name, known in parameters_of(path).items()}


def _names(node: ast.stmt) -> list[str]:
    """The names that a statement gives a value to, as ``a = 1`` and ``a: int = 1`` do."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _comments(source: str) -> dict[int, str]:
    """Comments by the number of their line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }
