"""How long the chapters of the book took when they were last executed, and which of their cells
took longest.
"""

from datetime import datetime

import nbformat

from kpnb_book.run.build import EXECUTED
from kpnb_book.run.chapters import notebooks_of
from kpnb_book.run.notebooks import find_root


def run(quick: bool) -> None:
    root = find_root()
    executed = [root / EXECUTED / path.name for path in notebooks_of(root)]
    print("\nchapters as last executed for the book, with what the store held then")
    print(f"  {'':28s}{'seconds':>9s}{'longest':>9s}   cell{'':38s}executed")
    total = 0.0
    for path in (path for path in executed if path.exists()):
        notebook = nbformat.read(path, as_version=4)
        about, cells = (
            notebook.metadata.papermill,
            [cell for cell in notebook.cells if cell.cell_type == "code"],
        )
        longest = max(cells, key=lambda cell: cell.metadata.papermill.duration or 0)
        first, most = (
            longest.source.strip().splitlines()[0][:40],
            longest.metadata.papermill.duration,
        )
        when = datetime.fromisoformat(about.start_time).date()
        print(f"  {path.stem:28s}{about.duration:9.1f}{most:9.1f}   {first:40s}  {when}")
        total += about.duration
    print(f"  {'in all':28s}{total:9.1f}" if total else "  none: make book executes them")
