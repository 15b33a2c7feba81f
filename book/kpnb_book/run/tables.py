"""What comes of a sweep: a table of the results of all runs, and one for each table they glued."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpnb_book import numbers

if TYPE_CHECKING:
    import pandas as pd

WIDEST = 12  # columns that stand side by side; of more, each is a row
STYLE = """
:root { color-scheme: light dark }
body { font: 0.9rem/1.5 sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
[role=region] { max-height: 80vh; overflow: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: 0.15rem 0.6rem; text-align: right; white-space: nowrap }
tr > :first-child { background: Canvas; left: 0; position: sticky; text-align: left }
th { background: Canvas; position: sticky; top: 0; z-index: 1 }
tr > th:first-child { z-index: 2 }
tbody tr { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
"""
Run = tuple[str, Mapping[str, Any], Mapping[str, Any] | None]  # name, parameters, what came of it


def write(folder: Path, runs: Iterable[Run], failed: Mapping[str, str]) -> None:
    """Collect what is finished: ``results`` with a row for each run, and every glued table with the
    run's parameters.

    Each is written as CSV and, where pyarrow is installed, as Parquet; ``index.html`` shows them.
    """
    tables = gather(runs)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        with suppress(ImportError):
            table.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "index.html").write_text(page_of(folder.name, tables, failed), "utf8")


def gather(runs: Iterable[Run]) -> "dict[str, pd.DataFrame]":
    """The tables of the finished ``runs`` by name, with the runs' names and parameters in front. A
    column that is called as one of these has the table's name before it.
    """
    import pandas as pd

    rows = defaultdict(list)
    for run, parameters, record in runs:
        if record is None:
            continue
        about = {"run": run} | {name: text_of(value) for name, value in parameters.items()}
        for table, lines in ({"results": [record["results"]]} | record["tables"]).items():
            for line in lines:
                own = {f"{table} {k}" if k in about else k: value for k, value in line.items()}
                rows[table].append(about | own)
    return {name: pd.DataFrame(lines) for name, lines in rows.items()}


def text_of(value: Any) -> Any:
    """A value as it stands in a table: a list as a text."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def page_of(title: str, tables: "Mapping[str, pd.DataFrame]", failed: Mapping[str, str]) -> str:
    """The ``tables`` by name on an HTML page that no table makes wider than the window, below why
    runs have ``failed``.
    """
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    head += "<meta name=viewport content='width=device-width,initial-scale=1'>"
    parts = [f"{head}<style>{STYLE}</style><h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(label)}: {escape(why)}</p>" for label, why in failed.items()]
    for name, table in tables.items():
        about, shown = _shown(table)
        link = f'<a href="{escape(name)}.csv">all columns as CSV</a>'
        scrolls = f'role=region aria-label="{escape(name)}" tabindex=0'
        parts.append(f"<h2>{escape(name)}</h2><p>{about} {link}</p>")
        parts.append(f"<div {scrolls}>{shown}</div>")
    return "\n".join(parts)


def _shown(table: "pd.DataFrame") -> tuple[str, str]:
    """In words what all rows have in common, and as HTML the other columns; as rows, where there
    are too many of them to stand side by side.
    """
    same = [name for name in table if len(table) > 1 and table[name].nunique(dropna=False) == 1]
    same = [name for name in same if name != "run"]
    about = ", ".join(f"{name} = {text_of_cell(table[name].iloc[0])}" for name in same)
    kept = table.drop(columns=same)
    texts = {name: _written(kept[name]) for name in kept}
    texts["run"] = [_link(run) for run in kept["run"]]
    rows = [[escape(name) for name in texts], *zip(*texts.values(), strict=True)]
    if len(texts) > WIDEST:
        rows = [*zip(*rows, strict=True)]
    lines = ["".join(f"<td>{cell}" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}" for line in lines[1:])
    first = lines[0].replace("<td>", "<th>")
    said = f"The same in all rows: {escape(about)}." if about else ""
    return said, f"<table><thead><tr>{first}<tbody>{body}</table>"


def _written(values: "pd.Series") -> list[str]:
    """The cells of a column: numbers with equally many decimals, everything else as it is."""
    if values.dtype.kind == "f":
        return numbers.column(values.tolist(), digits=4)
    return [escape(text_of_cell(value)) for value in values]


def text_of_cell(value: Any) -> str:
    """A value as it stands in a cell; what is missing is a dash."""
    if isinstance(value, float):
        return numbers.value(value, digits=4)
    return numbers.DASH if value is None else str(value)


def _link(run: str) -> str:
    return f'<a href="{run}/{run.rpartition("-")[0]}.html">{run}</a>'
