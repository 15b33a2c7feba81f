"""What the cells of a page write, executed here with tables and a study of the test's."""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat


def executed(page: Path, parameters: Mapping[str, Any], **given: Any) -> str:
    """The Markdown and HTML that the cells of a ``page`` write.

    parameters   in place of those of its first cell
    given        names that the second one makes, such as a study, with values of the test's
    """
    space: dict = {}
    written = []
    cells = [c for c in nbformat.read(page, as_version=4).cells if c.cell_type == "code"]
    for number, cell in enumerate(cells):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), page.stem, "eval"), space)
                text = getattr(value, "data", "")
                written.append(text.to_string() if hasattr(text, "to_string") else str(text))
            else:
                exec(compile(ast.Module([node], []), page.stem, "exec"), space)
        if number == 0:
            space |= parameters
        if number == 1:
            space |= given
    return "\n".join(written)


def papermill(
    path: Path, output: Path, parameters: dict[str, object], **variables: object
) -> nbformat.NotebookNode:
    """``path`` executed by the command papermill itself; nothing is left in the user's home."""
    given = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    folders = {name: str(output.parent) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    search = [str(variables.pop("PYTHONPATH", "")), *sys.path]
    env = os.environ | folders | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "papermill", path, output, "--no-progress-bar", *given],
        cwd=path.parent,
        env=env | {"PYTHONPATH": os.pathsep.join(search)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return nbformat.read(output, as_version=4)
